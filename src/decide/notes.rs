//! What is worth knowing beside the answer, and which checks could not be made.

use super::causes::Note;
use super::gates::{SMALLEST_N_FOR_P99, error_rate, gate_latency, p95_limit, value};
use super::outages::open_outages;
use super::pick::{best_passing, block_rates, client_bound};
use super::{FULL, Gate, JudgedLevel, Policy, Verdict, passing, size};
use crate::figures::{LevelSummary, Outage};

/// Below this share of its level it never ran at its concurrency.
const REACHED: f64 = 0.9;

pub(super) fn level_notes(levels: &[JudgedLevel], policy: &Policy) -> Vec<Note> {
    let mut notes = Vec::new();
    for level in levels {
        let summary = &level.summary;
        let level = summary.concurrency;
        let below = summary.mean_in_flight.filter(|&m| m < REACHED * level as f64);
        notes.extend(below.map(|in_flight| Note::BelowConcurrency { level, in_flight, held: summary.mean_held }));
        notes.extend(client_bound(summary).map(|limit| Note::ClientBound { level, limit }));
        notes.extend(summary.ended_at_once.map(|answers| Note::EndedAtOnce { level, answers }));
        notes.extend(summary.notes.iter().map(|text| Note::OfLevel { level, text: text.clone() }));
    }
    let explained = |level: &&JudgedLevel| !open_outages(levels).any(|open| open == *level);
    notes.extend(levels.iter().filter(explained).filter_map(set_aside));
    notes.extend(price_of_default_p95(levels, policy));
    notes
}

/// What the P95 gate nobody asked for costs in throughput.
fn price_of_default_p95(levels: &[JudgedLevel], policy: &Policy) -> Option<Note> {
    if policy.max_p95_seconds.is_some() {
        return None;
    }
    let (_, best) = best_passing(levels, policy)?;
    let (level, reached) = levels
        .iter()
        .filter(|level| level.gate == Some(Gate::P95))
        .filter_map(|level| Some((level.summary.concurrency, value(&level.summary, policy.objective)?)))
        .max_by(|a, b| a.1.total_cmp(&b.1))?;
    (reached > best).then_some(Note::PriceOfP95 { level, reached, best, objective: policy.objective })
}

/// The P95 limit that holds, seconds: the user's own, else so many times the P95 of the lowest level that passes all
/// but the latency gates.
pub fn p95_limit_s(levels: &[JudgedLevel], policy: &Policy) -> Option<f64> {
    let late = |level: &JudgedLevel| matches!(level.gate, Some(Gate::P95 | Gate::P99));
    let reached_the_gate = levels.iter().filter(|level| level.verdict == Verdict::Pass || late(level));
    p95_limit(policy, reached_the_gate).map(|limit| limit.seconds)
}

fn set_aside(level: &JudgedLevel) -> Option<Note> {
    let outage = level.summary.outage.filter(Outage::is_set_aside)?;
    Some(Note::SetAside { level: level.summary.concurrency, outage })
}

/// Which checks could not be made on the pick, or on the best level it is measured by, and which outages are not
/// explained. Any of them makes the result provisional.
pub(super) fn missing_checks(levels: &[JudgedLevel], pick: Option<&JudgedLevel>, policy: &Policy) -> Vec<Note> {
    let mut missing: Vec<Note> = Vec::new();
    if let Some(pick) = pick {
        let best = best_passing(levels, policy).map(|(best, _)| best).filter(|best| *best != pick);
        let decisive = std::iter::once(pick).chain(best);
        missing.extend(decisive.flat_map(|level| missing_checks_of(&level.summary, policy)));
        let without = passing(levels).filter(|level| block_rates(&level.summary).len() < 2);
        let without: Vec<usize> = without.map(|level| level.summary.concurrency).collect();
        if !without.is_empty() {
            missing.push(Note::NoSpread { levels: without });
        }
    }
    let open = open_outages(levels).map(|level| Note::OpenOutage {
        level: level.summary.concurrency,
        outage: level.summary.outage.unwrap_or_default(),
    });
    missing.extend(open);
    missing
}

fn missing_checks_of(summary: &LevelSummary, policy: &Policy) -> Vec<Note> {
    let level = summary.concurrency;
    let full = size(level, FULL);
    let (p95, p99) = gate_latency(summary);
    let small_for_p99 = p99.is_none() || summary.requests.is_none_or(|n| n < SMALLEST_N_FOR_P99);
    let checks = [
        client_bound(summary).map(|_| Note::ServerLimitUnchecked { level }),
        summary.requests.is_none_or(|n| n < full).then_some(Note::Small { level, requests: summary.requests, full }),
        error_rate(summary).is_none().then_some(Note::NoErrorRate { level }),
        p95.is_none().then_some(Note::NoP95 { level }),
        (policy.max_p99_seconds.is_some() && small_for_p99).then_some(Note::NoP99 { level, least: SMALLEST_N_FOR_P99 }),
    ];
    checks.into_iter().flatten().collect()
}
