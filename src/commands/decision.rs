//! Turns the measurements into a recommendation, and prints and writes it.

use std::time::SystemTime;

use anyhow::Result;

use super::{page, print, screen};
use crate::decide::{Note, Recommendation, recommend_after};
use crate::load::self_check::{Cpu, cpu_time};
use crate::measure::sweep::{CriterionArgs, Swept};
use crate::monitor::textfile;
use crate::record::{Basis, Places, load_measured, write_atomic};
use crate::report::{html, text, words};
use crate::settings::Settings;

pub(super) fn decide_from(measured: &Basis, settings: &Settings) -> Recommendation {
    let policy = &settings.config.policy;
    let mut levels = measured.levels.clone();
    for level in &mut levels {
        level.usd_per_1000 = settings.limits().prices.of_1000(level).or(level.usd_per_1000);
    }
    // Under another policy, the race would have asked for other visits.
    let raced = measured.raced.as_ref().filter(|(_, by)| by == policy).map(|(raced, _)| raced);
    let mut recommendation = recommend_after(raced, &levels, policy);
    recommendation.simulated = measured.simulated;
    // If the race decided, a quick run is as sure as a full one.
    let quick = measured.quick && raced.is_none();
    recommendation.notes.extend(quick.then_some(Note::Quick));
    recommendation.notes.extend(measured.unlisted_model.then_some(Note::UnlistedModel));
    recommendation.provisional |= quick || measured.incomplete;
    recommendation.notes.extend(measured.notes.iter().cloned());
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

/// File with the figures of the latest run, for node-exporter's textfile collector. The name is always
/// the same, since the collector rejects two files with the same series.
const TEXTFILE: &str = "concurrency.prom";

/// Decides at the end of a sweep, completes the results file, writes the page, and prints the answer.
pub(super) fn conclude(
    settings: &Settings,
    args: &CriterionArgs,
    places: &Places,
    swept: &Swept,
    verbose: bool,
) -> Result<Recommendation> {
    let manifest = &swept.run.manifest;
    let own = Basis::of_run(&swept.run);
    // With a filter, the other levels come from earlier runs with the same fingerprint, as `recommend` sees them.
    let with_others = || load_measured(places, &manifest.identity, settings.limits(), Some(&swept.run));
    let measured = args.is_filtered().then(with_others).transpose()?;
    let recommendation = decide_swept(measured.as_ref().unwrap_or(&own), swept, settings)?;
    print(printed(&recommendation, settings, verbose))?;
    if verbose {
        eprintln!("{}", where_written(swept, places));
    }
    let model = manifest.about.model.as_deref().unwrap_or_default();
    let ended_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let textfile = textfile(&recommendation, model, &manifest.run_id, ended_s.round());
    // A failure to write this copy must not lose the answer.
    if let Err(error) = write_atomic(&places.results.join(TEXTFILE), textfile.as_bytes()) {
        eprintln!("note: {error}");
    }
    let run = page::of(recommendation.clone(), settings, own);
    eprintln!("{}", page::write(&places.results.join(page::name(&swept.run.results_file)), html::page(&[run])));
    Ok(recommendation)
}

/// Decides, adds the sweep's own notes, and completes its results file.
pub(super) fn decide_swept(measured: &Basis, swept: &Swept, settings: &Settings) -> Result<Recommendation> {
    let mut recommendation = decide_from(measured, settings);
    recommendation.notes.extend(swept.notes.iter().cloned());
    swept.run.write_results(Some(words::with_words(&recommendation)))?;
    Ok(recommendation)
}

fn where_written(swept: &Swept, places: &Places) -> String {
    let here = swept.began.elapsed().saturating_sub(swept.earlier);
    let own_s = (here.as_secs_f64() - swept.load_s).max(0.0);
    let cpu = cpu_time(Cpu::OfProcess).map(|cpu| format!(", {:.1} s of CPU time in all", cpu.as_secs_f64()));
    format!(
        "{:.1} s of load, {own_s:.1} s of overhead{}. Written:\n  {} (results)\n  {} (every request)\n  {} (Criterion's report)\n  {} (for node-exporter)",
        swept.load_s,
        cpu.unwrap_or_default(),
        swept.run.results_file.display(),
        swept.run.folder().display(),
        places.criterion.join("report/index.html").display(),
        places.results.join(TEXTFILE).display(),
    )
}
