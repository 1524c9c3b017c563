//! A sleep that is accurate to about ten microseconds.
//!
//! Tokio's timers have a resolution of one millisecond: tokens of streams that began within the same
//! millisecond would all arrive at once, and late.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// A thread that wakes all sleepers.
pub struct Clock {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    sleepers: Mutex<Sleepers>,
    /// Notified when the new sleeper is due before all others.
    sooner: Condvar,
}

#[derive(Default)]
struct Sleepers {
    /// Sleepers by due time; the number distinguishes those due at the same instant.
    waiting: BTreeMap<(Instant, u64), oneshot::Sender<()>>,
    number: u64,
}

impl Clock {
    pub fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let ticking = shared.clone();
        std::thread::spawn(move || ticking.tick());
        Clock { shared }
    }

    pub async fn sleep_until(&self, due: Instant) {
        let woken = {
            let mut sleepers = self.shared.sleepers.lock().expect("nobody panics with it");
            let (wake, woken) = oneshot::channel();
            sleepers.number += 1;
            let place = (due, sleepers.number);
            sleepers.waiting.insert(place, wake);
            if sleepers.waiting.first_key_value().is_some_and(|(&first, _)| first == place) {
                self.shared.sooner.notify_one();
            }
            woken
        };
        woken.await.expect("the clock ticks");
    }
}

impl Shared {
    fn tick(&self) {
        let mut sleepers = self.sleepers.lock().expect("nobody panics with it");
        loop {
            let now = Instant::now();
            let later = sleepers.waiting.split_off(&(now, u64::MAX));
            for wake in std::mem::replace(&mut sleepers.waiting, later).into_values() {
                // This fails only if the sleeper is gone.
                let _ = wake.send(());
            }
            let next = sleepers.waiting.first_key_value().map(|(&(due, _), _)| due - now);
            let waited = self.sooner.wait_timeout(sleepers, next.unwrap_or(Duration::MAX));
            sleepers = waited.expect("nobody panics with it").0;
        }
    }
}
