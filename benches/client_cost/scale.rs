//! Memory over very many requests, and very many concurrent streams.

use std::io::{BufRead, BufReader};

use crate::median;
use crate::server::{Behaviour, Server};
use crate::sweeping::Sweep;

/// Number of requests in the long run, and in the short run that it is compared with.
const LONG: usize = 1_000_000;
const SHORT: usize = 20_000;

pub fn memory() {
    let server = Server::start(Behaviour::at_once(2));
    println!("requests  recorded  failed  peak MB  (streams of two tokens at level 64)");
    let peaks = [SHORT, LONG].map(|requests| {
        let benchmark = format!("{{levels: [64], max_concurrency: 64, total_requests: {requests}}}");
        let sweep = Sweep::of(&server, &benchmark, false, &["level"]);
        let sidecar = std::fs::File::open(sweep.run_folder().join("level-64.jsonl")).expect("the sidecar");
        let recorded = BufReader::new(sidecar).lines().count();
        let level = sweep.level(0);
        let failed = level["requests"].as_u64().zip(level["succeeded"].as_u64()).map(|(all, good)| all - good);
        println!(
            "{:>8} {recorded:>9} {:>7} {:>8.1}",
            level["requests"],
            failed.expect("counts"),
            sweep.peak_memory / 1e6
        );
        sweep.peak_memory
    });
    println!("{:.1} bytes more for each request more", (peaks[1] - peaks[0]) / (LONG - SHORT) as f64);
}

pub fn streams() {
    println!("streams  failed  TTFT p50 s  server's s  differs ms  peak MB  open files");
    for level in [2_000, 10_000] {
        let server = Server::start(Behaviour { first_ms: 4_000, gap_ms: 20, tokens: 8, slots: level });
        let benchmark = format!("{{levels: [{level}], max_concurrency: {level}}}");
        let sweep = Sweep::of(&server, &benchmark, true, &["level"]);
        let figures = sweep.level(0);
        let failed =
            figures["failures"].as_object().map(|kinds| kinds.values().filter_map(|n| n.as_u64()).sum::<u64>());
        let ours = figures["ttft_s"]["p50"].as_f64().unwrap_or(f64::NAN);
        // Our figure excludes the warm-up too, in which the connections are opened.
        let seen = server.finish();
        let cohort = figures["requests"].as_u64().unwrap_or_default() as usize;
        let cohort = seen.get(seen.len().saturating_sub(cohort)..).unwrap_or_default();
        let theirs = median(cohort.iter().map(|seen| (seen.first - seen.arrived) / 1e6).collect());
        println!(
            "{level:>7} {:>7} {ours:>11.4} {theirs:>11.4} {:>11.1} {:>8.1} {:>11}",
            failed.unwrap_or_default(),
            (ours - theirs) * 1e3,
            sweep.peak_memory / 1e6,
            sweep.open_files,
        );
    }
}
