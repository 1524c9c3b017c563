//! A simulated server, and measurements of single levels as in the sweep, but without Criterion and files.

#![allow(dead_code, reason = "each user of this module takes what it needs")]

use llm_concurrency::client::Transport;
use llm_concurrency::client::outcome::RequestOutcome;
use llm_concurrency::client::{Llm, RequestSettings};
use llm_concurrency::figures::{self, LevelSummary, Limits};
use llm_concurrency::load::closed_loop::{self, LoopPlan, LoopRecord};
use llm_concurrency::load::target::Target;
use llm_concurrency::measure::plan::SAMPLES;
use llm_concurrency::prompts::{self, Prompt};
use llm_concurrency::simulator::{Simulator, SimulatorConfig};
use reqwest::Url;
use tokio::runtime::{Builder, Runtime};

/// Request timeout in seconds.
const TIMEOUT_S: f64 = 30.0;

/// Distinct prompts from the generator.
pub fn prompts(count: usize) -> Vec<Prompt> {
    let snippets = prompts::generate(42, count).snippets.into_iter();
    snippets
        .map(|snippet| Prompt {
            text: snippet.prompt(),
            id: snippet.id,
            size: snippet.size.to_owned(),
            ..Prompt::default()
        })
        .collect()
}

/// The sweep's plan for a level with at least `total` measured requests.
pub fn plan(level: usize, total: usize) -> LoopPlan {
    LoopPlan::new(level, total, 5, SAMPLES, level)
}

/// A server with a client, which runs on a single-threaded runtime as in the sweep.
pub struct Rig {
    pub simulator: Simulator,
    pub target: Target,
    pub runtime: Runtime,
}

/// Results of one level.
pub struct Measured {
    pub record: LoopRecord,
    pub outcomes: Vec<RequestOutcome>,
    pub summary: LevelSummary,
}

impl Rig {
    pub fn start(config: SimulatorConfig, prompts: &[Prompt], request: &RequestSettings) -> Self {
        let simulator = Simulator::start(config, 0).expect("a free port on loopback");
        let target = target(&simulator.base_url(), prompts, request);
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        Rig { simulator, target, runtime }
    }

    pub fn measure(&self, plan: &LoopPlan) -> Measured {
        measure(&self.runtime, &self.target, plan)
    }
}

pub fn target(base_url: &str, prompts: &[Prompt], request: &RequestSettings) -> Target {
    let url = Url::parse(base_url).expect("a URL");
    let llm = Llm { request_timeout: TIMEOUT_S, ..Llm::default() };
    let transport = Transport::new(&url, request.kind, &llm, None).expect("a client for plain HTTP");
    Target::new(transport, "simulated", request, prompts, "truth")
}

pub fn measure(runtime: &Runtime, target: &Target, plan: &LoopPlan) -> Measured {
    let (_keep, stop) = tokio::sync::watch::channel(false);
    let mut outcomes = Vec::new();
    let send = |ticket: closed_loop::Ticket| target.send(plan.level, ticket.seq);
    let record = runtime.block_on(closed_loop::run(plan, stop, send, &mut outcomes));
    let level = [(&record.measurement(plan.level), &outcomes.iter().collect())];
    let summary =
        figures::summarize(&level, Limits { request_timeout_s: TIMEOUT_S, max_error_rate: 0.05, ..Limits::default() });
    Measured { record, outcomes, summary }
}

impl Measured {
    /// Successes per second.
    pub fn rps(&self) -> f64 {
        self.summary.throughput_rps.expect("a window of some length").estimate
    }
}

/// The median of an odd number of values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
