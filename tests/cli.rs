//! Both binaries as a user meets them: what is printed, where it goes, exit codes, and what becomes of config.yaml.

#![cfg(feature = "suite")]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use httpmock::MockServer;
use llm_concurrency::simulator::{Simulator, SimulatorConfig};
use regex::Regex;
use serde_json::Value;
use tempfile::TempDir;

const OWN_CONFIG: &str = include_str!("../config.yaml");
/// Made by hand: a knee at 20, refusals at 50.
const KNEE: &str = include_str!("../test-data/results/knee_at_20.json");
/// What the fixture was measured on.
const OF_KNEE: [(&str, &str); 2] = [("LLM_ENDPOINT", "http://llm.example/v1"), ("LLM_MODEL", "Q3-30B")];
const SIMULATOR: &str = "llm: {endpoint: simulator, model: m}\n";

/// A folder to work in, which no setting of the machine reaches.
struct Folder(TempDir);

impl Folder {
    fn with(config: &str) -> Self {
        let folder = Folder(tempfile::tempdir().unwrap());
        folder.write("config.yaml", config);
        folder.write("knee.json", KNEE);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
    }

    fn config(&self) -> String {
        fs::read_to_string(self.path("config.yaml")).unwrap()
    }

    fn recommend(&self, args: &[&str]) -> Ran {
        let writes = args.contains(&"--results") && (args.contains(&"--update-config") || args.contains(&"--dry-run"));
        let env = if writes { &OF_KNEE[..] } else { &[] };
        self.ran(env!("CARGO_BIN_EXE_recommend"), args, env)
    }

    fn tool(&self, args: &[&str]) -> Ran {
        self.tool_with(args, &[])
    }

    fn tool_with(&self, args: &[&str], env: &[(&str, &str)]) -> Ran {
        self.ran(env!("CARGO_BIN_EXE_llm-concurrency"), args, env)
    }

    fn ran(&self, binary: &str, args: &[&str], env: &[(&str, &str)]) -> Ran {
        let mut command = Command::new(binary);
        let output =
            command.current_dir(self.0.path()).env_clear().envs(env.iter().copied()).args(args).output().unwrap();
        let text = |bytes: Vec<u8>| self.filtered(&String::from_utf8(bytes).unwrap());
        Ran { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Without what differs from run to run.
    fn filtered(&self, text: &str) -> String {
        let text = text.replace(&self.0.path().display().to_string(), "<folder>");
        let text = Regex::new(r"127\.0\.0\.1:\d+").unwrap().replace_all(&text, "127.0.0.1:PORT").into_owned();
        Regex::new(r"\d{8}T\d{6}Z(-[0-9a-f]{4})?").unwrap().replace_all(&text, "<time>").into_owned()
    }
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn shown(&self) -> String {
        format!("exit code {}\n--- stdout\n{}--- stderr\n{}", self.code, self.stdout, self.stderr)
    }

    /// The message at the end of stderr, after what `run` said of its progress.
    fn error(&self) -> &str {
        self.stderr.find("error: ").map_or("", |at| &self.stderr[at..])
    }
}

#[track_caller]
fn same(name: &str, text: &str) {
    insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
        insta::assert_snapshot!(format!("cli_{name}"), text);
    });
}

// ---- recommend ----

#[test]
fn recommend_prints_the_table_and_the_answer() {
    let folder = Folder::with(OWN_CONFIG);
    let ran = folder.recommend(&["--results", "knee.json"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, "Report: results/concurrency_report_knee.html\n"));
    same("recommend", &ran.shown());
    // The subcommand is the same program.
    assert_eq!(folder.tool(&["recommend", "--results", "knee.json"]).shown(), ran.shown());
    assert_eq!(folder.config(), OWN_CONFIG);
}

#[test]
fn json_is_one_object_with_the_keys_of_the_contract() {
    let folder = Folder::with(OWN_CONFIG);
    let ran = folder.recommend(&["--results", "knee.json", "--json", "--update-config"]);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    for key in [
        "status",
        "recommended_concurrency",
        "interval",
        "provisional",
        "reason",
        "previous",
        "patched",
        "levels",
        "usl",
        "low_latency_alternative",
    ] {
        assert!(json.get(key).is_some(), "{key} is missing");
    }
    assert_eq!((&json["status"], &json["recommended_concurrency"]), (&"ok".into(), &20.into()));
    assert_eq!((&json["previous"], &json["patched"], &json["provisional"]), (&10.into(), &true.into(), &false.into()));
    assert_eq!(json["levels"].as_array().unwrap().len(), 10);
    for key in ["concurrency", "verdict", "why", "throughput_rps", "latency_s", "error_rate"] {
        assert!(json["levels"][9].get(key).is_some(), "{key} is missing");
    }
    assert_eq!(ran.code, 0);

    // Where nothing is recommended the keys are null.
    folder.write("few.json", r#"{"levels": [{"concurrency": 4, "throughput_rps": {"estimate": 7.5}}]}"#);
    let ran = folder.recommend(&["--results", "few.json", "--json"]);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.code, &json["status"]), (3, &"unresolved".into()));
    assert!(json["recommended_concurrency"].is_null() && json["interval"].is_null() && json["usl"].is_null());
}

#[test]
fn dry_run_shows_a_diff_and_changes_nothing() {
    let folder = Folder::with(OWN_CONFIG);
    let ran = folder.recommend(&["--results", "knee.json", "--dry-run"]);
    let diff = ran.stdout.find("--- ").map(|at| &ran.stdout[at..]);
    same("dry_run", diff.unwrap());
    assert!(!folder.path("results").exists(), "no report either");
    assert_eq!((ran.code, folder.config().as_str()), (0, OWN_CONFIG));
}

#[test]
fn update_config_changes_the_digits_and_nothing_else() {
    let folder = Folder::with(OWN_CONFIG);
    let ran = folder.recommend(&["--results", "knee.json", "--update-config"]);
    let expected = OWN_CONFIG.replace("max_concurrent_requests: 10 ", "max_concurrent_requests: 20 ");
    assert_ne!(expected, OWN_CONFIG);
    assert_eq!((ran.code, folder.config()), (0, expected.clone()));
    assert_eq!(ran.stdout.lines().last(), Some("config.yaml: llm.max_concurrent_requests is now 20 (was 10)"));

    let again = folder.recommend(&["--results", "knee.json", "--update-config"]);
    let last = "config.yaml: llm.max_concurrent_requests is already 20, nothing to do";
    assert_eq!((again.code, again.stdout.lines().last()), (0, Some(last)));
    assert_eq!(folder.config(), expected);
}

#[test]
fn a_provisional_result_is_written_only_if_allowed() {
    let folder = Folder::with(OWN_CONFIG);
    let mut results: Value = serde_json::from_str(KNEE).unwrap();
    results["settings"]["quick"] = true.into();
    folder.write("quick.json", &results.to_string());
    let ran = folder.recommend(&["--results", "quick.json", "--update-config"]);
    assert_eq!((ran.code, folder.config().as_str()), (3, OWN_CONFIG));
    same("provisional", ran.stdout.lines().last().unwrap());

    let ran = folder.recommend(&["--results", "quick.json", "--update-config", "--allow-provisional"]);
    assert_eq!(ran.code, 0);
    assert!(folder.config().contains("max_concurrent_requests: 20 "), "{}", folder.config());
}

#[test]
fn what_may_not_be_patched_exits_3_and_names_the_status() {
    let folder = Folder::with(OWN_CONFIG);
    let mut results: Value = serde_json::from_str(KNEE).unwrap();
    for level in results["levels"].as_array_mut().unwrap() {
        level["error_rate"] = 0.5.into();
    }
    folder.write("failing.json", &results.to_string());
    let ran = folder.recommend(&["--results", "failing.json", "--update-config"]);
    assert_eq!((ran.code, folder.config().as_str()), (3, OWN_CONFIG));
    assert_eq!(ran.stdout.lines().last(), Some("config.yaml was not changed: status no_qualifying_level"));
}

#[test]
fn another_key_may_be_written_and_an_ambiguous_one_is_refused() {
    let folder = Folder::with("app: {llm: {parallel: 4}}\nllm: &a {endpoint: simulator, max_concurrent_requests: 3}\n");
    let before = folder.config();
    let ran = folder.recommend(&["--results", "knee.json", "--update-config"]);
    assert_eq!((ran.code, folder.config()), (1, before.clone()));
    same("ambiguous_key", ran.error());
    let ran = folder.recommend(&["--results", "knee.json", "--update-config", "--config-key", "app.llm.parallel"]);
    assert_eq!((ran.code, folder.config()), (0, before.replace("parallel: 4", "parallel: 20")));
}

#[test]
fn the_number_of_another_server_or_model_is_not_written() {
    let folder = Folder::with("llm: {endpoint: 'http://llm.example/v1', model: other, max_concurrent_requests: 3}\n");
    for [variable, value] in [["LLM_MODEL", "other"], ["LLM_ENDPOINT", "http://llm.example:81/v1"]] {
        let env = OF_KNEE.map(|(name, own)| (name, if name == variable { value } else { own }));
        let args = ["recommend", "--results", "knee.json", "--update-config"];
        let ran = folder.tool_with(&args, &env);
        assert_eq!((ran.code, folder.config().contains("requests: 3")), (3, true), "{}", ran.stderr);
        let why = "the results are of http://llm.example/v1, model Q3-30B, and config.yaml names another";
        assert!(ran.stdout.contains(why), "{}", ran.stdout);
        // The same server under both names: what is asked for is what was measured.
        assert_eq!(folder.tool_with(&args[..3], &OF_KNEE).code, 0);
    }
}

// ---- against a baseline ----

/// The fixture with all throughputs from `level` on multiplied.
fn slowed(level: u64, factor: f64) -> String {
    let mut file: Value = serde_json::from_str(KNEE).unwrap();
    for entry in file["levels"].as_array_mut().unwrap() {
        if entry["concurrency"].as_u64().unwrap() >= level {
            for figure in entry["throughput_rps"].as_object_mut().unwrap().values_mut() {
                *figure = (figure.as_f64().unwrap() * factor).into();
            }
        }
    }
    file.to_string()
}

#[test]
fn a_regression_exits_4_says_what_moved_and_writes_nothing() {
    let folder = Folder::with(OWN_CONFIG);
    folder.write("slower.json", &slowed(15, 0.6));
    let args = ["--results", "slower.json", "--baseline", "knee.json", "--fail-on-regression", "10"];
    let ran = folder.recommend(&[&args[..], &["--update-config"]].concat());
    assert_eq!((ran.code, folder.config().as_str()), (4, OWN_CONFIG), "{}", ran.shown());
    same("regression", ran.stdout.split_once("\n\nAgainst").unwrap().1);
    let json = folder.recommend(&[&args[..], &["--json"]].concat());
    let object: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((json.code, object["patched"].as_bool()), (4, Some(false)));
    let regressions = object["comparison"]["regressions"].as_array().unwrap();
    assert_eq!((&regressions[0]["kind"], &regressions[1]["kind"]), (&"best".into(), &"recommended".into()));
    assert!(regressions[0]["change"].as_f64().unwrap() < -0.1, "{regressions:?}");
}

/// The recommended level fails its gate by chance, maybe: that is no regression, and no reason to write.
#[test]
fn what_cannot_be_told_exits_3_says_why_and_writes_nothing() {
    let folder = Folder::with(OWN_CONFIG);
    let mut file: Value = serde_json::from_str(KNEE).unwrap();
    let level = file["levels"].as_array_mut().unwrap().iter_mut().find(|level| level["concurrency"] == 20).unwrap();
    let failed = level["requests"].as_u64().unwrap() * 6 / 100;
    level["succeeded"] = (level["requests"].as_u64().unwrap() - failed).into();
    level["failures"] = serde_json::json!({"ServerError": failed});
    level["error_rate"] = 0.06.into();
    folder.write("doubtful.json", &file.to_string());
    let args = ["--results", "doubtful.json", "--baseline", "knee.json", "--fail-on-regression", "10"];
    let ran = folder.recommend(&[&args[..], &["--update-config"]].concat());
    assert_eq!((ran.code, folder.config().as_str()), (3, OWN_CONFIG), "{}", ran.shown());
    same("doubtful", ran.stdout.split_once("Cannot tell").unwrap().1);
    let json = folder.recommend(&[&args[..], &["--json"]].concat());
    let object: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(object["comparison"]["doubts"][0]["kind"], "gate");
}

/// Against a baseline four times as fast as this server can be, which is measured once more before it is believed.
#[test]
fn a_run_may_be_held_against_a_baseline() {
    let config = "llm: {endpoint: simulator, model: m}\nsimulator: {slots: 1, base_step_ms: 1, per_sequence_ms: 0, \
                  output_tokens: {distribution: fixed, tokens: 10}}\n";
    let folder = Folder::with(config);
    folder.write("before.json", &slowed(1, 4.0));
    let run = |baseline, more: &[&str]| {
        folder
            .tool(&[&["run", "--levels", "1,20", "--baseline", baseline, "--fail-on-regression", "10"], more].concat())
    };
    // What is no results file is said before anything is sent.
    let wrong = run("none.json", &[]);
    assert!(wrong.code == 1 && wrong.stderr.contains("none.json"), "{}", wrong.shown());
    assert!(!wrong.stderr.contains("Plan"), "{}", wrong.stderr);
    let ran = run("before.json", &["--update-config"]);
    assert_eq!((ran.code, folder.config().as_str()), (4, config), "{}", ran.shown());
    assert!(ran.stdout.contains("the throughput at level 20, recommended before, fell by"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("measured only once"), "{}", ran.stdout);
    let manifest = left_behind(&folder).1;
    let last = manifest["levels"].as_array().unwrap().last().unwrap();
    let completed: u64 = last["samples"].as_array().unwrap().iter().map(|s| s["completed"].as_u64().unwrap()).sum();
    assert!(last["stage"] == "visit" && last["concurrency"] == 20 && completed >= 200, "in full: {last}");
}

#[test]
fn without_a_regression_or_a_threshold_the_comparison_fails_nothing() {
    let folder = Folder::with(OWN_CONFIG);
    folder.write("slower.json", &slowed(15, 0.7));
    let with =
        |results, more: &[&str]| folder.recommend(&[&["--results", results, "--baseline", "knee.json"], more].concat());
    let same_again = with("knee.json", &["--fail-on-regression", "10"]);
    assert_eq!(same_again.code, 0, "{}", same_again.shown());
    assert!(same_again.stdout.contains("No regression"), "{}", same_again.stdout);
    let shown_only = with("slower.json", &[]);
    assert_eq!(shown_only.code, 0);
    assert!(shown_only.stdout.contains("slower") && !shown_only.stdout.contains("Regression"), "{}", shown_only.stdout);
    assert_eq!(with("slower.json", &["--fail-on-regression", "40%"]).code, 0);
    assert_eq!(folder.recommend(&["--results", "knee.json", "--fail-on-regression", "10"]).code, 2);
    assert_eq!(with("knee.json", &["--fail-on-regression", "ten"]).code, 2);
    let missing = folder.recommend(&["--results", "knee.json", "--baseline", "none.json"]);
    assert!(missing.code == 1 && missing.stderr.contains("none.json"), "{}", missing.shown());
}

// ---- invalid input ----

/// All messages of one kind in one snapshot, to be read from top to bottom.
fn messages(cases: &[(&str, Ran)]) -> String {
    let message = |(name, ran): &(&str, Ran)| {
        assert_eq!(ran.stdout, "", "{name}: the answer alone goes to stdout");
        format!("## {name}: exit code {}\n{}\n", ran.code, ran.stderr)
    };
    cases.iter().map(message).collect()
}

#[test]
fn invalid_config_files() {
    let decide = |config: &str| Folder::with(config).recommend(&["--results", "knee.json"]);
    let missing = Folder::with("");
    fs::remove_file(missing.path("config.yaml")).unwrap();
    let cases = [
        ("missing", missing.recommend(&["--results", "knee.json"])),
        ("missing, named", missing.recommend(&["--results", "knee.json", "--config", "etc/my.yaml"])),
        ("a folder", missing.recommend(&["--results", "knee.json", "--config", "."])),
        ("empty", decide("# nothing here\n")),
        ("broken YAML", decide("llm:\n  model: m\n  endpoint: [a, b\nbenchmark: {}\n")),
        ("no llm", decide("benchmark: {}\n")),
        ("no endpoint", decide("llm: {model: m}\n")),
        ("nearly endpoint", decide("llm:\n  endpont: http://localhost:8000/v1\n  model: my-model\n")),
        ("nearly model", decide("llm: {endpoint: simulator, modle: m}\n")),
        ("nearly the limit", decide("llm:\n  endpoint: simulator\n  max_concurent_requests: 4\n")),
        ("nearly a section", decide("llm: {endpoint: simulator}\nbenchmrk: {seed: 1}\n")),
        ("unknown key", decide("llm: {endpoint: simulator, model: m}\nbenchmark:\n  seed: 1\n  totl_requests: 5\n")),
        (
            "unknown key of the request",
            decide("llm: {endpoint: simulator, model: m}\nbenchmark:\n  request:\n    strem: true\n"),
        ),
        ("unknown key of the policy", decide("llm: {endpoint: simulator, model: m}\npolicy:\n  max_p95: 5\n")),
        ("unknown key of the SLO", decide("llm: {endpoint: simulator}\npolicy:\n  slo:\n    ttft_p95: 1\n")),
        ("an SLO without limits", decide("llm: {endpoint: simulator}\npolicy: {slo: {attainment: 0.9}}\n")),
        ("more than all", decide("llm: {endpoint: simulator}\npolicy: {slo: {latency: 1, attainment: 99}}\n")),
        ("no time at all", decide("llm: {endpoint: simulator}\npolicy: {slo: {latency: 0}}\n")),
        ("goodput without an SLO", decide("llm: {endpoint: simulator}\npolicy: {objective: goodput}\n")),
        (
            "TTFT without streaming",
            decide("llm: {endpoint: simulator}\nbenchmark: {request: {stream: false}}\npolicy: {slo: {ttft: 1}}\n"),
        ),
        (
            "TPOT of embeddings",
            decide(
                "llm: {endpoint: simulator}\nbenchmark: {request: {kind: embedding}}\npolicy: {max_tpot_p95_seconds: 1}\n",
            ),
        ),
        ("unknown key of the simulator", decide("llm: {endpoint: simulator, model: m}\nsimulator:\n  slot: 5\n")),
        ("wrong type", decide("llm:\n  endpoint: simulator\n  model: m\n  request_timeout: soon\n")),
        ("level 0", decide("llm: {endpoint: simulator, model: m}\nbenchmark:\n  levels: [0, 1]\n")),
        ("levels unsorted", decide("llm: {endpoint: simulator, model: m}\nbenchmark:\n  levels: [1, 10, 5]\n")),
        ("levels doubled", decide("llm: {endpoint: simulator, model: m}\nbenchmark:\n  levels: [1, 5, 5]\n")),
        ("no levels", decide("llm: {endpoint: simulator, model: m}\nbenchmark:\n  levels: []\n")),
        ("levels in words", decide("llm: {endpoint: simulator, model: m}\nbenchmark:\n  levels: some\n")),
        ("levels outside", decide("llm: {endpoint: simulator, model: m}\nbenchmark:\n  levels: [60, 70]\n")),
        ("bounds crossed", decide("llm: {endpoint: simulator, model: m}\nbenchmark:\n  min_concurrency: 60\n")),
        ("no time", decide("llm: {endpoint: simulator, model: m, request_timeout: 0}\n")),
        ("a rate above 1", decide("llm: {endpoint: simulator, model: m}\npolicy:\n  max_error_rate: 5\n")),
        (
            "cost without price",
            decide("llm: {endpoint: simulator, model: m}\nbenchmark:\n  budget: {max_cost_usd: 1}\n"),
        ),
        ("endpoint without scheme", decide("llm:\n  model: m\n  endpoint: user:hunter2@localhost:8000\n")),
    ];
    assert!(cases.iter().all(|(_, ran)| ran.code == 1));
    let text = messages(&cases);
    assert!(!text.contains("hunter2"), "{text}");
    same("invalid_config", &text);
}

/// The caller's own keys are none of our business.
#[test]
fn foreign_keys_are_left_alone() {
    let folder = Folder::with("llm: {endpoint: simulator, model: m, temperature: 0.2}\nmy_program: {debug: true}\n");
    assert_eq!(folder.recommend(&["--results", "knee.json"]).code, 0);
}

#[test]
fn invalid_results_files() {
    let folder = Folder::with(SIMULATOR);
    folder.write("csv.json", "level,rps\n1,2\n");
    folder.write("other.json", r#"{"schema": "other/v9", "levels": [{"concurrency": 1}]}"#);
    folder.write("none.json", r#"{"levels": []}"#);
    let decide = |file: &str| folder.recommend(&["--results", file, "--update-config"]);
    let cases = [
        ("missing", decide("gone.json")),
        ("not JSON", decide("csv.json")),
        ("wrong schema", decide("other.json")),
        ("no levels", decide("none.json")),
        ("nothing measured", folder.recommend(&[])),
        ("nothing in that folder", folder.recommend(&["--criterion-dir", "elsewhere"])),
    ];
    assert!(cases.iter().all(|(_, ran)| ran.code == 1));
    same("invalid_results", &messages(&cases));
    assert_eq!(folder.config(), SIMULATOR);
}

#[test]
fn invalid_snippet_files() {
    let run = |content: Option<&str>| {
        let folder = Folder::with(&format!("{SIMULATOR}benchmark: {{request: {{prompts: my.json}}}}\n"));
        if let Some(content) = content {
            folder.write("my.json", content);
        }
        folder.tool(&["run", "--levels", "1"])
    };
    let cases = [
        ("missing", run(None)),
        ("empty", run(Some(""))),
        ("not JSON", run(Some("[\"a\",\n \"b]"))),
        ("another shape", run(Some("{\"texts\": [\"a\"]}"))),
        ("an empty list", run(Some("[]"))),
        ("a blank prompt", run(Some("[\"a\", \" \"]"))),
    ];
    assert!(cases.iter().all(|(_, ran)| ran.code == 1));
    assert!(cases[0].1.stderr.contains("Test data file not found"));
    same("invalid_snippets", &messages(&cases));
}

#[test]
fn invalid_variables_and_flags() {
    let folder = Folder::with(SIMULATOR);
    let with = |name: &str, value: &str| folder.tool_with(&["recommend", "--results", "knee.json"], &[(name, value)]);
    let broken_env = Folder::with(SIMULATOR);
    broken_env.write(".env", "LLM_MODEL=m\nLLM_API_KEY hunter2\n");
    let cases = [
        ("levels 0", with("LLM_BENCH_LEVELS", "0,1")),
        ("levels unsorted", with("LLM_BENCH_LEVELS", "5,1")),
        ("levels in words", with("LLM_BENCH_LEVELS", "1,many")),
        ("total", with("LLM_BENCH_TOTAL_REQUESTS", "1e3")),
        ("total 0", with("LLM_BENCH_TOTAL_REQUESTS", "0")),
        ("minimum 0", with("LLM_BENCH_MIN_CONCURRENCY", "0")),
        ("quick", with("LLM_BENCH_QUICK", "maybe")),
        ("seed", with("LLM_BENCH_SEED", "-1")),
        ("minutes", with("LLM_BENCH_MAX_MINUTES", "-5")),
        ("endpoint", with("LLM_ENDPOINT", "http://user:hunter2@:8000/v1")),
        ("endpoint of another kind", with("LLM_ENDPOINT", "ftp://user:hunter2@host/v1")),
        ("endpoint flag", folder.tool(&["run", "--llm-endpoint", "user:hunter2@host"])),
        ("endpoint flag of check", folder.tool(&["check", "--llm-endpoint", "user:hunter2@host"])),
        ("nearly a variable", with("LLM_ENDPONT", "http://localhost:8000/v1")),
        ("no such variable", with("LLM_BENCH_LEVEL", "1,2")),
        ("broken .env", broken_env.recommend(&["--results", "knee.json"])),
        ("config of LLM_CONFIG", with("LLM_CONFIG", "gone.yaml")),
    ];
    assert!(cases.iter().all(|(_, ran)| ran.code == 1));
    let text = messages(&cases);
    assert!(!text.contains("hunter2"), "{text}");
    same("invalid_variables", &text);

    let usage = [
        ("levels flag", folder.tool(&["run", "--levels", "0,1"])),
        ("unknown flag", folder.recommend(&["--result", "knee.json"])),
        ("both sources", folder.recommend(&["--results", "knee.json", "--criterion-dir", "."])),
    ];
    assert!(usage.iter().all(|(_, ran)| ran.code == 2));
    same("invalid_usage", &messages(&usage));
}

/// config.yaml < .env < environment < flags, told by `check`.
#[test]
fn precedence_of_settings() {
    let server = Simulator::start(SimulatorConfig { base_step_ms: 0.1, ..SimulatorConfig::default() }, 0).unwrap();
    let folder = Folder::with(&format!("llm: {{endpoint: '{}', model: from-config}}\n", server.base_url()));
    let model = |ran: Ran| {
        assert_eq!(ran.code, 0, "{}", ran.shown());
        ran.stdout
            .lines()
            .find_map(|line| line.strip_prefix("model     "))
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(model(folder.tool(&["check"])), "from-config");
    folder.write(".env", "LLM_MODEL=from-dotenv\n");
    assert_eq!(model(folder.tool(&["check"])), "from-dotenv");
    let env = [("LLM_MODEL", "from-environment")];
    assert_eq!(model(folder.tool_with(&["check"], &env)), "from-environment");
    assert_eq!(model(folder.tool_with(&["check", "--llm-model", "from-flag"], &env)), "from-flag");
}

// ---- report ----

const BARE: &str = r#"{"levels": [{"concurrency": 1, "throughput_rps": {"estimate": 5}}, {"concurrency": 8, "throughput_rps": {"estimate": 30}}, {"concurrency": 16, "throughput_rps": {"estimate": 31}}]}"#;

#[test]
fn a_report_is_made_of_one_file_or_of_two() {
    let folder = Folder::with(SIMULATOR);
    folder.write("bare.json", BARE);
    for (args, at, parts) in [
        (
            &["knee.json"][..],
            "results/concurrency_report_knee.html",
            &["Send 20 requests in parallel", "the gates shown are the defaults"][..],
        ),
        (
            &["bare.json"],
            "results/concurrency_report_bare.html",
            &[
                "First look: about 8 in parallel, not confirmed",
                "Latency of every level",
                "The original decision: the one shown was made for this report",
            ],
        ),
        (&["bare.json", "knee.json"], "results/concurrency_report_bare_and_knee.html", &["What changed", "B: Q3-30B"]),
        (&["knee.json", "--output", "own/page.html"], "own/page.html", &["Send 20 requests in parallel"]),
    ] {
        let ran = folder.tool(&[&["report"], args].concat());
        assert_eq!((ran.code, ran.stdout), (0, format!("{at}\n")), "{}", ran.stderr);
        let page = fs::read_to_string(folder.path(at)).unwrap();
        for part in parts {
            assert!(page.contains(part), "{at}: {part}");
        }
    }
}

#[test]
fn the_levels_come_as_csv_or_json_lines_too() {
    let folder = Folder::with(SIMULATOR);
    let csv = folder.tool(&["report", "knee.json", "--format", "csv"]);
    assert_eq!((csv.code, csv.stdout.lines().count()), (0, 11), "{}", csv.stderr);
    assert!(csv.stdout.lines().nth(6).unwrap().contains(",Q3-30B,20,pass,,true,200,200,"), "{}", csv.stdout);
    let lines = folder.tool(&["report", "knee.json", "--format", "jsonl", "--output", "levels.jsonl"]);
    assert_eq!((lines.code, lines.stdout.as_str()), (0, "levels.jsonl\n"));
    assert_eq!(fs::read_to_string(folder.path("levels.jsonl")).unwrap().lines().count(), 10);
    assert!(!folder.path("results").exists());
}

#[test]
fn a_report_of_no_results_file_is_an_error() {
    let folder = Folder::with(SIMULATOR);
    let ran = folder.tool(&["report", "config.yaml"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.error().starts_with("error: config.yaml is not a results file"), "{}", ran.stderr);
    assert_eq!(folder.tool(&["report"]).code, 2);
    assert_eq!(folder.tool(&["report", "knee.json", "knee.json", "knee.json"]).code, 2);
}

// ---- run ----

/// Nothing but a config.yaml in the folder.
#[test]
fn a_quick_run_in_an_empty_folder() {
    let config = "llm: {endpoint: simulator, model: m, max_concurrent_requests: 7}\nsimulator: {base_step_ms: 0.5, per_sequence_ms: 0.01}\n";
    let folder = Folder::with(config);
    fs::remove_file(folder.path("knee.json")).unwrap();
    let ran = folder.tool(&["run", "--quick", "--levels", "1,2", "--verbose"]);
    // On a busy machine the client is the limit, and the answer provisional.
    assert!([0, 3].contains(&ran.code) && folder.config() == config, "{}", ran.shown());
    assert!(ran.stderr.contains("short visits to the levels, until the answer is certain"), "{}", ran.stderr);
    let mut results: Vec<_> = fs::read_dir(folder.path("results")).unwrap().map(|e| e.unwrap().path()).collect();
    results.sort();
    let names: Vec<_> =
        results.iter().map(|path| folder.filtered(path.file_name().unwrap().to_str().unwrap())).collect();
    assert_eq!(names, ["concurrency.prom", "concurrency_report_<time>.html", "concurrency_results_<time>.json"]);
    // The built-in prompts come in several sizes, which are told apart.
    let file: Value = serde_json::from_str(&fs::read_to_string(&results[2]).unwrap()).unwrap();
    for level in file["levels"].as_array().unwrap() {
        let sizes = level["by_size"].as_array().unwrap();
        let requests: u64 = sizes.iter().map(|size| size["requests"].as_u64().unwrap()).sum();
        assert!(sizes.len() > 1 && requests == level["requests"].as_u64().unwrap(), "{level:#}");
    }
    let is_picked = !file["recommendation"]["recommended_concurrency"].is_null();
    assert_eq!(ran.stdout.contains(" by the size of the prompts:\n"), is_picked, "{}", ran.stdout);
    let page = fs::read_to_string(&results[1]).unwrap();
    assert!(page.contains("id=\"chart-run0-timeline-in-flight\"") && page.contains("id=\"chart-run0-distribution\""));
    // Made again, it is the same, with the config's number of that day.
    folder.write("config.yaml", &config.replace("requests: 7", "requests: 9"));
    let made = folder.tool(&["report", results[2].to_str().unwrap(), "--output", "again.html"]);
    folder.write("config.yaml", config);
    assert_eq!(
        (made.code, fs::read_to_string(folder.path("again.html")).unwrap()),
        (0, page.clone()),
        "{}",
        made.shown()
    );
    assert_eq!(
        page.contains("oncurrency from 7 to ") || page.contains("Keep concurrency at 7"),
        ran.code == 0,
        "{}",
        ran.shown()
    );
    // Nobody asked the server.
    assert!(!page.contains("chart-queueing") && file["levels"][0]["server"].is_null());

    // What is on disk is decided from again, and the same snippets in a file are the same target.
    let again = folder.recommend(&["--verbose"]);
    assert_eq!(again.code, ran.code, "{}", again.shown());
    assert_eq!(again.stdout.lines().nth(1), ran.stdout.lines().find(|line| line.starts_with("level ")));
    let made = folder.tool(&["generate-test-data"]);
    assert_eq!(made.stdout, "wrote 100 snippets (seed 42) to test-data/test_snippets.json\n");
    assert_eq!(folder.recommend(&["--verbose"]).shown(), again.shown());
    let from_file = folder.recommend(&["--results", results[2].to_str().unwrap(), "--json"]);
    assert_eq!((from_file.code, &from_file.stdout[..1]), (ran.code, "{"));

    // Another request is another target.
    folder.write("config.yaml", &format!("{config}benchmark: {{request: {{max_tokens: 7}}}}\n"));
    let other = folder.recommend(&["--update-config"]);
    assert_eq!(other.code, 1);
    same("other_target", &other.stderr);
}

/// Goodput against the records of the single requests, and prices by hand.
#[test]
fn a_run_counts_what_keeps_within_the_slo_and_what_it_costs() {
    let config = "llm: {endpoint: simulator, model: m}\nbenchmark: {levels: [1, 4, 8], total_requests: 40, budget: \
                  {usd_per_million_input: 2, usd_per_million_output: 10, usd_per_hour: 3.6}}\npolicy: {objective: goodput, \
                  slo: {ttft: 0.06, latency: 10, attainment: 0.9}, max_p95_seconds: 10}\nsimulator: {slots: 4, base_step_ms: \
                  3, per_sequence_ms: 0.1, output_tokens: {distribution: fixed, tokens: 40}}\n";
    let folder = Folder::with(config);
    let ran = folder.tool(&["run", "--max-requests", "1500", "--verbose"]);
    for part in ["goodput", "in SLO", "USD/1000", "Goodput ", "1000 requests cost "] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.shown());
    }
    let (results, manifest) = left_behind(&folder);
    let run = folder.path("target/concurrency").join(manifest["run_id"].as_str().unwrap());
    let mut counted: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let visits: Vec<_> = manifest["levels"].as_array().unwrap().iter().filter(|of| of["stage"] == "visit").collect();
    for file in fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path()) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let of_file = name.strip_suffix(".jsonl").and_then(|name| name.rsplit('-').next()?.parse::<u64>().ok());
        if !name.ends_with(".jsonl") || name == "preflight.jsonl" {
            continue;
        }
        for line in fs::read_to_string(&file).unwrap().lines() {
            let request: Value = serde_json::from_str(line).unwrap();
            let visit = visits.iter().find(|of| of["round"] == request["visit"]);
            let level = visit.map(|of| of["concurrency"].as_u64().unwrap()).or(of_file);
            let Some(level) = level.filter(|_| request["phase"] == "measured") else { continue };
            let keeps = |key: &str, limit| request[key].as_f64().is_some_and(|seconds| seconds <= limit);
            let count = counted.entry(level).or_default();
            count.0 += u64::from(request["failure"].is_null() && keeps("ttft_s", 0.06) && keeps("latency_s", 10.0));
            count.1 += 1;
        }
    }
    for level in results["levels"].as_array().unwrap() {
        let (goodput, at) = (&level["goodput"], level["concurrency"].as_u64().unwrap());
        assert_eq!((goodput["met"].as_u64(), level["requests"].as_u64()), (Some(counted[&at].0), Some(counted[&at].1)));
        let figure = |value: &Value| value.as_f64().unwrap();
        let tokens = 2.0 * figure(&level["mean_input_tokens"]) + 10.0 * figure(&level["mean_output_tokens"]);
        let close = |got: &Value, want: f64| (figure(got) / want - 1.0).abs() < 1e-9;
        assert!(close(&level["usd_per_1000"]["tokens"], tokens / 1e3), "{level:#}");
        assert!(
            close(&level["usd_per_1000"]["server"], 1.0 / figure(&level["throughput_rps"]["estimate"])),
            "{level:#}"
        );
    }
    // Of eight on four slots four wait for a whole answer: 40 steps of more than 3 ms.
    let at_8 = &results["levels"][2];
    assert!(at_8["goodput"]["met"].as_u64() < at_8["requests"].as_u64(), "{at_8:#}");
    // Other limits than those of the run are counted anew from its records, but not from a results file.
    folder.write("config.yaml", &config.replace("ttft: 0.06", "ttft: 5"));
    let again = folder.recommend(&["--json"]);
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(again["levels"][2]["goodput"]["attainment"]["estimate"], 1.0, "{again:#}");
    let file = fs::read_dir(folder.path("results")).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.extension().is_some_and(|it| it == "json")).unwrap();
    let from_file = folder.recommend(&["--results", file.to_str().unwrap()]);
    assert!(from_file.stdout.contains("goodput is unknown"), "{}", from_file.shown());
}

/// The one results file and the one manifest that a run left in the folder.
fn left_behind(folder: &Folder) -> (Value, Value) {
    let only = |name: &str| {
        let mut files: Vec<_> = fs::read_dir(folder.path(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.is_dir() || file.extension().is_some_and(|ending| ending == "json"));
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    };
    let json = |path: PathBuf| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    (json(only("results")), json(only("target/concurrency").join("run.json")))
}

/// Stage, round and level of each measurement, in order.
fn measurements(manifest: &Value) -> Vec<(String, u64, u64)> {
    let of = |record: &Value| {
        let number = |key: &str| record[key].as_u64().unwrap();
        (record["stage"].as_str().unwrap().to_owned(), number("round"), number("concurrency"))
    };
    manifest["levels"].as_array().unwrap().iter().map(of).collect()
}

/// Decided again from Criterion's files and the sidecars, it is the same.
#[track_caller]
fn decided_alike(folder: &Folder, results: &Value) {
    let again: Value = serde_json::from_str(&folder.recommend(&["--json"]).stdout).unwrap();
    for key in ["status", "recommended_concurrency", "interval", "provisional", "reason"] {
        assert_eq!(again[key], results["recommendation"][key], "{key}");
    }
    // To a millionth: the last digit of a number may be lost on its way through a file.
    let figures = |levels: &Value| -> Vec<_> {
        let of = |level: &Value| {
            let rps = level["throughput_rps"]["estimate"].as_f64().unwrap();
            (level["concurrency"].clone(), level["requests"].clone(), (rps * 1e6).round())
        };
        levels.as_array().unwrap().iter().map(of).collect()
    };
    assert_eq!(figures(&again["levels"]), figures(&results["levels"]));
}

/// Throughput that rises by a third from one level to the next, and jitters: the list's own measurements decide nothing.
#[test]
fn contenders_are_visited_and_all_of_a_level_is_pooled() {
    let config = "llm: {endpoint: simulator, model: m}\npolicy: {max_p95_seconds: 60}\nsimulator: {slots: 2, \
                  base_step_ms: 0.3, per_sequence_ms: 2.7, output_tokens: {distribution: log_normal, median: 4, sigma: 1.0}}\n";
    let folder = Folder::with(config);
    let ran = folder.tool(&["run", "--levels", "1,2", "--total-requests", "60", "--max-requests", "1200"]);
    assert!(ran.code == 0 || ran.code == 3, "{}", ran.shown());
    assert!(ran.stderr.contains("each level in full, then short visits"), "{}", ran.stderr);
    assert!(ran.stderr.contains("at most 1200 requests of"), "{}", ran.stderr);
    let (results, manifest) = left_behind(&folder);
    let made = measurements(&manifest);
    assert_eq!(made[..2], [("sweep".to_owned(), 0, 1), ("sweep".to_owned(), 0, 2)]);
    let visits = &made[2..];
    assert!(!visits.is_empty() && visits.iter().zip(1..).all(|((stage, n, _), at)| stage == "visit" && *n == at));
    let ended = format!("{} visit{} ended: ", visits.len(), if visits.len() == 1 { "" } else { "s" });
    assert!(ran.stderr.contains(&ended), "{ended}: {}", ran.stderr);
    let run = folder.path("target/concurrency").join(manifest["run_id"].as_str().unwrap());
    let lines = |name: &str| fs::read_to_string(run.join(name)).unwrap();
    // What was measured before counts only where a level has nothing else.
    let warm_from_s = manifest["raced"]["warm_from_s"].as_f64().unwrap();
    let middle_s = |of: &Value| {
        let [from, to] = [0, 1].map(|at| of["window_s"][at].as_f64().unwrap());
        of["began_s"].as_f64().unwrap() + (from + to) / 2.0
    };
    for level in results["levels"].as_array().unwrap() {
        let number = level["concurrency"].as_u64().unwrap();
        let of_level = manifest["levels"].as_array().unwrap().iter().filter(|of| of["concurrency"] == number);
        let (warm, cold): (Vec<&Value>, Vec<&Value>) = of_level.partition(|of| middle_s(of) >= warm_from_s);
        // Each request of the cohorts is there once.
        let requests = |of: &&Value| {
            let visit = format!("\"visit\":{},", of["round"]);
            let (text, own) = match of["stage"].as_str().unwrap() {
                "visit" => (lines("visits.jsonl"), visit.as_str()),
                _ => (lines(&format!("level-{number}.jsonl")), ""),
            };
            text.lines().filter(|line| line.contains(own) && line.contains("\"measured\"")).count() as u64
        };
        let counted = if warm.is_empty() { cold } else { warm };
        assert_eq!(level["requests"], counted.iter().map(requests).sum::<u64>(), "{level}");
    }
    decided_alike(&folder, &results);
}

#[test]
fn a_level_says_what_it_came_to_unless_quiet() {
    let config = "llm: {endpoint: simulator, model: m}\nsimulator: {base_step_ms: 0.5, per_sequence_ms: 0.01, \
                  output_tokens: {distribution: fixed, tokens: 4}}\n";
    let folder = Folder::with(config);
    let args = ["run", "--levels", "2", "--quick"];
    let ran = folder.tool(&args);
    let line = ran.stderr.lines().find(|line| line.starts_with("level 2 ended: ")).expect("a line");
    let manifest = left_behind(&folder).1;
    let run_id = manifest["run_id"].as_str().unwrap();
    let requests = fs::read_to_string(folder.path(&format!("target/concurrency/{run_id}/level-2.jsonl"))).unwrap();
    // On a machine that was busy at first the level begins anew; what was in flight then ends after.
    let left_out = manifest["levels"][0]["left_out"]["requests"].as_u64().unwrap_or(0);
    let counted = requests.lines().count() as u64 - left_out;
    let ended: u64 = line.split(' ').nth(3).and_then(|number| number.parse().ok()).expect("a number");
    let in_flight = if left_out > 0 { 2 } else { 0 };
    assert!((counted..=counted + in_flight).contains(&ended) && line.contains("P95"), "{counted}: {line}");
    for quiet in
        [folder.tool(&[args.as_slice(), &["--quiet"]].concat()), folder.tool_with(&args, &[("LLM_BENCH_QUIET", "1")])]
    {
        assert!(!quiet.stderr.contains("level 2 ended") && quiet.stderr.contains("Plan: "), "{}", quiet.stderr);
        assert!(quiet.stdout.contains("SIMULATED: No number to recommend: "), "{}", quiet.stdout);
    }
    let textfile = fs::read_to_string(folder.path("results/concurrency.prom")).unwrap();
    assert!(
        textfile.contains("llm_concurrency_final_throughput_requests_per_second{model=\"simulated\",run=\""),
        "{textfile}"
    );
}

/// Two slots: of ten requests in flight eight wait.
#[test]
fn the_servers_own_queue_stands_beside_the_curve() {
    let config = "llm: {endpoint: simulator, model: m}\nsimulator: {slots: 2, base_step_ms: 10, per_sequence_ms: 0.1, \
                  output_tokens: {distribution: fixed, tokens: 4}}\n";
    let folder = Folder::with(config);
    folder.tool(&["run", "--levels", "1,10", "--total-requests", "100", "--max-requests", "300", "--server-metrics"]);
    let (results, manifest) = left_behind(&folder);
    let [first, last] = [0, 1].map(|at| &results["levels"][at]["server"]);
    let of_level = manifest["levels"].as_array().unwrap().iter().filter(|of| of["concurrency"] == 10);
    let readings: u64 = of_level.map(|of| of["server"]["readings"].as_u64().unwrap_or_default()).sum();
    assert_eq!(last["readings"], readings);
    let number = |load: &Value, key: &str| load[key].as_f64().unwrap();
    assert!(number(first, "waiting") < 1.0 && number(first, "readings") >= 2.0, "{first}");
    assert!(number(last, "running") <= 2.0 && number(last, "waiting") > 5.0, "{last}");
    let mut files = fs::read_dir(folder.path("results")).unwrap().map(|entry| entry.unwrap().path());
    let page = files.find(|path| path.extension().is_some_and(|ending| ending == "html")).unwrap();
    assert!(fs::read_to_string(page).unwrap().contains("id=\"chart-queueing\""));
}

/// The same address for both: nobody must have called there.
#[test]
fn a_taken_metrics_address_ends_the_run_before_anything_is_sent() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    taken.set_nonblocking(true).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = Folder::with(&format!("llm: {{endpoint: 'http://{address}/v1', model: m}}\n"));
    let ran = folder.tool(&["run", "--metrics-addr", &address]);
    assert_eq!(ran.code, 1);
    assert!(ran.error().starts_with("error: cannot serve metrics on 127.0.0.1:PORT: "), "{}", ran.shown());
    assert!(ran.error().contains("Nothing was sent"), "{}", ran.error());
    assert_eq!(taken.accept().map(drop).map_err(|error| error.kind()), Err(std::io::ErrorKind::WouldBlock));
}

#[test]
fn auto_finds_its_levels_and_keeps_to_the_budget() {
    let config = "llm: {endpoint: simulator, model: m}\nsimulator: {base_step_ms: 0.5, per_sequence_ms: 0.01, \
                  output_tokens: {distribution: fixed, tokens: 4}}\n";
    let folder = Folder::with(config);
    let ran = folder.tool(&["run", "--levels", "auto", "--max-requests", "50", "--update-config", "--verbose"]);
    assert_eq!((ran.code, folder.config().as_str()), (3, config), "{}", ran.shown());
    assert!(ran.stderr.contains("Plan: levels auto, from 1 to at most 50, against"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("nothing is started that could exceed benchmark.budget.max_requests"),
        "{}",
        ran.stderr
    );
    // Preflight and three visits of eight or a few more; another one might take 24.
    let note = "note: Level 8 was not measured: benchmark.budget.max_requests has no room for it";
    assert!(ran.stdout.contains(note) && ran.stdout.contains("before the answer was certain"), "{}", ran.stdout);
    let (results, manifest) = left_behind(&folder);
    let visits = [(1, 1), (2, 2), (3, 4)].map(|(visit, level)| ("visit".to_owned(), visit, level));
    assert_eq!(measurements(&manifest), visits);
    assert_eq!(manifest["settings"]["levels"], serde_json::json!([1, 2, 4]));
    assert_eq!(results["raced"]["decided"], false);
    decided_alike(&folder, &results);
}

/// Against a server that does not work: the message, exit 1, and config.yaml as it was.
#[track_caller]
fn run_against(name: &str, url: &str, key: Option<&str>) {
    let config = "llm: {endpoint: simulator, model: m, request_timeout: 0.2}\n";
    let folder = Folder::with(config);
    let env: Vec<_> = key.map(|key| ("LLM_API_KEY", key)).into_iter().collect();
    let args = ["run", "--quick", "--levels", "1,2", "--update-config", "--llm-endpoint", url];
    let ran = folder.tool_with(&args, &env);
    assert_eq!((ran.code, folder.config().as_str()), (1, config), "{}", ran.shown());
    assert!(!ran.shown().contains("hunter2"), "{}", ran.shown());
    same(name, ran.error());
    // Each request is on record even so.
    let runs: Vec<_> = fs::read_dir(folder.path("target/concurrency")).unwrap().collect();
    assert_eq!(runs.len(), 1);
    let run = runs[0].as_ref().unwrap().path();
    let lines = |name: &str| fs::read_to_string(run.join(name)).unwrap_or_default();
    assert!(lines("preflight.jsonl").contains("\"failure\":\""));
    // What is refused twice ends the run; anything else may pass.
    let refused = lines("preflight.jsonl").contains("ClientError");
    assert_eq!(lines("visits.jsonl").contains("\"failure\":\""), !refused);
}

fn answering(status: u16, content_type: &str, body: &str) -> MockServer {
    let server = MockServer::start();
    server.mock(|when, then| {
        when.any_request();
        then.status(status).header("content-type", content_type).body(body);
    });
    server
}

#[test]
fn run_against_nobody() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    run_against("run_refused", &format!("http://127.0.0.1:{port}/v1"), None);
}

#[test]
fn run_against_a_wrong_path() {
    let server = answering(404, "application/json", r#"{"detail": "Not Found"}"#);
    run_against("run_404", &server.url("/api"), None);
}

#[test]
fn run_with_a_wrong_model() {
    let body = r#"{"error": {"message": "The model `m` does not exist.", "type": "NotFoundError", "code": 404}}"#;
    let server = answering(404, "application/json", body);
    run_against("run_wrong_model", &server.url("/v1"), None);
}

#[test]
fn check_says_what_works_and_what_does_not() {
    let dead = {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        format!("http://127.0.0.1:{port}/v1")
    };
    let server = MockServer::start();
    server.mock(|when, then| {
        when.path("/v1/models");
        then.status(200).body(r#"{"object": "list", "data": [{"id": "llama"}, {"id": "qwen"}]}"#);
    });
    server.mock(|when, then| {
        when.path("/v1/chat/completions");
        then.status(404).body(r#"{"error": {"message": "The model `m` does not exist."}}"#);
    });
    let simulator = Simulator::start(SimulatorConfig::default(), 0).unwrap();
    let folder = Folder::with("llm: {endpoint: simulator, model: m}\n");
    let check = |url: &str| folder.tool(&["check", "--llm-endpoint", url]);
    let times = Regex::new(r"\d+ ms").unwrap();
    let shown = |(name, ran): &(&str, Ran)| format!("## {name}: {}\n", times.replace_all(&ran.shown(), "T ms"));
    let base = simulator.base_url();
    same(
        "check",
        &[
            ("nobody there", check(&dead)),
            ("a model that the server does not know", check(&server.url("/v1"))),
            ("a good server", check(&base)),
            ("its base URL with a slash", check(&format!("{base}/"))),
            ("its base URL without /v1", check(base.trim_end_matches("/v1"))),
            ("the embedded simulator", check("simulator")),
        ]
        .iter()
        .map(shown)
        .collect::<String>(),
    );
}

#[test]
fn run_with_a_wrong_key() {
    let body = r#"{"error": {"message": "Incorrect API key provided", "type": "invalid_request_error"}}"#;
    let server = answering(401, "application/json", body);
    run_against("run_401", &server.url("/v1"), Some("hunter2"));
}

#[test]
fn run_against_a_server_that_hangs() {
    // The system accepts connections; nobody reads them.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    run_against("run_hangs", &format!("http://{}/v1", listener.local_addr().unwrap()), None);
}

#[test]
fn run_against_a_web_page() {
    let server = answering(200, "text/html", "<!DOCTYPE html><html><body>Welcome</body></html>");
    run_against("run_html", &server.url("/v1"), None);
}

#[test]
fn the_fixture_is_what_the_reader_takes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("test-data/results/knee_at_20.json");
    let file = llm_concurrency::record::ResultsFile::read(&path).unwrap();
    assert!(file.unknown.is_empty() && file.levels.iter().all(|level| level.unknown.is_empty()), "{file:?}");
}
