//! Further requests to a server whose recommended level is known, as `verify` and `recheck` send them. Their
//! records go to a run folder without a manifest, so that no decision mistakes them for a measurement.

use std::sync::Arc;

use super::criterion::Mode;
use super::load_thread::{Load, Planned};
use super::plan::Plan;
use super::stop::Stopper;
use super::sweep::SweepError;
use crate::client::Endpoint;
use crate::figures::{ArrivalsEnd, EarlyEnd, OpenLoad, Requests};
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

/// The level and window of each visit (there is no drain in between), and the requests of all visits.
pub type Visited = (Vec<(usize, [f64; 2])>, Requests);

pub struct Afterwards<'a> {
    settings: &'a Settings,
    plan: Plan,
    load: Load,
    pub run: Run,
    /// Requests sent so far.
    pub sent: u64,
    _stdio: stdio::Guard,
}

impl<'a> Afterwards<'a> {
    /// Announces what may be sent, then sends two prompts. `requests` counts the first step and all steps together.
    /// Fails if the budget has no room for the first step, or if the endpoint does not answer.
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
        // Without this check, a server that does not answer would pass for a slow one.
        if let Some(problem) = probes.probes.iter().find_map(|probe| words::problem(probe, settings)) {
            return Err(SweepError::Endpoint(problem));
        }
        Ok(Afterwards { settings, plan, load, run, sent: probes.sent, _stdio: stdio })
    }

    /// The key of the budget limit that `further` more requests might exceed.
    pub fn no_room(&self, further: u64) -> Option<&'static str> {
        self.plan.exceeds(self.settings, self.sent + further)
    }

    pub fn stopped(&self) -> Option<EarlyEnd> {
        self.load.stopper.reason()
    }

    /// Lets requests arrive at the planned rate. `round` numbers the rates of this run, from 1.
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

    /// Makes these visits, until the run is stopped.
    pub fn visits(&mut self, plans: &[LoopPlan]) -> Result<Visited, SweepError> {
        let Some((first, rest)) = plans.split_first() else { return Ok(Visited::default()) };
        let mut visiting = self.load.begin(&Planned::visit(*first, 1, None), &self.run)?;
        let (mut windows, mut requests, mut rest) = (Vec::new(), Requests::default(), rest.iter());
        while let Some(visited) = visiting.visited() {
            windows.extend(visited.measurement.window_s.map(|window| (visited.measurement.concurrency, window)));
            visited.parts.into_values().for_each(|part| requests.append(part));
            match rest.next().filter(|_| self.stopped().is_none()) {
                Some(next) => visiting.go_on(*next),
                None => break,
            }
        }
        let ended = visiting.finish()?;
        self.sent += ended.sent;
        ended.parts.into_values().for_each(|part| requests.append(part));
        Ok((windows, requests))
    }
}
