//! Continuous batching as a state machine: no clock, no network.
//!
//! The same engine runs behind the HTTP server in real time and behind [`explain`](super::explain()) in
//! virtual time, so that the curve that is explained is the curve that is served.

use std::collections::VecDeque;
use std::time::Duration;

use super::SimulatorConfig;

/// Names a sequence within its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SequenceId(u64);

/// A submission was refused because slots and queue are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueFull {
    /// Sequences that hold a slot.
    pub(super) running: usize,
    /// Sequences that wait for one.
    pub(super) waiting: usize,
}

/// A token that a sequence got at the end of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token<T> {
    /// What the sequence was submitted with.
    pub(super) owner: T,
    /// 0 for the sequence's first token.
    pub(super) index: u32,
    /// Whether the sequence ended with it.
    pub(super) last: bool,
}

#[derive(Debug)]
struct Sequence<T> {
    id: SequenceId,
    owner: T,
    prompt_tokens: u32,
    output_tokens: u32,
    generated: u32,
}

/// Up to `slots` sequences decode together, one token per step; the others wait, first come first served.
///
/// A step is [`begin_step`](Self::begin_step), the passing of the duration that it returns, and
/// [`end_step`](Self::end_step). Sequences may be submitted and cancelled at any time between the two:
/// what arrives during a step waits for the next one's admission.
#[derive(Debug)]
pub(super) struct Engine<T> {
    slots: usize,
    capacity: usize,
    base_step_ms: f64,
    per_sequence_ms: f64,
    prefill_ms_per_token: f64,
    running: Vec<Sequence<T>>,
    waiting: VecDeque<Sequence<T>>,
    submitted: u64,
}

impl<T: Clone> Engine<T> {
    /// An idle engine. The settings must have passed [`SimulatorConfig::validate`].
    pub(super) fn new(config: &SimulatorConfig) -> Self {
        Self {
            slots: config.slots,
            capacity: config.slots.saturating_add(config.queue_limit),
            base_step_ms: config.base_step_ms,
            per_sequence_ms: config.per_sequence_ms,
            prefill_ms_per_token: config.prefill_ms_per_token,
            running: Vec::new(),
            waiting: VecDeque::new(),
            submitted: 0,
        }
    }

    /// Whether nothing runs or waits, so that no step can begin.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Sequences that hold a slot, and sequences that wait for one.
    pub(super) fn load(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// Puts a sequence at the end of the queue. `output_tokens` is 1 or more.
    ///
    /// Slots and queue are counted together: between two steps a burst into an empty server waits as a
    /// whole, and those that will get a slot at the next step must not be refused.
    ///
    /// # Errors
    ///
    /// [`QueueFull`] if `slots + queue_limit` sequences are inside.
    pub(super) fn submit(&mut self, owner: T, prompt_tokens: u32, output_tokens: u32) -> Result<SequenceId, QueueFull> {
        let (running, waiting) = self.load();
        if running + waiting >= self.capacity {
            return Err(QueueFull { running, waiting });
        }
        let id = SequenceId(self.submitted);
        self.submitted += 1;
        self.waiting.push_back(Sequence { id, owner, prompt_tokens, output_tokens, generated: 0 });
        Ok(id)
    }

    /// Removes a sequence whose client is gone. Returns whether it was still inside.
    pub(super) fn cancel(&mut self, id: SequenceId) -> bool {
        // Both are in order of submission, so their ids rise.
        if let Ok(at) = self.running.binary_search_by_key(&id, |s| s.id) {
            self.running.remove(at);
            return true;
        }
        if let Ok(at) = self.waiting.binary_search_by_key(&id, |s| s.id) {
            self.waiting.remove(at);
            return true;
        }
        false
    }

    /// Admits waiting sequences to free slots and returns how long the step takes. `None` when idle.
    pub(super) fn begin_step(&mut self) -> Option<Duration> {
        let free = self.slots.saturating_sub(self.running.len());
        let admitted = self.waiting.drain(..free.min(self.waiting.len()));
        let before = self.running.len();
        self.running.extend(admitted);
        if self.running.is_empty() {
            return None;
        }
        let prefill: f64 = self.running[before..].iter().map(|sequence| f64::from(sequence.prompt_tokens)).sum();
        let step_ms =
            self.base_step_ms + self.per_sequence_ms * self.running.len() as f64 + self.prefill_ms_per_token * prefill;
        Some(Duration::from_secs_f64(step_ms / 1000.0))
    }

    /// Gives every running sequence its next token, in order of admission, and lets those leave that have
    /// reached their length. `tokens` is cleared first; it is a parameter so that its memory is used again.
    pub(super) fn end_step(&mut self, tokens: &mut Vec<Token<T>>) {
        tokens.clear();
        self.running.retain_mut(|sequence| {
            let index = sequence.generated;
            sequence.generated += 1;
            let last = sequence.generated >= sequence.output_tokens;
            tokens.push(Token { owner: sequence.owner.clone(), index, last });
            !last
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn engine(slots: usize, queue_limit: usize) -> Engine<u64> {
        Engine::new(&SimulatorConfig {
            slots,
            queue_limit,
            base_step_ms: 3.0,
            per_sequence_ms: 0.5,
            prefill_ms_per_token: 0.01,
            ..SimulatorConfig::default()
        })
    }

    fn end(engine: &mut Engine<u64>) -> Vec<Token<u64>> {
        let mut tokens = Vec::new();
        engine.end_step(&mut tokens);
        tokens
    }

    fn owners(tokens: &[Token<u64>]) -> Vec<u64> {
        tokens.iter().map(|token| token.owner).collect()
    }

    #[test]
    fn a_step_takes_base_plus_batch_plus_prefill_of_the_admitted() {
        let mut engine = engine(4, 0);
        engine.submit(0, 100, 5).unwrap();
        engine.submit(1, 50, 5).unwrap();
        let first = engine.begin_step().unwrap();
        assert_eq!(first, Duration::from_micros(3000 + 2 * 500 + 150 * 10));
        end(&mut engine);
        let second = engine.begin_step().unwrap();
        assert_eq!(second, Duration::from_micros(3000 + 2 * 500));
    }

    #[test]
    fn an_idle_engine_begins_no_step() {
        let mut engine = engine(2, 2);
        assert!(engine.is_idle());
        assert_eq!(engine.begin_step(), None);
        engine.submit(0, 1, 1).unwrap();
        assert!(engine.begin_step().is_some());
        assert!(end(&mut engine)[0].last);
        assert!(engine.is_idle());
        assert_eq!(engine.begin_step(), None);
    }

    #[test]
    fn refuses_at_exactly_slots_plus_queue_limit() {
        let mut engine = engine(2, 3);
        // Before the first step all five wait.
        for owner in 0..5 {
            engine.submit(owner, 1, 2).unwrap();
        }
        let refused = engine.submit(5, 1, 2).unwrap_err();
        assert_eq!((refused.running, refused.waiting), (0, 5));
        engine.begin_step();
        let refused = engine.submit(5, 1, 2).unwrap_err();
        assert_eq!((refused.running, refused.waiting), (2, 3));
        end(&mut engine);
        engine.begin_step();
        end(&mut engine);
        // Two have left, two may come.
        engine.submit(5, 1, 2).unwrap();
        engine.submit(6, 1, 2).unwrap();
        engine.submit(7, 1, 2).unwrap_err();
    }

    #[test]
    fn a_server_without_a_queue_refuses_when_its_slots_are_taken() {
        let mut engine = engine(1, 0);
        engine.submit(0, 1, 1).unwrap();
        engine.submit(1, 1, 1).unwrap_err();
    }

    #[test]
    fn an_arrival_during_a_step_waits_for_the_next_one() {
        let mut engine = engine(2, 2);
        engine.submit(0, 1, 3).unwrap();
        engine.begin_step();
        engine.submit(1, 1, 3).unwrap();
        assert_eq!(owners(&end(&mut engine)), [0]);
        engine.begin_step();
        assert_eq!(owners(&end(&mut engine)), [0, 1]);
    }

    #[test]
    fn slots_are_given_first_come_first_served() {
        let mut engine = engine(2, 10);
        for owner in 0..6 {
            engine.submit(owner, 1, 1 + (owner as u32) % 2).unwrap();
        }
        let mut order = Vec::new();
        while engine.begin_step().is_some() {
            let tokens = end(&mut engine);
            order.extend(tokens.iter().filter(|t| t.index == 0).map(|t| t.owner));
        }
        assert_eq!(order, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_cancelled_sequence_frees_its_slot_or_its_place() {
        let mut engine = engine(1, 2);
        let ids: Vec<_> = (0..3).map(|o| engine.submit(o, 1, 9).unwrap()).collect();
        engine.begin_step();
        assert!(engine.cancel(ids[0]));
        assert!(engine.cancel(ids[1]));
        assert!(!engine.cancel(ids[1]));
        assert_eq!(end(&mut engine), []);
        engine.begin_step();
        assert_eq!(owners(&end(&mut engine)), [2]);
    }

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
        /// Every accepted sequence either gets exactly its tokens, in order, the last one marked, or was
        /// cancelled; slots and capacity are never exceeded; nothing is left at the end.
        #[test]
        fn sequences_are_conserved(
            slots in 1usize..5,
            queue_limit in 0usize..5,
            actions in actions(),
        ) {
            let mut engine = engine(slots, queue_limit);
            let mut lengths = Vec::new();
            let mut ids = Vec::new();
            let mut received: Vec<u32> = Vec::new();
            let mut ended: Vec<bool> = Vec::new();
            let mut cancelled: Vec<bool> = Vec::new();
            // Enough steps at the end to serve whatever is left.
            let drain = std::iter::repeat_n(Action::Step, 100);
            for action in actions.into_iter().chain(drain) {
                let inside = (0..ids.len()).filter(|&i| !ended[i] && !cancelled[i]).count();
                prop_assert!(inside <= slots + queue_limit);
                match action {
                    Action::Submit(length) => {
                        let owner = ids.len() as u64;
                        match engine.submit(owner, 1, length) {
                            Ok(id) => {
                                ids.push(id);
                                lengths.push(length);
                                received.push(0);
                                ended.push(false);
                                cancelled.push(false);
                            }
                            Err(full) => {
                                prop_assert_eq!(inside, slots + queue_limit);
                                prop_assert_eq!(full.running + full.waiting, inside);
                            }
                        }
                    }
                    Action::Cancel(which) if which < ids.len() => {
                        let was_inside = engine.cancel(ids[which]);
                        prop_assert_eq!(was_inside, !ended[which] && !cancelled[which]);
                        cancelled[which] |= was_inside;
                    }
                    Action::Cancel(_) => {}
                    Action::Step => {
                        let begun = engine.begin_step();
                        prop_assert_eq!(begun.is_some(), inside > 0);
                        let tokens = end(&mut engine);
                        prop_assert_eq!(tokens.len(), inside.min(slots));
                        for token in tokens {
                            let i = token.owner as usize;
                            prop_assert!(!cancelled[i] && !ended[i]);
                            prop_assert_eq!(token.index, received[i]);
                            received[i] += 1;
                            ended[i] = token.last;
                            prop_assert_eq!(token.last, received[i] == lengths[i]);
                        }
                    }
                }
            }
            prop_assert!(engine.is_idle());
            prop_assert!((0..ids.len()).all(|i| ended[i] != cancelled[i]));
        }
    }
}
