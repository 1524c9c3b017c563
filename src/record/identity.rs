//! The identity of what was measured, which decides whether two runs may be compared.

use std::collections::BTreeSet;
use std::fmt::Display;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::About;
use crate::client::{Endpoint, RequestSettings};
use crate::prompts::Prompt;
use crate::settings::Settings;

/// Everything that must be equal for two measurements to be comparable. Contains no secrets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The endpoint without its secrets, or `simulator`.
    pub endpoint: String,
    /// The simulator's settings, if it is the endpoint.
    pub simulator: Option<Value>,
    pub model: String,
    pub request: Value,
    pub prompts: String,
}

impl Identity {
    /// The identity of a measurement with these settings and prompts.
    pub fn of(settings: &Settings, prompts: &[Prompt]) -> Self {
        let Settings { config, endpoint, .. } = settings;
        let simulator = (*endpoint == Endpoint::Simulator).then(|| json!(config.simulator));
        let mut texts = Sha256::new();
        for prompt in prompts {
            texts.update(prompt.text.as_bytes());
            texts.update([0]);
            let rest = Prompt { id: String::new(), size: String::new(), text: String::new(), ..prompt.clone() };
            if rest != Prompt::default() {
                texts.update(json!(rest).to_string());
            }
        }
        // The content of the prompts counts, not the path of their file.
        let request = RequestSettings { prompts: None, ..config.benchmark.request.clone() };
        Identity {
            endpoint: endpoint.redacted(),
            simulator,
            model: config.llm.model.clone(),
            request: json!(request),
            prompts: hex(&texts.finalize()[..8]),
        }
    }

    /// Reconstructs what a results file records; the rest is taken from `now`. If all of that is equal, the prompts or
    /// the simulator's settings, which the file lacks, must differ: the prompts are then marked as different.
    pub(super) fn recorded(about: &About, now: &Identity) -> Self {
        let request = about.settings.request.clone().map(|request| json!(RequestSettings { prompts: None, ..request }));
        let mut then = Identity {
            endpoint: about.endpoint.clone().unwrap_or_default(),
            model: about.model.clone().unwrap_or_default(),
            request: request.unwrap_or_default(),
            ..now.clone()
        };
        if then == *now {
            then.prompts = "others".to_owned();
        }
        then
    }

    /// 16 hexadecimal digits that are equal if and (almost certainly) only if all parts are.
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(json!(self).to_string())[..8])
    }

    /// The differences of `self` (as measured) from `now`, one per line.
    pub(super) fn differences(&self, now: &Identity) -> String {
        let mut lines = String::new();
        let mut compare = |what: &str, then: &dyn Display, now: &dyn Display| {
            let (then, now) = (then.to_string(), now.to_string());
            if then != now {
                lines.push_str(&difference(what, &then, &now));
            }
        };
        compare("endpoint", &self.endpoint, &now.endpoint);
        compare("model", &self.model, &now.model);
        compare("prompts (hash)", &self.prompts, &now.prompts);
        lines += &differences("benchmark.request.", &self.request, &now.request);
        if let (Some(then), Some(now)) = (&self.simulator, &now.simulator) {
            lines += &differences("simulator.", then, now);
        }
        lines
    }
}

/// The keys in which two objects differ, one per line.
pub(super) fn differences(section: &str, then: &Value, now: &Value) -> String {
    let keys = [then, now].into_iter().filter_map(Value::as_object).flat_map(|object| object.keys());
    let keys = keys.collect::<BTreeSet<_>>().into_iter().filter(|key| then[*key] != now[*key]);
    keys.map(|key| difference(&format!("{section}{key}"), &then[key], &now[key])).collect()
}

fn difference(what: &str, then: &dyn Display, now: &dyn Display) -> String {
    format!("  {what}: measured with {then}, now {now}\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
