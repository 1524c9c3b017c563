//! Chat completions: messages in, a message out.

use serde::Deserialize;
use serde_json::json;

use super::{Answer, Kind, choice, event, parse};

pub(super) struct Chat;

const ID: &str = "chatcmpl";
const CHUNK: &str = "chat.completion.chunk";

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    messages: Vec<Message>,
}

#[derive(Deserialize)]
pub(super) struct Message {
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
pub(super) struct Part {
    text: Option<String>,
}

impl Message {
    pub(super) fn text(self) -> String {
        self.content.map(Content::text).unwrap_or_default()
    }
}

impl Content {
    pub(super) fn text(self) -> String {
        match self {
            Content::Text(text) => text,
            Content::Parts(parts) => parts.into_iter().filter_map(|part| part.text).collect(),
        }
    }
}

fn chunk(answer: &Answer, delta: &str) -> String {
    event(&answer.envelope(ID, CHUNK, &choice(&format!(r#""delta":{delta}"#), None), false))
}

impl Kind for Chat {
    fn path(&self) -> &'static str {
        "/v1/chat/completions"
    }

    fn texts(&self, body: &[u8]) -> Result<Vec<String>, String> {
        let texts: Vec<_> = parse::<Body>(body)?.messages.into_iter().map(Message::text).collect();
        if texts.is_empty() {
            return Err("messages must hold at least one message".to_owned());
        }
        Ok(texts)
    }

    fn opening(&self, answer: &Answer) -> String {
        chunk(answer, r#"{"role":"assistant","content":""}"#)
    }

    fn token(&self, answer: &Answer, text: &str) -> String {
        chunk(answer, &format!(r#"{{"content":{}}}"#, json!(text)))
    }

    fn closing(&self, answer: &Answer) -> String {
        answer.end_of_choices(ID, CHUNK, &choice(r#""delta":{}"#, Some(answer.finish_reason())))
    }

    fn whole(&self, answer: &Answer, text: &str) -> String {
        let message = format!(r#""message":{{"role":"assistant","content":{}}}"#, json!(text));
        answer.envelope(ID, "chat.completion", &choice(&message, Some(answer.finish_reason())), true)
    }
}
