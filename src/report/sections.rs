//! Which figures a report shows, and their captions. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, json};

use super::chart::{Axis, Chart, Mark, Series, Style, Unit, Zone};
use super::html::Run;
use super::requests::{Curves, Segment, shares};
use crate::client::outcome::Failure;
use crate::decide::{
    Objective, Policy, Status, TimeGate, Verdict, error_rate, gate_times, judge, known_p99, p95_limit_s, passing, value,
};
use crate::figures::{Estimate, LevelSummary};
use crate::report::words::{self, percent, rate, seconds, usd};

/// One topic: related charts, one below the other, or why there are none.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figure {
    pub title: String,
    pub caption: String,
    pub charts: Vec<Chart>,
    pub absent: String,
    /// The data by which the page's script chooses a level.
    pub limits: Value,
}

impl Figure {
    fn new(title: impl Into<String>, caption: impl Into<String>, charts: Vec<Chart>) -> Self {
        Figure { title: title.into(), caption: caption.into(), charts, ..Figure::default() }
    }

    fn without(self, why: &str) -> Self {
        Figure { absent: why.to_owned(), ..self }
    }
}

/// Number of levels whose distributions are drawn at first; the others can be selected.
const DISTRIBUTIONS: usize = 6;
const CURVE_POINTS: u32 = 80;
/// A limit above this multiple of the chart's height is mentioned, not drawn.
const LIMIT_IN_SIGHT: f64 = 1.6;

/// The figures by the id of their section in the page.
pub fn sections(runs: &[Run]) -> BTreeMap<&'static str, Vec<Figure>> {
    let each = |title: &str, id: &str, figure: fn(&Run, Figure, Chart) -> Figure| -> Vec<Figure> {
        let alone = runs.len() == 1;
        let figures = runs.iter().enumerate().map(|(at, run)| {
            let title = if alone { title.to_owned() } else { format!("{title} ({})", run.label) };
            let chart = Chart { id: format!("run{at}-{id}"), wide: alone, ..Chart::default() };
            figure(run, Figure::new(title, "", Vec::new()), chart)
        });
        figures.collect()
    };
    let times = |id, title: &str, measures: &[Measure], absent: &str| {
        let chart = by_level(runs, id, title, false, ("time", Unit::Seconds), measures);
        let absent = if chart.is_none() { absent } else { "" };
        Figure::new(title, "", Vec::from_iter(chart)).without(absent)
    };
    let no_ttft = "No times to first token: they need streaming (benchmark.request.stream).";
    let no_tpot = "No times per output token: they need streaming, and a server that reports token counts.";
    let throughput = [Some(throughput_and_latency(runs)), tokens(runs), queueing(runs)];
    let tokens = vec![
        times("ttft", "Time to first token (TTFT)", &TTFT, no_ttft),
        times("tpot", "Time per token after the first (TPOT)", &TPOT, no_tpot),
    ];
    BTreeMap::from([
        ("throughput", throughput.into_iter().flatten().collect()),
        ("tradeoff", tradeoff(runs).into_iter().collect()),
        ("tokens", tokens),
        ("failures", on_one_scale(each("Failed requests by level and kind", "failures", failures))),
        ("distribution", on_one_scale(each("Latency by share of requests", "distribution", distribution))),
        ("timeline", each("Requests in flight, and requests finished", "timeline", timeline)),
    ])
}

/// Gives charts of the same kind that are side by side one scale, so that they can be compared.
fn on_one_scale(mut figures: Vec<Figure>) -> Vec<Figure> {
    let charts = figures.iter().flat_map(|figure| &figure.charts);
    let whole = charts.fold([f64::INFINITY, 0.0], |all: [f64; 2], chart| {
        [all[0].min(chart.y.range[0]), all[1].max(chart.y.range[1])]
    });
    for chart in figures.iter_mut().flat_map(|figure| &mut figure.charts) {
        // A logarithmic axis has no 0.
        chart.y.range = if chart.y.log { [chart.y.range[0], whole[1]] } else { whole };
    }
    figures
}

/// The last run is the current one, the one before it is what it is compared with.
fn tone(runs: &[Run], at: usize) -> &'static str {
    if at + 1 == runs.len() { "accent" } else { "ink" }
}

fn named(run: &Run, runs: &[Run], what: &str) -> String {
    if runs.len() == 1 { what.to_owned() } else { format!("{}: {what}", run.label) }
}

// ---- over the levels ----

/// Name, tone (for a single run; two runs have a tone each), style, and figure, with an interval if it has one.
type Measure = (&'static str, &'static str, Style, fn(&LevelSummary) -> Option<Estimate>);

const THROUGHPUT: [Measure; 2] = [
    ("req/s", "accent", Style::Points, |s| s.throughput_rps),
    ("goodput", "ink", Style::Dashed, |s| Some(s.goodput.as_ref()?.rps)),
];
/// P99 is only shown for a single run.
const LATENCY: [Measure; 3] = [
    ("P50", "ink", Style::Dashed, |s| exact(s.latency_s?.p50)),
    ("P95", "accent", Style::Points, |s| exact(s.latency_s?.p95)),
    ("P99", "ink", Style::Dashed, |s| exact(known_p99(s))),
];
const TTFT: [Measure; 2] = [
    ("P50", "ink", Style::Dashed, |s| exact(s.ttft_s?.p50)),
    ("P95", "accent", Style::Points, |s| exact(s.ttft_s?.p95)),
];
const TPOT: [Measure; 2] = [
    ("P50", "ink", Style::Dashed, |s| exact(s.tpot_s?.p50)),
    ("P95", "accent", Style::Points, |s| exact(s.tpot_s?.p95)),
];
const TOKENS: [Measure; 1] = [("tokens/s", "accent", Style::Points, |s| exact(s.output_tps))];
const QUEUE: [Measure; 2] = [
    ("running", "ink", Style::Dashed, |s| exact(s.server?.running)),
    ("waiting", "accent", Style::Points, |s| exact(s.server?.waiting)),
];

fn exact(value: Option<f64>) -> Option<Estimate> {
    Some(Estimate { estimate: value?, lower: None, upper: None })
}

fn levels(runs: &[Run]) -> Vec<f64> {
    all_levels(runs).into_iter().map(|level| level as f64).collect()
}

pub(super) fn all_levels(runs: &[Run]) -> BTreeSet<usize> {
    runs.iter().flat_map(|run| &run.recommendation.levels).map(|level| level.summary.concurrency).collect()
}

/// Lines over the levels, on an axis from zero with this name and unit; `None` if no value is known.
fn by_level(
    runs: &[Run],
    id: &str,
    what: &str,
    wide: bool,
    (axis, unit): (&str, Unit),
    measures: &[Measure],
) -> Option<Chart> {
    let stops = levels(runs);
    let mut series = Vec::new();
    for (at, run) in runs.iter().enumerate() {
        for (name, alone, style, of) in measures.iter().take(if runs.len() == 1 { 3 } else { 2 }) {
            let figure = |&x: &f64| of(&run.recommendation.level(x as usize)?.summary);
            let ends = |x: &f64| figure(x)?.interval().map(|[lower, upper]| [*x, lower, upper]);
            let values = stops.iter().map(|x| Some(figure(x)?.estimate)).collect();
            let tone = if runs.len() == 1 { alone } else { tone(runs, at) };
            let name = named(run, runs, name);
            let band = stops.iter().filter_map(ends).collect();
            series.push(Series { label: name.clone(), band, ..Series::over(&stops, &name, tone, *style, values) });
        }
    }
    series.retain(|series| !series.points.is_empty());
    if series.is_empty() {
        return None;
    }
    let tops = series.iter().flat_map(|of| of.points.iter().map(|p| p[1]).chain(of.band.iter().map(|b| b[2])));
    Some(Chart {
        id: id.to_owned(),
        label: format!("{what} over the concurrency level"),
        wide,
        x: Axis::of_levels(&stops),
        y: Axis::from_zero(axis, unit, tops),
        marks: marks(runs, wide),
        sync: "levels".to_owned(),
        stops,
        series,
        ..Chart::default()
    })
}

/// The present number and the recommended one; labelled if there is room.
fn marks(runs: &[Run], is_named: bool) -> Vec<Mark> {
    let last = levels(runs).last().copied().unwrap_or_default();
    let mark = |run: &Run, at: usize, what: &str, tone| {
        let label = if is_named { named(run, runs, &format!("{what} {at}")) } else { String::new() };
        Mark { upright: true, at: at as f64, label, tone }
    };
    let of_run = |(at, run): (usize, &Run)| {
        let pick = run.recommendation.recommended_concurrency;
        let set = if run.present == pick { "now and set" } else { "set" };
        let now = run.present.filter(|&now| Some(now) != pick && now as f64 <= last);
        let now = now.map(|now| mark(run, now, "now", "ink"));
        now.into_iter().chain(pick.map(|pick| mark(run, pick, set, tone(runs, at)))).collect::<Vec<_>>()
    };
    runs.iter().enumerate().flat_map(of_run).collect()
}

/// What a higher concurrency brings: below the chosen level, above it, and from where it exceeds a limit.
fn zones(runs: &[Run], x: &Axis) -> Vec<Zone> {
    let [run] = runs else { return Vec::new() };
    let Some(pick) = run.recommendation.recommended_concurrency else { return Vec::new() };
    let zone = |from, to, name: &str, tone| Zone { from, to, name: name.to_owned(), tone };
    let above = || run.recommendation.levels.iter().filter(|level| level.summary.concurrency > pick);
    let fails = above().find(|level| level.verdict == Verdict::Fail).map(|level| level.summary.concurrency as f64);
    let end = x.range[1];
    let mut zones = vec![zone(x.range[0], pick as f64, "capacity left", None)];
    // If a gate limits the pick, throughput still grows above it.
    if run.recommendation.status != Status::LimitedByGate
        && passing(&run.recommendation.levels).any(|level| level.summary.concurrency > pick)
    {
        zones.push(zone(pick as f64, fails.unwrap_or(end), "only waiting grows", Some("waits")));
    }
    // Labelled by a mark at its start, since it is often narrow.
    zones.extend(fails.map(|from| zone(from, end, "", Some("fails"))));
    zones
}

fn throughput_and_latency(runs: &[Run]) -> Figure {
    const TITLE: &str = "Throughput and latency by level";
    let (what, axis) = ("Throughput in requests per second", ("successful requests per second", Unit::Number));
    let Some(mut throughput) = by_level(runs, "throughput", what, true, axis, &THROUGHPUT) else {
        return Figure::new(TITLE, "", Vec::new()).without("No level has a throughput.");
    };
    let mut caption = String::new();
    if throughput.series.iter().any(|series| !series.band.is_empty()) {
        caption += " Band: the 95 % interval.";
    }
    let mut levels = runs.iter().flat_map(|run| &run.recommendation.levels);
    if levels.any(|level| level.summary.goodput.is_some()) {
        caption += " Goodput: the requests that meet policy.slo.";
    }
    let models = runs.iter().enumerate().flat_map(|(at, run)| beside_throughput(runs, at, run, &throughput));
    let models: Vec<Series> = models.filter(|series| !series.points.is_empty()).collect();
    for (style, words) in [
        (Style::Dots, " Dots: the individual windows of a level, which scatter more than the level as a whole."),
        (Style::Crosses, " Crosses: levels that do not pass; the table of all levels says why."),
    ] {
        caption += if models.iter().any(|series| series.style == style) { words } else { "" };
    }
    let curves = runs.iter().filter_map(|run| Some(named(run, runs, &words::curve(&run.recommendation)?)));
    caption += &curves.map(|curve| format!(" {curve}.")).collect::<String>();
    throughput.series.extend(models);
    throughput.zones = zones(runs, &throughput.x);
    throughput.marks.extend(throughput.zones.iter().filter(|zone| zone.tone == Some("fails")).map(|zone| Mark {
        upright: true,
        at: zone.from,
        label: "fails a limit".to_owned(),
        tone: "bad",
    }));
    let across = (throughput.marks.clone(), throughput.zones.clone());
    let mut charts = vec![throughput];
    match by_level(runs, "latency", "Latency percentiles", true, ("latency", Unit::Seconds), &LATENCY) {
        None => caption += " No latencies: the file holds none.",
        Some(mut latency) => {
            caption += " Below: the latency of the successful requests that began inside the measured window.";
            (latency.marks, latency.zones) = across;
            latency.marks.iter_mut().for_each(|mark| mark.label.clear());
            for (name, limit, source) in limits(runs) {
                if limit <= LIMIT_IN_SIGHT * latency.y.range[1] {
                    latency.y.range[1] = latency.y.range[1].max(limit * 1.12);
                    caption += &format!(" {name}: {source}.");
                    latency.marks.push(Mark { upright: false, at: limit, label: name, tone: "bad" });
                } else {
                    caption += &format!(" {name} ({source}) lies above the chart.");
                }
            }
            latency.zones.iter_mut().for_each(|zone| zone.name.clear());
            charts.push(latency);
        }
    }
    Figure::new(TITLE, caption.trim_start(), charts)
}

/// The fitted curve, the single windows (only those inside the chart, which is scaled to the line),
/// and the levels that do not pass.
fn beside_throughput(runs: &[Run], at: usize, run: &Run, chart: &Chart) -> Vec<Series> {
    let (tone, stops, top) = (tone(runs, at), &chart.stops, chart.y.range[1]);
    let mut all = Vec::new();
    if let Some(usl) = run.recommendation.usl {
        let (low, high) = (stops.first().copied().unwrap_or(1.0), stops.last().copied().unwrap_or(1.0));
        let step = (high - low) / f64::from(CURVE_POINTS - 1);
        let points = (0..CURVE_POINTS).map(|i| low + f64::from(i) * step).map(|x| [x, usl.throughput(x)]).collect();
        let values = stops.iter().map(|&x| Some(usl.throughput(x))).collect();
        let name = named(run, runs, "USL");
        all.push(Series { label: name.clone(), points, ..Series::over(stops, &name, tone, Style::Curve, values) });
    }
    let judged = &run.recommendation.levels;
    let samples = judged.iter().flat_map(|level| {
        let samples = level.summary.samples.iter().flatten().filter(|sample| sample.duration_s > 0.0);
        samples.map(|sample| [level.summary.concurrency as f64, sample.succeeded as f64 / sample.duration_s])
    });
    let windows = samples.filter(|[_, rps]| *rps <= top).collect();
    let crossed = judged.iter().filter(|level| level.verdict != Verdict::Pass);
    let crossed =
        crossed.filter_map(|l| Some([l.summary.concurrency as f64, l.summary.throughput_rps?.estimate])).collect();
    for (name, tone, style, points) in
        [("individual windows", tone, Style::Dots, windows), ("does not pass", "bad", Style::Crosses, crossed)]
    {
        all.push(Series { name: named(run, runs, name), tone, style, points, ..Series::default() });
    }
    all
}

/// The limits on latency: name, seconds and source. A limit that two runs share is listed once.
fn limits(runs: &[Run]) -> Vec<(String, f64, &'static str)> {
    let mut all = Vec::new();
    for run in runs {
        let own = run.policy.max_p95_seconds.is_some();
        let source = if own { TimeGate::P95.key() } else { "5 x the P95 of the lowest level that passes" };
        let p95 = p95_limit_s(&run.recommendation.levels, &run.policy).map(|limit| ("P95", limit, source));
        let p99 = run.policy.max_p99_seconds.map(|limit| ("P99", limit, TimeGate::P99.key()));
        for (percentile, limit, source) in p95.into_iter().chain(p99) {
            all.push((run, format!("{percentile} limit {}", seconds(limit)), limit, source));
        }
    }
    let times = |name: &str| all.iter().filter(|other| other.1 == name).count();
    let mut once: Vec<(String, f64, &'static str)> = Vec::new();
    for (run, name, limit, source) in &all {
        let name = if times(name) == runs.len() { name.clone() } else { named(run, runs, name) };
        if once.iter().all(|other| other.0 != name) {
            once.push((name, *limit, source));
        }
    }
    once
}

/// Output tokens, if they are the objective.
fn tokens(runs: &[Run]) -> Option<Figure> {
    if !runs.iter().any(|run| run.policy.objective == Objective::OutputTokens) {
        return None;
    }
    let axis = ("output tokens per second", Unit::Number);
    let chart = by_level(runs, "tokens", "Output tokens per second", true, axis, &TOKENS)?;
    Some(Figure::new("Output tokens per second, all requests together", "", vec![chart]))
}

/// The load according to the server's own metrics.
fn queueing(runs: &[Run]) -> Option<Figure> {
    let what = "Requests running and waiting at the server,";
    let chart = by_level(runs, "queueing", what, true, ("requests", Unit::Number), &QUEUE)?;
    let fullest = |run: &Run| {
        let shares = run.recommendation.levels.iter().filter_map(|level| level.summary.server?.kv_cache);
        Some(named(run, runs, &percent(shares.reduce(f64::max)?)))
    };
    let fullest: Vec<String> = runs.iter().filter_map(fullest).collect();
    let mut caption =
        "Means over the measured window, from the server's own /metrics. Once requests wait, more of them in \
                       parallel only lengthen the queue."
            .to_owned();
    if !fullest.is_empty() {
        caption += &format!(" Highest use of the KV cache: {}.", fullest.join(", "));
    }
    Some(Figure::new("Running and waiting at the server", caption, vec![chart]))
}

// ---- speed of each request, and total throughput ----

/// The levels of a single run by speed and throughput, and limits for the reader to try on them.
fn tradeoff(runs: &[Run]) -> Option<Figure> {
    let [Run { recommendation, policy, .. }] = runs else { return None };
    let summaries: Vec<LevelSummary> = recommendation.levels.iter().map(|level| level.summary.clone()).collect();
    // The two limits with sliders are lifted; the others apply. After a race, fewer requests are enough.
    let raced = recommendation.levels.iter().any(|l| l.verdict != Verdict::NotUsed && l.summary.requests < Some(30));
    let unlimited = Policy { max_p95_seconds: Some(f64::MAX), max_ttft_p95_seconds: None, ..policy.clone() };
    let judged = judge(&summaries, &unlimited, raced);
    let finite = |at: &[f64; 2]| at.iter().all(|value| value.is_finite());
    let placed: Vec<(&LevelSummary, [f64; 2])> =
        summaries.iter().filter_map(|s| Some((s, tokens_of(s).filter(finite)?))).collect();
    let chosen = recommendation.recommended_concurrency;
    let passes = |level| recommendation.level(level).is_some_and(|level| level.verdict == Verdict::Pass);
    // There is no trade-off if, for instance, a quota fails all levels but one.
    if placed.iter().filter(|(of, _)| passes(of.concurrency)).count() < 2 {
        return None;
    }
    let name = |(of, at): &(&LevelSummary, [f64; 2])| {
        let fails = if passes(of.concurrency) { "" } else { " (fails)" };
        (*at, format!("{}{fails}", of.concurrency))
    };
    // Earlier labels take precedence.
    let mut chosen_first = placed.clone();
    chosen_first.sort_by_key(|(of, _)| Some(of.concurrency) != chosen);
    let mut stops = placed.clone();
    stops.sort_by(|a, b| a.1[0].total_cmp(&b.1[0]));
    let axis = |label, of: usize| Axis::from_zero(label, Unit::Number, placed.iter().map(|(_, at)| at[of]));
    let values = |of: fn(&(&LevelSummary, [f64; 2])) -> f64| stops.iter().map(|stop| Some(of(stop))).collect();
    let series = |name: &str, values| Series { name: name.to_owned(), tone: "accent", values, ..Series::default() };
    let chart = Chart {
        id: "tradeoff".to_owned(),
        label: "Output tokens per second of all requests together over those of each, by level".to_owned(),
        wide: true,
        x: axis("tokens per second for each request", 0),
        y: axis("tokens per second, all requests together", 1),
        stops: stops.iter().map(|stop| stop.1[0]).collect(),
        series: vec![
            Series {
                points: placed.iter().map(|(_, at)| *at).collect(),
                ..series("tokens/s, all together", values(|(_, at)| at[1]))
            },
            series("level", values(|(summary, _)| summary.concurrency as f64)),
        ],
        names: chosen_first.iter().map(name).collect(),
        ring: chosen_first.first().map(|(_, at)| (*at, chosen.is_some())),
        ..Chart::default()
    };
    let level = |(summary, at): &(&LevelSummary, [f64; 2])| {
        let level = summary.concurrency;
        let judged = judged.iter().find(|judged| judged.summary.concurrency == level)?;
        let value = value(summary, policy.objective).filter(|_| judged.verdict == Verdict::Pass)?;
        let [p95, ttft] = gate_times(summary);
        let mut told = format!("Level {level}: {value:.2} {}", policy.objective.unit());
        for (name, time) in [("P95", p95), ("TTFT P95", ttft)] {
            told += &time.map(|s| format!(", {name} {}", seconds(s))).unwrap_or_default();
        }
        let cost = summary.usd_per_1000.map(|cost| format!(", {} USD per 1000 requests", usd(cost.total())));
        told += &cost.unwrap_or_default();
        let place = chart.written_place(*at);
        Some(json!({"level": level, "value": value, "p95": p95, "ttft": ttft, "place": place, "told": told}))
    };
    let limits = json!({
        "levels": placed.iter().filter_map(level).collect::<Vec<_>>(),
        "tolerance": policy.tolerance,
        "chosen": chosen,
        "p95": p95_limit_s(&recommendation.levels, policy),
        "ttft": policy.max_ttft_p95_seconds,
    });
    let ring = if chosen.is_some() { "; the ring marks the chosen one" } else { "" };
    let caption = format!(
        "The numbers are levels{ring}. A request's speed is the mean answer length divided by the mean latency."
    );
    Some(Figure { limits, ..Figure::new("Total throughput against the speed of each request", caption, vec![chart]) })
}

/// Output tokens per second: as a single request sees them, waiting included, and of all requests together.
fn tokens_of(summary: &LevelSummary) -> Option<[f64; 2]> {
    Some([summary.mean_output_tokens? / summary.latency_s?.mean?, summary.output_tps?])
}

// ---- failures ----

fn failures(run: &Run, figure: Figure, chart: Chart) -> Figure {
    let judged = &run.recommendation.levels;
    let rates: Vec<f64> = judged.iter().filter_map(|level| error_rate(&level.summary)).collect();
    let limit = run.policy.max_error_rate;
    let gate = format!("A level passes with an error rate below {}.", rate(limit));
    if rates.is_empty() {
        return figure.without("No error rates: the file holds none, so that gate was not checked.");
    }
    if rates.iter().all(|&rate| rate == 0.0) {
        // There may be failures from measurements that an outage disturbed, and that were made again.
        let elsewhere = run.curves.as_ref().is_some_and(|curves| !curves.reasons.is_empty());
        let which = if elsewhere { " in the measurements that count" } else { "" };
        return figure.without(&format!("No request failed{which}. {gate}"));
    }
    let unknown = |summary: &LevelSummary| {
        let by_kind: f64 = Failure::ALL.iter().filter_map(|kind| rate_of(summary, *kind)).sum();
        error_rate(summary).map(|rate| rate - by_kind).filter(|rest| *rest > 1e-9)
    };
    let by_kind = Failure::ALL.iter().map(|&kind| {
        let rates: Vec<_> = judged.iter().map(|level| rate_of(&level.summary, kind)).collect();
        (kind.name(), kind.name(), rates)
    });
    let rest = ("kind unknown", "ink", judged.iter().map(|level| unknown(&level.summary)).collect());
    let mut below = vec![0.0; judged.len()];
    let stacked = |(name, tone, values): (&str, &'static str, Vec<Option<f64>>)| {
        let mut band = Vec::new();
        for (at, rate) in values.iter().enumerate().filter_map(|(at, rate)| Some((at, (*rate)?))) {
            band.push([at as f64, below[at], below[at] + rate]);
            below[at] += rate;
        }
        Series { name: name.to_owned(), tone, style: Style::Bars, band, values, ..Series::default() }
    };
    let series = by_kind.chain([rest]).map(stacked).filter(|series| !series.band.is_empty()).collect();
    let names: Vec<String> = judged.iter().map(|level| level.summary.concurrency.to_string()).collect();
    let range = [-0.5, names.len() as f64 - 0.5];
    let chart = Chart {
        label: "Share of failed requests by kind, over the concurrency level".to_owned(),
        x: Axis { label: "level: requests in flight".to_owned(), range, names, ..Axis::default() },
        y: Axis::from_zero("failed requests", Unit::Percent, rates.into_iter().chain([limit])),
        stops: (0..judged.len()).map(|at| at as f64).collect(),
        series,
        marks: vec![Mark { upright: false, at: limit, label: format!("limit {}", rate(limit)), tone: "bad" }],
        ..chart
    };
    Figure { caption: gate, charts: vec![chart], ..figure }
}

fn rate_of(summary: &LevelSummary, kind: Failure) -> Option<f64> {
    let count = *summary.failures.get(kind.name())?;
    Some(count as f64 / summary.requests.filter(|&n| n > 0)? as f64)
}

// ---- from the records of individual requests ----

const NO_RECORDS: &str = "The records of the individual requests (target/concurrency) were not found.";

fn distribution(run: &Run, figure: Figure, chart: Chart) -> Figure {
    let Some(curves) = &run.curves else { return figure.without(NO_RECORDS) };
    if curves.distributions.is_empty() {
        return figure.without("No request in a measured window succeeded.");
    }
    let all: Vec<usize> = curves.distributions.keys().copied().collect();
    let pick = run.recommendation.recommended_concurrency;
    let shown = some_of(&all, pick);
    let (stops, count) = (shares(), all.len().max(2) as f64);
    let line = |(at, (level, latencies)): (usize, (&usize, &Vec<f64>))| {
        let chosen = Some(*level) == pick;
        let values = latencies.iter().copied().map(Some).collect();
        let name = format!("level {level}");
        Series {
            label: level.to_string(),
            faint: if chosen { 0.0 } else { 0.25 - 0.25 * at as f64 / (count - 1.0) },
            hidden: !shown.contains(level),
            ..Series::over(&stops, &name, if chosen { "accent" } else { "ink" }, Style::Line, values)
        }
    };
    let series: Vec<Series> = curves.distributions.iter().enumerate().map(line).collect();
    let drawn = series.iter().filter(|series| !series.hidden).flat_map(|series| &series.points);
    let values: Vec<f64> = drawn.map(|point| point[1]).filter(|&latency| latency > 0.0).collect();
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let mut y = Axis::from_zero("latency", Unit::Seconds, values);
    if y.range[1] > 30.0 * lowest {
        y = Axis { log: true, range: [lowest / 1.1, y.range[1]], ..y };
    }
    let chart = Chart {
        label: "Time within which a share of the successful requests ended, by level".to_owned(),
        x: Axis { label: "share of requests".to_owned(), unit: Unit::Percent, range: [0.0, 1.0], ..Axis::default() },
        y,
        stops,
        series,
        choice: true,
        ..chart
    };
    let chosen = if pick.is_some() { "; the chosen level is in colour" } else { "" };
    Figure { caption: format!("The number at a line's end is its level{chosen}."), charts: vec![chart], ..figure }
}

/// At most [`DISTRIBUTIONS`] levels: the chosen one, and others evenly spaced from the lowest to the highest.
fn some_of(all: &[usize], pick: Option<usize>) -> BTreeSet<usize> {
    let wanted = if pick.is_some() { DISTRIBUTIONS - 1 } else { DISTRIBUTIONS };
    let last = all.len().saturating_sub(1);
    let even = (0..wanted).filter_map(|i| all.get((i * last + (wanted - 1) / 2) / (wanted - 1)).copied());
    even.chain(pick).collect()
}

/// Neighbouring segments that each take less than this share of the time have one name.
const NARROWEST_NAMED: f64 = 0.03;

/// The names of the timeline's segments: the level, or one name for several short visits in a row.
fn names(segments: &[Segment], end_s: f64) -> Vec<String> {
    let is_narrow = |of: &Segment| of.end_s - of.begin_s < NARROWEST_NAMED * end_s;
    let name = |row: &[Segment]| {
        let first = if row.len() > 1 { "visits".to_owned() } else { row[0].level.to_string() };
        std::iter::once(first).chain(row[1..].iter().map(|_| String::new())).collect::<Vec<_>>()
    };
    segments.chunk_by(|a, b| is_narrow(a) && is_narrow(b)).flat_map(name).collect()
}

fn timeline(run: &Run, figure: Figure, chart: Chart) -> Figure {
    let Some(Curves { segments, in_flight, successes_rps, failures_rps, .. }) = &run.curves else {
        return figure.without(NO_RECORDS);
    };
    let end = segments.last().map_or(1.0, |segment| segment.end_s);
    let outside = |(&Segment { begin_s, end_s, window_s, .. }, name): (&Segment, String)| {
        let [from, to] = window_s.unwrap_or([end_s; 2]).map(|at| at.min(end_s));
        let zone = |from, to, name| Zone { from, to, name, tone: Some("unmeasured") };
        [zone(begin_s, from, name), zone(to, end_s, String::new())]
    };
    let zones: Vec<Zone> = segments.iter().zip(names(segments, end)).flat_map(outside).collect();
    let level = |bins: &[[f64; 2]]| {
        let at = |&[time, _]: &[f64; 2]| Some(segments.iter().rfind(|of| of.begin_s <= time)?.level as f64);
        Series { name: "level".to_owned(), tone: "ink", values: bins.iter().map(at).collect(), ..Series::default() }
    };
    let steps = |name: &str, tone, bins: &[[f64; 2]]| Series {
        values: bins.iter().map(|bin| Some(bin[1])).collect(),
        points: bins.to_vec(),
        name: name.to_owned(),
        tone,
        style: Style::Steps,
        ..Series::default()
    };
    let chart = |what: &str, axis: &str, series: Vec<Series>| Chart {
        id: format!("{}-{what}", chart.id),
        label: format!("{axis}, over the time of the run"),
        wide: true,
        x: Axis { label: "seconds of load since the first request".to_owned(), range: [0.0, end], ..Axis::default() },
        y: Axis::from_zero(axis, Unit::Number, series.iter().flat_map(|s| &s.points).map(|point| point[1])),
        stops: series[0].points.iter().map(|point| point[0]).collect(),
        series,
        zones: zones.clone(),
        sync: chart.id.clone(),
        ..Chart::default()
    };
    let mut ended = vec![steps("successes/s", "ink", successes_rps), level(successes_rps)];
    if failures_rps.iter().any(|bin| bin[1] > 0.0) {
        ended.push(steps("failures/s", "bad", failures_rps));
    }
    let charts = vec![
        chart("in-flight", "requests in flight", vec![steps("in flight", "accent", in_flight), level(in_flight)]),
        chart("ended", "requests finished per second", ended),
    ];
    Figure {
        caption: "The labels at the top name the levels, or short visits to them, where there is room.".to_owned(),
        charts,
        ..figure
    }
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
