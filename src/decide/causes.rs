//! Verdicts, reasons and notes as data: `report::words` turns them, with their figures, into English. Rates are
//! fractions, times are in seconds.
//!
//! `Other` holds the words of another version of this program that recorded something this version does not know.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Gate, Objective, TimeGate};
use crate::client::outcome::RateLimit;
use crate::figures::{EarlyEnd, LeftOut, Outage};

/// Why a level has its verdict. `uncertain` is the interval of the figure if it spans the limit.
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
    // The share of requests that met `policy.slo`, and the required share.
    TooFewMet { share: f64, least: f64, uncertain: Option<[f64; 2]> },
    MaybeTooFewMet { interval: [f64; 2], least: f64 },
    Other { text: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    pub seconds: f64,
    /// The limit's own interval: the default limit is a multiple of a measured P95.
    pub interval: [f64; 2],
    /// The level whose P95 it is a multiple of, and that P95; `None` if the user set the limit.
    pub from: Option<(usize, f64)>,
}

/// Why this level was chosen, or why there is no pick.
///
/// `of_best` is the pick's share of the best value and the level of the best; `None` if the pick is the best.
/// `is_highest` tells whether it is the highest level tested, not only the highest usable one. `half_width` is that of
/// the pick's throughput, relative. `lowest` is the lowest level with its causes, if there is any level.
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

/// A quota that was the limit, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuotaReached {
    /// Number of HTTP 429 failures at the levels that fail on errors; `failed` counts all failures there.
    pub limited: u64,
    pub failed: u64,
    /// The quota as the server reports it, in headers and in error bodies.
    #[serde(alias = "stated", alias = "said")]
    pub server_limit: RateLimit,
    /// What got through at the highest limited level; `None` if that is unknown, or is not a rate.
    pub passed: Option<Passed>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Passed {
    pub level: usize,
    pub rps: f64,
    pub tokens_per_minute: Option<f64>,
    /// Whether `tokens_per_minute` includes the prompts.
    pub with_prompts: bool,
    /// By Little's law: the concurrency that is enough for this rate, for this latency as measured at this level.
    pub enough: Option<(usize, f64, usize)>,
}

/// How this client, rather than the server, was the limit; each figure with the highest value that is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum ClientLimit {
    Cpu { cores: f64, most: f64 },
    Timers { late_s: f64, most_s: f64 },
}

/// Further remarks: on levels, on the run as a whole, and on its files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Note {
    // Mean number of requests in flight, and of permits held back after failures.
    BelowConcurrency { level: usize, in_flight: f64, held: Option<f64> },
    ClientBound { level: usize, limit: ClientLimit },
    EndedAtOnce { level: usize, answers: u64 },
    SetAside { level: usize, outage: Outage },
    // The cost of the default P95 gate: the best value of a level that fails it, and the best of those that pass.
    PriceOfP95 { level: usize, reached: f64, best: f64, objective: Objective },
    ServerLimitUnchecked { level: usize },
    // A level below the pick whose figures are within the tolerance, but on too few requests to be sure.
    MayDo { level: usize, requests: Option<u64> },
    Small { level: usize, requests: Option<u64>, full: u64 },
    // The gate's figure is unknown, or needs at least this many requests.
    Unchecked { level: usize, gate: Gate, least: Option<u64> },
    NoSpread { levels: Vec<usize> },
    OpenOutage { level: usize, outage: Outage },
    // For how long the engine was slow at first.
    ColdStart { seconds: f64 },
    // The same at the first level that was measured in full: requests left out before its window.
    LeftOutCold { level: usize, left_out: LeftOut },
    NoCurve { why: String },
    Quick,
    UnlistedModel,
    Stopped { level: usize, why: EarlyEnd },
    // The levels for which this key of `benchmark.budget` leaves no room; `again`: they were to be measured again.
    NoRoom { levels: Vec<usize>, again: bool, key: String },
    LeftOut { levels: Vec<usize> },
    SeveralRuns { runs: Vec<String> },
    Unreadable { error: String },
    // Requests per second according to Criterion's mean, and to the records.
    CriterionDiffers { level: usize, criterion: f64, records: f64 },
    NoRecordOf { level: usize, error: String },
    NoRecords { folder: PathBuf },
    Source { endpoint: Option<String>, model: Option<String>, started_at: Option<String> },
    Other { text: String },
}
