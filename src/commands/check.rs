//! `check`: a typical and the longest prompt of the run, sent once.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::{ConfigFile, print};
use crate::client;
use crate::client::Endpoint;
use crate::load::preflight::{Probe, Which, preflight};
use crate::load::target::Target;
use crate::measure::sweep;
use crate::prompts;
use crate::report::words;
use crate::settings::{self, Flags, Settings};

#[derive(Args, Debug)]
pub(crate) struct Check {
    #[command(flatten)]
    target: Flags<settings::Target>,
    #[command(flatten)]
    config: ConfigFile,
}

impl Check {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let settings = Settings::load(self.config.config.as_deref(), self.target.given)?;
        let llm = &settings.config.llm;
        let (transport, _simulator) = sweep::transport(&settings)?;
        let prompts = prompts::of_run(&settings)?;
        let target = Target::new(transport.clone(), &llm.model, &settings.config.benchmark.request, &prompts, "check");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (probes, models) =
            runtime.block_on(async { (preflight(&target, &prompts, drop).await, transport.models().await) });
        let key = if settings.api_key.is_some() { "set" } else { "none (LLM_API_KEY, else OPENAI_API_KEY)" };
        let proxy = if let Endpoint::Url(url) = &settings.endpoint { client::proxy_of(url) } else { None };
        print(format!(
            "endpoint  {} ({})\n{}model     {}{}\nAPI key   {key}\n",
            settings.endpoint.redacted(),
            transport.url(),
            proxy.map_or_else(String::new, |proxy| format!(
                "proxy     {proxy} (HTTP_PROXY, HTTPS_PROXY or ALL_PROXY)\n"
            )),
            llm.model,
            listed(&settings, models.as_deref(), probes.first()),
        ))?;
        for probe in &probes {
            if probe.is_refused() {
                bail!("{}", words::refused_prompt(probe, &settings));
            }
            if let Some(failed) = &probe.reply.failure {
                bail!("{}", words::endpoint_problem(failed, &settings));
            }
            print(answer(probe))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Whether the server lists the model, as far as that was to be learned.
fn listed(settings: &Settings, models: Option<&[String]>, probe: Option<&Probe>) -> String {
    match models {
        // The simulator answers to any name.
        _ if settings.endpoint == Endpoint::Simulator => String::new(),
        Some(models) if models.contains(&settings.config.llm.model) => " (the server lists it)".to_owned(),
        Some(models) => format!(" (not listed by the server, which has: {})", models.join(", ")),
        None if probe.is_none_or(|probe| probe.reply.status.is_none()) => String::new(),
        None => " (the server does not list its models)".to_owned(),
    }
}

fn answer(probe: &Probe) -> String {
    let (name, prompt) = match probe.which {
        Which::Typical => ("answer ", "a typical prompt"),
        Which::Longest => ("longest", "the longest prompt"),
    };
    let ttft = probe.reply.ttft.map(|t| format!(", first token after {:.0} ms", t.as_secs_f64() * 1e3));
    let tokens = match probe.reply.tokens.output {
        Some(tokens) => format!(", {tokens} output tokens"),
        None => ", no token counts (the server reports no usage)".to_owned(),
    };
    format!(
        "{name}   {:.0} ms{}{tokens} ({prompt}, {} characters)\n",
        probe.latency_s * 1e3,
        ttft.unwrap_or_default(),
        probe.characters
    )
}
