//! One measurement of a level as stored on disk: made under load, written by `record`, pooled by the figures.

use serde::{Deserialize, Serialize};

use super::reasons::EarlyEnd;
use crate::client::outcome::RateLimit;

/// The part of a run to which a measurement belongs.
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
    /// The number of the visit in its run, from 1; 0 if it is not a visit.
    pub round: u32,
}

/// A measurement without its requests, which are in its sidecar.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    pub concurrency: usize,
    pub stage: Stage,
    /// The number of the visit in its run, from 1; 0 if it is not a visit.
    #[serde(default)]
    pub round: u32,
    /// When the loop of this measurement began, seconds since the run began.
    #[serde(default)]
    pub began_s: f64,
    pub criterion_id: String,
    /// The times passed to Criterion, nanoseconds per wave. They link this record to Criterion's files.
    pub sample_ns: Vec<f64>,
    /// The measured window, seconds since the loop began.
    pub window_s: Option<[f64; 2]>,
    pub samples: Vec<Sample>,
    /// Gaps between content chunks: ascending `[microseconds, count]`.
    pub itl_histogram: Vec<(u64, u64)>,
    /// Requests before the window that were left out, including the warm-up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<LeftOut>,
    pub state: LevelState,
    /// Why it is not complete.
    pub reason: Option<EarlyEnd>,
    pub client: Option<ClientLoad>,
    /// The quota that the server reported last.
    pub rate_limit: Option<RateLimit>,
    /// The load that the server reported during the measured window, if it was queried.
    pub server: Option<ServerLoad>,
}

impl Measurement {
    /// The middle of its window, seconds since the run began.
    pub(crate) fn middle_s(&self) -> Option<f64> {
        self.window_s.map(|[from, to]| self.began_s + (from + to) / 2.0)
    }

    /// Identifies the measurement within the run.
    pub fn step(&self) -> Step {
        Step { level: self.concurrency, stage: self.stage, round: self.round }
    }
}

/// The first requests of a loop, left out because the engine was still getting faster.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Number of requests, including those of the warm-up.
    pub requests: u64,
    /// Requests per second at first, and once the engine was warm.
    pub from_rps: f64,
    pub to_rps: f64,
}

/// One window of the closed loop, which is one sample for Criterion.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub duration_s: f64,
    pub completed: u64,
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
    /// The level had clearly failed, so the rest was cut short. A usable result (a failure), from few requests.
    Hopeless,
}

/// The load that measuring a level put on this client. Unknown figures are `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientLoad {
    /// CPU seconds of the load thread per second of the measured window.
    pub cpu: Option<f64>,
    /// Lateness of its timers, 95th percentile, seconds, without the rounding of the timers themselves.
    pub timer_lag_p95_s: Option<f64>,
}

/// The load that the server reported, on average. Unknown figures are `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerLoad {
    /// Number of readings.
    #[serde(alias = "looks")]
    pub readings: u64,
    /// Requests being processed.
    pub running: Option<f64>,
    /// Requests waiting in its queue.
    pub waiting: Option<f64>,
    /// Share of its KV cache in use.
    pub kv_cache: Option<f64>,
}

impl ServerLoad {
    /// The mean of both, weighted by their readings.
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
