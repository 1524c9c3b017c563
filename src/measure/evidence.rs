//! What all measurements have shown so far, as the race wants it. Pure.

use std::collections::BTreeMap;

use super::race::{Evidence, Seen, Visited};
use crate::client::outcome::Failure;
use crate::figures::{LevelState, Measurement, Requests};

/// A measurement with its requests, and when those of its cohort were issued that are still in flight.
pub type Made<'a> = (&'a Measurement, &'a Requests, &'a [f64]);

/// `sent` is the number of all requests; of a level at which more than `limit` of them found no server, what was measured
/// when it was there counts.
pub fn evidence(made: &[Made], sent: u64, limit: f64) -> Evidence {
    let usable = |of: &&Made| of.0.state != LevelState::Cut && of.0.window_s.is_some();
    let usable: Vec<&Made> = made.iter().filter(usable).collect();
    let is_there = |of: &Made| !of.1.is_outage(limit);
    let mut served: BTreeMap<usize, bool> = BTreeMap::new();
    for of in &usable {
        *served.entry(of.0.concurrency).or_default() |= is_there(of);
    }
    let counted = usable.into_iter().filter(|of| is_there(of) || !served[&of.0.concurrency]);
    let visits: Vec<Visited> = counted.map(visited).collect();
    let now_s = visits.iter().map(|visit| visit.span_s[1]).fold(0.0, f64::max);
    Evidence { visits, now_s, sent }
}

fn visited(&(measurement, requests, in_flight_s): &Made) -> Visited {
    let Measurement { concurrency: level, began_s, window_s, .. } = *measurement;
    let ended = requests.cohort().filter(|request| !request.end_s.is_nan()).map(|request| Seen {
        start_s: began_s + request.start_s,
        end_s: began_s + request.end_s,
        held_s: request.held_s,
        failed: !request.is_success(),
        timed_out: request.failure == Some(Failure::Timeout),
        tokens: request.output_tokens,
        ttft_s: request.ttft.get().map(|us| f64::from(us) / 1e6),
    });
    let in_flight =
        in_flight_s.iter().map(|start_s| Seen { start_s: began_s + start_s, end_s: f64::NAN, ..Seen::default() });
    let span_s = window_s.unwrap_or_default().map(|at| began_s + at);
    Visited { level, span_s, requests: ended.chain(in_flight).collect() }
}
