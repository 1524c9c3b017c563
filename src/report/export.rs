//! The levels as lines for other programs: CSV with a header, or JSON Lines. Pure.

use serde_json::{Value, json};

use super::html::Run;
use crate::decide::JudgedLevel;
use crate::figures::{Distribution, LevelSummary};
use crate::report::words;

/// A column of the CSV file.
type Column = (&'static str, fn(&LevelSummary) -> Option<f64>);

/// Figures in the units of results files; empty where unknown.
const COLUMNS: [Column; 24] = [
    ("requests", |s| s.requests.map(|n| n as f64)),
    ("succeeded", |s| s.succeeded.map(|n| n as f64)),
    ("error_rate", |s| s.error_rate),
    ("timeout_rate", |s| s.timeout_rate),
    ("duration_s", |s| s.duration_s),
    ("throughput_rps", |s| s.throughput_rps.map(|t| t.estimate)),
    ("throughput_rps_lower", |s| s.throughput_rps.and_then(|t| t.lower)),
    ("throughput_rps_upper", |s| s.throughput_rps.and_then(|t| t.upper)),
    ("latency_s_mean", |s| part(s.latency_s, |d| d.mean)),
    ("latency_s_p50", |s| part(s.latency_s, |d| d.p50)),
    ("latency_s_p90", |s| part(s.latency_s, |d| d.p90)),
    ("latency_s_p95", |s| part(s.latency_s, |d| d.p95)),
    ("latency_s_p99", |s| part(s.latency_s, |d| d.p99)),
    ("latency_s_max", |s| part(s.latency_s, |d| d.max)),
    ("ttft_s_p50", |s| part(s.ttft_s, |d| d.p50)),
    ("ttft_s_p95", |s| part(s.ttft_s, |d| d.p95)),
    ("itl_s_p50", |s| part(s.itl_s, |d| d.p50)),
    ("itl_s_p95", |s| part(s.itl_s, |d| d.p95)),
    ("tpot_s_p50", |s| part(s.tpot_s, |d| d.p50)),
    ("tpot_s_p95", |s| part(s.tpot_s, |d| d.p95)),
    ("output_tps", |s| s.output_tps),
    ("mean_output_tokens", |s| s.mean_output_tokens),
    ("mean_in_flight", |s| s.mean_in_flight),
    ("failures", |s| Some(s.failures.values().sum::<u64>() as f64)),
];

fn part(distribution: Option<Distribution>, figure: fn(Distribution) -> Option<f64>) -> Option<f64> {
    distribution.and_then(figure)
}

fn levels(runs: &[Run]) -> impl Iterator<Item = (&Run, &JudgedLevel)> {
    runs.iter().flat_map(|run| run.recommendation.levels.iter().map(move |level| (run, level)))
}

fn is_recommended(run: &Run, level: &JudgedLevel) -> bool {
    run.recommendation.recommended_concurrency == Some(level.summary.concurrency)
}

/// One line per level, and a header. Quoted as RFC 4180 says.
pub fn csv(runs: &[Run]) -> String {
    let named = ["run_id", "model", "concurrency", "verdict", "why", "recommended"];
    let header: Vec<&str> = named.into_iter().chain(COLUMNS.map(|column| column.0)).collect();
    let mut text = header.join(",") + "\r\n";
    for (run, level) in levels(runs) {
        let mut cells = vec![
            field(run.about.run_id.as_deref().unwrap_or_default()),
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
        value["run_id"] = json!(run.about.run_id);
        value["model"] = json!(run.about.model);
        value["recommended"] = Value::Bool(is_recommended(run, level));
        format!("{value}\n")
    };
    levels(runs).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{Policy, recommend};
    use crate::figures::Estimate;
    use crate::report::html::About;

    fn run() -> Run {
        let level = |concurrency, rps| LevelSummary {
            concurrency,
            throughput_rps: Some(Estimate { estimate: rps, lower: None, upper: None }),
            ..LevelSummary::default()
        };
        let policy = Policy::default();
        Run {
            label: String::new(),
            recommendation: recommend(&[level(1, 5.5), level(8, 40.0)], &policy),
            policy,
            about: About { model: Some("a \"b\",\nc".to_owned()), ..About::default() },
            curves: None,
            missing: Vec::new(),
        }
    }

    #[test]
    fn csv_has_a_field_for_each_column_and_unknown_is_empty() {
        let text = csv(&[run()]);
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(lines.len(), 1 + 2 + 1);
        let columns = lines[0].split(',').count();
        assert_eq!(columns, 6 + COLUMNS.len());
        let model = "\"a \"\"b\"\",\nc\"";
        assert!(lines[2].starts_with(&format!(",{model},8,pass,,true,")), "{text}");
        assert_eq!(lines[1].replace(model, "").split(',').count(), columns);
        let at = lines[0].split(',').position(|name| name == "throughput_rps").expect("a column");
        assert_eq!(lines[1].replace(model, "").split(',').nth(at), Some("5.5"));
        assert_eq!(lines[1].replace(model, "").split(',').nth(at + 1), Some(""));
    }

    #[test]
    fn json_lines_are_one_object_a_level() {
        let text = json_lines(&[run(), run()]);
        let values: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(values.len(), 4);
        assert_eq!((&values[3]["concurrency"], &values[3]["recommended"]), (&json!(8), &json!(true)));
        assert_eq!((&values[0]["throughput_rps"]["estimate"], &values[0]["error_rate"]), (&json!(5.5), &Value::Null));
    }
}
