//! The server: a separate process that keeps its own record of each request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use crate::clock::Clock;

/// Environment variable that makes the process serve.
pub const SERVE: &str = "CLIENT_COST_SERVE";

/// How the server answers.
#[derive(Clone, Copy)]
pub struct Behaviour {
    /// Milliseconds until the first token. With 0 it answers at once and records nothing.
    pub first_ms: u64,
    /// Milliseconds between two tokens.
    pub gap_ms: u64,
    pub tokens: u32,
    /// Number of requests served at a time; the others wait.
    pub slots: usize,
}

impl Behaviour {
    pub const fn at_once(tokens: u32) -> Self {
        Behaviour { first_ms: 0, gap_ms: 0, tokens, slots: Semaphore::MAX_PERMITS }
    }

    fn to_text(self) -> String {
        format!("{} {} {} {}", self.first_ms, self.gap_ms, self.tokens, self.slots)
    }

    fn from_text(text: &str) -> Self {
        let numbers: Vec<u64> = text.split(' ').map(|number| number.parse().expect("a number")).collect();
        let [first_ms, gap_ms, tokens, slots] = numbers[..] else { panic!("four numbers in {SERVE}") };
        Behaviour { first_ms, gap_ms, tokens: tokens as u32, slots: slots as usize }
    }
}

/// The server's record of one request; times in microseconds since the server's start.
#[derive(Clone, Debug)]
pub struct Seen {
    pub arrived: f64,
    /// When the first token was handed to the connection.
    pub first: f64,
    pub finished: f64,
    /// Gaps between tokens.
    pub gaps: Vec<f64>,
}

/// Handle to the server in the measuring process.
pub struct Server {
    pub address: SocketAddr,
    process: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Server {
    pub fn start(behaviour: Behaviour) -> Self {
        let own = std::env::current_exe().expect("the path of this program");
        let mut process = Command::new(own)
            .env(SERVE, behaviour.to_text())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts again");
        let mut output = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("the server says where it is");
        Server { address: line.trim().parse().expect("an address"), process, output }
    }

    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Ends the server. Returns its record, in order of arrival.
    pub fn finish(mut self) -> Vec<Seen> {
        drop(self.process.stdin.take());
        let mut seen: Vec<Seen> = Vec::new();
        for line in (&mut self.output).lines() {
            let line = line.expect("its record");
            let mut times = line.split(' ').map(|time| time.parse().expect("a time"));
            let mut next = || times.next().expect("three times at least");
            let (arrived, first, finished) = (next(), next(), next());
            seen.push(Seen { arrived, first, finished, gaps: times.collect() });
        }
        seen.sort_by(|a, b| a.arrived.total_cmp(&b.arrived));
        seen
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The server ends when its stdin is closed.
        drop(self.process.stdin.take());
        // Drain its output: a full pipe would keep it from ending.
        let _ = std::io::copy(&mut self.output, &mut std::io::sink());
        let _ = self.process.wait();
    }
}

// ---- in the process that serves ----

struct Serving {
    behaviour: Behaviour,
    answers: Answers,
    slots: Semaphore,
    clock: Clock,
    began: Instant,
    seen: Mutex<Vec<Seen>>,
}

impl Serving {
    fn now_us(&self) -> f64 {
        self.began.elapsed().as_nanos() as f64 / 1e3
    }
}

pub async fn serve() {
    let behaviour = Behaviour::from_text(&std::env::var(SERVE).expect("it is set"));
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let listener = socket.listen(4096).expect("a listener");
    println!("{}", listener.local_addr().expect("it is bound"));
    std::io::stdout().flush().expect("somebody reads");
    let serving = Arc::new(Serving {
        behaviour,
        answers: Answers::new(behaviour.tokens),
        slots: Semaphore::new(behaviour.slots),
        clock: Clock::start(),
        began: Instant::now(),
        seen: Mutex::default(),
    });
    let at_end = serving.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        let mut text = String::new();
        for seen in at_end.seen.lock().expect("nobody panics with it").iter() {
            text += &format!("{} {} {}", seen.arrived, seen.first, seen.finished);
            seen.gaps.iter().for_each(|gap| text += &format!(" {gap}"));
            text.push('\n');
        }
        let _ = std::io::stdout().write_all(text.as_bytes());
        std::process::exit(0);
    });
    loop {
        let (stream, _) = listener.accept().await.expect("the listener stays");
        let serving = serving.clone();
        tokio::spawn(async move { answer_all(stream, &serving).await });
    }
}

struct Answers {
    plain: Vec<u8>,
    head: Vec<u8>,
    token: Vec<u8>,
    end: [Vec<u8>; 3],
}

impl Answers {
    fn new(tokens: u32) -> Self {
        let total = tokens + 20;
        let usage = format!(r#""usage":{{"prompt_tokens":20,"completion_tokens":{tokens},"total_tokens":{total}}}"#);
        let text = "word ".repeat(tokens as usize);
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
        let usage = chunk(&format!(
            r#"{{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m","choices":[],{usage}}}"#
        ));
        Answers {
            plain: plain.into_bytes(),
            head: format!("{head}text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").into_bytes(),
            token: event(r#"{"content":"word "}"#, "null"),
            end: [event("{}", r#""stop""#), usage, [chunk("[DONE]"), b"0\r\n\r\n".to_vec()].concat()],
        }
    }
}

async fn answer_all(mut stream: TcpStream, serving: &Serving) {
    stream.set_nodelay(true).expect("a TCP stream");
    let mut request = Vec::new();
    while let Some(streamed) = next_request(&mut stream, &mut request).await {
        if answer(&mut stream, streamed, serving).await.is_err() {
            return;
        }
    }
}

async fn answer(stream: &mut TcpStream, streamed: bool, serving: &Serving) -> std::io::Result<()> {
    let Serving { behaviour, answers, .. } = serving;
    let arrived = serving.now_us();
    let _slot = serving.slots.acquire().await.expect("nobody closes it");
    let began = Instant::now();
    let at_once = behaviour.first_ms == 0;
    let due = |token: u32| {
        began + Duration::from_millis(behaviour.first_ms) + token * Duration::from_millis(behaviour.gap_ms)
    };
    // Called before the last byte is sent, so that every answer a client has received is in the record.
    let note = |first: f64, gaps: Vec<f64>| {
        let seen = Seen { arrived, first, finished: serving.now_us(), gaps };
        serving.seen.lock().expect("nobody panics with it").push(seen);
    };
    if !streamed {
        if !at_once {
            serving.clock.sleep_until(due(behaviour.tokens - 1)).await;
            note(serving.now_us(), Vec::new());
        }
        return stream.write_all(&answers.plain).await;
    }
    stream.write_all(&answers.head).await?;
    let mut times = Vec::new();
    for token in 0..behaviour.tokens {
        if at_once {
            // Let the other streams run, as in an engine whose step yields one token per sequence.
            tokio::task::yield_now().await;
        } else {
            serving.clock.sleep_until(due(token)).await;
            times.push(serving.now_us());
        }
        stream.write_all(&answers.token).await?;
    }
    for part in &answers.end {
        stream.write_all(part).await?;
        tokio::task::yield_now().await;
    }
    if let Some(&first) = times.first() {
        note(first, times.windows(2).map(|pair| pair[1] - pair[0]).collect());
    }
    Ok(())
}

/// Whether the next request asks for a stream; `None` if the client is gone.
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
