//! A simulated LLM server on loopback: the OpenAI-compatible API over a continuous-batching engine.
//!
//! Its throughput curve is known ([`explain()`]), so a measurement can be checked against the truth. It shares
//! no code with the client, so that a mistake in the protocol cannot cancel out.
//!
//! `engine` implements continuous batching without a clock or a network. `driver` steps it in real time behind
//! `http`, and `explain` in virtual time. `protocol` has a file for each kind of request.

mod answering;
mod config;
mod driver;
#[doc(hidden)]
pub mod engine;
mod explain;
mod faults;
mod http;
mod lengths;
mod limits;
mod log;
mod protocol;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

pub use config::SimulatorConfig;
#[doc(hidden)]
pub use explain::explain_each;
pub use explain::{ExplainedLevel, Explanation, explain};
pub use faults::{Fault, FaultRate, Faults};
pub use lengths::OutputTokens;
#[doc(hidden)]
pub use lengths::prompt_tokens;
#[doc(hidden)]
pub use limits::PrefixCache;
pub use log::{RequestEnd, RequestRecord};

use driver::Driver;
use http::{App, HttpServer};
use log::RequestLog;

/// Errors in starting or explaining a simulated server.
#[derive(Debug, thiserror::Error)]
pub enum SimulatorError {
    /// A setting is out of range.
    #[error("simulator.{key} is {value}; set it to {range}")]
    Config {
        /// The key below `simulator`.
        key: String,
        /// The rejected value.
        value: String,
        /// The allowed range.
        range: String,
    },
    /// The HTTP server could not be started, nearly always because the port is taken.
    #[error("the simulated server cannot listen on 127.0.0.1:{port}; choose another port, or 0 for any free one")]
    Listen {
        /// The requested port.
        port: u16,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The engine's thread could not be started.
    #[error("the simulated server cannot start the thread of its engine")]
    Thread(#[source] io::Error),
    /// A curve cannot be computed from this input.
    #[error("the simulated server's curve needs {0}")]
    Explain(&'static str),
}

/// A running simulated server. Dropping it stops the server.
pub struct Simulator {
    address: SocketAddr,
    log: Arc<RequestLog>,
    /// `None` after [`shutdown`](Self::shutdown).
    server: Option<HttpServer>,
}

impl Simulator {
    /// Starts a server on 127.0.0.1:`port`, or on any free port if it is 0. It is ready when this returns.
    ///
    /// # Errors
    ///
    /// [`SimulatorError`] if a setting is out of range, the port is taken, or a thread cannot be started.
    pub fn start(config: SimulatorConfig, port: u16) -> Result<Self, SimulatorError> {
        config.validate()?;
        let engine = Driver::start(&config).map_err(SimulatorError::Thread)?;
        let log = Arc::new(RequestLog::new());
        let app = App::new(config, engine, Arc::clone(&log));
        let server = HttpServer::start(app, port).map_err(|source| SimulatorError::Listen { port, source })?;
        Ok(Self { address: server.address, log, server: Some(server) })
    }

    /// The base URL of the API, such as `http://127.0.0.1:8000/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Records of the requests to the generating routes that have ended, in order of arrival.
    ///
    /// A request is in the log before its client receives the end of the answer.
    pub fn log(&self) -> Vec<RequestRecord> {
        self.log.records()
    }

    /// Peak number of requests to the generating routes that were in flight in the server at once.
    pub fn peak_in_flight(&self) -> usize {
        self.log.peak_in_flight()
    }

    /// Stops listening, closes all connections and ends the threads. Unfinished requests are logged as
    /// cancelled. The log stays readable. A second call does nothing.
    pub fn shutdown(&mut self) {
        self.server = None;
    }
}

impl fmt::Debug for Simulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulator").field("base_url", &self.base_url()).finish_non_exhaustive()
    }
}
