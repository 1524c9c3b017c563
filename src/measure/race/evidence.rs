//! What the visits have shown: throughputs with their errors, and how each level stands at the gates.

use std::collections::BTreeMap;

use statrs::distribution::{Binomial, DiscreteCDF};

use super::Rules;
use crate::decide::{Gate, Objective};

/// All that a race decides from. The engine gives all visits each time: a request that was on its way at the last call
/// may have ended since.
#[derive(Default)]
pub struct Evidence<'a> {
    /// In the order of time. Not those that were disturbed (an outage) and are made again.
    pub visits: Vec<Visited<'a>>,
    /// Seconds since the run began.
    pub now_s: f64,
    /// All requests that were sent, whatever for.
    pub sent: u64,
}

/// One visit as it was made.
pub struct Visited<'a> {
    pub level: usize,
    /// From the moment at which the level was reached to the start of the last request.
    pub span_s: [f64; 2],
    /// Those that began inside, without those that filled the loop up or came over from the level before.
    /// They are told one by one, since a measurement in full may be of millions.
    pub requests: Box<dyn Fn() -> Box<dyn Iterator<Item = Seen> + 'a> + 'a>,
}

impl Visited<'_> {
    fn middle_s(&self) -> f64 {
        (self.span_s[0] + self.span_s[1]) / 2.0
    }
}

/// One request of a visit. Times in seconds since the run began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub start_s: f64,
    /// Not a number while it is on its way.
    pub end_s: f64,
    /// How long its permit was held back after it had failed.
    pub held_s: f64,
    pub failed: bool,
    /// A failure that has no latency but is beyond every limit on one.
    pub timed_out: bool,
    /// Output tokens, where the server reports them.
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
    /// It is the limit that is not known well enough.
    pub limit_open: bool,
}

/// A verdict is sure where chance leads to it in one of a hundred cases; and as sure as it gets with so many requests.
const CHANCE: f64 = 0.01;
const SETTLED: usize = 400;
/// See `SMALLEST_N_FOR_P99` of the gates.
const FEWEST_FOR_P99: usize = 400;
/// A P95 of fewer requests fails nothing but surely.
const FEWEST_FOR_P95: usize = 75;
const DEFAULT_P95_FACTOR: f64 = 5.0;
/// What is known of a level from all its visits.
#[derive(Clone, Debug, Default)]
struct Level {
    requests: usize,
    failed: usize,
    /// Ascending. Small, since there may be millions.
    latencies: Vec<f32>,
    ttfts: Vec<f32>,
    tpots: Vec<f32>,
    met_slo: usize,
    /// All successes, ended in time or not, their tokens and the squares of these.
    answers: [f64; 3],
    /// Over the successes that the throughput rests on: number, latency, its square, tokens, their square, and latency
    /// times tokens.
    sums: [f64; 6],
}

/// Logarithm of a throughput.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    /// The place of its level.
    pub at: usize,
    /// The middle of the visit, in service times.
    pub time: f64,
    pub log: f64,
    /// The variance that comes of the luck of its requests.
    pub own: f64,
}

pub(super) struct Observed {
    pub levels: Vec<usize>,
    pub points: Vec<Point>,
    pub request_cv: f64,
    pub service_s: f64,
    of: BTreeMap<usize, Level>,
}

/// What one visit showed: by the requests that began and ended in it, where the server reports their tokens; else by all
/// that began in it, since those that end in time are the short ones.
struct Shown {
    level: usize,
    at_s: f64,
    succeeded: f64,
    share: f64,
    cycle_s: f64,
    tokens: Option<f64>,
}

impl Observed {
    /// What was seen before `warm_from_s` says nothing of throughput, and of the gates only where a level has no other
    /// visit.
    pub fn new(evidence: &Evidence, rules: &Rules, pick: Option<usize>, warm_from_s: f64) -> Self {
        let mut of: BTreeMap<usize, Level> = BTreeMap::new();
        let is_cold = |visit: &Visited| visit.middle_s() < warm_from_s;
        let only_cold = |level: usize| evidence.visits.iter().all(|visit| visit.level != level || is_cold(visit));
        let counts = evidence.visits.iter().filter(|visit| !is_cold(visit) || only_cold(visit.level));
        let mut shown: Vec<Shown> = counts.filter_map(|visit| shown(visit, evidence.now_s, &mut of)).collect();
        shown.retain(|visit| visit.at_s >= warm_from_s);
        for level in of.values_mut() {
            level.latencies.sort_unstable_by(f32::total_cmp);
            level.ttfts.sort_unstable_by(f32::total_cmp);
            level.tpots.sort_unstable_by(f32::total_cmp);
        }
        let control = Control::new(&of, rules, pick);
        let alone = of.values().filter(|level| level.sums[0] >= 5.0).map(|level| level.sums[1] / level.sums[0]);
        let service_s = Some(alone.fold(f64::INFINITY, f64::min)).filter(|s| s.is_finite()).unwrap_or(1.0);
        let mut levels: Vec<usize> = shown.iter().map(|visit| visit.level).collect();
        levels.sort_unstable();
        levels.dedup();
        let objective = rules.policy.objective;
        let met = |of: &Level| (of.met_slo as f64).max(0.5) / of.answers[0].max(1.0);
        let points = shown.iter().map(|visit| {
            let more = visit.tokens.map_or(0.0, |tokens| control.seconds_for(visit.level, tokens));
            let cycle = (visit.cycle_s - visit.share * more).max(0.3 * visit.cycle_s);
            let worth = match (objective, visit.tokens) {
                (Objective::OutputTokens, Some(tokens)) if control.shifts && tokens > 0.0 => tokens,
                (Objective::Goodput, _) => of.get(&visit.level).map_or(1.0, met),
                _ => 1.0,
            };
            Point {
                at: levels.binary_search(&visit.level).unwrap_or_default(),
                time: visit.at_s / service_s,
                log: (visit.level as f64 * visit.share * worth / cycle).ln(),
                own: control.request_cv.powi(2) / visit.succeeded.max(1.0),
            }
        });
        Observed { points: points.collect(), request_cv: control.request_cv, levels, service_s, of }
    }

    /// Without what lies above `cap`: what a level serves that fails is on no curve.
    pub fn up_to(&mut self, cap: usize) {
        self.levels.retain(|&level| level <= cap);
        let n = self.levels.len();
        self.points.retain(|point| point.at < n);
    }

    /// Throughput at the nearest level that was visited.
    pub fn rate_at(&self, level: usize) -> f64 {
        let apart = |point: &&Point| (self.levels[point.at] as f64 / level as f64).ln().abs();
        self.points.iter().min_by(|a, b| apart(a).total_cmp(&apart(b))).map_or(1.0, |point| point.log.exp())
    }

    /// By the gates of `decide`, which look at the point estimate.
    pub fn verdict(&self, level: usize, rules: &Rules) -> Verdict {
        let Some(of) = self.of.get(&level) else { return Verdict::default() };
        let n = of.requests;
        let limit = rules.policy.max_error_rate;
        let mut verdict = Verdict {
            fails: of.failed >= 3 && of.failed as f64 >= limit * n as f64,
            sure: surely(of.failed, n, limit).is_some() || n >= SETTLED.max(10 * level),
            limit_open: false,
        };
        if verdict.fails {
            return verdict;
        }
        if let Some(slo) = rules.policy.slo {
            let known = surely(n - of.met_slo, n, 1.0 - slo.attainment);
            let sure = known.is_some() || n >= SETTLED.max(10 * level);
            let fails = n >= FEWEST_FOR_P95.max(3 * level) && (of.met_slo as f64) < slo.attainment * n as f64;
            if known == Some(true) || fails {
                return Verdict { fails: true, sure, limit_open: false };
            }
            verdict.sure &= sure;
        }
        for (gate, own) in rules.policy.limits() {
            let (values, p) = match gate {
                Gate::P95 => (&of.latencies, 0.95),
                Gate::P99 => (&of.latencies, 0.99),
                Gate::TpotP95 => (&of.tpots, 0.95),
                _ => (&of.ttfts, 0.95),
            };
            let n = values.len();
            let above = |limit: f64| values.len() - values.partition_point(|&value| f64::from(value) <= limit);
            let Some(limit) = own else {
                if gate == Gate::P95
                    && let Some([limit, at_most]) = self.default_limit(level, rules)
                {
                    if surely(above(at_most), n, 1.0 - p) == Some(true) {
                        return Verdict { fails: true, sure: true, limit_open: false };
                    }
                    verdict.limit_open = at_most == f64::INFINITY && quantile(values, p) > limit;
                    verdict.sure &= !verdict.limit_open;
                }
                continue;
            };
            let known = surely(above(limit), n, 1.0 - p);
            let fewest = if gate == Gate::P99 { FEWEST_FOR_P99 } else { FEWEST_FOR_P95.max(3 * level) };
            let sure = known.is_some() || n >= SETTLED.max(10 * level);
            if known == Some(true) || (n >= fewest && quantile(values, p) > limit) {
                return Verdict { fails: true, sure, limit_open: false };
            }
            verdict.sure &= sure;
        }
        verdict
    }

    /// Five times the P95 of the lowest level, and the upper end of its interval of order statistics; none for that level
    /// itself. The curves know better how latency grows (by Little's law, from all visits), so this fails only what surely
    /// fails.
    fn default_limit(&self, level: usize, rules: &Rules) -> Option<[f64; 2]> {
        let passes =
            |of: &Level| of.failed < 3 || (of.failed as f64) < rules.policy.max_error_rate * of.requests as f64;
        let lowest = self.of.iter().find(|(_, of)| passes(of) && !of.latencies.is_empty());
        let (_, of) = lowest.filter(|(lowest, _)| **lowest < level)?;
        let n = of.latencies.len();
        // So many of the values lie above the percentile but in 2.5 % of all cases.
        let above = Binomial::new(0.05, n as u64).ok()?.inverse_cdf(0.025) as usize;
        let high = if above > 0 { of.latencies[n - above].into() } else { f64::INFINITY };
        Some([quantile(&of.latencies, 0.95), high].map(|p95| DEFAULT_P95_FACTOR * p95))
    }
}

/// Whether a share is surely above a limit (`true`) or below it, by so many of `n`.
fn surely(k: usize, n: usize, limit: f64) -> Option<bool> {
    if at_most(k, n, limit) <= CHANCE {
        return Some(false);
    }
    (k > 0 && 1.0 - at_most(k - 1, n, limit) <= CHANCE).then_some(true)
}

/// The probability of at most `k` of `n` by the binomial distribution.
fn at_most(k: usize, n: usize, p: f64) -> f64 {
    let mut log = n as f64 * (1.0 - p).ln();
    let mut sum = log.exp();
    for i in 0..k.min(n) {
        log += ((n - i) as f64 / (i + 1) as f64 * p / (1.0 - p)).ln();
        sum += log.exp();
    }
    sum
}

/// Hyndman-Fan type 7.
fn quantile(sorted: &[f32], p: f64) -> f64 {
    crate::figures::quantile(sorted.len() as u64, p, |rank| sorted[rank as usize].into()).unwrap_or_default()
}

fn shown(visit: &Visited, now_s: f64, of: &mut BTreeMap<usize, Level>) -> Option<Shown> {
    let of = of.entry(visit.level).or_default();
    let reports = (visit.requests)().any(|request| request.tokens.is_some() && !request.failed);
    let is_awaited = (visit.requests)().any(|request| request.end_s.is_nan());
    let most = (visit.requests)().size_hint().1.unwrap_or_default();
    of.latencies.reserve(most);
    of.ttfts.reserve(most);
    let (mut requests, mut succeeded, mut cycles, mut tokens, mut answers) = (0.0, 0.0, 0.0, 0.0, 0.0);
    let (mut latencies, mut ages) = (Vec::new(), Vec::new());
    for request in (visit.requests)() {
        let has_ended = !request.end_s.is_nan();
        let latency = request.end_s - request.start_s;
        let own = f64::from(request.tokens.unwrap_or_default());
        if has_ended {
            of.requests += 1;
            of.failed += usize::from(request.failed);
            if !request.failed {
                of.latencies.push(latency as f32);
                of.ttfts.extend(request.ttft_s.map(|ttft_s| ttft_s as f32));
                of.tpots.extend(request.tpot_s.map(|tpot_s| tpot_s as f32));
                of.met_slo += usize::from(request.meets_slo);
                of.answers = [of.answers[0] + 1.0, of.answers[1] + own, of.answers[2] + own * own];
            } else if request.timed_out {
                of.latencies.push(f32::INFINITY);
                of.ttfts.push(f32::INFINITY);
                of.tpots.push(f32::INFINITY);
            }
        }
        if reports && (!has_ended || request.end_s > visit.span_s[1]) {
            continue;
        }
        requests += 1.0;
        succeeded += f64::from(u8::from(!request.failed));
        if !has_ended {
            ages.push(now_s - request.start_s);
            continue;
        }
        cycles += latency + request.held_s;
        if request.failed {
            continue;
        }
        if is_awaited {
            latencies.push(latency);
        }
        answers += 1.0;
        tokens += own;
        let of_request = [1.0, latency, latency * latency, own, own * own, latency * own];
        of.sums.iter_mut().zip(of_request).for_each(|(sum, value)| *sum += value);
    }
    // Those that are still on their way will take as long as the others that took longer than they have by now.
    latencies.sort_unstable_by(f64::total_cmp);
    for age in &ages {
        let longer = &latencies[latencies.partition_point(|latency| latency <= age)..];
        let mean = longer.iter().sum::<f64>() / longer.len() as f64;
        cycles += if longer.is_empty() { 1.3 * age } else { mean };
    }
    let shown = Shown {
        level: visit.level,
        at_s: visit.middle_s(),
        succeeded: succeeded - 0.5 * ages.len() as f64,
        share: succeeded / requests,
        cycle_s: cycles / requests,
        tokens: (reports && answers > 0.0).then(|| tokens / answers),
    };
    (shown.succeeded > 0.0 && shown.cycle_s > 0.0).then_some(shown)
}

/// How latency grows with the tokens of an answer, by level, and what is left of its spread: a control variate
/// (Lavenberg and Welch 1981).
struct Control {
    /// Seconds per token.
    slopes: BTreeMap<usize, f64>,
    mean_tokens: f64,
    /// Coefficient of variation of a service time beside what its length explains.
    request_cv: f64,
    /// The mean length of the answers is another one at another level.
    shifts: bool,
}

/// A level's slope is worth so many requests before it has any of its own.
const PRIOR_REQUESTS: f64 = 4.0;
/// Lengths shift where their means are this many standard deviations apart, and by more than this share.
const SHIFTED: (f64, f64) = (4.0, 0.1);

impl Control {
    /// A level's slope is its own as far as it knows it, and else that of the levels up to the pick: above it a request
    /// waits for others, and its latency says less of its own length.
    fn new(levels: &BTreeMap<usize, Level>, rules: &Rules, pick: Option<usize>) -> Self {
        let (mut own, mut tokens_var, mut shared, mut freedom) = (0.0, 0.0, 0.0, 0.0);
        let centred = |[count, latency, latency2, tokens, tokens2, both]: [f64; 6]| {
            let (mean, mean_tokens) = (latency / count, tokens / count);
            let latency = latency2 - count * mean * mean;
            (mean, latency, tokens2 - count * mean_tokens * mean_tokens, both - count * mean * mean_tokens)
        };
        let answers = levels.values().fold([0.0; 3], |sum, of| std::array::from_fn(|i| sum[i] + of.answers[i]));
        for (_, of) in levels.iter().filter(|&(&level, of)| of.sums[0] >= 4.0 && pick.is_none_or(|pick| level <= pick))
        {
            let (mean, latency, tokens, both) = centred(of.sums);
            own += latency / (mean * mean);
            tokens_var += tokens;
            shared += both / mean;
            freedom += of.sums[0] - 1.0;
        }
        let mean_tokens = answers[1] / f64::max(answers[0], 1.0);
        let shifts = levels.values().any(|of| {
            let [n, tokens, squares] = of.answers;
            let mean = tokens / n;
            let error = ((squares / n - mean * mean) / (n - 1.0)).sqrt();
            let apart = (mean - mean_tokens).abs();
            n >= 20.0 && apart > SHIFTED.0 * error && apart > SHIFTED.1 * mean_tokens
        });
        let mut control = Control { slopes: BTreeMap::new(), mean_tokens, request_cv: 0.5, shifts };
        if freedom < 6.0 {
            return control;
        }
        control.request_cv = (own / freedom).max(4e-4).sqrt();
        if !rules.control || shifts || tokens_var <= 1e-9 {
            return control;
        }
        let slope = shared / tokens_var;
        let left = ((own - slope * shared) / (freedom - 1.0)).max(4e-4).sqrt();
        if left > 0.9 * control.request_cv {
            return control;
        }
        control.request_cv = left;
        let prior = PRIOR_REQUESTS * tokens_var / freedom;
        for (&level, of) in levels.iter().filter(|(_, of)| of.sums[0] >= 1.0) {
            let (mean, _, tokens, both) = centred(of.sums);
            control.slopes.insert(level, (both + prior * slope * mean) / (tokens + prior));
        }
        control
    }

    /// What answers of this mean length take longer than usual ones.
    fn seconds_for(&self, level: usize, tokens: f64) -> f64 {
        self.slopes.get(&level).map_or(0.0, |slope| slope * (tokens - self.mean_tokens))
    }
}
