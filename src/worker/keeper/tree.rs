//! Families of processes, as /proc shows them, and how to end them.
//!
//! Contract: only processes are signalled that were found below the given one a moment before. A process that forks
//! while it is being killed is found in the next round; rounds go on until nothing is left or `rounds` are over.

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::collections::{BTreeMap, BTreeSet};

/// Every process with its parent, and whether it lives.
fn everybody() -> BTreeMap<u32, (u32, bool)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, stat(pid)?))).collect()
}

/// The parent of a process, and whether it lives.
fn stat(pid: u32) -> Option<(u32, bool)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command, field 2, may contain anything; the last `)` ends it.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let lives = !matches!(fields.next()?, "Z" | "X");
    Some((fields.next()?.parse().ok()?, lives))
}

/// The process group of a process, of this one for 0; none of one that is gone. It is 0 where the group's leader lives
/// outside this container's process numbers, which `rustix` takes for impossible.
pub fn group(pid: u32) -> Option<i32> {
    // SAFETY: takes and returns plain numbers.
    let group = unsafe { libc::getpgid(i32::try_from(pid).ok()?) };
    (group >= 0).then_some(group)
}

/// The parent of a process that lives; none of a zombie.
pub fn parent(pid: u32) -> Option<u32> {
    stat(pid).filter(|(_, lives)| *lives).map(|(parent, _)| parent)
}

/// Everything below `root` that lives, `root` not included.
pub fn below(root: u32) -> BTreeSet<u32> {
    let everybody = everybody();
    let mut found = BTreeSet::from([root]);
    // Through zombies as well: one whose first thread has ended before the others still has its children.
    loop {
        let more: Vec<u32> = everybody
            .iter()
            .filter(|(pid, (up, _))| found.contains(up) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    found.retain(|pid| *pid != root && everybody.get(pid).is_some_and(|(_, lives)| *lives));
    found
}

/// Direct children of `root` that live.
pub fn children(root: u32) -> BTreeSet<u32> {
    everybody().into_iter().filter(|(_, (up, lives))| *up == root && *lives).map(|(pid, _)| pid).collect()
}

/// Memory in bytes that only the end of `root` and everything below it gives back to the host: anonymous and shared
/// pages, but no pages of files. Cheap: it reads the family alone, not all of /proc.
pub fn held_memory(root: u32) -> u64 {
    let (mut todo, mut seen, mut bytes) = (vec![root], BTreeSet::new(), 0);
    while let Some(pid) = todo.pop() {
        if !seen.insert(pid) {
            continue;
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        for line in status.lines() {
            let Some(kib) = line.strip_prefix("RssAnon:").or_else(|| line.strip_prefix("RssShmem:")) else { continue };
            bytes += kib.trim().strip_suffix("kB").and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0) << 10;
        }
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            todo.extend(children.split_whitespace().filter_map(|c| c.parse::<u32>().ok()));
        }
    }
    bytes
}

/// The value of an environment variable that a process was started with.
pub fn variable(pid: u32, name: &str) -> Option<String> {
    let environ = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut entries = environ.split(|b| *b == 0);
    entries.find_map(|e| Some(String::from_utf8_lossy(e).strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

/// SIGKILL to one process. That it is gone already is no error.
pub fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// SIGKILL to a process, its group and everything below it. 0 and 1, above everybody, are nobody's to kill.
pub fn kill_tree(pid: u32) {
    if pid <= 1 {
        return;
    }
    let family = below(pid);
    if let Some(leader) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(leader, Signal::KILL);
        let _ = kill_process(leader, Signal::KILL);
    }
    family.into_iter().for_each(kill);
}

/// Kills everything below `root` that `condemned` names, and what is below that, until nothing is left of it or
/// `rounds` are over. Calls `reap` between rounds. True when nothing was left twice in a row: one look may miss a process
/// whose parent dies while /proc is read.
pub fn kill_below(root: u32, rounds: usize, condemned: impl Fn(u32) -> bool, mut reap: impl FnMut()) -> bool {
    let mut clean = false;
    for round in 0..rounds {
        let found: Vec<u32> = below(root).into_iter().filter(|pid| condemned(*pid)).collect();
        if found.is_empty() && std::mem::replace(&mut clean, true) {
            return true;
        }
        clean = found.is_empty();
        found.into_iter().for_each(kill_tree);
        std::thread::sleep(std::time::Duration::from_millis(if round < 5 { 1 } else { 10 }));
        reap();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_family_is_found_and_ended() {
        let mut child = Command::new("sh").args(["-c", "sleep 60 & sleep 60 & wait"]).env(MARK, "x").spawn().unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while below(child.id()).len() < 2 {
            assert!(std::time::Instant::now() < end);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(below(std::process::id()).is_superset(&below(child.id())));
        assert!(children(std::process::id()).contains(&child.id()));
        let (one, all) = (held_memory(*below(child.id()).first().unwrap()), held_memory(child.id()));
        assert!(one > 0 && all > 2 * one, "{one} of {all} bytes: a family holds more than each of it");
        let family = below(child.id());
        assert!(family.iter().all(|pid| variable(*pid, MARK).as_deref() == Some("x")));
        kill_tree(child.id());
        child.wait().unwrap();
        while family.iter().any(|pid| parent(*pid).is_some()) {
            assert!(std::time::Instant::now() < end);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    const MARK: &str = "BEAMPILOT_TREE_TEST";
}
