//! The engine in real time: one thread that makes its steps take as long as they should.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::SimulatorConfig;
use super::engine::{Engine, QueueFull, SequenceId, Token};

/// What a request hears from the engine at the end of each step.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewToken {
    /// 0 for the answer's first token.
    pub(super) index: u32,
    /// Whether the answer ends with it.
    pub(super) last: bool,
}

struct State {
    engine: Engine<UnboundedSender<NewToken>>,
    stopping: bool,
}

struct Shared {
    state: Mutex<State>,
    /// A sequence was submitted, or the driver is to stop.
    work: Condvar,
    /// The driver is to stop. Apart from `work`, so that arrivals do not wake the driver in mid-step.
    stop: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the engine")
    }
}

/// The thread that steps the engine. Dropping it ends the thread.
pub(super) struct Driver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    /// Starts the thread of an idle engine.
    ///
    /// # Errors
    ///
    /// What the operating system says when it cannot start a thread.
    pub(super) fn start(config: &SimulatorConfig) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { engine: Engine::new(config), stopping: false }),
            work: Condvar::new(),
            stop: Condvar::new(),
        });
        let thread = thread::Builder::new().name("simulator-engine".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || run(&shared)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// A way for requests to reach the engine.
    pub(super) fn handle(&self) -> EngineHandle {
        EngineHandle(Arc::clone(&self.shared))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.work.notify_all();
        self.shared.stop.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already.
            let _ = thread.join();
        }
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
        state = shared
            .work
            .wait_while(state, |state| state.engine.is_idle() && !state.stopping)
            .expect("no thread panics while it holds the engine");
        let mut deadline = Instant::now();
        let mut step = state.engine.begin_step();
        while let Some(duration) = step {
            deadline += duration;
            state = sleep_until(shared, state, deadline);
            if state.stopping {
                return;
            }
            state.engine.end_step(&mut tokens);
            // The next step begins before the tokens are out: a client that answers a completion with its
            // next request meets a step that already runs, however fast the client is.
            step = state.engine.begin_step();
            drop(state);
            send(&mut tokens);
            state = shared.lock();
        }
        if state.stopping {
            return;
        }
    }
}

/// Sleeps with the lock released. Returns early only when the driver is to stop.
fn sleep_until<'a>(shared: &Shared, state: MutexGuard<'a, State>, deadline: Instant) -> MutexGuard<'a, State> {
    let left = deadline.saturating_duration_since(Instant::now());
    shared
        .stop
        .wait_timeout_while(state, left, |state| !state.stopping)
        .expect("no thread panics while it holds the engine")
        .0
}

fn send(tokens: &mut Vec<Token<UnboundedSender<NewToken>>>) {
    for Token { owner, index, last } in tokens.drain(..) {
        // A receiver that is gone has cancelled its sequence, or is about to.
        let _ = owner.send(NewToken { index, last });
    }
}

/// Submits requests to the engine behind a [`Driver`].
#[derive(Clone)]
pub(super) struct EngineHandle(Arc<Shared>);

impl EngineHandle {
    /// Submits a request and returns the stream of its tokens.
    ///
    /// # Errors
    ///
    /// [`QueueFull`], at once.
    pub(super) fn submit(&self, prompt_tokens: u32, output_tokens: u32) -> Result<Generation, QueueFull> {
        let (sender, receiver) = unbounded_channel();
        let id = self.0.lock().engine.submit(sender, prompt_tokens, output_tokens)?;
        self.0.work.notify_one();
        Ok(Generation { id, tokens: receiver, engine: self.clone(), ended: false })
    }

    /// Sequences that hold a slot, and sequences that wait for one.
    pub(super) fn load(&self) -> (usize, usize) {
        self.0.lock().engine.load()
    }
}

/// The tokens of one request as they come. Dropping it before the last one cancels the sequence.
pub(super) struct Generation {
    id: SequenceId,
    tokens: UnboundedReceiver<NewToken>,
    engine: EngineHandle,
    ended: bool,
}

impl Generation {
    /// The next token; `None` only if the engine was stopped before the answer was complete.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<NewToken>> {
        let polled = self.tokens.poll_recv(context);
        if let Poll::Ready(Some(token)) = polled {
            self.ended = token.last;
        }
        polled
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.ended {
            self.engine.0.lock().engine.cancel(self.id);
        }
    }
}
