//! Results on disk: one HDF5 file a slab, one for the whole point, one a depth.
//!
//! `entry1/data/data` `[depth, row, column]` f32 counts, `entry1/depth` (µm, middles of bins), `entry1/quality/…` `[row, column]`.
//! Most of a stack is empty: it is stored in chunks, compressed, and chunks without counts are not stored at all; they read
//! as 0. As elsewhere the library writes to memory, and plain I/O with hashes takes it to its place.

use super::slab::{MAPS, Slab};
use crate::formats::h5::{open_library, short};
use crate::formats::part::{scratch_file, write_new};
use crate::technique::{Fault, OutputFile};
use hdf5::plist::dataset_create::Layout;
use hdf5::types::VarLenUnicode;
use ndarray::{Array1, Array2, ArrayView2, ArrayView3, s};
use std::ops::Range;
use std::path::Path;

/// Where the stack lies.
pub const DATASET: &str = "/entry1/data/data";
/// Largest chunk: depths, rows, columns.
const CHUNK: [usize; 3] = [32, 16, 128];
/// gzip level: more costs time and saves little on counts.
const LEVEL: u8 = 1;

fn chunk(shape: [usize; 3]) -> [usize; 3] {
    [0, 1, 2].map(|i| CHUNK[i].min(shape[i]).max(1))
}

/// Makes a file in memory and copies it to `<staging>/<relative>`.
pub(crate) fn through_memory(
    staging: &Path,
    relative: &str,
    fill: impl FnOnce(&hdf5::File) -> hdf5::Result<()>,
) -> Result<OutputFile, Fault> {
    let scratch = scratch_file()?;
    let make = || -> hdf5::Result<()> {
        let file = hdf5::File::with_options().with_fapl(|p| p.file_locking(false)).create(scratch.path())?;
        fill(&file)?;
        file.close()
    };
    make().map_err(|e| Fault::Task(format!("{relative}: {}", short(&e))))?;
    let mut from = std::fs::File::open(scratch.path()).map_err(|e| Fault::writing(scratch.path(), &e))?;
    write_new(staging, relative, |out| {
        let mut block = vec![0; 1 << 20];
        loop {
            let n = std::io::Read::read(&mut from, &mut block).map_err(|e| Fault::writing(scratch.path(), &e))?;
            if n == 0 {
                return Ok(());
            }
            out.put(block.get(..n).unwrap_or_default())?;
        }
    })
}

fn text(dataset: &hdf5::Dataset, name: &str, value: &str) -> hdf5::Result<()> {
    let value: VarLenUnicode = value.parse().unwrap_or_default();
    dataset.new_attr::<VarLenUnicode>().create(name)?.write_scalar(&value)
}

fn depths(file: &hdf5::File, depths_um: &[f64]) -> hdf5::Result<()> {
    let values = Array1::from(depths_um.to_vec());
    let d = file.new_dataset::<f64>().shape(values.len()).obj_track_times(false).create("/entry1/depth")?;
    d.write(&values)?;
    text(&d, "units", "um")
}

fn describe(data: &hdf5::Dataset) -> hdf5::Result<()> {
    text(data, "units", "counts")?;
    text(data, "axes", "depth:y:x")
}

fn map<T: hdf5::H5Type>(file: &hdf5::File, name: &str, shape: (usize, usize)) -> hdf5::Result<hdf5::Dataset> {
    let tile = (64.min(shape.0).max(1), 256.min(shape.1).max(1));
    file.new_dataset::<T>()
        .shape(shape)
        .chunk(tile)
        .shuffle()
        .deflate(LEVEL)
        .obj_track_times(false)
        .create(format!("/entry1/quality/{name}").as_str())
}

fn create_stack(file: &hdf5::File, shape: [usize; 3]) -> hdf5::Result<hdf5::Dataset> {
    file.new_dataset::<f32>()
        .shape(shape)
        .chunk(chunk(shape))
        .shuffle()
        .deflate(LEVEL)
        .fill_value(0f32)
        .obj_track_times(false)
        .create(DATASET)
}

/// Writes the chunks of `data` that are not empty, its first row at row `at` of the dataset.
fn put(dataset: &hdf5::Dataset, data: ArrayView3<'_, f32>, at: usize, size: [usize; 3]) -> hdf5::Result<()> {
    let (d, h, w) = data.dim();
    for z in (0..d).step_by(size[0]) {
        for y in (0..h).step_by(size[1]) {
            for x in (0..w).step_by(size[2]) {
                let (z1, y1, x1) = ((z + size[0]).min(d), (y + size[1]).min(h), (x + size[2]).min(w));
                let tile = data.slice(s![z..z1, y..y1, x..x1]);
                if tile.iter().any(|&v| v != 0.0) {
                    // The library wants a tile without gaps.
                    let tile = tile.as_standard_layout();
                    dataset.write_slice(tile.view(), (z..z1, at + y..at + y1, x..x1))?;
                }
            }
        }
    }
    Ok(())
}

/// Writes a slab as `<staging>/<relative>`.
///
/// # Errors
/// [`Fault::Storage`] when the filesystem is full or failing, else [`Fault::Task`].
pub fn write_part(staging: &Path, relative: &str, slab: &Slab, depths_um: &[f64]) -> Result<OutputFile, Fault> {
    through_memory(staging, relative, |file| {
        let shape: [usize; 3] = slab.stack.dim().into();
        let data = create_stack(file, shape)?;
        describe(&data)?;
        put(&data, slab.stack.view(), 0, chunk(shape))?;
        depths(file, depths_um)?;
        map::<u8>(file, "flags", slab.flags.dim())?.write(slab.flags.view())?;
        for ((name, unit), values) in MAPS.iter().zip(&slab.maps) {
            let m = map::<f32>(file, name, values.dim())?;
            m.write(values.view())?;
            text(&m, "units", unit)?;
        }
        Ok(())
    })
}

/// A part and the rows of the frames that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartOf {
    /// As its writer reported it.
    pub file: OutputFile,
    /// Rows.
    pub rows: Range<usize>,
}

/// Checks that the parts have their sizes on disk, and sorts them.
fn checked(staging: &Path, parts: &[PartOf]) -> Result<Vec<PartOf>, Fault> {
    let mut parts = parts.to_vec();
    parts.sort_by_key(|p| p.rows.start);
    for part in &parts {
        let path = staging.join(&part.file.path);
        let size = std::fs::metadata(&path).map_err(|e| Fault::writing(&path, &e))?.len();
        if size != part.file.bytes {
            return Err(Fault::Storage(format!(
                "{}: {size} bytes on disk, {} were written: the filesystem lost data",
                path.display(),
                part.file.bytes
            )));
        }
    }
    Ok(parts)
}

/// Writes the whole point as `<staging>/<relative>`: the stack as a plain dataset, or (`over`) a virtual one over the parts;
/// the maps always plainly. Rows of no part are empty.
///
/// # Errors
/// As [`write_part`].
pub fn write_whole(
    staging: &Path,
    relative: &str,
    parts: &[PartOf],
    shape: [usize; 3],
    depths_um: &[f64],
    over: bool,
) -> Result<OutputFile, Fault> {
    let parts = checked(staging, parts)?;
    let [bins, rows, columns] = shape;
    through_memory(staging, relative, |file| {
        if over {
            let mut builder =
                file.new_dataset::<f32>().shape(shape).layout(Layout::Virtual).obj_track_times(false).fill_value(0f32);
            for part in &parts {
                let n = part.rows.len();
                builder = builder.virtual_map(
                    &part.file.path,
                    DATASET,
                    [bins, n, columns],
                    (0..bins, 0..n, 0..columns),
                    shape,
                    (0..bins, part.rows.clone(), 0..columns),
                );
            }
            describe(&builder.create(DATASET)?)?;
        }
        let plain = if over { None } else { Some(create_stack(file, shape)?) };
        if let Some(data) = &plain {
            describe(data)?;
        }
        depths(file, depths_um)?;
        let flags = map::<u8>(file, "flags", (rows, columns))?;
        let maps: Vec<hdf5::Dataset> =
            MAPS.iter().map(|(name, _)| map::<f32>(file, name, (rows, columns))).collect::<hdf5::Result<_>>()?;
        let mut all_flags = Array2::<u8>::zeros((rows, columns));
        let mut all: Vec<Array2<f32>> = maps.iter().map(|_| Array2::from_elem((rows, columns), f32::NAN)).collect();
        for part in &parts {
            let from = open_library(&staging.join(&part.file.path))?;
            if let Some(data) = &plain {
                let stack = from.dataset(DATASET)?;
                let tile = chunk([bins, part.rows.len(), columns]);
                // A chunk's depth of the slab at a time, so that no whole slab is held.
                for z in (0..bins).step_by(tile[0]) {
                    let z1 = (z + tile[0]).min(bins);
                    let some = stack.read_slice::<f32, _, ndarray::Ix3>((z..z1, .., ..))?;
                    if some.iter().any(|&v| v != 0.0) {
                        data.write_slice(&some, (z..z1, part.rows.clone(), ..))?;
                    }
                }
            }
            let rows = part.rows.clone();
            all_flags.slice_mut(s![rows.clone(), ..]).assign(&from.dataset("/entry1/quality/flags")?.read_2d::<u8>()?);
            for ((name, _), values) in MAPS.iter().zip(&mut all) {
                let read = from.dataset(&format!("/entry1/quality/{name}"))?.read_2d::<f32>()?;
                values.slice_mut(s![rows.clone(), ..]).assign(&read);
            }
        }
        flags.write(all_flags.view())?;
        for (((_, unit), values), m) in MAPS.iter().zip(&all).zip(&maps) {
            m.write(values.view())?;
            text(m, "units", unit)?;
        }
        Ok(())
    })
}

/// Writes the image of one depth as `<staging>/<relative>`, as indexing expects it.
///
/// # Errors
/// As [`write_part`].
pub fn write_depth(
    staging: &Path,
    relative: &str,
    image: ArrayView2<'_, f32>,
    depth_um: f64,
) -> Result<OutputFile, Fault> {
    through_memory(staging, relative, |file| {
        let shape = image.dim();
        let tile = (64.min(shape.0).max(1), 256.min(shape.1).max(1));
        let data = file
            .new_dataset::<f32>()
            .shape(shape)
            .chunk(tile)
            .shuffle()
            .deflate(LEVEL)
            .obj_track_times(false)
            .create(DATASET)?;
        data.write(&image)?;
        text(&data, "units", "counts")?;
        let d = file.new_dataset::<f64>().obj_track_times(false).create("/entry1/depth")?;
        d.write_scalar(&depth_um)?;
        text(&d, "units", "um")
    })
}

/// Images of some depths from all parts: `[depth, row, column]`.
///
/// # Errors
/// As [`write_part`].
pub fn read_depths(
    staging: &Path,
    parts: &[PartOf],
    bins: Range<usize>,
    rows: usize,
    columns: usize,
) -> Result<ndarray::Array3<f32>, Fault> {
    let parts = checked(staging, parts)?;
    let mut out = ndarray::Array3::zeros((bins.len(), rows, columns));
    for part in &parts {
        let path = staging.join(&part.file.path);
        let read = || -> hdf5::Result<ndarray::Array3<f32>> {
            open_library(&path)?.dataset(DATASET)?.read_slice::<f32, _, ndarray::Ix3>((bins.clone(), .., ..))
        };
        let some = read().map_err(|e| Fault::Storage(format!("{}: {}", path.display(), short(&e))))?;
        out.slice_mut(s![.., part.rows.clone(), ..]).assign(&some);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::technique::laue::slab::Sums;
    use ndarray::{Array3, Axis};

    fn slab(rows: Range<usize>, columns: usize, bins: usize) -> Slab {
        let value = |k: usize, r: usize, c: usize| {
            if (k * 31 + r * 7 + c).is_multiple_of(97) { (k * 1000 + r * 10 + c) as f32 } else { 0.0 }
        };
        let stack = Array3::from_shape_fn((bins, rows.len(), columns), |(k, r, c)| value(k, rows.start + r, c));
        let flags = Array2::from_shape_fn((rows.len(), columns), |(r, c)| ((rows.start + r + c) % 17) as u8);
        let maps =
            [0, 1, 2, 3, 4, 5, 6].map(|m| Array2::from_elem((rows.len(), columns), m as f32 + rows.start as f32));
        Slab { stack, flags, maps, sums: Sums::default() }
    }

    /// Larger than a chunk along every axis, and not by a whole number of chunks.
    #[test]
    fn parts_read_back_by_themselves_merged_and_virtually() {
        let dir = tempfile::tempdir().unwrap();
        let (bins, rows, columns) = (40, 41, 150);
        let depths: Vec<f64> = (0..bins).map(|k| k as f64).collect();
        let whole = slab(0..rows, columns, bins);
        let mut parts = Vec::new();
        for (i, range) in [0..20, 20..37].into_iter().enumerate() {
            let file = write_part(dir.path(), &format!("parts/s{i}.h5"), &slab(range.clone(), columns, bins), &depths)
                .unwrap();
            parts.push(PartOf { file, rows: range });
        }
        parts.reverse();
        for over in [false, true] {
            let name = if over { "virtual.h5" } else { "plain.h5" };
            let made = write_whole(dir.path(), name, &parts, [bins, rows, columns], &depths, over).unwrap();
            assert_eq!(made.bytes, dir.path().join(name).metadata().unwrap().len());
            let file = open_library(&dir.path().join(name)).unwrap();
            let read = file.dataset(DATASET).unwrap().read::<f32, ndarray::Ix3>().unwrap();
            assert_eq!(read.slice(s![.., ..37, ..]), whole.stack.slice(s![.., ..37, ..]));
            // Rows that no part has are empty.
            assert!(read.slice(s![.., 37.., ..]).iter().all(|&v| v == 0.0));
            let depth = file.dataset("/entry1/quality/depth").unwrap().read_2d::<f32>().unwrap();
            assert_eq!((depth[[0, 0]], depth[[20, 5]]), (3.0, 23.0));
            assert!(depth[[40, 0]].is_nan());
        }
        let some = read_depths(dir.path(), &parts, 5..9, rows, columns).unwrap();
        assert_eq!(some.slice(s![.., ..37, ..]), whole.stack.slice(s![5..9, ..37, ..]));
        write_depth(dir.path(), "one.h5", some.index_axis(Axis(0), 0), 5.0).unwrap();
        let one = open_library(&dir.path().join("one.h5")).unwrap().dataset(DATASET).unwrap().read_2d::<f32>().unwrap();
        assert_eq!(one, some.index_axis(Axis(0), 0));
        // A part that lost bytes is noticed.
        std::fs::File::options().write(true).open(dir.path().join("parts/s0.h5")).unwrap().set_len(100).unwrap();
        assert!(matches!(read_depths(dir.path(), &parts, 0..1, rows, columns), Err(Fault::Storage(_))));
    }
}
