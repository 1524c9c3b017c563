//! The HTTP server: routes, handlers, and the thread that they run on.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use futures_util::stream;
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;

use super::SimulatorConfig;
use super::answering::Answering;
use super::driver::{Driver, Joined};
use super::engine::QueueFull;
use super::faults::Fault;
use super::limits::{PrefixCache, TokenBucket};
use super::log::{CLIENT_CLOSED_REQUEST, OpenRequest, RequestEnd, RequestLog};
use super::protocol::{Answer, KINDS, Kind};

/// Number of connections that may wait to be accepted. A client that opens thousands of streams at once must not
/// have its packets dropped. The system may cap it (on Linux at `net.core.somaxconn`).
const LISTEN_BACKLOG: u32 = 4096;

/// Maximum size of a request body, in bytes.
const BODY_LIMIT: usize = 64 << 20;

/// State shared by the handlers.
pub(super) struct App {
    config: SimulatorConfig,
    engine: Driver,
    log: Arc<RequestLog>,
    request_limit: Option<Mutex<TokenBucket>>,
    token_limit: Option<Mutex<TokenBucket>>,
    cache: Option<Mutex<PrefixCache>>,
}

impl App {
    pub(super) fn new(config: SimulatorConfig, engine: Driver, log: Arc<RequestLog>) -> Self {
        let bucket = |limit, burst| Mutex::new(TokenBucket::new(limit, burst, Instant::now()));
        let burst = |limit: f64| config.burst.map_or_else(|| (limit / 10.0).max(1.0).floor(), f64::from);
        App {
            engine,
            log,
            request_limit: config.requests_per_minute.map(|limit| bucket(limit, burst(limit))),
            token_limit: config.tokens_per_minute.map(|limit| bucket(limit, limit / 10.0)),
            cache: config.prefix_cache.then(Mutex::default),
            config,
        }
    }

    fn too_many(&self, open: OpenRequest, end: RequestEnd, wait: Duration, what: &str) -> Response {
        let seconds = self.config.retry_after_s.map_or(wait.as_secs_f64().ceil() as u64, u64::from);
        let message = format!("{what}; try again in {seconds} s");
        let mut response = reject(open, end, StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", &message);
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        response
    }

    /// Uses the wording of OpenAI's error message.
    fn too_many_tokens(&self, open: OpenRequest, wait: Duration, requested: u32) -> Response {
        let limit = self.config.tokens_per_minute.unwrap_or_default() as u64;
        let what = format!("Rate limit reached on tokens per min (TPM): Limit {limit}, Requested {requested}");
        let mut response = self.too_many(open, RequestEnd::RateLimited, wait, &what);
        response.headers_mut().insert("x-ratelimit-limit-tokens", limit.into());
        response
    }
}

fn take(limit: &Option<Mutex<TokenBucket>>, amount: f64) -> Result<(), Duration> {
    let Some(limit) = limit else { return Ok(()) };
    limit.lock().take(amount, Instant::now())
}

/// Handle to the thread that serves HTTP. Dropping it ends the thread and closes all connections.
pub(super) struct HttpServer {
    pub(super) address: SocketAddr,
    // Dropped in this order: the thread is told to stop, then joined.
    _stop: oneshot::Sender<Infallible>,
    _thread: Joined,
}

impl HttpServer {
    /// Listens on 127.0.0.1:`port` (0: any free port) and serves `app` on its own thread.
    pub(super) fn start(app: App, port: u16) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (started, address) = mpsc::channel();
        // The runtime is created and dropped on the thread, since it must not be dropped inside another runtime,
        // in which the caller may be running.
        let thread = thread::Builder::new()
            .name("simulator-http".to_owned())
            .spawn(move || serve(app, port, &started, stopped))?;
        let address = address.recv().map_err(|_| io::Error::other("the server's thread ended at its start"))??;
        Ok(Self { address, _stop: stop, _thread: Joined(Some(thread)) })
    }
}

/// Serves until the sender of `stopped` is dropped. One thread is enough: handlers only forward what the
/// engine's thread sends.
fn serve(app: App, port: u16, started: &mpsc::Sender<io::Result<SocketAddr>>, stopped: oneshot::Receiver<Infallible>) {
    let serving = || -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = listen(port)?;
            // The caller waits for the address, so the receiver still exists.
            let _ = started.send(Ok(listener.local_addr()?));
            let has_resets = app.config.faults.rates.get(&Fault::Reset) > Some(&0.0);
            let listener = listener.tap_io(move |connection| {
                // Nagle's algorithm would hold a token back until the previous one is acknowledged. If the connection
                // is already gone, this fails, and so does the next read.
                let _ = connection.set_nodelay(true);
                // With a zero linger, an aborted connection is reset rather than closed in an orderly way.
                let _ = if has_resets { connection.set_zero_linger() } else { Ok(()) };
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
    // Allows a port with connections of the last run in TIME_WAIT. (On Windows, it would allow a port in use.)
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    socket.listen(LISTEN_BACKLOG)
}

fn router(app: App) -> Router {
    let mut router = Router::new()
        .route("/v1/models", get(models))
        .route("/metrics", get(metrics))
        .route("/health", get(|| async { Json(json!({"status": "ok"})) }));
    for kind in KINDS {
        let handler =
            move |State(app): State<Arc<App>>, request: Request| async move { generate(&app, kind, request).await };
        router = router.route(kind.path(), post(handler));
    }
    // The method fallback applies only to the routes that exist when it is set.
    router.fallback(not_found).method_not_allowed_fallback(method_not_allowed).with_state(Arc::new(app))
}

async fn generate(app: &App, kind: &'static dyn Kind, request: Request) -> Response {
    let mut open = app.log.arrive(kind.path());
    if let Err(wait) = take(&app.request_limit, 1.0) {
        return app.too_many(open, RequestEnd::RateLimited, wait, "too many requests");
    }
    let body = to_bytes(request.into_body(), BODY_LIMIT).await;
    let body = body.map_err(|error| format!("cannot read the request body: {error}"));
    let mut answer = match body.and_then(|body| Answer::to(kind, &body, open.record.id)) {
        Ok(answer) => answer,
        Err(message) => {
            return reject(open, RequestEnd::BadRequest, StatusCode::BAD_REQUEST, "invalid_request_error", &message);
        }
    };
    let requested = answer.prompt_tokens.saturating_add(answer.max_tokens.unwrap_or_default());
    if let Err(wait) = take(&app.token_limit, requested.into()) {
        return app.too_many_tokens(open, wait, requested);
    }
    let SimulatorConfig { faults, seed, .. } = &app.config;
    let cache = app.cache.as_ref().map(|cache| cache.lock());
    answer.cached_tokens = cache.map(|mut cache| cache.look_up(&answer.prompt));
    let fault = faults.of(*seed, open.record.id);
    open.record.fault = fault;
    open.record.prompt_tokens = answer.prompt_tokens;
    open.record.cached_tokens = answer.cached_tokens.unwrap_or(0);
    match fault {
        Some(Fault::Reset) => {
            // A body that fails before the head of the answer is sent takes the connection down.
            open.finish(CLIENT_CLOSED_REQUEST, RequestEnd::Faulted);
            let lost: io::Result<Bytes> = Err(io::ErrorKind::ConnectionReset.into());
            return Body::from_stream(stream::iter([lost])).into_response();
        }
        Some(Fault::Error500) => {
            let message = "an error was injected (simulator.faults.error_500)";
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return reject(open, RequestEnd::Faulted, status, "internal_server_error", message);
        }
        Some(Fault::Rate429) => {
            return app.too_many(open, RequestEnd::Faulted, Duration::from_secs(1), "too many requests");
        }
        Some(Fault::SlowStart) => tokio::time::sleep(Duration::from_secs_f64(faults.slow_start_s)).await,
        _ => {}
    }
    if kind.generates() {
        answer.length = app.config.answer_length(&answer.prompt, answer.max_tokens);
    }
    let (prefill, output) = (answer.prompt_tokens - open.record.cached_tokens, answer.length.tokens);
    let mut answering = Answering { kind, answer, generation: None, open };
    match fault {
        Some(Fault::EmptyOutput) => return answering.empty(),
        Some(Fault::HugeBody) => return answering.huge(faults.huge_body_mib),
        _ => {}
    }
    match app.engine.submit(prefill, output) {
        Ok(generation) => answering.generation = Some(generation),
        Err(QueueFull { running, waiting }) => {
            let mut open = answering.open;
            // The fault never took effect.
            open.record.fault = None;
            let message = format!("the request queue is full ({running} running, {waiting} waiting)");
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return reject(open, RequestEnd::Refused, status, "server_overloaded", &message);
        }
    }
    answering.generated(fault, faults).await
}

fn reject(mut open: OpenRequest, end: RequestEnd, status: StatusCode, kind: &str, message: &str) -> Response {
    open.finish(status.as_u16(), end);
    error_response(status, kind, message)
}

/// The server's load in Prometheus format, which the suite reads from any server.
async fn metrics(State(app): State<Arc<App>>) -> Response {
    let (running, waiting) = app.engine.load();
    let gauge = |name, value| format!("# TYPE simulator_{name} gauge\nsimulator_{name} {value}\n");
    let text = gauge("num_requests_running", running) + &gauge("num_requests_waiting", waiting);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn models() -> Json<serde_json::Value> {
    let model = json!({"id": "simulated", "object": "model", "created": 0, "owned_by": "simulator"});
    Json(json!({"object": "list", "data": [model]}))
}

async fn not_found(uri: Uri) -> Response {
    let kinds = KINDS.map(|kind| kind.path()).join(", ");
    let message = format!("there is no {}; try {kinds} or /v1/models", uri.path());
    error_response(StatusCode::NOT_FOUND, "invalid_request_error", &message)
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let message = format!("{} does not take {method}", uri.path());
    error_response(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", &message)
}

pub(super) fn error_response(status: StatusCode, kind: &str, message: &str) -> Response {
    let error = json!({"message": message, "type": kind, "code": status.as_u16()});
    (status, Json(json!({"error": error}))).into_response()
}
