//! `published/<key>.json` and `quarantine/<key>.json`: small, whole, and outliving what they describe.

use super::fs::{Fs, aside, is_damage, replace};
use super::layout::Layout;
use crate::arrivals::scan::{FileStamp, escape};
use crate::coordinator::event::Lag;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A published job. It stays when the bundle is deleted for quota, so that nothing is done twice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// Job key.
    pub key: String,
    /// Stream.
    pub stream: String,
    /// Scan name.
    pub scan: String,
    /// Input version.
    pub input_version: String,
    /// Input version without companions: another dark found later makes no new scan.
    pub own_version: Option<String>,
    /// The bundle's path.
    pub bundle: String,
    /// Milliseconds since the epoch.
    pub published_ms: u64,
    /// When its last byte arrived.
    pub last_byte_ms: u64,
    /// Where the time went; absent when the record was rebuilt from a bundle.
    pub lag: Option<Lag>,
    /// Seconds from the last byte to the preview.
    pub preview_s: Option<f64>,
    /// `64 slices`.
    pub items: String,
    /// Pilot that published it.
    pub pilot: String,
    /// Files its files link to, see [`watched`]; their later change makes another version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub linked: Vec<FileStamp>,
}

/// A quarantined job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Job key.
    pub key: String,
    /// Stream.
    pub stream: String,
    /// Scan name, escaped for display where it needs it.
    pub scan: String,
    /// Input version, when there was one.
    pub input_version: Option<String>,
    /// Input version without companions, likewise.
    pub own_version: Option<String>,
    /// For the scientist.
    pub reason: String,
    /// Milliseconds since the epoch.
    pub at_ms: u64,
    /// Pilot.
    pub pilot: String,
}

/// Room for linked files in a record, bytes: records are small.
const LINKED_BYTES: usize = 128 << 10;

/// The linked files that go into a record: all of them, or none when they are too many (about 500).
pub fn watched(linked: &[FileStamp]) -> Vec<FileStamp> {
    let bytes: usize = linked.iter().map(|s| s.path.as_os_str().len() + 200).sum();
    if bytes <= LINKED_BYTES { linked.to_vec() } else { Vec::new() }
}

/// Writes a published record.
pub fn put_published(fs: &dyn Fs, layout: &Layout, record: &Published) -> io::Result<()> {
    put(fs, &layout.published(&record.key), record)
}

/// Writes a quarantine record.
pub fn put_quarantined(fs: &dyn Fs, layout: &Layout, record: &Quarantined) -> io::Result<()> {
    put(fs, &layout.quarantine(&record.key), record)
}

fn put(fs: &dyn Fs, path: &Path, record: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(record).map_err(io::Error::other)?;
    match replace(fs, path, &bytes) {
        // A folder in its place, which no rename replaces; what it holds is somebody's.
        Err(e) if e.kind() == io::ErrorKind::IsADirectory => {
            let mut kept = aside(fs, path).into_os_string();
            kept.push(".damaged");
            fs.rename(path, Path::new(&kept))?;
            replace(fs, path, &bytes)
        }
        done => done,
    }
}

/// True when a readable record of this very key is there: a damaged one says nothing about its scan.
///
/// # Errors
/// The filesystem's.
pub fn is_there<T: Record>(fs: &dyn Fs, layout: &Layout, key: &str) -> io::Result<bool> {
    let path = layout.state.join(T::FOLDER).join(format!("{key}.json"));
    let why = match fs.read(&path, MOST).map(|bytes| serde_json::from_slice::<T>(&bytes)) {
        Ok(Ok(record)) if record.key() == key => return Ok(true),
        Ok(Ok(record)) => format!("it is about {}", record.key()),
        Ok(Err(e)) => e.to_string(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        // Another account's.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(true),
        Err(e) if is_damage(&e) => e.to_string(),
        Err(e) => return Err(e),
    };
    tracing::warn!(file = %path.display(), "a record cannot be read ({why}); its scan is looked at anew");
    Ok(false)
}

/// What is kept under the key of a job.
pub trait Record: serde::de::DeserializeOwned {
    /// Folder of the state.
    const FOLDER: &'static str;
    /// Its job's key.
    fn key(&self) -> &str;
}

impl Record for Published {
    const FOLDER: &'static str = "published";
    fn key(&self) -> &str {
        &self.key
    }
}

impl Record for Quarantined {
    const FOLDER: &'static str = "quarantine";
    fn key(&self) -> &str {
        &self.key
    }
}

/// Largest record that is read.
const MOST: u64 = 1 << 20;

/// Keys with a record in `folder` (`published` or `quarantine`).
pub fn keys(fs: &dyn Fs, layout: &Layout, folder: &str) -> io::Result<Vec<String>> {
    let names = fs.list(&layout.state.join(folder))?;
    let key = |name: String| Some(name.strip_suffix(".json").filter(|k| !k.starts_with('.'))?.to_owned());
    Ok(names.into_iter().filter_map(key).collect())
}

/// Keys with a record in `folder` that are about this scan, in whatever version and with whatever recipe.
///
/// # Errors
/// The folder cannot be listed.
pub fn keys_of(fs: &dyn Fs, layout: &Layout, folder: &str, stream: &str, scan: &str) -> io::Result<Vec<String>> {
    let about = |key: &String| is_about(key, stream, scan);
    Ok(keys(fs, layout, folder)?.into_iter().filter(about).collect())
}

/// The key is about this scan.
pub fn is_about(key: &str, stream: &str, scan: &str) -> bool {
    let digits = |text: &str, n: usize| text.len() == n && text.bytes().all(|b| b.is_ascii_hexdigit());
    let rest = key.strip_prefix(&format!("{}.{}-", escape(stream), escape(scan)));
    rest.and_then(|r| r.split_once('-')).is_some_and(|(version, recipe)| digits(version, 12) && digits(recipe, 8))
}

/// Reads one record.
///
/// # Errors
/// It is not there, or cannot be read.
pub fn one<T: serde::de::DeserializeOwned>(fs: &dyn Fs, layout: &Layout, folder: &str, key: &str) -> io::Result<T> {
    let path = layout.state.join(folder).join(format!("{key}.json"));
    fs.read(&path, MOST).and_then(|b| serde_json::from_slice(&b).map_err(io::Error::other))
}

/// Every readable record of a folder; a damaged one is left out with a warning.
pub fn all<T: serde::de::DeserializeOwned>(fs: &dyn Fs, layout: &Layout, folder: &str) -> io::Result<Vec<T>> {
    let mut found = Vec::new();
    for key in keys(fs, layout, folder)? {
        let path = layout.state.join(folder).join(format!("{key}.json"));
        let parsed = fs.read(&path, MOST).and_then(|b| serde_json::from_slice(&b).map_err(io::Error::other));
        match parsed {
            Ok(record) => found.push(record),
            Err(e) => tracing::warn!(file = %path.display(), error = %e, "a record cannot be read"),
        }
    }
    Ok(found)
}
