//! The answer as it is printed, a line each.

use super::decision::reason;
use super::notes::{gain, information, notes};
use super::numbers::{number, or_unknown, rate, time};
use crate::decide::{JudgedLevel, Recommendation};

/// Before the status wherever a number of the embedded simulator stands.
pub fn simulated(is_simulated: bool) -> &'static str {
    if is_simulated { "SIMULATED, " } else { "" }
}

pub fn answer(recommendation: &Recommendation) -> Vec<String> {
    let status = recommendation.status.name();
    let simulated = simulated(recommendation.simulated);
    let mut lines = match recommendation.chosen() {
        Some(level) => choice(recommendation, level, &format!("status {status}{}", interval(recommendation))),
        None => vec![format!("No recommendation ({simulated}{status})"), reason(recommendation)],
    };
    let simulator = "SIMULATED: this is the embedded simulator, not a server of yours";
    lines.extend(recommendation.simulated.then(|| simulator.to_owned()));
    lines.extend(notes(recommendation).map(|note| format!("note: {note}")));
    lines
}

fn interval(recommendation: &Recommendation) -> String {
    match recommendation.interval {
        Some([low, high]) if low == high => format!(", interval {low}"),
        Some([low, high]) => format!(", interval {low} to {high}"),
        None => String::new(),
    }
}

fn choice(recommendation: &Recommendation, level: &JudgedLevel, status: &str) -> Vec<String> {
    let simulated = simulated(recommendation.simulated);
    let summary = &level.summary;
    let concurrency = summary.concurrency;
    let head = if recommendation.provisional {
        format!("First look: about {concurrency}, not confirmed  ({simulated}provisional, {status})")
    } else {
        format!("Optimal concurrency: {concurrency}  ({simulated}{status})")
    };
    let latency = summary.latency_s.unwrap_or_default();
    let figures = format!(
        "Throughput {} requests/s, mean {}, P95 {}, P99 {}, error rate {}, timeout rate {}",
        number(level.throughput(), 2),
        time(latency.mean),
        time(latency.p95),
        time(latency.p99),
        or_unknown(summary.error_rate, rate),
        or_unknown(summary.timeout_rate, rate),
    );
    let mut lines = vec![head, reason(recommendation), figures];
    lines.extend(gain(recommendation, level).map(|gain| gain.to_string()));
    lines.extend(information(recommendation));
    lines
}
