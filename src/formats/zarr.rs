//! OME-Zarr 0.5 (Zarr 3): a volume in chunks at several resolutions, for viewers.
//!
//! Written here and not with the `zarrs` crate: what is needed is a few JSON files and chunks of one array type, all hashed
//! in memory as every file of a bundle is; the crate brings 139 packages and more than a minute of compiling for its stores,
//! codecs and caches, and has no place for the hash.
//!
//! Layout: `<folder>/zarr.json` with the multiscales, `<folder>/<level>/zarr.json`, `<folder>/<level>/c/<z>/<y>/<x>`. Level
//! `l` has the means of `2 × 2 × 2` voxels of level `l − 1` (fewer at the ends). Chunks are Zstandard-compressed,
//! little-endian; voxels beyond the end of the volume are the fill value 0.
//!
//! Contract
//! - A block of `depth` slices, `depth = `[`Pyramid::depth`], makes whole chunks of every level: blocks are independent
//!   tasks. For this chunks of level `l` are `depth / 2^l` deep.
//! - The metadata is written once, by whoever assembles the bundle.

use super::output::{Scale, bytes, dtype, make_folders};
use super::part::{VolumeAttributes, write_new};
use crate::technique::{Fault, OutputFile};
use ndarray::{Array3, ArrayView3, s};
use rayon::prelude::*;
use serde_json::json;
use std::path::Path;

/// Sides of a chunk in `y` and `x`.
const SIDE: usize = 256;
/// Deepest block.
const DEPTH: usize = 64;
/// Levels stop when the volume is no wider than this.
const SMALL: usize = 128;
/// Zstandard's fastest ordinary level.
const ZSTD_LEVEL: i32 = 1;

/// Shapes of a volume at all its resolutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pyramid {
    /// Slices, rows, columns.
    pub shape: [usize; 3],
    /// Slices of a block, a power of two.
    pub depth: usize,
}

impl Pyramid {
    /// For a volume `[z, y, x]` of which `memory` bytes may be held.
    pub fn new(shape: [usize; 3], memory: u64) -> Self {
        let slice = (shape[1] * shape[2] * 8).max(1) as u64;
        let mut depth = DEPTH;
        while depth > 1 && depth as u64 * slice > memory {
            depth /= 2;
        }
        Self { shape, depth }
    }

    /// Resolutions.
    pub fn levels(&self) -> usize {
        let deep = self.depth.ilog2() as usize + 1;
        (1..deep).find(|&l| self.shape_at(l - 1).iter().all(|&n| n <= SMALL)).unwrap_or(deep)
    }

    fn shape_at(&self, level: usize) -> [usize; 3] {
        self.shape.map(|n| n.div_ceil(1 << level))
    }

    fn chunk_at(&self, level: usize) -> [usize; 3] {
        let shape = self.shape_at(level);
        [self.depth >> level, SIDE.min(shape[1]), SIDE.min(shape[2])]
    }

    /// Writes the chunks of a block whose first slice is `first`, a multiple of [`Self::depth`].
    pub fn write_block(
        &self,
        staging: &Path,
        folder: &str,
        first: usize,
        block: ArrayView3<'_, f32>,
        scale: Option<Scale>,
    ) -> Result<Vec<OutputFile>, Fault> {
        let mut files = Vec::new();
        let mut current = block.to_owned();
        for level in 0..self.levels() {
            if level > 0 {
                current = halved(current.view());
            }
            files.extend(self.write_level(staging, folder, level, first / self.depth, current.view(), scale)?);
        }
        Ok(files)
    }

    fn write_level(
        &self,
        staging: &Path,
        folder: &str,
        level: usize,
        index: usize,
        data: ArrayView3<'_, f32>,
        scale: Option<Scale>,
    ) -> Result<Vec<OutputFile>, Fault> {
        let [depth, height, width] = self.chunk_at(level);
        let (z, rows, columns) = data.dim();
        let mut places = Vec::new();
        for y in 0..rows.div_ceil(height) {
            make_folders(staging, &format!("{folder}/{level}/c/{index}/{y}/x"))?;
            places.extend((0..columns.div_ceil(width)).map(|x| (y, x)));
        }
        places
            .into_par_iter()
            .map(|(y, x)| {
                let (top, left) = (y * height, x * width);
                let part = data.slice(s![.., top..(top + height).min(rows), left..(left + width).min(columns)]);
                // Chunks are whole; beyond the volume stands what becomes the fill value.
                let beyond = scale.map_or(0.0, |s| s.low);
                let mut chunk = Array3::from_elem((depth, height, width), beyond);
                chunk.slice_mut(s![..z, ..part.dim().1, ..part.dim().2]).assign(&part);
                let packed = zstd::bulk::compress(&bytes(chunk.iter(), scale), ZSTD_LEVEL)
                    .map_err(|e| Fault::Task(format!("zstd: {e}")))?;
                write_new(staging, &format!("{folder}/{level}/c/{index}/{y}/{x}"), |out| out.put(&packed))
            })
            .collect()
    }

    /// Writes the metadata. `voxel_cm`: the edges of a voxel along `z`, `y` and `x`.
    pub fn write_metadata(
        &self,
        staging: &Path,
        folder: &str,
        name: &str,
        scale: Option<Scale>,
        attributes: &VolumeAttributes,
        voxel_cm: Option<[f64; 3]>,
    ) -> Result<Vec<OutputFile>, Fault> {
        let unit = voxel_cm.map(|_| "micrometer");
        let edges = voxel_cm.map_or([1.0; 3], |cm| cm.map(|cm| cm * 1e4));
        let axes = ["z", "y", "x"].map(|n| match unit {
            Some(unit) => json!({ "name": n, "type": "space", "unit": unit }),
            None => json!({ "name": n, "type": "space" }),
        });
        let datasets: Vec<_> = (0..self.levels())
            .map(|l| {
                let size = edges.map(|edge| edge * f64::from(1u32 << l));
                // The middle of a coarse voxel is that of the fine ones it is made of.
                let shift = edges.map(|edge| edge * (f64::from(1u32 << l) - 1.0) / 2.0);
                json!({
                    "path": l.to_string(),
                    "coordinateTransformations": [
                        { "type": "scale", "scale": size },
                        { "type": "translation", "translation": shift },
                    ],
                })
            })
            .collect();
        let group = json!({
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {
                "ome": {
                    "version": "0.5",
                    "multiscales": [{ "name": name, "axes": axes, "datasets": datasets, "type": "mean" }],
                },
                "units": attributes.units,
                "description": attributes.description,
                "integer": scale,
            },
        });
        let mut files = vec![(format!("{folder}/zarr.json"), group)];
        for level in 0..self.levels() {
            let array = json!({
                "zarr_format": 3,
                "node_type": "array",
                "shape": self.shape_at(level),
                "data_type": dtype(scale),
                "chunk_grid": { "name": "regular", "configuration": { "chunk_shape": self.chunk_at(level) } },
                "chunk_key_encoding": { "name": "default", "configuration": { "separator": "/" } },
                "fill_value": 0,
                "codecs": [
                    { "name": "bytes", "configuration": { "endian": "little" } },
                    { "name": "zstd", "configuration": { "level": ZSTD_LEVEL, "checksum": false } },
                ],
                "dimension_names": ["z", "y", "x"],
                "attributes": {},
            });
            files.push((format!("{folder}/{level}/zarr.json"), array));
        }
        files
            .into_iter()
            .map(|(path, value)| {
                make_folders(staging, &path)?;
                let text = serde_json::to_vec_pretty(&value).map_err(|e| Fault::Task(format!("{path}: {e}")))?;
                write_new(staging, &path, |out| out.put(&text))
            })
            .collect()
    }
}

/// Means of `2 × 2 × 2` voxels, of fewer at odd ends.
fn halved(data: ArrayView3<'_, f32>) -> Array3<f32> {
    let (z, y, x) = data.dim();
    let mut out = Array3::zeros((z.div_ceil(2), y.div_ceil(2), x.div_ceil(2)));
    out.axis_iter_mut(ndarray::Axis(0)).into_par_iter().enumerate().for_each(|(k, mut plane)| {
        for ((j, i), value) in plane.indexed_iter_mut() {
            let block = data.slice(s![2 * k..(2 * k + 2).min(z), 2 * j..(2 * j + 2).min(y), 2 * i..(2 * i + 2).min(x)]);
            *value = block.sum() / block.len() as f32;
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn chunk(path: PathBuf, elements: usize) -> Vec<f32> {
        let raw = zstd::bulk::decompress(&std::fs::read(path).unwrap(), elements * 4).unwrap();
        raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    #[test]
    fn blocks_make_whole_chunks_of_every_level() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Array3::from_shape_fn((10, 300, 270), |(z, y, x)| (z * 10_000 + y * 10 + x % 10) as f32);
        let pyramid = Pyramid { shape: [10, 300, 270], depth: 4 };
        assert_eq!(pyramid.levels(), 3);
        let mut files = Vec::new();
        for first in [0, 4, 8] {
            let block = volume.slice(s![first..(first + 4).min(10), .., ..]);
            files.extend(pyramid.write_block(dir.path(), "v", first, block, None).unwrap());
        }
        let attributes = VolumeAttributes { units: "cm^-1".into(), axes: "z:y:x".into(), description: String::new() };
        files.extend(
            pyramid.write_metadata(dir.path(), "v", "scan", None, &attributes, Some([2e-4, 1e-4, 1e-4])).unwrap(),
        );
        // 3 blocks × (2 × 2, 1 × 1, 1 × 1) chunks, and four JSON files.
        assert_eq!(files.len(), 3 * 6 + 4);
        let got = chunk(dir.path().join("v/0/c/2/1/1"), 4 * 256 * 256);
        assert_eq!(got[0], volume[[8, 256, 256]]);
        assert_eq!(got[256 * 256 + 43 * 256 + 13], volume[[9, 299, 269]]);
        assert_eq!((got[14], got[2 * 256 * 256]), (0.0, 0.0));
        let got = chunk(dir.path().join("v/1/c/1/0/0"), 2 * 150 * 135);
        let want = volume.slice(s![6..8, 298..300, 268..270]).mean().unwrap();
        assert!((got[150 * 135 + 149 * 135 + 134] - want).abs() < 1e-2);
        let meta: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("v/zarr.json")).unwrap()).unwrap();
        let scales = &meta["attributes"]["ome"]["multiscales"][0]["datasets"];
        assert_eq!(scales[2]["coordinateTransformations"][0]["scale"], json!([8.0, 4.0, 4.0]));
        assert_eq!(scales[1]["coordinateTransformations"][1]["translation"], json!([1.0, 0.5, 0.5]));
    }

    #[test]
    fn memory_decides_how_deep_a_block_is() {
        assert_eq!(Pyramid::new([2048, 2048, 2048], 8 << 30).depth, 64);
        assert_eq!(Pyramid::new([2048, 2048, 2048], 300 << 20).depth, 8);
        assert_eq!(Pyramid::new([2048, 2048, 2048], 1), Pyramid { shape: [2048; 3], depth: 1 });
        assert_eq!(Pyramid::new([2048, 2048, 2048], 1).levels(), 1);
        // Small volumes have one level.
        assert_eq!(Pyramid::new([20, 100, 100], 1 << 30).levels(), 1);
        assert_eq!(Pyramid::new([2048; 3], 8 << 30).levels(), 5);
    }
}
