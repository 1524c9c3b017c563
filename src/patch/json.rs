//! JSON. `find` treats it as YAML flow style; `parse` uses a JSON parser, as programs do.

use serde_yaml::Value;

use super::error::{PatchError, Reason};
use super::format::{Edit, Invalid};
use super::request::{Key, Request};
use super::text::BYTE_ORDER_MARK;
use super::yaml;

pub(super) fn parse(text: &str) -> Result<Value, Invalid> {
    serde_json::from_str(text.trim_start_matches(BYTE_ORDER_MARK)).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Invalid {
            at: (line > 0).then_some((line, column.max(1))),
            why: error.to_string().replace(&format!(" at line {line} column {column}"), ""),
        }
    })
}

pub(super) fn find(request: &Request, text: &str) -> Result<Edit, PatchError> {
    if text.trim_start_matches(BYTE_ORDER_MARK).trim().is_empty() {
        return Err(request.refuse(None, Reason::Empty));
    }
    // This also refuses duplicate keys.
    parse(text).map_err(|invalid| request.invalid(invalid))?;
    yaml::find(request, text)
}

/// The member that holds the key, starting with the name at `depth`.
pub(super) fn members(key: &Key, depth: usize, value: u64) -> String {
    let names = key.parents.iter().skip(depth);
    let open: String = names.clone().map(|name| format!("\"{name}\": {{")).collect();
    format!("{open}\"{}\": {value}{}", key.last, "}".repeat(names.count()))
}
