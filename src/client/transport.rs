//! Sends one request and returns one reply.

use std::collections::HashSet;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper_util::client::legacy::connect::HttpInfo;
use reqwest::{Request, RequestBuilder, Response, Url};
use secrecy::SecretString;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::answer::{Answer, read_up_to};
use super::config::Llm;
use super::endpoint::redacted;
use super::failure::{Failed, Failure, cause, chain, died_unanswered, encoding};
use super::headers;
use super::http;
use super::kind::{RequestKind, Wire};
use super::llm_client::LlmError;
use super::outcome::Reply;
use super::quota::{rate_limit, retry_after};
use super::redact::Secrets;

/// Number of answers that may buffer more than [`SMALL_ANSWER`](super::answer::SMALL_ANSWER) at a time.
const LARGE_ANSWERS: usize = 4;
/// Limit on how much of an error's body is read, bytes.
const LONGEST_ERROR: usize = 64 << 10;
/// Limit on waiting for an error's body; the status alone already tells that it is an error.
const ERROR_BODY_WAIT: Duration = Duration::from_secs(1);
/// Limit on how much of a model list or of `/metrics` is read, bytes.
const LONGEST_STATEMENT: usize = 4 << 20;
/// Timeout for the model list and `/metrics`; a busy server may need this long.
const STATEMENT_WAIT: Duration = Duration::from_secs(5);

/// Sends single requests to one route of one server. Cheap to clone.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
    secrets: Secrets,
}

struct Inner {
    http: reqwest::Client,
    /// Opens a new connection for each request, so that a resent request cannot meet a second dead one.
    fresh: reqwest::Client,
    /// Local addresses of the connections that have delivered an answer: a request on one of them reuses it.
    answered: Mutex<HashSet<SocketAddr>>,
    /// The request without its body.
    request: Request,
    models: Request,
    wire: &'static Wire,
    llm: Llm,
    large_answers: Semaphore,
}

/// Awaits `future`; on a timeout, fails with a message made of `what` and the setting responsible.
pub(super) async fn within<T>(
    limit_s: Option<f64>,
    what: &str,
    setting: &str,
    future: impl Future<Output = T>,
) -> Result<T, Failed> {
    let Some(limit) = limit_s.map(Duration::from_secs_f64) else { return Ok(future.await) };
    let too_late = |_| Failed::new(Failure::Timeout, format!("{what} within {limit:?} ({setting})"));
    timeout(limit, future).await.map_err(too_late)
}

/// By default, connecting may take ten seconds, or `request_timeout` if that is shorter.
fn connect_timeout(llm: &Llm) -> Duration {
    Duration::from_secs_f64(llm.connect_timeout.unwrap_or(llm.request_timeout.min(10.0)))
}

impl Transport {
    /// A transport to `base` (see [`Endpoint`](super::Endpoint)), with the timeouts, headers and CA file of `llm`.
    ///
    /// # Errors
    /// If the key or a header cannot be sent, the CA file cannot be read, or TLS is needed but not built in.
    pub fn new(base: &Url, kind: RequestKind, llm: &Llm, key: Option<&SecretString>) -> Result<Self, LlmError> {
        let wire = kind.wire();
        let headers = headers::of(llm, wire, base, key)?;
        let client = |most_idle| http::client(base, connect_timeout(llm), llm.ca_file.as_deref(), most_idle);
        let (http, fresh) = (client(usize::MAX)?, client(0)?);
        let at = |path: &str| {
            let mut url = base.clone();
            url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
            url
        };
        let prepared = |builder: RequestBuilder| {
            builder.headers(headers.clone()).build().map_err(|error| LlmError::Client(chain(&error)))
        };
        let request = prepared(http.post(at(wire.route)))?;
        let models = prepared(http.get(at("models")))?;
        let proxy = http::proxy(base);
        let to_proxy = proxy.as_ref().and_then(|proxy| proxy.basic_auth()?.to_str().ok());
        let secrets = Secrets::of(base, key, to_proxy.into_iter().chain(llm.headers.values())).and(llm.headers.parts());
        let (answered, large_answers) = (Mutex::default(), Semaphore::new(LARGE_ANSWERS));
        let inner = Inner { http, fresh, answered, request, models, wire, llm: llm.clone(), large_answers };
        Ok(Transport { inner: Arc::new(inner), secrets })
    }

    /// A transport that hides these secrets in messages as well.
    pub fn hiding(self, more: Vec<String>) -> Self {
        Transport { secrets: self.secrets.and(more), ..self }
    }

    /// Sends `body` and reads the whole answer. Never returns an error: failures are part of the reply.
    pub async fn send(&self, body: Bytes) -> Reply {
        self.exchange(|| body.clone(), false).await.reply
    }

    /// The models that the server lists (`GET /models`); `None` if it does not answer properly.
    pub async fn models(&self) -> Option<Vec<String>> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Model>,
        }
        #[derive(Deserialize)]
        struct Model {
            id: String,
        }
        let body = self.statement(self.inner.models.try_clone()?).await?;
        let list: List = serde_json::from_slice(&body).ok()?;
        Some(list.data.into_iter().map(|model| self.secrets.removed_from(&model.id)).collect())
    }

    /// The server's metrics, from `/metrics` at the root of its host; `None` if there are none.
    pub async fn metrics(&self) -> Option<String> {
        let mut request = self.inner.models.try_clone()?;
        request.url_mut().set_path("/metrics");
        request.url_mut().set_query(None);
        Some(String::from_utf8_lossy(&self.statement(request).await?).into_owned())
    }

    async fn statement(&self, request: Request) -> Option<Vec<u8>> {
        let read = async {
            let mut response = self.inner.http.execute(request).await.ok()?.error_for_status().ok()?;
            let mut body = Vec::new();
            read_up_to(&mut response, LONGEST_STATEMENT, &mut body).await;
            Some(body)
        };
        timeout(STATEMENT_WAIT, read).await.ok()?
    }

    /// The URL that requests go to, redacted.
    pub fn url(&self) -> String {
        redacted(self.inner.request.url())
    }

    /// Like [`send`](Self::send), but creates the body when it is sent, and again for a resend,
    /// so that it does not stay in memory until the answer arrives.
    pub(crate) async fn exchange(&self, body: impl Fn() -> Bytes, keep_text: bool) -> Answer {
        let inner = &self.inner;
        let mut answer = Answer::new(inner.wire, keep_text);
        let done = {
            // Boxed: a future is copied each time it is passed on.
            let attempt = Box::pin(async {
                let mut response = self.attempt(&body, &mut answer).await?;
                self.read(&mut response, &mut answer).await
            });
            within(Some(inner.llm.request_timeout), "no complete answer", "llm.request_timeout", attempt).await
        };
        if let Err(mut failed) = done.and_then(|done| done) {
            failed.message = self.secrets.removed_from(&failed.message);
            answer.reply.failure = Some(failed);
        }
        answer
    }

    /// Sends one request; resends it once on a fresh connection if a reused one was closed before any byte came back.
    ///
    /// Some servers close the connection after every answer despite announcing keep-alive.
    /// Which side notices first is a race, and not a failure of the server.
    async fn attempt(&self, body: &impl Fn() -> Bytes, answer: &mut Answer) -> Result<Response, Failed> {
        let inner = &self.inner;
        // The HTTP client boxes this future, so it is cheap to move.
        let send = |http: &reqwest::Client| {
            let mut request = inner.request.try_clone().expect("it has no body yet");
            *request.body_mut() = Some(body().into());
            within(inner.llm.first_byte_timeout, "no first byte", "llm.first_byte_timeout", http.execute(request))
        };
        answer.sent = Instant::now();
        let response = match send(&inner.http).await? {
            Err(error) if died_unanswered(&error) && self.was_reused(&error) => {
                answer.reply.resent += 1;
                send(&inner.fresh).await?
            }
            Ok(response) => {
                self.note_answer(&response);
                Ok(response)
            }
            failed => failed,
        };
        response.map_err(|error| {
            if error.is_connect() && error.is_timeout() {
                let message = format!("no connection within {:?} (llm.connect_timeout)", connect_timeout(&inner.llm));
                return Failed::new(Failure::Connect, message);
            }
            Failed::network(&error)
        })
    }

    fn note_answer(&self, response: &Response) {
        if let Some(connection) = response.extensions().get::<HttpInfo>() {
            self.inner.answered.lock().unwrap_or_else(PoisonError::into_inner).insert(connection.local_addr());
        }
    }

    /// Whether the failed connection had already delivered an answer.
    ///
    /// It is not enough to check whether this request opened a connection: while one is being
    /// opened, another may become free and be used instead.
    fn was_reused(&self, error: &reqwest::Error) -> bool {
        let connection = cause::<hyper_util::client::legacy::Error>(error).and_then(|error| error.connect_info());
        let mut about = hyper::http::Extensions::new();
        connection.inspect(|connection| connection.get_extras(&mut about));
        let Some(connection) = about.get::<HttpInfo>() else { return false };
        // Remove it: the connection is dead, and a new one may get the same address.
        self.inner.answered.lock().unwrap_or_else(PoisonError::into_inner).remove(&connection.local_addr())
    }

    async fn read(&self, response: &mut Response, answer: &mut Answer) -> Result<(), Failed> {
        let status = response.status();
        answer.reply.status = Some(status.as_u16());
        answer.reply.rate_limit = rate_limit(response.headers());
        if !status.is_success() {
            answer.reply.retry_after = retry_after(response.headers());
            let mut body = Vec::new();
            let _ = timeout(ERROR_BODY_WAIT, read_up_to(response, LONGEST_ERROR, &mut body)).await;
            let failed = Failed::refused(status, response.headers(), &body);
            return Err(answer.with_quota(failed, &body));
        }
        if let Some(encoding) = encoding(response.headers()) {
            return Err(Failed::malformed(format!("the answer is compressed ({encoding}), which was not asked for")));
        }
        answer.read(response, self.inner.llm.idle_timeout, &self.inner.large_answers).await
    }
}
