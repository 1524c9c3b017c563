//! A whole run: measures the levels, saves each measurement, and gives Criterion a benchmark per level.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::criterion::{Bench, Group};
use super::evidence::evidence;
use super::load_thread::{Load, Planned, time_per_wave};
use super::plan::{self, Plan, SAMPLES};
use super::race::{Evidence, Race};
use crate::client::{Endpoint, LlmError};
use crate::decide::compare::Baseline;
use crate::decide::{Note, Raced, judge, open_outages, recommend_after};
use crate::figures::{self, EarlyEnd, LevelState, LevelSummary, Measurement, Requests, Sample, Stage, Step};
use crate::load::closed_loop::LoopPlan;
use crate::load::open_files::{self, TooFewFiles};
use crate::load::recorder::Recorded;
use crate::monitor::{Live, MetricsError, MetricsServer, terminal_width};
use crate::prompts::{self, Prompt, PromptError};
use crate::record::{GROUP, Identity, Places, ResultsError, Resumed, Run, RunSettings, criterion_id};
use crate::report::{text, words};
use crate::settings::Settings;
use crate::simulator::SimulatorError;
use crate::stdio;

pub use super::criterion::{CriterionArgs, Mode};
pub use super::load_thread::transport;
use super::stop::Stopper;
pub use super::stop::{INTERRUPTED, Signal, signal};

/// Why a sweep failed.
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
    /// A Criterion mode that cannot give a valid measurement.
    #[error("{0}")]
    Refused(String),
    #[error("the load thread failed: {0}")]
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

/// The result of a sweep.
#[derive(Debug)]
pub struct Swept {
    /// The run, including its figures. Empty in test and list mode.
    pub run: Run,
    /// Why it ended early, if it did.
    pub stopped: Option<EarlyEnd>,
    pub notes: Vec<Note>,
    pub began: Instant,
    /// Time since `began` that a process measured before this one resumed its run.
    pub earlier: Duration,
    /// Seconds of this process's load at all levels together.
    pub load_s: f64,
    /// Kept until the last output of the run is written.
    pub stdio: stdio::Guard,
}

/// Runs the sweep: measures the listed levels in full, then races among them (among all levels for `auto`) until
/// the answer is sure, and finally measures again what fell against the baseline.
/// With `resume`, continues the latest run where it was cut off.
/// Fails if the run cannot begin, if the endpoint does not answer at all, or if a file cannot be written.
pub fn run(
    settings: &Settings,
    args: &CriterionArgs,
    places: &Places,
    baseline: Option<&Baseline>,
    resume: bool,
) -> Result<Swept, SweepError> {
    let prompts = prompts::of_run(settings)?;
    let mut plan = planned(settings, args, &prompts, baseline)?;
    let (identity, named) = (Identity::of(settings, &prompts), run_settings(settings, plan.configured.clone()));
    let fingerprint = identity.fingerprint();
    let resumed = match resume {
        true => Resumed::latest(places, &identity, &named)?,
        false => Run::new(places, identity, named).into(),
    };
    let Resumed { mut run, requests, visits: earlier, sent } = resumed;
    let (began, measured) = (Instant::now(), run.manifest.measured_until());
    let began = began.checked_sub(measured).unwrap_or(began);
    let in_full: Vec<usize> = run.manifest.in_full().collect();
    if resume {
        plan.without(settings, &in_full, sent);
    }
    let live = Arc::new(Live::of(run.manifest.about.model.as_deref().unwrap_or_default(), &run.manifest.run_id));
    let (ahead, visits) = plan.waves();
    live.plan(ahead, visits);
    // Before anything is sent: a failure to serve the metrics must not surface after the load has begun.
    let address = settings.metrics_addr.filter(|_| args.mode == Mode::Measure);
    let metrics = address.map(|address| MetricsServer::start(address, live.clone())).transpose()?;
    let mut bench = Bench::new(args, places, &fingerprint);
    let stdio = stdio::guard();
    if args.mode == Mode::Measure {
        run.begin()?;
    }
    let start = || Load::start(settings, args.mode, &prompts, &run, live, Stopper::on_signals()?);
    let load = (args.mode != Mode::List).then(start).transpose()?;
    if args.mode == Mode::Measure {
        if resume {
            eprintln!("{}", words::going_on(&run.manifest.run_id, &in_full, sent));
        }
        eprint!("{}", text::fitted(&plan.describe(settings), terminal_width()));
        if let Some(metrics) = &metrics {
            eprintln!("Metrics: http://{}/metrics", metrics.address());
        }
    }
    let notes = plan.over_budget_note().into_iter().collect();
    let swept = Swept { run, stopped: None, notes, began, earlier: measured, load_s: 0.0, stdio };
    let mut sweep = Sweep {
        settings,
        mode: args.mode,
        plan: &plan,
        load: load.as_ref(),
        baseline,
        swept,
        before: requests.len(),
        requests,
        visits: earlier,
        sent,
        not_before: None,
        visited_again: BTreeMap::new(),
        suspects: None,
    };
    if let Some(load) = load.as_ref().filter(|_| args.mode == Mode::Measure) {
        sweep.sent += preflight(load, settings, &prompts, &mut sweep.swept.run)?;
    }
    sweep.summarize_all();
    sweep.measure_all(bench.group())?;
    bench.finish();
    sweep.note_why_it_ended();
    let swept = sweep.swept;
    if let Some(load) = load.filter(|_| args.mode == Mode::Test) {
        let sent = load.simulator.map_or(0, |simulator| simulator.log().len());
        eprintln!("Test mode: {sent} requests to the embedded simulator, none elsewhere");
    }
    Ok(swept)
}

/// Fails if there is nothing to measure.
fn planned(
    settings: &Settings,
    args: &CriterionArgs,
    prompts: &[Prompt],
    baseline: Option<&Baseline>,
) -> Result<Plan, SweepError> {
    let plan = match args.mode {
        Mode::Measure if !args.is_filtered() => Plan::whole(settings, prompts),
        _ => Plan::new(settings, prompts, |level| args.selects(level)),
    };
    let plan = plan.against(baseline);
    match plan.highest() {
        _ if args.mode != Mode::Measure => {}
        Some(highest) => open_files::allow(highest, settings.endpoint == Endpoint::Simulator)?,
        None => {
            return Err(match plan.over_budget_note() {
                Some(note) => SweepError::OverBudget(words::note(&note)),
                None => SweepError::NothingMatches(plan.configured),
            });
        }
    }
    Ok(plan)
}

/// Sends two of the run's prompts first; fails if one is rejected twice. Returns the number of requests sent.
pub(super) fn preflight(
    load: &Load,
    settings: &Settings,
    prompts: &[Prompt],
    run: &mut Run,
) -> Result<u64, SweepError> {
    let probes = load.preflight(prompts, run)?;
    let model = &settings.config.llm.model;
    let is_listed = probes.models.as_ref().map(|models| models.contains(model));
    if let Some(models) = probes.models.filter(|_| is_listed == Some(false)) {
        eprintln!("Note: the server does not list the model {model}; it lists: {}", models.join(", "));
    }
    run.manifest.about.settings.model_is_listed = is_listed;
    // Any other failure may be chance; the sweep will tell.
    match probes.probes.iter().filter(|probe| probe.is_refused()).find_map(|probe| words::problem(probe, settings)) {
        Some(problem) => Err(SweepError::Endpoint(problem)),
        None => Ok(probes.sent),
    }
}

struct Sweep<'a> {
    settings: &'a Settings,
    mode: Mode,
    plan: &'a Plan,
    load: Option<&'a Load>,
    baseline: Option<&'a Baseline>,
    swept: Swept,
    /// For each measurement in the manifest, its requests.
    requests: Vec<Requests>,
    /// Number of measurements, and of visits, before this process resumed the run.
    before: usize,
    visits: u32,
    sent: u64,
    /// The server asked for no requests before this time.
    not_before: Option<Instant>,
    /// How often each level was visited again because of an outage.
    visited_again: BTreeMap<usize, u32>,
    /// Levels that may have fallen against the baseline; `None` until the race is over.
    suspects: Option<BTreeSet<usize>>,
}

/// Maximum number of further visits to a level that an outage disturbed, or to a server that is gone.
const AGAIN: u32 = 3;

impl Sweep<'_> {
    fn measure_all(&mut self, mut group: Group) -> Result<(), SweepError> {
        for full in &self.plan.levels {
            if !self.may_begin(full) {
                break;
            }
            self.measure(&mut group, full)?;
        }
        if self.mode == Mode::Measure {
            self.race()?;
            self.give_visits_to_criterion(&mut group)?;
        }
        group.finish();
        Ok(())
    }

    /// Notes a stop that came between two measurements, so that none of them was cut off.
    fn note_why_it_ended(&mut self) {
        let is_open = self.swept.run.manifest.raced.is_some_and(|raced| !raced.decided);
        let asked = self.load.and_then(|load| load.stopper.reason()).filter(|_| self.swept.stopped.is_none());
        if let Some(why) = asked.filter(|why| is_open || *why == EarlyEnd::Interrupted) {
            self.swept.stopped = Some(why.clone());
            let last = self.swept.run.manifest.levels.last().map(|of| of.concurrency);
            self.swept.notes.extend(last.map(|level| Note::Stopped { level, why }));
        }
    }

    fn is_stopped(&self) -> bool {
        self.swept.stopped.is_some() || self.load.is_some_and(|load| load.stopper.reason().is_some())
    }

    /// False if the run was stopped, or if the budget has no room, which is noted.
    fn may_begin(&mut self, further: &LoopPlan) -> bool {
        if self.is_stopped() {
            return false;
        }
        let key = self.no_room(further).filter(|_| self.mode == Mode::Measure);
        if let Some(key) = key {
            let again = self.swept.run.summaries.iter().any(|of| of.concurrency == further.level);
            self.swept.notes.push(Note::NoRoom { levels: vec![further.level], again, key: key.to_owned() });
        }
        key.is_none()
    }

    fn no_room(&self, further: &LoopPlan) -> Option<&'static str> {
        let limit_s = self.settings.config.benchmark.budget.max_minutes.map(|minutes| 60.0 * minutes);
        let is_late = limit_s.is_some_and(|limit_s| self.swept.began.elapsed().as_secs_f64() > limit_s);
        self.plan.no_room(self.settings, self.sent, further).or(is_late.then_some("max_minutes"))
    }

    fn measure(&mut self, group: &mut Group, plan: &LoopPlan) -> Result<(), SweepError> {
        let planned = Planned {
            step: Step { level: plan.level, stage: Stage::Sweep, round: 0 },
            plan: *plan,
            not_before: self.not_before,
            is_first: self.swept.run.summaries.is_empty(),
        };
        let (load, mode, run) = (self.load, self.mode, &self.swept.run);
        let mut in_progress = None;
        group.bench(plan.level, |iterations| match mode {
            Mode::Measure => {
                let begun = in_progress.get_or_insert_with(|| load.map(|load| load.begin(&planned, run)));
                begun.as_mut()?.as_mut().ok()?.next_sample(iterations)
            }
            Mode::Test | Mode::List => Some(load?.one_request()),
        });
        let Some(in_progress) = in_progress.flatten() else { return Ok(()) };
        let ended = in_progress?.finish()?;
        self.sent += ended.sent;
        self.not_before = ended.not_before;
        self.swept.load_s += ended.load_s;
        self.ended(ended)
    }

    /// Records a finished measurement and updates its level's figures.
    fn ended(&mut self, mut ended: Recorded) -> Result<(), SweepError> {
        let level = ended.measurement.concurrency;
        let own = ended.measurement.round;
        ended.measurement.began_s = ended.began.saturating_duration_since(self.swept.began).as_secs_f64();
        let stopped = self.load.and_then(|load| load.stopper.reason());
        let stopped = stopped.filter(|_| ended.measurement.state == LevelState::Cut);
        self.requests.push(ended.parts.remove(&own).unwrap_or_default());
        self.swept.run.manifest.levels.push(ended.measurement);
        self.take(ended.parts);
        let summary = self.summary(level);
        let swept = &mut self.swept;
        if let Some(load) = self.load {
            load.live.measured(&summary);
        }
        swept.stopped = stopped;
        swept.notes.extend(swept.stopped.clone().map(|why| Note::Stopped { level, why }));
        swept.run.level_ended(level, summary)?;
        match (&swept.stopped, ended.last_failure) {
            (Some(EarlyEnd::WarmUpFailed), Some(failed)) => {
                Err(SweepError::Endpoint(words::endpoint_problem(&failed, self.settings)))
            }
            _ => Ok(()),
        }
    }

    /// Adds requests of earlier visits that have ended since.
    fn take(&mut self, parts: BTreeMap<u32, Requests>) {
        for (visit, later) in parts {
            let of_visit = |of: &Measurement| of.stage == Stage::Visit && of.round == visit;
            if let Some(at) = self.swept.run.manifest.levels.iter().position(of_visit) {
                self.requests[at].append(later);
            }
        }
    }

    fn summary(&self, level: usize) -> LevelSummary {
        let manifest = &self.swept.run.manifest;
        let of_level = manifest.levels.iter().zip(&self.requests).filter(|(of, _)| of.concurrency == level);
        figures::summarize(&of_level.collect::<Vec<_>>(), manifest.limits(self.settings.limits()))
    }

    /// Makes short visits, one after another without a drain, until the answer stands or no more are possible.
    fn race(&mut self) -> Result<(), SweepError> {
        let (Some(load), false) = (self.load, self.plan.race.is_empty()) else { return Ok(()) };
        let mut race = Race::new(self.plan.race.clone(), plan::rules(self.settings));
        let Some(first) = self.next_visit(&mut race) else {
            self.conclude_early(&mut race);
            return self.swept.run.save().map_err(SweepError::from);
        };
        let before = self.sent;
        let planned = Planned::visit(first, self.visits + 1, self.not_before);
        let mut visiting = load.begin(&planned, &self.swept.run)?;
        while let Some(visited) = visiting.visited() {
            self.sent = before + visited.at_most;
            let failed = visited.last_failure.clone().filter(|_| self.swept.run.manifest.levels.is_empty());
            let nothing_works = visited.measurement.samples.iter().all(|sample| sample.succeeded == 0);
            self.ended(visited)?;
            if let Some(failed) = failed.filter(|_| nothing_works && self.swept.stopped.is_none()) {
                load.stopper.stop(EarlyEnd::WarmUpFailed);
                visiting.finish()?;
                return Err(SweepError::Endpoint(words::endpoint_problem(&failed, self.settings)));
            }
            match self.next_visit(&mut race) {
                Some(next) => visiting.go_on(next),
                None => break,
            }
        }
        let rest = visiting.finish()?;
        self.sent = before + rest.sent;
        self.swept.load_s += rest.load_s;
        self.take(rest.parts);
        self.conclude_early(&mut race);
        // The last requests have ended only now.
        self.summarize_all();
        self.swept.run.save().map_err(SweepError::from)
    }

    fn evidence(&self) -> Evidence<'_> {
        let made = self.swept.run.manifest.levels.iter().zip(&self.requests).collect();
        evidence(made, self.sent, self.settings.limits())
    }

    fn conclude(&mut self, raced: Raced) {
        self.swept.run.manifest.raced = Some(raced);
        self.summarize_all();
    }

    /// If the run ended before the race, records which levels may be the answer, and that it is undecided.
    fn conclude_early(&mut self, race: &mut Race) {
        if self.swept.run.manifest.raced.is_none() {
            race.next(&Evidence { sent: u64::MAX, ..self.evidence() });
            self.conclude(Raced { decided: false, ..race.standing() });
        }
    }

    fn summarize_all(&mut self) {
        let visited: BTreeSet<usize> = self.swept.run.manifest.levels.iter().map(|of| of.concurrency).collect();
        for level in visited {
            let summary = self.summary(level);
            self.load.iter().for_each(|load| load.live.measured(&summary));
            self.swept.run.set_summary(summary);
        }
    }

    fn next_visit(&mut self, race: &mut Race) -> Option<LoopPlan> {
        let next = self.wanted_visit(race)?;
        self.may_begin(&next).then_some(next)
    }

    fn wanted_visit(&mut self, race: &mut Race) -> Option<LoopPlan> {
        if self.is_stopped() {
            return None;
        }
        let policy = &self.settings.config.policy;
        let visit = |level| plan::visit_plan(self.settings, plan::rules(self.settings).visit_to(level));
        // A server that is gone may come back; until then, no level shows anything.
        match self.lost_in_a_row() {
            (0, _) => {}
            (lost, _) if lost > AGAIN => return None,
            (1, [last, _]) => return Some(visit(last)),
            (_, [_, served]) => return Some(visit(served)),
        }
        if self.suspects.is_none() {
            let next = race.next(&self.evidence());
            if let Some(load) = self.load {
                let possible = race.possible_picks().map(|pick| pick.ceil() as usize);
                load.live.stands(race.standing().pick, possible);
            }
            if let Some(next) = next {
                return Some(plan::visit_plan(self.settings, next));
            }
            let judged = judge(&self.swept.run.summaries, policy, true);
            let open: Vec<usize> = open_outages(&judged).map(|level| level.summary.concurrency).collect();
            if let Some(level) = open.into_iter().find(|level| self.may_visit_again(*level)) {
                return Some(visit(level));
            }
            // Levels named explicitly for a quick run are measured even if the answer does not need them.
            let made = &self.swept.run.manifest.levels;
            let missing = self.plan.race.iter().find(|&&level| made.iter().all(|of| of.concurrency != level));
            if let Some(&level) = missing.filter(|_| self.settings.quick && self.settings.levels_named) {
                return Some(visit(level));
            }
            self.conclude(race.standing());
        }
        // A fall against the baseline needs a second look. The levels to measure again are chosen once, at the end.
        let (run, baseline) = (&self.swept.run, self.baseline);
        let suspects = self.suspects.get_or_insert_with(|| {
            let decided = recommend_after(run.manifest.raced.as_ref(), &run.summaries, policy);
            baseline.map(|baseline| baseline.suspects(&decided, policy.objective)).unwrap_or_default()
        });
        let level = suspects.pop_first()?;
        Some(LoopPlan { warmup: level, ..plan::level_plan(self.settings, level) })
    }

    /// The number of latest measurements in a row that found no server; the last level, and the lowest one served.
    fn lost_in_a_row(&self) -> (u32, [usize; 2]) {
        let is_lost = |requests: &Requests| requests.is_outage(self.settings.config.policy.max_error_rate);
        let levels = self.swept.run.manifest.levels.iter().map(|of| of.concurrency);
        let lost = self.requests[self.before..].iter().rev().take_while(|requests| is_lost(requests)).count();
        let last = levels.clone().next_back().unwrap_or(1);
        let served = levels.zip(&self.requests).filter(|(_, requests)| !is_lost(requests)).map(|(level, _)| level);
        (lost as u32, [last, served.min().unwrap_or(last)])
    }

    fn may_visit_again(&mut self, level: usize) -> bool {
        let visits = self.visited_again.entry(level).or_default();
        *visits += 1;
        *visits <= AGAIN
    }

    /// Merges the windows of all visits to a level into the ten samples of its Criterion benchmark.
    /// Levels measured in full already have theirs.
    fn give_visits_to_criterion(&mut self, group: &mut Group) -> Result<(), SweepError> {
        if self.is_stopped() {
            return Ok(());
        }
        let levels = &self.swept.run.manifest.levels;
        let in_full: BTreeSet<usize> = self.swept.run.manifest.in_full().collect();
        let warm_from_s = self.swept.run.manifest.raced.map_or(0.0, |raced| raced.warm_from_s);
        let usable = |of: &Measurement| {
            let is_warm = of.middle_s().is_some_and(|at| at >= warm_from_s);
            is_warm && of.state == LevelState::Complete && !in_full.contains(&of.concurrency)
        };
        let mut windows: BTreeMap<usize, Vec<Sample>> = BTreeMap::new();
        for of in levels.iter().filter(|of| usable(of)) {
            windows.entry(of.concurrency).or_default().extend(&of.samples);
        }
        for (level, windows) in windows.into_iter().filter(|(_, windows)| windows.len() >= SAMPLES) {
            let samples: Vec<f64> = (0..SAMPLES)
                .map(|at| &windows[at * windows.len() / SAMPLES..(at + 1) * windows.len() / SAMPLES])
                .map(|part| {
                    let seconds: f64 = part.iter().map(|window| window.duration_s).sum();
                    let succeeded: u64 = part.iter().map(|window| window.succeeded).sum();
                    time_per_wave(seconds, succeeded, level).as_nanos() as f64
                })
                .collect();
            // Criterion makes one call to warm up, and one for each sample.
            let mut calls = samples.first().into_iter().chain(&samples);
            group.bench(level, |iterations| {
                let per_wave = Duration::from_nanos(*calls.next()? as u64);
                Some(per_wave.saturating_mul(u32::try_from(iterations).unwrap_or(u32::MAX)))
            });
            let manifest = &mut self.swept.run.manifest;
            if let Some(first) = manifest.levels.iter_mut().find(|of| of.concurrency == level && usable(of)) {
                first.criterion_id = criterion_id(first.concurrency);
                first.sample_ns = samples;
            }
        }
        self.swept.run.save().map_err(SweepError::from)
    }
}

pub(super) fn run_settings(settings: &Settings, levels: Vec<usize>) -> RunSettings {
    let benchmark = &settings.config.benchmark;
    RunSettings {
        max_concurrent_requests: settings.present(settings.endpoint == Endpoint::Simulator),
        levels,
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
