//! Completions: a prompt in, its continuation out.

use serde::Deserialize;
use serde_json::json;

use super::{Answer, Kind, Texts, choice, event, parse};

pub(super) struct Completions;

const ID: &str = "cmpl";
const OBJECT: &str = "text_completion";

#[derive(Deserialize)]
struct Body {
    prompt: Option<Texts>,
}

fn text_choice(text: &str, finish_reason: Option<&str>) -> String {
    choice(&format!(r#""text":{}"#, json!(text)), finish_reason)
}

impl Kind for Completions {
    fn path(&self) -> &'static str {
        "/v1/completions"
    }

    fn texts(&self, body: &[u8]) -> Result<Vec<String>, String> {
        let texts: Option<Vec<_>> = parse::<Body>(body)?.prompt.map(Into::into);
        texts.filter(|texts| texts.len() == 1).ok_or_else(|| "prompt must be one string".to_owned())
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
