//! What the visits have shown: throughputs with their errors, and how each level fares at the gates.

use std::collections::{BTreeMap, BTreeSet};

use statrs::distribution::{Binomial, DiscreteCDF};

use super::Rules;
use crate::decide::{DEFAULT_P95_FACTOR, FEWEST_FOR_P99, Objective, TimeGate};

/// Everything that a race decides from. Each call gets all visits anew: a request that was in
/// flight at the previous call may have ended since.
#[derive(Default)]
pub struct Evidence<'a> {
    /// In chronological order. Visits disturbed by an outage are left out, unless their level has no others.
    pub visits: Vec<Visited<'a>>,
    /// Seconds since the run began.
    pub now_s: f64,
    /// All requests sent, for any purpose.
    pub sent: u64,
}

/// One visit and its requests.
pub struct Visited<'a> {
    pub level: usize,
    /// The measured window, which begins once the level is reached.
    pub span_s: [f64; 2],
    /// Requests that began in this span, without those that filled the loop up or were carried
    /// over from the level before. Iterated over, since a full measurement may have millions.
    pub requests: Box<dyn Fn() -> Box<dyn Iterator<Item = Seen> + 'a> + 'a>,
}

impl Visited<'_> {
    pub(super) fn middle_s(&self) -> f64 {
        (self.span_s[0] + self.span_s[1]) / 2.0
    }
}

/// One request of a visit. Times are in seconds since the run began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub start_s: f64,
    /// NaN while it is in flight.
    pub end_s: f64,
    /// How long its permit was held back after it failed.
    pub held_s: f64,
    pub failed: bool,
    /// Whether it failed without a latency but exceeds every latency limit.
    pub timed_out: bool,
    /// Output tokens, if the server reports them.
    pub tokens: Option<u32>,
    pub ttft_s: Option<f64>,
    pub tpot_s: Option<f64>,
    /// Whether it succeeded within `policy.slo`.
    pub meets_slo: bool,
}

/// Whether a level fails a gate, and whether that is beyond chance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub fails: bool,
    pub sure: bool,
    /// Whether the limit itself is not known well enough.
    pub limit_open: bool,
}

/// A verdict is sure if chance produces it in at most one of a hundred cases, or after this many requests.
const CHANCE: f64 = 0.01;
const SETTLED: usize = 400;
/// With fewer requests, a P95 fails a gate only if that is sure.
const FEWEST_FOR_P95: usize = 75;

/// What is known about a level from all its visits.
#[derive(Clone, Debug, Default)]
struct Level {
    requests: usize,
    failed: usize,
    met_slo: usize,
    /// Ascending. `f32` to save memory, since there may be millions.
    latencies: Vec<f32>,
    ttfts: Vec<f32>,
    tpots: Vec<f32>,
    /// Number of successes, sum of their tokens and of the squares; of visits that have fully ended.
    answers: [f64; 3],
    fit: Fit,
}

/// Log throughput of one visit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    /// Index of its level.
    pub at: usize,
    /// Middle of the visit, in service times.
    pub time: f64,
    pub log: f64,
    /// Variance due to the random mix of its requests.
    pub own: f64,
}

pub(super) struct Observed {
    pub levels: Vec<usize>,
    pub points: Vec<Point>,
    pub request_cv: f64,
    pub service_s: f64,
    of: BTreeMap<usize, Level>,
    /// The level that sets the default limit on P95, that limit, and the upper end of its interval.
    limit: Option<(usize, [f64; 2])>,
}

impl Observed {
    /// Visits before `warm_from_s` do not count for throughput, and count for the gates only if
    /// the level has no others. `pick` is the pick so far.
    pub fn new(evidence: &Evidence, rules: &Rules, pick: Option<usize>, warm_from_s: f64) -> Self {
        let is_cold = |visit: &Visited| visit.middle_s() < warm_from_s;
        let is_warm: BTreeSet<usize> = evidence.visits.iter().filter(|v| !is_cold(v)).map(|v| v.level).collect();
        let counts = |visit: &Visited| !is_cold(visit) || !is_warm.contains(&visit.level);
        let counted = || evidence.visits.iter().filter(|visit| counts(visit));
        let mut of: BTreeMap<usize, Level> = BTreeMap::new();
        counted().for_each(|visit| of.entry(visit.level).or_default().count(visit));
        let answers = of.values().fold([0.0; 3], |sum, of| std::array::from_fn(|i| sum[i] + of.answers[i]));
        let mean_tokens = answers[1] / answers[0].max(1.0);
        let variance = answers[2] / answers[0].max(1.0) - mean_tokens * mean_tokens;
        let shifts = of.values().any(|of| of.is_shifted_from(mean_tokens, variance));
        let typical = Some(mean_tokens).filter(|&mean| rules.control && !shifts && mean > 0.0);
        let mut shown: Vec<Shown> = counted().filter_map(|visit| Shown::of(visit, evidence.now_s, typical)).collect();
        for visit in &shown {
            of.entry(visit.level).or_default().fit.add(&visit.fit);
        }
        let slowness: BTreeMap<usize, f64> = of.iter().map(|(&level, of)| (level, of.fit.left(0.9).0)).collect();
        for (at, visit) in evidence.visits.iter().enumerate().filter(|(_, visit)| counts(visit)) {
            let next = evidence.visits.get(at + 1).map_or(visit.level, |next| next.level);
            let slower = (slowness[&next] / slowness[&visit.level]).max(1.0);
            of.entry(visit.level).or_default().add_times(visit, slower);
        }
        let times = of.values_mut().flat_map(Level::times);
        times.for_each(|times| times.sort_unstable_by(f32::total_cmp));
        shown.retain(|visit| visit.at_s >= warm_from_s);
        let control = Control::new(&of, pick);
        let alone = of.values().filter(|of| of.fit.0[0] >= 5.0).map(|of| of.fit.left(control.shared).0);
        let service_s = Some(alone.fold(f64::INFINITY, f64::min)).filter(|s| s.is_finite()).unwrap_or(1.0);
        let mut levels: Vec<usize> = shown.iter().map(|visit| visit.level).collect();
        levels.sort_unstable();
        levels.dedup();
        let objective = rules.policy.objective;
        let met = |of: &Level| (of.met_slo as f64).max(0.5) / (of.requests - of.failed).max(1) as f64;
        let points = shown.iter().map(|visit| {
            let cycle_s = visit.fit.left(control.at(visit.level)).0 + visit.lost_s;
            let worth = match (objective, visit.tokens) {
                (Objective::OutputTokens, Some(tokens)) if shifts && tokens > 0.0 => tokens,
                (Objective::Goodput, _) => of.get(&visit.level).map_or(1.0, met),
                _ => 1.0,
            };
            Point {
                at: levels.binary_search(&visit.level).unwrap_or_default(),
                time: visit.at_s / service_s,
                log: (visit.level as f64 * worth / cycle_s).ln(),
                own: control.request_cv.powi(2) / visit.requests,
            }
        });
        let points = points.collect();
        let limit = default_limit(&of, rules);
        Observed { points, request_cv: control.request_cv, levels, service_s, of, limit }
    }

    /// Drops everything above `cap`: the throughput of a failing level is on no curve.
    pub fn up_to(&mut self, cap: usize) {
        self.levels.retain(|&level| level <= cap);
        let n = self.levels.len();
        self.points.retain(|point| point.at < n);
    }

    /// Throughput at the visited level that is nearest to `level`.
    pub fn rate_at(&self, level: usize) -> f64 {
        let apart = |point: &&Point| (self.levels[point.at] as f64 / level as f64).ln().abs();
        self.points.iter().min_by(|a, b| apart(a).total_cmp(&apart(b))).map_or(1.0, |point| point.log.exp())
    }

    /// The verdict of the gates of `decide`, which use the point estimate.
    pub fn verdict(&self, level: usize, rules: &Rules) -> Verdict {
        let Some(of) = self.of.get(&level) else { return Verdict::default() };
        let (n, limit) = (of.requests, rules.policy.max_error_rate);
        let sure = surely(of.failed, n, limit).is_some() || n >= SETTLED.max(10 * level);
        let on_errors = Verdict { fails: of.fails_on_errors(limit), sure, limit_open: false };
        let on_slo = rules.policy.slo.map(|slo| {
            let known = surely(n - of.met_slo, n, 1.0 - slo.attainment);
            let fails = n >= FEWEST_FOR_P95.max(3 * level) && (of.met_slo as f64) < slo.attainment * n as f64;
            let sure = known.is_some() || n >= SETTLED.max(10 * level);
            Verdict { fails: known == Some(true) || fails, sure, limit_open: false }
        });
        let on_times = rules.policy.limits().map(|(gate, own)| self.on_time(level, of, gate, own));
        let all = || [&on_errors].into_iter().chain(&on_slo).chain(&on_times);
        all().find(|verdict| verdict.fails).copied().unwrap_or(Verdict {
            fails: false,
            sure: all().all(|verdict| verdict.sure),
            limit_open: all().any(|verdict| verdict.limit_open),
        })
    }

    fn on_time(&self, level: usize, of: &Level, gate: TimeGate, own: Option<f64>) -> Verdict {
        let (values, p, fewest) = match gate {
            TimeGate::P95 => (&of.latencies, 0.95, FEWEST_FOR_P95.max(3 * level)),
            TimeGate::P99 => (&of.latencies, 0.99, FEWEST_FOR_P99 as usize),
            TimeGate::TtftP95 => (&of.ttfts, 0.95, FEWEST_FOR_P95.max(3 * level)),
            TimeGate::TpotP95 => (&of.tpots, 0.95, FEWEST_FOR_P95.max(3 * level)),
        };
        let n = values.len();
        let known = |limit: f64| surely(n - values.partition_point(|&value| f64::from(value) <= limit), n, 1.0 - p);
        if let Some(limit) = own {
            let known = known(limit);
            let fails = known == Some(true) || (n >= fewest && quantile(values, p) > limit);
            return Verdict { fails, sure: known.is_some() || n >= SETTLED.max(10 * level), limit_open: false };
        }
        // The curves predict latency better (by Little's law, from all visits), so only a sure failure counts here.
        let default = self.limit.filter(|&(lowest, _)| gate == TimeGate::P95 && lowest < level);
        let fails = default.is_some_and(|(_, [_, at_most])| known(at_most) == Some(true));
        let is_open =
            |(_, [limit, at_most]): (usize, [f64; 2])| at_most == f64::INFINITY && quantile(values, p) > limit;
        let limit_open = !fails && default.is_some_and(is_open);
        Verdict { fails, sure: !limit_open, limit_open }
    }
}

/// Five times the P95 of the lowest passing level, and five times the upper end of its order-statistics interval.
fn default_limit(of: &BTreeMap<usize, Level>, rules: &Rules) -> Option<(usize, [f64; 2])> {
    let passes = |of: &Level| !of.fails_on_errors(rules.policy.max_error_rate) && !of.latencies.is_empty();
    let (&lowest, of) = of.iter().find(|(_, of)| passes(of))?;
    let n = of.latencies.len();
    // In 97.5 % of all cases, at least this many values lie above the percentile.
    let above = Binomial::new(0.05, n as u64).map_or(0, |binomial| binomial.inverse_cdf(0.025) as usize);
    let high = if above > 0 { of.latencies[n - above].into() } else { f64::INFINITY };
    Some((lowest, [quantile(&of.latencies, 0.95), high].map(|p95| DEFAULT_P95_FACTOR * p95)))
}

/// Whether a share, observed as `k` of `n`, is surely above the limit (`true`) or surely below it (`false`).
fn surely(k: usize, n: usize, limit: f64) -> Option<bool> {
    if at_most(k, n, limit) <= CHANCE {
        return Some(false);
    }
    (k > 0 && 1.0 - at_most(k - 1, n, limit) <= CHANCE).then_some(true)
}

fn at_most(k: usize, n: usize, p: f64) -> f64 {
    Binomial::new(p, n as u64).map_or(1.0, |binomial| binomial.cdf(k as u64))
}

/// Quantile of sorted values, Hyndman-Fan type 7.
fn quantile(sorted: &[f32], p: f64) -> f64 {
    crate::figures::quantile(sorted.len() as u64, p, |rank| sorted[rank as usize].into()).unwrap_or_default()
}

/// Answer lengths have shifted if a mean is off by this many standard errors, and by more than this share.
const SHIFTED: (f64, f64) = (4.0, 0.1);

impl Level {
    fn count(&mut self, visit: &Visited) {
        // Short answers end first: until all requests have ended, the visit says nothing about lengths.
        let is_over = (visit.requests)().all(|request| !request.end_s.is_nan());
        for request in (visit.requests)().filter(|request| !request.end_s.is_nan()) {
            self.requests += 1;
            self.met_slo += usize::from(request.meets_slo);
            self.failed += usize::from(request.failed);
            if !request.failed && is_over {
                let tokens = f64::from(request.tokens.unwrap_or_default());
                self.answers.iter_mut().zip([1.0, tokens, tokens * tokens]).for_each(|(sum, value)| *sum += value);
            }
        }
    }

    /// Adds the times, corrected for the part that ran after the visit: the next level may be `slower`.
    fn add_times(&mut self, visit: &Visited, slower: f64) {
        for request in (visit.requests)().filter(|request| !request.end_s.is_nan()) {
            if !request.failed {
                let beyond_s = (request.end_s - visit.span_s[1].max(request.start_s)).max(0.0);
                let latency = request.end_s - request.start_s - beyond_s * (1.0 - 1.0 / slower);
                self.latencies.push(latency as f32);
                self.ttfts.extend(request.ttft_s.map(|seconds| seconds as f32));
                self.tpots.extend(request.tpot_s.map(|seconds| seconds as f32));
            } else if request.timed_out {
                self.times().into_iter().for_each(|times| times.push(f32::INFINITY));
            }
        }
    }

    fn times(&mut self) -> [&mut Vec<f32>; 3] {
        [&mut self.latencies, &mut self.ttfts, &mut self.tpots]
    }

    fn fails_on_errors(&self, limit: f64) -> bool {
        self.failed >= 3 && self.failed as f64 >= limit * self.requests as f64
    }

    /// Uses the variance of all answers: if the long ones are missing by chance, the level's own is too small.
    fn is_shifted_from(&self, mean_tokens: f64, variance: f64) -> bool {
        let [n, tokens, _] = self.answers;
        let error = (variance / n).sqrt();
        let apart = (tokens / n - mean_tokens).abs();
        n >= 20.0 && apart > SHIFTED.0 * error && apart > SHIFTED.1 * mean_tokens
    }
}

/// Caps a request's weight, the inverse of the share of such requests that end within the visit.
const RAREST: f64 = 0.2;

/// The result of one visit. With reported tokens it covers the requests that began and ended in
/// it; otherwise all that began in it, since those that end in time are mostly the short ones.
struct Shown {
    level: usize,
    at_s: f64,
    fit: Fit,
    /// Number of successes, plus half of the requests in flight.
    requests: f64,
    /// Time lost to failures and held permits, per request.
    lost_s: f64,
    tokens: Option<f64>,
}

impl Shown {
    /// `typical` is the mean length of an answer; `None` if lengths are not used.
    fn of(visit: &Visited, now_s: f64, typical: Option<f64>) -> Option<Self> {
        let reports = (visit.requests)().any(|request| request.tokens.is_some() && !request.failed);
        let in_time = |request: &Seen| !reports || request.end_s <= visit.span_s[1];
        let mut starts: Vec<f64> = (visit.requests)().map(|request| request.start_s).collect();
        starts.sort_unstable_by(f64::total_cmp);
        // Requests of this latency end within the visit only if they begin early enough: weight them accordingly.
        let one_in = |latency: f64| {
            let in_time = starts.partition_point(|start_s| start_s + latency <= visit.span_s[1]) as f64;
            if reports { 1.0 / (in_time / starts.len() as f64).max(RAREST) } else { 1.0 }
        };
        let (mut fit, mut tokens, mut lost_s) = (Fit::default(), 0.0, 0.0);
        let (mut latencies, mut ages) = (Vec::new(), Vec::new());
        for request in (visit.requests)().filter(in_time) {
            if request.end_s.is_nan() {
                ages.push(now_s - request.start_s);
                continue;
            }
            let latency = request.end_s - request.start_s;
            lost_s += request.held_s + if request.failed { latency } else { 0.0 };
            if !request.failed {
                let own = f64::from(request.tokens.unwrap_or_default());
                latencies.push(latency);
                tokens += own;
                fit.add_request(latency, typical.map_or(1.0, |typical| own / typical), one_in(latency));
            }
        }
        let ended = latencies.len() as f64;
        // Those still in flight are expected to take as long as the mean of those that outlasted their current age.
        latencies.sort_unstable_by(f64::total_cmp);
        for age in &ages {
            let longer = &latencies[latencies.partition_point(|latency| latency <= age)..];
            let mean = longer.iter().sum::<f64>() / longer.len() as f64;
            fit.add_request(if longer.is_empty() { 1.3 * age } else { mean }, 1.0, 1.0);
        }
        let requests = ended + 0.5 * ages.len() as f64;
        (ended > 0.0).then_some(Shown {
            level: visit.level,
            at_s: visit.middle_s(),
            fit,
            requests,
            lost_s: lost_s / (ended + ages.len() as f64),
            tokens: reports.then_some(tokens / ended),
        })
    }
}

/// Weighted sums over requests for a linear fit of latency on length (1 for a typical answer):
/// of 1, length, its square, latency, latency times length, and latency squared; and the number
/// of requests. The weights give a long answer no more influence than a short one.
#[derive(Clone, Copy, Debug, Default)]
struct Fit([f64; 7]);

impl Fit {
    fn add_request(&mut self, latency: f64, length: f64, weight: f64) {
        let weight = weight * (0.3 + 0.7 * length).powi(-2);
        let own = [1.0, length, length * length, latency, latency * length, latency * latency].map(|x| weight * x);
        self.0.iter_mut().zip(own.into_iter().chain([1.0])).for_each(|(sum, value)| *sum += value);
    }

    fn add(&mut self, other: &Fit) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, value)| *sum += value);
    }

    /// The latency of a typical answer if this share of it grows with the length, and the sum
    /// of the squared relative residuals.
    fn left(&self, share: f64) -> (f64, f64) {
        let [one, length, square, latency, both, latency2, _] = self.0;
        let fixed = 1.0 - share;
        let cross = fixed * latency + share * both;
        let typical = cross / (fixed * fixed * one + 2.0 * fixed * share * length + share * share * square);
        (typical, (latency2 - cross * typical) / (typical * typical))
    }

    fn spread(&self) -> f64 {
        let [one, length, square, ..] = self.0;
        square - length * length / one
    }
}

/// The share of latency that grows with the length of the answer, by level, and the spread that
/// remains: a control variate (Lavenberg and Welch 1981).
struct Control {
    shared: f64,
    shares: BTreeMap<usize, f64>,
    /// Coefficient of variation of service times, without what their lengths explain.
    request_cv: f64,
}

/// Weight of the shared estimate against a level's own, in requests.
const PRIOR_REQUESTS: f64 = 4.0;

impl Control {
    /// A level uses its own share as far as it is known, and otherwise that of the levels up to the
    /// pick: above it, requests wait for one another, and their latency says less about their length.
    fn new(of: &BTreeMap<usize, Level>, pick: Option<usize>) -> Self {
        let fits = of.iter().filter(|(_, of)| of.fit.0[6] >= 4.0).map(|(&level, of)| (level, of.fit));
        let fits: Vec<(usize, Fit)> = fits.collect();
        let served = || fits.iter().filter(|(level, _)| pick.is_none_or(|pick| *level <= pick));
        let best = |left: &dyn Fn(f64) -> f64| {
            let shares = (0..=20).map(|step| f64::from(step) / 20.0);
            shares.min_by(|&a, &b| left(a).total_cmp(&left(b))).unwrap_or_default()
        };
        let left = |share: f64| served().map(|(_, fit)| fit.left(share).1).sum::<f64>();
        let shared = best(&left);
        let freedom: f64 = served().map(|(_, fit)| fit.0[6] - 1.0).sum();
        let spread = served().map(|(_, fit)| fit.spread()).sum::<f64>() / freedom;
        let own = |fit: &Fit| best(&|share| fit.left(share).1 + PRIOR_REQUESTS * spread * (share - shared).powi(2));
        let shares = fits.iter().map(|(level, fit)| (*level, own(fit))).collect();
        let request_cv = if freedom < 6.0 { 0.5 } else { (left(shared) / freedom).max(4e-4).sqrt() };
        Control { shared, shares, request_cv }
    }

    fn at(&self, level: usize) -> f64 {
        self.shares.get(&level).copied().unwrap_or(self.shared)
    }
}
