//! Finds how many requests in parallel an LLM endpoint (OpenAI-compatible HTTP) serves best.
//!
//! The data flow, one folder a step:
//!
//! ```text
//! commands  what was asked for; settings from file, environment and flags; prompts
//! measure   runs level after level, each a Criterion benchmark; its race says which one next, and picks the level
//!   load      closed loop (or open: `verify`) -> client -> one outcome a request
//!   record    outcomes to sidecars, manifest, results file; reads Criterion's estimates again
//!   figures   outcomes -> LevelSummary
//! decide    summaries + Policy (+ the race's pick) -> Recommendation: gates, status, interval; also against a baseline
//! report    the Recommendation in English: terminal, page, exports; monitor shows it live
//! patch     the number into config.yaml (`recommend --update-config`, `run --update-config`)
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
