//! Exports for other programs: the levels of runs as CSV or JSON Lines, and the answer as Markdown. Pure.

use serde_json::{Value, json};

use super::html::Run;
use crate::decide::JudgedLevel;
use crate::figures::LevelSummary;
use crate::report::{text, words};

type Column = (&'static str, fn(&LevelSummary) -> Option<f64>);

/// Figures in the units of results files; empty if unknown.
const COLUMNS: [Column; 30] = [
    ("requests", |s| s.requests.map(|n| n as f64)),
    ("succeeded", |s| s.succeeded.map(|n| n as f64)),
    ("error_rate", |s| s.error_rate),
    ("timeout_rate", |s| s.timeout_rate),
    ("duration_s", |s| s.duration_s),
    ("throughput_rps", |s| Some(s.throughput_rps?.estimate)),
    ("throughput_rps_lower", |s| s.throughput_rps?.lower),
    ("throughput_rps_upper", |s| s.throughput_rps?.upper),
    ("latency_s_mean", |s| s.latency_s?.mean),
    ("latency_s_p50", |s| s.latency_s?.p50),
    ("latency_s_p90", |s| s.latency_s?.p90),
    ("latency_s_p95", |s| s.latency_s?.p95),
    ("latency_s_p99", |s| s.latency_s?.p99),
    ("latency_s_max", |s| s.latency_s?.max),
    ("ttft_s_p50", |s| s.ttft_s?.p50),
    ("ttft_s_p95", |s| s.ttft_s?.p95),
    ("itl_s_p50", |s| s.itl_s?.p50),
    ("itl_s_p95", |s| s.itl_s?.p95),
    ("tpot_s_p50", |s| s.tpot_s?.p50),
    ("tpot_s_p95", |s| s.tpot_s?.p95),
    ("output_tps", |s| s.output_tps),
    ("mean_output_tokens", |s| s.mean_output_tokens),
    ("cached_rate", |s| s.cached_rate),
    ("mean_in_flight", |s| s.mean_in_flight),
    ("goodput_rps", |s| Some(s.goodput.as_ref()?.rps.estimate)),
    ("goodput_rps_lower", |s| s.goodput.as_ref()?.rps.lower),
    ("goodput_rps_upper", |s| s.goodput.as_ref()?.rps.upper),
    ("attainment", |s| Some(s.goodput.as_ref()?.attainment.estimate)),
    ("usd_per_1000", |s| Some(s.usd_per_1000?.total())),
    ("failures", |s| Some(s.failures.values().sum::<u64>() as f64)),
];

fn levels(runs: &[Run]) -> impl Iterator<Item = (&Run, &JudgedLevel)> {
    runs.iter().flat_map(|run| run.recommendation.levels.iter().map(move |level| (run, level)))
}

fn is_recommended(run: &Run, level: &JudgedLevel) -> bool {
    run.recommendation.recommended_concurrency == Some(level.summary.concurrency)
}

/// A header, and one line per level, quoted as in RFC 4180.
pub fn csv(runs: &[Run]) -> String {
    let named = ["run_id", "model", "concurrency", "verdict", "why", "recommended"];
    let header: Vec<&str> = named.into_iter().chain(COLUMNS.map(|column| column.0)).collect();
    let mut text = header.join(",") + "\r\n";
    for (run, level) in levels(runs) {
        let mut cells = vec![
            field(run.run_id.as_ref().map_or("", |id| id.as_str())),
            field(run.about.model.as_deref().unwrap_or_default()),
            level.summary.concurrency.to_string(),
            json!(level.verdict).as_str().unwrap_or_default().to_owned(),
            field(&words::causes(&level.causes)),
            is_recommended(run, level).to_string(),
        ];
        cells.extend(
            COLUMNS.iter().map(|(_, figure)| figure(&level.summary).map_or_else(String::new, |f| f.to_string())),
        );
        text.push_str(&cells.join(","));
        text.push_str("\r\n");
    }
    text
}

fn field(text: &str) -> String {
    if text.contains(['"', ',', '\r', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// One JSON object per level: its figures as in a results file, its verdict, and the run it belongs to.
pub fn json_lines(runs: &[Run]) -> String {
    let line = |(run, level): (&Run, &JudgedLevel)| {
        let mut value = json!(level);
        value["run_id"] = json!(run.run_id);
        value["model"] = json!(run.about.model);
        value["recommended"] = Value::Bool(is_recommended(run, level));
        format!("{value}\n")
    };
    levels(runs).map(line).collect()
}

/// The answer and the table of levels, for a pull request.
pub fn markdown(runs: &[Run]) -> String {
    runs.iter().map(card).collect::<Vec<_>>().join("\n")
}

fn card(run: &Run) -> String {
    let recommendation = &run.recommendation;
    let label = if run.label.is_empty() { String::new() } else { format!("{}: ", run.label) };
    let of = plain(&words::measured(&run.about, recommendation));
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let (columns, rows) = text::rows(recommendation);
    let header = columns.iter().map(|column| column.0).chain(["verdict"]).map(str::to_owned);
    let mut table = line(header.collect()) + &format!("|{}---|\n", "--:|".repeat(columns.len()));
    for text::Row { mut cells, verdict, why, chosen } in rows {
        let chosen = if chosen { "**recommended** " } else { "" };
        cells.push(format!("{chosen}{verdict} {}", plain(&why)).trim().to_owned());
        table += &line(cells);
    }
    let notes: String = words::notes(recommendation).1.iter().map(|note| format!("- {}\n", plain(note))).collect();
    let notes = if notes.is_empty() { notes } else { format!("\n{notes}") };
    format!(
        "### {label}{}\n\n{}\n\n{of}\n\n{table}{notes}",
        words::headline(recommendation, run.present),
        plain(&words::because(recommendation))
    )
}

/// Escapes text from elsewhere, so that it is not taken for markup and stays in its cell.
fn plain(text: &str) -> String {
    let escaped = |c: char| match c {
        '\n' | '\r' => " ".to_owned(),
        '|' | '<' | '>' | '*' | '_' | '`' | '[' | '\\' | '@' => format!("\\{c}"),
        c => c.to_string(),
    };
    text.chars().map(escaped).collect()
}
