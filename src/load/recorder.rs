//! Records what the closed loop reports: each request goes to the sidecar, the inputs of the
//! figures stay in memory, and everything else goes to the measurement's record.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::closed_loop::{LoopPlan, LoopRecord, Observer, Ticket, Window};
use super::self_check::SelfCheck;
use super::target::Target;
use crate::client::outcome::{Failed, Phase, RateLimit, Reply, RequestOutcome};
use crate::figures::{LeftOut, Measurement, Requests, Stage, Step, histogram};

/// Must be created on the load thread, inside its runtime.
pub struct Recorder<O> {
    target: Arc<Target>,
    /// The next observer, which receives all events too: the sidecar, the live view, Criterion.
    next: O,
    began: Instant,
    visits: Option<Visits>,
    /// Requests that have ended but were not handed on yet, by visit.
    parts: BTreeMap<u32, Requests>,
    /// The current visit; the fields below refer to it.
    visit: u32,
    gaps_us: Histogram<u64>,
    self_check: SelfCheck,
    rate_limit: Option<RateLimit>,
    /// Upper limit on the `Retry-After` that is honoured.
    longest_wait: Duration,
    not_before: Option<Instant>,
    last_failure: Option<Failed>,
    /// Number of initial requests that are left out.
    left_out: u64,
}

/// The channel that receives each visit of a loop as it ends, and the number of the first one.
pub struct Visits {
    pub first: u32,
    pub to: mpsc::Sender<Recorded>,
}

/// A finished measurement, including its drain; or a visit, which has no drain.
pub struct Recorded {
    pub measurement: Measurement,
    /// Requests by visit; visit 0 holds those of a measurement that is not a visit.
    pub parts: BTreeMap<u32, Requests>,
    pub began: Instant,
    /// Seconds from the first request to the end of the last.
    pub load_s: f64,
    /// Requests sent by the loop so far, and the most it may have sent before the next order arrives.
    pub sent: u64,
    pub at_most: u64,
    pub last_failure: Option<Failed>,
    /// The server asked for no requests before this time.
    pub not_before: Option<Instant>,
}

impl<O: Observer> Recorder<O> {
    /// `room` is for the requests of the first visit. The caller allocates it, so that it is
    /// freed on the thread that allocated it.
    pub fn start(plan: &LoopPlan, target: Arc<Target>, next: O, visits: Option<Visits>, room: Requests) -> Self {
        Recorder {
            target,
            next,
            began: Instant::now(),
            parts: BTreeMap::from([(visits.as_ref().map_or(0, |of| of.first), room)]),
            visits,
            visit: 0,
            gaps_us: histogram(3),
            self_check: SelfCheck::start(),
            rate_limit: None,
            longest_wait: plan.longest_wait,
            not_before: None,
            last_failure: None,
            left_out: 0,
        }
    }

    /// What remains to be handed on after the loop has ended.
    pub fn finish(mut self, step: Step, record: LoopRecord) -> (Recorded, O) {
        (self.recorded(step, record), self.next)
    }

    fn recorded(&mut self, step: Step, record: LoopRecord) -> Recorded {
        let gaps = self.gaps_us.iter_recorded().map(|bin| (bin.value_iterated_to(), bin.count_at_value()));
        let measurement = Measurement {
            stage: step.stage,
            round: step.round,
            itl_histogram: gaps.collect(),
            client: Some(self.self_check.result()),
            rate_limit: self.rate_limit,
            ..record.measurement(step.level)
        };
        Recorded {
            measurement,
            parts: std::mem::take(&mut self.parts),
            began: self.began,
            load_s: self.began.elapsed().as_secs_f64(),
            sent: record.sent,
            at_most: record.at_most,
            last_failure: self.last_failure.clone(),
            not_before: self.not_before,
        }
    }
}

impl<O: Observer> Observer for Recorder<O> {
    fn begins(&mut self, plan: &LoopPlan, visit: u32) {
        if visit > 0 {
            self.visit = visit;
            self.gaps_us.reset();
            self.self_check = SelfCheck::start();
            self.rate_limit = None;
        }
        self.next.begins(plan, visit);
    }

    fn issued(&mut self, ticket: Ticket) {
        self.next.issued(ticket);
    }

    fn ended(&mut self, mut outcome: RequestOutcome, mut reply: Reply) {
        outcome.prompt_size = self.target.prompt_size(outcome.seq);
        let of_visit = outcome.visit.unwrap_or_default();
        outcome.visit = self.visits.as_ref().map(|visits| visits.first + of_visit);
        let outcome = outcome.leaving_out(self.left_out);
        self.parts.entry(outcome.visit.unwrap_or_default()).or_default().push(&outcome);
        if outcome.is_success() && outcome.phase == Phase::Measured && of_visit == self.visit {
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

    fn anew(&mut self, left_out: &LeftOut) {
        self.left_out = left_out.requests;
        self.parts.values_mut().for_each(Requests::leave_out);
        self.gaps_us.reset();
        self.self_check = SelfCheck::start();
        self.self_check.window_ended();
        self.next.anew(left_out);
    }

    fn visited(&mut self, level: usize, visit: u32, record: LoopRecord, in_flight_s: Vec<f64>) {
        let Some(Visits { first, to }) = &self.visits else { return };
        let (step, to) = (Step { level, stage: Stage::Visit, round: first + visit }, to.clone());
        self.parts.entry(step.round).or_default().in_flight_s = in_flight_s;
        // The receiver is gone only if the run has failed.
        let _ = to.send(self.recorded(step, record));
    }
}
