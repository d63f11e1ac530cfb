//! Chunked data read without the HDF5 library: `pread` of stored chunks, filters undone on all cores.
//!
//! The library decompresses one chunk at a time behind its one lock. Here it is asked once where the chunks lie
//! ([`index`]); after that, some threads read stored chunks and turn them into pixels. As many of them as the rayon pool
//! has threads do so at a time, the others wait for a filesystem. Filters hand bytes on in pieces of some KiB, which become
//! numbers in their final place at once: nothing as large as a chunk is written and read again on the way, where the filter
//! allows it.
//!
//! Contract
//! - What comes out is what the library would give, bit for bit.
//! - A chunk is decoded once per call, whatever it contributes; of its blocks only those with wanted rows. Chunks without
//!   filters are not read whole: only the rows that are wanted.
//! - Memory: at most [`IN_FLIGHT`] bytes (or one chunk) of stored chunks that wait, and one stored and one decoded chunk per
//!   thread of the pool.
//! - A chunk that cannot be decoded is [`Fault::Input`] naming file, dataset and chunk; it is the file that is damaged.

#[cfg(target_arch = "x86_64")]
mod avx2;
pub(crate) mod bitshuffle;
mod blosc;
pub(crate) mod codecs;
#[cfg(target_arch = "x86_64")]
mod gfni;
pub(crate) mod index;
mod lz4;
pub(crate) mod pipeline;
pub(crate) mod sink;
#[cfg(test)]
mod tests;

use super::convert::{self, Pixel};
use super::stack::Sample;
use super::throttle;
use crate::technique::Fault;
use crossbeam::channel::Sender;
use index::Entry;
use pipeline::{Pipeline, Scratch};
use sink::{Pieces, Sink, Target};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Threads that wait for `pread`.
const READERS: usize = 8;
/// Bytes of stored chunks held at a time.
const IN_FLIGHT: usize = 64 << 20;
/// Buffers for larger chunks are not kept.
const KEPT_BYTES: usize = 16 << 20;
/// Reading faster than this, bytes per second, is copying out of the page cache: a processor's work.
const CACHED: f64 = 1.5e9;

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
    /// (frame within the chunk, position in the list), in the order of the frames.
    frames: &'a [(usize, usize)],
}

/// Buffers of who decodes; the next call uses them again, so that their pages are not made anew for each.
#[derive(Default)]
struct Desk {
    stored: Vec<u8>,
    scratch: Scratch,
}

static DESKS: Mutex<Vec<Desk>> = Mutex::new(Vec::new());

impl Desk {
    fn kept() -> Self {
        DESKS.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Keeps at most `most`, and none of unusually large chunks.
    fn keep(desks: impl Iterator<Item = Self>, most: usize) {
        let mut kept = DESKS.lock().unwrap_or_else(PoisonError::into_inner);
        for desk in desks.filter(|d| d.stored.capacity() <= KEPT_BYTES) {
            if kept.len() < most {
                kept.push(desk);
            }
        }
    }
}

/// Who holds one may use a core: to decode, and to read what is in the page cache. It goes back when it is dropped.
struct Permit<'a> {
    desk: Desk,
    give: &'a Sender<Desk>,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let _ = self.give.try_send(std::mem::take(&mut self.desk));
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
    pub fn read<T: Pixel>(
        &self,
        file: &File,
        frames: &[usize],
        rows: &Range<usize>,
        out: &mut [T],
        decoded: &AtomicU64,
    ) -> Result<(), Fault> {
        let depth = self.shape[0];
        let mut groups: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for (position, &frame) in frames.iter().enumerate() {
            groups.entry(frame / depth).or_default().push((frame % depth, position));
        }
        groups.values_mut().for_each(|frames| frames.sort_unstable());
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
        let target = Target::of(out);
        if self.packed() {
            self.read_packed(file, &jobs, rows, target, decoded)
        } else {
            self.read_plain(file, &jobs, rows, target)
        }
    }

    fn at(&self, place: [usize; 3]) -> String {
        format!("{}: {}: chunk {place:?}", self.path.display(), self.name)
    }

    /// Where the pixels of a job go.
    fn sink<'a, T>(&self, job: &Job<'a>, rows: &Range<usize>, target: Target<T>) -> Sink<'a, T> {
        let (top, left) = (job.place[1] * self.shape[1], job.place[2] * self.shape[2]);
        let wanted = rows.start.max(top)..rows.end.min(top + self.shape[1]);
        Sink {
            shape: self.shape,
            sample: self.sample,
            frames: job.frames,
            rows: wanted.start - top..wanted.end - top,
            skip: wanted.start - rows.start,
            columns: self.shape[2].min(self.extent[2] - left),
            left,
            extent: (rows.len(), self.extent[2]),
            target,
            wide: target.bytes() > convert::WIDE_BYTES,
        }
    }

    fn read_packed<T: Pixel>(
        &self,
        file: &File,
        jobs: &[Job<'_>],
        rows: &Range<usize>,
        target: Target<T>,
        decoded: &AtomicU64,
    ) -> Result<(), Fault> {
        let largest = jobs.iter().map(|j| j.entry.bytes).max().unwrap_or(1).max(1);
        let decoders = rayon::current_num_threads();
        let threads = (READERS + decoders).min(IN_FLIGHT / largest).min(jobs.len()).max(1);
        let (give, desks) = crossbeam::channel::bounded(decoders);
        (0..decoders).for_each(|_| drop(give.send(Desk::kept())));
        let permit = || desks.recv().ok().map(|desk| Permit { desk, give: &give });
        // What is in the page cache is read by whoever decodes it, into a buffer that is still in its core's cache.
        let (next, cached) = (AtomicUsize::new(0), AtomicBool::new(true));
        let work = || -> Result<(), Fault> {
            let mut own = Vec::new();
            loop {
                let mut held = if cached.load(Ordering::Relaxed) { permit() } else { None };
                let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) else { return Ok(()) };
                let start = Instant::now();
                let stored = held.as_mut().map_or(&mut own, |permit| &mut permit.desk.stored);
                if stored.len() < largest {
                    stored.resize(largest, 0);
                }
                let read = self.fetch(file, stored.get_mut(..job.entry.bytes).unwrap_or_default(), job.entry.address);
                cached.store(start.elapsed().as_secs_f64() * CACHED < job.entry.bytes as f64, Ordering::Relaxed);
                let done = read.and_then(|()| {
                    if held.is_none() {
                        held = permit();
                        held.iter_mut().for_each(|permit| std::mem::swap(&mut permit.desk.stored, &mut own));
                    }
                    // The channel lives as long as its permits: there was one to wait for.
                    let Some(Permit { desk: Desk { stored, scratch }, .. }) = &mut held else { return Ok(()) };
                    let stored = stored.get(..job.entry.bytes).unwrap_or(&[]);
                    self.unpack(job, stored, scratch, self.sink(job, rows, target))
                });
                if done.is_err() {
                    // For all: there is nothing more to do.
                    next.store(jobs.len(), Ordering::Relaxed);
                    return done;
                }
                decoded.fetch_add(1, Ordering::Relaxed);
            }
        };
        let done = self.on_threads(threads, work);
        Desk::keep(desks.try_iter(), decoders);
        done
    }

    /// The same on several threads; the first fault counts.
    fn on_threads(&self, threads: usize, work: impl Fn() -> Result<(), Fault> + Sync) -> Result<(), Fault> {
        let panicked = || Fault::Task(format!("{}: a reading thread panicked", self.at([0; 3])));
        std::thread::scope(|scope| {
            let started: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
            started.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(panicked()))).fold(Ok(()), Result::and)
        })
    }

    fn fetch(&self, file: &File, bytes: &mut [u8], address: u64) -> Result<(), Fault> {
        throttle::take(bytes.len());
        file.read_exact_at(bytes, address).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Fault::InputChanged(self.path.clone()),
            _ => Fault::reading(&self.path, &e),
        })
    }

    fn unpack<T: Pixel>(
        &self,
        job: &Job<'_>,
        stored: &[u8],
        scratch: &mut Scratch,
        mut sink: Sink<'_, T>,
    ) -> Result<(), Fault> {
        let bytes = self.shape.iter().product::<usize>() * self.sample.bytes();
        let done = self.pipeline.decode(job.entry.mask, stored, bytes, scratch, &mut sink);
        convert::settle();
        done.map_err(|why| {
            Fault::Input(format!("{}: {why}; the file is damaged: write or transfer it again", self.at(job.place)))
        })
    }

    fn read_plain<T: Pixel>(
        &self,
        file: &File,
        jobs: &[Job<'_>],
        rows: &Range<usize>,
        target: Target<T>,
    ) -> Result<(), Fault> {
        let [_, height, width] = self.shape;
        let size = self.sample.bytes();
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), Fault> {
            let mut bytes = Vec::new();
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut sink = self.sink(job, rows, target);
                bytes.resize(sink.rows.len() * width * size, 0);
                let mut read = None;
                for &(frame, _) in job.frames {
                    // A frame that is listed twice goes to both places at once.
                    if read.replace(frame) == Some(frame) {
                        continue;
                    }
                    let at = (frame * height + sink.rows.start) * width * size;
                    self.fetch(file, &mut bytes, job.entry.address + at as u64)?;
                    sink.put(at, &bytes);
                }
                convert::settle();
            }
            Ok(())
        };
        self.on_threads(READERS.min(jobs.len()), work)
    }
}
