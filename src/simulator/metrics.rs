//! What `/metrics` says, in Prometheus's text format.

use std::fmt::Write;

use super::faults::Fault;
use super::log::{RequestEnd, RequestRecord};

/// The text, from the requests that have ended and the sequences that run and wait now.
pub(super) fn text(ended: &[RequestRecord], running: usize, waiting: usize) -> String {
    let sum = |tokens: fn(&RequestRecord) -> u32| ended.iter().map(|r| u64::from(tokens(r))).sum::<u64>();
    let mut out = String::new();
    family(&mut out, "requests_total", "counter", "Requests to the generating routes that have ended.");
    for end in RequestEnd::ALL {
        let count = ended.iter().filter(|request| request.outcome == end).count();
        let _ = writeln!(out, "simulator_requests_total{{outcome=\"{end}\"}} {count}");
    }
    family(&mut out, "faults_total", "counter", "Requests that something went wrong with on purpose.");
    for fault in Fault::ALL {
        let count = ended.iter().filter(|request| request.fault == Some(fault)).count();
        let _ = writeln!(out, "simulator_faults_total{{fault=\"{fault}\"}} {count}");
    }
    let single = [
        ("num_requests_running", "gauge", "Sequences that hold a slot.", running as u64),
        ("num_requests_waiting", "gauge", "Sequences that wait for a slot.", waiting as u64),
        ("prompt_tokens_total", "counter", "Tokens of the prompts.", sum(|r| r.prompt_tokens)),
        ("cached_tokens_total", "counter", "Of these, tokens from the prefix cache.", sum(|r| r.cached_tokens)),
        ("generation_tokens_total", "counter", "Tokens generated.", sum(|r| r.output_tokens)),
    ];
    for (name, kind, help, value) in single {
        family(&mut out, name, kind, help);
        let _ = writeln!(out, "simulator_{name} {value}");
    }
    out
}

// Writing to a string cannot fail, here and above.
fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP simulator_{name} {help}\n# TYPE simulator_{name} {kind}");
}
