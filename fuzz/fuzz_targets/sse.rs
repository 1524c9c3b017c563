//! The parser of event streams: cut anywhere, it must give what a plain reading of the whole gives.
//!
//! `cargo +nightly fuzz run sse fuzz/corpus/sse fuzz/seeds/sse`; with a stable compiler
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run -s none sse fuzz/corpus/sse fuzz/seeds/sse`.
//!
//! The first byte of the input says how long the pieces are, the rest is the stream.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_concurrency::client::sse::SseParser;

/// Longer than any input.
const NO_LIMIT: usize = 1 << 30;

fuzz_target!(|input: &[u8]| {
    let Some((&length, stream)) = input.split_first() else { return };
    let length = 1 + usize::from(length);
    let expected = by_plain_reading(stream);
    assert_eq!(parsed(stream.chunks(length)), expected, "in pieces of {length}");
    assert_eq!(parsed(std::iter::once(stream)), expected, "in one piece");
    // With a limit: no event is longer, whatever comes.
    let mut limited = SseParser::new(length);
    let mut within = |data: &[u8]| assert!(data.len() <= length + 1, "{} of {length}", data.len());
    for piece in stream.chunks(7) {
        if limited.feed(piece, &mut within).is_err() {
            return;
        }
    }
    let _ = limited.finish(&mut within);
});

fn parsed<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let mut parser = SseParser::new(NO_LIMIT);
    let mut events = Vec::new();
    for piece in pieces {
        parser.feed(piece, |data| events.push(data.to_vec())).expect("no line is too long");
    }
    parser.finish(|data| events.push(data.to_vec())).expect("no line is too long");
    events
}

/// The standard's own words (WHATWG HTML, 9.2.6), on the whole text at once; the last event needs no blank line.
fn by_plain_reading(stream: &[u8]) -> Vec<Vec<u8>> {
    let stream = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
    let mut lines: Vec<Vec<u8>> = vec![Vec::new()];
    let mut at = 0;
    while at < stream.len() {
        match stream[at] {
            b'\r' | b'\n' => {
                at += usize::from(stream[at..].starts_with(b"\r\n"));
                lines.push(Vec::new());
            }
            byte => lines.last_mut().expect("there is one from the start").push(byte),
        }
        at += 1;
    }
    lines.push(Vec::new());
    let mut events = Vec::new();
    let mut data: Option<Vec<u8>> = None;
    for line in lines {
        if line.is_empty() {
            events.extend(data.take());
            continue;
        }
        let colon = line.iter().position(|&byte| byte == b':');
        let field = &line[..colon.unwrap_or(line.len())];
        let value = &line[colon.map_or(line.len(), |colon| colon + 1)..];
        let value = value.strip_prefix(b" ").unwrap_or(value);
        if field == b"data" {
            data = Some(match data {
                Some(before) => [&before, &b"\n"[..], value].concat(),
                None => value.to_vec(),
            });
        }
    }
    events
}
