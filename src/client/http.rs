//! Sets up the HTTP client: certificates, proxies, and no redirects.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use reqwest::{Client, Url};

#[cfg(feature = "tls")]
use super::config::{ConfigError, invalid};
use super::endpoint::redacted;
use super::failure::chain;
use super::llm_client::LlmError;

/// A client for requests to `base` that keeps up to `most_idle` idle connections open for reuse.
pub(super) fn client(
    base: &Url,
    connect_timeout: Duration,
    ca_file: Option<&Path>,
    most_idle: usize,
) -> Result<Client, LlmError> {
    let builder = Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        // Without the zero, every request would be copied for a retry that never happens.
        .retry(reqwest::retry::never().max_retries_per_request(0))
        .connect_timeout(connect_timeout)
        .pool_max_idle_per_host(most_idle)
        .user_agent(concat!("llm-concurrency/", env!("CARGO_PKG_VERSION")));
    // For other hosts, the HTTP client finds the same proxy in the environment as `proxy` does.
    let builder = if is_loopback(base) { builder.no_proxy() } else { builder };
    #[cfg(feature = "tls")]
    let builder = {
        // This fails if the program has already installed its own provider, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Plain HTTP needs no certificates, and loading the system's takes time (or fails where there are none).
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
fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, ConfigError> {
    let broken = |message: String| invalid(format!("llm.ca_file {}", path.display()), message);
    let text = std::fs::read(path).map_err(|error| broken(error.to_string()))?;
    let certificates = reqwest::Certificate::from_pem_bundle(&text).map_err(|error| broken(chain(&error)))?;
    if certificates.is_empty() {
        return Err(broken("it holds no certificate (expected PEM: -----BEGIN CERTIFICATE-----)".to_owned()));
    }
    Ok(certificates)
}

/// The proxy used for requests to `base`, redacted.
pub fn proxy_of(base: &Url) -> Option<String> {
    let uri = proxy(base)?.uri().to_string();
    Some(Url::parse(&uri).map_or_else(|_| "a proxy".to_owned(), |url| redacted(&url)))
}

pub(super) fn proxy(base: &Url) -> Option<Intercept> {
    let base = Some(base).filter(|base| !is_loopback(base))?;
    Matcher::from_system().intercept(&base.as_str().parse().ok()?)
}

/// Whether the URL is this machine, a name that a proxy would resolve to itself.
fn is_loopback(base: &Url) -> bool {
    let host = base.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || host.ends_with(".localhost") || address.is_ok_and(|address| address.is_loopback())
}
