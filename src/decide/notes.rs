//! The notes on a result, and the checks that could not be made.

use super::causes::Note;
use super::gates::{p95_limit, unchecked, value};
use super::outages::open_outages;
use super::pick::{best_passing, block_rates, client_bound};
use super::{FULL, Gate, JudgedLevel, Policy, TimeGate, Verdict, passing, size};
use crate::figures::{LevelSummary, Outage};

/// A level with a smaller share of its requests in flight on average never ran at its concurrency.
const REACHED: f64 = 0.9;

pub(super) fn level_notes(levels: &[JudgedLevel], policy: &Policy) -> Vec<Note> {
    let mut notes = Vec::new();
    for summary in levels.iter().map(|level| &level.summary) {
        let level = summary.concurrency;
        let below = summary.mean_in_flight.filter(|&m| m < REACHED * level as f64);
        notes.extend(below.map(|in_flight| Note::BelowConcurrency { level, in_flight, held: summary.mean_held }));
        notes.extend(client_bound(summary).map(|limit| Note::ClientBound { level, limit }));
        notes.extend(summary.left_out.map(|left_out| Note::LeftOutCold { level, left_out }));
        notes.extend(summary.ended_at_once.map(|answers| Note::EndedAtOnce { level, answers }));
    }
    let explained = levels.iter().filter(|level| !open_outages(levels).any(|open| open == *level));
    notes.extend(explained.filter_map(|level| {
        let outage = level.summary.outage.filter(Outage::is_set_aside)?;
        Some(Note::SetAside { level: level.summary.concurrency, outage })
    }));
    notes.extend(price_of_default_p95(levels, policy));
    notes
}

/// The smallest level below the pick that the race considers possible and whose own figures are within the tolerance.
pub(super) fn may_do(
    levels: &[JudgedLevel],
    pick: &JudgedLevel,
    interval: Option<[usize; 2]>,
    policy: &Policy,
) -> Option<Note> {
    let ([low, _], (_, best)) = interval.zip(best_passing(levels, policy.objective))?;
    let below = passing(levels).map(|level| &level.summary).filter(|of| of.concurrency < pick.summary.concurrency);
    let is_good = |of: &&LevelSummary| value(of, policy.objective) >= Some((1.0 - policy.tolerance) * best);
    let found = below.filter(|of| of.concurrency >= low).find(is_good)?;
    Some(Note::MayDo { level: found.concurrency, requests: found.requests })
}

/// The throughput that the default P95 gate costs, if any.
fn price_of_default_p95(levels: &[JudgedLevel], policy: &Policy) -> Option<Note> {
    let objective = policy.objective;
    let (_, best) = best_passing(levels, policy.objective).filter(|_| policy.max_p95_seconds.is_none())?;
    let late = levels.iter().filter(|level| level.gate == Some(Gate::Time(TimeGate::P95))).map(|level| &level.summary);
    let (level, reached) = late
        .filter_map(|summary| Some((summary.concurrency, value(summary, objective)?)))
        .max_by(|a, b| a.1.total_cmp(&b.1))?;
    (reached > best).then_some(Note::PriceOfP95 { level, reached, best, objective })
}

/// The P95 limit in force, seconds: the user's own, or else a multiple of the P95 of the lowest
/// level that passes the gates on errors and output (of those with enough requests, if there are any).
pub fn p95_limit_s(levels: &[JudgedLevel], policy: &Policy) -> Option<f64> {
    let timed = |level: &&JudgedLevel| match level.gate {
        Some(gate) => !matches!(gate, Gate::Errors | Gate::Output),
        None => level.verdict == Verdict::Pass,
    };
    p95_limit(policy, levels.iter().filter(timed), false).map(|limit| limit.seconds)
}

/// The checks that could not be made on the pick, or on the best level that it is compared with;
/// and the outages that are not explained. Any of them makes the result provisional.
pub(super) fn missing_checks(
    levels: &[JudgedLevel],
    pick: Option<&JudgedLevel>,
    policy: &Policy,
    raced: bool,
) -> Vec<Note> {
    let mut missing: Vec<Note> = Vec::new();
    if let Some(pick) = pick {
        // A race decides how many requests it needs, and at which levels.
        let best = best_passing(levels, policy.objective).map(|(best, _)| best).filter(|best| *best != pick && !raced);
        let decisive = std::iter::once(pick).chain(best);
        let of_pick = decisive.flat_map(|level| missing_checks_of(&level.summary, policy));
        missing.extend(of_pick.filter(|note| !raced || !matches!(note, Note::Small { .. })));
        let without = passing(levels).filter(|level| block_rates(&level.summary, policy.objective).len() < 2 && !raced);
        let levels: Vec<usize> = without.map(|level| level.summary.concurrency).collect();
        missing.extend((!levels.is_empty()).then_some(Note::NoSpread { levels }));
    }
    missing.extend(open_outages(levels).map(|level| Note::OpenOutage {
        level: level.summary.concurrency,
        outage: level.summary.outage.unwrap_or_default(),
    }));
    missing
}

fn missing_checks_of(summary: &LevelSummary, policy: &Policy) -> Vec<Note> {
    let (level, requests) = (summary.concurrency, summary.requests);
    let full = size(level, FULL);
    let client = client_bound(summary).map(|_| Note::ServerLimitUnchecked { level });
    let small = requests.is_none_or(|n| n < full).then_some(Note::Small { level, requests, full });
    let gates = unchecked(summary, policy).into_iter().map(|(gate, least)| Note::Unchecked { level, gate, least });
    client.into_iter().chain(small).chain(gates).collect()
}
