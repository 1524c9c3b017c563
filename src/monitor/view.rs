//! The view of a run on stderr: one row per level on a terminal, else a line on the current level every five seconds.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use console::Term;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Counts, Course, Tally};
use crate::client::outcome::Failure;
use crate::report::words::{count, seconds};

const REFRESH: Duration = Duration::from_millis(250);
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Time over which the rates, and from them the time left, are computed.
const RECENT: Duration = Duration::from_secs(5);
/// Maximum number of rows of the curve.
const ROWS: usize = 12;
/// Columns of a row that are reserved for the text around its bar.
const BESIDE: usize = 40;
const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// Shows the progress of one measurement at a time.
///
/// Criterion writes to the same terminal, and neither knows of the other's lines, so the view must be hidden
/// while Criterion prints.
#[derive(Debug)]
pub struct LevelMonitor {
    counts: Arc<Counts>,
    /// Number of visits so far; 0 for a measurement without visits.
    visits: u64,
    /// The view while it is hidden; always `None` in quiet mode.
    view: Option<View>,
    shown: Option<(Arc<AtomicBool>, JoinHandle<View>)>,
}

impl LevelMonitor {
    pub fn new(counts: Arc<Counts>, quiet: bool) -> Self {
        let view = (!quiet).then(|| View::new(&counts, Instant::now()));
        LevelMonitor { visits: (counts.visit > 0).into(), counts, view, shown: None }
    }

    /// Switches to the next visit.
    pub fn go_on(&mut self, counts: Arc<Counts>) {
        self.hide();
        let next = |View { last_line, .. }| View { last_line, ..View::new(&counts, Instant::now()) };
        self.view = self.view.take().map(next);
        self.counts = counts;
        self.visits += 1;
    }

    pub fn show(&mut self) {
        let Some(mut view) = self.view.take() else { return };
        let (hidden, counts) = (Arc::new(AtomicBool::new(false)), self.counts.clone());
        let until = hidden.clone();
        let show = move || {
            view.show(&counts, &until);
            view
        };
        // If the thread cannot be started, the run goes on without a view.
        let thread = std::thread::Builder::new().name("monitor".to_owned()).spawn(show);
        self.shown = thread.ok().map(|thread| (hidden, thread));
    }

    pub fn hide(&mut self) {
        if let Some((hidden, thread)) = self.shown.take() {
            hidden.store(true, Relaxed);
            thread.thread().unpark();
            // A panic of the monitor must not end the run.
            self.view = thread.join().ok();
        }
    }

    /// Hides the view. Unless a terminal shows the curve, also prints what `load_s` seconds of load (of visits, with
    /// `sent` requests together) achieved.
    pub fn finish(mut self, sent: u64, load_s: f64) {
        self.hide();
        let Some(view) = self.view.as_ref().filter(|_| !std::io::stderr().is_terminal()) else { return };
        match self.visits {
            0 => eprintln!("{}", view.at_end(&self.counts.tally.lock(), load_s)),
            1 => {}
            n => eprintln!("{} ended: {} in {}", count(n, "visit"), count(sent, "request"), seconds(load_s)),
        }
    }
}

impl Drop for LevelMonitor {
    fn drop(&mut self) {
        self.hide();
        self.counts.over();
    }
}

/// Current width of stderr in columns; `usize::MAX` if it is not a terminal.
pub fn terminal_width() -> usize {
    Term::stderr().size_checked().map_or(usize::MAX, |(_, columns)| usize::from(columns))
}

#[derive(Debug)]
struct View {
    level: usize,
    name: String,
    planned: u64,
    /// Time at which the last plain line was written, or at which the measurement began if there is none.
    last_line: Instant,
    /// Recent samples: the time, and the requests ended and succeeded by then.
    recent: VecDeque<(Instant, u64, u64)>,
}

impl View {
    fn new(counts: &Counts, now: Instant) -> Self {
        let again = if counts.visit == 0 { String::new() } else { format!(" (visit {})", counts.visit) };
        let recent = VecDeque::from([(now, 0, 0)]);
        let name = format!("level {}{again}", counts.level);
        View { level: counts.level, name, planned: counts.planned, last_line: now, recent }
    }

    fn show(&mut self, counts: &Counts, hidden: &AtomicBool) {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(4));
            bar.with_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()))
        });
        while !hidden.load(Relaxed) {
            let (tally, now) = (counts.tally.lock().clone(), Instant::now());
            self.note(&tally, now);
            if let Some(bar) = &bar {
                let course = counts.live.course.lock().clone();
                bar.set_message(self.on_terminal(&tally, &course, terminal_width()));
                bar.tick();
            } else if now - self.last_line >= LINE_EVERY {
                eprintln!("{}", self.in_a_line(&tally));
                self.last_line = now;
            }
            std::thread::park_timeout(REFRESH);
        }
        bar.iter().for_each(ProgressBar::finish_and_clear);
    }

    fn note(&mut self, tally: &Tally, now: Instant) {
        self.recent.push_back((now, tally.ended, tally.succeeded));
        while self.recent.len() > 2 && now - self.recent[0].0 > RECENT {
            self.recent.pop_front();
        }
    }

    /// Ended requests and successes per second; `None` if no request has ended recently.
    fn rates(&self) -> Option<(f64, f64)> {
        let (&(from, ended_then, succeeded_then), &(to, ended, succeeded)) =
            (self.recent.front()?, self.recent.back()?);
        let took = (to - from).as_secs_f64();
        (took > 0.0 && ended > ended_then)
            .then(|| ((ended - ended_then) as f64 / took, (succeeded - succeeded_then) as f64 / took))
    }

    fn now(&self, tally: &Tally) -> Vec<String> {
        let rate = self.rates().map_or_else(|| "-".to_owned(), |(_, rate)| format!("{rate:.1}"));
        let held = if tally.held > 0 { format!(", {} held back after failures", tally.held) } else { String::new() };
        let in_flight = tally.issued - tally.ended;
        let parts = [format!("{in_flight} in flight{held}"), format!("{rate} req/s")];
        parts.into_iter().chain(figures(tally)).collect()
    }

    /// The curve so far with the current level, the state of that level, and the progress of the run.
    fn on_terminal(&self, tally: &Tally, course: &Course, width: usize) -> String {
        let mut levels = course.levels.clone();
        if let Some((_, rps)) = self.rates() {
            levels.entry(self.level).or_insert((rps, None));
        }
        let current = levels.keys().position(|level| *level == self.level).unwrap_or_default();
        let skipped = (current + ROWS / 2).max(ROWS).min(levels.len()).saturating_sub(ROWS);
        let best = levels.values().map(|(rps, _)| *rps).fold(0.0, f64::max);
        let cells = width.saturating_sub(BESIDE).clamp(8, 48);
        let row = |(level, (rps, p95)): (&usize, &(f64, Option<f64>))| {
            let eighths = (rps / best.max(f64::MIN_POSITIVE) * 8.0 * cells as f64).round() as usize;
            let bar = "█".repeat(eighths / 8) + EIGHTHS[eighths % 8];
            let p95 = p95.map(|p95| format!("  P95 {}", shortly(p95))).unwrap_or_default();
            let here = if *level == self.level { '>' } else { ' ' };
            cut(&format!("{here}{level:>5}  {bar:<cells$} {rps:>7.1}/s{p95}"), width)
        };
        let mut lines: Vec<String> = levels.iter().skip(skipped).take(ROWS).map(row).collect();
        let phase = if tally.measuring_since.is_none() { "warm-up" } else { "measuring" };
        let doing = format!("{}: {phase}, {} of {}", self.name, tally.ended, self.planned);
        lines.push(packed(std::iter::once(doing).chain(self.now(tally)), width));
        lines.push(packed(self.progress(tally, course), width));
        lines.join("\n")
    }

    /// Parts such as "level 3 of 10", "about 70 s left" and "so far 20, 20 to 25 possible".
    fn progress(&self, tally: &Tally, course: &Course) -> Vec<String> {
        let at = course.ahead.iter().position(|(level, _)| *level == self.level);
        let at = at.filter(|_| course.visiting_since.is_none());
        let mut parts = vec![match at {
            Some(at) => format!("level {} of {}", at + 1, course.ahead.len()),
            None => "short visits until the answer is certain".to_owned(),
        }];
        // The rate gives the time left of this level, its latency that of the levels ahead. The visits come on top.
        let waves: f64 = at.map_or(0.0, |at| course.ahead[at + 1..].iter().map(|(_, waves)| waves).sum());
        let latency_s = tally.latency.value_at_quantile(0.5) as f64 / 1e6;
        let left = self.planned.saturating_sub(tally.ended) as f64;
        let own_s = self.rates().map(|(rate, _)| left / rate).filter(|_| at.is_some());
        let visited_s = course.visiting_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        let visits_s = (course.visits * course.service_s - visited_s).max(0.0);
        let all_s = own_s.unwrap_or_default() + waves * latency_s + visits_s;
        if all_s > 0.0 && (own_s.is_some() || at.is_none()) {
            parts.push(format!("about {} left", whole_seconds(all_s)));
        }
        let known = course.levels.keys().chain(course.ahead.iter().map(|(level, _)| level));
        let highest = known.copied().max().unwrap_or_default();
        parts.extend(course.choice.map(|(choice, [low, high])| match high.min(highest) {
            high if low >= high => format!("so far {choice}"),
            high => format!("so far {choice}, {low} to {high} possible"),
        }));
        parts
    }

    fn in_a_line(&self, tally: &Tally) -> String {
        let phase = if tally.measuring_since.is_none() { " warm-up" } else { "" };
        let left = self.planned.saturating_sub(tally.ended);
        let eta = self.rates().map_or_else(|| "-".to_owned(), |(rate, _)| whole_seconds(left as f64 / rate));
        let (name, done, now) = (&self.name, tally.ended, self.now(tally).join(", "));
        format!("{name}{phase}: {done} done, {left} left, ETA {eta}, {now}")
    }

    fn at_end(&self, tally: &Tally, load_s: f64) -> String {
        let ended = format!("{} ended: {} in {}", self.name, count(tally.ended, "request"), seconds(load_s));
        std::iter::once(ended).chain(figures(tally)).collect::<Vec<_>>().join(", ")
    }
}

/// Percentiles of the successes so far, and failures by kind.
fn figures(tally: &Tally) -> Vec<String> {
    let time = |name: &str, times: &Histogram<u32>, p: f64| {
        (!times.is_empty()).then(|| format!("{name} {}", shortly(times.value_at_quantile(p) as f64 / 1e6)))
    };
    let Tally { latency, ttft, failed, .. } = tally;
    let times = [time("P50", latency, 0.5), time("P95", latency, 0.95), time("TTFT", ttft, 0.5)];
    let failures = Failure::ALL.iter().zip(failed).filter(|(_, count)| **count > 0);
    times.into_iter().flatten().chain(failures.map(|(kind, count)| format!("{count} {kind}"))).collect()
}

/// Cuts a line to the width. The last column stays free, since some terminals wrap as soon as it is written.
fn cut(line: &str, width: usize) -> String {
    line.chars().take(width.saturating_sub(1).max(1)).collect::<String>().trim_end().to_owned()
}

/// Puts as many parts on each line as fit. A part that is too long for a line is cut, or the terminal would wrap it.
fn packed(parts: impl IntoIterator<Item = String>, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        let part = cut(&part, width);
        match lines.last_mut() {
            Some(line) if line.chars().count() + 2 + part.chars().count() < width => *line += &format!("  {part}"),
            _ => lines.push(part),
        }
    }
    lines.join("\n")
}

/// A time in seconds, formatted to about the two significant digits that the histograms have.
fn shortly(value: f64) -> String {
    match value {
        ..0.01 => format!("{:.1} ms", value * 1e3),
        ..1.0 => format!("{:.0} ms", value * 1e3),
        ..10.0 => format!("{value:.1} s"),
        _ => format!("{value:.0} s"),
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
    use crate::client::outcome::Phase;
    use crate::monitor::Live;
    use crate::monitor::tests::{counts, failed};

    /// The view after ten seconds.
    fn view(counts: &Counts) -> (View, Tally) {
        let began = Instant::now();
        let (mut view, tally) = (View::new(counts, began), counts.tally.lock().clone());
        view.note(&tally, began + Duration::from_secs(10));
        (view, tally)
    }

    #[test]
    fn what_is_shown_of_a_level() {
        let counts_of_warmup = Arc::new(Live::default()).begin(2, 3, 30);
        counts_of_warmup.issued(Phase::Warmup);
        let (warming, tally) = view(&counts_of_warmup);
        assert_eq!(
            warming.in_a_line(&tally),
            "level 2 (visit 3) warm-up: 0 done, 30 left, ETA -, 1 in flight, - req/s"
        );
        assert_eq!(
            warming.on_terminal(&tally, &Course::default(), 80),
            "level 2 (visit 3): warm-up, 0 of 30  1 in flight  - req/s\nshort visits until the answer is certain"
        );
        let counts = counts();
        let (measuring, mut tally) = view(&counts);
        assert_eq!(
            measuring.in_a_line(&tally),
            "level 50: 100 done, 60 left, ETA 6 s, 10 in flight, 9.0 req/s, P50 395 ms, P95 578 ms, TTFT 50 ms, 3 Timeout, 6 ServerError"
        );
        assert_eq!(
            measuring.at_end(&tally, 10.0),
            "level 50 ended: 100 requests in 10.00 s, P50 395 ms, P95 578 ms, TTFT 50 ms, 3 Timeout, 6 ServerError"
        );
        tally.held = 5;
        let line = measuring.in_a_line(&tally);
        assert!(line.contains("10 in flight, 5 held back after failures, 9.0 req/s"), "{line}");
    }

    #[test]
    fn the_curve_grows_and_the_time_left_is_that_of_all_levels() {
        let counts = counts();
        let (view, tally) = view(&counts);
        let mut course = Course { ahead: vec![(1, 100.0), (50, 3.2), (60, 10.0)], ..Course::default() };
        course.levels = [(1, (4.5, Some(0.25)))].into();
        course.choice = Some((20, [20, 25]));
        let text = view.on_terminal(&tally, &course, 80);
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows[0].split_whitespace().collect::<Vec<_>>(), ["1", &"█".repeat(20), "4.5/s", "P95", "250", "ms"]);
        assert_eq!(rows[1].split_whitespace().collect::<Vec<_>>(), [">", "50", &"█".repeat(40), "9.0/s"]);
        // 60 requests are left at 10 per second, and then ten waves of 395 ms.
        assert_eq!(rows.last(), Some(&"level 2 of 3  about 10 s left  so far 20, 20 to 25 possible"), "{text}");
        course.levels = (1..100).map(|level| (level, (1.0, None))).collect();
        let many = view.on_terminal(&tally, &course, 80);
        assert!(many.lines().count() <= ROWS + 4 && many.contains(">   50"), "{many}");
    }

    #[test]
    fn the_view_fits_any_width() {
        let counts = counts();
        Failure::ALL.iter().for_each(|&kind| {
            counts.issued(Phase::Measured);
            counts.ended(&failed(kind));
        });
        let (view, tally) = view(&counts);
        for width in [20, 40, 60, 80, 200] {
            let text = view.on_terminal(&tally, &Course::default(), width);
            assert!(text.lines().all(|line| line.chars().count() < width), "{width}:\n{text}");
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.contains("measuring") && words.contains("1 Malformed 1 EmptyOutput"), "{width}:\n{text}");
        }
    }

    #[test]
    fn hidden_and_shown_again_it_keeps_its_past_and_quiet_it_has_none() {
        let mut monitor = LevelMonitor::new(counts(), false);
        monitor.show();
        monitor.hide();
        let past = monitor.view.as_ref().map(|view| view.recent.len());
        monitor.show();
        assert!(monitor.view.is_none() && monitor.shown.is_some());
        monitor.hide();
        assert!(monitor.view.as_ref().map(|view| view.recent.len()) >= past && monitor.view.is_some());
        let mut quiet = LevelMonitor::new(counts(), true);
        quiet.show();
        assert!(quiet.view.is_none() && quiet.shown.is_none());
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let (mut view, mut tally) = view(&counts());
        for _ in 1..=20 {
            tally.ended += 50;
            tally.succeeded += 25;
            let last = view.recent.back().expect("a moment").0;
            view.note(&tally, last + Duration::from_secs(1));
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
