//! A level takes as many connections as it has requests in flight: the limit of open files is raised where that is
//! allowed, and else named before anything is sent.

#![cfg(all(unix, feature = "suite"))]

mod servers;

use std::process::{Command, Output};

use llm_concurrency::record::ResultsFile;
use llm_concurrency::simulator::{Simulator, SimulatorConfig};

/// A quick run of level 150 after the shell's `limits` were set.
fn run(limits: &str, endpoint: &str) -> (Output, tempfile::TempDir) {
    let folder = servers::folder(&format!("llm: {{endpoint: '{endpoint}', model: m}}\n"));
    let mut shell = Command::new("sh");
    servers::clean(&mut shell, folder.path());
    let script = format!("{limits} && exec \"$0\" run --quick --levels 150 --max-concurrency 150");
    let output = shell.args(["-c", &script, env!("CARGO_BIN_EXE_llm-concurrency")]).output().unwrap();
    (output, folder)
}

fn server() -> Simulator {
    let config = SimulatorConfig { slots: 150, base_step_ms: 10.0, per_sequence_ms: 0.0, ..SimulatorConfig::default() };
    Simulator::start(config, 0).unwrap()
}

#[test]
fn too_few_open_files_are_named_before_anything_is_sent() {
    let server = server();
    let (output, folder) = run("ulimit -n 200", &server.base_url());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("level 150 needs 265 open files, and this process may have only 200"), "{stderr}");
    assert!(stderr.contains("ulimit -n 265"), "{stderr}");
    assert_eq!(server.log(), []);
    assert!(!folder.path().join("results").exists());
}

#[test]
fn the_own_limit_is_raised_where_the_hard_one_allows_it() {
    let server = server();
    let (output, folder) = run("ulimit -S -n 100", &server.base_url());
    let stderr = String::from_utf8_lossy(&output.stderr);
    let results = std::fs::read_dir(folder.path().join("results")).unwrap_or_else(|_| panic!("{stderr}"));
    let mut paths = results.flatten().map(|entry| entry.path());
    let path =
        paths.find(|path| path.extension().is_some_and(|extension| extension == "json")).expect("a results file");
    let file = ResultsFile::read(&path).unwrap();
    assert_eq!(file.levels[0].error_rate, Some(0.0), "{stderr}");
    assert_eq!(server.peak_in_flight(), 150);
}
