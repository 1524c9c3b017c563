//! Lines, positions, and the interpretation of a value's text.

use super::error::{Position, Reason};

pub(super) const BYTE_ORDER_MARK: char = '\u{feff}';

/// Line and column of `offset`. CR, LF and CRLF each end a line.
pub(super) fn position(text: &str, offset: usize) -> Position {
    let head = text.get(..offset).unwrap_or(text);
    let breaks = head.bytes().enumerate().filter(|(at, byte)| match byte {
        b'\n' => true,
        b'\r' => text.as_bytes().get(at + 1) != Some(&b'\n'),
        _ => false,
    });
    let line = breaks.count() + 1;
    let column = head[line_start(head, head.len())..].chars().filter(|c| *c != BYTE_ORDER_MARK).count() + 1;
    (line, column)
}

/// Start of the line that contains `offset`, after any byte order mark.
pub(super) fn line_start(text: &str, offset: usize) -> usize {
    let start = text[..offset].rfind(['\n', '\r']).map_or(0, |at| at + 1);
    if start == 0 && text[..offset].starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len_utf8() } else { start }
}

/// End of the line that contains `offset`, before its line break.
pub(super) fn line_end(text: &str, offset: usize) -> usize {
    text[offset..].find(['\n', '\r']).map_or(text.len(), |at| offset + at)
}

/// The line break at `offset`, or the first one in the file if `offset` is the end of the text.
pub(super) fn line_break(text: &str, offset: usize) -> &'static str {
    let at = if offset < text.len() { offset } else { line_end(text, 0) };
    let rest = &text[at..];
    if rest.starts_with("\r\n") {
        "\r\n"
    } else if rest.starts_with('\r') {
        "\r"
    } else {
        "\n"
    }
}

pub(super) fn skip_blanks(text: &str, offset: usize) -> usize {
    text.len() - text[offset..].trim_start_matches([' ', '\t']).len()
}

/// The number in a value's text; `None` for null or an unquoted empty value.
pub(super) fn number(text: &str, quoted: bool) -> Result<Option<u64>, Reason> {
    if is_placeholder(text) {
        return Err(Reason::Placeholder("its value".to_owned()));
    }
    match decimal(text) {
        None if !quoted && is_null(text) => Ok(None),
        None => Err(Reason::NotANumber(describe(text, quoted))),
        number => Ok(number),
    }
}

/// A whole number, with or without a plus sign, that every program reads alike. Some programs read `010` as eight, and
/// some read `1_0` as a string.
fn decimal(text: &str) -> Option<u64> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    let usual = digits == "0" || !digits.starts_with('0');
    let only_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if usual && only_digits { digits.parse().ok() } else { None }
}

pub(super) fn is_null(text: &str) -> bool {
    matches!(text, "~" | "null" | "Null" | "NULL" | "")
}

/// Whether a text contains the markers of common template engines or environment variables.
pub(super) fn is_placeholder(text: &str) -> bool {
    ["{{", "{%", "${", "$(", "<%"].iter().any(|mark| text.contains(mark)) || text.starts_with('$')
}

/// Shows a value only if it resembles a number. Anything else might be a secret, if the wrong key was given.
fn describe(text: &str, quoted: bool) -> String {
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    match (numeric && text.len() <= 32 && !text.contains(char::is_whitespace), quoted) {
        (true, false) => format!("`{text}`"),
        (true, true) => format!("the string `{text}`"),
        (false, _) => "a string".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_and_every_kind_of_line_break() {
        let text = "\u{feff}a\r\nb\rcäd\ne";
        let at = |needle: char| position(text, text.find(needle).unwrap());
        assert_eq!([at('a'), at('b'), at('c'), at('d'), at('e')], [(1, 1), (2, 1), (3, 1), (3, 3), (4, 1)]);
    }

    #[test]
    fn only_numbers_that_everybody_reads_alike() {
        for (text, number) in [("0", 0), ("10", 10), ("+10", 10), ("18446744073709551615", u64::MAX)] {
            assert_eq!(decimal(text), Some(number), "{text}");
        }
        for text in
            ["", "+", "-1", "010", "00", "1_0", "0x10", "0o10", "1e1", "10.0", "18446744073709551616", "٣", "1 "]
        {
            assert_eq!(decimal(text), None, "{text}");
        }
    }
}
