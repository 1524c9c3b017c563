//! CPU time per request, compared with raw hyper and wrk.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use llm_concurrency::client::outcome::{Reply, RequestOutcome};
use llm_concurrency::client::{BodyTemplate, Transport};
use llm_concurrency::client::{Llm, RequestSettings};
use llm_concurrency::load::closed_loop::{self, LoopPlan, Observer, Window};
use llm_concurrency::load::target::Target;
use llm_concurrency::measure::plan::SAMPLES;
use llm_concurrency::monitor::{Counts, LevelMonitor, Live};
use llm_concurrency::prompts::Prompt;
use llm_concurrency::record::SidecarWriter;
use reqwest::Url;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::proc::{Cpu, cpu_s};
use crate::server::{Behaviour, Server};
use crate::{median, runtime};

const LEVELS: [usize; 4] = [1, 16, 64, 256];
const CHUNKS: u32 = 64;
const PROMPT: &str = "What does this function return, and when does it fail?";
const PREFIX: &str = "0123456789abcdef ";

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Stream,
}

impl Kind {
    fn name(self) -> &'static str {
        if self == Kind::Plain { "plain" } else { "stream" }
    }

    /// Number of requests; enough that one tick of the CPU clock is at most a percent.
    fn requests(self) -> usize {
        if self == Kind::Plain { 30_000 } else { 6_000 }
    }

    fn settings(self) -> RequestSettings {
        RequestSettings { stream: self == Kind::Stream, ..RequestSettings::default() }
    }
}

/// Prints the table of levels; only the rows whose kind or level is in `only`, unless that is empty.
pub fn run(rounds: usize, only: &[String]) {
    let server = Server::start(Behaviour::at_once(CHUNKS));
    println!("processor time per request, µs: medians of {rounds} rounds, each of them all in turn");
    println!("  kind  level     ours  raw hyper  ratio      wrk  ratio");
    for kind in [Kind::Plain, Kind::Stream] {
        for level in LEVELS {
            let names = [kind.name().to_owned(), level.to_string()];
            if !only.iter().all(|wanted| names.contains(wanted)) {
                continue;
            }
            let figures: Vec<[f64; 3]> = (0..rounds)
                .map(|_| {
                    let wrk = if kind == Kind::Plain { wrk(server.address, level) } else { None };
                    [ours(server.address, kind, level), raw(server.address, kind, level), wrk.unwrap_or(f64::NAN)]
                })
                .collect();
            let middle = |figure: fn(&[f64; 3]) -> f64| median(figures.iter().map(figure).collect());
            let [own, raw, wrk] = [middle(|f| f[0]), middle(|f| f[1]), middle(|f| f[2])];
            let ratios = [middle(|f| f[0] / f[1]), middle(|f| f[0] / f[2])];
            println!(
                "{:>6} {level:>6} {own:>8.1} {raw:>10.1} {:>6.2} {wrk:>8.1} {:>6.2}",
                kind.name(),
                ratios[0],
                ratios[1]
            );
        }
    }
}

/// CPU time of `load`, in microseconds per request.
fn cost_us(requests: usize, load: impl FnOnce()) -> f64 {
    let before = cpu_s(Cpu::Own);
    load();
    (cpu_s(Cpu::Own) - before) / requests as f64 * 1e6
}

// ---- ours: the real path ----

/// Records like the sweep, including the live view.
struct Records {
    sidecar: SidecarWriter,
    counts: Arc<Counts>,
}

impl Observer for Records {
    fn issued(&mut self, ticket: closed_loop::Ticket) {
        self.counts.issued(ticket.phase);
    }
    fn ended(&mut self, outcome: RequestOutcome, _: Reply) {
        assert_eq!(outcome.failure, None, "{:?}", outcome.error);
        self.counts.ended(&outcome);
        self.sidecar.push(outcome);
    }
    fn window(&mut self, _: Window) {}
}

fn ours(server: SocketAddr, kind: Kind, level: usize) -> f64 {
    let request = kind.settings();
    let url = Url::parse(&format!("http://{server}/v1")).expect("a URL");
    let prompt = Prompt::from(PROMPT);
    let folder = tempfile::tempdir().expect("a folder");
    let plan = LoopPlan::new(level, kind.requests(), level, SAMPLES, level);
    cost_us(kind.requests(), || {
        let runtime = runtime();
        let (_go_on, stop) = tokio::sync::watch::channel(false);
        let sidecar = SidecarWriter::open(folder.path().join("level.jsonl")).expect("a sidecar");
        let counts = Arc::new(Live::default()).begin(level, 0, plan.tickets());
        let mut monitor = LevelMonitor::new(counts.clone(), false);
        monitor.show();
        let mut records = Records { sidecar, counts };
        let transport = Transport::new(&url, request.kind, &Llm::default(), None).expect("a client");
        let target = Target::new(transport, "m", &request, &[prompt], "cost");
        let send = |ticket: closed_loop::Ticket| target.send(level, ticket.seq);
        runtime.block_on(closed_loop::run(&plan, stop, send, &mut records));
        drop(monitor);
        records.sidecar.finish().expect("the records are on disk");
    })
}

// ---- raw hyper: the same bytes, not parsed ----

fn raw(server: SocketAddr, kind: Kind, level: usize) -> f64 {
    let body = BodyTemplate::new("m", &kind.settings(), &Prompt::from(PROMPT)).fill(PREFIX);
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

// ---- wrk: the same requests, parsing only HTTP itself ----

/// `None` if wrk is not installed.
fn wrk(server: SocketAddr, level: usize) -> Option<f64> {
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("post.lua");
    let body = BodyTemplate::new("m", &Kind::Plain.settings(), &Prompt::from(PROMPT)).fill(PREFIX);
    let body = std::str::from_utf8(&body).expect("JSON");
    let text =
        format!("wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\nwrk.body = [==[{body}]==]\n");
    std::fs::write(&script, text).expect("a script");
    let before = cpu_s(Cpu::Children);
    let output = Command::new("wrk")
        .args(["-t1", "-d2s", &format!("-c{level}"), "-s"])
        .arg(&script)
        .arg(format!("http://{server}/v1/chat/completions"))
        .stderr(Stdio::inherit())
        .output()
        .ok()?;
    let spent = cpu_s(Cpu::Children) - before;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let requests: f64 = stdout.split(" requests in").next()?.rsplit(char::is_whitespace).next()?.parse().ok()?;
    Some(spent / requests * 1e6)
}
