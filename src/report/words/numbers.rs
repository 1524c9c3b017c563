//! Number formats.

/// Stands for an unknown figure.
pub const UNKNOWN: &str = "–";

/// `level 4` or `levels 4, 5`.
pub fn levels(all: &[usize]) -> String {
    let list = all.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    format!("level{} {list}", if all.len() == 1 { "" } else { "s" })
}

/// The text with its first letter in upper case.
pub(super) fn capitalised(text: &str) -> String {
    let (first, rest) = text.split_at(text.chars().next().map_or(0, char::len_utf8));
    first.to_uppercase() + rest
}

/// `1 request` or `2 requests`.
pub fn count(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// A fraction as a percentage, with one decimal below 10 % and above 90 %.
pub fn percent(fraction: f64) -> String {
    let percent = 100.0 * fraction;
    let is_near_an_end = percent.abs() < 10.0 || (90.0..100.0).contains(&percent);
    format!("{} %", rounded(percent, usize::from(is_near_an_end)))
}

/// An error rate, with one more decimal to show on which side of its limit it is, and never 0 if something failed.
pub fn rate(rate: f64) -> String {
    match 100.0 * rate {
        percent if percent > 0.0 && percent < 0.005 => "<0.01 %".to_owned(),
        percent => format!("{} %", rounded(percent, if percent < 10.0 { 2 } else { 1 })),
    }
}

/// A share that should be high, with two decimals from 90 % up.
pub fn share(share: f64) -> String {
    format!("{} %", rounded(100.0 * share, if share >= 0.9 { 2 } else { 1 }))
}

/// Rounds without trailing zeros. Adding 0 turns -0 into 0.
fn rounded(value: f64, digits: usize) -> String {
    let scale = 10_f64.powi(digits as i32);
    ((value * scale).round() / scale + 0.0).to_string()
}

/// A change as a percentage with its sign. Adding 0 turns -0 into 0.
pub fn signed(change: f64) -> String {
    format!("{:+.1} %", (change * 1000.0).round() / 10.0 + 0.0)
}

pub fn seconds(s: f64) -> String {
    if s < 1.0 { format!("{:.0} ms", s * 1000.0) } else { format!("{s:.2} s") }
}

/// US dollars, with at least three significant digits.
pub fn usd(usd: f64) -> String {
    let digits = if usd >= 1.0 { 2 } else { (2.0 - usd.max(1e-9).log10().floor()) as usize };
    format!("{usd:.digits$}")
}

pub fn or_unknown(value: Option<f64>, write: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), write)
}

pub fn time(seconds_if_known: Option<f64>) -> String {
    or_unknown(seconds_if_known, seconds)
}

pub fn number(value: Option<f64>, digits: usize) -> String {
    or_unknown(value, |value| format!("{value:.digits$}"))
}

pub fn range([low, high]: [f64; 2], write: fn(f64) -> String) -> String {
    format!("{} to {}", write(low), write(high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_have_the_digits_that_they_need() {
        let shares = [0.0, 0.005, 0.05, 0.0876, 0.12, 0.333, 0.949, 0.992, 1.0, 1.006, -0.0001].map(percent);
        let expected = ["0 %", "0.5 %", "5 %", "8.8 %", "12 %", "33 %", "94.9 %", "99.2 %", "100 %", "101 %", "0 %"];
        assert_eq!(shares, expected);
        let rates = [0.0, 0.00004, 0.0499, 0.05, 0.0501, 0.1118, 0.33].map(rate);
        assert_eq!(rates, ["0 %", "<0.01 %", "4.99 %", "5 %", "5.01 %", "11.2 %", "33 %"]);
        assert_eq!([count(1, "request"), count(0, "request")], ["1 request", "0 requests"]);
    }
}
