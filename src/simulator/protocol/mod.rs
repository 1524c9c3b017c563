//! Reads and writes the JSON of the OpenAI-compatible API and of Anthropic's.
//!
//! Each kind of request has a file here and an entry in [`KINDS`].

mod chat;
mod completions;
mod embeddings;
mod messages;
mod responses;

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Value, json};

use super::lengths::{OutputLength, prompt_tokens};

/// Every kind of request that is served.
pub(super) const KINDS: [&dyn Kind; 5] =
    [&chat::Chat, &completions::Completions, &embeddings::Embeddings, &responses::Responses, &messages::Messages];

/// How requests to one route are read and answered.
pub(super) trait Kind: Sync {
    fn path(&self) -> &'static str;

    /// The texts of the prompt (messages, or inputs to embed). An error is a sentence on what is wrong with the body.
    fn texts(&self, body: &Value) -> Result<Vec<String>, String>;

    /// Whether text is generated and may be streamed. A kind that does not generate takes one engine step.
    fn generates(&self) -> bool {
        true
    }

    /// The events before the first token of a stream.
    fn opening(&self, _: &Answer) -> String {
        String::new()
    }

    /// The event for one token.
    fn token(&self, _: &Answer, _text: &str) -> String {
        String::new()
    }

    /// The events after the last token: the finish reason, the usage if requested, and the end marker.
    fn closing(&self, _: &Answer) -> String {
        String::new()
    }

    /// The answer in one piece. Without tokens, it has no text or vectors.
    fn whole(&self, answer: &Answer, text: &str) -> String;
}

/// Fields of the request body that all kinds share.
#[derive(Deserialize)]
struct Body {
    model: String,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    max_output_tokens: Option<u32>,
    n: Option<u32>,
    stream: Option<bool>,
}

/// The strings of a value that is a string or a list of strings.
fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(list) => list.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        one => Some(vec![one.as_str()?.to_owned()]),
    }
}

/// The text of a message or a system prompt: a string, a list of parts (those with a `text` count), or null.
fn text_of(content: &Value) -> Result<String, String> {
    match content {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => Ok(parts.iter().filter_map(|part| part["text"].as_str()).collect()),
        _ => Err("content must be a string or a list of parts".to_owned()),
    }
}

/// The text of each message. There must be at least one message.
fn texts_of(messages: &Value) -> Result<Vec<String>, String> {
    match messages.as_array() {
        Some(messages) if !messages.is_empty() => messages.iter().map(|message| text_of(&message["content"])).collect(),
        _ => Err("messages must hold at least one message".to_owned()),
    }
}

/// A parsed request to a generating route, with the data that its answer needs besides the text.
pub(super) struct Answer {
    /// Sequence number of the request, which makes the answer's id unique on this server.
    number: u64,
    /// Unix time in seconds.
    created: u64,
    /// Name from the request, echoed in the answer.
    model: String,
    /// The texts of all messages or inputs, joined by line breaks.
    pub(super) prompt: String,
    /// Number of messages or inputs.
    texts: usize,
    pub(super) prompt_tokens: u32,
    pub(super) max_tokens: Option<u32>,
    pub(super) stream: bool,
    /// Whether a stream reports the usage at its end.
    include_usage: bool,
    /// `None` without a prefix cache.
    pub(super) cached_tokens: Option<u32>,
    /// For a kind that does not generate, a single token: one engine step for the prompt.
    pub(super) length: OutputLength,
}

impl Answer {
    /// The answer to request `number`. An error is a sentence that tells the client what is wrong with the body.
    pub(super) fn to(kind: &dyn Kind, bytes: &[u8], number: u64) -> Result<Self, String> {
        let unexpected = |error| format!("the request body is not as expected: {error}");
        let whole: Value = serde_json::from_slice(bytes).map_err(unexpected)?;
        // Unknown fields are ignored, as in most servers.
        let body = Body::deserialize(&whole).map_err(unexpected)?;
        if body.n.is_some_and(|n| n != 1) {
            return Err("n must be 1: this server gives one answer per request".to_owned());
        }
        let max_tokens = body.max_completion_tokens.or(body.max_output_tokens).or(body.max_tokens);
        if max_tokens == Some(0) {
            return Err("max_tokens must be 1 or more".to_owned());
        }
        let texts = kind.texts(&whole)?;
        let prompt = texts.join("\n");
        Ok(Self {
            number,
            // A clock before 1970 is wrong, so the field has no meaning.
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            model: body.model,
            prompt_tokens: prompt_tokens(&prompt),
            prompt,
            texts: texts.len(),
            max_tokens,
            stream: body.stream.unwrap_or(false) && kind.generates(),
            include_usage: whole["stream_options"]["include_usage"] == true,
            cached_tokens: None,
            length: OutputLength { tokens: 1, cut: false },
        })
    }

    fn finish_reason(&self) -> &'static str {
        if self.length.cut { "length" } else { "stop" }
    }

    fn usage(&self) -> Value {
        let Answer { prompt_tokens, length: OutputLength { tokens, .. }, .. } = self;
        let total = prompt_tokens.saturating_add(*tokens);
        let mut usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": total});
        if let Some(cached_tokens) = self.cached_tokens {
            usage["prompt_tokens_details"] = json!({"cached_tokens": cached_tokens});
        }
        usage
    }

    /// The object around the choices of chat and completions. As on other servers, the keys that mark the end come
    /// last, so that the first half of an answer does not contain them.
    fn envelope(&self, id: &str, object: &str, choices: &str, with_usage: bool) -> String {
        let Answer { number, created, model, .. } = self;
        let model = json!(model);
        let usage = if with_usage { format!(r#","usage":{}"#, self.usage()) } else { String::new() };
        format!(
            r#"{{"id":"{id}-{number}","object":"{object}","created":{created},"model":{model},"choices":[{choices}]{usage}}}"#
        )
    }

    /// The last events of a stream: the choice with the finish reason, the usage if requested, and the end marker.
    fn end_of_choices(&self, id: &str, object: &str, last: &str) -> String {
        let mut events = event(&self.envelope(id, object, last, false));
        if self.include_usage {
            events += &event(&self.envelope(id, object, "", true));
        }
        events + "data: [DONE]\n\n"
    }
}

/// One choice. `content` is a JSON key and its value, such as `"text":"a"`.
fn choice(content: &str, finish_reason: Option<&str>) -> String {
    format!(r#"{{"index":0,{content},"logprobs":null,"finish_reason":{}}}"#, json!(finish_reason))
}

fn event(data: &str) -> String {
    format!("data: {data}\n\n")
}

/// An event that carries its type twice, in the `event` line and in the data, as in Responses and Messages.
fn typed_event(kind: &str, data: Value) -> String {
    let data = data.to_string();
    let rest = if data == "{}" { "}" } else { &format!(",{}", &data[1..]) };
    format!("event: {kind}\ndata: {{\"type\":\"{kind}\"{rest}\n\n")
}

/// The words that answers are made of, split as a tokenizer would.
const WORDS: &str = "The| function| returns| a| list| of| values| and| checks| that| each| element| is| valid\
    | before| it| reads| the| next| one|,| so| an| error| in| this| loop| cannot| change| its| result|.";

/// The text of token number `index` of an answer.
pub(super) fn word(index: u32) -> &'static str {
    match WORDS.split('|').nth(index as usize % 32) {
        // The start of a later sentence, which needs a space.
        Some("The") if index > 0 => " The",
        word => word.unwrap_or_default(),
    }
}
