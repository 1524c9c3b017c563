//! Detects whether this client is the bottleneck: CPU time of the load thread, and lateness of its timers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::figures::{ClientLoad, Distribution, histogram};

const TICK: Duration = Duration::from_millis(20);
/// Tokio's timer rounds up to a whole millisecond, and so does the wait for events below it.
const TIMER_ROUNDING: Duration = Duration::from_millis(2);

/// Monitors the thread that it was started on, which must be the load thread, while its runtime runs.
#[derive(Debug)]
pub struct SelfCheck {
    /// End of the warm-up, and CPU time at that point.
    from: Option<(Instant, Option<Duration>)>,
    /// End of the latest window, and CPU time at that point.
    to: Option<(Instant, Option<Duration>)>,
    /// Timer lags in microseconds. A histogram does not grow with their number.
    lags_us: Arc<Mutex<Histogram<u64>>>,
    /// Aborts the task when dropped.
    _ticker: JoinSet<()>,
}

impl SelfCheck {
    /// Starts monitoring. Call it inside the load thread's runtime.
    pub fn start() -> Self {
        let lags_us = Arc::new(Mutex::new(histogram(3)));
        let ticker = JoinSet::from_iter([tick(lags_us.clone())]);
        SelfCheck { from: None, to: None, lags_us, _ticker: ticker }
    }

    /// The warm-up or a window ended. Call it on the load thread.
    pub fn window_ended(&mut self) {
        let now = (Instant::now(), cpu_time(Cpu::OfThread));
        if self.from.is_none() {
            self.from = Some(now);
            self.lags_us.lock().reset();
        } else {
            self.to = Some(now);
        }
    }

    /// The load between the end of the warm-up and that of the last window.
    pub fn result(&self) -> ClientLoad {
        let lags = self.lags_us.lock();
        let in_seconds = |us: u64| us as f64 / 1e6;
        let bins: Vec<_> =
            lags.iter_recorded().map(|bin| (in_seconds(bin.value_iterated_to()), bin.count_at_value())).collect();
        ClientLoad {
            cpu: self.from.zip(self.to).and_then(|((from, cpu_before), (to, cpu))| {
                let wall = to.duration_since(from).as_secs_f64();
                let cpu = cpu?.saturating_sub(cpu_before?).as_secs_f64();
                (wall > 0.0).then(|| cpu / wall)
            }),
            timer_lag_p95_s: Distribution::of_binned(&bins).and_then(|lags| lags.p95),
        }
    }
}

async fn tick(lags_us: Arc<Mutex<Histogram<u64>>>) {
    loop {
        let due = Instant::now() + TICK;
        tokio::time::sleep_until(due.into()).await;
        let lag = due.elapsed().saturating_sub(TIMER_ROUNDING);
        let lag = u64::try_from(lag.as_micros()).unwrap_or(u64::MAX);
        lags_us.lock().saturating_record(lag);
    }
}

#[derive(Clone, Copy)]
pub enum Cpu {
    OfThread,
    OfProcess,
}

/// User and system CPU time of the calling thread or this process so far; `None` if the system does not report it.
#[cfg_attr(not(unix), expect(unused_variables))]
pub fn cpu_time(of: Cpu) -> Option<Duration> {
    #[cfg(unix)]
    {
        use rustix::time::{ClockId, clock_gettime};
        let clock = match of {
            Cpu::OfThread => ClockId::ThreadCPUTime,
            Cpu::OfProcess => ClockId::ProcessCPUTime,
        };
        // Infallible in practice: CPU clocks start at 0, so the time is never negative.
        Duration::try_from(clock_gettime(clock)).ok()
    }
    #[cfg(not(unix))]
    None
}
