//! What a measurement sends, and where: the same prompts in the same order at every level, each made unique.

use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::client::outcome::Reply;
use crate::client::redact::fnv1a;
use crate::client::{BodyTemplate, Cache, Prompt, RequestSettings, Transport};

/// The requests of a run, by level and sequence number.
pub struct Target {
    pub(crate) transport: Transport,
    model: String,
    request: RequestSettings,
    bodies: Vec<Arc<BodyTemplate>>,
    sizes: Vec<Arc<str>>,
    salt: String,
    /// A copy of the prompts; empty unless some of them begin conversations.
    conversations: Vec<Prompt>,
    open: Arc<Mutex<Open>>,
}

/// Conversations in progress within a loop.
#[derive(Default)]
struct Open {
    begun: usize,
    /// Conversations whose last turn was answered, each with its unique mark. The next turn
    /// follows at once, so they rarely wait here: only while the level decreases.
    answered: Vec<(Prompt, String)>,
}

/// A request to send: its body, its unique mark, and the conversation that continues after it.
type Turn = (Arc<BodyTemplate>, String, Option<Prompt>);

impl Target {
    /// Sends `prompts` (at least one) to `model` as `request` specifies. `salt` makes this run's requests unique.
    pub fn new(
        transport: Transport,
        model: &str,
        request: &RequestSettings,
        prompts: &[Prompt],
        salt: impl Into<String>,
    ) -> Self {
        let mut bodies: Vec<Arc<BodyTemplate>> = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let body = BodyTemplate::new(model, request, prompt).sharing(bodies.last().map(|last| &**last));
            bodies.push(Arc::new(body));
        }
        let has_conversations = prompts.iter().any(|prompt| !prompt.later.is_empty());
        Target {
            transport,
            model: model.to_owned(),
            request: request.clone(),
            bodies,
            sizes: prompts.iter().map(|prompt| prompt.size.as_str().into()).collect(),
            salt: salt.into(),
            conversations: if has_conversations { prompts.to_vec() } else { Vec::new() },
            open: Arc::default(),
        }
    }

    fn prompt(&self, seq: u64) -> usize {
        (seq % self.bodies.len() as u64) as usize
    }

    /// Size label of a prompt; `None` for conversations, whose next turn depends on which answer comes first.
    pub fn prompt_size(&self, seq: u64) -> Option<Arc<str>> {
        self.conversations.is_empty().then(|| self.sizes[self.prompt(seq)].clone())
    }

    /// Sends the request with this sequence number. The same prompts come in the same order at every level.
    pub fn send(&self, level: usize, seq: u64) -> impl Future<Output = Reply> + Send + 'static {
        self.send_in_round(0, level, seq)
    }

    /// Sends the prompt at this index before anything is measured; `seq` makes it unique.
    pub fn send_before(&self, prompt: usize, seq: u64) -> impl Future<Output = Reply> + Send + 'static {
        // Level 0 does not exist, so no measured request carries the same mark.
        self.send_turn((self.bodies[prompt].clone(), self.mark(0, 0, seq), None))
    }

    /// Like [`send`](Self::send), in visit `round` (from 1), so that a cache filled by earlier visits does not help.
    pub fn send_in_round(&self, round: u32, level: usize, seq: u64) -> impl Future<Output = Reply> + Send + 'static {
        let mark = self.mark(round, level, seq);
        self.send_turn(match self.conversations[..] {
            [] => (self.bodies[self.prompt(seq)].clone(), mark, None),
            _ => self.next_turn(seq, mark),
        })
    }

    /// The next turn of the most recently answered conversation, or else the first turn of a new one.
    fn next_turn(&self, seq: u64, mark: String) -> Turn {
        let mut open = self.open.lock();
        if seq == 0 {
            *open = Open::default();
        }
        if let Some((prompt, mark)) = open.answered.pop() {
            return (Arc::new(BodyTemplate::new(&self.model, &self.request, &prompt)), mark, Some(prompt));
        }
        let at = open.begun % self.bodies.len();
        open.begun += 1;
        (self.bodies[at].clone(), mark, Some(self.conversations[at].clone()))
    }

    fn send_turn(&self, (body, mark, conversation): Turn) -> impl Future<Output = Reply> + Send + 'static {
        let (transport, open) = (self.transport.clone(), self.open.clone());
        async move {
            let answer = transport.exchange(|| body.fill(&mark), conversation.is_some()).await;
            // After a failure the conversation cannot continue.
            if answer.reply.failure.is_none()
                && let Some(next) = conversation.and_then(|so_far| so_far.answered(answer.text.unwrap_or_default()))
            {
                open.lock().answered.push((next, mark));
            }
            answer.reply
        }
    }

    fn mark(&self, round: u32, level: usize, seq: u64) -> String {
        match self.request.cache() {
            Cache::Fresh | Cache::Shared => unique_mark(&self.salt, round, level, seq),
            Cache::Reuse => String::new(),
        }
    }
}

/// A short mark of constant length, derived from run, round, level and sequence number. It has six
/// digits, as each of its tokens costs prefill: tokenizers take one to three digits at a time, but split
/// at letters. A level's marks are unique for a million requests; other levels and runs start elsewhere.
fn unique_mark(salt: &str, round: u32, level: usize, seq: u64) -> String {
    const MARKS: u64 = 1_000_000;
    // Near the golden ratio and coprime to `MARKS`: consecutive marks do not begin alike.
    const STRIDE: u64 = 618_033;
    let numbers = [u64::from(round), level as u64].map(u64::to_le_bytes);
    let start = fnv1a(salt.as_bytes().iter().chain(numbers.iter().flatten())) % MARKS;
    format!("{:06} ", (start + seq % MARKS * STRIDE) % MARKS)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_mark_is_unique_by_run_round_level_and_sequence_and_always_as_long() {
        let mut seen = HashSet::new();
        for salt in ["42/a", "42/b"] {
            for (round, level) in [(0, 1), (0, 2), (0, 50), (1, 2), (2, 50)] {
                for seq in 0..1000 {
                    let mark = unique_mark(salt, round, level, seq);
                    assert_eq!(mark.len(), 7);
                    assert!(seen.insert(mark), "{salt} {round} {level} {seq}");
                }
            }
        }
        assert_eq!(unique_mark("42/a", 1, 5, 7), unique_mark("42/a", 1, 5, 7));
    }
}
