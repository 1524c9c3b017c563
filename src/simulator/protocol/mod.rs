//! The JSON of the OpenAI-compatible API: what is read and what is written.
//!
//! A request kind is a file here and an entry in [`KINDS`].

mod chat;
mod completions;
mod embeddings;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::lengths::OutputLength;

/// Every kind that is served.
pub(super) const KINDS: [&dyn Kind; 3] = [&chat::Chat, &completions::Completions, &embeddings::Embeddings];

/// How the requests to one route are read and answered.
pub(super) trait Kind: Sync {
    fn path(&self) -> &'static str;

    /// The texts of the prompt: messages, or inputs to embed.
    ///
    /// # Errors
    ///
    /// A sentence for the client that says what is wrong with the body.
    fn texts(&self, body: &[u8]) -> Result<Vec<String>, String>;

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

/// A request to a generating route, understood.
pub(super) struct GenerationRequest {
    /// Echoed in the answer.
    pub(super) model: String,
    /// The texts of all messages or inputs, one after the other.
    pub(super) prompt: String,
    /// How many there are.
    pub(super) texts: usize,
    pub(super) max_tokens: Option<u32>,
    pub(super) stream: bool,
    /// Whether a stream ends with the usage.
    pub(super) include_usage: bool,
}

/// What requests of all kinds have in common.
#[derive(Deserialize)]
struct Body {
    model: String,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    n: Option<u32>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// A text, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl From<Texts> for Vec<String> {
    fn from(texts: Texts) -> Self {
        match texts {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        }
    }
}

/// Reads a part of a body. Fields that are not in it are ignored, as most servers do.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("the request body is not as expected: {error}"))
}

impl GenerationRequest {
    /// # Errors
    ///
    /// A sentence for the client that says what is wrong with the body.
    pub(super) fn parse(kind: &dyn Kind, bytes: &[u8]) -> Result<Self, String> {
        let body: Body = parse(bytes)?;
        if body.n.is_some_and(|n| n != 1) {
            return Err("n must be 1: this server gives one answer per request".to_owned());
        }
        let max_tokens = body.max_completion_tokens.or(body.max_tokens);
        if max_tokens == Some(0) {
            return Err("max_tokens must be 1 or more".to_owned());
        }
        let texts = kind.texts(bytes)?;
        Ok(Self {
            model: body.model,
            prompt: texts.join("\n"),
            texts: texts.len(),
            max_tokens,
            stream: body.stream.unwrap_or(false) && kind.generates(),
            include_usage: body.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
        })
    }
}

/// What an answer says beside its text.
pub(super) struct Answer {
    /// Tells the answer from all others of this server.
    pub(super) number: u64,
    /// In seconds since 1970.
    pub(super) created: u64,
    pub(super) request: GenerationRequest,
    pub(super) prompt_tokens: u32,
    /// `None` where there is no prefix cache.
    pub(super) cached_tokens: Option<u32>,
    pub(super) length: OutputLength,
}

impl Answer {
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
        let Answer { number, created, request, .. } = self;
        let model = json!(request.model);
        let usage = if with_usage { format!(r#","usage":{}"#, self.usage()) } else { String::new() };
        format!(
            r#"{{"id":"{id}-{number}","object":"{object}","created":{created},"model":{model},"choices":[{choices}]{usage}}}"#
        )
    }

    /// A stream's last events: the choice with the reason, the usage if it was asked for, and the end.
    fn end_of_choices(&self, id: &str, object: &str, last: &str) -> String {
        let mut events = event(&self.envelope(id, object, last, false));
        if self.request.include_usage {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_in_every_form() {
        let chat = r#"{"model":"m","messages":[{"role":"system","content":"Be brief."},
            {"role":"assistant","content":null},
            {"role":"user","content":[{"type":"text","text":"Why"},{"type":"text","text":"?"}]}],
            "max_tokens":9,"stream":true,"stream_options":{"include_usage":true},"temperature":0}"#;
        let completions = [r#""Why?""#, r#"["Why?"]"#]
            .map(|prompt| format!(r#"{{"model":"m","prompt":{prompt},"max_completion_tokens":9}}"#));
        let [chat_kind, completions_kind, embeddings_kind] = KINDS;
        let cases = [
            (chat_kind, chat, "Be brief.\n\nWhy?", Some(9), true, 3),
            (completions_kind, &completions[0], "Why?", Some(9), false, 1),
            (completions_kind, &completions[1], "Why?", Some(9), false, 1),
            (embeddings_kind, r#"{"model":"m","input":["a","b"],"stream":true}"#, "a\nb", None, false, 2),
        ];
        for (kind, body, prompt, max_tokens, stream, texts) in cases {
            let request = GenerationRequest::parse(kind, body.as_bytes()).unwrap();
            assert_eq!((request.model.as_str(), request.prompt.as_str()), ("m", prompt));
            assert_eq!((request.max_tokens, request.texts), (max_tokens, texts));
            assert_eq!((request.stream, request.include_usage), (stream, stream));
        }
    }

    #[test]
    fn every_token_has_text_and_sentences_are_spaced() {
        assert_eq!(WORDS.split('|').count(), 32);
        let text: String = (0..64).map(word).collect();
        assert!((0..64).all(|index| !word(index).is_empty()));
        assert_eq!(text.matches(". The function").count(), 1);
    }
}
