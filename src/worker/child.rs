//! The rank's side of an executor in a process of its own.
//!
//! Contract
//! - To whoever uses it, a [`Proxy`] behaves as an [`Executor`](super::Executor): [`Proxy::deliver`] never blocks, and
//!   answers come on the channel given to [`Proxy::spawn`], under the rules of [`crate::transport::wire`].
//! - When the executor ends unasked, [`FromWorker::ExecutorDied`] is said once, after everything it had said itself;
//!   what is delivered from then to the next `Hello` is dropped.
//! - An executor that is silent, or whose task takes too long, is killed with everything it started.
//! - `Bye` is said when the process is reaped: nothing of it writes any more.
//! - An executor of another build is refused.
//!
//! Two threads: one reads and watches; the other writes, but only what the socket did not take at once.

use super::executor::ExecutorConfig;
use super::keeper::{EXECUTOR, Keeper, News};
use super::ledger::{Ailment, Ledger};
use crate::technique::plan::Fault;
use crate::transport::WorkerId;
use crate::transport::stream::{FrameReader, ReadError, write_frames};
use crate::transport::wire::{FromWorker, ToWorker};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use rustix::net::{SendFlags, send};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the watcher looks although nothing comes.
const LOOK: Duration = Duration::from_millis(100);
/// After `Shutdown` the executor may take this long.
const GRACE: Duration = Duration::from_millis(500);
/// How long the keeper may take to tell how an executor ended.
const REAPED: Duration = Duration::from_secs(2);
/// How long a killed process may keep its socket open before it is called dead all the same.
const DYING: Duration = Duration::from_secs(5);

/// The executor's stand-in.
pub struct Proxy {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct State {
    /// To the executor; none while there is none.
    socket: Option<Arc<UnixStream>>,
    pid: u32,
    /// What the socket did not take.
    backlog: Vec<u8>,
    /// The writing thread holds earlier bytes.
    writing: bool,
    ledger: Ledger,
    /// Since `Shutdown`.
    stopping: Option<Instant>,
    over: bool,
}

struct Shared {
    id: WorkerId,
    keeper: Arc<Keeper>,
    out: Sender<(WorkerId, FromWorker)>,
    state: Mutex<State>,
    /// There is a backlog, or it is over.
    backlog: Condvar,
}

impl Proxy {
    /// Has the keeper start the executor.
    ///
    /// # Errors
    /// The keeper does not listen, or a thread cannot be started.
    pub fn spawn(
        config: &ExecutorConfig,
        keeper: Arc<Keeper>,
        out: Sender<(WorkerId, FromWorker)>,
    ) -> io::Result<Self> {
        let id = config.id;
        let args: [(&str, String); 5] = [
            ("--id", id.0.to_string()),
            ("--host", config.host.clone()),
            ("--threads", config.threads.to_string()),
            ("--task-memory", config.task_memory.to_string()),
            ("--services", config.services.name().to_owned()),
        ];
        let args = std::iter::once(EXECUTOR.to_owned()).chain(args.into_iter().flat_map(|(k, v)| [k.to_owned(), v]));
        let news = keeper.start_executor(id.0, args.collect(), config.memory)?;
        let state = State {
            socket: None,
            pid: 0,
            backlog: Vec::new(),
            writing: false,
            ledger: Ledger::new(Instant::now()),
            stopping: None,
            over: false,
        };
        let shared = Arc::new(Shared { id, keeper, out, state: state.into(), backlog: Condvar::new() });
        let mut this = Self { shared, threads: Vec::with_capacity(2) };
        let (watch, write) = (this.shared.clone(), this.shared.clone());
        let builder = |name: &str| std::thread::Builder::new().name(format!("x{}-{name}", id.0));
        this.threads.push(builder("watch").spawn(move || watch.watch(&news))?);
        this.threads.push(builder("send").spawn(move || write.write())?);
        Ok(this)
    }

    /// Its name to the coordinator.
    pub fn id(&self) -> WorkerId {
        self.shared.id
    }

    /// Takes messages, in order. Never blocks.
    pub fn deliver(&self, messages: impl IntoIterator<Item = ToWorker>) {
        let mut queue = VecDeque::new();
        let mut state = self.shared.state();
        for message in messages {
            match message {
                ToWorker::Reset => self.shared.keeper.kill(self.shared.id.0, state.pid),
                // Only what an executor is there to take.
                message if state.socket.is_some() && state.stopping.is_none() => {
                    state.ledger.sent(&message);
                    if message == ToWorker::Shutdown {
                        state.stopping = Some(Instant::now());
                    }
                    queue.push_back(message);
                }
                ToWorker::Shutdown => drop(state.stopping.get_or_insert_with(Instant::now)),
                _ => {}
            }
        }
        if state.stopping.is_some() {
            self.shared.keeper.retire(self.shared.id.0);
        }
        if !queue.is_empty() {
            self.shared.send(&mut state, queue);
        }
    }

    /// Ends the executor and waits; false when it did not end in time.
    pub fn join(mut self, longest: Duration) -> bool {
        self.deliver([ToWorker::Shutdown]);
        let deadline = Instant::now() + longest;
        let mut killed = false;
        while self.threads.iter().any(|t| !t.is_finished()) {
            let now = Instant::now();
            if now >= deadline && !killed {
                killed = true;
                let pid = self.shared.state().pid;
                self.shared.keeper.kill(self.shared.id.0, pid);
            } else if now >= deadline + DYING / 10 {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.threads.drain(..).for_each(|t| drop(t.join()));
        true
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.deliver([ToWorker::Shutdown]);
    }
}

impl Shared {
    // No foreign code runs while it is held.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emit(&self, message: FromWorker) {
        // The receiver is gone only when the process is ending.
        let _ = self.out.send((self.id, message));
    }

    fn send(&self, state: &mut State, mut queue: VecDeque<ToWorker>) {
        let mut bytes = Vec::new();
        write_frames(&mut queue, &mut bytes, |message, error| match message {
            ToWorker::Run { attempt, task, .. } => {
                let result = Err(Fault::Task(format!("task {} cannot be sent: {error}", task.label)));
                let answer = FromWorker::Done { attempt, result };
                state.ledger.came(&answer);
                self.emit(answer);
            }
            // The executor answers the job's tasks with a fault that says so.
            other => tracing::error!(worker = %self.id, "cannot be sent: {error}: {other:.200?}"),
        });
        let mut rest = bytes.as_slice();
        if !state.writing && state.backlog.is_empty() {
            let Some(socket) = &state.socket else { return };
            while !rest.is_empty() {
                match send(&**socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                    Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                    Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => break,
                    // It died; the watcher finds out.
                    Err(_) => return,
                }
            }
        }
        if !rest.is_empty() {
            state.backlog.extend_from_slice(rest);
            self.backlog.notify_one();
        }
    }

    /// The writing thread.
    fn write(&self) {
        let mut state = self.state();
        while !state.over {
            let socket = state.socket.clone().filter(|_| !state.backlog.is_empty());
            let Some(socket) = socket else {
                state = self.backlog.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let bytes = std::mem::take(&mut state.backlog);
            state.writing = true;
            drop(state);
            // It died, when this fails; the watcher finds out.
            let _ = (&*socket).write_all(&bytes);
            state = self.state();
            state.writing = false;
        }
    }

    /// The watching thread: attends to one executor after the other.
    fn watch(&self, news: &Receiver<News>) {
        let mut next = None;
        loop {
            match next.take().map_or_else(|| news.recv_timeout(LOOK), Ok) {
                Ok(News::Up { pid, socket }) => match self.attend(pid, socket, news) {
                    Ok(rest) => next = rest,
                    Err(e) => tracing::error!(worker = %self.id, error = %e, "this executor cannot be attended to"),
                },
                Ok(News::Ended { .. }) | Err(RecvTimeoutError::Timeout) => {}
                Ok(News::Lost) | Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.state().stopping.is_some() {
                break;
            }
        }
        self.state().over = true;
        self.backlog.notify_one();
        self.emit(FromWorker::Bye);
    }

    /// Attends to one executor until it is gone.
    fn attend(&self, pid: u32, socket: UnixStream, news: &Receiver<News>) -> io::Result<Option<News>> {
        socket.set_read_timeout(Some(LOOK))?;
        let mut reading = socket.try_clone()?;
        {
            let mut state = self.state();
            state.ledger.clear();
            state.pid = pid;
            // From its `Hello` on it gets messages; nobody knows of it before.
            state.socket = Some(Arc::new(socket));
            if state.stopping.is_some() {
                drop(state);
                self.keeper.kill(self.id.0, pid);
            }
        }
        let mut session = Session { welcome: false, ailment: None, killed: None, unheard: false };
        let mut reader = FrameReader::default();
        let mut inbox: Vec<FromWorker> = Vec::new();
        loop {
            let heard = match reader.read(&mut reading, &mut inbox) {
                Ok(true) => true,
                Ok(false) => break,
                Err(ReadError::Io(e)) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    false
                }
                Err(ReadError::Io(e)) if e.kind() == io::ErrorKind::Interrupted => false,
                Err(ReadError::Io(_)) => break,
                Err(ReadError::Frame(e)) => {
                    session.unheard = true;
                    session.ailment.get_or_insert(Ailment { reason: e.to_string(), culprit: None });
                    false
                }
            };
            let mut state = self.state();
            inbox.iter().for_each(|m| state.ledger.came(m));
            let ailment = state.ledger.look(Instant::now(), heard);
            let stopping = state.stopping;
            drop(state);
            for message in inbox.drain(..) {
                self.pass_on(message, &mut session);
            }
            if stopping.is_none() && session.ailment.is_none() {
                session.ailment = ailment;
            }
            let late = stopping.is_some_and(|since| since.elapsed() > GRACE);
            if session.killed.is_none() && (late || session.ailment.is_some()) {
                session.killed = Some(Instant::now());
                self.keeper.kill(self.id.0, pid);
            }
            if session.killed.is_some_and(|at| session.unheard || at.elapsed() > DYING) {
                break;
            }
        }
        let _ = reading.shutdown(Shutdown::Both);
        Ok(self.bury(pid, session, news))
    }

    fn pass_on(&self, message: FromWorker, session: &mut Session) {
        match message {
            FromWorker::Hello { ref build, .. } if build != crate::BUILD => {
                let reason = format!(
                    "the executor is beampilot {build}, its rank {}: the executable was replaced while it ran; start \
                     the pilot again",
                    crate::BUILD
                );
                tracing::error!(worker = %self.id, "{reason}");
                self.keeper.retire(self.id.0);
                session.ailment = Some(Ailment { reason, culprit: None });
            }
            FromWorker::Hello { .. } => {
                session.welcome = true;
                self.emit(message);
            }
            // Said for it when it is reaped; unasked it is a death like any other.
            FromWorker::Bye => {}
            message if session.welcome => self.emit(message),
            _ => {}
        }
    }

    /// Learns how it ended, and tells. Returns news that are for the watcher.
    fn bury(&self, pid: u32, session: Session, news: &Receiver<News>) -> Option<News> {
        let deadline = Instant::now() + REAPED;
        let (how, rest) = loop {
            match news.recv_deadline(deadline) {
                Ok(News::Ended { pid: of, how }) if of == pid => break (how.to_string(), None),
                Ok(News::Ended { .. }) => {}
                // Its keeper is gone, and with it who would tell.
                Ok(other) => break ("killed with its keeper".to_owned(), Some(other)),
                Err(_) => break ("it is gone".to_owned(), None),
            }
        };
        self.say_died(session, how);
        rest
    }

    fn say_died(&self, session: Session, how: String) {
        let mut state = self.state();
        state.socket = None;
        state.pid = 0;
        state.backlog.clear();
        let (running, waiting) = state.ledger.clear();
        let stopping = state.stopping.is_some();
        drop(state);
        let (reason, culprit) = session.ailment.map_or((how, None), |a| (a.reason, a.culprit));
        if stopping {
            return;
        }
        if session.welcome {
            self.emit(FromWorker::ExecutorDied { reason, running, waiting, culprit });
        } else {
            tracing::warn!(worker = %self.id, "an executor ended before it was up: {reason}");
        }
    }
}

/// What is known of the executor attended to.
struct Session {
    /// It said `Hello`, and may go on.
    welcome: bool,
    ailment: Option<Ailment>,
    killed: Option<Instant>,
    /// It speaks in tongues; nothing more is read.
    unheard: bool,
}
