//! A stdout and a stderr that cannot fail: whoever reads them may leave (`| head`), or their disk be full, and the
//! measurement goes on.
//!
//! Criterion prints by `println!`, which panics where it cannot write. So while a run lasts, each of the two that is no
//! terminal is a pipe, emptied by a thread that passes on what it can.

#[cfg(not(unix))]
pub use elsewhere::{Guard, Hush, aloud, guard, hush, leave_terminal, let_go};
#[cfg(unix)]
pub use unix::{Guard, Hush, aloud, guard, hush, leave_terminal, let_go};

/// Elsewhere they are left as they are.
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

    /// What a pipe stands for: one stream, or both where they are the same file, so that their lines keep their order.
    struct Forward {
        streams: Vec<Stream>,
        original: File,
        thread: JoinHandle<io::Result<()>>,
    }

    /// Of the guard there is, if there is one: descriptors are the process's.
    static FORWARDS: Mutex<Option<Vec<Forward>>> = Mutex::new(None);

    /// Those of the two that are no terminal.
    fn not_terminals() -> impl Iterator<Item = Stream> {
        [Stream::Stdout, Stream::Stderr].into_iter().filter(|stream| !stream.fd().is_terminal())
    }

    /// Ends what [`guard`] began.
    #[derive(Debug)]
    pub struct Guard {
        is_first: bool,
    }

    /// Lets nothing that is written to stdout and stderr fail, until the guard is dropped. It does nothing while there is
    /// another one.
    pub fn guard() -> Guard {
        let mut forwards = FORWARDS.lock();
        let is_first = forwards.is_none();
        // Without a pipe or a thread the streams stay as they were.
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

    /// To the end, also when nobody takes it any more. (`io::copy` would splice, which waits for room with nothing to pass.)
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
            // Into a pipe, which takes it.
            let _ = io::stdout().flush();
            for Forward { streams, thread, .. } in take() {
                let Ok(Err(error)) = thread.join() else { continue };
                // A reader that has left knows.
                if streams.contains(&Stream::Stdout) && error.kind() != ErrorKind::BrokenPipe {
                    let _ = writeln!(io::stderr(), "note: cannot write all of it to stdout: {error}");
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

    /// Ends the guard without waiting for anybody: the process is about to end, and has a last word to say.
    pub fn let_go() {
        take();
    }

    /// Where stderr leads while it is hushed.
    static HUSHED: Mutex<Option<File>> = Mutex::new(None);

    /// To stderr, also while it is hushed. That it cannot be written stops nobody.
    pub fn aloud(text: &str) {
        let hushed = HUSHED.lock();
        let _ = match hushed.as_ref() {
            Some(mut stderr) => stderr.write_all(text.as_bytes()),
            None => io::stderr().write_all(text.as_bytes()),
        };
    }

    /// Until it is dropped, what is written to stderr, and perhaps to stdout, is kept from the reader.
    #[derive(Debug)]
    pub struct Hush {
        originals: Vec<(Stream, File)>,
        kept: Option<File>,
    }

    pub fn hush(is_stdout_too: bool) -> Hush {
        // Without a file for it the streams stay as they are.
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
        /// It was worth reading after all.
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

    /// After a hang-up: a terminal that is gone fails whoever writes to it, so that nobody does.
    pub fn leave_terminal() {
        let forwards = FORWARDS.lock();
        let Some(forwards) = &*forwards else { return };
        let is_a_pipe = |stream: &Stream| forwards.iter().any(|forward| forward.streams.contains(stream));
        for stream in not_terminals().filter(|stream| !is_a_pipe(stream)) {
            let _ = OpenOptions::new().write(true).open("/dev/null").and_then(|nowhere| stream.replace(&nowhere));
        }
    }
}
