//! The engine in real time: one thread that makes its steps take as long as they should.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::SimulatorConfig;
use super::engine::{Engine, QueueFull, SequenceId};

struct State {
    /// A sequence's owner hears of each of its tokens.
    engine: Engine<UnboundedSender<()>>,
    stopping: bool,
}

struct Shared {
    state: Mutex<State>,
    /// A sequence was submitted, or the driver is to stop.
    work: Condvar,
    /// The driver is to stop. Apart from `work`, so that arrivals do not wake the driver in mid-step.
    stop: Condvar,
}

/// Why no lock is poisoned.
const NO_PANIC: &str = "no thread panics while it holds the engine";

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }
}

/// The thread that steps the engine. Dropping it ends the thread.
pub(super) struct Driver {
    shared: Arc<Shared>,
    _thread: Joined,
}

/// A thread that is waited for when it is dropped.
pub(super) struct Joined(pub(super) Option<JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        // A panic of the thread has been printed already.
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

    /// Sequences that hold a slot, and sequences that wait for one.
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

/// Steps the engine until told to stop.
///
/// While there is work, each deadline is the one before plus the duration of the step, so that late wake-ups
/// do not add up. The thread itself sleeps, since tokio's timer rounds up to whole milliseconds.
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
            // The next step begins before the tokens are out: a client that answers a completion with its
            // next request meets a step that already runs, however fast the client is.
            step = state.engine.begin_step();
            drop(state);
            for token in tokens.drain(..) {
                // A receiver that is gone has cancelled its sequence, or is about to.
                let _ = token.owner.send(());
            }
            state = shared.lock();
        }
        if state.stopping {
            return;
        }
    }
}

/// The tokens of one request as they come. Dropping it before the last one cancels the sequence.
pub(super) struct Generation {
    id: SequenceId,
    tokens: UnboundedReceiver<()>,
    left: u32,
    shared: Arc<Shared>,
}

impl Generation {
    /// Waits for the next token; `None` if there is none because the engine was stopped.
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
