//! A run as a page for a browser, as CSV, as JSON Lines and as Markdown.

#![cfg(feature = "suite")]

use llm_concurrency::client::outcome::{Failure, Phase, RequestOutcome};
use llm_concurrency::decide::{Note, Objective, Policy, recommend};
use llm_concurrency::figures::reasons::Reason;
use llm_concurrency::figures::{Distribution, Estimate, LevelSummary, SizeSummary};
use llm_concurrency::record::{About, RunSettings};
use llm_concurrency::report::export::{csv, json_lines, markdown};
use llm_concurrency::report::html::{Missing, Run, page};
use llm_concurrency::report::requests::{BINS, Curves, FEWEST, Loop, Part, REASONS, shares};
use llm_concurrency::report::sections::sections;
use llm_concurrency::report::{text, words};
use serde_json::{Value, json};

fn level(concurrency: usize, rps: f64) -> LevelSummary {
    LevelSummary {
        concurrency,
        throughput_rps: Some(Estimate { estimate: rps, lower: None, upper: None }),
        ..LevelSummary::default()
    }
}

fn run(levels: &[LevelSummary]) -> Run {
    let policy = Policy::default();
    Run {
        label: String::new(),
        recommendation: recommend(levels, &policy),
        policy,
        run_id: None,
        about: About::default(),
        present: None,
        curves: None,
        verified: None,
        missing: Vec::new(),
    }
}

fn settings(recorded: Value) -> RunSettings {
    serde_json::from_value(recorded).expect("they read")
}

#[test]
fn the_chosen_level_is_shown_by_size_and_others_are_not() {
    let part = |size: &str, requests| SizeSummary { size: size.to_owned(), requests, ..SizeSummary::default() };
    let sized = |level, requests| LevelSummary {
        requests: Some(1000),
        error_rate: Some(0.0),
        by_size: vec![part("<small>", requests), part("large", 300)],
        ..level
    };
    let run = run(&[sized(level(1, 10.0), 700), sized(level(4, 10.1), 600)]);
    assert_eq!(run.recommendation.recommended_concurrency, Some(1));
    let html = page(&[run]).expect("a page");
    assert!(html.contains("&lt;small&gt;</th><td>–</td><td>–</td><td>–</td><td>–</td><td>700</td>"), "{html}");
    assert!(!html.contains("<td>600</td>"));
}

#[test]
fn a_p99_of_few_requests_is_not_shown() {
    let measured = |level: usize, requests| LevelSummary {
        latency_s: Some(Distribution { p95: Some(1.5), p99: Some(1.625), ..Distribution::default() }),
        requests: Some(requests),
        error_rate: Some(0.0),
        ..self::level(level, 10.0 * level as f64)
    };
    let shown = |requests| page(&[run(&[measured(1, 200), measured(2, requests)])]).expect("it renders");
    // Once in the tile, once in the table; the levels' line in the chart reads it out.
    assert_eq!(shown(399).matches("1.62 s").count(), 0);
    assert_eq!(shown(400).matches("1.62 s").count(), 3);
}

/// Visits to narrow parts of the time have one name, and each moment says its level.
#[test]
fn the_course_of_the_run_names_levels_and_visits() {
    let visit = |at: usize| {
        let [from, to] = [10.0, 10.1].map(|from| from + 0.1 * at as f64);
        part([5, 8][at % 2], [from, to], [outcome(from, to)])
    };
    let loops = [measurement(3, [outcome(0.0, 30.0)]), (0..10).map(visit).collect()];
    let run = Run { curves: Curves::of(&loops), ..run(&[level(3, 5.0), level(8, 9.0)]) };
    let charts = &sections(&[run])["timeline"][0].charts;
    let names: Vec<&str> =
        charts[0].zones.iter().map(|zone| zone.name.as_str()).filter(|name| !name.is_empty()).collect();
    assert_eq!(names, ["3", "5", "visits"]);
    let read = charts[0].series.iter().find(|series| series.name == "level").expect("it is read out");
    let mut levels: Vec<f64> = read.values.iter().filter_map(|value| *value).collect();
    levels.dedup();
    assert_eq!(levels, [3.0, 5.0, 8.0, 5.0, 8.0, 5.0, 8.0, 5.0, 8.0, 5.0, 8.0]);
}

/// Nothing but concurrency and throughput.
#[test]
fn a_bare_run_renders_and_says_what_is_missing() {
    let shown = page(&[run(&[level(1, 5.0), level(10, 40.0), level(20, 41.0)])]).expect("it renders");
    for part in [
        "First look: about 10 in parallel, not confirmed",
        "interval unknown",
        "Provisional",
        "The error rate of every level",
        "Latency of every level",
        "The records of the individual requests",
        "What was measured: the endpoint, the model",
        "No times to first token",
    ] {
        assert!(shown.contains(part), "{part}");
    }
    assert!(!shown.contains("NaN") && !shown.contains("undefined<"), "a figure that is none");
    assert_eq!(shown.matches("<figure").count(), 1);
    let counted = LevelSummary { requests: Some(100), error_rate: Some(0.0), ..level(2, 9.0) };
    let lines = words::missing(&run(&[level(1, 5.0), counted, level(3, 12.0)]));
    assert!(lines.contains(&"The number of requests of levels 1, 3".to_owned()), "{lines:?}");
    for levels in [vec![], vec![level(1, 0.0)], vec![LevelSummary { concurrency: 4, ..LevelSummary::default() }]] {
        let page = page(&[run(&levels)]).expect("it renders");
        assert!(page.contains("No number to recommend"), "{levels:?}");
    }
}

#[test]
fn text_from_elsewhere_stays_text_and_nothing_is_loaded() {
    let evil = "</script><script>alert(1)</script><!--\u{2028}";
    let mut hostile = run(&[level(1, 5.0), level(2, 9.0)]);
    hostile.recommendation.notes.push(Note::Other { text: evil.to_owned() });
    hostile.about.model = Some(evil.to_owned());
    hostile.about.settings = settings(json!({"levels": [1, 2], "request": {"extra_body": {evil: evil}}}));
    hostile.about.endpoint = Some(evil.to_owned());
    hostile.missing = vec![Missing::Requests { level: 1, error: evil.to_owned() }];
    let mut other = hostile.clone();
    (hostile.label, other.label) = (evil.to_owned(), "B".to_owned());
    let page = page(&[hostile, other]).expect("it renders");
    assert_eq!(page.matches("<script").count(), 1);
    assert_eq!(page.matches("</script").count(), 1);
    assert!(!page.contains("<!--"));
    let scripts = page.find("<script").expect("it has scripts");
    assert!(!page[scripts..].contains('\u{2028}'), "it ends a line of JavaScript");
    assert!(page.contains("&lt;script&gt;"));
    for loads in [" src=", "url(", "@import", "href=\"http", "fetch(", "XMLHttpRequest", "import("] {
        assert!(!page.contains(loads), "{loads}");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn the_setup_is_shown_and_the_command_repeats_the_run_quoted_for_a_shell() {
    let shown = |recorded: Value| {
        let mut run = run(&[level(1, 5.0)]);
        run.about = About {
            endpoint: Some("http://host/v1".to_owned()),
            model: Some("it's a model".to_owned()),
            started_at: Some("2026-11-24T08:09:45Z".to_owned()),
            settings: settings(recorded),
            environment: serde_json::from_value(json!({"os": "linux", "cpus": 4})).expect("it reads"),
            ..About::default()
        };
        page(&[run]).expect("it renders").replace("&#x2f;", "/").replace("&#x27;", "'")
    };
    let full =
        shown(json!({"levels": [1, 2], "total_requests": 100, "seed": 0, "quick": false, "request_timeout_s": 30,
        "request": {"stream": true, "max_tokens": 64}}));
    for part in [
        "llm-concurrency run --llm-endpoint http://host/v1 --llm-model 'it'\\''s a model' --levels 1,2 \
         --total-requests 100 --seed 0</code>",
        "<dt>Started</dt><dd>2026-11-24 08:09:45 UTC</dd>",
        "<dt>Levels</dt><dd>1, 2</dd>",
        "<dt>Timeout</dt><dd>30.00 s</dd>",
        "<dt>Request</dt><dd>kind chat, stream true, max_tokens 64, cache fresh</dd>",
        "<dt>Measured from</dt><dd>linux, 4 processors</dd>",
    ] {
        assert!(full.contains(part), "{part} is not in {}", &full[full.find("id=\"about\"").expect("it is")..]);
    }
    let quick = shown(json!({"levels": [1, 5], "quick": true}));
    assert!(quick.contains("a model' --levels 1,5 --quick</code>"));
    assert!(!shown(json!({})).contains("llm-concurrency run "));
}

#[test]
fn a_change_is_shown_where_its_interval_leaves_out_none() {
    let with = |rps: f64| LevelSummary {
        throughput_rps: Some(Estimate { estimate: rps, lower: Some(0.97 * rps), upper: Some(1.03 * rps) }),
        ..level(5, rps)
    };
    let changes = |two: &[Run; 2]| {
        let page = page(two).expect("it renders");
        // From the verdict, above both answers.
        let (begin, changes) =
            (page.find("<h1>").expect("a verdict"), page.find("<section id=\"changes\"").expect("a table"));
        let end = page[changes..].find("</section>").expect("its end");
        page[begin..changes + end].replace("&#x2f;", "/")
    };
    let row = |a: LevelSummary, b: LevelSummary| -> Vec<String> {
        let changes = changes(&[run(&[a]), run(&[b])]);
        let row = changes.split("<tr><th scope=\"row\">").nth(1).expect("a level").split("</tr>").next();
        let cells = row.expect("its end").split("<td").skip(1).filter_map(|cell| cell.split_once('>'));
        cells.map(|(_, cell)| cell.replace("</td>", "")).collect()
    };
    let faster = row(with(10.0), with(15.0));
    assert_eq!((faster[4].as_str(), faster[..3].join(" ")), ("faster", "10.00 15.00 +50.0 %".to_owned()));
    // Known to 3 %, but equal servers differ by more from one measurement to the next.
    assert_eq!(row(with(10.0), with(12.0))[4], "no change shown");
    let same = row(with(10.0), with(9.999_999));
    assert_eq!((same[4].as_str(), same[2].as_str()), ("no change shown", "+0.0 %"));
    assert_eq!(row(with(10.0), level(6, 20.0))[1..4], [words::UNKNOWN; 3]);
    // What the client could not do says nothing of the server.
    let mut two = [run(&[with(10.0), level(6, 9.0)]), run(&[with(5.0), level(6, 9.0)])];
    assert!(changes(&two).contains(">slower<"));
    two[1].recommendation.client_bound_at = Some(5);
    let bound = changes(&two);
    assert!(
        bound.contains("Nothing can be said about the server") && bound.contains(">the client was the limit<"),
        "{bound}"
    );
    // By what both policies maximise: as many requests, of twice the tokens.
    let mut two = [100.0, 200.0].map(|output_tps| {
        let mut run = run(&[LevelSummary { output_tps: Some(output_tps), ..with(10.0) }]);
        run.policy.objective = Objective::OutputTokens;
        run
    });
    let tokens = changes(&two);
    assert!(tokens.contains(">output tokens/s<") && tokens.contains(">faster<"), "{tokens}");
    assert!(tokens.contains("<td>100.00</td><td>200.00</td><td>+100.0 %</td>"), "{tokens}");
    two[1].policy.objective = Objective::Requests;
    let requests = changes(&two);
    assert!(requests.contains(">requests/s<") && requests.contains(">no change shown<"), "{requests}");
    assert!(requests.contains("<td>10.00</td><td>10.00</td><td>+0.0 %</td>"), "{requests}");
}

fn exported() -> Run {
    let about = About { model: Some("a \"b\",\nc".to_owned()), ..About::default() };
    Run { about, ..run(&[level(1, 5.5), level(8, 40.0)]) }
}

#[test]
fn csv_has_a_field_for_each_column_and_unknown_is_empty() {
    let model = "\"a \"\"b\"\",\nc\"";
    let text = csv(&[exported()]).replace(model, "MODEL");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [lines[0].len(); 3], "{text}");
    assert_eq!(lines[2][..6], ["", "MODEL", "8", "pass", "", "true"]);
    let at = lines[0].iter().position(|name| *name == "throughput_rps").expect("a column");
    assert_eq!(lines[1][at..at + 2], ["5.5", ""]);
}

#[test]
fn json_lines_are_one_object_a_level() {
    let text = json_lines(&[exported(), exported()]);
    let values: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(values.len(), 4);
    assert_eq!((&values[3]["concurrency"], &values[3]["recommended"]), (&json!(8), &json!(true)));
    assert_eq!((&values[0]["throughput_rps"]["estimate"], &values[0]["error_rate"]), (&json!(5.5), &Value::Null));
}

#[test]
fn markdown_has_a_row_a_level_and_no_markup_of_others() {
    let card = markdown(&[Run { present: Some(1), ..exported() }]);
    assert!(card.starts_with("### First look: about 8 in parallel, not confirmed.\n\n"), "{card}");
    assert!(card.contains("a \"b\",  c") || card.contains("a \"b\", c"), "{card}");
    let rows: Vec<&str> = card.lines().filter(|line| line.starts_with('|')).collect();
    let bars = |row: &str| row.matches('|').count();
    assert!(rows.len() == 4 && rows.iter().all(|row| bars(row) == text::COLUMNS.len() + 2), "{card}");
    assert!(rows[3].contains("| **recommended** pass |"), "{card}");
    let model = Some("<b>|@x".to_owned());
    let hostile = markdown(&[Run { about: About { model, ..About::default() }, ..exported() }]);
    assert!(hostile.contains("\n\\<b\\>\\|\\@x\n"), "{hostile}");
}

fn outcome(start_s: f64, end_s: f64) -> RequestOutcome {
    let (phase, latency_s) = (Phase::Measured, Some(end_s - start_s));
    RequestOutcome { phase, start_s, end_s: Some(end_s), latency_s, status: Some(200), ..RequestOutcome::default() }
}

fn part(level: usize, window_s: [f64; 2], outcomes: impl IntoIterator<Item = RequestOutcome>) -> Part {
    let outcomes: Vec<_> = outcomes.into_iter().collect();
    Part { level, window_s: Some(window_s), requests: outcomes.iter().collect() }
}

fn measurement(level: usize, outcomes: impl IntoIterator<Item = RequestOutcome>) -> Loop {
    vec![part(level, [1.0, 2.0], outcomes)]
}

fn failed(start: f64, end: f64, kind: Failure, text: &str) -> RequestOutcome {
    RequestOutcome { failure: Some(kind), error: Some(text.to_owned()), ..outcome(start, end) }
}

fn median() -> usize {
    shares().iter().position(|&share| share == 0.5).expect("it is among them")
}

#[test]
fn a_distribution_keeps_its_ends_and_its_percentiles() {
    let latencies = (0..=1000_u16).rev().map(|latency| outcome(0.0, f64::from(latency)));
    let curves = Curves::of(&[measurement(1, latencies)]).expect("requests");
    let curve = &curves.distributions[&1];
    assert_eq!(curve.len(), shares().len());
    for (share, value) in shares().into_iter().zip(curve) {
        assert!((value - 1000.0 * share).abs() < 1e-9, "{share}: {value}");
    }
    let failed = Curves::of(&[measurement(1, [failed(0.0, 1.0, Failure::Timeout, "late")])]).expect("requests");
    assert!(failed.distributions.is_empty());
    assert!(shares().windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(Curves::of(&[measurement(1, [])]), None);
}

#[test]
fn a_distribution_is_that_of_the_successes_of_the_cohort_of_all_measurements() {
    let warmup = RequestOutcome { phase: Phase::Warmup, ..outcome(0.0, 9.0) };
    let first = measurement(2, [warmup, outcome(0.0, 1.0), failed(0.0, 7.0, Failure::Timeout, "late")]);
    let second = measurement(2, [outcome(0.0, 3.0)]);
    let curves = Curves::of(&[first, second]).expect("requests");
    let curve = &curves.distributions[&2];
    assert_eq!((curve[0], curve[median()], curve[curve.len() - 1]), (1.0, 2.0, 3.0));
    assert_eq!(curves.segments.len(), 2);
}

#[test]
fn the_timeline_adds_up() {
    let cut = RequestOutcome { end_s: None, latency_s: None, ..outcome(3.0, 4.0) };
    let outcomes = [outcome(0.0, 2.0), outcome(1.0, 3.5), failed(2.0, 4.0, Failure::ServerError, "no"), cut];
    let line = Curves::of(&[measurement(2, outcomes)]).expect("requests");
    assert_eq!(line.segments[0].end_s, 4.0);
    let sum = |bins: &[[f64; 2]]| bins.windows(2).map(|pair| (pair[1][0] - pair[0][0]) * pair[0][1]).sum::<f64>();
    // 2 + 2.5 + 2 seconds of life, and 1 of the one that was cut off.
    for (bins, expected) in [(&line.in_flight, 7.5), (&line.successes_rps, 2.0), (&line.failures_rps, 1.0)] {
        assert!((sum(bins) - expected).abs() < 1e-9, "{expected}: {bins:?}");
    }
    assert!(line.in_flight.iter().all(|[_, n]| *n <= 3.0 + 1e-9));
}

#[test]
fn measurements_follow_each_other_and_their_bins_are_bounded() {
    let measurements: Vec<_> =
        (1..=200).map(|level| measurement(level, [outcome(0.0, 1.0), outcome(0.5, level as f64)])).collect();
    let Curves { segments, in_flight, successes_rps, .. } = Curves::of(&measurements).expect("requests");
    assert_eq!(segments.len(), 200);
    assert!(segments.windows(2).all(|pair| pair[0].end_s == pair[1].begin_s));
    assert_eq!(segments[3].window_s, Some([segments[3].begin_s + 1.0, segments[3].begin_s + 2.0]));
    assert!(in_flight.len() as f64 <= BINS + 200.0 * FEWEST, "{}", in_flight.len());
    // Two requests are too few for a rate that changes.
    assert_eq!(successes_rps.len() as f64, 200.0 * FEWEST + 1.0);
}

/// Two visits of one loop, and a request that spans both: one clock, and each life where it was.
#[test]
fn visits_lie_where_they_were_in_their_loop() {
    let first = part(2, [1.0, 4.0], [outcome(1.0, 3.0), outcome(3.0, 6.0)]);
    let visits = vec![first, part(8, [5.0, 9.0], [outcome(5.0, 8.0), outcome(8.0, 10.0)])];
    let before = measurement(1, [outcome(0.0, 2.0)]);
    let curves = Curves::of(&[before, visits]).expect("requests");
    let Curves { segments, in_flight, .. } = curves;
    let places: Vec<_> = segments.iter().map(|of| (of.level, of.begin_s, of.end_s, of.window_s)).collect();
    let windows = [[1.0, 2.0], [3.0, 6.0], [7.0, 11.0]].map(Some);
    assert_eq!(places, [(1, 0.0, 2.0, windows[0]), (2, 2.0, 6.0, windows[1]), (8, 6.0, 12.0, windows[2])]);
    let at = |time: f64| in_flight.iter().rfind(|bin| bin[0] <= time).expect("a bin")[1];
    assert!((at(7.5) - 2.0).abs() < 1e-9 && (at(11.0) - 1.0).abs() < 1e-9, "{in_flight:?}");
    assert_eq!(curves.distributions[&8][median()], 2.5);
}

#[test]
fn the_most_frequent_reasons_are_kept_with_their_levels() {
    let many = ('a'..'u').map(|c| failed(0.0, 1.0, Failure::Connect, &format!("reason {c}")));
    // What differs in its counts alone is one reason; another status is not.
    let often =
        (0..3).map(|i| failed(0.0, 1.0, Failure::ServerError, &format!("HTTP 503: {i} wait; try again in 1{i} s")));
    let curves = Curves::of(&[
        measurement(10, many.chain(often)),
        measurement(
            5,
            [503, 500].map(|status| {
                failed(0.0, 1.0, Failure::ServerError, &format!("HTTP {status}: 25 wait; try again in 99 s"))
            }),
        ),
    ])
    .expect("requests");
    let first = &curves.reasons[0];
    let Reason { kind, text, count } = &first.reason;
    assert_eq!((*kind, text.as_str(), *count), (Failure::ServerError, "HTTP 503: 0 wait; try again in 10 s", 4));
    assert_eq!(first.levels, [5, 10].into());
    assert_eq!((curves.reasons.len(), curves.reasons_left_out), (REASONS, 22 - REASONS));
}

#[test]
fn lines_that_the_reader_has_yet_to_choose_are_hidden_with_their_names() {
    let loops: Vec<_> = (1..=8).map(|level| measurement(level, [outcome(0.0, 1.0), outcome(0.0, 2.0)])).collect();
    let run = Run { curves: Curves::of(&loops), ..run(&[level(1, 5.0), level(8, 9.0)]) };
    let page = page(&[run]).expect("it renders");
    let hidden = page.matches("<li class=\"hidden\" data-series=").count();
    assert!(hidden > 0, "all are shown");
    assert_eq!(
        page.matches("<g class=\"hidden\" data-series=").count(),
        2 * hidden,
        "the line, and its name at the end"
    );
}

#[test]
fn what_holds_of_several_levels_is_said_once() {
    let below = |level| Note::BelowConcurrency { level, in_flight: 1.9, held: None };
    let mut run = run(&[level(1, 5.0), level(2, 9.0)]);
    let notes = |run: &Run| words::notes(&run.recommendation).1;
    run.recommendation.notes = vec![below(5), Note::NoCurve { why: "flat".to_owned() }];
    assert!(
        notes(&run)[0].starts_with("Level 5 did not reach its concurrency: 1.9 requests in flight"),
        "{:?}",
        notes(&run)
    );
    run.recommendation.notes.push(below(10));
    let shown = notes(&run);
    assert!(
        shown[0].starts_with("Levels 5, 10 did not reach") && shown[1].ends_with("flat") && shown.len() == 2,
        "{shown:?}"
    );
}
