//! The HTTP server: routes, handlers, and the thread that they run on.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, ready};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use futures_util::Stream;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;

use super::driver::{EngineHandle, Generation, NewToken};
use super::engine::QueueFull;
use super::lengths::{OutputLength, OutputLengths, prompt_tokens};
use super::log::{OpenRequest, RequestEnd, RequestLog};
use super::protocol::{Answer, GenerationRequest, Route, Usage, word};

/// Connections that may wait to be accepted: a client that opens thousands of streams at once must not see
/// its packets dropped (the system may cap it, on Linux at `net.core.somaxconn`).
const LISTEN_BACKLOG: u32 = 4096;

/// Largest request body that is read, in bytes.
const BODY_LIMIT: usize = 64 << 20;

/// What the handlers work with.
#[derive(Clone)]
pub(super) struct App {
    pub(super) engine: EngineHandle,
    pub(super) lengths: Arc<OutputLengths>,
    pub(super) log: Arc<RequestLog>,
}

/// The thread that serves HTTP. Dropping it ends the thread and closes all connections.
pub(super) struct HttpServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Listens on 127.0.0.1:`port` (0: any free port) and serves `app` from a thread of its own.
    ///
    /// # Errors
    ///
    /// What the operating system says when the port is taken or a thread cannot be started.
    pub(super) fn start(app: App, port: u16) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (started, address) = mpsc::channel();
        // The runtime lives on the thread from birth to end, since it must not be dropped inside another
        // runtime, where the caller may be.
        let thread = thread::Builder::new()
            .name("simulator-http".to_owned())
            .spawn(move || serve(app, port, &started, stopped))?;
        let address = address.recv().map_err(|_| io::Error::other("the server's thread ended at its start"))??;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// The address that is listened on.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already.
            let _ = thread.join();
        }
    }
}

/// Serves until `stopped` hears that its sender is gone. One thread is enough: handlers only pass on what
/// the engine's thread sends.
fn serve(app: App, port: u16, started: &mpsc::Sender<io::Result<SocketAddr>>, stopped: oneshot::Receiver<Infallible>) {
    let serving = || -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = listen(port)?;
            // The caller waits for it, so it is there.
            let _ = started.send(Ok(listener.local_addr()?));
            // Nagle's algorithm would hold a token back until the one before is acknowledged.
            let listener = listener.tap_io(|stream| {
                // A connection that is gone already fails here, and again when it is read.
                let _ = stream.set_nodelay(true);
            });
            tokio::select! {
                served = axum::serve(listener, router(app)).into_future() => served,
                _ = stopped => Ok(()),
            }
        })
    };
    if let Err(error) = serving() {
        let _ = started.send(Err(error));
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // Elsewhere than on Windows this only allows a port whose last connections are not quite forgotten.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    socket.listen(LISTEN_BACKLOG)
}

fn router(app: App) -> Router {
    Router::new()
        .route(Route::Chat.path(), post(|State(app): State<App>, request| generate(app, Route::Chat, request)))
        .route(
            Route::Completions.path(),
            post(|State(app): State<App>, request| generate(app, Route::Completions, request)),
        )
        .route("/v1/models", get(models))
        .route("/health", get(|| async { json_response(StatusCode::OK, json!({"status": "ok"})) }))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app)
}

async fn generate(app: App, route: Route, request: Request) -> Response {
    let mut open = app.log.arrive(route.path());
    let asked = match read_request(route, request).await {
        Ok(asked) => asked,
        Err(message) => {
            let status = StatusCode::BAD_REQUEST;
            open.finish(status.as_u16(), RequestEnd::BadRequest);
            return error_response(status, "invalid_request_error", &message);
        }
    };
    let length = app.lengths.of(&asked.prompt, asked.max_tokens);
    let prompt_tokens = prompt_tokens(&asked.prompt);
    let generation = match app.engine.submit(prompt_tokens, length.tokens) {
        Ok(generation) => generation,
        Err(full) => return refuse(&mut open, full),
    };
    let answering = Answering {
        answer: Answer::new(route, open.id(), unix_time_s(), asked.model, asked.include_usage),
        generation,
        open,
        length,
        prompt_tokens,
    };
    if asked.stream { answering.stream() } else { answering.whole().await }
}

async fn read_request(route: Route, request: Request) -> Result<GenerationRequest, String> {
    let body = to_bytes(request.into_body(), BODY_LIMIT)
        .await
        .map_err(|error| format!("cannot read the request body: {error}"))?;
    GenerationRequest::parse(route, &body)
}

fn refuse(open: &mut OpenRequest, full: QueueFull) -> Response {
    let QueueFull { running, waiting } = full;
    let status = StatusCode::SERVICE_UNAVAILABLE;
    open.finish(status.as_u16(), RequestEnd::Refused);
    let message = format!("the request queue is full ({running} running, {waiting} waiting)");
    error_response(status, "server_overloaded", &message)
}

/// A request that the engine works on.
struct Answering {
    answer: Answer,
    /// Before `open`, so that a cancelled request has left the engine once it is in the log.
    generation: Generation,
    open: OpenRequest,
    length: OutputLength,
    prompt_tokens: u32,
}

impl Answering {
    fn stream(mut self) -> Response {
        let status = StatusCode::OK;
        self.open.answering(status.as_u16());
        let body =
            Body::from_stream(AnswerStream { opening: self.answer.opening(), answering: self, left: Left::Tokens });
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        (status, headers, body).into_response()
    }

    async fn whole(mut self) -> Response {
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
        let body = self.answer.whole(&text, self.finish_reason(), self.usage());
        self.complete();
        let headers = [(header::CONTENT_TYPE, "application/json")];
        (StatusCode::OK, headers, body).into_response()
    }

    fn complete(&mut self) {
        let status = StatusCode::OK.as_u16();
        self.open.finish(status, RequestEnd::Completed);
    }

    fn poll_token(&mut self, context: &mut Context<'_>) -> Poll<Option<NewToken>> {
        let token = ready!(self.generation.poll_next(context));
        if token.is_some() {
            self.open.token();
        }
        Poll::Ready(token)
    }

    fn finish_reason(&self) -> &'static str {
        if self.length.cut { "length" } else { "stop" }
    }

    fn usage(&self) -> Usage {
        Usage::new(self.prompt_tokens, self.length.tokens)
    }
}

/// The body of a streamed answer, each token's event in a piece of its own as soon as the token is there.
/// Dropping it early (the client is gone) cancels the request.
struct AnswerStream {
    answering: Answering,
    opening: Option<Bytes>,
    left: Left,
}

/// What is left to be sent after the opening.
enum Left {
    Tokens,
    Closing,
    Nothing,
}

impl Stream for AnswerStream {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(opening) = this.opening.take() {
            return Poll::Ready(Some(Ok(opening)));
        }
        let answering = &mut this.answering;
        let piece = match this.left {
            Left::Tokens => {
                let Some(token) = ready!(answering.poll_token(context)) else {
                    let error = io::Error::other("the server is shutting down");
                    return Poll::Ready(Some(Err(error)));
                };
                if token.last {
                    this.left = Left::Closing;
                }
                answering.answer.token(word(token.index))
            }
            Left::Closing => {
                this.left = Left::Nothing;
                answering.complete();
                let usage = answering.usage();
                answering.answer.closing(answering.finish_reason(), usage)
            }
            Left::Nothing => return Poll::Ready(None),
        };
        Poll::Ready(Some(Ok(piece)))
    }
}

async fn models() -> Response {
    let model = json!({"id": "simulated", "object": "model", "created": 0, "owned_by": "simulator"});
    json_response(StatusCode::OK, json!({"object": "list", "data": [model]}))
}

async fn not_found(uri: Uri) -> Response {
    let message =
        format!("there is no {}; try /v1/chat/completions, /v1/completions, /v1/models or /health", uri.path());
    error_response(StatusCode::NOT_FOUND, "invalid_request_error", &message)
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let message = format!("{} does not take {method}", uri.path());
    let status = StatusCode::METHOD_NOT_ALLOWED;
    error_response(status, "invalid_request_error", &message)
}

fn error_response(status: StatusCode, kind: &str, message: &str) -> Response {
    let error = json!({"message": message, "type": kind, "code": status.as_u16()});
    json_response(status, json!({"error": error}))
}

fn json_response(status: StatusCode, value: serde_json::Value) -> Response {
    (status, axum::Json(value)).into_response()
}

fn unix_time_s() -> u64 {
    // Before 1970 the clock is wrong, and the field means nothing.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
