//! What the records of the individual requests add to the figures of the levels: distributions, the timeline of
//! the run, and the reasons for failures. A million requests are reduced to a few thousand points. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::client::outcome::Failure;
use crate::figures::reasons::Reason;
use crate::figures::{Request, Requests, quantile};

/// Number of bins for the requests in flight, over all loops; each loop has at least [`FEWEST`].
pub const BINS: f64 = 1_200.0;
/// Number of bins for the rates: fewer, and with at least this many requests each on average, or they only show noise.
const RATE_BINS: f64 = 400.0;
const PER_RATE_BIN: f64 = 10.0;
pub const FEWEST: f64 = 4.0;
/// Maximum number of distinct reasons that are kept.
pub const REASONS: usize = 12;

/// The measurements of one loop in chronological order: a single one, or visits to several levels.
pub type Loop = Vec<Part>;

/// One measurement of a loop, and its requests. Its window is in seconds since the loop began.
#[derive(Debug)]
pub struct Part {
    pub level: usize,
    pub window_s: Option<[f64; 2]>,
    pub requests: Requests,
}

/// Seconds from the first request to the last answer.
fn length_s(of: &Loop) -> f64 {
    requests(of).map(|request| request.end_s.max(request.start_s)).fold(0.0, f64::max)
}

fn requests(of: &Loop) -> impl Iterator<Item = &Request> {
    of.iter().flat_map(|part| &part.requests.rows)
}

/// A visit's segment begins where the window of the previous visit ended; that of the last one includes the drain.
fn segments_of(of: &Loop, begin_s: f64, length_s: f64) -> Vec<Segment> {
    let mut from_s = begin_s;
    let segment = |(at, part): (usize, &Part)| {
        let window_s = part.window_s.map(|window| window.map(|at| at + begin_s));
        let end_s = if at + 1 == of.len() { begin_s + length_s } else { window_s.map_or(from_s, |[_, end_s]| end_s) };
        Segment { level: part.level, begin_s: std::mem::replace(&mut from_s, end_s), end_s, window_s }
    };
    of.iter().enumerate().map(segment).collect()
}

/// A reason for failures, counted over all measurements, and the levels at which it occurred.
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
    /// On the clock of the timeline, like the end and the measured window.
    pub begin_s: f64,
    pub end_s: f64,
    pub window_s: Option<[f64; 2]>,
}

/// Times are seconds of load since the run's first request, without the pauses between
/// measurements. A bin is given by its start, and the last entry only closes the last bin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    /// For each level, the latency in seconds at each of [`shares`], over all its measurements.
    pub distributions: BTreeMap<usize, Vec<f64>>,
    /// In chronological order.
    pub segments: Vec<Segment>,
    /// Requests in flight, averaged over each bin.
    pub in_flight: Vec<[f64; 2]>,
    /// Successes and failures per second, averaged over each of other, wider bins.
    pub successes_rps: Vec<[f64; 2]>,
    pub failures_rps: Vec<[f64; 2]>,
    pub reasons: Vec<ReasonAt>,
    pub reasons_left_out: usize,
}

/// Shares at which a distribution is kept: every fiftieth up to the median, where it is smooth,
/// then every hundredth, and every thousandth within the last hundredth.
pub fn shares() -> Vec<f64> {
    let steps = |range: std::ops::Range<u32>, of: f64| range.map(move |step| f64::from(step) / of);
    steps(0..25, 50.0).chain(steps(50..99, 100.0)).chain(steps(990..1001, 1000.0)).collect()
}

/// The latency at each of [`shares`]; `None` if there are no values.
fn distribution(mut latencies: Vec<f32>) -> Option<Vec<f64>> {
    latencies.sort_unstable_by(f32::total_cmp);
    shares()
        .into_iter()
        .map(|p| quantile(latencies.len() as u64, p, |rank| f64::from(latencies[rank as usize])))
        .collect()
}

impl Curves {
    /// Reduces the requests of all loops to curves; `None` if there are none.
    pub fn of(loops: &[Loop]) -> Option<Self> {
        loops.iter().find_map(|of| requests(of).next())?;
        let mut latencies: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        for Part { level, requests, .. } in loops.iter().flatten() {
            let successes = requests.cohort().filter(|request| request.is_success());
            let mut successes = successes.map(|request| (request.end_s - request.start_s) as f32).peekable();
            if successes.peek().is_some() {
                latencies.entry(*level).or_default().extend(successes);
            }
        }
        let distributions = latencies.into_iter().filter_map(|(level, values)| Some((level, distribution(values)?)));
        let (reasons, reasons_left_out) = reasons(loops);
        let distributions = distributions.collect();
        Some(Curves { distributions, reasons, reasons_left_out, ..Curves::timeline(loops) })
    }

    fn timeline(loops: &[Loop]) -> Self {
        let total: f64 = loops.iter().map(length_s).sum();
        let mut line = Curves::default();
        let mut begin_s = 0.0;
        for of in loops {
            let length_s = length_s(of);
            if length_s <= 0.0 || !length_s.is_finite() {
                continue;
            }
            let share = length_s / total;
            let rate_bins = (RATE_BINS * share).min(requests(of).count() as f64 / PER_RATE_BIN);
            let [mut in_flight, mut successes, mut failures] =
                [BINS * share, rate_bins, rate_bins].map(|count| Bins::new(begin_s, length_s, count));
            for request in requests(of) {
                // A request that was given up was in flight to the end.
                let is_over = !request.end_s.is_nan();
                let end_s = begin_s + if is_over { request.end_s } else { length_s };
                in_flight.add_life(begin_s + request.start_s, end_s);
                if is_over {
                    let bins = if request.is_success() { &mut successes } else { &mut failures };
                    bins.add_event(end_s);
                }
            }
            line.in_flight.extend(in_flight.values);
            line.successes_rps.extend(successes.values);
            line.failures_rps.extend(failures.values);
            line.segments.extend(segments_of(of, begin_s, length_s));
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
    for part in loops.iter().flatten() {
        for ((kind, common), of_level) in part.requests.reasons.groups() {
            let new = || ReasonAt { reason: Reason { count: 0, ..of_level.clone() }, levels: BTreeSet::new() };
            let of_all = all.entry((*kind, common)).or_insert_with(new);
            of_all.reason.count += of_level.count;
            of_all.levels.insert(part.level);
        }
    }
    let mut reasons: Vec<ReasonAt> = all.into_values().collect();
    reasons.sort_by_key(|of_all| std::cmp::Reverse(of_all.reason.count));
    let left_out = reasons.len().saturating_sub(REASONS);
    reasons.truncate(REASONS);
    (reasons, left_out)
}

/// Bins of equal width over a loop, each with its start and its content.
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

    /// Adds a request that is in flight between two moments of the timeline, as a mean over each bin.
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
