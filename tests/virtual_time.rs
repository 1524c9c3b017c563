//! The closed loop against the simulator's engine, both in virtual time: what is measured is what is explained.
//!
//! Without a network and a real clock there is no noise, so the bounds can be tight.

#[path = "common/virtual_server.rs"]
mod virtual_server;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use llm_concurrency::client::outcome::{Failure, Phase, Reply, RequestOutcome, TokenCounts};
use llm_concurrency::client::{BodyTemplate, Cache, Prompt, RequestSettings};
use llm_concurrency::decide::{Objective, Policy, Status, recommend};
use llm_concurrency::figures::{self, LevelSummary, Limits, Measurement, Requests, Slo, Stage, wilson};
use llm_concurrency::load::closed_loop::{self, LoopPlan};
use llm_concurrency::measure::race::{Evidence, Race, Rules, Seen, Visited, grid};
use llm_concurrency::report::words;
use llm_concurrency::simulator::engine::{Engine, Token};
use llm_concurrency::simulator::{ExplainedLevel, OutputTokens, PrefixCache, SimulatorConfig, explain, prompt_tokens};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use virtual_server::standard_normal;

const SAMPLES: usize = 10;
const MAX_TOKENS: u32 = 64;

/// The engine behind tokio's clock, as the driver is its place behind the real one.
struct Server {
    state: Mutex<(Engine<mpsc::UnboundedSender<bool>>, Option<Instant>)>,
    work: Notify,
    slowness: Slowness,
    began: Instant,
}

/// How many times as long everything takes, by the seconds since it began.
type Slowness = Arc<dyn Fn(f64) -> f64 + Send + Sync>;

impl Server {
    fn new(config: &SimulatorConfig, slowness: Slowness) -> Arc<Self> {
        let state = Mutex::new((Engine::new(config), None));
        Arc::new(Server { state, work: Notify::new(), slowness, began: Instant::now() })
    }

    fn takes(&self, step: Duration) -> Duration {
        let step = step.mul_f64((self.slowness)(self.began.elapsed().as_secs_f64()));
        Duration::from_millis(step.as_secs_f64().mul_add(1e3, 0.5) as u64)
    }

    async fn answer(&self, prompt_tokens: u32, output_tokens: u32) -> Reply {
        let sent = Instant::now();
        let (done, mut tokens) = mpsc::unbounded_channel();
        {
            let mut state = self.state.lock().unwrap();
            let (engine, step_end) = &mut *state;
            if engine.submit(done, prompt_tokens, output_tokens).is_err() {
                return Reply::failed(Failure::ServerError, "full");
            }
            // An idle engine starts at once, with this request alone.
            if step_end.is_none() {
                *step_end = engine.begin_step().map(|step| Instant::now() + self.takes(step));
                self.work.notify_one();
            }
        }
        let mut ttft = None;
        while let Some(last) = tokens.recv().await {
            ttft.get_or_insert(sent.elapsed());
            if last {
                break;
            }
        }
        let tokens = TokenCounts { output: Some(output_tokens), ..TokenCounts::default() };
        Reply { ttft, tokens, chunks: output_tokens, ..Reply::default() }
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
            *step_end = engine.begin_step().map(|step| deadline + self.takes(step));
            for token in tokens.drain(..) {
                token.owner.send(token.last).unwrap();
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
    summarize_by(measured, None)
}

fn summarize_by(measured: &[Measured], slo: Option<Slo>) -> LevelSummary {
    let level: Vec<_> = measured.iter().map(|(measurement, requests)| (measurement, requests)).collect();
    figures::summarize(&level, Limits { request_timeout_s: 0.0, max_error_rate: 0.05, slo, ..Limits::default() })
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
fn run_work(config: &SimulatorConfig, plan: &LoopPlan, work: impl FnMut(u64) -> (u32, u32)) -> Measured {
    run_on(config, Arc::new(|_| 1.0), plan, work)
}

fn run_on(
    config: &SimulatorConfig,
    slowness: Slowness,
    plan: &LoopPlan,
    mut work: impl FnMut(u64) -> (u32, u32),
) -> Measured {
    let runtime = virtual_server::virtual_time();
    let server = runtime.block_on(async { Server::new(config, slowness) });
    let send = |ticket: closed_loop::Ticket| {
        let (input, output) = work(ticket.seq);
        let server = server.clone();
        async move { server.answer(input, output).await }
    };
    let (_keep, stop) = watch::channel(false);
    let mut outcomes: Vec<RequestOutcome> = Vec::new();
    let record = runtime.block_on(async {
        let stepping = server.clone();
        tokio::spawn(async move { stepping.run().await });
        closed_loop::run(plan, stop, send, &mut outcomes).await
    });
    assert!(record.sent <= plan.tickets());
    assert_eq!(outcomes.len() as u64, record.sent);
    let first = record.left_out.map_or(0, |left_out| left_out.requests);
    let outcomes: Vec<RequestOutcome> = outcomes.into_iter().map(|outcome| outcome.leaving_out(first)).collect();
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

// ---- a cold engine ----

/// Steps of 0.1 s, since the timer's milliseconds are to hide no change of speed; and answers of 12 tokens with a
/// coefficient of variation of 0.8, so that a request takes some 1.5 s.
fn unsteady() -> SimulatorConfig {
    let lengths = OutputTokens::LogNormal { median: 12.0, sigma: 0.7 };
    SimulatorConfig { base_step_ms: 95.0, per_sequence_ms: 5.0, ..config(8, lengths) }
}

/// `times` as slow for the first `seconds`; besides the speed wanders by 5 %, correlated over 100 s.
fn cold_for(seconds: f64, times: f64, seed: u64) -> Slowness {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut state = standard_normal(&mut rng);
    let kept = (-0.01_f64).exp();
    let mut next = || {
        state = kept * state + (1.0 - kept * kept).sqrt() * standard_normal(&mut rng);
        (0.05 * state).exp()
    };
    let speeds: Vec<f64> = (0..2_000).map(|_| next()).collect();
    Arc::new(move |at| speeds[at as usize % speeds.len()] * if at < seconds { times } else { 1.0 })
}

/// What the first level comes to, and its tokens a second: the luck of the lengths is not in these.
fn first_level(level: usize, slowness: Slowness, cold: usize, seed: u64) -> (f64, Measured) {
    let config = unsteady();
    let plan = LoopPlan { cold, ..full_plan(level, 100) };
    let made = run_on(&config, slowness, &plan, |seq| {
        let prompt = format!("{seed:0>150}{seq:0>150}");
        (prompt_tokens(&prompt), config.answer_length(&prompt, Some(MAX_TOKENS)).tokens)
    });
    (summarize(std::slice::from_ref(&made)).output_tps.unwrap(), made)
}

#[test]
fn a_first_level_on_a_cold_engine_begins_once_it_is_warm() {
    for (level, times, seconds) in [(1, 1.43, 30.0), (1, 3.0, 30.0), (1, 3.0, 100.0), (4, 3.0, 30.0)] {
        let truth = explained(&unsteady(), level).output_tps;
        let of = |cold: usize| {
            let runs: Vec<_> =
                (0..40).map(|seed| first_level(level, cold_for(seconds, times, seed), cold, seed)).collect();
            let mut shares: Vec<f64> = runs.iter().map(|run| run.0 / truth).collect();
            shares.sort_by(f64::total_cmp);
            let left_out = runs.iter().filter_map(|run| run.1.0.left_out).map(|of| of.requests as f64).sum::<f64>();
            (shares[20], left_out / 40.0)
        };
        let ((without, none), (with, left_out)) = (of(0), of(100));
        println!(
            "level {level}, {times} x as slow for {seconds} s: {without:.3} of the truth, {with:.3} beginning anew, \
                  {left_out:.0} left out"
        );
        assert_eq!(none, 0.0);
        assert!((with - 1.0).abs() < 0.03, "level {level}, {times} x for {seconds} s: {with}");
        assert!(without < with - 0.02, "level {level}, {times} x for {seconds} s: {without}");
    }
}

#[test]
fn a_warm_engine_is_rarely_taken_for_a_cold_one_and_what_is_left_out_is_told() {
    let mut left_out = 0;
    for seed in 0..200 {
        let (_, (measurement, requests)) = first_level(1, cold_for(0.0, 1.0, 1_000 + seed), 100, seed);
        left_out += usize::from(measurement.left_out.is_some());
        assert_eq!(measurement.samples.len(), SAMPLES);
        if measurement.left_out.is_none() {
            assert_eq!(requests.len(), 105, "five of warm-up and a hundred");
        }
    }
    println!("warm engines: of 200 {left_out} began anew");
    assert!(left_out <= 6, "{left_out}");
    let (_, (measurement, requests)) = first_level(1, cold_for(100.0, 3.0, 1), 100, 1);
    let told = measurement.left_out.unwrap();
    assert!((2.0..4.0).contains(&(told.to_rps / told.from_rps)), "{told:?}");
    // Those left out count for nothing, and the level is whole nevertheless.
    let summary = summarize(&[(measurement, requests)]);
    assert_eq!((summary.requests, summary.left_out), (Some(100), Some(told)));
    let notes = recommend(&[summary], &Policy::default()).notes;
    let note = notes.iter().map(words::note).find(|note| note.contains("left out")).unwrap();
    let begin = format!(
        "Level 1: the first {} requests were left out, since the server was still warming up, from 0.",
        told.requests
    );
    assert!(note.starts_with(&begin), "{note}");
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

/// The texts that the server reads, as the client writes them: a system prompt, and a task of the file.
fn body_texts(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    let texts = body["messages"].as_array().unwrap().iter().map(|message| message["content"].as_str().unwrap());
    texts.collect::<Vec<_>>().join("\n")
}

/// A program sends a long system prompt with every request, and each time another task. Its server has the one in its
/// prefix cache and not the other; so has `shared`, and neither of the other two.
#[test]
fn a_shared_system_prompt_is_measured_as_the_program_has_it() {
    const LEVELS: [usize; 4] = [1, 2, 4, 8];
    let system: Arc<str> = "You review code, word for word. ".repeat(112).into();
    let prompts: Vec<Prompt> = (0..100)
        .map(|i| Prompt { system: Some(system.clone()), ..Prompt::from(format!("{i:04}").repeat(250).as_str()) })
        .collect();
    let config = SimulatorConfig {
        prefill_ms_per_token: 1.0,
        prefix_cache: true,
        ..config(8, OutputTokens::Fixed { tokens: 300 })
    };
    let texts: Vec<String> = prompts.iter().map(Prompt::joined).collect();
    let truth = explain(&config, &LEVELS, &texts, 300, 2_000).unwrap().levels;
    let measure = |cache| {
        let settings = RequestSettings { cache: Some(cache), ..RequestSettings::default() };
        let bodies: Vec<_> = prompts.iter().map(|prompt| BodyTemplate::new("m", &settings, prompt)).collect();
        let mut server = PrefixCache::default();
        LEVELS.map(|level| {
            let measured = run_work(&config, &full_plan(level, 100), |seq| {
                let mark = if cache == Cache::Reuse { String::new() } else { format!("{level:08x}{seq:08x} ") };
                let prompt = body_texts(&bodies[seq as usize % bodies.len()].fill(&mark));
                (prompt_tokens(&prompt) - server.look_up(&prompt), 300)
            });
            summarize(std::slice::from_ref(&measured)).throughput_rps.unwrap().estimate
        })
    };
    let [fresh, shared, reuse] = [Cache::Fresh, Cache::Shared, Cache::Reuse].map(measure);
    for (at, truth) in truth.iter().enumerate() {
        let off = [fresh, shared, reuse].map(|rps| rps[at] / truth.throughput_rps - 1.0);
        let row = off.map(|off| format!("{:+6.1} %", 100.0 * off));
        println!("level {}: truth {:.3}, fresh, shared, reuse {row:?}", truth.level, truth.throughput_rps);
        assert!(off[1].abs() < 0.05, "{row:?}");
        assert!(off[0] < -0.3, "{row:?}");
    }
    // Level 1 fills the cache that the levels after it find full.
    let off = |at: usize| reuse[at] / truth[at].throughput_rps - 1.0;
    assert!((1..4).all(|at| off(at) > 0.15), "{reuse:?}");
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
    let (server, runtime) = (Server::new(config, Arc::new(|_| 1.0)), virtual_server::virtual_time());
    let stepping = server.clone();
    runtime.spawn(async move { stepping.run().await });
    let send = |ticket: closed_loop::Ticket| {
        let prompt = &prompts[ticket.seq as usize % prompts.len()];
        let (input, output) = (prompt_tokens(prompt), config.answer_length(prompt, Some(MAX_TOKENS)).tokens);
        let server = server.clone();
        async move {
            let mut reply = server.answer(input, output).await;
            reply.tokens.output = Some(output);
            reply
        }
    };
    let ran = virtual_server::race(&runtime, &[], &grid(1, HIGHEST), Rules::auto(Policy::default()), send);
    (ran.decided().recommended_concurrency, ran.sent())
}

/// The fixed list that would find a knee about as closely: from 1 to the maximum, neighbours at most 1.3 apart; each level with what it sends at most, measured once.
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

// ---- limits of the user's own ----

/// A step takes 20 ms and 1 ms for each sequence, so that throughput rises over all levels, while everything that a user
/// feels grows with the step: 21 ms at level 1, then 23, 28, 40 and 70.
const LEVELS: [usize; 5] = [1, 3, 8, 20, 50];

fn slowing() -> SimulatorConfig {
    SimulatorConfig { base_step_ms: 20.0, ..config(100, OutputTokens::Fixed { tokens: 50 }) }
}

/// Every answer has 50 tokens; of the other work every fourth has 40, and three of four have 10.
fn even(_: u64) -> (u32, u32) {
    (0, 50)
}

fn mixed(seq: u64) -> (u32, u32) {
    (0, if seq.is_multiple_of(4) { 40 } else { 10 })
}

/// By hand. A request is admitted with the step after the one in which it comes: TTFT is at most two steps of the whole
/// level (where those of a level come one by one), and at least one of a single sequence and one of the level (where they
/// come together). TPOT is a step, and the latency of n tokens is n + 1 of them at most. Of each level 17 in 18 decode, or
/// more. P95 is 3.4 times that of level 1 at most, so its default gate bars nothing.
#[test]
fn limits_fail_before_p95_and_throughput_and_the_picks_are_those_by_hand() {
    let limits = |ttft, tpot, latency| Slo { ttft, tpot, latency, ..Slo::default() };
    let within = |slo| Policy { slo: Some(slo), ..Policy::default() };
    let ttft = |seconds| Policy { max_ttft_p95_seconds: Some(seconds), ..Policy::default() };
    let tpot = |seconds| Policy { max_tpot_p95_seconds: Some(seconds), ..Policy::default() };
    // 41 steps of a long answer take 1.64 s at level 20, and 1.97 s at level 30; 11 of a short one at most 0.77 s.
    let long = |attainment, objective| Policy {
        objective,
        slo: Some(Slo { attainment, ..limits(None, None, Some(1.7)) }),
        ..Policy::default()
    };
    let requests = Objective::Requests;
    type Case = (&'static str, Policy, fn(u64) -> (u32, u32), Option<usize>, Status);
    let cases: [Case; 12] = [
        ("no limit", Policy::default(), even, Some(50), Status::NotSaturated),
        ("TTFT P95: at 20 at most 80 ms, at 50 at least 90", ttft(0.085), even, Some(20), Status::LimitedByGate),
        ("TTFT P95: at 8 at most 56 ms, at 20 at least 60", ttft(0.058), even, Some(8), Status::LimitedByGate),
        ("TPOT P95: 40 ms at 20", tpot(0.045), even, Some(20), Status::LimitedByGate),
        ("SLO on TTFT", within(limits(Some(0.085), None, None)), even, Some(20), Status::LimitedByGate),
        ("SLO on TPOT: 28 ms at 8", within(limits(None, Some(0.033), None)), even, Some(8), Status::LimitedByGate),
        ("SLO on latency: 2.04 s at 20", within(limits(None, None, Some(2.5))), even, Some(20), Status::LimitedByGate),
        ("one of three", within(limits(Some(0.058), Some(1.0), Some(9.0))), even, Some(8), Status::LimitedByGate),
        ("a quarter is late above 20", long(0.99, requests), mixed, Some(20), Status::LimitedByGate),
        ("and may be", long(0.7, requests), mixed, Some(50), Status::NotSaturated),
        // 0.75 x 50/70 = 0.54 is more than 20/40.
        ("goodput where it is highest", long(0.7, Objective::Goodput), mixed, Some(50), Status::NotSaturated),
        ("10 tokens take 0.21 s", within(limits(None, None, Some(0.2))), mixed, None, Status::NoQualifyingLevel),
    ];
    let measured = |levels: &[usize], work: fn(u64) -> (u32, u32)| -> Vec<Measured> {
        levels.iter().map(|&level| run_work(&slowing(), &full_plan(level, 100), work)).collect()
    };
    let (of_even, of_mixed) = (measured(&LEVELS, even), measured(&LEVELS, mixed));
    let decide = |measured: &[Measured], policy: &Policy| {
        let of = |one: &Measured| summarize_by(std::slice::from_ref(one), policy.slo);
        recommend(&measured.iter().map(of).collect::<Vec<_>>(), policy)
    };
    for (name, policy, work, pick, status) in cases {
        let all = if work(0) == even(0) { &of_even } else { &of_mixed };
        let decided = decide(all, &policy);
        assert_eq!((decided.recommended_concurrency, decided.status), (pick, status), "{name}: {decided:#?}");
    }
    // 0.75 x 30/50 = 0.45 is less.
    let up_to_30 = measured(&[1, 3, 8, 20, 30], mixed);
    let decided = decide(&up_to_30, &long(0.7, Objective::Goodput));
    assert_eq!((decided.recommended_concurrency, decided.status), (Some(20), Status::Ok));
    assert_eq!(decide(&up_to_30, &long(0.7, requests)).recommended_concurrency, Some(30));
    let at_30 = decided.levels.last().unwrap().summary.goodput.as_ref().unwrap();
    // 30 permits are held for 18.5 steps on average, of which 17.5 decode. Those at the end have fewer beside them, so that
    // more of the cohort is in time; the shares inside the window know nothing of that.
    let step_s = (20.0 + 30.0 * 17.5 / 18.5) / 1e3;
    let truth = 0.75 * 30.0 / (18.5 * step_s);
    assert!((at_30.rps.estimate / truth - 1.0).abs() < 0.01, "{} against {truth}", at_30.rps.estimate);
    assert!((0.75..0.79).contains(&at_30.attainment.estimate), "{:?}", at_30.attainment);
}

/// Another way to the same figure: the rate of a request is 1 / latency while it lives, and 0 else; what of it meets the
/// limits is summed up over a fine grid of times.
#[test]
fn goodput_is_what_a_sum_over_time_gives() {
    let mut rng = StdRng::seed_from_u64(7);
    let slo = Slo { ttft: Some(0.3), tpot: Some(0.05), latency: Some(2.0), attainment: 0.9 };
    let window = [10.0, 20.0];
    let outcomes: Vec<RequestOutcome> = (0..400)
        .map(|seq| {
            let (start_s, latency): (f64, f64) = (rng.random_range(6.0..21.0), rng.random_range(0.4..3.0));
            let in_cohort = (window[0]..window[1]).contains(&start_s);
            RequestOutcome {
                seq,
                phase: if in_cohort { Phase::Measured } else { Phase::Warmup },
                start_s,
                end_s: Some(start_s + latency),
                latency_s: Some(latency),
                ttft_s: (seq % 9 > 0).then(|| rng.random_range(0.1..0.35)),
                output_tokens: Some(rng.random_range(1..80)),
                failure: (seq % 7 == 0).then_some(Failure::ServerError),
                ..RequestOutcome::default()
            }
        })
        .collect();
    // Written out from the definitions, in seconds.
    let meets = |of: &&RequestOutcome| {
        let (latency, tokens) = (of.latency_s.unwrap(), of.output_tokens.unwrap());
        let Some(ttft) = of.ttft_s else { return false };
        let per_token = (latency - ttft) / f64::from(tokens.max(2) - 1);
        of.failure.is_none() && ttft <= 0.3 && latency <= 2.0 && (tokens == 1 || per_token <= 0.05)
    };
    let steps = 50_000;
    let at = |step: usize| window[0] + (step as f64 + 0.5) * 10.0 / steps as f64;
    let good: Vec<_> = outcomes.iter().filter(meets).map(|of| (of.start_s, of.latency_s.unwrap())).collect();
    let alive = |time: f64| good.iter().filter(move |(start, latency)| (*start..start + latency).contains(&time));
    let sum: f64 = (0..steps).flat_map(|step| alive(at(step)).map(|(_, latency)| 1.0 / latency)).sum();
    let measurement = Measurement { concurrency: 8, window_s: Some(window), ..Measurement::default() };
    let summary = summarize_by(&[(measurement.clone(), outcomes.iter().collect())], Some(slo));
    let goodput = summary.goodput.unwrap();
    let oracle = sum / steps as f64;
    assert!((goodput.rps.estimate / oracle - 1.0).abs() < 1e-3, "{} against {oracle}", goodput.rps.estimate);
    let cohort = || outcomes.iter().filter(|of| of.phase == Phase::Measured);
    let (met, n) = (cohort().filter(meets).count() as u64, cohort().count() as u64);
    assert!(met > 10 && met < n / 2 && summary.throughput_rps.unwrap().estimate > 1.5 * oracle);
    let [lower, upper] = wilson(met, n).unwrap();
    assert_eq!((goodput.met, goodput.attainment.estimate), (met, met as f64 / n as f64));
    assert_eq!((goodput.attainment.lower, goodput.attainment.upper), (Some(lower), Some(upper)));
    // A visit by Little's law: what its cohort met, over the time that eight permits took for it.
    let visit = Measurement { stage: Stage::Visit, ..measurement };
    let by_visit = summarize_by(&[(visit, outcomes.iter().collect())], Some(slo)).goodput.unwrap();
    let held: f64 = cohort().map(|of| of.latency_s.unwrap()).sum();
    assert!((by_visit.rps.estimate / (8.0 * met as f64 / held) - 1.0).abs() < 1e-6);
    // Where no answer has a TTFT, nothing is known of the limits; where no limit needs one, it does not matter.
    let unseen: Vec<_> = outcomes.iter().map(|of| RequestOutcome { ttft_s: None, ..of.clone() }).collect();
    let of_unseen = |slo| {
        let measurement = Measurement { concurrency: 8, window_s: Some(window), ..Measurement::default() };
        summarize_by(&[(measurement, unseen.iter().collect())], Some(slo)).goodput.is_some()
    };
    assert_eq!((of_unseen(slo), of_unseen(Slo { ttft: None, tpot: None, ..slo })), (false, true));
}

/// A race on a server with so many slots, where a share of the requests meets the SLO and tokens take a time, by level.
fn raced(
    slots: usize,
    met: impl Fn(usize) -> f64,
    tpot_s: impl Fn(usize) -> f64,
    policy: Policy,
) -> (Option<usize>, bool) {
    let mut race = Race::new(grid(1, 256), Rules::auto(policy));
    let mut evidence = Evidence::default();
    while let Some(visit) = race.next(&evidence) {
        let (level, from) = (visit.level, evidence.now_s);
        let latency = level as f64 / level.min(slots) as f64;
        let seen = |i: usize| Seen {
            start_s: from + (i / level) as f64 * latency,
            end_s: from + (i / level + 1) as f64 * latency,
            tpot_s: Some(tpot_s(level)),
            // As evenly as can be.
            meets_slo: ((i + 1) as f64 * met(level)).floor() > (i as f64 * met(level)).floor(),
            ..Seen::default()
        };
        let requests: Vec<Seen> = (0..visit.completions).map(seen).collect();
        evidence.now_s = requests.last().unwrap().end_s;
        evidence.sent += visit.completions as u64;
        evidence.visits.push(Visited {
            level,
            span_s: [from, evidence.now_s],
            requests: Box::new(move || Box::new(requests.clone().into_iter())),
        });
        assert!(evidence.visits.len() < 400, "it does not end");
    }
    (race.standing().pick, race.standing().decided)
}

#[test]
fn a_race_takes_the_limits_for_walls_and_goodput_for_what_is_maximised() {
    let slo = |attainment| Some(Slo { latency: Some(1.0), attainment, ..Slo::default() });
    let always = |_: usize| 1.0;
    for wall in [5, 24] {
        let near = |pick: Option<usize>| pick.is_some_and(|pick| pick <= wall && pick as f64 >= 0.9 * wall as f64);
        let missing = |level: usize| if level > wall { 0.9 } else { 1.0 };
        let (pick, decided) = raced(40, missing, always, Policy { slo: slo(0.99), ..Policy::default() });
        assert!(near(pick) && decided, "{wall}: {pick:?}");
        // What is allowed is no wall.
        let (pick, _) = raced(40, missing, always, Policy { slo: slo(0.8), ..Policy::default() });
        assert!(pick.is_some_and(|pick| (37..=52).contains(&pick)), "{pick:?}");
        let policy = Policy { max_tpot_p95_seconds: Some(wall as f64), ..Policy::default() };
        let (pick, decided) = raced(40, always, |level| level as f64, policy);
        assert!(near(pick) && decided, "{wall}: {pick:?}");
    }
    // Throughput rises up to 40; of it nine tenths of what comes above 20 are late. So goodput is 22 at best, at 40; from 23
    // on it is 0.92 of that, from 29 on 0.95, and 37 is 1.3 times 29.
    let late = |level: usize| if level > 20 { (20.0 + 0.1 * (level as f64 - 20.0)) / level as f64 } else { 1.0 };
    for (objective, low, high) in [(Objective::Requests, 37, 52), (Objective::Goodput, 23, 37)] {
        let policy = Policy { objective, slo: slo(0.3), ..Policy::default() };
        let (pick, _) = raced(40, late, always, policy);
        assert!(pick.is_some_and(|pick| (low..=high).contains(&pick)), "{objective:?}: {pick:?}");
    }
}
