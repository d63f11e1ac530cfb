//! `pilots/<pilot>.dead`: proof that nothing of a pilot runs any more, written by whoever made sure.
//!
//! Contract: made whole, once; the first word stands. Whoever reads one needs no lease. A pilot of which something may
//! still run gets none, but for ranks other than 0 on hosts that no longer answer; these are named in `lost`.

use super::fs::{Fs, create_whole};
use super::layout::Layout;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// What a tombstone says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The dead pilot.
    pub pilot: String,
    /// The launch that made sure.
    pub by: String,
    /// When, milliseconds since the epoch.
    pub at_ms: u64,
    /// The cause is known and no scan's fault: a lost host, the walltime, a drain, a launcher that was killed.
    pub explained: bool,
    /// In words.
    pub reason: String,
    /// Hosts of ranks other than 0 that do not answer: a worker there may still write into its old staging.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
}

fn path(layout: &Layout, pilot: &str) -> PathBuf {
    layout.state.join("pilots").join(format!("{pilot}.dead"))
}

/// Writes it; `Ok(false)` when there was one.
///
/// # Errors
/// The filesystem's; the effect is unknown then, and writing again is harmless.
pub fn put(fs: &dyn Fs, layout: &Layout, stone: &Tombstone) -> io::Result<bool> {
    let bytes = serde_json::to_vec_pretty(stone).map_err(io::Error::other)?;
    create_whole(fs, &path(layout, &stone.pilot), &bytes)
}

/// Reads it; `None` when there is none.
///
/// # Errors
/// The filesystem's, or a file that is no tombstone.
pub fn read(fs: &dyn Fs, layout: &Layout, pilot: &str) -> io::Result<Option<Tombstone>> {
    match fs.read(&path(layout, pilot), 64 * 1024) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RealFs;

    #[test]
    fn the_first_word_stands() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(&RealFs, dir.path()).unwrap();
        let stone = Tombstone {
            pilot: "p".into(),
            by: "l".into(),
            at_ms: 1,
            explained: false,
            reason: "rank 0 died".into(),
            lost: Vec::new(),
        };
        assert_eq!(read(&RealFs, &layout, "p").unwrap(), None);
        assert!(put(&RealFs, &layout, &stone).unwrap());
        assert!(!put(&RealFs, &layout, &Tombstone { explained: true, ..stone.clone() }).unwrap());
        assert_eq!(read(&RealFs, &layout, "p").unwrap(), Some(stone));
    }
}
