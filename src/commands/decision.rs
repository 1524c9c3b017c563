//! From what was measured to the recommendation, and where it goes.

use std::time::SystemTime;

use anyhow::Result;

use super::page::Recorded;
use super::{page, print, screen};
use crate::client::Endpoint;
use crate::decide::{Note, Recommendation, recommend_after};
use crate::load::self_check::{Cpu, cpu_time};
use crate::measure::sweep::{CriterionArgs, Swept};
use crate::monitor::textfile;
use crate::prompts;
use crate::record::{Basis, Identity, Places, ResultsFile, load_measured, write_atomic};
use crate::report::{html, text, words};
use crate::settings::{SIMULATED_MODEL, Settings};

pub(super) fn from_criterion(settings: &Settings, places: &Places) -> Result<(Basis, Recorded)> {
    let identity = Identity::of(settings, &prompts::of_run(settings)?);
    let simulated = settings.endpoint == Endpoint::Simulator;
    let measured = Basis { simulated, ..load_measured(places, &identity, settings.limits(), None)? };
    let (run_id, about) = measured.newest.as_ref().map(|run| (run.run_id.clone(), run.about.clone())).unzip();
    let (about, requests) = (about.unwrap_or_default(), measured.requests.clone());
    Ok((measured, Recorded { run_id, about, requests, verified: None }))
}

pub(super) fn from_file(ResultsFile { about, levels, raced, .. }: &ResultsFile) -> Basis {
    let simulated = about.simulated();
    let model = if simulated { Some(SIMULATED_MODEL.to_owned()) } else { about.model.clone() };
    let (endpoint, started_at) = (about.endpoint.clone(), about.started_at.clone());
    let is_described = [&endpoint, &model, &started_at].into_iter().any(Option::is_some);
    Basis {
        levels: levels.clone(),
        raced: raced.zip(about.settings.policy.clone()),
        notes: is_described.then_some(Note::Source { endpoint, model, started_at }).into_iter().collect(),
        quick: about.settings.quick,
        simulated,
        unlisted_model: about.settings.model_is_listed == Some(false),
        ..Basis::default()
    }
}

pub(super) fn decide_from(mut measured: Basis, settings: &Settings) -> Recommendation {
    let policy = &settings.config.policy;
    for level in &mut measured.levels {
        level.usd_per_1000 = settings.limits().prices.of_1000(level).or(level.usd_per_1000);
    }
    // By another policy the race would have asked for something else.
    let raced = measured.raced.as_ref().filter(|(_, by)| by == policy).map(|(raced, _)| raced);
    let mut recommendation = recommend_after(raced, &measured.levels, policy);
    recommendation.simulated = measured.simulated;
    // The short way to an answer is as sure as the long one where the race decided.
    let quick = measured.quick && raced.is_none();
    recommendation.notes.extend(quick.then_some(Note::Quick));
    recommendation.notes.extend(measured.unlisted_model.then_some(Note::UnlistedModel));
    recommendation.provisional |= quick || measured.incomplete;
    recommendation.notes.extend(measured.notes);
    recommendation
}

pub(super) fn printed(recommendation: &Recommendation, settings: &Settings, verbose: bool) -> String {
    let screen = screen(verbose);
    let brief = text::brief(recommendation, settings.present(recommendation.simulated), screen);
    match verbose {
        true => format!("\n{}\n{}", text::table(recommendation, screen.width), text::answer(recommendation)),
        false => format!("\n{brief}"),
    }
}

/// The figures of the newest run, in the folder of results, for node-exporter's textfile collector. Its name stays,
/// since of two files with the same series the collector takes neither.
const TEXTFILE: &str = "concurrency.prom";

/// Decides at the end of a sweep, completes the results file, and prints the answer and where all of it lies.
pub(super) fn conclude(
    settings: &Settings,
    args: &CriterionArgs,
    places: &Places,
    swept: &Swept,
    verbose: bool,
) -> Result<Recommendation> {
    let manifest = &swept.run.manifest;
    // With a filter the other levels come from earlier runs of the same fingerprint, as `recommend` will see them.
    let measured = if args.is_filtered() {
        load_measured(places, &manifest.identity, settings.limits(), Some(&swept.run))?
    } else {
        Basis { quick: settings.quick, ..own(swept, settings) }
    };
    let recommendation = decide_swept(measured, swept, settings)?;
    print(printed(&recommendation, settings, verbose))?;
    if verbose {
        eprintln!("{}", where_written(swept, places));
    }
    let model = manifest.about.model.as_deref().unwrap_or_default();
    let ended_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let textfile = textfile(&recommendation, model, &manifest.run_id, ended_s.round());
    // The answer is worth more than its copy.
    if let Err(error) = write_atomic(&places.results.join(TEXTFILE), textfile.as_bytes()) {
        eprintln!("note: {error}");
    }
    let run = page::of(recommendation.clone(), settings, Recorded::of(swept));
    eprintln!("{}", page::write(&places.results.join(page::name(&swept.run.results_file)), html::page(&[run])));
    Ok(recommendation)
}

/// What a sweep measured itself.
pub(super) fn own(swept: &Swept, settings: &Settings) -> Basis {
    let manifest = &swept.run.manifest;
    Basis {
        levels: swept.run.summaries.clone(),
        unlisted_model: manifest.about.settings.model_is_listed == Some(false),
        raced: manifest.raced.map(|raced| (raced, settings.config.policy.clone())),
        ..Basis::default()
    }
}

/// Decides, with what the sweep has to say of itself, and completes its results file.
pub(super) fn decide_swept(mut measured: Basis, swept: &Swept, settings: &Settings) -> Result<Recommendation> {
    measured.simulated = settings.endpoint == Endpoint::Simulator;
    measured.notes.extend(swept.notes.clone());
    let recommendation = decide_from(measured, settings);
    swept.run.write_results(Some(words::with_words(&recommendation)))?;
    Ok(recommendation)
}

fn where_written(swept: &Swept, places: &Places) -> String {
    let own_s = (swept.began.elapsed().as_secs_f64() - swept.load_s).max(0.0);
    let cpu = cpu_time(Cpu::OfProcess).map(|cpu| format!(", {:.1} s of processor time in all", cpu.as_secs_f64()));
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
