//! The JSON of the OpenAI-compatible API, and of Anthropic's: what is read and what is written.
//!
//! A request kind is a file here and an entry in [`KINDS`].

mod chat;
mod completions;
mod embeddings;
mod messages;
mod responses;

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Value, json};

use super::lengths::{OutputLength, prompt_tokens};

/// Every kind that is served.
pub(super) const KINDS: [&dyn Kind; 5] =
    [&chat::Chat, &completions::Completions, &embeddings::Embeddings, &responses::Responses, &messages::Messages];

/// How the requests to one route are read and answered.
pub(super) trait Kind: Sync {
    fn path(&self) -> &'static str;

    /// The texts of the prompt (messages, or inputs to embed), or a sentence that says what is wrong with the body.
    fn texts(&self, body: &Value) -> Result<Vec<String>, String>;

    /// Whether text is generated and may be streamed. A kind that does not generate takes one step of the engine.
    fn generates(&self) -> bool {
        true
    }

    /// The events before the first token of a stream.
    fn opening(&self, _: &Answer) -> String {
        String::new()
    }

    /// The event of one token.
    fn token(&self, _: &Answer, _text: &str) -> String {
        String::new()
    }

    /// The events after the last token: the reason, the usage if it was asked for, and the end.
    fn closing(&self, _: &Answer) -> String {
        String::new()
    }

    /// The answer in one piece; without text or vectors if it has no tokens.
    fn whole(&self, answer: &Answer, text: &str) -> String;
}

/// What requests of all kinds have in common.
#[derive(Deserialize)]
struct Body {
    model: String,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    max_output_tokens: Option<u32>,
    n: Option<u32>,
    stream: Option<bool>,
}

/// One string, or several.
fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(list) => list.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        one => Some(vec![one.as_str()?.to_owned()]),
    }
}

/// What a message or a system prompt says: a string, a list of parts with a `text` each, or nothing.
fn text_of(content: &Value) -> Result<String, String> {
    match content {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => Ok(parts.iter().filter_map(|part| part["text"].as_str()).collect()),
        _ => Err("content must be a string or a list of parts".to_owned()),
    }
}

/// The text of each message, of at least one.
fn texts_of(messages: &Value) -> Result<Vec<String>, String> {
    match messages.as_array() {
        Some(messages) if !messages.is_empty() => messages.iter().map(|message| text_of(&message["content"])).collect(),
        _ => Err("messages must hold at least one message".to_owned()),
    }
}

/// A request to a generating route, understood, and what its answer says beside the text.
pub(super) struct Answer {
    /// Tells the answer from all others of this server.
    number: u64,
    /// In seconds since 1970.
    created: u64,
    /// Echoed.
    model: String,
    /// The texts of all messages or inputs, one after the other.
    pub(super) prompt: String,
    /// How many there are.
    texts: usize,
    pub(super) prompt_tokens: u32,
    pub(super) max_tokens: Option<u32>,
    pub(super) stream: bool,
    /// Whether a stream ends with the usage.
    include_usage: bool,
    /// `None` where there is no prefix cache.
    pub(super) cached_tokens: Option<u32>,
    /// One step of the engine for the prompt, unless something is generated.
    pub(super) length: OutputLength,
}

impl Answer {
    /// To request `number`, or a sentence for the client that says what is wrong with its body.
    pub(super) fn to(kind: &dyn Kind, bytes: &[u8], number: u64) -> Result<Self, String> {
        let unexpected = |error| format!("the request body is not as expected: {error}");
        let whole: Value = serde_json::from_slice(bytes).map_err(unexpected)?;
        // Fields that are not in it are ignored, as most servers do.
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
            // Before 1970 the clock is wrong, and the field means nothing.
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

    /// The object around the choices of chat and completions. As from other servers, the keys that tell the end come
    /// last: half of an answer must not have them.
    fn envelope(&self, id: &str, object: &str, choices: &str, with_usage: bool) -> String {
        let Answer { number, created, model, .. } = self;
        let model = json!(model);
        let usage = if with_usage { format!(r#","usage":{}"#, self.usage()) } else { String::new() };
        format!(
            r#"{{"id":"{id}-{number}","object":"{object}","created":{created},"model":{model},"choices":[{choices}]{usage}}}"#
        )
    }

    /// A stream's last events: the choice with the reason, the usage if it was asked for, and the end.
    fn end_of_choices(&self, id: &str, object: &str, last: &str) -> String {
        let mut events = event(&self.envelope(id, object, last, false));
        if self.include_usage {
            events += &event(&self.envelope(id, object, "", true));
        }
        events + "data: [DONE]\n\n"
    }
}

/// `content` is the key of the text and what it holds.
fn choice(content: &str, finish_reason: Option<&str>) -> String {
    format!(r#"{{"index":0,{content},"logprobs":null,"finish_reason":{}}}"#, json!(finish_reason))
}

fn event(data: &str) -> String {
    format!("data: {data}\n\n")
}

/// An event that says what it is twice, as those of responses and messages do.
fn typed_event(kind: &str, data: Value) -> String {
    let data = data.to_string();
    let rest = if data == "{}" { "}" } else { &format!(",{}", &data[1..]) };
    format!("event: {kind}\ndata: {{\"type\":\"{kind}\"{rest}\n\n")
}

/// What answers are made of, as a tokenizer would cut them.
const WORDS: &str = "The| function| returns| a| list| of| values| and| checks| that| each| element| is| valid\
    | before| it| reads| the| next| one|,| so| an| error| in| this| loop| cannot| change| its| result|.";

/// The text of an answer's token number `index`.
pub(super) fn word(index: u32) -> &'static str {
    match WORDS.split('|').nth(index as usize % 32) {
        // A new sentence.
        Some("The") if index > 0 => " The",
        word => word.unwrap_or_default(),
    }
}
