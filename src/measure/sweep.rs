//! Levels through Criterion: hands the closed loop's windows over as samples. The only file that knows Criterion's API.
//!
//! Per level, Criterion makes one warm-up call and ten measuring calls. The loop runs beside it on a thread of its
//! own and never waits for it: each call only receives the next window. So nothing drains between iterations, and
//! Criterion's analysis costs the measurement nothing.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, PlottingBackend, SamplingMode, Throughput};
use hdrhistogram::Histogram;
use regex::Regex;
use thiserror::Error;
use tokio::sync::watch;

use crate::client::Endpoint;
use crate::client::outcome::{Failed, Phase, RateLimit, Reply, RequestOutcome};
use crate::client::redact;
use crate::client::{LlmError, Transport};
use crate::decide::Note;
use crate::decide::compare::Baseline;
use crate::figures::reasons::EarlyEnd;
use crate::figures::{ClientLoad, LevelState, Reach, Sample};
use crate::load::closed_loop::{self, Ending, LoopPlan, LoopRecord, Observer, Ticket, Window};
use crate::load::open_files::{self, TooFewFiles};
use crate::load::preflight::{self, Probe};
use crate::load::self_check::SelfCheck;
use crate::load::server_load::ServerWatch;
use crate::load::target::Target;
use crate::measure::plan::{Plan, SAMPLES};
use crate::measure::search::{Search, Stage, Step};
use crate::monitor::{Counts, LevelMonitor, Live, MetricsError, MetricsServer};
use crate::prompts::{self, Prompt, PromptError};
use crate::record::{
    GROUP, Identity, LevelRecord, Places, ResultsError, Run, RunSettings, SidecarWriter, criterion_group, criterion_id,
};
use crate::report::words::{self, list};
use crate::settings::{Config, Settings};
use crate::simulator::{Simulator, SimulatorError};
use crate::stdio;

/// Why a sweep could not be made.
#[derive(Debug, Error)]
pub enum SweepError {
    /// The prompts.
    #[error(transparent)]
    Prompts(#[from] PromptError),
    /// The client.
    #[error(transparent)]
    Client(#[from] LlmError),
    /// The simulator.
    #[error(transparent)]
    Simulator(#[from] SimulatorError),
    /// The files.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A mode of Criterion's in which nothing true can be measured.
    #[error("{0}")]
    Refused(String),
    /// A thread or runtime could not be made.
    #[error("cannot start the load thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The endpoint does not work at all.
    #[error("{0}")]
    Endpoint(String),
    /// The highest level needs more connections than this process may have.
    #[error(transparent)]
    OpenFiles(#[from] TooFewFiles),
    /// The budget has no room for a single level.
    #[error("{0}\n\nRaise the limit, or send less: lower benchmark.levels, total_requests or request.max_tokens.")]
    OverBudget(String),
    /// No level matches the filter.
    #[error("no level matches the filter; the ids are {GROUP}/level/N with N one of {0:?}")]
    NothingMatches(Vec<usize>),
}

// ---- what Criterion was asked to do ----

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

// ---- the sweep ----

/// What a sweep leaves behind.
#[derive(Debug)]
pub struct Swept {
    /// The run, its figures included. Empty in test and list mode.
    pub run: Run,
    /// Why it ended before all levels were measured.
    pub stopped: Option<Stop>,
    /// What else is worth knowing.
    pub notes: Vec<Note>,
    /// When it began.
    pub began: Instant,
    /// Seconds of load, all levels together.
    pub load_s: f64,
    /// What is still to be said of it is said like the rest.
    pub stdio: stdio::Guard,
}

/// Runs the sweep: each measurement a Criterion benchmark, on disk when it ends. First the levels of the list or of an
/// adaptive search, then the contenders again while the answer is not clear, and at last what fell against the baseline.
///
/// # Errors
/// If it cannot begin, if the endpoint does not answer at all, or if a file cannot be written.
pub fn run(
    settings: &Settings,
    args: &CriterionArgs,
    places: &Places,
    baseline: Option<Baseline>,
) -> Result<Swept, SweepError> {
    let began = Instant::now();
    let prompts = prompts::of_run(settings)?;
    let plan = match args.mode {
        Mode::Measure if !args.is_filtered() => Plan::whole(settings, &prompts),
        _ => Plan::new(settings, &prompts, |level| args.selects(level)),
    };
    let plan = plan.against(baseline.as_ref());
    let run = Run::new(places, Identity::of(settings, &prompts), run_settings(settings, &plan));
    if plan.levels.is_empty() && args.mode == Mode::Measure {
        return Err(match plan.over_budget_note() {
            Some(note) => SweepError::OverBudget(words::note(&note)),
            None => SweepError::NothingMatches(plan.configured),
        });
    }
    if let Some(highest) = plan.levels.last().filter(|_| args.mode == Mode::Measure) {
        open_files::allow(highest.level, settings.endpoint == Endpoint::Simulator)?;
    }
    let live = Arc::new(Live::default());
    // Before anything is sent: who wants to watch must not learn afterwards that nothing was to be seen.
    let address = settings.metrics_addr.filter(|_| args.mode == Mode::Measure);
    let metrics = address.map(|address| MetricsServer::start(address, live.clone())).transpose()?;
    let mut criterion = criterion(args, places, &run.manifest.fingerprint);
    let stdio = stdio::guard();
    if args.mode == Mode::Measure {
        run.begin()?;
    }
    let load = (args.mode != Mode::List).then(|| Load::start(settings, args.mode, &prompts, &run, live)).transpose()?;
    if args.mode == Mode::Measure {
        eprint!("{}", plan.describe(settings));
        if let Some(metrics) = &metrics {
            eprintln!("Metrics: http://{}/metrics", metrics.address());
        }
    }
    let swept =
        Swept { run, stopped: None, notes: plan.over_budget_note().into_iter().collect(), began, load_s: 0.0, stdio };
    let mut sweep = Sweep::new(settings, args.mode, &plan, load.as_ref(), swept);
    sweep.preflight(&prompts)?;
    let mut search = plan.search(&settings.config.policy).against(baseline);
    let mut next = sweep.next(&mut search);
    while let Some(first) = next {
        let mut group = criterion.benchmark_group(criterion_group(first));
        configure(&mut group);
        while let Some(step) = next.filter(|step| criterion_group(*step) == criterion_group(first)) {
            sweep.measure(&mut group, step)?;
            next = sweep.next(&mut search);
        }
        group.finish();
    }
    let mut swept = sweep.swept;
    criterion.final_summary();
    // Outside of a level there was none to be cut, and yet the run was not to go on.
    let asked_to_stop = load.as_ref().and_then(|load| load.stopper.reason());
    swept.stopped = swept.stopped.or(asked_to_stop.filter(|&reason| reason == Stop::Interrupted));
    if let Some(load) = load.filter(|_| args.mode == Mode::Test) {
        let sent = load.simulator.map_or(0, |simulator| simulator.log().len());
        eprintln!("Test mode: {sent} requests to the embedded simulator, none elsewhere");
    }
    Ok(swept)
}

/// A sweep in hand.
struct Sweep<'a> {
    settings: &'a Settings,
    mode: Mode,
    plan: &'a Plan,
    load: Option<&'a Load>,
    swept: Swept,
    /// Requests sent so far.
    sent: u64,
    /// How long each level took when it was measured last, seconds.
    took_s: BTreeMap<usize, f64>,
    /// Until when the server asked to be left alone.
    not_before: Option<Instant>,
    round: u32,
}

impl<'a> Sweep<'a> {
    fn new(settings: &'a Settings, mode: Mode, plan: &'a Plan, load: Option<&'a Load>, swept: Swept) -> Self {
        Sweep { settings, mode, plan, load, swept, sent: 0, took_s: BTreeMap::new(), not_before: None, round: 0 }
    }

    /// Sends two of the run's prompts first; one that stays refused ends the run.
    fn preflight(&mut self, prompts: &[Prompt]) -> Result<(), SweepError> {
        let Some(load) = self.load.filter(|_| self.mode == Mode::Measure) else { return Ok(()) };
        let probes = load.preflight(prompts, &self.swept.run)?;
        self.sent += probes.sent;
        let model = &self.settings.config.llm.model;
        let is_listed = probes.models.as_ref().map(|models| models.contains(model));
        if let Some(models) = probes.models.filter(|_| is_listed == Some(false)) {
            eprintln!("Note: the server does not list the model {model}; it has: {}", models.join(", "));
        }
        self.swept.run.manifest.settings.model_is_listed = is_listed;
        match probes.probes.iter().find(|probe| probe.is_refused()) {
            Some(probe) => Err(SweepError::Endpoint(words::refused_prompt(probe, self.settings))),
            None => Ok(()),
        }
    }

    /// The next measurement, unless the run was stopped or the budget has no room for it.
    fn next(&mut self, search: &mut Search) -> Option<Step> {
        if self.swept.stopped.is_some() || self.load.is_some_and(|load| load.stopper.reason().is_some()) {
            return None;
        }
        let step = search.next(&self.swept.run.summaries)?;
        if self.mode != Mode::Measure {
            return Some(step);
        }
        if let Some(key) = self.no_room(step) {
            let again = step.stage == Stage::Confirm;
            self.swept.notes.push(Note::NoRoom { levels: vec![step.level], again, key: key.to_owned() });
            return None;
        }
        if step.round > self.round {
            self.round = step.round;
            let mut levels: Vec<usize> = search.queued().chain([step.level]).collect();
            levels.sort_unstable();
            eprintln!("Confirm round {}: level {} once more", self.round, list(&levels));
        }
        Some(step)
    }

    fn no_room(&self, step: Step) -> Option<&'static str> {
        let further = self.plan.level_plan(self.settings, step.level);
        let limit_s = self.settings.config.benchmark.budget.max_minutes.map(|minutes| 60.0 * minutes);
        // A level that was measured before takes about as long again; of another nothing is known.
        let end_s = self.took_s.get(&step.level).map(|took| took + self.swept.began.elapsed().as_secs_f64());
        let too_late = limit_s.zip(end_s).is_some_and(|(limit, end)| end > limit);
        self.plan.no_room(self.settings, self.sent, &further).or(too_late.then_some("max_minutes"))
    }

    fn measure(&mut self, group: &mut BenchmarkGroup<'_, WallTime>, step: Step) -> Result<(), SweepError> {
        group.throughput(Throughput::Elements(step.level as u64));
        let measurement = Measurement {
            step,
            plan: self.plan.level_plan(self.settings, step.level),
            not_before: self.not_before,
            is_first: self.swept.run.summaries.is_empty(),
        };
        let Some(ended) = bench_level(group, self.mode, &measurement, self.load, &self.swept.run)? else {
            return Ok(());
        };
        self.sent += ended.sent;
        self.took_s.insert(step.level, ended.load_s);
        self.not_before = ended.not_before;
        let swept = &mut self.swept;
        swept.load_s += ended.load_s;
        swept.stopped = ended.stopped;
        swept.notes.extend(ended.stopped.map(|stop| Note::Stopped { level: step.level, why: stop.into() }));
        swept.run.level_ended(ended.record)?;
        match (ended.stopped, ended.last_failure) {
            (Some(Stop::NothingWorks), Some(failed)) => {
                Err(SweepError::Endpoint(words::endpoint_problem(&failed, self.settings)))
            }
            _ => Ok(()),
        }
    }
}

fn run_settings(settings: &Settings, plan: &Plan) -> RunSettings {
    let benchmark = &settings.config.benchmark;
    RunSettings {
        levels: plan.configured.clone(),
        total_requests: benchmark.total_requests,
        warmup_requests: benchmark.warmup_requests,
        request_timeout_s: settings.config.llm.request_timeout,
        seed: benchmark.seed,
        quick: settings.quick,
        model_is_listed: None,
        request: serde_json::json!(benchmark.request),
        policy: settings.config.policy.clone(),
    }
}

fn criterion(args: &CriterionArgs, places: &Places, fingerprint: &str) -> Criterion {
    // It says at once where there is no gnuplot. It ends the process after `--help`, when nothing may be held back.
    let stdio = stdio::guard();
    // Gnuplot would be taken wherever it is installed, and draws differently. The folder is the one that is read later.
    let criterion =
        Criterion::default().plotting_backend(PlottingBackend::Plotters).output_directory(&places.criterion);
    drop(stdio);
    let criterion = if args.from_command_line { criterion.configure_from_args() } else { criterion };
    // Another endpoint's figures would show as a regression.
    if args.own_baseline { criterion } else { criterion.save_baseline(format!("fingerprint-{fingerprint}")) }
}

/// Group settings beat the command line, so that what is measured does not depend on it.
fn configure(group: &mut BenchmarkGroup<'_, WallTime>) {
    group
        .warm_up_time(Duration::from_nanos(1))
        .measurement_time(Duration::from_nanos(1))
        .sampling_mode(SamplingMode::Flat)
        .sample_size(SAMPLES)
        // The fewest it takes without a warning. Its intervals are for its own report; ours come from the records.
        .nresamples(1_001);
}

/// One measurement to make.
#[derive(Clone, Copy)]
struct Measurement {
    step: Step,
    plan: LoopPlan,
    /// The server asked to be left alone until then.
    not_before: Option<Instant>,
    /// Whether it is the run's first.
    is_first: bool,
}

/// A measurement that has run.
struct LevelEnd {
    record: LevelRecord,
    stopped: Option<Stop>,
    load_s: f64,
    sent: u64,
    last_failure: Option<Failed>,
    not_before: Option<Instant>,
}

/// Unwinds out of Criterion when the run is interrupted: the iterations that are missing must not be invented.
struct Interrupted;

fn bench_level(
    group: &mut BenchmarkGroup<'_, WallTime>,
    mode: Mode,
    measurement: &Measurement,
    load: Option<&Load>,
    run: &Run,
) -> Result<Option<LevelEnd>, SweepError> {
    let Step { level, stage, .. } = measurement.step;
    let id =
        if stage == Stage::Confirm { BenchmarkId::from_parameter(level) } else { BenchmarkId::new("level", level) };
    let mut hand: Option<Result<LevelInHand, SweepError>> = None;
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        group.bench_with_input(id, measurement, |bencher, measurement| {
            let Some(load) = load else { return bencher.iter(|| ()) };
            bencher.iter_custom(|iterations| match mode {
                Mode::Measure => match hand.get_or_insert_with(|| load.begin(measurement, run)) {
                    Ok(level) => level.next_sample(iterations).unwrap_or_else(|| resume_unwind(Box::new(Interrupted))),
                    Err(_) => resume_unwind(Box::new(Interrupted)),
                },
                Mode::Test | Mode::List => load.one_request(),
            });
        });
    }));
    if let Err(payload) = unwound
        && !payload.is::<Interrupted>()
    {
        resume_unwind(payload);
    }
    hand.transpose()?.map(LevelInHand::finish).transpose()
}

/// A level on the load thread, as Criterion's thread sees it.
struct LevelInHand {
    measurement: Measurement,
    events: mpsc::Receiver<Event>,
    handed: Vec<f64>,
    warmed_up: bool,
    ended: Option<Box<LoopEnd>>,
    stopper: Stopper,
    watch: Option<Arc<ServerWatch>>,
    monitor: LevelMonitor,
}

enum Event {
    Window(Window),
    Ended(Box<LoopEnd>),
}

struct LoopEnd {
    record: LoopRecord,
    began: Instant,
    load_s: f64,
    itl_histogram: Vec<(u64, u64)>,
    last_failure: Option<Failed>,
    not_before: Option<Instant>,
    reach: Reach,
    rate_limit: Option<RateLimit>,
    client: ClientLoad,
    sidecar: SidecarWriter,
}

impl LevelInHand {
    /// The next window as Criterion's time of `iterations` waves; `None` once the run is interrupted.
    fn next_sample(&mut self, iterations: u64) -> Option<Duration> {
        self.monitor.show();
        let per_wave = self.next_window();
        // Criterion has something to say after its warm-up, after the last sample, and whenever it is left early.
        if per_wave.is_none() || self.handed.is_empty() || self.handed.len() == SAMPLES {
            self.monitor.hide();
        }
        Some(per_wave?.saturating_mul(u32::try_from(iterations).unwrap_or(u32::MAX)))
    }

    fn next_window(&mut self) -> Option<Duration> {
        let window = match self.events.recv() {
            Ok(Event::Window(window)) => window,
            Ok(Event::Ended(end)) => {
                self.ended = Some(end);
                return None;
            }
            // The load thread has panicked and said why.
            Err(_) => return None,
        };
        if !self.warmed_up && self.measurement.is_first && window.succeeded == 0 {
            self.stopper.stop(Stop::NothingWorks);
            return None;
        }
        let per_wave = time_per_wave(&window, self.measurement.step.level);
        if std::mem::replace(&mut self.warmed_up, true) {
            self.handed.push(per_wave.as_nanos() as f64);
        }
        Some(per_wave)
    }

    /// Waits for the drain and the sidecar.
    fn finish(mut self) -> Result<LevelEnd, SweepError> {
        self.monitor.show();
        while self.ended.is_none() {
            match self.events.recv() {
                Ok(Event::Window(_)) => {}
                Ok(Event::Ended(end)) => self.ended = Some(end),
                Err(_) => return Err(SweepError::Thread(std::io::Error::other("it ended too early"))),
            }
        }
        let end = *self.ended.take().ok_or_else(|| std::io::Error::other("it left nothing"))?;
        self.monitor.finish(end.load_s);
        end.sidecar.finish()?;
        let plan = &self.measurement.plan;
        let given_up = |why| (LevelState::Hopeless, Some(why));
        let (state, reason) = match end.record.ending {
            Ending::Complete => (LevelState::Complete, None),
            Ending::Hopeless => given_up(EarlyEnd::WarmUpFailed),
            Ending::Stalled => given_up(EarlyEnd::NoSuccess { seconds: plan.patience.as_secs_f64() }),
            Ending::Overdue => given_up(EarlyEnd::TimeLimit { seconds: plan.time_limit.as_secs_f64() }),
            Ending::Cut => (LevelState::Cut, self.stopper.reason().map(EarlyEnd::from)),
        };
        let stopped = self.stopper.reason().filter(|_| state == LevelState::Cut);
        let step = self.measurement.step;
        let record = LevelRecord {
            concurrency: step.level,
            stage: step.stage,
            round: step.round,
            criterion_id: criterion_id(step),
            sample_ns: self.handed,
            window_s: end.record.window_s(),
            samples: end.record.windows.iter().map(sample_of).collect(),
            itl_histogram: end.itl_histogram,
            state,
            reason,
            client: Some(end.client),
            rate_limit: end.rate_limit,
            reach: end.reach,
            server: end.record.window_s().zip(self.watch).and_then(|(window, watch)| {
                let [from, to] = window.map(|at| end.began + Duration::from_secs_f64(at));
                watch.between(from, to)
            }),
        };
        Ok(LevelEnd {
            record,
            stopped,
            load_s: end.load_s,
            sent: end.record.sent,
            last_failure: end.last_failure,
            not_before: end.not_before,
        })
    }
}

/// Window x level / successes: the time in which `level` successes arrive. A window without any counts as one.
fn time_per_wave(window: &Window, level: usize) -> Duration {
    let seconds = window.duration_s() * level as f64 / window.succeeded.max(1) as f64;
    // Criterion drops a benchmark with a sample of 0 ns.
    Duration::from_secs_f64(seconds).max(Duration::from_nanos(1))
}

/// A window of the loop as it is recorded.
pub fn sample_of(window: &Window) -> Sample {
    Sample { duration_s: window.duration_s(), completed: window.completed as u64, succeeded: window.succeeded as u64 }
}

// ---- stopping ----

/// The exit code after Ctrl-C, SIGTERM or SIGHUP.
pub const INTERRUPTED: u8 = 130;

/// Why a run ends before all its levels are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Ctrl-C, SIGTERM or SIGHUP.
    Interrupted,
    /// `benchmark.budget.max_minutes` are over.
    OutOfTime,
    /// Every request of the first level's warm-up failed: the endpoint, not the concurrency, is the matter.
    NothingWorks,
}

impl From<Stop> for EarlyEnd {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Interrupted => EarlyEnd::Interrupted,
            Stop::OutOfTime => EarlyEnd::OutOfTime,
            Stop::NothingWorks => EarlyEnd::WarmUpFailed,
        }
    }
}

/// Stops the loop in hand and those to come; the first reason stays.
#[derive(Clone, Debug)]
struct Stopper {
    signal: Arc<watch::Sender<bool>>,
    reason: Arc<OnceLock<Stop>>,
}

impl Stopper {
    fn new() -> Self {
        Stopper { signal: Arc::new(watch::Sender::new(false)), reason: Arc::default() }
    }

    fn stop(&self, reason: Stop) {
        self.reason.get_or_init(|| reason);
        self.signal.send_replace(true);
    }

    fn reason(&self) -> Option<Stop> {
        self.reason.get().copied()
    }
}

// ---- the load thread ----

type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The thread that makes the load: one current-thread runtime for the whole sweep, so that connections live on.
struct Load {
    jobs: tokio::sync::mpsc::UnboundedSender<Job>,
    stopper: Stopper,
    target: Arc<Target>,
    live: Arc<Live>,
    /// Whether nothing is to be shown of it.
    quiet: bool,
    watch: Option<Arc<ServerWatch>>,
    /// Kept alive, if it is the endpoint.
    simulator: Option<Simulator>,
}

/// A transport to the endpoint, and the simulator behind it if that is the endpoint.
///
/// # Errors
/// If the simulator or the client cannot be set up.
pub fn transport(settings: &Settings) -> Result<(Transport, Option<Simulator>), SweepError> {
    let llm = &settings.config.llm;
    let Endpoint::Url(url) = &settings.endpoint else { return simulated(settings) };
    let request = &settings.config.benchmark.request;
    let transport = Transport::new(url, request.kind, llm, settings.api_key.as_ref())?;
    Ok((transport.hiding(redact::secrets(&request.extra_body)), None))
}

fn simulated(settings: &Settings) -> Result<(Transport, Option<Simulator>), SweepError> {
    let simulator = Simulator::start(settings.config.simulator.clone(), 0)?;
    Ok((transport_to(settings, &simulator)?, Some(simulator)))
}

fn transport_to(settings: &Settings, simulator: &Simulator) -> Result<Transport, SweepError> {
    let url = reqwest::Url::parse(&simulator.base_url()).map_err(std::io::Error::other)?;
    let Config { llm, benchmark, .. } = &settings.config;
    Ok(Transport::new(&url, benchmark.request.kind, llm, None)?)
}

/// Looks at the server by connections of its own.
fn watch(settings: &Settings, simulator: Option<&Simulator>) -> Result<Arc<ServerWatch>, SweepError> {
    let transport = match simulator {
        Some(simulator) => transport_to(settings, simulator)?,
        None => transport(settings)?.0,
    };
    Ok(Arc::new(ServerWatch::start(transport)?))
}

impl Load {
    fn start(
        settings: &Settings,
        mode: Mode,
        prompts: &[Prompt],
        run: &Run,
        live: Arc<Live>,
    ) -> Result<Self, SweepError> {
        let Config { llm, benchmark, .. } = &settings.config;
        // Tests and `--all-targets` never touch somebody's server.
        let (transport, simulator) = if mode == Mode::Measure { transport(settings)? } else { simulated(settings)? };
        let wanted = settings.server_metrics && mode == Mode::Measure;
        let watch = wanted.then(|| watch(settings, simulator.as_ref())).transpose()?;
        let salt = format!("{}/{}", benchmark.seed, *run.manifest.run_id);
        let target = Target::new(transport, &llm.model, &benchmark.request, prompts, salt);
        let stopper = Stopper::new();
        let minutes = benchmark.budget.max_minutes.filter(|_| mode == Mode::Measure);
        watch_signals(&stopper)?;
        let timed = stopper.clone();
        let (jobs, incoming) = tokio::sync::mpsc::unbounded_channel::<Job>();
        std::thread::Builder::new().name("load".to_owned()).spawn(move || serve(incoming, timed, minutes))?;
        Ok(Load { jobs, stopper, target: Arc::new(target), live, quiet: settings.quiet, watch, simulator })
    }

    /// Begins a level; its windows arrive as they close.
    fn begin(&self, measurement: &Measurement, run: &Run) -> Result<LevelInHand, SweepError> {
        let (events, received) = mpsc::channel();
        let Measurement { step, plan, .. } = *measurement;
        let counts = self.live.begin(step.level, step.round, plan.tickets());
        let recorder = Recorder {
            sidecar: run.sidecar(step)?,
            counts: counts.clone(),
            // 1 µs to an hour with three digits; a longer gap than that counts as an hour.
            itl: Histogram::new_with_bounds(1, 3_600_000_000, 3).map_err(std::io::Error::other)?,
            longest_wait: plan.longest_wait,
            last_failure: None,
            not_before: None,
            reach: Reach::default(),
            rate_limit: None,
            self_check: None,
            events: events.clone(),
            target: self.target.clone(),
        };
        let (measurement, stop, target) = (*measurement, self.stopper.signal.subscribe(), self.target.clone());
        let job: Job = Box::new(move || Box::pin(run_level(measurement, stop, target, recorder, events)));
        self.jobs.send(job).map_err(|_| std::io::Error::other("it is gone"))?;
        Ok(LevelInHand {
            measurement,
            events: received,
            handed: Vec::new(),
            warmed_up: false,
            ended: None,
            stopper: self.stopper.clone(),
            watch: self.watch.clone(),
            monitor: LevelMonitor::new(counts, self.quiet),
        })
    }

    /// Sends two of the run's prompts; what is in flight when the run is stopped is given up.
    fn preflight(&self, prompts: &[Prompt], run: &Run) -> Result<Preflight, SweepError> {
        let (done, finished) = mpsc::channel();
        let (target, mut stop) = (self.target.clone(), self.stopper.signal.subscribe());
        let (prompts, mut sidecar) = (prompts.to_vec(), run.preflight_sidecar()?);
        let job: Job = Box::new(move || {
            Box::pin(async move {
                let mut sent = 0;
                let record = |outcome| {
                    sent += 1;
                    sidecar.push(outcome);
                };
                let asked = async {
                    let probes = preflight::preflight(&target, &prompts, record).await;
                    (probes, target.models().await)
                };
                let (probes, models) = tokio::select! {
                    answered = asked => answered,
                    _ = stop.wait_for(|&stop| stop) => Default::default(),
                };
                let _ = done.send((Preflight { probes, models, sent }, sidecar));
            })
        });
        self.jobs.send(job).map_err(|_| std::io::Error::other("it is gone"))?;
        let (preflight, sidecar) = finished.recv().map_err(|_| std::io::Error::other("it ended too early"))?;
        sidecar.finish()?;
        Ok(preflight)
    }

    /// One request, for test mode.
    fn one_request(&self) -> Duration {
        let (done, finished) = mpsc::channel();
        let target = self.target.clone();
        let began = Instant::now();
        let job: Job = Box::new(move || {
            Box::pin(async move {
                let reply = target.send(0, 0).await;
                let _ = done.send(reply);
            })
        });
        let reply = self.jobs.send(job).ok().and_then(|()| finished.recv().ok());
        let failure = reply.map_or(Some("the load thread is gone".to_owned()), |r| r.failure.map(|f| f.message));
        assert_eq!(failure, None, "one request to the simulator");
        began.elapsed().max(Duration::from_nanos(1))
    }
}

/// What came of the prompts sent first.
struct Preflight {
    probes: Vec<Probe>,
    /// As the server lists them.
    models: Option<Vec<String>>,
    sent: u64,
}

fn serve(mut jobs: tokio::sync::mpsc::UnboundedReceiver<Job>, stopper: Stopper, max_minutes: Option<f64>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a tokio runtime");
    runtime.block_on(async move {
        if let Some(minutes) = max_minutes {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs_f64(60.0 * minutes)).await;
                stopper.stop(Stop::OutOfTime);
            });
        }
        while let Some(job) = jobs.recv().await {
            job().await;
        }
    });
}

/// The first signal ends the sweep in good order. A second one, or one after the sweep, ends the process.
///
/// On a thread of its own to the end of the process: the handlers stay as long, and nobody else would listen.
fn watch_signals(stopper: &Stopper) -> std::io::Result<()> {
    let (sweep, reason) = (Arc::downgrade(&stopper.signal), stopper.reason.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let watch = move || runtime.block_on(stop_on_signal(sweep, reason));
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
    Ok(())
}

async fn stop_on_signal(sweep: Weak<watch::Sender<bool>>, reason: Arc<OnceLock<Stop>>) {
    let mut asked = false;
    loop {
        let signal = signal().await;
        if signal == Signal::HangUp {
            stdio::leave_terminal();
            if asked {
                // A lost connection hangs up twice, by the shell and by the kernel.
                continue;
            }
        }
        // That it cannot be said must not stop it.
        let say = |text: &str| drop(writeln!(std::io::stderr(), "\ninterrupted{text}"));
        let Some(signal) = sweep.upgrade().filter(|_| !asked) else {
            stdio::let_go();
            say("");
            std::process::exit(INTERRUPTED.into());
        };
        asked = true;
        Stopper { signal, reason: reason.clone() }.stop(Stop::Interrupted);
        say(": giving up the level in hand (again to kill)");
    }
}

/// What asks this program to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C or SIGTERM.
    End,
    /// SIGHUP: the terminal is gone.
    HangUp,
}

/// Waits for one.
pub async fn signal() -> Signal {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let hang_up = (!is_hang_up_ignored()).then(|| signal(SignalKind::hangup()).ok()).flatten();
        let hung_up = async {
            match hang_up {
                Some(mut hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            return tokio::select! {
                _ = tokio::signal::ctrl_c() => Signal::End,
                _ = terminate.recv() => Signal::End,
                _ = hung_up => Signal::HangUp,
            };
        }
    }
    // If no handler can be set, the system's own ends the program.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
    Signal::End
}

/// Whether this was started by `nohup`, which a handler of ours would undo. Where it cannot be told, it may have been.
#[cfg(unix)]
fn is_hang_up_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    ignored.is_none_or(|mask| mask & 1 != 0)
}

async fn run_level(
    measurement: Measurement,
    mut stop: watch::Receiver<bool>,
    target: Arc<Target>,
    mut recorder: Recorder,
    events: mpsc::Sender<Event>,
) {
    let Measurement { step, plan, not_before, .. } = measurement;
    if let Some(at) = not_before {
        tokio::select! {
            () = tokio::time::sleep_until(at.into()) => {}
            _ = stop.wait_for(|&stop| stop) => {}
        }
    }
    recorder.self_check = Some(SelfCheck::start());
    let send = |ticket: Ticket| target.send_in_round(step.round, step.level, ticket.seq);
    let began = Instant::now();
    let record = closed_loop::run(&plan, stop, send, &mut recorder).await;
    let end = LoopEnd {
        record,
        began,
        load_s: began.elapsed().as_secs_f64(),
        itl_histogram: recorder
            .itl
            .iter_recorded()
            .map(|bin| (bin.value_iterated_to(), bin.count_at_value()))
            .collect(),
        last_failure: recorder.last_failure,
        not_before: recorder.not_before,
        reach: recorder.reach,
        rate_limit: recorder.rate_limit,
        client: recorder.self_check.map(|check| check.result()).unwrap_or_default(),
        sidecar: recorder.sidecar,
    };
    // Criterion's side is gone only if it panicked.
    let _ = events.send(Event::Ended(Box::new(end)));
}

/// Writes down what the loop reports.
struct Recorder {
    sidecar: SidecarWriter,
    counts: Arc<Counts>,
    itl: Histogram<u64>,
    /// A `Retry-After` counts up to this.
    longest_wait: Duration,
    last_failure: Option<Failed>,
    not_before: Option<Instant>,
    reach: Reach,
    rate_limit: Option<RateLimit>,
    self_check: Option<SelfCheck>,
    events: mpsc::Sender<Event>,
    target: Arc<Target>,
}

impl Observer for Recorder {
    fn issued(&mut self, ticket: Ticket) {
        self.counts.issued(ticket.phase);
    }

    fn ended(&mut self, mut outcome: RequestOutcome, reply: Reply) {
        outcome.prompt_size = Some(self.target.prompt_size(outcome.seq));
        self.counts.ended(&outcome);
        self.reach.add(&outcome);
        if outcome.is_success() && outcome.phase == Phase::Measured {
            for gap in reply.gaps_us {
                self.itl.saturating_record(u64::from(gap));
            }
        }
        if let Some(failed) = reply.failure {
            self.last_failure = Some(failed);
        }
        if let Some(asked) = reply.retry_after {
            self.not_before = self.not_before.max(Some(Instant::now() + asked.min(self.longest_wait)));
        }
        self.rate_limit = self.rate_limit.into_iter().chain(reply.rate_limit).reduce(RateLimit::updated);
        self.sidecar.push(outcome);
    }

    fn held(&mut self, permits: usize) {
        self.counts.held(permits);
    }

    fn window(&mut self, window: Window) {
        if let Some(check) = &mut self.self_check {
            check.window_ended();
        }
        let _ = self.events.send(Event::Window(window));
    }
}
