//! What store code asks of the machine it runs on, apart from files: clocks, and whether a process is dead.
//!
//! Contract: [`RealHost`] is this machine; the simulator gives every pilot a host of its own, whose clocks it moves.

use super::claims::{Identity, host_name};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// See the module.
pub trait Host: Send + Sync {
    /// Wall clock, milliseconds since the epoch. May jump; only for people and for records.
    fn wall_ms(&self) -> u64;
    /// Monotonic time since some moment before this process began. Leases are counted with it.
    fn mono(&self) -> Duration;
    /// True when the process certainly no longer runs, as seen from this host.
    fn is_proven_dead(&self, process: &Process) -> bool;
}

/// A process, so that others on its host can prove it dead.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Process {
    /// Host name.
    pub host: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot: a reused pid differs here.
    pub pid_start: u64,
}

/// This machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealHost;

impl Host for RealHost {
    fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
    fn mono(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        // The kernel counts from boot: never negative, nanoseconds below a second.
        Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
    }
    fn is_proven_dead(&self, process: &Process) -> bool {
        process.host == host_name()
            && !process.boot.is_empty()
            && process.boot == super::claims::boot_id()
            && super::claims::process_start(process.pid) != Some(process.pid_start)
    }
}

impl Identity {
    /// The process of rank 0.
    pub fn process(&self) -> Process {
        Process { host: self.host.clone(), boot: self.boot.clone(), pid: self.pid, pid_start: self.pid_start }
    }
}
