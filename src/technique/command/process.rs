//! One program, from start to end: limits, output, and the end of everything it started.
//!
//! Contract
//! - The program leads a process group of its own, is the subreaper of all it starts, and dies with the thread that
//!   started it. It sees the environment it is given and nothing else, an empty standard input, and its output folder
//!   as working directory.
//! - On return nothing of it runs any more, whichever way it ended ([`super::tree`]).
//! - One loop serves both pipes, the clock, the memory limit and the cancellation; nothing it does can block.

use super::capture::Capture;
use super::spawn::{Started, spawn};
use super::tree;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitOptions, pidfd_open, waitid, waitpid};
use std::ffi::OsString;
use std::io::{self, PipeReader};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often clock and cancellation are looked at when the program says nothing.
const TICK: Duration = Duration::from_millis(50);
/// Without pidfd (Linux before 5.3) the end itself is looked for this often.
const TICK_BLIND: Duration = Duration::from_millis(2);
/// How often memory is counted.
const COUNT: Duration = Duration::from_millis(250);

/// What to run.
pub(super) struct Order<'a> {
    pub argv: Vec<OsString>,
    pub env: Vec<(String, OsString)>,
    pub folder: &'a Path,
    pub time_limit: Duration,
    /// 0 = none.
    pub memory_limit: u64,
    pub cancelled: &'a AtomicBool,
    /// Bytes kept of the beginning of standard output.
    pub keep: usize,
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum How {
    Code(i32),
    Signal(i32),
    TimedOut,
    /// Resident bytes when it was stopped.
    TooLarge(u64),
    Cancelled,
}

pub(super) struct Ended {
    pub how: How,
    pub out: Capture,
    pub err: Capture,
}

/// Bytes kept of the beginning and of the end of a log.
const KEPT: usize = 64 * 1024;

/// Runs a program to its end.
///
/// # Errors
/// It could not be started.
pub(super) fn run(order: &Order<'_>) -> io::Result<Ended> {
    let begin = Instant::now();
    let Started { pid, stdout, stderr, ends } = start(order)?;
    let ended = Guard { pid, ended: false }.watch(order, begin, stdout, stderr);
    drop(ends);
    tree::leave(pid);
    tree::end_strays(pid);
    ended
}

fn start(order: &Order<'_>) -> io::Result<Started> {
    let mut tries = 0;
    loop {
        let spawning = tree::spawning();
        let started = spawn(&order.argv, &order.env, order.folder);
        if let Ok(started) = &started {
            tree::enter(started.pid);
        }
        drop(spawning);
        match started {
            // Somebody is installing it: whoever has it open for writing is done in a moment.
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && tries < 50 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

/// Ends the program on every way out, a panic included.
struct Guard {
    pid: Pid,
    ended: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.ended {
            tree::end(self.pid);
            let _ = waitpid(Some(self.pid), WaitOptions::empty());
        }
    }
}

impl Guard {
    fn watch(mut self, order: &Order<'_>, begin: Instant, out: PipeReader, err: PipeReader) -> io::Result<Ended> {
        let (mut stdout, mut stderr) = (Some(out), Some(err));
        for fd in [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)].into_iter().flatten() {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        let pidfd = pidfd_open(self.pid, PidfdFlags::empty()).ok();
        let (mut out, mut err) = (Capture::new(order.keep, KEPT), Capture::new(KEPT, KEPT));
        let mut counted = begin;
        let stopped = loop {
            let tick = if pidfd.is_some() { TICK } else { TICK_BLIND };
            let mut fds = Vec::with_capacity(3);
            let wanted =
                [pidfd.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
            fds.extend(wanted.into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            let left = order.time_limit.saturating_sub(begin.elapsed()).min(tick);
            let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut fds, Some(&timeout)) {
                Err(e) if e != rustix::io::Errno::INTR => return Err(e.into()),
                _ => {}
            }
            let over = pidfd.is_some() && fds.first().is_some_and(|fd| !fd.revents().is_empty());
            drop(fds);
            if over {
                break None;
            }
            serve(&mut stdout, &mut out)?;
            serve(&mut stderr, &mut err)?;
            if pidfd.is_none() && has_ended(self.pid)? {
                break None;
            }
            if order.cancelled.load(Ordering::Relaxed) {
                break Some(How::Cancelled);
            }
            if begin.elapsed() >= order.time_limit {
                break Some(How::TimedOut);
            }
            if order.memory_limit > 0 && counted.elapsed() >= COUNT {
                counted = Instant::now();
                let resident = tree::resident(self.pid);
                if resident > order.memory_limit {
                    break Some(How::TooLarge(resident));
                }
            }
        };
        if stopped.is_some() {
            tree::end(self.pid);
        } else {
            tree::end_group(self.pid);
        }
        let status = waitpid(Some(self.pid), WaitOptions::empty())?;
        self.ended = true;
        serve(&mut stdout, &mut out)?;
        serve(&mut stderr, &mut err)?;
        let status = status.map(|(_, status)| status);
        let how = stopped.unwrap_or_else(|| match status.and_then(|s| s.exit_status()) {
            Some(code) => How::Code(code),
            None => How::Signal(status.and_then(|s| s.terminating_signal()).unwrap_or(0)),
        });
        Ok(Ended { how, out, err })
    }
}

/// Has it ended? It is not waited for yet: its number stays its own.
fn has_ended(pid: Pid) -> io::Result<bool> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(pid), options)?.is_some())
}

/// Reads what is there; a pipe that was closed is not looked at again.
fn serve<R: io::Read>(pipe: &mut Option<R>, into: &mut Capture) -> io::Result<()> {
    if let Some(reader) = pipe
        && !into.drain(reader)?
    {
        *pipe = None;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration, memory_limit: u64, cancelled: &AtomicBool) -> Ended {
        // A shell here is the program under test, not a means to start it.
        let order = Order {
            argv: ["/bin/bash", "-c", script].map(OsString::from).to_vec(),
            env: vec![("PATH".to_owned(), std::env::var_os("PATH").unwrap())],
            folder: Path::new("/tmp"),
            time_limit: limit,
            memory_limit,
            cancelled,
            keep: KEPT,
        };
        run(&order).unwrap()
    }

    const LONG: Duration = Duration::from_secs(30);

    fn alive(marker: &str) -> bool {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = entries.filter_map(|e| std::fs::read(e.path().join("cmdline")).ok());
        lines.into_iter().any(|line| String::from_utf8_lossy(&line).split('\0').any(|a| a == marker))
    }

    #[test]
    fn code_signal_and_output_are_told() {
        let no = AtomicBool::new(false);
        let e = shell("echo out; echo err >&2; echo $OMPI_X$HOME; exit 7", LONG, 0, &no);
        assert_eq!((e.how, e.out.log(), e.err.log()), (How::Code(7), b"out\n\n".to_vec(), b"err\n".to_vec()));
        assert_eq!(shell("kill -9 $$", LONG, 0, &no).how, How::Signal(9));
        let big = shell("head -c 10000000 /dev/zero; echo end", LONG, 0, &no);
        assert!(big.out.whole().is_none() && big.out.log().ends_with(b"end\n"));
    }

    #[test]
    fn on_time_out_everything_ends_whatever_it_did_to_escape() {
        let begin = Instant::now();
        let script = "trap '' TERM INT HUP; sleep 3611.25 & (setsid sleep 3612.25 &) ; set -m; sleep 3613.25 & \
                      (setsid bash -c 'trap \"\" TERM; (sleep 3614.25 &); sleep 3615.25' &); sleep 0.3; wait";
        let e = shell(script, Duration::from_millis(800), 0, &AtomicBool::new(false));
        assert_eq!(e.how, How::TimedOut);
        assert!(begin.elapsed() < Duration::from_secs(10));
        for i in 3611..=3615 {
            assert!(!alive(&format!("{i}.25")), "{i} lives on");
        }
    }

    #[test]
    fn what_a_program_leaves_behind_ends_with_it() {
        let script = "sleep 3621.25 & (setsid sleep 3622.25 &); set -m; sleep 3623.25 & exit 0";
        assert_eq!(shell(script, LONG, 0, &AtomicBool::new(false)).how, How::Code(0));
        for i in 3621..=3623 {
            assert!(!alive(&format!("{i}.25")), "{i} lives on");
        }
    }

    #[test]
    fn a_cancelled_program_ends_soon() {
        let flag = AtomicBool::new(false);
        let begin = Instant::now();
        std::thread::scope(|s| {
            s.spawn(|| {
                std::thread::sleep(Duration::from_millis(200));
                flag.store(true, Ordering::Relaxed);
            });
            assert_eq!(shell("sleep 3631.25", LONG, 0, &flag).how, How::Cancelled);
        });
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn memory_of_the_whole_tree_is_limited() {
        // A shell variable of 100 MB, in a child.
        let script = "bash -c 'x=$(head -c 100000000 /dev/zero | tr \"\\0\" a); sleep 3641.25'; true";
        let e = shell(script, LONG, 60_000_000, &AtomicBool::new(false));
        assert!(matches!(e.how, How::TooLarge(n) if n > 60_000_000), "{:?}", e.how);
    }
}
