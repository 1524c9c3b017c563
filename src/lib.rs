//! Finds the best number of parallel requests for an LLM endpoint.

pub mod client;
#[cfg(feature = "suite")]
pub mod closed_loop;
pub mod config;
pub mod outcome;
#[cfg(feature = "suite")]
pub mod recommend;
#[cfg(feature = "suite")]
pub mod simulator;
#[cfg(feature = "suite")]
pub mod snippets;
pub mod sse;
#[cfg(feature = "suite")]
pub mod stats;
#[cfg(feature = "suite")]
pub mod usl;

pub use client::LlmClient;
