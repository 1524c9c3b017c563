//! The quotas a server reports: the headers `x-ratelimit-…` (or `anthropic-ratelimit-…`),
//! `retry-after`, and the text of a 429.

use std::time::{Duration, SystemTime};

use reqwest::header::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::failure::error_text;

/// The quotas that a server reports; `None` where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RateLimit {
    /// The whole quota, usually per minute.
    pub limit_requests: Option<u64>,
    pub remaining_requests: Option<u64>,
    /// Seconds until it is full again.
    pub reset_s: Option<f64>,
    pub limit_tokens: Option<u64>,
    pub remaining_tokens: Option<u64>,
    pub reset_tokens_s: Option<f64>,
    /// The quota that caused a 429.
    pub exceeded: Option<Quota>,
}

impl RateLimit {
    /// `later`, with its missing values taken from `self`.
    pub fn updated(self, later: RateLimit) -> Self {
        RateLimit {
            limit_requests: later.limit_requests.or(self.limit_requests),
            remaining_requests: later.remaining_requests.or(self.remaining_requests),
            reset_s: later.reset_s.or(self.reset_s),
            limit_tokens: later.limit_tokens.or(self.limit_tokens),
            remaining_tokens: later.remaining_tokens.or(self.remaining_tokens),
            reset_tokens_s: later.reset_tokens_s.or(self.reset_tokens_s),
            exceeded: later.exceeded.or(self.exceeded),
        }
    }
}

/// A quota as described in a 429.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    pub counts: Counted,
    pub limit: Option<u64>,
    pub per: Option<Period>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Counted {
    Requests,
    /// Tokens of prompts, answers or both.
    Tokens,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    Second,
    Minute,
    Hour,
    Day,
}

/// How long to wait: `retry-after-ms`, which OpenAI also sends, or `Retry-After` in seconds or as a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &str| text(name)?.parse::<f64>().ok();
    let seconds = number("retry-after-ms").map(|ms| ms / 1e3).or_else(|| number("retry-after"));
    if let Some(seconds) = seconds {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = |name: &str| httpdate::parse_http_date(text(name)?).ok();
    // By the server's own clock if it sends the time: the clocks may differ.
    let now = date("date").unwrap_or_else(SystemTime::now);
    Some(date("retry-after")?.duration_since(now).unwrap_or_default())
}

/// The quotas in the headers, under OpenAI's or Anthropic's names; `None` if there are none.
/// Anthropic's reset times are dates, which are ignored.
pub(super) fn rate_limit(headers: &HeaderMap) -> Option<RateLimit> {
    let mut limit = RateLimit::default();
    // Every answer is searched: one pass over the headers is cheaper than a lookup per name.
    for (name, value) in headers {
        let name = name.as_str();
        let of = |prefix| name.strip_prefix(prefix);
        let Some(what) = of("x-ratelimit-").or_else(|| of("anthropic-ratelimit-")) else { continue };
        let Some(text) = value.to_str().ok().map(str::trim) else { continue };
        let number = text.parse().ok();
        match what {
            "limit-requests" | "requests-limit" => limit.limit_requests = number,
            "remaining-requests" | "requests-remaining" => limit.remaining_requests = number,
            "reset-requests" => limit.reset_s = written_duration(text),
            "limit-tokens" | "tokens-limit" => limit.limit_tokens = number,
            "remaining-tokens" | "tokens-remaining" => limit.remaining_tokens = number,
            "reset-tokens" => limit.reset_tokens_s = written_duration(text),
            _ => {}
        }
    }
    (limit != RateLimit::default()).then_some(limit)
}

/// The quota that caused a 429: from the error's type (OpenAI's `tokens` or `requests`) or
/// text, else from the quotas left according to its headers.
pub(super) fn exceeded(body: &[u8], headers: RateLimit) -> Option<Quota> {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let kind = value.pointer("/error/type").and_then(Value::as_str);
    let text = error_text(body).to_lowercase().replace(',', "");
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    // "tokens per min", "token rate limit", "TPM"
    let names = |what: &str, short: [&str; 2]| {
        let before = ["per", "rate", "limit", "quota"];
        words.windows(2).any(|pair| pair[0].trim_end_matches('s') == what && before.contains(&pair[1]))
            || words.iter().any(|word| short.contains(word))
    };
    let counts = match (kind, names("request", ["rpm", "rpd"]), names("token", ["tpm", "tpd"])) {
        (Some("requests"), ..) => Counted::Requests,
        (Some("tokens"), ..) => Counted::Tokens,
        (_, true, false) => Counted::Requests,
        (_, false, true) => Counted::Tokens,
        _ => match (headers.remaining_requests, headers.remaining_tokens) {
            (Some(0), Some(0)) => return None,
            (Some(0), _) => Counted::Requests,
            // Some requests are left, so it must be the tokens.
            (_, Some(0)) | (Some(_), Some(_)) => Counted::Tokens,
            _ => return None,
        },
    };
    let per = words.iter().zip(words.iter().skip(1).chain(&[""])).find_map(|(word, next)| match (*word, *next) {
        ("rpm" | "tpm", _) | ("per", "min" | "minute") => Some(Period::Minute),
        ("rpd" | "tpd", _) | ("per", "day") => Some(Period::Day),
        ("per", "hour") => Some(Period::Hour),
        ("per", "second" | "sec") => Some(Period::Second),
        _ => None,
    });
    // "Limit 30000", "limit of 30,000"
    let limits = words.windows(3).filter(|words| words[0] == "limit");
    let limit = limits.map(|words| words[1 + usize::from(words[1] == "of")]).find_map(|word| word.parse().ok());
    Some(Quota { counts, limit, per })
}

/// Parses `6m0s`, `1.5s`, `20ms` or plain seconds; returns seconds.
fn written_duration(text: &str) -> Option<f64> {
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len()));
        let (unit, next) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let unit = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" | "" => 1.0,
            "ms" => 1e-3,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = next;
    }
    (!text.is_empty()).then_some(seconds)
}
