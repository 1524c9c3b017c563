//! Finds how many requests in parallel an LLM endpoint (OpenAI-compatible HTTP) serves best.
//!
//! The data flow, one module a step:
//!
//! ```text
//! config -> sweep: per level  closed_loop -> client (sse) -> RequestOutcome (outcome)
//!                             windows -> Criterion          outcomes -> sidecar (results)
//!           stats: outcomes -> LevelSummary
//!           decide: summaries + Policy -> Recommendation (usl beside it), and against a baseline
//!           words: causes, reasons and notes in English
//!           report: what is printed and shown          config_patch: the number into config.yaml
//! ```
//!
//! `simulator` is a server to measure when there is none; it shares no type with the client. With
//! `default-features = false, features = ["tls"]` only [`LlmClient`] and its configuration are built.

pub mod client;
pub mod config;
pub mod files;
pub mod outcome;
pub mod redact;
pub mod sse;

#[cfg(feature = "suite")]
pub mod cli;
#[cfg(feature = "suite")]
pub mod closed_loop;
#[cfg(feature = "suite")]
pub mod commands;
#[cfg(feature = "suite")]
pub mod config_patch;
#[cfg(feature = "suite")]
pub mod decide;
#[cfg(feature = "suite")]
pub mod monitor;
#[cfg(feature = "suite")]
pub mod open_files;
#[cfg(feature = "suite")]
pub mod plan;
#[cfg(feature = "suite")]
pub mod preflight;
#[cfg(feature = "suite")]
pub mod prompts;
#[cfg(feature = "suite")]
pub mod reasons;
#[cfg(feature = "suite")]
pub mod report;
#[cfg(feature = "suite")]
pub mod results;
#[cfg(feature = "suite")]
pub mod search;
#[cfg(feature = "suite")]
pub mod self_check;
#[cfg(feature = "suite")]
pub mod server_load;
#[cfg(feature = "suite")]
pub mod simulator;
#[cfg(feature = "suite")]
pub mod stats;
#[cfg(feature = "suite")]
pub mod stdio;
#[cfg(feature = "suite")]
pub mod sweep;
#[cfg(feature = "suite")]
pub mod target;
#[cfg(feature = "suite")]
pub mod usl;
#[cfg(feature = "suite")]
pub mod words;

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
