//! Parts of a scan: binning, columns, projections and regions, from file to bundle.

use super::load;
use super::recipe::Recipe;
use super::reconstruct::{ReconstructOptions, Reconstruction, reconstruct};
use super::synth::{SynthLayout, SynthOptions, synth};
use crate::formats::part::DATASET;
use crate::formats::{stack::Sample, tiff};
use crate::technique::Resources;
use ndarray::{Array3, ArrayView3, Axis, Ix3, s};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn read(path: &Path, name: &str) -> Array3<f32> {
    crate::formats::h5::open_library(path).unwrap().dataset(name).unwrap().read::<f32, Ix3>().unwrap()
}

fn volume(r: &Reconstruction) -> Array3<f32> {
    read(&r.bundle.join("recon.h5"), DATASET)
}

fn carry(r: &Reconstruction) -> Value {
    serde_json::from_str(&r.output.carry).unwrap()
}

fn run(dir: &Path, scan: &Path, recipe: &str) -> Reconstruction {
    attempt(dir, scan, recipe).unwrap_or_else(|e| panic!("{recipe}: {e}"))
}

fn attempt(dir: &Path, scan: &Path, recipe: &str) -> Result<Reconstruction, super::reconstruct::ReconstructError> {
    let options = ReconstructOptions {
        scan: scan.to_owned(),
        output: dir.join("out"),
        recipe: recipe.parse().unwrap(),
        resources: Some(Resources { workers: 2, threads: 2, task_memory: 1 << 30 }),
        ..ReconstructOptions::default()
    };
    reconstruct(&options, &mut |_| {})
}

fn made(dir: &Path, name: &str, edit: impl FnOnce(&mut SynthOptions)) -> PathBuf {
    let mut o = SynthOptions {
        out: dir.join(name),
        truth: Some(dir.join("truth.h5")),
        size: 64,
        angles: 96,
        slices: 12,
        flats: 2,
        darks: 2,
        ..SynthOptions::default()
    };
    edit(&mut o);
    synth(&o).unwrap();
    o.out
}

/// Means of `bin.1` rows and `bin.0` columns.
fn joined(frames: ArrayView3<'_, f32>, bin: (usize, usize)) -> Array3<f32> {
    let (count, rows, columns) = frames.dim();
    Array3::from_shape_fn((count, rows / bin.1, columns / bin.0), |(f, r, c)| {
        let block = frames.slice(s![f, r * bin.1..(r + 1) * bin.1, c * bin.0..(c + 1) * bin.0]);
        block.iter().sum::<f32>() / block.len() as f32
    })
}

/// The same scan as one in which somebody had cut the frames before: `[frame, row, column]` each.
fn cut_before(scan: &Path, to: &Path, cut: impl Fn(ArrayView3<'_, f32>) -> Array3<f32>) {
    let file = hdf5::File::create(to).unwrap();
    for name in ["/exchange/data", "/exchange/data_white", "/exchange/data_dark"] {
        let frames = cut(read(scan, name).view());
        file.new_dataset_builder().with_data(&frames).create(name).unwrap();
    }
    file.close().unwrap();
}

fn relative(got: &Array3<f32>, want: &Array3<f32>) -> f64 {
    assert_eq!(got.dim(), want.dim());
    let (mut difference, mut norm) = (0.0, 0.0);
    for (g, w) in got.iter().zip(want) {
        difference += f64::from(g - w).powi(2);
        norm += f64::from(*w).powi(2);
    }
    (difference / norm).sqrt()
}

#[test]
fn a_scan_that_is_cut_is_the_scan_that_was_cut_before() {
    let dir = tempfile::tempdir().unwrap();
    // 67 columns and 13 rows: something is left over.
    let scan = made(dir.path(), "scan.h5", |o| (o.size, o.slices, o.center) = (67, 13, Some(31.25)));
    let angles = "angles = { range = 180 }\npreview = false\n";
    let zinger = "zinger = { size = 3, threshold = 0.02 }\n";
    // Given is the column of the detector, wherever that comes to lie.
    let cases = [
        ("binning = 2", "1.0", (2, 2), [0, 13, 0, 67], 15.375),
        ("columns = [6, 58]", "0.5", (1, 1), [0, 13, 6, 58], 25.25),
        ("binning = { x = 4, y = 1 }\ncolumns = [2, 67]", "2.0", (4, 1), [0, 13, 2, 67], 6.9375),
        ("binning = { y = 3 }", "0.5", (1, 3), [0, 13, 0, 67], 31.25),
    ];
    for (n, (recipe, size, bin, [top, bottom, left, right], center)) in cases.into_iter().enumerate() {
        let before = dir.path().join(format!("cut-{n}.h5"));
        cut_before(&scan, &before, |f| joined(f.slice(s![.., top..bottom, left..right]), bin));
        let got = run(dir.path(), &scan, &format!("{angles}{zinger}{recipe}\ncenter = 31.25\npixel_size_um = 0.5"));
        let padding = if recipe.contains("columns") { "edge" } else { "zero" };
        let want = format!("{angles}{zinger}center = {center}\npixel_size_um = {size}\npadding = \"{padding}\"");
        let want = run(dir.path(), &before, &want);
        assert_eq!(volume(&got).dim().0, 13 / bin.1);
        assert_eq!(volume(&got), volume(&want), "{recipe}");
        let all = carry(&got);
        let [at, inside] = ["rotation_center_px", "rotation_center_read_px"].map(|k| all["parameters"][k].as_f64());
        assert_eq!((at, inside), (Some(31.25), Some(center)), "{recipe}");
        assert_eq!(all["acquisition"]["columns"], 67);
        assert_eq!(all["acquisition"]["read"]["columns"], ((right - left) / bin.0) as u64);
        let cm = 0.5e-4;
        let voxel = json!([cm * bin.1 as f64, cm * bin.0 as f64, cm * bin.0 as f64]);
        let close = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-12;
        assert!((0..3).all(|i| close(&all["output"]["voxel_size_cm"][i], &voxel[i])), "{all}");
        let said = all["acquisition"]["notes"].to_string();
        assert_eq!(said.contains("rows 12 to 12 fill no pixel"), bin.1 > 1, "{said}");
        assert_eq!(said.contains("columns 66 to 66 fill no pixel"), bin.0 > 1, "{said}");
    }
}

#[test]
fn packed_frames_are_cut_as_plain_rows_are() {
    let dir = tempfile::tempdir().unwrap();
    let scan = |packed: bool| {
        made(dir.path(), if packed { "p.nxs" } else { "q.nxs" }, |o| {
            (o.layout, o.packed, o.photons, o.angles) = (SynthLayout::NxTomo, packed, Some(2e4), 40);
        })
    };
    let (packed, plain) = (scan(true), scan(false));
    for recipe in [
        "columns = [9, 60]\nbinning = 2\nrows = [3, 10]\n",
        "columns = [9, 60]\nbinning = 2\nrows = [3, 10]\nzinger = { size = 3, threshold = 0.05 }\nscratch = \"f32\"\n",
        "binning = { y = 5 }\nprojections = { start = 3, stop = 37, step = 2 }\n",
    ] {
        let recipe = format!("{recipe}center = 31.5\npreview = false");
        let (a, b) = (run(dir.path(), &packed, &recipe), run(dir.path(), &plain, &recipe));
        assert!(a.records.iter().any(|r| r.label.starts_with("frames-")), "{recipe}");
        // Slabs of other sizes add up in another order; a wrong pixel would show in the third digit.
        assert!(relative(&volume(&a), &volume(&b)) < 1e-5, "{recipe}");
        let decoded = carry(&a)["output"]["chunks_decoded"].as_u64().unwrap();
        assert_eq!(decoded, if recipe.contains("step") { 17 + 6 } else { 40 + 6 }, "{recipe}");
    }
}

#[test]
fn rows_of_a_binned_scan_begin_where_they_are_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let scan = made(dir.path(), "scan.h5", |o| o.slices = 16);
    let base = "center = 31.5\npreview = false\nbinning = 3\n";
    let some = volume(&run(dir.path(), &scan, &format!("{base}rows = [4, 12]")));
    let before = dir.path().join("cut.h5");
    cut_before(&scan, &before, |f| joined(f.slice(s![.., 4..12, ..]), (3, 3)));
    let want = run(dir.path(), &before, "center = 10.1666666666667\npreview = false\npixel_size_um = 3");
    assert_eq!(some.dim(), (2, 21, 21));
    assert!(relative(&some, &volume(&want)) < 1e-5);
}

#[test]
fn an_axis_is_found_and_reported_where_it_is_on_the_detector() {
    let dir = tempfile::tempdir().unwrap();
    let scan = made(dir.path(), "scan.h5", |o| (o.size, o.angles, o.center) = (128, 180, Some(61.0)));
    let r = run(dir.path(), &scan, "binning = 2\ncolumns = [4, 124]\ncenter_try = { range = 2, step = 1 }");
    let all = carry(&r);
    let at = all["parameters"]["rotation_center_px"].as_f64().unwrap();
    assert!((at - 61.0).abs() <= 0.5, "{at}");
    let rows = all["parameters"]["rotation_center_rows"].as_array().unwrap();
    assert!(rows.iter().all(|r| r[0].as_u64().unwrap() % 2 == 0 && (r[1].as_f64().unwrap() - 61.0).abs() < 2.0));
    assert!(r.bundle.join("preview/centers.png").exists());
    // The reconstruction is the phantom at half the resolution.
    let truth = read(&dir.path().join("truth.h5"), DATASET);
    let coarse = Array3::from_shape_fn((6, 60, 60), |(z, y, x)| {
        truth.slice(s![2 * z..2 * z + 2, 2 * y + 4..2 * y + 6, 2 * x + 4..2 * x + 6]).mean().unwrap()
    });
    let error = relative(&volume(&r), &coarse);
    println!("binned: {error:.3}");
    // Joined pixels see means of the edges; 64 pixels point-sampled would be 0.16.
    assert!(error < 0.16, "{error}");
}

#[test]
fn a_region_is_that_part_of_the_volume_in_every_output() {
    let dir = tempfile::tempdir().unwrap();
    let scan = made(dir.path(), "scan.h5", |_| {});
    let base = "center = 31.5\noutput = [\"hdf5\", \"tiff\", \"zarr\"]\n";
    let whole = volume(&run(dir.path(), &scan, base));
    let r = run(dir.path(), &scan, &format!("{base}region = {{ x = [10, 31], y = [20, 60] }}"));
    let want = whole.slice(s![.., 20..60, 10..31]).to_owned();
    assert_eq!(volume(&r), want);
    assert_eq!(carry(&r)["output"]["shape"], json!([12, 40, 21]));
    let mut slice = vec![0.0; 40 * 21];
    tiff::read(&r.bundle.join("tiff/slice_00007.tif"), (40, 21, Sample::F32), &(0..40), &mut slice).unwrap();
    assert!(slice.iter().eq(want.index_axis(Axis(0), 7).iter()));
    let array: Value =
        serde_json::from_slice(&std::fs::read(r.bundle.join("recon.zarr/0/zarr.json")).unwrap()).unwrap();
    assert_eq!(array["shape"], json!([12, 40, 21]));
    let pictures = [("slice", (21, 40)), ("coronal", (21, 12)), ("sagittal", (40, 12))];
    for (name, size) in pictures {
        let file = std::io::BufReader::new(std::fs::File::open(r.bundle.join(format!("preview/{name}.png"))).unwrap());
        let info = png::Decoder::new(file).read_info().unwrap().info().clone();
        assert_eq!((info.width, info.height), size, "{name}");
    }
    // One side only; a volume over parts; and what is not there.
    let r = run(dir.path(), &scan, "center = 31.5\npreview = false\nregion = { y = [0, 2] }");
    assert_eq!(volume(&r), whole.slice(s![.., 0..2, ..]));
    let e = attempt(dir.path(), &scan, "center = 31.5\nregion = { x = [10, 65] }").unwrap_err().to_string();
    assert!(e.contains("region.x = [10, 65]") && e.contains("at most 64"), "{e}");
}

#[test]
fn a_region_of_an_offset_scan_counts_in_the_wide_image() {
    let dir = tempfile::tempdir().unwrap();
    let edit = |o: &mut SynthOptions| (o.range_deg, o.angles, o.center, o.slices) = (360.0, 180, Some(51.5), 4);
    let scan = made(dir.path(), "scan.h5", edit);
    let whole = volume(&run(dir.path(), &scan, "preview = false"));
    assert_eq!(whole.dim(), (4, 104, 104));
    let r = run(dir.path(), &scan, "region = { x = [70, 100] }");
    assert_eq!(volume(&r), whole.slice(s![.., .., 70..100]));
    // Half of the turn is a scan of half a turn, as wide as the detector; every other projection of it is still a turn.
    let shape = |recipe: &str| carry(&run(dir.path(), &scan, recipe))["output"]["shape"][2].as_u64();
    assert_eq!(shape("preview = false\ncenter = 51.5\nprojections = { stop = 90 }"), Some(64));
    assert_eq!(shape("preview = false\ncenter = 51.5\nprojections = { step = 2 }"), Some(104));
    assert_eq!(shape("preview = false\ncenter = 51.5\nangle_step = 3"), Some(104));
}

#[test]
fn some_projections_are_those_of_the_scan_with_the_beam_they_had() {
    let dir = tempfile::tempdir().unwrap();
    let edit = |o: &mut SynthOptions| {
        (o.range_deg, o.angles, o.slices, o.layout) = (360.0, 192, 5, SynthLayout::NxTomo);
    };
    let scan = made(dir.path(), "scan.nxs", edit);
    let base = "center = 31.5\npreview = false\n";
    let truth = read(&dir.path().join("truth.h5"), DATASET);
    let error = |recipe: &str| {
        let r = run(dir.path(), &scan, &format!("{base}{recipe}"));
        let read = carry(&r)["acquisition"]["read"]["projections"].as_u64().unwrap();
        (relative(&volume(&r), &truth), read)
    };
    let (all, n) = error("");
    assert_eq!(n, 192);
    // Either half of the turn is the object again, and so is every other view; a quarter of the views has streaks.
    for (recipe, count) in [
        ("projections = { stop = 96 }", 96),
        ("projections = { start = 96 }", 96),
        ("projections = { start = 20, stop = 116 }", 96),
        ("projections = { start = 1, step = 2 }", 96),
        ("projections = { start = 0, step = 2 }\nangle_step = 2", 48),
    ] {
        let (some, n) = error(recipe);
        println!("{recipe}: {some:.4}, all {all:.4}");
        assert_eq!(n, count, "{recipe}");
        assert!(some < if count == 96 { 1.03 } else { 1.4 } * all, "{recipe}: {some} {all}");
    }
    // Flats stay where they were taken, before projection 0 and after projection 191 of the scan.
    let places = |recipe: &str| -> Vec<f64> {
        let recipe = Recipe::parse(&recipe.parse().unwrap()).unwrap();
        let opened = load::cut(crate::formats::open(&scan, dir.path()).unwrap(), &recipe).unwrap();
        load::flats(&opened).iter().map(|(at, _)| *at).collect()
    };
    assert_eq!(places("projections = { start = 20, stop = 116 }"), [-20.0, 171.0]);
    assert_eq!(places("projections = { start = 20, step = 4 }\nangle_step = 2"), [-2.5, 21.375]);
    let e = attempt(dir.path(), &scan, &format!("{base}projections = {{ stop = 193 }}")).unwrap_err().to_string();
    assert!(e.contains("stop = 193") && e.contains("192") && e.contains("scan.nxs"), "{e}");
    let e = attempt(dir.path(), &scan, &format!("{base}binning = 16\nrows = [0, 16]")).unwrap_err().to_string();
    assert!(e.contains("5 rows"), "{e}");
    let e = attempt(dir.path(), &scan, &format!("{base}binning = 8")).unwrap_err().to_string();
    assert!(e.contains("leaves 0 × 8 pixels"), "{e}");
}

/// Interior tomography: columns that end in the sample. With zeros beyond them the image rises steeply towards its rim; with the
/// values of the ends it falls a little, for the sample does not go on like its ends do.
#[test]
fn edge_values_keep_an_interior_flat() {
    let dir = tempfile::tempdir().unwrap();
    let scan = made(dir.path(), "scan.h5", |o| (o.size, o.angles, o.slices) = (192, 288, 3));
    let whole = volume(&run(dir.path(), &scan, "center = 95.5\npreview = false"));
    let inner = whole.slice(s![1..2, 48..144, 48..144]).to_owned();
    // Mean difference from the whole scan's image in the middle and near the rim, over the mean of that image.
    let cupping = |recipe: &str| {
        let r = run(dir.path(), &scan, &format!("center = 95.5\npreview = false\ncolumns = [48, 144]\n{recipe}"));
        let difference = &volume(&r).slice(s![1..2, .., ..]) - &inner;
        let ring = |from: f64, to: f64| {
            let inside = |y: usize, x: usize| (from..to).contains(&((y as f64 - 47.5).hypot(x as f64 - 47.5) / 48.0));
            let values = difference.indexed_iter().filter(|((_, y, x), _)| inside(*y, *x)).map(|(_, &v)| f64::from(v));
            let (sum, n) = values.fold((0.0, 0), |(s, n), v| (s + v, n + 1));
            sum / f64::from(n) / f64::from(inner.mean().unwrap())
        };
        (ring(0.0, 0.3), ring(0.85, 0.98))
    };
    let (edge, zero) = (cupping(""), cupping("padding = \"zero\""));
    println!("edge: middle {:.4} rim {:.4}; zero: middle {:.4} rim {:.4}", edge.0, edge.1, zero.0, zero.1);
    let (edge, zero) = ((edge.1 - edge.0).abs(), (zero.1 - zero.0).abs());
    assert!(edge < 0.2 * zero, "{edge} {zero}");
}
