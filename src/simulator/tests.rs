//! The server over real connections, spoken to with a client of a few lines.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

/// A step so long that no token comes while a test runs.
const NEVER_MS: f64 = 60_000.0;

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

fn fast() -> Simulator {
    Simulator::start(config(4, 1000, 1.0, 5), 0).unwrap()
}

fn chat(stream: bool) -> Value {
    json!({"model": "any/name", "messages": [{"role": "user", "content": "12345678 1"}],
        "stream": stream})
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

    /// The next piece of a chunked body; `None` at its end.
    fn piece(&mut self) -> Option<String> {
        let mut size = String::new();
        self.rest.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut piece = vec![0; size + 2];
        self.rest.read_exact(&mut piece).unwrap();
        piece.truncate(size);
        (size > 0).then(|| String::from_utf8(piece).unwrap())
    }

    fn json(mut self) -> Value {
        let length = self.header("content-length").unwrap().parse().unwrap();
        let mut body = vec![0; length];
        self.rest.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    /// The events of a stream: JSON, but for the last, which is `[DONE]`.
    fn events(mut self) -> Vec<Value> {
        let mut body = String::new();
        while let Some(piece) = self.piece() {
            body.push_str(&piece);
        }
        let events: Vec<_> = body.split_terminator("\n\n").collect();
        let (done, json) = events.split_last().unwrap();
        assert_eq!(*done, "data: [DONE]");
        json.iter().map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }
}

fn ask(server: &Simulator, method: &str, path: &str, body: &str) -> Reply {
    let mut stream = send(server, method, path, body);
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut rest = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(rest.read_line(&mut head).unwrap() > 0, "no answer: {head}");
    }
    stream.flush().unwrap();
    Reply { status: head[9..12].parse().unwrap(), head, rest }
}

fn send(server: &Simulator, method: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    stream
}

fn post(server: &Simulator, path: &str, body: &Value) -> Reply {
    ask(server, "POST", path, &body.to_string())
}

fn post_chat(server: &Simulator, stream: bool) -> Reply {
    post(server, "/v1/chat/completions", &chat(stream))
}

/// Waits for something that another thread is about to do.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_chat_stream_has_role_tokens_reason_usage_and_done() {
    let server = fast();
    let mut body = chat(true);
    body["stream_options"] = json!({"include_usage": true});
    let reply = post(&server, "/v1/chat/completions", &body);
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    let events = reply.events();
    assert_eq!(events.len(), 1 + 5 + 1 + 1);
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!(event["model"], "any/name");
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
}

#[test]
fn a_stream_tells_its_usage_only_when_asked() {
    let events = post_chat(&fast(), true).events();
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
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "any/name");
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
fn each_token_comes_in_a_piece_of_its_own_while_the_answer_is_made() {
    let (step_ms, tokens) = (20.0, 20);
    let server = Simulator::start(config(1, 0, step_ms, tokens), 0).unwrap();
    let mut reply = post_chat(&server, true);
    assert!(reply.piece().unwrap().contains("assistant"));
    assert!(reply.piece().unwrap().contains(r#""content":"The""#));
    // The other 19 steps are still to come.
    assert_eq!(server.log(), []);
    for index in 1..tokens {
        let piece = reply.piece().unwrap();
        assert_eq!(piece.matches("data: ").count(), 1);
        let word = json!(super::protocol::word(index)).to_string();
        assert!(piece.contains(&format!(r#""content":{word}"#)), "{piece}");
    }
    assert!(reply.piece().unwrap().ends_with("data: [DONE]\n\n"));
    assert_eq!(reply.piece(), None);
    // A step may end late on a busy machine, but never early.
    let record = server.log().remove(0);
    assert!(record.first_token_s.unwrap() - record.arrived_s >= step_ms / 1000.0);
    let least_s = step_ms / 1000.0 * f64::from(tokens);
    assert!(record.finished_s.unwrap() - record.arrived_s >= least_s);
}

#[test]
fn a_full_server_answers_503_at_once() {
    let server = Simulator::start(config(1, 1, NEVER_MS, 5), 0).unwrap();
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
    let server = Simulator::start(config(1, 0, NEVER_MS, 5), 0).unwrap();
    drop(post_chat(&server, true));
    wait_until("the stream's client is seen to be gone", || server.log().len() == 1);
    let body = chat(false).to_string();
    let waiting = send(&server, "POST", "/v1/chat/completions", &body);
    wait_until("the second request is inside", || server.log.in_flight() == 1);
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
    let mut server = Simulator::start(config(2, 2, NEVER_MS, 5), 0).unwrap();
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
    assert!(TcpStream::connect(server.address).is_err());
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
    assert_eq!((log[0].path, log[6].path), ("/v1/chat/completions", "/v1/completions"));
    for pair in log.windows(2) {
        assert!(pair[0].arrived_s <= pair[0].finished_s.unwrap());
        assert!(pair[0].finished_s.unwrap() <= pair[1].arrived_s);
    }
    assert_eq!(server.peak_in_flight(), 1);
}

#[test]
fn many_streams_are_held_at_once() {
    let server = Simulator::start(config(200, 100, 200.0, 3), 0).unwrap();
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
        ("POST", "/v1/chat/completions", "{\"model\"", 400, "not as expected"),
        ("POST", "/v1/chat/completions", "{\"model\":\"m\"}", 400, "at least one message"),
        ("GET", "/v1/chat/completions", "", 405, "does not take GET"),
        ("GET", "/v1/nothing", "", 404, "there is no /v1/nothing"),
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
    assert!(server.base_url().ends_with("/v1"));
    let models = ask(&server, "GET", "/v1/models", "").json();
    assert_eq!(models["data"][0]["object"], "model");
    assert_eq!(ask(&server, "GET", "/health", "").json()["status"], "ok");
    assert_eq!(server.log(), []);
}

#[test]
fn a_taken_port_is_named() {
    let server = fast();
    let port = server.address.port();
    let error = Simulator::start(SimulatorConfig::default(), port).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(&format!("127.0.0.1:{port}")), "{message}");
    assert!(message.contains("choose another port"), "{message}");
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
    let server = Simulator::start(config, 0).unwrap();
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
                    post(&server, "/v1/chat/completions", &body).events();
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
    Simulator::start(config, 0).unwrap()
}

/// The body to the end of the connection or of the chunks; not whole if it was cut.
fn body(mut reply: Reply) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    if let Some(length) = reply.header("content-length").and_then(|length| length.parse().ok()) {
        let whole = std::io::copy(&mut reply.rest.take(length), &mut body).unwrap() == length;
        return (body, whole);
    }
    loop {
        let mut size = String::new();
        if reply.rest.read_line(&mut size).unwrap() == 0 {
            return (body, false);
        }
        let size = u64::from_str_radix(size.trim(), 16).unwrap();
        std::io::copy(&mut (&mut reply.rest).take(size), &mut body).unwrap();
        reply.rest.read_exact(&mut [0; 2]).unwrap();
        if size == 0 {
            return (body, true);
        }
    }
}

fn only_record(server: &Simulator) -> RequestRecord {
    wait_until("the request is in the log", || server.log().len() == 1);
    server.log().remove(0)
}

#[test]
fn every_fault_looks_as_it_is_said_to() {
    for stream in [true, false] {
        for fault in Fault::ALL {
            let server = faulty(fault);
            if fault == Fault::Reset {
                let mut lost = send(&server, "POST", "/v1/chat/completions", &chat(stream).to_string());
                let error = lost.read(&mut [0; 1]).unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                let record = only_record(&server);
                assert_eq!((record.status, record.outcome), (499, RequestEnd::Faulted));
                continue;
            }
            let reply = post_chat(&server, stream);
            let (status, retry_after) = (reply.status, reply.header("retry-after").map(str::to_owned));
            let (bytes, whole) = body(reply);
            let text = String::from_utf8_lossy(&bytes);
            let record = only_record(&server);
            assert_eq!((record.fault, record.status), (Some(fault), status), "{fault} {stream}");
            let good =
                text.contains("list") && (text.ends_with("[DONE]\n\n") || serde_json::from_str::<Value>(&text).is_ok());
            let as_said = match fault {
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
            assert!(as_said, "{fault} {stream}: {}", &text[..text.len().min(2000)]);
            let completes = matches!(fault, Fault::SlowStart | Fault::Stall);
            let end = if completes { RequestEnd::Completed } else { RequestEnd::Faulted };
            assert_eq!(record.outcome, end, "{fault} {stream}");
        }
    }
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
    for input in [json!([]), json!(5)] {
        assert_eq!(post(&server, "/v1/embeddings", &json!({"model": "m", "input": input})).status, 400);
    }
}

#[test]
fn the_limit_per_minute_lets_a_burst_through_and_then_says_when_to_come_back() {
    let config = SimulatorConfig { requests_per_minute: Some(2.0), burst: Some(3), ..config(4, 1000, 1.0, 5) };
    let server = Simulator::start(config, 0).unwrap();
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
    let server = Simulator::start(SimulatorConfig { prefix_cache: true, ..config(4, 10, 1.0, 5) }, 0).unwrap();
    let body = json!({"model": "m", "prompt": "x".repeat(600), "max_tokens": 2});
    let cached: Vec<_> = (0..2)
        .map(|_| {
            let answer = post(&server, "/v1/completions", &body).json();
            assert_eq!(answer["usage"]["prompt_tokens"], 150);
            answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(cached, [0, 128]);
    assert_eq!(server.log()[1].cached_tokens, 128);
}

#[test]
fn metrics_are_the_log_in_prometheus_text() {
    let mut config = config(2, 0, 1.0, 5);
    config.faults.error_500 = 0.5;
    let server = Simulator::start(config, 0).unwrap();
    for _ in 0..20 {
        body(post_chat(&server, false));
    }
    ask(&server, "POST", "/v1/chat/completions", "{").json();
    let text = String::from_utf8(body(ask(&server, "GET", "/metrics", "")).0).unwrap();
    let value = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.split(' ').next() == Some(name)).expect(name);
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let log = server.log();
    let of = |end| log.iter().filter(|r| r.outcome == end).count() as u64;
    assert!(of(RequestEnd::Faulted) > 0 && of(RequestEnd::Completed) > 0);
    assert_eq!(value("simulator_requests_total{outcome=\"completed\"}"), of(RequestEnd::Completed));
    assert_eq!(value("simulator_requests_total{outcome=\"faulted\"}"), of(RequestEnd::Faulted));
    assert_eq!(value("simulator_requests_total{outcome=\"bad_request\"}"), 1);
    assert_eq!(
        value("simulator_faults_total{fault=\"error_500\"}"),
        log.iter().filter(|r| r.fault.is_some()).count() as u64
    );
    assert_eq!(value("simulator_generation_tokens_total"), 5 * of(RequestEnd::Completed));
    assert_eq!(value("simulator_num_requests_running"), 0);
    // Every sample stands under the help and the type of its family.
    let families = text.lines().filter(|line| line.starts_with("# TYPE ")).count();
    assert_eq!(families, text.lines().filter(|line| line.starts_with("# HELP ")).count());
    assert_eq!(families, 7);
}
