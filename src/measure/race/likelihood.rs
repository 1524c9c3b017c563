//! How likely each curve is, given all visits: a Gaussian process in time for the server's speed, and the curve's own
//! error, by level.

use super::evidence::Observed;

/// The server's speed: coefficient of variation, and over how many service times it is the same (an Ornstein-Uhlenbeck
/// process). What these are is not known; the likelihood is averaged over them.
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
/// A cold engine is slow up to some moment, in service times, and nobody knows by how much. It is taken for cold where
/// that is so many times likelier than that it is as fast as later, at first and from then on.
const COLD_UNTIL: [f64; 3] = [12.0, 24.0, 40.0];
const COLD_SPEEDS: [usize; 3] = [1, 3, 6];
const COLD_CV: f64 = 0.35;
const COLD_SURE: [f64; 2] = [100.0, 1.0];

/// How far a curve may lie from the truth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Misfit {
    /// Standard deviation of the logarithm of a level's throughput.
    pub sigma: f64,
    /// Levels that are this far apart, as a logarithm, err together; 0 where each errs by itself.
    pub reach: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Kind {
    cv: f64,
    correlation: f64,
    cold_until: f64,
}

pub(super) fn kinds() -> Vec<Kind> {
    SPEEDS.map(|(cv, correlation)| Kind { cv, correlation, cold_until: 0.0 }).into()
}

/// Until when the engine was cold, in service times, where that is far likelier than that it never was.
pub(super) fn cold_until(observed: &Observed, columns: &[&Vec<f64>], curves: &[usize], was_cold: bool) -> Option<f64> {
    let kind = |cold_until| COLD_SPEEDS.map(|at| Kind { cold_until, ..kinds()[at] });
    let all: Vec<Kind> = [0.0].into_iter().chain(COLD_UNTIL).flat_map(kind).collect();
    let (_, by_kind) = weigh(observed, columns, curves, &all, Misfit { sigma: 0.02, reach: 0.0 });
    let sums: Vec<f64> = by_kind.chunks(COLD_SPEEDS.len()).map(|of| of.iter().sum()).collect();
    let most = (1..sums.len()).max_by(|&a, &b| sums[a].total_cmp(&sums[b]))?;
    (sums[most] > COLD_SURE[usize::from(was_cold)] * sums[0]).then_some(COLD_UNTIL[most - 1])
}

/// Of each curve and of each kind of noise, up to one factor. `columns` are the logarithms of all curves at the levels
/// that were observed; `curves` says which of them count.
pub(super) fn weigh(
    observed: &Observed,
    columns: &[&Vec<f64>],
    curves: &[usize],
    kinds: &[Kind],
    misfit: Misfit,
) -> (Vec<f64>, Vec<f64>) {
    let m = columns.len();
    let mut logs = vec![f64::NEG_INFINITY; curves.len() * kinds.len()];
    let mut h = vec![0.0; m];
    for (kind, part) in kinds.iter().zip(logs.chunks_exact_mut(curves.len().max(1))) {
        let Some(facts) = Facts::new(observed, *kind, misfit) else { continue };
        let a = &facts.precision;
        let row: Vec<f64> = (0..m).map(|i| a[i * m..(i + 1) * m].iter().sum()).collect();
        let total: f64 = row.iter().sum();
        let weighted: f64 = facts.weighted.iter().sum();
        for (&at, log) in curves.iter().zip(part) {
            for (h, column) in h.iter_mut().zip(columns) {
                *h = column[at];
            }
            let (mut linear, mut residual, mut square) = (0.0, weighted, 0.0);
            for i in 0..m {
                linear += h[i] * facts.weighted[i];
                residual -= h[i] * row[i];
                let below: f64 = a[i * m..i * m + i].iter().zip(&h).map(|(a, h)| a * h).sum();
                square += h[i] * (2.0 * below + a[i * m + i] * h[i]);
            }
            // The height of the curve is free: it is integrated out.
            let q = facts.square - 2.0 * linear + square - residual * residual / total;
            *log = -0.5 * (q + facts.log_det + total.ln());
        }
    }
    let highest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut by_curve, mut by_kind) = (vec![0.0; curves.len()], vec![0.0; kinds.len()]);
    for (of_kind, part) in by_kind.iter_mut().zip(logs.chunks_exact(curves.len().max(1))) {
        for (of_curve, log) in by_curve.iter_mut().zip(part) {
            let likelihood = (log - highest).exp();
            *of_curve += likelihood;
            *of_kind += likelihood;
        }
    }
    (by_curve, by_kind)
}

/// The visits reduced to their levels, with the inverse of their covariance.
struct Facts {
    precision: Vec<f64>,
    weighted: Vec<f64>,
    square: f64,
    log_det: f64,
}

impl Facts {
    fn new(observed: &Observed, kind: Kind, misfit: Misfit) -> Option<Self> {
        let (points, m) = (&observed.points, observed.levels.len());
        let n = points.len();
        let mut s = vec![0.0; n * n];
        for (i, a) in points.iter().enumerate() {
            for (j, b) in points[..=i].iter().enumerate() {
                let mut covariance = kind.cv.powi(2) * (-(a.time - b.time).abs() / kind.correlation).exp();
                if a.at == b.at {
                    covariance += misfit.sigma.powi(2);
                } else if misfit.reach > 0.0 {
                    let apart = (observed.levels[a.at] as f64 / observed.levels[b.at] as f64).ln().abs();
                    covariance += misfit.sigma.powi(2) * (-apart / misfit.reach).exp();
                }
                if a.time < kind.cold_until && b.time < kind.cold_until {
                    covariance += COLD_CV.powi(2);
                }
                s[i * n + j] = covariance + if i == j { a.own } else { 0.0 };
            }
        }
        let log_det = cholesky(&mut s, n)?;
        // Columns: one per level, and the figures.
        let mut solved = vec![vec![0.0; n]; m + 1];
        for (row, point) in points.iter().enumerate() {
            solved[point.at][row] = 1.0;
            solved[m][row] = point.log;
        }
        for column in &mut solved {
            for i in 0..n {
                let known: f64 = s[i * n..i * n + i].iter().zip(&column[..i]).map(|(s, c)| s * c).sum();
                column[i] = (column[i] - known) / s[i * n + i];
            }
        }
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut precision = vec![0.0; m * m];
        for i in 0..m {
            for j in 0..=i {
                precision[i * m + j] = dot(&solved[i], &solved[j]);
                precision[j * m + i] = precision[i * m + j];
            }
        }
        let weighted = (0..m).map(|i| dot(&solved[i], &solved[m])).collect();
        Some(Facts { precision, weighted, square: dot(&solved[m], &solved[m]), log_det })
    }
}

/// In place, the lower triangle; gives the logarithm of the determinant.
fn cholesky(s: &mut [f64], n: usize) -> Option<f64> {
    let mut log_det = 0.0;
    for i in 0..n {
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| s[i * n + k] * s[j * n + k]).sum();
            let left = s[i * n + j] - known;
            if i > j {
                s[i * n + j] = left / s[j * n + j];
            } else if left > 0.0 {
                s[i * n + i] = left.sqrt();
                log_det += left.ln();
            } else {
                return None;
            }
        }
    }
    Some(log_det)
}
