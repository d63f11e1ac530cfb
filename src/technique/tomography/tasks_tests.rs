//! The technique from file to bundle: accuracy, bad input, repetition.

use super::reconstruct::{Progress, ReconstructError, ReconstructOptions, Reconstruction, reconstruct};
use super::synth::{SynthLayout, SynthOptions, synth};
use crate::formats::part::{DATASET, sha256_of};
use crate::technique::{Fault, Resources, TaskKind};
use ndarray::{Array3, Axis, Ix3};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn read(path: &Path) -> Array3<f32> {
    crate::formats::h5::open_library(path).unwrap().dataset(DATASET).unwrap().read::<f32, Ix3>().unwrap()
}

fn options<'a>(dir: &Path, scan: &Path, recipe: &str) -> ReconstructOptions<'a> {
    ReconstructOptions {
        scan: scan.to_owned(),
        output: dir.join("out"),
        recipe: recipe.parse().unwrap(),
        resources: Some(Resources { workers: 2, threads: 2, task_memory: 1 << 30 }),
        ..ReconstructOptions::default()
    }
}

fn run(dir: &Path, scan: &Path, recipe: &str) -> Result<Reconstruction, ReconstructError> {
    reconstruct(&options(dir, scan, recipe), &mut |_| {})
}

fn center(r: &Reconstruction) -> f64 {
    let carry: serde_json::Value = serde_json::from_str(&r.output.carry).unwrap();
    carry["parameters"]["rotation_center_px"].as_f64().unwrap()
}

fn relative_error(got: &Array3<f32>, want: &Array3<f32>) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (g, w) in got.iter().zip(want) {
        difference += f64::from(g - w).powi(2);
        norm += f64::from(*w).powi(2);
    }
    (difference / norm).sqrt()
}

fn made(edit: impl FnOnce(&mut SynthOptions)) -> (TempDir, SynthOptions) {
    let dir = tempfile::tempdir().unwrap();
    let mut o = SynthOptions {
        out: dir.path().join("scan.h5"),
        truth: Some(dir.path().join("truth.h5")),
        size: 128,
        angles: 180,
        slices: 12,
        flats: 3,
        darks: 3,
        ..SynthOptions::default()
    };
    edit(&mut o);
    synth(&o).unwrap();
    (dir, o)
}

#[test]
fn synthetic_scans_come_back_in_every_layout_range_and_centre() {
    type Edit = fn(&mut SynthOptions);
    let cases: [(&str, Edit, f64); 8] = [
        ("plain", |_| {}, 63.5),
        ("off centre", |o| o.center = Some(61.25), 61.25),
        ("full turn", |o| (o.range_deg, o.angles, o.center) = (360.0, 360, Some(65.0)), 65.0),
        ("nxtomo", |o| o.layout = SynthLayout::NxTomo, 63.5),
        ("nxtomo, packed", |o| (o.layout, o.packed) = (SynthLayout::NxTomo, true), 63.5),
        ("als", |o| (o.layout, o.center) = (SynthLayout::Als, Some(62.0)), 62.0),
        ("als, legacy", |o| o.layout = SynthLayout::AlsLegacy, 63.5),
        ("tiff", |o| (o.layout, o.out) = (SynthLayout::Tiff, o.out.with_extension("")), 63.5),
    ];
    for (name, edit, axis) in cases {
        let (dir, o) = made(edit);
        // A folder of TIFF files says nothing of its pixels.
        let pixels = if name == "tiff" { "pixel_size_um = 1.0\n" } else { "" };
        let r = run(dir.path(), &o.out, &format!("{pixels}stripe = \"none\"")).unwrap();
        assert!((center(&r) - axis).abs() <= 0.25, "{name}: {}", center(&r));
        let (got, want) = (read(&r.bundle.join("recon.h5")), read(o.truth.as_ref().unwrap()));
        assert_eq!(got.dim(), want.dim());
        let error = relative_error(&got, &want);
        println!("{name}: axis {} error {error:.4}", center(&r));
        // Point-sampled edges dominate: about 0.115 at 128 pixels; a wrong unit, sign or order gives 0.5 and more.
        assert!(error < 0.16, "{name}: {error}");
        for file in &r.output.files {
            assert_eq!(sha256_of(&r.bundle.join(&file.path)).unwrap(), file.sha256, "{}", file.path);
        }
        let names: Vec<_> = r.output.files.iter().map(|f| f.path.as_str()).collect();
        let pictures = ["coronal", "sagittal", "sinogram", "slice"].map(|n| format!("preview/{n}.png"));
        assert_eq!(names, [&pictures[..], &["recon.h5".to_owned()]].concat());
        assert!(!r.bundle.join("parts").exists());
    }
}

#[test]
fn stripe_removal_helps_against_rings_and_harms_little_without() {
    for rings in [0.1, 0.0] {
        let (dir, o) = made(|o| (o.photons, o.rings, o.size, o.slices, o.angles) = (Some(5e4), rings, 256, 24, 256));
        let error = |stripe: &str| {
            let recipe = format!("center = 127.5\npreview = false\nstripe = \"{stripe}\"");
            let r = run(dir.path(), &o.out, &recipe).unwrap();
            relative_error(&read(&r.bundle.join("recon.h5")), &read(o.truth.as_ref().unwrap()))
        };
        let (with, without) = (error("vo"), error("none"));
        println!("rings {rings}: with {with:.3} without {without:.3}");
        assert!(with < if rings > 0.0 { without } else { 1.3 * without }, "{rings}: {with} {without}");
    }
}

#[test]
fn some_rows_and_angles_are_what_they_are_among_all() {
    let (dir, o) = made(|o| (o.size, o.angles, o.slices) = (48, 90, 10));
    let base = "center = 23.5\npreview = false\n";
    let volume = |more: &str| {
        let r = run(dir.path(), &o.out, &format!("{base}{more}")).unwrap();
        read(&r.bundle.join("recon.h5"))
    };
    let (all, some) = (volume(""), volume("rows = [3, 8]"));
    assert_eq!(some.shape(), [5, 48, 48]);
    // Batches of other sizes add up in another order.
    assert!(relative_error(&some, &all.slice(ndarray::s![3..8, .., ..]).to_owned()) < 1e-5);
    // Every other angle: the same sample, with more of the streaks of few views.
    let fewer = volume("angle_step = 2");
    let difference = relative_error(&fewer, &all);
    assert!(difference > 1e-3 && difference < 0.15, "{difference}");
    let refused = run(dir.path(), &o.out, &format!("{base}rows = [3, 11]")).unwrap_err().to_string();
    assert!(refused.contains("10 rows") && refused.contains("[3, 11]"), "{refused}");
}

#[test]
fn an_offset_scan_becomes_an_image_wider_than_the_detector() {
    let (dir, o) = made(|o| (o.range_deg, o.angles, o.center, o.slices) = (360.0, 360, Some(103.5), 6));
    let r = run(dir.path(), &o.out, "center_try = { range = 1, step = 0.5 }\nmask = \"none\"").unwrap();
    let carry: serde_json::Value = serde_json::from_str(&r.output.carry).unwrap();
    assert_eq!(carry["parameters"]["rotation_center_method"], "overlap");
    assert!((center(&r) - 103.5).abs() < 0.2, "{}", center(&r));
    let volume = read(&r.bundle.join("recon.h5"));
    assert_eq!(volume.shape(), [6, 208, 208]);
    assert_eq!(carry["output"]["shape"], serde_json::json!([6, 208, 208]));
    // The sample is as wide as the detector and about the axis: in the middle of the wide image.
    let truth = read(o.truth.as_ref().unwrap());
    let error = relative_error(&volume.slice(ndarray::s![.., 40..168, 40..168]).to_owned(), &truth);
    println!("offset scan: {error:.3}");
    // Point-sampled edges at 128 pixels make 0.115; the axis may be wrong by a fraction of a pixel.
    assert!(error < 0.2, "{error}");
    assert!(r.bundle.join("preview/centers.png").exists());
}

#[test]
fn phase_retrieval_does_not_see_where_slabs_end() {
    let (dir, o) = made(|o| (o.slices, o.angles, o.size) = (24, 60, 64));
    let volume = |workers, recipe: &str| {
        let resources = Some(Resources { workers, threads: 1, task_memory: 1 << 30 });
        let options = ReconstructOptions { resources, ..options(dir.path(), &o.out, recipe) };
        let r = reconstruct(&options, &mut |_| {}).unwrap();
        let slabs = r.records.iter().filter(|r| r.label.starts_with("slab-")).count();
        (read(&r.bundle.join("recon.h5")), slabs)
    };
    // L = √(λ d (δ/β)/4π) = 8.43 µm, or 0.84 pixels; its reach is 8 rows.
    let recipe = "center = 31.5\npreview = false\npixel_size_um = 10\n\
                  paganin = { energy_kev = 25, distance_mm = 60, delta_beta = 300 }";
    let ((one, slabs), (many, more)) = (volume(1, recipe), volume(8, recipe));
    assert!(more > slabs, "{slabs} {more}");
    let (plain, _) = volume(1, "center = 31.5\npreview = false\npixel_size_um = 10");
    let (seam, effect) = (relative_error(&many, &one), relative_error(&plain, &one));
    println!("{slabs} or {more} slabs differ by {seam:.1e}; the filter's effect is {effect:.2}");
    // 1e-4 of the kernel lies beyond the margin.
    assert!(seam < 1e-4 && effect > 0.05, "{seam} {effect}");
    // Without a pixel size there is nothing to scale the frequencies with.
    let r = run(dir.path(), &o.out, "paganin = { energy_kev = 25, distance_mm = 60, delta_beta = 300 }");
    if let Err(e) = r {
        assert!(e.to_string().contains("pixel_size_um"), "{e}");
    }
}

#[test]
fn stripe_removal_does_not_move_the_axis() {
    let (dir, o) = made(|o| (o.size, o.slices, o.center) = (256, 24, Some(125.0)));
    let r = run(dir.path(), &o.out, "stripe = \"vo\"").unwrap();
    assert!((center(&r) - 125.0).abs() <= 0.25, "{}", center(&r));
    let preview = r.records.iter().find(|r| r.kind == TaskKind::Preview).unwrap();
    assert!(preview.output.carry.contains("\"rotation_center_px\":12"), "{}", preview.output.carry);
}

/// The chain here and [`super::slab::Chain`], which benchmarks and device code are held to, are one chain.
#[test]
fn the_chain_is_that_of_the_slab_module() {
    use super::{chain, compute, recipe::Recipe, slab, zinger::Zinger};
    let counts = |n: usize, base: f32| {
        Array3::from_shape_fn((n, 4, 64), |(a, r, u)| base + ((a * 7 + r * 3 + u * 5) % 11) as f32)
    };
    let (data, dark, before, after) = (counts(40, 500.0), counts(3, 10.0), counts(2, 900.0), counts(2, 850.0));
    let zinger = Some(Zinger { width: 3, threshold: 0.005 });
    let recipe = Recipe { zinger, stripe: None, ..Recipe::default() };
    let angles: Vec<f64> = (0..40).map(|i| (f64::from(i) * 4.5).to_radians()).collect();
    let raw = chain::RawRows {
        rows: 0..4,
        margin: (0, 0),
        projections: data.clone(),
        darks: Some(dark.clone()),
        flats: vec![(0.0, before.clone()), (39.0, after.clone())],
        optics: None,
        floating: true,
        transmission: false,
        at: String::new(),
    };
    let shared =
        compute::Shared { recipe: &recipe, angles: &angles, pixel_size_cm: Some(1e-4), image_size: None, bin: 1 };
    let (got, repaired) = compute::slab(&shared, 30.5, raw).unwrap();
    let options = slab::Options { zinger, stripe: None, pixel_size_cm: Some(1e-4), ..slab::Options::default() };
    let mean = super::normalize::mean_frame;
    let flats = [(0.0, before), (39.0, after)].map(|(at, f)| super::normalize::Flat { at, mean: mean(f.view()) });
    let chain = slab::Chain::new(64, &angles, 30.5, options).unwrap();
    let (want, stats) = chain.run(data, &mean(dark.view()), &flats).unwrap();
    assert!(repaired.zingers > 0 && repaired.zingers == stats.zingers);
    assert_eq!(got, want);
}

#[test]
fn the_same_seed_makes_the_same_counts() {
    let (_a, a) = made(|o| (o.photons, o.size) = (Some(1e3), 32));
    let (_b, b) = made(|o| (o.photons, o.size) = (Some(1e3), 32));
    let counts = |o: &SynthOptions| {
        hdf5::File::open(&o.out).unwrap().dataset("/exchange/data").unwrap().read::<u16, Ix3>().unwrap()
    };
    assert_eq!(counts(&a), counts(&b));
}

#[test]
fn a_slow_scan_grows_in_place_and_is_not_taken_early() {
    let dir = tempfile::tempdir().unwrap();
    for out_of_order in [false, true] {
        let out = dir.path().join(format!("slow-{out_of_order}.h5"));
        let o = SynthOptions {
            out: out.clone(),
            size: 64,
            angles: 64,
            slices: 8,
            slow: Some(std::time::Duration::from_millis(400)),
            out_of_order,
            ..SynthOptions::default()
        };
        let (mut early, mut late) = (0, 0);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| synth(&o));
            while !writer.is_finished() {
                if !out.exists() {
                    continue;
                }
                let opened = crate::formats::open(&out, dir.path()).and_then(|s| crate::formats::probe::check(&s));
                match opened {
                    Err(Fault::NotYet(_) | Fault::InputChanged(_)) => early += 1,
                    Err(fault) => panic!("{fault:?}"),
                    Ok(()) => late += 1,
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            writer.join().unwrap().unwrap();
        });
        println!("out of order {out_of_order}: not yet {early} times, whole {late} times");
        assert!(early > 0);
        crate::formats::open(&out, dir.path()).and_then(|s| crate::formats::probe::check(&s)).unwrap();
    }
}

#[test]
fn large_volumes_are_virtual_over_parts_or_one_file() {
    // Just above what is written as one plain file.
    let (dir, o) = made(|o| (o.size, o.angles, o.slices, o.truth) = (512, 16, 66, None));
    let recipe = "center = 255.5\nstripe = \"none\"\npreview = false";
    let r = run(dir.path(), &o.out, recipe).unwrap();
    let parts = r.output.files.iter().filter(|f| f.path.starts_with("parts/slab-")).count();
    assert!(parts >= 3 && r.output.files.iter().any(|f| f.path == "recon.h5"));
    for file in &r.output.files {
        assert_eq!(sha256_of(&r.bundle.join(&file.path)).unwrap(), file.sha256, "{}", file.path);
    }
    let single = run(dir.path(), &o.out, &format!("{recipe}\nsingle_file = true")).unwrap();
    assert_eq!(single.bundle.file_name().unwrap(), "scan~2");
    assert_eq!(single.output.files.len(), 1);
    assert_eq!(read(&single.bundle.join("recon.h5")), read(&r.bundle.join("recon.h5")));
}

#[test]
fn slabs_join_without_seams() {
    let (dir, o) = made(|o| (o.slices, o.size) = (21, 64));
    let recipe = "center = 31.5\nzinger = { size = 5, threshold = 0.01 }";
    let whole = run(dir.path(), &o.out, recipe).unwrap();
    let mut cut = options(dir.path(), &o.out, recipe);
    cut.resources = Some(Resources { workers: 7, threads: 1, task_memory: 1 << 30 });
    let cut = reconstruct(&cut, &mut |_| {}).unwrap();
    let slabs = |r: &Reconstruction| r.records.iter().filter(|r| r.label.starts_with("slab-")).count();
    assert!(slabs(&cut) > slabs(&whole));
    let error = relative_error(&read(&cut.bundle.join("recon.h5")), &read(&whole.bundle.join("recon.h5")));
    // Two slices share a complex transform, so the pairing shows in the last bits; a seam would be some per cent.
    assert!(error < 2e-4, "{error}");
}

#[test]
fn tooth_is_reconstructed_about_its_axis() {
    let tooth = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/tomo/tooth.h5"));
    if !tooth.exists() {
        println!("skipped: {} is not here", tooth.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut events = Vec::new();
    let started = std::time::Instant::now();
    let r = reconstruct(&options(dir.path(), &tooth, ""), &mut |p| events.push(p.clone())).unwrap();
    println!("{:?}", started.elapsed());
    assert!((center(&r) - 295.0).abs() <= 0.25, "{}", center(&r));
    assert_eq!(read(&r.bundle.join("recon.h5")).dim(), (2, 640, 640));
    assert_eq!(events[0], Progress::Planned("181 projections of 2×640, 10 dark, 10 white".into(), 4));
    assert_eq!(events.last(), Some(&Progress::Done("finish".into(), 4, 4)));
}

#[test]
fn diad_is_reconstructed_when_the_axis_is_given() {
    let scan = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/tomo/k11-18014.nxs"));
    if !scan.exists() {
        println!("skipped: {} is not here", scan.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let r = run(dir.path(), &scan, "center = 12.5\npixel_size_um = 0.54").unwrap();
    let volume = read(&r.bundle.join("recon.h5"));
    assert_eq!(volume.dim(), (22, 26, 26));
    assert!(volume.iter().all(|v| v.is_finite()));
}

/// A Data Exchange scan from arrays.
fn written(dir: &Path, data: &Array3<f32>, white: &Array3<f32>, dark: &Array3<f32>) -> PathBuf {
    let path = dir.join("bad.h5");
    let file = hdf5::File::create(&path).unwrap();
    for (name, stack) in [("data", data), ("data_white", white), ("data_dark", dark)] {
        file.new_dataset_builder().with_data(stack).create(format!("/exchange/{name}").as_str()).unwrap();
    }
    file.close().unwrap();
    path
}

#[test]
fn bad_scans_are_refused_in_words_and_leave_nothing() {
    let full = |n: usize, rows: usize, columns: usize, v: f32| Array3::from_elem((n, rows, columns), v);
    let mut flooded = full(40, 3, 32, 50.0);
    flooded.index_axis_mut(Axis(2), 7).fill(f32::NAN);
    let cases = [
        ("dark flats", full(40, 3, 32, 50.0), full(2, 3, 32, 5.0), full(2, 3, 32, 5.0), "nowhere brighter"),
        ("nan", flooded, full(2, 3, 32, 100.0), full(2, 3, 32, 5.0), "NaN or infinite"),
        ("one angle", full(1, 3, 32, 50.0), full(2, 3, 32, 100.0), full(2, 3, 32, 5.0), "1 projection"),
        ("one pixel", full(40, 1, 1, 50.0), full(2, 1, 1, 100.0), full(2, 1, 1, 5.0), "detector columns"),
        ("few angles", full(5, 3, 32, 50.0), full(2, 3, 32, 100.0), full(2, 3, 32, 5.0), "set center"),
        ("flat shape", full(40, 3, 32, 50.0), full(2, 4, 32, 100.0), full(2, 3, 32, 5.0), "4×32"),
    ];
    for (name, data, white, dark, words) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), &data, &white, &dark);
        match run(dir.path(), &path, "") {
            Err(ReconstructError::Fault(Fault::Input(text))) => {
                assert!(text.contains(words) && text.contains("bad.h5"), "{name}: {text}");
            }
            other => panic!("{name}: {other:?}"),
        }
        assert!(!dir.path().join("out").exists(), "{name}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(run(dir.path(), &dir.path().join("none.h5"), ""), Err(ReconstructError::Fault(Fault::Input(_)))));
    assert!(matches!(run(dir.path(), &dir.path().join("x"), "centre = 3"), Err(ReconstructError::Recipe(_))));
}

#[test]
fn a_few_bad_pixels_are_repaired_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut data = Array3::from_shape_fn((40, 3, 32), |(a, _, u)| 50.0 + 20.0 * ((a + u) as f32 * 0.3).sin());
    data[[3, 1, 9]] = f32::NAN;
    data[[30, 2, 31]] = f32::INFINITY;
    let flat = Array3::from_elem((2, 3, 32), 100.0);
    let path = written(dir.path(), &data, &flat, &Array3::zeros((1, 3, 32)));
    let r = run(dir.path(), &path, "center = 15.5").unwrap();
    let carry: serde_json::Value = serde_json::from_str(&r.output.carry).unwrap();
    assert_eq!(carry["output"]["repaired"]["non_finite"], 2);
    assert!(read(&r.bundle.join("recon.h5")).iter().all(|v| v.is_finite()));
    assert!(carry["acquisition"]["notes"][0].as_str().unwrap().contains("no rotation angles"));
}

#[test]
fn a_scan_that_changes_meanwhile_is_noticed() {
    let (dir, o) = made(|o| o.size = 32);
    let mut changed = false;
    let result = reconstruct(&options(dir.path(), &o.out, "center = 15.5"), &mut |p| {
        if matches!(p, Progress::Planned(..)) {
            let file = std::fs::File::options().append(true).open(&o.out).unwrap();
            file.set_modified(std::time::SystemTime::now()).unwrap();
            changed = true;
        }
    });
    assert!(changed && matches!(result, Err(ReconstructError::Fault(Fault::InputChanged(_)))), "{result:?}");
}

#[test]
fn finishing_twice_gives_the_same_bundle_and_sweeps_losers() {
    use super::finish;
    use super::recipe::Recipe;
    use crate::technique::{JobContext, TaskContext, TaskSpec};
    let (dir, o) = made(|o| (o.size, o.slices) = (64, 16));
    let seen = std::sync::Mutex::new(None);
    let seal = |staging: &Path, job: &JobContext, out: &crate::technique::TaskOutput| {
        *seen.lock().unwrap() = Some((staging.to_owned(), job.clone(), out.clone()));
        std::fs::create_dir_all(staging.join("parts")).unwrap();
        std::fs::write(staging.join("parts/slab-00000.a9.h5"), b"loser").unwrap();
        let task = TaskSpec { label: "finish".into(), kind: TaskKind::Finish, params: vec![], cost: 1.0, bytes_in: 0 };
        let ctx = TaskContext {
            job: std::sync::Arc::new(job.clone()),
            task,
            attempt: 2,
            host: String::new(),
            rank: 0,
            cancelled: Default::default(),
        };
        let slabs = job.carry.iter().filter(|r| r.label.starts_with("slab-")).count();
        let recipe = Recipe::from_json(&job.recipe).unwrap();
        let again = finish::store(&ctx, &recipe, [16, 64, 64], slabs, "{}")?;
        assert_eq!(again.files, out.files);
        assert!(!staging.join("parts").exists());
        Ok(())
    };
    let mut opts = options(dir.path(), &o.out, "center = 31.5");
    opts.seal = Some(&seal);
    reconstruct(&opts, &mut |_| {}).unwrap();
    assert!(seen.lock().unwrap().is_some());
}

/// Not a check: prints what reading, reconstructing and writing cost on this machine.
#[test]
#[ignore = "a measurement: cargo test --lib timing -- --ignored --nocapture"]
fn timing_of_a_512_cube() {
    for layout in [SynthLayout::DataExchange, SynthLayout::NxTomo] {
        let start = std::time::Instant::now();
        let (dir, o) = made(|o| (o.layout, o.size, o.slices, o.angles) = (layout, 512, 512, 720));
        println!("{layout:?}: synth with truth {:.1} s", start.elapsed().as_secs_f64());
        let source = crate::formats::open(&o.out, dir.path()).unwrap();
        let start = std::time::Instant::now();
        let rows = source.projections.read_rows(0..512).unwrap();
        let s = start.elapsed().as_secs_f64();
        println!("  all projections {:.2} s, {:.0} MB/s of u16", s, rows.len() as f64 * 2e-6 / s);
        drop(rows);
        let start = std::time::Instant::now();
        for slab in 0..16 {
            source.projections.read_rows(slab * 32..slab * 32 + 32).unwrap();
        }
        println!("  in 16 slabs of 32 rows {:.2} s", start.elapsed().as_secs_f64());
        for recipe in ["stripe = \"none\"", ""] {
            let start = std::time::Instant::now();
            let mut preview = 0.0;
            let r = reconstruct(&options(dir.path(), &o.out, recipe), &mut |p| {
                if matches!(p, Progress::Done(label, ..) if label == "preview") {
                    preview = start.elapsed().as_secs_f64();
                }
            })
            .unwrap();
            let total = start.elapsed().as_secs_f64();
            let sum = |f: fn(&crate::technique::Timings) -> f64| -> f64 {
                r.records.iter().map(|r| f(&r.output.timings)).sum()
            };
            println!(
                "  recipe {recipe:?}: {total:.1} s, preview after {preview:.1} s; busy: read {:.1}, compute {:.1}, write {:.1} s; axis {}",
                sum(|t| t.read_s),
                sum(|t| t.compute_s),
                sum(|t| t.write_s),
                center(&r)
            );
        }
    }
}
