//! The client and the network: stale connections, timeouts, TLS, HTTP/2, proxies, error bodies.

#![cfg(feature = "suite")]

mod servers;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::routing::post;
use llm_concurrency::client::outcome::{Counted, Failure, Period, Quota, RateLimit, Reply};
use llm_concurrency::client::{Llm, RequestSettings};
use llm_concurrency::load::closed_loop::LoopPlan;
use servers::{GOOD, RawServer, ok};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::server::TlsStream;

fn whole() -> RequestSettings {
    RequestSettings { stream: false, ..RequestSettings::default() }
}

fn failure(reply: &Reply) -> (Option<Failure>, String) {
    let failed = reply.failure.clone();
    (failed.as_ref().map(|failed| failed.kind), failed.map(|failed| failed.message).unwrap_or_default())
}

/// Closes after each answer while announcing to keep the connection: what llama.cpp's server does after streams.
#[test]
fn a_server_that_closes_after_each_answer_causes_no_failure() {
    const STREAM: &str =
        "data: {\"choices\":[{\"delta\":{\"content\":\"x\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    for level in [1, 16] {
        let answered = Arc::new(AtomicUsize::new(0));
        let counted = answered.clone();
        let server = RawServer::start(move |_, stream| {
            // Some closes come with the answer, some a little later, when the connection may be in use again.
            let number = counted.fetch_add(1, Relaxed);
            let body = ok("text/event-stream", STREAM);
            let body = body.replacen("content-type", "connection: keep-alive\r\ncontent-type", 1);
            let _ = stream.write_all(body.as_bytes());
            std::thread::sleep(std::time::Duration::from_micros(50 * (number as u64 % 20)));
            let _ = stream.shutdown(std::net::Shutdown::Both);
            false
        });
        let plan = LoopPlan::new(level, 500, level, 10, 1);
        let lines = servers::measure(&server.base_url(), &Llm::default(), &RequestSettings::default(), &plan);
        let resent: usize = lines.iter().map(|line| line.resent as usize).sum();
        let failed = lines.iter().filter(|line| !line.is_success()).count();
        let error = lines.iter().find_map(|line| line.error.as_deref());
        assert_eq!(failed, 0, "of {} at level {level}, {resent} resent: {error:?}", lines.len());
        // A request that is lost with its connection is not read by this server: it had closed by then.
        assert_eq!(server.requests.lock().unwrap().len(), lines.len(), "level {level}, {resent} resent");
    }
}

/// Reads the request that it will not answer, on a connection that was good before.
#[test]
fn a_request_that_dies_on_a_reused_connection_is_sent_again_once_and_on_a_fresh_one_not() {
    let server = RawServer::start(|request, stream| {
        if request.contains("00000000") {
            return stream.write_all(ok("application/json", GOOD).as_bytes()).is_ok();
        }
        false
    });
    let plan = LoopPlan::new(1, 1, 1, 1, 1);
    let lines = servers::measure(&server.base_url(), &Llm::default(), &whole(), &plan);
    let resent: Vec<_> = lines.iter().map(|line| line.resent).collect();
    // The second dies on the first's connection and then on a fresh one, the third on a fresh one.
    assert_eq!(resent, [0, 1, 0][..lines.len()]);
    assert_eq!(lines[0].failure, None);
    assert!(lines[1..].iter().all(|line| line.failure == Some(Failure::Connect)), "{lines:?}");
    assert_eq!(server.requests.lock().unwrap().len(), lines.len() + 1);
}

#[test]
fn each_timeout_names_its_setting() {
    let silent = RawServer::start(|_, _| {
        std::thread::park();
        false
    });
    let half = RawServer::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{\"cho");
        std::thread::park();
        false
    });
    let cases = [
        (&silent, Llm { request_timeout: 0.3, ..Llm::default() }, "llm.request_timeout"),
        (&silent, Llm { first_byte_timeout: Some(0.3), ..Llm::default() }, "llm.first_byte_timeout"),
        (&half, Llm { idle_timeout: Some(0.3), ..Llm::default() }, "llm.idle_timeout"),
        (&half, Llm { first_byte_timeout: Some(5.0), request_timeout: 0.3, ..Llm::default() }, "llm.request_timeout"),
    ];
    for (server, llm, setting) in cases {
        let reply = servers::send_once(&server.base_url(), &llm, &whole());
        let (kind, message) = failure(&reply);
        assert_eq!(kind, Some(Failure::Timeout), "{message}");
        assert!(message.contains(setting) && message.contains("300ms"), "{message}");
    }
}

#[test]
fn nobody_there_is_no_connection() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let reply = servers::send_once(&format!("http://127.0.0.1:{port}/v1"), &Llm::default(), &whole());
    let (kind, message) = failure(&reply);
    assert_eq!(kind, Some(Failure::Connect));
    assert!(message.contains("refused"), "{message}");
}

#[test]
fn error_bodies_of_all_shapes_are_quoted_short() {
    let long = "too long ".repeat(100);
    let cases = [
        (401, r#"{"error": {"message": "bad key", "code": 1}}"#, Failure::ClientError, "HTTP 401: bad key"),
        (401, r#"{"error": "Unauthorized"}"#, Failure::ClientError, "HTTP 401: Unauthorized"),
        (422, r#"{"detail": [{"msg": "field required"}]}"#, Failure::ClientError, "HTTP 422: field required"),
        (404, r#"{"detail": "no such model"}"#, Failure::ClientError, "HTTP 404: no such model"),
        (503, "  queue\r\n full\u{7}\n", Failure::ServerError, "HTTP 503: queue full"),
        (502, "<html><body>Bad gateway", Failure::ServerError, "HTTP 502: an HTML page"),
        (429, "", Failure::RateLimited, "HTTP 429"),
        (400, r#"{"message": "no such field"}"#, Failure::ClientError, "HTTP 400: no such field"),
        (400, r#"{"error": {"code": 7}}"#, Failure::ClientError, r#"HTTP 400: {"code":7}"#),
        (500, r#"["odd"]"#, Failure::ServerError, r#"HTTP 500: ["odd"]"#),
        (200, r#"{"error": {"message": "out of memory"}}"#, Failure::ServerError, "out of memory"),
        (200, r#"{"error": {"message": "slow down", "code": 429}}"#, Failure::RateLimited, "slow down"),
        (200, "<html>welcome", Failure::Malformed, "HTML instead of JSON (is the path of llm.endpoint right?)"),
        (200, r#"{"choices":[]}"#, Failure::EmptyOutput, "the answer holds no content"),
        (500, &long, Failure::ServerError, "HTTP 500: too long too long"),
    ];
    for (status, body, kind, message) in cases {
        let answer = ok("application/json", body).replacen("200 OK", &format!("{status} X"), 1);
        let server = RawServer::start(move |_, stream| stream.write_all(answer.as_bytes()).is_ok());
        let reply = servers::send_once(&server.base_url(), &Llm::default(), &whole());
        let (failed, text) = failure(&reply);
        assert_eq!((reply.status, failed), (Some(status), Some(kind)), "{body}: {text}");
        // Also where it stands inside an answer with status 200.
        let expected = if body.contains("429") { Some(429) } else { Some(status).filter(|&status| status != 200) };
        assert_eq!(reply.failure.and_then(|failed| failed.status), expected, "{body}");
        assert!(text == message || text.starts_with(message) && text.chars().count() == 201, "{text}");
    }
}

/// Forms of a good stream that servers were seen to send.
#[test]
fn good_streams_of_all_shapes_are_successes() {
    let chunk = r#"{"choices":[{"delta":{"content":"x"}}]}"#;
    let end = r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
    let split = "data: {\"choices\":\ndata: [{\"delta\":{\"content\":\"ü\"}}]}\n\n";
    let cases = [
        format!("data: {chunk}\n\ndata: {end}\n\ndata: [DONE]\n\n"),
        format!("data: {chunk}\n\ndata: {end}\n\n"),
        format!("data: {chunk}\n\ndata: [DONE]"),
        format!("\u{feff}data:{chunk}\r\n\r\n: ping\r\n\r\ndata:{end}\r\n\r\ndata:[DONE]\r\n\r\n"),
        format!("event: message\nid: 7\n{split}data: {end}\n\n"),
        format!("data: {}\n\ndata: {end}\n\n", chunk.replace("\"content\"", "\"reasoning_content\"")),
        format!("data: {}\n\ndata: {end}\n\n", chunk.replace("content\":\"x\"", "content\":null,\"reasoning\":\"x\"")),
        format!("data: {}\n\n", chunk.replace("}}]", "},\"finish_reason\":\"length\"}]")),
    ];
    for body in cases {
        let bytes = body.clone().into_bytes();
        let server = RawServer::start(move |_, stream| {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(head.as_bytes());
            // One byte at a time: characters and line ends are split between reads.
            let _ = bytes.iter().try_for_each(|&byte| stream.write_all(&[byte]));
            false
        });
        let reply = servers::send_once(&server.base_url(), &Llm::default(), &RequestSettings::default());
        assert_eq!(failure(&reply), (None, String::new()), "{body}");
        assert_eq!(reply.chunks, 1);
    }
}

// ---- TLS ----

/// A listener that takes TLS connections with a certificate of its own making.
struct TlsListener {
    tcp: TcpListener,
    tls: TlsAcceptor,
    protocols: Arc<Mutex<Vec<String>>>,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, address) = self.tcp.accept().await.unwrap();
            // A client that does not trust the certificate hangs up here.
            if let Ok(stream) = self.tls.accept(stream).await {
                let protocol = stream.get_ref().1.alpn_protocol().unwrap_or(b"none");
                self.protocols.lock().unwrap().push(String::from_utf8_lossy(protocol).into_owned());
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

struct TlsServer {
    base_url: String,
    protocols: Arc<Mutex<Vec<String>>>,
    versions: Arc<Mutex<Vec<String>>>,
    _runtime: tokio::runtime::Runtime,
}

impl TlsServer {
    /// Writes its certificate to `ca_file` and offers `alpn`.
    fn start(ca_file: &Path, alpn: &[&str]) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(ca_file, made.cert.pem()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let (protocols, versions) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let seen = versions.clone();
        let answer = post(move |request: Request| async move {
            seen.lock().unwrap().push(format!("{:?}", request.version()));
            ([("content-type", "application/json")], GOOD)
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let tcp = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = tcp.local_addr().unwrap().port();
        let listener = TlsListener { tcp, tls: TlsAcceptor::from(Arc::new(config)), protocols: protocols.clone() };
        let router = Router::new().route("/v1/chat/completions", answer);
        runtime.spawn(async move { axum::serve(listener, router).await });
        TlsServer { base_url: format!("https://localhost:{port}/v1"), protocols, versions, _runtime: runtime }
    }
}

#[test]
fn a_self_signed_certificate_is_trusted_by_its_file_and_not_without() {
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    let server = TlsServer::start(&ca_file, &["http/1.1"]);
    let (kind, message) = failure(&servers::send_once(&server.base_url, &Llm::default(), &whole()));
    assert_eq!(kind, Some(Failure::Connect));
    assert!(message.contains("llm.ca_file"), "{message}");
    let llm = Llm { ca_file: Some(ca_file), ..Llm::default() };
    assert_eq!(failure(&servers::send_once(&server.base_url, &llm, &whole())), (None, String::new()));
}

#[test]
fn http_2_is_used_where_it_is_offered() {
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    let server = TlsServer::start(&ca_file, &["h2", "http/1.1"]);
    let llm = Llm { ca_file: Some(ca_file), ..Llm::default() };
    let lines = servers::measure(&server.base_url, &llm, &whole(), &LoopPlan::new(8, 80, 8, 10, 1));
    assert!(lines.iter().all(|line| line.is_success()), "{lines:?}");
    let versions = server.versions.lock().unwrap();
    assert_eq!(versions.len(), lines.len());
    assert!(versions.iter().all(|version| version == "HTTP/2.0"));
    assert!(server.protocols.lock().unwrap().iter().all(|protocol| protocol == "h2"));
}

#[test]
fn a_useless_ca_file_is_named() {
    for (text, part) in [(None, "No such file"), (Some("nothing"), "no certificate")] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let config = "llm:\n  endpoint: https://localhost:9/v1\n  ca_file: ca.pem\n";
        std::fs::write(folder.path().join("config.yaml"), config).unwrap();
        let error = llm_concurrency::LlmClient::from_file(folder.path().join("config.yaml")).err().unwrap().to_string();
        assert!(error.contains(&path.display().to_string()) && error.contains(part), "{error}");
    }
}

#[test]
fn ssl_cert_file_is_honoured() {
    let folder = servers::folder("llm: {}\n");
    let ca_file = folder.path().join("ca.pem");
    let server = TlsServer::start(&ca_file, &["http/1.1"]);
    let run = |with: bool| {
        let mut command = servers::binary(folder.path());
        command.args(["run", "--levels", "1", "--total-requests", "30", "--llm-endpoint", &server.base_url]);
        if with {
            command.env("SSL_CERT_FILE", &ca_file);
        }
        command.output().unwrap()
    };
    let (without, with) = (run(false), run(true));
    assert_eq!(without.status.code(), Some(1), "{}", String::from_utf8_lossy(&without.stderr));
    // 0 or 3: it has measured; whether one level decides anything is not the question.
    assert!(matches!(with.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&with.stderr));
    assert!(server.versions.lock().unwrap().len() >= 30);
}

// ---- quotas ----

/// A 429 with these headers.
fn limited(headers: &[(&str, &str)], body: &str) -> Reply {
    let head: String = headers.iter().map(|(name, value)| format!("\r\n{name}: {value}")).collect();
    let answer = ok("application/json", body).replacen("200 OK", &format!("429 X{head}"), 1);
    let server = RawServer::start(move |_, stream| stream.write_all(answer.as_bytes()).is_ok());
    servers::send_once(&server.base_url(), &Llm::default(), &whole())
}

#[test]
fn a_quota_is_read_from_the_headers_as_openai_and_anthropic_name_and_write_them() {
    assert_eq!(limited(&[], "").rate_limit, None);
    let given = [
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "10"),
        ("x-ratelimit-reset-requests", "6m1.5s"),
        ("x-ratelimit-limit-tokens", "150000"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "6ms"),
    ];
    let limit = serde_json::json!({
        "limit_requests": 60, "remaining_requests": 10, "reset_s": 361.5,
        "limit_tokens": 150_000, "remaining_tokens": 0, "reset_tokens_s": 0.006,
        "exceeded": {"counts": "tokens", "limit": null, "per": null},
    });
    assert_eq!(limited(&given, "").rate_limit, Some(serde_json::from_value(limit).unwrap()));
    let anthropic = [("anthropic-ratelimit-requests-limit", "49"), ("anthropic-ratelimit-tokens-limit", "40000")];
    let limit = RateLimit { limit_requests: Some(49), limit_tokens: Some(40_000), ..RateLimit::default() };
    assert_eq!(limited(&anthropic, "").rate_limit, Some(limit));
    for (text, seconds) in
        [("20ms", Some(0.02)), ("17", Some(17.0)), ("1h", Some(3600.0)), ("soon", None), ("5 s", None)]
    {
        let limit = limited(&[("x-ratelimit-reset-requests", text)], "").rate_limit;
        assert_eq!(limit.and_then(|limit| limit.reset_s), seconds, "{text}");
    }
}

/// The texts are those of OpenAI, Azure, Anthropic, Groq and LiteLLM.
#[test]
fn which_quota_a_429_is_for_is_read_from_its_body_and_else_from_what_is_left() {
    let quota = |counts, limit, per| Some(Quota { counts, limit, per });
    let (requests, tokens) = (Counted::Requests, Counted::Tokens);
    let exceeded = |headers: &[(&str, &str)], body: &str| limited(headers, body).rate_limit.and_then(|it| it.exceeded);
    let tpm = "Rate limit reached for gpt-4 in organization org-x on tokens per min (TPM): Limit 30000, Used 29000, Requested 2000. Please try again in 2s.";
    let rpd = "Rate limit reached for gpt-4 in organization org-x on requests per day (RPD): Limit 200, Used 200, Requested 1.";
    let anthropic = "This would exceed your organization's rate limit of 30,000 input tokens per minute";
    let azure = "Requests to the ChatCompletions_Create Operation have exceeded token rate limit of your tier";
    for (kind, message, expected) in [
        ("tokens", tpm, quota(tokens, Some(30_000), Some(Period::Minute))),
        ("requests", rpd, quota(requests, Some(200), Some(Period::Day))),
        ("tokens", "slow down", quota(tokens, None, None)),
        ("rate_limit_error", anthropic, quota(tokens, Some(30_000), Some(Period::Minute))),
        ("429", azure, quota(tokens, None, None)),
        ("", "Requests rate limit exceeded", quota(requests, None, None)),
        ("", "Crossed TPM / RPM limit", None),
        ("", "too many requests; try again in 3 s", None),
    ] {
        let body = serde_json::json!({"error": {"message": message, "type": kind}}).to_string();
        assert_eq!(exceeded(&[], &body), expected, "{body}");
    }
    let [of_requests, of_tokens] = ["x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens"];
    for (left, counts) in [
        (&[(of_requests, "0"), (of_tokens, "5")][..], Some(requests)),
        (&[(of_requests, "99999"), (of_tokens, "120")], Some(tokens)),
        (&[(of_tokens, "0")], Some(tokens)),
        (&[(of_requests, "7")], None),
        (&[(of_requests, "0"), (of_tokens, "0")], None),
    ] {
        assert_eq!(exceeded(left, ""), counts.and_then(|counts| quota(counts, None, None)), "{left:?}");
    }
}

#[test]
fn a_wait_is_asked_for_in_milliseconds_seconds_or_as_a_date() {
    let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
    for (headers, seconds) in [
        (&[("retry-after-ms", "1500"), ("retry-after", "2")][..], Some(1.5)),
        (&[("retry-after", "2")], Some(2.0)),
        (&[("retry-after", "Sun, 06 Nov 1994 08:49:57 GMT"), date], Some(20.0)),
        // Over by the server's clock, and by ours.
        (&[("retry-after", "Sun, 06 Nov 1994 08:49:07 GMT"), date], Some(0.0)),
        (&[("retry-after", "Sun, 06 Nov 1994 08:49:57 GMT")], Some(0.0)),
        (&[("retry-after", "-2")], None),
        (&[("retry-after", "soon"), date], None),
        (&[date], None),
    ] {
        assert_eq!(limited(headers, "").retry_after, seconds.map(Duration::from_secs_f64), "{headers:?}");
    }
    let later = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(600));
    let wait = limited(&[("retry-after", &later)], "").retry_after.unwrap();
    assert!((500..=600).contains(&wait.as_secs()), "{wait:?}");
}

// ---- counts and answers without content ----

/// One answer, as a stream and in one piece.
fn both_ways(content: &str, finish_reason: &str, usage: &str) -> [Reply; 2] {
    let end = format!(r#""finish_reason":{finish_reason}}}],"usage":{usage}}}"#);
    let whole_body = format!(r#"{{"choices":[{{"message":{{"content":"{content}"}},{end}"#);
    let stream = format!(
        "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{content}\"}}}}]}}\n\ndata: {{\"choices\":[{{\"delta\":{{}},{end}\n\ndata: [DONE]\n\n"
    );
    [(false, "application/json", whole_body), (true, "text/event-stream", stream)].map(|(stream, kind, body)| {
        let answer = ok(kind, &body);
        let server = RawServer::start(move |_, connection| connection.write_all(answer.as_bytes()).is_ok());
        let request = RequestSettings { stream, ..RequestSettings::default() };
        servers::send_once(&server.base_url(), &Llm::default(), &request)
    })
}

/// A model may end its answer with its first token. An engine that has crashed answers without tokens, and no less fast.
#[test]
fn an_answer_that_its_first_token_ends_differs_from_none() {
    let ended = |reply: &Reply| (failure(reply).0, reply.chunks, reply.ttft.is_some(), reply.tokens.output);
    for reply in both_ways("", r#""stop""#, r#"{"prompt_tokens":9,"completion_tokens":1}"#) {
        assert_eq!(ended(&reply), (None, 0, false, Some(1)));
    }
    let nothing = Some(Failure::EmptyOutput);
    for (finish_reason, usage, output) in [
        (r#""stop""#, "null", None),
        (r#""stop""#, r#"{"prompt_tokens":9,"completion_tokens":0}"#, Some(0)),
        (r#""stop""#, r#"{"prompt_tokens":9}"#, None),
        ("null", r#"{"completion_tokens":1}"#, Some(1)),
    ] {
        for reply in both_ways("", finish_reason, usage) {
            assert_eq!(ended(&reply), (nothing, 0, false, output), "{finish_reason} {usage}");
        }
    }
}

#[test]
fn counts_are_read_however_they_are_written_and_nonsense_fails_no_answer() {
    for (written, count) in [
        ("5", Some(5)),
        ("5.0", Some(5)),
        (r#""5""#, Some(5)),
        (r#"" 5.0 ""#, Some(5)),
        ("-5", None),
        ("5.5", None),
        ("1e300", None),
        ("99999999999", None),
        (r#""NaN""#, None),
        (r#""many""#, None),
        ("null", None),
        ("[5]", None),
        ("{}", None),
        ("true", None),
    ] {
        let usage = format!(r#"{{"prompt_tokens":7,"completion_tokens":{written},"prompt_tokens_details":{written}}}"#);
        for reply in both_ways("x", r#""stop""#, &usage) {
            assert_eq!(failure(&reply), (None, String::new()), "{written}");
            assert_eq!(
                (reply.tokens.input, reply.tokens.output, reply.tokens.cached),
                (Some(7), count, None),
                "{written}"
            );
        }
    }
    for usage in ["7", "[]", r#""none""#, r#"{"completion_tokens":1e999}"#] {
        for reply in both_ways("x", r#""stop""#, usage) {
            assert_eq!((failure(&reply).0, reply.tokens.output), (None, None), "{usage}");
        }
    }
}

// ---- what may not be sent ----

#[test]
fn what_would_replace_the_prompts_or_break_the_counts_is_refused_before_anything_is_sent() {
    let server = RawServer::start(|_, stream| stream.write_all(ok("application/json", GOOD).as_bytes()).is_ok());
    let check = |request: &str| {
        let config =
            format!("llm: {{endpoint: '{}', model: m}}\nbenchmark: {{request: {request}}}\n", server.base_url());
        let output = servers::binary(servers::folder(&config).path()).arg("check").output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (request, key, mend) in [
        ("{extra_body: {messages: [{role: user, content: hi}]}}", "messages", "benchmark.request.prompts"),
        ("{kind: completion, extra_body: {prompt: hi}}", "prompt", "benchmark.request.prompts"),
        ("{kind: embedding, extra_body: {input: hi}}", "input", "benchmark.request.prompts"),
        ("{kind: responses, extra_body: {input: hi}}", "input", "benchmark.request.prompts"),
        ("{kind: responses, extra_body: {max_output_tokens: 9}}", "max_output_tokens", "benchmark.request.max_tokens"),
        ("{kind: messages, extra_body: {messages: []}}", "messages", "benchmark.request.prompts"),
        ("{kind: messages, extra_body: {max_tokens: 9}}", "max_tokens", "benchmark.request.max_tokens"),
        ("{extra_body: {model: other}}", "model", "llm.model"),
        ("{extra_body: {stream: false}}", "stream", "benchmark.request.stream"),
        ("{extra_body: {stream_options: {include_usage: false}}}", "stream_options", "include_usage: true"),
        ("{extra_body: {max_tokens: 4096}}", "max_tokens", "benchmark.request.max_tokens"),
        ("{extra_body: {max_tokens: null}}", "max_tokens", "benchmark.request.max_tokens"),
        (
            "{extra_body: {max_tokens: null, max_completion_tokens: 4096}}",
            "max_completion_tokens",
            "benchmark.request.max_tokens",
        ),
    ] {
        let (code, stderr) = check(request);
        assert_eq!(code, Some(1), "{request}: {stderr}");
        assert!(stderr.contains(&format!("benchmark.request.extra_body.{key}: ")) && stderr.contains(mend), "{stderr}");
    }
    assert!(server.requests.lock().unwrap().is_empty());
    let fine = [
        "temperature: 0",
        "stream_options: null",
        "stream_options: {include_usage: true, x: 1}",
        "max_tokens: null, max_completion_tokens: 64",
    ];
    for extra in fine {
        let (code, stderr) = check(&format!("{{extra_body: {{{extra}}}}}"));
        assert_eq!(code, Some(0), "{extra}: {stderr}");
    }
}

// ---- proxies ----

/// A proxy's own loopback is another machine's, or leads nowhere. 0.0.0.0 is this machine too, and no loopback.
#[test]
fn the_proxy_variables_are_honoured_but_for_this_machine_and_shown() {
    let good =
        |_: &str, stream: &mut std::net::TcpStream| stream.write_all(ok("application/json", GOOD).as_bytes()).is_ok();
    let (proxy, server) = (RawServer::start(good), RawServer::start(good));
    let asked = |server: &RawServer| std::mem::take(&mut *server.requests.lock().unwrap());
    let folder = servers::folder("llm: {endpoint: simulator}\n");
    let by_proxy = format!("http://{}/", proxy.address);
    let door = |args: &[&str], variable: &str, endpoint: &str, no_proxy: &str| {
        let mut command = servers::binary(folder.path());
        command.args(args).args(["--llm-endpoint", endpoint]).env(variable, &by_proxy).env("NO_PROXY", no_proxy);
        let output = command.output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&output.stderr));
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat()
    };
    let run = ["run", "--levels", "1", "--total-requests", "30"];
    let local = server.base_url();
    let far = local.replace("127.0.0.1", "0.0.0.0");
    let output = door(&run, "HTTP_PROXY", "http://llm.example/v1", "");
    assert!(output.contains(&format!("against http://llm.example/v1 (through the proxy {by_proxy})")), "{output}");
    let through = asked(&proxy);
    assert!(through.len() >= 30);
    assert!(through[0].starts_with("POST http://llm.example/v1/chat/completions HTTP/1.1"), "{}", through[0]);
    for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        let output = door(&["check"], variable, &far, "");
        assert!(output.contains(&format!("proxy     {by_proxy} (")), "{output}");
        assert!(!asked(&proxy).is_empty() && asked(&server).is_empty());
        let here = local.replace("127.0.0.1", "localhost");
        for (endpoint, no_proxy) in [("simulator", ""), (&local, ""), (&here, ""), (&far, "0.0.0.0")] {
            let output = door(&["check"], variable, endpoint, no_proxy);
            assert!(!output.contains("proxy"), "{endpoint}: {output}");
            assert_eq!(asked(&proxy).len(), 0, "{endpoint}");
            assert_eq!(asked(&server).is_empty(), endpoint == "simulator", "{endpoint}");
        }
    }
}
