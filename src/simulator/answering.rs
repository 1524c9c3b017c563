//! Builds the body of an answer from the engine's tokens, intact or with an injected fault.

use std::io;
use std::iter::{once, repeat_n};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use super::driver::Generation;
use super::faults::{Fault, Faults};
use super::http::error_response;
use super::lengths::OutputLength;
use super::log::{OpenRequest, RequestEnd};
use super::protocol::{Answer, Kind, word};

const OK: u16 = StatusCode::OK.as_u16();

/// Chunk size of a huge body, in bytes.
const HUGE_PIECE: usize = 64 << 10;

/// Delay between the last good bytes and the abort of a connection, so that the bytes are sent before it.
const BEFORE_BREAK: Duration = Duration::from_millis(1);

/// Neither UTF-8 nor JSON: fragments of events, such as a proxy leaves when it interleaves two streams.
const GARBAGE: &[u8] = b"\xff\xfe\x00\xc3\x28 data: \r\r\n\ndata: \xc3\x28{]\x80\n\n";

/// A request that is being answered.
pub(super) struct Answering {
    pub(super) kind: &'static dyn Kind,
    pub(super) answer: Answer,
    /// `None` for an answer that does not use the engine. Declared before `open`, and thus dropped first: a cancelled
    /// request has left the engine by the time it is in the log.
    pub(super) generation: Option<Generation>,
    pub(super) open: OpenRequest,
}

/// One step in sending a body.
enum Step {
    Bytes(Bytes),
    /// Waits for a token from the engine, then sends its event.
    Token,
    Pause(Duration),
    /// Logs the request with this outcome. Comes before the last bytes, see [`OpenRequest::finish`].
    End(RequestEnd),
    /// Aborts the connection.
    Break,
}

impl Answering {
    /// The engine's answer, streamed or in one piece, with any fault that strikes partway through it.
    pub(super) async fn generated(self, fault: Option<Fault>, faults: &Faults) -> Response {
        let pause = Duration::from_secs_f64(faults.stall_s);
        if self.answer.stream { self.streamed(fault, pause) } else { self.whole(fault, pause).await }
    }

    fn streamed(self, fault: Option<Fault>, pause: Duration) -> Response {
        let length = self.answer.length.tokens;
        let (opening, closing) = (self.kind.opening(&self.answer), self.kind.closing(&self.answer));
        let tokens = |count| (0..count).map(|_| Step::Token);
        let half = once(Step::Bytes(opening.into())).chain(tokens(length / 2));
        let rest = tokens(length - length / 2);
        let rest = rest.chain([Step::End(RequestEnd::Completed), Step::Bytes(closing.into())]);
        match fault {
            Some(Fault::Stall) => self.respond(half.chain([Step::Pause(pause)]).chain(rest)),
            Some(Fault::CutStream) => self.respond(half.chain([Step::End(RequestEnd::Faulted)])),
            Some(Fault::MalformedJson) => {
                let event = self.kind.token(&self.answer, "").into_bytes();
                let broken = [&event[..event.len() / 2], b"\n\ndata: [DONE]\n\n"].concat();
                self.respond(half.chain([Step::End(RequestEnd::Faulted), Step::Bytes(broken.into())]))
            }
            Some(Fault::GarbageSse) => {
                self.respond(half.chain([Step::End(RequestEnd::Faulted), Step::Bytes(GARBAGE.into())]))
            }
            _ => self.respond(half.chain(rest)),
        }
    }

    async fn whole(mut self, fault: Option<Fault>, pause: Duration) -> Response {
        let mut text = String::new();
        for _ in 0..self.answer.length.tokens {
            let Some(word) = self.token().await else {
                let message = "the server is shutting down";
                return error_response(StatusCode::SERVICE_UNAVAILABLE, "server_stopping", message);
            };
            text.push_str(word);
        }
        let body = Bytes::from(self.kind.whole(&self.answer, &text));
        let half = Step::Bytes(body.slice(..body.len() / 2));
        let rest = Step::Bytes(body.slice(body.len() / 2..));
        let (completed, faulted) = (Step::End(RequestEnd::Completed), Step::End(RequestEnd::Faulted));
        let mut response = match fault {
            Some(Fault::Stall) => self.respond([half, Step::Pause(pause), completed, rest].into_iter()),
            Some(Fault::CutStream) => self.respond([half, Step::Pause(BEFORE_BREAK), faulted, Step::Break].into_iter()),
            Some(Fault::MalformedJson) => return self.respond([faulted, half].into_iter()),
            Some(Fault::GarbageSse) => return self.respond([faulted, Step::Bytes(GARBAGE.into())].into_iter()),
            _ => return self.at_once(RequestEnd::Completed, body),
        };
        response.headers_mut().insert(header::CONTENT_LENGTH, body.len().into());
        response
    }

    /// A well-formed answer without any content.
    pub(super) fn empty(mut self) -> Response {
        self.answer.length = OutputLength { tokens: 0, cut: false };
        let Answering { kind, answer, .. } = &self;
        let body =
            if self.answer.stream { kind.opening(answer) + &kind.closing(answer) } else { kind.whole(answer, "") };
        self.at_once(RequestEnd::Faulted, body)
    }

    /// An answer of `mib` MiB. If the client leaves before the end, the request is logged as cancelled.
    pub(super) fn huge(self, mib: u32) -> Response {
        let start: &[u8] = if self.answer.stream {
            br#"data: {"choices":[{"index":0,"delta":{"content":""#
        } else {
            br#"{"choices":[{"index":0,"message":{"role":"assistant","content":""#
        };
        let piece = Bytes::from(vec![b'x'; HUGE_PIECE]);
        let pieces = repeat_n(piece.clone(), (mib as usize * (1 << 20) / HUGE_PIECE).saturating_sub(1));
        let pieces = once(Bytes::from_static(start)).chain(pieces).map(Step::Bytes);
        self.respond(pieces.chain([Step::End(RequestEnd::Faulted), Step::Bytes(piece)]))
    }

    fn at_once(mut self, end: RequestEnd, body: impl Into<Body>) -> Response {
        self.open.finish(OK, end);
        with_headers(self.answer.stream, body.into())
    }

    /// Answers step by step. When the client disconnects, the body is dropped, which cancels the request.
    fn respond(mut self, steps: impl Iterator<Item = Step> + Send + 'static) -> Response {
        self.open.record.status = OK;
        let stream = self.answer.stream;
        // Rendered once, to leave the CPU to the client at thousands of tokens per second. No word needs escaping.
        let event = self.kind.token(&self.answer, "@");
        let pieces = stream::unfold((self, steps, event), |(mut answering, mut steps, event)| async move {
            let (before, after) = event.rsplit_once('@').unwrap_or_default();
            loop {
                let piece = match steps.next()? {
                    Step::Bytes(bytes) => Ok(bytes),
                    Step::Token => match answering.token().await {
                        Some(word) => Ok([before, word, after].concat().into()),
                        None => Err(io::Error::other("the server is shutting down")),
                    },
                    Step::Break => Err(io::ErrorKind::ConnectionAborted.into()),
                    Step::Pause(pause) => {
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                    Step::End(end) => {
                        answering.open.finish(OK, end);
                        continue;
                    }
                };
                return Some((piece, (answering, steps, event)));
            }
        });
        with_headers(stream, Body::from_stream(pieces))
    }

    /// The text of the next token; `None` if the engine has stopped.
    async fn token(&mut self) -> Option<&'static str> {
        self.generation.as_mut()?.token().await?;
        let index = self.open.record.output_tokens;
        if self.kind.generates() {
            self.open.token();
        }
        Some(word(index))
    }
}

fn with_headers(stream: bool, body: Body) -> Response {
    if stream {
        ([(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")], body).into_response()
    } else {
        ([(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}
