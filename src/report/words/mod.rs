//! The only place with English about results, and with the way numbers are written. No other code looks into it.
//!
//! [`causes`] are phrases that stand behind a verdict; reasons and notes are sentences.

mod card;
mod comparison;
mod decision;
mod notes;
mod numbers;
mod trouble;

use serde_json::{Value, json};

pub use card::{headline, how_sure};
pub use comparison::{baseline, doubt, moved, once, outcome, regression};
pub use decision::{causes, gates, reason, why};
pub use notes::{Gain, advice, gain, information, note};
pub use numbers::{UNKNOWN, list, number, percent, range, seconds, signed, time};
pub use trouble::{curl, endpoint_problem, refused_prompt};

use crate::decide::{Recommendation, Verdict};

/// Before the status wherever a number of the embedded simulator stands.
pub fn simulated(is_simulated: bool) -> &'static str {
    if is_simulated { "SIMULATED, " } else { "" }
}

pub fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::NotUsed => "not used",
    }
}

/// The recommendation as JSON, for programs: its causes as data, and beside them the same in words for those who read.
pub fn with_words(recommendation: &Recommendation) -> Value {
    let mut value = json!(recommendation);
    value["reason"] = json!(reason(recommendation));
    value["notes"] = recommendation.notes.iter().map(note).collect();
    for (at, level) in recommendation.levels.iter().enumerate() {
        value["levels"][at]["why"] = json!(causes(&level.causes));
    }
    value
}
