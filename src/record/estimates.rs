//! Criterion's files: where they are, and what they say of a measurement.

use std::path::PathBuf;

use serde::Deserialize;

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

#[derive(Deserialize)]
struct CriterionEstimates {
    mean: CriterionMean,
}

#[derive(Deserialize)]
struct CriterionMean {
    point_estimate: f64,
    confidence_interval: CriterionInterval,
}

#[derive(Deserialize)]
struct CriterionInterval {
    lower_bound: f64,
    upper_bound: f64,
}

impl CriterionMean {
    /// Nanoseconds per wave of `level` successes, as successes per second.
    fn throughput(&self, level: usize) -> Estimate {
        let per_second = |ns: f64| level as f64 * 1e9 / ns;
        let interval = &self.confidence_interval;
        Estimate {
            estimate: per_second(self.point_estimate),
            lower: Some(per_second(interval.upper_bound)),
            upper: Some(per_second(interval.lower_bound)),
        }
    }
}

/// Criterion's mean time per wave.
fn mean(places: &Places, step: Step) -> Result<CriterionMean, ResultsError> {
    let file: CriterionEstimates =
        read_json(&criterion_file(places, step, "estimates.json"), MOST_OF_JSON, "Criterion estimates file")?;
    Ok(file.mean)
}

/// The same in nanoseconds.
pub(super) fn wave_ns(places: &Places, step: Step) -> Option<f64> {
    Some(mean(places, step).ok()?.point_estimate)
}

/// Successes per second by Criterion's estimates of a level's first measurement.
pub(super) fn throughput(places: &Places, level: usize) -> Result<Estimate, ResultsError> {
    let first = Step { level, stage: Stage::Sweep, round: 0 };
    Ok(mean(places, first)?.throughput(level))
}

/// The levels that Criterion has estimates of.
pub(super) fn levels(places: &Places) -> Vec<usize> {
    let entries = std::fs::read_dir(places.criterion.join(GROUP).join("level")).into_iter().flatten().flatten();
    let mut levels: Vec<usize> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    levels.sort_unstable();
    levels
}
