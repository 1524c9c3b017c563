//! The closed loop in virtual time, against requests that take as long as a test says.

#![cfg(feature = "suite")]

#[path = "common/virtual_server.rs"]
mod virtual_server;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use llm_concurrency::client::outcome::{Failure, Phase, Reply, RequestOutcome};
use llm_concurrency::figures::reasons::EarlyEnd;
use llm_concurrency::figures::{ClientLoad, LevelSummary, Limits, summarize};
use llm_concurrency::load::closed_loop::{AT_ONCE, LoopPlan, LoopRecord, Observer, Ticket, Window, visits};
use llm_concurrency::load::self_check::SelfCheck;
use tokio::sync::{Semaphore, mpsc, watch};
use virtual_server::virtual_time;

#[derive(Default)]
struct Log {
    outcomes: Vec<RequestOutcome>,
    windows: Vec<Window>,
    held: Vec<usize>,
    tickets: Vec<Ticket>,
    visits: Vec<(usize, LoopRecord, usize)>,
}

impl Observer for Log {
    fn issued(&mut self, ticket: Ticket) {
        self.tickets.push(ticket);
    }
    fn ended(&mut self, outcome: RequestOutcome, _: Reply) {
        self.outcomes.push(outcome);
    }
    fn visited(&mut self, level: usize, _: u32, record: LoopRecord, in_flight_s: Vec<f64>) {
        self.visits.push((level, record, in_flight_s.len()));
    }
    fn held(&mut self, permits: usize) {
        self.held.push(permits);
    }
    fn window(&mut self, window: Window) {
        self.windows.push(window);
    }
}

/// Runs one plan after the other, stopped after `stop_after`.
fn run_until<F>(plans: &[LoopPlan], stop_after: Duration, send: impl FnMut(Ticket) -> F) -> (LoopRecord, Log)
where
    F: Future<Output = Reply> + Send + 'static,
{
    let mut log = Log::default();
    let (stopper, stop) = watch::channel(false);
    let (orders, next) = mpsc::channel(plans.len());
    plans[1..].iter().for_each(|plan| orders.try_send(*plan).expect("there is room"));
    drop(orders);
    let record = virtual_time().block_on(async {
        tokio::spawn(async move {
            tokio::time::sleep(stop_after).await;
            stopper.send(true).expect("the loop listens");
        });
        visits(&plans[0], next, stop, send, &mut log).await
    });
    (record, log)
}

/// `send` gives each ticket its latency and reply. Also gives the most that were in flight at once.
fn virtually(plans: &[LoopPlan], mut send: impl FnMut(Ticket) -> (Duration, Reply)) -> (LoopRecord, Log, usize) {
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let (record, log) = run_until(plans, Duration::MAX, |ticket| {
        let ((latency, reply), counts) = (send(ticket), counts.clone());
        async move {
            let [in_flight, peak] = &*counts;
            peak.fetch_max(in_flight.fetch_add(1, Relaxed) + 1, Relaxed);
            tokio::time::sleep(latency).await;
            in_flight.fetch_sub(1, Relaxed);
            reply
        }
    });
    (record, log, counts[1].load(Relaxed))
}

fn some_latency(ticket: Ticket) -> (Duration, Reply) {
    (ms(20 + ticket.seq * 7919 % 30), Reply::default())
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn summary(plan: &LoopPlan, record: &LoopRecord, log: &Log) -> LevelSummary {
    let (measurement, requests) = (record.measurement(plan.level), log.outcomes.iter().collect());
    summarize(&[(&measurement, &requests)], Limits { max_error_rate: 1.0, ..Limits::default() })
}

fn measured(log: &Log) -> usize {
    log.outcomes.iter().filter(|o| o.phase == Phase::Measured).count()
}

#[test]
fn every_level_sends_its_tickets_in_windows_that_touch_and_never_more_than_the_level_at_once() {
    for level in [1, 2, 7, 50] {
        let plan = LoopPlan::new(level, 100, 5, 10, level);
        let (record, log, peak) = virtually(&[plan], some_latency);
        assert_eq!(record.early_end, None);
        assert_eq!(peak, level);
        assert_eq!(record.windows.len(), 10);
        // Completions at the very same instant (virtual time has them) are issued again a little later.
        assert!((plan.measured..plan.measured + level).contains(&measured(&log)));
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
    run_until(&[LoopPlan::new(32, 320, 0, 10, 32)], Duration::MAX, send);
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
    let (record, log) = run_until(&[plan], Duration::MAX, send);
    let rps = summary(&plan, &record, &log).throughput_rps.expect("complete").estimate;
    assert!((rps / 80.0 - 1.0).abs() < 1e-9, "{rps} where the truth is 80");
    assert!(measured(&log) >= plan.measured);
}

#[test]
fn refusals_at_once_hold_their_permit_and_do_not_flood() {
    // Slots for 4 of 6: two are refused after 1 ms, the others take 100 ms.
    let plan = LoopPlan::new(6, 600, 6, 10, 6);
    let busy = Arc::new(AtomicUsize::new(0));
    let (record, log) = run_until(&[plan], Duration::MAX, |_| {
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
    assert!(measured(&log) >= plan.measured);
    assert!(record.sent <= plan.tickets());
}

#[test]
fn retry_after_keeps_the_permit_for_as_long_as_asked() {
    let plan = LoopPlan::new(1, 10, 1, 10, 1);
    let (_, log, _) = virtually(&[plan], |t| {
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
fn a_level_that_has_clearly_failed_shrinks_to_one_completion_a_window() {
    let refused = |asked_s| Reply {
        retry_after: Some(Duration::from_secs(asked_s)),
        ..Reply::failed(Failure::RateLimited, "slow down")
    };
    // All of the warm-up fails.
    let hopeless = |_| (ms(1), Reply::failed(Failure::Connect, "refused"));
    // It works until request 20, and then no more: each takes all of its second, and three of them are enough.
    let stalled = |ticket: Ticket| match ticket.seq {
        0..20 => (ms(100), Reply::default()),
        _ => (ms(1_000), Reply::failed(Failure::Timeout, "no whole answer in time")),
    };
    // Every second request waits for as long as it may, and is refused then. The warm-up never ends.
    let overdue = |ticket: Ticket| (ms(10), if ticket.seq.is_multiple_of(2) { Reply::default() } else { refused(10) });
    let limited = LoopPlan { time_limit: ms(30_000), ..LoopPlan::new(1, 100, 5, 10, 1) };
    type Send<'a> = &'a dyn Fn(Ticket) -> (Duration, Reply);
    for (early_end, plan, send, most) in [
        (EarlyEnd::WarmUpFailed, LoopPlan::new(3, 100, 5, 10, 3), &hopeless as Send<'_>, 5 + 10 + 3),
        (
            EarlyEnd::NoSuccess { seconds: 3.0 },
            LoopPlan::new(2, 1000, 2, 10, 2).with_request_timeout(ms(1_000)),
            &stalled,
            20 + 2 * 4 + 11,
        ),
        (EarlyEnd::TimeLimit { seconds: 30.0 }, limited, &overdue, 8 + 9),
    ] {
        let (record, log, _) = virtually(&[plan], send);
        assert_eq!((record.early_end.as_ref(), record.windows.len()), (Some(&early_end), 10));
        assert!(log.outcomes.len() <= most, "{early_end:?}: {}", log.outcomes.len());
        let sum = |of: fn(&Window) -> usize| record.windows.iter().map(of).sum::<usize>();
        match early_end {
            EarlyEnd::WarmUpFailed => assert_eq!((sum(|w| w.completed), sum(|w| w.succeeded)), (10, 0)),
            EarlyEnd::NoSuccess { .. } => assert_eq!(sum(|w| w.succeeded) + 2, 20),
            _ => {}
        }
    }
}

#[test]
fn stopping_gives_up_what_is_in_flight_and_still_accounts_for_it() {
    let plan = LoopPlan::new(8, 1000, 8, 10, 8);
    let (record, log) = run_until(&[plan], ms(5_050), |_| async {
        tokio::time::sleep(ms(100)).await;
        Reply::default()
    });
    assert_eq!(record.early_end, Some(EarlyEnd::Interrupted));
    assert_eq!(log.outcomes.len() as u64, record.sent);
    let given_up: Vec<_> = log.outcomes.iter().filter(|o| o.end_s.is_none()).collect();
    assert_eq!(given_up.len(), 8);
    assert!(given_up.iter().all(|o| !o.is_success() && o.error.is_some()));
}

/// Visits to these levels, of so many completions for each of the level; and the most in flight at any moment.
fn visit(levels: &[usize], waves: usize, send: impl Fn(Ticket) -> (Duration, Reply)) -> (Log, usize) {
    let plans: Vec<LoopPlan> = levels.iter().map(|&level| LoopPlan::visit(level, waves * level, 10)).collect();
    let (_, log, peak) = virtually(&plans, send);
    assert!(Some(&peak) <= levels.iter().max());
    (log, peak)
}

#[test]
fn visits_follow_each_other_without_a_drain_and_keep_to_their_level() {
    let levels = [2, 8, 3, 3, 20, 1];
    let (log, peak) = visit(&levels, 4, some_latency);
    assert_eq!(log.visits.iter().map(|visit| visit.0).collect::<Vec<_>>(), levels);
    assert_eq!(peak, 20);
    for (at, (level, record, in_flight)) in log.visits.iter().enumerate() {
        assert_eq!(record.early_end, None);
        let window = record.window_s().expect("windows");
        // Of completions at the very same instant a few come on top.
        let completed: usize = record.windows.iter().map(|window| window.completed).sum();
        assert!((4 * level..5 * level).contains(&completed), "{completed} at level {level}");
        assert!(record.windows.len() <= 10 && record.windows.windows(2).all(|w| w[0].end_s == w[1].start_s));
        // In flight at any moment of it: the level, and nothing else.
        let inside =
            |at: f64| log.outcomes.iter().filter(|o| o.start_s <= at && o.end_s.is_some_and(|end| end > at)).count();
        let middle = (window[0] + window[1]) / 2.0;
        for at in [window[0] + 1e-6, middle, window[1] - 1e-6] {
            assert!(inside(at).abs_diff(*level) <= 1, "{} at level {level}", inside(at));
        }
        let cohort = |o: &&RequestOutcome| o.visit.unwrap_or(0) as usize == at && o.phase == Phase::Measured;
        let cohort: Vec<_> = log.outcomes.iter().filter(cohort).collect();
        assert!(cohort.len() >= 4 * level - 1, "{} of {level}", cohort.len());
        let spanning = cohort.iter().filter(|o| o.end_s.is_some_and(|end| end > window[1])).count();
        assert_eq!(spanning, *in_flight);
        assert!(cohort.iter().all(|o| o.sample.is_none() == o.end_s.is_some_and(|end| end > window[1])));
        // No more than its ceiling.
        let sent = log.tickets.iter().filter(|ticket| ticket.visit as usize == at).count();
        assert!(sent as u64 <= LoopPlan::visit(*level, 4 * level, 10).tickets(), "{sent} at level {level}");
    }
    let last = log.visits.last().map(|visit| visit.1.sent);
    assert_eq!(last, Some(log.outcomes.len() as u64));
    assert!(log.tickets.iter().zip(0..).all(|(ticket, seq)| ticket.seq == seq));
}

/// Where nobody says what comes next, the level is kept, up to the ceiling on tickets.
#[test]
fn while_it_waits_for_an_order_a_visit_sends_no_more_than_its_tickets() {
    let plan = LoopPlan::visit(3, 12, 10);
    let (orders, next) = mpsc::channel::<LoopPlan>(1);
    let mut log = Log::default();
    let (_stopper, stop) = watch::channel(false);
    let send = |_| async {
        tokio::time::sleep(ms(10)).await;
        Reply::default()
    };
    virtual_time().block_on(async {
        tokio::spawn(async move {
            tokio::time::sleep(ms(1_000)).await;
            orders.send(LoopPlan::visit(2, 8, 10)).await.expect("it waits");
        });
        visits(&plan, next, stop, send, &mut log).await
    });
    let sent = |visit| log.tickets.iter().filter(|ticket| ticket.visit == visit).count() as u64;
    assert!(sent(0) <= plan.tickets() && sent(1) <= LoopPlan::visit(2, 8, 10).tickets(), "{:?}", log.visits);
    assert_eq!(log.visits[0].1.at_most, plan.tickets());
    assert_eq!(log.visits.len(), 2);
}

#[test]
fn permits_that_are_held_back_count_for_the_level_that_comes() {
    let refused = |ticket: Ticket| match ticket.level {
        8 => (ms(1), Reply::failed(Failure::ServerError, "full")),
        _ => some_latency(ticket),
    };
    let (log, _) = visit(&[2, 8, 2, 4], 3, refused);
    let holds = log.outcomes.iter().filter(|o| o.held_s.is_some()).count();
    assert!(holds >= 24, "{holds}");
    assert_eq!(log.visits.len(), 4);
    for (level, record, _) in &log.visits {
        let [from, to] = record.window_s().expect("windows");
        let taken = |at: f64| {
            let until = |o: &RequestOutcome| o.end_s.unwrap_or(0.0) + o.held_s.unwrap_or(0.0);
            log.outcomes.iter().filter(|o| o.start_s <= at && until(o) > at).count()
        };
        assert!(taken((from + to) / 2.0) <= *level);
    }
}

fn watched(mut between: impl FnMut()) -> ClientLoad {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut check = SelfCheck::start();
        check.window_ended();
        for _ in 0..20 {
            between();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        check.window_ended();
        check.result()
    })
}

/// A thread that computes for 30 ms before it polls its timers again is late by more than a thread that waits.
#[test]
fn a_thread_that_computes_shows_in_both_figures() {
    let busy = watched(|| {
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(30) {}
    });
    assert!(busy.timer_lag_p95_s.unwrap() > 0.005, "{busy:?}");
    if cfg!(unix) {
        let idle = watched(|| std::thread::sleep(Duration::from_millis(30)));
        assert!(busy.cpu.unwrap() > 5.0 * idle.cpu.unwrap(), "{busy:?} {idle:?}");
    }
}
