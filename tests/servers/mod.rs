//! What several tests need: a level against a URL, the binary in a folder of its own, servers written by hand.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use llm_concurrency::client::outcome::{Reply, RequestOutcome};
use llm_concurrency::client::{BodyTemplate, Transport};
use llm_concurrency::client::{Llm, RequestSettings};
use llm_concurrency::load::closed_loop::{self, LoopPlan};
use reqwest::Url;

/// Measures one level and returns a record for each request, as it would stand in the sidecar.
pub fn measure(base_url: &str, llm: &Llm, request: &RequestSettings, plan: &LoopPlan) -> Vec<RequestOutcome> {
    let base = Url::parse(base_url).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let transport = Transport::new(&base, request.kind, llm, None).unwrap();
        let body = BodyTemplate::new("m", request, &"What does this function return?".into());
        let (_go_on, stop) = tokio::sync::watch::channel(false);
        let mut lines = Vec::new();
        let send = |ticket: closed_loop::Ticket| {
            let (transport, body) = (transport.clone(), body.fill(&format!("{:08} ", ticket.seq)));
            async move { transport.send(body).await }
        };
        closed_loop::run(plan, stop, send, &mut lines).await;
        lines
    })
}

/// Sends one request.
pub fn send_once(base_url: &str, llm: &Llm, request: &RequestSettings) -> Reply {
    let base = Url::parse(base_url).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let transport = Transport::new(&base, request.kind, llm, None).unwrap();
        transport.send(BodyTemplate::new("m", request, &"Why?".into()).fill("")).await
    })
}

/// The binary, with nothing of this process's settings, in `folder`.
pub fn binary(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-concurrency"));
    clean(&mut command, folder);
    command
}

/// Takes away what would change a run, and lets everything be written below `folder`.
pub fn clean(command: &mut Command, folder: &Path) {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().to_ascii_uppercase();
        if name.starts_with("LLM_")
            || name.ends_with("_PROXY")
            || name.starts_with("OPENAI_")
            || name.starts_with("SSL_")
        {
            command.env_remove(&name).env_remove(name.to_ascii_lowercase());
        }
    }
    command.current_dir(folder).env("CRITERION_HOME", folder.join("target/criterion"));
}

/// A folder with prompts and this config.yaml.
pub fn folder(config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.yaml"), config).unwrap();
    let prompts = folder.path().join("test-data");
    std::fs::create_dir(&prompts).unwrap();
    std::fs::copy("test-data/test_snippets.json", prompts.join("test_snippets.json")).unwrap();
    folder
}

/// A server on loopback whose connections are answered by hand, each on a thread of its own.
pub struct RawServer {
    pub address: SocketAddr,
    /// The heads and bodies of all requests.
    pub requests: Arc<Mutex<Vec<String>>>,
}

impl RawServer {
    /// `answer` gets each request and the connection; true: it takes another request on it.
    pub fn start(answer: impl Fn(&str, &mut TcpStream) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (answer, seen) = (Arc::new(answer), requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, seen) = (answer.clone(), seen.clone());
                std::thread::spawn(move || serve(stream, &*answer, &seen));
            }
        });
        RawServer { address, requests }
    }

    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }
}

fn serve(mut stream: TcpStream, answer: &dyn Fn(&str, &mut TcpStream) -> bool, seen: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(request) = read_request(&mut reader) {
        seen.lock().unwrap().push(request.clone());
        if !answer(&request, &mut stream) {
            break;
        }
    }
}

/// Head and body; `None` when the client has gone.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut request = String::new();
    while !request.ends_with("\r\n\r\n") {
        if reader.read_line(&mut request).ok()? == 0 {
            return None;
        }
    }
    let length = request.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<u64>().ok())?
    });
    reader.take(length.unwrap_or(0)).read_to_string(&mut request).ok()?;
    Some(request)
}

/// A whole answer with this content type and body.
pub fn ok(content_type: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// A good answer in one piece.
pub const GOOD: &str = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"a list"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#;
