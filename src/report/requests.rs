//! What the records of single requests add to the figures of the levels: distributions, the course of the run, and
//! the reasons of failures. A million requests come to some thousand points. Pure.

use std::collections::BTreeMap;

use crate::client::outcome::{Failure, Phase, RequestOutcome};
use crate::figures::quantile;
use crate::figures::reasons::Reasons;

/// Bins of the requests in flight, all measurements together; each has at least [`FEWEST`] beside that.
const BINS: f64 = 2_400.0;
/// Bins of the rates: fewer, and with this many requests in each on average, or they show nothing but chance.
const RATE_BINS: f64 = 400.0;
const PER_RATE_BIN: f64 = 10.0;
const FEWEST: f64 = 4.0;
/// Different reasons that are kept.
const REASONS: usize = 12;

/// The requests of one measurement of one level, as they are read: in columns, of 9 bytes each, since there may be
/// millions.
#[derive(Clone, Debug, Default)]
pub struct Measurement {
    level: usize,
    window_s: Option<[f64; 2]>,
    /// Seconds since the level began.
    starts: Vec<f32>,
    /// Seconds from there to the end; NaN if it was cut off.
    lengths: Vec<f32>,
    ends: Vec<End>,
    reasons: Reasons,
}

/// How a request ended, as far as the curves want to know.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// A success of the cohort.
    Measured,
    /// Another success.
    Uncounted,
    Failed,
}

impl Measurement {
    /// Of `level`, with its measured window, seconds since it began.
    pub fn new(level: usize, window_s: Option<[f64; 2]>) -> Self {
        Measurement { level, window_s, ..Measurement::default() }
    }

    /// Takes a request's record.
    pub fn add(&mut self, outcome: RequestOutcome) {
        self.starts.push(outcome.start_s as f32);
        self.lengths.push(outcome.end_s.map_or(f32::NAN, |end_s| (end_s - outcome.start_s) as f32));
        self.ends.push(match (outcome.failure, outcome.phase) {
            (Some(_), _) => End::Failed,
            (None, Phase::Measured) => End::Measured,
            (None, _) => End::Uncounted,
        });
        if let (Some(kind), Phase::Measured) = (outcome.failure, outcome.phase) {
            self.reasons.add(kind, outcome.error.as_deref().unwrap_or_default());
        }
    }

    /// Seconds from the first request to the last answer.
    fn length_s(&self) -> f64 {
        self.lives().map(|(start, end, _)| end.unwrap_or(start)).fold(0.0, f64::max)
    }

    /// Start and end (none if it was cut off), and how it ended.
    fn lives(&self) -> impl Iterator<Item = (f64, Option<f64>, End)> {
        let spans =
            self.starts.iter().zip(&self.lengths).map(|(&start, &length)| (f64::from(start), f64::from(length)));
        let spans = spans.map(|(start, length)| (start, Some(start + length).filter(|end| !end.is_nan())));
        spans.zip(&self.ends).map(|((start, end), &how)| (start, end, how))
    }

    /// Latencies of the successes of the cohort.
    fn latencies(&self) -> impl Iterator<Item = f32> {
        let counted =
            self.lengths.iter().zip(&self.ends).filter(|(length, end)| **end == End::Measured && !length.is_nan());
        counted.map(|(&length, _)| length)
    }
}

/// A failure's kind and words, how often and at which levels it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Reason {
    /// The kind.
    pub kind: Failure,
    /// What the server or the network said, short and redacted.
    pub text: String,
    /// How often, in the cohorts of all levels.
    pub count: u64,
    /// Where.
    pub levels: Vec<usize>,
}

/// One measurement on the timeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// The level.
    pub level: usize,
    /// When it begins, seconds of load since the run's first request. The pauses between measurements are left out.
    pub begin_s: f64,
    /// Its length, seconds.
    pub length_s: f64,
    /// The measured window on the same clock.
    pub window_s: Option<[f64; 2]>,
    /// Requests in flight, averaged over each of equal bins.
    pub in_flight: Vec<f64>,
    /// Successes per second that ended in each of equal (wider) bins.
    pub successes_rps: Vec<f64>,
    /// Failures per second, in the same bins.
    pub failures_rps: Vec<f64>,
}

/// All of it, thinned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    /// Per level the latency, seconds, at each of [`shares`]; all measurements of a level together.
    pub distributions: BTreeMap<usize, Vec<f64>>,
    /// The measurements in their order.
    pub timeline: Vec<Segment>,
    /// The most frequent reasons of failures.
    pub reasons: Vec<Reason>,
    /// How many different ones are left out.
    pub reasons_left_out: usize,
}

/// Shares at which a distribution is kept: every hundredth, and every thousandth of the last hundredth.
pub fn shares() -> Vec<f64> {
    (0..99).map(|i| f64::from(i) / 100.0).chain((990..=1000).map(|i| f64::from(i) / 1000.0)).collect()
}

/// The latency at each of [`shares`]; `None` for no values.
fn distribution(mut latencies: Vec<f32>) -> Option<Vec<f64>> {
    latencies.sort_unstable_by(f32::total_cmp);
    shares()
        .into_iter()
        .map(|p| quantile(latencies.len() as u64, p, |rank| f64::from(latencies[rank as usize])))
        .collect()
}

impl Curves {
    /// Thins the requests of all measurements; `None` if there are none.
    pub fn of(measurements: Vec<Measurement>) -> Option<Self> {
        if measurements.iter().all(|measurement| measurement.starts.is_empty()) {
            return None;
        }
        let (reasons, reasons_left_out) = reasons(&measurements);
        let timeline = timeline(&measurements);
        let mut latencies: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        for measurement in &measurements {
            latencies.entry(measurement.level).or_default().extend(measurement.latencies());
        }
        let distributions = latencies.into_iter().filter_map(|(level, values)| Some((level, distribution(values)?)));
        Some(Curves { distributions: distributions.collect(), timeline, reasons, reasons_left_out })
    }
}

fn reasons(measurements: &[Measurement]) -> (Vec<Reason>, usize) {
    let mut all: BTreeMap<(Failure, &str), Reason> = BTreeMap::new();
    for measurement in measurements {
        for ((kind, common), of_level) in measurement.reasons.groups() {
            let new = || Reason { kind: *kind, text: of_level.text.clone(), count: 0, levels: Vec::new() };
            let reason = all.entry((*kind, common)).or_insert_with(new);
            reason.count += of_level.count;
            reason.levels.push(measurement.level);
        }
    }
    let mut reasons: Vec<Reason> = all.into_values().collect();
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.count));
    let left_out = reasons.len().saturating_sub(REASONS);
    reasons.truncate(REASONS);
    for reason in &mut reasons {
        reason.levels.sort_unstable();
        reason.levels.dedup();
    }
    (reasons, left_out)
}

fn timeline(measurements: &[Measurement]) -> Vec<Segment> {
    let total: f64 = measurements.iter().map(Measurement::length_s).sum();
    let mut begin_s = 0.0;
    let mut segments = Vec::new();
    for measurement in measurements {
        let length_s = measurement.length_s();
        if length_s > 0.0 && length_s.is_finite() {
            segments.push(segment(measurement, begin_s, length_s, length_s / total));
            begin_s += length_s;
        }
    }
    segments
}

/// Equal bins over the length of a measurement.
struct Bins {
    width_s: f64,
    values: Vec<f64>,
}

impl Bins {
    fn new(length_s: f64, count: f64) -> Self {
        let count = count.max(FEWEST).round();
        Bins { width_s: length_s / count, values: vec![0.0; count as usize] }
    }

    fn of(&self, at: f64) -> usize {
        ((at / self.width_s) as usize).min(self.values.len() - 1)
    }

    /// The mean of what is there from `start` to `end`.
    fn add_life(&mut self, start: f64, end: f64) {
        for at in self.of(start)..=self.of(end) {
            let (from, to) = (at as f64 * self.width_s, (at + 1) as f64 * self.width_s);
            self.values[at] += (end.min(to) - start.max(from)).max(0.0) / self.width_s;
        }
    }

    /// The rate of what happens.
    fn add_event(&mut self, at: f64) {
        let bin = self.of(at);
        self.values[bin] += 1.0 / self.width_s;
    }
}

/// `share` is that of the whole run's time.
fn segment(measurement: &Measurement, begin_s: f64, length_s: f64, share: f64) -> Segment {
    let mut in_flight = Bins::new(length_s, BINS * share);
    let rate_bins = (RATE_BINS * share).min(measurement.starts.len() as f64 / PER_RATE_BIN);
    let (mut successes, mut failures) = (Bins::new(length_s, rate_bins), Bins::new(length_s, rate_bins));
    for (start, end, how) in measurement.lives() {
        in_flight.add_life(start, end.unwrap_or(length_s));
        if let Some(end) = end {
            let rates = if how == End::Failed { &mut failures } else { &mut successes };
            rates.add_event(end);
        }
    }
    Segment {
        level: measurement.level,
        begin_s,
        length_s,
        window_s: measurement.window_s.map(|window| window.map(|at| at + begin_s)),
        in_flight: in_flight.values,
        successes_rps: successes.values,
        failures_rps: failures.values,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::outcome::tests::outcome;

    fn measurement(level: usize, outcomes: impl IntoIterator<Item = RequestOutcome>) -> Measurement {
        let mut measurement = Measurement::new(level, Some([1.0, 2.0]));
        outcomes.into_iter().for_each(|outcome| measurement.add(outcome));
        measurement
    }

    fn failed(start: f64, end: f64, kind: Failure, text: &str) -> RequestOutcome {
        RequestOutcome { failure: Some(kind), error: Some(text.to_owned()), ..outcome(start, end) }
    }

    #[test]
    fn a_distribution_keeps_its_ends_and_its_percentiles() {
        let curve = distribution((0..=1000_u16).rev().map(f32::from).collect()).expect("values");
        assert_eq!(curve.len(), shares().len());
        for (share, value) in shares().into_iter().zip(curve) {
            assert!((value - 1000.0 * share).abs() < 1e-9, "{share}: {value}");
        }
        assert_eq!(distribution(Vec::new()), None);
        assert!(shares().windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn a_distribution_is_that_of_the_successes_of_the_cohort_of_all_measurements() {
        let warmup = RequestOutcome { phase: Phase::Warmup, ..outcome(0.0, 9.0) };
        let first = measurement(2, [warmup, outcome(0.0, 1.0), failed(0.0, 7.0, Failure::Timeout, "late")]);
        let second = measurement(2, [outcome(0.0, 3.0)]);
        let curves = Curves::of(vec![first, second]).expect("requests");
        let curve = &curves.distributions[&2];
        assert_eq!((curve[0], curve[50], curve[curve.len() - 1]), (1.0, 2.0, 3.0));
        assert_eq!(curves.timeline.len(), 2);
    }

    #[test]
    fn the_timeline_adds_up() {
        let cut = RequestOutcome { end_s: None, latency_s: None, ..outcome(3.0, 4.0) };
        let outcomes = [outcome(0.0, 2.0), outcome(1.0, 3.5), failed(2.0, 4.0, Failure::ServerError, "no"), cut];
        let segment = &timeline(&[measurement(2, outcomes)])[0];
        assert_eq!(segment.length_s, 4.0);
        let sum = |values: &[f64]| values.iter().sum::<f64>() * segment.length_s / values.len() as f64;
        // 2 + 2.5 + 2 seconds of life, and 1 of the one that was cut off.
        assert!((sum(&segment.in_flight) - 7.5).abs() < 1e-9);
        assert!((sum(&segment.successes_rps) - 2.0).abs() < 1e-9);
        assert!((sum(&segment.failures_rps) - 1.0).abs() < 1e-9);
        assert!(segment.in_flight.iter().all(|&n| n <= 3.0 + 1e-9));
    }

    #[test]
    fn measurements_follow_each_other_and_their_bins_are_bounded() {
        let measurements: Vec<_> =
            (1..=200).map(|level| measurement(level, [outcome(0.0, 1.0), outcome(0.5, level as f64)])).collect();
        let segments = timeline(&measurements);
        assert_eq!(segments.len(), 200);
        for pair in segments.windows(2) {
            assert!((pair[0].begin_s + pair[0].length_s - pair[1].begin_s).abs() < 1e-9);
        }
        assert_eq!(segments[3].window_s, Some([segments[3].begin_s + 1.0, segments[3].begin_s + 2.0]));
        let bins: usize = segments.iter().map(|segment| segment.in_flight.len()).sum();
        assert!(bins as f64 <= BINS + 200.0 * FEWEST, "{bins}");
        // Two requests are too few for a rate that changes.
        assert!(segments.iter().all(|segment| segment.successes_rps.len() as f64 == FEWEST));
    }

    #[test]
    fn the_most_frequent_reasons_are_kept_with_their_levels() {
        let many = (0..20).map(|i| failed(0.0, 1.0, Failure::Connect, &format!("reason {i}")));
        let often = (0..3).map(|_| failed(0.0, 1.0, Failure::ServerError, "HTTP 503"));
        let curves = Curves::of(vec![
            measurement(10, many.chain(often)),
            measurement(5, [failed(0.0, 1.0, Failure::ServerError, "HTTP 503")]),
        ])
        .expect("requests");
        let first = &curves.reasons[0];
        assert_eq!((first.kind, first.text.as_str(), first.count), (Failure::ServerError, "HTTP 503", 4));
        assert_eq!(first.levels, [5, 10]);
        assert_eq!((curves.reasons.len(), curves.reasons_left_out), (REASONS, 21 - REASONS));
    }

    #[test]
    fn without_requests_there_are_no_curves() {
        assert_eq!(Curves::of(vec![measurement(1, [])]), None);
        assert_eq!(Curves::of(Vec::new()), None);
    }
}
