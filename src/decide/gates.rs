//! The gates. Each level is judged by itself, except for two limits that are derived from other levels.

use super::causes::{Cause, Limit};
use super::{Gate, JudgedLevel, OF_VERDICT, Objective, Policy, TimeGate, Verdict, measurements, median, passing, size};
use crate::client::outcome::Failure;
use crate::figures::{LevelState, LevelSummary, Outage, Reach, wilson};

/// Minimum number of requests for a level to be used: the larger of a fixed number and a multiple of the level.
const USABLE: (u64, u64) = (30, 3);
/// The same after a race.
const USABLE_IN_RACE: (u64, u64) = (5, 0);
/// The default limit on P95, as a multiple of the P95 of the lowest level.
pub(crate) const DEFAULT_P95_FACTOR: f64 = 5.0;
/// With fewer requests than this, P99 is little more than the maximum.
pub(crate) const FEWEST_FOR_P99: u64 = 400;
/// With fewer requests than this in a race, the mean length of the answers is mostly chance.
const FEWEST_ANSWERS: u64 = 60;
/// A level fails if its mean answer length is below this share of the median over the levels.
const SHRUNK_OUTPUT: f64 = 0.8;

pub(super) fn judge_all(levels: Vec<LevelSummary>, policy: &Policy, raced: bool) -> Vec<JudgedLevel> {
    let usable = if raced { USABLE_IN_RACE } else { USABLE };
    let mut judged: Vec<_> = levels.into_iter().map(|level| judge_errors(level, policy, usable)).collect();
    let median_tokens = median(passing(&judged).filter_map(|level| level.summary.mean_output_tokens).collect());
    for level in judged.iter_mut().filter(|level| level.verdict == Verdict::Pass) {
        let few = raced && level.summary.requests.is_some_and(|n| n < FEWEST_ANSWERS);
        let cause = shrunk_output(&level.summary, median_tokens);
        if let Some(cause) = cause.filter(|cause| !few || matches!(cause, Cause::EndedAtOnce { .. })) {
            fail(level, Gate::Output, cause, false);
        }
    }
    // Only now: answers with almost no output are fast, and would set a limit that no other level meets.
    let limits = limits(policy, p95_limit(policy, passing(&judged), raced));
    for level in judged.iter_mut().filter(|level| level.verdict == Verdict::Pass) {
        // Takes precedence over the default limit on P95, which nobody asked for.
        judge_attainment(level, policy);
        if level.verdict == Verdict::Pass {
            judge_times(level, &limits, raced);
        }
    }
    judged
}

fn fail(level: &mut JudgedLevel, gate: Gate, cause: Cause, uncertain: bool) {
    (level.verdict, level.gate, level.causes, level.uncertain) = (Verdict::Fail, Some(gate), vec![cause], uncertain);
}

fn judge_errors(mut summary: LevelSummary, policy: &Policy, usable: (u64, u64)) -> JudgedLevel {
    // A results file may contain an earlier verdict, which would be written next to this one and override it.
    summary.unknown.retain(|key, _| !OF_VERDICT.contains(&key.as_str()));
    // Goodput that was counted with other limits does not apply.
    summary.goodput = summary.goodput.filter(|of| policy.slo.is_some_and(|slo| slo.limits() == of.slo.limits()));
    summary.outage = summary.outage.or_else(|| outage_by_failures(&summary, policy));
    let failed = failed_requests(&summary);
    let interval = failed.zip(summary.requests).and_then(|(failed, n)| wilson(failed, n));
    // Without failures, the interval only reflects how small n is, which has a note of its own.
    let spanning = interval
        .filter(|[low, high]| failed != Some(0) && *low < policy.max_error_rate && *high >= policy.max_error_rate);
    let fails_slo = policy
        .slo
        .is_some_and(|slo| summary.goodput.as_ref().is_none_or(|goodput| goodput.attainment.estimate < slo.attainment));
    let (verdict, cause) = if let Some(cause) = too_small(&summary, usable) {
        (Verdict::NotUsed, Some(cause))
    } else if let Some(cause) = failed_errors(&summary, spanning, policy) {
        (Verdict::Fail, Some(cause))
    } else if value(&summary, policy.objective).is_none() && !fails_slo {
        // The value of the objective must be known.
        (Verdict::NotUsed, Some(Cause::NoValue { objective: policy.objective }))
    } else {
        (Verdict::Pass, spanning.map(|interval| Cause::ErrorRateUncertain { interval }))
    };
    JudgedLevel {
        verdict,
        gate: (verdict == Verdict::Fail).then_some(Gate::Errors),
        causes: cause.into_iter().collect(),
        error_rate_interval: interval,
        uncertain: spanning.is_some() && verdict != Verdict::NotUsed,
        summary,
    }
}

/// The outage at a level of a results file that only counts failures by kind.
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

/// The recorded error rate, or else the one computed from the counts.
pub fn error_rate(summary: &LevelSummary) -> Option<f64> {
    let counted = || Some(failed_requests(summary)? as f64 / summary.requests.filter(|&n| n > 0)? as f64);
    summary.error_rate.or_else(counted)
}

fn too_small(summary: &LevelSummary, usable: (u64, u64)) -> Option<Cause> {
    let least = size(summary.concurrency, usable);
    match summary.state {
        Some(LevelState::Cut) => Some(Cause::Interrupted),
        // Too few requests for any figure, but enough to show that the level fails.
        Some(LevelState::Hopeless) => None,
        _ if summary.concurrency == 0 => Some(Cause::LevelZero),
        _ => summary.requests.filter(|&n| n < least).map(|requests| Cause::TooFewRequests { requests, least }),
    }
}

fn failed_errors(summary: &LevelSummary, uncertain: Option<[f64; 2]>, policy: &Policy) -> Option<Cause> {
    let limit = policy.max_error_rate;
    if let Some(rate) = error_rate(summary).filter(|&rate| rate >= limit) {
        let outage = summary.outage.filter(|outage| !outage.is_set_aside());
        return Some(Cause::ErrorRate { rate, limit, uncertain, outage });
    }
    (summary.state == Some(LevelState::Hopeless)).then(|| Cause::GivenUp { why: summary.reason.clone() })
}

/// The value of the objective, if it is known and above 0.
pub fn value(summary: &LevelSummary, objective: Objective) -> Option<f64> {
    let value = match objective {
        Objective::Requests => summary.throughput_rps.map(|t| t.estimate),
        Objective::OutputTokens => summary.output_tps,
        Objective::Goodput => summary.goodput.as_ref().map(|goodput| goodput.rps.estimate),
    };
    value.filter(|&value| value > 0.0)
}

fn shrunk_output(summary: &LevelSummary, median: Option<f64>) -> Option<Cause> {
    // All levels may have shrunk alike, which the median does not show; the speed of empty answers means nothing.
    if let Some((answers, of)) = summary.ended_at_once.zip(summary.succeeded)
        && answers.saturating_mul(2) > of
    {
        return Some(Cause::EndedAtOnce { answers, of });
    }
    let (tokens, median) = (summary.mean_output_tokens?, median?);
    (tokens < SHRUNK_OUTPUT * median).then_some(Cause::OutputShrank { tokens, median })
}

/// The figure that a time gate checks.
struct Time {
    value: Option<f64>,
    interval: Option<[f64; 2]>,
    /// Minimum number of requests for the figure; `None` if there are enough.
    needs: Option<u64>,
}

impl Time {
    fn of(summary: &LevelSummary, gate: TimeGate) -> Self {
        let latency = summary.gate_latency_s.or(summary.latency_s);
        let (interval, least) = match gate {
            TimeGate::P95 => (summary.p95_interval_s, None),
            TimeGate::P99 => (None, Some(FEWEST_FOR_P99)),
            TimeGate::TtftP95 => (summary.ttft_p95_interval_s, None),
            TimeGate::TpotP95 => (summary.tpot_p95_interval_s, None),
        };
        let needs = least.filter(|least| summary.requests.is_none_or(|n| n < *least));
        Time { value: gate.of([latency, summary.ttft_s, summary.tpot_s]), interval, needs }
    }
}

/// Compares the point estimate of the share of requests that met `policy.slo` with its limit.
fn judge_attainment(level: &mut JudgedLevel, policy: &Policy) {
    let gate = Gate::Attainment;
    let Some(least) = policy.slo.map(|slo| slo.attainment) else { return };
    let Some(goodput) = &level.summary.goodput else { return fail(level, gate, Cause::Unknown { gate }, false) };
    let share = goodput.attainment.estimate;
    // If every request met it, the interval only reflects how small n is.
    let interval = goodput.attainment.interval().filter(|_| share < 1.0);
    let uncertain = interval.filter(|&[low, high]| low < least && high >= least);
    if share < least {
        return fail(level, gate, Cause::TooFewMet { share, least, uncertain }, uncertain.is_some());
    }
    level.uncertain |= uncertain.is_some();
    level.causes.extend(uncertain.map(|interval| Cause::MaybeTooFewMet { interval, least }));
}

/// P99 of the successes, if there are enough requests to know it.
pub fn known_p99(summary: &LevelSummary) -> Option<f64> {
    summary.latency_s?.p99.filter(|_| summary.requests.is_some_and(|n| n >= FEWEST_FOR_P99))
}

/// The times that the limits on P95 and on TTFT apply to, seconds.
pub fn gate_times(summary: &LevelSummary) -> [Option<f64>; 2] {
    [TimeGate::P95, TimeGate::TtftP95].map(|gate| Time::of(summary, gate).value)
}

fn limits(policy: &Policy, p95: Option<Limit>) -> Vec<(TimeGate, Limit)> {
    let limit = |gate, own: Option<f64>| if gate == TimeGate::P95 { p95 } else { own.map(Limit::own) };
    policy.limits().into_iter().filter_map(|(gate, own)| Some((gate, limit(gate, own)?))).collect()
}

/// A race applies the default limit to its curves, so here only levels that are certain to exceed it fail.
fn judge_times(level: &mut JudgedLevel, limits: &[(TimeGate, Limit)], raced: bool) {
    for &(gate, limit) in limits {
        let time = Time::of(&level.summary, gate);
        if gate.needs_streaming() && time.value.is_none() {
            return fail(level, Gate::Time(gate), Cause::Unknown { gate: Gate::Time(gate) }, false);
        }
        let Some(value) = time.value.filter(|_| time.needs.is_none()) else { continue };
        // The level that the limit is derived from is within it.
        if limit.from.is_some_and(|(from, _)| from == level.summary.concurrency) {
            continue;
        }
        let uncertain = time.interval.filter(|interval| limit.may_be_beyond(value, *interval));
        let by_chance = raced && limit.from.is_some() && uncertain.is_some();
        if value > limit.seconds && !by_chance {
            let cause = Cause::TooSlow { gate, value, limit, uncertain };
            return fail(level, Gate::Time(gate), cause, uncertain.is_some());
        }
        level.uncertain |= uncertain.is_some();
        level.causes.extend(uncertain.map(|interval| Cause::MaybeTooSlow { gate, interval, limit }));
    }
}

/// The gates that could not be checked on a passing level, with the number of requests they need if there are fewer.
pub(super) fn unchecked(summary: &LevelSummary, policy: &Policy) -> Vec<(Gate, Option<u64>)> {
    let errors = error_rate(summary).is_none().then_some((Gate::Errors, None));
    // P95 has a limit by default.
    let wanted = policy.limits().into_iter().filter(|(gate, own)| own.is_some() || *gate == TimeGate::P95);
    let times = wanted.filter_map(|(gate, _)| {
        let time = Time::of(summary, gate);
        (time.value.is_none() || time.needs.is_some()).then_some((Gate::Time(gate), time.needs))
    });
    errors.into_iter().chain(times).collect()
}

/// The limit on P95: the user's own, or five times the P95 of the lowest level with enough requests for
/// an interval; the limit's interval is then five times that interval. Without such a level, the lowest
/// of all sets the limit, except in a race, which may visit level 1 for only eight requests.
pub(super) fn p95_limit<'a>(
    policy: &Policy,
    passing: impl Iterator<Item = &'a JudgedLevel>,
    raced: bool,
) -> Option<Limit> {
    if let Some(seconds) = policy.max_p95_seconds {
        return Some(Limit::own(seconds));
    }
    let p95 = |summary| Time::of(summary, TimeGate::P95).value;
    let known: Vec<_> = passing.filter_map(|level| Some((&level.summary, p95(&level.summary)?))).collect();
    let enough = known.iter().find(|(summary, _)| summary.p95_interval_s.is_some());
    let &(lowest, p95) = enough.or(known.first().filter(|_| !raced))?;
    let times = |p95: f64| DEFAULT_P95_FACTOR * p95;
    let interval = lowest.p95_interval_s.unwrap_or([p95; 2]).map(times);
    Some(Limit { seconds: times(p95), interval, from: Some((lowest.concurrency, p95)) })
}

impl Limit {
    fn own(seconds: f64) -> Self {
        Limit { seconds, interval: [seconds; 2], from: None }
    }

    /// Whether the true value may lie on the other side of the limit, which has an interval too. The
    /// two combine like those of independent figures, as logarithms, since the ratio is what counts.
    fn may_be_beyond(&self, value: f64, [low, high]: [f64; 2]) -> bool {
        let [limit_low, limit_high] = self.interval;
        let [own, of_limit] = if value > self.seconds {
            [value / low, limit_high / self.seconds]
        } else {
            [high / value, self.seconds / limit_low]
        };
        (value / self.seconds).ln().abs() <= own.ln().hypot(of_limit.ln())
    }
}
