//! A folder with a results file that matches a server, and the binary to run against that server.

#![allow(dead_code, reason = "each user of this module takes what it needs")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use llm_concurrency::client::Env;
use llm_concurrency::client::outcome::RequestOutcome;
use llm_concurrency::prompts;
use llm_concurrency::record::{Identity, read_sidecar};
use llm_concurrency::settings::{Config, Overrides, Settings};
use llm_concurrency::simulator::{Simulator, SimulatorConfig, explain};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::servers;

/// A handmade results file with a knee at 20.
const KNEE: &str = include_str!("../../test-data/results/knee_at_20.json");
/// Throughput to which its level 20 is scaled, in requests per second.
pub const FOUND_RPS: f64 = 30.0;

#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let code = output.status.code().expect("it ended by itself");
        Ran { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

pub struct Known {
    pub folder: TempDir,
}

impl Known {
    /// A folder with `knee.json`, as if measured at `endpoint`, and a config.yaml that includes `sections`.
    pub fn of(endpoint: &str, sections: &str) -> Self {
        let folder = servers::folder(&format!("llm: {{endpoint: '{endpoint}', model: m}}\n{sections}\n"));
        let known = Known { folder };
        known.write("knee.json", &known.file(|_| {}));
        known
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, value: &Value) {
        fs::write(self.path(name), value.to_string()).unwrap();
    }

    /// The results file with `change` applied.
    pub fn file(&self, change: impl Fn(&mut Value)) -> Value {
        let path = self.path("config.yaml");
        let config = Config::parse(&fs::read_to_string(&path).unwrap(), &path).unwrap();
        let settings = Settings::resolve(path, config, &Env::default(), Overrides::default()).unwrap();
        let identity = Identity::of(&settings, &prompts::of_run(&settings).unwrap());
        let mut file: Value = serde_json::from_str(KNEE).unwrap();
        file["fingerprint"] = json!(identity.fingerprint());
        file["endpoint"] = json!(identity.endpoint);
        file["model"] = json!(identity.model);
        file["settings"]["request"] = json!(settings.config.benchmark.request);
        let at_20 = file["levels"].as_array().unwrap().iter().find(|level| level["concurrency"] == 20).unwrap();
        let factor = FOUND_RPS / at_20["throughput_rps"]["estimate"].as_f64().unwrap();
        for level in file["levels"].as_array_mut().unwrap() {
            for figure in ["estimate", "lower", "upper"] {
                let figure = &mut level["throughput_rps"][figure];
                *figure = figure.as_f64().map_or(Value::Null, |value| json!(value * factor));
            }
        }
        change(&mut file);
        file
    }

    /// Gives the levels of the results file the true throughput of a simulator.
    pub fn fit(&self, config: &SimulatorConfig) {
        let snippets = prompts::load(self.path("test-data/test_snippets.json")).unwrap();
        let texts: Vec<String> = snippets.into_iter().map(|prompt| prompt.text).collect();
        let mut file = self.results();
        for level in file["levels"].as_array_mut().unwrap() {
            let concurrency = level["concurrency"].as_u64().unwrap() as usize;
            let truth = explain(config, &[concurrency], &texts, 64, 1_000).unwrap().levels.remove(0);
            let rps = truth.throughput_rps;
            level["throughput_rps"] = json!({"estimate": rps, "lower": 0.98 * rps, "upper": 1.02 * rps});
            level["output_tps"] = json!(truth.output_tps);
        }
        self.write("knee.json", &file);
    }

    pub fn results(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path("knee.json")).unwrap()).unwrap()
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, &[])
    }

    pub fn run_with(&self, args: &[&str], env: &[(&str, &str)]) -> Ran {
        Ran::of(servers::binary(self.folder.path()).args(args).envs(env.iter().copied()).output().unwrap())
    }

    /// Runs the binary and interrupts it once `when` holds.
    pub fn interrupt(&self, args: &[&str], when: impl Fn() -> bool) -> Ran {
        let mut binary = servers::binary(self.folder.path());
        let child = binary.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("the moment to interrupt", when);
        assert!(Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap().success());
        Ran::of(child.wait_with_output().unwrap())
    }

    /// The records of all requests from all runs in the folder.
    pub fn lines(&self) -> Vec<RequestOutcome> {
        let runs = fs::read_dir(self.path("target/concurrency")).unwrap().map(|run| run.unwrap().path());
        let files = runs.flat_map(|run| fs::read_dir(run).unwrap().map(|file| file.unwrap().path()));
        files.flat_map(|file| read_sidecar(&file).unwrap().map(|line| line.unwrap()).collect::<Vec<_>>()).collect()
    }
}

#[track_caller]
pub fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(120), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Asserts that a command refuses files without a number, or with that of another server, request or set of prompts.
pub fn assert_bad_input_is_refused(command: &str) {
    let server = Simulator::start(SimulatorConfig::default(), 0).unwrap();
    let known = Known::of(&server.base_url(), "");
    let refused = |file: &str, says: &str| {
        let ran = known.run(&[command, file]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.contains(says), "{says} is not in {}", ran.stderr);
    };
    refused("none.json", "cannot read none.json");
    known.write("other.json", &json!({"levels": []}));
    refused("other.json", "it holds no levels");
    known.write("few.json", &known.file(|file| file["settings"]["quick"] = json!(true)));
    refused("few.json", "holds no reliable number: it is provisional (status ok)");
    let all_fail = |level: &mut Value| level["error_rate"] = json!(1.0);
    let fails = known.file(|file| file["levels"].as_array_mut().unwrap().iter_mut().for_each(all_fail));
    known.write("fails.json", &fails);
    refused("fails.json", "its status is no_qualifying_level");
    let other = |change: &dyn Fn(&mut Value)| {
        let file = known.file(|file| {
            file["fingerprint"] = json!("0123456789abcdef");
            change(file);
        });
        known.write("other.json", &file);
    };
    other(&|file| file["endpoint"] = json!("simulator"));
    refused("other.json", "endpoint: measured with simulator, now http://127.0.0.1:");
    other(&|file| file["settings"]["request"]["max_tokens"] = json!(7));
    refused("other.json", "benchmark.request.max_tokens: measured with 7, now 64");
    other(&|_| {});
    refused("other.json", "prompts (hash): measured with others, now ");
    assert_eq!(server.log().len(), 0, "nothing was sent");
    assert!(!Path::new(&known.path("target/concurrency")).exists());
}
