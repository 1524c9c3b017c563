//! Locations of the files.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

#[derive(Clone, Debug)]
pub struct Places {
    pub criterion: PathBuf,
    /// Run folders: `concurrency` next to Criterion's folder, not in it, since Criterion's index lists all in there.
    pub runs: PathBuf,
    /// Results files and reports.
    pub results: PathBuf,
}

impl Places {
    /// Uses the given folder of Criterion's, or finds it as Criterion does.
    pub fn find(criterion: Option<&Path>) -> Self {
        let criterion = criterion.map(Path::to_owned).unwrap_or_else(criterion_folder);
        let target = criterion.parent().unwrap_or(Path::new("")).to_owned();
        Places { runs: target.join("concurrency"), results: PathBuf::from("results"), criterion }
    }
}

/// Criterion's order: `$CRITERION_HOME`, then `criterion` in `$CARGO_TARGET_DIR`, cargo's target folder or `target`.
fn criterion_folder() -> PathBuf {
    if let Some(home) = std::env::var_os("CRITERION_HOME") {
        return home.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).or_else(cargo_target);
    target.unwrap_or_else(|| "target".into()).join("criterion")
}

fn cargo_target() -> Option<PathBuf> {
    let cargo = std::env::var_os("CARGO")?;
    let output = Command::new(cargo).args(["metadata", "--format-version", "1", "--no-deps"]).output().ok()?;
    let metadata: Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(metadata["target_directory"].as_str()?.into())
}
