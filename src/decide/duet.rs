//! Compares two servers that are measured in turns. Pure.
//!
//! A pair is a visit to each server at the same level, one right after the other, with the order alternating.
//! Disturbances that affect both (a neighbour, the network, the time of day) cancel out of the ratio (duet
//! benchmarking: Bulej et al. 2020). The 95 % intervals are Student's t on the logarithms of the ratios. The
//! variance of a level is poorly known from its few pairs, so it is moderated by that of all levels (Smyth 2004).

use std::collections::BTreeMap;

use super::compare::{Against, Change, Comparison};
use super::{Objective, Recommendation, deviations};
use crate::figures::student_t;

/// The throughputs of both servers in one turn at a level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    pub level: usize,
    pub turn: u32,
    pub throughput: [f64; 2],
}

/// Weight of the variance pooled over all levels, in degrees of freedom, next to those of the level itself.
const FREEDOM_OF_ALL: f64 = 10.0;

/// Logarithms of both throughputs by turn.
type Turns = BTreeMap<u32, [f64; 2]>;

/// Compares the servers at each level that both were measured at, over all these levels, and each
/// at its own recommended level.
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
            // At different levels, more than the noise of a pair varies, so the pooled variance does not apply.
            of_level([a, b], &turns, if a == b { of_all } else { (0.0, 0.0) })
        }),
        _ => None,
    };
    Comparison {
        against: Against::OtherServer,
        unit: objective.unit(),
        levels: by_level.iter().filter_map(|(&level, turns)| of_level([level, level], turns, of_all)).collect(),
        recommended: chosen,
        overall: overall(&by_level, of_all),
        ..Comparison::default()
    }
}

fn ratios(turns: &Turns) -> Vec<f64> {
    turns.values().map(|[a, b]| b - a).collect()
}

fn means(turns: &Turns) -> [f64; 2] {
    [0, 1].map(|side| turns.values().map(|pair| pair[side]).sum::<f64>() / turns.len() as f64)
}

/// `of_all` is the sum of squared deviations over all levels, and its degrees of freedom.
fn of_level(levels: [usize; 2], turns: &Turns, of_all: (f64, f64)) -> Option<Change> {
    let (squares, freedom) = deviations(std::iter::once(ratios(turns)));
    let prior = if of_all.1 > 0.0 { FREEDOM_OF_ALL } else { 0.0 };
    let variance = (squares + prior * of_all.0 / of_all.1.max(1.0)) / (freedom + prior);
    change(levels, means(turns), variance / turns.len() as f64, freedom + prior)
}

/// The change over all levels, which have equal weights.
fn overall(by_level: &BTreeMap<usize, Turns>, (squares, freedom): (f64, f64)) -> Option<Change> {
    let n = by_level.len() as f64;
    let levels = [*by_level.keys().next()?, *by_level.keys().next_back()?];
    let of_levels: Vec<[f64; 2]> = by_level.values().map(means).collect();
    let both = [0, 1].map(|side| of_levels.iter().map(|means| means[side]).sum::<f64>() / n);
    let inverse: f64 = by_level.values().map(|turns| 1.0 / turns.len() as f64).sum();
    change(levels, both, squares / freedom * inverse / n.powi(2), freedom)
}

/// `variance` is that of the difference between the logarithms.
fn change(levels: [usize; 2], logarithms: [f64; 2], variance: f64, freedom: f64) -> Option<Change> {
    Some(Change::of(levels, logarithms.map(f64::exp), student_t(freedom, 0.975)? * variance.sqrt()))
}
