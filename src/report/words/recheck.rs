//! Whether a number still holds.

use super::numbers::{count, range, rate, signed};
use crate::decide::recheck::{Holds, Rechecked};

/// The verdict, and the figures that it is based on.
pub fn rechecked(number: usize, found: &Rechecked) -> Vec<String> {
    let nights = count(found.nights as u64, "recheck");
    let verdict = match found.verdict {
        Holds::Holds => format!("holds: {number} is still right"),
        Holds::TooLow => format!("too low: more than {number} requests in parallel now bring more throughput"),
        Holds::TooHigh => format!("too high: fewer than {number} requests in parallel now do as well or better"),
        Holds::ServerSlower => {
            format!(
                "server slower: {number} is still the right level, but throughput fell by more than chance explains"
            )
        }
        Holds::CannotTell => format!("cannot tell whether {number} still holds; rechecks add up, so run another"),
    };
    let mut lines = vec![verdict];
    lines.extend(found.speed.map(|(change, interval)| {
        format!("Speed compared with the run: {} ({}, {nights})", signed(change), range(interval, signed))
    }));
    lines.extend(found.below.map(|(level, now, then)| {
        format!("Throughput at {number} compared with {level}: {} (in the run {})", signed(now), signed(then))
    }));
    lines.extend(found.above.map(|(level, now, then)| {
        format!("Throughput at {level} compared with {number}: {} (in the run {})", signed(now), signed(then))
    }));
    if found.error_rate > 0.0 {
        lines.push(format!("Failed requests at {number}: {}", rate(found.error_rate)));
    }
    if found.verdict != Holds::Holds && found.verdict != Holds::CannotTell {
        lines.push("Measure again with `llm-concurrency run`".to_owned());
    }
    lines
}

pub fn recheck_stopped() -> &'static str {
    "Stopped before all levels were visited, so there is no verdict; this recheck does not count"
}
