//! Names under the state folder and the outputs, and the version of this layout.

use super::fs::{Fs, create_whole};
use crate::arrivals::scan::escape;
use std::io;
use std::path::{Path, PathBuf};

/// Version of the layout; `FORMAT` holds it. A newer one is refused.
pub const FORMAT: u32 = 1;

/// Why a state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Written by a newer beampilot.
    #[error(
        "{path}: this state has format {found}, this beampilot knows {FORMAT}; use the newer beampilot that wrote it, or another `state` folder"
    )]
    Newer {
        /// The FORMAT file.
        path: PathBuf,
        /// Its content.
        found: String,
    },
    /// A file of it does not hold what it should.
    #[error("{path}: damaged: {what}; {remedy}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How that is seen.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The filesystem refused.
    #[error("{path}: {source}; `state` must be a folder this account can write")]
    Io {
        /// Where.
        path: PathBuf,
        /// What.
        source: io::Error,
    },
}

/// The state folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// `<state>`.
    pub state: PathBuf,
}

impl LayoutError {
    /// The filesystem is full or failing: the same command may succeed later.
    pub fn is_storage(&self) -> bool {
        matches!(self, Self::Io { source, .. } if crate::technique::is_storage_error(source))
    }

    /// This account may not.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

impl Layout {
    /// Folders of the state.
    pub const FOLDERS: [&str; 10] =
        ["campaigns", "pilots", "claims", "quarantine", "published", "journal", "status", "drain", "requests", "logs"];

    /// Creates what is missing, and refuses a newer format. Any number of pilots may do this at once.
    pub fn open(fs: &dyn Fs, state: &Path) -> Result<Self, LayoutError> {
        let io_at = |path: &Path| {
            let path = path.to_owned();
            move |source| LayoutError::Io { path, source }
        };
        fs.make_dirs(state).map_err(io_at(state))?;
        let format = state.join("FORMAT");
        if !fs.exists(&format).map_err(io_at(&format))? {
            create_whole(fs, &format, format!("{FORMAT}\n").as_bytes()).map_err(io_at(&format))?;
        }
        check_format(format.clone(), fs.read(&format, 64))?;
        for folder in Self::FOLDERS {
            let path = state.join(folder);
            fs.make_dirs(&path).map_err(io_at(&path))?;
        }
        Ok(Self { state: state.to_owned() })
    }

    /// A state that pilots have made, for those who only look; `None` where there is none yet.
    ///
    /// # Errors
    /// It is of a newer format, damaged, or cannot be read.
    pub fn existing(fs: &dyn Fs, state: &Path) -> Result<Option<Self>, LayoutError> {
        let format = state.join("FORMAT");
        match fs.read(&format, 64) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            read => check_format(format, read).map(|()| Some(Self { state: state.to_owned() })),
        }
    }

    /// `claims/<key>.<generation>`.
    pub fn claim(&self, key: &str, generation: u32) -> PathBuf {
        self.state.join("claims").join(format!("{key}.{generation}"))
    }
    /// `claims/<key>.<generation>.released`.
    pub fn released(&self, key: &str, generation: u32) -> PathBuf {
        self.state.join("claims").join(format!("{key}.{generation}.released"))
    }
    /// `quarantine/<key>.json`.
    pub fn quarantine(&self, key: &str) -> PathBuf {
        self.state.join("quarantine").join(format!("{key}.json"))
    }
    /// `published/<key>.json`.
    pub fn published(&self, key: &str) -> PathBuf {
        self.state.join("published").join(format!("{key}.json"))
    }
    /// `pilots/<pilot>.json`.
    pub fn pilot(&self, pilot: &str) -> PathBuf {
        self.state.join("pilots").join(format!("{pilot}.json"))
    }
    /// `status/<pilot>.json`.
    pub fn status(&self, pilot: &str) -> PathBuf {
        self.state.join("status").join(format!("{pilot}.json"))
    }
    /// `journal/<pilot>.jsonl`.
    pub fn journal(&self, pilot: &str) -> PathBuf {
        self.state.join("journal").join(format!("{pilot}.jsonl"))
    }
    /// `logs/<pilot>.rank<rank>.log`.
    pub fn log(&self, pilot: &str, rank: u32) -> PathBuf {
        self.state.join("logs").join(format!("{pilot}.rank{rank:04}.log"))
    }
    /// `drain/<pilot or all>`.
    pub fn drain(&self, whom: &str) -> PathBuf {
        self.state.join("drain").join(whom)
    }
}

/// Judges what was read of the FORMAT file.
fn check_format(path: PathBuf, read: io::Result<Vec<u8>>) -> Result<(), LayoutError> {
    let found = match read {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(e) if e.kind() == io::ErrorKind::FileTooLarge => String::new(),
        Err(source) => return Err(LayoutError::Io { path, source }),
    };
    match found.parse::<u32>() {
        Ok(1..=FORMAT) => Ok(()),
        Ok(n) if n > FORMAT => Err(LayoutError::Newer { path, found }),
        _ => Err(LayoutError::Damaged {
            path,
            what: "it holds no format's number",
            remedy: "if only this beampilot has written here, write 1 into it; else name another `state` folder",
        }),
    }
}

/// The folder of a stream's bundles: `<output>/<stream>`.
pub fn stream_output(output: &Path, stream: &str) -> PathBuf {
    output.join(stream)
}

/// The `version`-th bundle of a scan: `<scan>`, `<scan>~2`, …. The name is the escaped scan name without its
/// file extension, as [`bundle_stem`] decides.
pub fn bundle(stream_output: &Path, stem: &str, version: u32) -> PathBuf {
    match version {
        0 | 1 => stream_output.join(stem),
        n => stream_output.join(format!("{stem}~{n}")),
    }
}

/// A bundle's name for a scan name: escaped; a `.h5`, `.hdf5`, `.nxs` or `.hdf` ending goes only when `pattern`
/// fixes it, so that two scans never share a name.
pub fn bundle_stem(name: &str, pattern: &str) -> String {
    let ending = [".h5", ".hdf5", ".nxs", ".hdf"].into_iter().find(|e| name.ends_with(e) && pattern.ends_with(e));
    let stem = ending.and_then(|e| name.strip_suffix(e)).filter(|s| !s.is_empty() && !s.ends_with('/'));
    escape(stem.unwrap_or(name))
}

/// `.staging-<key>.<generation>`.
pub fn staging(stream_output: &Path, key: &str, generation: u32) -> PathBuf {
    stream_output.join(format!(".staging-{key}.{generation}"))
}

/// `.fenced-<key>.<generation>`: where staging goes when it must not be published.
pub fn fenced(stream_output: &Path, key: &str, generation: u32) -> PathBuf {
    stream_output.join(format!(".fenced-{key}.{generation}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RealFs;

    #[test]
    fn a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Layout::open(&RealFs, dir.path()).unwrap();
        Layout::open(&RealFs, dir.path()).unwrap();
        assert!(Layout::existing(&RealFs, dir.path()).unwrap().is_some());
        assert!(Layout::existing(&RealFs, &dir.path().join("none")).unwrap().is_none());
        let long = "1".repeat(100);
        for (bad, want) in [("2", "newer"), ("", "damaged"), ("x", "damaged"), ("0", "damaged"), (&long, "damaged")] {
            std::fs::write(dir.path().join("FORMAT"), bad).unwrap();
            for error in [Layout::open(&RealFs, dir.path()).err(), Layout::existing(&RealFs, dir.path()).err()] {
                let error = error.unwrap().to_string();
                assert!(error.contains("FORMAT: ") && error.contains(want), "{bad}: {error}");
            }
        }
    }

    #[test]
    fn bundle_names() {
        for (name, pattern, want) in [
            ("a.h5", "**/*.h5", "a"),
            ("day1/a.h5", "**/*.h5", "day1__a"),
            ("a.h5", "*", "a.h5"),
            ("a.nxs", "**/*.{h5,nxs}", "a.nxs"),
            ("d/.h5", "**/*.h5", "d__.h5"),
            ("a~2.h5", "*.h5", "a%7E2"),
        ] {
            assert_eq!(bundle_stem(name, pattern), want, "{name} under {pattern}");
        }
    }
}
