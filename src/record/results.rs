//! Results files: the outcome of a run, for people and programs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    About, Identity, MOST_OF_JSON, Manifest, Places, RequestsFile, ResultsError, RunId, read_json, to_json,
    write_atomic,
};
use crate::decide::verify::Verified;
use crate::decide::{OF_VERDICT, Raced, Recommendation};
use crate::figures::LevelSummary;

/// The schema of results files.
pub const SCHEMA: &str = "llm-concurrency/results/v1";

/// A results file. Nearly everything may be missing; unknown keys are kept separately.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResultsFile {
    /// [`SCHEMA`].
    pub schema: String,
    pub run_id: Option<RunId>,
    #[serde(flatten)]
    pub about: About,
    pub levels: Vec<LevelSummary>,
    /// The final recommendation, without the figures of the levels, which are in `levels`.
    pub recommendation: Option<Value>,
    /// The result of the race.
    pub raced: Option<Raced>,
    /// The traffic that the number sustains, as found by `verify`.
    pub verified: Option<Verified>,
    /// Keys that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

impl ResultsFile {
    pub(super) fn new(manifest: &Manifest, levels: Vec<LevelSummary>, recommendation: Option<Value>) -> Self {
        ResultsFile {
            schema: SCHEMA.to_owned(),
            run_id: Some(manifest.run_id.clone()),
            about: manifest.about.clone(),
            levels,
            recommendation: recommendation.map(without_figures),
            raced: manifest.raced,
            verified: None,
            unknown: BTreeMap::new(),
        }
    }

    /// Reads a results file. An error if it cannot be read, is not JSON, has another schema, lacks a valid list of
    /// levels, or has an impossible figure.
    pub fn read(path: &Path) -> Result<Self, ResultsError> {
        let file: ResultsFile = read_json(path, MOST_OF_JSON, "results file")?;
        let wrong =
            |message: String| Err(ResultsError::Format { path: path.to_owned(), what: "results file", message });
        if !file.schema.is_empty() && file.schema != SCHEMA {
            return wrong(format!("its schema is `{}`, and this version reads `{SCHEMA}`", file.schema));
        }
        if file.levels.is_empty() {
            return wrong("it holds no levels".to_owned());
        }
        let mut seen = BTreeSet::new();
        for level in file.levels.iter().map(|level| level.concurrency) {
            if level == 0 {
                return wrong("a level has no `concurrency`, or 0; levels start at 1".to_owned());
            }
            if !seen.insert(level) {
                return wrong(format!("level {level} appears twice"));
            }
        }
        for level in &file.levels {
            let (is, can_be) = (json!(level), json!(level.clone().without_impossible()));
            if let Some((name, value)) = difference("", &is, &can_be) {
                return wrong(format!("level {}: `{name}` cannot be {value}", level.concurrency));
            }
        }
        Ok(file)
    }

    /// The recorded recommendation, with the figures of its levels merged in; `None` if there is none that this version
    /// can read or that covers all levels.
    pub fn recorded(&self) -> Option<Recommendation> {
        let mut value = self.recommendation.clone()?;
        for level in value.get_mut("levels")?.as_array_mut()? {
            let concurrency = level["concurrency"].as_u64()?;
            let figures = self.levels.iter().find(|summary| summary.concurrency as u64 == concurrency);
            let mut whole = json!(figures.cloned().unwrap_or_default());
            whole.as_object_mut()?.append(level.as_object_mut()?);
            *level = whole;
        }
        let recorded = Recommendation::recorded(value)?;
        let is_judged =
            |of: &LevelSummary| recorded.levels.iter().any(|level| level.summary.concurrency == of.concurrency);
        self.levels.iter().all(is_judged).then_some(recorded)
    }

    /// An error with the differences if measurements made now would not be comparable. If the run's manifest is gone,
    /// the file itself has most of the identity, but not the prompts.
    pub fn check_fits(&self, path: &Path, places: &Places, now: &Identity) -> Result<(), ResultsError> {
        if self.about.fingerprint.as_deref() == Some(&now.fingerprint()) {
            return Ok(());
        }
        let then = self.manifest(places).map(|(_, manifest)| manifest.identity);
        let then = then.unwrap_or_else(|| Identity::recorded(&self.about, now));
        Err(ResultsError::OtherThanMeasured { path: path.to_owned(), differences: then.differences(now) })
    }

    /// Sets the section `verified` of a results file and leaves the rest unchanged.
    pub fn write_verified(path: &Path, verified: &Verified) -> Result<(), ResultsError> {
        let mut file: Value = read_json(path, MOST_OF_JSON, "results file")?;
        file["verified"] = json!(verified);
        write_atomic(path, &to_json(&file))
    }

    /// The records of the run's requests; empty if its folder is gone.
    pub fn requests(&self, places: &Places) -> Vec<RequestsFile> {
        self.manifest(places).map(|(folder, manifest)| manifest.requests(&folder)).unwrap_or_default()
    }

    fn manifest(&self, places: &Places) -> Option<(PathBuf, Manifest)> {
        let folder = places.runs.join(self.run_id.as_ref()?.as_str());
        let manifest = Manifest::read(&folder.join("run.json")).ok()?;
        Some((folder, manifest))
    }
}

/// Removes the figures of the levels, which the file already has in `levels`.
fn without_figures(mut recommendation: Value) -> Value {
    for level in recommendation["levels"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        level.retain(|key, _| key == "concurrency" || OF_VERDICT.contains(&key.as_str()));
    }
    recommendation
}

/// The first value of `one` that differs in `other`, with its path.
fn difference<'a>(path: &str, one: &'a Value, other: &Value) -> Option<(String, &'a Value)> {
    let name = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (one, other) {
        (Value::Object(values), Value::Object(_)) => {
            values.iter().find_map(|(key, value)| difference(&name(key), value, &other[key]))
        }
        (Value::Array(values), Value::Array(_)) => {
            let mut numbered = values.iter().enumerate();
            numbered.find_map(|(at, value)| difference(&format!("{path}[{at}]"), value, &other[at]))
        }
        _ => (one != other).then(|| (path.to_owned(), one)),
    }
}
