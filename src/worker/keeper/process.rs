//! The keeper's own process: one thread, one loop.
//!
//! Contract: see [`super`]. It reads /proc and its socket, and writes to its socket; it never touches a scan, so that
//! no stalled filesystem can hold it.

use super::{FromKeeper, HowEnded, KEEPER, MARK, PACKET, SHIM, ToKeeper, decode, encode, tree};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags};
use rustix::net::{SocketType, recv, sendmsg, socketpair};
use rustix::process::{Signal, WaitOptions, getppid, set_child_subreaper, set_parent_process_death_signal, wait};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// An executor that lived this long and then ended is not part of a series.
const HEALTHY: Duration = Duration::from_secs(30);
/// Longest wait before a replacement.
const LONGEST: Duration = Duration::from_secs(30);
/// Rounds of killing before something is left to the kernel.
const ROUNDS: usize = 100;
/// How often memory is counted: allocating at 10 GB/s, an executor gets 2.5 GB past its limit.
const COUNT: Duration = Duration::from_millis(250);

struct Slot {
    args: Vec<String>,
    memory: Option<u64>,
    /// Why we killed it.
    verdict: Option<HowEnded>,
    running: Option<(u32, Instant)>,
    /// Ends in a row, each soon after its start.
    series: u32,
    /// Executors started so far.
    started: u32,
    due: Option<Instant>,
    retired: bool,
}

struct Process {
    rank: u32,
    control: OwnedFd,
    slots: BTreeMap<u32, Slot>,
    /// Keepers that wait for our death.
    spares: BTreeSet<u32>,
    counted: Instant,
    /// Kills for lack of memory that this host has seen.
    oom_kills: u64,
}

/// Runs the keeper of process `rank` until the rank closes `control`.
///
/// # Errors
/// It could not be set up, or the rank says something incomprehensible.
pub fn run(rank: u32, control: OwnedFd) -> io::Result<()> {
    let _ = rustix::thread::set_name(c"bp-keeper");
    set_child_subreaper(Some(rustix::process::getpid()))?;
    let (wake, waker) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    // SIGHUP is how we ask to be told of our parent's death; all of them only wake the loop.
    for signal in [signal_hook::consts::SIGCHLD, signal_hook::consts::SIGHUP] {
        signal_hook::low_level::pipe::register(signal, waker.try_clone()?)?;
    }
    let ignored = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGUSR1] {
        signal_hook::flag::register(signal, ignored.clone())?;
    }
    set_parent_process_death_signal(Some(Signal::HUP))?;
    let (slots, spares, counted) = (BTreeMap::new(), BTreeSet::new(), Instant::now());
    let mut this = Process { rank, control, slots, spares, counted, oom_kills: oom_kills() };
    let outcome = this.serve(wake);
    this.end_all();
    outcome
}

impl Process {
    fn serve(&mut self, mut wake: UnixStream) -> io::Result<()> {
        let mut packet = vec![0u8; PACKET];
        let parent = || getppid().map(|p| p.as_raw_nonzero().get());
        // The rank, or the keeper that started us; when that dies the rank, a subreaper, becomes our parent.
        let born_to = parent();
        loop {
            if parent() != born_to && parent() != i32::try_from(self.rank).ok() {
                return Ok(());
            }
            self.start_due();
            self.count_memory();
            let timeout = self.until_due();
            let mut fds = [PollFd::new(&self.control, PollFlags::IN), PollFd::new(&wake, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            let talk = !fds[0].revents().is_empty();
            let _ = wake.read(&mut [0u8; 64]);
            self.reap();
            if talk {
                let bytes = match recv(&self.control, packet.as_mut_slice(), RecvFlags::DONTWAIT) {
                    Ok((0, _)) | Err(rustix::io::Errno::CONNRESET) => return Ok(()),
                    Ok((bytes, _)) => bytes,
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
                    Err(e) => return Err(e.into()),
                };
                self.obey(decode(packet.get(..bytes).unwrap_or_default())?);
            }
        }
    }

    fn obey(&mut self, order: ToKeeper) {
        match order {
            ToKeeper::Start { slot, args, memory } => {
                let now = Some(Instant::now());
                let (running, verdict, retired) = (None, None, false);
                let fresh = Slot { args, memory, verdict, running, series: 0, started: 0, due: now, retired };
                self.slots.insert(slot, fresh);
            }
            ToKeeper::Spare => match start_spare(self.rank) {
                Ok((pid, socket)) => {
                    self.spares.insert(pid);
                    self.say(&FromKeeper::Spare { pid }, Some(socket));
                }
                Err(e) => self.say(&FromKeeper::NoSpare { reason: e.to_string() }, None),
            },
            ToKeeper::Kill { slot, pid } => {
                if self.slots.get(&slot).is_some_and(|s| s.running.is_some_and(|(p, _)| p == pid)) {
                    tree::kill_tree(pid);
                }
            }
            ToKeeper::Retire { slot } => {
                if let Some(slot) = self.slots.get_mut(&slot) {
                    slot.retired = true;
                    slot.due = None;
                }
            }
        }
    }

    fn until_due(&self) -> Option<Timespec> {
        let counts = |s: &Slot| Some(self.counted + COUNT).filter(|_| s.running.is_some() && s.memory.is_some());
        let next = self.slots.values().flat_map(|s| [s.due, counts(s)]).flatten().min()?;
        let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        Some(Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(3600), tv_nsec: left.subsec_nanos().into() })
    }

    /// Kills executors that hold too much. Their whole family goes: a program that an executor started is no better.
    fn count_memory(&mut self) {
        if self.counted.elapsed() < COUNT {
            return;
        }
        self.counted = Instant::now();
        for slot in self.slots.values_mut().filter(|s| s.verdict.is_none()) {
            let (Some((pid, _)), Some(limit)) = (slot.running, slot.memory) else { continue };
            let held = tree::held_memory(pid);
            if held > limit {
                slot.verdict = Some(HowEnded::TooMuch(held, limit));
                tree::kill_tree(pid);
            }
        }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        let due: Vec<u32> =
            self.slots.iter().filter(|(_, s)| s.due.is_some_and(|t| t <= now)).map(|(n, _)| *n).collect();
        for number in due {
            let rank = self.rank;
            let Some(slot) = self.slots.get_mut(&number) else { continue };
            slot.due = None;
            match start(rank, number, slot) {
                Ok((pid, socket)) => {
                    slot.running = Some((pid, now));
                    self.say(&FromKeeper::Up { slot: number, pid }, Some(socket));
                }
                Err(e) => {
                    slot.series += 1;
                    slot.due = Some(now + back_off(slot.series).max(Duration::from_millis(500)));
                    self.say(&FromKeeper::Failed { slot: number, reason: e.to_string() }, None);
                }
            }
        }
    }

    /// Takes note of everybody who ended.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get().unsigned_abs();
            self.spares.remove(&pid);
            let of = self.slots.iter().find(|(_, s)| s.running.is_some_and(|(p, _)| p == pid)).map(|(n, _)| *n);
            // Anybody else is what an executor left behind.
            let Some(number) = of else { continue };
            let oom = oom_kills();
            let how = match (status.terminating_signal(), status.exit_status()) {
                (Some(9), _) if oom > self.oom_kills => HowEnded::OutOfMemory,
                (Some(signal), _) => HowEnded::Signal(signal),
                (None, code) => HowEnded::Exit(code.unwrap_or(-1)),
            };
            self.oom_kills = oom;
            let mut verdict = None;
            if let Some(slot) = self.slots.get_mut(&number) {
                verdict = slot.verdict.take();
                let lived = slot.running.take().map_or(Duration::ZERO, |(_, since)| since.elapsed());
                slot.series = if lived < HEALTHY { slot.series + 1 } else { 1 };
                if !slot.retired {
                    slot.due = Some(Instant::now() + back_off(slot.series));
                }
            }
            self.kill_strays();
            self.say(&FromKeeper::Ended { slot: number, pid, how: verdict.unwrap_or(how) }, None);
        }
    }

    /// Kills what executors that ended have left behind: our children that are neither executors nor marked as one
    /// of a living executor's (which may well start a service that lives on under us).
    fn kill_strays(&self) {
        let living: Vec<(u32, String)> =
            self.slots.iter().filter_map(|(n, s)| Some((s.running?.0, mark(self.rank, *n, s.started)))).collect();
        let me = std::process::id();
        let spared = |pid: u32| {
            living.iter().any(|(p, _)| *p == pid)
                || self.spares.contains(&pid)
                || tree::variable(pid, MARK).is_some_and(|m| living.iter().any(|(_, l)| *l == m))
        };
        let mut clean = false;
        for _ in 0..ROUNDS {
            let strays: Vec<u32> = tree::children(me).into_iter().filter(|pid| !spared(*pid)).collect();
            // Twice, as one look may miss a process whose parent dies meanwhile.
            if strays.is_empty() && std::mem::replace(&mut clean, true) {
                return;
            }
            clean = strays.is_empty();
            strays.into_iter().for_each(tree::kill_tree);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end_all(&mut self) {
        let reap = || while matches!(wait(WaitOptions::NOHANG), Ok(Some(_))) {};
        // A keeper that waits ends by itself, or takes our place: the rank decides.
        tree::kill_below(std::process::id(), ROUNDS, |pid| !self.spares.contains(&pid), reap);
    }

    /// A rank that does not listen is about to close the socket: nothing to do about it here.
    fn say(&self, news: &FromKeeper, socket: Option<OwnedFd>) {
        let Ok(packet) = encode(news) else { return };
        let fds: Vec<_> = socket.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return;
        }
        if let Err(e) = sendmsg(&self.control, &[IoSlice::new(&packet)], &mut control, SendFlags::NOSIGNAL) {
            tracing::debug!(error = %e, "{KEEPER}: the rank does not listen");
        }
    }
}

/// Starts a keeper that waits; returns it and the rank's end of its socket.
fn start_spare(rank: u32) -> io::Result<(u32, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("beampilot").args([KEEPER, "--rank-pid", &rank.to_string()]);
    let child = command.stdin(Stdio::from(theirs)).process_group(0).spawn()?;
    Ok((child.id(), ours))
}

fn mark(rank: u32, slot: u32, started: u32) -> String {
    format!("{rank}.{slot}.{started}")
}

/// Starts one executor through the shim; returns it and the rank's end of its socket.
fn start(rank: u32, number: u32, slot: &mut Slot) -> io::Result<(u32, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    slot.started += 1;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("beampilot").args([SHIM, "--parent", &std::process::id().to_string()]);
    command.arg("--").args(&slot.args);
    command.env(MARK, mark(rank, number, slot.started)).stdin(Stdio::from(theirs)).process_group(0);
    let child = command.spawn()?;
    Ok((child.id(), ours))
}

/// How long the replacement waits after so many ends in a row: not at all the first time.
fn back_off(series: u32) -> Duration {
    match series {
        0 | 1 => Duration::ZERO,
        n => Duration::from_millis(250).saturating_mul(1 << (n - 2).min(16)).min(LONGEST),
    }
}

/// `oom_kill` of /proc/vmstat.
fn oom_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let found = text.lines().find_map(|l| l.strip_prefix("oom_kill "));
    found.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_replacement_is_immediate_and_later_ones_wait() {
        let waits: Vec<u64> = (0..9).map(|n| back_off(n).as_millis() as u64).collect();
        assert_eq!(waits, [0, 0, 250, 500, 1000, 2000, 4000, 8000, 16000]);
        assert_eq!(back_off(10), LONGEST);
        assert_eq!(back_off(u32::MAX), LONGEST);
    }
}
