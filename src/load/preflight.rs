//! Sends two of a run's own prompts, one after the other, before anything is measured. A bad
//! key, an unknown model or an overlong prompt shows up after two requests instead of a sweep.

use tokio::time::Instant;

use crate::client::outcome::{Failure, Phase, Reply, RequestOutcome};
use crate::load::closed_loop::{self, Ticket};
use crate::load::target::Target;
use crate::prompts::Prompt;

/// Maximum number of requests: two prompts, each sent once more if it was rejected.
pub const AT_MOST: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Typical,
    Longest,
}

#[derive(Clone, Debug)]
pub struct Probe {
    pub which: Which,
    pub id: String,
    pub characters: usize,
    /// Seconds from sending the request to the last byte of the answer.
    pub latency_s: f64,
    pub reply: Reply,
}

impl Probe {
    /// Whether the server rejects this request as such, so that retrying or slowing down would not help.
    pub fn is_refused(&self) -> bool {
        self.reply.failure.as_ref().is_some_and(|failed| failed.kind == Failure::ClientError)
    }
}

/// Sends a typical prompt and the longest one. A rejected prompt is sent again, since a single rejection may
/// be chance; the preflight stops if it is rejected twice. `record` receives the record of each request.
pub async fn preflight(target: &Target, prompts: &[Prompt], mut record: impl FnMut(RequestOutcome)) -> Vec<Probe> {
    let began = Instant::now();
    let mut probes: Vec<Probe> = Vec::new();
    let mut seq = 0;
    for (which, at) in chosen(prompts) {
        let mut tries = 0;
        let probe = loop {
            let start = Instant::now();
            let reply = target.send_before(at, seq).await;
            let latency_s = start.elapsed().as_secs_f64();
            let start_s = (start - began).as_secs_f64();
            let ticket = Ticket { seq, phase: Phase::Warmup, level: 0, visit: 0 };
            record(closed_loop::record(ticket, None, start_s, Some(start_s + latency_s), &reply));
            (seq, tries) = (seq + 1, tries + 1);
            let (id, characters) = (prompts[at].id.clone(), prompts[at].characters());
            let probe = Probe { which, id, characters, latency_s, reply };
            if tries == 2 || !probe.is_refused() {
                break probe;
            }
        };
        probes.push(probe);
        if probes.last().is_some_and(Probe::is_refused) {
            break;
        }
    }
    probes
}

/// The indices of the prompt of median length and of the longest; only one if they are the same.
fn chosen(prompts: &[Prompt]) -> Vec<(Which, usize)> {
    let mut by_length: Vec<usize> = (0..prompts.len()).collect();
    by_length.sort_by_key(|&at| prompts[at].characters());
    let typical = by_length.get(by_length.len() / 2).map(|&at| (Which::Typical, at));
    let longest = by_length.last().map(|&at| (Which::Longest, at));
    let mut chosen: Vec<_> = typical.into_iter().chain(longest).collect();
    chosen.dedup_by_key(|(_, at)| *at);
    chosen
}
