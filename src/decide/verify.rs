//! Which request rates a given concurrency carries, measured with arrivals at several rates. Pure.

use serde::{Deserialize, Serialize};

use super::{Policy, TimeGate};
use crate::figures::{ArrivalsEnd, OpenLoad};

/// The section `verified` of a results file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Verified {
    /// RFC 3339, UTC.
    pub started_at: Option<String>,
    pub concurrency: usize,
    /// Throughput at this level in the closed loop.
    pub throughput_rps: f64,
    /// In ascending order of rate.
    pub loads: Vec<OpenLoad>,
    /// The highest rate that was carried, as were all lower ones.
    pub carries_rps: Option<f64>,
    /// Whether every rate tried was carried, so that a higher one may be, too.
    pub and_maybe_more: bool,
    /// The key of the budget that left no room for the remaining rates.
    pub no_room: Option<String>,
}

/// Why a load is not carried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NotCarried {
    Overloaded,
    Cut,
    Errors(f64),
    /// A limit of the policy in seconds, and the measured value. An unknown value fails.
    Limit(TimeGate, f64, Option<f64>),
    /// The share of requests that met `policy.slo`, and the required share.
    Slo(f64, f64),
}

pub fn not_carried(load: &OpenLoad, policy: &Policy) -> Option<NotCarried> {
    let error_rate = load.failed as f64 / load.requests.max(1) as f64;
    match load.ending {
        ArrivalsEnd::Overloaded => return Some(NotCarried::Overloaded),
        ArrivalsEnd::Cut => return Some(NotCarried::Cut),
        ArrivalsEnd::Complete if error_rate >= policy.max_error_rate => return Some(NotCarried::Errors(error_rate)),
        ArrivalsEnd::Complete => {}
    }
    let slo = policy.slo.and_then(|slo| {
        let share = load.within_slo.unwrap_or_default() as f64 / load.requests.max(1) as f64;
        (share < slo.attainment).then_some(NotCarried::Slo(share, slo.attainment))
    });
    let mut limits = policy.limits().into_iter();
    let limit = limits.find_map(|(gate, limit)| {
        let limit = limit?;
        let measured = gate.of([load.latency_s, load.ttft_s, load.tpot_s]);
        measured.is_none_or(|seconds| seconds > limit).then_some(NotCarried::Limit(gate, limit, measured))
    });
    limit.or(slo)
}

impl Verified {
    pub fn add(&mut self, load: OpenLoad, policy: &Policy) {
        let carried = not_carried(&load, policy).is_none() && (self.loads.is_empty() || self.and_maybe_more);
        self.and_maybe_more = carried;
        if carried {
            self.carries_rps = Some(load.rate_rps);
        }
        self.loads.push(load);
    }
}
