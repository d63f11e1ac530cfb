//! Other outputs from scan to bundle.

use super::reconstruct::{ReconstructOptions, Reconstruction, reconstruct};
use super::synth::{SynthOptions, synth};
use crate::formats::part::{DATASET, sha256_of};
use crate::formats::{stack::Sample, tiff};
use crate::technique::Resources;
use ndarray::{Array3, Axis, Ix3};
use std::path::Path;

fn volume(r: &Reconstruction) -> Array3<f32> {
    let file = crate::formats::h5::open_library(&r.bundle.join("recon.h5")).unwrap();
    file.dataset(DATASET).unwrap().read::<f32, Ix3>().unwrap()
}

fn carry(r: &Reconstruction) -> serde_json::Value {
    serde_json::from_str(&r.output.carry).unwrap()
}

fn slices(bundle: &Path, shape: (usize, usize, usize), sample: Sample) -> Array3<f32> {
    let mut out = Array3::zeros(shape);
    for (z, mut slice) in out.axis_iter_mut(Axis(0)).enumerate() {
        let path = bundle.join(format!("tiff/slice_{z:05}.tif"));
        let to = slice.as_slice_mut().unwrap();
        tiff::read(&path, (shape.1, shape.2, sample), &(0..shape.1), to).unwrap();
    }
    out
}

#[test]
fn the_recipe_chooses_what_the_bundle_holds() {
    let dir = tempfile::tempdir().unwrap();
    let scan = dir.path().join("scan.h5");
    let small = SynthOptions {
        out: scan.clone(),
        size: 32,
        angles: 24,
        slices: 9,
        flats: 2,
        darks: 2,
        ..SynthOptions::default()
    };
    synth(&small).unwrap();
    let run = |recipe: &str| {
        let options = ReconstructOptions {
            scan: scan.clone(),
            output: dir.path().join("out"),
            recipe: format!("center = 15.5\npreview = false\n{recipe}").parse().unwrap(),
            resources: Some(Resources { workers: 2, threads: 2, task_memory: 40_000 }),
            ..ReconstructOptions::default()
        };
        let r = reconstruct(&options, &mut |_| {}).unwrap();
        for file in &r.output.files {
            assert_eq!(sha256_of(&r.bundle.join(&file.path)).unwrap(), file.sha256, "{}", file.path);
        }
        for gone in ["out", "parts", "scratch"] {
            assert!(!r.bundle.join(gone).exists(), "{gone}");
        }
        r
    };
    let plain = run("");
    let truth = volume(&plain);
    let shape = truth.dim();

    let r = run("output = [\"hdf5\", \"tiff\", \"zarr\"]");
    assert!(r.records.iter().filter(|r| r.label.starts_with("output-")).count() > 1, "several tasks");
    assert_eq!(volume(&r), truth);
    assert_eq!(slices(&r.bundle, shape, Sample::F32), truth);
    let array: serde_json::Value =
        serde_json::from_slice(&std::fs::read(r.bundle.join("recon.zarr/0/zarr.json")).unwrap()).unwrap();
    let depth = array["chunk_grid"]["configuration"]["chunk_shape"][0].as_u64().unwrap() as usize;
    assert!(depth > 1 && depth < 9, "{array}");
    for first in (0..9).step_by(depth) {
        let path = r.bundle.join(format!("recon.zarr/0/c/{}/0/0", first / depth));
        let raw = zstd::bulk::decompress(&std::fs::read(path).unwrap(), depth * 32 * 32 * 4).unwrap();
        let got: Vec<f32> = raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let want = truth.slice(ndarray::s![first..(first + depth).min(9), .., ..]);
        assert!(want.iter().zip(&got).all(|(a, b)| a == b));
    }

    // Only TIFF, as integers in a given window; the window is in the manifest.
    let r = run("output = \"tiff\"\ninteger = { bits = 8, low = 0, high = 40 }");
    assert!(!r.bundle.join("recon.h5").exists());
    assert_eq!(carry(&r)["output"]["integer"], serde_json::json!({ "bits": 8, "low": 0.0, "high": 40.0 }));
    let want = truth.mapv(|v| (v / 40.0 * 255.0).round().clamp(0.0, 255.0));
    let got = slices(&r.bundle, shape, Sample::U8);
    assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1.0));

    // HDF5 as integers, the window found from the volume: nearly all values come back within a step.
    let r = run("integer = { bits = 16 }");
    let output = &carry(&r)["output"];
    let (low, high) = (output["integer"]["low"].as_f64().unwrap(), output["integer"]["high"].as_f64().unwrap());
    assert_eq!(output["dtype"], "uint16");
    let file = crate::formats::h5::open_library(&r.bundle.join("recon.h5")).unwrap();
    let dataset = file.dataset(DATASET).unwrap();
    let stored = dataset.attr("integer_high").unwrap().read_scalar::<f32>().unwrap();
    assert!((f64::from(stored) - high).abs() < 1e-3 * high.abs());
    let step = (high - low) / 65535.0;
    let got = dataset.read::<u16, Ix3>().unwrap();
    let far =
        truth.iter().zip(&got).filter(|(t, g)| (f64::from(**t) - low - f64::from(**g) * step).abs() > step).count();
    assert!(far <= truth.len() / 1000, "{far} of {}", truth.len());
}
