//! The entry points: settings in, files and text out. Each command has a file with its options and their effects.

use std::io::{self, ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use console::Term;

use crate::client::redact;
use crate::report::text::Screen;

/// Like those of std, but without a panic if the message cannot be written.
macro_rules! eprint {
    ($($message:tt)*) => { drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!($($message)*))) };
}
macro_rules! eprintln {
    ($($message:tt)*) => { eprint!("{}\n", format_args!($($message)*)) };
}

mod against;
mod baseline;
mod bench;
pub(crate) mod check;
mod decision;
pub(crate) mod generate;
pub(crate) mod init;
mod page;
pub(crate) mod recheck;
pub(crate) mod recommend;
mod recommended;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod simulate;
pub(crate) mod verify;
mod write;

pub use bench::bench;

const NOTHING_TO_WRITE: u8 = 3;
/// Exit code for a regression, or for a number that no longer holds.
const NO_LONGER: u8 = 4;

#[derive(Args, Debug)]
struct ConfigFile {
    /// The config file [default: $LLM_CONFIG, else config.yaml]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

#[derive(Args, Clone, Copy, Debug, Default)]
struct Verbose {
    /// Print every column and note, and where the files were written
    #[arg(long, short)]
    verbose: bool,
}

/// As wide as `COLUMNS`, else as the terminal, else 80 columns; verbose output to a file is not wrapped.
fn screen(verbose: bool) -> Screen {
    let terminal = Term::stdout();
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|&n| n > 0);
    let width = columns.or_else(|| terminal.size_checked().map(|(_, columns)| usize::from(columns)));
    // https://no-color.org
    let bold = terminal.is_term() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    Screen { width: width.unwrap_or(if verbose { usize::MAX } else { 80 }), bold }
}

/// Prints an error with its causes, and returns the exit code.
pub fn exit(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        // An error may quote a file or a server, and so contain secrets.
        eprintln!("error: {}", redact::lines(&format!("{error:#}")));
        ExitCode::FAILURE
    })
}

/// Prints to stdout. A closed pipe (`| head`) is not an error.
fn print(text: String) -> Result<()> {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}
