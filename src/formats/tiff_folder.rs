//! A scan as a folder of TIFF files, one frame each, with a file of angles.
//!
//! Contract
//! - Which frames are flats and darks is told by a word in the file's name or its folder's: `dark`, `drk`, `df` and
//!   `flat`, `white`, `bak`, `bright`, `open`, `ff`; with `post`, `after` or `end` as well, flats were taken after the
//!   projections. All other TIFF files are projections.
//! - Frames come in natural order: `p9.tif` before `p10.tif`.
//! - Angles stand in a text file with `angle` or `theta` in its name, or in the role `angles`: one number in degrees a
//!   line, one line a projection. They are not guessed.
//! - Every file resolves (symbolic links included) inside the root.

use super::angles;
use super::h5::Linked;
use super::source::{Awaited, FrameList, Parts};
use super::stack::FrameStack;
use super::tiff::FILES_MAX;
use crate::technique::Fault;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Projection,
    FlatBefore,
    FlatAfter,
    Dark,
}

/// Is this a TIFF file, by its name?
pub(crate) fn is_tiff(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    matches!(ending.as_deref(), Some("tif" | "tiff"))
}

/// Kind of a frame by the words in its name and its folder's, `relative` to the scan.
fn kind(relative: &Path) -> Kind {
    let text = relative.with_extension("").to_string_lossy().to_ascii_lowercase();
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphabetic()).filter(|w| !w.is_empty()).collect();
    let has = |exact: &[&str], ends: &[&str]| {
        words.iter().any(|w| exact.contains(w) || ends.iter().any(|e| w.ends_with(e) || w.ends_with(&format!("{e}s"))))
    };
    if has(&["df"], &["dark", "drk"]) {
        Kind::Dark
    } else if has(&["ff", "open"], &["flat", "white", "bak", "bright"]) {
        if has(&["post", "after", "end"], &[]) { Kind::FlatAfter } else { Kind::FlatBefore }
    } else {
        Kind::Projection
    }
}

/// A name in pieces that sort as people read: numbers by value.
fn natural(path: &Path) -> Vec<(bool, u64, String)> {
    let text = path.to_string_lossy();
    let mut pieces: Vec<(bool, String)> = Vec::new();
    for c in text.chars() {
        match pieces.last_mut() {
            Some((digits, piece)) if *digits == c.is_ascii_digit() => piece.push(c),
            _ => pieces.push((c.is_ascii_digit(), c.to_string())),
        }
    }
    pieces.into_iter().map(|(digits, piece)| (digits, piece.parse().unwrap_or(u64::MAX), piece)).collect()
}

/// Reads the layout; `files` are the scan's, `name` is what it is called.
///
/// # Errors
/// As [`super::source::TomoSource::open`].
pub(crate) fn read(
    files: &[PathBuf],
    root: &Path,
    name: &str,
    given_angles: bool,
    linked: &Linked,
) -> Result<Parts, Fault> {
    let root = root.canonicalize().map_err(|e| Fault::reading(root, &e))?;
    let mut frames: Vec<&PathBuf> = files.iter().filter(|f| is_tiff(f)).take(FILES_MAX).collect();
    frames.sort_by_cached_key(|f| natural(f));
    // Words of the way to the scan say nothing about its frames.
    let common = common_folder(&frames);
    let mut lists: [Vec<PathBuf>; 4] = Default::default();
    for frame in frames {
        let found = frame.canonicalize().map_err(|e| Fault::reading(frame, &e))?;
        if !found.starts_with(&root) {
            return Err(Fault::Input(format!(
                "{}: leads to {}, outside the watch root {}; put the file itself under the root",
                frame.display(),
                found.display(),
                root.display()
            )));
        }
        let kind = kind(frame.strip_prefix(&common).unwrap_or(frame));
        if let Some(list) = lists.get_mut(kind as usize) {
            list.push(found);
        }
    }
    let [projections, before, after, darks] = lists;
    if projections.is_empty() {
        return Err(Fault::Input(format!(
            "{}: no TIFF file is a projection: all are named like flats or darks",
            common.display()
        )));
    }
    let list = |files: Vec<PathBuf>, what: &str| -> Result<Option<FrameList>, Fault> {
        if files.is_empty() { Ok(None) } else { FrameStack::tiff(files, what).map(|s| Some(FrameList::all(s))) }
    };
    let count = projections.len();
    let projections = FrameList::all(FrameStack::tiff(projections, "projections")?);
    let angles = if given_angles { Ok(None) } else { angles_of(files, &root, count, &common, linked) };
    Ok(Parts {
        layout: "tiff",
        projections,
        flats_before: list(before, "flats")?,
        flats_after: list(after, "flats after")?,
        flats_between: Vec::new(),
        darks: list(darks, "darks")?,
        angles,
        pixel_size_cm: None,
        metadata: BTreeMap::from([("title".to_owned(), name.to_owned())]),
        notes: Vec::new(),
        awaited: Awaited::default(),
    })
}

/// The innermost folder that holds all of them.
fn common_folder(files: &[&PathBuf]) -> PathBuf {
    let mut common = files.first().and_then(|f| f.parent()).map(Path::to_owned).unwrap_or_default();
    for file in files {
        while !file.starts_with(&common) {
            if !common.pop() {
                break;
            }
        }
    }
    common
}

fn angles_of(
    files: &[PathBuf],
    root: &Path,
    count: usize,
    at: &Path,
    linked: &Linked,
) -> Result<Option<(Vec<f64>, String)>, Fault> {
    let named = |f: &&PathBuf| {
        let name = f.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        !is_tiff(f) && (name.contains("angle") || name.contains("theta"))
    };
    let found: Vec<&PathBuf> = files.iter().filter(named).collect();
    match found.as_slice() {
        [file] => {
            let real = file.canonicalize().map_err(|e| Fault::reading(file, &e))?;
            if !real.starts_with(root) {
                return Err(Fault::Input(format!("{}: leads outside the watch root", file.display())));
            }
            Ok(Some((angles::from_companion(&real, root, count, linked)?, file.display().to_string())))
        }
        [] => Err(Fault::Input(format!(
            "{}: no rotation angles: no file with `angle` or `theta` in its name; write angles.txt with one number in degrees a line, or give the role `angles`",
            at.display()
        ))),
        [a, b, ..] => Err(Fault::Input(format!(
            "{} and {} both look like angles; keep one, or give the role `angles`",
            a.display(),
            b.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_tell_frames_apart() {
        for (name, expected) in [
            ("proj_0001.tif", Kind::Projection),
            ("darks/0001.tif", Kind::Dark),
            ("sample_dark_0001.tif", Kind::Dark),
            ("s1drk_0000.tif", Kind::Dark),
            ("flat_pre_0001.tiff", Kind::FlatBefore),
            ("flats_post/0001.tif", Kind::FlatAfter),
            ("s1bak_0000.tif", Kind::FlatBefore),
            ("flattened_wood_03.tif", Kind::Projection),
            ("0001.tif", Kind::Projection),
        ] {
            assert_eq!(kind(Path::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn numbers_sort_by_value() {
        let mut names = ["p10.tif", "p9.tif", "p2b.tif", "a100.tif"].map(Path::new);
        names.sort_by_cached_key(|n| natural(n));
        assert_eq!(names.map(|n| n.to_str().unwrap()), ["a100.tif", "p2b.tif", "p9.tif", "p10.tif"]);
    }
}
