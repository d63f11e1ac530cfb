//! Volumes in other clothes: TIFF stacks, OME-Zarr, integers with a scale.
//!
//! Contract
//! - A value `v` becomes the integer `n = round((v − low) / (high − low) · max)`, cut to `0..=max`; `max` is 255 or 65535;
//!   NaN becomes 0. Back: `v = low + n · (high − low) / max`. Both numbers stand in every file and in the manifest.
//! - Every file is new, hashed while it is in memory, and synced; folders are made below staging, never staging itself.
//! - The same data gives the same bytes.

use super::part::{VolumeAttributes, write_new};
use crate::technique::{Fault, OutputFile};
use ndarray::{ArrayView2, ArrayView3, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::io::{Cursor, ErrorKind};
use std::path::Path;
use tiff::encoder::{TiffEncoder, colortype};
use tiff::tags::Tag;

/// Integers in place of floating point.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// 8 or 16.
    pub bits: u8,
    /// The value that becomes 0.
    pub low: f32,
    /// The value that becomes the greatest integer.
    pub high: f32,
}

impl Scale {
    /// 255 or 65535.
    #[must_use]
    pub fn max(&self) -> u16 {
        if self.bits == 8 { 255 } else { u16::MAX }
    }

    /// The integer of a value.
    #[must_use]
    pub fn integer(&self, v: f32) -> u16 {
        let max = f32::from(self.max());
        // `as` turns NaN into 0, and what lies outside into the nearest end.
        ((v - self.low) * (max / (self.high - self.low)) + 0.5).clamp(0.0, max) as u16
    }

    /// In words, for files that have no place for numbers.
    #[must_use]
    pub fn words(&self) -> String {
        format!("value = {} + n * {}", self.low, f64::from(self.high - self.low) / f64::from(self.max()))
    }
}

/// What a number is stored as: `float32`, `uint16`, `uint8`.
#[must_use]
pub fn dtype(scale: Option<Scale>) -> &'static str {
    match scale {
        None => "float32",
        Some(Scale { bits: 8, .. }) => "uint8",
        Some(_) => "uint16",
    }
}

/// Little-endian bytes of some values.
pub(crate) fn bytes<'a>(values: impl Iterator<Item = &'a f32>, scale: Option<Scale>) -> Vec<u8> {
    match scale {
        None => values.flat_map(|v| v.to_le_bytes()).collect(),
        Some(scale) if scale.bits == 8 => values.map(|&v| scale.integer(v) as u8).collect(),
        Some(scale) => values.flat_map(|&v| scale.integer(v).to_le_bytes()).collect(),
    }
}

/// Makes the folders of a file, below staging.
pub(crate) fn make_folders(staging: &Path, relative: &str) -> Result<(), Fault> {
    let mut folder = staging.to_owned();
    let Some((folders, _)) = relative.rsplit_once('/') else { return Ok(()) };
    for name in folders.split('/') {
        folder.push(name);
        match std::fs::create_dir(&folder) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(Fault::writing(&folder, &e)),
            _ => {}
        }
    }
    Ok(())
}

/// One slice as a TIFF file in memory.
fn slice(image: ArrayView2<'_, f32>, scale: Option<Scale>, attributes: &VolumeAttributes) -> Result<Vec<u8>, Fault> {
    let (rows, columns) = image.dim();
    let mut out = Cursor::new(Vec::with_capacity(rows * columns * 4 + 1024));
    let mut words = format!("{}; {}", attributes.description, attributes.units);
    if let Some(scale) = scale {
        words = format!("{words}; {}", scale.words());
    }
    // TIFF text is ASCII.
    let words: String = words.replace('µ', "u").chars().filter(char::is_ascii).collect();
    let failed = |e: tiff::TiffError| Fault::Task(format!("a slice of {rows}×{columns} as TIFF: {e}"));
    macro_rules! write {
        ($color:ident, $values:expr) => {{
            let mut encoder = TiffEncoder::new(&mut out).map_err(failed)?;
            let mut image = encoder.new_image::<colortype::$color>(columns as u32, rows as u32).map_err(failed)?;
            image.encoder().write_tag(Tag::ImageDescription, words.as_str()).map_err(failed)?;
            image.write_data(&$values).map_err(failed)?;
        }};
    }
    match scale {
        None => write!(Gray32Float, image.iter().copied().collect::<Vec<f32>>()),
        Some(s) if s.bits == 8 => write!(Gray8, image.iter().map(|&v| s.integer(v) as u8).collect::<Vec<u8>>()),
        Some(s) => write!(Gray16, image.iter().map(|&v| s.integer(v)).collect::<Vec<u16>>()),
    }
    Ok(out.into_inner())
}

/// Writes slices `[z, y, x]` as `<folder>/slice_<z>.tif`; `first` is the number of the first.
///
/// # Errors
/// As [`write_new`].
pub(crate) fn tiff_stack(
    staging: &Path,
    folder: &str,
    first: usize,
    volume: ArrayView3<'_, f32>,
    scale: Option<Scale>,
    attributes: &VolumeAttributes,
) -> Result<Vec<OutputFile>, Fault> {
    make_folders(staging, &format!("{folder}/x"))?;
    let slices: Vec<_> = volume.axis_iter(Axis(0)).enumerate().collect();
    slices
        .into_par_iter()
        .map(|(z, image)| {
            let bytes = slice(image, scale, attributes)?;
            write_new(staging, &format!("{folder}/slice_{:05}.tif", first + z), |out| out.put(&bytes))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{stack::Sample, tiff};
    use ndarray::Array3;

    #[test]
    fn integers_go_back_within_half_a_step_and_are_cut() {
        for bits in [8, 16] {
            let scale = Scale { bits, low: -0.5, high: 2.0 };
            let step = 2.5 / f32::from(scale.max());
            for v in [-0.5, -0.123, 0.0, 0.777, 1.99, 2.0] {
                let back = scale.low + f32::from(scale.integer(v)) * step;
                assert!((back - v).abs() <= 0.5001 * step, "{bits} {v} {back}");
            }
            assert_eq!((scale.integer(-9.0), scale.integer(9.0)), (0, scale.max()));
            assert_eq!((scale.integer(f32::NAN), scale.integer(f32::INFINITY)), (0, scale.max()));
        }
    }

    #[test]
    fn slices_become_tiffs_that_say_their_scale() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Array3::from_shape_fn((3, 5, 7), |(z, y, x)| (z * 100 + y * 10 + x) as f32);
        let attributes = VolumeAttributes { units: "cm^-1".into(), axes: "z:y:x".into(), description: "µ".into() };
        for (folder, scale, sample) in [
            ("f", None, Sample::F32),
            ("w", Some(Scale { bits: 16, low: 0.0, high: 65535.0 }), Sample::U16),
            ("b", Some(Scale { bits: 8, low: 0.0, high: 255.0 }), Sample::U8),
        ] {
            let files = tiff_stack(dir.path(), &format!("a/{folder}"), 40, volume.view(), scale, &attributes).unwrap();
            assert_eq!(files[2].path, format!("a/{folder}/slice_00042.tif"));
            let path = dir.path().join(&files[2].path);
            assert_eq!(crate::formats::part::sha256_of(&path).unwrap(), files[2].sha256);
            assert_eq!(tiff::header(&path).unwrap(), (5, 7, sample));
            let mut out = vec![0.0; 35];
            tiff::read(&path, (5, 7, sample), &(0..5), &mut out).unwrap();
            let want: Vec<f32> = volume
                .index_axis(Axis(0), 2)
                .iter()
                .map(|v| v.min(if sample == Sample::U8 { 255.0 } else { 1e9 }))
                .collect();
            assert_eq!(out, want);
            let mut reader = ::tiff::decoder::Decoder::new(std::fs::File::open(&path).unwrap()).unwrap();
            let words = reader.get_tag_ascii_string(Tag::ImageDescription).unwrap();
            assert_eq!(words.contains("value = 0 + n * 1"), scale.is_some(), "{words}");
        }
    }
}
