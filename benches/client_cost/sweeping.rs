//! Whole sweeps by way of `cargo bench`, each in its own process and folder.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::proc::{Cpu, cpu_s, open_files, peak_memory};
use crate::server::{Behaviour, Server};

/// Environment variable that makes the process sweep.
pub const SWEEP: &str = "CLIENT_COST_SWEEP";

/// The results of a sweep.
pub struct Sweep {
    folder: TempDir,
    pub results: Value,
    pub stderr: String,
    pub wall_s: f64,
    pub cpu_s: f64,
    /// In bytes.
    pub peak_memory: f64,
    pub open_files: usize,
}

impl Sweep {
    /// Sweeps `server` with the settings in `benchmark`; with `quick`, sends fewer requests.
    pub fn of(server: &Server, benchmark: &str, quick: bool, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = format!(
            "llm: {{endpoint: '{}', model: m, request_timeout: 60}}\nbenchmark: {benchmark}\n",
            server.base_url()
        );
        std::fs::write(folder.path().join("config.yaml"), config).expect("a config file");
        let stderr = std::fs::File::create(folder.path().join("stderr")).expect("a file");
        let (began, before) = (Instant::now(), cpu_s(Cpu::Children));
        let mut process = Command::new(std::env::current_exe().expect("the path of this program"))
            .args(["--bench"])
            .args(args)
            .env(SWEEP, "1")
            .env("CRITERION_HOME", folder.path().join("criterion"))
            .envs(quick.then_some(("LLM_BENCH_QUICK", "1")))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("this program starts again");
        let mut sweep = Sweep {
            folder,
            results: Value::Null,
            stderr: String::new(),
            wall_s: 0.0,
            cpu_s: 0.0,
            peak_memory: 0.0,
            open_files: 0,
        };
        while process.try_wait().expect("our own child").is_none() {
            sweep.peak_memory = peak_memory(process.id()).unwrap_or_default().max(sweep.peak_memory);
            sweep.open_files = open_files(process.id()).max(sweep.open_files);
            std::thread::sleep(Duration::from_millis(20));
        }
        sweep.wall_s = began.elapsed().as_secs_f64();
        sweep.cpu_s = cpu_s(Cpu::Children) - before;
        sweep.stderr = std::fs::read_to_string(sweep.folder.path().join("stderr")).expect("its stderr");
        let results = sweep.folder.path().join("results");
        let mut files = std::fs::read_dir(&results).into_iter().flatten().flatten().map(|entry| entry.path());
        let results = files.find(|path| path.extension().is_some_and(|extension| extension == "json"));
        let results = results.unwrap_or_else(|| panic!("the sweep left no results:\n{}", sweep.stderr));
        let text = std::fs::read_to_string(results).expect("the results");
        sweep.results = serde_json::from_str(&text).expect("JSON");
        sweep
    }

    /// Figures of the level at index `at`.
    pub fn level(&self, at: usize) -> &Value {
        &self.results["levels"][at]
    }

    /// The run's folder, with the sidecars.
    pub fn run_folder(&self) -> std::path::PathBuf {
        let id = self.results["run_id"].as_str().expect("a run id");
        self.folder.path().join("concurrency").join(id)
    }
}

pub fn lines_of(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("a file of the run");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Ten levels of at least 100 requests against 64 slots of 100 ms.
pub fn run() {
    let behaviour = Behaviour { first_ms: 100, gap_ms: 0, tokens: 1, slots: 64 };
    println!("ten levels, 64 slots of 100 ms  load s  wall s  wall/load  CPU s  picked");
    for (name, args) in [("with Criterion's plots", &[][..]), ("without (--noplot)", &["--noplot"][..])] {
        let server = Server::start(behaviour);
        let benchmark =
            "{levels: [1, 2, 4, 8, 16, 32, 48, 64, 96, 128], max_concurrency: 128, request: {stream: false}}";
        let sweep = Sweep::of(&server, benchmark, false, args);
        let load_s = sweep
            .stderr
            .split(" s of load, ")
            .next()
            .and_then(|before| before.rsplit('\n').next()?.parse::<f64>().ok());
        let load_s = load_s.unwrap_or(f64::NAN);
        println!(
            "{name:31} {load_s:>7.1} {:>7.1} {:>10.2} {:>6.1} {:>7}",
            sweep.wall_s,
            sweep.wall_s / load_s,
            sweep.cpu_s,
            sweep.results["recommendation"]["recommended_concurrency"],
        );
    }
}
