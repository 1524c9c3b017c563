//! Fits the Universal Scalability Law to measured throughput. Pure: numbers in, numbers out.
//!
//! ```text
//!                    lambda N
//! X(N) = ----------------------------------
//!        1 + sigma (N - 1) + kappa N (N - 1)
//! ```
//!
//! `N` is the concurrency, `X` the throughput. `lambda` is the throughput of one request at a
//! time, `sigma` the contention (the share of work that is serialized), `kappa` the crosstalk
//! (the cost that each request imposes on every other). Source: N. J. Gunther, *Guerrilla
//! Capacity Planning*, Springer 2007, chapters 4 to 6; the three-parameter form with `lambda` is
//! from B. Schwartz, *Practical Scalability Analysis with the Universal Scalability Law*, 2015.
//!
//! The fit is ordinary least squares in `X` with `sigma` and `kappa` in \[0, 1\] and `lambda` > 0.
//! R's package `usl` (2.0 and later) solves the same problem with `nls(algorithm = "port")` or
//! `nlxb`, so its published figures serve as the reference in the tests.

use serde::{Deserialize, Serialize};

/// The fewest distinct levels that determine three parameters. With exactly three, the curve
/// passes through the points, so an `r_squared` near 1 proves nothing.
pub const MIN_LEVELS: usize = 3;

/// Upper bound of `sigma` and of `kappa`; the lower bound is 0.
const UPPER: f64 = 1.0;

/// Below this `kappa` there is effectively no peak: it would lie beyond a concurrency of a hundred thousand.
const KAPPA_ZERO: f64 = 1e-10;

/// Two fits whose squared errors differ by less than this share of the sum of squares are equally good,
/// and the simpler one (a parameter exactly 0) is chosen. No measurement resolves such a difference.
const TIE: f64 = 1e-20;

/// The share of an interval that golden section discards at each step, `(3 - sqrt(5)) / 2`, and
/// the number of steps that determine a grid cell to twelve digits.
const GOLDEN: f64 = 0.381_966_011_250_105_1;
const STEPS: u32 = 50;

/// The field names are the symbols used in the literature.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Usl {
    /// Contention, a fraction between 0 and 1.
    pub sigma: f64,
    /// Crosstalk (coherency delay) per pair, between 0 and 1.
    pub kappa: f64,
    /// Throughput at a concurrency of 1, in the unit of the input (requests per second).
    pub lambda: f64,
    /// Share of the variance of throughput that the curve explains: 1 is a perfect fit;
    /// negative if the mean would have been a better curve.
    pub r_squared: f64,
    /// Where the curve is highest: `N* = sqrt((1 - sigma) / kappa)`, possibly far outside the measured levels.
    /// `None` if `kappa` is (nearly) 0: the curve then rises towards `lambda / sigma` and never falls.
    pub peak: Option<f64>,
}

impl Usl {
    pub fn throughput(&self, n: f64) -> f64 {
        self.lambda * capacity(self.sigma, self.kappa, n)
    }
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UslError {
    #[error(
        "the USL curve needs at least {MIN_LEVELS} distinct concurrency levels, and there are {distinct}: \
         measure more levels"
    )]
    TooFewLevels { distinct: usize },
    /// No level is faster than the lowest one, in the data or on the fitted curve.
    #[error(
        "throughput falls from the start: no level does better than the lowest (concurrency {lowest}), so a USL curve \
         cannot show a peak; measure lower levels, if there are any"
    )]
    Falling { lowest: f64 },
}

/// Fits the law to `(concurrency, throughput)` points by least squares in throughput.
///
/// All points of a level are used; points that are not finite and positive are ignored. For a
/// given `(sigma, kappa)` the best `lambda` has a closed form. For a given `kappa`, a
/// one-dimensional search finds the best `sigma`; another finds `kappa`.
///
/// [`UslError::Falling`] if the lowest level is the best one, or the fitted curve is highest at or below it.
pub fn fit(points: &[(f64, f64)]) -> Result<Usl, UslError> {
    let is_usable = |point: &(f64, f64)| [point.0, point.1].iter().all(|v| v.is_finite() && *v > 0.0);
    let points: Vec<_> = points.iter().copied().filter(is_usable).collect();
    let mut sorted = points.clone();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mean = |level: &[(f64, f64)]| level.iter().map(|p| p.1).sum::<f64>() / level.len() as f64;
    let means: Vec<f64> = sorted.chunk_by(|a, b| a.0 == b.0).map(mean).collect();
    if means.len() < MIN_LEVELS {
        return Err(UslError::TooFewLevels { distinct: means.len() });
    }
    let falling = UslError::Falling { lowest: sorted[0].0 };
    if means.iter().all(|&mean| mean <= means[0]) {
        return Err(falling);
    }
    // Normalized by the maximum, so that no tolerance depends on the caller's unit.
    let unit = points.iter().fold(0.0_f64, |max, p| max.max(p.1));
    let problem = Problem(points.iter().map(|&(n, x)| (n, x / unit)).collect());
    let Candidate { sigma, kappa, lambda, sse } = problem.solve();
    let peak = (kappa > KAPPA_ZERO).then(|| ((1.0 - sigma).max(0.0) / kappa).sqrt());
    if sigma >= UPPER || peak.is_some_and(|peak| peak <= sorted[0].0) {
        return Err(falling);
    }
    Ok(Usl { sigma, kappa, lambda: lambda * unit, r_squared: 1.0 - sse / problem.squares_about_mean(), peak })
}

/// `X(N) / lambda`: throughput relative to that of one request at a time.
fn capacity(sigma: f64, kappa: f64, n: f64) -> f64 {
    n / (1.0 + sigma * (n - 1.0) + kappa * n * (n - 1.0))
}

/// A point of the search, its best `lambda`, and the remaining squared error.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    sigma: f64,
    kappa: f64,
    lambda: f64,
    sse: f64,
}

struct Problem(Vec<(f64, f64)>);

impl Problem {
    fn at(&self, sigma: f64, kappa: f64) -> Candidate {
        let (mut fx, mut ff) = (0.0, 0.0);
        for &(n, x) in &self.0 {
            let f = capacity(sigma, kappa, n);
            fx += f * x;
            ff += f * f;
        }
        let lambda = fx / ff;
        let residual = |&(n, x): &(f64, f64)| x - lambda * capacity(sigma, kappa, n);
        let sse = self.0.iter().map(|p| residual(p).powi(2)).sum();
        Candidate { sigma, kappa, lambda, sse }
    }

    /// The best `kappa`, each evaluated with its best `sigma`. The grid of `kappa` has factors
    /// of about 3, since useful values span many powers of ten.
    fn solve(&self) -> Candidate {
        let tie = TIE * self.0.iter().map(|p| p.1 * p.1).sum::<f64>();
        let sigmas: Vec<f64> = (0..=20).map(|i| f64::from(i) / 20.0).collect();
        let powers = (0..=18).map(|i| 10_f64.powf(-9.0 + 0.5 * f64::from(i)));
        let kappas: Vec<f64> = std::iter::once(0.0).chain(powers).collect();
        least(&kappas, tie, |kappa| least(&sigmas, tie, |sigma| self.at(sigma, kappa)))
    }

    fn squares_about_mean(&self) -> f64 {
        let mean = self.0.iter().map(|p| p.1).sum::<f64>() / self.0.len() as f64;
        self.0.iter().map(|p| (p.1 - mean).powi(2)).sum()
    }
}

/// The candidate with the least error, by golden section (Kiefer 1953) around the best grid point;
/// or the grid's first point if it is as good, so that a parameter that is 0 comes out as exactly 0.
fn least(grid: &[f64], tie: f64, candidate: impl Fn(f64) -> Candidate) -> Candidate {
    let mut best = candidate(grid[0]);
    let (first, mut at) = (best, 0);
    for (index, &value) in grid.iter().enumerate() {
        let found = candidate(value);
        if found.sse < best.sse {
            (best, at) = (found, index);
        }
    }
    let (mut low, mut high) = (grid[at.saturating_sub(1)], grid[(at + 1).min(grid.len() - 1)]);
    let inside = |low: f64, high: f64| low + (high - low) * GOLDEN;
    let mut between = [inside(low, high), inside(high, low)];
    let mut found = between.map(&candidate);
    for _ in 0..STEPS {
        if found[0].sse <= found[1].sse {
            high = between[1];
            between = [inside(low, high), between[0]];
            found = [candidate(between[0]), found[0]];
        } else {
            low = between[0];
            between = [between[1], inside(high, low)];
            found = [found[1], candidate(between[1])];
        }
    }
    best = found.into_iter().fold(best, |best, found| if found.sse < best.sse { found } else { best });
    if first.sse <= best.sse + tie { first } else { best }
}
