//! Notes that accompany the answer.

use std::fmt;

use serde::Serialize;

use super::decision::{early_end, found_no_server, gate};
use super::numbers::{capitalised, count, levels, percent, range, seconds, share, usd};
use crate::decide::causes::ClientLimit;
use crate::decide::{Cause, JudgedLevel, Note, Policy, Recommendation, passing};
use crate::figures::{Estimate, Goodput, LeftOut, LevelSummary, Outage};

/// All notes, those that cast doubt on the answer first; and the number of those.
pub fn notes(recommendation: &Recommendation) -> (usize, Vec<String>) {
    let casts_doubt = |note: &&Note| {
        matches!(note, Note::UnlistedModel | Note::OpenOutage { .. } | Note::LeftOut { .. } | Note::Quick)
    };
    let (doubts, others): (Vec<&Note>, Vec<&Note>) = recommendation.notes.iter().partition(casts_doubt);
    let others = others.iter().filter_map(|it| once(it, &others));
    (doubts.len(), doubts.iter().map(|it| note(it)).chain(others).chain(advice(recommendation)).collect())
}

/// A note that applies to several levels is printed once, at the first of them.
fn once(it: &Note, all: &[&Note]) -> Option<String> {
    let shared = |note: &Note| match note {
        Note::BelowConcurrency { level, .. } => {
            Some((*level, "did not reach their concurrency: fewer requests were in flight"))
        }
        Note::ClientBound { level, .. } => Some((
            *level,
            "were limited by this client, so the figures may be too low: use a release build, or a quieter or faster machine",
        )),
        Note::SetAside { level, .. } => {
            Some((*level, "were measured again, since they could not reach the server (outage)"))
        }
        Note::Small { level, requests: Some(_), .. } => Some((*level, "have fewer requests than a full result needs")),
        _ => None,
    };
    let Some((level, what)) = shared(it) else { return Some(note(it)) };
    let of = all.iter().filter_map(|note| shared(note)).filter(|other| other.1 == what).map(|other| other.0);
    match of.collect::<Vec<_>>().as_slice() {
        [_] => Some(note(it)),
        all => (all[0] == level).then(|| format!("{} {what}", capitalised(&levels(all)))),
    }
}

/// Printed before an interrupted run is resumed.
pub fn going_on(run_id: &str, in_full: &[usize], sent: u64) -> String {
    let in_full = if in_full.is_empty() { String::new() } else { format!(", {} complete", levels(in_full)) };
    format!("Resuming run {run_id}: {} on record{in_full}", count(sent, "request"))
}

pub fn note(note: &Note) -> String {
    match note {
        Note::BelowConcurrency { level, in_flight, held } => {
            let held = held.map(|held| format!(", {held:.1} held back after failures")).unwrap_or_default();
            format!("Level {level} did not reach its concurrency: {in_flight:.1} requests in flight on average{held}")
        }
        Note::ClientBound { level, limit } => format!(
            "At level {level} this client was the limit ({}), so the figures may be too low: use a release build, or a \
             quieter or faster machine",
            client_limit(limit)
        ),
        Note::EndedAtOnce { level, answers } => {
            format!("Level {level}: {} ended with the first token, without content", count(*answers, "answer"))
        }
        Note::SetAside { level, outage } => format!(
            "Level {level} was measured again: {} (outage); the disturbed measurement is not used",
            found_no_server(outage)
        ),
        Note::PriceOfP95 { level, reached, best, objective } => format!(
            "The P95 gate costs {} of throughput (level {level} reached {reached:.2} {}); set policy.max_p95_seconds to \
             choose the limit yourself",
            percent(1.0 - best / reached),
            objective.unit()
        ),
        Note::MayDo { level, requests } => {
            let seen = requests.map_or_else(|| "its requests".to_owned(), |requests| count(requests, "request"));
            format!("Level {level} may do as well, but {seen} are too few to tell")
        }
        Note::ServerLimitUnchecked { level } => {
            format!("What the server itself can do at level {level} is unknown")
        }
        Note::Small { level, requests: Some(requests), full } => {
            format!(
                "Level {level} was measured with {}; a full result needs at least {full}",
                count(*requests, "request")
            )
        }
        Note::Small { level, requests: None, .. } => {
            format!("Level {level}: the number of requests is unknown, and may be too small")
        }
        Note::Unchecked { level, gate: of, least: Some(least) } => {
            format!(
                "Level {level}: {} needs at least {}, so its gate was not checked",
                gate(*of),
                count(*least, "request")
            )
        }
        Note::Unchecked { level, gate: of, least: None } => {
            format!("Level {level}: {} is unknown, so its gate was not checked", gate(*of))
        }
        Note::NoSpread { levels: without } => format!("No interval: the spread of {} is unknown", levels(without)),
        Note::OpenOutage { level, outage: outage @ Outage { measurements, of, .. } } => {
            let times = match of {
                0 | 1 => "and the level was not measured again".to_owned(),
                _ => format!("in {measurements} of {of} measurements"),
            };
            format!("Level {level}: {} (outage), {times}", found_no_server(outage))
        }
        Note::ColdStart { seconds: cold } => {
            format!(
                "The server was slower for the first {} (cold start); what was measured then is left out",
                seconds(*cold)
            )
        }
        Note::LeftOutCold { level, left_out: LeftOut { requests, from_rps, to_rps } } => format!(
            "Level {level}: the first {} were left out, since the server was still warming up, from {from_rps:.2} to {to_rps:.2} requests/s",
            count(*requests, "request"),
        ),
        Note::NoCurve { why } => format!("No scalability curve (USL): {why}"),
        Note::Quick => "A quick run: fewer levels and requests than a full one".to_owned(),
        Note::UnlistedModel => {
            "The server lists other models but not llm.model, so another one may have answered: see \
                                `llm-concurrency check`"
                .to_owned()
        }
        Note::Stopped { level, why } => format!("Stopped at level {level}: {}", early_end(why)),
        Note::NoRoom { levels: left_out, again, key } => {
            let (were, them) = if left_out.len() == 1 { ("was", "it") } else { ("were", "them") };
            let again = if *again { " again" } else { "" };
            let left_out = capitalised(&levels(left_out));
            format!("{left_out} {were} not measured{again}: benchmark.budget.{key} has no room for {them}")
        }
        Note::LeftOut { levels: left_out } => format!(
            "Left out (not fully measured, or overwritten since): {}; a better level may be among them",
            levels(left_out)
        ),
        Note::SeveralRuns { runs } => {
            format!("The levels come from {} runs with the same fingerprint: {}", runs.len(), runs.join(", "))
        }
        Note::Unreadable { error } => format!("Left out: {error}"),
        Note::CriterionDiffers { level, criterion, records } => format!(
            "Level {level}: Criterion's mean gives {criterion:.2} requests/s, {} off the {records:.2} used here, since the \
             windows differ in speed",
            percent((criterion / records - 1.0).abs())
        ),
        Note::NoRecordOf { level, error } => format!("Level {level}: {error}; only Criterion's throughput is known"),
        Note::NoRecords { folder } => format!(
            "There are no request records in {}: only Criterion's throughput is known, not what was measured",
            folder.display()
        ),
        Note::Source { .. } => format!("Measured: {}", source(note)),
        Note::Other { text } => text.clone(),
    }
}

/// What a [`Note::Source`] says was measured; empty for any other note.
pub(super) fn source(note: &Note) -> String {
    let Note::Source { endpoint, model, started_at } = note else { return String::new() };
    [endpoint, model, started_at].into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn client_limit(limit: &ClientLimit) -> String {
    match limit {
        ClientLimit::Cpu { cores, most } => format!("its load thread used {cores:.2} of a core, more than {most}"),
        ClientLimit::Timers { late_s, most_s } => {
            format!("its timers were {:.1} ms late at P95, more than {:.1} ms", 1e3 * late_s, 1e3 * most_s)
        }
    }
}

/// What the optimum gains over the lowest passing level. Rates are in requests per second.
#[derive(Serialize)]
pub struct Gain {
    pub from: usize,
    pub slow: f64,
    pub level: usize,
    pub fast: f64,
}

impl fmt::Display for Gain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gain { from, slow, level, fast } = self;
        let from = if *from == 1 { "Sequential (1)".to_owned() } else { format!("Level {from}") };
        let [short, long] = [fast, slow].map(|rps| seconds(1000.0 / rps));
        let factor = fast / slow;
        write!(
            f,
            "{from}: {slow:.2} requests/s, optimal ({level}): {fast:.2}, {factor:.1} x as fast; 1000 requests take {short} \
             instead of {long}"
        )
    }
}

pub fn gain(recommendation: &Recommendation, level: &JudgedLevel) -> Option<Gain> {
    let lowest = passing(&recommendation.levels).next()?;
    let [from, to] = [lowest, level].map(|level| level.summary.concurrency);
    let rps = |level: &JudgedLevel| level.throughput().filter(|&rps| rps > 0.0);
    (from != to).then_some(Gain { from, slow: rps(lowest)?, level: to, fast: rps(level)? })
}

pub fn information(recommendation: &Recommendation) -> Vec<String> {
    let Some(pick) = recommendation.recommended_concurrency else { return Vec::new() };
    let alternative = recommendation.low_latency_alternative.filter(|&level| level < pick);
    let alternative = alternative.map(|level| {
        format!("For low latency rather than throughput: {level} (the most throughput per second of latency)")
    });
    let goodput = recommendation.chosen().and_then(|level| level.summary.goodput.as_ref()).map(goodput);
    goodput.into_iter().chain(cost(recommendation)).chain(alternative).collect()
}

pub fn curve(recommendation: &Recommendation) -> Option<String> {
    let usl = recommendation.usl?;
    let peak = usl.peak.map_or_else(|| "no peak".to_owned(), |peak| format!("peak at {peak:.0}"));
    Some(format!("Fitted scalability curve (USL; a model, not a measurement): {peak}, R² {:.3}", usl.r_squared))
}

fn goodput(Goodput { rps, attainment, .. }: &Goodput) -> String {
    let with_interval = |of: &Estimate, write: fn(f64) -> String| {
        let interval = of.interval().map(|interval| format!(" ({})", range(interval, write)));
        write(of.estimate) + &interval.unwrap_or_default()
    };
    let (rps, attainment) = (with_interval(rps, |rps| format!("{rps:.2}")), with_interval(attainment, share));
    format!("Goodput {rps} requests/s: {attainment} of the requests meet policy.slo")
}

/// The cost of requests at the pick, and the level where they are cheapest by the hour, if that
/// differs. Paid by the token, all levels cost the same, apart from random answer lengths.
fn cost(recommendation: &Recommendation) -> Option<String> {
    let pick = recommendation.chosen()?.summary.usd_per_1000?;
    let levels = passing(&recommendation.levels).map(|level| &level.summary);
    let costs = levels.filter_map(|level| Some((level.concurrency, level.usd_per_1000?)));
    let by_hour = costs.filter_map(|(level, cost)| Some((level, cost.server?, usd(cost.total()))));
    let of_pick = usd(pick.total());
    let least = by_hour.min_by(|a, b| a.1.total_cmp(&b.1)).filter(|(.., least)| *least != of_pick);
    let least = least.map(|(level, _, least)| format!("; the cheapest level that passes is {level} ({least} USD)"));
    Some(format!("1000 requests cost {of_pick} USD{}", least.unwrap_or_default()))
}

/// The two problems described in the README, in the same words.
pub fn advice(recommendation: &Recommendation) -> Vec<String> {
    // The run's own limit, as recorded by a gate that failed; an error rate below it is not a problem.
    let mut causes = recommendation.levels.iter().flat_map(|level| &level.causes);
    let limit = causes.find_map(|cause| match cause {
        Cause::ErrorRate { limit, .. } => Some(*limit),
        _ => None,
    });
    let trouble = limit.unwrap_or(Policy::default().max_error_rate);
    let levels_with = |rate: fn(&LevelSummary) -> Option<f64>| {
        let summaries = recommendation.levels.iter().map(|level| &level.summary);
        let with: Vec<usize> =
            summaries.filter(|summary| rate(summary).is_some_and(|r| r >= trouble)).map(|s| s.concurrency).collect();
        (!with.is_empty()).then(|| levels(&with))
    };
    let timeouts = levels_with(|summary| summary.timeout_rate).map(|at| {
        format!(
            "Too many timeouts at {at}: raise llm.request_timeout if answers that late are still useful, or stay below"
        )
    });
    let errors = levels_with(|summary| Some(summary.error_rate? - summary.timeout_rate.unwrap_or(0.0)));
    let errors = errors.map(|at| {
        format!("High error rates at {at}: the table shows the kinds of failure, the request records the reasons")
    });
    timeouts.into_iter().chain(errors).collect()
}
