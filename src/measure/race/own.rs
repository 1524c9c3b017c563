//! Decides without a curve: if none explains a server, its visits decide alone, level against level.

use statrs::distribution::{ContinuousCDF, Normal};

use super::evidence::Observed;
use super::likelihood::{Kind, without_curve};
use super::{ABOVE, KEEP};

/// By this many standard deviations one level is surely above another.
const SURELY: f64 = 3.0;

/// The smallest level that is good enough, judged only by the visits to each level.
pub(super) struct Own {
    pub pick: usize,
    /// The probability that it is good enough and not too high.
    pub probability: f64,
    pub is_sure: bool,
    /// The level that needs more visits.
    pub next: usize,
    pub interval: [usize; 2],
}

/// `in_time` says whether a level counts, given its index and its throughput.
pub(super) fn decide(
    observed: &Observed,
    kind: Kind,
    choices: &[usize],
    tolerance: f64,
    in_time: impl Fn(usize, f64) -> bool,
) -> Option<Own> {
    let (heights, covariance) = without_curve(observed, kind)?;
    let (m, levels) = (heights.len(), &observed.levels);
    let usable: Vec<usize> = (0..m).take_while(|&i| in_time(i, heights[i].exp())).collect();
    // By how many standard deviations level `i` is above this share of level `j`.
    let above = |i: usize, j: usize, share: f64| {
        let variance = covariance[i * m + i] + covariance[j * m + j] - 2.0 * covariance[i * m + j];
        (heights[i] - heights[j] - share.ln()) / variance.max(1e-12).sqrt()
    };
    let best = *usable.iter().max_by(|&&i, &&j| heights[i].total_cmp(&heights[j]))?;
    let pick = *usable.iter().find(|&&i| heights[i] >= heights[best] + (1.0 - tolerance).ln())?;
    let known =
        |i: usize| observed.points.iter().filter(|point| point.at == i).map(|point| 1.0 / point.own).sum::<f64>();
    let less_known = |i: usize, j: usize| levels[if known(i) < known(j) { i } else { j }];
    // The level against which `i` is least surely good enough.
    let keeps = |i: usize| {
        let others = usable.iter().copied().filter(move |&j| j != i).map(move |j| (j, above(i, j, KEEP)));
        others.min_by(|a, b| a.1.total_cmp(&b.1))
    };
    let refuted = |i: usize| above(best, i, 1.0 / (1.0 - tolerance));
    // The pick is not too high if a level below it, but not below `floor`, is surely too low.
    let floor = choices.iter().copied().rfind(|&choice| ABOVE * (choice as f64) < levels[pick] as f64);
    let below = floor.map(|floor| {
        let seen = usable.iter().copied().filter(|&i| levels[i] >= floor && i < pick).map(|i| (i, refuted(i)));
        seen.max_by(|a, b| a.1.total_cmp(&b.1)).map_or((floor, 0.0), |(i, by)| (less_known(i, best), by))
    });
    let rival = keeps(pick).map(|(j, by)| (less_known(pick, j), by));
    let open = [below, rival].into_iter().flatten().min_by(|a, b| a.1.total_cmp(&b.1));
    let (next, by) = open.unwrap_or((levels[pick], f64::INFINITY));
    let low = usable.iter().copied().take_while(|&i| i < pick).filter(|&i| refuted(i) >= 2.0).last();
    let low =
        low.map_or(levels[0], |i| choices.iter().copied().find(|&choice| choice > levels[i]).unwrap_or(levels[pick]));
    let high = usable.iter().copied().filter(|&i| i >= pick).find(|&i| keeps(i).is_none_or(|(_, by)| by >= 2.0));
    let high = high.or(usable.last().copied()).map_or(levels[pick], |i| levels[i]);
    Some(Own {
        pick: levels[pick],
        probability: Normal::standard().cdf(by),
        is_sure: by >= SURELY,
        next,
        interval: [low.min(levels[pick]), high],
    })
}
