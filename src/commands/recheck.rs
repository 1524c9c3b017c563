//! `recheck`: does the number still hold?

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::known::Known;
use super::{ConfigFile, NO_LONGER, NOTHING_TO_WRITE, print};
use crate::decide::recheck::{self, Holds};
use crate::load::closed_loop::LoopPlan;
use crate::measure::afterwards::{Afterwards, visits_to};
use crate::measure::sweep::{INTERRUPTED, Stop};
use crate::record::Night;
use crate::report::words;
use crate::settings::{Flags, Settings};

#[derive(Args, Debug)]
pub(crate) struct Recheck {
    /// The results file that holds the number
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    settings: Flags<Settings>,
}

impl Recheck {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let known = Known::read(Some(self.file), &self.config, self.settings.given)?;
        let (number, run) = (known.number()?.0.summary.concurrency, &known.decided.levels);
        let mut night = Night {
            started_at: None,
            fingerprint: known.fingerprint.clone(),
            concurrency: number,
            run_id: known.run_id.clone(),
            verdict: Holds::CannotTell,
            looks: Vec::new(),
        };
        let earlier = night.earlier(&known.places)?;
        let levels = recheck::levels(number, run);
        let plans = visits_to(&known.settings, &levels);
        let all: u64 = plans.iter().map(LoopPlan::tickets).sum();
        let what = format!("short visits to {}", words::levels(&levels));
        let highest = levels.last().copied().unwrap_or(number);
        let mut asked = Afterwards::begin(&known.settings, &known.prompts, &known.places, &what, [all, all], highest)?;
        let (windows, requests) = asked.visits(&plans)?;
        if let Some(stop) = asked.stopped() {
            eprintln!("{}", words::recheck_stopped());
            return Ok(ExitCode::from(if stop == Stop::Interrupted { INTERRUPTED } else { NOTHING_TO_WRITE }));
        }
        night.started_at.clone_from(&asked.run.manifest.about.started_at);
        night.looks = recheck::looks(&windows, &requests);
        let nights: Vec<_> = earlier.into_iter().map(|night| night.looks).chain([night.looks.clone()]).collect();
        let found = recheck::recheck(number, run, &nights, &known.settings.config.policy);
        night.verdict = found.verdict;
        let simulated = if known.decided.simulated { "SIMULATED: " } else { "" };
        print(format!("\n{simulated}{}\n", words::rechecked(number, &found).join("\n  ")))?;
        let path = night.save(&known.places)?;
        eprintln!("Written: {}, after {} requests", path.display(), asked.sent);
        Ok(ExitCode::from(match found.verdict {
            Holds::Holds => 0,
            Holds::CannotTell => NOTHING_TO_WRITE,
            Holds::TooLow | Holds::TooHigh | Holds::ServerSlower => NO_LONGER,
        }))
    }
}
