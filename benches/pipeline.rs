//! Do reading, computing and writing of one scan overlap?
//!
//! `cargo bench --bench pipeline -- [--json] [--quick]`; `TMPDIR` says where the files go (`/dev/shm` leaves the disk out).
//!
//! Promise: while one slab computes, the next is read and the last is written, so that a scan takes at most
//! 1.15 × max(CPU seconds / cores, bytes / bandwidth) beside its start-up. Here a scan goes through a real executor with
//! the tomography technique, in the order in which the coordinator would send its tasks, while reads and writes together
//! are held to a number of bytes per second: unlimited, then so that computing takes four times as long as moving bytes,
//! as long, and a third as long.
//!
//! CPU seconds are those of this process during the run itself, all threads; bytes are those of the scan's file and of
//! the result; `others` are the cores that other processes had meanwhile, without which the bound cannot be met. Start-up is the time until the first slab may be read (probe, plan, preview and search of the axis).

use beampilot::arrivals::scan::{FileStamp, Scan};
use beampilot::formats::throttle;
use beampilot::publish;
use beampilot::technique::tomography::synth::{SynthOptions, synth};
use beampilot::technique::{
    Fault, JobContext, Plan, Resources, TaskContext, TaskKind, TaskOutput, TaskRecord, TaskSpec, registry,
};
use beampilot::transport::wire::{FromWorker, ToWorker};
use beampilot::transport::{LocalTransport, Transport, WorkerId};
use beampilot::worker::{ExecutorConfig, Services};
use crossbeam::channel::{Receiver, unbounded};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const W0: WorkerId = WorkerId(0);

struct Sealing;

impl Services for Sealing {
    fn verify(&self, _: &TaskContext) -> Result<(), Fault> {
        Ok(())
    }
    fn seal(&self, ctx: &TaskContext, output: TaskOutput) -> Result<TaskOutput, Fault> {
        publish::seal(ctx, output)
    }
}

/// CPU seconds of this process so far.
fn cpu() -> f64 {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// CPU seconds of everything on this machine so far, from the kernel's ticks of a hundredth of a second.
fn machine() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
    // user nice system idle iowait irq softirq steal: all but the two that are rest.
    ticks.enumerate().filter(|(i, _)| *i != 3 && *i != 4).filter_map(|(_, t)| t.parse::<f64>().ok()).sum::<f64>()
        / 100.0
}

/// One executor and one job, driven as a coordinator drives them.
struct Driver {
    transport: LocalTransport,
    wake: Receiver<()>,
    job: JobContext,
    attempts: u64,
    records: Vec<TaskRecord>,
}

impl Driver {
    fn send_job(&mut self) {
        self.job.carry.clone_from(&self.records);
        self.job.epoch += 1;
        self.transport.send(W0, ToWorker::Job(Box::new(self.job.clone())));
    }

    /// Sends tasks and waits for all of them.
    fn run(&mut self, stage: u32, tasks: Vec<TaskSpec>) -> Vec<TaskOutput> {
        let mut open = BTreeMap::new();
        for task in tasks {
            self.attempts += 1;
            open.insert(self.attempts, task.clone());
            self.transport.send(W0, ToWorker::Run { attempt: self.attempts, job: self.job.job, task });
        }
        let (mut inbox, mut outputs) = (Vec::new(), Vec::new());
        while !open.is_empty() {
            self.transport.exchange(&mut inbox);
            for (_, message) in inbox.drain(..) {
                let FromWorker::Done { attempt, result } = message else { continue };
                let TaskSpec { label, kind, .. } = open.remove(&attempt).expect("an attempt that was sent");
                let output = result.unwrap_or_else(|fault| panic!("{label}: {fault}"));
                outputs.push(output.clone());
                self.records.push(TaskRecord { stage, label, kind, host: String::new(), rank: 0, output });
            }
            if !open.is_empty() {
                self.transport.idle(&self.wake, Duration::from_millis(50));
            }
        }
        outputs
    }
}

fn control(label: &str, kind: TaskKind) -> TaskSpec {
    TaskSpec { label: label.to_owned(), kind, params: Vec::new(), cost: 1.0, bytes_in: 0 }
}

struct Measured {
    seconds: f64,
    start_up: f64,
    cpu: f64,
    cpu_start_up: f64,
    slabs: usize,
    phases: [f64; 3],
    /// Cores that others used while slabs were worked on.
    others: f64,
}

/// The whole scan once.
fn scan(file: &Path, recipe: &str, threads: usize) -> Measured {
    let out = tempfile::tempdir().expect("a folder for the result");
    let meta = std::fs::metadata(file).expect("the scan's file");
    let name = file.file_name().expect("a file name");
    let table: toml::Table = recipe.parse().expect("a recipe");
    let recipe = registry("tomography").expect("the technique").recipe(&table).expect("a valid recipe").to_string();
    let task_memory = 2 << 30;
    let job = JobContext {
        job: 1,
        key: "scan".into(),
        scan: Scan {
            stream: "bench".into(),
            name: name.to_string_lossy().into_owned(),
            root: file.parent().expect("a folder").to_owned(),
            members: vec![FileStamp::from_metadata(name, &meta)],
            roles: BTreeMap::new(),
            last_byte_ms: 0,
            complete_ms: 0,
            ..Scan::default()
        },
        technique: "tomography".into(),
        recipe,
        staging: out.path().to_owned(),
        scratch: None,
        campaign: "bench".into(),
        resources: Resources { workers: 1, threads: threads as u32, task_memory },
        task_limit_s: JobContext::TASK_LIMIT_S,
        carry: Vec::new(),
        epoch: 0,
    };
    let config = ExecutorConfig::new(W0, "here", threads, task_memory, Arc::new(Sealing));
    let transport = LocalTransport::new([config]).expect("an executor");
    // The sending end lives as long as the driver does: a hung-up channel would be polled.
    let (_waker, wake) = unbounded();
    let mut driver = Driver { transport, wake, job, attempts: 0, records: Vec::new() };
    let (begin, cpu_begin) = (Instant::now(), cpu());
    driver.send_job();
    driver.run(0, vec![control("probe", TaskKind::Probe)]);
    let plan = driver.run(0, vec![control("plan", TaskKind::Plan)]).pop().and_then(|o| o.plan);
    let Plan { preview, stages, finish, .. } = plan.expect("a plan");
    driver.records.clear();
    let (mut start_up, mut cpu_start_up, mut slabs, mut busy) = (0.0, 0.0, 0, 0.0);
    let mut early: Vec<TaskSpec> = preview.into_iter().collect();
    for (i, stage) in stages.into_iter().enumerate() {
        if stage.name == "slabs" {
            (start_up, cpu_start_up, slabs) = (begin.elapsed().as_secs_f64(), cpu() - cpu_begin, stage.tasks.len());
            busy = machine();
        }
        driver.run(i as u32 + 1, early.drain(..).chain(stage.tasks).collect());
        driver.send_job();
    }
    driver.run(u32::MAX, vec![finish]);
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), cpu() - cpu_begin);
    let others = ((machine() - busy - (cpu - cpu_start_up)) / (seconds - start_up)).max(0.0);
    let mut phases = [0.0; 3];
    for record in driver.records.iter().filter(|r| r.label.starts_with("slab-")) {
        let t = record.output.timings;
        phases.iter_mut().zip([t.read_s, t.compute_s, t.write_s]).for_each(|(sum, s)| *sum += s);
    }
    Box::new(driver.transport).close();
    Measured { seconds, start_up, cpu, cpu_start_up, slabs, phases, others }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let json = has("--json");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // `cargo test --benches` only asks whether this starts.
    let (size, angles, slices) = if has("--quick") || has("--test") { (128, 90, 1100) } else { (512, 720, 512) };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("scan.h5");
    synth(&SynthOptions { out: file.clone(), size, angles, slices, photons: Some(1e4), ..SynthOptions::default() })
        .expect("a scan");
    let bytes = std::fs::metadata(&file).expect("the scan").len() as f64 + (size * size * slices * 4) as f64;
    if !json {
        println!("{slices} slices of {size}², {angles} angles, {cores} cores, {:.0} MB in and out", bytes / 1e6);
        println!(
            "load        MB/s  slabs  start-up  measured  CPU bound  I/O bound  ratio  Σread Σcompute Σwrite  others"
        );
    }
    let free = scan(&file, "", cores);
    let cpu_bound = (free.cpu - free.cpu_start_up) / cores as f64;
    let mut cases = Vec::new();
    for (load, share) in [("unlimited", 0.0), ("computing", 0.25), ("balanced", 1.0), ("moving", 3.0)] {
        let rate = if share > 0.0 { bytes / (share * cpu_bound) } else { f64::INFINITY };
        throttle::set(rate.is_finite().then_some(rate as u64));
        let m = scan(&file, "", cores);
        throttle::set(None);
        let (by_cpu, by_io) = ((m.cpu - m.cpu_start_up) / cores as f64, bytes / rate);
        let ratio = (m.seconds - m.start_up) / by_cpu.max(by_io);
        let [read, compute, write] = m.phases;
        if !json {
            println!(
                "{load:10} {:5.0} {:6} {:9.2} {:9.2} {by_cpu:10.2} {by_io:10.2} {ratio:6.2}  {read:5.2} {compute:8.2} {write:6.2} {:7.2}",
                rate / 1e6,
                m.slabs,
                m.start_up,
                m.seconds,
                m.others
            );
        }
        cases.push(json!({
            "load": load, "bytes_per_second": rate.is_finite().then_some(rate), "slabs": m.slabs, "start_up_s": m.start_up,
            "measured_s": m.seconds, "cpu_bound_s": by_cpu, "io_bound_s": by_io, "ratio": ratio,
            "read_s": read, "compute_s": compute, "write_s": write,
            "cores_used_by_others": m.others,
        }));
    }
    if json {
        let all =
            json!({ "size": size, "angles": angles, "slices": slices, "cores": cores, "bytes": bytes, "cases": cases });
        println!("{all:#}");
    }
}
