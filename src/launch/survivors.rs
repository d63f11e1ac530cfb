//! Finding and ending what a dead launch left on this host.
//!
//! Contract
//! - A survivor is a process whose environment, as it was started, has `BEAMPILOT_LAUNCH=<id>`, or a descendant of one.
//!   Never this process or one above it, and no zombie: that runs nothing any more.
//! - [`end`] kills until nothing is found twice in a row, or the limit has passed; what is left then is told.

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The variable by which processes of a launch are known.
pub const VARIABLE: &str = "BEAMPILOT_LAUNCH";

/// What was found on a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survivors {
    /// The host, as it calls itself.
    pub host: String,
    /// Processes found, and ended if that was asked for.
    pub found: BTreeSet<u32>,
    /// Those still there.
    pub left: BTreeSet<u32>,
}

/// A process that is killed may need this long inside the kernel.
const LIMIT: Duration = Duration::from_secs(10);

/// Looks; kills nothing.
pub fn look(launch: &str) -> Survivors {
    let found = find(launch);
    Survivors { host: crate::store::claims::host_name(), left: found.clone(), found }
}

/// Kills until nothing is left.
pub fn end(launch: &str) -> Survivors {
    let end = Instant::now() + LIMIT;
    let mut report = Survivors { host: crate::store::claims::host_name(), ..Survivors::default() };
    let mut clean_before = false;
    loop {
        report.left = find(launch);
        // One look may miss a process that is being forked while /proc is read.
        if (report.left.is_empty() && std::mem::replace(&mut clean_before, report.left.is_empty()))
            || Instant::now() >= end
        {
            return report;
        }
        clean_before = report.left.is_empty();
        report.left.iter().for_each(|&pid| send(pid, Signal::KILL));
        report.found.extend(&report.left);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a signal to the processes of a launch on this host that run `program` (the file name of an executable).
pub fn tell(launch: &str, program: &str, signal: Signal) {
    let runs = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim_end() == program);
    find(launch).iter().filter(|pid| runs(pid)).for_each(|&pid| send(pid, signal));
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Gone already, or not ours: the next look tells.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn find(launch: &str) -> BTreeSet<u32> {
    let wanted = format!("{VARIABLE}={launch}").into_bytes();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids: Vec<u32> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    let parents: BTreeMap<u32, u32> = pids.iter().filter_map(|&pid| Some((pid, parent(pid)?))).collect();
    let mut spared = BTreeSet::new();
    let mut at = Some(std::process::id());
    while let Some(pid) = at.filter(|&pid| spared.insert(pid)) {
        at = parents.get(&pid).copied();
    }
    let has = |pid: u32| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|&b| b == 0).any(|entry| entry == wanted)
    };
    // A zombie has no parent here and an empty environment; it is neither found nor a way to anything.
    let mut found: BTreeSet<u32> = parents.keys().copied().filter(|&pid| !spared.contains(&pid) && has(pid)).collect();
    loop {
        let below = |(pid, parent): (&u32, &u32)| {
            (found.contains(parent) && !found.contains(pid) && !spared.contains(pid)).then_some(*pid)
        };
        let more: Vec<u32> = parents.iter().filter_map(below).collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// The parent of a living process.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn all_of_a_launch_and_nothing_else_is_ended() {
        let id = format!("test-{}", std::process::id());
        // A child that forgot the variable is still below one that has it.
        let script = "env -u BEAMPILOT_LAUNCH sleep 300 & sleep 300";
        let mut child = Command::new("sh").args(["-c", script]).env(VARIABLE, &id).spawn().unwrap();
        let mut other = Command::new("sleep").arg("300").env(VARIABLE, format!("{id}x")).spawn().unwrap();
        let waited = Instant::now();
        while look(&id).found.len() < 3 {
            assert!(waited.elapsed() < Duration::from_secs(20), "{:?}", look(&id));
            std::thread::sleep(Duration::from_millis(20));
        }
        // The shell becomes a zombie until it is waited for; that must not count as left.
        let report = end(&id);
        assert!(report.found.len() >= 3 && report.left.is_empty(), "{report:?}");
        assert!(other.try_wait().unwrap().is_none(), "another launch lives");
        other.kill().unwrap();
        let _ = (child.wait(), other.wait());
    }
}
