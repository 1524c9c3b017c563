//! All that depends on the format. The rest of the patch goes through this interface.

use std::ops::Range;

use serde_yaml::Value;

use super::error::{PatchError, Position, Reason};
use super::request::{Key, Request};
use super::text::number;
use super::{env, json, toml, yaml};

pub(super) use crate::files::Format;

/// A parser's error about a text.
pub(super) struct Invalid {
    pub at: Option<Position>,
    pub why: String,
}

/// The range of bytes to replace, and its replacement.
pub(super) struct Edit {
    pub range: Range<usize>,
    /// Offset from which a diff shows the line: the key with the blanks before it, or the insertion point.
    pub shown: usize,
    /// Text before and after the digits: empty for a replacement, a key with separators for an addition.
    pub lead: String,
    pub tail: &'static str,
    pub previous: Option<u64>,
    /// Whether the number is written as a quoted string, and stays one.
    pub quoted: bool,
}

impl Edit {
    /// Replaces the number at `span`, which includes any quotes of the value. `read` is the value as parsed. The source
    /// must spell it identically: no escapes, no folded lines, no triple quotes.
    pub(super) fn replace(
        text: &str,
        span: Range<usize>,
        read: &str,
        quoted: bool,
        shown: usize,
    ) -> Result<Self, Reason> {
        let previous = number(read, quoted)?;
        let quotes = usize::from(quoted);
        let range = span.start + quotes..span.end.saturating_sub(quotes);
        match text.get(range.clone()) {
            Some(spelt) if spelt == read => Ok(Self { range, shown, lead: String::new(), tail: "", previous, quoted }),
            _ => Err(Reason::Unclear),
        }
    }

    pub(super) fn insert(at: usize, lead: String) -> Self {
        Self { range: at..at, shown: at, lead, tail: "", previous: None, quoted: false }
    }

    pub(super) fn apply_to(&self, before: &str, value: u64) -> String {
        // If the value is already the same, it stays, even in another notation (`+10`).
        if self.previous == Some(value) {
            return before.to_owned();
        }
        let (head, rest) = (&before[..self.range.start], &before[self.range.end..]);
        format!("{head}{}{value}{}{rest}", self.lead, self.tail)
    }
}

impl Format {
    pub(super) fn name(self) -> &'static str {
        match self {
            Format::Yaml => "YAML",
            Format::Json => "JSON",
            Format::Toml => "TOML",
            Format::Env => "as a .env file",
        }
    }

    /// Finds the one place where the number is or belongs. An error states why there is none.
    pub(super) fn find(self, request: &Request, text: &str) -> Result<Edit, PatchError> {
        match self {
            Format::Yaml => yaml::find(request, text),
            Format::Json => json::find(request, text),
            Format::Toml => toml::find(request, text),
            Format::Env => env::find(request, text),
        }
    }

    /// Everything in the file, parsed as the programs that use it do.
    pub(super) fn parse(self, text: &str) -> Result<Value, Invalid> {
        match self {
            Format::Yaml => yaml::parse(text),
            Format::Json => json::parse(text),
            Format::Toml => toml::parse(text),
            Format::Env => env::parse(text),
        }
    }

    pub(super) fn key(self, key: Key) -> Result<Key, PatchError> {
        if self == Format::Env { env::key(key) } else { Ok(key) }
    }

    /// A number as [`Format::parse`] returns it.
    pub(super) fn number(self, value: u64, quoted: bool) -> Value {
        if quoted || self == Format::Env { Value::String(value.to_string()) } else { Value::Number(value.into()) }
    }

    /// What to write by hand in a file without any part of the key.
    pub(super) fn lines(self, key: &Key, value: u64) -> String {
        match self {
            Format::Yaml => yaml::lines(key, 0, "", value),
            Format::Json => json::members(key, 0, value),
            Format::Toml => toml::lines(key, value),
            Format::Env => format!("{}={value}", key.last),
        }
    }
}

impl Request {
    pub(super) fn invalid(&self, Invalid { at, why }: Invalid) -> PatchError {
        self.refuse(at, Reason::Invalid { format: self.format.name(), why })
    }
}
