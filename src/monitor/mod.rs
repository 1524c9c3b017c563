//! What can be seen of a run while it runs: the view of the level in hand on stderr, and `/metrics`.
//!
//! The load thread counts each request as it is sent and as it ends, in relaxed atomics of which it is the only
//! writer. All others only look, now and then and on threads of their own.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::client::outcome::{Failure, Phase, RequestOutcome};
use crate::report::words::seconds;

mod histogram;
mod metrics;

use histogram::{Histogram, Times};
pub use metrics::{MetricsError, MetricsServer, textfile};

/// All measurements of a run.
#[derive(Debug, Default)]
pub struct Live {
    // Locked once per measurement by the sweep, and by who looks; never by the load thread.
    measurements: Mutex<Vec<Arc<Counts>>>,
}

impl Live {
    /// A measurement of `level` begins, in a confirm round from 1 or else in 0, that will send at most `planned` requests.
    pub fn begin(&self, level: usize, round: u32, planned: u64) -> Arc<Counts> {
        let counts = Arc::new(Counts::new(level, round, planned));
        self.measurements.lock().unwrap_or_else(PoisonError::into_inner).push(counts.clone());
        counts
    }

    fn measurements(&self) -> Vec<Arc<Counts>> {
        self.measurements.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Counts of one measurement.
#[derive(Debug)]
pub struct Counts {
    level: usize,
    round: u32,
    planned: u64,
    over: AtomicBool,
    /// Permits held back after failures.
    held: AtomicU64,
    warmup: PhaseCounts,
    measured: PhaseCounts,
}

/// Requests by the phase in which they were sent.
#[derive(Debug, Default)]
struct PhaseCounts {
    issued: AtomicU64,
    succeeded: AtomicU64,
    /// By kind, as in [`Failure::ALL`].
    failed: [AtomicU64; Failure::ALL.len()],
    /// In flight when the run was interrupted.
    given_up: AtomicU64,
    output_tokens: AtomicU64,
    /// Of the successes.
    latency: Histogram,
    ttft: Histogram,
}

impl Counts {
    fn new(level: usize, round: u32, planned: u64) -> Self {
        let (warmup, measured) = Default::default();
        Counts { level, round, planned, over: AtomicBool::new(false), held: AtomicU64::new(0), warmup, measured }
    }

    fn of(&self, phase: Phase) -> &PhaseCounts {
        match phase {
            Phase::Warmup => &self.warmup,
            Phase::Measured => &self.measured,
        }
    }

    /// A request was sent.
    pub fn issued(&self, phase: Phase) {
        self.of(phase).issued.fetch_add(1, Relaxed);
    }

    /// A request ended, or was given up.
    pub fn ended(&self, outcome: &RequestOutcome) {
        let counts = self.of(outcome.phase);
        match (outcome.failure, outcome.latency_s) {
            (Some(kind), _) => counts.failed[kind as usize].fetch_add(1, Relaxed),
            (None, None) => counts.given_up.fetch_add(1, Relaxed),
            (None, Some(latency)) => {
                counts.output_tokens.fetch_add(outcome.output_tokens.unwrap_or(0).into(), Relaxed);
                counts.latency.add(latency);
                if let Some(ttft) = outcome.ttft_s {
                    counts.ttft.add(ttft);
                }
                counts.succeeded.fetch_add(1, Relaxed)
            }
        };
    }

    /// So many permits are held back after failures now.
    pub fn held(&self, permits: usize) {
        self.held.store(permits as u64, Relaxed);
    }

    fn look(&self) -> Look {
        let [warmup, measured] = [&self.warmup, &self.measured].map(PhaseCounts::look);
        let is_warmup = measured.issued == 0;
        let shown = if is_warmup { &self.warmup } else { &self.measured };
        let ended = warmup.ended() + measured.ended();
        Look {
            is_warmup,
            ended,
            succeeded: warmup.succeeded + measured.succeeded,
            in_flight: (warmup.issued + measured.issued).saturating_sub(ended),
            held: self.held.load(Relaxed),
            failed: std::array::from_fn(|kind| warmup.failed[kind] + measured.failed[kind]),
            latency: shown.latency.read(),
            ttft: shown.ttft.read(),
        }
    }
}

/// The numbers of a phase at one moment.
struct PhaseLook {
    issued: u64,
    succeeded: u64,
    failed: [u64; Failure::ALL.len()],
    given_up: u64,
}

impl PhaseCounts {
    fn look(&self) -> PhaseLook {
        // What has ended is read before what was sent, so that no more can have ended than was sent.
        let succeeded = self.succeeded.load(Relaxed);
        let failed = std::array::from_fn(|kind| self.failed[kind].load(Relaxed));
        let given_up = self.given_up.load(Relaxed);
        PhaseLook { succeeded, failed, given_up, issued: self.issued.load(Relaxed) }
    }
}

impl PhaseLook {
    fn ended(&self) -> u64 {
        self.succeeded + self.given_up + self.failed.iter().sum::<u64>()
    }

    fn in_flight(&self) -> u64 {
        self.issued.saturating_sub(self.ended())
    }
}

/// A measurement at one moment.
struct Look {
    is_warmup: bool,
    ended: u64,
    succeeded: u64,
    in_flight: u64,
    held: u64,
    failed: [u64; Failure::ALL.len()],
    /// Of the measured phase, once it has begun.
    latency: Times,
    ttft: Times,
}

// ---- the view ----

const REFRESH: Duration = Duration::from_millis(250);
const PLAIN_EVERY: Duration = Duration::from_secs(5);
/// Rate and time left are those of the last so many seconds.
const RECENT: Duration = Duration::from_secs(5);
const BAR: usize = 20;

/// Shows one measurement.
///
/// Criterion writes to the same terminal, and neither knows of the other's lines: the view is hidden wherever
/// Criterion has something to say.
#[derive(Debug)]
pub struct LevelMonitor {
    counts: Arc<Counts>,
    /// While it is not shown; never if all is to be quiet.
    view: Option<View>,
    shown: Option<(Arc<AtomicBool>, JoinHandle<View>)>,
}

impl LevelMonitor {
    /// Of a measurement that begins.
    pub fn new(counts: Arc<Counts>, quiet: bool) -> Self {
        let view = (!quiet).then(|| View::new(&counts, Instant::now()));
        LevelMonitor { counts, view, shown: None }
    }

    /// Shows it from now on, on a thread of its own.
    pub fn show(&mut self) {
        let Some(view) = self.view.take() else { return };
        let (hidden, counts) = (Arc::new(AtomicBool::new(false)), self.counts.clone());
        let until = hidden.clone();
        // Without the thread the run is merely silent.
        let thread = std::thread::Builder::new().name("monitor".to_owned()).spawn(move || show(&counts, view, &until));
        self.shown = thread.ok().map(|thread| (hidden, thread));
    }

    /// Takes it off the screen.
    pub fn hide(&mut self) {
        if let Some((hidden, thread)) = self.shown.take() {
            hidden.store(true, Relaxed);
            thread.thread().unpark();
            // A panic of the monitor must not end the run.
            self.view = thread.join().ok();
        }
    }

    /// Says what it came to in `load_s` seconds.
    pub fn finish(mut self, load_s: f64) {
        self.hide();
        if let Some(view) = &self.view {
            let parts = view.at_end(&self.counts.look(), load_s);
            let is_terminal = std::io::stderr().is_terminal();
            eprintln!("{}", if is_terminal { packed(parts, terminal_width()) } else { parts.join(", ") });
        }
    }
}

impl Drop for LevelMonitor {
    fn drop(&mut self) {
        self.hide();
        self.counts.over.store(true, Relaxed);
    }
}

fn show(counts: &Counts, mut view: View, hidden: &AtomicBool) -> View {
    if std::io::stderr().is_terminal() {
        show_bar(counts, &mut view, hidden);
    } else {
        show_lines(counts, &mut view, hidden);
    }
    view
}

/// The width may change at any time.
fn terminal_width() -> usize {
    Term::stderr().size_checked().map_or(80, |(_, columns)| usize::from(columns))
}

fn show_bar(counts: &Counts, view: &mut View, hidden: &AtomicBool) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(4));
    bar.set_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
    while !hidden.load(Relaxed) {
        bar.set_message(view.on_terminal(&counts.look(), Instant::now(), terminal_width()));
        bar.tick();
        std::thread::park_timeout(REFRESH);
    }
    bar.finish_and_clear();
}

fn show_lines(counts: &Counts, view: &mut View, hidden: &AtomicBool) {
    while !hidden.load(Relaxed) {
        std::thread::park_timeout(REFRESH);
        let (look, now) = (counts.look(), Instant::now());
        view.note(&look, now);
        if now - view.said >= PLAIN_EVERY {
            eprintln!("{}", view.in_a_line(&look));
            view.said = now;
        }
    }
}

/// A measurement in words.
#[derive(Debug)]
struct View {
    name: String,
    planned: u64,
    /// When the last plain line was written, or else the measurement began.
    said: Instant,
    /// Moments of the recent past: requests that had ended, and successes.
    recent: VecDeque<(Instant, u64, u64)>,
}

impl View {
    fn new(counts: &Counts, now: Instant) -> Self {
        let again = if counts.round == 0 { String::new() } else { format!(" again (round {})", counts.round) };
        let recent = VecDeque::from([(now, 0, 0)]);
        View { name: format!("level {}{again}", counts.level), planned: counts.planned, said: now, recent }
    }

    fn note(&mut self, look: &Look, now: Instant) {
        self.recent.push_back((now, look.ended, look.succeeded));
        while self.recent.len() > 2 && now - self.recent[0].0 > RECENT {
            self.recent.pop_front();
        }
    }

    /// Requests that end per second, and successes; `None` while there are none.
    fn rates(&self) -> Option<(f64, f64)> {
        let (&(from, ended_then, succeeded_then), &(to, ended, succeeded)) =
            (self.recent.front()?, self.recent.back()?);
        let took = (to - from).as_secs_f64();
        (took > 0.0 && ended > ended_then)
            .then(|| ((ended - ended_then) as f64 / took, (succeeded - succeeded_then) as f64 / took))
    }

    /// How much is left: requests, at most, and the time for them.
    fn left(&self, look: &Look) -> [String; 2] {
        let left = self.planned.saturating_sub(look.ended);
        let eta = self.rates().map_or_else(|| "-".to_owned(), |(rate, _)| whole_seconds(left as f64 / rate));
        [format!("{left} left"), format!("ETA {eta}")]
    }

    /// What it is like now.
    fn now(&self, look: &Look) -> Vec<String> {
        let rate = self.rates().map_or_else(|| "-".to_owned(), |(_, rate)| format!("{rate:.1}"));
        let held = if look.held > 0 { format!(", {} held back after failures", look.held) } else { String::new() };
        let mut parts = vec![format!("{} in flight{held}", look.in_flight), format!("{rate} req/s")];
        parts.extend(times(look));
        parts.extend(failures(look));
        parts
    }

    fn on_terminal(&mut self, look: &Look, now: Instant, width: usize) -> String {
        self.note(look, now);
        let share = look.ended as f64 / self.planned.max(1) as f64;
        let cells = if width < 80 { BAR / 2 } else { BAR };
        let filled = ((share * cells as f64) as usize).min(cells);
        let phase = if look.is_warmup { "warm-up" } else { "measuring" };
        let bar = "█".repeat(filled) + &"░".repeat(cells - filled);
        let head = [self.name.clone(), bar, phase.to_owned()].into_iter().chain(self.left(look));
        format!("{}\n{}", packed(head, width), packed(self.now(look), width))
    }

    fn in_a_line(&self, look: &Look) -> String {
        let phase = if look.is_warmup { " warm-up" } else { "" };
        let parts: Vec<String> = self.left(look).into_iter().chain(self.now(look)).collect();
        format!("{}{phase}: {} done, {}", self.name, look.ended, parts.join(", "))
    }

    /// The whole of it.
    fn at_end(&self, look: &Look, load_s: f64) -> Vec<String> {
        let mut parts = vec![format!("{} ended: {} requests in {}", self.name, look.ended, seconds(load_s))];
        parts.extend(times(look));
        parts.extend(failures(look));
        parts
    }
}

/// Percentiles of what has succeeded so far.
fn times(look: &Look) -> Vec<String> {
    let part = |name: &str, times: &Times, p: f64| times.quantile(p).map(|value| format!("{name} {}", shortly(value)));
    let Look { latency, ttft, .. } = look;
    [part("P50", latency, 0.5), part("P95", latency, 0.95), part("TTFT", ttft, 0.5)].into_iter().flatten().collect()
}

fn failures(look: &Look) -> Vec<String> {
    let kinds = Failure::ALL.iter().zip(look.failed).filter(|(_, count)| *count > 0);
    kinds.map(|(kind, count)| format!("{count} {kind}")).collect()
}

/// As many parts on a line as fit; a part alone that is too long is cut, since a terminal would wrap it.
fn packed(parts: impl IntoIterator<Item = String>, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    // The last column stays free: some terminals wrap as soon as it is written.
    let width = width.saturating_sub(1).max(1);
    for part in parts {
        let part: String = part.chars().take(width).collect();
        match lines.last_mut() {
            Some(line) if line.chars().count() + 2 + part.chars().count() <= width => *line += &format!("  {part}"),
            _ => lines.push(part),
        }
    }
    lines.join("\n")
}

/// With the two digits that are known.
fn shortly(value: f64) -> String {
    match value {
        value if value < 0.01 => format!("{:.1} ms", value * 1e3),
        value if value < 1.0 => format!("{:.0} ms", value * 1e3),
        value if value < 10.0 => format!("{value:.1} s"),
        value => format!("{value:.0} s"),
    }
}

fn whole_seconds(value: f64) -> String {
    let all = value.ceil() as u64;
    match (all / 3600, all / 60 % 60, all % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, min, s) => format!("{min} min {s:02} s"),
        (h, min, _) => format!("{h} h {min:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::outcome::tests::outcome;

    fn failed(kind: Failure) -> RequestOutcome {
        RequestOutcome { failure: Some(kind), ..outcome(0.0, 1.0) }
    }

    fn warm(outcome: RequestOutcome) -> RequestOutcome {
        RequestOutcome { phase: Phase::Warmup, ..outcome }
    }

    /// A level of 50 with 10 requests of warm-up, and 100 measured of which 90 have ended.
    fn counts() -> Counts {
        let counts = Counts::new(50, 0, 160);
        for _ in 0..10 {
            counts.issued(Phase::Warmup);
            counts.ended(&warm(outcome(0.0, 9.0)));
        }
        (0..100).for_each(|_| counts.issued(Phase::Measured));
        for i in 0..80 {
            let latency = 0.2 + 0.005 * f64::from(i);
            counts.ended(&RequestOutcome { ttft_s: Some(0.05), output_tokens: Some(7), ..outcome(1.0, 1.0 + latency) });
        }
        (0..3).for_each(|_| counts.ended(&failed(Failure::Timeout)));
        (0..6).for_each(|_| counts.ended(&failed(Failure::ServerError)));
        counts.ended(&RequestOutcome { end_s: None, latency_s: None, ..outcome(1.0, 2.0) });
        counts
    }

    /// After ten seconds.
    fn view(counts: &Counts) -> (View, Look, Instant) {
        let began = Instant::now();
        let (mut view, look) = (View::new(counts, began), counts.look());
        let now = began + Duration::from_secs(10);
        view.note(&look, now);
        (view, look, now)
    }

    #[test]
    fn every_request_is_counted_once() {
        let look = counts().look();
        assert_eq!((look.ended, look.succeeded, look.in_flight), (100, 90, 10));
        assert_eq!(look.failed, [0, 3, 0, 0, 6, 0, 0]);
        assert!(!look.is_warmup);
        // Without the nine seconds of the warm-up.
        assert!(look.latency.quantile(1.0).is_some_and(|longest| longest < 0.61));
        assert!(Failure::ALL.iter().enumerate().all(|(at, kind)| *kind as usize == at));
    }

    #[test]
    fn a_level_in_warm_up_says_so_and_has_no_rate_before_the_first_end() {
        let counts = Counts::new(2, 3, 30);
        counts.issued(Phase::Warmup);
        let (mut view, look, now) = view(&counts);
        assert_eq!(
            view.in_a_line(&look),
            "level 2 again (round 3) warm-up: 0 done, 30 left, ETA -, 1 in flight, - req/s"
        );
        assert_eq!(
            view.on_terminal(&look, now, 80),
            "level 2 again (round 3)  ░░░░░░░░░░░░░░░░░░░░  warm-up  30 left  ETA -\n1 in flight  - req/s"
        );
    }

    #[test]
    fn a_line_says_all_of_it() {
        let (view, look, _) = view(&counts());
        assert_eq!(
            view.in_a_line(&look),
            "level 50: 100 done, 60 left, ETA 6 s, 10 in flight, 9.0 req/s, P50 395 ms, P95 575 ms, TTFT 50 ms, 3 Timeout, 6 ServerError"
        );
        assert_eq!(
            view.at_end(&look, 10.0).join(", "),
            "level 50 ended: 100 requests in 10.00 s, P50 395 ms, P95 575 ms, TTFT 50 ms, 3 Timeout, 6 ServerError"
        );
        let refused = counts();
        refused.held(5);
        let line = view.in_a_line(&refused.look());
        assert!(line.contains("10 in flight, 5 held back after failures, 9.0 req/s"), "{line}");
    }

    #[test]
    fn the_view_fits_any_width() {
        let many = counts();
        Failure::ALL.iter().for_each(|&kind| many.ended(&failed(kind)));
        for width in [20, 40, 60, 80, 200] {
            let (mut view, look, now) = view(&many);
            let text = view.on_terminal(&look, now, width);
            assert!(text.lines().all(|line| line.chars().count() < width), "{width}:\n{text}");
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.contains("measuring") && words.ends_with("1 Malformed 1 EmptyOutput"), "{width}:\n{text}");
        }
        let (mut view, look, now) = view(&counts());
        assert_eq!(view.on_terminal(&look, now, 60).lines().count(), 3);
    }

    #[test]
    fn hidden_and_shown_again_it_keeps_its_past_and_quiet_it_has_none() {
        let counts = Arc::new(counts());
        let mut monitor = LevelMonitor::new(counts.clone(), false);
        monitor.show();
        monitor.hide();
        let past = monitor.view.as_ref().map(|view| view.recent.len());
        monitor.show();
        assert!(monitor.view.is_none() && monitor.shown.is_some());
        monitor.hide();
        assert!(monitor.view.as_ref().map(|view| view.recent.len()) >= past && monitor.view.is_some());
        assert!(!counts.over.load(Relaxed));
        drop(monitor);
        assert!(counts.over.load(Relaxed));
        let mut quiet = LevelMonitor::new(counts, true);
        quiet.show();
        assert!(quiet.view.is_none() && quiet.shown.is_none());
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let (mut view, mut look, now) = view(&counts());
        for _ in 1..=20 {
            look.ended += 50;
            look.succeeded += 25;
            let last = view.recent.back().map_or(now, |last| last.0);
            view.note(&look, last + Duration::from_secs(1));
        }
        assert_eq!(view.rates(), Some((50.0, 25.0)));
        assert!(view.recent.len() <= 7, "{}", view.recent.len());
    }

    #[test]
    fn times_are_short() {
        let times = [0.0042, 0.037, 0.37, 3.7, 37.2].map(shortly);
        assert_eq!(times, ["4.2 ms", "37 ms", "370 ms", "3.7 s", "37 s"]);
        assert_eq!([0.2, 61.0, 3725.0].map(whole_seconds), ["1 s", "1 min 01 s", "1 h 02 min"]);
    }
}
