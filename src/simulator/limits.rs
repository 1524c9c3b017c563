//! Limits on requests and tokens per minute, and a cache of prompts that were seen before.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::lengths::{CHARS_PER_TOKEN, fnv1a};

/// A token bucket: it refills at a rate per minute and allows a burst.
#[derive(Debug)]
pub(super) struct TokenBucket {
    per_second: f64,
    burst: f64,
    left: f64,
    last: Instant,
}

impl TokenBucket {
    /// A bucket that is full at the time `now`.
    pub(super) fn new(per_minute: f64, burst: f64, now: Instant) -> Self {
        TokenBucket { per_second: per_minute / 60.0, burst, left: burst, last: now }
    }

    /// Takes `amount`, or returns the time until that much is available.
    pub(super) fn take(&mut self, amount: f64, now: Instant) -> Result<(), Duration> {
        let since = now.saturating_duration_since(self.last).as_secs_f64();
        self.left = (self.left + since * self.per_second).min(self.burst);
        self.last = now;
        if self.left < amount {
            return Err(Duration::from_secs_f64((amount - self.left) / self.per_second));
        }
        self.left -= amount;
        Ok(())
    }
}

/// Size of a cache block, in tokens.
pub(super) const BLOCK_TOKENS: u32 = 64;
pub(super) const BLOCK_CHARS: usize = BLOCK_TOKENS as usize * CHARS_PER_TOKEN;

/// Number of blocks at which the cache is cleared, so that a long run does not use ever more memory.
const MOST_BLOCKS: usize = 1 << 20;

/// Leading blocks of the prompts seen so far. As in paged attention, a block matches only after the same blocks.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct PrefixCache {
    seen: HashSet<u64>,
}

impl PrefixCache {
    /// Number of tokens at the start of `prompt` that were seen before, in whole blocks. Adds its other blocks.
    pub fn look_up(&mut self, prompt: &str) -> u32 {
        if self.seen.len() >= MOST_BLOCKS {
            self.seen.clear();
        }
        let mut rest = prompt;
        let mut key = 0;
        let mut cached = 0;
        let mut all_seen = true;
        while let Some((end, _)) = rest.char_indices().nth(BLOCK_CHARS) {
            key = fnv1a(key, &rest.as_bytes()[..end]);
            all_seen &= !self.seen.insert(key);
            cached += if all_seen { BLOCK_TOKENS } else { 0 };
            rest = &rest[end..];
        }
        cached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_burst_goes_through_and_then_the_rate() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut bucket = TokenBucket::new(120.0, 3.0, start);
        let passed = (0..10).filter(|_| bucket.take(1.0, start).is_ok()).count();
        assert_eq!(passed, 3);
        assert_eq!(bucket.take(1.0, start), Err(Duration::from_millis(500)));
        assert_eq!(bucket.take(1.0, at(0.25)), Err(Duration::from_millis(250)));
        assert_eq!(bucket.take(1.0, at(0.5)), Ok(()));
        assert!(bucket.take(1.0, at(0.5)).is_err());
        // A long idle period fills it no higher than the burst.
        assert_eq!((0..10).filter(|_| bucket.take(1.0, at(100.0)).is_ok()).count(), 3);
    }
}
