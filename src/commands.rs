//! What each door does: settings in, files and text out. The bins only call these.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;

use crate::cli::{GenerateArgs, RecommendArgs, RunArgs, SimulateArgs, TargetArgs, WriteArgs};
use crate::client::BodyTemplate;
use crate::compare::{Comparison, compare};
use crate::config::{ConfigError, Endpoint, Llm, Overrides, Settings};
use crate::config_patch;
use crate::outcome::Reply;
use crate::recommend::{Recommendation, Status, recommend};
use crate::report::text;
use crate::results::{Identity, Measured, Places, ResultsFile, load_measured};
use crate::self_check::cpu_of_this_process;
use crate::simulator::{self, Simulator, SimulatorConfig};
use crate::snippets;
use crate::sweep::{self, CriterionArgs, Mode, Stop, Swept};

/// Requests per level in virtual time; enough that chance plays no part.
const EXPLAIN_REQUESTS: usize = 20_000;
const NOTHING_TO_WRITE: u8 = 3;
const REGRESSED: u8 = 4;

/// Prints an error with its chain, and gives the exit code.
pub fn exit(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
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
    let swept = sweep::run(&settings, &args, &places)?;
    if args.mode != Mode::Measure {
        return Ok(ExitCode::SUCCESS);
    }
    let recommendation = conclude(&settings, &args, &places, &swept)?;
    if swept.stopped == Some(Stop::Interrupted) {
        bail!("interrupted: the levels above are on disk, the rest was not measured");
    }
    if recommendation.status.may_patch() && !recommendation.provisional {
        eprintln!("To write it into {}: cargo run --bin recommend -- --update-config", settings.path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// `llm-concurrency run`.
///
/// # Errors
/// If the sweep cannot be made, or the config cannot be patched.
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    let settings = Settings::load(args.target.config.as_deref(), args.overrides()?)?;
    let criterion_args = CriterionArgs::measure_all();
    let places = Places::find(None);
    let swept = sweep::run(&settings, &criterion_args, &places)?;
    let recommendation = conclude(&settings, &criterion_args, &places, &swept)?;
    if swept.stopped == Some(Stop::Interrupted) {
        return Ok(ExitCode::from(sweep::INTERRUPTED));
    }
    let written = write_config(&recommendation, &settings.path, &args.write, false)?;
    eprint!("{}", written.text);
    Ok(exit_code(&recommendation, &args.write))
}

/// `recommend`, the bin and the subcommand.
///
/// # Errors
/// If there is nothing to decide from, or the config cannot be patched.
pub fn decide(args: &RecommendArgs) -> Result<ExitCode> {
    let settings = Settings::load(args.config.as_deref(), Overrides::default())?;
    let measured = match &args.results {
        Some(file) => from_results_file(file)?,
        None => from_criterion(&settings, args.criterion_dir.as_deref())?,
    };
    let recommendation = decide_from(measured, &settings);
    let threshold = args.fail_on_regression.map(|percent| percent / 100.0);
    let baseline = args.baseline.as_deref();
    let comparison = baseline.map(|file| against(file, &recommendation, &settings, threshold)).transpose()?;
    if !args.json {
        say(printed(&recommendation))?;
        if let Some(found) = &comparison {
            say(format!("\n{}", text::comparison(found, threshold)))?;
        }
    }
    let regressed = comparison.as_ref().is_some_and(|found| !found.regressions.is_empty());
    let written = if regressed {
        left_as_it_was(&settings.path, &args.write, args.dry_run, "throughput has regressed against the baseline")
    } else {
        write_config(&recommendation, &settings.path, &args.write, args.dry_run)?
    };
    if args.json {
        say(format!("{}\n", as_json(&recommendation, comparison.as_ref(), &written)))?;
        eprint!("{}", written.text);
    } else {
        say(written.text)?;
    }
    Ok(if regressed { ExitCode::from(REGRESSED) } else { exit_code(&recommendation, &args.write) })
}

/// Decides the baseline by the same policy as `now`, and compares.
fn against(file: &Path, now: &Recommendation, settings: &Settings, threshold: Option<f64>) -> Result<Comparison> {
    let measured = from_results_file(file)?;
    let title = format!("{} ({})", file.display(), measured.notes.join("; "));
    let before = decide_from(measured, settings);
    Ok(Comparison { title, ..compare(&before, now, settings.config.policy.objective, threshold) })
}

/// `check`: one request.
///
/// # Errors
/// If the settings are wrong or the request fails, with what to do about it.
pub fn check(args: &TargetArgs) -> Result<ExitCode> {
    let settings = Settings::load(args.config.as_deref(), args.overrides()?)?;
    let llm = &settings.config.llm;
    let (transport, _simulator) = sweep::transport(&settings)?;
    let request = &settings.config.benchmark.request;
    let body = BodyTemplate::new(&llm.model, request, "Say hello.").fill("");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (reply, latency, models) = runtime.block_on(async {
        let models = transport.models().await;
        let began = Instant::now();
        let reply = transport.send(body).await;
        (reply, began.elapsed(), models)
    });
    let key = if settings.api_key.is_some() { "set" } else { "none (LLM_API_KEY, else OPENAI_API_KEY)" };
    say(format!(
        "endpoint  {} ({})\nmodel     {}{}\nAPI key   {key}\n",
        llm.endpoint.redacted(),
        transport.url(),
        llm.model,
        known(llm, models.as_deref(), &reply),
    ))?;
    if let Some(failed) = reply.failure {
        bail!("{}", text::endpoint_problem(failed.kind, &failed.message, &settings));
    }
    say(format!("answer    {:.0} ms{}\n", latency.as_secs_f64() * 1e3, describe_reply(&reply)))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether the server lists the model, as far as that was to be learned.
fn known(llm: &Llm, models: Option<&[String]>, reply: &Reply) -> String {
    match models {
        // The simulator answers to any name.
        _ if llm.endpoint == Endpoint::Simulator => String::new(),
        Some(models) if models.contains(&llm.model) => " (the server lists it)".to_owned(),
        Some(models) => format!(" (not listed by the server, which has: {})", models.join(", ")),
        None if reply.status.is_none() => String::new(),
        None => " (the server does not list its models)".to_owned(),
    }
}

fn describe_reply(reply: &Reply) -> String {
    let ttft = reply.ttft.map(|t| format!(", first token after {:.0} ms", t.as_secs_f64() * 1e3));
    let tokens = match reply.tokens.output {
        Some(tokens) => format!(", {tokens} output tokens"),
        None => ", no token counts (the server reports no usage)".to_owned(),
    };
    ttft.unwrap_or_default() + &tokens
}

/// `generate-test-data`.
///
/// # Errors
/// If the file cannot be written.
pub fn generate(args: &GenerateArgs) -> Result<ExitCode> {
    snippets::save(&args.output, &snippets::generate(args.seed, args.count))?;
    say(format!("wrote {} snippets (seed {}) to {}\n", args.count, args.seed, args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// `simulate`.
///
/// # Errors
/// If the settings make no sense or the port is taken.
pub fn simulate(args: &SimulateArgs) -> Result<ExitCode> {
    let settings = match Settings::load(args.config.as_deref(), Overrides::default()) {
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
    let prompts: Vec<String> = snippets::of_run(settings)?.into_iter().map(|prompt| prompt.text).collect();
    let max_tokens = benchmark.request.max_tokens;
    Ok(simulator::explain(simulator, &benchmark.levels(), &prompts, max_tokens, EXPLAIN_REQUESTS)?)
}

// ---- deciding ----

fn printed(recommendation: &Recommendation) -> String {
    format!("\n{}\n{}", text::table(recommendation), text::answer(recommendation))
}

fn as_json(recommendation: &Recommendation, comparison: Option<&Comparison>, written: &Written) -> serde_json::Value {
    let mut value = json!(recommendation);
    if let Some(comparison) = comparison {
        value["comparison"] = json!(comparison);
    }
    value["previous"] = json!(written.previous);
    value["patched"] = json!(written.patched);
    value
}

fn decide_from(measured: Measured, settings: &Settings) -> Recommendation {
    let mut recommendation = recommend(&measured.levels, &settings.config.policy);
    if measured.quick {
        recommendation.notes.push("a quick run: fewer levels and requests than a full one".to_owned());
    }
    recommendation.provisional |= measured.quick || measured.unchecked;
    recommendation.notes.extend(measured.notes);
    recommendation
}

/// Decides at the end of a sweep, completes the results file, and prints the answer and where all of it lies.
fn conclude(settings: &Settings, args: &CriterionArgs, places: &Places, swept: &Swept) -> Result<Recommendation> {
    // With a filter the other levels come from earlier runs of the same fingerprint, as `recommend` will see them.
    let mut measured = if args.is_filtered() {
        load_measured(places, &swept.run.manifest.identity)?
    } else {
        Measured { levels: swept.run.summaries.clone(), quick: settings.quick, ..Measured::default() }
    };
    measured.notes.extend(swept.notes.clone());
    let recommendation = decide_from(measured, settings);
    swept.run.write_results(Some(&recommendation))?;
    say(printed(&recommendation))?;
    eprintln!("{}", where_written(swept, places));
    Ok(recommendation)
}

fn from_criterion(settings: &Settings, criterion: Option<&Path>) -> Result<Measured> {
    let prompts = snippets::of_run(settings)?;
    let identity = Identity::of(&settings.config, &prompts);
    Ok(load_measured(&Places::find(criterion), &identity)?)
}

fn from_results_file(path: &Path) -> Result<Measured> {
    let file = ResultsFile::read(path)?;
    let quick = file.quick();
    let from = [file.endpoint.as_deref(), file.model.as_deref(), file.started_at.as_deref()];
    let from: Vec<&str> = from.into_iter().flatten().collect();
    let notes = if from.is_empty() { Vec::new() } else { vec![format!("measured: {}", from.join(", "))] };
    Ok(Measured { levels: file.levels, notes, quick, unchecked: false })
}

fn where_written(swept: &Swept, places: &Places) -> String {
    let own_s = (swept.began.elapsed().as_secs_f64() - swept.load_s).max(0.0);
    let cpu = cpu_of_this_process().map(|cpu| format!(", {:.1} s of processor time in all", cpu.as_secs_f64()));
    format!(
        "{:.1} s of load, {own_s:.1} s around it{}. Written:\n  {} (results)\n  {} (every request)\n  {} (Criterion's report)",
        swept.load_s,
        cpu.unwrap_or_default(),
        swept.run.results_file.display(),
        swept.run.folder().display(),
        places.criterion.join("report/index.html").display(),
    )
}

// ---- writing ----

/// What came of it.
#[derive(Default)]
struct Written {
    previous: Option<u64>,
    patched: bool,
    text: String,
}

fn exit_code(recommendation: &Recommendation, wish: &WriteArgs) -> ExitCode {
    match why_not(recommendation, wish) {
        Some(_) => ExitCode::from(NOTHING_TO_WRITE),
        None => ExitCode::SUCCESS,
    }
}

/// Why the result may not be written.
fn why_not(recommendation: &Recommendation, wish: &WriteArgs) -> Option<String> {
    if !recommendation.status.may_patch() || recommendation.recommended_concurrency.is_none() {
        return Some(format!("status {}", recommendation.status.name()));
    }
    (recommendation.provisional && !wish.allow_provisional)
        .then(|| "the result is provisional (see the notes); --allow-provisional writes it all the same".to_owned())
}

fn write_config(recommendation: &Recommendation, path: &Path, wish: &WriteArgs, dry_run: bool) -> Result<Written> {
    if let Some(reason) = why_not(recommendation, wish) {
        return Ok(left_as_it_was(path, wish, dry_run, &reason));
    }
    let key = wish.config_key.as_str();
    let asked = wish.update_config || dry_run;
    let Some(level) = recommendation.recommended_concurrency.filter(|_| asked) else {
        return Ok(Written { previous: previous(path, key), ..Written::default() });
    };
    let patch = config_patch::plan(path, key, level as u64)?;
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
    config_patch::plan(path, key, 1).ok()?.previous()
}
