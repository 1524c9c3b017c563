//! The gates: each level by itself, but for the two limits that other levels set.

use super::causes::{Cause, P95Limit};
use super::{Gate, JudgedLevel, Objective, Policy, Verdict, measurements, median, passing, size};
use crate::client::outcome::Failure;
use crate::figures::{LevelState, LevelSummary, Outage, Reach, wilson};

/// Requests, fixed and per level: below these a level is not used.
const USABLE: (u64, u64) = (30, 3);
/// Without a limit of the user's own, P95 may be this many times that of the lowest level.
pub(crate) const DEFAULT_P95_FACTOR: f64 = 5.0;
/// P99 of fewer requests than this is little more than the largest value.
pub(super) const SMALLEST_N_FOR_P99: u64 = 400;
/// A level whose answers are shorter than this share of the median over the levels is not picked.
const SHRUNK_OUTPUT: f64 = 0.8;

/// Judges every level.
pub(super) fn judge_all(levels: Vec<LevelSummary>, policy: &Policy) -> Vec<JudgedLevel> {
    let mut judged: Vec<_> = levels.into_iter().map(|level| judge_errors(level, policy)).collect();
    let median_tokens = median(passing(&judged).filter_map(|level| level.summary.mean_output_tokens).collect());
    fail_where(&mut judged, |summary| Some(Failing::clearly(Gate::Output, shrunk_output(summary, median_tokens)?)));
    // Only now: next to no output comes fast, and would make a reference that nothing else meets.
    let limit = p95_limit(policy, passing(&judged));
    fail_where(&mut judged, |summary| failed_latency(summary, policy, limit));
    for level in judged.iter_mut().filter(|level| level.verdict == Verdict::Pass) {
        if let Some(cause) = limit.and_then(|limit| uncertain_latency(&level.summary, limit)) {
            level.uncertain = true;
            level.causes.push(cause);
        }
    }
    judged
}

/// A gate that was not passed.
struct Failing {
    gate: Gate,
    cause: Cause,
    uncertain: bool,
}

impl Failing {
    fn clearly(gate: Gate, cause: Cause) -> Self {
        Failing { gate, cause, uncertain: false }
    }
}

fn fail_where(judged: &mut [JudgedLevel], failure: impl Fn(&LevelSummary) -> Option<Failing>) {
    for level in judged.iter_mut().filter(|level| level.verdict == Verdict::Pass) {
        if let Some(failing) = failure(&level.summary) {
            level.verdict = Verdict::Fail;
            level.gate = Some(failing.gate);
            level.causes = vec![failing.cause];
            level.uncertain = failing.uncertain;
        }
    }
}

/// Validity and the error gate.
fn judge_errors(mut summary: LevelSummary, policy: &Policy) -> JudgedLevel {
    // A results file may carry an earlier verdict; it must not stand beside (and over) this one.
    for ours in ["verdict", "gate", "causes", "why", "error_rate_interval", "uncertain"] {
        summary.unknown.remove(ours);
    }
    summary.outage = summary.outage.or_else(|| outage_by_failures(&summary, policy));
    let failed = failed_requests(&summary);
    let interval = failed.zip(summary.requests).and_then(|(failed, n)| wilson(failed, n));
    let spans = |[low, high]: [f64; 2]| low < policy.max_error_rate && high >= policy.max_error_rate;
    // Without any failure the interval only says how small n is, which is said elsewhere.
    let mut uncertain = failed != Some(0) && interval.is_some_and(spans);
    let spanning = interval.filter(|_| uncertain);
    let (verdict, cause) = if let Some(cause) = too_small(&summary) {
        (Verdict::NotUsed, Some(cause))
    } else if let Some(cause) = failed_errors(&summary, spanning, policy) {
        (Verdict::Fail, Some(cause))
    } else if value(&summary, policy.objective).is_none() {
        // What is to be maximised must be known.
        (Verdict::NotUsed, Some(Cause::NoValue { objective: policy.objective }))
    } else {
        (Verdict::Pass, spanning.map(|interval| Cause::ErrorRateUncertain { interval }))
    };
    uncertain &= verdict != Verdict::NotUsed;
    let gate = (verdict == Verdict::Fail).then_some(Gate::Errors);
    let causes = cause.into_iter().collect();
    JudgedLevel { verdict, gate, causes, error_rate_interval: interval, uncertain, summary }
}

/// Of a results file that counts failures by kind only.
fn outage_by_failures(summary: &LevelSummary, policy: &Policy) -> Option<Outage> {
    let lost = *summary.failures.get(Failure::Connect.name())?;
    let requests = summary.requests?;
    let measurements = measurements(summary).len().max(1) as u64;
    let outage = Outage { lost, requests, measurements, of: measurements, since: 0 };
    Reach { requests, lost, unavailable: 0 }.is_outage(policy.max_error_rate).then_some(outage)
}

fn failed_requests(summary: &LevelSummary) -> Option<u64> {
    Some(summary.requests?.saturating_sub(summary.succeeded?))
}

/// As stated, else from the counts.
pub(super) fn error_rate(summary: &LevelSummary) -> Option<f64> {
    let counted = || Some(failed_requests(summary)? as f64 / summary.requests.filter(|&n| n > 0)? as f64);
    summary.error_rate.or_else(counted)
}

fn too_small(summary: &LevelSummary) -> Option<Cause> {
    match summary.state {
        Some(LevelState::Cut) => return Some(Cause::Interrupted),
        // Too few requests for a figure, but enough to see that it fails.
        Some(LevelState::Hopeless) => return None,
        _ => {}
    }
    if summary.concurrency == 0 {
        return Some(Cause::LevelZero);
    }
    let least = size(summary.concurrency, USABLE);
    let requests = summary.requests.filter(|&n| n < least)?;
    Some(Cause::TooFewRequests { requests, least })
}

fn failed_errors(summary: &LevelSummary, uncertain: Option<[f64; 2]>, policy: &Policy) -> Option<Cause> {
    let limit = policy.max_error_rate;
    if let Some(rate) = error_rate(summary).filter(|&rate| rate >= limit) {
        let outage = summary.outage.filter(|outage| !outage.is_set_aside());
        return Some(Cause::ErrorRate { rate, limit, uncertain, outage });
    }
    (summary.state == Some(LevelState::Hopeless)).then(|| Cause::GivenUp { why: summary.reason.clone() })
}

/// What the decision maximises, where it is known and above 0.
pub(crate) fn value(summary: &LevelSummary, objective: Objective) -> Option<f64> {
    let value = match objective {
        Objective::Requests => summary.throughput_rps.map(|t| t.estimate),
        Objective::OutputTokens => summary.output_tps,
    };
    value.filter(|&value| value > 0.0)
}

/// P95 and P99 as the gates see them.
pub(super) fn gate_latency(summary: &LevelSummary) -> (Option<f64>, Option<f64>) {
    let latency = summary.gate_latency_s.or(summary.latency_s).unwrap_or_default();
    (latency.p95, latency.p99)
}

/// The limit on P95: the user's own, or five times the P95 of the lowest level, which is no better known than that.
pub(super) fn p95_limit<'a>(policy: &Policy, mut passing: impl Iterator<Item = &'a JudgedLevel>) -> Option<P95Limit> {
    if let Some(seconds) = policy.max_p95_seconds {
        return Some(P95Limit { seconds, interval: [seconds; 2], from: None });
    }
    let (lowest, p95) = passing.find_map(|level| Some((&level.summary, gate_latency(&level.summary).0?)))?;
    let times = |p95: f64| DEFAULT_P95_FACTOR * p95;
    let interval = lowest.p95_interval_s.unwrap_or([p95; 2]).map(times);
    Some(P95Limit { seconds: times(p95), interval, from: Some((lowest.concurrency, p95)) })
}

impl P95Limit {
    /// The interval of the P95 if it may lie on the other side of the limit, both being known only so well: their
    /// intervals add up as those of independent figures do, on the logarithms, since it is their ratio that counts.
    fn uncertain(&self, summary: &LevelSummary, p95: f64) -> Option<[f64; 2]> {
        let [low, high] = summary.p95_interval_s?;
        let [limit_low, limit_high] = self.interval;
        let [own, of_limit] = if p95 > self.seconds {
            [p95 / low, limit_high / self.seconds]
        } else {
            [high / p95, self.seconds / limit_low]
        };
        let apart = (p95 / self.seconds).ln().abs();
        (apart <= own.ln().hypot(of_limit.ln())).then_some([low, high])
    }
}

fn failed_latency(summary: &LevelSummary, policy: &Policy, p95_limit: Option<P95Limit>) -> Option<Failing> {
    let (p95, p99) = gate_latency(summary);
    if let Some((p95, limit)) = p95.zip(p95_limit).filter(|(p95, limit)| *p95 > limit.seconds) {
        let uncertain = limit.uncertain(summary, p95);
        let cause = Cause::P95 { p95, limit, uncertain };
        return Some(Failing { gate: Gate::P95, cause, uncertain: uncertain.is_some() });
    }
    let enough = summary.requests.is_some_and(|n| n >= SMALLEST_N_FOR_P99);
    let (p99, limit) = p99.zip(policy.max_p99_seconds).filter(|(p99, limit)| enough && p99 > limit)?;
    Some(Failing::clearly(Gate::P99, Cause::P99 { p99, limit }))
}

/// A P95 that passes, but may be above the limit.
fn uncertain_latency(summary: &LevelSummary, limit: P95Limit) -> Option<Cause> {
    let interval = limit.uncertain(summary, gate_latency(summary).0?)?;
    Some(Cause::P95Uncertain { interval, limit })
}

fn shrunk_output(summary: &LevelSummary, median: Option<f64>) -> Option<Cause> {
    // All levels may have shrunk alike: the speed of answers that are none says nothing.
    if let Some((answers, of)) = summary.ended_at_once.zip(summary.succeeded)
        && answers.saturating_mul(2) > of
    {
        return Some(Cause::EndedAtOnce { answers, of });
    }
    let (tokens, median) = (summary.mean_output_tokens?, median?);
    (tokens < SHRUNK_OUTPUT * median).then_some(Cause::OutputShrank { tokens, median })
}
