//! What is printed: the table of levels, the answer, a comparison.

use std::fmt::Write as _;

use crate::decide::compare::{Change, Comparison, Moved};
use crate::decide::verify::Verified;
use crate::decide::{JudgedLevel, Policy, Recommendation, Verdict, passing};
use crate::figures::{Distribution, Estimate, LevelSummary, SizeSummary};
use crate::report::words::{self, UNKNOWN, number, or_unknown, percent, range, rate, signed, time};

pub fn table(recommendation: &Recommendation) -> String {
    let by_size = recommendation.chosen().map(by_size).unwrap_or_default();
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
        let line = format!("{}  {remark}", cells.collect::<Vec<_>>().join("  "));
        let _ = writeln!(text, "{}", line.trim_end());
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
    vec![time(latency.p50), time(latency.p95), number(part.mean_output_tokens, 1), part.requests.to_string()]
}

pub(super) fn best_passing(recommendation: &Recommendation) -> Option<f64> {
    let rates = passing(&recommendation.levels).filter_map(JudgedLevel::throughput);
    rates.filter(|&rps| rps > 0.0).max_by(f64::total_cmp)
}

/// The cells of a level, from the level itself to n.
pub(super) fn row(summary: &LevelSummary, best: Option<f64>) -> Vec<String> {
    let latency = summary.latency_s.unwrap_or_default();
    let p50 = |distribution: Option<Distribution>| time(distribution.and_then(|d| d.p50));
    let rps = summary.throughput_rps.map(|t| t.estimate);
    vec![
        summary.concurrency.to_string(),
        number(rps, 2),
        number(summary.throughput_rps.and_then(half_width), 2),
        or_unknown(rps.zip(best).map(|(rps, best)| rps / best), percent),
        time(latency.mean),
        time(latency.p50),
        time(latency.p95),
        time(latency.p99),
        p50(summary.ttft_s),
        p50(summary.tpot_s),
        number(summary.output_tps, 0),
        or_unknown(summary.error_rate, rate),
        summary.requests.map_or_else(|| UNKNOWN.to_owned(), |n| n.to_string()),
    ]
}

/// Cells of the longest bar.
const BAR: f64 = 48.0;
const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// Throughput by level as bars, for a terminal; with `colour` the chosen level is green and what fails is red.
pub fn plot(recommendation: &Recommendation, colour: bool) -> String {
    let throughput = |level: &JudgedLevel| level.throughput().filter(|rps| rps.is_finite() && *rps >= 0.0);
    let best = recommendation.levels.iter().filter_map(throughput).fold(0.0, f64::max);
    if best <= 0.0 {
        return String::new();
    }
    let widest = recommendation.levels.iter().map(|level| level.summary.concurrency.to_string().len()).max();
    let width = widest.unwrap_or_default().max("level".len());
    let mut text = format!("{:>width$}  requests/s\n", "level");
    for level in &recommendation.levels {
        let Some(rps) = throughput(level) else { continue };
        let eighths = (rps / best * BAR * 8.0).round() as usize;
        let bar = "█".repeat(eighths / 8) + EIGHTHS[eighths % 8];
        let is_chosen = recommendation.recommended_concurrency == Some(level.summary.concurrency);
        let (word, paint) = match level.verdict {
            _ if is_chosen => ("<- recommended", "32"),
            Verdict::Pass => ("", ""),
            Verdict::Fail => (words::verdict(level.verdict), "31"),
            Verdict::NotUsed => (words::verdict(level.verdict), "2"),
        };
        let bar = if colour && !paint.is_empty() { format!("\x1b[{paint}m{bar}\x1b[0m") } else { bar };
        let line = format!("{:>width$}  {bar} {rps:.2}  {word}", level.summary.concurrency);
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text + "\n"
}

fn half_width(estimate: Estimate) -> Option<f64> {
    Some((estimate.upper? - estimate.lower?) / 2.0)
}

fn verdict(level: &JudgedLevel, recommended: Option<usize>) -> String {
    let chosen = if recommended == Some(level.summary.concurrency) { "  <- recommended" } else { "" };
    let colon = if level.causes.is_empty() { "" } else { ":" };
    format!("{}{chosen}{colon} {}", words::verdict(level.verdict), why(level))
}

/// Why a level got its verdict, and its failures by kind; empty for a plain pass without any.
pub(super) fn why(level: &JudgedLevel) -> String {
    let mut failures: Vec<String> =
        level.summary.failures.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let main = level.summary.main_failure.as_ref().filter(|_| level.verdict == Verdict::Fail);
    failures.extend(main.map(|reason| format!("mostly \"{}\"", cut(&reason.text, LONGEST_QUOTE))));
    let failures = if failures.is_empty() { String::new() } else { format!("({})", failures.join(", ")) };
    format!("{} {failures}", words::causes(&level.causes)).trim().to_owned()
}

/// Characters of a server's own words in the table.
const LONGEST_QUOTE: usize = 100;

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

pub fn answer(recommendation: &Recommendation) -> String {
    words::answer(recommendation).join("\n  ") + "\n"
}

/// What moved against a baseline, and what of it is a regression. `once` where nothing was measured again for it.
pub fn comparison(comparison: &Comparison, threshold: Option<f64>, once: bool) -> String {
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
    let moved = changes.map(|change| match change.moved {
        Moved::NotShown => String::new(),
        moved => words::moved(moved).to_owned(),
    });
    let table = aligned(&rows, std::iter::once(String::new()).chain(moved));
    let mut text = format!("{}\n{table}", words::against(comparison));
    let Some(threshold) = threshold else { return text };
    let found = comparison.regressions.iter().map(words::regression);
    let mut found: Vec<String> = found.chain(comparison.doubts.iter().map(words::doubt)).collect();
    if once && !found.is_empty() {
        found.push(words::once().to_owned());
    }
    found.insert(0, words::outcome(comparison, threshold));
    text.push_str(&found.join("\n  "));
    text + "\n"
}

/// What arrivals at each rate met.
pub fn loads(verified: &Verified, policy: &Policy) -> String {
    let mut rows = vec![words::LOAD_HEADER.map(str::to_owned).to_vec()];
    rows.extend(verified.loads.iter().map(|load| words::load_row(load, verified.throughput_rps)));
    let verdicts = verified.loads.iter().map(|load| words::load_verdict(load, policy));
    aligned(&rows, std::iter::once(String::new()).chain(verdicts))
}

fn change_row(name: String, change: &Change) -> Vec<String> {
    let [before, now] = [change.before, change.now].map(|rps| number(Some(rps), 2));
    vec![name, before, now, signed(change.change), range(change.interval, signed)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::recommend;

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
