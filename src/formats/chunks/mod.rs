//! Chunked data read without the HDF5 library: `pread` of stored chunks, filters undone on all cores.
//!
//! The library decompresses one chunk at a time behind its one lock. Here it is asked once where the chunks lie
//! ([`index`]); after that, a few threads read stored chunks and the rayon pool turns them into pixels.
//!
//! Contract
//! - What comes out is what the library would give, bit for bit.
//! - A chunk is decoded once per call, whatever it contributes. Chunks without filters are not read whole: only the rows
//!   that are wanted.
//! - Memory: at most [`IN_FLIGHT`] bytes (or one chunk) of stored chunks, and one decoded chunk per thread.
//! - A chunk that cannot be decoded is [`Fault::Input`] naming file, dataset and chunk; it is the file that is damaged.

#[cfg(target_arch = "x86_64")]
mod avx2;
pub(crate) mod bitshuffle;
pub(crate) mod codecs;
pub(crate) mod index;
pub(crate) mod pipeline;
#[cfg(test)]
mod tests;

use super::stack::Sample;
use super::throttle;
use crate::technique::Fault;
use crossbeam::channel::{Receiver, TryRecvError};
use index::Entry;
use pipeline::{Pipeline, Scratch};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Threads that wait for `pread`.
const READERS: usize = 8;
/// Bytes of stored chunks held at a time.
const IN_FLIGHT: usize = 64 << 20;

/// A chunked dataset of frames, and where its chunks lie.
#[derive(Debug)]
pub(crate) struct Chunks {
    path: PathBuf,
    name: String,
    /// Frames, rows, columns.
    extent: [usize; 3],
    /// Of a chunk.
    shape: [usize; 3],
    /// Chunks along each axis.
    grid: [usize; 3],
    /// In the order of the grid, columns fastest.
    entries: Vec<Entry>,
    pipeline: Pipeline,
    sample: Sample,
}

/// Pixels wanted from one chunk.
struct Job<'a> {
    place: [usize; 3],
    entry: Entry,
    /// (position in the list, frame).
    frames: &'a [(usize, usize)],
}

/// Somewhere to write pixels from several threads.
#[derive(Clone, Copy)]
struct Target {
    base: *mut f32,
    length: usize,
}

// SAFETY: what is written through it from different threads never overlaps, see `Target::run`.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// # Safety
    /// No two runs that live at the same time overlap, and the slice behind `base` outlives them.
    unsafe fn run<'a>(self, start: usize, length: usize) -> Option<&'a mut [f32]> {
        if start.checked_add(length)? > self.length {
            return None;
        }
        // SAFETY: inside the slice; the caller promises the rest.
        Some(unsafe { std::slice::from_raw_parts_mut(self.base.add(start), length) })
    }
}

/// The next chunk read. While there is none, a thread of the pool decodes: it may be the pool's only one.
fn next_stored<T>(stored: &Receiver<T>) -> Option<T> {
    loop {
        match stored.try_recv() {
            Ok(next) => return Some(next),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) if rayon::yield_now() == Some(rayon::Yield::Executed) => {}
            // Whatever was handed to the pool is done or in other threads' hands: buffers come back, readers go on.
            Err(TryRecvError::Empty) => return stored.recv().ok(),
        }
    }
}

impl Chunks {
    /// Are the chunks packed, so that a row costs the whole chunk?
    pub fn packed(&self) -> bool {
        !self.pipeline.is_empty()
    }

    /// Reads `rows` of each of `frames` (all inside the extent) into `out`, `[frame, row, column]`; adds the number of
    /// chunks it decoded to `decoded`.
    ///
    /// # Errors
    /// By whose fault it is.
    pub fn read(
        &self,
        file: &File,
        frames: &[usize],
        rows: &Range<usize>,
        out: &mut [f32],
        decoded: &AtomicU64,
    ) -> Result<(), Fault> {
        let mut groups: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for (position, &frame) in frames.iter().enumerate() {
            groups.entry(frame / self.shape[0]).or_default().push((position, frame));
        }
        let bands = rows.start / self.shape[1]..rows.end.div_ceil(self.shape[1]);
        let mut jobs = Vec::new();
        for (&k, frames) in &groups {
            for r in bands.clone() {
                for c in 0..self.grid[2] {
                    let number = (k * self.grid[1] + r) * self.grid[2] + c;
                    let Some(&entry) = self.entries.get(number) else {
                        return Err(Fault::Task(format!("{}: rows {rows:?} lie outside", self.at([k, r, c]))));
                    };
                    jobs.push(Job { place: [k, r, c], entry, frames });
                }
            }
        }
        // In the order of the file: that is how disks like to be read.
        jobs.sort_by_key(|job| job.entry.address);
        let target = Target { base: out.as_mut_ptr(), length: out.len() };
        if self.packed() {
            self.read_packed(file, &jobs, rows, target, decoded)
        } else {
            self.read_plain(file, &jobs, rows, target)
        }
    }

    fn at(&self, place: [usize; 3]) -> String {
        format!("{}: {}: chunk {place:?}", self.path.display(), self.name)
    }

    /// Rows of the detector and of the chunk that a job wants, and its columns.
    fn wanted(&self, place: [usize; 3], rows: &Range<usize>) -> (Range<usize>, usize, usize) {
        let top = place[1] * self.shape[1];
        let wanted = rows.start.max(top)..rows.end.min(top + self.shape[1]);
        let left = place[2] * self.shape[2];
        (wanted, top, self.shape[2].min(self.extent[2] - left))
    }

    /// Where one row of one frame goes.
    ///
    /// # Safety
    /// As [`Target::run`]: a position, a row and a column belong to one chunk, and a chunk to one job at a time.
    unsafe fn place<'a>(
        &self,
        target: Target,
        rows: &Range<usize>,
        place: [usize; 3],
        position: usize,
        row: usize,
        columns: usize,
    ) -> Option<&'a mut [f32]> {
        let start = (position * rows.len() + row - rows.start) * self.extent[2] + place[2] * self.shape[2];
        // SAFETY: promised by the caller.
        unsafe { target.run(start, columns) }
    }

    fn read_packed(
        &self,
        file: &File,
        jobs: &[Job<'_>],
        rows: &Range<usize>,
        target: Target,
        decoded: &AtomicU64,
    ) -> Result<(), Fault> {
        let largest = jobs.iter().map(|j| j.entry.bytes).max().unwrap_or(1).max(1);
        // Every reader fills one, as many wait to be decoded.
        let readers = (IN_FLIGHT / largest / 2).clamp(1, READERS).min(jobs.len());
        let buffers = (2 * readers).max(readers + rayon::current_num_threads()).min(IN_FLIGHT.div_ceil(largest) + 1);
        let (empty, reuse) = crossbeam::channel::bounded::<Vec<u8>>(buffers);
        for _ in 0..buffers {
            let _ = empty.send(Vec::new());
        }
        let (full, stored) = crossbeam::channel::bounded::<(usize, Result<Vec<u8>, Fault>)>(buffers);
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let lock = || failed.lock().unwrap_or_else(PoisonError::into_inner);
        let scratches = Mutex::new(Vec::<Scratch>::new());
        std::thread::scope(|scope| {
            for _ in 0..readers {
                let (full, reuse, next) = (full.clone(), reuse.clone(), &next);
                scope.spawn(move || {
                    // A buffer is the permission to read: decoding that lags behind stops the readers.
                    while let Ok(mut bytes) = reuse.recv() {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(job) = jobs.get(i) else { return };
                        bytes.resize(job.entry.bytes, 0);
                        let got = self.fetch(file, &mut bytes, job.entry.address).map(|()| bytes);
                        if full.send((i, got)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop((full, reuse));
            // Decoding goes to the pool chunk by chunk: no thread of the pool waits for a disk.
            rayon::in_place_scope(|pool| {
                while let Some((i, bytes)) = next_stored(&stored) {
                    let bytes = match bytes {
                        Ok(bytes) if lock().is_none() => bytes,
                        Ok(_) => break,
                        Err(fault) => {
                            lock().get_or_insert(fault);
                            break;
                        }
                    };
                    let (empty, lock, scratches) = (empty.clone(), &lock, &scratches);
                    pool.spawn(move |_| {
                        let kept = || scratches.lock().unwrap_or_else(PoisonError::into_inner);
                        let mut scratch = kept().pop().unwrap_or_default();
                        let done =
                            jobs.get(i).map_or(Ok(()), |job| self.unpack(job, &bytes, rows, target, &mut scratch));
                        kept().push(scratch);
                        match done {
                            Ok(()) => _ = decoded.fetch_add(1, Ordering::Relaxed),
                            Err(fault) => _ = lock().get_or_insert(fault),
                        }
                        let _ = empty.try_send(bytes);
                    });
                }
            });
            // Readers that wait for a buffer end with the last sender.
            drop(empty);
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn fetch(&self, file: &File, bytes: &mut [u8], address: u64) -> Result<(), Fault> {
        throttle::take(bytes.len());
        file.read_exact_at(bytes, address).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Fault::InputChanged(self.path.clone()),
            _ => Fault::reading(&self.path, &e),
        })
    }

    fn unpack(
        &self,
        job: &Job<'_>,
        stored: &[u8],
        rows: &Range<usize>,
        target: Target,
        scratch: &mut Scratch,
    ) -> Result<(), Fault> {
        let [depth, height, width] = self.shape;
        let size = self.sample.bytes();
        self.pipeline.decode(job.entry.mask, stored, depth * height * width * size, scratch).map_err(|why| {
            Fault::Input(format!("{}: {why}; the file is damaged: write or transfer it again", self.at(job.place)))
        })?;
        let (wanted, top, columns) = self.wanted(job.place, rows);
        for &(position, frame) in job.frames {
            for row in wanted.clone() {
                let from = ((frame % depth * height) + row - top) * width * size;
                // SAFETY: this job alone has this chunk.
                let to = unsafe { self.place(target, rows, job.place, position, row, columns) };
                if let (Some(from), Some(to)) = (scratch.out.get(from..from + columns * size), to) {
                    self.sample.decode(from, to);
                }
            }
        }
        Ok(())
    }

    fn read_plain(&self, file: &File, jobs: &[Job<'_>], rows: &Range<usize>, target: Target) -> Result<(), Fault> {
        let [depth, height, width] = self.shape;
        let size = self.sample.bytes();
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), Fault> {
            let mut bytes = Vec::new();
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (wanted, top, columns) = self.wanted(job.place, rows);
                bytes.resize(wanted.len() * width * size, 0);
                for &(position, frame) in job.frames {
                    let skip = (frame % depth * height + wanted.start - top) * width * size;
                    self.fetch(file, &mut bytes, job.entry.address + skip as u64)?;
                    for (row, from) in wanted.clone().zip(bytes.chunks(width * size)) {
                        // SAFETY: this job alone has this chunk.
                        let to = unsafe { self.place(target, rows, job.place, position, row, columns) };
                        if let (Some(from), Some(to)) = (from.get(..columns * size), to) {
                            self.sample.decode(from, to);
                        }
                    }
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let started: Vec<_> = (0..READERS.min(jobs.len())).map(|_| scope.spawn(work)).collect();
            started.into_iter().try_for_each(|t| {
                t.join().unwrap_or_else(|_| Err(Fault::Task(format!("{}: a reading thread panicked", self.at([0; 3])))))
            })
        })
    }
}
