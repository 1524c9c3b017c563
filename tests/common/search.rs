//! A search that measures levels in full, one after the other: what runs were made by before the race, and what it is
//! held against. Pure.
//!
//! First the levels of the list, or an adaptive search for `auto`; then the contenders once more, in interleaved
//! rounds, until the interval of the pick is one level or three rounds are over. Beside them, what was disturbed by an
//! outage, and what a gate decided against by chance, perhaps.

#![allow(dead_code, reason = "each user of this module takes what it needs")]

use std::collections::{BTreeSet, VecDeque};

use llm_concurrency::decide::compare::Baseline;
use llm_concurrency::decide::{
    DriftCheck, Gate, JudgedLevel, Policy, Recommendation, Status, Verdict, best_passing, is_full_size, measurements,
    open_outages, passing, recommend, smallest_good, value,
};
use llm_concurrency::figures::LevelSummary;
pub use llm_concurrency::figures::{Stage, Step};

/// Contenders are measured again at most this often; in an adaptive search twice as often, since its measurements are
/// half as large.
const CONFIRM_ROUNDS: u32 = 3;
/// And at least this often: a single measurement shows nothing of how much the server differs from one to the next,
/// however narrow its interval is (`benches/replicates.rs`).
const FEWEST_ROUNDS: u32 = 1;
/// A change of the server's speed is believed after so many rounds: fewer tell too little of how much it differs anyway.
const FEWEST_TO_DRIFT: u32 = 3;
/// A passing level with at least this share of the best throughput is a contender.
const CONTENDER: f64 = 0.85;
/// A level with this share of the best throughput is as good a reference as the best itself.
const REFERENCE: f64 = 0.99;
/// The adaptive search stops where the level below the pick is closer than this factor: the pick is at most so much
/// higher than it need be. Closer ones do not make the answer better: the more levels are nearly good enough, the more
/// often one of them is lucky (`benches/replicates.rs`).
const CLOSE_BELOW: f64 = 1.4;
/// And where the failing level above the last passing one is closer than this factor: while throughput still rises,
/// so much of it is given away.
const CLOSE_ABOVE: f64 = 1.08;
/// Between its doublings the adaptive search measures at most this many levels, so that noise cannot keep it going.
const FILL_INS: usize = 5;

/// The plan of a run, which unfolds as figures come in.
#[derive(Clone, Debug)]
pub struct Search {
    policy: Policy,
    queue: VecDeque<Step>,
    /// The adaptive search while it runs.
    auto: Option<Auto>,
    adaptive: bool,
    /// Whether levels may be measured again.
    confirm: bool,
    /// The round that is queued or was measured last.
    round: u32,
    /// What has fallen against it is measured once more.
    baseline: Option<Baseline>,
}

impl Search {
    /// The listed levels; with `confirm`, contenders are measured again.
    pub fn listed(levels: &[usize], policy: &Policy, confirm: bool) -> Self {
        Search {
            policy: policy.clone(),
            queue: levels.iter().map(|&level| Step { level, stage: Stage::Sweep, round: 0 }).collect(),
            auto: None,
            adaptive: false,
            confirm,
            round: 0,
            baseline: None,
        }
    }

    /// An adaptive search from `lowest` to `highest`: doubles until two doublings in a row gain less than the
    /// tolerance or a gate fails, then fills in around the knee.
    pub fn adaptive(lowest: usize, highest: usize, policy: &Policy) -> Self {
        Search {
            policy: policy.clone(),
            queue: VecDeque::new(),
            auto: Some(Auto { lowest, highest, fill_ins: 0 }),
            adaptive: true,
            confirm: true,
            round: 0,
            baseline: None,
        }
    }

    /// The same without measuring contenders again.
    pub fn without_confirm(self) -> Self {
        Search { confirm: false, ..self }
    }

    /// The same held against a baseline, if there is one.
    pub fn against(self, baseline: Option<Baseline>) -> Self {
        Search { baseline, ..self }
    }

    /// How many requests a window of a level takes at least: a wave of the level, and ten of them a full measurement.
    /// An adaptive search meets levels far above the knee, and learns from them only that they are. So it measures each
    /// with half as many; its confirm rounds make up the rest where it matters.
    pub fn smallest_window(&self, level: usize) -> usize {
        smallest_window(level, self.adaptive)
    }

    /// The levels that are to be measured before anything is decided anew.
    pub fn queued(&self) -> impl Iterator<Item = usize> {
        self.queue.iter().map(|step| step.level)
    }

    /// The next measurement, given the figures so far: one summary per level, all its measurements pooled.
    pub fn next(&mut self, pooled: &[LevelSummary]) -> Option<Step> {
        if let Some(step) = self.queue.pop_front() {
            return Some(step);
        }
        let decided = recommend(pooled, &self.policy);
        // An adaptive search cannot go on from a level that says nothing.
        let waits = self.may_confirm() && open_outages(&decided.levels).next().is_some();
        if let Some(auto) = self.auto.as_mut().filter(|_| !waits) {
            match auto.next(&decided, &self.policy) {
                Some(level) => return Some(Step { level, stage: Stage::Auto, round: 0 }),
                None => self.auto = None,
            }
        }
        self.queue_round(&decided);
        if self.queue.is_empty() {
            self.queue_suspects(&decided);
        }
        self.queue.pop_front()
    }

    fn may_confirm(&self) -> bool {
        self.confirm && self.round < most_rounds(self.adaptive)
    }

    fn queue_round(&mut self, decided: &Recommendation) {
        if !self.may_confirm() {
            return;
        }
        let round = self.round;
        // However clear it doubted, a few requests are no answer: nor where the best is known by so few.
        let picked = |level: &&JudgedLevel| Some(level.summary.concurrency) == decided.recommended_concurrency;
        let best = best_passing(&decided.levels, &self.policy).map(|best| best.0);
        let mut decisive = decided.levels.iter().find(picked).into_iter().chain(best);
        let small = decisive.any(|level| !is_full_size(&level.summary));
        let drift = decided.drift == DriftCheck::Found;
        // An adaptive search does not tell levels apart that are closer; nor need its rounds.
        let within = if self.adaptive { CLOSE_BELOW } else { 1.0 };
        let narrow = decided.interval.is_some_and(|[low, high]| high as f64 <= within * low as f64);
        let confirmed = decided.levels.iter().find(picked).is_none_or(is_confirmed);
        let settled = narrow && !small && !drift && confirmed && round >= FEWEST_ROUNDS;
        // Nor does another round help against a quota or a server that has changed, or where one level is all there is.
        let hopeless =
            decided.status == Status::RateLimited || (drift && round >= FEWEST_TO_DRIFT) || decided.levels.len() < 2;
        let concurrency = |level: &JudgedLevel| level.summary.concurrency;
        let mut levels: BTreeSet<usize> = open_outages(&decided.levels).map(concurrency).collect();
        if !hopeless && self.auto.is_none() {
            levels.extend(second_looks(decided, &self.policy).into_iter().map(concurrency));
            levels.extend(contenders(decided, &self.policy).into_iter().filter(|_| !settled));
        }
        self.confirm = !levels.is_empty();
        self.queue_again(levels);
        if self.round.is_multiple_of(2) {
            // Turned round, so that a drift of the server does not always meet the same level last.
            self.queue.make_contiguous().reverse();
        }
    }

    fn queue_again(&mut self, levels: BTreeSet<usize>) {
        self.round += u32::from(!levels.is_empty());
        let round = self.round;
        self.queue.extend(levels.into_iter().map(|level| Step { level, stage: Stage::Confirm, round }));
    }

    /// A fall is not believed at first sight. Asked once, at the end.
    fn queue_suspects(&mut self, decided: &Recommendation) {
        let Some(baseline) = self.baseline.take() else { return };
        let mut suspects = baseline.suspects(decided, self.policy.objective);
        let measured: BTreeSet<usize> = decided.levels.iter().map(|level| level.summary.concurrency).collect();
        // What the baseline recommends may not be among the levels.
        let first = suspects.difference(&measured).filter(|&level| Some(level) < measured.last());
        self.queue.extend(first.map(|&level| Step { level, stage: Stage::Sweep, round: 0 }));
        suspects.retain(|level| measured.contains(level));
        self.queue_again(suspects);
    }
}

/// The levels that a confirm round measures again, ascending.
///
/// Those near the best that may still be the pick: up to the high end of its interval. Levels above cannot be the
/// pick any more. All they decide is what the pick is measured by, so one of them stays: the smallest that is as good
/// as the best. It is measured in the same round, so that a server that slows down slows both; far out on a plateau
/// lie more levels as good, which cost the most requests and would tell the same. The best itself is measured again only
/// if it is known by too few requests.
fn contenders(decided: &Recommendation, policy: &Policy) -> Vec<usize> {
    let Some((best, most)) = best_passing(&decided.levels, policy) else { return Vec::new() };
    let high = decided.interval.map_or(usize::MAX, |[_, high]| high);
    let reaches = |level: &JudgedLevel, share: f64| {
        let value = value(&level.summary, policy.objective).unwrap_or_default();
        level.verdict == Verdict::Pass && value >= share * most
    };
    let above = |level: &&JudgedLevel| level.summary.concurrency > high && reaches(level, REFERENCE);
    let reference = decided.levels.iter().find(above);
    let contends = |level: &&JudgedLevel| {
        let near = level.summary.concurrency <= high && reaches(level, CONTENDER);
        near || Some(*level) == reference || (*level == best && !is_full_size(&best.summary))
    };
    decided.levels.iter().filter(contends).map(|level| level.summary.concurrency).collect()
}

/// Whether a level has been measured again.
fn is_confirmed(level: &JudgedLevel) -> bool {
    measurements(&level.summary).len() > 1
}

/// Levels that a gate decides against, perhaps by chance, with one measurement, where the answer would be another: what
/// would be the pick or the best if they passed, and the first one above a pick that is the last to pass. With them the
/// level that the default limit on P95 is made from.
fn second_looks<'a>(decided: &'a Recommendation, policy: &Policy) -> Vec<&'a JudgedLevel> {
    let levels = &decided.levels;
    let doubtful = |level: &&JudgedLevel| level.verdict == Verdict::Fail && level.uncertain && !is_confirmed(level);
    let figures = || {
        let considered = levels.iter().filter(|level| level.verdict == Verdict::Pass || doubtful(level));
        considered.filter_map(|level| Some((level.summary.concurrency, value(&level.summary, policy.objective)?)))
    };
    let would_be = smallest_good(figures(), policy.tolerance);
    let would_be_best = figures().max_by(|a, b| a.1.total_cmp(&b.1)).map(|best| best.0);
    let changes = would_be != decided.recommended_concurrency;
    let last_passing = levels.iter().rposition(|level| level.verdict == Verdict::Pass);
    let stops_at = last_passing.filter(|&at| Some(levels[at].summary.concurrency) == decided.recommended_concurrency);
    let first_above = stops_at.and_then(|at| levels[at + 1..].iter().find(|level| level.verdict == Verdict::Fail));
    let matters = |level: &&JudgedLevel| {
        let concurrency = Some(level.summary.concurrency);
        (changes && (concurrency == would_be || concurrency == would_be_best)) || Some(*level) == first_above
    };
    let mut doubted: Vec<_> = levels.iter().filter(doubtful).filter(matters).collect();
    if policy.max_p95_seconds.is_none() && doubted.iter().any(|level| level.gate == Some(Gate::P95)) {
        doubted.extend(passing(levels).next().filter(|reference| !is_confirmed(reference)));
    }
    doubted
}

/// An adaptive search.
#[derive(Clone, Copy, Debug)]
struct Auto {
    lowest: usize,
    highest: usize,
    /// How many levels between the doublings were measured.
    fill_ins: usize,
}

impl Auto {
    /// The next level; `None` when the knee is known well enough.
    fn next(&mut self, decided: &Recommendation, policy: &Policy) -> Option<usize> {
        let Some(top) = decided.levels.last() else { return Some(self.lowest) };
        let top = top.summary.concurrency;
        if self.fill_ins == 0 && top < self.highest && !fails_at_top(decided) && !is_flat(decided, policy) {
            return Some(doubled(top, self.highest));
        }
        let level = fill_in(decided, policy).filter(|_| self.fill_ins < FILL_INS)?;
        self.fill_ins += 1;
        Some(level)
    }
}

/// How often contenders are measured again at most.
pub fn most_rounds(adaptive: bool) -> u32 {
    if adaptive { 2 * CONFIRM_ROUNDS } else { CONFIRM_ROUNDS }
}

/// See [`Search::smallest_window`].
pub fn smallest_window(level: usize, adaptive: bool) -> usize {
    if adaptive { level.div_ceil(2) } else { level }
}

fn doubled(level: usize, highest: usize) -> usize {
    level.saturating_mul(2).min(highest)
}

/// All levels that an adaptive search may measure at most, before its confirm rounds: the doublings, and as many
/// fill-ins as there may be, where they are dearest.
pub fn adaptive_at_most(lowest: usize, highest: usize) -> Vec<usize> {
    let next = |&level: &usize| (level < highest).then(|| doubled(level, highest));
    let mut levels: Vec<usize> = std::iter::successors(Some(lowest), next).collect();
    let mut between: Vec<usize> = levels.windows(2).flat_map(|pair| all_between(pair[0], pair[1])).collect();
    between.sort_unstable_by(|a, b| b.cmp(a));
    levels.extend(between.into_iter().take(FILL_INS));
    levels.sort_unstable();
    levels
}

fn all_between(low: usize, high: usize) -> Vec<usize> {
    let Some(middle) = between(low, high, CLOSE_ABOVE) else { return Vec::new() };
    [all_between(low, middle), vec![middle], all_between(middle, high)].concat()
}

/// The geometric mean of two levels, unless they are closer than this factor.
fn between(low: usize, high: usize, close: f64) -> Option<usize> {
    let apart = high > low + 1 && high as f64 > close * low as f64;
    apart.then(|| ((low as f64 * high as f64).sqrt().round() as usize).clamp(low + 1, high - 1))
}

/// Whether a gate fails at the top. A failure that may be chance (its interval spans the limit) counts only if the
/// level below fails too: a single noisy probe must not hide all levels above it.
fn fails_at_top(decided: &Recommendation) -> bool {
    let fails = |level: &&JudgedLevel| level.verdict == Verdict::Fail;
    match decided.levels.as_slice() {
        [.., below, top] => fails(&top) && (!top.uncertain || fails(&below)),
        [only] => fails(&only) && !only.uncertain,
        [] => false,
    }
}

/// The level to measure between the pick and its neighbours.
fn fill_in(decided: &Recommendation, policy: &Policy) -> Option<usize> {
    let tested = || decided.levels.iter().map(|level| level.summary.concurrency);
    let last_passing = passing(&decided.levels).map(|level| level.summary.concurrency).last()?;
    let pick = decided.recommended_concurrency.unwrap_or(last_passing);
    let below = tested().rev().find(|&level| level < pick);
    // While the last passing level is the pick, a better one may lie between it and the gate.
    let above = tested().find(|&level| level > pick).filter(|_| last_passing == pick);
    let towards_gate = above.and_then(|above| between(pick, above, CLOSE_ABOVE));
    towards_gate.or_else(|| hidden_peak(decided, policy)).or_else(|| between(below?, pick, CLOSE_BELOW))
}

/// The level to measure beside the best one, if there may lie one that is better by half the tolerance.
///
/// Throughput by concurrency is concave up to its peak on any server without a bottleneck that vanishes under load. So
/// between two levels it lies below the lines through the pairs on either side, prolonged to where they meet.
fn hidden_peak(decided: &Recommendation, policy: &Policy) -> Option<usize> {
    let (_, best) = best_passing(&decided.levels, policy)?;
    let mut points = vec![(0.0, 0.0)];
    points.extend(
        decided
            .levels
            .iter()
            .filter_map(|level| Some((level.summary.concurrency as f64, value(&level.summary, policy.objective)?))),
    );
    let may_hide = |four: &&[(f64, f64)]| {
        let &[a, b, c, d] = *four else { return false };
        let is_best = b.1 == best || c.1 == best;
        is_best && highest_between(a, b, c, d) > (1.0 + policy.tolerance / 2.0) * best
    };
    let around = points.windows(4).filter(may_hide);
    around.filter_map(|four| between(four[1].0 as usize, four[2].0 as usize, CLOSE_BELOW)).next()
}

/// Where the line through `a` and `b` meets the one through `c` and `d`, between `b` and `c`.
fn highest_between(a: (f64, f64), b: (f64, f64), c: (f64, f64), d: (f64, f64)) -> f64 {
    let slope = |p: (f64, f64), q: (f64, f64)| (q.1 - p.1) / (q.0 - p.0);
    let (rise, fall) = (slope(a, b), slope(c, d));
    let meet = ((c.1 - fall * c.0) - (b.1 - rise * b.0)) / (rise - fall);
    if rise > fall && meet > b.0 && meet < c.0 { b.1 + rise * (meet - b.0) } else { b.1.max(c.1) }
}

/// Whether the last two doublings gained less than the tolerance on the best before them. On the best, not on the level
/// before: one unlucky measurement on a plateau would make the next look like a gain, and send the search on to levels
/// that cost thousands of requests.
fn is_flat(decided: &Recommendation, policy: &Policy) -> bool {
    let values: Vec<f64> = decided.levels.iter().filter_map(|level| value(&level.summary, policy.objective)).collect();
    let best = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let Some((before, last_two)) = values.len().checked_sub(2).map(|at| values.split_at(at)) else { return false };
    !before.is_empty() && best(last_two) < (1.0 + policy.tolerance) * best(before)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use llm_concurrency::figures::{Distribution, Drift, Estimate, Outage};

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
            let times = steps.iter().filter(|made| made.level == step.level).count();
            pooled.push(again(times, exact(step.level, rps, errors)));
        }
        (steps, recommend(&pooled, &Policy::default()))
    }

    fn knee(slots: usize) -> impl Fn(usize) -> (f64, f64) {
        move |level| (level.min(slots) as f64, 0.0)
    }

    #[test]
    fn a_clear_answer_is_confirmed_once_and_so_is_a_lone_contender() {
        let (confirmed, decided) = steps(Search::listed(&[1, 10, 20, 40], &Policy::default(), true), knee(20));
        assert_eq!(confirmed.iter().map(|step| step.level).collect::<Vec<_>>(), [1, 10, 20, 40, 20, 40]);
        assert_eq!(decided.recommended_concurrency, Some(20));
        let (alone, decided) = steps(Search::listed(&[1, 10, 20], &Policy::default(), true), knee(20));
        assert_eq!(alone.iter().map(|step| step.level).collect::<Vec<_>>(), [1, 10, 20, 20]);
        assert_eq!(decided.recommended_concurrency, Some(20));
        let quick = steps(Search::listed(&[1, 10, 20], &Policy::default(), false), knee(20)).0;
        assert_eq!(quick.len(), 3);
    }

    /// Which levels each round measures, on a server that is asked for the next round only.
    fn rounds(search: &mut Search, pooled: &[LevelSummary]) -> Vec<usize> {
        let first = search.next(pooled);
        first
            .into_iter()
            .map(|step| step.level)
            .chain(std::iter::from_fn(|| search.queue.pop_front()).map(|step| step.level))
            .collect()
    }

    /// A search that has measured its levels once, or is after this round.
    fn after(round: u32) -> Search {
        Search { round, ..Search::listed(&[], &Policy::default(), true) }
    }

    /// The level measured so often.
    fn again(times: usize, level: LevelSummary) -> LevelSummary {
        let n = level.requests.map(|n| n * times as u64);
        let failed = level.requests.zip(level.succeeded).map(|(n, ok)| (n - ok) * times as u64);
        LevelSummary {
            blocks_rps: level.blocks_rps.repeat(times),
            requests: n,
            succeeded: n.zip(failed).map(|(n, failed)| n - failed),
            ..level
        }
    }

    fn gone(measurements: u64, of: u64, since: u64, level: LevelSummary) -> LevelSummary {
        let outage = Outage { lost: 24 * measurements, requests: 56 * measurements, measurements, of, since };
        LevelSummary { outage: Some(outage), ..level }
    }

    /// Level 2 lost its connections, and 10 and 20 did not.
    #[test]
    fn a_level_that_lost_its_server_is_measured_again_though_it_does_not_contend() {
        let served = [exact(1, 1.0, 0.0), exact(10, 10.0, 0.0), exact(20, 20.0, 0.0)];
        let with = |second: LevelSummary| [&[second][..], &served].concat();
        let mut search = after(0);
        assert_eq!(rounds(&mut search, &with(gone(1, 1, 0, exact(2, 1.0, 0.43)))), [2, 20]);
        // It was gone again. Twenty is confirmed.
        let still = |times, second| [&with(second)[..3], &[again(times, exact(20, 20.0, 0.0))]].concat();
        assert_eq!(rounds(&mut search, &still(2, gone(2, 2, 0, exact(2, 1.0, 0.43)))), [2]);
        // And it is not any more.
        assert_eq!(rounds(&mut search, &still(2, gone(2, 3, 1, exact(2, 2.0, 0.0)))), [0; 0]);
    }

    #[test]
    fn at_the_top_the_server_may_have_died_of_the_level() {
        let top = |level| [exact(1, 1.0, 0.0), again(2, exact(10, 10.0, 0.0)), level];
        let failing = || exact(20, 9.0, 0.43);
        assert_eq!(rounds(&mut after(1), &top(gone(1, 1, 0, failing()))), [20]);
        // It fails twice: so it is the level.
        let pooled = top(gone(2, 2, 0, again(2, failing())));
        assert_eq!(rounds(&mut after(1), &pooled), [0; 0]);
        let decided = recommend(&pooled, &Policy::default());
        assert_eq!(
            (decided.status, decided.recommended_concurrency, decided.provisional),
            (Status::LimitedByGate, Some(10), false)
        );
        // Served once and lost once, it is not trusted; served twice it is.
        let pooled = top(gone(1, 2, 1, exact(20, 20.0, 0.0)));
        assert!(recommend(&pooled, &Policy::default()).provisional);
        assert_eq!(rounds(&mut after(1), &pooled), [20]);
        let pooled = top(gone(1, 3, 2, again(2, exact(20, 20.0, 0.0))));
        assert_eq!(rounds(&mut after(1), &pooled), [0; 0]);
        assert!(!recommend(&pooled, &Policy::default()).provisional);
    }

    /// The server went at the top, and was not back when the round began.
    #[test]
    fn one_outage_that_meets_two_measurements_of_the_top_is_one_outage() {
        let failing = || again(2, exact(20, 9.0, 0.43));
        let pooled = |tenth, top| [exact(1, 1.0, 0.0), tenth, top];
        let tenth = || exact(10, 10.0, 0.0);
        assert_eq!(rounds(&mut after(1), &pooled(gone(1, 2, 0, tenth()), gone(2, 2, 0, failing()))), [20, 10]);
        let back = pooled(again(2, gone(1, 3, 2, tenth())), gone(2, 3, 1, exact(20, 20.0, 0.0)));
        assert_eq!(rounds(&mut after(2), &back), [20]);
        let served = pooled(again(2, gone(1, 3, 2, tenth())), gone(2, 4, 2, again(2, exact(20, 20.0, 0.0))));
        let decided = recommend(&served, &Policy::default());
        assert_eq!((decided.recommended_concurrency, decided.provisional), (Some(20), false));
        // It does not come back.
        let dead = pooled(gone(3, 4, 0, tenth()), gone(4, 4, 0, failing()));
        assert!(recommend(&dead, &Policy::default()).provisional);
    }

    /// The pick was served at first, and the server went in its confirm round and did not come back.
    #[test]
    fn a_server_that_dies_in_a_confirm_round_leaves_a_provisional_answer() {
        let pooled = |of| [exact(10, 10.0, 0.0), gone(of - 1, of, 0, exact(20, 20.0, 0.0)), exact(40, 20.1, 0.0)];
        for round in 1..CONFIRM_ROUNDS {
            assert!(rounds(&mut after(round), &pooled(u64::from(round) + 1)).contains(&20), "{round}");
        }
        assert_eq!(rounds(&mut after(CONFIRM_ROUNDS), &pooled(4)), [0; 0]);
        assert!(recommend(&pooled(4), &Policy::default()).provisional);
    }

    /// 8 is gone when it is measured first, and nothing beyond it is known.
    #[test]
    fn auto_waits_for_a_server_that_is_gone_and_goes_on() {
        let mut search = Search::adaptive(1, 512, &Policy::default());
        let mut measured: BTreeMap<usize, LevelSummary> = BTreeMap::new();
        let mut order = Vec::new();
        while let Some(step) = search.next(&measured.values().cloned().collect::<Vec<_>>()) {
            order.push(step.level);
            let served = again(2, exact(step.level, step.level.min(20) as f64, 0.0));
            let level = match order.iter().filter(|&&level| level == 8).count() {
                1 if step.level == 8 => gone(1, 1, 0, exact(8, 1.0, 0.43)),
                2 if step.level == 8 => gone(1, 2, 1, served),
                3 if step.level == 8 => gone(1, 3, 2, served),
                _ => served,
            };
            measured.insert(step.level, level);
        }
        assert_eq!(order[..5], [1, 2, 4, 8, 8], "{order:?}");
        let decided = recommend(&measured.into_values().collect::<Vec<_>>(), &Policy::default());
        assert!((19..=25).contains(&decided.recommended_concurrency.expect("a pick")), "{order:?}");
        assert!(!decided.provisional);
    }

    /// 6 of 100 failed at a level that would be the pick, or the best.
    #[test]
    fn an_uncertain_gate_that_matters_gets_a_second_look() {
        let failing = |level, rps| exact(level, rps, 0.06);
        let doubted = |pooled: &[LevelSummary]| {
            let decided = recommend(pooled, &Policy::default());
            second_looks(&decided, &Policy::default()).iter().map(|level| level.summary.concurrency).collect::<Vec<_>>()
        };
        let below = [exact(1, 1.0, 0.0), failing(10, 19.5), exact(20, 20.0, 0.0), exact(40, 20.0, 0.0)];
        assert_eq!(doubted(&below), [10]);
        let best =
            [exact(1, 1.0, 0.0), exact(10, 10.0, 0.0), exact(20, 10.1, 0.0), failing(30, 15.0), exact(40, 10.0, 0.0)];
        assert_eq!(doubted(&best), [30]);
        let first_above = [exact(1, 1.0, 0.0), exact(10, 10.0, 0.0), failing(20, 10.1), failing(40, 10.1)];
        assert_eq!(doubted(&first_above), [20]);
        // Neither one that changes nothing, nor one that was looked at again, nor one that clearly fails.
        let bystander = [failing(1, 1.0), exact(20, 20.0, 0.0), exact(40, 20.0, 0.0)];
        assert_eq!(doubted(&bystander), [0; 0]);
        let again = [exact(1, 1.0, 0.0), again(2, failing(10, 19.5)), exact(20, 20.0, 0.0), exact(40, 20.0, 0.0)];
        assert_eq!(doubted(&again), [0; 0]);
        let clear = [exact(1, 1.0, 0.0), exact(10, 19.5, 0.5), exact(20, 20.0, 0.0), exact(40, 20.0, 0.0)];
        assert_eq!(doubted(&clear), [0; 0]);
        // Nor is one asked for where all fails by chance, maybe, but for what would be the answer.
        let all: Vec<_> =
            [(1, 1.0), (10, 10.0), (20, 19.5), (30, 20.0), (40, 19.9)].map(|(n, rps)| failing(n, rps)).into();
        assert_eq!(doubted(&all), [20, 30]);
    }

    /// 903 against 900 ms, which is five times what level 1 took, give or take a third.
    #[test]
    fn the_default_limit_is_measured_again_before_it_decides() {
        let taking = |p95: f64, interval, level| LevelSummary {
            latency_s: Some(Distribution { p95: Some(p95), mean: Some(p95), ..Distribution::default() }),
            p95_interval_s: Some(interval),
            ..level
        };
        let lowest = taking(0.18, [0.14, 0.24], exact(1, 10.0, 0.0));
        let pooled = |p95: f64| {
            [
                lowest.clone(),
                taking(0.5, [0.49, 0.51], exact(4, 30.0, 0.0)),
                taking(p95, [0.99 * p95, 1.01 * p95], exact(8, 50.0, 0.0)),
            ]
        };
        assert_eq!(rounds(&mut after(0), &pooled(0.903)), [1, 4, 8]);
        // Twice the limit is no matter of chance, and a limit of one's own none of level 1.
        assert_eq!(rounds(&mut after(0), &pooled(1.8)), [4]);
        let own = Policy { max_p95_seconds: Some(0.9), ..Policy::default() };
        let mut search = Search::listed(&[], &own, true);
        assert_eq!(rounds(&mut search, &pooled(0.903)), [4, 8]);
    }

    #[test]
    fn what_fell_against_a_baseline_is_measured_once_more_at_the_end() {
        let before = recommend(&[exact(10, 10.0, 0.0), exact(20, 20.0, 0.0)], &Policy::default());
        let baseline = || Some(Baseline { decided: before.clone(), threshold: Some(0.1) });
        let made = |rps: f64| {
            let server = move |level: usize| (level.min(20) as f64 * rps, 0.0);
            let (made, _) = steps(Search::listed(&[10, 20], &Policy::default(), true).against(baseline()), server);
            made.iter().map(|step| (step.round, step.level)).collect::<Vec<_>>()
        };
        assert_eq!(made(1.0), [(0, 10), (0, 20), (1, 20)]);
        assert_eq!(made(0.8), [(0, 10), (0, 20), (1, 20), (2, 20)]);
        // What the baseline recommends is not in the list, but among its levels.
        let search = Search::listed(&[10, 40], &Policy::default(), false).against(baseline());
        let (made, _) = steps(search, knee(30));
        assert_eq!(
            made.iter().map(|step| (step.stage, step.level)).collect::<Vec<_>>(),
            [(Stage::Sweep, 10), (Stage::Sweep, 40), (Stage::Sweep, 20)]
        );
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

    /// The best is far out on a plateau; 25 is as good, and enough to hold the pick against.
    #[test]
    fn a_round_measures_what_may_be_the_pick_and_one_reference() {
        let mut noisy = exact(20, 96.0, 0.0);
        noisy.blocks_rps = vec![92.0, 98.0, 91.0, 101.0, 96.0, 96.0, 90.0, 102.0, 95.0, 99.0];
        let pooled = [
            exact(5, 40.0, 0.0),
            exact(15, 87.0, 0.0),
            noisy,
            exact(22, 97.0, 0.0),
            exact(25, 99.5, 0.0),
            exact(40, 99.0, 0.0),
            exact(80, 100.0, 0.0),
        ];
        let decided = recommend(&pooled, &Policy::default());
        assert_eq!((decided.recommended_concurrency, decided.interval), (Some(20), Some([20, 22])));
        assert_eq!(contenders(&decided, &Policy::default()), [15, 20, 22, 25]);
        // Unless the best is known by too few requests.
        let mut poor = pooled.clone();
        poor[6].requests = Some(400);
        assert_eq!(contenders(&recommend(&poor, &Policy::default()), &Policy::default()), [15, 20, 22, 25, 80]);
        // Where nothing is known of the noise, any of them may be the pick.
        let unknown = pooled.map(|level| LevelSummary { blocks_rps: Vec::new(), ..level });
        assert_eq!(contenders(&recommend(&unknown, &Policy::default()), &Policy::default()), [15, 20, 22, 25, 40, 80]);
    }

    /// A change that one or two rounds show may be chance; the third tells.
    #[test]
    fn a_server_that_has_changed_is_asked_three_times() {
        let mut search = Search::listed(&[10, 20], &Policy::default(), true);
        let measured = |level, rps: f64| {
            let estimate = |rps| Estimate { estimate: rps, lower: Some(0.99 * rps), upper: Some(1.01 * rps) };
            let drift = Drift { first: estimate(1.2 * rps), confirmed: estimate(rps) };
            LevelSummary { drift: Some(drift), ..exact(level, rps, 0.0) }
        };
        let pooled = [measured(10, 96.0), measured(20, 100.0)];
        assert_eq!(recommend(&pooled, &Policy::default()).drift, DriftCheck::Found);
        let rounds: Vec<u32> = std::iter::from_fn(|| search.next(&pooled)).map(|step| step.round).collect();
        assert_eq!(rounds, [0, 0, 1, 1, 2, 2, 3, 3]);
    }

    /// Half as many requests a level, so twice as many rounds; and no answer from halves.
    #[test]
    fn auto_measures_halves_and_makes_them_whole() {
        let mut search = Search::adaptive(1, 64, &Policy::default());
        assert_eq!([1, 9, 64].map(|level| search.smallest_window(level)), [1, 5, 32]);
        assert_eq!(Search::listed(&[64], &Policy::default(), true).smallest_window(64), 64);
        let mut measured: BTreeMap<usize, u64> = BTreeMap::new();
        let half = |level: usize| 100.max(5 * level as u64);
        let of = |(&level, &n): (&usize, &u64)| LevelSummary {
            requests: Some(n),
            succeeded: Some(n),
            ..exact(level, level.min(20) as f64, 0.0)
        };
        while let Some(step) = search.next(&measured.iter().map(of).collect::<Vec<_>>()) {
            assert!(step.round <= 6, "{step:?}");
            *measured.entry(step.level).or_default() += half(step.level);
        }
        let decided = recommend(&measured.iter().map(of).collect::<Vec<_>>(), &Policy::default());
        assert!(!decided.provisional && decided.recommended_concurrency.is_some(), "{decided:#?}");
        assert!(measured.iter().any(|(&level, &n)| level > 20 && n == half(level)), "{measured:?}");
    }

    /// It peaks at 22 with 9.39; 16 has 8.99, 32 has 8.88, and neither tells what lies between.
    #[test]
    fn auto_looks_for_a_peak_between_two_doublings() {
        let peaked = |level: usize| {
            let n = level as f64;
            (n / (1.0 + 0.02 * (n - 1.0) + 0.002 * n * (n - 1.0)), 0.0)
        };
        let (steps, decided) = steps(Search::adaptive(1, 512, &Policy::default()), peaked);
        let best = steps.iter().map(|step| peaked(step.level).0).fold(0.0, f64::max);
        assert!(best > 0.99 * peaked(22).0, "{steps:?}");
        assert_eq!(decided.recommended_concurrency, Some(16));
        // The bound itself: lines of slope 1 and -1, and no peak where one side is flat.
        assert_eq!(highest_between((0.0, 0.0), (2.0, 2.0), (6.0, 2.0), (8.0, 0.0)), 4.0);
        assert_eq!(highest_between((0.0, 0.0), (2.0, 2.0), (6.0, 2.0), (8.0, 2.0)), 2.0);
    }

    #[test]
    fn auto_finds_knees_and_stops_before_the_maximum() {
        for slots in [1, 3, 7, 20, 33, 100, 200] {
            let (steps, decided) = steps(Search::adaptive(1, 512, &Policy::default()), knee(slots));
            let pick = decided.recommended_concurrency.expect("a pick");
            let acceptable = (0.95 * slots as f64).ceil();
            assert!(
                pick as f64 >= acceptable && pick as f64 <= (CLOSE_BELOW * acceptable).ceil() + 1.0,
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
        assert!((42..=45).contains(&pick), "{pick}");
    }

    #[test]
    fn auto_ends_at_its_maximum_and_where_nothing_passes() {
        let (steps_up, _) = steps(Search::adaptive(1, 50, &Policy::default()), |level| (level as f64, 0.0));
        assert_eq!(steps_up.iter().map(|step| step.level).max(), Some(50));
        let (steps_none, decided) = steps(Search::adaptive(1, 50, &Policy::default()), |_| (0.0, 1.0));
        assert_eq!(steps_none.len(), 1);
        assert_eq!(decided.recommended_concurrency, None);
    }

    /// 64 is measured a little low, and 128 as it is: no gain on 32.
    #[test]
    fn auto_is_not_sent_on_by_an_unlucky_measurement_on_the_plateau() {
        let unlucky = |level: usize| (level.min(20) as f64 * if level == 64 { 0.93 } else { 1.0 }, 0.0);
        let (steps, _) = steps(Search::adaptive(1, 512, &Policy::default()), unlucky);
        assert_eq!(steps.iter().map(|step| step.level).max(), Some(128));
    }

    /// 6 of 100 requests failed, which may be chance; 60 of 100 at 64 are none.
    #[test]
    fn auto_goes_past_a_failure_that_may_be_chance() {
        let unlucky = |level: usize| {
            let errors = if level == 4 { 0.06 } else { 0.0 };
            (level.min(20) as f64, if level >= 64 { 0.6 } else { errors })
        };
        let (_, decided) = steps(Search::adaptive(1, 512, &Policy::default()), unlucky);
        assert!((19..=25).contains(&decided.recommended_concurrency.expect("a pick")), "{decided:?}");
    }

    #[test]
    fn auto_measures_no_level_twice_and_no_more_than_it_says() {
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..10 {
            let (lowest, highest) = (rng.random_range(1..4), rng.random_range(5..300));
            let mut noise = || rng.random_range(0.7..1.3);
            let noise: Vec<f64> = (0..=highest).map(|_| noise()).collect();
            let errors = |level: usize| if noise[level] > 1.25 { 0.06 } else { 0.0 };
            let search = Search::adaptive(lowest, highest, &Policy::default()).without_confirm();
            let (steps, _) = steps(search, |level| (level.min(60) as f64 * noise[level], errors(level)));
            let mut levels: Vec<usize> = steps.iter().map(|step| step.level).collect();
            levels.sort_unstable();
            let distinct = levels.windows(2).all(|pair| pair[0] < pair[1]);
            assert!(distinct && levels.iter().all(|level| (lowest..=highest).contains(level)), "{levels:?}");
            let at_most: usize = adaptive_at_most(lowest, highest).iter().sum();
            assert!(levels.iter().sum::<usize>() <= at_most, "{levels:?}");
        }
        assert_eq!(adaptive_at_most(1, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(adaptive_at_most(5, 5), [5]);
    }
}
