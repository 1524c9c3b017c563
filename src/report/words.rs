//! Verdicts, reasons and notes in English, and how numbers are written. No other code looks into these sentences.

use serde_json::{Value, json};

use crate::client::outcome::{Counted, Period, Quota, RateLimit};
use crate::decide::causes::{ClientLimit, Drifted, P95Limit, Passed, QuotaReached};
use crate::decide::{Cause, DEFAULT_P95_FACTOR, Note, Objective, Reason, Recommendation, Status};
use crate::figures::{LevelSummary, Outage};

// ---- numbers ----

/// Levels in a row.
pub fn list(levels: &[usize]) -> String {
    levels.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// Stands where a figure is not known.
pub const UNKNOWN: &str = "-";

/// A fraction as percent.
pub fn percent(rate: f64) -> String {
    format!("{:.2} %", rate * 100.0)
}

/// A time.
pub fn seconds(s: f64) -> String {
    if s < 1.0 { format!("{:.0} ms", s * 1000.0) } else { format!("{s:.2} s") }
}

fn range([low, high]: [f64; 2], write: fn(f64) -> String) -> String {
    format!("{} to {}", write(low), write(high))
}

/// Before the status wherever a number of the embedded simulator stands.
pub fn simulated(is_simulated: bool) -> &'static str {
    if is_simulated { "SIMULATED, " } else { "" }
}

// ---- levels ----

/// Why a level has its verdict; empty for a plain pass.
pub fn causes(causes: &[Cause]) -> String {
    causes.iter().map(cause).collect::<Vec<_>>().join("; ")
}

fn cause(cause: &Cause) -> String {
    let uncertain =
        |interval: Option<String>| interval.map_or_else(String::new, |text| format!(" (uncertain: {text})"));
    match cause {
        Cause::Interrupted => "interrupted before it was complete".to_owned(),
        Cause::LevelZero => "level 0 sends nothing".to_owned(),
        Cause::TooFewRequests { requests, least } => {
            format!("n = {requests}, at least {least} are needed (benchmark.total_requests)")
        }
        Cause::NoValue { objective: Objective::Requests } => "no throughput".to_owned(),
        Cause::NoValue { objective: Objective::OutputTokens } => {
            "no output tokens per second (the server reports no token counts; policy.objective: requests needs none)"
                .to_owned()
        }
        Cause::ErrorRate { rate, limit, uncertain: spans, outage } => {
            let lost =
                outage.map(|Outage { lost, requests, .. }| format!("; {lost} of {requests} requests found no server"));
            let spans = uncertain(spans.map(|interval| range(interval, percent)));
            format!("error rate {} is not below {}{spans}{}", percent(*rate), percent(*limit), lost.unwrap_or_default())
        }
        Cause::ErrorRateUncertain { interval } => format!("error rate uncertain: {}", range(*interval, percent)),
        Cause::GivenUp { why } => format!("given up: {}", why.as_deref().unwrap_or("it had clearly failed")),
        Cause::EndedAtOnce { answers, of } => {
            format!("output shrank: {answers} of {of} answers ended with their first token (output_shrank)")
        }
        Cause::OutputShrank { tokens, median } => format!(
            "output shrank: {tokens:.1} tokens per answer where the levels' median is {median:.1} (output_shrank)"
        ),
        Cause::P95 { p95, limit, uncertain: spans } => {
            let spans = uncertain(spans.map(|interval| against(interval, limit)));
            format!("P95 {} is above {}{spans}", seconds(*p95), p95_limit(limit))
        }
        Cause::P95Uncertain { interval, limit } => {
            format!("P95 uncertain: {}, the limit is {}", against(*interval, limit), p95_limit(limit))
        }
        Cause::P99 { p99, limit } => format!("P99 {} is above max_p99_seconds {}", seconds(*p99), seconds(*limit)),
    }
}

fn p95_limit(limit: &P95Limit) -> String {
    match limit.from {
        Some((level, p95)) => format!("{DEFAULT_P95_FACTOR} x the {} of level {level}", seconds(p95)),
        None => format!("max_p95_seconds {}", seconds(limit.seconds)),
    }
}

/// The interval of a P95, and that of a limit that is no better known.
fn against(interval: [f64; 2], limit: &P95Limit) -> String {
    let [low, high] = limit.interval;
    let limit = if low < high { format!(" against {}", range(limit.interval, seconds)) } else { String::new() };
    range(interval, seconds) + &limit
}

// ---- the answer ----

/// What to do, for a config that holds the number `present`, and what that changes where both levels were measured.
pub fn headline(recommendation: &Recommendation, present: Option<usize>) -> String {
    let simulated = if recommendation.simulated { "SIMULATED: " } else { "" };
    let headline = match (recommendation.recommended_concurrency, present) {
        (None, _) => "There is no number to recommend.".to_owned(),
        (Some(pick), _) if recommendation.provisional => {
            format!("First look: about {pick} in parallel, not confirmed.")
        }
        (Some(1), None) => "Send 1 request at a time.".to_owned(),
        (Some(pick), None) => format!("Send {pick} requests in parallel."),
        (Some(pick), Some(now)) if now == pick => format!("Keep concurrency at {pick}."),
        (Some(pick), Some(now)) => {
            let verb = if now < pick { "Raise" } else { "Lower" };
            let effect = effect(recommendation, now, pick).map(|effect| format!(": {effect}"));
            format!("{verb} concurrency from {now} to {pick}{}.", effect.unwrap_or_default())
        }
    };
    format!("{simulated}{headline}")
}

/// Throughput and P95 at one level against those at another.
fn effect(recommendation: &Recommendation, from: usize, to: usize) -> Option<String> {
    let at = |level| recommendation.levels.iter().map(|level| &level.summary).find(|s| s.concurrency == level);
    let (before, after) = (at(from)?, at(to)?);
    let rps = |summary: &LevelSummary| summary.throughput_rps.map(|t| t.estimate).filter(|&rps| rps > 0.0);
    let change = 100.0 * (rps(after)? / rps(before)? - 1.0);
    let throughput = match change.round() {
        0.0 => "the same throughput".to_owned(),
        more if more > 0.0 => format!("{more:.0} % more throughput"),
        less => format!("{:.0} % less throughput", -less),
    };
    let p95 = |summary: &LevelSummary| summary.latency_s.and_then(|latency| latency.p95).map(seconds);
    let p95 = p95(before).zip(p95(after)).map(|(before, after)| format!(", P95 {after} instead of {before}"));
    Some(throughput + &p95.unwrap_or_default())
}

/// The status in plain words, and the interval.
pub fn how_sure(recommendation: &Recommendation) -> String {
    let meaning = match recommendation.status {
        Status::Ok => "The optimum lies inside the levels measured",
        Status::NotSaturated => "Throughput still rises at the highest level: the optimum is at least this",
        Status::LimitedByGate => "A higher level failed on errors or latency",
        Status::AtOrBelowLowest => "The lowest level measured is enough; the optimum may be lower",
        Status::RateLimited => "A quota (HTTP 429) is the limit, not concurrency",
        Status::Unresolved => "The measurements do not decide",
        Status::NoQualifyingLevel => "Every level fails",
    };
    let interval = match (recommendation.interval, recommendation.recommended_concurrency) {
        (Some([low, high]), _) if low == high => format!(" (95 % interval: {low})"),
        (Some([low, high]), _) => format!(" (95 % interval: {low} to {high})"),
        (None, Some(_)) => " (interval unknown)".to_owned(),
        (None, None) => String::new(),
    };
    format!("{meaning}{interval}.")
}

/// Why this level was chosen, or none.
pub fn reason(recommendation: &Recommendation) -> String {
    let client = recommendation
        .client_bound_at
        .map(|level| format!("; but at level {level} this client was the limit, so the server may do more"));
    why(&recommendation.reason) + &client.unwrap_or_default()
}

/// The same without what else holds.
pub fn why(reason: &Reason) -> String {
    match reason {
        Reason::WithinTolerance { objective, tolerance, of_best } => within_tolerance(*objective, *tolerance, *of_best),
        Reason::StillRising { level, is_highest } => {
            let tested = if *is_highest { "tested" } else { "that could be used" };
            format!(
                "throughput still rises at {level}, the highest level {tested}: the optimum is at least {level}; raise \
                 benchmark.max_concurrency and add higher benchmark.levels"
            )
        }
        Reason::LastPassing { level, failed, causes: of_failed } => {
            format!("{level} is the last level that passes every gate; level {failed} fails: {}", causes(of_failed))
        }
        Reason::LowestTested { level } => {
            format!("{level} is the lowest level tested and already within tolerance: the optimum may be lower")
        }
        Reason::NothingUsable { lowest: None } => "no level was measured".to_owned(),
        Reason::NothingUsable { lowest: Some((level, of_level)) } => {
            format!("no level could be used; the lowest, {level}: {}", causes(of_level))
        }
        Reason::OneLevel => {
            "only one level could be used, and one level says nothing about the others: measure at least two".to_owned()
        }
        Reason::NothingQualifies { lowest: None } => "no level passes the gates".to_owned(),
        Reason::NothingQualifies { lowest: Some((level, of_level)) } => {
            let so = match level {
                1 => "so concurrency is not the cause",
                _ => "so the cause is not concurrency, or the optimum is lower still: measure level 1",
            };
            let why = causes(of_level);
            format!("no level passes the gates; the lowest level, {level}, fails as well ({why}), {so}")
        }
        Reason::Drifted { changes } => format!(
            "the server changed its speed during the run: {}; measure again when nobody else uses it, or at the time \
             you normally run",
            changes.iter().map(drifted).collect::<Vec<_>>().join("; ")
        ),
        Reason::TooNoisy { interval: [low, high], half_width } => format!(
            "too noisy: the pick lies anywhere from {low} to {high}, with throughput known only to ±{}; measure more \
             requests (benchmark.total_requests) or on a quieter server",
            percent(*half_width)
        ),
        Reason::Quota(reached) => quota(reached),
    }
}

fn within_tolerance(objective: Objective, tolerance: f64, of_best: Option<(f64, usize)>) -> String {
    let what = match objective {
        Objective::Requests => "throughput",
        Objective::OutputTokens => "output tokens per second",
    };
    let tolerance = percent(tolerance);
    match of_best {
        Some((share, best)) => {
            format!("the smallest level within {tolerance} of the best {what} ({} of that at {best})", percent(share))
        }
        None => format!("it has the best {what}, and no lower level comes within {tolerance} of it"),
    }
}

fn drifted(Drifted { level, first, confirmed, change }: &Drifted) -> String {
    let change = 100.0 * change;
    format!("level {level} gave {first:.2} requests/s at first and {confirmed:.2} when measured again ({change:+.1} %)")
}

fn quota(QuotaReached { limited, failed, said, passed }: &QuotaReached) -> String {
    let quota = match said.exceeded.map(|quota| quota.counts) {
        Some(Counted::Tokens) => "a token quota",
        Some(Counted::Requests) => "a request quota",
        None => "a quota",
    };
    let stated = stated(*said).unwrap_or_default();
    let (rate, enough) = match passed {
        Some(passed) => (what_passed(passed, &stated), enough(passed).unwrap_or_default()),
        None => (format!("keep to what is granted{stated}"), String::new()),
    };
    format!(
        "{limited} of {failed} failures are HTTP 429: {quota} is the limit, not concurrency; {rate} (or ask for a higher \
         quota) instead of tuning the concurrency{enough}"
    )
}

fn what_passed(Passed { level, rps, tokens_per_minute, with_prompts, .. }: &Passed, stated: &str) -> String {
    let which = if *with_prompts { "tokens, prompts included" } else { "output tokens" };
    let tokens = tokens_per_minute.map_or_else(String::new, |tokens| format!(", {tokens:.0} {which}"));
    let per_minute = 60.0 * rps;
    format!(
        "about {rps:.2} requests per second ({per_minute:.0} a minute{tokens}) passed at level {level}{stated}. Keep to that rate"
    )
}

fn enough(passed: &Passed) -> Option<String> {
    let (enough, latency, level) = passed.enough?;
    let latency = seconds(latency);
    Some(format!(": at the {latency} that a request takes at level {level}, {enough} in parallel are enough for it"))
}

/// The quota as the server states it: the one that was used up, where that is known.
fn stated(said: RateLimit) -> Option<String> {
    let requests = (said.limit_requests, "requests", "x-ratelimit-limit-requests", said.reset_s);
    let tokens = (said.limit_tokens, "tokens", "x-ratelimit-limit-tokens", said.reset_tokens_s);
    let header = |(limit, what, header, reset_s): (Option<u64>, &str, &str, Option<f64>)| {
        let full = reset_s.map_or_else(String::new, |s| format!(", full again in {}", seconds(s)));
        Some(format!("{} {what} ({header}{full})", limit?))
    };
    let stated = match said.exceeded {
        Some(Quota { counts, limit: Some(limit), per }) => {
            let per = per.map_or("", Period::words);
            Some(format!("{limit} {}{per}", if counts == Counted::Tokens { "tokens" } else { "requests" }))
        }
        Some(Quota { counts: Counted::Tokens, .. }) => header(tokens),
        Some(Quota { counts: Counted::Requests, .. }) => header(requests),
        None => match (header(requests), header(tokens)) {
            (Some(requests), Some(tokens)) => Some(format!("{requests} and {tokens}")),
            (requests, tokens) => requests.or(tokens),
        },
    };
    Some(format!("; the server states {}", stated?))
}

// ---- notes ----

/// What else is worth knowing.
pub fn note(note: &Note) -> String {
    match note {
        Note::BelowConcurrency { level, in_flight, held } => {
            let held = held.map_or_else(String::new, |held| format!(", {held:.1} held back after failures"));
            format!("level {level} never ran at its concurrency: {in_flight:.1} in flight on average{held}")
        }
        Note::ClientBound { level, limit } => format!(
            "level {level}: this client was the limit ({}), so the figures may be too low; use a release build, a quieter \
             or a faster machine",
            client_limit(limit)
        ),
        Note::EndedAtOnce { level, answers } => {
            format!("level {level}: {answers} answers have no content, since their first token ended them")
        }
        Note::OfLevel { level, text } => format!("level {level}: {text}"),
        Note::SetAside { level, outage: Outage { lost, requests, .. } } => format!(
            "level {level} was measured again: {lost} of {requests} requests found no server (outage); what it disturbed \
             is set aside"
        ),
        Note::PriceOfP95 { level, reached, best, objective } => format!(
            "the P95 gate costs {} of throughput (level {level} reached {reached:.2} {}); set policy.max_p95_seconds to \
             choose the limit yourself",
            percent(1.0 - best / reached),
            objective.unit()
        ),
        Note::ServerLimitUnchecked { level } => format!("level {level} was not checked against the server's own limit"),
        Note::Small { level, requests: Some(requests), full } => {
            format!("level {level} was measured with {requests} requests; a full result takes at least {full}")
        }
        Note::Small { level, requests: None, .. } => {
            format!("level {level}: the number of requests is unknown, so its size was not checked")
        }
        Note::NoErrorRate { level } => format!("level {level}: the error rate is unknown, so its gate was not checked"),
        Note::NoP95 { level } => format!("level {level}: P95 is unknown, so its gate was not checked"),
        Note::NoP99 { level, least } => {
            format!("level {level}: P99 needs at least {least} requests, so its gate was not checked")
        }
        Note::NoSpread { levels } => format!("no interval: the spread of level {} is unknown", list(levels)),
        Note::OpenOutage { level, outage: Outage { lost, requests, measurements, of, .. } } => {
            let times = match of {
                0 | 1 => "and it was not measured again".to_owned(),
                _ => format!("in {measurements} of {of} measurements"),
            };
            format!("level {level}: {lost} of {requests} requests found no server (outage), {times}")
        }
        Note::DriftNotChecked => "drift: not checked, since no level was measured a second time".to_owned(),
        Note::NoCurve { why } => format!("no scalability curve (USL): {why}"),
        Note::Quick => "a quick run: fewer levels and requests than a full one".to_owned(),
        Note::UnlistedModel => {
            "the server lists other models and not llm.model, so it may be another that answered: see `llm-concurrency check`"
                .to_owned()
        }
        Note::OfRun { text } => text.clone(),
    }
}

/// By what this client was the limit.
fn client_limit(limit: &ClientLimit) -> String {
    match limit {
        ClientLimit::Cpu { cores, most } => format!("its load thread took {cores:.2} of a core, above {most}"),
        ClientLimit::Timers { late_s, most_s } => {
            format!("its timers were {:.1} ms late at P95, above {:.1} ms", 1e3 * late_s, 1e3 * most_s)
        }
    }
}

// ---- files ----

/// The recommendation as JSON, for programs: its causes as data, and beside them the same in words for those who read.
pub fn with_words(recommendation: &Recommendation) -> Value {
    let mut value = json!(recommendation);
    value["reason"] = json!(reason(recommendation));
    value["notes"] = recommendation.notes.iter().map(note).collect();
    for (at, level) in recommendation.levels.iter().enumerate() {
        value["levels"][at]["why"] = json!(causes(&level.causes));
    }
    value
}
