//! Settings: config.yaml, overridden by the environment (a `.env` beside the file included), overridden by flags.

use std::collections::HashMap;
use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use reqwest::Url;
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_yaml::Value;
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::files;
use crate::redact;

/// What is wrong with the settings, where, and how to mend it.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// There is no such file.
    #[error(
        "config file not found: {0}\n\nMake one with at least\n\n    llm:\n      endpoint: http://localhost:8000/v1\n      model: my-model\n\nor name another with --config (LLM_CONFIG)."
    )]
    NotFound(PathBuf),
    /// It cannot be read.
    #[error("cannot read {path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// Nothing says what to measure.
    #[error(
        "{0}: llm.endpoint is missing, so nobody knows what to measure\n\nSet it in the file, by LLM_ENDPOINT or by --llm-endpoint: a base URL such as http://localhost:8000/v1, or `simulator` for a trial."
    )]
    NoEndpoint(PathBuf),
    /// It is empty, or nothing but comments.
    #[error("{0} is empty: it needs at least a section `llm` with `endpoint` and `model`")]
    Empty(PathBuf),
    /// It is not YAML, or a key is unknown or of the wrong type.
    #[error("{place}: {message}")]
    Invalid {
        /// The file, with line and column where they are known.
        place: String,
        /// What.
        message: String,
    },
    /// A key or variable that is nearly one of ours, and would be ignored.
    #[error(
        "{place}: unknown {kind} `{name}`; did you mean `{ours}`?\n\nAs it stands it would be ignored: correct it, or remove it."
    )]
    Unknown {
        /// The file, or the environment.
        place: String,
        /// A key or a variable.
        kind: &'static str,
        /// As it is written.
        name: String,
        /// The right one.
        ours: String,
    },
    /// A value makes no sense.
    #[error("{what}: {message}")]
    Value {
        /// The key, variable or flag.
        what: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// The `.env` beside the config file is broken.
    #[error("cannot read {path}: {message}")]
    DotEnv {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
}

/// Line and column go to the front, where editors look for them.
fn invalid(error: &serde_yaml::Error, path: &Path) -> ConfigError {
    let (path, message) = (path.display(), error.to_string());
    match error.location() {
        Some(at) => ConfigError::Invalid {
            place: format!("{path}:{}:{}", at.line(), at.column()),
            message: message.replacen(&format!(" at line {} column {}", at.line(), at.column()), "", 1),
        },
        None => ConfigError::Invalid { place: path.to_string(), message },
    }
}

fn bad(what: impl Into<String>, message: impl Into<String>) -> ConfigError {
    ConfigError::Value { what: what.into(), message: message.into() }
}

/// All of config.yaml that belongs to this project; the file may hold the caller's own keys elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Config {
    /// The server and how the caller's program talks to it.
    pub llm: Llm,
    /// What is measured.
    #[serde(default)]
    pub benchmark: Benchmark,
    /// How the level is chosen.
    #[cfg(feature = "suite")]
    #[serde(default)]
    pub policy: crate::decide::Policy,
    /// The embedded simulator, used while `llm.endpoint` is the word `simulator`.
    #[cfg(feature = "suite")]
    #[serde(default)]
    pub simulator: crate::simulator::SimulatorConfig,
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
    /// Retries of [`LlmClient`](crate::LlmClient) after a failure that may pass; never while measuring.
    pub retry_attempts: u32,
}

const DEFAULT_LIMIT: usize = 10;

/// What the patcher can fill must be readable: nothing, or the number as a text.
fn count_or_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a whole number such as 10")]
    enum Written {
        Number(usize),
        Text(String),
    }
    match Option::deserialize(deserializer)? {
        None => Ok(DEFAULT_LIMIT),
        Some(Written::Number(n)) => Ok(n),
        Some(Written::Text(text)) => {
            text.trim().parse().map_err(|_| serde::de::Error::custom("expected a whole number such as 10"))
        }
    }
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
            retry_attempts: 3,
        }
    }
}

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
    let path = ["/chat/completions", "/completions", "/embeddings"]
        .iter()
        .find_map(|route| path.strip_suffix(route))
        .unwrap_or(path);
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

/// The section `benchmark`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Benchmark {
    /// The levels, or `auto`.
    pub levels: Levels,
    /// Listed levels below are left out; the lower bound of `auto`.
    pub min_concurrency: usize,
    /// Listed levels above are left out; the upper bound of `auto`.
    pub max_concurrency: usize,
    /// Requests per level; a level takes at least 10 x the level.
    pub total_requests: usize,
    /// Completions before the measured window; at least the level.
    pub warmup_requests: usize,
    /// What is sent.
    pub request: RequestSettings,
    /// Seed of everything random on our side.
    pub seed: u64,
    /// Limits on what a run may spend.
    pub budget: Budget,
}

impl Default for Benchmark {
    fn default() -> Self {
        Benchmark {
            levels: Levels::List(vec![1, 2, 5, 10, 15, 20, 25, 30, 40, 50]),
            min_concurrency: 1,
            max_concurrency: 50,
            total_requests: 100,
            warmup_requests: 5,
            request: RequestSettings::default(),
            seed: 42,
            budget: Budget::default(),
        }
    }
}

/// Which levels to measure.
#[derive(Clone, Debug, PartialEq)]
pub enum Levels {
    /// These.
    List(Vec<usize>),
    /// Found by an adaptive search between the minimum and the maximum.
    Auto,
}

impl FromStr for Levels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "auto" {
            return Ok(Levels::Auto);
        }
        let levels = text.split(',').map(|part| {
            let part = part.trim();
            part.parse::<usize>().map_err(|_| format!("`{part}` is not a level; expected 1,2,5 or auto"))
        });
        levels.collect::<Result<Vec<_>, _>>().and_then(checked_levels).map(Levels::List)
    }
}

fn checked_levels(levels: Vec<usize>) -> Result<Vec<usize>, String> {
    if levels.is_empty() {
        return Err("no levels; expected a list such as [1, 2, 5, 10]".to_owned());
    }
    if levels.contains(&0) {
        return Err("level 0 would send nothing; levels start at 1".to_owned());
    }
    if let Some(pair) = levels.windows(2).find(|pair| pair[0] >= pair[1]) {
        let mut sorted = levels.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let fault = if pair[0] == pair[1] { "is there twice" } else { "is out of order" };
        return Err(format!("level {} {fault}; write {sorted:?}", pair[1]));
    }
    Ok(levels)
}

impl<'de> Deserialize<'de> for Levels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a list of levels such as [1, 2, 5, 10], or auto")]
        enum Written {
            List(Vec<usize>),
            Word(String),
        }
        let levels = match Written::deserialize(deserializer)? {
            Written::List(levels) => checked_levels(levels).map(Levels::List),
            Written::Word(word) => word.parse(),
        };
        levels.map_err(serde::de::Error::custom)
    }
}

impl Serialize for Levels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Levels::List(levels) => levels.serialize(serializer),
            Levels::Auto => serializer.serialize_str("auto"),
        }
    }
}

/// What is sent: part of the fingerprint.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RequestSettings {
    /// The route.
    pub kind: RequestKind,
    /// Whether answers are streamed; without it there is no TTFT.
    pub stream: bool,
    /// Longest answer, tokens.
    pub max_tokens: u32,
    /// The prompts, a file beside config.yaml (or an absolute path). Without it `test-data/test_snippets.json`, and
    /// where that does not exist the same snippets from memory.
    pub prompts: Option<PathBuf>,
    /// Whether the server's prefix cache may help.
    pub cache: Cache,
    /// Merged into the body of every request. What is secret in it is not written into any file.
    #[serde(serialize_with = "without_secrets")]
    pub extra_body: serde_json::Map<String, serde_json::Value>,
}

impl Default for RequestSettings {
    fn default() -> Self {
        RequestSettings {
            kind: RequestKind::Chat,
            stream: true,
            max_tokens: 64,
            prompts: None,
            cache: Cache::Fresh,
            extra_body: serde_json::Map::new(),
        }
    }
}

fn without_secrets<S: Serializer>(
    map: &serde_json::Map<String, serde_json::Value>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    redact::without_secrets(map).serialize(serializer)
}

impl RequestSettings {
    /// Adding to a request is what `extra_body` is for. What it would replace has a key of its own, by which a run is
    /// planned and counted.
    fn check(&self) -> Result<(), ConfigError> {
        let ours = [
            (self.kind.prompt_key(), "it carries the prompts; set benchmark.request.prompts instead"),
            ("model", "set llm.model instead"),
            ("stream", "set benchmark.request.stream instead"),
        ];
        let body = &self.extra_body;
        let refused = |(key, mend): (&str, &str)| Err(bad(format!("benchmark.request.extra_body.{key}"), mend));
        if let Some(found) = ours.into_iter().find(|(key, _)| body.contains_key(*key)) {
            return refused(found);
        }
        let asks_for_usage = |options: &serde_json::Value| options.is_null() || options["include_usage"] == true;
        if !body.get("stream_options").is_none_or(asks_for_usage) {
            return refused((
                "stream_options",
                "set include_usage: true in it (tokens are counted by it), or make it null",
            ));
        }
        // Some models know the limit by this name only, and refuse the other unless it is null.
        let renamed = body.get("max_completion_tokens");
        if renamed.is_some_and(|limit| *limit != self.max_tokens) {
            return refused((
                "max_completion_tokens",
                "must equal benchmark.request.max_tokens, which the plan and the budget go by",
            ));
        }
        match body.get("max_tokens") {
            Some(limit) if !limit.is_null() || renamed.is_none() => {
                refused(("max_tokens", "set benchmark.request.max_tokens instead"))
            }
            _ => Ok(()),
        }
    }
}

impl RequestKind {
    /// What carries the prompt in a request's body.
    pub(crate) fn prompt_key(self) -> &'static str {
        match self {
            RequestKind::Chat => "messages",
            RequestKind::Completion => "prompt",
            RequestKind::Embedding => "input",
        }
    }
}

/// The route requests go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RequestKind {
    /// `/chat/completions`.
    #[default]
    Chat,
    /// `/completions`.
    Completion,
    /// `/embeddings`; never streamed.
    Embedding,
}

/// Whether prompts are made unique.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Every prompt begins with a short unique prefix, so that a prefix cache favours no level.
    #[default]
    Fresh,
    /// Prompts are sent as they are.
    Reuse,
}

/// Limits on what a run may spend. None is set by default.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Requests.
    pub max_requests: Option<u64>,
    /// Output tokens, as the server counts them (`max_tokens` each where it does not).
    pub max_output_tokens: Option<u64>,
    /// Minutes of wall time.
    pub max_minutes: Option<f64>,
    /// US dollars, by the two prices below.
    pub max_cost_usd: Option<f64>,
    /// Price of a million input tokens.
    pub usd_per_million_input: Option<f64>,
    /// Price of a million output tokens.
    pub usd_per_million_output: Option<f64>,
}

/// The environment as this run sees it: the process's variables over those of a `.env` file.
#[derive(Clone, Default)]
pub struct Env(HashMap<String, String>);

impl Env {
    /// The process's environment over the `.env` beside the config file, if there is one.
    pub fn load(config: &Path) -> Result<Self, ConfigError> {
        let path = config.with_file_name(".env");
        let mut vars = HashMap::new();
        if path.exists() {
            let broken =
                |error: dotenvy::Error| ConfigError::DotEnv { path: path.clone(), message: dotenv_reason(error) };
            for item in dotenvy::from_path_iter(&path).map_err(broken)? {
                let (key, value) = item.map_err(broken)?;
                vars.insert(key, value);
            }
        }
        vars.extend(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))));
        Ok(Env(vars))
    }

    /// Refuses names that are nearly one of `ours`, and would be ignored.
    fn refuse_near_misses(&self, ours: &[&str]) -> Result<(), ConfigError> {
        for name in self.0.keys().filter(|name| !ours.contains(&name.as_str())) {
            // One edit, not two: the environment is everybody's, and these are a neighbour's.
            let known = ["VLLM_", "GLM_"].iter().any(|prefix| name.starts_with(prefix));
            if let Some(near) = ours.iter().find(|ours| !known && strsim::osa_distance(name, ours) == 1) {
                return Err(ConfigError::Unknown {
                    place: "environment".to_owned(),
                    kind: "variable",
                    name: name.clone(),
                    ours: (*near).to_owned(),
                });
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

    fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, ConfigError>
    where
        T::Err: fmt::Display,
    {
        self.get(name).map(|text| text.trim().parse().map_err(|error: T::Err| bad(name, error.to_string()))).transpose()
    }

    /// As [`Env::parsed`]; the standard library's "invalid digit found in string" tells nobody what to write.
    fn number<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, ConfigError> {
        let parse = |text: &str| text.trim().parse().map_err(|_| bad(name, format!("`{text}` is not {expected}")));
        self.get(name).map(parse).transpose()
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
const CLIENT_VARIABLES: [&str; 5] = ["LLM_CONFIG", "LLM_ENDPOINT", "LLM_MODEL", "LLM_API_KEY", "OPENAI_API_KEY"];
/// How those begin that only a measurement reads; any other that begins so is a mistake.
const BENCH: &str = "LLM_BENCH_";
const BENCH_VARIABLES: [&str; 14] = [
    "LLM_BENCH_LEVELS",
    "LLM_BENCH_MIN_CONCURRENCY",
    "LLM_BENCH_MAX_CONCURRENCY",
    "LLM_BENCH_TOTAL_REQUESTS",
    "LLM_BENCH_WARMUP_REQUESTS",
    "LLM_BENCH_SEED",
    "LLM_BENCH_QUICK",
    "LLM_BENCH_QUIET",
    "LLM_BENCH_SERVER_METRICS",
    "LLM_BENCH_METRICS_ADDR",
    "LLM_BENCH_MAX_REQUESTS",
    "LLM_BENCH_MAX_OUTPUT_TOKENS",
    "LLM_BENCH_MAX_MINUTES",
    "LLM_BENCH_MAX_COST_USD",
];

/// What flags or variables may override. `None` leaves the value as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// `llm.endpoint`.
    pub endpoint: Option<Endpoint>,
    /// `llm.model`.
    pub model: Option<String>,
    /// `benchmark.levels`.
    pub levels: Option<Levels>,
    /// `benchmark.min_concurrency`.
    pub min_concurrency: Option<usize>,
    /// `benchmark.max_concurrency`.
    pub max_concurrency: Option<usize>,
    /// `benchmark.total_requests`.
    pub total_requests: Option<usize>,
    /// `benchmark.warmup_requests`.
    pub warmup_requests: Option<usize>,
    /// `benchmark.seed`.
    pub seed: Option<u64>,
    /// Fewer levels and requests; the result is provisional.
    pub quick: Option<bool>,
    /// Nothing is shown of a level while it runs.
    pub quiet: Option<bool>,
    /// Ask the server for its own `/metrics`.
    pub server_metrics: Option<bool>,
    /// Where to serve `/metrics`.
    pub metrics_addr: Option<SocketAddr>,
    /// `benchmark.budget.max_requests`.
    pub max_requests: Option<u64>,
    /// `benchmark.budget.max_output_tokens`.
    pub max_output_tokens: Option<u64>,
    /// `benchmark.budget.max_minutes`.
    pub max_minutes: Option<f64>,
    /// `benchmark.budget.max_cost_usd`.
    pub max_cost_usd: Option<f64>,
}

impl Overrides {
    /// The variables `LLM_ENDPOINT`, `LLM_MODEL` and `LLM_BENCH_…`.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        const WHOLE: &str = "a whole number such as 100";
        let ours = [CLIENT_VARIABLES.as_slice(), &BENCH_VARIABLES].concat();
        if let Some(name) = env.0.keys().find(|name| name.starts_with(BENCH) && !ours.contains(&name.as_str())) {
            let known = BENCH_VARIABLES.map(|name| &name[BENCH.len()..]).join(", ");
            return Err(bad(name, format!("no such variable; after {BENCH} comes one of {known}")));
        }
        env.refuse_near_misses(&ours)?;
        Ok(Overrides {
            endpoint: env.parsed("LLM_ENDPOINT")?,
            model: env.get("LLM_MODEL").map(|model| model.trim().to_owned()),
            levels: env.parsed("LLM_BENCH_LEVELS")?,
            min_concurrency: env.number("LLM_BENCH_MIN_CONCURRENCY", WHOLE)?,
            max_concurrency: env.number("LLM_BENCH_MAX_CONCURRENCY", WHOLE)?,
            total_requests: env.number("LLM_BENCH_TOTAL_REQUESTS", WHOLE)?,
            warmup_requests: env.number("LLM_BENCH_WARMUP_REQUESTS", WHOLE)?,
            seed: env.number("LLM_BENCH_SEED", WHOLE)?,
            quick: env.get("LLM_BENCH_QUICK").map(|value| switch("LLM_BENCH_QUICK", value)).transpose()?,
            quiet: env.get("LLM_BENCH_QUIET").map(|value| switch("LLM_BENCH_QUIET", value)).transpose()?,
            server_metrics: env
                .get("LLM_BENCH_SERVER_METRICS")
                .map(|value| switch("LLM_BENCH_SERVER_METRICS", value))
                .transpose()?,
            metrics_addr: env.number("LLM_BENCH_METRICS_ADDR", "an address such as 127.0.0.1:9464")?,
            max_requests: env.number("LLM_BENCH_MAX_REQUESTS", WHOLE)?,
            max_output_tokens: env.number("LLM_BENCH_MAX_OUTPUT_TOKENS", WHOLE)?,
            max_minutes: env.number("LLM_BENCH_MAX_MINUTES", "a number such as 2.5")?,
            max_cost_usd: env.number("LLM_BENCH_MAX_COST_USD", "a number such as 2.5")?,
        })
    }

    fn apply(self, settings: &mut Settings) {
        fn set<T>(place: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *place = value;
            }
        }
        let Settings { config: Config { llm, benchmark, .. }, quick, quiet, server_metrics, .. } = settings;
        // Levels named for this run are meant: neither a bound from a less specific place nor `quick` leaves them out.
        if let Some(Levels::List(levels)) = &self.levels {
            benchmark.min_concurrency = levels[0];
            benchmark.max_concurrency = levels[levels.len() - 1];
            settings.levels_named = true;
        }
        llm.endpoint = self.endpoint.or(llm.endpoint.take());
        set(&mut llm.model, self.model);
        set(&mut benchmark.levels, self.levels);
        set(&mut benchmark.min_concurrency, self.min_concurrency);
        set(&mut benchmark.max_concurrency, self.max_concurrency);
        set(&mut benchmark.total_requests, self.total_requests);
        set(&mut benchmark.warmup_requests, self.warmup_requests);
        set(&mut benchmark.seed, self.seed);
        set(quick, self.quick);
        set(quiet, self.quiet);
        set(server_metrics, self.server_metrics);
        let budget = &mut benchmark.budget;
        budget.max_requests = self.max_requests.or(budget.max_requests);
        budget.max_output_tokens = self.max_output_tokens.or(budget.max_output_tokens);
        budget.max_minutes = self.max_minutes.or(budget.max_minutes);
        budget.max_cost_usd = self.max_cost_usd.or(budget.max_cost_usd);
        settings.metrics_addr = self.metrics_addr.or(settings.metrics_addr);
    }
}

fn switch(name: &str, value: &str) -> Result<bool, ConfigError> {
    match value.trim() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        other => Err(bad(name, format!("`{other}` is neither 1 nor 0"))),
    }
}

/// Everything a run needs to know, resolved and checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The config file.
    pub path: PathBuf,
    /// The merged configuration.
    pub config: Config,
    /// Where requests go.
    pub endpoint: Endpoint,
    /// Whether the config file itself, without environment and flags, names the simulator as its endpoint.
    pub config_is_simulated: bool,
    /// Whether the levels were named for this run, by a flag or a variable.
    pub levels_named: bool,
    /// Fewer levels and requests.
    pub quick: bool,
    /// Nothing is shown of a level while it runs.
    pub quiet: bool,
    /// Whether the server is asked for its own `/metrics` while a level runs.
    pub server_metrics: bool,
    /// Where `/metrics` is served during a run, if anywhere.
    pub metrics_addr: Option<SocketAddr>,
    /// From the environment only.
    pub api_key: Option<SecretString>,
}

/// The model's name wherever the simulator was measured: a real one beside its figures would lend it their weight.
pub const SIMULATED_MODEL: &str = "simulated";

impl Settings {
    /// The config file named by `path`, else by `LLM_CONFIG`, else `config.yaml`; then the environment, then `flags`.
    pub fn load(path: Option<&Path>, flags: Overrides) -> Result<Self, ConfigError> {
        let path = config_path(path);
        let config = Config::read(&path)?;
        Settings::resolve(path.clone(), config, &Env::load(&path)?, flags)
    }

    /// Merges what has been read.
    pub fn resolve(path: PathBuf, config: Config, env: &Env, flags: Overrides) -> Result<Self, ConfigError> {
        let mut settings = Settings {
            endpoint: Endpoint::Simulator,
            config_is_simulated: config.llm.endpoint == Some(Endpoint::Simulator),
            levels_named: false,
            quick: false,
            quiet: false,
            server_metrics: false,
            metrics_addr: None,
            api_key: api_key(env),
            path,
            config,
        };
        Overrides::from_env(env)?.apply(&mut settings);
        flags.apply(&mut settings);
        let Settings { path, config, endpoint, .. } = &mut settings;
        *endpoint = config.llm.endpoint(path)?.clone();
        if *endpoint == Endpoint::Simulator {
            config.llm.model = SIMULATED_MODEL.to_owned();
        }
        config.check()?;
        config.llm.resolve_paths(path);
        Ok(settings)
    }

    /// A path of the settings, which is relative to the config file's folder.
    pub fn beside_config(&self, path: impl AsRef<Path>) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }
}

fn config_path(path: Option<&Path>) -> PathBuf {
    let named = || std::env::var_os("LLM_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from);
    path.map(Path::to_owned).or_else(named).unwrap_or_else(|| PathBuf::from("config.yaml"))
}

/// `LLM_API_KEY`, else `OPENAI_API_KEY`; never from the config file.
fn api_key(env: &Env) -> Option<SecretString> {
    env.get("LLM_API_KEY").or_else(|| env.get("OPENAI_API_KEY")).map(SecretString::from)
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
        llm.endpoint = env.parsed("LLM_ENDPOINT")?.or(llm.endpoint);
        llm.model = env.get("LLM_MODEL").map_or(llm.model, |model| model.trim().to_owned());
        llm.endpoint(&path)?;
        llm.check()?;
        llm.resolve_paths(&path);
        Ok((llm, api_key(&env)))
    }

    fn endpoint(&self, path: &Path) -> Result<&Endpoint, ConfigError> {
        self.endpoint.as_ref().ok_or_else(|| ConfigError::NoEndpoint(path.to_owned()))
    }

    fn resolve_paths(&mut self, config: &Path) {
        if let Some(file) = &mut self.ca_file {
            *file = config.parent().unwrap_or(Path::new("")).join(&*file);
        }
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
                return Err(bad(key, "must be a positive number of seconds, such as 30.0"));
            }
        }
        if let Some(hidden) = self.model.chars().find(|&c| !redact::is_seen(c)) {
            return Err(bad("llm.model", format!("holds a character that cannot be seen ({hidden:?}); write it anew")));
        }
        if !(1..=Semaphore::MAX_PERMITS).contains(&self.max_concurrent_requests) {
            return Err(bad("llm.max_concurrent_requests", format!("must be from 1 to {}", Semaphore::MAX_PERMITS)));
        }
        Ok(())
    }
}

// ---- reading a file ----

/// Nobody keeps a larger configuration, and one of this size is parsed in well under a second.
const LARGEST_FILE: u64 = 1 << 20;
/// Nobody nests deeper; the parser's time grows with the square of the depth.
const DEEPEST: usize = 64;

fn read_text(path: &Path) -> Result<String, ConfigError> {
    files::read_to_string(path, LARGEST_FILE).map_err(|cause| match cause.kind() {
        ErrorKind::NotFound => ConfigError::NotFound(path.to_owned()),
        _ => ConfigError::Unreadable { path: path.to_owned(), cause },
    })
}

/// Parses the text of a config file; `path` is for messages. Keys that are nearly ours are refused, those of others are
/// left alone.
fn parse<T: DeserializeOwned + Serialize + Default>(text: &str, path: &Path) -> Result<T, ConfigError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if depth(text) > DEEPEST {
        let message = format!("it is nested deeper than {DEEPEST} levels, so it is hardly a configuration");
        return Err(ConfigError::Invalid { place: path.display().to_string(), message });
    }
    let invalid = |error: serde_yaml::Error| invalid(&error, path);
    let mut value: Value = serde_yaml::from_str(text).map_err(invalid)?;
    if value.is_null() {
        return Err(ConfigError::Empty(path.to_owned()));
    }
    let ours = serde_yaml::to_value(T::default()).map_err(invalid)?;
    refuse_near_misses(text, path, &value, &ours)?;
    refuse_near_misses(text, path, &value["llm"], &ours["llm"])?;
    // Read from the text wherever that will do: then an error has its line.
    let merges = text.contains("<<");
    if merges {
        value.apply_merge().map_err(invalid)?;
        refuse_near_misses(text, path, &value["llm"], &ours["llm"])?;
    }
    if merges { serde_yaml::from_value(value).map_err(invalid) } else { serde_yaml::from_str(text).map_err(invalid) }
}

/// How deep brackets and dashes nest at most. Those in quotes and comments count too: a few do no harm.
fn depth(text: &str) -> usize {
    let (mut open, mut deepest) = (0_usize, 0);
    for line in text.lines() {
        let dashes = line.split_whitespace().take_while(|word| matches!(*word, "-" | "?")).count();
        deepest = deepest.max(open + dashes);
        for byte in line.bytes() {
            match byte {
                b'[' | b'{' => open += 1,
                b']' | b'}' => open = open.saturating_sub(1),
                _ => {}
            }
            deepest = deepest.max(open);
        }
    }
    deepest
}

fn refuse_near_misses(text: &str, path: &Path, section: &Value, ours: &Value) -> Result<(), ConfigError> {
    let names = |section: &Value| -> Vec<String> {
        let keys = section.as_mapping().into_iter().flat_map(|mapping| mapping.keys());
        keys.filter_map(|key| key.as_str().map(str::to_owned)).collect()
    };
    let ours = names(ours);
    for name in names(section).into_iter().filter(|name| !ours.contains(name)) {
        if let Some(near) = ours.iter().find(|ours| is_near(&name, ours)) {
            let line = text.lines().position(|line| names_key(line, &name));
            let line = line.map_or_else(String::new, |at| format!(":{}", at + 1));
            let place = format!("{}{line}", path.display());
            return Err(ConfigError::Unknown { place, kind: "key", name, ours: near.clone() });
        }
    }
    Ok(())
}

/// At most two letters dropped, added, changed or swapped; one in names as short as `llm`. Case, dashes and underscores
/// make no difference.
fn is_near(name: &str, ours: &str) -> bool {
    let plain = |text: &str| text.to_lowercase().replace(['-', '_'], "");
    let most = if ours.len() < 5 { 1 } else { 2 };
    strsim::osa_distance(name, ours) <= most || plain(name) == plain(ours)
}

/// Whether `name` stands in this line as a key.
fn names_key(line: &str, name: &str) -> bool {
    line.match_indices(name)
        .any(|(at, _)| line[at + name.len()..].trim_start_matches(['"', '\'']).trim_start().starts_with(':'))
}

impl Config {
    /// Reads and parses a config file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Config::parse(&read_text(path)?, path)
    }

    /// Parses the text of a config file; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        parse(text, path)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let Config { llm, benchmark, .. } = self;
        llm.check()?;
        if benchmark.min_concurrency == 0 {
            return Err(bad("benchmark.min_concurrency", "level 0 would send nothing; levels start at 1"));
        }
        if benchmark.min_concurrency > benchmark.max_concurrency {
            return Err(bad(
                "benchmark.min_concurrency",
                format!("{} is above max_concurrency {}", benchmark.min_concurrency, benchmark.max_concurrency),
            ));
        }
        for (key, value) in [
            ("benchmark.max_concurrency", benchmark.max_concurrency),
            ("benchmark.total_requests", benchmark.total_requests),
            ("benchmark.warmup_requests", benchmark.warmup_requests),
        ] {
            if value > MOST {
                return Err(bad(key, format!("must be at most {MOST}")));
            }
        }
        if benchmark.total_requests == 0 {
            return Err(bad("benchmark.total_requests", "must be at least 1; 100 is a good start"));
        }
        if benchmark.request.max_tokens == 0 {
            return Err(bad("benchmark.request.max_tokens", "must be at least 1"));
        }
        benchmark.request.check()?;
        if self.benchmark.levels().is_empty() {
            return Err(bad(
                "benchmark.levels",
                format!(
                    "none lies between min_concurrency {} and max_concurrency {}",
                    benchmark.min_concurrency, benchmark.max_concurrency
                ),
            ));
        }
        benchmark.budget.check()?;
        #[cfg(feature = "suite")]
        self.check_suite()?;
        Ok(())
    }

    #[cfg(feature = "suite")]
    fn check_suite(&self) -> Result<(), ConfigError> {
        let policy = &self.policy;
        for (key, value) in [("policy.max_error_rate", policy.max_error_rate), ("policy.tolerance", policy.tolerance)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(bad(key, "must be a fraction between 0 and 1, such as 0.05"));
            }
        }
        for (key, value) in
            [("policy.max_p95_seconds", policy.max_p95_seconds), ("policy.max_p99_seconds", policy.max_p99_seconds)]
        {
            if value.is_some_and(|v| !(v.is_finite() && v > 0.0)) {
                return Err(bad(key, "must be a positive number of seconds"));
            }
        }
        self.simulator.validate().map_err(|error| bad("simulator", error.to_string()))
    }
}

/// Levels and requests of a level: no measurement is larger, and sums of this do not overflow.
const MOST: usize = 1_000_000_000;

impl Benchmark {
    /// The levels known beforehand, ascending: those listed within the bounds, or powers of two for `auto`, which are
    /// what a filter and the test mode take; its search finds levels of its own.
    pub fn levels(&self) -> Vec<usize> {
        let all = match &self.levels {
            Levels::List(levels) => levels.clone(),
            Levels::Auto => std::iter::successors(Some(1_usize), |n| n.checked_mul(2))
                .take_while(|&n| n <= self.max_concurrency)
                .collect(),
        };
        all.into_iter().filter(|n| (self.min_concurrency..=self.max_concurrency).contains(n)).collect()
    }
}

impl Budget {
    fn check(&self) -> Result<(), ConfigError> {
        let numbers = [
            ("max_minutes", self.max_minutes),
            ("max_cost_usd", self.max_cost_usd),
            ("usd_per_million_input", self.usd_per_million_input),
            ("usd_per_million_output", self.usd_per_million_output),
        ];
        for (key, value) in numbers {
            if value.is_some_and(|v| !(v.is_finite() && v >= 0.0)) {
                return Err(bad(format!("benchmark.budget.{key}"), "must be a number and not negative"));
            }
        }
        if self.max_cost_usd.is_some() && self.usd_per_million_output.is_none() {
            return Err(bad(
                "benchmark.budget.max_cost_usd",
                "needs a price: set budget.usd_per_million_output (and usd_per_million_input)",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "llm: {endpoint: 'http://localhost:8000', model: m}\nbenchmark: {max_concurrency: 10}\n";

    #[test]
    fn every_variable_in_the_list_is_read() {
        for name in BENCH_VARIABLES {
            let error = resolve(YAML, &Env::of([(name, "?")]), Overrides::default()).unwrap_err().to_string();
            assert!(error.starts_with(name) && !error.contains("no such variable"), "{error}");
        }
    }

    fn resolve(yaml: &str, env: &Env, flags: Overrides) -> Result<Settings, ConfigError> {
        let path = PathBuf::from("config.yaml");
        Settings::resolve(path.clone(), Config::parse(yaml, &path)?, env, flags)
    }

    #[test]
    fn base_urls() {
        for (written, base) in [
            ("http://h:8000", "http://h:8000/v1"),
            ("http://h:8000/", "http://h:8000/v1"),
            ("http://h:8000/v1", "http://h:8000/v1"),
            ("http://h:8000/v1/", "http://h:8000/v1"),
            ("https://h/openai/v1//", "https://h/openai/v1"),
            ("http://h/v1/chat/completions", "http://h/v1"),
            ("http://h/v1/embeddings", "http://h/v1"),
            ("http://user:pw@h/v1?key=1#x", "http://h/v1"),
            (" simulator ", "simulator"),
        ] {
            assert_eq!(written.parse::<Endpoint>().map(|e| e.redacted()), Ok(base.to_owned()), "{written}");
        }
        for wrong in ["", "localhost:8000", "ftp://h", "http://", "/v1", "simulators"] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn levels_named_for_this_run_are_not_left_out_by_the_files_bounds() {
        let env = Env::of([("LLM_BENCH_LEVELS", "5,80")]);
        assert_eq!(resolve(YAML, &env, Overrides::default()).unwrap().config.benchmark.levels(), [5, 80]);
        // A bound given beside them still counts.
        let env = Env::of([("LLM_BENCH_LEVELS", "5,80"), ("LLM_BENCH_MAX_CONCURRENCY", "50")]);
        assert_eq!(resolve(YAML, &env, Overrides::default()).unwrap().config.benchmark.levels(), [5]);
        // So do the file's bounds for the file's levels, and for auto.
        let file = resolve(YAML, &Env::default(), Overrides::default()).unwrap();
        assert_eq!(file.config.benchmark.levels(), [1, 2, 5, 10]);
        let auto = Overrides { levels: Some(Levels::Auto), ..Overrides::default() };
        assert_eq!(resolve(YAML, &Env::default(), auto).unwrap().config.benchmark.levels(), [1, 2, 4, 8]);
    }

    #[test]
    fn flags_win_over_variables_over_the_file() {
        let env = Env::of([("LLM_BENCH_SEED", "2"), ("LLM_BENCH_TOTAL_REQUESTS", "200"), ("LLM_BENCH_QUICK", "1")]);
        let flags = Overrides { seed: Some(3), ..Overrides::default() };
        let settings = resolve(YAML, &env, flags).unwrap();
        let benchmark = &settings.config.benchmark;
        assert_eq!((benchmark.seed, benchmark.total_requests, benchmark.max_concurrency), (3, 200, 10));
        assert!(settings.quick);
        // Set and empty is as good as not set.
        let empty = Env::of([("LLM_BENCH_SEED", ""), ("LLM_MODEL", " ")]);
        assert_eq!(resolve(YAML, &empty, Overrides::default()).unwrap().config.llm.model, "m");
    }

    #[test]
    fn the_key_comes_from_the_environment_and_shows_nowhere() {
        use secrecy::ExposeSecret;
        let key = |env: &Env| api_key(env).map(|key| key.expose_secret().to_owned());
        assert_eq!(key(&Env::of([("LLM_API_KEY", "a"), ("OPENAI_API_KEY", "b")])).as_deref(), Some("a"));
        assert_eq!(key(&Env::of([("LLM_API_KEY", ""), ("OPENAI_API_KEY", "b")])).as_deref(), Some("b"));
        assert_eq!(key(&Env::default()), None);
        let settings = resolve(YAML, &Env::of([("LLM_API_KEY", "hunter2")]), Overrides::default()).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
