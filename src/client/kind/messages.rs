//! Anthropic's `/messages`.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{Chunk, Shape, Wire};

pub(super) static WIRE: Wire = Wire {
    route: "messages",
    prompt_key: "messages",
    shape: Shape::Messages,
    system_key: Some("system"),
    limit_key: Some("max_tokens"),
    key_header: Some("x-api-key"),
    headers: &[("anthropic-version", "2023-06-01")],
    read,
    end: "message_stop",
    ..Wire::PLAIN
};

/// A whole answer (`content`), or an event of a stream: its start (`message`), a piece or its end (`delta`).
#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: Option<&'a RawValue>,
    content: Option<Vec<Part<'a>>>,
    delta: Option<Part<'a>>,
    message: Option<Start<'a>>,
    usage: Option<&'a RawValue>,
    stop_reason: Option<String>,
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Start<'a> {
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Part<'a> {
    text: Option<&'a RawValue>,
    thinking: Option<&'a RawValue>,
    /// Arguments of a tool call, in a stream.
    partial_json: Option<&'a RawValue>,
    /// Arguments of a tool call, in a whole answer.
    input: Option<IgnoredAny>,
    stop_reason: Option<String>,
}

fn read(data: &[u8]) -> serde_json::Result<Chunk<'_>> {
    let body: Body<'_> = serde_json::from_slice(data)?;
    let is_last = body.kind.is_some_and(|kind| kind.get() == r#""message_stop""#);
    let usage = body.usage.or(body.message.and_then(|message| message.usage));
    let mut chunk = Chunk { usage, is_error: body.error.is_some(), is_last, ..Chunk::default() };
    chunk.finish_reason = body.stop_reason;
    for part in body.content.into_iter().flatten().chain(body.delta) {
        [part.text, part.thinking, part.partial_json].into_iter().for_each(|text| chunk.add(text));
        chunk.has_content |= part.input.is_some();
        chunk.finish_reason = part.stop_reason.or(chunk.finish_reason);
    }
    Ok(chunk)
}
