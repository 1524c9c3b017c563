//! What an answer costs and how sure it is, on servers whose speed changes over time (`tests/common/bed.rs`).
//!
//! Cost is counted in requests, output tokens and service times (the mean latency of a request
//! alone on the server), up to the end of the last request that is waited for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use llm_concurrency::decide::Policy;
use llm_concurrency::measure::race::{Race, Rules, grid};
use serde::Deserialize;

use crate::bed::{self, Lengths, Noise, Run, Server, TOKENS_AND_RESIDUAL};
use crate::{ACCEPTABLE, Bars, GOOD, GOOD_PICKS, HIGHEST, LARGEST_RATIO, LEVELS, TOTAL, WARMUP, in_parallel, percent};

pub const HELP: &str = "\
cargo bench --bench replicates -- cost [N] [--seed S] [--servers FILE] [--noise FILE]

What an answer costs and how sure it is. N sweeps of each server under each noise (4), from seed S on, or from three
seeds that were not used while tuning. With a file of servers or of noise only these are measured; without one, the
tables also go into METHOD.md, and docs/certainty-against-cost.svg is drawn.

Servers (YAML or JSON). Throughput in any unit; between two levels it is on the line, above the last one it stays.
- name: mine
  lengths: [0.8, 0.15]  # coefficient of variation of the answers' lengths, and of what they leave unexplained
  levels:
    - {level: 1, throughput: 40}
    - {level: 16, throughput: 500, error_rate: 0.01}

Noise. Times are in service times.
- name: 5 %, AR(1) 100
  cv: 0.05          # coefficient of variation of the server's speed
  correlation: 100  # correlation time; 0: another speed every ten service times
  drift: 0.1        # so much slower after 200
  neighbour: true   # somebody takes a third of the server for 20 to 60
  cold: true        # 30 % slower for the first 30";

/// Not used for tuning, which was done with 1, 2, 3, 5, 6, 11, 31, 32, 33, 40, 77, 78 and 901 to 910.
/// Earlier evaluations used 4001 to 4003, 7001 to 7009 and 8001 to 8012.
const SEEDS: [u64; 3] = [9_001, 9_002, 9_003];
/// The listed levels for servers whose knee may be at a high level.
const WIDE_LEVELS: [usize; 10] = [1, 2, 5, 10, 25, 50, 100, 200, 300, 400];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// Each listed level with the default number of requests, then the race.
    List,
    /// The race among the listed levels.
    Quick,
    /// The race from 1 to 512.
    Auto,
}

impl Method {
    const ALL: [(Method, &str); 3] = [(Method::List, "list"), (Method::Quick, "quick"), (Method::Auto, "auto")];

    fn rules(self) -> Rules {
        match self {
            Method::List => Rules::list(Policy::default(), Some(TOTAL)),
            Method::Quick => Rules::list(Policy::default(), None),
            Method::Auto => Rules::auto(Policy::default()),
        }
    }

    /// The levels that may be picked.
    fn levels(self, server: &Server) -> Vec<usize> {
        match self {
            Method::Auto => (1..=HIGHEST).collect(),
            _ if is_small(server) => LEVELS.to_vec(),
            _ => WIDE_LEVELS.to_vec(),
        }
    }

    fn race(self, server: &Server) -> Race {
        let choices = if self == Method::Auto { grid(1, HIGHEST) } else { self.levels(server) };
        Race::new(choices, self.rules())
    }
}

fn smallest_acceptable(server: &Server, levels: &[usize]) -> usize {
    let best = server.best(levels.iter().copied());
    let acceptable = |level: &&usize| !server.fails(**level) && server.rps(**level) >= ACCEPTABLE * best;
    *levels.iter().find(acceptable).expect("the best one is")
}

/// Whether the bars on cost apply to this server.
fn is_small(server: &Server) -> bool {
    smallest_acceptable(server, &(1..=HIGHEST).collect::<Vec<_>>()) <= 32
}

// ---- servers and noise from files ----

/// A server from a file, described at some levels, ascending. Throughput is interpolated linearly
/// between them and stays constant above the last one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerInFile {
    name: String,
    levels: Vec<LevelInFile>,
    /// Coefficient of variation of the answers' lengths, and of the part of service times they do not explain.
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
    // JSON is valid YAML too.
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

/// The result and the cost of one sweep.
struct Answer {
    pick: Option<usize>,
    interval: [usize; 2],
    decided: bool,
    requests: f64,
    tokens: f64,
    seconds: f64,
}

fn sweep(server: &Server, noise: Noise, race: Race, drain: bool, seed: u64) -> Answer {
    let swept = bed::sweep(server, noise, race, drain, seed);
    Answer {
        pick: swept.standing.pick,
        interval: swept.standing.interval,
        decided: swept.standing.decided,
        requests: swept.requests as f64,
        tokens: swept.tokens as f64,
        seconds: swept.service_times,
    }
}

/// Measures each level once with `total` requests and picks the smallest level within `tolerance` of the best.
fn one_look(server: &Server, noise: Noise, levels: &[usize], total: usize, tolerance: f64, seed: u64) -> Answer {
    let mut run = Run::new(server, noise, seed);
    let mut values: Vec<(usize, f64)> = Vec::new();
    for &level in levels {
        let made = run.measurement(level, WARMUP.max(level), total.div_ceil(10).max(level), 10);
        let window = [made.ends[0].0, made.ends[made.ends.len() - 1].0];
        let of = &run.requests[made.first..];
        let rps = of.iter().filter(|request| !request.refused).map(|request| request.share(window)).sum::<f64>();
        values.push((level, rps / (window[1] - window[0])));
    }
    let best = values.iter().map(|value| value.1).fold(0.0, f64::max);
    let pick = values.iter().find(|value| value.1 >= (1.0 - tolerance) * best).map(|value| value.0);
    let (requests, tokens) = (run.requests.len() as f64, run.tokens as f64);
    Answer { pick, interval: [0; 2], decided: true, requests, tokens, seconds: run.now_s }
}

// ---- evaluation ----

#[derive(Default)]
struct Tally {
    sweeps: usize,
    undecided: usize,
    kept: f64,
    good: usize,
    /// Picks, decided or not, that keep enough and are at most 1.35 times the smallest acceptable level.
    right: usize,
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
    fn add<'a>(&mut self, server: &Server, levels: &[usize], answers: impl Iterator<Item = &'a Answer>) {
        let best = server.best(levels.iter().copied());
        let smallest = smallest_acceptable(server, levels);
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
            // A wall fails by its rejections. The latency limit gets a fifth more, since P95 is only known that well.
            let failing = server.error_rate(pick) >= 0.05 || server.latency(pick) > 6.0;
            let kept = if failing { 0.0 } else { (server.rps(pick) / best).min(1.0) };
            self.right += usize::from(kept >= GOOD && pick as f64 <= 1.35 * smallest as f64);
            if !answer.decided {
                self.undecided += 1;
                continue;
            }
            *picks.entry(pick).or_default() += 1;
            self.kept += kept;
            self.good += usize::from(kept >= GOOD);
            self.failing += usize::from(failing);
            self.ratio += pick as f64 / smallest as f64;
            self.held += usize::from((answer.interval[0]..=answer.interval[1]).contains(&smallest));
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

/// The kinds of noise in the study: those with bars, and those that must not break the method.
fn noises() -> Vec<(String, Noise)> {
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

/// The sweeps of each server, under each noise, with each method.
struct Study<'a> {
    servers: &'a [Server],
    noises: &'a [(String, Noise)],
    sweeps: usize,
    answers: Vec<Answer>,
}

impl<'a> Study<'a> {
    fn new(servers: &'a [Server], noises: &'a [(String, Noise)], sweeps: usize, seeds: &[u64]) -> Self {
        let per_cell = sweeps * seeds.len();
        let methods = Method::ALL.len();
        let answers = in_parallel(servers.len() * noises.len() * methods * per_cell, |_, job| {
            let (cell, at) = (job / per_cell, job % per_cell);
            let (method, server, noise) =
                (Method::ALL[cell % methods].0, cell / methods % servers.len(), cell / methods / servers.len());
            let seed = seeds[at / sweeps] * 1_000_003 + (server * 1_000 + at % sweeps) as u64;
            sweep(&servers[server], noises[noise].1, method.race(&servers[server]), false, seed)
        });
        Study { servers, noises, sweeps: per_cell, answers }
    }

    fn tally(&self, method: usize, noise: usize, wanted: impl Fn(&Server) -> bool) -> Tally {
        let mut tally = Tally::default();
        for (at, server) in self.servers.iter().enumerate().filter(|(_, server)| wanted(server)) {
            let cell = (noise * self.servers.len() + at) * Method::ALL.len() + method;
            let answers = self.answers[cell * self.sweeps..(cell + 1) * self.sweeps].iter();
            tally.add(server, &Method::ALL[method].0.levels(server), answers);
        }
        tally
    }

    fn by_noise(&self, page: &mut String, title: &str, wanted: impl Fn(&Server) -> bool) {
        if !self.servers.iter().any(&wanted) {
            return;
        }
        let _ = writeln!(page, "### {title}, {} sweeps of each\n\n| noise | method | {}", self.sweeps, Tally::header());
        for (noise, (name, _)) in self.noises.iter().enumerate() {
            for (method, (_, named)) in Method::ALL.iter().enumerate() {
                let _ = writeln!(page, "| {name} | {named} | {}", self.tally(method, noise, &wanted).row());
            }
        }
        page.push('\n');
    }

    fn by_server(&self, page: &mut String, title: &str, noise: usize) {
        let (name, sweeps) = (&self.noises[noise].0, self.sweeps);
        let _ = writeln!(
            page,
            "### {title}, noise {name}, {sweeps} sweeps of each\n\n| server | method | {}",
            Tally::header()
        );
        for server in self.servers {
            for (method, (_, named)) in Method::ALL.iter().enumerate() {
                let tally = self.tally(method, noise, |other| other.name == server.name);
                let _ = writeln!(page, "| {} | {named} | {}", server.name, tally.row());
            }
        }
        page.push('\n');
    }

    fn check_certainty(
        &self,
        method: usize,
        noise: usize,
        which: &str,
        wanted: impl Fn(&Server) -> bool,
        bars: &mut Bars,
    ) {
        let tally = self.tally(method, noise, wanted);
        let (method, noise) = (Method::ALL[method].1, &self.noises[noise].0);
        let mut check =
            |holds, bar: &str, got| bars.check(holds, &format!("{method}, {which}, noise {noise}: {bar}"), got);
        let share = |of: usize| of as f64 / tally.decided();
        check(share(tally.good) >= GOOD_PICKS, "99 % of the picks keep 0.92", percent(share(tally.good)));
        let ratio = tally.ratio / tally.decided();
        check(ratio <= LARGEST_RATIO, "mean ratio at most 1.2", format!("{ratio:.2}"));
        let undecided = tally.undecided as f64 / tally.sweeps as f64;
        check(undecided <= 0.05, "not decided in at most 5 %", percent(undecided));
        check(share(tally.held) >= 0.90, "the interval holds it in 90 %", percent(share(tally.held)));
        check(tally.failing == 0, "a failing level is never picked", tally.failing.to_string());
    }

    fn check_cost(&self, noise: usize, most: [f64; 3], bars: &mut Bars) {
        let tally = self.tally(AUTO, noise, is_small);
        for (what, values, p, most) in [
            ("median of requests", &tally.requests, 0.5, most[0]),
            ("90th percentile of requests", &tally.requests, 0.9, most[1]),
            ("median of service times", &tally.seconds, 0.5, most[2]),
        ] {
            let got = at(values, p);
            let bar = format!("auto, knee at 32 at the latest, noise {}: {what} at most {most}", self.noises[noise].0);
            bars.check(got <= most, &bar, format!("{got:.0}"));
        }
    }
}

/// Indices into [`Method::ALL`].
const LIST: usize = 0;
const AUTO: usize = 2;

pub fn study(
    sweeps: usize,
    seed: Option<u64>,
    servers: Option<&Path>,
    noise: Option<&Path>,
    bars: &mut Bars,
) -> Result<(), String> {
    let seeds = seed.map_or(SEEDS.to_vec(), |seed| vec![seed]);
    let own = servers.is_some() || noise.is_some();
    let servers = servers.map_or_else(|| Ok(bed::servers()), servers_of)?;
    let noises = noise.map_or_else(|| Ok(noises()), noises_of)?;
    let named = |names: &[&str]| -> Vec<usize> {
        (0..noises.len()).filter(|&at| own || names.contains(&noises[at].0.as_str())).collect()
    };
    let mut page = format!("Seeds: {}.\n\n", seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", "));
    let study = Study::new(&servers, &noises, sweeps, &seeds);
    study.by_noise(&mut page, "Servers with their knee at 32 at the latest", is_small);
    study.by_noise(&mut page, "The others", |server| !is_small(server));
    for noise in named(&["5 %, AR(1) 100"]) {
        study.by_server(&mut page, "Each server", noise);
    }
    for noise in named(&["5 %", "5 %, AR(1) 100", "5 %, AR(1) 100, cold"]) {
        study.check_certainty(AUTO, noise, "all servers", |_| true, bars);
        study.check_certainty(LIST, noise, "knee at 32 at the latest", is_small, bars);
    }
    for noise in named(&["5 %", "5 %, AR(1) 100"]) {
        study.check_cost(noise, [2_000.0, 5_000.0, 150.0], bars);
    }
    if own {
        println!("{page}");
        return Ok(());
    }
    for noise in named(&["3 %"]) {
        study.check_cost(noise, [1_300.0, 5_000.0, 150.0], bars);
    }
    for noise in named(&["5 %, AR(1) 100"]) {
        let at_32 = at(&study.tally(AUTO, noise, |server| server.name == "knee at 32").waves, 0.5);
        for server in servers.iter().filter(|server| !is_small(server)) {
            let waves = at(&study.tally(AUTO, noise, |other| other.name == server.name).waves, 0.5);
            let bar = format!("auto, {}: no more waves than the knee at 32, which takes {at_32:.0}", server.name);
            bars.check(waves <= at_32, &bar, format!("{waves:.0}"));
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let others = servers_of(&root.join("benches/replicates/other_servers.yaml"))?;
    let (_, noise) = noises[3].clone();
    let noises = [("5 %, AR(1) 100".to_owned(), noise)];
    let untuned = Study::new(&others, &noises, sweeps, &seeds);
    untuned.by_server(&mut page, "Servers outside the family of curves (benches/replicates/other_servers.yaml)", 0);
    untuned.check_certainty(AUTO, 0, "servers outside the family", |_| true, bars);
    ablation(&mut page, &servers, noise, sweeps, &seeds);
    let picture = picture(&mut page, &servers, noise, sweeps, &seeds);
    println!("{page}");
    let missed = if bars.missed > 0 { format!("Bars missed: {}.", bars.missed) } else { "All bars kept.".to_owned() };
    let lines = bars.lines.join("\n");
    let _ = writeln!(page, "### What was asked for\n\n| bar | measured | |\n|---|---|---|\n{lines}\n\n{missed}\n");
    let write =
        |name: &str, text: &str| std::fs::write(root.join(name), text).map_err(|error| format!("{name}: {error}"));
    write("docs/certainty-against-cost.svg", &picture)?;
    let method = std::fs::read_to_string(root.join("METHOD.md")).map_err(|error| format!("METHOD.md: {error}"))?;
    let command = "<!-- made by: cargo bench --bench replicates -- cost ";
    let parts =
        method.split_once(command).and_then(|(before, rest)| Some((before, rest.split_once("<!-- end -->")?.1)));
    let (before, after) = parts.ok_or("METHOD.md: no place for the tables")?;
    write("METHOD.md", &format!("{before}{command}{sweeps} -->\n\n{page}<!-- end -->{after}"))
}

/// Runs the race without one of its parts at a time.
fn ablation(page: &mut String, servers: &[Server], noise: Noise, sweeps: usize, seeds: &[u64]) {
    let auto = || Rules::auto(Policy::default());
    let variants = [
        ("all of it", auto(), false),
        ("visits of ten waves, 100 requests at least", Rules { visit: (10.0, 100), ..auto() }, false),
        ("no stopping: 2,000 requests always", Rules { doubt: 0.0, requests: 2_000, ..auto() }, false),
        ("no control variate", Rules { control: false, ..auto() }, false),
        ("no shape: each level by itself", Rules { misfit: 0.2, ..auto() }, false),
        ("drained between visits", auto(), true),
    ];
    let servers: Vec<&Server> = servers.iter().filter(|server| is_small(server)).collect();
    let per_cell = sweeps * seeds.len();
    let answers = in_parallel(variants.len() * servers.len() * per_cell, |_, job| {
        let (cell, at) = (job / per_cell, job % per_cell);
        let ((_, rules, drain), server) = (&variants[cell / servers.len()], cell % servers.len());
        let seed = seeds[at / sweeps] * 1_000_003 + (server * 1_000 + at % sweeps) as u64;
        sweep(servers[server], noise, Race::new(grid(1, HIGHEST), rules.clone()), *drain, seed)
    });
    let _ = writeln!(
        page,
        "### What each part buys: auto, knee at 32 at the latest, noise 5 %, AR(1) 100\n\n| | {}",
        Tally::header().replace("|---|---|-", "|---|-")
    );
    for (at, (name, ..)) in variants.iter().enumerate() {
        let mut tally = Tally::default();
        for (server, of) in servers.iter().enumerate() {
            let cell = at * servers.len() + server;
            tally.add(of, &Method::Auto.levels(of), answers[cell * per_cell..(cell + 1) * per_cell].iter());
        }
        let _ = writeln!(page, "| {name} | {}", tally.row());
    }
    page.push('\n');
}

/// Certainty against cost on the default levels at several budgets, as a table and as an SVG.
fn picture(page: &mut String, servers: &[Server], noise: Noise, sweeps: usize, seeds: &[u64]) -> String {
    const TOTALS: [usize; 4] = [25, 50, 100, 200];
    const BUDGETS: [usize; 4] = [300, 600, 1_500, 4_500];
    let servers: Vec<&Server> = servers.iter().filter(|server| is_small(server)).collect();
    let (per_cell, names) = (sweeps * seeds.len(), ["argmax", "the smallest within 5 % of the best", "the race"]);
    let answers = in_parallel(12 * servers.len() * per_cell, |_, job| {
        let (cell, at) = (job / per_cell, job % per_cell);
        let (method, budget, server) =
            (cell / servers.len() / 4, cell / servers.len() % 4, servers[cell % servers.len()]);
        let seed = seeds[at / sweeps] * 1_000_003 + (cell % servers.len() * 1_000 + at % sweeps) as u64;
        if method < 2 {
            return one_look(server, noise, &LEVELS, TOTALS[budget], if method == 0 { 0.0 } else { 0.05 }, seed);
        }
        let rules = Rules { requests: BUDGETS[budget] as u64, ..Method::Quick.rules() };
        sweep(server, noise, Race::new(LEVELS.to_vec(), rules), false, seed)
    });
    page.push_str("### Certainty against cost: the default levels, noise 5 %, AR(1) 100\n\n");
    page.push_str("| method | requests, mean | right |\n|---|---|---|\n");
    let mut lines: Vec<(&str, Vec<[f64; 2]>)> = names.map(|name| (name, Vec::new())).into();
    for point in 0..12 {
        let mut tally = Tally::default();
        for (server, of) in servers.iter().enumerate() {
            let cell = point * servers.len() + server;
            tally.add(of, &LEVELS, answers[cell * per_cell..(cell + 1) * per_cell].iter());
        }
        let requests = tally.requests.iter().sum::<f64>() / tally.sweeps as f64;
        let right = tally.right as f64 / tally.sweeps as f64;
        let _ = writeln!(page, "| {} | {requests:.0} | {} |", names[point / 4], percent(right));
        lines[point / 4].1.push([requests, right]);
    }
    page.push('\n');
    svg(&lines)
}

/// The x axis is requests, logarithmic from 200 to 10,000; the y axis is the share of right answers.
fn svg(lines: &[(&str, Vec<[f64; 2]>)]) -> String {
    let x = |requests: f64| 60.0 + 480.0 * (requests / 200.0).ln() / 50_f64.ln();
    let y = |share: f64| 300.0 - 270.0 * share;
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 350\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"760\" height=\"350\" fill=\"#fff\"/>\n",
    );
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let (at, percent) = (y(share), share * 100.0);
        let _ = writeln!(
            svg,
            "<path d=\"M60 {at}H540\" stroke=\"#ddd\"/><text x=\"52\" y=\"{}\" text-anchor=\"end\">{percent} %</text>",
            at + 4.0
        );
    }
    for requests in [200, 500, 1_000, 2_000, 5_000, 10_000] {
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"318\" text-anchor=\"middle\">{requests}</text>",
            x(f64::from(requests))
        );
    }
    svg.push_str("<text x=\"300\" y=\"340\" text-anchor=\"middle\">requests a sweep (mean)</text>\n<text x=\"60\" y=\"18\">right answers</text>\n");
    for ((name, points), (colour, dash)) in lines.iter().zip([("#b04a4a", "2 3"), ("#a07a20", "6 3"), ("#1f6f4f", "")])
    {
        let place = |[requests, share]: &[f64; 2]| format!("{:.1} {:.1}", x(*requests), y(*share));
        let path: Vec<String> = points.iter().map(place).collect();
        let _ = writeln!(
            svg,
            "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"/>",
            path.join("L")
        );
        for [requests, share] in points {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"/>",
                x(*requests),
                y(*share)
            );
        }
        if let Some([requests, share]) = points.last() {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
                x(*requests) + 8.0,
                y(*share) + 4.0
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}
