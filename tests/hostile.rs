//! Servers that mean no good: each ends in one named failure, within the timeouts and in little memory.

#![cfg(feature = "suite")]

mod servers;

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use llm_concurrency::client::outcome::Failure;
use llm_concurrency::client::{Llm, RequestSettings};
use servers::{GOOD, RawServer, ok};

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// The most memory the program may have taken at any time, in KiB.
const MOST_KIB: u64 = 100 * 1024;

fn impatient() -> Llm {
    Llm { request_timeout: 20.0, first_byte_timeout: Some(1.0), idle_timeout: Some(1.0), ..Llm::default() }
}

/// Writes `start`, and then `more` until the client leaves.
fn endless(start: &str, more: &[u8], stream: &mut TcpStream) -> bool {
    let _ = stream.write_all(start.as_bytes());
    while stream.write_all(more).is_ok() {}
    false
}

/// Writes `bytes` and closes.
fn just(bytes: impl AsRef<[u8]> + Send + Sync) -> impl Fn(&str, &mut TcpStream) -> bool + Send + Sync {
    move |_, stream| {
        let _ = stream.write_all(bytes.as_ref());
        false
    }
}

/// What one request to such a server comes to.
fn verdict(stream: bool, answer: impl Fn(&str, &mut TcpStream) -> bool + Send + Sync + 'static) -> (Failure, String) {
    let server = RawServer::start(answer);
    let request = RequestSettings { stream, ..RequestSettings::default() };
    let reply = servers::send_once(&server.base_url(), &impatient(), &request);
    let failed = reply.failure.expect("such an answer is no success");
    assert!(failed.message.chars().count() <= 201, "short: {}", failed.message);
    assert!(!failed.message.chars().any(char::is_control), "on one line: {:?}", failed.message);
    (failed.kind, failed.message)
}

#[track_caller]
fn expect(got: (Failure, String), kind: Failure, part: &str) {
    assert!(got.0 == kind && got.1.contains(part), "expected {kind} with {part:?}, got {got:?}");
}

#[test]
fn an_endless_body_is_given_up_at_its_limit() {
    let start = format!("{HEAD}\r\n{{\"choices\":[{{\"message\":{{\"content\":\"");
    let got = verdict(false, move |_, stream| endless(&start, &[b'x'; 65536], stream));
    expect(got, Failure::Malformed, "larger than 4 MiB");
}

#[test]
fn an_endless_line_is_given_up_at_its_limit() {
    let start = format!("{STREAM_HEAD}data: {{\"choices\":[{{\"delta\":{{\"content\":\"");
    let got = verdict(true, move |_, stream| endless(&start, &[b'x'; 65536], stream));
    expect(got, Failure::Malformed, "a line of the stream is longer than 1048576 bytes");
}

#[test]
fn an_endless_stream_of_good_lines_is_given_up_at_its_limit() {
    let comments = format!(": {}\n", "x".repeat(1000)).repeat(64);
    let got = verdict(true, move |_, stream| endless(STREAM_HEAD, comments.as_bytes(), stream));
    expect(got, Failure::Malformed, "larger than 32 MiB");
}

#[test]
fn an_endless_event_of_many_lines_is_given_up_at_its_limit() {
    let lines = format!("data: {}\n", "x".repeat(1000)).repeat(64);
    let got = verdict(true, move |_, stream| endless(STREAM_HEAD, lines.as_bytes(), stream));
    expect(got, Failure::Malformed, "longer than 1048576 bytes");
}

#[test]
fn an_endless_head_is_no_answer() {
    let got = verdict(false, |_, stream| endless(HEAD, b"x-more: and more and more\r\n", stream));
    expect(got, Failure::Malformed, "the answer is not HTTP");
}

#[test]
fn headers_and_then_nothing_are_a_timeout() {
    for stream in [true, false] {
        let head = if stream { STREAM_HEAD.to_owned() } else { format!("{HEAD}content-length: 9\r\n\r\n") };
        let got = verdict(stream, move |_, connection| {
            let _ = connection.write_all(head.as_bytes());
            std::thread::park();
            false
        });
        expect(got, Failure::Timeout, "llm.idle_timeout");
    }
}

/// Alive at each moment, and yet it leads nowhere.
#[test]
fn a_stream_that_only_drips_is_a_timeout() {
    let server = RawServer::start(|_, stream| {
        let _ = stream.write_all(STREAM_HEAD.as_bytes());
        while stream.write_all(b": still here\n\n").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    });
    let llm = Llm { request_timeout: 1.0, ..Llm::default() };
    let failed = servers::send_once(&server.base_url(), &llm, &RequestSettings::default()).failure.unwrap();
    expect((failed.kind, failed.message), Failure::Timeout, "llm.request_timeout");
}

#[test]
fn invalid_utf_8_is_malformed() {
    let text = b"{\"choices\":[{\"message\":{\"content\":\"\xc3\x28\xff\"}}]}";
    let head = format!("{HEAD}content-length: {}\r\n\r\n", text.len());
    expect(verdict(false, just([head.as_bytes(), text].concat())), Failure::Malformed, "not the JSON");
    let event = b"data: {\"choices\":[{\"delta\":{\"content\":\"\xc3\x28\xff\"}}]}\n\n";
    expect(verdict(true, just([STREAM_HEAD.as_bytes(), event].concat())), Failure::Malformed, "not the JSON");
}

#[test]
fn a_wrong_content_length_is_malformed() {
    let announced = |length: usize| format!("{HEAD}content-length: {length}\r\n\r\n{GOOD}");
    expect(verdict(false, just(announced(GOOD.len() + 10))), Failure::Malformed, "cut short");
    expect(verdict(false, just(announced(GOOD.len() - 10))), Failure::Malformed, "not the JSON");
    expect(verdict(false, just(format!("{HEAD}content-length: -1\r\n\r\n{GOOD}"))), Failure::Malformed, "not HTTP");
}

#[test]
fn broken_chunks_are_malformed() {
    let chunked = |chunks: &str| format!("{HEAD}transfer-encoding: chunked\r\n\r\n{chunks}");
    expect(verdict(false, just(chunked("5\r\n{\"cho\r\n"))), Failure::Malformed, "cut short");
    expect(verdict(false, just(chunked("zz\r\n{\"cho\r\n"))), Failure::Malformed, "cut short");
    expect(verdict(false, just(chunked("fffffffffffffff0\r\n{\"cho"))), Failure::Malformed, "cut short");
}

#[test]
fn what_is_not_http_is_malformed() {
    expect(verdict(false, just("SSH-2.0-OpenSSH_9.9\r\n")), Failure::Malformed, "not HTTP");
    expect(verdict(false, just([0xff; 4096])), Failure::Malformed, "not HTTP");
}

/// `1 GiB of zeros | gzip` is 1 MiB; this is the start of it.
#[test]
fn a_gzip_bomb_is_not_unpacked() {
    const GZIP: &[u8] =
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff\xec\xc1\x01\x01\x00\x00\x00\x80\x90\xfe\xaf\xee\x08\x0a";
    for encoding in ["content-encoding: gzip\r\n", ""] {
        let bomb = [GZIP, &[0; 2 << 20]].concat();
        let head = format!("{HEAD}{encoding}content-length: {}\r\n\r\n", bomb.len());
        let got = verdict(false, just([head.as_bytes(), &bomb].concat()));
        expect(got, Failure::Malformed, if encoding.is_empty() { "not the JSON" } else { "compressed (gzip)" });
    }
}

#[test]
fn an_endless_error_is_still_its_status() {
    let start = "HTTP/1.1 500 X\r\n\r\nout of memory ";
    let got = verdict(false, move |_, stream| endless(start, &[b'x'; 65536], stream));
    expect(got, Failure::ServerError, "HTTP 500: out of memory xxx");
    let got = verdict(false, |_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 503 X\r\ncontent-length: 99\r\n\r\nbusy");
        std::thread::park();
        false
    });
    expect(got, Failure::ServerError, "HTTP 503: busy");
}

#[test]
fn a_redirect_is_not_followed_and_the_key_does_not_travel() {
    let elsewhere = RawServer::start(|_, stream| stream.write_all(ok("application/json", GOOD).as_bytes()).is_ok());
    for status in [301, 302, 303, 307, 308] {
        let location = format!("{}/chat/completions?token=secret", elsewhere.base_url());
        let head = format!("HTTP/1.1 {status} X\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
        let got = verdict(false, just(head));
        expect(got.clone(), Failure::ClientError, &format!("HTTP {status}: redirect to {}", elsewhere.base_url()));
        assert!(!got.1.contains("secret"), "{}", got.1);
    }
    assert!(elsewhere.requests.lock().unwrap().is_empty());
}

/// What comes after the end is of no interest, and does not hold the request up.
#[test]
fn an_endless_rest_after_done_is_cut_off() {
    let start = format!(
        "{STREAM_HEAD}data: {{\"choices\":[{{\"delta\":{{\"content\":\"x\"}},\"finish_reason\":\"stop\"}}]}}\n\ndata: [DONE]\n\n"
    );
    let server = RawServer::start(move |_, stream| endless(&start, &[b'x'; 65536], stream));
    let reply = servers::send_once(&server.base_url(), &impatient(), &RequestSettings::default());
    assert_eq!(reply.failure, None);
    assert_eq!(reply.chunks, 1);
}

/// The whole program at level 50 against the greediest of them: what the system says about its memory.
#[cfg(target_os = "linux")]
#[test]
fn the_program_stays_small() {
    let body = format!("{HEAD}\r\n{{\"choices\":[{{\"message\":{{\"content\":\"");
    let line = format!("{STREAM_HEAD}data: {{\"choices\":[{{\"delta\":{{\"content\":\"");
    let error = "HTTP/1.1 500 X\r\n\r\n".to_owned();
    let text = vec![b'x'; 65536];
    let lines = format!("data: {}\n", "x".repeat(1000)).repeat(64).into_bytes();
    let chunks = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n".repeat(1000).into_bytes();
    let cases = [
        ("a body", false, body, text.clone(), "larger than 4 MiB"),
        ("a line", true, line, text.clone(), "longer than 1048576 bytes"),
        ("an event of many lines", true, STREAM_HEAD.to_owned(), lines, "longer than 1048576 bytes"),
        // Long before its limit of 32 MiB the time is over.
        ("a stream of tiny chunks", true, STREAM_HEAD.to_owned(), chunks, "no complete answer"),
        ("an error", false, error, text, "HTTP 500"),
    ];
    for (name, stream, start, more, expected) in cases {
        let greedy = RawServer::start(move |_, connection| endless(&start, &more, connection));
        let timeout = if name.contains("tiny") { 4 } else { 60 };
        let config = format!(
            "llm: {{endpoint: '{}', request_timeout: {timeout}}}\nbenchmark: {{request: {{stream: {stream}}}}}\n",
            greedy.base_url()
        );
        let folder = servers::folder(&config);
        let (code, peak_kib, stderr) = run_and_watch(folder.path());
        assert!(code == Some(1) && stderr.contains(expected), "{name}: {stderr}");
        assert!(peak_kib > 0 && peak_kib < MOST_KIB, "{name}: {peak_kib} KiB");
        println!("{name} without end, times 50: at most {peak_kib} KiB");
    }
}

/// Exit code, `VmHWM` in KiB as last seen, and stderr.
#[cfg(target_os = "linux")]
fn run_and_watch(folder: &std::path::Path) -> (Option<i32>, u64, String) {
    let stderr = std::fs::File::create(folder.join("stderr")).unwrap();
    let mut child =
        servers::binary(folder).args(["run", "--levels", "50"]).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0;
    let exit = loop {
        match std::fs::read_to_string(&status) {
            Ok(text) => {
                let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
                peak_kib = peak_kib.max(kib.unwrap_or(0));
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
        }
        if let Some(exit) = child.try_wait().unwrap() {
            break exit;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    (exit.code(), peak_kib, std::fs::read_to_string(folder.join("stderr")).unwrap())
}

/// However a stream is written and cut.
mod sse {
    use llm_concurrency::client::sse::SseParser;
    use proptest::prelude::*;

    const PARTS: &[&[u8]] = &[
        b"data: x",
        "data:\u{fc}".as_bytes(),
        b"data",
        b": c",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\xef\xbb\xbf",
        b"\xff ",
    ];

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::new(1000);
        let mut seen = Vec::new();
        let mut keep = |data: &[u8]| seen.push(String::from_utf8_lossy(data).into_owned());
        for piece in pieces {
            parser.feed(piece, &mut keep).expect("short lines");
        }
        parser.finish(&mut keep).expect("short lines");
        seen
    }

    #[test]
    fn the_forms_servers_send() {
        let cases: [(&str, &[&str]); 10] = [
            ("data: a\n\ndata: b\n\n", &["a", "b"]),
            ("data:a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]),
            ("data: a\r\rdata: b\r\r", &["a", "b"]),
            (": ping\n\n: ping\ndata: a\n\n", &["a"]),
            ("data: a\ndata: b\n\n", &["a\nb"]),
            ("\u{feff}data: a\n\n", &["a"]),
            ("event: x\nid: 1\nretry: 5\ndata: a\n\n", &["a"]),
            ("data: no blank line", &["no blank line"]),
            ("data\n\n", &[""]),
            ("data:a\r\n\ndata:b\r\n\r\n\ndata:c\r\r\n\n", &["a", "b", "c"]),
        ];
        for (text, expected) in cases {
            // Found by fuzzing: the LF of a CRLF that came alone took the next LF with it.
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(1).flat_map(|byte| [byte, b""]).collect();
            assert_eq!(events(&[text.as_bytes()]), expected, "{text:?}");
            assert_eq!(events(&pieces), expected, "{text:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        for endless in [&b"data: 0123456789"[..], b"data: 01234\ndata: 56789\ndata: 01234\n"] {
            let refused = SseParser::new(10).feed(endless, |_| {}).unwrap_err();
            assert_eq!(refused.to_string(), "a line of the stream is longer than 10 bytes");
        }
    }

    proptest! {
        /// However the bytes are cut, the events are the same.
        #[test]
        fn cuts_change_nothing(parts in prop::collection::vec(prop::sample::select(PARTS), 0..20), cut in 0usize..200) {
            let bytes = parts.concat();
            let (before, after) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(events(&[before, after]), events(&[&bytes]));
            prop_assert_eq!(events(&bytes.chunks(1).collect::<Vec<_>>()), events(&[&bytes]));
        }
    }
}
