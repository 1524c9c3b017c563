//! Continuous batching as a state machine: no clock, no network.
//!
//! The same engine runs behind the HTTP server in real time and behind [`explain`](super::explain()) in
//! virtual time, so that the curve that is explained is the curve that is served.

use std::collections::VecDeque;
use std::time::Duration;

use super::SimulatorConfig;

/// Names a sequence within its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SequenceId(u64);

/// A submission was refused because slots and queue are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull {
    pub running: usize,
    pub waiting: usize,
}

/// A token that a sequence got at the end of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token<T> {
    /// What the sequence was submitted with.
    pub owner: T,
    /// Whether the sequence ended with it.
    pub last: bool,
}

#[derive(Debug)]
struct Sequence<T> {
    id: SequenceId,
    owner: T,
    prompt_tokens: u32,
    /// Tokens still to be generated.
    left: u32,
}

/// Up to `slots` sequences decode together, one token per step; the others wait, first come first served.
///
/// A step is [`begin_step`](Self::begin_step), the passing of the duration that it returns, and
/// [`end_step`](Self::end_step). Sequences may be submitted and cancelled at any time between the two:
/// what arrives during a step waits for the next one's admission.
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

    /// Whether nothing runs or waits, so that no step can begin.
    pub fn is_idle(&self) -> bool {
        self.load() == (0, 0)
    }

    /// Sequences that hold a slot, and sequences that wait for one.
    pub fn load(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// Puts a sequence at the end of the queue. `output_tokens` is 1 or more.
    ///
    /// Slots and queue are counted together: between two steps a burst into an empty server waits as a
    /// whole, and those that will get a slot at the next step must not be refused.
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

    /// Removes a sequence after its client has left. Returns whether it was still inside.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        // Both are in order of submission, so their ids rise.
        if let Ok(at) = self.running.binary_search_by_key(&id, |s| s.id) {
            self.running.remove(at);
            return true;
        }
        self.waiting.binary_search_by_key(&id, |s| s.id).is_ok_and(|at| self.waiting.remove(at).is_some())
    }

    /// Admits waiting sequences to free slots and returns how long the step takes. `None` when idle.
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

    /// Gives every running sequence its next token, in order of admission, and lets those leave that have
    /// reached their length. `tokens` is cleared first; it is a parameter so that its memory is used again.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Action {
        Submit(u32),
        Cancel(usize),
        Step,
    }

    fn actions() -> impl Strategy<Value = Vec<Action>> {
        let action = prop_oneof![
            3 => (1u32..8).prop_map(Action::Submit),
            1 => (0usize..64).prop_map(Action::Cancel),
            4 => Just(Action::Step),
        ];
        proptest::collection::vec(action, 0..300)
    }

    proptest! {
        /// Every accepted sequence either gets exactly its tokens, first come first served and the last one marked,
        /// or was cancelled; slots and capacity are never exceeded; nothing is left at the end.
        #[test]
        fn sequences_are_conserved(slots in 1usize..5, queue_limit in 0usize..5, actions in actions()) {
            let mut engine = Engine::new(&SimulatorConfig { slots, queue_limit, ..SimulatorConfig::default() });
            // Of each, in order of submission, how many tokens are still to come.
            let mut all: Vec<(SequenceId, u32)> = Vec::new();
            // Enough steps at the end to serve whatever is left.
            for action in actions.into_iter().chain(std::iter::repeat_n(Action::Step, 100)) {
                let inside: Vec<usize> = (0..all.len()).filter(|&owner| all[owner].1 > 0).collect();
                prop_assert!(inside.len() <= slots + queue_limit);
                match action {
                    Action::Submit(left) => match engine.submit(all.len(), 1, left) {
                        Ok(id) => all.push((id, left)),
                        Err(full) => {
                            prop_assert_eq!(inside.len(), slots + queue_limit);
                            prop_assert_eq!(full.running + full.waiting, inside.len());
                        }
                    },
                    Action::Cancel(which) => if let Some((id, left)) = all.get_mut(which) {
                        prop_assert_eq!(engine.cancel(*id), *left > 0);
                        *left = 0;
                    }
                    Action::Step => {
                        prop_assert_eq!(engine.begin_step().is_some(), !inside.is_empty());
                        let mut tokens = Vec::new();
                        engine.end_step(&mut tokens);
                        let owners: Vec<usize> = tokens.iter().map(|token| token.owner).collect();
                        prop_assert_eq!(&owners[..], &inside[..inside.len().min(slots)]);
                        for token in tokens {
                            let (_, left) = &mut all[token.owner];
                            *left -= 1;
                            prop_assert_eq!(token.last, *left == 0);
                        }
                    }
                }
            }
            prop_assert!(engine.is_idle());
        }
    }
}
