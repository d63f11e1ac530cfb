//! The staging folder that goes with a claim, and giving both up.
//!
//! Contract: a folder is renamed out of its owner's reach before anything else happens to it, so that whoever wakes late
//! finds nothing to publish; then it may be removed at leisure.

use super::{Released, highest};
use crate::store::fs::{Fs, create_whole};
use crate::store::layout::{Layout, fenced, staging};
use std::io;
use std::path::{Path, PathBuf};

/// Renames every predecessor's staging out of reach, then makes our own. Returns ours. What was renamed away is still
/// there as `.fenced-…`, for [`crate::store::takeover`]; [`fence`] removes it.
pub fn prepare_staging(fs: &dyn Fs, stream_output: &Path, key: &str, generation: u32) -> io::Result<PathBuf> {
    for old in 1..generation {
        put_aside(fs, stream_output, key, old)?;
    }
    let mine = staging(stream_output, key, generation);
    fs.make_dir(&mine, 0o700)?;
    Ok(mine)
}

/// Renames staging of that generation out of its owner's reach; a staging that is not there is fine.
fn put_aside(fs: &dyn Fs, stream_output: &Path, key: &str, generation: u32) -> io::Result<()> {
    match fs.rename(&staging(stream_output, key, generation), &fenced(stream_output, key, generation)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Renames staging of that generation away and removes it; a staging that is not there is fine.
pub fn fence(fs: &dyn Fs, stream_output: &Path, key: &str, generation: u32) -> io::Result<()> {
    put_aside(fs, stream_output, key, generation)?;
    let to = fenced(stream_output, key, generation);
    // Out of reach already; what cannot be removed now is only space.
    match fs.remove_tree(&to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(folder = %to.display(), error = %e, "a fenced folder could not be removed");
        }
        _ => {}
    }
    Ok(())
}

/// Gives a claim up: staging goes first, so that nothing is left when the next owner starts.
pub fn release(fs: &dyn Fs, layout: &Layout, stream_output: &Path, key: &str, generation: u32) -> io::Result<()> {
    fence(fs, stream_output, key, generation)?;
    mark_released(fs, layout, key, generation, &Released::default())
}

/// As [`release`], of a job that was put into quarantine.
pub fn release_judged(
    fs: &dyn Fs,
    layout: &Layout,
    stream_output: &Path,
    key: &str,
    generation: u32,
) -> io::Result<()> {
    fence(fs, stream_output, key, generation)?;
    mark_released(fs, layout, key, generation, &Released { kept: false, judged: true })
}

/// Gives a claim up and leaves staging with its finished parts to the next owner. Only for an owner whose writers are
/// reaped.
pub fn hand_over(fs: &dyn Fs, layout: &Layout, key: &str, generation: u32) -> io::Result<()> {
    mark_released(fs, layout, key, generation, &Released { kept: true, judged: false })
}

/// Frees the claim of a job that is over; its verdict, a record, keeps others from claiming it again.
pub fn mark_released(fs: &dyn Fs, layout: &Layout, key: &str, generation: u32, how: &Released) -> io::Result<()> {
    let bytes = serde_json::to_vec(how).map_err(io::Error::other)?;
    create_whole(fs, &layout.released(key, generation), &bytes).map(|_| ())
}

/// Takes a job out of quarantine: its claim is freed first, so that whoever sees the record gone may take it. The record
/// is kept aside. False when another pilot was faster.
///
/// # Errors
/// What the filesystem says; doing it again is safe.
pub fn release_quarantined(fs: &dyn Fs, layout: &Layout, key: &str) -> io::Result<bool> {
    let generation = highest(fs, layout, key)?;
    if generation > 0 {
        mark_released(fs, layout, key, generation, &Released { kept: false, judged: true })?;
    }
    let record = layout.quarantine(key);
    match fs.rename(&record, &record.with_file_name(format!(".released-{key}.json"))) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
