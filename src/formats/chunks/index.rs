//! Where the chunks of a dataset lie: asked of the HDF5 library once, kept for the tasks that open the file again.
//!
//! Contract
//! - Addresses and sizes are compared with the size of the file, and sizes with that of a chunk, before anything is
//!   read or allocated by them.
//! - `None` means: the library must read. So it is for missing chunks (it knows the fill value), filters not known here,
//!   big-endian numbers, files with a user block (the library's addresses then miss it), edge chunks that are stored
//!   without filters, and for more chunks than [`CHUNKS_MAX`], because the library finds chunk `n` by counting to it.
//! - An index is kept for as long as the file's identity, size and times are the same.

use super::Chunks;
use super::pipeline::Pipeline;
use crate::formats::h5::read_fault;
use crate::formats::stack::Sample;
use crate::technique::Fault;
use hdf5::{Dataset, Dataspace};
use hdf5_sys::{h5d, h5p};
use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Asking the library for chunk `n` takes time in proportion to `n`: this many take about ten seconds.
const CHUNKS_MAX: usize = 20_000;
/// Packed data may be a little longer than the data, and a stored block needs a header.
const OVERHEAD: usize = 1 << 16;
/// Indexes kept: projections, flats and darks of a few scans.
const KEPT: usize = 12;

/// A chunk in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub address: u64,
    pub bytes: usize,
    /// Bit `i`: filter `i` was not applied.
    pub mask: u32,
}

#[derive(PartialEq, Eq)]
struct Key {
    path: PathBuf,
    name: String,
    /// Device, inode, size, times.
    stamp: [i128; 5],
}

type Kept = VecDeque<(Key, Option<Arc<Chunks>>)>;
static INDEXES: Mutex<Kept> = Mutex::new(VecDeque::new());

/// What the caller knows of the dataset.
pub(crate) struct Asked<'a> {
    pub path: &'a Path,
    /// Bytes before the HDF5 file proper.
    pub user_block: u64,
    pub name: &'a str,
    pub dataset: &'a Dataset,
    /// Frames, rows, columns.
    pub extent: [usize; 3],
    /// Of a chunk, as many numbers as the dataset has dimensions.
    pub chunk: &'a [usize],
    pub sample: Sample,
    pub little_endian: bool,
}

/// The index of a chunked dataset; `None`: the library must read.
///
/// # Errors
/// [`Fault::NotYet`] for chunks beyond the end of the file, [`Fault::Input`] for sizes that cannot be.
pub(crate) fn of(asked: &Asked<'_>, file: &std::fs::File) -> Result<Option<Arc<Chunks>>, Fault> {
    let path = asked.path;
    let meta = file.metadata().map_err(|e| Fault::reading(path, &e))?;
    let time = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
    let key = Key {
        path: path.to_owned(),
        name: asked.name.to_owned(),
        stamp: [
            meta.dev().into(),
            meta.ino().into(),
            meta.size().into(),
            time(meta.mtime(), meta.mtime_nsec()),
            time(meta.ctime(), meta.ctime_nsec()),
        ],
    };
    let lock = || INDEXES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, known)) = lock().iter().find(|(k, _)| *k == key) {
        return Ok(known.clone());
    }
    let made = make(asked, meta.size())?.map(Arc::new);
    let mut kept = lock();
    // A file that is still written gets a new key at every look: its old ones only take up room.
    kept.retain(|(k, _)| k.path != key.path || k.name != key.name);
    kept.truncate(KEPT - 1);
    kept.push_front((key, made.clone()));
    Ok(made)
}

fn make(asked: &Asked<'_>, size: u64) -> Result<Option<Chunks>, Fault> {
    let path = asked.path;
    let broken = |e: hdf5::Error| read_fault(&e, path, asked.name);
    let plist = asked.dataset.create_plist().map_err(broken)?;
    let Some(pipeline) = Pipeline::of(&plist.filters(), asked.sample.bytes()) else { return Ok(None) };
    let shape = match *asked.chunk {
        [f, r, c] => [f, r, c],
        [r, c] => [1, r, c],
        _ => return Ok(None),
    };
    let grid: [usize; 3] = std::array::from_fn(|i| asked.extent[i].div_ceil(shape[i].max(1)));
    // Extents are at most 2^24 · 2^17 · 2^17.
    let count = grid.iter().map(|&n| n as u64).product::<u64>();
    if !asked.little_endian || count > CHUNKS_MAX as u64 || asked.user_block != 0 || partial_unfiltered(&plist) {
        return Ok(None);
    }
    let count = count as usize;
    let chunk_bytes = shape.iter().product::<usize>() * asked.sample.bytes();
    let at = |place: [usize; 3]| format!("{}: {}: chunk {place:?}", path.display(), asked.name);
    let mut entries = vec![None; count];
    if asked.dataset.num_chunks() != Some(count) {
        return Ok(None);
    }
    let space = asked.dataset.space().map_err(broken)?;
    for i in 0..count {
        let Some((offset, entry)) = info(asked.dataset, &space, i, asked.chunk.len()) else { return Ok(None) };
        let place: [usize; 3] = std::array::from_fn(|d| offset[d] as usize / shape[d].max(1));
        if (0..3).any(|d| place[d] >= grid[d]) {
            return Ok(None);
        }
        if entry.address.checked_add(entry.bytes as u64).is_none_or(|end| end > size) {
            return Err(Fault::NotYet(format!(
                "{}: {} bytes from {}, the file has {size}: the rest is still to come, or the file is damaged",
                at(place),
                entry.bytes,
                entry.address
            )));
        }
        if entry.bytes > chunk_bytes + chunk_bytes / 2 + OVERHEAD || (pipeline.is_empty() && entry.bytes < chunk_bytes)
        {
            return Err(Fault::Input(format!(
                "{}: {} bytes stored for {chunk_bytes}; the file is damaged: write or transfer it again",
                at(place),
                entry.bytes
            )));
        }
        let number = (place[0] * grid[1] + place[1]) * grid[2] + place[2];
        if let Some(slot) = entries.get_mut(number) {
            *slot = Some(entry);
        }
    }
    let entries: Option<Vec<Entry>> = entries.into_iter().collect();
    Ok(entries.map(|entries| Chunks {
        path: path.to_owned(),
        name: asked.name.to_owned(),
        extent: asked.extent,
        shape,
        grid,
        entries,
        pipeline,
        sample: asked.sample,
    }))
}

/// Are edge chunks stored without filters, or is that not known?
fn partial_unfiltered(plist: &hdf5::plist::DatasetCreate) -> bool {
    let mut options = 0;
    // SAFETY: the identifier is live while `plist` is, `options` is writable; the library's lock is held.
    let got = hdf5::sync::sync(|| unsafe { h5p::H5Pget_chunk_opts(plist.id(), &raw mut options) });
    got < 0 || options != 0
}

/// Chunk `index` in the library's own order: its offset in elements, frames first, and where it lies.
fn info(dataset: &Dataset, space: &Dataspace, index: usize, rank: usize) -> Option<([u64; 3], Entry)> {
    let mut offset = [0u64; 3];
    let (mut mask, mut address, mut bytes) = (0u32, 0u64, 0u64);
    // A single frame is a stack of one.
    let first = 3usize.checked_sub(rank)?;
    let place = offset.get_mut(first..)?.as_mut_ptr();
    // SAFETY: the identifiers are live while `dataset` and `space` are borrowed; `place` has room for as many numbers as the dataset has
    // dimensions, the others for one each; the library's lock is held.
    let got = hdf5::sync::sync(|| unsafe {
        h5d::H5Dget_chunk_info(
            dataset.id(),
            space.id(),
            index as u64,
            place,
            &raw mut mask,
            &raw mut address,
            &raw mut bytes,
        )
    });
    // The library's word for no address is all ones.
    (got >= 0 && address != u64::MAX).then_some(())?;
    Some((offset, Entry { address, bytes: usize::try_from(bytes).ok()?, mask }))
}
