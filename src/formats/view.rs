//! A part of the detector, and pixels joined to larger ones: frames as they are to be read.
//!
//! A view takes some columns and the rows from some row on, and makes one pixel the mean of `bin.0 × bin.1` stored ones
//! (columns × rows). Projections, flats and darks are shown through the same view, so joined pixels are means of counts on all
//! of them, before any other step. What does not fill a whole pixel at the end is left out.
//!
//! Contract
//! - A mean with a NaN in it is NaN: a partial mean would weigh the pixels of projection and flat differently.
//! - Sums of up to 256 16-bit counts are exact in f32; the mean is the nearest f32.
//! - Memory: stored frames are held a few at a time, [`PIECE_BYTES`] as f32 or, where more have to be decoded together, those
//!   of one chunk. A chunk is decoded once per call, whatever its frames.

use super::stack::FrameStack;
use crate::technique::Fault;
use rayon::prelude::*;
use std::ops::Range;

/// Stored frames held at a time, as f32.
pub const PIECE_BYTES: usize = 32 << 20;

/// What is read of every frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// First and last stored row, the last not included.
    pub rows: Range<usize>,
    /// First and last stored column, the last not included.
    pub columns: Range<usize>,
    /// Stored pixels that become one, along a row and along a column.
    pub bin: (usize, usize),
}

impl View {
    /// Rows and columns of a frame seen through it.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.rows.len() / self.bin.1.max(1), self.columns.len() / self.bin.0.max(1))
    }

    /// Stored rows that these rows of the view are made of.
    #[must_use]
    pub fn stored_rows(&self, rows: &Range<usize>) -> Range<usize> {
        self.rows.start + rows.start * self.bin.1..self.rows.start + rows.end * self.bin.1
    }

    /// Stored frames to read together: whole chunks, of about [`PIECE_BYTES`].
    fn pieces(stack: &FrameStack, frames: &[usize], rows: usize) -> Vec<Range<usize>> {
        let most = PIECE_BYTES / (4 * rows * stack.columns).max(1);
        let chunk = stack.packed_frames().max(1);
        let mut pieces = Vec::new();
        let mut start = 0;
        for (i, pair) in frames.windows(2).enumerate() {
            let together = matches!(pair, [a, b] if a / chunk == b / chunk);
            if i + 1 - start >= most.max(1) && !together {
                pieces.push(start..i + 1);
                start = i + 1;
            }
        }
        pieces.push(start..frames.len());
        pieces
    }

    /// Most bytes that reading `rows` of a view's rows holds beside what it fills.
    #[must_use]
    pub fn held_bytes(&self, stack: &FrameStack, rows: usize) -> u64 {
        let one = 4 * (rows * self.bin.1 * stack.columns) as u64;
        (PIECE_BYTES as u64).max(one * stack.packed_frames().max(1) as u64)
    }

    /// Reads `rows` of the view of each of `frames` into `out`, `[frame, row, column]` without gaps.
    ///
    /// # Errors
    /// As [`FrameStack::read`].
    pub fn read(
        &self,
        stack: &FrameStack,
        frames: &[usize],
        rows: &Range<usize>,
        out: &mut [f32],
    ) -> Result<(), Fault> {
        let (height, width) = self.shape();
        let pixels = rows.len() * width;
        if rows.end > height || self.columns.end > stack.columns || out.len() != frames.len() * pixels {
            return Err(Fault::Task(format!("{}: rows {rows:?} of {self:?} were asked for", stack.at())));
        }
        if pixels == 0 {
            return Ok(());
        }
        let stored = self.stored_rows(rows);
        let frame = stored.len() * stack.columns;
        let mut raw = Vec::new();
        for piece in Self::pieces(stack, frames, stored.len()) {
            let (Some(frames), Some(out)) =
                (frames.get(piece.clone()), out.get_mut(piece.start * pixels..piece.end * pixels))
            else {
                continue;
            };
            raw.resize(frames.len() * frame, 0.0);
            stack.read(frames, stored.clone(), &mut raw)?;
            raw.par_chunks(frame).zip(out.par_chunks_mut(pixels)).for_each(|(raw, out)| {
                let groups = raw.chunks_exact(self.bin.1 * stack.columns).zip(out.chunks_exact_mut(width));
                groups.for_each(|(lines, out)| self.join(lines, stack.columns, out));
            });
        }
        Ok(())
    }

    /// One row of the view from the `bin.1` stored rows in `lines`, of `columns` each.
    fn join(&self, lines: &[f32], columns: usize, out: &mut [f32]) {
        let (across, down) = self.bin;
        let used = |line: &'_ [f32]| -> Range<usize> { self.columns.start..self.columns.end.min(line.len()) };
        let cut = |line| <[f32]>::get(line, used(line)).unwrap_or(&[]);
        if (across, down) == (1, 1) {
            out.copy_from_slice(cut(lines).get(..out.len()).unwrap_or(&[]));
            return;
        }
        out.fill(0.0);
        for line in lines.chunks_exact(columns) {
            for (sum, block) in out.iter_mut().zip(cut(line).chunks_exact(across)) {
                *sum += block.iter().sum::<f32>();
            }
        }
        let count = (across * down) as f32;
        out.iter_mut().for_each(|v| *v /= count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::open;
    use ndarray::{Array3, s};

    /// A scan of 21 frames of 10 × 23 pixels, stored in chunks of `chunk` frames, or contiguously.
    fn scan(dir: &std::path::Path, chunk: Option<usize>) -> (std::path::PathBuf, Array3<u16>) {
        let data = Array3::from_shape_fn((21, 10, 23), |(f, r, c)| (f * 301 + r * 37 + c * c) as u16);
        let path = dir.join(format!("{chunk:?}.h5"));
        let file = hdf5::File::create(&path).unwrap();
        let builder = file.new_dataset_builder();
        let made = match chunk {
            Some(n) => builder.chunk((n, 10, 23)).deflate(1).with_data(&data).create("/exchange/data"),
            None => builder.with_data(&data).create("/exchange/data"),
        };
        made.unwrap();
        let flat = Array3::from_elem((2, 10, 23), 60_000_u16);
        file.new_dataset_builder().with_data(&flat).create("/exchange/data_white").unwrap();
        file.close().unwrap();
        (path, data)
    }

    #[test]
    fn pixels_are_means_of_stored_ones_and_the_rest_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        for chunk in [None, Some(1), Some(4)] {
            let (path, data) = scan(dir.path(), chunk);
            for (rows, columns, bin) in
                [(0..10, 0..23, (1, 1)), (0..10, 3..22, (1, 1)), (1..10, 2..23, (4, 2)), (0..10, 5..8, (3, 5))]
            {
                let mut source = open(&path, dir.path()).unwrap();
                let view = View { rows: rows.clone(), columns: columns.clone(), bin };
                source.look_through(&view);
                let (height, width) = view.shape();
                assert_eq!((source.header.rows, source.header.columns), (height, width));
                assert_eq!((height, width), (rows.len() / bin.1, columns.len() / bin.0));
                let got = source.projections.read_rows(1..height).unwrap();
                let want = Array3::from_shape_fn((21, height - 1, width), |(f, r, c)| {
                    let (top, left) = (rows.start + (r + 1) * bin.1, columns.start + c * bin.0);
                    let block = data.slice(s![f, top..top + bin.1, left..left + bin.0]);
                    block.iter().map(|&v| f32::from(v)).sum::<f32>() / block.len() as f32
                });
                let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs() / w.max(1.0)).fold(0.0, f32::max);
                assert!(worst <= f32::EPSILON, "{chunk:?} {view:?}: {worst}");
                // Whatever is joined, a chunk is decoded once.
                let chunks = chunk.map_or(0, |n| 21_u64.div_ceil(n as u64));
                assert_eq!(source.projections.stack.decoded(), chunks);
                assert!(source.flats_before.unwrap().read_rows(0..height).unwrap().iter().all(|&v| v == 60_000.0));
            }
        }
    }

    #[test]
    fn pieces_end_between_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = scan(dir.path(), Some(4));
        let source = open(&path, dir.path()).unwrap();
        let stack = &source.projections.stack;
        let frames: Vec<usize> = (0..21).step_by(3).collect();
        // Frames so tall that not two fit: then a chunk's.
        assert_eq!(View::pieces(stack, &frames, PIECE_BYTES), [0..2, 2..3, 3..4, 4..6, 6..7]);
        assert_eq!(View::pieces(stack, &frames, 10), std::iter::once(0..7).collect::<Vec<_>>());
    }

    #[test]
    fn a_mean_with_a_nan_is_none() {
        let view = View { rows: 0..2, columns: 0..4, bin: (2, 2) };
        let mut out = [0.0; 2];
        view.join(&[1.0, f32::NAN, 2.0, 4.0, 1.0, 1.0, 6.0, 8.0], 4, &mut out);
        assert!(out[0].is_nan() && out[1] == 5.0, "{out:?}");
    }
}
