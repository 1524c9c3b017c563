//! Why a level ended early, and why its requests failed: in the server's own words, grouped
//! across differing ids and token counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::client::outcome::{Failure, STATUS};

/// Maximum number of distinct reasons, so that a server with a new message for every error does not fill memory.
const MOST: usize = 1_000;
/// Maximum length of a reason, characters.
const LENGTH: usize = 240;

/// Why a level ended before it was complete; `Other` is the form that earlier versions wrote.
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
    /// The counts include the warm-up.
    MostlyFailed {
        failed: usize,
        requests: usize,
    },
    Interrupted,
    OutOfTime,
    #[serde(untagged)]
    Other(String),
}

/// The kind and message of a failure, and how often it occurred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    pub kind: Failure,
    /// The message of one of these failures, short and redacted.
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

    /// The groups, each with the key that its members share.
    pub fn groups(&self) -> impl Iterator<Item = (&(Failure, String), &Reason)> {
        self.0.iter()
    }

    pub fn most_frequent(self) -> Option<Reason> {
        self.0.into_values().max_by_key(|reason| reason.count)
    }
}

/// Replaces words that contain a digit (ids, counts, times) by `#`, except the status of an HTTP error.
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
