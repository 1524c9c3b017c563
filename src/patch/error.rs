use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Line and column, both counted from 1; the column is in characters.
pub type Position = (usize, usize);

/// Why nothing was written. The message states the problem, its place, and what to write by hand instead.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PatchError {
    #[error(
        "`{key}` is not a key that can be looked up: {why}\n\n\
         hint: join plain names with dots, such as `llm.max_concurrent_requests`"
    )]
    Key { key: String, why: &'static str },
    /// The change would be a guess, or the file must not be replaced.
    #[error("{}: `{key}` was not changed: {reason}\n\nhint: {hint}", place(path, *at))]
    Refused { path: PathBuf, at: Option<Position>, key: String, reason: Box<Reason>, hint: String },
    /// A read or a write failed. The old file is still in place.
    #[error("{}: `{key}` was not changed: cannot {doing}", path.display())]
    Io { path: PathBuf, key: String, doing: &'static str, source: io::Error },
}

fn place(path: &Path, at: Option<Position>) -> String {
    let path = path.display();
    at.map_or_else(|| path.to_string(), |(line, column)| format!("{path}:{line}:{column}"))
}

#[derive(Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Reason {
    /// Also if a symbolic link is dangling.
    #[error("there is no such file")]
    Missing,
    #[error("this is a directory, not a file")]
    Directory,
    #[error("this is not a regular file (a pipe or a device?), and only a regular file can be replaced in one step")]
    NotAFile,
    #[error("the file is larger than 10 MiB, the most that is read as a configuration")]
    TooLarge,
    #[error("the file holds more than {0} values once its aliases are expanded")]
    TooManyValues(u64),
    #[error("the file is not UTF-8 text (UTF-16, or another encoding?)")]
    NotUtf8,
    /// `why` is the parser's message.
    #[error("the file is not valid {format}: {why}")]
    Invalid { format: &'static str, why: String },
    /// The file has no entries, though it may have comments.
    #[error("the file is empty")]
    Empty,
    #[error("its parent `{0}` is missing")]
    NoParent(String),
    #[error("{0} is an alias of a value elsewhere, which other keys may share")]
    Alias(String),
    #[error("{0} has an anchor, so other places may use it too")]
    Anchor(String),
    /// Only a reason if the key itself is missing.
    #[error("{0} has a merge key `<<`, which may supply it")]
    Merge(String),
    #[error("`${0}` is used here, so another value would change too")]
    Used(String),
    #[error("`{name}` appears here a second time; the first is on line {first_line}")]
    Duplicate { name: String, first_line: usize },
    #[error("a second YAML document begins here, and either could be meant")]
    Documents,
    #[error("this line is indented with a tab, which YAML forbids and programs read differently")]
    Tab,
    #[error("{0} is a placeholder that another program fills in")]
    Placeholder(String),
    #[error("{0} has a tag (`!…`), which gives it a type of its own")]
    Tagged(String),
    #[error("its value is a block of text (`|` or `>`)")]
    BlockScalar,
    #[error("this key is not a plain `name:` (it is `? …`, a list, a mapping or an alias)")]
    ComplexKey,
    #[error("its value is {0}, not a whole number in plain digits such as 10")]
    NotANumber(String),
    #[error("its value is {0}, not a number")]
    Collection(&'static str),
    #[error("{what} is {found}, not a mapping with keys")]
    NotAMapping { what: String, found: &'static str },
    #[error("this line has a Unicode line separator, which only some programs treat as a line break")]
    OddLineBreak,
    #[error("its exact place in the file is not certain")]
    Unclear,
    /// The file was modified between `plan` and `apply`.
    #[error("the file has changed since it was read")]
    Changed,
    #[error("the file is read-only")]
    ReadOnly,
    #[error("its folder {} is read-only, and the new file must be created there before it replaces the old one", .0.display())]
    FolderReadOnly(PathBuf),
    #[error("the file has {0} names (hard links), and only this one would get the new value")]
    HardLinked(u64),
    #[error("the file belongs to user {uid}, group {gid}, and you may not create a file with that owner")]
    Owner { uid: u32, gid: u32 },
    #[error("the file is itself a mount point (a container's volume?), so it cannot be replaced")]
    Mounted,
    /// A check of the patch's own result failed.
    #[error("a check of the result failed: {0}")]
    Guard(String),
}

impl Reason {
    /// Introduction to the line to write by hand, for reasons without a more specific hint.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Reason::Missing => "check the path, or create the file and ",
            Reason::Directory | Reason::NotAFile | Reason::TooLarge => "give the path of a configuration file; in it, ",
            Reason::NotUtf8 => "save the file as UTF-8, or ",
            Reason::Invalid { .. } => "fix the file and run the command again, or ",
            Reason::Documents => "in the document that is meant, ",
            Reason::Tab => "indent with spaces, and ",
            Reason::Placeholder(_) => "change the template, or ",
            Reason::OddLineBreak => "remove the character, or ",
            Reason::ReadOnly => "make the file writable and run the command again, or ",
            Reason::FolderReadOnly(_) => "make the folder writable and run the command again, or ",
            Reason::Mounted => "mount its folder instead, or outside the container ",
            Reason::Guard(_) => "this should not happen, please report it; until then ",
            _ => "",
        }
    }
}
