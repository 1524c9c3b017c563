//! What all measurements have shown so far, as the race wants it. Pure.

use std::collections::BTreeMap;

use super::race::{Evidence, VisitEvidence};
use crate::decide::{Gate, JudgedLevel, Policy, Verdict};
use crate::figures::{LevelState, Measurement, Requests};

/// A measurement with its requests, and when those of its cohort were issued that are still in flight.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    pub measurement: &'a Measurement,
    pub requests: &'a Requests,
    pub in_flight_s: &'a [f64],
}

/// After so many requests, or waves, a gate on a time is no longer put down to chance.
const SURE: (u64, u64) = (400, 10);

/// Whether a level fails a gate on a time, or on what its answers hold, and more requests would not change that. The
/// default limit on P95 is a multiple of what few requests have shown; the race has the same limit on its curves.
pub fn is_late(level: &JudgedLevel, policy: &Policy) -> bool {
    let requests = level.summary.requests.unwrap_or_default();
    let sure = requests >= SURE.0.max(SURE.1 * level.summary.concurrency as u64);
    let known = policy.max_p95_seconds.is_some() && level.summary.p95_interval_s.is_some();
    let clear = !level.uncertain && (level.gate != Some(Gate::P95) || known);
    level.verdict == Verdict::Fail && level.gate != Some(Gate::Errors) && (sure || clear)
}

/// `sent` is the number of all requests.
pub fn evidence(seen: &[Seen], judged: &[JudgedLevel], sent: u64, policy: &Policy) -> Evidence {
    let limit = policy.max_error_rate;
    let usable = |of: &&Seen| of.measurement.state != LevelState::Cut && of.measurement.window_s.is_some();
    let usable: Vec<&Seen> = seen.iter().filter(usable).collect();
    let is_there = |of: &Seen| !of.requests.is_outage(limit);
    let mut served: BTreeMap<usize, bool> = BTreeMap::new();
    for of in &usable {
        *served.entry(of.measurement.concurrency).or_default() |= is_there(of);
    }
    // Of a level that the server was gone at, what was measured when it was there.
    let counted = usable.into_iter().filter(|of| is_there(of) || !served[&of.measurement.concurrency]);
    let mut successes = seen.iter().flat_map(|of| of.requests.cohort()).filter(|request| request.is_success());
    let reports_tokens = successes.all(|request| request.output_tokens.is_some());
    let mut evidence = Evidence { sent, ..Evidence::default() };
    for of in counted {
        add(&mut evidence, of, reports_tokens);
    }
    for level in judged {
        if let Some(of_level) = evidence.levels.get_mut(&level.summary.concurrency) {
            of_level.late = is_late(level, policy);
        }
    }
    evidence
}

fn add(evidence: &mut Evidence, of: &Seen, reports_tokens: bool) {
    let Measurement { concurrency: level, began_s, .. } = *of.measurement;
    let [from, to] = of.measurement.window_s.unwrap_or_default();
    let of_level = evidence.levels.entry(level).or_default();
    let (mut requests, mut succeeded, mut cycles, mut tokens) = (0.0, 0.0, 0.0, 0.0);
    let mut latencies = Vec::new();
    for request in of.requests.cohort().filter(|request| !request.end_s.is_nan()) {
        let latency = request.end_s - request.start_s;
        let own = f64::from(request.output_tokens.unwrap_or_default());
        of_level.requests += 1;
        of_level.failed += u64::from(!request.is_success());
        if request.is_success() {
            of_level.answers.0 += 1.0;
            of_level.answers.1 += own;
        }
        if reports_tokens && request.end_s > to {
            continue;
        }
        requests += 1.0;
        cycles += latency + request.held_s;
        if request.is_success() {
            succeeded += 1.0;
            latencies.push(latency);
            tokens += own;
            let sums = [1.0, latency, latency * latency, own, own * own, latency * own];
            of_level.sums.iter_mut().zip(sums).for_each(|(sum, value)| *sum += value);
        }
    }
    // Those that are still on their way will take as long as the others that took longer than they have by now.
    latencies.sort_unstable_by(f64::total_cmp);
    let in_flight: &[f64] = if reports_tokens { &[] } else { of.in_flight_s };
    for start_s in in_flight {
        let age = to - start_s;
        let longer = &latencies[latencies.partition_point(|latency| *latency <= age)..];
        let mean = longer.iter().sum::<f64>() / longer.len() as f64;
        cycles += if longer.is_empty() { 1.3 * age } else { mean };
        requests += 1.0;
        succeeded += 1.0;
    }
    if requests > 0.0 {
        evidence.visits.push(VisitEvidence {
            level,
            at_s: began_s + (from + to) / 2.0,
            succeeded: succeeded - 0.5 * in_flight.len() as f64,
            share: succeeded / requests,
            cycle_s: cycles / requests,
            tokens: (reports_tokens && !latencies.is_empty()).then(|| tokens / latencies.len() as f64),
        });
    }
}
