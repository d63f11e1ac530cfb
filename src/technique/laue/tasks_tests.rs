//! The technique from file to bundle, on synthetic points.

use super::synth::{Aperture, SynthOptions, Truth, synth};
use crate::formats::h5::open_library;
use crate::technique::tomography::reconstruct::{ReconstructError, ReconstructOptions, Reconstruction, reconstruct};
use crate::technique::{Fault, Resources};
use ndarray::{Array2, Array3};
use std::path::Path;

fn run(scan: &Path, output: &Path, recipe: &str, workers: u32) -> Result<Reconstruction, ReconstructError> {
    let options = ReconstructOptions {
        technique: "laue",
        scan: scan.to_owned(),
        output: output.to_owned(),
        recipe: toml::from_str(recipe).unwrap(),
        resources: Some(Resources { workers, threads: 2, task_memory: 1 << 30 }),
        ..ReconstructOptions::default()
    };
    reconstruct(&options, &mut |_| ())
}

fn stack(bundle: &Path) -> Array3<f32> {
    open_library(&bundle.join("recon.h5")).unwrap().dataset("/entry1/data/data").unwrap().read().unwrap()
}

fn map(bundle: &Path, name: &str) -> Array2<f32> {
    open_library(&bundle.join("recon.h5")).unwrap().dataset(&format!("/entry1/quality/{name}")).unwrap().read().unwrap()
}

fn flags(bundle: &Path) -> Array2<u8> {
    open_library(&bundle.join("recon.h5")).unwrap().dataset("/entry1/quality/flags").unwrap().read().unwrap()
}

/// Pixels whose light is of one source to nine tenths, with its depth.
fn lone(truth: &Truth, least: f64) -> Vec<([usize; 2], f64)> {
    let [rows, columns] = truth.options.readout;
    let bad = |p: &[usize; 2]| truth.dead.contains(p) || truth.saturated.contains(p);
    (0..rows * columns)
        .map(|i| [i / columns, i % columns])
        .filter(|p| !bad(p))
        .filter_map(|p| {
            let total: f64 = truth.shares(p[0], p[1]).map(|s| s.1).sum();
            let (spot, share) = truth.shares(p[0], p[1]).max_by(|a, b| a.1.total_cmp(&b.1))?;
            (total >= least && share > 0.95 * total).then_some((p, spot.source.depth_um))
        })
        .collect()
}

fn options(dir: &Path) -> SynthOptions {
    SynthOptions {
        out: dir.join("point.h5"),
        frames: 300,
        readout: [24, 32],
        spots: 6,
        counts: 2000.0,
        configuration: Some(dir.join("config")),
        truth: Some(dir.join("truth.json")),
        seed: 3,
        ..SynthOptions::default()
    }
}

#[test]
fn a_point_becomes_a_bundle_with_the_planted_depths() {
    let dir = tempfile::tempdir().unwrap();
    let o = options(dir.path());
    let truth = synth(&o).unwrap();
    let config = dir.path().join("config");
    let recipe = format!(
        "configuration = '{}'\nper_depth = true\ndepth = {{ step_um = 4.0 }}\nfootprint = {{ degree = 3, knots = 2 }}",
        config.display()
    );
    let done = run(&o.out, &dir.path().join("a"), &recipe, 2).unwrap();
    let (depth, flags) = (map(&done.bundle, "depth"), flags(&done.bundle));
    let everything = stack(&done.bundle);
    let lone = lone(&truth, 300.0);
    assert!(lone.len() > 40, "{}", lone.len());
    let mut wrong = 0;
    for (p, z) in &lone {
        wrong += usize::from(flags[*p] != 0 || (f64::from(depth[*p]) - z).abs() > 1.0);
    }
    // A few pixels have a part of another spot.
    assert!(wrong * 50 <= lone.len(), "{wrong} of {}", lone.len());
    for p in &truth.dead {
        assert!(flags[*p] & 4 != 0);
    }
    for p in &truth.saturated {
        assert!(flags[*p] & 2 != 0 && (0..everything.dim().0).all(|k| everything[[k, p[0], p[1]]] == 0.0));
    }
    // Conservation, from the file: what lies in the stack is what the account says.
    let account = &serde_json::from_str::<serde_json::Value>(&done.output.carry).unwrap()["output"]["intensity"];
    let number = |k: &str| account[k].as_f64().unwrap();
    let sum: f64 = everything.iter().map(|&v| f64::from(v)).sum();
    assert!((sum - number("deposited")).abs() < 1e-6 * sum);
    let spent = number("deposited") + number("out_of_range") + number("rejected");
    assert!((spent - number("input")).abs() < 1e-6 * spent, "{account}");
    // One file a depth, as indexing expects.
    let one = open_library(&done.bundle.join("depths/point_50.h5")).unwrap();
    let image: Array2<f32> = one.dataset("/entry1/data/data").unwrap().read().unwrap();
    assert_eq!(image, everything.index_axis(ndarray::Axis(0), 50));
    let at: f64 = one.dataset("/entry1/depth").unwrap().read_scalar().unwrap();
    assert!((at - 0.0).abs() < 1e-9, "{at}");
    for file in ["preview/sum.png", "preview/depths.svg", "preview/spots.json", "point.json"] {
        assert!(done.bundle.join(file).is_file(), "{file}");
    }
    assert!(!done.bundle.join("parts").exists());
    // Cut otherwise, and from one file a frame: the same numbers.
    let split = SynthOptions { out: dir.path().join("split"), split: true, truth: None, configuration: None, ..o };
    synth(&split).unwrap();
    let again =
        run(&split.out, &dir.path().join("b"), &recipe.replace("per_depth = true", "preview = false"), 7).unwrap();
    assert_eq!(stack(&again.bundle), everything);
}

#[test]
fn a_wire_scan_becomes_a_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let o = SynthOptions {
        aperture: Aperture::Wire,
        frames: 200,
        step_um: 1.0,
        depths_um: [-20.0, 20.0],
        spots: 4,
        counts: 20000.0,
        readout: [16, 20],
        ..options(dir.path())
    };
    let truth = synth(&o).unwrap();
    let recipe = format!(
        "method = 'wire'\ngeometry = '{}'\ndepth = {{ first_um = -60, last_um = 60, step_um = 1 }}",
        dir.path().join("config").display()
    );
    let done = run(&o.out, &dir.path().join("a"), &recipe, 1).unwrap();
    let depth = map(&done.bundle, "depth");
    let lone = lone(&truth, 4000.0);
    let near = lone.iter().filter(|(p, z)| (f64::from(depth[*p]) - z).abs() < 3.0).count();
    assert!(lone.len() >= 4 && near * 10 >= lone.len() * 8, "{near} of {}", lone.len());
}

#[test]
fn points_that_cannot_be_resolved_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let o = options(dir.path());
    synth(&o).unwrap();
    let config = dir.path().join("config");
    let base = format!("configuration = '{}'\n", config.display());
    let fault = |recipe: &str| match run(&o.out, &dir.path().join("x"), recipe, 1).unwrap_err() {
        ReconstructError::Fault(fault) => fault,
        other => panic!("{other}"),
    };
    assert!(matches!(fault(&format!("{base}frames = [0, 900, 1]")), Fault::NotYet(t) if t.contains("300")));
    assert!(matches!(fault(&format!("{base}dataset = '/entry1/detector'")), Fault::Input(t) if t.contains("group")));
    assert!(matches!(fault(&format!("{base}region = [90, 99, 0, 9]")), Fault::Input(t) if t.contains("region")));
    assert!(
        matches!(fault(&format!("{base}detector = {{ shape = [1024, 1024] }}")), Fault::Input(t) if t.contains("detector"))
    );
    assert!(
        matches!(fault(&format!("{base}scanner = {{ step_um = 50 }}")), Fault::Input(t) if t.contains("scanner.step_um"))
    );
    let wire = "method = 'wire'\nwire = { diameter_um = 50.0, axis = [1.0, 0.0, 0.0] }\n";
    assert!(matches!(fault(&format!("{base}{wire}")), Fault::Input(t) if t.contains("wireX")));
    // Nothing is left behind.
    assert_eq!(std::fs::read_dir(dir.path().join("x")).map(Iterator::count).unwrap_or(0), 0);
}
