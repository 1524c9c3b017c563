//! Reads a config file in which our sections may sit among those of other programs.

use std::fmt::Display;
use std::io::ErrorKind;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use serde_yaml::Value;

use super::config::{ConfigError, invalid, near_miss};
use crate::files::{self, Format};

/// In bytes. No real configuration is larger, and parsing this much takes well under a second.
const LARGEST_FILE: u64 = 1 << 20;

/// No real configuration nests deeper; the parser's time grows with the square of the depth.
const DEEPEST: usize = 64;

pub(crate) fn read_text(path: &Path) -> Result<String, ConfigError> {
    files::read_to_string(path, LARGEST_FILE).map_err(|cause| match cause.kind() {
        ErrorKind::NotFound => ConfigError::NotFound(path.to_owned()),
        _ => invalid(format!("cannot read {}", path.display()), cause.to_string()),
    })
}

/// Parses the text of a config file; `path` is for messages. Rejects keys that are almost ours
/// and ignores all other unknown keys.
pub(crate) fn parse<T: DeserializeOwned + Serialize + Default>(text: &str, path: &Path) -> Result<T, ConfigError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if depth(text) > DEEPEST {
        let message = format!("it is nested deeper than {DEEPEST} levels, so it is hardly a configuration");
        return Err(invalid(path.display().to_string(), message));
    }
    let broken = |error: serde_yaml::Error| with_place(&error, place_of(&error), path);
    let format = Format::of(path);
    let mut value: Value = match format {
        // Everything but the number is read as environment variables. The first definition wins, as in `Env`.
        Format::Env => {
            let mut variables = dotenvy::from_read_iter(text.as_bytes()).flatten();
            let number = variables.find(|(name, _)| name == "LLM_MAX_CONCURRENT_REQUESTS").map(|(_, value)| value);
            let Some(number) = number.filter(|value| !value.trim().is_empty()) else { return Ok(T::default()) };
            serde_yaml::to_value(json!({"llm": {"max_concurrent_requests": number}})).map_err(broken)?
        }
        Format::Toml => toml_edit::de::from_str(text).map_err(|error| {
            let at = error.span().map(|span| text[..span.start].lines().count().max(1));
            let place = at.map_or_else(|| path.display().to_string(), |line| format!("{}:{line}", path.display()));
            invalid(place, error.message().trim())
        })?,
        Format::Json => serde_json::from_str(text)
            .map_err(|error| with_place(&error, Some((error.line(), error.column())), path))?,
        Format::Yaml => serde_yaml::from_str(text).map_err(broken)?,
    };
    if value.is_null() {
        let needed = "it needs at least a section `llm` with `endpoint` and `model`";
        return Err(invalid(format!("{} is empty", path.display()), needed));
    }
    let ours = serde_yaml::to_value(T::default()).map_err(broken)?;
    refuse_near_misses(text, path, &value, &ours)?;
    refuse_near_misses(text, path, &value["llm"], &ours["llm"])?;
    // Deserialize from the text where possible, so that errors have a line number.
    let is_yaml = format == Format::Yaml;
    let merges = is_yaml && text.contains("<<");
    if merges {
        value.apply_merge().map_err(broken)?;
        refuse_near_misses(text, path, &value["llm"], &ours["llm"])?;
    }
    if !merges && is_yaml {
        return serde_yaml::from_str(text).map_err(broken);
    }
    // Written anew, an error has its key; its line is one of a text that nobody has seen.
    let text = serde_yaml::to_string(&value).map_err(broken)?;
    let elsewhere = |error| invalid(path.display().to_string(), without_place(&error, place_of(&error)));
    serde_yaml::from_str(&text).map_err(elsewhere)
}

type Place = Option<(usize, usize)>;

fn place_of(error: &serde_yaml::Error) -> Place {
    error.location().map(|at| (at.line(), at.column()))
}

/// Puts line and column first, where editors look for them.
fn with_place(error: &dyn Display, at: Place, path: &Path) -> ConfigError {
    let path = path.display();
    let place = at.map_or_else(|| path.to_string(), |(line, column)| format!("{path}:{line}:{column}"));
    invalid(place, without_place(error, at))
}

fn without_place(error: &dyn Display, at: Place) -> String {
    let place = at.map(|(line, column)| format!(" at line {line} column {column}"));
    error.to_string().replacen(&place.unwrap_or_default(), "", 1)
}

/// The deepest nesting of brackets and dashes. Those in quotes and comments count too; a few do no harm.
fn depth(text: &str) -> usize {
    let (mut open, mut deepest) = (0_usize, 0);
    for line in text.lines() {
        let dashes = line.split_whitespace().take_while(|word| matches!(*word, "-" | "?")).count();
        deepest = deepest.max(open + dashes);
        for byte in line.bytes() {
            match byte {
                b'[' | b'{' => open += 1,
                b']' | b'}' => open = open.saturating_sub(1),
                _ => {}
            }
            deepest = deepest.max(open);
        }
    }
    deepest
}

fn refuse_near_misses(text: &str, path: &Path, section: &Value, ours: &Value) -> Result<(), ConfigError> {
    let names = |section: &Value| -> Vec<String> {
        let keys = section.as_mapping().into_iter().flat_map(|mapping| mapping.keys());
        keys.filter_map(|key| key.as_str().map(str::to_owned)).collect()
    };
    let ours = names(ours);
    for name in names(section).into_iter().filter(|name| !ours.contains(name)) {
        if let Some(near) = ours.iter().find(|ours| is_near(&name, ours)) {
            let line = text.lines().position(|line| names_key(line, &name));
            let line = line.map_or_else(String::new, |at| format!(":{}", at + 1));
            return Err(near_miss(format!("{}{line}", path.display()), "key", &name, near));
        }
    }
    Ok(())
}

/// Whether at most two letters (one in names as short as `llm`) are dropped, added, changed or
/// swapped. Case, dashes and underscores are ignored.
fn is_near(name: &str, ours: &str) -> bool {
    let plain = |text: &str| text.to_lowercase().replace(['-', '_'], "");
    let most = if ours.len() < 5 { 1 } else { 2 };
    strsim::osa_distance(name, ours) <= most || plain(name) == plain(ours)
}

/// Whether `name` is a key in this line.
fn names_key(line: &str, name: &str) -> bool {
    line.match_indices(name)
        .any(|(at, _)| line[at + name.len()..].trim_start_matches(['"', '\'']).trim_start().starts_with([':', '=']))
}
