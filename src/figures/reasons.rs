//! Why a level ended early, and why its requests failed: in the server's own words, grouped, since ids and token counts
//! differ from one to the next.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::client::outcome::{Failure, STATUS};

/// Different reasons that are kept; a server that never says the same twice is not to fill the memory.
const MOST: usize = 1_000;
/// Characters of a reason that are kept.
const LENGTH: usize = 240;

/// Why a level ended before it was complete; `Other` as earlier versions wrote it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EarlyEnd {
    WarmUpFailed,
    NoSuccess {
        seconds: f64,
    },
    TimeLimit {
        seconds: f64,
    },
    /// The warm-up included.
    MostlyFailed {
        failed: usize,
        requests: usize,
    },
    Interrupted,
    OutOfTime,
    #[serde(untagged)]
    Other(String),
}

/// A failure's kind and words, and how often it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    pub kind: Failure,
    /// What the server or the network said of one of them, short and redacted.
    pub text: String,
    pub count: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Reasons(BTreeMap<(Failure, String), Reason>);

impl Reasons {
    pub fn add(&mut self, kind: Failure, text: &str) {
        let key = (kind, without_ids(text));
        if self.0.len() < MOST || self.0.contains_key(&key) {
            let text = || text.chars().take(LENGTH).collect();
            self.0.entry(key).or_insert_with(|| Reason { kind, text: text(), count: 0 }).count += 1;
        }
    }

    pub fn of_all<'a>(parts: impl Iterator<Item = &'a Reasons>) -> Self {
        let mut all = Reasons::default();
        for (key, reason) in parts.flat_map(Reasons::groups) {
            let count = all.0.get(key).map_or(0, |found| found.count) + reason.count;
            all.0.entry(key.clone()).or_insert_with(|| reason.clone()).count = count;
        }
        all
    }

    /// The groups, each with what its members have in common.
    pub fn groups(&self) -> impl Iterator<Item = (&(Failure, String), &Reason)> {
        self.0.iter()
    }

    pub fn most_frequent(self) -> Option<Reason> {
        self.0.into_values().max_by_key(|reason| reason.count)
    }
}

/// The text with `#` for every word with a digit, an id or a count or a time, but for the status of an HTTP error.
fn without_ids(text: &str) -> String {
    let mut plain = String::new();
    for part in text.split_inclusive(|c: char| !c.is_alphanumeric()).take(LENGTH) {
        let word = part.trim_end_matches(|c: char| !c.is_alphanumeric());
        let is_id = word.contains(|c: char| c.is_ascii_digit()) && plain != STATUS;
        plain.push_str(if is_id { "#" } else { word });
        plain.push_str(&part[word.len()..]);
    }
    plain
}
