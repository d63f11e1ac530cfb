//! The core's way with executors that die: who is suspected, who runs alone, who is condemned.
//!
//! Same contract as [`super::core`]. An executor overlaps three tasks, so its death says little about which of them did
//! it: all that ran are suspected, and each then runs alone, where a death is its own. A task that ended its third
//! executor, the last one alone, condemns its scan. What was only waiting there is not blamed.

use super::core::{Attempt, Core, ERRORS, FailedTry};
use super::event::*;
use crate::technique::plan::TaskKind;
use crate::transport::WorkerId;
use std::collections::BTreeSet;

impl Core {
    /// A worker is there, for the first time or with a fresh executor.
    pub(super) fn on_worker_joined(&mut self, now: Time, id: WorkerId, host: String, threads: u32, task_memory: u64) {
        if !self.workers.join(id, host, threads, task_memory) {
            let held = self.workers.restart(id, false);
            self.put_back(now, held);
        }
    }

    /// An executor ended unasked. Its worker gets nothing until the next one says hello.
    pub(super) fn on_executor_died(
        &mut self,
        now: Time,
        worker: WorkerId,
        reason: &str,
        running: &[AttemptNo],
        waiting: &[AttemptNo],
        culprit: Option<AttemptNo>,
    ) {
        let Some(host) = self.workers.by_id(worker).map(|w| w.host.clone()) else { return };
        let mut held = self.workers.restart(worker, true);
        let lost = running.len() + waiting.len();
        let message = format!("the executor of worker {worker} on {host} ended: {reason}; {lost} tasks go elsewhere");
        self.record(Entry::Alarm { message: message.clone() });
        self.order(Action::Alarm { message });
        // Of what ran there, only what we still want; a withdrawn attempt may have done it too, and then nobody is
        // alone.
        let alone = culprit.is_some() || running.len() == 1;
        for no in running.iter().filter(|no| culprit.is_none_or(|c| c == **no)) {
            let Some(attempt) = self.attempts.get(no).copied().filter(|a| a.worker == worker) else { continue };
            held.remove(no);
            self.attempts.remove(no);
            self.suspect(now, attempt, *no, alone, reason);
        }
        // The rest, whether it ran beside the culprit, waited, or was on its way: nobody's fault.
        self.put_back(now, held);
    }

    /// Back into line without blame, in the order they had.
    fn put_back(&mut self, now: Time, held: BTreeSet<AttemptNo>) {
        for no in held.into_iter().rev() {
            let Some(attempt) = self.attempts.remove(&no) else { continue };
            self.requeue(now, attempt);
        }
    }

    fn suspect(&mut self, now: Time, attempt: Attempt, no: AttemptNo, alone: bool, reason: &str) {
        let at = attempt.job;
        let Some(job) = self.jobs.get_mut(&at) else { return };
        let task = &mut job.tasks[attempt.task];
        task.attempts.retain(|a| *a != no);
        task.crashes += 1;
        task.solo = true;
        task.avoid.push(attempt.worker);
        let (crashes, preview, label) = (task.crashes, task.spec.kind == TaskKind::Preview, task.spec.label.clone());
        let fault = format!("its executor ended: {reason}");
        self.errors.push_back(FailedTry {
            at_ms: now.0 / 1000,
            stream: job.scan.stream.clone(),
            name: job.scan.name.clone(),
            task: label.clone(),
            worker: attempt.worker.0,
            fault: fault.clone(),
        });
        if self.errors.len() > ERRORS {
            self.errors.pop_front();
        }
        self.counts.failed_tries += 1;
        let worker = attempt.worker.0;
        self.record(Entry::Failed { job: at.0, label: label.clone(), attempt: no.0, worker, fault });
        if !alone || crashes < self.limits.max_strikes {
            self.requeue(now, attempt);
        } else if preview {
            self.give_up_preview(now, at);
        } else {
            let why = format!("task {label} ended its executor {crashes} times; the last time: {reason}");
            self.quarantine(now, at, why);
        }
    }

    /// Where a suspected task of this job can run alone, away from the workers it avoids while there are others.
    pub(super) fn worker_for_solo(&mut self, no: JobNo) -> Option<WorkerId> {
        let job = self.jobs.get(&no)?;
        let task = &job.tasks[*job.ready.front()?];
        let failed: BTreeSet<WorkerId> = task.avoid.iter().copied().collect();
        let both = &failed | &self.away(no);
        let some = |avoid: &BTreeSet<WorkerId>| {
            self.workers.iter().any(|(id, w)| !avoid.contains(&id) && !w.down && !w.drained)
        };
        let avoid = [both, failed].into_iter().find(some).unwrap_or_default();
        self.workers.for_solo(&avoid)
    }
}
