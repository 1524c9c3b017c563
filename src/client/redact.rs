//! What comes from outside, fit to be shown and kept: no character that acts on a terminal or hides, and no secret.

use icu_properties::CodePointSetData;
use icu_properties::props::DefaultIgnorableCodePoint;
use serde_json::{Map, Value};

/// Text on one line of a terminal.
pub fn one_line(text: &str) -> String {
    let seen: String = text.chars().filter(|&c| c.is_whitespace() || is_seen(c)).collect();
    seen.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Text whose lines were meant as such.
pub fn lines(text: &str) -> String {
    text.chars().filter(|&c| c == '\n' || is_seen(c)).collect()
}

/// Neither a control character (escape sequences begin with one) nor one that is not drawn, such as marks of direction
/// and spaces without a width.
pub fn is_seen(c: char) -> bool {
    // Not among those that may be ignored, but not drawn either: the marks around annotations.
    !c.is_control()
        && !matches!(c, '\u{fff9}'..='\u{fffb}')
        && !CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
}

/// The same for every text in a value, keys included.
pub fn value_in_lines(value: Value) -> Value {
    match value {
        Value::String(text) => lines(&text).into(),
        Value::Array(items) => items.into_iter().map(value_in_lines).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (lines(&key), value_in_lines(value))).collect(),
        other => other,
    }
}

/// Whether what stands under this key is for the server alone: `api_key`, `X-Auth-Token`, `clientSecret`, and not
/// `stop_token_ids`.
fn is_secret(key: &str) -> bool {
    const WORDS: [&str; 13] = [
        "key",
        "apikey",
        "token",
        "secret",
        "password",
        "passwd",
        "passphrase",
        "pwd",
        "authorization",
        "auth",
        "bearer",
        "credential",
        "credentials",
    ];
    let mut words = String::new();
    for c in key.chars() {
        if c.is_uppercase() && words.ends_with(char::is_lowercase) {
            words.push(' ');
        }
        words.push(if c.is_alphanumeric() { c } else { ' ' });
    }
    let words = words.to_lowercase();
    let mut words = words.split(' ').rev().peekable();
    words.peek().is_some_and(|last| !matches!(*last, "id" | "ids")) && words.any(|word| WORDS.contains(&word))
}

/// Texts and numbers under such keys, at any depth.
pub fn secrets(map: &Map<String, Value>) -> Vec<String> {
    let mut all = Vec::new();
    let _ = without(map, &mut |secret| {
        all.push(secret);
        Value::Null
    });
    all
}

/// The same map with those made unreadable. What is left of each tells two apart, and too little to guess it by.
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_acts_on_a_terminal_or_hides_is_left_out() {
        for (text, shown) in [
            ("m\u{1b}[31m\u{7}x\u{9b}1m", "m[31mx1m"),
            ("a\u{202e}b\u{2066}c\u{200b}d\u{feff}e\u{ad}f\u{e0041}g", "abcdefg"),
            (" two\r\n\tlines\u{2028}here ", "two lines here"),
            ("grüße, 模型 é́", "grüße, 模型 é́"),
        ] {
            assert_eq!(one_line(text), shown);
        }
        assert_eq!(lines("one\r\n\u{1b}two"), "one\ntwo");
        let file = value_in_lines(json!({"m\u{1b}": ["a\u{202e}", 1.5, null]}));
        assert_eq!(file, json!({"m": ["a", 1.5, null]}));
    }

    #[test]
    fn secrets_are_found_at_any_depth_and_settings_are_none() {
        let body = json!({
            "api_key": "s1", "x": {"headers": [{"X-Auth-Token": "s2"}]}, "auth": {"pin": 4711, "on": true},
            "clientSecret": ["s3"], "HF_TOKEN": "s4", "apikey": null, "temperature": 0.5, "max_completion_tokens": 9,
            "stop_token_ids": [2], "keyword": "k", "tokenizer": "t", "monkey": "m",
        });
        let body = body.as_object().unwrap();
        let mut found = secrets(body);
        found.sort_unstable();
        assert_eq!(found, ["4711", "s1", "s2", "s3", "s4"]);
        let kept = json!(without_secrets(body));
        assert_eq!(
            (&kept["temperature"], &kept["auth"]["on"], &kept["keyword"]),
            (&json!(0.5), &json!(true), &json!("k"))
        );
        for secret in ["s1", "s2", "s3", "s4", "4711"] {
            assert!(!kept.to_string().contains(secret), "{kept}");
        }
        let other = without_secrets(json!({"api_key": "s2"}).as_object().unwrap());
        assert_ne!(json!(other)["api_key"], kept["api_key"]);
        assert!(other["api_key"].as_str().unwrap().starts_with("[redacted "));
    }
}
