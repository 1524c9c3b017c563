//! The client and the network: stale connections, timeouts, TLS, HTTP/2, proxies, error bodies.

#![cfg(feature = "suite")]

mod servers;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::routing::post;
use llm_concurrency::closed_loop::LoopPlan;
use llm_concurrency::config::{Llm, RequestSettings};
use llm_concurrency::outcome::{Failure, Reply};
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
        let (failed, said) = failure(&reply);
        assert_eq!((reply.status, failed), (Some(status), Some(kind)), "{body}: {said}");
        assert!(said == message || said.starts_with(message) && said.chars().count() == 201, "{said}");
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

// ---- proxies ----

#[test]
fn the_proxy_variables_are_honoured_and_so_is_no_proxy() {
    let folder = servers::folder("llm: {}\n");
    let good =
        |_: &str, stream: &mut std::net::TcpStream| stream.write_all(ok("application/json", GOOD).as_bytes()).is_ok();
    let (proxy, server) = (RawServer::start(good), RawServer::start(good));
    let run = |endpoint: &str, no_proxy: &str| {
        let output = servers::binary(folder.path())
            .args(["run", "--levels", "1", "--total-requests", "30", "--llm-endpoint", endpoint])
            .env("HTTP_PROXY", format!("http://{}", proxy.address))
            .env("NO_PROXY", no_proxy)
            .output()
            .unwrap();
        assert!(matches!(output.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run("http://llm.example/v1", "");
    let through = proxy.requests.lock().unwrap().len();
    assert!(through >= 30);
    let first = proxy.requests.lock().unwrap()[0].clone();
    assert!(first.starts_with("POST http://llm.example/v1/chat/completions HTTP/1.1"), "{first}");
    run(&server.base_url(), "127.0.0.1");
    assert!(server.requests.lock().unwrap().len() >= 30);
    assert_eq!(proxy.requests.lock().unwrap().len(), through);
}
