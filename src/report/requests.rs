//! What the records of single requests add to the figures of the levels: distributions, the course of the run, and
//! the reasons of failures. A million requests come to some thousand points. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::client::outcome::{Failure, Phase, RequestOutcome};
use crate::figures::quantile;
use crate::figures::reasons::{Reason, Reasons};

/// Bins of the requests in flight, all loops together; each has at least [`FEWEST`] beside that.
const BINS: f64 = 1_200.0;
/// Bins of the rates: fewer, and with this many requests in each on average, or they show nothing but chance.
const RATE_BINS: f64 = 400.0;
const PER_RATE_BIN: f64 = 10.0;
const FEWEST: f64 = 4.0;
/// Different reasons that are kept.
const REASONS: usize = 12;

/// The requests of one loop, thinned as they are read: there may be millions. It measured one level, or visited several.
#[derive(Clone, Debug, Default)]
pub struct Loop {
    measurements: Vec<Measurement>,
    lives: Vec<Life>,
}

#[derive(Clone, Debug)]
struct Measurement {
    level: usize,
    window_s: Option<[f64; 2]>,
    reasons: Reasons,
}

/// Seconds since the loop began, and how it ended.
#[derive(Clone, Copy, Debug)]
struct Life {
    /// Its measurement.
    of: u32,
    start_s: f32,
    length_s: f32,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// A success of the cohort.
    Measured,
    Uncounted,
    Failed,
    /// The level ended first.
    CutOff,
}

impl Life {
    fn end_s(&self) -> f64 {
        f64::from(self.start_s) + f64::from(self.length_s)
    }
}

impl Loop {
    /// Of these levels, each with its measured window in seconds since the loop began, in the order of time.
    pub fn new(measurements: impl IntoIterator<Item = (usize, Option<[f64; 2]>)>) -> Self {
        let measurement = |(level, window_s)| Measurement { level, window_s, reasons: Reasons::default() };
        Loop { measurements: measurements.into_iter().map(measurement).collect(), lives: Vec::new() }
    }

    /// Adds a request of the measurement with this number, from 0.
    pub fn add(&mut self, of: usize, outcome: RequestOutcome) {
        let Some(measurement) = self.measurements.get_mut(of) else { return };
        let end = match (outcome.end_s, outcome.failure, outcome.phase) {
            (None, ..) => End::CutOff,
            (_, Some(_), _) => End::Failed,
            (_, None, Phase::Measured) => End::Measured,
            _ => End::Uncounted,
        };
        let length_s = outcome.end_s.map_or(0.0, |end_s| end_s - outcome.start_s) as f32;
        self.lives.push(Life { of: of as u32, start_s: outcome.start_s as f32, length_s, end });
        if let (Some(kind), Phase::Measured) = (outcome.failure, outcome.phase) {
            measurement.reasons.add(kind, outcome.error.as_deref().unwrap_or_default());
        }
    }

    /// Seconds from the first request to the last answer.
    fn length_s(&self) -> f64 {
        self.lives.iter().map(Life::end_s).fold(0.0, f64::max)
    }

    /// A visit begins where the window of the one before ended; the last one ends with the drain.
    fn segments(&self, begin_s: f64, length_s: f64) -> Vec<Segment> {
        let last = self.measurements.len() - 1;
        let mut from_s = begin_s;
        let segment = |(at, of): (usize, &Measurement)| {
            let window_s = of.window_s.map(|window| window.map(|at| at + begin_s));
            let end_s = if at == last { begin_s + length_s } else { window_s.map_or(from_s, |[_, end_s]| end_s) };
            Segment { level: of.level, begin_s: std::mem::replace(&mut from_s, end_s), end_s, window_s }
        };
        self.measurements.iter().enumerate().map(segment).collect()
    }
}

/// A failure's reason in all measurements together, and at which levels it came.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReasonAt {
    #[serde(flatten)]
    pub reason: Reason,
    pub levels: Vec<usize>,
}

/// One measurement on the timeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    pub level: usize,
    /// On the clock of the timeline, as is the measured window.
    pub begin_s: f64,
    pub end_s: f64,
    pub window_s: Option<[f64; 2]>,
}

/// The measurements in their order. Seconds of load since the run's first request: the pauses between measurements are
/// left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    pub segments: Vec<Segment>,
    /// Requests in flight, averaged over each bin. A bin begins at its place, and the last entry only closes the last.
    pub in_flight: Vec<[f64; 2]>,
    /// Successes per second that ended in each of other, wider bins.
    pub successes_rps: Vec<[f64; 2]>,
    pub failures_rps: Vec<[f64; 2]>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    /// Per level the latency, seconds, at each of [`shares`]; all measurements of a level together.
    pub distributions: BTreeMap<usize, Vec<f64>>,
    pub timeline: Timeline,
    pub reasons: Vec<ReasonAt>,
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
    /// Thins the requests of all loops; `None` if there are none.
    pub fn of(loops: &[Loop]) -> Option<Self> {
        if loops.iter().all(|of| of.lives.is_empty()) {
            return None;
        }
        let (reasons, reasons_left_out) = reasons(loops);
        let timeline = timeline(loops);
        let mut latencies: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        for Loop { measurements, lives } in loops {
            for life in lives.iter().filter(|life| life.end == End::Measured) {
                latencies.entry(measurements[life.of as usize].level).or_default().push(life.length_s);
            }
        }
        let distributions = latencies.into_iter().filter_map(|(level, values)| Some((level, distribution(values)?)));
        Some(Curves { distributions: distributions.collect(), timeline, reasons, reasons_left_out })
    }
}

fn reasons(loops: &[Loop]) -> (Vec<ReasonAt>, usize) {
    let mut all: BTreeMap<(Failure, &str), (Reason, BTreeSet<usize>)> = BTreeMap::new();
    for measurement in loops.iter().flat_map(|of| &of.measurements) {
        for ((kind, common), of_level) in measurement.reasons.groups() {
            let new = || (Reason { count: 0, ..of_level.clone() }, BTreeSet::new());
            let (reason, levels) = all.entry((*kind, common)).or_insert_with(new);
            reason.count += of_level.count;
            levels.insert(measurement.level);
        }
    }
    let all = all.into_values().map(|(reason, levels)| ReasonAt { reason, levels: levels.into_iter().collect() });
    let mut reasons: Vec<ReasonAt> = all.collect();
    reasons.sort_by_key(|of_all| std::cmp::Reverse(of_all.reason.count));
    let left_out = reasons.len().saturating_sub(REASONS);
    reasons.truncate(REASONS);
    (reasons, left_out)
}

fn timeline(loops: &[Loop]) -> Timeline {
    let total: f64 = loops.iter().map(Loop::length_s).sum();
    let mut line = Timeline::default();
    let mut begin_s = 0.0;
    for of in loops {
        let length_s = of.length_s();
        if length_s > 0.0 && length_s.is_finite() {
            let [in_flight, successes, failures] = binned(&of.lives, length_s, length_s / total);
            line.in_flight.extend(in_flight.after(begin_s));
            line.successes_rps.extend(successes.after(begin_s));
            line.failures_rps.extend(failures.after(begin_s));
            line.segments.extend(of.segments(begin_s, length_s));
            begin_s += length_s;
        }
    }
    for bins in [&mut line.in_flight, &mut line.successes_rps, &mut line.failures_rps] {
        bins.push([begin_s, 0.0]);
    }
    line
}

/// Equal bins over the length of a loop.
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

    fn add_event(&mut self, at: f64) {
        let bin = self.of(at);
        self.values[bin] += 1.0 / self.width_s;
    }

    fn after(self, begin_s: f64) -> impl Iterator<Item = [f64; 2]> {
        self.values.into_iter().enumerate().map(move |(at, value)| [begin_s + at as f64 * self.width_s, value])
    }
}

/// In flight, successes and failures. `share` is that of the whole run's time.
fn binned(lives: &[Life], length_s: f64, share: f64) -> [Bins; 3] {
    let rate_bins = (RATE_BINS * share).min(lives.len() as f64 / PER_RATE_BIN);
    let [mut in_flight, mut successes, mut failures] =
        [BINS * share, rate_bins, rate_bins].map(|count| Bins::new(length_s, count));
    for life in lives {
        in_flight.add_life(f64::from(life.start_s), if life.end == End::CutOff { length_s } else { life.end_s() });
        match life.end {
            End::CutOff => {}
            End::Failed => failures.add_event(life.end_s()),
            End::Measured | End::Uncounted => successes.add_event(life.end_s()),
        }
    }
    [in_flight, successes, failures]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::outcome::tests::outcome;

    fn measurement(level: usize, outcomes: impl IntoIterator<Item = RequestOutcome>) -> Loop {
        let mut made = Loop::new([(level, Some([1.0, 2.0]))]);
        outcomes.into_iter().for_each(|outcome| made.add(0, outcome));
        made
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
        assert_eq!(Curves::of(&[measurement(1, [])]), None);
    }

    #[test]
    fn a_distribution_is_that_of_the_successes_of_the_cohort_of_all_measurements() {
        let warmup = RequestOutcome { phase: Phase::Warmup, ..outcome(0.0, 9.0) };
        let first = measurement(2, [warmup, outcome(0.0, 1.0), failed(0.0, 7.0, Failure::Timeout, "late")]);
        let second = measurement(2, [outcome(0.0, 3.0)]);
        let curves = Curves::of(&[first, second]).expect("requests");
        let curve = &curves.distributions[&2];
        assert_eq!((curve[0], curve[50], curve[curve.len() - 1]), (1.0, 2.0, 3.0));
        assert_eq!(curves.timeline.segments.len(), 2);
    }

    #[test]
    fn the_timeline_adds_up() {
        let cut = RequestOutcome { end_s: None, latency_s: None, ..outcome(3.0, 4.0) };
        let outcomes = [outcome(0.0, 2.0), outcome(1.0, 3.5), failed(2.0, 4.0, Failure::ServerError, "no"), cut];
        let line = timeline(&[measurement(2, outcomes)]);
        assert_eq!(line.segments[0].end_s, 4.0);
        let sum = |bins: &[[f64; 2]]| bins.windows(2).map(|pair| (pair[1][0] - pair[0][0]) * pair[0][1]).sum::<f64>();
        // 2 + 2.5 + 2 seconds of life, and 1 of the one that was cut off.
        for (bins, expected) in [(&line.in_flight, 7.5), (&line.successes_rps, 2.0), (&line.failures_rps, 1.0)] {
            assert!((sum(bins) - expected).abs() < 1e-9, "{expected}: {bins:?}");
        }
        assert!(line.in_flight.iter().all(|[_, n]| *n <= 3.0 + 1e-9));
    }

    #[test]
    fn measurements_follow_each_other_and_their_bins_are_bounded() {
        let measurements: Vec<_> =
            (1..=200).map(|level| measurement(level, [outcome(0.0, 1.0), outcome(0.5, level as f64)])).collect();
        let Timeline { segments, in_flight, successes_rps, .. } = timeline(&measurements);
        assert_eq!(segments.len(), 200);
        assert!(segments.windows(2).all(|pair| pair[0].end_s == pair[1].begin_s));
        assert_eq!(segments[3].window_s, Some([segments[3].begin_s + 1.0, segments[3].begin_s + 2.0]));
        assert!(in_flight.len() as f64 <= BINS + 200.0 * FEWEST, "{}", in_flight.len());
        // Two requests are too few for a rate that changes.
        assert_eq!(successes_rps.len() as f64, 200.0 * FEWEST + 1.0);
    }

    /// Two visits of one loop, and a request that spans both: one clock, and each life where it was.
    #[test]
    fn visits_lie_where_they_were_in_their_loop() {
        let mut visits = Loop::new([(2, Some([1.0, 4.0])), (8, Some([5.0, 9.0]))]);
        for (of, start, end) in [(0, 1.0, 3.0), (0, 3.0, 6.0), (1, 5.0, 8.0), (1, 8.0, 10.0), (7, 0.0, 99.0)] {
            visits.add(of, outcome(start, end));
        }
        let before = measurement(1, [outcome(0.0, 2.0)]);
        let curves = Curves::of(&[before, visits]).expect("requests");
        let Timeline { segments, in_flight, .. } = curves.timeline;
        let places: Vec<_> = segments.iter().map(|of| (of.level, of.begin_s, of.end_s, of.window_s)).collect();
        let windows = [[1.0, 2.0], [3.0, 6.0], [7.0, 11.0]].map(Some);
        assert_eq!(places, [(1, 0.0, 2.0, windows[0]), (2, 2.0, 6.0, windows[1]), (8, 6.0, 12.0, windows[2])]);
        let at = |time: f64| in_flight.iter().rfind(|bin| bin[0] <= time).expect("a bin")[1];
        assert!((at(7.5) - 2.0).abs() < 1e-9 && (at(11.0) - 1.0).abs() < 1e-9, "{in_flight:?}");
        assert_eq!(curves.distributions[&8][50], 2.5);
    }

    #[test]
    fn the_most_frequent_reasons_are_kept_with_their_levels() {
        let many = (0..20).map(|i| failed(0.0, 1.0, Failure::Connect, &format!("reason {i}")));
        let often = (0..3).map(|_| failed(0.0, 1.0, Failure::ServerError, "HTTP 503"));
        let curves = Curves::of(&[
            measurement(10, many.chain(often)),
            measurement(5, [failed(0.0, 1.0, Failure::ServerError, "HTTP 503")]),
        ])
        .expect("requests");
        let first = &curves.reasons[0];
        let Reason { kind, text, count } = &first.reason;
        assert_eq!((*kind, text.as_str(), *count), (Failure::ServerError, "HTTP 503", 4));
        assert_eq!(first.levels, [5, 10]);
        assert_eq!((curves.reasons.len(), curves.reasons_left_out), (REASONS, 21 - REASONS));
    }
}
