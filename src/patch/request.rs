//! The requested change: a file, a key and a number. Every error repeats it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde_yaml::Value;

use super::error::{PatchError, Position, Reason};
use super::format::Format;
use super::text::position;
use crate::files;

/// Maximum file size. A larger file was probably given by mistake. The suite's own settings have a lower limit.
const MAX_BYTES: u64 = 10 << 20;

pub(super) struct Request {
    pub path: PathBuf,
    pub format: Format,
    pub key: Key,
    pub value: u64,
}

impl Request {
    pub(super) fn new(path: &Path, key: &str, value: u64) -> Result<Self, PatchError> {
        let format = Format::of(path);
        Ok(Self { path: path.to_owned(), format, key: format.key(Key::parse(key)?)?, value })
    }

    /// The file to replace. A symbolic link is resolved and stays.
    pub(super) fn resolve(&self) -> Result<PathBuf, PatchError> {
        fs::canonicalize(&self.path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => self.refuse(None, Reason::Missing),
            _ => self.io("find the file", error),
        })
    }

    pub(super) fn read(&self, target: &Path) -> Result<Vec<u8>, PatchError> {
        files::read(target, MAX_BYTES).map_err(|error| match error.kind() {
            ErrorKind::IsADirectory => self.refuse(None, Reason::Directory),
            ErrorKind::InvalidInput => self.refuse(None, Reason::NotAFile),
            ErrorKind::FileTooLarge => self.refuse(None, Reason::TooLarge),
            _ => self.io("read the file", error),
        })
    }

    /// Refuses NUL bytes as well: UTF-16 without a byte order mark is often valid UTF-8 with NUL as every other byte.
    pub(super) fn decode(&self, mut bytes: Vec<u8>) -> Result<String, PatchError> {
        if let Some(nul) = bytes.iter().position(|byte| *byte == 0) {
            // This byte never occurs in UTF-8, so decoding stops at it or before.
            bytes[nul] = 0xff;
        }
        String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let valid = String::from_utf8_lossy(valid);
            self.refuse(Some(position(&valid, valid.len())), Reason::NotUtf8)
        })
    }

    pub(super) fn refuse(&self, at: Option<Position>, reason: Reason) -> PatchError {
        let hint = format!("{}set it by hand:\n\n{}", reason.remedy(), self.format.lines(&self.key, self.value));
        self.refuse_with(at, reason, hint)
    }

    pub(super) fn refuse_with(&self, at: Option<Position>, reason: Reason, hint: String) -> PatchError {
        let reason = Box::new(reason);
        PatchError::Refused { path: self.path.clone(), at, key: self.key.dotted.clone(), reason, hint }
    }

    pub(super) fn io(&self, doing: &'static str, source: io::Error) -> PatchError {
        PatchError::Io { path: self.path.clone(), key: self.key.dotted.clone(), doing, source }
    }
}

pub(super) struct Key {
    pub dotted: String,
    pub parents: Vec<String>,
    pub last: String,
}

impl Key {
    fn parse(dotted: &str) -> Result<Self, PatchError> {
        let wrong = |why| PatchError::Key { key: dotted.to_owned(), why };
        let mut parents: Vec<String> = dotted.split('.').map(str::to_owned).collect();
        for name in &parents {
            if name.is_empty() {
                return Err(wrong("a name between the dots is empty"));
            }
            if name.starts_with('-') || !name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-') {
                return Err(wrong("a name has characters other than letters, digits, `_` and `-`"));
            }
            // `true`, `null` or `1` would be a key of another type than the string that is looked up.
            if !matches!(serde_yaml::from_str(name), Ok(Value::String(_))) {
                return Err(wrong("a name is one that YAML reads as a number, `true`, `false` or `null`"));
            }
        }
        let last = parents.pop().unwrap_or_default();
        Ok(Self { dotted: dotted.to_owned(), parents, last })
    }

    /// The name in errors for the mapping that the first `depth` names lead to.
    pub(super) fn parent_name(&self, depth: usize) -> String {
        match depth {
            0 => "the top level".to_owned(),
            _ => format!("`{}`", self.parents[..depth.min(self.parents.len())].join(".")),
        }
    }
}
