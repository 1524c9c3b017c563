//! `/embeddings`.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{Chunk, Wire, is_empty};

pub(super) static WIRE: Wire =
    Wire { route: "embeddings", prompt_key: "input", read, content: "vector", ..Wire::PLAIN };

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Body<'a> {
    data: Option<Vec<Vector<'a>>>,
    usage: Option<&'a RawValue>,
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Vector<'a> {
    embedding: &'a RawValue,
}

fn read(data: &[u8]) -> serde_json::Result<Chunk<'_>> {
    let body: Body<'_> = serde_json::from_slice(data)?;
    Ok(Chunk {
        has_content: body.data.is_some_and(|vectors| vectors.iter().any(|vector| !is_empty(vector.embedding))),
        usage: body.usage,
        is_error: body.error.is_some(),
        ..Chunk::default()
    })
}
