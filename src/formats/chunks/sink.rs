//! Where the pixels of a chunk go: bytes come out of a filter in pieces, and each piece is turned into numbers at once, in
//! the place where they are wanted, while it lies in the innermost cache.

use crate::formats::convert::Pixel;
use crate::formats::stack::Sample;
use std::ops::Range;

/// Takes the bytes of a decoded chunk, in pieces of whole pixels, in any order.
pub(crate) trait Pieces {
    /// Is any byte of this range of the chunk of use?
    fn wants(&self, bytes: Range<usize>) -> bool;
    /// The chunk's bytes from `at` on.
    fn put(&mut self, at: usize, bytes: &[u8]);
}

/// The whole chunk, for tests and for filters behind which another one stands.
impl Pieces for Vec<u8> {
    fn wants(&self, _: Range<usize>) -> bool {
        true
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if at == self.len() {
            return self.extend_from_slice(bytes);
        }
        self.resize(self.len().max(at + bytes.len()), 0);
        if let Some(to) = self.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    }
}

/// Somewhere to write numbers from several threads.
pub(super) struct Target<T> {
    base: *mut T,
    length: usize,
}

impl<T> Clone for Target<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Target<T> {}

// SAFETY: what is written through it from different threads never overlaps, see `Target::run`.
unsafe impl<T: Send> Send for Target<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Target<T> {}

impl<T> Target<T> {
    /// Of a slice that nobody else uses while this is used.
    pub fn of(out: &mut [T]) -> Self {
        Self { base: out.as_mut_ptr(), length: out.len() }
    }

    /// Bytes of all of it.
    pub fn bytes(&self) -> usize {
        self.length * size_of::<T>()
    }

    /// # Safety
    /// No two runs that live at the same time overlap, and the slice behind `base` outlives them.
    unsafe fn run<'a>(self, start: usize, length: usize) -> Option<&'a mut [T]> {
        if start.checked_add(length)? > self.length {
            return None;
        }
        // SAFETY: inside the slice; the caller promises the rest.
        Some(unsafe { std::slice::from_raw_parts_mut(self.base.add(start), length) })
    }
}

/// Pixels of one chunk on their way into a stack `[position, row, column]`.
pub(super) struct Sink<'a, T> {
    /// Frames, rows and columns of the chunk.
    pub shape: [usize; 3],
    pub sample: Sample,
    /// (frame within the chunk, position in the stack), in the order of the frames.
    pub frames: &'a [(usize, usize)],
    /// Wanted, counted within the chunk; the stack's first row is `skip` rows before the first of them.
    pub rows: Range<usize>,
    pub skip: usize,
    /// Of the chunk's columns those inside the frame.
    pub columns: usize,
    /// First column within the frame.
    pub left: usize,
    /// Rows and columns of the stack.
    pub extent: (usize, usize),
    pub target: Target<T>,
    /// See [`crate::formats::convert`].
    pub wide: bool,
}

impl<T: Pixel> Sink<'_, T> {
    /// Positions of a frame of the chunk.
    fn positions(&self, frame: usize) -> &[(usize, usize)] {
        let start = self.frames.partition_point(|(f, _)| *f < frame);
        let rest = self.frames.get(start..).unwrap_or(&[]);
        &rest[..rest.partition_point(|(f, _)| *f == frame)]
    }

    /// Bytes of rows that follow each other, of a chunk as wide as the frame: `from` the row and column `(row, column)` on.
    ///
    /// # Safety
    /// Nobody else writes to this chunk's part of the stack at the same time.
    unsafe fn convert(&self, frame: usize, row: usize, column: usize, bytes: &[u8]) {
        let pixels = bytes.len() / self.sample.bytes();
        for &(_, position) in self.positions(frame) {
            let at = position * self.extent.0 + self.skip + row - self.rows.start;
            let start = at * self.extent.1 + self.left + column;
            // SAFETY: positions differ, so that runs do; the caller promises the rest.
            if let Some(to) = unsafe { self.target.run(start, pixels) } {
                T::convert(self.sample, bytes, to, self.wide);
            }
        }
    }
}

impl<T: Pixel> Pieces for Sink<'_, T> {
    fn wants(&self, bytes: Range<usize>) -> bool {
        let (width, frame) = (self.shape[2], self.shape[1] * self.shape[2]);
        let (start, end) = (bytes.start / self.sample.bytes(), bytes.end.div_ceil(self.sample.bytes()));
        (start / frame..end.div_ceil(frame)).any(|f| {
            let first = f * frame + self.rows.start * width;
            let last = f * frame + self.rows.end * width;
            start.max(first) < end.min(last) && !self.positions(f).is_empty()
        })
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let size = self.sample.bytes();
        let [_, height, width] = self.shape;
        // Rows that lie side by side in the chunk do so in the stack, too.
        let joined = self.columns == width && self.extent.1 == width;
        let (mut pixel, end) = (at / size, (at + bytes.len()) / size);
        while pixel < end {
            let frame = pixel / (height * width);
            let (row, column) = (pixel / width % height, pixel % width);
            let first = frame * height * width;
            if row < self.rows.start {
                pixel = first + self.rows.start * width;
            } else if row >= self.rows.end {
                pixel = first + height * width;
            } else if column >= self.columns {
                pixel += width - column;
            } else {
                let last = if joined { first + self.rows.end * width } else { pixel - column + self.columns };
                let last = last.min(end);
                if let Some(run) = bytes.get(pixel * size - at..last * size - at) {
                    // SAFETY: a sink alone has its chunk, and chunks share no place of the stack.
                    unsafe { self.convert(frame, row, column, run) };
                }
                pixel = last;
            }
        }
    }
}
