//! Chat completions: messages in, a message out.

use serde_json::{Value, json};

use super::{Answer, Kind, choice, event, texts_of};

pub(super) struct Chat;

const ID: &str = "chatcmpl";
const CHUNK: &str = "chat.completion.chunk";

fn chunk(answer: &Answer, delta: &str) -> String {
    event(&answer.envelope(ID, CHUNK, &choice(&format!(r#""delta":{delta}"#), None), false))
}

impl Kind for Chat {
    fn path(&self) -> &'static str {
        "/v1/chat/completions"
    }

    fn texts(&self, body: &Value) -> Result<Vec<String>, String> {
        texts_of(&body["messages"])
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
