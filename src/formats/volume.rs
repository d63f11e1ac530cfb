//! `recon.h5`: one name for the whole volume, over parts or by itself.
//!
//! Contract
//! - [`virtual_over`] makes a small file whose dataset maps part files by **relative** names, so that the
//!   folder can be renamed and copied. The parts stay what people download.
//! - [`merge`] copies the parts into one plain file, a block at a time, and checks each part's hash on the way:
//!   bytes that changed on disk since they were hashed in memory are a [`Fault::Storage`].
//! - Both check that the parts are there with their recorded sizes and cover `0..z` without gap or overlap.

use super::output::Scale;
use super::part::{DATASET, Hashed, VolumeAttributes, frame, frame_of, hex, scratch_file, write_attributes, write_new};
use super::throttle;
use crate::technique::{Fault, OutputFile};
use hdf5::plist::dataset_create::Layout;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK_BYTES: usize = 4 << 20;

/// A part and the slices it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartOf {
    /// As its writer reported it.
    pub file: OutputFile,
    /// Slices.
    pub slices: Range<usize>,
}

/// Sorts the parts and checks them against `slices` and the disk.
fn check(staging: &Path, parts: &[PartOf], slices: usize) -> Result<Vec<PartOf>, Fault> {
    let mut parts = parts.to_vec();
    parts.sort_by_key(|p| p.slices.start);
    let mut next = 0;
    for part in &parts {
        if part.slices.start != next || part.slices.is_empty() {
            return Err(Fault::Task(format!(
                "{}: slices {:?}, expected them to begin at {next}: parts do not fit together",
                part.file.path, part.slices
            )));
        }
        next = part.slices.end;
        let path = staging.join(&part.file.path);
        let size = std::fs::metadata(&path).map_err(|e| Fault::writing(&path, &e))?.len();
        if size != part.file.bytes {
            return Err(Fault::Storage(format!(
                "{}: {size} bytes on disk, {} were written: the filesystem lost data",
                path.display(),
                part.file.bytes
            )));
        }
    }
    if next != slices {
        return Err(Fault::Task(format!("parts cover {next} of {slices} slices")));
    }
    Ok(parts)
}

/// Writes `<staging>/<relative>`, a virtual dataset `[slices, y, x]` over `parts`.
///
/// # Errors
/// Parts that do not fit are [`Fault::Task`], lost bytes and a full disk [`Fault::Storage`].
pub fn virtual_over(
    staging: &Path,
    relative: &str,
    parts: &[PartOf],
    shape: [usize; 3],
    attributes: &VolumeAttributes,
) -> Result<OutputFile, Fault> {
    let [slices, y, x] = shape;
    let parts = check(staging, parts, slices)?;
    let scratch = scratch_file()?;
    let make = || -> hdf5::Result<()> {
        hdf5::sync::sync(|| {
            let file = hdf5::File::with_options().with_fapl(|p| p.file_locking(false)).create(scratch.path())?;
            let mut builder = file
                .new_dataset::<f32>()
                .shape(shape)
                .layout(Layout::Virtual)
                .obj_track_times(false)
                .fill_value(f32::NAN);
            for part in &parts {
                let n = part.slices.len();
                builder = builder.virtual_map(
                    &part.file.path,
                    DATASET,
                    [n, y, x],
                    (0..n, 0..y, 0..x),
                    shape,
                    (part.slices.clone(), 0..y, 0..x),
                );
            }
            let dataset = builder.create(DATASET)?;
            write_attributes(&dataset, attributes)?;
            drop(dataset);
            file.close()
        })
    };
    make().map_err(|e| Fault::Task(format!("{relative}: {}", super::h5::short(&e))))?;
    let bytes = std::fs::read(scratch.path()).map_err(|e| Fault::writing(scratch.path(), &e))?;
    write_new(staging, relative, |out| out.put(&bytes))
}

/// Reads slices out of the parts that hold them, `[z, y, x]`; `side`: `[y, x]`, `attributes`: what the parts were written
/// with.
///
/// # Errors
/// [`Fault::Storage`] for bytes that are gone, [`Fault::Task`] for slices that no part holds.
pub fn read_slices(
    staging: &Path,
    parts: &[PartOf],
    side: [usize; 2],
    slices: Range<usize>,
    attributes: &VolumeAttributes,
) -> Result<ndarray::Array3<f32>, Fault> {
    let [y, x] = side;
    let mut out = ndarray::Array3::zeros((slices.len(), y, x));
    let mut found = 0;
    for part in parts {
        let wanted = part.slices.start.max(slices.start)..part.slices.end.min(slices.end);
        if wanted.is_empty() {
            continue;
        }
        let head = frame([part.slices.len(), y, x], attributes)?.head.len();
        let path = staging.join(&part.file.path);
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Fault::Storage(format!("{}: lost its end", path.display())),
            _ => Fault::writing(&path, &e),
        };
        let file = File::open(&path).map_err(failed)?;
        let mut bytes = vec![0u8; y * x * 4];
        for z in wanted.clone() {
            throttle::take(bytes.len());
            let at = head + (z - part.slices.start) * bytes.len();
            file.read_exact_at(&mut bytes, at as u64).map_err(failed)?;
            let to = out.index_axis_mut(ndarray::Axis(0), z - slices.start);
            to.into_iter().zip(bytes.as_chunks::<4>().0).for_each(|(o, b)| *o = f32::from_le_bytes(*b));
        }
        found += wanted.len();
    }
    if found == slices.len() {
        Ok(out)
    } else {
        Err(Fault::Task(format!("parts hold {found} of the slices {slices:?}")))
    }
}

/// Writes `<staging>/<relative>`, one plain dataset with the data of all parts, as integers when there is a scale. The
/// parts are left in place.
///
/// # Errors
/// As [`virtual_over`]; a part whose hash changed is [`Fault::Storage`].
pub fn merge(
    staging: &Path,
    relative: &str,
    parts: &[PartOf],
    shape: [usize; 3],
    attributes: &VolumeAttributes,
    scale: Option<Scale>,
) -> Result<OutputFile, Fault> {
    let [slices, y, x] = shape;
    let parts = check(staging, parts, slices)?;
    let whole = frame_of(shape, attributes, scale)?;
    write_new(staging, relative, |out| {
        out.put(&whole.head)?;
        for part in &parts {
            // A part's metadata depends on its shape and attributes only, so its head's length is known.
            let head = frame([part.slices.len(), y, x], attributes)?.head.len() as u64;
            copy_data(staging, part, head, (part.slices.len() * y * x * 4) as u64, scale, out)?;
        }
        out.put(&whole.tail)
    })
}

/// Appends bytes `head..head + data` of a part to `out`, hashing all of it.
fn copy_data(
    staging: &Path,
    part: &PartOf,
    head: u64,
    data: u64,
    scale: Option<Scale>,
    out: &mut Hashed,
) -> Result<(), Fault> {
    // A read may end inside a number.
    let mut pending: Vec<u8> = Vec::new();
    let path = staging.join(&part.file.path);
    let mut file = File::open(&path).map_err(|e| Fault::writing(&path, &e))?;
    let mut hash = Sha256::new();
    let mut block = vec![0u8; BLOCK_BYTES];
    let mut position = 0u64;
    loop {
        let left =
            [head, head + data].into_iter().find(|&edge| edge > position).map_or(u64::MAX, |edge| edge - position);
        let want = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let got = file.read(block.get_mut(..want).unwrap_or_default()).map_err(|e| Fault::writing(&path, &e))?;
        if got == 0 {
            break;
        }
        throttle::take(got);
        let bytes = block.get(..got).unwrap_or(&[]);
        hash.update(bytes);
        if (head..head + data).contains(&position) {
            match scale {
                None => out.put(bytes)?,
                Some(_) => {
                    pending.extend_from_slice(bytes);
                    let (numbers, rest) = pending.as_chunks::<4>();
                    let values: Vec<f32> = numbers.iter().map(|b| f32::from_le_bytes(*b)).collect();
                    out.put(&super::output::bytes(values.iter(), scale))?;
                    pending = rest.to_vec();
                }
            }
        }
        position += got as u64;
    }
    if hex(&hash.finalize()) != part.file.sha256 {
        return Err(Fault::Storage(format!(
            "{}: its SHA-256 is not the one taken when it was written: the filesystem changed it",
            path.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::part::{sha256_of, write};
    use ndarray::{Array3, Axis, Ix3, Slice};

    fn attributes() -> VolumeAttributes {
        VolumeAttributes { units: "cm^-1".into(), axes: "z:y:x".into(), description: String::new() }
    }

    fn parts(staging: &Path, data: &Array3<f32>, cuts: &[usize]) -> Vec<PartOf> {
        cuts.windows(2)
            .enumerate()
            .map(|(i, w)| {
                let view = data.slice_axis(Axis(0), Slice::from(w[0]..w[1]));
                let file = write(staging, &format!("parts/slab-{i:05}.a1.h5"), view, &attributes()).unwrap();
                PartOf { file, slices: w[0]..w[1] }
            })
            .collect()
    }

    fn read(path: &Path) -> Array3<f32> {
        crate::formats::h5::open_library(path).unwrap().dataset(DATASET).unwrap().read::<f32, Ix3>().unwrap()
    }

    #[test]
    fn a_virtual_volume_survives_the_rename_of_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let staging = dir.path().join(".staging");
        std::fs::create_dir(&staging).unwrap();
        let data = Array3::from_shape_fn((11, 8, 9), |(z, y, x)| (z * 100 + y * 10 + x) as f32);
        let mut list = parts(&staging, &data, &[0, 4, 8, 11]);
        list.reverse();
        let out = virtual_over(&staging, "recon.h5", &list, [11, 8, 9], &attributes()).unwrap();
        assert_eq!(out.sha256, sha256_of(&staging.join("recon.h5")).unwrap());
        let published = dir.path().join("scan_001");
        std::fs::rename(&staging, &published).unwrap();
        assert_eq!(read(&published.join("recon.h5")), data);
    }

    #[test]
    fn merged_parts_are_one_plain_file() {
        let dir = tempfile::tempdir().unwrap();
        let data = Array3::from_shape_fn((7, 33, 35), |(z, y, x)| (z * 10_000 + y * 100 + x) as f32);
        let list = parts(dir.path(), &data, &[0, 2, 7]);
        let out = merge(dir.path(), "recon.h5", &list, [7, 33, 35], &attributes(), None).unwrap();
        assert_eq!(out.sha256, sha256_of(&dir.path().join("recon.h5")).unwrap());
        std::fs::remove_dir_all(dir.path().join("parts")).unwrap();
        assert_eq!(read(&dir.path().join("recon.h5")), data);
    }

    #[test]
    fn gaps_lost_bytes_and_changed_bytes_are_found() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        let data = Array3::zeros((6, 8, 8));
        let list = parts(dir.path(), &data, &[0, 2, 4, 6]);
        let gap = [list[0].clone(), list[2].clone()];
        assert!(matches!(virtual_over(dir.path(), "a.h5", &gap, [6, 8, 8], &attributes()), Err(Fault::Task(_))));
        let path = dir.path().join(&list[1].file.path);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[1], file.metadata().unwrap().len() - 600).unwrap();
        let fault = merge(dir.path(), "b.h5", &list, [6, 8, 8], &attributes(), None).unwrap_err();
        assert!(matches!(fault, Fault::Storage(_)), "{fault}");
        assert!(!dir.path().join("b.h5").exists());
        file.set_len(100).unwrap();
        assert!(matches!(merge(dir.path(), "c.h5", &list, [6, 8, 8], &attributes(), None), Err(Fault::Storage(_))));
    }
}
