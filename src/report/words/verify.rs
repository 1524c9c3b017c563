//! Which request rates a given concurrency carries.

use super::decision::{early_end, gate_on_time as name};
use super::numbers::{count, number, or_unknown, percent, rate, seconds, time};
use crate::decide::verify::{NotCarried, Verified, not_carried};
use crate::decide::{Policy, Recommendation, TimeGate};
use crate::figures::{EarlyEnd, OpenLoad};

pub fn no_room_at_all(requests: u64, key: &str) -> String {
    format!("Nothing was sent: {} might already exceed benchmark.budget.{key}.", count(requests, "request"))
}

pub fn arrivals_planned(count: usize, rates: &[f64], permits: usize) -> String {
    let each = if rates.len() > 1 { "each of " } else { "" };
    let rates: Vec<String> = rates.iter().map(|&rate| number(Some(rate), 1)).collect();
    format!("{count} arrivals at {each}{} requests/s, at most {permits} in flight,", rates.join(", "))
}

/// Why a result cannot be relied on.
pub fn no_number(decided: &Recommendation) -> String {
    match decided.recommended_concurrency {
        Some(_) => format!("it is provisional (status {})", decided.status),
        None => format!("its status is {}", decided.status),
    }
}

pub const LOAD_HEADER: [&str; 9] =
    ["arrivals/s", "load", "wait", "wait P95", "latency", "P95, wait included", "errors", "kept up", "n"];

/// Cells under [`LOAD_HEADER`], and the reason if the load is not carried.
pub fn load_row(load: &OpenLoad, throughput_rps: f64, policy: &Policy) -> (Vec<String>, String) {
    let (wait, latency) = (load.wait_s.unwrap_or_default(), load.latency_s.unwrap_or_default());
    let cells = vec![
        number(Some(load.rate_rps), 2),
        percent(load.rate_rps / throughput_rps),
        time(wait.mean),
        time(wait.p95),
        time(latency.mean),
        time(latency.p95),
        rate(load.failed as f64 / load.requests.max(1) as f64),
        percent(load.kept_up),
        load.requests.to_string(),
    ];
    let why = match not_carried(load, policy) {
        None => String::new(),
        Some(NotCarried::Overloaded) => "overload: the queue keeps growing; cut short".to_owned(),
        Some(NotCarried::Cut) => "stopped before all requests had arrived".to_owned(),
        Some(NotCarried::Errors(error_rate)) => {
            format!("error rate {} is not below {}", rate(error_rate), percent(policy.max_error_rate))
        }
        Some(NotCarried::Slo(share, least)) => {
            format!(
                "{} of the requests meet policy.slo, waiting included, and at least {} must",
                rate(share),
                percent(least)
            )
        }
        Some(NotCarried::Limit(gate, limit, is)) => {
            let waiting = if gate == TimeGate::TpotP95 { "" } else { ", waiting included" };
            format!("{} {} is above {}{waiting}", name(gate), or_unknown(is, seconds), seconds(limit))
        }
    };
    (cells, why)
}

pub fn carries(verified: &Verified) -> String {
    let n = verified.concurrency;
    let answer = match (verified.carries_rps, verified.loads.first()) {
        (Some(rps), _) => {
            let load = verified.loads.iter().find(|load| load.rate_rps == rps);
            let p95 = load.and_then(|load| load.latency_s?.p95);
            let is_last = verified.and_maybe_more && verified.no_room.is_none();
            let most = if is_last { " No higher rate was tried." } else { "" };
            format!("N = {n} carries {rps:.1} requests/s with a P95 of {}, waiting included.{most}", time(p95))
        }
        (None, Some(load)) => format!("N = {n} does not carry {:.1} requests/s.", load.rate_rps),
        // Unless interrupted, only the time may end it so soon.
        (None, None) => {
            let why = early_end(&EarlyEnd::OutOfTime);
            format!("What N = {n} carries is not known: {why} before the first rate was tried.")
        }
    };
    let no_room =
        verified.no_room.as_ref().map(|key| format!(" benchmark.budget.{key} left no room for higher rates."));
    answer + &no_room.unwrap_or_default()
}
