//! `cargo bench`: settings from config.yaml and the environment, since Criterion owns the command line.

use std::process::ExitCode;

use anyhow::{Result, bail};

use super::decision;
use crate::figures::EarlyEnd;
use crate::measure::sweep::{self, CriterionArgs, Mode};
use crate::monitor::terminal_width;
use crate::record::Places;
use crate::report::text;
use crate::settings::{Overrides, Settings};

/// The exit code is always 0 or 1.
pub fn bench() -> Result<ExitCode> {
    let args = CriterionArgs::parse(std::env::args().skip(1))?;
    let settings = Settings::load(None, Overrides::default())?;
    let places = Places::find(None);
    let swept = sweep::run(&settings, &args, &places, None, false)?;
    if args.mode != Mode::Measure {
        return Ok(ExitCode::SUCCESS);
    }
    // The flags by which Criterion itself becomes verbose.
    let verbose = std::env::args().any(|arg| ["-v", "--verbose"].contains(&arg.as_str()));
    let recommendation = decision::conclude(&settings, &args, &places, &swept, verbose)?;
    if swept.stopped == Some(EarlyEnd::Interrupted) {
        bail!("interrupted: what was measured is on disk; `llm-concurrency run --resume` continues from there");
    }
    if recommendation.status.may_patch() && !recommendation.provisional {
        let told =
            format!("To write it into {}: {} --update-config", settings.path.display(), recommend_from_here(&places));
        eprint!("{}", text::fitted(&told, terminal_width()));
    }
    Ok(ExitCode::SUCCESS)
}

/// The command that decides again. In another package there is no `recommend` binary, and the
/// installed program, run without cargo, would not know that package's target folder.
fn recommend_from_here(places: &Places) -> String {
    match std::env::var("CARGO_PKG_NAME") {
        Ok(package) if package != env!("CARGO_PKG_NAME") => {
            format!("llm-concurrency recommend --criterion-dir '{}'", places.criterion.display())
        }
        _ => "cargo run --bin recommend --".to_owned(),
    }
}
