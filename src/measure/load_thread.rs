//! The load thread, and the handle by which Criterion's thread follows a measurement on it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::criterion::Mode;
use super::plan::SAMPLES;
use super::stop::Stopper;
use super::sweep::SweepError;
use crate::client::outcome::{Reply, RequestOutcome};
use crate::client::{Endpoint, Transport, redact};
use crate::figures::{EarlyEnd, LeftOut, LevelState, Requests, Stage, Step};
use crate::load::closed_loop::{self, LoopPlan, Observer, Ticket, Window};
use crate::load::open_loop::{self, Arrivals, Arrived};
use crate::load::preflight::{self, Probe};
use crate::load::recorder::{Recorded, Recorder, Visits};
use crate::load::server_load::ServerWatch;
use crate::load::target::Target;
use crate::monitor::{Counts, LevelMonitor, Live};
use crate::prompts::Prompt;
use crate::record::{ResultsError, Run, SidecarWriter, criterion_id, sidecar_name};
use crate::report::words;
use crate::settings::{Config, Settings};
use crate::simulator::Simulator;

/// One measurement to make.
#[derive(Clone, Copy)]
pub(super) struct Planned {
    pub step: Step,
    pub plan: LoopPlan,
    /// The server asked for no requests before this time.
    pub not_before: Option<Instant>,
    /// Whether it is the first measurement of the run.
    pub is_first: bool,
}

impl Planned {
    /// A visit; `number` counts the visits of the run.
    pub fn visit(plan: LoopPlan, number: u32, not_before: Option<Instant>) -> Self {
        let step = Step { level: plan.level, stage: Stage::Visit, round: number };
        Planned { step, plan, not_before, is_first: false }
    }
}

/// A loop on the load thread, as Criterion's thread sees it: one measurement, or visits from level to level.
pub(super) struct InProgress {
    /// The current measurement, or the first visit.
    planned: Planned,
    /// Sends the plan of the next visit. Unused, and its receiver closed, if the loop makes a single measurement.
    orders: tokio::sync::mpsc::Sender<LoopPlan>,
    windows: mpsc::Receiver<Window>,
    /// Samples handed to Criterion so far, nanoseconds per wave; without the warm-up.
    handed: Vec<f64>,
    warmed_up: bool,
    visited: mpsc::Receiver<Recorded>,
    /// Receives the record once the sidecar is on disk.
    ended: mpsc::Receiver<Result<Recorded, ResultsError>>,
    stopper: Stopper,
    watch: Option<Arc<ServerWatch>>,
    begun: mpsc::Receiver<Arc<Counts>>,
    monitor: Option<LevelMonitor>,
    quiet: bool,
}

/// The consumers of requests and windows, apart from the figures.
struct Outlets {
    sidecar: SidecarWriter,
    live: Arc<Live>,
    /// The number of the loop's first visit; 0 for a loop that makes only one measurement.
    first: u32,
    /// One entry per visit.
    counts: Vec<Arc<Counts>>,
    begun: mpsc::Sender<Arc<Counts>>,
    windows: mpsc::Sender<Window>,
    /// If the loop may start over, Criterion gets its windows only once all are measured, but the warm-up at once.
    may_begin_anew: bool,
    warmed_up: bool,
    untold: Vec<Window>,
}

impl Observer for Outlets {
    fn begins(&mut self, plan: &LoopPlan, visit: u32) {
        self.sidecar.flush();
        let counts = self.live.begin(plan.level, self.first + visit, plan.of_warm_engine());
        self.may_begin_anew = plan.cold > 0;
        self.counts.push(counts.clone());
        // The receiver is gone only if the run has failed.
        let _ = self.begun.send(counts);
    }

    fn issued(&mut self, ticket: Ticket) {
        self.counts[ticket.visit as usize].issued(ticket.phase);
    }

    fn ended(&mut self, outcome: RequestOutcome, _: Reply) {
        let visit = outcome.visit.map_or(0, |visit| visit - self.first);
        self.counts[visit as usize].ended(&outcome);
        self.sidecar.push(outcome);
    }

    fn held(&mut self, permits: usize) {
        if let Some(counts) = self.counts.last() {
            counts.held(permits);
        }
    }

    fn window(&mut self, window: Window) {
        self.untold.push(window);
        let is_told = !self.may_begin_anew || !self.warmed_up || self.untold.len() == SAMPLES;
        self.warmed_up = true;
        if is_told {
            // The receiver is gone only if Criterion's thread panicked.
            self.untold.drain(..).for_each(|window| self.windows.send(window).unwrap_or_default());
        }
    }

    fn anew(&mut self, _: &LeftOut) {
        self.untold.clear();
        if let Some(counts) = self.counts.last() {
            counts.anew();
        }
    }
}

impl InProgress {
    /// The next window, as the time of `iterations` waves; `None` if there are no more windows or nothing works.
    pub fn next_sample(&mut self, iterations: u64) -> Option<Duration> {
        if self.monitor.is_none() {
            self.watch_next();
        }
        self.monitor.iter_mut().for_each(LevelMonitor::show);
        let per_wave = self.next_window();
        // Criterion prints after its warm-up, after the last sample, and when it is interrupted.
        if per_wave.is_none() || self.handed.is_empty() || self.handed.len() == SAMPLES {
            self.monitor.iter_mut().for_each(LevelMonitor::hide);
        }
        Some(per_wave?.saturating_mul(u32::try_from(iterations).unwrap_or(u32::MAX)))
    }

    fn watch_next(&mut self) {
        let Ok(counts) = self.begun.recv() else { return };
        match &mut self.monitor {
            Some(monitor) => monitor.go_on(counts),
            none => *none = Some(LevelMonitor::new(counts, self.quiet)),
        }
    }

    fn next_window(&mut self) -> Option<Duration> {
        // The channel is closed once the loop has ended or panicked.
        let window = self.windows.recv().ok()?;
        if !self.warmed_up && self.planned.is_first && window.succeeded == 0 {
            self.stopper.stop(EarlyEnd::WarmUpFailed);
            return None;
        }
        let per_wave = time_per_wave(window.duration_s(), window.succeeded as u64, self.planned.step.level);
        if std::mem::replace(&mut self.warmed_up, true) {
            self.handed.push(per_wave.as_nanos() as f64);
        }
        Some(per_wave)
    }

    /// Waits for the end of the current visit; `None` if the loop has ended.
    pub fn visited(&mut self) -> Option<Recorded> {
        self.watch_next();
        self.monitor.iter_mut().for_each(LevelMonitor::show);
        let mut end = self.visited.recv().ok()?;
        complete(&mut end, &self.stopper, self.watch.as_deref());
        Some(end)
    }

    pub fn go_on(&mut self, plan: LoopPlan) {
        // A stopped loop accepts no orders.
        let _ = self.orders.blocking_send(plan);
    }

    /// Ends the loop: waits for the drain and the sidecar, and completes the record. After visits,
    /// the record holds only the requests that ended after the last one.
    pub fn finish(mut self) -> Result<Recorded, SweepError> {
        drop(self.orders);
        self.monitor.iter_mut().for_each(LevelMonitor::show);
        let mut end = self.ended.recv().map_err(|_| ended_early())??;
        self.monitor.into_iter().for_each(|monitor| monitor.finish(end.sent, end.load_s));
        let Step { level, stage, .. } = self.planned.step;
        if stage == Stage::Sweep {
            complete(&mut end, &self.stopper, self.watch.as_deref());
            end.measurement.criterion_id = criterion_id(level);
            end.measurement.sample_ns = self.handed;
        }
        Ok(end)
    }
}

/// Fills in what the loop does not know: why it was interrupted, and the server's metrics during the window.
fn complete(end: &mut Recorded, stopper: &Stopper, watch: Option<&ServerWatch>) {
    let measurement = &mut end.measurement;
    if measurement.state == LevelState::Cut {
        measurement.reason = stopper.reason();
    }
    measurement.server = measurement.window_s.zip(watch).and_then(|(window, watch)| {
        let [from, to] = window.map(|at| end.began + Duration::from_secs_f64(at));
        watch.between(from, to)
    });
}

fn ended_early() -> SweepError {
    SweepError::Thread(std::io::Error::other("it ended before its measurement did"))
}

/// Time x level / successes: the time in which `level` successes arrive. Zero successes count as one.
pub(super) fn time_per_wave(seconds: f64, succeeded: u64, level: usize) -> Duration {
    let seconds = seconds * level as f64 / succeeded.max(1) as f64;
    // Criterion drops a benchmark with a sample of 0 ns.
    Duration::from_secs_f64(seconds).max(Duration::from_nanos(1))
}

type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The load thread: one current-thread runtime for the whole sweep, so that connections are reused.
pub(super) struct Load {
    jobs: tokio::sync::mpsc::UnboundedSender<Job>,
    pub stopper: Stopper,
    target: Arc<Target>,
    pub live: Arc<Live>,
    /// Whether to show no live progress.
    quiet: bool,
    watch: Option<Arc<ServerWatch>>,
    /// The embedded simulator if it is the endpoint; it must stay alive.
    pub simulator: Option<Simulator>,
}

/// A transport to the endpoint, and the embedded simulator if that is the endpoint.
pub fn transport(settings: &Settings) -> Result<(Transport, Option<Simulator>), SweepError> {
    let llm = &settings.config.llm;
    let Endpoint::Url(url) = &settings.endpoint else { return simulated(settings) };
    let request = &settings.config.benchmark.request;
    let transport = Transport::new(url, request.kind, llm, settings.api_key.as_ref())?;
    Ok((transport.hiding(redact::secrets(&request.extra_body)), None))
}

fn simulated(settings: &Settings) -> Result<(Transport, Option<Simulator>), SweepError> {
    let simulator = Simulator::start(settings.config.simulator.clone(), 0)?;
    Ok((transport_to(settings, &simulator)?, Some(simulator)))
}

fn transport_to(settings: &Settings, simulator: &Simulator) -> Result<Transport, SweepError> {
    let url = reqwest::Url::parse(&simulator.base_url()).map_err(std::io::Error::other)?;
    let Config { llm, benchmark, .. } = &settings.config;
    Ok(Transport::new(&url, benchmark.request.kind, llm, None)?)
}

/// Starts reading the server's metrics, over separate connections.
fn watch(settings: &Settings, simulator: Option<&Simulator>) -> Result<Arc<ServerWatch>, SweepError> {
    let transport = match simulator {
        Some(simulator) => transport_to(settings, simulator)?,
        None => transport(settings)?.0,
    };
    Ok(Arc::new(ServerWatch::start(transport, || eprintln!("{}", words::no_server_metrics()))?))
}

impl Load {
    pub fn start(
        settings: &Settings,
        mode: Mode,
        prompts: &[Prompt],
        run: &Run,
        live: Arc<Live>,
        stopper: Stopper,
    ) -> Result<Self, SweepError> {
        let Config { llm, benchmark, .. } = &settings.config;
        // Tests and `--all-targets` never contact a real server.
        let (transport, simulator) = if mode == Mode::Measure { transport(settings)? } else { simulated(settings)? };
        let wanted = settings.server_metrics && mode == Mode::Measure;
        let watch = wanted.then(|| watch(settings, simulator.as_ref())).transpose()?;
        let salt = format!("{}/{}", benchmark.seed, *run.manifest.run_id);
        let target = Target::new(transport, &llm.model, &benchmark.request, prompts, salt);
        let minutes = benchmark.budget.max_minutes.filter(|_| mode == Mode::Measure);
        let timed = stopper.clone();
        let (jobs, incoming) = tokio::sync::mpsc::unbounded_channel::<Job>();
        std::thread::Builder::new().name("load".to_owned()).spawn(move || serve(incoming, timed, minutes))?;
        Ok(Load { jobs, stopper, target: Arc::new(target), live, quiet: settings.quiet, watch, simulator })
    }

    /// Starts a loop with this measurement; its windows arrive as they close. A visit may be
    /// followed by further visits, and each is reported as it ends.
    pub fn begin(&self, planned: &Planned, run: &Run) -> Result<InProgress, SweepError> {
        let (planned, stop, target) = (*planned, self.stopper.subscribe(), self.target.clone());
        let ((begins, begun), (to_criterion, windows)) = (mpsc::channel(), mpsc::channel());
        let ((to, visited), (done, ended)) = (mpsc::channel(), mpsc::channel());
        let (orders, next) = tokio::sync::mpsc::channel(1);
        let step = planned.step;
        let outlets = Outlets {
            sidecar: run.sidecar(&sidecar_name(step))?,
            live: self.live.clone(),
            first: step.round,
            counts: Vec::new(),
            begun: begins,
            windows: to_criterion,
            may_begin_anew: false,
            warmed_up: false,
            untold: Vec::new(),
        };
        let visits = (step.stage == Stage::Visit).then_some(Visits { first: step.round, to });
        let room = Requests::with_room_for(planned.plan.tickets());
        self.send(move || async move {
            let (recorded, outlets) = measure(planned, stop, target, outlets, next, visits, room).await;
            let _ = done.send(outlets.sidecar.finish().map(|()| recorded));
        })?;
        Ok(InProgress {
            planned,
            orders,
            windows,
            handed: Vec::new(),
            warmed_up: false,
            visited,
            ended,
            stopper: self.stopper.clone(),
            watch: self.watch.clone(),
            begun,
            monitor: None,
            quiet: self.quiet,
        })
    }

    /// Runs the open loop; also returns the record of each request.
    pub fn arrivals(
        &self,
        plan: Arrivals,
        round: u32,
        run: &Run,
    ) -> Result<(Arrived, Vec<RequestOutcome>), SweepError> {
        let (target, stop) = (self.target.clone(), self.stopper.subscribe());
        let sidecar = run.sidecar(&format!("arrivals-{round}.jsonl"))?;
        let ended = self.ask(move || async move {
            let (mut outcomes, mut sidecar) = (Vec::with_capacity(plan.count), sidecar);
            let send = |seq| target.send_in_round(round, plan.permits, seq);
            let ended = |mut outcome: RequestOutcome| {
                outcome.prompt_size = target.prompt_size(outcome.seq);
                sidecar.push(outcome.clone());
                outcomes.push(outcome);
            };
            let arrived = open_loop::run(&plan, stop, send, ended).await;
            sidecar.finish().map(|()| (arrived, outcomes))
        })?;
        Ok(ended?)
    }

    fn send<F: Future<Output = ()> + 'static>(
        &self,
        job: impl FnOnce() -> F + Send + 'static,
    ) -> Result<(), SweepError> {
        let job: Job = Box::new(move || Box::pin(job()));
        self.jobs.send(job).map_err(|_| SweepError::Thread(std::io::Error::other("it has ended")))
    }

    /// Sends a job and waits for its result.
    fn ask<T: Send + 'static, F: Future<Output = T> + 'static>(
        &self,
        job: impl FnOnce() -> F + Send + 'static,
    ) -> Result<T, SweepError> {
        let (done, finished) = mpsc::channel();
        self.send(move || async move {
            let _ = done.send(job().await);
        })?;
        finished.recv().map_err(|_| ended_early())
    }

    /// Sends two of the run's prompts. If the run is stopped, the request in flight is given up.
    pub fn preflight(&self, prompts: &[Prompt], run: &Run) -> Result<Preflight, SweepError> {
        let (target, mut stop) = (self.target.clone(), self.stopper.subscribe());
        let (prompts, mut sidecar) = (prompts.to_vec(), run.sidecar("preflight.jsonl")?);
        let preflight = self.ask(move || async move {
            let mut sent = 0;
            let record = |outcome| {
                sent += 1;
                sidecar.push(outcome);
            };
            let asked =
                async { (preflight::preflight(&target, &prompts, record).await, target.transport.models().await) };
            let (probes, models) = tokio::select! {
                answered = asked => answered,
                _ = stop.wait_for(|&stop| stop) => Default::default(),
            };
            sidecar.finish().map(|()| Preflight { probes, models, sent })
        })?;
        Ok(preflight?)
    }

    /// Sends one request, for test mode, and returns how long it took.
    pub fn one_request(&self) -> Duration {
        let (target, began) = (self.target.clone(), Instant::now());
        let reply = self.ask(move || async move { target.send(0, 0).await });
        let failure = reply.map_or_else(|error| Some(error.to_string()), |r| r.failure.map(|f| f.message));
        assert_eq!(failure, None, "one request to the simulator");
        began.elapsed().max(Duration::from_nanos(1))
    }
}

pub(super) struct Preflight {
    pub probes: Vec<Probe>,
    /// The models that the server lists; `None` if it does not say.
    pub models: Option<Vec<String>>,
    pub sent: u64,
}

fn serve(mut jobs: tokio::sync::mpsc::UnboundedReceiver<Job>, stopper: Stopper, max_minutes: Option<f64>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a tokio runtime");
    runtime.block_on(async move {
        if let Some(minutes) = max_minutes {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs_f64(60.0 * minutes)).await;
                stopper.stop(EarlyEnd::OutOfTime);
            });
        }
        while let Some(job) = jobs.recv().await {
            job().await;
        }
    });
}

async fn measure(
    planned: Planned,
    mut stop: watch::Receiver<bool>,
    target: Arc<Target>,
    outlets: Outlets,
    mut orders: tokio::sync::mpsc::Receiver<LoopPlan>,
    visits: Option<Visits>,
    room: Requests,
) -> (Recorded, Outlets) {
    if visits.is_none() {
        orders.close();
    }
    let Planned { step, plan, not_before, .. } = planned;
    if let Some(at) = not_before {
        tokio::select! {
            () = tokio::time::sleep_until(at.into()) => {}
            _ = stop.wait_for(|&stop| stop) => {}
        }
    }
    let mut recorder = Recorder::start(&plan, target.clone(), outlets, visits, room);
    let send = |ticket: Ticket| target.send_in_round(step.round + ticket.visit, ticket.level, ticket.seq);
    let record = closed_loop::visits(&plan, orders, stop, send, &mut recorder).await;
    recorder.finish(step, record)
}
