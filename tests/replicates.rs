//! `cargo bench --bench replicates` in short: does the 95 % interval of a throughput hold the truth, and does the search
//! end near the optimum? In virtual time and with fixed seeds, so that a busy machine changes nothing.

#[path = "common/virtual_server.rs"]
mod virtual_server;

#[path = "common/bed.rs"]
mod bed;

use llm_concurrency::load::closed_loop::LoopPlan;
use llm_concurrency::measure::plan::SAMPLES;
use virtual_server::{Busy, Server, Shape, measure, measure_with_barrier, pooled, virtual_time};

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

/// The bed of the study counts events instead of running a loop: it must come to what the real loop comes to.
#[test]
fn the_study_measures_what_the_real_loop_measures() {
    let runtime = virtual_time();
    let knee = |slots, queue, sigma| Server { shape: Shape::Knee { slots, queue }, sigma };
    let bent = |n: usize| n as f64 / (1.0 + 0.05 * (n as f64 - 1.0));
    let cases = [
        (knee(8, 1_000, 0.5), bed::Server::knee("", 8), vec![1, 6, 8, 12, 20]),
        (knee(8, 4, 0.2), bed::Server { capacity: 12, ..bed::Server::knee("", 8) }, vec![10, 12, 14, 20]),
        (Server { shape: Shape::Curve(bent), sigma: 0.3 }, bed::Server::curve("", |n| bent(n as usize)), vec![4, 16]),
    ];
    for (server, twin, levels) in cases {
        let twin = bed::Server { lengths: bed::Lengths::Unreported { sigma: server.sigma }, ..twin };
        for level in levels {
            let plan = plan(level);
            let (mut rps, mut sent, mut failed) = ([0.0; 2], [0.0; 2], [0.0; 2]);
            for seed in 0..REPLICATES {
                let real = measure(&runtime, &plan, Busy::new(&server, level, 1.0, seed));
                let summary = pooled(std::slice::from_ref(&real));
                rps[0] += summary.throughput_rps.expect("a window of some length").estimate;
                sent[0] += real.sent as f64;
                failed[0] += summary.error_rate.unwrap_or_default();
                let mut run = bed::Run::new(&twin, bed::Noise::independent(0.0), seed);
                let made = run.measurement(level, plan.warmup, plan.window(0), plan.samples);
                let window = [made.ends[0].0, made.ends[plan.samples].0];
                let served = run.requests.iter().filter(|request| !request.refused);
                rps[1] += served.map(|request| request.share(window)).sum::<f64>() / (window[1] - window[0]);
                sent[1] += run.requests.len() as f64;
                let cohort = &run.requests[made.cohort..made.after];
                failed[1] += cohort.iter().filter(|request| request.refused).count() as f64 / cohort.len() as f64;
            }
            let n = REPLICATES as f64;
            let apart = |[real, twin]: [f64; 2]| (twin / real - 1.0).abs();
            assert!(apart(rps) < 0.03, "level {level}: {rps:?} requests/s");
            assert!(apart(sent) < 0.02, "level {level}: {sent:?} requests");
            assert!((failed[0] - failed[1]).abs() / n < 0.02, "level {level}: {failed:?} failed");
        }
    }
}

#[test]
fn the_speed_of_the_bed_is_a_process_in_time() {
    let server = bed::Server::knee("", 8);
    let seconds = |noise, requests: usize| {
        let mut run = bed::Run::new(&server, noise, 1);
        run.measurement(4, 4, requests / 10, 10);
        run.now_s
    };
    let steady = seconds(bed::Noise::independent(0.0), 50);
    let cold = seconds(bed::Noise { cold: true, ..bed::Noise::independent(0.0) }, 50);
    assert!((cold / steady * 0.7 - 1.0).abs() < 0.05, "{cold} and {steady}");
    // Somewhere in the first 210 service times a third is gone for 20 to 60 of them.
    let long = seconds(bed::Noise::independent(0.0), 1_000);
    let shared = seconds(bed::Noise { neighbour: true, ..bed::Noise::independent(0.0) }, 1_000);
    assert!((6.0..=21.0).contains(&(shared - long)), "{shared} and {long}");
}
