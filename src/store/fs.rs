//! The few filesystem calls that claims, publishing, sweeping, records and the journal are made of.
//!
//! Contract: each call is one operation that may fail, hang or end with its effect unknown; callers re-read
//! after an error instead of trusting it. [`RealFs`] is the filesystem; tests wrap it to fail, and the simulator
//! (`src/sim`) stops, pauses or kills between any two calls.

use super::temporary;
use crate::arrivals::scan::FileStamp;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// See the module.
pub trait Fs: Send + Sync {
    /// Creates a file that must not exist, writes it and syncs it.
    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// link(2): fails with `AlreadyExists` when `to` exists.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// rename(2).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// unlink(2).
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder and all below; symbolic links are removed, not followed.
    fn remove_tree(&self, path: &Path) -> io::Result<()>;
    /// Reads a regular file of at most `limit` bytes (`FileTooLarge` beyond). Anything else that lies there, symbolic
    /// links included, is `InvalidData`, and never waited for.
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
    /// Names in a folder, sorted; names that are not UTF-8 are left out.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Creates one folder with these permission bits.
    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// Creates a folder and its parents.
    fn make_dirs(&self, path: &Path) -> io::Result<()>;
    /// Gives `path` the permission bits of `like`.
    fn copy_mode(&self, like: &Path, path: &Path) -> io::Result<()>;
    /// True when something is there; symbolic links are not followed.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// True for an ordinary file; symbolic links are not followed.
    fn is_plain(&self, path: &Path) -> io::Result<bool> {
        Ok(std::fs::symlink_metadata(path)?.is_file())
    }
    /// Makes the folder's entries durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Bytes free to us on the filesystem of `path`, and its size.
    fn free_bytes(&self, path: &Path) -> io::Result<(u64, u64)>;
    /// A file as it is now, symbolic links followed; the stamp carries `path`.
    fn stat(&self, path: &Path) -> io::Result<FileStamp>;
    /// Opens a file for its only writer, made when it is not there; the journal's.
    fn open_log(&self, path: &Path) -> io::Result<Box<dyn Log>>;
    /// A word that no other process or thread puts into a name; it says which process made it ([`temporary::tag`]).
    fn unique(&self) -> String;
}

/// A file held open by its only writer.
pub trait Log: Send {
    /// Writes `bytes` at `offset`, ends the file behind them and syncs it. After an error nobody knows what reached
    /// the disk from `offset` on.
    fn write_tail(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

impl Log for File {
    fn write_tail(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)?;
        // Over what a failed try may have left behind.
        self.set_len(offset + bytes.len() as u64)?;
        self.sync_data()
    }
}

/// The filesystem itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFs;

impl Fs for RealFs {
    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::hard_link(from, to)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(path)
    }
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        read_regular(path, limit, Links::Refused)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        std::fs::DirBuilder::new().mode(mode).create(path)
    }
    fn make_dirs(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }
    fn copy_mode(&self, like: &Path, path: &Path) -> io::Result<()> {
        let mode = std::fs::metadata(like)?.mode() & 0o7777;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        match std::fs::symlink_metadata(path) {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(e) => Err(e),
        }
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
    fn free_bytes(&self, path: &Path) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(path)?;
        Ok((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
    }
    fn stat(&self, path: &Path) -> io::Result<FileStamp> {
        Ok(FileStamp::from_metadata(path, &std::fs::metadata(path)?))
    }
    fn open_log(&self, path: &Path) -> io::Result<Box<dyn Log>> {
        Ok(Box::new(open_regular(OpenOptions::new().create(true).write(true).truncate(false), path, Links::Refused)?))
    }
    fn unique(&self) -> String {
        let own = OWN.get_or_init(|| super::claims::Identity::own("").process());
        temporary::tag(own, ASIDE.fetch_add(1, Ordering::Relaxed))
    }
}

/// What a symbolic link in the place of a file means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// The file is people's, and they may keep it elsewhere.
    Followed,
    /// The file is ours: a link is somebody's trick or mistake.
    Refused,
}

/// Opens a regular file. Whatever else lies there is refused with `InvalidData`, and a pipe is not waited for.
///
/// # Errors
/// What the filesystem says.
pub fn open_regular(options: &mut OpenOptions, path: &Path, links: Links) -> io::Result<File> {
    use rustix::fs::OFlags;
    let flags = if links == Links::Refused { OFlags::NONBLOCK | OFlags::NOFOLLOW } else { OFlags::NONBLOCK };
    options.custom_flags(i32::try_from(flags.bits()).map_err(io::Error::other)?);
    let file = match options.open(path) {
        // ELOOP: a link; ENXIO: a pipe without a reader, a socket; EISDIR: a folder opened for writing.
        Err(e) if e.raw_os_error().is_some_and(is_no_file) => return Err(irregular()),
        file => file?,
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(irregular()) }
}

fn is_no_file(errno: i32) -> bool {
    use rustix::io::Errno;
    [Errno::LOOP, Errno::NXIO, Errno::ISDIR].iter().any(|e| e.raw_os_error() == errno)
}

fn irregular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file")
}

/// Reads a regular file of at most `limit` bytes; see [`open_regular`].
///
/// # Errors
/// What the filesystem says; `FileTooLarge` beyond the limit.
pub fn read_regular(path: &Path, limit: u64, links: Links) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(OpenOptions::new().read(true), path, links)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {limit} bytes")));
    }
    Ok(bytes)
}

/// The error says what lies there, and not that the filesystem is in trouble: asking again gives the same answer.
pub fn is_damage(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::FileTooLarge | io::ErrorKind::IsADirectory)
}

static ASIDE: AtomicU64 = AtomicU64::new(0);
static OWN: OnceLock<super::host::Process> = OnceLock::new();

/// A name beside `path` that no other process or thread uses.
pub fn aside(fs: &dyn Fs, path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(temporary::name(&name, &fs.unique()))
}

/// Replaces a file: written aside, synced, renamed onto its name.
pub fn replace(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = aside(fs, path);
    let done = fs.write_new(&temporary, bytes).and_then(|()| fs.rename(&temporary, path));
    if done.is_err() {
        // What is left aside is swept with other temporaries; the first error is the one to tell.
        let _ = fs.remove_file(&temporary);
    }
    done
}

/// Creates a file whole or not at all: written aside, then link(2) onto the name. `Ok(false)` when the name
/// was taken.
pub fn create_whole(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let temporary = aside(fs, path);
    let linked = fs.write_new(&temporary, bytes).and_then(|()| match fs.link(&temporary, path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    });
    let _ = fs.remove_file(&temporary);
    linked
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// A pipe, links and a folder where files of ours are expected.
    fn oddities() -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        std::fs::write(at("file"), "text").unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("endless")).unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("nothing"), at("dangling")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        let all = ["pipe", "endless", "link", "dangling", "folder"].map(at).to_vec();
        (dir, all)
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let (dir, oddities) = oddities();
        let began = Instant::now();
        for path in oddities {
            let e = RealFs.read(&path, 100).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::InvalidData, "{path:?}: {e}");
            let opened = RealFs.open_log(&path).err().map(|e| e.kind());
            assert_eq!(opened, Some(io::ErrorKind::InvalidData), "{path:?}");
        }
        let path = dir.path().join("file");
        assert_eq!(RealFs.read(&path, 4).unwrap(), b"text");
        assert_eq!(RealFs.read(&path, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read_regular(&dir.path().join("link"), 4, Links::Followed).unwrap(), b"text");
        let endless = read_regular(&dir.path().join("endless"), 4, Links::Followed).unwrap_err();
        assert_eq!(endless.kind(), io::ErrorKind::InvalidData);
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
