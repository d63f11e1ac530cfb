//! A stack of detector frames: one dataset `[frame, row, column]`, or a dataset or TIFF file for each frame; and the
//! fast ways to read parts of it.
//!
//! Contract
//! - Extents are checked against sane bounds before anything is allocated by them, and contiguous data
//!   against the size of its file.
//! - Contiguous, unfiltered, little-endian data is read with `pread` from several threads, without the HDF5
//!   library and its one lock; so is chunked data with filters that `chunks` knows. Everything else goes
//!   through the library by hyperslab, in batches of about `BATCH_BYTES`, so that the lock is never held for long.
//! - Values come out as f32, as stored: no scaling, no repair of NaN. u32 and f64 lose what f32 cannot hold.
//! - A row range and a list of frames may be any subset; frames come out in the order of the list.

use super::chunks::{Chunks, index, pipeline::Pipeline};
use super::convert::{self, Pixel};
use super::h5::{read_fault, short};
use super::links::Found;
use super::{throttle, tiff};
use crate::technique::Fault;
use hdf5::plist::dataset_create::Layout;
use hdf5::types::{FloatSize, IntSize, TypeDescriptor};
use hdf5::{Dataset, datatype::ByteOrder};
use ndarray::Ix3;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Threads that wait for `pread`. They mostly wait, so there may be more of them than cores; a parallel
/// filesystem needs several requests in flight to give its bandwidth.
const READERS: usize = 8;
/// One read through the library.
const BATCH_BYTES: usize = 32 << 20;
/// No detector has more pixels along a side.
pub(crate) const SIDE_MAX: usize = 1 << 17;
/// No scan has more frames.
pub(crate) const FRAMES_MAX: usize = 1 << 24;
/// The library decompresses whole chunks in memory.
const CHUNK_BYTES_MAX: usize = 1 << 30;

/// How a pixel is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sample {
    /// Unsigned, 1 byte.
    U8,
    /// Unsigned, 2 bytes: what most detectors write.
    U16,
    /// Unsigned, 4 bytes.
    U32,
    /// Signed, 2 bytes.
    I16,
    /// Signed, 4 bytes.
    I32,
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
}

impl Sample {
    /// Bytes of one pixel.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    fn of(descriptor: &TypeDescriptor) -> Option<Self> {
        Some(match descriptor {
            TypeDescriptor::Unsigned(IntSize::U1) => Self::U8,
            TypeDescriptor::Unsigned(IntSize::U2) => Self::U16,
            TypeDescriptor::Unsigned(IntSize::U4) => Self::U32,
            TypeDescriptor::Integer(IntSize::U2) => Self::I16,
            TypeDescriptor::Integer(IntSize::U4) => Self::I32,
            TypeDescriptor::Float(FloatSize::U4) => Self::F32,
            TypeDescriptor::Float(FloatSize::U8) => Self::F64,
            _ => return None,
        })
    }
}

/// Where the pixels lie in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// One run of bytes from this address.
    Contiguous(u64),
    /// Chunks of this shape, compressed or not.
    Chunked(Vec<usize>),
    /// Virtual, compact, or contiguous but big-endian: the library knows.
    Library,
}

/// A stack of frames, open for reading.
pub struct FrameStack {
    pixels: Pixels,
    file: PathBuf,
    name: String,
    /// Chunks and files decoded through this stack so far.
    decoded: AtomicU64,
    /// Frames in the stack.
    pub frames: usize,
    /// Detector rows.
    pub rows: usize,
    /// Detector columns.
    pub columns: usize,
    /// How a pixel is stored.
    pub sample: Sample,
    /// Where the pixels lie.
    pub storage: Storage,
}

enum Pixels {
    /// All frames in one dataset.
    Dataset(Set),
    /// A dataset for each frame.
    Datasets(Vec<FrameStack>),
    /// A TIFF file for each frame.
    Tiff(Vec<PathBuf>),
}

/// One dataset.
struct Set {
    dataset: Dataset,
    raw: Arc<File>,
    rank: usize,
    user_block: u64,
    little_endian: bool,
    /// Has filters.
    packed: bool,
    /// Asked for when it is needed first; `None` inside: the library must read.
    chunks: OnceLock<Option<Arc<Chunks>>>,
}

impl FrameStack {
    /// Checks a dataset found at `name`: rank 3, or rank 2 for a single frame.
    pub(crate) fn new(found: Found, name: &str) -> Result<Self, Fault> {
        let Found { h5, dataset } = found;
        let at = format!("{}: {name}", h5.path.display());
        let broken = |e: hdf5::Error| Fault::NotYet(format!("{at}: {}", short(&e)));
        let shape = dataset.get_shape().map_err(broken)?;
        let (frames, rows, columns) = match *shape.as_slice() {
            [frames, rows, columns] => (frames, rows, columns),
            [rows, columns] => (1, rows, columns),
            _ => {
                return Err(Fault::Input(format!(
                    "{at} has shape {shape:?}, expected [angle, row, column]; write projections as one stack of frames"
                )));
            }
        };
        if frames == 0 || rows == 0 || columns == 0 {
            return Err(Fault::NotYet(format!("{at} has shape {shape:?}: no frame is written yet")));
        }
        if frames > FRAMES_MAX || rows > SIDE_MAX || columns > SIDE_MAX {
            return Err(Fault::Input(format!(
                "{at} declares shape {shape:?}, more than {FRAMES_MAX} frames of {SIDE_MAX}×{SIDE_MAX} pixels; the file is damaged or no tomography scan"
            )));
        }
        let dtype = dataset.dtype().map_err(broken)?;
        let Some(sample) = dtype.to_descriptor().ok().as_ref().and_then(Sample::of) else {
            return Err(Fault::Input(format!(
                "{at} has pixels of a type that cannot be read; expected one of u8, u16, u32, i16, i32, f32, f64"
            )));
        };
        let plist = dataset.create_plist().map_err(broken)?;
        let filters = plist.filters();
        if !plist.all_filters_avail() && Pipeline::of(&filters, sample.bytes()).is_none() {
            return Err(Fault::Input(format!(
                "{at} is compressed with a filter this HDF5 library lacks ({:?}); install the plugin in HDF5_PLUGIN_PATH or write the data uncompressed",
                filters
            )));
        }
        let little = sample.bytes() == 1 || dtype.byte_order() == ByteOrder::LittleEndian;
        // At most 2^24 · 2^34 · 2^3 = 2^61: no overflow.
        let bytes = frames as u64 * rows as u64 * columns as u64 * sample.bytes() as u64;
        let storage = match plist.get_layout().map_err(broken)? {
            Layout::Contiguous => {
                let Some(offset) = dataset.offset() else {
                    return Err(Fault::NotYet(format!("{at}: its data is not written yet")));
                };
                if offset.checked_add(bytes).is_none_or(|end| end > h5.size) {
                    return Err(Fault::NotYet(format!(
                        "{at}: needs {bytes} bytes from {offset}, the file has {}: the rest is still to come",
                        h5.size
                    )));
                }
                if little { Storage::Contiguous(offset) } else { Storage::Library }
            }
            Layout::Chunked => {
                let chunk = dataset.chunk().unwrap_or_default();
                let chunk_bytes = chunk.iter().try_fold(sample.bytes(), |n, &c| n.checked_mul(c));
                if chunk_bytes.is_none_or(|n| n > CHUNK_BYTES_MAX) || chunk.contains(&0) {
                    return Err(Fault::Input(format!(
                        "{at} has chunks of {chunk:?}, more than {CHUNK_BYTES_MAX} bytes each; chunk by frame"
                    )));
                }
                Storage::Chunked(chunk)
            }
            Layout::Compact | Layout::Virtual => Storage::Library,
        };
        let set = Set {
            user_block: h5.file.create_plist().and_then(|p| p.get_userblock()).map_err(broken)?,
            dataset,
            raw: Arc::clone(&h5.raw),
            rank: shape.len(),
            little_endian: little,
            packed: !filters.is_empty(),
            chunks: OnceLock::new(),
        };
        let (pixels, file, name) = (Pixels::Dataset(set), h5.path.clone(), name.to_owned());
        Ok(Self { pixels, file, name, decoded: AtomicU64::new(0), frames, rows, columns, sample, storage })
    }

    /// One frame from each of `stacks`, all of one size and type; `name` is that of all of them, for messages.
    pub(crate) fn joined(stacks: Vec<Self>, name: &str) -> Result<Self, Fault> {
        let Some(first) = stacks.first() else {
            return Err(Fault::Input(format!("{name}: no frames")));
        };
        let (rows, columns, sample, file) = (first.rows, first.columns, first.sample, first.file.clone());
        for stack in &stacks {
            if (stack.frames, stack.rows, stack.columns, stack.sample) != (1, rows, columns, sample) {
                return Err(Fault::Input(format!(
                    "{}: {}×{}×{} pixels of {:?}, the first frame is 1×{rows}×{columns} of {sample:?}; frames must be alike",
                    stack.at(),
                    stack.frames,
                    stack.rows,
                    stack.columns,
                    stack.sample
                )));
            }
        }
        let (frames, storage) = (stacks.len(), Storage::Library);
        let (pixels, name) = (Pixels::Datasets(stacks), name.to_owned());
        Ok(Self { pixels, file, name, decoded: AtomicU64::new(0), frames, rows, columns, sample, storage })
    }

    /// One frame from each of some TIFF files, all of one size and type.
    pub(crate) fn tiff(files: Vec<PathBuf>, name: &str) -> Result<Self, Fault> {
        let Some(file) = files.first().cloned() else { return Err(Fault::Input(format!("{name}: no frames"))) };
        let (rows, columns, sample) = tiff::header(&file)?;
        let (frames, storage) = (files.len(), Storage::Library);
        let (pixels, name) = (Pixels::Tiff(files), name.to_owned());
        Ok(Self { pixels, file, name, decoded: AtomicU64::new(0), frames, rows, columns, sample, storage })
    }

    /// Rows that have to be decoded together to get at one of them; `None` when rows are read directly.
    #[must_use]
    pub fn packed_rows(&self) -> Option<usize> {
        match (&self.pixels, &self.storage) {
            (Pixels::Tiff(_), _) => Some(self.rows),
            (Pixels::Datasets(stacks), _) => stacks.first().and_then(Self::packed_rows),
            (Pixels::Dataset(set), Storage::Chunked(chunk)) if set.packed => chunk.iter().rev().nth(1).copied(),
            _ => None,
        }
    }

    /// Frames that have to be decoded together.
    #[must_use]
    pub fn packed_frames(&self) -> usize {
        match &self.storage {
            Storage::Chunked(chunk) => chunk.iter().rev().nth(2).copied().unwrap_or(1),
            _ => 1,
        }
    }

    /// Chunks and files decoded through this stack so far. What the HDF5 library decodes is not counted.
    #[must_use]
    pub fn decoded(&self) -> u64 {
        let own = self.decoded.load(Ordering::Relaxed);
        match &self.pixels {
            Pixels::Datasets(stacks) => stacks.iter().map(Self::decoded).sum::<u64>() + own,
            _ => own,
        }
    }

    /// `file: dataset`, for messages.
    #[must_use]
    pub fn at(&self) -> String {
        format!("{}: {}", self.file.display(), self.name)
    }

    /// The file the pixels lie in.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Bytes of one row of one frame, as stored.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        (self.columns * self.sample.bytes()) as u64
    }

    /// Are all chunks there? Walks the chunk index once.
    ///
    /// # Errors
    /// [`Fault::NotYet`] with how many are missing.
    pub fn check_allocated(&self) -> Result<(), Fault> {
        let set = match &self.pixels {
            Pixels::Dataset(set) => set,
            Pixels::Datasets(stacks) => return stacks.iter().try_for_each(Self::check_allocated),
            Pixels::Tiff(_) => return Ok(()),
        };
        let Storage::Chunked(chunk) = &self.storage else { return Ok(()) };
        let shape =
            if set.rank == 3 { vec![self.frames, self.rows, self.columns] } else { vec![self.rows, self.columns] };
        let expected = shape.iter().zip(chunk).fold(1usize, |n, (s, c)| n.saturating_mul(s.div_ceil(*c)));
        let got = set.dataset.num_chunks().unwrap_or(0);
        if got < expected {
            return Err(Fault::NotYet(format!("{}: {got} of {expected} chunks are written", self.at())));
        }
        Ok(())
    }

    /// Reads `rows` of each of `frames` into `out`, `[frame, row, column]` without gaps: as f32, or counts of one or two
    /// bytes as u16.
    ///
    /// # Errors
    /// Frames or rows outside the stack, and u16 for other pixels, are [`Fault::Task`]; the rest is sorted by whose fault it is.
    pub fn read<T: Pixel>(&self, frames: &[usize], rows: Range<usize>, out: &mut [T]) -> Result<(), Fault> {
        let pixels = rows.len() * self.columns;
        let in_range = rows.end <= self.rows && frames.iter().all(|&f| f < self.frames);
        if !in_range || out.len() != frames.len() * pixels {
            return Err(Fault::Task(format!("{}: rows {rows:?} of frames not in the stack were asked for", self.at())));
        }
        if !T::holds(self.sample) {
            return Err(Fault::Task(format!("{}: pixels of {:?} were asked for as counts", self.at(), self.sample)));
        }
        if pixels == 0 || frames.is_empty() {
            return Ok(());
        }
        match &self.pixels {
            Pixels::Dataset(set) => match self.storage {
                Storage::Contiguous(offset) => {
                    let frame_bytes = self.rows as u64 * self.row_bytes();
                    self.read_raw(&set.raw, |frame| offset + frame as u64 * frame_bytes, frames, &rows, out)
                }
                Storage::Chunked(ref chunk) => match self.chunks(set, chunk)? {
                    Some(chunks) => chunks.read(&set.raw, frames, &rows, out, &self.decoded),
                    None => self.read_library(set, frames, &rows, out),
                },
                Storage::Library => self.read_library(set, frames, &rows, out),
            },
            Pixels::Datasets(stacks) => {
                // Contiguous frames of one file are read as one stack would be.
                let contiguous = |stack: &Self| match (&stack.pixels, &stack.storage) {
                    (Pixels::Dataset(_), Storage::Contiguous(offset)) if stack.file == self.file => Some(*offset),
                    _ => None,
                };
                let offsets: Option<Vec<u64>> = stacks.iter().map(contiguous).collect();
                if let (Some(offsets), Some(Pixels::Dataset(set))) = (offsets, stacks.first().map(|s| &s.pixels)) {
                    let offset = |frame: usize| offsets.get(frame).copied().unwrap_or(0);
                    return self.read_raw(&set.raw, offset, frames, &rows, out);
                }
                frames.iter().zip(out.chunks_mut(pixels)).try_for_each(|(&frame, out)| {
                    stacks.get(frame).map_or(Ok(()), |stack| stack.read(&[0], rows.clone(), out))
                })
            }
            Pixels::Tiff(files) => {
                let one = |frame: usize, out: &mut [T]| {
                    let Some(file) = files.get(frame) else { return Ok(()) };
                    self.decoded.fetch_add(1, Ordering::Relaxed);
                    tiff::read(file, (self.rows, self.columns, self.sample), &rows, out)
                };
                self.in_parallel(frames, pixels, out, |frames, out| {
                    frames.iter().zip(out.chunks_mut(pixels)).try_for_each(|(&f, out)| one(f, out))
                })
            }
        }
    }

    /// The index of a chunked dataset.
    fn chunks(&self, set: &Set, chunk: &[usize]) -> Result<Option<Arc<Chunks>>, Fault> {
        if let Some(known) = set.chunks.get() {
            return Ok(known.clone());
        }
        let asked = index::Asked {
            path: &self.file,
            user_block: set.user_block,
            name: &self.name,
            dataset: &set.dataset,
            extent: [self.frames, self.rows, self.columns],
            chunk,
            sample: self.sample,
            little_endian: set.little_endian,
        };
        let made = index::of(&asked, &set.raw)?;
        Ok(set.chunks.get_or_init(|| made).clone())
    }

    /// `address`: where a frame begins in the file.
    fn read_raw<T: Pixel>(
        &self,
        raw: &File,
        address: impl Fn(usize) -> u64 + Sync,
        frames: &[usize],
        rows: &Range<usize>,
        out: &mut [T],
    ) -> Result<(), Fault> {
        let pixels = rows.len() * self.columns;
        let sample = self.sample;
        let wide = size_of_val(out) > convert::WIDE_BYTES;
        let one = |frame: usize, bytes: &mut [u8], out: &mut [T]| {
            let skip = rows.start as u64 * self.row_bytes();
            throttle::take(bytes.len());
            raw.read_exact_at(bytes, address(frame) + skip).map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => Fault::InputChanged(self.file.clone()),
                _ => Fault::reading(&self.file, &e),
            })?;
            T::convert(sample, bytes, out, wide);
            convert::settle();
            Ok(())
        };
        self.in_parallel(frames, pixels, out, |frames, out| {
            let mut bytes = vec![0u8; pixels * sample.bytes()];
            frames.iter().zip(out.chunks_mut(pixels)).try_for_each(|(&f, out)| one(f, &mut bytes, out))
        })
    }

    /// Shares frames, and their places of `pixels` in `out`, among reading threads.
    fn in_parallel<T: Pixel>(
        &self,
        frames: &[usize],
        pixels: usize,
        out: &mut [T],
        work: impl Fn(&[usize], &mut [T]) -> Result<(), Fault> + Sync,
    ) -> Result<(), Fault> {
        let readers = READERS.min(frames.len());
        let share = frames.len().div_ceil(readers);
        std::thread::scope(|scope| {
            let work = &work;
            let shares = frames.chunks(share).zip(out.chunks_mut(share * pixels));
            let work = shares.map(|(frames, out)| scope.spawn(move || work(frames, out)));
            let started: Vec<_> = work.collect();
            started.into_iter().try_for_each(|t| {
                t.join().unwrap_or_else(|_| Err(Fault::Task(format!("{}: a reading thread panicked", self.at()))))
            })
        })
    }

    fn read_library<T: Pixel>(
        &self,
        set: &Set,
        frames: &[usize],
        rows: &Range<usize>,
        out: &mut [T],
    ) -> Result<(), Fault> {
        let pixels = rows.len() * self.columns;
        let batch = (BATCH_BYTES / (pixels * self.sample.bytes()).max(1)).max(1);
        let mut done = 0;
        while let Some(&first) = frames.get(done) {
            let rest = frames.get(done..).unwrap_or(&[]);
            let run = rest.iter().take(batch).enumerate().take_while(|&(i, &f)| f == first + i).count();
            let to = out.get_mut(done * pixels..(done + run) * pixels).unwrap_or_default();
            throttle::take(to.len() * self.sample.bytes());
            self.hyperslab(set, first..first + run, rows, to).map_err(|e| read_fault(&e, &self.file, &self.name))?;
            done += run;
        }
        Ok(())
    }

    fn hyperslab<T: Pixel>(
        &self,
        set: &Set,
        frames: Range<usize>,
        rows: &Range<usize>,
        out: &mut [T],
    ) -> hdf5::Result<()> {
        macro_rules! read {
            ($t:ty) => {{
                let values: Vec<$t> = if set.rank == 3 {
                    set.dataset.read_slice::<$t, _, Ix3>((frames, rows.clone(), ..))?.into_raw_vec_and_offset().0
                } else {
                    set.dataset.read_slice_2d::<$t, _>((rows.clone(), ..))?.into_raw_vec_and_offset().0
                };
                out.iter_mut().zip(values).for_each(|(o, v)| *o = T::of(f64::from(v)));
            }};
        }
        match self.sample {
            Sample::U8 => read!(u8),
            Sample::U16 => read!(u16),
            Sample::I16 => read!(i16),
            Sample::U32 => read!(u32),
            Sample::I32 => read!(i32),
            Sample::F32 => read!(f32),
            Sample::F64 => read!(f64),
        }
        Ok(())
    }

    /// Is every pixel of the frame 0? Looks at the middle row first.
    pub(crate) fn is_blank(&self, frame: usize) -> Result<bool, Fault> {
        let middle = self.rows / 2;
        let mut row = vec![0f32; self.columns];
        self.read(&[frame], middle..middle + 1, &mut row)?;
        if row.iter().any(|&v| v != 0.0) {
            return Ok(false);
        }
        let strip = (BATCH_BYTES / (4 * self.columns)).clamp(1, self.rows);
        for start in (0..self.rows).step_by(strip) {
            let end = (start + strip).min(self.rows);
            let mut pixels = vec![0f32; (end - start) * self.columns];
            self.read(&[frame], start..end, &mut pixels)?;
            if pixels.iter().any(|&v| v != 0.0) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Refuses flats or darks of another size than the projections.
pub(crate) fn same_shape(what: &str, stack: &FrameStack, rows: usize, columns: usize) -> Result<(), Fault> {
    if (stack.rows, stack.columns) == (rows, columns) {
        return Ok(());
    }
    Err(Fault::Input(format!(
        "{}: {what} frames are {}×{} pixels, the projections {rows}×{columns}; take them with the same detector region",
        stack.at(),
        stack.rows,
        stack.columns
    )))
}
