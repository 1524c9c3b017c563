//! The simulated server over real connections, spoken to with a client of a few lines; its settings and its true curve.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use llm_concurrency::simulator::engine::{Engine, SequenceId};
use llm_concurrency::simulator::{
    ExplainedLevel, Explanation, Fault, FaultRate, Faults, OutputTokens, PrefixCache, RequestEnd, RequestRecord,
    Simulator, SimulatorConfig, explain, explain_each,
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A step so long that no token comes while a test runs.
const NEVER_MS: f64 = 60_000.0;
const CHAT: &str = "/v1/chat/completions";

fn config(slots: usize, queue_limit: usize, base_step_ms: f64, tokens: u32) -> SimulatorConfig {
    SimulatorConfig {
        slots,
        queue_limit,
        base_step_ms,
        per_sequence_ms: 0.0,
        prefill_ms_per_token: 0.0,
        output_tokens: OutputTokens::Fixed { tokens },
        ..SimulatorConfig::default()
    }
}

fn start(config: SimulatorConfig) -> Simulator {
    Simulator::start(config, 0).unwrap()
}

fn fast() -> Simulator {
    start(config(4, 1000, 1.0, 5))
}

fn chat(stream: bool) -> Value {
    json!({"model": "any/name", "messages": [{"role": "user", "content": "12345678 1"}], "stream": stream})
}

fn address(server: &Simulator) -> String {
    server.base_url()["http://".len()..].trim_end_matches("/v1").to_owned()
}

/// An answer whose head has been read.
struct Reply {
    status: u16,
    head: String,
    rest: BufReader<TcpStream>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// The next piece of a chunked body: empty at its end, `None` if it was cut before.
    fn piece(&mut self) -> Option<Vec<u8>> {
        let mut size = String::new();
        if self.rest.read_line(&mut size).unwrap() == 0 {
            return None;
        }
        let mut piece = vec![0; usize::from_str_radix(size.trim(), 16).unwrap() + 2];
        self.rest.read_exact(&mut piece).unwrap();
        piece.truncate(piece.len() - 2);
        Some(piece)
    }

    /// The body, and whether it is whole.
    fn body(mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        if let Some(length) = self.header("content-length").and_then(|length| length.parse().ok()) {
            let whole = std::io::copy(&mut self.rest.take(length), &mut body).unwrap() == length;
            return (body, whole);
        }
        while let Some(piece) = self.piece() {
            if piece.is_empty() {
                return (body, true);
            }
            body.extend(piece);
        }
        (body, false)
    }

    fn json(self) -> Value {
        serde_json::from_slice(&self.body().0).unwrap()
    }

    /// The events of a stream: JSON, but for the last, which is `[DONE]`.
    fn events(self) -> Vec<Value> {
        let (body, whole) = self.body();
        assert!(whole);
        let body = String::from_utf8(body).unwrap();
        let events = body.strip_suffix("data: [DONE]\n\n").unwrap().split_terminator("\n\n");
        events.map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }
}

fn send(server: &Simulator, method: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address(server)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
    write!(stream, "{head}content-length: {length}\r\n\r\n{body}").unwrap();
    stream
}

fn ask(server: &Simulator, method: &str, path: &str, body: &str) -> Reply {
    let mut rest = BufReader::new(send(server, method, path, body));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(rest.read_line(&mut head).unwrap() > 0, "no answer: {head}");
    }
    Reply { status: head[9..12].parse().unwrap(), head, rest }
}

fn post(server: &Simulator, path: &str, body: &Value) -> Reply {
    ask(server, "POST", path, &body.to_string())
}

fn post_chat(server: &Simulator, stream: bool) -> Reply {
    post(server, CHAT, &chat(stream))
}

/// A sample of `/metrics`.
fn metric(server: &Simulator, name: &str) -> u64 {
    let text = String::from_utf8(ask(server, "GET", "/metrics", "").body().0).unwrap();
    let line = text.lines().find(|line| line.split(' ').next() == Some(name)).expect(name);
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Waits for something that another thread is about to do.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn only_record(server: &Simulator) -> RequestRecord {
    wait_until("the request is in the log", || server.log().len() == 1);
    server.log().remove(0)
}

#[test]
fn a_chat_stream_has_role_tokens_reason_usage_and_done() {
    let server = fast();
    let mut body = chat(true);
    body["stream_options"] = json!({"include_usage": true});
    body["model"] = json!("a\"b");
    let reply = post(&server, CHAT, &body);
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    let events = reply.events();
    assert_eq!(events.len(), 1 + 5 + 1 + 1);
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!(event["model"], "a\"b");
        assert_eq!(event["id"], "chatcmpl-0");
        assert!(event["created"].is_u64());
    }
    let role = json!({"role": "assistant", "content": ""});
    assert_eq!(events[0]["choices"][0]["delta"], role);
    for event in &events[1..6] {
        let content = event["choices"][0]["delta"]["content"].as_str().unwrap();
        assert!(!content.is_empty());
        assert_eq!(event["choices"][0]["finish_reason"], Value::Null);
        assert_eq!(event.get("usage"), None);
    }
    assert_eq!(events[6]["choices"][0]["delta"], json!({}));
    assert_eq!(events[6]["choices"][0]["finish_reason"], "stop");
    assert_eq!(events[7]["choices"], json!([]));
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8});
    assert_eq!(events[7]["usage"], usage);

    // The usage comes only when it is asked for.
    let events = post_chat(&server, true).events();
    assert_eq!(events.len(), 1 + 5 + 1);
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}

#[test]
fn a_completions_stream_has_text_and_no_role() {
    let server = fast();
    let body = json!({"model": "m", "prompt": "Once", "stream": true, "max_tokens": 3});
    let events = post(&server, "/v1/completions", &body).events();
    assert_eq!(events.len(), 3 + 1);
    let text: String = events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, "The function returns");
    assert_eq!(events[0]["object"], "text_completion");
    assert_eq!(events[3]["choices"][0]["finish_reason"], "length");
}

#[test]
fn an_answer_in_one_piece_has_text_reason_and_usage() {
    let server = fast();
    let answer = post_chat(&server, false).json();
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("any/name")));
    let message = json!({"role": "assistant", "content": "The function returns a list"});
    assert_eq!(answer["choices"][0]["message"], message);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8});
    assert_eq!(answer["usage"], usage);

    let body = json!({"model": "m", "prompt": "Once", "max_tokens": 1});
    let answer = post(&server, "/v1/completions", &body).json();
    assert_eq!(answer["choices"][0]["text"], "The");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn embeddings_have_a_vector_for_each_input() {
    let server = fast();
    let answer =
        post(&server, "/v1/embeddings", &json!({"model": "m", "input": ["one", "two"], "stream": true})).json();
    assert_eq!(answer["object"], "list");
    assert_eq!(answer["data"].as_array().unwrap().len(), 2);
    assert_eq!(answer["data"][1]["index"], 1);
    assert_eq!(answer["data"][1]["embedding"].as_array().unwrap().len(), 64);
    assert_eq!(answer["usage"], json!({"prompt_tokens": 2, "total_tokens": 2}));
    let record = only_record(&server);
    assert_eq!((record.prompt_tokens, record.output_tokens), (2, 0));
    assert_eq!(post(&server, "/v1/embeddings", &json!({"model": "m", "input": 5})).status, 400);
}

#[test]
fn requests_are_read_in_every_form() {
    let server = start(config(4, 1000, 0.1, 64));
    let parts = json!([{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}]);
    let said = |role: &str, content: Value| json!({"role": role, "content": content});
    let system = said("system", json!("Be brief."));
    let messages = json!([system, said("assistant", Value::Null), said("user", parts)]);
    let [completions, responses, anthropic] = ["/v1/completions", "/v1/responses", "/v1/messages"];
    for (path, body, read) in [
        (CHAT, json!({"messages": messages, "max_tokens": 9, "temperature": 0}), (4, 9)),
        (completions, json!({"prompt": "Why?", "max_completion_tokens": 9}), (1, 9)),
        (completions, json!({"prompt": ["Why?"]}), (1, 64)),
        (responses, json!({"instructions": "Be brief.", "input": "Why?", "max_output_tokens": 9}), (4, 9)),
        (responses, json!({"input": messages}), (4, 64)),
        (anthropic, json!({"system": "Be brief.", "messages": [said("user", json!("Why?"))], "max_tokens": 9}), (4, 9)),
    ] {
        let mut body = body;
        body["model"] = json!("m");
        let answer = post(&server, path, &body).json();
        let record = server.log().pop().unwrap();
        assert_eq!((record.prompt_tokens, record.output_tokens), read, "{path} {body}: {answer}");
        // Sentences are spaced.
        let text = answer.pointer("/choices/0/text").and_then(Value::as_str).unwrap_or_default();
        assert_eq!(text.matches(". The function").count(), usize::from(path == completions && read.1 == 64), "{text}");
    }
}

#[test]
fn each_token_comes_in_a_piece_of_its_own_while_the_answer_is_made() {
    let (step_ms, tokens) = (20.0, 20);
    let server = start(config(1, 0, step_ms, tokens));
    let mut reply = post_chat(&server, true);
    let mut piece = || String::from_utf8(reply.piece().unwrap()).unwrap();
    assert!(piece().contains("assistant"));
    let words = "The, function, returns, a, list, of, values, and, checks, that, each, element, is, valid, before, it, \
                 reads, the, next, one";
    for (index, word) in words.split(',').enumerate() {
        let piece = piece();
        assert_eq!(piece.matches("data: ").count(), 1);
        assert!(piece.contains(&format!(r#""content":"{word}""#)), "{piece}");
        if index == 0 {
            // The other 19 steps are still to come.
            assert_eq!(server.log(), []);
        }
    }
    assert!(piece().ends_with("data: [DONE]\n\n"));
    assert_eq!(piece(), "");
    // A step may end late on a busy machine, but never early.
    let record = server.log().remove(0);
    assert!(record.first_token_s.unwrap() - record.arrived_s >= step_ms / 1000.0);
    let least_s = step_ms / 1000.0 * f64::from(tokens);
    assert!(record.finished_s.unwrap() - record.arrived_s >= least_s);
}

#[test]
fn a_full_server_answers_503_at_once() {
    let server = start(config(1, 1, NEVER_MS, 5));
    let _held = [post_chat(&server, true), post_chat(&server, true)];
    let refused = post_chat(&server, true);
    assert_eq!(refused.status, 503);
    let error = refused.json();
    assert_eq!(error["error"]["type"], "server_overloaded");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("the request queue is full ("), "{message}");
    let record = server.log().remove(0);
    assert_eq!((record.id, record.status), (2, 503));
    assert_eq!(record.outcome, RequestEnd::Refused);
    assert_eq!(record.first_token_s, None);
}

#[test]
fn a_client_that_leaves_frees_its_slot_and_is_logged() {
    let server = start(config(1, 0, NEVER_MS, 5));
    drop(post_chat(&server, true));
    wait_until("the stream's client is seen to be gone", || server.log().len() == 1);
    let waiting = send(&server, "POST", CHAT, &chat(false).to_string());
    let inside =
        || metric(&server, "simulator_num_requests_running") + metric(&server, "simulator_num_requests_waiting");
    wait_until("the second request is inside", || inside() == 1);
    drop(waiting);
    wait_until("the waiting client is seen to be gone", || server.log().len() == 2);
    assert_eq!(post_chat(&server, true).status, 200);
    let log = server.log();
    assert!(log.iter().take(2).all(|r| r.outcome == RequestEnd::Cancelled));
    assert_eq!((log[0].status, log[1].status), (200, 499));
    assert_eq!((log[0].finished_s, log[1].finished_s), (None, None));
}

#[test]
fn shutdown_ends_open_streams_and_keeps_the_log() {
    let mut server = start(config(2, 2, NEVER_MS, 5));
    let mut held: Vec<_> = (0..3).map(|_| post_chat(&server, true)).collect();
    server.shutdown();
    server.shutdown();
    for reply in &mut held {
        let mut rest = Vec::new();
        // Closed or reset, but not left open.
        let _ = reply.rest.read_to_end(&mut rest);
        assert!(!rest.ends_with(b"0\r\n\r\n"), "a cut stream must not look whole");
    }
    let log = server.log();
    assert_eq!(log.len(), 3);
    assert!(log.iter().all(|r| r.outcome == RequestEnd::Cancelled));
    assert!(TcpStream::connect(address(&server)).is_err());
}

#[test]
fn the_log_equals_the_requests() {
    let server = fast();
    for _ in 0..3 {
        post_chat(&server, true).events();
        post_chat(&server, false).json();
    }
    let prompt = json!({"model": "m", "prompt": "Once", "max_tokens": 2});
    post(&server, "/v1/completions", &prompt).json();
    ask(&server, "POST", "/v1/completions", "{").json();
    ask(&server, "GET", "/v1/models", "").json();
    let log = server.log();
    let ids: Vec<_> = log.iter().map(|record| record.id).collect();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5, 6, 7]);
    let tokens: Vec<_> = log.iter().map(|record| record.output_tokens).collect();
    assert_eq!(tokens, [5, 5, 5, 5, 5, 5, 2, 0]);
    assert!(log[..7].iter().all(|r| r.outcome == RequestEnd::Completed && r.status == 200));
    assert_eq!(log[7].outcome, RequestEnd::BadRequest);
    assert_eq!((log[0].path, log[6].path), (CHAT, "/v1/completions"));
    for pair in log.windows(2) {
        assert!(pair[0].arrived_s <= pair[0].first_token_s.unwrap());
        assert!(pair[0].first_token_s.unwrap() <= pair[0].finished_s.unwrap());
        assert!(pair[0].finished_s.unwrap() <= pair[1].arrived_s);
    }
    assert_eq!(server.peak_in_flight(), 1);
}

#[test]
fn many_streams_are_held_at_once() {
    let server = start(config(200, 100, 200.0, 3));
    let held: Vec<_> = (0..300).map(|_| post_chat(&server, true)).collect();
    assert!(held.iter().all(|reply| reply.status == 200));
    assert!(held.into_iter().all(|reply| reply.events().len() == 1 + 3 + 1));
    assert!(server.log().iter().all(|r| r.outcome == RequestEnd::Completed));
    assert!(server.peak_in_flight() > 200);
}

#[test]
fn mistakes_are_answered_in_json() {
    let server = fast();
    let cases = [
        ("POST", CHAT, "{", 400, "the request body is not as expected: EOF"),
        ("POST", CHAT, r#"{"messages":[]}"#, 400, "missing field `model`"),
        ("POST", CHAT, r#"{"model":"m"}"#, 400, "at least one message"),
        ("POST", CHAT, r#"{"model":"m","n":2,"messages":[]}"#, 400, "n must be 1"),
        ("POST", CHAT, r#"{"model":"m","max_tokens":0,"messages":[]}"#, 400, "max_tokens"),
        ("POST", CHAT, r#"{"model":"m","max_tokens":-4,"messages":[]}"#, 400, "-4"),
        ("POST", "/v1/completions", r#"{"model":"m","prompt":["a","b"]}"#, 400, "one string"),
        ("POST", "/v1/embeddings", r#"{"model":"m","input":[]}"#, 400, "a list of strings"),
        ("GET", CHAT, "", 405, "does not take GET"),
        ("GET", "/v1/nothing", "", 404, "there is no /v1/nothing; try /v1/chat/completions, /v1/completions, "),
    ];
    for (method, path, body, status, part) in cases {
        let reply = ask(&server, method, path, body);
        assert_eq!(reply.status, status);
        let error = reply.json();
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn models_and_health_are_there() {
    let server = fast();
    let models = ask(&server, "GET", "/v1/models", "").json();
    assert_eq!(models["data"][0]["object"], "model");
    assert_eq!(ask(&server, "GET", "/health", "").json()["status"], "ok");
    assert_eq!(server.log(), []);
}

#[test]
fn a_taken_port_is_named() {
    let server = fast();
    let address = address(&server);
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    let message = Simulator::start(SimulatorConfig::default(), port).unwrap_err().to_string();
    assert!(message.contains(&address) && message.contains("choose another port"), "{message}");
}

/// Half of the prompts stop at 4 tokens: what is explained lies between the two, by the mean of their lengths.
#[test]
fn explain_honours_what_each_prompt_may_take() {
    let config = SimulatorConfig { output_tokens: OutputTokens::Fixed { tokens: 40 }, ..SimulatorConfig::default() };
    let tokens_a_second = |limits: [u32; 2]| {
        let prompts: Vec<(String, u32)> = (0..100).map(|i| (format!("{i:0>300}"), limits[i % 2])).collect();
        let each: Vec<(&str, u32)> = prompts.iter().map(|(text, limit)| (text.as_str(), *limit)).collect();
        let level = explain_each(&config, &[1], &each, 2_000).unwrap().levels.remove(0);
        (level.throughput_rps, level.output_tps)
    };
    let [(long, _), (short, _), (both, tokens)] = [[64, 64], [4, 4], [4, 64]].map(tokens_a_second);
    let seconds = (1.0 / long + 1.0 / short) / 2.0;
    assert!((both * seconds - 1.0).abs() < 0.01, "{both} {long} {short}");
    assert!((tokens / both / 22.0 - 1.0).abs() < 0.01, "a mean of 22 tokens: {}", tokens / both);
}

/// The throughput that a closed loop of threads gets from the server, against what is explained.
#[test]
#[ignore = "measures real time, and needs an idle machine"]
fn the_real_server_gives_what_is_explained() {
    let prompts: Vec<String> = (0..100).map(|i| format!("{i:0>300}")).collect();
    for level in [1, 5, 20, 40] {
        let config = SimulatorConfig::default();
        let explained = explain(&config, &[level], &prompts, 64, 20_000).unwrap();
        let expected_rps = explained.levels[0].throughput_rps;
        let measured_rps = measure(config, level, &prompts);
        let ratio = measured_rps / expected_rps;
        println!("level {level}: {measured_rps:.2} of {expected_rps:.2} req/s: {ratio:.3}");
        assert!((ratio - 1.0).abs() < 0.03);
    }
}

fn measure(config: SimulatorConfig, level: usize, prompts: &[String]) -> f64 {
    let server = start(config);
    let next = AtomicUsize::new(0);
    let (warm_up, requests) = (2 * level, 100.max(20 * level));
    std::thread::scope(|scope| {
        for _ in 0..level {
            scope.spawn(|| {
                loop {
                    let ticket = next.fetch_add(1, Ordering::Relaxed);
                    if ticket >= warm_up + requests + level {
                        break;
                    }
                    let content = &prompts[ticket % prompts.len()];
                    let body = json!({"model": "m", "stream": true, "max_tokens": 64,
                        "messages": [{"role": "user", "content": content}]});
                    post(&server, CHAT, &body).events();
                }
            });
        }
    });
    let mut ends: Vec<f64> = server.log().iter().filter_map(|r| r.finished_s).collect();
    ends.sort_by(f64::total_cmp);
    requests as f64 / (ends[warm_up + requests] - ends[warm_up])
}

fn faulty(fault: Fault) -> Simulator {
    let mut config = config(4, 1000, 1.0, 6);
    config.faults = Faults { slow_start_s: 0.05, stall_s: 0.05, huge_body_mib: 1, ..Faults::default() };
    config.faults.set(FaultRate { fault, rate: 1.0 });
    start(config)
}

#[test]
fn every_fault_does_what_its_description_says() {
    for stream in [true, false] {
        for fault in Fault::ALL {
            let server = faulty(fault);
            if fault == Fault::Reset {
                let mut lost = send(&server, "POST", CHAT, &chat(stream).to_string());
                let error = lost.read(&mut [0; 1]).unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                let record = only_record(&server);
                assert_eq!((record.status, record.outcome), (499, RequestEnd::Faulted));
                continue;
            }
            let reply = post_chat(&server, stream);
            let (status, retry_after) = (reply.status, reply.header("retry-after").map(str::to_owned));
            let (bytes, whole) = reply.body();
            let text = String::from_utf8_lossy(&bytes);
            let record = only_record(&server);
            assert_eq!((record.fault, record.status), (Some(fault), status), "{fault} {stream}");
            assert_eq!(json!(record)["fault"], fault.to_string());
            let good =
                text.contains("list") && (text.ends_with("[DONE]\n\n") || serde_json::from_str::<Value>(&text).is_ok());
            let as_described = match fault {
                Fault::SlowStart => whole && good && record.first_token_s.unwrap() - record.arrived_s >= 0.05,
                Fault::Stall => whole && good && record.finished_s.unwrap() - record.arrived_s >= 0.05,
                Fault::CutStream => {
                    !good && whole == stream && !text.contains("finish_reason\":\"stop") && text.len() > 100
                }
                Fault::Error500 => status == 500 && whole && text.contains("\"message\""),
                Fault::Rate429 => status == 429 && retry_after.as_deref() == Some("1"),
                Fault::MalformedJson | Fault::GarbageSse => {
                    status == 200 && whole && !good || text.contains("\n\ndata: [DONE]")
                }
                Fault::EmptyOutput => {
                    status == 200 && whole && text.contains("\"content\":\"\"") && text.contains("stop")
                }
                Fault::HugeBody => status == 200 && whole && bytes.len() > 1 << 20,
                Fault::Reset => false,
            };
            assert!(as_described, "{fault} {stream}: {}", &text[..text.len().min(2000)]);
            let completes = matches!(fault, Fault::SlowStart | Fault::Stall);
            let end = if completes { RequestEnd::Completed } else { RequestEnd::Faulted };
            assert_eq!(record.outcome, end, "{fault} {stream}");
        }
    }
}

#[test]
fn the_limit_per_minute_lets_a_burst_through_and_then_says_when_to_come_back() {
    let config = SimulatorConfig { requests_per_minute: Some(2.0), burst: Some(3), ..config(4, 1000, 1.0, 5) };
    let server = start(config);
    let replies: Vec<_> = (0..5).map(|_| post_chat(&server, false)).collect();
    let statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    let wait: u64 = replies[3].header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    assert_eq!(server.log()[4].outcome, RequestEnd::RateLimited);
    assert_eq!(server.log()[4].fault, None);
}

#[test]
fn a_prompt_seen_before_is_cached_but_for_its_end() {
    let server = start(SimulatorConfig { prefix_cache: true, ..config(4, 10, 1.0, 5) });
    let body = json!({"model": "m", "prompt": "x".repeat(600), "max_tokens": 2});
    let cached = [(); 2].map(|()| {
        let answer = post(&server, "/v1/completions", &body).json();
        assert_eq!(answer["usage"]["prompt_tokens"], 150);
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    });
    assert_eq!(cached, [0, 128]);
    assert_eq!(server.log()[1].cached_tokens, 128);
}

#[test]
fn leading_blocks_are_cached_and_nothing_after_a_difference() {
    let mut cache = PrefixCache::default();
    let block = |c: &str| c.repeat(256);
    let prompt = format!("{}{}tail", block("a"), block("ü"));
    assert_eq!(cache.look_up(&prompt), 0);
    assert_eq!(cache.look_up(&prompt), 128);
    let other = format!("{}{}{}", block("a"), block("c"), block("ü"));
    assert_eq!(cache.look_up(&other), 64);
    // The second block is known, but not at the start.
    assert_eq!(cache.look_up(&format!("x{prompt}")), 0);
    // Less than a block is not cached, and the last character never is: something must be computed.
    assert_eq!(cache.look_up(&block("a")), 0);
}

// ---- the engine ----

#[derive(Clone, Debug)]
enum Action {
    Submit(u32),
    Cancel(usize),
    Step,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        3 => (1u32..8).prop_map(Action::Submit),
        1 => (0usize..64).prop_map(Action::Cancel),
        4 => Just(Action::Step),
    ];
    proptest::collection::vec(action, 0..300)
}

proptest! {
    /// Every accepted sequence either gets exactly its tokens, first come first served and the last one marked,
    /// or was cancelled; slots and capacity are never exceeded; nothing is left at the end.
    #[test]
    fn sequences_are_conserved(slots in 1usize..5, queue_limit in 0usize..5, actions in actions()) {
        let mut engine = Engine::new(&SimulatorConfig { slots, queue_limit, ..SimulatorConfig::default() });
        // Of each, in order of submission, how many tokens are still to come.
        let mut all: Vec<(SequenceId, u32)> = Vec::new();
        // Enough steps at the end to serve whatever is left.
        for action in actions.into_iter().chain(std::iter::repeat_n(Action::Step, 100)) {
            let inside: Vec<usize> = (0..all.len()).filter(|&owner| all[owner].1 > 0).collect();
            prop_assert!(inside.len() <= slots + queue_limit);
            match action {
                Action::Submit(left) => match engine.submit(all.len(), 1, left) {
                    Ok(id) => all.push((id, left)),
                    Err(full) => {
                        prop_assert_eq!(inside.len(), slots + queue_limit);
                        prop_assert_eq!(full.running + full.waiting, inside.len());
                    }
                },
                Action::Cancel(which) => if let Some((id, left)) = all.get_mut(which) {
                    prop_assert_eq!(engine.cancel(*id), *left > 0);
                    *left = 0;
                }
                Action::Step => {
                    prop_assert_eq!(engine.begin_step().is_some(), !inside.is_empty());
                    let mut tokens = Vec::new();
                    engine.end_step(&mut tokens);
                    let owners: Vec<usize> = tokens.iter().map(|token| token.owner).collect();
                    prop_assert_eq!(&owners[..], &inside[..inside.len().min(slots)]);
                    for token in tokens {
                        let (_, left) = &mut all[token.owner];
                        *left -= 1;
                        prop_assert_eq!(token.last, *left == 0);
                    }
                }
            }
        }
        prop_assert!(engine.is_idle());
    }
}

// ---- the lengths of answers ----

fn of(output_tokens: OutputTokens, seed: u64) -> SimulatorConfig {
    SimulatorConfig { output_tokens, seed, ..SimulatorConfig::default() }
}

fn draws(output_tokens: OutputTokens, count: usize) -> Vec<f64> {
    let config = of(output_tokens, 7);
    let tokens = |i| f64::from(config.answer_length(&format!("fn task_{i}() {{}}"), None).tokens);
    let mut drawn: Vec<f64> = (0..count).map(tokens).collect();
    drawn.sort_by(f64::total_cmp);
    drawn
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn lengths_have_the_distribution_that_was_set() {
    let (median, sigma) = (200.0_f64, 0.5_f64);
    let drawn = draws(OutputTokens::LogNormal { median, sigma }, 40_000);
    let expected_mean = median * (sigma * sigma / 2.0).exp();
    assert!((drawn[20_000] / median - 1.0).abs() < 0.02);
    assert!((mean(&drawn) / expected_mean - 1.0).abs() < 0.02);
    // One standard deviation above the median lie 15.87 %.
    let above = drawn.iter().filter(|&&x| x > median * sigma.exp()).count();
    assert!((above as f64 / 40_000.0 - 0.1587).abs() < 0.01);
    // However short the median, no answer is empty.
    assert!(draws(OutputTokens::LogNormal { median: 1.0, sigma: 3.0 }, 1000)[0] >= 1.0);

    let drawn = draws(OutputTokens::Uniform { min: 3, max: 12 }, 20_000);
    assert_eq!((drawn[0], drawn[19_999]), (3.0, 12.0));
    assert!((mean(&drawn) - 7.5).abs() < 0.1);
}

#[test]
fn a_length_depends_on_the_seed_and_the_last_256_characters() {
    let config = |seed| of(OutputTokens::Uniform { min: 1, max: 1000 }, seed);
    let all = |seed| std::array::from_fn::<_, 50, _>(|i| config(seed).answer_length(&format!("task {i}"), None).tokens);
    assert_eq!(all(42), all(42));
    assert_ne!(all(42), all(43));
    // Two bytes per character: the limit is in characters.
    let task = "ä".repeat(256);
    let length = |prompt: &str| config(42).answer_length(prompt, None);
    assert_eq!(length(&task), length(&format!("[run 7, request 12] {task}")));
    assert_ne!(length(&task), length(&format!("{task}!")));
    assert_eq!(length(""), length(""));
}

// ---- settings ----

fn parse(text: &str) -> Result<SimulatorConfig, serde_json::Error> {
    serde_json::from_str(text)
}

#[test]
fn every_key_is_optional_and_each_distribution_has_keys_of_its_own() {
    let with = |output_tokens| SimulatorConfig { output_tokens, ..SimulatorConfig::default() };
    let cases = [
        ("{}", SimulatorConfig::default()),
        (r#"{"output_tokens":{"distribution":"fixed","tokens":8}}"#, with(OutputTokens::Fixed { tokens: 8 })),
        (
            r#"{"output_tokens":{"distribution":"uniform","min":2,"max":9}}"#,
            with(OutputTokens::Uniform { min: 2, max: 9 }),
        ),
        (
            r#"{"output_tokens":{"distribution":"log_normal","median":100,"sigma":0.5}}"#,
            with(OutputTokens::LogNormal { median: 100.0, sigma: 0.5 }),
        ),
    ];
    for (text, expected) in cases {
        let config = parse(text).unwrap();
        config.validate().unwrap();
        assert_eq!(config, expected);
        assert_eq!(parse(&serde_json::to_string(&config).unwrap()).unwrap(), config);
    }
    assert!(parse(r#"{"slot": 3}"#).is_err());
    assert!(parse(r#"{"output_tokens":{"distribution":"fixed","tokens":8,"sigma":1}}"#).is_err());
}

#[test]
fn an_impossible_value_is_named_with_its_key_and_the_remedy() {
    let cases = [
        (r#"{"slots":0}"#, "slots is 0; set it to 1 or more"),
        (r#"{"base_step_ms":0}"#, "base_step_ms is 0; set it to a number from 0.001 to 60000 (milliseconds)"),
        (r#"{"per_sequence_ms":-1.5}"#, "per_sequence_ms is -1.5; set it to a number from 0 to 60000 (milliseconds)"),
        (
            r#"{"output_tokens":{"distribution":"uniform","min":5,"max":4}}"#,
            "output_tokens.max is 4; set it to at least output_tokens.min",
        ),
        (
            r#"{"output_tokens":{"distribution":"log_normal","median":0.5,"sigma":1}}"#,
            "output_tokens.median is 0.5; set it to a number from 1 to 1000000 (tokens)",
        ),
        (
            r#"{"tokens_per_minute":0}"#,
            "tokens_per_minute is 0; set it to a number from 0.001 to 1000000000, or null for no limit",
        ),
        (r#"{"burst":0}"#, "burst is 0; set it to 1 or more, or null for a tenth of requests_per_minute"),
        (r#"{"faults":{"reset":1.5}}"#, "faults.reset is 1.5; set it to a number from 0 to 1 (share of the requests)"),
        (r#"{"faults":{"reset":0.6,"stall":0.6}}"#, "faults is 1.2 in all; set it to rates that add up to 1 or less"),
    ];
    for (text, message) in cases {
        let error = parse(text).unwrap().validate().unwrap_err();
        assert_eq!(error.to_string(), format!("simulator.{message}"));
    }
    let nan = SimulatorConfig { prefill_ms_per_token: f64::NAN, ..SimulatorConfig::default() };
    assert!(nan.validate().is_err());
}

#[test]
fn every_fault_has_a_key_of_its_name_and_the_flag_says_what_is_wrong_with_it() {
    let keys = json!(Faults::default());
    for fault in Fault::ALL {
        assert!(keys.get(fault.to_string()).is_some(), "{fault}");
        assert_eq!(format!("{fault}=0.25").parse(), Ok(FaultRate { fault, rate: 0.25 }));
    }
    for (text, part) in [("stall", "NAME=RATE"), ("stal=0.1", "slow_start, stall, cut_stream"), ("stall=2", "0 to 1")] {
        let error = text.parse::<FaultRate>().unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

// ---- the true curve ----

const LENGTH: u32 = 24;
const PROMPT_CHARS: usize = 400;

fn fixed() -> SimulatorConfig {
    SimulatorConfig { per_sequence_ms: 0.25, prefill_ms_per_token: 0.002, ..config(8, 8, 3.0, LENGTH) }
}

fn explain_fixed(levels: &[usize]) -> Vec<ExplainedLevel> {
    explain(&fixed(), levels, &["x".repeat(PROMPT_CHARS)], 64, 20_000).unwrap().levels
}

/// Throughput by hand. Each request costs `LENGTH` turns in a batch and its prefill; on top come the bases
/// of the steps of one round. Alone, a request starts at once and takes `LENGTH` steps. In company it waits
/// for the step that runs when it arrives: `LENGTH + 1`. With twice as many requests as slots there is
/// always one waiting for each that leaves, so that a round of full batches takes `LENGTH` steps again.
fn formula_rps(level: usize) -> f64 {
    let config = fixed();
    let length = f64::from(LENGTH);
    let served = level.min(config.slots) as f64;
    let steps = if level == 1 || level >= 2 * config.slots { length } else { length + 1.0 };
    let prefill_ms = config.prefill_ms_per_token * (PROMPT_CHARS / 4) as f64;
    let own_ms = config.per_sequence_ms * length + prefill_ms;
    1000.0 * served / (config.base_step_ms * steps + own_ms * served)
}

#[test]
fn fixed_lengths_give_the_throughput_of_the_formula() {
    for level in explain_fixed(&[1, 2, 5, 8, 16]) {
        let expected = formula_rps(level.level);
        let ratio = level.throughput_rps / expected;
        assert!((ratio - 1.0).abs() < 2e-3, "{level:?}, not {expected}");
        assert!((level.output_tps / expected / f64::from(LENGTH) - 1.0).abs() < 2e-3);
        // Little's law: in flight = throughput x latency.
        let in_flight = level.throughput_rps * level.latency_mean_s;
        assert!((in_flight / level.level as f64 - 1.0).abs() < 2e-3, "{level:?}");
        assert_eq!(level.error_rate, 0.0);
        // A request alone takes the same time each time.
        if level.level == 1 {
            let expected_s = (f64::from(LENGTH) * 3.25 + 0.2) / 1000.0;
            let latencies = [level.latency_mean_s, level.latency_p95_s];
            assert!(latencies.iter().all(|latency_s| (latency_s - expected_s).abs() < 1e-6));
        }
    }
}

#[test]
fn refusals_begin_above_slots_and_queue_and_leave_the_throughput() {
    let levels = explain_fixed(&[16, 17, 24]);
    assert_eq!(levels[0].error_rate, 0.0);
    assert!(levels[1].error_rate > 0.0);
    assert!(levels[2].error_rate > levels[1].error_rate && levels[2].error_rate < 0.5);
    // The permits that are held do not serve, but the queue keeps the slots full.
    assert!(levels[2].throughput_rps / levels[0].throughput_rps > 0.98);
}

#[test]
fn the_defaults_have_their_knee_at_20_and_are_full_below_50() {
    let levels = [1, 2, 5, 10, 15, 20, 25, 30, 40, 45, 50];
    let prompts: Vec<_> = (0..100).map(|i| format!("{i:0>800}")).collect();
    let curve = || explain(&SimulatorConfig::default(), &levels, &prompts, 64, 5_000).unwrap();
    let explanation = curve();
    assert_eq!(explanation, curve());
    assert_eq!(explanation.optimum(), Some(20));
    let best = explanation.levels[..10].iter().map(|level| level.throughput_rps).fold(0.0, f64::max);
    let of_best = |at: usize| explanation.levels[at].throughput_rps / best;
    assert!(of_best(4) < 0.9, "level 15: {}", of_best(4));
    assert!(of_best(5) > 0.975, "level 20: {}", of_best(5));
    let errors: Vec<_> = explanation.levels.iter().map(|l| l.error_rate).collect();
    assert!(errors[..10].iter().all(|&rate| rate == 0.0));
    assert!(errors[10] > 0.05);
}

#[test]
fn the_table_is_aligned_and_ends_with_the_optimum() {
    let level = |level, throughput_rps, error_rate| ExplainedLevel {
        level,
        throughput_rps,
        output_tps: 48.0 * throughput_rps,
        latency_mean_s: 0.25,
        latency_p95_s: 0.5,
        error_rate,
    };
    let mut explanation = Explanation {
        levels: vec![level(30, 66.53, 0.0), level(20, 64.0, 0.0), level(10, 63.0, 0.0), level(50, 100.0, 0.05)],
    };
    assert_eq!(
        explanation.to_string(),
        " level     req/s  of best out tokens/s   mean s    P95 s   errors
    30     66.53    1.000         3193    0.250    0.500    0.0 %
    20     64.00    0.962         3072    0.250    0.500    0.0 %
    10     63.00    0.947         3024    0.250    0.500    0.0 %
    50    100.00    1.503         4800    0.250    0.500    5.0 %
optimum: 20 (the smallest level with at least 95 % of the best throughput, 66.53 req/s, and errors below 5 %)"
    );
    explanation.levels.drain(..3);
    let text = explanation.to_string();
    assert!(text.ends_with("optimum: none (every level has errors of 5 % or more)"), "{text}");
}

#[test]
fn what_cannot_be_explained_is_an_error() {
    let (one, none) = (["a".to_owned()], []);
    let impossible = SimulatorConfig { slots: 0, ..fixed() };
    let cases = [
        (fixed(), 0, &one[..], 100, "levels of 1 or more"),
        (fixed(), 1, &none[..], 100, "at least one prompt"),
        (fixed(), 1, &one[..], 0, "at least one request"),
        (impossible, 1, &one[..], 100, "simulator.slots is 0"),
    ];
    for (config, level, prompts, requests, part) in cases {
        let error = explain(&config, &[level], prompts, 64, requests).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
