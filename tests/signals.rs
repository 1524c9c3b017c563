//! SIGINT, SIGTERM, SIGHUP and SIGKILL against the real binary: what is on disk stays whole, finished levels stay usable,
//! and config.yaml is the old file or the patched one, to the byte. And a server that goes away in the middle of a run.
//!
//! Tests wait for something to happen (a level on disk, a request at the server), never for a time; only the random
//! moments are times, and there anything may be hit.

#![cfg(all(unix, feature = "suite"))]

mod servers;

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use llm_concurrency::client::outcome::RequestOutcome;
use llm_concurrency::client::{Llm, RequestSettings};
use llm_concurrency::record::ResultsFile;
use llm_concurrency::simulator::{OutputTokens, Simulator, SimulatorConfig};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tempfile::TempDir;

/// Made by hand: a knee at 20.
const KNEE: &str = include_str!("../test-data/results/knee_at_20.json");
const OLD: &str = "max_concurrent_requests: 7 ";
/// Nothing here takes as long; what does has hung.
const HANGS: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Hup = 1,
    Int = 2,
    Kill = 9,
    Term = 15,
}

impl Signal {
    fn send(self, child: &Child) {
        let kill = ["-s", &(self as i32).to_string(), &child.id().to_string()].map(str::to_owned);
        // A process that has ended meanwhile is not there to be signalled.
        let _ = Command::new("kill").args(kill).stderr(Stdio::null()).status().unwrap();
    }
}

/// The program at work in a folder of its own.
struct Running {
    folder: TempDir,
    child: Child,
}

impl Running {
    fn start(config: &str, args: &[&str]) -> Self {
        let folder = servers::folder(config);
        let child = spawn(folder.path(), args);
        Running { folder, child }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The results file, once there is one.
    fn results(&self) -> Option<ResultsFile> {
        let entry = fs::read_dir(self.path("results")).ok()?.flatten().find(|entry| is_json(&entry.path()))?;
        Some(ResultsFile::read(&entry.path()).expect("whole at any moment"))
    }

    /// Waits until `levels` levels are on disk and the next one has had some answers.
    fn wait_for_mid_level(&self, levels: usize, simulator: &Simulator) {
        wait_until("levels on disk", || self.results().is_some_and(|file| file.levels.len() == levels));
        let before = simulator.log().len();
        wait_until("answers of the next level", || simulator.log().len() > before + 5);
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap()
    }

    fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only a failed test leaves it running.
        let _ = self.child.kill();
    }
}

fn spawn(folder: &Path, args: &[&str]) -> Child {
    let [stdout, stderr] = ["stdout", "stderr"].map(|name| fs::File::create(folder.join(name)).unwrap());
    servers::binary(folder).args(args).stdout(stdout).stderr(stderr).spawn().unwrap()
}

fn wait(child: &mut Child) -> ExitStatus {
    let mut status = None;
    wait_until("the end of the program", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

#[track_caller]
fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < HANGS, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// Two at a time, 20 ms each: level 50 takes many seconds.
fn server() -> Simulator {
    server_at(0)
}

fn server_at(port: u16) -> Simulator {
    let config = SimulatorConfig {
        slots: 2,
        queue_limit: 100,
        base_step_ms: 4.0,
        per_sequence_ms: 0.0,
        output_tokens: OutputTokens::Fixed { tokens: 5 },
        ..SimulatorConfig::default()
    };
    Simulator::start(config, port).unwrap()
}

fn config(endpoint: &str, benchmark: &str) -> String {
    format!("llm: # ours\n  endpoint: {endpoint}\n  model: m\n  {OLD} # by hand\n\nbenchmark: {{{benchmark}}}\n")
}

/// Every file of ours is whole; what has a temporary name is nobody's to read. Returns the records of all requests.
#[track_caller]
fn assert_whole(folder: &Path) -> Vec<RequestOutcome> {
    let mut records = Vec::new();
    let mut folders = vec![folder.join("results"), folder.join("target/concurrency")];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten() {
            let path = entry.unwrap().path();
            let hidden = path.file_name().unwrap().to_string_lossy().starts_with('.');
            if path.is_dir() {
                folders.push(path);
            } else if !hidden {
                let text = fs::read_to_string(&path).unwrap();
                let torn = |error: serde_json::Error| panic!("{} is torn: {error}", path.display());
                if is_json(&path) {
                    serde_json::from_str::<Value>(&text).map_err(torn).unwrap();
                } else if path.extension().is_some_and(|extension| extension == "html") {
                    assert!(text.ends_with("</html>"), "{} is torn", path.display());
                } else if path.extension().is_some_and(|extension| extension == "prom") {
                    let last = text.lines().last().unwrap_or_default();
                    assert!(last.starts_with("llm_concurrency_final_timestamp_seconds{"), "{} is torn", path.display());
                } else {
                    assert!(text.is_empty() || text.ends_with('\n'), "{} is torn", path.display());
                    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(torn));
                    records.extend::<Vec<RequestOutcome>>(lines.collect());
                }
            }
        }
    }
    records
}

fn recommend(folder: &Path, args: &[&str]) -> Output {
    servers::binary(folder).arg("recommend").args(args).output().unwrap()
}

#[test]
fn what_was_measured_before_a_sigkill_is_decided_from() {
    let simulator = server();
    let before = config(&simulator.base_url(), "levels: [1, 2, 50], total_requests: 100");
    let mut running = Running::start(&before, &["run", "--update-config"]);
    running.wait_for_mid_level(2, &simulator);
    Signal::Kill.send(&running.child);
    assert_eq!(running.wait().signal(), Some(9), "{}", running.stderr());

    assert_eq!(fs::read_to_string(running.path("config.yaml")).unwrap(), before);
    assert_whole(running.folder.path());
    assert_eq!(left_behind(running.folder.path()), [""; 0].map(PathBuf::from), "all is written in place, line by line");
    let on_disk = running.results().unwrap().levels;
    assert_eq!(on_disk.iter().map(|level| level.concurrency).collect::<Vec<_>>(), [1, 2]);

    let output = recommend(running.folder.path(), &["--json", "--update-config"]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("an answer");
    for (level, summary) in json["levels"].as_array().unwrap().iter().zip(&on_disk) {
        assert_eq!(level["verdict"], "pass", "{json:#}");
        assert_eq!(level["concurrency"], summary.concurrency);
        assert_eq!(level["throughput_rps"], serde_json::json!(summary.throughput_rps));
    }
    assert_eq!(json["levels"].as_array().unwrap().len(), 2);
    // Two slots: two at a time are twice as fast. 50 was to be measured too, so that is shown and not written.
    assert_eq!((output.status.code(), &json["status"]), (Some(3), &"not_saturated".into()), "{json:#}");
    assert_eq!(json["provisional"], true, "{json:#}");
    let notes = json["notes"].to_string();
    assert!(notes.contains("Left out (not fully measured, or overwritten since): level 50"), "{notes}");
    assert_eq!(fs::read_to_string(running.path("config.yaml")).unwrap(), before);
    // Unless it is asked for.
    let output = recommend(running.folder.path(), &["--update-config", "--allow-provisional"]);
    assert_eq!(output.status.code(), Some(0));
    let patched = before.replace(OLD, "max_concurrent_requests: 2 ");
    assert_eq!(fs::read_to_string(running.path("config.yaml")).unwrap(), patched);

    // What another run may be about to complete is not taken away soon after; later it is.
    fs::write(running.path("results/.llm-concurrency-abandoned"), "{").unwrap();
    for (age, left) in [(Duration::ZERO, 1), (Duration::from_secs(3600), 0)] {
        for path in left_behind(running.folder.path()) {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        let mut run = spawn(running.folder.path(), &["run", "--levels", "1", "--total-requests", "1"]);
        assert!(matches!(wait(&mut run).code(), Some(0 | 3)), "{}", running.stderr());
        assert_eq!(left_behind(running.folder.path()).len(), left, "after {age:?}");
    }
}

/// The only run's folder.
fn run_folder(folder: &Path) -> PathBuf {
    let runs: Vec<_> =
        fs::read_dir(folder.join("target/concurrency")).unwrap().map(|run| run.unwrap().path()).collect();
    let [run] = &runs[..] else { panic!("one run: {runs:?}") };
    run.clone()
}

#[test]
fn a_list_that_was_killed_goes_on_with_the_level_that_was_cut() {
    let simulator = server();
    let before = config(&simulator.base_url(), "levels: [1, 2, 50], total_requests: 100");
    let mut running = Running::start(&before, &["run"]);
    running.wait_for_mid_level(2, &simulator);
    Signal::Kill.send(&running.child);
    running.wait();
    let folder = running.folder.path();
    let measured = ["level-1.jsonl", "level-2.jsonl"].map(|name| fs::read(run_folder(folder).join(name)).unwrap());
    // What was in flight, and what waited to be written down, is lost; the server may be a moment longer at it.
    let is_over = || {
        let seen = simulator.log().len();
        std::thread::sleep(Duration::from_secs(1));
        simulator.log().len() == seen
    };
    wait_until("the end of what the killed one had sent", is_over);
    let in_vain = simulator.log().len() - assert_whole(folder).len();

    // Other settings measure something else.
    for (flags, differs) in [
        (["--total-requests", "50"], "  total_requests: measured with 100, now 50"),
        (["--llm-model", "other"], "model: measured with m, now other"),
    ] {
        let sent = simulator.log().len();
        let refused = servers::binary(folder).args(["run", "--resume"]).args(flags).output().unwrap();
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.status.code() == Some(1) && said.contains(differs), "{said}");
        assert_eq!(simulator.log().len(), sent, "nothing is sent");
    }

    // As if the killed one had been at it for longer than anything here takes.
    let manifest = run_folder(folder).join("run.json");
    let mut changed: Value = serde_json::from_str(&fs::read_to_string(&manifest).unwrap()).unwrap();
    for level in changed["levels"].as_array_mut().unwrap() {
        level["began_s"] = (level["began_s"].as_f64().unwrap() + 2.0 * HANGS.as_secs_f64()).into();
    }
    fs::write(&manifest, changed.to_string()).unwrap();
    let mut resumed = spawn(folder, &["run", "--resume", "--update-config", "--verbose"]);
    assert!(matches!(wait(&mut resumed).code(), Some(0 | 3)), "{}", running.stderr());
    let said = running.stderr();
    assert!(said.contains("Resuming run ") && said.contains(" on record, levels 1, 2 complete"), "{said}");
    let around = said.split_once(" s of load, ").and_then(|(_, rest)| rest.split_once(" s of overhead")).unwrap().0;
    assert!(around.parse::<f64>().unwrap() < HANGS.as_secs_f64(), "{said}");
    let again = ["level-1.jsonl", "level-2.jsonl"].map(|name| fs::read(run_folder(folder).join(name)).unwrap());
    assert!(measured == again, "what is there is not measured again");
    assert!(run_folder(folder).join("cut-1-level-50.jsonl").exists());
    assert_eq!(simulator.log().len() - assert_whole(folder).len(), in_vain, "every request since is on record");
    let results = running.results().expect("one, and whole");
    assert_eq!(results.levels.iter().map(|level| level.concurrency).collect::<Vec<_>>(), [1, 2, 50]);
    assert!(results.levels.iter().all(|level| level.requests >= Some(100)), "{results:?}");
    assert!(results.raced.is_some_and(|raced| raced.decided), "{:?}", results.raced);

    let sent = simulator.log().len();
    let over = servers::binary(folder).args(["run", "--resume"]).output().unwrap();
    let said = String::from_utf8(over.stderr).unwrap();
    assert!(over.status.code() == Some(1) && said.contains("is complete"), "{said}");
    assert_eq!(simulator.log().len(), sent);
}

#[test]
fn the_first_level_after_a_resumption_begins_once_the_engine_is_warm() {
    let slow = Arc::new(AtomicUsize::new(0));
    let left = slow.clone();
    let server = servers::RawServer::start(move |_, stream| {
        let is_slow = left.try_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        std::thread::sleep(Duration::from_millis(if is_slow { 60 } else { 6 }));
        stream.write_all(servers::ok("application/json", servers::GOOD).as_bytes()).is_ok()
    });
    let more = "levels: [1, 2], total_requests: 100, request: {stream: false}";
    let mut running = Running::start(&config(&server.base_url(), more), &["run"]);
    let seen = || server.requests.lock().unwrap().len();
    wait_until("level 1 on disk", || running.results().is_some_and(|file| file.levels.len() == 1));
    let before = seen();
    wait_until("answers of the next level", || seen() > before + 5);
    Signal::Kill.send(&running.child);
    running.wait();

    // The server was begun anew, too.
    slow.store(60, Relaxed);
    let mut resumed = spawn(running.folder.path(), &["run", "--resume"]);
    assert!(matches!(wait(&mut resumed).code(), Some(0 | 3)), "{}", running.stderr());
    let manifest = fs::read_to_string(run_folder(running.folder.path()).join("run.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let levels = manifest["levels"].as_array().unwrap();
    let left_out = |level: u64| {
        let in_full = levels.iter().find(|of| of["concurrency"] == level && of["stage"] == "sweep").unwrap();
        in_full["left_out"]["requests"].as_u64()
    };
    assert!(left_out(2) >= Some(50), "{}", manifest["levels"]);
}

#[test]
fn a_race_that_was_killed_goes_on_where_it_was() {
    let eight = SimulatorConfig {
        slots: 8,
        base_step_ms: 20.0,
        per_sequence_ms: 0.0,
        output_tokens: OutputTokens::Fixed { tokens: 5 },
        ..SimulatorConfig::default()
    };
    let simulator = Simulator::start(eight, 0).unwrap();
    let config = config(&simulator.base_url(), "levels: auto, max_concurrency: 64");
    let mut running = Running::start(&config, &["run"]);
    wait_until("three visited levels on disk", || running.results().is_some_and(|file| file.levels.len() >= 3));
    let folder = &running.folder.path().to_owned();
    let second = servers::binary(folder).args(["run", "--resume"]).output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(second.status.code() == Some(1) && said.contains("is still running"), "{said}");
    Signal::Kill.send(&running.child);
    running.wait();
    let visits = run_folder(folder).join("visits.jsonl");
    let complete = fs::read(&visits).unwrap();
    let complete = &complete[..=complete.iter().rposition(|&byte| byte == b'\n').unwrap()];
    fs::write(&visits, [complete, b"{\"seq\":12,\"lev"].concat()).unwrap();

    let mut resumed = spawn(folder, &["run", "--resume", "--update-config"]);
    assert!(matches!(wait(&mut resumed).code(), Some(0 | 3)), "{}", running.stderr());
    assert_whole(folder);
    assert!(fs::read(&visits).unwrap().starts_with(complete), "what was on record stays");
    let manifest = fs::read_to_string(run_folder(folder).join("run.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let field = |name: &str| -> Vec<f64> {
        manifest["levels"].as_array().unwrap().iter().map(|of| of[name].as_f64().unwrap()).collect()
    };
    for name in ["round", "began_s"] {
        assert!(field(name).is_sorted(), "{name}: {:?}", field(name));
    }
    let raced = running.results().unwrap().raced.unwrap();
    // Which one it is depends on how busy this machine is.
    assert!(raced.pick.is_some(), "{raced:?}");
}

/// Files that nobody has completed.
fn left_behind(folder: &Path) -> Vec<PathBuf> {
    let of = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let runs = of(folder.join("target/concurrency"));
    let hidden = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with('.');
    runs.chain([folder.join("results")]).flat_map(of).filter(hidden).collect()
}

#[test]
fn signals_give_up_the_current_level_and_show_the_rest() {
    for signal in [Signal::Int, Signal::Term, Signal::Hup] {
        let simulator = server();
        let before = config(&simulator.base_url(), "levels: [1, 50], total_requests: 100");
        let args = ["run", "--update-config", "--allow-provisional", "--verbose"];
        let mut running = Running::start(&before, &args);
        running.wait_for_mid_level(1, &simulator);
        signal.send(&running.child);
        assert_eq!(running.wait().code(), Some(130), "{signal:?}: {}", running.stderr());

        // The table so far, and where it lies.
        let stdout = fs::read_to_string(running.path("stdout")).unwrap();
        // Criterion, which speaks first, has lines that begin with numbers too.
        let (_, table) = stdout.split_once("  verdict\n").expect("a table");
        let row = |level: &str| table.lines().find(|line| line.trim_start().starts_with(level)).unwrap_or_default();
        assert!(row("1 ").ends_with("pass") || row("1 ").contains("pass  <-"), "{stdout}");
        assert!(row("50 ").contains("not used: ") && row("50 ").contains("interrupted"), "{stdout}");
        assert!(stdout.contains("note: Stopped at level 50: interrupted"), "{stdout}");
        let stderr = running.stderr();
        assert!(stderr.contains("interrupted: giving up the current level (interrupt again to kill)"), "{stderr}");
        assert!(stderr.contains("(every request)") && !stderr.contains("panicked"), "{stderr}");

        assert_eq!(fs::read_to_string(running.path("config.yaml")).unwrap(), before);
        let levels = running.results().unwrap().levels;
        let states: Vec<_> = levels.iter().map(|level| serde_json::json!(level.state)).collect();
        assert_eq!(states, ["complete", "cut"]);
        // Every request that the server has seen is on record; of those given up it may not have seen all.
        let records = assert_whole(running.folder.path());
        let given_up = records.iter().filter(|record| record.end_s.is_none()).count();
        assert!((1..=50).contains(&given_up), "{given_up}");
        let seen = || simulator.log().len();
        wait_until("the server's log", || (records.len() - given_up..=records.len()).contains(&seen()));

        let output = recommend(running.folder.path(), &[]);
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(answer.contains("overwritten since): level 50"), "{answer}");
    }
}

/// Here the first one cannot end the program: it waits for a reader of its output who does not read.
/// In the middle of the race: what was visited is on disk, decides nothing yet, and is decided from in the same way.
#[test]
fn a_race_that_is_interrupted_leaves_its_visits_and_no_answer() {
    // Slow enough for a signal to come before the answer.
    let slow = SimulatorConfig {
        slots: 8,
        base_step_ms: 40.0,
        per_sequence_ms: 0.0,
        output_tokens: OutputTokens::Fixed { tokens: 5 },
        ..SimulatorConfig::default()
    };
    let simulator = Simulator::start(slow, 0).unwrap();
    let config = config(&simulator.base_url(), "levels: auto, max_concurrency: 64");
    let mut running = Running::start(&config, &["run", "--update-config", "--verbose"]);
    wait_until("three visited levels on disk", || running.results().is_some_and(|file| file.levels.len() >= 3));
    Signal::Int.send(&running.child);
    assert_eq!(running.wait().code(), Some(130), "{}", running.stderr());
    assert_whole(running.folder.path());
    let results = running.results().unwrap();
    let raced = results.raced.expect("what it came to so far");
    assert!(!raced.decided && results.levels.len() >= 3, "{raced:?}");
    assert!(fs::read_to_string(running.path("config.yaml")).unwrap().contains(OLD));
    let printed = fs::read_to_string(running.path("stdout")).unwrap();
    assert!(printed.contains("before the answer was certain") && printed.contains("interrupted"), "{printed}");
    let again = recommend(running.folder.path(), &["--update-config"]);
    let said = String::from_utf8(again.stdout).unwrap();
    assert_eq!(again.status.code(), Some(3), "{said}");
    assert!(said.contains("before the answer was certain"), "{said}");
}

#[test]
fn a_second_ctrl_c_kills() {
    let simulator = server();
    let folder = servers::folder(&config(&simulator.base_url(), "levels: [1, 50], total_requests: 100"));
    let (_reader, mut writer) = std::io::pipe().unwrap();
    let stdout = writer.try_clone().unwrap();
    // Ends with the test, by an error, as the reader goes.
    std::thread::spawn(move || while writer.write_all(&[b'x'; 4096]).is_ok() {});
    let stderr = fs::File::create(folder.path().join("stderr")).unwrap();
    let child = servers::binary(folder.path()).arg("run").stdout(stdout).stderr(stderr).spawn().unwrap();
    let mut running = Running { folder, child };
    running.wait_for_mid_level(1, &simulator);
    Signal::Int.send(&running.child);
    wait_until("its last words", || running.stderr().contains("Report: "));
    assert!(running.stderr().contains("interrupt again to kill"), "{}", running.stderr());
    assert_eq!(running.child.try_wait().unwrap(), None, "it still waits");
    Signal::Int.send(&running.child);
    assert_eq!(running.wait().code(), Some(130), "{}", running.stderr());
    assert!(running.stderr().ends_with("interrupted\n"), "{}", running.stderr());
    assert_whole(running.folder.path());
}

/// A connection that is lost takes its terminal along, and whoever still writes to that gets an error.
#[test]
#[cfg(target_os = "linux")]
fn a_lost_terminal_ends_a_run_in_good_order() {
    let simulator = server();
    let folder = servers::folder(&config(&simulator.base_url(), "levels: [1, 50], total_requests: 100"));
    let mut script = Command::new("script");
    servers::clean(&mut script, folder.path());
    let command = format!("echo $$ >pid; exec {} run", env!("CARGO_BIN_EXE_llm-concurrency"));
    script.args(["--quiet", "--command", &command, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let child = script.env("SHELL", "/bin/sh").spawn().unwrap();
    let mut running = Running { folder, child };
    running.wait_for_mid_level(1, &simulator);
    let pid = fs::read_to_string(running.path("pid")).unwrap();
    Signal::Kill.send(&running.child);
    running.wait();
    let process = Path::new("/proc").join(pid.trim());
    wait_until("the end of the run", || {
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        // A zombie where nobody reaps orphans.
        status.is_empty() || status.contains("State:\tZ")
    });
    let results = running.results().unwrap();
    let states: Vec<_> = results.levels.iter().map(|level| serde_json::json!(level.state)).collect();
    assert_eq!(states, ["complete", "cut"]);
    assert!(results.recommendation.is_some(), "it was not concluded");
    assert_eq!(left_behind(running.folder.path()), [""; 0].map(PathBuf::from));
}

/// `nohup` has its way: the run goes on to its end.
#[test]
#[cfg(target_os = "linux")]
fn nohup_lets_a_run_go_on() {
    let simulator = server();
    let folder = servers::folder(&config(&simulator.base_url(), "levels: [1, 2], total_requests: 100"));
    let mut nohup = Command::new("nohup");
    servers::clean(&mut nohup, folder.path());
    nohup.args([env!("CARGO_BIN_EXE_llm-concurrency"), "run"]).stdout(Stdio::null());
    let stderr = fs::File::create(folder.path().join("stderr")).unwrap();
    let child = nohup.stderr(stderr).spawn().unwrap();
    let mut running = Running { folder, child };
    running.wait_for_mid_level(1, &simulator);
    Signal::Hup.send(&running.child);
    assert!(matches!(running.wait().code(), Some(0 | 3)), "{}", running.stderr());
    assert_eq!(running.results().unwrap().levels.len(), 2);
    assert!(!running.stderr().contains("interrupted"), "{}", running.stderr());
}

// ---- at random moments ----

const MOMENTS: u32 = 20;

/// Moments from 0 to a little after `duration`: one in each of as many equal parts, by chance.
fn moments(duration: Duration, seed: u64) -> impl Iterator<Item = Duration> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..MOMENTS).map(move |part| {
        let at = (f64::from(part) + rng.random_range(0.0..1.0)) / f64::from(MOMENTS);
        duration.mul_f64(1.1 * at)
    })
}

/// Starts, waits until stderr holds `text` and then for `moment`, signals, and returns how it ended.
fn signalled(folder: &Path, args: &[&str], signal: Signal, text: &str, moment: Duration) -> ExitStatus {
    let mut child = spawn(folder, args);
    let has_text = || fs::read_to_string(folder.join("stderr")).unwrap().contains(text);
    wait_until(text, || has_text() || child.try_wait().unwrap().is_some());
    std::thread::sleep(moment);
    signal.send(&child);
    wait(&mut child)
}

/// The bytes of config.yaml: old, or patched with one of these numbers.
#[track_caller]
fn assert_old_or_patched(folder: &Path, old: &str, numbers: &[u32]) -> bool {
    let now = fs::read_to_string(folder.join("config.yaml")).unwrap();
    let patched = |number: &u32| old.replace(OLD, &format!("max_concurrent_requests: {number} "));
    assert!(now == old || numbers.iter().map(patched).any(|text| now == text), "{now}");
    now != old
}

/// As documented: done (0, or 3 where there is nothing to write), 130, or, before there is anything to be given up,
/// ended by the system.
#[track_caller]
fn assert_documented(status: ExitStatus, signal: Signal, stderr: &str) {
    let ended_by_signal = status.signal() == Some(signal as i32);
    match status.code() {
        Some(130) => assert!(signal != Signal::Kill && stderr.contains("interrupted"), "{stderr}"),
        Some(0 | 3) => {}
        code => assert!(ended_by_signal, "{signal:?}: {code:?}: {stderr}"),
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// Start-up, load, Criterion's analysis and the patch of config.yaml: 20 moments of a run, all in the same folder.
fn a_run_at_random_moments(signal: Signal) {
    let benchmark = "levels: [1, 2], total_requests: 30, request: {max_tokens: 8}}\n\
                     simulator: {slots: 2, base_step_ms: 0.5, per_sequence_ms: 0";
    let old = config("simulator", benchmark);
    let folder = servers::folder(&old);
    let folder = folder.path();
    let args = ["run", "--update-config", "--allow-provisional", "--verbose"];
    let begun = Instant::now();
    let status = wait(&mut spawn(folder, &args));
    let duration = begun.elapsed();
    assert!(matches!(status.code(), Some(0 | 3)), "undisturbed: {status}");
    let (mut patched, mut finished) = (0, 0);
    let mut rng = StdRng::seed_from_u64(signal as u64);
    for part in 0..MOMENTS {
        let part = f64::from(part) + rng.random_range(0.0..1.0);
        // The last ones are counted from the last level and from the decision, which are soon over.
        let (begin, moment) = match part {
            ..12.0 => ("", duration.mul_f64(part / 12.0)),
            ..16.0 => ("level 2 ended: ", duration.mul_f64((part - 12.0) / 8.0)),
            _ => ("Written:", Duration::from_millis(15).mul_f64((part - 16.0) / 4.0)),
        };
        fs::write(folder.join("config.yaml"), &old).unwrap();
        let status = signalled(folder, &args, signal, begin, moment);
        let stderr = fs::read_to_string(folder.join("stderr")).unwrap();
        assert_documented(status, signal, &stderr);
        let is_patched = assert_old_or_patched(folder, &old, &[1, 2]);
        assert!(!is_patched || status.code() != Some(130) || stderr.contains("Written:"), "{stderr}");
        patched += u32::from(is_patched);
        finished += u32::from(matches!(status.code(), Some(0 | 3)));
        assert_whole(folder);
        // There is always something to decide from, or a word on why not.
        let output = recommend(folder, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let helps = stderr.starts_with("error: ") && stderr.contains("Run `cargo bench`");
        assert!(matches!(output.status.code(), Some(0 | 3)) || output.status.code() == Some(1) && helps, "{stderr}");
    }
    println!("{signal:?}: {MOMENTS} moments of {duration:?}, {finished} runs were over first, {patched} had patched");
    // Criterion writes its own files in place: what a kill may make of them stops nobody.
    tear(&folder.join("target/criterion"));
    fs::write(folder.join("config.yaml"), &old).unwrap();
    let output = recommend(folder, &[]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
    let status = wait(&mut spawn(folder, &args));
    let stderr = fs::read_to_string(folder.join("stderr")).unwrap();
    assert!(matches!(status.code(), Some(0 | 3)) && !stderr.contains("panicked"), "afterwards: {stderr}");
}

#[test]
fn the_simulators_own_record_is_written_when_it_ends() {
    let args = ["simulate", "--port", "0", "--log", "requests.jsonl"];
    let mut running = Running::start(&config("simulator", ""), &args);
    let url = || {
        let stdout = fs::read_to_string(running.path("stdout")).unwrap();
        stdout.split_whitespace().find(|word| word.starts_with("http://")).map(str::to_owned)
    };
    wait_until("its address", || url().is_some());
    let (llm, request) = (Llm::default(), RequestSettings::default());
    let reply = servers::send_once(&url().unwrap(), &llm, &request);
    assert_eq!(reply.failure, None);
    Signal::Term.send(&running.child);
    assert_eq!(running.wait().code(), Some(0));
    let log = fs::read_to_string(running.path("requests.jsonl")).unwrap();
    let records: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 1, "{log}");
    let time = |name: &str| records[0][name].as_f64().unwrap();
    assert!(time("arrived_s") < time("first_token_s") && time("first_token_s") < time("finished_s"), "{log}");
    assert_eq!((&records[0]["outcome"], &records[0]["output_tokens"]), (&"completed".into(), &reply.chunks.into()));
}

/// Cuts every JSON file below in half.
fn tear(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tear(&path);
        } else if is_json(&path) {
            let text = fs::read(&path).unwrap();
            fs::write(&path, &text[..text.len() / 2]).unwrap();
        }
    }
}

#[test]
#[ignore = "takes minutes"]
fn ci_sigint_at_random_moments_of_a_run() {
    a_run_at_random_moments(Signal::Int);
}

#[test]
#[ignore = "takes minutes"]
fn ci_sigterm_at_random_moments_of_a_run() {
    a_run_at_random_moments(Signal::Term);
}

#[test]
#[ignore = "takes minutes"]
fn ci_sigkill_at_random_moments_of_a_run() {
    a_run_at_random_moments(Signal::Kill);
}

#[test]
fn signals_at_random_moments_of_a_patch_leave_the_old_or_the_new_config() {
    let old = config("simulator", "");
    let folder = servers::folder(&old);
    let folder = folder.path();
    fs::write(folder.join("knee.json"), KNEE.replace("http://llm.example/v1", "simulator")).unwrap();
    let args = ["recommend", "--results", "knee.json", "--update-config"];
    let begun = Instant::now();
    assert_eq!(wait(&mut spawn(folder, &args)).code(), Some(0));
    let duration = begun.elapsed();
    assert!(assert_old_or_patched(folder, &old, &[20]), "undisturbed it is patched");
    for signal in [Signal::Int, Signal::Term, Signal::Kill] {
        let mut patched = 0;
        for moment in moments(duration, signal as u64) {
            fs::write(folder.join("config.yaml"), &old).unwrap();
            let status = signalled(folder, &args, signal, "", moment);
            assert!(status.code() == Some(0) || status.signal() == Some(signal as i32), "{status}");
            let is_patched = assert_old_or_patched(folder, &old, &[20]);
            assert!(is_patched || status.code() != Some(0), "it was over and is not patched");
            patched += u32::from(is_patched);
        }
        println!("{signal:?}: {MOMENTS} moments of {duration:?}, {patched} came after the patch");
    }
}

// ---- a server that goes away ----

/// Runs these levels, of which the server is gone in the second, and comes back or not when that one has ended.
fn run_with_an_outage(levels: &str, comes_back: bool) -> (Running, ExitStatus) {
    let simulator = server();
    let url = simulator.base_url();
    // Levels of seconds, so that the server is gone in time however busy this machine is.
    let benchmark = format!("levels: [{levels}], total_requests: 200, budget: {{max_requests: 1200}}");
    let mut running = Running::start(&config(&url, &benchmark), &["run", "--update-config", "--verbose"]);
    running.wait_for_mid_level(1, &simulator);
    drop(simulator);
    wait_until("the end of the second level", || running.results().is_some_and(|file| file.levels.len() > 1));
    let port = url.rsplit_once(':').and_then(|(_, rest)| rest.split('/').next()?.parse().ok());
    let _back = comes_back.then(|| server_at(port.unwrap()));
    let status = running.wait();
    (running, status)
}

#[test]
fn a_level_whose_server_was_gone_is_measured_again_and_the_outage_set_aside() {
    let (running, _) = run_with_an_outage("2, 4, 8", true);
    let results = running.results().unwrap();
    let second = &results.levels[1];
    let outage = second.outage.expect("an outage");
    assert!(outage.is_set_aside() && outage.since > 0 && outage.measurements == 1, "{outage:?}");
    assert!(outage.lost > 5 && second.requests.is_some_and(|n| n >= 8), "{second:?}");
    assert_eq!((second.error_rate, second.failures.len()), (Some(0.0), 0));
    let printed = fs::read_to_string(running.path("stdout")).unwrap();
    // Of the third as well, where the server came back late.
    let alone = format!(
        "Level 4 was measured again: {} of {} requests could not reach the server",
        outage.lost, outage.requests
    );
    let both = "Levels 4, 8 were measured again, since they could not reach the server (outage)";
    let third_too = results.levels[2].outage.is_some_and(|outage| outage.is_set_aside());
    assert!(printed.contains(if third_too { both } else { &alone }), "{printed}");
}

#[test]
fn a_server_that_does_not_come_back_leaves_a_provisional_answer_and_the_config_as_it_was() {
    let (running, status) = run_with_an_outage("4, 8", false);
    assert_eq!(status.code(), Some(3), "{}", running.stderr());
    let recommendation = running.results().unwrap().recommendation.unwrap();
    assert!(recommendation["provisional"] == true || recommendation["recommended_concurrency"].is_null());
    assert!(fs::read_to_string(running.path("config.yaml")).unwrap().contains(OLD));
    let printed = fs::read_to_string(running.path("stdout")).unwrap();
    assert!(printed.contains("requests could not reach the server"), "{printed}");
}
