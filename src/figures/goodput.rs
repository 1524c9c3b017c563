//! Requests that meet the user's own limits (a service level objective), and the cost of requests.

use serde::{Deserialize, Serialize};

use super::LevelSummary;
use super::quantiles::{Estimate, seconds};
use super::requests::Request;
use super::summary::null_as_default;

/// The section `policy.slo`: limits for a request, in seconds, and the share of requests that must meet all of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Slo {
    pub ttft: Option<f64>,
    pub tpot: Option<f64>,
    pub latency: Option<f64>,
    /// Minimum share of requests with which a level passes.
    pub attainment: f64,
}

impl Default for Slo {
    fn default() -> Self {
        Slo { ttft: None, tpot: None, latency: None, attainment: 0.99 }
    }
}

impl Slo {
    pub fn limits(&self) -> [(&'static str, Option<f64>); 3] {
        [("ttft", self.ttft), ("tpot", self.tpot), ("latency", self.latency)]
    }

    pub(crate) fn is_met_by(&self, request: &Request) -> bool {
        let times = [request.ttft.get(), request.tpot.get(), Some(request.held_us())];
        request.is_success() && self.is_met(times.map(|time| time.map(seconds)), request.output_tokens())
    }

    /// Takes TTFT, TPOT and latency. An unknown time does not meet a limit, except that an
    /// answer of one token has no TPOT.
    pub(crate) fn is_met(&self, times_s: [Option<f64>; 3], tokens: Option<u32>) -> bool {
        let within = |((name, limit), time): ((&str, Option<f64>), Option<f64>)| {
            let excused = name == "tpot" && tokens.is_some_and(|tokens| tokens <= 1);
            excused || limit.is_none_or(|limit| time.is_some_and(|time| time <= limit))
        };
        self.limits().into_iter().zip(times_s).all(within)
    }
}

/// The share and the rate of a level's requests that meet the limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goodput {
    /// The limits that were applied.
    pub slo: Slo,
    /// Requests of the cohort that succeeded and met all limits.
    pub met: u64,
    /// `met` / requests, with Wilson's interval.
    pub attainment: Estimate,
    /// Rate of such requests per second, by the same shares as the throughput.
    pub rps: Estimate,
    /// Like [`LevelSummary::blocks_rps`], for such requests only.
    #[serde(default, deserialize_with = "null_as_default")]
    pub blocks_rps: Vec<f64>,
}

/// Prices in US dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prices {
    pub per_million_input: Option<f64>,
    pub per_million_output: Option<f64>,
    pub server_per_hour: Option<f64>,
}

/// US dollars per 1,000 successful requests. A part without a price is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cost {
    /// Cost of tokens, from the mean counts of the level's successes.
    pub tokens: Option<f64>,
    /// Cost of the server's time at the level's throughput.
    pub server: Option<f64>,
}

impl Prices {
    /// `None` without prices, and if a figure that one of them needs is unknown.
    pub fn of_1000(&self, summary: &LevelSummary) -> Option<Cost> {
        let Prices { per_million_input: input, per_million_output: output, server_per_hour: hour } = *self;
        let of_tokens =
            |price: Option<f64>, mean: Option<f64>| price.map_or(Some(0.0), |price| Some(price * mean? / 1e3));
        let tokens = of_tokens(input, summary.mean_input_tokens)? + of_tokens(output, summary.mean_output_tokens)?;
        let rps = summary.throughput_rps.map(|rps| rps.estimate).filter(|&rps| rps > 0.0);
        let server = hour.map_or(Some(0.0), |usd| Some(usd / 3600.0 * 1e3 / rps?))?;
        let cost = Cost { tokens: input.or(output).map(|_| tokens), server: hour.map(|_| server) };
        (cost != Cost::default()).then_some(cost)
    }
}

impl Cost {
    pub fn total(self) -> f64 {
        self.tokens.unwrap_or_default() + self.server.unwrap_or_default()
    }
}
