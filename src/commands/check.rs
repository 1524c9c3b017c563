//! `check`: sends a typical prompt of the run and the longest one.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::{ConfigFile, print};
use crate::client;
use crate::client::Endpoint;
use crate::load::preflight::{Probe, Which, preflight};
use crate::load::target::Target;
use crate::measure::sweep;
use crate::prompts::{self, Prompt};
use crate::report::words;
use crate::settings::{self, Flags, Settings};

#[derive(Args, Debug)]
pub(crate) struct Check {
    #[command(flatten)]
    target: Flags<settings::Server>,
    #[command(flatten)]
    config: ConfigFile,
}

impl Check {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let settings = Settings::load(self.config.config.as_deref(), self.target.given)?;
        let llm = &settings.config.llm;
        let prompts = prompts::of_run(&settings)?;
        let Asked { url, models, probes, .. } = ask(&settings, &prompts, |_| llm.model.clone())?;
        let key = match (&settings.api_key, &llm.api_key_header) {
            (Some(_), Some(header)) => format!("set (sent as {header})"),
            (Some(_), None) => "set".to_owned(),
            (None, _) => "none (neither LLM_API_KEY nor OPENAI_API_KEY is set)".to_owned(),
        };
        let headers = llm.headers.names().collect::<Vec<_>>().join(", ");
        let headers = if headers.is_empty() { headers } else { format!("headers   {headers} (values not shown)\n") };
        let proxy = if let Endpoint::Url(url) = &settings.endpoint { client::proxy_of(url) } else { None };
        print(format!(
            "endpoint  {} ({})\n{}model     {}{}\nAPI key   {key}\n{headers}",
            settings.endpoint.redacted(),
            url,
            proxy.map_or_else(String::new, |proxy| format!(
                "proxy     {proxy} (HTTP_PROXY, HTTPS_PROXY or ALL_PROXY)\n"
            )),
            llm.model,
            listed(&settings, models.as_deref(), probes.first()),
        ))?;
        for probe in &probes {
            if let Some(problem) = words::problem(probe, &settings) {
                bail!("{problem}");
            }
            print(answer(probe))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The answers of an endpoint that was asked for its models and sent a few prompts.
pub(super) struct Asked {
    pub(super) url: String,
    pub(super) models: Option<Vec<String>>,
    pub(super) model: String,
    pub(super) probes: Vec<Probe>,
}

/// `choose` selects the model, given those that the server lists.
pub(super) fn ask(
    settings: &Settings,
    prompts: &[Prompt],
    choose: impl FnOnce(Option<&[String]>) -> String,
) -> Result<Asked> {
    let (transport, _simulator) = sweep::transport(settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (url, models) = (transport.url(), runtime.block_on(transport.models()));
    let model = choose(models.as_deref());
    let target = Target::new(transport, &model, &settings.config.benchmark.request, prompts, "check");
    let probes = runtime.block_on(preflight(&target, prompts, drop));
    Ok(Asked { url, models, model, probes })
}

fn listed(settings: &Settings, models: Option<&[String]>, probe: Option<&Probe>) -> String {
    match models {
        // The simulator accepts any model name.
        _ if settings.endpoint == Endpoint::Simulator => String::new(),
        Some(models) if models.contains(&settings.config.llm.model) => " (the server lists it)".to_owned(),
        Some(models) => format!(" (not listed by the server, which lists: {})", models.join(", ")),
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
        Some(tokens) => {
            let reasoning = probe.reply.tokens.reasoning.filter(|&n| n > 0);
            let reasoning = reasoning.map_or_else(String::new, |n| format!(" ({n} of them reasoning)"));
            format!(", {tokens} output tokens{reasoning}")
        }
        None => ", no token counts (the server reports no usage)".to_owned(),
    };
    format!(
        "{name}   {:.0} ms{}{tokens} ({prompt}, {} characters)\n",
        probe.latency_s * 1e3,
        ttft.unwrap_or_default(),
        probe.characters
    )
}
