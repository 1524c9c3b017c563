//! Anthropic's messages: messages in, blocks of content out.

use serde_json::{Value, json};

use super::{Answer, Kind, text_of, texts_of, typed_event};

pub(super) struct Messages;

fn message(answer: &Answer, content: &[Value], stop_reason: Option<&str>, output_tokens: u32) -> Value {
    json!({
        "id": format!("msg_{}", answer.number), "type": "message", "role": "assistant", "model": answer.model,
        "content": content, "stop_reason": stop_reason, "stop_sequence": null, "usage": usage(answer, output_tokens),
    })
}

/// Cached tokens are not included in `input_tokens`.
fn usage(answer: &Answer, output_tokens: u32) -> Value {
    let cached = answer.cached_tokens.unwrap_or(0);
    json!({
        "input_tokens": answer.prompt_tokens - cached, "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0, "output_tokens": output_tokens,
    })
}

fn stop_reason(answer: &Answer) -> &'static str {
    if answer.length.cut { "max_tokens" } else { "end_turn" }
}

impl Kind for Messages {
    fn path(&self) -> &'static str {
        "/v1/messages"
    }

    fn texts(&self, body: &Value) -> Result<Vec<String>, String> {
        if body["max_tokens"].is_null() {
            return Err("max_tokens: field required".to_owned());
        }
        let system = Some(&body["system"]).filter(|system| !system.is_null()).map(text_of).transpose()?;
        Ok(system.into_iter().chain(texts_of(&body["messages"])?).collect())
    }

    /// As in Anthropic's API, the first event has a provisional count of output tokens.
    fn opening(&self, answer: &Answer) -> String {
        let block = json!({"index": 0, "content_block": {"type": "text", "text": ""}});
        typed_event("message_start", json!({"message": message(answer, &[], None, 1)}))
            + &typed_event("content_block_start", block)
            + &typed_event("ping", json!({}))
    }

    fn token(&self, _: &Answer, text: &str) -> String {
        typed_event("content_block_delta", json!({"index": 0, "delta": {"type": "text_delta", "text": text}}))
    }

    fn closing(&self, answer: &Answer) -> String {
        let delta = json!({"stop_reason": stop_reason(answer), "stop_sequence": null});
        let usage = json!({"output_tokens": answer.length.tokens});
        typed_event("content_block_stop", json!({"index": 0}))
            + &typed_event("message_delta", json!({"delta": delta, "usage": usage}))
            + &typed_event("message_stop", json!({}))
    }

    fn whole(&self, answer: &Answer, text: &str) -> String {
        let tokens = answer.length.tokens;
        let content = if tokens == 0 { vec![] } else { vec![json!({"type": "text", "text": text})] };
        message(answer, &content, Some(stop_reason(answer)), tokens).to_string()
    }
}
