//! Who a process is, so that others can prove it dead.

use crate::store::{Host, RealHost};
use serde::{Deserialize, Serialize};

/// Who a process is, so that others can prove it dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The pilot's id, new at every start.
    pub pilot: String,
    /// Host name.
    pub host: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    /// Process id of rank 0.
    pub pid: u32,
    /// Start time of that process in clock ticks since boot: a reused pid differs here.
    pub pid_start: u64,
    /// Build.
    pub build: String,
    /// The launch that started it, when `beampilot launch` did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch: Option<String>,
}

impl Identity {
    /// This process.
    pub fn own(pilot: &str) -> Self {
        let pid = std::process::id();
        Self {
            pilot: pilot.to_owned(),
            host: host_name(),
            boot: boot_id(),
            pid,
            pid_start: process_start(pid).unwrap_or(0),
            build: crate::BUILD.to_owned(),
            launch: std::env::var("BEAMPILOT_LAUNCH").ok().filter(|l| !l.is_empty()),
        }
    }

    /// True when this process certainly no longer runs, as seen from this host.
    pub fn is_proven_dead(&self) -> bool {
        RealHost.is_proven_dead(&self.process())
    }
}

/// The host's name.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// This boot of this host.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Field 22 of `/proc/<pid>/stat`; `None` when there is no such process, or a zombie.
pub(crate) fn process_start(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command, field 2, may contain anything; the last `)` ends it.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
