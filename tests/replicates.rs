//! `cargo bench --bench replicates` in short: does the 95 % interval of a throughput hold the truth, and does the search
//! end near the optimum? In virtual time and with fixed seeds, so that a busy machine changes nothing.

#[path = "common/virtual_server.rs"]
mod virtual_server;

#[path = "common/bed.rs"]
mod bed;

use bed::{Lengths, Noise, Swept};
use llm_concurrency::decide::Policy;
use llm_concurrency::load::closed_loop::LoopPlan;
use llm_concurrency::measure::plan::SAMPLES;
use llm_concurrency::measure::race::{Race, Rules, grid};
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

// ---- the race, in short ----

const STEADY: Noise = Noise::independent(0.0);
/// What the study of cost calls 5 %, AR(1) 100.
const NOISY: Noise = Noise::correlated(0.05, 100.0);

/// A server whose requests take all the same time at a level.
fn even(server: bed::Server) -> bed::Server {
    bed::Server { lengths: Lengths::Fixed { residual: 0.0 }, ..server }
}

fn auto(server: &bed::Server, noise: Noise, seed: u64) -> Swept {
    race(server, noise, grid(1, 512), Rules::auto(Policy::default()), seed)
}

fn race(server: &bed::Server, noise: Noise, choices: Vec<usize>, rules: Rules, seed: u64) -> Swept {
    bed::sweep(server, noise, Race::new(choices, rules), false, seed)
}

#[test]
fn a_race_finds_knees_with_few_requests() {
    for slots in [1, 3, 7, 20, 33, 100, 200] {
        let swept = auto(&even(bed::Server::knee("", slots)), STEADY, 1);
        let standing = swept.standing;
        let (pick, acceptable) = (standing.pick.expect("a pick") as f64, (0.95 * slots as f64).ceil());
        assert!(standing.decided && pick >= 0.92 * slots as f64, "{slots}: {standing:?}");
        assert!(pick <= (1.3 * acceptable).ceil(), "{slots}: {standing:?}");
        let [low, high] = standing.interval.map(|level| level as f64);
        assert!(low <= acceptable && acceptable <= high, "{slots}: {standing:?}");
        assert!(swept.requests <= 120 * slots.max(10), "{slots}: {}", swept.requests);
    }
}

/// Knees, walls, a plateau and a peak, in noise: METHOD's study in small.
#[test]
fn a_race_is_right_and_cheap_in_noise() {
    let servers = bed::servers();
    let mut requests: Vec<usize> = Vec::new();
    for (seed, server) in servers[..bed::SMALL].iter().enumerate() {
        let swept = auto(server, NOISY, seed as u64);
        let pick = swept.standing.pick.expect("a pick");
        let kept = server.rps(pick) / server.best(1..=512);
        assert!(kept >= 0.90 && server.error_rate(pick) < 0.05, "{}: {:?}", server.name, swept.standing);
        requests.push(swept.requests);
    }
    requests.sort_unstable();
    assert!(requests[bed::SMALL / 2] <= 2_000, "{requests:?}");
}

/// As a llama-server of four slots was measured: two at a time gain nothing, and the fourth gains more than the third. No
/// curve does that, and the longest search for one is no answer.
#[test]
fn a_server_off_every_curve_is_decided_by_its_own_visits() {
    let rps = |n: f64| match n {
        ..=2.0 => 1.0,
        ..=4.0 => 1.0 + 0.27 * (n - 2.0),
        _ => 1.54,
    };
    let server = bed::Server { lengths: Lengths::Fixed { residual: 0.1 }, ..bed::Server::curve("", rps) };
    let swept: Vec<Swept> = (0..20).map(|seed| auto(&server, NOISY, seed)).collect();
    for Swept { standing, .. } in &swept {
        assert!(standing.decided && matches!(standing.pick, Some(4 | 5)), "{standing:?}");
        let [low, high] = standing.interval;
        assert!(low <= 4 && 4 <= high, "{standing:?}");
    }
    let requests: usize = swept.iter().map(|swept| swept.requests).sum();
    assert!(requests <= 20 * 1_200, "{requests} requests in 20 sweeps");
}

/// On a list as sparse as this, the level below the pick is a fourth of it: only a visit there tells that it is no answer,
/// and nothing tells whether the engine was cold while it was measured.
#[test]
fn a_sparse_list_below_a_wall_is_decided() {
    let server = bed::Server { capacity: 5, ..even(bed::Server::knee("", 4)) };
    for each in [None, Some(40)] {
        let swept = race(&server, STEADY, vec![1, 4, 8], Rules::list(Policy::default(), each), 1);
        let standing = swept.standing;
        assert!(standing.decided && standing.pick == Some(4) && standing.warm_from_s == 0.0, "{each:?}: {standing:?}");
        assert!(swept.requests <= 600, "{each:?}: {} requests", swept.requests);
    }
}

#[test]
fn a_wall_is_found_and_never_picked() {
    for wall in [5, 24, 45] {
        let server = bed::Server { capacity: wall, ..even(bed::Server::knee("", 2_048)) };
        let standing = auto(&server, STEADY, 1).standing;
        let pick = standing.pick.expect("a pick");
        assert!(server.error_rate(pick) < 0.05 && pick as f64 >= 0.92 * wall as f64, "{wall}: {standing:?}");
    }
}

#[test]
fn limits_on_times_are_walls() {
    let server = even(bed::Server::curve("", |n| n / (1.0 + 0.05 * (n - 1.0))));
    let policy = |max_p95_seconds, max_p99_seconds| Policy { max_p95_seconds, max_p99_seconds, ..Policy::default() };
    // Without a limit 76 would be the best, and 30 is where a request takes 2.45 times as long as one alone.
    for policy in [policy(Some(2.46), None), policy(None, Some(2.46))] {
        let swept = race(&server, STEADY, grid(1, 512), Rules::auto(policy.clone()), 1);
        let pick = swept.standing.pick.expect("a pick");
        assert!((26..=30).contains(&pick) && swept.standing.decided, "{policy:?}: {:?}", swept.standing);
        let at_pick = swept.visits.iter().filter(|visit| visit.0 == pick).map(|visit| visit.1);
        assert!(at_pick.sum::<usize>() >= 90, "{:?}", swept.visits);
    }
}

#[test]
fn a_race_ends_where_nothing_passes_and_at_its_maximum() {
    let broken = bed::Server { errors: vec![1.0], ..bed::Server::knee("", 8) };
    let swept = auto(&broken, STEADY, 1);
    assert_eq!((swept.visits.len(), swept.standing.pick), (1, None));
    let swept = race(&even(bed::Server::knee("", 2_048)), STEADY, grid(1, 50), Rules::auto(Policy::default()), 1);
    assert_eq!(swept.standing.pick.map(|pick| pick >= 46), Some(true), "{:?}", swept.standing);
    assert!(swept.visits.iter().all(|visit| visit.0 <= 50));
}

#[test]
fn a_list_is_measured_in_full_and_nothing_else_is_picked() {
    let list = vec![1, 2, 5, 10, 15, 20, 25, 30, 40, 50];
    let server = even(bed::Server::knee("", 16));
    let of = |each| race(&server, STEADY, list.clone(), Rules::list(Policy::default(), each), 1);
    let full = of(Some(100));
    let wanted: Vec<(usize, usize)> = list.iter().map(|&level| (level, 100.max(10 * level))).collect();
    assert_eq!((&full.visits[..10], full.standing.pick), (&wanted[..], Some(20)), "15 has 0.94 of the best");
    assert!(full.visits.iter().all(|visit| list.contains(&visit.0)), "{:?}", full.visits);
    let quick = of(None);
    assert!(2 * quick.requests < full.requests, "{} and {}", quick.requests, full.requests);
    assert!(quick.standing.pick.is_some_and(|pick| [20, 25].contains(&pick)), "{:?}", quick.standing);
    assert!(quick.visits.iter().all(|visit| list.contains(&visit.0)));
}

#[test]
fn what_a_cold_engine_did_is_left_out() {
    let server = even(bed::Server::knee("", 20));
    let standing = auto(&server, Noise { cold: true, ..STEADY }, 1).standing;
    assert!(standing.pick.is_some_and(|pick| (19..=24).contains(&pick)), "{standing:?}");
    assert!((10.0..60.0).contains(&standing.warm_from_s), "{standing:?}");
    assert_eq!(auto(&server, STEADY, 1).standing.warm_from_s, 0.0);
}

#[test]
fn the_same_requests_give_the_same_visits() {
    let server = bed::Server::knee("", 20);
    let visits = || auto(&server, NOISY, 3).visits;
    assert_eq!(visits(), visits());
}

#[test]
fn levels_of_the_grid_hold_the_doublings() {
    let levels = grid(1, 512);
    assert!((0..10).all(|power| levels.contains(&(1 << power))), "{levels:?}");
    assert!(levels.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(grid(5, 5), [5]);
}
