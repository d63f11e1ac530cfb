//! Rotation angles: from a dataset, a companion, or a rule.
//!
//! Contract: degrees, finite, as many as projections; whatever is refused is named.

use super::h5::Linked;
use super::h5::{H5, attribute, read_numbers};
use super::links::{Found, Lookup, awaited, lookup};
use crate::technique::Fault;
use std::path::Path;
use std::rc::Rc;

/// A text file of angles longer than this is something else.
const TEXT_BYTES_MAX: u64 = 64 << 20;
/// More than any number of projections.
const COUNT_MAX: usize = 1 << 24;

/// `count` angles from 0, evenly over `range` degrees, the end not included.
#[must_use]
pub fn even(count: usize, range: f64) -> Vec<f64> {
    (0..count).map(|i| i as f64 * range / count as f64).collect()
}

/// The angles in a dataset, in degrees; its `units` attribute may say radians.
pub(crate) fn from_dataset(found: &Found, name: &str) -> Result<Vec<f64>, Fault> {
    let at = found.h5.path.display();
    let length = found.dataset.size();
    if length > COUNT_MAX {
        return Err(Fault::Input(format!("{at}: {name} declares {length} angles; the file is damaged")));
    }
    let mut angles = read_numbers(&found.dataset, &found.h5.path, name)?;
    if attribute(&found.dataset, "units").is_some_and(|u| u.to_lowercase().starts_with("rad")) {
        angles.iter_mut().for_each(|a| *a = a.to_degrees());
    }
    Ok(angles)
}

/// Angles from a companion: HDF5 (theta, rotation_angle) or text, one number a line, `#` comments.
pub(crate) fn from_companion(file: &Path, root: &Path, count: usize, linked: &Linked) -> Result<Vec<f64>, Fault> {
    let at = file.display();
    let mut first = [0u8; 8];
    let mut opened = std::fs::File::open(file).map_err(|e| Fault::reading(file, &e))?;
    let got = std::io::Read::read(&mut opened, &mut first).map_err(|e| Fault::reading(file, &e))?;
    if first.get(..got) == Some(b"\x89HDF\r\n\x1a\n") {
        let h5 = Rc::new(H5::open_noting(file, root, linked)?);
        let mut promised = None;
        for name in
            ["/exchange/theta", "/entry/sample/rotation_angle", "/entry1/tomo_entry/sample/rotation_angle", "/theta"]
        {
            match lookup(&h5, name)? {
                Lookup::Dataset(found) => return from_dataset(&found, name),
                Lookup::Awaited(why) => {
                    promised.get_or_insert(why);
                }
                _ => {}
            }
        }
        if let Some(why) = promised {
            return Err(awaited(&why));
        }
        return Err(Fault::Input(format!("{at}: no angles; expected /exchange/theta or /entry/sample/rotation_angle")));
    }
    let size = opened.metadata().map_err(|e| Fault::reading(file, &e))?.len();
    if size > TEXT_BYTES_MAX {
        return Err(Fault::Input(format!("{at}: {size} bytes, too long for a list of angles")));
    }
    let text = std::fs::read(file).map_err(|e| Fault::reading(file, &e))?;
    let text = String::from_utf8_lossy(&text);
    let mut angles = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim().trim_end_matches(',');
        if line.is_empty() {
            continue;
        }
        let angle = line.parse::<f64>().map_err(|_| {
            Fault::Input(format!("{at}:{}: {line:.40?} is no angle; expected one number in degrees a line", i + 1))
        })?;
        angles.push(angle);
    }
    if angles.is_empty() {
        return Err(Fault::Input(format!("{at}: no angles in the file, expected {count}")));
    }
    Ok(angles)
}

/// Finite, more than one, and a range worth reconstructing.
pub(crate) fn check(path: &Path, from: &str, angles: &[f64]) -> Result<(), Fault> {
    let at = path.display();
    if angles.len() < 2 {
        return Err(Fault::Input(format!(
            "{at}: {} projection, a reconstruction needs many angles; was the scan aborted?",
            angles.len()
        )));
    }
    if let Some(i) = angles.iter().position(|a| !a.is_finite() || a.abs() > 1e6) {
        return Err(Fault::Input(format!(
            "{at}: {from}: angle {i} is {}; write angles in degrees, or give the role `angles`",
            angles[i]
        )));
    }
    let (low, high) = angles.iter().fold((f64::MAX, f64::MIN), |(l, h), &a| (l.min(a), h.max(a)));
    if high - low < 1.0 {
        return Err(Fault::Input(format!(
            "{at}: {from}: the angles span {:.4}° only, expected about 180° or 360°; are they in degrees, did the stage turn?",
            high - low
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_companion_is_read_and_its_faults_are_placed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("angles.txt");
        std::fs::write(&file, "# degrees\n0\n0.5 # first\n\n1e0,\n").unwrap();
        assert_eq!(from_companion(&file, dir.path(), 3, &Linked::default()).unwrap(), [0.0, 0.5, 1.0]);
        std::fs::write(&file, "0\nhello\n").unwrap();
        let fault = from_companion(&file, dir.path(), 2, &Linked::default()).unwrap_err().to_string();
        assert!(fault.contains("angles.txt:2") && fault.contains("hello"), "{fault}");
    }

    #[test]
    fn angles_that_cannot_be_used_are_refused() {
        let check = |a: &[f64]| check(Path::new("x.h5"), "theta", a);
        assert!(check(&even(180, 180.0)).is_ok());
        for bad in [vec![0.0], vec![], vec![5.0; 100], vec![0.0, f64::NAN, 180.0], vec![0.0, 1e300]] {
            assert!(matches!(check(&bad), Err(Fault::Input(_))), "{bad:?}");
        }
    }
}
