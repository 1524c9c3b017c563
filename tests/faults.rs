//! The fault matrix: every fault of the simulated server, streamed or not, at level 1 and 16. What our records say
//! must equal the server's own log, class by class. The requests, timeouts and pauses bound its time.

#![cfg(feature = "suite")]

mod servers;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use llm_concurrency::client::outcome::{Failure, RequestOutcome};
use llm_concurrency::client::{Llm, RequestKind, RequestSettings};
use llm_concurrency::load::closed_loop::LoopPlan;
use llm_concurrency::simulator::{
    Fault, FaultRate, Faults, OutputTokens, RequestEnd, RequestRecord, Simulator, SimulatorConfig,
};

/// What became of a request: its failure's name, or this.
const SUCCESS: &str = "success";

const CLASSES: [&str; 8] =
    [SUCCESS, "Connect", "Timeout", "RateLimited", "ClientError", "ServerError", "Malformed", "EmptyOutput"];

type Counts = BTreeMap<&'static str, usize>;

/// One line of the matrix.
struct Row {
    fault: String,
    form: &'static str,
    level: usize,
    lines: usize,
    resent: u32,
    seen_by_server: usize,
    faults_in_log: usize,
    ours: Counts,
    servers: Counts,
}

impl Row {
    fn of(
        fault: impl ToString,
        form: &'static str,
        level: usize,
        ours: &[RequestOutcome],
        log: &[RequestRecord],
    ) -> Self {
        let resent = ours.iter().map(|line| line.resent).sum();
        let mut servers = count(log.iter().map(class_by_log));
        // A reset of a reused connection is sent again and counted in `resent`, not as a failure.
        if let Some(connect) = servers.get_mut("Connect") {
            *connect -= resent as usize;
        }
        servers.retain(|_, count| *count > 0);
        Row {
            fault: fault.to_string(),
            form,
            level,
            lines: ours.len(),
            resent,
            seen_by_server: log.len(),
            faults_in_log: log.iter().filter(|record| record.fault.is_some()).count(),
            ours: count(ours.iter().map(|line| line.failure.map_or(SUCCESS, Failure::name))),
            servers,
        }
    }

    fn check(&self) {
        let cell = format!("{} {} level {}", self.fault, self.form, self.level);
        assert_eq!(self.ours, self.servers, "{cell}");
        assert_eq!(self.lines + self.resent as usize, self.seen_by_server, "{cell}");
        assert!(self.faults_in_log > 0, "{cell}: no fault was injected");
    }
}

fn count(classes: impl Iterator<Item = &'static str>) -> Counts {
    classes.fold(Counts::new(), |mut counts, class| {
        *counts.entry(class).or_default() += 1;
        counts
    })
}

/// What the server's log says a client must have seen.
fn class_by_log(record: &RequestRecord) -> &'static str {
    match (record.outcome, record.fault) {
        (RequestEnd::Completed, _) => SUCCESS,
        (RequestEnd::Refused, _) | (_, Some(Fault::Error500)) => "ServerError",
        (RequestEnd::RateLimited, _) | (_, Some(Fault::Rate429)) => "RateLimited",
        (RequestEnd::BadRequest, _) => "ClientError",
        (_, Some(Fault::Reset)) => "Connect",
        (_, Some(Fault::CutStream | Fault::MalformedJson | Fault::GarbageSse | Fault::HugeBody)) => "Malformed",
        (_, Some(Fault::EmptyOutput)) => "EmptyOutput",
        // The client has given up.
        (RequestEnd::Cancelled | RequestEnd::Faulted, Some(Fault::SlowStart | Fault::Stall) | None) => "Timeout",
    }
}

fn server(faults: Faults) -> SimulatorConfig {
    SimulatorConfig {
        slots: 16,
        queue_limit: 32,
        base_step_ms: 1.0,
        per_sequence_ms: 0.0,
        output_tokens: OutputTokens::Uniform { min: 2, max: 10 },
        // In whole seconds, and honoured: 0 keeps the matrix short.
        retry_after_s: Some(0),
        faults,
        ..SimulatorConfig::default()
    }
}

/// Pauses far above the timeouts, and those far above what a good request takes.
fn pauses() -> Faults {
    Faults { slow_start_s: 60.0, stall_s: 60.0, huge_body_mib: 64, ..Faults::default() }
}

fn impatient() -> Llm {
    Llm { request_timeout: 60.0, first_byte_timeout: Some(2.0), idle_timeout: Some(2.0), ..Llm::default() }
}

/// The log once it holds all `expected` requests: the server sees only after the client that it has left.
fn whole_log(simulator: &Simulator, expected: usize) -> Vec<RequestRecord> {
    let start = Instant::now();
    while simulator.log().len() < expected && start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(5));
    }
    simulator.log()
}

fn cell(fault: Fault, form: &'static str, level: usize) -> Row {
    let mut faults = pauses();
    // Those that cost a timeout each are rarer.
    let slow = matches!(fault, Fault::SlowStart | Fault::Stall);
    faults.set(FaultRate { fault, rate: if slow { 0.05 } else { 0.2 } });
    let simulator = Simulator::start(server(faults), 0).unwrap();
    let kind = if form == "embedding" { RequestKind::Embedding } else { RequestKind::Chat };
    let request = RequestSettings { kind, stream: form == "stream", ..RequestSettings::default() };
    let plan = LoopPlan::new(level, 50 + 5 * level, level, 10, 1);
    let ours = servers::measure(&simulator.base_url(), &impatient(), &request, &plan);
    let resent: u32 = ours.iter().map(|line| line.resent).sum();
    let log = whole_log(&simulator, ours.len() + resent as usize);
    Row::of(fault, form, level, &ours, &log)
}

/// The faults side by side, since most of it is waiting.
fn matrix() -> Vec<Row> {
    let of_fault = |fault| {
        let forms = ["stream", "whole", "embedding"];
        forms.into_iter().flat_map(move |form| [1, 16].map(|level| cell(fault, form, level))).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads = Fault::ALL.map(|fault| scope.spawn(move || of_fault(fault)));
        threads.into_iter().flat_map(|thread| thread.join().expect("the thread's panic is printed above")).collect()
    })
}

fn table(rows: &[Row]) -> String {
    let mut text =
        format!("| fault | form | level | {} | resent | lines | server saw | of these faulty |\n", CLASSES.join(" | "));
    let _ = writeln!(text, "|{}", " --- |".repeat(CLASSES.len() + 7));
    for row in rows {
        let counts = CLASSES.map(|class| row.ours.get(class).map_or_else(|| "·".to_owned(), usize::to_string));
        let Row { fault, form, level, resent, lines, seen_by_server, faults_in_log, .. } = row;
        let counts = counts.join(" | ");
        let _ = writeln!(
            text,
            "| {fault} | {form} | {level} | {counts} | {resent} | {lines} | {seen_by_server} | {faults_in_log} |"
        );
    }
    text
}

#[test]
fn every_fault_is_counted_as_the_server_counts_it() {
    let rows = matrix();
    print!("{}", table(&rows));
    rows.iter().for_each(Row::check);
}

#[test]
#[ignore = "rewrites docs/faults.md"]
fn write_the_table_into_the_docs() {
    const PATH: &str = "docs/faults.md";
    let rows = matrix();
    rows.iter().for_each(Row::check);
    let text = std::fs::read_to_string(PATH).unwrap();
    let (before, rest) = text.split_once("<!-- matrix -->\n").expect("the mark before the table");
    let (_, after) = rest.split_once("<!-- /matrix -->\n").expect("the mark after the table");
    let table = table(&rows);
    std::fs::write(PATH, format!("{before}<!-- matrix -->\n{table}<!-- /matrix -->\n{after}")).unwrap();
}

/// What `run` says against a server with this quota: it is told apart from saturation, and nothing is written.
fn run_against_quota(quota: SimulatorConfig) -> String {
    let simulator = Simulator::start(SimulatorConfig { retry_after_s: None, ..quota }, 0).unwrap();
    let config = format!("llm:\n  endpoint: {}\n  max_concurrent_requests: 7\n", simulator.base_url());
    let folder = servers::folder(&config);
    let args =
        ["run", "--levels", "4,16", "--total-requests", "40", "--update-config", "--allow-provisional", "--verbose"];
    let output = servers::binary(folder.path()).args(args).output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!(output.status.code(), Some(3), "{stdout}{stderr}");
    assert!(stderr.ends_with("config.yaml was not changed: status rate_limited\n"), "{stderr}");
    assert_eq!(std::fs::read_to_string(folder.path().join("config.yaml")).unwrap(), config);
    for part in ["No recommendation (rate_limited)", "Keep to that rate (or ask for a higher quota) instead of tuning"]
    {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    stdout
}

#[test]
fn a_quota_is_named_as_such_and_patches_nothing() {
    let requests = SimulatorConfig { requests_per_minute: Some(1200.0), burst: Some(10), ..server(Faults::default()) };
    let stdout = run_against_quota(requests);
    assert!(stdout.contains("failures are HTTP 429: a quota is the limit, not concurrency"), "{stdout}");
}

#[test]
fn a_quota_of_tokens_is_shown_in_tokens() {
    let tokens = SimulatorConfig { tokens_per_minute: Some(300_000.0), ..server(Faults::default()) };
    let stdout = run_against_quota(tokens);
    for part in [
        "failures are HTTP 429: a token quota is the limit, not concurrency",
        "tokens, prompts included) passed at level",
        "the server states 300000 tokens a minute",
    ] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
}

/// The whole program with all faults at once: the sidecars on disk against the server's log.
#[test]
fn the_sidecars_of_a_run_equal_the_log_of_a_server_with_all_faults() {
    let mut faults = pauses();
    Fault::ALL.into_iter().for_each(|fault| faults.set(FaultRate { fault, rate: 0.03 }));
    let simulator = Simulator::start(server(faults), 0).unwrap();
    let config = format!(
        "llm:\n  endpoint: {}\n  request_timeout: 60\n  first_byte_timeout: 2\n  idle_timeout: 2\n",
        simulator.base_url()
    );
    let folder = servers::folder(&config);
    let output = servers::binary(folder.path()).args(["run", "--levels", "2,16"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    // 3: nothing that may be patched, with a fifth of the requests failing.
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    let mut ours: Vec<RequestOutcome> = Vec::new();
    for run in std::fs::read_dir(folder.path().join("target/concurrency")).unwrap() {
        for name in ["preflight.jsonl", "level-2.jsonl", "level-16.jsonl"] {
            let lines = std::fs::read_to_string(run.as_ref().unwrap().path().join(name)).unwrap();
            ours.extend(lines.lines().map(|line| serde_json::from_str::<RequestOutcome>(line).unwrap()));
        }
    }
    let resent: u32 = ours.iter().map(|line| line.resent).sum();
    let row = Row::of("all", "stream", 16, &ours, &whole_log(&simulator, ours.len() + resent as usize));
    row.check();
    // A reset is a failure only on a fresh connection, which is a matter of chance.
    assert!(row.resent > 0);
    for class in [SUCCESS, "Timeout", "RateLimited", "ServerError", "Malformed", "EmptyOutput"] {
        assert!(row.ours.contains_key(class), "{class}: {:?}", row.ours);
    }
    assert!(ours.iter().all(|line| line.failure.is_some() == line.error.is_some()));
}
