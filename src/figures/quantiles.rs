//! Quantiles and confidence intervals; the only place where they are defined.

use hdrhistogram::{Counter, Histogram};
use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, StudentsT};

/// A figure with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub estimate: f64,
    /// Null if no interval was computed.
    pub lower: Option<f64>,
    pub upper: Option<f64>,
}

impl Estimate {
    pub fn interval(&self) -> Option<[f64; 2]> {
        Some([self.lower?, self.upper?])
    }

    pub fn half_width(&self) -> Option<f64> {
        self.interval().map(|[lower, upper]| (upper - lower) / 2.0)
    }
}

/// Mean and percentiles of a time, in seconds. Percentiles are Hyndman-Fan type 7.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Distribution {
    pub mean: Option<f64>,
    pub p50: Option<f64>,
    pub p90: Option<f64>,
    pub p95: Option<f64>,
    /// With fewer than 400 values, little more than the maximum.
    pub p99: Option<f64>,
    pub max: Option<f64>,
}

/// Whole microseconds in four bytes, as a run may have millions of requests. Saturates at 71 minutes.
pub(super) fn micros(seconds: f64) -> u32 {
    (seconds * 1e6).round() as u32
}

/// A histogram for times in microseconds with this many significant digits. Times above one hour count as one hour.
pub fn histogram<T: Counter>(digits: u8) -> Histogram<T> {
    Histogram::new_with_bounds(1, 3_600_000_000, digits).expect("bounds and digits that it can have")
}

pub(super) fn seconds(micros: u32) -> f64 {
    f64::from(micros) / 1e6
}

impl Distribution {
    /// The distribution of at most `most` values in microseconds, and the interval of its P95; `None` without values.
    pub(super) fn of(most: usize, values: impl Iterator<Item = u32>) -> (Option<Self>, Option<[f64; 2]>) {
        let mut sorted = Vec::with_capacity(most);
        sorted.extend(values);
        sorted.sort_unstable();
        (Self::of_sorted(&sorted), p95_interval(&sorted))
    }

    pub(super) fn of_sorted(values: &[u32]) -> Option<Self> {
        let sum: u64 = values.iter().map(|&value| u64::from(value)).sum();
        Self::from_parts(values.len() as u64, sum as f64 / 1e6, |rank| seconds(values[rank as usize]))
    }

    /// The distribution of values binned as ascending `(value, count)`; `None` without values.
    pub fn of_binned(bins: &[(f64, u64)]) -> Option<Self> {
        let sum = bins.iter().map(|&(value, count)| value * count as f64).sum::<f64>();
        Self::from_parts(bins.iter().map(|bin| bin.1).sum(), sum, |rank| {
            let mut seen = 0;
            let bin = bins.iter().find(|bin| {
                seen += bin.1;
                rank < seen
            });
            bin.map_or(f64::NAN, |bin| bin.0)
        })
    }

    fn from_parts(n: u64, sum: f64, nth: impl Fn(u64) -> f64) -> Option<Self> {
        let at = |p| quantile(n, p, &nth);
        let mean = (n > 0).then(|| sum / n as f64)?;
        Some(Distribution { mean: Some(mean), p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99), max: at(1.0) })
    }
}

/// Quantile of `n` ascending values; `nth` returns the value at a rank, from 0.
///
/// Hyndman and Fan (1996), "Sample Quantiles in Statistical Packages", type 7: linear interpolation at rank
/// `(n - 1) p`. This is numpy's default, and the only definition used in this project. `None` without values.
pub fn quantile(n: u64, p: f64, nth: impl Fn(u64) -> f64) -> Option<f64> {
    let last = n.checked_sub(1)?;
    let rank = p.clamp(0.0, 1.0) * last as f64;
    let below = rank.floor() as u64;
    let (low, high) = (nth(below), nth((below + 1).min(last)));
    Some(low + (rank - below as f64) * (high - low))
}

/// Puts an interval around `rps`: Student's t on the blocks, relative to their mean.
pub(super) fn with_interval(rps: f64, blocks: &[f64]) -> Estimate {
    let half = relative_half_width(blocks).map(|half| rps * half);
    Estimate { estimate: rps, lower: half.map(|h| (rps - h).max(0.0)), upper: half.map(|h| rps + h) }
}

/// Half-width of the 95 % Student t interval of the mean, relative to the mean; `None` for fewer than two values.
fn relative_half_width(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 || mean <= 0.0 {
        return None;
    }
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    Some(student_t(n - 1.0, 0.975)? * (variance / n).sqrt() / mean)
}

/// A quantile of Student's t; `None` without degrees of freedom.
pub fn student_t(freedom: f64, p: f64) -> Option<f64> {
    Some(StudentsT::new(0.0, 1.0, freedom).ok()?.inverse_cdf(p))
}

/// The 95 % interval of the 95th percentile from order statistics: between two of the sorted values, whose
/// ranks follow from the binomial distribution whatever the distribution of the values (Conover, "Practical
/// Nonparametric Statistics", 3rd ed., 3.2). `None` below 72 values, too few for an upper bound.
pub(super) fn p95_interval(sorted: &[u32]) -> Option<[f64; 2]> {
    let below = Binomial::new(0.95, sorted.len() as u64).ok()?;
    // Ranks from 1: in at most 2.5 % of cases each, `low` is above the percentile or `high` below it.
    let (low, high) = (below.inverse_cdf(0.025) as usize, below.inverse_cdf(0.975) as usize + 1);
    (low > 0 && high <= sorted.len()).then(|| [seconds(sorted[low - 1]), seconds(sorted[high - 1])])
}

/// Wilson's 95 % score interval of a proportion (Wilson 1927).
pub fn wilson(successes: u64, n: u64) -> Option<[f64; 2]> {
    const Z: f64 = 1.959_963_984_540_054;
    if n == 0 {
        return None;
    }
    let (n, p) = (n as f64, successes as f64 / n as f64);
    let denominator = 1.0 + Z * Z / n;
    let centre = (p + Z * Z / (2.0 * n)) / denominator;
    let half = Z / denominator * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    Some([(centre - half).max(0.0), (centre + half).min(1.0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(got: Option<f64>, want: f64) {
        let got = got.unwrap_or(f64::NAN);
        assert!((got - want).abs() <= 1e-12 * want.abs().max(1.0), "got {got}, want {want}");
    }

    /// `scipy.stats.t.ppf(.975, n - 1) * np.std(x, ddof=1) / np.sqrt(n)` over the mean of x, scipy 1.
    #[test]
    fn the_half_width_is_that_of_student_t() {
        let rates = [9.8, 10.1, 10.4, 9.9, 10.3, 10.0, 9.7, 10.6, 10.2, 10.0];
        assert_near(relative_half_width(&rates), 0.199_503_509_310_250_15 / 10.1);
        let two = relative_half_width(&[8.0, 12.0]).unwrap();
        assert!((two - 2.541_240_947).abs() < 1e-6, "{two}");
        assert_eq!(relative_half_width(&[8.0]), None);
        assert_eq!(relative_half_width(&[0.0, 0.0]), None);
    }

    #[test]
    fn an_interval_lies_around_the_figure_and_not_below_zero() {
        let around = with_interval(20.0, &[8.0, 12.0]);
        assert_eq!(around.lower, Some(0.0));
        assert!((around.upper.unwrap() - (20.0 + 20.0 * 2.541_240_947)).abs() < 1e-5, "{around:?}");
        assert_eq!(with_interval(10.0, &[8.0]), Estimate { estimate: 10.0, lower: None, upper: None });
    }

    /// Ranks by `scipy.stats.binom.ppf([.025, .975], n, .95) + [0, 1]`: 64 and 72 of 72, 90 and
    /// 100 of 100, 371 and 389 of 400. With 71 values, the upper rank would be 72.
    #[test]
    fn the_interval_of_p95_lies_between_order_statistics() {
        let first = |n: u32| p95_interval(&(1..=n).map(|n| micros(n.into())).collect::<Vec<_>>());
        assert_eq!(first(71), None);
        for (n, low, high) in [(72, 64.0, 72.0), (100, 90.0, 100.0), (400, 371.0, 389.0)] {
            assert_eq!(first(n), Some([low, high]), "{n}");
        }
        assert_eq!(first(0), None);
    }
}
