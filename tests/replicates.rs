//! `cargo bench --bench replicates` in short: does the 95 % interval of a throughput hold the truth, and does the search
//! end near the optimum? In virtual time and with fixed seeds, so that a busy machine changes nothing.

#[path = "common/virtual_server.rs"]
mod virtual_server;

use llm_concurrency::load::closed_loop::LoopPlan;
use llm_concurrency::measure::plan::SAMPLES;
use virtual_server::{Busy, Server, measure, measure_with_barrier, pooled, virtual_time};

const REPLICATES: u64 = 60;

fn plan(level: usize) -> LoopPlan {
    LoopPlan::new(level, 100, 5, SAMPLES, level)
}

/// Of 60 intervals at 95 % fewer than 51 hold the truth once in a thousand such tests, if the method is right.
const FEWEST: usize = 51;

#[test]
fn the_interval_of_a_throughput_holds_the_truth() {
    let runtime = virtual_time();
    for level in [4, 10] {
        let server = Server::knee(8, 0.5);
        let truth = server.true_rps(level);
        let mut held = 0;
        let mut estimates = 0.0;
        for seed in 0..REPLICATES {
            let measured = measure(&runtime, &plan(level), Busy::new(&server, level, 1.0, seed));
            let found = pooled(&[measured]).throughput_rps.expect("a window of some length");
            held += usize::from(found.lower.is_some_and(|l| l <= truth) && found.upper.is_some_and(|u| truth <= u));
            estimates += found.estimate / REPLICATES as f64;
        }
        assert!((FEWEST..=REPLICATES as usize).contains(&held), "level {level}: {held} of {REPLICATES}");
        assert!((estimates / truth - 1.0).abs() < 0.03, "level {level}: {estimates} where the truth is {truth}");
    }
}

/// The same bounds catch a method that is broken: batches that wait for their own last request.
#[test]
fn a_barrier_misses_the_truth_by_far() {
    let runtime = virtual_time();
    let server = Server::knee(8, 0.5);
    let truth = server.true_rps(10);
    for seed in 0..REPLICATES {
        let batches = measure_with_barrier(&runtime, &plan(10), Busy::new(&server, 10, 1.0, seed));
        let seconds: f64 = batches.iter().map(|batch| batch.duration_s).sum();
        let succeeded: u64 = batches.iter().map(|batch| batch.succeeded).sum();
        let bias = succeeded as f64 / seconds / truth - 1.0;
        assert!(bias < -0.25, "{bias}");
    }
}

#[test]
fn equal_service_times_are_measured_as_they_are() {
    let runtime = virtual_time();
    for (level, slots) in [(1, 8), (8, 8), (10, 8), (20, 20), (50, 20)] {
        let server = Server::knee(slots, 0.0);
        let measured = measure(&runtime, &plan(level), Busy::new(&server, level, 1.0, 1));
        let rps = pooled(&[measured]).throughput_rps.expect("a window of some length").estimate;
        let error = rps / server.true_rps(level) - 1.0;
        assert!(error.abs() <= 0.005, "level {level} of {slots} slots: {error}");
    }
}
