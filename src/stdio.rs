//! A stdout and a stderr that cannot fail: their reader may leave (`| head`) or their disk may
//! fill up, and the measurement goes on.
//!
//! Criterion prints with `println!`, which panics if it cannot write. So during a run, each of the two
//! that is not a terminal is replaced by a pipe, and a thread forwards its content as far as possible.

#[cfg(not(unix))]
pub use elsewhere::{Guard, Hush, aloud, guard, hush, leave_terminal, let_go};
#[cfg(unix)]
pub use unix::{Guard, Hush, aloud, guard, hush, leave_terminal, let_go};

/// On other systems the streams are left alone.
#[cfg(not(unix))]
mod elsewhere {
    #[derive(Debug)]
    pub struct Guard;

    pub fn guard() -> Guard {
        Guard
    }

    pub fn let_go() {}

    pub fn aloud(text: &str) {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    }

    #[derive(Debug)]
    pub struct Hush;

    pub fn hush(_: bool) -> Hush {
        Hush
    }

    impl Hush {
        pub fn say(self) {}
    }

    pub fn leave_terminal() {}
}

#[cfg(unix)]
mod unix {
    use std::fs::{File, OpenOptions};
    use std::io::{self, ErrorKind, IsTerminal, PipeReader, Read, Seek, Write};
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::fs::MetadataExt;

    use std::thread::JoinHandle;

    use parking_lot::Mutex;
    use rustix::stdio;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Stream {
        Stdout,
        Stderr,
    }

    impl Stream {
        fn fd(self) -> BorrowedFd<'static> {
            match self {
                Stream::Stdout => stdio::stdout(),
                Stream::Stderr => stdio::stderr(),
            }
        }

        fn replace(self, by: &impl AsFd) -> io::Result<()> {
            Ok(match self {
                Stream::Stdout => stdio::dup2_stdout(by),
                Stream::Stderr => stdio::dup2_stderr(by),
            }?)
        }
    }

    /// The target of a pipe: one stream, or both if they are the same file, so that their lines stay in order.
    struct Forward {
        streams: Vec<Stream>,
        original: File,
        thread: JoinHandle<io::Result<()>>,
    }

    /// The pipes of the active guard, if there is one. Global, since file descriptors belong to the process.
    static FORWARDS: Mutex<Option<Vec<Forward>>> = Mutex::new(None);

    /// The streams that are not terminals.
    fn not_terminals() -> impl Iterator<Item = Stream> {
        [Stream::Stdout, Stream::Stderr].into_iter().filter(|stream| !stream.fd().is_terminal())
    }

    /// Ends what [`guard`] began when dropped.
    #[derive(Debug)]
    pub struct Guard {
        is_first: bool,
    }

    /// Keeps writes to stdout and stderr from failing until the guard is dropped. Does nothing
    /// while another guard exists.
    pub fn guard() -> Guard {
        let mut forwards = FORWARDS.lock();
        let is_first = forwards.is_none();
        // If there is no pipe or no thread, the stream stays as it was.
        forwards.get_or_insert_with(begin);
        Guard { is_first }
    }

    fn begin() -> Vec<Forward> {
        let mut files: Vec<(Vec<Stream>, File)> = Vec::new();
        for stream in not_terminals() {
            let Ok(file) = stream.fd().try_clone_to_owned().map(File::from) else { continue };
            let id = |file: &File| file.metadata().map(|found| (found.dev(), found.ino())).ok();
            match files.iter_mut().find(|(_, other)| id(other) == id(&file)) {
                Some((streams, _)) => streams.push(stream),
                None => files.push((vec![stream], file)),
            }
        }
        files.into_iter().filter_map(|(streams, original)| forward(streams, original).ok()).collect()
    }

    fn forward(streams: Vec<Stream>, original: File) -> io::Result<Forward> {
        let (reader, writer) = io::pipe()?;
        let to = original.try_clone()?;
        let thread = std::thread::Builder::new().name("stdio".to_owned()).spawn(move || pass_on(reader, to))?;
        streams.iter().try_for_each(|stream| stream.replace(&writer))?;
        Ok(Forward { streams, original, thread })
    }

    /// Empties the pipe until it closes, even after a write has failed. (`io::copy` would splice, which
    /// waits for room even if there is nothing to pass on.)
    fn pass_on(mut from: PipeReader, mut to: File) -> io::Result<()> {
        let mut passed_on = Ok(());
        let mut piece = [0; 8192];
        loop {
            match from.read(&mut piece) {
                Ok(0) => return passed_on,
                Ok(n) if passed_on.is_ok() => passed_on = to.write_all(&piece[..n]),
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            if !self.is_first {
                return;
            }
            // Goes into the pipe, which accepts it.
            let _ = io::stdout().flush();
            for Forward { streams, thread, .. } in take() {
                let Ok(Err(error)) = thread.join() else { continue };
                // A reader that has left already knows.
                if streams.contains(&Stream::Stdout) && error.kind() != ErrorKind::BrokenPipe {
                    let _ = writeln!(io::stderr(), "note: cannot write all of the output to stdout: {error}");
                }
            }
        }
    }

    fn take() -> Vec<Forward> {
        let forwards = FORWARDS.lock().take().unwrap_or_default();
        for Forward { streams, original, .. } in &forwards {
            streams.iter().for_each(|stream| drop(stream.replace(original)));
        }
        forwards
    }

    /// Ends the guard without waiting for the threads: the process is about to exit with a last message.
    pub fn let_go() {
        take();
    }

    /// The original stderr while it is hushed.
    static HUSHED: Mutex<Option<File>> = Mutex::new(None);

    /// Writes to stderr even while it is hushed. Errors are ignored.
    pub fn aloud(text: &str) {
        let hushed = HUSHED.lock();
        let _ = match hushed.as_ref() {
            Some(mut stderr) => stderr.write_all(text.as_bytes()),
            None => io::stderr().write_all(text.as_bytes()),
        };
    }

    /// Hides what is written to stderr, and optionally to stdout, until dropped.
    #[derive(Debug)]
    pub struct Hush {
        originals: Vec<(Stream, File)>,
        kept: Option<File>,
    }

    pub fn hush(is_stdout_too: bool) -> Hush {
        // If the file cannot be created, the streams stay as they are.
        let kept = tempfile::tempfile().ok();
        let streams = [Stream::Stderr].into_iter().chain(is_stdout_too.then_some(Stream::Stdout));
        let hushed = |stream: Stream| {
            let _ = io::stdout().flush();
            let original = File::from(stream.fd().try_clone_to_owned().ok()?);
            stream.replace(kept.as_ref()?).ok()?;
            Some((stream, original))
        };
        *HUSHED.lock() = Stream::Stderr.fd().try_clone_to_owned().ok().map(File::from);
        Hush { originals: streams.filter_map(hushed).collect(), kept }
    }

    impl Hush {
        /// Prints the hidden output to stderr after all.
        pub fn say(mut self) {
            let kept = self.kept.take();
            drop(self);
            let mut text = Vec::new();
            let read = kept.map(|mut kept| kept.rewind().and_then(|()| kept.read_to_end(&mut text)));
            if let Some(Ok(_)) = read {
                let _ = io::stderr().write_all(&text);
            }
        }
    }

    impl Drop for Hush {
        fn drop(&mut self) {
            let _ = io::stdout().flush();
            *HUSHED.lock() = None;
            for (stream, original) in &self.originals {
                let _ = stream.replace(original);
            }
        }
    }

    /// After a hang-up: redirects streams whose terminal is gone to /dev/null, since writing to them fails.
    pub fn leave_terminal() {
        let forwards = FORWARDS.lock();
        let Some(forwards) = &*forwards else { return };
        let is_a_pipe = |stream: &Stream| forwards.iter().any(|forward| forward.streams.contains(stream));
        for stream in not_terminals().filter(|stream| !is_a_pipe(stream)) {
            let _ = OpenOptions::new().write(true).open("/dev/null").and_then(|nowhere| stream.replace(&nowhere));
        }
    }
}
