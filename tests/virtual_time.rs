//! The closed loop against the simulator's engine, both in virtual time: what is measured is what is explained.
//!
//! Without a network and a real clock there is no noise, so the bounds can be tight.

#[path = "common/search.rs"]
mod search;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use llm_concurrency::client::outcome::{Failure, Reply, RequestOutcome};
use llm_concurrency::decide::{Policy, recommend};
use llm_concurrency::figures::{self, LevelSummary, Limits, Measurement, Requests};
use llm_concurrency::load::closed_loop::{self, LoopPlan};
use llm_concurrency::simulator::engine::{Engine, Token};
use llm_concurrency::simulator::{ExplainedLevel, OutputTokens, PrefixCache, SimulatorConfig, explain, prompt_tokens};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use search::Search;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

const SAMPLES: usize = 10;
const MAX_TOKENS: u32 = 64;

/// The engine behind tokio's clock, as the driver is its place behind the real one.
struct Server {
    state: Mutex<(Engine<mpsc::UnboundedSender<()>>, Option<Instant>)>,
    work: Notify,
}

impl Server {
    fn new(config: &SimulatorConfig) -> Arc<Self> {
        Arc::new(Server { state: Mutex::new((Engine::new(config), None)), work: Notify::new() })
    }

    async fn answer(&self, prompt_tokens: u32, output_tokens: u32) -> Reply {
        let (done, mut finished) = mpsc::unbounded_channel();
        {
            let mut state = self.state.lock().unwrap();
            let (engine, step_end) = &mut *state;
            if engine.submit(done, prompt_tokens, output_tokens).is_err() {
                return Reply::failed(Failure::ServerError, "full");
            }
            // An idle engine starts at once, with this request alone.
            if step_end.is_none() {
                *step_end = engine.begin_step().map(|step| Instant::now() + step);
                self.work.notify_one();
            }
        }
        finished.recv().await;
        Reply::default()
    }

    async fn run(&self) {
        let mut tokens: Vec<Token<_>> = Vec::new();
        loop {
            let step_end = self.state.lock().unwrap().1;
            let Some(deadline) = step_end else {
                self.work.notified().await;
                continue;
            };
            tokio::time::sleep_until(deadline).await;
            let mut state = self.state.lock().unwrap();
            let (engine, step_end) = &mut *state;
            engine.end_step(&mut tokens);
            // The next step begins before anybody hears of this one's tokens.
            *step_end = engine.begin_step().map(|step| deadline + step);
            for token in tokens.drain(..).filter(|token| token.last) {
                token.owner.send(()).unwrap();
            }
        }
    }
}

/// Measures one level in virtual time.
fn measure(config: &SimulatorConfig, prompts: &[String], level: usize, total: usize) -> LevelSummary {
    summarize(&[run(config, prompts, &full_plan(level, total))])
}

type Measured = (Measurement, Requests);

fn summarize(measured: &[Measured]) -> LevelSummary {
    let level: Vec<_> = measured.iter().map(|(measurement, requests)| (measurement, requests)).collect();
    figures::summarize(&level, Limits { request_timeout_s: 0.0, max_error_rate: 0.05 })
}

fn run(config: &SimulatorConfig, prompts: &[String], plan: &LoopPlan) -> Measured {
    run_work(config, plan, |seq| {
        let prompt = &prompts[seq as usize % prompts.len()];
        (prompt_tokens(prompt), config.answer_length(prompt, Some(MAX_TOKENS)).tokens)
    })
}

fn full_plan(level: usize, total: usize) -> LoopPlan {
    LoopPlan::new(level, total, 5, SAMPLES, level)
}

/// `work` gives a request the tokens to prefill and the tokens to decode.
fn run_work(config: &SimulatorConfig, plan: &LoopPlan, mut work: impl FnMut(u64) -> (u32, u32)) -> Measured {
    let server = Server::new(config);
    let send = |ticket: closed_loop::Ticket| {
        let (input, output) = work(ticket.seq);
        let server = server.clone();
        async move { server.answer(input, output).await }
    };
    let (_keep, stop) = watch::channel(false);
    let mut outcomes: Vec<RequestOutcome> = Vec::new();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("runtime");
    let record = runtime.block_on(async {
        let stepping = server.clone();
        tokio::spawn(async move { stepping.run().await });
        closed_loop::run(plan, stop, send, &mut outcomes).await
    });
    assert!(record.sent <= plan.tickets());
    assert_eq!(outcomes.len() as u64, record.sent);
    (record.measurement(plan.level), outcomes.iter().collect())
}

/// All parts are whole milliseconds: tokio's timer knows nothing finer, in virtual time neither.
fn config(slots: usize, output_tokens: OutputTokens) -> SimulatorConfig {
    SimulatorConfig {
        slots,
        queue_limit: 25,
        base_step_ms: 3.0,
        per_sequence_ms: 1.0,
        prefill_ms_per_token: 0.0,
        output_tokens,
        ..SimulatorConfig::default()
    }
}

fn prompts() -> Vec<String> {
    (0..1000).map(|i| format!("{i:0>300}")).collect()
}

fn explained(config: &SimulatorConfig, level: usize) -> ExplainedLevel {
    explain(config, &[level], &prompts(), MAX_TOKENS, 20_000).unwrap().levels.remove(0)
}

fn error_of(config: &SimulatorConfig, level: usize, total: usize) -> f64 {
    measure(config, &prompts(), level, total).throughput_rps.unwrap().estimate / explained(config, level).throughput_rps
        - 1.0
}

/// Answers of equal length need no more than the default 100 requests; those of log-normal length need ten times as many.
#[test]
fn what_is_measured_is_what_is_explained() {
    let fixed = OutputTokens::Fixed { tokens: 12 };
    let log_normal = OutputTokens::LogNormal { median: 12.0, sigma: 0.5 };
    for (lengths, least, per_level, bound) in [(fixed, 100, 0, 0.002), (log_normal, 1_000, 100, 0.01)] {
        for slots in [4, 8, 20] {
            let config = config(slots, lengths.clone());
            for level in [1, slots / 2, slots, slots + 2, 2 * slots] {
                let error = error_of(&config, level, least.max(per_level * level));
                assert!(error.abs() < bound, "{lengths:?}, {slots} slots, level {level}: {error:+.5}");
            }
        }
    }
}

#[test]
fn a_full_queue_gives_the_error_rate_that_is_explained() {
    let config = config(20, OutputTokens::LogNormal { median: 12.0, sigma: 0.35 });
    let truth = explained(&config, 50);
    let summary = measure(&config, &prompts(), 50, 2_000);
    let (rate, rps) = (summary.error_rate.unwrap(), summary.throughput_rps.unwrap().estimate);
    assert!((rate - truth.error_rate).abs() < 0.01, "{rate} {}", truth.error_rate);
    assert!((rps / truth.throughput_rps - 1.0).abs() < 0.005, "{rps} {}", truth.throughput_rps);
}

// ---- the prefix cache ----

/// Prompts without and with a prefix that makes each unique, against a server that has a prefix cache or none.
struct Prompts {
    unique: bool,
    cache: Option<PrefixCache>,
}

/// What one level came to.
#[derive(Debug, PartialEq)]
struct Cached {
    sent: u64,
    cached_tokens: u32,
    rps: f64,
}

impl Prompts {
    /// Levels 4 and 8, one after the other: the same prompts at both.
    fn measure(mut self) -> [Cached; 2] {
        let config = SimulatorConfig { prefill_ms_per_token: 1.0, ..config(8, OutputTokens::Fixed { tokens: 12 }) };
        [4, 8].map(|level| {
            let mut cached_tokens = 0;
            let measured = run_work(&config, &full_plan(level, 100), |seq| {
                let prefix = if self.unique { format!("{level:08x}{seq:08x} ") } else { String::new() };
                let prompt = prefix + &format!("{seq:04}").repeat(150);
                let cached = self.cache.as_mut().map_or(0, |cache| cache.look_up(&prompt));
                cached_tokens += cached;
                (prompt_tokens(&prompt) - cached, 12)
            });
            let rps = summarize(std::slice::from_ref(&measured)).throughput_rps.unwrap().estimate;
            Cached { sent: measured.1.len() as u64, cached_tokens, rps }
        })
    }
}

#[test]
fn a_prefix_cache_favours_the_later_level_unless_prompts_are_unique() {
    let measure = |unique, cache| Prompts { unique, cache }.measure();
    let with_cache = || Some(PrefixCache::default());
    let [plain_4, plain_8] = measure(false, None);
    let [reuse_4, reuse_8] = measure(false, with_cache());
    // Level 4 meets an empty cache; level 8 finds there all that level 4 sent, two blocks of 64 tokens each.
    assert_eq!(reuse_4, plain_4);
    assert_eq!(u64::from(reuse_8.cached_tokens), reuse_4.sent * 128);
    assert!(reuse_8.rps > 1.5 * plain_8.rps, "{} where the truth is {}", reuse_8.rps, plain_8.rps);
    // With `cache: fresh` the cache might as well not be there, at the price of a prefix of five tokens.
    let fresh = measure(true, with_cache());
    assert_eq!(fresh, measure(true, None));
    assert!(fresh.iter().all(|level| level.cached_tokens == 0));
    assert!(fresh[1].rps > 0.95 * plain_8.rps, "{} where the truth is {}", fresh[1].rps, plain_8.rps);
}

// ---- the adaptive search ----

const HIGHEST: usize = 512;
const SERVERS: u64 = 30;
/// As shipped.
const REQUESTS: usize = 100;

/// Between 1 and 200 slots, with any queue, from memory-bound (the batch costs nothing) to compute-bound.
fn some_server(seed: u64) -> SimulatorConfig {
    let mut rng = StdRng::seed_from_u64(seed);
    SimulatorConfig {
        slots: rng.random_range(1..=200),
        queue_limit: rng.random_range(0..=400),
        base_step_ms: f64::from(rng.random_range(10..=200)),
        per_sequence_ms: f64::from(rng.random_range(0..=2)),
        prefill_ms_per_token: 0.0,
        output_tokens: OutputTokens::LogNormal { median: 12.0, sigma: rng.random_range(0.0..0.6) },
        seed,
        ..SimulatorConfig::default()
    }
}

/// The true best throughput of a level that passes the gates, and the smallest level with 0.95 of it. Both ends are
/// found by bisection: up to the last level that passes, more in flight never means less throughput on this engine.
struct Truth<'a> {
    config: &'a SimulatorConfig,
    prompts: Vec<String>,
    levels: BTreeMap<usize, ExplainedLevel>,
}

impl<'a> Truth<'a> {
    fn new(config: &'a SimulatorConfig) -> Self {
        Truth { config, prompts: prompts(), levels: BTreeMap::new() }
    }

    fn at(&mut self, level: usize) -> ExplainedLevel {
        let Truth { config, prompts, levels } = self;
        let explain = || explain(config, &[level], prompts, MAX_TOKENS, 3_000).unwrap().levels.remove(0);
        levels.entry(level).or_insert_with(explain).clone()
    }

    fn passes(&mut self, level: usize) -> bool {
        let (level, lowest) = (self.at(level), self.at(1));
        level.error_rate < 0.05 && level.latency_p95_s <= 5.0 * lowest.latency_p95_s
    }

    fn best(&mut self) -> f64 {
        let last = last_where(1, HIGHEST, |level| self.passes(level));
        self.at(last).throughput_rps
    }

    fn smallest_good(&mut self) -> usize {
        let best = self.best();
        let good = |truth: &mut Self, level| truth.at(level).throughput_rps >= 0.95 * best;
        if good(self, 1) { 1 } else { 1 + last_where(1, HIGHEST, |level| !good(self, level)) }
    }
}

/// The last of `low..=high` for which `holds`, which holds for `low` and up to some level.
fn last_where(mut low: usize, high: usize, mut holds: impl FnMut(usize) -> bool) -> usize {
    let mut beyond = high + 1;
    while beyond - low > 1 {
        let middle = low.midpoint(beyond);
        if holds(middle) {
            low = middle;
        } else {
            beyond = middle;
        }
    }
    low
}

/// What `levels: auto` picks, and with how many requests.
fn search(config: &SimulatorConfig, prompts: &[String]) -> (Option<usize>, u64) {
    let mut search = Search::adaptive(1, HIGHEST, &Policy::default());
    let mut measured: BTreeMap<usize, Vec<Measured>> = BTreeMap::new();
    let mut pooled: Vec<LevelSummary> = Vec::new();
    let mut requests = 0;
    while let Some(step) = search.next(&pooled) {
        let plan = LoopPlan::new(step.level, REQUESTS, 5, SAMPLES, search.smallest_window(step.level));
        let of_level = measured.entry(step.level).or_default();
        of_level.push(run(config, prompts, &plan));
        requests += of_level.last().map_or(0, |(_, requests)| requests.len() as u64);
        pooled.retain(|summary| summary.concurrency != step.level);
        pooled.push(summarize(of_level));
    }
    (recommend(&pooled, &Policy::default()).recommended_concurrency, requests)
}

/// The fixed list that would find a knee about as closely: from 1 to the maximum, neighbours at most 1.3 apart; each level with what it sends at most, and without confirm rounds, which the search's
/// figure includes.
fn grid_requests() -> u64 {
    let next = |level: &usize| (*level < HIGHEST).then(|| HIGHEST.min((level + 1).max(level * 13 / 10)));
    let levels = std::iter::successors(Some(1), next);
    levels.map(|level| full_plan(level, REQUESTS).tickets()).sum()
}

#[test]
#[ignore = "takes one to two minutes in a debug build"]
fn ci_auto_finds_the_knee_of_random_servers_with_less_than_half_the_requests_of_a_grid() {
    let prompts = prompts();
    let grid = grid_requests();
    let (mut right, mut sent) = (0, 0);
    println!("slots queue  base  per    pick smallest  kept   requests (fixed grid: {grid})");
    for seed in 0..SERVERS {
        let config = some_server(seed);
        let (pick, requests) = search(&config, &prompts);
        let mut truth = Truth::new(&config);
        let (best, smallest) = (truth.best(), truth.smallest_good());
        let kept = pick.map_or(0.0, |pick| truth.at(pick).throughput_rps / best);
        let is_right = kept >= 0.92 && pick.is_some_and(|pick| pick as f64 <= 1.5 * smallest as f64);
        println!(
            "{:5} {:5} {:5} {:4}  {:>6} {smallest:8} {kept:5.3} {requests:10}{}",
            config.slots,
            config.queue_limit,
            config.base_step_ms,
            config.per_sequence_ms,
            pick.map_or("none".to_owned(), |pick| pick.to_string()),
            if is_right { "" } else { "  <- wrong" }
        );
        right += u64::from(is_right);
        sent += requests;
    }
    println!("{right} of {SERVERS} right, {sent} requests, the grid {}", SERVERS * grid);
    assert!(right >= 29, "{right}");
    assert!(2 * sent < SERVERS * grid, "{sent}");
}
