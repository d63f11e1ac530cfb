//! The executable with a GPU, as far as one can have that without: the emulated device stands in for CUDA's libraries.

#[macro_use]
mod common;
#[path = "common/emulation.rs"]
mod emulation;

use common::rig::{BIN, Launcher, Rig, volume};
use ndarray::{Array2, Array3};
use std::path::Path;
use std::process::{Command, Output};

/// The executable, on an emulated device with this fault.
fn with_gpu(fault: &str) -> Command {
    let folder = emulation::libraries();
    let path = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let mut command = Command::new(BIN);
    command
        .env("LD_LIBRARY_PATH", format!("{}:{path}", folder.display()))
        .env("BEAMPILOT_KERNEL_CACHE", folder.join("kernels"))
        .env("BEAMPILOT_EMULATED_FAULT", fault)
        .env("BEAMPILOT_DEVICE", "gpu")
        .env_remove("CUDA_VISIBLE_DEVICES");
    command
}

fn run(mut command: Command) -> (Output, String) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output, text)
}

const STREAM: &str = "recipe = { center = 31.0, stripe = \"vo\", zinger = { size = 3, threshold = 0.3 } }";

/// A pilot on the emulated device, to its end.
fn pilot(rig: &Rig, fault: &str) -> (Option<i32>, String) {
    let mut command = with_gpu(fault);
    command.arg("run").arg(rig.path("campaign.toml")).arg("--once");
    let mut pilot = rig.spawn(command);
    let code = pilot.exit_code();
    (code, pilot.log())
}

#[test]
fn a_pilot_with_a_gpu_publishes_what_one_without_does() {
    let phases = "recipe = { center = 31.0, algorithm = \"cgls\", iterative = { iterations = 4 }, \
                  paganin = { energy_kev = 20.0, distance_mm = 20.0, delta_beta = 50.0 }, pixel_size_um = 1.0 }";
    for stream in [STREAM, phases] {
        let volumes = ["gpu", "cpu"].map(|device| {
            let rig = Rig::new(Launcher::Embedded, stream);
            rig.synth("in/a.h5", &["--center", "31.0"]);
            let (code, log) = if device == "gpu" { pilot(&rig, "") } else { rig.once() };
            assert_eq!(code, Some(0), "{log}");
            assert_eq!(log.contains("the GPU is fit"), device == "gpu", "{log}");
            assert!(!log.contains("not on the GPU"), "{log}");
            volume(&rig.path("out/s/a/recon.h5"))
        });
        let [gpu, cpu] = volumes;
        let square = |v: &ndarray::Array3<f32>| v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        let error = (square(&(&gpu - &cpu)) / square(&cpu)).sqrt();
        println!("{error:.2e}");
        assert!(error <= 1e-5, "{error}");
        // Sums in another order: had it been the CPU twice, not a bit would differ.
        assert_ne!(gpu, cpu, "the GPU was not used");
    }
}

/// Depths and confidences of a point, resolved by a process with these variables.
fn point(dir: &Path, to: &str, mut command: Command, recipe: &[&str]) -> (Array3<f32>, Array2<f32>) {
    command.current_dir(dir).args(["reconstruct", "laue", "point.h5", "--output", to, "--recipe"]).args(recipe);
    let (output, text) = run(command);
    assert!(output.status.success(), "{text}");
    let file = hdf5::File::open(dir.join(to).join("point/recon.h5")).unwrap();
    let confidence = file.dataset("/entry1/quality/confidence").unwrap().read().unwrap();
    (file.dataset("/entry1/data/data").unwrap().read().unwrap(), confidence)
}

#[test]
fn a_laue_point_on_a_gpu_is_what_it_is_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut synth = Command::new(BIN);
    let small = ["--rows", "12", "--columns", "20", "--spots", "3", "--counts", "3000", "--frames", "260"];
    synth.current_dir(&dir).args(["synth", "laue", "point.h5", "--configuration", "config.yml"]).args(small);
    let (output, text) = run(synth);
    assert!(output.status.success(), "{text}");
    let recipe = ["configuration=config.yml", "footprint={degree=3,knots=2}"];
    let (gpu, told) = point(dir.path(), "gpu", with_gpu(""), &recipe);
    let mut without = Command::new(BIN);
    without.env("BEAMPILOT_DEVICE", "cpu");
    let (cpu, expected) = point(dir.path(), "cpu", without, &recipe);
    let square = |v: &Array3<f32>| v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    let error = (square(&(&gpu - &cpu)) / square(&cpu)).sqrt();
    println!("{error:.2e}");
    assert!(error <= 1e-6, "{error}");
    // Correlations in another order: had it been the CPU twice, not a bit would differ.
    assert_ne!(told, expected, "the GPU was not used");
}

#[test]
fn a_gpu_that_fails_its_self_test_is_reported_and_the_scan_is_done_all_the_same() {
    let rig = Rig::new(Launcher::Embedded, STREAM);
    rig.synth("in/a.h5", &["--center", "31.0"]);
    let (code, log) = pilot(&rig, "compute");
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("self-test: a sum over") && log.contains("is suspect, but there is no other"), "{log}");
    assert_eq!(rig.published()["a.h5"].len(), 1);
}

#[test]
fn a_gpu_that_fails_in_the_middle_of_work_is_reported_and_the_scan_is_done_all_the_same() {
    let rig = Rig::new(Launcher::Embedded, STREAM);
    rig.synth("in/a.h5", &["--center", "31.0"]);
    let (code, log) = pilot(&rig, "launch");
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("the GPU failed") && log.contains("is suspect, but there is no other"), "{log}");
    assert_eq!(rig.published()["a.h5"].len(), 1);
}

#[test]
fn a_driver_without_a_card_is_no_fault_and_a_broken_one_is() {
    for (fault, choice, suspect) in [("absent", "auto", false), ("absent", "gpu", true), ("driver", "auto", true)] {
        let rig = Rig::new(Launcher::Embedded, "recipe = { center = 31.0 }");
        rig.synth("in/a.h5", &["--center", "31.0", "--slices", "2"]);
        let mut command = with_gpu(fault);
        command.env("BEAMPILOT_DEVICE", choice).arg("run").arg(rig.path("campaign.toml")).arg("--once");
        let mut pilot = rig.spawn(command);
        let (code, log) = (pilot.exit_code(), pilot.log());
        assert_eq!(code, Some(0), "{log}");
        assert_eq!(log.contains("is suspect, but there is no other"), suspect, "{fault}, {choice}: {log}");
        assert_eq!(rig.published()["a.h5"].len(), 1);
    }
}

#[test]
fn doctor_names_what_is_wrong_with_a_gpu() {
    for (fault, words) in [
        ("", "emulated on the CPU passed"),
        ("compute", "self-test: a sum over"),
        ("memory", "did not keep what was written"),
        ("ecc", "3 memory errors that could not be corrected"),
        ("hot", "101 °C, at 95 °C it slows down"),
    ] {
        let mut command = with_gpu(fault);
        command.args(["doctor", "--json"]);
        let (output, text) = run(command);
        let report: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {text}"));
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|c| c["id"] == "cuda.selftest").unwrap_or_else(|| panic!("{text}"));
        assert!(check["detail"].as_str().unwrap().contains(words), "{fault}: {check}");
        assert_eq!(check["grade"], if fault.is_empty() { "ok" } else { "fail" }, "{check}");
    }
}

#[test]
fn the_check_of_a_card_runs_and_says_when_it_cannot() {
    let mut command = with_gpu("");
    command.args(["bench", "gpu", "--quick"]);
    let (output, text) = run(command);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.starts_with("Measured on emulated on the CPU") && text.contains("all agree"), "{text}");
    let mut command = with_gpu("hot");
    command.args(["bench", "gpu", "--quick"]);
    let (output, text) = run(command);
    assert_eq!(output.status.code(), Some(69), "{text}");
    let mut command = Command::new(BIN);
    command.args(["bench", "gpu", "--counted"]);
    let (output, text) = run(command);
    assert!(output.status.success() && text.contains("| gather |") && text.contains("| backproject |"), "{text}");
}
