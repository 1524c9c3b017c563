//! Level summaries and a policy to a recommendation. Pure: no clock, no files.
//!
//! The rule: among the levels that pass every gate, the **smallest** one whose throughput is within `tolerance` of
//! the best. An argmax would pay twice the tail latency for a percent that is mostly noise.

use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::stats::{LevelState, LevelSummary, wilson};
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

/// A level with its verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgedLevel {
    /// Pass, fail or not used.
    pub verdict: Verdict,
    /// Why; empty for a plain pass.
    pub why: String,
    /// The 95 % Wilson interval of its error rate.
    #[serde(default)]
    pub error_rate_interval: Option<[f64; 2]>,
    /// Its figures.
    #[serde(flatten)]
    pub summary: LevelSummary,
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
    /// In a sentence.
    pub reason: String,
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

/// Below these a level is not used; below the second pair the result is provisional.
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
const RESAMPLES: usize = 2_000;
/// Wider than this many levels, and with a half-width above the second, the pick is too noisy.
const WIDEST_INTERVAL: usize = 3;
const NOISY_HALF_WIDTH: f64 = 0.10;

/// Decides. `levels` may come in any order; a level should be there once.
pub fn recommend(levels: &[LevelSummary], policy: &Policy) -> Recommendation {
    let mut sorted = levels.to_vec();
    sorted.sort_by_key(|level| level.concurrency);
    let judged = judge_all(sorted, policy);
    let mut notes = level_notes(&judged, policy);
    let decision = decide(&judged, policy);
    let pick = decision.pick.and_then(|at| judged.get(at));
    notes.extend(pick.map(|level| missing_checks(level, policy)).unwrap_or_default());
    let provisional = pick.is_some_and(|level| is_provisional(level, policy));
    let (usl, usl_note) = fit_usl(&judged);
    notes.extend(usl_note);
    Recommendation {
        status: decision.status,
        recommended_concurrency: pick.map(|level| level.summary.concurrency),
        interval: decision.interval,
        provisional,
        reason: decision.reason,
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
    let reference_p95 = passing(&judged).find_map(|level| gate_latency(&level.summary).0);
    for level in judged.iter_mut().filter(|level| level.verdict == Verdict::Pass) {
        let failure = failed_latency(&level.summary, policy, reference_p95)
            .or_else(|| shrunk_output(&level.summary, median_tokens));
        if let Some(why) = failure {
            level.verdict = Verdict::Fail;
            level.why = why;
        }
    }
    judged
}

fn passing(levels: &[JudgedLevel]) -> impl Iterator<Item = &JudgedLevel> {
    levels.iter().filter(|level| level.verdict == Verdict::Pass)
}

/// Validity and the error gate.
fn judge_errors(summary: LevelSummary, policy: &Policy) -> JudgedLevel {
    let failed = failed_requests(&summary);
    let error_rate_interval = failed.zip(summary.requests).and_then(|(failed, n)| wilson(failed, n));
    let (verdict, why) = if let Some(why) = unusable(&summary) {
        (Verdict::NotUsed, why)
    } else if let Some(rate) = summary.error_rate.filter(|&rate| rate >= policy.max_error_rate) {
        (Verdict::Fail, format!("error rate {} is not below {}", percent(rate), percent(policy.max_error_rate)))
    } else {
        (Verdict::Pass, uncertain_errors(error_rate_interval, policy))
    };
    JudgedLevel { verdict, why, error_rate_interval, summary }
}

fn failed_requests(summary: &LevelSummary) -> Option<u64> {
    Some(summary.requests?.saturating_sub(summary.succeeded?))
}

fn unusable(summary: &LevelSummary) -> Option<String> {
    let level = summary.concurrency as u64;
    match summary.state {
        Some(LevelState::Cut) => return Some("interrupted before it was complete".to_owned()),
        // Too few requests for a figure, but enough to see that it fails.
        Some(LevelState::Hopeless) => return None,
        _ => {}
    }
    let smallest = USABLE.0.max(USABLE.1 * level);
    if let Some(n) = summary.requests.filter(|&n| n < smallest) {
        return Some(format!("n = {n}, at least {smallest} are needed"));
    }
    if summary.throughput_rps.is_none() {
        return Some("no throughput".to_owned());
    }
    None
}

fn uncertain_errors(interval: Option<[f64; 2]>, policy: &Policy) -> String {
    match interval {
        Some([low, high]) if high >= policy.max_error_rate && low > 0.0 => {
            format!("error rate uncertain: {} to {}", percent(low), percent(high))
        }
        _ => String::new(),
    }
}

/// P95 and P99 as the gates see them.
fn gate_latency(summary: &LevelSummary) -> (Option<f64>, Option<f64>) {
    let latency = summary.gate_latency_s.or(summary.latency_s).unwrap_or_default();
    (latency.p95, latency.p99)
}

fn failed_latency(summary: &LevelSummary, policy: &Policy, reference_p95: Option<f64>) -> Option<String> {
    let (p95, p99) = gate_latency(summary);
    if let (Some(p95), Some(limit)) = (p95, policy.max_p95_seconds)
        && p95 > limit
    {
        return Some(format!("P95 {} is above max_p95_seconds {}", seconds(p95), seconds(limit)));
    }
    if let (Some(p95), Some(reference), None) = (p95, reference_p95, policy.max_p95_seconds)
        && p95 > DEFAULT_P95_FACTOR * reference
    {
        return Some(format!(
            "P95 {} is above {DEFAULT_P95_FACTOR} x {} of the lowest level",
            seconds(p95),
            seconds(reference)
        ));
    }
    let enough = summary.requests.is_some_and(|n| n >= SMALLEST_N_FOR_P99);
    if let (Some(p99), Some(limit), true) = (p99, policy.max_p99_seconds, enough)
        && p99 > limit
    {
        return Some(format!("P99 {} is above max_p99_seconds {}", seconds(p99), seconds(limit)));
    }
    None
}

fn shrunk_output(summary: &LevelSummary, median: Option<f64>) -> Option<String> {
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
    if let Some(reason) = rate_limited(levels) {
        return Decision::none(Status::RateLimited, reason);
    }
    let candidates: Vec<Candidate> = levels
        .iter()
        .enumerate()
        .filter(|(_, level)| level.verdict == Verdict::Pass)
        .filter_map(|(at, level)| Candidate::new(at, level, policy))
        .collect();
    let Some(pick) = pick(&candidates, policy.tolerance) else {
        return Decision::none(Status::NoQualifyingLevel, nothing_qualifies(levels));
    };
    let used: Vec<usize> = (0..levels.len()).filter(|&at| levels[at].verdict != Verdict::NotUsed).collect();
    if used.len() < 2 {
        return Decision::none(
            Status::Unresolved,
            "only one level could be used, and one level says nothing about the others: measure at least two",
        );
    }
    let picks = resampled_picks(&candidates, policy.tolerance);
    let interval = Some([levels[picks[0]].summary.concurrency, levels[picks[1]].summary.concurrency]);
    let noise = half_width(&levels[pick].summary);
    if picks[1] - picks[0] + 1 > WIDEST_INTERVAL && noise.is_some_and(|noise| noise > NOISY_HALF_WIDTH) {
        return Decision {
            interval,
            ..Decision::none(
                Status::Unresolved,
                format!(
                    "too noisy: the pick lies anywhere from {} to {}, with throughput known only to ±{}; measure more \
                     requests (benchmark.total_requests) or on a quieter server",
                    levels[picks[0]].summary.concurrency,
                    levels[picks[1]].summary.concurrency,
                    percent(noise.unwrap_or_default()),
                ),
            )
        };
    }
    let (status, reason) = explain_pick(levels, &used, &candidates, pick, policy);
    Decision { status, pick: Some(pick), interval, reason }
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
        let summary = &level.summary;
        let value = match policy.objective {
            Objective::Requests => summary.throughput_rps?.estimate,
            Objective::OutputTokens => summary.output_tps?,
        };
        Some(Candidate { at, value, blocks: block_rates(summary) })
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

fn smallest_good(values: impl Iterator<Item = (usize, f64)> + Clone, tolerance: f64) -> Option<usize> {
    let best = values.clone().map(|(_, value)| value).max_by(f64::total_cmp)?;
    values.filter(|(_, value)| *value >= (1.0 - tolerance) * best).map(|(at, _)| at).next()
}

/// Ends of the central 95 % of the picks when each level's blocks are resampled with replacement.
///
/// The gates are held fixed. Levels without blocks keep their point estimate.
fn resampled_picks(candidates: &[Candidate], tolerance: f64) -> [usize; 2] {
    let mut rng = StdRng::seed_from_u64(42);
    let mut picks: Vec<usize> = (0..RESAMPLES)
        .filter_map(|_| {
            let values: Vec<_> = candidates.iter().map(|c| (c.at, resample(c, &mut rng))).collect();
            smallest_good(values.into_iter(), tolerance)
        })
        .collect();
    picks.sort_unstable();
    let tail = RESAMPLES / 40;
    [picks[tail], picks[RESAMPLES - 1 - tail]]
}

/// The candidate's value with its blocks drawn anew: scaled by the ratio of the drawn mean to the original mean.
fn resample(candidate: &Candidate, rng: &mut StdRng) -> f64 {
    let blocks = &candidate.blocks;
    let original: f64 = blocks.iter().sum();
    if original <= 0.0 {
        return candidate.value;
    }
    let drawn: f64 = (0..blocks.len()).map(|_| blocks[rng.random_range(0..blocks.len())]).sum();
    candidate.value * drawn / original
}

/// Relative half-width of the level's throughput interval.
fn half_width(summary: &LevelSummary) -> Option<f64> {
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
        return (
            Status::NotSaturated,
            format!(
                "throughput still rises at {level}, the highest level tested: the optimum is at least {level}; raise \
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
    let best = candidates.iter().max_by(|a, b| a.value.total_cmp(&b.value)).map_or(pick, |c| c.at);
    let share = |at: usize| candidates.iter().find(|c| c.at == at).map_or(f64::NAN, |c| c.value);
    (
        Status::Ok,
        format!(
            "the smallest level within {} of the best throughput ({} of that at {})",
            percent(policy.tolerance),
            percent(share(pick) / share(best)),
            levels[best].summary.concurrency
        ),
    )
}

/// A quota is the limit if 429s are most of the failures and made a level fail.
fn rate_limited(levels: &[JudgedLevel]) -> Option<String> {
    let (mut limited, mut failed) = (0, 0);
    for level in levels {
        limited += level.summary.failures.get("RateLimited").copied().unwrap_or_default();
        failed += level.summary.failures.values().sum::<u64>();
    }
    let gate_failed = levels.iter().any(|level| level.verdict == Verdict::Fail);
    if !gate_failed || limited * 2 <= failed {
        return None;
    }
    let passed = levels
        .iter()
        .filter_map(|level| level.summary.throughput_rps.map(|t| t.estimate))
        .max_by(f64::total_cmp)
        .unwrap_or_default();
    Some(format!(
        "{limited} of {failed} failures are HTTP 429: a quota is the limit, not concurrency; about {passed:.2} requests \
         per second passed. Keep to that rate (or ask for a higher quota) instead of tuning the concurrency"
    ))
}

fn nothing_qualifies(levels: &[JudgedLevel]) -> String {
    if levels.is_empty() {
        return "no level was measured".to_owned();
    }
    let mut text = "no level passes the gates".to_owned();
    if levels[0].verdict == Verdict::Fail {
        let _ = write!(
            text,
            "; the lowest level, {}, fails as well ({}), so concurrency is not the cause",
            levels[0].summary.concurrency, levels[0].why
        );
    }
    text
}

// ---- what is said beside it ----

fn level_notes(levels: &[JudgedLevel], policy: &Policy) -> Vec<String> {
    let mut notes = Vec::new();
    for level in levels {
        let summary = &level.summary;
        let n = summary.concurrency;
        if let Some(reached) = summary.mean_in_flight.filter(|&m| m < REACHED * n as f64) {
            notes.push(format!("level {n} never ran at its concurrency: {reached:.1} in flight on average"));
        }
        notes.extend(summary.notes.iter().map(|note| format!("level {n}: {note}")));
    }
    notes.extend(price_of_default_p95(levels, policy));
    notes
}

/// What the P95 gate nobody asked for costs in throughput.
fn price_of_default_p95(levels: &[JudgedLevel], policy: &Policy) -> Option<String> {
    if policy.max_p95_seconds.is_some() {
        return None;
    }
    let value = |level: &JudgedLevel| level.summary.throughput_rps.map(|t| t.estimate);
    let best = passing(levels).filter_map(value).max_by(f64::total_cmp)?;
    let rejected = levels
        .iter()
        .filter(|level| level.verdict == Verdict::Fail && level.why.starts_with("P95"))
        .filter_map(|level| Some((level, value(level)?)))
        .max_by(|a, b| a.1.total_cmp(&b.1))?;
    (rejected.1 > best).then(|| {
        format!(
            "the P95 gate costs {} of throughput (level {} reached {:.2} requests/s); set policy.max_p95_seconds to \
             choose the limit yourself",
            percent(1.0 - best / rejected.1),
            rejected.0.summary.concurrency,
            rejected.1
        )
    })
}

/// Which checks could not be made on the pick. Any of them makes the result provisional.
fn missing_checks(level: &JudgedLevel, policy: &Policy) -> Vec<String> {
    let summary = &level.summary;
    let n = summary.concurrency;
    let mut missing = Vec::new();
    match summary.requests {
        None => missing.push(format!("level {n}: the number of requests is unknown, so its size was not checked")),
        Some(requests) if requests < full_size(n) => missing.push(format!(
            "level {n} was measured with {requests} requests; a full result takes at least {}",
            full_size(n)
        )),
        Some(_) => {}
    }
    if summary.error_rate.is_none() {
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

fn full_size(level: usize) -> u64 {
    FULL.0.max(FULL.1 * level as u64)
}

fn is_provisional(level: &JudgedLevel, policy: &Policy) -> bool {
    !missing_checks(level, policy).is_empty()
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

pub(crate) fn percent(rate: f64) -> String {
    format!("{:.2} %", rate * 100.0)
}

pub(crate) fn seconds(s: f64) -> String {
    if s < 1.0 { format!("{:.0} ms", s * 1000.0) } else { format!("{s:.2} s") }
}
