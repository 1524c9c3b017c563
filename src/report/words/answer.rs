//! The answer: as one line for a reader who has five seconds, and in full.

use super::decision::reason;
use super::notes::{curve, gain, information, note, notes};
use super::numbers::{capitalised, count, number, or_unknown, rate, seconds, time};
use crate::decide::{JudgedLevel, Note, Recommendation, Status, known_p99};
use crate::figures::LevelSummary;
use crate::record::About;

/// What was measured, in one line.
pub fn measured(about: &About, recommendation: &Recommendation) -> String {
    let simulator = "the embedded simulator".to_owned();
    let of = if about.simulated() { [None, Some(simulator)] } else { [about.model.clone(), about.endpoint.clone()] };
    let requests: Vec<u64> = recommendation.levels.iter().filter_map(|level| level.summary.requests).collect();
    let (sum, levels) = (requests.iter().sum(), count(requests.len() as u64, "level"));
    let counted = (sum > 0).then(|| format!("{} at {levels}", count(sum, "request")));
    let parts = of.into_iter().chain([about.started_at.as_deref().map(moment), counted]);
    parts.flatten().collect::<Vec<_>>().join(", ")
}

/// `2026-11-24T08:09:45Z` as `2026-11-24 08:09:45 UTC`.
pub fn moment(time: &str) -> String {
    match time.strip_suffix('Z') {
        Some(time) => format!("{} UTC", time.replacen('T', " ", 1)),
        None => time.to_owned(),
    }
}

/// Precedes the status wherever a number comes from the embedded simulator.
pub fn simulated(is_simulated: bool) -> &'static str {
    if is_simulated { "SIMULATED, " } else { "" }
}

/// The same for the start of a sentence.
pub fn mark(is_simulated: bool) -> &'static str {
    if is_simulated { "SIMULATED: " } else { "" }
}

pub fn answer(recommendation: &Recommendation) -> Vec<String> {
    let status = recommendation.status;
    let simulated = simulated(recommendation.simulated);
    let mut lines = match recommendation.chosen() {
        Some(level) => {
            let interval = recommendation.interval.map(|of| format!(", interval {}", ends(of)));
            choice(recommendation, level, &format!("status {status}{}", interval.unwrap_or_default()))
        }
        None => vec![format!("No recommendation ({simulated}{status})"), reason(recommendation)],
    };
    let simulator = "SIMULATED: measured on the embedded simulator, not on your own server";
    lines.extend(recommendation.simulated.then(|| simulator.to_owned()));
    lines.extend(notes(recommendation).1.into_iter().map(|note| format!("note: {note}")));
    lines
}

/// `20 to 25`, or `20`.
fn ends([low, high]: [usize; 2]) -> String {
    if low == high { low.to_string() } else { format!("{low} to {high}") }
}

fn choice(recommendation: &Recommendation, level: &JudgedLevel, status: &str) -> Vec<String> {
    let simulated = simulated(recommendation.simulated);
    let summary = &level.summary;
    let concurrency = summary.concurrency;
    let head = if recommendation.provisional {
        format!("First look: about {concurrency}, not confirmed  ({simulated}provisional, {status})")
    } else {
        format!("Optimal concurrency: {concurrency}  ({simulated}{status})")
    };
    let latency = summary.latency_s.unwrap_or_default();
    let figures = format!(
        "Throughput {} requests/s, mean {}, P95 {}, P99 {}, error rate {}, timeout rate {}",
        number(level.throughput(), 2),
        time(latency.mean),
        time(latency.p95),
        time(known_p99(summary)),
        or_unknown(summary.error_rate, rate),
        or_unknown(summary.timeout_rate, rate),
    );
    let mut lines = vec![head, reason(recommendation), figures];
    lines.extend(gain(recommendation, level).map(|gain| gain.to_string()));
    lines.extend(information(recommendation));
    lines.extend(curve(recommendation));
    lines
}

/// What to do with a config file that has the number `present`, and the effect of that, if both can be estimated.
pub fn headline(recommendation: &Recommendation, present: Option<usize>) -> String {
    let simulated = mark(recommendation.simulated);
    let headline = match (recommendation.recommended_concurrency, present) {
        (None, _) => format!("No number to recommend: {}.", meaning(recommendation)),
        (Some(pick), _) if recommendation.provisional => {
            format!("First look: about {pick} in parallel, not confirmed.")
        }
        (Some(1), None) => "Send 1 request at a time.".to_owned(),
        (Some(pick), None) => format!("Send {pick} requests in parallel."),
        (Some(pick), Some(now)) if now == pick => format!("Keep concurrency at {pick}."),
        (Some(pick), Some(now)) => {
            let verb = if now < pick { "Raise" } else { "Lower" };
            let effect = effect(recommendation, now, pick).map(|effect| format!(": {effect}"));
            format!("{verb} concurrency from {now} to {pick}{}.", effect.unwrap_or_default())
        }
    };
    format!("{simulated}{headline}")
}

/// Throughput and P95 at one level compared with another, marked `about` if that one was not measured.
fn effect(recommendation: &Recommendation, from: usize, to: usize) -> Option<String> {
    let rps =
        |level| between(recommendation, level, |of| of.throughput_rps.map(|t| t.estimate).filter(|&rps| rps > 0.0));
    let p95 = |level| between(recommendation, level, |of| of.latency_s?.p95);
    let about = |level| if recommendation.level(level).is_some() { "" } else { "about " };
    let change = (100.0 * (rps(to)? / rps(from)? - 1.0)).round();
    let more = if change < 0.0 { "less" } else { "more" };
    let throughput = match change {
        0.0 => "the same throughput".to_owned(),
        _ => format!("{}{:.0} % {more} throughput", about(from), change.abs()),
    };
    let p95 = p95(from).zip(p95(to));
    let p95 =
        p95.map(|(before, after)| format!(", P95 {} instead of {}{}", seconds(after), about(from), seconds(before)));
    Some(throughput + &p95.unwrap_or_default())
}

/// A figure at a level, interpolated between its neighbours if it was not measured.
fn between(recommendation: &Recommendation, level: usize, of: impl Fn(&LevelSummary) -> Option<f64>) -> Option<f64> {
    let mut known = recommendation.levels.iter().filter_map(|at| Some((at.summary.concurrency, of(&at.summary)?)));
    let (low, below) = known.clone().rfind(|&(at, _)| at <= level)?;
    let (high, above) = known.find(|&(at, _)| at >= level)?;
    let share = (level - low) as f64 / (high - low).max(1) as f64;
    Some(below + share * (above - below))
}

/// The status in plain words.
fn meaning(recommendation: &Recommendation) -> &'static str {
    match recommendation.status {
        Status::Ok => "the best number lies within the levels measured",
        Status::NotSaturated => "throughput still rises at the highest level, so the best number may be higher",
        Status::LimitedByGate => "a higher level failed on errors or latency",
        Status::AtOrBelowLowest => "the lowest level measured is enough, and a lower one may be enough too",
        Status::RateLimited => "a quota (HTTP 429) is the limit",
        Status::Unresolved => "the measurements are inconclusive",
        Status::NoQualifyingLevel => "every level fails",
    }
}

/// What the status means for the number, and the number's interval.
fn how_sure(recommendation: &Recommendation) -> String {
    let certainty = if recommendation.provisional { "so far" } else { "95 % certain" };
    let sure = match (recommendation.interval, recommendation.status) {
        (Some([low, high]), Status::Ok) if low == high => format!("The best number is {low} ({certainty})."),
        (Some([low, high]), Status::Ok) => format!("The best number is between {low} and {high} ({certainty})."),
        (of, _) => {
            let interval =
                of.map_or_else(|| "interval unknown".to_owned(), |of| format!("95 % interval: {}", ends(of)));
            format!("{} ({interval}).", capitalised(meaning(recommendation)))
        }
    };
    let may_do = recommendation.notes.iter().find(|of| matches!(of, Note::MayDo { .. }));
    sure + &may_do.map(|of| format!(" {}.", note(of))).unwrap_or_default()
}

/// How certain the number is, or why there is none.
pub fn because(recommendation: &Recommendation) -> String {
    match recommendation.chosen() {
        Some(_) => how_sure(recommendation),
        None => reason(recommendation) + ".",
    }
}
