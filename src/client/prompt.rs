//! A prompt, and the body of the request that sends it.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::kind::Shape;
use super::llm_client::Message;
use super::request::{Cache, RequestSettings};

/// One of a run's prompts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Prompt {
    /// ID from the prompts file; otherwise `prompt-0001` and so on by position.
    pub id: String,
    /// Label from the prompts file; otherwise by length in characters: below 800 small, below 3000
    /// medium, else large. (The sizes of the generated snippets roughly match these thresholds.)
    pub size: String,
    /// System prompt.
    pub system: Option<Arc<str>>,
    /// Earlier messages of the conversation.
    pub history: Vec<Message>,
    /// The user's current message.
    pub text: String,
    /// The user's later messages in the same conversation, each sent once the one before is answered.
    pub later: Vec<String>,
    /// Overrides `max_tokens` of the settings.
    pub max_tokens: Option<u32>,
    /// Merged into the request body; the settings' own `extra_body` takes precedence.
    pub extra_body: Map<String, Value>,
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Prompt { text: text.to_owned(), ..Prompt::default() }
    }
}

impl Prompt {
    /// Role and text of each message, in the order in which the model reads them.
    fn messages(&self) -> impl Iterator<Item = (&str, &str)> {
        let history = self.history.iter().map(|message| (message.role.as_str(), message.content.as_str()));
        self.system.iter().map(|text| ("system", &**text)).chain(history).chain([("user", self.text.as_str())])
    }

    /// All messages of the first request, joined into one text.
    pub fn joined(&self) -> String {
        self.messages().map(|(_, text)| text).collect::<Vec<_>>().join("\n")
    }

    /// Length of the first request's messages; later turns add the answers to it.
    pub fn characters(&self) -> usize {
        self.messages().map(|(_, text)| text.chars().count()).sum()
    }

    /// Moves on to the next turn, if there is one.
    #[cfg(feature = "suite")]
    pub(crate) fn answered(mut self, answer: String) -> Option<Self> {
        if self.later.is_empty() {
            return None;
        }
        let next = self.later.remove(0);
        for (role, content) in [("user", std::mem::replace(&mut self.text, next)), ("assistant", answer)] {
            self.history.push(Message { role: role.to_owned(), content });
        }
        Some(self)
    }
}

/// The body of a request, serialized once per prompt; only the mark that makes it unique varies per request.
pub struct BodyTemplate {
    before: Bytes,
    after: Bytes,
}

impl BodyTemplate {
    /// The body that sends `prompt` to `model` as `settings` specify.
    pub fn new(model: &str, settings: &RequestSettings, prompt: &Prompt) -> Self {
        let wire = settings.kind.wire();
        let mut others = prompt.extra_body.clone();
        others.insert("model".to_owned(), model.into());
        if let Some(limit_key) = wire.limit_key {
            others.insert(limit_key.into(), prompt.max_tokens.unwrap_or(settings.max_tokens).into());
            others.insert("stream".into(), settings.stream.into());
            if settings.stream && wire.usage_on_request {
                others.insert("stream_options".into(), json!({"include_usage": true}));
            }
        }
        others.extend(settings.extra_body.clone());
        if let (Some(limit), Some(renamed)) = (prompt.max_tokens, others.get_mut("max_completion_tokens")) {
            *renamed = limit.into();
        }
        let mut messages: Vec<_> = prompt.messages().map(|(role, text)| (role, text.to_owned())).collect();
        let marked = match settings.cache() {
            Cache::Shared => messages.iter().position(|(role, _)| *role == "user").unwrap_or_default(),
            Cache::Fresh | Cache::Reuse => 0,
        };
        // A random placeholder for the mark, which no text contains.
        let place = format!("{:032x}", rand::random::<u128>());
        messages[marked].1.insert_str(0, &place);
        if let Some(key) = wire.system_key.filter(|_| prompt.system.is_some()) {
            others.insert(key.to_owned(), messages.remove(0).1.into());
        }
        let as_text = wire.shape == Shape::Text || wire.shape == Shape::Either && messages.len() == 1;
        let written: Value = if as_text {
            let texts: Vec<_> = messages.into_iter().map(|(_, text)| text).collect();
            texts.join("\n\n").into()
        } else {
            messages.into_iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
        };
        others.insert(wire.prompt_key.to_owned(), written);
        let body = Value::Object(others).to_string();
        let (before, after) = body.split_once(&place).unwrap_or((&body, ""));
        BodyTemplate {
            before: Bytes::copy_from_slice(before.as_bytes()),
            after: Bytes::copy_from_slice(after.as_bytes()),
        }
    }

    /// Shares the bytes before the mark with `other` if they are equal.
    pub fn sharing(self, other: Option<&BodyTemplate>) -> Self {
        match other {
            Some(BodyTemplate { before, .. }) if *before == self.before => {
                BodyTemplate { before: before.clone(), ..self }
            }
            _ => self,
        }
    }

    /// The body with `mark` (plain letters and digits) inserted.
    pub fn fill(&self, mark: &str) -> Bytes {
        [&self.before, mark.as_bytes(), &self.after].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bodies_begin_with_is_held_once() {
        let settings = RequestSettings { cache: Some(Cache::Shared), ..RequestSettings::default() };
        let body = |text: &str| {
            BodyTemplate::new("m", &settings, &Prompt { system: Some("s".repeat(1000).into()), ..Prompt::from(text) })
        };
        let first = body("a");
        let second = body("b").sharing(Some(&first));
        assert_eq!(first.before.as_ptr(), second.before.as_ptr());
        assert_eq!(second.fill("x "), body("b").fill("x "));
    }
}
