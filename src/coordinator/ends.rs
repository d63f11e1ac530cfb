//! The core's way with ends: publication, quarantine, a claim that was lost, a job that is dropped.
//!
//! Same contract as [`super::core`].

use super::core::{Core, Ended, JOB};
use super::event::*;
use super::job::{Job, Phase};
use crate::store::records::watched;

impl Core {
    pub(super) fn publish(&mut self, now: Time, no: JobNo, after: u64) {
        let Some(job) = self.jobs.get_mut(&no) else { return };
        job.phase = Phase::Publishing { ordered: true };
        job.timeline.computed = now;
        self.order_publish(no, Some(after));
    }

    pub(super) fn order_publish(&mut self, no: JobNo, after: Option<u64>) {
        let Some(job) = self.jobs.get(&no) else { return };
        let Some(claim) = job.claim.clone() else { return };
        let action = Action::Publish {
            job: no,
            key: job.key.clone(),
            scan: Box::new(job.scan.clone()),
            generation: claim.generation,
            staging: claim.staging,
            timeline: job.timeline,
            items: items_of(job),
        };
        match after {
            Some(seq) => self.order_after(seq, action),
            None => self.order(action),
        }
    }

    pub(super) fn on_published(&mut self, now: Time, no: JobNo, outcome: PublishOutcome) {
        let Some(job) = self.jobs.get(&no).filter(|j| matches!(j.phase, Phase::Publishing { .. })) else { return };
        match outcome {
            PublishOutcome::Done { bundle } => {
                let lag = job.timeline.lag(now);
                let late = now > job.deadline;
                let items = items_of(job);
                let preview_s = job.timeline.previewed.map(|t| t.since_s(job.timeline.last_byte));
                let linked = watched(&job.scan.linked);
                let busy = now.since_s(job.timeline.claimed);
                let technique = self.streams[job.stream].technique.clone();
                let workers = self.workers.len().max(1) as f64;
                self.learn(&technique, JOB.to_owned(), busy * workers);
                self.counts.published += 1;
                self.counts.late += u64::from(late);
                let bundle = bundle.display().to_string();
                self.record(Entry::Published { job: no.0, bundle: bundle.clone() });
                self.tell(no, if linked.is_empty() { Verdict::Done } else { Verdict::DoneLinked(linked) });
                self.remember(now, no, "published", &bundle, Some(lag), preview_s, items);
                // The claim is kept: it and the bundle say who did it.
                if let Some(job) = self.jobs.get_mut(&no) {
                    job.claim = None;
                }
                self.forget(no);
            }
            PublishOutcome::Changed => {
                self.tell(no, Verdict::Changed);
                self.drop_job(now, no, "changed", "the scan changed before its result was published");
            }
            PublishOutcome::Fenced => self.start_over(now, no),
            PublishOutcome::Storage(why) => {
                if let Some(job) = self.jobs.get_mut(&no) {
                    job.phase = Phase::Publishing { ordered: false };
                }
                self.pause_storage(now, why);
            }
        }
    }

    /// The claim was lost and with it the work: the job is asked for again, and found published or elsewhere.
    pub(super) fn start_over(&mut self, now: Time, no: JobNo) {
        self.withdraw(now, no);
        self.alone.remove(&no);
        let retry = now.plus_s(self.limits.foreign_retry_s);
        if let Some(job) = self.jobs.get_mut(&no) {
            let (check, timeline) = (Check::None, job.timeline);
            let (recipe, salt, urgent) = (job.recipe.clone(), job.salt.clone(), job.urgent);
            let successor = job.successor.take();
            *job = Job::new(job.stream, job.key.clone(), job.scan.clone(), check, job.deadline);
            job.timeline = timeline;
            (job.recipe, job.salt, job.urgent) = (recipe, salt, urgent);
            job.successor = successor;
            job.phase = Phase::Foreign { retry, owner: "unknown".to_owned() };
        }
        for worker in self.workers.forget(no) {
            self.order(Action::Forget { worker, job: no });
        }
        self.make_way(now, no);
    }

    pub(super) fn quarantine(&mut self, now: Time, no: JobNo, reason: String) {
        self.withdraw(now, no);
        let Some(job) = self.jobs.get_mut(&no) else { return };
        job.phase = Phase::Quarantining { reason: reason.clone(), ordered: true };
        let seq = self.record(Entry::Quarantined { job: no.0, reason: reason.clone() });
        self.order_quarantine(no, reason, Some(seq));
    }

    pub(super) fn order_quarantine(&mut self, no: JobNo, reason: String, after: Option<u64>) {
        let Some(job) = self.jobs.get(&no) else { return };
        let action = Action::Quarantine {
            job: no,
            key: job.key.clone(),
            stream: job.scan.stream.clone(),
            name: job.scan.name.clone(),
            version: job.version,
            own_version: (!job.scan.members.is_empty()).then(|| job.scan.own_version()),
            generation: job.claim.as_ref().map_or(0, |c| c.generation),
            staging: job.claim.as_ref().map(|c| c.staging.clone()),
            reason,
        };
        match after {
            Some(seq) => self.order_after(seq, action),
            None => self.order(action),
        }
    }

    pub(super) fn on_quarantined(&mut self, now: Time, no: JobNo, outcome: QuarantineOutcome) {
        let Some(job) = self.jobs.get_mut(&no) else { return };
        let Phase::Quarantining { reason, .. } = job.phase.clone() else { return };
        match outcome {
            QuarantineOutcome::Done => {
                job.claim = None;
                self.counts.quarantined += 1;
                self.tell(no, Verdict::Done);
                self.remember(now, no, "quarantined", &reason, None, None, String::new());
                self.forget(no);
            }
            QuarantineOutcome::Fenced => self.start_over(now, no),
            QuarantineOutcome::Storage(why) => {
                job.phase = Phase::Quarantining { reason, ordered: false };
                self.pause_storage(now, why);
            }
        }
    }

    /// Ends a job without a verdict: its claim goes back, its staging goes.
    pub(super) fn drop_job(&mut self, now: Time, no: JobNo, outcome: &str, why: &str) {
        self.withdraw(now, no);
        let Some(job) = self.jobs.get_mut(&no) else { return };
        if let Some(claim) = job.claim.take() {
            let key = job.key.clone();
            self.order(Action::Release { key, generation: claim.generation, staging: claim.staging });
        }
        self.record(Entry::Dropped { job: no.0, reason: why.to_owned() });
        if outcome != "incomplete" {
            self.remember(now, no, outcome, why, None, None, String::new());
        }
        self.forget(no);
    }

    /// Withdraws every attempt of a job and takes it out of line.
    pub(super) fn withdraw(&mut self, now: Time, no: JobNo) {
        self.unplace(no);
        let Some(job) = self.jobs.get_mut(&no) else { return };
        job.ready.clear();
        job.delayed.clear();
        self.delays.retain(|(_, of)| *of != no);
        let gone: Vec<AttemptNo> = job.tasks.iter_mut().flat_map(|t| std::mem::take(&mut t.attempts)).collect();
        gone.into_iter().for_each(|attempt| self.withdraw_attempt(now, attempt));
    }

    pub(super) fn withdraw_attempt(&mut self, now: Time, attempt: AttemptNo) {
        if let Some(a) = self.attempts.remove(&attempt) {
            self.workers.ended(a.worker, attempt, now, None);
            self.order(Action::Cancel { worker: a.worker, attempt });
        }
    }

    pub(super) fn forget(&mut self, no: JobNo) {
        self.unplace(no);
        self.alone.remove(&no);
        self.lonely.remove(&no);
        let Some(Job { stream, scan, deadline, successor, .. }) = self.jobs.remove(&no) else { return };
        self.replay.extend(successor.map(|s| *s));
        self.deadlines.remove(&(deadline, no));
        let at = (stream, scan.name);
        if self.by_scan.get(&at) == Some(&no) {
            self.by_scan.remove(&at);
        }
        for worker in self.workers.forget(no) {
            self.order(Action::Forget { worker, job: no });
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn remember(
        &mut self,
        now: Time,
        no: JobNo,
        outcome: &str,
        detail: &str,
        lag: Option<Lag>,
        preview_s: Option<f64>,
        items: String,
    ) {
        self.grant(no, outcome);
        let Some(job) = self.jobs.get(&no) else { return };
        self.history.push_back(Ended {
            stream: job.scan.stream.clone(),
            name: job.scan.name.clone(),
            outcome: outcome.to_owned(),
            detail: detail.to_owned(),
            at_ms: now.0 / 1000,
            lag,
            preview_s,
            items,
        });
        if self.history.len() > self.limits.history {
            self.history.pop_front();
        }
    }
}

fn items_of(job: &Job) -> String {
    job.plan.as_ref().map(|p| format!("{} {}", p.items, p.unit)).unwrap_or_default()
}
