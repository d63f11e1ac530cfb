//! Doctor on this host: build, limits, cores, memory, temporary folder.

use super::{Check, bytes};
use crate::device::cpu;
use rustix::process::{Resource, getrlimit};

/// Fewest descriptors a pilot is comfortable with: its own files, HDF5's, pipes to executors.
const FILES_MIN: u64 = 1024;
/// Fewest threads or processes; login nodes cap users at 128.
const TASKS_MIN: u64 = 512;
/// Less memory than this leaves no task room for a slice of a 2048² detector with its sinogram.
const MEMORY_MIN: u64 = 1 << 30;
/// Launchers make sockets in the temporary folder, and a socket's path may have 107 bytes.
const TMPDIR_MAX: usize = 60;

pub(super) fn checks() -> Vec<Check> {
    vec![build(), files(), tasks(), cores(), memory(), temporary()]
}

fn build() -> Check {
    let mpi = if cfg!(feature = "mpi") { "with MPI" } else { "without MPI" };
    let mode = if cfg!(debug_assertions) { "debug build" } else { "release build" };
    let detail = format!("beampilot {} ({}), {mpi}, {mode}", crate::VERSION, crate::COMMIT);
    if cfg!(debug_assertions) {
        Check::warn("host.build", detail, "for real work use `make build`, which is several times faster")
    } else {
        Check::ok("host.build", detail)
    }
}

fn files() -> Check {
    limit("host.open-files", Resource::Nofile, FILES_MIN, "open files", "ulimit -n 4096, or ask the administrator")
}

fn tasks() -> Check {
    let remedy = "run the pilot on a compute node; here, pass a small --workers";
    limit("host.tasks", Resource::Nproc, TASKS_MIN, "threads and processes", remedy)
}

fn limit(id: &'static str, resource: Resource, least: u64, what: &str, remedy: &str) -> Check {
    match getrlimit(resource).current {
        Some(n) if n < least => Check::warn(id, format!("at most {n} {what}"), remedy),
        Some(n) => Check::ok(id, format!("at most {n} {what}")),
        None => Check::ok(id, format!("no limit on {what}")),
    }
}

fn cores() -> Check {
    let cpu = cpu::discover();
    let machine = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let machine = machine.lines().filter(|l| l.starts_with("processor")).count().max(cpu.affinity);
    let detail = format!("{} of {machine} hardware threads usable, {} in the affinity mask", cpu.threads, cpu.affinity);
    if cpu.affinity * 4 <= machine && machine >= 8 {
        let remedy = "if this is a rank, check the launcher's binding (--cpu-bind depth --depth N, or --bind-to none)";
        Check::warn("host.cores", detail, remedy)
    } else {
        Check::ok("host.cores", detail)
    }
}

fn memory() -> Check {
    let cpu = cpu::discover();
    let detail = format!("{} of {} available", bytes(cpu.memory_available), bytes(cpu.memory_total));
    if cpu.memory_available < MEMORY_MIN {
        Check::warn(
            "host.memory",
            detail,
            "free memory or use fewer --workers; tasks are cut to fit, but not below a slice",
        )
    } else {
        Check::ok("host.memory", detail)
    }
}

fn temporary() -> Check {
    let dir = std::env::temp_dir();
    let shown = dir.display().to_string();
    if let Err(error) = tempfile::tempfile_in(&dir) {
        let remedy = "export TMPDIR=/tmp, or another folder that you may write to";
        return Check::fail("host.tmpdir", format!("cannot write: {error}"), remedy).of(shown);
    }
    if shown.len() > TMPDIR_MAX {
        let detail = format!("{} bytes long; launchers make sockets in it and their paths are limited", shown.len());
        return Check::warn("host.tmpdir", detail, "export TMPDIR=/tmp").of(shown);
    }
    Check::ok("host.tmpdir", "writable").of(shown)
}
