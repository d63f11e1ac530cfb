//! Files that a beamline could have written: frames into an HDF5 layout, one after the other, and the slow arrival of
//! such a file.
//!
//! Contract: frames come in the order darks, flats, projections, flats. Data Exchange (ALS 8.3.2 as well) is contiguous and
//! written with plain I/O behind metadata made by the library; NXtomo is chunked by frame, packed on request, and written
//! by the library, as are the datasets of ALS's legacy layout; a folder of TIFF files gets `angles.txt`.

use super::synth::SynthLayout;
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
    pub kind: SynthLayout,
    /// Chunks are shuffled and deflated, where there are chunks.
    pub packed: bool,
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
    /// A dataset for each frame.
    Legacy {
        file: hdf5::File,
        group: hdf5::Group,
    },
    /// A file for each frame.
    Folder,
}

/// Name of a legacy scan.
const LEGACY: &str = "synthetic";

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
        let target = match layout.kind {
            SynthLayout::DataExchange | SynthLayout::Als => data_exchange(path, &layout),
            SynthLayout::NxTomo => nxtomo(path, &layout),
            SynthLayout::AlsLegacy => legacy(path, &layout),
            SynthLayout::Tiff => {
                folder(path, &layout).map_err(|e| Fault::writing(path, &e))?;
                Ok(Some(Target::Folder))
            }
        };
        let target = target.map_err(failed)?;
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
            Target::Legacy { group, .. } => {
                let failed = |e: String| Fault::Task(format!("{}: {e}", self.path.display()));
                let view = ArrayView3::from_shape((1, rows, columns), frame).map_err(|e| failed(e.to_string()))?;
                let last = self.layout.projections.saturating_sub(1);
                let name = match self.place() {
                    (Kind::Dark, i) => format!("{LEGACY}drk_{i:04}_{last:04}.tif"),
                    (Kind::Before, i) => format!("{LEGACY}bak_{i:04}_0000.tif"),
                    (Kind::After, i) => format!("{LEGACY}bak_{i:04}_{last:04}.tif"),
                    (Kind::Projection, i) => format!("{LEGACY}_0000_{i:04}.tif"),
                };
                let made = group.new_dataset_builder().with_data(&view).create(name.as_str());
                made.map_err(|e| failed(crate::formats::h5::short(&e)))?;
            }
            Target::Folder => {
                let name = match self.place() {
                    (Kind::Dark, i) => format!("dark_{i:04}.tif"),
                    (Kind::Before, i) => format!("flat_before_{i:04}.tif"),
                    (Kind::After, i) => format!("flat_after_{i:04}.tif"),
                    (Kind::Projection, i) => format!("proj_{i:04}.tif"),
                };
                let path = self.path.join(name);
                let file = File::create(&path).map_err(|e| Fault::writing(&path, &e))?;
                tiff::encoder::TiffEncoder::new(std::io::BufWriter::new(file))
                    .and_then(|mut e| {
                        e.write_image::<tiff::encoder::colortype::Gray16>(columns as u32, rows as u32, frame)
                    })
                    .map_err(|e| Fault::Task(format!("{}: {e}", path.display())))?;
            }
        }
        self.done += 1;
        Ok(())
    }

    /// What the next frame is, and its number among its kind.
    fn place(&self) -> (Kind, usize) {
        let l = &self.layout;
        let mut i = self.done;
        for (kind, n) in [(Kind::Dark, l.darks), (Kind::Before, l.flats), (Kind::Projection, l.projections)] {
            if i < n {
                return (kind, i);
            }
            i -= n;
        }
        (Kind::After, i)
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
            Target::Legacy { file, group } => {
                drop(group);
                file.close().map_err(|e| Fault::Task(format!("{}: {e}", self.path.display())))?;
                File::open(&self.path).map_err(|e| Fault::writing(&self.path, &e))?
            }
            Target::Folder => File::open(&self.path).map_err(|e| Fault::writing(&self.path, &e))?,
        };
        raw.sync_all().map_err(|e| Fault::writing(&self.path, &e))
    }
}

/// What a frame shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dark,
    Before,
    Projection,
    After,
}

/// One group with a dataset for each frame, and the attributes that ALS gave it.
fn legacy(path: &Path, l: &Layout) -> hdf5::Result<Option<Target>> {
    let file = hdf5::File::create(path)?;
    let group = file.create_group(LEGACY)?;
    let range = l.angles_deg.last().map_or(0.0, |a| a.abs());
    for (name, value) in [
        ("nangles", l.projections.to_string()),
        ("arange", range.to_string()),
        ("nslices", l.rows.to_string()),
        ("nrays", l.columns.to_string()),
        ("pxsize", (l.pixel_size_um * 1e-3).to_string()),
        ("i0cycle", "0".to_owned()),
        ("num_bright_field", l.flats.to_string()),
        ("num_dark_fields", l.darks.to_string()),
        ("senergy", "25000".to_owned()),
    ] {
        let value: VarLenUnicode = value.parse().unwrap_or_default();
        group.new_attr::<VarLenUnicode>().create(name)?.write_scalar(&value)?;
    }
    Ok(Some(Target::Legacy { file, group }))
}

/// A folder with its angles.
fn folder(path: &Path, l: &Layout) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    let lines: String = l.angles_deg.iter().map(|a| format!("{a}\n")).collect();
    std::fs::write(path.join("angles.txt"), format!("# degrees\n{lines}"))
}

/// What ALS 8.3.2 writes beside the frames: flats before and after, a range covered with both ends.
fn als(file: &hdf5::File, l: &Layout) -> hdf5::Result<()> {
    let range = l.angles_deg.last().map_or(0.0, |a| a.abs());
    for (name, value) in [
        ("/process/acquisition/rotation/num_angles", l.projections as f64),
        ("/process/acquisition/rotation/range", range),
        ("/process/acquisition/flat_fields/i0cycle", 0.0),
        ("/process/acquisition/flat_fields/num_flat_fields", l.flats as f64),
        ("/process/acquisition/dark_fields/num_dark_fields", l.darks as f64),
        ("/measurement/instrument/detector/dimension_x", l.columns as f64),
        ("/measurement/instrument/detector/dimension_y", l.rows as f64),
        ("/measurement/instrument/monochromator/energy", 25_000.0),
        ("/measurement/instrument/camera_motor_stack/setup/camera_distance", 50.0),
    ] {
        file.new_dataset::<f64>().create(name)?.write_scalar(&value)?;
    }
    Ok(())
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
    if l.kind == SynthLayout::Als {
        als(&file, l)?;
    } else {
        let angles = Array1::from(l.angles_deg.clone());
        let theta = file.new_dataset_builder().with_data(&angles).create("/exchange/theta")?;
        units(&theta, "degrees")?;
    }
    text(&file, "/exchange/title", "synthetic scan")?;
    text(&file, "/measurement/sample/name", "ten ellipsoids")?;
    let size = file.new_dataset::<f64>().create("/measurement/instrument/detector/pixel_size")?;
    // ALS gives millimetres and does not say so.
    let als = l.kind == SynthLayout::Als;
    size.write_scalar(&(l.pixel_size_um * if als { 1e-3 } else { 1.0 }))?;
    if !als {
        units(&size, "um")?;
    }
    drop(size);
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
    let data = file.new_dataset::<u16>().shape((keys.len(), l.rows, l.columns)).chunk((1, l.rows, l.columns));
    let data = if l.packed { data.shuffle().deflate(1) } else { data }.create("/entry/instrument/detector/data")?;
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
