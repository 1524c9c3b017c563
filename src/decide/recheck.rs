//! Whether a number still holds, from a few requests a night at its level and at one on either side. Pure.
//!
//! Three figures decide, each compared with the run: the speed of the server, the gain from the level below to the
//! number, and the gain from the number to the level above. A night's speed cancels out of the gains, since all three
//! levels share it. A lost or new gain shows sooner if its level is compared with both others than with one; to count,
//! it must also show against the number alone. Nights accumulate: the last one, two, three or all of them are compared
//! with the run and the nights before. The false-alarm probabilities of all comparisons add up to less than 1 % a
//! night, whatever their dependence (Bonferroni); the rest allows for the variance of requests, estimated from few of
//! them. A number holds only if a change that would matter is excluded; in between, there is no verdict.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

use super::{JudgedLevel, Policy, passing, standard_error};
use crate::figures::{Request, Requests, wilson};

/// Standard deviation of the logarithm of a server's speed between nights or runs.
const BETWEEN_NIGHTS: f64 = 0.05;
/// Least relative error of a level's rate in a run or night, whatever its requests show: speed wanders within an hour.
const AT_BEST: f64 = 0.02;
/// Lower limit on the coefficient of variation of requests, beyond what their lengths explain.
const LEAST_CV: f64 = 0.1;
/// A slowdown that must be excluded for a number to hold, and the probability of missing a change that was excluded.
const FALL: f64 = 0.2;
const OVERLOOKED: f64 = 0.05;

/// Numbers of latest nights to compare, each with its false-alarm probability. Most of it goes to
/// the window in which the change should be found: two nights for a slowdown, three for a gain. A
/// lost gain also slows the number down, which shows sooner.
type Windows = [(usize, f64); 3];
const OF_SPEED: Windows = [(1, 0.0004), (2, 0.0058), (usize::MAX, 0.0002)];
const OF_GAIN_ABOVE: Windows = [(1, 0.0002), (3, 0.0013), (usize::MAX, 0.0001)];
const OF_GAIN_BELOW: Windows = [(1, 0.0001), (3, 0.0002), (usize::MAX, 0.0001)];

/// Logarithm of a rate, and its variance; for a night, only the variance due to its requests.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    pub log: f64,
    pub variance: f64,
}

/// The results of one level in one night.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LevelRates {
    pub level: usize,
    pub requests: u64,
    pub failed: u64,
    /// Successes per second; and output tokens per second if all are known, which random answer lengths do not affect.
    pub rps: Option<Rate>,
    pub tps: Option<Rate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    Holds,
    TooLow,
    TooHigh,
    ServerSlower,
    CannotTell,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rechecked {
    pub verdict: Holds,
    /// Number of nights, including tonight.
    pub nights: usize,
    /// Tonight's error rate at the number.
    pub error_rate: f64,
    /// Change against the run as a fraction, with its 95 % interval.
    pub speed: Option<(f64, [f64; 2])>,
    /// The gains from the level below to the number, and from the number to the level above: the
    /// other level, the relative gain now, and that of the run.
    pub below: Option<(usize, f64, f64)>,
    pub above: Option<(usize, f64, f64)>,
}

/// The levels to visit: `number`, and those a factor of 1.3 below and above, if the run tells what
/// to expect there.
pub fn levels(number: usize, run: &[JudgedLevel]) -> Vec<usize> {
    let below = ((number as f64 / 1.3).round() as usize).min(number.saturating_sub(1));
    let above = ((number as f64 * 1.3).round() as usize).max(number + 1);
    let known = |level: &usize| *level == number || (*level > 0 && then(run, *level, false).is_some());
    [below, number, above].into_iter().filter(known).collect()
}

/// The run's rate at a level, interpolated if it was not measured. Throughput grows at most in proportion
/// to the level: half the gap between that bound and the interpolation counts as its standard deviation.
fn then(run: &[JudgedLevel], level: usize, tokens: bool) -> Option<Rate> {
    let rate = |of: &JudgedLevel| {
        let rate = if tokens { of.summary.output_tps } else { of.throughput() };
        let variance = standard_error(&of.summary).max(AT_BEST).powi(2);
        Some(Rate { log: rate.filter(|&rate| rate > 0.0)?.ln(), variance })
    };
    let at = |of: &JudgedLevel| of.summary.concurrency;
    let (lower, upper) = (passing(run).filter(|of| at(of) <= level).last()?, passing(run).find(|of| at(of) >= level)?);
    let (low, high) = (rate(lower)?, rate(upper)?);
    if at(lower) == at(upper) {
        return Some(low);
    }
    let position = |level: usize| (level as f64 / at(lower) as f64).ln();
    let share = position(level) / position(at(upper));
    let line = low.log + share * (high.log - low.log);
    let most = (low.log + position(level)).min(low.log.max(high.log));
    let unknown = (most - line).max(0.0) / 2.0;
    Some(Rate { log: line, variance: low.variance.max(high.variance) + unknown * unknown })
}

/// The requests of a level, each with the share of its life inside the level's windows; and the windows' total length.
struct Seen<'a> {
    seconds: f64,
    requests: Vec<(f64, &'a Request)>,
}

impl Seen<'_> {
    fn successes(&self) -> impl Iterator<Item = &(f64, &Request)> {
        self.requests.iter().filter(|(_, request)| request.is_success())
    }

    /// Sum over the successes, weighted by their shares.
    fn sum(&self, value: impl Fn(&Request) -> f64) -> f64 {
        self.successes().map(|(share, request)| share * value(request)).sum()
    }
}

/// The rates of a night by level, from its windows (level, from, to) and requests.
pub fn rates_by_level(windows: &[(usize, [f64; 2])], requests: &Requests) -> Vec<LevelRates> {
    let mut by_level: BTreeMap<usize, Vec<[f64; 2]>> = BTreeMap::new();
    windows.iter().for_each(|&(level, window)| by_level.entry(level).or_default().push(window));
    let (levels, windows): (Vec<usize>, Vec<_>) = by_level.into_iter().unzip();
    let of_level = |windows: &Vec<[f64; 2]>| {
        let share = |request: &Request| windows.iter().map(|window| request.share(*window)).sum::<f64>();
        let requests = requests.rows.iter().map(|request| (share(request), request)).filter(|(share, _)| *share > 0.0);
        Seen { seconds: windows.iter().map(|[from, to]| to - from).sum(), requests: requests.collect() }
    };
    let seen: Vec<Seen> = windows.iter().map(of_level).collect();
    let has_tokens = |(_, request): &(f64, &Request)| !request.is_success() || request.output_tokens().is_some();
    let all_have = seen.iter().flat_map(|of| &of.requests).all(has_tokens);
    let rps = rates(&seen, |_| 1.0);
    let tps = rates(&seen, |request| f64::from(request.output_tokens().unwrap_or_default()));
    let of_level = |(at, level): (usize, usize)| LevelRates {
        level,
        requests: seen[at].requests.len() as u64,
        failed: seen[at].requests.iter().filter(|(_, request)| !request.is_success()).count() as u64,
        rps: rps[at],
        tps: tps[at].filter(|_| all_have),
    };
    levels.into_iter().enumerate().map(of_level).collect()
}

/// Work per second by level. The variance is that of a ratio's residuals, pooled over the levels (Cochran 1977,
/// "Sampling Techniques", 6.4). A window counts as its effective number of requests (Kish 1965, "Survey Sampling",
/// 11.7), which is more than the sum of the shares: a request that is partly inside still shows all its latency.
fn rates(seen: &[Seen], work: impl Fn(&Request) -> f64) -> Vec<Option<Rate>> {
    let latency = |request: &Request| request.end_s - request.start_s;
    let (mut squares, mut freedom) = (0.0, -(seen.len() as f64));
    for of in seen {
        let (n, done) = (of.sum(|_| 1.0), of.sum(&work));
        let ratio = done / of.sum(latency);
        squares += of.sum(|request| ((work(request) - ratio * latency(request)) * n / done).powi(2));
        freedom += n;
    }
    let cv2 = (squares / freedom.max(1.0)).max(LEAST_CV * LEAST_CV);
    let rate = |of: &Seen| {
        let log = (of.sum(&work) / of.seconds).ln();
        let whole = of.sum(|_| 1.0).powi(2) / of.successes().map(|(share, _)| share * share).sum::<f64>();
        log.is_finite().then(|| Rate { log, variance: cv2 / whole })
    };
    seen.iter().map(rate).collect()
}

/// Each night's figure minus that of the run, tonight's last; and the variance of the run's figure.
struct Series {
    run: f64,
    nights: Vec<Rate>,
}

impl Series {
    /// Mean of the last nights minus that of the run and the nights before, and its standard deviation.
    fn change(&self, last: usize) -> (f64, f64) {
        let (before, after) = self.nights.split_at(self.nights.len().saturating_sub(last));
        let run = Rate { log: 0.0, variance: self.run };
        let (before, after) = (mean(before.iter().copied().chain([run])), mean(after.iter().copied()));
        (after.log - before.log, (before.variance + after.variance).sqrt())
    }

    /// Whether any of the windows shows a change up (1) or down (-1).
    fn shows(&self, sign: f64, windows: Windows) -> bool {
        let n = self.nights.len();
        // Windows longer than the number of nights pass their probability on to the longest possible one.
        let mut chances = windows.map(|(last, chance)| (last.min(n), chance));
        chances.reverse();
        let chance = |last| chances.iter().filter(|of| of.0 == last).map(|of| of.1).sum::<f64>();
        n > 0
            && chances.iter().any(|&(last, _)| {
                let (change, deviation) = self.change(last);
                sign * change > z(1.0 - chance(last)) * deviation
            })
    }

    fn moved(&self) -> (f64, [f64; 2]) {
        let (change, deviation) = self.change(self.nights.len());
        let at = |sigmas: f64| (change + sigmas * deviation).exp() - 1.0;
        (at(0.0), [-1.96, 1.96].map(at))
    }
}

/// Mean weighted by the inverse variances; NaN for no values.
fn mean(values: impl Iterator<Item = Rate>) -> Rate {
    let (sum, weight) =
        values.fold((0.0, 0.0), |(sum, weight), of| (sum + of.log / of.variance, weight + 1.0 / of.variance));
    Rate { log: sum / weight, variance: 1.0 / weight }
}

fn z(p: f64) -> f64 {
    Normal::standard().inverse_cdf(p)
}

/// The gain from one level to the next: in the run, and how the nights differ from it.
struct Gain {
    /// The level other than the number.
    level: usize,
    then: f64,
    of_both: Series,
    /// Like `of_both` (this level and the number), but between this level and all others.
    of_all: Series,
}

impl Gain {
    /// The gain in the last three nights, with its standard deviation.
    fn now(&self, series: &Series) -> (f64, f64) {
        let (change, deviation) = series.change(3);
        (self.then + change, deviation)
    }

    fn now_and_then(&self) -> (usize, f64, f64) {
        (self.level, self.now(&self.of_both).0.exp() - 1.0, self.then.exp() - 1.0)
    }
}

/// `nights` are all nights since the run that were spent on `number`, tonight's last.
pub fn recheck(number: usize, run: &[JudgedLevel], nights: &[Vec<LevelRates>], policy: &Policy) -> Rechecked {
    let mut all = nights.iter().flatten();
    let with_tokens = then(run, number, true).is_some() && all.all(|of| of.tps.is_some() || of.rps.is_none());
    let at = |night: &Vec<LevelRates>, level: usize| night.iter().find(|of| of.level == level).cloned();
    let rate = |night: &Vec<LevelRates>, level| {
        at(night, level).and_then(|of: LevelRates| if with_tokens { of.tps } else { of.rps })
    };
    let levels = levels(number, run);
    let then = |level: usize| then(run, level, with_tokens);
    let of_run = |levels: &[usize]| mean(levels.iter().filter_map(|&level| then(level))).variance;
    // The change against the run.
    let of_night = |night: &Vec<LevelRates>, levels: &[usize]| {
        let of_level = |&level: &usize| {
            let (now, then) = (rate(night, level)?, then(level)?);
            Some(Rate { log: now.log - then.log, ..now })
        };
        Some(mean(levels.iter().filter_map(of_level))).filter(|mean| mean.log.is_finite())
    };
    let further = |rate: Rate, variance: f64| Rate { variance: rate.variance + variance, ..rate };
    let between = BETWEEN_NIGHTS.powi(2);
    let of_speed = |night| Some(further(of_night(night, &levels)?, between + AT_BEST * AT_BEST));
    let speed = Series { run: of_run(&levels) + between, nights: nights.iter().filter_map(of_speed).collect() };
    let series = |level: usize, others: &[usize]| {
        let sign = if level < number { -1.0 } else { 1.0 };
        let of_gain = |night: &Vec<LevelRates>| {
            let (level, others) = (of_night(night, &[level])?, of_night(night, others)?);
            let rate = Rate { log: sign * (level.log - others.log), ..level };
            Some(further(rate, others.variance + 2.0 * AT_BEST * AT_BEST))
        };
        Series { run: of_run(&[level]) + of_run(others), nights: nights.iter().filter_map(of_gain).collect() }
    };
    let gain = |level: usize| {
        let [low, high] = [level.min(number), level.max(number)].map(then);
        let others: Vec<usize> = levels.iter().copied().filter(|&other| other != level).collect();
        let (of_both, of_all) = (series(level, &[number]), series(level, &others));
        let gain = Gain { level, then: high?.log - low?.log, of_both, of_all };
        Some(gain).filter(|gain| !gain.of_both.nights.is_empty())
    };
    let below = levels.iter().find(|&&level| level < number).and_then(|&level| gain(level));
    let above = levels.iter().find(|&&level| level > number).and_then(|&level| gain(level));
    let tolerated = -(1.0 - policy.tolerance).ln();
    let slower = speed.shows(-1.0, OF_SPEED);
    // At least half of the gain is gone: the level below would do.
    let gone = below.as_ref().filter(|gain| gain.then > tolerated && gain.now(&gain.of_both).0 < gain.then / 2.0);
    let risen = above.as_ref().filter(|gain| gain.now(&gain.of_both).0 > tolerated);
    let unseen = z(1.0 - OVERLOOKED);
    // Tonight alone: earlier nights would mask a recent change.
    let may_be_slower = || {
        let (change, deviation) = speed.change(1);
        change - unseen * deviation < (1.0 - FALL).ln()
    };
    let may_be_gone = |gain: &Gain| {
        let (now, deviation) = gain.now(&gain.of_all);
        gain.then > tolerated && now < unseen * deviation
    };
    let may_rise = |gain: &Gain| {
        let (now, deviation) = gain.now(&gain.of_all);
        now + unseen * deviation > (gain.level as f64 / number as f64).ln()
    };
    let failures = |level| {
        let tonight = nights.last().and_then(|night| at(night, level));
        tonight.map_or((0, 0), |of| (of.failed, of.requests))
    };
    let (failed, requests) = failures(number);
    let fails = wilson(failed, requests).is_some_and(|[low, _]| low >= policy.max_error_rate);
    let is_the_load = below.as_ref().map(|gain| failures(gain.level));
    let is_the_load = is_the_load.is_some_and(|(failed, of)| (failed as f64) < policy.max_error_rate * of as f64);
    let verdict = match () {
        () if fails && is_the_load => Holds::TooHigh,
        () if fails => Holds::CannotTell,
        () if nights.is_empty() || speed.nights.len() < nights.len() => Holds::CannotTell,
        () if gone.is_some_and(|gain| slower || gain.of_all.shows(-1.0, OF_GAIN_BELOW)) => Holds::TooHigh,
        () if risen.is_some_and(|gain| gain.of_all.shows(1.0, OF_GAIN_ABOVE)) => Holds::TooLow,
        () if slower => Holds::ServerSlower,
        () if may_be_slower() || below.as_ref().is_some_and(may_be_gone) || above.as_ref().is_some_and(may_rise) => {
            Holds::CannotTell
        }
        () => Holds::Holds,
    };
    Rechecked {
        verdict,
        nights: nights.len(),
        error_rate: failed as f64 / requests.max(1) as f64,
        speed: (!speed.nights.is_empty()).then(|| speed.moved()),
        below: below.as_ref().map(Gain::now_and_then),
        above: above.as_ref().map(Gain::now_and_then),
    }
}
