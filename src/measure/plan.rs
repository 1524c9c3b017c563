//! What a run will send, known before its first request, and held to its budget.

use std::time::Duration;

use crate::client;
use crate::client::Endpoint;
use crate::decide::compare::Baseline;
use crate::decide::{Note, Policy};
use crate::load::closed_loop::LoopPlan;
use crate::load::preflight;
use crate::measure::search::{Search, adaptive_at_most, most_rounds, smallest_window};
use crate::prompts::Prompt;
use crate::report::words::{self, list};
use crate::settings::{Budget, Config, Levels, Settings};

/// Criterion samples per level: its minimum.
pub const SAMPLES: usize = 10;
/// A quick run measures at least this many requests per level, and this many waves.
const QUICK: (usize, usize) = (30, 3);
/// Code has at least this many characters per token, so that the estimate of a cost is not too low.
const CHARACTERS_PER_TOKEN: f64 = 2.5;

#[derive(Clone, Debug)]
pub struct Plan {
    /// One plan per level that will run, ascending; of an adaptive search those that may run at most.
    pub levels: Vec<LoopPlan>,
    /// All levels of this configuration, those that a filter leaves out included; none of an adaptive search, which
    /// finds them on the way.
    pub configured: Vec<usize>,
    /// Levels for which the budget has no room, and the key that says so.
    pub over_budget: Option<(Vec<usize>, &'static str)>,
    auto: Option<(usize, usize)>,
    /// Whether levels near the best are measured again.
    confirm: bool,
    /// Whether what has fallen against a baseline is measured once more at the end.
    baseline_round: bool,
    input_tokens: f64,
}

impl Plan {
    /// The levels of these settings that `selects` names, as far as the budget goes.
    ///
    /// The budget is held by what a level may send at most, so that it cannot be passed.
    pub fn new(settings: &Settings, prompts: &[Prompt], selects: impl Fn(usize) -> bool) -> Self {
        let mut plan = Plan::empty(prompts);
        plan.list(settings, selects);
        plan
    }

    /// All levels of these settings, and what follows from their figures: an adaptive search, and, unless it is a quick
    /// run, contenders once more.
    pub fn whole(settings: &Settings, prompts: &[Prompt]) -> Self {
        let mut plan = Plan::empty(prompts);
        plan.confirm = !settings.quick;
        let benchmark = &settings.config.benchmark;
        match benchmark.levels {
            Levels::List(_) => plan.list(settings, |_| true),
            Levels::Auto => plan.search_within(settings, benchmark.min_concurrency, benchmark.max_concurrency),
        }
        plan
    }

    pub fn against(self, baseline: Option<&Baseline>) -> Self {
        Plan { baseline_round: baseline.is_some_and(|baseline| baseline.threshold.is_some()), ..self }
    }

    fn empty(prompts: &[Prompt]) -> Self {
        Plan {
            levels: Vec::new(),
            configured: Vec::new(),
            over_budget: None,
            auto: None,
            confirm: false,
            baseline_round: false,
            input_tokens: mean_input_tokens(prompts),
        }
    }

    fn list(&mut self, settings: &Settings, selects: impl Fn(usize) -> bool) {
        let all = settings.config.benchmark.levels();
        self.configured = if settings.quick && !settings.levels_named { thinned(&all) } else { all };
        let mut selected = self.configured.clone().into_iter().filter(|&level| selects(level));
        while let Some(level) = selected.next() {
            let further = self.level_plan(settings, level);
            if let Some(key) = self.no_room(settings, self.requests(), &further) {
                let left_out: Vec<usize> = std::iter::once(level).chain(selected).collect();
                self.configured.retain(|level| !left_out.contains(level));
                self.over_budget = Some((left_out, key));
                break;
            }
            self.levels.push(further);
        }
    }

    fn search_within(&mut self, settings: &Settings, lowest: usize, highest: usize) {
        self.auto = Some((lowest, highest));
        match self.no_room(settings, preflight::AT_MOST, &self.level_plan(settings, lowest)) {
            Some(key) => self.over_budget = Some((vec![lowest], key)),
            None => {
                let levels = adaptive_at_most(lowest, highest).into_iter();
                self.levels = levels.map(|level| self.level_plan(settings, level)).collect();
            }
        }
    }

    pub fn search(&self, policy: &Policy) -> Search {
        match self.auto {
            Some((lowest, highest)) if self.confirm => Search::adaptive(lowest, highest, policy),
            Some((lowest, highest)) => Search::adaptive(lowest, highest, policy).without_confirm(),
            None => Search::listed(&self.configured, policy, self.confirm),
        }
    }

    pub fn level_plan(&self, settings: &Settings, level: usize) -> LoopPlan {
        let benchmark = &settings.config.benchmark;
        let timeout = Duration::from_secs_f64(settings.config.llm.request_timeout);
        let plan = if settings.quick {
            // Fewer than `level` completions per window: the time per wave is scaled from them.
            let total = QUICK.0.max(QUICK.1 * level);
            LoopPlan::new(level, total, level, SAMPLES, 1)
        } else {
            let window = smallest_window(level, self.auto.is_some());
            LoopPlan::new(level, benchmark.total_requests, benchmark.warmup_requests, SAMPLES, window)
        };
        plan.with_request_timeout(timeout)
    }

    /// The key of the limit that `further` might pass after `sent` requests.
    pub fn no_room(&self, settings: &Settings, sent: u64, further: &LoopPlan) -> Option<&'static str> {
        self.exceeds(settings, sent + further.tickets())
    }

    /// Requests that may be sent at most, before any confirm round.
    pub fn requests(&self) -> u64 {
        preflight::AT_MOST + self.of_levels()
    }

    fn of_levels(&self) -> u64 {
        self.levels.iter().map(LoopPlan::tickets).sum()
    }

    fn requests_to_confirm(&self) -> u64 {
        self.of_levels() * u64::from(self.most_rounds())
    }

    fn most_rounds(&self) -> u32 {
        u32::from(self.baseline_round) + if self.confirm { most_rounds(self.auto.is_some()) } else { 0 }
    }

    /// US dollars that `requests` cost at most, where prices are set; the input tokens in it are estimated.
    fn cost_usd(&self, settings: &Settings, requests: u64) -> Option<f64> {
        let Budget { usd_per_million_input: input, usd_per_million_output: output, .. } =
            settings.config.benchmark.budget;
        let input_tokens = requests as f64 * self.input_tokens;
        let cost = input_tokens * input.unwrap_or_default()
            + output_tokens(settings, requests) as f64 * output.unwrap_or_default();
        (input.is_some() || output.is_some()).then_some(cost / 1e6)
    }

    fn exceeds(&self, settings: &Settings, requests: u64) -> Option<&'static str> {
        let budget = &settings.config.benchmark.budget;
        if budget.max_requests.is_some_and(|limit| requests > limit) {
            return Some("max_requests");
        }
        if budget.max_output_tokens.is_some_and(|limit| output_tokens(settings, requests) > limit) {
            return Some("max_output_tokens");
        }
        let cost = self.cost_usd(settings, requests).zip(budget.max_cost_usd);
        cost.is_some_and(|(cost, limit)| cost > limit).then_some("max_cost_usd")
    }

    /// Seconds of load for each second that a request takes, if latency did not grow with the level.
    fn seconds_per_second(&self) -> f64 {
        self.levels.iter().map(|plan| plan.tickets() as f64 / plan.level as f64).sum()
    }

    /// Printed before the first request.
    pub fn describe(&self, settings: &Settings) -> String {
        let Config { llm, benchmark, .. } = &settings.config;
        let target = match &settings.endpoint {
            Endpoint::Simulator => "the embedded simulator (no server, no cost)".to_owned(),
            Endpoint::Url(url) => {
                let by =
                    client::proxy_of(url).map_or_else(String::new, |proxy| format!(" (through the proxy {proxy})"));
                format!("{}{by}, model {}", settings.endpoint.redacted(), llm.model)
            }
        };
        let levels = match self.auto {
            Some((lowest, highest)) => format!("auto, from {lowest} to at most {highest},"),
            None => list(&self.levels.iter().map(|plan| plan.level).collect::<Vec<_>>()),
        };
        let requests = self.requests();
        let cost = |requests| {
            self.cost_usd(settings, requests).map_or_else(String::new, |usd| format!(", at most about {usd:.2} USD"))
        };
        let mut text = format!(
            "Plan: levels {levels} against {target}\n      first a typical and the longest prompt, to see whether the server takes them\n      \
             at most {requests} requests of up to {} output tokens ({} in all{})\n      \
             about {:.0} s of load for each second that a request takes{}\n",
            benchmark.request.max_tokens,
            output_tokens(settings, requests),
            cost(requests),
            self.seconds_per_second(),
            if self.auto.is_some() { ", at most" } else { "" },
        );
        if self.most_rounds() > 0 {
            let more = self.requests_to_confirm();
            text.push_str(&format!(
                "      then, while the answer is not clear, up to {} rounds of the levels near the best: at most {more} requests more{}\n",
                self.most_rounds(),
                cost(more)
            ));
        }
        if let Some(key) = self.exceeds(settings, requests + self.requests_to_confirm()) {
            text.push_str(&format!("      nothing is begun that could pass benchmark.budget.{key}\n"));
        }
        if let Some(minutes) = benchmark.budget.max_minutes {
            text.push_str(&format!("      stops after {minutes} minutes (budget.max_minutes)\n"));
        }
        if let Some(note) = self.over_budget_note() {
            text.push_str(&format!("      {}\n", words::note(&note)));
        }
        text
    }

    /// Which levels the budget leaves out.
    pub fn over_budget_note(&self) -> Option<Note> {
        let (levels, key) = self.over_budget.clone()?;
        Some(Note::NoRoom { levels, again: false, key: key.to_owned() })
    }
}

fn output_tokens(settings: &Settings, requests: u64) -> u64 {
    requests.saturating_mul(u64::from(settings.config.benchmark.request.max_tokens))
}

fn mean_input_tokens(prompts: &[Prompt]) -> f64 {
    let characters: usize = prompts.iter().map(|prompt| prompt.text.chars().count()).sum();
    characters as f64 / CHARACTERS_PER_TOKEN / prompts.len().max(1) as f64
}

/// Without the levels whose neighbours are no further apart than a factor of two: both tell well enough
/// what lies between them.
fn thinned(levels: &[usize]) -> Vec<usize> {
    let mut kept: Vec<usize> = Vec::new();
    for (at, &level) in levels.iter().enumerate() {
        let between = kept.last().zip(levels.get(at + 1)).is_some_and(|(below, above)| *above <= 2 * below);
        if !between {
            kept.push(level);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::client::Env;
    use crate::settings::Overrides;

    fn settings(yaml: &str) -> Settings {
        let config = Config::parse(yaml, Path::new("config.yaml")).expect("valid");
        Settings::resolve("config.yaml".into(), config, &Env::of([]), Overrides::default()).expect("valid")
    }

    fn plan(yaml: &str) -> Plan {
        let prompt = Prompt { id: "1".to_owned(), size: "small".to_owned(), text: "x".repeat(250) };
        Plan::whole(&settings(yaml), &[prompt])
    }

    fn levels(plan: &Plan) -> Vec<usize> {
        plan.levels.iter().map(|plan| plan.level).collect()
    }

    #[test]
    fn a_level_takes_at_least_ten_times_itself() {
        let plan = plan("llm: {endpoint: simulator}\nbenchmark: {levels: [1, 10, 11, 50]}");
        let measured: Vec<_> = plan.levels.iter().map(LoopPlan::measured).collect();
        assert_eq!(measured, [100, 100, 110, 500]);
        assert_eq!(plan.requests(), 4 + (5 + 100 + 1) + (10 + 100 + 10) + (11 + 110 + 11) + (50 + 500 + 50));
    }

    #[test]
    fn each_budget_leaves_out_the_levels_it_has_no_room_for() {
        // The preflight sends at most 4 requests of 64 tokens, level 1 another 106, level 10 another 120.
        for (budget, key, expected) in [
            ("max_requests: 230", None, vec![1, 10]),
            ("max_requests: 229", Some("max_requests"), vec![1]),
            ("max_output_tokens: 14720", None, vec![1, 10]),
            ("max_output_tokens: 14719", Some("max_output_tokens"), vec![1]),
            ("max_cost_usd: 0.0148, usd_per_million_output: 1", None, vec![1, 10]),
            // 230 prompts of 100 tokens at 1 USD per million are 0.0230 USD more.
            (
                "max_cost_usd: 0.0300, usd_per_million_output: 1, usd_per_million_input: 1",
                Some("max_cost_usd"),
                vec![1],
            ),
            ("max_requests: 10", Some("max_requests"), vec![]),
        ] {
            let plan =
                plan(&format!("llm: {{endpoint: simulator}}\nbenchmark: {{levels: [1, 10], budget: {{{budget}}}}}"));
            assert_eq!(levels(&plan), expected, "{budget}");
            assert_eq!(plan.over_budget.as_ref().map(|over| over.1), key, "{budget}");
            assert_eq!(plan.configured, expected, "{budget}");
        }
    }

    #[test]
    fn the_description_names_what_is_sent_and_what_is_not() {
        let yaml = "llm: {endpoint: 'http://user:secret@host/v1?key=secret', model: m}\nbenchmark: {levels: [1, 10], budget: {max_requests: 110, usd_per_million_output: 10}}";
        let text = plan(yaml).describe(&settings(yaml));
        for part in [
            "levels 1 against http://host/v1, model m",
            "110 requests",
            "7040 in all",
            "0.07 USD",
            "Level 10 was not measured",
            "max_requests",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn a_quick_run_leaves_out_levels_close_to_others_and_takes_fewer_requests() {
        let mut settings = settings("llm: {endpoint: simulator}");
        settings.quick = true;
        let plan = Plan::whole(&settings, &[]);
        assert_eq!(levels(&plan), [1, 2, 5, 10, 20, 40, 50]);
        settings.levels_named = true;
        assert_eq!(levels(&Plan::whole(&settings, &[])).len(), 10);
        assert!(plan.levels.iter().all(|plan| plan.measured() >= 30.max(3 * plan.level)));
        assert!(plan.requests() < 900, "{}", plan.requests());
        assert!(!plan.describe(&settings).contains("rounds"));
    }

    #[test]
    fn what_may_follow_is_said_and_held_to_the_budget() {
        let budget = "llm: {endpoint: simulator}\nbenchmark: {levels: [1, 10], budget: {max_requests: 400}}";
        let listed = plan(budget);
        let text = listed.describe(&settings(budget));
        assert!(text.contains("at most 230 requests of"), "{text}");
        assert!(text.contains("up to 3 rounds of the levels near the best: at most 678 requests more"), "{text}");
        assert!(text.contains("nothing is begun that could pass benchmark.budget.max_requests"), "{text}");
        // Level 10 takes at most 120: after 280 it still fits.
        let further = listed.level_plan(&settings(budget), 10);
        assert_eq!(listed.no_room(&settings(budget), 280, &further), None);
        assert_eq!(listed.no_room(&settings(budget), 281, &further), Some("max_requests"));
    }

    #[test]
    fn an_adaptive_search_says_its_worst_case() {
        let yaml = "llm: {endpoint: simulator}\nbenchmark: {levels: auto, max_concurrency: 8}";
        let auto = plan(yaml);
        assert_eq!(levels(&auto), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(auto.configured, [0; 0]);
        let text = auto.describe(&settings(yaml));
        assert!(text.contains("levels auto, from 1 to at most 8, against"), "{text}");
        assert!(text.contains(&format!("at most {} requests of", auto.requests())), "{text}");
        // A filter names levels that are known beforehand.
        let filtered = Plan::new(&settings(yaml), &[], |level| level == 4);
        assert_eq!((levels(&filtered), filtered.configured), (vec![4], vec![1, 2, 4, 8]));
        let poor = plan(&yaml.replace("max_concurrency: 8", "budget: {max_requests: 10}"));
        assert_eq!((levels(&poor), poor.over_budget), (vec![], Some((vec![1], "max_requests"))));
    }
}
