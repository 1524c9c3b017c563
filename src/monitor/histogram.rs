//! A histogram of times that one thread fills while others read it, without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::figures::quantile;

/// Buckets end at every number of two digits, from 1 ms to 1000 s: a time is known to 10 % or better, and the round
/// bounds that are shown elsewhere are among them.
const PER_DECADE: usize = 90;
const DECADES: usize = 6;
/// Beside them one for what is shorter than all and one for what is longer.
const BUCKETS: usize = PER_DECADE * DECADES + 2;

/// Counts by time.
#[derive(Debug)]
pub(super) struct Histogram {
    counts: Box<[AtomicU64]>,
    sum_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        let counts = (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Histogram { counts, sum_us: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts a time, seconds.
    pub(super) fn add(&self, time_s: f64) {
        let us = (time_s * 1e6).round() as u64;
        self.sum_us.fetch_add(us, Relaxed);
        self.counts[bucket_of(us)].fetch_add(1, Relaxed);
    }

    /// As it is now.
    pub(super) fn read(&self) -> Times {
        let counts = self.counts.iter().map(|count| count.load(Relaxed)).collect();
        Times { counts, sum_s: self.sum_us.load(Relaxed) as f64 / 1e6 }
    }
}

/// The bucket whose upper bound is the first that is not below `us`.
fn bucket_of(us: u64) -> usize {
    let below = us.saturating_sub(1);
    let Some(decade) = below.checked_ilog10().and_then(|digits| digits.checked_sub(3)) else { return 0 };
    let two_digits = below / 10_u64.pow(decade + 2);
    (decade as usize * PER_DECADE + two_digits as usize - 9).min(BUCKETS - 1)
}

/// Seconds; `None` for the last bucket, which has none.
fn upper_bound(bucket: usize) -> Option<f64> {
    let us = (bucket % PER_DECADE + 10) as u64 * 10_u64.pow((bucket / PER_DECADE) as u32 + 2);
    (bucket < BUCKETS - 1).then_some(us as f64 / 1e6)
}

/// What a histogram held at one moment.
#[derive(Clone, Debug)]
pub(super) struct Times {
    counts: Vec<u64>,
    /// Seconds.
    pub(super) sum_s: f64,
}

impl Times {
    /// Nothing yet.
    pub(super) fn none() -> Self {
        Times { counts: vec![0; BUCKETS], sum_s: 0.0 }
    }

    /// How many.
    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds those of another.
    pub(super) fn add(&mut self, other: &Times) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, more)| *own += more);
        self.sum_s += other.sum_s;
    }

    /// The time, seconds, below which a share `p` lies; to the middle of its bucket. `None` for no times.
    pub(super) fn quantile(&self, p: f64) -> Option<f64> {
        quantile(self.count(), p, |rank| self.nth(rank))
    }

    fn nth(&self, rank: u64) -> f64 {
        let mut below = 0;
        let reaches = |count: &u64| {
            below += count;
            below > rank
        };
        let bucket = self.counts.iter().position(reaches).unwrap_or(BUCKETS - 1);
        let low = bucket.checked_sub(1).and_then(upper_bound).unwrap_or(0.0);
        (low + upper_bound(bucket).unwrap_or(low)) / 2.0
    }

    /// How many lie in each of the stretches that end at `bounds`, which are among our own, and beyond the last.
    pub(super) fn up_to(&self, bounds: &[f64]) -> Vec<(f64, u64)> {
        let mut stretches: Vec<(f64, u64)> =
            bounds.iter().copied().chain([f64::INFINITY]).map(|bound| (bound, 0)).collect();
        for (bucket, count) in self.counts.iter().enumerate() {
            let end = upper_bound(bucket).unwrap_or(f64::INFINITY);
            if let Some(stretch) = stretches.iter_mut().find(|(bound, _)| end <= *bound) {
                stretch.1 += count;
            }
        }
        stretches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_between_the_bounds_of_its_bucket() {
        for us in (0..3_000_000).step_by(7).chain([1000, 1001, 99_000, 99_001, 100_000, 999_999_999, 1_000_000_000]) {
            let (bucket, time) = (bucket_of(us), us as f64 / 1e6);
            let upper = upper_bound(bucket).expect("short enough");
            assert!(time <= upper, "{us}: above {upper}");
            assert!(bucket == 0 || time > upper_bound(bucket - 1).expect("a bound"), "{us}: not above the one below");
        }
        assert_eq!((bucket_of(1_000_000_001), bucket_of(u64::MAX)), (BUCKETS - 1, BUCKETS - 1));
        assert_eq!((upper_bound(BUCKETS - 2), upper_bound(BUCKETS - 1)), (Some(1000.0), None));
    }

    #[test]
    fn quantiles_are_right_to_a_bucket() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read().quantile(0.5), None);
        (1..=1000).for_each(|ms| histogram.add(f64::from(ms) / 1000.0));
        let times = histogram.read();
        for (p, expected) in [(0.0, 0.001), (0.5, 0.5), (0.95, 0.95), (1.0, 1.0)] {
            let found = times.quantile(p).expect("times");
            assert!((found - expected).abs() <= 0.01 * expected.max(0.1), "{p}: {found}");
        }
        assert!((times.sum_s - 500.5).abs() < 1e-6);
    }

    #[test]
    fn stretches_hold_all_times_and_a_bound_belongs_to_its_own() {
        let histogram = Histogram::default();
        [0.0, 0.05, 0.1, 0.100001, 2.0, 5000.0].into_iter().for_each(|time| histogram.add(time));
        let mut times = histogram.read();
        times.add(&times.clone());
        assert_eq!(times.up_to(&[0.1, 1.0, 2.0]), [(0.1, 6), (1.0, 2), (2.0, 2), (f64::INFINITY, 2)]);
        assert_eq!(times.count(), 12);
    }
}
