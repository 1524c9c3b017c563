//! `recheck`: does the number still hold?

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::recommended::Recommended;
use super::{ConfigFile, NO_LONGER, NOTHING_TO_WRITE, print};
use crate::decide::recheck::{self, Holds};
use crate::figures::EarlyEnd;
use crate::load::closed_loop::LoopPlan;
use crate::measure::afterwards::Afterwards;
use crate::measure::plan::night_of_visits;
use crate::measure::sweep::INTERRUPTED;
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
        let recommended = Recommended::read(Some(self.file), &self.config, self.settings.given)?;
        let (number, run) = (recommended.level()?.0.summary.concurrency, &recommended.decided.levels);
        let mut night = Night {
            started_at: None,
            fingerprint: recommended.fingerprint.clone(),
            concurrency: number,
            run_id: recommended.run_id.clone(),
            verdict: Holds::CannotTell,
            levels: Vec::new(),
        };
        let earlier = night.earlier(&recommended.places)?;
        let levels = recheck::levels(number, run);
        let plans = night_of_visits(&recommended.settings, &levels);
        let all: u64 = plans.iter().map(LoopPlan::tickets).sum();
        let what = format!("short visits to {}", words::levels(&levels));
        let highest = levels.last().copied().unwrap_or(number);
        let mut asked = Afterwards::begin(
            &recommended.settings,
            &recommended.prompts,
            &recommended.places,
            &what,
            [all, all],
            highest,
        )?;
        let (windows, requests) = asked.visits(&plans)?;
        if let Some(stop) = asked.stopped() {
            eprintln!("{}", words::recheck_stopped());
            return Ok(ExitCode::from(if stop == EarlyEnd::Interrupted { INTERRUPTED } else { NOTHING_TO_WRITE }));
        }
        night.started_at.clone_from(&asked.run.manifest.about.started_at);
        night.levels = recheck::rates_by_level(&windows, &requests);
        let nights: Vec<_> = earlier.into_iter().map(|night| night.levels).chain([night.levels.clone()]).collect();
        let found = recheck::recheck(number, run, &nights, &recommended.settings.config.policy);
        night.verdict = found.verdict;
        let simulated = words::mark(recommended.decided.simulated);
        print(format!("\n{simulated}{}\n", words::rechecked(number, &found).join("\n  ")))?;
        let path = night.save(&recommended.places)?;
        eprintln!("Written: {}, after {} requests", path.display(), asked.sent);
        Ok(ExitCode::from(match found.verdict {
            Holds::Holds => 0,
            Holds::CannotTell => NOTHING_TO_WRITE,
            Holds::TooLow | Holds::TooHigh | Holds::ServerSlower => NO_LONGER,
        }))
    }
}
