//! The truth bench in short: a real server, the real client, and a curve that is known.
//!
//! The tight bound on both sides is held in virtual time, where there is no noise (`tests/virtual_time.rs`), and in
//! real time by `cargo bench --bench truth` on an idle machine. A machine that is busy can only slow a measurement
//! down: the server's steps have absolute deadlines, so nothing makes it faster than explained. So here the upper bound
//! is tight; the lower one allows for late wake-ups, which cost a request one step of six, and not for a fault in the
//! method: a barrier between batches costs 30 % and more.

mod common;

use std::collections::BTreeSet;

use common::{Measured, Rig, plan};
use llm_concurrency::client::outcome::Phase;
use llm_concurrency::client::{Cache, RequestSettings};
use llm_concurrency::decide::{Policy, Status, recommend};
use llm_concurrency::simulator::{OutputTokens, RequestEnd, SimulatorConfig, explain};

const SLOTS: usize = 8;
const LEVELS: [usize; 3] = [4, 8, 16];
const RUNS: usize = 3;
const REQUESTS: usize = 100;
const ABOVE: f64 = 0.02;
const BELOW: f64 = 0.15;

fn config() -> SimulatorConfig {
    SimulatorConfig {
        slots: SLOTS,
        queue_limit: 100,
        // Long against what a busy machine adds to a step.
        base_step_ms: 8.0,
        per_sequence_ms: 4.0,
        prefill_ms_per_token: 0.0,
        output_tokens: OutputTokens::Fixed { tokens: 6 },
        ..SimulatorConfig::default()
    }
}

#[test]
fn levels_around_the_slots_are_measured_as_they_are_and_the_best_is_recommended() {
    let prompts = common::prompts(100);
    let texts: Vec<String> = prompts.iter().map(|prompt| prompt.text.clone()).collect();
    let request = RequestSettings::default();
    let truth = explain(&config(), &LEVELS, &texts, request.max_tokens, 20_000).unwrap();
    let rig = Rig::start(config(), &prompts, &request);
    let mut runs: Vec<Vec<Measured>> = LEVELS.map(|_| Vec::new()).into();
    let mut sent = 0;
    for (at, level) in (0..RUNS).flat_map(|_| LEVELS.iter().copied().enumerate()) {
        let measured = rig.measure(&plan(level, REQUESTS));
        assert_accounts(level, &measured);
        sent += measured.outcomes.len();
        runs[at].push(measured);
    }
    // Of each level the run in the middle: what a busy machine does to one of them decides nothing.
    let middle = |mut runs: Vec<Measured>| {
        runs.sort_by(|a, b| a.rps().total_cmp(&b.rps()));
        runs.swap_remove(RUNS / 2)
    };
    let runs: Vec<Measured> = runs.into_iter().map(middle).collect();
    for (level, measured) in truth.levels.iter().zip(&runs) {
        let error = measured.rps() / level.throughput_rps - 1.0;
        assert!((-BELOW..=ABOVE).contains(&error), "level {}: {:+.1} %", level.level, 100.0 * error);
    }
    let summaries: Vec<_> = runs.into_iter().map(|measured| measured.summary).collect();
    let decided = recommend(&summaries, &Policy::default());
    assert_eq!(decided.recommended_concurrency, truth.optimum(), "{:?}", decided.reason);
    assert_eq!((decided.status, decided.provisional), (Status::Ok, false));
    let log = rig.simulator.log();
    assert_eq!(log.len(), sent);
    assert!(log.iter().all(|record| record.outcome == RequestEnd::Completed));
    assert_eq!(rig.simulator.peak_in_flight(), *LEVELS.last().unwrap(), "the level is reached and never passed");
}

fn assert_accounts(level: usize, measured: &Measured) {
    let plan = plan(level, REQUESTS);
    let Measured { record, outcomes, summary } = measured;
    assert_eq!(record.early_end, None);
    assert!(record.sent <= plan.tickets());
    assert_eq!(outcomes.len() as u64, record.sent);
    let seqs: BTreeSet<u64> = outcomes.iter().map(|outcome| outcome.seq).collect();
    assert_eq!(seqs.len(), outcomes.len(), "no sequence number comes twice");
    assert!(outcomes.iter().all(|outcome| outcome.is_success()));
    let cohort = outcomes.iter().filter(|outcome| outcome.phase == Phase::Measured).count() as u64;
    assert!(cohort >= plan.measured as u64);
    assert_eq!((summary.requests, summary.succeeded), (Some(cohort), Some(cohort)));
    for (at, window) in record.windows.iter().enumerate() {
        assert_eq!(window.completed, window.succeeded);
        // The last one waits until the cohort is whole; completions at the very end of the warm-up may make it short.
        let is_last = at + 1 == record.windows.len();
        assert!(window.completed == plan.window(0) || is_last && window.completed > plan.window(0), "{at}: {window:?}");
    }
    // Fewer in flight would be another level than the one that is reported.
    assert!(summary.mean_in_flight.unwrap() > 0.9 * level as f64, "{:?}", summary.mean_in_flight);
    assert!(summary.mean_in_flight.unwrap() < level as f64 + 1e-6, "{:?}", summary.mean_in_flight);
}

/// What the server took from its prefix cache is what it says it took: nothing where prompts are unique.
#[test]
fn unique_prompts_keep_the_prefix_cache_out_of_the_measurement() {
    let prompts = common::prompts(1_000);
    let cached_by_level = |cache| {
        let config = SimulatorConfig { prefix_cache: true, ..config() };
        let rig = Rig::start(config, &prompts, &RequestSettings { cache: Some(cache), ..RequestSettings::default() });
        let cached = [4, 8].map(|level| {
            let outcomes = rig.measure(&plan(level, REQUESTS)).outcomes;
            outcomes.iter().map(|outcome| outcome.cached_tokens.expect("the server says it")).sum::<u32>()
        });
        let of_server: u32 = rig.simulator.log().iter().map(|record| record.cached_tokens).sum();
        assert_eq!(cached.iter().sum::<u32>(), of_server);
        cached
    };
    assert_eq!(cached_by_level(Cache::Fresh), [0, 0]);
    // The second level meets all the prompts of the first once more.
    let [first, second] = cached_by_level(Cache::Reuse);
    assert!(second > first, "{first} {second}");
}
