//! How numbers are written.

/// For a figure that is unknown.
pub const UNKNOWN: &str = "–";

/// Levels in a row.
pub fn list(levels: &[usize]) -> String {
    levels.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// `level 4` or `levels 4, 5`.
pub(super) fn levels(levels: &[usize]) -> String {
    format!("level{} {}", if levels.len() == 1 { "" } else { "s" }, list(levels))
}

/// A fraction as per cent.
pub fn percent(rate: f64) -> String {
    format!("{:.2} %", rate * 100.0)
}

/// A change in per cent. Adding 0 turns -0 into 0.
pub fn signed(change: f64) -> String {
    format!("{:+.1} %", (change * 1000.0).round() / 10.0 + 0.0)
}

pub fn seconds(s: f64) -> String {
    if s < 1.0 { format!("{:.0} ms", s * 1000.0) } else { format!("{s:.2} s") }
}

pub fn time(seconds_if_known: Option<f64>) -> String {
    seconds_if_known.map_or_else(|| UNKNOWN.to_owned(), seconds)
}

pub fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), |value| format!("{value:.digits$}"))
}

pub fn range([low, high]: [f64; 2], write: fn(f64) -> String) -> String {
    format!("{} to {}", write(low), write(high))
}
