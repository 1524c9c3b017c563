//! What to do if nothing works.

use crate::client::outcome::{Failed, Failure};
use crate::client::{BodyTemplate, Endpoint, RequestSettings, headers};
use crate::load::preflight::{Probe, Which};
use crate::settings::Settings;

/// The problem that a prompt sent before the run reveals, if any.
pub fn problem(probe: &Probe, settings: &Settings) -> Option<String> {
    let failed = probe.reply.failure.as_ref()?;
    if !(probe.is_refused() && probe.which == Which::Longest) {
        return Some(endpoint_problem(failed, settings));
    }
    let Failed { kind, message, .. } = failed;
    Some(format!(
        "High error rates: {} accepts a typical prompt but refuses the longest ({}, {} characters), so some of the requests \
         would fail at every level\n  {kind}: {message}\n\nIf it does not fit the model's context, use shorter prompts \
         (benchmark.request.prompts) or shorter answers (benchmark.request.max_tokens), or start the server with a longer \
         context.",
        settings.endpoint.redacted(),
        probe.id,
        probe.characters,
    ))
}

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
        _ => match failed.status {
            Some(status @ (401 | 403)) => (format!("HTTP {status}: the key was refused by {endpoint}"), KEY),
            status => (format!("High error rates: every request to {endpoint} failed"), hint(status)),
        },
    };
    format!("{what}\n  {kind}: {message}\n\n{mend}\n\n    {}", curl(settings))
}

const KEY: &str = "Is the API key right? It is read from LLM_API_KEY, or from OPENAI_API_KEY if that is not set. Try";

fn hint(status: Option<u16>) -> &'static str {
    match status {
        Some(404) => "Is the path of llm.endpoint right (most end in /v1), and does the server know llm.model? Try",
        _ => "Try",
    }
}

/// Printed if `--server-metrics` asked for them.
pub fn no_server_metrics() -> &'static str {
    "note: the server has no /metrics in a known format (vLLM, llama.cpp, SGLang)"
}

/// A shell command for a short request of the run's kind. Headers that may hold secrets are given without values.
fn curl(settings: &Settings) -> String {
    let llm = &settings.config.llm;
    let url = match &settings.endpoint {
        Endpoint::Simulator => "http://127.0.0.1:8000/v1".to_owned(),
        endpoint => endpoint.redacted(),
    };
    let kind = settings.config.benchmark.request.kind;
    let wire = kind.wire();
    let key = settings.api_key.as_ref().map(|_| match headers::key_header(llm, wire) {
        name if name.eq_ignore_ascii_case("Authorization") => {
            (name, "\"Authorization: Bearer $LLM_API_KEY\"".to_owned())
        }
        name => (name, format!("\"{name}: $LLM_API_KEY\"")),
    });
    let fixed = wire.headers.iter().map(|(name, value)| (*name, format!("'{name}: {value}'")));
    let own: Vec<&str> = llm.headers.names().collect();
    let ours = fixed.chain(key).filter(|(name, _)| !own.iter().any(|own| own.eq_ignore_ascii_case(name)));
    let own = own.iter().map(|name| format!("'{name}: …'"));
    let headers: String = ours.map(|(_, text)| text).chain(own).map(|text| format!(" -H {text}")).collect();
    let request = RequestSettings { kind, stream: false, max_tokens: 8, ..RequestSettings::default() };
    let body = BodyTemplate::new(&llm.model, &request, &"Say hello".into()).fill("");
    let mut body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    body.as_object_mut().map(|body| body.remove("stream"));
    let body = body.to_string().replace('\'', "'\\''");
    format!(
        "curl -sS {}/{} -H 'Content-Type: application/json'{headers} -d '{body}'",
        url.trim_end_matches('/'),
        wire.route
    )
}
