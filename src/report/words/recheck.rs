//! Whether a number still holds.

use super::numbers::{count, range, rate, signed};
use crate::decide::recheck::{Holds, Rechecked};

/// The verdict, and the figures that it is based on.
pub fn rechecked(number: usize, found: &Rechecked) -> Vec<String> {
    let nights = count(found.nights as u64, "recheck");
    let verdict = match found.verdict {
        Holds::Holds => format!("holds: {number} is still right"),
        Holds::TooLow => format!("too low: more than {number} in parallel bring more throughput now"),
        Holds::TooHigh => format!("too high: fewer than {number} in parallel do as well now, or better"),
        Holds::ServerSlower => {
            format!("server slower: {number} is still the level, but throughput fell by more than chance")
        }
        Holds::CannotTell => format!("cannot tell whether {number} still holds; nights add up, so ask again"),
    };
    let mut lines = vec![verdict];
    lines.extend(found.speed.map(|(change, interval)| {
        format!("Speed against the run: {} ({}, {nights})", signed(change), range(interval, signed))
    }));
    lines.extend(found.below.map(|(level, now, then)| {
        format!("Throughput at {number} over {level}: {} (then {})", signed(now), signed(then))
    }));
    lines.extend(found.above.map(|(level, now, then)| {
        format!("Throughput at {level} over {number}: {} (then {})", signed(now), signed(then))
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
    "It was stopped before all levels were visited, so that it cannot be told; this night does not count"
}
