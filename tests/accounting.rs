//! Every request that reaches the server has one line in a sidecar, and each line is a success or one named failure.

use std::collections::BTreeMap;
use std::path::Path;

use llm_concurrency::client::outcome::{Failure, Phase, RequestOutcome};
use llm_concurrency::client::{Endpoint, Env};
use llm_concurrency::figures::{LevelState, Measurement};
use llm_concurrency::measure::plan::Plan;
use llm_concurrency::measure::sweep::{self, CriterionArgs, Swept};
use llm_concurrency::prompts;
use llm_concurrency::record::{Places, RequestsFile, read_sidecar};
use llm_concurrency::settings::{Config, Levels, Overrides, Settings};
use llm_concurrency::simulator::{OutputTokens, RequestEnd, Simulator, SimulatorConfig, explain};
use tempfile::TempDir;

/// A whole sweep, files included, against a server whose log is at hand.
struct Sweep {
    settings: Settings,
    places: Places,
    _folder: TempDir,
}

impl Sweep {
    fn new(levels: &[usize], stream: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        prompts::save(at("snippets.json"), &prompts::generate(7, 200)).unwrap();
        let mut config = Config::parse("llm: {endpoint: simulator, model: any}", Path::new("config.yaml")).unwrap();
        config.benchmark.levels = Levels::List(levels.to_vec());
        config.benchmark.request.stream = stream;
        config.benchmark.request.prompts = Some(at("snippets.json"));
        let settings = Settings::resolve(at("config.yaml"), config, &Env::default(), Overrides::default()).unwrap();
        let places = Places { criterion: at("criterion"), runs: at("runs"), results: at("results") };
        Sweep { settings, places, _folder: folder }
    }

    fn run(&mut self, server: &Simulator) -> Swept {
        self.settings.endpoint = server.base_url().parse::<Endpoint>().unwrap();
        sweep::run(&self.settings, &CriterionArgs::measure_all(), &self.places, None, false).unwrap()
    }

    fn plan(&self) -> Plan {
        Plan::new(&self.settings, &prompts::of_run(&self.settings).unwrap(), |_| true)
    }
}

/// 20 slots and a queue of 25, as by default, but ten times as fast.
fn fast() -> SimulatorConfig {
    SimulatorConfig {
        base_step_ms: 1.0,
        per_sequence_ms: 0.05,
        prefill_ms_per_token: 0.0,
        output_tokens: OutputTokens::LogNormal { median: 12.0, sigma: 0.35 },
        ..SimulatorConfig::default()
    }
}

/// The requests of each measurement of a level, and whether it was a visit.
fn measurements(swept: &Swept, level: usize) -> Vec<(bool, Vec<RequestOutcome>)> {
    let manifest = &swept.run.manifest;
    let files = manifest.requests(swept.run.folder()).into_iter().zip(&manifest.levels);
    let of_file = |(file, of): (RequestsFile, &Measurement)| {
        let left_out = of.left_out.map_or(0, |left_out| left_out.requests);
        let lines = read_sidecar(&file.path).unwrap().map(|line| line.unwrap().leaving_out(left_out));
        let meant = lines.filter(|line| file.visit.is_none_or(|visit| line.visit == Some(visit)));
        (file.visit.is_some(), meant.collect())
    };
    files.filter(|(file, _)| file.level == level).map(of_file).collect()
}

fn sidecars(swept: &Swept, level: usize) -> Vec<Vec<RequestOutcome>> {
    measurements(swept, level).into_iter().map(|measurement| measurement.1).collect()
}

fn lines_of(swept: &Swept, name: &str) -> Vec<RequestOutcome> {
    read_sidecar(&swept.run.folder().join(name)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// Holds the server's log against the sidecars, and each level against its plan and its summary.
fn assert_accounts(sweep: &Sweep, swept: &Swept, server: &Simulator) {
    let preflight = lines_of(swept, "preflight.jsonl");
    let mut arrived = preflight.len() as u64;
    let mut by_status: BTreeMap<u16, u64> = BTreeMap::from([(200, arrived)]);
    assert!(preflight.iter().all(RequestOutcome::is_success) && arrived == 2, "{preflight:?}");
    for (plan, summary) in sweep.plan().levels.iter().zip(&swept.run.summaries) {
        let what = format!("level {}", plan.level);
        let mut in_cohorts = 0;
        for (is_visit, lines) in measurements(swept, plan.level) {
            assert!(lines.len() as u64 <= plan.tickets(), "{what}: {} lines", lines.len());
            let mut seqs: Vec<u64> = lines.iter().map(|line| line.seq).collect();
            seqs.sort_unstable();
            // A visit goes on where that before it left off.
            let first = if is_visit { seqs[0] } else { 0 };
            assert_eq!(seqs, (first..first + lines.len() as u64).collect::<Vec<_>>(), "{what}");
            for line in &lines {
                assert!(line.is_success() != line.failure.is_some(), "{what}: {line:?}");
                assert_eq!(line.failure.is_some(), line.error.is_some(), "{what}: {line:?}");
                arrived += 1 + u64::from(line.resent);
                *by_status.entry(line.status.expect("the server answered")).or_default() += 1;
            }
            let cohort = lines.iter().filter(|line| line.phase == Phase::Measured).count();
            assert!(cohort >= plan.measured || is_visit, "{what}: {cohort}");
            in_cohorts += cohort as u64;
        }
        assert_eq!(summary.requests, Some(in_cohorts), "{what}");
        let failed: u64 = summary.failures.values().sum();
        assert_eq!(summary.succeeded.map(|succeeded| succeeded + failed), summary.requests, "{what}");
        assert_eq!(summary.state, Some(LevelState::Complete), "{what}");
    }
    let log = server.log();
    assert_eq!(log.len() as u64, arrived);
    let ended = |end| log.iter().filter(|record| record.outcome == end).count() as u64;
    assert_eq!(ended(RequestEnd::Completed), by_status.remove(&200).unwrap_or_default());
    assert_eq!(ended(RequestEnd::Refused), by_status.remove(&503).unwrap_or_default());
    assert_eq!(by_status, BTreeMap::new(), "no other status");
}

#[test]
fn the_servers_log_and_the_sidecars_agree_when_all_goes_well() {
    for stream in [true, false] {
        let server = Simulator::start(fast(), 0).unwrap();
        let mut sweep = Sweep::new(&[1, 3, 20], stream);
        let swept = sweep.run(&server);
        assert_accounts(&sweep, &swept, &server);
        let levels = [1, 3, 20].into_iter().flat_map(|level| sidecars(&swept, level)).flatten();
        let lines: Vec<_> = levels.chain(lines_of(&swept, "preflight.jsonl")).collect();
        assert!(lines.iter().all(RequestOutcome::is_success));
        assert!(lines.iter().all(|line| line.ttft_s.is_some() == stream));
        let ours: u64 = lines.iter().map(|line| u64::from(line.output_tokens.unwrap())).sum();
        let theirs: u64 = server.log().iter().map(|record| u64::from(record.output_tokens)).sum();
        assert_eq!(ours, theirs, "tokens, stream: {stream}");
        assert_eq!(server.peak_in_flight(), 20);
    }
}

#[test]
fn a_full_queue_is_no_flood_and_fails_at_a_steady_rate() {
    const LEVEL: usize = 50;
    let prompts: Vec<String> = prompts::generate(7, 200).snippets.iter().map(|s| s.prompt()).collect();
    let truth = explain(&fast(), &[LEVEL], &prompts, 64, 20_000).unwrap().levels.remove(0);
    for stream in [true, false] {
        let server = Simulator::start(fast(), 0).unwrap();
        let mut sweep = Sweep::new(&[LEVEL], stream);
        let swept = sweep.run(&server);
        assert_accounts(&sweep, &swept, &server);
        let lines = sidecars(&swept, LEVEL).remove(0);
        let failures = lines.iter().filter(|line| line.failure.is_some());
        assert!(failures.clone().all(|line| line.failure == Some(Failure::ServerError) && line.status == Some(503)));
        println!("stream {stream}: {} of {}, truth {}", failures.clone().count(), lines.len(), truth.error_rate);
        let rate = |lines: &[&RequestOutcome]| {
            lines.iter().filter(|line| line.failure.is_some()).count() as f64 / lines.len() as f64
        };
        let cohort: Vec<_> = lines.iter().filter(|line| line.phase == Phase::Measured).collect();
        for half in cohort.chunks(cohort.len().div_ceil(2)) {
            println!("{}", rate(half));
        }
    }
}
