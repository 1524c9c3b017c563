//! What goes wrong on purpose, and to which requests.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::SimulatorError;
use super::config::{require, require_within};
use super::lengths::{fnv1a, unit};

/// Something that goes wrong with a request on purpose. A request has one fault at most.
///
/// Its name is that of its key below `simulator.faults`, in `--fault` and in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The answer's head comes `slow_start_s` late; the answer is good.
    SlowStart,
    /// Half of the answer, then nothing for `stall_s`, then the rest.
    Stall,
    /// Half of the answer. A stream then ends as if it were whole, but without finish_reason and `[DONE]`; another
    /// answer's connection is closed before its announced length.
    CutStream,
    /// The connection is reset before any byte of the answer.
    Reset,
    /// Status 500 at once.
    #[serde(rename = "error_500")]
    Error500,
    /// Status 429 at once, with `Retry-After`.
    #[serde(rename = "rate_429")]
    Rate429,
    /// Status 200, and JSON that breaks off halfway.
    MalformedJson,
    /// Status 200 and a complete answer that holds nothing, at once.
    EmptyOutput,
    /// Status 200, and bytes that are neither text nor JSON (in a stream after half of the answer).
    GarbageSse,
    /// Status 200, and a string that goes on for `huge_body_mib`, at once.
    HugeBody,
}

impl Fault {
    /// All of them.
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

/// A fault and its rate, as `--fault NAME=RATE` gives them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultRate {
    /// Which.
    pub fault: Fault,
    /// Share of the requests that have it, 0 to 1.
    pub rate: f64,
}

impl FromStr for FaultRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rate) = text.split_once('=').ok_or("expected NAME=RATE, such as stall=0.1")?;
        let fault = Fault::named(name)?;
        let rate = rate.parse().ok().filter(|rate| (0.0..=1.0).contains(rate));
        Ok(FaultRate { fault, rate: rate.ok_or("the rate is a number from 0 to 1, such as 0.1")? })
    }
}

/// Rates of the faults (shares of the requests, 0 to 1, together 1 at most) and their parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Faults {
    /// By the fault's name; 0 for those that are left out.
    #[serde(flatten, deserialize_with = "rates_of_all")]
    pub rates: BTreeMap<Fault, f64>,
    /// How late a slow start is, in seconds. 0 to 3600.
    pub slow_start_s: f64,
    /// How long a stall lasts, in seconds. 0 to 3600.
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
    /// Sets one rate.
    pub fn set(&mut self, FaultRate { fault, rate }: FaultRate) {
        self.rates.insert(fault, rate);
    }

    /// The fault of request `number`: always the same one for the same seed.
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
        // Ten rates of 0.1 add up to a little more than 1.
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
