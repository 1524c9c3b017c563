//! `run --against`: measures two servers, or two models of one server, in turns.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::decision::decide_swept;
use super::{page, print};
use crate::decide::compare::Comparison;
use crate::decide::duet::side_by_side;
use crate::figures::EarlyEnd;
use crate::measure::duet;
use crate::measure::sweep::{self, Swept};
use crate::record::{Basis, Places, to_json, write_atomic};
use crate::report::{html, text, words};
use crate::settings::Settings;

#[derive(Args, Debug)]
#[group(multiple = true, conflicts_with_all = ["update_config", "baseline", "resume"])]
pub(super) struct AgainstArgs {
    /// Measure this server alternately with the configured one, and say how they differ [its key: $LLM_AGAINST_API_KEY]
    #[arg(long, value_name = "URL")]
    against: Option<String>,
    /// The model of the other server [default: the same]; without --against, another model of the same server
    #[arg(long, value_name = "NAME")]
    against_model: Option<String>,
}

impl AgainstArgs {
    pub(super) fn is_given(&self) -> bool {
        self.against.is_some() || self.against_model.is_some()
    }

    pub(super) fn run(&self, settings: &Settings, places: &Places) -> Result<ExitCode> {
        let other = settings.for_other(self.against.as_deref(), self.against_model.as_deref())?;
        let both = [settings, &other];
        let duet = duet::run(both, places)?;
        let [a, b] = &duet.servers;
        // Even a quick run measures everything that was asked for.
        let basis = |swept: &Swept| Basis { quick: false, ..Basis::of_run(&swept.run) };
        let decide = |swept: &Swept, settings: &Settings| decide_swept(&basis(swept), swept, settings);
        let decided = [decide(a, settings)?, decide(b, &other)?];
        let comparison = Comparison {
            title: words::two_servers(both),
            ..side_by_side(&duet.pairs, [&decided[0], &decided[1]], settings.config.policy.objective)
        };
        let answers: String = ["A", "B"]
            .iter()
            .zip(&decided)
            .map(|(name, of)| format!("{name}: {}\n", words::headline(of, None)))
            .collect();
        print(format!("\n{}{answers}{}\n", text::comparison(&comparison, None, false), words::better(&comparison)))?;
        let stamp = page::stamp_of(&a.run.results_file);
        let in_results = |name: String| places.results.join(name);
        let files = [a, b].map(|side| side.run.results_file.display().to_string());
        let path = in_results(format!("concurrency_against_{stamp}.json"));
        write_atomic(&path, &to_json(&json!({ "a": files[0], "b": files[1], "comparison": comparison })))?;
        eprintln!("Written:\n  {}\n  {}\n  {} (the comparison)", files[0], files[1], path.display());
        let [of_a, of_b] = decided;
        let runs = [("A", of_a, a), ("B", of_b, b)].map(|(label, decided, side)| {
            let run = page::without_config(decided, settings.config.policy.clone(), basis(side));
            html::Run { label: label.to_owned(), ..run }
        });
        let html = html::page_with(&runs, Some(&comparison));
        eprintln!("{}", page::write(&in_results(format!("concurrency_against_{stamp}.html")), html));
        let interrupted = a.stopped == Some(EarlyEnd::Interrupted);
        Ok(if interrupted { ExitCode::from(sweep::INTERRUPTED) } else { ExitCode::SUCCESS })
    }
}
