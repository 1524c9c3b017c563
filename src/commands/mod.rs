//! What each door does: settings in, files and text out. The bins only call these.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;

use crate::cli::{
    BaselineArgs, DEFAULT_KEY, GenerateArgs, RecommendArgs, ReportArgs, ReportFormat, RunArgs, SimulateArgs,
    TargetArgs, WriteArgs,
};
use crate::client;
use crate::client::redact;
use crate::client::{ConfigError, Endpoint};
use crate::decide::compare::{Baseline, Comparison, compare};
use crate::decide::{Note, Policy, Recommendation, Status, recommend};
use crate::load::preflight::{Probe, Which, preflight};
use crate::load::self_check::cpu_of_this_process;
use crate::load::target::Target;
use crate::measure::sweep::{self, CriterionArgs, Mode, Stop, Swept};
use crate::monitor::textfile;
use crate::patch;
use crate::prompts;
use crate::record::{
    self, Identity, Measured, Places, RequestsFile, ResultsFile, RunId, load_measured, read_sidecar, write_atomic,
};
use crate::report::export;
use crate::report::html::{self, About};
use crate::report::requests::{Curves, Measurement};
use crate::report::text;
use crate::report::words;
use crate::settings::{Config, Overrides, SIMULATED_MODEL, Settings};
use crate::simulator::{self, Simulator, SimulatorConfig};

/// As those of std, but that it cannot be said ends nothing.
macro_rules! eprint {
    ($($said:tt)*) => { drop(write!(io::stderr(), $($said)*)) };
}
macro_rules! eprintln {
    ($($said:tt)*) => { drop(writeln!(io::stderr(), $($said)*)) };
}

/// Requests per level in virtual time; enough that chance plays no part.
const EXPLAIN_REQUESTS: usize = 20_000;
const NOTHING_TO_WRITE: u8 = 3;
const REGRESSED: u8 = 4;

/// Prints an error with its chain, and gives the exit code.
pub fn exit(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        // An error may quote a file or a server.
        eprintln!("error: {}", redact::lines(&format!("{error:#}")));
        ExitCode::FAILURE
    })
}

/// Prints to stdout. A reader that has left (`| head`) wants no more of it, which is no error.
fn say(text: String) -> Result<()> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}

/// `cargo bench`: exits 0 or 1 only.
///
/// # Errors
/// If the sweep cannot be made.
pub fn bench() -> Result<ExitCode> {
    let args = CriterionArgs::parse(std::env::args().skip(1))?;
    let settings = Settings::load(None, Overrides::default())?;
    let places = Places::find(None);
    let swept = sweep::run(&settings, &args, &places, None)?;
    if args.mode != Mode::Measure {
        return Ok(ExitCode::SUCCESS);
    }
    let recommendation = conclude(&settings, &args, &places, &swept)?;
    if swept.stopped == Some(Stop::Interrupted) {
        bail!("interrupted: the levels above are on disk, the rest was not measured");
    }
    if recommendation.status.may_patch() && !recommendation.provisional {
        eprintln!("To write it into {}: {} --update-config", settings.path.display(), recommend_from_here(&places));
    }
    Ok(ExitCode::SUCCESS)
}

/// The command that decides anew. The bench of another package has no `recommend` beside it, and one that cargo did not
/// start would not know that package's target folder.
fn recommend_from_here(places: &Places) -> String {
    match std::env::var("CARGO_PKG_NAME") {
        Ok(package) if package != env!("CARGO_PKG_NAME") => {
            format!("llm-concurrency recommend --criterion-dir '{}'", places.criterion.display())
        }
        _ => "cargo run --bin recommend --".to_owned(),
    }
}

/// `llm-concurrency run`.
///
/// # Errors
/// If the sweep cannot be made, or the config cannot be patched.
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    let settings = Settings::load(args.target.config.as_deref(), args.overrides()?)?;
    let criterion_args = CriterionArgs::measure_all();
    let places = Places::find(None);
    if args.write.update_config {
        can_be_written(&settings, &args.write)?;
    }
    let against = Against::read(&args.against, &places, &settings)?;
    let swept =
        sweep::run(&settings, &criterion_args, &places, against.as_ref().map(|against| against.baseline.clone()))?;
    let recommendation = conclude(&settings, &criterion_args, &places, &swept)?;
    if swept.stopped == Some(Stop::Interrupted) {
        return Ok(ExitCode::from(sweep::INTERRUPTED));
    }
    let compared = against.map(|against| against.compare(&recommendation, &settings));
    if let Some(found) = &compared {
        say(format!("\n{}", text::comparison(&found.comparison, found.threshold, false)))?;
    }
    let (written, code) = conclude_with(&recommendation, compared.as_ref(), &settings, &args.write, false)?;
    eprint!("{}", written.text);
    Ok(code)
}

/// `recommend`, the bin and the subcommand.
///
/// # Errors
/// If there is nothing to decide from, or the config cannot be patched.
pub fn decide(args: &RecommendArgs) -> Result<ExitCode> {
    let settings = Settings::load(args.config.as_deref(), Overrides::default())?;
    let places = Places::find(args.criterion_dir.as_deref());
    let (measured, source) = match &args.results {
        Some(file) => from_results_file(file, &places)?,
        None => from_criterion(&settings, &places)?,
    };
    let recommendation = decide_from(measured, &settings);
    let against = Against::read(&args.against, &places, &settings)?;
    let compared = against.map(|against| against.compare(&recommendation, &settings));
    if !args.json {
        say(printed(&recommendation))?;
        if let Some(found) = &compared {
            say(format!("\n{}", text::comparison(&found.comparison, found.threshold, true)))?;
        }
    }
    if !args.dry_run {
        let page = page_of(recommendation.clone(), settings.config.policy.clone(), source.about, &source.requests);
        eprintln!("{}", write_report(&places.results.join(source.report), &[page]));
    }
    let (written, code) = conclude_with(&recommendation, compared.as_ref(), &settings, &args.write, args.dry_run)?;
    if args.json {
        let comparison = compared.as_ref().map(|found| &found.comparison);
        say(format!("{}\n", as_json(&recommendation, comparison, &written)))?;
        eprint!("{}", written.text);
    } else {
        say(written.text)?;
    }
    Ok(code)
}

/// A baseline, decided by the policy of now.
struct Against {
    title: String,
    baseline: Baseline,
}

struct Compared {
    comparison: Comparison,
    threshold: Option<f64>,
}

impl Against {
    fn read(args: &BaselineArgs, places: &Places, settings: &Settings) -> Result<Option<Self>> {
        let Some(file) = &args.baseline else { return Ok(None) };
        let (measured, _) = from_results_file(file, places)?;
        let simulated = words::simulated(measured.simulated);
        let title = format!("{} ({simulated}{})", file.display(), measured.notes.join("; "));
        let threshold = args.fail_on_regression.map(|percent| percent / 100.0);
        Ok(Some(Against { title, baseline: Baseline { decided: decide_from(measured, settings), threshold } }))
    }

    fn compare(self, now: &Recommendation, settings: &Settings) -> Compared {
        let Baseline { decided, threshold } = self.baseline;
        let found = compare(&decided, now, settings.config.policy.objective, threshold);
        Compared { comparison: Comparison { title: self.title, ..found }, threshold }
    }
}

/// Writes the config unless there is a regression, or one cannot be ruled out.
fn conclude_with(
    recommendation: &Recommendation,
    compared: Option<&Compared>,
    settings: &Settings,
    wish: &WriteArgs,
    dry_run: bool,
) -> Result<(Written, ExitCode)> {
    let (regressed, doubtful) = compared.map_or((false, false), |Compared { comparison, .. }| {
        (!comparison.regressions.is_empty(), !comparison.doubts.is_empty())
    });
    let left = |reason| left_as_it_was(&settings.path, wish, dry_run, reason);
    Ok(if regressed {
        (left("there is a regression against the baseline"), ExitCode::from(REGRESSED))
    } else if doubtful {
        let reason = "it cannot be told whether there is a regression against the baseline";
        (left(reason), ExitCode::from(NOTHING_TO_WRITE))
    } else {
        (write_config(recommendation, settings, wish, dry_run)?, exit_code(recommendation, settings, wish))
    })
}

/// `report`.
///
/// # Errors
/// If a file is no results file, or the report cannot be written.
pub fn report(args: &ReportArgs) -> Result<ExitCode> {
    let places = Places::find(None);
    let files: Vec<ResultsFile> = args.files.iter().map(|file| ResultsFile::read(file)).collect::<Result<_, _>>()?;
    let mut runs: Vec<html::Run> = files.iter().map(|file| run_of(file, &places)).collect();
    if let [before, after] = runs.as_mut_slice() {
        (before.label, after.label) = ("A".to_owned(), "B".to_owned());
    }
    let text = match args.format {
        ReportFormat::Html => html::page(&runs)?,
        ReportFormat::Csv => export::csv(&runs),
        ReportFormat::Jsonl => export::json_lines(&runs),
    };
    let output = match (&args.output, args.format) {
        (Some(output), _) => output.clone(),
        (None, ReportFormat::Html) => {
            let stems: Vec<String> = args.files.iter().map(|file| stamp_of(file)).collect();
            places.results.join(format!("concurrency_report_{}.html", stems.join("_and_")))
        }
        (None, ReportFormat::Csv | ReportFormat::Jsonl) => {
            say(text)?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    write_atomic(&output, text.as_bytes())?;
    say(format!("{}\n", output.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// A results file with the decision that it records, else with one made now.
fn run_of(file: &ResultsFile, places: &Places) -> html::Run {
    let policy = file.about.settings.policy.clone();
    let mut missing = Vec::new();
    if policy.is_none() {
        missing.push("The policy it was decided by: the gates shown are the defaults".to_owned());
    }
    let policy = policy.unwrap_or_default();
    let recommendation = file.recorded().unwrap_or_else(|| {
        missing.push("A decision: the one shown was made for this report".to_owned());
        recommend(&file.levels, &policy)
    });
    let recommendation = Recommendation { simulated: file.about.simulated(), ..recommendation };
    let mut run = page_of(recommendation, policy, about(file.run_id.as_ref(), &file.about), &file.requests(places));
    run.missing.extend(missing);
    run
}

/// `check`: a typical and the longest prompt of the run.
///
/// # Errors
/// If the settings are wrong or the request fails, with what to do about it.
pub fn check(args: &TargetArgs) -> Result<ExitCode> {
    let settings = Settings::load(args.config.as_deref(), args.overrides()?)?;
    let llm = &settings.config.llm;
    let (transport, _simulator) = sweep::transport(&settings)?;
    let prompts = prompts::of_run(&settings)?;
    let target = Target::new(transport.clone(), &llm.model, &settings.config.benchmark.request, &prompts, "check");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (probes, models) =
        runtime.block_on(async { (preflight(&target, &prompts, drop).await, transport.models().await) });
    let key = if settings.api_key.is_some() { "set" } else { "none (LLM_API_KEY, else OPENAI_API_KEY)" };
    let proxy = if let Endpoint::Url(url) = &settings.endpoint { client::proxy_of(url) } else { None };
    say(format!(
        "endpoint  {} ({})\n{}model     {}{}\nAPI key   {key}\n",
        settings.endpoint.redacted(),
        transport.url(),
        proxy.map_or_else(String::new, |proxy| format!("proxy     {proxy} (HTTP_PROXY, HTTPS_PROXY or ALL_PROXY)\n")),
        llm.model,
        known(&settings, models.as_deref(), probes.first()),
    ))?;
    for probe in &probes {
        if probe.is_refused() {
            bail!("{}", text::refused_prompt(probe, &settings));
        }
        if let Some(failed) = &probe.reply.failure {
            bail!("{}", text::endpoint_problem(failed.kind, &failed.message, &settings));
        }
        say(describe_probe(probe))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the server lists the model, as far as that was to be learned.
fn known(settings: &Settings, models: Option<&[String]>, probe: Option<&Probe>) -> String {
    match models {
        // The simulator answers to any name.
        _ if settings.endpoint == Endpoint::Simulator => String::new(),
        Some(models) if models.contains(&settings.config.llm.model) => " (the server lists it)".to_owned(),
        Some(models) => format!(" (not listed by the server, which has: {})", models.join(", ")),
        None if probe.is_none_or(|probe| probe.reply.status.is_none()) => String::new(),
        None => " (the server does not list its models)".to_owned(),
    }
}

fn describe_probe(probe: &Probe) -> String {
    let (name, prompt) = match probe.which {
        Which::Typical => ("answer ", "a typical prompt"),
        Which::Longest => ("longest", "the longest prompt"),
    };
    let ttft = probe.reply.ttft.map(|t| format!(", first token after {:.0} ms", t.as_secs_f64() * 1e3));
    let tokens = match probe.reply.tokens.output {
        Some(tokens) => format!(", {tokens} output tokens"),
        None => ", no token counts (the server reports no usage)".to_owned(),
    };
    format!(
        "{name}   {:.0} ms{}{tokens} ({prompt}, {} characters)\n",
        probe.latency_s * 1e3,
        ttft.unwrap_or_default(),
        probe.characters
    )
}

/// `generate-test-data`.
///
/// # Errors
/// If the file cannot be written.
pub fn generate(args: &GenerateArgs) -> Result<ExitCode> {
    prompts::save(&args.output, &prompts::generate(args.seed, args.count))?;
    say(format!("wrote {} snippets (seed {}) to {}\n", args.count, args.seed, args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// `simulate`.
///
/// # Errors
/// If the settings make no sense or the port is taken.
pub fn simulate(args: &SimulateArgs) -> Result<ExitCode> {
    let itself = Overrides { endpoint: Some(Endpoint::Simulator), ..Overrides::default() };
    let settings = match Settings::load(args.config.as_deref(), itself) {
        // The simulator can do without a config file, unless one was asked for.
        Err(ConfigError::NotFound(_)) if args.config.is_none() => None,
        settings => Some(settings?),
    };
    let mut config = settings.as_ref().map_or_else(SimulatorConfig::default, |s| s.config.simulator.clone());
    config.slots = args.slots.unwrap_or(config.slots);
    config.queue_limit = args.queue_limit.unwrap_or(config.queue_limit);
    config.requests_per_minute = args.rpm.or(config.requests_per_minute);
    args.faults.iter().for_each(|&fault| config.faults.set(fault));
    config.validate()?;
    if args.explain {
        let settings =
            settings.context("--explain needs a config file: it explains the prompts and levels set there")?;
        say(format!("{}\n", explain(&config, &settings)?))?;
        return Ok(ExitCode::SUCCESS);
    }
    // A path that cannot be written is said at once.
    let record = args.log.as_deref().map(|path| Ok((path, File::create(path)?))).transpose();
    let record = record.map_err(|error: io::Error| anyhow!("cannot write --log: {error}"))?;
    let simulator = Simulator::start(config, args.port)?;
    say(format!("simulated LLM server at {} (any model; Ctrl-C ends it)\n", simulator.base_url()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(sweep::signal());
    let log = simulator.log();
    if let Some((path, file)) = record {
        write_lines(file, &log).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let completed = log.iter().filter(|r| r.outcome == simulator::RequestEnd::Completed).count();
    eprintln!("\n{} requests, {completed} completed, at most {} at once", log.len(), simulator.peak_in_flight());
    Ok(ExitCode::SUCCESS)
}

/// One JSON object a line.
fn write_lines(file: File, records: &[impl serde::Serialize]) -> Result<()> {
    let mut lines = BufWriter::new(file);
    for record in records {
        serde_json::to_writer(&mut lines, record)?;
        lines.write_all(b"\n")?;
    }
    lines.flush()?;
    Ok(())
}

fn explain(simulator: &SimulatorConfig, settings: &Settings) -> Result<simulator::Explanation> {
    let benchmark = &settings.config.benchmark;
    let prompts: Vec<String> = prompts::of_run(settings)?.into_iter().map(|prompt| prompt.text).collect();
    let max_tokens = benchmark.request.max_tokens;
    Ok(simulator::explain(simulator, &benchmark.levels(), &prompts, max_tokens, EXPLAIN_REQUESTS)?)
}

// ---- deciding ----

/// The bars are for those who look; a file or another program gets the table alone.
fn printed(recommendation: &Recommendation) -> String {
    let bars = if std::io::stdout().is_terminal() {
        // https://no-color.org
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        text::plot(recommendation, colour)
    } else {
        String::new()
    };
    format!("\n{}\n{bars}{}", text::table(recommendation), text::answer(recommendation))
}

fn as_json(recommendation: &Recommendation, comparison: Option<&Comparison>, written: &Written) -> serde_json::Value {
    let mut value = words::with_words(recommendation);
    if let Some(comparison) = comparison {
        value["comparison"] = json!(comparison);
    }
    value["previous"] = json!(written.previous);
    value["patched"] = json!(written.patched);
    value
}

fn decide_from(measured: Measured, settings: &Settings) -> Recommendation {
    let mut recommendation = recommend(&measured.levels, &settings.config.policy);
    recommendation.simulated = measured.simulated;
    if measured.quick {
        recommendation.notes.push(Note::Quick);
    }
    if measured.unlisted_model {
        recommendation.notes.push(Note::UnlistedModel);
    }
    recommendation.provisional |= measured.quick || measured.incomplete;
    recommendation.notes.extend(measured.notes.into_iter().map(Note::of_run));
    recommendation
}

/// The figures of the newest run, in the folder of results, for node-exporter's textfile collector. Its name stays,
/// since of two files with the same series the collector takes neither.
const TEXTFILE: &str = "concurrency.prom";

/// Decides at the end of a sweep, completes the results file, and prints the answer and where all of it lies.
fn conclude(settings: &Settings, args: &CriterionArgs, places: &Places, swept: &Swept) -> Result<Recommendation> {
    // With a filter the other levels come from earlier runs of the same fingerprint, as `recommend` will see them.
    let mut measured = if args.is_filtered() {
        load_measured(places, &swept.run.manifest.identity)?
    } else {
        Measured {
            levels: swept.run.summaries.clone(),
            quick: settings.quick,
            unlisted_model: swept.run.manifest.about.settings.model_is_listed == Some(false),
            ..Measured::default()
        }
    };
    measured.simulated = settings.endpoint == Endpoint::Simulator;
    measured.notes.extend(swept.notes.clone());
    let recommendation = decide_from(measured, settings);
    swept.run.write_results(Some(words::with_words(&recommendation)))?;
    say(printed(&recommendation))?;
    eprintln!("{}", where_written(swept, places));
    let ended_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    // The answer is worth more than its copy.
    if let Err(error) =
        write_atomic(&places.results.join(TEXTFILE), textfile(&recommendation, ended_s.round()).as_bytes())
    {
        eprintln!("note: {error}");
    }
    let manifest = &swept.run.manifest;
    let requests = manifest.requests(swept.run.folder());
    let page = page_of(
        recommendation.clone(),
        settings.config.policy.clone(),
        about(Some(&manifest.run_id), &manifest.about),
        &requests,
    );
    eprintln!("{}", write_report(&places.results.join(report_name(&swept.run.results_file)), &[page]));
    Ok(recommendation)
}

/// What a report tells beside the decision, and its file's name.
struct Source {
    about: About,
    requests: Vec<RequestsFile>,
    report: String,
}

fn from_criterion(settings: &Settings, places: &Places) -> Result<(Measured, Source)> {
    let prompts = prompts::of_run(settings)?;
    let identity = Identity::of(settings, &prompts);
    let simulated = settings.endpoint == Endpoint::Simulator;
    let measured = Measured { simulated, ..load_measured(places, &identity)? };
    // A run's id begins with the time that its results file is named by.
    let id = measured.newest.as_ref().map_or("criterion", |newest| newest.run_id.as_str());
    let time = id.split('-').next().unwrap_or(id);
    let source = Source {
        about: measured.newest.as_ref().map(|run| about(Some(&run.run_id), &run.about)).unwrap_or_default(),
        requests: measured.requests.clone(),
        report: report_name(Path::new(time)),
    };
    Ok((measured, source))
}

fn from_results_file(path: &Path, places: &Places) -> Result<(Measured, Source)> {
    let file = ResultsFile::read(path)?;
    let source = Source {
        about: about(file.run_id.as_ref(), &file.about),
        requests: file.requests(places),
        report: report_name(path),
    };
    let simulated = file.about.simulated();
    let quick = file.about.settings.quick;
    let unlisted_model = file.about.settings.model_is_listed == Some(false);
    let from = [&file.about.endpoint, &source.about.model, &file.about.started_at].map(Option::as_deref);
    let from: Vec<&str> = from.into_iter().flatten().collect();
    let notes = if from.is_empty() { Vec::new() } else { vec![format!("measured: {}", from.join(", "))] };
    Ok((Measured { levels: file.levels, notes, quick, simulated, unlisted_model, ..Measured::default() }, source))
}

fn where_written(swept: &Swept, places: &Places) -> String {
    let own_s = (swept.began.elapsed().as_secs_f64() - swept.load_s).max(0.0);
    let cpu = cpu_of_this_process().map(|cpu| format!(", {:.1} s of processor time in all", cpu.as_secs_f64()));
    format!(
        "{:.1} s of load, {own_s:.1} s around it{}. Written:\n  {} (results)\n  {} (every request)\n  {} (Criterion's report)\n  {} (for node-exporter)",
        swept.load_s,
        cpu.unwrap_or_default(),
        swept.run.results_file.display(),
        swept.run.folder().display(),
        places.criterion.join("report/index.html").display(),
        places.results.join(TEXTFILE).display(),
    )
}

// ---- the report ----

fn about(run_id: Option<&RunId>, run: &record::About) -> About {
    About {
        run_id: run_id.map(|id| id.to_string()),
        started_at: run.started_at.clone(),
        endpoint: run.endpoint.clone(),
        // Earlier versions recorded the name of a model that was never asked.
        model: if run.simulated() { Some(SIMULATED_MODEL.to_owned()) } else { run.model.clone() },
        settings: json!(run.settings),
        environment: json!(run.environment),
    }
}

fn page_of(recommendation: Recommendation, policy: Policy, about: About, requests: &[RequestsFile]) -> html::Run {
    let (curves, missing) = curves(requests);
    html::Run { label: String::new(), recommendation, policy, about, curves, missing }
}

/// The single requests, thinned, and which of them cannot be read.
fn curves(files: &[RequestsFile]) -> (Option<Curves>, Vec<String>) {
    let mut missing = Vec::new();
    let mut measurements = Vec::new();
    for file in files {
        let mut measurement = Measurement::new(file.level, file.window_s);
        let read = read_sidecar(&file.path).and_then(|mut lines| {
            lines.try_for_each(|outcome| {
                measurement.add(outcome?);
                Ok(())
            })
        });
        match read {
            Ok(()) => measurements.push(measurement),
            Err(error) => missing.push(format!("The requests of level {}: {error}", file.level)),
        }
    }
    (Curves::of(measurements), missing)
}

/// `concurrency_results_X.json` to `X`.
fn stamp_of(results: &Path) -> String {
    let stem = results.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    stem.strip_prefix("concurrency_results_").map(str::to_owned).unwrap_or(stem)
}

fn report_name(results: &Path) -> String {
    format!("concurrency_report_{}.html", stamp_of(results))
}

/// Writes a report beside something else that was asked for, which does not fail with it. Returns what to say.
fn write_report(path: &Path, runs: &[html::Run]) -> String {
    let written =
        html::page(runs).map_err(anyhow::Error::from).and_then(|page| Ok(write_atomic(path, page.as_bytes())?));
    match written {
        Ok(()) => format!("Report: {}", path.display()),
        Err(error) => format!("no report: {error:#}"),
    }
}

// ---- writing ----

/// What came of it.
#[derive(Default)]
struct Written {
    previous: Option<u64>,
    patched: bool,
    text: String,
}

fn exit_code(recommendation: &Recommendation, settings: &Settings, wish: &WriteArgs) -> ExitCode {
    let Some(reason) = why_not(recommendation, settings, wish) else { return ExitCode::SUCCESS };
    if !wish.update_config {
        eprintln!("Nothing that may be written (exit code {NOTHING_TO_WRITE}): {reason}");
    }
    ExitCode::from(NOTHING_TO_WRITE)
}

/// Why the result may not be written.
fn why_not(recommendation: &Recommendation, settings: &Settings, wish: &WriteArgs) -> Option<String> {
    if !recommendation.status.may_patch() || recommendation.recommended_concurrency.is_none() {
        return Some(format!("status {}", recommendation.status.name()));
    }
    if recommendation.simulated && !settings.config_is_simulated {
        return Some(foreign_simulation(settings));
    }
    (recommendation.provisional && !wish.allow_provisional)
        .then(|| "the result is provisional (see the notes); --allow-provisional writes it all the same".to_owned())
}

fn foreign_simulation(settings: &Settings) -> String {
    format!(
        "the embedded simulator was measured, and the llm.endpoint that stands in {} is another",
        settings.path.display()
    )
}

/// Finds out before anything is sent whether a number could be written at the end.
fn can_be_written(settings: &Settings, wish: &WriteArgs) -> Result<()> {
    if settings.endpoint == Endpoint::Simulator && !settings.config_is_simulated {
        bail!("--update-config: {}\n\nNothing was measured.", foreign_simulation(settings));
    }
    // Any number will do to find out; the one that stands there is named in what is said.
    let number = settings.config.llm.max_concurrent_requests as u64;
    let patch =
        patch(&settings.path, &wish.config_key, number).context("--update-config could not write in the end")?;
    patch.check_writable().context("--update-config could not write in the end")
}

/// A patch after which we can still read the file.
fn patch(path: &Path, key: &str, value: u64) -> Result<patch::Patch> {
    let section = key.split('.').next().unwrap_or_default();
    if key != DEFAULT_KEY && ["benchmark", "policy", "simulator"].contains(&section) {
        bail!("--config-key {key}: the section `{section}` holds the settings of the measurement, not its answer");
    }
    let patch = patch::plan(path, key, value)?;
    Config::parse(patch.after(), path)
        .with_context(|| format!("--config-key {key} would make a file that cannot be read"))?;
    Ok(patch)
}

fn write_config(
    recommendation: &Recommendation,
    settings: &Settings,
    wish: &WriteArgs,
    dry_run: bool,
) -> Result<Written> {
    let path = &settings.path;
    if let Some(reason) = why_not(recommendation, settings, wish) {
        return Ok(left_as_it_was(path, wish, dry_run, &reason));
    }
    let key = wish.config_key.as_str();
    let asked = wish.update_config || dry_run;
    let Some(level) = recommendation.recommended_concurrency.filter(|_| asked) else {
        return Ok(Written { previous: previous(path, key), ..Written::default() });
    };
    let patch = patch(path, key, level as u64)?;
    let previous = patch.previous();
    if patch.is_noop() {
        let text = format!("{}: {key} is {level} already, nothing to do\n", path.display());
        return Ok(Written { previous, patched: false, text });
    }
    if dry_run {
        return Ok(Written { previous, patched: false, text: patch.diff() });
    }
    patch.apply()?;
    let from = previous.map_or_else(|| "not set".to_owned(), |n| n.to_string());
    let mut text = format!("{}: {key} is now {level} (was {from})\n", path.display());
    if recommendation.status == Status::NotSaturated {
        text.push_str("warning: throughput was still rising at the highest level tested\n");
    }
    Ok(Written { previous, patched: true, text })
}

/// Nothing is written; says why if it was asked for.
fn left_as_it_was(path: &Path, wish: &WriteArgs, dry_run: bool, reason: &str) -> Written {
    let asked = wish.update_config || dry_run;
    let text = if asked { format!("{} is left as it was: {reason}\n", path.display()) } else { String::new() };
    Written { previous: previous(path, &wish.config_key), text, ..Written::default() }
}

/// The number that stands there now, where it can be told.
fn previous(path: &Path, key: &str) -> Option<u64> {
    patch::plan(path, key, 1).ok()?.previous()
}
