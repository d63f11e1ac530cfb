//! Frames turned into rows: what the frame-order stage leaves for the tasks that work on detector rows.
//!
//! A file holds some frames, `[row, frame, column]`, so that any run of rows is one run of bytes; behind them a CRC-32 of
//! every row's bytes. Numbers are little-endian: u16 where the scan's are counts that fit, else f32, or f16 for whom its
//! eleven bits are enough.
//!
//! Contract
//! - Scratch is never the only copy of anything: it is not synced, and whatever is missing, short or changed in it is
//!   [`Found::Lost`], which the reader makes again from the scan. A full disk while writing is [`Fault::Storage`].
//! - Every attempt writes under its own name, below staging only, so that scratch goes where staging goes.

use super::stack::Sample;
use super::throttle;
use crate::technique::Fault;
use half::f16;
use half::slice::HalfFloatSliceExt;
use ndarray::{ArrayView3, ArrayViewMut3, Axis};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Rows written or read at a time are about this many bytes.
const RUN_BYTES: usize = 4 << 20;

/// How a number is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// Counts of a detector, exact.
    U16,
    /// Anything else.
    F32,
    /// To 11 bits; beyond ±65504 it is the nearest of the two.
    F16,
}

impl Kept {
    /// For numbers as a scan stores them.
    #[must_use]
    pub fn of(sample: Sample) -> Self {
        if matches!(sample, Sample::U8 | Sample::U16) { Self::U16 } else { Self::F32 }
    }

    /// Makes numbers what they are after writing and reading.
    pub fn round(self, mut data: ArrayViewMut3<'_, f32>) {
        if self == Self::F16 {
            data.par_mapv_inplace(|v| shortened(v).to_f32());
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::U16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Largest finite half.
const HALF_MAX: f32 = 65_504.0;

/// The nearest half; ends of the range instead of infinities.
fn shortened(v: f32) -> f16 {
    f16::from_f32(v.clamp(-HALF_MAX, HALF_MAX))
}

/// What a file holds; known to whoever reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Frames.
    pub frames: usize,
    /// Detector rows.
    pub rows: usize,
    /// Detector columns.
    pub columns: usize,
    /// How a number is kept.
    pub kept: Kept,
}

impl Shape {
    fn row_bytes(&self) -> usize {
        self.frames * self.columns * self.kept.bytes()
    }

    /// Bytes of the file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        (self.rows * (self.row_bytes() + 4)) as u64
    }
}

/// Did reading find what was written?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// All of it.
    Whole,
    /// Missing, short or changed: make it again.
    Lost,
}

/// Writes `[frame, row, column]` as `<staging>/<relative>`, in a folder that is made when it is not there.
///
/// # Errors
/// As [`Fault::writing`] sorts them.
pub fn write(staging: &Path, relative: &str, frames: ArrayView3<'_, f32>, kept: Kept) -> Result<Shape, Fault> {
    let (count, rows, columns) = frames.dim();
    let shape = Shape { frames: count, rows, columns, kept };
    let path = staging.join(relative);
    let failed = |e: std::io::Error| Fault::writing(&path, &e);
    if let Some(folder) = path.parent().filter(|f| *f != staging) {
        match std::fs::create_dir(folder) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(Fault::writing(folder, &e)),
            _ => {}
        }
    }
    let mut file = File::options().write(true).create_new(true).open(&path).map_err(failed)?;
    let result = fill(&mut file, frames, shape);
    if result.is_err() {
        let _ = std::fs::remove_file(&path);
    }
    result.map(|()| shape).map_err(failed)
}

fn fill(file: &mut File, frames: ArrayView3<'_, f32>, shape: Shape) -> std::io::Result<()> {
    let row_bytes = shape.row_bytes();
    let run = (RUN_BYTES / row_bytes.max(1)).clamp(1, shape.rows.max(1));
    let mut sums = Vec::with_capacity(shape.rows * 4);
    let mut bytes = Vec::with_capacity(run * row_bytes);
    for first in (0..shape.rows).step_by(run) {
        bytes.clear();
        for row in first..(first + run).min(shape.rows) {
            let start = bytes.len();
            for line in frames.index_axis(Axis(1), row).outer_iter() {
                match shape.kept {
                    Kept::U16 => bytes.extend(line.iter().flat_map(|&v| (v as u16).to_le_bytes())),
                    Kept::F32 => bytes.extend(line.iter().flat_map(|v| v.to_le_bytes())),
                    Kept::F16 => bytes.extend(line.iter().flat_map(|&v| shortened(v).to_le_bytes())),
                }
            }
            sums.extend(crc32fast::hash(bytes.get(start..).unwrap_or(&[])).to_le_bytes());
        }
        throttle::take(bytes.len());
        file.write_all(&bytes)?;
    }
    file.write_all(&sums)
}

/// Reads `rows` of every frame into `out`, `[frame, row, column]`.
///
/// # Errors
/// [`Fault::Storage`] when the filesystem fails. What is not there is no error.
pub fn read(path: &Path, shape: Shape, rows: &Range<usize>, mut out: ArrayViewMut3<'_, f32>) -> Result<Found, Fault> {
    let lost = |e: std::io::Error| match e.kind() {
        ErrorKind::NotFound | ErrorKind::UnexpectedEof => Ok(Found::Lost),
        _ => Err(Fault::writing(path, &e)),
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) => return lost(e),
    };
    match file.metadata() {
        Ok(meta) if meta.len() == shape.file_bytes() => {}
        Ok(_) => return Ok(Found::Lost),
        Err(e) => return lost(e),
    }
    if rows.end > shape.rows || out.dim() != (shape.frames, rows.len(), shape.columns) {
        return Err(Fault::Task(format!("{}: rows {rows:?} of {shape:?} were asked for", path.display())));
    }
    let row_bytes = shape.row_bytes();
    let mut sums = vec![0u8; rows.len() * 4];
    if let Err(e) = file.read_exact_at(&mut sums, (shape.rows * row_bytes + rows.start * 4) as u64) {
        return lost(e);
    }
    let sums = sums.as_chunks::<4>().0;
    let run = (RUN_BYTES / row_bytes.max(1)).clamp(1, rows.len().max(1));
    let mut bytes = Vec::new();
    let mut halves = Vec::new();
    for first in rows.clone().step_by(run) {
        let last = (first + run).min(rows.end);
        bytes.resize((last - first) * row_bytes, 0);
        throttle::take(bytes.len());
        if let Err(e) = file.read_exact_at(&mut bytes, (first * row_bytes) as u64) {
            return lost(e);
        }
        for (row, bytes) in (first..last).zip(bytes.chunks(row_bytes.max(1))) {
            let at = row - rows.start;
            if sums.get(at).is_none_or(|sum| crc32fast::hash(bytes) != u32::from_le_bytes(*sum)) {
                return Ok(Found::Lost);
            }
            let lines = bytes.chunks(shape.columns * shape.kept.bytes());
            for (mut to, line) in out.index_axis_mut(Axis(1), at).outer_iter_mut().zip(lines) {
                match shape.kept {
                    Kept::U16 => to
                        .iter_mut()
                        .zip(line.as_chunks::<2>().0)
                        .for_each(|(o, b)| *o = f32::from(u16::from_le_bytes(*b))),
                    Kept::F32 => {
                        to.iter_mut().zip(line.as_chunks::<4>().0).for_each(|(o, b)| *o = f32::from_le_bytes(*b));
                    }
                    Kept::F16 => {
                        halves.clear();
                        halves.extend(line.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b)));
                        match to.as_slice_mut() {
                            // Eight at a time where the processor can.
                            Some(to) if to.len() == halves.len() => halves.convert_to_f32_slice(to),
                            _ => to.iter_mut().zip(&halves).for_each(|(o, h)| *o = h.to_f32()),
                        }
                    }
                }
            }
        }
    }
    Ok(Found::Whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array3, s};

    #[test]
    fn rows_come_back_and_lost_scratch_is_known_as_lost() {
        let dir = tempfile::tempdir().unwrap();
        let data = Array3::from_shape_fn((5, 7, 9), |(f, r, c)| (f * 1000 + r * 50 + c) as f32);
        let mut halves = &data * 0.001 - 2.0;
        halves[[0, 0, 0]] = 1e9;
        halves[[1, 2, 3]] = 3e-7;
        let before = halves.clone();
        Kept::F16.round(halves.view_mut());
        for (rounded, v) in halves.iter().zip(&before) {
            let bound = (v.abs() / 2048.0).max(2_f32.powi(-25));
            assert!((rounded - v).abs() <= bound || (*v, *rounded) == (1e9, HALF_MAX), "{v} {rounded}");
        }
        let kinds = [("u", Kept::U16, data.clone()), ("f", Kept::F32, data * 0.37 - 5.0), ("h", Kept::F16, halves)];
        for (name, kept, data) in kinds {
            let relative = format!("scratch/{name}.raw");
            let shape = write(dir.path(), &relative, data.view(), kept).unwrap();
            let path = dir.path().join(&relative);
            assert_eq!(path.metadata().unwrap().len(), shape.file_bytes());
            for rows in [0..7, 2..3, 4..7] {
                let mut out = Array3::zeros((5, rows.len(), 9));
                assert_eq!(read(&path, shape, &rows, out.view_mut()).unwrap(), Found::Whole);
                assert_eq!(out, data.slice(s![.., rows, ..]));
            }
            // One byte of one row: that row is lost, the others are not.
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(&[0xee], (3 * shape.row_bytes() + 1) as u64).unwrap();
            let mut out = Array3::zeros((5, 1, 9));
            assert_eq!(read(&path, shape, &(3..4), out.view_mut()).unwrap(), Found::Lost);
            assert_eq!(read(&path, shape, &(2..3), out.view_mut()).unwrap(), Found::Whole);
            file.set_len(shape.file_bytes() - 1).unwrap();
            assert_eq!(read(&path, shape, &(2..3), out.view_mut()).unwrap(), Found::Lost);
            std::fs::remove_file(&path).unwrap();
            assert_eq!(read(&path, shape, &(2..3), out.view_mut()).unwrap(), Found::Lost);
            // Nothing is written over, and staging that is gone is not made again.
            assert!(write(&dir.path().join("gone"), "scratch/x.raw", data.view(), kept).is_err());
        }
    }
}
