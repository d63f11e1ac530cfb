//! The rank's end of its keeper.
//!
//! Contract
//! - [`Keeper::start`] must be called on the process's main thread and before `MPI_Init`: the keeper is told of the
//!   death of the *thread* that started it, and after `MPI_Init` nothing may fork.
//! - [`Keeper::start_executor`] gives a channel of [`News`] about one slot. It outlives the process: when a
//!   keeper dies, the one that waited takes its place, and all slots are started anew. Only where there is none, because
//!   both died within moments, every slot hears [`News::Lost`].
//! - Dropping the last handle ends both keepers and everything below them, and waits for it, a second at most.

use super::{FromKeeper, HowEnded, KEEPER, MARK, PACKET, ToKeeper, decode, encode, strip_launcher_variables, tree};
use crossbeam::channel::{Receiver, Sender, unbounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags};
use rustix::net::{Shutdown, SocketType, recvmsg, send, shutdown, socketpair};
use rustix::process::{Pid, WaitOptions, waitpid};
use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a slot hears.
#[derive(Debug)]
pub enum News {
    /// An executor was started; this is its socket.
    Up {
        /// Process.
        pid: u32,
        /// To it.
        socket: UnixStream,
    },
    /// It ended.
    Ended {
        /// Process.
        pid: u32,
        /// How.
        how: HowEnded,
    },
    /// There will be no other one.
    Lost,
}

/// How long the end of a keeper is awaited.
const END: Duration = Duration::from_secs(1);

struct Slot {
    order: ToKeeper,
    news: Sender<News>,
}

struct Shared {
    slots: Mutex<BTreeMap<u32, Slot>>,
    /// The one that works.
    line: Mutex<Line>,
    /// The one that waits.
    spare: Mutex<Option<Line>>,
    ending: AtomicBool,
}

/// A keeper's process and the rank's end of its socket.
#[derive(Clone)]
struct Line {
    control: Arc<OwnedFd>,
    pid: u32,
}

/// A rank's keeper.
pub struct Keeper {
    shared: Arc<Shared>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding one of these.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keeper {
    /// Starts the keeper, and one that waits for its death.
    ///
    /// # Errors
    /// No process or thread can be started.
    pub fn start() -> io::Result<Self> {
        // What the executors of a lost keeper leave behind comes to us, and is found.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let shared = Shared {
            slots: Mutex::default(),
            line: open()?.into(),
            spare: Some(open()?).into(),
            ending: AtomicBool::new(false),
        };
        let shared = Arc::new(shared);
        let ears = shared.clone();
        std::thread::Builder::new().name("keeper".into()).spawn(move || ears.listen())?;
        Ok(Self { shared })
    }

    /// The keeper's process.
    pub fn pid(&self) -> u32 {
        locked(&self.shared.line).pid
    }

    /// Starts an executor with this command line and keeps one running in its slot.
    ///
    /// # Errors
    /// The keeper does not listen.
    pub fn start_executor(&self, slot: u32, args: Vec<String>, memory: Option<u64>) -> io::Result<Receiver<News>> {
        let order = ToKeeper::Start { slot, args, memory };
        let (news, news_in) = unbounded();
        locked(&self.shared.slots).insert(slot, Slot { order: order.clone(), news });
        self.shared.order(&order)?;
        Ok(news_in)
    }

    /// Kills an executor and everything it started. Does so itself as well, should the keeper be stopped.
    pub fn kill(&self, slot: u32, pid: u32) {
        let _ = self.shared.order(&ToKeeper::Kill { slot, pid });
        // Only what is still the keeper's: the number of a process that was reaped may be another's by now.
        if tree::parent(pid) == Some(self.pid()) {
            tree::kill_tree(pid);
        }
    }

    /// The slot's executor will end and shall not be replaced.
    pub fn retire(&self, slot: u32) {
        let order = ToKeeper::Retire { slot };
        let _ = self.shared.order(&order);
        if let Some(slot) = locked(&self.shared.slots).get_mut(&slot) {
            // For a keeper to come.
            slot.order = order;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        let keepers: Vec<Line> =
            std::iter::once(locked(&self.shared.line).clone()).chain(locked(&self.shared.spare).take()).collect();
        for line in &keepers {
            let _ = shutdown(&*line.control, Shutdown::Both);
        }
        let deadline = Instant::now() + END;
        while keepers.iter().any(|line| !is_gone(line.pid)) {
            if Instant::now() >= deadline {
                tracing::warn!("the keeper does not end; it is killed");
                let ours = [Some(std::process::id()), Some(keepers[0].pid)];
                keepers.iter().filter(|l| ours.contains(&tree::parent(l.pid))).for_each(|l| tree::kill_tree(l.pid));
                keepers.iter().for_each(|l| _ = is_gone(l.pid));
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Has this keeper ended? Reaps it where it is our child.
fn is_gone(pid: u32) -> bool {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
    tree::parent(pid).is_none()
}

/// A keeper that waited and died is replaced after so long.
const SPARE_AGAIN: Duration = Duration::from_millis(500);

impl Shared {
    fn order(&self, order: &ToKeeper) -> io::Result<()> {
        let control = locked(&self.line).control.clone();
        // The rank's main thread may be the one that calls: never wait for a keeper that does not read.
        send(&*control, &encode(order)?, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }

    fn tell(&self, slot: u32, news: News) {
        if let Some(slot) = locked(&self.slots).get(&slot) {
            // A proxy that is gone needs no news.
            let _ = slot.news.send(news);
        }
    }

    /// Hears one keeper after the other, as long as there is one.
    fn listen(&self) {
        loop {
            let line = locked(&self.line).clone();
            self.hear(&line.control);
            if self.ending.load(Ordering::Relaxed) {
                return;
            }
            tracing::error!("the executors' keeper died");
            // Its socket closes before its children get another parent.
            let end = Instant::now() + END;
            while !is_gone(line.pid) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
            }
            // The kernel killed the executors; what they had started is below us now. What they start is in groups of its
            // own, or says whose it is; nothing else below a rank does either, the other keeper apart.
            let (mine, ours) = (format!("{}.", std::process::id()), tree::group(0));
            let spare = locked(&self.spare).as_ref().map(|line| line.pid);
            let grouped = |pid: u32| tree::group(pid).is_some_and(|group| Some(group) != ours);
            let marked = |pid| tree::variable(pid, MARK).is_some_and(|m| m.starts_with(&mine));
            let stray = |pid| Some(pid) != spare && (grouped(pid) || marked(pid));
            tree::kill_below(std::process::id(), 20, stray, || {});
            let Some(next) = locked(&self.spare).take() else {
                tracing::error!("no keeper is left: this rank computes nothing more");
                return locked(&self.slots).values().for_each(|s| drop(s.news.send(News::Lost)));
            };
            tracing::info!(pid = next.pid, "another keeper takes its place");
            // Held over the orders: a slot that is started meanwhile is started once.
            let slots = locked(&self.slots);
            *locked(&self.line) = next;
            for order in slots.values().map(|s| &s.order).chain([&ToKeeper::Spare]) {
                let _ = self.order(order);
            }
        }
    }

    /// Hears what a keeper says until it ends, and looks after the one that waits.
    fn hear(&self, control: &OwnedFd) {
        let mut packet = vec![0u8; PACKET];
        let mut wanted: Option<Instant> = None;
        loop {
            let waiting = locked(&self.spare).clone();
            let mut fds = vec![PollFd::new(control, PollFlags::IN)];
            fds.extend(waiting.as_ref().map(|line| PollFd::new(&*line.control, PollFlags::IN)));
            let left = wanted.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let polled = poll(&mut fds, timeout.as_ref());
            if polled.is_err_and(|e| e != rustix::io::Errno::INTR) {
                return;
            }
            let heard: Vec<bool> = fds.iter().map(|fd| polled.is_ok() && !fd.revents().is_empty()).collect();
            drop(fds);
            if let Some(line) = waiting.filter(|_| heard.get(1) == Some(&true)) {
                // It has nothing to say: this is its end.
                *locked(&self.spare) = None;
                is_gone(line.pid);
                wanted = Some(Instant::now() + SPARE_AGAIN);
            }
            if wanted.is_some_and(|at| at <= Instant::now()) {
                wanted = None;
                let _ = self.order(&ToKeeper::Spare);
            }
            if heard.first() != Some(&true) {
                continue;
            }
            match receive(control, &mut packet) {
                Ok(Some((FromKeeper::Up { slot, pid }, Some(socket)))) => {
                    self.tell(slot, News::Up { pid, socket: socket.into() })
                }
                Ok(Some((FromKeeper::Ended { slot, pid, how }, _))) => self.tell(slot, News::Ended { pid, how }),
                Ok(Some((FromKeeper::Failed { slot, reason }, _))) => {
                    tracing::warn!(slot, "an executor cannot be started, trying again: {reason}");
                }
                Ok(Some((FromKeeper::Up { slot, .. }, None))) => {
                    tracing::warn!(slot, "an executor's socket was lost on the way");
                }
                Ok(Some((FromKeeper::Spare { pid }, Some(socket)))) => {
                    tracing::info!(pid, "a new keeper waits in reserve");
                    *locked(&self.spare) = Some(Line { control: Arc::new(socket), pid });
                }
                Ok(Some((FromKeeper::Spare { .. }, None))) => wanted = Some(Instant::now() + SPARE_AGAIN),
                Ok(Some((FromKeeper::NoSpare { reason }, _))) => {
                    tracing::warn!("no keeper in reserve can be started, trying again: {reason}");
                    wanted = Some(Instant::now() + SPARE_AGAIN * 20);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}

fn open() -> io::Result<Line> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("beampilot").args([KEEPER, "--rank-pid", &std::process::id().to_string()]);
    strip_launcher_variables(&mut command);
    if std::env::var_os("BEAMPILOT_LOG").is_none() {
        // Executors say as much as their rank does, but what they do is told by the rank.
        let level = tracing::level_filters::LevelFilter::current().min(tracing::level_filters::LevelFilter::INFO);
        command.env("BEAMPILOT_LOG", level.to_string().to_lowercase());
    }
    // A group of its own: a terminal's ^C is for the rank.
    command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).process_group(0);
    // Reaped by its number: one that takes another's place was never this process's to start.
    let child = command.spawn()?;
    Ok(Line { control: Arc::new(ours), pid: child.id() })
}

type Heard = (FromKeeper, Option<OwnedFd>);

/// One packet; `None` at the end.
fn receive(control: &OwnedFd, packet: &mut [u8]) -> io::Result<Option<Heard>> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(control, &mut [IoSliceMut::new(packet)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes == 0 {
        return Ok(None);
    }
    let socket = ancillary.drain().find_map(|m| match m {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(Some((decode(packet.get(..got.bytes).unwrap_or_default())?, socket)))
}
