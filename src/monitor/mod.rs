//! Live monitoring of a run: the view of the current level on stderr, and `/metrics`.
//!
//! The load thread counts each request when it is sent and when it ends. The locks that it takes are contended only
//! for the microseconds in which the view copies the counts (four times a second) or a scraper reads a histogram.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use crate::client::outcome::{Failure, Phase, RequestOutcome};
use crate::figures::{LevelSummary, histogram};

mod metrics;
mod view;

use metrics::{FloatGauge, PhaseSeries, Series};
pub use metrics::{MetricsError, MetricsServer, textfile};
pub use view::{LevelMonitor, terminal_width};

#[derive(Debug, Default)]
pub struct Live {
    series: Series,
    course: Mutex<Course>,
}

/// Progress of the run, for the view.
#[derive(Clone, Debug, Default)]
struct Course {
    /// Levels to measure in full, each with its number of waves. `visits` is the usual total duration of the visits
    /// that follow, in service times.
    ahead: Vec<(usize, f64)>,
    visits: f64,
    visiting_since: Option<Instant>,
    /// Mean latency at the lowest level measured so far, in seconds.
    service_s: f64,
    /// Successes per second and P95 latency in seconds of each measured level.
    levels: BTreeMap<usize, (f64, Option<f64>)>,
    /// The current choice, and the lowest and the highest level that are still possible.
    choice: Option<(usize, [usize; 2])>,
}

impl Live {
    /// Monitors a run. Its metric series are labelled with the model and the run.
    pub fn of(model: &str, run: &str) -> Self {
        Live { series: Series::new(metrics::of_run(model, run)), ..Live::default() }
    }

    pub fn plan(&self, ahead: Vec<(usize, f64)>, visits: f64) {
        let mut course = self.course.lock();
        (course.ahead, course.visits) = (ahead, visits);
    }

    pub fn measured(&self, summary: &LevelSummary) {
        let mut course = self.course.lock();
        let latency = summary.latency_s.unwrap_or_default();
        if course.levels.first_key_value().is_none_or(|(lowest, _)| summary.concurrency <= *lowest) {
            course.service_s = latency.mean.unwrap_or_default();
        }
        let rps = summary.throughput_rps.map_or(0.0, |rps| rps.estimate);
        course.levels.insert(summary.concurrency, (rps, latency.p95));
    }

    pub fn stands(&self, choice: Option<usize>, possible: [usize; 2]) {
        self.course.lock().choice = choice.map(|choice| (choice, possible));
    }

    /// Begins a measurement of `level` of at most `planned` requests: visit number `visit`, or if that is 0, in full.
    pub fn begin(self: &Arc<Self>, level: usize, visit: u32, planned: u64) -> Arc<Counts> {
        self.series.level.set(level as i64);
        self.series.left.set(planned.try_into().unwrap_or(i64::MAX));
        if visit > 0 {
            self.course.lock().visiting_since.get_or_insert_with(Instant::now);
        }
        let [warmup, measured] = self.series.of(level);
        let (live, throughput, tally) = (self.clone(), self.series.throughput_of(level), Mutex::new(Tally::new()));
        Arc::new(Counts { live, level, visit, planned, warmup, measured, throughput, tally })
    }
}

/// Counts of one measurement, which also go into the metric series of its level.
#[derive(Debug)]
pub struct Counts {
    live: Arc<Live>,
    level: usize,
    visit: u32,
    planned: u64,
    warmup: PhaseSeries,
    measured: PhaseSeries,
    throughput: FloatGauge,
    tally: Mutex<Tally>,
}

#[derive(Clone, Debug)]
struct Tally {
    /// Time at which the measured phase sent its first request. `measured` counts the successes since then.
    measuring_since: Option<Instant>,
    measured: u64,
    issued: u64,
    ended: u64,
    succeeded: u64,
    /// Failures by kind, in the order of [`Failure::ALL`].
    failed: [u64; Failure::ALL.len()],
    /// Number of permits that are held back after failures.
    held: u64,
    /// Times of the successes in microseconds, to two significant digits. Reset when the measured phase begins.
    latency: Histogram<u32>,
    ttft: Histogram<u32>,
}

impl Tally {
    fn new() -> Self {
        let (latency, ttft) = (histogram(2), histogram(2));
        Tally {
            measuring_since: None,
            measured: 0,
            issued: 0,
            ended: 0,
            succeeded: 0,
            failed: Default::default(),
            held: 0,
            latency,
            ttft,
        }
    }
}

impl Counts {
    fn series(&self, phase: Phase) -> &PhaseSeries {
        match phase {
            Phase::Warmup => &self.warmup,
            Phase::Measured => &self.measured,
        }
    }

    pub fn issued(&self, phase: Phase) {
        self.series(phase).in_flight.inc();
        let mut tally = self.tally.lock();
        tally.issued += 1;
        if phase == Phase::Measured && tally.measuring_since.is_none() {
            tally.measuring_since = Some(Instant::now());
            tally.latency.reset();
            tally.ttft.reset();
        }
    }

    /// Counts a request that ended or was given up.
    pub fn ended(&self, outcome: &RequestOutcome) {
        let series = self.series(outcome.phase);
        series.in_flight.dec();
        self.live.series.left.dec();
        let tally = &mut *self.tally.lock();
        tally.ended += 1;
        match (outcome.failure, outcome.latency_s) {
            (Some(kind), _) => {
                series.failed[kind as usize].inc();
                tally.failed[kind as usize] += 1;
            }
            (None, None) => {
                series.given_up.inc();
            }
            (None, Some(latency)) => {
                if let Some(tpot) = outcome.tpot_s() {
                    series.tpot.observe(tpot);
                }
                series.output_tokens.inc_by(outcome.output_tokens.unwrap_or(0).into());
                series.succeeded.inc();
                tally.succeeded += 1;
                if let Some(since) = tally.measuring_since {
                    tally.measured += 1;
                    self.throughput.set(tally.measured as f64 / since.elapsed().as_secs_f64().max(1e-3));
                }
                let is_shown = tally.measuring_since.is_none() || outcome.phase == Phase::Measured;
                let latency = (&series.latency, &mut tally.latency, Some(latency));
                for (served, shown, time) in [latency, (&series.ttft, &mut tally.ttft, outcome.ttft_s)] {
                    let Some(time) = time else { continue };
                    served.observe(time);
                    if is_shown {
                        shown.saturating_record((time * 1e6) as u64);
                    }
                }
            }
        }
    }

    fn over(&self) {
        self.live.series.level.set(0);
        self.live.series.left.set(0);
    }

    /// Starts over: requests that have ended so far no longer count.
    pub fn anew(&self) {
        self.live.series.left.set(self.planned.try_into().unwrap_or(i64::MAX));
        let mut tally = self.tally.lock();
        // Requests in flight still count.
        tally.issued -= tally.ended;
        (tally.measuring_since, tally.measured, tally.ended, tally.failed) = (None, 0, 0, Default::default());
    }

    pub fn held(&self, permits: usize) {
        self.tally.lock().held = permits as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::outcome::tests::outcome;

    pub(super) fn failed(kind: Failure) -> RequestOutcome {
        RequestOutcome { failure: Some(kind), ..outcome(0.0, 1.0) }
    }

    /// Level 50 with 10 warm-up requests and 100 measured ones, of which 90 have ended.
    pub(super) fn counts() -> Arc<Counts> {
        let counts = Arc::new(Live::default()).begin(50, 0, 160);
        for _ in 0..10 {
            counts.issued(Phase::Warmup);
            counts.ended(&RequestOutcome { phase: Phase::Warmup, ..outcome(0.0, 9.0) });
        }
        (0..100).for_each(|_| counts.issued(Phase::Measured));
        for i in 0..80 {
            let latency = 0.2 + 0.005 * f64::from(i);
            counts.ended(&RequestOutcome { ttft_s: Some(0.05), output_tokens: Some(7), ..outcome(1.0, 1.0 + latency) });
        }
        (0..3).for_each(|_| counts.ended(&failed(Failure::Timeout)));
        (0..6).for_each(|_| counts.ended(&failed(Failure::ServerError)));
        counts.ended(&RequestOutcome { end_s: None, latency_s: None, ..outcome(1.0, 2.0) });
        counts
    }

    #[test]
    fn every_request_is_counted_once() {
        let tally = counts().tally.lock().clone();
        assert_eq!((tally.issued, tally.ended, tally.succeeded, tally.measuring_since.is_some()), (110, 100, 90, true));
        assert_eq!(tally.failed, [0, 3, 0, 0, 6, 0, 0]);
        // The nine seconds of each warm-up request are excluded.
        assert!(tally.latency.len() == 80 && tally.latency.max() < 610_000);
        assert!(Failure::ALL.iter().enumerate().all(|(at, kind)| *kind as usize == at));
        let counts = counts();
        counts.anew();
        let Tally { issued, ended, failed, measuring_since, .. } = counts.tally.lock().clone();
        assert_eq!((issued, ended, failed, measuring_since), (10, 0, [0; 7], None), "ten are still in flight");
    }
}
