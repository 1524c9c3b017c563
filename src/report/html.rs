//! One run, or two to compare, as a self-contained HTML file. Pure: returns the text.

use minijinja::value::{Serde, Value};
use minijinja::{Environment, UndefinedBehavior, context};

use super::requests::Curves;
use super::{sections, text};
use crate::decide::compare::{Against, Comparison, compare};
use crate::decide::verify::Verified;
use crate::decide::{Note, Objective, Policy, Recommendation, Status, known_p99, value};
use crate::figures::LevelSummary;
use crate::record::{About, RunId};
use crate::report::words::{self, UNKNOWN, or_unknown, range, rate, seconds, signed};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page's template, which is part of the program, does not render.
#[derive(Debug, thiserror::Error)]
#[error("the report's template does not render: {0}. This is a bug in llm-concurrency: please report it")]
pub struct ReportError(#[from] minijinja::Error);

/// What is missing from a run, and cannot be seen from its other fields.
#[derive(Clone, Debug)]
pub enum Missing {
    Policy,
    Decision,
    Requests { level: usize, error: String },
}

/// A run, as input of the report.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its name next to another run, such as A; empty for a single run.
    pub label: String,
    pub recommendation: Recommendation,
    pub policy: Policy,
    pub run_id: Option<RunId>,
    pub about: About,
    /// The number that the config file has now.
    pub present: Option<usize>,
    /// Computed from the records of the individual requests, if they were found.
    pub curves: Option<Curves>,
    pub verified: Option<Verified>,
    pub missing: Vec<Missing>,
}

/// The page of one run, or of two: the earlier (or A) first.
pub fn page(runs: &[Run]) -> Result<String, ReportError> {
    let comparison = match runs {
        [a, b] => Some(compare(&a.recommendation, &b.recommendation, objective([a, b]), None)),
        _ => None,
    };
    page_with(runs, comparison.as_ref())
}

/// The objective of both policies; requests if they differ, since both runs have measured those.
fn objective([a, b]: [&Run; 2]) -> Objective {
    let [a, b] = [&a.policy, &b.policy];
    let is_same = a.objective == b.objective && (a.objective != Objective::Goodput || a.slo == b.slo);
    if is_same { a.objective } else { Objective::Requests }
}

/// The same for runs that have been compared already.
pub fn page_with(runs: &[Run], comparison: Option<&Comparison>) -> Result<String, ReportError> {
    let title = match runs {
        [run] if run.recommendation.simulated => "SIMULATED: concurrency of the embedded simulator".to_owned(),
        [run] => format!("Concurrency of {}", run.about.model.as_deref().unwrap_or("an LLM endpoint")),
        _ => "Two runs compared".to_owned(),
    };
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    environment.add_filter("seconds", |s: Option<f64>| s.map(seconds));
    environment.add_filter("rate", |share: Option<f64>| share.map(rate));
    environment.add_filter("number", |value: f64, digits: usize| format!("{value:.digits$}"));
    environment.add_filter("moment", |time: &str| words::moment(time));
    environment.add_filter("quoted", |word: &str| quoted(word));
    environment.add_template("page.html", PAGE)?;
    let page = context! {
        title,
        version => env!("CARGO_PKG_VERSION"),
        unknown => UNKNOWN,
        alone => runs.len() == 1,
        answers => runs.iter().map(answer).collect::<Vec<Value>>(),
        unit => comparison.map(|comparison| comparison.unit),
        changes => Serde(comparison.and_then(|comparison| changes(runs, comparison))),
        // By the id of their section. `style` and `script` go into the page unescaped.
        figures => Serde(sections::sections(runs)),
        style => STYLE,
        script => SCRIPT,
    };
    Ok(environment.get_template("page.html")?.render(page)?)
}

fn answer(run: &Run) -> Value {
    let recommendation = &run.recommendation;
    let pick = recommendation.recommended_concurrency;
    let provisional = "Provisional: it is shown, but not written into the config without --allow-provisional.";
    let provisional = (recommendation.provisional && pick.is_some()).then(|| provisional.to_owned());
    let (doubts, mut notes) = words::notes(recommendation);
    notes.splice(doubts..doubts, words::information(recommendation));
    notes.splice(..0, provisional);
    let (columns, rows) = text::rows(recommendation);
    let chosen = recommendation.chosen();
    let sizes = chosen.into_iter().flat_map(|level| &level.summary.by_size);
    // The answer, the columns, and a row for each rate with the reason if it is not carried.
    let loads = run.verified.as_ref().map(|verified| {
        let row = |load| words::load_row(load, verified.throughput_rps, &run.policy);
        (words::carries(verified), words::LOAD_HEADER, verified.loads.iter().map(row).collect::<Vec<_>>())
    });
    context! {
        label => run.label.as_str(),
        headline => text::glued(&words::headline(recommendation, run.present)),
        measured => words::measured(&run.about, recommendation),
        because => words::because(recommendation),
        // How far the answer can be relied on.
        mood => match recommendation.status {
            _ if pick.is_none() => "none",
            Status::Ok if !recommendation.provisional => "good",
            _ => "careful",
        },
        // Without a number, `because` already has the reason.
        reason => pick.map(|_| words::reason(recommendation)),
        chosen => Serde(chosen),
        p99 => Serde(chosen.and_then(|level| known_p99(&level.summary))),
        gain => Serde(chosen.and_then(|level| words::gain(recommendation, level))),
        notes,
        columns => columns.iter().map(|column| column.0).collect::<Vec<_>>(),
        rows => Serde(rows),
        sizes => Serde(sizes.map(|part| (&part.size, text::size_row(part))).collect::<Vec<_>>()),
        reasons => Serde(run.curves.as_ref().map(|curves| &curves.reasons)),
        reasons_left_out => run.curves.as_ref().map(|curves| curves.reasons_left_out),
        run_id => Serde(&run.run_id),
        about => Serde(&run.about),
        gates => words::gates(&run.policy),
        status => Serde(recommendation.status),
        missing => words::missing(run),
        loads => Serde(loads),
    }
}

/// Quotes a word for a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// The verdict on two runs, in lines; and for each level: the objective before, after, its change and the
/// interval of that; P95 before, after and its change; error rate before and after; and what this shows.
type Changes = (Vec<String>, Vec<(usize, Vec<String>, &'static str)>);

fn changes(runs: &[Run], comparison: &Comparison) -> Option<Changes> {
    let [before, after] = runs else { return None };
    let (both, objective) = ([&before.recommendation, &after.recommendation], objective([before, after]));
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
        let figure = |of: &dyn Fn(&LevelSummary) -> Option<f64>| both.map(|summary| summary.and_then(of));
        let change = comparison.levels.iter().find(|change| change.concurrency_now == level);
        let mut cells = compared(figure(&|s| value(s, objective)), |rps| format!("{rps:.2}"));
        cells.push(change.map_or_else(|| UNKNOWN.to_owned(), |change| range(change.interval, signed)));
        cells.extend(compared(figure(&|s| s.latency_s?.p95), seconds));
        cells.extend(figure(&|s| s.error_rate).map(|share| or_unknown(share, rate)));
        let shows = match change {
            Some(_) if is_bound(level) => "the client was the limit",
            change => change.map_or(UNKNOWN, |change| words::moved(change.moved)),
        };
        (level, cells, shows)
    };
    let verdict = words::mark(both.iter().any(|run| run.simulated)).to_owned() + &verdict;
    let lines = verdict.lines().map(str::to_owned).collect();
    Some((lines, sections::all_levels(runs).into_iter().map(row).collect()))
}

fn compared([before, after]: [Option<f64>; 2], write: fn(f64) -> String) -> Vec<String> {
    let change = before.zip(after).filter(|(before, _)| *before > 0.0).map(|(a, b)| b / a - 1.0);
    let cells = [before, after].map(|value| or_unknown(value, write));
    cells.into_iter().chain([or_unknown(change, signed)]).collect()
}
