//! MPI: the ranks of one mpiexec, rank 0 the coordinator, the others workers.
//!
//! Contract
//! - The thread that calls [`connect`] owns MPI (`MPI_THREAD_FUNNELED`); the types here cannot leave it. They make no
//!   filesystem call.
//! - Nothing blocks on a stalled rank: sends are `MPI_Isend` from buffers kept until complete, receives are matched
//!   probes and `MPI_Imrecv`. At most [`IN_FLIGHT`] frames are under way to a rank; what is queued behind them grows
//!   into fuller frames. The core bounds how much that can be.
//! - [`connect`] exchanges every rank's card (build, host, CPU mask). If builds differ, **every** rank gets the same
//!   [`TransportError::OtherBuild`], MPI is finalized, and all can exit with 78.
//! - MPI reports no dead rank: silence is for the core to judge. A rank that sends bytes we cannot read is not
//!   listened to any more, so that it falls silent too.
//! - A panic that nobody promised to handle ([`crate::worker::panics`]) ends the whole job, with [`PANIC_EXIT`]:
//!   unwinding out of MPI would leave the other ranks waiting until walltime.
//! - `MPI_Finalize` runs under a watchdog that ends the process with the given code; a dropped [`Session`] or
//!   transport finalizes nothing (the launcher then ends the job).

mod endpoint;
mod session;

pub use session::{Options, PANIC_EXIT, Peer, Session, connect};

use super::backoff::{Backoff, Pause, precise_sleeps};
use super::frame::{self, FrameError};
use super::wire::{FromWorker, ToWorker};
use super::{LocalTransport, Transport, TransportError, WorkerId};
use crate::worker::agent::Link;
use crossbeam::channel::Receiver;
use endpoint::Endpoint;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

/// Frames under way to one rank.
pub const IN_FLIGHT: usize = 8;
/// How long [`Transport::close`] waits for everybody's [`FromWorker::Bye`].
const GOODBYE: Duration = Duration::from_millis(1200);
const JOIN: Duration = Duration::from_millis(200);
/// `MPI_Finalize` may take this long when everybody said goodbye, …
const FINALIZE: Duration = Duration::from_secs(10);
/// … this long when somebody did not, and it will hang, …
const FINALIZE_IN_VAIN: Duration = Duration::from_secs(2);
/// … and this long on a worker, which waits for rank 0 in it.
const FINALIZE_WORKER: Duration = Duration::from_secs(30);

/// Rank 0's end: the other ranks, and this rank's own executor as [`WorkerId`] 0.
pub struct MpiTransport {
    endpoint: Endpoint,
    local: LocalTransport,
    /// By rank.
    queued: Vec<VecDeque<ToWorker>>,
    /// Ranks that sent something unreadable.
    muted: Vec<bool>,
    /// Received while waiting.
    arrived: Vec<(WorkerId, FromWorker)>,
    backoff: Backoff,
    exit_code: Arc<AtomicI32>,
    /// Once the workers were ended: whether every remote rank said `Bye`.
    goodbyes: Option<bool>,
}

impl MpiTransport {
    fn new(endpoint: Endpoint, local: LocalTransport) -> Self {
        precise_sleeps();
        let size = endpoint.size();
        Self {
            endpoint,
            local,
            queued: (0..size).map(|_| VecDeque::new()).collect(),
            muted: vec![false; size],
            arrived: Vec::new(),
            backoff: Backoff::new(Instant::now()),
            exit_code: Arc::new(AtomicI32::new(0)),
            goodbyes: None,
        }
    }

    /// Where to put the process's exit code before [`Transport::close`]: the watchdog uses it.
    pub fn exit_code(&self) -> Arc<AtomicI32> {
        Arc::clone(&self.exit_code)
    }

    /// Sends, completes, receives into `arrived`. True when anything but heartbeats moved.
    fn turn(&mut self) -> bool {
        let mut active = self.endpoint.progress();
        for (rank, queue) in self.queued.iter_mut().enumerate().filter(|(_, q)| !q.is_empty()) {
            active |= send_queued(&mut self.endpoint, rank, queue, |message, error| {
                // The executor answers the job's tasks with a fault that says so.
                tracing::error!(rank, "cannot send {}: {error}", name_of(&message));
            });
        }
        let Self { endpoint, muted, arrived, .. } = self;
        let before = arrived.len();
        let mut inbox = Vec::new();
        endpoint.receive(|rank, bytes| {
            let Some(muted) = muted.get_mut(rank).filter(|m| !**m) else { return };
            if let Err(error) = frame::unpack::<FromWorker>(bytes, &mut inbox) {
                tracing::error!("{}; it is not listened to any more", TransportError::Frame { rank, error });
                *muted = true;
            }
            arrived.extend(inbox.drain(..).map(|message| (WorkerId(rank as u32), message)));
        });
        active | arrived.iter().skip(before).any(|(_, m)| !matches!(m, FromWorker::Beat { .. }))
    }

    /// True when every remote rank said `Bye`.
    fn say_goodbye(&mut self, deadline: Instant) -> bool {
        let mut missing = vec![true; self.endpoint.size()];
        // Rank 0's own executor was asked by the local transport.
        missing[0] = false;
        let (_keep, nobody) = crossbeam::channel::bounded(0);
        for rank in 1..self.endpoint.size() {
            self.send(WorkerId(rank as u32), ToWorker::Shutdown);
        }
        let mut inbox = Vec::new();
        loop {
            self.exchange(&mut inbox);
            for (worker, message) in inbox.drain(..) {
                if let (FromWorker::Bye, Some(slot)) = (message, missing.get_mut(worker.0 as usize)) {
                    *slot = false;
                }
            }
            if !missing.contains(&true) {
                return true;
            }
            if Instant::now() >= deadline {
                let ranks: Vec<usize> = (0..missing.len()).filter(|r| missing[*r]).collect();
                tracing::warn!(?ranks, "no goodbye from these ranks; leaving without them");
                return false;
            }
            self.idle(&nobody, Duration::from_millis(50));
        }
    }
}

impl Transport for MpiTransport {
    fn send(&mut self, worker: WorkerId, message: ToWorker) {
        if self.local.knows(worker) {
            return self.local.send(worker, message);
        }
        match self.queued.get_mut(worker.0 as usize) {
            Some(queue) if worker.0 > 0 => queue.push_back(message),
            _ => tracing::warn!(%worker, "message to a worker that does not exist is dropped"),
        }
    }

    fn exchange(&mut self, inbox: &mut Vec<(WorkerId, FromWorker)>) -> bool {
        let active = self.turn();
        let before = inbox.len();
        inbox.append(&mut self.arrived);
        self.local.exchange(inbox);
        if active {
            self.backoff.touch(Instant::now());
        }
        active || inbox.len() > before
    }

    fn idle(&mut self, wake: &Receiver<()>, longest: Duration) {
        let deadline = Instant::now() + longest;
        loop {
            if self.turn() {
                self.backoff.touch(Instant::now());
            }
            let now = Instant::now();
            if !self.arrived.is_empty() || self.local.has_mail() || now >= deadline {
                return;
            }
            match self.backoff.pause(now) {
                Pause::Yield => std::thread::yield_now(),
                Pause::Sleep(pause) => {
                    if self.local.wait(wake, pause.min(deadline - now)) {
                        return;
                    }
                }
            }
        }
    }

    fn end_workers(&mut self) -> bool {
        let deadline = Instant::now() + GOODBYE;
        self.local.shutdown();
        let complete = self.say_goodbye(deadline);
        // Threads that are done by now still need a moment to be joined.
        let own = self.local.end(deadline.max(Instant::now() + JOIN));
        self.goodbyes = Some(complete);
        complete && own
    }

    fn close(mut self: Box<Self>) {
        if self.goodbyes.is_none() {
            self.end_workers();
        }
        let within = if self.goodbyes == Some(true) { FINALIZE } else { FINALIZE_IN_VAIN };
        self.endpoint.finalize(within, self.exit_code.load(Ordering::Relaxed));
    }
}

/// A worker rank's end.
pub struct WorkerLink {
    endpoint: Endpoint,
    queued: VecDeque<FromWorker>,
}

impl WorkerLink {
    fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, queued: VecDeque::new() }
    }

    /// Finalizes MPI, waiting for rank 0 to do the same; after half a minute the process ends with `exit_code`.
    pub fn finalize(self, exit_code: i32) {
        self.endpoint.finalize(FINALIZE_WORKER, exit_code);
    }
}

impl Link for WorkerLink {
    fn send(&mut self, message: FromWorker) {
        self.queued.push_back(message);
    }

    fn exchange(&mut self, inbox: &mut Vec<ToWorker>) -> Result<bool, TransportError> {
        let mut active = self.endpoint.progress();
        let beat_only = self.queued.iter().all(|m| matches!(m, FromWorker::Beat { .. }));
        let mut refused = None;
        let sent = send_queued(&mut self.endpoint, 0, &mut self.queued, |message, error| {
            refused = Some((message, error));
        });
        active |= sent && !beat_only;
        if let Some((FromWorker::Done { attempt, .. }, error)) = refused {
            let result = Err(crate::technique::Fault::Task(format!("result cannot be sent: {error}")));
            self.queued.push_front(FromWorker::Done { attempt, result });
        }
        let before = inbox.len();
        let mut outcome = Ok(());
        self.endpoint.receive(|rank, bytes| {
            if outcome.is_ok() {
                outcome = frame::unpack(bytes, inbox).map_err(|error| TransportError::Frame { rank, error });
            }
        });
        outcome?;
        Ok(active || inbox.len() > before)
    }

    fn is_flushed(&self) -> bool {
        self.queued.is_empty() && self.endpoint.in_flight(0) == 0
    }
}

/// Posts as many frames as may be under way; a message that cannot be sent goes to `refused`, and the rest waits
/// for the next turn. True when a frame was posted.
fn send_queued<M: frame::Message>(
    endpoint: &mut Endpoint,
    rank: usize,
    queue: &mut VecDeque<M>,
    refused: impl FnOnce(M, FrameError),
) -> bool {
    let mut posted = false;
    while endpoint.in_flight(rank) < IN_FLIGHT {
        match frame::pack(queue) {
            None => break,
            Some(Ok(frame)) => {
                endpoint.post(rank, frame);
                posted = true;
            }
            Some(Err((message, error))) => {
                refused(message, error);
                break;
            }
        }
    }
    posted
}

fn name_of(message: &ToWorker) -> String {
    match message {
        ToWorker::Job(job) => format!("the context of {}", job.key),
        ToWorker::Run { task, .. } => format!("task {}", task.label),
        other => format!("{other:?}"),
    }
}
