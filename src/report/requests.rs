//! What the records of single requests add to the figures of the levels: distributions, the course of the run, and
//! the reasons of failures. A million requests come to some thousand points. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::client::outcome::{Failure, Phase, RequestOutcome};
use crate::figures::quantile;
use crate::figures::reasons::{Reason, Reasons};

/// Bins of the requests in flight, all loops together; each has at least [`FEWEST`] beside that.
pub const BINS: f64 = 1_200.0;
/// Bins of the rates: fewer, and with this many requests in each on average, or they show nothing but chance.
const RATE_BINS: f64 = 400.0;
const PER_RATE_BIN: f64 = 10.0;
pub const FEWEST: f64 = 4.0;
/// Different reasons that are kept.
pub const REASONS: usize = 12;

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

/// Seconds since the loop began, and how it ended: 12 bytes.
#[derive(Clone, Copy, Debug)]
struct Life {
    /// Its measurement.
    of: u16,
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
        let (Ok(at), Some(measurement)) = (u16::try_from(of), self.measurements.get_mut(of)) else { return };
        let end = match (outcome.end_s, outcome.failure, outcome.phase) {
            (None, ..) => End::CutOff,
            (_, Some(_), _) => End::Failed,
            (_, None, Phase::Measured) => End::Measured,
            _ => End::Uncounted,
        };
        let length_s = outcome.end_s.map_or(0.0, |end_s| end_s - outcome.start_s) as f32;
        self.lives.push(Life { of: at, start_s: outcome.start_s as f32, length_s, end });
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
    pub levels: BTreeSet<usize>,
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

/// Times are seconds of load since the run's first request: the pauses between measurements are left out. A bin begins at
/// its place, and the last entry only closes the last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    /// Per level the latency, seconds, at each of [`shares`]; all measurements of a level together.
    pub distributions: BTreeMap<usize, Vec<f64>>,
    /// In their order.
    pub segments: Vec<Segment>,
    /// Requests in flight, averaged over each bin.
    pub in_flight: Vec<[f64; 2]>,
    /// Per second, in each of other, wider bins.
    pub successes_rps: Vec<[f64; 2]>,
    pub failures_rps: Vec<[f64; 2]>,
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
        let mut latencies: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        for Loop { measurements, lives } in loops {
            for life in lives.iter().filter(|life| life.end == End::Measured) {
                latencies.entry(measurements[life.of as usize].level).or_default().push(life.length_s);
            }
        }
        let distributions = latencies.into_iter().filter_map(|(level, values)| Some((level, distribution(values)?)));
        let (reasons, reasons_left_out) = reasons(loops);
        let distributions = distributions.collect();
        Some(Curves { distributions, reasons, reasons_left_out, ..Curves::timeline(loops) })
    }

    fn timeline(loops: &[Loop]) -> Self {
        let total: f64 = loops.iter().map(Loop::length_s).sum();
        let mut line = Curves::default();
        let mut begin_s = 0.0;
        for of in loops {
            let length_s = of.length_s();
            if length_s <= 0.0 || !length_s.is_finite() {
                continue;
            }
            let share = length_s / total;
            let rate_bins = (RATE_BINS * share).min(of.lives.len() as f64 / PER_RATE_BIN);
            let [mut in_flight, mut successes, mut failures] =
                [BINS * share, rate_bins, rate_bins].map(|count| Bins::new(begin_s, length_s, count));
            for life in &of.lives {
                let end_s = begin_s + if life.end == End::CutOff { length_s } else { life.end_s() };
                in_flight.add_life(begin_s + f64::from(life.start_s), end_s);
                match life.end {
                    End::CutOff => {}
                    End::Failed => failures.add_event(end_s),
                    End::Measured | End::Uncounted => successes.add_event(end_s),
                }
            }
            line.in_flight.extend(in_flight.values);
            line.successes_rps.extend(successes.values);
            line.failures_rps.extend(failures.values);
            line.segments.extend(of.segments(begin_s, length_s));
            begin_s += length_s;
        }
        for bins in [&mut line.in_flight, &mut line.successes_rps, &mut line.failures_rps] {
            bins.push([begin_s, 0.0]);
        }
        line
    }
}

fn reasons(loops: &[Loop]) -> (Vec<ReasonAt>, usize) {
    let mut all: BTreeMap<(Failure, &str), ReasonAt> = BTreeMap::new();
    for measurement in loops.iter().flat_map(|of| &of.measurements) {
        for ((kind, common), of_level) in measurement.reasons.groups() {
            let new = || ReasonAt { reason: Reason { count: 0, ..of_level.clone() }, levels: BTreeSet::new() };
            let of_all = all.entry((*kind, common)).or_insert_with(new);
            of_all.reason.count += of_level.count;
            of_all.levels.insert(measurement.level);
        }
    }
    let mut reasons: Vec<ReasonAt> = all.into_values().collect();
    reasons.sort_by_key(|of_all| std::cmp::Reverse(of_all.reason.count));
    let left_out = reasons.len().saturating_sub(REASONS);
    reasons.truncate(REASONS);
    (reasons, left_out)
}

/// Equal bins over the length of a loop: where each begins, and what is in it.
struct Bins {
    begin_s: f64,
    width_s: f64,
    values: Vec<[f64; 2]>,
}

impl Bins {
    fn new(begin_s: f64, length_s: f64, count: f64) -> Self {
        let count = count.max(FEWEST).round();
        let width_s = length_s / count;
        let values = (0..count as usize).map(|at| [begin_s + at as f64 * width_s, 0.0]).collect();
        Bins { begin_s, width_s, values }
    }

    /// Adds what is there from one moment of the timeline to another, as a mean over the bin.
    fn add_life(&mut self, from: f64, to: f64) {
        for at in self.of(from)..=self.of(to) {
            let [begin, value] = &mut self.values[at];
            *value += (to.min(*begin + self.width_s) - from.max(*begin)).max(0.0) / self.width_s;
        }
    }

    fn add_event(&mut self, at: f64) {
        let bin = self.of(at);
        self.values[bin][1] += 1.0 / self.width_s;
    }

    fn of(&self, at: f64) -> usize {
        (((at - self.begin_s) / self.width_s) as usize).min(self.values.len() - 1)
    }
}
