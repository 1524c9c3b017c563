//! A recommended level from an earlier run, and the settings for sending further requests to its server.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::ConfigFile;
use super::decision::decide_from;
use crate::decide::{JudgedLevel, Recommendation};
use crate::figures::Limits;
use crate::prompts::{self, Prompt};
use crate::record::{Basis, Identity, Places, ResultsFile, RunId, load_measured};
use crate::report::words;
use crate::settings::{Overrides, Settings};

pub(super) struct Recommended {
    pub(super) path: PathBuf,
    pub(super) settings: Settings,
    pub(super) places: Places,
    pub(super) prompts: Vec<Prompt>,
    pub(super) decided: Recommendation,
    pub(super) fingerprint: String,
    pub(super) run_id: Option<RunId>,
}

impl Recommended {
    /// Reads `file`, else the results of the latest run. Fails if its settings differ or its answer is not reliable.
    pub(super) fn read(file: Option<PathBuf>, config: &ConfigFile, flags: Overrides) -> Result<Self> {
        let settings = Settings::load(config.config.as_deref(), flags)?;
        let places = Places::find(None);
        let prompts = prompts::of_run(&settings)?;
        let now = Identity::of(&settings, &prompts);
        let path = match file {
            Some(path) => path,
            None => latest(&places, &now)?,
        };
        let file = ResultsFile::read(&path)?;
        file.check_fits(&path, &places, &now)?;
        let measured = Basis::of_file(file);
        let decided = decide_from(&measured, &settings);
        if decided.provisional || !decided.status.may_patch() {
            bail!("{} holds no reliable number: {}", path.display(), words::no_number(&decided));
        }
        let fingerprint = now.fingerprint();
        Ok(Recommended { path, settings, places, prompts, decided, fingerprint, run_id: measured.run_id })
    }

    /// The recommended level and its throughput, requests/s.
    pub(super) fn level(&self) -> Result<(&JudgedLevel, f64)> {
        let level = self.decided.chosen();
        let throughput = level.and_then(|level| Some((level, level.throughput().filter(|&rps| rps > 0.0)?)));
        throughput.with_context(|| format!("{} holds no throughput for the recommended level", self.path.display()))
    }
}

fn latest(places: &Places, now: &Identity) -> Result<PathBuf> {
    let run_id = load_measured(places, now, Limits::default(), None)?
        .run_id
        .context("no run is left on disk: name its results file")?;
    let path = run_id.results_file(places);
    if !path.exists() {
        bail!("the results file of the latest run ({}) is not in {}", *run_id, places.results.display());
    }
    Ok(path)
}
