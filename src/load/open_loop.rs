//! The open loop: requests arrive when they are due, whether others have ended or not, and wait
//! for a semaphore like that of `LlmClient`. Latency counts from the due time, so that a client
//! or a server that falls behind hides nothing (coordinated omission).
//!
//! Like the closed loop, it does no I/O itself.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::closed_loop::{Ticket, record};
use crate::client::outcome::{Phase, Reply, RequestOutcome};
use crate::figures::ArrivalsEnd;

/// Poisson arrivals at a given rate and of a given number. The gaps are scaled to match the rate
/// exactly: from a hundred arrivals alone, a rate cannot be told from one that is 10 % higher.
#[derive(Clone, Copy, Debug)]
pub struct Arrivals {
    pub rate_rps: f64,
    pub count: usize,
    /// Maximum number of requests in flight.
    pub permits: usize,
    pub seed: u64,
}

impl Arrivals {
    /// Arrival times in seconds from the start, ascending.
    pub fn due_s(&self) -> Vec<f64> {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let mut at = 0.0;
        let mut next = || {
            at -= (1.0 - rng.random::<f64>()).ln();
            at
        };
        let mut due: Vec<f64> = (0..=self.count).map(|_| next()).collect();
        let scale = self.count as f64 / self.rate_rps / due.pop().unwrap_or(1.0);
        due.iter_mut().for_each(|at| *at *= scale);
        due
    }
}

/// The result of a run, besides the record of each request.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub ending: ArrivalsEnd,
    /// Number of requests that waited for a permit when the last one arrived.
    pub backlog: usize,
    /// How late the loop handled each arrival, seconds, ascending.
    pub late_s: Vec<f64>,
}

/// Lets the requests arrive and waits for all of them to end. If the queue clearly grows, it stops early
/// and never sends what is still waiting. Setting `stop` to true also gives up the requests in flight.
pub async fn run<F: Future<Output = Reply> + Send + 'static>(
    plan: &Arrivals,
    mut stop: watch::Receiver<bool>,
    mut send: impl FnMut(u64) -> F,
    mut ended: impl FnMut(RequestOutcome),
) -> Arrived {
    let began = Instant::now();
    let mut due: VecDeque<Instant> = plan.due_s().into_iter().map(|at| began + Duration::from_secs_f64(at)).collect();
    let permits = Arc::new(Semaphore::new(plan.permits));
    let mut waiting: VecDeque<(u64, Instant)> = VecDeque::new();
    // Due and start times of the requests in flight.
    let mut open: BTreeMap<u64, [Instant; 2]> = BTreeMap::new();
    let mut in_flight: JoinSet<(u64, Instant, Reply)> = JoinSet::new();
    let mut saturation = Saturation { since: None, seconds: 0.0, ended: 0.0, latency: [0.0; 3] };
    let mut result = Arrived { ending: ArrivalsEnd::Complete, backlog: 0, late_s: Vec::new() };
    let since = |at: Instant| at.duration_since(began).as_secs_f64();
    let line = |seq: u64, [due, start]: [Instant; 2], end: Option<Instant>, reply: &Reply| {
        let phase = if seq < plan.permits as u64 { Phase::Warmup } else { Phase::Measured };
        let ticket = Ticket { seq, phase, level: plan.permits, visit: 0 };
        let due_s = Some(since(due));
        RequestOutcome { due_s, ..record(ticket, None, since(start), end.map(since), reply) }
    };
    while !due.is_empty() || !waiting.is_empty() || !in_flight.is_empty() {
        let next = due.front().copied();
        tokio::select! {
            biased;
            Ok(_) = stop.wait_for(|&stop| stop), if result.ending != ArrivalsEnd::Cut => {
                result.ending = ArrivalsEnd::Cut;
                in_flight.abort_all();
                due.clear();
                waiting.clear();
            }
            Some(joined) = in_flight.join_next() => match joined {
                Ok((seq, end, reply)) => {
                    let Some(times) = open.remove(&seq) else { continue };
                    saturation.ended(end.duration_since(times[1]).as_secs_f64(), reply.failure.is_none());
                    ended(line(seq, times, Some(end), &reply));
                    if result.ending == ArrivalsEnd::Complete && saturation.is_overload(plan) && !waiting.is_empty() {
                        result.ending = ArrivalsEnd::Overloaded;
                        result.backlog = if due.is_empty() { result.backlog } else { waiting.len() };
                        due.clear();
                        waiting.clear();
                    }
                }
                Err(error) if error.is_cancelled() => {}
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            Ok(permit) = permits.clone().acquire_owned(), if !waiting.is_empty() => {
                let Some((seq, arrived)) = waiting.pop_front() else { continue };
                let start = Instant::now();
                open.insert(seq, [arrived, start]);
                let exchange = send(seq);
                in_flight.spawn(async move {
                    let reply = exchange.await;
                    drop(permit);
                    (seq, Instant::now(), reply)
                });
            }
            () = tokio::time::sleep_until(next.unwrap_or(began)), if next.is_some() => {
                let now = Instant::now();
                while let Some(at) = due.pop_front_if(|at| *at <= now) {
                    waiting.push_back((result.late_s.len() as u64, at));
                    result.late_s.push((now - at).as_secs_f64());
                    // Arrivals beyond the free permits have to wait; the others are about to be sent.
                    result.backlog = waiting.len().saturating_sub(permits.available_permits());
                }
            }
        }
        saturation.set_full(in_flight.len() == plan.permits || waiting.len() > permits.available_permits());
    }
    for (seq, times) in open {
        ended(line(seq, times, None, &Reply::default()));
    }
    result.late_s.sort_unstable_by(f64::total_cmp);
    result
}

/// Detects overload: a server that completes requests more slowly than they arrive, beyond chance, while
/// all permits are taken will never catch up. Arrivals burstier than Poisson's would need more room.
struct Saturation {
    since: Option<Instant>,
    seconds: f64,
    ended: f64,
    /// Number of successes, sum of their latencies, and sum of the squares.
    latency: [f64; 3],
}

/// In standard errors. Checked after each request; under overload, the difference keeps growing.
const BEYOND_CHANCE: f64 = 3.0;
/// Lowest coefficient of variation assumed for latencies, since they depend on one another.
const LEAST_CV: f64 = 0.3;

impl Saturation {
    fn ended(&mut self, latency_s: f64, succeeded: bool) {
        if succeeded {
            let terms = [1.0, latency_s, latency_s * latency_s];
            self.latency.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
        }
        self.ended += f64::from(u8::from(self.since.is_some()));
    }

    fn set_full(&mut self, full: bool) {
        self.seconds += self.since.take().map_or(0.0, |since| since.elapsed().as_secs_f64());
        self.since = full.then(Instant::now);
    }

    /// Up to `permits` requests may be in flight at the end of a saturated period without being overdue.
    fn is_overload(&self, plan: &Arrivals) -> bool {
        let [n, sum, squares] = self.latency;
        let cv = if n < 10.0 { 1.0 } else { (squares * n / (sum * sum) - 1.0).max(0.0).sqrt().max(LEAST_CV) };
        let expected = plan.rate_rps * self.seconds;
        expected - self.ended - plan.permits as f64 > BEYOND_CHANCE * cv * expected.sqrt()
    }
}
