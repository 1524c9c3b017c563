//! Two servers measured in turns: how they differ. Pure.
//!
//! A pair is a visit to each at the same level, one right after the other, and alternately the one and the other first. What
//! disturbs both (a neighbour, the network, the hour) goes out of the ratio of the two (duet benchmarking: Bulej et al. 2020).
//! Intervals are Student's t on the logarithms of the ratios, 95 %. The few pairs of a level do not know their spread well, so
//! it is moderated by that of all levels (Smyth 2004).

use std::collections::BTreeMap;

use statrs::distribution::{ContinuousCDF, StudentsT};

use super::compare::{Against, Change, Comparison, Moved};
use super::{Objective, Recommendation, deviations};

/// The throughputs of both servers in one turn at a level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    pub level: usize,
    pub turn: u32,
    pub throughput: [f64; 2],
}

/// What the spread of all levels counts for beside that of one: as much as so many pairs of its own.
const FREEDOM_OF_ALL: f64 = 10.0;

/// Logarithms of both throughputs by turn.
type Turns = BTreeMap<u32, [f64; 2]>;

/// The levels that both were measured at, all of them together, and the level recommended for the one beside that for the
/// other.
pub fn side_by_side(pairs: &[Pair], decided: [&Recommendation; 2], objective: Objective) -> Comparison {
    let usable = |pair: &&Pair| pair.throughput.iter().all(|rate| *rate > 0.0 && rate.is_finite());
    let mut by_level: BTreeMap<usize, Turns> = BTreeMap::new();
    for pair in pairs.iter().filter(usable) {
        by_level.entry(pair.level).or_default().insert(pair.turn, pair.throughput.map(f64::ln));
    }
    by_level.retain(|_, turns| turns.len() > 1);
    let of_all = deviations(by_level.values().map(ratios));
    let chosen = match decided.map(|decided| decided.recommended_concurrency) {
        [Some(a), Some(b)] => by_level.get(&a).zip(by_level.get(&b)).and_then(|(of_a, of_b)| {
            let both = |(turn, [a, _]): (&u32, &[f64; 2])| Some((*turn, [*a, of_b.get(turn)?[1]]));
            let turns: Turns = of_a.iter().filter_map(both).collect();
            // At different levels, more than the luck of a pair lies between the two.
            of_level([a, b], &turns, if a == b { of_all } else { (0.0, 0.0) })
        }),
        _ => None,
    };
    Comparison {
        title: String::new(),
        against: Against::OtherServer,
        unit: objective.unit(),
        levels: by_level.iter().filter_map(|(&level, turns)| of_level([level, level], turns, of_all)).collect(),
        best: None,
        recommended: chosen,
        overall: overall(&by_level, of_all),
        regressions: Vec::new(),
        doubts: Vec::new(),
    }
}

fn ratios(turns: &Turns) -> Vec<f64> {
    turns.values().map(|[a, b]| b - a).collect()
}

fn means(turns: &Turns) -> [f64; 2] {
    [0, 1].map(|side| turns.values().map(|pair| pair[side]).sum::<f64>() / turns.len() as f64)
}

/// `of_all` has the squared deviations of all levels and their degrees of freedom.
fn of_level(levels: [usize; 2], turns: &Turns, of_all: (f64, f64)) -> Option<Change> {
    let (squares, freedom) = deviations(std::iter::once(ratios(turns)));
    let prior = if of_all.1 > 0.0 { FREEDOM_OF_ALL } else { 0.0 };
    let variance = (squares + prior * of_all.0 / of_all.1.max(1.0)) / (freedom + prior);
    change(levels, means(turns), variance / turns.len() as f64, freedom + prior)
}

/// The levels weigh alike.
fn overall(by_level: &BTreeMap<usize, Turns>, (squares, freedom): (f64, f64)) -> Option<Change> {
    let n = by_level.len() as f64;
    let levels = [*by_level.keys().next()?, *by_level.keys().next_back()?];
    let of_levels: Vec<[f64; 2]> = by_level.values().map(means).collect();
    let both = [0, 1].map(|side| of_levels.iter().map(|means| means[side]).sum::<f64>() / n);
    let inverse: f64 = by_level.values().map(|turns| 1.0 / turns.len() as f64).sum();
    change(levels, both, squares / freedom * inverse / n.powi(2), freedom)
}

/// `variance` is that of the difference of the logarithms.
fn change([from, to]: [usize; 2], logarithms: [f64; 2], variance: f64, freedom: f64) -> Option<Change> {
    let noise = StudentsT::new(0.0, 1.0, freedom).ok()?.inverse_cdf(0.975) * variance.sqrt();
    let [before, now] = logarithms.map(f64::exp);
    let interval = [-noise, noise].map(|noise| now / before * noise.exp() - 1.0);
    let (change, moved) = (now / before - 1.0, Moved::by(interval));
    Some(Change { concurrency_before: from, concurrency_now: to, before, now, change, interval, moved })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(level: usize, throughputs: &[[f64; 2]]) -> impl Iterator<Item = Pair> {
        throughputs.iter().zip(0..).map(move |(&throughput, turn)| Pair { level, turn, throughput })
    }

    fn picking(level: usize) -> Recommendation {
        Recommendation { recommended_concurrency: Some(level), ..super::super::recommend(&[], &Default::default()) }
    }

    #[test]
    fn what_disturbs_both_goes_out() {
        // Speeds of 1 to 4, and B faster by 9, 10, 10 and 11 %.
        let disturbed = [[1.0, 1.09], [2.0, 2.2], [4.0, 4.4], [3.0, 3.33]];
        let both = [&picking(4), &picking(4)];
        let found = side_by_side(&pairs(4, &disturbed).collect::<Vec<_>>(), both, Objective::Requests);
        let level = found.levels[0];
        // By hand: logarithms 0.08618, 0.09531, 0.09531, 0.10436; mean 0.09529, s = 0.00742; with ten degrees of freedom from
        // all levels, here the same, t(13) = 2.1604: 0.09529 +- 2.1604 x 0.00742 / 2.
        assert!((level.change - 0.09998).abs() < 1e-4, "{level:?}");
        assert!((level.interval[0] - 0.09120).abs() < 2e-4 && (level.interval[1] - 0.10883).abs() < 2e-4, "{level:?}");
        assert_eq!((level.moved, found.recommended), (Moved::Faster, Some(level)));
        // All levels together are this one, with t(3) = 3.1824.
        let overall = found.overall.expect("a level");
        assert!(
            (overall.interval[0] - 0.08703).abs() < 2e-4 && (overall.interval[1] - 0.11308).abs() < 2e-4,
            "{overall:?}"
        );
    }

    #[test]
    fn optima_at_different_levels_are_compared_turn_by_turn() {
        let all: Vec<Pair> =
            pairs(2, &[[2.0, 1.0], [2.2, 1.1]]).chain(pairs(4, &[[1.0, 3.0], [1.0, 3.4], [1.0, 3.2]])).collect();
        let found =
            side_by_side(&all, [&picking(2), &picking(4)], Objective::Requests).recommended.expect("both have two");
        assert_eq!((found.concurrency_before, found.concurrency_now), (2, 4));
        assert!((found.now / found.before - (1.5 * 3.4_f64 / 2.2).sqrt()).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn what_was_not_measured_twice_is_not_compared() {
        let all: Vec<Pair> =
            pairs(2, &[[2.0, 1.0]]).chain(pairs(4, &[[1.0, 0.0], [1.0, f64::NAN], [1.0, 1.0]])).collect();
        let found = side_by_side(&all, [&picking(2), &picking(2)], Objective::Requests);
        assert_eq!((found.levels, found.recommended), (vec![], None));
    }
}
