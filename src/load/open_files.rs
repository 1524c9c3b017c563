//! The limit on open files: each request in flight holds a connection, which counts as an open file.

use thiserror::Error;

/// Open files besides the connections: sidecars, Criterion's files, and those of the runtimes.
const OTHERS: u64 = 100;

#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "level {level} needs {needed} open files, and this process may have only {allowed}\n\nNothing was sent. Allow more with `ulimit -n {needed}` (only root may go above the hard limit: `LimitNOFILE` of a service, `--ulimit nofile={needed}` of a container, /etc/security/limits.conf), or measure lower levels (benchmark.max_concurrency, --max-concurrency)."
)]
pub struct TooFewFiles {
    pub level: usize,
    pub needed: u64,
    /// The hard limit.
    pub allowed: u64,
}

/// Number of open files for `level` requests in flight. There may be slightly more connections than requests: one
/// may still be opening when its request takes another that became free. A server in this process doubles them.
fn needed(level: usize, server_is_here: bool) -> u64 {
    let connections = level as u64 + level as u64 / 10;
    connections * if server_is_here { 2 } else { 1 } + OTHERS
}

/// Ensures that a level is possible, by raising this process's soft limit if it is too low.
///
/// # Errors
/// If the hard limit is too low as well.
pub fn allow(level: usize, server_is_here: bool) -> Result<(), TooFewFiles> {
    let needed = needed(level, server_is_here);
    let allowed = raise_to(needed);
    if allowed < needed { Err(TooFewFiles { level, needed, allowed }) } else { Ok(()) }
}

/// Raises the soft limit to `needed` if it is lower and the hard limit permits; returns the resulting limit.
#[cfg(unix)]
fn raise_to(needed: u64) -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // `None` means unlimited.
    let number = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if number(current) < needed && number(maximum) >= needed {
        // If this fails, the old limit remains in force.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum });
    }
    number(getrlimit(Resource::Nofile).current)
}

/// On other systems, sockets are not files, or the limit is unknown.
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
