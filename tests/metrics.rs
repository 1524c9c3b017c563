//! `/metrics` of a run as a real Prometheus sees it, and the dashboard on top of it. Run by `.ci/run`.

#![cfg(feature = "suite")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use llm_concurrency::client::outcome::{Failure, Phase, RequestOutcome};
use llm_concurrency::decide::{Policy, recommend};
use llm_concurrency::figures::{Distribution, Estimate, LevelSummary, ServerLoad};
use llm_concurrency::monitor::{LevelMonitor, Live, MetricsServer, textfile};
use serde_json::Value;

const CONFIG: &str = "llm: {endpoint: simulator, model: m}\nbenchmark: {seed: 7}\n\
                      simulator: {faults: {error_500: 0.05}}\n";
const DASHBOARD: &str = include_str!("../docs/grafana-dashboard.json");

/// Ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A run that serves its metrics, and where.
fn run(folder: &Path) -> (Process, String, BufReader<impl Read>) {
    run_with(folder, &["env"])
}

/// The same, begun by another command.
fn run_with(folder: &Path, by: &[&str]) -> (Process, String, BufReader<impl Read>) {
    fs::write(folder.join("config.yaml"), CONFIG).unwrap();
    let mut command = Command::new(by[0]);
    command.args(&by[1..]).arg(env!("CARGO_BIN_EXE_llm-concurrency"));
    command.args([
        "run",
        "--levels",
        "5,40",
        "--total-requests",
        "200",
        "--metrics-addr",
        "127.0.0.1:0",
        "--server-metrics",
    ]);
    for name in std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("LLM_")) {
        command.env_remove(name);
    }
    command.env("CARGO_TARGET_DIR", folder.join("target")).current_dir(folder);
    let mut child = Process(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    let mut stderr = BufReader::new(child.0.stderr.take().unwrap());
    let mut line = String::new();
    while stderr.read_line(&mut line).unwrap() > 0 {
        if let Some(address) = line.strip_prefix("Metrics: http://").and_then(|rest| rest.strip_suffix("/metrics\n")) {
            return (child, address.to_owned(), stderr);
        }
        line.clear();
    }
    panic!("no word of the metrics");
}

/// What is served there, head and body.
fn get(address: &str, accept: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

#[track_caller]
fn assert_clean(what: &str, metrics: &str) {
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().expect("Debian's prometheus");
    child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let complaints = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && complaints.is_empty(), "{what}: {complaints}\n{metrics}");
}

/// A Prometheus that scrapes `targets` twice a second, and its address.
fn prometheus(folder: &Path, targets: &[&str]) -> (Process, String) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let config = format!(
        "global: {{scrape_interval: 500ms}}\nscrape_configs: [{{job_name: run, static_configs: [{{targets: {targets:?}}}]}}]\n"
    );
    fs::write(folder.join("prometheus.yml"), config).unwrap();
    let mut command = Command::new("prometheus");
    command.arg("--config.file=prometheus.yml").arg("--storage.tsdb.path=tsdb").arg("--log.level=error");
    command.arg(format!("--web.listen-address={address}")).current_dir(folder);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("Debian's prometheus");
    (Process(child), address)
}

/// The queries of the dashboard, with a range as Grafana would fill it in.
fn queries() -> BTreeSet<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    targets.map(|target| target["expr"].as_str().unwrap().replace("$__rate_interval", "3s")).collect()
}

/// Series with at least one number, between two moments.
fn series_of(query: &str, server: &str, from: u64, to: u64) -> usize {
    let mut promtool = Command::new("promtool");
    promtool
        .args(["query", "range", "-o", "json", "--step=1s"])
        .arg(format!("--start={from}"))
        .arg(format!("--end={to}"));
    let output = promtool.arg(format!("http://{server}")).arg(query).output().unwrap();
    assert!(output.status.success(), "{query}: {}", String::from_utf8_lossy(&output.stderr));
    let series: Value = serde_json::from_slice(&output.stdout).unwrap();
    let has_number = |series: &&Value| series["values"].as_array().unwrap().iter().any(|point| point[1] != "NaN");
    series.as_array().unwrap().iter().filter(has_number).count()
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// Connections that send nothing, and how many of them are held.
struct Idle(Vec<TcpStream>);

impl Idle {
    fn open(count: usize, address: &str) -> Self {
        Idle((0..count).map(|_| TcpStream::connect(address).unwrap()).collect())
    }

    fn held(&self) -> usize {
        let held = |mut stream: &TcpStream| {
            stream.set_nonblocking(true).unwrap();
            stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        };
        self.0.iter().filter(|stream| held(stream)).count()
    }
}

/// A request of the measured phase.
fn outcome(latency_s: f64, failure: Option<Failure>) -> RequestOutcome {
    let phase = Phase::Measured;
    RequestOutcome { phase, end_s: Some(latency_s), latency_s: Some(latency_s), failure, ..RequestOutcome::default() }
}

/// Level 2 twice, the second time in a confirm round that is still running.
fn live() -> Arc<Live> {
    let live = Arc::new(Live::default());
    let first = live.begin(2, 0, 30);
    first.issued(Phase::Measured);
    first.ended(&RequestOutcome { ttft_s: Some(0.04), output_tokens: Some(9), ..outcome(0.4, None) });
    drop(LevelMonitor::new(first, true));
    let again = live.begin(2, 1, 30);
    (0..3).for_each(|_| again.issued(Phase::Measured));
    again.ended(&outcome(4.0, None));
    again.ended(&outcome(4.0, Some(Failure::Timeout)));
    live
}

fn serve(live: &Arc<Live>) -> (MetricsServer, String) {
    let server = MetricsServer::start("127.0.0.1:0".parse().unwrap(), live.clone()).unwrap();
    let address = server.address().to_string();
    (server, address)
}

const OPENMETRICS: &str = "application/openmetrics-text";

#[track_caller]
fn assert_has(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|one| one == *line), "no {line} in\n{text}");
    }
}

#[test]
fn the_measurements_of_a_level_are_counted_together() {
    let live = live();
    let (_server, address) = serve(&live);
    let lines = [
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
    ];
    assert_has(&get(&address, OPENMETRICS).1, &lines);
    // The plain format names a counter as its samples.
    let plain = get(&address, "*/*").1;
    assert_has(&plain, &["# TYPE llm_concurrency_requests_total counter"]);
    assert!(plain.contains("# HELP llm_concurrency_requests_total Requests that have ended, by level"));
    assert!(!plain.contains("# EOF") && !plain.contains("# UNIT"));
    drop(LevelMonitor::new(live.begin(3, 0, 30), true));
    let between = ["llm_concurrency_level 0", "llm_concurrency_requests_left 0"];
    assert_has(&get(&address, OPENMETRICS).1, &between);
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
    let (_server, address) = serve(&live());
    let text = get(&address, OPENMETRICS).1 + &textfile(&ended, "a", "b", 1.5e9);
    let words = DASHBOARD.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names: Vec<&str> = words.filter(|word| word.starts_with("llm_concurrency_")).collect();
    assert!(names.len() > 10);
    for name in names {
        let serves = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        assert!(text.lines().any(serves), "{name}");
    }
}

#[test]
fn a_taken_address_is_an_error_that_names_it() {
    let (server, address) = serve(&Arc::default());
    let again = MetricsServer::start(server.address(), Arc::default()).expect_err("it is taken").to_string();
    let begins = format!("cannot serve metrics on {address}: ");
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
    let lines = [
        "# TYPE llm_concurrency_final_throughput_requests_per_second gauge",
        r#"llm_concurrency_final_throughput_requests_per_second{model="a",run="b",level="4"} 16.5"#,
        r#"llm_concurrency_final_latency_seconds{model="a",run="b",level="1",percentile="95"} 0.25"#,
        r#"llm_concurrency_final_recommended_level{model="a",run="b"} 4.0"#,
        r#"llm_concurrency_final_timestamp_seconds{model="a",run="b"} 1500000000.0"#,
    ];
    assert_has(&text, &lines);
    assert!(!text.contains("percentile=\"99\"") && !text.contains("first_token_seconds{"), "{text}");
}

#[test]
fn few_idle_scrapers_are_held_and_none_of_them_for_long() {
    let (_server, address) = serve(&Arc::default());
    let idle = Idle::open(100, &address);
    for most in [16, 0] {
        let start = Instant::now();
        while idle.held() > most && start.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(idle.held() <= most, "{} are held", idle.held());
    }
    assert!(get(&address, "*/*").0.starts_with("http/1.1 200"));
}

/// Of a process that may have little more than the files that it needs.
#[cfg(unix)]
#[test]
fn idle_scrapers_do_not_end_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let (mut run, address, stderr) = run_with(folder.path(), &["sh", "-c", "ulimit -n 200; exec \"$0\" \"$@\""]);
    let _idle = Idle::open(301, &address);
    let lines: Vec<String> = stderr.lines().map(|line| line.unwrap()).collect();
    let code = run.0.wait().unwrap().code();
    assert!(code == Some(0) || code == Some(3), "{lines:?}");
}

#[test]
#[ignore = "needs prometheus"]
fn ci_a_real_prometheus_scrapes_a_run_and_every_query_of_the_dashboard_shows_it() {
    let folder = tempfile::tempdir().unwrap();
    let from = now();
    let (mut run, address, mut stderr) = run(folder.path());
    // Instead of node-exporter.
    let exporter = httpmock::MockServer::start();
    let (_server, server) = prometheus(folder.path(), &[&address, &exporter.address().to_string()]);
    // So that there is something of each kind.
    let seen = |line: String| line.starts_with("level 5 ended:");
    let mut lines = stderr.by_ref().lines();
    assert!(lines.any(|line| seen(line.unwrap())), "the first level never ended");
    thread::sleep(Duration::from_secs(1));

    let (head, plain) = get(&address, "*/*");
    assert!(head.starts_with("http/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
    assert_clean("/metrics", &plain);
    let (head, openmetrics) = get(&address, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert!(head.contains("application/openmetrics-text; version=1.0.0") && openmetrics.ends_with("# EOF\n"), "{head}");

    lines.for_each(|line| drop(line.unwrap()));
    let code = run.0.wait().unwrap().code();
    assert!(code == Some(0) || code == Some(3), "{code:?}");
    let textfile = fs::read_to_string(folder.path().join("results/concurrency.prom")).unwrap();
    exporter.mock(|when, then| {
        when.path("/metrics");
        then.status(200).header("content-type", "text/plain; version=0.0.4").body(&textfile);
    });
    thread::sleep(Duration::from_secs(3));
    let (queries, to) = (queries(), now());
    assert!(queries.len() > 10, "{queries:?}");
    for query in &queries {
        let series = series_of(query, &server, from, to);
        assert!(series > 0, "nothing for {query}");
        println!("{series} series: {query}");
    }
    let failures = queries.iter().find(|query| query.starts_with("sum by (outcome)")).unwrap();
    assert!(series_of(&format!("({failures}) > 0"), &server, from, to) > 0, "the simulator's faults are not seen");
    assert_clean("textfile", &textfile);
}
