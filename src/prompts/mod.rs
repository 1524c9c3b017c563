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
//! A file of the caller's own may be simpler; [`load`] tells what it takes.

mod generator;

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::client::redact::one_line;
use crate::files;
use crate::settings::Settings;

pub use generator::{Snippet, SnippetFile, generate};

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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// That of the file, else `prompt-0001` and so on by position.
    pub id: String,
    /// The label of the file, else by length in characters: below 800 small, below 3000 medium, else large. (The
    /// generated snippets fall on the same sides of these marks, more or less.)
    pub size: String,
    /// The text of the user message.
    pub text: String,
}

/// Why there are no prompts, or why they could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error(
        "Test data file not found: {}. Make it with `llm-concurrency generate-test-data` (or `cargo run -- \
         generate-test-data`), or set `benchmark.request.prompts` in config.yaml to your own file.",
        .0.display()
    )]
    NotFound(PathBuf),
    #[error("cannot read the test data file {}: check its permissions, and that it is UTF-8 text", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("the test data file {} {}. {MEND}", .0.display(), .1)]
    Content(PathBuf, Fault),
    #[error(
        "the test data file {} has no text in entry {} (counted from 0): {}. An entry is a string that \
         is not blank, or an object with one as `prompt`, `text`, `code` or `content`.",
        .0.display(), .1, .2
    )]
    NoText(PathBuf, usize, String),
    /// What was there before is still there.
    #[error("cannot write the test data file {}: choose a path in a folder that you may write to", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

/// What is wrong with the content of a file as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("is empty")]
    EmptyFile,
    #[error("is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error(
        "holds {0}, not a list of prompts: it must be an array, or an object with `snippets` or `prompts` that is one"
    )]
    Shape(String),
    #[error("has an empty list: at least one prompt is needed")]
    EmptyList,
}

const MEND: &str = "Make it anew with `llm-concurrency generate-test-data`, or set `benchmark.request.prompts` in \
                    config.yaml to your own file.";

/// Reads the prompts of a file, in its order.
///
/// It takes the file of [`generate`], an array of strings, an array of objects, or an object with such an array as
/// `snippets` or `prompts`. An object of the array has its text as `prompt`, `text`, `code` or `content` (the first
/// of these that is there), and may have `id` and `size`. A `prompt`, a `text`, a `content` and a plain string are
/// sent as they are; `code` gets an instruction before it and a fence around it, with `language` as its tag.
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

/// The prompts of a run: of the file that the settings name, else of [`DEFAULT_PATH`] beside the config file, else
/// (there being no such file) the shipped ones.
///
/// # Errors
/// As [`load`]; a file that the settings name must exist.
pub fn of_run(settings: &Settings) -> Result<Vec<Prompt>, PromptError> {
    if let Some(named) = &settings.config.benchmark.request.prompts {
        return load(settings.beside_config(named));
    }
    match load(settings.beside_config(DEFAULT_PATH)) {
        Err(PromptError::NotFound(path)) => parse(SHIPPED, &path),
        loaded => loaded,
    }
}

fn parse(text: &str, path: &Path) -> Result<Vec<Prompt>, PromptError> {
    let entries = entries(text).map_err(|fault| PromptError::Content(path.to_owned(), fault))?;
    let no_text = |index, what| PromptError::NoText(path.to_owned(), index, what);
    entries.iter().enumerate().map(|(index, e)| prompt_of(index, e).map_err(|what| no_text(index, what))).collect()
}

fn entries(text: &str) -> Result<Vec<Value>, Fault> {
    // Editors on Windows like to put a byte order mark first, which JSON forbids.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        return Err(Fault::EmptyFile);
    }
    let list = match serde_json::from_str(text)? {
        Value::Array(list) => list,
        Value::Object(mut map) => match ["snippets", "prompts"].iter().find_map(|key| Some((key, map.remove(*key)?))) {
            Some((_, Value::Array(list))) => list,
            Some((key, other)) => return Err(Fault::Shape(format!("{} as `{key}`", kind(&other)))),
            None => return Err(Fault::Shape("an object without `snippets` and `prompts`".to_owned())),
        },
        other => return Err(Fault::Shape(kind(&other).to_owned())),
    };
    if list.is_empty() { Err(Fault::EmptyList) } else { Ok(list) }
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

fn prompt_of(index: usize, entry: &Value) -> Result<Prompt, String> {
    let present = |key: &&str| !entry[*key].is_null();
    let key = ["prompt", "text", "code", "content"].into_iter().find(present);
    let (value, name) = match (entry, key) {
        (Value::Object(_), Some(key)) => (&entry[key], format!("its `{key}`")),
        (Value::Object(_), None) => return Err("it has none of those keys".to_owned()),
        _ => (entry, "it".to_owned()),
    };
    let text = match value {
        Value::String(text) if text.trim().is_empty() => return Err(format!("{name} is blank")),
        Value::String(code) if key == Some("code") => ask_about(code, entry["language"].as_str().unwrap_or_default()),
        Value::String(text) => text.clone(),
        other => return Err(format!("{name} is {}", kind(other))),
    };
    Ok(Prompt {
        id: label(&entry["id"]).unwrap_or_else(|| format!("prompt-{:04}", index + 1)),
        size: label(&entry["size"]).unwrap_or_else(|| size_of(&text).to_owned()),
        text,
    })
}

/// A string or a number that serves as a name; it is printed.
fn label(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(one_line(text)),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn size_of(text: &str) -> &'static str {
    match text.chars().count() {
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
    let json = file.to_json().map_err(io::Error::from);
    json.and_then(|json| files::replace(path, json.as_bytes()))
        .map_err(|error| PromptError::Write(path.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn load_text(text: &str) -> Result<Vec<Prompt>, PromptError> {
        parse(text, Path::new("my/prompts.json"))
    }

    #[test]
    fn files_that_cannot_be_read() {
        assert_eq!(
            load("test-data/none.json").unwrap_err().to_string(),
            "Test data file not found: test-data/none.json. Make it with `llm-concurrency generate-test-data` (or \
             `cargo run -- generate-test-data`), or set `benchmark.request.prompts` in config.yaml to your own file."
        );
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(load(folder.path()), Err(PromptError::Read { .. })));
    }

    #[test]
    fn own_files_of_every_shape() {
        let (small, large) = ("é".repeat(799), "é".repeat(3000));
        // Two bytes a character: it is characters that count.
        let [medium, last_medium] = [800, 2999].map(|length| "é".repeat(length));
        let sizes = format!(r#"["{small}", "{medium}", "{last_medium}", "{large}"]"#);
        type Fields<'a> = &'a [(&'a str, &'a str, &'a str)];
        let cases: [(&str, Fields<'_>); 5] = [
            ("\u{feff}[\"one\", \"two\"]", &[("prompt-0001", "small", "one"), ("prompt-0002", "small", "two")]),
            (
                r#"[{"prompt": "a"}, {"text": "b", "id": 7}, {"content": "c", "id": "x", "size": "huge"}, {"text": null, "content": "d"}]"#,
                &[
                    ("prompt-0001", "small", "a"),
                    ("7", "small", "b"),
                    ("x", "huge", "c"),
                    ("prompt-0004", "small", "d"),
                ],
            ),
            (r#"{"prompts": ["a"]}"#, &[("prompt-0001", "small", "a")]),
            (r#"{"snippets": [{"text": "b"}], "note": 1}"#, &[("prompt-0001", "small", "b")]),
            (
                &sizes,
                &[
                    ("prompt-0001", "small", &small),
                    ("prompt-0002", "medium", &medium),
                    ("prompt-0003", "medium", &last_medium),
                    ("prompt-0004", "large", &large),
                ],
            ),
        ];
        for (text, expected) in cases {
            let prompts = load_text(text).unwrap();
            let read: Vec<_> = prompts.iter().map(|p| (p.id.as_str(), p.size.as_str(), p.text.as_str())).collect();
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn code_of_other_origin_gets_an_instruction() {
        for (entry, noun, fenced) in [
            (r#"{"code": "fn main() {}\n", "language": "rust"}"#, " rust code", "```rust\nfn main() {}\n```"),
            (r#"{"code": "x = 1"}"#, " this code", "```\nx = 1\n```"),
            (r#"{"code": "y = 2", "language": "python"}"#, " Python code", "```python\ny = 2\n```"),
        ] {
            let text = &load_text(&format!("[{entry}]")).unwrap()[0].text;
            assert!(text.contains(noun) && text.ends_with(fenced), "{text}");
        }
    }

    #[test]
    fn each_mistake_has_its_own_message() {
        let cases = [
            (" \n", "my/prompts.json is empty"),
            ("[]", "my/prompts.json has an empty list"),
            (r#"{"snippets": []}"#, "has an empty list"),
            ("[\"a\",\n  oops]", "is not valid JSON: expected value at line 2 column 3"),
            ("[\"a\"", "is not valid JSON: EOF while parsing a list at line 1 column 4"),
            ("3", "holds a number, not a list of prompts"),
            (r#"{"items": []}"#, "holds an object without `snippets` and `prompts`, not a list"),
            (r#"{"prompts": "a"}"#, "holds a string as `prompts`, not a list"),
            (r#"["a", {"id": "x"}]"#, "has no text in entry 1 (counted from 0): it has none of those keys"),
            (r#"["a", "b", "  "]"#, "has no text in entry 2 (counted from 0): it is blank"),
            (r#"[5]"#, "has no text in entry 0 (counted from 0): it is a number"),
            (r#"[{"prompt": ["a"]}]"#, "entry 0 (counted from 0): its `prompt` is an array"),
            (r#"[{"code": ""}]"#, "entry 0 (counted from 0): its `code` is blank"),
        ];
        for (text, part) in cases {
            let message = load_text(text).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("my/prompts.json"), "{message}");
        }
    }

    #[test]
    fn saved_and_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/test_snippets.json");
        let file = generate(1, 20);
        save(&path, &generate(2, 30)).unwrap();
        save(&path, &file).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), file.to_json().unwrap());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a temporary file was left");
        let loaded: Vec<_> = load(&path).unwrap().into_iter().map(|p| (p.id, p.size, p.text)).collect();
        let made = file.snippets.iter().map(|s| (s.id.clone(), s.size.to_owned(), s.prompt()));
        assert_eq!(loaded, made.collect::<Vec<_>>());

        let error = save(folder.path().join("a"), &file).unwrap_err();
        assert!(error.to_string().contains("/a: choose a path"), "{error}");
        assert!(std::error::Error::source(&error).is_some());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[cfg(unix)]
    #[test]
    fn a_symbolic_link_stays_one() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real.json"), folder.path().join("link.json"));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        save(&link, &generate(1, 3)).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(load(&real).unwrap().len(), 3);
    }
}
