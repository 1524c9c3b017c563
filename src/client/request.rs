//! What is sent: the section `benchmark.request` of config.yaml.

use std::path::PathBuf;

use serde::{Deserialize, Serialize, Serializer};

use super::config::{ConfigError, bad};
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
    pub extra_body: serde_json::Map<String, serde_json::Value>,
}

impl Default for RequestSettings {
    fn default() -> Self {
        RequestSettings {
            kind: RequestKind::Chat,
            stream: true,
            max_tokens: 64,
            prompts: None,
            cache: Cache::Fresh,
            extra_body: serde_json::Map::new(),
        }
    }
}

fn without_secrets<S: Serializer>(
    map: &serde_json::Map<String, serde_json::Value>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    redact::without_secrets(map).serialize(serializer)
}

impl RequestSettings {
    /// Adding to a request is what `extra_body` is for. What it would replace has a key of its own, by which a run is
    /// planned and counted.
    pub fn check(&self) -> Result<(), ConfigError> {
        let ours = [
            (self.kind.prompt_key(), "it carries the prompts; set benchmark.request.prompts instead"),
            ("model", "set llm.model instead"),
            ("stream", "set benchmark.request.stream instead"),
        ];
        let body = &self.extra_body;
        let refused = |(key, mend): (&str, &str)| Err(bad(format!("benchmark.request.extra_body.{key}"), mend));
        if let Some(found) = ours.into_iter().find(|(key, _)| body.contains_key(*key)) {
            return refused(found);
        }
        let asks_for_usage = |options: &serde_json::Value| options.is_null() || options["include_usage"] == true;
        if !body.get("stream_options").is_none_or(asks_for_usage) {
            return refused((
                "stream_options",
                "set include_usage: true in it (tokens are counted by it), or make it null",
            ));
        }
        // Some models know the limit by this name only, and refuse the other unless it is null.
        let renamed = body.get("max_completion_tokens");
        if renamed.is_some_and(|limit| *limit != self.max_tokens) {
            return refused((
                "max_completion_tokens",
                "must equal benchmark.request.max_tokens, which the plan and the budget go by",
            ));
        }
        match body.get("max_tokens") {
            Some(limit) if !limit.is_null() || renamed.is_none() => {
                refused(("max_tokens", "set benchmark.request.max_tokens instead"))
            }
            _ => Ok(()),
        }
    }
}

impl RequestKind {
    /// What carries the prompt in a request's body.
    pub(crate) fn prompt_key(self) -> &'static str {
        match self {
            RequestKind::Chat => "messages",
            RequestKind::Completion => "prompt",
            RequestKind::Embedding => "input",
        }
    }
}

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
