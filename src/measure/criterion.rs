//! The only file that knows Criterion's API.
//!
//! Per level, Criterion makes one warm-up call and ten measuring calls. The loop runs beside it on a thread of its own and
//! never waits for it: each call only receives the next window. So nothing drains between iterations, and Criterion's
//! analysis costs the measurement nothing.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, PlottingBackend, SamplingMode, Throughput};
use regex::Regex;

use super::plan::SAMPLES;
use super::sweep::SweepError;
use crate::figures::{Stage, Step};
use crate::record::{Places, criterion_group, criterion_id};
use crate::stdio;

/// What Criterion's own arguments ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Measure.
    Measure,
    /// `cargo test --benches`: one request per level, simulator only.
    Test,
    /// `--list`: print the ids.
    List,
}

/// The part of Criterion's arguments that matters here. Criterion itself parses them all.
#[derive(Clone, Debug)]
pub struct CriterionArgs {
    /// What to do.
    pub mode: Mode,
    filter: Filter,
    own_baseline: bool,
    /// Whether Criterion is to read the command line itself.
    from_command_line: bool,
}

#[derive(Clone, Debug)]
enum Filter {
    All,
    None,
    Pattern(Regex),
    Exact(String),
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
    /// Of the arguments after the program's name.
    ///
    /// # Errors
    /// For modes that cannot measure a server truly.
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
        if mode == Mode::Measure {
            refuse_untrue(&has)?;
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

    /// As `run` measures: everything.
    pub fn measure_all() -> Self {
        CriterionArgs { mode: Mode::Measure, filter: Filter::All, own_baseline: false, from_command_line: false }
    }

    /// Whether levels may be left out.
    pub fn is_filtered(&self) -> bool {
        !matches!(self.filter, Filter::All)
    }

    /// Whether the filter names this level.
    pub fn selects(&self, level: usize) -> bool {
        let id = criterion_id(Step { level, stage: Stage::Sweep, round: 0 });
        match &self.filter {
            Filter::All => true,
            Filter::None => false,
            Filter::Pattern(pattern) => pattern.is_match(&id),
            Filter::Exact(text) => *text == id,
        }
    }
}

fn refuse_untrue(has: &dyn Fn(&str) -> bool) -> Result<(), SweepError> {
    let refuse = |text: &str| Err(SweepError::Refused(text.to_owned()));
    if std::env::var_os("CARGO_CRITERION_PORT").is_some() {
        return refuse(
            "cargo-criterion saves no estimates that `recommend` could read, so this would send load for nothing.\n\nUse `cargo bench` instead.",
        );
    }
    if has("--profile-time") {
        return refuse(
            "--profile-time iterates without measuring or saving, so it would send load to the endpoint for nothing.\n\nTo profile the client, use `cargo bench --bench client_cost`.",
        );
    }
    if has("--load-baseline") {
        return refuse(
            "--load-baseline shows an old result and measures nothing, so there would be nothing to decide from.\n\nTo decide from what is on disk, use `cargo run --bin recommend`.",
        );
    }
    if has("--quick") {
        return refuse(
            "Criterion's --quick has no warm-up and invents its second sample, so nothing could be decided from it.\n\nUse `LLM_BENCH_QUICK=1 cargo bench` instead: fewer levels and requests, and a provisional result.",
        );
    }
    Ok(())
}

fn filter(args: &[String], exact: bool, ignored: bool) -> Result<Filter, SweepError> {
    if ignored {
        return Ok(Filter::None);
    }
    let mut rest = args.iter();
    let mut positional = None;
    while let Some(arg) = rest.next() {
        if WITH_VALUE.contains(&arg.as_str()) {
            rest.next();
        } else if !arg.starts_with('-') {
            positional = Some(arg);
            break;
        }
    }
    let Some(text) = positional else { return Ok(Filter::All) };
    if exact {
        return Ok(Filter::Exact(text.clone()));
    }
    let pattern = Regex::new(text)
        .map_err(|error| SweepError::Refused(format!("the filter `{text}` is not a regular expression: {error}")))?;
    Ok(Filter::Pattern(pattern))
}

/// Criterion, set up so that what is measured does not depend on its command line.
pub(super) struct Bench(Criterion);

impl Bench {
    pub fn new(args: &CriterionArgs, places: &Places, fingerprint: &str) -> Self {
        // It says at once where there is no gnuplot. It ends the process after `--help`, when nothing may be held back.
        let stdio = stdio::guard();
        // Gnuplot would be taken wherever it is installed, and draws differently. The folder is the one that is read later.
        let criterion =
            Criterion::default().plotting_backend(PlottingBackend::Plotters).output_directory(&places.criterion);
        drop(stdio);
        let criterion = if args.from_command_line { criterion.configure_from_args() } else { criterion };
        // Another endpoint's figures would show as a regression.
        let baseline = format!("fingerprint-{fingerprint}");
        Bench(if args.own_baseline { criterion } else { criterion.save_baseline(baseline) })
    }

    /// The group of a measurement.
    pub fn group(&mut self, step: Step) -> Group<'_> {
        let mut group = self.0.benchmark_group(criterion_group(step));
        group
            .warm_up_time(Duration::from_nanos(1))
            .measurement_time(Duration::from_nanos(1))
            .sampling_mode(SamplingMode::Flat)
            .sample_size(SAMPLES)
            // The fewest it takes without a warning. Its intervals are for its own report; ours come from the records.
            .nresamples(1_001);
        Group(group)
    }

    pub fn finish(&self) {
        self.0.final_summary();
    }
}

pub(super) struct Group<'a>(BenchmarkGroup<'a, WallTime>);

/// Unwinds out of Criterion when the run is interrupted: the iterations that are missing must not be invented.
struct Interrupted;

impl Group<'_> {
    /// Gives Criterion its samples: `sample` tells how long so many iterations took, or `None` once there are no more.
    pub fn bench(&mut self, step: Step, mut sample: impl FnMut(u64) -> Option<Duration>) {
        let Step { level, stage, .. } = step;
        let id =
            if stage == Stage::Confirm { BenchmarkId::from_parameter(level) } else { BenchmarkId::new("level", level) };
        self.0.throughput(Throughput::Elements(level as u64));
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            self.0.bench_function(id, |bencher| {
                bencher.iter_custom(|iterations| {
                    sample(iterations).unwrap_or_else(|| resume_unwind(Box::new(Interrupted)))
                });
            });
        }));
        if let Err(payload) = unwound
            && !payload.is::<Interrupted>()
        {
            resume_unwind(payload);
        }
    }

    pub fn finish(self) {
        self.0.finish();
    }
}
