//! Where requests go: a URL whose secrets are kept out of messages.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::kind::RequestKind;

/// The endpoint value that stands for the embedded simulator.
pub const SIMULATOR: &str = "simulator";

/// The destination of requests.
#[derive(Clone, PartialEq)]
pub enum Endpoint {
    /// The embedded simulator.
    Simulator,
    /// Base URL of an OpenAI-compatible server, such as `http://localhost:8000/v1`. May contain userinfo and a query.
    Url(Url),
}

impl Endpoint {
    /// The endpoint for messages and files, without userinfo and query, which may contain secrets.
    pub fn redacted(&self) -> String {
        match self {
            Endpoint::Simulator => SIMULATOR.to_owned(),
            Endpoint::Url(url) => redacted(url),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

/// The URL without userinfo, query and fragment.
pub fn redacted(url: &Url) -> String {
    let mut url = url.clone();
    // These fail only for URLs without a host, which `Endpoint` never contains.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == SIMULATOR {
            return Ok(Endpoint::Simulator);
        }
        // The text is not quoted: it may contain a password.
        let hint = "expected `simulator` or a base URL such as http://localhost:8000/v1";
        let url = Url::parse(text).map_err(|error| format!("not a URL ({error}); {hint}"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            // Nor is the scheme: in `user:password@host` it is the user name.
            return Err(format!("neither http nor https; {hint}"));
        }
        Ok(Endpoint::Url(base_url(url)))
    }
}

/// The base URL that all paths are appended to. Adds `/v1` if the URL has no path; removes a
/// trailing slash and a full route such as `/chat/completions`.
fn base_url(mut url: Url) -> Url {
    let path = url.path().trim_end_matches('/');
    let routes = RequestKind::ALL.map(|kind| kind.wire().route);
    let path = routes.iter().find_map(|route| path.strip_suffix(route)?.strip_suffix('/')).unwrap_or(path);
    let path = if path.is_empty() { "/v1".to_owned() } else { path.to_owned() };
    url.set_path(&path);
    url
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.redacted())
    }
}
