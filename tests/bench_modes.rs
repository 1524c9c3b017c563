//! What `cargo bench` and `cargo test --benches` do with Criterion's arguments: whom they touch, and what they refuse.

mod bench_executable;

use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use llm_concurrency::measure::sweep::{CriterionArgs, Mode};
use tempfile::TempDir;

const LEVELS: [usize; 10] = [1, 2, 5, 10, 15, 20, 25, 30, 40, 50];

// ---- the arguments ----

fn parse(args: &str) -> CriterionArgs {
    CriterionArgs::parse(args.split_whitespace().map(str::to_owned)).unwrap()
}

/// The levels that would run, of the default ones.
fn levels(args: &str) -> Vec<usize> {
    let args = parse(args);
    LEVELS.into_iter().filter(|&level| args.selects(level)).collect()
}

#[test]
fn cargo_bench_measures_cargo_test_tests_and_list_lists() {
    for (args, mode) in [
        ("--bench", Mode::Measure),
        ("--bench level/10", Mode::Measure),
        ("", Mode::Test),
        ("level/10", Mode::Test),
        ("--bench --test", Mode::Test),
        ("--list", Mode::List),
        ("--bench --list", Mode::List),
        ("--list --format terse", Mode::List),
        // Only while measuring is there something to refuse.
        ("--profile-time 5", Mode::Test),
    ] {
        assert_eq!(parse(args).mode, mode, "{args}");
    }
}

#[test]
fn the_filter_is_a_regular_expression_on_the_whole_id() {
    for (args, selected) in [
        ("--bench", LEVELS.to_vec()),
        ("--bench concurrency", LEVELS.to_vec()),
        ("--bench level/10", vec![10]),
        ("--bench level/1", vec![1, 10, 15]),
        ("--bench level/1$", vec![1]),
        ("--bench level/(5|20)$", vec![5, 20]),
        ("--bench confirm", vec![]),
        ("level/2$", vec![2]),
    ] {
        assert_eq!(levels(args), selected, "{args}");
        assert_eq!(parse(args).is_filtered(), args.contains("level") || args.contains("con"), "{args}");
    }
}

#[test]
fn exact_takes_the_whole_id_and_ignored_takes_nothing() {
    assert_eq!(levels("--bench --exact concurrency/level/1"), [1]);
    assert_eq!(levels("--bench concurrency/level/10 --exact"), [10]);
    assert_eq!(levels("--bench --exact level/1"), [0; 0]);
    assert_eq!(levels("--bench --ignored"), [0; 0]);
    assert_eq!(levels("--bench --ignored level/10"), [0; 0]);
}

#[test]
fn the_value_of_an_option_is_not_the_filter() {
    for option in [
        "-c always",
        "--color always",
        "-s mine",
        "--save-baseline mine",
        "-b mine",
        "--baseline mine",
        "--baseline-lenient mine",
        "--format terse",
        "--sample-size 10",
        "--warm-up-time 1",
        "--measurement-time 1",
        "--nresamples 1000",
        "--noise-threshold 0.05",
        "--confidence-level 0.9",
        "--significance-level 0.1",
        "--plotting-backend plotters",
        "--output-format bencher",
        "--save-baseline=mine",
        "--noplot",
        "--verbose",
    ] {
        assert_eq!(levels(&format!("--bench {option}")), LEVELS, "{option}");
        assert_eq!(levels(&format!("--bench {option} level/10")), [10], "{option}");
        assert_eq!(levels(&format!("--bench level/10 {option}")), [10], "{option}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused_with_what_to_do_instead() {
    for (args, named, instead) in [
        ("--bench --profile-time 5", "--profile-time", "cargo bench --bench client_cost"),
        ("--bench --profile-time=5", "--profile-time", "cargo bench --bench client_cost"),
        ("--bench --quick", "--quick", "LLM_BENCH_QUICK=1 cargo bench"),
        ("--bench --load-baseline base --baseline base", "--load-baseline", "cargo run --bin recommend"),
        ("--bench level/(", "`level/(`", "not a regular expression"),
    ] {
        let error = CriterionArgs::parse(args.split_whitespace().map(str::to_owned)).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains(instead), "{args}: {error}");
    }
}

// ---- the bench itself ----

/// Somebody's server, which must not be touched.
struct Bystander(TcpListener);

impl Bystander {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Bystander(listener)
    }

    fn url(&self) -> String {
        format!("http://{}/v1", self.0.local_addr().unwrap())
    }

    /// Whether anybody has connected: such a connection would wait to be accepted.
    fn was_touched(&self) -> bool {
        match self.0.accept() {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                false
            }
        }
    }
}

/// Runs the bench in an empty folder, with the project's config.yaml, but somebody's server as the endpoint.
fn run(args: &[&str], bystander: &Bystander, vars: &[(&str, &str)]) -> (Output, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(bench_executable::path());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("LLM_") || name.starts_with("CRITERION")) {
            command.env_remove(name);
        }
    }
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.yaml");
    command.args(args).current_dir(folder.path()).env("LLM_CONFIG", config).env("LLM_ENDPOINT", bystander.url());
    command.env("CRITERION_HOME", folder.path().join("criterion")).envs(vars.iter().copied());
    (command.output().unwrap(), folder)
}

fn is_empty(folder: &TempDir) -> bool {
    std::fs::read_dir(folder.path()).unwrap().next().is_none()
}

/// Without what Criterion says where gnuplot is not installed.
fn ours(stderr: &str) -> String {
    stderr.replace("Gnuplot not found, using plotters backend\n", "")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn test_mode_sends_one_request_per_level_to_the_simulator_and_writes_nothing() {
    let bystander = Bystander::new();
    let (output, folder) = run(&[], &bystander, &[]);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    for level in LEVELS {
        assert!(stdout.contains(&format!("Testing concurrency/level/{level}\nSuccess")), "{level}: {stdout}");
    }
    assert_eq!(ours(&stderr), "Test mode: 10 requests to the embedded simulator, none elsewhere\n");
    assert!(!bystander.was_touched());
    assert!(is_empty(&folder));
}

#[test]
fn list_prints_the_ids_and_starts_nothing() {
    let bystander = Bystander::new();
    for args in [&["--list"][..], &["--bench", "--list"], &["--list", "--format", "terse"]] {
        let (output, folder) = run(args, &bystander, &[]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let ids: String = LEVELS.iter().map(|level| format!("concurrency/level/{level}: benchmark\n")).collect();
        assert_eq!(text(&output.stdout).trim_end(), ids.trim_end());
        assert_eq!(ours(&text(&output.stderr)), "");
        assert!(!bystander.was_touched());
        assert!(is_empty(&folder));
    }
}

/// What an adaptive search will measure is not known beforehand.
#[test]
fn auto_lists_and_tests_the_powers_of_two() {
    let bystander = Bystander::new();
    let auto = [("LLM_BENCH_LEVELS", "auto"), ("LLM_BENCH_MAX_CONCURRENCY", "20")];
    let (listed, _) = run(&["--list"], &bystander, &auto);
    let ids: String = [1, 2, 4, 8, 16].iter().map(|level| format!("concurrency/level/{level}: benchmark\n")).collect();
    assert_eq!(text(&listed.stdout).trim_end(), ids.trim_end());
    let (tested, folder) = run(&[], &bystander, &auto);
    assert_eq!(ours(&text(&tested.stderr)), "Test mode: 5 requests to the embedded simulator, none elsewhere\n");
    assert!(!bystander.was_touched() && is_empty(&folder));
}

#[test]
fn cargo_criterion_is_refused_before_anything_is_sent() {
    let bystander = Bystander::new();
    let (output, folder) = run(&["--bench"], &bystander, &[("CARGO_CRITERION_PORT", "1")]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.starts_with("error: cargo-criterion saves no estimates"), "{stderr}");
    assert!(stderr.contains("Use `cargo bench` instead."), "{stderr}");
    assert!(!bystander.was_touched());
    assert!(is_empty(&folder));
}
