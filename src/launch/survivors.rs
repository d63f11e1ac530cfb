//! Finding and ending what a dead launch left on this host.
//!
//! Contract
//! - A survivor is a process whose environment, as it was started, has `BEAMPILOT_LAUNCH=<id>`, or a descendant of one.
//!   Never this process or one above it, and no zombie without threads: that runs nothing any more.
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
    let family: BTreeMap<u32, (u32, bool)> = pids.iter().filter_map(|&pid| Some((pid, stat(pid)?))).collect();
    let mut spared = BTreeSet::new();
    let mut at = Some(std::process::id());
    while let Some(pid) = at.filter(|&pid| spared.insert(pid)) {
        at = family.get(&pid).map(|(parent, _)| *parent);
    }
    // Any thread's will do: when the first one has ended, its file is empty.
    let has = |pid: u32| {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        threads
            .filter_map(|thread| std::fs::read(thread.path().join("environ")).ok())
            .find(|e| !e.is_empty())
            .is_some_and(|environ| environ.split(|&b| b == 0).any(|entry| entry == wanted))
    };
    let mut found: BTreeSet<u32> = family.keys().copied().filter(|&pid| !spared.contains(&pid) && has(pid)).collect();
    // Through zombies as well: one whose first thread has ended before the others still has its children.
    loop {
        let below = |(pid, (parent, _)): (&u32, &(u32, bool))| {
            (found.contains(parent) && !found.contains(pid) && !spared.contains(pid)).then_some(*pid)
        };
        let more: Vec<u32> = family.iter().filter_map(below).collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    found.retain(|pid| family.get(pid).is_some_and(|(_, runs)| *runs));
    found
}

/// The parent of a process, and whether anything of it still runs.
fn stat(pid: u32) -> Option<(u32, bool)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    // Of a zombie the first thread always stands there; another one runs.
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    Some((parent, !ended || threads() > 1))
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
