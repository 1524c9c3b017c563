//! Changes one number in a YAML (or JSON) file, and not one byte beside it.
//!
//! [`plan`] finds the number by the source spans of a parser, never by a search in the text, and computes the new
//! bytes. [`Patch::apply`] writes them to a file beside the old one and renames it into place. Comments, order,
//! quotes, line ends, a byte order mark, permissions, owner and a symbolic link stay as they are.
//!
//! It would rather refuse than guess. Aliases, anchors, duplicate keys, placeholders and the like are refused with
//! the position and the line to write by hand, and every edit is checked by two independent parsers before it
//! touches the disk. The rename gives the file a new inode: a file with several hard links is refused, and extended
//! attributes and ACLs are not carried over.
//!
//! ```no_run
//! # use std::path::Path;
//! use llm_concurrency::patch;
//!
//! let patch = patch::plan(Path::new("config.yaml"), "llm.max_concurrent_requests", 20)?;
//! eprint!("{}", patch.diff());
//! patch.apply()?;
//! # Ok::<(), patch::PatchError>(())
//! ```

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span, StructureStyle};
use serde_yaml::Value;
use tempfile::NamedTempFile;
use thiserror::Error;

/// Nobody keeps a larger configuration; something that large is another file, given by mistake.
const MAX_BYTES: u64 = 10 * 1024 * 1024;
/// Values in the file, counting those of an alias each time it is used: an alias bomb ends here, in linear time.
const MAX_VALUES: u64 = 1_000_000;

/// Why nothing was written. The text says what, where, and what to write by hand instead.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PatchError {
    /// The dotted key cannot be looked up.
    #[error(
        "`{key}` is not a key that can be looked up: {why}\n\n\
         hint: join plain names with dots, such as `llm.max_concurrent_requests`"
    )]
    Key {
        /// The key as given.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The change would be a guess, or the file is not one that may be replaced.
    #[error("{place}: `{key}` was not changed: {reason}\n\nhint: {hint}")]
    Refused {
        /// The file, and the line that is the cause.
        place: Place,
        /// The dotted key.
        key: String,
        /// The cause.
        reason: Box<Reason>,
        /// How to mend it, with the line to write by hand.
        hint: String,
    },
    /// The system refused a read or a write. The old file is still in place.
    #[error("{}: `{key}` was not changed: cannot {doing}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The dotted key.
        key: String,
        /// The step that failed.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A file, and a position in it where there is one to be named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The path as it was given.
    pub path: PathBuf,
    /// Line and column, both from 1, the column in characters.
    pub line_column: Option<(usize, usize)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match self.line_column {
            Some((line, column)) => write!(f, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

/// The cause of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Reason {
    /// Nothing is at the path, or a symbolic link leads nowhere.
    #[error("there is no such file")]
    Missing,
    /// The path names a directory.
    #[error("this is a directory, not a file")]
    Directory,
    /// The path names a pipe, a device or a socket.
    #[error("this is not a regular file (a pipe or a device?), and only one of those can be replaced in one step")]
    NotAFile,
    /// The file has this many bytes.
    #[error("the file has {0} bytes, more than the 10 MiB that are read as a configuration")]
    TooLarge(u64),
    /// Too many values, or aliases that unfold to too many.
    #[error("the file holds more than {MAX_VALUES} values once its aliases are unfolded")]
    TooManyValues,
    /// UTF-16, another encoding, or no text.
    #[error("the file is not UTF-8 text (UTF-16, or another encoding?)")]
    NotUtf8,
    /// Not YAML; in the words of the parser.
    #[error("the file is not valid YAML: {0}")]
    NotYaml(String),
    /// Nothing but comments.
    #[error("the file is empty")]
    Empty,
    /// The mapping that should hold the key is not in the file.
    #[error("there is no `{0}` to hold it")]
    NoParent(String),
    /// The value or one of its parents stands elsewhere.
    #[error("{0} is an alias, so what it stands for is written elsewhere and may serve other keys too")]
    Alias(String),
    /// The value or one of its parents is also used elsewhere.
    #[error("{0} has an anchor, so other places may use it too")]
    Anchor(String),
    /// The key is missing, and a merge might supply it.
    #[error("{0} has a merge key `<<`, which may supply it")]
    Merge(String),
    /// A key stands twice in a mapping on the way.
    #[error("`{name}` stands here a second time, first on line {first_line}")]
    Duplicate {
        /// The key.
        name: String,
        /// Where it stands first.
        first_line: usize,
    },
    /// The file holds more than one document.
    #[error("a second YAML document begins here, and either may be meant")]
    Documents,
    /// A tab where YAML wants spaces.
    #[error("this line is indented with a tab, which YAML does not allow and programs read differently")]
    Tab,
    /// The text is the input of a template engine, not the final value.
    #[error("{0} is a placeholder that another program fills in")]
    Placeholder(String),
    /// An explicit type.
    #[error("{0} has a tag (`!…`), which gives it a type of its own")]
    Tagged(String),
    /// `|` or `>`.
    #[error("its value is a block of text (`|` or `>`)")]
    BlockScalar,
    /// `? key`, or a key that is a list, a mapping or an alias.
    #[error("this key is not a plain `name:` (but `? …`, a list, a mapping or an alias)")]
    ComplexKey,
    /// A text, a fraction, a negative number, or a notation that programs read differently.
    #[error("its value is {0}, not a whole number in plain digits such as 10")]
    NotANumber(String),
    /// A list or a mapping.
    #[error("its value is {0}, not a number")]
    Collection(&'static str),
    /// Something other than a mapping where a mapping should be.
    #[error("{what} is {found}, not a mapping with keys")]
    NotAMapping {
        /// The parent.
        what: String,
        /// What it is.
        found: &'static str,
    },
    /// A character that some programs take for the end of a line, and with which the file has another meaning.
    #[error("this line has a Unicode line separator, which some programs take for a line break and others do not")]
    OddLineBreak,
    /// The place cannot be told to the byte.
    #[error("its exact place cannot be told for certain")]
    Unclear,
    /// Somebody else wrote the file between [`plan`] and [`Patch::apply`].
    #[error("the file has changed since it was read")]
    Changed,
    /// No write permission, or a read-only file system.
    #[error("the file is read-only")]
    ReadOnly,
    /// No new file can be made in this folder.
    #[error("its folder {} is read-only, and the new file must be made there before it replaces the old one", .0.display())]
    FolderReadOnly(PathBuf),
    /// The file has this many names, and all but one would keep the old content.
    #[error("the file has {0} names (hard links), and only this one would get the new value")]
    HardLinked(u64),
    /// Replacing the file would take it away from its owner or group.
    #[error("the file belongs to user {uid}, group {gid}, and you may not make a new file that does")]
    Owner {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// The file is a mount of its own.
    #[error("the file is mounted by itself (a container's volume?), so it cannot be replaced")]
    Mounted,
    /// A check of our own work failed.
    #[error("a check of the result failed: {0}")]
    Guard(String),
}

/// A change that has been worked out and checked, but not yet written.
pub struct Patch {
    request: Request,
    target: PathBuf,
    edit: Edit,
    before: String,
    after: String,
}

/// Works out how to set `key` (names joined by dots) to `value` in the file at `path`, without writing anything.
///
/// An existing whole number is replaced, inside its quotes if it has any; `null` or nothing gets the value; a
/// missing key is added to its parent mapping as one line.
///
/// # Errors
///
/// [`PatchError`] when the file cannot be read or understood, when the parent is missing, or when the change would
/// be a guess.
pub fn plan(path: &Path, key: &str, value: u64) -> Result<Patch, PatchError> {
    let request = Request { path: path.to_owned(), key: Key::parse(key)?, value };
    let target = request.resolve()?;
    let before = request.decode(request.read(&target)?)?;
    let job = Job { request: &request, text: &before };
    let tree = job.read_tree()?;
    let edit = job.find_edit(&tree)?;
    // Read once as the program itself reads it: a file it cannot read needs another remedy than a patch.
    parse_value(&before).map_err(|error| job.yaml_error(&error))?;
    let after = edit.apply_to(&before, value);
    let patch = Patch { request, target, edit, before, after };
    match patch.check_result(&patch.after) {
        Ok(()) => Ok(patch),
        Err(error) => Err(patch.odd_line_break().unwrap_or(error)),
    }
}

impl Patch {
    /// The path as it was given; a symbolic link is not followed here.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.request.path
    }

    /// The whole file as it will be.
    #[must_use]
    pub fn after(&self) -> &str {
        &self.after
    }

    /// The dotted key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.request.key.dotted
    }

    /// The number in the file now; `None` where there is none yet.
    #[must_use]
    pub fn previous(&self) -> Option<u64> {
        self.edit.previous
    }

    /// The number to be written.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.request.value
    }

    /// Whether the file already says so, and [`Patch::apply`] has nothing to write.
    #[must_use]
    pub fn is_noop(&self) -> bool {
        self.before == self.after
    }

    /// The change in the manner of a unified diff; empty when there is nothing to change.
    ///
    /// Only the key and its number are shown. What else is on the line stays as it is, and may hold secrets.
    #[must_use]
    pub fn diff(&self) -> String {
        if self.is_noop() {
            return String::new();
        }
        let old_end = self.edit.range.end + usize::from(self.edit.quoted);
        let new_end = self.after.len() - (self.before.len() - old_end) - self.edit.tail.len();
        let [old, new] = [(&self.before, old_end), (&self.after, new_end)].map(|(text, end)| {
            let start = line_start(text, end).max(self.edit.shown);
            text[start..end].trim_start_matches([BYTE_ORDER_MARK, ',']).trim_end()
        });
        let (name, line) = (self.path().display(), position(&self.after, new_end).0);
        let removed = if old.is_empty() { String::new() } else { format!("-{old}\n") };
        format!("--- {name}\n+++ {name}\n@@ line {line} @@\n{removed}+{new}\n")
    }

    /// Whether [`Patch::apply`] may write, as far as can be told without writing.
    ///
    /// Of use before a long measurement whose result is to be written. A file or folder without any write bit is
    /// taken as read-only even for root: its owner said so.
    ///
    /// # Errors
    ///
    /// [`PatchError`] for a read-only file or folder, or a file with several names.
    pub fn check_writable(&self) -> Result<(), PatchError> {
        let metadata = self.metadata()?;
        if metadata.permissions().readonly() {
            return Err(self.read_only());
        }
        // Opened and closed, never written: the rename asks only for rights on the folder, so that it would
        // replace even a file which this user may not write.
        if let Err(error) = OpenOptions::new().write(true).open(&self.target) {
            return Err(if is_denied(&error) { self.read_only() } else { self.io("open the file for writing", error) });
        }
        let folder = fs::metadata(self.folder()).map_err(|e| self.io("look at its folder", e))?;
        if folder.permissions().readonly() {
            return Err(self.folder_read_only());
        }
        self.check_links(&metadata)
    }

    /// Writes the change: to a new file beside the old one, which is synced, read again, compared, and renamed.
    ///
    /// At any moment the path names either the whole old file or the whole new one. Nothing is written when
    /// [`Patch::is_noop`].
    ///
    /// # Errors
    ///
    /// [`Reason::Changed`] when the file is no longer the one that was planned for; others when it cannot be
    /// written. The old file is then still in place, and no other file is left behind.
    pub fn apply(&self) -> Result<(), PatchError> {
        self.check_unchanged()?;
        if self.is_noop() {
            return Ok(());
        }
        self.check_writable()?;
        let staged = self.stage()?;
        // Once more, so that the window in which another writer would be overwritten is as short as it can be.
        self.check_unchanged()?;
        self.commit(staged)
    }

    /// Writes, syncs and checks the new file. Until [`Patch::commit`] the old one is untouched, and dropping the
    /// result removes the new one.
    fn stage(&self) -> Result<NamedTempFile, PatchError> {
        let metadata = self.metadata()?;
        let mut staged =
            tempfile::Builder::new().prefix(&self.staged_prefix()).suffix(".tmp").tempfile_in(self.folder()).map_err(
                |e| if is_denied(&e) { self.folder_read_only() } else { self.io("make a new file beside it", e) },
            )?;
        staged.write_all(self.after.as_bytes()).map_err(|e| self.io("write the new file", e))?;
        // Only now, as the new file starts as private as it can be. Owner before mode: a change of owner clears
        // bits of the mode.
        self.keep_owner(staged.as_file(), &metadata)?;
        staged
            .as_file()
            .set_permissions(metadata.permissions())
            .map_err(|e| self.io("give the new file the old one's permissions", e))?;
        staged.as_file().sync_all().map_err(|e| self.io("sync the new file", e))?;
        self.check_staged(staged.as_file_mut())?;
        Ok(staged)
    }

    /// Puts the new file in the place of the old one.
    fn commit(&self, staged: NamedTempFile) -> Result<(), PatchError> {
        staged.persist(&self.target).map_err(|failed| match failed.error.kind() {
            ErrorKind::ResourceBusy => {
                let hint = format!("mount its folder instead, or outside of the container {}", self.request.by_hand());
                self.request.refuse(None, Reason::Mounted, hint)
            }
            _ => self.io("put the new file in its place", failed.error),
        })?;
        // Only a power cut in the next seconds could tell the difference, and it would leave one whole file or the
        // other; some file systems cannot sync a folder. No reason to report a change that was made as failed.
        if let Ok(folder) = File::open(self.folder()) {
            let _ = folder.sync_all();
        }
        Ok(())
    }

    /// Reads the new file back and compares, since a full or failing disk may not say so on write.
    fn check_staged(&self, staged: &mut File) -> Result<(), PatchError> {
        let mut written = String::new();
        staged
            .rewind()
            .and_then(|()| staged.read_to_string(&mut written))
            .map_err(|e| self.io("read the new file back", e))?;
        if written != self.after {
            return Err(self.guard("the new file does not hold what was written".to_owned()));
        }
        self.check_result(&written)
    }

    /// Two parsers must agree that nothing but this one value differs from the old text.
    fn check_result(&self, text: &str) -> Result<(), PatchError> {
        let Request { key, value, .. } = &self.request;
        compare(&self.before, text, key, &self.edit.expected(*value)).map_err(|why| self.guard(why))?;
        let job = Job { request: &self.request, text };
        let found = job
            .read_tree()
            .and_then(|tree| job.find_edit(&tree))
            .map_err(|error| self.guard(format!("the new text cannot be read: {error}")))?;
        if found.previous != Some(*value) || found.quoted != self.edit.quoted {
            return Err(self.guard("the new text does not hold the value in its place".to_owned()));
        }
        Ok(())
    }

    /// The one known cause for parsers to disagree: characters that end a line in YAML 1.1 but not in 1.2.
    fn odd_line_break(&self) -> Option<PatchError> {
        let at = self.before.find(['\u{85}', '\u{2028}', '\u{2029}'])?;
        let hint = format!("remove the character, or {}", self.request.by_hand());
        Some(self.request.refuse(Some(position(&self.before, at)), Reason::OddLineBreak, hint))
    }

    fn check_unchanged(&self) -> Result<(), PatchError> {
        let target = self.request.resolve()?;
        if target == self.target && self.request.read(&target)? == self.before.as_bytes() {
            return Ok(());
        }
        Err(self.request.refuse(None, Reason::Changed, "run the command again".to_owned()))
    }

    #[cfg(unix)]
    fn check_links(&self, metadata: &Metadata) -> Result<(), PatchError> {
        use std::os::unix::fs::MetadataExt;
        match metadata.nlink() {
            0 | 1 => Ok(()),
            links => Err(self.request.refuse(None, Reason::HardLinked(links), self.request.by_hand())),
        }
    }

    #[cfg(not(unix))]
    fn check_links(&self, _metadata: &Metadata) -> Result<(), PatchError> {
        Ok(())
    }

    /// Refuses rather than hand the file to another owner or group: with mode 0640 that would lock a service out,
    /// or show its keys to others.
    #[cfg(unix)]
    fn keep_owner(&self, staged: &File, old: &Metadata) -> Result<(), PatchError> {
        use std::os::unix::fs::{MetadataExt, fchown};
        let (uid, gid) = (old.uid(), old.gid());
        let new = staged.metadata().map_err(|e| self.io("look at the new file", e))?;
        if (new.uid(), new.gid()) == (uid, gid) {
            return Ok(());
        }
        // Naming only what differs: a user may give a file to another of their groups, but not to themselves.
        fchown(staged, (new.uid() != uid).then_some(uid), (new.gid() != gid).then_some(gid))
            .map_err(|_| self.request.refuse(None, Reason::Owner { uid, gid }, self.request.by_hand()))
    }

    #[cfg(not(unix))]
    fn keep_owner(&self, _staged: &File, _old: &Metadata) -> Result<(), PatchError> {
        Ok(())
    }

    fn metadata(&self) -> Result<Metadata, PatchError> {
        fs::metadata(&self.target).map_err(|e| self.io("look at the file", e))
    }

    fn folder(&self) -> &Path {
        self.target.parent().unwrap_or(Path::new("."))
    }

    /// Hidden and named after the file, so that one left by a power cut explains itself.
    fn staged_prefix(&self) -> OsString {
        let mut prefix = OsString::from(".");
        prefix.push(self.target.file_name().unwrap_or_default());
        prefix.push(".");
        prefix
    }

    fn read_only(&self) -> PatchError {
        let hint = format!("make the file writable and run the command again, or {}", self.request.by_hand());
        self.request.refuse(None, Reason::ReadOnly, hint)
    }

    fn folder_read_only(&self) -> PatchError {
        let hint = format!("make the folder writable and run the command again, or {}", self.request.by_hand());
        self.request.refuse(None, Reason::FolderReadOnly(self.folder().to_owned()), hint)
    }

    fn io(&self, doing: &'static str, source: io::Error) -> PatchError {
        self.request.io(doing, source)
    }

    fn guard(&self, why: String) -> PatchError {
        let hint = format!("this should not happen, please report it; until then {}", self.request.by_hand());
        self.request.refuse(None, Reason::Guard(why), hint)
    }
}

/// Without the texts: a configuration holds secrets, and debug output ends up in logs.
impl fmt::Debug for Patch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patch")
            .field("path", &self.request.path)
            .field("key", &self.request.key.dotted)
            .field("previous", &self.edit.previous)
            .field("value", &self.request.value)
            .finish_non_exhaustive()
    }
}

fn is_denied(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

// ---- What is asked for --------------------------------------------------------------------------------------

/// What was asked for, which every error repeats.
struct Request {
    path: PathBuf,
    key: Key,
    value: u64,
}

impl Request {
    /// The file that is to be replaced: a link leads to it and stays.
    fn resolve(&self) -> Result<PathBuf, PatchError> {
        fs::canonicalize(&self.path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                let hint = format!("check the path, or make the file and {}", self.by_hand());
                self.refuse(None, Reason::Missing, hint)
            }
            _ => self.io("find the file", error),
        })
    }

    fn read(&self, target: &Path) -> Result<Vec<u8>, PatchError> {
        let wrong_file =
            |reason| Err(self.refuse(None, reason, format!("give the path of a YAML file; in it, {}", self.by_hand())));
        // Asked before the file is opened, as opening a pipe would wait for its other end.
        let metadata = fs::metadata(target).map_err(|e| self.io("look at the file", e))?;
        if metadata.is_dir() {
            return wrong_file(Reason::Directory);
        }
        if !metadata.is_file() {
            return wrong_file(Reason::NotAFile);
        }
        if metadata.len() > MAX_BYTES {
            return wrong_file(Reason::TooLarge(metadata.len()));
        }
        let mut bytes = Vec::new();
        // Bounded once more, as it may have grown in between.
        let length = File::open(target)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|e| self.io("read the file", e))? as u64;
        if length > MAX_BYTES { wrong_file(Reason::TooLarge(length)) } else { Ok(bytes) }
    }

    /// Refuses NUL as well: UTF-16 without a byte order mark is often valid UTF-8 with NUL in every other byte.
    fn decode(&self, bytes: Vec<u8>) -> Result<String, PatchError> {
        let nul = bytes.iter().position(|byte| *byte == 0);
        let (bytes, bad) = match (String::from_utf8(bytes), nul) {
            (Ok(text), None) => return Ok(text),
            (Ok(text), Some(nul)) => (text.into_bytes(), nul),
            (Err(error), nul) => {
                let invalid = error.utf8_error().valid_up_to();
                (error.into_bytes(), nul.map_or(invalid, |nul| nul.min(invalid)))
            }
        };
        let good = String::from_utf8_lossy(&bytes[..bad]);
        let hint = format!("save the file as UTF-8, or {}", self.by_hand());
        Err(self.refuse(Some(position(&good, good.len())), Reason::NotUtf8, hint))
    }

    fn refuse(&self, line_column: Option<(usize, usize)>, reason: Reason, hint: String) -> PatchError {
        let place = Place { path: self.path.clone(), line_column };
        PatchError::Refused { place, key: self.key.dotted.clone(), reason: Box::new(reason), hint }
    }

    fn io(&self, doing: &'static str, source: io::Error) -> PatchError {
        PatchError::Io { path: self.path.clone(), key: self.key.dotted.clone(), doing, source }
    }

    fn by_hand(&self) -> String {
        format!("set it by hand:\n\n{}", self.key.lines(0, "", self.value))
    }
}

/// A dotted key, taken apart.
struct Key {
    dotted: String,
    parents: Vec<String>,
    last: String,
}

impl Key {
    fn parse(dotted: &str) -> Result<Self, PatchError> {
        let wrong = |why| PatchError::Key { key: dotted.to_owned(), why };
        let mut parents: Vec<String> = dotted.split('.').map(str::to_owned).collect();
        for name in &parents {
            if name.is_empty() {
                return Err(wrong("a name between the dots is empty"));
            }
            if name.starts_with('-') || !name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-') {
                return Err(wrong("a name has characters other than letters, digits, `_` and `-`"));
            }
            // `true`, `null` or `1` would be a key of another type than the text that is looked for.
            if !matches!(parse_value(name), Ok(Value::String(_))) {
                return Err(wrong("a name is what YAML takes for a number, `true`, `false` or `null`"));
            }
        }
        let last = parents.pop().unwrap_or_default();
        Ok(Self { dotted: dotted.to_owned(), parents, last })
    }

    fn depth(&self) -> usize {
        self.parents.len()
    }

    /// How errors call the mapping that `depth` names lead to.
    fn parent_name(&self, depth: usize) -> String {
        match depth {
            0 => "the top level".to_owned(),
            _ => format!("`{}`", self.parents[..depth.min(self.depth())].join(".")),
        }
    }

    /// The lines of a block that holds the key, from the name at `depth` on.
    fn lines(&self, depth: usize, indentation: &str, value: u64) -> String {
        let names = self.parents.iter().skip(depth);
        let level = names.len();
        let open: String =
            names.enumerate().map(|(level, name)| format!("{indentation}{}{name}:\n", "  ".repeat(level))).collect();
        format!("{open}{indentation}{}{}: {value}", "  ".repeat(level), self.last)
    }

    /// The same for braces, in a notation that JSON takes too.
    fn members(&self, depth: usize, value: u64) -> String {
        let names = self.parents.iter().skip(depth);
        let open: String = names.clone().map(|name| format!("\"{name}\": {{")).collect();
        format!("{open}\"{}\": {value}{}", self.last, "}".repeat(names.count()))
    }
}

// ---- Lines --------------------------------------------------------------------------------------------------

const BYTE_ORDER_MARK: char = '\u{feff}';

/// Line and column, both from 1, the column in characters. A CR, an LF and a CRLF each end a line.
fn position(text: &str, offset: usize) -> (usize, usize) {
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

/// Where the line that holds `offset` begins, after a byte order mark.
fn line_start(text: &str, offset: usize) -> usize {
    let start = text[..offset].rfind(['\n', '\r']).map_or(0, |at| at + 1);
    if start == 0 && text[..offset].starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len_utf8() } else { start }
}

/// Where the line that holds `offset` ends, before its line break.
fn line_end(text: &str, offset: usize) -> usize {
    text[offset..].find(['\n', '\r']).map_or(text.len(), |at| offset + at)
}

/// The line break at `offset`, or the file's first one where the last line has none.
fn line_break(text: &str, offset: usize) -> &'static str {
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

/// Whether nothing but blanks and a comment follows on the line.
fn only_comment_follows(text: &str, offset: usize) -> bool {
    let rest = &text[offset..line_end(text, offset)];
    let content = rest.trim_start_matches([' ', '\t']);
    content.is_empty() || (content.starts_with('#') && content.len() < rest.len())
}

fn skip_blanks(text: &str, offset: usize) -> usize {
    text.len() - text[offset..].trim_start_matches([' ', '\t']).len()
}

// ---- The tree -----------------------------------------------------------------------------------------------

/// The one document of the file. Nodes refer to each other by index, so that no input makes a recursion deep.
struct Tree {
    nodes: Vec<Node>,
    root: Option<usize>,
}

struct Node {
    kind: Kind,
    span: Range<usize>,
    anchored: bool,
    tagged: bool,
    /// Of a mapping: key, value, key, value.
    children: Vec<usize>,
    /// Values in it once its aliases are unfolded.
    weight: u64,
}

enum Kind {
    Scalar { text: String, style: ScalarStyle },
    Alias,
    Mapping { flow: bool },
    Sequence { flow: bool },
}

impl Node {
    fn has_no_text(&self) -> bool {
        self.span.is_empty()
    }

    fn describe(&self) -> &'static str {
        match &self.kind {
            Kind::Scalar { text, style: ScalarStyle::Plain } if is_null(text) => "empty",
            Kind::Scalar { .. } => "a single value",
            Kind::Alias => "an alias",
            Kind::Mapping { .. } => "a mapping",
            Kind::Sequence { .. } => "a list",
        }
    }
}

/// One key of a mapping with its value, by their indices.
struct Entry {
    name: String,
    style: ScalarStyle,
    key: usize,
    value: usize,
}

#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    root: Option<usize>,
    open: Vec<usize>,
    anchors: HashMap<usize, usize>,
    documents: usize,
}

/// What stops the building of a tree, turned into an error with its position by [`Job::read_tree`].
enum Stop {
    TooManyValues,
    SecondDocument(usize),
    Unclear(usize),
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Stop> {
        let span = span.byte_range().ok_or(Stop::Unclear(0))?;
        match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 { Err(Stop::SecondDocument(span.start)) } else { Ok(()) }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let kind = Kind::Scalar { text: text.into_owned(), style };
                let node = self.add(kind, span, anchor, tag.is_some())?;
                self.close(node)
            }
            Event::Alias(anchor) => {
                // An alias inside of what it stands for has no end.
                let weight = self.anchors.get(&anchor).map(|node| self.nodes[*node].weight).filter(|w| *w > 0);
                let node = self.add(Kind::Alias, span, 0, false)?;
                self.nodes[node].weight = weight.ok_or(Stop::TooManyValues)?;
                self.close(node)
            }
            Event::MappingStart(style, anchor, tag) => {
                let kind = Kind::Mapping { flow: style == StructureStyle::Flow };
                let node = self.add(kind, span, anchor, tag.is_some())?;
                self.open.push(node);
                Ok(())
            }
            Event::SequenceStart(style, anchor, tag) => {
                let kind = Kind::Sequence { flow: style == StructureStyle::Flow };
                let node = self.add(kind, span, anchor, tag.is_some())?;
                self.open.push(node);
                Ok(())
            }
            Event::MappingEnd | Event::SequenceEnd => {
                let node = self.open.pop().ok_or(Stop::Unclear(span.start))?;
                self.nodes[node].span.end = span.end;
                self.close(node)
            }
            _ => Err(Stop::Unclear(span.start)),
        }
    }

    fn add(&mut self, kind: Kind, span: Range<usize>, anchor: usize, tagged: bool) -> Result<usize, Stop> {
        let index = self.nodes.len();
        if index as u64 >= MAX_VALUES {
            return Err(Stop::TooManyValues);
        }
        match self.open.last() {
            Some(parent) => self.nodes[*parent].children.push(index),
            None => self.root = Some(index),
        }
        if anchor != 0 {
            self.anchors.insert(anchor, index);
        }
        self.nodes.push(Node { kind, span, anchored: anchor != 0, tagged, children: Vec::new(), weight: 0 });
        Ok(index)
    }

    /// Sums up a node that is complete. The weight stays 0 until then, by which an endless alias is known.
    fn close(&mut self, index: usize) -> Result<(), Stop> {
        let node = &self.nodes[index];
        if node.weight == 0 {
            let inner: u64 = node.children.iter().map(|child| self.nodes[*child].weight).sum();
            self.nodes[index].weight = inner + 1;
        }
        if self.nodes[index].weight > MAX_VALUES { Err(Stop::TooManyValues) } else { Ok(()) }
    }
}

// ---- Finding the place --------------------------------------------------------------------------------------

/// The bytes to replace, and by what.
struct Edit {
    range: Range<usize>,
    /// Where the key begins, with the blanks before it; the place itself for an addition.
    shown: usize,
    /// What goes before and after the digits: nothing for a replacement, the key and a line break for an addition.
    lead: String,
    tail: &'static str,
    previous: Option<u64>,
    /// The number is written as a text, and stays one.
    quoted: bool,
}

impl Edit {
    fn apply_to(&self, before: &str, value: u64) -> String {
        // The number may be there in another notation (`+10`): the same value is no reason to touch it.
        if self.previous == Some(value) {
            return before.to_owned();
        }
        let (head, rest) = (&before[..self.range.start], &before[self.range.end..]);
        format!("{head}{}{value}{}{rest}", self.lead, self.tail)
    }

    fn expected(&self, value: u64) -> Value {
        if self.quoted { Value::String(value.to_string()) } else { Value::Number(value.into()) }
    }
}

/// One text and what is to be done with it; all errors with a position are made here.
struct Job<'a> {
    request: &'a Request,
    text: &'a str,
}

impl Job<'_> {
    fn read_tree(&self) -> Result<Tree, PatchError> {
        let mut options = Options::default();
        // Comments are kept by never touching them; as events they would only run into a limit.
        options.set_emit_comments(false);
        let mut builder = Builder::default();
        for next in Parser::new_from_str_with_options(self.text, options) {
            let (event, span) = next.map_err(|error| self.scan_error(&error))?;
            builder.take(event, span).map_err(|stop| self.stopped(&stop))?;
        }
        let tree = Tree { nodes: builder.nodes, root: builder.root };
        self.refuse_template(&tree)?;
        Ok(tree)
    }

    /// `key: {{ name }}` without quotes is valid YAML, a mapping with a mapping as its key, but never meant so.
    fn refuse_template(&self, tree: &Tree) -> Result<(), PatchError> {
        let braces = |node: &&Node| {
            matches!(node.kind, Kind::Mapping { flow: true }) && self.text[node.span.start..].starts_with("{{")
        };
        match tree.nodes.iter().find(braces) {
            Some(node) => Err(self.refuse(
                node.span.start,
                Reason::Placeholder("`{{ … }}`".to_owned()),
                format!("change the template, or {}", self.by_hand()),
            )),
            None => Ok(()),
        }
    }

    fn find_edit(&self, tree: &Tree) -> Result<Edit, PatchError> {
        let root = match tree.root.map(|root| (root, &tree.nodes[root])) {
            Some((root, node)) if node.describe() != "empty" || node.anchored || node.tagged => root,
            _ => return Err(self.request.refuse(None, Reason::Empty, self.by_hand())),
        };
        let mut node = root;
        let mut parent: Option<Entry> = None;
        for (depth, name) in self.key().parents.iter().enumerate() {
            let mut entries = self.entries(tree, node, depth)?;
            let Some(at) = entries.iter().position(|entry| entry.name == *name) else {
                return Err(self.no_parent(tree, node, &entries, depth));
            };
            let entry = entries.swap_remove(at);
            self.check_key(tree, node, &entry)?;
            node = entry.value;
            parent = Some(entry);
        }
        let entries = self.entries(tree, node, self.key().depth())?;
        match entries.iter().find(|entry| entry.name == self.key().last) {
            Some(entry) => self.replace(tree, node, entry),
            None => self.add(tree, node, &entries, parent.as_ref()),
        }
    }

    /// The entries of a mapping on the way to the key, once it is clear that they are all there is.
    fn entries(&self, tree: &Tree, index: usize, depth: usize) -> Result<Vec<Entry>, PatchError> {
        let node = &tree.nodes[index];
        let what = self.key().parent_name(depth);
        let refuse = |reason| Err(self.refuse(node.span.start, reason, self.under(tree, index, depth)));
        match &node.kind {
            Kind::Alias => return refuse(Reason::Alias(what)),
            _ if node.anchored => return refuse(Reason::Anchor(what)),
            _ if node.tagged => return refuse(Reason::Tagged(what)),
            Kind::Scalar { text, .. } if is_placeholder(text) => return refuse(Reason::Placeholder(what)),
            Kind::Mapping { .. } => {}
            _ => return refuse(Reason::NotAMapping { what, found: node.describe() }),
        }
        let mut entries: Vec<Entry> = Vec::with_capacity(node.children.len() / 2);
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for pair in node.children.chunks_exact(2) {
            let key = &tree.nodes[pair[0]];
            let (Kind::Scalar { text, style }, false) = (&key.kind, key.has_no_text()) else {
                return Err(self.refuse(key.span.start, Reason::ComplexKey, self.under(tree, index, depth)));
            };
            if let Some(first) = seen.insert(text, key.span.start) {
                let first_line = position(self.text, first).0;
                let reason = Reason::Duplicate { name: text.clone(), first_line };
                let hint = format!("keep one of the two, and {}", self.under(tree, index, depth));
                return Err(self.refuse(key.span.start, reason, hint));
            }
            entries.push(Entry { name: text.clone(), style: *style, key: pair[0], value: pair[1] });
        }
        Ok(entries)
    }

    fn no_parent(&self, tree: &Tree, mapping: usize, entries: &[Entry], depth: usize) -> PatchError {
        if let Some(merge) = self.merge_of(tree, mapping, entries, depth) {
            return merge;
        }
        let place = match depth {
            0 => "at the top level".to_owned(),
            _ => format!("under {}", self.key().parent_name(depth)),
        };
        let hint = format!("add by hand, {place}:\n\n{}", self.lines_under(tree, mapping, depth));
        let parent = self.key().parents[..=depth].join(".");
        self.request.refuse(None, Reason::NoParent(parent), hint)
    }

    /// A merge matters only where the key is missing: one that is written out wins over it.
    fn merge_of(&self, tree: &Tree, mapping: usize, entries: &[Entry], depth: usize) -> Option<PatchError> {
        let merge = entries.iter().find(|entry| entry.name == "<<" && entry.style == ScalarStyle::Plain)?;
        let reason = Reason::Merge(self.key().parent_name(depth));
        Some(self.refuse(tree.nodes[merge.key].span.start, reason, self.under(tree, mapping, depth)))
    }

    /// The key must be written the usual way: `name:` in one line, and in a block as the first thing on its line.
    fn check_key(&self, tree: &Tree, mapping: usize, entry: &Entry) -> Result<(), PatchError> {
        let key = &tree.nodes[entry.key];
        let refuse = |reason| Err(self.refuse(key.span.start, reason, self.by_hand()));
        if key.anchored {
            return refuse(Reason::Anchor(format!("the key `{}`", entry.name)));
        }
        if key.tagged {
            return refuse(Reason::Tagged(format!("the key `{}`", entry.name)));
        }
        match tree.nodes[mapping].kind {
            Kind::Mapping { flow: true } if self.has_question_mark(tree, mapping, entry) => {
                return refuse(Reason::ComplexKey);
            }
            Kind::Mapping { flow: true } => {}
            _ if self.indentation(key).is_none() => {
                return Err(self.not_indented(key, self.by_hand()));
            }
            _ => {}
        }
        if self.colon(tree, entry).is_none() { refuse(Reason::ComplexKey) } else { Ok(()) }
    }

    /// What stands before a key on its line, if that is nothing but spaces.
    fn indentation(&self, key: &Node) -> Option<&str> {
        let prefix = self.before_on_line(key);
        prefix.bytes().all(|byte| byte == b' ').then_some(prefix)
    }

    fn shown_from(&self, tree: &Tree, entry: &Entry) -> usize {
        let key = &tree.nodes[entry.key];
        let before = self.before_on_line(key);
        key.span.start - (before.len() - before.trim_end_matches([' ', '\t']).len())
    }

    fn before_on_line(&self, key: &Node) -> &str {
        &self.text[line_start(self.text, key.span.start)..key.span.start]
    }

    /// Why a key without [`Job::indentation`] is not taken.
    fn not_indented(&self, key: &Node, hint: String) -> PatchError {
        let reason = match self.before_on_line(key).trim_start().chars().next() {
            None => Reason::Tab,
            Some('?') => Reason::ComplexKey,
            Some(_) => Reason::Unclear,
        };
        self.refuse(key.span.start, reason, hint)
    }

    /// Whether a key in braces is announced by `?`. Between two members there are only blanks, a comma and comments.
    fn has_question_mark(&self, tree: &Tree, mapping: usize, entry: &Entry) -> bool {
        let mapping = &tree.nodes[mapping];
        let before = mapping.children.iter().take_while(|child| **child != entry.key).last();
        let start = before.map_or(mapping.span.start + 1, |child| tree.nodes[*child].span.end);
        let gap = self.text.get(start..tree.nodes[entry.key].span.start).unwrap_or("?");
        gap.split(['\n', '\r']).any(|line| line.split('#').next().is_some_and(|code| code.contains('?')))
    }

    /// Where the colon after a key stands; `None` unless it is on the same line, after nothing but blanks.
    fn colon(&self, tree: &Tree, entry: &Entry) -> Option<usize> {
        let at = skip_blanks(self.text, tree.nodes[entry.key].span.end);
        self.text[at..].starts_with(':').then_some(at)
    }

    fn replace(&self, tree: &Tree, mapping: usize, entry: &Entry) -> Result<Edit, PatchError> {
        self.check_key(tree, mapping, entry)?;
        let value = &tree.nodes[entry.value];
        let its_value = "its value".to_owned();
        let refuse = |reason| Err(self.refuse(value.span.start, reason, self.line_by_hand(tree, mapping, entry)));
        if value.anchored {
            return refuse(Reason::Anchor(its_value));
        }
        if value.tagged {
            return refuse(Reason::Tagged(its_value));
        }
        let (text, style) = match &value.kind {
            Kind::Scalar { text, style } => (text, *style),
            Kind::Alias => return refuse(Reason::Alias(its_value)),
            Kind::Mapping { .. } | Kind::Sequence { .. } => return refuse(Reason::Collection(value.describe())),
        };
        if matches!(style, ScalarStyle::Literal | ScalarStyle::Folded) {
            return refuse(Reason::BlockScalar);
        }
        if is_placeholder(text) {
            return refuse(Reason::Placeholder(its_value));
        }
        if style == ScalarStyle::Plain && value.has_no_text() {
            return self.fill(tree, mapping, entry);
        }
        let quoted = style != ScalarStyle::Plain;
        let quotes = usize::from(quoted);
        let inner = value.span.start + quotes..value.span.end.saturating_sub(quotes);
        let previous = match decimal(text) {
            None if !quoted && is_null(text) => None,
            None => return refuse(Reason::NotANumber(describe_scalar(text, quoted))),
            number => number,
        };
        // The source must spell the value as it reads: no escapes, no folded lines.
        if self.text.get(inner.clone()) != Some(text.as_str()) {
            return refuse(Reason::Unclear);
        }
        let line = line_start(self.text, inner.start);
        let own_line = self.text[line..value.span.start].trim_start().is_empty();
        if own_line && self.text[line..value.span.start].contains('\t') && !self.is_flow(tree, mapping) {
            return refuse(Reason::Tab);
        }
        Ok(Edit { range: inner, shown: self.shown_from(tree, entry), lead: String::new(), tail: "", previous, quoted })
    }

    /// `key:` with nothing after it: the value goes right behind the colon, before any blanks and comment.
    fn fill(&self, tree: &Tree, mapping: usize, entry: &Entry) -> Result<Edit, PatchError> {
        let unclear = || {
            let hint = self.line_by_hand(tree, mapping, entry);
            self.refuse(tree.nodes[entry.key].span.start, Reason::Unclear, hint)
        };
        let at = self.colon(tree, entry).ok_or_else(unclear)? + 1;
        let rest = skip_blanks(self.text, at);
        let ends = self.text[rest..].starts_with([',', '}']) && self.is_flow(tree, mapping);
        if !ends && !only_comment_follows(self.text, at) {
            return Err(unclear());
        }
        let shown = self.shown_from(tree, entry);
        Ok(Edit { range: at..at, shown, lead: " ".to_owned(), tail: "", previous: None, quoted: false })
    }

    fn add(&self, tree: &Tree, mapping: usize, entries: &[Entry], parent: Option<&Entry>) -> Result<Edit, PatchError> {
        if let Some(merge) = self.merge_of(tree, mapping, entries, self.key().depth()) {
            return Err(merge);
        }
        if self.is_flow(tree, mapping) {
            self.add_in_braces(tree, mapping, entries, parent)
        } else {
            self.add_in_block(tree, mapping, entries, parent)
        }
    }

    /// After the last entry that ends on a line of its own, which a nested block or a block of text does not.
    /// Where there is none, as the first entry.
    fn add_in_block(
        &self,
        tree: &Tree,
        mapping: usize,
        entries: &[Entry],
        parent: Option<&Entry>,
    ) -> Result<Edit, PatchError> {
        let last = entries.iter().rev().find_map(|entry| {
            let indentation = self.indentation(&tree.nodes[entry.key])?;
            Some((self.last_line_end(tree, entry)?, indentation, entry.style))
        });
        if let Some((at, indentation, style)) = last {
            return Ok(self.line_at_end(at, indentation, style));
        }
        let unclear = || {
            let hint = self.under(tree, mapping, self.key().depth());
            self.refuse(tree.nodes[mapping].span.start, Reason::Unclear, hint)
        };
        let first = entries.first().ok_or_else(unclear)?;
        let key = &tree.nodes[first.key];
        let Some(indentation) = self.indentation(key) else {
            return Err(self.not_indented(key, self.under(tree, mapping, self.key().depth())));
        };
        let Some(parent) = parent else {
            let at = key.span.start - indentation.len();
            let lead = format!("{indentation}{}: ", quoted_like(&self.key().last, first.style));
            let tail = line_break(self.text, line_end(self.text, at));
            return Ok(Edit { range: at..at, shown: at, lead, tail, previous: None, quoted: false });
        };
        let after_colon = self.colon(tree, parent).ok_or_else(unclear)? + 1;
        if !only_comment_follows(self.text, after_colon) {
            return Err(unclear());
        }
        Ok(self.line_at_end(line_end(self.text, after_colon), indentation, first.style))
    }

    /// A new line after the one that ends at `at`. As it begins with the line break, a file whose last line has
    /// none stays one.
    fn line_at_end(&self, at: usize, indentation: &str, style: ScalarStyle) -> Edit {
        let eol = line_break(self.text, at);
        let lead = format!("{eol}{indentation}{}: ", quoted_like(&self.key().last, style));
        Edit { range: at..at, shown: at, lead, tail: "", previous: None, quoted: false }
    }

    /// The end of the line on which an entry ends, if it is certain that the entry ends there.
    fn last_line_end(&self, tree: &Tree, entry: &Entry) -> Option<usize> {
        let value = &tree.nodes[entry.value];
        let on_a_line = match &value.kind {
            Kind::Scalar { style, .. } => !matches!(style, ScalarStyle::Literal | ScalarStyle::Folded),
            Kind::Alias => true,
            Kind::Mapping { flow } | Kind::Sequence { flow } => *flow,
        };
        let end = if value.has_no_text() { self.colon(tree, entry)? + 1 } else { value.span.end };
        (on_a_line && only_comment_follows(self.text, end)).then(|| line_end(self.text, end))
    }

    /// After the last member, in the manner of that member.
    fn add_in_braces(
        &self,
        tree: &Tree,
        mapping: usize,
        entries: &[Entry],
        parent: Option<&Entry>,
    ) -> Result<Edit, PatchError> {
        let span = &tree.nodes[mapping].span;
        let unclear = |at| self.refuse(at, Reason::Unclear, self.under(tree, mapping, self.key().depth()));
        let insert = |at, lead| Edit { range: at..at, shown: at, lead, tail: "", previous: None, quoted: false };
        let inside = self
            .text
            .get(span.clone())
            .and_then(|all| all.strip_prefix('{')?.strip_suffix('}'))
            .ok_or_else(|| unclear(span.start))?;
        let Some(last) = entries.last() else {
            if !inside.trim_matches([' ', '\t', '\n', '\r']).is_empty() {
                return Err(unclear(span.start));
            }
            let style = parent.map_or(ScalarStyle::DoubleQuoted, |entry| entry.style);
            return Ok(insert(span.start + 1, format!("{}: ", quoted_like(&self.key().last, style))));
        };
        let (key, value) = (&tree.nodes[last.key], &tree.nodes[last.value]);
        if value.has_no_text() {
            return Err(unclear(key.span.start));
        }
        let at = value.span.end;
        let name = quoted_like(&self.key().last, last.style);
        let tight = last.style != ScalarStyle::Plain && self.text.get(key.span.end..value.span.start) == Some(":");
        let colon = if tight { ":" } else { ": " };
        let prefix = self.before_on_line(key);
        let rest = &self.text[at..line_end(self.text, at)];
        let own_line = prefix.trim_start_matches([' ', '\t']).is_empty()
            && rest.trim_matches([' ', '\t', ',']).is_empty()
            && line_end(self.text, at) < self.text.len();
        let separator = match (own_line, tight) {
            (true, _) => format!(",{}{prefix}", line_break(self.text, line_end(self.text, at))),
            (false, true) => ",".to_owned(),
            (false, false) => ", ".to_owned(),
        };
        Ok(insert(at, format!("{separator}{name}{colon}")))
    }

    fn is_flow(&self, tree: &Tree, mapping: usize) -> bool {
        matches!(tree.nodes[mapping].kind, Kind::Mapping { flow: true })
    }

    fn is_block(&self, tree: &Tree, mapping: usize) -> bool {
        matches!(tree.nodes[mapping].kind, Kind::Mapping { flow: false })
    }

    // ---- Errors and hints ----

    fn refuse(&self, offset: usize, reason: Reason, hint: String) -> PatchError {
        self.request.refuse(Some(position(self.text, offset)), reason, hint)
    }

    fn stopped(&self, stop: &Stop) -> PatchError {
        match stop {
            Stop::TooManyValues => self.request.refuse(None, Reason::TooManyValues, self.by_hand()),
            Stop::SecondDocument(at) => {
                let hint = format!("in the document that is meant, {}", self.by_hand());
                self.refuse(*at, Reason::Documents, hint)
            }
            Stop::Unclear(at) => self.refuse(*at, Reason::Unclear, self.by_hand()),
        }
    }

    fn scan_error(&self, error: &ScanError) -> PatchError {
        let marker = error.marker();
        let at = marker.byte_offset().filter(|at| self.text.is_char_boundary(*at)).unwrap_or(self.text.len());
        let start = line_start(self.text, at);
        let line = &self.text[start..line_end(self.text, at)];
        let blanks = &line[..line.len() - line.trim_start_matches([' ', '\t']).len()];
        if blanks.contains('\t') {
            let hint = format!("indent with spaces, and {}", self.by_hand());
            return self.refuse(start, Reason::Tab, hint);
        }
        self.parse_error(position(self.text, at), error.info(), is_placeholder(line))
    }

    fn yaml_error(&self, error: &serde_yaml::Error) -> PatchError {
        let line_column = error.location().map_or((1, 1), |at| (at.line(), at.column()));
        self.parse_error(line_column, error.to_string(), false)
    }

    fn parse_error(&self, line_column: (usize, usize), why: String, template: bool) -> PatchError {
        let remedy = if template {
            "the line has a placeholder: change the template"
        } else {
            "mend the file and run the command again"
        };
        self.request.refuse(Some(line_column), Reason::NotYaml(why), format!("{remedy}, or {}", self.by_hand()))
    }

    fn key(&self) -> &Key {
        &self.request.key
    }

    fn by_hand(&self) -> String {
        self.request.by_hand()
    }

    /// For a problem with the mapping at `depth`: what to write in it, in its own manner.
    fn under(&self, tree: &Tree, mapping: usize, depth: usize) -> String {
        let place = if depth == 0 { String::new() } else { format!(" under {}", self.key().parent_name(depth)) };
        format!("set it by hand{place}:\n\n{}", self.lines_under(tree, mapping, depth))
    }

    fn lines_under(&self, tree: &Tree, mapping: usize, depth: usize) -> String {
        if self.is_flow(tree, mapping) {
            return self.key().members(depth, self.request.value);
        }
        let first = tree.nodes[mapping].children.first().filter(|_| self.is_block(tree, mapping));
        let indentation = first.and_then(|key| self.indentation(&tree.nodes[*key]));
        let usual = "  ".repeat(depth);
        self.key().lines(depth, indentation.unwrap_or(&usual), self.request.value)
    }

    /// For a problem with the value: the line as it should read. Of a line in braces only the member is shown, as
    /// the rest may hold secrets.
    fn line_by_hand(&self, tree: &Tree, mapping: usize, entry: &Entry) -> String {
        let key = &tree.nodes[entry.key].span;
        let line = position(self.text, key.start).0;
        let name = &self.text[key.clone()];
        if self.is_flow(tree, mapping) {
            return format!("change it by hand on line {line} to:\n\n{name}: {}", self.request.value);
        }
        let indentation = &self.text[line_start(self.text, key.start)..key.start];
        format!("change line {line} by hand to:\n\n{indentation}{name}: {}", self.request.value)
    }
}

// ---- Words --------------------------------------------------------------------------------------------------

/// A whole number that every YAML version and JSON read alike, with or without a plus sign. `010` is eight for some
/// programs, `1_0` a text for others.
fn decimal(text: &str) -> Option<u64> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    let usual = digits == "0" || !digits.starts_with('0');
    let only_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if usual && only_digits { digits.parse().ok() } else { None }
}

fn is_null(text: &str) -> bool {
    matches!(text, "~" | "null" | "Null" | "NULL" | "")
}

/// The marks of the usual template engines and of environment variables.
fn is_placeholder(text: &str) -> bool {
    ["{{", "{%", "${", "$(", "<%"].iter().any(|mark| text.contains(mark)) || text.starts_with('$')
}

/// Shows a value only if it looks like a number: anything else might be a secret, under a key given by mistake.
fn describe_scalar(text: &str, quoted: bool) -> String {
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    match (numeric && text.len() <= 32 && !text.contains(char::is_whitespace), quoted) {
        (true, false) => format!("`{text}`"),
        (true, true) => format!("the text `{text}`"),
        (false, _) => "a text".to_owned(),
    }
}

fn quoted_like(name: &str, style: ScalarStyle) -> String {
    match style {
        ScalarStyle::DoubleQuoted => format!("\"{name}\""),
        ScalarStyle::SingleQuoted => format!("'{name}'"),
        _ => name.to_owned(),
    }
}

// ---- The guard ----------------------------------------------------------------------------------------------

/// Without a byte order mark, which this parser counts as a column: keys of the first line would seem indented.
fn parse_value(text: &str) -> Result<Value, serde_yaml::Error> {
    serde_yaml::from_str(text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text))
}

/// Whether `after` equals `before` in all but the one key, which equals `wanted`. In words, if not.
fn compare(before: &str, after: &str, key: &Key, wanted: &Value) -> Result<(), String> {
    let mut expected = parse_value(before).map_err(|e| format!("the old text cannot be parsed: {e}"))?;
    let actual = parse_value(after).map_err(|e| format!("the new text cannot be parsed: {e}"))?;
    let mut parent = Some(&mut expected);
    for name in &key.parents {
        parent = parent.and_then(|value| value.get_mut(name.as_str()));
    }
    let mapping = parent.and_then(Value::as_mapping_mut).ok_or("the parent cannot be found")?;
    mapping.insert(Value::String(key.last.clone()), wanted.clone());
    if expected == actual { Ok(()) } else { Err("more than the one value would change".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "llm:\n  max_concurrent_requests: 10\n";
    const AFTER: &str = "llm:\n  max_concurrent_requests: 20\n";

    fn planned() -> (tempfile::TempDir, PathBuf, Patch) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        fs::write(&path, BEFORE).unwrap();
        let patch = plan(&path, "llm.max_concurrent_requests", 20).unwrap();
        (folder, path, patch)
    }

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_crash_between_write_and_rename_leaves_the_old_file() {
        let (folder, path, patch) = planned();
        let staged = patch.stage().unwrap();
        assert_eq!(fs::read_to_string(staged.path()).unwrap(), AFTER);
        // A killed process runs no destructors.
        std::mem::forget(staged);
        assert_eq!(fs::read_to_string(&path).unwrap(), BEFORE);
        assert_eq!(names(folder.path()).len(), 2);
        assert!(names(folder.path()).iter().any(|name| name.starts_with(".config.yaml.") && name.ends_with(".tmp")));
        // The file that was left is in nobody's way.
        plan(&path, "llm.max_concurrent_requests", 20).unwrap().apply().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), AFTER);
    }

    #[test]
    fn an_error_between_write_and_rename_leaves_nothing_behind() {
        let (folder, path, patch) = planned();
        drop(patch.stage().unwrap());
        assert_eq!(names(folder.path()), ["config.yaml"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), BEFORE);
        // The rename itself fails: a folder has taken the file's place.
        let staged = patch.stage().unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = patch.commit(staged).unwrap_err().to_string();
        assert!(error.contains("cannot put the new file in its place"), "{error}");
        assert_eq!(names(folder.path()), ["config.yaml"]);
    }

    #[test]
    fn what_was_written_is_read_back() {
        let (folder, path, patch) = planned();
        let other = folder.path().join("other");
        for wrong in ["", BEFORE, "llm: [", "llm:\n  max_concurrent_requests: 20\nnew: 1\n"] {
            fs::write(&other, wrong).unwrap();
            let error = patch.check_staged(&mut File::open(&other).unwrap()).unwrap_err().to_string();
            assert!(error.contains("does not hold what was written"), "{error}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), BEFORE);
    }

    #[test]
    fn the_guard_sees_any_other_change() {
        let (_folder, _path, patch) = planned();
        assert!(patch.check_result(AFTER).is_ok());
        for wrong in [
            BEFORE,
            "llm:\n  max_concurrent_requests: 20\n  more: 1\n",
            "llm:\n  max_concurrent_requests: 20.0\n",
            "llm:\n  max_concurrent_requests: \"20\"\n",
            "llm:\n  max_concurrent_requests: 20\nllm: 1\n",
            "max_concurrent_requests: 20\n",
            "llm: &a\n  max_concurrent_requests: 20\n",
            "",
            "llm: [",
        ] {
            let error = patch.check_result(wrong).unwrap_err().to_string();
            assert!(error.contains("a check of the result failed"), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn positions_count_characters_and_every_kind_of_line_break() {
        let text = "\u{feff}a\r\nb\rcäd\ne";
        let at = |needle: char| position(text, text.find(needle).unwrap());
        assert_eq!([at('a'), at('b'), at('c'), at('d'), at('e')], [(1, 1), (2, 1), (3, 1), (3, 3), (4, 1)]);
    }

    #[test]
    fn only_numbers_that_everybody_reads_alike() {
        let good = [("0", 0), ("10", 10), ("+10", 10), ("18446744073709551615", u64::MAX)];
        for (text, number) in good {
            assert_eq!(decimal(text), Some(number), "{text}");
        }
        for bad in ["", "+", "-1", "010", "00", "1_0", "0x10", "0o10", "1e1", "10.0", "18446744073709551616", "٣", "1 "]
        {
            assert_eq!(decimal(bad), None, "{bad}");
        }
    }
}
