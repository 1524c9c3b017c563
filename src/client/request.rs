//! What is sent: the section `benchmark.request` of config.yaml, and the bodies made by it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::config::{ConfigError, invalid};
use super::kind::{RequestKind, Shape};
use super::llm_client::Message;
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
    /// What every prompt begins with. Saved only as part of the hash of the prompts.
    #[serde(skip_serializing)]
    pub system: Option<System>,
    /// What of a prompt the server may have in its prefix cache; `None`: as [`cache`](Self::cache()) says.
    #[serde(serialize_with = "or_fresh")]
    pub cache: Option<Cache>,
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
            system: None,
            cache: None,
            extra_body: Map::new(),
        }
    }
}

fn without_secrets<S: Serializer>(map: &Map<String, Value>, serializer: S) -> Result<S::Ok, S::Error> {
    redact::without_secrets(map).serialize(serializer)
}

/// Runs of earlier versions had no system prompt.
fn or_fresh<S: Serializer>(cache: &Option<Cache>, serializer: S) -> Result<S::Ok, S::Error> {
    cache.unwrap_or_default().serialize(serializer)
}

/// A system prompt.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged, deny_unknown_fields, expecting = "expected a text, or {file: PATH}")]
pub enum System {
    /// Itself.
    Text(String),
    /// What a file holds.
    File {
        /// Beside config.yaml, or an absolute path.
        file: PathBuf,
    },
}

impl RequestSettings {
    /// What is set, else `shared` where there is a system prompt to share, else `fresh`.
    pub fn cache(&self) -> Cache {
        self.cache.unwrap_or(if self.system.is_some() { Cache::Shared } else { Cache::Fresh })
    }

    /// Adding to a request is what `extra_body` is for. What it would replace has a key of its own, by which a run is
    /// planned and counted.
    pub fn check(&self) -> Result<(), ConfigError> {
        let system = |message: &str| Err(invalid("benchmark.request.system", message));
        match &self.system {
            Some(_) if self.kind == RequestKind::Embedding => return system("kind embedding has no system prompt"),
            Some(System::Text(text)) if text.trim().is_empty() => return system("is blank; leave the key out"),
            Some(System::Text(text))
                if !text.trim().contains(char::is_whitespace)
                    && Path::new(text.trim()).extension().is_some_and(|end| !end.is_empty()) =>
            {
                return system(&format!(
                    "is sent as it stands; for the text of a file write {{file: {}}}",
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
        // Some models know the limit by this name only, and refuse the other unless it is null.
        let renamed = body.get("max_completion_tokens");
        let rules = [
            (prompt_key, has(prompt_key), "it carries the prompts; set benchmark.request.prompts instead"),
            ("model", has("model"), "set llm.model instead"),
            ("stream", has("stream"), "set benchmark.request.stream instead"),
            (
                "stream_options",
                wire.usage_on_request && !body.get("stream_options").is_none_or(asks_for_usage),
                "set include_usage: true in it (tokens are counted by it), or make it null",
            ),
            (
                "max_completion_tokens",
                renamed.is_some_and(|limit| *limit != self.max_tokens),
                "must equal benchmark.request.max_tokens, which the plan and the budget go by",
            ),
            (limit_key, limit_key != "max_tokens" && has(limit_key), "set benchmark.request.max_tokens instead"),
            (
                system_key,
                self.system.is_some() && has(system_key),
                "benchmark.request.system is set too; leave one of the two out",
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

/// What of a prompt the server may have in its prefix cache: which traffic a measurement stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Nothing: every prompt begins with a short unique mark. For traffic in which no two prompts begin alike.
    #[default]
    Fresh,
    /// What stands before the first message of the user, which begins with the mark. For a program that sends its
    /// system prompt with every request, and each time another task.
    Shared,
    /// All of it: prompts are sent as they are. For a program that sends the same prompts again and again.
    Reuse,
}

/// One of a run's prompts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Prompt {
    /// That of the file, else `prompt-0001` and so on by position.
    pub id: String,
    /// The label of the file, else by length in characters: below 800 small, below 3000 medium, else large. (The
    /// generated snippets fall on the same sides of these marks, more or less.)
    pub size: String,
    /// Stands before everything else.
    pub system: Option<Arc<str>>,
    /// What was said before.
    pub history: Vec<Message>,
    /// What the user says now.
    pub text: String,
    /// What the user says later in the same conversation, each as soon as the one before is answered.
    pub later: Vec<String>,
    /// In place of the settings' own.
    pub max_tokens: Option<u32>,
    /// Merged into its body, below the settings' own.
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

    /// All messages of what is sent first as one text.
    pub fn joined(&self) -> String {
        self.messages().map(|(_, text)| text).collect::<Vec<_>>().join("\n")
    }

    /// Of what is sent first; the answers that a conversation brings come on top.
    pub fn characters(&self) -> usize {
        self.messages().map(|(_, text)| text.chars().count()).sum()
    }

    /// Goes on to the next turn, if there is one.
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

/// The body of a request, built once per prompt; only the mark that makes it unique is filled in per request.
pub struct BodyTemplate {
    before: Bytes,
    after: Bytes,
}

impl BodyTemplate {
    /// The body that asks `model` about `prompt` as `settings` say.
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
        others.remove(wire.prompt_key);
        if let Some(key) = wire.system_key.filter(|_| prompt.system.is_some()) {
            others.remove(key);
        }
        let messages: Vec<_> = prompt.messages().collect();
        let marked = match settings.cache() {
            Cache::Shared => messages.iter().position(|(role, _)| *role == "user").unwrap_or_default(),
            Cache::Fresh | Cache::Reuse => 0,
        };
        // The prompt comes last, behind the others' last entry, and is written by hand: the place of the mark cannot be
        // taken for another then, whatever the texts are.
        let mut body = Value::Object(others).to_string();
        body.truncate(body.len() - 1);
        let mut mark = 0;
        let mut write = |body: &mut String, at: usize, text: &str| {
            if at == marked {
                mark = body.len();
            }
            let quoted = Value::from(text).to_string();
            body.push_str(&quoted[1..quoted.len() - 1]);
        };
        let mut first = 0;
        if let (Some(key), Some(system)) = (wire.system_key, &prompt.system) {
            body.push_str(&format!(",\"{key}\":\""));
            write(&mut body, 0, system);
            body.push('"');
            first = 1;
        }
        let messages = &messages[first..];
        let as_text = wire.shape == Shape::Text || wire.shape == Shape::Either && messages.len() == 1;
        body.push_str(&format!(",\"{}\":{}", wire.prompt_key, if as_text { "\"" } else { "[" }));
        for (at, (role, text)) in messages.iter().enumerate() {
            match (as_text, at) {
                (true, 0) => {}
                (true, _) => body.push_str("\\n\\n"),
                (false, _) => {
                    let comma = if at > 0 { "," } else { "" };
                    body.push_str(&format!("{comma}{{\"role\":\"{role}\",\"content\":\""));
                }
            }
            write(&mut body, first + at, text);
            if !as_text {
                body.push_str("\"}");
            }
        }
        body.push_str(if as_text { "\"}" } else { "]}" });
        let body = Bytes::from(body);
        BodyTemplate { before: body.slice(..mark), after: body.slice(mark..) }
    }

    /// Holds what comes before the mark together with `other`, if that begins with the same.
    pub fn sharing(self, other: Option<&BodyTemplate>) -> Self {
        match other {
            Some(BodyTemplate { before, .. }) if *before == self.before => {
                BodyTemplate { before: before.clone(), after: Bytes::copy_from_slice(&self.after) }
            }
            _ => self,
        }
    }

    /// The body with `mark` (plain letters and digits) in its place.
    pub fn fill(&self, mark: &str) -> Bytes {
        [&self.before, mark.as_bytes(), &self.after].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RequestKind::{Chat, Completion, Embedding, Messages, Responses};

    const MARK: &str = "0123 ";

    fn body(settings: &RequestSettings, prompt: &Prompt) -> Value {
        serde_json::from_slice(&BodyTemplate::new("m", settings, prompt).fill(MARK)).unwrap()
    }

    #[test]
    fn the_prompt_stands_where_it_belongs_whatever_else_is_sent() {
        let extra_body = Map::from_iter([
            ("messages".to_owned(), json!("x")),
            ("a".to_owned(), json!({"\u{1}prefix\u{1}": [1]})),
            ("z".to_owned(), Value::Null),
        ]);
        let prompt = "say \"hi\" \u{1}prefix\u{1}\n";
        for (kind, place) in [
            (Chat, "/messages/0/content"),
            (Completion, "/prompt"),
            (Embedding, "/input"),
            (Responses, "/input"),
            (Messages, "/messages/0/content"),
        ] {
            let limit = kind.wire().limit_key;
            let settings = RequestSettings { kind, extra_body: extra_body.clone(), ..RequestSettings::default() };
            let body = body(&settings, &prompt.into());
            assert_eq!(body.pointer(place).unwrap(), &format!("{MARK}{prompt}"), "{body}");
            assert_eq!((&body["model"], &body["a"]), (&json!("m"), &extra_body["a"]));
            assert!(limit.is_none_or(|limit| body[limit] == 64));
            let theirs = ["max_tokens", "max_output_tokens"].into_iter().find(|key| body.get(key).is_some());
            assert_eq!((theirs, body.get("stream_options").is_some()), (limit, kind.wire().usage_on_request));
        }
    }

    /// Each kind's way, whole, with the mark where the cache says.
    #[test]
    fn a_system_prompt_goes_where_the_kind_has_it_and_the_mark_after_what_is_shared() {
        let said = |role: &str, content: &str| json!({"role": role, "content": content});
        let (system, user, before, then) = ("Be \"brief\".", "Why?\n", "So", "Yes");
        let of = |kind, [s, b, u]: [&str; 3]| match kind {
            Chat => json!({"messages": [said("system", s), said("user", b), said("assistant", then), said("user", u)]}),
            Messages => json!({"system": s, "messages": [said("user", b), said("assistant", then), said("user", u)]}),
            Responses => {
                json!({"instructions": s, "input": [said("user", b), said("assistant", then), said("user", u)]})
            }
            _ => json!({"prompt": format!("{s}\n\n{b}\n\n{then}\n\n{u}")}),
        };
        let short = |kind, s: &str, u: &str| match kind {
            Chat => json!({"messages": [said("system", s), said("user", u)]}),
            Messages => json!({"system": s, "messages": [said("user", u)]}),
            Responses => json!({"instructions": s, "input": u}),
            _ => json!({"prompt": format!("{s}\n\n{u}")}),
        };
        let marked = |text: &str| format!("{MARK}{text}");
        let text = Prompt { system: Some(system.into()), ..Prompt::from(user) };
        let history = [("user", before), ("assistant", then)]
            .map(|(role, content)| Message { role: role.to_owned(), content: content.to_owned() });
        let long = Prompt { history: history.to_vec(), ..text.clone() };
        for kind in [Chat, Completion, Responses, Messages] {
            for (cache, expected, alone) in [
                (Cache::Fresh, of(kind, [&marked(system), before, user]), short(kind, &marked(system), user)),
                (Cache::Shared, of(kind, [system, &marked(before), user]), short(kind, system, &marked(user))),
            ] {
                let settings = RequestSettings { kind, cache: Some(cache), ..RequestSettings::default() };
                for (prompt, expected) in [(&long, expected), (&text, alone)] {
                    let mut body = body(&settings, prompt);
                    body.as_object_mut().unwrap().retain(|key, _| expected.get(key).is_some());
                    assert_eq!(body, expected, "{cache:?}");
                }
            }
        }
    }

    #[test]
    fn shared_is_the_default_where_there_is_something_to_share() {
        let with = RequestSettings { system: Some(System::Text("s".to_owned())), ..RequestSettings::default() };
        assert_eq!((RequestSettings::default().cache(), with.cache()), (Cache::Fresh, Cache::Shared));
        let fresh = RequestSettings { cache: Some(Cache::Fresh), ..with };
        assert_eq!(fresh.cache(), Cache::Fresh);
        // Not into any file: it may be a page of somebody's own.
        assert_eq!(json!(fresh).get("system"), None);
    }

    #[test]
    fn a_prompts_own_limit_and_keys_come_before_the_settings_but_not_before_extra_body() {
        let settings = RequestSettings {
            extra_body: Map::from_iter([
                ("top_p".to_owned(), json!(0.5)),
                ("max_completion_tokens".to_owned(), json!(64)),
            ]),
            ..RequestSettings::default()
        };
        let own = Map::from_iter([("top_p".to_owned(), json!(1)), ("seed".to_owned(), json!(7))]);
        let body = body(&settings, &Prompt { max_tokens: Some(9), extra_body: own, ..Prompt::from("a") });
        let read = ["max_tokens", "max_completion_tokens", "top_p", "seed"].map(|key| body[key].clone());
        assert_eq!(read, [json!(9), json!(9), json!(0.5), json!(7)]);
    }

    #[test]
    fn what_cannot_be_a_system_prompt_is_refused() {
        let check = |kind, text: &str| {
            let system = Some(System::Text(text.to_owned()));
            RequestSettings { kind, system, ..RequestSettings::default() }.check().map_err(|error| error.to_string())
        };
        assert_eq!(check(Chat, "You are a reviewer of code."), Ok(()));
        assert_eq!(check(Chat, "Hello."), Ok(()));
        for (kind, text, why) in [
            (Chat, " \n", "is blank"),
            (Chat, "prompts/system.txt", "write {file: prompts/system.txt}"),
            (Embedding, "You are", "no system prompt"),
        ] {
            let error = check(kind, text).unwrap_err();
            assert!(error.contains(why) && error.contains("benchmark.request.system"), "{error}");
        }
    }

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
