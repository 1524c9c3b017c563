//! The closed loop: keeps `level` requests in flight and cuts the stream of completions into windows.
//!
//! One [`tokio::sync::Semaphore`] with `level` permits; every send holds a permit from start to end, and as one
//! ends the next starts. Windows follow one another without a gap: requests in flight at the end of one carry
//! over into the next, and only the very last ones are drained. A batch that waits for its own last request (a
//! barrier) measures its slowest request instead of the server.
//!
//! The level may change while the loop runs ([`visits`]): it is filled up, or comes down as requests end, without a
//! drain. A visit begins once the new level is reached; what is still in flight when it ends has begun in it, but ends
//! among other neighbours (its `sample` is null).
//!
//! The loop knows no network: it takes a `send` closure and tokio's clock, so that it runs in virtual time too.

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

/// A request that failed sooner than this (or than the median success, if that is less) keeps its permit until then.
pub const LONGEST_HOLD: Duration = Duration::from_secs(1);

/// How many requests start together. Fewer would cost clearly more processor time where the server answers at once; with
/// more, the first token of streams that begin together seems later than it is.
pub const AT_ONCE: u64 = 4;

/// How much one level measures; `warmup` and `measured` count completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopPlan {
    pub level: usize,
    pub warmup: usize,
    /// So many more are left out at most as long as the engine is getting faster.
    pub cold: usize,
    /// In all windows together.
    pub measured: usize,
    /// Windows.
    pub samples: usize,
    /// A `Retry-After` is honoured up to this long.
    pub longest_wait: Duration,
    /// The level is given up after this long without a success.
    pub patience: Duration,
    pub time_limit: Duration,
}

/// A level has stalled after this many times the longest a request may take without a success.
const PATIENCE: u32 = 3;

impl LoopPlan {
    /// The plan of a level that measures at least `total` requests in `samples` windows of at least
    /// `smallest_window` completions, after `max(warmup, level)` completions of warm-up.
    pub fn new(level: usize, total: usize, warmup: usize, samples: usize, smallest_window: usize) -> Self {
        LoopPlan {
            level,
            warmup: warmup.max(level),
            measured: samples * smallest_window.max(total.div_ceil(samples)).max(1),
            samples,
            ..LoopPlan::visit(level, 0, 1)
        }
    }

    /// A visit of so many completions, in as many windows or fewer.
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

    /// With the limits that follow from the time a request may take. The level's own is what it takes if every
    /// request takes all of its time.
    pub fn with_request_timeout(self, timeout: Duration) -> Self {
        let waves = self.tickets().div_ceil(self.level.max(1) as u64);
        LoopPlan {
            longest_wait: timeout,
            patience: timeout.saturating_mul(PATIENCE),
            time_limit: timeout.saturating_mul(u32::try_from(waves).unwrap_or(u32::MAX)),
            ..self
        }
    }

    /// The ceiling on tickets: all that may ever be sent at this level.
    pub fn tickets(&self) -> u64 {
        self.of_warm_engine() + self.cold as u64
    }

    /// The same where nothing is left out after the warm-up.
    pub fn of_warm_engine(&self) -> u64 {
        (self.warmup + self.measured + self.level) as u64
    }

    /// Completions of a window.
    pub fn window(&self, at: usize) -> usize {
        self.measured * (at + 1) / self.samples - self.measured * at / self.samples
    }
}

/// The right to send one request.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    /// Order of issue, from 0.
    pub seq: u64,
    pub phase: Phase,
    /// The level when it was issued, and which visit of the loop that was, from 0.
    pub level: usize,
    pub visit: u32,
}

/// A stretch of the level's life, in seconds since it began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    pub start_s: f64,
    /// Its end: the moment of its last completion.
    pub end_s: f64,
    pub completed: usize,
    pub succeeded: usize,
    /// Latencies of the successes, added up, and their output tokens; not a number where one answer's are unknown.
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
    /// Why the visit was not complete. Given up, its remaining windows shrank to one completion each; interrupted, it was
    /// stopped from outside, and so were the requests in flight.
    pub early_end: Option<EarlyEnd>,
    pub windows: Vec<Window>,
    pub left_out: Option<LeftOut>,
    /// By the loop so far, and what it may send at most until it is told what comes next.
    pub sent: u64,
    pub at_most: u64,
}

impl LoopRecord {
    /// The whole measured window, in seconds since the level began.
    pub fn window_s(&self) -> Option<[f64; 2]> {
        Some([self.windows.first()?.start_s, self.windows.last()?.end_s])
    }

    /// What it came to at `level`, as far as the loop knows.
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

/// Is called as things happen, on the loop's own task: keep it short.
pub trait Observer {
    /// A visit begins, the first one included.
    fn begins(&mut self, _plan: &LoopPlan, _visit: u32) {}
    fn issued(&mut self, _ticket: Ticket) {}
    /// A request ended (or was given up: `end_s` is null).
    fn ended(&mut self, outcome: RequestOutcome, reply: Reply);
    /// `permits` are held back after failures now.
    fn held(&mut self, _permits: usize) {}
    /// The warm-up or a window ended.
    fn window(&mut self, window: Window);
    /// The windows so far do not count: the engine was still getting faster. Nor do the requests issued so far.
    fn anew(&mut self, _left_out: &LeftOut) {}
    /// A visit ended, the last one included. Its own requests that are in flight were issued at these times.
    fn visited(&mut self, _level: usize, _visit: u32, _record: LoopRecord, _in_flight_s: Vec<f64>) {}
}

/// Keeps what became of each request.
impl Observer for Vec<RequestOutcome> {
    fn ended(&mut self, outcome: RequestOutcome, _: Reply) {
        self.push(outcome);
    }
    fn window(&mut self, _: Window) {}
}

/// Runs one level to its end, the drain included.
///
/// `send` is called once a permit is held, and its future is spawned: latency is from there to its return.
/// Setting `stop` to true gives up what is in flight.
pub async fn run<F: Future<Output = Reply> + Send + 'static>(
    plan: &LoopPlan,
    stop: watch::Receiver<bool>,
    send: impl FnMut(Ticket) -> F,
    observer: &mut impl Observer,
) -> LoopRecord {
    // Nobody will ask for more.
    let (_, none) = mpsc::channel(1);
    visits(plan, none, stop, send, observer).await
}

/// Runs one visit after the other: as one ends, `orders` says which is next; once it is closed, the loop ends. While it
/// waits for the next order it keeps the level full, up to the visit's tickets. Gives the record of the last visit.
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
            // Completions first: the window they close decides the phase of what is issued next.
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
                // Where many ended at the same time, those that start first are to be on their way before the others'
                // times begin to count.
                if state.issued.is_multiple_of(AT_ONCE) {
                    tokio::task::yield_now().await;
                }
            }
        }
        state.go_on(observer);
    }
    state.into_record(observer)
}

/// A request whose answer is there, good or bad.
struct Completion {
    seq: u64,
    end: Instant,
    reply: Reply,
    permit: OwnedSemaphorePermit,
}

/// Where the loop stands: which visit, which window is open, how many tickets are left.
struct State {
    plan: LoopPlan,
    visit: u32,
    began: Instant,
    issued: u64,
    /// Of this visit.
    issued_in_visit: u64,
    issued_measured: usize,
    /// What is in flight, by number, and since when.
    open_tickets: BTreeMap<u64, (Ticket, Instant)>,
    /// Tickets to issue until the level is reached, and permits to come back until then.
    missing: usize,
    surplus: usize,
    warmed_up: bool,
    /// The level has clearly failed, in this way.
    given_up: Option<EarlyEnd>,
    visit_began: Instant,
    last_success: Instant,
    cut: bool,
    /// Nothing follows on this visit.
    is_last: bool,
    /// `None` until the level is reached.
    open: Option<Window>,
    windows: Vec<Window>,
    left_out: Option<LeftOut>,
    /// Completions of the windows that were left out.
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

    /// The next visit, with so many permits in use.
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

    /// The visit is over, and what comes next is not known yet.
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

    /// A permit comes back, and is gone if there are more than the level.
    fn give_back(&mut self, permit: OwnedSemaphorePermit) {
        if self.surplus > 0 {
            self.surplus -= 1;
            permit.forget();
        }
    }

    /// The permit, and until when it is to be held back after a failure that came too soon.
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

    /// Gives the level up if it has made no progress for too long. Every request comes to its end in time, so that
    /// it is enough to check when one does.
    fn check_time(&mut self, now: Instant) {
        let since = |then| now.saturating_duration_since(then);
        let LoopPlan { patience, time_limit, .. } = self.plan;
        if since(self.last_success) > patience {
            self.given_up.get_or_insert(EarlyEnd::NoSuccess { seconds: patience.as_secs_f64() });
        } else if since(self.visit_began) > time_limit {
            self.given_up.get_or_insert(EarlyEnd::TimeLimit { seconds: time_limit.as_secs_f64() });
        }
    }

    /// Opens the first window once the level is reached, and closes one that is full. It ends with its last completion:
    /// where many come at the same instant, the cohort is whole only once the tickets after them are issued.
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

    /// Requests a second at first and since, if it does and the plan has room to begin anew.
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
        // Permits held after failures may leave the cohort a few short of the plan: the last window waits for it.
        let at = self.windows.len();
        let last = at + 1 == self.plan.samples;
        open.completed >= self.plan.window(at) && (!last || self.issued_measured >= self.plan.measured)
    }

    /// For how long the permit of a failed request is held back, so that refusals do not turn the loop into a flood.
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

    /// Ends the loop; what is still in flight was given up.
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

/// The median of the most recent successes' latencies; bounded, so that a long run costs no memory.
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
