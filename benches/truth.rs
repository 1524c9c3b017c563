//! Are our measurements true? Measures simulated servers of known throughput through the real path.
//!
//! `cargo bench --bench truth` takes about six minutes; `cargo bench --bench truth -- 8 fixed` runs only the
//! server with 8 slots and answers of fixed length, `-- barrier` only the comparison with a loop that waits
//! for each batch. It exits with code 1 if a bound is missed. Measures real time, so it needs an idle machine.

#[path = "../tests/common/mod.rs"]
mod common;

use std::process::ExitCode;
use std::time::Instant;

use common::{Measured, Rig, median, plan};
use llm_concurrency::client::RequestSettings;
use llm_concurrency::decide::{Policy, recommend};
use llm_concurrency::prompts::Prompt;
use llm_concurrency::simulator::{ExplainedLevel, OutputTokens, SimulatorConfig, explain};
use tokio::task::JoinSet;

/// Number of rounds over the levels; the median of a level's measurements counts.
const RUNS: usize = 5;
/// Largest error of the median with `full_size` requests.
const FULL_BOUND: f64 = 0.03;
/// Largest error of the median with the default 100 requests and answers of fixed length.
const DEFAULT_BOUND: f64 = 0.015;
/// The default of `benchmark.total_requests`.
const DEFAULT_REQUESTS: usize = 100;
/// A recommended level must have at least this share of the best level's true throughput.
const GOOD: f64 = 0.93;
/// No level's true share lies between `GOOD` and this, so that each is clearly good or clearly not.
const CLEARLY_GOOD: f64 = 0.97;
/// Successes in virtual time per level.
const EXPLAIN_REQUESTS: usize = 20_000;

fn full_size(level: usize) -> usize {
    1_000.max(100 * level)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if !args.iter().any(|arg| arg == "--bench") {
        println!("truth: measures real time, so it runs only by `cargo bench --bench truth`");
        return ExitCode::SUCCESS;
    }
    let words: Vec<&str> = args.iter().map(String::as_str).filter(|arg| !arg.starts_with("--")).collect();
    let prompts = common::prompts(1_000);
    let servers: Vec<Server> = Server::all().into_iter().filter(|server| server.is_named_by(&words)).collect();
    let with_barrier = words.is_empty() || words.contains(&"barrier");
    if servers.is_empty() && !with_barrier {
        eprintln!("nothing is named by {words:?}; expected slots (4, 8, 20), fixed, log-normal, or barrier");
        return ExitCode::FAILURE;
    }
    let missed: usize = servers.iter().map(|server| server.check(&prompts)).sum();
    if with_barrier {
        compare_with_barrier(&prompts);
    }
    if missed > 0 {
        println!("{missed} bounds missed");
        return ExitCode::FAILURE;
    }
    println!("all bounds kept");
    ExitCode::SUCCESS
}

#[derive(Clone, Copy, PartialEq)]
enum Lengths {
    Fixed,
    LogNormal,
}

impl Lengths {
    fn name(self) -> &'static str {
        match self {
            Lengths::Fixed => "fixed",
            Lengths::LogNormal => "log-normal",
        }
    }

    fn of(self, tokens: u32) -> OutputTokens {
        match self {
            Lengths::Fixed => OutputTokens::Fixed { tokens },
            Lengths::LogNormal => OutputTokens::LogNormal { median: f64::from(tokens), sigma: 0.5 },
        }
    }
}

/// The server to measure.
struct Server {
    slots: usize,
    lengths: Lengths,
    tokens: u32,
    base_step_ms: f64,
    full_step_ms: f64,
}

impl Server {
    fn all() -> Vec<Server> {
        let mut all = Vec::new();
        // The steps are so short that delays in the client would show. The base is so small that a level equal
        // to the slots, which loses one step per answer, still has 0.97 of the best.
        // With 20 slots the default 100 requests are over soon, so the steps are longer: a late wake-up on a
        // shared machine must not cost a percent of the measurement. All service times stay below 50 ms.
        for (slots, tokens, base_step_ms, full_step_ms) in [(4, 6, 0.4, 2.4), (8, 8, 0.5, 2.4), (20, 8, 1.0, 5.5)] {
            for lengths in [Lengths::Fixed, Lengths::LogNormal] {
                all.push(Server { slots, lengths, tokens, base_step_ms, full_step_ms });
            }
        }
        all
    }

    fn is_named_by(&self, words: &[&str]) -> bool {
        let slots = self.slots.to_string();
        let of_slots = words.iter().any(|word| word.parse::<usize>().is_ok());
        let of_lengths = words.iter().any(|word| ["fixed", "log-normal"].contains(word));
        let only_barrier = words == ["barrier"];
        !only_barrier
            && (!of_slots || words.contains(&slots.as_str()))
            && (!of_lengths || words.contains(&self.lengths.name()))
            && (words.is_empty() || of_slots || of_lengths)
    }

    fn config(&self) -> SimulatorConfig {
        SimulatorConfig {
            slots: self.slots,
            queue_limit: 10 * self.slots,
            base_step_ms: self.base_step_ms,
            per_sequence_ms: (self.full_step_ms - self.base_step_ms) / self.slots as f64,
            prefill_ms_per_token: 0.0005,
            output_tokens: self.lengths.of(self.tokens),
            ..SimulatorConfig::default()
        }
    }

    /// Levels below, at and above the number of slots.
    fn levels(&self) -> [usize; 3] {
        [self.slots / 2, self.slots, 2 * self.slots]
    }

    /// Measures the server and prints the result; returns the number of missed bounds.
    fn check(&self, prompts: &[Prompt]) -> usize {
        let truth = true_curve(&self.config(), &self.levels(), prompts);
        let mut missed = self.check_sizes(&truth, prompts, &full_size, FULL_BOUND);
        if self.lengths == Lengths::Fixed {
            missed += self.check_sizes(&truth, prompts, &|_| DEFAULT_REQUESTS, DEFAULT_BOUND);
        }
        missed
    }

    fn check_sizes(
        &self,
        truth: &[ExplainedLevel],
        prompts: &[Prompt],
        size: &dyn Fn(usize) -> usize,
        bound: f64,
    ) -> usize {
        let rig = Rig::start(self.config(), prompts, &RequestSettings::default());
        let began = Instant::now();
        let rounds: Vec<Vec<Measured>> = (0..RUNS)
            .map(|_| truth.iter().map(|level| rig.measure(&plan(level.level, size(level.level)))).collect())
            .collect();
        println!(
            "{} slots, {} lengths of {} tokens, steps of {:.1} ms at full batch; {RUNS} runs, {:.0} s",
            self.slots,
            self.lengths.name(),
            self.tokens,
            self.full_step_ms,
            began.elapsed().as_secs_f64()
        );
        println!(
            "{:>6} {:>8} {:>10} {:>8} {:>10} {:>8} {:>8} {:>8}",
            "level", "requests", "true req/s", "of best", "median", "error", "worst", "bound"
        );
        let mut missed = 0;
        for (at, level) in truth.iter().enumerate() {
            let runs: Vec<f64> = rounds.iter().map(|round| round[at].rps()).collect();
            let errors: Vec<f64> = runs.iter().map(|rps| rps / level.throughput_rps - 1.0).collect();
            let worst = errors.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or_default();
            let error = median(errors);
            let kept = error.abs() <= bound;
            missed += usize::from(!kept);
            println!(
                "{:>6} {:>8} {:>10.2} {:>8.3} {:>10.2} {:>8} {:>8} {:>8}{}",
                level.level,
                plan(level.level, size(level.level)).measured,
                level.throughput_rps,
                level.throughput_rps / best_rps(truth),
                median(runs),
                percent(error),
                percent(worst),
                percent(bound),
                if kept { "" } else { "  MISSED" }
            );
        }
        missed + self.check_recommended(truth, &rounds)
    }

    /// Checks that every round recommends a truly good level; returns the number of rounds that do not.
    fn check_recommended(&self, truth: &[ExplainedLevel], rounds: &[Vec<Measured>]) -> usize {
        let share = |level: usize| {
            let found = truth.iter().find(|explained| explained.level == level);
            found.map_or(0.0, |explained| explained.throughput_rps / best_rps(truth))
        };
        for level in truth {
            let share = share(level.level);
            assert!(!(GOOD..CLEARLY_GOOD).contains(&share), "level {} is neither good nor not: {share}", level.level);
        }
        let picks: Vec<Option<usize>> = rounds
            .iter()
            .map(|round| {
                let summaries: Vec<_> = round.iter().map(|measured| measured.summary.clone()).collect();
                recommend(&summaries, &Policy::default()).recommended_concurrency
            })
            .collect();
        let missed = picks.iter().filter(|pick| pick.is_none_or(|level| share(level) < GOOD)).count();
        let shown: Vec<String> = picks
            .iter()
            .map(|pick| pick.map_or("none".to_owned(), |level| format!("{level} ({:.3})", share(level))))
            .collect();
        println!(
            "recommended (its true share of the best): {}{}\n",
            shown.join(", "),
            if missed > 0 { "  MISSED" } else { "" }
        );
        missed
    }
}

fn true_curve(config: &SimulatorConfig, levels: &[usize], prompts: &[Prompt]) -> Vec<ExplainedLevel> {
    let texts: Vec<String> = prompts.iter().map(|prompt| prompt.text.clone()).collect();
    let max_tokens = RequestSettings::default().max_tokens;
    explain(config, levels, &texts, max_tokens, EXPLAIN_REQUESTS).expect("settings in range").levels
}

fn best_rps(truth: &[ExplainedLevel]) -> f64 {
    truth.iter().map(|level| level.throughput_rps).fold(0.0, f64::max)
}

fn percent(fraction: f64) -> String {
    format!("{:+.2} %", 100.0 * fraction)
}

// ---- for comparison: the same loop with a barrier ----

/// Repeatedly sends `level` requests and waits for all of them, as a naive benchmark does.
fn barrier_rps(rig: &Rig, level: usize, requests: usize) -> f64 {
    let waves = requests.div_ceil(level) as u64;
    let wave = async |number: u64| {
        let seqs = number * level as u64..(number + 1) * level as u64;
        let mut batch: JoinSet<_> = seqs.map(|seq| rig.target.send(level, seq)).collect();
        let mut succeeded = 0;
        while let Some(reply) = batch.join_next().await {
            succeeded += u32::from(reply.is_ok_and(|reply| reply.failure.is_none()));
        }
        succeeded
    };
    rig.runtime.block_on(async {
        wave(0).await;
        let began = Instant::now();
        let mut succeeded = 0;
        for number in 1..=waves {
            succeeded += wave(number).await;
        }
        f64::from(succeeded) / began.elapsed().as_secs_f64()
    })
}

fn compare_with_barrier(prompts: &[Prompt]) {
    println!("a barrier after each batch of `level` requests, against the overlapped loop; 1 run each");
    println!(
        "{:>6} {:>11} {:>6} {:>10} {:>10} {:>8} {:>10} {:>8}",
        "slots", "lengths", "level", "true req/s", "barrier", "bias", "overlapped", "bias"
    );
    let levels = [10, 50];
    for server in Server::all().iter().filter(|server| server.slots > 4) {
        let rig = Rig::start(server.config(), prompts, &RequestSettings::default());
        for level in true_curve(&server.config(), &levels, prompts) {
            let barrier = barrier_rps(&rig, level.level, 1_000);
            let overlapped = rig.measure(&plan(level.level, 1_000)).rps();
            println!(
                "{:>6} {:>11} {:>6} {:>10.2} {:>10.2} {:>8} {:>10.2} {:>8}",
                server.slots,
                server.lengths.name(),
                level.level,
                level.throughput_rps,
                barrier,
                percent(barrier / level.throughput_rps - 1.0),
                overlapped,
                percent(overlapped / level.throughput_rps - 1.0),
            );
        }
    }
    println!();
}
