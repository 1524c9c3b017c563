//! Changes one number in a YAML, JSON, TOML or .env file and leaves every other byte as it is.
//!
//! [`plan`] locates the number by source spans, never by a text search, and computes the new bytes. [`Patch::apply`]
//! writes them to a temporary file and renames it into place. Comments, order, quotes, line endings, a byte order
//! mark, permissions, owner and symbolic links are preserved.
//!
//! It refuses rather than guesses. Aliases, anchors, duplicate keys, placeholders and the like are refused with the
//! position and the line to write by hand. Before anything is written, the result is parsed again, both by the code
//! that located the number and by the parser that programs use. The rename gives the file a new inode, so a file
//! with several hard links is refused, and extended attributes and ACLs are lost.
//!
//! A new format needs a file that locates one scalar and parses the whole text, match arms in `format`, a suffix in
//! [`files::Format`](crate::files::Format), and a reader in the client's `config_file`.

mod env;
mod error;
mod format;
mod json;
mod request;
mod text;
mod toml;
mod write;
mod yaml;

use std::fmt;
use std::path::{Path, PathBuf};

use serde_yaml::Value;

pub use error::{PatchError, Reason};
use format::Edit;
use request::Request;
use text::{BYTE_ORDER_MARK, line_start, position};

/// A change that has been computed and checked, but not yet written.
pub struct Patch {
    request: Request,
    /// The canonical path of the file, with symbolic links resolved.
    target: PathBuf,
    edit: Edit,
    before: String,
    after: String,
}

/// Works out how to set `key` (names joined by dots) to `value` in the file at `path`, without writing anything.
///
/// A whole number is replaced, inside its quotes if it has any. So is `null`, and an empty value is filled in. A
/// missing key is added to its parent mapping, in a block as one line. Refuses if the parent is missing or the change
/// would be a guess.
pub fn plan(path: &Path, key: &str, value: u64) -> Result<Patch, PatchError> {
    let request = Request::new(path, key, value)?;
    let target = request.resolve()?;
    let before = request.decode(request.read(&target)?)?;
    let edit = request.format.find(&request, &before)?;
    // Parsed once the way programs parse it: a file that they cannot read needs more than a patch.
    request.format.parse(&before).map_err(|invalid| request.invalid(invalid))?;
    let after = edit.apply_to(&before, value);
    let patch = Patch { request, target, edit, before, after };
    match patch.check_result(&patch.after) {
        Ok(()) => Ok(patch),
        Err(why) => Err(patch.odd_line_break().unwrap_or_else(|| patch.request.refuse(None, Reason::Guard(why)))),
    }
}

impl Patch {
    /// The path as given; symbolic links are not resolved.
    pub fn path(&self) -> &Path {
        &self.request.path
    }

    pub fn after(&self) -> &str {
        &self.after
    }

    /// The number currently in the file; `None` if there is none.
    pub fn previous(&self) -> Option<u64> {
        self.edit.previous
    }

    /// Whether the file already has the value.
    pub fn is_noop(&self) -> bool {
        self.before == self.after
    }

    /// The change in the style of a unified diff; empty if there is nothing to change.
    ///
    /// Only the key and its number are shown, because the rest of the line may hold secrets.
    pub fn diff(&self) -> String {
        if self.is_noop() {
            return String::new();
        }
        let old_end = self.edit.range.end + usize::from(self.edit.quoted);
        let new_end = self.after.len() - (self.before.len() - old_end) - self.edit.tail.len();
        let [old, new] = [(&self.before, old_end), (&self.after, new_end)].map(|(text, end)| {
            let start = line_start(text, end).max(self.edit.shown);
            text[start..end].trim_start_matches([BYTE_ORDER_MARK, ',']).trim_end()
        });
        let (name, line) = (self.path().display(), position(&self.after, new_end).0);
        let removed = if old.is_empty() { String::new() } else { format!("-{old}\n") };
        format!("--- {name}\n+++ {name}\n@@ line {line} @@\n{removed}+{new}\n")
    }

    /// Checks with two parsers that nothing but this one value differs from the old text.
    fn check_result(&self, after: &str) -> Result<(), String> {
        let Request { key, value, format, .. } = &self.request;
        let parse = |text, which| {
            format.parse(text).map_err(|invalid| format!("the {which} text cannot be parsed: {}", invalid.why))
        };
        let (mut expected, actual) = (parse(&self.before, "old")?, parse(after, "new")?);
        let mut parent = Some(&mut expected);
        for name in &key.parents {
            parent = parent.and_then(|value| value.get_mut(name.as_str()));
        }
        let mapping = parent.and_then(Value::as_mapping_mut).ok_or("the parent cannot be found")?;
        mapping.insert(Value::String(key.last.clone()), format.number(*value, self.edit.quoted));
        if expected != actual {
            return Err("more than the one value would change".to_owned());
        }
        let found = format.find(&self.request, after);
        let found = found.map_err(|error| format!("the new text cannot be read: {error}"))?;
        if found.previous != Some(*value) || found.quoted != self.edit.quoted {
            return Err("the new text does not hold the value in its place".to_owned());
        }
        Ok(())
    }

    /// The one known reason for the parsers to disagree: characters that end a line in YAML 1.1 but not in 1.2.
    fn odd_line_break(&self) -> Option<PatchError> {
        let at = self.before.find(['\u{85}', '\u{2028}', '\u{2029}'])?;
        Some(self.request.refuse(Some(position(&self.before, at)), Reason::OddLineBreak))
    }
}

/// Omits the file's text: a configuration may hold secrets, and debug output ends up in logs.
impl fmt::Debug for Patch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patch")
            .field("path", &self.request.path)
            .field("key", &self.request.key.dotted)
            .field("previous", &self.edit.previous)
            .field("value", &self.request.value)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_sees_any_other_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        std::fs::write(&path, "llm:\n  max_concurrent_requests: 10\n").unwrap();
        let patch = plan(&path, "llm.max_concurrent_requests", 20).unwrap();
        assert_eq!(patch.check_result("llm:\n  max_concurrent_requests: 20\n"), Ok(()));
        for wrong in [
            "llm:\n  max_concurrent_requests: 10\n",
            "llm:\n  max_concurrent_requests: 20\n  more: 1\n",
            "llm:\n  max_concurrent_requests: 20.0\n",
            "llm:\n  max_concurrent_requests: \"20\"\n",
            "llm:\n  max_concurrent_requests: 20\nllm: 1\n",
            "max_concurrent_requests: 20\n",
            "llm: &a\n  max_concurrent_requests: 20\n",
            "",
            "llm: [",
        ] {
            assert!(patch.check_result(wrong).is_err(), "{wrong:?}");
        }
    }
}
