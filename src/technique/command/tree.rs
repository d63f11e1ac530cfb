//! Everything a program started, found in /proc and ended.
//!
//! Contract
//! - A program is the subreaper of what it starts ([`super::process`]): while it lives, whoever leaves its parent,
//!   its group or its session is still below it. Stopped first, it cannot end in between.
//! - When it has ended, what it left behind belongs to its process group or has become a child of this process,
//!   which is a subreaper too: [`end_strays`].
//! - Only processes that a program of ours started are ever signalled.

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, kill_process_group, waitid, waitpid,
};
use std::collections::BTreeSet;
use std::fs;
use std::sync::{Mutex, Once, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

/// Programs that run now. Spawning holds the lock for reading, so that whoever holds it for writing knows all.
static SPAWNING: RwLock<()> = RwLock::new(());
static RUNNING: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Held while a program is started and entered.
pub(super) fn spawning() -> RwLockReadGuard<'static, ()> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(e) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
            tracing::warn!(error = %e, "programs that detach themselves cannot be followed after their parent's end");
        }
    });
    SPAWNING.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn enter(pid: Pid) {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).insert(pid.as_raw_nonzero().get());
}

pub(super) fn leave(pid: Pid) {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid.as_raw_nonzero().get());
}

fn pids(text: &str) -> impl Iterator<Item = Pid> + '_ {
    text.split_ascii_whitespace().filter_map(|p| p.parse().ok().and_then(Pid::from_raw))
}

/// Children of every thread of a process.
fn children(pid: Pid) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    texts.flat_map(|text| pids(&text).collect::<Vec<_>>()).collect()
}

/// A process's descendants, itself left out.
fn descendants(root: Pid) -> Vec<Pid> {
    let mut found = children(root);
    let mut next = 0;
    // A process that is re-parented while this looks may be seen twice; the bound ends any loop.
    while let Some(&pid) = found.get(next).filter(|_| next < 100_000) {
        found.extend(children(pid));
        next += 1;
    }
    found
}

fn has_ended(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_none_or(|s| matches!(s, 'Z' | 'X'))
}

/// Resident bytes of a process and its descendants; shared pages count once for each that has them.
pub(super) fn resident(root: Pid) -> u64 {
    let page = rustix::param::page_size() as u64;
    let of = |pid: &Pid| {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        statm.split(' ').nth(1)?.parse::<u64>().ok()
    };
    let all = descendants(root);
    std::iter::once(&root).chain(&all).filter_map(of).sum::<u64>() * page
}

/// Ends a running program with all below it; the program itself is left to be waited for.
pub(super) fn end(root: Pid) {
    // It cannot end, nor start anything, while those below it are counted.
    let _ = kill_process(root, Signal::STOP);
    for _ in 0..2000 {
        let alive: Vec<Pid> = descendants(root).into_iter().filter(|&p| !has_ended(p)).collect();
        if alive.is_empty() {
            break;
        }
        for pid in alive {
            let _ = kill_process(pid, Signal::KILL);
        }
        // One in an uninterruptible call may take long: then it is left behind.
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = kill_process_group(root, Signal::KILL);
    let _ = kill_process(root, Signal::KILL);
}

/// Ends what a program left behind. It has ended, but was not waited for: its number is not given to another.
pub(super) fn end_group(root: Pid) {
    let _ = kill_process_group(root, Signal::KILL);
}

/// Session and process group of a process, 0 of this one. Both are 0 where their leader lives outside this container's
/// process numbers, which `rustix` takes for impossible; negative for a process that is gone.
fn standing(pid: i32) -> (i32, i32) {
    // SAFETY: both calls take and return plain numbers.
    unsafe { (libc::getsid(pid), libc::getpgid(pid)) }
}

/// After a program was waited for: orphans of ended programs are children of this process's first thread.
pub(super) fn end_strays(group: Pid) {
    // Most programs leave nobody, and most often no other one runs: one call says so.
    let none = waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT);
    if matches!(none, Err(rustix::io::Errno::CHILD)) {
        return;
    }
    let own = rustix::process::getpid();
    let orphans = || fs::read_to_string(format!("/proc/self/task/{own}/children")).unwrap_or_default();
    let ours = standing(0);
    for _ in 0..2000 {
        // Those of the group were killed already and wait to be buried; most programs leave nobody.
        while let Ok(Some(_)) = rustix::process::waitpgid(group, WaitOptions::NOHANG) {}
        let foreign = |pid: &Pid| standing(pid.as_raw_nonzero().get()) != ours;
        let anybody = || pids(&orphans()).any(|p| foreign(&p) && !is_running(p));
        // The kernel may leave one out of the list while others come and go.
        if !anybody() && !anybody() {
            return;
        }
        let _all_are_entered = SPAWNING.write().unwrap_or_else(PoisonError::into_inner);
        let strays: Vec<Pid> = pids(&orphans()).filter(|p| foreign(p) && !is_running(*p)).collect();
        for pid in strays {
            if !has_ended(pid) {
                end(pid);
            }
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is_running(pid: Pid) -> bool {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid.as_raw_nonzero().get())
}
