//! JSON: each object is read as its members' raw texts, whose place in the file is their place in memory.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_yaml::Value;

use super::error::{PatchError, Reason};
use super::format::{Edit, Invalid};
use super::request::{Key, Request};
use super::text::{BYTE_ORDER_MARK, line_start, number, position};

const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

pub(super) fn parse(text: &str) -> Result<Value, Invalid> {
    serde_json::from_str(text.trim_start_matches(BYTE_ORDER_MARK)).map_err(invalid)
}

fn invalid(error: serde_json::Error) -> Invalid {
    let (line, column) = (error.line(), error.column());
    Invalid {
        at: (line > 0).then_some((line, column.max(1))),
        why: error.to_string().replace(&format!(" at line {line} column {column}"), ""),
    }
}

/// The member that holds the key, from the name at `depth` on.
pub(super) fn members(key: &Key, depth: usize, value: u64) -> String {
    let names = key.parents.iter().skip(depth);
    let open: String = names.clone().map(|name| format!("\"{name}\": {{")).collect();
    format!("{open}\"{}\": {value}{}", key.last, "}".repeat(names.count()))
}

struct Raw<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Deserialize<'a> for Raw<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members)
    }
}

struct Members;

impl<'a> Visitor<'a> for Members {
    type Value = Raw<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Raw<'a>, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Raw(members))
    }
}

struct Member {
    name: String,
    /// With its quotes.
    key: Range<usize>,
    value: Range<usize>,
}

pub(super) fn find(request: &Request, text: &str) -> Result<Edit, PatchError> {
    let key = &request.key;
    let json = text.trim_start_matches(BYTE_ORDER_MARK);
    if json.trim().is_empty() {
        return Err(request.refuse(None, Reason::Empty, request.by_hand()));
    }
    let root: &RawValue = serde_json::from_str(json).map_err(|error| request.invalid(invalid(error)))?;
    let place = |raw: &RawValue| {
        let start = raw.get().as_ptr().addr() - text.as_ptr().addr();
        start..start + raw.get().len()
    };
    let mut object = place(root);
    for depth in 0..=key.parents.len() {
        let refuse = |at, reason| {
            let place = if depth == 0 { String::new() } else { format!(" under {}", key.parent_name(depth)) };
            let hint = format!("set it by hand{place}:\n\n{}", members(key, depth, request.value));
            Err(request.refuse(Some(position(text, at)), reason, hint))
        };
        let found = match text[object.clone()].as_bytes()[0] {
            b'{' => None,
            b'[' => Some("a list"),
            b'n' => Some("empty"),
            _ => Some("a single value"),
        };
        if let Some(found) = found {
            return refuse(object.start, Reason::NotAMapping { what: key.parent_name(depth), found });
        }
        let raw: Raw<'_> = serde_json::from_str(&text[object.clone()]).map_err(|e| request.invalid(invalid(e)))?;
        let mut read: Vec<Member> = Vec::with_capacity(raw.0.len());
        for (name, raw) in raw.0 {
            let value = place(raw);
            let gap = read.last().map_or(object.start + 1, |before| before.value.end)..value.start;
            let gap_text = &text[gap.clone()];
            let from = gap.start + gap_text.find('"').unwrap_or_default();
            let to = gap.start + gap_text.rfind('"').map_or(0, |quote| quote + 1);
            if let Some(first) = read.iter().find(|member| member.name == name) {
                let first_line = position(text, first.key.start).0;
                return refuse(from, Reason::Duplicate { name, first_line });
            }
            read.push(Member { name, key: from..to, value });
        }
        let name = key.parents.get(depth).unwrap_or(&key.last);
        match read.iter().find(|member| member.name == *name) {
            Some(member) if depth == key.parents.len() => return replace(request, text, member),
            Some(member) => object = member.value.clone(),
            None if depth == key.parents.len() => return Ok(add(request, text, object.start, &read)),
            None => return refuse(object.start, Reason::NoParent(key.parents[..=depth].join("."))),
        }
    }
    unreachable!("the last name returns")
}

fn replace(request: &Request, text: &str, Member { key, value, .. }: &Member) -> Result<Edit, PatchError> {
    let refuse = |reason| {
        let line = position(text, key.start).0;
        let hint = format!("change it by hand on line {line} to:\n\n{}: {}", &text[key.clone()], request.value);
        request.refuse(Some(position(text, value.start)), reason, hint)
    };
    let raw = &text[value.clone()];
    let quoted = raw.starts_with('"');
    let read = match raw.as_bytes()[0] {
        b'{' => return Err(refuse(Reason::Collection("a mapping"))),
        b'[' => return Err(refuse(Reason::Collection("a list"))),
        b'"' => serde_json::from_str(raw).map_err(|error| request.invalid(invalid(error)))?,
        _ => raw.to_owned(),
    };
    let previous = number(&read, quoted).map_err(refuse)?;
    let quotes = usize::from(quoted);
    let range = value.start + quotes..value.end - quotes;
    // No escapes.
    if text[range.clone()] != read {
        return Err(refuse(Reason::Unclear));
    }
    let before = &text[line_start(text, key.start)..key.start];
    let shown = key.start - (before.len() - before.trim_end_matches([' ', '\t']).len());
    Ok(Edit { range, shown, lead: String::new(), tail: "", previous, quoted })
}

/// After the last member, in the manner of that member.
fn add(request: &Request, text: &str, object: usize, members: &[Member]) -> Edit {
    let name = &request.key.last;
    let Some((last, others)) = members.split_last() else {
        return Edit::insert(object + 1, format!("\"{name}\": "));
    };
    let colon = &text[last.key.end..last.value.start];
    let colon = if colon.contains(['\n', '\r']) { ": " } else { colon };
    let gap = &text[others.last().map_or(object + 1, |before| before.value.end)..last.key.start];
    let space = match &gap[gap.rfind(',').map_or(0, |comma| comma + 1)..] {
        "" if others.is_empty() && colon.ends_with(' ') => " ",
        space => space,
    };
    debug_assert!(space.trim_matches(SPACE).is_empty());
    Edit::insert(last.value.end, format!(",{space}\"{name}\"{colon}"))
}
