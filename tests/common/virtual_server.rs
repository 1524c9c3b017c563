//! Servers with known true throughput in virtual time, and measurements of them as in the sweep.

#![allow(dead_code, reason = "each user of this module takes what it needs")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use llm_concurrency::client::outcome::{Failure, Reply, RequestOutcome};
use llm_concurrency::decide::{Policy, Raced, Recommendation, recommend_after};
use llm_concurrency::figures::{LevelSummary, Limits, Measurement, Requests, Sample, Stage, summarize};
use llm_concurrency::load::closed_loop::{self, LoopPlan, LoopRecord, Observer, Ticket, Window};
use llm_concurrency::measure::evidence::evidence;
use llm_concurrency::measure::plan::SAMPLES;
use llm_concurrency::measure::race::{Evidence, Race, Rules, Visit};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Mean service time at a speed of 1. Long compared with a millisecond, the resolution of tokio's timer.
const SERVICE_MS: f64 = 1_000.0;
/// Latency of a refusal when the queue is full.
const REFUSAL_MS: f64 = 1.0;

/// The factor that limits the throughput.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Up to `slots` requests are served at once, up to `queue` more wait, and any further ones are refused.
    Knee { slots: usize, queue: usize },
    /// Latency grows with the level so as to give this throughput, relative to that of one request at a time.
    Curve(fn(usize) -> f64),
}

/// A server with i.i.d. log-normal service times.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub shape: Shape,
    /// Standard deviation of the logarithm of a service time; 0 for constant service times.
    pub sigma: f64,
}

impl Server {
    pub fn knee(slots: usize, sigma: f64) -> Self {
        Server { shape: Shape::Knee { slots, queue: usize::MAX / 2 }, sigma }
    }

    /// Long-run successes per second at a speed of 1, by Little's law, since service times are i.i.d.
    pub fn true_rps(&self, level: usize) -> f64 {
        let in_parallel = match self.shape {
            Shape::Knee { slots, .. } => level.min(slots) as f64,
            Shape::Curve(throughput) => throughput(level),
        };
        in_parallel * 1_000.0 / SERVICE_MS
    }

    /// Whether the server refuses requests at this level.
    pub fn refuses(&self, level: usize) -> bool {
        matches!(self.shape, Shape::Knee { slots, queue } if level > slots + queue)
    }

    /// The best true throughput among the levels without refusals.
    pub fn best_rps(&self, levels: &[usize]) -> f64 {
        let serving = levels.iter().filter(|&&level| !self.refuses(level));
        serving.map(|&level| self.true_rps(level)).fold(0.0, f64::max)
    }

    /// Mean time in service, without queueing, with `level` requests in flight.
    fn mean_service_ms(&self, level: usize) -> f64 {
        match self.shape {
            Shape::Knee { .. } => SERVICE_MS,
            Shape::Curve(throughput) => SERVICE_MS * level as f64 / throughput(level),
        }
    }
}

/// A measurement with its requests.
#[derive(Default)]
pub struct Measured {
    pub sent: u64,
    pub measurement: Measurement,
    pub requests: Requests,
}

/// How a server's speed changes during a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Noise {
    /// Coefficient of variation of the speed, which is drawn independently every ten service times.
    pub cv: f64,
    /// Share of its speed that the server loses per hundred service times.
    pub slows_by: f64,
    pub seed: u64,
}

impl Noise {
    fn speed(&self, at: Duration) -> f64 {
        let mut rng = StdRng::seed_from_u64(self.seed.wrapping_mul(1_000_003) + at.as_secs() / 10);
        let variance = (1.0 + self.cv * self.cv).ln();
        let drift = (1.0 - self.slows_by).powf(at.as_secs_f64() / 100.0);
        drift * (variance.sqrt() * standard_normal(&mut rng) - variance / 2.0).exp()
    }
}

/// A server in operation, at a fixed level and speed or for a whole run.
pub struct Busy {
    server: Server,
    /// Start of the run and the noise, if the speed changes.
    changes: Option<(Instant, Noise)>,
    speed: f64,
    slots: Arc<Semaphore>,
    /// Number of requests in service or waiting, and its maximum.
    inside: Arc<AtomicUsize>,
    capacity: usize,
    rng: StdRng,
}

impl Busy {
    /// `speed` multiplies the throughput; it stands for the variation between runs.
    pub fn new(server: &Server, level: usize, speed: f64, seed: u64) -> Self {
        let (slots, capacity) = match server.shape {
            Shape::Knee { slots, queue } => (slots, slots + queue),
            Shape::Curve(_) => (level, level),
        };
        Busy {
            server: *server,
            changes: None,
            speed,
            slots: Arc::new(Semaphore::new(slots)),
            inside: Arc::default(),
            capacity,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// For a whole run, in which the level and the speed change. Must be called inside the runtime.
    pub fn changing(server: &Server, speed: f64, noise: Noise) -> Self {
        Busy { changes: Some((Instant::now(), noise)), ..Busy::new(server, 1 << 20, speed, noise.seed) }
    }

    pub fn send(&mut self, level: usize) -> impl Future<Output = Reply> + Send + use<> {
        let changed = self.changes.map_or(1.0, |(since, noise)| noise.speed(since.elapsed()));
        let sigma = self.server.sigma;
        // The mean of a log-normal is its median times exp(sigma^2 / 2).
        let median_ms = self.server.mean_service_ms(level) / (self.speed * changed) / (sigma * sigma / 2.0).exp();
        let service = milliseconds(median_ms * (sigma * standard_normal(&mut self.rng)).exp());
        let (slots, inside, capacity) = (self.slots.clone(), self.inside.clone(), self.capacity);
        async move {
            if inside.fetch_add(1, Relaxed) >= capacity {
                inside.fetch_sub(1, Relaxed);
                tokio::time::sleep(milliseconds(REFUSAL_MS)).await;
                return Reply::failed(Failure::ServerError, "full");
            }
            let slot = slots.acquire().await.expect("nobody closes it");
            tokio::time::sleep(service).await;
            drop(slot);
            inside.fetch_sub(1, Relaxed);
            Reply::default()
        }
    }
}

/// Rounds to whole milliseconds, which tokio's timer keeps exactly.
fn milliseconds(ms: f64) -> Duration {
    Duration::from_millis(ms.round() as u64)
}

/// One standard normal number (Box and Muller 1958).
pub fn standard_normal(rng: &mut StdRng) -> f64 {
    // 1 - u is in (0, 1], so the logarithm is finite.
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// A runtime whose time stands still while any task can run, and otherwise jumps to the next timer.
pub fn virtual_time() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

/// Measures one level with the closed loop of the sweep.
pub fn measure(runtime: &Runtime, plan: &LoopPlan, mut busy: Busy) -> Measured {
    measure_by(runtime, plan, move |ticket| busy.send(ticket.level))
}

/// Like [`measure`], but requests are sent by `send`.
pub fn measure_by<F: Future<Output = Reply> + Send + 'static>(
    runtime: &Runtime,
    plan: &LoopPlan,
    send: impl FnMut(closed_loop::Ticket) -> F,
) -> Measured {
    let (_keep, stop) = watch::channel(false);
    let mut outcomes: Vec<RequestOutcome> = Vec::new();
    let record = runtime.block_on(closed_loop::run(plan, stop, send, &mut outcomes));
    let measurement = record.measurement(plan.level);
    Measured { sent: record.sent, measurement, requests: outcomes.iter().collect() }
}

/// Sends the same requests in batches, each of which waits for its last request. Returns a sample per batch.
pub fn measure_with_barrier(runtime: &Runtime, plan: &LoopPlan, mut busy: Busy) -> Vec<Sample> {
    let batches = plan.measured.div_ceil(plan.level);
    runtime.block_on(async {
        let mut samples = Vec::with_capacity(batches);
        for _ in 0..=batches {
            let began = Instant::now();
            let mut batch: JoinSet<Reply> = (0..plan.level).map(|_| busy.send(plan.level)).collect();
            let mut succeeded = 0;
            while let Some(reply) = batch.join_next().await {
                succeeded += u64::from(reply.is_ok_and(|reply| reply.failure.is_none()));
            }
            let duration_s = began.elapsed().as_secs_f64();
            samples.push(Sample { duration_s, completed: plan.level as u64, succeeded });
        }
        // The first batch is the warm-up.
        samples.split_off(1)
    })
}

fn limits() -> Limits {
    Limits { request_timeout_s: 1e6, max_error_rate: Policy::default().max_error_rate, ..Limits::default() }
}

/// Pools all measurements of one level as the sweep does.
pub fn pooled(measurements: &[Measured]) -> LevelSummary {
    let level: Vec<_> = measurements.iter().map(|measured| (&measured.measurement, &measured.requests)).collect();
    summarize(&level, limits())
}

/// A run as in `measure::sweep`: first levels in full, then the visits of a race.
#[derive(Default)]
pub struct Ran {
    pub made: Vec<Measured>,
    pub standing: Option<Raced>,
}

impl Ran {
    pub fn sent(&self) -> u64 {
        self.made.iter().map(|made| made.requests.len() as u64).sum()
    }

    fn evidence(&self) -> Evidence<'_> {
        let made = self.made.iter().map(|made| (&made.measurement, &made.requests)).collect();
        evidence(made, self.sent(), limits())
    }

    /// The figures in ascending order of level.
    pub fn summaries(&self) -> Vec<LevelSummary> {
        let mut levels: Vec<usize> = self.made.iter().map(|made| made.measurement.concurrency).collect();
        levels.sort_unstable();
        levels.dedup();
        let of = |level: usize| self.made.iter().filter(move |made| made.measurement.concurrency == level);
        let limits = Limits { warm_from_s: self.standing.map_or(0.0, |standing| standing.warm_from_s), ..limits() };
        let summary = |level| {
            let of_level: Vec<_> = of(level).map(|made| (&made.measurement, &made.requests)).collect();
            summarize(&of_level, limits)
        };
        levels.into_iter().map(summary).collect()
    }

    pub fn decided(&self) -> Recommendation {
        recommend_after(self.standing.as_ref(), &self.summaries(), &Policy::default())
    }
}

/// Measures the levels of `full` in full, then races to choose among `choices`.
pub fn race<F: Future<Output = Reply> + Send + 'static>(
    runtime: &Runtime,
    full: &[LoopPlan],
    choices: &[usize],
    rules: Rules,
    mut send: impl FnMut(Ticket) -> F,
) -> Ran {
    let now = || runtime.block_on(async { Instant::now() });
    let began = now();
    let mut ran = Ran::default();
    for plan in full {
        let began_s = now().duration_since(began).as_secs_f64();
        let mut made = measure_by(runtime, plan, &mut send);
        made.measurement.began_s = began_s;
        ran.made.push(made);
    }
    let mut race = Race::new(choices.to_vec(), rules);
    let first = race.next(&ran.evidence());
    if let Some(first) = first {
        let (to, orders) = mpsc::channel(1);
        let began_s = now().duration_since(began).as_secs_f64();
        let mut driver = Driver { race: &mut race, ran: &mut ran, before: full.len(), began_s, to: Some(to) };
        let (_keep, stop) = watch::channel(false);
        runtime.block_on(closed_loop::visits(&plan_of(first), orders, stop, send, &mut driver));
    }
    ran.standing = Some(race.standing());
    ran
}

fn plan_of(visit: Visit) -> LoopPlan {
    LoopPlan::visit(visit.level, visit.completions, SAMPLES)
}

/// Orders the next visit when a visit ends.
struct Driver<'a> {
    race: &'a mut Race,
    ran: &'a mut Ran,
    /// Number of measurements before the loop of visits, and the start of that loop in seconds since the run began.
    before: usize,
    began_s: f64,
    to: Option<mpsc::Sender<LoopPlan>>,
}

impl Observer for Driver<'_> {
    fn begins(&mut self, _: &LoopPlan, _: u32) {
        self.ran.made.push(Measured::default());
    }

    fn ended(&mut self, outcome: RequestOutcome, _: Reply) {
        let at = self.before + outcome.visit.unwrap_or_default() as usize;
        let requests = &mut self.ran.made[at].requests;
        requests.in_flight_s.retain(|start_s| *start_s != outcome.start_s);
        requests.push(&outcome);
    }

    fn window(&mut self, _: Window) {}

    fn visited(&mut self, level: usize, visit: u32, record: LoopRecord, in_flight_s: Vec<f64>) {
        let at = self.before + visit as usize;
        let (stage, round, began_s) = (Stage::Visit, visit + 1, self.began_s);
        self.ran.made[at].measurement = Measurement { stage, round, began_s, ..record.measurement(level) };
        self.ran.made[at].requests.in_flight_s = in_flight_s;
        let next = self.race.next(&self.ran.evidence());
        let sent = next.zip(self.to.as_ref()).map(|(visit, to)| to.try_send(plan_of(visit)));
        if !matches!(sent, Some(Ok(()))) {
            self.to = None;
        }
    }
}
