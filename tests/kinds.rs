//! Each kind of request from end to end, the headers it carries, and what `check` prints of it.

#![cfg(feature = "suite")]

mod servers;

use std::io::Write;
use std::path::Path;
use std::process::Command;

use llm_concurrency::client::outcome::{Failure, RequestOutcome};
use llm_concurrency::client::{Llm, LlmClient, RequestKind, RequestSettings};
use llm_concurrency::load::closed_loop::LoopPlan;
use llm_concurrency::simulator::{Fault, FaultRate, Faults, OutputTokens, Simulator, SimulatorConfig};
use serde_json::{Value, json};
use servers::{RawServer, ok};

const KINDS: [(&str, RequestKind); 5] = [
    ("chat", RequestKind::Chat),
    ("completion", RequestKind::Completion),
    ("embedding", RequestKind::Embedding),
    ("responses", RequestKind::Responses),
    ("messages", RequestKind::Messages),
];

fn server(faults: Faults) -> SimulatorConfig {
    SimulatorConfig {
        base_step_ms: 1.0,
        per_sequence_ms: 0.0,
        output_tokens: OutputTokens::Uniform { min: 2, max: 12 },
        prefix_cache: true,
        faults,
        ..SimulatorConfig::default()
    }
}

fn measure(simulator: &Simulator, kind: RequestKind, stream: bool) -> Vec<RequestOutcome> {
    let request = RequestSettings { kind, stream, max_tokens: 8, ..RequestSettings::default() };
    servers::measure(&simulator.base_url(), &Llm::default(), &request, &LoopPlan::new(4, 60, 4, 10, 1))
}

fn sum(tokens: impl Iterator<Item = u32>) -> u64 {
    tokens.map(u64::from).sum()
}

#[test]
fn the_tokens_of_every_kind_are_those_of_the_servers_log() {
    for (name, kind) in KINDS {
        for stream in [true, false] {
            let what = format!("{name}, stream: {stream}");
            let simulator = Simulator::start(server(Faults::default()), 0).unwrap();
            let ours = measure(&simulator, kind, stream);
            let theirs = simulator.log();
            assert_eq!(ours.len(), theirs.len(), "{what}");
            let failed = ours.iter().find(|line| !line.is_success());
            assert_eq!(failed, None, "{what}");
            let generates = kind != RequestKind::Embedding;
            assert!(ours.iter().all(|line| line.ttft_s.is_some() == (stream && generates)), "{what}");
            assert_eq!(
                sum(ours.iter().flat_map(|line| line.input_tokens)),
                sum(theirs.iter().map(|r| r.prompt_tokens))
            );
            assert_eq!(
                sum(ours.iter().flat_map(|line| line.output_tokens)),
                sum(theirs.iter().map(|r| r.output_tokens))
            );
            assert!(ours.iter().all(|line| line.cached_tokens.is_some() == generates), "{what}");
            assert_eq!(
                sum(ours.iter().flat_map(|line| line.cached_tokens)),
                sum(theirs.iter().map(|r| r.cached_tokens))
            );
            if stream && generates {
                assert!(ours.iter().all(|line| Some(line.chunks) == line.output_tokens), "{what}");
            }
            let reasoning = (kind == RequestKind::Responses).then_some(0);
            assert!(ours.iter().all(|line| line.reasoning_tokens == reasoning), "{what}");
        }
    }
}

#[test]
fn what_breaks_a_stream_breaks_it_in_every_kind() {
    let faults = [
        (Fault::CutStream, Failure::Malformed),
        (Fault::MalformedJson, Failure::Malformed),
        (Fault::GarbageSse, Failure::Malformed),
        (Fault::EmptyOutput, Failure::EmptyOutput),
        (Fault::Error500, Failure::ServerError),
    ];
    for (name, kind) in KINDS.into_iter().skip(3) {
        for stream in [true, false] {
            for (fault, failure) in faults {
                let mut rates = Faults::default();
                rates.set(FaultRate { fault, rate: 0.3 });
                let simulator = Simulator::start(server(rates), 0).unwrap();
                let ours = measure(&simulator, kind, stream);
                let faulty = simulator.log().iter().filter(|record| record.fault == Some(fault)).count();
                let failed: Vec<_> = ours.iter().filter(|line| line.failure.is_some()).collect();
                let what = format!("{name}, stream: {stream}, {fault}");
                assert!(faulty > 0 && failed.iter().all(|line| line.failure == Some(failure)), "{what}: {failed:?}");
                assert_eq!(failed.len(), faulty, "{what}");
            }
        }
    }
}

/// An answer by hand: its kind and its body, which is a stream if it begins as one.
struct Case {
    kind: RequestKind,
    body: String,
    /// Failure, chunks with content; tokens of the prompt, from the cache, of the answer, of these for reasoning.
    expected: (Option<Failure>, u32, [Option<u32>; 4]),
}

fn events<const N: usize>(events: [Value; N]) -> String {
    events.map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default())).concat()
}

#[test]
fn answers_as_the_real_servers_write_them() {
    use RequestKind::{Chat, Messages, Responses};
    let case = |kind, body, failure, chunks, tokens| Case { kind, body, expected: (failure, chunks, tokens) };
    let usage = json!({"input_tokens": 9, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 30,
        "output_tokens_details": {"reasoning_tokens": 20}});
    let counted = [Some(9), Some(4), Some(30), Some(20)];
    let thought = json!({"type": "reasoning", "summary": []});
    let said = json!({"type": "message", "content": [{"type": "output_text", "text": "yes"}]});
    let ended = |status: &str, output: Value| json!({"object": "response", "status": status, "output": output, "usage": usage, "error": null});
    let call = json!([{"type": "function_call", "arguments": "{}"}]);
    let created =
        json!({"type": "response.created", "response": {"status": "in_progress", "output": [], "usage": null}});
    let delta = |kind: &str| json!({"type": format!("response.{kind}.delta"), "delta": "x"});
    let end = |kind: &str| json!({"type": format!("response.{kind}"), "response": ended(kind, json!([thought, said]))});
    let start = json!({"type": "message_start", "message": {"content": [], "stop_reason": null,
        "usage": {"input_tokens": 3, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 2, "output_tokens": 1}}});
    let piece = |delta: Value| json!({"type": "content_block_delta", "index": 0, "delta": delta});
    let stopped = |tokens: u32| json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": tokens}});
    let stop = json!({"type": "message_stop"});
    let (read, nothing) = ([Some(10), Some(5), Some(30), None], [None; 4]);
    let overloaded = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
    let limited = json!({"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}});
    let failed = json!({"type": "response.failed", "response": {"status": "failed",
        "error": {"code": "rate_limit_exceeded", "message": "slow down"}}});
    let cases = [
        case(Responses, ended("completed", json!([thought, said])).to_string(), None, 1, counted),
        case(Responses, ended("incomplete", call).to_string(), None, 1, counted),
        // All of it went into reasoning that is not shown: tokens and an end, as with a first token that ends.
        case(Responses, ended("incomplete", json!([thought])).to_string(), None, 0, counted),
        case(Responses, ended("in_progress", json!([])).to_string(), Some(Failure::EmptyOutput), 0, counted),
        case(
            Responses,
            events([created.clone(), delta("reasoning_text"), delta("output_text"), end("completed")]),
            None,
            2,
            counted,
        ),
        case(
            Responses,
            events([delta("function_call_arguments"), end("incomplete")]) + "data: [DONE]\n\n",
            None,
            1,
            counted,
        ),
        case(Responses, events([created.clone(), delta("output_text")]), Some(Failure::Malformed), 1, nothing),
        case(Responses, events([created, delta("output_text"), failed]), Some(Failure::RateLimited), 1, nothing),
        case(
            Responses,
            events([json!({"type": "error", "code": "x", "message": "m"})]),
            Some(Failure::ServerError),
            0,
            nothing,
        ),
        case(
            Messages,
            events([
                start.clone(),
                json!({"type": "ping"}),
                piece(json!({"thinking": "hm"})),
                piece(json!({"signature": "s"})),
                piece(json!({"text": "yes"})),
                piece(json!({"partial_json": "{"})),
                stopped(30),
                stop.clone(),
            ]),
            None,
            3,
            read,
        ),
        case(
            Messages,
            events([start.clone(), stopped(0), stop]),
            Some(Failure::EmptyOutput),
            0,
            [Some(10), Some(5), Some(0), None],
        ),
        case(
            Messages,
            events([start.clone(), piece(json!({"text": "yes"}))]),
            Some(Failure::Malformed),
            1,
            [Some(10), Some(5), Some(1), None],
        ),
        case(Messages, events([overloaded]), Some(Failure::ServerError), 0, nothing),
        case(Messages, events([limited]), Some(Failure::RateLimited), 0, nothing),
        case(
            Messages,
            json!({"type": "message", "content": [{"type": "tool_use", "input": {}}], "stop_reason": "tool_use",
            "usage": {"input_tokens": 10, "output_tokens": 30}})
            .to_string(),
            None,
            1,
            [Some(10), None, Some(30), None],
        ),
        case(
            Chat,
            json!({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 9,
            "completion_tokens": 30, "completion_tokens_details": {"reasoning_tokens": 20}}})
            .to_string(),
            None,
            1,
            [Some(9), None, Some(30), Some(20)],
        ),
    ];
    for Case { kind, body, expected } in cases {
        let content_type = if body.starts_with('{') { "application/json" } else { "text/event-stream" };
        let answer = ok(content_type, &body);
        let server = RawServer::start(move |_, stream| stream.write_all(answer.as_bytes()).is_ok());
        let request = RequestSettings { kind, ..RequestSettings::default() };
        let reply = servers::send_once(&server.base_url(), &Llm::default(), &request);
        let tokens = [reply.tokens.input, reply.tokens.cached, reply.tokens.output, reply.tokens.reasoning];
        let failure = reply.failure.as_ref().map(|failed| failed.kind);
        assert_eq!((failure, reply.chunks, tokens), expected, "{body} {:?}", reply.failure);
    }
}

// ---- headers ----

/// Exit code and what `check` says with these keys under `llm`, and the requests that it sent.
fn check(llm: &str, kind: &str, env: &[(&str, &str)]) -> (Option<i32>, String, Vec<String>) {
    let server =
        RawServer::start(|_, stream| stream.write_all(b"HTTP/1.1 401 X\r\ncontent-length: 2\r\n\r\nno").is_ok());
    let config = format!(
        "llm: {{endpoint: '{}', model: it's, {llm}}}\nbenchmark: {{request: {{kind: {kind}}}}}\n",
        server.base_url()
    );
    let folder = servers::folder(&config);
    let output = servers::binary(folder.path()).arg("check").envs(env.iter().copied()).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    let requests = server.requests.lock().unwrap().clone();
    (output.status.code(), said.replace(&server.base_url(), "URL"), requests)
}

/// The headers of a request but for the HTTP client's own.
fn headers(request: &str) -> Vec<&str> {
    let head = request.split_once("\r\n\r\n").unwrap().0;
    let own = ["content-type", "user-agent", "accept", "host", "content-length"];
    let mut all: Vec<&str> = head.lines().skip(1).filter(|l| !own.contains(&l.split(':').next().unwrap())).collect();
    all.sort_unstable();
    all
}

#[test]
fn each_kind_carries_its_headers_and_the_curl_line_names_them() {
    let key = [("LLM_API_KEY", "sk-12345"), ("TEAM", "red-team")];
    let user = r#""messages":[{"content":"Say hello","role":"user"}],"model":"it'\''s""#;
    let version = "anthropic-version: 2023-06-01";
    for (llm, kind, sent, curl) in [
        ("", "chat", &["authorization: Bearer sk-12345"][..], format!(r#"chat/completions -H 'Content-Type: application/json' -H "Authorization: Bearer $LLM_API_KEY" -d '{{"max_tokens":8,{user}}}'"#)),
        ("api_key_header: Api-Key", "completion", &["api-key: sk-12345"],
            r#"completions -H 'Content-Type: application/json' -H "Api-Key: $LLM_API_KEY" -d '{"max_tokens":8,"model":"it'\''s","prompt":"Say hello"}'"#.to_owned()),
        ("headers: {X-Team: '${TEAM}/1', x-n: 7}", "embedding", &["authorization: Bearer sk-12345", "x-n: 7", "x-team: red-team/1"],
            r#"embeddings -H 'Content-Type: application/json' -H "Authorization: Bearer $LLM_API_KEY" -H 'X-Team: …' -H 'x-n: …' -d '{"input":"Say hello","model":"it'\''s"}'"#.to_owned()),
        ("headers: {Authorization: 'Token ${TEAM}'}", "responses", &["authorization: Token red-team"],
            r#"responses -H 'Content-Type: application/json' -H 'Authorization: …' -d '{"input":"Say hello","max_output_tokens":8,"model":"it'\''s"}'"#.to_owned()),
        ("", "messages", &[version, "x-api-key: sk-12345"],
            format!(r#"messages -H 'Content-Type: application/json' -H '{version}' -H "x-api-key: $LLM_API_KEY" -d '{{"max_tokens":8,{user}}}'"#)),
        ("api_key_header: authorization, headers: {anthropic-version: v2}", "messages", &["anthropic-version: v2", "authorization: Bearer sk-12345"],
            format!(r#"messages -H 'Content-Type: application/json' -H "Authorization: Bearer $LLM_API_KEY" -H 'anthropic-version: …' -d '{{"max_tokens":8,{user}}}'"#)),
    ] {
        let (code, said, requests) = check(llm, kind, &key);
        assert_eq!(code, Some(1), "{said}");
        assert!(requests.len() > 1);
        for request in &requests {
            assert_eq!(headers(request), sent, "{llm} {kind}");
        }
        assert!(said.ends_with(&format!("curl -sS URL/{curl}\n")), "{llm} {kind}: {said}");
        assert!(!said.contains("sk-12345") && !said.contains("red-team"), "{said}");
    }
    let (_, said, _) = check("api_key_header: api-key, headers: {X-Team: '${TEAM}', A: b}", "chat", &key);
    assert!(said.contains("API key   set (sent as api-key)\nheaders   A, X-Team (values not shown)\n"), "{said}");
}

#[test]
fn a_header_that_cannot_be_sent_is_refused_before_anything_is_sent() {
    let secret = "zqxj";
    for (llm, message) in [
        (
            "headers: {X-Team: 'zqxj${TEAM_TOKEN}'}",
            "llm.headers.X-Team: the environment variable TEAM_TOKEN is not set",
        ),
        ("headers: {X-Team: 'zqxj${EMPTY}'}", "llm.headers.X-Team: the environment variable EMPTY is not set"),
        ("headers: {X-Team: '${zqxj-1}'}", "llm.headers.X-Team: `${` begins the name of an environment variable"),
        ("headers: {X-Team: 'zqxj${TEAM'}", "llm.headers.X-Team: `${` begins the name of an environment variable"),
        ("headers: {X-Team: \"zqxj\\u0001\"}", "llm.headers.X-Team: its value holds characters"),
        ("headers: {'zqxj \\x1b': x}", "llm.headers: expected the name of an HTTP header"),
        ("headers: {Content-Length: 1}", "llm.headers: the HTTP client sets content-length itself"),
        ("headers: {X-A: zqxj1, x-a: zqxj2}", "llm.headers.x-a: appears twice"),
        ("headers: [zqxj]", "llm.headers: expected names with a string each"),
        ("headers: zqxj", "llm.headers: expected names with a string each"),
        ("headers: {X-Team: [zqxj]}", "llm.headers: expected names with a string each"),
        ("api_key_header: host, headers: {TE: zqxj}", "llm.headers: the HTTP client sets te itself"),
        ("api_key_header: Content-Type", "llm.api_key_header: the HTTP client sets content-type itself"),
        ("api_key_header: 'zqxj key'", "llm.api_key_header: expected the name of an HTTP header"),
    ] {
        let (code, said, requests) = check(llm, "chat", &[("EMPTY", ""), ("LLM_API_KEY", "k")]);
        assert_eq!((code, requests.len()), (Some(1), 0), "{llm}: {said}");
        assert!(said.contains(message) && !said.contains(secret), "{llm}: {said}");
    }
    // The simulator gets none of them, so a trial needs no secrets.
    let folder = servers::folder("llm: {endpoint: simulator, headers: {X-Team: '${TEAM_TOKEN}'}}\n");
    assert!(servers::binary(folder.path()).arg("check").output().unwrap().status.success());
}

#[test]
fn the_client_library_sends_them_too() {
    let server =
        RawServer::start(|_, stream| stream.write_all(ok("application/json", servers::GOOD).as_bytes()).is_ok());
    let llm = Llm {
        endpoint: Some(server.base_url().parse().unwrap()),
        headers: [("X-Team", "${not a variable}")].into_iter().collect(),
        api_key_header: Some("api-key".to_owned()),
        ..Llm::default()
    };
    assert!(!format!("{llm:?}").contains("variable") && !json!(llm).to_string().contains("variable"));
    let client = LlmClient::from_config(llm, Some("k-1".into())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(client.chat(&llm_concurrency::client::ChatRequest::user("hi"))).unwrap();
    let requests = server.requests.lock().unwrap();
    assert_eq!(headers(&requests[0]), ["api-key: k-1", "x-team: ${not a variable}"]);
}

// ---- a server by others ----

/// aimock as a process of its own, which ends with the test.
struct Aimock(std::process::Child, String);

impl Drop for Aimock {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

impl Aimock {
    fn start(folder: &Path, fixtures: &Value) -> Self {
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers/aimock");
        let bin = home.join("node_modules/.bin/llmock");
        if !bin.exists() {
            std::fs::create_dir_all(&home).unwrap();
            let install = ["install", "--silent", "--prefix", ".", "@copilotkit/aimock@1.43.0"];
            assert!(Command::new("npm").args(install).current_dir(&home).status().unwrap().success());
        }
        std::fs::write(folder.join("fixtures.json"), fixtures.to_string()).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let args = ["-p", &port, "-h", "127.0.0.1", "-f", "fixtures.json", "--latency", "1", "--log-level", "warn"];
        let server = Command::new(bin).args(args).current_dir(folder).spawn().unwrap();
        let aimock = Aimock(server, format!("http://127.0.0.1:{port}"));
        for _ in 0..300 {
            if std::net::TcpStream::connect(&aimock.1["http://".len()..]).is_ok() {
                return aimock;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("aimock does not listen");
    }

    /// Requests to a route, and the tokens of prompts and answers, by its own journal.
    fn journal(&self, route: &str) -> [u64; 3] {
        // The client under test installs it only for itself.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = format!("{}/__aimock/journal?limit=1000&path=/v1/{route}", self.1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let text =
            runtime.block_on(async { reqwest::Client::new().get(url).send().await.unwrap().bytes().await.unwrap() });
        let entries: Vec<Value> = serde_json::from_slice(&text).unwrap();
        let tokens = |of: &str| {
            entries.iter().map(|e| e["response"]["fixture"]["response"]["usage"][of].as_u64().unwrap()).sum()
        };
        [entries.len() as u64, tokens("input_tokens"), tokens("output_tokens")]
    }
}

/// The whole program against aimock, which shares no line with us: its journal and our sidecars.
#[test]
#[ignore = "needs npm"]
fn ci_the_tokens_of_a_run_are_those_of_aimocks_journal() {
    // It takes the counts from here, and estimates none for these kinds.
    let usage = |input: u32, output: u32| json!({"input_tokens": input, "output_tokens": output});
    let fixtures = json!({"fixtures": [
        {"match": {"userMessage": "alpha"}, "response": {"content": "a list of values", "usage": usage(11, 23), "reasoning": "let me see"}},
        {"match": {"userMessage": "beta"}, "response": {"content": "it checks each element", "usage": usage(31, 47)}},
    ]});
    for kind in ["responses", "messages"] {
        for stream in [true, false] {
            let folder = servers::folder("");
            let aimock = Aimock::start(folder.path(), &fixtures);
            let config = format!(
                "llm: {{endpoint: '{}/v1'}}\nbenchmark: {{request: {{kind: {kind}, stream: {stream}, prompts: p.json}}}}\n",
                aimock.1
            );
            std::fs::write(folder.path().join("config.yaml"), config).unwrap();
            std::fs::write(folder.path().join("p.json"), r#"["alpha", "beta"]"#).unwrap();
            // No more than the journal keeps.
            let args = ["run", "--levels", "1,4", "--total-requests", "60", "--max-requests", "900"];
            let output = servers::binary(folder.path()).args(args).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(matches!(output.status.code(), Some(0 | 3)), "{said}");
            let mut lines: Vec<RequestOutcome> = Vec::new();
            for run in std::fs::read_dir(folder.path().join("target/concurrency")).unwrap() {
                for file in std::fs::read_dir(run.unwrap().path()).unwrap().map(|file| file.unwrap().path()) {
                    if file.extension().is_some_and(|end| end == "jsonl") {
                        let text = std::fs::read_to_string(file).unwrap();
                        lines.extend(text.lines().map(|line| serde_json::from_str::<RequestOutcome>(line).unwrap()));
                    }
                }
            }
            let failed = lines.iter().find(|line| !line.is_success());
            assert_eq!(failed, None, "{kind}, stream: {stream}");
            let sent = lines.iter().map(|line| 1 + u64::from(line.resent)).sum();
            let ours = [
                sent,
                sum(lines.iter().map(|line| line.input_tokens.unwrap())),
                sum(lines.iter().map(|line| line.output_tokens.unwrap())),
            ];
            println!(
                "{kind}, stream: {stream}: requests, input and output tokens {ours:?}, aimock {:?}",
                aimock.journal(kind)
            );
            assert_eq!(ours, aimock.journal(kind), "{kind}, stream: {stream}");
            assert!(lines.iter().all(|line| line.ttft_s.is_some() == stream));
        }
    }
}
