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
        let found = fs.read(&format, 64).map_err(io_at(&format))?;
        let found = String::from_utf8_lossy(&found).trim().to_owned();
        if found.parse::<u32>().map_or(true, |n| n > FORMAT) {
            return Err(LayoutError::Newer { path: format, found });
        }
        for folder in Self::FOLDERS {
            let path = state.join(folder);
            fs.make_dirs(&path).map_err(io_at(&path))?;
        }
        Ok(Self { state: state.to_owned() })
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
        for bad in ["2", "", "x"] {
            std::fs::write(dir.path().join("FORMAT"), bad).unwrap();
            let error = Layout::open(&RealFs, dir.path()).unwrap_err().to_string();
            assert!(error.contains("format") && error.contains("newer"), "{error}");
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
