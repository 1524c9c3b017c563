//! What a measurement sends, and where: the prompts in the same order at every level, each made unique.

use std::future::Future;
use std::sync::Arc;

use crate::client::outcome::Reply;
use crate::client::redact::fnv1a;
use crate::client::{BodyTemplate, Transport};
use crate::client::{Cache, RequestSettings};
use crate::prompts::Prompt;

/// The requests of a run, by level and sequence number.
pub struct Target {
    transport: Transport,
    bodies: Vec<Arc<BodyTemplate>>,
    sizes: Vec<Arc<str>>,
    cache: Cache,
    salt: String,
}

impl Target {
    /// Asks `model` about `prompts` (at least one) as `request` says. `salt` tells this run's requests from another's.
    pub fn new(
        transport: Transport,
        model: &str,
        request: &RequestSettings,
        prompts: &[Prompt],
        salt: impl Into<String>,
    ) -> Self {
        let bodies = prompts.iter().map(|prompt| Arc::new(BodyTemplate::new(model, request, &prompt.text))).collect();
        let sizes = prompts.iter().map(|prompt| prompt.size.as_str().into()).collect();
        Target { transport, bodies, sizes, cache: request.cache, salt: salt.into() }
    }

    fn prompt(&self, seq: u64) -> usize {
        (seq % self.bodies.len() as u64) as usize
    }

    pub fn prompt_size(&self, seq: u64) -> Arc<str> {
        self.sizes[self.prompt(seq)].clone()
    }

    /// The models the server says it has; `None` if it does not say.
    pub async fn models(&self) -> Option<Vec<String>> {
        self.transport.models().await
    }

    /// Sends the request with this sequence number. The same prompts come in the same order at every level.
    pub fn send(&self, level: usize, seq: u64) -> impl Future<Output = Reply> + Send + 'static {
        self.send_in_round(0, level, seq)
    }

    /// Sends the prompt with this number before anything is measured; `seq` makes it unique.
    pub fn send_before(&self, prompt: usize, seq: u64) -> impl Future<Output = Reply> + Send + 'static {
        // Level 0 is none: no measured request carries the same mark.
        self.send_prompt(prompt, 0, 0, seq)
    }

    /// The same in a visit, from 1: what the level's first measurement left in the server's cache must not help.
    pub fn send_in_round(&self, round: u32, level: usize, seq: u64) -> impl Future<Output = Reply> + Send + 'static {
        self.send_prompt(self.prompt(seq), round, level, seq)
    }

    fn send_prompt(
        &self,
        prompt: usize,
        round: u32,
        level: usize,
        seq: u64,
    ) -> impl Future<Output = Reply> + Send + 'static {
        let body = self.bodies[prompt].clone();
        let prefix = match self.cache {
            Cache::Fresh => unique_prefix(&self.salt, round, level, seq),
            Cache::Reuse => String::new(),
        };
        let transport = self.transport.clone();
        async move { transport.send_made(|| body.fill(&prefix)).await }
    }
}

/// Short, and always of the same length: over run, round, level and sequence.
fn unique_prefix(salt: &str, round: u32, level: usize, seq: u64) -> String {
    let numbers = [u64::from(round), level as u64, seq].map(u64::to_le_bytes);
    format!("{:016x} ", fnv1a(salt.as_bytes().iter().chain(numbers.iter().flatten())))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_prefix_is_unique_by_run_round_level_and_sequence_and_always_as_long() {
        let mut seen = HashSet::new();
        for salt in ["42/a", "42/b"] {
            for (round, level) in [(0, 1), (0, 2), (0, 50), (1, 2), (2, 50)] {
                for seq in 0..1000 {
                    let prefix = unique_prefix(salt, round, level, seq);
                    assert_eq!(prefix.len(), 17);
                    assert!(seen.insert(prefix), "{salt} {round} {level} {seq}");
                }
            }
        }
        assert_eq!(unique_prefix("42/a", 1, 5, 7), unique_prefix("42/a", 1, 5, 7));
    }
}
