//! The likelihood of each curve, given all visits. The server's speed is a Gaussian process in
//! time; in addition, each level deviates from the curve.

use super::curves::{Column, FAMILY};
use super::evidence::Observed;

/// Models of the server's speed: coefficient of variation, and correlation time in service times (an
/// Ornstein-Uhlenbeck process). The true values are unknown; the likelihood is averaged over these.
const SPEEDS: [(f64, f64); 10] = [
    (0.01, 20.0),
    (0.03, 4.0),
    (0.03, 20.0),
    (0.03, 100.0),
    (0.06, 4.0),
    (0.06, 20.0),
    (0.06, 100.0),
    (0.12, 4.0),
    (0.12, 20.0),
    (0.12, 100.0),
];
/// A cold engine is slow until some moment, in service times, by an unknown amount. It is considered cold if
/// that is `COLD_SURE` times likelier than one speed throughout: first to be found cold, then to stay so.
const COLD_UNTIL: [f64; 5] = [10.0, 14.0, 20.0, 28.0, 40.0];
const COLD_SPEEDS: [usize; 3] = [1, 3, 6];
const COLD_CV: f64 = 0.35;
const COLD_SURE: [f64; 2] = [100.0, 1.0];

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Kind {
    cv: f64,
    correlation: f64,
    cold_until: f64,
}

pub(super) fn kinds() -> Vec<Kind> {
    SPEEDS.map(|(cv, correlation)| Kind { cv, correlation, cold_until: 0.0 }).into()
}

/// Until when the engine was cold, in service times, if that is far likelier than that it never was.
pub(super) fn cold_until(observed: &Observed, curves: &[usize], was_cold: bool) -> Option<f64> {
    let kind = |cold_until| COLD_SPEEDS.map(|at| Kind { cold_until, ..kinds()[at] });
    let all: Vec<Kind> = [0.0].into_iter().chain(COLD_UNTIL).flat_map(kind).collect();
    let by_kind = weigh(observed, curves, &all, 0.02).by_kind;
    let sums: Vec<f64> = by_kind.chunks(COLD_SPEEDS.len()).map(|of| of.iter().sum()).collect();
    let most = (1..sums.len()).max_by(|&a, &b| sums[a].total_cmp(&sums[b]))?;
    (sums[most] > COLD_SURE[usize::from(was_cold)] * sums[0]).then_some(COLD_UNTIL[most - 1])
}

/// Log throughputs as shown by each level's own visits, without any curve, and their covariance.
pub(super) fn without_curve(observed: &Observed, kind: Kind) -> Option<(Vec<f64>, Vec<f64>)> {
    let m = observed.levels.len();
    let (a, _) = innovations(observed, kind);
    let (width, wide) = (m + 2, 2 * m + 1);
    let mut system = vec![0.0; m * wide];
    for (i, row) in system.chunks_exact_mut(wide).enumerate() {
        row[..m].copy_from_slice(&a[i * width..i * width + m]);
        row[m + i] = 1.0;
        row[2 * m] = a[i * width + m + 1];
    }
    solve(&mut system, m)?;
    let heights = (0..m).map(|i| system[i * wide + 2 * m]).collect();
    Some((heights, (0..m * m).map(|k| system[k / m * wide + m + k % m]).collect()))
}

/// Number of curves that are weighed at once.
const LANES: usize = 8;

/// Likelihoods of each curve and of each kind of noise, up to a common factor whose logarithm is `log`.
pub(super) struct Weighed {
    pub by_curve: Vec<f64>,
    pub by_kind: Vec<f64>,
    log: f64,
}

impl Weighed {
    /// Log likelihood of all these curves together, weighted by their priors.
    pub fn evidence(&self, curves: &[usize]) -> f64 {
        let prior = |&curve: &usize| FAMILY[curve].prior;
        let sum: f64 = curves.iter().zip(&self.by_curve).map(|(curve, likelihood)| prior(curve) * likelihood).sum();
        self.log + sum.ln()
    }
}

/// Computes the likelihood of each curve and of each kind of noise. `misfit` is the standard
/// deviation of a level's log throughput around the true curve.
pub(super) fn weigh(observed: &Observed, curves: &[usize], kinds: &[Kind], misfit: f64) -> Weighed {
    let columns: Vec<Column> = observed.levels.iter().map(|&level| super::curves::at_level(level)).collect();
    let facts: Vec<Option<Facts>> = kinds.iter().map(|kind| Facts::new(observed, *kind, misfit)).collect();
    let mut logs = vec![f64::NEG_INFINITY; curves.len() * kinds.len()];
    let mut heights = vec![[0.0; LANES]; columns.len()];
    for (chunk, lanes) in curves.chunks(LANES).enumerate() {
        for (height, column) in heights.iter_mut().zip(&columns) {
            height.iter_mut().zip(lanes).for_each(|(height, &curve)| *height = column[curve]);
        }
        for (kind, facts) in facts.iter().enumerate().filter_map(|(kind, facts)| Some((kind, facts.as_ref()?))) {
            let log = facts.log_likelihoods(&heights);
            let from = kind * curves.len() + chunk * LANES;
            logs[from..from + lanes.len()].copy_from_slice(&log[..lanes.len()]);
        }
    }
    let highest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut by_curve, mut by_kind) = (vec![0.0; curves.len()], vec![0.0; kinds.len()]);
    for (of_kind, part) in by_kind.iter_mut().zip(logs.chunks_exact(curves.len().max(1))) {
        for (of_curve, log) in by_curve.iter_mut().zip(part).filter(|(_, log)| **log > highest - 100.0) {
            let likelihood = (log - highest).exp();
            *of_curve += likelihood;
            *of_kind += likelihood;
        }
    }
    Weighed { by_curve, by_kind, log: highest }
}

/// The visits reduced to their levels: the likelihood of log throughputs `h` is that of a
/// Gaussian with this precision. The overall height of the curve is free and integrated out.
struct Facts {
    precision: Vec<f64>,
    weighted: Vec<f64>,
    constant: f64,
}

impl Facts {
    fn new(observed: &Observed, kind: Kind, misfit: f64) -> Option<Self> {
        let (m, off) = (observed.levels.len(), misfit * misfit);
        let (a, log_det) = innovations(observed, kind);
        let (width, wide) = (m + 2, 2 * m + 1);
        // (I + A S) x = (A, b), where S is the covariance of the misfit.
        let mut system = vec![0.0; m * wide];
        for (i, row) in system.chunks_exact_mut(wide).enumerate() {
            for j in 0..m {
                row[j] = off * a[i * width + j] + f64::from(u8::from(i == j));
                row[m + j] = a[i * width + j];
            }
            row[2 * m] = a[i * width + m + 1];
        }
        let mut constant = log_det + solve(&mut system, m)? + a[(m + 1) * width + m + 1];
        let solved = |i: usize, j: usize| system[i * wide + m + j];
        constant -= (0..m).map(|i| off * a[i * width + m + 1] * solved(i, m)).sum::<f64>();
        let row: Vec<f64> = (0..m).map(|i| (0..m).map(|j| solved(i, j)).sum()).collect();
        let (total, weighted) = (row.iter().sum::<f64>(), (0..m).map(|i| solved(i, m)).sum::<f64>());
        constant += total.ln() - weighted * weighted / total;
        let at = |k: usize| solved(k / m, k % m) - row[k / m] * row[k % m] / total;
        Some(Facts {
            precision: (0..m * m).map(at).collect(),
            weighted: (0..m).map(|i| solved(i, m) - row[i] * weighted / total).collect(),
            constant,
        })
    }

    fn log_likelihoods(&self, heights: &[[f64; LANES]]) -> [f64; LANES] {
        let mut q = [self.constant; LANES];
        for (i, (height, row)) in heights.iter().zip(self.precision.chunks_exact(heights.len())).enumerate() {
            let mut sum: [f64; LANES] = std::array::from_fn(|lane| row[i] * height[lane] - 2.0 * self.weighted[i]);
            for (below, &a) in heights[..i].iter().zip(row) {
                for lane in 0..LANES {
                    sum[lane] += 2.0 * a * below[lane];
                }
            }
            for lane in 0..LANES {
                q[lane] += height[lane] * sum[lane];
            }
        }
        q.map(|q| -0.5 * q)
    }
}

/// Predicts each visit from those before it (Kalman 1960). Returns the sums of squares and
/// products of the errors, over their variances, for all levels, the effect of a cold engine,
/// and the log throughputs; and the logarithm of the determinant.
fn innovations(observed: &Observed, kind: Kind) -> (Vec<f64>, f64) {
    let m = observed.levels.len();
    let width = m + 2;
    let (mut sums, mut log_det) = (vec![0.0; width * width], 0.0);
    let (mut foreseen, mut error) = (vec![0.0; width], vec![0.0; width]);
    let (mut speed, mut last) = (kind.cv.powi(2), f64::NEG_INFINITY);
    for point in &observed.points {
        let kept = (-(point.time - last).max(0.0) / kind.correlation).exp();
        last = point.time;
        speed = kept * kept * speed + (1.0 - kept * kept) * kind.cv.powi(2);
        error.iter_mut().zip(&foreseen).for_each(|(error, foreseen)| *error = -kept * foreseen);
        error[point.at] += 1.0;
        error[m] += f64::from(u8::from(point.time < kind.cold_until));
        error[m + 1] += point.log;
        let variance = speed + point.own;
        log_det += variance.ln();
        for i in 0..width {
            let scaled = error[i] / variance;
            sums[i * width..(i + 1) * width].iter_mut().zip(&error).for_each(|(sum, error)| *sum += scaled * error);
        }
        let gain = speed / variance;
        for (foreseen, error) in foreseen.iter_mut().zip(&error) {
            *foreseen = kept * *foreseen + gain * error;
        }
        speed *= 1.0 - gain;
    }
    // The effect of a cold engine is unknown, so it is integrated out.
    let cold: Vec<f64> = sums[m * width..(m + 1) * width].to_vec();
    let precision = cold[m] + COLD_CV.powi(-2);
    for i in 0..width {
        for j in 0..width {
            sums[i * width + j] -= cold[i] * cold[j] / precision;
        }
    }
    (sums, log_det + (precision * COLD_CV.powi(2)).ln())
}

/// Gauss-Jordan elimination of the first `m` columns, in place; returns the logarithm of the determinant.
fn solve(system: &mut [f64], m: usize) -> Option<f64> {
    let width = system.len() / m;
    let mut log_det = 0.0;
    for at in 0..m {
        let most = (at..m).max_by(|&a, &b| system[a * width + at].abs().total_cmp(&system[b * width + at].abs()))?;
        if most != at {
            (0..width).for_each(|k| system.swap(at * width + k, most * width + k));
        }
        let pivot = system[at * width + at];
        log_det += pivot.abs().ln();
        let row: Vec<f64> = system[at * width..(at + 1) * width].iter().map(|value| value / pivot).collect();
        for (i, other) in system.chunks_exact_mut(width).enumerate() {
            let factor = if i == at { other[at] - 1.0 } else { other[at] };
            other.iter_mut().zip(&row).for_each(|(value, row)| *value -= factor * row);
        }
    }
    log_det.is_finite().then_some(log_det)
}
