//! One measurement of a level as it lies on disk: made under load, written by `record`, pooled by the figures.

use serde::{Deserialize, Serialize};

use super::reasons::EarlyEnd;
use crate::client::outcome::RateLimit;

/// Which part of a run a measurement belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    #[default]
    #[serde(alias = "auto")]
    Sweep,
    /// A visit of the race, without a drain.
    Visit,
}

/// One measurement to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub level: usize,
    pub stage: Stage,
    /// The number of the visit in its run, from 1; else 0.
    pub round: u32,
}

/// All of a measurement but its requests, which are in its sidecar.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    pub concurrency: usize,
    pub stage: Stage,
    /// The number of the visit in its run, from 1; else 0.
    #[serde(default)]
    pub round: u32,
    /// When the loop began, of which it is a part, seconds since the run began.
    #[serde(default)]
    pub began_s: f64,
    pub criterion_id: String,
    /// The times handed to Criterion, nanoseconds per wave: the key that joins this record to Criterion's files.
    pub sample_ns: Vec<f64>,
    /// The measured window, seconds since the loop began.
    pub window_s: Option<[f64; 2]>,
    pub samples: Vec<Sample>,
    /// Gaps between content chunks: ascending `[microseconds, count]`.
    pub itl_histogram: Vec<(u64, u64)>,
    /// Requests before that window, beside the warm-up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<LeftOut>,
    pub state: LevelState,
    /// Why it was not complete.
    pub reason: Option<EarlyEnd>,
    pub client: Option<ClientLoad>,
    /// What the server said last of its quota.
    pub rate_limit: Option<RateLimit>,
    /// What the server said of its load in the measured window, where it was asked.
    pub server: Option<ServerLoad>,
}

impl Measurement {
    /// The middle of its window, seconds since the run began.
    pub(crate) fn middle_s(&self) -> Option<f64> {
        self.window_s.map(|[from, to]| self.began_s + (from + to) / 2.0)
    }

    /// Which measurement of the run it is.
    pub fn step(&self) -> Step {
        Step { level: self.concurrency, stage: self.stage, round: self.round }
    }
}

/// The first requests of a loop, since the engine was still getting faster.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The warm-up's included.
    pub requests: u64,
    /// Requests a second at first, and once it was warm.
    pub from_rps: f64,
    pub to_rps: f64,
}

/// One window of the closed loop, which is one sample of Criterion's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub duration_s: f64,
    pub completed: u64,
    /// Successes among them.
    pub succeeded: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LevelState {
    /// Measured in full.
    #[default]
    Complete,
    /// Interrupted: not usable.
    Cut,
    /// It had clearly failed, so the rest was cut short: a result (it fails), but a small one.
    Hopeless,
}

/// What measuring a level cost this client. Unknown is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientLoad {
    /// CPU seconds of the load thread per second of the measured window.
    pub cpu: Option<f64>,
    /// How late its timers were, 95th percentile, seconds; their own rounding is taken off.
    pub timer_lag_p95_s: Option<f64>,
}

/// What the server said of its load, on average. Unknown is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerLoad {
    /// How often it was asked.
    #[serde(alias = "looks")]
    pub readings: u64,
    /// Requests that it worked on.
    pub running: Option<f64>,
    /// Requests that waited in its queue.
    pub waiting: Option<f64>,
    /// Share of its KV cache in use.
    pub kv_cache: Option<f64>,
}

impl ServerLoad {
    /// The mean of both, weighted by how often each was asked for.
    pub fn with(self, other: ServerLoad) -> Self {
        let (own, more) = (self.readings as f64, other.readings as f64);
        let mean = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some((a * own + b * more) / (own + more)),
            (a, b) => a.or(b),
        };
        ServerLoad {
            readings: self.readings + other.readings,
            running: mean(self.running, other.running),
            waiting: mean(self.waiting, other.waiting),
            kv_cache: mean(self.kv_cache, other.kv_cache),
        }
    }
}
