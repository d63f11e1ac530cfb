//! Files that a beamline could have written: frames into an HDF5 layout, one after the other, and the slow arrival of
//! such a file.
//!
//! Contract: frames come in the order darks, flats, projections, flats. Data Exchange is contiguous and written with
//! plain I/O behind metadata made by the library; NXtomo is chunked by frame and written by the library.

use crate::technique::Fault;
use hdf5::plist::dataset_create::{AllocTime, FillTime};
use hdf5::types::VarLenUnicode;
use ndarray::{Array1, ArrayView3};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Steps in which a slow file arrives.
const STEPS: u32 = 64;
/// Bytes copied at a time.
const BLOCK: usize = 1 << 20;

/// Sizes and headers of a file.
pub(super) struct Layout {
    pub nxtomo: bool,
    pub projections: usize,
    pub flats: usize,
    pub darks: usize,
    pub rows: usize,
    pub columns: usize,
    pub angles_deg: Vec<f64>,
    pub pixel_size_um: f64,
}

enum Target {
    /// Where each run of frames lies: (frames, address).
    Contiguous {
        raw: File,
        runs: Vec<(usize, u64)>,
    },
    Chunked {
        file: hdf5::File,
        data: hdf5::Dataset,
    },
}

/// A file being filled frame by frame.
pub(super) struct Frames {
    target: Target,
    path: PathBuf,
    layout: Layout,
    done: usize,
}

impl Frames {
    /// Makes the file with everything but its frames.
    pub fn create(path: &Path, layout: Layout) -> Result<Self, Fault> {
        let failed = |e: hdf5::Error| Fault::Task(format!("{}: {}", path.display(), crate::formats::h5::short(&e)));
        let target =
            if layout.nxtomo { nxtomo(path, &layout) } else { data_exchange(path, &layout) }.map_err(failed)?;
        let target = match target {
            Some(target) => target,
            None => return Err(Fault::Task(format!("{}: the HDF5 library allocated no space", path.display()))),
        };
        Ok(Self { target, path: path.to_owned(), layout, done: 0 })
    }

    /// Writes the next frame.
    pub fn push(&mut self, frame: &[u16]) -> Result<(), Fault> {
        let (rows, columns) = (self.layout.rows, self.layout.columns);
        match &self.target {
            Target::Contiguous { raw, runs } => {
                let bytes: Vec<u8> = frame.iter().flat_map(|v| v.to_le_bytes()).collect();
                let mut index = self.done;
                for &(frames, address) in runs {
                    if index < frames {
                        let at = address + index as u64 * bytes.len() as u64;
                        raw.write_all_at(&bytes, at).map_err(|e| Fault::writing(&self.path, &e))?;
                        break;
                    }
                    index -= frames;
                }
            }
            Target::Chunked { data, .. } => {
                let failed = |e: String| Fault::Task(format!("{}: {e}", self.path.display()));
                let view = ArrayView3::from_shape((1, rows, columns), frame).map_err(|e| failed(e.to_string()))?;
                data.write_slice(view, (self.done..self.done + 1, 0..rows, 0..columns))
                    .map_err(|e| failed(crate::formats::h5::short(&e)))?;
            }
        }
        self.done += 1;
        Ok(())
    }

    /// Closes the file.
    pub fn finish(self) -> Result<(), Fault> {
        let raw = match self.target {
            Target::Contiguous { raw, .. } => raw,
            Target::Chunked { file, data } => {
                drop(data);
                file.close().map_err(|e| Fault::Task(format!("{}: {e}", self.path.display())))?;
                File::open(&self.path).map_err(|e| Fault::writing(&self.path, &e))?
            }
        };
        raw.sync_all().map_err(|e| Fault::writing(&self.path, &e))
    }
}

fn text(group: &hdf5::Group, name: &str, value: &str) -> hdf5::Result<()> {
    group.new_dataset::<VarLenUnicode>().create(name)?.write_scalar(&value.parse::<VarLenUnicode>().unwrap_or_default())
}

fn units(dataset: &hdf5::Dataset, unit: &str) -> hdf5::Result<()> {
    let value: VarLenUnicode = unit.parse().unwrap_or_default();
    dataset.new_attr::<VarLenUnicode>().create("units")?.write_scalar(&value)
}

fn data_exchange(path: &Path, l: &Layout) -> hdf5::Result<Option<Target>> {
    let file = hdf5::File::create(path)?;
    let stack = |name: &str, frames: usize| -> hdf5::Result<Option<u64>> {
        if frames == 0 {
            return Ok(Some(0));
        }
        let dataset = file
            .new_dataset::<u16>()
            .shape((frames, l.rows, l.columns))
            .alloc_time(Some(AllocTime::Early))
            .fill_time(FillTime::Never)
            .create(name)?;
        units(&dataset, "counts")?;
        Ok(dataset.offset())
    };
    let data = stack("/exchange/data", l.projections)?;
    let white = stack("/exchange/data_white", 2 * l.flats)?;
    let dark = stack("/exchange/data_dark", l.darks)?;
    let theta = file.new_dataset_builder().with_data(&Array1::from(l.angles_deg.clone())).create("/exchange/theta")?;
    units(&theta, "degrees")?;
    text(&file, "/exchange/title", "synthetic scan")?;
    text(&file, "/measurement/sample/name", "ten ellipsoids")?;
    let size = file.new_dataset::<f64>().create("/measurement/instrument/detector/pixel_size")?;
    size.write_scalar(&l.pixel_size_um)?;
    units(&size, "um")?;
    drop((theta, size));
    file.close()?;
    let (Some(data), Some(white), Some(dark)) = (data, white, dark) else { return Ok(None) };
    let raw = File::options().write(true).open(path).map_err(|e| hdf5::Error::from(e.to_string()))?;
    let flat_bytes = (l.flats * l.rows * l.columns * 2) as u64;
    let runs = vec![(l.darks, dark), (l.flats, white), (l.projections, data), (l.flats, white + flat_bytes)];
    Ok(Some(Target::Contiguous { raw, runs }))
}

fn nxtomo(path: &Path, l: &Layout) -> hdf5::Result<Option<Target>> {
    let file = hdf5::File::create(path)?;
    let keys: Vec<i32> = [(l.darks, 2), (l.flats, 1), (l.projections, 0), (l.flats, 1)]
        .into_iter()
        .flat_map(|(n, key)| std::iter::repeat_n(key, n))
        .collect();
    let first = l.darks + l.flats;
    let last = l.angles_deg.last().copied().unwrap_or(0.0);
    // The stage stands still while flats and darks are taken.
    let angles = Array1::from_shape_fn(keys.len(), |i| match i.checked_sub(first) {
        None => 0.0,
        Some(p) => l.angles_deg.get(p).copied().unwrap_or(last),
    });
    let data = file
        .new_dataset::<u16>()
        .shape((keys.len(), l.rows, l.columns))
        .chunk((1, l.rows, l.columns))
        .create("/entry/instrument/detector/data")?;
    let key = Array1::from(keys);
    file.new_dataset_builder().with_data(&key).create("/entry/instrument/detector/image_key")?;
    let theta = file.new_dataset_builder().with_data(&angles).create("/entry/sample/rotation_angle")?;
    units(&theta, "degree")?;
    text(&file, "/entry/sample/name", "ten ellipsoids")?;
    text(&file, "/entry/title", "synthetic scan")?;
    text(&file, "/entry/definition", "NXtomo")?;
    for name in ["x_pixel_size", "y_pixel_size"] {
        let size = file.new_dataset::<f64>().create(format!("/entry/instrument/detector/{name}").as_str())?;
        size.write_scalar(&l.pixel_size_um)?;
        units(&size, "um")?;
    }
    Ok(Some(Target::Chunked { file, data }))
}

/// Copies `from` onto `to`, in place, over `time`: from front to back, or piecewise out of order.
pub(super) fn write_slowly(from: &Path, to: &Path, time: Duration, out_of_order: bool) -> Result<(), Fault> {
    let mut source = File::open(from).map_err(|e| Fault::writing(from, &e))?;
    let size = source.metadata().map_err(|e| Fault::writing(from, &e))?.len();
    let target = File::create(to).map_err(|e| Fault::writing(to, &e))?;
    let begin = Instant::now();
    let piece = size.div_ceil(u64::from(STEPS)).max(1);
    for step in 0..u64::from(STEPS) {
        // 37 has no factor in common with 64: every piece once, neighbours far apart.
        let index = if out_of_order { step * 37 % u64::from(STEPS) } else { step };
        let (mut at, end) = ((index * piece).min(size), ((index + 1) * piece).min(size));
        std::io::Seek::seek(&mut source, std::io::SeekFrom::Start(at)).map_err(|e| Fault::writing(from, &e))?;
        let mut block = vec![0u8; BLOCK];
        while at < end {
            let want = BLOCK.min((end - at) as usize);
            let part = block.get_mut(..want).unwrap_or_default();
            source.read_exact(part).map_err(|e| Fault::writing(from, &e))?;
            target.write_all_at(part, at).map_err(|e| Fault::writing(to, &e))?;
            at += want as u64;
        }
        let due = time.mul_f64((step + 1) as f64 / f64::from(STEPS));
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
    }
    target.sync_all().map_err(|e| Fault::writing(to, &e))
}
