//! The Universal Scalability Law, fitted to measured throughput. Pure: numbers in, numbers out.
//!
//! ```text
//!                    lambda N
//! X(N) = ----------------------------------
//!        1 + sigma (N - 1) + kappa N (N - 1)
//! ```
//!
//! `N` is the concurrency, `X` the throughput. `lambda` is the throughput of one request at a time, `sigma` the
//! contention (the share of the work that waits in line), `kappa` the crosstalk (what each request costs every
//! other). Source: N. J. Gunther, *Guerrilla Capacity Planning*, Springer 2007, chapters 4 to 6; the three-parameter
//! form with `lambda` is that of B. Schwartz, *Practical Scalability Analysis with the Universal Scalability Law*,
//! 2015.
//!
//! The fit is ordinary least squares in `X` with `sigma` and `kappa` in \[0, 1\] and `lambda` > 0: the same problem
//! that R's package `usl` (2.0 and later) hands to `nls(algorithm = "port")` or to `nlxb`, so its published figures
//! serve as the reference in the tests.

use serde::{Deserialize, Serialize};

/// The fewest distinct levels that determine three parameters. At exactly three the curve passes through the
/// points, so `r_squared` is near 1 and proves nothing.
pub const MIN_LEVELS: usize = 3;

/// Of `sigma` and of `kappa`; the lower bound is 0.
const UPPER: f64 = 1.0;

/// Below this `kappa` there is no peak to speak of: it would lie beyond a concurrency of a hundred thousand.
const KAPPA_ZERO: f64 = 1e-10;

/// Two fits whose squared errors differ by less than this share of the sum of squares are equally good, and the
/// simpler one (a parameter exactly 0) is taken. It is far below what any measurement resolves.
const TIE: f64 = 1e-20;

/// The field names are the symbols of the literature.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Usl {
    /// Contention, a fraction between 0 and 1.
    pub sigma: f64,
    /// Crosstalk (coherency delay) per pair, between 0 and 1.
    pub kappa: f64,
    /// Throughput at a concurrency of 1, in the unit of the throughput that was given (requests per second).
    pub lambda: f64,
    /// Share of the variance of the throughput about its mean that the curve explains: 1 is a perfect fit, and it
    /// is negative where the mean itself would have been a better curve.
    pub r_squared: f64,
    /// Where the curve is highest: `N* = sqrt((1 - sigma) / kappa)`, maybe far outside the measured levels. `None` where
    /// `kappa` is 0 or as good as 0: the curve then rises towards `lambda / sigma` and never falls.
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
        "the USL curve needs at least {MIN_LEVELS} distinct concurrency levels, and there are {distinct}: measure \
         more levels"
    )]
    TooFewLevels { distinct: usize },
    /// Nothing is faster than the lowest level, in the data or on the fitted curve.
    #[error(
        "the throughput is falling: no level does better than the lowest one (concurrency {lowest}), so a USL curve \
         says nothing on a peak; measure lower levels, if there are any"
    )]
    Falling { lowest: f64 },
}

/// Fits the law to `(concurrency, throughput)` points by least squares in throughput.
///
/// Several points of one level are all used; points whose numbers are not finite and positive are left out. For a given
/// `(sigma, kappa)` the best `lambda` has a closed form, so the search has two dimensions (variable projection, Golub and
/// Pereyra 1973): a grid over the whole box finds where to start, and a Levenberg-Marquardt search from the best cells and
/// along the edges of the box finishes.
///
/// [`UslError::Falling`] where the lowest level is the best one, or the fitted curve is highest at or below it.
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
    // Divided by their maximum, so that no tolerance depends on the caller's unit.
    let unit = points.iter().fold(0.0_f64, |max, p| max.max(p.1));
    let problem = Problem(points.iter().map(|&(n, x)| (n, x / unit)).collect());
    let Candidate { sigma, kappa, lambda, sse } = problem.solve();
    let peak = (kappa > KAPPA_ZERO).then(|| ((1.0 - sigma).max(0.0) / kappa).sqrt());
    if sigma >= UPPER || peak.is_some_and(|peak| peak <= sorted[0].0) {
        return Err(falling);
    }
    Ok(Usl { sigma, kappa, lambda: lambda * unit, r_squared: 1.0 - sse / problem.squares_about_mean(), peak })
}

/// `X(N) / lambda`: throughput in units of that of one request at a time.
fn capacity(sigma: f64, kappa: f64, n: f64) -> f64 {
    n / (1.0 + sigma * (n - 1.0) + kappa * n * (n - 1.0))
}

/// A point of the search, its best `lambda`, and the squared error that is left.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    sigma: f64,
    kappa: f64,
    lambda: f64,
    sse: f64,
}

/// Which of `(sigma, kappa)` a search may move; the others stay where they start.
type Free = [bool; 2];

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

    /// The best of a search over the whole box and of one along each of its lower edges. The edges are searched
    /// by themselves so that a parameter which is 0 comes out as exactly 0, not as a rounding error.
    fn solve(&self) -> Candidate {
        let grid = self.grid();
        let mut best = self.at(0.0, 0.0);
        let tie = TIE * self.0.iter().map(|p| p.1 * p.1).sum::<f64>();
        for free in [[true, false], [false, true], [true, true]] {
            let may_start = |c: &&Candidate| (free[0] || c.sigma == 0.0) && (free[1] || c.kappa == 0.0);
            for start in grid.iter().filter(may_start).take(3) {
                let found = self.descend(*start, free);
                if found.sse + tie < best.sse {
                    best = found;
                }
            }
        }
        best
    }

    /// Starting points over the box, best first: `sigma` evenly, `kappa` by factors of about 3, since useful values
    /// span many powers of ten.
    fn grid(&self) -> Vec<Candidate> {
        let sigmas = (0..=20).map(|i| f64::from(i) / 20.0);
        let powers = (0..=18).map(|i| 10_f64.powf(-9.0 + 0.5 * f64::from(i)));
        let kappas: Vec<f64> = std::iter::once(0.0).chain(powers).collect();
        let mut grid: Vec<_> =
            sigmas.flat_map(|sigma| kappas.iter().map(move |&kappa| self.at(sigma, kappa))).collect();
        grid.sort_by(|a, b| a.sse.total_cmp(&b.sse));
        grid
    }

    /// Levenberg-Marquardt inside the box, with Marquardt's scaling by the diagonal (the two parameters differ by
    /// powers of ten). A step that leaves the box is cut back to its wall.
    fn descend(&self, start: Candidate, free: Free) -> Candidate {
        let mut best = start;
        let mut damping = 1e-3;
        for _ in 0..500 {
            let Some(step) = self.step(&best, free, damping) else { break };
            let next = self.at((best.sigma + step[0]).clamp(0.0, UPPER), (best.kappa + step[1]).clamp(0.0, UPPER));
            let settled = close(next.sigma, best.sigma) && close(next.kappa, best.kappa);
            if next.sse < best.sse {
                best = next;
                damping = (damping * 0.2).max(1e-15);
            } else {
                damping *= 5.0;
            }
            if settled || damping > 1e15 {
                break;
            }
        }
        best
    }

    /// Solves the damped normal equations for the parameters that may move: free, and not at a wall with the descent
    /// pointing through it. `None` where none can.
    ///
    /// The Jacobian is that of variable projection in Kaufman's form (1975): the derivative of the curve less its part
    /// along the curve, which `lambda` takes up. Its gradient is exact.
    fn step(&self, at: &Candidate, free: Free, damping: f64) -> Option<[f64; 2]> {
        // f = X / lambda with its derivatives by sigma and by kappa.
        let derivatives = |&(n, _): &(f64, f64)| {
            let f = capacity(at.sigma, at.kappa, n);
            let by_sigma = -f * f * (n - 1.0) / n;
            [f, by_sigma, by_sigma * n]
        };
        let rows: Vec<[f64; 3]> = self.0.iter().map(derivatives).collect();
        let ff: f64 = rows.iter().map(|r| r[0] * r[0]).sum();
        let along = [1, 2].map(|k| rows.iter().map(|r| r[0] * r[k]).sum::<f64>() / ff);
        // The gradient (half of it, downhill) and the approximate Hessian.
        let (mut g, mut h) = ([0.0; 2], [[0.0; 2]; 2]);
        for (row, &(_, x)) in rows.iter().zip(&self.0) {
            let residual = x - at.lambda * row[0];
            let j = [0, 1].map(|k| at.lambda * (row[k + 1] - along[k] * row[0]));
            for a in 0..2 {
                g[a] += j[a] * residual;
                for b in 0..2 {
                    h[a][b] += j[a] * j[b];
                }
            }
        }
        let may_move =
            |value: f64, downhill: f64| !(value <= 0.0 && downhill < 0.0 || value >= UPPER && downhill > 0.0);
        let d = [h[0][0] * (1.0 + damping), h[1][1] * (1.0 + damping)];
        let step = match (free[0] && may_move(at.sigma, g[0]), free[1] && may_move(at.kappa, g[1])) {
            (true, true) => {
                let determinant = d[0] * d[1] - h[0][1] * h[1][0];
                [(g[0] * d[1] - h[0][1] * g[1]) / determinant, (d[0] * g[1] - h[1][0] * g[0]) / determinant]
            }
            (true, false) => [g[0] / d[0], 0.0],
            (false, true) => [0.0, g[1] / d[1]],
            (false, false) => return None,
        };
        step.iter().all(|s| s.is_finite()).then_some(step)
    }

    fn squares_about_mean(&self) -> f64 {
        let mean = self.0.iter().map(|p| p.1).sum::<f64>() / self.0.len() as f64;
        self.0.iter().map(|p| (p.1 - mean).powi(2)).sum()
    }
}

/// Equal to about thirteen digits, or both as good as 0.
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-13 * a.abs().max(b.abs()) + 1e-18
}
