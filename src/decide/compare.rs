//! Two recommendations of the same server at different times: what became slower or faster. Pure.
//!
//! A change counts as real where the 99 % interval on the ratio of the two throughputs leaves out 1. It is Student's t on
//! the logarithms, with what a level differs from one measurement to the next in it: no interval of one measurement
//! shows that, and it is what makes two equal servers seem different. The spread is pooled over the levels of both runs
//! and moderated by what equal servers are known to show (Smyth 2004, "Linear Models and Empirical Bayes Methods"), so
//! that a few measurements that happen to agree prove nothing.
//!
//! Only two comparisons decide: that at the level which the baseline recommends, and that of the best. The first of them
//! needs more: a level is recommended among others because it did well, and on a plateau that is mostly luck, which it
//! does not have again. So its interval is that of the levels which might have been it all together (Bonferroni).

use std::collections::BTreeSet;

use serde::Serialize;

use crate::decide::{
    Cause, Gate, JudgedLevel, Objective, Reason, Recommendation, Status, Verdict, best_passing, deviations,
    measurements, open_outages, passing, standard_error, value,
};
use crate::figures::student_t;

/// What is compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Against {
    #[default]
    Baseline,
    /// Measured in turns with it.
    OtherServer,
}

/// How a figure moved, beyond what noise explains.
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
    /// `noise` is half the interval of the logarithm of their ratio.
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

/// All that moved between a baseline and now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// What it is compared with, in words.
    pub title: String,
    pub against: Against,
    pub unit: &'static str,
    /// Levels that could be used in both, ascending. They inform only.
    pub levels: Vec<Change>,
    pub best: Option<Change>,
    /// The level that the baseline recommends, in both runs.
    pub recommended: Option<Change>,
    /// All levels together, from the lowest to the highest, by the mean of the logarithms; where both were measured in turns.
    pub overall: Option<Change>,
    /// Always empty without a threshold.
    pub regressions: Vec<Regression>,
    /// Why a regression can be neither shown nor excluded; always empty without a threshold.
    pub doubts: Vec<Doubt>,
}

/// What has become worse; `concurrency` is the level that the baseline recommends.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Regression {
    Best(Change),
    Recommended(Change),
    Fails { concurrency: usize, gate: Gate, causes: Vec<Cause> },
    NothingQualifies { concurrency: usize, reason: Reason },
}

/// Why that level does not decide: it fails, perhaps by chance; the server was gone; nothing is recommended now, for
/// a reason that is no regression; or no level that could be used is in both.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Doubt {
    Gate { concurrency: usize, gate: Gate, causes: Vec<Cause> },
    Outage { concurrency: usize },
    Undecided { concurrency: usize, status: Status, reason: Reason },
    NothingInCommon,
}

/// What a run is held against, while it goes on and at its end.
#[derive(Clone, Debug)]
pub struct Baseline {
    /// What it is, in words.
    pub title: String,
    /// As the policy of now decides it.
    pub decided: Recommendation,
    /// A fall of more than this share is a regression.
    pub threshold: Option<f64>,
}

/// Of each comparison that decides: with two of them a false alarm comes once in a hundred runs at most, before the
/// threshold is asked.
const CONFIDENCE: f64 = 0.99;
/// Equal servers differ by 4 to 8 % from one measurement to the next when nobody else uses the machine. That is known about
/// as well as from ten measurements: 95 % of their standard deviations lie in that range.
const USUAL_SPREAD: f64 = 0.06;
const USUAL_FREEDOM: f64 = 10.0;

/// With `threshold` (a fraction), a throughput that is really lower, and by more than that, is a regression; so is a
/// recommended level of the baseline that fails a gate now, and a recommendation where no level qualifies any more.
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

/// How much a level's throughput differs from one measurement to the next, relative to itself.
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

    /// Of a level's throughput, all its measurements pooled. What they differ among themselves holds the noise within
    /// each, so that the larger of the two is the whole.
    fn variance_of(&self, level: &JudgedLevel) -> f64 {
        let within = standard_error(&level.summary);
        (self.variance / measurements(&level.summary).len().max(1) as f64).max(within.powi(2))
    }

    /// Of a level that may have been taken for its luck among this many.
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
        // A server that was gone for a while is not a slower one.
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

    /// The levels to measure once more before a fall is believed: where the throughput fell by more than the threshold,
    /// by chance or not, and the recommended one where a gate decides against it or it was not measured.
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
