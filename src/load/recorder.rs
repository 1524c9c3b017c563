//! Writes down what the closed loop reports of a measurement: each request into the sidecar, what the figures need into
//! memory, and the rest into its record.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::closed_loop::{Ending, LoopPlan, LoopRecord, Observer, Ticket, Window};
use super::self_check::SelfCheck;
use super::target::Target;
use crate::client::outcome::{Failed, Phase, RateLimit, Reply, RequestOutcome};
use crate::figures::{Measurement, Requests, Step};

/// A gap between chunks that is longer than an hour counts as an hour, in microseconds.
const LONGEST_GAP_US: u64 = 3_600_000_000;

/// Begin it on the load thread, inside its runtime.
pub struct Recorder<O> {
    target: Arc<Target>,
    /// Gets everything as well: the sidecar, the live view, Criterion.
    next: O,
    began: Instant,
    requests: Requests,
    gaps_us: Histogram<u64>,
    self_check: SelfCheck,
    rate_limit: Option<RateLimit>,
    /// A `Retry-After` counts up to this.
    longest_wait: Duration,
    not_before: Option<Instant>,
    last_failure: Option<Failed>,
}

/// A measurement that has come to its end, the drain included.
pub struct Recorded {
    pub measurement: Measurement,
    pub requests: Requests,
    pub ending: Ending,
    pub began: Instant,
    /// Seconds from the first request to the end of the last.
    pub load_s: f64,
    pub sent: u64,
    pub last_failure: Option<Failed>,
    /// The server asked to be left alone until then.
    pub not_before: Option<Instant>,
}

impl<O: Observer> Recorder<O> {
    pub fn start(plan: &LoopPlan, target: Arc<Target>, next: O) -> Self {
        Recorder {
            target,
            next,
            began: Instant::now(),
            requests: Requests::with_room_for(plan.tickets()),
            gaps_us: Histogram::new_with_bounds(1, LONGEST_GAP_US, 3).expect("bounds and digits that it can have"),
            self_check: SelfCheck::start(),
            rate_limit: None,
            longest_wait: plan.longest_wait,
            not_before: None,
            last_failure: None,
        }
    }

    pub fn finish(self, step: Step, record: LoopRecord) -> (Recorded, O) {
        let gaps = self.gaps_us.iter_recorded().map(|bin| (bin.value_iterated_to(), bin.count_at_value()));
        let measurement = Measurement {
            stage: step.stage,
            round: step.round,
            itl_histogram: gaps.collect(),
            client: Some(self.self_check.result()),
            rate_limit: self.rate_limit,
            ..record.measurement(step.level)
        };
        let recorded = Recorded {
            measurement,
            requests: self.requests,
            ending: record.ending,
            began: self.began,
            load_s: self.began.elapsed().as_secs_f64(),
            sent: record.sent,
            last_failure: self.last_failure,
            not_before: self.not_before,
        };
        (recorded, self.next)
    }
}

impl<O: Observer> Observer for Recorder<O> {
    fn issued(&mut self, ticket: Ticket) {
        self.next.issued(ticket);
    }

    fn ended(&mut self, mut outcome: RequestOutcome, mut reply: Reply) {
        outcome.prompt_size = Some(self.target.prompt_size(outcome.seq));
        self.requests.push(&outcome);
        if outcome.is_success() && outcome.phase == Phase::Measured {
            reply.gaps_us.iter().for_each(|&gap| self.gaps_us.saturating_record(u64::from(gap)));
        }
        if let Some(failed) = reply.failure.take() {
            self.last_failure = Some(failed);
        }
        if let Some(asked) = reply.retry_after {
            self.not_before = self.not_before.max(Some(Instant::now() + asked.min(self.longest_wait)));
        }
        self.rate_limit = self.rate_limit.into_iter().chain(reply.rate_limit).reduce(RateLimit::updated);
        self.next.ended(outcome, reply);
    }

    fn held(&mut self, permits: usize) {
        self.next.held(permits);
    }

    fn window(&mut self, window: Window) {
        self.self_check.window_ended();
        self.next.window(window);
    }
}
