//! Replaces the old text atomically and keeps mode, owner and symbolic links.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::Path;

use tempfile::NamedTempFile;

use super::Patch;
use super::error::{PatchError, Reason};

impl Patch {
    /// Checks whether [`Patch::apply`] may write, as far as possible without writing. A file or folder without any
    /// write bit counts as read-only even for root, since that is its owner's intent.
    pub fn check_writable(&self) -> Result<(), PatchError> {
        let metadata = self.metadata()?;
        if metadata.permissions().readonly() {
            return Err(self.refuse(Reason::ReadOnly));
        }
        // Opened and closed, never written. The rename needs permissions only on the folder, so it would replace even
        // a file that this user may not write.
        if let Err(error) = OpenOptions::new().write(true).open(&self.target) {
            let is_denied = is_denied(&error);
            return Err(if is_denied {
                self.refuse(Reason::ReadOnly)
            } else {
                self.io("open the file for writing", error)
            });
        }
        let folder = fs::metadata(self.folder()).map_err(|e| self.io("inspect its folder", e))?;
        if folder.permissions().readonly() {
            return Err(self.folder_read_only());
        }
        self.check_links(&metadata)
    }

    /// Writes the change to a temporary file in the same folder, syncs it, reads it back to compare, and renames it.
    ///
    /// At any moment, the path names either the whole old file or the whole new one. After an error, the old file is
    /// still in place and no temporary file is left behind.
    pub fn apply(&self) -> Result<(), PatchError> {
        self.check_unchanged()?;
        if self.is_noop() {
            return Ok(());
        }
        self.check_writable()?;
        let staged = self.stage()?;
        // Checked again, to minimise the window in which another writer's change would be overwritten.
        self.check_unchanged()?;
        self.commit(staged)
    }

    /// Writes, syncs and checks the new file. The old one is untouched until [`Patch::commit`]; dropping the result
    /// removes the new one.
    fn stage(&self) -> Result<NamedTempFile, PatchError> {
        let metadata = self.metadata()?;
        // Hidden and named after the file, so that a leftover from a power cut is self-explanatory.
        let mut prefix = OsString::from(".");
        prefix.push(self.target.file_name().unwrap_or_default());
        prefix.push(".");
        let staged = tempfile::Builder::new().prefix(&prefix).suffix(".tmp").tempfile_in(self.folder());
        let mut staged = staged.map_err(|e| {
            if is_denied(&e) { self.folder_read_only() } else { self.io("create a new file beside it", e) }
        })?;
        staged.write_all(self.after.as_bytes()).map_err(|e| self.io("write the new file", e))?;
        // Set only now, because the new file should be private while it is written. The owner comes before the mode,
        // since a change of owner clears mode bits.
        self.keep_owner(staged.as_file(), &metadata)?;
        let file = staged.as_file_mut();
        file.set_permissions(metadata.permissions())
            .map_err(|e| self.io("give the new file the old one's permissions", e))?;
        file.sync_all().map_err(|e| self.io("sync the new file", e))?;
        self.check_staged(file)?;
        Ok(staged)
    }

    fn commit(&self, staged: NamedTempFile) -> Result<(), PatchError> {
        staged.persist(&self.target).map_err(|failed| match failed.error.kind() {
            ErrorKind::ResourceBusy => self.refuse(Reason::Mounted),
            _ => self.io("put the new file in its place", failed.error),
        })?;
        // Best effort: the change is made, so a failure here must not be reported as one. Some file systems cannot
        // sync a folder, and even a power cut in the next seconds leaves one whole file or the other.
        if let Ok(folder) = File::open(self.folder()) {
            let _ = folder.sync_all();
        }
        Ok(())
    }

    /// Reads the new file back and compares it, since a full or failing disk may not report an error on write.
    fn check_staged(&self, staged: &mut File) -> Result<(), PatchError> {
        let mut written = Vec::new();
        staged
            .rewind()
            .and_then(|()| staged.read_to_end(&mut written))
            .map_err(|e| self.io("read the new file back", e))?;
        if written == self.after.as_bytes() {
            Ok(())
        } else {
            Err(self.refuse(Reason::Guard("the new file does not hold what was written".to_owned())))
        }
    }

    fn check_unchanged(&self) -> Result<(), PatchError> {
        let target = self.request.resolve()?;
        if target == self.target && self.request.read(&target)? == self.before.as_bytes() {
            return Ok(());
        }
        Err(self.request.refuse_with(None, Reason::Changed, "run the command again".to_owned()))
    }

    #[cfg(unix)]
    fn check_links(&self, metadata: &Metadata) -> Result<(), PatchError> {
        use std::os::unix::fs::MetadataExt;
        match metadata.nlink() {
            0 | 1 => Ok(()),
            links => Err(self.refuse(Reason::HardLinked(links))),
        }
    }

    #[cfg(not(unix))]
    fn check_links(&self, _metadata: &Metadata) -> Result<(), PatchError> {
        Ok(())
    }

    /// Refuses to change the owner or group of the file: with mode 0640, that could lock a service out or expose
    /// its keys to others.
    #[cfg(unix)]
    fn keep_owner(&self, staged: &File, old: &Metadata) -> Result<(), PatchError> {
        use std::os::unix::fs::{MetadataExt, fchown};
        let (uid, gid) = (old.uid(), old.gid());
        let new = staged.metadata().map_err(|e| self.io("inspect the new file", e))?;
        if (new.uid(), new.gid()) == (uid, gid) {
            return Ok(());
        }
        // Passes only what differs: a user may change a file's group to another of their groups, but not its owner.
        fchown(staged, (new.uid() != uid).then_some(uid), (new.gid() != gid).then_some(gid))
            .map_err(|_| self.refuse(Reason::Owner { uid, gid }))
    }

    #[cfg(not(unix))]
    fn keep_owner(&self, _staged: &File, _old: &Metadata) -> Result<(), PatchError> {
        Ok(())
    }

    fn metadata(&self) -> Result<Metadata, PatchError> {
        fs::metadata(&self.target).map_err(|e| self.io("inspect the file", e))
    }

    fn folder(&self) -> &Path {
        self.target.parent().unwrap_or(Path::new("."))
    }

    fn folder_read_only(&self) -> PatchError {
        self.refuse(Reason::FolderReadOnly(self.folder().to_owned()))
    }

    fn refuse(&self, reason: Reason) -> PatchError {
        self.request.refuse(None, reason)
    }

    fn io(&self, doing: &'static str, source: io::Error) -> PatchError {
        self.request.io(doing, source)
    }
}

fn is_denied(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::plan;
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
        // A process that is killed runs no destructors.
        std::mem::forget(staged);
        assert_eq!(fs::read_to_string(&path).unwrap(), BEFORE);
        assert_eq!(names(folder.path()).len(), 2);
        assert!(names(folder.path()).iter().any(|name| name.starts_with(".config.yaml.") && name.ends_with(".tmp")));
        // The leftover file does not get in the way of the next run.
        plan(&path, "llm.max_concurrent_requests", 20).unwrap().apply().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), AFTER);
    }

    #[test]
    fn an_error_between_write_and_rename_leaves_nothing_behind() {
        let (folder, path, patch) = planned();
        drop(patch.stage().unwrap());
        assert_eq!(names(folder.path()), ["config.yaml"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), BEFORE);
        // Makes the rename itself fail: a folder takes the file's place.
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
}
