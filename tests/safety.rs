//! Nothing wrong is measured, nothing wrong is written: mistakes end before the first request, or in a refusal.

#![cfg(feature = "suite")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Output;

use llm_concurrency::simulator::{Simulator, SimulatorConfig};
use serde_json::Value;
use servers::RawServer;

mod servers;

const KNEE: &str = include_str!("../test-data/results/knee_at_20.json");
/// A server that answers within a millisecond or two, so that a sweep is over soon.
const FAST: &str = "simulator: {base_step_ms: 0.2, per_sequence_ms: 0.01, prefill_ms_per_token: 0, \
                    output_tokens: {distribution: fixed, tokens: 4}}\n";

fn run(folder: &Path, env: &[(&str, &str)], args: &[&str]) -> Output {
    servers::binary(folder).envs(env.iter().copied()).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The command fails with this code and these words, config.yaml stays as it was, and nothing was measured.
#[track_caller]
fn refused(config: &str, env: &[(&str, &str)], args: &[&str], code: i32, words: &[&str]) {
    let folder = servers::folder(config);
    let ran = run(folder.path(), env, args);
    let stderr = text(&ran.stderr);
    assert_eq!(ran.status.code(), Some(code), "{stderr}");
    assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
    assert_eq!(fs::read_to_string(folder.path().join("config.yaml")).unwrap(), config);
    assert!(!folder.path().join("target").exists(), "something was measured: {stderr}");
}

#[test]
fn a_misspelt_endpoint_measures_nothing() {
    let config = "llm: {endpont: 'http://localhost:8000/v1', model: my-model, max_concurrent_requests: 4}\n";
    refused(config, &[], &["run", "--levels", "1,2", "--update-config"], 1, &["`endpont`", "`endpoint`"]);
    let config = "llm: {endpoint: simulator, max_concurent_requests: 4}\n";
    refused(config, &[], &["run", "--levels", "1,2", "--update-config"], 1, &["`max_concurrent_requests`"]);
    let config = "llm: {endpoint: simulator, max_concurrent_requests: 4}\n";
    let env = [("LLM_BENCH_LEVEL", "1,2")];
    refused(config, &env, &["run", "--update-config"], 1, &["LLM_BENCH_LEVEL", "LEVELS"]);
    refused("llm: {model: m}\n", &[], &["run"], 1, &["llm.endpoint is missing"]);
}

/// The numbers of the simulator belong to nobody's server.
#[test]
fn a_simulated_number_is_written_only_where_the_config_names_the_simulator() {
    let real = "llm: {endpoint: 'http://127.0.0.1:9/v1', model: Q3-30B, max_concurrent_requests: 4}\n";
    let env = [("LLM_ENDPOINT", "simulator")];
    let words = ["the embedded simulator was measured", "Nothing was measured"];
    refused(real, &env, &["run", "--update-config"], 1, &words);

    // From a results file too; and every place where the number stands says what it is of.
    let folder = servers::folder(real);
    let simulated = KNEE.replace("http://llm.example/v1", "simulator");
    fs::write(folder.path().join("simulated.json"), &simulated).unwrap();
    let decide =
        |more: &[&str]| run(folder.path(), &[], &[&["recommend", "--results", "simulated.json"], more].concat());
    let written = decide(&["--update-config", "--verbose"]);
    assert_eq!(written.status.code(), Some(3));
    assert_eq!(fs::read_to_string(folder.path().join("config.yaml")).unwrap(), real);
    let stdout = text(&written.stdout);
    assert!(stdout.contains("Optimal concurrency: 20  (SIMULATED, status ok"), "{stdout}");
    assert!(!stdout.contains("Q3-30B"), "{stdout}");
    let json: Value = serde_json::from_slice(&decide(&["--json"]).stdout).unwrap();
    assert_eq!(json["simulated"], true);
    let compared = text(&decide(&["--baseline", "simulated.json"]).stdout);
    assert!(compared.contains("simulated.json (SIMULATED"), "{compared}");
    let page = fs::read_to_string(folder.path().join("results/concurrency_report_simulated.html")).unwrap();
    assert!(page.contains("<title>SIMULATED") && page.contains(">SIMULATED: Send 20") && !page.contains("Q3-30B"));

    let own = "llm: {endpoint: simulator, max_concurrent_requests: 4}\n";
    fs::write(folder.path().join("config.yaml"), own).unwrap();
    assert_eq!(decide(&["--update-config"]).status.code(), Some(0));
    assert_eq!(fs::read_to_string(folder.path().join("config.yaml")).unwrap(), own.replace('4', "20"));
}

#[test]
fn a_quick_run_measures_the_levels_it_was_given_and_says_why_nothing_is_written() {
    let folder = servers::folder(&format!("llm: {{endpoint: simulator}}\n{FAST}"));
    let quick = |more: &[&str]| {
        let ran = run(folder.path(), &[], &[&["run", "--quick", "--levels", "1,5,10,20,40"], more].concat());
        (text(&ran.stdout), text(&ran.stderr), ran.status.code())
    };
    let (stdout, stderr, code) = quick(&[]);
    for level in [1, 5, 10, 20, 40] {
        assert!(stdout.lines().any(|line| line.trim_start().starts_with(&format!("{level} "))), "{level}: {stdout}");
    }
    // On a busy machine the client is the limit, and the answer provisional.
    assert!([Some(0), Some(3)].contains(&code), "{stdout}{stderr}");
    // Too few requests for any answer that is sure.
    let (stdout, stderr, code) = quick(&["--max-requests", "100"]);
    assert_eq!(code, Some(3), "{stdout}{stderr}");
    assert!(stderr.contains("exit code 3") && stderr.contains("status unresolved"), "{stderr}");
    assert!(stdout.contains("before the answer was certain"), "{stdout}");
}

/// Some servers answer to any name with the one model they have.
#[test]
fn a_model_that_the_server_does_not_list_is_named() {
    let server = Simulator::start(SimulatorConfig { base_step_ms: 0.2, ..SimulatorConfig::default() }, 0).unwrap();
    let folder = servers::folder(&format!("llm: {{endpoint: '{}', model: other}}\n", server.base_url()));
    let ran = run(folder.path(), &[], &["run", "--quick", "--levels", "1,2"]);
    let (stdout, stderr) = (text(&ran.stdout), text(&ran.stderr));
    assert!(stderr.contains("does not list the model other; it lists: simulated"), "{stderr}");
    assert!(stdout.contains("The server lists other models but not llm.model"), "{stdout}");
    let again = text(&run(folder.path(), &[], &["recommend"]).stdout);
    assert!(again.contains("The server lists other models but not llm.model"), "{again}");
}

/// Answers well, but refuses what is longer than this many bytes.
fn short_of_context(most: usize) -> RawServer {
    RawServer::start(move |request, stream| {
        let (status, body) = if request.len() > most {
            (400, r#"{"error": {"message": "the request exceeds the available context size (1024 tokens)"}}"#)
        } else {
            (200, r#"{"choices": [{"message": {"content": "Yes"}, "finish_reason": "stop"}]}"#)
        };
        let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}", body.len());
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).is_ok()
    })
}

#[test]
fn prompts_longer_than_the_context_end_the_run_after_three_requests() {
    let server = short_of_context(4_000);
    let config = format!("llm: {{endpoint: '{}', model: m, max_concurrent_requests: 4}}\n", server.base_url());
    let folder = servers::folder(&config);
    for (command, requests) in [(["run", "--update-config"].as_slice(), 3), (&["check"], 3)] {
        server.requests.lock().unwrap().clear();
        let ran = run(folder.path(), &[], command);
        let stderr = text(&ran.stderr);
        assert_eq!(ran.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains("refuses the longest") && stderr.contains("exceeds the available context size"),
            "{stderr}"
        );
        let sent = server.requests.lock().unwrap().iter().filter(|request| request.starts_with("POST")).count();
        assert_eq!(sent, requests);
    }
    assert_eq!(fs::read_to_string(folder.path().join("config.yaml")).unwrap(), config);
}

#[test]
fn what_could_not_be_written_in_the_end_is_refused_before_anything_is_sent() {
    let server = Simulator::start(SimulatorConfig::default(), 0).unwrap();
    let llm = |rest: &str| format!("llm: {{endpoint: '{}', {rest}}}\n", server.base_url());
    let update = ["run", "--levels", "1,2", "--update-config"];
    let alias = format!("n: &n 4\n{}", llm("max_concurrent_requests: *n"));
    refused(&alias, &[], &update, 1, &["alias"]);
    let placeholder = llm("max_concurrent_requests: 10").replace("10}", "10, model: m}");
    for key in
        ["benchmark.new", "policy.tolerance", "llm.max_concurent_requests", "llm.retry_attempts", "llm.headers.x"]
    {
        let args = [update.as_slice(), &["--config-key", key]].concat();
        refused(&placeholder, &[], &args, 1, &["--config-key", key]);
    }
    let folder = servers::folder(&placeholder);
    let file = folder.path().join("config.yaml");
    let mut permissions = fs::metadata(&file).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&file, permissions).unwrap();
    let ran = run(folder.path(), &[], &update);
    assert_eq!(ran.status.code(), Some(1));
    assert!(text(&ran.stderr).contains("read-only"), "{}", text(&ran.stderr));
    assert_eq!(server.log().len(), 0);
}

#[test]
fn nothing_and_a_number_in_quotes_are_filled() {
    for (before, after) in [("null", "20"), ("\"10\"", "\"20\"")] {
        let config = |value: &str| {
            format!("llm: {{endpoint: 'http://llm.example/v1', model: Q3-30B, max_concurrent_requests: {value}}}\n")
        };
        let folder = servers::folder(&config(before));
        fs::write(folder.path().join("knee.json"), KNEE).unwrap();
        let ran = run(folder.path(), &[], &["recommend", "--results", "knee.json", "--update-config"]);
        assert_eq!(ran.status.code(), Some(0), "{}", text(&ran.stderr));
        assert_eq!(fs::read_to_string(folder.path().join("config.yaml")).unwrap(), config(after));
    }
}

/// A number that overflows, a pipe and a file without end are no configuration.
#[test]
fn what_cannot_be_a_configuration_is_refused_at_once() {
    let most = ["run", "--total-requests", "18446744073709551615"];
    refused("llm: {endpoint: simulator}\n", &[], &most, 1, &["benchmark.total_requests", "at most"]);
    let folder = servers::folder("llm: {endpoint: simulator}\n");
    let large = folder.path().join("large.yaml");
    fs::write(&large, format!("llm: {{endpoint: simulator}}\nx: {}\n", "a".repeat(40 << 20))).unwrap();
    let decide = |config: &str| text(&run(folder.path(), &[], &["recommend", "--config", config]).stderr);
    assert!(decide("large.yaml").contains("at most 1 MiB"));
    let pipe = folder.path().join("pipe.yaml");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(decide("pipe.yaml").contains("not a regular file"));
}

/// A program that only wants the client is not stopped by settings of the measurement.
#[test]
fn the_client_does_not_read_the_settings_of_the_measurement() {
    let server = Simulator::start(SimulatorConfig::default(), 0).unwrap();
    let folder = servers::folder(&format!(
        "llm: {{endpoint: '{}', max_concurrent_requests: 3}}\nbenchmark: {{levels: some, nonsense: 1}}\n",
        server.base_url()
    ));
    let path = folder.path().join("config.yaml");
    assert!(llm_concurrency::LlmClient::from_file(&path).is_ok());
    let huge = fs::read_to_string(&path).unwrap().replace(": 3", ": 18446744073709551615");
    fs::write(&path, huge).unwrap();
    let error = llm_concurrency::LlmClient::from_file(&path).err().expect("a limit beyond tokio's").to_string();
    assert!(error.contains("llm.max_concurrent_requests"), "{error}");
}
