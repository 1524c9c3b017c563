//! What requests look like: the section `benchmark.request` of config.yaml.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::config::{ConfigError, invalid};
use super::kind::RequestKind;
use super::redact;

/// The settings that shape a request; part of the fingerprint.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RequestSettings {
    /// The API route.
    pub kind: RequestKind,
    /// Whether answers are streamed; without streaming there is no TTFT.
    pub stream: bool,
    /// Maximum length of an answer, tokens.
    pub max_tokens: u32,
    /// Prompts file, relative to config.yaml's folder or absolute. Default:
    /// `test-data/test_snippets.json`, or the same snippets built in if that file does not exist.
    pub prompts: Option<PathBuf>,
    /// System prompt for all prompts. Saved only as part of the hash of the prompts.
    #[serde(skip_serializing)]
    pub system: Option<System>,
    /// Which part of a prompt may come from the server's prefix cache; for `None` see [`cache`](Self::cache()).
    #[serde(serialize_with = "or_fresh")]
    pub cache: Option<Cache>,
    /// Merged into the body of every request. Secrets in it are not written to any file.
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
            system: None,
            cache: None,
            extra_body: Map::new(),
        }
    }
}

fn without_secrets<S: Serializer>(map: &Map<String, Value>, serializer: S) -> Result<S::Ok, S::Error> {
    redact::without_secrets(map).serialize(serializer)
}

/// Serializes `None` as `fresh`: runs of earlier versions had no system prompt.
fn or_fresh<S: Serializer>(cache: &Option<Cache>, serializer: S) -> Result<S::Ok, S::Error> {
    cache.unwrap_or_default().serialize(serializer)
}

/// A system prompt.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged, deny_unknown_fields, expecting = "expected a string, or {file: PATH}")]
pub enum System {
    /// The text itself.
    Text(String),
    /// The content of a file.
    File {
        /// Relative to config.yaml's folder, or absolute.
        file: PathBuf,
    },
}

impl RequestSettings {
    /// The setting; by default `shared` if there is a system prompt to share, else `fresh`.
    pub fn cache(&self) -> Cache {
        self.cache.unwrap_or(if self.system.is_some() { Cache::Shared } else { Cache::Fresh })
    }

    /// Checks that `extra_body` only adds to a request. Whatever it must not replace has a key
    /// of its own, which planning and counting rely on.
    pub fn check(&self) -> Result<(), ConfigError> {
        let system = |message: &str| Err(invalid("benchmark.request.system", message));
        match &self.system {
            Some(_) if !self.kind.generates() => return system("kind embedding has no system prompt"),
            Some(System::Text(text)) if text.trim().is_empty() => return system("is blank; remove the key"),
            Some(System::Text(text))
                if !text.trim().contains(char::is_whitespace)
                    && Path::new(text.trim()).extension().is_some_and(|end| !end.is_empty()) =>
            {
                return system(&format!(
                    "is sent as it is; to send the text of a file, write {{file: {}}}",
                    text.trim()
                ));
            }
            _ => {}
        }
        let body = &self.extra_body;
        let has = |key| body.contains_key(key);
        let wire = self.kind.wire();
        let (prompt_key, limit_key) = (wire.prompt_key, wire.limit_key.unwrap_or("max_tokens"));
        let system_key = wire.system_key.unwrap_or_default();
        let asks_for_usage = |options: &Value| options.is_null() || options["include_usage"] == true;
        // Some models know the limit only by this name, and reject the other unless it is null.
        let renamed = body.get("max_completion_tokens");
        let more = asks_for_more(body);
        let rules = [
            (more.unwrap_or_default(), more.is_some(), ONE_ANSWER),
            (prompt_key, has(prompt_key), "it carries the prompts; set benchmark.request.prompts instead"),
            ("model", has("model"), "set llm.model instead"),
            ("stream", has("stream"), "set benchmark.request.stream instead"),
            (
                "stream_options",
                wire.usage_on_request && !body.get("stream_options").is_none_or(asks_for_usage),
                "set include_usage: true in it (token counts come from it), or set it to null",
            ),
            (
                "max_completion_tokens",
                renamed.is_some_and(|limit| *limit != self.max_tokens),
                "must equal benchmark.request.max_tokens, which the plan and the budget are based on",
            ),
            (limit_key, limit_key != "max_tokens" && has(limit_key), "set benchmark.request.max_tokens instead"),
            (
                system_key,
                self.system.is_some() && has(system_key),
                "benchmark.request.system is set too; remove one of the two",
            ),
            (
                "max_tokens",
                body.get("max_tokens").is_some_and(|limit| !limit.is_null() || renamed.is_none()),
                "set benchmark.request.max_tokens instead",
            ),
        ];
        match rules.into_iter().find(|(_, broken, _)| *broken) {
            Some((key, _, remedy)) => Err(invalid(format!("benchmark.request.extra_body.{key}"), remedy)),
            None => Ok(()),
        }
    }
}

/// What is wrong with a key that [`asks_for_more`].
pub(crate) const ONE_ANSWER: &str = "must be 1: the plan and the budget count one answer per request";

/// The key by which a request asks for several answers, if it does.
pub(crate) fn asks_for_more(body: &Map<String, Value>) -> Option<&'static str> {
    let is_more = |key: &&str| body.get(*key).is_some_and(|n| !n.is_null() && n.as_f64() != Some(1.0));
    ["n", "best_of"].into_iter().find(is_more)
}

/// Which part of a prompt may come from the server's prefix cache; decides which traffic a run represents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Nothing: every prompt begins with a short unique mark. For traffic in which no two prompts begin alike.
    #[default]
    Fresh,
    /// Everything before the first user message, which begins with the mark. For programs that
    /// send the same system prompt with every request, followed by a different task.
    Shared,
    /// All of it: prompts are sent unmodified. For programs that send the same prompts again and again.
    Reuse,
}
