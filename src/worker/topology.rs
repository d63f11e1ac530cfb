//! What one executor may use: a share of this host's cores and memory.
//!
//! Contract
//! - **Cores**: what affinity and CPU quota leave this process, shared with the other ranks on the host that may
//!   use the same cores. Under MPI every rank's mask is known and the share is exact ([`shared_cores`]);
//!   otherwise the launcher's number of local ranks divides it. Never less than one.
//! - **Memory of one task**: what is available now, or what the cgroup leaves, divided by the ranks on the host and
//!   by four: three tasks overlap in an executor, and a quarter stays for page cache and everybody else.
//! - Everything is read once, at start, from /proc and /sys; nothing fails: a missing file means a cautious value.

use std::path::Path;

/// Task memory never falls below this: less is no use to any technique.
const LEAST_MEMORY: u64 = 64 << 20;
/// Nor does it rise above: techniques cut their work to it, and pieces this large gain nothing.
const MOST_MEMORY: u64 = 32 << 30;
/// What a process holds before it does anything: threads, libraries, a GPU's context.
const RUNTIME: u64 = 1 << 30;
/// Assumed when /proc/meminfo cannot be read.
const UNKNOWN_MEMORY: u64 = 2 << 30;

/// The share of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Cores, at least one.
    pub threads: usize,
    /// Bytes one task may hold.
    pub task_memory: u64,
}

/// The share of each of `executors` in this process, when `local_ranks` processes like this run on the host.
pub fn share(local_ranks: usize, executors: usize) -> Share {
    let parts = local_ranks.max(1) * executors.max(1);
    Share { threads: (quota_cores() / parts).max(1), task_memory: task_memory(parts) }
}

/// Host name.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A set of CPUs, as bits: CPU `8 i + j` is bit `j` of byte `i`.
pub type CpuMask = [u8; 128];

/// CPUs this thread may run on.
pub fn affinity() -> CpuMask {
    let mut mask = [0u8; 128];
    if let Ok(set) = rustix::thread::sched_getaffinity(None) {
        for cpu in (0..1024).filter(|&cpu| set.is_set(cpu)) {
            mask[cpu / 8] |= 1 << (cpu % 8);
        }
    }
    mask
}

/// Cores that fall to a process with mask `mine` among all processes of the host (itself included): every core is
/// split evenly between those that may use it. A launcher that binds ranks apart, and one that does not, both come
/// out right.
pub fn shared_cores(mine: &CpuMask, on_host: &[CpuMask]) -> usize {
    let has = |mask: &CpuMask, cpu: usize| mask[cpu / 8] & (1 << (cpu % 8)) != 0;
    let share: f64 = (0..1024)
        .filter(|&cpu| has(mine, cpu))
        .map(|cpu| 1.0 / on_host.iter().filter(|m| has(m, cpu)).count().max(1) as f64)
        .sum();
    // Rounded down, but not below a whole number that only misses by rounding errors.
    ((share + 1e-6) as usize).clamp(1, quota_cores().max(1))
}

/// Cores by affinity and cgroup quota.
fn quota_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Bytes that an executor may hold with everything it starts, when the host's memory is shared by `parts` of them: all of
/// its share, and `RUNTIME`.
pub fn executor_memory(parts: usize) -> u64 {
    (free_memory() / parts.max(1) as u64).max(4 * LEAST_MEMORY) + RUNTIME
}

/// Bytes one task may hold when the host's memory is shared by `parts` executors.
pub fn task_memory(parts: usize) -> u64 {
    bounded(free_memory(), parts)
}

fn free_memory() -> u64 {
    let read = |p: &str| std::fs::read_to_string(p).ok();
    let available = read("/proc/meminfo").and_then(|s| available(&s)).unwrap_or(UNKNOWN_MEMORY);
    let free = cgroup_free(Path::new("/sys/fs/cgroup"), &read("/proc/self/cgroup").unwrap_or_default());
    available.min(free.unwrap_or(u64::MAX))
}

fn bounded(free: u64, parts: usize) -> u64 {
    (free / (4 * parts.max(1) as u64)).clamp(LEAST_MEMORY, MOST_MEMORY)
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// What the cgroup (v2, or v1's memory controller) leaves; `None` when it sets no limit.
fn cgroup_free(mount: &Path, own: &str) -> Option<u64> {
    let number = |path: &Path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let mut least: Option<u64> = None;
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, limit, used) = match controllers {
            "" => (mount.to_owned(), "memory.max", "memory.current"),
            c if c.split(',').any(|c| c == "memory") => {
                (mount.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => continue,
        };
        // A limit may sit on any level above; in a container the path may not exist below the mount.
        let mut at = root.join(path.trim_start_matches('/'));
        loop {
            if let Some(limit) = number(&at.join(limit)) {
                let free = limit.saturating_sub(number(&at.join(used)).unwrap_or(0));
                least = Some(least.map_or(free, |l| l.min(free)));
            }
            if at == root || !at.pop() {
                break;
            }
        }
    }
    least
}

/// Most memory this process ever held, bytes.
pub fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0u64) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(cpus: impl IntoIterator<Item = usize>) -> CpuMask {
        let mut mask = [0u8; 128];
        cpus.into_iter().for_each(|cpu| mask[cpu / 8] |= 1 << (cpu % 8));
        mask
    }

    #[test]
    fn cores_are_shared_by_those_that_may_use_them() {
        let limit = quota_cores();
        let both = mask(0..2);
        assert_eq!(shared_cores(&both, &[both]), 2.min(limit));
        assert_eq!(shared_cores(&both, &[both, both]), 1);
        assert_eq!(shared_cores(&both, &[both; 4]), 1, "never nothing");
        // Bound apart: each keeps its own, whatever the others do.
        let (low, high) = (mask(0..8), mask(8..16));
        assert_eq!(shared_cores(&low, &[low, high]), 8.min(limit));
        assert_eq!(shared_cores(&mask([]), &[]), 1);
    }

    #[test]
    fn task_memory_is_a_bounded_quarter() {
        assert_eq!(bounded(64 << 30, 4), 4 << 30);
        assert_eq!(bounded(0, 4), LEAST_MEMORY);
        assert_eq!(bounded(u64::MAX, 1), MOST_MEMORY);
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn the_tightest_cgroup_counts() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("job/step");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("memory.max"), "max\n").unwrap();
        std::fs::write(dir.path().join("job/memory.max"), "1000\n").unwrap();
        std::fs::write(dir.path().join("job/memory.current"), "300\n").unwrap();
        assert_eq!(cgroup_free(dir.path(), "0::/job/step\n"), Some(700));
        assert_eq!(cgroup_free(dir.path(), "0::/elsewhere\n"), None);
        let v1 = dir.path().join("memory/pbs");
        std::fs::create_dir_all(&v1).unwrap();
        std::fs::write(v1.join("memory.limit_in_bytes"), "500").unwrap();
        assert_eq!(cgroup_free(dir.path(), "5:cpu:/x\n4:memory:/pbs\n"), Some(500));
    }

    #[test]
    fn this_process_has_cores_and_memory() {
        assert!(peak_bytes() > 1 << 20);
        assert!(affinity().iter().any(|b| *b != 0));
        let share = share(1, 1);
        assert!(share.threads >= 1 && share.task_memory >= LEAST_MEMORY);
        assert!(!host().is_empty());
    }
}
