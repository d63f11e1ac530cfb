//! The filesystem as arrivals see it: list, stat, resolve, and read small companions. Nothing else.
//!
//! Contract: no scan file is ever opened. A directory is opened without following a link in its last
//! component; a stat does not follow links. Times come from the filesystem's own clock.

use super::scan::FileStamp;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A pipe, socket or device: never opened.
    Special,
    /// The listing did not say; a stat will.
    Unknown,
}

/// What a stat says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Nanoseconds since the epoch.
    pub ctime_ns: i64,
    /// Inode number.
    pub inode: u64,
}

impl Meta {
    /// The stamp of the file at `path`.
    pub fn stamp(&self, path: impl Into<PathBuf>) -> FileStamp {
        let Self { size, mtime_ns, ctime_ns, inode, .. } = *self;
        FileStamp { path: path.into(), size, mtime_ns, ctime_ns, inode }
    }
}

/// Where listings come from: the real filesystem, or a fake one in tests.
pub trait Listing {
    /// Calls `each` with name, kind and inode of everything in a folder, `.` and `..` left out.
    ///
    /// # Errors
    /// What the filesystem says; some entries may have been delivered before.
    fn list(&mut self, folder: &Path, each: &mut dyn FnMut(&[u8], Kind, u64)) -> io::Result<()>;

    /// Metadata, links not followed.
    ///
    /// # Errors
    /// What the filesystem says.
    fn stat(&mut self, path: &Path) -> io::Result<Meta>;

    /// The path with every link resolved.
    ///
    /// # Errors
    /// What the filesystem says.
    fn resolve(&mut self, path: &Path) -> io::Result<PathBuf>;

    /// Content of a small regular file; an error of kind `FileTooLarge` beyond `limit` bytes.
    ///
    /// # Errors
    /// What the filesystem says.
    fn read(&mut self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
}

/// The real filesystem.
#[derive(Debug, Default)]
pub struct Disk {
    /// Large enough that a folder of 100 000 names takes a few dozen system calls.
    buffer: Vec<u8>,
}

const BUFFER: usize = 256 * 1024;

impl Listing for Disk {
    fn list(&mut self, folder: &Path, each: &mut dyn FnMut(&[u8], Kind, u64)) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::openat(CWD, folder, flags, Mode::empty())?;
        self.buffer.reserve(BUFFER);
        let spare: &mut [MaybeUninit<u8>] = self.buffer.spare_capacity_mut();
        let mut entries = RawDir::new(fd, spare);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                each(name, kind(entry.file_type()), entry.ino());
            }
        }
        Ok(())
    }

    fn stat(&mut self, path: &Path) -> io::Result<Meta> {
        let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
        let ns = |s: i64, ns: u64| s.saturating_mul(1_000_000_000).saturating_add(i64::try_from(ns).unwrap_or(0));
        #[allow(clippy::unnecessary_cast, reason = "field widths differ between architectures")]
        Ok(Meta {
            kind: kind(FileType::from_raw_mode(stat.st_mode)),
            size: stat.st_size.max(0) as u64,
            mtime_ns: ns(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            ctime_ns: ns(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
            inode: stat.st_ino,
        })
    }

    fn resolve(&mut self, path: &Path) -> io::Result<PathBuf> {
        path.canonicalize()
    }

    fn read(&mut self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        // A pipe under the manifest's name must neither block nor be read.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = std::fs::File::from(rustix::fs::openat(CWD, path, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(content)
    }
}

fn kind(file_type: FileType) -> Kind {
    match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Folder,
        FileType::Symlink => Kind::Link,
        FileType::Unknown => Kind::Unknown,
        _ => Kind::Special,
    }
}
