//! Measures two servers in turns, so that a disturbance affects both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::criterion::Mode;
use super::load_thread::{Load, Planned};
use super::plan::{Plan, settled_visit};
use super::stop::Stopper;
use super::sweep::{SweepError, Swept, preflight, run_settings};
use crate::client::Endpoint;
use crate::decide::duet::Pair;
use crate::decide::{Note, value};
use crate::figures::{self, EarlyEnd, LevelState, Measurement, Requests, wilson};
use crate::load::closed_loop::LoopPlan;
use crate::load::open_files;
use crate::load::preflight::AT_MOST;
use crate::monitor::Live;
use crate::prompts;
use crate::record::{Identity, Places, Run};
use crate::report::words;
use crate::settings::Settings;
use crate::stdio;

/// Number of visits to each level of each server. It is even, so that both servers go first equally often.
pub const TURNS: u32 = 6;

/// The runs of both servers, and their throughputs in pairs of visits.
pub struct Duet {
    pub servers: [Swept; 2],
    pub pairs: Vec<Pair>,
}

/// The visits of one turn. Each counts at least a wave, after a warm-up.
pub fn levels(settings: &Settings) -> Vec<LoopPlan> {
    let benchmark = &settings.config.benchmark;
    let completions = |level: usize| level.max(benchmark.total_requests.div_ceil(TURNS as usize));
    benchmark.levels().into_iter().map(|level| settled_visit(settings, level, completions(level))).collect()
}

struct Server<'a> {
    settings: &'a Settings,
    load: Load,
    swept: Swept,
    measured: Vec<Requests>,
    sent: u64,
    not_before: Option<Instant>,
}

/// Visits each level of both servers in turns. Everything is on disk when this returns.
pub fn run(settings: [&Settings; 2], places: &Places) -> Result<Duet, SweepError> {
    let prompts = prompts::of_run(settings[0])?;
    let plan = Plan::empty(settings[0], &prompts);
    let mut levels = levels(settings[0]);
    let highest = levels.last().map_or(0, |plan| plan.level);
    open_files::allow(highest, settings.iter().any(|of| of.endpoint == Endpoint::Simulator))?;
    let each = AT_MOST + u64::from(TURNS) * levels.iter().map(LoopPlan::tickets).sum::<u64>();
    let configured: Vec<usize> = levels.iter().map(|plan| plan.level).collect();
    eprint!("{}", words::plan_of_duet(settings, &configured, TURNS, 2 * each));
    let first = levels.first().and_then(|first| plan.no_room(settings[0], 2 * AT_MOST + first.tickets(), first));
    if let Some(key) = first {
        let note = Note::NoRoom { levels: configured, again: false, key: key.to_owned() };
        return Err(SweepError::OverBudget(words::note(&note)));
    }
    let stopper = Stopper::on_signals()?;
    let began = Instant::now();
    let begin = |settings| -> Result<Server, SweepError> {
        let named = run_settings(settings, configured.clone());
        let mut run = Run::new(places, Identity::of(settings, &prompts), named);
        run.begin()?;
        let live = Arc::new(Live::default());
        let load = Load::start(settings, Mode::Measure, &prompts, &run, live, stopper.clone())?;
        let (earlier, stdio) = (Duration::ZERO, stdio::guard());
        let swept = Swept { run, stopped: None, notes: Vec::new(), began, earlier, load_s: 0.0, stdio };
        Ok(Server { settings, load, swept, measured: Vec::new(), sent: 0, not_before: None })
    };
    let mut servers = [begin(settings[0])?, begin(settings[1])?];
    for server in &mut servers {
        server.sent += preflight(&server.load, server.settings, &prompts, &mut server.swept.run)?;
    }
    let mut pairs = Vec::new();
    'turns: for turn in 0..TURNS {
        let mut failed = Vec::new();
        for (at, level) in levels.iter().enumerate() {
            let sent = servers.iter().map(|server| server.sent).sum::<u64>() + level.tickets();
            if let Some(key) = plan.no_room(settings[0], sent, level) {
                let levels = vec![level.level];
                let note = Note::NoRoom { levels, again: turn > 0, key: key.to_owned() };
                eprintln!("{}", words::note(&note));
                servers[0].swept.notes.push(note);
                break 'turns;
            }
            let mut throughput = [0.0; 2];
            let order = if (turn as usize + at).is_multiple_of(2) { [0, 1] } else { [1, 0] };
            for side in order {
                throughput[side] = servers[side].visit(level, pairs.len() as u32 + 1)?;
                if stopper.reason().is_some() {
                    break 'turns;
                }
            }
            pairs.push(Pair { level: level.level, turn, throughput });
            if servers.iter().any(Server::has_just_failed) {
                failed.push(level.level);
            }
        }
        levels.retain(|plan| !failed.contains(&plan.level));
    }
    let [mut a, mut b] = servers.map(|mut server| {
        server.swept.stopped = stopper.reason();
        let stopped = stopper.reason().zip(server.swept.run.manifest.levels.last());
        let notes = stopped.map(|(why, last)| Note::Stopped { level: last.concurrency, why });
        server.swept.notes.extend(notes);
        server.swept
    });
    // Not every visit was saved as it ended, since they follow each other quickly.
    for swept in [&mut a, &mut b].into_iter().filter(|swept| !swept.run.manifest.levels.is_empty()) {
        swept.run.save()?;
    }
    Ok(Duet { servers: [a, b], pairs })
}

impl Server<'_> {
    /// Makes one visit, including a drain. Returns its throughput, or 0 if most requests failed.
    fn visit(&mut self, plan: &LoopPlan, number: u32) -> Result<f64, SweepError> {
        let planned = Planned::visit(*plan, number, self.not_before);
        let mut visiting = self.load.begin(&planned, &self.swept.run)?;
        let visited = visiting.visited();
        let rest = visiting.finish()?;
        self.sent += rest.sent;
        self.swept.load_s += rest.load_s;
        self.not_before = rest.not_before;
        let Some(mut visited) = visited else { return Ok(0.0) };
        let mut requests = visited.parts.remove(&number).unwrap_or_default();
        rest.parts.into_values().for_each(|later| requests.append(later));
        let mut measurement = visited.measurement;
        if let Some(reason) = mostly_failed(&requests, self.settings.config.policy.max_error_rate) {
            (measurement.state, measurement.reason) = (LevelState::Hopeless, Some(reason));
        }
        let is_hopeless = measurement.state == LevelState::Hopeless;
        measurement.began_s = visited.began.saturating_duration_since(self.swept.began).as_secs_f64();
        let limits = self.swept.run.manifest.limits(self.settings.limits());
        let own = figures::summarize(&[(&measurement, &requests)], limits);
        let is_first = self.measured.is_empty();
        self.measured.push(requests);
        self.swept.run.manifest.levels.push(measurement);
        let levels = &self.swept.run.manifest.levels;
        let of_level: Vec<(&Measurement, &Requests)> =
            levels.iter().zip(&self.measured).filter(|(of, _)| of.concurrency == plan.level).collect();
        let summary = figures::summarize(&of_level, limits);
        self.swept.run.level_ended(plan.level, summary)?;
        let nothing_works = is_first && own.succeeded == Some(0) && self.load.stopper.reason().is_none();
        if let Some(failed) = visited.last_failure.or(rest.last_failure).filter(|_| nothing_works) {
            self.load.stopper.stop(EarlyEnd::WarmUpFailed);
            return Err(SweepError::Endpoint(words::endpoint_problem(&failed, self.settings)));
        }
        // The few requests that an overloaded server still serves are not its throughput at this level.
        Ok(value(&own, self.settings.config.policy.objective).filter(|_| !is_hopeless).unwrap_or_default())
    }

    fn has_just_failed(&self) -> bool {
        self.swept.run.manifest.levels.last().is_some_and(|of| of.state != LevelState::Complete)
    }
}

/// The reason to give up the level if more requests failed than the gate allows, by the Wilson interval. Counts all
/// requests: in a short visit, permits held back after early failures would keep the cohort from showing them.
fn mostly_failed(requests: &Requests, limit: f64) -> Option<EarlyEnd> {
    let all = &requests.rows;
    let failed = all.iter().filter(|request| !request.is_success()).count();
    let [low, _] = wilson(failed as u64, all.len() as u64)?;
    (low >= limit).then_some(EarlyEnd::MostlyFailed { failed, requests: all.len() })
}
