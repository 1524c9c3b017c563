//! The client for programs: a concurrency limit, retries, and the text of an answer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use once_cell::sync::OnceCell;
use rand::RngExt;
use secrecy::SecretString;
use serde::Serialize;
use serde_json::{Map, Value, json};
use thiserror::Error;
use tokio::sync::Semaphore;

use super::config::{ConfigError, Llm};
use super::endpoint::Endpoint;
use super::failure::Failure;
use super::kind::RequestKind;
use super::outcome::TokenCounts;
use super::transport::Transport;

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// Why a call of [`LlmClient`] failed.
#[derive(Debug, Error)]
pub enum LlmError {
    /// The settings, or a file that they name, are invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `llm.endpoint` is `simulator`, which only the suite can start.
    #[error(
        "llm.endpoint is `simulator`, which exists only inside the benchmark suite: start one with `llm-concurrency simulate --port 8000` and set llm.endpoint (LLM_ENDPOINT) to http://127.0.0.1:8000/v1"
    )]
    Simulator,
    /// The API key contains characters that a header cannot carry.
    #[error("the API key (LLM_API_KEY or OPENAI_API_KEY) holds characters that an HTTP header cannot carry")]
    Key,
    /// TLS is needed, but the crate was built without it.
    #[error(
        "llm.endpoint or llm.ca_file needs TLS, and this program was built without the feature `tls` of llm-concurrency"
    )]
    NoTls,
    /// The HTTP client could not be set up.
    #[error("cannot set up the HTTP client: {0}")]
    Client(String),
    /// The request failed, as did all retries.
    #[error("{failure} from {url} after {attempts} attempt(s): {message}")]
    Request {
        /// The failure of the last attempt.
        failure: Failure,
        /// The HTTP status of the error, if the server sent one.
        status: Option<u16>,
        /// The error text of the server or the network, short and without secrets.
        message: String,
        /// The URL without userinfo and query.
        url: String,
        /// Number of attempts, including the first.
        attempts: u32,
    },
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text of the message.
    pub content: String,
}

/// A chat for the model to continue.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChatRequest {
    /// The messages so far.
    pub messages: Vec<Message>,
    /// Maximum length of the answer in tokens; `None` leaves it to the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Any other parameters that the server supports (`temperature`, …).
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ChatRequest {
    /// A chat that consists of a single question.
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
    /// The text, including the model's reasoning where the server sends it separately.
    pub content: String,
    /// Why the server stopped (`stop`, `length`, …).
    pub finish_reason: Option<String>,
    /// Token counts as reported by the server.
    pub tokens: TokenCounts,
    /// Number of attempts, including the first.
    pub attempts: u32,
}

/// A client that never has more than `llm.max_concurrent_requests` requests in flight. Clones share that limit.
///
/// ```
/// # #[cfg(feature = "suite")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use llm_concurrency::LlmClient;
/// use llm_concurrency::client::{ChatRequest, Llm};
/// use llm_concurrency::simulator::{Simulator, SimulatorConfig};
///
/// // A server to talk to; yours already has a URL.
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
    inner: Arc<Inner>,
}

struct Inner {
    transport: Transport,
    permits: Semaphore,
    llm: Llm,
}

impl LlmClient {
    /// The process-wide client with its single limit, created on first use as by [`new`](Self::new).
    /// Separate clients for each caller would together exceed the limit that was measured.
    ///
    /// # Errors
    /// As [`new`](Self::new); the next call tries again.
    pub fn shared() -> Result<&'static Self, LlmError> {
        static SHARED: OnceCell<LlmClient> = OnceCell::new();
        SHARED.get_or_try_init(Self::new)
    }

    /// Creates a client from `config.yaml` in the working directory (or `LLM_CONFIG`) and the environment.
    ///
    /// # Errors
    /// If settings are invalid or missing, or the HTTP client cannot be set up with them.
    pub fn new() -> Result<Self, LlmError> {
        let (llm, key) = Llm::load(None)?;
        Self::from_config(llm, key)
    }

    /// Creates a client from a config file and the environment.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, LlmError> {
        let (llm, key) = Llm::load(Some(path.as_ref()))?;
        Self::from_config(llm, key)
    }

    /// Creates a client from settings made by the program. Reads no file, and from the
    /// environment only proxies and certificates.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_config(llm: Llm, api_key: Option<SecretString>) -> Result<Self, LlmError> {
        llm.check()?;
        let Endpoint::Url(base) = llm.endpoint(Path::new("the configuration"))? else {
            return Err(LlmError::Simulator);
        };
        let transport = Transport::new(base, RequestKind::Chat, &llm, api_key.as_ref())?;
        let permits = Semaphore::new(llm.max_concurrent_requests);
        Ok(LlmClient { inner: Arc::new(Inner { transport, permits, llm }) })
    }

    /// Sends a chat and waits for the whole answer.
    ///
    /// Connection errors, timeouts, 429 and 5xx are retried up to `llm.retry_attempts` times, after an
    /// exponential backoff with jitter, or later if `Retry-After` asks for it. The permit is released meanwhile.
    ///
    /// # Errors
    /// [`LlmError::Request`] with the last failure.
    pub async fn chat(&self, request: &ChatRequest) -> Result<ChatResponse, LlmError> {
        let inner = &self.inner;
        let mut body = json!(request);
        body["model"] = inner.llm.model.as_str().into();
        let body = Bytes::from(body.to_string());
        let mut attempts = 0;
        loop {
            // The semaphore is never closed, so this always yields a permit eventually.
            let permit = inner.permits.acquire().await;
            let answer = inner.transport.exchange(|| body.clone(), true).await;
            drop(permit);
            attempts += 1;
            let Some(failed) = answer.reply.failure else {
                return Ok(ChatResponse {
                    content: answer.text.unwrap_or_default(),
                    finish_reason: answer.finish_reason,
                    tokens: answer.reply.tokens,
                    attempts,
                });
            };
            if attempts > inner.llm.retry_attempts || !failed.kind.may_pass() {
                return Err(LlmError::Request {
                    failure: failed.kind,
                    status: failed.status,
                    message: failed.message,
                    url: inner.transport.url(),
                    attempts,
                });
            }
            tokio::time::sleep(backoff(attempts, answer.reply.retry_after)).await;
        }
    }
}

/// Half a second, doubled with each attempt, times a random factor between 0.5 and 1; or longer if the server asks.
fn backoff(attempts: u32, asked: Option<Duration>) -> Duration {
    let doubled = FIRST_BACKOFF.saturating_mul(1 << (attempts - 1).min(16));
    let jittered = doubled.min(LONGEST_BACKOFF).mul_f64(rand::rng().random_range(0.5..=1.0));
    jittered.max(asked.unwrap_or_default().min(LONGEST_BACKOFF))
}
