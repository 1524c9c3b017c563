//! Twelve sweeps in virtual time, with fixed seeds: the figures to the last digit, the pick and the status.

#[path = "common/search.rs"]
mod search;
#[path = "common/virtual_server.rs"]
mod virtual_server;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use llm_concurrency::client::outcome::{Failure, Reply};
use llm_concurrency::decide::{Policy, recommend};
use llm_concurrency::figures::LevelSummary;
use llm_concurrency::load::closed_loop::LoopPlan;
use llm_concurrency::measure::plan::SAMPLES;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use search::Search;
use tokio::time::Instant;
use virtual_server::{Busy, Measured, Server, Shape, measure_by, pooled, standard_normal, virtual_time};

struct Case {
    name: &'static str,
    shape: Shape,
    /// Share of its speed that the server loses from one measurement to the next.
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

fn sweep(case: &Case, mut search: Search, seed: u64) -> String {
    let runtime = virtual_time();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut measured: BTreeMap<usize, Vec<Measured>> = BTreeMap::new();
    let mut summaries: BTreeMap<usize, LevelSummary> = BTreeMap::new();
    let (mut text, mut sent, mut count) = (String::new(), 0, 0);
    while let Some(step) = search.next(&summaries.values().cloned().collect::<Vec<_>>()) {
        let drift = (1.0 - case.slows_by).powi(count);
        count += 1;
        let speed = drift * (0.05 * standard_normal(&mut rng)).exp();
        let server = Server { shape: case.shape, sigma: 0.5 };
        let mut busy = Busy::new(&server, step.level, speed, rng.random());
        let passed: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let quota = case.quota;
        let send = move |_| {
            let (served, passed) = (busy.send(), passed.clone());
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
        let plan = LoopPlan::new(step.level, 100, 5, SAMPLES, search.smallest_window(step.level));
        let of_level = measured.entry(step.level).or_default();
        of_level.push(measure_by(&runtime, &plan, send));
        sent += of_level.last().unwrap().sent;
        summaries.insert(step.level, pooled(of_level));
    }
    for summary in summaries.values() {
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
    let decided = recommend(&summaries.into_values().collect::<Vec<_>>(), &Policy::default());
    let verdicts: Vec<_> = decided.levels.iter().map(|level| format!("{:?}", level.verdict)).collect();
    writeln!(
        text,
        "{count} measurements, {sent} requests; pick {:?}, interval {:?}, status {}, provisional {}, {}",
        decided.recommended_concurrency,
        decided.interval,
        decided.status.name(),
        decided.provisional,
        verdicts.join(" ")
    )
    .unwrap();
    text
}

#[test]
fn twelve_sweeps_come_out_as_they_did() {
    let mut text = String::new();
    for (at, case) in cases().iter().enumerate() {
        let policy = Policy::default();
        let list = Search::listed(&[1, 2, 5, 10, 15, 20, 25, 30, 40, 50], &policy, true);
        for (how, search) in [("list", list), ("auto", Search::adaptive(1, 256, &policy))] {
            writeln!(text, "{}, {how}\n{}", case.name, sweep(case, search, 1000 + at as u64)).unwrap();
        }
    }
    insta::assert_snapshot!("twelve_sweeps", text);
}
