//! What the client itself costs, and whether its figures agree with the server's own record.
//!
//! `cargo bench --bench client_cost -- MODE`, with MODE one of
//!
//! ```text
//! cost [ROUNDS] [plain|stream] [LEVEL]   (the default) CPU time per request through the real path (build,
//!                    send, parse, record on disk), compared with raw hyper that reads the same bytes
//!                    without parsing them and, if installed, wrk
//! memory             bytes of memory per additional request, over a run of a million
//! streams            2,000 and 10,000 concurrent streams
//! truth              time to first token, gaps, throughput and requests in flight against the server's own record
//! sweep              ten levels against 64 slots: wall and CPU time compared with those of the load
//! ```
//!
//! The server runs in its own process. Needs Linux: CPU time comes from `/proc`.

mod clock;
mod cost;
mod proc;
mod scale;
mod server;
mod sweeping;
mod truth;

use std::process::ExitCode;

use tokio::runtime::{Builder, Runtime};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 5;

fn main() -> ExitCode {
    if std::env::var_os(server::SERVE).is_some() {
        runtime().block_on(server::serve());
    }
    if std::env::var_os(sweeping::SWEEP).is_some() {
        return llm_concurrency::commands::exit(llm_concurrency::commands::bench());
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` only checks that it starts.
    if !args.iter().any(|arg| arg == "--bench") {
        return ExitCode::SUCCESS;
    }
    let words: Vec<String> = args.into_iter().filter(|arg| !arg.starts_with('-')).collect();
    match words.first().map(String::as_str) {
        Some("memory") => scale::memory(),
        Some("streams") => scale::streams(),
        Some("truth") => truth::run(),
        Some("sweep") => sweeping::run(),
        _ => {
            let (numbers, mut only): (Vec<_>, Vec<_>) =
                words.into_iter().partition(|word| word.parse::<usize>().is_ok());
            only.retain(|word| word != "cost");
            let mut numbers = numbers.into_iter();
            let rounds = numbers.next().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
            only.extend(numbers);
            cost::run(rounds, &only);
        }
    }
    ExitCode::SUCCESS
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
