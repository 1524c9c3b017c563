//! The decision on summaries made by hand: status, pick and the text that a user sees.

#![cfg(feature = "suite")]

use llm_concurrency::client::outcome::{Counted, Period, Quota, RateLimit};
use llm_concurrency::decide::{
    Gate, Note, Objective, Policy, Raced, Recommendation, Status, TimeGate, Verdict, recommend, recommend_after,
};
use llm_concurrency::figures::reasons::EarlyEnd;
use llm_concurrency::figures::{
    ClientLoad, Distribution, Estimate, Goodput, LevelState, LevelSummary, Outage, Prices, Sample, SizeSummary, Slo,
    wilson,
};
use llm_concurrency::report::text;
use llm_concurrency::report::words;
use proptest::prelude::*;
use serde_json::json;

/// A level measured in full, free of errors, known to ±1 %.
fn level(concurrency: usize, rps: f64) -> LevelSummary {
    let requests = 100.max(10 * concurrency as u64);
    let window = |at: usize| {
        let succeeded = requests / 10;
        let speed = if at.is_multiple_of(2) { 1.01 } else { 0.99 };
        Sample { duration_s: succeeded as f64 / (rps * speed), completed: succeeded, succeeded }
    };
    LevelSummary {
        concurrency,
        requests: Some(requests),
        succeeded: Some(requests),
        error_rate: Some(0.0),
        timeout_rate: Some(0.0),
        duration_s: Some(requests as f64 / rps),
        throughput_rps: Some(Estimate { estimate: rps, lower: Some(rps * 0.99), upper: Some(rps * 1.01) }),
        samples: Some((0..10).map(window).collect()),
        latency_s: Some(latency(1.0)),
        gate_latency_s: Some(latency(1.0)),
        output_tps: Some(rps * 50.0),
        mean_output_tokens: Some(50.0),
        mean_in_flight: Some(concurrency as f64),
        ..LevelSummary::default()
    }
}

fn latency(p95: f64) -> Distribution {
    Distribution {
        mean: Some(p95 * 0.6),
        p50: Some(p95 * 0.55),
        p90: Some(p95 * 0.9),
        p95: Some(p95),
        p99: Some(p95 * 1.2),
        max: Some(p95 * 1.3),
    }
}

fn levels(points: &[(usize, f64)]) -> Vec<LevelSummary> {
    points.iter().map(|&(n, rps)| level(n, rps)).collect()
}

/// So many of the level's requests failed in this way.
fn failing(mut level: LevelSummary, kind: &str, count: u64) -> LevelSummary {
    let requests = level.requests.expect("made above");
    level.succeeded = Some(requests - count);
    level.error_rate = Some(count as f64 / requests as f64);
    level.timeout_rate = Some(if kind == "Timeout" { count as f64 / requests as f64 } else { 0.0 });
    level.failures = [(kind.to_owned(), count)].into();
    level
}

/// The level with n requests, all of them successes.
fn of_size(n: u64, level: LevelSummary) -> LevelSummary {
    LevelSummary { requests: Some(n), succeeded: Some(n), ..level }
}

fn slow(p95: f64, level: LevelSummary) -> LevelSummary {
    LevelSummary { latency_s: Some(latency(p95)), gate_latency_s: Some(latency(p95)), ..level }
}

const SLO: Slo = Slo { ttft: Some(0.5), tpot: None, latency: None, attainment: 0.99 };

/// All but so many of the level's requests kept within the SLO.
fn within(missed: u64, level: LevelSummary) -> LevelSummary {
    let n = level.requests.expect("made above");
    let share = (n - missed) as f64 / n as f64;
    let [lower, upper] = wilson(n - missed, n).expect("of some");
    let rps = level.throughput_rps.expect("made above").estimate * share;
    let goodput = Goodput {
        slo: SLO,
        met: n - missed,
        attainment: Estimate { estimate: share, lower: Some(lower), upper: Some(upper) },
        rps: Estimate { estimate: rps, lower: Some(0.98 * rps), upper: Some(1.02 * rps) },
        blocks_rps: vec![rps; 10],
    };
    LevelSummary { goodput: Some(goodput), ..level }
}

fn printed(recommendation: &Recommendation) -> String {
    format!("{}\n{}", text::table(recommendation, usize::MAX), text::answer(recommendation))
}

/// Decides, holds status and pick, and compares what is printed with the file of this name in tests/snapshots.
#[track_caller]
fn case(name: &str, levels: &[LevelSummary], policy: &Policy, status: Status, pick: Option<usize>) -> Recommendation {
    let recommendation = recommend(levels, policy);
    assert_eq!((recommendation.status, recommendation.recommended_concurrency), (status, pick), "{recommendation:#?}");
    insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
        insta::assert_snapshot!(format!("recommend_{name}"), printed(&recommendation));
    });
    recommendation
}

fn plateau() -> Vec<LevelSummary> {
    let flat = [32, 64, 128, 256, 512, 1024].map(|n| (n, 100.0));
    levels(&[&[(1, 12.5), (2, 25.0), (4, 50.0), (8, 90.0), (16, 99.8)], &flat[..]].concat())
}

#[test]
fn a_plateau_is_taken_at_its_beginning() {
    let recommendation = case("plateau", &plateau(), &Policy::default(), Status::Ok, Some(16));
    assert_eq!(recommendation.interval, Some([16, 16]));
    assert!(!recommendation.provisional);
}

#[test]
fn the_best_with_33_percent_errors_is_not_taken() {
    let mut all = levels(&[(1, 10.0), (10, 80.0), (20, 90.0), (40, 200.0)]);
    all[3] = failing(all[3].clone(), "ServerError", 132);
    case("best_with_errors", &all, &Policy::default(), Status::LimitedByGate, Some(20));
}

#[test]
fn exactly_5_percent_errors_fail() {
    let all = [level(1, 10.0), failing(level(10, 80.0), "ServerError", 5)];
    let recommendation = case("errors_5_00", &all, &Policy::default(), Status::LimitedByGate, Some(1));
    assert_eq!(recommendation.levels[1].verdict, Verdict::Fail);
}

#[test]
fn errors_of_4_99_percent_pass() {
    let all = [level(1, 10.0), level(10, 80.0), failing(of_size(10_000, level(20, 160.0)), "ServerError", 499)];
    let recommendation = case("errors_4_99", &all, &Policy::default(), Status::NotSaturated, Some(20));
    assert_eq!(recommendation.levels[2].verdict, Verdict::Pass);
}

#[test]
fn one_percent_errors_everywhere_pass() {
    let all: Vec<_> = levels(&[(1, 10.0), (2, 20.0), (5, 40.0), (10, 41.0)])
        .into_iter()
        .map(|level| failing(level, "Connect", 1))
        .collect();
    case("errors_1_everywhere", &all, &Policy::default(), Status::Ok, Some(5));
}

#[test]
fn a_dip_in_the_middle_does_not_stop_it() {
    let mut all = levels(&[(1, 10.0), (5, 45.0), (10, 30.0), (20, 100.0), (30, 101.0)]);
    case("dip", &all, &Policy::default(), Status::Ok, Some(20));
    // Nor does a level in the middle that fails.
    all[2] = failing(all[2].clone(), "ServerError", 50);
    case("dip_that_fails", &all, &Policy::default(), Status::Ok, Some(20));
}

#[test]
fn best_at_one_is_ok() {
    case("best_at_one", &levels(&[(1, 50.0), (2, 45.0), (5, 30.0)]), &Policy::default(), Status::Ok, Some(1));
}

#[test]
fn best_at_a_lowest_level_above_one() {
    let all = levels(&[(5, 50.0), (10, 45.0), (20, 30.0)]);
    case("best_at_lowest", &all, &Policy::default(), Status::AtOrBelowLowest, Some(5));
}

#[test]
fn still_rising_at_the_last() {
    let all = levels(&[(1, 10.0), (2, 20.0), (5, 48.0), (10, 95.0)]);
    case("still_rising", &all, &Policy::default(), Status::NotSaturated, Some(10));
}

#[test]
fn fails_everywhere() {
    let all = |points: &[(usize, f64)]| -> Vec<_> {
        levels(points).into_iter().map(|level| failing(level, "ServerError", 50)).collect()
    };
    let from_one = all(&[(1, 10.0), (2, 20.0), (5, 40.0)]);
    case("fails_everywhere", &from_one, &Policy::default(), Status::NoQualifyingLevel, None);
    // Where the lowest is not 1, concurrency may be the cause after all.
    let from_forty = all(&[(40, 10.0), (50, 20.0)]);
    case("fails_everywhere_above", &from_forty, &Policy::default(), Status::NoQualifyingLevel, None);
}

#[test]
fn errors_only_at_low_levels() {
    let mut all = levels(&[(1, 10.0), (2, 20.0), (5, 48.0), (10, 95.0), (20, 96.0)]);
    for level in &mut all[..2] {
        *level = failing(level.clone(), "ServerError", 20);
    }
    case("errors_at_low_levels", &all, &Policy::default(), Status::Ok, Some(10));
}

#[test]
fn p95_above_five_times_the_lowest_costs_throughput_and_says_how_much() {
    let all = [level(1, 10.0), level(5, 45.0), slow(5.0, level(10, 80.0)), slow(5.01, level(20, 120.0))];
    let gated = case("p95_default", &all, &Policy::default(), Status::LimitedByGate, Some(10));
    assert!(gated.notes.iter().any(|note| matches!(note, Note::PriceOfP95 { .. })), "{:?}", gated.notes);
    // The user's own limit replaces the rule.
    let own = Policy { max_p95_seconds: Some(6.0), ..Policy::default() };
    case("p95_own_limit", &all, &own, Status::NotSaturated, Some(20));
    let strict = Policy { max_p95_seconds: Some(1.0), ..Policy::default() };
    case("p95_strict", &all, &strict, Status::LimitedByGate, Some(5));
}

/// Level 1 was visited for eight requests, so the limit is that of level 5; and what fails it by chance does not fail.
#[test]
fn after_a_race_the_default_p95_limit_is_of_a_level_with_enough_requests_and_fails_what_surely_fails() {
    let with = |concurrency, p95: f64, interval: Option<[f64; 2]>| LevelSummary {
        p95_interval_s: interval,
        ..slow(p95, level(concurrency, 10.0 * concurrency as f64))
    };
    let levels = [
        with(1, 0.1, None),
        with(5, 1.0, Some([0.9, 1.1])),
        with(10, 4.0, Some([3.8, 4.2])),
        with(20, 5.5, Some([4.0, 7.0])),
        with(40, 9.0, Some([8.5, 9.5])),
    ];
    let raced = Raced { pick: Some(20), interval: [20, 20], decided: true, warm_from_s: 12.0 };
    let decided = recommend_after(Some(&raced), &levels, &Policy::default());
    let verdicts: Vec<Verdict> = decided.levels.iter().map(|level| level.verdict).collect();
    assert_eq!(verdicts, [Verdict::Pass, Verdict::Pass, Verdict::Pass, Verdict::Pass, Verdict::Fail]);
    assert!(
        text::table(&decided, usize::MAX).contains("(5 x that of level 5)"),
        "{}",
        text::table(&decided, usize::MAX)
    );
    assert!(text::answer(&decided).contains("slower for the first 12.00 s (cold start)"), "{}", text::answer(&decided));
    // Without such a level there is no default limit after a race.
    let few = levels.clone().map(|level| LevelSummary { p95_interval_s: None, ..level });
    let decided = recommend_after(Some(&raced), &few, &Policy::default());
    assert!(decided.levels.iter().all(|level| level.verdict == Verdict::Pass), "{:?}", decided.levels);
    // A budget that ended it: whatever it would have picked is not written.
    let open = Raced { decided: false, ..raced };
    let decided = recommend_after(Some(&open), &levels, &Policy::default());
    assert_eq!((decided.status, decided.recommended_concurrency), (Status::Unresolved, None));
}

/// Successes alone would show a P95 of 1 s.
#[test]
fn timeouts_below_the_error_limit_still_weigh_on_p95() {
    let mut timing_out = failing(level(10, 80.0), "Timeout", 4);
    timing_out.gate_latency_s = Some(latency(30.0));
    let all = [level(1, 10.0), level(5, 45.0), timing_out];
    case("p95_with_timeouts", &all, &Policy::default(), Status::LimitedByGate, Some(5));
}

#[test]
fn p99_is_gated_from_400_requests() {
    let policy = Policy { max_p99_seconds: Some(2.0), ..Policy::default() };
    let all = [of_size(400, level(1, 10.0)), of_size(400, level(2, 20.0)), slow(2.0, of_size(400, level(5, 50.0)))];
    case("p99", &all, &policy, Status::LimitedByGate, Some(2));
    // Of fewer it is little more than the largest value: not gated, and provisional for that.
    let small = [of_size(400, level(1, 10.0)), slow(2.0, of_size(399, level(2, 20.0)))];
    let recommendation = case("p99_of_399", &small, &policy, Status::NotSaturated, Some(2));
    assert!(recommendation.provisional);
}

#[test]
fn ttft_is_gated_where_a_limit_is_set_and_must_then_be_measured() {
    let answering = |ttft, level| LevelSummary { ttft_s: Some(latency(ttft)), ..level };
    let all = [answering(0.2, level(1, 10.0)), answering(0.5, level(5, 45.0)), answering(0.51, level(10, 80.0))];
    let policy = Policy { max_ttft_p95_seconds: Some(0.5), ..Policy::default() };
    let recommendation = case("ttft_p95", &all, &policy, Status::LimitedByGate, Some(5));
    assert_eq!(recommendation.levels[2].gate, Some(Gate::Time(TimeGate::TtftP95)));
    assert_eq!(recommend(&all, &Policy::default()).recommended_concurrency, Some(10));
    let unknown = levels(&[(1, 10.0), (5, 45.0)]);
    case("ttft_p95_unknown", &unknown, &policy, Status::NoQualifyingLevel, None);
}

#[test]
fn tpot_is_gated_as_ttft_is() {
    let writing = |tpot, level| LevelSummary { tpot_s: Some(latency(tpot)), ..level };
    let all = [writing(0.02, level(1, 10.0)), writing(0.05, level(5, 45.0)), writing(0.051, level(10, 80.0))];
    let policy = Policy { max_tpot_p95_seconds: Some(0.05), ..Policy::default() };
    let recommendation = case("tpot_p95", &all, &policy, Status::LimitedByGate, Some(5));
    assert_eq!(
        (recommendation.levels[2].gate, recommendation.levels[2].uncertain),
        (Some(Gate::Time(TimeGate::TpotP95)), false)
    );
    // Where its interval spans the limit, it may be chance.
    let mut near = all.clone();
    near[2].tpot_p95_interval_s = Some([0.049, 0.056]);
    assert!(recommend(&near, &policy).levels[2].uncertain);
    let unknown = levels(&[(1, 10.0), (5, 45.0)]);
    assert_eq!(recommend(&unknown, &policy).levels[0].gate, Some(Gate::Time(TimeGate::TpotP95)));
}

#[test]
fn a_level_passes_where_enough_requests_keep_within_the_slo() {
    let all = [
        within(0, level(1, 10.0)),
        within(1, level(5, 45.0)),
        within(1, level(10, 80.0)),
        within(2, level(15, 100.0)),
        within(60, level(20, 160.0)),
    ];
    let policy = Policy { slo: Some(SLO), ..Policy::default() };
    // Exactly 99 of 100 are enough; 148 of 150 may be too few by chance, 140 of 200 are not.
    let decided = case("slo", &all, &policy, Status::LimitedByGate, Some(10));
    let uncertain: Vec<_> = decided.levels.iter().map(|level| (level.gate, level.uncertain)).collect();
    let fails = Some(Gate::Attainment);
    assert_eq!(uncertain, [(None, false), (None, true), (None, true), (fails, true), (fails, false)]);
    // The user's own limit is named before the default one, which then costs nothing.
    let both = recommend(&[within(0, level(1, 10.0)), slow(6.0, within(60, level(5, 45.0)))], &policy);
    assert_eq!(both.levels[1].gate, Some(Gate::Attainment));
    assert!(!both.notes.iter().any(|note| matches!(note, Note::PriceOfP95 { .. })), "{:?}", both.notes);
    // A limit that few levels are to meet.
    let lax = Policy { slo: Some(Slo { attainment: 0.7, ..SLO }), ..Policy::default() };
    assert_eq!(recommend(&all, &lax).recommended_concurrency, Some(20));
    assert_eq!(recommend(&all, &Policy::default()).recommended_concurrency, Some(20));
    // Nothing is known by other limits, nor without any.
    let other = Policy { slo: Some(Slo { ttft: Some(0.4), ..SLO }), ..Policy::default() };
    case("slo_unknown", &all, &other, Status::NoQualifyingLevel, None);
}

#[test]
fn the_objective_may_be_goodput() {
    let slo = Some(Slo { attainment: 0.5, ..SLO });
    let policy = Policy { objective: Objective::Goodput, slo, ..Policy::default() };
    // 10, 45, 79 and 0.6 x 120 = 72 requests/s: the throughput would be best at 20.
    let all = [
        within(0, level(1, 10.0)),
        within(0, level(5, 45.0)),
        within(1, level(10, 79.8)),
        within(80, level(20, 120.0)),
        within(400, level(40, 130.0)),
    ];
    let decided = case("goodput", &all, &policy, Status::Ok, Some(10));
    assert_eq!(decided.interval, Some([10, 10]));
    let by_requests = Policy { slo, ..Policy::default() };
    assert_eq!(recommend(&all, &by_requests).recommended_concurrency, Some(20));
    // A race chooses by curves of a throughput. What goodput contradicts is not written.
    for (pick, status) in [(10, Status::Ok), (20, Status::Unresolved)] {
        let raced = Raced { pick: Some(pick), interval: [10, 20], decided: true, warm_from_s: 0.0 };
        assert_eq!(recommend_after(Some(&raced), &all, &policy).status, status, "{pick}");
    }
    // It is content with 20; 10 shows as much, where it holds that possible and was measured in full.
    let plateau = [within(0, level(5, 45.0)), within(0, level(10, 79.0)), within(0, level(20, 80.0))];
    for (interval, requests, pick) in [([10, 20], 100, 10), ([11, 20], 100, 20), ([10, 20], 99, 20)] {
        let raced = Raced { pick: Some(20), interval, decided: true, warm_from_s: 0.0 };
        let mut plateau = plateau.clone();
        plateau[1].requests = Some(requests);
        let decided = recommend_after(Some(&raced), &plateau, &Policy::default());
        assert_eq!(decided.recommended_concurrency, Some(pick), "{interval:?}, {requests}");
    }
    // Not a single request within the limits is a failed gate, and no unknown.
    let none = [within(100, level(1, 10.0)), within(100, level(2, 20.0))];
    let decided = recommend(&none, &policy);
    assert_eq!((decided.status, decided.levels[0].gate), (Status::NoQualifyingLevel, Some(Gate::Attainment)));
}

/// By the hour a request costs the least where the throughput is highest; by the token it costs the same everywhere.
#[test]
fn what_a_thousand_requests_cost_is_shown_with_the_cheapest_level() {
    let priced = |prices: Prices| -> Vec<_> {
        let all = levels(&[(1, 10.0), (10, 98.0), (20, 100.0), (40, 80.0)]).into_iter().map(|level| {
            let level = LevelSummary { mean_input_tokens: Some(400.0), ..level };
            LevelSummary { usd_per_1000: prices.of_1000(&level), ..level }
        });
        all.collect()
    };
    let cost =
        |all: &[LevelSummary]| all.iter().map(|level| level.usd_per_1000.map(|cost| cost.total())).collect::<Vec<_>>();
    // 3.6 USD an hour are 0.001 a second: 100 s, 10.2 s, 10 s and 12.5 s for 1000 requests.
    let hour = priced(Prices { server_per_hour: Some(3.6), ..Prices::default() });
    assert_eq!(cost(&hour), [Some(0.1), Some(0.001 * 1000.0 / 98.0), Some(0.01), Some(0.0125)]);
    case("usd_per_hour", &hour, &Policy::default(), Status::Ok, Some(10));
    // 1000 x (400 x 2 + 50 x 10) / 1e6.
    let tokens = priced(Prices { per_million_input: Some(2.0), per_million_output: Some(10.0), ..Prices::default() });
    assert_eq!(cost(&tokens), [Some(1.3); 4]);
    let answer = text::answer(&recommend(&tokens, &Policy::default()));
    assert!(answer.contains("1000 requests cost 1.30 USD\n"), "{answer}");
    assert_eq!(cost(&priced(Prices::default())), [None; 4]);
    // Unknown tokens have no price.
    let unknown = LevelSummary { mean_input_tokens: None, ..tokens[0].clone() };
    assert_eq!(Prices { per_million_input: Some(2.0), ..Prices::default() }.of_1000(&unknown), None);
}

#[test]
fn a_level_of_29_requests_is_not_used() {
    let all = [level(1, 10.0), level(2, 20.0), of_size(29, level(4, 100.0))];
    let recommendation = case("n_29", &all, &Policy::default(), Status::NotSaturated, Some(2));
    assert_eq!(recommendation.levels[2].verdict, Verdict::NotUsed);
    // 3 x the level counts too.
    let wide = [level(1, 10.0), level(2, 20.0), of_size(149, level(50, 100.0))];
    assert_eq!(recommend(&wide, &Policy::default()).levels[2].verdict, Verdict::NotUsed);
}

#[test]
fn between_30_and_100_requests_the_result_is_provisional() {
    let all = [level(1, 10.0), of_size(30, level(2, 20.0)), level(5, 20.5)];
    let recommendation = case("provisional", &all, &Policy::default(), Status::Ok, Some(2));
    assert!(recommendation.provisional);
    // So it is where the level that the pick is measured by is that small.
    let best = [level(1, 10.0), level(2, 20.0), of_size(30, level(5, 20.5))];
    assert!(recommend(&best, &Policy::default()).provisional);
    // A level that has no say does not matter.
    let bystander = [of_size(30, level(1, 10.0)), level(2, 20.0), level(5, 20.5)];
    assert!(!recommend(&bystander, &Policy::default()).provisional);
}

#[test]
fn nothing_large_enough_is_unresolved() {
    let all = [of_size(20, level(1, 10.0)), of_size(29, level(2, 20.0))];
    case("all_too_small", &all, &Policy::default(), Status::Unresolved, None);
}

#[test]
fn a_level_that_never_reached_its_concurrency_is_named() {
    let mut all = levels(&[(1, 10.0), (10, 80.0), (20, 81.0)]);
    all[2].mean_in_flight = Some(11.8);
    case("not_reached", &all, &Policy::default(), Status::Ok, Some(10));
    // Where the permits were held back, that is why.
    all[2].mean_held = Some(7.94);
    let notes = recommend(&all, &Policy::default()).notes;
    let held =
        "Level 20 did not reach its concurrency: 11.8 requests in flight on average, 7.9 held back after failures";
    assert!(notes.iter().any(|note| words::note(note) == held), "{notes:?}");
}

/// A server that was killed in the middle of level 2 and was back for level 5; measured again, and not.
#[test]
fn a_level_that_lost_its_server_is_no_matter_of_concurrency() {
    let mut all = levels(&[(1, 10.0), (2, 19.0), (5, 40.0), (10, 41.0)]);
    let outage = |of| Outage { lost: 24, requests: 56, measurements: 1, of, since: of - 1 };
    all[1] = LevelSummary { outage: Some(outage(1)), ..failing(of_size(56, level(2, 8.0)), "Connect", 24) };
    let recommendation = case("outage", &all, &Policy::default(), Status::Ok, Some(5));
    assert!(recommendation.provisional);
    // An older results file counts failures and no more.
    all[1].outage = None;
    assert!(recommend(&all, &Policy::default()).provisional);
    // So many 500s are the server's own.
    all[1].failures = [("ServerError".to_owned(), 24)].into();
    assert!(!recommend(&all, &Policy::default()).provisional);
    all[1] = LevelSummary { outage: Some(outage(2)), ..level(2, 19.0) };
    let recommendation = case("outage_set_aside", &all, &Policy::default(), Status::Ok, Some(5));
    assert!(!recommendation.provisional);
}

/// With no higher level to tell, it takes a second failure to believe that the level is too much.
#[test]
fn a_server_that_dies_at_the_top_once_is_no_limit_yet() {
    let mut all = levels(&[(1, 10.0), (10, 80.0), (20, 30.0), (40, 30.0)]);
    let outage = |of| Some(Outage { lost: 90 * of, requests: 200 * of, measurements: of, of, since: 0 });
    for (at, n) in [(2, 200), (3, 400)] {
        all[at] = LevelSummary { outage: outage(1), ..failing(of_size(n, all[at].clone()), "Connect", 90 * n / 200) };
    }
    let once = case("outage_at_top", &all, &Policy::default(), Status::LimitedByGate, Some(10));
    assert!(once.provisional);
    all[2].outage = outage(2);
    let twice = recommend(&all, &Policy::default());
    assert_eq!((twice.status, twice.provisional), (Status::LimitedByGate, false), "{:?}", twice.notes);
}

/// An engine that has crashed answers 200 with next to nothing, fast.
#[test]
fn shrunk_output_is_not_taken() {
    let crashed = |n, rps: f64| LevelSummary {
        output_tps: Some(0.1),
        mean_output_tokens: Some(0.1 / rps),
        ..slow(0.01, level(n, rps))
    };
    let all = [level(1, 10.0), level(5, 45.0), level(10, 80.0), crashed(20, 500.0)];
    case("output_shrank", &all, &Policy::default(), Status::LimitedByGate, Some(10));
    // At the lowest level it must not become the reference of the P95 gate.
    let lowest = [crashed(1, 500.0), level(5, 45.0), level(10, 80.0), level(20, 81.0)];
    case("output_shrank_lowest", &lowest, &Policy::default(), Status::Ok, Some(10));
}

#[test]
fn windows_too_noisy_to_decide() {
    let noisy = |n: usize, rps: f64| {
        let mut level = level(n, rps);
        for (at, sample) in level.samples.iter_mut().flatten().enumerate() {
            sample.duration_s *= if at.is_multiple_of(2) { 3.0 } else { 0.4 };
        }
        level.throughput_rps = Some(Estimate { estimate: rps, lower: Some(rps * 0.5), upper: Some(rps * 1.5) });
        level
    };
    let all = [noisy(1, 90.0), noisy(2, 94.0), noisy(5, 98.0), noisy(10, 100.0), noisy(20, 99.0)];
    let recommendation = case("too_noisy", &all, &Policy::default(), Status::Unresolved, None);
    let [low, high] = recommendation.interval.unwrap();
    assert!(low <= 2 && high >= 10, "{low} {high}");
}

/// Each measurement alone is as clear as can be, but they differ by a tenth: 10 has 0.975 of the best on average, and less
/// than 0.95 in one of the two. Their twenty parts in one pot would hide it.
#[test]
fn measurements_that_differ_widen_the_interval() {
    let twice = |first: f64, second: f64, level: LevelSummary| LevelSummary {
        blocks_rps: [vec![first; 10], vec![second; 10]].concat(),
        ..level
    };
    let best = twice(100.0, 100.0, level(20, 100.0));
    let wavering = recommend(&[twice(92.5, 102.5, level(10, 97.5)), best.clone()], &Policy::default());
    assert_eq!((wavering.recommended_concurrency, wavering.interval), (Some(10), Some([10, 20])));
    let steady = recommend(&[twice(97.5, 97.5, level(10, 97.5)), best], &Policy::default());
    assert_eq!((steady.recommended_concurrency, steady.interval), (Some(10), Some([10, 10])));
}

/// What is best is then the client's best, not the server's.
#[test]
fn a_best_level_that_was_limited_by_the_client_is_no_silent_answer() {
    let client = |cpu, timer_lag_p95_s| Some(ClientLoad { cpu, timer_lag_p95_s });
    let mut all = levels(&[(1, 10.0), (10, 80.0), (20, 100.0), (40, 101.0)]);
    all[1].client = client(Some(0.5), Some(0.030));
    all[3].client = client(Some(0.83), Some(0.000));
    let recommendation = case("client_cpu", &all, &Policy::default(), Status::Ok, Some(20));
    assert!(recommendation.provisional);
    // Timers count by what they add to a request: these take 600 ms on average.
    all[3].client = client(None, Some(0.031));
    assert!(recommend(&all, &Policy::default()).provisional);
    all[3].client = client(None, Some(0.029));
    assert!(!recommend(&all, &Policy::default()).provisional);
    // At another level it is only noted.
    all[3].client = None;
    all[1].client = client(Some(0.83), None);
    let recommendation = recommend(&all, &Policy::default());
    assert!(
        !recommendation.provisional
            && recommendation.notes.iter().any(|note| matches!(note, Note::ClientBound { level: 10, .. }))
    );
}

#[test]
fn p95_is_shown_with_its_interval_where_that_spans_the_limit() {
    let with = |interval, level| LevelSummary { p95_interval_s: Some(interval), ..level };
    let all = [
        with([0.9, 1.1], level(1, 10.0)),
        with([4.2, 5.3], slow(4.9, level(10, 80.0))),
        with([4.8, 6.0], slow(5.2, level(20, 120.0))),
        with([6.0, 9.0], slow(7.0, level(40, 130.0))),
    ];
    let recommendation = case("p95_uncertain", &all, &Policy::default(), Status::LimitedByGate, Some(10));
    let uncertain: Vec<bool> = recommendation.levels.iter().map(|level| level.uncertain).collect();
    assert_eq!(uncertain, [false, true, true, false]);
    let gates: Vec<_> = recommendation.levels.iter().map(|level| level.gate).collect();
    assert_eq!(gates, [None, None, Some(Gate::Time(TimeGate::P95)), Some(Gate::Time(TimeGate::P95))]);
    // 5.2 to 5.9 s are clearly above a limit of 5 s of one's own, but five times level 1 may as well be 5.5 s.
    let near = [all[0].clone(), all[1].clone(), with([5.2, 5.9], slow(5.5, level(40, 130.0)))];
    let own = Policy { max_p95_seconds: Some(5.0), ..Policy::default() };
    let doubted = |policy: &Policy| recommend(&near, policy).levels[2].uncertain;
    assert!(doubted(&Policy::default()) && !doubted(&own));
}

#[test]
fn mainly_429_is_a_quota() {
    let mut all = levels(&[(1, 5.0), (2, 9.5), (5, 10.0), (10, 10.0)]);
    all[2] = failing(all[2].clone(), "RateLimited", 40);
    all[3] = failing(all[3].clone(), "RateLimited", 70);
    case("rate_limited", &all, &Policy::default(), Status::RateLimited, None);
    // The server may say how much it allows.
    all[3].rate_limit = Some(RateLimit {
        limit_requests: Some(600),
        remaining_requests: Some(0),
        reset_s: Some(21.5),
        ..RateLimit::default()
    });
    let reason = words::reason(&recommend(&all, &Policy::default()));
    let expected =
        "passed at level 10; the server states 600 requests (in its ratelimit headers, reset in 21.50 s). Keep to";
    assert!(reason.contains(expected), "{reason}");
}

/// A limit that was not reached is not given as the cause.
#[test]
fn the_quota_that_was_used_up_is_named() {
    let mut all = levels(&[(1, 5.0), (2, 9.5), (5, 10.0)]);
    all[2] = failing(all[2].clone(), "RateLimited", 40);
    (all[2].mean_output_tokens, all[2].mean_input_tokens) = (Some(50.0), Some(150.0));
    let headers = RateLimit {
        limit_requests: Some(100_000),
        remaining_requests: Some(99_999),
        limit_tokens: Some(30_000),
        reset_tokens_s: Some(2.0),
        ..RateLimit::default()
    };
    let quota = |counts, limit, per| Some(Quota { counts, limit, per });
    let by_header = "the server states 30000 tokens (in its ratelimit headers, reset in 2.00 s). Keep";
    for (exceeded, what, expected) in [
        (quota(Counted::Tokens, None, None), "a token quota is the limit", by_header),
        (
            quota(Counted::Tokens, Some(30_000), Some(Period::Minute)),
            "a token quota is the limit, not concurrency; about 10.00 requests per second (600 a minute, 120000 tokens, prompts included) passed",
            "the server states 30000 tokens a minute. Keep",
        ),
        (
            quota(Counted::Requests, Some(200), Some(Period::Day)),
            "a request quota is the limit, not concurrency; stay within it; ",
            "the server states 200 requests a day (or ask",
        ),
        (
            None,
            "a quota is the limit",
            "the server states 100000 requests (in its ratelimit headers) and 30000 tokens (in its ratelimit headers",
        ),
    ] {
        all[2].rate_limit = Some(RateLimit { exceeded, ..headers });
        let reason = words::reason(&recommend(&all, &Policy::default()));
        assert!(reason.contains(what) && reason.contains(expected), "{reason}");
        assert_eq!(reason.contains("100000 requests"), exceeded.is_none(), "{reason}");
    }
    // A later success says what is granted, and not what was in the way.
    let refused = RateLimit { exceeded: quota(Counted::Tokens, None, None), ..headers };
    assert_eq!(refused.updated(headers).exceeded, refused.exceeded);
}

/// All levels alike, so that none has fewer tokens than the others.
#[test]
fn answers_that_their_first_token_ends_are_noted_and_too_many_of_them_fail_a_level() {
    let mut all = levels(&[(1, 10.0), (2, 20.0), (4, 20.5)]);
    let with = |level: &LevelSummary, count| LevelSummary { ended_at_once: Some(count), ..level.clone() };
    let few: Vec<_> = all.iter().map(|level| with(level, 5)).collect();
    let recommendation = recommend(&few, &Policy::default());
    assert_eq!(recommendation.recommended_concurrency, Some(2));
    assert!(recommendation.notes.contains(&Note::EndedAtOnce { level: 1, answers: 5 }));
    all = all.iter().map(|level| with(level, level.succeeded.unwrap())).collect();
    let recommendation = recommend(&all, &Policy::default());
    assert_eq!(recommendation.status, Status::NoQualifyingLevel);
    assert!(
        words::reason(&recommendation).contains("answers ended with their first token (output_shrank)"),
        "{:?}",
        recommendation.reason
    );
}

/// A burst passes first and makes a low level look fast; what is granted shows at the highest.
#[test]
fn the_rate_of_a_quota_is_that_after_the_burst() {
    let mut all = levels(&[(1, 5.0), (5, 22.5), (10, 10.3)]);
    all[1] = failing(all[1].clone(), "RateLimited", 14);
    all[2] = failing(all[2].clone(), "RateLimited", 60);
    let recommendation = recommend(&all, &Policy::default());
    assert_eq!(recommendation.status, Status::RateLimited);
    assert!(words::reason(&recommendation).contains(
        "about 10.30 requests per second (618 a minute, 30900 output tokens) passed at level 10. Keep to that rate"
    ));
    all[1].throughput_rps = None;
    all[2].throughput_rps = None;
    let reason = words::reason(&recommend(&all, &Policy::default()));
    assert!(reason.contains("; stay within it (or ask for a higher quota)"), "{reason}");
}

#[test]
fn the_recommended_level_is_shown_by_the_size_of_the_prompts() {
    let part = |size: &str, seconds: f64, requests| SizeSummary {
        size: size.to_owned(),
        requests,
        succeeded: requests,
        latency_s: Some(latency(seconds)),
        mean_input_tokens: Some(10.0 * size.len() as f64),
        mean_output_tokens: (size != "large").then_some(49.96),
    };
    let mut all = levels(&[(1, 10.0), (2, 20.0), (4, 20.5)]);
    all[1].by_size = vec![part("small", 1.0, 60), part("medium", 2.0, 30), part("large", 40.0, 10)];
    all[2].by_size = vec![part("not shown", 1.0, 60), part("medium", 2.0, 30)];
    let text = text::table(&recommend(&all, &Policy::default()), usize::MAX);
    let (_, below) = text.split_once("\n\n").expect("an empty line after the main table");
    assert_eq!(
        below,
        "level 2 by the size of the prompts:
    P50      P95  tokens in  tokens out   n  prompts
 550 ms   1.00 s       50.0        50.0  60  small
 1.10 s   2.00 s       60.0        50.0  30  medium
22.00 s  40.00 s       50.0           –  10  large
"
    );
}

/// One 429 among thousands, beside a level that is merely slow, is no quota.
#[test]
fn a_single_429_is_not_a_quota() {
    let all = [failing(level(1, 10.0), "RateLimited", 1), level(5, 45.0), level(10, 46.0), slow(9.0, level(20, 46.0))];
    case("single_429", &all, &Policy::default(), Status::Ok, Some(5));
}

#[test]
fn one_level_says_nothing_about_others() {
    case("one_level", &levels(&[(10, 80.0)]), &Policy::default(), Status::Unresolved, None);
}

#[test]
fn an_empty_list() {
    case("empty", &[], &Policy::default(), Status::Unresolved, None);
}

#[test]
fn a_hopeless_level_fails_however_small() {
    let hopeless = LevelSummary {
        state: Some(LevelState::Hopeless),
        reason: Some(EarlyEnd::WarmUpFailed),
        ..failing(of_size(10, level(20, 0.5)), "Timeout", 10)
    };
    let all = [level(1, 10.0), level(10, 80.0), hopeless.clone()];
    case("hopeless", &all, &Policy::default(), Status::LimitedByGate, Some(10));
    // Also where no request came to an end, so that there is no error rate.
    let without_rate = LevelSummary { requests: Some(0), succeeded: Some(0), error_rate: None, ..hopeless };
    let all = [level(1, 10.0), level(10, 80.0), without_rate];
    let recommendation = recommend(&all, &Policy::default());
    assert_eq!(recommendation.levels[2].verdict, Verdict::Fail);
    assert_eq!(recommendation.recommended_concurrency, Some(10));
}

#[test]
fn an_interrupted_level_is_not_used() {
    let mut all = levels(&[(1, 10.0), (2, 20.0), (5, 48.0)]);
    all[2].state = Some(LevelState::Cut);
    case("cut", &all, &Policy::default(), Status::NotSaturated, Some(2));
}

#[test]
fn the_objective_may_be_output_tokens() {
    let policy = Policy { objective: Objective::OutputTokens, ..Policy::default() };
    let with_tps = |n, rps, tps| LevelSummary { output_tps: Some(tps), ..level(n, rps) };
    let all = [with_tps(1, 10.0, 500.0), with_tps(5, 60.0, 900.0), with_tps(10, 40.0, 1000.0)];
    case("output_tokens", &all, &policy, Status::NotSaturated, Some(10));
    case("output_tokens_by_requests", &all, &Policy::default(), Status::Ok, Some(5));
    // A level without token counts cannot be compared: it is neither the pick nor "the next one, which fails".
    let mut unknown = all.to_vec();
    unknown[2].output_tps = None;
    case("output_tokens_unknown", &unknown, &policy, Status::NotSaturated, Some(5));
}

#[test]
fn only_concurrency_and_throughput() {
    let bare = |concurrency, estimate| LevelSummary {
        concurrency,
        throughput_rps: Some(Estimate { estimate, lower: None, upper: None }),
        ..LevelSummary::default()
    };
    let all = [bare(1, 10.0), bare(5, 45.0), bare(10, 80.0), bare(20, 81.0)];
    let recommendation = case("bare", &all, &Policy::default(), Status::Ok, Some(10));
    assert!(recommendation.provisional);
    assert_eq!(recommendation.interval, None, "nothing is known of the noise");
}

/// The error rate follows from the counts if it is not there itself.
#[test]
fn counts_serve_the_error_gate() {
    let mut all = levels(&[(1, 10.0), (5, 45.0), (10, 80.0)]);
    all[2] = LevelSummary { error_rate: None, ..failing(all[2].clone(), "ServerError", 30) };
    assert_eq!(recommend(&all, &Policy::default()).recommended_concurrency, Some(5));
}

#[test]
fn a_verdict_from_a_file_does_not_hide_the_new_one() {
    let mut all = levels(&[(1, 10.0), (5, 45.0)]);
    all[0].unknown = [("verdict".to_owned(), "fail".into()), ("mine".to_owned(), 1.into())].into();
    let json = serde_json::to_value(recommend(&all, &Policy::default())).unwrap();
    assert_eq!((&json["levels"][0]["verdict"], &json["levels"][0]["mine"]), (&"pass".into(), &1.into()));
}

/// What another version recorded and this one does not know is shown in the words beside it.
#[test]
fn a_recommendation_of_another_version_is_read() {
    let all = [level(1, 10.0), level(5, 45.0), slow(9.0, level(10, 80.0))];
    let decided = recommend(&all, &Policy::default());
    assert_eq!(Recommendation::recorded(words::with_words(&decided)).as_ref(), Some(&decided));
    let mut file = words::with_words(&decided);
    let late =
        json!([{"kind": "p95", "p95": 9.0, "limit": {"seconds": 5.0, "interval": [5.0, 5.0], "from": [1, 1.0]}}]);
    file["levels"][2]["causes"] = late.clone();
    file["levels"][2]["why"] = json!("P95 9.00 s is above 5 x the 1.00 s of level 1");
    file["cause"] = json!({"kind": "last_passing", "level": 5, "failed": 10, "causes": late});
    file["reason"] = json!("5 is the last level that passes; but at level 5 this client was the limit");
    file["client_bound_at"] = json!(5);
    file["findings"] = json!([{"kind": "quick"}, {"kind": "of_run", "text": "levels come from 2 runs"}]);
    file["notes"] = json!(["a quick run", "levels come from 2 runs"]);
    let read = Recommendation::recorded(file.clone()).unwrap();
    assert_eq!(words::causes(&read.levels[2].causes), "P95 9.00 s is above 5 x the 1.00 s of level 1");
    assert_eq!(words::reason(&read), "5 is the last level that passes; but at level 5 this client was the limit");
    assert_eq!(read.notes, [Note::Quick, Note::Other { text: "levels come from 2 runs".to_owned() }]);
    // Nor does it need the words, where it knows the data; without either there is nothing to show.
    file["notes"] = json!(null);
    assert_eq!(Recommendation::recorded(file), None);
    assert_eq!(Recommendation::recorded(json!("nothing of the kind")), None);
    let cut: LevelSummary = serde_json::from_value(json!({"concurrency": 5, "reason": "interrupted"})).unwrap();
    assert_eq!(cut.reason, Some(EarlyEnd::Other("interrupted".to_owned())));
    let stalled = LevelSummary { reason: Some(EarlyEnd::NoSuccess { seconds: 30.0 }), ..cut };
    assert_eq!(serde_json::from_value::<LevelSummary>(json!(stalled)).unwrap(), stalled);
}

// ---- properties ----

fn strange() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.0..1e4,
        1 => Just(0.0),
        1 => Just(-0.0),
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
        1 => any::<f64>(),
    ]
}

fn maybe<T: std::fmt::Debug>(inner: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    proptest::option::weighted(0.8, inner)
}

prop_compose! {
    fn any_estimate()(estimate in strange(), lower in maybe(strange()), upper in maybe(strange())) -> Estimate {
        Estimate { estimate, lower, upper }
    }
}

prop_compose! {
    fn any_sample()(duration_s in strange(), completed in any::<u64>(), succeeded in any::<u64>()) -> Sample {
        Sample { duration_s, completed, succeeded }
    }
}

prop_compose! {
    fn any_latency()(mean in maybe(strange()), p95 in maybe(strange()), p99 in maybe(strange())) -> Distribution {
        Distribution { mean, p95, p99, ..Distribution::default() }
    }
}

prop_compose! {
    fn any_goodput()(
        met in prop_oneof![0_u64..2000, any::<u64>()],
        attainment in any_estimate(),
        rps in any_estimate(),
        blocks_rps in proptest::collection::vec(strange(), 0..12),
    ) -> Goodput {
        Goodput { slo: SLO, met, attainment, rps, blocks_rps }
    }
}

prop_compose! {
    fn any_level()(
        concurrency in prop_oneof![4 => 0_usize..100, 1 => any::<usize>()],
        counts in (maybe(prop_oneof![0_u64..2000, any::<u64>()]), maybe(prop_oneof![0_u64..2000, any::<u64>()])),
        failures in proptest::collection::btree_map("RateLimited|Timeout|Odd", any::<u64>(), 0..3),
        error_rate in maybe(prop_oneof![3 => 0.0..0.1, 1 => strange()]),
        throughput_rps in maybe(any_estimate()),
        samples in maybe(proptest::collection::vec(any_sample(), 0..12)),
        blocks_rps in proptest::collection::vec(strange(), 0..12),
        latencies in (maybe(any_latency()), maybe(any_latency())),
        tokens in (maybe(strange()), maybe(strange()), maybe(strange())),
        goodput in maybe(any_goodput().boxed()),
        state in maybe(prop_oneof![6 => Just(LevelState::Complete), 1 => Just(LevelState::Cut), 1 => Just(LevelState::Hopeless)]),
    ) -> LevelSummary {
        LevelSummary {
            concurrency,
            requests: counts.0,
            succeeded: counts.1,
            failures,
            error_rate,
            throughput_rps,
            samples,
            blocks_rps,
            latency_s: latencies.0,
            gate_latency_s: latencies.1,
            output_tps: tokens.0,
            mean_output_tokens: tokens.1,
            mean_in_flight: tokens.2,
            goodput,
            state,
            ..LevelSummary::default()
        }
    }
}

prop_compose! {
    /// What a real run may give: windows around a rate, some errors, some latency.
    fn sane_level(concurrency: usize)(
        rps in 0.1..1000.0,
        noise in proptest::collection::vec(0.5..2.0, 10),
        failed in prop_oneof![2 => Just(0_u64), 1 => 0_u64..20],
        p95 in 0.1..3.0,
        tokens in 40.0..60.0,
        missed in prop_oneof![1 => Just(0_u64), 1 => 0_u64..100],
    ) -> LevelSummary {
        let mut level = slow(p95, failing(level(concurrency, rps), "ServerError", failed));
        for (sample, factor) in level.samples.iter_mut().flatten().zip(noise) {
            sample.duration_s *= factor;
        }
        within(missed, LevelSummary { mean_output_tokens: Some(tokens), ..level })
    }
}

fn sane_levels() -> impl Strategy<Value = Vec<LevelSummary>> {
    proptest::collection::btree_set(1_usize..200, 0..8)
        .prop_flat_map(|set| set.into_iter().map(|level| sane_level(level).boxed()).collect::<Vec<_>>())
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let objective = prop_oneof![Just(Objective::Requests), Just(Objective::OutputTokens), Just(Objective::Goodput)];
    let limits = [(); 4].map(|()| maybe(0.1..10.0));
    let slo = maybe((0.01..=1.0).prop_map(|attainment| Slo { attainment, ..SLO }));
    (objective, 0.0..=1.0, limits, slo, 0.0..=1.0).prop_map(|(objective, max_error_rate, limits, slo, tolerance)| {
        let [max_p95_seconds, max_p99_seconds, max_ttft_p95_seconds, max_tpot_p95_seconds] = limits;
        Policy {
            objective,
            max_error_rate,
            max_p95_seconds,
            max_p99_seconds,
            max_ttft_p95_seconds,
            max_tpot_p95_seconds,
            slo,
            tolerance,
        }
    })
}

fn value(level: &LevelSummary, objective: Objective) -> Option<f64> {
    match objective {
        Objective::Requests => level.throughput_rps.map(|t| t.estimate),
        Objective::OutputTokens => level.output_tps,
        Objective::Goodput => level.goodput.as_ref().map(|goodput| goodput.rps.estimate),
    }
}

/// What holds whatever is fed in.
fn check_pick(recommendation: &Recommendation, policy: &Policy) -> Result<(), TestCaseError> {
    let Some(pick) = recommendation.recommended_concurrency else {
        prop_assert!(!recommendation.status.may_patch());
        return Ok(());
    };
    prop_assert!(recommendation.status.may_patch());
    let passing: Vec<_> = recommendation
        .levels
        .iter()
        .filter(|level| level.verdict == Verdict::Pass)
        .map(|level| (level.summary.concurrency, value(&level.summary, policy.objective).unwrap_or(f64::NAN)))
        .collect();
    prop_assert!(passing.iter().all(|(_, value)| value.is_finite() && *value > 0.0), "{passing:?}");
    let best = passing.iter().map(|p| p.1).fold(0.0, f64::max);
    let highest = passing.iter().find(|p| p.1 == best).unwrap().0;
    prop_assert!(passing.iter().any(|p| p.0 == pick), "the pick passes");
    prop_assert!(pick <= highest, "{pick} is above the best, {highest}");
    for (level, value) in &passing {
        prop_assert!(*level >= pick || *value < (1.0 - policy.tolerance) * best, "{level} would have done");
    }
    if let Some([low, high]) = recommendation.interval {
        prop_assert!(low <= pick && pick <= high);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_a_file_may_hold_panics_or_is_picked(
        levels in proptest::collection::vec(any_level().boxed(), 0..8),
        policy in any_policy().boxed(),
    ) {
        let recommendation = recommend(&levels, &policy);
        check_pick(&recommendation, &policy)?;
        prop_assert!(!printed(&recommendation).contains("NaN"));
        serde_json::to_string(&recommendation).unwrap();
    }

    #[test]
    fn the_pick_keeps_its_rules(levels in sane_levels(), policy in any_policy().boxed()) {
        check_pick(&recommend(&levels, &policy), &policy)?;
        check_pick(&recommend(&levels, &Policy::default()), &Policy::default())?;
    }

    /// By a power of two, which loses no digit.
    #[test]
    fn the_unit_of_throughput_does_not_matter(levels in sane_levels(), power in -8_i32..8) {
        let scale = 2_f64.powi(power);
        let mut scaled = levels.clone();
        for level in &mut scaled {
            level.throughput_rps = level.throughput_rps.map(|t| Estimate {
                estimate: t.estimate * scale,
                lower: t.lower.map(|v| v * scale),
                upper: t.upper.map(|v| v * scale),
            });
        }
        let (a, b) = (recommend(&levels, &Policy::default()), recommend(&scaled, &Policy::default()));
        prop_assert_eq!(
            (a.status, a.recommended_concurrency, a.interval, a.low_latency_alternative),
            (b.status, b.recommended_concurrency, b.interval, b.low_latency_alternative)
        );
    }

    #[test]
    fn the_order_does_not_matter(
        (levels, shuffled) in sane_levels().prop_flat_map(|l| (Just(l.clone()), Just(l).prop_shuffle()))
    ) {
        prop_assert_eq!(recommend(&levels, &Policy::default()), recommend(&shuffled, &Policy::default()));
    }
}

// ---- what is printed at the end ----

/// Nothing but its throughput and its errors.
fn plain(concurrency: usize, rps: f64, error_rate: f64) -> LevelSummary {
    LevelSummary {
        concurrency,
        error_rate: Some(error_rate),
        throughput_rps: Some(Estimate { estimate: rps, lower: None, upper: None }),
        ..LevelSummary::default()
    }
}

/// With an empty line before them, and the report and the next command behind.
#[test]
fn the_end_of_a_run_fits_fifteen_lines_of_any_width() {
    let many: Vec<LevelSummary> = (1..=60).map(|n| plain(n, (n as f64).min(20.0), 0.5 * f64::from(n > 40))).collect();
    for levels in [&many[..], &many[..10], &many[..1], &[]] {
        let decided = recommend(levels, &Policy::default());
        for width in [60, 80, 120] {
            let shown = text::brief(&decided, Some(10), text::Screen { width, bold: false });
            let widest = shown.lines().map(|line| line.chars().count()).max().unwrap_or_default();
            assert!(shown.lines().count() <= 12 && widest <= width, "{widest} of {width}:\n{shown}");
            assert!(shown.starts_with(&words::headline(&decided, Some(10))[..20]), "{shown}");
            let chosen = decided.recommended_concurrency;
            assert_eq!(shown.matches("<- recommended").count(), usize::from(chosen.is_some()), "{shown}");
        }
        let bold = text::brief(&decided, None, text::Screen { width: 200, bold: true });
        assert!(bold.starts_with("\x1b[1m") && bold.matches("\x1b[0m\n").count() == 1, "{bold}");
    }
}

#[test]
fn a_narrow_table_drops_columns_and_breaks_between_words() {
    let decided = recommend(&[plain(1, 5.0, 0.0), plain(20, 40.0, 0.0), plain(50, 39.0, 0.5)], &Policy::default());
    let header = |width: usize| text::table(&decided, width).lines().next().map(str::to_owned).unwrap_or_default();
    assert_eq!(header(usize::MAX).split("  ").filter(|name| !name.is_empty()).count(), text::COLUMNS.len() + 1);
    assert!(!header(80).contains('±') && header(80).contains("P95"), "{}", header(80));
    let narrow = text::table(&decided, 60);
    assert!(narrow.lines().all(|line| line.chars().count() <= 60), "{narrow}");
    // What a failing level reaches is no share of what is allowed.
    let failing = narrow.lines().find(|line| line.trim_start().starts_with("50 ")).unwrap_or_default();
    assert!(failing.contains('–') && !failing.contains("98 %"), "{narrow}");
    assert_eq!(text::wrapped("a bb ccc", 4), ["a bb", "ccc"]);
}
