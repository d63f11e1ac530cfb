//! The frame-order stage: every chunk once, the same result, and scratch that is lost.

use super::reconstruct::{ReconstructOptions, reconstruct};
use super::synth::{SynthLayout, SynthOptions, synth};
use super::{Tomography, finish};
use crate::arrivals::scan::{FileStamp, Scan};
use crate::formats::part::DATASET;
use crate::technique::{
    JobContext, Plan, Resources, TaskContext, TaskKind, TaskOutput, TaskRecord, TaskSpec, Technique,
};
use ndarray::{Array3, Ix3};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn read(path: &Path) -> Array3<f32> {
    crate::formats::h5::open_library(path).unwrap().dataset(DATASET).unwrap().read::<f32, Ix3>().unwrap()
}

fn scan(dir: &Path, packed: bool) -> PathBuf {
    counted(dir, if packed { "packed.nxs" } else { "plain.nxs" }, packed, Some(2e4))
}

fn counted(dir: &Path, name: &str, packed: bool, photons: Option<f64>) -> PathBuf {
    let out = dir.join(name);
    let options = SynthOptions {
        out: out.clone(),
        size: 48,
        angles: 40,
        slices: 20,
        flats: 3,
        darks: 2,
        photons,
        layout: SynthLayout::NxTomo,
        packed,
        ..SynthOptions::default()
    };
    synth(&options).unwrap();
    out
}

const RECIPES: [&str; 3] = [
    "center = 23.5",
    "center = 23.5\nzinger = { size = 3, threshold = 0.02 }\nscratch = \"f32\"",
    "center = 23.5\nzinger = { size = 3, threshold = 0.02 }\nscratch = \"f16\"",
];

#[test]
fn the_result_is_that_of_reading_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (packed, plain) = (scan(dir.path(), true), scan(dir.path(), false));
    for (n, recipe) in RECIPES.into_iter().take(2).enumerate() {
        let run = |scan: &Path, name: &str| {
            let options = ReconstructOptions {
                scan: scan.to_owned(),
                output: dir.path().join(format!("{name}{n}")),
                recipe: format!("{recipe}\npreview = false").parse().unwrap(),
                resources: Some(Resources { workers: 2, threads: 2, task_memory: 1 << 30 }),
                ..ReconstructOptions::default()
            };
            reconstruct(&options, &mut |_| {}).unwrap()
        };
        let (a, b) = (run(&packed, "packed"), run(&plain, "plain"));
        let labels = |r: &super::reconstruct::Reconstruction| -> Vec<String> {
            r.records.iter().map(|r| r.label.split('-').next().unwrap().to_owned()).collect()
        };
        assert!(labels(&a).contains(&"frames".to_owned()) && !labels(&b).contains(&"frames".to_owned()));
        assert_eq!(read(&a.bundle.join("recon.h5")), read(&b.bundle.join("recon.h5")), "{recipe}");
        // Every chunk once: 2 darks, 3 + 3 flats, 40 projections.
        let carry: serde_json::Value = serde_json::from_str(&a.output.carry).unwrap();
        assert_eq!(carry["output"]["chunks_decoded"], 48, "{recipe}");
        // With margins, zingers in the rows that two slabs read count twice.
        let other: serde_json::Value = serde_json::from_str(&b.output.carry).unwrap();
        let zingers = |c: &serde_json::Value| c["output"]["repaired"]["zingers"].as_u64().unwrap();
        assert!(zingers(&carry) <= zingers(&other) && (zingers(&carry) > 0) == recipe.contains("zinger"));
        assert!(!a.bundle.join("scratch").exists());
    }
}

/// A job run task by task, so that things can happen in between.
struct Job {
    context: JobContext,
    plan: Plan,
}

impl Job {
    fn new(staging: &Path, scan: &Path, recipe: &str, task_memory: u64) -> Self {
        let meta = std::fs::metadata(scan).unwrap();
        let name = scan.file_name().unwrap();
        let recipe = Tomography.recipe(&recipe.parse().unwrap()).unwrap().to_string();
        std::fs::create_dir_all(staging).unwrap();
        let context = JobContext {
            job: 1,
            key: "k".into(),
            scan: Scan {
                name: name.to_string_lossy().into_owned(),
                root: scan.parent().unwrap().canonicalize().unwrap(),
                members: vec![FileStamp::from_metadata(PathBuf::from(name), &meta)],
                ..Scan::default()
            },
            technique: "tomography".into(),
            recipe,
            staging: staging.to_owned(),
            scratch: None,
            campaign: String::new(),
            resources: Resources { workers: 1, threads: 2, task_memory },
            carry: Vec::new(),
            task_limit_s: 60.0,
            epoch: 0,
        };
        let mut job = Self {
            context,
            plan: Plan {
                preview: None,
                stages: vec![],
                finish: noop(),
                items: 0,
                unit: String::new(),
                linked: Vec::new(),
                scratch: false,
            },
        };
        job.plan = Tomography.plan(&job.task(noop())).unwrap();
        job
    }

    fn task(&self, task: TaskSpec) -> TaskContext {
        TaskContext {
            job: Arc::new(self.context.clone()),
            task,
            attempt: 1,
            host: "h".into(),
            rank: 0,
            cancelled: Default::default(),
        }
    }

    fn run(&mut self, stage: u32, task: TaskSpec) -> TaskOutput {
        let ctx = self.task(task);
        let loaded = Tomography.load(&ctx).unwrap();
        let computed = Tomography.compute(&ctx, loaded).unwrap();
        let output = Tomography.store(&ctx, computed).unwrap();
        let TaskSpec { label, kind, .. } = ctx.task;
        let record = TaskRecord { stage, label, kind, host: String::new(), rank: 0, output: output.clone() };
        self.context.carry.push(record);
        output
    }

    fn stage(&mut self, name: &str) {
        let at = self.plan.stages.iter().position(|s| s.name == name).unwrap();
        for task in self.plan.stages[at].tasks.clone() {
            self.run(at as u32, task);
        }
    }
}

fn noop() -> TaskSpec {
    TaskSpec { label: "plan".into(), kind: TaskKind::Plan, params: vec![], cost: 1.0, bytes_in: 0 }
}

#[test]
fn lost_scratch_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let packed = scan(dir.path(), true);
    for (n, recipe) in RECIPES.into_iter().enumerate() {
        let mut volumes = Vec::new();
        for lose in [false, true] {
            let staging = dir.path().join(format!("staging-{n}-{lose}"));
            let mut job = Job::new(&staging, &packed, recipe, 1 << 30);
            job.stage("flats");
            job.stage("frames");
            if lose {
                // One file goes, another is cut, a third has a bad byte; the means of flats go as well.
                let mut files: Vec<PathBuf> =
                    std::fs::read_dir(staging.join("scratch")).unwrap().map(|e| e.unwrap().path()).collect();
                files.sort();
                assert!(files.len() >= 4, "{files:?}");
                let bytes = std::fs::read(&files[2]).unwrap();
                std::fs::write(&files[2], &bytes[..bytes.len() / 2]).unwrap();
                let mut bytes = std::fs::read(&files[1]).unwrap();
                bytes[100] ^= 1;
                std::fs::write(&files[1], bytes).unwrap();
                std::fs::remove_file(&files[0]).unwrap();
                std::fs::remove_file(files.last().unwrap()).unwrap();
            }
            job.stage("prepare");
            job.stage("slabs");
            assert_eq!(finish::decoded(&job.context.carry).unwrap() == 48, !lose);
            let finish = job.plan.finish.clone();
            job.run(9, finish);
            volumes.push(read(&staging.join("recon.h5")));
            assert!(!staging.join("scratch").exists());
        }
        assert_eq!(volumes[0], volumes[1], "{recipe}");
    }
}

#[test]
fn scratch_on_the_node_is_used_and_missed_without_harm() {
    let dir = tempfile::tempdir().unwrap();
    let packed = scan(dir.path(), true);
    // On the node; on a node without that disk; and a reader on another node than the writer.
    let mut volumes = Vec::new();
    for (n, (there, moved)) in [(true, false), (false, false), (true, true)].into_iter().enumerate() {
        let node = dir.path().join(format!("node-{n}"));
        if there {
            std::fs::create_dir(&node).unwrap();
        }
        let staging = dir.path().join(format!("staging-{n}"));
        let mut job = Job::new(&staging, &packed, RECIPES[1], 1 << 30);
        assert!(job.plan.scratch);
        job.context.scratch = Some(node.clone());
        job.context.key = format!("key-{n}");
        job.stage("flats");
        job.stage("frames");
        let local = job.context.carry.iter().filter_map(|r| r.output.scratch.as_ref()).all(|s| s.local);
        assert_eq!((local, staging.join("scratch").exists()), (there, !there));
        if moved {
            job.context.scratch = None;
        }
        job.stage("prepare");
        job.stage("slabs");
        assert_eq!(finish::decoded(&job.context.carry).unwrap() == 48, !moved);
        let finish = job.plan.finish.clone();
        job.run(9, finish);
        volumes.push(read(&staging.join("recon.h5")));
        crate::worker::node_scratch::release(&node, &job.context.key);
        let left =
            std::fs::read_dir(&node).ok().into_iter().flatten().flatten().flat_map(|e| std::fs::read_dir(e.path()));
        assert_eq!(left.flatten().count(), 0);
    }
    assert!(volumes[0] == volumes[1] && volumes[0] == volumes[2]);
}

#[test]
fn a_scan_larger_than_a_tasks_memory_runs_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let packed = scan(dir.path(), true);
    let frame = 20 * 48 * 4;
    let memory = 20 * frame as u64;
    let mut job = Job::new(&dir.path().join("staging"), &packed, RECIPES[0], memory);
    // The scan has 40 projections as f32: twice a task's memory.
    assert!(40 * frame as u64 > memory);
    job.stage("flats");
    job.stage("frames");
    for note in super::frames::notes(&job.context.carry).unwrap() {
        let (first, last) = note.projections;
        assert!(((last - first) * frame) as u64 <= memory / 2, "{note:?}");
    }
    job.stage("prepare");
    job.stage("slabs");
    assert_eq!(finish::decoded(&job.context.carry).unwrap(), 48);
}

#[test]
fn half_precision_is_kept_where_it_does_not_show() {
    let dir = tempfile::tempdir().unwrap();
    let scans = [("20k.nxs", Some(2e4)), ("200k.nxs", Some(2e5)), ("clean.nxs", None)];
    let [few, many, clean] = scans.map(|(name, photons)| counted(dir.path(), name, true, photons));
    let run = |scan: &Path, recipe: &str| {
        let options = ReconstructOptions {
            scan: scan.to_owned(),
            output: dir.path().join("out"),
            recipe: format!("center = 23.5\npreview = false\n{recipe}").parse().unwrap(),
            resources: Some(Resources { workers: 2, threads: 2, task_memory: 1 << 30 }),
            ..ReconstructOptions::default()
        };
        let r = reconstruct(&options, &mut |_| {}).unwrap();
        let carry: serde_json::Value = serde_json::from_str(&r.output.carry).unwrap();
        (carry["output"]["scratch"].as_str().unwrap().to_owned(), read(&r.bundle.join("recon.h5")))
    };
    let zinger = "zinger = { size = 3, threshold = 0.5 }";
    let paganin = "paganin = { energy_kev = 25, distance_mm = 1, delta_beta = 10 }";
    for (scan, recipe, kept) in [
        (&few, "", "u16"),
        (&few, "scratch = \"f16\"", "u16"),
        (&few, zinger, "f16"),
        (&many, zinger, "f32"),
        (&clean, zinger, "f32"),
        (&few, paganin, "f32"),
        (&few, &format!("{paganin}\nscratch = \"f16\""), "f16"),
        (&many, &format!("{zinger}\nscratch = \"f16\""), "f16"),
        (&few, "binning = 2", "f32"),
        (&few, "binning = 2\nscratch = \"f16\"", "f16"),
        // Four pixels together count four times as much: too much for half precision to be chosen.
        (&few, &format!("{zinger}\nbinning = 2"), "f32"),
    ] {
        assert_eq!(run(scan, recipe).0, kept, "{scan:?} {recipe}");
    }
    let rms = |a: &Array3<f32>, b: &Array3<f32>| {
        (a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / a.len() as f64).sqrt()
    };
    let (half, full) = (run(&few, zinger).1, run(&few, &format!("{zinger}\nscratch = \"f32\"")).1);
    let (rounding, noise) = (rms(&half, &full), rms(&full, &run(&clean, zinger).1));
    println!("rounding {rounding:.3}, noise {noise:.3}: {:.4}", rounding / noise);
    // 2⁻¹¹/√3 of the transmission beside 1/√20 000 at least: 0.04; a tenth is promised.
    assert!(rounding > 0.0 && rounding < 0.05 * noise, "{rounding} {noise}");
}
