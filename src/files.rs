//! Reading files that anybody may have put there.

use std::fs::{self, File};
use std::io::{self, Error, ErrorKind, Read};
use std::path::Path;

/// Opens a regular file of at most `most` bytes.
///
/// # Errors
/// If it is larger, or something else than a file: who opens a pipe waits for somebody to write.
pub fn open(path: &Path, most: u64) -> io::Result<File> {
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is a folder, pipe or device, not a regular file"));
    }
    if found.len() > most {
        let [found, most] = [found.len(), most].map(|bytes| bytes.div_ceil(1 << 20));
        return Err(Error::new(ErrorKind::FileTooLarge, format!("it is {found} MiB, and at most {most} MiB are read")));
    }
    File::open(path)
}

/// Reads such a file of UTF-8 text.
///
/// # Errors
/// As [`open`], and if it cannot be read to its end or is no such text.
pub fn read_to_string(path: &Path, most: u64) -> io::Result<String> {
    let mut text = String::new();
    // It may be growing.
    open(path, most)?.take(most).read_to_string(&mut text)?;
    Ok(text)
}
