//! A server that was gone for a while.

use serde::{Deserialize, Serialize};

use super::quantiles::wilson;
use crate::client::outcome::{Failure, RequestOutcome};

/// How many requests of a measurement found no server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reach {
    /// Requests that came to an end, those of the warm-up included: it may be where the server is gone.
    pub requests: u64,
    /// Those whose connection was refused, reset or cut, and those that a gateway answered without a server (502).
    pub lost: u64,
    /// Those that got a 503: of a server that is starting where connections were lost too, else of one that is full.
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

    /// Whether more than `limit` of the requests were lost, and not by chance.
    pub fn is_outage(&self, limit: f64) -> bool {
        self.lost > 0 && wilson(self.found_none(), self.requests).is_some_and(|[low, _]| low >= limit)
    }

    fn found_none(&self) -> u64 {
        if self.lost > 0 { (self.lost + self.unavailable).min(self.requests) } else { 0 }
    }
}

/// Measurements of a level in which the server was gone. They are set aside if it was there in another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outage {
    /// Requests in them that found no server.
    pub lost: u64,
    pub requests: u64,
    /// How many such measurements there are.
    pub measurements: u64,
    /// How many measurements there are in all.
    pub of: u64,
    /// How many measurements there are since the latest of them.
    pub since: u64,
}

impl Outage {
    /// Whether its measurements do not count, since there are others.
    pub fn is_set_aside(&self) -> bool {
        self.measurements < self.of
    }
}

/// Of a level's measurements those that count: without those in which more than `limit` of the requests found no server,
/// unless that is all of them.
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
