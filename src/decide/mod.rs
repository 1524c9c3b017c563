//! Level summaries and a policy to a recommendation. Pure: no clock, no files.
//!
//! The rule: among the levels that pass every gate, the **smallest** one whose throughput is within `tolerance` of
//! the best. An argmax would pay twice the tail latency for a percent that is mostly noise.

pub mod causes;
pub mod compare;
mod gates;
mod notes;
mod outages;
mod pick;
mod quota;

use serde::{Deserialize, Serialize};

pub use causes::{Cause, Note, Reason};
pub use notes::p95_limit_s;

pub(crate) use gates::{DEFAULT_P95_FACTOR, value};
pub(crate) use outages::open_outages;
pub(crate) use pick::{best_passing, half_width, smallest_good};

use crate::figures::usl::{self, Usl};
use crate::figures::{BLOCKS, LevelSummary};

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
    #[serde(default)]
    pub causes: Vec<Cause>,
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
    /// Why.
    #[serde(rename = "cause")]
    pub reason: Reason,
    /// The best level, where this client was the limit there: the server may do more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_bound_at: Option<usize>,
    /// Whether the server changed its speed in the course of the run.
    #[serde(default)]
    pub drift: DriftCheck,
    /// What else is worth knowing.
    #[serde(default, rename = "findings")]
    pub notes: Vec<Note>,
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

/// Requests, fixed and per level: below these the result is provisional.
const FULL: (u64, u64) = (100, 10);

/// Decides. `levels` may come in any order; a level should be there once. Figures that cannot be (not finite,
/// negative, a rate above 1) count as unknown.
pub fn recommend(levels: &[LevelSummary], policy: &Policy) -> Recommendation {
    let mut sorted: Vec<_> = levels.iter().cloned().map(LevelSummary::without_impossible).collect();
    sorted.sort_by_key(|level| level.concurrency);
    let judged = gates::judge_all(sorted, policy);
    let mut notes = notes::level_notes(&judged, policy);
    let decision = pick::decide(&judged, policy);
    let pick = decision.pick.and_then(|at| judged.get(at));
    let missing = notes::missing_checks(&judged, pick, policy);
    let provisional = pick.is_some() && !missing.is_empty();
    notes.extend(missing);
    let drift = pick::drift_check(&judged);
    if drift == DriftCheck::NotChecked && pick.is_some() && decision.interval.is_some_and(|[low, high]| low < high) {
        notes.push(Note::DriftNotChecked);
    }
    let (usl, usl_note) = fit_usl(&judged);
    notes.extend(usl_note);
    Recommendation {
        status: decision.status,
        recommended_concurrency: pick.map(|level| level.summary.concurrency),
        interval: decision.interval,
        provisional,
        simulated: false,
        client_bound_at: pick.and_then(|_| client_bound_at(&judged, policy)),
        reason: decision.reason,
        drift,
        notes,
        usl,
        low_latency_alternative: low_latency_alternative(&judged),
        levels: judged,
    }
}

pub(crate) fn passing(levels: &[JudgedLevel]) -> impl Iterator<Item = &JudgedLevel> {
    levels.iter().filter(|level| level.verdict == Verdict::Pass)
}

/// The throughputs of a level's measurements, as their blocks have it.
pub(crate) fn measurements(summary: &LevelSummary) -> Vec<f64> {
    summary.blocks_rps.chunks_exact(BLOCKS).map(|blocks| blocks.iter().sum::<f64>() / BLOCKS as f64).collect()
}

fn client_bound_at(levels: &[JudgedLevel], policy: &Policy) -> Option<usize> {
    let (best, _) = best_passing(levels, policy)?;
    pick::client_bound(&best.summary).map(|_| best.summary.concurrency)
}

/// Whether a level was measured with as many requests as a full result takes.
pub(crate) fn is_full_size(summary: &LevelSummary) -> bool {
    summary.requests.is_some_and(|requests| requests >= size(summary.concurrency, FULL))
}

/// The larger of a fixed number of requests and so many times the level.
fn size(level: usize, (fixed, times): (u64, u64)) -> u64 {
    fixed.max(times.saturating_mul(level as u64))
}

fn fit_usl(levels: &[JudgedLevel]) -> (Option<UslInfo>, Option<Note>) {
    let points: Vec<(f64, f64)> = passing(levels)
        .filter_map(|level| Some((level.summary.concurrency as f64, level.summary.throughput_rps?.estimate)))
        .collect();
    match usl::fit(&points) {
        Ok(fit) => (Some(fit.into()), None),
        Err(error) => (None, Some(Note::NoCurve { why: error.to_string() })),
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
    crate::figures::quantile(values.len() as u64, 0.5, |rank| values[rank as usize])
}
