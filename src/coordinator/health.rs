//! Workers that fail where others succeed. A task that failed on one worker and then went well on another was not at
//! fault: the worker was. Three such blames within ten minutes drain it (its GPU), two drained workers of a host drain
//! the host, unless nobody would be left. A worker whose GPU fails its self-test says so itself, and is drained at once.
//!
//! Same contract as [`super::core`].

use super::core::Core;
use super::event::{Action, Entry, JobNo, Time};
use crate::transport::WorkerId;

/// Blames that drain a worker, …
const BLAMES: usize = 3;
/// … within this time, seconds.
const WITHIN_S: f64 = 600.0;
/// Drained workers that drain their host.
const WORKERS_OF_HOST: usize = 2;

impl Core {
    /// A task went well at last: whoever failed it before was at fault.
    pub(super) fn blame_for(&mut self, now: Time, job: JobNo, task: usize, on: WorkerId) {
        let Some(task) = self.jobs.get_mut(&job).and_then(|j| j.tasks.get_mut(task)) else { return };
        let mut failed = std::mem::take(&mut task.avoid);
        failed.sort();
        failed.dedup();
        failed.retain(|worker| *worker != on);
        failed.into_iter().for_each(|worker| self.blame(now, worker));
    }

    fn blame(&mut self, now: Time, worker: WorkerId) {
        let Some(count) = self.workers.blame(worker, now, WITHIN_S) else { return };
        if count < BLAMES {
            return;
        }
        let host = self.workers.by_id(worker).map(|w| w.host.clone()).unwrap_or_default();
        self.drain_workers(&[worker], &format!("{count} tasks failed on it and went well elsewhere"));
        let of_host: Vec<(WorkerId, bool)> =
            self.workers.iter().filter(|(_, w)| w.host == host).map(|(id, w)| (id, w.drained)).collect();
        let drained = of_host.iter().filter(|(_, d)| *d).count();
        let rest: Vec<WorkerId> = of_host.iter().filter(|(_, d)| !d).map(|(id, _)| *id).collect();
        if drained >= WORKERS_OF_HOST && !rest.is_empty() {
            self.drain_workers(&rest, &format!("{drained} other workers of host {host} are drained"));
        }
    }

    /// A device that fails its own test is drained; what it already holds it may end, on its processors.
    pub(super) fn on_worker_unfit(&mut self, worker: WorkerId, reason: &str) {
        self.drain_workers(&[worker], reason);
    }

    /// Gives these workers nothing more; never the last ones.
    fn drain_workers(&mut self, which: &[WorkerId], why: &str) {
        let healthy = self.workers.iter().filter(|(id, w)| !w.drained && !w.down && !which.contains(id)).count();
        for &worker in which {
            let Some(at) = self.workers.by_id(worker).filter(|w| !w.drained) else { continue };
            let host = at.host.clone();
            let message = if healthy == 0 {
                format!("worker {worker} on {host} is suspect, but there is no other: {why}")
            } else {
                self.workers.drain(worker);
                self.vacated = true;
                format!("worker {worker} on {host} is drained: {why}; look at its GPU and logs")
            };
            self.record(Entry::Alarm { message: message.clone() });
            self.order(Action::Alarm { message });
        }
    }
}
