//! Level summaries and a policy to a recommendation. Pure: no clock, no files.
//!
//! The rule: among the levels that pass every gate, the **smallest** one whose throughput is within `tolerance` of
//! the best. An argmax would pay twice the tail latency for a percent that is mostly noise. After a race
//! (`measure::race`) the pick is the race's, and this module holds it against the gates and the levels measured in full.

pub mod causes;
pub mod compare;
pub mod duet;
mod gates;
mod notes;
mod outages;
mod pick;
mod quota;
pub mod recheck;
pub mod verify;

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use causes::{Cause, Note, Reason};
pub use gates::{error_rate, gate_times, known_p99};
pub use notes::p95_limit_s;

pub use gates::value;
pub use outages::open_outages;
pub use pick::best_passing;

pub(crate) use gates::{DEFAULT_P95_FACTOR, FEWEST_FOR_P99};
pub(crate) use pick::half_width;

use crate::figures::usl::{self, Usl};
use crate::figures::{BLOCKS, Distribution, LevelSummary, Slo};

/// What the decision maximises: successful requests per second, output tokens per second, or the requests per second that
/// meet `policy.slo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    #[default]
    Requests,
    OutputTokens,
    Goodput,
}

impl Objective {
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Objective::Requests => "requests/s",
            Objective::OutputTokens => "output tokens/s",
            Objective::Goodput => "requests/s within policy.slo",
        }
    }
}

/// The section `policy` of config.yaml.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    pub objective: Objective,
    /// A level passes while failures / requests stay strictly below this.
    pub max_error_rate: f64,
    /// Without one, five times the P95 of the lowest level that passes all gates but those on times.
    pub max_p95_seconds: Option<f64>,
    /// Not gated without one.
    pub max_p99_seconds: Option<f64>,
    /// Not gated without one; with one a level of unknown TTFT does not pass.
    pub max_ttft_p95_seconds: Option<f64>,
    /// The same of the time per output token.
    pub max_tpot_p95_seconds: Option<f64>,
    /// Not gated without one; with one a level at which a time that it limits is unknown does not pass.
    pub slo: Option<Slo>,
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
            max_ttft_p95_seconds: None,
            max_tpot_p95_seconds: None,
            slo: None,
            tolerance: 0.05,
        }
    }
}

impl Policy {
    /// The gates on times, each with its limit in seconds where one is set.
    pub fn limits(&self) -> [(TimeGate, Option<f64>); 4] {
        [
            (TimeGate::P95, self.max_p95_seconds),
            (TimeGate::P99, self.max_p99_seconds),
            (TimeGate::TtftP95, self.max_ttft_p95_seconds),
            (TimeGate::TpotP95, self.max_tpot_p95_seconds),
        ]
    }
}

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
    Unresolved,
    NoQualifyingLevel,
}

impl Status {
    /// Whether such a result may be written into a config.
    pub fn may_patch(self) -> bool {
        matches!(self, Status::Ok | Status::NotSaturated | Status::LimitedByGate | Status::AtOrBelowLowest)
    }
}

/// As files have it.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
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
    /// The share of the requests that meet `policy.slo`.
    Attainment,
    #[serde(untagged)]
    Time(TimeGate),
}

/// A limit on a percentile of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeGate {
    P95,
    P99,
    TtftP95,
    TpotP95,
}

impl TimeGate {
    /// The key of its limit in config.yaml.
    pub fn key(self) -> &'static str {
        match self {
            TimeGate::P95 => "policy.max_p95_seconds",
            TimeGate::P99 => "policy.max_p99_seconds",
            TimeGate::TtftP95 => "policy.max_ttft_p95_seconds",
            TimeGate::TpotP95 => "policy.max_tpot_p95_seconds",
        }
    }

    /// Its percentile, of a latency, a TTFT and a TPOT.
    pub fn of(self, [latency, ttft, tpot]: [Option<Distribution>; 3]) -> Option<f64> {
        match self {
            TimeGate::P95 => latency?.p95,
            TimeGate::P99 => latency?.p99,
            TimeGate::TtftP95 => ttft?.p95,
            TimeGate::TpotP95 => tpot?.p95,
        }
    }

    /// Whether only streamed answers have that time.
    pub fn needs_streaming(self) -> bool {
        matches!(self, TimeGate::TtftP95 | TimeGate::TpotP95)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgedLevel {
    pub verdict: Verdict,
    /// The gate it fails.
    pub gate: Option<Gate>,
    /// Empty for a plain pass.
    #[serde(default)]
    pub causes: Vec<Cause>,
    /// The 95 % Wilson interval.
    pub error_rate_interval: Option<[f64; 2]>,
    /// The interval of the figure that decided spans its limit: with other requests the verdict might be another.
    #[serde(default)]
    pub uncertain: bool,
    #[serde(flatten)]
    pub summary: LevelSummary,
}

/// What a file has of a judged level beside its figures: these fields, and the causes in words.
pub(crate) const OF_VERDICT: [&str; 6] = ["verdict", "gate", "causes", "why", "error_rate_interval", "uncertain"];

impl JudgedLevel {
    pub fn throughput(&self) -> Option<f64> {
        self.summary.throughput_rps.map(|throughput| throughput.estimate)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recommendation {
    pub status: Status,
    pub recommended_concurrency: Option<usize>,
    /// Central 95 % of the picks when the measurements are resampled.
    pub interval: Option<[usize; 2]>,
    /// Printed, but not written without `--allow-provisional`.
    pub provisional: bool,
    /// The embedded simulator was measured: the figures say nothing about any other server.
    #[serde(default)]
    pub simulated: bool,
    #[serde(rename = "cause")]
    pub reason: Reason,
    /// The best level, where this client was the limit there: the server may do more.
    pub client_bound_at: Option<usize>,
    #[serde(default, rename = "findings")]
    pub notes: Vec<Note>,
    /// Ascending.
    pub levels: Vec<JudgedLevel>,
    /// The fitted Universal Scalability Law; information only.
    pub usl: Option<Usl>,
    /// The passing level with the most throughput per second of latency; information only.
    pub low_latency_alternative: Option<usize>,
}

impl Recommendation {
    pub fn level(&self, concurrency: usize) -> Option<&JudgedLevel> {
        self.levels.iter().find(|level| level.summary.concurrency == concurrency)
    }

    pub fn chosen(&self) -> Option<&JudgedLevel> {
        self.level(self.recommended_concurrency?)
    }

    /// As a results file records it: as data, and beside that in words, which stand for data that this version does not
    /// know.
    pub fn recorded(mut value: Value) -> Option<Self> {
        fn reads<T: DeserializeOwned>(data: Option<&Value>) -> bool {
            data.is_none_or(|data| T::deserialize(data).is_ok())
        }
        let other = |words: Option<&Value>| json!({"kind": "other", "text": words});
        let file = value.as_object_mut()?;
        if !reads::<Reason>(file.get("cause")) {
            file.insert("cause".to_owned(), other(file.get("reason")));
        }
        let words = file.remove("notes").unwrap_or_default();
        for (at, note) in file.get_mut("findings").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
            if !reads::<Note>(Some(&*note)) {
                *note = other(words.get(at));
            }
        }
        for level in file.get_mut("levels").and_then(Value::as_array_mut).into_iter().flatten() {
            let level = level.as_object_mut()?;
            let words = level.remove("why");
            if !reads::<Vec<Cause>>(level.get("causes")) {
                level.insert("causes".to_owned(), json!([other(words.as_ref())]));
            }
        }
        serde_json::from_value(value).ok()
    }
}

/// What a race over the levels came to, by the policy of its run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Raced {
    pub pick: Option<usize>,
    /// The levels that may be the smallest good one.
    pub interval: [usize; 2],
    /// Whether it ended because the answer stood, and not for want of requests.
    pub decided: bool,
    /// Until then the engine was cold, seconds since the run began; 0 where it was not.
    #[serde(default)]
    pub warm_from_s: f64,
}

/// Requests, fixed and per level: below these the result is provisional.
const FULL: (u64, u64) = (100, 10);

/// Decides. `levels` may come in any order; a level should be there once. Figures that cannot be (not finite,
/// negative, a rate above 1) count as unknown.
pub fn recommend(levels: &[LevelSummary], policy: &Policy) -> Recommendation {
    recommend_after(None, levels, policy)
}

/// The verdicts of the gates, ascending by level. A race takes few requests for an answer.
pub(crate) fn judge(levels: &[LevelSummary], policy: &Policy, raced: bool) -> Vec<JudgedLevel> {
    let mut sorted: Vec<_> = levels.iter().cloned().map(LevelSummary::without_impossible).collect();
    sorted.sort_by_key(|level| level.concurrency);
    gates::judge_all(sorted, policy, raced)
}

/// The same after a race by this policy, which has chosen, and knows better how sure that is.
pub fn recommend_after(raced: Option<&Raced>, levels: &[LevelSummary], policy: &Policy) -> Recommendation {
    let judged = judge(levels, policy, raced.is_some());
    let mut notes = notes::level_notes(&judged, policy);
    let cold_s = raced.map(|raced| raced.warm_from_s).filter(|&cold_s| cold_s > 0.0);
    notes.extend(cold_s.map(|seconds| Note::ColdStart { seconds }));
    let decision = pick::decide(&judged, policy, raced);
    let pick = decision.pick.and_then(|at| judged.get(at));
    let by_race = pick.filter(|_| raced.is_some());
    notes.extend(by_race.and_then(|pick| notes::may_do(&judged, pick, decision.interval, policy)));
    let missing = notes::missing_checks(&judged, pick, policy, raced.is_some());
    let provisional = pick.is_some() && !missing.is_empty();
    notes.extend(missing);
    let usl = fit_usl(&judged).map_err(|note| notes.push(note)).ok();
    Recommendation {
        status: decision.status,
        recommended_concurrency: pick.map(|level| level.summary.concurrency),
        interval: decision.interval,
        provisional,
        simulated: false,
        client_bound_at: pick.and_then(|_| client_bound_at(&judged, policy)),
        reason: decision.reason,
        notes,
        usl,
        low_latency_alternative: low_latency_alternative(&judged),
        levels: judged,
    }
}

pub fn passing(levels: &[JudgedLevel]) -> impl Iterator<Item = &JudgedLevel> {
    levels.iter().filter(|level| level.verdict == Verdict::Pass)
}

/// The throughputs of a level's measurements, as their blocks have it.
pub fn measurements(summary: &LevelSummary) -> Vec<f64> {
    summary.blocks_rps.chunks_exact(BLOCKS).map(|blocks| blocks.iter().sum::<f64>() / BLOCKS as f64).collect()
}

/// Of a level's throughput by its 95 % interval, relative; 0 without one.
fn standard_error(summary: &LevelSummary) -> f64 {
    half_width(summary).unwrap_or_default() / 1.96
}

/// Squared deviations from the mean of each group, added up, and their degrees of freedom.
fn deviations(groups: impl Iterator<Item = Vec<f64>>) -> (f64, f64) {
    groups.filter(|group| group.len() > 1).fold((0.0, 0.0), |(squares, freedom), group| {
        let mean = group.iter().sum::<f64>() / group.len() as f64;
        let of_group = group.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        (squares + of_group, freedom + (group.len() - 1) as f64)
    })
}

fn client_bound_at(levels: &[JudgedLevel], policy: &Policy) -> Option<usize> {
    let (best, _) = best_passing(levels, policy.objective)?;
    pick::client_bound(&best.summary).map(|_| best.summary.concurrency)
}

/// The larger of a fixed number of requests and a multiple of the level.
fn size(level: usize, (fixed, times): (u64, u64)) -> u64 {
    fixed.max(times.saturating_mul(level as u64))
}

fn fit_usl(levels: &[JudgedLevel]) -> Result<Usl, Note> {
    let points: Vec<(f64, f64)> =
        passing(levels).filter_map(|level| Some((level.summary.concurrency as f64, level.throughput()?))).collect();
    usl::fit(&points).map_err(|error| Note::NoCurve { why: error.to_string() })
}

fn low_latency_alternative(levels: &[JudgedLevel]) -> Option<usize> {
    let power = |level: &JudgedLevel| {
        let latency = level.summary.latency_s?.mean.filter(|&mean| mean > 0.0)?;
        Some((level.summary.concurrency, level.throughput()? / latency))
    };
    passing(levels).filter_map(power).max_by(|a, b| a.1.total_cmp(&b.1)).map(|(level, _)| level)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    crate::figures::quantile(values.len() as u64, 0.5, |rank| values[rank as usize])
}
