//! Manifests: a later file with names, sizes and hashes. Parsed by arrivals, verified by an executor.
//!
//! Contract
//! - [`parse`] takes untrusted text of at most [`LIMIT`] bytes. Names are relative to the manifest's own
//!   folder, plain, and distinct; anything else refuses the whole manifest.
//! - [`verify`] runs in an executor. A file that is missing, short, long, or whose hash differs is "not
//!   yet": transfers with checksums rewrite a finished file from its start, so that a wrong hash may be one
//!   in the making. The stream's timeout turns it into quarantine. A link that leaves the root and a name
//!   that is not a regular file are the input's fault at once.
//! - Memory is one buffer a thread, whatever the sizes.

use crate::technique::Fault;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256, Sha512};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};

/// Largest manifest, bytes: names and hashes of some 100 000 files.
pub const LIMIT: u64 = 16 * 1024 * 1024;

const BUFFER: usize = 1 << 20;

/// How a file was hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

/// One file of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// As parsed: relative to the manifest's folder. As arrivals hand it on: relative to the watch root.
    pub path: String,
    /// Size, when the manifest has one (`sha256sum` files have none).
    pub bytes: Option<u64>,
    /// Hash, when the manifest has one: algorithm and lower-case hexadecimal digits.
    pub hash: Option<(Algorithm, String)>,
}

/// Syntax of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestKind {
    /// A list, or an object with a list under `files`, of objects with a name (`path`, `name`, `filename`),
    /// a size (`bytes`, `size`, `length`) and a hash (`sha256`, `sha512`).
    Json,
    /// Lines of `sha256sum` or `sha512sum`.
    Sums,
}

impl ManifestKind {
    /// By the file name: `.json` is JSON, everything else is sums.
    pub fn of(name: &str) -> Self {
        if name.ends_with(".json") { Self::Json } else { Self::Sums }
    }
}

/// Why a manifest cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not the syntax it should have; it may still be on its way.
    #[error("the manifest is not readable: {0}")]
    Syntax(String),
    /// A name that could leave the folder.
    #[error("the manifest names \"{0}\", which is not a plain relative path")]
    Path(String),
    /// The same name twice.
    #[error("the manifest names \"{0}\" twice")]
    Twice(String),
    /// No name at all.
    #[error("the manifest names no file")]
    Empty,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    List(Vec<Item>),
    Object { files: Vec<Item> },
}

#[derive(Deserialize)]
struct Item {
    #[serde(alias = "name", alias = "filename")]
    path: String,
    #[serde(alias = "size", alias = "length")]
    bytes: Option<u64>,
    sha256: Option<String>,
    sha512: Option<String>,
}

/// Reads a manifest.
///
/// # Errors
/// [`ManifestError`]; a manifest is taken whole or not at all.
pub fn parse(text: &[u8], kind: ManifestKind) -> Result<Vec<ManifestEntry>, ManifestError> {
    let entries = match kind {
        ManifestKind::Json => json(text)?,
        ManifestKind::Sums => sums(text)?,
    };
    let mut seen = BTreeSet::new();
    for entry in &entries {
        let shown = || super::names::display(entry.path.as_bytes());
        let plain = Path::new(&entry.path).components().all(|c| matches!(c, Component::Normal(_)));
        if entry.path.is_empty() || !plain || super::names::refusal(entry.path.as_bytes()).is_some() {
            return Err(ManifestError::Path(shown()));
        }
        if !seen.insert(entry.path.as_str()) {
            return Err(ManifestError::Twice(shown()));
        }
    }
    if entries.is_empty() { Err(ManifestError::Empty) } else { Ok(entries) }
}

fn json(text: &[u8]) -> Result<Vec<ManifestEntry>, ManifestError> {
    let document: Document = serde_json::from_slice(text).map_err(|e| ManifestError::Syntax(e.to_string()))?;
    let (Document::List(items) | Document::Object { files: items }) = document;
    items
        .into_iter()
        .map(|item| {
            let hash = match (item.sha256, item.sha512) {
                (Some(hash), _) => Some((Algorithm::Sha256, digits(&hash, 64)?)),
                (None, Some(hash)) => Some((Algorithm::Sha512, digits(&hash, 128)?)),
                (None, None) => None,
            };
            Ok(ManifestEntry { path: plain(item.path), bytes: item.bytes, hash })
        })
        .collect()
}

fn sums(text: &[u8]) -> Result<Vec<ManifestEntry>, ManifestError> {
    let text = std::str::from_utf8(text).map_err(|_| ManifestError::Syntax("not UTF-8".into()))?;
    let mut entries = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        // `hash  name` (text) or `hash *name` (binary); an escaped name begins with a backslash and is refused.
        let (hash, name) = line.split_once(' ').ok_or_else(|| syntax(line))?;
        let name = name.strip_prefix([' ', '*']).ok_or_else(|| syntax(line))?;
        let hash = match hash.len() {
            64 => (Algorithm::Sha256, digits(hash, 64)?),
            128 => (Algorithm::Sha512, digits(hash, 128)?),
            _ => return Err(syntax(line)),
        };
        entries.push(ManifestEntry { path: plain(name.to_owned()), bytes: None, hash: Some(hash) });
    }
    Ok(entries)
}

/// `./name` is how `find | xargs sha256sum` writes it.
fn plain(name: String) -> String {
    name.strip_prefix("./").map_or(name.clone(), str::to_owned)
}

fn syntax(line: &str) -> ManifestError {
    ManifestError::Syntax(format!("\"{}\"", super::names::display(line.as_bytes())))
}

fn digits(hash: &str, length: usize) -> Result<String, ManifestError> {
    if hash.len() == length && hash.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(hash.to_ascii_lowercase())
    } else {
        Err(syntax(hash))
    }
}

/// Compares files with their entries, in parallel over files in the current rayon pool.
///
/// # Errors
/// See the contract above; of several faults the first in the order of the entries.
pub fn verify(root: &Path, entries: &[ManifestEntry]) -> Result<(), Fault> {
    let root = root.canonicalize().map_err(|e| Fault::reading(root, &e))?;
    let faults: Vec<Fault> = entries.par_iter().filter_map(|entry| verify_one(&root, entry).err()).collect();
    // A fault of the input is final; "not yet" and storage trouble are not.
    let last = faults.iter().position(|f| matches!(f, Fault::Input(_))).unwrap_or(0);
    faults.into_iter().nth(last).map_or(Ok(()), Err)
}

fn verify_one(root: &Path, entry: &ManifestEntry) -> Result<(), Fault> {
    let path = root.join(&entry.path);
    let missing = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Fault::NotYet(format!("{} is in the manifest but not there", entry.path))
        }
        _ => Fault::reading(&path, &e),
    };
    let real = path.canonicalize().map_err(missing)?;
    if !real.starts_with(root) {
        let text = "is a link that leaves the watched folder; put the file itself there";
        return Err(Fault::Input(format!("{} {text}", entry.path)));
    }
    // O_NONBLOCK: opening a pipe for reading must not wait for its writer.
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let mut file = File::options().read(true).custom_flags(nonblock).open(&real).map_err(missing)?;
    let before = file.metadata().map_err(missing)?;
    if !before.is_file() {
        return Err(Fault::Input(format!("{} is not a regular file; put the file itself there", entry.path)));
    }
    if let Some(bytes) = entry.bytes.filter(|&bytes| bytes != before.len()) {
        return Err(Fault::NotYet(format!("{} has {} of {bytes} bytes", entry.path, before.len())));
    }
    let Some((algorithm, wanted)) = &entry.hash else { return Ok(()) };
    let found = match algorithm {
        Algorithm::Sha256 => digest::<Sha256>(&mut file),
        Algorithm::Sha512 => digest::<Sha512>(&mut file),
    };
    let found = found.map_err(|e| Fault::reading(&path, &e))?;
    if found != *wanted {
        let text = "does not have the hash of its manifest; it may be on its way again";
        return Err(Fault::NotYet(format!("{} {text}", entry.path)));
    }
    Ok(())
}

fn digest<D: Digest>(file: &mut File) -> io::Result<String> {
    let mut hash = D::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect()),
            Ok(n) => hash.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn both_kinds_are_read() {
        let json = format!(r#"{{"files":[{{"name":"a/x.h5","size":3,"sha256":"{}"}}]}}"#, ABC.to_uppercase());
        let want = |bytes| ManifestEntry { path: "a/x.h5".into(), bytes, hash: Some((Algorithm::Sha256, ABC.into())) };
        assert_eq!(parse(json.as_bytes(), ManifestKind::Json).unwrap(), [want(Some(3))]);
        let sums = format!("# made by sha256sum\n{ABC} *./a/x.h5\n\n");
        assert_eq!(parse(sums.as_bytes(), ManifestKind::Sums).unwrap(), [want(None)]);
    }

    #[test]
    fn hostile_manifests_are_refused_whole() {
        for path in ["../x", "/etc/passwd", "a/../../x", "", "a\nb"] {
            let json = serde_json::json!([{"path": "ok"}, {"path": path}]).to_string();
            assert!(matches!(parse(json.as_bytes(), ManifestKind::Json), Err(ManifestError::Path(_))), "{path}");
        }
        assert_eq!(
            parse(br#"[{"path":"x"},{"path":"./x"}]"#, ManifestKind::Json),
            Err(ManifestError::Twice("x".into()))
        );
        assert_eq!(parse(b"[]", ManifestKind::Json), Err(ManifestError::Empty));
        for torn in ["", "[{\"path\":", "abc  x"] {
            assert!(
                parse(torn.as_bytes(), ManifestKind::Json).is_err() && parse(b"abc  x", ManifestKind::Sums).is_err()
            );
        }
    }

    #[test]
    fn files_are_compared_with_their_entries() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("good"), "abc").unwrap();
        std::fs::write(at("short"), "ab").unwrap();
        std::fs::write(at("wrong"), "abd").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", at("away")).unwrap();
        std::os::unix::fs::symlink("good", at("near")).unwrap();
        std::fs::create_dir(at("dir")).unwrap();
        let entry = |path: &str| ManifestEntry {
            path: path.into(),
            bytes: Some(3),
            hash: Some((Algorithm::Sha256, ABC.into())),
        };
        let check = |names: &[&str]| verify(dir.path(), &names.iter().map(|n| entry(n)).collect::<Vec<_>>());
        assert_eq!(check(&["good", "near"]), Ok(()));
        assert_eq!(check(&["short"]), Err(Fault::NotYet("short has 2 of 3 bytes".into())));
        assert!(matches!(check(&["good", "gone"]), Err(Fault::NotYet(m)) if m.starts_with("gone ")));
        assert!(matches!(check(&["wrong"]), Err(Fault::NotYet(m)) if m.contains("hash")));
        assert!(matches!(check(&["gone", "away"]), Err(Fault::Input(m)) if m.contains("leaves")));
        assert!(matches!(check(&["dir"]), Err(Fault::Input(_))));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_names_stay_below(text in "[a-f0-9]{0,64}[ *./a-z\\\\\n]{0,40}") {
            for kind in [ManifestKind::Json, ManifestKind::Sums] {
                for entry in parse(text.as_bytes(), kind).unwrap_or_default() {
                    prop_assert!(!entry.path.contains("..") || !entry.path.split('/').any(|c| c == ".."));
                }
            }
        }
    }
}
