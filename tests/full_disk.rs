//! A full disk and a read-only one: config.yaml stays as it was, and a message says what is wrong.
//!
//! The disk is a tmpfs of 256 KiB. To mount it takes root; without, these tests say that they did nothing.

#![cfg(all(target_os = "linux", feature = "suite"))]

mod servers;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
        fs::write(elsewhere.path().join("knee.json"), KNEE).unwrap();
        let mut command = servers::binary(elsewhere.path());
        command.args(["recommend", "--results", "knee.json", "--update-config", "--config"]);
        command.arg(self.path("config.yaml")).output().unwrap()
    }

    /// Exit code 1, a message with `reason` and `mend` in it, and config.yaml as it was with nothing beside it.
    #[track_caller]
    fn assert_refused(&self, output: &Output, reason: &str, mend: &str, files: &[&str]) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let message = said.find("error: ").map(|at| &said[at..]).expect("a message");
        assert!(message.contains(reason) && message.contains(mend), "{message}");
        assert!(!said.contains("panicked"), "{said}");
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
            &["config.yaml", "filler", "target"],
        );
    }
}

/// Before it has sent anything.
#[test]
#[ignore = "needs root"]
fn ci_a_run_on_a_read_only_disk_says_so() {
    let Some(disk) = Disk::mount("a run on a read-only disk") else { return };
    disk.make_read_only();
    let output = servers::binary(disk.at.path()).args(["run", "--update-config"]).output().unwrap();
    disk.assert_refused(&output, "Read-only file system", "CARGO_TARGET_DIR", &["config.yaml"]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("concurrency/level/1"));
}
