//! Continuous batching as a state machine, without a clock or a network.
//!
//! The same engine runs in real time behind the HTTP server and in virtual time behind
//! [`explain`](super::explain()), so the explained curve is the one that is served.

use std::collections::VecDeque;
use std::time::Duration;

use super::SimulatorConfig;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SequenceId(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull {
    pub running: usize,
    pub waiting: usize,
}

/// A token that a sequence receives at the end of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token<T> {
    pub owner: T,
    pub last: bool,
}

#[derive(Debug)]
struct Sequence<T> {
    id: SequenceId,
    owner: T,
    prompt_tokens: u32,
    left: u32,
}

/// Up to `slots` sequences decode together, one token per step; the others wait in a FIFO queue.
///
/// The caller begins a step with [`begin_step`](Self::begin_step), lets the returned duration pass, and
/// calls [`end_step`](Self::end_step). Sequences may be submitted and cancelled at any time between the
/// two; one that arrives during a step can be admitted at the next step at the earliest.
#[derive(Debug)]
pub struct Engine<T> {
    config: SimulatorConfig,
    running: Vec<Sequence<T>>,
    waiting: VecDeque<Sequence<T>>,
    submitted: u64,
}

impl<T: Clone> Engine<T> {
    /// An idle engine. The settings must have passed [`SimulatorConfig::validate`].
    pub fn new(config: &SimulatorConfig) -> Self {
        Self { config: config.clone(), running: Vec::new(), waiting: VecDeque::new(), submitted: 0 }
    }

    /// Whether no sequence is running or waiting, so that no step can begin.
    pub fn is_idle(&self) -> bool {
        self.load() == (0, 0)
    }

    /// Number of running sequences (those that hold a slot) and of waiting ones.
    pub fn load(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// Appends a sequence to the queue. `output_tokens` must be 1 or more.
    ///
    /// Slots and queue are counted together: between two steps, all of a burst into an empty server is in the
    /// queue, and sequences that get a slot at the next step must not be refused.
    pub fn submit(&mut self, owner: T, prompt_tokens: u32, output_tokens: u32) -> Result<SequenceId, QueueFull> {
        let (running, waiting) = self.load();
        if running + waiting >= self.config.slots.saturating_add(self.config.queue_limit) {
            return Err(QueueFull { running, waiting });
        }
        let id = SequenceId(self.submitted);
        self.submitted += 1;
        self.waiting.push_back(Sequence { id, owner, prompt_tokens, left: output_tokens });
        Ok(id)
    }

    /// Removes a sequence whose client has left. Returns whether it was still running or waiting.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        // Both lists are in order of submission, so their ids are sorted.
        if let Ok(at) = self.running.binary_search_by_key(&id, |s| s.id) {
            self.running.remove(at);
            return true;
        }
        self.waiting.binary_search_by_key(&id, |s| s.id).is_ok_and(|at| self.waiting.remove(at).is_some())
    }

    /// Admits waiting sequences to free slots and returns the duration of the step; `None` when idle.
    pub fn begin_step(&mut self) -> Option<Duration> {
        let before = self.running.len();
        let free = self.config.slots.saturating_sub(before);
        self.running.extend(self.waiting.drain(..free.min(self.waiting.len())));
        if self.running.is_empty() {
            return None;
        }
        let prefill: f64 = self.running[before..].iter().map(|sequence| f64::from(sequence.prompt_tokens)).sum();
        let SimulatorConfig { base_step_ms, per_sequence_ms, prefill_ms_per_token, .. } = self.config;
        let step_ms = base_step_ms + per_sequence_ms * self.running.len() as f64 + prefill_ms_per_token * prefill;
        Some(Duration::from_secs_f64(step_ms / 1000.0))
    }

    /// Gives every running sequence its next token, in order of admission, and removes those that have reached
    /// their length. `tokens` is cleared first; it is a parameter so that its allocation is reused.
    pub fn end_step(&mut self, tokens: &mut Vec<Token<T>>) {
        tokens.clear();
        self.running.retain_mut(|sequence| {
            sequence.left -= 1;
            let last = sequence.left == 0;
            tokens.push(Token { owner: sequence.owner.clone(), last });
            !last
        });
    }
}
