//! CPU time, memory and open files of a process, from Linux's `/proc`.

use std::path::Path;

/// Clock ticks per second in `/proc/PID/stat` (USER_HZ): 100 on every current Linux.
const TICKS: f64 = 100.0;

#[derive(Clone, Copy)]
pub enum Cpu {
    Own,
    /// Children that have ended and were waited for.
    Children,
}

/// CPU seconds of this process (or its children) so far, including threads that have ended.
pub fn cpu_s(of: Cpu) -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux's /proc");
    // The name, in parentheses, may contain spaces. User and system time are the 12th and 13th
    // fields after it, followed by those of the children.
    let fields = stat.rsplit(')').next().expect("the fields after the name").split_whitespace();
    let skipped = if matches!(of, Cpu::Own) { 11 } else { 13 };
    fields.skip(skipped).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// Peak memory of a process so far, in bytes; `None` once it is gone.
pub fn peak_memory(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse::<f64>().ok().map(|kib| kib * 1024.0)
}

/// Number of files that a process has open.
pub fn open_files(process: u32) -> usize {
    std::fs::read_dir(Path::new("/proc").join(process.to_string()).join("fd")).map_or(0, Iterator::count)
}
