//! What is printed: the table of levels, the answer, and what to do when nothing works.

use std::fmt::{self, Write as _};

use crate::client::Endpoint;
use crate::client::outcome::{Failed, Failure};
use crate::decide::compare::{Change, Comparison, Doubt, Moved, Regression};
use crate::decide::{JudgedLevel, Recommendation, Verdict, passing};
use crate::figures::{Distribution, Estimate, LevelSummary, SizeSummary};
use crate::load::preflight::{Probe, Which};
use crate::report::words::{self, percent, seconds};
use crate::settings::Settings;

/// The table of all levels with their verdicts, and that of the recommended level by prompt size.
pub fn table(recommendation: &Recommendation) -> String {
    let by_size = chosen(recommendation).map(by_size).unwrap_or_default();
    levels(recommendation) + &by_size
}

fn levels(recommendation: &Recommendation) -> String {
    let best = best_passing(recommendation);
    let header =
        ["level", "req/s", "±", "of best", "mean", "P50", "P95", "P99", "TTFT P50", "TPOT", "tok/s", "errors", "n"];
    let mut rows: Vec<Vec<String>> = vec![header.map(str::to_owned).to_vec()];
    rows.extend(recommendation.levels.iter().map(|level| row(&level.summary, best)));
    let verdicts = recommendation.levels.iter().map(|level| verdict(level, recommendation.recommended_concurrency));
    aligned(&rows, std::iter::once("verdict".to_owned()).chain(verdicts))
}

/// Cells in columns, right-aligned, each row with a remark at its end.
fn aligned(rows: &[Vec<String>], remarks: impl Iterator<Item = String>) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (row, remark) in rows.iter().zip(remarks) {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}"));
        let _ = writeln!(text, "{}  {remark}", cells.collect::<Vec<_>>().join("  "));
    }
    text
}

/// Empty where all prompts have the same size.
fn by_size(level: &JudgedLevel) -> String {
    let summary = &level.summary;
    if summary.by_size.is_empty() {
        return String::new();
    }
    let header = ["P50", "P95", "tokens out", "n"].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(summary.by_size.iter().map(size_row)).collect();
    let sizes = summary.by_size.iter().map(|part| part.size.clone());
    let table = aligned(&rows, std::iter::once("prompts".to_owned()).chain(sizes));
    format!("\nlevel {} by the size of the prompts:\n{table}", summary.concurrency)
}

/// The cells of the prompts of one size, from P50 to n.
pub(super) fn size_row(part: &SizeSummary) -> Vec<String> {
    let latency = part.latency_s.unwrap_or_default();
    let tokens = part.mean_output_tokens.map_or_else(dash, |tokens| format!("{tokens:.1}"));
    let time = |value: Option<f64>| value.map_or_else(dash, seconds);
    vec![time(latency.p50), time(latency.p95), tokens, part.requests.to_string()]
}

/// The best throughput of the levels that pass.
pub(super) fn best_passing(recommendation: &Recommendation) -> Option<f64> {
    passing(&recommendation.levels).filter_map(throughput).filter(|&rps| rps > 0.0).max_by(f64::total_cmp)
}

fn throughput(level: &JudgedLevel) -> Option<f64> {
    level.summary.throughput_rps.map(|t| t.estimate)
}

/// The cells of a level, from the level itself to n.
pub(super) fn row(summary: &LevelSummary, best: Option<f64>) -> Vec<String> {
    let latency = summary.latency_s.unwrap_or_default();
    let time = |value: Option<f64>| value.map_or_else(dash, seconds);
    let p50 = |distribution: Option<Distribution>| time(distribution.and_then(|d| d.p50));
    let number = |value: Option<f64>, digits: usize| value.map_or_else(dash, |v| format!("{v:.digits$}"));
    let rps = summary.throughput_rps.map(|t| t.estimate);
    vec![
        summary.concurrency.to_string(),
        number(rps, 2),
        number(summary.throughput_rps.and_then(half_width), 2),
        rps.zip(best).map_or_else(dash, |(rps, best)| format!("{:.3}", rps / best)),
        time(latency.mean),
        time(latency.p50),
        time(latency.p95),
        time(latency.p99),
        p50(summary.ttft_s),
        p50(summary.tpot_s),
        number(summary.output_tps, 0),
        summary.error_rate.map_or_else(dash, percent),
        summary.requests.map_or_else(dash, |n| n.to_string()),
    ]
}

/// Cells of the longest bar.
const BAR: f64 = 48.0;
const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// Throughput by level as bars, for a terminal; with `colour` the chosen level is green and what fails is red.
pub fn plot(recommendation: &Recommendation, colour: bool) -> String {
    let known = |level: &JudgedLevel| throughput(level).filter(|rps| rps.is_finite() && *rps >= 0.0);
    let best = recommendation.levels.iter().filter_map(known).fold(0.0, f64::max);
    if best <= 0.0 {
        return String::new();
    }
    let widest = recommendation.levels.iter().map(|level| level.summary.concurrency.to_string().len()).max();
    let width = widest.unwrap_or_default().max("level".len());
    let mut text = format!("{:>width$}  requests/s\n", "level");
    for level in &recommendation.levels {
        let Some(rps) = known(level) else { continue };
        let eighths = (rps / best * BAR * 8.0).round() as usize;
        let bar = "█".repeat(eighths / 8) + EIGHTHS[eighths % 8];
        let is_chosen = recommendation.recommended_concurrency == Some(level.summary.concurrency);
        let (word, paint) = match level.verdict {
            _ if is_chosen => ("  <- recommended", "32"),
            Verdict::Pass => ("", ""),
            Verdict::Fail => ("  fail", "31"),
            Verdict::NotUsed => ("  not used", "2"),
        };
        let bar = if colour && !paint.is_empty() { format!("\x1b[{paint}m{bar}\x1b[0m") } else { bar };
        let _ = writeln!(text, "{:>width$}  {bar} {rps:.2}{word}", level.summary.concurrency);
    }
    text + "\n"
}

fn half_width(estimate: Estimate) -> Option<f64> {
    Some((estimate.upper? - estimate.lower?) / 2.0)
}

fn dash() -> String {
    words::UNKNOWN.to_owned()
}

fn verdict(level: &JudgedLevel, recommended: Option<usize>) -> String {
    let word = match level.verdict {
        Verdict::Pass if recommended == Some(level.summary.concurrency) => "pass  <- recommended",
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::NotUsed => "not used",
    };
    match why(level) {
        why if why.is_empty() => word.to_owned(),
        why if level.causes.is_empty() => format!("{word} {why}"),
        why => format!("{word}: {why}"),
    }
}

/// Why a level got its verdict, and its failures by kind; empty for a plain pass without any.
pub(super) fn why(level: &JudgedLevel) -> String {
    let mut failures: Vec<String> =
        level.summary.failures.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let main = level.summary.main_failure.as_ref().filter(|_| level.verdict == Verdict::Fail);
    failures.extend(main.map(|reason| format!("mostly \"{}\"", cut(&reason.text, LONGEST_QUOTE))));
    let failures = if failures.is_empty() { String::new() } else { format!("({})", failures.join(", ")) };
    let parts = [words::causes(&level.causes), failures];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Characters of a server's own words in the table.
const LONGEST_QUOTE: usize = 100;

/// The beginning of a text.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The answer as a user would want it.
pub fn answer(recommendation: &Recommendation) -> String {
    let mut text = String::new();
    match chosen(recommendation) {
        Some(level) => describe_choice(&mut text, recommendation, level),
        None => {
            let simulated = words::simulated(recommendation.simulated);
            let _ = writeln!(text, "No recommendation ({simulated}{})", recommendation.status.name());
            let _ = writeln!(text, "  {}", words::reason(recommendation));
        }
    }
    if recommendation.simulated {
        let _ = writeln!(text, "  SIMULATED: the embedded simulator was measured, no server of yours");
    }
    for note in recommendation.notes.iter().map(words::note).chain(advice(recommendation)) {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}

pub(super) fn chosen(recommendation: &Recommendation) -> Option<&JudgedLevel> {
    let pick = recommendation.recommended_concurrency?;
    recommendation.levels.iter().find(|level| level.summary.concurrency == pick)
}

fn describe_choice(text: &mut String, recommendation: &Recommendation, level: &JudgedLevel) {
    let summary = &level.summary;
    let interval = match recommendation.interval {
        Some([low, high]) if low == high => format!(", interval {low}"),
        Some([low, high]) => format!(", interval {low} to {high}"),
        None => String::new(),
    };
    let simulated = words::simulated(recommendation.simulated);
    let (answer, provisional) = match recommendation.provisional {
        true => (format!("First look: about {}, not confirmed", summary.concurrency), "provisional, "),
        false => (format!("Optimal concurrency: {}", summary.concurrency), ""),
    };
    let status = recommendation.status.name();
    let _ = writeln!(text, "{answer}  ({simulated}{provisional}status {status}{interval})");
    let _ = writeln!(text, "  {}", words::reason(recommendation));
    let latency = summary.latency_s.unwrap_or_default();
    let time = |value: Option<f64>| value.map_or_else(dash, seconds);
    let _ = writeln!(
        text,
        "  throughput {} requests/s, mean {}, P95 {}, P99 {}, error rate {}, timeout rate {}",
        throughput(level).map_or_else(dash, |rps| format!("{rps:.2}")),
        time(latency.mean),
        time(latency.p95),
        time(latency.p99),
        summary.error_rate.map_or_else(dash, percent),
        summary.timeout_rate.map_or_else(dash, percent),
    );
    for line in gain(recommendation, level).map(|gain| gain.to_string()).into_iter().chain(beside(recommendation)) {
        let _ = writeln!(text, "  {line}");
    }
}

/// What is told beside the answer, as information only.
pub(super) fn beside(recommendation: &Recommendation) -> Vec<String> {
    let mut lines = Vec::new();
    let pick = recommendation.recommended_concurrency;
    if let Some(alternative) = recommendation.low_latency_alternative.filter(|&n| pick.is_some_and(|pick| n < pick)) {
        lines.push(format!(
            "for low latency rather than throughput: {alternative} (most throughput per second of latency)"
        ));
    }
    if let Some(usl) = recommendation.usl.filter(|_| pick.is_some()) {
        let peak = usl.peak.map_or_else(|| "no peak".to_owned(), |peak| format!("peak at {peak:.0}"));
        lines.push(format!(
            "fitted scalability curve (USL; a model, not a measurement): {peak}, R² {:.3}",
            usl.r_squared
        ));
    }
    lines
}

/// What the optimum gains over working one by one.
pub(super) struct Gain {
    /// What it is compared with.
    pub(super) from: String,
    /// That throughput, requests per second.
    pub(super) slow: f64,
    /// The optimum's.
    pub(super) fast: f64,
    level: usize,
}

impl Gain {
    pub(super) fn factor(&self) -> f64 {
        self.fast / self.slow
    }
}

impl fmt::Display for Gain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:.2} requests/s, optimal ({}) {:.2}: {:.1} x as fast; 1000 requests take {} instead of {}",
            self.from,
            self.slow,
            self.level,
            self.fast,
            self.factor(),
            seconds(1000.0 / self.fast),
            seconds(1000.0 / self.slow),
        )
    }
}

/// Sequential (or the lowest level that passes) against the optimum.
pub(super) fn gain(recommendation: &Recommendation, level: &JudgedLevel) -> Option<Gain> {
    let lowest = passing(&recommendation.levels).next()?;
    if lowest.summary.concurrency == level.summary.concurrency {
        return None;
    }
    let (slow, fast) = (throughput(lowest).filter(|&rps| rps > 0.0)?, throughput(level).filter(|&rps| rps > 0.0)?);
    let from = match lowest.summary.concurrency {
        1 => "sequential (1)".to_owned(),
        n => format!("level {n}"),
    };
    Some(Gain { from, slow, fast, level: level.summary.concurrency })
}

/// The two troubles README knows, in the same words.
pub(super) fn advice(recommendation: &Recommendation) -> Vec<String> {
    let levels_with = |rate: fn(&LevelSummary) -> Option<f64>| {
        let levels = recommendation.levels.iter().filter(|level| rate(&level.summary).is_some_and(|r| r >= 0.05));
        levels.map(|level| level.summary.concurrency.to_string()).collect::<Vec<_>>().join(", ")
    };
    let mut lines = Vec::new();
    let timeouts = levels_with(|summary| summary.timeout_rate);
    if !timeouts.is_empty() {
        lines.push(format!(
            "Too many timeouts at level {timeouts}: raise llm.request_timeout if such answers are still of use, or keep below"
        ));
    }
    let errors = levels_with(|summary| Some(summary.error_rate? - summary.timeout_rate.unwrap_or(0.0)));
    if !errors.is_empty() {
        lines.push(format!(
            "High error rates at level {errors}: the kinds stand in the table, each request's reason in the level's .jsonl"
        ));
    }
    lines
}

/// What moved against a baseline, and what of it is a regression. `one_look` where nothing was measured again for it.
pub fn comparison(comparison: &Comparison, threshold: Option<f64>, one_look: bool) -> String {
    let header = ["level", "before", "now", "change", "interval"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(comparison.levels.iter().map(|change| change_row(change.concurrency_before.to_string(), change)));
    for (name, change) in [("best", &comparison.best), ("recommended", &comparison.recommended)] {
        rows.extend(change.iter().map(|change| {
            let (before, now) = (change.concurrency_before, change.concurrency_now);
            let at = if before == now { format!("{name} ({now})") } else { format!("{name} ({before}, now {now})") };
            change_row(at, change)
        }));
    }
    let changes = comparison.levels.iter().chain(&comparison.best).chain(&comparison.recommended);
    let words = changes.map(|change| moved(change.moved).to_owned());
    let mut text = format!("Against the baseline {}, in {}\n", comparison.title, comparison.unit);
    text.push_str(&aligned(&rows, std::iter::once(String::new()).chain(words)));
    // Lines end where their last word does.
    let mut text: String = text.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    let Some(limit) = threshold.map(percent) else { return text };
    let regressions = comparison.regressions.iter().map(regression);
    let doubts = comparison.doubts.iter().map(doubt);
    let head = match (comparison.regressions.as_slice(), comparison.doubts.as_slice()) {
        ([], []) => format!("No regression: nothing that decides fell by more than {limit} beyond the noise"),
        ([], _) => "Cannot tell whether there is a regression:".to_owned(),
        _ => format!("Regression (more than {limit}, beyond the noise between measurements):"),
    };
    let again = "this is one look: `llm-concurrency run --baseline FILE` measures again what has fallen";
    let again = (one_look && regressions.len() + doubts.len() > 0).then(|| again.to_owned());
    for line in [head].into_iter().chain(regressions.chain(doubts).chain(again).map(|line| format!("  {line}"))) {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn regression(found: &Regression) -> String {
    let fell = |change: &Change| format!("fell by {}", percent(-change.change));
    match found {
        Regression::Best(change) => format!("the best throughput {}", fell(change)),
        Regression::Recommended(change) => {
            format!("the throughput at level {}, recommended before, {}", change.concurrency_before, fell(change))
        }
        Regression::Fails { concurrency, causes, .. } => {
            format!("level {concurrency}, recommended before, fails now: {}", words::causes(causes))
        }
        Regression::NothingQualifies { concurrency, reason } => {
            format!("{concurrency} was recommended before, and now no level passes: {}", words::why(reason))
        }
    }
}

fn doubt(found: &Doubt) -> String {
    match found {
        Doubt::Gate { concurrency, causes, .. } => {
            format!("level {concurrency}, recommended before, fails now, maybe by chance: {}", words::causes(causes))
        }
        Doubt::Outage { concurrency } => {
            format!("the server was gone while level {concurrency}, recommended before, was measured")
        }
        Doubt::Undecided { concurrency, status, reason } => {
            let (status, why) = (status.name(), words::why(reason));
            format!("{concurrency} was recommended before, now nothing is ({status}): {why}")
        }
        Doubt::NothingInCommon => "no level that could be used is in both".to_owned(),
    }
}

fn change_row(name: String, change: &Change) -> Vec<String> {
    let signed = |share: f64| format!("{:+.1} %", share * 100.0);
    let interval = change.interval.map(signed).join(" to ");
    vec![name, format!("{:.2}", change.before), format!("{:.2}", change.now), signed(change.change), interval]
}

fn moved(moved: Moved) -> &'static str {
    match moved {
        Moved::Faster => "faster",
        Moved::Slower => "slower",
        Moved::NotShown => "",
    }
}

/// What to say when one of the run's own prompts was refused before anything was measured.
pub fn refused_prompt(probe: &Probe, settings: &Settings) -> String {
    let Some(Failed { kind, message, .. }) = &probe.reply.failure else { return String::new() };
    if probe.which == Which::Typical {
        return endpoint_problem(*kind, message, settings);
    }
    format!(
        "High error rates: {} takes a typical prompt and refuses the longest ({}, {} characters), so a share of the requests \
         would fail at every level\n  {kind}: {message}\n\nIf it does not fit the model's context, take shorter prompts \
         (benchmark.request.prompts) or shorter answers (benchmark.request.max_tokens), or start the server with a longer \
         context.",
        settings.endpoint.redacted(),
        probe.id,
        probe.characters,
    )
}

/// What to say when every request of the first level failed.
pub fn endpoint_problem(kind: Failure, message: &str, settings: &Settings) -> String {
    let endpoint = settings.endpoint.redacted();
    let (what, mend) = match kind {
        Failure::Connect => (
            format!("LLM connection error: no request reached {endpoint}"),
            "Is the server running, and is llm.endpoint (LLM_ENDPOINT) its base URL? Try",
        ),
        Failure::Timeout => (
            format!("Too many timeouts: {endpoint} answered no request in time"),
            "If it only needs longer, raise llm.request_timeout. Try",
        ),
        _ => (format!("High error rates: every request to {endpoint} failed"), hint(message)),
    };
    format!("{what}\n  {kind}: {message}\n\n{mend}\n\n    {}", curl(settings))
}

fn hint(message: &str) -> &'static str {
    if message.starts_with("HTTP 401") || message.starts_with("HTTP 403") {
        "Is the API key right? It is read from LLM_API_KEY, else OPENAI_API_KEY. Try"
    } else if message.starts_with("HTTP 404") {
        "Is the path of llm.endpoint right (most end in /v1), and does the server know llm.model? Try"
    } else {
        "Try"
    }
}

/// The same request by hand.
pub fn curl(settings: &Settings) -> String {
    let llm = &settings.config.llm;
    let url = match &settings.endpoint {
        Endpoint::Simulator => "http://127.0.0.1:8000/v1".to_owned(),
        endpoint => endpoint.redacted(),
    };
    let key = if settings.api_key.is_some() { " -H \"Authorization: Bearer $LLM_API_KEY\"" } else { "" };
    let body = serde_json::json!({
        "model": llm.model,
        "messages": [{"role": "user", "content": "Say hello"}],
        "max_tokens": 8,
    });
    let body = body.to_string().replace('\'', "'\\''");
    format!(
        "curl -sS {}/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'",
        url.trim_end_matches('/')
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{Policy, recommend};

    fn level(concurrency: usize, rps: f64, error_rate: f64) -> LevelSummary {
        LevelSummary {
            concurrency,
            error_rate: Some(error_rate),
            throughput_rps: Some(Estimate { estimate: rps, lower: None, upper: None }),
            ..LevelSummary::default()
        }
    }

    #[test]
    fn bars_are_as_long_as_throughput_is_high() {
        let decided = recommend(&[level(1, 5.0, 0.0), level(20, 40.0, 0.0), level(50, 39.0, 0.5)], &Policy::default());
        let plain = format!(
            "level  requests/s\n    1  {} 5.00\n   20  {} 40.00  <- recommended\n   50  {}▊ 39.00  fail\n\n",
            "█".repeat(6),
            "█".repeat(48),
            "█".repeat(46)
        );
        assert_eq!(plot(&decided, false), plain);
        let coloured = plot(&decided, true);
        assert_eq!(coloured.matches("\x1b[0m").count(), 2);
        assert_eq!(coloured.replace("\x1b[32m", "").replace("\x1b[31m", "").replace("\x1b[0m", ""), plain);
    }

    #[test]
    fn without_throughput_there_are_no_bars() {
        let unknown = LevelSummary { concurrency: 4, ..LevelSummary::default() };
        assert_eq!(plot(&recommend(&[unknown], &Policy::default()), true), "");
        assert_eq!(plot(&recommend(&[level(4, 0.0, 0.0)], &Policy::default()), true), "");
    }
}
