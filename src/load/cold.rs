//! Detects an engine that was still getting faster while measured: a cold one compiles, fills caches or scales up.

use super::closed_loop::Window;
use crate::figures::student_t;

/// Minimum number of windows for a verdict. At least two of them must be at the final speed.
const FEWEST: usize = 4;
/// The slow windows are left out if keeping them would lower throughput by this factor, and if the
/// change has at most this probability of being chance. Over all checks of a level, a steady server
/// is taken for a cold one in some 1 to 2 % of runs (speed AR(1) 5 %, correlated over 100 requests).
const MATTERS: f64 = 1.03;
const BY_CHANCE: f64 = 0.001;
/// Lowest coefficient of variation assumed for the speed of a window.
const LEAST_CV: f64 = 0.05;

/// Requests per second before and after a change point, if the windows before it were clearly slower.
/// Based on time per token if token counts are known, so that answers of random length do not matter.
pub(super) fn was_cold(windows: &[Window]) -> Option<[f64; 2]> {
    let n = windows.len();
    let by_token = windows.iter().all(|of| of.tokens > 0.0);
    let paces: Vec<f64> = windows
        .iter()
        .map(|of| of.busy_s / if by_token { of.tokens } else { of.succeeded as f64 })
        .map(f64::ln)
        .collect();
    if n < FEWEST || !paces.iter().all(|pace| pace.is_finite()) {
        return None;
    }
    let freedom = (n - 2) as f64;
    let sure = student_t(freedom, 1.0 - BY_CHANCE)?;
    let all = mean(&paces);
    let change = |at: usize| {
        let (before, since) = paces.split_at(at);
        let squares = |of: &[f64]| of.iter().map(|pace| (pace - mean(of)).powi(2)).sum::<f64>();
        let variance = ((squares(before) + squares(since)) / freedom).max(LEAST_CV * LEAST_CV);
        let deviation = (variance * (1.0 / before.len() as f64 + 1.0 / since.len() as f64)).sqrt();
        let slower = (mean(before) - mean(since)) / deviation;
        (slower > sure && all - mean(since) > MATTERS.ln()).then_some((at, slower))
    };
    let (at, _) = (1..n - 1).filter_map(change).max_by(|one, other| one.1.total_cmp(&other.1))?;
    let rate = |of: &[Window]| {
        let succeeded: usize = of.iter().map(|window| window.succeeded).sum();
        succeeded as f64 / of.iter().map(Window::duration_s).sum::<f64>()
    };
    Some([rate(&windows[..at]), rate(&windows[at..])])
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
