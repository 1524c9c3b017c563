//! Compares the reported figures with the server's own record.

use serde_json::Value;

use crate::median;
use crate::server::{Behaviour, Seen, Server};
use crate::sweeping::{Sweep, lines_of};

pub fn run() {
    println!("first token after 50 ms, then 32 tokens 10 ms apart, level 32");
    println!("              ours     server   difference");
    let server = Server::start(Behaviour { first_ms: 50, gap_ms: 10, tokens: 32, slots: 1_000 });
    let benchmark = "{levels: [32], max_concurrency: 32, total_requests: 1000}";
    let sweep = Sweep::of(&server, benchmark, false, &["level"]);
    let level = Level::of(&sweep, 0, &mut server.finish());
    let ttft = median(level.cohort().map(|seen| (seen.first - seen.arrived) / 1e3).collect());
    let gap = median(level.cohort().flat_map(|seen| seen.gaps.iter().map(|gap| gap / 1e3)).collect());
    let ms = |figure: &str| sweep.level(0)[figure]["p50"].as_f64().unwrap_or(f64::NAN) * 1e3;
    for (name, ours, theirs) in [("TTFT p50 ms", ms("ttft_s"), ttft), ("ITL p50 ms", ms("itl_s"), gap)] {
        println!("{name:11} {ours:>7.3} {theirs:>10.3} {:>9.3} ms", ours - theirs);
    }
    let (ours, theirs) = (level.throughput(), level.true_throughput());
    println!("requests/s  {ours:>7.2} {theirs:>10.2} {:>9.2} %", 100.0 * (ours / theirs - 1.0));

    println!("\n64 slots of 100 ms");
    println!("level  requests/s    server  difference  in flight  of level");
    let server = Server::start(Behaviour { first_ms: 100, gap_ms: 0, tokens: 1, slots: 64 });
    let levels = [1, 16, 64, 128];
    let benchmark = "{levels: [1, 16, 64, 128], max_concurrency: 128, total_requests: 1000, request: {stream: false}}";
    let sweep = Sweep::of(&server, benchmark, false, &["level"]);
    let mut seen = server.finish();
    for (at, number) in levels.into_iter().enumerate() {
        let level = Level::of(&sweep, at, &mut seen);
        let (ours, theirs) = (level.throughput(), level.true_throughput());
        let in_flight = level.figures["mean_in_flight"].as_f64().unwrap_or(f64::NAN);
        println!(
            "{number:>5} {ours:>11.2} {theirs:>9.2} {:>9.2} % {in_flight:>10.2} {:>7.2} %",
            100.0 * (ours / theirs - 1.0),
            100.0 * (in_flight / f64::from(number) - 1.0),
        );
    }
}

/// A level's figures, and the server's record of the same requests.
struct Level<'a> {
    figures: &'a Value,
    seen: Vec<Seen>,
    /// Number of requests before the cohort.
    warm_up: usize,
    /// The measured window by the server's clock, microseconds.
    window: [f64; 2],
}

impl<'a> Level<'a> {
    /// Takes this level's requests off the front of `seen`: levels follow each other, and each is drained.
    fn of(sweep: &'a Sweep, at: usize, seen: &mut Vec<Seen>) -> Self {
        let figures = sweep.level(at);
        let folder = sweep.run_folder();
        let records = lines_of(&folder.join(format!("level-{}.jsonl", figures["concurrency"])));
        let rest = seen.split_off(records.len().min(seen.len()));
        let seen = std::mem::replace(seen, rest);
        let manifest = std::fs::read_to_string(folder.join("run.json")).expect("the manifest");
        let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
        let window = &manifest["levels"][at]["window_s"];
        // The level's first request by both clocks. They differ by the time it took to connect.
        let first = records.iter().find(|record| record["seq"] == 0).and_then(|record| record["start_s"].as_f64());
        let offset = seen[0].arrived - first.expect("a first request") * 1e6;
        let by_server = |end: usize| window[end].as_f64().expect("a window") * 1e6 + offset;
        Level {
            figures,
            warm_up: records.iter().filter(|record| record["phase"] == "warmup").count(),
            window: [by_server(0), by_server(1)],
            seen,
        }
    }

    fn cohort(&self) -> impl Iterator<Item = &Seen> {
        self.seen.iter().skip(self.warm_up)
    }

    fn throughput(&self) -> f64 {
        self.figures["throughput_rps"]["estimate"].as_f64().unwrap_or(f64::NAN)
    }

    /// Requests per second by the server's record, each weighted by the share of its stay inside the window.
    fn true_throughput(&self) -> f64 {
        let [from, to] = self.window;
        let share =
            |seen: &Seen| ((seen.finished.min(to) - seen.arrived.max(from)) / (seen.finished - seen.arrived)).max(0.0);
        self.seen.iter().map(share).sum::<f64>() / (to - from) * 1e6
    }
}
