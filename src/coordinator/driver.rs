//! The driver: feeds the core what happened, carries out what it orders, waits, repeats. It decides nothing.
//!
//! One thread, the one that owns the transport (and so MPI). It makes no filesystem call: the disk pool, the
//! journal's thread and the status writer do.

use super::core::Core;
use super::event::*;
use super::lanes::DiskOrders;
use super::view::View;
use super::writers::Writers;
use crate::arrivals::scan::InputVersion;
use crate::store::host::Process;
use crate::store::journal::{Durable, Line};
use crate::transport::Transport;
use crate::transport::WorkerId;
use crate::transport::wire::{FromWorker, ToWorker};
use crossbeam::channel::{Receiver, Sender, TrySendError, bounded, unbounded};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time for the core: the wall clock at start plus monotonic time since.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall_us: u64,
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { wall_us: u64::try_from(since.as_micros()).unwrap_or(u64::MAX), start: Instant::now() }
    }
    /// Now.
    pub fn now(&self) -> Time {
        Time(self.wall_us + u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// What reaches the driver from this process's other threads.
#[derive(Debug)]
enum Letter {
    Event(Box<Event>),
    Durable(u64),
}

/// Other threads post events here; the driver wakes at once.
#[derive(Debug, Clone)]
pub struct Mailbox {
    letters: Sender<Letter>,
    wake: Sender<()>,
}

/// The driver's end of a [`Mailbox`].
#[derive(Debug)]
pub struct Inbox {
    letters: Receiver<Letter>,
    wake: Receiver<()>,
}

impl Mailbox {
    /// A mailbox and its reader.
    pub fn new() -> (Self, Inbox) {
        let (letters, letters_in) = unbounded();
        let (wake, wake_in) = bounded(1);
        (Self { letters, wake }, Inbox { letters: letters_in, wake: wake_in })
    }

    /// Posts an event; false when the driver is gone.
    pub fn post(&self, event: Event) -> bool {
        self.put(Letter::Event(Box::new(event)))
    }

    /// Posts what the journal's thread reports; false when the driver is gone.
    pub fn post_durable(&self, durable: Durable) -> bool {
        self.put(match durable {
            Durable::UpTo(seq) => Letter::Durable(seq),
            Durable::Trouble(message) => Letter::Event(Box::new(Event::StorageTrouble { message })),
        })
    }

    fn put(&self, letter: Letter) -> bool {
        let alive = self.letters.send(letter).is_ok();
        // Full means that the driver will look anyway.
        alive && !matches!(self.wake.try_send(()), Err(TrySendError::Disconnected(())))
    }
}

#[cfg(test)]
impl Inbox {
    /// The events posted so far, for a driver that is imitated.
    pub(crate) fn take(&self) -> Vec<Event> {
        let event = |letter| match letter {
            Letter::Event(event) => Some(*event),
            Letter::Durable(_) => None,
        };
        self.letters.try_iter().filter_map(event).collect()
    }
}

/// How arrivals are told.
pub type Teller = Box<dyn Fn(&str, &str, InputVersion, Verdict) + Send>;

/// Everything the driver drives.
pub struct Driver {
    /// The decisions.
    pub core: Core,
    /// Workers.
    pub transport: Box<dyn Transport>,
    /// Other threads.
    pub inbox: Inbox,
    /// Who carries out orders for the disk.
    pub disk: Box<dyn DiskOrders>,
    /// The journal; without one everything counts as durable at once.
    pub journal: Option<Sender<Line>>,
    /// Arrivals.
    pub tell: Teller,
    /// Called about once a second with a fresh view, off the hot path.
    pub show: Box<dyn FnMut(View) + Send>,
    /// Processes that may write, for the heartbeat.
    pub writers: Writers,
    /// Grows with every turn: others see that the driver lives.
    pub pulse: Arc<AtomicU64>,
    /// The clock.
    pub clock: Clock,
}

/// A worker that said nothing for this long is given up: a thread of its own beats every second even while it computes.
/// One that was only paused is taken back when it speaks again.
const SILENCE: Duration = Duration::from_secs(8);
/// How long to sleep while a worker waits for its place in the heartbeat.
const JOINING: Duration = Duration::from_millis(5);
/// How often `show` is called.
const SHOW: Duration = Duration::from_secs(1);

impl Driver {
    /// Runs until the core is finished. Returns the core, the transport, still open, and the disk, with its last orders
    /// perhaps under way.
    pub fn run(mut self) -> (Core, Box<dyn Transport>, Box<dyn DiskOrders>) {
        let mut orders: Vec<Ordered> = Vec::new();
        let mut held: VecDeque<Ordered> = VecDeque::new();
        let mut durable = 0;
        let mut answers: Vec<(WorkerId, FromWorker)> = Vec::new();
        let mut heard: BTreeMap<WorkerId, Instant> = BTreeMap::new();
        let mut given_up: BTreeMap<WorkerId, bool> = BTreeMap::new();
        let mut peaks: BTreeMap<WorkerId, u64> = BTreeMap::new();
        let mut shown = Instant::now();
        // Workers that said hello and are not in the heartbeat on disk yet, and what must follow that.
        let mut joining: VecDeque<(u64, Event)> = VecDeque::new();
        let mut finished = false;
        loop {
            self.pulse.fetch_add(1, Ordering::Relaxed);
            let mut moved = self.transport.exchange(&mut answers);
            for (worker, message) in answers.drain(..) {
                if self.is_given_up(worker, &message, &mut given_up) {
                    continue;
                }
                if let FromWorker::Beat { peak_bytes } = &message {
                    peaks.insert(worker, *peak_bytes);
                }
                match self.event_of(worker, message, &mut heard) {
                    Some((0, event)) => self.core.step(self.clock.now(), event, &mut orders),
                    Some(later) => joining.push_back(later),
                    None => {}
                }
            }
            while joining.front().is_some_and(|(version, _)| self.writers.is_written(*version)) {
                let Some((_, event)) = joining.pop_front() else { break };
                self.core.step(self.clock.now(), event, &mut orders);
            }
            // Only what is there now: a flood from one side must not starve the other.
            for letter in self.inbox.letters.try_iter().take(4096) {
                moved = true;
                match letter {
                    Letter::Durable(seq) => durable = seq,
                    Letter::Event(event) => {
                        self.core.step(self.clock.now(), *event, &mut orders);
                    }
                }
            }
            if self.core.next_deadline().is_some_and(|t| t <= self.clock.now()) {
                self.core.step(self.clock.now(), Event::Tick, &mut orders);
            }
            if self.journal.is_none() {
                durable = u64::MAX;
            }
            moved |= !orders.is_empty();
            held.extend(orders.drain(..));
            // Orders that wait for the journal let those behind them pass.
            let waiting: VecDeque<Ordered> =
                held.drain(..).filter_map(|o| self.perform_if(o, durable, &mut finished)).collect();
            held = waiting;
            if shown.elapsed() >= SHOW || finished {
                shown = Instant::now();
                let mut view = self.core.view(self.clock.now());
                for w in &mut view.workers {
                    w.peak_bytes = peaks.get(&WorkerId(w.worker)).copied().unwrap_or(0);
                }
                (self.show)(view);
                self.give_up_silent(&mut heard, &mut given_up, &mut orders);
            }
            if finished {
                return (self.core, self.transport, self.disk);
            }
            if !moved {
                let until = self.core.next_deadline().map_or(SHOW.as_secs_f64(), |t| t.since_s(self.clock.now()));
                let longest = if joining.is_empty() { SHOW } else { JOINING };
                let longest = Duration::from_secs_f64(until.clamp(0.0, longest.as_secs_f64()));
                self.transport.idle(&self.inbox.wake, longest);
            }
        }
    }

    fn event_of(
        &self,
        worker: WorkerId,
        message: FromWorker,
        heard: &mut BTreeMap<WorkerId, Instant>,
    ) -> Option<(u64, Event)> {
        let at_once = |event| Some((0, event));
        heard.insert(worker, Instant::now());
        match message {
            FromWorker::Hello { host, boot, pid, pid_start, threads, task_memory, .. } => {
                let process = Process { host: host.clone(), boot, pid, pid_start };
                let version = self.writers.add(worker, process);
                Some((version, Event::WorkerJoined { worker, host, threads, task_memory }))
            }
            FromWorker::Started { attempt } => at_once(Event::Started { worker, attempt: AttemptNo(attempt) }),
            FromWorker::Done { attempt, result } => {
                at_once(Event::TaskEnded { worker, attempt: AttemptNo(attempt), result })
            }
            FromWorker::Beat { .. } => None,
            FromWorker::ExecutorDied { reason, running, waiting, culprit } => {
                let numbers = |of: Vec<u64>| of.into_iter().map(AttemptNo).collect();
                let (running, waiting) = (numbers(running), numbers(waiting));
                // It stays among the writers: a keeper that hangs may not have reaped it yet, and who looks for it finds
                // it dead if it is.
                at_once(Event::ExecutorDied { worker, reason, running, waiting, culprit: culprit.map(AttemptNo) })
            }
            // Behind its hello, which waits for the heartbeat: the core knows nothing of the worker before.
            FromWorker::Unfit { reason } => Some((1, Event::WorkerUnfit { worker, reason })),
            FromWorker::Bye => {
                heard.remove(&worker);
                self.writers.reaped(worker);
                at_once(Event::WorkerLost { worker, reason: "it said goodbye".to_owned() })
            }
        }
    }

    /// A worker that was given up for silence and speaks again holds work that others have by now: it is told, once, to
    /// start over, and heard again from its hello on. `given_up` says of each whether it was told.
    fn is_given_up(&mut self, worker: WorkerId, message: &FromWorker, given_up: &mut BTreeMap<WorkerId, bool>) -> bool {
        let Some(told) = given_up.get_mut(&worker) else { return false };
        match message {
            FromWorker::Hello { .. } | FromWorker::Bye => {
                given_up.remove(&worker);
                return false;
            }
            _ if !*told => {
                *told = true;
                tracing::info!(%worker, "it speaks again; it is told to start over");
                self.transport.send(worker, ToWorker::Reset);
            }
            _ => {}
        }
        true
    }

    fn give_up_silent(
        &mut self,
        heard: &mut BTreeMap<WorkerId, Instant>,
        given_up: &mut BTreeMap<WorkerId, bool>,
        orders: &mut Vec<Ordered>,
    ) {
        let silent = heard.iter().filter(|(_, at)| at.elapsed() > SILENCE).map(|(w, _)| *w);
        for worker in silent.collect::<Vec<_>>() {
            heard.remove(&worker);
            given_up.insert(worker, false);
            let reason = format!("nothing heard for {} s", SILENCE.as_secs());
            self.core.step(self.clock.now(), Event::WorkerLost { worker, reason }, orders);
        }
    }

    /// Carries an order out, or gives it back when its journal entry is not durable yet.
    fn perform_if(&mut self, order: Ordered, durable: u64, finished: &mut bool) -> Option<Ordered> {
        if order.after.is_some_and(|seq| seq > durable) {
            return Some(order);
        }
        match order.action {
            Action::Record { seq, entry } => {
                if let Some(journal) = &self.journal {
                    let t_ms = self.clock.now().0 / 1000;
                    // The journal's thread outlives the driver.
                    let _ = journal.send(Line { seq, t_ms, event: entry });
                }
            }
            Action::Context { worker, context } => self.transport.send(worker, ToWorker::Job(context)),
            Action::Assign { worker, attempt, job, task } => {
                self.transport.send(worker, ToWorker::Run { attempt: attempt.0, job: job.0, task });
            }
            Action::Cancel { worker, attempt } => self.transport.send(worker, ToWorker::Cancel { attempt: attempt.0 }),
            Action::Forget { worker, job } => self.transport.send(worker, ToWorker::Forget { job: job.0 }),
            Action::Tell { stream, name, version, verdict } => (self.tell)(&stream, &name, version, verdict),
            Action::Alarm { message } => tracing::warn!("{message}"),
            Action::Finished => *finished = true,
            action => {
                if let Some(action) = self.disk.perform(action) {
                    tracing::error!(?action, "an order nobody carries out");
                }
            }
        }
        None
    }
}
