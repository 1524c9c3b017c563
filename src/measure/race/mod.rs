//! Decides which level to visit next, for how long, and when enough is known. Pure: no clock, no I/O.
//!
//! All visits to all levels are explained together: by one curve of a family (throughput over concurrency,
//! from sharp knees to gradual bends, with and without a decline), by a server speed that drifts over
//! time, and by the random mix of requests in each visit. The question is whether a level is good enough,
//! not which one is best: several are, which makes the answer cheap (Degenne and Koolen 2019).
//!
//! The answer stands once the curves for which the level is good enough are `1 / doubt` times as likely as
//! those for which it is not, both averaged over the family. If it is not good enough, that ratio is a
//! martingale of mean 1 (the method of mixtures: Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021). So
//! by Ville's inequality it ever gets there with a probability of at most `doubt`, however often one checks.
//!
//! If no curve explains a server, its visits decide alone, level against level (`own.rs`).
//!
//! The caller makes the visit that [`Race::next`] asks for, adds it to the [`Evidence`] and asks
//! again. Changing the level needs no drain: permits are added or removed, and requests that began
//! before belong to no visit. A visit disturbed by an outage is left out, so it is asked for again.

mod curves;
mod evidence;
mod likelihood;
mod own;

use std::collections::BTreeSet;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

pub use evidence::{Evidence, Seen, Visited};

use crate::decide::{DEFAULT_P95_FACTOR, Policy, Raced};
use curves::FAMILY;
use evidence::Observed;

/// One visit to make: its level, and the completions to measure there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    pub level: usize,
    pub completions: usize,
}

/// The question, and the means to answer it. `doubt`, `visit`, `misfit` and `control` are
/// parameters so that the study can vary them one by one.
#[derive(Clone, Debug)]
pub struct Rules {
    pub policy: Policy,
    /// Whether the choices are a grid, so that the levels between them count too.
    pub between: bool,
    /// Requests with which each choice is first measured (at least ten times the level), before the race begins.
    pub each: Option<usize>,
    /// Maximum number of requests of the race; at least 120 times the pick.
    pub requests: u64,
    /// The probability that the answer ever stands although the level is not good enough.
    pub doubt: f64,
    /// Completions of a visit: a multiple of the level, and a minimum.
    pub visit: (f64, usize),
    /// Standard deviation of a level's log throughput around the curve.
    pub misfit: f64,
    /// Whether token counts are used.
    pub control: bool,
}

impl Rules {
    /// The choices are a grid, and the race goes on until the answer stands.
    pub fn auto(policy: Policy) -> Self {
        Rules {
            policy,
            between: true,
            each: None,
            requests: 4_500,
            doubt: 0.004,
            visit: (2.0, 8),
            misfit: 0.01,
            control: true,
        }
    }

    /// The choices are a list given by the user. Each is first measured with `each` requests;
    /// `None` sends no more than the answer takes.
    pub fn list(policy: Policy, each: Option<usize>) -> Self {
        Rules { between: false, each, ..Rules::auto(policy) }
    }

    pub fn visit_to(&self, level: usize) -> Visit {
        let (waves, least) = self.visit;
        Visit { level, completions: ((waves * level as f64).ceil() as usize).max(least) }
    }

    /// Maximum number of requests of the race itself, if this is its pick.
    pub fn most_requests(&self, pick: usize) -> u64 {
        self.requests.max(120 * pick as u64)
    }
}

/// The grid contains every level up to this one.
const EACH: usize = 16;
/// A level is good enough with this share of the best throughput.
const KEEP: f64 = 0.93;
/// Highest acceptable multiple of the smallest acceptable level: one step of many lists, two steps of the grid.
const ABOVE: f64 = 1.35;
/// Probability of a good pick that suffices when the requests run out.
const SURE: f64 = 0.9;
/// Probability of being good enough at which a level is preferred to a higher one that surely is.
const LIKELY: f64 = 0.98;
/// Waves of the maximum number of requests that are reserved for the gates at the pick.
const GATE_WAVES: usize = 15;
/// Climbing continues while the pick lies above all visited levels with more than this probability.
const CLIMB: f64 = 0.05;
/// Power of the likelihood in the interval: no family contains all servers, so it must be wider.
const POWER: f64 = 0.4;
/// This many requests cost as much as this many service times.
const PRICE: (f64, f64) = (2_000.0, 150.0);
/// Standard deviation assumed for the server's speed between two visits, to predict what a visit will tell.
const WANDER: f64 = 0.03;
/// Visits that tell at least this share of the most informative one count as equally good.
const AS_TELLING: f64 = 0.8;
/// Standard deviation of a level's log throughput around the curve if no curve of the family fits.
const LOOSE: f64 = 0.1;
/// The visits decide alone if `LOOSE` is this many times likelier than the family. Kinds of
/// noise that are this much less likely than the likeliest are then ignored.
const ODDS: f64 = 20.0;
/// Curves below this share of the family's mean likelihood are no longer considered.
const LEAST: f64 = 0.01;
/// After this many service times an engine is surely warm.
const WARM_BY: f64 = 60.0;
/// Numbers of visits at which to check whether the engine was cold at first.
const COLD_SHOWS: std::ops::Range<usize> = 5..30;

/// Whether a cold start can be told from a low curve: some level was visited before and after, or at least 4 after.
fn shows_cold(evidence: &Evidence, until_s: f64) -> bool {
    let (before, after): (Vec<&Visited>, Vec<&Visited>) =
        evidence.visits.iter().partition(|visit| visit.middle_s() < until_s);
    let after: BTreeSet<usize> = after.into_iter().map(|visit| visit.level).collect();
    after.len() >= 4 || before.iter().any(|visit| after.contains(&visit.level))
}

/// The race for the smallest good level.
#[derive(Debug)]
pub struct Race {
    rules: Rules,
    /// The levels to choose from, ascending.
    choices: Vec<usize>,
    /// The highest level considered; by curve, where it reaches the tolerance of its best, and the log of that best.
    picks: (usize, Vec<(f64, f64)>),
    /// Curves that are still weighed, and how often they have been.
    active: Vec<usize>,
    weighed: usize,
    /// Curves that are still possible, each with its likelihood times its prior, up to a factor.
    possible: Vec<(usize, f64)>,
    /// Log likelihood of all curves together.
    evidence: f64,
    standing: Raced,
    rng: StdRng,
}

/// How far the visits have come.
struct Reached {
    /// Number of levels visited.
    levels: usize,
    /// The highest level since the engine has been warm, and the latest level.
    top: usize,
    last: Option<usize>,
    /// The lowest level that fails a gate above all that surely pass, and the highest visited one below it.
    wall: Option<usize>,
    passing: usize,
}

/// Every level up to `EACH`, where steps of one are large; above that, levels a constant factor
/// apart, so that doublings are among them.
pub fn grid(lowest: usize, highest: usize) -> Vec<usize> {
    let apart = (0..).map(|step| (lowest as f64 * 2f64.powf(f64::from(step) / 5.0)).round() as usize);
    let levels: BTreeSet<usize> = (lowest..=EACH).chain(apart.take_while(|&level| level <= highest)).collect();
    levels.into_iter().take_while(|&level| level < highest).chain([highest]).collect()
}

impl Race {
    /// `choices` must be ascending.
    pub fn new(choices: Vec<usize>, rules: Rules) -> Self {
        Race {
            rules,
            choices,
            picks: (0, Vec::new()),
            active: Vec::new(),
            weighed: 0,
            possible: Vec::new(),
            evidence: 0.0,
            standing: Raced { pick: None, interval: [1, usize::MAX], decided: false, warm_from_s: 0.0 },
            rng: StdRng::seed_from_u64(1),
        }
    }

    pub fn standing(&self) -> Raced {
        self.standing
    }

    /// The next visit; `None` if the answer stands or cannot be found.
    pub fn next(&mut self, evidence: &Evidence) -> Option<Visit> {
        if let Some(first) = self.first_visit(evidence) {
            return Some(first);
        }
        let (&lowest, &highest) = (self.choices.first()?, self.choices.last()?);
        let mut observed = self.observe(evidence);
        let Some(reached) = self.reached(evidence, &observed) else {
            self.standing = Raced { pick: None, interval: [lowest; 2], decided: true, ..self.standing };
            return None;
        };
        let cap = reached.wall.map_or(highest, |wall| wall - 1);
        observed.up_to(cap);
        if observed.points.is_empty() {
            return Some(self.rules.visit_to(lowest));
        }
        self.weigh(&observed, cap);
        let outward = self.outward(evidence, &observed, &reached);
        let next = outward.or_else(|| self.judge(evidence, &observed, &reached))?;
        Some(self.rules.visit_to(next))
    }

    /// Each choice in full, if that is asked for; otherwise the lowest choice, at the very beginning.
    fn first_visit(&self, evidence: &Evidence) -> Option<Visit> {
        let is_visited = |level: &usize| evidence.visits.iter().any(|visit| visit.level == *level);
        if let Some(each) = self.rules.each
            && let Some(&level) = self.choices.iter().find(|level| !is_visited(level))
        {
            return Some(Visit { level, completions: each.max(10 * level) });
        }
        let lowest = self.choices.first().filter(|_| evidence.visits.is_empty());
        lowest.map(|&lowest| self.rules.visit_to(lowest))
    }

    /// `None` if not even the lowest level passes.
    fn reached(&self, evidence: &Evidence, observed: &Observed) -> Option<Reached> {
        let levels: BTreeSet<usize> = evidence.visits.iter().map(|visit| visit.level).collect();
        // A visit to a cold engine does not show what there is to gain above its level.
        let warm = evidence.visits.iter().filter(|visit| visit.middle_s() >= self.standing.warm_from_s);
        let top = warm.map(|visit| visit.level).max().or(levels.last().copied())?;
        let verdict = |level: &usize| observed.verdict(*level, &self.rules);
        // A level below one that surely passes cannot have been too high.
        let surely_passes = |level: &&usize| {
            let verdict = verdict(level);
            verdict.sure && !verdict.fails
        };
        let passes = levels.iter().rfind(surely_passes).copied().unwrap_or_default();
        let wall = levels.range(passes + 1..).copied().find(|level| verdict(level).fails);
        let passing = levels.range(..wall.unwrap_or(usize::MAX)).next_back().copied()?;
        let last = evidence.visits.last().map(|visit| visit.level);
        Some(Reached { levels: levels.len(), top, last, passing, wall })
    }

    /// Probability that the pick lies above this level.
    fn is_higher(&self, level: usize) -> f64 {
        self.share(|curve| self.picks.1[curve].0 > 1.001 * level as f64)
    }

    /// The choice to climb to from `top`.
    fn above(&self, top: usize) -> Option<usize> {
        let higher = || self.choices.iter().copied().filter(|&level| level > top);
        higher().filter(|&level| level <= 2 * top).max().or(higher().min())
    }

    /// The level to climb to, or one below the wall, while throughput may still rise there.
    fn outward(&self, evidence: &Evidence, observed: &Observed, reached: &Reached) -> Option<usize> {
        let &Reached { levels, top, last, passing, wall } = reached;
        let Some(wall) = wall else {
            let next = self.above(top).filter(|_| levels < 4 || self.is_higher(top) > CLIMB)?;
            // Visit a low level first: few requests in flight show best whether the engine has become faster.
            let lowest = self.choices.first()?;
            let echo = self.choices.iter().copied().find(|&level| level >= 4 * lowest).filter(|&echo| top >= 4 * echo);
            let echo = echo.filter(|_| last == Some(top) && evidence.now_s < WARM_BY * observed.service_s);
            return echo.or(Some(next));
        };
        self.between(passing, wall).filter(|_| self.is_higher(passing) > 0.0)
    }

    /// Checks whether the answer stands; if not, returns the level that settles most.
    fn judge(&mut self, evidence: &Evidence, observed: &Observed, reached: &Reached) -> Option<usize> {
        let &Reached { top, last, passing, wall, .. } = reached;
        let own = self.by_themselves(observed);
        let (pick, probability, clear) = match &own {
            Some(own) => (own.pick, own.probability, own.is_sure),
            None => {
                let (sure, probability) = self.best_choice(passing);
                let clear = probability >= 1.0 - self.rules.doubt;
                (if clear { self.smallest_likely(sure) } else { sure }, probability, clear)
            }
        };
        let &lowest = self.choices.first()?;
        let open = self.open_gate(observed, pick, lowest, wall);
        let each: usize = self.rules.each.map_or(0, |each| self.choices.iter().map(|level| each.max(10 * level)).sum());
        let most = self.rules.most_requests(pick) + each as u64;
        let is_probable = probability >= SURE;
        let stands = clear && open.is_none();
        let over = evidence.sent >= most;
        let decided = stands || (over && is_probable && open != Some(pick));
        self.standing = Raced { pick: Some(pick), decided, ..self.standing };
        if stands || over {
            let rises = self.is_higher(passing) > 0.0;
            self.standing.interval = own.map_or_else(|| self.interval(observed, wall, rises), |own| own.interval);
            return None;
        }
        // The default limit rests on the lowest level: near it, visit that level again once the engine is surely warm.
        let slow = |level: usize| level as f64 / observed.rate_at(level);
        let is_near =
            self.rules.policy.max_p95_seconds.is_none() && slow(pick) > 0.7 * DEFAULT_P95_FACTOR * slow(lowest);
        let warm_by_s = WARM_BY * observed.service_s;
        let is_warm = |visit: &Visited| visit.level == lowest && visit.span_s[0] > warm_by_s;
        if is_near && evidence.now_s > warm_by_s && !evidence.visits.iter().any(is_warm) {
            return Some(lowest);
        }
        // The remaining requests are reserved for the gates.
        let is_late = is_probable && evidence.sent.saturating_add((GATE_WAVES * pick.max(8)) as u64) >= most;
        Some(match (open.filter(|_| clear || is_late), own) {
            (Some(level), _) => level,
            (None, Some(own)) => own.next,
            (None, None) => {
                let highest = wall.map_or(self.above(top).unwrap_or(top), |_| passing);
                self.most_telling(observed, pick, highest, last)
            }
        })
    }

    /// The observations since the engine has been warm.
    fn observe(&mut self, evidence: &Evidence) -> Observed {
        let (pick, was_cold) = (self.standing.pick, self.standing.warm_from_s > 0.0);
        // A resumed run may have more visits than that before the first call.
        let visits = evidence.visits.len();
        if COLD_SHOWS.contains(&visits) || (self.weighed == 0 && visits > COLD_SHOWS.end) {
            let all = Observed::new(evidence, &self.rules, pick, 0.0);
            let curves: Vec<usize> = (0..FAMILY.len()).step_by(11).collect();
            let cold_until = likelihood::cold_until(&all, &curves, was_cold).map(|until| until * all.service_s);
            self.standing.warm_from_s = cold_until.filter(|&until| shows_cold(evidence, until)).unwrap_or_default();
        }
        Observed::new(evidence, &self.rules, pick, self.standing.warm_from_s)
    }

    /// A level midway between two that are worth telling apart.
    fn between(&self, low: usize, high: usize) -> Option<usize> {
        let middle = ((low * high) as f64).sqrt().round() as usize;
        let inside = |level: &usize| (low + 1..high).contains(level);
        if self.rules.between {
            return Some(middle).filter(|middle| inside(middle) && high as f64 > 1.08 * low as f64);
        }
        self.choices.iter().copied().filter(inside).min_by_key(|level| level.abs_diff(middle))
    }

    /// The level to visit if chance may have decided a gate that the answer rests on.
    fn open_gate(&self, observed: &Observed, pick: usize, lowest: usize, wall: Option<usize>) -> Option<usize> {
        let next_to_pick = |wall: &usize| *wall as f64 <= ABOVE * pick as f64;
        let gates = [Some(pick), wall.filter(next_to_pick)];
        let open = gates.into_iter().flatten().map(|level| (level, observed.verdict(level, &self.rules)));
        let (level, verdict) = open.into_iter().find(|(_, verdict)| !verdict.sure)?;
        Some(if verdict.limit_open { lowest } else { level })
    }

    /// Computes how likely each curve is, averaged over the kinds of noise, and which remain possible.
    fn weigh(&mut self, observed: &Observed, cap: usize) {
        if self.weighed < 7 || self.weighed.is_multiple_of(24) {
            self.active = (0..FAMILY.len()).collect();
        }
        self.weighed += 1;
        let kinds = likelihood::kinds();
        let weighed = likelihood::weigh(observed, &self.active, &kinds, self.rules.misfit);
        let prior: f64 = FAMILY.iter().map(|curve| curve.prior).sum();
        self.evidence = weighed.evidence(&self.active) - prior.ln();
        let weighted = |(&at, likelihood): (&usize, &f64)| (at, likelihood * FAMILY[at].prior);
        self.possible = self.active.iter().zip(&weighed.by_curve).map(weighted).collect();
        let least = LEAST * self.possible.iter().map(|curve| curve.1).sum::<f64>() / prior;
        // Very unlikely curves hardly ever recover; they are reconsidered only now and then.
        let mut likelihoods = weighed.by_curve.iter();
        self.active.retain(|_| likelihoods.next().is_some_and(|&likelihood| likelihood > 0.1 * least));
        self.possible.retain(|&(at, weight)| weight >= least * FAMILY[at].prior);
        if self.picks.0 != cap {
            let slowest = self.rules.policy.max_p95_seconds.is_none().then_some(DEFAULT_P95_FACTOR);
            let picks =
                curves::picks(&self.levels_up_to(cap), self.rules.between, self.rules.policy.tolerance, slowest);
            self.picks = (cap, picks);
        }
    }

    /// The levels over which the best is taken: the choices, and those between them if they count.
    fn levels_up_to(&self, cap: usize) -> Vec<usize> {
        if !self.rules.between {
            return self.choices.iter().copied().filter(|&level| level <= cap).collect();
        }
        let lowest = self.choices.first().copied().unwrap_or(1);
        let above = |&level: &usize| Some((level + 1).max((1.07 * level as f64) as usize));
        std::iter::successors(Some(lowest), above).take_while(|&level| level < cap).chain([cap]).collect()
    }

    /// Probability of the curves for which `is_so` holds.
    fn share(&self, is_so: impl Fn(usize) -> bool) -> f64 {
        let all: f64 = self.possible.iter().map(|curve| curve.1).sum();
        self.possible.iter().filter(|curve| is_so(curve.0)).map(|curve| curve.1).sum::<f64>() / all
    }

    /// The interval of the pick, based on more curves than those that decided.
    fn interval(&self, observed: &Observed, wall: Option<usize>, rises: bool) -> [usize; 2] {
        let all: Vec<usize> = (0..FAMILY.len()).collect();
        let weights = likelihood::weigh(observed, &all, &likelihood::kinds(), self.rules.misfit).by_curve;
        let weighted = |(at, weight): (usize, f64)| (self.picks.1[at].0, weight.powf(POWER) * FAMILY[at].prior);
        let mut picks: Vec<(f64, f64)> = weights.into_iter().enumerate().map(weighted).collect();
        picks.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let total: f64 = picks.iter().map(|pick| pick.1).sum();
        let end = |p: f64| {
            let mut sum = 0.0;
            let found = picks.iter().find(|pick| {
                sum += pick.1;
                sum >= p * total
            });
            found.map_or(1, |pick| pick.0.ceil() as usize)
        };
        let [low, high] = [end(0.025), end(0.975)];
        let pick = self.standing.pick.unwrap_or(low);
        let near = wall.filter(|&wall| wall as f64 <= ABOVE * pick as f64);
        // Just below a wall, some requests fail already. If throughput still rises there, nothing between is known.
        let low = near.map_or(low, |_| ((low as f64 * (1.0 - self.rules.policy.max_error_rate)) as usize).max(1));
        let high = wall.filter(|_| rises).map_or(high, |wall| wall - 1);
        [low.min(pick), high.max(pick)]
    }

    /// Whether a level is good enough, by curve: several are, and any of them is a right answer.
    fn accepts(&self, level: usize) -> impl Fn(usize) -> bool + '_ {
        let (n, column) = (level as f64, curves::at_level(level));
        move |curve| {
            let (pick, most) = self.picks.1[curve];
            let snapped = || self.choices.iter().copied().find(|&choice| choice as f64 >= 0.999 * pick);
            let small = n <= ABOVE * pick || Some(level) == snapped();
            small && (n >= 0.999 * pick || column[curve] >= most + KEEP.ln())
        }
    }

    pub(super) fn possible_picks(&self) -> [f64; 2] {
        let picks = self.possible.iter().map(|curve| self.picks.1[curve.0].0);
        picks.fold([f64::INFINITY, 0.0], |[low, high], pick| [low.min(pick), high.max(pick)])
    }

    /// The lowest level that is surely good enough, or else the one most likely to be; and that probability.
    fn best_choice(&self, passing: usize) -> (usize, f64) {
        let [low, high] = self.possible_picks();
        let within =
            |level: &&usize| **level < passing && **level as f64 >= 0.8 * low && **level as f64 <= ABOVE * high;
        let mut best = (passing, 0.0);
        for &level in self.choices.iter().filter(within).chain(&[passing]) {
            let agreed = self.share(self.accepts(level));
            if agreed > best.1 + 1e-9 {
                best = (level, agreed);
            }
            if best.1 >= 1.0 - self.rules.doubt {
                break;
            }
        }
        best
    }

    /// The verdict of the levels alone, if it is far likelier that they lie off every curve
    /// than on one. Uses the kind of noise that leaves the most doubt.
    fn by_themselves(&self, observed: &Observed) -> Option<own::Own> {
        let (kinds, thinned) = (likelihood::kinds(), (0..FAMILY.len()).step_by(11).collect::<Vec<usize>>());
        let loose = likelihood::weigh(observed, &thinned, &kinds, LOOSE);
        let off = loose.evidence(&thinned) - thinned.iter().map(|&curve| FAMILY[curve].prior).sum::<f64>().ln();
        if off < self.evidence + ODDS.ln() {
            return None;
        }
        let likeliest = loose.by_kind.iter().copied().fold(0.0, f64::max);
        let likely = kinds.into_iter().zip(&loose.by_kind).filter(|(_, likelihood)| **likelihood * ODDS >= likeliest);
        let time = |i: usize, rate: f64| observed.levels[i] as f64 / rate;
        let alone = observed.rate_at(observed.levels[0]);
        let in_time = |i: usize, rate: f64| {
            self.rules.policy.max_p95_seconds.is_some() || time(i, rate) <= DEFAULT_P95_FACTOR * time(0, alone)
        };
        let decide = |kind| own::decide(observed, kind, &self.choices, self.rules.policy.tolerance, in_time);
        likely.filter_map(|(kind, _)| decide(kind)).min_by(|a, b| a.probability.total_cmp(&b.probability))
    }

    /// The lowest level that is likely good enough, at most `sure`: the rule asks for the smallest.
    fn smallest_likely(&self, sure: usize) -> usize {
        let likely = |level: &usize| self.share(self.accepts(*level)) >= LIKELY;
        self.choices.iter().copied().take_while(|&level| level < sure).find(likely).unwrap_or(sure)
    }

    /// The level up to `highest` where a visit best separates the likeliest curve that accepts the pick
    /// from the likeliest that does not, relative to its cost; one of several that are about equally good.
    fn most_telling(&mut self, observed: &Observed, pick: usize, highest: usize, last: Option<usize>) -> usize {
        let accepts = self.accepts(pick);
        let likeliest = |accepting: bool| {
            let curves = self.possible.iter().filter(|curve| accepts(curve.0) == accepting);
            curves.max_by(|a, b| a.1.total_cmp(&b.1)).map(|curve| curve.0)
        };
        let (Some(leading), Some(opposed)) = (likeliest(true), likeliest(false)) else { return pick };
        let apart = |level: usize| {
            let column = curves::at_level(level);
            column[leading] - column[opposed]
        };
        // Only their distance counts after both are fitted to the visits.
        let (mut offset, mut weight) = (0.0, 0.0);
        for point in &observed.points {
            let known = 1.0 / (point.own + WANDER * WANDER);
            offset += known * apart(observed.levels[point.at]);
            weight += known;
        }
        let offset = offset / weight;
        // In a list, the neighbouring levels may be further away.
        let at = self.choices.partition_point(|&level| level < pick);
        let beside = self.choices[at.saturating_sub(1)]..=*self.choices.get(at + 1).unwrap_or(&pick);
        let near = |level: &usize| {
            let is_near = (3 * *level >= pick && *level <= 3 * pick) || beside.contains(level);
            *level <= highest && Some(*level) != last && is_near
        };
        let worth = |level: usize| {
            let requests = self.rules.visit_to(level).completions as f64;
            let own = observed.request_cv.powi(2) / requests + WANDER.powi(2);
            let cost = requests / PRICE.0 + requests / observed.rate_at(level) / observed.service_s / PRICE.1;
            (level, (apart(level) - offset).powi(2) / own / cost)
        };
        let candidates: Vec<(usize, f64)> = self.choices.iter().copied().filter(near).map(worth).collect();
        let most = candidates.iter().map(|candidate| candidate.1).fold(0.0, f64::max);
        let telling: Vec<usize> =
            candidates.iter().filter(|(_, worth)| *worth >= AS_TELLING * most).map(|(level, _)| *level).collect();
        drop(accepts);
        telling.choose(&mut self.rng).copied().unwrap_or(pick)
    }
}
