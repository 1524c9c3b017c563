//! The section `llm` of config.yaml and the environment: what a client needs.

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

/// What is wrong with the settings, where, and how to mend it.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// There is no such file.
    #[error(
        "config file not found: {0}\n\nMake one with at least\n\n    llm:\n      endpoint: http://localhost:8000/v1\n      model: my-model\n\n(`llm-concurrency init` writes one), name another with --config (LLM_CONFIG), or measure without one: --llm-endpoint URL --llm-model NAME."
    )]
    NotFound(PathBuf),
    /// A file, key, variable or flag is wrong.
    #[error("{what}: {message}")]
    Value {
        /// The key, variable or flag, or the file with the line and column where they are known.
        what: String,
        /// What is wrong, and what would be right.
        message: String,
    },
}

pub(crate) fn invalid(what: impl Into<String>, message: impl Into<String>) -> ConfigError {
    ConfigError::Value { what: what.into(), message: message.into() }
}

/// A key or variable that is nearly one of ours, and would be ignored.
pub(super) fn near_miss(place: impl Into<String>, kind: &str, name: &str, ours: &str) -> ConfigError {
    let remedy = "As it stands it would be ignored: correct it, or remove it.";
    invalid(place, format!("unknown {kind} `{name}`; did you mean `{ours}`?\n\n{remedy}"))
}

/// The section `llm`. Unknown keys are the caller's own.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Llm {
    /// A base URL, or the word `simulator`. Required, here or in the environment or as a flag.
    pub endpoint: Option<Endpoint>,
    /// The model's name, as the server knows it.
    pub model: String,
    /// Requests in parallel: what `recommend --update-config` writes. `null` is as good as left out.
    #[serde(deserialize_with = "count_or_default")]
    pub max_concurrent_requests: usize,
    /// Seconds until a request counts as timed out.
    pub request_timeout: f64,
    /// Seconds for a connection to be made (TLS included): 10, or `request_timeout` if that is less.
    pub connect_timeout: Option<f64>,
    /// Seconds until the head of the answer: no limit but `request_timeout`. Without streaming that is all of the work.
    pub first_byte_timeout: Option<f64>,
    /// Seconds without a byte in mid-answer, such as between two tokens: no limit but `request_timeout`.
    pub idle_timeout: Option<f64>,
    /// A PEM file of certificates to trust beside the system's (or `SSL_CERT_FILE`'s), relative to config.yaml's folder.
    pub ca_file: Option<PathBuf>,
    /// Sent with every request, and redacted wherever it might show.
    pub headers: Headers,
    /// The header that carries the API key as it is, such as `api-key`; otherwise the key is sent as
    /// `Authorization: Bearer` (`x-api-key` for requests of kind `messages`).
    pub api_key_header: Option<String>,
    /// Retries of [`LlmClient`](crate::LlmClient) after a failure that may pass; never while measuring.
    pub retry_attempts: u32,
}

const DEFAULT_LIMIT: usize = 10;

/// What the patcher can fill must be readable: nothing, or the number as a text.
fn count_or_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let written = match Option::<serde_yaml::Value>::deserialize(deserializer)? {
        None => return Ok(DEFAULT_LIMIT),
        Some(serde_yaml::Value::String(text)) => text.trim().parse().ok(),
        Some(other) => other.as_u64().and_then(|n| n.try_into().ok()),
    };
    written.ok_or_else(|| serde::de::Error::custom("expected a whole number such as 10"))
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
    /// What [`LlmClient`](crate::LlmClient) needs, and the API key: the section `llm` of the config file named by `path`,
    /// else by `LLM_CONFIG`, else `config.yaml`, and the environment. Other sections are not looked at.
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

    /// Checks it, and puts in what it leaves to the place of the file and to the environment.
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
            invalid(
                path.display().to_string(),
                "llm.endpoint is missing, so nobody knows what to measure\n\nSet it in the file, by LLM_ENDPOINT or by \
                 --llm-endpoint: a base URL such as http://localhost:8000/v1, or `simulator` for a trial.",
            )
        })
    }

    /// Whether the values make sense.
    pub fn check(&self) -> Result<(), ConfigError> {
        let timeouts = [
            ("llm.request_timeout", Some(self.request_timeout)),
            ("llm.connect_timeout", self.connect_timeout),
            ("llm.first_byte_timeout", self.first_byte_timeout),
            ("llm.idle_timeout", self.idle_timeout),
        ];
        for (key, value) in timeouts {
            // A year and no more: `Duration` has an end too.
            if value.is_some_and(|v| !(v > 0.0 && v <= 31_536_000.0)) {
                return Err(invalid(key, "must be a positive number of seconds, such as 30.0"));
            }
        }
        if let Some(hidden) = self.model.chars().find(|&c| !redact::is_seen(c)) {
            return Err(invalid(
                "llm.model",
                format!("holds a character that cannot be seen ({hidden:?}); write it anew"),
            ));
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

/// The environment as this run sees it: the process's variables over those of a `.env` file.
#[derive(Clone, Default)]
pub struct Env(pub(crate) HashMap<String, String>);

impl Env {
    /// The process's environment over the `.env` beside the config file, if there is one, or the config file that is one.
    pub fn load(config: &Path) -> Result<Self, ConfigError> {
        let path = if Format::of(config) == Format::Env { config.to_owned() } else { config.with_file_name(".env") };
        let mut vars = HashMap::new();
        if path.exists() {
            let broken = |error| invalid(format!("cannot read {}", path.display()), dotenv_reason(error));
            for item in dotenvy::from_path_iter(&path).map_err(broken)? {
                let (key, value) = item.map_err(broken)?;
                vars.insert(key, value);
            }
        }
        vars.extend(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))));
        Ok(Env(vars))
    }

    /// Refuses names that are nearly one of `ours`, and would be ignored.
    pub(crate) fn refuse_near_misses(&self, ours: &[&str]) -> Result<(), ConfigError> {
        for name in self.0.keys().filter(|name| !ours.contains(&name.as_str())) {
            // One edit, not two: the environment is everybody's, and these are a neighbour's.
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

    /// A variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.trim().is_empty())
    }
}

/// The line itself is left out: it may hold the key.
fn dotenv_reason(error: dotenvy::Error) -> String {
    match error {
        dotenvy::Error::LineParse(_, column) => format!("a line is not NAME=value (at character {column} of it)"),
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

/// `LLM_API_KEY`, else `OPENAI_API_KEY`; never from the config file.
pub(crate) fn api_key(env: &Env) -> Option<SecretString> {
    env.get("LLM_API_KEY").or_else(|| env.get("OPENAI_API_KEY")).map(SecretString::from)
}
