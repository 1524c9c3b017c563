//! Where requests go: a URL of which messages show no more than they may.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::kind::RequestKind;

/// The word for the embedded simulator as an endpoint.
pub const SIMULATOR: &str = "simulator";

/// Where requests go.
#[derive(Clone, PartialEq)]
pub enum Endpoint {
    /// The embedded simulator.
    Simulator,
    /// An OpenAI-compatible server's base URL, such as `http://localhost:8000/v1`. May hold userinfo and a query.
    Url(Url),
}

impl Endpoint {
    /// For messages and files: without userinfo and query, which may hold secrets.
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

/// A URL without userinfo, query and fragment.
pub fn redacted(url: &Url) -> String {
    let mut url = url.clone();
    // Only URLs without a host refuse these, and `Endpoint` takes none.
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
        // The text itself is not repeated: it may hold a password.
        let hint = "expected `simulator` or a base URL such as http://localhost:8000/v1";
        let url = Url::parse(text).map_err(|error| format!("not a URL ({error}); {hint}"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            // Nor is the scheme: without one, it is the user's name.
            return Err(format!("neither http nor https; {hint}"));
        }
        Ok(Endpoint::Url(base_url(url)))
    }
}

/// The base URL all paths are appended to: `/v1` is added where the URL has no path, a trailing slash and a whole
/// `/chat/completions` are cut off.
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
