//! OpenAI's responses: an input in, a list of output items out.

use serde_json::{Value, json};

use super::{Answer, Kind, texts_of, typed_event, word};

pub(super) struct Responses;

fn part(text: &str) -> Value {
    json!({"type": "output_text", "annotations": [], "text": text})
}

fn item(answer: &Answer, status: &str, content: &[Value]) -> Value {
    let id = format!("msg_{}", answer.number);
    json!({"id": id, "type": "message", "role": "assistant", "status": status, "content": content})
}

fn response(answer: &Answer, status: &str, output: &[Value], usage: Value) -> Value {
    let Answer { number, created, model, .. } = answer;
    let cut = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
    json!({
        "id": format!("resp_{number}"), "object": "response", "created_at": created, "model": model,
        "status": status, "error": null, "incomplete_details": cut, "output": output, "usage": usage,
    })
}

/// The completed answer. Without tokens, it has no output items.
fn ended(answer: &Answer, text: &str) -> Value {
    let Answer { prompt_tokens, length, .. } = answer;
    let status = if length.cut { "incomplete" } else { "completed" };
    let output = if length.tokens == 0 { vec![] } else { vec![item(answer, status, &[part(text)])] };
    let usage = json!({
        "input_tokens": prompt_tokens,
        "input_tokens_details": {"cached_tokens": answer.cached_tokens.unwrap_or(0)},
        "output_tokens": length.tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt_tokens.saturating_add(length.tokens),
    });
    response(answer, status, &output, usage)
}

impl Kind for Responses {
    fn path(&self) -> &'static str {
        "/v1/responses"
    }

    fn texts(&self, body: &Value) -> Result<Vec<String>, String> {
        if !body["max_tokens"].is_null() {
            return Err("Unsupported parameter: 'max_tokens'; here it is max_output_tokens".to_owned());
        }
        let input = match &body["input"] {
            Value::String(text) => vec![text.clone()],
            messages => texts_of(messages).map_err(|_| "input must be a string or a list of messages".to_owned())?,
        };
        Ok(body["instructions"].as_str().map(str::to_owned).into_iter().chain(input).collect())
    }

    fn opening(&self, answer: &Answer) -> String {
        let response = response(answer, "in_progress", &[], Value::Null);
        let item = item(answer, "in_progress", &[]);
        typed_event("response.created", json!({"response": response}))
            + &typed_event("response.output_item.added", json!({"output_index": 0, "item": item}))
            + &typed_event(
                "response.content_part.added",
                json!({"output_index": 0, "content_index": 0, "part": part("")}),
            )
    }

    fn token(&self, answer: &Answer, text: &str) -> String {
        let id = format!("msg_{}", answer.number);
        let delta = json!({"item_id": id, "output_index": 0, "content_index": 0, "delta": text});
        typed_event("response.output_text.delta", delta)
    }

    fn closing(&self, answer: &Answer) -> String {
        let text: String = (0..answer.length.tokens).map(word).collect();
        let response = ended(answer, &text);
        let last = format!("response.{}", response["status"].as_str().unwrap_or_default());
        typed_event("response.output_text.done", json!({"output_index": 0, "content_index": 0, "text": text}))
            + &typed_event(&last, json!({"response": response}))
    }

    fn whole(&self, answer: &Answer, text: &str) -> String {
        ended(answer, text).to_string()
    }
}
