//! The core's way with time: what still fits before the end, draining, tries that wait, and jobs that run alone.
//!
//! Same contract as [`super::core`].
//!
//! Draining: nothing new is claimed; what is claimed goes on as far as it fits before [`super::core::Limits::end`], or
//! to its end when there is none. A claim under which nothing has been done yet is given back at once, so that a
//! successor need not wait for it.

use super::core::{Attempt, Core, JOB, stage_name};
use super::event::{JobNo, Time};
use super::job::{Job, Phase};

/// Assumed of a task of which none has ended yet, seconds.
const UNKNOWN_S: f64 = 20.0;
/// Draining begins this long before the end, seconds: publishing and giving back take a moment, too.
const DRAIN_LEAD_S: f64 = 20.0;
/// Before the second try where there is nowhere else, seconds; four times as long before each further one.
const BACK_OFF_S: f64 = 0.5;

impl Core {
    /// When draining begins by itself.
    pub(super) fn drain_due(&self) -> Option<Time> {
        let lead = |end: Time| Time(end.0.saturating_sub((DRAIN_LEAD_S * 1e6) as u64));
        self.limits.end.filter(|_| !self.draining).map(lead)
    }

    fn fits(&self, now: Time, seconds: f64) -> bool {
        self.limits.end.is_none_or(|end| now.plus_s(seconds) <= end)
    }

    /// Would the next task of this job end in time?
    pub(super) fn task_fits(&self, now: Time, stream: usize, no: JobNo) -> bool {
        if self.limits.end.is_none() {
            return true;
        }
        let Some(job) = self.jobs.get(&no) else { return false };
        let Some(task) = job.ready.front().and_then(|t| job.tasks.get(*t)) else { return false };
        let high = self.high_s(&self.streams[stream].technique, &stage_name(job, task), task.spec.cost);
        self.fits(now, high.unwrap_or(UNKNOWN_S))
    }

    /// Would a job of this stream, claimed behind a backlog, end in time?
    pub(super) fn job_fits(&self, now: Time, stream: usize, backlog_s: f64) -> bool {
        let workers = self.workers.healthy().max(1) as f64;
        let high = self.high_s(&self.streams[stream].technique, JOB, 1.0).map_or(UNKNOWN_S, |s| s / workers);
        self.fits(now, backlog_s + high)
    }

    pub(super) fn drain(&mut self, now: Time) {
        if std::mem::replace(&mut self.draining, true) {
            return;
        }
        let untouched =
            |j: &super::job::Job| j.phase == Phase::Planning && j.records.is_empty() && j.attempts().next().is_none();
        let free: Vec<JobNo> = self.jobs.iter().filter(|(_, j)| untouched(j)).map(|(no, _)| *no).collect();
        for no in free {
            self.drop_job(now, no, "elsewhere", "given back untouched: this pilot drains");
        }
    }

    /// A task that failed: elsewhere at once, the first time and if there is an elsewhere; otherwise after a while.
    pub(super) fn retry_later(&mut self, now: Time, attempt: Attempt, strikes: u32) {
        let elsewhere = self
            .jobs
            .get(&attempt.job)
            .and_then(|j| j.tasks.get(attempt.task))
            .is_some_and(|t| self.workers.iter().any(|(id, w)| !w.drained && !t.avoid.contains(&id)));
        if elsewhere && strikes <= 1 {
            return self.requeue(now, attempt);
        }
        let Some(job) = self.jobs.get_mut(&attempt.job) else { return };
        if job.tasks.get(attempt.task).is_some_and(|t| t.done || !t.attempts.is_empty()) {
            return;
        }
        let at = now.plus_s(BACK_OFF_S * 4f64.powi(i32::try_from(strikes.saturating_sub(1)).unwrap_or(0)));
        job.delayed.push((at, attempt.task));
        self.delays.insert((at, attempt.job));
    }

    pub(super) fn wake_delayed(&mut self, now: Time) {
        while let Some((at, no)) = self.delays.first().copied().filter(|(at, _)| *at <= now) {
            self.delays.remove(&(at, no));
            let Some(job) = self.jobs.get_mut(&no) else { continue };
            let (due, later) = std::mem::take(&mut job.delayed).into_iter().partition(|(t, _)| *t <= now);
            job.delayed = later;
            let due: Vec<(Time, usize)> = due;
            due.into_iter().for_each(|(_, index)| job.ready.push_front(index));
            self.place(now, no);
        }
    }

    /// Another claim that one more death would condemn, or that may turn out to be such a one.
    fn may_die_beside(&self, no: JobNo) -> bool {
        let ends = |j: &Job| matches!(j.phase, Phase::Publishing { .. } | Phase::Quarantining { .. });
        let ending = |other: &JobNo| *other != no && self.jobs.get(other).is_some_and(ends);
        self.alone.iter().any(ending) || self.is_claiming() || self.jobs.values().any(|j| j.uncertain)
    }

    /// The job beside which nothing else may run; one whose stream is held only while something of it still does.
    pub(super) fn runs_alone(&self) -> Option<JobNo> {
        let runs = |j: &Job| j.is_active() && (!self.is_held(j.stream) || j.attempts().next().is_some());
        self.alone.iter().copied().find(|no| self.jobs.get(no).is_some_and(runs))
    }

    /// A job that must be alone waits to be claimed, or for the answer: until everything else has ended and the answer is
    /// there nothing is started.
    pub(super) fn wants_quiet(&self, now: Time) -> Option<JobNo> {
        if self.draining {
            return None;
        }
        let waits = |no: &JobNo| {
            let fits = |j: &Job| !self.is_held(j.stream) && self.job_fits(now, j.stream, 0.0);
            self.jobs.get(no).is_some_and(|j| matches!(j.phase, Phase::Unclaimed | Phase::Claiming) && fits(j))
                && !self.holds_another_alone(*no)
        };
        self.lonely.iter().copied().find(waits)
    }

    pub(super) fn holds_another_alone(&self, no: JobNo) -> bool {
        self.alone.iter().any(|other| *other != no && self.jobs.get(other).is_some_and(|j| j.claim.is_some()))
    }

    pub(super) fn is_claiming(&self) -> bool {
        self.jobs.values().any(|j| j.phase == Phase::Claiming)
    }

    /// A job that was in flight at too many deaths runs while nothing else does. True while there is such a job: the
    /// others wait. One whose stream is held waits itself.
    pub(super) fn assign_alone(&mut self, now: Time) -> bool {
        let Some(no) = self.runs_alone() else { return false };
        if self.attempts.values().any(|a| a.job != no) || !self.returning.is_empty() || self.may_die_beside(no) {
            return true;
        }
        let stream = self.jobs.get(&no).map_or(0, |j| j.stream);
        // What it has begun ends alone, too.
        if self.is_held(stream) {
            return true;
        }
        while self.task_fits(now, stream, no) {
            let Some(worker) = self.worker_for(no) else { break };
            self.assign(now, stream, no, worker);
        }
        true
    }
}
