//! The prompts of a run: the loader of the file that holds them, and the generator of the shipped one.
//!
//! The shipped file (`test-data/test_snippets.json`, built in) stands for what a code analyser sends: 60 % JavaScript
//! and TypeScript, 20 % Python, 20 % React components, in three sizes. It looks like this, pretty-printed:
//!
//! ```json
//! {"schema": "llm-concurrency/snippets/v1", "seed": 42, "snippets": [
//!   {"id": "snippet-0001", "language": "python", "size": "small", "code": "def …"}
//! ]}
//! ```
//!
//! A file of the caller's own may be simpler; [`load`] lists what it takes.

mod generator;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::client::redact::one_line;
use crate::client::{Message, System};
use crate::files;
use crate::settings::Settings;

pub use crate::client::Prompt;
pub use generator::{SnippetFile, generate};

/// Where the generated file is kept, relative to the working folder.
pub const DEFAULT_PATH: &str = "test-data/test_snippets.json";

pub const DEFAULT_SEED: u64 = 42;
pub const DEFAULT_COUNT: usize = 100;

/// Bytes of a prompts file. In memory it takes several times as many.
const MOST: u64 = 256 << 20;

const SHIPPED: &str = include_str!("../../test-data/test_snippets.json");

/// What is asked about a piece of code. All want an answer of some length, so that the output reaches `max_tokens`
/// rather than ending after a word.
const INSTRUCTIONS: &str = include_str!("instructions.txt");

/// Why there are no prompts, or why they could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error(
        "Test data file not found: {}. Leave `benchmark.request.prompts` out of config.yaml to use the built-in prompts, \
         name your own file in it, or make this one with `llm-concurrency generate-test-data`.",
        .0.display()
    )]
    NotFound(PathBuf),
    #[error("cannot read the test data file {}: check its permissions, and that it is UTF-8 text", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("the test data file {} {}. {REMEDY}", .0.display(), .1)]
    Content(PathBuf, String),
    /// Where, and what is there instead.
    #[error(
        "{0}: {1}. An entry is a non-blank string, or an object with one as `prompt`, `text`, `code` or `content`, with a \
         list of messages as `messages` or `conversations`, or with a request as `body`."
    )]
    NoText(String, String),
    #[error("cannot read benchmark.request.system, {}: check its path and permissions, and that it is UTF-8 text", .0.display())]
    System(PathBuf, #[source] io::Error),
    #[error(
        "benchmark.request.system is set, and the prompt {0} has a system prompt of its own: leave one of the two out"
    )]
    TwoSystems(String),
    /// What was there before is still there.
    #[error("cannot write the test data file {}: choose a path in a folder that you may write to", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

const REMEDY: &str = "Regenerate it with `llm-concurrency generate-test-data`, or set `benchmark.request.prompts` in \
                    config.yaml to your own file.";

/// Reads the prompts of a file, in its order.
///
/// It takes the file of [`generate`], an array of entries, an object with such an array as `snippets` or `prompts`, an
/// entry a line (JSON Lines), and in a file named `.txt` a plain text a line. An entry is
///
/// - a string, or an object with one as `prompt`, `text`, `code` or `content` (the first of these that is there). They
///   are sent as they are, but `code` gets an instruction before it and a fence around it, with `language` as its tag;
/// - a conversation as `messages` (`role`, `content`) or `conversations` (`from`, `value`, as ShareGPT has it): what the
///   user says is sent turn by turn, and the answers are the server's own, not those of the file;
/// - a request of a batch file, as `body` (or `params`): its messages are sent at once, the other keys with them.
///
/// Each may have `id`, `size` and `max_tokens`.
///
/// # Errors
/// A [`PromptError`] that says what is wrong, where, and what to do.
pub fn load(path: impl AsRef<Path>) -> Result<Vec<Prompt>, PromptError> {
    let path = path.as_ref();
    let text = files::read_to_string(path, MOST).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => PromptError::NotFound(path.to_owned()),
        _ => PromptError::Read(path.to_owned(), error),
    })?;
    parse(&text, path)
}

/// The prompts of a run, its system prompt included: of the file that the settings name, else of [`DEFAULT_PATH`] beside
/// the config file, else (there being no such file) the shipped ones.
///
/// # Errors
/// As [`load`]; a file that the settings name must exist.
pub fn of_run(settings: &Settings) -> Result<Vec<Prompt>, PromptError> {
    let request = &settings.config.benchmark.request;
    let mut prompts = match &request.prompts {
        Some(named) => load(settings.beside_config(named))?,
        None => match load(settings.beside_config(DEFAULT_PATH)) {
            Err(PromptError::NotFound(path)) => parse(SHIPPED, &path)?,
            loaded => loaded?,
        },
    };
    let system = match &request.system {
        None => return Ok(prompts),
        Some(System::Text(text)) => text.clone(),
        Some(System::File { file }) => {
            let path = settings.beside_config(file);
            let text = files::read_to_string(&path, MOST).map_err(|error| PromptError::System(path.clone(), error))?;
            Some(text).filter(|text| !text.trim().is_empty()).ok_or_else(|| {
                PromptError::System(path, io::Error::new(io::ErrorKind::InvalidData, "there is no text in it"))
            })?
        }
    };
    let system: Arc<str> = system.into();
    for prompt in &mut prompts {
        if prompt.system.replace(system.clone()).is_some() {
            return Err(PromptError::TwoSystems(prompt.id.clone()));
        }
    }
    Ok(prompts)
}

fn parse(text: &str, path: &Path) -> Result<Vec<Prompt>, PromptError> {
    // Editors on Windows like to put a byte order mark first, which JSON forbids.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let content = |fault| PromptError::Content(path.to_owned(), fault);
    if text.trim().is_empty() {
        return Err(content("is empty".to_owned()));
    }
    let is_named = |ending| path.extension().is_some_and(|it| it.eq_ignore_ascii_case(ending));
    let is_object = |line: &str| matches!(serde_json::from_str(line), Ok(Value::Object(_)));
    let whole = if is_named("txt") { Ok(Value::Null) } else { serde_json::from_str(text) };
    let is_lines =
        is_named("jsonl") || is_named("ndjson") || whole.is_err() && text.lines().next().is_some_and(is_object);
    if !is_named("txt") && !is_lines {
        let list = list(whole.map_err(|error| content(format!("is not valid JSON: {error}")))?).map_err(content)?;
        let place = |at| format!("the test data file {} has no text in entry {at} (counted from 0)", path.display());
        let prompt = |(at, entry)| prompt_of(at, entry).map_err(|what| PromptError::NoText(place(at), what));
        return list.iter().enumerate().map(prompt).collect();
    }
    let value = |line: &str| match is_lines {
        true => serde_json::from_str(line).map_err(|error| format!("it is not valid JSON, column {}", error.column())),
        false => Ok(Value::from(line)),
    };
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()).enumerate();
    let prompt = |(at, (line, number))| {
        let what = |what| PromptError::NoText(format!("{}:{number}: no prompt", path.display()), what);
        value(line).and_then(|entry| prompt_of(at, &entry)).map_err(what)
    };
    lines.map(prompt).collect()
}

fn list(whole: Value) -> Result<Vec<Value>, String> {
    let found = match whole {
        Value::Array(list) if list.is_empty() => {
            return Err("has an empty list: at least one prompt is needed".to_owned());
        }
        Value::Array(list) => return Ok(list),
        Value::Object(mut map) => match ["snippets", "prompts"].iter().find_map(|key| Some((key, map.remove(*key)?))) {
            Some((_, inner @ Value::Array(_))) => return list(inner),
            Some((key, other)) => format!("{} as `{key}`", kind(&other)),
            None => "an object without `snippets` and `prompts`".to_owned(),
        },
        other => kind(&other).to_owned(),
    };
    let expected = "it must be an array, or an object with an array as `snippets` or `prompts`";
    Err(format!("holds {found}, not a list of prompts: {expected}"))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The names that a limit on the answer goes by, and a request's other keys that are ours to set.
const LIMITS: [&str; 3] = ["max_tokens", "max_completion_tokens", "max_output_tokens"];
const SET_BY_US: [&str; 8] =
    ["model", "messages", "prompt", "input", "system", "instructions", "stream", "stream_options"];

fn prompt_of(index: usize, entry: &Value) -> Result<Prompt, String> {
    let request = ["body", "params"].into_iter().map(|key| &entry[key]).find(|value| value.is_object());
    let source = request.unwrap_or(entry);
    let list = ["messages", "conversations", "input"].into_iter().find_map(|key| source[key].as_array());
    let mut prompt = match list {
        Some(list) => of_messages(list, request.is_some())?,
        None => Prompt { text: text_of(source)?, ..Prompt::default() },
    };
    let apart = ["system", "instructions"].into_iter().find_map(|key| source[key].as_str());
    prompt.system = prompt.system.or(apart.filter(|_| request.is_some()).map(Arc::from));
    if let Some((key, limit)) = LIMITS.iter().map(|key| (key, &source[*key])).find(|(_, limit)| !limit.is_null()) {
        let tokens = limit.as_u64().and_then(|limit| u32::try_from(limit).ok()).filter(|&limit| limit > 0);
        prompt.max_tokens = Some(tokens.ok_or_else(|| format!("its `{key}` is {limit}, not a number of tokens"))?);
    }
    if let Some(body) = request.and_then(Value::as_object) {
        let is_other = |key: &str| !LIMITS.contains(&key) && !SET_BY_US.contains(&key);
        prompt.extra_body = body.clone().into_iter().filter(|(key, _)| is_other(key)).collect();
    }
    prompt.id = [&entry["id"], &entry["custom_id"]]
        .into_iter()
        .find_map(label)
        .unwrap_or_else(|| format!("prompt-{:04}", index + 1));
    prompt.size = label(&entry["size"]).unwrap_or_else(|| size_of(prompt.characters()).to_owned());
    Ok(prompt)
}

fn text_of(entry: &Value) -> Result<String, String> {
    let present = |key: &&str| !entry[*key].is_null();
    let key = ["prompt", "text", "code", "content", "input"].into_iter().find(present);
    let (value, name) = match (entry, key) {
        (Value::Object(_), Some(key)) => (&entry[key], format!("its `{key}`")),
        (Value::Object(_), None) => return Err("it has none of those keys".to_owned()),
        _ => (entry, "it".to_owned()),
    };
    match value {
        Value::String(text) if text.trim().is_empty() => Err(format!("{name} is blank")),
        Value::String(code) if key == Some("code") => {
            Ok(ask_about(code, entry["language"].as_str().unwrap_or_default()))
        }
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("{name} is {}", kind(other))),
    }
}

/// A request whose last message is the user's, or a conversation of which only the user's part is taken.
fn of_messages(list: &[Value], is_request: bool) -> Result<Prompt, String> {
    let mut messages = list.iter().map(message).collect::<Result<Vec<_>, _>>()?;
    let mut prompt = Prompt::default();
    if messages.first().is_some_and(|first| first.role == "system") {
        prompt.system = Some(messages.remove(0).content.into());
    }
    if is_request {
        let last = messages.pop().filter(|last| last.role == "user");
        prompt.text = last.ok_or("its last message is not the user's")?.content;
        prompt.history = messages;
        return Ok(prompt);
    }
    let mut turns = messages.into_iter().filter(|message| message.role == "user").map(|message| message.content);
    prompt.text = turns.next().ok_or("no message of it is the user's")?;
    prompt.later = turns.collect();
    Ok(prompt)
}

fn message(value: &Value) -> Result<Message, String> {
    let first =
        |keys: [&str; 2]| keys.into_iter().map(|key| &value[key]).find(|it| !it.is_null()).unwrap_or(&Value::Null);
    let role = match first(["role", "from"]).as_str().unwrap_or_default() {
        "user" | "human" => "user",
        "assistant" | "gpt" | "chatgpt" | "model" => "assistant",
        "system" | "developer" => "system",
        other => return Err(format!("a message of it has the role `{}`", one_line(other))),
    };
    let part = |part: &Value| part["text"].as_str().map(str::to_owned);
    let content = match first(["content", "value"]) {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts.iter().map(part).collect(),
        _ => None,
    };
    match content.filter(|text| role != "user" || !text.trim().is_empty()) {
        Some(content) => Ok(Message { role: role.to_owned(), content }),
        None => Err(format!("a message of the {role} has no text")),
    }
}

/// A string or a number that serves as a name; it is printed.
fn label(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(one_line(text)),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn size_of(characters: usize) -> &'static str {
    match characters {
        0..800 => "small",
        800..3000 => "medium",
        _ => "large",
    }
}

/// An instruction and the code in a Markdown fence. The instruction varies from snippet to snippet and is always the
/// same for one.
fn ask_about(code: &str, language: &str) -> String {
    let ours = generator::LANGUAGES.iter().find(|ours| ours.name == language);
    let (noun, fence) = ours.map_or((language, language), |ours| (ours.noun, ours.fence));
    let instructions: Vec<_> = INSTRUCTIONS.lines().collect();
    let instruction = instructions[code.len() % instructions.len()].replace("{language}", noun).replace("  ", " ");
    format!("{instruction}\n\n```{fence}\n{}\n```", code.trim_end())
}

/// Writes the file, and the folders above it where they are missing.
///
/// A crash or a full disk leaves either the old file or the new one, never half of one. Where `path` is a symbolic
/// link, the file that it points to is replaced and the link stays.
///
/// # Errors
/// [`PromptError::Write`] with the path and the system's reason.
pub fn save(path: impl AsRef<Path>, file: &SnippetFile) -> Result<(), PromptError> {
    let path = path.as_ref();
    let json = serde_json::to_string_pretty(file).map_err(io::Error::from);
    json.and_then(|json| files::replace(path, (json + "\n").as_bytes()))
        .map_err(|error| PromptError::Write(path.to_owned(), error))
}
