//! What a page cannot show, and why.

use super::numbers::levels;
use crate::figures::LevelSummary;
use crate::record::{About, Environment, RunSettings};
use crate::report::html::{Missing, Run};

type Figure = (&'static str, fn(&LevelSummary) -> bool);

const FIGURES: [Figure; 8] = [
    ("Throughput", |s| s.throughput_rps.is_some()),
    ("The throughput's interval", |s| s.throughput_rps.is_none_or(|t| t.interval().is_some())),
    ("The throughput of the individual windows", |s| s.samples.is_some()),
    ("The number of requests", |s| s.requests.is_some()),
    ("The error rate", |s| s.error_rate.is_some() || s.succeeded.is_some()),
    ("Latency", |s| s.latency_s.is_some()),
    ("Time to first token", |s| s.ttft_s.is_some()),
    ("Time per output token", |s| s.tpot_s.is_some()),
];

pub fn missing(run: &Run) -> Vec<String> {
    let all = &run.recommendation.levels;
    let of_levels = |(name, is_there): Figure| {
        let lacking = all.iter().map(|level| &level.summary).filter(|summary| !is_there(summary));
        let lacking: Vec<usize> = lacking.map(|summary| summary.concurrency).collect();
        match lacking.len() {
            0 => None,
            n if n == all.len() => Some(format!("{name} of every level")),
            _ => Some(format!("{name} of {}", levels(&lacking))),
        }
    };
    let mut lines: Vec<String> = FIGURES.into_iter().filter_map(of_levels).collect();
    if run.curves.is_none() {
        let text = "The records of the individual requests: without them there is no latency distribution, no course of \
                    the run and no reasons for failures";
        lines.push(text.to_owned());
    }
    let About { started_at, endpoint, model, settings, environment, .. } = &run.about;
    let facts = [
        ("the endpoint", endpoint.is_none()),
        ("the model", model.is_none()),
        ("the time", started_at.is_none()),
        ("the run's id", run.run_id.is_none()),
        ("the settings", *settings == RunSettings::default()),
        ("the machine", *environment == Environment::default()),
    ];
    let unknown: Vec<&str> = facts.into_iter().filter(|(_, is_missing)| *is_missing).map(|(name, _)| name).collect();
    if !unknown.is_empty() {
        lines.push(format!("What was measured: {}", unknown.join(", ")));
    }
    lines.extend(run.missing.iter().map(|missing| match missing {
        Missing::Policy => "The policy behind the decision: the gates shown are the defaults".to_owned(),
        Missing::Decision => "The original decision: the one shown was made for this report".to_owned(),
        Missing::Requests { level, error } => format!("The requests of level {level}: {error}"),
    }));
    lines
}
