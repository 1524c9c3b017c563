//! Why a level has its verdict, and why a number was or was not chosen.

use super::numbers::{count, percent, range, rate as error_rate, seconds, share as written};
use crate::client::outcome::{Counted, Period, Quota, RateLimit};
use crate::decide::causes::{Limit, Passed, QuotaReached};
use crate::decide::{Cause, DEFAULT_P95_FACTOR, Gate, Note, Objective, Policy, Reason, Recommendation, TimeGate};
use crate::figures::{EarlyEnd, Outage, Slo};

pub fn gate(gate: Gate) -> &'static str {
    match gate {
        Gate::Errors => "the error rate",
        Gate::Output => "the length of the answers",
        Gate::Attainment => "the share of requests within policy.slo",
        Gate::Time(of) => gate_on_time(of),
    }
}

pub(super) fn gate_on_time(gate: TimeGate) -> &'static str {
    match gate {
        TimeGate::P95 => "P95",
        TimeGate::P99 => "P99",
        TimeGate::TtftP95 => "TTFT P95",
        TimeGate::TpotP95 => "TPOT P95",
    }
}

pub fn gates(policy: &Policy) -> String {
    let times = policy.limits().map(|(of, limit)| match limit {
        Some(limit) => format!(", {} at most {}", gate_on_time(of), seconds(limit)),
        None if of == TimeGate::P95 => format!(", P95 at most {DEFAULT_P95_FACTOR} x that of the lowest level"),
        None => String::new(),
    });
    let slo =
        policy.slo.map(|slo| format!(", at least {} of the requests with {}", written(slo.attainment), limits(&slo)));
    let (errors, tolerance) = (error_rate(policy.max_error_rate), percent(policy.tolerance));
    let best = maximised(policy.objective);
    format!(
        "error rate below {errors}{}{}; within {tolerance} of the best {best}",
        times.concat(),
        slo.unwrap_or_default()
    )
}

/// `TTFT up to 500 ms, latency up to 2.00 s`
fn limits(slo: &Slo) -> String {
    let names = ["TTFT", "TPOT", "latency"].into_iter().zip(slo.limits());
    let limits = names.filter_map(|(name, (_, limit))| Some(format!("{name} up to {}", seconds(limit?))));
    limits.collect::<Vec<_>>().join(", ")
}

/// Empty for a plain pass.
pub fn causes(causes: &[Cause]) -> String {
    causes.iter().map(cause).collect::<Vec<_>>().join("; ")
}

fn cause(cause: &Cause) -> String {
    let uncertain = |interval: Option<String>| interval.map(|text| format!(" (uncertain: {text})")).unwrap_or_default();
    match cause {
        Cause::Interrupted => "interrupted before it was complete".to_owned(),
        Cause::LevelZero => "level 0 sends nothing".to_owned(),
        Cause::TooFewRequests { requests, least } => {
            format!("only {}, at least {least} are needed (benchmark.total_requests)", count(*requests, "request"))
        }
        Cause::NoValue { objective: Objective::Requests } => "no throughput".to_owned(),
        Cause::NoValue { objective: Objective::OutputTokens } => {
            "no output tokens per second (the server reports no token counts; policy.objective: requests needs none)"
                .to_owned()
        }
        Cause::NoValue { objective: Objective::Goodput } => "no goodput, since policy.slo is not set".to_owned(),
        Cause::ErrorRate { rate, limit, uncertain: spanning, outage } => {
            let spanning = uncertain(spanning.map(|interval| range(interval, error_rate)));
            let lost = outage.map(|outage| format!("; {}", found_no_server(&outage))).unwrap_or_default();
            format!("error rate {} is not below {}{spanning}{lost}", error_rate(*rate), error_rate(*limit))
        }
        Cause::ErrorRateUncertain { interval } => format!("error rate uncertain: {}", range(*interval, error_rate)),
        Cause::GivenUp { why: None } => "given up, since it had clearly failed".to_owned(),
        Cause::GivenUp { why: Some(why) } => format!("given up: {}", early_end(why)),
        Cause::EndedAtOnce { answers, of } => {
            format!("output shrank: {answers} of {} ended with their first token (output_shrank)", count(*of, "answer"))
        }
        Cause::OutputShrank { tokens, median } => format!(
            "output shrank: {tokens:.1} tokens per answer, against a median of {median:.1} over the levels (output_shrank)"
        ),
        Cause::TooSlow { gate: of, value, limit: above, uncertain: spanning } => {
            let spanning = uncertain(spanning.map(|interval| against(interval, above)));
            format!("{} {} is above {}{spanning}", gate_on_time(*of), seconds(*value), limit(*of, above))
        }
        Cause::TooFewMet { share, least, uncertain: spanning } => {
            let spanning = uncertain(spanning.map(|interval| range(interval, written)));
            let (share, least) = (written(*share), written(*least));
            format!("{share} of the requests meet policy.slo, and at least {least} must{spanning}")
        }
        Cause::MaybeTooFewMet { interval, least } => {
            let (interval, least) = (range(*interval, written), written(*least));
            format!("share of requests that meet policy.slo uncertain: {interval}, and at least {least} must")
        }
        Cause::Unknown { gate: Gate::Time(of) } => {
            let token_count = if *of == TimeGate::TpotP95 { " with a token count" } else { "" };
            let (name, key) = (gate_on_time(*of), of.key());
            format!("{name} is unknown, so it cannot meet {key}; only streamed answers{token_count} have one")
        }
        Cause::Unknown { .. } => {
            "goodput is unknown: a time that policy.slo limits was not measured, or goodput was counted by other limits"
                .to_owned()
        }
        Cause::MaybeTooSlow { gate: of, interval, limit: near } => {
            format!("{} uncertain: {}, the limit is {}", gate_on_time(*of), against(*interval, near), limit(*of, near))
        }
        Cause::Other { text } => text.clone(),
    }
}

pub(super) fn found_no_server(Outage { lost, requests, .. }: &Outage) -> String {
    format!("{lost} of {} could not reach the server", count(*requests, "request"))
}

/// Why a level ended before it was complete.
pub(super) fn early_end(end: &EarlyEnd) -> String {
    match end {
        EarlyEnd::WarmUpFailed => "every request of the warm-up failed".to_owned(),
        EarlyEnd::NoSuccess { seconds } => format!("no request succeeded for {seconds:.0} s"),
        EarlyEnd::TimeLimit { seconds } => format!("it did not finish within its time limit of {seconds:.0} s"),
        EarlyEnd::MostlyFailed { failed, requests } => {
            format!("{failed} of {requests} requests failed, those of the warm-up included")
        }
        EarlyEnd::Interrupted => "interrupted".to_owned(),
        EarlyEnd::OutOfTime => "benchmark.budget.max_minutes was reached".to_owned(),
        EarlyEnd::Other(text) => text.clone(),
    }
}

fn limit(gate: TimeGate, limit: &Limit) -> String {
    let source = match limit.from {
        Some((level, _)) => format!("{DEFAULT_P95_FACTOR} x that of level {level}"),
        None => gate.key().to_owned(),
    };
    format!("{} ({source})", seconds(limit.seconds))
}

/// The interval of a time, and that of its limit, if the limit has one.
fn against(interval: [f64; 2], limit: &Limit) -> String {
    let [low, high] = limit.interval;
    let limit = if low < high { format!(" against {}", range(limit.interval, seconds)) } else { String::new() };
    range(interval, seconds) + &limit
}

/// Why this level was chosen, or why there is no pick.
pub fn reason(recommendation: &Recommendation) -> String {
    // Recorded words already contain it.
    let client = recommendation.client_bound_at.filter(|_| !matches!(recommendation.reason, Reason::Other { .. }));
    let client = client
        .map(|level| format!("; but at level {level} this client was the limit, so the server may be capable of more"));
    let is_gone = recommendation.notes.iter().any(|note| matches!(note, Note::OpenOutage { .. }));
    let why = match recommendation.reason {
        Reason::NotDecided { .. } if is_gone => {
            "The server became unreachable before the answer was certain (outage): measure again once it stays up"
                .to_owned()
        }
        ref reason => why(reason),
    };
    why + &client.unwrap_or_default()
}

pub(super) fn why(reason: &Reason) -> String {
    match reason {
        Reason::WithinTolerance { objective, tolerance, of_best } => within_tolerance(*objective, *tolerance, *of_best),
        Reason::ByVisits { objective, tolerance } => {
            let (what, tolerance) = (maximised(*objective), percent(*tolerance));
            format!("The smallest level that is certain to be within about {tolerance} of the best {what}")
        }
        Reason::NotDecided { interval } => {
            let which = match interval {
                Some([low, high]) if low < high => {
                    format!("the smallest good level may be any from {low} to {high}")
                }
                Some([level, _]) => format!("level {level} is not certain to pass"),
                None => "too little was measured to say anything".to_owned(),
            };
            format!(
                "The run ended before the answer was certain: {which}; raise benchmark.budget if that ended the run, or measure on a quieter server"
            )
        }
        Reason::StillRising { level, is_highest } => {
            let tested = if *is_highest { "tested" } else { "that could be used" };
            format!(
                "Throughput still rises at {level}, the highest level {tested}, so the optimum is at least {level}: raise \
                 benchmark.max_concurrency and add higher benchmark.levels"
            )
        }
        Reason::LastPassing { level, failed, causes: of_failed } => {
            format!("{level} is the last level that passes every gate; level {failed} fails: {}", causes(of_failed))
        }
        Reason::LowestTested { level } => {
            format!("{level} is the lowest level tested and already within the tolerance, so the optimum may be lower")
        }
        Reason::NothingUsable { lowest: None } => "No level was measured".to_owned(),
        Reason::NothingUsable { lowest: Some((level, of_level)) } => {
            format!("No level could be used, not even the lowest, {level}: {}", causes(of_level))
        }
        Reason::OneLevel => {
            "Only one level could be used, and one level says nothing about the others: measure at least two".to_owned()
        }
        Reason::NothingQualifies { lowest: None } => "No level passes the gates".to_owned(),
        Reason::NothingQualifies { lowest: Some((level, of_level)) } => {
            let so = match level {
                1 => "so concurrency is not the cause",
                _ => "so concurrency is not the cause, or the optimum is lower still: measure level 1",
            };
            format!("No level passes the gates; even the lowest, {level}, fails ({}), {so}", causes(of_level))
        }
        Reason::TooNoisy { interval: [low, high], half_width } => format!(
            "Too noisy: the best level may be anything from {low} to {high}, and its throughput is known only to ±{}; send \
             more requests (benchmark.total_requests), or measure on a quieter server",
            percent(*half_width)
        ),
        Reason::Quota(reached) => quota(reached),
        Reason::Other { text } => text.clone(),
    }
}

fn within_tolerance(objective: Objective, tolerance: f64, of_best: Option<(f64, usize)>) -> String {
    let (what, tolerance) = (maximised(objective), percent(tolerance));
    match of_best {
        Some((share, best)) => {
            format!("The smallest level within {tolerance} of the best {what} ({} of that at {best})", percent(share))
        }
        None => format!("It has the best {what}, and no lower level comes within {tolerance} of it"),
    }
}

fn maximised(objective: Objective) -> &'static str {
    match objective {
        Objective::Requests => "throughput",
        Objective::OutputTokens => "output tokens per second",
        Objective::Goodput => "goodput",
    }
}

fn counted(counts: Counted) -> &'static str {
    match counts {
        Counted::Tokens => "token",
        Counted::Requests => "request",
    }
}

fn a_period(period: Period) -> &'static str {
    match period {
        Period::Second => " a second",
        Period::Minute => " a minute",
        Period::Hour => " an hour",
        Period::Day => " a day",
    }
}

fn quota(QuotaReached { limited, failed, server_limit, passed }: &QuotaReached) -> String {
    let quota = server_limit.exceeded.map(|quota| format!("a {} quota", counted(quota.counts)));
    let quota = quota.unwrap_or_else(|| "a quota".to_owned());
    let server_limit =
        limit_of_server(*server_limit).map(|text| format!("; the server states {text}")).unwrap_or_default();
    let (rate, enough) = match passed {
        Some(passed) => (what_passed(passed, &server_limit), enough(passed).unwrap_or_default()),
        None => (format!("stay within it{server_limit}"), String::new()),
    };
    format!(
        "{limited} of {} are HTTP 429: {quota} is the limit, not concurrency; {rate} (or ask for a higher \
         quota) instead of tuning the concurrency{enough}",
        count(*failed, "failure")
    )
}

fn what_passed(Passed { level, rps, tokens_per_minute, with_prompts, .. }: &Passed, server_limit: &str) -> String {
    let which = if *with_prompts { "tokens, prompts included" } else { "output tokens" };
    let tokens = tokens_per_minute.map(|tokens| format!(", {tokens:.0} {which}")).unwrap_or_default();
    let per_minute = 60.0 * rps;
    format!(
        "about {rps:.2} requests per second ({per_minute:.0} a minute{tokens}) passed at level {level}{server_limit}. Keep to that rate"
    )
}

fn enough(passed: &Passed) -> Option<String> {
    let (enough, latency, level) = passed.enough?;
    let latency = seconds(latency);
    Some(format!(": since a request takes {latency} at level {level}, {enough} in parallel are enough for that rate"))
}

/// The quota as the server reports it: the exhausted one, if that is known.
fn limit_of_server(by_server: RateLimit) -> Option<String> {
    let header = |limit: Option<u64>, counts: Counted, reset_s: Option<f64>| {
        let full = reset_s.map(|s| format!(", reset in {}", seconds(s))).unwrap_or_default();
        let what = counted(counts);
        Some(format!("{} (in its ratelimit headers{full})", count(limit?, what)))
    };
    let requests = || header(by_server.limit_requests, Counted::Requests, by_server.reset_s);
    let tokens = || header(by_server.limit_tokens, Counted::Tokens, by_server.reset_tokens_s);
    match by_server.exceeded {
        Some(Quota { counts, limit: Some(limit), per }) => {
            Some(format!("{}{}", count(limit, counted(counts)), per.map_or("", a_period)))
        }
        Some(Quota { counts: Counted::Tokens, .. }) => tokens(),
        Some(Quota { counts: Counted::Requests, .. }) => requests(),
        None => match (requests(), tokens()) {
            (Some(requests), Some(tokens)) => Some(format!("{requests} and {tokens}")),
            (requests, tokens) => requests.or(tokens),
        },
    }
}
