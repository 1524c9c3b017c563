//! Which level to visit next, for how long, and when enough is known. Pure: no clock, no I/O.
//!
//! All visits to all levels are explained together: by one curve out of a family (throughput per concurrency, from hard
//! knees to curves that bend slowly, with and without a decline), by a speed of the server that wanders in time, and by
//! the luck of the requests that a visit met. What is asked is whether a level is good enough, and not which one is best:
//! several are, which makes the answer cheap (Degenne and Koolen 2019).
//!
//! The answer stands once the curves by which the level is good enough have `1 / doubt` times the likelihood of those by
//! which it is not, both averaged over the family. If it is not good enough, that ratio is a martingale of mean 1 (the
//! method of mixtures: Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021), so by Ville's inequality it ever gets
//! there with probability `doubt`, however often one looks.

use std::collections::BTreeMap;

/// What one visit to a level showed: by the requests that began and ended in it, where the server reports their tokens;
/// else by all that began in it, since those that end in time are the short ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct VisitEvidence {
    pub level: usize,
    /// The middle of it, seconds since the run began.
    pub at_s: f64,
    /// Successes.
    pub succeeded: f64,
    /// Their share.
    pub share: f64,
    /// The mean time that a permit was held.
    pub cycle_s: f64,
    /// The mean output tokens of the successes, where the server reports them.
    pub tokens: Option<f64>,
}

/// What is known of a level from all its visits.
#[derive(Clone, Copy, Debug, Default)]
pub struct LevelEvidence {
    pub requests: u64,
    pub failed: u64,
    /// All successes, ended in time or not, and their tokens.
    pub answers: (f64, f64),
    /// P95 fails its limit.
    pub late: bool,
    /// Sums over the successes that the visits rest on: number, latency, its square, tokens, their square,
    /// and latency times tokens.
    pub sums: [f64; 6],
}

/// All evidence so far.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pub visits: Vec<VisitEvidence>,
    pub levels: BTreeMap<usize, LevelEvidence>,
    /// All requests that were sent.
    pub sent: u64,
}

/// One visit to make: completions after as many that are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    pub level: usize,
    pub settle: usize,
    pub completions: usize,
}

/// What the race came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    pub pick: Option<usize>,
    /// The levels that may be the smallest good one.
    pub interval: [usize; 2],
    pub decided: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The probability that the answer ever stands where the level is not good enough.
    pub doubt: f64,
    /// Completions of a visit by the level, and at least.
    pub visit: (f64, usize),
    /// Completions before them that are not counted, by the level.
    pub settle: f64,
    /// Standard deviation of a level's throughput about its curve.
    pub misfit: f64,
    /// Whether tokens are used.
    pub control: bool,
    /// Most requests in all.
    pub requests: u64,
    pub tolerance: f64,
    pub max_error_rate: f64,
    /// The default limit on P95 in multiples of level 1.
    pub slowest: Option<f64>,
    /// A level is good enough with this share of the best, and up to so many times the smallest acceptable one.
    pub keep: f64,
    pub above: f64,
    /// The share of the curves' probability by which it is, where requests end first.
    pub sure: f64,
    /// Whether no level between the choices may be visited.
    pub only_choices: bool,
    /// As many requests are as dear as so many service times.
    pub price: (f64, f64),
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            doubt: 0.002,
            visit: (2.0, 8),
            settle: 0.0,
            misfit: 0.01,
            control: true,
            requests: 4_500,
            tolerance: 0.05,
            max_error_rate: 0.05,
            slowest: Some(5.0),
            keep: 0.93,
            above: 1.3,
            sure: 0.95,
            only_choices: false,
            price: (2_000.0, 150.0),
        }
    }
}

impl Rules {
    pub fn visit_to(&self, level: usize) -> Visit {
        let (waves, least) = self.visit;
        let completions = ((waves * level as f64).ceil() as usize).max(least);
        Visit { level, settle: (self.settle * level as f64).floor() as usize, completions }
    }
}

/// One curve of the family.
#[derive(Clone, Copy, Debug)]
struct Curve {
    knee: f64,
    shape: Shape,
    prior: f64,
}

/// What becomes of the straight line `n` at the knee.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// `n / (1 + (n / knee)^hardness)^(1 / hardness)`: from the hyperbola of Amdahl's law to a corner.
    Bend(f64),
    /// A bend that declines as `1 / (1 + (n / fall)^2)`, `fall` in knees.
    Decline(f64, f64),
    /// The Universal Scalability Law, with the root of 1 / kappa in knees of 1 / sigma.
    Usl(f64),
    /// It rises on with a smaller slope, up to so many knees.
    Second(f64, f64),
}

impl Curve {
    /// The logarithm of throughput.
    fn log(&self, n: f64) -> f64 {
        let x = n / self.knee;
        let bent = |hardness: f64| {
            if hardness > 30.0 { n.ln() - x.max(1.0).ln() } else { n.ln() - x.powf(hardness).ln_1p() / hardness }
        };
        match self.shape {
            Shape::Bend(hardness) => bent(hardness),
            Shape::Decline(hardness, fall) => bent(hardness) - (x / fall).powi(2).ln_1p(),
            Shape::Usl(fall) => n.ln() - (x + (x / fall).powi(2)).ln_1p(),
            Shape::Second(slope, end) => {
                (n.min(self.knee) + slope * (n.min(end * self.knee) - self.knee).max(0.0)).ln()
            }
        }
    }
}

/// All curves that are thought of, with knees a twentieth apart.
fn family() -> Vec<Curve> {
    const BENDS: [f64; 5] = [1.0, 1.5, 2.5, 5.0, 64.0];
    let mut shapes: Vec<(Shape, f64)> = BENDS.iter().map(|&hardness| (Shape::Bend(hardness), 0.6)).collect();
    shapes.extend([8.0, 4.0, 2.6, 1.7, 1.1, 0.7, 0.4].map(|fall| (Shape::Usl(fall), 0.06)));
    for hardness in &BENDS[1..] {
        let hardness = *hardness;
        shapes.extend([6.0, 2.5, 1.2, 0.5].map(|fall| (Shape::Decline(hardness, fall), 0.1)));
    }
    for slope in [0.1, 0.25, 0.5] {
        shapes.extend([1.4, 2.0, 3.0].map(|end| (Shape::Second(slope, end), 0.1)));
    }
    let knees = (0..152).map(|step| 0.9 * 1.05_f64.powi(step));
    knees.flat_map(|knee| shapes.iter().map(move |&(shape, prior)| Curve { knee, shape, prior })).collect()
}

/// The race for the smallest good level.
#[derive(Clone, Debug)]
pub struct Race {
    rules: Rules,
    /// The levels to choose from, ascending.
    choices: Vec<usize>,
    curves: Vec<Curve>,
    /// The logarithm of each curve at a level.
    at_level: BTreeMap<usize, Vec<f64>>,
    /// Where each curve reaches the tolerance of its best, and the logarithm of that best, if levels end so high.
    picks: Option<(usize, Vec<(f64, f64)>)>,
    /// Curves and kinds of noise that are worth another look.
    active: Vec<usize>,
    noises: Vec<usize>,
    weighed: usize,
    /// By curve, up to a factor; and the least with which it is possible.
    likelihood: Vec<f64>,
    least: f64,
    standing: Standing,
}

/// Levels lie by this factor apart, so that doublings are among them.
pub fn grid(lowest: usize, highest: usize) -> Vec<usize> {
    let mut levels: Vec<usize> = (0..)
        .map(|step| (lowest as f64 * 2f64.powf(f64::from(step) / 5.0)).round() as usize)
        .take_while(|&level| level < highest)
        .collect();
    levels.push(highest);
    levels.dedup();
    levels
}

impl Race {
    pub fn new(choices: Vec<usize>, rules: Rules) -> Self {
        let curves = family();
        Race {
            rules,
            choices,
            at_level: BTreeMap::new(),
            picks: None,
            active: Vec::new(),
            noises: Vec::new(),
            weighed: 0,
            likelihood: vec![1.0; curves.len()],
            least: 0.0,
            curves,
            standing: Standing { pick: None, interval: [1, usize::MAX], decided: false },
        }
    }

    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// The next visit; `None` when the answer stands or cannot be had.
    pub fn next(&mut self, evidence: &Evidence) -> Option<Visit> {
        let (&lowest, &highest) = (self.choices.first()?, self.choices.last()?);
        if evidence.visits.is_empty() {
            return Some(self.visit(lowest));
        }
        let top = evidence.levels.keys().max().copied()?;
        let fails = |level: usize| evidence.levels.get(&level).is_some_and(|of| self.fails(of));
        let wall = evidence.levels.keys().copied().filter(|&level| fails(level)).min();
        let passing = evidence.levels.keys().copied().filter(|&level| wall.is_none_or(|wall| level < wall)).max();
        let Some(passing) = passing else {
            self.standing = Standing { pick: None, interval: [lowest; 2], decided: true };
            return None;
        };
        let cap = wall.map_or(highest, |wall| wall - 1);
        let observed = Observed::new(evidence, &self.rules, self.standing.pick, cap);
        self.weigh(&observed, cap);
        let high = self.possible_picks()[1];
        if wall.is_none() && top < highest && (high > top as f64 * 1.001 || evidence.levels.len() < 4) {
            let next = self.choices.iter().copied().filter(|&level| level <= 2 * top && level > top).max();
            return Some(self.visit(next.unwrap_or(highest)));
        }
        // Where throughput still rises at a wall, the wall is sought.
        let rises = high > passing as f64 * 1.001;
        if let Some(wall) = wall.filter(|_| rises) {
            let middle = ((passing * wall) as f64).sqrt();
            let off = |level: &usize| (*level as f64 / middle).ln().abs();
            let choices = self.choices.iter().copied().filter(|level| (passing + 1..wall).contains(level));
            let middle = match self.rules.only_choices {
                true => choices.min_by(|a, b| off(a).total_cmp(&off(b))),
                false => Some(middle.round() as usize).filter(|level| (passing + 1..wall).contains(level)),
            };
            if let Some(middle) = middle.filter(|_| wall as f64 > 1.08 * passing as f64) {
                return Some(self.visit(middle));
            }
        }
        let (pick, probability, opposed) = self.best_choice(passing);
        let of_pick = evidence.levels.get(&pick).copied().unwrap_or_default();
        let gates = self.passes_surely(&of_pick);
        let clear = probability >= 1.0 - self.rules.doubt || opposed.is_none();
        let stands = clear && gates;
        let over = evidence.sent >= Race::most_requests(&self.rules, pick);
        let decided = stands || (over && probability >= self.rules.sure && gates);
        let [low, high] = self.central(0.95).map(|pick| pick.ceil() as usize);
        // Where throughput still rises at a wall, what lies between is not known.
        let high = if rises { wall.map_or(high, |wall| wall - 1) } else { high };
        self.standing = Standing { pick: Some(pick), interval: [low.min(pick), high.max(pick)], decided };
        if stands || over {
            return None;
        }
        let last = evidence.visits.last().map(|visit| visit.level);
        match opposed.filter(|_| !clear) {
            Some(opposed) => {
                let next = self.most_telling(&observed, pick, opposed, cap.min(passing.max(top)), last);
                Some(self.visit(next))
            }
            None => Some(self.visit(pick)),
        }
    }

    /// The requests after which a race ends whose pick is this level.
    pub fn most_requests(rules: &Rules, pick: usize) -> u64 {
        rules.requests.max(120 * pick as u64)
    }

    fn visit(&self, level: usize) -> Visit {
        self.rules.visit_to(level)
    }

    fn fails(&self, level: &LevelEvidence) -> bool {
        let rate = level.failed as f64 / level.requests.max(1) as f64;
        level.late || rate >= self.rules.max_error_rate && level.failed >= 3
    }

    /// Whether so few failures in so many requests rule the limit out: none in 90 at 99 %.
    fn passes_surely(&self, level: &LevelEvidence) -> bool {
        let n = level.requests as f64;
        let rate = level.failed as f64 / n.max(1.0);
        let limit = self.rules.max_error_rate;
        if level.failed == 0 {
            return (1.0 - limit).powf(n) <= 0.01;
        }
        rate < limit && (n >= 400.0 || (limit - rate) / (limit * (1.0 - limit) / n).sqrt() > 2.33)
    }

    fn curve_at(&mut self, level: usize) -> &[f64] {
        let curves = &self.curves;
        self.at_level.entry(level).or_insert_with(|| curves.iter().map(|curve| curve.log(level as f64)).collect())
    }

    /// The likelihood of each curve, averaged over kinds of noise, and which curves stay possible.
    fn weigh(&mut self, observed: &Observed, cap: usize) {
        let levels = &observed.levels;
        for &level in levels {
            self.curve_at(level);
        }
        let columns: Vec<&Vec<f64>> = levels.iter().map(|level| &self.at_level[level]).collect();
        let m = levels.len();
        if self.weighed < 7 || self.weighed.is_multiple_of(12) {
            self.active = (0..self.curves.len()).collect();
            self.noises = (0..NOISES.len()).collect();
        }
        self.weighed += 1;
        let mut logs = vec![f64::NEG_INFINITY; self.active.len() * self.noises.len()];
        let mut h = vec![0.0; m];
        for (kind, part) in self.noises.iter().zip(logs.chunks_exact_mut(self.active.len())) {
            let (cv, correlation) = NOISES[*kind];
            let Some(facts) = observed.facts(cv, correlation, self.rules.misfit) else { continue };
            let a = &facts.precision;
            let row: Vec<f64> = (0..m).map(|i| a[i * m..(i + 1) * m].iter().sum()).collect();
            let total: f64 = row.iter().sum();
            let c1: f64 = facts.weighted.iter().sum();
            for (&at, log) in self.active.iter().zip(part) {
                for (h, column) in h.iter_mut().zip(&columns) {
                    *h = column[at];
                }
                let (mut linear, mut residual, mut square) = (0.0, c1, 0.0);
                for i in 0..m {
                    linear += h[i] * facts.weighted[i];
                    residual -= h[i] * row[i];
                    let below: f64 = a[i * m..i * m + i].iter().zip(&h).map(|(a, h)| a * h).sum();
                    square += h[i] * (2.0 * below + a[i * m + i] * h[i]);
                }
                let q = facts.square - 2.0 * linear + square - residual * residual / total;
                *log = -0.5 * (q + facts.log_det + total.ln());
            }
        }
        let highest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        self.likelihood.fill(0.0);
        let mut kinds = vec![0.0; self.noises.len()];
        for (kind, part) in kinds.iter_mut().zip(logs.chunks_exact(self.active.len())) {
            for (&at, log) in self.active.iter().zip(part) {
                let likelihood = (log - highest).exp();
                self.likelihood[at] += likelihood;
                *kind += likelihood;
            }
        }
        let all: f64 = self.curves.iter().map(|curve| curve.prior).sum();
        let mean = self.likelihood.iter().zip(&self.curves).map(|(l, curve)| l * curve.prior).sum::<f64>() / all;
        self.least = LEAST * mean;
        // What is far from possible now hardly comes back: it is looked at again now and then.
        let far = 1e-3 * self.least;
        self.active.retain(|&at| self.likelihood[at] > far);
        let most = kinds.iter().copied().fold(0.0, f64::max);
        let mut kept = kinds.iter().map(|&kind| kind > 1e-3 * most);
        self.noises.retain(|_| kept.next().unwrap_or(true));
        if self.picks.as_ref().is_none_or(|(at, _)| *at != cap) {
            let picks = self.curves.iter().map(|curve| self.pick_of(curve, cap)).collect();
            self.picks = Some((cap, picks));
        }
    }

    /// Where a curve reaches the tolerance of its best below `cap`.
    fn pick_of(&self, curve: &Curve, cap: usize) -> (f64, f64) {
        let one = curve.log(1.0);
        let late = |n: f64| self.rules.slowest.is_some_and(|most| n.ln() - curve.log(n) + one > most.ln());
        let cap = cap as f64;
        let (mut peak, mut most) = (1.0, one);
        let mut n = 1.0;
        while n < cap * 1.0001 && !late(n) {
            let at = curve.log(n);
            if at > most {
                (peak, most) = (n, at);
            }
            n = if n < cap { (n * 1.1).min(cap) } else { n * 1.1 };
        }
        let target = most + (1.0 - self.rules.tolerance).ln();
        let (mut low, mut high) = (1.0, peak);
        if curve.log(low) >= target {
            return (1.0, most);
        }
        while high / low > 1.005 {
            let middle = f64::sqrt(low * high);
            if curve.log(middle) >= target { high = middle } else { low = middle }
        }
        (high, most)
    }

    fn picks(&self) -> &[(f64, f64)] {
        self.picks.as_ref().map_or(&[], |(_, picks)| picks)
    }

    fn possible(&self) -> impl Iterator<Item = usize> {
        self.active.iter().copied().filter(|&at| self.likelihood[at] >= self.least)
    }

    fn possible_picks(&self) -> [f64; 2] {
        let picks = self.possible().map(|at| self.picks()[at].0);
        picks.fold([f64::INFINITY, 0.0], |[low, high], pick| [low.min(pick), high.max(pick)])
    }

    /// Ends of the central share of the picks, weighted by how probable each curve is.
    fn central(&self, share: f64) -> [f64; 2] {
        let weight = |at: usize| self.likelihood[at] * self.curves[at].prior;
        let mut picks: Vec<(f64, f64)> = self.possible().map(|at| (self.picks()[at].0, weight(at))).collect();
        picks.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let all: f64 = picks.iter().map(|pick| pick.1).sum();
        let at = |p: f64| {
            let mut sum = 0.0;
            picks.iter().find(|pick| {
                sum += pick.1;
                sum >= p * all
            })
        };
        [(1.0 - share) / 2.0, (1.0 + share) / 2.0].map(|p| at(p).map_or(1.0, |pick| pick.0))
    }

    /// Whether a level is good enough if this is the curve: several are, and any of them is a right answer.
    fn accepts(&self, at: usize, level: usize) -> bool {
        let (pick, most) = self.picks()[at];
        let snapped = self.choices.iter().copied().find(|&choice| choice as f64 >= 0.999 * pick).unwrap_or(level);
        let small = level as f64 <= (self.rules.above * pick).max(snapped as f64);
        small && (level as f64 >= 0.999 * pick || self.curves[at].log(level as f64) >= most + self.rules.keep.ln())
    }

    /// The level that is most probably good enough, how probable that is, and the likeliest possible curve by which it
    /// is not.
    fn best_choice(&self, passing: usize) -> (usize, f64, Option<usize>) {
        let possible: Vec<usize> = self.possible().collect();
        let weight = |&at: &usize| self.likelihood[at] * self.curves[at].prior;
        let all: f64 = possible.iter().map(weight).sum();
        let [low, high] = self.possible_picks();
        let within = |level: &usize| *level as f64 >= 0.8 * low && *level as f64 <= 1.3 * high;
        let mut best = (passing, 0.0);
        let ends = [passing];
        for &level in self.choices.iter().filter(|&&level| level < passing).filter(|level| within(level)).chain(&ends) {
            let agreed: f64 = possible.iter().filter(|&&at| self.accepts(at, level)).map(weight).sum();
            if agreed / all > best.1 + 1e-9 {
                best = (level, agreed / all);
            }
        }
        let against = possible.iter().copied().filter(|&at| !self.accepts(at, best.0));
        let opposed = against.max_by(|a, b| weight(a).total_cmp(&weight(b)));
        (best.0, best.1, opposed)
    }

    /// The level where a visit tells the likeliest curve that accepts the pick best from the one that does not, by what it
    /// costs.
    fn most_telling(
        &mut self,
        observed: &Observed,
        pick: usize,
        opposed: usize,
        cap: usize,
        last: Option<usize>,
    ) -> usize {
        let accepting = self.possible().filter(|&at| self.accepts(at, pick));
        let Some(leading) = accepting.max_by(|&a, &b| self.likelihood[a].total_cmp(&self.likelihood[b])) else {
            return pick;
        };
        let apart = |level: usize| self.curves[leading].log(level as f64) - self.curves[opposed].log(level as f64);
        let anchors = observed.anchors();
        let weight: f64 = anchors.iter().map(|anchor| anchor.1).sum();
        // As far as they lie apart where both go through what was seen.
        let offset = anchors.iter().map(|&(level, weight)| weight * apart(level)).sum::<f64>() / weight;
        let near = |level: &usize| {
            *level <= cap && Some(*level) != last && *level as f64 >= pick as f64 / 3.0 && *level <= 3 * pick
        };
        let worth = |level: usize| {
            let visit = self.visit(level);
            let own = observed.request_cv.powi(2) / visit.completions as f64 + 0.03_f64.powi(2);
            let requests = (visit.settle + visit.completions) as f64;
            let (few, short) = self.rules.price;
            let cost = requests / few + requests / observed.rate_at(level) / observed.service_s / short;
            (apart(level) - offset).powi(2) / own / cost
        };
        let candidates = self.choices.iter().copied().filter(near);
        candidates.max_by(|&a, &b| worth(a).total_cmp(&worth(b))).unwrap_or(pick)
    }
}

/// Coefficient of variation of the server's speed, and over how many service times it is the same. What these are is not
/// known; the likelihood is averaged over them.
const NOISES: [(f64, f64); 10] = [
    (0.01, 20.0),
    (0.03, 4.0),
    (0.03, 20.0),
    (0.03, 100.0),
    (0.06, 4.0),
    (0.06, 20.0),
    (0.06, 100.0),
    (0.12, 4.0),
    (0.12, 20.0),
    (0.12, 100.0),
];

/// Logarithms of throughput with what is known of their errors.
struct Observed {
    levels: Vec<usize>,
    /// Level (index), time in service times, logarithm of throughput, variance of its own.
    points: Vec<(usize, f64, f64, f64)>,
    request_cv: f64,
    wander: f64,
    service_s: f64,
}

struct Facts {
    precision: Vec<f64>,
    weighted: Vec<f64>,
    square: f64,
    log_det: f64,
}

impl Observed {
    /// From the levels up to `cap`: what a level serves that fails is on no curve.
    fn new(evidence: &Evidence, rules: &Rules, pick: Option<usize>, cap: usize) -> Self {
        let counts = |visit: &&VisitEvidence| visit.level <= cap && visit.succeeded > 0.0 && visit.cycle_s > 0.0;
        let visits: Vec<&VisitEvidence> = evidence.visits.iter().filter(counts).collect();
        let mut levels: Vec<usize> = visits.iter().map(|visit| visit.level).collect();
        levels.sort_unstable();
        levels.dedup();
        let control = Control::new(evidence, rules, pick);
        let request_cv = control.request_cv;
        let service_s = evidence
            .levels
            .values()
            .filter(|level| level.sums[0] >= 5.0)
            .map(|level| level.sums[1] / level.sums[0])
            .fold(f64::INFINITY, f64::min);
        let service_s = if service_s.is_finite() { service_s } else { 1.0 };
        let points = visits
            .iter()
            .map(|visit| {
                let more = visit.tokens.map_or(0.0, |tokens| control.seconds_for(visit.level, tokens));
                let cycle = (visit.cycle_s - visit.share * more).max(0.3 * visit.cycle_s);
                let y = (visit.level as f64 * visit.share / cycle).ln();
                let own = request_cv * request_cv / visit.succeeded.max(1.0);
                let at = levels.binary_search(&visit.level).unwrap_or_default();
                (at, visit.at_s / service_s, y, own)
            })
            .collect();
        Observed { levels, points, request_cv, wander: 0.04, service_s }
    }

    /// The levels visited, by how often.
    fn anchors(&self) -> Vec<(usize, f64)> {
        let mut anchors: Vec<(usize, f64)> = self.levels.iter().map(|&level| (level, 0.0)).collect();
        for point in &self.points {
            anchors[point.0].1 += 1.0 / (point.3 + self.wander * self.wander);
        }
        anchors
    }

    fn rate_at(&self, level: usize) -> f64 {
        let near = self.points.iter().min_by(|a, b| {
            let apart = |point: &(usize, f64, f64, f64)| (self.levels[point.0] as f64 / level as f64).ln().abs();
            apart(a).total_cmp(&apart(b))
        });
        near.map_or(1.0, |point| point.2.exp())
    }

    fn facts(&self, cv: f64, correlation: f64, misfit: f64) -> Option<Facts> {
        let n = self.points.len();
        let m = self.levels.len();
        let mut s = vec![0.0; n * n];
        for i in 0..n {
            let (at_i, t_i, _, own) = self.points[i];
            for j in 0..=i {
                let (at_j, t_j, ..) = self.points[j];
                let mut covariance = cv * cv * (-(t_i - t_j).abs() / correlation).exp();
                if at_i == at_j {
                    covariance += misfit * misfit;
                }
                if i == j {
                    covariance += own;
                }
                s[i * n + j] = covariance;
            }
        }
        let log_det = cholesky(&mut s, n)?;
        // Columns: one per level, and the figures.
        let mut solved = vec![vec![0.0; n]; m + 1];
        for (row, &(at, _, y, _)) in self.points.iter().enumerate() {
            solved[at][row] = 1.0;
            solved[m][row] = y;
        }
        for column in &mut solved {
            for i in 0..n {
                let mut sum = column[i];
                for j in 0..i {
                    sum -= s[i * n + j] * column[j];
                }
                column[i] = sum / s[i * n + i];
            }
        }
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut precision = vec![0.0; m * m];
        for i in 0..m {
            for j in 0..=i {
                let value = dot(&solved[i], &solved[j]);
                precision[i * m + j] = value;
                precision[j * m + i] = value;
            }
        }
        let weighted = (0..m).map(|i| dot(&solved[i], &solved[m])).collect();
        Some(Facts { precision, weighted, square: dot(&solved[m], &solved[m]), log_det })
    }
}

/// In place, the lower triangle; gives the logarithm of the determinant.
fn cholesky(s: &mut [f64], n: usize) -> Option<f64> {
    let mut log_det = 0.0;
    for i in 0..n {
        for j in 0..=i {
            let mut sum = s[i * n + j];
            for k in 0..j {
                sum -= s[i * n + k] * s[j * n + k];
            }
            if i == j {
                if sum <= 0.0 {
                    return None;
                }
                s[i * n + i] = sum.sqrt();
                log_det += sum.ln();
            } else {
                s[i * n + j] = sum / s[j * n + j];
            }
        }
    }
    Some(log_det)
}

/// How latency grows with the tokens of an answer, by level, and what is left of its spread.
struct Control {
    /// Seconds per token.
    slopes: BTreeMap<usize, f64>,
    mean_tokens: f64,
    /// Coefficient of variation of a service time beside what its length explains.
    request_cv: f64,
}

impl Control {
    /// A level's slope is its own as far as it knows it, and else that of the levels up to the pick: above it a request
    /// waits for others, and its latency says less of its own length.
    fn new(evidence: &Evidence, rules: &Rules, pick: Option<usize>) -> Self {
        let (mut own, mut tokens_var, mut shared, mut freedom) = (0.0, 0.0, 0.0, 0.0);
        let (mut all, mut all_tokens) = (0.0, 0.0);
        let centred = |[count, latency, latency2, tokens, tokens2, both]: [f64; 6]| {
            let (mean, mean_tokens) = (latency / count, tokens / count);
            (
                mean,
                latency2 - count * mean * mean,
                tokens2 - count * mean_tokens * mean_tokens,
                both - count * mean * mean_tokens,
            )
        };
        for (&level, of) in &evidence.levels {
            all += of.answers.0;
            all_tokens += of.answers.1;
            if of.sums[0] < 4.0 || pick.is_some_and(|pick| level > pick) {
                continue;
            }
            let (mean, latency, tokens, both) = centred(of.sums);
            own += latency / (mean * mean);
            tokens_var += tokens;
            shared += both / mean;
            freedom += of.sums[0] - 1.0;
        }
        let mut control =
            Control { slopes: BTreeMap::new(), mean_tokens: all_tokens / f64::max(all, 1.0), request_cv: 0.5 };
        if freedom < 6.0 {
            return control;
        }
        control.request_cv = (own / freedom).max(4e-4).sqrt();
        if !rules.control || tokens_var <= 1e-9 {
            return control;
        }
        let slope = shared / tokens_var;
        let left = ((own - slope * shared) / (freedom - 1.0)).max(4e-4).sqrt();
        if left > 0.9 * control.request_cv {
            return control;
        }
        control.request_cv = left;
        // Worth so many requests of its own.
        let prior = PRIOR_REQUESTS * tokens_var / freedom;
        for (&level, of) in evidence.levels.iter().filter(|(_, of)| of.sums[0] >= 1.0) {
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

/// Curves that are this much less likely than the mean of the family are no longer thought of.
const LEAST: f64 = 0.01;

const PRIOR_REQUESTS: f64 = 4.0;

#[cfg(test)]
mod tests {
    use super::*;

    /// A server without noise, and what one visit to it shows.
    fn race(server: impl Fn(usize) -> (f64, f64), highest: usize) -> (Vec<Visit>, Standing) {
        let mut race = Race::new(grid(1, highest), Rules::default());
        let mut evidence = Evidence::default();
        let mut visits = Vec::new();
        let mut now_s = 0.0;
        while let Some(visit) = race.next(&evidence) {
            visits.push(visit);
            let (throughput, errors) = server(visit.level);
            let (level, n) = (visit.level as f64, visit.completions as f64);
            let latency = level / throughput;
            let seconds = n / throughput;
            let failed = (errors * n).round();
            let of_level = evidence.levels.entry(visit.level).or_default();
            of_level.requests += visit.completions as u64;
            of_level.failed += failed as u64;
            let succeeded = n - failed;
            for (sum, value) in of_level.sums.iter_mut().zip([1.0, latency, latency * latency, 0.0, 0.0, 0.0]) {
                *sum += succeeded * value;
            }
            evidence.visits.push(VisitEvidence {
                level: visit.level,
                at_s: now_s + seconds / 2.0,
                succeeded,
                share: succeeded / n,
                cycle_s: latency,
                tokens: None,
            });
            now_s += seconds;
            evidence.sent += visit.completions as u64;
            assert!(visits.len() < 200, "it does not end");
        }
        (visits, race.standing())
    }

    #[test]
    fn knees_are_found_with_few_requests() {
        for slots in [1, 3, 7, 20, 33, 100, 200] {
            let (visits, standing) = race(|level| (level.min(slots) as f64, 0.0), 512);
            let pick = standing.pick.expect("a pick");
            let acceptable = (0.95 * slots as f64).ceil();
            assert!(standing.decided && pick as f64 >= 0.92 * slots as f64, "{slots}: {standing:?}");
            assert!(pick as f64 <= (1.3 * acceptable).ceil(), "{slots}: {standing:?}");
            let sent: usize = visits.iter().map(|visit| visit.completions).sum();
            assert!(sent <= 100 * slots.max(10), "{slots}: {sent}");
        }
    }

    #[test]
    fn curves_that_bend_slowly_and_peaks_are_found() {
        let hyperbola = |level: usize| (level as f64 / (1.0 + 0.05 * (level as f64 - 1.0)), 0.0);
        let peak = |level: usize| {
            let n = level as f64;
            (n / (1.0 + 0.02 * (n - 1.0) + 0.002 * n * (n - 1.0)), 0.0)
        };
        let (_, standing) = race(hyperbola, 512);
        // Above 99 a request takes more than five times as long as one alone.
        assert!(standing.pick.is_some_and(|pick| hyperbola(pick).0 >= 0.92 * hyperbola(84).0), "{standing:?}");
        let (_, standing) = race(peak, 512);
        assert!(standing.pick.is_some_and(|pick| peak(pick).0 >= 0.92 * peak(22).0 && pick <= 22), "{standing:?}");
    }

    #[test]
    fn a_wall_is_found_and_never_picked() {
        for wall in [5, 24, 45, 100] {
            let limited = |level: usize| (level as f64, if level > wall { 0.5 } else { 0.0 });
            let (_, standing) = race(limited, 512);
            let pick = standing.pick.expect("a pick");
            assert!(pick <= wall && pick as f64 >= 0.92 * wall as f64, "{wall}: {standing:?}");
        }
    }

    #[test]
    fn it_ends_where_nothing_passes_and_at_its_maximum() {
        let (visits, standing) = race(|_| (1.0, 1.0), 64);
        assert_eq!((visits.len(), standing.pick), (1, None));
        let (visits, standing) = race(|level| (level as f64, 0.0), 50);
        assert_eq!(standing.pick.map(|pick| pick >= 46), Some(true), "{standing:?}");
        assert!(visits.iter().all(|visit| visit.level <= 50));
    }

    #[test]
    fn the_same_evidence_gives_the_same_visits() {
        let server = |level: usize| (level.min(20) as f64, 0.0);
        assert_eq!(race(server, 512), race(server, 512));
    }

    #[test]
    fn levels_of_the_grid_hold_the_doublings() {
        let levels = grid(1, 512);
        assert!((0..10).all(|power| levels.contains(&(1 << power))), "{levels:?}");
        assert!(levels.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(grid(5, 5), [5]);
    }
}
