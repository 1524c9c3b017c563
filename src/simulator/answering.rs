//! The body of an answer as the engine makes it, good or spoiled on purpose.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use tokio::time::Sleep;

use super::driver::{Generation, NewToken};
use super::http::error_response;
use super::lengths::OutputLength;
use super::log::{OpenRequest, RequestEnd};
use super::protocol::{Answer, Usage, word};

const OK: u16 = StatusCode::OK.as_u16();

/// How large the pieces of a huge body are, in bytes.
const HUGE_PIECE: usize = 64 << 10;

/// Between the last good bytes and the end of a broken connection, so that the bytes are on their way before.
const BEFORE_BREAK: Duration = Duration::from_millis(1);

/// Neither UTF-8 nor JSON, and as much of an event as a proxy that mixes two streams up would leave.
const GARBAGE: &[u8] = b"\xff\xfe\x00\xc3\x28 data: \r\r\n\ndata: \xc3\x28{]\x80\n\n";

/// What goes wrong in the midst of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spoil {
    /// See [`Fault::Stall`](super::Fault::Stall).
    Stall(Duration),
    /// See [`Fault::CutStream`](super::Fault::CutStream).
    Cut,
    /// See [`Fault::MalformedJson`](super::Fault::MalformedJson).
    Malformed,
    /// See [`Fault::GarbageSse`](super::Fault::GarbageSse).
    Garbage,
}

/// A request that the engine works on.
pub(super) struct Answering {
    pub(super) answer: Answer,
    /// Before `open`, so that a cancelled request has left the engine once it is in the log.
    pub(super) generation: Generation,
    pub(super) open: OpenRequest,
    pub(super) length: OutputLength,
    pub(super) prompt_tokens: u32,
    /// `None` where there is no prefix cache.
    pub(super) cached_tokens: Option<u32>,
    /// Texts to embed; 0 where text is generated.
    pub(super) inputs: usize,
    pub(super) spoil: Option<Spoil>,
}

impl Answering {
    pub(super) fn stream(mut self) -> Response {
        self.open.answering(OK);
        let opening = self.answer.opening();
        event_stream(Body::from_stream(AnswerStream { opening, answering: self, sent: 0, left: Left::Tokens }))
    }

    pub(super) async fn whole(mut self) -> Response {
        let mut text = String::new();
        loop {
            let Some(token) = poll_fn(|context| self.poll_token(context)).await else {
                return error_response(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "server_stopping",
                    "the server is shutting down",
                );
            };
            text.push_str(word(token.index));
            if token.last {
                break;
            }
        }
        let usage = self.usage();
        let body = match self.inputs {
            0 => self.answer.whole(&text, self.finish_reason(), usage),
            count => self.answer.vectors(count, usage),
        };
        match self.spoil {
            None => {
                self.open.finish(OK, RequestEnd::Completed);
                json_body(Body::from(body))
            }
            Some(spoil) => self.spoiled(spoil, &body),
        }
    }

    fn spoiled(mut self, spoil: Spoil, body: &Bytes) -> Response {
        self.open.answering(OK);
        let half = body.slice(..body.len() / 2);
        let rest = body.slice(half.len()..);
        let (pieces, end) = match spoil {
            Spoil::Stall(pause) => {
                (vec![Piece::Bytes(half), Piece::Pause(pause), Piece::Bytes(rest)], RequestEnd::Completed)
            }
            Spoil::Cut => (vec![Piece::Bytes(half), Piece::Pause(BEFORE_BREAK), Piece::Break], RequestEnd::Faulted),
            Spoil::Malformed => (vec![Piece::Bytes(half)], RequestEnd::Faulted),
            Spoil::Garbage => (vec![Piece::Bytes(Bytes::from_static(GARBAGE))], RequestEnd::Faulted),
        };
        let announced = match spoil {
            Spoil::Stall(_) | Spoil::Cut => Some(body.len()),
            Spoil::Malformed | Spoil::Garbage => None,
        };
        let mut response = json_body(Script::new(self.open, pieces, end).body());
        if let Some(length) = announced {
            response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        }
        response
    }

    fn poll_token(&mut self, context: &mut Context<'_>) -> Poll<Option<NewToken>> {
        let token = ready!(self.generation.poll_next(context));
        if token.is_some() && self.inputs == 0 {
            self.open.token();
        }
        Poll::Ready(token)
    }

    fn finish_reason(&self) -> &'static str {
        if self.length.cut { "length" } else { "stop" }
    }

    fn usage(&self) -> Usage {
        Usage::new(self.prompt_tokens, self.cached_tokens, self.length.tokens)
    }
}

/// The body of a streamed answer, each token's event in a piece of its own as soon as the token is there.
/// Dropping it early (the client is gone) cancels the request.
struct AnswerStream {
    answering: Answering,
    opening: Option<Bytes>,
    /// Tokens handed out.
    sent: u32,
    left: Left,
}

/// What is left to be sent after the opening.
enum Left {
    Tokens,
    /// Nothing until then, then tokens.
    Stalled(Pin<Box<Sleep>>),
    Closing,
    Nothing,
}

impl AnswerStream {
    /// Half of the answer is out: now it goes wrong. `None`: nothing is sent because of that.
    fn go_wrong(&mut self, spoil: Spoil) -> Option<Bytes> {
        if let Spoil::Stall(pause) = spoil {
            self.left = Left::Stalled(Box::pin(tokio::time::sleep(pause)));
            return None;
        }
        self.left = Left::Nothing;
        self.answering.open.finish(OK, RequestEnd::Faulted);
        match spoil {
            Spoil::Malformed => {
                let event = self.answering.answer.token("");
                let broken = &event[..event.len() / 2];
                Some([broken, b"\n\ndata: [DONE]\n\n"].concat().into())
            }
            Spoil::Garbage => Some(Bytes::from_static(GARBAGE)),
            Spoil::Cut | Spoil::Stall(_) => None,
        }
    }
}

impl Stream for AnswerStream {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(opening) = this.opening.take() {
            return Poll::Ready(Some(Ok(opening)));
        }
        loop {
            let half = this.answering.length.tokens / 2;
            let answering = &mut this.answering;
            let piece = match &mut this.left {
                Left::Tokens if this.sent == half && answering.spoil.is_some() => {
                    let spoil = answering.spoil.take();
                    let Some(piece) = spoil.and_then(|spoil| this.go_wrong(spoil)) else { continue };
                    piece
                }
                Left::Tokens => {
                    let Some(token) = ready!(answering.poll_token(context)) else {
                        let error = io::Error::other("the server is shutting down");
                        return Poll::Ready(Some(Err(error)));
                    };
                    this.sent += 1;
                    if token.last {
                        this.left = Left::Closing;
                    }
                    answering.answer.token(word(token.index))
                }
                Left::Stalled(until) => {
                    ready!(until.as_mut().poll(context));
                    this.left = Left::Tokens;
                    continue;
                }
                Left::Closing => {
                    this.left = Left::Nothing;
                    answering.open.finish(OK, RequestEnd::Completed);
                    let usage = answering.usage();
                    answering.answer.closing(answering.finish_reason(), usage)
                }
                Left::Nothing => return Poll::Ready(None),
            };
            return Poll::Ready(Some(Ok(piece)));
        }
    }
}

/// A part of a body that goes wrong.
#[derive(Clone)]
enum Piece {
    Bytes(Bytes),
    Pause(Duration),
    /// The connection ends here.
    Break,
}

/// A body that is made of pieces given beforehand.
struct Script {
    /// `end` is recorded before the last piece is handed out.
    open: OpenRequest,
    end: RequestEnd,
    pieces: VecDeque<Piece>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Script {
    fn new(open: OpenRequest, pieces: impl IntoIterator<Item = Piece>, end: RequestEnd) -> Self {
        Script { open, end, pieces: pieces.into_iter().collect(), pause: None }
    }

    fn body(self) -> Body {
        Body::from_stream(self)
    }
}

impl Stream for Script {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(pause) = &mut this.pause {
                ready!(pause.as_mut().poll(context));
                this.pause = None;
            }
            if this.pieces.len() == 1 {
                this.open.finish(OK, this.end);
            }
            match this.pieces.pop_front() {
                Some(Piece::Bytes(bytes)) => return Poll::Ready(Some(Ok(bytes))),
                Some(Piece::Pause(pause)) => this.pause = Some(Box::pin(tokio::time::sleep(pause))),
                Some(Piece::Break) => return Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into()))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// An answer that holds nothing, in good form.
pub(super) fn empty(mut open: OpenRequest, answer: &Answer, stream: bool, inputs: usize, usage: Usage) -> Response {
    open.finish(OK, RequestEnd::Faulted);
    if stream {
        let events = [answer.opening().unwrap_or_default(), answer.closing("stop", usage)].concat();
        event_stream(Body::from(events))
    } else if inputs > 0 {
        json_body(Body::from(answer.vectors(0, usage)))
    } else {
        json_body(Body::from(answer.whole("", "stop", usage)))
    }
}

/// An answer whose text goes on for `mib` MiB. A client that leaves before is logged as such.
pub(super) fn huge(mut open: OpenRequest, stream: bool, mib: u32) -> Response {
    open.answering(OK);
    let start: &[u8] = if stream {
        br#"data: {"choices":[{"index":0,"delta":{"content":""#
    } else {
        br#"{"choices":[{"index":0,"message":{"role":"assistant","content":""#
    };
    let piece = Bytes::from(vec![b'x'; HUGE_PIECE]);
    let count = mib as usize * (1 << 20) / HUGE_PIECE;
    let pieces = std::iter::once(Bytes::from_static(start)).chain(std::iter::repeat_n(piece, count)).map(Piece::Bytes);
    let body = Script::new(open, pieces, RequestEnd::Faulted).body();
    if stream { event_stream(body) } else { json_body(body) }
}

fn event_stream(body: Body) -> Response {
    respond(&[(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")], body)
}

fn json_body(body: Body) -> Response {
    respond(&[(header::CONTENT_TYPE, "application/json")], body)
}

fn respond(headers: &[(HeaderName, &'static str)], body: Body) -> Response {
    let mut response = body.into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    response
}
