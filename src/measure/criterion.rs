//! The only file that uses Criterion's API.
//!
//! For each level, Criterion makes one warm-up call and ten measuring calls. The loop runs on its own
//! thread and never waits for Criterion: each call merely receives the next window. So nothing
//! drains between iterations, and Criterion's analysis does not disturb the measurement.

use std::io::IsTerminal;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, PlottingBackend, SamplingMode, Throughput};
use regex::Regex;

use super::plan::SAMPLES;
use super::sweep::SweepError;
use crate::record::{GROUP, Places, criterion_id};
use crate::stdio;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Measure,
    /// `cargo test --benches`: one request per level, simulator only.
    Test,
    /// `--list`: print the ids.
    List,
}

/// The subset of Criterion's arguments that matters here. Criterion itself parses all of them.
#[derive(Clone, Debug)]
pub struct CriterionArgs {
    pub mode: Mode,
    /// Selects levels by their benchmark id; `None` selects all.
    filter: Option<Regex>,
    own_baseline: bool,
    /// Whether Criterion should parse the command line itself.
    from_command_line: bool,
}

/// Criterion's options that take a value.
const WITH_VALUE: [&str; 18] = [
    "-c",
    "--color",
    "-s",
    "--save-baseline",
    "-b",
    "--baseline",
    "--baseline-lenient",
    "--format",
    "--load-baseline",
    "--sample-size",
    "--warm-up-time",
    "--measurement-time",
    "--nresamples",
    "--noise-threshold",
    "--confidence-level",
    "--significance-level",
    "--plotting-backend",
    "--output-format",
];

impl CriterionArgs {
    /// Parses the arguments after the program's name.
    /// Fails for modes that cannot give a valid measurement.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, SweepError> {
        let args: Vec<String> = args.into_iter().collect();
        let has = |name: &str| args.iter().any(|arg| arg == name || arg.starts_with(&format!("{name}=")));
        let mode = if has("--list") {
            Mode::List
        } else if has("--test") || !has("--bench") {
            Mode::Test
        } else {
            Mode::Measure
        };
        let refused = REFUSED.iter().find(|(flag, _)| has(flag) || std::env::var_os(flag).is_some());
        if let Some((_, why)) = refused.filter(|_| mode == Mode::Measure) {
            return Err(SweepError::Refused((*why).to_owned()));
        }
        Ok(CriterionArgs {
            mode,
            filter: filter(&args, has("--exact"), has("--ignored"))?,
            own_baseline: ["-s", "--save-baseline", "-b", "--baseline", "--baseline-lenient", "--discard-baseline"]
                .iter()
                .any(|name| has(name)),
            from_command_line: true,
        })
    }

    /// The arguments of `run`, which measures everything.
    pub fn measure_all() -> Self {
        CriterionArgs { mode: Mode::Measure, filter: None, own_baseline: false, from_command_line: false }
    }

    /// Whether levels may be left out.
    pub fn is_filtered(&self) -> bool {
        self.filter.is_some()
    }

    pub fn selects(&self, level: usize) -> bool {
        let id = criterion_id(level);
        self.filter.as_ref().is_none_or(|filter| filter.is_match(&id))
    }
}

/// Modes, by flag or environment variable, that leave nothing to base a decision on; with the error message.
const REFUSED: [(&str, &str); 4] = [
    (
        "CARGO_CRITERION_PORT",
        "cargo-criterion saves no estimates that `recommend` could read, so this would send load for nothing.\n\nUse `cargo bench` instead.",
    ),
    (
        "--profile-time",
        "--profile-time iterates without measuring or saving, so it would send load to the endpoint for nothing.\n\nTo profile the client, use `cargo bench --bench client_cost`.",
    ),
    (
        "--load-baseline",
        "--load-baseline shows an old result and measures nothing, so there would be nothing to decide from.\n\nTo decide from what is on disk, use `cargo run --bin recommend`.",
    ),
    (
        "--quick",
        "Criterion's --quick has no warm-up and invents its second sample, so nothing could be decided from it.\n\nUse `LLM_BENCH_QUICK=1 cargo bench` instead: it sends no more requests than make the answer certain.",
    ),
];

fn filter(args: &[String], exact: bool, ignored: bool) -> Result<Option<Regex>, SweepError> {
    let is_value = |at: usize| at > 0 && WITH_VALUE.contains(&args[at - 1].as_str());
    let text = (0..args.len()).find(|&at| !args[at].starts_with('-') && !is_value(at)).map(|at| &args[at]);
    let pattern = match text {
        // Matches nothing, since no id is empty: none of the benchmarks is marked as ignored.
        _ if ignored => "^$".to_owned(),
        None => return Ok(None),
        Some(text) if exact => format!("^{}$", regex::escape(text)),
        Some(text) => text.clone(),
    };
    let pattern = Regex::new(&pattern)
        .map_err(|error| SweepError::Refused(format!("the filter `{pattern}` is not a regular expression: {error}")))?;
    Ok(Some(pattern))
}

/// Criterion, configured so that its command line does not affect what is measured.
pub(super) struct Bench {
    criterion: Criterion,
    /// Whether to suppress Criterion's results, because the terminal shows the curve.
    is_quiet: bool,
}

impl Bench {
    pub fn new(args: &CriterionArgs, places: &Places, fingerprint: &str) -> Self {
        // Suppresses the complaint about a missing gnuplot, which we do not use. This must end before
        // the command line is parsed: `--help` exits the process, and its output must not be lost.
        let stdio = stdio::hush(false);
        // By default, gnuplot is used if it is installed, and its plots differ. The folder must be the one read later.
        let criterion =
            Criterion::default().plotting_backend(PlottingBackend::Plotters).output_directory(&places.criterion);
        drop(stdio);
        let criterion = if args.from_command_line { criterion.configure_from_args() } else { criterion };
        // With a shared baseline, the figures of another endpoint would show up as a regression.
        let baseline = format!("fingerprint-{fingerprint}");
        let criterion = if args.own_baseline { criterion } else { criterion.save_baseline(baseline) };
        Bench { criterion, is_quiet: !args.from_command_line && std::io::stdout().is_terminal() }
    }

    pub fn group(&mut self) -> Group<'_> {
        let mut group = self.criterion.benchmark_group(GROUP);
        group
            .warm_up_time(Duration::from_nanos(1))
            .measurement_time(Duration::from_nanos(1))
            .sampling_mode(SamplingMode::Flat)
            .sample_size(SAMPLES)
            // The fewest that Criterion accepts without a warning. Only its own report uses its intervals.
            .nresamples(1_001);
        Group { group, is_quiet: self.is_quiet }
    }

    pub fn finish(&self) {
        self.criterion.final_summary();
    }
}

pub(super) struct Group<'a> {
    group: BenchmarkGroup<'a, WallTime>,
    is_quiet: bool,
}

/// Panic payload that unwinds out of Criterion when the run is interrupted: missing samples must not be made up.
struct Interrupted;

impl Group<'_> {
    /// Runs one benchmark. `sample` returns how long that many iterations took, or `None` if there are no more.
    pub fn bench(&mut self, level: usize, mut sample: impl FnMut(u64) -> Option<Duration>) {
        let id = BenchmarkId::new("level", level);
        self.group.throughput(Throughput::Elements(level as u64));
        // Criterion's progress line assumes a single thread, and it always warns about one iteration per
        // sample. Both go to stderr, which is shown only if it panics; its results go to stdout.
        let is_quiet = self.is_quiet;
        let mut hushed = Some(stdio::hush(is_quiet));
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            self.group.bench_function(id, |bencher| {
                bencher.iter_custom(|iterations| {
                    hushed = None;
                    let sample = sample(iterations);
                    hushed = Some(stdio::hush(is_quiet));
                    sample.unwrap_or_else(|| resume_unwind(Box::new(Interrupted)))
                });
            });
        }));
        if let Err(payload) = unwound
            && !payload.is::<Interrupted>()
        {
            hushed.into_iter().for_each(stdio::Hush::say);
            resume_unwind(payload);
        }
    }

    pub fn finish(self) {
        self.group.finish();
    }
}
