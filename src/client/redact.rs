//! Makes outside text safe to show and store: no terminal control or invisible characters, and no secrets.

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use icu_properties::CodePointSetData;
use icu_properties::props::DefaultIgnorableCodePoint;
use percent_encoding::percent_decode_str;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};

// ---- characters ----

/// The text on a single line, safe for a terminal.
pub fn one_line(text: &str) -> String {
    let seen: String = text.chars().filter(|&c| c.is_whitespace() || is_seen(c)).collect();
    seen.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The text with its line breaks kept, safe for a terminal.
pub fn lines(text: &str) -> String {
    text.chars().filter(|&c| c == '\n' || is_seen(c)).collect()
}

/// Whether `c` is visible or a space: not a control character (escape sequences begin with
/// one), and not invisible, such as direction marks and zero-width spaces.
pub fn is_seen(c: char) -> bool {
    // Interlinear annotation marks are not default-ignorable, but invisible as well.
    !c.is_control()
        && !matches!(c, '\u{fff9}'..='\u{fffb}')
        && !CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
}

/// Applies [`lines`] to all strings in a value, including keys.
pub fn value_in_lines(value: Value) -> Value {
    match value {
        Value::String(text) => lines(&text).into(),
        Value::Array(items) => items.into_iter().map(value_in_lines).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (lines(&key), value_in_lines(value))).collect(),
        other => other,
    }
}

// ---- secrets of a connection, in what a server says ----

/// Longest quote from an error's text, characters.
const LONGEST_QUOTE: usize = 200;

/// Strings that no message may show, longest first. A server may echo the request, encoded or decoded.
#[derive(Clone)]
pub(super) struct Secrets(Arc<[String]>);

impl Secrets {
    /// The key, the userinfo and query of `base`, and the values of `headers` (`Basic` credentials also decoded).
    pub fn of<'a>(base: &Url, key: Option<&SecretString>, headers: impl IntoIterator<Item = &'a str>) -> Self {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let userinfo = [base.username(), base.password().unwrap_or_default()];
        let query = base.query().unwrap_or_default();
        let mut all: Vec<String> = key.map(|key| key.expose_secret().trim().to_owned()).into_iter().collect();
        all.extend([userinfo[0], userinfo[1], query].iter().flat_map(|&text| [text.to_owned(), decoded(text)]));
        all.extend(query.split('&').filter_map(|pair| Some(pair.split_once('=')?.1.to_owned())));
        all.extend(base.query_pairs().map(|(_, value)| value.into_owned()));
        if userinfo != ["", ""] {
            // As sent in the `Authorization` header.
            all.push(BASE64_STANDARD.encode(userinfo.map(decoded).join(":")));
        }
        for header in headers {
            all.push(header.to_owned());
            let Some(basic) = header.strip_prefix("Basic ") else { continue };
            all.push(basic.to_owned());
            let decoded = BASE64_STANDARD.decode(basic).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            all.extend(decoded.iter().flat_map(|userinfo| userinfo.split(':')).map(str::to_owned));
        }
        Secrets(Arc::default()).and(all)
    }

    /// Adds more secrets, each as it appears on one line and in JSON.
    pub fn and(&self, more: Vec<String>) -> Self {
        let mut all: Vec<String> = more.iter().map(|secret| one_line(secret)).collect();
        let in_json: Vec<_> = all.iter().map(|secret| Value::from(secret.as_str()).to_string()).collect();
        all.extend(in_json.iter().map(|quoted| quoted[1..quoted.len() - 1].to_owned()));
        // Replacing very short ones would only garble the text.
        all.retain(|secret| secret.len() >= 4);
        all.extend(self.0.iter().cloned());
        all.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        all.dedup();
        Secrets(all.into())
    }

    /// The message without these secrets, shortened and on one line.
    pub fn removed_from(&self, message: &str) -> String {
        // Before the search: a hidden or escaped character would otherwise hide a secret.
        let mut text = one_line(&unescaped(message));
        for secret in self.0.iter() {
            text = text.replace(secret.as_str(), "[redacted]");
        }
        match text.char_indices().nth(LONGEST_QUOTE) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }
}

/// Resolves JSON's `\/` and `\u` escapes, which a quoted body may contain.
fn unescaped(text: &str) -> String {
    let text = text.replace("\\/", "/");
    let mut parts = text.split("\\u");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        match code.and_then(char::from_u32) {
            Some(c) => plain.extend(std::iter::once(c).chain(part[4..].chars())),
            None => plain.extend(["\\u", part]),
        }
    }
    plain
}

// ---- secrets in a request's body ----

/// Words in a key's name that mark its value as a secret, unless the name ends in `id` or `ids`.
const SECRET_WORDS: &str =
    " key apikey token secret password passwd passphrase pwd authorization auth bearer credential credentials ";

/// True for `api_key`, `X-Auth-Token` and `clientSecret`, but not for `stop_token_ids`.
fn is_secret(key: &str) -> bool {
    let mut words = String::new();
    for c in key.chars() {
        if c.is_uppercase() && words.ends_with(char::is_lowercase) {
            words.push(' ');
        }
        words.push(if c.is_alphanumeric() { c } else { ' ' });
    }
    let words = words.to_lowercase();
    let mut words = words.split_whitespace().rev().peekable();
    words.peek().is_some_and(|last| !matches!(*last, "id" | "ids"))
        && words.any(|word| SECRET_WORDS.contains(&format!(" {word} ")))
}

/// Strings and numbers under secret keys, at any depth.
pub fn secrets(map: &Map<String, Value>) -> Vec<String> {
    let mut all = Vec::new();
    let _ = without(map, &mut |secret| {
        all.push(secret);
        Value::Null
    });
    all
}

/// The map with secrets replaced by a short hash: enough to tell two apart, too little to guess one.
pub fn without_secrets(map: &Map<String, Value>) -> Map<String, Value> {
    without(map, &mut |secret| format!("[redacted {:06x}]", fnv1a(secret.as_bytes()) & 0xff_ffff).into())
}

fn without(map: &Map<String, Value>, replace: &mut impl FnMut(String) -> Value) -> Map<String, Value> {
    fn walk(value: &Value, secret: bool, replace: &mut dyn FnMut(String) -> Value) -> Value {
        match value {
            Value::String(text) if secret => replace(text.clone()),
            Value::Number(number) if secret => replace(number.to_string()),
            Value::Array(items) => items.iter().map(|item| walk(item, secret, replace)).collect(),
            Value::Object(map) => {
                let entry =
                    |(key, value): (&String, &Value)| (key.clone(), walk(value, secret || is_secret(key), replace));
                map.iter().map(entry).collect()
            }
            other => other.clone(),
        }
    }
    map.iter().map(|(key, value)| (key.clone(), walk(value, is_secret(key), replace))).collect()
}

/// FNV-1a, 64 bits: the same in every version and on every machine.
pub fn fnv1a<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325;
    bytes.into_iter().fold(start, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
