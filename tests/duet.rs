//! Two servers measured in turns (`run --against`).

#![cfg(all(unix, feature = "suite"))]

#[path = "common/known.rs"]
mod known;
mod servers;
#[path = "common/virtual_server.rs"]
mod virtual_server;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use llm_concurrency::decide::compare::Comparison;
use llm_concurrency::decide::duet::{Pair, side_by_side};
use llm_concurrency::decide::{Objective, Policy, recommend};
use llm_concurrency::figures::Stage;
use llm_concurrency::load::closed_loop::LoopPlan;
use llm_concurrency::measure::duet::TURNS;
use llm_concurrency::simulator::{Simulator, SimulatorConfig};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::runtime::Runtime;
use virtual_server::{Busy, Measured, Server, measure, pooled, standard_normal, virtual_time};

const LEVELS: [usize; 4] = [5, 10, 20, 30];
const SLOTS: usize = 20;
/// Standard deviation of the disturbance that both share, and its correlation time in service times.
const DISTURBANCE: (f64, f64) = (0.10, 100.0);

/// Standard deviation of a service time's logarithm.
const SIGMA: f64 = 0.15;

/// The speed of the machine that both servers are on: AR(1), and what it was when it was last asked for.
struct Speed {
    rng: StdRng,
    state: f64,
    at: f64,
}

impl Speed {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let state = standard_normal(&mut rng);
        Speed { rng, state, at: 0.0 }
    }

    fn at(&mut self, time: f64) -> f64 {
        let (deviation, correlation) = DISTURBANCE;
        let kept = (-(time - self.at) / correlation).exp();
        self.state = kept * self.state + (1.0 - kept * kept).sqrt() * standard_normal(&mut self.rng);
        self.at = time;
        (deviation * self.state).exp()
    }
}

fn visit(runtime: &Runtime, level: usize, speed: f64, seed: u64) -> Measured {
    let completions = level.max(100 / TURNS as usize);
    let plan = LoopPlan { warmup: level, ..LoopPlan::visit(level, completions, 10) };
    let mut measured = measure(runtime, &plan, Busy::new(&Server::knee(SLOTS, SIGMA), level, speed, seed));
    measured.measurement.stage = Stage::Visit;
    measured
}

fn throughput(measured: Measured) -> f64 {
    pooled(&[measured]).throughput_rps.expect("a window of some length").estimate
}

/// Service times from the first request of a visit to the end of its last.
fn lasts(level: usize) -> f64 {
    let waves = (2 * level + level.max(100 / TURNS as usize)) as f64 / level as f64;
    waves * level as f64 / level.min(SLOTS) as f64
}

/// B is so much faster; both are visited in turns, or (`apart`) A all through and then B on another day.
fn pairs(runtime: &Runtime, faster: f64, seed: u64, apart: bool) -> Vec<Pair> {
    let mut speeds = [Speed::new(2 * seed), Speed::new(2 * seed + 1)];
    let (mut now, mut pairs) = (0.0, Vec::new());
    for turn in 0..TURNS {
        for (at, level) in LEVELS.into_iter().enumerate() {
            let mut both = [0.0; 2];
            let order = if (turn as usize + at).is_multiple_of(2) { [0, 1] } else { [1, 0] };
            for side in order {
                let speed = speeds[if apart { side } else { 0 }].at(now) * [1.0, 1.0 + faster][side];
                let seed = seed * 1_000 + u64::from(turn) * 100 + 10 * at as u64 + side as u64;
                both[side] = throughput(visit(runtime, level, speed, seed));
                now += lasts(level);
            }
            pairs.push(Pair { level, turn, throughput: both });
        }
    }
    pairs
}

fn compared(pairs: &[Pair]) -> Comparison {
    let nothing = recommend(&[], &Policy::default());
    side_by_side(pairs, [&nothing, &nothing], Objective::Requests)
}

#[test]
fn a_disturbance_that_both_share_goes_out() {
    const RUNS: u64 = 60;
    let runtime = virtual_time();
    let (mut held, mut held_overall, mut width, mut of_levels) = (0, 0, 0.0, 0);
    let mut apart: Vec<Vec<f64>> = vec![Vec::new(); LEVELS.len()];
    for seed in 0..RUNS {
        let found = compared(&pairs(&runtime, 0.0, seed, false));
        for level in &found.levels {
            held += usize::from(level.interval[0] <= 0.0 && level.interval[1] >= 0.0);
            width += (1.0 + level.interval[1]).ln() - (1.0 + level.interval[0]).ln();
            of_levels += 1;
        }
        held_overall += usize::from(found.overall.is_some_and(|of| of.interval[0] <= 0.0 && of.interval[1] >= 0.0));
        let separate = compared(&pairs(&runtime, 0.0, 500 + seed, true));
        for (level, ratios) in separate.levels.iter().zip(&mut apart) {
            ratios.push((1.0 + level.change).ln());
        }
    }
    // An interval of two separate runs that holds the truth in 95 % is as wide as they really scatter.
    let scatter =
        apart.iter().flatten().map(|ratio| ratio * ratio).sum::<f64>() / apart.iter().flatten().count() as f64;
    let (separate, mean) = (2.0 * 1.96 * scatter.sqrt(), width / of_levels as f64);
    println!(
        "width in turns {mean:.3}, of separate runs {separate:.3}: {:.2}; held by level {held} of {of_levels}, overall {held_overall} of {RUNS}",
        mean / separate
    );
    assert!(mean < separate / 3.0, "{mean} against {separate}");
    let share = f64::from(u32::try_from(held).expect("few")) / f64::from(of_levels);
    assert!((0.90..=0.985).contains(&share), "{share}");
    // Fewer than 51 of 60 come once in a thousand such tests.
    assert!(held_overall >= 51, "{held_overall}");
}

#[test]
fn a_difference_of_five_percent_is_found() {
    const RUNS: u64 = 30;
    let runtime = virtual_time();
    let mut found = 0;
    for seed in 0..RUNS {
        let overall = compared(&pairs(&runtime, 0.05, 9_000 + seed, false)).overall.expect("levels");
        found += usize::from(overall.interval[0] > 0.0);
    }
    println!("found {found} of {RUNS}");
    assert!(found >= 27, "{found} of {RUNS}");
}

fn config(url: &str) -> String {
    format!(
        "llm: {{endpoint: '{url}', model: one, headers: {{x-team: canary-header}}}}\n\
         benchmark: {{levels: [1, 2, 4], total_requests: 30, request: {{max_tokens: 8}}}}\n"
    )
}

fn simulator(slots: usize) -> Simulator {
    Simulator::start(SimulatorConfig { slots, ..SimulatorConfig::default() }, 0).expect("a free port")
}

/// Level and number of each visit, by server.
fn visits(folder: &Path) -> Vec<Vec<(u64, u64)>> {
    let runs = fs::read_dir(folder.join("target/concurrency")).expect("the runs");
    let of_run = |run: fs::DirEntry| {
        let manifest = fs::read_to_string(run.path().join("run.json")).expect("a manifest");
        let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("JSON");
        let visits = manifest["levels"].as_array().unwrap().iter();
        visits.map(|of| (of["concurrency"].as_u64().unwrap(), of["round"].as_u64().unwrap())).collect()
    };
    runs.flatten().map(of_run).collect()
}

/// Lines of all requests that a run wrote down, by the folders of its two servers.
fn recorded(folder: &Path) -> usize {
    let runs = fs::read_dir(folder.join("target/concurrency")).expect("the runs");
    let files = runs.flatten().flat_map(|run| fs::read_dir(run.path()).into_iter().flatten().flatten());
    let lines = files.filter(|file| file.path().extension().is_some_and(|of| of == "jsonl"));
    lines.map(|file| fs::read_to_string(file.path()).expect("text").lines().count()).sum()
}

#[test]
fn every_request_is_accounted_for_and_the_slower_server_is_named() {
    let (a, b) = (simulator(4), simulator(2));
    let folder = servers::folder(&config(&a.base_url()));
    let before = fs::read(folder.path().join("config.yaml")).expect("it is there");
    let mut command = servers::binary(folder.path());
    let output =
        command.args(["run", "--quiet", "--against", &b.base_url(), "--against-model", "two"]).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stdout.contains("B is ") && stdout.contains("slower"), "{stdout}");
    assert!(stderr.contains("6 visits to each at levels 1, 2, 4"), "{stderr}");
    assert_eq!(recorded(folder.path()), a.log().len() + b.log().len(), "{stderr}");
    assert!(a.log().len().abs_diff(b.log().len()) < 20, "{} and {}", a.log().len(), b.log().len());
    assert_eq!(fs::read(folder.path().join("config.yaml")).expect("it is there"), before);
    let results = fs::read_dir(folder.path().join("results")).expect("results").flatten();
    let written: Vec<String> = results.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect();
    assert!(written.iter().any(|text| text.contains("\"overall\"")), "the comparison is a file of its own");
    assert!(written.iter().all(|text| !text.contains("canary-header")));
}

/// Levels at which one of the two fails are visited no more; the others go on, each visit under a number of its own.
#[test]
fn levels_that_one_refuses_are_visited_once() {
    let a = simulator(4);
    let refuses = SimulatorConfig { slots: 1, queue_limit: 0, ..SimulatorConfig::default() };
    let b = Simulator::start(refuses, 0).expect("a free port");
    let folder = servers::folder(&config(&a.base_url()));
    let args = ["run", "--quiet", "--levels", "1,16,20", "--against", &b.base_url()];
    let output = servers::binary(folder.path()).args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    for of_server in visits(folder.path()) {
        let (levels, numbers): (Vec<u64>, Vec<u64>) = of_server.into_iter().unzip();
        assert_eq!(levels.iter().filter(|level| **level == 1).count(), TURNS as usize, "{levels:?}");
        assert_eq!(levels.iter().filter(|level| **level == 16).count(), 1, "{levels:?}");
        assert_eq!(numbers, (1..=levels.len() as u64).collect::<Vec<_>>(), "{levels:?}");
    }
}

#[test]
fn keys_and_headers_stay_with_the_server_they_are_for() {
    let a = simulator(4);
    let refusal = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
    let b = servers::RawServer::start(|_, stream| stream.write_all(refusal.as_bytes()).is_ok());
    let folder = servers::folder(&config(&a.base_url()));
    for (variable, key) in [("LLM_API_KEY", "canary-own"), ("LLM_AGAINST_API_KEY", "canary-other")] {
        let mut command = servers::binary(folder.path());
        let url = format!("http://{}/v1", b.address);
        let output = command.env(variable, key).args(["run", "--quiet", "--against", &url]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("401") && !stderr.contains("canary"), "{stderr}");
        let seen = b.requests.lock().unwrap().join("\n");
        assert!(!seen.contains("canary-own") && !seen.contains("canary-header"), "{seen}");
        assert_eq!(seen.contains("canary-other"), variable == "LLM_AGAINST_API_KEY", "{seen}");
    }
}

#[test]
fn a_secret_in_the_body_is_not_sent_to_another_server() {
    let a = simulator(4);
    let b = simulator(4);
    let folder = servers::folder(&format!(
        "llm: {{endpoint: '{}'}}\nbenchmark: {{request: {{extra_body: {{api_key: canary}}}}}}\n",
        a.base_url()
    ));
    let output = servers::binary(folder.path()).args(["run", "--against", &b.base_url()]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("extra_body") && !stderr.contains("canary"), "{stderr}");
    assert_eq!((a.log().len(), b.log().len()), (0, 0));
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_sent() {
    let a = simulator(4);
    let folder = servers::folder(&config(&a.base_url()));
    for (args, code, message) in [
        (&["--against", "localhost:8000"][..], 1, "--against: neither http nor https"),
        (&["--against", "http://localhost:1/v1", "--update-config"], 2, "cannot be used with"),
        (&["--against-model", "two", "--max-requests", "20"], 1, "max_requests"),
    ] {
        let output = servers::binary(folder.path()).arg("run").args(args).output().unwrap();
        let all = [output.stdout, output.stderr].concat();
        let all = String::from_utf8_lossy(&all);
        assert!(all.contains(message), "{args:?}: {all}");
        assert_eq!(output.status.code(), Some(code), "{args:?}: {all}");
    }
    assert!(a.log().is_empty());
}

#[test]
fn an_interrupt_leaves_what_was_measured() {
    let (a, b) = (simulator(4), simulator(4));
    let folder = servers::folder(&config(&a.base_url()));
    let mut command = servers::binary(folder.path());
    command.args(["run", "--quiet", "--total-requests", "6000", "--against", &b.base_url()]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    known::wait_until("the moment to interrupt", || b.log().len() >= 50);
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert_eq!(stderr.matches("interrupted").count(), 1, "{stderr}");
    // What was given up is recorded, too.
    let recorded = recorded(folder.path());
    let seen = || a.log().len() + b.log().len();
    known::wait_until("the servers to see that the client left", || seen() >= recorded);
    assert_eq!(seen(), recorded);
}

/// Room for some turns, but not for all six: the last pair that is begun is ended.
#[test]
fn a_budget_ends_it_between_two_pairs() {
    let (a, b) = (simulator(4), simulator(4));
    let folder = servers::folder(&config(&a.base_url()));
    let args = ["run", "--quiet", "--max-requests", "100", "--against", &b.base_url()];
    let output = servers::binary(folder.path()).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(
        stderr.contains("Level 4 was not measured again: benchmark.budget.max_requests has no room for it"),
        "{stderr}"
    );
    let (of_a, of_b) = (a.log().len(), b.log().len());
    assert!((60..=100).contains(&(of_a + of_b)), "{of_a} and {of_b}");
    let [first, second] = &visits(folder.path())[..] else { panic!("two runs") };
    assert_eq!(first, second, "as many visits to the one as to the other");
    assert_eq!(recorded(folder.path()), of_a + of_b);
}
