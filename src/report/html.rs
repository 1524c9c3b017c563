//! One run, or two to compare, as one HTML file that loads nothing from anywhere. Pure: returns the text.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use super::requests::{Curves, ReasonAt};
use super::sections::{self, Figure};
use super::text;
use crate::decide::compare::{Against, Comparison, compare};
use crate::decide::verify::Verified;
use crate::decide::{JudgedLevel, Note, Objective, Policy, Recommendation, Status};
use crate::figures::{Estimate, LevelSummary};
use crate::record::{About, RunId};
use crate::report::words::{self, UNKNOWN, or_unknown, range, rate, seconds, signed};

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
    page_with(runs, compare_runs(runs).as_ref())
}

fn compare_runs(runs: &[Run]) -> Option<Comparison> {
    let [a, b] = runs else { return None };
    Some(compare(&a.recommendation, &b.recommendation, Objective::Requests, None))
}

/// The page of two runs that were measured in turns.
///
/// # Errors
/// If the template does not render.
pub fn page_of_duet(runs: &[Run; 2], comparison: &Comparison) -> Result<String, ReportError> {
    page_with(runs, Some(comparison))
}

fn page_with(runs: &[Run], comparison: Option<&Comparison>) -> Result<String, ReportError> {
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
    let (verdict, changes) = comparison.and_then(|comparison| changes(runs, comparison)).unwrap_or_default();
    let page = Page {
        title,
        version: env!("CARGO_PKG_VERSION"),
        unknown: UNKNOWN,
        alone: runs.len() == 1,
        answers: runs.iter().map(Answer::of).collect(),
        verdict,
        changes,
        figures: sections::sections(runs),
        limits: sections::Tradeoff::of(runs).map(|tradeoff| tradeoff.limits.to_string()).unwrap_or_default(),
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
    /// What two runs show, in a line, and by level.
    verdict: String,
    changes: Vec<ChangeRow>,
    /// By the id of their section. Charts go into the page as they are, and so do the next two.
    figures: BTreeMap<&'static str, Vec<Figure>>,
    /// What the script chooses a level by, as JSON: figures and words of ours.
    limits: String,
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
    rows: Vec<Row>,
    /// The chosen level by the size of the prompts.
    sizes: Vec<(&'a str, Vec<String>)>,
    reasons: &'a [ReasonAt],
    reasons_left_out: usize,
    run_id: &'a Option<RunId>,
    about: &'a About,
    gates: String,
    status: &'static str,
    missing: Vec<String>,
    loads: Option<Loads>,
}

/// What traffic the number carries: the answer, and the cells of each rate with why it is not carried.
#[derive(Serialize)]
struct Loads {
    carries: String,
    header: [&'static str; 9],
    rows: Vec<(Vec<String>, String)>,
}

impl Loads {
    fn of(verified: &Verified, policy: &Policy) -> Self {
        let row = |load| (words::load_row(load, verified.throughput_rps), words::load_verdict(load, policy));
        let rows = verified.loads.iter().map(row).collect();
        Loads { carries: words::carries(verified), header: words::LOAD_HEADER, rows }
    }
}

impl<'a> Answer<'a> {
    fn of(run: &'a Run) -> Self {
        let recommendation = &run.recommendation;
        let pick = recommendation.recommended_concurrency;
        let provisional = "Provisional: it is shown, but not written into the config without --allow-provisional.";
        let provisional = (recommendation.provisional && pick.is_some()).then(|| provisional.to_owned());
        let notes = provisional.into_iter().chain(words::information(recommendation));
        let notes = notes.chain(recommendation.notes.iter().map(words::note)).chain(words::advice(recommendation));
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
            notes: notes.collect(),
            columns: text::cells(recommendation).remove(0),
            rows: rows(recommendation),
            sizes: sizes.map(|part| (part.size.as_str(), text::size_row(part))).collect(),
            reasons: run.curves.as_ref().map_or(&[], |curves| &curves.reasons),
            reasons_left_out: run.curves.as_ref().map_or(0, |curves| curves.reasons_left_out),
            run_id: &run.run_id,
            about: &run.about,
            gates: words::gates(&run.policy),
            status: recommendation.status.name(),
            missing: words::missing(run),
            loads: run.verified.as_ref().map(|verified| Loads::of(verified, &run.policy)),
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

type Tile = (&'static str, String, String);

fn tiles(recommendation: &Recommendation) -> Vec<Tile> {
    let Some(level) = recommendation.chosen() else { return Vec::new() };
    let summary = &level.summary;
    let latency = summary.latency_s.unwrap_or_default();
    let rps = summary.throughput_rps;
    let half_width = |rps: Estimate| Some(format!("± {:.2} (95 %)", (rps.upper? - rps.lower?) / 2.0));
    let gain = words::gain(recommendation, level);
    let gain = gain.as_ref();
    let beside = |name: &str, time: Option<f64>| time.map(|time| format!("{name} {}", seconds(time)));
    let timeouts = summary.timeout_rate.map(|rate| format!("timeouts {}", words::rate(rate)));
    let thousand = |rps: f64| seconds(1000.0 / rps);
    let all = [
        ("Throughput", rps.map(|rps| format!("{:.2}/s", rps.estimate)), rps.and_then(half_width)),
        (
            "Speed-up",
            gain.map(|gain| format!("{:.1} ×", gain.factor())),
            gain.map(|gain| match gain.from {
                1 => "over sequential (1)".to_owned(),
                level => format!("over level {level}"),
            }),
        ),
        ("Mean latency", latency.mean.map(seconds), beside("median", latency.p50)),
        ("P95 latency", latency.p95.map(seconds), beside("P99", latency.p99)),
        ("Failed requests", summary.error_rate.map(rate), timeouts),
        (
            "1000 requests",
            gain.map(|gain| thousand(gain.fast)),
            gain.map(|gain| format!("instead of {}", thousand(gain.slow))),
        ),
    ];
    let tiles = all.into_iter().filter_map(|(name, value, detail): (_, Option<_>, Option<_>)| {
        Some((name, value?, detail.unwrap_or_default()))
    });
    tiles.collect()
}

// ---- tables ----

#[derive(Serialize)]
struct Row {
    cells: Vec<String>,
    verdict: &'static str,
    why: String,
    chosen: bool,
}

fn rows(recommendation: &Recommendation) -> Vec<Row> {
    let row = |(level, cells): (&JudgedLevel, Vec<String>)| Row {
        cells,
        verdict: words::verdict(level.verdict),
        why: text::why(level),
        chosen: recommendation.recommended_concurrency == Some(level.summary.concurrency),
    };
    recommendation.levels.iter().zip(text::cells(recommendation).into_iter().skip(1)).map(row).collect()
}

/// A level in both runs.
#[derive(Debug, Serialize)]
struct ChangeRow {
    level: usize,
    /// Throughput before, after, change and its interval; P95 before, after, change; error rate before, after.
    cells: Vec<String>,
    shows: &'static str,
}

fn changes(runs: &[Run], comparison: &Comparison) -> Option<(String, Vec<ChangeRow>)> {
    let [before, after] = runs else { return None };
    let figures = |run: &Run, n: usize| -> LevelSummary {
        let level = run.recommendation.levels.iter().find(|level| level.summary.concurrency == n);
        level.map(|level| level.summary.clone()).unwrap_or_default()
    };
    let both = [&before.recommendation, &after.recommendation];
    let verdict = match comparison.against {
        Against::Baseline => words::of_two(comparison, both, [&before.label, &after.label]),
        Against::OtherServer => words::better(comparison),
    };
    let is_bound = |level: usize| {
        let is_of_level = |note: &Note| matches!(note, Note::ClientBound { level: at, .. } if *at == level);
        both.iter().any(|run| run.client_bound_at == Some(level) || run.notes.iter().any(is_of_level))
    };
    let all: BTreeSet<usize> =
        runs.iter().flat_map(|run| &run.recommendation.levels).map(|level| level.summary.concurrency).collect();
    let row = |level: usize| {
        let both = [figures(before, level), figures(after, level)];
        let change = comparison.levels.iter().find(|change| change.concurrency_now == level);
        let interval = change.map(|change| range(change.interval, signed));
        let [a, b] = both.each_ref().map(|summary| summary.throughput_rps.map(|t| t.estimate));
        let mut cells = compared(a, b, |rps| format!("{rps:.2}"));
        cells.push(interval.unwrap_or_else(|| UNKNOWN.to_owned()));
        let [a, b] = both.each_ref().map(|summary| summary.latency_s.and_then(|d| d.p95));
        cells.extend(compared(a, b, seconds));
        cells.extend(both.map(|summary| or_unknown(summary.error_rate, rate)));
        let shows = match change {
            Some(_) if is_bound(level) => "the client was the limit",
            change => change.map_or(UNKNOWN, |change| words::moved(change.moved)),
        };
        ChangeRow { level, cells, shows }
    };
    Some((verdict, all.into_iter().map(row).collect()))
}

fn compared(before: Option<f64>, after: Option<f64>, write: impl Fn(f64) -> String) -> Vec<String> {
    let change = before.zip(after).filter(|(before, _)| *before > 0.0).map(|(a, b)| b / a - 1.0);
    let cells = [before, after].map(|value| or_unknown(value, &write));
    cells.into_iter().chain([or_unknown(change, signed)]).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::decide::recommend;
    use crate::figures::SizeSummary;
    use crate::record::RunSettings;

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
            run_id: None,
            about: About::default(),
            present: None,
            curves: None,
            verified: None,
            missing: Vec::new(),
        }
    }

    fn settings(recorded: Value) -> RunSettings {
        serde_json::from_value(recorded).expect("they read")
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
        let counted = LevelSummary { requests: Some(100), error_rate: Some(0.0), ..level(2, 9.0) };
        let lines = words::missing(&run(&[level(1, 5.0), counted, level(3, 12.0)]));
        assert!(lines.contains(&"The number of requests of levels 1, 3".to_owned()), "{lines:?}");
        for levels in [vec![], vec![level(1, 0.0)], vec![LevelSummary { concurrency: 4, ..LevelSummary::default() }]] {
            let page = super::page(&[run(&levels)]).expect("it renders");
            assert!(page.contains("There is no number to recommend"), "{levels:?}");
        }
    }

    #[test]
    fn text_from_elsewhere_stays_text_and_nothing_is_loaded() {
        let evil = "</script><script>alert(1)</script><!--\u{2028}";
        let mut hostile = run(&[level(1, 5.0), level(2, 9.0)]);
        hostile.recommendation.notes.push(crate::decide::Note::Other { text: evil.to_owned() });
        hostile.about.model = Some(evil.to_owned());
        hostile.about.settings = settings(json!({"levels": [1, 2], "request": {"extra_body": {evil: evil}}}));
        hostile.about.endpoint = Some(evil.to_owned());
        hostile.missing = vec![Missing::Requests { level: 1, error: evil.to_owned() }];
        let mut other = hostile.clone();
        (hostile.label, other.label) = (evil.to_owned(), "B".to_owned());
        let page = page(&[hostile, other]).expect("it renders");
        assert_eq!(page.matches("<script").count(), 1);
        assert_eq!(page.matches("</script").count(), 1);
        assert!(!page.contains("<!--"));
        let scripts = page.find("<script").expect("it has scripts");
        assert!(!page[scripts..].contains('\u{2028}'), "it ends a line of JavaScript");
        assert!(page.contains("&lt;script&gt;"));
        for loads in [" src=", "url(", "@import", "href=\"http", "fetch(", "XMLHttpRequest", "import("] {
            assert!(!page.contains(loads), "{loads}");
        }
        assert!(page.contains("default-src 'none'"));
    }

    #[test]
    fn the_setup_is_shown_and_the_command_repeats_the_run_quoted_for_a_shell() {
        let shown = |recorded: Value| {
            let mut run = run(&[level(1, 5.0)]);
            run.about = About {
                endpoint: Some("http://host/v1".to_owned()),
                model: Some("it's a model".to_owned()),
                started_at: Some("2026-11-24T08:09:45Z".to_owned()),
                settings: settings(recorded),
                environment: serde_json::from_value(json!({"os": "linux", "cpus": 4})).expect("it reads"),
                ..About::default()
            };
            page(&[run]).expect("it renders").replace("&#x2f;", "/").replace("&#x27;", "'")
        };
        let full =
            shown(json!({"levels": [1, 2], "total_requests": 100, "seed": 0, "quick": false, "request_timeout_s": 30,
            "request": {"stream": true, "max_tokens": 64}}));
        for part in [
            "llm-concurrency run --llm-endpoint http://host/v1 --llm-model 'it'\\''s a model' --levels 1,2 \
             --total-requests 100 --seed 0</code>",
            "<dt>Started</dt><dd>2026-11-24 08:09:45 UTC</dd>",
            "<dt>Levels</dt><dd>1, 2</dd>",
            "<dt>Timeout</dt><dd>30.00 s</dd>",
            "<dt>Request</dt><dd>kind chat, stream true, max_tokens 64, cache fresh</dd>",
            "<dt>Measured from</dt><dd>linux, 4 processors</dd>",
        ] {
            assert!(full.contains(part), "{part} is not in {}", &full[full.find("id=\"about\"").expect("it is")..]);
        }
        let quick = shown(json!({"levels": [1, 5], "quick": true}));
        assert!(quick.contains("a model' --levels 1,5 --quick</code>"));
        assert!(!shown(json!({})).contains("llm-concurrency run "));
    }

    #[test]
    fn a_change_is_shown_where_its_interval_leaves_out_none() {
        let with = |rps: f64| LevelSummary {
            throughput_rps: Some(Estimate { estimate: rps, lower: Some(0.97 * rps), upper: Some(1.03 * rps) }),
            ..level(5, rps)
        };
        let changes = |a: LevelSummary, b: LevelSummary| {
            let runs = [run(&[a]), run(&[b])];
            super::changes(&runs, &compare_runs(&runs).expect("two runs")).expect("two runs").1.remove(0)
        };
        let faster = changes(with(10.0), with(15.0));
        assert_eq!((faster.shows, faster.cells[..3].join(" ")), ("faster", "10.00 15.00 +50.0 %".to_owned()));
        // Known to 3 %, but equal servers differ by more from one measurement to the next.
        assert_eq!(changes(with(10.0), with(12.0)).shows, "no change shown");
        let same = changes(with(10.0), with(9.999_999));
        assert_eq!((same.shows, same.cells[2].as_str()), ("no change shown", "+0.0 %"));
        assert_eq!(changes(with(10.0), level(6, 20.0)).cells[1..4], [UNKNOWN; 3]);
        // What the client could not do says nothing of the server.
        let mut two = [run(&[with(10.0), level(6, 9.0)]), run(&[with(5.0), level(6, 9.0)])];
        let told = |two: &[Run; 2]| {
            super::changes(two, &compare_runs(two).expect("two runs"))
                .map(|(verdict, rows)| (verdict, rows[0].shows))
                .expect("two runs")
        };
        assert_eq!(told(&two).1, "slower");
        two[1].recommendation.client_bound_at = Some(5);
        assert!(told(&two).0.starts_with("Nothing shown of the server") && told(&two).1 == "the client was the limit");
    }
}
