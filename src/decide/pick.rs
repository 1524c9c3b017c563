//! The pick: the smallest passing level within the tolerance of the best; its interval; or why there is no pick.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::causes::{ClientLimit, Reason};
use super::gates::value;
use super::{FULL, JudgedLevel, Objective, Policy, Raced, Status, Verdict, passing, quota, size};
use crate::figures::{BLOCKS, LevelSummary};

/// Limits on CPU use (in cores) and on timer lag (the larger of seconds and a share of the mean latency).
/// Beyond them the client is the bottleneck, and the figures describe it rather than the server.
const BUSY_CPU: f64 = 0.5;
const LATE_TIMER_S: f64 = 0.001;
const LATE_TIMER_SHARE: f64 = 0.05;
const RESAMPLES: usize = 2_000;
/// Too noisy: an interval of more levels than this, and a relative half-width of the pick above the second value.
const WIDEST_INTERVAL: usize = 3;
const NOISY_HALF_WIDTH: f64 = 0.10;

pub(super) struct Decision {
    pub(super) status: Status,
    pub(super) pick: Option<usize>,
    pub(super) interval: Option<[usize; 2]>,
    pub(super) reason: Reason,
}

impl Decision {
    fn none(status: Status, reason: Reason) -> Self {
        Decision { status, pick: None, interval: None, reason }
    }
}

/// Makes the decision. `raced` is the outcome of a race under the same policy, which provides the pick.
pub(super) fn decide(levels: &[JudgedLevel], policy: &Policy, raced: Option<&Raced>) -> Decision {
    let used: Vec<usize> = (0..levels.len()).filter(|&at| levels[at].verdict != Verdict::NotUsed).collect();
    let with_causes = |level: &JudgedLevel| (level.summary.concurrency, level.causes.clone());
    let Some(&lowest) = used.first() else {
        let lowest = levels.first().map(with_causes);
        return Decision::none(Status::Unresolved, Reason::NothingUsable { lowest });
    };
    if let Some(reached) = quota::reached(levels, policy) {
        return Decision::none(Status::RateLimited, Reason::Quota(reached));
    }
    let candidate = |&at: &usize| {
        let summary = Some(&levels[at]).filter(|level| level.verdict == Verdict::Pass).map(|level| &level.summary)?;
        let (value, blocks) = (value(summary, policy.objective)?, block_rates(summary, policy.objective));
        Some(Candidate { at, value, blocks })
    };
    let candidates: Vec<Candidate> = used.iter().filter_map(candidate).collect();
    let Some(smallest) = smallest_good(candidates.iter().map(|c| (c.at, c.value)), policy.tolerance) else {
        let lowest = Some(with_causes(&levels[lowest]));
        return Decision::none(Status::NoQualifyingLevel, Reason::NothingQualifies { lowest });
    };
    if used.len() < 2 {
        return Decision::none(Status::Unresolved, Reason::OneLevel);
    }
    let (pick, interval) = match raced {
        Some(raced) => by_race(levels, &candidates, raced, policy),
        None => by_resampling(levels, &candidates, smallest, policy),
    };
    let pick = match pick {
        Ok(pick) => pick,
        Err(reason) => return Decision { interval, ..Decision::none(Status::Unresolved, reason) },
    };
    let (status, mut reason) = explain_pick(levels, &used, &candidates, pick, policy);
    let Policy { objective, tolerance, .. } = *policy;
    if status == Status::Ok && raced.is_some() {
        reason = Reason::ByVisits { objective, tolerance };
    }
    Decision { status, pick: Some(pick), interval, reason }
}

/// The pick, or why there is none; and the interval of levels that it may be.
type Picked = (Result<usize, Reason>, Option<[usize; 2]>);

fn by_resampling(levels: &[JudgedLevel], candidates: &[Candidate], pick: usize, policy: &Policy) -> Picked {
    let interval = resampled_picks(candidates, pick, policy.tolerance);
    let wide = interval.filter(|[low, high]| high - low + 1 > WIDEST_INTERVAL);
    let noise = half_width(&levels[pick].summary).filter(|&noise| noise > NOISY_HALF_WIDTH);
    let interval = interval.map(|ends| ends.map(|at| levels[at].summary.concurrency));
    match (wide.and(interval), noise) {
        (Some(interval), Some(half_width)) => (Err(Reason::TooNoisy { interval, half_width }), Some(interval)),
        _ => (Ok(pick), interval),
    }
}

fn by_race(levels: &[JudgedLevel], candidates: &[Candidate], raced: &Raced, policy: &Policy) -> Picked {
    let interval = raced.pick.map(|pick| without_the_surely_slower(raced.interval, pick, levels, policy));
    let good_from = (1.0 - policy.tolerance) * candidates.iter().map(|candidate| candidate.value).fold(0.0, f64::max);
    // The race fits curves of throughput; goodput may fall more steeply than any of them.
    let may_be_good = |summary: &LevelSummary| {
        let goodput = summary.goodput.as_ref().filter(|_| policy.objective == Objective::Goodput);
        goodput.is_none_or(|goodput| goodput.rps.upper.unwrap_or(goodput.rps.estimate) >= good_from)
    };
    let chosen = candidates.iter().find(|candidate| Some(levels[candidate.at].summary.concurrency) == raced.pick);
    let chosen = chosen.filter(|chosen| raced.decided && may_be_good(&levels[chosen.at].summary));
    let Some(chosen) = chosen else { return (Err(Reason::NotDecided { interval }), interval) };
    // A race stops at any level that is certain to be good enough. A smaller level is preferred if the race
    // considers it possible, it was measured in full, and its own figures are within the tolerance of the best.
    let is_good = |candidate: &&Candidate| {
        let summary = &levels[candidate.at].summary;
        candidate.at == chosen.at
            || summary.concurrency >= raced.interval[0] && is_full(summary) && candidate.value >= good_from
    };
    let pick = candidates.iter().find(is_good).unwrap_or(chosen).at;
    (Ok(pick), interval)
}

/// Raises the lower end of the race's interval past levels that were measured in full and are certainly
/// not within the tolerance of the best. The race widens its interval if no curve of its family fits.
fn without_the_surely_slower(
    [low, high]: [usize; 2],
    pick: usize,
    levels: &[JudgedLevel],
    policy: &Policy,
) -> [usize; 2] {
    let ends = |level: &JudgedLevel| {
        let (value, half) = (value(&level.summary, policy.objective)?, half_width(&level.summary)?);
        Some([value * (1.0 - half), value * (1.0 + half)])
    };
    let passing = levels.iter().filter(|level| level.verdict == Verdict::Pass);
    let best = passing.filter_map(|level| Some(ends(level)?[0])).fold(0.0, f64::max);
    let is_slower = |level: &JudgedLevel| {
        is_full(&level.summary) && ends(level).is_some_and(|[_, most]| most < (1.0 - policy.tolerance) * best)
    };
    let at = |level: &JudgedLevel| level.summary.concurrency;
    if levels.iter().all(|level| at(level) != low) {
        return [low, high];
    }
    let first = levels.iter().find(|level| at(level) >= low && !is_slower(level));
    [first.map_or(pick, |level| at(level).min(pick)), high]
}

fn is_full(summary: &LevelSummary) -> bool {
    summary.requests >= Some(size(summary.concurrency, FULL))
}

/// How this client, rather than the server, limited a level; `None` if it did not.
pub(super) fn client_bound(summary: &LevelSummary) -> Option<ClientLimit> {
    let client = summary.client?;
    if let Some(cores) = client.cpu.filter(|&cpu| cpu > BUSY_CPU) {
        return Some(ClientLimit::Cpu { cores, most: BUSY_CPU });
    }
    let latency = summary.latency_s.and_then(|latency| latency.mean).unwrap_or_default();
    let most_s = LATE_TIMER_S.max(LATE_TIMER_SHARE * latency);
    let late_s = client.timer_lag_p95_s.filter(|&lag| lag > most_s)?;
    Some(ClientLimit::Timers { late_s, most_s })
}

struct Candidate {
    at: usize,
    value: f64,
    blocks: Vec<f64>,
}

/// Rates of the cohort's blocks; if the file has no blocks, of the windows.
pub(super) fn block_rates(summary: &LevelSummary, objective: Objective) -> Vec<f64> {
    if objective == Objective::Goodput {
        return summary.goodput.as_ref().map(|goodput| goodput.blocks_rps.clone()).unwrap_or_default();
    }
    if !summary.blocks_rps.is_empty() {
        return summary.blocks_rps.clone();
    }
    let windows = summary.samples.iter().flatten().filter(|window| window.duration_s > 0.0);
    windows.map(|window| window.succeeded as f64 / window.duration_s).collect()
}

/// The smallest level within `tolerance` of the best. Takes levels and their values, ascending by level.
pub fn smallest_good(values: impl Iterator<Item = (usize, f64)> + Clone, tolerance: f64) -> Option<usize> {
    let best = values.clone().map(|(_, value)| value).max_by(f64::total_cmp)?;
    values.filter(|(_, value)| *value >= (1.0 - tolerance) * best).map(|(at, _)| at).next()
}

/// The central 95 % of the picks when each level's blocks are resampled with replacement (the percentile
/// bootstrap of Efron 1979), widened if necessary to include the pick itself.
///
/// The gates are held fixed. `None` if a level has fewer than two blocks: it would appear to be free of noise.
fn resampled_picks(candidates: &[Candidate], pick: usize, tolerance: f64) -> Option<[usize; 2]> {
    if candidates.iter().any(|candidate| candidate.blocks.len() < 2) {
        return None;
    }
    let mut rng = StdRng::seed_from_u64(42);
    let mut picks: Vec<usize> = (0..RESAMPLES)
        .filter_map(|_| {
            let values: Vec<_> = candidates.iter().map(|c| (c.at, resample(c, &mut rng))).collect();
            smallest_good(values.into_iter(), tolerance)
        })
        .collect();
    picks.sort_unstable();
    let tail = RESAMPLES / 40;
    let (low, high) = (picks.get(tail)?, picks.get(RESAMPLES - 1 - tail)?);
    Some([pick.min(*low), pick.max(*high)])
}

/// The candidate's value after resampling its measurements and, within each, the blocks: scaled by the ratio of the
/// resampled mean to the original mean.
///
/// In two stages, because a server may be faster or slower throughout a measurement: all its blocks are then off
/// together, and their scatter does not show it (Davison and Hinkley, "Bootstrap Methods and their Application", 3.8).
fn resample(candidate: &Candidate, rng: &mut StdRng) -> f64 {
    let blocks = &candidate.blocks;
    let original = blocks.iter().sum::<f64>() / blocks.len() as f64;
    if original <= 0.0 {
        return candidate.value;
    }
    let measurements: Vec<&[f64]> = blocks.chunks(BLOCKS).collect();
    let (mut drawn, mut n) = (0.0, 0);
    for _ in 0..measurements.len() {
        let measurement = measurements[rng.random_range(0..measurements.len())];
        drawn += measurement.iter().map(|_| measurement[rng.random_range(0..measurement.len())]).sum::<f64>();
        n += measurement.len();
    }
    let ratio = drawn / n as f64 / original;
    // The variance of a mean of k draws from k values is too small by a factor of (k - 1) / k: half for two.
    let k = if measurements.len() > 1 { measurements.len() } else { blocks.len() } as f64;
    candidate.value * (1.0 + (ratio - 1.0) * (k / (k - 1.0)).sqrt())
}

pub(crate) fn half_width(summary: &LevelSummary) -> Option<f64> {
    let throughput = summary.throughput_rps?;
    throughput.half_width().filter(|_| throughput.estimate > 0.0).map(|half| half / throughput.estimate)
}

fn explain_pick(
    levels: &[JudgedLevel],
    used: &[usize],
    candidates: &[Candidate],
    pick: usize,
    policy: &Policy,
) -> (Status, Reason) {
    let level = levels[pick].summary.concurrency;
    let (lowest, highest) = (used[0], used[used.len() - 1]);
    if pick == highest {
        return (Status::NotSaturated, Reason::StillRising { level, is_highest: highest + 1 == levels.len() });
    }
    let last_passing = candidates.iter().map(|c| c.at).max();
    if let Some(above) = used.iter().find(|&&at| at > pick).filter(|_| last_passing == Some(pick)) {
        let (failed, causes) = (levels[*above].summary.concurrency, levels[*above].causes.clone());
        return (Status::LimitedByGate, Reason::LastPassing { level, failed, causes });
    }
    if pick == lowest && level > 1 {
        return (Status::AtOrBelowLowest, Reason::LowestTested { level });
    }
    let Policy { objective, tolerance, .. } = *policy;
    let best = value(&levels[pick].summary, objective).zip(best_passing(levels, policy.objective));
    let of_best = best
        .filter(|(own, (_, highest))| own < highest)
        .map(|(own, (best, highest))| (own / highest, best.summary.concurrency));
    (Status::Ok, Reason::WithinTolerance { objective, tolerance, of_best })
}

/// The passing level with the best value of the objective, and that value. The lower level wins ties.
pub fn best_passing(levels: &[JudgedLevel], objective: Objective) -> Option<(&JudgedLevel, f64)> {
    let values = passing(levels).filter_map(|level| Some((level, value(&level.summary, objective)?)));
    values.reduce(|best, next| if next.1 > best.1 { next } else { best })
}
