//! A few requests more to a server whose number is known: what `verify` and `recheck` send. Their records lie in a run
//! folder of their own; no manifest is there, so that no decision takes them for a measurement.

use std::iter;
use std::sync::Arc;

use super::criterion::Mode;
use super::load_thread::{Load, Planned};
use super::plan::{Plan, visit_plan};
use super::race::Visit;
use super::stop::{Stop, Stopper};
use super::sweep::SweepError;
use crate::client::Endpoint;
use crate::decide::recheck::Asked;
use crate::figures::{ArrivalsEnd, OpenLoad, Stage, Step};
use crate::load::closed_loop::LoopPlan;
use crate::load::open_files;
use crate::load::open_loop::Arrivals;
use crate::load::preflight;
use crate::monitor::Live;
use crate::prompts::Prompt;
use crate::record::{Identity, Places, Run, RunSettings};
use crate::report::words;
use crate::settings::Settings;
use crate::stdio;

pub struct Afterwards<'a> {
    settings: &'a Settings,
    plan: Plan,
    load: Load,
    pub run: Run,
    /// At most.
    pub sent: u64,
    _stdio: stdio::Guard,
}

impl<'a> Afterwards<'a> {
    /// Says what may be sent, and sends two prompts. An error if not even the `first` requests fit into the budget, or if the
    /// endpoint does not answer.
    pub fn begin(
        settings: &'a Settings,
        prompts: &[Prompt],
        places: &Places,
        what: &str,
        requests: [u64; 2],
        highest: usize,
    ) -> Result<Self, SweepError> {
        let plan = Plan::empty(settings, prompts);
        let [first, all] = requests.map(|requests| preflight::AT_MOST + requests);
        if let Some(key) = plan.exceeds(settings, first) {
            return Err(SweepError::OverBudget(words::no_room_at_all(first, key)));
        }
        open_files::allow(highest, settings.endpoint == Endpoint::Simulator)?;
        let mut run = Run::new(places, Identity::of(settings, prompts), RunSettings::default());
        let stdio = stdio::guard();
        run.begin()?;
        let load =
            Load::start(settings, Mode::Measure, prompts, &run, Arc::new(Live::default()), Stopper::on_signals()?)?;
        eprint!("{}", plan.describe_requests(settings, what, all));
        let probes = load.preflight(prompts, &run)?;
        // A server that does not answer would be taken for a slow one.
        if let Some(problem) = probes.probes.iter().find_map(|probe| words::problem(probe, settings)) {
            return Err(SweepError::Endpoint(problem));
        }
        Ok(Afterwards { settings, plan, load, run, sent: probes.sent, _stdio: stdio })
    }

    /// The key of the budget that so many requests more might pass.
    pub fn no_room(&self, further: u64) -> Option<&'static str> {
        self.plan.exceeds(self.settings, self.sent + further)
    }

    pub fn stopped(&self) -> Option<Stop> {
        self.load.stopper.reason()
    }

    /// Lets requests arrive at a rate, the `round`-th of this run, from 1.
    pub fn arrivals(&mut self, plan: Arrivals, round: u32) -> Result<OpenLoad, SweepError> {
        let (arrived, outcomes) = self.load.arrivals(plan, round, &self.run)?;
        self.sent += outcomes.len() as u64;
        let late = arrived.late_s.len().saturating_sub(1) as f64 * 0.99;
        let load = OpenLoad {
            rate_rps: plan.rate_rps,
            kept_up: 1.0 - arrived.backlog as f64 / arrived.late_s.len().max(1) as f64,
            late_p99_s: arrived.late_s.get(late as usize).copied(),
            ending: if self.stopped().is_some() { ArrivalsEnd::Cut } else { arrived.ending },
            ..OpenLoad::default()
        };
        Ok(load.with(&outcomes, &self.settings.limits()))
    }
}

/// Visits of a level without a drain between, as they were made, and all their requests.
pub type Visited = (Vec<(usize, [f64; 2])>, Vec<Asked>);

/// Requests of a night at most where the levels allow for it, and of a visit that count at least.
const OF_NIGHT: usize = 100;
const OF_VISIT: usize = 5;

/// Up and down over the levels: half a wave to settle, of the level before where that was higher, since those who waited
/// there are still about; then three quarters of one that count, or more where a night has room for it. Where all begins
/// together, what is in flight after half a wave is as far as it should be on average.
///
/// It ends at the lowest. What is in flight at the end goes on beside fewer and fewer others, and is the faster for it on
/// a server that shares itself out; in the last level's figures it counts by the share of its life. At the highest that
/// would pass for a gain.
pub fn visits_to(settings: &Settings, levels: &[usize]) -> Vec<LoopPlan> {
    // Each level with the one before, which is 0 at first.
    let visits = |passes: usize| -> Vec<(usize, usize)> {
        let pass = |at: usize| -> Vec<usize> {
            let levels = levels.iter().copied();
            if (passes - at).is_multiple_of(2) { levels.collect() } else { levels.rev().collect() }
        };
        let order: Vec<usize> = (0..passes).flat_map(pass).collect();
        iter::once(0).chain(order.iter().copied()).zip(order.iter().copied()).collect()
    };
    let settling = |(before, level): (usize, usize)| if before == level { 0 } else { before.max(level).div_ceil(2) };
    let counted = |level: usize| (level * 3).div_ceil(4).max(OF_VISIT);
    // What settles, and what ends on the way down or after the last visit.
    let beside = |visits: &[(usize, usize)]| -> usize {
        let of_visit = |&visit: &(usize, usize)| settling(visit) + visit.0.saturating_sub(visit.1);
        visits.iter().map(of_visit).sum::<usize>() + visits.last().map_or(0, |last| last.1)
    };
    let least = |visits: &[(usize, usize)]| -> usize { visits.iter().map(|&(_, level)| counted(level)).sum() };
    let fits = |visits: &Vec<(usize, usize)>| beside(visits) + least(visits) <= OF_NIGHT;
    let visits = (1..=OF_NIGHT).map(visits).take_while(fits).last().unwrap_or_else(|| visits(1));
    let least = least(&visits);
    let room = OF_NIGHT.saturating_sub(beside(&visits)).max(least);
    let plan = |visit: (usize, usize)| {
        let completions = counted(visit.1) * room / least;
        LoopPlan { warmup: settling(visit), ..visit_plan(settings, Visit { level: visit.1, completions }) }
    };
    visits.into_iter().map(plan).collect()
}

impl Afterwards<'_> {
    /// Makes these visits, unless it is stopped.
    pub fn visits(&mut self, plans: &[LoopPlan]) -> Result<Visited, SweepError> {
        let Some((first, rest)) = plans.split_first() else { return Ok(Visited::default()) };
        let step = Step { level: first.level, stage: Stage::Visit, round: 1 };
        let planned = Planned { step, plan: *first, not_before: None, is_first: false };
        let mut visiting = self.load.begin(&planned, &self.run)?;
        let (mut windows, mut parts, mut rest) = (Vec::new(), Vec::new(), rest.iter());
        while let Some(visited) = visiting.visited() {
            windows.extend(visited.measurement.window_s.map(|window| (visited.measurement.concurrency, window)));
            parts.extend(visited.parts.into_values());
            match rest.next().filter(|_| self.stopped().is_none()) {
                Some(next) => visiting.go_on(*next),
                None => break,
            }
        }
        let ended = visiting.finish()?;
        self.sent += ended.sent;
        parts.extend(ended.parts.into_values());
        let asked = parts.iter().flat_map(|part| &part.rows).map(|request| Asked {
            start_s: request.start_s,
            end_s: request.end_s,
            tokens: request.output_tokens(),
            failed: !request.is_success(),
        });
        Ok((windows, asked.collect()))
    }
}
