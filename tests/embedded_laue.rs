//! Laue examples, end to end: points arrive one after the other, bundles are published, and the map of the grid grows.

mod common;

use common::rig::*;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Campaign {
    dir: tempfile::TempDir,
}

impl Campaign {
    /// An example with the files it names, in a folder of its own.
    fn example(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        std::fs::copy(examples.join(name), dir.path().join("campaign.toml")).unwrap();
        std::fs::create_dir(dir.path().join("incoming")).unwrap();
        let copied = Command::new("cp").arg("-r").arg(examples.join("laue")).arg(dir.path()).status().unwrap();
        assert!(copied.success());
        Self { dir }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    fn beampilot(&self, args: &[&str]) -> String {
        let output = Command::new(BIN).args(args).current_dir(self.dir.path()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn json(&self, relative: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(relative)).unwrap()).unwrap()
    }

    fn points(&self) -> Vec<(f64, f64)> {
        let series = self.json("results/34ide/_live/series.json");
        let number = |v: &Value| v.as_f64().unwrap();
        let points = series["points"].as_array().unwrap();
        points.iter().map(|p| (number(&p["sample_um"][0]), number(&p["mean_depth_um"]))).collect()
    }
}

const SMALL: [&str; 8] = ["--rows", "12", "--columns", "16", "--spots", "3", "--counts", "3000"];

/// Points of films at depths that rise along the grid: so does the map, and it is the same when it is made anew.
#[test]
fn points_become_bundles_and_their_grid_a_map_that_grows() {
    let campaign = Campaign::example("laue-aperture.toml");
    for (i, depth) in ["-60", "0", "60"].into_iter().enumerate() {
        let (name, x, seed) = (format!("incoming/p{i}.h5"), (2 * i).to_string(), i.to_string());
        let mut args =
            vec!["synth", "laue", &name, "--depths", depth, depth, "--sample", &x, "0", "0", "--seed", &seed];
        args.extend(SMALL);
        campaign.beampilot(&args);
        campaign.beampilot(&["run", "campaign.toml", "--once", "--workers", "2"]);
        assert_eq!(campaign.points().len(), i + 1);
    }
    let points = campaign.points();
    for (i, (x, depth)) in points.iter().enumerate() {
        assert_eq!(*x, 2.0 * i as f64);
        assert!((depth - 60.0 * (i as f64 - 1.0)).abs() < 3.0, "{points:?}");
    }
    let bundle = campaign.path("results/34ide/p1");
    for file in ["recon.h5", "point.json", "manifest.json", "SHA256SUMS", "preview/sum.png", "preview/depths.svg"] {
        assert!(bundle.join(file).is_file(), "{file}");
    }
    let manifest = campaign.json("results/34ide/p1/manifest.json");
    let text = manifest.to_string();
    assert!(text.contains("comp.workers") && text.contains("deposited"), "{text}");
    std::fs::remove_dir_all(campaign.path("results/34ide/_live")).unwrap();
    assert!(campaign.beampilot(&["series", "results/34ide"]).contains("3 points"));
    assert_eq!(campaign.points(), points);
}

/// Two pilots publish side by side: the map has the points of both, and nobody's claim on it is left.
#[test]
fn two_pilots_make_one_map() {
    let campaign = Campaign::example("laue-aperture.toml");
    for i in 0..6 {
        let (name, x) = (format!("incoming/p{i}.h5"), i.to_string());
        let mut args = vec!["synth", "laue", &name, "--depths", "0", "0", "--sample", &x, "0", "0"];
        args.extend(SMALL);
        campaign.beampilot(&args);
    }
    let start = || {
        let args = ["run", "campaign.toml", "--once", "--workers", "1"];
        Command::new(BIN).args(args).current_dir(campaign.dir.path()).spawn().unwrap()
    };
    for mut pilot in [start(), start()] {
        assert!(pilot.wait().unwrap().success());
    }
    assert_eq!(campaign.points().len(), 6);
    let live = std::fs::read_dir(campaign.path("results/34ide/_live")).unwrap().flatten();
    let names: Vec<_> = live.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().all(|n| !n.starts_with('.')), "{names:?}");
}

#[test]
fn folders_of_a_wire_scan_become_one_file_a_depth() {
    let campaign = Campaign::example("laue-wire.toml");
    let mut args = vec![
        "synth",
        "laue",
        "incoming/w1",
        "--aperture",
        "wire",
        "--split",
        "--step",
        "1",
        "--frames",
        "60",
        "--depths",
        "-5",
        "5",
    ];
    args.extend(SMALL);
    campaign.beampilot(&args);
    std::fs::write(campaign.path("incoming/w1.done"), "").unwrap();
    campaign.beampilot(&["run", "campaign.toml", "--once", "--workers", "2"]);
    let depths: Vec<_> = std::fs::read_dir(campaign.path("results/34ide/w1/depths")).unwrap().flatten().collect();
    assert_eq!(depths.len(), 201);
    assert!(campaign.path("results/34ide/w1/depths/w1_100.h5").is_file());
}

/// The pose that a point was made with is found again from a wrong one.
#[test]
fn the_mask_is_calibrated_from_the_command_line() {
    let campaign = Campaign::example("laue-aperture.toml");
    campaign.beampilot(&[
        "synth",
        "laue",
        "film.h5",
        "--rows",
        "96",
        "--columns",
        "200",
        "--spots",
        "60",
        "--depths",
        "10",
        "10",
        "--width",
        "2",
        "--counts",
        "5000",
        "--background",
        "0",
        "--frames",
        "260",
        "--configuration",
        "config.yml",
    ]);
    let out = campaign.beampilot(&[
        "calibrate",
        "film.h5",
        "--json",
        "--picture",
        "o.svg",
        "--recipe",
        "configuration=config.yml",
        "calibrate.film_um=10",
        "mask.center_mm=[0.46, 1.61, 0.75]",
        "mask.angles_deg=[0.1, -0.5, 43.9]",
        "footprint.fit=false",
    ]);
    let found: Value = serde_json::from_str(&out).unwrap();
    let spread = |i: usize| found["spread_um"][i].as_f64().unwrap();
    let sharp = |i: usize| found["sharpness"][i].as_f64().unwrap();
    assert!(spread(1) < 1.0 && sharp(1) > 0.9 && sharp(1) > 2.0 * sharp(0), "{out}");
    assert!(std::fs::read_to_string(campaign.path("o.svg")).unwrap().contains("anglez"));
}

/// Frames in a file that a point links to: it belongs to the input, and what is made of it changes with it.
#[test]
fn files_that_a_point_links_to_belong_to_it() {
    let campaign = Campaign::example("laue-aperture.toml");
    let put = |depth: &str| {
        let mut args = vec!["synth", "laue", "aside.h5", "--depths", depth, depth, "--sample", "0", "0", "0"];
        args.extend(SMALL);
        campaign.beampilot(&args);
        std::fs::rename(campaign.path("aside.h5"), campaign.path("incoming/p0.frames")).unwrap();
    };
    put("-60");
    let master = hdf5::File::create(campaign.path("incoming/p0.h5.part")).unwrap();
    master.link_external("p0.frames", "/entry1", "/entry1").unwrap();
    master.close().unwrap();
    std::fs::rename(campaign.path("incoming/p0.h5.part"), campaign.path("incoming/p0.h5")).unwrap();
    let run = || campaign.beampilot(&["run", "campaign.toml", "--once", "--workers", "2"]);
    run();
    let linked = campaign.json("results/34ide/p0/manifest.json")["input"]["linked"].clone();
    assert!(linked[0]["path"].as_str().unwrap().ends_with("/incoming/p0.frames"), "{linked}");
    let depth = |points: &[(f64, f64)]| points[0].1;
    assert!((depth(&campaign.points()) + 60.0).abs() < 3.0);
    run();
    assert!(!campaign.path("results/34ide/p0~2").exists(), "nothing changed");
    put("60");
    run();
    assert!(campaign.path("results/34ide/p0~2/recon.h5").is_file());
    let points = campaign.points();
    assert!(points.len() == 1 && (depth(&points) - 60.0).abs() < 3.0, "{points:?}");
}
