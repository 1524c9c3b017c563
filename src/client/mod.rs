//! The OpenAI-compatible client: [`LlmClient`] for programs, `Transport` for the measurement.
//!
//! Both share one code path: one request, one `Reply` with everything that can be known about it.
//!
//! ```text
//! config, endpoint, headers,
//! request, prompt, kind/       what to send, and where              http       connections, TLS, proxies
//! transport                    one request, one reply               answer     reads the reply (streams: sse)
//! failure, quota               what failed, which quotas apply      redact     keeps secrets out of texts
//! ```

mod answer;
pub(crate) mod config;
pub(crate) mod config_file;
pub(crate) mod endpoint;
mod failure;
pub(crate) mod headers;
#[doc(hidden)]
mod http;
mod kind;
mod llm_client;
#[doc(hidden)]
pub mod outcome;
mod prompt;
#[doc(hidden)]
mod quota;
#[doc(hidden)]
pub mod redact;
pub(crate) mod request;
#[doc(hidden)]
pub mod sse;
#[doc(hidden)]
mod transport;

pub use config::{ConfigError, Env, Llm};
pub use endpoint::{Endpoint, SIMULATOR};
pub use failure::Failure;
pub use headers::Headers;
#[doc(hidden)]
pub use http::proxy_of;
pub use kind::RequestKind;
pub use llm_client::{ChatRequest, ChatResponse, LlmClient, LlmError, Message};
pub use outcome::TokenCounts;
#[doc(hidden)]
pub use prompt::{BodyTemplate, Prompt};
pub use request::{Cache, RequestSettings, System};
#[doc(hidden)]
pub use transport::Transport;
