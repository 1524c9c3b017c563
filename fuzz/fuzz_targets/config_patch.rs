//! The patch of a config file: whatever the file holds, either it stays as it is, or exactly one number has changed.
//!
//! `cargo +nightly fuzz run config_patch fuzz/corpus/config_patch fuzz/seeds/config_patch`; with a stable compiler
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run -s none config_patch fuzz/corpus/config_patch fuzz/seeds/config_patch`.

#![no_main]

use std::cell::LazyCell;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use llm_concurrency::patch::plan;
use serde_yaml::Value;

const KEY: &str = "llm.max_concurrent_requests";
const VALUE: u64 = 20;

thread_local! {
    /// In memory where the system has such a place: every patch is synced to the disk.
    static FOLDER: LazyCell<tempfile::TempDir> = LazyCell::new(|| {
        let memory = Path::new("/dev/shm");
        let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        made.expect("a temporary folder")
    });
}

/// Each input is read as every format.
const NAMES: [&str; 4] = ["config.yaml", "config.json", "config.toml", "config.env"];

fuzz_target!(
    |before: &[u8]| FOLDER.with(|folder| NAMES.iter().for_each(|name| check(&folder.path().join(name), before)))
);

fn check(path: &Path, before: &[u8]) {
    std::fs::write(path, before).expect("the file is written");
    let Ok(patch) = plan(path, KEY, VALUE) else { return };
    let noop = patch.is_noop();
    let shown = patch.diff();
    patch.apply().expect("what was planned can be done");
    let after = std::fs::read(path).expect("the file is read");
    assert_eq!(noop, before == after, "{shown}");

    // One stretch has changed: what is left of it and right of it is the same.
    let left = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
    let room = before.len().min(after.len()) - left;
    let right = before.iter().rev().zip(after.iter().rev()).take_while(|(a, b)| a == b).count().min(room);
    let old = &before[left..before.len() - right];
    assert!(!old.contains(&b'\n') && old.len() < 64, "{shown}");

    // Read by a parser that the patch does not find its place with: the same but for that number.
    if path.extension().is_some_and(|it| it == "yaml") {
        let value = |bytes: &[u8]| {
            let text = std::str::from_utf8(bytes).expect("only UTF-8 is patched");
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            serde_yaml::from_str::<Value>(text).expect("only YAML is patched")
        };
        let mut expected = value(before);
        set(&mut expected);
        assert_eq!(value(&after), expected, "{shown}");
    }

    let again = plan(path, KEY, VALUE).expect("a patched file can be patched");
    assert!(again.is_noop(), "{}", again.diff());
    assert_eq!(again.previous(), Some(VALUE));
}

fn set(document: &mut Value) {
    let mut place = document;
    for name in KEY.split('.') {
        let mapping = place.as_mapping_mut().expect("what was patched lies in mappings");
        place = mapping.entry(name.into()).or_insert(Value::Null);
    }
    // A number in quotes stays a text.
    *place = if place.is_string() { VALUE.to_string().into() } else { VALUE.into() };
}
