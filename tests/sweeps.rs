//! Twelve sweeps in virtual time, with fixed seeds: the figures to the last digit, and each pick against the truth.

#[path = "common/virtual_server.rs"]
mod virtual_server;

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use llm_concurrency::client::outcome::{Failure, Reply};
use llm_concurrency::decide::{Policy, Status};
use llm_concurrency::load::closed_loop::{LoopPlan, Ticket};
use llm_concurrency::measure::plan::SAMPLES;
use llm_concurrency::measure::race::{Rules, grid};
use tokio::time::Instant;
use virtual_server::{Busy, Noise, Ran, Server, Shape, race, virtual_time};

struct Case {
    name: &'static str,
    shape: Shape,
    /// Share of its speed that the server loses in a hundred service times.
    slows_by: f64,
    /// Successes per second that a quota lets through.
    quota: Option<f64>,
}

fn peak(n: usize) -> f64 {
    let n = n as f64;
    n / (1.0 + 0.02 * (n - 1.0) + 0.002 * n * (n - 1.0))
}

fn plateau(n: usize) -> f64 {
    let n = n as f64;
    if n <= 8.0 { n } else { 8.0 + (1.0 - 8.0 / n) }
}

fn cases() -> [Case; 6] {
    let case = |name, shape| Case { name, shape, slows_by: 0.0, quota: None };
    let knee = Shape::Knee { slots: 20, queue: usize::MAX / 2 };
    [
        case("knee", knee),
        case("plateau", Shape::Curve(plateau)),
        case("refusals", Shape::Knee { slots: 20, queue: 10 }),
        case("peak", Shape::Curve(peak)),
        Case { quota: Some(12.0), ..case("quota", knee) },
        Case { slows_by: 0.03, ..case("drift", knee) },
    ]
}

impl Case {
    fn server(&self) -> Server {
        Server { shape: self.shape, sigma: 0.5 }
    }

    fn run(&self, full: &[LoopPlan], choices: &[usize], rules: Rules, seed: u64) -> Ran {
        let runtime = virtual_time();
        let noise = Noise { cv: 0.05, slows_by: self.slows_by, seed };
        let mut busy = runtime.block_on(async { Busy::changing(&self.server(), 1.0, noise) });
        let passed: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let quota = self.quota;
        let send = move |ticket: Ticket| {
            let (served, passed) = (busy.send(ticket.level), passed.clone());
            async move {
                if let Some(quota) = quota {
                    let now = Instant::now();
                    let mut passed = passed.lock().unwrap();
                    passed.retain(|&at| now - at < Duration::from_secs(1));
                    if passed.len() as f64 >= quota {
                        return Reply { status: Some(429), ..Reply::failed(Failure::RateLimited, "quota") };
                    }
                    passed.push(now);
                }
                served.await
            }
        };
        race(&runtime, full, choices, rules, send)
    }

    /// Whether a pick serves at least 0.92 of the best of these levels, and is at most this many times the smallest that
    /// serves 0.95.
    fn is_right(&self, pick: usize, choices: &[usize], above: f64) -> bool {
        let server = self.server();
        // More than five times the latency of level 1 fails the default gate.
        let fails = |level: usize| server.refuses(level) || level as f64 > 5.0 * server.true_rps(level);
        let serving: Vec<usize> = choices.iter().copied().filter(|&level| !fails(level)).collect();
        let share = |level: usize| server.true_rps(level) / server.best_rps(&serving);
        let smallest = serving.iter().copied().find(|&level| share(level) >= 0.95).unwrap();
        !fails(pick) && share(pick) >= 0.92 && pick as f64 <= above * smallest as f64
    }
}

fn shown(ran: &Ran) -> String {
    let mut text = String::new();
    for summary in ran.summaries() {
        let rps = summary.throughput_rps.unwrap();
        let latency = summary.latency_s.unwrap_or_default();
        writeln!(
            text,
            "{:>4}: n {:?}, {:?} [{:?}, {:?}] requests/s, P95 {:?}, mean {:?}, errors {:?}, in flight {:?}",
            summary.concurrency,
            summary.requests,
            rps.estimate,
            rps.lower,
            rps.upper,
            latency.p95,
            latency.mean,
            summary.error_rate,
            summary.mean_in_flight
        )
        .unwrap();
    }
    let decided = ran.decided();
    let verdicts: Vec<_> = decided.levels.iter().map(|level| format!("{:?}", level.verdict)).collect();
    writeln!(
        text,
        "{} measurements, {} requests; pick {:?}, interval {:?}, status {}, provisional {}, {}",
        ran.made.len(),
        ran.sent(),
        decided.recommended_concurrency,
        decided.interval,
        decided.status,
        decided.provisional,
        verdicts.join(" ")
    )
    .unwrap();
    text
}

#[test]
fn twelve_sweeps_come_out_as_they_did_and_no_pick_is_wrong() {
    const LIST: [usize; 10] = [1, 2, 5, 10, 15, 20, 25, 30, 40, 50];
    let mut text = String::new();
    for (at, case) in cases().iter().enumerate() {
        let seed = 1000 + at as u64;
        let full = LIST.map(|level| LoopPlan::new(level, 100, 5, SAMPLES, level));
        let listed = case.run(&full, &LIST, Rules::list(Policy::default(), Some(100)), seed);
        let auto = case.run(&[], &grid(1, 256), Rules::auto(Policy::default()), seed);
        let all: Vec<usize> = (1..=256).collect();
        for (how, ran, choices, above) in [("list", listed, &LIST[..], 1.35), ("auto", auto, &all, 1.3)] {
            let decided = ran.decided();
            if case.quota.is_some() {
                assert_eq!(decided.status, Status::RateLimited, "{}, {how}", case.name);
            } else if let Some(pick) = decided.recommended_concurrency {
                assert!(case.is_right(pick, choices, above), "{}, {how}: {pick}", case.name);
            } else {
                // Its levels differ by less than these requests, of which no lengths are known, can tell in noise.
                assert_eq!((case.name, decided.status), ("plateau", Status::Unresolved), "{how}");
            }
            writeln!(text, "{}, {how}\n{}", case.name, shown(&ran)).unwrap();
        }
    }
    insta::assert_snapshot!("twelve_sweeps", text);
}
