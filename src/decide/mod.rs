//! Turns level summaries and a policy into a recommendation. Pure: no clock, no files.
//!
//! The rule: among the levels that pass every gate, the **smallest** one whose throughput is within `tolerance`
//! of the best. The maximum itself may double the tail latency for a percent that is mostly noise. After a race
//! (`measure::race`), its pick is checked against the gates and against the levels measured in full.

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

/// What the decision maximises: successful requests per second, output tokens per second, or requests per second that
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
    /// A level passes while failures / requests is strictly below this.
    pub max_error_rate: f64,
    /// By default, five times the P95 of the lowest level that passes the other gates and has enough requests.
    pub max_p95_seconds: Option<f64>,
    /// `None`: no gate.
    pub max_p99_seconds: Option<f64>,
    /// `None`: no gate. Otherwise a level whose TTFT is unknown fails.
    pub max_ttft_p95_seconds: Option<f64>,
    /// The same for the time per output token.
    pub max_tpot_p95_seconds: Option<f64>,
    /// `None`: no gate. Otherwise a level at which one of the limited times is unknown fails.
    pub slo: Option<Slo>,
    /// How far below the best value a level may be and still be picked, as a fraction.
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
    /// The time gates, each with its limit in seconds if one is set.
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
    /// Whether a result with this status may be written to the config file.
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
    /// Too little data to judge the level.
    NotUsed,
}

/// A check that a level must pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// The error rate; a level that was given up fails it, too.
    Errors,
    /// The length of the answers compared with that at the other levels.
    Output,
    /// The share of requests that meet `policy.slo`.
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
    /// The key of the limit in config.yaml.
    pub fn key(self) -> &'static str {
        match self {
            TimeGate::P95 => "policy.max_p95_seconds",
            TimeGate::P99 => "policy.max_p99_seconds",
            TimeGate::TtftP95 => "policy.max_ttft_p95_seconds",
            TimeGate::TpotP95 => "policy.max_tpot_p95_seconds",
        }
    }

    /// The percentile that this gate checks, from the distributions of latency, TTFT and TPOT.
    pub fn of(self, [latency, ttft, tpot]: [Option<Distribution>; 3]) -> Option<f64> {
        match self {
            TimeGate::P95 => latency?.p95,
            TimeGate::P99 => latency?.p99,
            TimeGate::TtftP95 => ttft?.p95,
            TimeGate::TpotP95 => tpot?.p95,
        }
    }

    /// Whether only streamed answers have this time.
    pub fn needs_streaming(self) -> bool {
        matches!(self, TimeGate::TtftP95 | TimeGate::TpotP95)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgedLevel {
    pub verdict: Verdict,
    /// The gate that the level fails.
    pub gate: Option<Gate>,
    /// Empty for a plain pass.
    #[serde(default)]
    pub causes: Vec<Cause>,
    /// The 95 % Wilson interval.
    pub error_rate_interval: Option<[f64; 2]>,
    /// Whether the interval of the deciding figure spans its limit: another sample might change the verdict.
    #[serde(default)]
    pub uncertain: bool,
    #[serde(flatten)]
    pub summary: LevelSummary,
}

/// The fields of a judged level in a file besides its figures. `why` is the causes in words.
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
    /// 95 % interval of the pick: from resampling the measurements, or from the race.
    pub interval: Option<[usize; 2]>,
    /// Whether the pick is printed, but not written without `--allow-provisional`.
    pub provisional: bool,
    /// Whether the embedded simulator was measured: its figures say nothing about any other server.
    #[serde(default)]
    pub simulated: bool,
    #[serde(rename = "cause")]
    pub reason: Reason,
    /// The best level, if this client was the limit there: the server may do better.
    pub client_bound_at: Option<usize>,
    #[serde(default, rename = "findings")]
    pub notes: Vec<Note>,
    /// In ascending order.
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

    /// Reads the recommendation in a results file. Its words stand in for data that this version
    /// does not know.
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

/// The outcome of a race among the levels, under the policy of its run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Raced {
    pub pick: Option<usize>,
    /// The range of levels that may be the smallest good one.
    pub interval: [usize; 2],
    /// Whether the answer was sure enough when the race ended.
    pub decided: bool,
    /// When the engine had warmed up, in seconds since the run began; 0 if it was never cold.
    #[serde(default)]
    pub warm_from_s: f64,
}

/// Number of requests below which a result is provisional: the larger of a fixed number and a multiple of the level.
const FULL: (u64, u64) = (100, 10);

/// Makes the recommendation. `levels` may be in any order, with each level once. Impossible figures
/// (not finite, negative, a rate above 1) count as unknown.
pub fn recommend(levels: &[LevelSummary], policy: &Policy) -> Recommendation {
    recommend_after(None, levels, policy)
}

/// The gates' verdicts, ascending by level. After a race (`raced`), fewer requests per level are enough.
pub(crate) fn judge(levels: &[LevelSummary], policy: &Policy, raced: bool) -> Vec<JudgedLevel> {
    let mut sorted: Vec<_> = levels.iter().cloned().map(LevelSummary::without_impossible).collect();
    sorted.sort_by_key(|level| level.concurrency);
    gates::judge_all(sorted, policy, raced)
}

/// The same after a race under this policy, which provides the pick and its interval.
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

/// The throughput of each measurement of a level: the mean over its blocks.
pub fn measurements(summary: &LevelSummary) -> Vec<f64> {
    summary.blocks_rps.chunks_exact(BLOCKS).map(|blocks| blocks.iter().sum::<f64>() / BLOCKS as f64).collect()
}

/// Relative standard error of a level's throughput, from its 95 % interval; 0 without one.
fn standard_error(summary: &LevelSummary) -> f64 {
    half_width(summary).unwrap_or_default() / 1.96
}

/// Sum of the squared deviations from each group's mean, and the degrees of freedom.
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
