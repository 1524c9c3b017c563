//! Where the kinds of request differ, one file each: a new kind is a file, a variant here and its arm of `wire`.

mod chat;
mod choices;
mod completion;
mod embedding;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The route requests go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RequestKind {
    /// `/chat/completions`.
    #[default]
    Chat,
    /// `/completions`.
    Completion,
    /// `/embeddings`; never streamed.
    Embedding,
}

impl RequestKind {
    pub(super) fn wire(self) -> &'static Wire {
        match self {
            RequestKind::Chat => &chat::WIRE,
            RequestKind::Completion => &completion::WIRE,
            RequestKind::Embedding => &embedding::WIRE,
        }
    }
}

/// A kind of request as it travels.
pub(super) struct Wire {
    /// Below the base URL.
    pub route: &'static str,
    /// What carries the prompt in the body, and what stands there before and after the quoted prompt.
    pub prompt_key: &'static str,
    pub around_prompt: [&'static str; 2],
    /// Whether tokens are generated: then they can be limited and streamed, and there is a reason why they end.
    pub generates: bool,
    /// Reads a chunk of a stream or a whole answer.
    pub read: fn(&[u8]) -> serde_json::Result<Chunk<'_>>,
    /// What an answer without content is said to lack.
    pub content: &'static str,
}

/// What a chunk of a stream, or a whole answer, brings. All of it is optional: servers differ.
#[derive(Default)]
pub(super) struct Chunk<'a> {
    pub has_content: bool,
    pub text: Cow<'a, str>,
    pub finish_reason: Option<Cow<'a, str>>,
    pub usage: Option<&'a RawValue>,
    pub is_error: bool,
}

/// Whether a list, or a string (a vector may be base64), holds nothing. What is neither holds nothing.
fn is_empty(written: &RawValue) -> bool {
    let written = written.get();
    !written.starts_with(['[', '"']) || written[1..written.len() - 1].trim_ascii().is_empty()
}
