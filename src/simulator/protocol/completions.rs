//! Completions: a prompt in, its continuation out.

use serde_json::{Value, json};

use super::{Answer, Kind, choice, event, strings};

pub(super) struct Completions;

const ID: &str = "cmpl";
const OBJECT: &str = "text_completion";

fn text_choice(text: &str, finish_reason: Option<&str>) -> String {
    choice(&format!(r#""text":{}"#, json!(text)), finish_reason)
}

impl Kind for Completions {
    fn path(&self) -> &'static str {
        "/v1/completions"
    }

    fn texts(&self, body: &Value) -> Result<Vec<String>, String> {
        let prompt = strings(&body["prompt"]).filter(|texts| texts.len() == 1);
        prompt.ok_or_else(|| "prompt must be one string".to_owned())
    }

    fn token(&self, answer: &Answer, text: &str) -> String {
        event(&answer.envelope(ID, OBJECT, &text_choice(text, None), false))
    }

    fn closing(&self, answer: &Answer) -> String {
        answer.end_of_choices(ID, OBJECT, &text_choice("", Some(answer.finish_reason())))
    }

    fn whole(&self, answer: &Answer, text: &str) -> String {
        answer.envelope(ID, OBJECT, &text_choice(text, Some(answer.finish_reason())), true)
    }
}
