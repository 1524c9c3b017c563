//! Records of requests to the figures of their level, and throughputs to their curve.

#![cfg(feature = "suite")]

use std::collections::BTreeMap;

use llm_concurrency::client::outcome::{Failure, Phase, RateLimit, RequestOutcome};
use llm_concurrency::figures::reasons::Reasons;
use llm_concurrency::figures::{
    ClientLoad, Distribution, Estimate, LevelState, LevelSummary, Limits, Measured, Measurement, Outage, Prices, Reach,
    Requests, Sample, ServerLoad, quantile, summarize, wilson,
};
use serde_json::json;

const NO_PRICES: Prices = Prices { per_million_input: None, per_million_output: None, server_per_hour: None };
const LIMITS: Limits =
    Limits { request_timeout_s: 30.0, max_error_rate: 0.05, slo: None, prices: NO_PRICES, warm_from_s: 0.0 };

fn two_for_ten_seconds() -> Measurement {
    Measurement { concurrency: 2, window_s: Some([10.0, 20.0]), ..Measurement::default() }
}

fn summary_of(measurement: &Measurement, outcomes: &[RequestOutcome]) -> LevelSummary {
    summarize(&[(measurement, &outcomes.iter().collect())], LIMITS)
}

fn figures_of(outcomes: &[RequestOutcome]) -> LevelSummary {
    summary_of(&two_for_ten_seconds(), outcomes)
}

fn assert_near(got: Option<f64>, want: f64) {
    let got = got.unwrap_or(f64::NAN);
    assert!((got - want).abs() <= 1e-12 * want.abs().max(1.0), "got {got}, want {want}");
}

/// A success of the cohort.
fn outcome(start: f64, end: f64) -> RequestOutcome {
    RequestOutcome {
        phase: Phase::Measured,
        start_s: start,
        end_s: Some(end),
        latency_s: Some(end - start),
        status: Some(200),
        ..RequestOutcome::default()
    }
}

fn request(phase: Phase, start_s: f64, end_s: f64, tokens: Option<u32>) -> RequestOutcome {
    RequestOutcome { phase, output_tokens: tokens, ..outcome(start_s, end_s) }
}

fn failed(start_s: f64, end_s: f64, failure: Failure) -> RequestOutcome {
    RequestOutcome { failure: Some(failure), ..request(Phase::Measured, start_s, end_s, None) }
}

/// Half of the first request's life and three quarters of the last one's lie outside the window of 10 s.
#[test]
fn rates_count_shares_of_life_and_percentiles_the_cohort() {
    let outcomes = [
        request(Phase::Warmup, 8.0, 12.0, Some(40)),
        request(Phase::Measured, 12.0, 16.0, Some(20)),
        request(Phase::Measured, 19.0, 23.0, Some(80)),
        request(Phase::Warmup, 1.0, 9.0, Some(1000)),
    ];
    let summary = figures_of(&outcomes);
    assert_eq!((summary.requests, summary.succeeded, summary.duration_s), (Some(2), Some(2), Some(10.0)));
    assert_near(summary.throughput_rps.map(|t| t.estimate), (0.5 + 1.0 + 0.25) / 10.0);
    assert_near(summary.output_tps, (0.5 * 40.0 + 20.0 + 0.25 * 80.0) / 10.0);
    assert_near(summary.mean_in_flight, (2.0 + 4.0 + 1.0) / 10.0);
    // The cohort alone: the two issued inside.
    assert_eq!(summary.mean_output_tokens, Some(50.0));
    assert_eq!(summary.latency_s.unwrap().mean, Some(4.0));
    assert_eq!(summary.error_rate, Some(0.0));
    assert_eq!(summary.ttft_s, None);
    assert_eq!(summary.itl_s, None);
}

#[test]
fn failures_are_counted_by_kind_and_timeouts_weigh_on_the_gate() {
    let outcomes = [
        request(Phase::Measured, 10.0, 11.0, Some(5)),
        request(Phase::Measured, 10.0, 11.0, Some(5)),
        failed(10.0, 19.0, Failure::Timeout),
        failed(10.0, 10.1, Failure::RateLimited),
        failed(10.0, 10.1, Failure::RateLimited),
    ];
    let summary = figures_of(&outcomes);
    let kinds: BTreeMap<String, u64> = [("RateLimited".to_owned(), 2), ("Timeout".to_owned(), 1)].into();
    assert_eq!(summary.failures, kinds);
    assert_near(summary.error_rate, 0.6);
    assert_near(summary.timeout_rate, 0.2);
    assert_eq!(summary.latency_s.unwrap().max, Some(1.0));
    let gate = summary.gate_latency_s.unwrap();
    assert_eq!((gate.p50, gate.max), (Some(1.0), Some(30.0)));
    // In flight counts all, successes or not: 1 + 1 + 9 + 0.1 + 0.1 seconds in 10.
    assert_near(summary.mean_in_flight, 1.12);
    assert_near(summary.throughput_rps.map(|t| t.estimate), 0.2);
}

/// Two permits for ten seconds: one is held back for six of them, of which four lie inside the window.
#[test]
fn permits_held_back_are_no_requests_in_flight() {
    let refused = RequestOutcome { held_s: Some(6.0), ..failed(15.9, 16.0, Failure::RateLimited) };
    let summary = figures_of(&[request(Phase::Measured, 10.0, 20.0, None), refused]);
    assert_near(summary.mean_in_flight, 1.01);
    assert_near(summary.mean_held, 0.4);
    assert_eq!(figures_of(&[request(Phase::Measured, 10.0, 20.0, None)]).mean_held, None);
}

/// As where the engine turned out to have been cold: what comes later counts as if it were the first.
#[test]
fn what_is_left_out_counts_nowhere() {
    let of_size = |start_s, size: &str, input| RequestOutcome {
        prompt_size: Some(size.into()),
        input_tokens: Some(input),
        ..request(Phase::Measured, start_s, start_s + 2.0, Some(20))
    };
    let mut requests = Requests::default();
    requests.push(&of_size(5.0, "small", 1000));
    requests.push(&of_size(6.0, "large", 2000));
    requests.push(&failed(7.0, 8.0, Failure::ServerError));
    requests.leave_out();
    let since = [of_size(12.0, "large", 30), of_size(14.0, "small", 10)];
    since.iter().for_each(|outcome| requests.push(outcome));
    let figures = |requests: &Requests| summarize(&[(&two_for_ten_seconds(), requests)], LIMITS);
    assert_eq!(figures(&requests), figures(&since.iter().collect()));
    assert_eq!(figures(&requests).mean_input_tokens, Some(20.0));
}

#[test]
fn the_cohort_is_told_apart_by_the_size_of_the_prompts() {
    let sized = |size: &str, latency, tokens| RequestOutcome {
        prompt_size: Some(size.into()),
        input_tokens: Some(10 * size.len() as u32 + tokens),
        ..request(Phase::Measured, 10.0, 10.0 + latency, Some(tokens))
    };
    let mut outcomes = vec![
        sized("large", 5.0, 40),
        sized("huge", 9.0, 90),
        sized("small", 1.0, 10),
        sized("medium", 2.0, 5),
        sized("small", 3.0, 20),
    ];
    outcomes.push(RequestOutcome { failure: Some(Failure::ServerError), ..sized("large", 0.1, 0) });
    outcomes.push(RequestOutcome { phase: Phase::Warmup, ..sized("small", 100.0, 1000) });
    outcomes.push(RequestOutcome { output_tokens: None, ..sized("medium", 4.0, 0) });
    let by_size = figures_of(&outcomes).by_size;
    let figures: Vec<_> = by_size
        .iter()
        .map(|part| {
            let latency = part.latency_s.unwrap();
            let tokens = [part.mean_input_tokens, part.mean_output_tokens];
            (part.size.as_str(), part.requests, part.succeeded, latency.p50, tokens)
        })
        .collect();
    let expected = [
        ("small", 2, 2, Some(2.0), [Some(65.0), Some(15.0)]),
        // One of them came without a count.
        ("medium", 2, 2, Some(3.0), [Some(62.5), None]),
        ("large", 2, 1, Some(5.0), [Some(90.0), Some(40.0)]),
        ("huge", 1, 1, Some(9.0), [Some(130.0), Some(90.0)]),
    ];
    assert_eq!(figures, expected);
    outcomes[0].input_tokens = None;
    assert!(figures_of(&outcomes).by_size.iter().all(|part| part.mean_input_tokens.is_none()));
    let one_size = vec![sized("small", 1.0, 10), sized("small", 2.0, 10)];
    assert_eq!(figures_of(&one_size).by_size, Vec::new());
}

#[test]
fn token_figures_are_unknown_if_one_answer_came_without() {
    let with = request(Phase::Measured, 11.0, 12.0, Some(5));
    let without = request(Phase::Measured, 11.0, 12.0, None);
    let summary = figures_of(&[with.clone(), without]);
    assert_eq!((summary.output_tps, summary.mean_output_tokens), (None, None));
    // One that played no part in the window does not spoil it.
    let outside = request(Phase::Warmup, 0.0, 9.0, None);
    assert_eq!(figures_of(&[with, outside]).mean_output_tokens, Some(5.0));
}

#[test]
fn of_nothing_all_is_unknown() {
    let summary = figures_of(&[]);
    assert_eq!(summary.requests, Some(0));
    assert_eq!((summary.error_rate, summary.timeout_rate, summary.latency_s), (None, None, None));
    let empty = Measurement { window_s: None, ..two_for_ten_seconds() };
    assert_eq!(summary_of(&empty, &[]).throughput_rps, None);
}

/// Two permits; a request holds one for 1 s, in the second half of the cohort for 2 s: 2 and 1 per second.
#[test]
fn blocks_follow_a_server_that_slows_down() {
    // As they end, not as they were issued.
    let cohort: Vec<_> = (0..20_u64)
        .rev()
        .map(|seq| {
            let latency = if seq < 10 { 1.0 } else { 2.0 };
            RequestOutcome { seq, ..request(Phase::Measured, 10.0, 10.0 + latency, None) }
        })
        .collect();
    let summary = figures_of(&cohort);
    assert_eq!(summary.blocks_rps, [2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
}

#[test]
fn times_between_tokens() {
    let mut outcome = request(Phase::Measured, 10.0, 12.0, Some(11));
    outcome.ttft_s = Some(0.5);
    let measurement = Measurement { itl_histogram: vec![(1_000, 3), (3_000, 1)], ..two_for_ten_seconds() };
    let summary = summary_of(&measurement, &[outcome]);
    assert_eq!(summary.ttft_s.unwrap().p50, Some(0.5));
    assert_near(summary.tpot_s.unwrap().mean, 0.15);
    assert_near(summary.itl_s.unwrap().mean, 0.0015);
}

/// What a level cost the client is averaged over the time that was measured, a quota is what was said last.
#[test]
fn measurements_of_a_level_are_pooled() {
    let quota = |remaining| Some(RateLimit { remaining_requests: Some(remaining), ..RateLimit::default() });
    let cost = |cpu, lag| Some(ClientLoad { cpu, timer_lag_p95_s: Some(lag) });
    let load = |readings, running| Some(ServerLoad { readings, running: Some(running), ..ServerLoad::default() });
    let first = Measurement {
        client: cost(Some(0.4), 0.001),
        rate_limit: quota(5),
        server: load(1, 8.0),
        ..two_for_ten_seconds()
    };
    let second = Measurement {
        client: cost(None, 0.003),
        server: load(3, 6.0),
        window_s: Some([0.0, 5.0]),
        rate_limit: quota(3),
        ..two_for_ten_seconds()
    };
    let cut = Measurement { state: LevelState::Cut, ..two_for_ten_seconds() };
    let of_first = [request(Phase::Measured, 11.0, 13.0, Some(5))];
    let of_second = [request(Phase::Measured, 1.0, 2.0, Some(7)), request(Phase::Measured, 2.0, 3.0, None)];
    let [of_first, of_second]: [Requests; 2] = [of_first.iter().collect(), of_second.iter().collect()];
    let summary = summarize(&[(&first, &of_first), (&cut, &of_second), (&second, &of_second)], LIMITS);
    assert_eq!((summary.requests, summary.duration_s), (Some(3), Some(15.0)));
    assert_near(summary.throughput_rps.map(|t| t.estimate), 0.2);
    let lag = summary.client.and_then(|client| client.timer_lag_p95_s);
    assert_near(lag, (10.0 * 0.001 + 5.0 * 0.003) / 15.0);
    assert_eq!(summary.client.and_then(|client| client.cpu), Some(0.4));
    assert_eq!(summary.server, load(4, 6.5));
    assert_eq!(summary.rate_limit, quota(3));
    assert_eq!(summary.state, Some(LevelState::Complete));
    // One that was cut is better than none.
    let alone = summarize(&[(&cut, &of_first)], LIMITS);
    assert_eq!((alone.requests, alone.state), (Some(1), Some(LevelState::Cut)));
}

#[test]
fn what_a_cold_engine_did_counts_only_where_a_level_has_nothing_else() {
    let cold = two_for_ten_seconds();
    let warm = Measurement { began_s: 100.0, ..two_for_ten_seconds() };
    let of = |seconds| -> Requests { [request(Phase::Measured, 11.0, 11.0 + seconds, Some(5))].iter().collect() };
    let (slow, fast) = (of(3.0), of(1.0));
    let mean = |level: &[Measured], warm_from_s| {
        summarize(level, Limits { warm_from_s, ..LIMITS }).latency_s.and_then(|latency| latency.mean)
    };
    let both = [(&cold, &slow), (&warm, &fast)];
    assert_eq!([0.0, 50.0, 500.0].map(|from_s| mean(&both, from_s)), [Some(2.0), Some(1.0), Some(2.0)]);
    assert_eq!(mean(&both[..1], 50.0), Some(3.0));
}

#[test]
fn json_goes_round_with_unknown_keys_and_null_parts() {
    let text = json!({
        "concurrency": 4, "requests": null, "failures": null, "samples": null, "blocks_rps": null,
        "throughput_rps": {"estimate": 3.5, "lower": null}, "latency_s": {"p95": 1.5, "p75": 1.0},
        "gpu_watts": 300, "host": {"name": "a"},
    });
    let summary: LevelSummary = serde_json::from_value(text).unwrap();
    assert_eq!(summary.throughput_rps, Some(Estimate { estimate: 3.5, lower: None, upper: None }));
    assert_eq!(summary.latency_s.unwrap().p95, Some(1.5));
    assert_eq!((summary.requests, summary.samples.is_none(), summary.failures.len()), (None, true, 0));
    assert_eq!(summary.unknown["gpu_watts"], 300);
    assert_eq!(summary.unknown["host"]["name"], "a");
    let written = serde_json::to_value(&summary).unwrap();
    assert_eq!(written["gpu_watts"], 300);
    assert_eq!(serde_json::from_value::<LevelSummary>(written).unwrap(), summary);

    let full = figures_of(&[request(Phase::Measured, 10.0, 11.0, Some(5))]);
    let written = serde_json::to_string(&full).unwrap();
    assert_eq!(serde_json::from_str::<LevelSummary>(&written).unwrap(), full);
}

#[test]
fn impossible_figures_become_unknown() {
    let strange = LevelSummary {
        error_rate: Some(1.5),
        timeout_rate: Some(f64::NAN),
        throughput_rps: Some(Estimate { estimate: f64::INFINITY, lower: None, upper: None }),
        latency_s: Some(Distribution { p95: Some(-1.0), p99: Some(2.0), ..Distribution::default() }),
        samples: Some(vec![Sample { duration_s: f64::NAN, completed: 1, succeeded: 1 }]),
        output_tps: Some(f64::NEG_INFINITY),
        blocks_rps: vec![1.0, f64::NAN, -1.0],
        ..LevelSummary::default()
    };
    let kept = strange.without_impossible();
    assert_eq!((kept.error_rate, kept.timeout_rate, kept.output_tps), (None, None, None));
    assert_eq!(kept.throughput_rps, None);
    assert_eq!(kept.latency_s.map(|l| (l.p95, l.p99)), Some((None, Some(2.0))));
    assert_eq!((kept.samples, kept.blocks_rps), (Some(Vec::new()), vec![1.0]));

    let sane = figures_of(&[request(Phase::Measured, 10.0, 11.0, Some(5))]);
    assert_eq!(sane.clone().without_impossible(), sane);
}

#[test]
fn what_found_no_server_is_told_from_what_a_full_one_refused() {
    let cut = RequestOutcome { cut: true, ..failed(10.0, 11.0, Failure::Malformed) };
    let answered = |status, failure| RequestOutcome { status: Some(status), ..failed(10.0, 11.0, failure) };
    let (full, gateway) = (answered(503, Failure::ServerError), answered(502, Failure::ServerError));
    let garbage = answered(200, Failure::Malformed);
    let refused = answered(0, Failure::Connect);
    let reach = |outcomes: &[&RequestOutcome]| {
        let mut reach = Reach { requests: 50, ..Reach::default() };
        outcomes.iter().for_each(|outcome| reach.add(outcome));
        reach
    };
    let is_outage = |outcomes: &[&RequestOutcome]| reach(outcomes).is_outage(0.05);
    assert!(is_outage(&[&cut; 10]) && is_outage(&[&gateway; 10]) && is_outage(&[&refused; 10]));
    assert!(!is_outage(&[&full; 50]) && !is_outage(&[&garbage; 50]));
    // Starting takes a while, and says so.
    assert!(is_outage(&[&[&refused][..], &[&full; 9]].concat()));
    // 4 of 54 may be chance.
    assert!(!is_outage(&[&refused; 4]));
    // It may be gone in the warm-up, of which all must have failed for the level to be given up.
    let warmup = RequestOutcome { phase: Phase::Warmup, ..refused.clone() };
    assert!(is_outage(&[&warmup; 10]));
    let given_up = RequestOutcome { end_s: None, ..refused.clone() };
    assert_eq!(reach(&[&given_up]), reach(&[]));
}

#[test]
fn disturbed_measurements_are_set_aside_if_there_are_others() {
    let measurement = two_for_ten_seconds();
    let requests = |good: usize, lost: usize| -> Requests {
        let (served, refused) = (outcome(10.0, 11.0), failed(10.0, 11.0, Failure::Connect));
        std::iter::repeat_n(&served, good).chain(std::iter::repeat_n(&refused, lost)).collect()
    };
    let (there, gone) = (requests(100, 0), requests(32, 24));
    let counted = |measurements: &[&Requests]| {
        let level: Vec<Measured> = measurements.iter().map(|requests| (&measurement, *requests)).collect();
        let summary = summarize(&level, LIMITS);
        (summary.requests.unwrap(), summary.outage)
    };
    let outage = |measurements, of, since| {
        Some(Outage { lost: 24 * measurements, requests: 56 * measurements, measurements, of, since })
    };
    assert_eq!(counted(&[&there, &there]), (200, None));
    assert_eq!(counted(&[&gone]), (56, outage(1, 1, 0)));
    assert_eq!(counted(&[&gone, &there]), (100, outage(1, 2, 1)));
    assert_eq!(counted(&[&there, &gone, &gone]), (100, outage(2, 3, 0)));
    assert!(!outage(2, 2, 0).unwrap().is_set_aside() && outage(2, 3, 0).unwrap().is_set_aside());
}

#[test]
fn reasons_that_differ_by_ids_are_one() {
    let mut reasons = Reasons::default();
    for n in 0..5 {
        reasons.add(Failure::ClientError, &format!("HTTP 400: {} tokens exceed 1024 (request ab{n}cd{n})", 1700 + n));
    }
    reasons.add(Failure::ServerError, "HTTP 503: busy");
    reasons.add(Failure::ServerError, "HTTP 500: busy");
    assert_eq!(reasons.groups().count(), 3);
    let most = reasons.most_frequent().expect("there are some");
    assert_eq!((most.kind, most.count), (Failure::ClientError, 5));
    assert_eq!(most.text, "HTTP 400: 1700 tokens exceed 1024 (request ab0cd0)");
}

#[test]
fn a_server_that_never_says_the_same_twice_fills_no_memory() {
    let mut reasons = Reasons::default();
    (0..5_000_u32).for_each(|n| {
        let letters: String = n.to_string().bytes().map(|digit| char::from(digit + 49)).collect();
        reasons.add(Failure::ServerError, &letters);
    });
    assert_eq!(reasons.groups().count(), 1_000);
}

/// The Universal Scalability Law.
mod usl {
    use llm_concurrency::figures::usl::{Usl, UslError, fit};

    /// Data set `specsdm91` of R's package `usl`: the SPEC SDM benchmark of 1991.
    const SPECSDM91: [(f64, f64); 7] =
        [(1.0, 64.9), (18.0, 995.9), (36.0, 1652.4), (72.0, 1853.2), (108.0, 1828.9), (144.0, 1775.0), (216.0, 1702.2)];

    /// Data set `raytracer` of R's package `usl` (Gunther 2007): no crosstalk, the curve
    /// never turns. `agrees_with_brute_force` holds the figures below.
    const RAYTRACER: [(f64, f64); 11] = [
        (1.0, 20.0),
        (4.0, 78.0),
        (8.0, 130.0),
        (12.0, 170.0),
        (16.0, 190.0),
        (20.0, 200.0),
        (24.0, 210.0),
        (28.0, 230.0),
        (32.0, 260.0),
        (48.0, 280.0),
        (64.0, 310.0),
    ];

    fn assert_near(got: f64, want: f64, relative: f64) {
        assert!((got - want).abs() <= relative * want.abs(), "got {got}, want {want}");
    }

    fn curve(sigma: f64, kappa: f64, lambda: f64, levels: &[f64]) -> Vec<(f64, f64)> {
        let usl = Usl { sigma, kappa, lambda, r_squared: 1.0, peak: None };
        levels.iter().map(|&n| (n, usl.throughput(n))).collect()
    }

    fn squared_error(points: &[(f64, f64)], sigma: f64, kappa: f64, lambda: f64) -> f64 {
        points.iter().map(|(n, x)| (x - lambda * n / (1.0 + sigma * (n - 1.0) + kappa * n * (n - 1.0))).powi(2)).sum()
    }

    /// An oracle without derivatives: ever narrower grids over (sigma, kappa), each around the best point of the
    /// last, with lambda from its normal equation.
    fn brute_force(points: &[(f64, f64)]) -> (f64, f64, f64, f64) {
        let best_lambda = |sigma: f64, kappa: f64| {
            let shape: Vec<_> = curve(sigma, kappa, 1.0, &points.iter().map(|p| p.0).collect::<Vec<_>>());
            let fx: f64 = shape.iter().zip(points).map(|(f, p)| f.1 * p.1).sum();
            fx / shape.iter().map(|f| f.1 * f.1).sum::<f64>()
        };
        let mut best = (f64::NAN, f64::NAN, f64::NAN, f64::INFINITY);
        let mut consider = |sigma: f64, kappa: f64| {
            let lambda = best_lambda(sigma, kappa);
            let sse = squared_error(points, sigma, kappa, lambda);
            if sse < best.3 {
                best = (sigma, kappa, lambda, sse);
            }
            best
        };
        for i in 0..=100 {
            for j in 0..=100 {
                consider(f64::from(i) / 100.0, 10_f64.powf(-8.0 + 0.08 * f64::from(j)));
            }
        }
        let mut half = (0.02, consider(0.5, 0.5).1 * 0.3);
        for _ in 0..200 {
            let centre = consider(0.5, 0.5);
            for i in -12..=12 {
                for j in -12..=12 {
                    let at =
                        |middle: f64, reach: f64, step: i32| (middle + reach * f64::from(step) / 12.0).clamp(0.0, 1.0);
                    consider(at(centre.0, half.0, i), at(centre.1, half.1, j));
                }
            }
            half = (half.0 * 0.9, half.1 * 0.9);
        }
        consider(0.5, 0.5)
    }

    /// Figures published with R's `usl` 3.0: of `specsdm91` in its README (coefficients, residual standard error, peak) and in
    /// its regression tests (`limit.scalability`, which is lambda / sigma); of the data of its test of `coef` to three digits.
    /// It writes alpha, beta, gamma for our sigma, kappa, lambda.
    #[test]
    fn published_fits_are_met() {
        let usl = fit(&SPECSDM91).unwrap();
        for (got, want, within) in [
            (usl.sigma, 0.027_728_5, 2e-6),
            (usl.kappa, 1.044e-4, 5e-4),
            (usl.lambda, 89.995_23, 1e-6),
            (usl.peak.unwrap(), 96.52, 1e-4),
            (usl.throughput(96.52), 1_884.0, 3e-4),
            (usl.lambda / usl.sigma, 3_245.589, 1e-6),
            ((squared_error(&SPECSDM91, usl.sigma, usl.kappa, usl.lambda) / 4.0).sqrt(), 82.8, 1e-3),
        ] {
            assert_near(got, want, within);
        }
        assert!(usl.r_squared > 0.98 && usl.r_squared < 1.0, "{usl:?}");
        // Points in another order, and each of them twice.
        let twice: Vec<_> = SPECSDM91.iter().rev().chain(&SPECSDM91).copied().collect();
        assert_near(fit(&twice).unwrap().sigma, usl.sigma, 1e-6);

        let coef = [(1.0, 1.0), (2.0, 1.8868), (4.0, 3.0769), (6.0, 3.5294), (8.0, 3.5398), (10.0, 3.3557)];
        let usl = fit(&coef).unwrap();
        for (got, want, within) in [(usl.sigma, 0.02, 5e-3), (usl.kappa, 0.02, 5e-3), (usl.lambda, 1.0, 1e-3)] {
            assert_near(got, want, within);
        }

        let usl = fit(&RAYTRACER).unwrap();
        assert_eq!((usl.kappa, usl.peak), (0.0, None));
        assert_near(usl.sigma, 0.057_77, 1e-3);
        assert_near(usl.lambda, 21.85, 1e-3);
    }

    #[test]
    fn agrees_with_brute_force() {
        let bent = [(1.0, 9.0), (2.0, 17.5), (5.0, 31.0), (10.0, 44.0), (20.0, 41.0), (40.0, 33.0)];
        for data in [&SPECSDM91[..], &RAYTRACER[..], &bent[..]] {
            let usl = fit(data).unwrap();
            let (sigma, kappa, lambda, sse) = brute_force(data);
            let ours = squared_error(data, usl.sigma, usl.kappa, usl.lambda);
            assert!(ours <= sse * (1.0 + 1e-9), "ours {ours}, brute force {sse}: {usl:?}");
            assert!((usl.sigma - sigma).abs() < 1e-4, "{} {sigma}", usl.sigma);
            assert!((usl.kappa - kappa).abs() < 1e-6, "{} {kappa}", usl.kappa);
            assert_near(usl.lambda, lambda, 1e-3);
        }
    }

    #[test]
    fn recovers_noise_free_curves() {
        let sets: [&[f64]; 3] = [
            &[1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0],
            &[1.0, 4.0, 16.0],
            &[2.0, 8.0, 32.0, 128.0, 512.0],
        ];
        let mut tried = 0;
        for levels in sets {
            for sigma in [0.0, 0.001, 0.02, 0.1, 0.3, 0.7, 0.9] {
                for kappa in [0.0, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05] {
                    for lambda in [0.003, 1.0, 250.0] {
                        let points = curve(sigma, kappa, lambda, levels);
                        let rises = points[1..].iter().any(|p| p.1 > points[0].1);
                        if !rises {
                            assert!(matches!(fit(&points), Err(UslError::Falling { .. })));
                            continue;
                        }
                        let usl = fit(&points).unwrap();
                        assert!((usl.sigma - sigma).abs() < 1e-7, "{usl:?} for {sigma} {kappa} {levels:?}");
                        assert!((usl.kappa - kappa).abs() < 1e-8, "{usl:?} for {sigma} {kappa} {levels:?}");
                        assert_near(usl.lambda, lambda, 1e-7);
                        assert!(usl.r_squared > 1.0 - 1e-9);
                        assert_eq!(usl.peak.is_some(), kappa > 0.0, "{usl:?} for {sigma} {kappa} {levels:?}");
                        tried += 1;
                    }
                }
            }
        }
        assert!(tried > 300, "{tried}");
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        let twice_two = [(1.0, 5.0), (1.0, 6.0), (2.0, 9.0), (2.0, 9.5)];
        assert_eq!(fit(&twice_two), Err(UslError::TooFewLevels { distinct: 2 }));
        let text = fit(&[]).unwrap_err().to_string();
        assert!(text.contains("at least 3 distinct concurrency levels, and there are 0"), "{text}");
        for (n, x) in [(0.0, 1.0), (-1.0, 1.0), (2.0, 0.0), (2.0, -3.0), (f64::NAN, 1.0), (2.0, f64::INFINITY)] {
            let usable = [(1.0, 1.0), (3.0, 2.0), (4.0, 2.5)];
            assert_eq!(fit(&[&usable[..], &[(n, x)]].concat()), fit(&usable));
        }
        let falling: [&[(f64, f64)]; 3] = [
            &[(5.0, 90.0), (10.0, 70.0), (20.0, 40.0), (40.0, 15.0)],
            // Flat: nothing is gained either.
            &[(5.0, 90.0), (10.0, 90.0), (20.0, 90.0)],
            // A little noise above the lowest level; the curve falls all the same.
            &[(5.0, 90.0), (6.0, 90.1), (10.0, 80.0), (20.0, 30.0), (40.0, 10.0)],
        ];
        for points in falling {
            let error = fit(points).unwrap_err();
            assert_eq!(error, UslError::Falling { lowest: 5.0 });
            assert!(error.to_string().contains("falls"), "{error}");
        }
    }
}

/// Latencies, unbinned.
fn distribution_of(times: impl IntoIterator<Item = f64>) -> Distribution {
    let outcomes: Vec<_> = times.into_iter().map(|time| outcome(10.0, 10.0 + time)).collect();
    figures_of(&outcomes).latency_s.unwrap()
}

/// `[float(np.quantile([0.3, 0.1, 0.7, 0.2, 1.5, 0.9, 0.4], p)) for p in (.5, .9, .95, .99, 1)]`, numpy 2.
#[test]
fn quantiles_are_those_of_numpy() {
    let distribution = distribution_of([0.3, 0.1, 0.7, 0.2, 1.5, 0.9, 0.4]);
    assert_near(distribution.p50, 0.4);
    assert_near(distribution.p90, 1.14);
    assert_near(distribution.p95, 1.319_999_999_999_999_6);
    assert_near(distribution.p99, 1.464);
    assert_eq!(distribution.max, Some(1.5));
    // np.mean of the same
    assert_near(distribution.mean, 4.1 / 7.0);

    // np.quantile(np.arange(1, 101) / 100, p): with n = 100 P99 lies between the two largest.
    let hundred = distribution_of((1..=100).map(|n| f64::from(n) / 100.0));
    assert_near(hundred.p50, 0.505);
    assert_near(hundred.p90, 0.901);
    assert_near(hundred.p95, 0.950_5);
    assert_near(hundred.p99, 0.990_1);
}

#[test]
fn a_quantile_of_one_value_is_that_value_and_of_none_unknown() {
    assert_eq!(quantile(1, 0.95, |_| 7.0), Some(7.0));
    assert_eq!(quantile(0, 0.95, |_| 7.0), None);
    assert_eq!(Distribution::of_binned(&[]), None);
    assert_eq!(Distribution::of_binned(&[(0.1, 0)]), None);
    // Ends, and what lies beyond them: np.quantile([1, 2, 3], [0, 1])
    let values = [1.0, 2.0, 3.0];
    for (p, want) in [(-1.0, 1.0), (0.0, 1.0), (1.0, 3.0), (2.0, 3.0)] {
        assert_eq!(quantile(3, p, |rank| values[rank as usize]), Some(want));
    }
}

/// `np.quantile([1]*4 + [2]*3 + [5]*2 + [50], p)`, and the same without bins.
#[test]
fn binned_is_the_same_as_unbinned() {
    let bins = [(1.0, 4), (2.0, 3), (5.0, 2), (50.0, 1)];
    let binned = Distribution::of_binned(&bins).unwrap();
    assert_near(binned.p50, 2.0);
    assert_near(binned.p90, 9.5);
    assert_near(binned.p95, 29.75);
    assert_near(binned.p99, 45.95);
    let values = bins.iter().flat_map(|&(value, count)| std::iter::repeat_n(value, count as usize));
    assert_eq!(distribution_of(values), binned);
}

/// Table I of Newcombe (1998), "Two-sided confidence intervals for the single proportion", method 3, to the four
/// digits printed there; then 0, 5 and 50 of 100 by `scipy.stats.binomtest(k, n).proportion_ci(method='wilson')`.
#[test]
fn wilson_is_as_published() {
    for (k, n, low, high) in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ] {
        let got = wilson(k, n).unwrap();
        assert!((got[0] - low).abs() < 5.1e-5 && (got[1] - high).abs() < 5.1e-5, "{k}/{n}: {got:?}");
    }
    for (k, n, low, high) in [
        (0, 100, 0.0, 0.036_993_498_206_985_68),
        (5, 100, 0.021_543_679_154_367_973, 0.111_750_469_231_919_14),
        (50, 100, 0.403_831_530_365_995_6, 0.596_168_469_634_004_4),
    ] {
        let got = wilson(k, n).unwrap();
        assert!((got[0] - low).abs() < 1e-12 && (got[1] - high).abs() < 1e-12, "{k}/{n}: {got:?}");
    }
    assert_eq!(wilson(0, 0), None);
}
