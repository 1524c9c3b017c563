//! The headers of every request: the content type, `llm.headers`, the API key, and those of the request kind.

use std::collections::BTreeMap;
use std::fmt;

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::config::{ConfigError, Env, Llm, invalid};
use super::kind::Wire;
use super::llm_client::LlmError;

/// `llm.headers`: names and secret values. In a config file, values may refer to environment variables as `${NAME}`.
#[derive(Clone, Default, PartialEq)]
pub struct Headers {
    values: BTreeMap<String, String>,
    /// Values of the referenced variables, each a secret in its own right.
    from_env: Vec<String>,
    /// The key of a header that cannot be sent (or `llm.headers` as a whole), and the reason.
    wrong: Option<(String, String)>,
}

/// Headers that frame the message or negotiate its encoding, which is the HTTP client's job.
const OF_THE_CONNECTION: [&str; 9] = [
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "te",
    "transfer-encoding",
    "upgrade",
];

impl Headers {
    /// The names of the headers, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// Substitutes environment variables. A missing one is reported only when a request is to be sent.
    pub(crate) fn resolve(&mut self, env: &Env) {
        for (name, value) in &mut self.values {
            match filled(value, env, &mut self.from_env) {
                Ok(filled) => *value = filled,
                Err(reason) => {
                    self.wrong.get_or_insert((format!("llm.headers.{name}"), reason));
                }
            }
        }
    }

    fn parsed(&self) -> Result<HeaderMap, ConfigError> {
        let mut headers = HeaderMap::new();
        for (written, value) in &self.values {
            let name = header_name("llm.headers", written)?;
            let place = format!("llm.headers.{written}");
            let mut value = HeaderValue::from_str(value.trim())
                .map_err(|_| invalid(&place, "its value holds characters that an HTTP header cannot carry"))?;
            value.set_sensitive(true);
            if headers.insert(name, value).is_some() {
                return Err(invalid(place, "appears twice, in upper and lower case; remove one"));
            }
        }
        // Checked last, after all names: it quotes the name, and an invalid name must never be quoted.
        match &self.wrong {
            Some((key, reason)) => Err(invalid(key, reason)),
            None => Ok(headers),
        }
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &str> {
        self.values.values().map(|value| value.trim())
    }

    /// Parts of the values that no message may show on their own.
    pub(super) fn parts(&self) -> Vec<String> {
        // From `Bearer KEY` or `session=KEY; x=y`, this also hides the key alone.
        let parts = self.values().flat_map(|value| value.split([' ', ';', ',', '=']));
        let parts = parts.filter(|part| part.len() > "Bearer".len());
        parts.chain(self.from_env.iter().map(|value| value.trim())).map(str::to_owned).collect()
    }
}

/// `value` with its variables substituted; their values are also added to `secrets`.
fn filled(value: &str, env: &Env, secrets: &mut Vec<String>) -> Result<String, String> {
    let mut parts = value.split("${");
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let named = part.split_once('}').filter(|(name, _)| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        });
        let (name, rest) = named.ok_or("`${` begins the name of an environment variable: write ${NAME}")?;
        let of_env = env.get(name).ok_or_else(|| {
            format!("the environment variable {name} is not set\n\nSet it in the environment or in the .env beside config.yaml.")
        })?;
        secrets.push(of_env.to_owned());
        filled.extend([of_env, rest]);
    }
    Ok(filled)
}

/// Parses a header name. An invalid name is not quoted: it may be a key pasted into the wrong place.
pub(super) fn header_name(place: &str, name: &str) -> Result<HeaderName, ConfigError> {
    let wrong = |_| invalid(place, "expected the name of an HTTP header, such as api-key");
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(wrong)?;
    if OF_THE_CONNECTION.contains(&name.as_str()) {
        return Err(invalid(place, format!("the HTTP client sets {name} itself; remove it")));
    }
    Ok(name)
}

/// The header that carries the key. In `Authorization` it is sent as `Bearer KEY`.
pub(crate) fn key_header<'a>(llm: &'a Llm, wire: &'a Wire) -> &'a str {
    llm.api_key_header.as_deref().or(wire.key_header).unwrap_or("Authorization")
}

/// All headers of a request. Those in `llm.headers` override others of the same name.
pub(super) fn of(llm: &Llm, wire: &Wire, base: &Url, key: Option<&SecretString>) -> Result<HeaderMap, LlmError> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in wire.headers {
        headers.insert(*name, HeaderValue::from_static(value));
    }
    // Userinfo in the URL belongs to this endpoint; a key in the environment may belong to another.
    if let Some(key) = key.filter(|_| base.username().is_empty() || llm.api_key_header.is_some()) {
        let name = header_name("llm.api_key_header", key_header(llm, wire))?;
        let scheme = if name == AUTHORIZATION { "Bearer " } else { "" };
        let value = format!("{scheme}{}", key.expose_secret().trim());
        let mut value = HeaderValue::from_str(&value).map_err(|_| LlmError::Key)?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    headers.extend(llm.headers.parsed()?);
    Ok(headers)
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Headers {
    /// Takes the values literally: no variables are substituted.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(headers: I) -> Self {
        let values = headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Headers { values, ..Headers::default() }
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl Serialize for Headers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.names().map(|name| (name, "[redacted]")))
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde_yaml::Value;
        let text = |value| match value {
            Value::String(text) => Some(text),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            _ => None,
        };
        let headers: Option<Headers> = match Value::deserialize(deserializer)? {
            Value::Null => Some(Headers::default()),
            Value::Mapping(map) => map.into_iter().map(|(name, value)| Some((text(name)?, text(value)?))).collect(),
            _ => None,
        };
        // Possibly another program's key, so an error only when a request is to be sent. The value is not quoted.
        let expected = "expected names with a string each, such as {X-Team: \"${TEAM}\"}";
        let wrong = Some(("llm.headers".to_owned(), expected.to_owned()));
        Ok(headers.unwrap_or(Headers { wrong, ..Headers::default() }))
    }
}
