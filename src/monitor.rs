//! The live view of a running level: a progress line on a terminal, plain lines elsewhere. All on stderr.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Counts of the level in hand. The load thread adds, the monitor looks now and then.
#[derive(Debug, Default)]
pub struct Counts {
    issued: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    /// A request was sent.
    pub fn issued(&self) {
        self.issued.fetch_add(1, Relaxed);
    }

    /// A request ended.
    pub fn ended(&self, success: bool) {
        self.ended.fetch_add(1, Relaxed);
        self.failed.fetch_add(u64::from(!success), Relaxed);
    }

    fn look(&self) -> Look {
        let ended = self.ended.load(Relaxed);
        Look { ended, failed: self.failed.load(Relaxed), in_flight: self.issued.load(Relaxed).saturating_sub(ended) }
    }
}

struct Look {
    ended: u64,
    failed: u64,
    in_flight: u64,
}

const REFRESH: Duration = Duration::from_millis(200);
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Shows one level until it is dropped.
#[derive(Debug)]
pub struct LevelMonitor {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl LevelMonitor {
    /// Begins to show a level that will send about `total` requests.
    pub fn start(level: usize, total: u64, counts: Arc<Counts>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        let show = move || {
            if std::io::stderr().is_terminal() {
                show_bar(level, total, &counts, &stop);
            } else {
                show_lines(level, total, &counts, &stop);
            }
        };
        // Without the thread the run is merely silent.
        let thread = std::thread::Builder::new().name("monitor".to_owned()).spawn(show).ok();
        LevelMonitor { over, thread }
    }
}

impl Drop for LevelMonitor {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic of the monitor must not end the run.
            let _ = thread.join();
        }
    }
}

fn show_bar(level: usize, total: u64, counts: &Counts, over: &AtomicBool) {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    let style = ProgressStyle::with_template("level {prefix:>4} {bar:20} {pos}/{len} {msg} eta {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(level.to_string());
    let began = Instant::now();
    while !over.load(Relaxed) {
        let look = counts.look();
        bar.set_position(look.ended);
        bar.set_message(describe(&look, began));
        std::thread::park_timeout(REFRESH);
    }
    bar.finish_and_clear();
}

fn show_lines(level: usize, total: u64, counts: &Counts, over: &AtomicBool) {
    let began = Instant::now();
    let mut shown = began;
    while !over.load(Relaxed) {
        std::thread::park_timeout(REFRESH);
        if shown.elapsed() >= PLAIN_EVERY {
            let look = counts.look();
            eprintln!("level {level}: {} of at most {total} requests, {}", look.ended, describe(&look, began));
            shown = Instant::now();
        }
    }
}

fn describe(look: &Look, began: Instant) -> String {
    let rate = look.ended as f64 / began.elapsed().as_secs_f64().max(1e-3);
    format!("{:.1}/s, {} in flight, {} failed", rate, look.in_flight, look.failed)
}
