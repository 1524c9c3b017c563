//! Runs the engine in real time: one thread makes each step take as long as it should.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::SimulatorConfig;
use super::engine::{Engine, QueueFull, SequenceId};

struct State {
    /// The owner of a sequence is the channel that is notified of each of its tokens.
    engine: Engine<UnboundedSender<()>>,
    stopping: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Signals that a sequence was submitted or that the driver is to stop.
    work: Condvar,
    /// Signals that the driver is to stop. Separate from `work`, so that arrivals do not wake the driver mid-step.
    stop: Condvar,
}

/// The reason that the lock is never poisoned.
const NO_PANIC: &str = "no thread panics while it holds the engine";

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }
}

/// Handle to the thread that steps the engine. Dropping it ends the thread.
pub(super) struct Driver {
    shared: Arc<Shared>,
    _thread: Joined,
}

/// A thread that is joined on drop.
pub(super) struct Joined(pub(super) Option<JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        // If the thread panicked, the panic has already been printed.
        let _ = self.0.take().map(JoinHandle::join);
    }
}

impl Driver {
    pub(super) fn start(config: &SimulatorConfig) -> io::Result<Self> {
        let state = Mutex::new(State { engine: Engine::new(config), stopping: false });
        let shared = Arc::new(Shared { state, work: Condvar::new(), stop: Condvar::new() });
        let thread = thread::Builder::new().name("simulator-engine".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || run(&shared)
        })?;
        Ok(Self { shared, _thread: Joined(Some(thread)) })
    }

    pub(super) fn submit(&self, prompt_tokens: u32, output_tokens: u32) -> Result<Generation, QueueFull> {
        let (sender, tokens) = unbounded_channel();
        let id = self.shared.lock().engine.submit(sender, prompt_tokens, output_tokens)?;
        self.shared.work.notify_one();
        Ok(Generation { id, tokens, left: output_tokens, shared: Arc::clone(&self.shared) })
    }

    /// Number of running sequences (those that hold a slot) and of waiting ones.
    pub(super) fn load(&self) -> (usize, usize) {
        self.shared.lock().engine.load()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.work.notify_all();
        self.shared.stop.notify_all();
    }
}

/// Steps the engine until it is told to stop.
///
/// While there is work, each deadline is the previous deadline plus the step's duration, so that late wake-ups
/// do not accumulate. The wait is a thread's, since tokio's timer rounds up to whole milliseconds.
fn run(shared: &Shared) {
    let mut tokens = Vec::new();
    let mut state = shared.lock();
    loop {
        state = shared.work.wait_while(state, |state| state.engine.is_idle() && !state.stopping).expect(NO_PANIC);
        let mut deadline = Instant::now();
        let mut step = state.engine.begin_step();
        while let Some(duration) = step {
            deadline += duration;
            let left = deadline.saturating_duration_since(Instant::now());
            state = shared.stop.wait_timeout_while(state, left, |state| !state.stopping).expect(NO_PANIC).0;
            if state.stopping {
                return;
            }
            state.engine.end_step(&mut tokens);
            // The next step begins before the tokens are sent. However fast a client follows a completion with
            // its next request, that request then arrives during a running step.
            step = state.engine.begin_step();
            drop(state);
            for token in tokens.drain(..) {
                // If the receiver is gone, its sequence has been cancelled or is about to be.
                let _ = token.owner.send(());
            }
            state = shared.lock();
        }
        if state.stopping {
            return;
        }
    }
}

/// The tokens of one request as they arrive. Dropping it before the last token cancels the sequence.
pub(super) struct Generation {
    id: SequenceId,
    tokens: UnboundedReceiver<()>,
    left: u32,
    shared: Arc<Shared>,
}

impl Generation {
    /// Waits for the next token; `None` if the engine has stopped.
    pub(super) async fn token(&mut self) -> Option<()> {
        self.tokens.recv().await?;
        self.left -= 1;
        Some(())
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.left > 0 {
            self.shared.lock().engine.cancel(self.id);
        }
    }
}
