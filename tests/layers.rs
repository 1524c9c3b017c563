//! Holds the layout: which folder of `src` may import which, and who knows the network and Criterion.
//!
//! Read off the text of `src`: each `crate::folder` outside of comments and test modules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What each folder or file of `src` may import. `lib` and the bins are the top and import what they like.
const MAY_IMPORT: [(&str, &[&str]); 16] = [
    ("files", &[]),
    ("stdio", &[]),
    // It shares no type with the client, so that a mistake in the protocol cannot cancel out.
    ("simulator", &[]),
    ("client", &["files"]),
    ("settings", &["client", "decide", "simulator"]),
    ("prompts", &["client", "files", "settings"]),
    ("figures", &["client"]),
    ("decide", &["client", "figures"]),
    ("patch", &[]),
    ("load", &["client", "figures", "prompts"]),
    ("record", &["client", "decide", "figures", "files", "prompts", "report", "settings"]),
    ("report", &["client", "decide", "figures", "load", "settings"]),
    ("monitor", &["client", "decide", "figures", "report"]),
    (
        "measure",
        &[
            "client",
            "decide",
            "figures",
            "load",
            "monitor",
            "prompts",
            "record",
            "report",
            "settings",
            "simulator",
            "stdio",
        ],
    ),
    ("cli", &["client", "prompts", "settings", "simulator"]),
    (
        "commands",
        &[
            "cli",
            "client",
            "decide",
            "load",
            "measure",
            "monitor",
            "patch",
            "prompts",
            "record",
            "report",
            "settings",
            "simulator",
        ],
    ),
];

/// What a folder's code must not name.
const NEVER: [(&[&str], &[&str]); 3] = [
    (&["load/closed_loop.rs"], &["reqwest", "hyper", "axum", "std::net", "tokio::net", "std::fs"]),
    (
        &["figures", "decide", "report"],
        &["std::fs", "std::net", "std::env", "tokio", "reqwest", "SystemTime", "Instant"],
    ),
    (&["simulator"], &["reqwest"]),
];

/// The only file that knows Criterion's API.
const KNOWS_CRITERION: &str = "measure/criterion.rs";

/// Each file of `src`, relative to it, and its code.
fn sources() -> Vec<(PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut found) = (vec![src.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            let path = entry.strip_prefix(&src).unwrap();
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|it| it == "rs") && !entry.to_string_lossy().ends_with("tests.rs") {
                let text = fs::read_to_string(&entry).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
                found.push((path.to_owned(), lines.collect::<Vec<_>>().join("\n")));
            }
        }
    }
    assert!(found.len() > 40, "{found:?}");
    found
}

/// The folder of `src` that a file belongs to.
fn folder(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The folders named by `crate::folder`.
fn imports(code: &str) -> BTreeSet<&str> {
    let name = |rest: &str| rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    code.split("crate::")
        .skip(1)
        .map(|rest| &rest[..name(rest)])
        .filter(|it| it.starts_with(char::is_lowercase))
        .collect()
}

#[test]
fn folders_import_only_what_they_may() {
    for (path, code) in sources() {
        let folder = folder(&path);
        let Some((_, may)) = MAY_IMPORT.iter().find(|(name, _)| *name == folder) else {
            assert!(matches!(folder.as_str(), "lib" | "bin"), "{path:?}: the table has no {folder}");
            continue;
        };
        for import in imports(&code) {
            assert!(import == folder || may.contains(&import), "{path:?} must not import {import}");
        }
    }
}

#[test]
fn nothing_is_named_where_it_must_not_be() {
    for (path, code) in sources() {
        let of_path = |(places, _): &&(&[&str], &[&str])| places.iter().any(|place| path.starts_with(place));
        for name in NEVER.iter().filter(of_path).flat_map(|(_, names)| *names) {
            assert!(!code.contains(name), "{path:?} names {name}");
        }
        // A crate's name stands at the beginning of a path.
        let mut named = code.match_indices("criterion::").map(|(at, _)| &code[..at]);
        let knows_criterion = named.any(|before| !before.ends_with("::"));
        assert!(!knows_criterion || path == Path::new(KNOWS_CRITERION), "{path:?} knows Criterion");
    }
}

#[test]
fn the_check_sees_what_it_looks_for() {
    assert_eq!(
        imports("use crate::client::{A, B};\nlet x = crate::figures::of(crate::C);"),
        ["client", "figures"].into()
    );
    assert_eq!(folder(Path::new("client/sse.rs")), "client");
    assert_eq!(folder(Path::new("cli.rs")), "cli");
}
