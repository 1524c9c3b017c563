//! The OpenAI-compatible client: [`LlmClient`] for programs, [`Transport`] for the measurement.
//!
//! Both send through the same path: one request, one [`Reply`] with everything that can be known of it.

pub mod config;
pub(crate) mod config_file;
pub mod endpoint;
pub mod outcome;
pub mod redact;
pub mod request;
pub mod sse;

pub use config::{ConfigError, Env, Llm};
pub use endpoint::{Endpoint, SIMULATOR};
pub use request::{Cache, RequestKind, RequestSettings};

use std::borrow::Cow;
use std::collections::HashSet;
use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use hyper_util::client::legacy::connect::HttpInfo;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use once_cell::sync::OnceCell;
use percent_encoding::percent_decode_str;
use rand::RngExt;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Request, RequestBuilder, Response, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use thiserror::Error;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::client::outcome::{Counted, Failed, Failure, Period, Quota, RateLimit, Reply, TokenCounts};
use crate::client::redact::one_line;
use crate::client::sse::SseParser;

/// Longest stream that is read, bytes. An answer of 100,000 tokens is about 25 MiB.
const LONGEST_STREAM: usize = 32 << 20;
/// Longest answer in one piece, bytes.
const LONGEST_BODY: usize = 4 << 20;
/// This much of an answer each request in flight may hold in memory, bytes. Above it only a few may at a time, so that
/// a server that sends without end takes little memory at any level.
const SMALL_ANSWER: usize = 64 << 10;
/// So many requests may hold more than [`SMALL_ANSWER`] at a time. The others leave theirs with the server meanwhile.
const LARGE_ANSWERS: usize = 4;
/// Gaps between the chunks of one answer that are kept.
const MOST_GAPS: usize = 16 << 10;
/// Longest line of a stream, bytes.
const LONGEST_LINE: usize = 1 << 20;
/// Of an error's body no more is read than this, and of a malformed one no more is searched for secrets.
const LONGEST_ERROR: usize = 64 << 10;
/// The status says that it is an error; its body is not waited for longer than this.
const ERROR_BODY_WAIT: Duration = Duration::from_secs(1);
/// Of an error's text no more is quoted than this, characters.
const LONGEST_QUOTE: usize = 200;
/// Unless set otherwise, a connection is there after this (or `request_timeout`), or it is none.
const LONGEST_CONNECT: Duration = Duration::from_secs(10);
/// After `[DONE]` the end of the stream should follow at once; no server is waited for longer than this.
const AFTER_DONE: Duration = Duration::from_millis(50);

// ---- the transport: one request, one reply ----

/// Sends single requests to one route of one server. Cheap to clone.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<TransportInner>,
    /// What no message may show, the longest first.
    secrets: Arc<[String]>,
}

struct TransportInner {
    http: reqwest::Client,
    /// Opens a connection for each request: what is sent again must not meet a second dead one.
    fresh: reqwest::Client,
    /// Our addresses of the connections that have brought an answer: whoever uses one of them again reuses it.
    answered: Mutex<HashSet<SocketAddr>>,
    /// What is sent, but for its body.
    request: Request,
    models: Request,
    kind: RequestKind,
    timeouts: Timeouts,
    large_answers: Semaphore,
}

/// How long the parts of a request may take.
#[derive(Clone, Copy, Debug)]
struct Timeouts {
    total: Duration,
    connect: Duration,
    first_byte: Option<Duration>,
    idle: Option<Duration>,
}

impl Timeouts {
    fn of(llm: &Llm) -> Self {
        let total = Duration::from_secs_f64(llm.request_timeout);
        Timeouts {
            total,
            connect: llm.connect_timeout.map_or(total.min(LONGEST_CONNECT), Duration::from_secs_f64),
            first_byte: llm.first_byte_timeout.map(Duration::from_secs_f64),
            idle: llm.idle_timeout.map(Duration::from_secs_f64),
        }
    }
}

/// `future`, or a failure that says that there was `what` for too long and which setting says so.
async fn within<T>(
    limit: Option<Duration>,
    what: &str,
    setting: &str,
    future: impl Future<Output = T>,
) -> Result<T, Failed> {
    let Some(limit) = limit else { return Ok(future.await) };
    let too_late = |_| Failed { kind: Failure::Timeout, message: format!("{what} within {limit:?} ({setting})") };
    tokio::time::timeout(limit, future).await.map_err(too_late)
}

/// What came back: the reply, and the text where it was asked for.
#[derive(Debug, Default)]
pub struct Answer {
    /// What can be measured of it.
    pub reply: Reply,
    /// The text, if it was kept.
    pub text: String,
    /// Why the server stopped.
    pub finish_reason: Option<String>,
}

/// Bytes of a server's `/metrics` that are read.
const LONGEST_METRICS: usize = 4 << 20;
/// A busy server may take this long to say how busy it is.
const METRICS_WAIT: Duration = Duration::from_secs(5);

impl Transport {
    /// A transport to `base` (see [`Endpoint`]), with the timeouts and the CA file of `llm`.
    ///
    /// # Errors
    /// If the key cannot be sent, the CA file cannot be read, or there is no TLS where it is needed.
    pub fn new(base: &Url, kind: RequestKind, llm: &Llm, key: Option<&SecretString>) -> Result<Self, LlmError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // Userinfo in the URL was written for this endpoint; a key in the environment may be for another.
        if let Some(key) = key.filter(|_| base.username().is_empty()) {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret().trim()))
                .map_err(|_| LlmError::BadKey)?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let timeouts = Timeouts::of(llm);
        let client = |most_idle| http_client(base, &timeouts, llm.ca_file.as_deref(), most_idle);
        let (http, fresh) = (client(usize::MAX)?, client(0)?);
        let secrets = arranged(secrets(base, key, &http));
        let prepared = |builder: RequestBuilder| {
            builder.headers(headers.clone()).build().map_err(|error| LlmError::Client(chain(&error)))
        };
        let request = prepared(http.post(route(base, path_of(kind))))?;
        let models = prepared(http.get(route(base, "models")))?;
        let inner = TransportInner {
            http,
            fresh,
            answered: Mutex::default(),
            request,
            models,
            kind,
            timeouts,
            large_answers: Semaphore::new(LARGE_ANSWERS),
        };
        Ok(Transport { inner: Arc::new(inner), secrets })
    }

    /// The same, and no message shows these either.
    pub fn hiding(self, more: Vec<String>) -> Self {
        Transport { secrets: arranged([&self.secrets, more.as_slice()].concat()), ..self }
    }

    /// Sends `body` and reads the answer to its end. Never fails: a failure is part of the reply.
    pub async fn send(&self, body: Bytes) -> Reply {
        self.send_made(|| body.clone()).await
    }

    /// The same with a body that is made when it is sent, and again if it has to be sent again: nobody keeps it
    /// until the answer comes.
    pub async fn send_made(&self, body: impl Fn() -> Bytes) -> Reply {
        self.exchange(&body, false).await.reply
    }

    /// The same, keeping the answer's text.
    pub async fn send_for_text(&self, body: Bytes) -> Answer {
        self.exchange(&|| body.clone(), true).await
    }

    /// The models the server says it has (`GET /models`); `None` if it does not say.
    pub async fn models(&self) -> Option<Vec<String>> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Model>,
        }
        #[derive(Deserialize)]
        struct Model {
            id: String,
        }
        let inner = &self.inner;
        let request = inner.http.execute(inner.models.try_clone()?);
        let mut response = tokio::time::timeout(inner.timeouts.total, request).await.ok()?.ok()?;
        let mut body = Vec::new();
        // What came in time is looked at: a list cut short is no JSON, so the server "does not say".
        let _ = tokio::time::timeout(ERROR_BODY_WAIT, read_up_to(&mut response, LONGEST_ERROR, &mut body)).await;
        let list: List = serde_json::from_slice(&body).ok()?;
        Some(list.data.into_iter().map(|model| self.clean(&model.id)).collect())
    }

    /// What the server says of itself at `/metrics`, beside the API; `None` if it says nothing.
    pub async fn metrics(&self) -> Option<String> {
        let inner = &self.inner;
        let mut request = inner.models.try_clone()?;
        request.url_mut().set_path("/metrics");
        request.url_mut().set_query(None);
        let mut body = Vec::new();
        let read = async {
            let response = inner.http.execute(request).await;
            let mut response = response.ok().filter(|response| response.status().is_success())?;
            read_up_to(&mut response, LONGEST_METRICS, &mut body).await;
            Some(())
        };
        tokio::time::timeout(METRICS_WAIT, read).await.ok()??;
        Some(String::from_utf8_lossy(&body).into_owned())
    }

    /// The URL requests go to, redacted.
    pub fn url(&self) -> String {
        crate::client::endpoint::redacted(self.inner.request.url())
    }

    async fn exchange(&self, body: &impl Fn() -> Bytes, keep_text: bool) -> Answer {
        let inner = &self.inner;
        let mut reading = Reading::new(inner.kind, keep_text);
        let done = {
            // Boxed: a future that is handed on is copied each time.
            let attempt = Box::pin(async {
                let mut response = self.attempt(body, &mut reading).await?;
                self.read(&mut response, &mut reading).await
            });
            within(Some(inner.timeouts.total), "no whole answer", "llm.request_timeout", attempt).await
        };
        if let Err(mut failed) = done.and_then(|done| done) {
            failed.message = self.clean(&failed.message);
            reading.answer.reply.failure = Some(failed);
        }
        reading.answer
    }

    /// One request; a second time, on a fresh connection, if a reused one turns out to have been closed before any byte came back.
    ///
    /// Some servers close the connection after every answer although they announced to keep it open. Which of the
    /// two sides notices first is a race, and no failure of the server's.
    async fn attempt(&self, body: &impl Fn() -> Bytes, reading: &mut Reading) -> Result<Response, Failed> {
        let inner = &self.inner;
        // Boxed by the HTTP client, so that it is cheap to move.
        let send = |http: &reqwest::Client| {
            let mut request = inner.request.try_clone().expect("it has no body yet");
            *request.body_mut() = Some(body().into());
            within(inner.timeouts.first_byte, "no first byte", "llm.first_byte_timeout", http.execute(request))
        };
        reading.sent = Instant::now();
        let response = match send(&inner.http).await? {
            Err(error) if died_unanswered(&error) && self.was_reused(&error) => {
                reading.answer.reply.resent += 1;
                send(&inner.fresh).await?
            }
            Ok(response) => {
                self.note_answer(&response);
                Ok(response)
            }
            failed => failed,
        };
        response.map_err(|error| network_failure(&error, &inner.timeouts))
    }

    fn note_answer(&self, response: &Response) {
        if let Some(connection) = response.extensions().get::<HttpInfo>() {
            self.inner.answered.lock().unwrap_or_else(PoisonError::into_inner).insert(connection.local_addr());
        }
    }

    /// Whether the connection that failed had brought an answer before.
    ///
    /// Asking instead whether this request has opened a connection would not do: while one is being opened, another's
    /// may become free and is taken.
    fn was_reused(&self, error: &reqwest::Error) -> bool {
        let connection = cause::<hyper_util::client::legacy::Error>(error).and_then(|error| error.connect_info());
        let mut about = hyper::http::Extensions::new();
        connection.inspect(|connection| connection.get_extras(&mut about));
        let Some(connection) = about.get::<HttpInfo>() else { return false };
        // It is dead: its address may come back as that of a fresh one.
        self.inner.answered.lock().unwrap_or_else(PoisonError::into_inner).remove(&connection.local_addr())
    }

    async fn read(&self, response: &mut Response, reading: &mut Reading) -> Result<(), Failed> {
        let status = response.status();
        reading.answer.reply.status = Some(status.as_u16());
        reading.answer.reply.rate_limit = rate_limit(response.headers());
        if !status.is_success() {
            reading.answer.reply.retry_after = retry_after(response.headers());
            let mut body = Vec::new();
            let _ = tokio::time::timeout(ERROR_BODY_WAIT, read_up_to(response, LONGEST_ERROR, &mut body)).await;
            reading.note_quota(kind_of(status.as_u16()), &body);
            return Err(refused(status, response.headers(), &body));
        }
        if let Some(encoding) = encoding(response.headers()) {
            return Err(Failed {
                kind: Failure::Malformed,
                message: format!("the answer is compressed ({encoding}), which was not asked for"),
            });
        }
        let idle = self.inner.timeouts.idle;
        let mut room = Room { places: &self.inner.large_answers, place: None };
        let is_stream = is_event_stream(response.headers());
        // They would keep the buffer that they were read into from being used again: 8 KiB for each stream.
        *response.headers_mut() = HeaderMap::new();
        *response.extensions_mut() = hyper::http::Extensions::new();
        if is_stream {
            read_stream(response, idle, &mut room, reading).await
        } else {
            read_whole(response, idle, &mut room, reading).await
        }
    }

    /// Short, on one line, and without anything secret a server may have echoed.
    fn clean(&self, message: &str) -> String {
        // First of all, lest a character that is left out afterwards hides a secret.
        let mut text = one_line(&unescaped(message));
        for secret in self.secrets.iter() {
            text = text.replace(secret.as_str(), "[redacted]");
        }
        match text.char_indices().nth(LONGEST_QUOTE) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }
}

fn http_client(
    base: &Url,
    timeouts: &Timeouts,
    ca_file: Option<&Path>,
    most_idle: usize,
) -> Result<reqwest::Client, LlmError> {
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        // Without the zero each request would be copied for a second try that never comes.
        .retry(reqwest::retry::never().max_retries_per_request(0))
        .connect_timeout(timeouts.connect)
        .pool_max_idle_per_host(most_idle)
        .user_agent(concat!("llm-concurrency/", env!("CARGO_PKG_VERSION")));
    // Elsewhere the proxy that the HTTP client finds in the environment is the one that `proxy` finds there.
    let builder = if is_loopback(base) { builder.no_proxy() } else { builder };
    #[cfg(feature = "tls")]
    let builder = {
        // An error means that the program has installed a provider of its own, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Plain HTTP needs no certificates, and reading the system's takes time (or fails where there are none).
        let builder = if base.scheme() == "http" { builder.tls_certs_only([]) } else { builder };
        match ca_file {
            Some(path) => builder.tls_certs_merge(certificates(path)?),
            None => builder,
        }
    };
    #[cfg(not(feature = "tls"))]
    if base.scheme() == "https" || ca_file.is_some() {
        return Err(LlmError::NoTls);
    }
    builder.build().map_err(|error| LlmError::Client(chain(&error)))
}

#[cfg(feature = "tls")]
fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, LlmError> {
    let broken = |message: String| LlmError::CaFile { path: path.to_owned(), message };
    let text = std::fs::read(path).map_err(|error| broken(error.to_string()))?;
    let certificates = reqwest::Certificate::from_pem_bundle(&text).map_err(|error| broken(chain(&error)))?;
    if certificates.is_empty() {
        return Err(broken("it holds no certificate (expected PEM: -----BEGIN CERTIFICATE-----)".to_owned()));
    }
    Ok(certificates)
}

/// The proxy through which requests to `base` go, redacted.
pub fn proxy_of(base: &Url) -> Option<String> {
    let uri = proxy(base)?.uri().to_string();
    Some(Url::parse(&uri).map_or_else(|_| "a proxy".to_owned(), |url| crate::client::endpoint::redacted(&url)))
}

fn proxy(base: &Url) -> Option<Intercept> {
    let base = Some(base).filter(|base| !is_loopback(base))?;
    Matcher::from_system().intercept(&base.as_str().parse().ok()?)
}

/// This machine, which a proxy would take for itself.
fn is_loopback(base: &Url) -> bool {
    let host = base.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || host.ends_with(".localhost") || address.is_ok_and(|address| address.is_loopback())
}

fn path_of(kind: RequestKind) -> &'static str {
    match kind {
        RequestKind::Chat => "chat/completions",
        RequestKind::Completion => "completions",
        RequestKind::Embedding => "embeddings",
    }
}

fn route(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}

/// What must appear in no message: a server may echo the request, as it was written or decoded.
fn secrets(base: &Url, key: Option<&SecretString>, http: &reqwest::Client) -> Vec<String> {
    let mut all: Vec<String> = key.map(|key| key.expose_secret().trim().to_owned()).into_iter().collect();
    all.extend([base.username(), base.password().unwrap_or_default(), base.query().unwrap_or_default()].map(decoded));
    all.extend([base.username(), base.password().unwrap_or_default()].map(str::to_owned));
    let query = base.query().unwrap_or_default();
    all.push(query.to_owned());
    all.extend(query.split('&').filter_map(|pair| Some(pair.split_once('=')?.1.to_owned())));
    all.extend(base.query_pairs().map(|(_, value)| value.into_owned()));
    // Userinfo travels as `Basic` and base64, which the HTTP client makes.
    let request = http.get(base.clone()).build().ok();
    let basic = request.as_ref().and_then(|request| request.headers().get(header::AUTHORIZATION)?.to_str().ok());
    let proxy = proxy(base);
    let to_proxy = proxy.as_ref().and_then(|proxy| proxy.basic_auth()?.to_str().ok());
    for basic in [basic, to_proxy].into_iter().flatten().filter_map(|value| value.strip_prefix("Basic ")) {
        all.push(basic.to_owned());
        let decoded = BASE64_STANDARD.decode(basic).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        all.extend(decoded.iter().flat_map(|userinfo| userinfo.split(':')).map(str::to_owned));
    }
    all
}

/// As they are looked for: in the text of one line, and in JSON, the longest first.
fn arranged(secrets: Vec<String>) -> Arc<[String]> {
    let mut all: Vec<String> = secrets.iter().map(|secret| one_line(secret)).collect();
    let in_json: Vec<_> = all.iter().map(|secret| json!(secret).to_string()).collect();
    all.extend(in_json.iter().map(|quoted| quoted[1..quoted.len() - 1].to_owned()));
    // Replacing very short ones would only garble the text.
    all.retain(|secret| secret.len() >= 4);
    all.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    all.dedup();
    all.into()
}

/// Without JSON's escapes for single characters, which a quoted body may hold.
fn unescaped(text: &str) -> String {
    let text = text.replace("\\/", "/");
    let mut parts = text.split("\\u");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        match code.and_then(char::from_u32) {
            Some(c) => plain.extend(std::iter::once(c).chain(part[4..].chars())),
            None => plain.extend(["\\u", part]),
        }
    }
    plain
}

/// Percent-decoded, as a server that echoes it may.
fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The first error of type `E` in the chain of causes.
fn cause<E: std::error::Error + 'static>(error: &reqwest::Error) -> Option<&E> {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(found) = inner.downcast_ref() {
            return Some(found);
        }
        source = inner.source();
    }
    None
}

/// Whether the connection closed before any byte of the answer.
fn died_unanswered(error: &reqwest::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
    let closed = |e: &hyper::Error| e.is_incomplete_message() || e.is_canceled() || e.is_closed();
    let lost = |e: &std::io::Error| matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected);
    !error.is_connect() && (cause(error).is_some_and(closed) || cause(error).is_some_and(lost))
}

fn network_failure(error: &reqwest::Error, timeouts: &Timeouts) -> Failed {
    let text = chain(error);
    if error.is_connect() {
        let message = if error.is_timeout() {
            format!("no connection within {:?} (llm.connect_timeout)", timeouts.connect)
        } else if text.contains("UnknownIssuer") {
            format!("{text} (set llm.ca_file or SSL_CERT_FILE to the PEM file of its issuer)")
        } else {
            text
        };
        return Failed { kind: Failure::Connect, message };
    }
    if cause(error).is_some_and(hyper::Error::is_parse) {
        return Failed { kind: Failure::Malformed, message: format!("the answer is not HTTP: {text}") };
    }
    let kind = if error.is_body() || error.is_decode() { Failure::Malformed } else { Failure::Connect };
    Failed { kind, message: text }
}

/// An error's causes without the URL (which may hold secrets), the innermost last.
fn chain(error: &reqwest::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        // The pool's own "client error (…)" repeats our kind; its cause says more.
        let says_more = !inner.is::<hyper_util::client::legacy::Error>() || inner.source().is_none();
        if says_more && parts.last().is_none_or(|last| !last.contains(&text)) {
            parts.push(text);
        }
        source = inner.source();
    }
    if parts.is_empty() { "request failed".to_owned() } else { parts.join(": ") }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    const KIND: &[u8] = b"text/event-stream";
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes().trim_ascii_start());
    kind.get(..KIND.len()).is_some_and(|start| start.eq_ignore_ascii_case(KIND))
}

/// How long to wait: `retry-after-ms`, as OpenAI has it beside the other, or `Retry-After` in seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &str| text(name)?.parse::<f64>().ok();
    let seconds = number("retry-after-ms").map(|ms| ms / 1e3).or_else(|| number("retry-after"));
    if let Some(seconds) = seconds {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = |name: &str| httpdate::parse_http_date(text(name)?).ok();
    // By the server's own clock, where it shows it: ours may be another.
    let now = date("date").unwrap_or_else(SystemTime::now);
    Some(date("retry-after")?.duration_since(now).unwrap_or_default())
}

/// `x-ratelimit-limit-requests` and its like, as OpenAI names them; `None` if there is none.
fn rate_limit(headers: &HeaderMap) -> Option<RateLimit> {
    // Looked for in every answer: a name that is known need not be parsed each time.
    const REQUESTS: [HeaderName; 3] = [
        HeaderName::from_static("x-ratelimit-limit-requests"),
        HeaderName::from_static("x-ratelimit-remaining-requests"),
        HeaderName::from_static("x-ratelimit-reset-requests"),
    ];
    const TOKENS: [HeaderName; 3] = [
        HeaderName::from_static("x-ratelimit-limit-tokens"),
        HeaderName::from_static("x-ratelimit-remaining-tokens"),
        HeaderName::from_static("x-ratelimit-reset-tokens"),
    ];
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name| text(name).and_then(|text| text.parse().ok());
    let limit = RateLimit {
        limit_requests: number(&REQUESTS[0]),
        remaining_requests: number(&REQUESTS[1]),
        reset_s: text(&REQUESTS[2]).and_then(written_duration),
        limit_tokens: number(&TOKENS[0]),
        remaining_tokens: number(&TOKENS[1]),
        reset_tokens_s: text(&TOKENS[2]).and_then(written_duration),
        exceeded: None,
    };
    (limit != RateLimit::default()).then_some(limit)
}

/// The quota that a 429 is for: as its type (OpenAI's `tokens` or `requests`) or its text says, else by what its headers
/// say is left.
fn exceeded(body: &[u8], said: RateLimit) -> Option<Quota> {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let kind = value.pointer("/error/type").and_then(Value::as_str);
    let text = error_text(body).to_lowercase().replace(',', "");
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    // "tokens per min", "token rate limit", "TPM"
    let names = |what: &str, short: [&str; 2]| {
        let pair = |pair: &[&str]| {
            pair[0].trim_end_matches('s') == what && ["per", "rate", "limit", "quota"].contains(&pair[1])
        };
        words.windows(2).any(pair) || words.iter().any(|word| short.contains(word))
    };
    let counts = match (kind, names("request", ["rpm", "rpd"]), names("token", ["tpm", "tpd"])) {
        (Some("requests"), ..) => Counted::Requests,
        (Some("tokens"), ..) => Counted::Tokens,
        (_, true, false) => Counted::Requests,
        (_, false, true) => Counted::Tokens,
        _ => match (said.remaining_requests, said.remaining_tokens) {
            (Some(0), Some(0)) => return None,
            (Some(0), _) => Counted::Requests,
            // Of requests there is something left.
            (_, Some(0)) | (Some(_), Some(_)) => Counted::Tokens,
            _ => return None,
        },
    };
    let per = words.iter().zip(words.iter().skip(1).chain(&[""])).find_map(|(word, next)| match (*word, *next) {
        ("rpm" | "tpm", _) | ("per", "min" | "minute") => Some(Period::Minute),
        ("rpd" | "tpd", _) | ("per", "day") => Some(Period::Day),
        ("per", "hour") => Some(Period::Hour),
        ("per", "second" | "sec") => Some(Period::Second),
        _ => None,
    });
    // "Limit 30000", "limit of 30,000"
    let stated = words
        .windows(3)
        .filter(|words| words[0] == "limit")
        .find_map(|words| if words[1] == "of" { words[2].parse().ok() } else { words[1].parse().ok() });
    Some(Quota { counts, limit: stated, per })
}

/// `6m0s`, `1.5s`, `20ms`, or plain seconds.
fn written_duration(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        seconds += number
            * match &unit[..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" | "" => 1.0,
                "ms" => 1e-3,
                _ => return None,
            };
        rest = &unit[end..];
    }
    (!text.is_empty()).then_some(seconds)
}

/// How a body is packed, unless it is not.
fn encoding(headers: &HeaderMap) -> Option<&str> {
    let encoding = headers.get(header::CONTENT_ENCODING)?.to_str().unwrap_or("unreadable").trim();
    (!encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity")).then_some(encoding)
}

async fn read_up_to(response: &mut Response, limit: usize, body: &mut Vec<u8>) {
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk[..chunk.len().min(limit - body.len())]);
        if body.len() == limit {
            break;
        }
    }
}

fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failed {
    let kind = kind_of(status.as_u16());
    let mut message = format!("HTTP {}", status.as_u16());
    let said = match encoding(headers) {
        Some(encoding) => format!("a compressed ({encoding}) body"),
        None => error_text(body),
    };
    if status.is_redirection() {
        let to = headers.get(header::LOCATION).and_then(|to| to.to_str().ok()).and_then(|to| Url::parse(to).ok());
        let to = to.map_or_else(|| "another place".to_owned(), |url| crate::client::endpoint::redacted(&url));
        message.push_str(&format!(": redirect to {to} not followed (set llm.endpoint to it)"));
    } else if !said.is_empty() {
        message.push_str(&format!(": {said}"));
    }
    Failed { kind, message }
}

fn kind_of(status: u16) -> Failure {
    match status {
        429 => Failure::RateLimited,
        300..500 => Failure::ClientError,
        _ => Failure::ServerError,
    }
}

/// An error that came under status 200. Some say their true status inside.
fn error_in_answer(data: &[u8]) -> Failed {
    let value: Value = serde_json::from_slice(data).unwrap_or_default();
    let status = ["/error/code", "/error/status"].iter().find_map(|place| value.pointer(place)?.as_u64());
    let kind = kind_of(status.and_then(|status| u16::try_from(status).ok()).unwrap_or(500));
    Failed { kind, message: error_text(data) }
}

/// What an error body says, in any of the shapes servers use.
fn error_text(body: &[u8]) -> String {
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        let text = String::from_utf8_lossy(body);
        return if looks_like_html(body) { "an HTML page".to_owned() } else { text.trim().to_owned() };
    };
    let places = ["/error/message", "/error", "/detail/0/msg", "/detail", "/message"];
    match places.iter().find_map(|place| value.pointer(place)).unwrap_or(&value) {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn looks_like_html(body: &[u8]) -> bool {
    let start = &body[..body.len().min(200)];
    String::from_utf8_lossy(start).trim_start().starts_with('<')
}

// ---- reading an answer ----

/// An answer in the making.
struct Reading {
    kind: RequestKind,
    keep_text: bool,
    sent: Instant,
    last_content: Option<Instant>,
    finished: bool,
    done: bool,
    failed: Option<Failed>,
    answer: Answer,
}

impl Reading {
    fn new(kind: RequestKind, keep_text: bool) -> Self {
        Reading {
            kind,
            keep_text,
            sent: Instant::now(),
            last_content: None,
            finished: false,
            done: false,
            failed: None,
            answer: Answer::default(),
        }
    }

    /// One event of a stream, which arrived at `now`.
    fn event(&mut self, data: &[u8], now: Instant) {
        if self.done || self.failed.is_some() {
            return;
        }
        if data.trim_ascii() == b"[DONE]" {
            self.done = true;
            return;
        }
        match serde_json::from_slice::<Body<'_>>(data) {
            Ok(body) if body.error.is_none() => {
                if self.take(body) {
                    self.content_arrived(now);
                }
            }
            Ok(_) => self.failed = Some(self.error_inside(data)),
            Err(error) => self.failed = Some(not_json(data, &error)),
        }
    }

    fn error_inside(&mut self, data: &[u8]) -> Failed {
        let failed = error_in_answer(data);
        self.note_quota(failed.kind, data);
        failed
    }

    /// Which quota was used up, if that is what a failure with this body is.
    fn note_quota(&mut self, kind: Failure, body: &[u8]) {
        let said = &mut self.answer.reply.rate_limit;
        if kind == Failure::RateLimited
            && let Some(quota) = exceeded(body, said.unwrap_or_default())
        {
            said.get_or_insert_default().exceeded = Some(quota);
        }
    }

    fn content_arrived(&mut self, now: Instant) {
        let reply = &mut self.answer.reply;
        match self.last_content.replace(now) {
            None => reply.ttft = Some(now - self.sent),
            Some(before) if reply.gaps_us.len() < MOST_GAPS => {
                reply.gaps_us.push(u32::try_from((now - before).as_micros()).unwrap_or(u32::MAX));
            }
            Some(_) => {}
        }
    }

    /// Takes what a chunk or a whole body brings; true if there was content in it.
    fn take(&mut self, body: Body<'_>) -> bool {
        let mut content = body.data.is_some_and(|vectors| vectors.iter().any(|v| v.embedding.0));
        if let Some(said) = body.choices {
            content |= said.content;
            self.finished |= said.finish_reason.is_some();
            if self.keep_text {
                self.answer.text.push_str(&said.text);
                self.answer.finish_reason =
                    said.finish_reason.map(Cow::into_owned).or(self.answer.finish_reason.take());
            }
        }
        if let Some(usage) = body.usage {
            self.answer.reply.tokens = counts(usage);
        }
        self.answer.reply.chunks += u32::from(content);
        content
    }

    /// The verdict once the body is over.
    fn conclude(&mut self) -> Result<(), Failed> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        let reply = &self.answer.reply;
        // Where the first token is the one that ends an answer, it is a whole one; a server that has broken down says
        // nothing of tokens.
        let ended_at_once = self.kind != RequestKind::Embedding && self.finished && reply.tokens.output >= Some(1);
        if reply.chunks == 0 && !ended_at_once {
            let message = match self.kind {
                RequestKind::Embedding => "the answer holds no vector",
                _ => "the answer holds no content",
            };
            return Err(Failed { kind: Failure::EmptyOutput, message: message.to_owned() });
        }
        Ok(())
    }
}

/// Memory for an answer.
struct Room<'a> {
    places: &'a Semaphore,
    place: Option<SemaphorePermit<'a>>,
}

impl Room<'_> {
    /// This answer holds so many bytes: reads on only where it may. It may then grow to its limit, so that no two wait
    /// for each other.
    async fn hold(&mut self, bytes: usize) {
        if bytes <= SMALL_ANSWER {
            self.place = None;
        } else if self.place.is_none() {
            // Nobody closes the semaphore.
            self.place = self.places.acquire().await.ok();
        }
    }
}

/// The next bytes of an answer.
async fn next_chunk(
    response: &mut Response,
    idle: Option<Duration>,
    reading: &mut Reading,
) -> Result<Option<Bytes>, Failed> {
    let chunk = within(idle, "nothing more in mid-answer", "llm.idle_timeout", response.chunk()).await?;
    reading.answer.reply.cut = chunk.is_err();
    chunk.map_err(|error| cut_short(&error))
}

async fn read_stream(
    response: &mut Response,
    idle: Option<Duration>,
    room: &mut Room<'_>,
    reading: &mut Reading,
) -> Result<(), Failed> {
    let mut parser = SseParser::new(LONGEST_LINE);
    let mut bytes = 0;
    let too_long =
        |error: crate::client::sse::LineTooLong| Failed { kind: Failure::Malformed, message: error.to_string() };
    while !reading.done && reading.failed.is_none() {
        let Some(chunk) = next_chunk(response, idle, reading).await? else {
            let now = Instant::now();
            parser.finish(|data| reading.event(data, now)).map_err(too_long)?;
            break;
        };
        bytes += chunk.len();
        if bytes > LONGEST_STREAM {
            return Err(too_large(LONGEST_STREAM));
        }
        let now = Instant::now();
        parser.feed(&chunk, |data| reading.event(data, now)).map_err(too_long)?;
        room.hold(parser.held()).await;
    }
    if reading.done {
        // Reading to the very end gives the connection back to the pool.
        let _ = tokio::time::timeout(AFTER_DONE, async { while let Ok(Some(_)) = response.chunk().await {} }).await;
    }
    if !reading.done && !reading.finished && reading.failed.is_none() {
        reading.answer.reply.cut = true;
        return Err(Failed {
            kind: Failure::Malformed,
            message: "the stream ended without finish_reason and [DONE]".to_owned(),
        });
    }
    reading.conclude()
}

async fn read_whole(
    response: &mut Response,
    idle: Option<Duration>,
    room: &mut Room<'_>,
    reading: &mut Reading,
) -> Result<(), Failed> {
    let mut whole = Vec::new();
    while let Some(chunk) = next_chunk(response, idle, reading).await? {
        if whole.len() + chunk.len() > LONGEST_BODY {
            return Err(too_large(LONGEST_BODY));
        }
        whole.extend_from_slice(&chunk);
        room.hold(whole.len()).await;
    }
    let body: Body<'_> = serde_json::from_slice(&whole).map_err(|error| not_json(&whole, &error))?;
    if body.error.is_some() {
        return Err(reading.error_inside(&whole));
    }
    reading.take(body);
    reading.conclude()
}

fn cut_short(error: &reqwest::Error) -> Failed {
    Failed { kind: Failure::Malformed, message: format!("the answer was cut short: {}", chain(error)) }
}

fn too_large(limit: usize) -> Failed {
    Failed { kind: Failure::Malformed, message: format!("the answer is larger than {} MiB", limit >> 20) }
}

fn not_json(data: &[u8], error: &serde_json::Error) -> Failed {
    let message = if looks_like_html(data) {
        "HTML instead of JSON (is the path of llm.endpoint right?)".to_owned()
    } else {
        // Shortened only when the secrets are out: half a secret would not be found.
        let data = &data[..data.len().min(LONGEST_ERROR)];
        format!("not the JSON of the protocol ({error}): {}", String::from_utf8_lossy(data))
    };
    Failed { kind: Failure::Malformed, message }
}

/// What is read of a body or a stream's chunk. All of it is optional: servers differ.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    choices: Option<Said<'a>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "present")]
    error: Option<()>,
    data: Option<Vec<Vector>>,
}

/// Whether a value is there and not null, whatever it is.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<()>, D::Error> {
    Ok(Option::<IgnoredAny>::deserialize(deserializer)?.map(|_| ()))
}

/// What the choices of one chunk say together. Added up as they are read: a list of them would be an allocation per chunk.
#[derive(Default)]
struct Said<'a> {
    text: Cow<'a, str>,
    content: bool,
    finish_reason: Option<Cow<'a, str>>,
}

impl<'a> Said<'a> {
    fn add(&mut self, choice: Choice<'a>) {
        for part in [choice.delta, choice.message].into_iter().flatten() {
            [part.content, part.reasoning_content, part.reasoning].into_iter().for_each(|text| self.add_text(text));
            self.content |= part.tool_calls.is_some_and(|calls| !calls.is_empty());
        }
        self.add_text(choice.text);
        self.finish_reason = choice.finish_reason.or(self.finish_reason.take());
    }

    fn add_text(&mut self, Text(text): Text<'a>) {
        self.content |= !text.is_empty();
        self.text += text;
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Said<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Choices;
        impl<'de> Visitor<'de> for Choices {
            type Value = Said<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of choices")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut choices: A) -> Result<Said<'de>, A::Error> {
                let mut said = Said::default();
                while let Some(choice) = choices.next_element()? {
                    said.add(choice);
                }
                Ok(said)
            }
        }
        deserializer.deserialize_seq(Choices)
    }
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<Part<'a>>,
    #[serde(borrow)]
    message: Option<Part<'a>>,
    #[serde(borrow, default)]
    text: Text<'a>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, default)]
    content: Text<'a>,
    #[serde(borrow, default)]
    reasoning_content: Text<'a>,
    #[serde(borrow, default)]
    reasoning: Text<'a>,
    tool_calls: Option<Vec<IgnoredAny>>,
}

/// A string, null, or a list of parts with a `text` each.
#[derive(Default)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Text::default())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
        let mut all = String::new();
        while let Some(part) = parts.next_element::<Text<'de>>()? {
            all.push_str(&part.0);
        }
        Ok(Text(Cow::Owned(all)))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Text::default();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key == "text" {
                found = map.next_value()?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

#[derive(Deserialize)]
struct Vector {
    embedding: NotEmpty,
}

/// Whether a vector (a list, or base64 text) holds anything.
struct NotEmpty(bool);

impl<'de> Deserialize<'de> for NotEmpty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = NotEmpty;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vector")
            }
            fn visit_str<E>(self, text: &str) -> Result<NotEmpty, E> {
                Ok(NotEmpty(!text.is_empty()))
            }
            fn visit_unit<E>(self) -> Result<NotEmpty, E> {
                Ok(NotEmpty(false))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<NotEmpty, A::Error> {
                let mut any = false;
                while values.next_element::<IgnoredAny>()?.is_some() {
                    any = true;
                }
                Ok(NotEmpty(any))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// The counts of a `usage`. Some write them as `5.0` or `"5"`; what can be no count is unknown, and no reason to doubt
/// the answer.
fn counts(usage: &RawValue) -> TokenCounts {
    let usage: Value = serde_json::from_str(usage.get()).unwrap_or_default();
    let count = |place: &str| {
        let number = match usage.pointer(place)? {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        number.filter(|n| n.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(n)).map(|n| n as u32)
    };
    TokenCounts {
        input: count("/prompt_tokens"),
        output: count("/completion_tokens"),
        cached: count("/prompt_tokens_details/cached_tokens"),
    }
}

// ---- bodies for the measurement ----

/// The body of a request, built once per prompt; only the prefix that makes it unique is filled in per request.
#[derive(Clone, Debug)]
pub struct BodyTemplate {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl BodyTemplate {
    /// The body that asks `model` about `prompt` as `settings` say.
    pub fn new(model: &str, settings: &RequestSettings, prompt: &str) -> Self {
        let mut others = Map::new();
        others.insert("model".into(), model.into());
        if settings.kind != RequestKind::Embedding {
            others.insert("max_tokens".into(), settings.max_tokens.into());
            others.insert("stream".into(), settings.stream.into());
            if settings.stream {
                others.insert("stream_options".into(), json!({"include_usage": true}));
            }
        }
        others.extend(settings.extra_body.clone());
        let key = settings.kind.prompt_key();
        others.remove(key);
        let others = Value::Object(others).to_string();
        let (open, close) = match settings.kind {
            RequestKind::Chat => (r#"[{"role":"user","content":"#, "}]"),
            RequestKind::Completion | RequestKind::Embedding => ("", ""),
        };
        let quoted = Value::from(prompt).to_string();
        // The prompt comes last, and its place is where it is put: behind the others' last entry, after the quote.
        let before = format!("{},\"{key}\":{open}\"", &others[..others.len() - 1]);
        BodyTemplate { before: before.into(), after: format!("{}{close}}}", &quoted[1..]).into() }
    }

    /// The body with `prefix` (plain letters and digits) before the prompt.
    pub fn fill(&self, prefix: &str) -> Bytes {
        [&self.before, prefix.as_bytes(), &self.after].concat().into()
    }
}

// ---- the client for programs ----

/// Why a call of [`LlmClient`] failed.
#[derive(Debug, Error)]
pub enum LlmError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `llm.endpoint` is `simulator`, which only the suite can start.
    #[error(
        "llm.endpoint is `simulator`, which exists only inside the benchmark suite: start one with `llm-concurrency simulate --port 8000` and set llm.endpoint (LLM_ENDPOINT) to http://127.0.0.1:8000/v1"
    )]
    Simulator,
    /// The API key cannot be sent.
    #[error("the API key (LLM_API_KEY or OPENAI_API_KEY) holds characters that an HTTP header cannot carry")]
    BadKey,
    /// The crate was built without TLS.
    #[error("llm.endpoint is https, and this program was built without the feature `tls` of llm-concurrency")]
    NoTls,
    /// The file with certificates cannot be used.
    #[error("llm.ca_file {path}: {message}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The HTTP client could not be built.
    #[error("cannot set up the HTTP client: {0}")]
    Client(String),
    /// The request failed, all retries included.
    #[error("{failure} from {url} after {attempts} attempt(s): {message}")]
    Request {
        /// The kind of the last failure.
        failure: Failure,
        /// Its HTTP status, if the server answered.
        status: Option<u16>,
        /// What was said, short and redacted.
        message: String,
        /// Where, redacted.
        url: String,
        /// How often it was tried.
        attempts: u32,
    },
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// A chat to be continued.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChatRequest {
    /// The messages so far.
    pub messages: Vec<Message>,
    /// Longest answer, tokens; the server's default without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Anything else the server understands (`temperature`, …).
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ChatRequest {
    /// A single question.
    pub fn user(text: impl Into<String>) -> Self {
        ChatRequest {
            messages: vec![Message { role: "user".to_owned(), content: text.into() }],
            ..ChatRequest::default()
        }
    }
}

/// The answer to a [`ChatRequest`].
#[derive(Clone, Debug, PartialEq)]
pub struct ChatResponse {
    /// The text.
    pub content: String,
    /// Why the server stopped (`stop`, `length`, …).
    pub finish_reason: Option<String>,
    /// Tokens, as reported.
    pub tokens: TokenCounts,
    /// How often it was tried.
    pub attempts: u32,
}

/// A client that never has more than `llm.max_concurrent_requests` requests in flight. Clones share that limit.
///
/// ```
/// # #[cfg(feature = "suite")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use llm_concurrency::LlmClient;
/// use llm_concurrency::client::ChatRequest;
/// use llm_concurrency::client::Llm;
/// use llm_concurrency::simulator::{Simulator, SimulatorConfig};
///
/// // A server to talk to; yours has a URL already.
/// let simulator = Simulator::start(SimulatorConfig::default(), 0)?;
/// let llm = Llm { endpoint: Some(simulator.base_url().parse()?), max_concurrent_requests: 5, ..Llm::default() };
/// let client = LlmClient::from_config(llm, None)?;
///
/// let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
/// let answer = runtime.block_on(client.chat(&ChatRequest::user("Say hello")))?;
/// assert!(!answer.content.is_empty());
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "suite"))]
/// # fn main() {}
/// ```
#[derive(Clone)]
pub struct LlmClient {
    inner: Arc<ClientInner>,
}

struct ClientInner {
    transport: Transport,
    permits: Semaphore,
    llm: Llm,
}

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

impl LlmClient {
    /// The one client of this process and its one limit, made as [`new`](Self::new) makes it when it is first asked for.
    /// Callers that each made a client of their own would together exceed the limit that was measured.
    ///
    /// # Errors
    /// As [`new`](Self::new); the next call tries again.
    pub fn shared() -> Result<&'static Self, LlmError> {
        static SHARED: OnceCell<LlmClient> = OnceCell::new();
        SHARED.get_or_try_init(Self::new)
    }

    /// From `config.yaml` in the working folder (or `LLM_CONFIG`) and the environment.
    ///
    /// # Errors
    /// If the settings are wrong or missing, or the HTTP client cannot be set up with them.
    pub fn new() -> Result<Self, LlmError> {
        let (llm, key) = Llm::load(None)?;
        Self::from_config(llm, key)
    }

    /// From a config file and the environment.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, LlmError> {
        let (llm, key) = Llm::load(Some(path.as_ref()))?;
        Self::from_config(llm, key)
    }

    /// From a configuration in hand; neither a file nor the environment is looked at.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_config(llm: Llm, api_key: Option<SecretString>) -> Result<Self, LlmError> {
        llm.check()?;
        let base = match &llm.endpoint {
            Some(Endpoint::Url(base)) => base,
            Some(Endpoint::Simulator) => return Err(LlmError::Simulator),
            None => return Err(ConfigError::NoEndpoint("the configuration".into()).into()),
        };
        let transport = Transport::new(base, RequestKind::Chat, &llm, api_key.as_ref())?;
        let permits = Semaphore::new(llm.max_concurrent_requests);
        Ok(LlmClient { inner: Arc::new(ClientInner { transport, permits, llm }) })
    }

    /// Sends a chat and waits for the whole answer.
    ///
    /// Connection errors, timeouts, 429 and 5xx are tried again up to `llm.retry_attempts` times, after an
    /// exponential backoff with jitter or what `Retry-After` asks for; the place in the queue is given up meanwhile.
    ///
    /// # Errors
    /// [`LlmError::Request`] with the last failure.
    pub async fn chat(&self, request: &ChatRequest) -> Result<ChatResponse, LlmError> {
        let inner = &self.inner;
        let mut body = json!(request);
        body["model"] = json!(inner.llm.model);
        let body = Bytes::from(body.to_string());
        let mut attempts = 0;
        loop {
            let answer = self.chat_once(body.clone()).await;
            attempts += 1;
            let Some(failed) = answer.reply.failure else {
                return Ok(ChatResponse {
                    content: answer.text,
                    finish_reason: answer.finish_reason,
                    tokens: answer.reply.tokens,
                    attempts,
                });
            };
            if attempts > inner.llm.retry_attempts || !may_pass(failed.kind) {
                return Err(LlmError::Request {
                    failure: failed.kind,
                    status: answer.reply.status,
                    message: failed.message,
                    url: inner.transport.url(),
                    attempts,
                });
            }
            tokio::time::sleep(backoff(attempts, answer.reply.retry_after)).await;
        }
    }

    async fn chat_once(&self, body: Bytes) -> Answer {
        // Nobody closes the semaphore, so there is always a permit in the end.
        let _permit = self.inner.permits.acquire().await;
        self.inner.transport.send_for_text(body).await
    }
}

/// Failures that another try may not meet.
fn may_pass(kind: Failure) -> bool {
    matches!(kind, Failure::Connect | Failure::Timeout | Failure::RateLimited | Failure::ServerError)
}

/// What the server asked for, else 0.5 s doubled with each attempt, times a random factor between 0.5 and 1.
fn backoff(attempts: u32, asked: Option<Duration>) -> Duration {
    let doubled = FIRST_BACKOFF.saturating_mul(1 << (attempts - 1).min(16));
    let jittered = doubled.min(LONGEST_BACKOFF).mul_f64(rand::rng().random_range(0.5..=1.0));
    jittered.max(asked.unwrap_or_default().min(LONGEST_BACKOFF))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_quota_is_read_from_the_headers_as_openai_names_and_writes_them() {
        assert_eq!(rate_limit(&headers(&[("content-type", "text/plain")])), None);
        let told = headers(&[
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", "6m1.5s"),
            ("x-ratelimit-limit-tokens", "150000"),
            ("x-ratelimit-remaining-tokens", "149984"),
            ("x-ratelimit-reset-tokens", "6ms"),
        ]);
        let limit = RateLimit {
            limit_requests: Some(60),
            remaining_requests: Some(0),
            reset_s: Some(361.5),
            limit_tokens: Some(150_000),
            remaining_tokens: Some(149_984),
            reset_tokens_s: Some(0.006),
            exceeded: None,
        };
        assert_eq!(rate_limit(&told), Some(limit));
        for (text, seconds) in
            [("20ms", Some(0.02)), ("17", Some(17.0)), ("1h", Some(3600.0)), ("", None), ("soon", None), ("5 s", None)]
        {
            assert_eq!(written_duration(text), seconds, "{text}");
        }
    }

    /// The texts are those of OpenAI, Azure, Anthropic, Groq and LiteLLM.
    #[test]
    fn which_quota_a_429_is_for_is_read_from_its_body_and_else_from_what_is_left() {
        let quota = |counts, limit, per| Some(Quota { counts, limit, per });
        let (requests, tokens) = (Counted::Requests, Counted::Tokens);
        let left = |requests, tokens| RateLimit {
            remaining_requests: requests,
            remaining_tokens: tokens,
            ..RateLimit::default()
        };
        let error = |message: &str, kind: &str| json!({"error": {"message": message, "type": kind}}).to_string();
        let tpm = "Rate limit reached for gpt-4 in organization org-x on tokens per min (TPM): Limit 30000, Used 29000, Requested 2000. Please try again in 2s.";
        let rpd = "Rate limit reached for gpt-4 in organization org-x on requests per day (RPD): Limit 200, Used 200, Requested 1.";
        for (body, said, expected) in [
            (error(tpm, "tokens"), None, quota(tokens, Some(30_000), Some(Period::Minute))),
            (error(rpd, "requests"), None, quota(requests, Some(200), Some(Period::Day))),
            (error("slow down", "tokens"), None, quota(tokens, None, None)),
            (
                error(
                    "This would exceed your organization's rate limit of 30,000 input tokens per minute",
                    "rate_limit_error",
                ),
                None,
                quota(tokens, Some(30_000), Some(Period::Minute)),
            ),
            (
                error(
                    "Requests to the ChatCompletions_Create Operation have exceeded token rate limit of your tier",
                    "429",
                ),
                None,
                quota(tokens, None, None),
            ),
            (r#"{"detail": "Requests rate limit exceeded"}"#.to_owned(), None, quota(requests, None, None)),
            (r#"{"error": "Crossed TPM / RPM limit"}"#.to_owned(), None, None),
            ("too many requests; try again in 3 s".to_owned(), None, None),
            (String::new(), Some(left(Some(0), Some(5))), quota(requests, None, None)),
            (String::new(), Some(left(Some(99_999), Some(120))), quota(tokens, None, None)),
            (String::new(), Some(left(None, Some(0))), quota(tokens, None, None)),
            (String::new(), Some(left(Some(7), None)), None),
            (String::new(), Some(left(Some(0), Some(0))), None),
        ] {
            assert_eq!(exceeded(body.as_bytes(), said.unwrap_or_default()), expected, "{body} {said:?}");
        }
    }

    #[test]
    fn a_wait_is_asked_for_in_milliseconds_seconds_or_as_a_date() {
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        for (pairs, seconds) in [
            (vec![("retry-after-ms", "1500"), ("retry-after", "2")], Some(1.5)),
            (vec![("retry-after", "2")], Some(2.0)),
            (vec![("retry-after", "Sun, 06 Nov 1994 08:49:57 GMT"), date], Some(20.0)),
            // Over by the server's clock, and by ours.
            (vec![("retry-after", "Sun, 06 Nov 1994 08:49:07 GMT"), date], Some(0.0)),
            (vec![("retry-after", "Sun, 06 Nov 1994 08:49:57 GMT")], Some(0.0)),
            (vec![("retry-after", "-2")], None),
            (vec![("retry-after", "soon"), date], None),
            (vec![date], None),
        ] {
            assert_eq!(retry_after(&headers(&pairs)), seconds.map(Duration::from_secs_f64), "{pairs:?}");
        }
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(600));
        let wait = retry_after(&headers(&[("retry-after", &later)])).unwrap();
        assert!((500..=600).contains(&wait.as_secs()), "{wait:?}");
    }

    #[test]
    fn the_prompt_stands_where_it_belongs_whatever_else_is_sent() {
        let extra_body = json!({"messages": "x", "a": {"\u{1}prefix\u{1}": [1]}, "z": null});
        let Value::Object(extra_body) = extra_body else { unreachable!() };
        let prompt = "say \"hi\" \u{1}prefix\u{1}\n";
        for kind in [RequestKind::Chat, RequestKind::Completion, RequestKind::Embedding] {
            let settings = RequestSettings { kind, extra_body: extra_body.clone(), ..RequestSettings::default() };
            let body: Value = serde_json::from_slice(&BodyTemplate::new("m", &settings, prompt).fill("0123 ")).unwrap();
            let place = match kind {
                RequestKind::Chat => "/messages/0/content",
                RequestKind::Completion => "/prompt",
                RequestKind::Embedding => "/input",
            };
            assert_eq!(body.pointer(place).unwrap(), &format!("0123 {prompt}"), "{body}");
            assert_eq!((&body["model"], &body["a"]), (&json!("m"), &extra_body["a"]));
            assert_eq!(body.get("max_tokens").is_some(), kind != RequestKind::Embedding);
        }
    }
}
