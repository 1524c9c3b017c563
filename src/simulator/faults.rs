//! Injected faults and the choice of the requests that they hit.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::SimulatorError;
use super::config::{require, require_within};
use super::lengths::{fnv1a, unit};

/// A fault injected into a request. A request has at most one.
///
/// The serialized name is its key below `simulator.faults` and its name in `--fault` and in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The head of the answer is `slow_start_s` late; the answer is intact.
    SlowStart,
    /// The answer pauses for `stall_s` halfway through.
    Stall,
    /// The answer stops halfway. A stream ends like a complete one, but without `finish_reason` and `[DONE]`. Any
    /// other answer's connection is closed before its announced length.
    CutStream,
    /// The connection is reset before the first byte of the answer.
    Reset,
    /// Status 500 at once.
    #[serde(rename = "error_500")]
    Error500,
    /// Status 429 at once, with `Retry-After`.
    #[serde(rename = "rate_429")]
    Rate429,
    /// Status 200 and JSON that breaks off halfway.
    MalformedJson,
    /// Status 200 and a complete answer without content, at once.
    EmptyOutput,
    /// Status 200 and bytes that are neither text nor JSON (in a stream, after half of the answer).
    GarbageSse,
    /// Status 200 and, at once, a string of `huge_body_mib` MiB that is never closed.
    HugeBody,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Fault; 10] = {
        use Fault::*;
        [SlowStart, Stall, CutStream, Reset, Error500, Rate429, MalformedJson, EmptyOutput, GarbageSse, HugeBody]
    };

    fn named(name: &str) -> Result<Self, String> {
        Fault::ALL.into_iter().find(|fault| fault.to_string() == name).ok_or_else(|| {
            let names = Fault::ALL.map(|fault| fault.to_string());
            format!("there is no fault `{name}`; the faults are {}", names.join(", "))
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A fault and its rate, parsed from the `NAME=RATE` of `--fault`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultRate {
    /// The fault.
    pub fault: Fault,
    /// Share of the requests that it hits, 0 to 1.
    pub rate: f64,
}

impl FromStr for FaultRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rate) = text.split_once('=').ok_or("expected NAME=RATE, such as stall=0.1")?;
        let fault = Fault::named(name)?;
        let rate = rate.parse().ok().filter(|rate| (0.0..=1.0).contains(rate));
        Ok(FaultRate { fault, rate: rate.ok_or("expected a rate from 0 to 1, such as 0.1")? })
    }
}

/// Rates of the faults (shares of the requests, 0 to 1, with a sum of at most 1) and their parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Faults {
    /// Rate of each fault, keyed by the fault's name in `config.yaml`; 0 for a fault that is omitted.
    #[serde(flatten, deserialize_with = "rates_of_all")]
    pub rates: BTreeMap<Fault, f64>,
    /// Delay of a slow start, in seconds. 0 to 3600.
    pub slow_start_s: f64,
    /// Duration of a stall, in seconds. 0 to 3600.
    pub stall_s: f64,
    /// Size of a huge body, in MiB.
    pub huge_body_mib: u32,
}

impl Default for Faults {
    fn default() -> Self {
        Faults {
            rates: Fault::ALL.map(|fault| (fault, 0.0)).into(),
            slow_start_s: 5.0,
            stall_s: 60.0,
            huge_body_mib: 256,
        }
    }
}

fn rates_of_all<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<Fault, f64>, D::Error> {
    let mut rates = Faults::default().rates;
    for (name, rate) in BTreeMap::<String, Value>::deserialize(deserializer)? {
        let fault = Fault::named(&name).map_err(D::Error::custom)?;
        let wrong = || D::Error::custom(format!("`{name}` is {rate}, not a number from 0 to 1"));
        rates.insert(fault, rate.as_f64().ok_or_else(wrong)?);
    }
    Ok(rates)
}

impl Faults {
    /// Sets the rate of one fault.
    pub fn set(&mut self, FaultRate { fault, rate }: FaultRate) {
        self.rates.insert(fault, rate);
    }

    /// The fault of request `number`, a pure function of the seed, the number and the rates.
    pub(super) fn of(&self, seed: u64, number: u64) -> Option<Fault> {
        let mut left = unit(fnv1a(seed, &number.to_le_bytes()), 1);
        let hit = self.rates.iter().find(|(_, rate)| {
            left -= **rate;
            left < 0.0
        });
        hit.map(|(fault, _)| *fault)
    }

    pub(super) fn validate(&self) -> Result<(), SimulatorError> {
        for (fault, rate) in &self.rates {
            require_within(&format!("faults.{fault}"), *rate, 0.0..=1.0, " (share of the requests)")?;
        }
        // Tolerates rounding: a sum of decimal rates that is meant as 1 may come out slightly above it.
        let sum: f64 = self.rates.values().sum();
        require(sum <= 1.0 + 1e-9, "faults", format!("{sum} in all"), "rates that add up to 1 or less")?;
        require_within("faults.slow_start_s", self.slow_start_s, 0.0..=3600.0, " (seconds)")?;
        require_within("faults.stall_s", self.stall_s, 0.0..=3600.0, " (seconds)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_comes_at_its_rate_and_by_the_seed() {
        let mut faults = Faults::default();
        assert!((0..1000).all(|number| faults.of(1, number).is_none()));
        for (index, fault) in Fault::ALL.into_iter().enumerate() {
            faults.set(FaultRate { fault, rate: 0.01 * (index + 1) as f64 });
        }
        faults.validate().unwrap();
        let drawn: Vec<_> = (0..100_000).map(|number| faults.of(7, number)).collect();
        for (index, fault) in Fault::ALL.into_iter().enumerate() {
            let rate = drawn.iter().filter(|&&d| d == Some(fault)).count() as f64 / 1e5;
            let expected: f64 = 0.01 * (index + 1) as f64;
            // Five standard errors.
            assert!((rate - expected).abs() < 5.0 * (expected / 1e5).sqrt(), "{fault}: {rate}");
        }
        assert!((0..100_000).all(|number| faults.of(7, number) == drawn[number as usize]));
        assert!((0..100).any(|number| faults.of(8, number) != drawn[number as usize]));
        let always = Faults { rates: [(Fault::Stall, 1.0)].into(), ..Faults::default() };
        assert!((0..1000).all(|number| always.of(1, number) == Some(Fault::Stall)));
    }
}
