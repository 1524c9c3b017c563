//! The differences between request kinds, one file each. A new kind needs a file, a variant
//! here, an entry in `ALL`, an arm in `wire`, and a file in the simulator's `protocol`.

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

/// The API route that requests go to.
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

/// The form of a prompt in the body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A single string; messages are concatenated.
    Text,
    /// A list of messages.
    Messages,
    /// A string if there is only one message, else a list.
    Either,
}

/// How a kind of request is encoded on the wire.
pub(crate) struct Wire {
    /// Path below the base URL.
    pub route: &'static str,
    /// Key of the prompt in the body. Its form is `shape`.
    pub prompt_key: &'static str,
    pub shape: Shape,
    /// Key of the system prompt; `None` if it is the first part of the prompt itself.
    pub system_key: Option<&'static str>,
    /// Key that limits the tokens of an answer. `None` if none are generated: there is nothing
    /// to limit or to stream, and no finish reason.
    pub limit_key: Option<&'static str>,
    /// Whether a stream reports token counts only if `stream_options` asks for them.
    pub usage_on_request: bool,
    /// Header for the API key unless `llm.api_key_header` is set; `None`: `Authorization: Bearer`.
    pub key_header: Option<&'static str>,
    /// Further headers that every request needs.
    pub headers: &'static [(&'static str, &'static str)],
    /// Parses a chunk of a stream or a whole answer.
    pub read: fn(&[u8]) -> serde_json::Result<Chunk<'_>>,
    /// Name for the content that an empty answer lacks, used in the error message.
    pub content: &'static str,
    /// Name for the end of a stream, used in the error message.
    pub end: &'static str,
}

impl Wire {
    /// Defaults that most kinds share.
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

/// The content of a chunk of a stream, or of a whole answer. All of it is optional: servers differ.
#[derive(Default)]
pub(crate) struct Chunk<'a> {
    pub has_content: bool,
    pub text: Cow<'a, str>,
    pub finish_reason: Option<String>,
    pub usage: Option<&'a RawValue>,
    pub is_error: bool,
    /// Whether this is the last chunk.
    pub is_last: bool,
}

impl<'a> Chunk<'a> {
    fn add(&mut self, written: Option<&'a RawValue>) {
        let text = written.map(text_of).unwrap_or_default();
        self.has_content |= !text.is_empty();
        self.text += text;
    }
}

/// Whether a list or a string (a vector may be base64) is empty. Anything else counts as empty.
fn is_empty(written: &RawValue) -> bool {
    let written = written.get();
    !written.starts_with(['[', '"']) || written[1..written.len() - 1].trim_ascii().is_empty()
}

/// The text of a string, or of a list of parts that each have a `text`.
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
