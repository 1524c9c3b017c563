//! Client settings: the section `llm` of config.yaml, and the environment.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;
use tokio::sync::Semaphore;

use super::config_file::{parse, read_text};
use super::endpoint::Endpoint;
use super::headers::{self, Headers};
use super::redact;
use crate::files::Format;

/// An error in the settings: what is wrong, where, and how to fix it.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The config file does not exist.
    #[error(
        "config file not found: {0}\n\nCreate one with at least\n\n    llm:\n      endpoint: http://localhost:8000/v1\n      model: my-model\n\n(`llm-concurrency init` writes one), name another with --config (LLM_CONFIG), or measure without one: --llm-endpoint URL --llm-model NAME."
    )]
    NotFound(PathBuf),
    /// A file, key, variable or flag is wrong.
    #[error("{what}: {message}")]
    Value {
        /// The key, variable or flag; or the file, with line and column where they are known.
        what: String,
        /// What is wrong and what would be valid.
        message: String,
    },
}

pub(crate) fn invalid(what: impl Into<String>, message: impl Into<String>) -> ConfigError {
    ConfigError::Value { what: what.into(), message: message.into() }
}

/// The error for a name that is almost one of ours: a typo that would otherwise be ignored silently.
pub(super) fn near_miss(place: impl Into<String>, kind: &str, name: &str, ours: &str) -> ConfigError {
    let remedy = "As it stands it would be ignored: correct it, or remove it.";
    invalid(place, format!("unknown {kind} `{name}`; did you mean `{ours}`?\n\n{remedy}"))
}

/// The section `llm`. Unknown keys are allowed: the file may belong to another program as well.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Llm {
    /// A base URL, or the word `simulator`. Required in the file, in the environment or as a flag.
    pub endpoint: Option<Endpoint>,
    /// The model's name, as the server knows it.
    pub model: String,
    /// Maximum number of requests in flight; `recommend --update-config` writes it. `null` means the default.
    #[serde(deserialize_with = "count_or_default")]
    pub max_concurrent_requests: usize,
    /// Seconds until a request is considered timed out.
    pub request_timeout: f64,
    /// Seconds allowed for connecting, TLS handshake included. Default: 10, or `request_timeout` if that is shorter.
    pub connect_timeout: Option<f64>,
    /// Seconds until the response headers arrive (without streaming, the whole answer); by default no separate limit.
    pub first_byte_timeout: Option<f64>,
    /// Seconds between two chunks of an answer, such as between tokens; by default no separate limit.
    pub idle_timeout: Option<f64>,
    /// PEM file of CAs trusted in addition to the system's (or `SSL_CERT_FILE`'s), relative to config.yaml's folder.
    pub ca_file: Option<PathBuf>,
    /// Extra headers for every request. Their values are redacted wherever they might appear.
    pub headers: Headers,
    /// Header that carries the bare API key, such as `api-key`. Without it the key is sent as
    /// `Authorization: Bearer` (as `x-api-key` for requests of kind `messages`).
    pub api_key_header: Option<String>,
    /// Retries by [`LlmClient`](crate::LlmClient) after a failure that may be temporary. In a measurement a failure
    /// counts as one.
    pub retry_attempts: u32,
}

const DEFAULT_LIMIT: usize = 10;

/// Accepts what the patcher can replace: `null`, or the number as a string.
fn count_or_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let written = match Option::<serde_yaml::Value>::deserialize(deserializer)? {
        None => return Ok(DEFAULT_LIMIT),
        Some(serde_yaml::Value::String(text)) => text.trim().parse().ok(),
        Some(other) => other.as_u64().and_then(|n| n.try_into().ok()),
    };
    written.ok_or_else(|| serde::de::Error::custom("max_concurrent_requests: expected a whole number such as 10"))
}

impl Default for Llm {
    fn default() -> Self {
        Llm {
            endpoint: None,
            model: "default".to_owned(),
            max_concurrent_requests: DEFAULT_LIMIT,
            request_timeout: 30.0,
            connect_timeout: None,
            first_byte_timeout: None,
            idle_timeout: None,
            ca_file: None,
            headers: Headers::default(),
            api_key_header: None,
            retry_attempts: 3,
        }
    }
}

impl Llm {
    /// The settings for [`LlmClient`](crate::LlmClient), and the API key. Reads the environment and the section
    /// `llm` of the config file: `path`, else `LLM_CONFIG`, else `config.yaml`. Other sections are ignored.
    pub fn load(path: Option<&Path>) -> Result<(Self, Option<SecretString>), ConfigError> {
        #[derive(Default, Deserialize, Serialize)]
        struct Sections {
            llm: Llm,
        }
        let path = config_path(path);
        let Sections { mut llm } = parse(&read_text(&path)?, &path)?;
        let env = Env::load(&path)?;
        env.refuse_near_misses(&CLIENT_VARIABLES)?;
        if let Some(url) = env.get("LLM_ENDPOINT") {
            llm.endpoint = Some(url.parse().map_err(|message: String| invalid("LLM_ENDPOINT", message))?);
        }
        llm.model = env.get("LLM_MODEL").map_or(llm.model, |model| model.trim().to_owned());
        llm.endpoint(&path)?;
        llm.complete(&path, &env)?;
        Ok((llm, api_key(&env)))
    }

    /// Checks the values, makes `ca_file` relative to the config file's folder, and fills in variables in headers.
    pub(crate) fn complete(&mut self, path: &Path, env: &Env) -> Result<(), ConfigError> {
        self.check()?;
        if let Some(file) = &mut self.ca_file {
            *file = path.parent().unwrap_or(Path::new("")).join(&*file);
        }
        self.headers.resolve(env);
        Ok(())
    }

    pub(crate) fn endpoint(&self, path: &Path) -> Result<&Endpoint, ConfigError> {
        self.endpoint.as_ref().ok_or_else(|| {
            let shown = path.display();
            let (place, in_file) = match path.exists() {
                true => (shown.to_string(), "in the file, "),
                false => (format!("there is no {shown}"), ""),
            };
            let message = format!(
                "llm.endpoint is missing, so it is not known which server to use\n\nSet it {in_file}with LLM_ENDPOINT or with \
                 --llm-endpoint: a base URL such as http://localhost:8000/v1, or `simulator` for a trial."
            );
            invalid(place, message)
        })
    }

    /// Checks that the values make sense.
    pub fn check(&self) -> Result<(), ConfigError> {
        let timeouts = [
            ("llm.request_timeout", Some(self.request_timeout)),
            ("llm.connect_timeout", self.connect_timeout),
            ("llm.first_byte_timeout", self.first_byte_timeout),
            ("llm.idle_timeout", self.idle_timeout),
        ];
        for (key, value) in timeouts {
            // At most a year, since `Duration` overflows at some point.
            if value.is_some_and(|v| !(v > 0.0 && v <= 31_536_000.0)) {
                return Err(invalid(key, "must be a positive number of seconds, such as 30.0, and at most a year"));
            }
        }
        if let Some(hidden) = self.model.chars().find(|&c| !redact::is_seen(c)) {
            return Err(invalid("llm.model", format!("holds an invisible character ({hidden:?}); type it again")));
        }
        if let Some(name) = &self.api_key_header {
            headers::header_name("llm.api_key_header", name)?;
        }
        if !(1..=Semaphore::MAX_PERMITS).contains(&self.max_concurrent_requests) {
            return Err(invalid(
                "llm.max_concurrent_requests",
                format!("must be from 1 to {}", Semaphore::MAX_PERMITS),
            ));
        }
        Ok(())
    }
}

/// The environment as this run sees it: the process's variables take precedence over those of a `.env` file.
#[derive(Clone, Default)]
pub struct Env(pub(crate) HashMap<String, String>);

impl Env {
    /// Reads the process's environment and the `.env` file beside `config` (or `config` itself if it is one).
    pub fn load(config: &Path) -> Result<Self, ConfigError> {
        let path = if Format::of(config) == Format::Env { config.to_owned() } else { config.with_file_name(".env") };
        let mut vars = HashMap::new();
        if path.exists() {
            let broken = |error| invalid(format!("cannot read {}", path.display()), dotenv_reason(error));
            let text = std::fs::read_to_string(&path).map_err(dotenvy::Error::Io).map_err(broken)?;
            for item in dotenvy::from_read_iter(text.trim_start_matches('\u{feff}').as_bytes()) {
                let (key, value) = item.map_err(broken)?;
                // As programs see it that load the file: the first definition wins.
                vars.entry(key).or_insert(value);
            }
        }
        vars.extend(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))));
        Ok(Env(vars))
    }

    /// Rejects variables whose name is almost one of `ours`: they would be ignored silently.
    pub(crate) fn refuse_near_misses(&self, ours: &[&str]) -> Result<(), ConfigError> {
        for name in self.0.keys().filter(|name| !ours.contains(&name.as_str())) {
            // One edit, not two: the environment is shared with other programs, and these prefixes are theirs.
            let foreign = ["VLLM_", "GLM_"].iter().any(|prefix| name.starts_with(prefix));
            if let Some(near) = ours.iter().find(|ours| !foreign && strsim::osa_distance(name, ours) == 1) {
                return Err(near_miss("environment", "variable", name, near));
            }
        }
        Ok(())
    }

    /// An environment of exactly these variables.
    pub fn of<const N: usize>(vars: [(&str, &str); N]) -> Self {
        Env(vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    /// The variable's value, unless it is unset or blank.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.trim().is_empty())
    }
}

/// Describes the error without quoting the line, which may contain the key.
fn dotenv_reason(error: dotenvy::Error) -> String {
    match error {
        dotenvy::Error::LineParse(_, column) => {
            format!("a line is not NAME=value (at character {column} of that line)")
        }
        dotenvy::Error::Io(error) => error.to_string(),
        _ => "it is not a list of NAME=value lines".to_owned(),
    }
}

/// The variables that [`LlmClient`](crate::LlmClient) reads.
pub(crate) const CLIENT_VARIABLES: [&str; 5] =
    ["LLM_CONFIG", "LLM_ENDPOINT", "LLM_MODEL", "LLM_API_KEY", "OPENAI_API_KEY"];

pub(crate) fn config_path(path: Option<&Path>) -> PathBuf {
    let named = || std::env::var_os("LLM_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from);
    path.map(Path::to_owned).or_else(named).unwrap_or_else(|| PathBuf::from("config.yaml"))
}

/// `LLM_API_KEY`, else `OPENAI_API_KEY`. The key is never read from the config file.
pub(crate) fn api_key(env: &Env) -> Option<SecretString> {
    env.get("LLM_API_KEY").or_else(|| env.get("OPENAI_API_KEY")).map(SecretString::from)
}
