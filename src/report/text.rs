//! Printed text: the table of levels, the answer, and comparisons.

use std::fmt::Write as _;

use serde::Serialize;

use crate::decide::compare::{Change, Comparison, Moved};
use crate::decide::verify::Verified;
use crate::decide::{JudgedLevel, Policy, Recommendation, Verdict, known_p99};
use crate::figures::SizeSummary;
use crate::report::words::{self, UNKNOWN, number, percent, range, rate, share, signed, time, usd};

/// The output device: columns per line, and whether it shows bold text.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    pub width: usize,
    pub bold: bool,
}

/// Number of lines that [`brief`] aims at, including what is printed around it.
const LINES: usize = 15;
/// Lines around it: an empty one before, and the report and the next command after.
const AROUND: usize = 3;
/// Minimum number of rows of the table.
const ROWS: usize = 4;

/// The answer, then as much of the table and of the notes as fits.
pub fn brief(recommendation: &Recommendation, present: Option<usize>, screen: Screen) -> String {
    let Screen { width, bold } = screen;
    let paint = |line: String| if bold { format!("\x1b[1m{line}\x1b[0m") } else { line };
    let mut lines: Vec<String> =
        wrapped(&words::headline(recommendation, present), width).into_iter().map(paint).collect();
    lines.extend(wrapped(&words::because(recommendation), width));
    let room = (LINES - AROUND).saturating_sub(lines.len() + 2).max(ROWS);
    let all = &recommendation.levels;
    let shown = most_telling(recommendation, if all.len() > room { room } else { all.len() });
    if !shown.is_empty() {
        lines.extend(levels(recommendation, &shown, width, true).lines().map(str::to_owned));
    }
    let left_out = all.len() - shown.len();
    let mut notes = words::notes(recommendation).1.into_iter().peekable();
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

/// The index of the best passing level, which the shares of the others refer to.
fn best(levels: &[JudgedLevel]) -> Option<usize> {
    let rps = |place: &usize| levels[*place].throughput().unwrap_or_default();
    (0..levels.len()).filter(|&at| levels[at].verdict == Verdict::Pass).max_by(|a, b| rps(a).total_cmp(&rps(b)))
}

/// Indices of the most telling levels, ascending: the chosen one, the best, both ends, the first that fails, and those
/// around the chosen one.
fn most_telling(recommendation: &Recommendation, most: usize) -> Vec<usize> {
    let all = &recommendation.levels;
    let at = |wanted: Option<usize>| all.iter().position(|level| Some(level.summary.concurrency) == wanted);
    let chosen = at(recommendation.recommended_concurrency);
    let fails = all.iter().position(|level| level.verdict == Verdict::Fail);
    let mut around: Vec<usize> = (0..all.len()).collect();
    around.sort_by_key(|place| place.abs_diff(chosen.or(fails).unwrap_or_default()));
    let ends = (!all.is_empty()).then_some(0).into_iter().chain(all.len().checked_sub(1));
    let first = chosen.into_iter().chain(best(all)).chain(ends).chain(fails);
    let mut kept: Vec<usize> = Vec::new();
    for place in first.chain(around) {
        if kept.len() < most && !kept.contains(&place) {
            kept.push(place);
        }
    }
    kept.sort_unstable();
    kept
}

/// All levels with the reasons for their verdicts; and the chosen one, broken down by prompt size.
pub fn table(recommendation: &Recommendation, width: usize) -> String {
    let all: Vec<usize> = (0..recommendation.levels.len()).collect();
    let mut table = levels(recommendation, &all, width, false);
    if let Some(summary) = recommendation.chosen().map(|level| &level.summary).filter(|of| !of.by_size.is_empty()) {
        let mut rows = vec![(SIZES.map(str::to_owned).to_vec(), "prompts".to_owned())];
        rows.extend(summary.by_size.iter().map(|part| (size_row(part), part.size.clone())));
        let level = summary.concurrency;
        table += &format!("\nlevel {level} by the size of the prompts:\n{}", aligned(&rows, usize::MAX));
    }
    table
}

/// Minimum width of the verdicts, in columns.
const REMARK: usize = 20;

/// The table of the levels at these indices.
fn levels(recommendation: &Recommendation, places: &[usize], width: usize, in_short: bool) -> String {
    let (mut columns, all) = rows(recommendation);
    let mut table = vec![(columns.iter().map(|column| column.0.to_owned()).collect(), "verdict".to_owned())];
    table.extend(places.iter().map(|&at| {
        let level = &recommendation.levels[at];
        let Row { cells, verdict, why, chosen } = all[at].clone();
        let remark = match level.gate {
            _ if in_short && chosen => "<- recommended".to_owned(),
            Some(gate) if in_short => format!("{verdict}: {}", words::gate(gate)),
            None if in_short => verdict.to_owned(),
            _ => {
                let arrow = if chosen { "  <- recommended" } else { "" };
                let colon = if level.causes.is_empty() { "" } else { ":" };
                format!("{verdict}{arrow}{colon} {why}")
            }
        };
        (cells, remark)
    }));
    let longest = table[1..].iter().map(|(_, remark)| remark.chars().count()).max().unwrap_or_default();
    let room = width.saturating_sub(longest.min(REMARK));
    for nth in 1..=SPARE {
        let Some(at) = columns.iter().position(|column| column.1 == nth) else { continue };
        let has_room = widths(&table).iter().map(|width| width + 2).sum::<usize>() <= room;
        // The short table omits what is unknown at every level.
        if has_room && !(in_short && table[1..].iter().all(|(cells, _)| cells[at] == UNKNOWN)) {
            continue;
        }
        columns.remove(at);
        table.iter_mut().for_each(|(cells, _)| drop(cells.remove(at)));
    }
    aligned(&table, width)
}

/// Cells, and a remark at the end.
type Line = (Vec<String>, String);

fn widths(lines: &[Line]) -> Vec<usize> {
    let width = |column: usize| lines.iter().map(|(cells, _)| cells[column].chars().count()).max().unwrap_or(0);
    (0..lines.first().map_or(0, |(cells, _)| cells.len())).map(width).collect()
}

/// Cells in right-aligned columns, each line followed by its remark, which wraps within its own column.
fn aligned(lines: &[Line], width: usize) -> String {
    let widths = widths(lines);
    let indent = widths.iter().map(|width| width + 2).sum::<usize>();
    let mut text = String::new();
    for (cells, remark) in lines {
        let cells = cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}"));
        let remark = wrapped(remark, width.saturating_sub(indent).max(REMARK)).join(&format!("\n{:indent$}", ""));
        let line = format!("{}  {remark}", cells.collect::<Vec<_>>().join("  "));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Wraps text for a terminal. Continuation lines are indented.
pub fn fitted(text: &str, columns: usize) -> String {
    let fitted = |line: &str| {
        let indent = line.len() - line.trim_start().len();
        let further = indent.max(6);
        let lines = wrapped(line.trim_start(), columns.saturating_sub(further).max(REMARK));
        format!("{:indent$}{}\n", "", lines.join(&format!("\n{:further$}", "")))
    };
    text.lines().map(fitted).collect()
}

/// Breaks text into lines of at most this width, unless a word is longer. A number keeps its unit,
/// and spaces between words stay as they are.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in glued(text).split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => *line += &format!(" {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    lines.into_iter().map(|line| line.replace('\u{a0}', " ")).collect()
}

/// Ties numbers to their units with non-breaking spaces.
pub fn glued(text: &str) -> String {
    text.replace(" %", "\u{a0}%").replace(" ms", "\u{a0}ms")
}

const SIZES: [&str; 5] = ["P50", "P95", "tokens in", "tokens out", "n"];

/// The cells under the headings [`SIZES`], which are also in page.html.
pub(super) fn size_row(part: &SizeSummary) -> Vec<String> {
    let latency = part.latency_s.unwrap_or_default();
    let tokens = [part.mean_input_tokens, part.mean_output_tokens].map(|tokens| number(tokens, 1));
    let times = [latency.p50, latency.p95].map(time);
    times.into_iter().chain(tokens).chain([part.requests.to_string()]).collect()
}

/// Its name; its turn to be dropped if there is no room for all, from 1 (0: never); and the cell of
/// a level, given the best throughput of the passing levels.
pub type Column = (&'static str, u8, fn(&JudgedLevel, Option<f64>) -> Option<String>);

/// The turn of the last column that is dropped.
const SPARE: u8 = 9;

pub const COLUMNS: [Column; 13] = [
    ("level", 0, |of, _| Some(of.summary.concurrency.to_string())),
    ("req/s", 0, |of, _| Some(number(of.throughput(), 2))),
    ("±", 1, |of, _| Some(number(of.summary.throughput_rps?.half_width(), 2))),
    ("of best", 9, |of, best| Some(percent(of.throughput()? / best.filter(|_| of.verdict == Verdict::Pass)?))),
    ("mean", 2, |of, _| Some(time(of.summary.latency_s?.mean))),
    ("P50", 7, |of, _| Some(time(of.summary.latency_s?.p50))),
    ("P95", 0, |of, _| Some(time(of.summary.latency_s?.p95))),
    ("P99", 3, |of, _| Some(time(Some(known_p99(&of.summary)?)))),
    ("TTFT P50", 5, |of, _| Some(time(of.summary.ttft_s?.p50))),
    ("TPOT", 4, |of, _| Some(format!("{:.1} ms", 1e3 * of.summary.tpot_s?.p50?))),
    ("tok/s", 6, |of, _| Some(number(of.summary.output_tps, 0))),
    ("errors", 0, |of, _| of.summary.error_rate.map(rate)),
    ("n", 8, |of, _| Some(of.summary.requests?.to_string())),
];

/// Columns that appear only if a level has a value for them.
const OPTIONAL: [Column; 5] = [
    ("cached", 0, |of, _| of.summary.cached_rate.map(rate)),
    ("goodput", 0, |of, _| Some(number(Some(of.summary.goodput.as_ref()?.rps.estimate), 2))),
    ("±", 0, |of, _| Some(number(of.summary.goodput.as_ref()?.rps.half_width(), 2))),
    ("in SLO", 0, |of, _| Some(share(of.summary.goodput.as_ref()?.attainment.estimate))),
    ("USD/1000", 0, |of, _| Some(usd(of.summary.usd_per_1000?.total()))),
];

/// A level in the table, in any format. `why` gives the reasons for its verdict, and its failures by kind.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub cells: Vec<String>,
    pub verdict: &'static str,
    pub why: String,
    pub chosen: bool,
}

/// The columns in use, and a row for each level.
pub(super) fn rows(recommendation: &Recommendation) -> (Vec<Column>, Vec<Row>) {
    let levels = &recommendation.levels;
    let best = best(levels).and_then(|at| levels[at].throughput()).filter(|&rps| rps > 0.0);
    let mut shown = OPTIONAL.to_vec();
    shown.retain(|(_, _, cell)| levels.iter().any(|level| cell(level, best).is_some()));
    shown.splice(..0, COLUMNS);
    let row = |level: &JudgedLevel| {
        let cells = shown.iter().map(|(_, _, cell)| cell(level, best).unwrap_or_else(|| UNKNOWN.to_owned()));
        Row {
            cells: cells.collect(),
            verdict: words::verdict(level.verdict),
            why: why(level),
            chosen: recommendation.recommended_concurrency == Some(level.summary.concurrency),
        }
    };
    let rows = levels.iter().map(row).collect();
    (shown, rows)
}

/// Maximum number of characters quoted from a server's message in the table.
const LONGEST_QUOTE: usize = 100;

fn why(level: &JudgedLevel) -> String {
    let mut failures: Vec<String> =
        level.summary.failures.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let main = level.summary.main_failure.as_ref().filter(|_| level.verdict == Verdict::Fail);
    failures.extend(main.map(|reason| match reason.text.char_indices().nth(LONGEST_QUOTE) {
        Some((end, _)) => format!("mostly \"{}…\"", &reason.text[..end]),
        None => format!("mostly \"{}\"", reason.text),
    }));
    let failures = if failures.is_empty() { String::new() } else { format!("({})", failures.join(", ")) };
    format!("{} {failures}", words::causes(&level.causes)).trim().to_owned()
}

pub fn answer(recommendation: &Recommendation) -> String {
    words::answer(recommendation).join("\n  ") + "\n"
}

/// What changed against a baseline, and which changes are regressions. `once`: nothing was measured again for it.
pub fn comparison(comparison: &Comparison, threshold: Option<f64>, once: bool) -> String {
    let [before, now] = words::sides(comparison.against);
    let header = ["level", before, now, "change", "interval"].map(str::to_owned).to_vec();
    let line = |name: String, change: &Change| {
        let [before, now] = [change.before, change.now].map(|rps| number(Some(rps), 2));
        let cells = vec![name, before, now, signed(change.change), range(change.interval, signed)];
        let is_shown = change.moved != Moved::NotShown;
        (cells, if is_shown { words::moved(change.moved).to_owned() } else { String::new() })
    };
    let mut lines = vec![(header, String::new())];
    lines.extend(comparison.levels.iter().map(|change| line(change.concurrency_before.to_string(), change)));
    for (name, change) in [("best", &comparison.best), ("recommended", &comparison.recommended)] {
        lines.extend(change.iter().map(|change| match (change.concurrency_before, change.concurrency_now) {
            (then, at) if then == at => line(format!("{name} ({at})"), change),
            (then, at) => line(format!("{name} ({then}, {now} {at})"), change),
        }));
    }
    lines.extend(comparison.overall.iter().map(|change| line("all levels".to_owned(), change)));
    let mut text = format!("{}\n{}", words::against(comparison), aligned(&lines, usize::MAX));
    let Some(threshold) = threshold else { return text };
    let found = comparison.regressions.iter().map(words::regression);
    let mut found: Vec<String> = found.chain(comparison.doubts.iter().map(words::doubt)).collect();
    if once && !found.is_empty() {
        found.push(words::once().to_owned());
    }
    found.insert(0, words::outcome(comparison, threshold));
    text += &found.join("\n  ");
    text + "\n"
}

/// The table of arrival rates and their results.
pub fn loads(verified: &Verified, policy: &Policy) -> String {
    let mut lines = vec![(words::LOAD_HEADER.map(str::to_owned).to_vec(), String::new())];
    lines.extend(verified.loads.iter().map(|load| words::load_row(load, verified.throughput_rps, policy)));
    aligned(&lines, usize::MAX)
}
