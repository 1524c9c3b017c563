//! The JSON of the OpenAI-compatible API: what is read and what is written.

use std::io::Write;

use axum::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The routes that generate text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Messages in, a message out.
    Chat,
    /// A prompt in, its continuation out.
    Completions,
    /// Texts in, a vector for each out.
    Embeddings,
}

impl Route {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }

    fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl",
            Self::Completions => "cmpl",
            Self::Embeddings => "embd",
        }
    }

    fn object(self, streaming: bool) -> &'static str {
        match (self, streaming) {
            (Self::Chat, true) => "chat.completion.chunk",
            (Self::Chat, false) => "chat.completion",
            (Self::Completions, _) => "text_completion",
            (Self::Embeddings, _) => "list",
        }
    }
}

/// A request to a generating route, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GenerationRequest {
    /// Name of the model, echoed in the answer.
    pub(super) model: String,
    /// The prompt, or the text of all messages or inputs, one after the other.
    pub(super) prompt: String,
    /// Texts to embed; 0 where text is generated.
    pub(super) inputs: usize,
    /// Limit of the answer's length, in tokens.
    pub(super) max_tokens: Option<u32>,
    /// Whether the answer is streamed.
    pub(super) stream: bool,
    /// Whether a stream ends with the usage.
    pub(super) include_usage: bool,
}

#[derive(Deserialize)]
struct Body {
    model: String,
    messages: Option<Vec<Message>>,
    prompt: Option<Texts>,
    input: Option<Texts>,
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

#[derive(Deserialize)]
struct Message {
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl GenerationRequest {
    /// Reads the body of a request to `route`. Fields that this server does not know are ignored, as most
    /// servers do.
    ///
    /// # Errors
    ///
    /// A sentence for the client that says what is wrong with the body.
    pub(super) fn parse(route: Route, body: &[u8]) -> Result<Self, String> {
        let body: Body =
            serde_json::from_slice(body).map_err(|error| format!("the request body is not as expected: {error}"))?;
        if body.n.is_some_and(|n| n != 1) {
            return Err("n must be 1: this server gives one answer per request".to_owned());
        }
        let max_tokens = body.max_completion_tokens.or(body.max_tokens);
        if max_tokens == Some(0) {
            return Err("max_tokens must be 1 or more".to_owned());
        }
        let mut inputs = 0;
        let prompt = match route {
            Route::Chat => text_of_messages(body.messages)?,
            Route::Completions => single_prompt(body.prompt)?,
            Route::Embeddings => {
                let texts = texts_to_embed(body.input)?;
                inputs = texts.len();
                texts.join("\n")
            }
        };
        let options = body.stream_options;
        Ok(Self {
            model: body.model,
            prompt,
            inputs,
            max_tokens,
            stream: body.stream.unwrap_or(false) && route != Route::Embeddings,
            include_usage: options.and_then(|o| o.include_usage).unwrap_or(false),
        })
    }
}

fn texts_to_embed(input: Option<Texts>) -> Result<Vec<String>, String> {
    match input {
        Some(Texts::One(text)) => Ok(vec![text]),
        Some(Texts::Many(texts)) if !texts.is_empty() => Ok(texts),
        _ => Err("input must be a string or a list of strings".to_owned()),
    }
}

fn text_of_messages(messages: Option<Vec<Message>>) -> Result<String, String> {
    let messages = messages.unwrap_or_default();
    if messages.is_empty() {
        return Err("messages must hold at least one message".to_owned());
    }
    let texts = messages.into_iter().map(|message| match message.content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => parts.into_iter().filter_map(|part| part.text).collect(),
    });
    Ok(texts.collect::<Vec<_>>().join("\n"))
}

fn single_prompt(prompt: Option<Texts>) -> Result<String, String> {
    match prompt {
        Some(Texts::One(text)) => Ok(text),
        Some(Texts::Many(mut texts)) if texts.len() == 1 => Ok(texts.remove(0)),
        _ => Err("prompt must be one string".to_owned()),
    }
}

/// Token counts of a request and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

impl Usage {
    /// `cached_tokens` is `None` where there is no prefix cache.
    pub(super) fn new(prompt_tokens: u32, cached_tokens: Option<u32>, completion_tokens: u32) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: cached_tokens.map(|cached_tokens| PromptDetails { cached_tokens }),
        }
    }
}

#[derive(Serialize)]
struct Envelope<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [Choice<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Default, Serialize)]
struct Choice<'a> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Said<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Said<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Said<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// Writes the answer to one request.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    route: Route,
    id: String,
    created: u64,
    model: String,
    include_usage: bool,
}

impl Answer {
    /// `number` tells the answer from all others of this server, `created` is in seconds since 1970.
    pub(super) fn new(route: Route, number: u64, created: u64, model: String, include_usage: bool) -> Self {
        Self { route, id: format!("{}-{number}", route.id_prefix()), created, model, include_usage }
    }

    /// The event that opens a stream: chat tells the role, completions have none.
    pub(super) fn opening(&self) -> Option<Bytes> {
        match self.route {
            Route::Chat => Some(self.event(&[Choice {
                delta: Some(Said { role: Some("assistant"), content: Some("") }),
                ..Choice::default()
            }])),
            Route::Completions | Route::Embeddings => None,
        }
    }

    /// The event of one token.
    pub(super) fn token(&self, text: &str) -> Bytes {
        let choice = match self.route {
            Route::Chat => Choice { delta: Some(Said { role: None, content: Some(text) }), ..Choice::default() },
            Route::Completions | Route::Embeddings => Choice { text: Some(text), ..Choice::default() },
        };
        self.event(&[choice])
    }

    /// The events that close a stream: the reason, the usage if it was asked for, and `[DONE]`.
    pub(super) fn closing(&self, finish_reason: &'static str, usage: Usage) -> Bytes {
        let mut choice = Choice { finish_reason: Some(finish_reason), ..Choice::default() };
        match self.route {
            Route::Chat => choice.delta = Some(Said::default()),
            Route::Completions | Route::Embeddings => choice.text = Some(""),
        }
        let mut events = Vec::with_capacity(512);
        self.write_event(&mut events, &[choice], None);
        if self.include_usage {
            self.write_event(&mut events, &[], Some(usage));
        }
        events.extend_from_slice(b"data: [DONE]\n\n");
        events.into()
    }

    /// The whole answer in one piece.
    pub(super) fn whole(&self, text: &str, finish_reason: &'static str, usage: Usage) -> Bytes {
        let mut choice = Choice { finish_reason: Some(finish_reason), ..Choice::default() };
        match self.route {
            Route::Chat => {
                choice.message = Some(Said { role: Some("assistant"), content: Some(text) });
            }
            Route::Completions | Route::Embeddings => choice.text = Some(text),
        }
        let mut body = Vec::with_capacity(text.len() + 512);
        self.write_json(&mut body, false, &[choice], Some(usage));
        body.into()
    }

    /// The answer to a request for embeddings: `count` vectors, which are made up.
    pub(super) fn vectors(&self, count: usize, usage: Usage) -> Bytes {
        let embedding: Vec<f32> = (0..DIMENSIONS).map(|at| (at as f32 + 1.0) / DIMENSIONS as f32).collect();
        let vector = |index| json!({"object": "embedding", "index": index, "embedding": embedding});
        let data: Vec<_> = (0..count).map(vector).collect();
        let usage = json!({"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens});
        let object = self.route.object(false);
        json!({"object": object, "model": self.model, "data": data, "usage": usage}).to_string().into()
    }

    fn event(&self, choices: &[Choice<'_>]) -> Bytes {
        let mut event = Vec::with_capacity(256);
        self.write_event(&mut event, choices, None);
        event.into()
    }

    fn write_event(&self, out: &mut Vec<u8>, choices: &[Choice<'_>], usage: Option<Usage>) {
        out.extend_from_slice(b"data: ");
        self.write_json(&mut *out, true, choices, usage);
        out.extend_from_slice(b"\n\n");
    }

    fn write_json(&self, out: impl Write, streaming: bool, choices: &[Choice<'_>], usage: Option<Usage>) {
        let envelope = Envelope {
            id: &self.id,
            object: self.route.object(streaming),
            created: self.created,
            model: &self.model,
            choices,
            usage,
        };
        serde_json::to_writer(out, &envelope).expect("strings and numbers become JSON, and memory takes them");
    }
}

/// Numbers in a vector.
const DIMENSIONS: usize = 64;

/// What answers are made of: words of some length each, as a tokenizer would cut them.
const WORDS: [&str; 32] = [
    "The",
    " function",
    " returns",
    " a",
    " list",
    " of",
    " values",
    " and",
    " checks",
    " that",
    " each",
    " element",
    " is",
    " valid",
    " before",
    " it",
    " reads",
    " the",
    " next",
    " one",
    ",",
    " so",
    " an",
    " error",
    " in",
    " this",
    " loop",
    " cannot",
    " change",
    " its",
    " result",
    ".",
];

/// The text of an answer's token number `index`.
pub(super) fn word(index: u32) -> &'static str {
    match index as usize % WORDS.len() {
        // A new sentence.
        0 if index > 0 => " The",
        at => WORDS[at],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(route: Route, body: &str) -> Result<GenerationRequest, String> {
        GenerationRequest::parse(route, body.as_bytes())
    }

    #[test]
    fn a_chat_request_is_the_text_of_its_messages() {
        let body = r#"{"model":"m","messages":[{"role":"system","content":"Be brief."},
            {"role":"assistant","content":null},
            {"role":"user","content":[{"type":"text","text":"Why"},{"type":"text","text":"?"}]}],
            "max_tokens":9,"stream":true,"stream_options":{"include_usage":true},"temperature":0}"#;
        let request = parse(Route::Chat, body).unwrap();
        assert_eq!(request.prompt, "Be brief.\n\nWhy?");
        assert_eq!((request.model.as_str(), request.max_tokens), ("m", Some(9)));
        assert!(request.stream && request.include_usage);
    }

    #[test]
    fn a_completion_takes_one_prompt_as_string_or_list() {
        for prompt in [r#""Why?""#, r#"["Why?"]"#] {
            let body = format!(r#"{{"model":"m","prompt":{prompt},"max_completion_tokens":3}}"#);
            let request = parse(Route::Completions, &body).unwrap();
            assert_eq!((request.prompt.as_str(), request.max_tokens), ("Why?", Some(3)));
            assert!(!request.stream && !request.include_usage);
        }
    }

    #[test]
    fn what_is_wrong_with_a_body_is_said() {
        let hi = r#""messages":[{"role":"user","content":"hi"}]"#;
        let cases = [
            ("{", "the request body is not as expected: EOF"),
            (r#"{"messages":[]}"#, "missing field `model`"),
            (r#"{"model":"m"}"#, "at least one message"),
            (&format!(r#"{{"model":"m","n":2,{hi}}}"#), "n must be 1"),
            (&format!(r#"{{"model":"m","max_tokens":0,{hi}}}"#), "max_tokens"),
            (&format!(r#"{{"model":"m","max_tokens":-4,{hi}}}"#), "-4"),
        ];
        for (body, part) in cases {
            let message = parse(Route::Chat, body).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
        let two = r#"{"model":"m","prompt":["a","b"]}"#;
        assert!(parse(Route::Completions, two).unwrap_err().contains("one string"));
    }

    #[test]
    fn a_model_name_with_quotes_stays_json() {
        let answer = Answer::new(Route::Chat, 3, 1, "a\"b".to_owned(), true);
        let event = answer.token("x");
        let json = event.strip_prefix(b"data: ").unwrap();
        let value: serde_json::Value = serde_json::from_slice(json).unwrap();
        assert_eq!(value["model"], "a\"b");
        assert_eq!(value["id"], "chatcmpl-3");
    }

    #[test]
    fn every_token_has_text_and_sentences_are_spaced() {
        let text: String = (0..64).map(word).collect();
        assert!((0..64).all(|index| !word(index).is_empty()));
        assert_eq!(text.matches(". The function").count(), 1);
    }
}
