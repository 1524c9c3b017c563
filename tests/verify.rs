//! `verify`: requests that arrive by themselves, against queueing theory in virtual time, and the command against the
//! simulator's own log.

#![cfg(feature = "suite")]

#[path = "common/known.rs"]
mod known;
mod servers;
#[path = "common/virtual_server.rs"]
mod virtual_server;

use std::time::Duration;

use llm_concurrency::client::outcome::{Phase, Reply, RequestOutcome};
use llm_concurrency::decide::verify::{NotCarried, not_carried};
use llm_concurrency::decide::{Policy, TimeGate};
use llm_concurrency::figures::{ArrivalsEnd, Distribution, Limits, OpenLoad, Slo};
use llm_concurrency::load::open_loop::{self, Arrivals, Arrived};
use llm_concurrency::simulator::{Simulator, SimulatorConfig};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use statrs::distribution::{ContinuousCDF, StudentsT};
use tokio::sync::watch;

use known::Known;

/// Mean service time. Long beside tokio's millisecond, below which it knows nothing.
const SERVICE_S: f64 = 10.0;
const ARRIVALS: usize = 20_000;
const UTILISATIONS: [f64; 4] = [0.5, 0.7, 0.8, 0.9];

/// Arrivals at a share of what `permits` requests in parallel carry, each served for `service` of a random number.
fn let_arrive(
    permits: usize,
    utilisation: f64,
    count: usize,
    seed: u64,
    service: impl Fn(&mut StdRng) -> f64,
) -> (Arrived, Vec<RequestOutcome>) {
    let rate_rps = utilisation * permits as f64 / SERVICE_S;
    let plan = Arrivals { rate_rps, count, permits, seed };
    let mut rng = StdRng::seed_from_u64(seed + 1_000);
    let (_keep, stop) = watch::channel(false);
    let mut outcomes = Vec::new();
    let send = |_| {
        let taken = Duration::from_secs_f64(SERVICE_S * service(&mut rng));
        async move {
            tokio::time::sleep(taken).await;
            Reply::default()
        }
    };
    let arrived =
        virtual_server::virtual_time().block_on(open_loop::run(&plan, stop, send, |outcome| outcomes.push(outcome)));
    outcomes.sort_by_key(|outcome| outcome.seq);
    (arrived, outcomes)
}

fn exponential(rng: &mut StdRng) -> f64 {
    -(1.0 - rng.random::<f64>()).ln()
}

/// Waits in service times, in the order of arrival, without the first tenth, in which the queue fills up.
fn waits(outcomes: &[RequestOutcome]) -> Vec<f64> {
    let wait = |outcome: &RequestOutcome| (outcome.start_s - outcome.due_s.expect("it arrived")) / SERVICE_S;
    outcomes[outcomes.len() / 10..].iter().map(wait).collect()
}

/// The 99 % interval of a mean of values that depend on those before them, by means of 20 batches (Conway 1963).
fn interval(values: &[f64]) -> [f64; 2] {
    const BATCHES: usize = 20;
    let means: Vec<f64> = values
        .chunks_exact(values.len() / BATCHES)
        .take(BATCHES)
        .map(|batch| batch.iter().sum::<f64>() / batch.len() as f64)
        .collect();
    let n = means.len() as f64;
    let mean = means.iter().sum::<f64>() / n;
    let variance = means.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let t = StudentsT::new(0.0, 1.0, n - 1.0).unwrap().inverse_cdf(0.995);
    [-1.0, 1.0].map(|sign| mean + sign * t * (variance / n).sqrt())
}

/// The chance to wait at all (Erlang 1917, "C"), with `a` erlangs on `c` servers.
fn erlang_c(c: usize, a: f64) -> f64 {
    let blocked = (1..=c).fold(1.0, |b, n| a * b / (n as f64 + a * b));
    blocked / (1.0 - a / c as f64 * (1.0 - blocked))
}

#[track_caller]
fn assert_inside(what: &str, [low, high]: [f64; 2], truth: f64) {
    println!("{what}: {truth:.4} by the formula, {low:.4} to {high:.4} measured");
    assert!(low <= truth && truth <= high, "{what}: {truth} is not in {low} to {high}");
}

#[test]
fn exponential_service_waits_as_erlang_c_has_it() {
    for c in [4, 20] {
        for (at, utilisation) in UTILISATIONS.into_iter().enumerate() {
            let (arrived, outcomes) = let_arrive(c, utilisation, ARRIVALS, at as u64, exponential);
            assert_eq!(
                (arrived.ending, arrived.late_s.len(), outcomes.len()),
                (ArrivalsEnd::Complete, ARRIVALS, ARRIVALS)
            );
            let waits = waits(&outcomes);
            let chance = erlang_c(c, utilisation * c as f64);
            let mean = chance / (c as f64 * (1.0 - utilisation));
            assert_inside(&format!("M/M/{c} at {utilisation}: mean wait"), interval(&waits), mean);
            // Half a millisecond is what the timer rounds by.
            let rounding = 0.002 / SERVICE_S;
            let waited: Vec<f64> = waits.iter().map(|&wait| f64::from(u8::from(wait > rounding))).collect();
            assert_inside(&format!("M/M/{c} at {utilisation}: chance to wait"), interval(&waited), chance);
            // P(W > t) = C exp(-c (1 - rho) t)
            let t = (chance / 0.05).ln() / (c as f64 * (1.0 - utilisation));
            let t = t.max(rounding);
            let above: Vec<f64> = waits.iter().map(|&wait| f64::from(u8::from(wait > t))).collect();
            assert_inside(&format!("M/M/{c} at {utilisation}: waits above P95"), interval(&above), chance.min(0.05));
        }
    }
}

/// The mean wait of M/D/c in service times, exact: with constant service, those inside at t + D are those who waited at t
/// and those who came since (Crommelin 1932, "Delay probability formulae when the holding times are constant"), and by
/// Little's law the wait is the queue over the rate.
fn crommelin(c: usize, utilisation: f64) -> f64 {
    const MOST: usize = 200;
    let a = utilisation * c as f64;
    let mut poisson = vec![(-a).exp()];
    (1..MOST).for_each(|n| poisson.push(poisson[n - 1] * a / n as f64));
    let mut inside = vec![0.0; MOST];
    inside[0] = 1.0;
    let mut change = 1.0;
    while change > 1e-11 {
        let mut next = vec![0.0; MOST];
        for (n, chance) in inside.iter().enumerate().filter(|(_, chance)| **chance > 1e-16) {
            let left = n.saturating_sub(c);
            (left..MOST).for_each(|to| next[to] += chance * poisson[to - left]);
        }
        change = inside.iter().zip(&next).map(|(before, after)| (before - after).abs()).sum();
        inside = next;
    }
    let mean: f64 = inside.iter().enumerate().map(|(n, chance)| n as f64 * chance).sum();
    (mean - a) / a
}

/// For one server the formula of Pollaczek and Khinchine: rho / 2 (1 - rho).
#[test]
fn the_oracle_for_constant_service_agrees_with_pollaczek_and_khinchine() {
    for utilisation in UTILISATIONS {
        let exact = utilisation / (2.0 * (1.0 - utilisation));
        assert!((crommelin(1, utilisation) - exact).abs() < 1e-6, "{} {exact}", crommelin(1, utilisation));
    }
}

#[test]
fn constant_service_waits_as_crommelin_has_it() {
    for c in [4, 20] {
        for (at, utilisation) in UTILISATIONS.into_iter().enumerate() {
            let (_, outcomes) = let_arrive(c, utilisation, ARRIVALS, 10 + at as u64, |_| 1.0);
            assert_inside(
                &format!("M/D/{c} at {utilisation}: mean wait"),
                interval(&waits(&outcomes)),
                crommelin(c, utilisation),
            );
        }
    }
}

/// A tenth above what it carries shows late, a half at once; what is below is never called one, however long it goes on.
#[test]
fn an_overload_is_called_one_and_cut_short() {
    for c in [1, 4, 20] {
        for (utilisation, most) in [(1.2, 20_000), (1.5, 1_000), (3.0, 200)] {
            let (arrived, outcomes) = let_arrive(c, utilisation, 20_000, 3, exponential);
            assert_eq!(arrived.ending, ArrivalsEnd::Overloaded, "{c} at {utilisation}");
            println!("c {c} at {utilisation}: {} arrived, {} sent", arrived.late_s.len(), outcomes.len());
            assert!(arrived.late_s.len() < most, "{} arrived", arrived.late_s.len());
            assert!(outcomes.len() + arrived.backlog <= arrived.late_s.len() + c, "what waited was not sent");
            assert!(outcomes.iter().all(|outcome| outcome.end_s.is_some()), "what was sent came to its end");
        }
    }
    let is_overload = |seed| let_arrive(20, 0.9, 200, seed, exponential).0.ending == ArrivalsEnd::Overloaded;
    assert_eq!((0..200).filter(|&seed| is_overload(seed)).count(), 0, "of 200 at 90 %");
    let at_once = |seed| let_arrive(20, 0.9, 200, seed, |_| 1.0).0.ending == ArrivalsEnd::Overloaded;
    assert_eq!((0..50).filter(|&seed| at_once(seed)).count(), 0, "of 50 with constant service");
}

/// A server that stands still for a while: all that arrived meanwhile have waited, as they have in the figures.
#[test]
fn a_late_arrival_counts_from_when_it_was_due() {
    let plan = Arrivals { rate_rps: 100.0, count: 200, permits: 1, seed: 1 };
    let (_keep, stop) = watch::channel(false);
    let mut outcomes = Vec::new();
    let send = |seq| async move {
        tokio::time::sleep(Duration::from_millis(if seq == 50 { 1_000 } else { 1 })).await;
        Reply::default()
    };
    virtual_server::virtual_time().block_on(open_loop::run(&plan, stop, send, |outcome| outcomes.push(outcome)));
    let slo = Slo { latency: Some(0.5), ..Slo::default() };
    let limits = Limits { request_timeout_s: 30.0, slo: Some(slo), ..Limits::default() };
    let load = OpenLoad::default().with(&outcomes, &limits);
    assert_eq!((load.requests, load.failed), (199, 0), "the first as many as there are permits do not count");
    let standing = outcomes[50].start_s..outcomes[50].start_s + 1.0;
    let meanwhile = outcomes.iter().filter(|outcome| outcome.seq > 50 && standing.contains(&outcome.due_s.unwrap()));
    // Some hundred in a second; they wait for half of it on average.
    assert!(meanwhile.clone().count() > 70);
    let mean = meanwhile.clone().map(|outcome| outcome.start_s - outcome.due_s.unwrap()).sum::<f64>();
    let mean = mean / meanwhile.count() as f64;
    assert!((0.4..0.7).contains(&mean), "{mean}");
    assert!(load.latency_s.unwrap().max > Some(0.9));
    let soon = |outcome: &&RequestOutcome| outcome.end_s.unwrap() - outcome.due_s.unwrap() <= 0.5;
    let soon = outcomes.iter().filter(|outcome| outcome.phase == Phase::Measured).filter(soon).count();
    assert!((100..180).contains(&soon), "{soon}");
    assert_eq!(load.within_slo, Some(soon as u64));
    let policy = |attainment| Policy { slo: Some(Slo { attainment, ..slo }), ..Policy::default() };
    let share = soon as f64 / 199.0;
    assert_eq!(not_carried(&load, &policy(0.99)), Some(NotCarried::Slo(share, 0.99)));
    assert_eq!(not_carried(&load, &policy(share)), None);
    assert!(outcomes.iter().all(|outcome| outcome.phase == Phase::Measured || outcome.seq == 0));
}

#[test]
fn arrivals_are_seeded_and_keep_to_their_rate() {
    let plan = Arrivals { rate_rps: 50.0, count: 1_000, permits: 1, seed: 7 };
    let due = plan.due_s();
    assert_eq!(due, plan.due_s());
    assert_ne!(due, Arrivals { seed: 8, ..plan }.due_s());
    assert!(due.is_sorted() && due.len() == 1_000 && due[999] < 20.0 && due[999] > 19.8, "{}", due[999]);
    // The gaps of a Poisson process vary as much as their mean.
    let gaps: Vec<f64> = due.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let mean = gaps.iter().sum::<f64>() / 999.0;
    let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / 999.0).sqrt();
    assert!((deviation / mean - 1.0).abs() < 0.1, "{}", deviation / mean);
}

/// In real time; prints, and holds only what no machine misses.
#[test]
#[ignore = "prints what this machine does: cargo test --test verify schedule -- --ignored --nocapture"]
fn schedule_error_at_500_a_second() {
    let plan = Arrivals { rate_rps: 500.0, count: 5_000, permits: 200, seed: 1 };
    let (_keep, stop) = watch::channel(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let send = |_| async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Reply::default()
    };
    let arrived = runtime.block_on(open_loop::run(&plan, stop, send, drop));
    let at = |share: f64| 1e3 * arrived.late_s[((arrived.late_s.len() - 1) as f64 * share) as usize];
    println!("late by {:.2} ms (median), {:.2} ms (P99), {:.2} ms (most)", at(0.5), at(0.99), at(1.0));
    assert_eq!(arrived.late_s.len(), 5_000);
}

// ---- the command ----

/// The number of the file is 20, found at 30 requests/s; the simulator carries more.
fn server() -> Simulator {
    Simulator::start(SimulatorConfig::default(), 0).unwrap()
}

/// Each request that reached the server has its line, and no line is without one.
#[track_caller]
fn assert_accounts(known: &Known, server: &Simulator) -> usize {
    let lines = known.lines();
    assert_eq!(server.log().len(), lines.len());
    lines.iter().filter(|line| line.due_s.is_some()).count()
}

#[test]
fn four_rates_are_carried_and_go_into_file_and_report() {
    let server = server();
    let known = Known::of(&server.base_url(), "");
    let before = known.results();
    let ran = known.run(&["verify", "knee.json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("100 arrivals at each of 15.0, 21.0, 24.0, 27.0 requests/s, at most 20 in flight,"));
    assert!(ran.stderr.contains("at most 404 requests of up to 64 output tokens"), "{}", ran.stderr);
    assert!(ran.stdout.contains("N = 20 carries 27.0 requests/s with a P95 of "), "{}", ran.stdout);
    assert!(ran.stdout.contains("waiting included. No higher rate was tried."), "{}", ran.stdout);
    assert_eq!(assert_accounts(&known, &server), 400);
    assert!(server.peak_in_flight() <= 20, "{}", server.peak_in_flight());
    let mut after = known.results();
    let verified = after.as_object_mut().unwrap().remove("verified").unwrap();
    assert_eq!(after, before, "all else is as it was");
    assert_eq!(verified["concurrency"], 20);
    assert_eq!(verified["loads"].as_array().unwrap().len(), 4);
    assert!(verified["loads"].as_array().unwrap().iter().all(|load| load["requests"] == 80 && load["failed"] == 0));
    let page = std::fs::read_to_string(known.path("results/concurrency_report_knee.html")).unwrap();
    assert!(page.contains("Requests that arrive at a given rate: N = 20 carries 27.0 requests"), "beside the curve");
    // And wherever else the page of that file is made.
    assert_eq!(known.run(&["report", "knee.json", "--output", "page.html"]).code, 0);
    assert!(std::fs::read_to_string(known.path("page.html")).unwrap().contains("N = 20 carries 27.0"));
}

#[test]
fn an_overload_a_limit_and_a_budget_end_it() {
    // Its answers take half a second or more.
    let base_step_ms = 3.0 * SimulatorConfig::default().base_step_ms;
    let server = Simulator::start(SimulatorConfig { base_step_ms, ..SimulatorConfig::default() }, 0).unwrap();
    let known = Known::of(&server.base_url(), "policy: {max_p95_seconds: 0.5}");
    let ran = known.run(&["verify", "knee.json", "--rate", "400"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stdout.contains("overload: the queue keeps growing; cut short"), "{}", ran.stdout);
    assert!(ran.stdout.contains("N = 20 does not carry 400.0 requests/s"), "{}", ran.stdout);
    assert!(assert_accounts(&known, &server) < 100, "it is cut short");
    // The first rate that misses a limit is the last.
    let ran = known.run(&["verify", "knee.json", "--rate", "10"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stdout.contains("is above 500 ms, waiting included"), "{}", ran.stdout);
    assert_eq!(known.results()["verified"]["loads"].as_array().unwrap().len(), 1);
    let sent = server.log().len();
    let ran = known.run_with(&["verify", "knee.json", "--rate", "20"], &[("LLM_BENCH_MAX_REQUESTS", "103")]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("104 requests might already exceed benchmark.budget.max_requests"), "{}", ran.stderr);
    assert_eq!(server.log().len(), sent, "nothing was sent");
    let server = self::server();
    let known = Known::of(&server.base_url(), "");
    let ran = known.run_with(&["verify", "knee.json"], &[("LLM_BENCH_MAX_REQUESTS", "250")]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("carries 21.0 requests/s"), "{}", ran.stdout);
    assert!(ran.stdout.contains("benchmark.budget.max_requests left no room"), "{}", ran.stdout);
    assert!(server.log().len() <= 250);
    let before = known.results();
    let ran = known.run_with(&["verify", "knee.json"], &[("LLM_BENCH_MAX_MINUTES", "0")]);
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{ran:?}");
    let why = "What N = 20 carries is not known: benchmark.budget.max_minutes was reached before the first rate";
    assert!(ran.stderr.contains(why), "{}", ran.stderr);
    assert_eq!(known.results(), before);
}

#[test]
fn what_holds_no_number_of_this_server_is_refused_before_anything_is_sent() {
    known::assert_bad_input_is_refused("verify");
}

#[test]
fn interrupted_it_leaves_the_file_as_it_was_and_accounts_for_all() {
    let server = server();
    let known = Known::of(&server.base_url(), "");
    let before = known.results();
    let ran = known.interrupt(&["verify", "knee.json"], || server.log().len() > 10);
    assert_eq!(ran.code, 130, "{ran:?}");
    assert_eq!(known.results(), before);
    known::wait_until("the server to see that the client left", || server.log().len() >= known.lines().len());
    assert_accounts(&known, &server);
}

#[test]
fn each_limit_is_held_against_its_own_time() {
    let p95 = |seconds| Some(Distribution { p95: Some(seconds), p99: Some(2.0 * seconds), ..Distribution::default() });
    let (latency_s, ttft_s, tpot_s) = (p95(4.0), p95(0.4), p95(0.04));
    let load = OpenLoad { requests: 100, latency_s, ttft_s, tpot_s, ..OpenLoad::default() };
    type Set = fn(&mut Policy) -> &mut Option<f64>;
    let limits: [(Set, TimeGate, f64); 4] = [
        (|policy| &mut policy.max_p95_seconds, TimeGate::P95, 4.0),
        (|policy| &mut policy.max_p99_seconds, TimeGate::P99, 8.0),
        (|policy| &mut policy.max_ttft_p95_seconds, TimeGate::TtftP95, 0.4),
        (|policy| &mut policy.max_tpot_p95_seconds, TimeGate::TpotP95, 0.04),
    ];
    for (limit, gate, is) in limits {
        let mut policy = Policy::default();
        *limit(&mut policy) = Some(is);
        assert_eq!(not_carried(&load, &policy), None, "{gate:?}");
        *limit(&mut policy) = Some(0.9 * is);
        assert_eq!(not_carried(&load, &policy), Some(NotCarried::Limit(gate, 0.9 * is, Some(is))));
    }
}
