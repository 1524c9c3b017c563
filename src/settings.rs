//! Settings: flags override the environment (including a `.env` next to the file), which overrides config.yaml.
//!
//! Each setting is defined once, as a field whose `#[arg]` names the flag and the variable. The command line, its help,
//! the reading of the environment and the rejection of unknown variables are derived from that.

use std::ffi::OsStr;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::client::Headers;
use crate::client::config::{CLIENT_VARIABLES, ConfigError, Env, Llm, api_key, config_path, invalid};
use crate::client::config_file::{parse, read_text};
use crate::client::endpoint::Endpoint;
use crate::client::redact::without_secrets;
use crate::client::request::RequestSettings;
use crate::decide::{Objective, Policy};
use crate::figures::{Limits, Prices};
use crate::simulator::SimulatorConfig;

/// All of config.yaml that belongs to this project; the file may hold the caller's own keys elsewhere.
#[derive(Args, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Config {
    /// The server, and how the user's program calls it.
    #[arg(skip)]
    pub llm: Llm,
    /// What is measured.
    #[command(flatten)]
    #[serde(default)]
    pub benchmark: Benchmark,
    /// How the level is chosen.
    #[arg(skip)]
    #[serde(default)]
    pub policy: Policy,
    /// The embedded simulator, used while `llm.endpoint` is the word `simulator`.
    #[arg(skip)]
    #[serde(default)]
    pub simulator: SimulatorConfig,
}

/// The section `benchmark`.
#[derive(Args, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "What is measured")]
pub struct Benchmark {
    /// Levels such as 1,2,5, or auto
    #[arg(long, env = "LLM_BENCH_LEVELS", visible_alias = "custom-levels", allow_hyphen_values = true)]
    pub levels: Levels,
    /// Skip listed levels below this; an automatic search begins here
    #[arg(long, env = "LLM_BENCH_MIN_CONCURRENCY", value_name = "N", value_parser = whole::<usize>)]
    pub min_concurrency: usize,
    /// Skip listed levels above this; an automatic search ends here
    #[arg(long, env = "LLM_BENCH_MAX_CONCURRENCY", value_name = "N", value_parser = whole::<usize>)]
    pub max_concurrency: usize,
    /// Requests per level (at least 10 x the level are sent)
    #[arg(long, env = "LLM_BENCH_TOTAL_REQUESTS", value_name = "N", value_parser = whole::<usize>)]
    pub total_requests: usize,
    /// Completions before the measured window of a level (never fewer than the level)
    #[arg(long, env = "LLM_BENCH_WARMUP_REQUESTS", value_name = "N", value_parser = whole::<usize>)]
    pub warmup_requests: usize,
    /// The requests to send.
    #[arg(skip)]
    pub request: RequestSettings,
    /// Seed of everything random on the client side
    #[arg(long, env = "LLM_BENCH_SEED", value_name = "N", value_parser = whole::<u64>)]
    pub seed: u64,
    /// Limits on what a run may spend.
    #[command(flatten)]
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
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "Written", rename_all = "lowercase")]
pub enum Levels {
    /// Levels found by an adaptive search between the minimum and the maximum.
    Auto,
    /// These.
    #[serde(untagged)]
    List(Vec<usize>),
}

/// Levels as written in a config file.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list of levels such as [1, 2, 5, 10], or auto")]
enum Written {
    List(Vec<usize>),
    Word(String),
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
        Written::List(levels.collect::<Result<_, _>>()?).try_into()
    }
}

impl TryFrom<Written> for Levels {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let levels = match written {
            Written::List(levels) => levels,
            Written::Word(word) => return word.parse(),
        };
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
            let fault = if pair[0] == pair[1] { "appears twice" } else { "is out of order" };
            return Err(format!("level {} {fault}; write {sorted:?}", pair[1]));
        }
        Ok(Levels::List(levels))
    }
}

/// Limits on what a run may spend. None is set by default.
#[derive(Args, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Budget")]
pub struct Budget {
    /// Stop before more requests than this are sent
    #[arg(long, env = "LLM_BENCH_MAX_REQUESTS", value_name = "N", value_parser = whole::<u64>)]
    pub max_requests: Option<u64>,
    /// Stop before more output tokens than this could be generated, counting max_tokens for each request
    #[arg(long, env = "LLM_BENCH_MAX_OUTPUT_TOKENS", value_name = "N", value_parser = whole::<u64>)]
    pub max_output_tokens: Option<u64>,
    /// Stop after this many minutes
    #[arg(long, env = "LLM_BENCH_MAX_MINUTES", value_name = "MINUTES", value_parser = decimal)]
    pub max_minutes: Option<f64>,
    /// Stop before more than this is spent (needs prices in the config)
    #[arg(long, env = "LLM_BENCH_MAX_COST_USD", value_name = "USD", value_parser = decimal)]
    pub max_cost_usd: Option<f64>,
    /// Price of a million input tokens, in US dollars.
    #[arg(skip)]
    pub usd_per_million_input: Option<f64>,
    /// Price of a million output tokens, in US dollars.
    #[arg(skip)]
    pub usd_per_million_output: Option<f64>,
    /// Price of an hour of the server, in US dollars. It does not count towards `max_cost_usd`.
    #[arg(skip)]
    pub usd_per_hour: Option<f64>,
}

/// The server, as flags and variables name it.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "What is measured")]
pub struct Server {
    // A string, since clap echoes what it cannot parse, and this may contain a password.
    /// Base URL such as http://localhost:8000/v1, or simulator
    #[arg(long, env = "LLM_ENDPOINT", hide_env_values = true, value_name = "URL")]
    llm_endpoint: Option<String>,
    /// The model, as the server knows it
    #[arg(long, env = "LLM_MODEL", value_name = "NAME")]
    llm_model: Option<String>,
}

const WATCHED: &str = "Progress and metrics";

/// Everything a run needs to know, resolved and checked.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Path of the config file.
    #[arg(skip)]
    pub path: PathBuf,
    #[command(flatten)]
    target: Server,
    /// The merged configuration.
    #[command(flatten)]
    pub config: Config,
    /// The endpoint that requests are sent to.
    #[arg(skip = Endpoint::Simulator)]
    pub endpoint: Endpoint,
    /// Whether the config file itself, regardless of environment and flags, names the simulator as its endpoint.
    #[arg(skip)]
    pub config_is_simulated: bool,
    /// Whether a flag or a variable lists the levels for this run.
    #[arg(skip)]
    pub levels_named: bool,
    /// Short visits only, and no more of them than make the answer certain
    #[arg(long, env = "LLM_BENCH_QUICK", help_heading = "What is measured")]
    pub quick: bool,
    /// Show no progress while a level runs
    #[arg(long, env = "LLM_BENCH_QUIET", help_heading = WATCHED)]
    pub quiet: bool,
    /// Read the server's own /metrics once a second (vLLM, llama.cpp, SGLang), to show its queue in the report
    #[arg(long, env = "LLM_BENCH_SERVER_METRICS", help_heading = WATCHED)]
    pub server_metrics: bool,
    /// Serve Prometheus metrics of the run at http://ADDRESS/metrics
    #[arg(long, env = "LLM_BENCH_METRICS_ADDR", value_name = "ADDRESS", value_parser = address)]
    #[arg(num_args = 0..=1, default_missing_value = "127.0.0.1:9464", help_heading = WATCHED)]
    pub metrics_addr: Option<SocketAddr>,
    /// The API key, which can come only from the environment.
    #[arg(skip)]
    pub api_key: Option<SecretString>,
}

// The standard library's "invalid digit found in string" does not tell the user what to write.
fn expected<T: FromStr>(text: &str, what: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("`{text}` is not {what}"))
}

fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    expected(text, "a whole number such as 100")
}

fn decimal(text: &str) -> Result<f64, String> {
    expected(text, "a number such as 2.5")
}

fn address(text: &str) -> Result<SocketAddr, String> {
    expected(text, "an address such as 127.0.0.1:9464")
}

/// Prefix of the variables that only a measurement reads. An unknown variable with this prefix is a mistake.
const BENCH: &str = "LLM_BENCH_";

/// Settings from flags or variables, in the form of command-line arguments.
#[derive(Clone, Debug, Default)]
pub struct Overrides(Vec<String>);

impl Overrides {
    /// Overrides from arguments such as `--seed=7`.
    pub fn of<const N: usize>(args: [&str; N]) -> Self {
        Overrides(args.map(str::to_owned).to_vec())
    }

    fn name_endpoint(&self) -> bool {
        self.0.iter().any(|argument| argument.starts_with("--llm-endpoint="))
    }
}

/// Every option that flags and variables may set.
fn options() -> Command {
    Settings::augment_args_for_update(Command::new("settings").no_binary_name(true))
}

/// The values that these arguments set, without defaults.
fn matches(args: &[String]) -> Result<ArgMatches, clap::Error> {
    let mut matches = options().mut_args(|arg| arg.env(Resettable::Reset)).try_get_matches_from(args)?;
    let ids: Vec<String> = matches.ids().map(|id| id.as_str().to_owned()).collect();
    for id in ids.iter().filter(|id| matches.value_source(id) == Some(ValueSource::DefaultValue)).collect::<Vec<_>>() {
        let _ = matches.try_clear_id(id);
    }
    Ok(matches)
}

/// The flags of `T`, which is [`Settings`] or a part of it, for use among the other arguments of a command.
#[derive(Clone, Debug)]
pub struct Flags<T> {
    /// The flags that were given.
    pub given: Overrides,
    of: PhantomData<T>,
}

impl<T: Args> Args for Flags<T> {
    /// The variables are only listed in the help. clap itself must not read them: it takes an empty variable for a
    /// value, does not know `.env`, and blames the flag if the variable is invalid.
    fn augment_args(command: Command) -> Command {
        T::augment_args_for_update(command).mut_args(|arg| match arg.get_env().and_then(OsStr::to_str) {
            Some(name) => {
                let help = format!("{} [env: {name}]", arg.get_help().cloned().unwrap_or_default());
                arg.env(Resettable::Reset).help(help)
            }
            None => arg,
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T> FromArgMatches for Flags<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Vec::new();
        for arg in options().get_arguments() {
            let is_given = matches.ids().any(|id| id == arg.get_id())
                && matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
            let Some(flag) = arg.get_long().filter(|_| is_given) else { continue };
            let values = matches.get_raw(arg.get_id().as_str()).into_iter().flatten();
            given.extend(values.map(|value| match arg.get_action() {
                ArgAction::SetTrue => format!("--{flag}"),
                _ => format!("--{flag}={}", value.to_string_lossy()),
            }));
        }
        Ok(Flags { given: Overrides(given), of: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Model name for every measurement of the simulator, so that its figures are not taken for those of a real model.
pub const SIMULATED_MODEL: &str = "simulated";

impl Settings {
    /// Loads the config file named by `path`, else by `LLM_CONFIG`, else `config.yaml`, and applies the environment and
    /// then `flags`. If no file is named and none exists, an endpoint from the environment or a flag is enough.
    pub fn load(path: Option<&Path>, flags: Overrides) -> Result<Self, ConfigError> {
        let is_named = path.is_some() || std::env::var_os("LLM_CONFIG").is_some();
        let path = config_path(path);
        let env = Env::load(&path)?;
        match Config::read(&path) {
            Ok(config) => Settings::resolve(path, config, &env, flags),
            Err(ConfigError::NotFound(_))
                if !is_named && (flags.name_endpoint() || env.get("LLM_ENDPOINT").is_some()) =>
            {
                Settings::without_file(path, flags)
            }
            Err(error) => Err(error),
        }
    }

    /// Settings without any config file.
    pub fn without_file(path: PathBuf, flags: Overrides) -> Result<Self, ConfigError> {
        let env = Env::load(&path)?;
        Settings::resolve(path, Config::default(), &env, flags)
    }

    /// The same settings for another server, or for another model on the same one. A server with another origin does
    /// not get the API key and headers; its key comes from `LLM_AGAINST_API_KEY`.
    pub fn for_other(&self, url: Option<&str>, model: Option<&str>) -> Result<Self, ConfigError> {
        let mut other = self.clone();
        let llm = &mut other.config.llm;
        if let Some(url) = url {
            other.endpoint = url.parse().map_err(|message: String| invalid("--against", message))?;
            llm.endpoint = Some(other.endpoint.clone());
        }
        llm.model = model.map_or(std::mem::take(&mut llm.model), str::to_owned);
        match [&self.endpoint, &other.endpoint] {
            [_, Endpoint::Simulator] => llm.model = SIMULATED_MODEL.to_owned(),
            [Endpoint::Url(own), Endpoint::Url(url)] if own.origin() == url.origin() => {}
            _ => {
                let body = &other.config.benchmark.request.extra_body;
                if without_secrets(body) != *body {
                    let message = "holds a secret, which would go to the other server; compare without it";
                    return Err(invalid("benchmark.request.extra_body", message));
                }
                llm.headers = Headers::default();
                other.api_key = Env::load(&self.path)?.get("LLM_AGAINST_API_KEY").map(SecretString::from);
            }
        }
        Ok(other)
    }

    /// The number in the config file, if there is one. `None` for a simulated run if that number is for a real server.
    pub fn present(&self, simulated: bool) -> Option<usize> {
        let is_comparable = self.path.is_file() && (!simulated || self.config_is_simulated);
        is_comparable.then_some(self.config.llm.max_concurrent_requests)
    }

    /// Merges and checks the settings from all sources.
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
            target: Server::default(),
            path,
            config,
        };
        settings.set_from_env(env)?;
        // clap has already checked all other flags.
        settings.set(&flags.0, "--llm-endpoint")?;
        let Settings { path, config, endpoint, .. } = &mut settings;
        *endpoint = config.llm.endpoint(path)?.clone();
        if *endpoint == Endpoint::Simulator {
            config.llm.model = SIMULATED_MODEL.to_owned();
            config.llm.headers = Headers::default();
        }
        config.llm.complete(path, env)?;
        config.check()?;
        let request = &mut config.benchmark.request;
        request.cache = Some(request.cache());
        Ok(settings)
    }

    /// Applies the variables `LLM_ENDPOINT`, `LLM_MODEL` and `LLM_BENCH_…`.
    fn set_from_env(&mut self, env: &Env) -> Result<(), ConfigError> {
        let options = options();
        let variable = |arg| Some((Arg::get_env(arg)?.to_str()?, arg.get_long()?, arg.get_action()));
        let variables: Vec<_> = options.get_arguments().filter_map(variable).collect();
        let ours: Vec<&str> = CLIENT_VARIABLES.into_iter().chain(variables.iter().map(|(name, ..)| *name)).collect();
        if let Some(name) = env.0.keys().find(|name| name.starts_with(BENCH) && !ours.contains(&name.as_str())) {
            let names: Vec<&str> = variables.iter().filter_map(|(name, ..)| name.strip_prefix(BENCH)).collect();
            return Err(invalid(name, format!("no such variable; after {BENCH} comes one of {}", names.join(", "))));
        }
        env.refuse_near_misses(&ours)?;
        for (name, flag, action) in variables {
            let Some(value) = env.get(name).map(str::trim) else { continue };
            let argument = match (action, value) {
                (ArgAction::SetTrue, "1" | "true" | "yes" | "on") => format!("--{flag}"),
                (ArgAction::SetTrue, "0" | "false" | "no" | "off") => continue,
                (ArgAction::SetTrue, _) => return Err(invalid(name, format!("`{value}` is neither 1 nor 0"))),
                _ => format!("--{flag}={value}"),
            };
            self.set(&[argument], name)?;
        }
        Ok(())
    }

    /// Applies arguments. Errors name `named` as their source.
    fn set(&mut self, args: &[String], named: &str) -> Result<(), ConfigError> {
        let wrong = |error: clap::Error| {
            let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            invalid(named, reason)
        };
        let matches = matches(args).map_err(wrong)?;
        // An explicit list of levels wins: bounds from a less specific source must not drop any of them.
        if let Some(Levels::List(levels)) = matches.get_one("levels") {
            let benchmark = &mut self.config.benchmark;
            (benchmark.min_concurrency, benchmark.max_concurrency) = (levels[0], levels[levels.len() - 1]);
            self.levels_named = true;
        }
        self.update_from_arg_matches(&matches).map_err(wrong)?;
        let (llm, target) = (&mut self.config.llm, std::mem::take(&mut self.target));
        if let Some(url) = target.llm_endpoint {
            llm.endpoint = Some(url.parse().map_err(|message: String| invalid(named, message))?);
        }
        llm.model = target.llm_model.unwrap_or(std::mem::take(&mut llm.model));
        Ok(())
    }

    /// The settings on which figures depend, besides the measurements.
    pub fn limits(&self) -> Limits {
        let Config { llm, benchmark, policy, .. } = &self.config;
        let prices = Prices {
            per_million_input: benchmark.budget.usd_per_million_input,
            per_million_output: benchmark.budget.usd_per_million_output,
            server_per_hour: benchmark.budget.usd_per_hour,
        };
        let (request_timeout_s, max_error_rate) = (llm.request_timeout, policy.max_error_rate);
        Limits { request_timeout_s, max_error_rate, slo: policy.slo, prices, warm_from_s: 0.0 }
    }

    /// Resolves a path in the settings, which is relative to the folder of the config file.
    pub fn beside_config(&self, path: impl AsRef<Path>) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }
}

impl Config {
    /// Reads and parses a config file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Config::parse(&read_text(path)?, path)
    }

    /// Parses the text of a config file. `path` is used only in messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        parse(text, path)
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.benchmark.check()?;
        let Policy { max_error_rate, tolerance, objective, .. } = self.policy;
        let slo = self.policy.slo.unwrap_or_default();
        for (key, value, usual) in [
            ("max_error_rate", max_error_rate, 0.05),
            ("tolerance", tolerance, 0.05),
            ("slo.attainment", slo.attainment, 0.99),
        ] {
            if !(0.0..=1.0).contains(&value) {
                let message = format!("must be a fraction between 0 and 1, such as {usual}");
                return Err(invalid(format!("policy.{key}"), message));
            }
        }
        let gates = self.policy.limits().map(|(gate, limit)| (gate.key().to_owned(), limit, gate.needs_streaming()));
        let of_slo = slo.limits().map(|(name, limit)| (format!("policy.slo.{name}"), limit, name != "latency"));
        let request = &self.benchmark.request;
        let streams = request.stream && request.kind.generates();
        for (key, limit, needs_stream) in gates.into_iter().chain(of_slo) {
            let Some(seconds) = limit else { continue };
            if !(seconds.is_finite() && seconds > 0.0) {
                return Err(invalid(key, "must be a positive number of seconds"));
            }
            if needs_stream && !streams {
                let message =
                    "needs streamed answers: set benchmark.request.stream: true (embeddings are never streamed)";
                return Err(invalid(key, message));
            }
        }
        let asks = self.policy.slo.is_some() || objective == Objective::Goodput;
        if asks && slo.limits().iter().all(|(_, limit)| limit.is_none()) {
            return Err(invalid("policy.slo", "needs at least one limit in seconds: ttft, tpot or latency"));
        }
        self.simulator.validate().map_err(|error| invalid("simulator", error.to_string()))
    }
}

/// Maximum for levels and for requests per level. No measurement is larger, and sums of it do not overflow.
const MOST: usize = 1_000_000_000;

impl Benchmark {
    /// The levels known in advance, in ascending order: the listed levels within the bounds or, for `auto`, the lowest
    /// one and its doublings. These serve where nothing is searched: filters, the test mode, and two servers in turns.
    pub fn levels(&self) -> Vec<usize> {
        let all = match &self.levels {
            Levels::List(levels) => levels.clone(),
            Levels::Auto => std::iter::successors(Some(self.min_concurrency.max(1)), |n| n.checked_mul(2))
                .take_while(|&n| n <= self.max_concurrency)
                .collect(),
        };
        all.into_iter().filter(|n| (self.min_concurrency..=self.max_concurrency).contains(n)).collect()
    }

    fn check(&self) -> Result<(), ConfigError> {
        let &Benchmark { min_concurrency: min, max_concurrency: max, total_requests, warmup_requests, .. } = self;
        let Budget { max_minutes, max_cost_usd, usd_per_million_input, usd_per_million_output, usd_per_hour, .. } =
            self.budget;
        self.request.check()?;
        let most = format!("must be at most {MOST}");
        let is_negative = |value: Option<f64>| value.is_some_and(|v| !(v.is_finite() && v >= 0.0));
        let not_negative = "must be a number that is not negative";
        let is_priceless = max_cost_usd.is_some() && usd_per_million_output.is_none();
        let priceless = "needs a price: set budget.usd_per_million_output (and usd_per_million_input)";
        let wrong: [(&str, bool, &str); 14] = [
            ("min_concurrency", min == 0, "level 0 would send nothing; levels start at 1"),
            ("min_concurrency", min > max, &format!("{min} is above max_concurrency {max}")),
            ("max_concurrency", max > MOST, &most),
            ("total_requests", total_requests > MOST, &most),
            ("warmup_requests", warmup_requests > MOST, &most),
            ("total_requests", total_requests == 0, "must be at least 1; 100 is a good start"),
            ("request.max_tokens", self.request.max_tokens == 0, "must be at least 1"),
            (
                "levels",
                self.levels().is_empty(),
                &format!("none lies between min_concurrency {min} and max_concurrency {max}"),
            ),
            ("budget.max_minutes", is_negative(max_minutes), not_negative),
            ("budget.max_cost_usd", is_negative(max_cost_usd), not_negative),
            ("budget.usd_per_million_input", is_negative(usd_per_million_input), not_negative),
            ("budget.usd_per_million_output", is_negative(usd_per_million_output), not_negative),
            ("budget.usd_per_hour", is_negative(usd_per_hour), not_negative),
            ("budget.max_cost_usd", is_priceless, priceless),
        ];
        match wrong.into_iter().find(|(_, is_wrong, _)| *is_wrong) {
            Some((key, _, message)) => Err(invalid(format!("benchmark.{key}"), message)),
            None => Ok(()),
        }
    }
}
