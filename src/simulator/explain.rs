//! The true throughput curve of a simulated server: its engine runs in virtual time under an ideal closed loop.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::time::Duration;

use super::engine::Engine;
use super::lengths::prompt_tokens;
use super::limits::{BLOCK_CHARS, BLOCK_TOKENS};
use super::{SimulatorConfig, SimulatorError};

/// Share of the best throughput that the optimum must reach; it is the smallest level that does.
const NEAR_BEST: f64 = 0.95;

/// A level qualifies if its error rate is below this.
const MAX_ERROR_RATE: f64 = 0.05;

/// Longest time for which the permit of a refused request is held. The hold is the median success latency so
/// far, capped at this; before the first success it is this.
const LONGEST_HOLD: Duration = Duration::from_secs(1);

/// True figures of one level.
#[derive(Clone, Debug, PartialEq)]
pub struct ExplainedLevel {
    /// Requests kept in flight.
    pub level: usize,
    /// Successes per second.
    pub throughput_rps: f64,
    /// Output tokens of the successes per second.
    pub output_tps: f64,
    /// Mean latency of the successes, in seconds.
    pub latency_mean_s: f64,
    /// 95th percentile of the latency of the successes, in seconds.
    pub latency_p95_s: f64,
    /// Share of the requests that were refused, 0 to 1.
    pub error_rate: f64,
}

/// The true curve of a simulated server. [`Display`](fmt::Display) formats it as a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// One entry per requested level, in the order requested.
    pub levels: Vec<ExplainedLevel>,
}

impl Explanation {
    /// The smallest level with at least 0.95 of the best throughput, among the levels with an error rate below
    /// 0.05. `None` if no level qualifies.
    pub fn optimum(&self) -> Option<usize> {
        let enough = NEAR_BEST * self.best_rps();
        self.qualifying().filter(|level| level.throughput_rps >= enough).map(|level| level.level).min()
    }

    fn best_rps(&self) -> f64 {
        self.qualifying().map(|level| level.throughput_rps).fold(0.0, f64::max)
    }

    fn qualifying(&self) -> impl Iterator<Item = &ExplainedLevel> {
        self.levels.iter().filter(|level| level.error_rate < MAX_ERROR_RATE)
    }
}

/// Computes the true curve of the server with the settings `config`.
///
/// The client is ideal: it has `level` permits, and as soon as one request succeeds it sends the next. That
/// request reaches the server just after the next step has begun and waits for the step after it, as it does
/// over a real connection; only an idle engine starts with it at once. A refused request is a failure, and its
/// permit is held for the median success latency so far (at most 1 s, and 1 s before the first success).
///
/// Requests cycle through the `prompts` in order and carry `max_tokens`. A prefix cache is assumed to hold the
/// blocks that all prompts have in common at their start (a system prompt) and nothing else. `requests` is the
/// number of successes measured per level, after a warm-up of `requests / 20 + 2 * level` successes. Throughput
/// counts each success by the share of its duration inside the measured window. Latencies and error rate are
/// those of the cohort sent inside it, followed to their completion.
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
    let prompts: Vec<(&str, u32)> = prompts.iter().map(|prompt| (prompt.as_str(), max_tokens)).collect();
    explain_each(config, levels, &prompts, requests)
}

/// Like [`explain`], with a separate `max_tokens` for each prompt.
#[doc(hidden)]
pub fn explain_each(
    config: &SimulatorConfig,
    levels: &[usize],
    prompts: &[(&str, u32)],
    requests: usize,
) -> Result<Explanation, SimulatorError> {
    config.validate()?;
    let need = |met, needs| {
        if met { Ok(()) } else { Err(SimulatorError::Explain(needs)) }
    };
    need(!prompts.is_empty(), "at least one prompt")?;
    need(requests > 0, "at least one request")?;
    need(levels.iter().all(|&level| level > 0), "levels of 1 or more")?;
    let cached = if config.prefix_cache { in_common(prompts) } else { 0 };
    let task = |&(prompt, max_tokens): &(&str, u32)| Task {
        prompt_tokens: prompt_tokens(prompt) - cached,
        output_tokens: config.answer_length(prompt, Some(max_tokens)).tokens,
    };
    let tasks: Vec<Task> = prompts.iter().map(task).collect();
    let measure = |&level: &usize| IdealLoop::measure(config, level, &tasks, requests);
    Ok(Explanation { levels: levels.iter().map(measure).collect() })
}

/// Number of leading tokens that all prompts share, in whole blocks; 0 for a single prompt.
fn in_common(prompts: &[(&str, u32)]) -> u32 {
    let as_first = |(other, _): &(&str, u32)| {
        prompts[0].0.chars().zip(other.chars()).take_while(|(one, other)| one == other).count()
    };
    let characters = prompts[1..].iter().map(as_first).min().unwrap_or_default();
    (characters / BLOCK_CHARS) as u32 * BLOCK_TOKENS
}

#[derive(Clone, Copy)]
struct Task {
    prompt_tokens: u32,
    output_tokens: u32,
}

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

struct IdealLoop<'a> {
    level: usize,
    tasks: &'a [Task],
    /// Each sequence is owned by the index of its request in `sent`.
    engine: Engine<usize>,
    now: Duration,
    sent: Vec<Sent>,
    /// Latencies of all successes so far, sorted.
    latencies: Vec<Duration>,
    /// Number of free permits. Their requests reach the server during the next step.
    free: usize,
    /// Times at which the permits of refused requests become free.
    held_until: BinaryHeap<Reverse<Duration>>,
}

impl IdealLoop<'_> {
    fn measure(config: &SimulatorConfig, level: usize, tasks: &[Task], requests: usize) -> ExplainedLevel {
        let mut client = IdealLoop {
            level,
            tasks,
            engine: Engine::new(config),
            now: Duration::ZERO,
            sent: Vec::new(),
            latencies: Vec::new(),
            free: level,
            held_until: BinaryHeap::new(),
        };
        client.run_until_successes(requests / 20 + 2 * level);
        let (from, first) = (client.now, client.sent.len());
        client.run_until_successes(client.latencies.len() + requests);
        let (to, end) = (client.now, client.sent.len());
        // The loop keeps sending until the whole cohort has completed, so that its last requests see the same load.
        for ticket in 0..end {
            while client.sent[ticket].end == End::Open {
                client.step();
            }
        }
        client.summary(from, to, first..end)
    }

    fn run_until_successes(&mut self, successes: usize) {
        while self.latencies.len() < successes {
            self.step();
        }
    }

    fn step(&mut self) {
        // An idle engine starts as soon as the first request arrives, with that one alone.
        if self.engine.is_idle() {
            if self.free > 0 {
                self.free -= 1;
            } else if let Some(Reverse(due)) = self.held_until.pop() {
                self.now = due;
            }
            self.send(self.now);
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
        let mut tokens = Vec::new();
        self.engine.end_step(&mut tokens);
        for token in tokens.iter().filter(|token| token.last) {
            let sent = &mut self.sent[token.owner];
            sent.end = End::Success(end);
            let latency = end - sent.at;
            self.latencies.insert(self.latencies.partition_point(|&other| other < latency), latency);
            self.free += 1;
        }
    }

    fn send(&mut self, at: Duration) {
        let ticket = self.sent.len();
        let task = self.tasks[ticket % self.tasks.len()];
        let end = match self.engine.submit(ticket, task.prompt_tokens, task.output_tokens) {
            Ok(_) => End::Open,
            Err(_) => {
                let median = median(&self.latencies).unwrap_or(LONGEST_HOLD);
                self.held_until.push(Reverse(at + median.min(LONGEST_HOLD)));
                End::Refused
            }
        };
        self.sent.push(Sent { at, end });
    }

    /// The figures of the window `from`..`to`. `cohort` are the indices of the requests sent in it.
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
        let latency = |sent: &Sent| match sent.end {
            End::Success(end) => Some((end - sent.at).as_secs_f64()),
            End::Open | End::Refused => None,
        };
        let mut latencies: Vec<f64> = self.sent[cohort].iter().filter_map(latency).collect();
        latencies.sort_by(f64::total_cmp);
        let successes = latencies.len();
        ExplainedLevel {
            level: self.level,
            throughput_rps: requests / window_s,
            output_tps: tokens / window_s,
            latency_mean_s: latencies.iter().sum::<f64>() / successes as f64,
            latency_p95_s: percentile(&latencies, 0.95),
            error_rate: 1.0 - successes as f64 / all as f64,
        }
    }
}

/// Percentile of sorted values, Hyndman and Fan's type 7. Deliberately independent of the statistics that are
/// applied to measurements, because it serves as their reference.
fn percentile(sorted: &[f64], p: f64) -> f64 {
    let at = p * (sorted.len() - 1) as f64;
    let below = sorted[at.floor() as usize];
    let above = sorted[at.ceil() as usize];
    below + (above - below) * at.fract()
}

fn median(sorted: &[Duration]) -> Option<Duration> {
    let &low = sorted.get(sorted.len().checked_sub(1)? / 2)?;
    Some((low + sorted[sorted.len() / 2]) / 2)
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let best = self.best_rps();
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
        match self.optimum() {
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
    use super::*;

    #[test]
    fn median_and_percentiles_are_those_of_the_definition() {
        let cases = [(&[][..], None), (&[3], Some(3)), (&[1, 4], Some(2)), (&[1, 4, 9], Some(4))];
        for (values, expected) in cases {
            let sorted: Vec<_> = values.iter().map(|&ns| Duration::from_nanos(ns)).collect();
            assert_eq!(median(&sorted), expected.map(Duration::from_nanos));
        }
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0], 0.25), 1.75);
        assert_eq!(percentile(&[7.0], 0.95), 7.0);
    }
}
