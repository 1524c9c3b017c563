//! Incremental parser for server-sent events: bytes in, the `data` of complete events out.
//!
//! Handles LF, CRLF and CR, comments, several `data` lines per event, a byte order mark, characters split
//! between reads, and a last event without its blank line. Data stay bytes: the JSON parser checks their
//! UTF-8. (WHATWG HTML, section 9.2.6, except that the standard drops an event without its blank line.)

/// The error for an overlong line or event, after which the stream cannot be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of the stream is longer than {0} bytes")]
pub struct LineTooLong(usize);

/// The parser's state between two reads.
pub struct SseParser {
    limit: usize,
    line: Vec<u8>,
    /// Data of the current event so far, lines joined by `\n`.
    data: Vec<u8>,
    has_data: bool,
    first_line: bool,
    /// The last byte was a CR, so an LF right after it belongs to it.
    after_cr: bool,
}

impl SseParser {
    /// A parser that rejects lines and events of more than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        SseParser { limit, line: Vec::new(), data: Vec::new(), has_data: false, first_line: true, after_cr: false }
    }

    /// Bytes buffered for incomplete lines and events.
    pub fn held(&self) -> usize {
        self.line.len() + self.data.len()
    }

    /// Parses the next bytes and passes the data of each event that they complete to `on_data`.
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

    /// Ends the stream and passes on an event whose blank line never came.
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
