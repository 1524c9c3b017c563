//! The requests of a measurement, reduced to what its figures need, since a run may have millions.

use std::sync::Arc;

use super::outages::Reach;
use super::quantiles::{micros, seconds};
use super::reasons::Reasons;
use crate::client::outcome::{Failure, Phase, RequestOutcome};

/// The requests of a measurement in memory, 40 bytes each.
#[derive(Debug, Default)]
pub struct Requests {
    /// In the order in which they ended.
    pub(crate) rows: Vec<Request>,
    /// Issue times of the cohort's requests still in flight, on the same clock.
    pub in_flight_s: Vec<f64>,
    /// Size labels of the prompts; `None` for requests without a label.
    pub(super) sizes: Vec<Option<Arc<str>>>,
    /// Reasons for the cohort's failures.
    pub(crate) reasons: Reasons,
    pub(super) reach: Reach,
    /// Successes of the cohort whose first token ended the answer.
    pub(super) ended_at_once: u64,
    /// Known prompt tokens of the cohort's successes, by index in `sizes`; and whether any count is missing.
    pub(super) input_tokens: Vec<u64>,
    pub(super) input_unknown: bool,
    /// Prompt tokens that came from the server's prefix cache; `None` if no answer reported any.
    pub(super) cached_tokens: Option<u64>,
}

/// Times in seconds since the measurement began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub start_s: f64,
    /// NaN for a request that was given up.
    pub end_s: f64,
    /// How long its permit was held back after it failed.
    pub held: Micros,
    pub ttft: Micros,
    pub tpot: Micros,
    output_tokens: u32,
    pub seq: u32,
    /// Its index in [`Requests::sizes`].
    pub size: u16,
    pub failure: Option<Failure>,
    pub phase: Phase,
}

/// A time in microseconds; the largest number means unknown. An `Option` would take twice the space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Micros(u32);

impl Micros {
    fn of(seconds: Option<f64>) -> Self {
        Micros(seconds.map_or(u32::MAX, |seconds| micros(seconds).min(u32::MAX - 1)))
    }

    pub fn get(self) -> Option<u32> {
        unless_unknown(self.0)
    }
}

/// The largest number means unknown.
fn unless_unknown(number: u32) -> Option<u32> {
    (number < u32::MAX).then_some(number)
}

const _: () = assert!(size_of::<Request>() <= 40);

impl Requests {
    /// Reserves memory, so that growing does not copy. If that fails, it is not an error.
    pub fn with_room_for(requests: u64) -> Self {
        let mut made = Requests::default();
        let _ = made.rows.try_reserve_exact(usize::try_from(requests).unwrap_or(usize::MAX));
        made
    }

    pub fn push(&mut self, outcome: &RequestOutcome) {
        self.reach.add(outcome);
        let size = self.size_of(&outcome.prompt_size);
        if outcome.phase == Phase::Measured {
            self.count_in_cohort(outcome, size);
        }
        self.rows.push(Request {
            start_s: outcome.start_s,
            end_s: outcome.end_s.unwrap_or(f64::NAN),
            held: Micros::of(outcome.held_s),
            ttft: Micros::of(outcome.ttft_s),
            tpot: Micros::of(outcome.tpot_s()),
            output_tokens: outcome.output_tokens.unwrap_or(u32::MAX),
            seq: u32::try_from(outcome.seq).unwrap_or(u32::MAX),
            size,
            failure: outcome.failure,
            phase: outcome.phase,
        });
    }

    fn count_in_cohort(&mut self, outcome: &RequestOutcome, size: u16) {
        if let Some(failure) = outcome.failure {
            self.reasons.add(failure, outcome.error.as_deref().unwrap_or_default());
        } else if outcome.is_success() {
            self.ended_at_once += u64::from(outcome.chunks == 0 && outcome.output_tokens.is_some_and(|n| n > 0));
            self.input_tokens[usize::from(size)] += u64::from(outcome.input_tokens.unwrap_or_default());
            self.input_unknown |= outcome.input_tokens.is_none();
            self.cached_tokens = sum(self.cached_tokens, outcome.cached_tokens.map(u64::from));
        }
    }

    /// Leaves out all requests so far: they count as warm-up.
    pub fn leave_out(&mut self) {
        let mut rows = std::mem::take(&mut self.rows);
        rows.iter_mut().for_each(|request| request.phase = Phase::Warmup);
        let sizes = std::mem::take(&mut self.sizes);
        *self = Requests { rows, input_tokens: vec![0; sizes.len()], sizes, reach: self.reach, ..Requests::default() };
    }

    /// The index of a size label. All beyond the first 65,535 share the last index.
    fn size_of(&mut self, label: &Option<Arc<str>>) -> u16 {
        let at = self.sizes.iter().position(|size| size == label).unwrap_or_else(|| {
            self.sizes.push(label.clone());
            self.input_tokens.push(0);
            self.sizes.len() - 1
        });
        u16::try_from(at).unwrap_or(u16::MAX)
    }

    /// Whether the server was gone: more than `limit` of the requests found none, beyond chance.
    pub fn is_outage(&self, limit: f64) -> bool {
        self.reach.is_outage(limit)
    }

    /// Adds requests that ended later.
    pub fn append(&mut self, later: Requests) {
        self.in_flight_s.retain(|start_s| !later.cohort().any(|request| request.start_s == *start_s));
        let sizes: Vec<u16> = later.sizes.iter().map(|size| self.size_of(size)).collect();
        sizes.iter().zip(&later.input_tokens).for_each(|(at, tokens)| self.input_tokens[usize::from(*at)] += tokens);
        self.rows.extend(later.rows.into_iter().map(|row| Request { size: sizes[usize::from(row.size)], ..row }));
        self.reasons = Reasons::of_all([&self.reasons, &later.reasons].into_iter());
        self.reach = self.reach.with(later.reach);
        self.ended_at_once += later.ended_at_once;
        self.input_unknown |= later.input_unknown;
        self.cached_tokens = sum(self.cached_tokens, later.cached_tokens);
    }

    #[allow(clippy::len_without_is_empty, reason = "no caller needs it")]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The requests that were issued inside the window.
    pub(crate) fn cohort(&self) -> impl Iterator<Item = &Request> {
        self.rows.iter().filter(|request| request.phase == Phase::Measured)
    }
}

/// A missing count is 0 if the other is known: some servers report only nonzero counts.
pub(super) fn sum(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).reduce(|one, other| one + other)
}

impl<'a> FromIterator<&'a RequestOutcome> for Requests {
    fn from_iter<I: IntoIterator<Item = &'a RequestOutcome>>(outcomes: I) -> Self {
        let mut requests = Requests::default();
        outcomes.into_iter().for_each(|outcome| requests.push(outcome));
        requests
    }
}

impl Request {
    pub fn is_success(&self) -> bool {
        self.failure.is_none() && !self.end_s.is_nan()
    }

    /// How long it held its permit, microseconds: its latency and, after a failure, the time it was held back.
    pub fn held_us(&self) -> u32 {
        let latency = if self.end_s.is_nan() { 0.0 } else { self.end_s - self.start_s };
        micros(latency + self.held_s())
    }

    pub fn held_s(&self) -> f64 {
        self.held.get().map_or(0.0, seconds)
    }

    pub fn output_tokens(&self) -> Option<u32> {
        unless_unknown(self.output_tokens)
    }

    /// Seconds of its lifetime inside `window`.
    pub fn overlap_s(&self, window: [f64; 2]) -> f64 {
        overlap([self.start_s, self.end_s], window)
    }

    /// Seconds inside `window` during which its permit was held back.
    pub fn held_back_s(&self, window: [f64; 2]) -> f64 {
        overlap([self.end_s, self.end_s + self.held_s()], window)
    }

    /// Share of its lifetime inside `window`, from 0 to 1. A request with latency 0 counts in
    /// full if it ended inside.
    pub fn share(&self, window: [f64; 2]) -> f64 {
        let latency = self.end_s - self.start_s;
        if latency > 0.0 {
            return self.overlap_s(window) / latency;
        }
        if window[0] < self.end_s && self.end_s <= window[1] { 1.0 } else { 0.0 }
    }
}

/// 0 if an end is NaN.
fn overlap([from, to]: [f64; 2], window: [f64; 2]) -> f64 {
    if to.is_nan() { 0.0 } else { (to.min(window[1]) - from.max(window[0])).max(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::outcome::tests::outcome;

    fn share_of(outcome: &RequestOutcome, window: [f64; 2]) -> f64 {
        Requests::from_iter([outcome]).rows[0].share(window)
    }

    #[test]
    fn share_is_the_part_of_the_life_inside_the_window() {
        for (start, end, share) in [
            (1.0, 3.0, 1.0),
            (0.0, 2.0, 0.5),
            (2.5, 4.5, 0.25),
            (0.0, 4.0, 0.5),
            (3.0, 4.0, 0.0),
            (0.0, 1.0, 0.0),
            (2.0, 2.0, 1.0),
        ] {
            assert_eq!(share_of(&outcome(start, end), [1.0, 3.0]), share, "{start}..{end}");
        }
        let cut = RequestOutcome { end_s: None, latency_s: None, ..outcome(1.0, 2.0) };
        assert!(!cut.is_success());
        assert_eq!(share_of(&cut, [0.0, 9.0]), 0.0, "its end is unknown");
    }
}
