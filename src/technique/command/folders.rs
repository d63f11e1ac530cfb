//! Output folders, used again while programs leave them empty: making and removing one costs a good part of what a small
//! program costs.
//!
//! Contract
//! - A folder belongs to one attempt at a time. It goes to the next one only within this process, which knows that the
//!   program and everything it started have ended, and only if it is what was made: the same inode with the same
//!   permissions, empty.
//! - It is named after the task and the attempt that it was made for; what is written in it is found by the task's record alone.

use super::output;
use crate::technique::Fault;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, fstat, openat, statat};
use std::path::Path;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Folders kept for use: a task or two at a time, of a few jobs.
const KEPT: usize = 8;

/// An attempt's folder.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Folder {
    staging: PathBuf,
    /// Relative to staging.
    pub relative: String,
    made: (u64, u32),
}

static FREE: Mutex<Vec<Folder>> = Mutex::new(Vec::new());

fn free() -> MutexGuard<'static, Vec<Folder>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What must not change.
fn mark(stat: &Stat) -> (u64, u32) {
    (stat.st_ino, stat.st_mode)
}

impl Folder {
    /// An empty folder for an attempt.
    pub(super) fn of(staging: &Path, label: &str, attempt: u64) -> Result<Self, Fault> {
        loop {
            let mut free = free();
            let Some(i) = free.iter().position(|f| f.staging == staging) else { break };
            let folder = free.swap_remove(i);
            drop(free);
            // Another pilot may have taken the job over, with all that was there.
            if statat(CWD, folder.path(), AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| mark(&stat) == folder.made) {
                return Ok(folder);
            }
        }
        let relative = format!("parts/{label}.a{attempt}");
        output::new_folder(staging, &relative)?;
        let path = staging.join(&relative);
        let stat = statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| Fault::writing(&path, &e.into()))?;
        Ok(Self { staging: staging.to_owned(), relative, made: mark(&stat) })
    }

    pub(super) fn path(&self) -> PathBuf {
        self.staging.join(&self.relative)
    }

    /// Keeps it for the next attempt when it is as it was made; otherwise gives it back to the caller.
    pub(super) fn keep(self) -> Result<(), Self> {
        if !self.is_as_made() {
            return Err(self);
        }
        let mut free = free();
        let old = if free.len() < KEPT { None } else { Some(free.remove(0)) };
        free.push(self);
        drop(free);
        if let Some(old) = old {
            // Of a job that is over, as a rule; then it is gone already.
            let _ = std::fs::remove_dir(old.path());
        }
        Ok(())
    }

    fn is_as_made(&self) -> bool {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(folder) = openat(CWD, self.path(), flags, Mode::empty()) else { return false };
        let same = fstat(&folder).is_ok_and(|stat| mark(&stat) == self.made);
        let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
        let mut entries = rustix::fs::RawDir::new(folder, &mut buffer);
        while let Some(entry) = entries.next() {
            if !entry.is_ok_and(|e| [c".", c".."].contains(&e.file_name())) {
                return false;
            }
        }
        same
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_what_is_as_it_was_made_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let staging = dir.path();
        let a = Folder::of(staging, "t", 1).unwrap();
        let path = a.path();
        assert_eq!(path, staging.join("parts/t.a1"));
        a.keep().unwrap();
        assert_ne!(Folder::of(other.path(), "t", 2).unwrap().path(), path, "another job's");
        let again = Folder::of(staging, "t", 3).unwrap();
        assert_eq!(again.path(), path);
        assert_ne!(Folder::of(staging, "t", 4).unwrap().path(), path, "it is taken");

        std::fs::write(path.join(".x"), "").unwrap();
        let again = again.keep().unwrap_err();
        std::fs::remove_file(path.join(".x")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        let again = again.keep().unwrap_err();
        std::fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("/tmp", &path).unwrap();
        again.keep().unwrap_err();

        let gone = Folder::of(staging, "t", 5).unwrap();
        let path = gone.path();
        gone.keep().unwrap();
        std::fs::rename(&path, staging.join("elsewhere")).unwrap();
        assert_eq!(Folder::of(staging, "t", 6).unwrap().path(), staging.join("parts/t.a6"));
    }
}
