//! The core's way with faults: a try that failed, a worker that is lost.
//!
//! Same contract as [`super::core`].

use super::core::{Attempt, Core, ERRORS, FailedTry};
use super::event::*;
use super::job::Phase;
use crate::technique::plan::{Fault, TaskKind};
use crate::transport::WorkerId;
use std::collections::BTreeSet;

impl Core {
    pub(super) fn on_fault(&mut self, now: Time, attempt: Attempt, no: AttemptNo, fault: Fault) {
        let at = attempt.job;
        self.counts.failed_tries += 1;
        self.queue.charge(self.jobs[&at].stream, -attempt.expected_s);
        let label = self.jobs[&at].tasks[attempt.task].spec.label.clone();
        self.record(Entry::Failed {
            job: at.0,
            label: label.clone(),
            attempt: no.0,
            worker: attempt.worker.0,
            fault: fault.to_string(),
        });
        let scan = &self.jobs[&at].scan;
        self.errors.push_back(FailedTry {
            at_ms: now.0 / 1000,
            stream: scan.stream.clone(),
            name: scan.name.clone(),
            task: label.clone(),
            worker: attempt.worker.0,
            fault: fault.to_string(),
        });
        if self.errors.len() > ERRORS {
            self.errors.pop_front();
        }
        match fault {
            Fault::NotYet(why) => {
                self.tell(at, Verdict::NotYet(why.clone()));
                self.drop_job(now, at, "incomplete", &why);
            }
            Fault::InputChanged(path) => {
                self.tell(at, Verdict::Changed);
                self.drop_job(now, at, "changed", &format!("{} changed while it was processed", path.display()));
            }
            Fault::Input(why) => {
                let preview = self.jobs[&at].tasks[attempt.task].spec.kind == TaskKind::Preview;
                if preview { self.give_up_preview(now, at) } else { self.quarantine(now, at, why) }
            }
            Fault::Storage(why) => {
                self.requeue(now, attempt);
                self.pause_storage(now, why);
            }
            Fault::Task(why) => {
                let Some(job) = self.jobs.get_mut(&at) else { return };
                let task = &mut job.tasks[attempt.task];
                task.strikes += 1;
                task.avoid.push(attempt.worker);
                let (strikes, preview) = (task.strikes, task.spec.kind == TaskKind::Preview);
                if strikes < self.limits.max_strikes {
                    self.retry_later(now, attempt, strikes);
                } else if preview {
                    self.give_up_preview(now, at);
                } else {
                    self.quarantine(now, at, format!("task {label} failed {strikes} times, the last time: {why}"));
                }
            }
        }
    }

    /// The preview is a courtesy: the scan goes on without one.
    pub(super) fn give_up_preview(&mut self, now: Time, no: JobNo) {
        if let Some(job) = self.jobs.get_mut(&no) {
            job.preview_open = false;
            job.tasks.iter_mut().filter(|t| t.spec.kind == TaskKind::Preview).for_each(|t| t.done = true);
            job.progress.0 += 1;
        }
        self.advance(now, no);
    }

    pub(super) fn requeue(&mut self, now: Time, attempt: Attempt) {
        let Some(job) = self.jobs.get_mut(&attempt.job) else { return };
        let task = &mut job.tasks[attempt.task];
        // A second try of it may be under way.
        task.attempts.retain(|a| self.attempts.contains_key(a));
        if !task.done && task.attempts.is_empty() {
            job.ready.push_front(attempt.task);
            self.place(now, attempt.job);
        }
    }

    pub(super) fn on_worker_lost(&mut self, now: Time, worker: WorkerId, reason: &str) {
        let Some(gone) = self.workers.leave(worker) else { return };
        if self.workers.healthy() == 0 && self.workers.undrain() {
            let message = "drained workers get work again: no others are left".to_owned();
            self.record(Entry::Alarm { message: message.clone() });
            self.order(Action::Alarm { message });
        }
        self.record(Entry::Alarm { message: format!("worker {worker} on {} is lost: {reason}", gone.host) });
        self.order(Action::Alarm { message: format!("worker {worker} on {} is lost: {reason}", gone.host) });
        let (mut blamed, mut unsure) = (BTreeSet::new(), BTreeSet::new());
        for no in gone.in_flight {
            let Some(attempt) = self.attempts.remove(&no) else { continue };
            // What only waited in its queue cannot have killed it.
            if attempt.started {
                blamed.insert(attempt.job);
            }
            if self.jobs.get(&attempt.job).is_some_and(|j| j.tasks[attempt.task].spec.kind == TaskKind::Finish) {
                unsure.insert(attempt.job);
            }
            self.requeue(now, attempt);
        }
        for no in blamed {
            let Some(job) = self.jobs.get_mut(&no) else { continue };
            job.deaths += 1;
            if job.deaths + 1 == self.limits.max_deaths {
                self.alone.insert(no);
            }
            if job.deaths >= self.limits.max_deaths {
                let n = job.deaths;
                self.quarantine(now, no, format!("{n} workers died while they worked on it"));
            }
        }
        unsure.into_iter().for_each(|no| self.start_elsewhere(now, no));
        self.vacated = true;
    }

    /// A worker that is only silent may still finish the bundle, under the names that a second finish task would use:
    /// the claim goes back, which takes the folder away from it, and the job starts anew.
    pub(super) fn start_elsewhere(&mut self, now: Time, no: JobNo) {
        if self.jobs.get(&no).is_some_and(|j| j.phase == Phase::Finishing) {
            self.give_back(now, no);
        }
    }

    /// Gives a claim back and asks for the job again in a while.
    pub(super) fn give_back(&mut self, now: Time, no: JobNo) {
        let Some(job) = self.jobs.get_mut(&no) else { return };
        let Some(claim) = job.claim.take() else { return };
        let (key, deaths) = (job.key.clone(), job.deaths);
        self.returning.insert(key.clone(), (claim.generation, claim.staging.clone()));
        self.order(Action::Release { key, generation: claim.generation, staging: claim.staging });
        self.start_over(now, no);
        if let Some(job) = self.jobs.get_mut(&no) {
            job.deaths = deaths;
        }
    }

    /// A claim was given back, or was not; then it is tried again when storage is fine.
    pub(super) fn on_given_back(&mut self, now: Time, key: &str, result: Result<(), String>) {
        match result {
            Ok(()) => drop(self.returning.remove(key)),
            // Of others it is enough that they end with this pilot.
            Err(why) if self.returning.contains_key(key) => self.pause_storage(now, why),
            Err(_) => {}
        }
    }
}
