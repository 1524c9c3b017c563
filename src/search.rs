//! Which level to measure next. Pure, so that the same rules run against a server and in virtual time.
//!
//! First the levels of the list, or an adaptive search for `auto`; then the contenders once more, in interleaved
//! rounds, until the interval of the pick is one level or three rounds are over.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::recommend::{Policy, Recommendation, Verdict, recommend};
use crate::stats::LevelSummary;

/// Which part of a run a measurement belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The sweep over the listed levels.
    #[default]
    Sweep,
    /// A contender, measured again.
    Confirm,
    /// A probe of the adaptive search.
    Auto,
}

/// One measurement to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The level.
    pub level: usize,
    /// The part of the run.
    pub stage: Stage,
    /// The confirm round, from 1; 0 outside of them.
    pub round: u32,
}

/// Contenders are measured again at most this often.
pub const CONFIRM_ROUNDS: u32 = 3;
/// A passing level with at least this share of the best throughput is a contender.
const CONTENDER: f64 = 0.85;
/// The adaptive search stops where the neighbours of the pick are closer than this factor.
const CLOSE_ENOUGH: f64 = 1.3;

/// The plan of a run, which unfolds as figures come in.
#[derive(Clone, Debug)]
pub struct Search {
    policy: Policy,
    queue: VecDeque<Step>,
    /// The bounds of the adaptive search while it runs.
    auto: Option<(usize, usize)>,
    adaptive: bool,
    /// The round that is queued or was measured last; `None` if there are to be none.
    round: Option<u32>,
}

impl Search {
    /// The listed levels; with `confirm`, contenders are measured again.
    pub fn listed(levels: &[usize], policy: &Policy, confirm: bool) -> Self {
        Search {
            policy: policy.clone(),
            queue: levels.iter().map(|&level| Step { level, stage: Stage::Sweep, round: 0 }).collect(),
            auto: None,
            adaptive: false,
            round: confirm.then_some(0),
        }
    }

    /// An adaptive search from `lowest` to `highest`: doubles until two doublings in a row gain less than the
    /// tolerance or a gate fails, then fills in around the knee.
    pub fn adaptive(lowest: usize, highest: usize, policy: &Policy) -> Self {
        Search {
            policy: policy.clone(),
            queue: VecDeque::new(),
            auto: Some((lowest, highest)),
            adaptive: true,
            round: Some(0),
        }
    }

    /// The next measurement, given the figures so far: one summary per level, all its measurements pooled.
    pub fn next(&mut self, pooled: &[LevelSummary]) -> Option<Step> {
        if let Some(step) = self.queue.pop_front() {
            return Some(step);
        }
        let decided = recommend(pooled, &self.policy);
        if let Some((lowest, highest)) = self.auto {
            match next_probe(&decided, &self.policy, lowest, highest) {
                Some(level) => return Some(Step { level, stage: Stage::Auto, round: 0 }),
                None => self.auto = None,
            }
        }
        self.queue_round(&decided);
        self.queue.pop_front()
    }

    fn queue_round(&mut self, decided: &Recommendation) {
        let Some(round) = self.round.filter(|&round| round < CONFIRM_ROUNDS) else { return };
        // A probe is too small to be the answer, however clear it looks.
        let settled = decided.interval.is_some_and(|[low, high]| low == high) && !decided.provisional;
        let contenders = self.contenders(decided);
        if settled || contenders.is_empty() || (contenders.len() < 2 && !decided.provisional) {
            self.round = None;
            return;
        }
        let round = round + 1;
        self.round = Some(round);
        self.queue.extend(contenders.into_iter().map(|level| Step { level, stage: Stage::Confirm, round }));
        if round % 2 == 0 {
            // Turned round, so that a drift of the server does not always meet the same level last.
            self.queue.make_contiguous().reverse();
        }
    }

    fn contenders(&self, decided: &Recommendation) -> Vec<usize> {
        let value = |summary: &LevelSummary| summary.throughput_rps.map(|t| t.estimate);
        let passing: Vec<(usize, f64)> = decided
            .levels
            .iter()
            .filter(|level| level.verdict == Verdict::Pass)
            .filter_map(|level| Some((level.summary.concurrency, value(&level.summary)?)))
            .collect();
        let best = passing.iter().map(|level| level.1).fold(0.0, f64::max);
        // On a plateau the search has looked far ahead; the levels out there decide nothing any more.
        let nearby = decided.interval.filter(|_| self.adaptive).map_or(usize::MAX, |[_, high]| high);
        let contenders = passing.into_iter().filter(|&(level, value)| value >= CONTENDER * best && level <= nearby);
        contenders.map(|(level, _)| level).collect()
    }
}

/// The next level of the adaptive search; `None` when the knee is known well enough.
fn next_probe(decided: &Recommendation, policy: &Policy, lowest: usize, highest: usize) -> Option<usize> {
    let Some(top) = decided.levels.last() else { return Some(lowest) };
    let top = top.summary.concurrency;
    let failed = decided.levels.iter().any(|level| level.verdict == Verdict::Fail);
    if top < highest && !failed && !is_flat(decided, policy.tolerance) {
        return Some((2 * top).min(highest));
    }
    let passing: Vec<usize> = levels_with(decided, |verdict| verdict == Verdict::Pass);
    let pick = decided.recommended_concurrency.or(passing.last().copied())?;
    let below = passing.iter().rev().find(|&&level| level < pick).copied();
    // While the last passing level is the pick, a better one may lie between it and the gate.
    let above = decided.levels.iter().map(|level| level.summary.concurrency).find(|&level| level > pick);
    let above = above.filter(|_| passing.last() == Some(&pick));
    let gap = |low: usize, high: usize| {
        let apart = high > low + 1 && high as f64 > CLOSE_ENOUGH * low as f64;
        apart.then(|| ((low as f64 * high as f64).sqrt().round() as usize).clamp(low + 1, high - 1))
    };
    above.and_then(|above| gap(pick, above)).or_else(|| below.and_then(|below| gap(below, pick)))
}

fn levels_with(decided: &Recommendation, wanted: impl Fn(Verdict) -> bool) -> Vec<usize> {
    decided.levels.iter().filter(|level| wanted(level.verdict)).map(|level| level.summary.concurrency).collect()
}

/// Whether the last two doublings each gained less than the tolerance.
fn is_flat(decided: &Recommendation, tolerance: f64) -> bool {
    let rates: Vec<f64> =
        decided.levels.iter().filter_map(|level| level.summary.throughput_rps.map(|t| t.estimate)).collect();
    match rates.as_slice() {
        [.., a, b, c] => *b < (1.0 + tolerance) * a && *c < (1.0 + tolerance) * b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Distribution, Estimate};

    /// A level measured without noise.
    fn exact(level: usize, rps: f64, error_rate: f64) -> LevelSummary {
        let n = 100.max(10 * level as u64);
        LevelSummary {
            concurrency: level,
            requests: Some(n),
            succeeded: Some(n - (n as f64 * error_rate) as u64),
            error_rate: Some(error_rate),
            throughput_rps: Some(Estimate { estimate: rps, lower: Some(rps), upper: Some(rps) }),
            blocks_rps: vec![rps; 10],
            latency_s: Some(Distribution {
                p95: Some(1.0),
                p99: Some(1.0),
                mean: Some(1.0),
                ..Distribution::default()
            }),
            ..LevelSummary::default()
        }
    }

    /// All steps of a search on a server whose throughput and error rate are given by level.
    fn steps(mut search: Search, server: impl Fn(usize) -> (f64, f64)) -> (Vec<Step>, Recommendation) {
        let mut pooled: Vec<LevelSummary> = Vec::new();
        let mut steps = Vec::new();
        while let Some(step) = search.next(&pooled) {
            assert!(steps.len() < 60, "the search does not end: {steps:?}");
            steps.push(step);
            let (rps, errors) = server(step.level);
            pooled.retain(|summary| summary.concurrency != step.level);
            pooled.push(exact(step.level, rps, errors));
        }
        (steps, recommend(&pooled, &Policy::default()))
    }

    fn knee(slots: usize) -> impl Fn(usize) -> (f64, f64) {
        move |level| (level.min(slots) as f64, 0.0)
    }

    #[test]
    fn a_clear_answer_needs_no_confirm_round() {
        let (steps, decided) = steps(Search::listed(&[1, 10, 20, 40], &Policy::default(), true), knee(20));
        assert_eq!(steps.iter().map(|step| step.level).collect::<Vec<_>>(), [1, 10, 20, 40]);
        assert_eq!(decided.recommended_concurrency, Some(20));
    }

    #[test]
    fn an_unclear_answer_is_confirmed_three_times_with_alternating_order() {
        let mut search = Search::listed(&[10, 20, 40], &Policy::default(), true);
        let mut noisy = exact(20, 96.0, 0.0);
        noisy.blocks_rps = vec![80.0, 112.0, 70.0, 122.0, 96.0, 96.0, 60.0, 132.0, 96.0, 96.0];
        let pooled = [exact(10, 50.0, 0.0), noisy, exact(40, 100.0, 0.0)];
        let steps: Vec<_> = std::iter::from_fn(|| search.next(&pooled)).collect();
        let confirm: Vec<_> = steps[3..].iter().map(|step| (step.round, step.level)).collect();
        assert_eq!(confirm, [(1, 20), (1, 40), (2, 40), (2, 20), (3, 20), (3, 40)]);
    }

    #[test]
    fn auto_finds_knees_and_stops_before_the_maximum() {
        for slots in [1, 3, 7, 20, 33, 100, 200] {
            let (steps, decided) = steps(Search::adaptive(1, 512, &Policy::default()), knee(slots));
            let pick = decided.recommended_concurrency.expect("a pick");
            let acceptable = (0.95 * slots as f64).ceil();
            assert!(
                pick as f64 >= acceptable && pick as f64 <= (CLOSE_ENOUGH * acceptable).ceil() + 1.0,
                "{slots}: {pick}"
            );
            assert!(steps.iter().all(|step| step.level <= 8 * slots), "{slots}: {steps:?}");
        }
    }

    #[test]
    fn auto_looks_for_the_last_passing_level_below_a_gate() {
        let limited = |level: usize| (level as f64, if level > 45 { 0.5 } else { 0.0 });
        let (_, decided) = steps(Search::adaptive(1, 512, &Policy::default()), limited);
        let pick = decided.recommended_concurrency.expect("a pick");
        assert!((36..=45).contains(&pick), "{pick}");
    }

    #[test]
    fn auto_ends_at_its_maximum_and_where_nothing_passes() {
        let (steps_up, _) = steps(Search::adaptive(1, 50, &Policy::default()), |level| (level as f64, 0.0));
        assert_eq!(steps_up.iter().map(|step| step.level).max(), Some(50));
        let (steps_none, decided) = steps(Search::adaptive(1, 50, &Policy::default()), |_| (0.0, 1.0));
        assert_eq!(steps_none.len(), 1);
        assert_eq!(decided.recommended_concurrency, None);
    }
}
