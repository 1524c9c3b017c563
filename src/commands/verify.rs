//! `verify`: how much traffic the recommended level carries when requests arrive independently (open loop).

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::recommended::Recommended;
use super::{ConfigFile, NO_LONGER, NOTHING_TO_WRITE, page, print, report};
use crate::decide::verify::Verified;
use crate::figures::EarlyEnd;
use crate::load::open_loop::Arrivals;
use crate::measure::afterwards::Afterwards;
use crate::measure::sweep::INTERRUPTED;
use crate::record::ResultsFile;
use crate::report::{html, text, words};
use crate::settings::{Flags, Settings};

#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// The results file that holds the number [default: that of the latest run]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Let requests arrive at this rate per second only [default: 50, 70, 80 and 90 % of the throughput found]
    #[arg(long, value_name = "RATE", value_parser = positive)]
    rate: Option<f64>,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    settings: Flags<Settings>,
}

fn positive(text: &str) -> Result<f64, String> {
    let rate = text.trim().parse::<f64>().ok();
    rate.filter(|rate| rate.is_finite() && *rate > 0.0)
        .ok_or_else(|| "expected a number of requests per second above 0".to_owned())
}

const SHARES: [f64; 4] = [0.5, 0.7, 0.8, 0.9];

/// Requests per rate: `FEWEST`, or `TIMES` times the level if that is more. The first `level` of
/// them meet an idle server and are not counted.
const FEWEST: usize = 100;
const TIMES: usize = 5;

impl Verify {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let recommended = Recommended::read(self.file, &self.config, self.settings.given)?;
        let (level, throughput_rps) = recommended.level()?;
        let (permits, settings) = (level.summary.concurrency, &recommended.settings);
        let rates = self.rate.map_or_else(|| SHARES.map(|share| share * throughput_rps).to_vec(), |rate| vec![rate]);
        let count = FEWEST.max(permits.saturating_mul(TIMES));
        let what = words::arrivals_planned(count, &rates, permits);
        let all = (count * rates.len()) as u64;
        let requests = [count as u64, all];
        let mut asked =
            Afterwards::begin(settings, &recommended.prompts, &recommended.places, &what, requests, permits)?;
        let mut verified = Verified {
            started_at: asked.run.manifest.about.started_at.clone(),
            concurrency: permits,
            throughput_rps,
            ..Verified::default()
        };
        for (round, rate_rps) in (1_u32..).zip(rates) {
            verified.no_room = asked.no_room(count as u64).map(str::to_owned);
            if verified.no_room.is_some() || asked.stopped().is_some() {
                break;
            }
            let seed = settings.config.benchmark.seed.wrapping_add(u64::from(round));
            let load = asked.arrivals(Arrivals { rate_rps, count, permits, seed }, round)?;
            verified.add(load, &settings.config.policy);
            if !verified.and_maybe_more {
                break;
            }
        }
        let (stopped, carries) = (asked.stopped(), words::carries(&verified));
        if verified.loads.is_empty() {
            if stopped == Some(EarlyEnd::Interrupted) {
                return Ok(ExitCode::from(INTERRUPTED));
            }
            eprintln!("{carries}");
            return Ok(ExitCode::from(NOTHING_TO_WRITE));
        }
        let simulated = words::mark(recommended.decided.simulated);
        print(format!("\n{}\n{simulated}{carries}\n", text::loads(&verified, &settings.config.policy)))?;
        if stopped == Some(EarlyEnd::Interrupted) {
            return Ok(ExitCode::from(INTERRUPTED));
        }
        ResultsFile::write_verified(&recommended.path, &verified)?;
        eprintln!("Written: {}, section `verified`", recommended.path.display());
        let page = report::run_of(ResultsFile::read(&recommended.path)?, &recommended.places);
        eprintln!(
            "{}",
            page::write(&recommended.places.results.join(page::name(&recommended.path)), html::page(&[page]))
        );
        Ok(match verified.carries_rps {
            Some(_) => ExitCode::SUCCESS,
            None if stopped.is_some() => ExitCode::from(NOTHING_TO_WRITE),
            None => ExitCode::from(NO_LONGER),
        })
    }
}
