//! Compares two recommendations for the same server at different times: what became slower or faster. Pure.
//!
//! A change counts as real if the 99 % interval of the ratio of the two throughputs excludes 1. It is Student's t on
//! the logarithms, and includes the variation of a level between measurements: no interval from a single measurement
//! shows that, and it is what makes two equal servers appear different. The variance is pooled over the levels of both
//! runs and moderated by the usual one of equal servers (Smyth 2004, "Linear Models and Empirical Bayes Methods"), so
//! that a few measurements that happen to agree prove nothing.
//!
//! Only two comparisons decide: at the level that the baseline recommends, and between the best levels. The first needs
//! more evidence: a level is recommended because it did better than others, which on a plateau is mostly luck and does
//! not repeat. So its interval is corrected for all the levels that might have been recommended (Bonferroni).

use std::collections::BTreeSet;

use serde::Serialize;

use crate::decide::{
    Cause, Gate, JudgedLevel, Objective, Reason, Recommendation, Status, Verdict, best_passing, deviations,
    measurements, open_outages, passing, standard_error, value,
};
use crate::figures::student_t;

/// The kind of comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Against {
    #[default]
    Baseline,
    /// With another server, measured in turns.
    OtherServer,
}

/// How a figure changed, beyond what noise explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moved {
    Faster,
    Slower,
    NotShown,
}

/// A throughput then and now, and the level that each was measured at.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Change {
    pub concurrency_before: usize,
    pub concurrency_now: usize,
    pub before: f64,
    pub now: f64,
    /// `now / before - 1`.
    pub change: f64,
    pub interval: [f64; 2],
    pub moved: Moved,
}

impl Change {
    /// `noise` is the half-width of the interval of the logarithm of their ratio.
    pub(super) fn of(levels: [usize; 2], [before, now]: [f64; 2], noise: f64) -> Self {
        let ratio = now / before;
        let interval = [-noise, noise].map(|noise| ratio * noise.exp() - 1.0);
        let moved = match interval {
            [low, _] if low > 0.0 => Moved::Faster,
            [_, high] if high < 0.0 => Moved::Slower,
            _ => Moved::NotShown,
        };
        let [concurrency_before, concurrency_now] = levels;
        Change { concurrency_before, concurrency_now, before, now, change: ratio - 1.0, interval, moved }
    }
}

/// All changes between a baseline and now, or between two servers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// The baseline, or both servers, in words.
    pub title: String,
    pub against: Against,
    pub unit: &'static str,
    /// Levels that are usable in both, ascending. For information only.
    pub levels: Vec<Change>,
    pub best: Option<Change>,
    /// At the level that the baseline recommends; of two servers, each at its own recommended level.
    pub recommended: Option<Change>,
    /// The mean change of the logarithms over all levels, from lowest to highest; only for two servers.
    pub overall: Option<Change>,
    /// Always empty without a threshold.
    pub regressions: Vec<Regression>,
    /// Why a regression can be neither shown nor excluded; always empty without a threshold.
    pub doubts: Vec<Doubt>,
}

/// What became worse. `concurrency` is the level that the baseline recommends.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Regression {
    Best(Change),
    Recommended(Change),
    Fails { concurrency: usize, gate: Gate, causes: Vec<Cause> },
    NothingQualifies { concurrency: usize, reason: Reason },
}

/// Why there is no verdict: the recommended level fails, perhaps by chance; the server was gone;
/// nothing is recommended now, for a reason that is not a regression; or no usable level is in both.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Doubt {
    Gate { concurrency: usize, gate: Gate, causes: Vec<Cause> },
    Outage { concurrency: usize },
    Undecided { concurrency: usize, status: Status, reason: Reason },
    NothingInCommon,
}

/// A baseline that a run is compared with, while it is in progress and at its end.
#[derive(Clone, Debug)]
pub struct Baseline {
    /// Its name, in words.
    pub title: String,
    /// Its recommendation under the current policy.
    pub decided: Recommendation,
    /// A decrease by more than this fraction is a regression.
    pub threshold: Option<f64>,
}

/// Confidence of each deciding comparison: the two together raise a false alarm in at most one run
/// in a hundred, even before the threshold applies.
const CONFIDENCE: f64 = 0.99;
/// Relative standard deviation between measurements of an unchanged server that nobody else uses: 4
/// to 8 %. That is about the 95 % range of standard deviations with ten degrees of freedom.
const USUAL_SPREAD: f64 = 0.06;
const USUAL_FREEDOM: f64 = 10.0;

/// With `threshold` (a fraction), these are regressions: a throughput that is significantly lower, by more
/// than that; a recommended level of the baseline that now fails a gate; and no qualifying level any more.
pub fn compare(
    before: &Recommendation,
    now: &Recommendation,
    objective: Objective,
    threshold: Option<f64>,
) -> Comparison {
    let noise = Noise::of([before, now]);
    let chances = passing(&before.levels).count().max(1);
    let in_both = |old| noise.change(old, used(now, concurrency(old))?, objective, chances);
    let best = best_passing(&before.levels, objective).zip(best_passing(&now.levels, objective));
    let usable = before.levels.iter().filter(|level| level.verdict != Verdict::NotUsed);
    let mut comparison = Comparison {
        unit: objective.unit(),
        levels: usable.filter_map(in_both).collect(),
        best: best.and_then(|((old, _), (new, _))| noise.change(old, new, objective, 1)),
        recommended: before.chosen().and_then(in_both),
        ..Comparison::default()
    };
    if let Some(threshold) = threshold {
        comparison.judge(before, now, threshold);
    }
    comparison
}

fn concurrency(level: &JudgedLevel) -> usize {
    level.summary.concurrency
}

fn used(decided: &Recommendation, wanted: usize) -> Option<&JudgedLevel> {
    decided.levels.iter().find(|level| level.verdict != Verdict::NotUsed && concurrency(level) == wanted)
}

/// Relative variance of a level's throughput between measurements, and its degrees of freedom.
struct Noise {
    variance: f64,
    freedom: f64,
}

impl Noise {
    fn of(runs: [&Recommendation; 2]) -> Self {
        let levels = runs.into_iter().flat_map(|run| passing(&run.levels));
        let (squares, freedom) = deviations(
            levels
                .map(|level| measurements(&level.summary).into_iter().filter(|&rps| rps > 0.0).map(f64::ln).collect()),
        );
        let variance = (USUAL_FREEDOM * USUAL_SPREAD.powi(2) + squares) / (USUAL_FREEDOM + freedom);
        Noise { variance, freedom: USUAL_FREEDOM + freedom }
    }

    /// Variance of a level's throughput over all its measurements. The variation between
    /// measurements includes that within each, so the larger of the two is the total.
    fn variance_of(&self, level: &JudgedLevel) -> f64 {
        let within = standard_error(&level.summary);
        (self.variance / measurements(&level.summary).len().max(1) as f64).max(within.powi(2))
    }

    /// `chances` is the number of levels among which this one may have been selected by luck.
    fn change(&self, old: &JudgedLevel, new: &JudgedLevel, objective: Objective, chances: usize) -> Option<Change> {
        let (before, now) = (value(&old.summary, objective)?, value(&new.summary, objective)?);
        let t = student_t(self.freedom, 1.0 - (1.0 - CONFIDENCE) / 2.0 / chances as f64)?;
        let noise = t * (self.variance_of(old) + self.variance_of(new)).sqrt();
        Some(Change::of([old, new].map(concurrency), [before, now], noise))
    }
}

impl Comparison {
    fn judge(&mut self, before: &Recommendation, now: &Recommendation, threshold: f64) {
        let fell = |change: &Change| change.moved == Moved::Slower && change.change < -threshold;
        let is_gone =
            |level: &JudgedLevel| level.summary.outage.is_some() && open_outages(&now.levels).any(|open| open == level);
        let pick = before.chosen().map(concurrency);
        let then = pick.and_then(|pick| used(now, pick));
        let in_outage = then.is_some_and(is_gone);
        self.regressions.extend(self.best.filter(fell).map(Regression::Best));
        // A server that was gone for a while did not become slower.
        self.regressions.extend(self.recommended.filter(|_| !in_outage).filter(fell).map(Regression::Recommended));
        if let Some(level) = then {
            let (concurrency, causes) = (concurrency(level), level.causes.clone());
            match level.gate {
                _ if in_outage => self.doubts.push(Doubt::Outage { concurrency }),
                Some(gate) if level.uncertain => self.doubts.push(Doubt::Gate { concurrency, gate, causes }),
                Some(gate) => self.regressions.push(Regression::Fails { concurrency, gate, causes }),
                None => {}
            }
        }
        if let Some(concurrency) = pick.filter(|_| now.recommended_concurrency.is_none()) {
            let (status, reason) = (now.status, now.reason.clone());
            let mut usable = now.levels.iter().filter(|level| level.verdict != Verdict::NotUsed);
            match status == Status::NoQualifyingLevel && usable.all(|level| !level.uncertain && !is_gone(level)) {
                true => self.regressions.push(Regression::NothingQualifies { concurrency, reason }),
                false => self.doubts.push(Doubt::Undecided { concurrency, status, reason }),
            }
        }
        if self.best.is_none() && self.recommended.is_none() && self.regressions.is_empty() && self.doubts.is_empty() {
            self.doubts.push(Doubt::NothingInCommon);
        }
    }
}

impl Baseline {
    pub fn compare(&self, now: &Recommendation, objective: Objective) -> Comparison {
        Comparison { title: self.title.clone(), ..compare(&self.decided, now, objective, self.threshold) }
    }

    /// The levels to measure again before a regression is believed: those whose throughput fell by more than
    /// the threshold, significantly or not, and the recommended level if it fails a gate or was not measured.
    pub fn suspects(&self, now: &Recommendation, objective: Objective) -> BTreeSet<usize> {
        let Some(threshold) = self.threshold else { return BTreeSet::new() };
        let found = self.compare(now, objective);
        let fallen = [found.best, found.recommended].into_iter().flatten().filter(|change| change.change < -threshold);
        let mut suspects: BTreeSet<usize> = fallen.map(|change| change.concurrency_now).collect();
        let pick = self.decided.recommended_concurrency;
        let passes = pick.is_some_and(|pick| passing(&now.levels).any(|level| concurrency(level) == pick));
        suspects.extend(pick.filter(|_| !passes));
        suspects
    }
}
