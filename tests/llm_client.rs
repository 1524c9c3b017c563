//! `LlmClient` as another program uses it: its limit, its retries, and what it gives back.

use std::collections::{HashSet, VecDeque};
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use llm_concurrency::LlmClient;
use llm_concurrency::client::Llm;
use llm_concurrency::client::outcome::Failure;
use llm_concurrency::client::{ChatRequest, LlmError};
use llm_concurrency::simulator::{RequestEnd, Simulator, SimulatorConfig};
use servers::RawServer;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

mod servers;

const HERE: &str = env!("CARGO_MANIFEST_DIR");
const GOOD: &str = r#"{"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]}"#;

fn client(base_url: &str, llm: Llm) -> LlmClient {
    let endpoint = base_url.parse().expect("a URL");
    LlmClient::from_config(Llm { endpoint: Some(endpoint), ..llm }, None).expect("a client")
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A server that gives these answers (status, further header lines) one after the other, then good ones.
fn scripted(answers: &[(u16, &str)]) -> RawServer {
    let answers: VecDeque<(u16, String)> = answers.iter().map(|(status, more)| (*status, (*more).to_owned())).collect();
    let answers = Mutex::new(answers);
    RawServer::start(move |_, stream| answer(&answers, stream))
}

fn answer(answers: &Mutex<VecDeque<(u16, String)>>, stream: &mut TcpStream) -> bool {
    let (status, more) = answers.lock().unwrap().pop_front().unwrap_or((200, String::new()));
    let body = if status == 200 { GOOD } else { r#"{"error": {"message": "not now"}}"# };
    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{more}content-length: {}", body.len());
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).is_ok()
}

fn sent(server: &RawServer) -> usize {
    server.requests.lock().unwrap().len()
}

#[test]
fn a_hundred_calls_from_many_clones_never_exceed_the_limit() {
    let simulator = Simulator::start(SimulatorConfig::default(), 0).unwrap();
    let client = client(&simulator.base_url(), Llm { max_concurrent_requests: 5, ..Llm::default() });
    let answers = runtime().block_on(async {
        let mut calls: JoinSet<_> = (0..100)
            .map(|n| {
                let client = client.clone();
                let question = ChatRequest { max_tokens: Some(4), ..ChatRequest::user(format!("{n}?")) };
                async move { client.chat(&question).await }
            })
            .collect();
        let mut answers = Vec::new();
        while let Some(answer) = calls.join_next().await {
            answers.push(answer.unwrap().unwrap());
        }
        answers
    });
    assert!(answers.iter().all(|answer| !answer.content.is_empty() && answer.attempts == 1));
    assert_eq!((answers.len(), simulator.log().len(), simulator.peak_in_flight()), (100, 100, 5));
}

/// Of a static there is one a process, so the calls are made by this test in a process of its own, which inherits
/// where the simulator is.
#[test]
fn callers_all_over_a_process_share_one_client_and_its_limit() {
    const ENDPOINT: &str = "TEST_SHARED_ENDPOINT";
    if let Ok(endpoint) = std::env::var(ENDPOINT) {
        return ask_from_all_over(&endpoint);
    }
    let simulator = Simulator::start(SimulatorConfig::default(), 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    servers::clean(&mut child, folder.path());
    child.args(["--exact", "callers_all_over_a_process_share_one_client_and_its_limit"]);
    let ran = child.env(ENDPOINT, simulator.base_url()).output().unwrap();
    assert!(ran.status.success(), "{}{}", text(&ran.stdout), text(&ran.stderr));
    assert_eq!((simulator.log().len(), simulator.peak_in_flight()), (60, 3));
}

fn ask_from_all_over(endpoint: &str) {
    let error = LlmClient::shared().err().expect("there is no config.yaml yet").to_string();
    assert!(error.contains("config.yaml"), "{error}");
    std::fs::write("config.yaml", format!("llm: {{endpoint: '{endpoint}', max_concurrent_requests: 3}}\n")).unwrap();
    let first_asked = Barrier::new(8);
    let from_a_thread = || {
        first_asked.wait();
        std::ptr::from_ref(LlmClient::shared().unwrap()) as usize
    };
    let found: HashSet<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(from_a_thread)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(found.len(), 1, "one client, whoever is first");
    runtime().block_on(async {
        let ask = async |n| {
            let question = ChatRequest { max_tokens: Some(4), ..ChatRequest::user(format!("{n}?")) };
            LlmClient::shared().unwrap().chat(&question).await.unwrap()
        };
        futures_util::future::join_all((0..60).map(ask)).await;
    });
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_may_pass_is_tried_again_and_what_may_not_is_not() {
    // Answers, retries allowed, then: the attempts, the failure at the end, what the server saw.
    let cases = [
        (&[][..], 3, 1, None),
        (&[(503, ""), (429, "")], 3, 3, None),
        (&[(500, ""), (500, "")], 1, 2, Some(Failure::ServerError)),
        (&[(429, "")], 0, 1, Some(Failure::RateLimited)),
        (&[(400, "")], 3, 1, Some(Failure::ClientError)),
        (&[(401, "")], 3, 1, Some(Failure::ClientError)),
    ];
    for (answers, retry_attempts, attempts, failure) in cases {
        let server = scripted(answers);
        let client = client(&server.base_url(), Llm { retry_attempts, ..Llm::default() });
        let result = runtime().block_on(client.chat(&ChatRequest::user("Hello?")));
        let outcome = match result {
            Ok(answer) => (answer.attempts, None),
            Err(LlmError::Request { attempts, failure, status, ref message, .. }) => {
                assert!(message.contains("not now"), "{message}");
                assert_eq!(status, answers.last().map(|(status, _)| *status));
                (attempts, Some(failure))
            }
            Err(other) => panic!("{other}"),
        };
        assert_eq!((outcome, sent(&server) as u32), ((attempts, failure), attempts), "{answers:?}");
    }
}

#[test]
fn retry_after_is_waited_for() {
    // The first backoff of its own would be half a second at most.
    let server = scripted(&[(429, "retry-after: 1\r\n")]);
    let client = client(&server.base_url(), Llm::default());
    let began = Instant::now();
    let answer = runtime().block_on(client.chat(&ChatRequest::user("Hello?"))).unwrap();
    assert_eq!(answer.attempts, 2);
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

#[test]
fn a_call_that_waits_for_its_next_attempt_leaves_its_place_to_others() {
    let server = scripted(&[(503, "retry-after: 1\r\n")]);
    let client = client(&server.base_url(), Llm { max_concurrent_requests: 1, ..Llm::default() });
    let runtime = runtime();
    runtime.block_on(async {
        let patient = tokio::spawn({
            let client = client.clone();
            async move { client.chat(&ChatRequest::user("patient")).await }
        });
        while sent(&server) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        client.chat(&ChatRequest::user("other")).await.unwrap();
        assert_eq!(patient.await.unwrap().unwrap().attempts, 2);
    });
    let order: Vec<bool> = server.requests.lock().unwrap().iter().map(|text| text.contains("other")).collect();
    assert_eq!(order, [false, true, false], "one place, and the other call had it between the two attempts");
}

#[test]
fn the_simulator_of_the_suite_is_no_endpoint_for_a_client() {
    let endpoint = Some("simulator".parse().unwrap());
    let error = LlmClient::from_config(Llm { endpoint, ..Llm::default() }, None).err().expect("no URL").to_string();
    assert!(error.contains("llm-concurrency simulate") && error.contains("LLM_ENDPOINT"), "{error}");
    let error = LlmClient::from_config(Llm::default(), None).err().expect("no endpoint").to_string();
    assert!(error.contains("llm.endpoint is missing"), "{error}");
}

/// A package of its own in a new folder, locked to the same versions as this one.
fn other_package(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    std::fs::copy(Path::new(HERE).join("Cargo.lock"), folder.path().join("Cargo.lock")).unwrap();
    folder
}

/// Cargo in such a package, with what this package's tests have compiled already.
fn cargo_in(folder: &Path, args: &[&str]) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    servers::clean(&mut cargo, folder);
    // What cargo tells this test about its package would have build scripts run again.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG") || name.starts_with("CARGO_MANIFEST")) {
            cargo.env_remove(name);
        }
    }
    cargo.args(args).arg("--target-dir").arg(Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap());
    cargo
}

/// README's program, as it stands there, in a crate of its own with README's dependencies. Compiles them anew.
#[test]
#[ignore = "compiles the client's dependencies once more"]
fn ci_the_program_of_readme_in_another_crate_keeps_to_the_limit() {
    let readme = std::fs::read_to_string(Path::new(HERE).join("README.md")).unwrap();
    let section = readme.split("## LlmClient in your own program").nth(1).expect("README has the section");
    let block = |language: &str| {
        let start = section.split(&format!("```{language}\n")).nth(1).expect("the block");
        start.split("```").next().expect("its end").to_owned()
    };
    let simulator = Simulator::start(SimulatorConfig::default(), 0).unwrap();
    let dependencies = block("toml").replace("../llm-concurrency", HERE);
    let package = other_package(&[
        ("Cargo.toml", &format!("[package]\nname = \"outside\"\nedition = \"2024\"\n\n{dependencies}")),
        ("config.yaml", &format!("llm: {{endpoint: '{}', max_concurrent_requests: 5}}\n", simulator.base_url())),
        ("src/main.rs", &block("rust")),
    ]);
    let ran = cargo_in(package.path(), &["run", "--quiet"]).output().unwrap();
    let stdout = text(&ran.stdout);
    assert!(ran.status.success(), "{stdout}{}", text(&ran.stderr));
    let log = simulator.log();
    assert!(log.iter().all(|record| record.outcome == RequestEnd::Completed));
    assert_eq!((stdout.lines().count(), log.len(), simulator.peak_in_flight()), (100, 100, 5));
    println!("100 answers, 100 requests at the server, at most {} at once", simulator.peak_in_flight());
}

/// The whole suite as the bench of a package that has only a config.yaml and three lines. Compiles it anew.
#[test]
#[ignore = "compiles the suite's dependencies once more"]
fn ci_cargo_bench_of_another_package_is_the_whole_suite() {
    let package = other_package(&[
        (
            "Cargo.toml",
            &format!(
                "[package]\nname = \"outside\"\nedition = \"2024\"\n\n\
                 [dev-dependencies]\nllm-concurrency = {{ path = '{HERE}' }}\n\n\
                 [[bench]]\nname = \"concurrency\"\nharness = false\n"
            ),
        ),
        ("config.yaml", "llm: {endpoint: simulator, max_concurrent_requests: 5}\n"),
        ("src/lib.rs", ""),
        ("benches/concurrency.rs", "fn main() -> std::process::ExitCode {\n    llm_concurrency::bench()\n}\n"),
    ]);
    // Unoptimised, since nothing here asks how fast it is.
    let mut cargo = cargo_in(package.path(), &["bench", "--profile", "dev", "--bench", "concurrency"]);
    let ran = cargo.envs([("LLM_BENCH_LEVELS", "1,2"), ("LLM_BENCH_TOTAL_REQUESTS", "40")]).output().unwrap();
    let output = text(&ran.stdout) + &text(&ran.stderr);
    assert!(ran.status.success(), "{output}");
    let results: Vec<_> = std::fs::read_dir(package.path().join("results")).expect("results").flatten().collect();
    let results = results.iter().find(|entry| entry.path().extension().is_some_and(|end| end == "json"));
    let results = std::fs::read_to_string(results.expect("a results file").path()).unwrap();
    let results: serde_json::Value = serde_json::from_str(&results).unwrap();
    let levels = results["levels"].as_array().expect("levels").iter().map(|level| level["concurrency"].as_u64());
    assert_eq!(levels.collect::<Vec<_>>(), [Some(1), Some(2)]);
    for level in [1, 2] {
        let estimates = format!("target/criterion/concurrency/level/{level}/new/estimates.json");
        assert!(package.path().join(&estimates).exists(), "{estimates}: {output}");
    }
    assert!(output.contains("SIMULATED: ") && output.contains("  verdict\n"), "{output}");
    assert!(!output.contains("cargo run --bin"), "this package has no such program: {output}");
}
