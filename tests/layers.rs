//! Enforces the dependency rules between the folders of `src`, which the compiler does not check.

use std::fs;
use std::path::Path;

const INPUT_AND_OUTPUT: [&str; 8] =
    ["std::fs", "std::net", "std::env", "tokio", "reqwest", "hyper", "SystemTime", "Instant"];

/// What the code of a folder or file must not import from this crate; `*` is anything outside of itself.
const MUST_NOT_IMPORT: [(&str, &[&str]); 9] = [
    // It shares no type with the client, so that a mistake in the protocol cannot cancel out.
    ("simulator", &["*"]),
    (
        "patch",
        &["client", "load", "measure", "record", "figures", "decide", "report", "simulator", "settings", "commands"],
    ),
    ("client", &["load", "measure", "record", "figures", "decide", "report", "simulator", "settings", "commands"]),
    ("load", &["measure", "record", "decide", "report", "simulator", "commands"]),
    ("figures", &["load", "measure", "record", "decide", "report", "simulator", "settings", "commands"]),
    ("decide", &["load", "measure", "record", "report", "simulator", "settings", "commands"]),
    ("record", &["load", "measure", "report", "simulator", "commands"]),
    ("report", &["measure", "simulator", "commands"]),
    ("measure", &["commands"]),
];

/// What it must not name: these are pure, and the loop is free of network and disk.
const MUST_NOT_NAME: [(&str, &[&str]); 5] = [
    ("figures", &INPUT_AND_OUTPUT),
    ("decide", &INPUT_AND_OUTPUT),
    ("report", &INPUT_AND_OUTPUT),
    ("load/closed_loop.rs", &["reqwest", "hyper", "axum", "std::net", "tokio::net", "std::fs"]),
    ("simulator", &["reqwest"]),
];

const KNOWS_CRITERION: &str = "measure/criterion.rs";

/// Calls `check` with each file's path within `src` and its code, without comments and tests.
fn for_each_file(folder: &Path, check: &mut dyn FnMut(&str, &str)) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            for_each_file(&path, check);
        } else if path.extension().is_some_and(|it| it == "rs") && !path.to_string_lossy().ends_with("tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let code: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            let path = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
            check(&path.to_string_lossy(), &code.join("\n"));
        }
    }
}

#[test]
fn arrows_point_one_way() {
    let (mut files, mut wrong) = (0, Vec::new());
    for_each_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut |path, code| {
        files += 1;
        let own = path.split(['/', '.']).next().unwrap_or_default();
        let imports =
            code.split("crate::").skip(1).filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric()).next());
        let imports: Vec<_> = imports.filter(|name| *name != own).collect();
        for (_, names) in MUST_NOT_IMPORT.iter().filter(|(place, _)| *place == own) {
            let forbidden = |name: &&&str| names.contains(name) || *names == ["*"];
            wrong.extend(imports.iter().filter(forbidden).map(|name| format!("{path} imports {name}")));
        }
        for (_, names) in MUST_NOT_NAME.iter().filter(|(place, _)| Path::new(path).starts_with(place)) {
            wrong.extend(names.iter().filter(|name| code.contains(**name)).map(|name| format!("{path} names {name}")));
        }
        // A crate's name stands at the beginning of a path.
        let mut before = code.match_indices("criterion::").map(|(at, _)| &code[..at]);
        if before.any(|before| !before.ends_with("::")) && path != KNOWS_CRITERION {
            wrong.push(format!("{path} knows Criterion"));
        }
    });
    assert!(files > 40, "{files}");
    assert_eq!(wrong, Vec::<String>::new());
}
