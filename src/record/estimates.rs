//! Criterion's files: where they are, and what they say of a measurement.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::{MOST_OF_JSON, Places, ResultsError, read_json};
use crate::figures::{Estimate, Measurement, Stage, Step};

/// Criterion's group of the sweep.
pub const GROUP: &str = "concurrency";

/// Criterion's id of a measurement, which is also the path of its folder. Earlier versions had a group for each confirm
/// round.
pub fn criterion_id(Step { level, stage, round }: Step) -> String {
    match stage {
        Stage::Confirm => format!("confirm-{round}/{level}"),
        Stage::Sweep | Stage::Visit => format!("{GROUP}/level/{level}"),
    }
}

/// Removes what earlier versions measured again: Criterion would show it in its index for ever.
pub fn remove_confirm_groups(places: &Places) {
    let is_round = |name: &str| name.strip_prefix("confirm-").is_some_and(|round| round.parse::<u32>().is_ok());
    let groups = std::fs::read_dir(&places.criterion).into_iter().flatten().flatten();
    for group in groups.filter(|group| group.file_name().to_str().is_some_and(is_round)) {
        let _ = std::fs::remove_dir_all(group.path());
    }
}

/// Whether Criterion's files are those of this measurement, and not of a later one.
pub(super) fn is_in_criterion(places: &Places, measurement: &Measurement) -> bool {
    let sample = criterion_file(places, measurement.step(), "sample.json");
    read_json::<CriterionSample>(&sample, MOST_OF_JSON, "Criterion sample")
        .is_ok_and(|sample| sample.times == measurement.sample_ns)
}

fn criterion_file(places: &Places, step: Step, name: &str) -> PathBuf {
    places.criterion.join(criterion_id(step)).join("new").join(name)
}

#[derive(Deserialize)]
struct CriterionSample {
    times: Vec<f64>,
}

/// Criterion's mean time per wave and the bounds of its interval, nanoseconds.
pub(super) fn mean_ns(places: &Places, step: Step) -> Result<[f64; 3], ResultsError> {
    let (path, what) = (criterion_file(places, step, "estimates.json"), "Criterion estimates file");
    let file: Value = read_json(&path, MOST_OF_JSON, what)?;
    let (mean, interval) = (&file["mean"], &file["mean"]["confidence_interval"]);
    match [&mean["point_estimate"], &interval["lower_bound"], &interval["upper_bound"]].map(Value::as_f64) {
        [Some(mean), Some(low), Some(high)] => Ok([mean, low, high]),
        _ => Err(ResultsError::Format { path, what, message: "it has no mean with an interval".to_owned() }),
    }
}

/// Successes per second by Criterion's estimates of a level's first measurement: a wave is `level` of them.
pub(super) fn throughput(places: &Places, level: usize) -> Result<Estimate, ResultsError> {
    let waves = mean_ns(places, Step { level, stage: Stage::Sweep, round: 0 })?;
    let [estimate, upper, lower] = waves.map(|ns| level as f64 * 1e9 / ns);
    Ok(Estimate { estimate, lower: Some(lower), upper: Some(upper) })
}

/// The levels that Criterion has estimates of.
pub(super) fn levels(places: &Places) -> Vec<usize> {
    let entries = std::fs::read_dir(places.criterion.join(GROUP).join("level")).into_iter().flatten().flatten();
    let mut levels: Vec<usize> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    levels.sort_unstable();
    levels
}
