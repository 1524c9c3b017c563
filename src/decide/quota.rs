//! Detects that a quota, rather than concurrency, is the limit.

use super::causes::{Passed, QuotaReached};
use super::gates::error_rate;
use super::{JudgedLevel, Policy, Verdict, passing};
use crate::client::outcome::{Failure, Period, RateLimit};

/// A quota is the limit if most failures at the levels that fail on errors are 429s.
pub(super) fn reached(levels: &[JudgedLevel], policy: &Policy) -> Option<QuotaReached> {
    let (mut limited, mut failed) = (0_u64, 0_u64);
    let by_errors = |level: &&JudgedLevel| error_rate(&level.summary).is_some_and(|rate| rate >= policy.max_error_rate);
    for level in levels.iter().filter(|level| level.verdict == Verdict::Fail).filter(by_errors) {
        let failures = &level.summary.failures;
        let of_level = failures.get(Failure::RateLimited.name()).copied().unwrap_or_default();
        limited = limited.saturating_add(of_level);
        failed = failures.values().fold(failed, |sum, &count| sum.saturating_add(count));
    }
    if limited <= failed / 2 {
        return None;
    }
    let server_limit = levels.iter().filter_map(|level| level.summary.rate_limit).reduce(RateLimit::updated);
    let server_limit = server_limit.unwrap_or_default();
    // Most quotas allow a burst first, which has long been used up at the highest limited level.
    // What a daily quota let through before it was exhausted is not a rate.
    let of_a_day = server_limit.exceeded.is_some_and(|quota| quota.per == Some(Period::Day));
    let passed = levels.iter().rev().find_map(|level| passed(level, levels)).filter(|_| !of_a_day);
    Some(QuotaReached { limited, failed, server_limit, passed })
}

fn passed(level: &JudgedLevel, levels: &[JudgedLevel]) -> Option<Passed> {
    let summary = &level.summary;
    let limited = summary.failures.contains_key(Failure::RateLimited.name());
    let rps = summary.throughput_rps?.estimate;
    let tokens = summary.mean_output_tokens.map(|tokens| tokens + summary.mean_input_tokens.unwrap_or_default());
    (limited && rps > 0.0).then(|| Passed {
        level: summary.concurrency,
        rps,
        tokens_per_minute: tokens.map(|tokens| 60.0 * rps * tokens),
        with_prompts: summary.mean_input_tokens.is_some(),
        enough: enough_for(rps, levels),
    })
}

/// The concurrency that this rate needs by Little's law: rate x latency, with the latency of the
/// lowest passing level.
fn enough_for(rate: f64, levels: &[JudgedLevel]) -> Option<(usize, f64, usize)> {
    let lowest = &passing(levels).next()?.summary;
    let latency = lowest.latency_s?.mean?;
    Some(((rate * latency).ceil().max(1.0) as usize, latency, lowest.concurrency))
}
