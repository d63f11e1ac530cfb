//! What a scan *is*: names, files as they were seen, and the identity that follows from them.
//!
//! Contract
//! - A scan is identified by stream, stream-relative name and **input version**: size, mtime, ctime and
//!   inode of every file it is made of, companions included. Any rewrite, even one that puts the old
//!   mtime back, changes the ctime and so the version.
//! - Files that the scan's own files link to are known only when the scan is planned. From then on they are compared as
//!   the others are; into the version they come, in the role [`LINKED`], when they change after an earlier result.
//! - Names are UTF-8, relative, without `..`, control characters or empty components: whatever does not
//!   fit was quarantined by arrivals before a [`Scan`] was made of it.
//! - Paths in a stamp are relative to [`Scan::root`] for members, absolute for roles.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One file as `stat` showed it. Two stamps are equal exactly when the file was not touched in between.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileStamp {
    /// Where: relative to the scan's root (members) or absolute (roles).
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Modification time, nanoseconds since the epoch. Transfer tools may move it backwards.
    pub mtime_ns: i64,
    /// Change time, nanoseconds since the epoch. Nobody but the kernel sets it.
    pub ctime_ns: i64,
    /// Inode number.
    pub inode: u64,
}

impl FileStamp {
    /// A stamp from what `lstat` or `stat` returned.
    pub fn from_metadata(path: impl Into<PathBuf>, meta: &std::fs::Metadata) -> Self {
        Self {
            path: path.into(),
            size: meta.len(),
            mtime_ns: meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()),
            ctime_ns: meta.ctime().saturating_mul(1_000_000_000).saturating_add(meta.ctime_nsec()),
            inode: meta.ino(),
        }
    }
}

/// The version of a scan's input: a hash over its stamps. Displayed as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InputVersion(pub u64);

impl fmt::Display for InputVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A scan that arrived: its files, its companions, and when its last byte came.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scan {
    /// The stream it belongs to.
    pub stream: String,
    /// The name people use: the path of the file or folder, or the group's key, relative to the watch root.
    pub name: String,
    /// The watch root, absolute and canonical.
    pub root: PathBuf,
    /// Files of the scan itself, sorted by path; paths relative to `root`.
    pub members: Vec<FileStamp>,
    /// Companions by role (dark, white, angles, …); paths absolute.
    pub roles: BTreeMap<String, Vec<FileStamp>>,
    /// When the last byte arrived: the latest mtime or ctime among the members, whichever is the later
    /// that is not in the future; milliseconds since the epoch. Lag counts from here.
    pub last_byte_ms: u64,
    /// When arrivals found it complete, milliseconds since the epoch.
    pub complete_ms: u64,
    /// Files reached by links inside the scan's files, as planning found them; paths absolute. Empty before.
    pub linked: Vec<FileStamp>,
    /// How long its files must stand still before it counts as complete, where nothing but that says so; else 0.
    pub quiet_ms: u64,
}

/// The role of linked files that changed after an earlier version was published. No stream can name a role so.
pub const LINKED: &str = "(linked)";

impl Scan {
    /// Hash over every stamp, members and roles.
    pub fn version(&self) -> InputVersion {
        let mut hash = Sha256::new();
        let mut stamp = |role: &str, s: &FileStamp| {
            let path = s.path.as_os_str().as_encoded_bytes();
            for field in [role.as_bytes(), path] {
                hash.update((field.len() as u64).to_le_bytes());
                hash.update(field);
            }
            hash.update(s.size.to_le_bytes());
            hash.update(s.mtime_ns.to_le_bytes());
            hash.update(s.ctime_ns.to_le_bytes());
            hash.update(s.inode.to_le_bytes());
        };
        self.members.iter().for_each(|s| stamp("", s));
        self.roles.iter().for_each(|(role, files)| files.iter().for_each(|s| stamp(role, s)));
        let digest = hash.finalize();
        let mut first = [0u8; 8];
        first.copy_from_slice(&digest[..8]);
        InputVersion(u64::from_be_bytes(first))
    }

    /// The version without companions: it stays the same when another dark is found for the same scan.
    pub fn own_version(&self) -> InputVersion {
        let own = Self { roles: BTreeMap::new(), members: self.members.clone(), ..Self::default() };
        own.version()
    }

    /// Absolute paths of the scan's own files, in order.
    pub fn member_paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.members.iter().map(|s| self.root.join(&s.path))
    }

    /// Bytes of the scan's own files.
    pub fn bytes(&self) -> u64 {
        self.members.iter().map(|s| s.size).sum()
    }

    /// Compares every file with its stamp; `Ok(None)` when nothing changed, otherwise the first file that did.
    ///
    /// A file that is gone counts as changed. Other errors (a failing filesystem) are returned: they say
    /// nothing about the input.
    pub fn changed(&self) -> io::Result<Option<PathBuf>> {
        self.changed_by(&|path| Ok(FileStamp::from_metadata(path, &std::fs::metadata(path)?)))
    }

    /// [`Scan::changed`] with another way to look at a file.
    pub fn changed_by(&self, stat: &dyn Fn(&Path) -> io::Result<FileStamp>) -> io::Result<Option<PathBuf>> {
        let members = self.members.iter().map(|s| (self.root.join(&s.path), s));
        let roles = self.roles.values().flatten().map(|s| (s.path.clone(), s));
        let linked = self.linked.iter().map(|s| (s.path.clone(), s));
        for (path, stamp) in members.chain(roles).chain(linked) {
            if !still(stat, &path, stamp)? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}

fn still(stat: &dyn Fn(&Path) -> io::Result<FileStamp>, path: &Path, stamp: &FileStamp) -> io::Result<bool> {
    match stat(path) {
        Ok(now) => Ok(FileStamp { path: stamp.path.clone(), ..now } == *stamp),
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(e) => Err(e),
    }
}

/// Escapes a stream-relative name into one file name, injectively, so that it can name a claim and a bundle.
///
/// `/` becomes `__`; letters, digits, `.`, `+`, `-`, `=`, `,`, `@` and single `_` stay; a leading `.`, every
/// `~` (bundles use it for versions), an underscore beside `_` or `/`, and anything else become `%XX`.
/// Names longer than 150 bytes keep their beginning and end in a hash, so that the file system takes them.
pub fn escape(name: &str) -> String {
    let bytes = name.as_bytes();
    let mut out = String::with_capacity(bytes.len() + 8);
    for (i, &b) in bytes.iter().enumerate() {
        let beside = |j: Option<&u8>| matches!(j, Some(b'_' | b'/'));
        let before = i.checked_sub(1).and_then(|j| bytes.get(j));
        let plain = match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'+' | b'-' | b'=' | b',' | b'@' => true,
            b'.' => i > 0,
            b'_' => !beside(before) && !beside(bytes.get(i + 1)),
            _ => false,
        };
        match b {
            b'/' => out.push_str("__"),
            _ if plain => out.push(char::from(b)),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    if out.len() > 150 {
        let digest = Sha256::digest(bytes);
        let tail: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
        // The escaped text is ASCII, so any byte index is a character boundary.
        out.truncate(130);
        out.push('%');
        out.push_str(&tail);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn escaped_names_read_well() {
        for (name, want) in [
            ("scan_001.h5", "scan_001.h5"),
            ("day1/scan_001", "day1__scan_001"),
            (".hidden", "%2Ehidden"),
            ("a~2", "a%7E2"),
            ("a_/b", "a%5F__b"),
            ("a/_b", "a__%5Fb"),
            ("a__b", "a%5F%5Fb"),
            ("x y\n", "x%20y%0A"),
        ] {
            assert_eq!(escape(name), want);
        }
    }

    #[test]
    fn long_names_stay_distinct() {
        let a = escape(&format!("{}a", "x".repeat(300)));
        let b = escape(&format!("{}b", "x".repeat(300)));
        assert!(a.len() < 200 && b.len() < 200 && a != b);
    }

    proptest! {
        #[test]
        fn escape_is_injective(names in proptest::collection::vec("[a_/~.% ]{0,6}", 2..40)) {
            let mut seen: HashMap<String, String> = HashMap::new();
            for name in names {
                let escaped = escape(&name);
                prop_assert!(escaped.bytes().all(|b| b.is_ascii_graphic() && b != b'/'));
                if let Some(other) = seen.insert(escaped, name.clone()) {
                    prop_assert_eq!(other, name);
                }
            }
        }
    }
}
