//! What is sent: the section `benchmark.request` of config.yaml, and the bodies made by it.

use std::path::PathBuf;

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::config::{ConfigError, bad};
use super::kind::RequestKind;
use super::redact;

/// What is sent: part of the fingerprint.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RequestSettings {
    /// The route.
    pub kind: RequestKind,
    /// Whether answers are streamed; without it there is no TTFT.
    pub stream: bool,
    /// Longest answer, tokens.
    pub max_tokens: u32,
    /// The prompts, a file beside config.yaml (or an absolute path). Without it `test-data/test_snippets.json`, and
    /// where that does not exist the same snippets from memory.
    pub prompts: Option<PathBuf>,
    /// Whether the server's prefix cache may help.
    pub cache: Cache,
    /// Merged into the body of every request. What is secret in it is not written into any file.
    #[serde(serialize_with = "without_secrets")]
    pub extra_body: Map<String, Value>,
}

impl Default for RequestSettings {
    fn default() -> Self {
        RequestSettings {
            kind: RequestKind::Chat,
            stream: true,
            max_tokens: 64,
            prompts: None,
            cache: Cache::Fresh,
            extra_body: Map::new(),
        }
    }
}

fn without_secrets<S: Serializer>(map: &Map<String, Value>, serializer: S) -> Result<S::Ok, S::Error> {
    redact::without_secrets(map).serialize(serializer)
}

impl RequestSettings {
    /// Adding to a request is what `extra_body` is for. What it would replace has a key of its own, by which a run is
    /// planned and counted.
    pub fn check(&self) -> Result<(), ConfigError> {
        let body = &self.extra_body;
        let has = |key| body.contains_key(key);
        let prompt_key = self.kind.wire().prompt_key;
        let asks_for_usage = |options: &Value| options.is_null() || options["include_usage"] == true;
        // Some models know the limit by this name only, and refuse the other unless it is null.
        let renamed = body.get("max_completion_tokens");
        let rules = [
            (prompt_key, has(prompt_key), "it carries the prompts; set benchmark.request.prompts instead"),
            ("model", has("model"), "set llm.model instead"),
            ("stream", has("stream"), "set benchmark.request.stream instead"),
            (
                "stream_options",
                !body.get("stream_options").is_none_or(asks_for_usage),
                "set include_usage: true in it (tokens are counted by it), or make it null",
            ),
            (
                "max_completion_tokens",
                renamed.is_some_and(|limit| *limit != self.max_tokens),
                "must equal benchmark.request.max_tokens, which the plan and the budget go by",
            ),
            (
                "max_tokens",
                body.get("max_tokens").is_some_and(|limit| !limit.is_null() || renamed.is_none()),
                "set benchmark.request.max_tokens instead",
            ),
        ];
        match rules.into_iter().find(|(_, broken, _)| *broken) {
            Some((key, _, remedy)) => Err(bad(format!("benchmark.request.extra_body.{key}"), remedy)),
            None => Ok(()),
        }
    }
}

/// Whether prompts are made unique.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Every prompt begins with a short unique prefix, so that a prefix cache favours no level.
    #[default]
    Fresh,
    /// Prompts are sent as they are.
    Reuse,
}

/// The body of a request, built once per prompt; only the prefix that makes it unique is filled in per request.
pub struct BodyTemplate {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl BodyTemplate {
    /// The body that asks `model` about `prompt` as `settings` say.
    pub fn new(model: &str, settings: &RequestSettings, prompt: &str) -> Self {
        let wire = settings.kind.wire();
        let mut others = Map::from_iter([("model".to_owned(), model.into())]);
        if wire.generates {
            others.insert("max_tokens".into(), settings.max_tokens.into());
            others.insert("stream".into(), settings.stream.into());
            if settings.stream {
                others.insert("stream_options".into(), json!({"include_usage": true}));
            }
        }
        others.extend(settings.extra_body.clone());
        others.remove(wire.prompt_key);
        let others = Value::Object(others).to_string();
        let (key, [open, close]) = (wire.prompt_key, wire.around_prompt);
        let quoted = Value::from(prompt).to_string();
        // The prompt comes last, and its place is where it is put: behind the others' last entry, after the quote.
        let before = format!("{},\"{key}\":{open}\"", &others[..others.len() - 1]);
        BodyTemplate { before: before.into(), after: format!("{}{close}}}", &quoted[1..]).into() }
    }

    /// The body with `prefix` (plain letters and digits) before the prompt.
    pub fn fill(&self, prefix: &str) -> Bytes {
        [&self.before, prefix.as_bytes(), &self.after].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_stands_where_it_belongs_whatever_else_is_sent() {
        let extra_body = Map::from_iter([
            ("messages".to_owned(), json!("x")),
            ("a".to_owned(), json!({"\u{1}prefix\u{1}": [1]})),
            ("z".to_owned(), Value::Null),
        ]);
        let prompt = "say \"hi\" \u{1}prefix\u{1}\n";
        for (kind, place) in [
            (RequestKind::Chat, "/messages/0/content"),
            (RequestKind::Completion, "/prompt"),
            (RequestKind::Embedding, "/input"),
        ] {
            let settings = RequestSettings { kind, extra_body: extra_body.clone(), ..RequestSettings::default() };
            let body: Value = serde_json::from_slice(&BodyTemplate::new("m", &settings, prompt).fill("0123 ")).unwrap();
            assert_eq!(body.pointer(place).unwrap(), &format!("0123 {prompt}"), "{body}");
            assert_eq!((&body["model"], &body["a"]), (&json!("m"), &extra_body["a"]));
            assert_eq!(body.get("max_tokens").is_some(), kind != RequestKind::Embedding);
        }
    }
}
