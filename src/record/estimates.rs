//! Criterion's files: their location, and their estimates of a measurement.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::{MOST_OF_JSON, Places, ResultsError, read_json};
use crate::figures::{Estimate, Measurement};

/// Criterion's benchmark group for the sweep.
pub const GROUP: &str = "concurrency";

/// Criterion's id for a level, which is also the path of its folder.
pub fn criterion_id(level: usize) -> String {
    format!("{GROUP}/level/{level}")
}

/// Whether Criterion's files belong to this measurement rather than a later one.
pub(super) fn is_in_criterion(places: &Places, measurement: &Measurement) -> bool {
    let sample = criterion_file(places, measurement.concurrency, "sample.json");
    read_json::<CriterionSample>(&sample, MOST_OF_JSON, "Criterion sample")
        .is_ok_and(|sample| sample.times == measurement.sample_ns)
}

fn criterion_file(places: &Places, level: usize, name: &str) -> PathBuf {
    places.criterion.join(criterion_id(level)).join("new").join(name)
}

#[derive(Deserialize)]
struct CriterionSample {
    times: Vec<f64>,
}

/// Criterion's mean time per wave and the bounds of its confidence interval, in nanoseconds.
pub(super) fn mean_ns(places: &Places, level: usize) -> Result<[f64; 3], ResultsError> {
    let (path, what) = (criterion_file(places, level, "estimates.json"), "Criterion estimates file");
    let file: Value = read_json(&path, MOST_OF_JSON, what)?;
    let (mean, interval) = (&file["mean"], &file["mean"]["confidence_interval"]);
    match [&mean["point_estimate"], &interval["lower_bound"], &interval["upper_bound"]].map(Value::as_f64) {
        [Some(mean), Some(low), Some(high)] => Ok([mean, low, high]),
        _ => Err(ResultsError::Format { path, what, message: "it has no mean with an interval".to_owned() }),
    }
}

/// Successes per second from Criterion's estimates of a level. A wave is `level` successes.
pub(super) fn throughput(places: &Places, level: usize) -> Result<Estimate, ResultsError> {
    let waves = mean_ns(places, level)?;
    let [estimate, upper, lower] = waves.map(|ns| level as f64 * 1e9 / ns);
    Ok(Estimate { estimate, lower: Some(lower), upper: Some(upper) })
}

/// The levels that have a folder of Criterion's, in ascending order.
pub(super) fn levels(places: &Places) -> Vec<usize> {
    let entries = std::fs::read_dir(places.criterion.join(GROUP).join("level")).into_iter().flatten().flatten();
    let mut levels: Vec<usize> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    levels.sort_unstable();
    levels
}
