//! Does the answer hold up? Checked in virtual time, against servers whose throughput is known.
//!
//! `cargo bench --bench replicates` studies the throughput of one level: its bias, and the coverage of its
//! interval. `-- cost` shows how often a whole run is right and what that costs (see `-- --help`). `-- regression`
//! compares pairs of runs, as `--fail-on-regression` does. All of it measures with the closed loop of the
//! real sweep under a clock that jumps from timer to timer, or counts events, so a busy machine only makes it
//! slower. It prints the tables of METHOD.md, and exits with code 1 if a bar is missed.

#[path = "../tests/common/virtual_server.rs"]
mod virtual_server;

#[path = "../tests/common/bed.rs"]
mod bed;
#[path = "replicates/cost.rs"]
mod cost;

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use llm_concurrency::decide::compare::{Baseline, Comparison, compare};
use llm_concurrency::decide::{Policy, Recommendation};
use llm_concurrency::figures::{Sample, quantile};
use llm_concurrency::load::closed_loop::LoopPlan;
use llm_concurrency::measure::plan::SAMPLES;
use llm_concurrency::measure::race::Rules;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Runtime;
use virtual_server::{
    Busy, Noise, Server, Shape, measure, measure_by, measure_with_barrier, pooled, race, virtual_time,
};

/// The defaults of `benchmark.total_requests` and `warmup_requests`.
const TOTAL: usize = 100;
const WARMUP: usize = 5;
/// The default levels.
const LEVELS: [usize; 10] = [1, 2, 5, 10, 15, 20, 25, 30, 40, 50];
/// Upper end of the adaptive search. It lies far above the knees, since users do not know theirs beforehand.
const HIGHEST: usize = 512;
/// A level is acceptable with this share of the best true throughput: the rule itself tolerates the rest.
const ACCEPTABLE: f64 = 0.95;
/// A pick is good with this share of the best true throughput.
const GOOD: f64 = 0.92;

// ---- the bars ----

/// Share of the sweeps that must end in a good pick, at least.
const GOOD_PICKS: f64 = 0.99;
/// Upper limit on the mean of pick / smallest acceptable level, on servers with a knee.
const LARGEST_RATIO: f64 = 1.2;
/// Permitted coverage of the 95 % interval of a throughput.
const COVERAGE: (f64, f64) = (0.90, 0.99);
/// Largest error of a throughput if all service times are equal.
const EXACT: f64 = 0.005;
/// Measurements per line of the coverage table.
const REPLICATES: usize = 600;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if !args.iter().any(|arg| arg == "--bench") {
        println!("replicates: takes minutes, so it runs only by `cargo bench --bench replicates`");
        return ExitCode::SUCCESS;
    }
    if args.iter().any(|arg| arg == "--help") {
        println!("cargo bench --bench replicates -- | regression [SEED] | cost ...\n\n{}", cost::HELP);
        return ExitCode::SUCCESS;
    }
    let is_value = |at: usize| at > 0 && ["--seed", "--servers", "--noise"].contains(&args[at - 1].as_str());
    let words = args.iter().enumerate().filter(|&(at, arg)| !arg.starts_with("--") && !is_value(at));
    let words: Vec<&str> = words.map(|(_, arg)| arg.as_str()).collect();
    let number = |word: &str| word.parse::<usize>().ok().filter(|&n| n > 0);
    let began = Instant::now();
    let mut bars = Bars::default();
    match words.as_slice() {
        [] => study_intervals(&mut bars),
        ["cost", rest @ ..] => {
            let sweeps = rest.first().and_then(|word| number(word)).unwrap_or(4);
            if let Err(error) = study_cost(&args, sweeps, &mut bars) {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        }
        ["regression"] => study_regressions(PAIRS, FIRST_SEED, &mut bars),
        // Lets you choose seeds that were never used while the rules were developed.
        ["regression", seed] if number(seed).is_some() => {
            study_regressions(PAIRS, number(seed).unwrap_or_default() as u64, &mut bars);
        }
        _ => {
            eprintln!("expected nothing, `-- cost ...`, or `-- regression` and maybe a first seed, and not {words:?}");
            return ExitCode::FAILURE;
        }
    }
    eprintln!("{:.0} s", began.elapsed().as_secs_f64());
    bars.verdict()
}

/// Takes servers and noise from the files of `--servers` and `--noise`, else the study's; seeds start at `--seed`.
fn study_cost(args: &[String], sweeps: usize, bars: &mut Bars) -> Result<(), String> {
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    let seed = value("--seed").map(|seed| seed.parse().map_err(|_| format!("--seed {seed}: not a number")));
    let file = |name: &str| value(name).map(Path::new);
    cost::study(sweeps, seed.transpose()?, file("--servers"), file("--noise"), bars)
}

/// The requirements, and whether each is met.
#[derive(Default)]
struct Bars {
    lines: Vec<String>,
    missed: usize,
}

impl Bars {
    fn check(&mut self, holds: bool, bar: &str, got: String) {
        self.missed += usize::from(!holds);
        self.lines.push(format!("| {bar} | {got} | {} |", if holds { "kept" } else { "**missed**" }));
    }

    fn verdict(self) -> ExitCode {
        println!("### What was asked for\n\n| bar | measured | |\n|---|---|---|\n{}\n", self.lines.join("\n"));
        if self.missed > 0 {
            println!("Bars missed: {}.", self.missed);
            return ExitCode::FAILURE;
        }
        println!("All bars kept.");
        ExitCode::SUCCESS
    }
}

/// Runs all jobs, numbered from 0, on as many threads as there are processors.
fn in_parallel<T: Send>(jobs: usize, work: impl Fn(&Runtime, usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let runtime = virtual_time();
        let jobs = std::iter::from_fn(|| Some(next.fetch_add(1, Relaxed)).filter(|&job| job < jobs));
        jobs.map(|job| (job, work(&runtime, job))).collect::<Vec<_>>()
    };
    let threads = thread::available_parallelism().map_or(1, |n| n.get());
    let mut done: Vec<(usize, T)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no worker panics")).collect()
    });
    done.sort_unstable_by_key(|(job, _)| *job);
    done.into_iter().map(|(_, result)| result).collect()
}

fn full_plan(level: usize, total: usize) -> LoopPlan {
    LoopPlan::new(level, total, WARMUP, SAMPLES, level)
}

struct Scenario {
    name: &'static str,
    server: Server,
    levels: &'static [usize],
}

fn scenarios() -> Vec<Scenario> {
    let knee = |name, slots, sigma| Scenario { name, server: Server::knee(slots, sigma), levels: &LEVELS };
    let curve = |name, throughput, levels| Scenario {
        name,
        server: Server { shape: Shape::Curve(throughput), sigma: 0.5 },
        levels,
    };
    vec![
        knee("knee at 8", 8, 0.5),
        knee("knee at 20", 20, 0.5),
        knee("knee at 20, sigma 0.1", 20, 0.1),
        knee("knee at 32", 32, 0.5),
        Scenario {
            name: "refuses above 30",
            server: Server { shape: Shape::Knee { slots: 20, queue: 10 }, sigma: 0.5 },
            levels: &LEVELS,
        },
        curve("peak at 22, then decline", |n| usl(n as f64, 0.02, 0.002), &LEVELS),
        curve("plateau from 16", plateau, &[1, 2, 4, 8, 16, 32, 64, 128]),
    ]
}

/// The Universal Scalability Law, with a throughput of 1 at level 1.
fn usl(n: f64, sigma: f64, kappa: f64) -> f64 {
    n / (1.0 + sigma * (n - 1.0) + kappa * n * (n - 1.0))
}

/// Level 8 reaches 90 % of the best throughput and 16 reaches 99.8 %; from 32 on it stays the same.
fn plateau(level: usize) -> f64 {
    let n = level as f64;
    let share = match level {
        0..=8 => 0.9 * n / 8.0,
        9..=16 => 0.9 + 0.098 * (n - 8.0) / 8.0,
        17..=32 => 0.998 + 0.002 * (n - 16.0) / 16.0,
        _ => 1.0,
    };
    share * 8.0 / 0.9
}

fn percent(rate: f64) -> String {
    format!("{:.1} %", 100.0 * rate)
}

// ---- regressions ----

/// Pairs of sweeps per noise level and fall.
const PAIRS: usize = 500;
const FIRST_SEED: u64 = 1_000_000;
const THRESHOLD: f64 = 0.10;
/// Coefficients of variation of the speed between measurements.
const PAIR_NOISE: [f64; 3] = [0.03, 0.05, 0.08];
/// How much slower the second server of a pair is, as a share.
const FALLS: [f64; 3] = [0.0, 0.2, 0.3];
/// Largest share of equal pairs that may be called a regression.
const FALSE_ALARMS: f64 = 0.01;
/// Noise, fall, and the smallest share of pairs in which it must be found.
const FOUND: [(f64, f64, f64); 2] = [(0.05, 0.2, 0.95), (0.05, 0.3, 0.99)];

/// Comparison of a pair of sweeps: as `recommend --baseline` sees it from disk, and as `run
/// --baseline` does, which may measure again.
struct Pair {
    one_look: Comparison,
    two_looks: Comparison,
    again: u64,
}

/// A run against the server, compared with one run per fall.
fn pairs(runtime: &Runtime, scenario: &Scenario, cv: f64, seed: u64) -> [Pair; FALLS.len()] {
    let policy = Policy::default();
    let full = |level| LoopPlan::new(level, TOTAL, WARMUP, SAMPLES, level);
    let plans: Vec<LoopPlan> = scenario.levels.iter().map(|&level| full(level)).collect();
    let at_speed = |speed: f64, seed: u64| {
        let noise = Noise { cv, seed, ..Noise::default() };
        let mut busy = runtime.block_on(async { Busy::changing(&scenario.server, speed, noise) });
        let rules = Rules::list(policy.clone(), Some(TOTAL));
        let ran = race(runtime, &plans, scenario.levels, rules, |ticket| busy.send(ticket.level));
        (ran, busy)
    };
    let before = at_speed(1.0, seed).0.decided();
    let mut fall = 0;
    FALLS.map(|share| {
        fall += 1;
        let (mut ran, mut busy) = at_speed(1.0 - share, seed + fall * SEEDS_APART);
        let against = |now: &Recommendation| compare(&before, now, policy.objective, Some(THRESHOLD));
        let (decided, so_far) = (ran.decided(), ran.sent());
        let baseline = Baseline { title: String::new(), decided: before.clone(), threshold: Some(THRESHOLD) };
        for level in baseline.suspects(&decided, policy.objective) {
            ran.made.push(measure_by(runtime, &full(level), |ticket| busy.send(ticket.level)));
        }
        Pair { one_look: against(&decided), two_looks: against(&ran.decided()), again: ran.sent() - so_far }
    })
}

/// More than the number of jobs, so that no two sweeps share a seed.
const SEEDS_APART: u64 = 10_000_000;

fn study_regressions(count: usize, first_seed: u64, bars: &mut Bars) {
    let scenarios = scenarios();
    let results = in_parallel(PAIR_NOISE.len() * count, |runtime, job| {
        let (noise, pair) = (job / count, job % count);
        pairs(runtime, &scenarios[pair % scenarios.len()], PAIR_NOISE[noise], first_seed + job as u64)
    });
    println!("### Regressions\n");
    println!(
        "{count} pairs of sweeps a line, over all servers ({}), with `--fail-on-regression {:.0}`:\n",
        scenarios.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", "),
        100.0 * THRESHOLD
    );
    println!(
        "| noise CV | real fall | regression | cannot tell | at one look: regression | cannot tell | measured again | requests for it |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (noise, cv) in PAIR_NOISE.into_iter().enumerate() {
        for (fall, share) in FALLS.into_iter().enumerate() {
            let pairs: Vec<&Pair> =
                results[noise * count..(noise + 1) * count].iter().map(|falls| &falls[fall]).collect();
            let rate = |of: &dyn Fn(&Pair) -> bool| pairs.iter().filter(|pair| of(pair)).count() as f64 / count as f64;
            let regressed = |found: &Comparison| !found.regressions.is_empty();
            let doubtful = |found: &Comparison| !regressed(found) && !found.doubts.is_empty();
            let found = rate(&|pair| regressed(&pair.two_looks));
            let again: u64 = pairs.iter().map(|pair| pair.again).sum();
            println!(
                "| {:.0} % | {:.0} % | {} | {} | {} | {} | {} | {:.0} |",
                100.0 * cv,
                100.0 * share,
                percent(found),
                percent(rate(&|pair| doubtful(&pair.two_looks))),
                percent(rate(&|pair| regressed(&pair.one_look))),
                percent(rate(&|pair| doubtful(&pair.one_look))),
                percent(rate(&|pair| pair.again > 0)),
                again as f64 / count as f64,
            );
            if share == 0.0 {
                let bar =
                    format!("equal servers, noise {:.0} %: at most 1 % of pairs are called a regression", 100.0 * cv);
                bars.check(found <= FALSE_ALARMS, &bar, percent(found));
            }
            for (_, _, least) in FOUND.into_iter().filter(|&(noise, fall, _)| (noise, fall) == (cv, share)) {
                let bar = format!(
                    "a fall of {:.0} % at a noise of {:.0} % is found in {:.0} % of pairs",
                    100.0 * share,
                    100.0 * cv,
                    100.0 * least
                );
                bars.check(found >= least, &bar, percent(found));
            }
        }
    }
    println!();
}

// ---- intervals of a throughput ----

/// Methods for a 95 % interval of the throughput of one level.
const INTERVALS: [&str; 4] =
    ["ours: t on blocks of the cohort", "t on windows", "bootstrap of windows", "barrier, bootstrap of batches"];

/// Pairs of level and slots: one request alone, all slots busy, a few requests queued, and a larger server.
const PLACES: [(usize, usize); 4] = [(1, 8), (8, 8), (10, 8), (20, 20)];

fn study_intervals(bars: &mut Bars) {
    println!("### The throughput of one level\n");
    println!(
        "{REPLICATES} measurements a line. The last four columns: share of the 95 % intervals that hold the truth.\n"
    );
    let columns = INTERVALS.join(" | ");
    println!("| sigma | requests | level | slots | bias | bias with a barrier | half-width | {columns} |");
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for (sigma, total) in [(0.25, 100), (0.5, 100), (1.0, 1_000)] {
        for (level, slots) in PLACES {
            study_interval(bars, sigma, &full_plan(level, total), slots);
        }
    }
    println!("\nThe error where service times are equal, with {TOTAL} requests or 10 x the level:\n");
    println!("| level | slots | by share of life | by counting completions | with a barrier |\n|---|---|---|---|---|");
    for (level, slots) in PLACES {
        let found = Found::new(&virtual_time(), &Server::knee(slots, 0.0), &full_plan(level, TOTAL), 0);
        let truth = Server::knee(slots, 0.0).true_rps(level);
        let [ours, counted, barrier] =
            [found.rps, found.counted_rps, found.barrier_rps].map(|rps| signed_percent(rps / truth - 1.0));
        println!("| {level} | {slots} | {ours} | {counted} | {barrier} |");
        bars.check(
            (found.rps / truth - 1.0).abs() <= EXACT,
            &format!("sigma 0, level {level} of {slots} slots: an error of at most 0.5 %"),
            ours,
        );
    }
    println!();
}

fn study_interval(bars: &mut Bars, sigma: f64, plan: &LoopPlan, slots: usize) {
    let (level, requests) = (plan.level, plan.measured);
    let server = Server::knee(slots, sigma);
    let truth = server.true_rps(level);
    let all = in_parallel(REPLICATES, |runtime, job| Found::new(runtime, &server, plan, job as u64));
    let mean = |of: &dyn Fn(&Found) -> f64| all.iter().map(of).sum::<f64>() / REPLICATES as f64;
    let bias = |of: &dyn Fn(&Found) -> f64| signed_percent(mean(of) / truth - 1.0);
    let held: Vec<f64> = (0..INTERVALS.len())
        .map(|at| {
            mean(&|found| f64::from(found.intervals[at].is_some_and(|[low, high]| low <= truth && truth <= high)))
        })
        .collect();
    println!(
        "| {sigma} | {requests} | {level} | {slots} | {} | {} | {} | {} |",
        bias(&|found| found.rps),
        bias(&|found| found.barrier_rps),
        percent(mean(&|found| found.intervals[0].map_or(0.0, |[low, high]| (high - low) / 2.0)) / truth),
        held.iter().map(|&held| percent(held)).collect::<Vec<_>>().join(" | ")
    );
    bars.check(
        (COVERAGE.0..=COVERAGE.1).contains(&held[0]),
        &format!(
            "sigma {sigma}, {requests} requests, level {level} of {slots} slots: 90 to 99 % of the intervals hold it"
        ),
        percent(held[0]),
    );
}

fn signed_percent(rate: f64) -> String {
    format!("{:+.1} %", 100.0 * rate)
}

/// The throughput of one level and its interval, by several methods.
struct Found {
    rps: f64,
    counted_rps: f64,
    barrier_rps: f64,
    intervals: [Option<[f64; 2]>; 4],
}

impl Found {
    fn new(runtime: &Runtime, server: &Server, plan: &LoopPlan, seed: u64) -> Self {
        let measured = measure(runtime, plan, Busy::new(server, plan.level, 1.0, seed));
        let batches = measure_with_barrier(runtime, plan, Busy::new(server, plan.level, 1.0, seed));
        let windows = &measured.measurement.samples;
        let ours = pooled(std::slice::from_ref(&measured)).throughput_rps.expect("a window of some length");
        let mut rng = StdRng::seed_from_u64(seed);
        Found {
            rps: ours.estimate,
            counted_rps: counted(windows),
            barrier_rps: counted(&batches),
            intervals: [
                ours.lower.zip(ours.upper).map(|(lower, upper)| [lower, upper]),
                Some(t_of_windows(windows)),
                Some(bootstrap(windows, &mut rng)),
                Some(bootstrap(&batches, &mut rng)),
            ],
        }
    }
}

/// Successes per second.
fn counted(samples: &[Sample]) -> f64 {
    let succeeded: u64 = samples.iter().map(|sample| sample.succeeded).sum();
    succeeded as f64 / samples.iter().map(|sample| sample.duration_s).sum::<f64>()
}

/// Student's t on the rates of the ten windows.
fn t_of_windows(windows: &[Sample]) -> [f64; 2] {
    /// The 97.5 % quantile at 9 degrees of freedom.
    const T: f64 = 2.262_157_162_8;
    assert_eq!(windows.len(), 10);
    let rates: Vec<f64> = windows.iter().map(|window| window.succeeded as f64 / window.duration_s).collect();
    let mean = rates.iter().sum::<f64>() / 10.0;
    let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / 9.0;
    let half = T * (variance / 10.0).sqrt();
    [mean - half, mean + half]
}

/// Criterion's method: percentiles of the mean time per success, over resampled samples.
fn bootstrap(samples: &[Sample], rng: &mut StdRng) -> [f64; 2] {
    const DRAWS: usize = 1_000;
    let times: Vec<f64> = samples.iter().map(|sample| sample.duration_s / sample.succeeded as f64).collect();
    let n = times.len();
    let mut means: Vec<f64> =
        (0..DRAWS).map(|_| (0..n).map(|_| times[rng.random_range(0..n)]).sum::<f64>() / n as f64).collect();
    means.sort_unstable_by(f64::total_cmp);
    let at = |p| quantile(DRAWS as u64, p, |rank| means[rank as usize]).expect("there are draws");
    [1.0 / at(0.975), 1.0 / at(0.025)]
}
