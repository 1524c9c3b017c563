//! Detects that the server was gone for a while.

use serde::{Deserialize, Serialize};

use super::quantiles::wilson;
use crate::client::outcome::{Failure, RequestOutcome};

/// The number of requests of a measurement that found no server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reach {
    /// Requests that ended, including those of the warm-up: the server may be gone even then.
    pub requests: u64,
    /// Requests whose connection was refused, reset or cut, or for which a gateway found no server (502).
    pub lost: u64,
    /// Requests answered with 503: the server is restarting if connections were lost too, else overloaded.
    pub unavailable: u64,
}

impl Reach {
    pub fn add(&mut self, outcome: &RequestOutcome) {
        if outcome.end_s.is_none() {
            return;
        }
        let lost = outcome.failure == Some(Failure::Connect) || outcome.cut || outcome.status == Some(502);
        self.requests += 1;
        self.lost += u64::from(lost);
        self.unavailable += u64::from(outcome.status == Some(503));
    }

    pub(super) fn with(self, more: Reach) -> Self {
        Reach {
            requests: self.requests + more.requests,
            lost: self.lost + more.lost,
            unavailable: self.unavailable + more.unavailable,
        }
    }

    /// Whether more than `limit` of the requests were lost, beyond chance.
    pub fn is_outage(&self, limit: f64) -> bool {
        self.lost > 0 && wilson(self.found_none(), self.requests).is_some_and(|[low, _]| low >= limit)
    }

    fn found_none(&self) -> u64 {
        if self.lost > 0 { (self.lost + self.unavailable).min(self.requests) } else { 0 }
    }
}

/// Measurements of a level during which the server was gone. They are set aside if the level has others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outage {
    /// Requests in them that found no server.
    pub lost: u64,
    pub requests: u64,
    /// Number of such measurements.
    pub measurements: u64,
    /// Number of all measurements of the level.
    pub of: u64,
    /// Number of measurements made since the latest outage.
    pub since: u64,
}

impl Outage {
    /// Whether these measurements are ignored because there are others.
    pub fn is_set_aside(&self) -> bool {
        self.measurements < self.of
    }
}

/// The measurements of a level that count: those in which at most `limit` of the requests found
/// no server, or all of them if there are none.
pub(super) fn without_outages<T: Copy>(
    measurements: &[T],
    reach: impl Fn(T) -> Reach,
    limit: f64,
) -> (Vec<T>, Option<Outage>) {
    let gone = |&measurement: &T| reach(measurement).is_outage(limit);
    let (out, there): (Vec<T>, Vec<T>) = measurements.iter().partition(|measurement| gone(measurement));
    if out.is_empty() {
        return (there, None);
    }
    let sum = |of: fn(&Reach) -> u64| out.iter().map(|&measurement| of(&reach(measurement))).sum();
    let outage = Outage {
        lost: sum(Reach::found_none),
        requests: sum(|reach| reach.requests),
        measurements: out.len() as u64,
        of: measurements.len() as u64,
        since: measurements.iter().rev().take_while(|measurement| !gone(measurement)).count() as u64,
    };
    (if there.is_empty() { out } else { there }, Some(outage))
}
