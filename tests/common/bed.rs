//! A server in simulated time whose speed varies as real servers' speeds do, and a closed loop in front of it. It is an
//! event-driven simulation without a runtime, so that thousands of sweeps take minutes.
//!
//! The unit of time is the service time, the mean latency of a request that is alone. All requests in service progress
//! at the same rate, which depends on their number (processor sharing; requests beyond the slots queue), times the
//! server's current speed. The speed is a process in time that continues across visits and is independent of them, so
//! that many short visits have no advantage that they would not have with a real server.

#![allow(dead_code, reason = "each user of this module takes what it needs")]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use llm_concurrency::decide::Raced;
use llm_concurrency::measure::race::{Evidence, Race, Seen, Visited};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Latency of a refusal.
const REFUSAL_S: f64 = 0.001;
/// Longest hold, see `LONGEST_HOLD` of the closed loop.
const LONGEST_HOLD_S: f64 = 1.0;
/// Mean number of tokens per answer.
const TOKENS: f64 = 200.0;
/// Share of a service time that does not depend on the length of the answer.
const FIXED_SHARE: f64 = 0.1;

/// The distribution of a request's cost to the server, in service times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lengths {
    /// Log-normal lengths with coefficient of variation `cv`. The time is linear in them, times a log-normal residual.
    Tokens { cv: f64, residual: f64 },
    /// A fixed length.
    Fixed { residual: f64 },
    /// Log-normal service times with this sigma. The server reports no tokens.
    Unreported { sigma: f64 },
}

/// The properties of a server, without its speed over time.
#[derive(Clone, Debug)]
pub struct Server {
    pub name: String,
    /// Throughput per service time with 1, 2, 3, … requests in service.
    pub throughput: Vec<f64>,
    /// Maximum number of requests in service; further ones wait.
    pub slots: usize,
    /// Maximum number of requests in service or waiting; further ones are refused.
    pub capacity: usize,
    /// Error rate with 1, 2, 3, … requests in flight; empty for no errors.
    pub errors: Vec<f64>,
    pub lengths: Lengths,
}

/// Highest level for which curves are tabulated.
pub const HIGHEST: usize = 2_048;
pub const TOKENS_AND_RESIDUAL: Lengths = Lengths::Tokens { cv: 0.8, residual: 0.15 };

impl Server {
    pub fn curve(name: &str, throughput: impl Fn(f64) -> f64) -> Self {
        Server {
            name: name.to_owned(),
            throughput: (1..=HIGHEST).map(|n| throughput(n as f64)).collect(),
            slots: HIGHEST,
            capacity: usize::MAX,
            errors: Vec::new(),
            lengths: TOKENS_AND_RESIDUAL,
        }
    }

    pub fn knee(name: &str, slots: usize) -> Self {
        Server { slots, ..Server::curve(name, |n| n) }
    }

    /// Long-run successes per service time with this level in flight, by Little's law.
    pub fn rps(&self, level: usize) -> f64 {
        self.throughput[level.min(self.slots).min(self.capacity).min(HIGHEST) - 1]
    }

    /// Mean latency at a level, in service times.
    pub fn latency(&self, level: usize) -> f64 {
        level as f64 / self.rps(level)
    }

    pub fn error_rate(&self, level: usize) -> f64 {
        if level > self.capacity {
            return (level - self.capacity) as f64 / level as f64;
        }
        self.errors.get(level - 1).or(self.errors.last()).copied().unwrap_or(0.0)
    }

    /// Whether a level cannot count as the best: at least 4 % of its requests fail (below the default gate of 5 %, it
    /// may still be chosen), or its latency is more than five service times.
    pub fn fails(&self, level: usize) -> bool {
        self.error_rate(level) >= 0.04 || self.latency(level) > 5.0
    }

    /// The best throughput among the levels that do not fail.
    pub fn best(&self, levels: impl Iterator<Item = usize>) -> f64 {
        levels.filter(|&level| !self.fails(level)).map(|level| self.rps(level)).fold(0.0, f64::max)
    }
}

/// How a server's speed changes over time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// Coefficient of variation of the speed.
    pub cv: f64,
    /// Correlation time of an AR(1) process. 0: an independent speed every ten service times, the duration of a
    /// measurement of ten waves.
    pub correlation: f64,
    /// Speed that is lost over the first 200 service times in equal steps, as a share of the mean speed.
    pub drift: f64,
    /// A neighbour takes a third of the server for 20 to 60 service times, starting within the first 150.
    pub neighbour: bool,
    /// The server is 30 % slower for the first 30 service times.
    pub cold: bool,
}

impl Noise {
    pub const fn independent(cv: f64) -> Self {
        Noise { cv, correlation: 0.0, drift: 0.0, neighbour: false, cold: false }
    }

    pub const fn correlated(cv: f64, correlation: f64) -> Self {
        Noise { correlation, ..Noise::independent(cv) }
    }
}

/// The current speed, which is constant for one service time at a time.
struct Speed {
    noise: Noise,
    rng: StdRng,
    state: f64,
    until: f64,
    neighbour: [f64; 2],
    now: f64,
}

const DRIFT_OVER: f64 = 200.0;
const INDEPENDENT_FOR: u64 = 10;

impl Speed {
    fn new(noise: Noise, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let from = rng.random_range(0.0..150.0);
        let neighbour = [from, from + rng.random_range(20.0..60.0)];
        let state = standard_normal(&mut rng);
        let mut speed = Speed { noise, rng, state, until: 0.0, neighbour, now: 1.0 };
        speed.advance();
        speed
    }

    fn advance(&mut self) {
        let (at, noise) = (self.until, self.noise);
        if noise.correlation > 0.0 {
            let kept = (-1.0 / noise.correlation).exp();
            self.state = kept * self.state + (1.0 - kept * kept).sqrt() * standard_normal(&mut self.rng);
        } else if (at as u64).is_multiple_of(INDEPENDENT_FOR) {
            self.state = standard_normal(&mut self.rng);
        }
        let variance = (1.0 + noise.cv * noise.cv).ln();
        let mut now = (variance.sqrt() * self.state - variance / 2.0).exp();
        now *= 1.0 + noise.drift * (0.5 - (at / DRIFT_OVER).min(1.0));
        if noise.neighbour && (self.neighbour[0]..self.neighbour[1]).contains(&at) {
            now *= 2.0 / 3.0;
        }
        if noise.cold && at < 30.0 {
            now *= 0.7;
        }
        self.now = now;
        self.until += 1.0;
    }
}

/// One standard normal number (Box and Muller 1958).
pub fn standard_normal(rng: &mut StdRng) -> f64 {
    // 1 - u is in (0, 1], so the logarithm is finite.
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// A request, in flight (`end_s` is NaN) or ended.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub start_s: f64,
    pub end_s: f64,
    pub tokens: u32,
    pub refused: bool,
    pub held_s: f64,
    work: f64,
}

impl Request {
    /// The share of the request's duration that is inside the window.
    pub fn share(&self, [from, to]: [f64; 2]) -> f64 {
        let inside = self.end_s.min(to) - self.start_s.max(from);
        if inside > 0.0 { inside / (self.end_s - self.start_s) } else { 0.0 }
    }
}

#[derive(Clone, Copy)]
struct At(f64);

impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// A run: a server, and a closed loop whose level may change at any time.
pub struct Run<'a> {
    pub server: &'a Server,
    speed: Speed,
    rng: StdRng,
    pub now_s: f64,
    /// Service that a request in service since the start of the run would have received.
    attained: f64,
    serving: BinaryHeap<Reverse<(At, usize)>>,
    waiting: VecDeque<usize>,
    /// Pending refusals (the index of the request) and ends of holds (`None`).
    timers: BinaryHeap<Reverse<(At, Option<usize>)>>,
    refusing: usize,
    held: usize,
    /// All requests that were sent, in order.
    pub requests: Vec<Request>,
    pub level: usize,
    pub tokens: u64,
    recent: VecDeque<f64>,
    lengths: (f64, f64),
}

impl<'a> Run<'a> {
    pub fn new(server: &'a Server, noise: Noise, seed: u64) -> Self {
        let lengths = match server.lengths {
            Lengths::Tokens { cv, residual } => (log_sigma(cv), log_sigma(residual)),
            Lengths::Fixed { residual } => (0.0, log_sigma(residual)),
            Lengths::Unreported { sigma } => (0.0, sigma),
        };
        Run {
            server,
            speed: Speed::new(noise, seed.wrapping_mul(2).wrapping_add(1)),
            rng: StdRng::seed_from_u64(seed.wrapping_mul(2)),
            now_s: 0.0,
            attained: 0.0,
            serving: BinaryHeap::new(),
            waiting: VecDeque::new(),
            timers: BinaryHeap::new(),
            refusing: 0,
            held: 0,
            requests: Vec::new(),
            level: 0,
            tokens: 0,
            recent: VecDeque::new(),
            lengths,
        }
    }

    pub fn in_flight(&self) -> usize {
        self.serving.len() + self.waiting.len() + self.refusing
    }

    /// Sends a request for each free permit.
    pub fn fill(&mut self) {
        while self.taken() < self.level {
            self.send();
        }
    }

    /// Number of permits that requests hold or that are held back.
    pub fn taken(&self) -> usize {
        self.in_flight() + self.held
    }

    /// Advances until a request ends and returns its index; `None` if nothing is in flight or held.
    pub fn next_end(&mut self) -> Option<usize> {
        loop {
            self.fill();
            let served = self.serving.len();
            let rate =
                if served > 0 { self.server.throughput[served - 1] / served as f64 * self.speed.now } else { 1.0 };
            let done = self
                .serving
                .peek()
                .map_or(f64::INFINITY, |Reverse((at, _))| self.now_s + (at.0 - self.attained).max(0.0) / rate);
            let timer = self.timers.peek().map_or(f64::INFINITY, |Reverse((at, _))| at.0);
            let next = done.min(timer);
            if next == f64::INFINITY {
                return None;
            }
            let to = next.min(self.speed.until).max(self.now_s);
            self.attained += rate * (to - self.now_s);
            self.now_s = to;
            if self.speed.until < next {
                self.speed.advance();
            } else if done <= timer {
                let Reverse((_, seq)) = self.serving.pop()?;
                if let Some(next) = self.waiting.pop_front() {
                    self.serve(next);
                }
                self.ended(seq);
                return Some(seq);
            } else {
                match self.timers.pop()?.0.1 {
                    Some(seq) => {
                        self.refusing -= 1;
                        self.ended(seq);
                        return Some(seq);
                    }
                    None => self.held -= 1,
                }
            }
        }
    }

    fn ended(&mut self, seq: usize) {
        let now = self.now_s;
        let request = &mut self.requests[seq];
        request.end_s = now;
        let latency = now - request.start_s;
        if request.refused {
            request.held_s = (median(&self.recent).unwrap_or(LONGEST_HOLD_S).min(LONGEST_HOLD_S) - latency).max(0.0);
            self.held += 1;
            self.timers.push(Reverse((At(now + request.held_s), None)));
            return;
        }
        self.tokens += u64::from(request.tokens);
        if self.server.capacity < usize::MAX || !self.server.errors.is_empty() {
            self.recent.push_back(latency);
            if self.recent.len() > 64 {
                self.recent.pop_front();
            }
        }
    }

    fn send(&mut self) {
        let seq = self.requests.len();
        let (length, residual) = self.lengths;
        let mut of_mean_1 = |sigma: f64| {
            if sigma > 0.0 { (sigma * standard_normal(&mut self.rng) - sigma * sigma / 2.0).exp() } else { 1.0 }
        };
        let (length, residual) = (of_mean_1(length), of_mean_1(residual));
        let tokens = (TOKENS * length).round().max(1.0);
        let work = (FIXED_SHARE + (1.0 - FIXED_SHARE) * tokens / TOKENS) * residual;
        let errors = if self.server.errors.is_empty() { 0.0 } else { self.server.error_rate(self.level) };
        let inside = self.serving.len() + self.waiting.len();
        let refused = inside >= self.server.capacity || (errors > 0.0 && self.rng.random::<f64>() < errors);
        self.requests.push(Request {
            start_s: self.now_s,
            end_s: f64::NAN,
            tokens: if refused { 0 } else { tokens as u32 },
            refused,
            held_s: 0.0,
            work,
        });
        if refused {
            self.refusing += 1;
            self.timers.push(Reverse((At(self.now_s + REFUSAL_S), Some(seq))));
        } else if self.serving.len() < self.server.slots {
            self.serve(seq);
        } else {
            self.waiting.push_back(seq);
        }
    }

    fn serve(&mut self, seq: usize) {
        self.serving.push(Reverse((At(self.attained + self.requests[seq].work), seq)));
    }

    /// Whether the server reports the lengths of its answers.
    pub fn reports_tokens(&self) -> bool {
        !matches!(self.server.lengths, Lengths::Unreported { .. })
    }

    /// A full measurement as in the sweep: `warmup` completions, `samples` windows of `window` completions each, and
    /// then the completion of everything in flight.
    pub fn measurement(&mut self, level: usize, warmup: usize, window: usize, samples: usize) -> Measurement {
        let first = self.requests.len();
        let began_s = self.now_s;
        self.level = level;
        let mut completed = 0;
        let mut cohort = first;
        let mut ends: Vec<(f64, usize, usize)> = vec![];
        let (mut done, mut ok) = (0, 0);
        while ends.len() <= samples {
            let Some(seq) = self.next_end() else { break };
            completed += 1;
            done += 1;
            ok += usize::from(!self.requests[seq].refused);
            let full = if ends.is_empty() { completed >= warmup } else { done >= window };
            if full {
                if ends.is_empty() {
                    cohort = self.requests.len();
                }
                ends.push((self.now_s, done, ok));
                (done, ok) = (0, 0);
            }
        }
        let after = self.requests.len();
        self.level = 0;
        while self.in_flight() > 0 || self.held > 0 {
            if self.next_end().is_none() {
                break;
            }
        }
        Measurement { first, cohort, after, began_s, ends }
    }
}

/// Result of [`Run::measurement`]: indices of its first request, of the cohort's first, and of the one after its last.
pub struct Measurement {
    pub first: usize,
    pub cohort: usize,
    pub after: usize,
    pub began_s: f64,
    /// The ends of the warm-up and of each window, with the numbers of completions and successes in it.
    pub ends: Vec<(f64, usize, usize)>,
}

/// The result of one sweep, and its cost.
pub struct Swept {
    pub standing: Raced,
    /// Level and number of completions of each visit, in order.
    pub visits: Vec<(usize, usize)>,
    pub requests: usize,
    pub tokens: u64,
    pub service_times: f64,
}

/// Makes the visits that a race asks for. `drain` empties the loop between visits, as happens between measurements in
/// full.
pub fn sweep(server: &Server, noise: Noise, mut race: Race, drain: bool, seed: u64) -> Swept {
    let mut run = Run::new(server, noise, seed);
    let mut made: Vec<(usize, std::ops::Range<usize>, [f64; 2])> = Vec::new();
    let reports = run.reports_tokens();
    let seen = |request: &Request| Seen {
        start_s: request.start_s,
        end_s: request.end_s,
        held_s: request.held_s,
        failed: request.refused,
        tokens: (reports && !request.refused && request.end_s.is_finite()).then_some(request.tokens),
        ..Seen::default()
    };
    loop {
        let visited = made.iter().map(|(level, cohort, span_s)| Visited {
            level: *level,
            span_s: *span_s,
            requests: Box::new(|| Box::new(run.requests[cohort.clone()].iter().map(seen))),
        });
        let sent = run.requests.len() as u64;
        let next = race.next(&Evidence { visits: visited.collect(), now_s: run.now_s, sent });
        let Some(visit) = next else { break };
        run.level = if drain { 0 } else { visit.level };
        while run.taken() > run.level && run.next_end().is_some() {}
        run.level = visit.level;
        run.fill();
        let began_s = run.now_s;
        let cohort = run.requests.len()..run.requests.len() + visit.completions;
        while run.requests.len() < cohort.end && run.next_end().is_some() {
            run.fill();
        }
        made.push((visit.level, cohort, [began_s, run.now_s]));
    }
    run.level = 0;
    while run.next_end().is_some() {}
    Swept {
        standing: race.standing(),
        visits: made.into_iter().map(|(level, cohort, _)| (level, cohort.len())).collect(),
        requests: run.requests.len(),
        tokens: run.tokens,
        service_times: run.now_s,
    }
}

fn log_sigma(cv: f64) -> f64 {
    (1.0 + cv * cv).ln().sqrt()
}

fn median(values: &VecDeque<f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

// ---- The servers and the noise of the study ----

/// The Universal Scalability Law with a throughput of 1 for one request at a time.
pub fn usl(n: f64, sigma: f64, kappa: f64) -> f64 {
    n / (1.0 + sigma * (n - 1.0) + kappa * n * (n - 1.0))
}

/// Reaches 90 % of the best at 8 and 99.8 % at 16, and is constant from 32 on.
fn plateau(n: f64) -> f64 {
    let share = match n {
        ..=8.0 => 0.9 * n / 8.0,
        ..=16.0 => 0.9 + 0.098 * (n - 8.0) / 8.0,
        ..=32.0 => 0.998 + 0.002 * (n - 16.0) / 16.0,
        _ => 1.0,
    };
    share * 8.0 / 0.9
}

pub fn servers() -> Vec<Server> {
    let fixed = |server: Server| Server { lengths: Lengths::Fixed { residual: 0.15 }, ..server };
    vec![
        Server::knee("knee at 3", 3),
        Server::knee("knee at 8", 8),
        Server::knee("knee at 20", 20),
        fixed(Server::knee("knee at 20, fixed lengths", 20)),
        Server { lengths: Lengths::Unreported { sigma: 0.5 }, ..Server::knee("knee at 20, no tokens, sigma 0.5", 20) },
        Server::knee("knee at 32", 32),
        Server { capacity: 30, ..Server::knee("knee at 20, refuses above 30", 20) },
        Server { capacity: 24, ..Server::knee("knee at 64, refuses above 24", 64) },
        Server::curve("plateau from 16", plateau),
        Server::curve("peak at 22 (USL 0.02, 0.002)", |n| usl(n, 0.02, 0.002)),
        Server::knee("knee at 64", 64),
        Server::knee("knee at 200", 200),
        Server::curve("raytracer (USL 0.0578, 0)", |n| usl(n, 0.057_77, 0.0)),
        Server::curve("specsdm91 (USL 0.0277, 0.000104)", |n| usl(n, 0.027_728_5, 0.000_104_37)),
        Server::curve("rises 10 % from 200 to 250", |n| usl(n, 1.0 / 167.7, 0.0)),
    ]
}

/// Number of the first [`servers`], whose best level is 32 or below, and which must stay within the cost limits.
pub const SMALL: usize = 10;
