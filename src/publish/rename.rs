//! The rename that publishes.
//!
//! After any error the target's manifest decides: ours means published, another job's means the next free name,
//! none means try again. What if this process sleeps between two lines while another takes over? Takeover has
//! renamed our staging away, so the rename below finds nothing, and the targets say who published.

use super::manifest;
use crate::store::fs::is_damage;
use crate::store::{Fs, layout};
use std::io;
use std::path::{Path, PathBuf};

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publication {
    /// Published, now or by an earlier try of ours.
    Done(PathBuf),
    /// Staging is gone and nothing of ours is published: another owner took over.
    Fenced,
}

/// Versions of one scan that are looked at before something must be wrong.
const MAX_VERSIONS: u32 = 10_000;

/// The bundle of this job, if it is published.
pub fn find_bundle(fs: &dyn Fs, stream_output: &Path, stem: &str, key: &str) -> io::Result<Option<PathBuf>> {
    for version in 1..MAX_VERSIONS {
        let path = layout::bundle(stream_output, stem, version);
        if !fs.exists(&path)? {
            return Ok(None);
        }
        if manifest_key(fs, &path)?.as_deref() == Some(key) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn manifest_key(fs: &dyn Fs, bundle: &Path) -> io::Result<Option<String>> {
    #[derive(serde::Deserialize)]
    struct Key {
        key: String,
    }
    match fs.read(&bundle.join(manifest::MANIFEST), manifest::MOST) {
        Ok(bytes) => Ok(serde_json::from_slice::<Key>(&bytes).ok().map(|k| k.key)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        // Whatever lies there, it is no manifest of ours.
        Err(e) if is_damage(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Renames `staging` onto the scan's first free bundle name. The caller has checked claim and input.
pub fn publish(fs: &dyn Fs, stream_output: &Path, stem: &str, key: &str, staging: &Path) -> io::Result<Publication> {
    // From here people may look at it; before, nobody but us.
    match fs.copy_mode(stream_output, staging) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return after_loss(fs, stream_output, stem, key),
        Err(e) => return Err(e),
    }
    for version in 1..MAX_VERSIONS {
        let target = layout::bundle(stream_output, stem, version);
        // A rename would replace an empty folder that somebody else made: ask first.
        if fs.exists(&target)? {
            if manifest_key(fs, &target)?.as_deref() == Some(key) {
                return Ok(Publication::Done(target));
            }
            continue;
        }
        match fs.rename(staging, &target) {
            Ok(()) => {
                fs.sync_dir(stream_output)?;
                return Ok(Publication::Done(target));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => return after_loss(fs, stream_output, stem, key),
            // Taken between the question and the rename: the next round reads whose it is.
            Err(_) if fs.exists(&target)? => {
                if manifest_key(fs, &target)?.as_deref() == Some(key) {
                    return Ok(Publication::Done(target));
                }
            }
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other(format!("{stem}: {MAX_VERSIONS} versions are published already")))
}

fn after_loss(fs: &dyn Fs, stream_output: &Path, stem: &str, key: &str) -> io::Result<Publication> {
    Ok(find_bundle(fs, stream_output, stem, key)?.map_or(Publication::Fenced, Publication::Done))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RealFs;

    fn staged(dir: &Path, key: &str) -> PathBuf {
        let staging = layout::staging(dir, key, 1);
        std::fs::create_dir(&staging).unwrap();
        std::fs::write(staging.join("manifest.json"), format!("{{\"key\":\"{key}\"}}")).unwrap();
        staging
    }

    #[test]
    fn publishing_twice_is_publishing_once() {
        let dir = tempfile::tempdir().unwrap();
        let staging = staged(dir.path(), "k");
        let want = Publication::Done(dir.path().join("scan"));
        for _ in 0..2 {
            assert_eq!(publish(&RealFs, dir.path(), "scan", "k", &staging).unwrap(), want);
        }
        assert_eq!(find_bundle(&RealFs, dir.path(), "scan", "k").unwrap(), Some(dir.path().join("scan")));
    }

    #[test]
    fn another_version_gets_the_next_name_and_nothing_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = staged(dir.path(), "k1");
        publish(&RealFs, dir.path(), "scan", "k1", &first).unwrap();
        std::fs::create_dir(dir.path().join("scan~2")).unwrap();
        let second = staged(dir.path(), "k2");
        let got = publish(&RealFs, dir.path(), "scan", "k2", &second).unwrap();
        assert_eq!(got, Publication::Done(dir.path().join("scan~3")), "an empty folder is somebody's, too");
        assert_eq!(manifest_key(&RealFs, &dir.path().join("scan")).unwrap().as_deref(), Some("k1"));
    }

    #[test]
    fn after_a_takeover_there_is_nothing_to_publish() {
        let dir = tempfile::tempdir().unwrap();
        let staging = staged(dir.path(), "k");
        std::fs::rename(&staging, layout::fenced(dir.path(), "k", 1)).unwrap();
        assert_eq!(publish(&RealFs, dir.path(), "scan", "k", &staging).unwrap(), Publication::Fenced);
    }
}
