//! What to do where nothing works.

use crate::client::Endpoint;
use crate::client::outcome::{Failed, Failure};
use crate::load::preflight::{Probe, Which};
use crate::settings::Settings;

/// What to say when one of the run's own prompts was refused before anything was measured.
pub fn refused_prompt(probe: &Probe, settings: &Settings) -> String {
    let Some(failed) = &probe.reply.failure else { return String::new() };
    if probe.which == Which::Typical {
        return endpoint_problem(failed, settings);
    }
    let Failed { kind, message, .. } = failed;
    format!(
        "High error rates: {} takes a typical prompt and refuses the longest ({}, {} characters), so a share of the requests \
         would fail at every level\n  {kind}: {message}\n\nIf it does not fit the model's context, take shorter prompts \
         (benchmark.request.prompts) or shorter answers (benchmark.request.max_tokens), or start the server with a longer \
         context.",
        settings.endpoint.redacted(),
        probe.id,
        probe.characters,
    )
}

/// What to say when every request of the first level failed.
pub fn endpoint_problem(failed: &Failed, settings: &Settings) -> String {
    let Failed { kind, message, .. } = failed;
    let endpoint = settings.endpoint.redacted();
    let (what, mend) = match kind {
        Failure::Connect => (
            format!("LLM connection error: no request reached {endpoint}"),
            "Is the server running, and is llm.endpoint (LLM_ENDPOINT) its base URL? Try",
        ),
        Failure::Timeout => (
            format!("Too many timeouts: {endpoint} answered no request in time"),
            "If it only needs longer, raise llm.request_timeout. Try",
        ),
        _ => (format!("High error rates: every request to {endpoint} failed"), hint(failed.status)),
    };
    format!("{what}\n  {kind}: {message}\n\n{mend}\n\n    {}", curl(settings))
}

fn hint(status: Option<u16>) -> &'static str {
    match status {
        Some(401 | 403) => "Is the API key right? It is read from LLM_API_KEY, else OPENAI_API_KEY. Try",
        Some(404) => "Is the path of llm.endpoint right (most end in /v1), and does the server know llm.model? Try",
        _ => "Try",
    }
}

/// The same request for a shell.
pub fn curl(settings: &Settings) -> String {
    let llm = &settings.config.llm;
    let url = match &settings.endpoint {
        Endpoint::Simulator => "http://127.0.0.1:8000/v1".to_owned(),
        endpoint => endpoint.redacted(),
    };
    let key = if settings.api_key.is_some() { " -H \"Authorization: Bearer $LLM_API_KEY\"" } else { "" };
    let body = serde_json::json!({
        "model": llm.model,
        "messages": [{"role": "user", "content": "Say hello"}],
        "max_tokens": 8,
    });
    let body = body.to_string().replace('\'', "'\\''");
    format!(
        "curl -sS {}/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'",
        url.trim_end_matches('/')
    )
}
