//! Cores and memory this process may use: what the affinity mask, the control group and the machine leave it.

use std::fs;
use std::path::Path;

/// What this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// Hardware threads in the affinity mask.
    pub affinity: usize,
    /// Threads worth starting: the mask, or less where a control group limits the time.
    pub threads: usize,
    /// Bytes of memory the machine, or the control group, has.
    pub memory_total: u64,
    /// Bytes of it that are free or can be freed now.
    pub memory_available: u64,
}

/// Asks the system; costs a few small reads.
pub fn discover() -> Cpu {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut total, mut available) = meminfo(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    if total == 0 {
        let info = rustix::system::sysinfo();
        total = info.totalram.saturating_mul(u64::from(info.mem_unit));
        available = info.freeram.saturating_mul(u64::from(info.mem_unit));
    }
    if let Some((limit, used)) = control_group() {
        available = available.min(limit.saturating_sub(used));
        total = total.min(limit);
    }
    Cpu { affinity: affinity().unwrap_or(threads), threads, memory_total: total, memory_available: available }
}

fn affinity() -> Option<usize> {
    let set = rustix::thread::sched_getaffinity(None).ok()?;
    usize::try_from(set.count()).ok().filter(|&n| n > 0)
}

/// Total and available bytes out of `/proc/meminfo`, which counts in KiB.
fn meminfo(text: &str) -> (u64, u64) {
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    (field("MemTotal").unwrap_or(0), field("MemAvailable").unwrap_or(0))
}

/// The tightest memory limit above this process and what its group uses, version 2 groups first.
fn control_group() -> Option<(u64, u64)> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let mut tightest: Option<(u64, u64)> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (base, limit, used) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max", "memory.current")
        } else if controllers.split(',').any(|c| c == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
        } else {
            continue;
        };
        // In a container the path may be the host's and not exist here; the root then is the container's own.
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            let folder = Path::new(base).join(group);
            // Version 1 writes a number near the end of the signed range for "no limit".
            let Some(bytes) = number(&folder.join(limit)).filter(|&b| b < 1 << 62) else { continue };
            if tightest.is_none_or(|(least, _)| bytes < least) {
                tightest = Some((bytes, number(&folder.join(used)).unwrap_or(0)));
            }
        }
    }
    tightest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_core_and_memory() {
        let cpu = discover();
        assert!(cpu.threads >= 1 && cpu.affinity >= 1);
        assert!(cpu.memory_total > 0 && cpu.memory_available <= cpu.memory_total, "{cpu:?}");
    }

    #[test]
    fn meminfo_is_read_in_kib() {
        let text = "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    600 kB\n";
        assert_eq!(meminfo(text), (1_024_000, 614_400));
        assert_eq!(meminfo("nonsense"), (0, 0));
    }
}
