//! A full disk and a read-only one: config.yaml stays as it was, and a message says what is wrong. A stdout or stderr
//! that takes no more ends no run.
//!
//! The disk is a tmpfs of 256 KiB. To mount it takes root; without, these tests say that they did nothing.

#![cfg(all(target_os = "linux", feature = "suite"))]

mod bench_executable;
mod servers;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use llm_concurrency::record::ResultsFile;
use llm_concurrency::simulator::{Simulator, SimulatorConfig};
use tempfile::TempDir;

/// Made by hand: a knee at 20.
const KNEE: &str = include_str!("../test-data/results/knee_at_20.json");
const CONFIG: &str = "llm: {endpoint: simulator, model: m, max_concurrent_requests: 7} # by hand\n\
                      simulator: {slots: 2, base_step_ms: 0.2, per_sequence_ms: 0.01}\n\
                      benchmark: {levels: [1, 2], total_requests: 30, request: {max_tokens: 8}}\n";

/// A small disk with a config.yaml, unmounted at the end.
struct Disk {
    at: TempDir,
}

impl Disk {
    /// `None` where this user may not mount.
    fn mount(test: &str) -> Option<Self> {
        let at = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(at.path()).output();
        match mounted {
            Ok(output) if output.status.success() => println!("{test}: ran on a tmpfs of 256 KiB"),
            Ok(output) => {
                println!("{test}: DID NOT RUN, mounting needs root: {}", String::from_utf8_lossy(&output.stderr));
                return None;
            }
            Err(error) => {
                println!("{test}: DID NOT RUN, there is no mount command: {error}");
                return None;
            }
        }
        let disk = Disk { at };
        fs::write(disk.path("config.yaml"), CONFIG).unwrap();
        Some(disk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.at.path().join(name)
    }

    /// Fills it but for `kib` KiB.
    fn fill(&self, kib: usize) {
        let mut file = fs::File::create(self.path("filler")).unwrap();
        let mut filled: u64 = 0;
        while file.write_all(&[b'x'; 4096]).is_ok() {
            filled += 4096;
        }
        assert!(filled > 100 << 10, "{filled}");
        file.set_len(filled - (kib << 10) as u64).unwrap();
    }

    fn make_read_only(&self) {
        let done = Command::new("mount").args(["-o", "remount,ro"]).arg(self.at.path()).status().unwrap();
        assert!(done.success());
    }

    /// `recommend --update-config` of another folder's results.
    fn update(&self) -> Output {
        let elsewhere = tempfile::tempdir().unwrap();
        let of_simulator = KNEE.replace("http://llm.example/v1", "simulator");
        fs::write(elsewhere.path().join("knee.json"), of_simulator).unwrap();
        let mut command = servers::binary(elsewhere.path());
        command.args(["recommend", "--results", "knee.json", "--update-config", "--config"]);
        command.arg(self.path("config.yaml")).output().unwrap()
    }

    /// Exit code 1, a message with `reason` and `mend` in it, and config.yaml as it was with nothing beside it.
    #[track_caller]
    fn assert_refused(&self, output: &Output, reason: &str, mend: &str, files: &[&str]) {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let message = stderr.find("error: ").map(|at| &stderr[at..]).expect("a message");
        assert!(message.contains(reason) && message.contains(mend), "{message}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        println!("{message}");
        assert_eq!(fs::read_to_string(self.path("config.yaml")).unwrap(), CONFIG);
        assert_eq!(names(self.at.path()), files);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.at.path()).status();
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
#[ignore = "needs root"]
fn ci_a_full_disk_leaves_the_config_as_it_was() {
    let Some(disk) = Disk::mount("config.yaml on a full disk") else { return };
    disk.fill(0);
    let output = disk.update();
    disk.assert_refused(
        &output,
        "No space left on device",
        "`llm.max_concurrent_requests` was not changed",
        &["config.yaml", "filler"],
    );
    // With room for it again the same command works.
    fs::remove_file(disk.path("filler")).unwrap();
    assert_eq!(disk.update().status.code(), Some(0));
    let patched = CONFIG.replace("max_concurrent_requests: 7", "max_concurrent_requests: 20");
    assert_eq!(fs::read_to_string(disk.path("config.yaml")).unwrap(), patched);
}

#[test]
#[ignore = "needs root"]
fn ci_a_read_only_disk_leaves_the_config_as_it_was() {
    let Some(disk) = Disk::mount("config.yaml on a read-only disk") else { return };
    disk.make_read_only();
    let output = disk.update();
    disk.assert_refused(&output, "the file is read-only", "max_concurrent_requests: 20", &["config.yaml"]);
}

#[test]
#[ignore = "needs root"]
fn ci_a_run_on_a_full_disk_says_so() {
    // None of it, and room for some of Criterion's files but not for all.
    for room_kib in [0, 60] {
        let Some(disk) = Disk::mount("a run on a full disk") else { return };
        disk.fill(room_kib);
        let args = ["run", "--update-config", "--allow-provisional"];
        let output = servers::binary(disk.at.path()).args(args).output().unwrap();
        disk.assert_refused(
            &output,
            "No space left on device",
            "CARGO_TARGET_DIR",
            if room_kib == 0 {
                &["config.yaml", "filler", "target"]
            } else {
                &["config.yaml", "filler", "results", "target"]
            },
        );
    }
}

/// Before it has sent anything.
#[test]
#[ignore = "needs root"]
fn ci_a_run_on_a_read_only_disk_says_so() {
    let Some(disk) = Disk::mount("a run on a read-only disk") else { return };
    disk.make_read_only();
    for (args, reason, mend) in [
        (&["run"][..], "Read-only file system", "CARGO_TARGET_DIR"),
        (&["run", "--update-config"], "the file is read-only", "make the file writable"),
    ] {
        let output = servers::binary(disk.at.path()).args(args).output().unwrap();
        disk.assert_refused(&output, reason, mend, &["config.yaml"]);
        assert!(!String::from_utf8_lossy(&output.stdout).contains("concurrency/level/1"));
    }
}

// ---- stdout and stderr ----

/// What becomes of it, by the shell: `$RUN` runs.
const REDIRECTIONS: [&str; 8] = [
    "$RUN | head -1",
    "$RUN 2>&1 >/dev/null | head -1",
    "$RUN >&-",
    "$RUN 2>&-",
    "$RUN >/dev/full",
    "$RUN 2>/dev/full",
    "$RUN >/dev/full 2>&1",
    "$RUN 2>&1 | head -1",
];

/// Runs `command` by the shell under each of them, and looks at what it left: all of it, and its usual exit code.
fn assert_nothing_ends_it(program: &Path, args: &str, usual: &[&str]) {
    for redirection in REDIRECTIONS {
        let folder = servers::folder(&CONFIG.replace("[1, 2], total_requests: 30", "[1], total_requests: 10"));
        let mut shell = Command::new("sh");
        servers::clean(&mut shell, folder.path());
        shell.env("PROGRAM", program).arg("-c");
        shell.arg(redirection.replace("$RUN", &format!("{{ \"$PROGRAM\" {args}; echo $? >code; }}")));
        let output = shell.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let code = fs::read_to_string(folder.path().join("code")).unwrap();
        assert!(usual.contains(&code.trim()), "{redirection}: {code}{stderr}");
        assert!(!stderr.contains("panicked"), "{redirection}: {stderr}");
        let results = names(&folder.path().join("results"));
        let file = results.iter().find(|name| name.ends_with(".json")).expect("a results file");
        let file = ResultsFile::read(&folder.path().join("results").join(file)).unwrap();
        assert!(file.levels.len() == 1 && file.recommendation.is_some(), "{redirection}: {file:?}");
        assert!(results.iter().any(|name| name.ends_with(".html")), "{redirection}: {results:?}");
    }
}

#[test]
fn a_run_goes_on_without_readers_and_without_room_for_what_it_says() {
    // 3: a single level is no answer.
    assert_nothing_ends_it(Path::new(env!("CARGO_BIN_EXE_llm-concurrency")), "run", &["0", "3"]);
}

#[test]
fn the_bench_goes_on_without_readers_and_without_room_for_what_it_says() {
    assert_nothing_ends_it(bench_executable::path(), "--bench", &["0"]);
}

/// What is in between may hold it up, not lose it, and what goes to one place stays in its order.
#[test]
fn all_output_arrives_in_its_order() {
    let folder = servers::folder(CONFIG);
    let file = fs::File::create(folder.path().join("output")).unwrap();
    let mut command = servers::binary(folder.path());
    command.args(["run", "--verbose"]).stdout(file.try_clone().unwrap()).stderr(file);
    command.status().unwrap();
    let output = fs::read_to_string(folder.path().join("output")).unwrap();
    // Alternately on stderr and stdout.
    let marks =
        ["Plan: ", "\nconcurrency/level/1  ", "\nlevel 1 ended: ", "\nconcurrency/level/2  ", "\nlevel 2 ended: "];
    let marks = marks.into_iter().chain(["  verdict\n", " s of load, ", "\nReport: "]);
    let mut at = 0;
    for mark in marks {
        at += output[at..].find(mark).unwrap_or_else(|| panic!("{mark:?} is not where it belongs: {output}"));
    }
    // Only why nothing may be written follows, where that is so.
    assert!(output[at..].contains(".html\n") && output.ends_with('\n'), "{output}");
}

#[test]
fn a_decision_needs_no_stderr() {
    let folder = servers::folder(CONFIG);
    fs::write(folder.path().join("knee.json"), KNEE).unwrap();
    for (args, code) in
        [(&["recommend", "--results", "knee.json"][..], 0), (&["recommend", "--results", "none.json"], 1)]
    {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = servers::binary(folder.path()).args(args).stderr(full).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}");
    }
}

#[test]
fn a_folder_that_takes_no_files_is_found_before_anything_is_sent() {
    let simulator = Simulator::start(SimulatorConfig::default(), 0).unwrap();
    for taken in ["results", "target/concurrency"] {
        let folder =
            servers::folder(&CONFIG.replace("endpoint: simulator", &format!("endpoint: '{}'", simulator.base_url())));
        let path = folder.path().join(taken);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "somebody's").unwrap();
        let output = servers::binary(folder.path()).arg("run").output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("cannot write ") && stderr.contains(taken) && !stderr.contains("Plan:"), "{stderr}");
    }
    assert_eq!(simulator.log().len(), 0);
}
