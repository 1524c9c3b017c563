//! OpenAI's `/responses`.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{Chunk, Shape, Wire, is_empty, text_of};

pub(super) static WIRE: Wire = Wire {
    route: "responses",
    prompt_key: "input",
    shape: Shape::Either,
    system_key: Some("instructions"),
    limit_key: Some("max_output_tokens"),
    read,
    end: "response.completed",
    ..Wire::PLAIN
};

/// An event of a stream.
#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: Option<&'a RawValue>,
    /// A piece of text, of reasoning, or of a tool call's arguments.
    delta: Option<&'a RawValue>,
    response: Option<Whole<'a>>,
    error: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Whole<'a> {
    status: Option<&'a RawValue>,
    output: Option<Vec<Item<'a>>>,
    usage: Option<&'a RawValue>,
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Item<'a> {
    content: Option<&'a RawValue>,
    arguments: Option<&'a RawValue>,
}

fn read(data: &[u8]) -> serde_json::Result<Chunk<'_>> {
    let event: Event<'_> = serde_json::from_slice(data)?;
    let Some(kind) = event.kind.map(|kind| kind.get().trim_matches('"')) else {
        return whole(serde_json::from_slice(data)?);
    };
    if kind.ends_with(".delta") {
        let mut chunk = Chunk::default();
        chunk.add(event.delta);
        return Ok(chunk);
    }
    let is_last = matches!(kind, "response.completed" | "response.incomplete" | "response.failed");
    let is_error = kind == "error" || event.error.is_some();
    // The final event repeats the output that the deltas have already delivered.
    let end = whole(Whole { output: None, ..event.response.unwrap_or_default() })?;
    Ok(Chunk { is_last, is_error: is_error || end.is_error, ..end })
}

fn whole(answer: Whole<'_>) -> serde_json::Result<Chunk<'_>> {
    let mut chunk = Chunk { usage: answer.usage, ..Chunk::default() };
    for item in answer.output.into_iter().flatten() {
        chunk.add(item.content);
        chunk.has_content |= item.arguments.is_some_and(|arguments| !is_empty(arguments));
    }
    let status = answer.status.map(text_of).unwrap_or_default();
    chunk.is_error = answer.error.is_some() || status == "failed";
    chunk.finish_reason = matches!(&*status, "completed" | "incomplete").then(|| status.into_owned());
    Ok(chunk)
}
