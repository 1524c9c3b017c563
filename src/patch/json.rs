//! JSON: each object is read as its members' raw texts, whose place in the file is their place in memory.

use std::collections::HashMap;
use std::ops::Range;

use serde_json::value::RawValue;
use serde_yaml::Value;

use super::error::{PatchError, Reason};
use super::format::{Edit, Invalid};
use super::request::{Key, Request};
use super::text::{BYTE_ORDER_MARK, line_start, number, position};

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

struct Member {
    /// With its quotes.
    key: Range<usize>,
    value: Range<usize>,
    /// Where the member before it ends, or the brace.
    gap: usize,
}

pub(super) fn find(request: &Request, text: &str) -> Result<Edit, PatchError> {
    let key = &request.key;
    let json = text.trim_start_matches(BYTE_ORDER_MARK);
    if json.trim().is_empty() {
        return Err(request.refuse(None, Reason::Empty, request.by_hand()));
    }
    // Refuses a key that stands twice, too.
    parse(text).map_err(|error| request.invalid(error))?;
    let place = |raw: &str| {
        let start = raw.as_ptr().addr() - text.as_ptr().addr();
        start..start + raw.len()
    };
    let mut object = json.trim();
    for depth in 0..=key.parents.len() {
        let start = place(object).start;
        let refuse = |reason| {
            let place = if depth == 0 { String::new() } else { format!(" under {}", key.parent_name(depth)) };
            let hint = format!("set it by hand{place}:\n\n{}", members(key, depth, request.value));
            Err(request.refuse(Some(position(text, start)), reason, hint))
        };
        let found = match object.as_bytes()[0] {
            b'{' => None,
            b'[' => Some("a list"),
            b'n' => Some("empty"),
            _ => Some("a single value"),
        };
        if let Some(found) = found {
            return refuse(Reason::NotAMapping { what: key.parent_name(depth), found });
        }
        let values: HashMap<String, &RawValue> =
            serde_json::from_str(object).map_err(|error| request.invalid(invalid(error)))?;
        let name = key.parents.get(depth).unwrap_or(&key.last);
        match values.get(name).map(|value| value.get()) {
            Some(value) if depth < key.parents.len() => object = value,
            None if depth < key.parents.len() => {
                return refuse(Reason::NoParent(key.parents[..=depth].join(".")));
            }
            found => {
                let mut values: Vec<_> = values.values().map(|value| place(value.get())).collect();
                values.sort_by_key(|value| value.start);
                return match found {
                    Some(value) => replace(request, text, &member(text, start, &values, place(value))),
                    None => Ok(add(request, text, start, &values)),
                };
            }
        }
    }
    unreachable!("the last name returns")
}

/// The member with this value, in the object that begins at `object` and has these values.
fn member(text: &str, object: usize, values: &[Range<usize>], value: Range<usize>) -> Member {
    let before = values.iter().rev().find(|other| other.start < value.start);
    let gap = before.map_or(object + 1, |before| before.end);
    let quote = |at: Option<usize>| gap + at.unwrap_or_default();
    let before_value = &text[gap..value.start];
    Member { key: quote(before_value.find('"'))..quote(before_value.rfind('"')) + 1, value, gap }
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
fn add(request: &Request, text: &str, object: usize, values: &[Range<usize>]) -> Edit {
    let name = &request.key.last;
    let Some(last) = values.last().map(|value| member(text, object, values, value.clone())) else {
        return Edit::insert(object + 1, format!("\"{name}\": "));
    };
    let colon = &text[last.key.end..last.value.start];
    let colon = if colon.contains(['\n', '\r']) { ": " } else { colon };
    let space = match text[last.gap..last.key.start].trim_start_matches([' ', '\t', '\n', '\r']) {
        // The first one: what follows the brace.
        "" if last.gap < last.key.start => &text[last.gap..last.key.start],
        "" if colon.ends_with(' ') => " ",
        comma => comma.trim_start_matches(','),
    };
    Edit::insert(last.value.end, format!(",{space}\"{name}\"{colon}"))
}
