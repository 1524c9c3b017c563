//! The figures of requests that arrive at a given rate.

use serde::{Deserialize, Serialize};

use super::quantiles::{Distribution, micros};
use super::{Limits, Slo};
use crate::client::outcome::{Failure, Phase, RequestOutcome};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArrivalsEnd {
    /// All requests arrived and ended.
    #[default]
    Complete,
    /// The queue clearly grew.
    Overloaded,
    /// Interrupted: not usable.
    Cut,
}

/// Arrivals at one rate. The first ones, as many as there are permits, do not count: they met an idle server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpenLoad {
    pub rate_rps: f64,
    pub requests: u64,
    pub failed: u64,
    /// Wait from when a request was due until it had a permit.
    pub wait_s: Option<Distribution>,
    /// Time until the last byte, including the wait; a timeout counts as the request timeout.
    pub latency_s: Option<Distribution>,
    /// Time until the first token, including the wait.
    pub ttft_s: Option<Distribution>,
    /// Time per output token after the first; the wait does not affect it.
    pub tpot_s: Option<Distribution>,
    /// Requests that met `policy.slo`, with the wait included in TTFT and latency. `None` without an SLO.
    pub within_slo: Option<u64>,
    /// Share of all arrivals that had a permit when the last one came.
    pub kept_up: f64,
    /// How late this client was in handling arrivals.
    pub late_p99_s: Option<f64>,
    pub ending: ArrivalsEnd,
}

impl OpenLoad {
    /// Adds the figures derived from the requests.
    pub fn with(self, outcomes: &[RequestOutcome], limits: &Limits) -> Self {
        let cohort = || outcomes.iter().filter(|outcome| outcome.phase == Phase::Measured && outcome.end_s.is_some());
        let distribution = |time: &dyn Fn(&RequestOutcome) -> Option<f64>| {
            Distribution::of(outcomes.len(), cohort().filter_map(time).map(micros)).0
        };
        let wait = |outcome: &RequestOutcome| outcome.start_s - outcome.due_s.unwrap_or(outcome.start_s);
        let latency = |outcome: &RequestOutcome| match outcome.failure {
            None => outcome.latency_s,
            Some(Failure::Timeout) => Some(limits.request_timeout_s),
            Some(_) => None,
        };
        let ttft = |outcome: &RequestOutcome| Some(wait(outcome) + outcome.ttft_s.filter(|_| outcome.is_success())?);
        let waited = |outcome: &RequestOutcome| Some(wait(outcome) + latency(outcome)?);
        let is_within = |slo: &Slo, of: &RequestOutcome| {
            of.is_success() && slo.is_met([ttft(of), of.tpot_s(), waited(of)], of.output_tokens)
        };
        OpenLoad {
            within_slo: limits.slo.map(|slo| cohort().filter(|outcome| is_within(&slo, outcome)).count() as u64),
            requests: cohort().count() as u64,
            failed: cohort().filter(|outcome| !outcome.is_success()).count() as u64,
            wait_s: distribution(&|outcome| Some(wait(outcome))),
            latency_s: distribution(&waited),
            ttft_s: distribution(&ttft),
            tpot_s: distribution(&|outcome| outcome.tpot_s().filter(|_| outcome.is_success())),
            ..self
        }
    }
}
