//! Comparisons of a run with its baseline, of two runs, and of two servers.

use super::decision::{causes, why};
use super::notes::source;
use super::numbers::{count, levels, percent, range, signed};
use super::simulated;
use crate::decide::compare::{Against, Change, Comparison, Doubt, Moved, Regression};
use crate::decide::{Note, Recommendation};
use crate::settings::Settings;

/// A baseline: its file, and the source that the file names.
pub fn baseline(file: &str, is_simulated: bool, notes: &[Note]) -> String {
    let sources: Vec<String> = notes.iter().map(source).filter(|source| !source.is_empty()).collect();
    format!("{file} ({}{})", simulated(is_simulated), sources.join("; "))
}

pub fn moved(moved: Moved) -> &'static str {
    match moved {
        Moved::Faster => "faster",
        Moved::Slower => "slower",
        Moved::NotShown => "no change shown",
    }
}

pub fn against(Comparison { title, unit, against, .. }: &Comparison) -> String {
    match against {
        Against::Baseline => format!("Against the baseline {title}, in {unit}"),
        Against::OtherServer => format!("{title}, measured alternately, in {unit}"),
    }
}

/// The headings of the two sides.
pub fn sides(against: Against) -> [&'static str; 2] {
    match against {
        Against::Baseline => ["before", "now"],
        Against::OtherServer => ["A", "B"],
    }
}

/// Two servers, each with its endpoint and model.
pub fn two_servers(servers: [&Settings; 2]) -> String {
    let [a, b] = servers.map(|of| format!("{} ({})", of.endpoint.redacted(), of.config.llm.model));
    format!("A is {a}, B is {b}")
}

/// Printed before anything is sent.
pub fn plan_of_duet(servers: [&Settings; 2], at: &[usize], turns: u32, requests: u64) -> String {
    format!(
        "Plan: {}\n      {turns} visits to each at {}, with A and B taking turns to go first\n      at most {} to the two together\n",
        two_servers(servers),
        levels(at),
        count(requests, "request"),
    )
}

/// How the two servers differ, each at its recommended level and over all levels.
pub fn better(comparison: &Comparison) -> String {
    let differ = |change: &Change| {
        let which = match change.moved {
            Moved::NotShown => "no difference shown".to_owned(),
            Moved::Faster => format!("B is {} faster", percent(change.change)),
            Moved::Slower => format!("B is {} slower", percent(-change.change)),
        };
        format!("{which} (95 % interval: {})", range(change.interval, signed))
    };
    let at_best = match &comparison.recommended {
        Some(change) => {
            format!("A at {} and B at {}: {}", change.concurrency_before, change.concurrency_now, differ(change))
        }
        None => "A and B are not compared at their best: one of them has no recommended level".to_owned(),
    };
    let overall = comparison.overall.as_ref().map(|change| format!("\nOver all levels: {}", differ(change)));
    at_best + &overall.unwrap_or_default()
}

/// How the best throughput and the recommended number changed from one run to the other.
pub fn verdict(comparison: &Comparison, [before, now]: [&Recommendation; 2], labels: [&str; 2]) -> String {
    let [a, b] = labels;
    let bound = before.client_bound_at.or(now.client_bound_at);
    let best = match (comparison.best, bound) {
        (_, Some(level)) => format!("Nothing can be said about the server: at level {level} the client was the limit"),
        (Some(change), None) if change.moved != Moved::NotShown => {
            let (by, interval) = (percent(change.change.abs()), range(change.interval, signed));
            format!("At its best, {b} is {by} {} than {a} ({interval})", moved(change.moved))
        }
        (Some(change), None) => format!(
            "No change shown: {:.2} {} at best in {a}, {:.2} in {b}",
            change.before, comparison.unit, change.now
        ),
        (None, None) => "No change shown: one of the two has no best level".to_owned(),
    };
    let number = |of: &Recommendation| of.recommended_concurrency.map_or("no number".to_owned(), |n| n.to_string());
    let [old, new] = [before, now].map(number);
    let set = if old == new { format!("{new} in both") } else { format!("{new} instead of {old}") };
    format!("{best}. Recommended: {set}.")
}

/// The verdict that follows from regressions and doubts.
pub fn outcome(comparison: &Comparison, threshold: f64) -> String {
    let limit = percent(threshold);
    match (comparison.regressions.as_slice(), comparison.doubts.as_slice()) {
        ([], []) => format!(
            "No regression: neither the best nor the recommended throughput fell by more than {limit} beyond the noise"
        ),
        ([], _) => "Cannot tell whether there is a regression:".to_owned(),
        _ => format!("Regression (more than {limit}, beyond the noise between measurements):"),
    }
}

pub fn regression(found: &Regression) -> String {
    let fell = |change: &Change| format!("fell by {}", percent(-change.change));
    match found {
        Regression::Best(change) => format!("the best throughput {}", fell(change)),
        Regression::Recommended(change) => {
            format!("the throughput at level {}, recommended before, {}", change.concurrency_before, fell(change))
        }
        Regression::Fails { concurrency, causes: of_level, .. } => {
            format!("level {concurrency}, recommended before, now fails: {}", causes(of_level))
        }
        Regression::NothingQualifies { concurrency, reason } => {
            format!("{concurrency} was recommended before, and now nothing is: {}", why(reason))
        }
    }
}

pub fn doubt(found: &Doubt) -> String {
    match found {
        Doubt::Gate { concurrency, causes: of_level, .. } => {
            format!("level {concurrency}, recommended before, now fails, perhaps by chance: {}", causes(of_level))
        }
        Doubt::Outage { concurrency } => {
            format!("the server was gone while level {concurrency}, recommended before, was measured")
        }
        Doubt::Undecided { concurrency, status, reason } => {
            format!("{concurrency} was recommended before, and now nothing is ({}): {}", status, why(reason))
        }
        Doubt::NothingInCommon => "the two runs have no usable level in common".to_owned(),
    }
}

/// Added if nothing was measured again to confirm a regression.
pub fn once() -> &'static str {
    "this was measured only once; `llm-concurrency run --baseline FILE` measures again whatever fell"
}
