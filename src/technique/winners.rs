//! The last steps of a finish task in staging: recorded files get their public names, all others go.
//!
//! Contract
//! - Whoever repeats a step, after a crash or beside a stalled twin, ends with the same files.
//! - Only names that a task recorded are renamed; only files directly in the folders that the caller names are removed.

use super::{Fault, OutputFile};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

/// Gives a recorded file another name.
///
/// # Errors
/// It can neither be renamed nor has been before: a file of that name and size is a repetition's.
pub(crate) fn settle(staging: &Path, file: &OutputFile, public: String) -> Result<OutputFile, Fault> {
    match rename(staging, &file.path, &public) {
        Err(fault) if !staging.join(&public).metadata().is_ok_and(|m| m.len() == file.bytes) => Err(fault),
        _ => Ok(OutputFile { path: public, ..file.clone() }),
    }
}

/// A name without its attempt number: `slice.a3.png` becomes `slice.png`.
pub(crate) fn public_name(path: &str) -> String {
    let Some((stem, extension)) = path.rsplit_once('.') else { return path.to_owned() };
    match stem.rsplit_once(".a") {
        Some((name, attempt)) if !attempt.is_empty() && attempt.bytes().all(|b| b.is_ascii_digit()) => {
            format!("{name}.{extension}")
        }
        _ => path.to_owned(),
    }
}

/// Removes what is in `folders` and not in the bundle: files of attempts that lost, merged parts.
///
/// # Errors
/// What the filesystem says.
pub(crate) fn sweep(staging: &Path, folders: &[&str], files: &[OutputFile]) -> Result<(), Fault> {
    let kept: BTreeSet<&str> = files.iter().map(|f| f.path.as_str()).collect();
    for folder in folders {
        let path = staging.join(folder);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(Fault::writing(&path, &e)),
        };
        let mut left = 0;
        for entry in entries {
            let entry = entry.map_err(|e| Fault::writing(&path, &e))?;
            let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
            if kept.contains(name.as_str()) {
                left += 1;
            } else {
                remove(&entry.path())?;
            }
        }
        if left == 0 {
            // Not empty, when a stalled twin has just written into it: then its file stays, unlisted and harmless.
            let _ = std::fs::remove_dir(&path);
        }
    }
    Ok(())
}

/// Removes a file, if it is there.
///
/// # Errors
/// What the filesystem says.
pub(crate) fn remove(path: &Path) -> Result<(), Fault> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Fault::writing(path, &e)),
        _ => Ok(()),
    }
}

/// Renames within staging.
///
/// # Errors
/// What the filesystem says.
pub(crate) fn rename(staging: &Path, from: &str, to: &str) -> Result<(), Fault> {
    let to = staging.join(to);
    std::fs::rename(staging.join(from), &to).map_err(|e| Fault::writing(&to, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_vanish_from_public_names() {
        for (own, public) in [
            ("preview/slice.a12.png", "preview/slice.png"),
            ("preview/slice.png", "preview/slice.png"),
            ("preview/slice.abc.png", "preview/slice.abc.png"),
            ("depths/scan_3.a12.h5", "depths/scan_3.h5"),
        ] {
            assert_eq!(public_name(own), public);
        }
    }

    #[test]
    fn a_repetition_settles_on_the_same_file_and_a_missing_one_is_a_fault() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x.a1.png"), "123").unwrap();
        let file = OutputFile { path: "x.a1.png".into(), bytes: 3, sha256: "s".into() };
        let settled = OutputFile { path: "x.png".into(), ..file.clone() };
        for _ in 0..2 {
            assert_eq!(settle(dir.path(), &file, "x.png".into()).unwrap(), settled);
        }
        std::fs::write(dir.path().join("x.png"), "another").unwrap();
        assert!(settle(dir.path(), &file, "x.png".into()).is_err(), "what has the name is something else");
    }
}
