//! The limit of open files: each request in flight holds a connection, which counts as one.

use thiserror::Error;

/// Files that are open beside the connections: sidecars, Criterion's, the runtimes' own.
const OTHERS: u64 = 100;

#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "level {level} takes {needed} open files, and this process may have {allowed}\n\nNothing was sent. Allow more with `ulimit -n {needed}` (above the hard limit only root may: `LimitNOFILE` of a service, `--ulimit nofile={needed}` of a container, /etc/security/limits.conf), or measure lower levels (benchmark.max_concurrency, --max-concurrency)."
)]
pub struct TooFewFiles {
    pub level: usize,
    pub needed: u64,
    /// The hard limit.
    pub allowed: u64,
}

/// Open files that `level` requests in flight take. A connection may still be on its way when its request has found
/// another that became free, so there may be some more than requests. With the server in this process each has two ends.
fn needed(level: usize, server_is_here: bool) -> u64 {
    let connections = level as u64 + level as u64 / 10;
    connections * if server_is_here { 2 } else { 1 } + OTHERS
}

/// Sees to it that a level can be reached: raises this process's own (soft) limit where it is too low.
///
/// # Errors
/// If the hard limit is too low as well.
pub fn allow(level: usize, server_is_here: bool) -> Result<(), TooFewFiles> {
    let needed = needed(level, server_is_here);
    let allowed = raise_to(needed);
    if allowed < needed { Err(TooFewFiles { level, needed, allowed }) } else { Ok(()) }
}

/// Raises the soft limit to `needed` if it is lower and may be; the limit as it is then.
#[cfg(unix)]
fn raise_to(needed: u64) -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // `None` means that there is no limit.
    let number = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if number(current) < needed && number(maximum) >= needed {
        // If it is refused all the same, the limit is still the old one.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum });
    }
    number(getrlimit(Resource::Nofile).current)
}

/// Elsewhere sockets do not count as files, or the limit is not known.
#[cfg(not(unix))]
fn raise_to(_needed: u64) -> u64 {
    u64::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_needs_its_connections_and_some_more() {
        assert_eq!(needed(50, false), 155);
        assert_eq!(needed(10_000, false), 11_100);
        assert_eq!(needed(10_000, true), 22_100);
    }
}
