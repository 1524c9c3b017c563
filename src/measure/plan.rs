//! Plans what a run will send, before its first request and within its budget.

use std::time::Duration;

use crate::client;
use crate::client::Endpoint;
use crate::decide::Note;
use crate::decide::compare::Baseline;
use crate::load::closed_loop::LoopPlan;
use crate::load::preflight;
use crate::measure::race::{Rules, Visit, grid};
use crate::prompts::Prompt;
use crate::report::words::{self, levels};
use crate::settings::{Budget, Levels, Settings};

/// Samples per level, the minimum that Criterion accepts.
pub const SAMPLES: usize = 10;
/// Lower bound on the characters per token of code, so that costs are not underestimated.
const CHARACTERS_PER_TOKEN: f64 = 2.5;
/// Requests and service times that a race usually takes: for `auto`, for a list alone, and for a list measured in full
/// (without those measurements). Medians at a noise of 5 %, AR(1) 100, from METHOD.md.
const USUALLY: [(u64, f64); 3] = [(1_145, 116.0), (840, 68.0), (250, 37.0)];

#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// One plan for each level that is measured in full, ascending.
    pub levels: Vec<LoopPlan>,
    /// All configured levels that fit into the budget, including those that a filter leaves out.
    /// Empty for `auto`, which finds its levels on the way.
    pub configured: Vec<usize>,
    /// Levels that do not fit into the budget, and the key of the limit.
    pub over_budget: Option<(Vec<usize>, &'static str)>,
    /// The levels that the race chooses from, ascending; empty if there is no race.
    pub race: Vec<usize>,
    auto: Option<(usize, usize)>,
    /// Whether levels that fell against a baseline are measured once more at the end.
    baseline_round: bool,
    input_tokens: f64,
    /// Upper limit on the tokens of one answer.
    output_tokens: u32,
}

impl Plan {
    /// Plans the configured levels that `selects` accepts, as far as the budget allows.
    ///
    /// Each level counts with the most that it may send, so that the budget cannot be exceeded.
    pub fn new(settings: &Settings, prompts: &[Prompt], selects: impl Fn(usize) -> bool) -> Self {
        let mut plan = Plan::empty(settings, prompts);
        plan.configured = settings.config.benchmark.levels();
        plan.list(settings, selects);
        plan
    }

    /// Plans all configured levels in full and a race among them; only the race for a quick run or `auto`.
    pub fn whole(settings: &Settings, prompts: &[Prompt]) -> Self {
        let mut plan = Plan::empty(settings, prompts);
        let benchmark = &settings.config.benchmark;
        match benchmark.levels {
            Levels::List(_) => {
                plan.configured = benchmark.levels();
                // A race needs at least two levels, so a single one is always measured in full.
                if !settings.quick || plan.configured.len() < 2 {
                    plan.list(settings, |_| true);
                }
                plan.race = Some(plan.configured.clone()).filter(|levels| levels.len() > 1).unwrap_or_default();
            }
            Levels::Auto => {
                plan.auto = Some((benchmark.min_concurrency, benchmark.max_concurrency));
                plan.race = grid(benchmark.min_concurrency, benchmark.max_concurrency);
            }
        }
        if let Some(&lowest) = plan.race.first().filter(|_| plan.levels.is_empty())
            && let Some(key) = plan.no_room(settings, preflight::AT_MOST, &first_visit(settings, lowest))
        {
            plan.race.clear();
            plan.configured.clear();
            plan.over_budget = Some((vec![lowest], key));
        }
        plan
    }

    pub fn against(self, baseline: Option<&Baseline>) -> Self {
        Plan { baseline_round: baseline.is_some_and(|baseline| baseline.threshold.is_some()), ..self }
    }

    pub(super) fn empty(settings: &Settings, prompts: &[Prompt]) -> Self {
        let usual = settings.config.benchmark.request.max_tokens;
        let output_tokens = prompts.iter().map(|prompt| prompt.max_tokens.unwrap_or(usual)).max().unwrap_or(usual);
        Plan { input_tokens: mean_input_tokens(prompts, output_tokens), output_tokens, ..Plan::default() }
    }

    fn list(&mut self, settings: &Settings, selects: impl Fn(usize) -> bool) {
        let selected: Vec<usize> = self.configured.iter().copied().filter(|&level| selects(level)).collect();
        for (at, &level) in selected.iter().enumerate() {
            let further = level_plan(settings, level);
            if let Some(key) = self.no_room(settings, preflight::AT_MOST + self.of_levels(), &further) {
                let left_out = selected[at..].to_vec();
                self.configured.retain(|level| !left_out.contains(level));
                self.over_budget = Some((left_out, key));
                return;
            }
            self.levels.push(further);
        }
        self.begin_warm(settings, preflight::AT_MOST);
    }

    /// The first level may meet a cold engine. It may start over only if all levels still fit into the budget.
    fn begin_warm(&mut self, settings: &Settings, sent: u64) {
        let Some(&first) = self.levels.first() else { return };
        let cold = LoopPlan { cold: first.measured, ..first }.with_request_timeout(timeout(settings));
        if self.exceeds(settings, sent + self.of_levels() + cold.cold as u64).is_none() {
            self.levels[0] = cold;
        }
    }

    /// Keeps only the levels that the interrupted process has not measured. The engine may be cold again.
    pub(super) fn without(&mut self, settings: &Settings, measured: &[usize], sent: u64) {
        self.levels.retain(|of| !measured.contains(&of.level));
        self.levels.iter_mut().for_each(|of| *of = level_plan(settings, of.level));
        self.begin_warm(settings, sent + preflight::AT_MOST);
    }

    /// The highest level that may be measured.
    pub fn highest(&self) -> Option<usize> {
        self.levels.iter().map(|plan| plan.level).chain(self.race.iter().copied()).max()
    }

    /// The key of the budget limit that `further` might exceed after `sent` requests.
    pub fn no_room(&self, settings: &Settings, sent: u64, further: &LoopPlan) -> Option<&'static str> {
        self.exceeds(settings, sent + further.tickets())
    }

    fn of_levels(&self) -> u64 {
        self.levels.iter().map(LoopPlan::tickets).sum()
    }

    /// Maximum number of requests, ignoring the budget.
    pub fn requests(&self, settings: &Settings) -> u64 {
        let full = preflight::AT_MOST + self.of_levels();
        let Some(&highest) = self.race.last() else { return full };
        // The race may overshoot its limit by one visit, and a gate may need a few more requests at that level.
        let last = 2 * first_visit(settings, highest).tickets();
        let again = if self.baseline_round { 2 * level_plan(settings, highest).tickets() } else { 0 };
        full + rules(settings).most_requests(highest) + last + again
    }

    /// Waves of each level that is measured in full, and the service times that visits usually take.
    pub fn waves(&self) -> (Vec<(usize, f64)>, f64) {
        let full =
            self.levels.iter().map(|plan| (plan.level, plan.of_warm_engine() as f64 / plan.level as f64)).collect();
        (full, self.visits_usually().1)
    }

    fn visits_usually(&self) -> (u64, f64) {
        match (self.race.is_empty(), self.auto) {
            (true, _) => (0, 0.0),
            (_, Some(_)) => USUALLY[0],
            (_, None) => USUALLY[1 + usize::from(!self.levels.is_empty())],
        }
    }

    fn usually(&self) -> (u64, f64) {
        let (full, visits) = self.waves();
        let requests: usize = self.levels.iter().map(|plan| plan.warmup + plan.measured).sum();
        let requests = preflight::AT_MOST + requests as u64 + self.visits_usually().0;
        let step = if requests < 1_000 { 10 } else { 100 };
        (requests.div_ceil(step) * step, full.iter().map(|(_, waves)| waves).sum::<f64>() + visits)
    }

    /// Maximum cost of `requests` in US dollars, if prices are set. The input tokens are an estimate.
    fn cost_usd(&self, settings: &Settings, requests: u64) -> Option<f64> {
        let Budget { usd_per_million_input: input, usd_per_million_output: output, .. } =
            settings.config.benchmark.budget;
        let input_tokens = requests as f64 * self.input_tokens;
        let cost =
            input_tokens * input.unwrap_or_default() + self.output_tokens(requests) as f64 * output.unwrap_or_default();
        (input.is_some() || output.is_some()).then_some(cost / 1e6)
    }

    fn output_tokens(&self, requests: u64) -> u64 {
        requests.saturating_mul(u64::from(self.output_tokens))
    }

    pub(super) fn exceeds(&self, settings: &Settings, requests: u64) -> Option<&'static str> {
        let budget = &settings.config.benchmark.budget;
        if budget.max_requests.is_some_and(|limit| requests > limit) {
            return Some("max_requests");
        }
        if budget.max_output_tokens.is_some_and(|limit| self.output_tokens(requests) > limit) {
            return Some("max_output_tokens");
        }
        let cost = self.cost_usd(settings, requests).zip(budget.max_cost_usd);
        cost.is_some_and(|(cost, limit)| cost > limit).then_some("max_cost_usd")
    }

    /// The plan as text, printed before the first request.
    pub fn describe(&self, settings: &Settings) -> String {
        let benchmark = &settings.config.benchmark;
        let target = target(settings);
        let levels = match self.auto {
            Some((lowest, highest)) => format!("levels auto, from {lowest} to at most {highest},"),
            None if self.levels.is_empty() => levels(&self.race),
            None => levels(&self.levels.iter().map(|plan| plan.level).collect::<Vec<_>>()),
        };
        let most = self.requests(settings).min(benchmark.budget.max_requests.unwrap_or(u64::MAX));
        let (usually, service_times) = self.usually();
        let usually = usually.min(most);
        let how = match (self.race.is_empty(), self.levels.is_empty()) {
            (true, _) => "",
            (_, true) => "      short visits to the levels, until the answer is certain\n",
            (..) => "      each level in full, then short visits to those that matter, until the answer is certain\n",
        };
        let probably = if usually < most { format!("probably about {usually} requests, ") } else { String::new() };
        let mut text = format!(
            "Plan: {levels} against {target}\n      first a typical prompt and the longest, to see whether they are accepted\n{how}      \
             {probably}{}\n      \
             about {service_times:.0} s of load for each second that a request takes\n",
            self.at_most(settings, most),
        );
        if let Some(key) = self.exceeds(settings, self.requests(settings)) {
            text.push_str(&format!("      nothing is started that could exceed benchmark.budget.{key}\n"));
        }
        text.push_str(&ends_after(settings));
        if let Some(note) = self.over_budget_note() {
            text.push_str(&format!("      {}\n", words::note(&note)));
        }
        text
    }

    fn at_most(&self, settings: &Settings, most: u64) -> String {
        let cost = self.cost_usd(settings, most).map(|usd| format!(", at most about {usd:.2} USD"));
        let (each, all) = (self.output_tokens, self.output_tokens(most));
        let cost = cost.unwrap_or_default();
        format!("at most {most} requests of up to {each} output tokens ({all} in all{cost})")
    }

    /// The same for requests other than those of a sweep.
    pub(super) fn describe_requests(&self, settings: &Settings, what: &str, requests: u64) -> String {
        let most = requests.min(settings.config.benchmark.budget.max_requests.unwrap_or(u64::MAX));
        let at_most = self.at_most(settings, most);
        format!("Plan: {what} against {}\n      {at_most}\n{}", target(settings), ends_after(settings))
    }

    /// A note on the levels that do not fit into the budget.
    pub fn over_budget_note(&self) -> Option<Note> {
        let (levels, key) = self.over_budget.clone()?;
        Some(Note::NoRoom { levels, again: false, key: key.to_owned() })
    }
}

fn target(settings: &Settings) -> String {
    match &settings.endpoint {
        Endpoint::Simulator => "the embedded simulator (no server, no cost)".to_owned(),
        Endpoint::Url(url) => {
            let by = client::proxy_of(url).map_or_else(String::new, |proxy| format!(" (through the proxy {proxy})"));
            format!("{}{by}, model {}", settings.endpoint.redacted(), settings.config.llm.model)
        }
    }
}

fn ends_after(settings: &Settings) -> String {
    let minutes = settings.config.benchmark.budget.max_minutes;
    minutes.map_or_else(String::new, |minutes| {
        format!("      stops after {minutes} minutes (benchmark.budget.max_minutes)\n")
    })
}

/// Mean input tokens, estimated. For a conversation, those of its last turn, which carries all turns before.
fn mean_input_tokens(prompts: &[Prompt], answer: u32) -> f64 {
    let tokens = |prompt: &Prompt| {
        let later: usize = prompt.later.iter().map(|text| text.chars().count()).sum();
        let answers = f64::from(answer) * prompt.later.len() as f64;
        (prompt.characters() + later) as f64 / CHARACTERS_PER_TOKEN + answers
    };
    prompts.iter().map(tokens).sum::<f64>() / prompts.len().max(1) as f64
}

/// The plan of a level that is measured in full.
pub fn level_plan(settings: &Settings, level: usize) -> LoopPlan {
    let benchmark = &settings.config.benchmark;
    let plan = LoopPlan::new(level, benchmark.total_requests, benchmark.warmup_requests, SAMPLES, level);
    plan.with_request_timeout(timeout(settings))
}

pub fn visit_plan(settings: &Settings, visit: Visit) -> LoopPlan {
    LoopPlan::visit(visit.level, visit.completions, SAMPLES).with_request_timeout(timeout(settings))
}

/// A visit after one wave of warm-up.
pub fn settled_visit(settings: &Settings, level: usize, completions: usize) -> LoopPlan {
    LoopPlan { warmup: level, ..visit_plan(settings, Visit { level, completions }) }
}

/// Requests per night of `recheck`, exceeded if the levels need more; and the fewest counted completions per visit.
const OF_NIGHT: usize = 100;
const OF_VISIT: usize = 5;

/// Visits the levels up and down. Each visit settles for half a wave (of the previous level if that
/// was higher, since its queue is still there), then counts three quarters of a wave, or more if the night has
/// room. If all requests start together, half a wave leaves those in flight as far along as they should be on average.
///
/// The last visit is to the lowest level. The requests of the final drain have ever fewer others beside
/// them, so a server that shares its capacity serves them faster. They count in the last level's
/// figures by the share of their life; at the highest level, that would pass for a gain.
pub fn night_of_visits(settings: &Settings, levels: &[usize]) -> Vec<LoopPlan> {
    // Pairs of the previous level (0 at first) and the level to visit.
    let visits = |passes: usize| -> Vec<(usize, usize)> {
        let pass = |at: usize| -> Vec<usize> {
            let levels = levels.iter().copied();
            if (passes - at).is_multiple_of(2) { levels.collect() } else { levels.rev().collect() }
        };
        let order: Vec<usize> = (0..passes).flat_map(pass).collect();
        std::iter::once(0).chain(order.iter().copied()).zip(order.iter().copied()).collect()
    };
    let settling = |(before, level): (usize, usize)| if before == level { 0 } else { before.max(level).div_ceil(2) };
    let counted = |level: usize| (level * 3).div_ceil(4).max(OF_VISIT);
    // Completions that do not count: to settle, on the way down to a lower level, and in the final drain.
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

fn first_visit(settings: &Settings, level: usize) -> LoopPlan {
    visit_plan(settings, rules(settings).visit_to(level))
}

fn timeout(settings: &Settings) -> Duration {
    Duration::from_secs_f64(settings.config.llm.request_timeout)
}

pub fn rules(settings: &Settings) -> Rules {
    let benchmark = &settings.config.benchmark;
    let policy = settings.config.policy.clone();
    match benchmark.levels {
        Levels::Auto => Rules::auto(policy),
        Levels::List(_) => Rules::list(policy, Some(benchmark.total_requests).filter(|_| !settings.quick)),
    }
}
