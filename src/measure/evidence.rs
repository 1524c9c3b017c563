//! Converts all measurements so far into the evidence for the race. Pure: no clock, no I/O.

use std::collections::BTreeMap;

use super::race::{Evidence, Seen, Visited};
use crate::client::outcome::Failure;
use crate::figures::{LevelState, Limits, Measured, Measurement, Request};

/// `sent` is the total number of requests. Measurements during an outage are used only for
/// levels that have no others.
pub fn evidence(mut made: Vec<Measured>, sent: u64, limits: Limits) -> Evidence {
    made.retain(|(of, _)| of.state != LevelState::Cut && of.window_s.is_some());
    let is_there = |of: &Measured| !of.1.is_outage(limits.max_error_rate);
    let mut served: BTreeMap<usize, bool> = BTreeMap::new();
    for of in &made {
        *served.entry(of.0.concurrency).or_default() |= is_there(of);
    }
    let counted = made.into_iter().filter(|of| is_there(of) || !served[&of.0.concurrency]);
    let visits: Vec<Visited> = counted.map(|of| visited(of, limits)).collect();
    let now_s = visits.iter().map(|visit| visit.span_s[1]).fold(0.0, f64::max);
    Evidence { visits, now_s, sent }
}

fn visited((measurement, requests): Measured, limits: Limits) -> Visited {
    let seconds = |us: u32| f64::from(us) / 1e6;
    let Measurement { concurrency: level, began_s, window_s, .. } = *measurement;
    let seen = move |request: &Request| Seen {
        start_s: began_s + request.start_s,
        end_s: began_s + request.end_s,
        held_s: request.held_s(),
        failed: !request.is_success(),
        timed_out: request.failure == Some(Failure::Timeout),
        tokens: request.output_tokens(),
        ttft_s: request.ttft.get().map(seconds),
        tpot_s: request.tpot.get().map(seconds),
        meets_slo: limits.slo.is_some_and(|slo| slo.is_met_by(request)),
    };
    let awaited = move |start_s: &f64| Seen { start_s: began_s + start_s, end_s: f64::NAN, ..Seen::default() };
    let all = move || -> Box<dyn Iterator<Item = Seen>> {
        let ended = requests.cohort().filter(|request| !request.end_s.is_nan()).map(seen);
        Box::new(ended.chain(requests.in_flight_s.iter().map(awaited)))
    };
    Visited { level, span_s: window_s.unwrap_or_default().map(|at| began_s + at), requests: Box::new(all) }
}
