//! The true throughput curve of a simulated server: its engine in virtual time under an ideal closed loop.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::engine::{Engine, Token};
use super::lengths::{OutputLengths, prompt_tokens};
use super::{SimulatorConfig, SimulatorError};

/// The optimum is the smallest level with this share of the best throughput.
const NEAR_BEST: f64 = 0.95;

/// A level whose error rate is not below this does not qualify.
const MAX_ERROR_RATE: f64 = 0.05;

/// A permit whose request was refused is held until the median success latency so far, at most this long, and
/// this long before the first success.
const LONGEST_HOLD: Duration = Duration::from_secs(1);

/// What a level truly gives.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExplainedLevel {
    /// Requests kept in flight.
    pub level: usize,
    /// Successes per second.
    pub throughput_rps: f64,
    /// Output tokens of successes per second.
    pub output_tps: f64,
    /// Mean latency of the successes, in seconds.
    pub latency_mean_s: f64,
    /// Median latency of the successes, in seconds.
    pub latency_p50_s: f64,
    /// 95th percentile of the latency of the successes, in seconds.
    pub latency_p95_s: f64,
    /// Refused requests as a share of all, 0 to 1.
    pub error_rate: f64,
}

impl ExplainedLevel {
    fn qualifies(&self) -> bool {
        self.error_rate < MAX_ERROR_RATE
    }
}

/// The true curve of a simulated server. [`Display`](fmt::Display) writes it as a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// One entry per level asked for, in the order asked for.
    pub levels: Vec<ExplainedLevel>,
    /// The smallest level with at least 0.95 of the best throughput, among those with an error rate below
    /// 0.05. `None` if no level has that.
    pub optimum: Option<usize>,
}

/// Computes the true curve of the server with the settings `config`.
///
/// The client is ideal: `level` requests are in flight at all times, and as one ends, the next is sent with no
/// delay at all. It reaches the server just after the next step has begun and waits for the one after, as it
/// does over a real connection; only an idle engine starts with it at once. A refused request is a failure, and
/// its permit is held until the median success latency so far (at most 1 s, and 1 s before the first success).
///
/// Requests take the `prompts` in order, again and again, and carry `max_tokens`. `requests` is the number of
/// successes that are measured per level, after a warm-up of a twentieth of it and twice the level. Throughput
/// counts each success by the share of its life inside the measured window; latencies and error rate are those of
/// the requests sent inside it, followed to their end.
///
/// # Errors
///
/// [`SimulatorError`] if a setting is out of range, a level or `requests` is 0, or there is no prompt.
pub fn explain(
    config: &SimulatorConfig,
    levels: &[usize],
    prompts: &[String],
    max_tokens: u32,
    requests: usize,
) -> Result<Explanation, SimulatorError> {
    config.validate()?;
    let need = |met, needs| {
        if met { Ok(()) } else { Err(SimulatorError::Explain { needs }) }
    };
    need(!prompts.is_empty(), "at least one prompt")?;
    need(requests > 0, "at least one request")?;
    need(levels.iter().all(|&level| level > 0), "levels of 1 or more")?;
    let lengths = OutputLengths::new(config.seed, config.output_tokens.clone());
    let tasks: Vec<Task> = prompts
        .iter()
        .map(|prompt| Task {
            prompt_tokens: prompt_tokens(prompt),
            output_tokens: lengths.of(prompt, Some(max_tokens)).tokens,
        })
        .collect();
    let levels: Vec<_> = levels.iter().map(|&level| IdealLoop::new(config, level, &tasks).measure(requests)).collect();
    Ok(Explanation { optimum: optimum(&levels), levels })
}

fn best_rps(levels: &[ExplainedLevel]) -> f64 {
    let passing = levels.iter().filter(|level| level.qualifies());
    passing.fold(0.0, |best, level| level.throughput_rps.max(best))
}

fn optimum(levels: &[ExplainedLevel]) -> Option<usize> {
    let enough = NEAR_BEST * best_rps(levels);
    let near_best = levels.iter().filter(|level| level.qualifies() && level.throughput_rps >= enough);
    near_best.map(|level| level.level).min()
}

/// What a prompt asks of the engine.
#[derive(Clone, Copy)]
struct Task {
    prompt_tokens: u32,
    output_tokens: u32,
}

/// A request of the ideal client.
struct Sent {
    at: Duration,
    end: End,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Open,
    Success(Duration),
    Refused,
}

/// A closed loop around an engine, in virtual time.
struct IdealLoop<'a> {
    level: usize,
    tasks: &'a [Task],
    /// A sequence is submitted with the index of its request in `sent`.
    engine: Engine<usize>,
    now: Duration,
    sent: Vec<Sent>,
    successes: usize,
    latencies: RunningMedian,
    /// Permits that are free, and whose requests reach the server during the next step.
    free: usize,
    /// When the permits of refused requests become free.
    held_until: BinaryHeap<Reverse<Duration>>,
    tokens: Vec<Token<usize>>,
}

impl<'a> IdealLoop<'a> {
    fn new(config: &SimulatorConfig, level: usize, tasks: &'a [Task]) -> Self {
        Self {
            level,
            tasks,
            engine: Engine::new(config),
            now: Duration::ZERO,
            sent: Vec::new(),
            successes: 0,
            latencies: RunningMedian::default(),
            free: level,
            held_until: BinaryHeap::new(),
            tokens: Vec::new(),
        }
    }

    fn measure(mut self, requests: usize) -> ExplainedLevel {
        self.run_until_successes(requests / 20 + 2 * self.level);
        let (from, first) = (self.now, self.sent.len());
        self.run_until_successes(self.successes + requests);
        let (to, end) = (self.now, self.sent.len());
        // The loop goes on until all that counts has ended, so that the last ones meet the same load.
        for ticket in 0..end {
            while self.sent[ticket].end == End::Open {
                self.step();
            }
        }
        self.summary(from, to, first..end)
    }

    fn run_until_successes(&mut self, successes: usize) {
        while self.successes < successes {
            self.step();
        }
    }

    /// One step of the engine, with all that is sent during it.
    fn step(&mut self) {
        if self.engine.is_idle() {
            self.send_to_idle_engine();
        }
        let duration = self.engine.begin_step().expect("something was just sent to the engine if it was idle");
        let end = self.now + duration;
        for _ in 0..std::mem::take(&mut self.free) {
            self.send(self.now);
        }
        while let Some(&Reverse(due)) = self.held_until.peek()
            && due < end
        {
            self.held_until.pop();
            self.send(due);
        }
        self.now = end;
        let mut tokens = std::mem::take(&mut self.tokens);
        self.engine.end_step(&mut tokens);
        for token in tokens.iter().filter(|token| token.last) {
            self.succeed(token.owner);
        }
        self.tokens = tokens;
    }

    /// Sends one request, the only one in the step that it starts.
    fn send_to_idle_engine(&mut self) {
        if self.free > 0 {
            self.free -= 1;
        } else if let Some(Reverse(due)) = self.held_until.pop() {
            self.now = due;
        }
        self.send(self.now);
    }

    fn send(&mut self, at: Duration) {
        let ticket = self.sent.len();
        let task = self.tasks[ticket % self.tasks.len()];
        let end = match self.engine.submit(ticket, task.prompt_tokens, task.output_tokens) {
            Ok(_) => End::Open,
            Err(_) => {
                let median = self.latencies.median().unwrap_or(LONGEST_HOLD);
                self.held_until.push(Reverse(at + median.min(LONGEST_HOLD)));
                End::Refused
            }
        };
        self.sent.push(Sent { at, end });
    }

    fn succeed(&mut self, ticket: usize) {
        let sent = &mut self.sent[ticket];
        sent.end = End::Success(self.now);
        self.latencies.push(self.now - sent.at);
        self.successes += 1;
        self.free += 1;
    }

    /// The figures of the window `from`..`to`, in which the requests `cohort` were sent.
    fn summary(&self, from: Duration, to: Duration, cohort: std::ops::Range<usize>) -> ExplainedLevel {
        let window_s = (to - from).as_secs_f64();
        let (mut requests, mut tokens) = (0.0, 0.0);
        for (ticket, sent) in self.sent.iter().enumerate() {
            let End::Success(end) = sent.end else {
                continue;
            };
            let inside = end.min(to).saturating_sub(sent.at.max(from));
            let share = inside.as_secs_f64() / (end - sent.at).as_secs_f64();
            requests += share;
            tokens += share * f64::from(self.tasks[ticket % self.tasks.len()].output_tokens);
        }
        let all = cohort.len();
        let mut latencies: Vec<f64> = self.sent[cohort]
            .iter()
            .filter_map(|sent| match sent.end {
                End::Success(end) => Some((end - sent.at).as_secs_f64()),
                End::Open | End::Refused => None,
            })
            .collect();
        latencies.sort_by(f64::total_cmp);
        let successes = latencies.len();
        ExplainedLevel {
            level: self.level,
            throughput_rps: requests / window_s,
            output_tps: tokens / window_s,
            latency_mean_s: latencies.iter().sum::<f64>() / successes as f64,
            latency_p50_s: percentile(&latencies, 0.50),
            latency_p95_s: percentile(&latencies, 0.95),
            error_rate: 1.0 - successes as f64 / all as f64,
        }
    }
}

/// Hyndman and Fan's type 7 of sorted values. On its own here, apart from the statistics that are applied to
/// measurements, since this is what those are held against.
fn percentile(sorted: &[f64], p: f64) -> f64 {
    let at = p * (sorted.len() - 1) as f64;
    let below = sorted[at.floor() as usize];
    let above = sorted[at.ceil() as usize];
    below + (above - below) * at.fract()
}

/// The median of all values so far: the lower half and the upper half, each with its inner end on top.
#[derive(Default)]
struct RunningMedian {
    lower: BinaryHeap<Duration>,
    upper: BinaryHeap<Reverse<Duration>>,
}

impl RunningMedian {
    fn push(&mut self, value: Duration) {
        self.lower.push(value);
        self.upper.extend(self.lower.pop().map(Reverse));
        if self.upper.len() > self.lower.len() {
            self.lower.extend(self.upper.pop().map(|Reverse(value)| value));
        }
    }

    fn median(&self) -> Option<Duration> {
        let &low = self.lower.peek()?;
        match self.upper.peek() {
            Some(&Reverse(high)) if self.upper.len() == self.lower.len() => Some((low + high) / 2),
            _ => Some(low),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let best = best_rps(&self.levels);
        writeln!(
            f,
            "{:>6} {:>9} {:>8} {:>12} {:>8} {:>8} {:>8}",
            "level", "req/s", "of best", "out tokens/s", "mean s", "P95 s", "errors"
        )?;
        for level in &self.levels {
            let of_best = if best > 0.0 { format!("{:.3}", level.throughput_rps / best) } else { "-".to_owned() };
            writeln!(
                f,
                "{:>6} {:>9.2} {:>8} {:>12.0} {:>8.3} {:>8.3} {:>6.1} %",
                level.level,
                level.throughput_rps,
                of_best,
                level.output_tps,
                level.latency_mean_s,
                level.latency_p95_s,
                100.0 * level.error_rate,
            )?;
        }
        match self.optimum {
            Some(level) => write!(
                f,
                "optimum: {level} (the smallest level with at least {:.0} % of the best throughput, \
                 {best:.2} req/s, and errors below {:.0} %)",
                100.0 * NEAR_BEST,
                100.0 * MAX_ERROR_RATE
            ),
            None => write!(f, "optimum: none (every level has errors of {:.0} % or more)", 100.0 * MAX_ERROR_RATE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::OutputTokens;
    use super::*;

    const LENGTH: u32 = 24;
    const PROMPT_CHARS: usize = 400;

    fn fixed() -> SimulatorConfig {
        SimulatorConfig {
            slots: 8,
            queue_limit: 8,
            base_step_ms: 3.0,
            per_sequence_ms: 0.25,
            prefill_ms_per_token: 0.002,
            output_tokens: OutputTokens::Fixed { tokens: LENGTH },
            ..SimulatorConfig::default()
        }
    }

    fn explain_fixed(levels: &[usize]) -> Vec<ExplainedLevel> {
        let prompts = ["x".repeat(PROMPT_CHARS)];
        let explained = explain(&fixed(), levels, &prompts, 64, 20_000);
        explained.unwrap().levels
    }

    /// Throughput by hand. Each request costs `LENGTH` turns in a batch and its prefill; on top come the bases
    /// of the steps of one round. Alone, a request starts at once and takes `LENGTH` steps. In company it waits
    /// for the step that runs when it arrives: `LENGTH + 1`. With twice as many requests as slots there is
    /// always one waiting for each that leaves, so that a round of full batches takes `LENGTH` steps again.
    fn formula_rps(level: usize) -> f64 {
        let config = fixed();
        let length = f64::from(LENGTH);
        let served = level.min(config.slots) as f64;
        let steps = if level == 1 || level >= 2 * config.slots { length } else { length + 1.0 };
        let prefill_ms = config.prefill_ms_per_token * (PROMPT_CHARS / 4) as f64;
        let own_ms = config.per_sequence_ms * length + prefill_ms;
        1000.0 * served / (config.base_step_ms * steps + own_ms * served)
    }

    #[test]
    fn fixed_lengths_give_the_throughput_of_the_formula() {
        for level in explain_fixed(&[1, 2, 5, 8, 16]) {
            let expected = formula_rps(level.level);
            let ratio = level.throughput_rps / expected;
            assert!((ratio - 1.0).abs() < 2e-3, "{level:?}, not {expected}");
            assert!((level.output_tps / expected / f64::from(LENGTH) - 1.0).abs() < 2e-3);
            // Little's law: in flight = throughput x latency.
            let in_flight = level.throughput_rps * level.latency_mean_s;
            assert!((in_flight / level.level as f64 - 1.0).abs() < 2e-3, "{level:?}");
            assert_eq!(level.error_rate, 0.0);
        }
    }

    #[test]
    fn a_request_alone_takes_the_same_time_each_time() {
        let level = &explain_fixed(&[1])[0];
        let expected_s = (f64::from(LENGTH) * 3.25 + 0.2) / 1000.0;
        for latency_s in [level.latency_mean_s, level.latency_p50_s, level.latency_p95_s] {
            assert!((latency_s - expected_s).abs() < 1e-6);
        }
    }

    #[test]
    fn refusals_begin_above_slots_and_queue_and_leave_the_throughput() {
        let levels = explain_fixed(&[16, 17, 24]);
        assert_eq!(levels[0].error_rate, 0.0);
        assert!(levels[1].error_rate > 0.0);
        assert!(levels[2].error_rate > levels[1].error_rate);
        // The permits that are held do not serve, but the queue keeps the slots full.
        assert!(levels[2].throughput_rps / levels[0].throughput_rps > 0.98);
        assert!(levels[2].error_rate < 0.5);
    }

    #[test]
    fn the_defaults_have_their_knee_at_20_and_are_full_below_50() {
        let levels = [1, 2, 5, 10, 15, 20, 25, 30, 40, 45, 50];
        let prompts: Vec<_> = (0..100).map(|i| format!("{i:0>800}")).collect();
        let config = SimulatorConfig::default();
        let explanation = explain(&config, &levels, &prompts, 64, 5_000).unwrap();
        assert_eq!(explanation.optimum, Some(20));
        let of_best = |at: usize| explanation.levels[at].throughput_rps / best_rps(&explanation.levels);
        assert!(of_best(4) < 0.9, "level 15: {}", of_best(4));
        assert!(of_best(5) > 0.975, "level 20: {}", of_best(5));
        let errors: Vec<_> = explanation.levels.iter().map(|l| l.error_rate).collect();
        assert!(errors[..10].iter().all(|&rate| rate == 0.0));
        assert!(errors[10] > MAX_ERROR_RATE);
    }

    #[test]
    fn the_same_settings_give_the_same_curve() {
        let prompts: Vec<_> = (0..10).map(|i| i.to_string()).collect();
        let config = SimulatorConfig::default();
        let curve = || explain(&config, &[3, 50], &prompts, 64, 500).unwrap();
        assert_eq!(curve(), curve());
    }

    fn level(level: usize, throughput_rps: f64, error_rate: f64) -> ExplainedLevel {
        ExplainedLevel {
            level,
            throughput_rps,
            output_tps: 48.0 * throughput_rps,
            latency_mean_s: 0.25,
            latency_p50_s: 0.2,
            latency_p95_s: 0.5,
            error_rate,
        }
    }

    #[test]
    fn the_optimum_is_the_smallest_level_near_the_best_that_qualifies() {
        let levels = [level(30, 100.0, 0.0), level(20, 95.0, 0.0), level(10, 94.9, 0.0), level(50, 200.0, 0.05)];
        assert_eq!(optimum(&levels), Some(20));
        assert_eq!(optimum(&levels[3..]), None);
    }

    #[test]
    fn the_table_is_aligned_and_ends_with_the_optimum() {
        let mut explanation = Explanation {
            levels: vec![level(1, 5.5, 0.0), level(20, 66.53, 0.0), level(50, 66.9, 0.1)],
            optimum: Some(20),
        };
        assert_eq!(
            explanation.to_string(),
            " level     req/s  of best out tokens/s   mean s    P95 s   errors
     1      5.50    0.083          264    0.250    0.500    0.0 %
    20     66.53    1.000         3193    0.250    0.500    0.0 %
    50     66.90    1.006         3211    0.250    0.500   10.0 %
optimum: 20 (the smallest level with at least 95 % of the best throughput, 66.53 req/s, and errors below 5 %)"
        );
        explanation.levels.drain(..2);
        explanation.optimum = None;
        let text = explanation.to_string();
        assert!(text.ends_with("optimum: none (every level has errors of 5 % or more)"), "{text}");
    }

    #[test]
    fn the_running_median_is_the_median() {
        let mut running = RunningMedian::default();
        assert_eq!(running.median(), None);
        let mut all = Vec::new();
        for i in 0..50u64 {
            let value = Duration::from_nanos((i * 37) % 23 * 10);
            running.push(value);
            all.push(value);
            all.sort();
            let expected = (all[(all.len() - 1) / 2] + all[all.len() / 2]) / 2;
            assert_eq!(running.median(), Some(expected));
        }
    }

    #[test]
    fn percentiles_interpolate_between_neighbours() {
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0], 0.25), 1.75);
        assert_eq!(percentile(&[7.0], 0.95), 7.0);
    }

    #[test]
    fn what_cannot_be_explained_is_an_error() {
        let prompts = ["a".to_owned()];
        let config = fixed();
        assert!(explain(&config, &[0], &prompts, 64, 100).is_err());
        assert!(explain(&config, &[1], &[], 64, 100).is_err());
        assert!(explain(&config, &[1], &prompts, 64, 0).is_err());
        let impossible = SimulatorConfig { slots: 0, ..config };
        let error = explain(&impossible, &[1], &prompts, 64, 100).unwrap_err();
        assert!(error.to_string().starts_with("simulator.slots is 0"));
    }
}
