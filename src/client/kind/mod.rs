//! Where the kinds of request differ, one file each: a new kind is a file, a variant here, its place in `ALL` and its arm
//! of `wire`; and a file in the simulator's `protocol`.

mod chat;
mod choices;
mod completion;
mod embedding;
mod messages;
mod responses;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;
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
    /// OpenAI's `/responses`.
    Responses,
    /// Anthropic's `/messages`.
    Messages,
}

impl RequestKind {
    pub(super) const ALL: [RequestKind; 5] = {
        use RequestKind::*;
        [Chat, Completion, Embedding, Responses, Messages]
    };

    /// Whether answers are generated token by token, so that they can be streamed.
    pub(crate) fn generates(self) -> bool {
        self.wire().limit_key.is_some()
    }

    pub(crate) fn wire(self) -> &'static Wire {
        match self {
            RequestKind::Chat => &chat::WIRE,
            RequestKind::Completion => &completion::WIRE,
            RequestKind::Embedding => &embedding::WIRE,
            RequestKind::Responses => &responses::WIRE,
            RequestKind::Messages => &messages::WIRE,
        }
    }
}

/// How a prompt is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One text, messages one after the other.
    Text,
    /// A list of messages.
    Messages,
    /// A text where it is one message, else a list.
    Either,
}

/// A kind of request as it travels.
pub(crate) struct Wire {
    /// Below the base URL.
    pub route: &'static str,
    /// What carries the prompt in the body, and in which shape.
    pub prompt_key: &'static str,
    pub shape: Shape,
    /// What carries a system prompt; `None`: the same, before the rest.
    pub system_key: Option<&'static str>,
    /// What limits the tokens of an answer. Where none are generated there is nothing to limit or stream, and no reason
    /// why an answer ends.
    pub limit_key: Option<&'static str>,
    /// Whether a stream tells the tokens only if `stream_options` asks for them.
    pub usage_on_request: bool,
    /// What carries the API key unless `llm.api_key_header` says so; `None`: `Authorization: Bearer`.
    pub key_header: Option<&'static str>,
    /// What every request needs besides.
    pub headers: &'static [(&'static str, &'static str)],
    /// Reads a chunk of a stream or a whole answer.
    pub read: fn(&[u8]) -> serde_json::Result<Chunk<'_>>,
    /// What an answer without content is said to lack.
    pub content: &'static str,
    /// What ends a stream.
    pub end: &'static str,
}

impl Wire {
    /// What most kinds have in common.
    const PLAIN: Wire = Wire {
        route: "",
        prompt_key: "",
        shape: Shape::Text,
        system_key: None,
        limit_key: None,
        usage_on_request: false,
        key_header: None,
        headers: &[],
        read: choices::read,
        content: "content",
        end: "finish_reason and [DONE]",
    };
}

/// What a chunk of a stream, or a whole answer, brings. All of it is optional: servers differ.
#[derive(Default)]
pub(crate) struct Chunk<'a> {
    pub has_content: bool,
    pub text: Cow<'a, str>,
    pub finish_reason: Option<String>,
    pub usage: Option<&'a RawValue>,
    pub is_error: bool,
    /// Whether nothing follows.
    pub is_last: bool,
}

impl<'a> Chunk<'a> {
    fn add(&mut self, written: Option<&'a RawValue>) {
        let text = written.map(text_of).unwrap_or_default();
        self.has_content |= !text.is_empty();
        self.text += text;
    }
}

/// Whether a list, or a string (a vector may be base64), holds nothing. What is neither holds nothing.
fn is_empty(written: &RawValue) -> bool {
    let written = written.get();
    !written.starts_with(['[', '"']) || written[1..written.len() - 1].trim_ascii().is_empty()
}

/// A string, or a list of parts with a `text` each.
fn text_of(written: &RawValue) -> Cow<'_, str> {
    fn joined(value: Value) -> String {
        match value {
            Value::String(text) => text,
            Value::Array(parts) => parts.into_iter().map(joined).collect(),
            Value::Object(mut part) => part.remove("text").map(joined).unwrap_or_default(),
            _ => String::new(),
        }
    }
    match written.get().strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(plain) if memchr::memchr(b'\\', plain.as_bytes()).is_none() => Cow::Borrowed(plain),
        _ => Cow::Owned(joined(serde_json::from_str(written.get()).unwrap_or_default())),
    }
}
