//! Server-sent events, read incrementally: bytes in, the `data` of whole events out.
//!
//! Takes LF, CRLF and CR, comments, several `data` lines per event, a byte order mark, characters split between
//! reads, and a last event without its blank line. Data stay bytes: the JSON parser checks their UTF-8.
//! (WHATWG HTML, section 9.2.6, but for the last: the standard drops an event without its blank line.)

/// The stream cannot be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of the stream is longer than {0} bytes")]
pub struct LineTooLong(usize);

/// The state between two reads.
pub struct SseParser {
    limit: usize,
    line: Vec<u8>,
    /// The data of the event so far, lines joined by `\n`.
    data: Vec<u8>,
    has_data: bool,
    first_line: bool,
    /// The last byte was a CR, so an LF right after it belongs to it.
    after_cr: bool,
}

impl SseParser {
    /// A parser that takes events of up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        SseParser { limit, line: Vec::new(), data: Vec::new(), has_data: false, first_line: true, after_cr: false }
    }

    /// Bytes held until their event is whole.
    pub fn held(&self) -> usize {
        self.line.len() + self.data.len()
    }

    /// Takes the next bytes and hands the data of each event they complete to `on_data`.
    pub fn feed(&mut self, mut bytes: &[u8], mut on_data: impl FnMut(&[u8])) -> Result<(), LineTooLong> {
        if self.after_cr && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            self.after_cr = false;
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', bytes) {
            let (line, rest) = bytes.split_at(end);
            if self.line.is_empty() {
                self.end_line(line, &mut on_data)?;
            } else {
                self.extend_line(line)?;
                self.end_own_line(&mut on_data)?;
            }
            let crlf = rest.starts_with(b"\r\n");
            self.after_cr = rest == b"\r";
            bytes = &rest[1 + usize::from(crlf)..];
        }
        self.extend_line(bytes)
    }

    /// The stream has ended: hands over an event whose blank line never came.
    pub fn finish(&mut self, mut on_data: impl FnMut(&[u8])) -> Result<(), LineTooLong> {
        if !self.line.is_empty() {
            self.end_own_line(&mut on_data)?;
        }
        self.end_line(b"", &mut on_data)
    }

    fn end_own_line(&mut self, on_data: &mut impl FnMut(&[u8])) -> Result<(), LineTooLong> {
        let mut line = std::mem::take(&mut self.line);
        self.end_line(&line, on_data)?;
        line.clear();
        self.line = line;
        Ok(())
    }

    fn extend_line(&mut self, bytes: &[u8]) -> Result<(), LineTooLong> {
        self.check(self.line.len() + bytes.len())?;
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn check(&self, length: usize) -> Result<(), LineTooLong> {
        if length > self.limit { Err(LineTooLong(self.limit)) } else { Ok(()) }
    }

    fn end_line(&mut self, line: &[u8], on_data: &mut impl FnMut(&[u8])) -> Result<(), LineTooLong> {
        let mark = if std::mem::take(&mut self.first_line) { &b"\xef\xbb\xbf"[..] } else { b"" };
        let line = line.strip_prefix(mark).unwrap_or(line);
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                on_data(&self.data);
                self.data.clear();
            }
            return Ok(());
        }
        let (field, value) = line.split_at(memchr::memchr(b':', line).unwrap_or(line.len()));
        if field == b"data" {
            let value = value.strip_prefix(b":").unwrap_or(value);
            let value = value.strip_prefix(b" ").unwrap_or(value);
            self.check(self.data.len() + value.len())?;
            if self.has_data {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value);
            self.has_data = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARTS: &[&[u8]] = &[
        b"data: x",
        "data:\u{fc}".as_bytes(),
        b"data",
        b": c",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\xef\xbb\xbf",
        b"\xff ",
    ];

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::new(1000);
        let mut seen = Vec::new();
        let mut keep = |data: &[u8]| seen.push(String::from_utf8_lossy(data).into_owned());
        for piece in pieces {
            parser.feed(piece, &mut keep).expect("short lines");
        }
        parser.finish(&mut keep).expect("short lines");
        seen
    }

    #[test]
    fn the_forms_servers_send() {
        let cases: [(&str, &[&str]); 10] = [
            ("data: a\n\ndata: b\n\n", &["a", "b"]),
            ("data:a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]),
            ("data: a\r\rdata: b\r\r", &["a", "b"]),
            (": ping\n\n: ping\ndata: a\n\n", &["a"]),
            ("data: a\ndata: b\n\n", &["a\nb"]),
            ("\u{feff}data: a\n\n", &["a"]),
            ("event: x\nid: 1\nretry: 5\ndata: a\n\n", &["a"]),
            ("data: no blank line", &["no blank line"]),
            ("data\n\n", &[""]),
            ("data:a\r\n\ndata:b\r\n\r\n\ndata:c\r\r\n\n", &["a", "b", "c"]),
        ];
        for (text, expected) in cases {
            // Found by fuzzing: the LF of a CRLF that came alone took the next LF with it.
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(1).flat_map(|byte| [byte, b""]).collect();
            assert_eq!(events(&[text.as_bytes()]), expected, "{text:?}");
            assert_eq!(events(&pieces), expected, "{text:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        for endless in [&b"data: 0123456789"[..], b"data: 01234\ndata: 56789\ndata: 01234\n"] {
            assert_eq!(SseParser::new(10).feed(endless, |_| {}), Err(LineTooLong(10)));
        }
    }

    proptest! {
        /// However the bytes are cut, the events are the same.
        #[test]
        fn cuts_change_nothing(parts in prop::collection::vec(prop::sample::select(PARTS), 0..20), cut in 0usize..200) {
            let bytes = parts.concat();
            let (before, after) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(events(&[before, after]), events(&[&bytes]));
            prop_assert_eq!(events(&bytes.chunks(1).collect::<Vec<_>>()), events(&[&bytes]));
        }
    }
}
