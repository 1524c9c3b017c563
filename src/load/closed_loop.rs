//! The closed loop: keeps `level` requests in flight and divides the completions into windows.
//!
//! A [`tokio::sync::Semaphore`] has `level` permits; every request holds one from start to end,
//! and as one request ends the next starts. Windows follow one another without a gap: requests in
//! flight at the end of one carry over into the next, and only the last are drained. A batch that
//! waits for its own last request (a barrier) measures its slowest request instead of the server.
//!
//! The level may change while the loop runs ([`visits`]): it fills up, or shrinks as requests
//! end, without a drain. A visit begins once the new level is reached. Requests still in flight
//! when a visit ends belong to it, but they end under a different load (their `sample` is null).
//!
//! The loop does no I/O: it takes a `send` closure and uses tokio's clock, so it also runs in virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::cold::was_cold;
use crate::client::outcome::{Phase, Reply, RequestOutcome};
use crate::figures::{EarlyEnd, LeftOut, LevelState, Measurement, Sample};

/// A request that fails sooner than this (or than the median success, if that is less) keeps its permit until then.
pub const LONGEST_HOLD: Duration = Duration::from_secs(1);

/// Number of requests that start together. Fewer would cost noticeably more CPU time where the server
/// answers at once; with more, the first tokens of streams that start together appear later than they are.
pub const AT_ONCE: u64 = 4;

/// The amount of measuring at one level; `warmup` and `measured` count completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopPlan {
    pub level: usize,
    pub warmup: usize,
    /// Maximum number of further completions that are left out while the engine is still getting faster.
    pub cold: usize,
    /// Completions of all windows together.
    pub measured: usize,
    /// Number of windows.
    pub samples: usize,
    /// Upper limit on the `Retry-After` that is honoured.
    pub longest_wait: Duration,
    /// The level is given up after this long without a success.
    pub patience: Duration,
    pub time_limit: Duration,
}

/// Patience in units of the request timeout.
const PATIENCE: u32 = 3;

impl LoopPlan {
    /// A plan for at least `total` requests in `samples` windows of at least `smallest_window`
    /// completions, after `max(warmup, level)` completions of warm-up.
    pub fn new(level: usize, total: usize, warmup: usize, samples: usize, smallest_window: usize) -> Self {
        LoopPlan {
            level,
            warmup: warmup.max(level),
            measured: samples * smallest_window.max(total.div_ceil(samples)).max(1),
            samples,
            ..LoopPlan::visit(level, 0, 1)
        }
    }

    /// A visit of `completions` completions, in at most `samples` windows.
    pub fn visit(level: usize, completions: usize, samples: usize) -> Self {
        LoopPlan {
            level,
            warmup: 0,
            cold: 0,
            measured: completions,
            samples: samples.min(completions),
            longest_wait: Duration::from_secs(30),
            patience: Duration::MAX,
            time_limit: Duration::MAX,
        }
    }

    /// Sets the limits that follow from the request timeout. The level's own time limit is what
    /// it takes if every request uses its full timeout.
    pub fn with_request_timeout(self, timeout: Duration) -> Self {
        let waves = self.tickets().div_ceil(self.level.max(1) as u64);
        LoopPlan {
            longest_wait: timeout,
            patience: timeout.saturating_mul(PATIENCE),
            time_limit: timeout.saturating_mul(u32::try_from(waves).unwrap_or(u32::MAX)),
            ..self
        }
    }

    /// Upper limit on the tickets, and thus on the requests sent at this level.
    pub fn tickets(&self) -> u64 {
        self.of_warm_engine() + self.cold as u64
    }

    /// The same without the completions that a cold engine may cost.
    pub fn of_warm_engine(&self) -> u64 {
        (self.warmup + self.measured + self.level) as u64
    }

    /// Number of completions in the window at index `at`.
    pub fn window(&self, at: usize) -> usize {
        self.measured * (at + 1) / self.samples - self.measured * at / self.samples
    }
}

/// The right to send one request.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    /// Position in the order of issue, from 0.
    pub seq: u64,
    pub phase: Phase,
    /// The level at the time of issue, and the index of the visit within the loop, from 0.
    pub level: usize,
    pub visit: u32,
}

/// One window of the measurement, in seconds since the level began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    pub start_s: f64,
    /// The time of its last completion.
    pub end_s: f64,
    pub completed: usize,
    pub succeeded: usize,
    /// Sum of the latencies of the successes, and of their output tokens (NaN if a count is unknown).
    pub busy_s: f64,
    pub tokens: f64,
}

impl Window {
    pub fn duration_s(&self) -> f64 {
        self.end_s - self.start_s
    }
}

#[derive(Clone, Debug)]
pub struct LoopRecord {
    /// Why the visit ended early. If the level was given up, each remaining window shrank to one completion; if the
    /// run was interrupted, requests in flight were given up.
    pub early_end: Option<EarlyEnd>,
    pub windows: Vec<Window>,
    pub left_out: Option<LeftOut>,
    /// Requests sent by the loop so far, and the most it may have sent before the next order arrives.
    pub sent: u64,
    pub at_most: u64,
}

impl LoopRecord {
    /// The whole measured window, in seconds since the level began.
    pub fn window_s(&self) -> Option<[f64; 2]> {
        Some([self.windows.first()?.start_s, self.windows.last()?.end_s])
    }

    /// The measurement of `level`, as far as the loop knows it.
    pub fn measurement(&self, level: usize) -> Measurement {
        let sample = |window: &Window| Sample {
            duration_s: window.duration_s(),
            completed: window.completed as u64,
            succeeded: window.succeeded as u64,
        };
        Measurement {
            concurrency: level,
            window_s: self.window_s(),
            samples: self.windows.iter().map(sample).collect(),
            left_out: self.left_out,
            state: match self.early_end {
                None => LevelState::Complete,
                Some(EarlyEnd::Interrupted) => LevelState::Cut,
                Some(_) => LevelState::Hopeless,
            },
            reason: self.early_end.clone(),
            ..Measurement::default()
        }
    }
}

/// Receives the loop's events. The methods run on the loop's own task, so they must be quick.
pub trait Observer {
    /// A visit begins; also called for the first.
    fn begins(&mut self, _plan: &LoopPlan, _visit: u32) {}
    fn issued(&mut self, _ticket: Ticket) {}
    /// A request ended, or was given up (`end_s` is null).
    fn ended(&mut self, outcome: RequestOutcome, reply: Reply);
    /// The number of permits held back after failures changed.
    fn held(&mut self, _permits: usize) {}
    /// The warm-up or a window ended.
    fn window(&mut self, window: Window);
    /// The windows and requests so far are left out, since the engine was still getting faster.
    fn anew(&mut self, _left_out: &LeftOut) {}
    /// A visit ended; also called for the last. `_in_flight_s` holds the start times of its cohort still in flight.
    fn visited(&mut self, _level: usize, _visit: u32, _record: LoopRecord, _in_flight_s: Vec<f64>) {}
}

/// Collects the outcomes of all requests.
impl Observer for Vec<RequestOutcome> {
    fn ended(&mut self, outcome: RequestOutcome, _: Reply) {
        self.push(outcome);
    }
    fn window(&mut self, _: Window) {}
}

/// Runs one level to its end, including the drain.
///
/// `send` is called once a permit is held, and its future is spawned: latency is from there to
/// its return. Setting `stop` to true gives up the requests in flight.
pub async fn run<F: Future<Output = Reply> + Send + 'static>(
    plan: &LoopPlan,
    stop: watch::Receiver<bool>,
    send: impl FnMut(Ticket) -> F,
    observer: &mut impl Observer,
) -> LoopRecord {
    // The sender is dropped at once, so no further visit follows.
    let (_, none) = mpsc::channel(1);
    visits(plan, none, stop, send, observer).await
}

/// Runs one visit after another. When one ends, `orders` provides the next; once the channel is closed, the loop
/// ends. While waiting it keeps the level full, up to the visit's tickets. Returns the record of the last visit.
pub async fn visits<F: Future<Output = Reply> + Send + 'static>(
    first: &LoopPlan,
    mut orders: mpsc::Receiver<LoopPlan>,
    mut stop: watch::Receiver<bool>,
    mut send: impl FnMut(Ticket) -> F,
    observer: &mut impl Observer,
) -> LoopRecord {
    let permits = Arc::new(Semaphore::new(first.level));
    let mut in_flight: JoinSet<Completion> = JoinSet::new();
    let mut holds: JoinSet<OwnedSemaphorePermit> = JoinSet::new();
    let mut state = State::new(first);
    observer.begins(first, 0);
    while state.issuing() || state.waiting() || !in_flight.is_empty() {
        tokio::select! {
            // Completions first: closing a window decides the phase of the requests issued next.
            biased;
            Ok(_) = stop.wait_for(|&stop| stop), if !state.cut => {
                state.cut = true;
                in_flight.abort_all();
            }
            Some(joined) = in_flight.join_next() => match joined {
                Ok(completion) => {
                    let (permit, until) = state.completed(completion, observer);
                    match until {
                        Some(until) => {
                            holds.spawn(async move {
                                tokio::time::sleep_until(until).await;
                                permit
                            });
                            observer.held(holds.len());
                        }
                        None => state.give_back(permit),
                    }
                }
                Err(error) if error.is_cancelled() => {}
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            Some(Ok(permit)) = holds.join_next() => {
                state.give_back(permit);
                observer.held(holds.len());
            }
            order = orders.recv(), if state.waiting() => match order {
                Some(plan) => {
                    let taken = in_flight.len() + holds.len();
                    let free = plan.level.saturating_sub(taken);
                    permits.forget_permits(permits.available_permits().saturating_sub(free));
                    permits.add_permits(free - permits.available_permits());
                    state.begin(plan, taken);
                    observer.begins(&plan, state.visit);
                }
                None => state.is_last = true,
            },
            Ok(permit) = permits.clone().acquire_owned(), if state.issuing() => {
                let start = Instant::now();
                let ticket = state.next_ticket(start);
                observer.issued(ticket);
                let exchange = send(ticket);
                in_flight.spawn(async move {
                    let reply = exchange.await;
                    Completion { seq: ticket.seq, end: Instant::now(), reply, permit }
                });
                // When many requests end at the same time, send the first replacements before
                // the clocks of the others start.
                if state.issued.is_multiple_of(AT_ONCE) {
                    tokio::task::yield_now().await;
                }
            }
        }
        state.go_on(observer);
    }
    state.into_record(observer)
}

/// A request that has ended, successfully or not.
struct Completion {
    seq: u64,
    end: Instant,
    reply: Reply,
    permit: OwnedSemaphorePermit,
}

/// The state of the loop: the current visit, the open window, the tickets issued.
struct State {
    plan: LoopPlan,
    visit: u32,
    began: Instant,
    issued: u64,
    issued_in_visit: u64,
    issued_measured: usize,
    /// Requests in flight by sequence number, with their start times.
    open_tickets: BTreeMap<u64, (Ticket, Instant)>,
    /// Tickets to issue, and surplus permits to come back, until the level is reached.
    missing: usize,
    surplus: usize,
    warmed_up: bool,
    /// Set once the level has clearly failed.
    given_up: Option<EarlyEnd>,
    visit_began: Instant,
    last_success: Instant,
    cut: bool,
    /// Whether no further visit follows.
    is_last: bool,
    /// `None` until the level is reached, unless the first visit has a warm-up.
    open: Option<Window>,
    windows: Vec<Window>,
    left_out: Option<LeftOut>,
    /// Completions in the windows that were left out.
    left_out_windows: usize,
    typical: TypicalLatency,
}

impl State {
    fn new(first: &LoopPlan) -> Self {
        let began = Instant::now();
        State {
            plan: *first,
            visit: 0,
            began,
            issued: 0,
            issued_in_visit: 0,
            issued_measured: 0,
            open_tickets: BTreeMap::new(),
            missing: first.level,
            surplus: 0,
            warmed_up: false,
            given_up: None,
            visit_began: began,
            last_success: began,
            cut: false,
            is_last: false,
            open: Some(empty_window(0.0)).filter(|_| first.warmup > 0),
            windows: Vec::with_capacity(first.samples),
            left_out: None,
            left_out_windows: 0,
            typical: TypicalLatency::default(),
        }
    }

    /// Begins the next visit while `taken` permits are in use.
    fn begin(&mut self, plan: LoopPlan, taken: usize) {
        let now = Instant::now();
        self.missing = plan.level.saturating_sub(taken);
        self.surplus = taken.saturating_sub(plan.level);
        self.plan = plan;
        self.visit += 1;
        (self.issued_in_visit, self.issued_measured) = (0, 0);
        (self.visit_began, self.last_success) = (now, now);
        (self.warmed_up, self.given_up, self.open) = (false, None, None);
        self.windows.clear();
    }

    fn seconds(&self, at: Instant) -> f64 {
        at.duration_since(self.began).as_secs_f64()
    }

    fn done(&self) -> bool {
        self.windows.len() == self.plan.samples
    }

    /// Whether the visit is over and the next order has not arrived yet.
    fn waiting(&self) -> bool {
        self.done() && !self.is_last && !self.cut
    }

    fn issuing(&self) -> bool {
        !self.cut && (!self.done() || !self.is_last) && self.issued_in_visit < self.plan.tickets()
    }

    fn next_ticket(&mut self, start: Instant) -> Ticket {
        let measured = self.warmed_up && !self.done();
        let phase = if measured { Phase::Measured } else { Phase::Warmup };
        let ticket = Ticket { seq: self.issued, phase, level: self.plan.level, visit: self.visit };
        self.open_tickets.insert(ticket.seq, (ticket, start));
        self.issued += 1;
        self.issued_in_visit += 1;
        self.missing = self.missing.saturating_sub(1);
        self.issued_measured += usize::from(measured);
        ticket
    }

    /// Takes back a permit; discards it while there are more than the level allows.
    fn give_back(&mut self, permit: OwnedSemaphorePermit) {
        if self.surplus > 0 {
            self.surplus -= 1;
            permit.forget();
        }
    }

    /// Returns the permit and, after a failure, the time until which to hold it back, if at all.
    fn completed(
        &mut self,
        completion: Completion,
        observer: &mut impl Observer,
    ) -> (OwnedSemaphorePermit, Option<Instant>) {
        let Completion { seq, end, reply, permit } = completion;
        let Some((ticket, start)) = self.open_tickets.remove(&seq) else { return (permit, None) };
        let (start_s, end_s) = (self.seconds(start), self.seconds(end));
        let latency = end - start;
        let succeeded = reply.failure.is_none();
        let mut held = Duration::ZERO;
        if succeeded {
            self.typical.add(latency);
            self.last_success = self.last_success.max(end);
        } else {
            held = self.hold(latency, reply.retry_after);
        }
        let inside = self.warmed_up && !self.done() && ticket.visit == self.visit;
        let sample = inside.then_some(self.windows.len() as u32);
        let held_s = (held > Duration::ZERO).then_some(held.as_secs_f64());
        let tokens = reply.tokens.output.map_or(f64::NAN, f64::from);
        observer.ended(RequestOutcome { held_s, ..record(ticket, sample, start_s, Some(end_s), &reply) }, reply);
        self.check_time(end);
        if let Some(open) = &mut self.open {
            // A task that was polled later may have ended earlier; a window never runs backwards.
            open.end_s = open.end_s.max(end_s);
            open.completed += 1;
            if succeeded {
                open.succeeded += 1;
                open.busy_s += latency.as_secs_f64();
                open.tokens += tokens;
            }
        }
        (permit, held_s.map(|_| end + held))
    }

    /// Gives up the level if it has made no progress for too long. Checking on completions is
    /// enough, since every request ends eventually (by its timeout).
    fn check_time(&mut self, now: Instant) {
        let since = |then| now.saturating_duration_since(then);
        let LoopPlan { patience, time_limit, .. } = self.plan;
        if since(self.last_success) > patience {
            self.given_up.get_or_insert(EarlyEnd::NoSuccess { seconds: patience.as_secs_f64() });
        } else if since(self.visit_began) > time_limit {
            self.given_up.get_or_insert(EarlyEnd::TimeLimit { seconds: time_limit.as_secs_f64() });
        }
    }

    /// Opens the first window once the level is reached, and closes a full one. A window ends at its last completion,
    /// but may close later: after several at once, the cohort is full only when their replacements are issued.
    fn go_on(&mut self, observer: &mut impl Observer) {
        if self.done() || self.cut {
            return;
        }
        let Some(closed) = self.open else {
            if self.missing == 0 && self.surplus == 0 {
                self.open = Some(empty_window(self.seconds(Instant::now())));
                self.warmed_up = self.plan.warmup == 0;
            }
            return;
        };
        if closed.completed == 0 || !self.is_full(closed) {
            return;
        }
        self.open = Some(empty_window(closed.end_s));
        if self.warmed_up {
            self.windows.push(closed);
        } else {
            self.warmed_up = true;
            if closed.succeeded == 0 {
                self.given_up = Some(EarlyEnd::WarmUpFailed);
            }
        }
        if let Some(rates) = self.still_gets_faster() {
            return self.begin_anew(rates, observer);
        }
        observer.window(closed);
        if self.done() {
            self.tell_visited(observer);
        }
    }

    /// Requests per second before and after the speed-up, if there was one and the plan allows starting over.
    fn still_gets_faster(&self) -> Option<[f64; 2]> {
        let completed: usize = self.windows.iter().map(|window| window.completed).sum();
        let has_room = self.left_out_windows + completed <= self.plan.cold && self.given_up.is_none();
        has_room.then(|| was_cold(&self.windows)).flatten()
    }

    fn begin_anew(&mut self, [from_rps, to_rps]: [f64; 2], observer: &mut impl Observer) {
        let from_rps = self.left_out.map_or(from_rps, |earlier| earlier.from_rps);
        let left_out = LeftOut { requests: self.issued, from_rps, to_rps };
        self.left_out = Some(left_out);
        self.left_out_windows += self.windows.iter().map(|window| window.completed).sum::<usize>();
        self.issued_measured = 0;
        self.windows.clear();
        observer.anew(&left_out);
    }

    fn is_full(&self, open: Window) -> bool {
        if self.given_up.is_some() {
            return true;
        }
        if !self.warmed_up {
            return open.completed >= self.plan.warmup;
        }
        // Permits held after failures may leave the cohort short of the plan: the last window waits until it is full.
        let at = self.windows.len();
        let last = at + 1 == self.plan.samples;
        open.completed >= self.plan.window(at) && (!last || self.issued_measured >= self.plan.measured)
    }

    /// How long to hold back the permit of a failed request, so that rejections do not turn the loop into a flood.
    fn hold(&self, latency: Duration, retry_after: Option<Duration>) -> Duration {
        let typical = self.typical.median().unwrap_or(LONGEST_HOLD).min(LONGEST_HOLD);
        let asked = retry_after.unwrap_or_default().min(self.plan.longest_wait);
        typical.saturating_sub(latency).max(asked)
    }

    fn record(&self) -> LoopRecord {
        let early_end = if self.done() { self.given_up.clone() } else { Some(EarlyEnd::Interrupted) };
        let at_most = self.issued + self.plan.tickets().saturating_sub(self.issued_in_visit);
        LoopRecord { early_end, windows: self.windows.clone(), left_out: self.left_out, sent: self.issued, at_most }
    }

    fn tell_visited(&self, observer: &mut impl Observer) {
        let own = self
            .open_tickets
            .values()
            .filter(|(ticket, _)| ticket.visit == self.visit && ticket.phase == Phase::Measured);
        let in_flight_s = own.map(|&(_, start)| self.seconds(start)).collect();
        observer.visited(self.plan.level, self.visit, self.record(), in_flight_s);
    }

    /// Ends the loop. Requests still in flight are recorded as given up.
    fn into_record(self, observer: &mut impl Observer) -> LoopRecord {
        for &(ticket, start) in self.open_tickets.values() {
            observer.ended(record(ticket, None, self.seconds(start), None, &Reply::default()), Reply::default());
        }
        if !self.done() {
            observer.visited(self.plan.level, self.visit, self.record(), Vec::new());
        }
        self.record()
    }
}

fn empty_window(start_s: f64) -> Window {
    Window { start_s, end_s: start_s, completed: 0, succeeded: 0, busy_s: 0.0, tokens: 0.0 }
}

pub(crate) fn record(
    ticket: Ticket,
    sample: Option<u32>,
    start_s: f64,
    end_s: Option<f64>,
    reply: &Reply,
) -> RequestOutcome {
    let failure = reply.failure.as_ref();
    let error = match end_s {
        Some(_) => failure.map(|failed| failed.message.clone()),
        None => Some("given up: the run was interrupted".to_owned()),
    };
    RequestOutcome {
        seq: ticket.seq,
        visit: (ticket.visit > 0).then_some(ticket.visit),
        phase: ticket.phase,
        sample,
        start_s,
        end_s,
        latency_s: end_s.map(|end| end - start_s),
        ttft_s: reply.ttft.map(|t| t.as_secs_f64()),
        chunks: reply.chunks,
        output_tokens: reply.tokens.output,
        input_tokens: reply.tokens.input,
        cached_tokens: reply.tokens.cached,
        reasoning_tokens: reply.tokens.reasoning,
        status: reply.status,
        failure: failure.map(|failed| failed.kind),
        error,
        resent: reply.resent,
        cut: reply.cut,
        ..RequestOutcome::default()
    }
}

/// Median latency of the most recent successes; bounded, so that memory does not grow with the run.
#[derive(Default)]
struct TypicalLatency(VecDeque<Duration>);

impl TypicalLatency {
    const KEPT: usize = 255;

    fn add(&mut self, latency: Duration) {
        if self.0.len() == Self::KEPT {
            self.0.pop_front();
        }
        self.0.push_back(latency);
    }

    fn median(&self) -> Option<Duration> {
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        let middle = sorted.len() / 2;
        (!sorted.is_empty()).then(|| *sorted.select_nth_unstable(middle).1)
    }
}
