//! The coordinator's end towards executors of its own rank: everything on a laptop, rank 0's share under MPI.
//!
//! Contract: as [`Transport`]. Nothing is polled: [`LocalTransport::idle`] sleeps until an executor or the
//! coordinator's own threads have something. Messages to an unknown worker are dropped with a warning.

use super::wire::{FromWorker, ToWorker};
use super::{Transport, TransportError, WorkerId};
use crate::worker::{ExecutorConfig, Hosted};
use crossbeam::channel::{Receiver, Select, Sender, unbounded};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long [`Transport::close`] waits for phases that have begun.
const GOODBYE: Duration = Duration::from_millis(1200);

struct Line {
    executor: Hosted,
    queued: Vec<ToWorker>,
}

/// Executors of this rank, in its threads or in processes of their own.
pub struct LocalTransport {
    lines: BTreeMap<WorkerId, Line>,
    out: Receiver<(WorkerId, FromWorker)>,
    /// Keeps `out` connected when every executor has said goodbye.
    _keep: Sender<(WorkerId, FromWorker)>,
}

impl LocalTransport {
    /// Starts one executor for each configuration.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn new(configs: impl IntoIterator<Item = ExecutorConfig>) -> Result<Self, TransportError> {
        let (keep, out) = unbounded();
        let mut lines = BTreeMap::new();
        for config in configs {
            let executor = Hosted::spawn(config, keep.clone())?;
            lines.insert(executor.id(), Line { executor, queued: Vec::new() });
        }
        Ok(Self { lines, out, _keep: keep })
    }

    /// True when an executor has something to say.
    #[cfg(feature = "mpi")]
    pub(super) fn has_mail(&self) -> bool {
        !self.out.is_empty()
    }

    /// True when this transport knows the worker.
    #[cfg(feature = "mpi")]
    pub(super) fn knows(&self, worker: WorkerId) -> bool {
        self.lines.contains_key(&worker)
    }

    /// Waits for the executors, `wake` (whose messages it takes) or the time. True when not only time passed.
    pub(super) fn wait(&self, wake: &Receiver<()>, longest: Duration) -> bool {
        let deadline = Instant::now() + longest;
        let mut select = Select::new();
        let mail = select.recv(&self.out);
        let woken = select.recv(wake);
        loop {
            match select.ready_timeout(deadline.saturating_duration_since(Instant::now())) {
                Err(_) => return false,
                Ok(i) if i == mail => return true,
                Ok(_) => match wake.try_recv() {
                    Ok(()) => {
                        while wake.try_recv().is_ok() {}
                        return true;
                    }
                    // Nobody can wake us any more: do not spin on it.
                    Err(crossbeam::channel::TryRecvError::Disconnected) => select.remove(woken),
                    Err(crossbeam::channel::TryRecvError::Empty) => {}
                },
            }
        }
    }

    /// Asks every executor to end, now. May be repeated.
    pub(super) fn shutdown(&mut self) {
        for line in self.lines.values_mut() {
            let rest = line.queued.drain(..);
            line.executor.deliver(rest.chain([ToWorker::Shutdown]));
        }
    }

    /// Ends every executor; threads that have not ended by `deadline` are left behind. True when there are none.
    pub(super) fn end(&mut self, deadline: Instant) -> bool {
        self.shutdown();
        let mut all = true;
        for (worker, line) in std::mem::take(&mut self.lines) {
            let left = deadline.saturating_duration_since(Instant::now());
            if !line.executor.join(left) {
                tracing::warn!(%worker, "executor is stuck in a task; it is left behind");
                all = false;
            }
        }
        all
    }
}

impl Transport for LocalTransport {
    fn send(&mut self, worker: WorkerId, message: ToWorker) {
        match self.lines.get_mut(&worker) {
            Some(line) => line.queued.push(message),
            None => tracing::warn!(%worker, "message to a worker that does not exist is dropped"),
        }
    }

    fn exchange(&mut self, inbox: &mut Vec<(WorkerId, FromWorker)>) -> bool {
        let before = inbox.len();
        let mut sent = false;
        for line in self.lines.values_mut().filter(|l| !l.queued.is_empty()) {
            line.executor.deliver(line.queued.drain(..));
            sent = true;
        }
        inbox.extend(self.out.try_iter());
        sent || inbox.len() > before
    }

    fn idle(&mut self, wake: &Receiver<()>, longest: Duration) {
        self.wait(wake, longest);
    }

    fn end_workers(&mut self) -> bool {
        self.end(Instant::now() + GOODBYE)
    }

    fn close(mut self: Box<Self>) {
        self.end_workers();
    }
}
