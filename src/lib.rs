//! Finds the number of parallel requests that an LLM endpoint (OpenAI-compatible HTTP) serves best.
//!
//! The data flow, one folder per step:
//!
//! ```text
//! commands  the user's request; settings from file, environment and flags; prompts
//! measure   runs one level after another, each a Criterion benchmark; its race chooses further visits and the pick
//!   load      closed loop (or open: `verify`) -> client -> one outcome per request
//!   record    outcomes -> sidecars, manifest, results file; reads Criterion's estimates back
//!   figures   outcomes -> LevelSummary
//! decide    summaries + Policy (+ the race's pick) -> Recommendation: gates, status, interval; compares baselines
//! report    the Recommendation in English: terminal, page, exports
//! patch     writes the number into config.yaml (`recommend --update-config`, `run --update-config`)
//! ```
//!
//! `monitor` shows a run's counts while it lasts; `stdio` and `files` are how anything is printed and written.
//! `simulator` is a server to measure if no real one is available; it shares no type with the client. With
//! `default-features = false, features = ["tls"]`, only [`LlmClient`] and its configuration are built.

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

/// `cargo bench` for any package with a `config.yaml`: runs the whole suite. Its
/// `benches/concurrency.rs` is the code below, and its `[[bench]]` needs `harness = false`.
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
