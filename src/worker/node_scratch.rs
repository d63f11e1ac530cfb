//! Scratch on a node's own disk: `<base>/beampilot-<uid>/<key>/`, for files that executors of one node leave for each other.
//!
//! Contract
//! - Nothing here is the only copy of anything, and nothing of it outlives the pilot: a reader that does not find its file
//!   makes the content again.
//! - Every executor that uses a job's folder holds a shared lock on it (`flock`) until it forgets the job or ends, however it
//!   ends. Who can lock a folder alone may remove it: so the last executor that forgets a job does, and who begins to use a
//!   folder looks for what dead pilots left (`UNUSED`).
//! - `base` is writable by others. The folder below it must be ours and closed to them, or it is not used; links are not
//!   followed.
//! - No error is a fault: without room, rights or locks the caller writes to shared scratch instead.

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A folder that nobody locks may belong to an executor that is being replaced: it is left for so long.
const UNUSED: Duration = Duration::from_secs(600);
/// Room that is left to whoever else uses the disk, bytes.
const SPARE: u64 = 1 << 30;

/// Folders in use by this process, with their locks.
static HELD: Mutex<BTreeMap<PathBuf, OwnedFd>> = Mutex::new(BTreeMap::new());

fn held() -> MutexGuard<'static, BTreeMap<PathBuf, OwnedFd>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn root(base: &Path) -> PathBuf {
    base.join(format!("beampilot-{}", rustix::process::geteuid().as_raw()))
}

/// The folder of a job, made where there is none, and locked.
///
/// # Errors
/// Why it cannot be used.
pub fn folder(base: &Path, key: &str) -> io::Result<PathBuf> {
    let root = root(base);
    let path = root.join(key);
    let mut held = held();
    if held.contains_key(&path) && path.is_dir() {
        return Ok(path);
    }
    held.remove(&path);
    make(&root)?;
    let meta = std::fs::symlink_metadata(&root)?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
        let why = format!("{} is not ours, or open to others: remove it, or name another folder", root.display());
        return Err(io::Error::other(why));
    }
    let lock = lock(&path)?;
    held.insert(path.clone(), lock);
    drop(held);
    sweep(&root, UNUSED);
    Ok(path)
}

fn make(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

fn opened(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// A shared lock on a folder that is there. Whoever holds it alone is removing it: then it is made anew.
fn lock(path: &Path) -> io::Result<OwnedFd> {
    for _ in 0..10 {
        make(path)?;
        let fd = match opened(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        flock(&fd, FlockOperation::LockShared)?;
        let (ours, there) = (rustix::fs::fstat(&fd)?, std::fs::symlink_metadata(path));
        if there.is_ok_and(|t| (t.dev(), t.ino()) == (ours.st_dev, ours.st_ino)) {
            return Ok(fd);
        }
    }
    Err(io::Error::other(format!("{} is removed again and again", path.display())))
}

/// Has the disk room for so many bytes more?
#[must_use]
pub fn has_room(folder: &Path, bytes: u64) -> bool {
    rustix::fs::statvfs(folder).is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) >= bytes.saturating_add(SPARE))
}

/// This process needs the folder of a job no more: the last one removes it.
pub fn release(base: &Path, key: &str) {
    let path = root(base).join(key);
    if held().remove(&path).is_some() {
        remove_unused(&path);
    }
}

/// Removes a folder that no process has locked.
fn remove_unused(path: &Path) {
    let Ok(fd) = opened(path) else { return };
    if flock(&fd, FlockOperation::NonBlockingLockExclusive).is_err() {
        return;
    }
    if let Err(e) = std::fs::remove_dir_all(path) {
        tracing::warn!(path = %path.display(), error = %e, "node scratch is left behind");
    }
}

/// Removes what dead pilots left.
fn sweep(root: &Path, unused: Duration) {
    let Ok(entries) = std::fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let age = entry.metadata().ok().and_then(|m| m.modified().ok()).and_then(|t| t.elapsed().ok());
        if age.is_some_and(|age| age >= unused) {
            remove_unused(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_last_user_removes_it_and_sweeps_spare_what_is_used() {
        let base = tempfile::tempdir().unwrap();
        let path = folder(base.path(), "k").unwrap();
        assert_eq!(path, folder(base.path(), "k").unwrap());
        std::fs::write(path.join("rows.raw"), b"rows").unwrap();
        // Another executor of the node.
        let other = lock(&path).unwrap();
        sweep(&root(base.path()), Duration::ZERO);
        release(base.path(), "k");
        assert!(path.join("rows.raw").exists());
        drop(other);
        sweep(&root(base.path()), Duration::from_secs(3600));
        assert!(path.exists(), "not yet old enough to be a dead pilot's");
        sweep(&root(base.path()), Duration::ZERO);
        assert!(!path.exists());
        // Used again after its end.
        let path = folder(base.path(), "k").unwrap();
        std::fs::write(path.join("rows.raw"), b"rows").unwrap();
        release(base.path(), "k");
        assert!(!path.exists());
        // Removed under its user: made again.
        let path = folder(base.path(), "k").unwrap();
        std::fs::remove_dir(&path).unwrap();
        assert!(folder(base.path(), "k").unwrap().is_dir());
        release(base.path(), "k");
    }

    #[test]
    fn folders_of_others_and_links_are_not_used() {
        let base = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let root = root(base.path());
        std::os::unix::fs::symlink(elsewhere.path(), &root).unwrap();
        assert!(folder(base.path(), "k").is_err());
        std::fs::remove_file(&root).unwrap();
        std::fs::create_dir(&root).unwrap();
        std::fs::set_permissions(&root, Permissions::from_mode(0o777)).unwrap();
        assert!(folder(base.path(), "k").unwrap_err().to_string().contains("open to others"));
        std::fs::set_permissions(&root, Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), root.join("k")).unwrap();
        assert!(folder(base.path(), "k").is_err());
        sweep(&root, Duration::ZERO);
        assert!(elsewhere.path().exists());
        assert!(folder(&base.path().join("missing"), "k").is_err());
    }
}
