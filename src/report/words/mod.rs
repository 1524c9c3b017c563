//! English text about results: verdicts, reasons, notes, and how numbers are written. Other code
//! prints these sentences and never parses them.
//!
//! [`causes`] are phrases that follow a verdict; reasons and notes are sentences.

mod answer;
mod comparison;
mod decision;
mod missing;
mod notes;
mod numbers;
mod recheck;
mod trouble;
mod verify;
mod writing;

use serde_json::{Value, json};

pub use answer::{answer, because, headline, mark, measured, moment, simulated};
pub use comparison::{
    against, baseline, better, doubt, moved, once, outcome, plan_of_duet, regression, sides, two_servers,
    verdict as of_two,
};
pub use decision::{causes, gate, gates, reason};
pub use missing::missing;
pub use notes::{advice, curve, gain, going_on, information, note, notes};
pub use numbers::{
    UNKNOWN, count, levels, number, or_unknown, percent, range, rate, seconds, share, signed, time, usd,
};
pub use recheck::{recheck_stopped, rechecked};
pub use trouble::{endpoint_problem, no_server_metrics, problem};
pub use verify::{LOAD_HEADER, arrivals_planned, carries, load_row, no_number, no_room_at_all};
pub use writing::{WhyNot, already_written, left_as_it_was, why_not, written};

use crate::decide::{Recommendation, Verdict};

pub fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::NotUsed => "not used",
    }
}

/// The recommendation as JSON for programs: the causes as data, and next to them the same in words for readers.
pub fn with_words(recommendation: &Recommendation) -> Value {
    let mut value = json!(recommendation);
    value["reason"] = json!(reason(recommendation));
    value["notes"] = recommendation.notes.iter().map(note).collect();
    for (at, level) in recommendation.levels.iter().enumerate() {
        value["levels"][at]["why"] = json!(causes(&level.causes));
    }
    value
}
