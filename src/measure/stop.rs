//! What ends a run early: signals, the time budget, an endpoint that does not work.

use std::sync::{Arc, OnceLock, Weak};

use tokio::sync::watch;

use crate::figures::EarlyEnd;
use crate::stdio;

/// The exit code after Ctrl-C, SIGTERM or SIGHUP.
pub const INTERRUPTED: u8 = 130;

/// Stops the running loop and all later ones; only the first reason is kept: a signal, no time left, or that every
/// request of the first warm-up or visit failed, when the endpoint is at fault, not the concurrency.
#[derive(Clone, Debug)]
pub(super) struct Stopper {
    signal: Arc<watch::Sender<bool>>,
    reason: Arc<OnceLock<EarlyEnd>>,
}

impl Stopper {
    /// The first signal stops the run gracefully. A second one, or one after the sweep, ends the process.
    pub fn on_signals() -> std::io::Result<Self> {
        let stopper = Stopper { signal: Arc::new(watch::Sender::new(false)), reason: Arc::default() };
        // This thread lives as long as the process: so do the signal handlers, and nothing else would react to them.
        let (sweep, reason) = (Arc::downgrade(&stopper.signal), stopper.reason.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let watch = move || runtime.block_on(stop_on_signal(sweep, reason));
        std::thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
        Ok(stopper)
    }

    pub fn stop(&self, reason: EarlyEnd) {
        self.reason.get_or_init(|| reason);
        self.signal.send_replace(true);
    }

    pub fn reason(&self) -> Option<EarlyEnd> {
        self.reason.get().cloned()
    }

    /// The received value becomes true when it is time to stop.
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.signal.subscribe()
    }
}

async fn stop_on_signal(sweep: Weak<watch::Sender<bool>>, reason: Arc<OnceLock<EarlyEnd>>) {
    let mut asked = false;
    loop {
        let signal = signal().await;
        if signal == Signal::HangUp {
            stdio::leave_terminal();
            if asked {
                // A lost connection causes two SIGHUPs, one from the shell and one from the kernel.
                continue;
            }
        }
        let say = |text: &str| stdio::aloud(&format!("\ninterrupted{text}\n"));
        let Some(signal) = sweep.upgrade().filter(|_| !asked) else {
            stdio::let_go();
            say("");
            std::process::exit(INTERRUPTED.into());
        };
        asked = true;
        Stopper { signal, reason: reason.clone() }.stop(EarlyEnd::Interrupted);
        say(": giving up the current level (interrupt again to kill)");
    }
}

/// A signal that asks the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C or SIGTERM.
    End,
    /// SIGHUP: the terminal is gone.
    HangUp,
}

pub async fn signal() -> Signal {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let hang_up = (!is_hang_up_ignored()).then(|| signal(SignalKind::hangup()).ok()).flatten();
        let hung_up = async {
            match hang_up {
                Some(mut hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            return tokio::select! {
                _ = tokio::signal::ctrl_c() => Signal::End,
                _ = terminate.recv() => Signal::End,
                _ = hung_up => Signal::HangUp,
            };
        }
    }
    // If no handler can be installed, the default action ends the process.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
    Signal::End
}

/// Whether SIGHUP is ignored, as under `nohup`: a handler would undo that. If unknown, assumes that it is.
#[cfg(unix)]
fn is_hang_up_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    ignored.is_none_or(|mask| mask & 1 != 0)
}
