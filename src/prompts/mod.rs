//! The prompts of a run: loads them from a file, and generates the shipped file.
//!
//! The shipped file (`test-data/test_snippets.json`, built in) represents the workload of a code analyser: 60 %
//! JavaScript and TypeScript, 20 % Python and 20 % React components, in three sizes. It is pretty-printed JSON:
//!
//! ```json
//! {"schema": "llm-concurrency/snippets/v1", "seed": 42, "snippets": [
//!   {"id": "snippet-0001", "language": "python", "size": "small", "code": "def …"}
//! ]}
//! ```
//!
//! Users' own files may be simpler; [`load`] lists the accepted formats.

mod generator;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::client::redact::one_line;
use crate::client::request::{ONE_ANSWER, asks_for_more};
use crate::client::{Message, System};
use crate::files;
use crate::settings::Settings;

pub use crate::client::Prompt;
pub use generator::{SnippetFile, generate};

/// Path of the generated file, relative to the folder of the config file, or to the working folder when it is written.
pub const DEFAULT_PATH: &str = "test-data/test_snippets.json";

pub const DEFAULT_SEED: u64 = 42;
pub const DEFAULT_COUNT: usize = 100;

/// Maximum size of a prompts file, in bytes. In memory it takes several times as much.
const MOST: u64 = 256 << 20;

const SHIPPED: &str = include_str!("../../test-data/test_snippets.json");

/// Instructions to put before a piece of code, one per line. Each calls for an answer of some length, so that the
/// output tends to reach `max_tokens` rather than ending after a word.
const INSTRUCTIONS: &str = include_str!("instructions.txt");

/// Errors in loading or saving prompts.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error(
        "Test data file not found: {}. Remove `benchmark.request.prompts` from config.yaml to use the built-in prompts, \
         set it to your own file, or create this one with `llm-concurrency generate-test-data`.",
        .0.display()
    )]
    NotFound(PathBuf),
    #[error("cannot read the test data file {}: check its permissions, and that it is UTF-8 text", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("the test data file {} {}. {REMEDY}", .0.display(), .1)]
    Content(PathBuf, String),
    /// The place of the entry, and what was found instead of a prompt.
    #[error(
        "{0}: {1}. An entry is a string that is not blank, or an object that holds one as `prompt`, `text`, `code` or \
         `content`, a list of messages as `messages` or `conversations`, or a request as `body`."
    )]
    NoText(String, String),
    #[error("cannot read benchmark.request.system, {}: check its path and permissions, and that it is UTF-8 text", .0.display())]
    System(PathBuf, #[source] io::Error),
    #[error(
        "benchmark.request.system is set, but the prompt {0} has a system prompt of its own: remove one of the two"
    )]
    TwoSystems(String),
    /// A previous file is left intact.
    #[error("cannot write the test data file {}: choose a path in a folder that you may write to", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

const REMEDY: &str = "Regenerate it with `llm-concurrency generate-test-data`, or set `benchmark.request.prompts` in \
                    config.yaml to your own file.";

/// Reads the prompts of a file, in file order.
///
/// The file may be one from [`generate`], an array of entries, an object with such an array as `snippets` or `prompts`,
/// JSON Lines (an entry per line), or a `.txt` file with a plain text per line; blank lines are skipped. An entry is
///
/// - a string, or an object with one as `prompt`, `text`, `code`, `content` or `input` (the first that is present). It
///   is sent verbatim, except that `code` is fenced, with `language` as the tag, and preceded by an instruction;
/// - a conversation as `messages` (`role`, `content`) or `conversations` (`from`, `value`, as in ShareGPT): the user's
///   messages are sent turn by turn. The file's answers are dropped; the server's own take their place;
/// - a request of a batch file, as `body` (or `params`): all its messages are sent in one request, with its other keys.
///
/// Each entry may have `id` (or `custom_id`) and `size`, and the entry or its request a limit such as `max_tokens`.
///
/// # Errors
/// A [`PromptError`] that states what is wrong, where, and how to fix it.
pub fn load(path: impl AsRef<Path>) -> Result<Vec<Prompt>, PromptError> {
    let path = path.as_ref();
    let text = files::read_to_string(path, MOST).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => PromptError::NotFound(path.to_owned()),
        _ => PromptError::Read(path.to_owned(), error),
    })?;
    parse(&text, path)
}

/// The prompts of a run, including its system prompt. They come from the file that the settings name, else from
/// [`DEFAULT_PATH`] next to the config file, else (if there is no such file) from the shipped file.
///
/// # Errors
/// As for [`load`], or if the system prompt is unreadable or set twice. A file that the settings name must exist.
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
                PromptError::System(path, io::Error::new(io::ErrorKind::InvalidData, "it holds no text"))
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
    // Some editors on Windows begin a file with a byte order mark, which JSON forbids.
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
            None => "an object without `snippets` or `prompts`".to_owned(),
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

/// Keys for the limit on the answer's tokens, and further keys of a request that the suite sets itself.
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
        if let Some(key) = asks_for_more(&prompt.extra_body) {
            return Err(format!("its `{key}` {ONE_ANSWER}"));
        }
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
        (Value::Object(_), None) => return Err("it has no key that holds a prompt".to_owned()),
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

/// Parses a request, whose last message must be the user's, or a conversation, of which only the user's part is kept.
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
    prompt.text = turns.next().ok_or("none of its messages is the user's")?;
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
        other => {
            return Err(format!(
                "one of its messages has the role `{}`, not user, assistant or system",
                one_line(other)
            ));
        }
    };
    let part = |part: &Value| part["text"].as_str().map(str::to_owned);
    let content = match first(["content", "value"]) {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts.iter().map(part).collect(),
        _ => None,
    };
    match content.filter(|text| role != "user" || !text.trim().is_empty()) {
        Some(content) => Ok(Message { role: role.to_owned(), content }),
        None => Err(format!("one of its {role} messages has no text")),
    }
}

/// A string or a number that serves as a name. Made a single line, because it is printed.
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

/// An instruction, then the code in a Markdown fence. A given snippet always gets the same instruction.
fn ask_about(code: &str, language: &str) -> String {
    let ours = generator::LANGUAGES.iter().find(|ours| ours.name == language);
    let (noun, fence) = ours.map_or((language, language), |ours| (ours.noun, ours.fence));
    let instructions: Vec<_> = INSTRUCTIONS.lines().collect();
    let instruction = instructions[code.len() % instructions.len()].replace("{language}", noun).replace("  ", " ");
    format!("{instruction}\n\n```{fence}\n{}\n```", code.trim_end())
}

/// Writes the file and any missing parent folders.
///
/// A crash or a full disk leaves either the old file or the new one, never a partial file. If `path` is a symbolic
/// link, its target is replaced and the link stays.
///
/// # Errors
/// [`PromptError::Write`] with the path and the system's reason.
pub fn save(path: impl AsRef<Path>, file: &SnippetFile) -> Result<(), PromptError> {
    let path = path.as_ref();
    let json = serde_json::to_string_pretty(file).map_err(io::Error::from);
    json.and_then(|json| files::replace(path, (json + "\n").as_bytes()))
        .map_err(|error| PromptError::Write(path.to_owned(), error))
}
