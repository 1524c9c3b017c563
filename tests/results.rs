//! What is on disk: which records a decision takes, and what it says of those it does not.

#![cfg(feature = "suite")]

use std::fs;
use std::path::{Path, PathBuf};

use llm_concurrency::client::Env;
use llm_concurrency::client::outcome::{Phase, RequestOutcome};
use llm_concurrency::decide::{Policy, Raced, recommend};
use llm_concurrency::figures::{self, LeftOut, LevelState, LevelSummary, Limits, Measurement, Sample, Stage, Step};
use llm_concurrency::files;
use llm_concurrency::prompts::{self, Prompt};
use llm_concurrency::record::{
    About, Basis, Environment, Identity, Manifest, Places, ResultsError, ResultsFile, Run, RunId, RunSettings,
    criterion_id, load_measured, read_sidecar,
};
use llm_concurrency::report::words;
use llm_concurrency::settings::{Config, Overrides, Settings};
use serde_json::{Value, json};
use tempfile::TempDir;

const CONFIG: &str = "llm: {endpoint: 'http://user:hunter2@127.0.0.1:9/v1?key=s3cret', model: m}\n";

fn prompts() -> Vec<Prompt> {
    vec!["Say hello".into()]
}

fn settings(yaml: &str) -> Settings {
    let path = Path::new("config.yaml");
    let config = Config::parse(yaml, path).unwrap();
    Settings::resolve(path.to_owned(), config, &Env::default(), Overrides::default()).unwrap()
}

fn identity(yaml: &str) -> Identity {
    Identity::of(&settings(yaml), &prompts())
}

/// A target folder in the making: Criterion's files and run folders.
struct Disk {
    folder: TempDir,
    runs: u32,
}

impl Disk {
    fn new() -> Self {
        Disk { folder: tempfile::tempdir().unwrap(), runs: 0 }
    }

    fn places(&self) -> Places {
        let target = self.folder.path();
        Places {
            criterion: target.join("criterion"),
            runs: target.join("concurrency"),
            results: target.join("results"),
        }
    }

    /// A run that was to measure `planned`; ids sort by the order of the calls.
    fn run(&mut self, yaml: &str, planned: &[usize]) -> Recorded {
        self.runs += 1;
        let identity = identity(yaml);
        let manifest = Manifest {
            run_id: RunId::try_from(format!("run-{}", self.runs)).unwrap(),
            about: About {
                started_at: Some("2026-01-01T00:00:00Z".to_owned()),
                fingerprint: Some(identity.fingerprint()),
                endpoint: Some(identity.endpoint.clone()),
                model: Some(identity.model.clone()),
                settings: RunSettings {
                    levels: planned.to_vec(),
                    request_timeout_s: Some(30.0),
                    ..RunSettings::default()
                },
                environment: Environment::here(),
            },
            identity,
            levels: Vec::new(),
            raced: None,
        };
        Recorded { folder: self.places().runs.join(manifest.run_id.as_str()), manifest }
    }

    fn load(&self, yaml: &str) -> Result<Basis, ResultsError> {
        load_measured(&self.places(), &identity(yaml), Limits::default(), None)
    }

    fn criterion_file(&self, level: usize, name: &str, content: &Value) {
        let path = self.places().criterion.join(criterion_id(level)).join("new").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content.to_string()).unwrap();
    }

    fn estimates(&self, step: Step, rps: f64) {
        let wave_ns = step.level as f64 * 1e9 / rps;
        let interval = json!({"confidence_level": 0.95, "lower_bound": wave_ns * 0.9, "upper_bound": wave_ns * 1.1});
        let mean = json!({"point_estimate": wave_ns, "confidence_interval": interval, "standard_error": 1.0});
        self.criterion_file(step.level, "estimates.json", &json!({"mean": mean}));
    }
}

/// A run folder.
struct Recorded {
    folder: PathBuf,
    manifest: Manifest,
}

fn sweep(level: usize) -> Step {
    Step { level, stage: Stage::Sweep, round: 0 }
}

/// Measures a level in full at this rate, all requests alike, and leaves Criterion's files as Criterion would.
fn measure(disk: &Disk, run: &mut Recorded, level: usize, rps: f64) {
    measure_step(disk, run, sweep(level), rps);
}

fn measure_step(disk: &Disk, run: &mut Recorded, step: Step, rps: f64) {
    record(run, step, rps, LevelState::Complete);
    let times = run.manifest.levels.last().unwrap().sample_ns.clone();
    disk.criterion_file(
        step.level,
        "sample.json",
        &json!({"sampling_mode": "Flat", "iters": vec![1.0; 10], "times": times}),
    );
    disk.estimates(step, rps);
}

fn record(run: &mut Recorded, step: Step, rps: f64, state: LevelState) {
    let level = step.level;
    let n = 100.max(10 * level);
    let latency = level as f64 / rps;
    let lines = (0..n).map(|seq| {
        let start = seq as f64 / rps;
        serde_json::to_string(&outcome(seq as u64, start, start + latency)).unwrap() + "\n"
    });
    let sidecar = match step.stage {
        Stage::Sweep => format!("level-{level}.jsonl"),
        Stage::Visit => "visits.jsonl".to_owned(),
    };
    fs::create_dir_all(&run.folder).unwrap();
    fs::write(run.folder.join(sidecar), lines.collect::<String>()).unwrap();
    let window = n as f64 / rps;
    // Times differ from run to run, as real ones do.
    let wave_ns = latency * 1e9 + f64::from(run.manifest.run_id.as_bytes()[4]);
    run.manifest.levels.push(Measurement {
        concurrency: level,
        stage: step.stage,
        round: step.round,
        criterion_id: criterion_id(level),
        sample_ns: vec![wave_ns; 10],
        window_s: Some([0.0, window]),
        samples: vec![Sample { duration_s: window / 10.0, completed: n as u64 / 10, succeeded: n as u64 / 10 }; 10],
        state,
        ..Measurement::default()
    });
    fs::write(run.folder.join("run.json"), serde_json::to_string(&run.manifest).unwrap()).unwrap();
}

fn outcome(seq: u64, start_s: f64, end_s: f64) -> RequestOutcome {
    RequestOutcome {
        seq,
        visit: None,
        phase: Phase::Measured,
        sample: None,
        due_s: None,
        start_s,
        end_s: Some(end_s),
        latency_s: Some(end_s - start_s),
        ttft_s: None,
        chunks: 1,
        output_tokens: Some(50),
        input_tokens: None,
        cached_tokens: None,
        reasoning_tokens: None,
        status: Some(200),
        failure: None,
        error: None,
        resent: 0,
        cut: false,
        held_s: None,
        prompt_size: None,
    }
}

/// Level and throughput of what was taken, in whole requests per second.
fn taken(measured: &Basis) -> Vec<(usize, i64)> {
    let rps = |throughput: Option<llm_concurrency::figures::Estimate>| throughput.unwrap().estimate.round() as i64;
    measured.levels.iter().map(|level| (level.concurrency, rps(level.throughput_rps))).collect()
}

fn notes(measured: &Basis, disk: &Disk) -> String {
    let notes: Vec<String> = measured.notes.iter().map(words::note).collect();
    notes.join("\n").replace(&disk.folder.path().display().to_string(), "<target>")
}

fn message(error: &ResultsError, disk: &Disk) -> String {
    error.to_string().replace(&disk.folder.path().display().to_string(), "<target>")
}

#[test]
fn the_newest_record_whose_times_are_criterions() {
    let mut disk = Disk::new();
    let mut first = disk.run(CONFIG, &[1, 2]);
    measure(&disk, &mut first, 1, 10.0);
    measure(&disk, &mut first, 2, 20.0);
    let mut second = disk.run(CONFIG, &[1, 2]);
    measure(&disk, &mut second, 1, 30.0);
    // Its level 2 never reached Criterion: the older one still stands there.
    record(&mut second, sweep(2), 99.0, LevelState::Complete);
    let measured = disk.load(CONFIG).unwrap();
    let rates = taken(&measured);
    assert_eq!((rates[0].0, rates[1].0), (1, 2));
    // By shares of life: of 100 overlapping requests the last few end after the window.
    assert!((28..=30).contains(&rates[0].1) && (19..=20).contains(&rates[1].1), "{rates:?}");
    insta::assert_snapshot!(notes(&measured, &disk), @"The levels come from 2 runs with the same fingerprint: run-1, run-2");
    assert!(!measured.incomplete);
}

/// `cargo bench -- level/2`: the newest run planned three levels and measured one.
#[test]
fn a_filtered_run_is_completed_from_older_ones() {
    let mut disk = Disk::new();
    let mut whole = disk.run(CONFIG, &[1, 2, 5]);
    for (level, rps) in [(1, 10.0), (2, 20.0), (5, 50.0)] {
        measure(&disk, &mut whole, level, rps);
    }
    let mut filtered = disk.run(CONFIG, &[1, 2, 5]);
    measure(&disk, &mut filtered, 2, 40.0);
    let measured = disk.load(CONFIG).unwrap();
    assert_eq!(measured.levels.iter().map(|l| l.concurrency).collect::<Vec<_>>(), [1, 2, 5]);
    assert!(measured.levels[1].throughput_rps.unwrap().estimate > 35.0);
    assert_eq!(measured.levels[2].requests, Some(100));
}

/// A timeline is drawn from them.
#[test]
fn the_records_of_requests_come_in_the_order_in_which_they_were_made() {
    let mut disk = Disk::new();
    let mut run = disk.run(CONFIG, &[1, 2, 5]);
    [5, 1].into_iter().for_each(|level| measure(&disk, &mut run, level, 10.0));
    let mut filtered = disk.run(CONFIG, &[1, 2, 5]);
    measure(&disk, &mut filtered, 2, 40.0);
    let requests = disk.load(CONFIG).unwrap().requests;
    let names: Vec<_> = requests.iter().map(|file| file.path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["level-5", "level-1", "level-2"].map(|name| format!("{name}.jsonl")));
}

/// Criterion has one entry for all visits to a level, and none for a level that was visited for a few requests.
#[test]
fn visits_of_a_run_are_pooled_by_their_levels_one_entry() {
    let mut disk = Disk::new();
    let mut older = disk.run(CONFIG, &[4]);
    measure(&disk, &mut older, 4, 10.0);
    // Nor is a level missing that its race, which has decided, could do without.
    let mut run = disk.run(CONFIG, &[1, 2, 4]);
    let visit = |round, level| Step { level, stage: Stage::Visit, round };
    for (round, level, rps) in [(1, 1, 10.0), (2, 2, 20.0), (3, 2, 40.0)] {
        measure_step(&disk, &mut run, visit(round, level), rps);
    }
    // As the engine does it: the requests of all visits are in one file, and the first visit to a level carries its entry.
    let lines = [(1, 10.0), (2, 20.0), (3, 40.0)].map(|(round, rps): (u32, f64)| {
        let level = if round == 1 { 1.0 } else { 2.0 };
        let line = |seq: u64| {
            let start = seq as f64 / rps;
            let request = RequestOutcome { visit: Some(round), ..outcome(seq, start, start + level / rps) };
            serde_json::to_string(&request).unwrap() + "\n"
        };
        (0..100).map(line).collect::<String>()
    });
    fs::write(run.folder.join("visits.jsonl"), lines.concat()).unwrap();
    for unnamed in [0, 2] {
        run.manifest.levels[unnamed].sample_ns.clear();
    }
    let times = &run.manifest.levels[1].sample_ns;
    disk.criterion_file(2, "sample.json", &json!({"sampling_mode": "Flat", "iters": vec![1.0; 10], "times": times}));
    run.manifest.raced = Some(Raced { pick: Some(2), interval: [2, 2], decided: true, warm_from_s: 0.0 });
    run.manifest.about.settings.policy = Some(Policy::default());
    fs::write(run.folder.join("run.json"), serde_json::to_string(&run.manifest).unwrap()).unwrap();
    let measured = disk.load(CONFIG).unwrap();
    assert_eq!(measured.levels.iter().map(|level| level.requests).collect::<Vec<_>>(), [Some(100), Some(200)]);
    // By the time that the permits were held: 100 requests at 20/s and 100 at 40/s take 7.5 s.
    let rps = measured.levels[1].throughput_rps.unwrap().estimate;
    assert!((rps - 200.0 / 7.5).abs() < 0.01, "{rps}");
    assert!(!measured.incomplete && measured.raced.is_some_and(|(raced, _)| raced.pick == Some(2)));
}

#[test]
fn another_target_is_refused_and_named_without_its_secrets() {
    let simulator = "llm: {endpoint: simulator, model: m}\n";
    for (name, then, now) in [
        ("endpoint", CONFIG, "llm: {endpoint: 'http://127.0.0.1:10/v1', model: m}"),
        ("model", CONFIG, "llm: {endpoint: 'http://127.0.0.1:9/v1', model: other}"),
        (
            "request",
            CONFIG,
            "llm: {endpoint: 'http://127.0.0.1:9/v1', model: m}\nbenchmark: {request: {max_tokens: 7}}",
        ),
        ("simulator", simulator, "llm: {endpoint: simulator, model: m}\nsimulator: {slots: 3}"),
    ] {
        let mut disk = Disk::new();
        let mut run = disk.run(then, &[1]);
        measure(&disk, &mut run, 1, 10.0);
        assert!(disk.load(then).is_ok(), "{name}");
        let text = message(&disk.load(now).unwrap_err(), &disk);
        assert!(!text.contains("hunter2") && !text.contains("s3cret"), "{text}");
        insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
            insta::assert_snapshot!(format!("results_other_{name}"), text);
        });
    }
}

#[test]
fn other_prompts_are_another_target() {
    let mut disk = Disk::new();
    let mut run = disk.run(CONFIG, &[1]);
    measure(&disk, &mut run, 1, 10.0);
    let other = [Prompt { text: "Say goodbye".to_owned(), ..prompts()[0].clone() }];
    let error =
        load_measured(&disk.places(), &Identity::of(&settings(CONFIG), &other), Limits::default(), None).unwrap_err();
    let text = message(&error, &disk);
    assert!(text.contains("prompts (hash): measured with ") && text.contains("never mixed"), "{text}");
}

/// Neither login nor query, nor where the prompts lie, nor how much is measured, makes another target.
#[test]
fn what_the_fingerprint_leaves_out() {
    let of = |yaml: &str| identity(yaml).fingerprint();
    let plain = of(CONFIG);
    assert_eq!(plain, of("llm: {endpoint: 'http://127.0.0.1:9/v1', model: m, request_timeout: 3}"));
    assert_eq!(plain, of(&format!("{CONFIG}benchmark: {{levels: [1, 3], total_requests: 7, warmup_requests: 9}}")));
    assert_eq!(plain, of(&format!("{CONFIG}benchmark: {{request: {{prompts: elsewhere.json}}}}")));
}

#[test]
fn a_level_that_was_cut_is_left_out() {
    let mut disk = Disk::new();
    let mut run = disk.run(CONFIG, &[1, 2]);
    measure(&disk, &mut run, 1, 10.0);
    record(&mut run, sweep(2), 20.0, LevelState::Cut);
    let times = &run.manifest.levels[1].sample_ns;
    disk.criterion_file(2, "sample.json", &json!({"times": times}));
    let measured = disk.load(CONFIG).unwrap();
    assert_eq!(measured.levels.len(), 1);
    insta::assert_snapshot!(
        notes(&measured, &disk),
        @"Left out (not fully measured, or overwritten since): level 2; a better level may be among them"
    );
}

#[test]
fn a_run_that_was_cut_off_before_its_first_level() {
    let mut disk = Disk::new();
    let mut run = disk.run(CONFIG, &[1, 2]);
    record(&mut run, sweep(1), 10.0, LevelState::Cut);
    insta::assert_snapshot!(message(&disk.load(CONFIG).unwrap_err(), &disk), @r"
    the last run (run-1) was cut off before any level was complete, so there is nothing to decide from

    Run `cargo bench` (or `llm-concurrency run`) again.
    ");
}

#[test]
fn a_torn_manifest_is_named_and_left_out() {
    let mut disk = Disk::new();
    let mut run = disk.run(CONFIG, &[1]);
    measure(&disk, &mut run, 1, 10.0);
    let torn = disk.places().runs.join("run-9/run.json");
    fs::create_dir_all(torn.parent().unwrap()).unwrap();
    fs::write(torn, "{\"run_id\": \"run-9\", \"lev").unwrap();
    let measured = disk.load(CONFIG).unwrap();
    assert_eq!(measured.levels.len(), 1);
    insta::assert_snapshot!(
        notes(&measured, &disk),
        @"Left out: <target>/concurrency/run-9/run.json is not a run manifest: EOF while parsing a string at line 1 column 24"
    );

    // If it is the only one, Criterion's figures are left, and it is named all the same.
    fs::remove_dir_all(disk.places().runs.join("run-1")).unwrap();
    let measured = disk.load(CONFIG).unwrap();
    assert!(measured.incomplete);
    assert!(notes(&measured, &disk).contains("run-9/run.json is not a run manifest"));
}

/// It would be opened, wherever it leads.
#[test]
fn a_run_that_is_named_by_a_path_is_left_out() {
    let mut disk = Disk::new();
    let mut run = disk.run(CONFIG, &[1]);
    measure(&disk, &mut run, 1, 10.0);
    let mut astray = json!(run.manifest);
    for id in ["../../../x", "", ".", "a/b", "a b", "\u{1b}[2J"] {
        astray["run_id"] = json!(id);
        let path = disk.places().runs.join("run-9/run.json");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, astray.to_string()).unwrap();
        let measured = disk.load(CONFIG).unwrap();
        assert_eq!(measured.run_id.as_ref().unwrap().as_str(), "run-1");
        let notes = notes(&measured, &disk);
        let why = format!("run-9/run.json is not a run manifest: run_id {id:?} is not made of letters");
        assert!(notes.contains(&why), "{notes}");
        let file = json!({"run_id": id, "levels": [{"concurrency": 1}]});
        let error = read(&file.to_string()).unwrap_err();
        assert!(error.contains(&format!("run_id {id:?} is not made of letters")), "{error}");
    }
}

/// Nobody writes to the pipe, and the large one is all holes.
#[test]
#[cfg(unix)]
fn pipes_and_huge_files_are_refused_unread() {
    let pipe = |path: &Path| {
        let made = std::process::Command::new("mkfifo").arg(path).status();
        assert!(made.unwrap().success());
    };
    let huge = |path: &Path| fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
    for (make, why) in [
        (&pipe as &dyn Fn(&Path), "it is a folder, pipe or device, not a regular file"),
        (&huge, "it is 1048576 MiB, and at most "),
    ] {
        let mut disk = Disk::new();
        let mut run = disk.run(CONFIG, &[1]);
        measure(&disk, &mut run, 1, 10.0);
        let [results, prompts] = ["results.json", "prompts.json"].map(|name| disk.folder.path().join(name));
        let [sidecar, manifest] = ["level-1.jsonl", "run.json"].map(|name| run.folder.join(name));
        fs::remove_file(&sidecar).unwrap();
        [&results, &prompts, &sidecar].into_iter().for_each(|path| make(path));
        let refused = prompts::load(&prompts).unwrap_err();
        let mut errors = vec![
            ResultsFile::read(&results).unwrap_err().to_string(),
            std::error::Error::source(&refused).unwrap().to_string(),
            notes(&disk.load(CONFIG).unwrap(), &disk),
        ];
        fs::remove_file(&manifest).unwrap();
        make(&manifest);
        errors.push(notes(&disk.load(CONFIG).unwrap(), &disk));
        assert!(errors.iter().all(|error| error.contains(why)), "{errors:#?}");
    }
}

/// One line of a sidecar must not fill the memory.
#[test]
fn a_sidecar_without_an_end_of_line_is_read_in_part() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("level-1.jsonl");
    fs::File::create(&path).unwrap().set_len(3 << 30).unwrap();
    let error = read_sidecar(&path).unwrap().next().unwrap().unwrap_err().to_string();
    assert!(error.contains("is not a sidecar: line 1: "), "{error}");
}

fn begun(disk: &Disk) -> Run {
    let mut run = Run::new(&disk.places(), identity(CONFIG), RunSettings::default());
    run.begin().unwrap();
    run
}

#[test]
fn two_runs_of_one_second_have_a_results_file_each() {
    let disk = Disk::new();
    let mut runs = [begun(&disk), begun(&disk), begun(&disk)];
    let first = runs[0].results_file.clone();
    for run in &mut runs {
        // Whatever the clock says.
        run.results_file = first.clone();
        let mut recorded = Recorded { folder: run.folder().to_owned(), manifest: run.manifest.clone() };
        record(&mut recorded, sweep(1), 10.0, LevelState::Complete);
        let summary = LevelSummary { concurrency: 1, ..LevelSummary::default() };
        run.manifest.levels.push(recorded.manifest.levels.remove(0));
        run.level_ended(1, summary).unwrap();
    }
    for run in &runs {
        run.write_results(None).unwrap();
        let written = ResultsFile::read(&run.results_file).unwrap();
        assert_eq!(written.run_id.as_ref(), Some(&run.manifest.run_id));
    }
    assert_eq!(fs::read_dir(disk.places().results).unwrap().count(), 3);
}

#[test]
fn a_runs_folder_is_its_own_and_goes_with_it_if_nothing_was_measured() {
    let disk = Disk::new();
    let mut taken = Run::new(&disk.places(), identity(CONFIG), RunSettings::default());
    fs::create_dir_all(taken.folder()).unwrap();
    let error = message(&taken.begin().unwrap_err(), &disk);
    assert!(
        error.starts_with(&format!("cannot write <target>/concurrency/{}", taken.manifest.run_id.as_str())),
        "{error}"
    );
    drop(taken);
    drop(begun(&disk));
    assert_eq!(fs::read_dir(disk.places().runs).unwrap().count(), 0);
    assert_eq!(fs::read_dir(disk.places().results).unwrap().count(), 0);
}

#[test]
fn only_files_that_were_left_behind_are_removed() {
    let disk = Disk::new();
    let run = disk.places().runs.join("run-1");
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let mut held = Vec::new();
    for folder in [disk.places().results, run] {
        fs::create_dir_all(&folder).unwrap();
        for name in
            [".llm-concurrency-old", ".llm-concurrency-locked", ".llm-concurrency-young", ".other", "level-1.jsonl"]
        {
            let file = fs::File::create(folder.join(name)).unwrap();
            if !name.ends_with("young") {
                file.set_modified(hour_ago).unwrap();
            }
            if name.ends_with("locked") {
                // As by a run in progress.
                file.lock().unwrap();
                held.push(file);
            }
        }
        begun(&disk);
        let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".llm-concurrency-locked", ".llm-concurrency-young", ".other", "level-1.jsonl"]);
    }
}

/// Criterion's figure is the fallback, and the result provisional.
#[test]
fn a_torn_or_missing_sidecar() {
    for torn in [true, false] {
        let mut disk = Disk::new();
        let mut run = disk.run(CONFIG, &[1, 2]);
        measure(&disk, &mut run, 1, 10.0);
        measure(&disk, &mut run, 2, 20.0);
        let path = run.folder.join("level-2.jsonl");
        if torn {
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, &text[..text.len() - 20]).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        let measured = disk.load(CONFIG).unwrap();
        assert_eq!(measured.levels[1].throughput_rps.unwrap().estimate.round(), 20.0);
        assert_eq!(measured.levels[1].requests, None);
        let note = notes(&measured, &disk);
        assert!(note.contains("level-2.jsonl") && note.ends_with("only Criterion's throughput is known"), "{note}");
        assert!(note.contains(if torn { "line 100" } else { "cannot read" }), "{note}");
        let recommendation = recommend(&measured.levels, &Policy::default());
        assert_eq!((recommendation.recommended_concurrency, recommendation.provisional), (Some(2), true));
    }
}

#[test]
fn criterions_figures_alone() {
    let disk = Disk::new();
    disk.estimates(sweep(10), 80.0);
    disk.estimates(sweep(2), 20.0);
    let measured = disk.load(CONFIG).unwrap();
    assert_eq!(taken(&measured), [(2, 20), (10, 80)]);
    assert!(measured.incomplete);
    insta::assert_snapshot!(
        notes(&measured, &disk),
        @"There are no request records in <target>/concurrency: only Criterion's throughput is known, not what was measured"
    );
}

#[test]
fn nothing_at_all() {
    let disk = Disk::new();
    insta::assert_snapshot!(message(&disk.load(CONFIG).unwrap_err(), &disk), @r"
    no measurements found in <target>/criterion

    Run `cargo bench` (or `llm-concurrency run`) first, name the folder with --criterion-dir, or a results file with --results.
    ");
}

#[test]
fn criterion_and_our_own_figure_are_compared() {
    let mut disk = Disk::new();
    let mut run = disk.run(CONFIG, &[1]);
    measure(&disk, &mut run, 1, 10.0);
    assert_eq!(disk.load(CONFIG).unwrap().notes, []);
    disk.estimates(sweep(1), 12.0);
    insta::assert_snapshot!(
        notes(&disk.load(CONFIG).unwrap(), &disk),
        @"Level 1: Criterion's mean gives 12.00 requests/s, 20 % off the 10.00 used here, since the windows differ in speed"
    );
}

// ---- results files ----

fn read(content: &str) -> Result<ResultsFile, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.json");
    fs::write(&path, content).unwrap();
    ResultsFile::read(&path).map_err(|error| error.to_string().replace(&folder.path().display().to_string(), "."))
}

#[test]
fn a_results_file_needs_no_more_than_concurrency_and_throughput() {
    let file = read(r#"{"levels": [{"concurrency": 4, "throughput_rps": {"estimate": 7.5}}]}"#).unwrap();
    assert_eq!(file.levels[0].concurrency, 4);
    assert_eq!(file.levels[0].throughput_rps.unwrap().estimate, 7.5);
    let nulls = r#"{"schema": "llm-concurrency/results/v1", "run_id": null, "settings": null, "recommendation": null,
        "levels": [{"concurrency": 4, "requests": null, "failures": null, "latency_s": {"p95": null}, "ttft_s": null}]}"#;
    assert_eq!(read(nulls).unwrap().levels[0].requests, None);
}

#[test]
fn unknown_keys_of_a_results_file_are_kept() {
    let file = read(r#"{"levels": [{"concurrency": 1, "watts": 300}], "lab": "east"}"#).unwrap();
    assert_eq!((&file.unknown["lab"], &file.levels[0].unknown["watts"]), (&json!("east"), &json!(300)));
    let again = serde_json::to_value(&file).unwrap();
    assert_eq!((&again["lab"], &again["levels"][0]["watts"]), (&json!("east"), &json!(300)));
}

#[test]
fn results_files_that_are_none() {
    insta::assert_snapshot!(
        read(r#"{"schema": "other/v9", "levels": [{"concurrency": 1}]}"#).unwrap_err(),
        @"./results.json is not a results file: its schema is `other/v9`, and this version reads `llm-concurrency/results/v1`"
    );
    insta::assert_snapshot!(
        read(r#"{"levels": []}"#).unwrap_err(),
        @"./results.json is not a results file: it holds no levels"
    );
    insta::assert_snapshot!(
        read(r#"{"levels": [{"throughput_rps": {"estimate": 1}}]}"#).unwrap_err(),
        @"./results.json is not a results file: a level has no `concurrency`, or 0; levels start at 1"
    );
    insta::assert_snapshot!(
        read(r#"{"levels": [{"concurrency": 2}, {"concurrency": 2}]}"#).unwrap_err(),
        @"./results.json is not a results file: level 2 appears twice"
    );
    insta::assert_snapshot!(
        read("level,rps\n1,2\n").unwrap_err(),
        @"./results.json is not a results file: expected value at line 1 column 1"
    );
}

/// All figures that there are.
fn full_level() -> Value {
    let times = json!({"mean": 1.0, "p50": 1.0, "p90": 2.0, "p95": 2.0, "p99": 3.0, "max": 3.0});
    let figure = json!({"estimate": 10.0, "lower": 9.0, "upper": 11.0});
    json!({
        "concurrency": 4, "requests": 100, "succeeded": 99, "failures": {"timeout": 1}, "error_rate": 0.01,
        "timeout_rate": 0.01, "duration_s": 10.0, "throughput_rps": figure,
        "samples": [{"duration_s": 1.0, "completed": 10, "succeeded": 9}], "blocks_rps": [10.0, 11.0],
        "latency_s": times, "gate_latency_s": times, "p95_interval_s": [1.5, 2.5], "ttft_s": times, "itl_s": times,
        "tpot_s": times, "output_tps": 100.0, "mean_output_tokens": 10.0,
        "by_size": [{"size": "small", "requests": 100, "succeeded": 99, "latency_s": times, "mean_output_tokens": 10.0}],
        "mean_in_flight": 3.9,
        "client": {"cpu": 0.1, "timer_lag_p95_s": 0.001},
        "server": {"looks": 3, "running": 2.0, "waiting": 1.0, "kv_cache": 0.5}
    })
}

/// JSON pointers of all numbers.
fn numbers(value: &Value, path: &str) -> Vec<String> {
    match value {
        Value::Object(map) => map.iter().flat_map(|(key, value)| numbers(value, &format!("{path}/{key}"))).collect(),
        Value::Array(list) => {
            list.iter().enumerate().flat_map(|(at, value)| numbers(value, &format!("{path}/{at}"))).collect()
        }
        Value::Number(_) => vec![path.to_owned()],
        _ => Vec::new(),
    }
}

#[test]
fn a_negative_figure_is_refused_wherever_it_stands() {
    let file = |level: &Value| json!({"levels": [level]}).to_string();
    let level = full_level();
    assert!(read(&file(&level)).is_ok());
    let paths = numbers(&level, "");
    assert!(paths.len() > 50, "{paths:?}");
    for path in paths {
        let mut wrong = level.clone();
        let figure = wrong.pointer_mut(&path).unwrap();
        *figure = if figure.is_f64() { json!(-0.5) } else { json!(-5) };
        let error = read(&file(&wrong)).expect_err(&path);
        let key = path.split('/').nth(1).unwrap();
        let named = error.contains(&format!("level 4: `{key}")) || error.contains("integer `-5`, expected");
        assert!(named, "{path}: {error}");
    }
}

#[test]
fn figures_that_cannot_be_are_refused_with_their_place() {
    let wrong = |key: &str, value: Value| {
        let mut level = full_level();
        level[key] = value;
        read(&json!({"levels": [{"concurrency": 1}, level]}).to_string()).unwrap_err()
    };
    insta::assert_snapshot!(wrong("succeeded", json!(101)), @"./results.json is not a results file: level 4: `succeeded` cannot be 101");
    insta::assert_snapshot!(wrong("error_rate", json!(1.5)), @"./results.json is not a results file: level 4: `error_rate` cannot be 1.5");
    insta::assert_snapshot!(wrong("blocks_rps", json!([10, -11, 12])), @"./results.json is not a results file: level 4: `blocks_rps[1]` cannot be -11.0");
    let error = wrong("requests", json!(99.5));
    assert!(error.contains("floating point `99.5`, expected u64"), "{error}");
}

// ---- prompts ----

/// The shipped file and the snippets made in memory are one and the same target.
#[test]
fn without_a_prompts_file_the_same_snippets_come_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |yaml: &str| {
        let path = folder.path().join("config.yaml");
        let config = Config::parse(yaml, &path).unwrap();
        Settings::resolve(path, config, &Env::default(), Overrides::default()).unwrap()
    };
    let unset = settings(CONFIG);
    let from_memory = prompts::of_run(&unset).unwrap();
    let shipped = prompts::load(Path::new(env!("CARGO_MANIFEST_DIR")).join(prompts::DEFAULT_PATH)).unwrap();
    assert_eq!(from_memory, shipped);

    // A file at the default place is taken.
    let file = folder.path().join(prompts::DEFAULT_PATH);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "[\"mine\"]").unwrap();
    assert_eq!(prompts::of_run(&unset).unwrap()[0].text, "mine");
    // One that is there but broken is not passed over.
    fs::write(&file, "").unwrap();
    assert!(prompts::of_run(&unset).unwrap_err().to_string().contains("is empty"));

    let named = settings(&format!("{CONFIG}benchmark: {{request: {{prompts: gone.json}}}}"));
    let error = prompts::of_run(&named).unwrap_err().to_string();
    assert!(error.starts_with("Test data file not found: ") && error.contains("gone.json"), "{error}");
}

/// A sidecar has what each request was taken for when it was sent.
#[test]
fn requests_that_a_cold_engine_served_do_not_count_when_they_are_read_again() {
    let mut disk = Disk::new();
    let mut run = disk.run(CONFIG, &[1]);
    measure(&disk, &mut run, 1, 10.0);
    let left_out = LeftOut { requests: 20, from_rps: 2.0, to_rps: 10.0 };
    let of_level = &mut run.manifest.levels[0];
    (of_level.left_out, of_level.window_s) = (Some(left_out), Some([2.0, 10.0]));
    fs::write(run.folder.join("run.json"), serde_json::to_string(&run.manifest).unwrap()).unwrap();
    let basis = disk.load(CONFIG).unwrap();
    assert_eq!((basis.levels[0].requests, basis.levels[0].left_out), (Some(80), Some(left_out)));
    let read = basis.requests[0].read().unwrap().remove(&0).unwrap();
    let counted = figures::summarize(&[(&run.manifest.levels[0], &read)], Limits::default()).requests;
    assert_eq!((read.len(), counted), (100, Some(80)));
}

#[cfg(unix)]
#[test]
fn a_replaced_file_is_where_its_link_points_and_no_more_may_read_it() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // Such as the place of node-exporter's file before the first run.
    symlink("to", at("chain")).unwrap();
    symlink("elsewhere/file", at("to")).unwrap();
    for text in ["new", "newer"] {
        files::replace(&at("chain"), text.as_bytes()).unwrap();
        assert!(at("chain").is_symlink() && at("to").is_symlink());
        assert_eq!(fs::read_to_string(at("elsewhere/file")).unwrap(), text);
    }
    symlink("circle", at("circle")).unwrap();
    assert!(files::replace(&at("circle"), b"").is_err() && at("circle").is_symlink());

    let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
    let usual = mode("elsewhere/file");
    for (before, after) in [(0o600, 0o600), (0o640, usual & 0o640), (0o777, usual)] {
        fs::set_permissions(at("to"), fs::Permissions::from_mode(before)).unwrap();
        files::replace(&at("to"), b"newest").unwrap();
        assert_eq!(mode("to"), after, "{before:o}");
    }
}
