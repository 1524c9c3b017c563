//! The HTTP server: routes, handlers, and the thread that they run on.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;

use super::SimulatorConfig;
use super::answering::{self, Answering, Spoil};
use super::connection::{Connections, ResetSwitch};
use super::driver::EngineHandle;
use super::engine::QueueFull;
use super::faults::Fault;
use super::lengths::{CHARS_PER_TOKEN, OutputLength, OutputLengths, prompt_tokens};
use super::limits::{PrefixCache, TokenBucket};
use super::log::{CLIENT_CLOSED_REQUEST, OpenRequest, RequestEnd, RequestLog};
use super::metrics;
use super::protocol::{Answer, GenerationRequest, Route, Usage};

/// Connections that may wait to be accepted: a client that opens thousands of streams at once must not see
/// its packets dropped (the system may cap it, on Linux at `net.core.somaxconn`).
const LISTEN_BACKLOG: u32 = 4096;

/// Largest request body that is read, in bytes.
const BODY_LIMIT: usize = 64 << 20;

/// What the handlers work with.
#[derive(Clone)]
pub(super) struct App {
    config: Arc<SimulatorConfig>,
    engine: EngineHandle,
    lengths: Arc<OutputLengths>,
    log: Arc<RequestLog>,
    request_limit: Option<Arc<Mutex<TokenBucket>>>,
    token_limit: Option<Arc<Mutex<TokenBucket>>>,
    cache: Option<Arc<Mutex<PrefixCache>>>,
}

impl App {
    pub(super) fn new(config: SimulatorConfig, engine: EngineHandle, log: Arc<RequestLog>) -> Self {
        let bucket = |limit, burst| Arc::new(Mutex::new(TokenBucket::new(limit, burst, Instant::now())));
        App {
            engine,
            lengths: Arc::new(OutputLengths::new(config.seed, config.output_tokens.clone())),
            log,
            request_limit: config.requests_per_minute.map(|limit| bucket(limit, config.burst().into())),
            token_limit: config.tokens_per_minute.map(|limit| bucket(limit, limit / 10.0)),
            cache: config.prefix_cache.then(Arc::default),
            config: Arc::new(config),
        }
    }

    /// Tokens of the prompt that need no prefill; `None` where there is no prefix cache.
    fn cached_tokens(&self, prompt: &str) -> Option<u32> {
        let mut cache = self.cache.as_ref()?.lock().expect("no thread panics while it holds the cache");
        Some((cache.look_up(prompt) / CHARS_PER_TOKEN) as u32)
    }
}

fn take(limit: &Option<Arc<Mutex<TokenBucket>>>, amount: f64) -> Result<(), Duration> {
    let Some(limit) = limit else { return Ok(()) };
    limit.lock().expect("no thread panics while it holds the limit").take(amount, Instant::now())
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
            let service = router(app).into_make_service_with_connect_info::<ResetSwitch>();
            tokio::select! {
                served = axum::serve(Connections(listener), service).into_future() => served,
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
        .route(
            Route::Embeddings.path(),
            post(|State(app): State<App>, request| generate(app, Route::Embeddings, request)),
        )
        .route("/v1/models", get(models))
        .route("/metrics", get(metrics))
        .route("/health", get(|| async { json_response(StatusCode::OK, json!({"status": "ok"})) }))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app)
}

async fn generate(app: App, route: Route, request: Request) -> Response {
    let mut open = app.log.arrive(route.path());
    if let Err(wait) = take(&app.request_limit, 1.0) {
        return too_many(&app, open, RequestEnd::RateLimited, wait, "too many requests");
    }
    let connection = request.extensions().get::<ConnectInfo<ResetSwitch>>().cloned();
    let asked = match read_request(route, request).await {
        Ok(asked) => asked,
        Err(message) => {
            let status = StatusCode::BAD_REQUEST;
            open.finish(status.as_u16(), RequestEnd::BadRequest);
            return error_response(status, "invalid_request_error", &message);
        }
    };
    let requested = prompt_tokens(&asked.prompt).saturating_add(asked.max_tokens.unwrap_or_default());
    if let Err(wait) = take(&app.token_limit, requested.into()) {
        return too_many_tokens(&app, open, wait, requested);
    }
    let fault = app.config.faults.of(app.config.seed, open.id());
    open.fault(fault);
    let prompt_tokens = prompt_tokens(&asked.prompt);
    let cached_tokens = app.cached_tokens(&asked.prompt);
    open.prompt(prompt_tokens, cached_tokens.unwrap_or(0));
    let answer = Answer::new(route, open.id(), unix_time_s(), asked.model, asked.include_usage);
    let faults = &app.config.faults;
    let spoil = match fault {
        Some(Fault::Reset) => return reset(open, connection),
        Some(Fault::Error500) => return internal_error(open),
        Some(Fault::Rate429) => {
            return too_many(&app, open, RequestEnd::Faulted, Duration::from_secs(1), "too many requests");
        }
        Some(Fault::EmptyOutput) => {
            let usage = Usage::new(prompt_tokens, cached_tokens, 0);
            return answering::empty(open, &answer, asked.stream, asked.inputs, usage);
        }
        Some(Fault::HugeBody) => return answering::huge(open, asked.stream, faults.huge_body_mib),
        Some(Fault::SlowStart) => {
            tokio::time::sleep(Duration::from_secs_f64(faults.slow_start_s)).await;
            None
        }
        Some(Fault::Stall) => Some(Spoil::Stall(Duration::from_secs_f64(faults.stall_s))),
        Some(Fault::CutStream) => Some(Spoil::Cut),
        Some(Fault::MalformedJson) => Some(Spoil::Malformed),
        Some(Fault::GarbageSse) => Some(Spoil::Garbage),
        None => None,
    };
    let length = match route {
        // Embeddings take one step for the prompt and none for an answer.
        Route::Embeddings => OutputLength { tokens: 1, cut: false },
        Route::Chat | Route::Completions => app.lengths.of(&asked.prompt, asked.max_tokens),
    };
    let generation = match app.engine.submit(prompt_tokens - cached_tokens.unwrap_or(0), length.tokens) {
        Ok(generation) => generation,
        Err(full) => return refuse(open, full),
    };
    let inputs = asked.inputs;
    let answering = Answering { answer, generation, open, length, prompt_tokens, cached_tokens, inputs, spoil };
    if asked.stream { answering.stream() } else { answering.whole().await }
}

async fn read_request(route: Route, request: Request) -> Result<GenerationRequest, String> {
    let body = to_bytes(request.into_body(), BODY_LIMIT)
        .await
        .map_err(|error| format!("cannot read the request body: {error}"))?;
    GenerationRequest::parse(route, &body)
}

fn refuse(mut open: OpenRequest, full: QueueFull) -> Response {
    let QueueFull { running, waiting } = full;
    let status = StatusCode::SERVICE_UNAVAILABLE;
    // It never came as far as its fault.
    open.fault(None);
    open.finish(status.as_u16(), RequestEnd::Refused);
    let message = format!("the request queue is full ({running} running, {waiting} waiting)");
    error_response(status, "server_overloaded", &message)
}

/// The answer is lost: the write of its first byte resets the connection.
fn reset(mut open: OpenRequest, connection: Option<ConnectInfo<ResetSwitch>>) -> Response {
    open.finish(CLIENT_CLOSED_REQUEST, RequestEnd::Faulted);
    if let Some(ConnectInfo(connection)) = connection {
        connection.pull();
    }
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

fn internal_error(mut open: OpenRequest) -> Response {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    open.finish(status.as_u16(), RequestEnd::Faulted);
    error_response(status, "internal_server_error", "an error was injected (simulator.faults.error_500)")
}

/// As OpenAI says it.
fn too_many_tokens(app: &App, open: OpenRequest, wait: Duration, requested: u32) -> Response {
    let limit = app.config.tokens_per_minute.unwrap_or_default() as u64;
    let what = format!("Rate limit reached on tokens per min (TPM): Limit {limit}, Requested {requested}");
    let mut response = too_many(app, open, RequestEnd::RateLimited, wait, &what);
    response.headers_mut().insert("x-ratelimit-limit-tokens", limit.into());
    response
}

fn too_many(app: &App, mut open: OpenRequest, end: RequestEnd, wait: Duration, what: &str) -> Response {
    let status = StatusCode::TOO_MANY_REQUESTS;
    open.finish(status.as_u16(), end);
    let seconds = app.config.retry_after_s.map_or(wait.as_secs_f64().ceil() as u64, u64::from);
    let message = format!("{what}; try again in {seconds} s");
    let mut response = error_response(status, "rate_limit_exceeded", &message);
    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    response
}

async fn metrics(State(app): State<App>) -> Response {
    let (running, waiting) = app.engine.load();
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (headers, metrics::text(&app.log.records(), running, waiting)).into_response()
}

async fn models() -> Response {
    let model = json!({"id": "simulated", "object": "model", "created": 0, "owned_by": "simulator"});
    json_response(StatusCode::OK, json!({"object": "list", "data": [model]}))
}

async fn not_found(uri: Uri) -> Response {
    let message =
        format!("there is no {}; try /v1/chat/completions, /v1/completions, /v1/embeddings or /v1/models", uri.path());
    error_response(StatusCode::NOT_FOUND, "invalid_request_error", &message)
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let message = format!("{} does not take {method}", uri.path());
    let status = StatusCode::METHOD_NOT_ALLOWED;
    error_response(status, "invalid_request_error", &message)
}

pub(super) fn error_response(status: StatusCode, kind: &str, message: &str) -> Response {
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
