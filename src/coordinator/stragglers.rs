//! Stragglers: at the end of a stage an idle worker may run a task a second time, when the first try takes longer than
//! 19 of 20 tasks of its kind did. The first result that is recorded wins, the other try is withdrawn; no two tries
//! share a file. A stream that is held gets no second tries, and nobody does while storage fails or a job runs alone.
//!
//! Same contract as [`super::core`].

use super::core::{Core, Storage};
use super::event::{AttemptNo, JobNo, Time};
use crate::technique::plan::TaskKind;
use crate::transport::WorkerId;

/// Between two looks at what runs, seconds: looking costs a walk over all tries.
const LOOK_S: f64 = 0.5;
/// A try must be over the quantile by this factor, …
const FACTOR: f64 = 1.5;
/// … and this old, seconds: a second try of a short task costs more than it saves.
const LEAST_S: f64 = 2.0;

impl Core {
    /// When [`Core::duplicate_stragglers`] should look again, while something runs and somebody is idle.
    pub(super) fn straggler_due(&self) -> Option<Time> {
        let free = !self.draining && !self.stopping && self.storage == Storage::Fine && self.alone.is_empty();
        // What waits in a held stream keeps nobody busy.
        let useful = free && self.queue.next().is_none() && !self.attempts.is_empty();
        (useful && self.workers.idle().next().is_some()).then(|| self.straggler_look.plus_s(LOOK_S))
    }

    pub(super) fn duplicate_stragglers(&mut self, now: Time) {
        if self.straggler_due().is_none_or(|due| due > now) {
            return;
        }
        self.straggler_look = now;
        let late: Vec<(JobNo, usize, WorkerId)> = self
            .attempts
            .values()
            .filter(|a| now.since_s(a.sent) > LEAST_S && self.is_straggler(now, a.job, a.task, a.sent))
            .map(|a| (a.job, a.task, a.worker))
            .collect();
        for (job, task, running) in late {
            let away = self.away(job);
            let fit = |id: &WorkerId| {
                let avoid = self.jobs.get(&job).and_then(|j| j.tasks.get(task)).map(|t| t.avoid.as_slice());
                *id != running && !away.contains(id) && !avoid.unwrap_or_default().contains(id)
            };
            let Some(worker) = self.workers.idle().find(fit) else { continue };
            self.send(now, job, task, worker);
        }
    }

    fn is_straggler(&self, now: Time, job: JobNo, task: usize, sent: Time) -> bool {
        let Some(job) = self.jobs.get(&job) else { return false };
        let Some(task) = job.tasks.get(task) else { return false };
        let held = self.is_held(job.stream);
        let alone = !held && task.attempts.len() == 1 && task.spec.kind == TaskKind::Stage && !task.solo;
        let technique = &self.streams[job.stream].technique;
        let high = self.high_s(technique, &super::core::stage_name(job, task), task.spec.cost);
        alone && job.ready.is_empty() && high.is_some_and(|high| now.since_s(sent) > FACTOR * high)
    }

    /// The tries of a task other than `won`, which are not needed any more.
    pub(super) fn withdraw_others(&mut self, now: Time, job: JobNo, task: usize, won: AttemptNo) {
        let Some(task) = self.jobs.get_mut(&job).and_then(|j| j.tasks.get_mut(task)) else { return };
        let others: Vec<AttemptNo> = task.attempts.drain(..).filter(|a| *a != won).collect();
        others.into_iter().for_each(|no| self.withdraw_attempt(now, no));
    }
}
