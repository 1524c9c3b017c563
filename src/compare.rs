//! Two recommendations of the same server at different times: what became slower or faster. Pure.
//!
//! A change counts as real where the interval on the ratio of the two throughputs leaves out 1. Of independent
//! estimates with relative half-widths `a` and `b` that interval is about `ratio x (1 ± sqrt(a² + b²))` (delta
//! method). The intervals are widened so that all comparisons of a run hold together with 95 % (Bonferroni):
//! ten levels would otherwise raise a false alarm in one run of four.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, Normal};

use crate::recommend::{JudgedLevel, Objective, Recommendation, Verdict, half_width, passing, percent, value};

/// How a figure moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moved {
    /// Up, beyond what noise explains.
    Faster,
    /// Down, beyond what noise explains.
    Slower,
    /// No further than noise explains.
    NotShown,
}

/// A throughput then and now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The level it was measured at in the baseline.
    pub concurrency_before: usize,
    /// The level it is measured at now.
    pub concurrency_now: usize,
    /// Requests (or output tokens) per second in the baseline.
    pub before: f64,
    /// The same now.
    pub now: f64,
    /// `now / before - 1`.
    pub change: f64,
    /// The interval on `change`; `None` where one of the two has none.
    pub interval: Option<[f64; 2]>,
    /// What that shows.
    pub moved: Moved,
}

/// All that moved between a baseline and now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// What it is compared with, in words.
    pub title: String,
    /// What the figures are counted in.
    pub unit: &'static str,
    /// Levels that could be used in both, ascending.
    pub levels: Vec<Change>,
    /// The best passing level of each.
    pub best: Option<Change>,
    /// The recommended level of each.
    pub recommended: Option<Change>,
    /// What counts as a regression, a sentence each; always empty without a threshold.
    pub regressions: Vec<String>,
}

/// Compares. With `threshold` (a fraction), a throughput that is really lower by more than that is a regression; so
/// is a recommended level of the baseline that fails a gate now, and a recommendation where none can be given any more.
///
/// Where an interval is missing, the threshold decides alone.
pub fn compare(
    before: &Recommendation,
    now: &Recommendation,
    objective: Objective,
    threshold: Option<f64>,
) -> Comparison {
    let pairs: Vec<_> = used(before).filter_map(|old| Some((old, level(now, old.summary.concurrency)?))).collect();
    let widen = widening(pairs.len() + 2);
    let change = |(old, new): (&JudgedLevel, &JudgedLevel)| change(old, new, objective, widen);
    let picked = |decided: &Recommendation| decided.recommended_concurrency;
    let at_pick = |decided| level(decided, picked(decided)?);
    let mut comparison = Comparison {
        title: String::new(),
        unit: objective.unit(),
        levels: pairs.into_iter().filter_map(change).collect(),
        best: best(before, objective).zip(best(now, objective)).and_then(change),
        recommended: at_pick(before).zip(at_pick(now)).and_then(change),
        regressions: Vec::new(),
    };
    if let Some(threshold) = threshold {
        comparison.regressions = regressions(&comparison, before, now, threshold);
    }
    comparison
}

fn used(decided: &Recommendation) -> impl Iterator<Item = &JudgedLevel> {
    decided.levels.iter().filter(|level| level.verdict != Verdict::NotUsed)
}

fn level(decided: &Recommendation, concurrency: usize) -> Option<&JudgedLevel> {
    used(decided).find(|level| level.summary.concurrency == concurrency)
}

fn best(decided: &Recommendation, objective: Objective) -> Option<&JudgedLevel> {
    let value = |level: &&JudgedLevel| value(&level.summary, objective).unwrap_or_default();
    passing(&decided.levels).max_by(|a, b| value(a).total_cmp(&value(b)))
}

/// By what the half-width of a 95 % interval is multiplied so that `comparisons` of them hold together.
fn widening(comparisons: usize) -> f64 {
    let normal = Normal::standard();
    normal.inverse_cdf(1.0 - 0.025 / comparisons as f64) / normal.inverse_cdf(0.975)
}

fn change(old: &JudgedLevel, new: &JudgedLevel, objective: Objective, widen: f64) -> Option<Change> {
    let (before, now) = (value(&old.summary, objective)?, value(&new.summary, objective)?);
    let ratio = now / before;
    let noise = half_width(&old.summary).zip(half_width(&new.summary)).map(|(a, b)| widen * a.hypot(b));
    let interval = noise.map(|noise| [ratio * (1.0 - noise) - 1.0, ratio * (1.0 + noise) - 1.0]);
    let moved = match interval {
        Some([low, _]) if low > 0.0 => Moved::Faster,
        Some([_, high]) if high < 0.0 => Moved::Slower,
        _ => Moved::NotShown,
    };
    let (concurrency_before, concurrency_now) = (old.summary.concurrency, new.summary.concurrency);
    Some(Change { concurrency_before, concurrency_now, before, now, change: ratio - 1.0, interval, moved })
}

fn regressions(comparison: &Comparison, before: &Recommendation, now: &Recommendation, threshold: f64) -> Vec<String> {
    let fell = |change: &Change| {
        let real = change.interval.is_none() || change.moved == Moved::Slower;
        (real && change.change < -threshold).then(|| format!("fell by {}", percent(-change.change)))
    };
    let mut found: Vec<String> = Vec::new();
    let mut add = |what: String, change: Option<&Change>| {
        found.extend(change.and_then(fell).map(|fell| format!("{what} {fell}")));
    };
    add("the best throughput".to_owned(), comparison.best.as_ref());
    add("the throughput at the recommended level".to_owned(), comparison.recommended.as_ref());
    for change in &comparison.levels {
        add(format!("the throughput at level {}", change.concurrency_before), Some(change));
    }
    if let Some(pick) = before.recommended_concurrency {
        match level(now, pick) {
            Some(level) if level.verdict == Verdict::Fail => {
                found.push(format!("level {pick}, recommended before, fails now: {}", level.why));
            }
            _ => {}
        }
        if now.recommended_concurrency.is_none() {
            found.push(format!("{pick} was recommended before, now nothing can be: {}", now.reason));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recommend::{Policy, recommend};
    use crate::stats::{Distribution, Estimate, LevelSummary};

    /// Levels with this throughput, known to ± this share, and this error rate.
    fn decided(levels: &[(usize, f64, f64)], half_width: f64) -> Recommendation {
        let summary = |&(level, rps, errors): &(usize, f64, f64)| LevelSummary {
            concurrency: level,
            requests: Some(1000),
            succeeded: Some((1000.0 * (1.0 - errors)) as u64),
            throughput_rps: Some(Estimate {
                estimate: rps,
                lower: Some(rps * (1.0 - half_width)),
                upper: Some(rps * (1.0 + half_width)),
            }),
            latency_s: Some(Distribution { mean: Some(1.0), p95: Some(1.0), ..Distribution::default() }),
            ..LevelSummary::default()
        };
        recommend(&levels.iter().map(summary).collect::<Vec<_>>(), &Policy::default())
    }

    const BEFORE: [(usize, f64, f64); 4] = [(1, 5.0, 0.0), (10, 45.0, 0.0), (20, 80.0, 0.0), (40, 81.0, 0.0)];

    fn against(now: &[(usize, f64, f64)], half_width: f64, threshold: f64) -> Comparison {
        let before = decided(&BEFORE, half_width);
        compare(&before, &decided(now, half_width), Objective::Requests, Some(threshold))
    }

    fn scaled(factor: f64) -> Vec<(usize, f64, f64)> {
        BEFORE.iter().map(|&(level, rps, errors)| (level, rps * factor, errors)).collect()
    }

    #[test]
    fn the_same_again_is_no_change() {
        let same = against(&BEFORE, 0.03, 0.10);
        assert!(same.regressions.is_empty());
        assert!(same.levels.iter().all(|change| change.moved == Moved::NotShown && change.change == 0.0));
        assert_eq!(same.best.map(|best| (best.concurrency_before, best.now)), Some((40, 81.0)));
    }

    #[test]
    fn a_fall_counts_when_it_is_real_and_beyond_the_threshold() {
        // 15 % slower with figures known to 3 %: seen in every level, the best and the recommended one.
        let slower = against(&scaled(0.85), 0.03, 0.10);
        assert_eq!(slower.regressions.len(), 6, "{:?}", slower.regressions);
        assert!(slower.regressions[0].contains("best throughput fell by 15.00 %"), "{:?}", slower.regressions);
        // The same fall is within what figures known to 15 % allow.
        assert!(against(&scaled(0.85), 0.15, 0.10).regressions.is_empty());
        // Real, but not beyond the threshold.
        let slightly = against(&scaled(0.92), 0.01, 0.10);
        assert!(slightly.regressions.is_empty() && slightly.levels.iter().all(|c| c.moved == Moved::Slower));
        assert!(against(&scaled(1.3), 0.03, 0.10).levels.iter().all(|c| c.moved == Moved::Faster));
    }

    #[test]
    fn the_interval_is_the_one_of_the_ratio_for_all_comparisons_together() {
        // z of 1 - 0.025 / 6 is 2.638 (tables of the normal distribution), against 1.960 for one interval.
        assert!((widening(6) - 2.638 / 1.960).abs() < 1e-3, "{}", widening(6));
        let [low, high] = against(&scaled(0.9), 0.03, 0.10).levels[0].interval.expect("both have one");
        let noise = widening(6) * (2.0_f64 * 0.03 * 0.03).sqrt();
        assert!((low - (0.9 * (1.0 - noise) - 1.0)).abs() < 1e-9 && (high - (0.9 * (1.0 + noise) - 1.0)).abs() < 1e-9);
    }

    #[test]
    fn a_recommended_level_that_fails_now_is_a_regression_even_if_it_is_as_fast() {
        let mut now = BEFORE;
        now[2].2 = 0.2;
        let failing = against(&now, 0.03, 0.10);
        assert_eq!(failing.regressions.len(), 1, "{:?}", failing.regressions);
        assert!(failing.regressions[0].contains("level 20, recommended before, fails now: error rate 20.00 %"));
    }

    #[test]
    fn nothing_to_recommend_any_more_is_a_regression() {
        let broken: Vec<_> = BEFORE.iter().map(|&(level, rps, _)| (level, rps, 0.5)).collect();
        let regressions = against(&broken, 0.03, 0.10).regressions;
        assert!(regressions.iter().any(|text| text.contains("now nothing can be")), "{regressions:?}");
    }

    #[test]
    fn without_intervals_the_threshold_decides_and_without_a_threshold_nothing_fails() {
        let bare = |factor: f64| {
            let mut decided = decided(&scaled(factor), 0.03);
            for level in &mut decided.levels {
                level.summary.throughput_rps =
                    level.summary.throughput_rps.map(|t| Estimate { lower: None, upper: None, ..t });
            }
            decided
        };
        let compared = |threshold| compare(&bare(1.0), &bare(0.85), Objective::Requests, threshold);
        assert_eq!(compared(Some(0.10)).regressions.len(), 6);
        assert!(compared(Some(0.20)).regressions.is_empty() && compared(None).regressions.is_empty());
        assert!(compared(None).levels.iter().all(|change| change.interval.is_none()));
    }
}
