//! The answer: in one line for a reader who has five seconds, and whole.

use super::decision::reason;
use super::notes::{gain, information, note, notes};
use super::numbers::{number, or_unknown, rate, seconds, time};
use crate::decide::{JudgedLevel, Note, Recommendation, Status, known_p99};
use crate::figures::LevelSummary;

/// Before the status wherever a number of the embedded simulator stands.
pub fn simulated(is_simulated: bool) -> &'static str {
    if is_simulated { "SIMULATED, " } else { "" }
}

pub fn answer(recommendation: &Recommendation) -> Vec<String> {
    let status = recommendation.status.name();
    let simulated = simulated(recommendation.simulated);
    let mut lines = match recommendation.chosen() {
        Some(level) => {
            let interval = interval(", interval", recommendation).unwrap_or_default();
            choice(recommendation, level, &format!("status {status}{interval}"))
        }
        None => vec![format!("No recommendation ({simulated}{status})"), reason(recommendation)],
    };
    let simulator = "SIMULATED: this is the embedded simulator, not a server of yours";
    lines.extend(recommendation.simulated.then(|| simulator.to_owned()));
    lines.extend(notes(recommendation).1.into_iter().map(|note| format!("note: {note}")));
    lines
}

/// Behind these words, if it is known.
fn interval(words: &str, recommendation: &Recommendation) -> Option<String> {
    let [low, high] = recommendation.interval?;
    let to = if low == high { String::new() } else { format!(" to {high}") };
    Some(format!("{words} {low}{to}"))
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
    lines
}

/// What to do, for a config that holds the number `present`, and what that changes where both levels were measured.
pub fn headline(recommendation: &Recommendation, present: Option<usize>) -> String {
    let simulated = if recommendation.simulated { "SIMULATED: " } else { "" };
    let headline = match (recommendation.recommended_concurrency, present) {
        (None, _) => "There is no number to recommend.".to_owned(),
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

/// Throughput and P95 at one level against those at another; about, where one was not measured.
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

/// A figure at a level, or on the line between the levels on either side of it.
fn between(recommendation: &Recommendation, level: usize, of: impl Fn(&LevelSummary) -> Option<f64>) -> Option<f64> {
    let mut known = recommendation.levels.iter().filter_map(|at| Some((at.summary.concurrency, of(&at.summary)?)));
    let (low, below) = known.clone().rfind(|&(at, _)| at <= level)?;
    let (high, above) = known.find(|&(at, _)| at >= level)?;
    let share = (level - low) as f64 / (high - low).max(1) as f64;
    Some(below + share * (above - below))
}

/// The status in plain words, and the interval.
pub fn how_sure(recommendation: &Recommendation) -> String {
    let meaning = match recommendation.status {
        Status::Ok => "The optimum lies inside the levels measured",
        Status::NotSaturated => "Throughput still rises at the highest level: the optimum is at least this",
        Status::LimitedByGate => "A higher level failed on errors or latency",
        Status::AtOrBelowLowest => "The lowest level measured is enough; the optimum may be lower",
        Status::RateLimited => "A quota (HTTP 429) is the limit, not concurrency",
        Status::Unresolved => "The measurements do not decide",
        Status::NoQualifyingLevel => "Every level fails",
    };
    let unknown = recommendation.recommended_concurrency.map(|_| "interval unknown".to_owned());
    let interval = interval("95 % interval:", recommendation).or(unknown).map(|interval| format!(" ({interval})"));
    let may_do = recommendation.notes.iter().find(|of| matches!(of, Note::MayDo { .. }));
    let may_do = may_do.map(|of| format!(" {}.", note(of))).unwrap_or_default();
    format!("{meaning}{}.{may_do}", interval.unwrap_or_default())
}

/// How sure the number is, or why there is none.
pub fn because(recommendation: &Recommendation) -> String {
    match recommendation.chosen() {
        Some(_) => how_sure(recommendation),
        None => reason(recommendation) + ".",
    }
}
