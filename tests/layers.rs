//! Holds the layout: which module may import which, who knows the network and Criterion, and that bins stay thin.
//!
//! The rules are read off the text of `src/`, without comments and without test modules. Each rule is a function
//! from sources to complaints, and is tried on a made-up source that breaks it.

use std::fs;
use std::path::Path;

/// All modules from the bottom to the top. A module imports only what stands above it in this list.
const ORDER: [&str; 29] = [
    "redact",
    "files",
    "stdio",
    "outcome",
    "reasons",
    "stats",
    "usl",
    "decide",
    "words",
    "search",
    "self_check",
    "open_files",
    "closed_loop",
    "sse",
    "config_patch",
    "monitor",
    "simulator",
    "config",
    "prompts",
    "client",
    "server_load",
    "target",
    "preflight",
    "plan",
    "results",
    "report",
    "sweep",
    "cli",
    "commands",
];

/// Modules that may import these of the crate's modules and no other.
const ONLY: [(&str, &[&str]); 15] = [
    ("redact", &[]),
    ("outcome", &[]),
    ("reasons", &["outcome"]),
    ("stats", &["outcome", "reasons"]),
    ("usl", &[]),
    ("decide", &["outcome", "stats", "usl"]),
    ("words", &["outcome", "stats", "decide"]),
    ("report", &["outcome", "reasons", "stats", "usl", "decide", "words", "config", "preflight"]),
    ("search", &["stats", "decide"]),
    ("self_check", &["stats"]),
    ("open_files", &[]),
    ("closed_loop", &["outcome"]),
    ("sse", &[]),
    // It shares no type with the client, so that a mistake in the protocol cannot cancel out.
    ("simulator", &[]),
    ("client", &["redact", "outcome", "sse", "config"]),
];

/// What a module's code must not name.
const NEVER: [(&[&str], &[&str]); 3] = [
    (&["closed_loop"], &["reqwest", "hyper", "axum", "std::net", "tokio::net", "std::fs"]),
    (
        &["outcome", "stats", "usl", "decide", "words", "report"],
        &["std::fs", "std::net", "std::env", "tokio", "reqwest", "SystemTime", "Instant"],
    ),
    (&["simulator"], &["reqwest"]),
];

/// The only module that knows Criterion's API.
const KNOWS_CRITERION: &str = "sweep";

/// Longest bin, lines.
const LONGEST_BIN: usize = 60;

/// One file's code: no comments, no test modules.
struct Source {
    /// Relative to `src`, such as `report/text.rs`.
    path: String,
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Source { path: path.to_owned(), code: code_of(text) }
    }

    /// The module of the crate that the file belongs to, or `lib`.
    fn module(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or_default()
    }

    /// How many `super::` lead to the crate's root.
    fn depth(&self) -> usize {
        self.path.trim_end_matches("/mod.rs").split('/').count()
    }

    /// Other modules of the crate that the code names, by `crate::…` or by enough `super::`.
    fn imports(&self) -> Vec<String> {
        let up = "super::".repeat(self.depth());
        let mut names: Vec<String> = ["crate::", &up].iter().flat_map(|root| names_after(&self.code, root)).collect();
        names.retain(|name| name != self.module());
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Without comment lines and without `#[cfg(test)]` items. rustfmt sees to it that a module at the top level ends
/// with a brace in the first column.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" {
            let one_line = lines.next().is_none_or(|item| item.ends_with(';'));
            if !one_line {
                lines.by_ref().find(|line| *line == "}");
            }
        } else if !line.trim_start().starts_with("//") {
            code.push_str(line);
            code.push('\n');
        }
    }
    code
}

/// The first names after each `root` path: one for `root::a::b`, all of them for `root::{a::b, c}`.
fn names_after(code: &str, root: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(root) {
        let inside_a_name = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$');
        let rest = &code[at + root.len()..];
        if inside_a_name {
            continue;
        }
        match rest.strip_prefix('{') {
            Some(group) => names.extend(first_names(group)),
            None => names.extend(first_name(rest)),
        }
    }
    names
}

fn first_name(path: &str) -> Option<String> {
    let name: String =
        path.trim_start().chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '*')).collect();
    (!name.is_empty()).then_some(name)
}

/// Of `a::{b, c}, d}` the names `a` and `d`.
fn first_names(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut parts = vec![String::new()];
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => parts.push(String::new()),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                parts.last_mut().expect("it starts with one").push(c);
            }
        }
    }
    parts.iter().filter_map(|part| first_name(part)).collect()
}

// ---- the rules ----

fn imports_upward(source: &Source) -> Vec<String> {
    let rank = |name: &str| ORDER.iter().position(|module| *module == name);
    let Some(own) = rank(source.module()) else {
        return vec![format!("{}: give the module its place in ORDER", source.path)];
    };
    let upward = source.imports().into_iter().filter(|name| rank(name).is_none_or(|other| other >= own));
    upward
        .map(|name| format!("{}: `{name}` is no module below it (name modules, not re-exports)", source.path))
        .collect()
}

fn imports_beyond_its_layer(source: &Source) -> Vec<String> {
    let Some((_, allowed)) = ONLY.iter().find(|(module, _)| *module == source.module()) else { return Vec::new() };
    let beyond = source.imports().into_iter().filter(|name| !allowed.contains(&name.as_str()));
    beyond.map(|name| format!("{}: may not import `{name}`", source.path)).collect()
}

fn names_what_it_must_not_know(source: &Source) -> Vec<String> {
    let lists = NEVER.iter().filter(|(modules, _)| modules.contains(&source.module()));
    let words = lists.flat_map(|(_, words)| words.iter()).filter(|word| has_word(&source.code, word));
    words.map(|word| format!("{}: may not know `{word}`", source.path)).collect()
}

fn knows_criterion(source: &Source) -> Vec<String> {
    if source.module() == KNOWS_CRITERION || !names_criterion(source) {
        return Vec::new();
    }
    vec![format!("{}: only {KNOWS_CRITERION}.rs may know Criterion's API", source.path)]
}

fn names_criterion(source: &Source) -> bool {
    !names_after(&source.code, "criterion::").is_empty() || source.code.contains("use criterion")
}

fn is_unsafe(source: &Source) -> Vec<String> {
    if has_word(&source.code, "unsafe") { vec![format!("{}: no unsafe code", source.path)] } else { Vec::new() }
}

fn is_thick(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines < LONGEST_BIN { Vec::new() } else { vec![format!("{path}: {lines} lines, a bin has under {LONGEST_BIN}")] }
}

fn has_word(code: &str, word: &str) -> bool {
    let part_of_a_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(part_of_a_name) && !code[at + word.len()..].starts_with(part_of_a_name))
}

// ---- the project ----

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every `.rs` file below `folder` as its path relative to it, and its text.
fn rust_files(folder: &Path) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        for entry in fs::read_dir(&current).expect("the folder is part of the project") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(folder).expect("it lies below").to_string_lossy().replace('\\', "/");
                files.push((relative, fs::read_to_string(&path).expect("UTF-8 text")));
            }
        }
    }
    files.sort();
    files
}

/// The library's sources. `tests.rs` is a test module in a file of its own.
fn library() -> Vec<Source> {
    let ours = |path: &str| path != "lib.rs" && !path.starts_with("bin/") && !path.ends_with("tests.rs");
    let files = rust_files(&root().join("src"));
    let sources: Vec<Source> =
        files.iter().filter(|(path, _)| ours(path)).map(|(path, text)| Source::new(path, text)).collect();
    assert!(sources.iter().any(|source| source.module() == KNOWS_CRITERION), "the sources were not found");
    sources
}

fn complaints(rule: fn(&Source) -> Vec<String>) -> Vec<String> {
    library().iter().flat_map(rule).collect()
}

const NONE: Vec<String> = Vec::new();

#[test]
fn imports_run_downward() {
    assert_eq!(complaints(imports_upward), NONE);
}

#[test]
fn each_layer_imports_only_its_own() {
    assert_eq!(complaints(imports_beyond_its_layer), NONE);
}

#[test]
fn pure_modules_stay_pure_and_the_loop_knows_no_network() {
    assert_eq!(complaints(names_what_it_must_not_know), NONE);
}

#[test]
fn only_the_sweep_knows_criterion() {
    assert_eq!(complaints(knows_criterion), NONE);
    let sweep = library().into_iter().find(|source| source.module() == KNOWS_CRITERION).expect("it is there");
    assert!(names_criterion(&sweep), "{KNOWS_CRITERION} does not use Criterion any more");
}

#[test]
fn there_is_no_unsafe_code() {
    assert_eq!(complaints(is_unsafe), NONE);
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest");
    assert!(manifest.contains("unsafe_code = \"forbid\""), "the lint covers bins, benches and tests too");
}

#[test]
fn bins_are_thin() {
    let mut bins = rust_files(&root().join("src/bin"));
    bins.extend(rust_files(&root().join("benches")).into_iter().filter(|(path, _)| path == "concurrency.rs"));
    assert_eq!(bins.len(), 3);
    assert_eq!(bins.iter().flat_map(|(path, text)| is_thick(path, text)).collect::<Vec<_>>(), NONE);
}

// ---- each rule can fail ----

fn broken(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> String {
    rule(&Source::new(path, text)).join("\n")
}

#[test]
fn an_upward_import_is_found_however_it_is_written() {
    let upward = [
        "use crate::sweep::Mode;",
        "use crate::{outcome::Reply, sweep::{self, Mode}};",
        "use crate::{\n    outcome::Reply,\n    sweep,\n};",
        "fn f() {\n    crate::sweep::run();\n}",
        "use super::sweep;",
    ];
    for text in upward {
        assert_eq!(
            broken(imports_upward, "stats.rs", text),
            "stats.rs: `sweep` is no module below it (name modules, not re-exports)",
            "{text}"
        );
    }
    assert!(broken(imports_upward, "report/text.rs", "use super::super::sweep;").contains("`sweep`"));
    assert!(broken(imports_upward, "stats.rs", "use crate::*;").contains("`*`"));
    assert!(broken(imports_upward, "stats.rs", "use crate::LlmClient;").contains("`LlmClient`"));
    assert!(broken(imports_upward, "brand_new.rs", "").contains("ORDER"));
    assert_eq!(broken(imports_upward, "stats.rs", "use crate::outcome::Reply;\nuse super::outcome::Phase;"), "");
    assert_eq!(broken(imports_upward, "report/text.rs", "use super::page;\nuse crate::report::page;"), "");
}

#[test]
fn an_import_beyond_the_layer_is_found() {
    let cases = [
        ("outcome.rs", "use crate::stats::mean;"),
        ("stats.rs", "use crate::usl::fit;"),
        ("decide/pick.rs", "use crate::config::Config;"),
        ("decide/compare.rs", "use crate::results::ResultsFile;"),
        ("report/text.rs", "use crate::results::ResultsFile;"),
        ("closed_loop.rs", "use crate::client::Transport;"),
        ("simulator/http.rs", "use crate::outcome::Failure;"),
        ("simulator/mod.rs", "use super::client::Answer;"),
        ("client.rs", "use crate::simulator::Simulator;"),
    ];
    for (path, text) in cases {
        assert!(broken(imports_beyond_its_layer, path, text).contains("may not import"), "{path}: {text}");
    }
    assert_eq!(broken(imports_beyond_its_layer, "simulator/http.rs", "use super::log::RequestLog;"), "");
}

#[test]
fn forbidden_knowledge_is_found() {
    let cases = [
        ("closed_loop.rs", "let client = reqwest::Client::new();"),
        ("stats.rs", "use std::fs::File;"),
        ("decide/gates.rs", "let now = Instant::now();"),
        ("report/page.rs", "tokio::spawn(work);"),
        ("simulator/http.rs", "use reqwest::Client;"),
    ];
    for (path, text) in cases {
        assert!(broken(names_what_it_must_not_know, path, text).contains("may not know"), "{path}: {text}");
    }
    for text in ["use criterion::Criterion;", "let c = ::criterion::Criterion::default();", "use criterion as c;"] {
        assert!(broken(knows_criterion, "results.rs", text).contains("results.rs"), "{text}");
    }
    assert_eq!(broken(knows_criterion, "sweep.rs", "use criterion::Criterion;"), "");
    assert!(broken(is_unsafe, "stats.rs", "let x = unsafe { *pointer };").contains("unsafe"));
    assert_eq!(broken(is_unsafe, "stats.rs", "let unsafe_word = 1;"), "");
}

#[test]
fn a_thick_bin_is_found() {
    assert_eq!(is_thick("run.rs", &"x\n".repeat(LONGEST_BIN)), ["run.rs: 60 lines, a bin has under 60"]);
    assert_eq!(is_thick("run.rs", &"x\n".repeat(LONGEST_BIN - 1)), NONE);
}

#[test]
fn comments_and_test_modules_are_no_code_and_what_follows_them_is() {
    let text = "\
//! See [`crate::sweep`].
use crate::outcome::Reply;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod more {
    use crate::client::LlmClient;
    fn f() {
    }
}
use crate::usl::fit;
";
    assert_eq!(Source::new("stats.rs", text).imports(), ["outcome", "usl"]);
}
