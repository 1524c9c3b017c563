//! Reads files that may be anything, and writes files so that no reader finds a partial one.

use std::fs::{self, File};
use std::io::{self, Error, ErrorKind, Read};
use std::path::Path;

#[cfg(feature = "suite")]
pub use writing::{TEMPORARY, append_to, replace, temporary_with};

/// The format of a config file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Yaml,
    Json,
    Toml,
    Env,
}

impl Format {
    /// The format by file name; YAML if the name does not tell.
    pub fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        match name.rsplit_once('.') {
            Some((_, "json")) => Format::Json,
            Some((_, "toml")) => Format::Toml,
            Some((_, "env")) => Format::Env,
            // Such as `.env.production`.
            _ if name.starts_with(".env.") => Format::Env,
            _ => Format::Yaml,
        }
    }
}

/// Opens a regular file of at most `most` bytes. Anything else is rejected: opening a pipe would wait for a writer.
pub fn open(path: &Path, most: u64) -> io::Result<File> {
    let found = fs::metadata(path)?;
    if !found.is_file() {
        let kind = if found.is_dir() { ErrorKind::IsADirectory } else { ErrorKind::InvalidInput };
        return Err(Error::new(kind, "it is a folder, pipe or device, not a regular file"));
    }
    check_size(found.len(), most)?;
    File::open(path)
}

/// Reads a regular file of at most `most` bytes.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // The file may be growing.
    open(path, most)?.take(most + 1).read_to_end(&mut bytes)?;
    check_size(bytes.len() as u64, most)?;
    Ok(bytes)
}

fn check_size(found: u64, most: u64) -> io::Result<()> {
    if found <= most {
        return Ok(());
    }
    let [found, most] = [found, most].map(|bytes| bytes.div_ceil(1 << 20));
    Err(Error::new(ErrorKind::FileTooLarge, format!("it is {found} MiB, and at most {most} MiB are read")))
}

/// Reads a regular file of at most `most` bytes as UTF-8 text.
pub fn read_to_string(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?)
        .map_err(|_| Error::new(ErrorKind::InvalidData, "stream did not contain valid UTF-8"))
}

#[cfg(feature = "suite")]
mod writing {
    use std::fs::{self, File, Metadata};
    use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
    use std::path::{Path, PathBuf};

    use tempfile::NamedTempFile;

    /// Prefix of the name of an incomplete file. The file is locked while it is being written.
    pub const TEMPORARY: &str = ".llm-concurrency-";

    /// Writes a file, creating missing parent folders, so that a reader sees either the old or the new content,
    /// never a mix. If `path` is a symbolic link, the file it points to is replaced and the link stays. A file that
    /// fewer may read stays so.
    pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
        let target = pointed_to(path)?;
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        temporary_like(fs::metadata(&target).ok(), folder, bytes)?.persist(&target)?;
        Ok(())
    }

    /// Follows links, even to a file that does not exist yet.
    fn pointed_to(path: &Path) -> io::Result<PathBuf> {
        match (fs::canonicalize(path), fs::read_link(path)) {
            (Err(error), Ok(to)) if error.kind() == ErrorKind::NotFound => pointed_to(&path.with_file_name(to)),
            // Such as links in a circle.
            (Err(error), Ok(_)) => Err(error),
            (found, _) => Ok(found.unwrap_or_else(|_| path.to_owned())),
        }
    }

    /// How far back to search for an incomplete line that a killed program may have left, bytes.
    const LONGEST_LINE: u64 = 1 << 20;

    /// Opens a file for appending lines; creates it, and its folder, if missing. Removes an
    /// incomplete last line, which would otherwise merge with the next one.
    pub fn append_to(path: &Path) -> io::Result<File> {
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        let mut file = File::options().create(true).read(true).append(true).open(path)?;
        let from = file.metadata()?.len().saturating_sub(LONGEST_LINE);
        let mut last = Vec::new();
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut last)?;
        let whole = last.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        if whole < last.len() {
            file.set_len(from + whole as u64)?;
        }
        Ok(file)
    }

    /// A temporary file with this content, synced to disk, with ordinary permissions (tempfile's default is 0600).
    pub fn temporary_with(folder: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
        temporary_like(None, folder, bytes)
    }

    /// The same, but with no permission that the file which it replaces lacks.
    fn temporary_like(old: Option<Metadata>, folder: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMPORARY);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let kept = old.map_or(0o644, |old| old.permissions().mode());
            builder.permissions(fs::Permissions::from_mode(0o644 & kept));
        }
        let mut file = builder.tempfile_in(folder)?;
        // If locking is not supported, this file is not taken for a leftover either: that check locks it too.
        let _ = file.as_file().try_lock();
        file.write_all(bytes)?;
        file.as_file().sync_data()?;
        Ok(file)
    }
}
