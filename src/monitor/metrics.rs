//! The run for Prometheus: `/metrics` while it runs, and its final figures as a textfile.

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
use crate::decide::{Recommendation, Verdict};
use crate::figures::Distribution;

const PREFIX: &str = "llm_concurrency";
/// Upper bounds of the buckets, seconds: from the first token of a small model to a long answer in a long queue.
const BOUNDS_S: [f64; 24] = [
    0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0,
    30.0, 60.0, 120.0, 300.0,
];
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Connections to `/metrics` at a time; one more is closed at once.
const MOST_SCRAPERS: usize = 16;
/// From the connection to the last byte of the answer.
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
    /// Begins to serve, on a thread of its own. Port 0 takes a free one.
    ///
    /// # Errors
    /// If the address is taken, or not this machine's.
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
            // The address is bound, so that all that can go wrong later are single connections.
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

/// Each connection is for one scrape, and none for long: those who only hold one must not use up the open files that the
/// measurement needs.
async fn serve(listener: tokio::net::TcpListener, app: Router) {
    let places = Arc::new(Semaphore::new(MOST_SCRAPERS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Too many open files, perhaps; it may pass.
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

/// Prometheus's own older format, which `promtool` and node-exporter read: a counter's `_total` is part of its name.
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

// ---- while it runs ----

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
    /// Of the current measurement; 0 between measurements.
    pub(super) level: Gauge,
    pub(super) left: Gauge,
}

impl Default for Series {
    fn default() -> Self {
        Series::new(std::iter::empty())
    }
}

/// The labels of every series of a run.
pub(super) fn of_run(model: &str, run: &str) -> impl Iterator<Item = Common> {
    [("model", model), ("run", run)].map(|(name, value)| (name.into(), value.to_owned().into())).into_iter()
}

type Common = (Cow<'static, str>, Cow<'static, str>);

impl Series {
    pub(super) fn new(common: impl Iterator<Item = Common>) -> Self {
        let mut registry = Registry::with_prefix_and_labels(PREFIX, common);
        let ended = "Requests that have ended, by level, by the phase in which they were sent, and by outcome";
        let tokens = "Output tokens of the successes, as the server reported them";
        let level = "Requests that the current measurement keeps in flight; 0 between measurements";
        let left = "Requests that the current measurement may still end";
        let throughput = "Successes per second of a level's newest measurement so far; it stays when that has ended";
        let latency = "From sending a request to its last byte, of the successes";
        let ttft = "From sending a request to its first token, of the successes; only when streaming";
        let tpot = "Per output token after the first, of the successes; only when streaming";
        let mut histograms = |name: &str, help: &str| {
            let family = Histograms::new_with_constructor(|| Histogram::new(BOUNDS_S));
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
            family
        };
        Series {
            latency: histograms("latency", latency),
            ttft: histograms("time_to_first_token", ttft),
            tpot: histograms("time_per_output_token", tpot),
            requests: add(&mut registry, "requests", ended),
            in_flight: add(&mut registry, "requests_in_flight", "Requests that are in flight"),
            output_tokens: add(&mut registry, "output_tokens", tokens),
            throughput: add(&mut registry, "throughput", throughput),
            level: add(&mut registry, "level", level),
            left: add(&mut registry, "requests_left", left),
            registry,
        }
    }

    pub(super) fn throughput_of(&self, level: usize) -> FloatGauge {
        self.throughput.get_or_create_owned(&vec![("level", level.to_string())])
    }
}

fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

impl Series {
    pub(super) fn of(&self, level: usize) -> [PhaseSeries; 2] {
        ["warmup", "measured"].map(|phase| {
            let labels = vec![("level", level.to_string()), ("phase", phase.to_owned())];
            let requests = |outcome: &str| {
                let labels = [labels.as_slice(), &[("outcome", outcome.to_owned())]].concat();
                self.requests.get_or_create_owned(&labels)
            };
            // Every outcome has its series from the start, so that a rate sees its first event.
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

/// The series of one phase of a level.
#[derive(Debug)]
pub(super) struct PhaseSeries {
    pub(super) succeeded: Counter,
    /// In flight when the run was interrupted.
    pub(super) given_up: Counter,
    pub(super) failed: [Counter; Failure::ALL.len()],
    pub(super) in_flight: Gauge,
    pub(super) output_tokens: Counter,
    pub(super) latency: Histogram,
    pub(super) ttft: Histogram,
    pub(super) tpot: Histogram,
}

// ---- the final figures ----

pub(super) type FloatGauge = Gauge<f64, AtomicU64>;
type Figures = Family<Labels, FloatGauge>;

/// The figures of a run that has ended, for node-exporter's textfile collector. `ended_s` is in seconds since 1970.
pub fn textfile(recommendation: &Recommendation, model: &str, run: &str, ended_s: f64) -> String {
    let mut registry = Registry::with_prefix_and_labels(PREFIX, of_run(model, run));
    let mut family = |name: &str, help: &str| add::<Figures>(&mut registry, name, help);
    let requests = family("final_requests", "Requests that the figures of a level are taken over");
    let throughput = family("final_throughput_requests_per_second", "Successful requests per second of a level");
    let tokens = family("final_output_tokens_per_second", "Output tokens per second of a level");
    let errors = family("final_error_ratio", "Share of a level's requests that failed");
    let passes = family("final_level_passes", "Whether a level passes all gates");
    let latency = family("final_latency_seconds", "Percentiles of a level's latency");
    let ttft = family("final_time_to_first_token_seconds", "Percentiles of a level's time to first token");
    let tpot = family("final_time_per_output_token_seconds", "Percentiles of a level's time per output token");
    let [running, waiting] = ["running", "waiting"].map(|what| {
        let help = format!("Requests {what} at the server on average, by its own metrics (--server-metrics)");
        family(&format!("final_server_requests_{what}"), &help)
    });
    let recommended = family("final_recommended_level", "The recommended number of requests in parallel");
    let simulated = family("final_simulated", "1 where the embedded simulator was measured, and no server");
    let ended = family("final_timestamp_seconds", "When the run ended, seconds since 1970");
    for level in &recommendation.levels {
        let summary = &level.summary;
        let labels = vec![("level", summary.concurrency.to_string())];
        let set = |family: &Figures, value: Option<f64>| set(family, &labels, value);
        set(&requests, summary.requests.map(|n| n as f64));
        set(&throughput, summary.throughput_rps.map(|rps| rps.estimate));
        set(&tokens, summary.output_tps);
        set(&errors, summary.error_rate);
        set(&passes, (level.verdict != Verdict::NotUsed).then_some(f64::from(level.verdict == Verdict::Pass)));
        set(&running, summary.server.and_then(|server| server.running));
        set(&waiting, summary.server.and_then(|server| server.waiting));
        for (family, times) in [(&latency, summary.latency_s), (&ttft, summary.ttft_s), (&tpot, summary.tpot_s)] {
            let Distribution { p50, p90, p95, p99, .. } = times.unwrap_or_default();
            for (percentile, value) in [("50", p50), ("90", p90), ("95", p95), ("99", p99)] {
                let labels = [labels.as_slice(), &[("percentile", percentile.to_owned())]].concat();
                self::set(family, &labels, value);
            }
        }
    }
    set(&recommended, &Vec::new(), recommendation.recommended_concurrency.map(|level| level as f64));
    set(&simulated, &Vec::new(), Some(f64::from(recommendation.simulated)));
    set(&ended, &Vec::new(), Some(ended_s));
    plain(&openmetrics(&registry))
}

fn set(family: &Figures, labels: &Labels, value: Option<f64>) {
    if let Some(value) = value {
        family.get_or_create(labels).set(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::outcome::tests::outcome;
    use crate::client::outcome::{Phase, RequestOutcome};
    use crate::decide::{Policy, recommend};
    use crate::figures::{Estimate, LevelSummary, ServerLoad};

    /// Level 2 twice, the second time in a confirm round that is still running.
    fn live() -> Arc<Live> {
        let live = Arc::new(Live::default());
        let first = live.begin(2, 0, 30);
        first.issued(Phase::Measured);
        first.ended(&RequestOutcome { ttft_s: Some(0.04), output_tokens: Some(9), ..outcome(0.0, 0.4) });
        first.over();
        let again = live.begin(2, 1, 30);
        (0..3).for_each(|_| again.issued(Phase::Measured));
        again.ended(&outcome(0.0, 4.0));
        again.ended(&RequestOutcome { failure: Some(Failure::Timeout), ..outcome(0.0, 4.0) });
        live
    }

    fn assert_has(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|one| one == *line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn the_measurements_of_a_level_are_counted_together() {
        let live = live();
        let text = openmetrics(&live.series.registry);
        assert_has(
            &text,
            &[
                "# TYPE llm_concurrency_requests counter",
                r#"llm_concurrency_requests_total{level="2",phase="measured",outcome="Success"} 2"#,
                r#"llm_concurrency_requests_total{level="2",phase="measured",outcome="Timeout"} 1"#,
                r#"llm_concurrency_requests_total{level="2",phase="warmup",outcome="Timeout"} 0"#,
                r#"llm_concurrency_requests_in_flight{level="2",phase="measured"} 1"#,
                r#"llm_concurrency_output_tokens_total{level="2",phase="measured"} 9"#,
                "# UNIT llm_concurrency_latency_seconds seconds",
                r#"llm_concurrency_latency_seconds_sum{level="2",phase="measured"} 4.4"#,
                r#"llm_concurrency_latency_seconds_bucket{le="0.3",level="2",phase="measured"} 0"#,
                r#"llm_concurrency_latency_seconds_bucket{le="0.5",level="2",phase="measured"} 1"#,
                r#"llm_concurrency_latency_seconds_bucket{le="+Inf",level="2",phase="measured"} 2"#,
                r#"llm_concurrency_time_to_first_token_seconds_count{level="2",phase="measured"} 1"#,
                "llm_concurrency_level 2",
                "llm_concurrency_requests_left 28",
                "# EOF",
            ],
        );
        live.begin(3, 0, 30).over();
        assert_has(
            &openmetrics(&live.series.registry),
            &["llm_concurrency_level 0", "llm_concurrency_requests_left 0"],
        );
        // The plain format names a counter as its samples.
        let text = plain(&text);
        assert_has(&text, &["# TYPE llm_concurrency_requests_total counter"]);
        assert!(text.contains("# HELP llm_concurrency_requests_total Requests that have ended, by level"));
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"));
    }

    #[test]
    fn the_dashboard_names_nothing_else() {
        let full = LevelSummary {
            concurrency: 2,
            throughput_rps: Some(Estimate { estimate: 5.0, lower: None, upper: None }),
            latency_s: Some(Distribution { p95: Some(0.25), ..Distribution::default() }),
            server: Some(ServerLoad { running: Some(1.0), waiting: Some(1.0), ..ServerLoad::default() }),
            ..LevelSummary::default()
        };
        let ended = recommend(&[LevelSummary { concurrency: 1, ..full.clone() }, full], &Policy::default());
        let text = openmetrics(&live().series.registry) + &textfile(&ended, "a", "b", 1.5e9);
        let dashboard = include_str!("../../docs/grafana-dashboard.json");
        let names: Vec<&str> = dashboard
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|word| word.starts_with(&format!("{PREFIX}_")))
            .collect();
        assert!(names.len() > 10);
        for name in names {
            let serves = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
            assert!(text.lines().any(serves), "{name}");
        }
    }

    #[test]
    fn a_taken_address_is_an_error_that_names_it() {
        let server = MetricsServer::start(([127, 0, 0, 1], 0).into(), Arc::default()).expect("a free port");
        let again = MetricsServer::start(server.address(), Arc::default()).expect_err("it is taken").to_string();
        let begins = format!("cannot serve metrics on {}: ", server.address());
        assert!(again.starts_with(&begins) && again.contains("--metrics-addr"), "{again}");
    }

    #[test]
    fn the_textfile_holds_what_is_known() {
        let level = |concurrency, rps| LevelSummary {
            concurrency,
            requests: Some(1000),
            error_rate: Some(0.0),
            throughput_rps: Some(Estimate { estimate: rps, lower: None, upper: None }),
            latency_s: Some(Distribution { p95: Some(0.25), ..Distribution::default() }),
            ..LevelSummary::default()
        };
        let recommendation = recommend(&[level(1, 5.0), level(4, 16.5)], &Policy::default());
        let text = textfile(&recommendation, "a", "b", 1.5e9);
        assert_has(
            &text,
            &[
                "# TYPE llm_concurrency_final_throughput_requests_per_second gauge",
                r#"llm_concurrency_final_throughput_requests_per_second{model="a",run="b",level="4"} 16.5"#,
                r#"llm_concurrency_final_latency_seconds{model="a",run="b",level="1",percentile="95"} 0.25"#,
                r#"llm_concurrency_final_recommended_level{model="a",run="b"} 4.0"#,
                r#"llm_concurrency_final_timestamp_seconds{model="a",run="b"} 1500000000.0"#,
            ],
        );
        assert!(!text.contains("percentile=\"99\"") && !text.contains("first_token_seconds{"), "{text}");
    }
}
