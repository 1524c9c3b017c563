//! `.env` files: lines of `NAME=value`, read as dotenvy reads them. A dotted key names a variable in upper case:
//! `llm.max_concurrent_requests` is `LLM_MAX_CONCURRENT_REQUESTS`. A key without dots is used verbatim.

use std::ops::Range;

use serde_yaml::{Mapping, Value};

use super::error::{PatchError, Reason};
use super::format::{Edit, Invalid};
use super::request::{Key, Request};
use super::text::{BYTE_ORDER_MARK, line_break, line_end, position, skip_blanks};

pub(super) fn key(Key { dotted, .. }: Key) -> Result<Key, PatchError> {
    let name = if dotted.contains('.') { dotted.replace(['.', '-'], "_").to_uppercase() } else { dotted.clone() };
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        let why = "the name of a variable has only letters from A to Z, digits and `_`";
        return Err(PatchError::Key { key: dotted, why });
    }
    Ok(Key { dotted, parents: Vec::new(), last: name })
}

pub(super) fn parse(text: &str) -> Result<Value, Invalid> {
    let text = text.trim_start_matches(BYTE_ORDER_MARK);
    let mut variables = Mapping::new();
    for variable in dotenvy::from_read_iter(text.as_bytes()) {
        let (name, value) = variable.map_err(|error| Invalid {
            at: match error {
                dotenvy::Error::LineParse(line, _) if text.matches(line.trim_end()).count() == 1 => {
                    text.find(line.trim_end()).map(|at| (position(text, at).0, 1))
                }
                _ => None,
            },
            // The parser's own message quotes the line, which may be a secret.
            why: "a line is not NAME=value".to_owned(),
        })?;
        // The first definition wins. `find` refuses a second one of the variable to change.
        variables.entry(name.into()).or_insert(value.into());
    }
    Ok(Value::Mapping(variables))
}

struct Variable<'a> {
    name: &'a str,
    /// Offsets of the line and of the name on it; `export` may come between the two.
    line: usize,
    start: usize,
    /// Span of the value with its quotes; a quoted value may cover several lines.
    value: Range<usize>,
}

pub(super) fn find(request: &Request, text: &str) -> Result<Edit, PatchError> {
    let name = request.key.last.as_str();
    let at = |offset| Some(position(text, offset));
    parse(text).map_err(|invalid| request.invalid(invalid))?;
    if let Some((lone, _)) = text.match_indices('\r').find(|(at, _)| !text[at + 1..].starts_with('\n')) {
        return Err(request.refuse(at(lone), Reason::Unclear));
    }
    let variables = variables(text);
    let mut ours = variables.iter().filter(|variable| variable.name == name);
    let Some(variable) = ours.next() else { return add(request, text, variables.last()) };
    let hint = || {
        let line = &text[variable.line..variable.start];
        format!("change line {} by hand to:\n\n{line}{name}={}", position(text, variable.line).0, request.value)
    };
    if let Some(second) = ours.next() {
        let reason = Reason::Duplicate { name: name.to_owned(), first_line: position(text, variable.start).0 };
        return Err(request.refuse_with(at(second.start), reason, format!("keep one of the two, and {}", hint())));
    }
    let refuse = |reason| request.refuse_with(at(variable.value.start), reason, hint());
    let raw = &text[variable.value.clone()];
    let inner = ['"', '\''].iter().find_map(|quote| raw.strip_prefix(*quote)?.strip_suffix(*quote));
    let (read, quoted) = (inner.unwrap_or(raw), inner.is_some());
    let edit = Edit::replace(text, variable.value.clone(), read, quoted, variable.line).map_err(refuse)?;
    match uses(text, name) {
        Some(user) => Err(request.refuse_with(at(user), Reason::Used(name.to_owned()), hint())),
        None => Ok(edit),
    }
}

/// Offset of a reference to this variable. Errs on the side of caution: comments count as well.
fn uses(text: &str, name: &str) -> Option<usize> {
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let used = |(at, _): (usize, &str)| {
        let rest = text[at + 1..].trim_start_matches('{');
        rest.strip_prefix(name).is_some_and(ends).then_some(at)
    };
    text.match_indices('$').find_map(used)
}

/// Adds the variable after the last one, with `export` if that one has it.
fn add(request: &Request, text: &str, last: Option<&Variable<'_>>) -> Result<Edit, PatchError> {
    let Some(last) = last else {
        return Err(request.refuse(None, Reason::Empty));
    };
    let (name, value) = (&request.key.last, request.value);
    if let Some(user) = uses(text, name) {
        let hint = format!("set it by hand:\n\n{name}={value}");
        return Err(request.refuse_with(Some(position(text, user)), Reason::Used(name.clone()), hint));
    }
    let end = line_end(text, last.value.end);
    let prefix = &text[last.line..last.start];
    Ok(Edit::insert(end, format!("{}{prefix}{}=", line_break(text, end), name)))
}

/// The variables of a text that [`parse`] accepts.
fn variables(text: &str) -> Vec<Variable<'_>> {
    let mut found = Vec::new();
    let mut line = text.len() - text.trim_start_matches(BYTE_ORDER_MARK).len();
    while line < text.len() {
        let mut start = skip_blanks(text, line);
        let rest = &text[start..];
        let exported = rest.strip_prefix("export").map(|rest| rest.trim_start_matches([' ', '\t']));
        if let Some(exported) = exported.filter(|rest| !rest.starts_with('=')) {
            start += rest.len() - exported.len();
        }
        let mut end = line_end(text, line);
        if let Some(equals) = text[start..end].find('=').filter(|_| !rest.starts_with('#')) {
            let name = text[start..start + equals].trim_end();
            let after = start + equals + 1;
            let value = Some(value(text, skip_blanks(text, after))).filter(|it| !it.is_empty()).unwrap_or(after..after);
            end = line_end(text, value.end);
            found.push(Variable { name, line, start, value });
        }
        line = end + if text[end..].starts_with("\r\n") { 2 } else { 1 };
    }
    found
}

/// Span of the value that begins at `start`. It ends at the first unquoted, unescaped blank or line break.
fn value(text: &str, start: usize) -> Range<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text[start..].char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (None | Some('"'), '\\') => escaped = true,
            (None, '#') if at == 0 => return start..start,
            (None, ' ' | '\t' | '\n' | '\r') => return start..start + at,
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if c == open => quote = None,
            _ => {}
        }
    }
    start..text.len()
}
