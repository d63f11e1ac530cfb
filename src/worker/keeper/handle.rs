//! The rank's end of its keeper.
//!
//! Contract
//! - [`Keeper::start`] must be called on the process's main thread and before `MPI_Init`: the keeper is told of the
//!   death of the *thread* that started it, and after `MPI_Init` nothing may fork.
//! - [`Keeper::start_executor`] gives a channel of [`News`] about one slot. It outlives the keeper: when a
//!   keeper is lost, [`Keeper::revive`] (main thread, never under MPI) starts another and all slots anew;
//!   where that is not possible every slot hears [`News::Lost`].
//! - Dropping the last handle ends the keeper and everything below it, and waits for it, a second at most.

use super::{FromKeeper, HowEnded, KEEPER, MARK, PACKET, ToKeeper, decode, encode, strip_launcher_variables, tree};
use crossbeam::channel::{Receiver, Sender, unbounded};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags};
use rustix::net::{Shutdown, SocketType, recvmsg, send, shutdown, socketpair};
use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
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

#[derive(Default)]
struct Shared {
    slots: Mutex<BTreeMap<u32, Slot>>,
    lost: AtomicBool,
    ending: AtomicBool,
}

struct Line {
    control: Arc<OwnedFd>,
    child: Child,
}

/// A rank's keeper.
pub struct Keeper {
    line: Mutex<Line>,
    shared: Arc<Shared>,
    revivable: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding one of these.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keeper {
    /// Starts the keeper. `revivable`: this process will never initialize MPI, so that another one can be started
    /// should this one die.
    ///
    /// # Errors
    /// No process or thread can be started.
    pub fn start(revivable: bool) -> io::Result<Self> {
        // What the executors of a lost keeper leave behind comes to us, and is found.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let shared = Arc::new(Shared::default());
        let line = open(&shared, revivable)?;
        Ok(Self { line: Mutex::new(line), shared, revivable })
    }

    /// The keeper's process.
    pub fn pid(&self) -> u32 {
        locked(&self.line).child.id()
    }

    /// Starts an executor with this command line and keeps one running in its slot.
    ///
    /// # Errors
    /// The keeper does not listen.
    pub fn start_executor(
        &self,
        slot: u32,
        args: Vec<String>,
        address_space: Option<u64>,
    ) -> io::Result<Receiver<News>> {
        let order = ToKeeper::Start { slot, args, address_space };
        let (news, news_in) = unbounded();
        locked(&self.shared.slots).insert(slot, Slot { order: order.clone(), news });
        self.order(&order)?;
        Ok(news_in)
    }

    /// Kills an executor and everything it started. Does so itself as well, should the keeper be stopped.
    pub fn kill(&self, slot: u32, pid: u32) {
        let _ = self.order(&ToKeeper::Kill { slot, pid });
        // Only what is still the keeper's: the number of a process that was reaped may be another's by now.
        if tree::parent(pid) == Some(self.pid()) {
            tree::kill_tree(pid);
        }
    }

    /// The slot's executor will end and shall not be replaced.
    pub fn retire(&self, slot: u32) {
        let order = ToKeeper::Retire { slot };
        let _ = self.order(&order);
        if let Some(slot) = locked(&self.shared.slots).get_mut(&slot) {
            // For a keeper to come.
            slot.order = order;
        }
    }

    fn order(&self, order: &ToKeeper) -> io::Result<()> {
        let control = locked(&self.line).control.clone();
        // The rank's main thread may be the one that calls: never wait for a keeper that does not read.
        send(&*control, &encode(order)?, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// Starts another keeper when the last one died. Only on the main thread.
    pub fn revive(&self) {
        if !self.revivable || !self.shared.lost.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut line = locked(&self.line);
        let _ = line.child.wait();
        match open(&self.shared, self.revivable) {
            Ok(fresh) => *line = fresh,
            Err(e) => {
                tracing::error!(error = %e, "the keeper died and no other can be started");
                return self.shared.tell_all_lost();
            }
        }
        drop(line);
        let orders: Vec<ToKeeper> = locked(&self.shared.slots).values().map(|s| s.order.clone()).collect();
        for order in orders {
            let _ = self.order(&order);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        let line = self.line.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = shutdown(&*line.control, Shutdown::Both);
        let deadline = Instant::now() + END;
        while matches!(line.child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                tracing::warn!("the keeper does not end; it is killed");
                tree::kill_tree(line.child.id());
                let _ = line.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Shared {
    fn tell(&self, slot: u32, news: News) {
        if let Some(slot) = locked(&self.slots).get(&slot) {
            // A proxy that is gone needs no news.
            let _ = slot.news.send(news);
        }
    }

    fn tell_all_lost(&self) {
        locked(&self.slots).values().for_each(|s| drop(s.news.send(News::Lost)));
    }

    /// Reads what a keeper says until it ends.
    fn listen(&self, control: &OwnedFd, revivable: bool) {
        let mut packet = vec![0u8; PACKET];
        loop {
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
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(None) | Err(_) => break,
            }
        }
        if self.ending.load(Ordering::Relaxed) {
            return;
        }
        tracing::error!("the executors' keeper died");
        // The kernel killed the executors; what they had started is below us now, and marked.
        let mine = format!("{}.", std::process::id());
        let marked = |pid| tree::variable(pid, MARK).is_some_and(|m| m.starts_with(&mine));
        tree::kill_below(std::process::id(), 20, marked, || {});
        self.lost.store(true, Ordering::Relaxed);
        if !revivable {
            self.tell_all_lost();
        }
    }
}

fn open(shared: &Arc<Shared>, revivable: bool) -> io::Result<Line> {
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
    let child = command.spawn()?;
    let control = Arc::new(ours);
    let (ears, listener) = (control.clone(), shared.clone());
    std::thread::Builder::new().name("keeper".into()).spawn(move || listener.listen(&ears, revivable))?;
    Ok(Line { control, child })
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
