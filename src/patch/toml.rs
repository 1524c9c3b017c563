//! TOML, located by the spans of toml_edit.

use std::ops::Range;

use serde_yaml::Value;
use toml_edit::{Document, Item, TableLike};

use super::error::{PatchError, Reason};
use super::format::{Edit, Invalid};
use super::request::{Key, Request};
use super::text::{BYTE_ORDER_MARK, line_break, line_end, line_start, position};

pub(super) fn parse(text: &str) -> Result<Value, Invalid> {
    toml_edit::de::from_str(text).map_err(|error| Invalid {
        at: error.span().map(|span| position(text, span.start)),
        why: error.message().trim().replace('\n', ", "),
    })
}

pub(super) fn lines(key: &Key, value: u64) -> String {
    let parents: Vec<_> = key.parents.iter().map(|name| bare(name)).collect();
    let header = if parents.is_empty() { String::new() } else { format!("[{}]\n", parents.join(".")) };
    format!("{header}{} = {value}", bare(&key.last))
}

fn bare(name: &str) -> String {
    if name.is_ascii() { name.to_owned() } else { format!("\"{name}\"") }
}

pub(super) fn find(request: &Request, text: &str) -> Result<Edit, PatchError> {
    let key = &request.key;
    parse(text).map_err(|invalid| request.invalid(invalid))?;
    let document = Document::parse(text).map_err(|error| {
        request.invalid(Invalid { at: error.span().map(|s| position(text, s.start)), why: error.message().to_owned() })
    })?;
    if document.as_table().is_empty() {
        return Err(request.refuse(None, Reason::Empty));
    }
    let mut item = document.as_item();
    let mut table: &dyn TableLike = document.as_table();
    for (depth, name) in key.parents.iter().enumerate() {
        let no_parent = || {
            let parent = key.parents[..=depth].join(".");
            request.refuse(None, Reason::NoParent(parent))
        };
        let (written, next) = table.get_key_value(name).ok_or_else(no_parent)?;
        item = next;
        table = item.as_table_like().ok_or_else(|| {
            let at = written.span().map(|span| position(text, span.start));
            let found = if item.is_value() && !item.is_array() { "a single value" } else { "a list" };
            let reason = Reason::NotAMapping { what: key.parent_name(depth + 1), found };
            request.refuse(at, reason)
        })?;
    }
    match table.get_key_value(&key.last) {
        Some((written, item)) => replace(request, text, written.span().unwrap_or_default(), item),
        None => add(request, text, item, table),
    }
}

fn replace(request: &Request, text: &str, key: Range<usize>, item: &Item) -> Result<Edit, PatchError> {
    let span = item.span().unwrap_or(key.clone());
    let refuse = |reason| {
        let line = position(text, key.start).0;
        let hint = format!("change it by hand on line {line} to:\n\n{} = {}", &text[key.clone()], request.value);
        request.refuse_with(Some(position(text, span.start)), reason, hint)
    };
    let raw = text.get(span.clone()).unwrap_or_default();
    let (read, quoted) = match item.as_value() {
        Some(toml_edit::Value::String(read)) => (read.value().as_str(), true),
        Some(toml_edit::Value::Array(_)) => return Err(refuse(Reason::Collection("a list"))),
        None if item.is_array_of_tables() => return Err(refuse(Reason::Collection("a list"))),
        None | Some(toml_edit::Value::InlineTable(_)) => return Err(refuse(Reason::Collection("a mapping"))),
        Some(_) => (raw, false),
    };
    let line = &text[line_start(text, key.start)..key.start];
    // If the key has its own line, everything before it is shown: blanks and the leading names of a dotted key.
    let own_line = !line.contains(['{', ',', '=']);
    let blanks = line.len() - line.trim_end_matches([' ', '\t']).len();
    let shown = key.start - if own_line { line.len() } else { blanks };
    Edit::replace(text, span.clone(), read, quoted, shown).map_err(refuse)
}

/// Adds the key after the last value of the table, in the style of that value.
fn add(request: &Request, text: &str, item: &Item, table: &dyn TableLike) -> Result<Edit, PatchError> {
    let name = bare(&request.key.last);
    let unclear = |at| Err(request.refuse(Some(position(text, at)), Reason::Unclear));
    let here = item.span().unwrap_or_default();
    let last = table.iter().filter(|(_, item)| item.is_value()).filter_map(|(name, item)| {
        // The values of a dotted key do not belong to this table.
        let dotted = item.as_inline_table().is_some_and(|table| table.is_dotted());
        Some((table.key(name)?.span()?, item.span()?)).filter(|_| !dotted)
    });
    let last = last.max_by_key(|(_, value)| value.end);
    let written_like = |key: &Range<usize>, value: &Range<usize>| match &text[key.end..value.start] {
        "=" => format!("{name}="),
        _ => format!("{name} = "),
    };
    if item.is_inline_table() {
        let inside = here.start + 1..here.end - 1;
        return match last {
            _ if table.is_dotted() => unclear(here.start),
            Some((key, value)) => Ok(Edit::insert(value.end, format!(", {}", written_like(&key, &value)))),
            None if text[inside.clone()].trim().is_empty() => {
                let tail = if inside.is_empty() { " " } else { "" };
                Ok(Edit { tail, ..Edit::insert(inside.start, format!(" {name} = ")) })
            }
            None => unclear(here.start),
        };
    }
    let line_after = |at, before: &str, member| {
        let end = line_end(text, at);
        Ok(Edit::insert(end, format!("{}{before}{member}", line_break(text, end))))
    };
    if let Some((key, value)) = last {
        return line_after(value.end, &text[line_start(text, key.start)..key.start], written_like(&key, &value));
    }
    if request.key.parents.is_empty() {
        // The top level has only tables, and no line before the first header begins with a bracket.
        let is_header = |line: &&str| line.trim_start_matches([BYTE_ORDER_MARK, ' ', '\t']).starts_with('[');
        let header = text.split_inclusive('\n').find(is_header).unwrap_or(text);
        let at = line_start(text, header.as_ptr().addr() - text.as_ptr().addr() + header.find('[').unwrap_or_default());
        return Ok(Edit { tail: line_break(text, line_end(text, at)), ..Edit::insert(at, format!("{name} = ")) });
    }
    match item.as_table() {
        _ if table.is_dotted() => unclear(here.start),
        Some(table) if table.is_implicit() => {
            let parent = request.key.parents.join(".");
            Err(request.refuse(None, Reason::NoParent(parent)))
        }
        _ => line_after(here.end, "", format!("{name} = ")),
    }
}
