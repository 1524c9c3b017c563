//! One run, or two to compare, as one HTML file that loads nothing from anywhere. Pure: returns the text.

use std::collections::BTreeSet;

use minijinja::Environment;
use minijinja::value::Serde;
use serde::Serialize;
use serde_json::Value;

use super::chart::Chart;
use super::figures::{self, Section};
use super::requests::{Curves, Reason};
use super::text;
use crate::decide::compare::compare;
use crate::decide::{JudgedLevel, Objective, Policy, Recommendation, Status};
use crate::figures::{Estimate, LevelSummary};
use crate::report::words::{self, UNKNOWN, list, percent, seconds, signed};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Why there is no page: the template, which is ours, does not render.
#[derive(Debug, thiserror::Error)]
#[error("the report's template does not render: {0}. This is a mistake in llm-concurrency: please report it")]
pub struct ReportError(#[from] minijinja::Error);

/// What was measured. Anything may be unknown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct About {
    /// The run.
    pub run_id: Option<String>,
    /// When it began, RFC 3339.
    pub started_at: Option<String>,
    /// The redacted endpoint.
    pub endpoint: Option<String>,
    /// The model.
    pub model: Option<String>,
    /// Settings, as a results file holds them.
    pub settings: Value,
    /// Machine and versions, as a results file holds them.
    pub environment: Value,
}

/// A run as the report takes it.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it is called beside another, such as A; empty alone.
    pub label: String,
    /// The decision, with the figures of all levels.
    pub recommendation: Recommendation,
    /// What it was decided by.
    pub policy: Policy,
    /// What was measured.
    pub about: About,
    /// From the records of the single requests, where they were found.
    pub curves: Option<Curves>,
    /// What is not known, beside what can be seen from the rest.
    pub missing: Vec<String>,
}

/// The page of one run, or of two: the earlier (or A) first.
///
/// # Errors
/// If the template does not render.
pub fn page(runs: &[Run]) -> Result<String, ReportError> {
    let sections = figures::sections(runs);
    let title = match runs {
        [run] if run.recommendation.simulated => "SIMULATED: concurrency of the embedded simulator".to_owned(),
        [run] => format!("Concurrency of {}", run.about.model.as_deref().unwrap_or("an LLM endpoint")),
        _ => "Two runs compared".to_owned(),
    };
    let mut environment = Environment::new();
    environment.add_template("page.html", PAGE)?;
    let page = Page {
        title,
        version: env!("CARGO_PKG_VERSION"),
        alone: runs.len() == 1,
        answers: runs.iter().map(Answer::of).collect(),
        changes: changes(runs),
        sections: sections.iter().map(SectionView::of).collect(),
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
    alone: bool,
    answers: Vec<Answer>,
    changes: Vec<ChangeRow>,
    sections: Vec<SectionView<'a>>,
    /// These two go into the page as they are.
    style: &'static str,
    script: &'static str,
}

#[derive(Serialize)]
struct SectionView<'a> {
    id: &'a str,
    title: &'a str,
    intro: &'a str,
    figures: Vec<FigureView<'a>>,
}

#[derive(Serialize)]
struct FigureView<'a> {
    title: &'a str,
    caption: &'a str,
    /// Why there is no chart.
    absent: Option<&'a str>,
    chart: Option<ChartView<'a>>,
}

#[derive(Serialize)]
struct ChartView<'a> {
    id: &'a str,
    wide: bool,
    sync: Option<&'a str>,
    /// These go into the page as they are.
    stops: [String; 2],
    html: String,
}

impl<'a> SectionView<'a> {
    fn of(section: &'a Section) -> Self {
        let chart = |chart: &'a Chart| ChartView {
            id: &chart.id,
            wide: chart.wide,
            sync: chart.sync.as_deref(),
            stops: chart.stops(),
            html: chart.html(),
        };
        let figure = |figure: &'a figures::Figure| FigureView {
            title: &figure.title,
            caption: &figure.caption,
            absent: figure.chart.as_ref().err().map(String::as_str),
            chart: figure.chart.as_ref().ok().map(chart),
        };
        SectionView {
            id: section.id,
            title: section.title,
            intro: section.intro,
            figures: section.figures.iter().map(figure).collect(),
        }
    }
}

// ---- the answer ----

/// A figure of the answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Tile {
    name: &'static str,
    value: String,
    detail: String,
}

/// A run in words.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Answer {
    label: String,
    /// The answer in one sentence, with its interval and status.
    sentence: String,
    status: &'static str,
    meaning: &'static str,
    /// Whether it may be written: good, careful or none.
    mood: &'static str,
    reason: String,
    tiles: Vec<Tile>,
    notes: Vec<String>,
    rows: Vec<Row>,
    sizes: Vec<SizeRow>,
    reasons: Vec<ReasonRow>,
    reasons_left_out: usize,
    about: Vec<(&'static str, String)>,
    command: Option<String>,
    missing: Vec<String>,
}

impl Answer {
    fn of(run: &Run) -> Self {
        let recommendation = &run.recommendation;
        let status = recommendation.status;
        let mut notes = Vec::new();
        if is_provisional(recommendation) {
            notes.push(
                "Provisional: it is shown, but not written into the config without --allow-provisional.".to_owned(),
            );
        }
        notes.extend(words::information(recommendation));
        notes.extend(recommendation.notes.iter().map(words::note).chain(words::advice(recommendation)));
        let curves = run.curves.as_ref();
        Answer {
            label: title(run),
            sentence: sentence(recommendation),
            status: if is_provisional(recommendation) { "provisional" } else { status.name() },
            meaning: meaning(status),
            mood: match status {
                _ if recommendation.recommended_concurrency.is_none() => "none",
                Status::Ok if !recommendation.provisional => "good",
                _ => "careful",
            },
            reason: words::reason(recommendation),
            tiles: tiles(recommendation),
            notes,
            rows: rows(recommendation),
            sizes: sizes(recommendation),
            reasons: curves.map(|curves| curves.reasons.iter().map(ReasonRow::of).collect()).unwrap_or_default(),
            reasons_left_out: curves.map_or(0, |curves| curves.reasons_left_out),
            about: about(&run.about, &run.policy),
            command: command(&run.about),
            missing: missing(run),
        }
    }
}

/// What was measured, in a line.
fn title(run: &Run) -> String {
    let label = if run.label.is_empty() { String::new() } else { format!("{}: ", run.label) };
    let About { model, endpoint, started_at, .. } = &run.about;
    let started = started_at.as_deref().map(readable);
    let parts: Vec<&str> = [model, endpoint, &started].into_iter().filter_map(|part| part.as_deref()).collect();
    let what = if parts.is_empty() { "not known what was measured".to_owned() } else { parts.join(", ") };
    label + &what
}

/// `2026-11-24T08:09:45Z` as `2026-11-24 08:09:45 UTC`.
fn readable(time: &str) -> String {
    match time.strip_suffix('Z') {
        Some(time) => format!("{} UTC", time.replacen('T', " ", 1)),
        None => time.to_owned(),
    }
}

fn sentence(recommendation: &Recommendation) -> String {
    let status = recommendation.status.name();
    let interval = match recommendation.interval {
        Some([low, high]) if low == high => format!("95\u{a0}%\u{a0}interval {low}"),
        Some([low, high]) => format!("95\u{a0}%\u{a0}interval {low} to {high}"),
        None => "interval unknown".to_owned(),
    };
    let simulated = if recommendation.simulated { "SIMULATED: " } else { "" };
    let sentence = match recommendation.recommended_concurrency {
        Some(pick) if recommendation.provisional => {
            format!("First look: about {pick} in parallel, not confirmed ({interval}, status {status}).")
        }
        Some(1) => format!("Send 1 request at a time ({interval}, status {status})."),
        Some(pick) => format!("Send {pick} requests in parallel ({interval}, status {status})."),
        None => format!("There is no number to recommend (status {status})."),
    };
    format!("{simulated}{sentence}")
}

fn is_provisional(recommendation: &Recommendation) -> bool {
    recommendation.provisional && recommendation.recommended_concurrency.is_some()
}

fn meaning(status: Status) -> &'static str {
    match status {
        Status::Ok => "The optimum lies inside the levels measured.",
        Status::NotSaturated => "Throughput still rises at the highest level: the optimum is at least this.",
        Status::LimitedByGate => "A higher level failed on errors or latency.",
        Status::AtOrBelowLowest => "The lowest level measured is enough; the optimum may be lower.",
        Status::RateLimited => "A quota (HTTP 429) is the limit, not concurrency.",
        Status::Unresolved => "The measurements do not decide.",
        Status::NoQualifyingLevel => "Every level fails.",
    }
}

fn tiles(recommendation: &Recommendation) -> Vec<Tile> {
    let Some(level) = recommendation.chosen() else { return Vec::new() };
    let summary = &level.summary;
    let latency = summary.latency_s.unwrap_or_default();
    let tile = |name, value: Option<String>, detail: Option<String>| {
        value.map(|value| Tile { name, value, detail: detail.unwrap_or_default() })
    };
    let throughput = summary.throughput_rps;
    let gain = words::gain(recommendation, level);
    let all = [
        tile("Throughput", throughput.map(|t| format!("{:.2}/s", t.estimate)), throughput.and_then(interval_of)),
        tile(
            "Speed-up",
            gain.as_ref().map(|gain| format!("{:.1} ×", gain.factor())),
            gain.as_ref().map(|gain| match gain.from {
                1 => "against one by one".to_owned(),
                level => format!("against level {level}"),
            }),
        ),
        tile("Mean latency", latency.mean.map(seconds), latency.p50.map(|p50| format!("median {}", seconds(p50)))),
        tile("P95 latency", latency.p95.map(seconds), latency.p99.map(|p99| format!("P99 {}", seconds(p99)))),
        tile(
            "Failed requests",
            summary.error_rate.map(percent),
            summary.timeout_rate.map(|rate| format!("timeouts {}", percent(rate))),
        ),
        tile(
            "1000 requests",
            gain.as_ref().map(|gain| seconds(1000.0 / gain.fast)),
            gain.as_ref().map(|gain| format!("instead of {}", seconds(1000.0 / gain.slow))),
        ),
    ];
    all.into_iter().flatten().collect()
}

fn interval_of(estimate: Estimate) -> Option<String> {
    Some(format!("± {:.2} (95 %)", (estimate.upper? - estimate.lower?) / 2.0))
}

// ---- tables ----

/// A level in the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    level: usize,
    cells: Vec<String>,
    verdict: &'static str,
    why: String,
    chosen: bool,
}

fn rows(recommendation: &Recommendation) -> Vec<Row> {
    let best = text::best_passing(recommendation);
    let row = |level: &JudgedLevel| Row {
        level: level.summary.concurrency,
        cells: text::row(&level.summary, best).into_iter().skip(1).collect(),
        verdict: words::verdict(level.verdict),
        why: text::why(level),
        chosen: recommendation.recommended_concurrency == Some(level.summary.concurrency),
    };
    recommendation.levels.iter().map(row).collect()
}

/// The prompts of one size at the recommended level.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct SizeRow {
    size: String,
    cells: Vec<String>,
}

/// Empty where all prompts have the same size, or nothing is recommended.
fn sizes(recommendation: &Recommendation) -> Vec<SizeRow> {
    let parts = recommendation.chosen().map(|level| &level.summary.by_size).into_iter().flatten();
    parts.map(|part| SizeRow { size: part.size.clone(), cells: text::size_row(part) }).collect()
}

/// A failure's reason in the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct ReasonRow {
    kind: &'static str,
    text: String,
    count: u64,
    levels: String,
}

impl ReasonRow {
    fn of(reason: &Reason) -> Self {
        ReasonRow {
            kind: reason.kind.name(),
            text: reason.text.clone(),
            count: reason.count,
            levels: list(&reason.levels),
        }
    }
}

/// A level in both runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct ChangeRow {
    level: usize,
    /// Throughput before, after, change and its interval; P95 before, after, change; error rate before, after.
    cells: Vec<String>,
    /// What that shows of the throughput.
    shows: &'static str,
}

fn changes(runs: &[Run]) -> Vec<ChangeRow> {
    let [before, after] = runs else { return Vec::new() };
    let figures = |run: &Run, n: usize| -> LevelSummary {
        let level = run.recommendation.levels.iter().find(|level| level.summary.concurrency == n);
        level.map(|level| level.summary.clone()).unwrap_or_default()
    };
    let found = compare(&before.recommendation, &after.recommendation, Objective::Requests, None).levels;
    let all: BTreeSet<usize> =
        runs.iter().flat_map(|run| &run.recommendation.levels).map(|level| level.summary.concurrency).collect();
    let row = |level: usize| {
        let (a, b) = (figures(before, level), figures(after, level));
        let change = found.iter().find(|change| change.concurrency_now == level);
        let interval = change.map(|change| change.interval);
        let rps = |summary: &LevelSummary| summary.throughput_rps.map(|t| t.estimate);
        let p95 = |summary: &LevelSummary| summary.latency_s.and_then(|d| d.p95);
        let mut cells = compared(rps(&a), rps(&b), |rps| format!("{rps:.2}"));
        cells.push(interval.map_or_else(unknown, |[low, high]| format!("{} to {}", signed(low), signed(high))));
        cells.extend(compared(p95(&a), p95(&b), seconds));
        cells.extend([a.error_rate, b.error_rate].map(|rate| rate.map_or_else(unknown, percent)));
        ChangeRow { level, cells, shows: change.map_or(UNKNOWN, |change| words::moved(change.moved)) }
    };
    all.into_iter().map(row).collect()
}

fn compared(before: Option<f64>, after: Option<f64>, write: impl Fn(f64) -> String) -> Vec<String> {
    let change = before.zip(after).filter(|(before, _)| *before > 0.0).map(|(a, b)| b / a - 1.0);
    let cells = [before, after].map(|value| value.map_or_else(unknown, &write));
    cells.into_iter().chain([change.map_or_else(unknown, signed)]).collect()
}

fn unknown() -> String {
    UNKNOWN.to_owned()
}

// ---- what was measured ----

fn about(about: &About, policy: &Policy) -> Vec<(&'static str, String)> {
    let (settings, machine) = (&about.settings, &about.environment);
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        Value::Array(items) => Some(items.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")),
        other => Some(other.to_string()),
    };
    let request = settings["request"].as_object().map(|request| {
        let known = request.iter().filter(|(_, value)| !is_empty(value));
        known.filter_map(|(key, value)| Some(format!("{key} {}", text(value)?))).collect::<Vec<_>>().join(", ")
    });
    let os = text(&machine["os"]).map(|os| {
        let arch = text(&machine["arch"]).map(|arch| format!(" {arch}")).unwrap_or_default();
        let cpus = text(&machine["cpus"]).map(|cpus| format!(", {cpus} processors")).unwrap_or_default();
        format!("{os}{arch}{cpus}")
    });
    let all = [
        ("Endpoint", about.endpoint.clone()),
        ("Model", about.model.clone()),
        ("Started", about.started_at.as_deref().map(readable)),
        ("Run", about.run_id.clone()),
        ("Levels", text(&settings["levels"])),
        ("Requests per level", text(&settings["total_requests"]).map(|n| format!("{n}, and at least 10 x the level"))),
        ("Quick run", settings["quick"].as_bool().filter(|quick| *quick).map(|_| "yes: fewer requests".to_owned())),
        ("Warm-up", text(&settings["warmup_requests"]).map(|n| format!("{n} requests, and at least the level"))),
        ("Timeout", settings["request_timeout_s"].as_f64().map(seconds)),
        ("Request", request),
        ("Seed", text(&settings["seed"])),
        ("Gates", Some(words::gates(policy))),
        ("Measured from", os),
        ("Version", text(&machine["version"]).map(|version| format!("llm-concurrency {version}"))),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// The command that measures the same again, as far as the file tells.
fn command(about: &About) -> Option<String> {
    let settings = &about.settings;
    let levels: Vec<String> = settings["levels"].as_array()?.iter().map(Value::to_string).collect();
    let mut words = vec!["llm-concurrency".to_owned(), "run".to_owned()];
    let mut flag = |name: &str, value: String| words.extend([name.to_owned(), quoted(&value)]);
    flag("--llm-endpoint", about.endpoint.clone()?);
    flag("--llm-model", about.model.clone()?);
    let quick = settings["quick"].as_bool().unwrap_or(false);
    if !quick {
        // A quick run takes every second level, so these would be halved once more.
        flag("--levels", levels.join(","));
    }
    if let Some(total) = settings["total_requests"].as_u64() {
        flag("--total-requests", total.to_string());
    }
    if let Some(seed) = settings["seed"].as_u64() {
        flag("--seed", seed.to_string());
    }
    words.extend(quick.then(|| "--quick".to_owned()));
    Some(words.join(" "))
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

/// What the report cannot show, and why.
fn missing(run: &Run) -> Vec<String> {
    let levels = &run.recommendation.levels;
    let without = |known: fn(&LevelSummary) -> bool| -> Option<String> {
        let lacking: Vec<usize> =
            levels.iter().map(|level| &level.summary).filter(|s| !known(s)).map(|s| s.concurrency).collect();
        match lacking.len() {
            0 => None,
            n if n == levels.len() => Some("of every level".to_owned()),
            _ => Some(format!("of level {}", list(&lacking))),
        }
    };
    type Known = fn(&LevelSummary) -> bool;
    let figures: [(&str, Known); 8] = [
        ("Throughput", |s| s.throughput_rps.is_some()),
        ("The throughput's interval", |s| s.throughput_rps.is_none_or(|t| t.lower.is_some() && t.upper.is_some())),
        ("The throughput of the single windows", |s| s.samples.is_some()),
        ("The number of requests", |s| s.requests.is_some()),
        ("The error rate", |s| s.error_rate.is_some() || s.succeeded.is_some()),
        ("Latency", |s| s.latency_s.is_some()),
        ("Time to first token", |s| s.ttft_s.is_some()),
        ("Time per output token", |s| s.tpot_s.is_some()),
    ];
    let mut lines: Vec<String> =
        figures.into_iter().filter_map(|(name, known)| Some(format!("{name} {}", without(known)?))).collect();
    if run.curves.is_none() {
        lines.push("The records of the single requests: without them there is no distribution, no course of the run and no reasons of failures".to_owned());
    }
    let About { run_id, started_at, endpoint, model, settings, environment } = &run.about;
    let told = [
        ("the endpoint", endpoint.is_some()),
        ("the model", model.is_some()),
        ("when it was", started_at.is_some()),
        ("the run's id", run_id.is_some()),
        ("the settings", settings.as_object().is_some_and(|settings| !settings.is_empty())),
        ("the machine", environment.as_object().is_some_and(|environment| !environment.is_empty())),
    ];
    let unknown: Vec<&str> = told.into_iter().filter(|(_, known)| !known).map(|(name, _)| name).collect();
    if !unknown.is_empty() {
        lines.push(format!("What was measured: {}", unknown.join(", ")));
    }
    lines.extend(run.missing.iter().cloned());
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::decide::recommend;
    use crate::figures::SizeSummary;

    fn level(concurrency: usize, rps: f64) -> LevelSummary {
        LevelSummary {
            concurrency,
            throughput_rps: Some(Estimate { estimate: rps, lower: None, upper: None }),
            ..LevelSummary::default()
        }
    }

    fn run(levels: &[LevelSummary]) -> Run {
        let policy = Policy::default();
        Run {
            label: String::new(),
            recommendation: recommend(levels, &policy),
            policy,
            about: About::default(),
            curves: None,
            missing: Vec::new(),
        }
    }

    #[test]
    fn the_chosen_level_is_shown_by_size_and_others_are_not() {
        let part = |size: &str, requests| SizeSummary { size: size.to_owned(), requests, ..SizeSummary::default() };
        let sized = |level, requests| LevelSummary {
            requests: Some(1000),
            error_rate: Some(0.0),
            by_size: vec![part("<small>", requests), part("large", 300)],
            ..level
        };
        let run = run(&[sized(level(1, 10.0), 700), sized(level(4, 10.1), 600)]);
        assert_eq!(run.recommendation.recommended_concurrency, Some(1));
        let html = page(&[run]).expect("a page");
        assert!(html.contains("&lt;small&gt;</th><td>–</td><td>–</td><td>–</td><td>700</td>"), "{html}");
        assert!(!html.contains("<td>600</td>"));
    }

    /// Nothing but concurrency and throughput.
    #[test]
    fn a_bare_run_renders_and_says_what_is_missing() {
        let page = page(&[run(&[level(1, 5.0), level(10, 40.0), level(20, 41.0)])]).expect("it renders");
        for part in [
            "First look: about 10 in parallel, not confirmed",
            "interval unknown",
            "Provisional",
            "The error rate of every level",
            "Latency of every level",
            "The records of the single requests",
            "What was measured: the endpoint, the model",
            "No times to first token",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("NaN") && !page.contains("undefined<"), "a figure that is none");
        assert_eq!(page.matches("<figure").count(), 1);
    }

    #[test]
    fn what_is_known_of_some_levels_is_missing_of_the_others() {
        let known = LevelSummary { requests: Some(100), error_rate: Some(0.0), ..level(2, 9.0) };
        let lines = missing(&run(&[level(1, 5.0), known, level(3, 12.0)]));
        assert!(lines.contains(&"The number of requests of level 1, 3".to_owned()), "{lines:?}");
        assert!(lines.contains(&"Latency of every level".to_owned()), "{lines:?}");
    }

    #[test]
    fn no_number_and_no_level_render_as_well() {
        for levels in [vec![], vec![level(1, 0.0)], vec![LevelSummary { concurrency: 4, ..LevelSummary::default() }]] {
            let page = page(&[run(&levels)]).expect("it renders");
            assert!(page.contains("There is no number to recommend"), "{levels:?}");
        }
    }

    #[test]
    fn text_from_elsewhere_stays_text() {
        let evil = "</script><script>alert(1)</script><!--\u{2028}";
        let mut hostile = run(&[level(1, 5.0), level(2, 9.0)]);
        hostile.recommendation.notes.push(crate::decide::Note::Other { text: evil.to_owned() });
        hostile.about.model = Some(evil.to_owned());
        hostile.about.settings = json!({"levels": [1, 2], "request": {evil: evil}});
        hostile.about.endpoint = Some(evil.to_owned());
        hostile.missing = vec![evil.to_owned()];
        let mut other = hostile.clone();
        (hostile.label, other.label) = (evil.to_owned(), "B".to_owned());
        let page = page(&[hostile, other]).expect("it renders");
        assert_eq!(page.matches("<script").count(), 1);
        assert_eq!(page.matches("</script").count(), 1);
        assert!(!page.contains("<!--"));
        let scripts = page.find("<script").expect("it has scripts");
        assert!(!page[scripts..].contains('\u{2028}'), "it ends a line of JavaScript");
        assert!(page.contains("&lt;script&gt;"));
    }

    #[test]
    fn the_page_asks_for_nothing_from_anywhere() {
        let page = page(&[run(&[level(1, 5.0), level(2, 9.0)])]).expect("it renders");
        for loads in [" src=", "url(", "@import", "href=\"http", "fetch(", "XMLHttpRequest", "import("] {
            assert!(!page.contains(loads), "{loads}");
        }
        assert!(page.contains("default-src 'none'"));
    }

    #[test]
    fn the_command_repeats_the_run_and_is_quoted_for_a_shell() {
        let about = About {
            endpoint: Some("http://host/v1".to_owned()),
            model: Some("it's a model".to_owned()),
            settings: json!({"levels": [1, 2], "total_requests": 100, "seed": 42, "quick": false}),
            ..About::default()
        };
        let command = |about: &About| super::command(about).expect("it is known");
        assert_eq!(
            command(&about),
            "llm-concurrency run --llm-endpoint http://host/v1 --llm-model 'it'\\''s a model' --levels 1,2 \
             --total-requests 100 --seed 42"
        );
        let quick = About { settings: json!({"levels": [1, 5], "quick": true}), ..about.clone() };
        assert!(command(&quick).ends_with("a model' --quick"));
        assert_eq!(super::command(&About::default()), None);
    }

    #[test]
    fn a_change_is_shown_where_its_interval_leaves_out_none() {
        let with = |rps: f64| LevelSummary {
            throughput_rps: Some(Estimate { estimate: rps, lower: Some(0.97 * rps), upper: Some(1.03 * rps) }),
            ..level(5, rps)
        };
        let changes = |a: LevelSummary, b: LevelSummary| super::changes(&[run(&[a]), run(&[b])]).remove(0);
        let faster = changes(with(10.0), with(15.0));
        assert_eq!((faster.shows, faster.cells[..3].join(" ")), ("faster", "10.00 15.00 +50.0 %".to_owned()));
        // Known to 3 %, but equal servers differ by more from one measurement to the next.
        assert_eq!(changes(with(10.0), with(12.0)).shows, "no change shown");
        let same = changes(with(10.0), with(9.999_999));
        assert_eq!((same.shows, same.cells[2].as_str()), ("no change shown", "+0.0 %"));
        assert_eq!(changes(with(10.0), level(6, 20.0)).cells[1..4], [UNKNOWN; 3]);
    }

    #[test]
    fn times_are_made_readable() {
        assert_eq!(readable("2026-11-24T08:09:45Z"), "2026-11-24 08:09:45 UTC");
        assert_eq!(readable("yesterday"), "yesterday");
    }
}
