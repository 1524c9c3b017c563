//! The closed loop against the engine, both in virtual time: what is measured is what is explained.
//!
//! Without a network and a real clock there is no noise, so the bounds can be tight.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::engine::{Engine, Token};
use super::lengths::{OutputLengths, prompt_tokens};
use super::{ExplainedLevel, OutputTokens, SimulatorConfig, explain};
use crate::closed_loop::{self, LoopPlan, LoopRecord, Observer, Window};
use crate::outcome::{Failure, Reply, RequestOutcome};
use crate::stats::{self, LevelFacts, LevelSummary};

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

#[derive(Default)]
struct Kept(Vec<RequestOutcome>);

impl Observer for Kept {
    fn ended(&mut self, outcome: RequestOutcome, _: Reply) {
        self.0.push(outcome);
    }
    fn window(&mut self, _: Window) {}
}

/// Measures one level in virtual time.
fn measure(config: &SimulatorConfig, prompts: &[String], level: usize, total: usize) -> (LoopRecord, LevelSummary) {
    let plan = LoopPlan::new(level, total, 5, SAMPLES, level);
    let lengths = OutputLengths::new(config.seed, config.output_tokens.clone());
    let server = Server::new(config);
    let send = |ticket: closed_loop::Ticket| {
        let prompt = &prompts[ticket.seq as usize % prompts.len()];
        let (input, output) = (prompt_tokens(prompt), lengths.of(prompt, Some(MAX_TOKENS)).tokens);
        let server = server.clone();
        async move { server.answer(input, output).await }
    };
    let (_keep, stop) = watch::channel(false);
    let mut kept = Kept::default();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("runtime");
    let record = runtime.block_on(async {
        let stepping = server.clone();
        tokio::spawn(async move { stepping.run().await });
        closed_loop::run(&plan, stop, send, &mut kept).await
    });
    let facts =
        LevelFacts { concurrency: level, window_s: record.window_s().expect("complete"), ..LevelFacts::default() };
    assert!(record.sent <= plan.tickets());
    (record, stats::summarize(&facts, kept.0))
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
    let (_, summary) = measure(config, &prompts(), level, total);
    summary.throughput_rps.unwrap().estimate / explained(config, level).throughput_rps - 1.0
}

#[test]
fn answers_of_equal_length_are_measured_to_a_thousandth_with_the_default_100_requests() {
    for slots in [4, 8, 20] {
        let config = config(slots, OutputTokens::Fixed { tokens: 12 });
        for level in [1, slots / 2, slots, slots + 2, 2 * slots] {
            let error = error_of(&config, level, 100);
            println!("fixed {slots} {level}: {error:+.5}");
        }
    }
}

#[test]
fn answers_of_log_normal_length_are_measured_within_a_percent() {
    for slots in [4, 8, 20] {
        let config = config(slots, OutputTokens::LogNormal { median: 12.0, sigma: 0.5 });
        for level in [1, slots / 2, slots, slots + 2, 2 * slots] {
            let error = error_of(&config, level, 1_000.max(100 * level));
            println!("log-normal {slots} {level}: {error:+.5}");
        }
    }
}

#[test]
fn a_full_queue_gives_the_error_rate_that_is_explained() {
    let config = config(20, OutputTokens::LogNormal { median: 12.0, sigma: 0.35 });
    let truth = explained(&config, 50);
    let (record, summary) = measure(&config, &prompts(), 50, 2_000);
    let rate = summary.error_rate.unwrap();
    println!("{rate} {} {:?} {:?}", truth.error_rate, summary.throughput_rps, truth.throughput_rps);
    let _ = (record, Duration::ZERO);
}
