//! What an answer costs and how sure it is, on servers whose speed changes in time (`tests/common/bed.rs`).
//!
//! Cost is counted in requests, output tokens and service times (the mean latency of a request that is alone), to the end
//! of the last request that is waited for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use llm_concurrency::client::outcome::{Failure, Phase, RequestOutcome};
use llm_concurrency::decide::{Policy, recommend};
use llm_concurrency::figures::{LevelSummary, Measurement, Requests, Sample};
use llm_concurrency::load::closed_loop::LoopPlan;
use llm_concurrency::measure::plan::SAMPLES;
use llm_concurrency::measure::race::{Evidence, Race, Rules, Seen, Visited, grid};
use llm_concurrency::measure::search::Search;
use serde::Deserialize;

use crate::bed::{Lengths, Noise, Request, Run, SMALL, Server, TOKENS_AND_RESIDUAL};
use crate::virtual_server::{Measured, pooled};
use crate::{ACCEPTABLE, Bars, GOOD, GOOD_PICKS, HIGHEST, LARGEST_RATIO, LEVELS, TOTAL, WARMUP, in_parallel, percent};

/// The levels of a list where the knee may lie far out.
const WIDE_LEVELS: [usize; 10] = [1, 2, 5, 10, 25, 50, 100, 200, 300, 400];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The listed levels and confirm rounds.
    List,
    /// Doublings, fill-ins and confirm rounds.
    Rounds,
    /// Short visits until the answer stands.
    Race,
}

impl Method {
    pub const ALL: [Method; 3] = [Method::List, Method::Rounds, Method::Race];

    fn name(self) -> &'static str {
        match self {
            Method::List => "list",
            Method::Rounds => "rounds",
            Method::Race => "auto",
        }
    }

    fn choices(self, at: usize) -> Vec<usize> {
        match self {
            Method::Rounds | Method::Race => (1..=HIGHEST).collect(),
            Method::List if at < SMALL => LEVELS.to_vec(),
            Method::List => WIDE_LEVELS.to_vec(),
        }
    }
}

/// Its place among the methods.
const RACE: usize = 2;

// ---- servers and noise from files ----

/// A server in a file: what it does at some levels, ascending. Between them throughput is on the line, above the last
/// one it stays.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerInFile {
    name: String,
    levels: Vec<LevelInFile>,
    /// Coefficient of variation of the lengths of its answers, and of what they leave unexplained.
    #[serde(default)]
    lengths: Option<[f64; 2]>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LevelInFile {
    level: usize,
    throughput: f64,
    #[serde(default)]
    error_rate: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoiseInFile {
    name: String,
    cv: f64,
    #[serde(default)]
    correlation: f64,
    #[serde(default)]
    drift: f64,
    #[serde(default)]
    neighbour: bool,
    #[serde(default)]
    cold: bool,
}

pub fn servers_of(path: &Path) -> Result<Vec<Server>, String> {
    let servers: Vec<ServerInFile> = read(path)?;
    servers.into_iter().map(ServerInFile::into_server).collect()
}

pub fn noises_of(path: &Path) -> Result<Vec<(String, Noise)>, String> {
    let noises: Vec<NoiseInFile> = read(path)?;
    let noise = |n: NoiseInFile| {
        (n.name, Noise { cv: n.cv, correlation: n.correlation, drift: n.drift, neighbour: n.neighbour, cold: n.cold })
    };
    Ok(noises.into_iter().map(noise).collect())
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    // JSON is YAML, too.
    serde_yaml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

impl ServerInFile {
    fn into_server(self) -> Result<Server, String> {
        let ascending = self.levels.windows(2).all(|pair| pair[0].level < pair[1].level);
        let usable = |of: &LevelInFile| of.level > 0 && of.throughput > 0.0 && (0.0..=1.0).contains(&of.error_rate);
        if !ascending || !self.levels.iter().all(usable) || self.levels.is_empty() {
            return Err(format!("{}: levels must ascend, with a throughput above 0", self.name));
        }
        let points: Vec<(f64, f64, f64)> = std::iter::once((0.0, 0.0, 0.0))
            .chain(self.levels.iter().map(|of| (of.level as f64, of.throughput, of.error_rate)))
            .collect();
        let between = |n: f64, of: fn(&(f64, f64, f64)) -> f64| {
            let above = points.partition_point(|point| point.0 < n);
            let Some(high) = points.get(above) else { return of(&points[points.len() - 1]) };
            let low = &points[above.max(1) - 1];
            of(low) + (of(high) - of(low)) * (n - low.0) / (high.0 - low.0)
        };
        let alone = between(1.0, |point| point.1);
        let mut server = Server::curve(&self.name, |n| between(n, |point| point.1) / alone);
        if self.levels.iter().any(|of| of.error_rate > 0.0) {
            server.errors = (1..=crate::bed::HIGHEST).map(|n| between(n as f64, |point| point.2)).collect();
        }
        server.lengths = match self.lengths {
            Some([0.0, residual]) => Lengths::Fixed { residual },
            Some([cv, residual]) => Lengths::Tokens { cv, residual },
            None => TOKENS_AND_RESIDUAL,
        };
        Ok(server)
    }
}

// ---- the sweeps ----

/// What one sweep came to.
pub struct Answer {
    pub pick: Option<usize>,
    pub interval: Option<[usize; 2]>,
    pub requests: f64,
    pub tokens: f64,
    pub seconds: f64,
}

/// One measurement, in the form in which the sweep has it.
fn measured(run: &mut Run, plan: &LoopPlan) -> Measured {
    let made = run.measurement(plan.level, plan.warmup, plan.window(0), plan.samples);
    let since = |at: f64| at - made.began_s;
    let samples = made.ends.windows(2).map(|pair| Sample {
        duration_s: pair[1].0 - pair[0].0,
        completed: pair[1].1 as u64,
        succeeded: pair[1].2 as u64,
    });
    let measurement = Measurement {
        concurrency: plan.level,
        window_s: made.ends.first().zip(made.ends.last()).map(|(first, last)| [since(first.0), since(last.0)]),
        samples: samples.collect(),
        ..Measurement::default()
    };
    let mut requests = Requests::default();
    for seq in made.first..run.requests.len() {
        let request = &run.requests[seq];
        requests.push(&RequestOutcome {
            seq: (seq - made.first) as u64,
            phase: if (made.cohort..made.after).contains(&seq) { Phase::Measured } else { Phase::Warmup },
            start_s: since(request.start_s),
            end_s: Some(since(request.end_s)),
            latency_s: Some(request.end_s - request.start_s),
            output_tokens: run.reports_tokens().then_some(request.tokens),
            failure: request.refused.then_some(Failure::ServerError),
            held_s: (request.held_s > 0.0).then_some(request.held_s),
            sample: None,
            ttft_s: None,
            chunks: 1,
            input_tokens: None,
            cached_tokens: None,
            status: None,
            error: None,
            resent: 0,
            cut: false,
            prompt_size: None,
        });
    }
    Measured { sent: requests.len() as u64, measurement, requests }
}

fn answer(server: &Server, noise: Noise, method: Method, at: usize, seed: u64) -> Answer {
    let mut run = Run::new(server, noise, seed);
    let (pick, interval) = match method {
        Method::List => by_rounds(&mut run, Search::listed(&method.choices(at), &Policy::default(), true)),
        Method::Rounds => by_rounds(&mut run, Search::adaptive(1, HIGHEST, &Policy::default())),
        Method::Race => by_visits(&mut run, Race::new(grid(1, HIGHEST), Rules::default())),
    };
    Answer { pick, interval, requests: run.requests.len() as f64, tokens: run.tokens as f64, seconds: run.now_s }
}

fn by_rounds(run: &mut Run, mut search: Search) -> (Option<usize>, Option<[usize; 2]>) {
    let mut all: BTreeMap<usize, Vec<Measured>> = BTreeMap::new();
    let mut summaries: BTreeMap<usize, LevelSummary> = BTreeMap::new();
    let pooled_levels = |summaries: &BTreeMap<usize, LevelSummary>| summaries.values().cloned().collect::<Vec<_>>();
    while let Some(step) = search.next(&pooled_levels(&summaries)) {
        let plan = LoopPlan::new(step.level, TOTAL, WARMUP, SAMPLES, search.smallest_window(step.level));
        let of_level = all.entry(step.level).or_default();
        of_level.push(measured(run, &plan));
        summaries.insert(step.level, pooled(of_level));
    }
    let decided = recommend(&pooled_levels(&summaries), &Policy::default());
    (decided.recommended_concurrency.filter(|_| !decided.provisional), decided.interval)
}

fn by_visits(run: &mut Run, mut race: Race) -> (Option<usize>, Option<[usize; 2]>) {
    /// The requests of a visit, and its span.
    type Made = (usize, std::ops::Range<usize>, [f64; 2]);
    let mut made: Vec<Made> = Vec::new();
    let reports = run.reports_tokens();
    let seen = |request: &Request| Seen {
        start_s: request.start_s,
        end_s: request.end_s,
        held_s: request.held_s,
        failed: request.refused,
        tokens: (reports && !request.refused && request.end_s.is_finite()).then_some(request.tokens),
        ..Seen::default()
    };
    loop {
        let visited = made.iter().map(|(level, cohort, span_s)| Visited {
            level: *level,
            span_s: *span_s,
            requests: run.requests[cohort.clone()].iter().map(seen).collect(),
        });
        let sent = run.requests.len() as u64;
        let evidence = Evidence { visits: visited.collect(), now_s: run.now_s, sent };
        let Some(visit) = race.next(&evidence) else { break };
        run.level = visit.level;
        while run.taken() > visit.level && run.next_end().is_some() {}
        run.fill();
        let began_s = run.now_s;
        let cohort = run.requests.len()..run.requests.len() + visit.completions;
        while run.requests.len() < cohort.end && run.next_end().is_some() {
            run.fill();
        }
        made.push((visit.level, cohort, [began_s, run.now_s]));
    }
    run.level = 0;
    while run.next_end().is_some() {}
    let standing = race.standing();
    (standing.pick.filter(|_| standing.decided), Some(standing.interval))
}

#[derive(Default)]
struct Tally {
    sweeps: usize,
    undecided: usize,
    kept: f64,
    good: usize,
    ratio: f64,
    failing: usize,
    held: usize,
    same: usize,
    requests: Vec<f64>,
    tokens: Vec<f64>,
    seconds: Vec<f64>,
    waves: Vec<f64>,
}

impl Tally {
    fn add(&mut self, server: &Server, choices: &[usize], answers: &[Answer]) {
        let best = server.best(choices.iter().copied());
        let acceptable = |level: &&usize| !server.fails(**level) && server.rps(**level) >= ACCEPTABLE * best;
        let smallest = *choices.iter().find(acceptable).expect("the best one is");
        let mut picks: BTreeMap<usize, usize> = BTreeMap::new();
        for answer in answers {
            self.sweeps += 1;
            self.requests.push(answer.requests);
            self.tokens.push(answer.tokens);
            self.seconds.push(answer.seconds);
            self.waves.push(answer.requests / smallest as f64);
            let Some(pick) = answer.pick else {
                self.undecided += 1;
                continue;
            };
            *picks.entry(pick).or_default() += 1;
            // A wall is failed by what it refuses; a limit on latency a fifth above it may be within what P95 is known by.
            let failing = server.error_rate(pick) >= 0.05 || server.latency(pick) > 6.0;
            let kept = if failing { 0.0 } else { server.rps(pick) / best };
            self.kept += kept;
            self.good += usize::from(kept >= GOOD);
            self.failing += usize::from(failing);
            self.ratio += pick as f64 / smallest as f64;
            self.held += usize::from(answer.interval.is_some_and(|[low, high]| low <= smallest && smallest <= high));
        }
        self.same += picks.values().max().copied().unwrap_or_default();
    }

    fn decided(&self) -> f64 {
        (self.sweeps - self.undecided).max(1) as f64
    }

    fn header() -> String {
        let columns = [
            "kept >= 0.92",
            "kept, mean",
            "ratio",
            "same pick",
            "failing level",
            "not decided",
            "interval holds it",
            "requests, median",
            "90 %",
            "service times, median",
            "90 %",
            "thousand tokens, median",
            "90 %",
            "waves, median",
        ];
        format!("{} |\n|---|---|{}", columns.join(" | "), "---|".repeat(columns.len() + 1))
    }

    fn row(&self) -> String {
        let mut row = format!(
            "{} | {:.3} | {:.2} | {} | {} | {} | {} |",
            percent(self.good as f64 / self.decided()),
            self.kept / self.decided(),
            self.ratio / self.decided(),
            percent(self.same as f64 / self.sweeps as f64),
            self.failing,
            percent(self.undecided as f64 / self.sweeps as f64),
            percent(self.held as f64 / self.decided()),
        );
        for (values, unit) in [(&self.requests, 1.0), (&self.seconds, 1.0), (&self.tokens, 1_000.0)] {
            let _ = write!(row, " {:.0} | {:.0} |", at(values, 0.5) / unit, at(values, 0.9) / unit);
        }
        let _ = write!(row, " {:.0} |", at(&self.waves, 0.5));
        row
    }
}

fn at(values: &[f64], p: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * p).round() as usize]
}

/// The noise of the study: those for which bars are set, and those that must not break it.
pub fn noises() -> Vec<(String, Noise)> {
    let five = Noise::correlated(0.05, 100.0);
    [
        ("3 %", Noise::independent(0.03)),
        ("5 %", Noise::independent(0.05)),
        ("5 %, AR(1) 10", Noise::correlated(0.05, 10.0)),
        ("5 %, AR(1) 100", five),
        ("5 %, AR(1) 1000", Noise::correlated(0.05, 1_000.0)),
        ("10 %, AR(1) 100", Noise::correlated(0.10, 100.0)),
        ("5 %, AR(1) 100, drift of 10 %", Noise { drift: 0.10, ..five }),
        ("5 %, AR(1) 100, a neighbour", Noise { neighbour: true, ..five }),
        ("5 %, AR(1) 100, cold", Noise { cold: true, ..five }),
    ]
    .map(|(name, noise)| (name.to_owned(), noise))
    .into()
}

pub fn study(servers: &[Server], noises: &[(String, Noise)], sweeps: usize, first_seed: u64, bars: &mut Bars) {
    let cells = servers.len() * noises.len();
    let results = in_parallel(cells * sweeps * Method::ALL.len(), |_, job| {
        let (method, job) = (job % Method::ALL.len(), job / Method::ALL.len());
        let cell = job / sweeps;
        let (server, noise) = (cell % servers.len(), cell / servers.len());
        answer(&servers[server], noises[noise].1, Method::ALL[method], server, first_seed + job as u64)
    });
    let mut by_method: Vec<Vec<Answer>> = Method::ALL.iter().map(|_| Vec::new()).collect();
    for (at, answer) in results.into_iter().enumerate() {
        by_method[at % Method::ALL.len()].push(answer);
    }
    let tally = |method: usize, noise: usize, wanted: &dyn Fn(usize) -> bool| {
        let mut tally = Tally::default();
        for server in (0..servers.len()).filter(|&server| wanted(server)) {
            let from = (noise * servers.len() + server) * sweeps;
            let answers = &by_method[method][from..from + sweeps];
            tally.add(&servers[server], &Method::ALL[method].choices(server), answers);
        }
        tally
    };
    let small = SMALL.min(servers.len());
    for (title, wanted) in [
        (
            format!("The first {small} servers (knee at 32 at the latest)"),
            &(|server: usize| server < SMALL) as &dyn Fn(usize) -> bool,
        ),
        ("The others".to_owned(), &|server| server >= SMALL),
    ] {
        if !(0..servers.len()).any(wanted) {
            continue;
        }
        println!("### {title}, {sweeps} sweeps of each\n\n| noise | method | {}", Tally::header());
        for (noise, (name, _)) in noises.iter().enumerate() {
            for (method, named) in Method::ALL.iter().enumerate() {
                println!("| {name} | {} | {}", named.name(), tally(method, noise, wanted).row());
            }
        }
        println!();
    }
    for (noise, (name, _)) in
        noises.iter().enumerate().filter(|(_, (name, _))| ["5 %", "5 %, AR(1) 100"].contains(&name.as_str()))
    {
        println!("### Each server, noise {name}\n\n| server | method | {}", Tally::header());
        for (server, of) in servers.iter().enumerate() {
            for (method, named) in Method::ALL.iter().enumerate() {
                println!("| {} | {} | {}", of.name, named.name(), tally(method, noise, &|other| other == server).row());
            }
        }
        println!();
        let auto = tally(RACE, noise, &|server| server < SMALL);
        let good = auto.good as f64 / auto.decided();
        bars.check(good >= GOOD_PICKS, &format!("auto, noise {name}: 99 % of the picks keep 0.92"), percent(good));
        let ratio = auto.ratio / auto.decided();
        bars.check(
            ratio <= LARGEST_RATIO,
            &format!("auto, noise {name}: mean ratio at most 1.2"),
            format!("{ratio:.2}"),
        );
        for (what, values, p, most) in [
            ("median of requests", &auto.requests, 0.5, 2_000.0),
            ("90th percentile of requests", &auto.requests, 0.9, 5_000.0),
            ("median of service times", &auto.seconds, 0.5, 150.0),
        ] {
            let got = at(values, p);
            bars.check(got <= most, &format!("auto, noise {name}: {what} at most {most}"), format!("{got:.0}"));
        }
        let undecided = auto.undecided as f64 / auto.sweeps as f64;
        bars.check(undecided <= 0.05, &format!("auto, noise {name}: not decided in at most 5 %"), percent(undecided));
        let held = auto.held as f64 / auto.decided();
        bars.check(held >= 0.90, &format!("auto, noise {name}: the interval holds it in 90 %"), percent(held));
    }
    let failing: usize = (0..noises.len()).map(|noise| tally(RACE, noise, &|_| true).failing).sum();
    bars.check(failing == 0, "auto: a failing level is never picked", failing.to_string());
}
