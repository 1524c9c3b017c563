//! Why a request failed: the kind of failure, and a message.

use std::error::Error;
use std::fmt;

use hyper_util::client::legacy;
use reqwest::header::{self, HeaderMap};
use reqwest::{StatusCode, Url};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::endpoint::redacted;

/// Limit on how much of a malformed body is kept for the message and searched for secrets, bytes.
const LONGEST_MALFORMED: usize = 64 << 10;

/// Precedes the status code in the message of an HTTP error.
#[doc(hidden)]
pub const STATUS: &str = "HTTP ";

/// The kind of failure of a request. A short answer is a success; an empty one is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Failure {
    /// No connection, or it was lost before any byte of the answer came back.
    Connect,
    /// One of the timeouts expired.
    Timeout,
    /// HTTP 429.
    RateLimited,
    /// Any other HTTP 4xx, or a redirect (not followed: the key must not be sent elsewhere).
    ClientError,
    /// HTTP 5xx.
    ServerError,
    /// An answer that violates the protocol, or a stream that was cut short.
    Malformed,
    /// HTTP 2xx without content (for embeddings: without a vector). An answer with a finish
    /// reason and a token count is no failure: its first token ended it.
    EmptyOutput,
}

impl Failure {
    /// All kinds, in declaration order.
    pub const ALL: [Failure; 7] = [
        Failure::Connect,
        Failure::Timeout,
        Failure::RateLimited,
        Failure::ClientError,
        Failure::ServerError,
        Failure::Malformed,
        Failure::EmptyOutput,
    ];

    /// The name used in all files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Connect => "Connect",
            Failure::Timeout => "Timeout",
            Failure::RateLimited => "RateLimited",
            Failure::ClientError => "ClientError",
            Failure::ServerError => "ServerError",
            Failure::Malformed => "Malformed",
            Failure::EmptyOutput => "EmptyOutput",
        }
    }

    /// The kind of failure for an HTTP status other than success.
    pub(super) fn of_status(status: u16) -> Self {
        match status {
            429 => Failure::RateLimited,
            300..500 => Failure::ClientError,
            _ => Failure::ServerError,
        }
    }

    /// Whether a retry may succeed.
    pub(super) fn may_pass(self) -> bool {
        matches!(self, Failure::Connect | Failure::Timeout | Failure::RateLimited | Failure::ServerError)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The kind of a failure, and its message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub struct Failed {
    pub kind: Failure,
    /// Status of the HTTP error: the response's own, or a code inside an answer with status 200.
    pub status: Option<u16>,
    /// Text from the server or the network. In a `Reply` it is short and contains no secrets.
    pub message: String,
}

impl Failed {
    pub(super) fn new(kind: Failure, message: impl Into<String>) -> Self {
        Failed { kind, status: None, message: message.into() }
    }

    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Failed::new(Failure::Malformed, message)
    }

    /// A response whose status is not a success. Redirects are not followed.
    pub(super) fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let text = match encoding(headers) {
            _ if status.is_redirection() => {
                let to = headers.get(header::LOCATION).and_then(|to| Url::parse(to.to_str().ok()?).ok());
                let to = to.map_or_else(|| "another place".to_owned(), |url| redacted(&url));
                format!("redirect to {to} not followed (set llm.endpoint to it)")
            }
            Some(encoding) => format!("a compressed ({encoding}) body"),
            None => error_text(body),
        };
        let status = status.as_u16();
        let text = if text.is_empty() { text } else { format!(": {text}") };
        let message = format!("{STATUS}{status}{text}");
        Failed { kind: Failure::of_status(status), status: Some(status), message }
    }

    /// An error sent with status 200. Some servers put the real status in the body.
    pub(super) fn inside(body: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(body).unwrap_or_default();
        let status = ["/error/code", "/error/status"].iter().find_map(|place| value.pointer(place)?.as_u64());
        let status = status.and_then(|status| u16::try_from(status).ok()).or_else(|| named_status(&value));
        Failed { kind: Failure::of_status(status.unwrap_or(500)), status, message: error_text(body) }
    }

    pub(super) fn not_json(body: &[u8], error: &serde_json::Error) -> Self {
        if looks_like_html(body) {
            return Failed::malformed("HTML instead of JSON (is the path of llm.endpoint right?)");
        }
        // Not truncated to a quote until secrets are removed: a truncated secret would not be recognized.
        let body = String::from_utf8_lossy(&body[..body.len().min(LONGEST_MALFORMED)]);
        Failed::malformed(format!("not the JSON of the protocol ({error}): {body}"))
    }

    /// An error before any byte of the answer, other than a timeout.
    pub(super) fn network(error: &reqwest::Error) -> Self {
        let text = chain(error);
        if !error.is_connect() && cause(error).is_some_and(hyper::Error::is_parse) {
            return Failed::malformed(format!("the answer is not HTTP: {text}"));
        }
        let kind = if error.is_body() || error.is_decode() { Failure::Malformed } else { Failure::Connect };
        let mend = if error.is_connect() && text.contains("UnknownIssuer") {
            " (set llm.ca_file or SSL_CERT_FILE to the PEM file of the certificate's issuer)"
        } else {
            ""
        };
        Failed::new(kind, text + mend)
    }
}

/// The content encoding of a body, or `None` if it is not encoded.
pub(super) fn encoding(headers: &HeaderMap) -> Option<&str> {
    let encoding = headers.get(header::CONTENT_ENCODING)?.to_str().unwrap_or("unreadable").trim();
    (!encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity")).then_some(encoding)
}

/// The status of an error that has only a name, as OpenAI (`code`) and Anthropic (`type`) send it in a stream.
fn named_status(value: &Value) -> Option<u16> {
    let places = ["/error/type", "/error/code", "/response/error/code", "/code"];
    places.iter().find_map(|place| match value.pointer(place)?.as_str()? {
        "invalid_request_error" | "invalid_prompt" => Some(400),
        "authentication_error" => Some(401),
        "permission_error" => Some(403),
        "not_found_error" => Some(404),
        "rate_limit_error" | "rate_limit_exceeded" => Some(429),
        "overloaded_error" => Some(529),
        _ => None,
    })
}

/// The message in an error body, in any of the shapes that servers use.
pub(super) fn error_text(body: &[u8]) -> String {
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        let text = String::from_utf8_lossy(body);
        return if looks_like_html(body) { "an HTML page".to_owned() } else { text.trim().to_owned() };
    };
    let places = ["/error/message", "/response/error/message", "/error", "/detail/0/msg", "/detail", "/message"];
    match places.iter().find_map(|place| value.pointer(place)).unwrap_or(&value) {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn looks_like_html(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"<")
}

/// The first error of type `E` in the chain of causes.
pub(super) fn cause<E: Error + 'static>(error: &reqwest::Error) -> Option<&E> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&error| error.source())
}

/// Whether the connection closed before any byte of the answer arrived.
pub(super) fn died_unanswered(error: &reqwest::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
    let closed = |e: &hyper::Error| e.is_incomplete_message() || e.is_canceled() || e.is_closed();
    let lost = |e: &std::io::Error| matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected);
    !error.is_connect() && (cause(error).is_some_and(closed) || cause(error).is_some_and(lost))
}

/// The chain of causes, innermost last, without the URL (which may contain secrets).
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in causes(error) {
        let text = cause.to_string();
        // The pool's own "client error (…)" only repeats our kind; its cause says more.
        let says_more = !cause.is::<legacy::Error>() || cause.source().is_none();
        if says_more && parts.last().is_none_or(|last| !last.contains(&text)) {
            parts.push(text);
        }
    }
    if parts.is_empty() { "request failed".to_owned() } else { parts.join(": ") }
}
