//! Settings: config.yaml, overridden by the environment (a `.env` beside the file included), overridden by flags.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::client::config::{CLIENT_VARIABLES, ConfigError, Env, Llm, api_key, bad, config_path};
use crate::client::config_file::{parse, read_text};
use crate::client::endpoint::Endpoint;
use crate::client::request::RequestSettings;

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
        for (gate, limit) in policy.limits() {
            if limit.is_some_and(|seconds| !(seconds.is_finite() && seconds > 0.0)) {
                return Err(bad(gate.key().unwrap_or_default(), "must be a positive number of seconds"));
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
