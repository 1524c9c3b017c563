//! Two recommendations of a server at different times, and two servers measured in turns.

#![cfg(feature = "suite")]

use llm_concurrency::decide::compare::{Baseline, Comparison, Doubt, Moved, Regression, compare};
use llm_concurrency::decide::duet::{Pair, side_by_side};
use llm_concurrency::decide::{Objective, Policy, Recommendation, Status, recommend};
use llm_concurrency::figures::{BLOCKS, Distribution, Estimate, LevelSummary, Outage};

/// A level that was measured as often as there are factors, each by so much faster, and errors.
fn measured(level: usize, rps: f64, errors: f64, factors: &[f64]) -> LevelSummary {
    let rps = rps * factors.iter().sum::<f64>() / factors.len() as f64;
    LevelSummary {
        concurrency: level,
        requests: Some(1000),
        succeeded: Some((1000.0 * (1.0 - errors)) as u64),
        throughput_rps: Some(Estimate { estimate: rps, lower: Some(rps * 0.97), upper: Some(rps * 1.03) }),
        blocks_rps: factors.iter().flat_map(|factor| [rps * factor; BLOCKS]).collect(),
        latency_s: Some(Distribution { mean: Some(1.0), p95: Some(1.0), ..Distribution::default() }),
        ..LevelSummary::default()
    }
}

const BEFORE: [(usize, f64); 4] = [(1, 5.0), (10, 45.0), (20, 80.0), (40, 81.0)];
/// Four measurements that differ by some 3 %.
const ROUNDS: [f64; 4] = [0.97, 1.03, 1.0, 1.0];

/// The lowest level once, the others in four rounds.
fn levels(factor: f64) -> Vec<LevelSummary> {
    let rounds = |level: usize| if level == 1 { &ROUNDS[3..] } else { &ROUNDS[..] };
    BEFORE.iter().map(|&(level, rps)| measured(level, rps * factor, 0.0, rounds(level))).collect()
}

fn decided(levels: &[LevelSummary]) -> Recommendation {
    recommend(levels, &Policy::default())
}

fn against(now: &[LevelSummary]) -> Comparison {
    compare(&decided(&levels(1.0)), &decided(now), Objective::Requests, Some(0.10))
}

#[test]
fn a_fall_counts_when_it_is_real_and_beyond_the_threshold() {
    let same = against(&levels(1.0));
    assert!(same.regressions.is_empty() && same.doubts.is_empty());
    assert!(same.levels.iter().all(|change| change.moved == Moved::NotShown && change.change == 0.0));
    assert_eq!(same.best.map(|best| (best.concurrency_before, best.now)), Some((40, 81.0)));
    let slower = against(&levels(0.85));
    let [Regression::Best(best), Regression::Recommended(recommended)] = slower.regressions.as_slice() else {
        panic!("{:?}", slower.regressions)
    };
    assert_eq!((best.concurrency_now, recommended.concurrency_now), (40, 20));
    assert!((recommended.change + 0.15).abs() < 1e-9);
    // Real, but not beyond the threshold.
    let slightly = against(&levels(0.91));
    assert!(slightly.regressions.is_empty() && slightly.best.is_some_and(|c| c.moved == Moved::Slower));
    assert!(against(&levels(1.3)).best.is_some_and(|c| c.moved == Moved::Faster));
    // Without a threshold nothing is one.
    let unasked = compare(&decided(&levels(1.0)), &decided(&levels(0.5)), Objective::Requests, None);
    assert!(unasked.regressions.is_empty() && unasked.doubts.is_empty());
    // Levels that decide nothing inform only.
    let mut now = levels(1.0);
    (now[0], now[1]) = (measured(1, 5.0 * 0.6, 0.0, &ROUNDS), measured(10, 45.0 * 0.6, 0.0, &ROUNDS));
    let found = against(&now);
    assert!(found.regressions.is_empty() && found.doubts.is_empty(), "{found:?}");
    assert_eq!(found.levels[1].moved, Moved::Slower);
}

/// Each measurement is known to 3 %, but one of each is not enough to tell 15 % from what servers differ anyway.
#[test]
fn one_measurement_of_each_does_not_show_what_equal_servers_differ() {
    let once = |factor: f64| -> Vec<_> {
        BEFORE.iter().map(|&(level, rps)| measured(level, rps * factor, 0.0, &[1.0])).collect()
    };
    let found = |factor| compare(&decided(&once(1.0)), &decided(&once(factor)), Objective::Requests, Some(0.10));
    assert!(found(0.85).regressions.is_empty());
    assert_eq!(found(0.7).regressions.len(), 2);
}

/// Four measurements of three levels in each run: 3 degrees of freedom a level and run, 18 + 10 with the usual ones.
/// `scipy.stats.t.ppf(.995, 28)` is 2.7633, and `scipy.stats.t.ppf(1 - .005 / 4, 28)`, since any of four levels might have
/// been the recommended one, 3.3214.
#[test]
fn the_interval_is_that_of_the_ratio_with_the_noise_between_measurements() {
    let squares: f64 = {
        let logs = ROUNDS.map(f64::ln);
        let mean = logs.iter().sum::<f64>() / 4.0;
        6.0 * logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>()
    };
    let spread = ((10.0 * 0.06_f64.powi(2) + squares) / 28.0).sqrt();
    let found = against(&levels(0.9));
    for (t, change) in [(2.7633, found.best), (3.3214, found.recommended)] {
        let [low, high] = change.expect("in both").interval;
        let half = t * spread * (2.0_f64 / 4.0).sqrt();
        assert!((low - (0.9 * (-half).exp() - 1.0)).abs() < 1e-4 && (high - (0.9 * half.exp() - 1.0)).abs() < 1e-4);
    }
}

#[test]
fn what_clearly_fails_is_a_regression_and_what_may_be_chance_a_doubt() {
    let at_20 = |level| [&levels(1.0)[..2], &[level], &levels(1.0)[3..]].concat();
    let broken: Vec<_> = BEFORE.iter().map(|&(level, rps)| measured(level, rps, 0.5, &ROUNDS)).collect();
    let outage = Outage { lost: 400, requests: 1000, measurements: 1, of: 1, since: 0 };
    let gone = LevelSummary { outage: Some(outage), ..measured(20, 50.0, 0.4, &[1.0]) };
    let undecided =
        Recommendation { status: Status::Unresolved, recommended_concurrency: None, ..decided(&levels(1.0)) };
    for (now, regressions, doubts) in [
        (decided(&at_20(measured(20, 80.0, 0.2, &ROUNDS))), &["fails"][..], &[][..]),
        (decided(&at_20(measured(20, 80.0 * 1.17, 0.055, &ROUNDS))), &[], &["gate"]),
        (decided(&at_20(gone)), &[], &["outage"]),
        (decided(&broken), &["fails", "nothing_qualifies"], &[]),
        (undecided, &[], &["undecided"]),
    ] {
        let found = compare(&decided(&levels(1.0)), &now, Objective::Requests, Some(0.10));
        let json = serde_json::json!(found);
        let kinds = |list: &str| -> Vec<_> {
            let found = json[list].as_array().expect("a list").iter();
            found.map(|found| (found["kind"].clone(), found["concurrency"].clone())).collect()
        };
        let expected = |kinds: &[&str]| -> Vec<_> { kinds.iter().map(|&kind| (kind.into(), 20.into())).collect() };
        assert_eq!((kinds("regressions"), kinds("doubts")), (expected(regressions), expected(doubts)), "{json:#}");
    }
    // Nor do levels decide that are not there.
    let elsewhere = decided(&[measured(7, 1.0, 0.5, &ROUNDS), measured(8, 1.0, 0.5, &ROUNDS)]);
    let found = compare(&elsewhere, &decided(&levels(1.0)), Objective::Requests, Some(0.10));
    assert_eq!(found.doubts, [Doubt::NothingInCommon]);
}

#[test]
fn what_fell_or_fails_is_measured_once_more() {
    let suspects = |now: &[LevelSummary], threshold| {
        let baseline = Baseline { title: String::new(), decided: decided(&levels(1.0)), threshold };
        baseline.suspects(&decided(now), Objective::Requests).into_iter().collect::<Vec<_>>()
    };
    assert_eq!(suspects(&levels(0.95), Some(0.10)), [0; 0]);
    assert_eq!(suspects(&levels(0.85), Some(0.10)), [20, 40]);
    assert_eq!(suspects(&levels(0.85), None), [0; 0]);
    let mut now = levels(1.0);
    now[2] = measured(20, 80.0, 0.055, &ROUNDS);
    assert_eq!(suspects(&now, Some(0.10)), [20]);
    now.remove(2);
    assert_eq!(suspects(&now, Some(0.10)), [20], "it was not measured");
}

fn pairs(level: usize, throughputs: &[[f64; 2]]) -> impl Iterator<Item = Pair> {
    throughputs.iter().zip(0..).map(move |(&throughput, turn)| Pair { level, turn, throughput })
}

fn picking(level: usize) -> Recommendation {
    Recommendation { recommended_concurrency: Some(level), ..recommend(&[], &Policy::default()) }
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
    let found = side_by_side(&all, [&picking(2), &picking(4)], Objective::Requests).recommended.expect("both have two");
    assert_eq!((found.concurrency_before, found.concurrency_now), (2, 4));
    assert!((found.now / found.before - (1.5 * 3.4_f64 / 2.2).sqrt()).abs() < 1e-9, "{found:?}");
}

#[test]
fn what_was_not_measured_twice_is_not_compared() {
    let all: Vec<Pair> = pairs(2, &[[2.0, 1.0]]).chain(pairs(4, &[[1.0, 0.0], [1.0, f64::NAN], [1.0, 1.0]])).collect();
    let found = side_by_side(&all, [&picking(2), &picking(2)], Objective::Requests);
    assert_eq!((found.levels, found.recommended), (vec![], None));
}
