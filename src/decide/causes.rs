//! Why a level passes or fails, why a number was chosen or none, and what else is worth knowing: as data with the
//! figures in it. `words` turns it into English.

use serde::{Deserialize, Serialize};

use super::Objective;
use crate::client::outcome::RateLimit;
use crate::figures::Outage;

/// Why a level has its verdict. Rates are fractions, times seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cause {
    /// It was interrupted before it was complete.
    Interrupted,
    /// Level 0 sends nothing.
    LevelZero,
    /// Too few requests to use it.
    TooFewRequests {
        /// How many there are.
        requests: u64,
        /// How many are needed.
        least: u64,
    },
    /// Neither is known of it: what is to be maximised.
    NoValue {
        /// That.
        objective: Objective,
    },
    /// Failures / requests are not below the limit.
    ErrorRate {
        /// The rate.
        rate: f64,
        /// What it is to stay below.
        limit: f64,
        /// The Wilson interval, where it spans the limit.
        uncertain: Option<[f64; 2]>,
        /// Requests that found no server, where that is why.
        outage: Option<Outage>,
    },
    /// It passes, but the interval of its error rate spans the limit.
    ErrorRateUncertain {
        /// The Wilson interval.
        interval: [f64; 2],
    },
    /// The loop gave it up.
    GivenUp {
        /// Why, as recorded.
        why: Option<String>,
    },
    /// More than half of its answers ended with their first token.
    EndedAtOnce {
        /// Such answers.
        answers: u64,
        /// All successes.
        of: u64,
    },
    /// Its answers are shorter than those of other levels.
    OutputShrank {
        /// Tokens per answer.
        tokens: f64,
        /// The median over the levels.
        median: f64,
    },
    /// P95 is above its limit.
    P95 {
        /// P95.
        p95: f64,
        /// The limit.
        limit: P95Limit,
        /// Its interval, where it may lie on the other side.
        uncertain: Option<[f64; 2]>,
    },
    /// P95 passes, but may be above its limit.
    P95Uncertain {
        /// The interval of P95.
        interval: [f64; 2],
        /// The limit.
        limit: P95Limit,
    },
    /// P99 is above its limit.
    P99 {
        /// P99.
        p99: f64,
        /// `policy.max_p99_seconds`.
        limit: f64,
    },
}

/// A limit on P95, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct P95Limit {
    /// The limit.
    pub seconds: f64,
    /// How well it is known: the default limit is a multiple of a measured P95.
    pub interval: [f64; 2],
    /// The level whose P95 it is a multiple of, and that P95; none where the user set the limit.
    pub from: Option<(usize, f64)>,
}

/// Why this level was chosen, or none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// The smallest level within the tolerance of the best.
    WithinTolerance {
        /// What was maximised.
        objective: Objective,
        /// `policy.tolerance`.
        tolerance: f64,
        /// Its share of the best, and where that is; none where it is the best itself.
        of_best: Option<(f64, usize)>,
    },
    /// Throughput still rises at the highest level.
    StillRising {
        /// That level.
        level: usize,
        /// Whether it is the highest tested; else the highest that could be used.
        is_highest: bool,
    },
    /// The last level that passes every gate.
    LastPassing {
        /// It.
        level: usize,
        /// The next one, which fails.
        failed: usize,
        /// Why that fails.
        causes: Vec<Cause>,
    },
    /// The lowest level tested is within tolerance already.
    LowestTested {
        /// It.
        level: usize,
    },
    /// No level could be used.
    NothingUsable {
        /// The lowest, and why it could not; none where none was measured.
        lowest: Option<(usize, Vec<Cause>)>,
    },
    /// Only one level could be used.
    OneLevel,
    /// Every level fails.
    NothingQualifies {
        /// The lowest that was used and why it fails; none where it has nothing to be chosen by.
        lowest: Option<(usize, Vec<Cause>)>,
    },
    /// The server changed its speed during the run.
    Drifted {
        /// Where it showed.
        changes: Vec<Drifted>,
    },
    /// The pick lies anywhere in a wide range.
    TooNoisy {
        /// Its ends.
        interval: [usize; 2],
        /// Relative half-width of the pick's throughput.
        half_width: f64,
    },
    /// A quota is the limit.
    Quota(QuotaReached),
}

/// A level that was not as fast when it was measured again.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drifted {
    /// The level.
    pub level: usize,
    /// Requests per second at first.
    pub first: f64,
    /// When measured again.
    pub confirmed: f64,
    /// `confirmed / first - 1`.
    pub change: f64,
}

/// What is known of a quota that was the limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuotaReached {
    /// Failures by HTTP 429 at the levels that fail on errors.
    pub limited: u64,
    /// All their failures.
    pub failed: u64,
    /// What the server said of it.
    pub said: RateLimit,
    /// What passed at the highest level that was limited, where that is a rate.
    pub passed: Option<Passed>,
}

/// What a quota let through.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Passed {
    /// At this level.
    pub level: usize,
    /// Requests per second.
    pub rps: f64,
    /// Tokens per minute, where they are counted.
    pub tokens_per_minute: Option<f64>,
    /// Whether the tokens of the prompts are among them.
    pub with_prompts: bool,
    /// Little's law: so many in parallel are enough for that rate, at this latency (seconds) of this level.
    pub enough: Option<(usize, f64, usize)>,
}

/// By what this client, not the server, was the limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum ClientLimit {
    /// Its load thread was busy.
    Cpu {
        /// Of a core.
        cores: f64,
        /// At most this is believed.
        most: f64,
    },
    /// Its timers came late.
    Timers {
        /// P95, seconds.
        late_s: f64,
        /// At most this is believed.
        most_s: f64,
    },
}

/// What else is worth knowing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Note {
    /// A level ran below its concurrency.
    BelowConcurrency {
        /// The level.
        level: usize,
        /// Mean requests in flight.
        in_flight: f64,
        /// Mean permits held back after failures.
        held: Option<f64>,
    },
    /// This client was the limit at a level.
    ClientBound {
        /// The level.
        level: usize,
        /// By what.
        limit: ClientLimit,
    },
    /// Answers that their first token ended.
    EndedAtOnce {
        /// The level.
        level: usize,
        /// How many.
        answers: u64,
    },
    /// What the records of a level say of it.
    OfLevel {
        /// The level.
        level: usize,
        /// In words.
        text: String,
    },
    /// A disturbed measurement was set aside.
    SetAside {
        /// The level.
        level: usize,
        /// What disturbed it.
        outage: Outage,
    },
    /// What the P95 gate nobody asked for costs.
    PriceOfP95 {
        /// The failing level with the most.
        level: usize,
        /// What it reached.
        reached: f64,
        /// The best of the passing levels.
        best: f64,
        /// In this.
        objective: Objective,
    },
    /// The server's own limit was not seen.
    ServerLimitUnchecked {
        /// The level.
        level: usize,
    },
    /// Fewer requests than a full result takes, or an unknown number.
    Small {
        /// The level.
        level: usize,
        /// How many.
        requests: Option<u64>,
        /// A full result takes at least this.
        full: u64,
    },
    /// The error rate is unknown.
    NoErrorRate {
        /// The level.
        level: usize,
    },
    /// P95 is unknown.
    NoP95 {
        /// The level.
        level: usize,
    },
    /// Too few requests for P99.
    NoP99 {
        /// The level.
        level: usize,
        /// It takes at least this.
        least: u64,
    },
    /// The spread of these levels is unknown, so there is no interval.
    NoSpread {
        /// The levels.
        levels: Vec<usize>,
    },
    /// It is not known whether the server was merely gone for a while.
    OpenOutage {
        /// The level.
        level: usize,
        /// What is known.
        outage: Outage,
    },
    /// No level was measured a second time.
    DriftNotChecked,
    /// There is no scalability curve.
    NoCurve {
        /// Why, as the fit says it.
        why: String,
    },
    /// A quick run.
    Quick,
    /// The server lists other models than the one that was asked for.
    UnlistedModel,
    /// What the run or its files say of themselves.
    OfRun {
        /// In words.
        text: String,
    },
}

impl Note {
    /// What a run or its files say of themselves.
    pub fn of_run(text: impl Into<String>) -> Self {
        Note::OfRun { text: text.into() }
    }
}
