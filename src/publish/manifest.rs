//! `manifest.json`: what a bundle is, from which input, by which software, with which parameters.
//!
//! Readers of version 1 may rely on every field of [`Manifest`]; fields are only added.

use crate::store::{Fs, RealFs};
use crate::technique::plan::{OutputFile, Timings};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Name in the bundle.
pub const MANIFEST: &str = "manifest.json";
/// Name of the checksum file, in the form `sha256sum -c` reads.
pub const CHECKSUMS: &str = "SHA256SUMS";
/// Version of this schema.
pub const VERSION: u32 = 1;

/// One input file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Relative to the watch root for the scan's own files, absolute for companions and linked files.
    pub path: String,
    /// Bytes.
    pub bytes: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i64,
}

/// The scan a bundle was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Stream.
    pub stream: String,
    /// Scan name.
    pub scan: String,
    /// Version: 16 hexadecimal digits over size, mtime, ctime and inode of every file.
    pub version: String,
    /// Watch root.
    pub root: String,
    /// The scan's own files.
    pub files: Vec<InputFile>,
    /// Companions by role.
    pub roles: BTreeMap<String, Vec<InputFile>>,
    /// Files reached by links inside the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub linked: Vec<InputFile>,
    /// When its last byte arrived, milliseconds since the epoch.
    pub last_byte_ms: u64,
    /// When it was found complete, milliseconds since the epoch.
    pub complete_ms: u64,
}

/// Software that made a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Software {
    /// `beampilot`.
    pub name: String,
    /// Version.
    pub version: String,
    /// Commit.
    pub commit: String,
}

/// Where a task ran and where its time went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRun {
    /// Label.
    pub task: String,
    /// Stage name.
    pub stage: u32,
    /// Host.
    pub host: String,
    /// MPI rank, or executor number without MPI.
    pub rank: u32,
    /// Seconds.
    pub timings: Timings,
}

/// The manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    pub manifest_version: u32,
    /// Job key: scan, input version and recipe.
    pub key: String,
    /// Campaign.
    pub campaign: String,
    /// Technique.
    pub technique: String,
    /// From what.
    pub input: Input,
    /// The recipe with every default written out.
    pub recipe: serde_json::Value,
    /// What was used in the end, values found automatically included (`rotation_center_px`).
    pub parameters: serde_json::Value,
    /// What the scan says about its acquisition.
    pub acquisition: serde_json::Value,
    /// What the result is: dataset, shape, axes, unit.
    pub output: serde_json::Value,
    /// By what.
    pub software: Software,
    /// Who assembled it.
    pub host: String,
    /// See `host`.
    pub rank: u32,
    /// Every task.
    pub tasks: Vec<TaskRun>,
    /// Seconds per stage, summed over its tasks.
    pub stage_seconds: BTreeMap<String, Timings>,
    /// When the bundle was sealed, RFC 3339.
    pub sealed: String,
    /// Every other file of the bundle but the checksum file.
    pub files: Vec<OutputFile>,
}

/// Largest manifest that is read.
pub(super) const MOST: u64 = 256 << 20;

/// Reads a bundle's manifest.
pub fn read(bundle: &Path) -> io::Result<Manifest> {
    let bytes = RealFs.read(&bundle.join(MANIFEST), MOST)?;
    serde_json::from_slice(&bytes).map_err(io::Error::other)
}
