//! Servers whose true throughput is known, in virtual time, and one measurement of them as the sweep makes it.

#![allow(dead_code, reason = "each user of this module takes what it needs")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use llm_concurrency::client::outcome::{Failure, Reply, RequestOutcome};
use llm_concurrency::decide::Policy;
use llm_concurrency::figures::{LevelSummary, Limits, Measurement, Requests, Sample, summarize};
use llm_concurrency::load::closed_loop::{self, LoopPlan};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Mean service time at a speed of 1. Long beside tokio's millisecond, below which it knows nothing.
const SERVICE_MS: f64 = 1_000.0;
/// How soon a full queue refuses.
const REFUSAL_MS: f64 = 1.0;

/// What decides the throughput.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// So many requests are served at once, the next `queue` wait in line, and more are refused.
    Knee { slots: usize, queue: usize },
    /// Latency grows with the level as it must for this throughput, in units of one request at a time.
    Curve(fn(usize) -> f64),
}

/// A server with i.i.d. log-normal service times.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub shape: Shape,
    /// Standard deviation of the logarithm of a service time; 0 for equal ones.
    pub sigma: f64,
}

impl Server {
    pub fn knee(slots: usize, sigma: f64) -> Self {
        Server { shape: Shape::Knee { slots, queue: usize::MAX / 2 }, sigma }
    }

    /// Successes per second at a speed of 1, in the long run: by Little's law, since service times are i.i.d.
    pub fn true_rps(&self, level: usize) -> f64 {
        let in_parallel = match self.shape {
            Shape::Knee { slots, .. } => level.min(slots) as f64,
            Shape::Curve(throughput) => throughput(level),
        };
        in_parallel * 1_000.0 / SERVICE_MS
    }

    /// Whether it refuses requests at this level.
    pub fn refuses(&self, level: usize) -> bool {
        matches!(self.shape, Shape::Knee { slots, queue } if level > slots + queue)
    }

    /// The true throughput of the best level that refuses nothing.
    pub fn best_rps(&self, levels: &[usize]) -> f64 {
        let serving = levels.iter().filter(|&&level| !self.refuses(level));
        serving.map(|&level| self.true_rps(level)).fold(0.0, f64::max)
    }

    /// What a request takes that is served alone, at `level` in flight.
    fn mean_service_ms(&self, level: usize) -> f64 {
        match self.shape {
            Shape::Knee { .. } => SERVICE_MS,
            Shape::Curve(throughput) => SERVICE_MS * level as f64 / throughput(level),
        }
    }
}

/// One measurement with its requests.
pub struct Measured {
    pub sent: u64,
    pub measurement: Measurement,
    pub requests: Requests,
}

/// A server at one level and one speed, ready to be sent to.
pub struct Busy {
    slots: Arc<Semaphore>,
    /// Requests inside, and how many there may be.
    inside: Arc<AtomicUsize>,
    capacity: usize,
    median_ms: f64,
    sigma: f64,
    rng: StdRng,
}

impl Busy {
    /// `speed` multiplies the throughput: what differs from one run to the next.
    pub fn new(server: &Server, level: usize, speed: f64, seed: u64) -> Self {
        let (slots, capacity) = match server.shape {
            Shape::Knee { slots, queue } => (slots, slots + queue),
            Shape::Curve(_) => (level, level),
        };
        let mean_ms = server.mean_service_ms(level) / speed;
        Busy {
            slots: Arc::new(Semaphore::new(slots)),
            inside: Arc::default(),
            capacity,
            // The mean of a log-normal is its median times exp(sigma^2 / 2).
            median_ms: mean_ms / (server.sigma * server.sigma / 2.0).exp(),
            sigma: server.sigma,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    pub fn send(&mut self) -> impl Future<Output = Reply> + Send + use<> {
        let service = milliseconds(self.median_ms * (self.sigma * standard_normal(&mut self.rng)).exp());
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

/// In whole milliseconds, which tokio's timer keeps exactly.
fn milliseconds(ms: f64) -> Duration {
    Duration::from_millis(ms.round() as u64)
}

/// One standard normal number (Box and Muller 1958).
pub fn standard_normal(rng: &mut StdRng) -> f64 {
    // 1 - u lies in (0, 1], so that the logarithm is finite.
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// Time that stands still while anything can run, and else jumps to the next timer.
pub fn virtual_time() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

/// One level, by the closed loop of the sweep.
pub fn measure(runtime: &Runtime, plan: &LoopPlan, mut busy: Busy) -> Measured {
    measure_by(runtime, plan, move |_| busy.send())
}

/// The same with whatever sends the requests.
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

/// The same requests in batches that wait for their own last one: seconds and successes of each batch.
pub fn measure_with_barrier(runtime: &Runtime, plan: &LoopPlan, mut busy: Busy) -> Vec<Sample> {
    let batches = plan.measured.div_ceil(plan.level);
    runtime.block_on(async {
        let mut samples = Vec::with_capacity(batches);
        for _ in 0..=batches {
            let began = tokio::time::Instant::now();
            let mut batch: JoinSet<Reply> = (0..plan.level).map(|_| busy.send()).collect();
            let mut succeeded = 0;
            while let Some(reply) = batch.join_next().await {
                succeeded += u64::from(reply.is_ok_and(|reply| reply.failure.is_none()));
            }
            let duration_s = began.elapsed().as_secs_f64();
            samples.push(Sample { duration_s, completed: plan.level as u64, succeeded });
        }
        // The first one is the warm-up.
        samples.split_off(1)
    })
}

/// All measurements of one level, pooled as the sweep does it.
pub fn pooled(measurements: &[Measured]) -> LevelSummary {
    let level: Vec<_> = measurements.iter().map(|measured| (&measured.measurement, &measured.requests)).collect();
    summarize(
        &level,
        Limits { request_timeout_s: 1e6, max_error_rate: Policy::default().max_error_rate, ..Limits::default() },
    )
}
