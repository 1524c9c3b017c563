//! A whole run: each measurement a Criterion benchmark, on disk when it ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;

use super::criterion::{Bench, Group};
use super::load_thread::{Load, Planned};
use super::plan::Plan;
use super::search::{Search, Stage, Step};
use crate::client::{Endpoint, LlmError};
use crate::decide::Note;
use crate::decide::compare::Baseline;
use crate::figures::{self, LevelState, Requests};
use crate::load::open_files::{self, TooFewFiles};
use crate::monitor::{Live, MetricsError, MetricsServer};
use crate::prompts::{self, Prompt, PromptError};
use crate::record::{GROUP, Identity, Places, ResultsError, Run, RunSettings, criterion_group};
use crate::report::words::{self, list};
use crate::settings::Settings;
use crate::simulator::SimulatorError;
use crate::stdio;

pub use super::criterion::{CriterionArgs, Mode};
pub use super::load_thread::transport;
pub use super::stop::{INTERRUPTED, Signal, Stop, signal};

/// Why a sweep could not be made.
#[derive(Debug, Error)]
pub enum SweepError {
    #[error(transparent)]
    Prompts(#[from] PromptError),
    #[error(transparent)]
    Client(#[from] LlmError),
    #[error(transparent)]
    Simulator(#[from] SimulatorError),
    #[error(transparent)]
    Results(#[from] ResultsError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A mode of Criterion's in which nothing true can be measured.
    #[error("{0}")]
    Refused(String),
    #[error("the load thread: {0}")]
    Thread(#[from] std::io::Error),
    #[error("{0}")]
    Endpoint(String),
    #[error(transparent)]
    OpenFiles(#[from] TooFewFiles),
    #[error("{0}\n\nRaise the limit, or send less: lower benchmark.levels, total_requests or request.max_tokens.")]
    OverBudget(String),
    #[error("no level matches the filter; the ids are {GROUP}/level/N with N one of {0:?}")]
    NothingMatches(Vec<usize>),
}

/// What a sweep leaves behind.
#[derive(Debug)]
pub struct Swept {
    /// The run, its figures included. Empty in test and list mode.
    pub run: Run,
    /// Why it ended before all levels were measured.
    pub stopped: Option<Stop>,
    pub notes: Vec<Note>,
    pub began: Instant,
    /// Seconds of load, all levels together.
    pub load_s: f64,
    /// Kept until the last output of the run is written.
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
    let identity = Identity::of(settings, &prompts);
    let run = Run::new(places, identity.clone(), run_settings(settings, &plan));
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
    // Before anything is sent: that metrics cannot be served must not come out afterwards.
    let address = settings.metrics_addr.filter(|_| args.mode == Mode::Measure);
    let metrics = address.map(|address| MetricsServer::start(address, live.clone())).transpose()?;
    let mut bench = Bench::new(args, places, &identity.fingerprint());
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
        let mut group = bench.group(first);
        while let Some(step) = next.filter(|step| criterion_group(*step) == criterion_group(first)) {
            sweep.measure(&mut group, step)?;
            next = sweep.next(&mut search);
        }
        group.finish();
    }
    let mut swept = sweep.swept;
    bench.finish();
    // Outside of a level there was none to be cut, and yet the run was not to go on.
    let asked_to_stop = load.as_ref().and_then(|load| load.stopper.reason());
    swept.stopped = swept.stopped.or(asked_to_stop.filter(|&reason| reason == Stop::Interrupted));
    if let Some(load) = load.filter(|_| args.mode == Mode::Test) {
        let sent = load.simulator.map_or(0, |simulator| simulator.log().len());
        eprintln!("Test mode: {sent} requests to the embedded simulator, none elsewhere");
    }
    Ok(swept)
}

struct Sweep<'a> {
    settings: &'a Settings,
    mode: Mode,
    plan: &'a Plan,
    load: Option<&'a Load>,
    swept: Swept,
    /// Of each measurement in the manifest.
    requests: Vec<Requests>,
    sent: u64,
    /// How long each level took when it was measured last, seconds.
    took_s: BTreeMap<usize, f64>,
    /// Until when the server asked to be left alone.
    not_before: Option<Instant>,
    round: u32,
}

impl<'a> Sweep<'a> {
    fn new(settings: &'a Settings, mode: Mode, plan: &'a Plan, load: Option<&'a Load>, swept: Swept) -> Self {
        Sweep {
            settings,
            mode,
            plan,
            load,
            swept,
            requests: Vec::new(),
            sent: 0,
            took_s: BTreeMap::new(),
            not_before: None,
            round: 0,
        }
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
        self.swept.run.manifest.about.settings.model_is_listed = is_listed;
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
        // A level that was measured before takes about as long again; how long another takes is unknown.
        let end_s = self.took_s.get(&step.level).map(|took| took + self.swept.began.elapsed().as_secs_f64());
        let too_late = limit_s.zip(end_s).is_some_and(|(limit, end)| end > limit);
        self.plan.no_room(self.settings, self.sent, &further).or(too_late.then_some("max_minutes"))
    }

    fn measure(&mut self, group: &mut Group, step: Step) -> Result<(), SweepError> {
        let planned = Planned {
            step,
            plan: self.plan.level_plan(self.settings, step.level),
            not_before: self.not_before,
            is_first: self.swept.run.summaries.is_empty(),
        };
        let (load, mode, run) = (self.load, self.mode, &self.swept.run);
        let mut in_progress = None;
        group.bench(step, |iterations| match mode {
            Mode::Measure => {
                let begun = in_progress.get_or_insert_with(|| load.map(|load| load.begin(&planned, run)));
                begun.as_mut()?.as_mut().ok()?.next_sample(iterations)
            }
            Mode::Test | Mode::List => Some(load?.one_request()),
        });
        let Some(in_progress) = in_progress.flatten() else { return Ok(()) };
        let ended = in_progress?.finish()?;
        let stopped = load.and_then(|load| load.stopper.reason());
        let stopped = stopped.filter(|_| ended.measurement.state == LevelState::Cut);
        self.sent += ended.sent;
        self.took_s.insert(step.level, ended.load_s);
        self.not_before = ended.not_before;
        self.requests.push(ended.requests);
        let swept = &mut self.swept;
        swept.load_s += ended.load_s;
        swept.stopped = stopped;
        swept.notes.extend(stopped.map(|stop| Note::Stopped { level: step.level, why: stop.into() }));
        let measurements = swept.run.manifest.levels.iter().chain([&ended.measurement]);
        let level: Vec<_> =
            measurements.zip(&self.requests).filter(|(measurement, _)| measurement.concurrency == step.level).collect();
        let summary = figures::summarize(&level, swept.run.manifest.about.settings.limits());
        swept.run.level_ended(ended.measurement, summary)?;
        match (stopped, ended.last_failure) {
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
        total_requests: Some(benchmark.total_requests),
        warmup_requests: Some(benchmark.warmup_requests),
        request_timeout_s: Some(settings.config.llm.request_timeout),
        seed: Some(benchmark.seed),
        quick: settings.quick,
        model_is_listed: None,
        request: Some(benchmark.request.clone()),
        policy: Some(settings.config.policy.clone()),
    }
}
