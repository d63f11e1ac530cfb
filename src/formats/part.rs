//! Writing one HDF5 file with one block of f32, hashed while it is in memory.
//!
//! The library makes the few KiB of metadata in a scratch file on a memory filesystem, where the data block
//! is a hole; the metadata is then copied in front of and behind the data with plain I/O. So the library's
//! lock is held for a moment only, the target sees large sequential writes, and errors of the target
//! filesystem arrive with their errno: a full disk is known as one.
//!
//! Contract
//! - The target must not exist: every attempt has its own name, and no two processes write one file.
//! - The file is synced before its hash is returned. The hash is over the bytes handed to the kernel.
//! - After an error the target is removed, as far as possible.
//! - The same data gives the same bytes: no times are recorded in the metadata.

use super::output::Scale;
use super::throttle;
use crate::technique::{Fault, OutputFile};
use hdf5::plist::dataset_create::{AllocTime, FillTime, Layout};
use hdf5::types::VarLenUnicode;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes converted, hashed and written at a time.
pub(crate) const BLOCK_BYTES: usize = 4 << 20;
/// Metadata of a part is a few KiB; more means that something is wrong.
const METADATA_BYTES_MAX: u64 = 1 << 20;
/// Where volumes lie in their files.
pub const DATASET: &str = "/exchange/data";

/// What is written beside the numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeAttributes {
    /// `cm^-1` or `px^-1`.
    pub units: String,
    /// `z:y:x`.
    pub axes: String,
    /// One sentence.
    pub description: String,
}

/// Metadata around a hole of the data's size.
pub(crate) struct Frame {
    pub head: Vec<u8>,
    pub tail: Vec<u8>,
}

/// Makes the metadata of a file with [`DATASET`] of `shape`, f32, little-endian, contiguous.
pub(crate) fn frame(shape: [usize; 3], attributes: &VolumeAttributes) -> Result<Frame, Fault> {
    frame_of(shape, attributes, None)
}

/// As [`frame`], for integers when there is a scale: its ends become the attributes `integer_low` and `integer_high`.
pub(crate) fn frame_of(shape: [usize; 3], attributes: &VolumeAttributes, scale: Option<Scale>) -> Result<Frame, Fault> {
    let scratch = scratch_file()?;
    let failed = |e: hdf5::Error| Fault::Task(format!("{}: {}", scratch.path().display(), super::h5::short(&e)));
    let each = scale.map_or(4, |s| u64::from(s.bits) / 8);
    let bytes = shape.iter().map(|&n| n as u64).product::<u64>() * each;
    let offset = make(scratch.path(), shape, attributes, scale)
        .map_err(failed)?
        .ok_or_else(|| Fault::Task("the HDF5 library gave no address for contiguous data".to_owned()))?;
    let io = |e: std::io::Error| Fault::Task(format!("{}: {e}", scratch.path().display()));
    let size = scratch.as_file().metadata().map_err(io)?.len();
    let tail_at = offset + bytes;
    if offset > METADATA_BYTES_MAX || size < tail_at || size - tail_at > METADATA_BYTES_MAX {
        return Err(Fault::Task(format!("unexpected layout: {bytes} bytes of data at {offset} of {size}")));
    }
    let mut head = vec![0; offset as usize];
    let mut tail = vec![0; (size - tail_at) as usize];
    scratch.as_file().read_exact_at(&mut head, 0).map_err(io)?;
    scratch.as_file().read_exact_at(&mut tail, tail_at).map_err(io)?;
    Ok(Frame { head, tail })
}

fn make(
    path: &Path,
    shape: [usize; 3],
    attributes: &VolumeAttributes,
    scale: Option<Scale>,
) -> hdf5::Result<Option<u64>> {
    // One critical section: other threads' library calls wait a millisecond instead of interleaving.
    hdf5::sync::sync(|| {
        let file = hdf5::File::with_options().with_fapl(|p| p.file_locking(false)).create(path)?;
        let builder = match scale {
            None => file.new_dataset::<f32>(),
            Some(Scale { bits: 8, .. }) => file.new_dataset::<u8>(),
            Some(_) => file.new_dataset::<u16>(),
        };
        let dataset = builder
            .shape(shape)
            .layout(Layout::Contiguous)
            .alloc_time(Some(AllocTime::Early))
            .fill_time(FillTime::Never)
            .obj_track_times(false)
            .create(DATASET)?;
        write_attributes(&dataset, attributes)?;
        for (name, value) in scale.iter().flat_map(|s| [("integer_low", s.low), ("integer_high", s.high)]) {
            dataset.new_attr::<f32>().create(name)?.write_scalar(&value)?;
        }
        let offset = dataset.offset();
        drop(dataset);
        file.close()?;
        Ok(offset)
    })
}

pub(crate) fn write_attributes(dataset: &hdf5::Dataset, attributes: &VolumeAttributes) -> hdf5::Result<()> {
    for (name, text) in
        [("units", &attributes.units), ("axes", &attributes.axes), ("description", &attributes.description)]
    {
        let value: VarLenUnicode = text.parse().unwrap_or_default();
        dataset.new_attr::<VarLenUnicode>().create(name)?.write_scalar(&value)?;
    }
    Ok(())
}

/// A file on a memory filesystem where there is one: holes cost nothing there.
pub(crate) fn scratch_file() -> Result<tempfile::NamedTempFile, Fault> {
    let name = "beampilot-part-";
    tempfile::Builder::new()
        .prefix(name)
        .tempfile_in("/dev/shm")
        .or_else(|_| tempfile::Builder::new().prefix(name).tempfile())
        .map_err(|e| Fault::writing(&std::env::temp_dir(), &e))
}

/// Writes a new file through [`Hashed`]; removes it again when something fails.
pub(crate) fn write_new(
    staging: &Path,
    relative: &str,
    fill: impl FnOnce(&mut Hashed) -> Result<(), Fault>,
) -> Result<OutputFile, Fault> {
    let path = staging.join(relative);
    // Only folders below staging: staging itself is made once, and when it is gone another pilot has taken over.
    if let Some(folder) = path.parent().filter(|f| *f != staging) {
        match std::fs::create_dir(folder) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(Fault::writing(folder, &e)),
            _ => {}
        }
    }
    let file = File::options().write(true).create_new(true).open(&path).map_err(|e| Fault::writing(&path, &e))?;
    let mut out = Hashed { file, path, hash: Sha256::new(), bytes: 0 };
    let result = fill(&mut out).and_then(|()| out.file.sync_all().map_err(|e| Fault::writing(&out.path, &e)));
    match result {
        Ok(()) => Ok(OutputFile { path: relative.to_owned(), bytes: out.bytes, sha256: hex(&out.hash.finalize()) }),
        Err(fault) => {
            let _ = std::fs::remove_file(&out.path);
            Err(fault)
        }
    }
}

/// A file whose bytes are hashed as they are written, in order.
pub(crate) struct Hashed {
    file: File,
    path: PathBuf,
    hash: Sha256,
    bytes: u64,
}

impl Hashed {
    /// Appends bytes.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        throttle::take(bytes.len());
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(|e| Fault::writing(&self.path, &e))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Appends numbers as little-endian f32.
    ///
    /// Hashing and writing overlap: a second thread writes one block while this one hashes the next.
    pub fn put_f32(&mut self, values: &[f32]) -> Result<(), Fault> {
        let Self { file, path, hash, bytes } = self;
        let (send, receive) = crossbeam::channel::bounded::<Vec<u8>>(2);
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || -> std::io::Result<()> {
                receive.iter().try_for_each(|block| {
                    throttle::take(block.len());
                    file.write_all(&block)
                })
            });
            for values in values.chunks(BLOCK_BYTES / 4) {
                let block: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                hash.update(&block);
                *bytes += block.len() as u64;
                // The writer is gone after an error, which its result tells.
                if send.send(block).is_err() {
                    break;
                }
            }
            drop(send);
            match writer.join() {
                Ok(written) => written.map_err(|e| Fault::writing(path, &e)),
                Err(_) => Err(Fault::Task(format!("{}: the writing thread panicked", path.display()))),
            }
        })
    }
}

/// Writes `data` (`[z, y, x]`, any memory order of z) as `<staging>/<relative>`.
///
/// # Errors
/// [`Fault::Storage`] when the filesystem is full or failing, else [`Fault::Task`].
pub fn write(
    staging: &Path,
    relative: &str,
    data: ndarray::ArrayView3<'_, f32>,
    attributes: &VolumeAttributes,
) -> Result<OutputFile, Fault> {
    let (z, y, x) = data.dim();
    let frame = frame([z, y, x], attributes)?;
    write_new(staging, relative, |out| {
        out.put(&frame.head)?;
        let data = data.as_standard_layout();
        // Standard layout is contiguous.
        out.put_f32(data.as_slice().unwrap_or(&[]))?;
        out.put(&frame.tail)
    })
}

/// Lower-case hexadecimal.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// Hash of a file on disk, for tests and verification.
///
/// # Errors
/// Any read error.
pub fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path)?;
    let mut block = vec![0u8; BLOCK_BYTES];
    loop {
        match std::io::Read::read(&mut file, &mut block)? {
            0 => return Ok(hex(&hash.finalize())),
            n => {
                throttle::take(n);
                hash.update(block.get(..n).unwrap_or(&[]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array3, s};

    pub(crate) fn attributes() -> VolumeAttributes {
        VolumeAttributes { units: "cm^-1".into(), axes: "z:y:x".into(), description: "µ".into() }
    }

    #[test]
    fn a_part_reads_back_and_its_hash_is_that_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let data = Array3::from_shape_fn((5, 70, 90), |(z, y, x)| (z * 10_000 + y * 100 + x) as f32);
        let out = write(dir.path(), "parts/a.h5", data.view(), &attributes()).unwrap();
        let path = dir.path().join("parts/a.h5");
        assert_eq!(out.bytes, path.metadata().unwrap().len());
        assert_eq!(out.sha256, sha256_of(&path).unwrap());
        let file = super::super::h5::open_library(&path).unwrap();
        let dataset = file.dataset(DATASET).unwrap();
        assert_eq!(dataset.read::<f32, ndarray::Ix3>().unwrap(), data);
        assert_eq!(super::super::h5::attribute(&dataset, "units").unwrap(), "cm^-1");
        let again = write(dir.path(), "parts/b.h5", data.slice(s![.., .., ..]), &attributes()).unwrap();
        assert_eq!(again.sha256, out.sha256);
    }

    #[test]
    fn an_existing_part_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let data = Array3::zeros((1, 2, 2));
        write(dir.path(), "a.h5", data.view(), &attributes()).unwrap();
        assert!(matches!(write(dir.path(), "a.h5", data.view(), &attributes()), Err(Fault::Task(_))));
        assert!(dir.path().join("a.h5").exists());
    }

    #[test]
    fn a_full_disk_is_storage() {
        // /dev/full accepts an open and refuses every write with ENOSPC.
        let Ok(file) = File::options().write(true).open("/dev/full") else {
            println!("skipped: no /dev/full");
            return;
        };
        let mut out = Hashed { file, path: "/dev/full".into(), hash: Sha256::new(), bytes: 0 };
        assert!(matches!(out.put(b"x"), Err(Fault::Storage(_))));
        assert!(matches!(out.put_f32(&[1.0; 1 << 22]), Err(Fault::Storage(_))));
    }

    /// Another pilot took over and renamed staging away: a late writer must not make it again.
    #[test]
    fn staging_that_is_gone_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let staging = dir.path().join("staging");
        for relative in ["parts/a.h5", "recon.h5"] {
            assert!(write_new(&staging, relative, |_| Ok(())).is_err());
        }
        assert!(!staging.exists());
        std::fs::create_dir(&staging).unwrap();
        assert!(write_new(&staging, "parts/a.h5", |_| Ok(())).is_ok());
    }
}
