//! What differs from format to format: the rest of the patch knows only this.

use std::ops::Range;

use serde_yaml::Value;

use super::error::{PatchError, Position, Reason};
use super::request::{Key, Request};
use super::text::number;
use super::{env, json, toml, yaml};

pub(super) use crate::files::Format;

/// A parser's objection to a text.
pub(super) struct Invalid {
    pub at: Option<Position>,
    pub why: String,
}

/// The bytes to replace, and what to put there.
pub(super) struct Edit {
    pub range: Range<usize>,
    /// Where the key begins, with the blanks before it; the place itself for an addition.
    pub shown: usize,
    /// What goes before and after the digits: nothing for a replacement, the key and a line break for an addition.
    pub lead: String,
    pub tail: &'static str,
    pub previous: Option<u64>,
    /// The number is written as a text, and stays one.
    pub quoted: bool,
}

impl Edit {
    /// Replaces the number at `span`, that of the value with its quotes if it has any, which a parser `read` as this text.
    /// The source must spell it as it reads: no escapes, no folded lines, no triple quotes.
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
        // The number may be there in another notation (`+10`): the same value is no reason to touch it.
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

    /// Finds the one place where the number stands or belongs, or says why there is none.
    pub(super) fn find(self, request: &Request, text: &str) -> Result<Edit, PatchError> {
        match self {
            Format::Yaml => yaml::find(request, text),
            Format::Json => json::find(request, text),
            Format::Toml => toml::find(request, text),
            Format::Env => env::find(request, text),
        }
    }

    /// Everything in the file, as the programs that use it read it.
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

    /// What a number looks like to [`Format::parse`].
    pub(super) fn number(self, value: u64, quoted: bool) -> Value {
        if quoted || self == Format::Env { Value::String(value.to_string()) } else { Value::Number(value.into()) }
    }

    /// What to write by hand in a file that has nothing of the key yet.
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
