//! Which figures a report shows, and what is said below each. Pure.

use std::collections::BTreeSet;

use super::chart::{Axis, Chart, Extra, Mark, Series, Shape, Span, Style, Unit};
use super::html::Run;
use super::requests::{Curves, Segment, shares};
use crate::client::outcome::Failure;
use crate::decide::{JudgedLevel, Objective, Verdict, p95_limit_s};
use crate::figures::{Distribution, LevelSummary};
use crate::report::words::{self, percent, seconds};

/// A chart with its words.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Above it.
    pub title: String,
    /// Below it.
    pub caption: String,
    /// The chart, or why there is none.
    pub chart: Result<Chart, String>,
}

/// Figures on one subject.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// Unique on the page.
    pub id: &'static str,
    /// The heading.
    pub title: &'static str,
    /// What to look for.
    pub intro: &'static str,
    /// Its figures.
    pub figures: Vec<Figure>,
}

/// Levels of a distribution that are drawn at first; the others can be chosen.
const DISTRIBUTIONS: usize = 6;
/// Points of a fitted curve.
const CURVE_POINTS: usize = 80;
/// A limit further above the data than this is only told.
const LIMIT_IN_SIGHT: f64 = 1.6;

/// All sections, in the page's order.
pub fn sections(runs: &[Run]) -> Vec<Section> {
    let each = |figures: fn(&Run, &Names) -> Vec<Figure>| -> Vec<Figure> {
        runs.iter().enumerate().flat_map(|(at, run)| figures(run, &Names::of(runs, at))).collect()
    };
    let side_by_side = |figures: fn(&Run, &Names) -> Vec<Figure>| on_one_scale(each(figures));
    let time_to = |id, title, of: fn(&LevelSummary) -> Option<Distribution>, absent| {
        let chart = percentiles(runs, id, title, of, &TIMES_OF_TOKENS, false);
        Figure { title: title.to_owned(), caption: String::new(), chart: chart.ok_or_else(|| String::from(absent)) }
    };
    let mut throughput = vec![throughput(runs)];
    throughput.extend(tokens(runs));
    throughput.extend(queueing(runs));
    vec![
        Section {
            id: "throughput",
            title: "Throughput",
            intro: "More requests in parallel bring more throughput up to a point. The smallest level that is close to the best is enough: above it, requests only wait longer.",
            figures: throughput,
        },
        Section {
            id: "latency",
            title: "Latency",
            intro: "How long a request takes, from the moment it may be sent to its last byte. Where throughput no longer rises, waiting does.",
            figures: vec![
                latency(runs),
                time_to(
                    "ttft",
                    "Time to first token (TTFT)",
                    |summary| summary.ttft_s,
                    "No times to first token: they need streaming (benchmark.request.stream).",
                ),
                time_to(
                    "tpot",
                    "Time per output token after the first (TPOT)",
                    |summary| summary.tpot_s,
                    "No times per output token: they need streaming, and a server that reports token counts.",
                ),
            ],
        },
        Section {
            id: "failures",
            title: "Failures",
            intro: "Share of each level's requests that failed, by kind. Retries are off while measuring, so every failure counts.",
            figures: side_by_side(failures),
        },
        Section {
            id: "distribution",
            title: "Latency distribution",
            intro: "For each share of the successful requests, the time within which they ended. A curve that bends to the right near the top has a long tail.",
            figures: side_by_side(distribution),
        },
        Section {
            id: "timeline",
            title: "Course of the run",
            intro: "The levels one after the other; pauses between them are left out. Each starts with a warm-up and ends with a drain (shaded), which are not measured. In between, as one request ends the next starts.",
            figures: each(timeline),
        },
    ]
}

/// Charts of the same kind that stand side by side can only be compared on the same scale.
fn on_one_scale(mut figures: Vec<Figure>) -> Vec<Figure> {
    let ranges = figures.iter().filter_map(|figure| Some(figure.chart.as_ref().ok()?.y.range));
    let whole = ranges.fold([f64::INFINITY, 0.0], |all: [f64; 2], range| [all[0].min(range[0]), all[1].max(range[1])]);
    for chart in figures.iter_mut().filter_map(|figure| figure.chart.as_mut().ok()) {
        // A logarithmic axis has no 0.
        chart.y.range = if chart.y.log { [chart.y.range[0], whole[1]] } else { whole };
    }
    figures
}

/// What tells the figures of one run from those of the other.
struct Names {
    /// Before the ids of its charts.
    prefix: String,
    /// After the titles; empty if there is one run.
    suffix: String,
    /// Only run on the page.
    alone: bool,
}

impl Names {
    fn of(runs: &[Run], at: usize) -> Self {
        let alone = runs.len() == 1;
        let suffix = if alone { String::new() } else { format!(" ({})", runs[at].label) };
        Names { prefix: format!("run{at}-"), suffix, alone }
    }
}

/// The last run is the answer, the one before it is what it is compared with.
fn tone(runs: &[Run], at: usize) -> &'static str {
    if at + 1 == runs.len() { "accent" } else { "ink" }
}

fn named(run: &Run, runs: &[Run], what: &str) -> String {
    if runs.len() == 1 { what.to_owned() } else { format!("{}: {what}", run.label) }
}

fn levels(runs: &[Run]) -> Vec<f64> {
    let all: BTreeSet<usize> =
        runs.iter().flat_map(|run| &run.recommendation.levels).map(|level| level.summary.concurrency).collect();
    all.into_iter().map(|level| level as f64).collect()
}

fn level(run: &Run, concurrency: f64) -> Option<&JudgedLevel> {
    run.recommendation.levels.iter().find(|level| level.summary.concurrency as f64 == concurrency)
}

fn over<T>(run: &Run, xs: &[f64], figure: impl Fn(&LevelSummary) -> Option<T>) -> Vec<Option<T>> {
    xs.iter().map(|&x| figure(&level(run, x)?.summary)).collect()
}

/// The chosen levels; `said` where there is room for it.
fn picks(runs: &[Run], said: bool) -> Vec<Mark> {
    let mark = |(at, run): (usize, &Run)| {
        let pick = run.recommendation.recommended_concurrency?;
        let label = if said { named(run, runs, &format!("chosen: {pick}")) } else { String::new() };
        Some(Mark { upright: true, at: pick as f64, label, tone: tone(runs, at) })
    };
    runs.iter().enumerate().filter_map(mark).collect()
}

// ---- throughput ----

fn throughput(runs: &[Run]) -> Figure {
    let xs = levels(runs);
    let mut chart = Chart {
        id: "throughput".to_owned(),
        label: "Throughput in requests per second over the concurrency level".to_owned(),
        wide: true,
        x: Axis::of_levels(&xs),
        ..Chart::default()
    };
    for (at, run) in runs.iter().enumerate() {
        add_throughput(&mut chart, runs, at, run, &xs);
    }
    let ys = chart.series.iter().flat_map(|series| series.ys.iter().flatten().copied());
    let bands = chart.series.iter().flat_map(|series| series.band.iter().flatten().map(|band| band[1]));
    let extras = chart.extras.iter().flat_map(|extra| extra.points.iter().map(|point| point[1]));
    chart.y = Axis::from_zero("successful requests per second", Unit::Number, ys.chain(bands).chain(extras));
    chart.marks.extend(picks(runs, true));
    chart.xs = xs;
    let known = chart.series.iter().any(|series| series.ys.iter().any(Option::is_some));
    Figure {
        title: "Throughput by level".to_owned(),
        caption: throughput_caption(&chart, runs),
        chart: if known { Ok(chart) } else { Err("No level has a throughput.".to_owned()) },
    }
}

fn add_throughput(chart: &mut Chart, runs: &[Run], at: usize, run: &Run, xs: &[f64]) {
    let tone = tone(runs, at);
    let name = named(run, runs, "requests/s");
    chart.series.push(Series {
        name,
        tone,
        alpha: 1.0,
        ys: over(run, xs, |summary| summary.throughput_rps.map(|t| t.estimate)),
        band: over(run, xs, |summary| summary.throughput_rps.and_then(|t| Some([t.lower?, t.upper?]))),
        shown: true,
        ..Series::default()
    });
    if let Some(info) = run.recommendation.usl {
        let usl = info.curve;
        let name = named(run, runs, "scalability curve (USL)");
        let told = xs.iter().map(|&x| Some(usl.throughput(x))).collect();
        chart.series.push(Series {
            name: name.clone(),
            tone,
            alpha: 1.0,
            style: Style::Told,
            ys: told,
            shown: true,
            ..Series::default()
        });
        let (low, high) = (xs.first().copied().unwrap_or(1.0), xs.last().copied().unwrap_or(1.0));
        let step = (high - low) / (CURVE_POINTS - 1) as f64;
        let points = (0..CURVE_POINTS).map(|i| low + i as f64 * step).map(|x| [x, usl.throughput(x)]).collect();
        chart.extras.push(Extra { name, tone, shape: Shape::Curve, points });
    }
    let samples = |level: &JudgedLevel| -> Vec<[f64; 2]> {
        let x = level.summary.concurrency as f64;
        let samples = level.summary.samples.iter().flatten().filter(|sample| sample.duration_s > 0.0);
        samples.map(|sample| [x, sample.succeeded as f64 / sample.duration_s]).collect()
    };
    let points = run.recommendation.levels.iter().flat_map(samples).collect();
    chart.extras.push(Extra { name: named(run, runs, "single windows"), tone, shape: Shape::Dot, points });
    let crossed = run.recommendation.levels.iter().filter(|level| level.verdict != Verdict::Pass);
    let points = crossed.filter_map(|l| Some([l.summary.concurrency as f64, l.summary.throughput_rps?.estimate]));
    let name = named(run, runs, "does not pass");
    chart.extras.push(Extra { name, tone: "bad", shape: Shape::Cross, points: points.collect() });
}

fn throughput_caption(chart: &Chart, runs: &[Run]) -> String {
    let mut text = String::from("Line: successful requests per second.");
    if chart.series.iter().any(|series| series.band.iter().any(Option::is_some)) {
        text.push_str(" Band: its 95 % interval.");
    }
    let has = |shape| chart.extras.iter().any(|extra| extra.shape == shape && !extra.points.is_empty());
    if has(Shape::Dot) {
        text.push_str(" Dots: the single windows of a level, which scatter more than the whole.");
    }
    if has(Shape::Curve) {
        text.push_str(" Dashed: the fitted Universal Scalability Law, a model and not a measurement.");
    }
    let crossed = runs.iter().flat_map(|run| {
        let levels = run.recommendation.levels.iter().filter(|level| level.verdict != Verdict::Pass);
        levels.map(|level| {
            named(run, runs, &format!("level {} ({})", level.summary.concurrency, words::causes(&level.causes)))
        })
    });
    let crossed: Vec<String> = crossed.collect();
    if !crossed.is_empty() {
        text.push_str(&format!(" Crossed, since they do not pass: {}.", crossed.join(", ")));
    }
    text
}

/// Output tokens, where they are what is maximised.
fn tokens(runs: &[Run]) -> Option<Figure> {
    if runs.iter().all(|run| run.policy.objective == Objective::Requests) {
        return None;
    }
    let xs = levels(runs);
    let series: Vec<Series> = runs
        .iter()
        .enumerate()
        .map(|(at, run)| Series {
            name: named(run, runs, "output tokens/s"),
            tone: tone(runs, at),
            alpha: 1.0,
            ys: over(run, &xs, |summary| summary.output_tps),
            shown: true,
            ..Series::default()
        })
        .filter(|series| series.ys.iter().any(Option::is_some))
        .collect();
    let title = "Output tokens per second, all requests together".to_owned();
    let chart = over_levels(
        runs,
        "tokens",
        "Output tokens per second over the concurrency level".to_owned(),
        true,
        ("output tokens per second", Unit::Number),
        series,
    )?;
    Some(Figure { title, caption: String::new(), chart: Ok(chart) })
}

/// What the server said of its load.
fn queueing(runs: &[Run]) -> Option<Figure> {
    type Kind = (&'static str, Style, fn(&LevelSummary) -> Option<f64>);
    let kinds: [Kind; 2] = [
        ("running", Style::Dashed, |summary| summary.server?.running),
        ("waiting", Style::Points, |summary| summary.server?.waiting),
    ];
    let xs = levels(runs);
    let mut series = Vec::new();
    for (at, run) in runs.iter().enumerate() {
        for (name, style, figure) in kinds {
            let ys = over(run, &xs, figure);
            if ys.iter().any(Option::is_some) {
                let name = named(run, runs, name);
                series.push(Series {
                    name,
                    tone: tone(runs, at),
                    alpha: 1.0,
                    style,
                    ys,
                    shown: true,
                    ..Series::default()
                });
            }
        }
    }
    let fullest = |run: &Run| {
        let shares = run.recommendation.levels.iter().filter_map(|level| level.summary.server?.kv_cache);
        Some(named(run, runs, &percent(shares.reduce(f64::max)?)))
    };
    let fullest: Vec<String> = runs.iter().filter_map(fullest).collect();
    let cache = if fullest.is_empty() {
        String::new()
    } else {
        format!(" KV cache in use where it was fullest: {}.", fullest.join(", "))
    };
    let label = "Requests that run and wait at the server, over the concurrency level".to_owned();
    let chart = over_levels(runs, "queueing", label, true, ("requests", Unit::Number), series)?;
    Some(Figure {
        title: "Running and waiting at the server".to_owned(),
        caption: format!(
            "Means over the measured window, by the server's own /metrics. Where waiting begins, more requests in parallel only queue.{cache}"
        ),
        chart: Ok(chart),
    })
}

/// A chart over the levels, from zero on an axis of that name and unit; `None` without a series.
fn over_levels(
    runs: &[Run],
    id: &str,
    label: String,
    wide: bool,
    (name, unit): (&str, Unit),
    series: Vec<Series>,
) -> Option<Chart> {
    let xs = levels(runs);
    let y = Axis::from_zero(name, unit, series.iter().flat_map(|series| series.ys.iter().flatten().copied()));
    (!series.is_empty()).then(|| Chart {
        id: id.to_owned(),
        label,
        wide,
        x: Axis::of_levels(&xs),
        y,
        marks: picks(runs, wide),
        xs,
        series,
        ..Chart::default()
    })
}

// ---- times ----

/// A percentile: its name, tone and style alone on the page, its style beside another run, and itself.
type Percentile = (&'static str, &'static str, Style, fn(Distribution) -> Option<f64>);

const LATENCIES: [Percentile; 3] = [
    ("P50", "ink", Style::Points, |d| d.p50),
    ("P95", "accent", Style::Points, |d| d.p95),
    ("P99", "ink", Style::Dashed, |d| d.p99),
];
const TIMES_OF_TOKENS: [Percentile; 2] =
    [("P50", "ink", Style::Points, |d| d.p50), ("P95", "accent", Style::Points, |d| d.p95)];

fn percentiles(
    runs: &[Run],
    id: &str,
    title: &str,
    of: fn(&LevelSummary) -> Option<Distribution>,
    wanted: &[Percentile],
    wide: bool,
) -> Option<Chart> {
    let xs = levels(runs);
    let mut series = Vec::new();
    for (at, run) in runs.iter().enumerate() {
        for &(name, alone, style, figure) in wanted {
            let ys = over(run, &xs, |summary| figure(of(summary)?));
            let (tone, style) = match (runs.len(), name) {
                (1, _) => (alone, style),
                (_, "P50") => (tone(runs, at), Style::Points),
                _ => (tone(runs, at), Style::Dashed),
            };
            if ys.iter().any(Option::is_some) {
                series.push(Series {
                    name: named(run, runs, name),
                    tone,
                    alpha: 1.0,
                    style,
                    ys,
                    shown: true,
                    ..Series::default()
                });
            }
        }
    }
    let name = if id == "latency" { "latency" } else { "time" };
    over_levels(runs, id, format!("{title} over the concurrency level"), wide, (name, Unit::Seconds), series)
}

fn latency(runs: &[Run]) -> Figure {
    let wanted = if runs.len() == 1 { &LATENCIES[..] } else { &LATENCIES[..2] };
    let mut caption = String::from("Over the successful requests that began inside the measured window.");
    let mut chart = percentiles(runs, "latency", "Latency percentiles", |summary| summary.latency_s, wanted, true);
    for (name, limit, source) in limits(runs) {
        match chart.as_mut().filter(|chart| limit <= LIMIT_IN_SIGHT * chart.y.range[1]) {
            Some(chart) => {
                chart.y.range[1] = chart.y.range[1].max(limit * 1.12);
                caption.push_str(&format!(" {name}: {source}."));
                chart.marks.push(Mark { upright: false, at: limit, label: name, tone: "bad" });
            }
            None => caption.push_str(&format!(" {name} ({source}) lies above the chart.")),
        }
    }
    let chart = chart.ok_or_else(|| "No latencies: the file holds none.".to_owned());
    Figure { title: "Latency percentiles by level".to_owned(), caption, chart }
}

/// The limits on latency: what is said of them, where they are, and why. The same limit of two runs is told once.
fn limits(runs: &[Run]) -> Vec<(String, f64, &'static str)> {
    let mut all = Vec::new();
    for run in runs {
        let own = run.policy.max_p95_seconds.is_some();
        let source = if own { "policy.max_p95_seconds" } else { "5 x the P95 of the lowest level that passes" };
        let p95 = p95_limit_s(&run.recommendation.levels, &run.policy).map(|limit| ("P95", limit, source));
        let p99 = run.policy.max_p99_seconds.map(|limit| ("P99", limit, "policy.max_p99_seconds"));
        for (percentile, limit, source) in p95.into_iter().chain(p99) {
            all.push((run, format!("{percentile} limit {}", seconds(limit)), limit, source));
        }
    }
    let times = |name: &str| all.iter().filter(|other| other.1 == name).count();
    let mut told: Vec<(String, f64, &'static str)> = Vec::new();
    for (run, name, limit, source) in &all {
        let shared = times(name) == runs.len();
        let name = if shared { name.clone() } else { named(run, runs, name) };
        if told.iter().all(|other| other.0 != name) {
            told.push((name, *limit, source));
        }
    }
    told
}

// ---- failures ----

/// Kinds of failures with the tone of each, in the order in which they are stacked.
const KINDS: [(Failure, &str); 7] = [
    (Failure::Timeout, "timeout"),
    (Failure::ServerError, "server"),
    (Failure::RateLimited, "rate"),
    (Failure::Connect, "connect"),
    (Failure::ClientError, "client"),
    (Failure::Malformed, "malformed"),
    (Failure::EmptyOutput, "empty"),
];

fn failures(run: &Run, names: &Names) -> Vec<Figure> {
    let title = format!("Failed requests by level and kind{}", names.suffix);
    let judged = &run.recommendation.levels;
    let figure = |caption: String, chart| vec![Figure { title: title.clone(), caption, chart }];
    if judged.iter().all(|level| error_rate(&level.summary).is_none()) {
        return figure(
            String::new(),
            Err("No error rates: the file holds none, so that gate was not checked.".to_owned()),
        );
    }
    let limit = run.policy.max_error_rate;
    let gate = format!("A level passes while below {}.", percent(limit));
    if judged.iter().all(|level| error_rate(&level.summary).unwrap_or(0.0) == 0.0) {
        return figure(String::new(), Err(format!("No request failed. {gate}")));
    }
    let mut series: Vec<Series> =
        KINDS.into_iter().map(|(kind, tone)| stacked(kind.name(), tone, judged, |s| rate_of(s, kind.name()))).collect();
    series.push(stacked("kind unknown", "ink", judged, |summary| {
        let known: f64 = KINDS.iter().filter_map(|(kind, _)| rate_of(summary, kind.name())).sum();
        error_rate(summary).map(|rate| rate - known).filter(|rest| *rest > 1e-9)
    }));
    series.retain(|series| series.ys.iter().any(Option::is_some));
    let rates = judged.iter().filter_map(|level| error_rate(&level.summary));
    let levels: Vec<String> = judged.iter().map(|level| level.summary.concurrency.to_string()).collect();
    let last = levels.len() as f64 - 0.5;
    let chart = Chart {
        id: format!("{}failures", names.prefix),
        label: "Share of failed requests by kind, over the concurrency level".to_owned(),
        wide: names.alone,
        x: Axis {
            label: "level: requests in flight".to_owned(),
            range: [-0.5, last],
            names: levels,
            ..Axis::default()
        },
        y: Axis::from_zero("failed requests", Unit::Percent, rates.chain([limit])),
        xs: (0..judged.len()).map(|at| at as f64).collect(),
        series,
        marks: vec![Mark { upright: false, at: limit, label: format!("limit {}", percent(limit)), tone: "bad" }],
        ..Chart::default()
    };
    figure(gate, Ok(chart))
}

fn stacked(
    name: &str,
    tone: &'static str,
    levels: &[JudgedLevel],
    of: impl Fn(&LevelSummary) -> Option<f64>,
) -> Series {
    let ys = levels.iter().map(|level| of(&level.summary)).collect();
    Series { name: name.to_owned(), tone, alpha: 1.0, style: Style::Stacked, ys, shown: true, ..Series::default() }
}

fn rate_of(summary: &LevelSummary, kind: &str) -> Option<f64> {
    let count = *summary.failures.get(kind)?;
    Some(count as f64 / summary.requests.filter(|&n| n > 0)? as f64)
}

fn error_rate(summary: &LevelSummary) -> Option<f64> {
    let counted = || Some(1.0 - summary.succeeded? as f64 / summary.requests.filter(|&n| n > 0)? as f64);
    summary.error_rate.or_else(counted)
}

// ---- from the records of single requests ----

const NO_RECORDS: &str = "The records of the single requests (target/concurrency) were not found.";

fn distribution(run: &Run, names: &Names) -> Vec<Figure> {
    let title = format!("Latency distribution by level (ECDF){}", names.suffix);
    let Some(curves) = &run.curves else {
        return vec![Figure { title, caption: String::new(), chart: Err(NO_RECORDS.to_owned()) }];
    };
    let all: Vec<usize> = curves.distributions.keys().copied().collect();
    let pick = run.recommendation.recommended_concurrency;
    let shown = some_of(&all, pick);
    let count = all.len().max(2) as f64;
    let series: Vec<Series> = curves
        .distributions
        .iter()
        .enumerate()
        .map(|(at, (level, latencies))| Series {
            name: format!("level {level}"),
            tone: if Some(*level) == pick { "accent" } else { "ink" },
            alpha: if Some(*level) == pick { 1.0 } else { 0.25 + 0.75 * at as f64 / (count - 1.0) },
            style: Style::Line,
            ys: latencies.iter().copied().map(Some).collect(),
            shown: shown.contains(level),
            ..Series::default()
        })
        .collect();
    let drawn = series.iter().filter(|series| series.shown).flat_map(|series| series.ys.iter().flatten().copied());
    let values: Vec<f64> = drawn.filter(|&latency| latency > 0.0).collect();
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let mut y = Axis::from_zero("latency", Unit::Seconds, values);
    if y.range[1] > 30.0 * lowest {
        y = Axis { log: true, range: [lowest / 1.1, y.range[1]], ..y };
    }
    let chart = Chart {
        id: format!("{}distribution", names.prefix),
        label: "Share of the successful requests that ended within a time, by level".to_owned(),
        wide: names.alone,
        flipped: true,
        x: Axis { label: "share of requests".to_owned(), unit: Unit::Percent, range: [0.0, 1.0], ..Axis::default() },
        y,
        xs: shares(),
        series,
        ..Chart::default()
    };
    let caption =
        "The stronger the line, the higher the level; the chosen level is in colour. Choose others below the chart.";
    let none = || "No request of a measured window succeeded.".to_owned();
    let chart = if all.is_empty() { Err(none()) } else { Ok(chart) };
    vec![Figure { title, caption: caption.to_owned(), chart }]
}

/// At most [`DISTRIBUTIONS`] levels: the chosen one, and others evenly from the lowest to the highest.
fn some_of(all: &[usize], pick: Option<usize>) -> BTreeSet<usize> {
    let wanted = if pick.is_some() { DISTRIBUTIONS - 1 } else { DISTRIBUTIONS };
    let last = all.len().saturating_sub(1);
    let even = (0..wanted).filter_map(|i| all.get((i * last + (wanted - 1) / 2) / (wanted - 1)).copied());
    even.chain(pick).collect()
}

fn timeline(run: &Run, names: &Names) -> Vec<Figure> {
    let title = |what: &str| format!("{what}{}", names.suffix);
    let Some(curves) = &run.curves else {
        let chart = Err(NO_RECORDS.to_owned());
        return vec![Figure { title: title("Course of the run"), caption: String::new(), chart }];
    };
    let (xs, in_flight) = joined(curves, |segment| &segment.in_flight);
    let (rate_xs, successes) = joined(curves, |segment| &segment.successes_rps);
    let (_, failures) = joined(curves, |segment| &segment.failures_rps);
    let end = xs.last().copied().unwrap_or(1.0);
    let outside = |segment: &Segment| {
        let until = segment.begin_s + segment.length_s;
        let [from, to] = segment.window_s.unwrap_or([until, until]);
        [Span { from: segment.begin_s, to: from.min(until) }, Span { from: to.min(until), to: until }]
    };
    let spans: Vec<Span> = curves.timeline.iter().flat_map(outside).filter(|span| span.to > span.from).collect();
    let x = Axis { label: "seconds of load since the first request".to_owned(), range: [0.0, end], ..Axis::default() };
    let steps = |name: &str, tone, ys: Vec<Option<f64>>| Series {
        name: name.to_owned(),
        tone,
        alpha: 1.0,
        style: Style::Steps,
        ys,
        shown: true,
        ..Series::default()
    };
    let chart = |id: &str, label: &str, y: Axis, xs: Vec<f64>, series: Vec<Series>, marks: Vec<Mark>| Chart {
        id: format!("{}{id}", names.prefix),
        label: label.to_owned(),
        wide: true,
        x: x.clone(),
        y,
        xs,
        series,
        marks,
        spans: spans.clone(),
        sync: Some(format!("{}timeline", names.prefix)),
        ..Chart::default()
    };
    let top = |ys: &[Option<f64>]| ys.iter().flatten().copied().fold(0.0, f64::max);
    let begin = |segment: &Segment| Mark {
        upright: true,
        at: segment.begin_s,
        label: segment.level.to_string(),
        tone: "faint",
    };
    let flight = chart(
        "in-flight",
        "Requests in flight over the time of the run",
        Axis::from_zero("requests in flight", Unit::Number, [top(&in_flight)]),
        xs,
        vec![steps("in flight", "accent", in_flight)],
        curves.timeline.iter().map(begin).collect(),
    );
    let any_failed = top(&failures) > 0.0;
    let y = Axis::from_zero("requests that ended, per second", Unit::Number, [top(&successes), top(&failures)]);
    let mut ended = vec![steps("successes/s", "ink", successes)];
    if any_failed {
        ended.push(steps("failures/s", "bad", failures));
    }
    let rates =
        chart("completions", "Requests that ended per second over the time of the run", y, rate_xs, ended, Vec::new());
    vec![
        Figure {
            title: title("Requests in flight"),
            caption: "The numbers name the levels.".to_owned(),
            chart: Ok(flight),
        },
        Figure { title: title("Requests that ended"), caption: String::new(), chart: Ok(rates) },
    ]
}

/// The segments end to end: the bins' starts, and what is in them. The last entry only closes the last bin.
fn joined(curves: &Curves, of: impl Fn(&Segment) -> &Vec<f64>) -> (Vec<f64>, Vec<Option<f64>>) {
    let (mut xs, mut ys) = (Vec::new(), Vec::new());
    for segment in &curves.timeline {
        let bins = of(segment);
        let width = segment.length_s / bins.len() as f64;
        xs.extend((0..bins.len()).map(|at| segment.begin_s + at as f64 * width));
        ys.extend(bins.iter().copied().map(Some));
    }
    if let Some(last) = curves.timeline.last() {
        xs.push(last.begin_s + last.length_s);
        ys.push(Some(0.0));
    }
    (xs, ys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_levels_stand_for_all_and_the_chosen_one_is_among_them() {
        let all: Vec<usize> = (1..=200).collect();
        let shown = some_of(&all, Some(77));
        assert!(shown.len() <= DISTRIBUTIONS && shown.contains(&77), "{shown:?}");
        assert_eq!((shown.first(), shown.last()), (Some(&1), Some(&200)));
        assert_eq!(some_of(&[3, 9], None), BTreeSet::from([3, 9]));
        assert_eq!(some_of(&[], None), BTreeSet::new());
    }
}
