//! Level summaries and a policy to a recommendation. Pure: no clock, no files.
//!
//! The rule: among the levels that pass every gate, the **smallest** one whose throughput is within `tolerance` of
//! the best. An argmax would pay twice the tail latency for a percent that is mostly noise.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::outcome::{Counted, Failure, Period, Quota, RateLimit};
use crate::stats::{BLOCKS, LevelState, LevelSummary, Outage, Reach, wilson};
use crate::usl::{self, Usl};

/// What the decision maximises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Successful requests per second.
    #[default]
    Requests,
    /// Output tokens per second.
    OutputTokens,
}

impl Objective {
    /// What its figures are counted in.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Objective::Requests => "requests/s",
            Objective::OutputTokens => "output tokens/s",
        }
    }
}

/// The section `policy` of config.yaml.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// What to maximise.
    pub objective: Objective,
    /// A level passes while failures / requests stay strictly below this.
    pub max_error_rate: f64,
    /// Limit on P95 latency, seconds; without one, five times the P95 of the lowest level that passes on errors.
    pub max_p95_seconds: Option<f64>,
    /// Limit on P99 latency, seconds; not gated without one.
    pub max_p99_seconds: Option<f64>,
    /// How much throughput a lower level may give away against the best.
    pub tolerance: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            objective: Objective::Requests,
            max_error_rate: 0.05,
            max_p95_seconds: None,
            max_p99_seconds: None,
            tolerance: 0.05,
        }
    }
}

/// What is known, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The optimum lies inside the levels tested.
    Ok,
    /// The pick is the highest level tested: the optimum is at least that.
    NotSaturated,
    /// The pick is the last level that passes; a higher one failed a gate.
    LimitedByGate,
    /// The pick is the lowest level tested, and that is above 1.
    AtOrBelowLowest,
    /// Failures are mainly HTTP 429: a quota is the limit, not concurrency.
    RateLimited,
    /// The data do not decide.
    Unresolved,
    /// No level passes the gates.
    NoQualifyingLevel,
}

impl Status {
    /// Whether such a result may be written into a config.
    pub fn may_patch(self) -> bool {
        matches!(self, Status::Ok | Status::NotSaturated | Status::LimitedByGate | Status::AtOrBelowLowest)
    }

    /// The name used in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::NotSaturated => "not_saturated",
            Status::LimitedByGate => "limited_by_gate",
            Status::AtOrBelowLowest => "at_or_below_lowest",
            Status::RateLimited => "rate_limited",
            Status::Unresolved => "unresolved",
            Status::NoQualifyingLevel => "no_qualifying_level",
        }
    }
}

/// What became of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It passes every gate.
    Pass,
    /// It fails a gate.
    Fail,
    /// Too little data to use it.
    NotUsed,
}

/// A limit that a level must pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// The error rate, or that the level was given up.
    Errors,
    /// The length of its answers beside those of the other levels.
    Output,
    /// P95.
    P95,
    /// P99.
    P99,
}

/// A level with its verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgedLevel {
    /// Pass, fail or not used.
    pub verdict: Verdict,
    /// The gate it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// Why; empty for a plain pass.
    pub why: String,
    /// The 95 % Wilson interval of its error rate.
    #[serde(default)]
    pub error_rate_interval: Option<[f64; 2]>,
    /// The interval of the figure that decided spans its limit: with other requests the verdict might be another.
    #[serde(default)]
    pub uncertain: bool,
    /// Its figures.
    #[serde(flatten)]
    pub summary: LevelSummary,
}

/// Whether the server was as fast when measured again as it was at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftCheck {
    /// No level was measured again.
    #[default]
    NotChecked,
    /// It was as fast.
    None,
    /// It was not.
    Found,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recommendation {
    /// In one word.
    pub status: Status,
    /// The level, where there is one.
    pub recommended_concurrency: Option<usize>,
    /// Central 95 % of the picks when the measurements are resampled.
    pub interval: Option<[usize; 2]>,
    /// Printed, but not written without `--allow-provisional`.
    pub provisional: bool,
    /// The embedded simulator was measured: the figures say nothing about any other server.
    #[serde(default)]
    pub simulated: bool,
    /// In a sentence.
    pub reason: String,
    /// Whether the server changed its speed in the course of the run.
    #[serde(default)]
    pub drift: DriftCheck,
    /// What else is worth knowing.
    #[serde(default)]
    pub notes: Vec<String>,
    /// All levels, ascending.
    pub levels: Vec<JudgedLevel>,
    /// The fitted Universal Scalability Law; information only.
    #[serde(default)]
    pub usl: Option<UslInfo>,
    /// The passing level with the most throughput per second of latency; information only.
    #[serde(default)]
    pub low_latency_alternative: Option<usize>,
}

/// The USL curve as reported.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct UslInfo {
    /// Contention.
    pub sigma: f64,
    /// Coherency (crosstalk).
    pub kappa: f64,
    /// Throughput of one.
    pub lambda: f64,
    /// Goodness of fit.
    pub r_squared: f64,
    /// Where the curve peaks; null if it does not.
    pub peak: Option<f64>,
}

impl From<Usl> for UslInfo {
    fn from(fit: Usl) -> Self {
        UslInfo { sigma: fit.sigma, kappa: fit.kappa, lambda: fit.lambda, r_squared: fit.r_squared, peak: fit.peak() }
    }
}

/// Requests, fixed and per level: below these a level is not used; below the second pair the result is provisional.
const USABLE: (u64, u64) = (30, 3);
const FULL: (u64, u64) = (100, 10);
/// Without a limit of the user's own, P95 may be this many times that of the lowest level.
const DEFAULT_P95_FACTOR: f64 = 5.0;
/// P99 of fewer requests than this is little more than the largest value.
const SMALLEST_N_FOR_P99: u64 = 400;
/// A level whose answers are shorter than this share of the median over the levels is not picked.
const SHRUNK_OUTPUT: f64 = 0.8;
/// Below this share of its level it never ran at its concurrency.
const REACHED: f64 = 0.9;
/// More CPU than this, in cores, or timers later than this, in seconds and as a share of the mean latency: the client is
/// busy with itself, and what is measured is the client.
const BUSY_CPU: f64 = 0.5;
const LATE_TIMER_S: f64 = 0.001;
const LATE_TIMER_SHARE: f64 = 0.05;
/// A change of the server's speed is drift if it is beyond this many standard deviations of what its rounds show anyway.
const BEYOND_NOISE: f64 = 3.0;
const RESAMPLES: usize = 2_000;
/// Wider than this many levels, and with a half-width above the second, the pick is too noisy.
const WIDEST_INTERVAL: usize = 3;
const NOISY_HALF_WIDTH: f64 = 0.10;

/// Decides. `levels` may come in any order; a level should be there once. Figures that cannot be (not finite,
/// negative, a rate above 1) count as unknown.
pub fn recommend(levels: &[LevelSummary], policy: &Policy) -> Recommendation {
    let mut sorted: Vec<_> = levels.iter().cloned().map(LevelSummary::without_impossible).collect();
    sorted.sort_by_key(|level| level.concurrency);
    let judged = judge_all(sorted, policy);
    let mut notes = level_notes(&judged, policy);
    let decision = decide(&judged, policy);
    let pick = decision.pick.and_then(|at| judged.get(at));
    let mut missing = pick.map(|pick| missing_checks(&judged, pick, policy)).unwrap_or_default();
    missing.extend(open_outages(&judged).map(unexplained));
    let provisional = pick.is_some() && !missing.is_empty();
    notes.extend(missing);
    let drift = drift_check(&judged);
    if drift == DriftCheck::NotChecked && pick.is_some() && decision.interval.is_some_and(|[low, high]| low < high) {
        notes.push("drift: not checked, since no level was measured a second time".to_owned());
    }
    let (usl, usl_note) = fit_usl(&judged);
    notes.extend(usl_note);
    Recommendation {
        status: decision.status,
        recommended_concurrency: pick.map(|level| level.summary.concurrency),
        interval: decision.interval,
        provisional,
        simulated: false,
        reason: decision.reason,
        drift,
        notes,
        usl,
        low_latency_alternative: low_latency_alternative(&judged),
        levels: judged,
    }
}

// ---- gates, each level by itself ----

fn judge_all(levels: Vec<LevelSummary>, policy: &Policy) -> Vec<JudgedLevel> {
    let mut judged: Vec<_> = levels.into_iter().map(|level| judge_errors(level, policy)).collect();
    let median_tokens = median(passing(&judged).filter_map(|level| level.summary.mean_output_tokens).collect());
    fail_where(&mut judged, |summary| Some(Failing::clearly(Gate::Output, shrunk_output(summary, median_tokens)?)));
    // Only now: next to no output comes fast, and would make a reference that nothing else meets.
    let limit = p95_limit(policy, passing(&judged));
    fail_where(&mut judged, |summary| failed_latency(summary, policy, limit.as_ref()));
    for level in judged.iter_mut().filter(|level| level.verdict == Verdict::Pass) {
        if let Some(why) = limit.as_ref().and_then(|limit| uncertain_latency(&level.summary, limit)) {
            level.uncertain = true;
            level.why = if level.why.is_empty() { why } else { format!("{}; {why}", level.why) };
        }
    }
    judged
}

/// A gate that was not passed.
struct Failing {
    gate: Gate,
    why: String,
    uncertain: bool,
}

impl Failing {
    fn clearly(gate: Gate, why: String) -> Self {
        Failing { gate, why, uncertain: false }
    }
}

fn fail_where(judged: &mut [JudgedLevel], failure: impl Fn(&LevelSummary) -> Option<Failing>) {
    for level in judged.iter_mut().filter(|level| level.verdict == Verdict::Pass) {
        if let Some(failing) = failure(&level.summary) {
            level.verdict = Verdict::Fail;
            level.gate = Some(failing.gate);
            level.why = failing.why;
            level.uncertain = failing.uncertain;
        }
    }
}

pub(crate) fn passing(levels: &[JudgedLevel]) -> impl Iterator<Item = &JudgedLevel> {
    levels.iter().filter(|level| level.verdict == Verdict::Pass)
}

/// Validity and the error gate.
fn judge_errors(mut summary: LevelSummary, policy: &Policy) -> JudgedLevel {
    // A results file may carry an earlier verdict; it must not stand beside (and over) this one.
    for ours in ["verdict", "gate", "why", "error_rate_interval", "uncertain"] {
        summary.unknown.remove(ours);
    }
    summary.outage = summary.outage.or_else(|| outage_by_failures(&summary, policy));
    let failed = failed_requests(&summary);
    let interval = failed.zip(summary.requests).and_then(|(failed, n)| wilson(failed, n));
    let spans = |[low, high]: [f64; 2]| low < policy.max_error_rate && high >= policy.max_error_rate;
    // Without any failure the interval only says how small n is, which is said elsewhere.
    let mut uncertain = failed != Some(0) && interval.is_some_and(spans);
    let (verdict, why) = if let Some(why) = too_small(&summary) {
        (Verdict::NotUsed, why)
    } else if let Some(why) = failed_errors(&summary, interval.filter(|_| uncertain), policy) {
        (Verdict::Fail, why)
    } else if let Some(why) = no_value(&summary, policy) {
        (Verdict::NotUsed, why)
    } else {
        (Verdict::Pass, uncertain_errors(interval.filter(|_| uncertain)))
    };
    uncertain &= verdict != Verdict::NotUsed;
    let gate = (verdict == Verdict::Fail).then_some(Gate::Errors);
    JudgedLevel { verdict, gate, why, error_rate_interval: interval, uncertain, summary }
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
fn error_rate(summary: &LevelSummary) -> Option<f64> {
    let counted = || Some(failed_requests(summary)? as f64 / summary.requests.filter(|&n| n > 0)? as f64);
    summary.error_rate.or_else(counted)
}

fn too_small(summary: &LevelSummary) -> Option<String> {
    match summary.state {
        Some(LevelState::Cut) => return Some("interrupted before it was complete".to_owned()),
        // Too few requests for a figure, but enough to see that it fails.
        Some(LevelState::Hopeless) => return None,
        _ => {}
    }
    if summary.concurrency == 0 {
        return Some("level 0 sends nothing".to_owned());
    }
    let smallest = size(summary.concurrency, USABLE);
    summary
        .requests
        .filter(|&n| n < smallest)
        .map(|n| format!("n = {n}, at least {smallest} are needed (benchmark.total_requests)"))
}

fn failed_errors(summary: &LevelSummary, interval: Option<[f64; 2]>, policy: &Policy) -> Option<String> {
    let limit = policy.max_error_rate;
    if let Some(rate) = error_rate(summary).filter(|&rate| rate >= limit) {
        let uncertain = interval.map(|[low, high]| format!(" (uncertain: {} to {})", percent(low), percent(high)));
        let outage = summary.outage.filter(|outage| !outage.is_set_aside());
        let outage =
            outage.map(|Outage { lost, requests, .. }| format!("; {lost} of {requests} requests found no server"));
        return Some(format!(
            "error rate {} is not below {}{}{}",
            percent(rate),
            percent(limit),
            uncertain.unwrap_or_default(),
            outage.unwrap_or_default()
        ));
    }
    (summary.state == Some(LevelState::Hopeless))
        .then(|| format!("given up: {}", summary.reason.as_deref().unwrap_or("it had clearly failed")))
}

/// What is to be maximised must be known.
fn no_value(summary: &LevelSummary, policy: &Policy) -> Option<String> {
    if value(summary, policy.objective).is_some() {
        return None;
    }
    let what = match policy.objective {
        Objective::Requests => "no throughput",
        Objective::OutputTokens => {
            "no output tokens per second (the server reports no token counts; policy.objective: requests needs none)"
        }
    };
    Some(what.to_owned())
}

/// What the decision maximises, where it is known and above 0.
pub(crate) fn value(summary: &LevelSummary, objective: Objective) -> Option<f64> {
    let value = match objective {
        Objective::Requests => summary.throughput_rps.map(|t| t.estimate),
        Objective::OutputTokens => summary.output_tps,
    };
    value.filter(|&value| value > 0.0)
}

fn uncertain_errors(interval: Option<[f64; 2]>) -> String {
    interval
        .map_or_else(String::new, |[low, high]| format!("error rate uncertain: {} to {}", percent(low), percent(high)))
}

/// P95 and P99 as the gates see them.
fn gate_latency(summary: &LevelSummary) -> (Option<f64>, Option<f64>) {
    let latency = summary.gate_latency_s.or(summary.latency_s).unwrap_or_default();
    (latency.p95, latency.p99)
}

/// The limit on P95: the user's own, or five times the P95 of the lowest level, which is no better known than that.
struct P95Limit {
    seconds: f64,
    interval: [f64; 2],
    name: String,
}

fn p95_limit<'a>(policy: &Policy, mut passing: impl Iterator<Item = &'a JudgedLevel>) -> Option<P95Limit> {
    if let Some(limit) = policy.max_p95_seconds {
        let name = format!("max_p95_seconds {}", seconds(limit));
        return Some(P95Limit { seconds: limit, interval: [limit; 2], name });
    }
    let (lowest, p95) = passing.find_map(|level| Some((&level.summary, gate_latency(&level.summary).0?)))?;
    let times = |p95: f64| DEFAULT_P95_FACTOR * p95;
    let name = format!("{DEFAULT_P95_FACTOR} x the {} of level {}", seconds(p95), lowest.concurrency);
    Some(P95Limit { seconds: times(p95), interval: lowest.p95_interval_s.unwrap_or([p95; 2]).map(times), name })
}

impl P95Limit {
    /// The interval of the P95, in words, if it may lie on the other side of the limit, both being known only so well:
    /// their intervals add up as those of independent figures do, on the logarithms, since it is their ratio that counts.
    fn uncertain(&self, summary: &LevelSummary, p95: f64) -> Option<String> {
        let [low, high] = summary.p95_interval_s?;
        let [limit_low, limit_high] = self.interval;
        let [own, of_limit] = if p95 > self.seconds {
            [p95 / low, limit_high / self.seconds]
        } else {
            [high / p95, self.seconds / limit_low]
        };
        let apart = (p95 / self.seconds).ln().abs();
        let range = |[low, high]: [f64; 2]| format!("{} to {}", seconds(low), seconds(high));
        let against = if limit_low < limit_high { format!(" against {}", range(self.interval)) } else { String::new() };
        (apart <= own.ln().hypot(of_limit.ln())).then(|| format!("{}{against}", range([low, high])))
    }
}

fn failed_latency(summary: &LevelSummary, policy: &Policy, p95_limit: Option<&P95Limit>) -> Option<Failing> {
    let (p95, p99) = gate_latency(summary);
    if let Some((p95, limit)) = p95.zip(p95_limit).filter(|(p95, limit)| *p95 > limit.seconds) {
        let uncertain = limit.uncertain(summary, p95);
        let interval = uncertain.as_ref().map(|interval| format!(" (uncertain: {interval})")).unwrap_or_default();
        let why = format!("P95 {} is above {}{interval}", seconds(p95), limit.name);
        return Some(Failing { gate: Gate::P95, why, uncertain: uncertain.is_some() });
    }
    let enough = summary.requests.is_some_and(|n| n >= SMALLEST_N_FOR_P99);
    if let (Some(p99), Some(limit), true) = (p99, policy.max_p99_seconds, enough)
        && p99 > limit
    {
        let why = format!("P99 {} is above max_p99_seconds {}", seconds(p99), seconds(limit));
        return Some(Failing::clearly(Gate::P99, why));
    }
    None
}

/// A P95 that passes, but may be above the limit.
fn uncertain_latency(summary: &LevelSummary, limit: &P95Limit) -> Option<String> {
    let interval = limit.uncertain(summary, gate_latency(summary).0?)?;
    Some(format!("P95 uncertain: {interval}, the limit is {}", limit.name))
}

fn shrunk_output(summary: &LevelSummary, median: Option<f64>) -> Option<String> {
    // All levels may have shrunk alike: the speed of answers that are none says nothing.
    if let (Some(none), Some(all)) = (summary.ended_at_once, summary.succeeded)
        && none.saturating_mul(2) > all
    {
        return Some(format!("output shrank: {none} of {all} answers ended with their first token (output_shrank)"));
    }
    let (tokens, median) = (summary.mean_output_tokens?, median?);
    (tokens < SHRUNK_OUTPUT * median).then(|| {
        format!("output shrank: {tokens:.1} tokens per answer where the levels' median is {median:.1} (output_shrank)")
    })
}

// ---- the pick ----

struct Decision {
    status: Status,
    pick: Option<usize>,
    interval: Option<[usize; 2]>,
    reason: String,
}

impl Decision {
    fn none(status: Status, reason: impl Into<String>) -> Self {
        Decision { status, pick: None, interval: None, reason: reason.into() }
    }
}

fn decide(levels: &[JudgedLevel], policy: &Policy) -> Decision {
    let used: Vec<usize> = (0..levels.len()).filter(|&at| levels[at].verdict != Verdict::NotUsed).collect();
    if used.is_empty() {
        return Decision::none(Status::Unresolved, nothing_usable(levels));
    }
    if let Some(reason) = rate_limited(levels, policy) {
        return Decision::none(Status::RateLimited, reason);
    }
    let candidates: Vec<Candidate> = levels
        .iter()
        .enumerate()
        .filter(|(_, level)| level.verdict == Verdict::Pass)
        .filter_map(|(at, level)| Candidate::new(at, level, policy))
        .collect();
    let Some(pick) = pick(&candidates, policy.tolerance) else {
        return Decision::none(Status::NoQualifyingLevel, nothing_qualifies(&levels[used[0]]));
    };
    if used.len() < 2 {
        return Decision::none(
            Status::Unresolved,
            "only one level could be used, and one level says nothing about the others: measure at least two",
        );
    }
    let picks = resampled_picks(&candidates, pick, policy.tolerance);
    let interval = picks.map(|ends| ends.map(|at| levels[at].summary.concurrency));
    if let Some(reason) = drifted(levels).or_else(|| too_noisy(picks, levels, pick)) {
        return Decision { interval, ..Decision::none(Status::Unresolved, reason) };
    }
    let (status, mut reason) = explain_pick(levels, &used, &candidates, pick, policy);
    if let Some((best, _)) = best_passing(levels, policy).filter(|(best, _)| client_bound(&best.summary).is_some()) {
        let level = best.summary.concurrency;
        reason.push_str(&format!("; but at level {level} this client was the limit, so the server may do more"));
    }
    Decision { status, pick: Some(pick), interval, reason }
}

fn drift_check(levels: &[JudgedLevel]) -> DriftCheck {
    if drifted(levels).is_some() {
        DriftCheck::Found
    } else if levels.iter().any(|level| level.summary.drift.is_some()) {
        DriftCheck::None
    } else {
        DriftCheck::NotChecked
    }
}

/// Which levels were not as fast when measured again, by more than their rounds differ among themselves.
fn drifted(levels: &[JudgedLevel]) -> Option<String> {
    let spread = spread_of_rounds(levels);
    let changes: Vec<String> = levels
        .iter()
        .filter(|level| level.verdict != Verdict::NotUsed)
        .filter_map(|level| {
            let drift = level.summary.drift?;
            let rounds = rounds(&level.summary).len().max(1) as f64;
            let noise = BEYOND_NOISE * spread * (1.0 + 1.0 / rounds).sqrt();
            let change = 100.0 * drift.change().filter(|change| change.abs() > noise)?;
            let (first, confirmed) = (drift.first.estimate, drift.confirmed.estimate);
            Some(format!(
                "level {} gave {first:.2} requests/s at first and {confirmed:.2} when measured again ({change:+.1} %)",
                level.summary.concurrency
            ))
        })
        .collect();
    (!changes.is_empty()).then(|| {
        format!(
            "the server changed its speed during the run: {}; measure again when nobody else uses it, or at the time \
             you normally run",
            changes.join("; ")
        )
    })
}

/// The throughputs of a level's measurements, as their blocks have it.
pub(crate) fn measurements(summary: &LevelSummary) -> Vec<f64> {
    summary.blocks_rps.chunks_exact(BLOCKS).map(|blocks| blocks.iter().sum::<f64>() / BLOCKS as f64).collect()
}

/// Those of the confirm rounds: of all measurements but the first.
fn rounds(summary: &LevelSummary) -> Vec<f64> {
    measurements(summary).into_iter().skip(1).collect()
}

/// Standard deviation between the confirm rounds of a level, relative to their mean, over all levels that have two or
/// more; 0 where none has.
///
/// A server that is now faster, now slower does not drift; what it does shows between the rounds, and not inside them,
/// where the interval of a throughput comes from.
fn spread_of_rounds(levels: &[JudgedLevel]) -> f64 {
    let (mut squares, mut freedom) = (0.0, 0);
    for rounds in levels.iter().map(|level| rounds(&level.summary)).filter(|rounds| rounds.len() > 1) {
        let mean = rounds.iter().sum::<f64>() / rounds.len() as f64;
        if mean > 0.0 {
            squares += rounds.iter().map(|round| (round / mean - 1.0).powi(2)).sum::<f64>();
            freedom += rounds.len() - 1;
        }
    }
    if freedom > 0 { (squares / freedom as f64).sqrt() } else { 0.0 }
}

/// By what this client, not the server, was the limit at a level.
fn client_bound(summary: &LevelSummary) -> Option<String> {
    let client = summary.client?;
    if let Some(cpu) = client.cpu.filter(|&cpu| cpu > BUSY_CPU) {
        return Some(format!("its load thread took {cpu:.2} of a core, above {BUSY_CPU}"));
    }
    let latency = summary.latency_s.and_then(|latency| latency.mean).unwrap_or_default();
    let limit = LATE_TIMER_S.max(LATE_TIMER_SHARE * latency);
    let lag = client.timer_lag_p95_s.filter(|&lag| lag > limit)?;
    Some(format!("its timers were {:.1} ms late at P95, above {:.1} ms", 1e3 * lag, 1e3 * limit))
}

fn too_noisy(picks: Option<[usize; 2]>, levels: &[JudgedLevel], pick: usize) -> Option<String> {
    let [low, high] = picks.filter(|[low, high]| high - low + 1 > WIDEST_INTERVAL)?;
    let noise = half_width(&levels[pick].summary).filter(|&noise| noise > NOISY_HALF_WIDTH)?;
    Some(format!(
        "too noisy: the pick lies anywhere from {} to {}, with throughput known only to ±{}; measure more requests \
         (benchmark.total_requests) or on a quieter server",
        levels[low].summary.concurrency,
        levels[high].summary.concurrency,
        percent(noise),
    ))
}

/// A passing level, as the pick sees it.
struct Candidate {
    at: usize,
    value: f64,
    /// Rates of parts of the measurement.
    blocks: Vec<f64>,
}

impl Candidate {
    fn new(at: usize, level: &JudgedLevel, policy: &Policy) -> Option<Self> {
        let value = value(&level.summary, policy.objective)?;
        Some(Candidate { at, value, blocks: block_rates(&level.summary) })
    }
}

/// The cohort's blocks; of a file without them, its windows.
fn block_rates(summary: &LevelSummary) -> Vec<f64> {
    if !summary.blocks_rps.is_empty() {
        return summary.blocks_rps.clone();
    }
    let windows = summary.samples.iter().flatten().filter(|window| window.duration_s > 0.0);
    windows.map(|window| window.succeeded as f64 / window.duration_s).collect()
}

/// The smallest level within `tolerance` of the best.
fn pick(candidates: &[Candidate], tolerance: f64) -> Option<usize> {
    smallest_good(candidates.iter().map(|c| (c.at, c.value)), tolerance)
}

/// Of ascending levels with what is maximised, the smallest within `tolerance` of the best.
pub(crate) fn smallest_good(values: impl Iterator<Item = (usize, f64)> + Clone, tolerance: f64) -> Option<usize> {
    let best = values.clone().map(|(_, value)| value).max_by(f64::total_cmp)?;
    values.filter(|(_, value)| *value >= (1.0 - tolerance) * best).map(|(at, _)| at).next()
}

/// Ends of the central 95 % of the picks when each level's blocks are resampled with replacement (the percentile
/// bootstrap of Efron 1979), widened where needed to hold the pick itself.
///
/// The gates are held fixed. `None` where a level has no blocks: it would look free of noise.
fn resampled_picks(candidates: &[Candidate], pick: usize, tolerance: f64) -> Option<[usize; 2]> {
    if candidates.iter().any(|candidate| candidate.blocks.len() < 2) {
        return None;
    }
    let mut rng = StdRng::seed_from_u64(42);
    let mut picks: Vec<usize> = (0..RESAMPLES)
        .filter_map(|_| {
            let values: Vec<_> = candidates.iter().map(|c| (c.at, resample(c, &mut rng))).collect();
            smallest_good(values.into_iter(), tolerance)
        })
        .collect();
    picks.sort_unstable();
    let tail = RESAMPLES / 40;
    let (low, high) = (picks.get(tail)?, picks.get(RESAMPLES - 1 - tail)?);
    Some([pick.min(*low), pick.max(*high)])
}

/// The candidate's value with its measurements drawn anew, and in each its blocks: scaled by the ratio of the drawn mean
/// to the original mean.
///
/// In two stages, because a server may be faster or slower for the whole of a measurement: its blocks then are too high
/// or too low together, and show nothing of that (Davison and Hinkley, "Bootstrap Methods and their Application", 3.8).
fn resample(candidate: &Candidate, rng: &mut StdRng) -> f64 {
    let blocks = &candidate.blocks;
    let original = blocks.iter().sum::<f64>() / blocks.len() as f64;
    if original <= 0.0 {
        return candidate.value;
    }
    let measurements: Vec<&[f64]> = blocks.chunks(BLOCKS).collect();
    let (mut drawn, mut n) = (0.0, 0);
    for _ in 0..measurements.len() {
        let measurement = measurements[rng.random_range(0..measurements.len())];
        drawn += measurement.iter().map(|_| measurement[rng.random_range(0..measurement.len())]).sum::<f64>();
        n += measurement.len();
    }
    let ratio = drawn / n as f64 / original;
    // k values drawn from k spread by (k - 1) / k too little: for two measurements that is half.
    let k = if measurements.len() > 1 { measurements.len() } else { blocks.len() } as f64;
    candidate.value * (1.0 + (ratio - 1.0) * (k / (k - 1.0)).sqrt())
}

/// Relative half-width of the level's throughput interval.
pub(crate) fn half_width(summary: &LevelSummary) -> Option<f64> {
    let throughput = summary.throughput_rps?;
    let (lower, upper) = (throughput.lower?, throughput.upper?);
    (throughput.estimate > 0.0).then(|| (upper - lower) / 2.0 / throughput.estimate)
}

fn explain_pick(
    levels: &[JudgedLevel],
    used: &[usize],
    candidates: &[Candidate],
    pick: usize,
    policy: &Policy,
) -> (Status, String) {
    let level = levels[pick].summary.concurrency;
    let (lowest, highest) = (used[0], used[used.len() - 1]);
    if pick == highest {
        let tested = if highest + 1 == levels.len() { "tested" } else { "that could be used" };
        return (
            Status::NotSaturated,
            format!(
                "throughput still rises at {level}, the highest level {tested}: the optimum is at least {level}; raise \
                 benchmark.max_concurrency and add higher benchmark.levels"
            ),
        );
    }
    let last_passing = candidates.iter().map(|c| c.at).max();
    if let Some(above) = used.iter().find(|&&at| at > pick).filter(|_| last_passing == Some(pick)) {
        let (failed, why) = (levels[*above].summary.concurrency, &levels[*above].why);
        return (
            Status::LimitedByGate,
            format!("{level} is the last level that passes every gate; level {failed} fails: {why}"),
        );
    }
    if pick == lowest && level > 1 {
        return (
            Status::AtOrBelowLowest,
            format!("{level} is the lowest level tested and already within tolerance: the optimum may be lower"),
        );
    }
    (Status::Ok, within_tolerance(levels, pick, policy))
}

fn within_tolerance(levels: &[JudgedLevel], pick: usize, policy: &Policy) -> String {
    let what = match policy.objective {
        Objective::Requests => "throughput",
        Objective::OutputTokens => "output tokens per second",
    };
    let tolerance = percent(policy.tolerance);
    let own = value(&levels[pick].summary, policy.objective);
    match own.zip(best_passing(levels, policy)) {
        Some((own, (best, highest))) if own < highest => format!(
            "the smallest level within {tolerance} of the best {what} ({} of that at {})",
            percent(own / highest),
            best.summary.concurrency
        ),
        _ => format!("it has the best {what}, and no lower level comes within {tolerance} of it"),
    }
}

/// The passing level with the most of what is maximised, and how much that is. Ties: the lower level.
pub(crate) fn best_passing<'a>(levels: &'a [JudgedLevel], policy: &Policy) -> Option<(&'a JudgedLevel, f64)> {
    let values = passing(levels).filter_map(|level| Some((level, value(&level.summary, policy.objective)?)));
    values.reduce(|best, next| if next.1 > best.1 { next } else { best })
}

/// A quota is the limit if 429s are most of the failures of the levels that fail on errors.
fn rate_limited(levels: &[JudgedLevel], policy: &Policy) -> Option<String> {
    let (mut limited, mut failed) = (0_u64, 0_u64);
    let by_errors = |level: &&JudgedLevel| error_rate(&level.summary).is_some_and(|rate| rate >= policy.max_error_rate);
    for level in levels.iter().filter(|level| level.verdict == Verdict::Fail).filter(by_errors) {
        let failures = &level.summary.failures;
        let of_level = failures.get(Failure::RateLimited.name()).copied().unwrap_or_default();
        limited = limited.saturating_add(of_level);
        failed = failures.values().fold(failed, |sum, &count| sum.saturating_add(count));
    }
    if limited <= failed / 2 {
        return None;
    }
    let passed = |level: &JudgedLevel| {
        let rps = level.summary.throughput_rps?.estimate;
        let limited = level.summary.failures.contains_key(Failure::RateLimited.name());
        (limited && rps > 0.0).then(|| (level.summary.concurrency, rps, tokens_a_minute(&level.summary, rps)))
    };
    let said = levels.iter().filter_map(|level| level.summary.rate_limit).reduce(RateLimit::updated);
    let said = said.unwrap_or_default();
    let quota = match said.exceeded.map(|quota| quota.counts) {
        Some(Counted::Tokens) => "a token quota",
        Some(Counted::Requests) => "a request quota",
        None => "a quota",
    };
    let stated = stated_quota(said).unwrap_or_default();
    // Most quotas let a burst through first: at the highest level that was limited it is long used up. What a day's
    // quota let through before it was used up is no rate.
    let of_a_day = said.exceeded.is_some_and(|quota| quota.per == Some(Period::Day));
    let (rate, enough) = match levels.iter().rev().find_map(passed).filter(|_| !of_a_day) {
        Some((level, rps, tokens)) => (
            format!(
                "about {rps:.2} requests per second ({:.0} a minute{}) passed at level {level}{stated}. Keep to that rate",
                60.0 * rps,
                tokens.unwrap_or_default()
            ),
            concurrency_for(levels, rps).unwrap_or_default(),
        ),
        None => (format!("keep to what is granted{stated}"), String::new()),
    };
    Some(format!(
        "{limited} of {failed} failures are HTTP 429: {quota} is the limit, not concurrency; {rate} (or ask for a higher \
         quota) instead of tuning the concurrency{enough}"
    ))
}

/// How many tokens pass in a minute at that rate, where the server counts them.
fn tokens_a_minute(summary: &LevelSummary, rps: f64) -> Option<String> {
    let output = summary.mean_output_tokens?;
    let (tokens, which) = match summary.mean_input_tokens {
        Some(input) => (input + output, "tokens, prompts included"),
        None => (output, "output tokens"),
    };
    Some(format!(", {:.0} {which}", 60.0 * rps * tokens))
}

/// The quota as the server states it: the one that was used up, where that is known.
fn stated_quota(said: RateLimit) -> Option<String> {
    let requests = (said.limit_requests, "requests", "x-ratelimit-limit-requests", said.reset_s);
    let tokens = (said.limit_tokens, "tokens", "x-ratelimit-limit-tokens", said.reset_tokens_s);
    let header = |(limit, what, header, reset_s): (Option<u64>, &str, &str, Option<f64>)| {
        let full = reset_s.map_or_else(String::new, |s| format!(", full again in {}", seconds(s)));
        Some(format!("{} {what} ({header}{full})", limit?))
    };
    let stated = match said.exceeded {
        Some(Quota { counts, limit: Some(limit), per }) => {
            let per = per.map_or("", Period::words);
            Some(format!("{limit} {}{per}", if counts == Counted::Tokens { "tokens" } else { "requests" }))
        }
        Some(Quota { counts: Counted::Tokens, .. }) => header(tokens),
        Some(Quota { counts: Counted::Requests, .. }) => header(requests),
        None => match (header(requests), header(tokens)) {
            (Some(requests), Some(tokens)) => Some(format!("{requests} and {tokens}")),
            (requests, tokens) => requests.or(tokens),
        },
    };
    Some(format!("; the server states {}", stated?))
}

/// How many in parallel that rate takes: rate x latency (Little's law), the latency being that of the lowest level that
/// passes.
fn concurrency_for(levels: &[JudgedLevel], rate: f64) -> Option<String> {
    let lowest = passing(levels).next()?;
    let latency = lowest.summary.latency_s?.mean?;
    let enough = (rate * latency).ceil().max(1.0);
    Some(format!(
        ": at the {} that a request takes at level {}, {enough:.0} in parallel are enough for it",
        seconds(latency),
        lowest.summary.concurrency
    ))
}

fn nothing_usable(levels: &[JudgedLevel]) -> String {
    match levels.first() {
        None => "no level was measured".to_owned(),
        Some(level) => format!("no level could be used; the lowest, {}: {}", level.summary.concurrency, level.why),
    }
}

fn nothing_qualifies(lowest: &JudgedLevel) -> String {
    let (level, why) = (lowest.summary.concurrency, &lowest.why);
    let so = match level {
        1 => "so concurrency is not the cause",
        _ => "so the cause is not concurrency, or the optimum is lower still: measure level 1",
    };
    match lowest.verdict {
        Verdict::Fail => format!("no level passes the gates; the lowest level, {level}, fails as well ({why}), {so}"),
        _ => "no level passes the gates".to_owned(),
    }
}

// ---- what is said beside it ----

fn level_notes(levels: &[JudgedLevel], policy: &Policy) -> Vec<String> {
    let mut notes = Vec::new();
    for level in levels {
        let summary = &level.summary;
        let n = summary.concurrency;
        if let Some(reached) = summary.mean_in_flight.filter(|&m| m < REACHED * n as f64) {
            let held = summary.mean_held.map(|held| format!(", {held:.1} held back after failures"));
            notes.push(format!(
                "level {n} never ran at its concurrency: {reached:.1} in flight on average{}",
                held.unwrap_or_default()
            ));
        }
        if let Some(by) = client_bound(summary) {
            notes.push(format!(
                "level {n}: this client was the limit ({by}), so the figures may be too low; use a release build, a quieter \
                 or a faster machine"
            ));
        }
        if let Some(count) = summary.ended_at_once {
            notes.push(format!("level {n}: {count} answers have no content, since their first token ended them"));
        }
        notes.extend(summary.notes.iter().map(|note| format!("level {n}: {note}")));
    }
    let explained = |level: &&JudgedLevel| !open_outages(levels).any(|open| open == *level);
    notes.extend(levels.iter().filter(explained).filter_map(set_aside));
    notes.extend(price_of_default_p95(levels, policy));
    notes
}

/// What the P95 gate nobody asked for costs in throughput.
fn price_of_default_p95(levels: &[JudgedLevel], policy: &Policy) -> Option<String> {
    if policy.max_p95_seconds.is_some() {
        return None;
    }
    let (_, best) = best_passing(levels, policy)?;
    let (level, reached) = levels
        .iter()
        .filter(|level| level.gate == Some(Gate::P95))
        .filter_map(|level| Some((level.summary.concurrency, value(&level.summary, policy.objective)?)))
        .max_by(|a, b| a.1.total_cmp(&b.1))?;
    let unit = policy.objective.unit();
    (reached > best).then(|| {
        format!(
            "the P95 gate costs {} of throughput (level {level} reached {reached:.2} {unit}); set \
             policy.max_p95_seconds to choose the limit yourself",
            percent(1.0 - best / reached),
        )
    })
}

/// The P95 limit that holds, seconds: the user's own, else so many times the P95 of the lowest level that passes all
/// but the latency gates.
pub fn p95_limit_s(levels: &[JudgedLevel], policy: &Policy) -> Option<f64> {
    let late = |level: &JudgedLevel| matches!(level.gate, Some(Gate::P95 | Gate::P99));
    let reached_the_gate = levels.iter().filter(|level| level.verdict == Verdict::Pass || late(level));
    p95_limit(policy, reached_the_gate).map(|limit| limit.seconds)
}

// ---- outages ----

/// Levels of which it is not known whether the server was merely gone for a while. Each is to be measured again; where
/// that cannot be done, the answer is provisional.
///
/// A level that lost its connections while a higher one kept them was not too much for the server. Where no higher one
/// tells, the server may have died of the level itself. So the lowest such level counts as a failed gate only if it fails
/// twice while others are served, and as served only if it is served twice in a row. The levels above it decide nothing.
pub(crate) fn open_outages(levels: &[JudgedLevel]) -> impl Iterator<Item = &JudgedLevel> {
    let served = |level: &JudgedLevel| level.verdict != Verdict::NotUsed && level.gate != Some(Gate::Errors);
    let highest_served = levels.iter().rposition(served);
    let lowest_beyond = highest_served.map_or(0, |highest| highest + 1);
    let mut outages = levels.iter().filter_map(|level| level.summary.outage);
    let is_gone = outages.any(|outage| outage.is_set_aside() && outage.since < 1);
    let is_open = move |at: usize, outage: Outage| match (outage.is_set_aside(), highest_served > Some(at)) {
        (true, true) => outage.since < 1,
        (true, false) => outage.since < 2,
        (false, true) => true,
        (false, false) => at == lowest_beyond && (outage.of < 2 || is_gone),
    };
    let open = levels.iter().enumerate();
    open.filter(move |(at, level)| level.summary.outage.is_some_and(|outage| is_open(*at, outage)))
        .map(|(_, level)| level)
}

fn unexplained(level: &JudgedLevel) -> String {
    let Outage { lost, requests, measurements, of, .. } = level.summary.outage.unwrap_or_default();
    let times = match of {
        0 | 1 => "and it was not measured again".to_owned(),
        _ => format!("in {measurements} of {of} measurements"),
    };
    let n = level.summary.concurrency;
    format!("level {n}: {lost} of {requests} requests found no server (outage), {times}")
}

fn set_aside(level: &JudgedLevel) -> Option<String> {
    let Outage { lost, requests, .. } = level.summary.outage.filter(Outage::is_set_aside)?;
    let n = level.summary.concurrency;
    Some(format!(
        "level {n} was measured again: {lost} of {requests} requests found no server (outage); what it disturbed is set aside"
    ))
}

/// Which checks could not be made on the pick, or on the best level it is measured by. Any of them makes the result
/// provisional.
fn missing_checks(levels: &[JudgedLevel], pick: &JudgedLevel, policy: &Policy) -> Vec<String> {
    let best = best_passing(levels, policy).map(|(best, _)| best).filter(|best| *best != pick);
    let mut missing: Vec<_> =
        std::iter::once(pick).chain(best).flat_map(|level| missing_checks_of(&level.summary, policy)).collect();
    let without: Vec<_> = passing(levels)
        .filter(|level| block_rates(&level.summary).len() < 2)
        .map(|level| level.summary.concurrency.to_string())
        .collect();
    if !without.is_empty() {
        missing.push(format!("no interval: the spread of level {} is unknown", without.join(", ")));
    }
    missing
}

fn missing_checks_of(summary: &LevelSummary, policy: &Policy) -> Vec<String> {
    let n = summary.concurrency;
    let full = size(n, FULL);
    let mut missing = Vec::new();
    if client_bound(summary).is_some() {
        missing.push(format!("level {n} was not checked against the server's own limit"));
    }
    match summary.requests {
        None => missing.push(format!("level {n}: the number of requests is unknown, so its size was not checked")),
        Some(requests) if requests < full => missing
            .push(format!("level {n} was measured with {requests} requests; a full result takes at least {full}")),
        Some(_) => {}
    }
    if error_rate(summary).is_none() {
        missing.push(format!("level {n}: the error rate is unknown, so its gate was not checked"));
    }
    let (p95, p99) = gate_latency(summary);
    if p95.is_none() {
        missing.push(format!("level {n}: P95 is unknown, so its gate was not checked"));
    }
    if policy.max_p99_seconds.is_some() && (p99.is_none() || summary.requests.is_none_or(|n| n < SMALLEST_N_FOR_P99)) {
        missing
            .push(format!("level {n}: P99 needs at least {SMALLEST_N_FOR_P99} requests, so its gate was not checked"));
    }
    missing
}

/// Whether a level was measured with as many requests as a full result takes.
pub(crate) fn is_full_size(summary: &LevelSummary) -> bool {
    summary.requests.is_some_and(|requests| requests >= size(summary.concurrency, FULL))
}

/// The larger of a fixed number of requests and so many times the level.
fn size(level: usize, (fixed, times): (u64, u64)) -> u64 {
    fixed.max(times.saturating_mul(level as u64))
}

fn fit_usl(levels: &[JudgedLevel]) -> (Option<UslInfo>, Option<String>) {
    let points: Vec<(f64, f64)> = passing(levels)
        .filter_map(|level| Some((level.summary.concurrency as f64, level.summary.throughput_rps?.estimate)))
        .collect();
    match usl::fit(&points) {
        Ok(fit) => (Some(fit.into()), None),
        Err(error) => (None, Some(format!("no scalability curve (USL): {error}"))),
    }
}

fn low_latency_alternative(levels: &[JudgedLevel]) -> Option<usize> {
    let power = |level: &JudgedLevel| {
        let summary = &level.summary;
        Some((summary.concurrency, summary.throughput_rps?.estimate / summary.latency_s?.mean.filter(|&m| m > 0.0)?))
    };
    passing(levels).filter_map(power).max_by(|a, b| a.1.total_cmp(&b.1)).map(|(level, _)| level)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    crate::stats::quantile(values.len() as u64, 0.5, |rank| values[rank as usize])
}

/// Levels in a row.
pub(crate) fn list(levels: &[usize]) -> String {
    levels.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

pub(crate) fn percent(rate: f64) -> String {
    format!("{:.2} %", rate * 100.0)
}

pub(crate) fn seconds(s: f64) -> String {
    if s < 1.0 { format!("{:.0} ms", s * 1000.0) } else { format!("{s:.2} s") }
}
