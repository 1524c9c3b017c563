//! Embeddings: texts in, a vector for each out. They are never streamed.

use serde_json::{Value, json};

use super::{Answer, Kind, strings};

pub(super) struct Embeddings;

/// Dimension of the vectors.
const DIMENSIONS: usize = 64;

impl Kind for Embeddings {
    fn path(&self) -> &'static str {
        "/v1/embeddings"
    }

    fn texts(&self, body: &Value) -> Result<Vec<String>, String> {
        let input = strings(&body["input"]).filter(|texts| !texts.is_empty());
        input.ok_or_else(|| "input must be a string or a list of strings".to_owned())
    }

    fn generates(&self) -> bool {
        false
    }

    /// Returns the same made-up vector for every input.
    fn whole(&self, answer: &Answer, _: &str) -> String {
        let embedding: Vec<f32> = (0..DIMENSIONS).map(|at| (at as f32 + 1.0) / DIMENSIONS as f32).collect();
        let vectors = if answer.length.tokens == 0 { 0 } else { answer.texts };
        let vector = |index| json!({"object": "embedding", "index": index, "embedding": embedding});
        let data: Vec<_> = (0..vectors).map(vector).collect();
        let usage = json!({"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens});
        json!({"object": "list", "model": answer.model, "data": data, "usage": usage}).to_string()
    }
}
