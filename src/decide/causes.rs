//! Why a level passes or fails, why a number was chosen or none, and what else is worth knowing: as data with the
//! figures in it, which `report::words` turns into English. Rates are fractions, times seconds.
//!
//! `Other` is what another version of this program recorded and this one does not know, in the words that stood beside it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Gate, Objective, TimeGate};
use crate::client::outcome::RateLimit;
use crate::figures::{EarlyEnd, LeftOut, Outage};

/// Why a level has its verdict. `uncertain` is the interval of the figure, where that spans the limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cause {
    Interrupted,
    LevelZero,
    TooFewRequests { requests: u64, least: u64 },
    NoValue { objective: Objective },
    ErrorRate { rate: f64, limit: f64, uncertain: Option<[f64; 2]>, outage: Option<Outage> },
    ErrorRateUncertain { interval: [f64; 2] },
    GivenUp { why: Option<EarlyEnd> },
    EndedAtOnce { answers: u64, of: u64 },
    OutputShrank { tokens: f64, median: f64 },
    TooSlow { gate: TimeGate, value: f64, limit: Limit, uncertain: Option<[f64; 2]> },
    Unknown { gate: Gate },
    MaybeTooSlow { gate: TimeGate, interval: [f64; 2], limit: Limit },
    // The share of the requests that met `policy.slo`, and the share that should.
    TooFewMet { share: f64, least: f64, uncertain: Option<[f64; 2]> },
    MaybeTooFewMet { interval: [f64; 2], least: f64 },
    Other { text: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    pub seconds: f64,
    /// How well it is known: the default limit is a multiple of a measured P95.
    pub interval: [f64; 2],
    /// The level whose P95 it is a multiple of, and that P95; none where the user set the limit.
    pub from: Option<(usize, f64)>,
}

/// Why this level was chosen, or none.
///
/// `of_best` is its share of the best and where that is, none where it is the best itself; `is_highest` whether no higher
/// level was tested, rather than none that could be used; `half_width` that of the pick's throughput, relative; `lowest`
/// the lowest level, where there is one that fails.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    WithinTolerance { objective: Objective, tolerance: f64, of_best: Option<(f64, usize)> },
    ByVisits { objective: Objective, tolerance: f64 },
    NotDecided { interval: Option<[usize; 2]> },
    StillRising { level: usize, is_highest: bool },
    LastPassing { level: usize, failed: usize, causes: Vec<Cause> },
    LowestTested { level: usize },
    NothingUsable { lowest: Option<(usize, Vec<Cause>)> },
    OneLevel,
    NothingQualifies { lowest: Option<(usize, Vec<Cause>)> },
    TooNoisy { interval: [usize; 2], half_width: f64 },
    Quota(QuotaReached),
    Other { text: String },
}

/// A quota that was the limit, as far as it shows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuotaReached {
    /// Failures by HTTP 429 at the levels that fail on errors.
    pub limited: u64,
    pub failed: u64,
    /// As its headers have it.
    #[serde(alias = "stated", alias = "said")]
    pub server_limit: RateLimit,
    /// What passed at the highest level that was limited, where that is a rate.
    pub passed: Option<Passed>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Passed {
    pub level: usize,
    pub rps: f64,
    pub tokens_per_minute: Option<f64>,
    /// Whether the tokens of the prompts are among them.
    pub with_prompts: bool,
    /// By Little's law: this many in parallel are enough for that rate, at this latency of this level.
    pub enough: Option<(usize, f64, usize)>,
}

/// How this client, not the server, was the limit; each figure with the most that is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum ClientLimit {
    Cpu { cores: f64, most: f64 },
    Timers { late_s: f64, most_s: f64 },
}

/// What else is worth knowing: of levels, of the run as a whole, and of its files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Note {
    // Requests in flight, and permits held back after failures, on average.
    BelowConcurrency { level: usize, in_flight: f64, held: Option<f64> },
    ClientBound { level: usize, limit: ClientLimit },
    EndedAtOnce { level: usize, answers: u64 },
    SetAside { level: usize, outage: Outage },
    // What the P95 gate that nobody asked for costs: the best it fails beside the best that passes.
    PriceOfP95 { level: usize, reached: f64, best: f64, objective: Objective },
    ServerLimitUnchecked { level: usize },
    // It shows as much as the level that was chosen, by so few requests that it is not sure.
    MayDo { level: usize, requests: Option<u64> },
    Small { level: usize, requests: Option<u64>, full: u64 },
    // The gate's figure is unknown, or takes at least this many requests.
    Unchecked { level: usize, gate: Gate, least: Option<u64> },
    NoSpread { levels: Vec<usize> },
    OpenOutage { level: usize, outage: Outage },
    // The engine was slow at first, for so long.
    ColdStart { seconds: f64 },
    // The same within the first level that was measured in full, before its own window.
    LeftOutCold { level: usize, left_out: LeftOut },
    NoCurve { why: String },
    Quick,
    UnlistedModel,
    Stopped { level: usize, why: EarlyEnd },
    // This key of `benchmark.budget` has no room for them.
    NoRoom { levels: Vec<usize>, again: bool, key: String },
    LeftOut { levels: Vec<usize> },
    SeveralRuns { runs: Vec<String> },
    Unreadable { error: String },
    // Requests per second by Criterion's mean, and by the records.
    CriterionDiffers { level: usize, criterion: f64, records: f64 },
    NoRecordOf { level: usize, error: String },
    NoRecords { folder: PathBuf },
    Source { endpoint: Option<String>, model: Option<String>, started_at: Option<String> },
    Other { text: String },
}
