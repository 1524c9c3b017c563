//! Answers with `choices`, as used by chats and completions.

use std::fmt;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{Chunk, is_empty};

pub(super) fn read(data: &[u8]) -> serde_json::Result<Chunk<'_>> {
    let body: Body<'_> = serde_json::from_slice(data)?;
    let Choices(chunk) = body.choices.unwrap_or_default();
    Ok(Chunk { usage: body.usage, is_error: body.error.is_some(), ..chunk })
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Body<'a> {
    choices: Option<Choices<'a>>,
    usage: Option<&'a RawValue>,
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Choice<'a> {
    delta: Option<Part<'a>>,
    message: Option<Part<'a>>,
    text: Option<&'a RawValue>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Part<'a> {
    content: Option<&'a RawValue>,
    reasoning_content: Option<&'a RawValue>,
    reasoning: Option<&'a RawValue>,
    tool_calls: Option<&'a RawValue>,
}

/// All choices of a chunk, merged as they are read: a list would cost an allocation per chunk.
#[derive(Default)]
struct Choices<'a>(Chunk<'a>);

impl<'a> Choices<'a> {
    fn add(&mut self, choice: Choice<'a>) {
        for part in [choice.delta, choice.message].into_iter().flatten() {
            [part.content, part.reasoning_content, part.reasoning].into_iter().for_each(|text| self.0.add(text));
            self.0.has_content |= part.tool_calls.is_some_and(|calls| !is_empty(calls));
        }
        self.0.add(choice.text);
        self.0.finish_reason = choice.finish_reason.or(self.0.finish_reason.take());
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Choices<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Adding;
        impl<'de> Visitor<'de> for Adding {
            type Value = Choices<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of choices")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Choices<'de>, A::Error> {
                let mut all = Choices::default();
                while let Some(choice) = list.next_element()? {
                    all.add(choice);
                }
                Ok(all)
            }
        }
        deserializer.deserialize_seq(Adding)
    }
}
