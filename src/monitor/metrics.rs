//! Prometheus metrics: `/metrics` during a run, and its final figures as a textfile.

use std::borrow::Cow;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, header};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry, Unit};
use thiserror::Error;
use tokio::sync::{Semaphore, oneshot};

use super::Live;
use crate::client::outcome::Failure;
use crate::decide::{JudgedLevel, Recommendation, Verdict};
use crate::figures::Distribution;

const PREFIX: &str = "llm_concurrency";
/// Upper bounds of the buckets, in seconds: from the first token of a small model to a long answer after a long queue.
const BOUNDS_S: [f64; 24] = [
    0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0,
    30.0, 60.0, 120.0, 300.0,
];
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Maximum number of simultaneous connections to `/metrics`; any further one is closed at once.
const MOST_SCRAPERS: usize = 16;
/// Maximum time from accepting a connection to the last byte of the answer.
const LONGEST_SCRAPE: Duration = Duration::from_secs(5);

#[derive(Debug, Error)]
#[error(
    "cannot serve metrics on {address}: {cause}\n\nNothing was sent. Name another address with --metrics-addr (LLM_BENCH_METRICS_ADDR)."
)]
pub struct MetricsError {
    address: SocketAddr,
    cause: io::Error,
}

/// Serves `/metrics` until it is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    _until_dropped: oneshot::Sender<()>,
}

impl MetricsServer {
    /// Starts serving on its own thread. Port 0 selects a free port.
    pub fn start(address: SocketAddr, live: Arc<Live>) -> Result<Self, MetricsError> {
        let (until_dropped, dropped) = oneshot::channel::<()>();
        let start = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let serving = async move {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let app =
                    Router::new().route("/metrics", get(async move |headers| scrape(&live.series.registry, &headers)));
                tokio::select! {
                    () = serve(listener, app) => {}
                    _ = dropped => {}
                }
                Ok::<_, io::Error>(())
            };
            // The address is bound, so from here on only individual connections can fail.
            let serving = move || drop(runtime.block_on(serving));
            std::thread::Builder::new().name("metrics".to_owned()).spawn(serving)?;
            Ok(address)
        };
        let address = start().map_err(|cause| MetricsError { address, cause })?;
        Ok(MetricsServer { address, _until_dropped: until_dropped })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Each connection serves a single scrape and is short-lived, so that clients that hold connections open cannot use up
/// the file descriptors that the measurement needs.
async fn serve(listener: tokio::net::TcpListener, app: Router) {
    let places = Arc::new(Semaphore::new(MOST_SCRAPERS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Perhaps there are too many open files, which may be temporary.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let service = TowerToHyperService::new(app.clone());
        tokio::spawn(async move {
            let scrape = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(LONGEST_SCRAPE, scrape).await;
            drop(place);
        });
    }
}

fn scrape(registry: &Registry, headers: &HeaderMap) -> ([(header::HeaderName, &'static str); 1], String) {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("application/openmetrics-text") {
        ([(header::CONTENT_TYPE, OPENMETRICS)], openmetrics(registry))
    } else {
        ([(header::CONTENT_TYPE, PLAIN)], plain(&openmetrics(registry)))
    }
}

// Writing to a string cannot fail.
fn openmetrics(registry: &Registry) -> String {
    let mut text = String::new();
    let _ = text::encode(&mut text, registry);
    text
}

/// Prometheus's older text format, which `promtool` and node-exporter read: `_total` is part of a counter's name.
fn plain(openmetrics: &str) -> String {
    let mut text = String::new();
    let is_counter = |name: &str| openmetrics.contains(&format!("# TYPE {name} counter\n"));
    for line in openmetrics.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(keyword), Some(name), Some(rest)) => {
                let total = if is_counter(name) { "_total" } else { "" };
                text += &format!("# {keyword} {name}{total} {rest}\n");
            }
            _ => text += &format!("{line}\n"),
        }
    }
    text
}

// ---- During the run ----

type Labels = Vec<(&'static str, String)>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

#[derive(Debug)]
pub(super) struct Series {
    registry: Registry,
    requests: Family<Labels, Counter>,
    in_flight: Family<Labels, Gauge>,
    output_tokens: Family<Labels, Counter>,
    throughput: Figures,
    latency: Histograms,
    ttft: Histograms,
    tpot: Histograms,
    /// Level and remaining requests of the current measurement; both are 0 between measurements.
    pub(super) level: Gauge,
    pub(super) left: Gauge,
}

impl Default for Series {
    fn default() -> Self {
        Series::new(std::iter::empty())
    }
}

type Common = (Cow<'static, str>, Cow<'static, str>);

/// Labels that every series of a run has.
pub(super) fn of_run(model: &str, run: &str) -> impl Iterator<Item = Common> {
    [("model", model), ("run", run)].map(|(name, value)| (name.into(), value.to_owned().into())).into_iter()
}

impl Series {
    pub(super) fn new(common: impl Iterator<Item = Common>) -> Self {
        let mut registry = Registry::with_prefix_and_labels(PREFIX, common);
        let mut times = |name: &str, help: &str| {
            let family = Histograms::new_with_constructor(|| Histogram::new(BOUNDS_S));
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
            family
        };
        let latency = times("latency", "Time from sending a request to its last byte, successes only");
        let ttft = "Time from sending a request to its first token, successes only; known only when streaming";
        let ttft = times("time_to_first_token", ttft);
        let tpot = "Time per output token after the first, successes only; known only when streaming";
        let tpot = times("time_per_output_token", tpot);
        let requests = "Requests that have ended, by level, by the phase in which they were sent, and by outcome";
        let tokens = "Output tokens of the successes, as the server reported them";
        let throughput =
            "Successes per second in the newest measurement of a level; the last value stays when it has ended";
        let level = "Requests that the current measurement keeps in flight; 0 between measurements";
        Series {
            latency,
            ttft,
            tpot,
            requests: add(&mut registry, "requests", requests),
            in_flight: add(&mut registry, "requests_in_flight", "Requests in flight"),
            output_tokens: add(&mut registry, "output_tokens", tokens),
            throughput: add(&mut registry, "throughput", throughput),
            level: add(&mut registry, "level", level),
            left: add(&mut registry, "requests_left", "Requests that the current measurement may still complete"),
            registry,
        }
    }

    pub(super) fn throughput_of(&self, level: usize) -> FloatGauge {
        self.throughput.get_or_create_owned(&vec![("level", level.to_string())])
    }

    pub(super) fn of(&self, level: usize) -> [PhaseSeries; 2] {
        ["warmup", "measured"].map(|phase| {
            let labels = vec![("level", level.to_string()), ("phase", phase.to_owned())];
            let requests = |outcome: &str| {
                let labels = [labels.as_slice(), &[("outcome", outcome.to_owned())]].concat();
                self.requests.get_or_create_owned(&labels)
            };
            // Every outcome has a series from the start, so that `rate` does not miss the first event.
            PhaseSeries {
                succeeded: requests("Success"),
                given_up: requests("GivenUp"),
                failed: Failure::ALL.map(|kind| requests(kind.name())),
                in_flight: self.in_flight.get_or_create_owned(&labels),
                output_tokens: self.output_tokens.get_or_create_owned(&labels),
                latency: self.latency.get_or_create_owned(&labels),
                ttft: self.ttft.get_or_create_owned(&labels),
                tpot: self.tpot.get_or_create_owned(&labels),
            }
        })
    }
}

fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// The series for one phase of a level.
#[derive(Debug)]
pub(super) struct PhaseSeries {
    pub(super) succeeded: Counter,
    /// Requests that were in flight when the run was interrupted.
    pub(super) given_up: Counter,
    pub(super) failed: [Counter; Failure::ALL.len()],
    pub(super) in_flight: Gauge,
    pub(super) output_tokens: Counter,
    pub(super) latency: Histogram,
    pub(super) ttft: Histogram,
    pub(super) tpot: Histogram,
}

// ---- Final figures ----

pub(super) type FloatGauge = Gauge<f64, AtomicU64>;
type Figures = Family<Labels, FloatGauge>;

type OfLevel<T> = (&'static str, &'static str, fn(&JudgedLevel) -> T);

const FIGURES: [OfLevel<Option<f64>>; 7] = [
    ("requests", "Requests that the figures of a level are based on", |of| Some(of.summary.requests? as f64)),
    ("throughput_requests_per_second", "Successful requests per second of a level", |of| {
        Some(of.summary.throughput_rps?.estimate)
    }),
    ("output_tokens_per_second", "Output tokens per second of a level", |of| of.summary.output_tps),
    ("error_ratio", "Share of a level's requests that failed", |of| of.summary.error_rate),
    ("level_passes", "Whether a level passes all gates", |of| {
        (of.verdict != Verdict::NotUsed).then_some(f64::from(of.verdict == Verdict::Pass))
    }),
    (
        "server_requests_running",
        "Mean number of requests running at the server, from its own metrics (--server-metrics)",
        |of| of.summary.server?.running,
    ),
    (
        "server_requests_waiting",
        "Mean number of requests waiting at the server, from its own metrics (--server-metrics)",
        |of| of.summary.server?.waiting,
    ),
];

const TIMES: [OfLevel<Option<Distribution>>; 3] = [
    ("latency_seconds", "Percentiles of a level's latency", |of| of.summary.latency_s),
    ("time_to_first_token_seconds", "Percentiles of a level's time to first token", |of| of.summary.ttft_s),
    ("time_per_output_token_seconds", "Percentiles of a level's time per output token", |of| of.summary.tpot_s),
];

/// Final figures of a run, for node-exporter's textfile collector. `ended_s` is the Unix time at which it ended.
pub fn textfile(recommendation: &Recommendation, model: &str, run: &str, ended_s: f64) -> String {
    let mut registry = Registry::with_prefix_and_labels(PREFIX, of_run(model, run));
    let mut family = |name: &str, help: &str| add::<Figures>(&mut registry, &format!("final_{name}"), help);
    let labelled = |level: &JudgedLevel| vec![("level", level.summary.concurrency.to_string())];
    for (name, help, figure) in FIGURES {
        let family = family(name, help);
        recommendation.levels.iter().for_each(|level| set(&family, labelled(level), figure(level)));
    }
    for (name, help, times) in TIMES {
        let family = family(name, help);
        for level in &recommendation.levels {
            let Distribution { p50, p90, p95, p99, .. } = times(level).unwrap_or_default();
            for (percentile, value) in [("50", p50), ("90", p90), ("95", p95), ("99", p99)] {
                let percentile = ("percentile", percentile.to_owned());
                set(&family, labelled(level).into_iter().chain([percentile]).collect(), value);
            }
        }
    }
    let recommended = recommendation.recommended_concurrency.map(|level| level as f64);
    let simulated = Some(f64::from(recommendation.simulated));
    for (name, help, value) in [
        ("recommended_level", "The recommended number of requests in parallel", recommended),
        ("simulated", "1 if the embedded simulator was measured and not a server", simulated),
        ("timestamp_seconds", "When the run ended, seconds since 1970", Some(ended_s)),
    ] {
        set(&family(name, help), Vec::new(), value);
    }
    plain(&openmetrics(&registry))
}

fn set(family: &Figures, labels: Labels, value: Option<f64>) {
    if let Some(value) = value {
        family.get_or_create(&labels).set(value);
    }
}
