//! What the client itself costs: processor time per request through the real path (build, send, parse, record on
//! disk), beside raw hyper that reads the same bytes in the same run without understanding them.
//!
//! `cargo bench --bench client_cost`, or `-- ROUNDS` for other than five rounds. The server is a process of its own, answers at
//! once, and sends a streamed answer as 64 chunks written one by one. Needs Linux, whose `/proc` tells the time used.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use llm_concurrency::client::{BodyTemplate, Transport};
use llm_concurrency::closed_loop::{self, LoopPlan, Observer, Window};
use llm_concurrency::config::{Llm, RequestSettings};
use llm_concurrency::monitor::{Counts, LevelMonitor, Live};
use llm_concurrency::outcome::{Reply, RequestOutcome};
use llm_concurrency::plan::SAMPLES;
use llm_concurrency::results::SidecarWriter;
use llm_concurrency::snippets::Prompt;
use llm_concurrency::target::Target;
use reqwest::Url;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

const LEVELS: [usize; 4] = [1, 16, 64, 256];
const CHUNKS: usize = 64;
const ROUNDS: usize = 5;
/// Set for the process that serves.
const SERVE: &str = "CLIENT_COST_SERVE";
const PROMPT: &str = "What does this function return, and when does it fail?";
/// Clock ticks per second in `/proc/self/stat`: 100 on every Linux of today (USER_HZ).
const TICKS: f64 = 100.0;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Stream,
}

impl Kind {
    fn name(self) -> &'static str {
        if self == Kind::Plain { "plain" } else { "stream" }
    }

    /// Enough that a tick of the processor clock is a percent at most.
    fn requests(self) -> usize {
        if self == Kind::Plain { 30_000 } else { 6_000 }
    }

    fn settings(self) -> RequestSettings {
        RequestSettings { stream: self == Kind::Stream, ..RequestSettings::default() }
    }
}

fn main() {
    if std::env::var_os(SERVE).is_some() {
        return runtime().block_on(serve());
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` only wants to see it start.
    if !args.iter().any(|arg| arg == "--bench") {
        return;
    }
    let rounds = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(ROUNDS);
    let server = Server::start();
    println!("processor time per request, µs: the median of {rounds} rounds, all in turn in each round");
    println!("{:>6} {:>6} {:>8} {:>9} {:>10} {:>6}", "kind", "level", "ours", "no view", "raw hyper", "ratio");
    for kind in [Kind::Plain, Kind::Stream] {
        for level in LEVELS {
            let cost = |is_seen| ours(server.address, kind, level, is_seen);
            let all: Vec<[f64; 3]> =
                (0..rounds).map(|_| [cost(true), cost(false), raw(server.address, kind, level)]).collect();
            let middle = |figure: fn(&[f64; 3]) -> f64| median(all.iter().map(figure).collect());
            let [own, unseen, raw, ratio] =
                [middle(|r| r[0]), middle(|r| r[1]), middle(|r| r[2]), middle(|r| r[0] / r[2])];
            println!("{:>6} {level:>6} {own:>8.1} {unseen:>9.1} {raw:>10.1} {ratio:>6.2}", kind.name());
        }
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Processor seconds of this process so far, those of threads that have ended included.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux's /proc");
    // The name, in parentheses, may hold spaces: user and system time are the 12th and 13th field after it.
    let fields = stat.rsplit(')').next().expect("the fields after the name").split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// Microseconds per request of what `load` spends on `requests` of them.
fn cost_us(requests: usize, load: impl FnOnce()) -> f64 {
    let before = cpu_s();
    load();
    (cpu_s() - before) / requests as f64 * 1e6
}

// ---- through our own path ----

/// Records as the sweep does.
struct Records {
    sidecar: SidecarWriter,
    counts: Option<Arc<Counts>>,
}

impl Observer for Records {
    fn issued(&mut self, ticket: closed_loop::Ticket) {
        if let Some(counts) = &self.counts {
            counts.issued(ticket.phase);
        }
    }
    fn ended(&mut self, outcome: RequestOutcome, _: Reply) {
        assert_eq!(outcome.failure, None, "{:?}", outcome.error);
        if let Some(counts) = &self.counts {
            counts.ended(&outcome);
        }
        self.sidecar.push(outcome);
    }
    fn window(&mut self, _: Window) {}
}

/// With the live view on, or without any count of it.
fn ours(server: SocketAddr, kind: Kind, level: usize, is_seen: bool) -> f64 {
    let request = kind.settings();
    let url = Url::parse(&format!("http://{server}/v1")).expect("a URL");
    let prompt = Prompt { id: "1".to_owned(), size: "small".to_owned(), text: PROMPT.to_owned() };
    let folder = tempfile::tempdir().expect("a folder");
    let plan = LoopPlan::new(level, kind.requests(), level, SAMPLES, level);
    cost_us(kind.requests(), || {
        let runtime = runtime();
        let (_go_on, stop) = tokio::sync::watch::channel(false);
        let sidecar = SidecarWriter::create(folder.path().join("level.jsonl")).expect("a sidecar");
        let counts = is_seen.then(|| Live::default().begin(level, 0, plan.tickets()));
        let mut monitor = counts.clone().map(|counts| LevelMonitor::new(counts, false));
        monitor.iter_mut().for_each(LevelMonitor::show);
        let mut records = Records { sidecar, counts };
        let transport = Transport::new(&url, request.kind, &Llm::default(), None).expect("a client");
        let target = Target::new(transport, "m", &request, &[prompt], "cost");
        let send = |ticket: closed_loop::Ticket| target.send(level, ticket.seq);
        runtime.block_on(closed_loop::run(&plan, stop, send, &mut records));
        drop(monitor);
        records.sidecar.finish().expect("the records are on disk");
    })
}

// ---- the same bytes, not understood ----

fn raw(server: SocketAddr, kind: Kind, level: usize) -> f64 {
    let body = BodyTemplate::new("m", &kind.settings(), PROMPT).fill("0123456789abcdef ");
    cost_us(kind.requests(), || {
        runtime().block_on(async {
            let sent = Arc::new(AtomicUsize::new(0));
            let mut workers = JoinSet::new();
            for _ in 0..level {
                workers.spawn(read_only(server, body.clone(), kind.requests(), sent.clone()));
            }
            while let Some(ended) = workers.join_next().await {
                ended.expect("no panic");
            }
        });
    })
}

async fn read_only(server: SocketAddr, body: Bytes, requests: usize, sent: Arc<AtomicUsize>) {
    let stream = TcpStream::connect(server).await.expect("the server listens");
    stream.set_nodelay(true).expect("a TCP stream");
    let (mut sender, connection): (SendRequest<Full<Bytes>>, _) =
        handshake(TokioIo::new(stream)).await.expect("a connection");
    tokio::spawn(connection);
    while sent.fetch_add(1, Relaxed) < requests {
        let request = Request::post("/v1/chat/completions")
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(body.clone()))
            .expect("a request");
        sender.ready().await.expect("the connection is free");
        let mut response = sender.send_request(request).await.expect("an answer");
        while let Some(frame) = response.frame().await {
            std::hint::black_box(frame.expect("the answer goes on"));
        }
    }
}

// ---- the server, a process of its own ----

struct Server {
    address: SocketAddr,
    process: Child,
}

impl Server {
    fn start() -> Self {
        let own = std::env::current_exe().expect("the path of this program");
        let mut process = Command::new(own)
            .env(SERVE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts again");
        let mut line = String::new();
        let output = process.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line).expect("the server says where it is");
        Server { address: line.trim().parse().expect("an address"), process }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends with its standard input.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

async fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("{}", listener.local_addr().expect("it is bound"));
    std::io::stdout().flush().expect("somebody reads");
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let answers: &'static Answers = Box::leak(Box::new(Answers::new()));
    loop {
        let (stream, _) = listener.accept().await.expect("the listener stays");
        tokio::spawn(answer_all(stream, answers));
    }
}

struct Answers {
    plain: Vec<u8>,
    stream: Vec<Vec<u8>>,
}

impl Answers {
    fn new() -> Self {
        let usage = r#""usage":{"prompt_tokens":20,"completion_tokens":64,"total_tokens":84}"#;
        let text = "word ".repeat(CHUNKS);
        let whole = format!(
            r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],{usage}}}"#
        );
        let head = "HTTP/1.1 200 OK\r\ncontent-type: ";
        let plain = format!("{head}application/json\r\ncontent-length: {}\r\n\r\n{whole}", whole.len());
        let chunk = |data: &str| format!("{:x}\r\ndata: {data}\n\n\r\n", data.len() + 8).into_bytes();
        let event = |delta: &str, reason: &str| {
            chunk(&format!(
                r#"{{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m","choices":[{{"index":0,"delta":{delta},"finish_reason":{reason}}}]}}"#
            ))
        };
        let mut stream = vec![format!("{head}text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").into_bytes()];
        stream.extend((0..CHUNKS).map(|_| event(r#"{"content":"word "}"#, "null")));
        stream.push(event("{}", r#""stop""#));
        stream.push(chunk(&format!(
            r#"{{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m","choices":[],{usage}}}"#
        )));
        stream.push([chunk("[DONE]"), b"0\r\n\r\n".to_vec()].concat());
        Answers { plain: plain.into_bytes(), stream }
    }
}

async fn answer_all(mut stream: TcpStream, answers: &Answers) {
    stream.set_nodelay(true).expect("a TCP stream");
    let mut request = Vec::new();
    while let Some(streamed) = next_request(&mut stream, &mut request).await {
        let answered = if streamed {
            write_each(&mut stream, &answers.stream).await
        } else {
            stream.write_all(&answers.plain).await
        };
        if answered.is_err() {
            return;
        }
    }
}

async fn write_each(stream: &mut TcpStream, parts: &[Vec<u8>]) -> std::io::Result<()> {
    for part in parts {
        stream.write_all(part).await?;
        // Others get their turn, as in an engine whose step gives each sequence one token.
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Whether the next request wants a stream; `None` when the client has gone.
async fn next_request(stream: &mut TcpStream, request: &mut Vec<u8>) -> Option<bool> {
    request.clear();
    loop {
        if stream.read_buf(request).await.ok()? == 0 {
            return None;
        }
        let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.trim().parse().ok());
        let body = &request[end + 4..];
        if body.len() >= length.unwrap_or(0) {
            let wish = b"\"stream\":true";
            return Some(body.windows(wish.len()).any(|part| part == wish));
        }
    }
}
