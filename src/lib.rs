//! Finds how many requests in parallel an LLM endpoint (OpenAI-compatible HTTP) serves best.
//!
//! The data flow, one folder a step:
//!
//! ```text
//! settings -> measure: which level next    load: closed loop -> client -> one outcome a request
//!                      windows -> Criterion, outcomes -> record (sidecar)
//!             figures: outcomes -> LevelSummary
//!             decide:  summaries + Policy -> Recommendation, and against a baseline
//!             report:  causes in English, terminal, page, exports      patch: the number into config.yaml
//! ```
//!
//! `simulator` is a server to measure when there is none; it shares no type with the client. With
//! `default-features = false, features = ["tls"]` only [`LlmClient`] and its configuration are built.

pub mod client;
#[cfg(feature = "suite")]
pub mod settings;

#[doc(hidden)]
pub mod files;

#[cfg(feature = "suite")]
pub mod simulator;

#[cfg(feature = "suite")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "suite")]
#[doc(hidden)]
pub mod commands;
#[cfg(feature = "suite")]
#[doc(hidden)]
pub mod decide;
#[cfg(feature = "suite")]
#[doc(hidden)]
pub mod figures;
#[cfg(feature = "suite")]
#[doc(hidden)]
pub mod load;
#[cfg(feature = "suite")]
#[doc(hidden)]
pub mod measure;
#[cfg(feature = "suite")]
#[doc(hidden)]
pub mod monitor;
#[cfg(feature = "suite")]
#[doc(hidden)]
pub mod patch;
#[cfg(feature = "suite")]
#[doc(hidden)]
pub mod prompts;
#[cfg(feature = "suite")]
#[doc(hidden)]
pub mod record;
#[cfg(feature = "suite")]
#[doc(hidden)]
pub mod report;
#[cfg(feature = "suite")]
#[doc(hidden)]
pub mod stdio;

pub use client::LlmClient;

/// `cargo bench` of any package with a `config.yaml`: the whole suite. Its `benches/concurrency.rs` is this, and its
/// `[[bench]]` has `harness = false`.
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     llm_concurrency::bench()
/// }
/// ```
#[cfg(feature = "suite")]
pub fn bench() -> std::process::ExitCode {
    commands::exit(commands::bench())
}
