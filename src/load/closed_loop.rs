//! The closed loop: keeps `level` requests in flight and cuts the stream of completions into windows.
//!
//! One [`tokio::sync::Semaphore`] with `level` permits; every send holds a permit from start to end, and as one
//! ends the next starts. Windows follow one another without a gap: requests in flight at the end of one carry
//! over into the next, and only the very last ones are drained. A batch that waits for its own last request (a
//! barrier) measures its slowest request instead of the server.
//!
//! The loop knows no network: it takes a `send` closure and tokio's clock, so that it runs in virtual time too.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::outcome::{Phase, Reply, RequestOutcome};
use crate::figures::{LevelState, Measurement, Sample};

/// A request that failed sooner than this (or than the median success, if that is less) keeps its permit until then.
pub const LONGEST_HOLD: Duration = Duration::from_secs(1);

/// How many requests start together. Fewer would cost clearly more processor time where the server answers at once; with
/// more, the first token of streams that begin together seems later than it is.
const AT_ONCE: u64 = 4;

/// How much one level measures; `warmup` and `window` count completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopPlan {
    /// Requests kept in flight.
    pub level: usize,
    pub warmup: usize,
    pub window: usize,
    pub samples: usize,
    /// A `Retry-After` is honoured up to this long.
    pub longest_wait: Duration,
    /// The level is given up after this long without a success.
    pub patience: Duration,
    /// The level is given up after this long.
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
            window: smallest_window.max(total.div_ceil(samples)).max(1),
            samples,
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

    /// Requests in the cohort.
    pub fn measured(&self) -> usize {
        self.window * self.samples
    }

    /// The ceiling on tickets: all that may ever be sent at this level.
    pub fn tickets(&self) -> u64 {
        (self.warmup + self.measured() + self.level) as u64
    }
}

/// The right to send one request.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    /// Order of issue, from 0.
    pub seq: u64,
    pub phase: Phase,
}

/// A stretch of the level's life, in seconds since it began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    pub start_s: f64,
    /// Its end: the moment of its last completion.
    pub end_s: f64,
    /// Requests that completed in it.
    pub completed: usize,
    /// Successes among them.
    pub succeeded: usize,
}

impl Window {
    pub fn duration_s(&self) -> f64 {
        self.end_s - self.start_s
    }
}

/// Why a loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All windows were measured in full.
    Complete,
    /// All of the warm-up failed, so each window shrank to one completion.
    Hopeless,
    /// No request succeeded for as long as [`LoopPlan::patience`]: the remaining windows shrank to one completion.
    Stalled,
    /// [`LoopPlan::time_limit`] was over: the remaining windows shrank to one completion.
    Overdue,
    /// It was stopped from outside; requests in flight were given up.
    Cut,
}

#[derive(Clone, Debug)]
pub struct LoopRecord {
    pub ending: Ending,
    pub windows: Vec<Window>,
    pub sent: u64,
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
            state: match self.ending {
                Ending::Complete => LevelState::Complete,
                Ending::Hopeless | Ending::Stalled | Ending::Overdue => LevelState::Hopeless,
                Ending::Cut => LevelState::Cut,
            },
            ..Measurement::default()
        }
    }
}

/// Is called as things happen, on the loop's own task: keep it short.
pub trait Observer {
    fn issued(&mut self, _ticket: Ticket) {}
    /// A request ended (or was given up: `end_s` is null).
    fn ended(&mut self, outcome: RequestOutcome, reply: Reply);
    /// `permits` are held back after failures now.
    fn held(&mut self, _permits: usize) {}
    /// The warm-up or a window ended.
    fn window(&mut self, window: Window);
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
pub async fn run<S, F>(
    plan: &LoopPlan,
    mut stop: watch::Receiver<bool>,
    mut send: S,
    observer: &mut impl Observer,
) -> LoopRecord
where
    S: FnMut(Ticket) -> F,
    F: Future<Output = Reply> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(plan.level));
    let mut in_flight: JoinSet<Arrival> = JoinSet::new();
    let mut holds: JoinSet<OwnedSemaphorePermit> = JoinSet::new();
    let mut state = State::new(plan);
    while state.issuing() || !in_flight.is_empty() {
        tokio::select! {
            // Completions first: the window they close decides the phase of what is issued next.
            biased;
            Ok(_) = stop.wait_for(|&stop| stop), if !state.cut => {
                state.cut = true;
                in_flight.abort_all();
            }
            Some(joined) = in_flight.join_next() => match joined {
                Ok(arrival) => {
                    if let Some((permit, until)) = state.arrived(arrival, observer) {
                        holds.spawn(async move {
                            tokio::time::sleep_until(until).await;
                            permit
                        });
                        observer.held(holds.len());
                    }
                }
                Err(error) if error.is_cancelled() => {}
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            Some(_) = holds.join_next() => observer.held(holds.len()),
            Ok(permit) = permits.clone().acquire_owned(), if state.issuing() => {
                let start = Instant::now();
                let ticket = state.next_ticket(start);
                observer.issued(ticket);
                state.close_if_full(observer);
                let exchange = send(ticket);
                in_flight.spawn(async move {
                    let reply = exchange.await;
                    Arrival { seq: ticket.seq, end: Instant::now(), reply, permit }
                });
                // Where many ended at the same time, those that start first are to be on their way before the others'
                // times begin to count.
                if state.issued.is_multiple_of(AT_ONCE) {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
    state.into_record(observer)
}

struct Arrival {
    seq: u64,
    end: Instant,
    reply: Reply,
    permit: OwnedSemaphorePermit,
}

/// Where the loop stands: which window is open, how many tickets are left.
struct State<'a> {
    plan: &'a LoopPlan,
    began: Instant,
    issued: u64,
    issued_measured: usize,
    /// What is in flight, by number, and since when.
    open_tickets: BTreeMap<u64, (Ticket, Instant)>,
    warmed_up: bool,
    /// The level has clearly failed, in this way.
    given_up: Option<Ending>,
    last_success: Instant,
    cut: bool,
    open: Window,
    windows: Vec<Window>,
    typical: TypicalLatency,
}

impl<'a> State<'a> {
    fn new(plan: &'a LoopPlan) -> Self {
        let began = Instant::now();
        State {
            plan,
            began,
            issued: 0,
            issued_measured: 0,
            open_tickets: BTreeMap::new(),
            warmed_up: false,
            given_up: None,
            last_success: began,
            cut: false,
            open: empty_window(0.0),
            windows: Vec::with_capacity(plan.samples),
            typical: TypicalLatency::default(),
        }
    }

    fn seconds(&self, at: Instant) -> f64 {
        at.duration_since(self.began).as_secs_f64()
    }

    fn done(&self) -> bool {
        self.windows.len() == self.plan.samples
    }

    fn issuing(&self) -> bool {
        !self.cut && !self.done() && self.issued < self.plan.tickets()
    }

    fn next_ticket(&mut self, start: Instant) -> Ticket {
        let phase = if self.warmed_up { Phase::Measured } else { Phase::Warmup };
        let ticket = Ticket { seq: self.issued, phase };
        self.open_tickets.insert(ticket.seq, (ticket, start));
        self.issued += 1;
        self.issued_measured += usize::from(self.warmed_up);
        ticket
    }

    /// Of a failure that came too soon, the permit and until when it is to be held back.
    fn arrived(&mut self, arrival: Arrival, observer: &mut impl Observer) -> Option<(OwnedSemaphorePermit, Instant)> {
        let Arrival { seq, end, reply, permit } = arrival;
        let (ticket, start) = self.open_tickets.remove(&seq)?;
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
        let sample = (self.warmed_up && !self.done()).then_some(self.windows.len() as u32);
        let held_s = (held > Duration::ZERO).then_some(held.as_secs_f64());
        observer.ended(RequestOutcome { held_s, ..record(ticket, sample, start_s, Some(end_s), &reply) }, reply);
        self.check_time(end);
        self.count(end_s, succeeded, observer);
        held_s.map(|_| (permit, end + held))
    }

    /// Gives the level up if it has made no progress for too long. Every request comes to its end in time, so that
    /// it is enough to check when one does.
    fn check_time(&mut self, now: Instant) {
        let since = |then| now.saturating_duration_since(then);
        if since(self.last_success) > self.plan.patience {
            self.given_up.get_or_insert(Ending::Stalled);
        } else if since(self.began) > self.plan.time_limit {
            self.given_up.get_or_insert(Ending::Overdue);
        }
    }

    fn count(&mut self, end_s: f64, succeeded: bool, observer: &mut impl Observer) {
        if self.done() || self.cut {
            return;
        }
        // A task that was polled later may have ended earlier; a window never runs backwards.
        self.open.end_s = self.open.end_s.max(end_s);
        self.open.completed += 1;
        self.open.succeeded += usize::from(succeeded);
        self.close_if_full(observer);
    }

    /// Closes the open window if it is full. It ends with its last completion: where many come at the same instant, the
    /// cohort is whole only once the tickets after them are issued.
    fn close_if_full(&mut self, observer: &mut impl Observer) {
        if self.open.completed == 0 || !self.is_full() {
            return;
        }
        let closed = self.open;
        self.open = empty_window(closed.end_s);
        if self.warmed_up {
            self.windows.push(closed);
        } else {
            self.warmed_up = true;
            if closed.succeeded == 0 {
                self.given_up = Some(Ending::Hopeless);
            }
        }
        observer.window(closed);
    }

    fn is_full(&self) -> bool {
        if self.given_up.is_some() {
            return true;
        }
        if !self.warmed_up {
            return self.open.completed >= self.plan.warmup;
        }
        // Permits held after failures may leave the cohort a few short of the plan: the last window waits for it.
        let last = self.windows.len() + 1 == self.plan.samples;
        self.open.completed >= self.plan.window && (!last || self.issued_measured >= self.plan.measured())
    }

    /// For how long the permit of a failed request is held back, so that refusals do not turn the loop into a flood.
    fn hold(&self, latency: Duration, retry_after: Option<Duration>) -> Duration {
        let typical = self.typical.median().unwrap_or(LONGEST_HOLD).min(LONGEST_HOLD);
        let asked = retry_after.unwrap_or_default().min(self.plan.longest_wait);
        typical.saturating_sub(latency).max(asked)
    }

    /// Ends the loop; what is still in flight was given up.
    fn into_record(self, observer: &mut impl Observer) -> LoopRecord {
        for &(ticket, start) in self.open_tickets.values() {
            observer.ended(record(ticket, None, self.seconds(start), None, &Reply::default()), Reply::default());
        }
        let ending = match self.given_up {
            _ if !self.done() => Ending::Cut,
            Some(given_up) => given_up,
            None => Ending::Complete,
        };
        LoopRecord { ending, windows: self.windows, sent: self.issued }
    }
}

fn empty_window(start_s: f64) -> Window {
    Window { start_s, end_s: start_s, completed: 0, succeeded: 0 }
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
        held_s: None,
        // The loop knows no prompts.
        prompt_size: None,
    }
}

/// The median of the most recent successes' latencies; bounded, so that a long run costs no memory.
#[derive(Default)]
struct TypicalLatency {
    recent: Vec<Duration>,
    next: usize,
}

impl TypicalLatency {
    const KEPT: usize = 255;

    fn add(&mut self, latency: Duration) {
        if self.recent.len() < Self::KEPT {
            self.recent.push(latency);
        } else {
            self.recent[self.next] = latency;
            self.next = (self.next + 1) % Self::KEPT;
        }
    }

    fn median(&self) -> Option<Duration> {
        let mut sorted = self.recent.clone();
        let middle = sorted.len() / 2;
        (!sorted.is_empty()).then(|| *sorted.select_nth_unstable(middle).1)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use crate::client::outcome::Failure;
    use crate::figures::{LevelSummary, Limits, summarize};

    #[derive(Default)]
    struct Log {
        outcomes: Vec<RequestOutcome>,
        windows: Vec<Window>,
        held: Vec<usize>,
    }

    impl Observer for Log {
        fn ended(&mut self, outcome: RequestOutcome, _: Reply) {
            self.outcomes.push(outcome);
        }
        fn held(&mut self, permits: usize) {
            self.held.push(permits);
        }
        fn window(&mut self, window: Window) {
            self.windows.push(window);
        }
    }

    /// Runs a plan in virtual time.
    fn run_virtually<F>(plan: &LoopPlan, send: impl FnMut(Ticket) -> F) -> (LoopRecord, Log)
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        run_until(plan, Duration::MAX, send)
    }

    /// The same, stopped after `stop_after`.
    fn run_until<F>(plan: &LoopPlan, stop_after: Duration, send: impl FnMut(Ticket) -> F) -> (LoopRecord, Log)
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        let mut log = Log::default();
        let (stopper, stop) = watch::channel(false);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("runtime");
        let record = runtime.block_on(async {
            tokio::spawn(async move {
                tokio::time::sleep(stop_after).await;
                stopper.send(true).expect("the loop listens");
            });
            run(plan, stop, send, &mut log).await
        });
        (record, log)
    }

    /// `send` gives each ticket its latency and reply. Also gives the most that were in flight at once.
    fn virtually(plan: &LoopPlan, mut send: impl FnMut(Ticket) -> (Duration, Reply)) -> (LoopRecord, Log, usize) {
        let in_flight = Arc::new(AtomicUsize::new(0));
        let peak = Arc::new(AtomicUsize::new(0));
        let (record, log) = run_virtually(plan, |ticket| {
            let (latency, reply) = send(ticket);
            let (in_flight, peak) = (in_flight.clone(), peak.clone());
            async move {
                peak.fetch_max(in_flight.fetch_add(1, Relaxed) + 1, Relaxed);
                tokio::time::sleep(latency).await;
                in_flight.fetch_sub(1, Relaxed);
                reply
            }
        });
        (record, log, peak.load(Relaxed))
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn summary(plan: &LoopPlan, record: &LoopRecord, log: &Log) -> LevelSummary {
        let requests = log.outcomes.iter().collect();
        summarize(
            &[(&record.measurement(plan.level), &requests)],
            Limits { request_timeout_s: 0.0, max_error_rate: 1.0 },
        )
    }

    fn measured(log: &Log) -> usize {
        log.outcomes.iter().filter(|o| o.phase == Phase::Measured).count()
    }

    #[test]
    fn every_level_sends_its_tickets_in_windows_that_touch_and_never_more_than_the_level_at_once() {
        for level in [1, 2, 7, 50] {
            let plan = LoopPlan::new(level, 100, 5, 10, level);
            let (record, log, peak) = virtually(&plan, |t| (ms(20 + t.seq * 7919 % 30), Reply::default()));
            assert_eq!(record.ending, Ending::Complete);
            assert_eq!(peak, level);
            assert_eq!(record.windows.len(), 10);
            // Completions at the very same instant (virtual time has them) are issued again a little later.
            assert!((plan.measured()..plan.measured() + level).contains(&measured(&log)));
            assert_eq!(log.outcomes.len() as u64, record.sent);
            assert!(record.sent <= plan.tickets());
            assert_eq!(log.windows.len(), 11, "the warm-up and ten windows");
            assert!(log.windows.windows(2).all(|pair| pair[0].end_s == pair[1].start_s), "they touch");
            for (index, window) in record.windows.iter().enumerate() {
                let inside = log.outcomes.iter().filter(|o| o.sample == Some(index as u32));
                assert_eq!(inside.clone().count(), window.completed);
                assert!(inside.clone().all(|o| o.end_s.is_some_and(|e| e >= window.start_s && e <= window.end_s)));
            }
        }
    }

    /// All end at the same instant: those that start again are on their way before many others' times begin to count.
    #[test]
    fn of_those_that_end_together_few_start_together() {
        let (issued, started) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        let most = AtomicUsize::new(0);
        let send = |_| {
            let waiting = issued.fetch_add(1, Relaxed) + 1 - started.load(Relaxed);
            most.fetch_max(waiting, Relaxed);
            let started = started.clone();
            async move {
                started.fetch_add(1, Relaxed);
                tokio::time::sleep(ms(100)).await;
                Reply::default()
            }
        };
        run_virtually(&LoopPlan::new(32, 320, 0, 10, 32), send);
        assert!(issued.into_inner() >= 320);
        assert_eq!(most.into_inner() as u64, AT_ONCE);
    }

    /// Ten in flight and eight slots, each request 100 ms: all that end together do so at a multiple of 100 ms, and 8 a
    /// time. The cohort of 100 is short when the last window has its completions; to wait for the next ones, for which
    /// there are no more tickets, would measure eight in flight.
    #[test]
    fn the_last_window_does_not_outlast_the_tickets() {
        let slots = Arc::new(Semaphore::new(8));
        let plan = LoopPlan::new(10, 100, 5, 10, 10);
        let send = |_| {
            let slots = slots.clone();
            async move {
                let _slot = slots.acquire().await.expect("nobody closes it");
                tokio::time::sleep(ms(100)).await;
                Reply::default()
            }
        };
        let (record, log) = run_virtually(&plan, send);
        let rps = summary(&plan, &record, &log).throughput_rps.expect("complete").estimate;
        assert!((rps / 80.0 - 1.0).abs() < 1e-9, "{rps} where the truth is 80");
        assert!(measured(&log) >= plan.measured());
    }

    #[test]
    fn refusals_at_once_hold_their_permit_and_do_not_flood() {
        // Slots for 4 of 6: two are refused after 1 ms, the others take 100 ms.
        let plan = LoopPlan::new(6, 600, 6, 10, 6);
        let busy = Arc::new(AtomicUsize::new(0));
        let (record, log) = run_virtually(&plan, |_| {
            let busy = busy.clone();
            async move {
                if busy.fetch_add(1, Relaxed) >= 4 {
                    tokio::time::sleep(ms(1)).await;
                    busy.fetch_sub(1, Relaxed);
                    return Reply::failed(Failure::ServerError, "full");
                }
                tokio::time::sleep(ms(100)).await;
                busy.fetch_sub(1, Relaxed);
                Reply::default()
            }
        });
        let failed = log.outcomes.iter().filter(|o| o.failure.is_some()).count() as f64;
        let rate = failed / log.outcomes.len() as f64;
        assert!((0.30..0.37).contains(&rate), "a third is refused, not all but a few: {rate}");
        // Two permits of six are held back nearly all the time, and what is not held is in flight.
        let summary = summary(&plan, &record, &log);
        let (held, in_flight) = (summary.mean_held.expect("some"), summary.mean_in_flight.expect("some"));
        assert!((held - 2.0).abs() < 0.1 && (held + in_flight - 6.0).abs() < 0.1, "{held} held, {in_flight} in flight");
        assert_eq!(log.held.iter().max(), Some(&2));
        assert!(measured(&log) >= plan.measured());
        assert!(record.sent <= plan.tickets());
    }

    #[test]
    fn retry_after_keeps_the_permit_for_as_long_as_asked() {
        let plan = LoopPlan::new(1, 10, 1, 10, 1);
        let (_, log, _) = virtually(&plan, |t| {
            let mut reply = Reply::default();
            if t.seq == 3 {
                reply = Reply::failed(Failure::RateLimited, "slow down");
                reply.retry_after = Some(Duration::from_secs(5));
            }
            (ms(10), reply)
        });
        let gap = log.outcomes[4].start_s - log.outcomes[3].end_s.expect("ended");
        assert!((gap - 5.0).abs() < 0.01, "{gap}");
        assert_eq!((log.outcomes[3].held_s, log.held), (Some(5.0), vec![1, 0]));
    }

    #[test]
    fn a_level_whose_warm_up_all_failed_shrinks_to_one_completion_a_window() {
        let plan = LoopPlan::new(3, 100, 5, 10, 3);
        let (record, log, _) = virtually(&plan, |_| (ms(1), Reply::failed(Failure::Connect, "refused")));
        assert_eq!(record.ending, Ending::Hopeless);
        assert!(record.windows.iter().all(|w| w.completed == 1 && w.succeeded == 0));
        assert!(log.outcomes.len() <= 5 + 10 + 3);
    }

    /// It works until request 20, and then no more: each request takes all of its second, three of them are enough.
    #[test]
    fn a_level_without_a_success_for_long_is_given_up() {
        let plan = LoopPlan::new(2, 1000, 2, 10, 2).with_request_timeout(ms(1_000));
        let (record, log, _) = virtually(&plan, |t| match t.seq {
            0..20 => (ms(100), Reply::default()),
            _ => (ms(1_000), Reply::failed(Failure::Timeout, "no whole answer in time")),
        });
        assert_eq!(record.ending, Ending::Stalled);
        assert_eq!(record.windows.len(), 10);
        assert!(log.outcomes.len() < 20 + 2 * 4 + 10 + 2, "{}", log.outcomes.len());
        assert_eq!(record.windows.iter().map(|w| w.succeeded).sum::<usize>() + 2, 20);
    }

    /// Every second request waits for as long as it may, and is refused then. The warm-up never ends.
    #[test]
    fn a_level_that_takes_longer_than_all_its_requests_may_is_given_up() {
        let plan = LoopPlan { time_limit: ms(30_000), ..LoopPlan::new(1, 100, 5, 10, 1) };
        let (record, log, _) = virtually(&plan, |t| {
            let mut reply = Reply::failed(Failure::RateLimited, "slow down");
            reply.retry_after = Some(Duration::from_secs(10));
            (ms(10), if t.seq % 2 == 0 { Reply::default() } else { reply })
        });
        assert_eq!(record.ending, Ending::Overdue);
        assert!(log.outcomes.len() < 8 + 10, "{}", log.outcomes.len());
    }

    #[test]
    fn stopping_gives_up_what_is_in_flight_and_still_accounts_for_it() {
        let plan = LoopPlan::new(8, 1000, 8, 10, 8);
        let (record, log) = run_until(&plan, ms(5_050), |_| async {
            tokio::time::sleep(ms(100)).await;
            Reply::default()
        });
        assert_eq!(record.ending, Ending::Cut);
        assert_eq!(log.outcomes.len() as u64, record.sent);
        let given_up: Vec<_> = log.outcomes.iter().filter(|o| o.end_s.is_none()).collect();
        assert_eq!(given_up.len(), 8);
        assert!(given_up.iter().all(|o| !o.is_success() && o.error.is_some()));
    }
}
