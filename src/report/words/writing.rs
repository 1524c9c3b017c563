//! Whether the number in the config file was changed, and why not.

use std::path::Path;

use crate::decide::Status;

pub enum WhyNot {
    Regression,
    MaybeRegression,
    Status(Status),
    /// The simulator was measured, and the config file names a server.
    OtherEndpoint,
    /// What was measured, if it is not what the config file names.
    Elsewhere {
        endpoint: String,
        model: String,
    },
    Provisional,
}

pub fn why_not(why: &WhyNot, config: &Path) -> String {
    match why {
        WhyNot::Regression => "there is a regression against the baseline".to_owned(),
        WhyNot::MaybeRegression => "there may be a regression against the baseline".to_owned(),
        WhyNot::Status(status) => format!("status {}", status),
        WhyNot::OtherEndpoint => {
            format!("the embedded simulator was measured, but llm.endpoint in {} is another endpoint", config.display())
        }
        WhyNot::Elsewhere { endpoint, model } => {
            format!("the results are of {endpoint}, model {model}, and {} names another", config.display())
        }
        WhyNot::Provisional => {
            "the result is provisional (see the notes); --allow-provisional writes it anyway".to_owned()
        }
    }
}

pub fn left_as_it_was(config: &Path, why: &WhyNot) -> String {
    format!("{} was not changed: {}\n", config.display(), why_not(why, config))
}

pub fn already_written(config: &Path, key: &str, level: usize) -> String {
    format!("{}: {key} is already {level}, nothing to do\n", config.display())
}

pub fn written(config: &Path, key: &str, level: usize, previous: Option<u64>, status: Status) -> String {
    let previous = previous.map_or_else(|| "not set".to_owned(), |n| n.to_string());
    let warning = match status {
        Status::NotSaturated => "warning: throughput was still rising at the highest level tested\n",
        _ => "",
    };
    format!("{}: {key} is now {level} (was {previous})\n{warning}", config.display())
}
