//! What is printed: the table of levels, the answer, a comparison.

use std::fmt::Write as _;

use crate::decide::compare::{Change, Comparison, Moved};
use crate::decide::verify::Verified;
use crate::decide::{JudgedLevel, Note, Policy, Recommendation, Verdict, passing};
use crate::figures::{Distribution, Estimate, LevelSummary, SizeSummary};
use crate::report::words::{self, UNKNOWN, number, or_unknown, percent, range, rate, share, signed, time, usd};

/// Where it is printed: columns of a line, and whether a terminal makes text bold.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    pub width: usize,
    pub bold: bool,
}

/// Lines of [`brief`] with what follows it.
const LINES: usize = 15;
/// An empty line before it; the report and the next command after it.
const AROUND: usize = 3;
/// Rows of the table at least.
const ROWS: usize = 4;

/// The answer, then as much of the table and of the notes as there is room for.
pub fn brief(recommendation: &Recommendation, present: Option<usize>, screen: Screen) -> String {
    let Screen { width, bold } = screen;
    let paint = |line: String| if bold { format!("\x1b[1m{line}\x1b[0m") } else { line };
    let mut lines: Vec<String> =
        wrapped(&words::headline(recommendation, present), width).into_iter().map(paint).collect();
    let because = match recommendation.chosen() {
        Some(_) => words::how_sure(recommendation),
        None => words::reason(recommendation) + ".",
    };
    lines.extend(wrapped(&because, width));
    let room = (LINES - AROUND).saturating_sub(lines.len() + 2).max(ROWS);
    let all = &recommendation.levels;
    let shown = most_telling(recommendation, if all.len() > room { room } else { all.len() });
    if !shown.is_empty() {
        lines.extend(levels(recommendation, &shown, width, in_short).lines().map(str::to_owned));
    }
    let left_out = all.len() - shown.len();
    let is_minor = |note: &&Note| !matches!(note, Note::UnlistedModel | Note::OpenOutage { .. } | Note::Quick);
    let mut notes: Vec<&Note> = recommendation.notes.iter().collect();
    notes.sort_by_key(is_minor);
    let mut notes = notes.into_iter().map(words::note).chain(words::advice(recommendation)).peekable();
    while let Some(note) = notes.peek() {
        let note = wrapped(&format!("note: {note}"), width);
        if lines.len() + note.len() + 1 > LINES - AROUND {
            break;
        }
        lines.extend(note);
        notes.next();
    }
    let notes = notes.count();
    let rest = [(left_out, "level"), (notes, "note")].map(|(n, what)| (n > 0).then(|| words::count(n as u64, what)));
    let rest: Vec<String> = rest.into_iter().flatten().collect();
    if !rest.is_empty() {
        lines.push(format!("({} more with --verbose)", rest.join(" and ")));
    }
    lines.join("\n") + "\n"
}

/// Places of the levels that say most, ascending: the chosen one and the best, the ends, and those around the choice.
fn most_telling(recommendation: &Recommendation, most: usize) -> Vec<usize> {
    let all = &recommendation.levels;
    let at = |wanted: Option<usize>| all.iter().position(|level| Some(level.summary.concurrency) == wanted);
    let chosen = at(recommendation.recommended_concurrency);
    let fails = all.iter().position(|level| level.verdict == Verdict::Fail);
    let mut around: Vec<usize> = (0..all.len()).collect();
    around.sort_by_key(|place| place.abs_diff(chosen.or(fails).unwrap_or_default()));
    let first = chosen.into_iter().chain((!all.is_empty()).then_some(0)).chain(all.len().checked_sub(1)).chain(fails);
    let mut kept: Vec<usize> = Vec::new();
    for place in first.chain(around) {
        if kept.len() < most && !kept.contains(&place) {
            kept.push(place);
        }
    }
    kept.sort_unstable();
    kept
}

/// All levels with the reasons of their verdicts, and the chosen one by the size of the prompts.
pub fn table(recommendation: &Recommendation, width: usize) -> String {
    let by_size = recommendation.chosen().map(by_size).unwrap_or_default();
    let all: Vec<usize> = (0..recommendation.levels.len()).collect();
    levels(recommendation, &all, width, verdict) + &by_size
}

/// The columns that go first where there is no room for all.
const SPARE: [&str; 9] = ["±", "mean", "P99", "TPOT", "TTFT P50", "tok/s", "P50", "n", "of best"];
/// Columns of a line that verdicts take at least.
const REMARK: usize = 20;

/// Those of the levels at `places`.
fn levels(
    recommendation: &Recommendation,
    places: &[usize],
    width: usize,
    verdict: fn(&JudgedLevel, bool) -> String,
) -> String {
    let all = cells(recommendation);
    let mut rows: Vec<Vec<String>> =
        std::iter::once(0).chain(places.iter().map(|at| at + 1)).map(|at| all[at].clone()).collect();
    let shown = || places.iter().map(|&at| &recommendation.levels[at]);
    let is_chosen = |level: &JudgedLevel| recommendation.recommended_concurrency == Some(level.summary.concurrency);
    let verdicts: Vec<String> = shown().map(|level| verdict(level, is_chosen(level))).collect();
    let longest = verdicts.iter().map(|verdict| verdict.chars().count()).max().unwrap_or_default();
    let room = width.saturating_sub(longest.min(REMARK) + 2);
    for spare in SPARE {
        if widths(&rows).iter().map(|width| width + 2).sum::<usize>() <= room + 2 {
            break;
        }
        let Some(at) = rows[0].iter().position(|name| *name == spare) else { continue };
        rows.iter_mut().for_each(|row| drop(row.remove(at)));
    }
    aligned(&rows, std::iter::once("verdict".to_owned()).chain(verdicts), width)
}

fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    (0..columns).map(width).collect()
}

/// Cells in columns, right-aligned, each row with a remark at its end, which goes on below itself.
fn aligned(rows: &[Vec<String>], remarks: impl Iterator<Item = String>, width: usize) -> String {
    let widths = widths(rows);
    let indent = widths.iter().map(|width| width + 2).sum::<usize>();
    let mut text = String::new();
    for (row, remark) in rows.iter().zip(remarks) {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}"));
        let remark = wrapped(&remark, width.saturating_sub(indent).max(REMARK)).join(&format!("\n{:indent$}", ""));
        let line = format!("{}  {remark}", cells.collect::<Vec<_>>().join("  "));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// For a terminal, where lines go on below their own beginning.
pub fn fitted(text: &str, columns: usize) -> String {
    let fitted = |line: &str| {
        let indent = line.len() - line.trim_start().len();
        let width = columns.saturating_sub(indent + 6).max(REMARK);
        format!("{:indent$}{}\n", "", wrapped(line.trim_start(), width).join(&format!("\n{:1$}", "", indent.max(6))))
    };
    text.lines().map(fitted).collect()
}

/// In lines of at most this width, but for a word that is longer. Spaces between words stay as they are.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => *line += &format!(" {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
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
    let table = aligned(&rows, std::iter::once("prompts".to_owned()).chain(sizes), usize::MAX);
    format!("\nlevel {} by the size of the prompts:\n{table}", summary.concurrency)
}

/// The cells of the prompts of one size, from P50 to n.
pub(super) fn size_row(part: &SizeSummary) -> Vec<String> {
    let latency = part.latency_s.unwrap_or_default();
    vec![time(latency.p50), time(latency.p95), number(part.mean_output_tokens, 1), part.requests.to_string()]
}

pub const COLUMNS: [&str; 13] =
    ["level", "req/s", "±", "of best", "mean", "P50", "P95", "P99", "TTFT P50", "TPOT", "tok/s", "errors", "n"];

type Column = (&'static str, fn(&LevelSummary) -> Option<String>);

/// Columns that stand only where a level has something in them.
const OPTIONAL: [Column; 5] = [
    ("cached", |s| s.cached_rate.map(rate)),
    ("goodput", |s| Some(number(Some(s.goodput.as_ref()?.rps.estimate), 2))),
    ("±", |s| Some(number(half_width(s.goodput.as_ref()?.rps), 2))),
    ("in SLO", |s| Some(share(s.goodput.as_ref()?.attainment.estimate))),
    ("USD/1000", |s| Some(usd(s.usd_per_1000?.total()))),
];

/// Without the verdicts: the header, and a row for each level.
pub(super) fn cells(recommendation: &Recommendation) -> Vec<Vec<String>> {
    let best = best_passing(recommendation);
    let mut optional = OPTIONAL.to_vec();
    optional.retain(|(_, cell)| recommendation.levels.iter().any(|level| cell(&level.summary).is_some()));
    let header = COLUMNS.into_iter().chain(optional.iter().map(|column| column.0)).map(str::to_owned).collect();
    let row = |level: &JudgedLevel| {
        let optional = optional.iter().map(|(_, cell)| cell(&level.summary).unwrap_or_else(|| UNKNOWN.to_owned()));
        row(level, best).into_iter().chain(optional).collect()
    };
    std::iter::once(header).chain(recommendation.levels.iter().map(row)).collect()
}

fn best_passing(recommendation: &Recommendation) -> Option<f64> {
    let rates = passing(&recommendation.levels).filter_map(JudgedLevel::throughput);
    rates.filter(|&rps| rps > 0.0).max_by(f64::total_cmp)
}

/// The cells of a level, as in [`COLUMNS`].
fn row(level: &JudgedLevel, best: Option<f64>) -> Vec<String> {
    let summary = &level.summary;
    let best = best.filter(|_| level.verdict == Verdict::Pass);
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
        or_unknown(summary.tpot_s.and_then(|d| d.p50), |s| format!("{:.1} ms", 1e3 * s)),
        number(summary.output_tps, 0),
        or_unknown(summary.error_rate, rate),
        summary.requests.map_or_else(|| UNKNOWN.to_owned(), |n| n.to_string()),
    ]
}

fn half_width(estimate: Estimate) -> Option<f64> {
    Some((estimate.upper? - estimate.lower?) / 2.0)
}

fn in_short(level: &JudgedLevel, is_chosen: bool) -> String {
    match level.gate {
        _ if is_chosen => "<- recommended".to_owned(),
        Some(gate) => format!("{}: {}", words::verdict(level.verdict), words::gate(gate)),
        None => words::verdict(level.verdict).to_owned(),
    }
}

fn verdict(level: &JudgedLevel, is_chosen: bool) -> String {
    let chosen = if is_chosen { "  <- recommended" } else { "" };
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
    let [before, now] = words::sides(comparison.against);
    let header = ["level", before, now, "change", "interval"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(comparison.levels.iter().map(|change| change_row(change.concurrency_before.to_string(), change)));
    for (name, change) in [("best", &comparison.best), ("recommended", &comparison.recommended)] {
        rows.extend(change.iter().map(|change| {
            let (before, now) = (change.concurrency_before, change.concurrency_now);
            let at = if before == now {
                format!("{name} ({now})")
            } else {
                format!("{name} ({before}, {} {now})", words::sides(comparison.against)[1])
            };
            change_row(at, change)
        }));
    }
    rows.extend(comparison.overall.iter().map(|change| change_row("all levels".to_owned(), change)));
    let changes = comparison.levels.iter().chain(&comparison.best).chain(&comparison.recommended);
    let changes = changes.chain(&comparison.overall);
    let moved = changes.map(|change| match change.moved {
        Moved::NotShown => String::new(),
        moved => words::moved(moved).to_owned(),
    });
    let table = aligned(&rows, std::iter::once(String::new()).chain(moved), usize::MAX);
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
    aligned(&rows, std::iter::once(String::new()).chain(verdicts), usize::MAX)
}

fn change_row(name: String, change: &Change) -> Vec<String> {
    let [before, now] = [change.before, change.now].map(|rps| number(Some(rps), 2));
    vec![name, before, now, signed(change.change), range(change.interval, signed)]
}
