//! The HTML report in a browser: Debian's chromium, headless and without a network. Run by `.ci/run`.

#![cfg(feature = "suite")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::slice;

use llm_concurrency::client::outcome::{Failure, Phase, RequestOutcome};
use llm_concurrency::decide::{JudgedLevel, Policy, recommend};
use llm_concurrency::figures::{self, LevelSummary, Limits, Requests, Sample};
use llm_concurrency::record::About;
use llm_concurrency::report::chart::{Chart, Style};
use llm_concurrency::report::html::{Run, page};
use llm_concurrency::report::requests::{Curves, Part};
use llm_concurrency::report::sections::sections;
use regex::Regex;
use serde_json::json;

const EVIL: &str = "</script><script>document.documentElement.dataset.owned = 1</script><img src=x onerror=\"document.documentElement.dataset.owned = 2\">";

/// A level as a server with 20 slots would answer: `n` requests, of which every `failing`th fails.
fn outcomes(level: usize, n: usize, failing: usize) -> impl Iterator<Item = RequestOutcome> {
    let stretch = (level as f64 / 20.0).max(1.0);
    (0..n + 2 * level).map(move |seq| {
        let round = (seq / level) as f64 * 0.2 * stretch;
        let latency = (0.15 + 0.1 * ((seq * 7919) % 100) as f64 / 100.0) * stretch;
        let failed = seq % failing == failing - 1;
        RequestOutcome {
            visit: None,
            seq: seq as u64,
            phase: if seq < level { Phase::Warmup } else { Phase::Measured },
            sample: None,
            due_s: None,
            start_s: round,
            end_s: Some(round + latency),
            latency_s: Some(latency),
            ttft_s: Some(latency / 10.0),
            chunks: 10,
            output_tokens: Some(50),
            input_tokens: Some(100),
            cached_tokens: None,
            reasoning_tokens: None,
            status: Some(if failed { 503 } else { 200 }),
            failure: failed.then_some(Failure::ServerError),
            error: failed.then(|| format!("HTTP 503: {EVIL}")),
            resent: 0,
            cut: false,
            held_s: None,
            prompt_size: None,
        }
    })
}

/// A run with its requests. From `fails_from` on every eighth request fails.
fn run(levels: &[usize], n: usize, fails_from: usize) -> Run {
    let mut summaries: Vec<LevelSummary> = Vec::new();
    let mut measurements = Vec::new();
    for &level in levels {
        let failing = if level >= fails_from { 8 } else { usize::MAX };
        let length = (n / level) as f64 * 0.2 * (level as f64 / 20.0).max(1.0);
        let window_s = [0.2, 0.2 + length];
        let sample = Sample { duration_s: length / 10.0, completed: n as u64 / 10, succeeded: n as u64 / 10 };
        let measured = figures::Measurement {
            concurrency: level,
            window_s: Some(window_s),
            samples: vec![sample; 10],
            ..figures::Measurement::default()
        };
        let requests: Requests = outcomes(level, n, failing).collect::<Vec<_>>().iter().collect();
        let limits = Limits { request_timeout_s: 30.0, max_error_rate: 0.05, ..Limits::default() };
        summaries.push(figures::summarize(&[(&measured, &requests)], limits));
        measurements.push(vec![Part { level, window_s: Some(window_s), requests }]);
    }
    let policy = Policy::default();
    Run {
        verified: None,
        label: String::new(),
        recommendation: recommend(&summaries, &policy),
        policy,
        run_id: None,
        about: About {
            model: Some(EVIL.to_owned()),
            endpoint: Some("http://llm.example/v1".to_owned()),
            settings: serde_json::from_value(json!({"levels": levels, "total_requests": n, "seed": 42}))
                .expect("they read"),
            ..About::default()
        },
        present: Some(10),
        curves: Curves::of(&measurements),
        missing: Vec::new(),
    }
}

fn small() -> Run {
    run(&[1, 5, 10, 20, 30, 40], 400, 40)
}

/// The page after its scripts have run, and what the browser complained about.
fn opened(page: &str, more: &[&str]) -> (String, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("report.html");
    std::fs::write(&file, page).expect("the page is written");
    let output = chromium(&file, folder.path()).args(more).arg("--dump-dom").arg(url(&file)).output();
    let output = output.expect("chromium, Debian's package of that name, is installed");
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(dom.contains("</html>"), "chromium gave no page: {stderr}");
    let console: Vec<&str> = stderr.lines().filter(|line| line.contains("CONSOLE")).collect();
    (dom, console.join("\n"))
}

fn url(file: &Path) -> String {
    format!("file://{}", file.display())
}

/// No name resolves, and whatever is asked for goes to a proxy that is not there.
fn chromium(file: &Path, profile: &Path) -> Command {
    let mut command = Command::new("chromium");
    command.current_dir(file.parent().expect("it lies in a folder"));
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
    command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    command.args(["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"]);
    command.args(["--enable-logging=stderr", "--v=0", "--window-size=1200,1000"]);
    command.arg(format!("--user-data-dir={}", profile.join("profile").display()));
    command
}

/// The page with a script of the test's own at its end.
fn with_script(page: &str, script: &str) -> String {
    page.replace("</body>", &format!("<script>{script}</script></body>"))
}

fn data(dom: &str, name: &str) -> Option<String> {
    let pattern = Regex::new(&format!("<html[^>]* data-{name}=\"([^\"]*)\"")).expect("a valid pattern");
    Some(pattern.captures(dom)?[1].to_owned())
}

/// WCAG 2.2: text 4.5 to 1, lines and bars 3 to 1, in both themes.
#[test]
fn colours_contrast_with_their_background() {
    let page = page(&[small()]).expect("it renders");
    let colours = Regex::new(r"--([A-Za-z-]+): light-dark\(#(\w{6}), #(\w{6})\)").expect("a pattern");
    let part = |hex: &str, at: usize| f64::from(u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")) / 255.0;
    let linear = |c: f64| if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) };
    let luminance = |hex: &str| {
        [(0, 0.2126), (2, 0.7152), (4, 0.0722)].map(|(at, weight)| weight * linear(part(hex, at))).iter().sum::<f64>()
    };
    let all: BTreeMap<_, _> =
        colours.captures_iter(&page).map(|c| (c[1].to_owned(), [2, 3].map(|i| luminance(&c[i])))).collect();
    assert!(all.len() > 20, "{all:?}");
    for (name, themes) in &all {
        let least = match name.as_str() {
            "ink" | "soft" | "accent" | "good" | "careful" | "bad" | "tone-accent" | "tone-ink" | "tone-bad" => 4.5,
            name if name.starts_with("tone-") => 3.0,
            _ => continue,
        };
        for (theme, ground) in themes.iter().zip(&all["card"]) {
            let contrast = (theme.max(*ground) + 0.05) / (theme.min(*ground) + 0.05);
            assert!(contrast >= least, "{name}: {contrast:.2}");
        }
    }
}

/// Counts what can be seen of each chart, from the drawing itself, and what lies outside of its plot.
const COUNT: &str = r##"
    const number = (part, pattern) => (part.getAttribute("d").match(pattern) ?? []).length;
    const outside = [];
    for (const figure of document.querySelectorAll(".chart")) {
        const seen = (within, name) => [...within.querySelectorAll(name)].filter((part) => getComputedStyle(part).display !== "none");
        const sum = (parts, pattern) => parts.reduce((sum, part) => sum + number(part, pattern), 0);
        const frame = figure.querySelector(".frame").getBoundingClientRect();
        let points = sum(seen(figure, ".dot"), /M/g) + sum(seen(figure, ".curve"), /[a-z]/gi) + seen(figure, ".cross").length;
        for (const series of seen(figure, ".frame > svg g[data-series]")) {
            const [dots, bars, steps] = [".point", ".bar", ".thin"].map((name) => seen(series, name));
            points += dots.length ? sum(dots, /M/g)
                : bars.length ? bars.length
                : steps.length ? sum(steps, /[a-z]/gi) / 2
                : series.querySelector(".dot, .curve") ? 0
                : sum(seen(series, ".line"), /[a-z]/gi);
            const box = series.getBoundingClientRect();
            if (!series.childElementCount) continue;
            const fits = box.left > frame.left - 6 && box.right < frame.right + 6 && box.top > frame.top - 6 && box.bottom < frame.bottom + 6;
            if (!fits || box.width < 20) outside.push(`${figure.id} ${series.dataset.series}: ${JSON.stringify(box)} in ${JSON.stringify(frame)}`);
        }
        figure.dataset.points = points;
    }
    document.documentElement.dataset.outside = outside.join("; ");"##;

/// Points that are drawn before the reader chooses any.
fn points(chart: &Chart) -> usize {
    let shown = chart.series.iter().filter(|series| !series.hidden);
    shown.map(|series| series.points.len() + if series.style == Style::Bars { series.band.len() } else { 0 }).sum()
}

#[test]
#[ignore = "needs chromium"]
fn ci_every_chart_is_drawn_with_all_its_points_and_without_a_word_on_the_console() {
    let two =
        [Run { label: "A".to_owned(), ..small() }, Run { label: "B".to_owned(), ..run(&[1, 5, 20, 50], 500, 99) }];
    for runs in [&[small()][..], &two] {
        let (dom, console) = opened(&with_script(&page(runs).expect("it renders"), COUNT), &[]);
        assert_eq!(console, "");
        assert_eq!(data(&dom, "outside").as_deref(), Some(""));
        let charts: Vec<_> = sections(runs).into_values().flatten().flat_map(|figure| figure.charts).collect();
        assert_eq!(data(&dom, "ready"), Some(charts.len().to_string()));
        for chart in charts {
            let pattern = format!("id=\"chart-{}\"[^>]* data-points=\"{}\"", chart.id, points(&chart));
            let drawn: Vec<&str> = dom.lines().filter(|line| line.contains("class=\"chart")).collect();
            assert!(Regex::new(&pattern).expect("valid").is_match(&dom), "{pattern} is not in {drawn:#?}");
        }
    }
}

#[test]
#[ignore = "needs chromium"]
fn ci_hovering_and_arrow_keys_show_the_values() {
    let run = small();
    let level = run.recommendation.levels.iter().find(|level| level.summary.concurrency == 20).expect("level 20");
    let rps = level.summary.throughput_rps.expect("it is known").estimate;
    let [low, high] = sections(slice::from_ref(&run))["throughput"][0].charts[0].x.range;
    let script = r##"
        const root = document.documentElement.dataset;
        const figure = document.getElementById("chart-throughput");
        const over = figure.querySelector(".plot");
        const box = figure.querySelector(".frame").getBoundingClientRect();
        const at = { clientX: box.left + box.width * SHARE, clientY: box.top + box.height / 2 };
        const values = () => [...figure.querySelectorAll(".key b")].map((cell) => cell.textContent).join(" ").trim();
        over.dispatchEvent(new PointerEvent("pointermove", { ...at, pointerType: "mouse" }));
        root.hover = values();
        root.line = figure.querySelector(".cursor").getBoundingClientRect().left - at.clientX;
        over.dispatchEvent(new PointerEvent("pointerleave", { pointerType: "mouse" }));
        root.left = values();
        over.dispatchEvent(new PointerEvent("pointerdown", { ...at, pointerType: "touch" }));
        over.dispatchEvent(new PointerEvent("pointerleave", { pointerType: "touch" }));
        root.touched = values();
        const latency = document.querySelector("#chart-latency .plot");
        // What was touched on the chart above is read here too, so back to the beginning.
        for (const key of ["Home", "ArrowRight", "ArrowRight", "ArrowRight"]) latency.dispatchEvent(new KeyboardEvent("keydown", { key }));
        root.readout = document.querySelector("#chart-latency [aria-live]").textContent;
        const levels = document.getElementById("chart-run0-distribution");
        const drawn = () => [...levels.querySelectorAll(".frame > svg g[data-series]")].filter((part) => part.getBoundingClientRect().width > 0).length;
        const before = drawn();
        levels.querySelector(".chooser input:not(:checked)").click();
        root.chosen = drawn() - before;"##
        .replace("SHARE", &((20.0 - low) / (high - low)).to_string());
    let page = with_script(&page(slice::from_ref(&run)).expect("it renders"), &script);
    let (dom, console) = opened(&page, &[]);
    assert_eq!(console, "");
    let hover = data(&dom, "hover").expect("the script ran");
    let shown: Vec<f64> = hover.split(' ').map(|figure| figure.parse().expect("a figure")).collect();
    assert_eq!(shown[0], 20.0);
    assert!((shown[1] - rps).abs() < 0.06, "{hover} is not {rps}");
    let line: f64 = data(&dom, "line").expect("the script ran").parse().expect("pixels");
    assert!(line.abs() < 1.5, "the line stands {line} pixels beside the level");
    assert_eq!((data(&dom, "left").as_deref(), data(&dom, "touched")), (Some(""), Some(hover)));
    assert_eq!(data(&dom, "chosen").as_deref(), Some("1"));
    let readout = data(&dom, "readout").expect("the script ran");
    assert!(readout.starts_with("level 20: P50 ") && readout.contains(" ms, P99 "), "{readout}");
}

#[test]
#[ignore = "needs chromium"]
fn ci_a_script_in_a_model_name_or_an_error_stays_text() {
    let run = small();
    assert!(!run.curves.as_ref().expect("requests").reasons.is_empty());
    let (dom, console) = opened(&page(&[run]).expect("it renders"), &[]);
    assert_eq!((console.as_str(), data(&dom, "owned")), ("", None));
    let shown = dom.matches("&lt;/script&gt;&lt;script&gt;document").count();
    assert!(shown >= 3, "in the title, the heading and the reasons, but there are {shown}");
}

#[test]
#[ignore = "needs chromium"]
fn ci_without_the_pages_script_there_are_still_pictures() {
    let page = page(&[small()]).expect("it renders");
    let own = page.rfind("<script>").expect("it has a script");
    let script = r##"
        const seen = (name) => [...document.querySelectorAll(name)].filter((e) => e.getBoundingClientRect().height > 100);
        document.documentElement.dataset.seen = seen(".frame").length;
        const idle = [...document.querySelectorAll("button, .chooser, .key .x, [tabindex]:not(.scroll)")];
        document.documentElement.dataset.idle = idle.filter((e) => e.checkVisibility()).length;"##;
    let (dom, console) = opened(&with_script(&format!("{}</body></html>", &page[..own]), script), &[]);
    assert_eq!((console.as_str(), data(&dom, "ready")), ("", None));
    assert_eq!(data(&dom, "seen"), Some(page.matches("class=\"chart").count().to_string()));
    assert_eq!(data(&dom, "idle").as_deref(), Some("0"), "what does nothing without the script is not shown");
}

/// On a phone and on a screen.
#[test]
#[ignore = "needs chromium"]
fn ci_labels_stand_apart_and_nothing_is_wider_than_the_page() {
    let script = r##"
        const root = parent.document.documentElement;
        const overlaps = [];
        for (const figure of document.querySelectorAll(".chart")) {
            const texts = [...figure.querySelectorAll(".frame text")].filter((text) => text.getBoundingClientRect().width > 0);
            const boxes = texts.map((text) => [text.textContent, text.getBoundingClientRect()]);
            for (const [i, [a, one]] of boxes.entries()) for (const [b, other] of boxes.slice(i + 1))
                if (one.left < other.right && other.left < one.right && one.top + 3 < other.bottom && other.top + 3 < one.bottom)
                    overlaps.push(`${figure.id}: ${a} on ${b}`);
        }
        root.dataset.overlaps = overlaps.join("; ");
        root.dataset.wide = `${document.documentElement.scrollWidth - document.documentElement.clientWidth} of ${innerWidth}`;"##;
    let page = with_script(&page(&[small()]).expect("it renders"), script);
    let page = page.replace('&', "&amp;").replace('"', "&quot;");
    for width in [390, 1200] {
        // In a frame, since a window of chromium is at least 500 wide.
        let frame =
            format!("<html><body><iframe width=\"{width}\" height=\"900\" srcdoc=\"{page}\"></iframe></body></html>");
        let (dom, console) = opened(&frame, &[]);
        assert_eq!(console, "");
        assert_eq!(data(&dom, "overlaps").as_deref(), Some(""), "{width}");
        assert_eq!(data(&dom, "wide"), Some(format!("0 of {width}")));
    }
}

/// 200 levels and 1,000,000 requests.
#[test]
#[ignore = "needs chromium, and takes a minute"]
fn ci_a_large_report_is_small_and_opens_at_once() {
    let levels: Vec<usize> = (1..=200).collect();
    let run = run(&levels, 5_000, 150);
    let requests: u64 = run.recommendation.levels.iter().filter_map(|level| level.summary.requests).sum();
    assert!(requests >= 1_000_000, "{requests}");
    let page = page(&[run]).expect("it renders");
    assert!(page.len() < 5_000_000, "{} bytes", page.len());
    // What the browser itself says: from the start of the navigation to the last chart drawn.
    let script = "document.documentElement.dataset.opened = Math.round(performance.now());";
    let (dom, console) = opened(&with_script(&page, script), &[]);
    assert_eq!(console, "");
    let opened: u64 = data(&dom, "opened").expect("the script ran").parse().expect("milliseconds");
    let figures = format!("{} bytes, opened in {opened} ms", page.len());
    println!("{figures}");
    assert!(opened < 5_000, "{figures}");
}

/// Fifty settings of the two sliders, against the decision by the same limits.
#[test]
#[ignore = "needs chromium"]
fn ci_the_sliders_choose_what_recommend_would() {
    let mut run = small();
    // Each level a little slower than the one below.
    let slower = |(at, level): (usize, &JudgedLevel)| {
        let mut summary = level.summary.clone();
        let factor = 1.0 + 0.3 * at as f64;
        for time in [&mut summary.latency_s, &mut summary.gate_latency_s, &mut summary.ttft_s].into_iter().flatten() {
            time.p95 = time.p95.map(|p95| factor * p95);
        }
        summary
    };
    let slowed: Vec<LevelSummary> = run.recommendation.levels.iter().enumerate().map(slower).collect();
    run.recommendation = recommend(&slowed, &run.policy);
    let script = r##"
        const form = document.querySelector(".limits");
        const input = (name) => form.elements[name];
        const at = document.documentElement.dataset;
        at.begin = form.dataset.pick;
        const picks = [];
        for (let i = 0; i < 50; i++) {
            input("p95").value = i * 37 % (Number(input("p95").max) + 1);
            input("ttft").value = i % 5 === 0 ? input("ttft").max : i * 23 % (Number(input("ttft").max) + 1);
            input("p95").dispatchEvent(new Event("input", { bubbles: true }));
            picks.push([input("p95").dataset.limit, input("ttft").dataset.limit, form.dataset.pick].join(","));
        }
        at.picks = picks.join(" ");
        const ring = document.querySelector("#chart-tradeoff .pick");
        at.ring = `${ring.getAttribute("cx")} ${ring.classList.contains("hidden")}`;
        at.told = form.querySelector("p").textContent;
        input("ttft").value = input("ttft").max;
        const along = Array.from({ length: Number(input("p95").max) + 1 }, (_, limit) => {
            input("p95").value = limit;
            input("p95").dispatchEvent(new Event("input", { bubbles: true }));
            return form.dataset.pick;
        });
        at.last = along.findLastIndex((pick) => pick !== along.at(-1)) / along.length;"##;
    let (dom, console) = opened(&with_script(&page(slice::from_ref(&run)).expect("it renders"), script), &[]);
    assert_eq!(console, "");
    let begin = run.recommendation.recommended_concurrency.map(|pick| pick.to_string());
    assert_eq!(data(&dom, "begin"), begin);
    let summaries: Vec<LevelSummary> = run.recommendation.levels.iter().map(|level| level.summary.clone()).collect();
    let picks = data(&dom, "picks").expect("the script ran");
    let mut seen = std::collections::BTreeSet::new();
    assert_eq!(picks.split(' ').count(), 50);
    for setting in picks.split(' ') {
        let [p95, ttft, pick] = setting.split(',').collect::<Vec<_>>().try_into().expect("three");
        let limit = |text: &str| text.parse::<f64>().ok();
        let policy = Policy {
            max_p95_seconds: limit(p95).or(Some(f64::MAX)),
            max_ttft_p95_seconds: limit(ttft),
            ..Policy::default()
        };
        let expected = recommend(&summaries, &policy).recommended_concurrency;
        assert_eq!(pick, expected.map(|pick| pick.to_string()).unwrap_or_default(), "{setting}");
        seen.insert(pick.to_owned());
    }
    assert!(seen.len() >= 4, "settings that all give the same show nothing: {seen:?}");
    println!("50 settings of both sliders choose what `recommend` does: {seen:?}, empty where none passes");
    let last: f64 = data(&dom, "last").expect("the script ran").parse().expect("a share");
    assert!(last > 0.75, "the choice changes last at {last} of the slider");
    assert!(data(&dom, "told").is_some_and(|told| told.starts_with("Level ") || told.starts_with("No level")));
}

/// Deque's axe-core of npm; `None` where there is no npm.
fn axe(folder: &Path) -> Option<String> {
    let npm =
        Command::new("npm").args(["install", "--no-audit", "--no-fund", "axe-core@4"]).current_dir(folder).output();
    let output =
        npm.inspect_err(|error| println!("SKIPPED: npm cannot be run ({error}), so axe-core was not asked")).ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(std::fs::read_to_string(folder.join("node_modules/axe-core/axe.min.js")).expect("axe-core holds it"))
}

#[test]
#[ignore = "needs chromium and npm"]
fn ci_axe_finds_no_violation() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(axe) = axe(folder.path()) else { return };
    let run_it = r##"
        document.documentElement.dataset.axe = "running";
        axe.run().then(({ violations, passes }) => {
            const told = violations.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map(({ html }) => html).join(" ")}`);
            document.documentElement.dataset.axe = `${passes.length > 10} ${told.join("; ")}`;
        });"##;
    let two =
        [Run { label: "A".to_owned(), ..small() }, Run { label: "B".to_owned(), ..run(&[1, 5, 20, 50], 500, 99) }];
    for runs in [&[small()][..], &two] {
        for theme in ["light", "dark"] {
            let page = page(runs).expect("it renders");
            let theme = format!("document.documentElement.dataset.theme = \"{theme}\";");
            let script = format!("{theme}{}{run_it}", axe.replace("</script", "<\\/script"));
            let (dom, _) = opened(&with_script(&page, &script), &["--virtual-time-budget=30000"]);
            assert_eq!(data(&dom, "axe").as_deref(), Some("true "));
        }
    }
}

/// What protanopes see of two colours differs by more than 20 (CIE 1976) between any two kinds of failure, on light ground
/// and on dark (Machado, Oliveira and Fernandes 2009, severity 1).
#[test]
fn protanopes_tell_the_kinds_of_failures_apart() {
    const PROTAN: [[f64; 3]; 3] =
        [[0.152_286, 1.052_583, -0.204_868], [0.114_503, 0.786_281, 0.099_216], [-0.003_882, -0.048_116, 1.051_998]];
    let style = page(&[small()]).expect("it renders");
    let colours = Regex::new(r"--tone-([A-Z][A-Za-z]+): light-dark\(#(\w{6}), #(\w{6})\)").expect("a pattern");
    let linear = |hex: &str, at: usize| {
        let c = f64::from(u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")) / 255.0;
        if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    };
    let row = |row: [f64; 3], of: [f64; 3]| row.iter().zip(of).map(|(a, b)| a * b).sum::<f64>();
    let lab = |hex: &str| {
        let rgb = [0, 2, 4].map(|at| linear(hex, at));
        let seen = PROTAN.map(|of| row(of, rgb).clamp(0.0, 1.0));
        let xyz =
            [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]].map(|of| row(of, seen));
        let f = |t: f64| if t > 0.008_856 { t.cbrt() } else { 7.787 * t + 16.0 / 116.0 };
        let [x, y, z] = [f(xyz[0] / 0.950_47), f(xyz[1]), f(xyz[2] / 1.088_83)];
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    };
    for theme in [2, 3] {
        let all: Vec<_> = colours.captures_iter(&style).map(|c| (c[1].to_owned(), lab(&c[theme]))).collect();
        assert_eq!(all.len(), Failure::ALL.len());
        for (at, (one, a)) in all.iter().enumerate() {
            for (other, b) in &all[at + 1..] {
                let apart = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
                assert!(apart > 20.0, "{one} and {other}: {apart:.1}");
            }
        }
    }
}
