//! What a run will send, known before its first request, and held to its budget.

use std::time::Duration;

use crate::closed_loop::LoopPlan;
use crate::config::{Budget, Config, Endpoint, Settings};
use crate::snippets::Prompt;

/// Criterion samples per level: its minimum.
pub const SAMPLES: usize = 10;
/// A quick run measures at least this many requests per level, and this many waves.
const QUICK: (usize, usize) = (30, 3);
/// Code has at least this many characters per token, so that the estimate of a cost is not too low.
const CHARACTERS_PER_TOKEN: f64 = 2.5;

/// What a run will send.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One plan per level that will run, ascending.
    pub levels: Vec<LoopPlan>,
    /// All levels of this configuration, those that a filter leaves out included.
    pub configured: Vec<usize>,
    /// Levels for which the budget has no room, and the key that says so.
    pub over_budget: Option<(Vec<usize>, &'static str)>,
    input_tokens: f64,
}

impl Plan {
    /// The levels of these settings that `selects` names, as far as the budget goes.
    ///
    /// The budget is held by what a level may send at most, so that it cannot be passed.
    pub fn new(settings: &Settings, prompts: &[Prompt], selects: impl Fn(usize) -> bool) -> Self {
        let all = settings.config.benchmark.levels();
        let configured = if settings.quick { every_second(&all) } else { all };
        let mut plan = Plan {
            levels: Vec::new(),
            configured: configured.clone(),
            over_budget: None,
            input_tokens: mean_input_tokens(prompts),
        };
        let mut selected = configured.into_iter().filter(|&level| selects(level));
        while let Some(level) = selected.next() {
            plan.levels.push(level_plan(settings, level));
            if let Some(key) = plan.exceeds(settings) {
                plan.levels.pop();
                let left_out: Vec<usize> = std::iter::once(level).chain(selected).collect();
                plan.configured.retain(|level| !left_out.contains(level));
                plan.over_budget = Some((left_out, key));
                break;
            }
        }
        plan
    }

    /// Requests that may be sent at most.
    pub fn requests(&self) -> u64 {
        self.levels.iter().map(LoopPlan::tickets).sum()
    }

    fn output_tokens(&self, settings: &Settings) -> u64 {
        self.requests() * u64::from(settings.config.benchmark.request.max_tokens)
    }

    /// US dollars at most, where prices are known; the input tokens in it are estimated.
    fn cost_usd(&self, settings: &Settings) -> Option<f64> {
        let Budget { usd_per_million_input: input, usd_per_million_output: output, .. } =
            settings.config.benchmark.budget;
        let input_tokens = self.requests() as f64 * self.input_tokens;
        let cost =
            input_tokens * input.unwrap_or_default() + self.output_tokens(settings) as f64 * output.unwrap_or_default();
        (input.is_some() || output.is_some()).then_some(cost / 1e6)
    }

    /// The key of the first limit that this much would pass.
    fn exceeds(&self, settings: &Settings) -> Option<&'static str> {
        let budget = &settings.config.benchmark.budget;
        if budget.max_requests.is_some_and(|limit| self.requests() > limit) {
            return Some("max_requests");
        }
        if budget.max_output_tokens.is_some_and(|limit| self.output_tokens(settings) > limit) {
            return Some("max_output_tokens");
        }
        let cost = self.cost_usd(settings).zip(budget.max_cost_usd);
        cost.is_some_and(|(cost, limit)| cost > limit).then_some("max_cost_usd")
    }

    /// Seconds of load for each second that a request takes, if latency did not grow with the level.
    fn seconds_per_second(&self) -> f64 {
        self.levels.iter().map(|plan| plan.tickets() as f64 / plan.level as f64).sum()
    }

    /// What is said before the first request.
    pub fn describe(&self, settings: &Settings) -> String {
        let Config { llm, benchmark, .. } = &settings.config;
        let target = match &llm.endpoint {
            Endpoint::Simulator => "the embedded simulator (no server, no cost)".to_owned(),
            Endpoint::Url(_) => format!("{}, model {}", llm.endpoint.redacted(), llm.model),
        };
        let levels: Vec<usize> = self.levels.iter().map(|plan| plan.level).collect();
        let cost = self.cost_usd(settings).map_or_else(String::new, |usd| format!(", at most about {usd:.2} USD"));
        let mut text = format!(
            "Plan: levels {} against {target}\n      at most {} requests of up to {} output tokens ({} in all{cost})\n      \
             about {:.0} s of load for each second that a request takes\n",
            list(&levels),
            self.requests(),
            benchmark.request.max_tokens,
            self.output_tokens(settings),
            self.seconds_per_second(),
        );
        if let Some(minutes) = benchmark.budget.max_minutes {
            text.push_str(&format!("      stops after {minutes} minutes (budget.max_minutes)\n"));
        }
        if let Some(note) = self.over_budget_note() {
            text.push_str(&format!("      {note}\n"));
        }
        text
    }

    /// Which levels the budget leaves out, in words.
    pub fn over_budget_note(&self) -> Option<String> {
        let (levels, key) = self.over_budget.as_ref()?;
        Some(format!("not measured: level {}, for which benchmark.budget.{key} has no room", list(levels)))
    }
}

fn list(levels: &[usize]) -> String {
    levels.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

fn mean_input_tokens(prompts: &[Prompt]) -> f64 {
    let characters: usize = prompts.iter().map(|prompt| prompt.text.chars().count()).sum();
    characters as f64 / CHARACTERS_PER_TOKEN / prompts.len().max(1) as f64
}

/// How one level is measured.
pub fn level_plan(settings: &Settings, level: usize) -> LoopPlan {
    let benchmark = &settings.config.benchmark;
    let longest_wait = Duration::from_secs_f64(settings.config.llm.request_timeout);
    let plan = if settings.quick {
        // Fewer than `level` completions per window: the time per wave is scaled from them.
        let total = QUICK.0.max(QUICK.1 * level);
        LoopPlan::new(level, total, level, SAMPLES, 1)
    } else {
        LoopPlan::new(level, benchmark.total_requests, benchmark.warmup_requests, SAMPLES, level)
    };
    LoopPlan { longest_wait, ..plan }
}

/// The first, third, … and last level.
fn every_second(levels: &[usize]) -> Vec<usize> {
    let last = levels.len().saturating_sub(1);
    levels.iter().enumerate().filter(|(at, _)| at % 2 == 0 || *at == last).map(|(_, &level)| level).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Env, Overrides};

    fn settings(yaml: &str) -> Settings {
        let config = Config::parse(yaml, Path::new("config.yaml")).expect("valid");
        Settings::resolve("config.yaml".into(), config, &Env::of([]), Overrides::default()).expect("valid")
    }

    fn plan(yaml: &str) -> Plan {
        let prompt = Prompt { id: "1".to_owned(), size: "small".to_owned(), text: "x".repeat(250) };
        Plan::new(&settings(yaml), &[prompt], |_| true)
    }

    fn levels(plan: &Plan) -> Vec<usize> {
        plan.levels.iter().map(|plan| plan.level).collect()
    }

    #[test]
    fn a_level_takes_at_least_ten_times_itself() {
        let plan = plan("llm: {}\nbenchmark: {levels: [1, 10, 11, 50]}");
        let measured: Vec<_> = plan.levels.iter().map(LoopPlan::measured).collect();
        assert_eq!(measured, [100, 100, 110, 500]);
        assert_eq!(plan.requests(), (5 + 100 + 1) + (10 + 100 + 10) + (11 + 110 + 11) + (50 + 500 + 50));
    }

    #[test]
    fn each_budget_leaves_out_the_levels_it_has_no_room_for() {
        // Level 1 sends at most 106 requests of 64 tokens, level 10 another 120.
        for (budget, key, expected) in [
            ("max_requests: 226", None, vec![1, 10]),
            ("max_requests: 225", Some("max_requests"), vec![1]),
            ("max_output_tokens: 14464", None, vec![1, 10]),
            ("max_output_tokens: 14463", Some("max_output_tokens"), vec![1]),
            ("max_cost_usd: 0.0145, usd_per_million_output: 1", None, vec![1, 10]),
            // 226 prompts of 100 tokens at 1 USD per million are 0.0226 USD more.
            (
                "max_cost_usd: 0.0300, usd_per_million_output: 1, usd_per_million_input: 1",
                Some("max_cost_usd"),
                vec![1],
            ),
            ("max_requests: 10", Some("max_requests"), vec![]),
        ] {
            let plan = plan(&format!("llm: {{}}\nbenchmark: {{levels: [1, 10], budget: {{{budget}}}}}"));
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
            "106 requests",
            "6784 in all",
            "0.07 USD",
            "level 10",
            "max_requests",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn a_quick_run_takes_every_second_level_and_fewer_requests() {
        let mut settings = settings("llm: {}");
        settings.quick = true;
        let plan = Plan::new(&settings, &[], |_| true);
        assert_eq!(levels(&plan), [1, 5, 15, 25, 40, 50]);
        assert!(plan.levels.iter().all(|plan| plan.measured() >= 30.max(3 * plan.level)));
        assert!(plan.requests() < 900, "{}", plan.requests());
    }
}
