//! `init`: writes a config.yaml for an endpoint, after checking that it works.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::check::{Asked, ask};
use super::print;
use crate::client::{Endpoint, SIMULATOR};
use crate::prompts;
use crate::report::words;
use crate::settings::{self, Flags, Settings};

/// The config file that this project ships, including its comments.
const SHIPPED: &str = include_str!("../../config.yaml");

#[derive(Args, Debug)]
pub(crate) struct Init {
    #[command(flatten)]
    target: Flags<settings::Server>,
    /// Where to write; an existing file is left alone
    #[arg(long, value_name = "PATH", default_value = "config.yaml")]
    config: PathBuf,
}

impl Init {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let path = self.config;
        if path.exists() {
            bail!("{} already exists and is left alone; name another file with --config", path.display());
        }
        let settings = Settings::without_file(path.clone(), self.target.given)?;
        let prompts: Vec<_> = prompts::of_run(&settings)?.into_iter().take(1).collect();
        let Asked { model, probes, .. } = ask(&settings, &prompts, |listed| chosen_model(&settings, listed))?;
        if let Some(problem) = probes.iter().find_map(|probe| words::problem(probe, &settings)) {
            bail!("{problem}");
        }
        // The file may have been created in the meantime.
        let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
        file.and_then(|mut file| file.write_all(config(&settings.endpoint, &model).as_bytes())).with_context(|| {
            format!("cannot write {}; use --config to name a file in a folder that you may write to", path.display())
        })?;
        let left_out = match &settings.endpoint {
            Endpoint::Url(url) if url.as_str() != settings.endpoint.redacted() => {
                "The file leaves out the user, password and query of the URL: keep the whole URL in LLM_ENDPOINT.\n"
            }
            _ => "",
        };
        print(format!(
            "{} answers as {model}; wrote {}\n{left_out}Next: llm-concurrency run --update-config\n",
            settings.endpoint.redacted(),
            path.display()
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The named model; if none was named and the server lists exactly one, that one.
fn chosen_model(settings: &Settings, listed: Option<&[String]>) -> String {
    let named = &settings.config.llm.model;
    match listed {
        Some([only]) if *named == settings::Config::default().llm.model => only.clone(),
        _ => named.clone(),
    }
}

/// The shipped settings with this endpoint, model and the built-in prompts; `simulator` only if it is the endpoint.
fn config(endpoint: &Endpoint, model: &str) -> String {
    let is_simulated = *endpoint == Endpoint::Simulator;
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let url = if is_simulated { SIMULATOR.to_owned() } else { quoted(&endpoint.redacted()) };
    let mut text = String::new();
    for line in SHIPPED.lines() {
        match line.trim_start().split(':').next().unwrap_or_default() {
            "endpoint" => text.push_str(&format!("  endpoint: {url}")),
            "model" => text.push_str(&format!("  model: {}", quoted(model))),
            "prompts" => {
                text.push_str("    # prompts: my_prompts.json    # a file of your own instead of the built-in ones")
            }
            "simulator" if !is_simulated => break,
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}
