//! One run, or two to compare, as one HTML file that loads nothing from anywhere. Pure: returns the text.

use std::collections::BTreeMap;

use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use super::requests::{Curves, ReasonAt};
use super::sections::{self, Figure};
use super::text;
use crate::decide::compare::{Against, Comparison, compare};
use crate::decide::verify::Verified;
use crate::decide::{Note, Objective, Policy, Recommendation, Status};
use crate::figures::{Estimate, LevelSummary};
use crate::record::{About, RunId};
use crate::report::words::{self, Gain, UNKNOWN, or_unknown, range, rate, seconds, signed};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Why there is no page: the template, which is ours, does not render.
#[derive(Debug, thiserror::Error)]
#[error("the report's template does not render: {0}. This is a mistake in llm-concurrency: please report it")]
pub struct ReportError(#[from] minijinja::Error);

/// What is not known of a run, beside what can be seen from the rest.
#[derive(Clone, Debug)]
pub enum Missing {
    Policy,
    Decision,
    Requests { level: usize, error: String },
}

/// A run as the report takes it.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it is called beside another, such as A; empty alone.
    pub label: String,
    pub recommendation: Recommendation,
    pub policy: Policy,
    pub run_id: Option<RunId>,
    pub about: About,
    /// The number that the config holds today.
    pub present: Option<usize>,
    /// From the records of the single requests, where they were found.
    pub curves: Option<Curves>,
    pub verified: Option<Verified>,
    pub missing: Vec<Missing>,
}

/// The page of one run, or of two: the earlier (or A) first.
///
/// # Errors
/// If the template does not render.
pub fn page(runs: &[Run]) -> Result<String, ReportError> {
    let comparison = match runs {
        [a, b] => Some(compare(&a.recommendation, &b.recommendation, Objective::Requests, None)),
        _ => None,
    };
    page_with(runs, comparison.as_ref())
}

/// The same of runs that have been compared.
///
/// # Errors
/// If the template does not render.
pub fn page_with(runs: &[Run], comparison: Option<&Comparison>) -> Result<String, ReportError> {
    let title = match runs {
        [run] if run.recommendation.simulated => "SIMULATED: concurrency of the embedded simulator".to_owned(),
        [run] => format!("Concurrency of {}", run.about.model.as_deref().unwrap_or("an LLM endpoint")),
        _ => "Two runs compared".to_owned(),
    };
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    environment.add_filter("seconds", seconds);
    environment.add_filter("readable", |time: &str| readable(time));
    environment.add_filter("quoted", |word: &str| quoted(word));
    environment.add_template("page.html", PAGE)?;
    let page = Page {
        title,
        version: env!("CARGO_PKG_VERSION"),
        unknown: UNKNOWN,
        alone: runs.len() == 1,
        answers: runs.iter().map(Answer::of).collect(),
        changes: comparison.and_then(|comparison| changes(runs, comparison)),
        figures: sections::sections(runs),
        style: STYLE,
        script: SCRIPT,
    };
    Ok(environment.get_template("page.html")?.render(Serde(&page))?)
}

/// What the template takes.
#[derive(Serialize)]
struct Page<'a> {
    title: String,
    version: &'static str,
    unknown: &'static str,
    alone: bool,
    answers: Vec<Answer<'a>>,
    changes: Option<Changes>,
    /// By the id of their section. Charts go into the page as they are, and so does what follows.
    figures: BTreeMap<&'static str, Vec<Figure>>,
    style: &'static str,
    script: &'static str,
}

#[derive(Serialize)]
struct Answer<'a> {
    label: &'a str,
    headline: String,
    sure: String,
    /// Whether it may be written: good, careful or none.
    mood: &'static str,
    reason: String,
    tiles: Vec<Tile>,
    notes: Vec<String>,
    columns: Vec<String>,
    rows: Vec<text::Row>,
    /// The chosen level by the size of the prompts.
    sizes: Vec<(&'a str, Vec<String>)>,
    reasons: &'a [ReasonAt],
    reasons_left_out: usize,
    run_id: &'a Option<RunId>,
    about: &'a About,
    gates: String,
    status: &'static str,
    missing: Vec<String>,
    /// What traffic the number carries: the answer, the columns, and each rate with why it is not carried.
    loads: Option<(String, [&'static str; 9], Vec<(Vec<String>, String)>)>,
}

impl<'a> Answer<'a> {
    fn of(run: &'a Run) -> Self {
        let recommendation = &run.recommendation;
        let pick = recommendation.recommended_concurrency;
        let provisional = "Provisional: it is shown, but not written into the config without --allow-provisional.";
        let provisional = (recommendation.provisional && pick.is_some()).then(|| provisional.to_owned());
        let notes = provisional.into_iter().chain(words::information(recommendation));
        let (columns, rows) = text::rows(recommendation);
        let loads = run.verified.as_ref().map(|verified| {
            let row = |load| words::load_row(load, verified.throughput_rps, &run.policy);
            (words::carries(verified), words::LOAD_HEADER, verified.loads.iter().map(row).collect())
        });
        let sizes = recommendation.chosen().into_iter().flat_map(|level| &level.summary.by_size);
        Answer {
            label: &run.label,
            headline: words::headline(recommendation, run.present),
            sure: words::how_sure(recommendation),
            mood: match recommendation.status {
                _ if pick.is_none() => "none",
                Status::Ok if !recommendation.provisional => "good",
                _ => "careful",
            },
            reason: words::reason(recommendation),
            tiles: tiles(recommendation),
            notes: notes.chain(words::notes(recommendation)).collect(),
            columns,
            rows,
            sizes: sizes.map(|part| (part.size.as_str(), text::size_row(part))).collect(),
            reasons: run.curves.as_ref().map_or(&[], |curves| &curves.reasons),
            reasons_left_out: run.curves.as_ref().map_or(0, |curves| curves.reasons_left_out),
            run_id: &run.run_id,
            about: &run.about,
            gates: words::gates(&run.policy),
            status: recommendation.status.name(),
            missing: words::missing(run),
            loads,
        }
    }
}

/// `2026-11-24T08:09:45Z` as `2026-11-24 08:09:45 UTC`.
fn readable(time: &str) -> String {
    match time.strip_suffix('Z') {
        Some(time) => format!("{} UTC", time.replacen('T', " ", 1)),
        None => time.to_owned(),
    }
}

/// For a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

// ---- the answer ----

/// Name, value and what stands beside it.
type Tile = (&'static str, String, String);

fn tiles(recommendation: &Recommendation) -> Vec<Tile> {
    let Some(level) = recommendation.chosen() else { return Vec::new() };
    let summary = &level.summary;
    let latency = summary.latency_s.unwrap_or_default();
    let rps = summary.throughput_rps;
    let half_width = |rps: Estimate| Some(format!("± {:.2} (95 %)", (rps.upper? - rps.lower?) / 2.0));
    let gain = words::gain(recommendation, level);
    let gain = gain.as_ref();
    let over = |gain: &Gain| match gain.from {
        1 => "over sequential (1)".to_owned(),
        level => format!("over level {level}"),
    };
    let beside = |name: &str, time: Option<f64>| time.map(|time| format!("{name} {}", seconds(time)));
    let timeouts = summary.timeout_rate.map(|of_all| format!("timeouts {}", rate(of_all)));
    let thousand = |rps: f64| seconds(1000.0 / rps);
    let all = [
        ("Throughput", rps.map(|rps| format!("{:.2}/s", rps.estimate)), rps.and_then(half_width)),
        ("Speed-up", gain.map(|gain| format!("{:.1} ×", gain.factor())), gain.map(over)),
        ("Mean latency", latency.mean.map(seconds), beside("median", latency.p50)),
        ("P95 latency", latency.p95.map(seconds), beside("P99", latency.p99)),
        ("Failed requests", summary.error_rate.map(rate), timeouts),
        (
            "1000 requests",
            gain.map(|gain| thousand(gain.fast)),
            gain.map(|gain| format!("instead of {}", thousand(gain.slow))),
        ),
    ];
    let known = all.into_iter().filter_map(|(name, value, beside)| Some((name, value?, beside.unwrap_or_default())));
    known.collect()
}

/// What two runs show, in a line; and for each level the throughput before, after, its change and the interval of that,
/// P95 before, after and its change, error rate before and after; and what that shows.
type Changes = (String, Vec<(usize, Vec<String>, &'static str)>);

fn changes(runs: &[Run], comparison: &Comparison) -> Option<Changes> {
    let [before, after] = runs else { return None };
    let both = [&before.recommendation, &after.recommendation];
    let verdict = match comparison.against {
        Against::Baseline => words::of_two(comparison, both, [&before.label, &after.label]),
        Against::OtherServer => words::better(comparison),
    };
    let is_bound = |level: usize| {
        let is_of_level = |note: &Note| matches!(note, Note::ClientBound { level: at, .. } if *at == level);
        both.iter().any(|run| run.client_bound_at == Some(level) || run.notes.iter().any(is_of_level))
    };
    let row = |level: usize| {
        let both = both.map(|run| run.level(level).map(|level| &level.summary));
        let figure = |of: fn(&LevelSummary) -> Option<f64>| both.map(|summary| summary.and_then(of));
        let change = comparison.levels.iter().find(|change| change.concurrency_now == level);
        let mut cells = compared(figure(|s| Some(s.throughput_rps?.estimate)), |rps| format!("{rps:.2}"));
        cells.push(change.map_or_else(|| UNKNOWN.to_owned(), |change| range(change.interval, signed)));
        cells.extend(compared(figure(|s| s.latency_s?.p95), seconds));
        cells.extend(figure(|s| s.error_rate).map(|share| or_unknown(share, rate)));
        let shows = match change {
            Some(_) if is_bound(level) => "the client was the limit",
            change => change.map_or(UNKNOWN, |change| words::moved(change.moved)),
        };
        (level, cells, shows)
    };
    Some((verdict, sections::all_levels(runs).into_iter().map(row).collect()))
}

fn compared([before, after]: [Option<f64>; 2], write: fn(f64) -> String) -> Vec<String> {
    let change = before.zip(after).filter(|(before, _)| *before > 0.0).map(|(a, b)| b / a - 1.0);
    let cells = [before, after].map(|value| or_unknown(value, write));
    cells.into_iter().chain([or_unknown(change, signed)]).collect()
}
