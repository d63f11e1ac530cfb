//! The core's way with lines and claims: where a job waits, which is claimed next, what the disk answers.
//!
//! Same contract as [`super::core`].

use super::core::{Core, JOB, Storage, control_task, stage_name};
use super::event::*;
use super::job::{Claim, Job, Phase};
use super::queue::{Class, Place};
use crate::technique::plan::TaskKind;

impl Core {
    pub(super) fn class(&self, job: &Job, now: Time) -> Class {
        let preview = job.ready.front().is_some_and(|&t| job.tasks[t].spec.kind < TaskKind::Stage);
        if job.urgent {
            Class::Urgent
        } else if now > job.deadline {
            Class::Background
        } else if preview {
            Class::Preview
        } else {
            Class::Normal
        }
    }

    /// Puts a job where it belongs: in line for workers when something is ready, in line for a claim when it waits for one.
    pub(super) fn place(&mut self, now: Time, no: JobNo) {
        self.unplace(no);
        let Some(job) = self.jobs.get(&no) else { return };
        let spec = &self.streams[job.stream];
        let at = Place::new(self.class(job, now), spec.order, job.deadline, job.timeline.last_byte, no);
        let stream = job.stream;
        let waits = job.phase == Phase::Unclaimed;
        if waits {
            self.unclaimed.insert(stream, at);
        } else if !job.ready.is_empty() {
            self.queue.insert(stream, at);
        } else {
            return;
        }
        if let Some(job) = self.jobs.get_mut(&no) {
            job.place = Some(at);
        }
    }

    pub(super) fn unplace(&mut self, no: JobNo) {
        let Some(job) = self.jobs.get_mut(&no) else { return };
        let stream = job.stream;
        if let Some(place) = job.place.take()
            && !self.queue.remove(stream, &place)
        {
            self.unclaimed.remove(stream, &place);
        }
    }

    pub(super) fn await_claim(&mut self, now: Time, no: JobNo) {
        if let Some(job) = self.jobs.get_mut(&no) {
            job.phase = Phase::Unclaimed;
            job.timeline.checked = now;
        }
        self.place(now, no);
    }

    /// Expected seconds of everything claimed and not finished, over all workers.
    pub(super) fn backlog_s(&self) -> f64 {
        let workers = self.workers.len().max(1) as f64;
        let of = |job: &Job| {
            let spec = &self.streams[job.stream];
            match &job.plan {
                Some(_) => {
                    let known = job.tasks.iter().filter(|t| !t.done).take(10_000);
                    known.map(|t| self.expected_s(&spec.technique, &stage_name(job, t), t.spec.cost)).sum::<f64>()
                }
                None => self.expected_s(&spec.technique, JOB, 1.0),
            }
        };
        self.jobs.values().filter(|j| j.is_active()).map(of).sum::<f64>() / workers
    }

    pub(super) fn claim_more(&mut self, now: Time) {
        // While a job runs alone nothing else is put at risk beside it.
        if self.workers.is_empty() || self.storage != Storage::Fine {
            return;
        }
        if self.runs_alone().is_some() {
            // Also while draining, as it is waited for.
            return self.claim_uncertain();
        }
        if self.draining || self.unclaimed.is_empty() {
            return;
        }
        if let Some(no) = self.wants_quiet(now) {
            if self.attempts.is_empty() && self.returning.is_empty() && !self.is_claiming() {
                self.order_claim(no);
            }
            return;
        }
        let mut backlog = self.backlog_s();
        while backlog < self.limits.claim_ahead_s {
            let Some((stream, place)) = self.unclaimed.next() else { return };
            let no = place.job;
            if !self.job_fits(now, stream, backlog) {
                return;
            }
            self.unclaimed.charge(stream, 1.0);
            self.order_claim(no);
            let technique = self.streams[stream].technique.clone();
            let expected = self.expected_s(&technique, JOB, 1.0);
            backlog += expected / self.workers.len().max(1) as f64;
        }
    }

    /// Asks again for what may be ours already: what runs alone waits for the answer.
    fn claim_uncertain(&mut self) {
        let uncertain = |(no, j): (&JobNo, &Job)| (j.uncertain && j.phase == Phase::Unclaimed).then_some(*no);
        let all: Vec<JobNo> = self.jobs.iter().filter_map(uncertain).collect();
        all.into_iter().for_each(|no| self.order_claim(no));
    }

    fn order_claim(&mut self, no: JobNo) {
        self.unplace(no);
        let Some(job) = self.jobs.get_mut(&no) else { return };
        job.phase = Phase::Claiming;
        let action = Action::Claim { job: no, key: job.key.clone(), scan: Box::new(job.scan.clone()) };
        self.order(action);
    }

    pub(super) fn on_claimed(&mut self, now: Time, no: JobNo, outcome: ClaimOutcome) {
        let Some(job) = self.jobs.get_mut(&no).filter(|j| j.phase == Phase::Claiming) else {
            return;
        };
        // The claim may have been made, and the answer lost.
        job.uncertain = matches!(outcome, ClaimOutcome::Storage(_));
        if !job.uncertain {
            self.lonely.remove(&no);
        }
        match outcome {
            ClaimOutcome::Won { generation, staging, deaths, adopted } => {
                job.claim = Some(Claim { generation, staging });
                job.timeline.claimed = now;
                // Workers of ours may have died of it before.
                job.deaths = job.deaths.max(deaths);
                let deaths = job.deaths;
                job.phase = Phase::Planning;
                job.epoch += 1;
                self.record(Entry::Claimed { job: no.0, generation });
                if deaths >= self.limits.max_deaths {
                    let why = format!("{deaths} pilots died for no known reason while they held it");
                    return self.quarantine(now, no, why);
                }
                if deaths + 1 >= self.limits.max_deaths {
                    // Two of them under one pilot would die of each other, and one would die of whatever runs beside it.
                    if !self.attempts.is_empty() || self.holds_another_alone(no) {
                        self.lonely.insert(no);
                        return self.give_back(now, no);
                    }
                    let message =
                        format!("{no} runs alone: {deaths} pilots died for no known reason while they held it");
                    self.alone.insert(no);
                    self.record(Entry::Alarm { message: message.clone() });
                    self.order(Action::Alarm { message });
                }
                match adopted {
                    Some(adopted) => self.resume(now, no, *adopted),
                    None => {
                        if let Some(job) = self.jobs.get_mut(&no) {
                            job.add_task(control_task(TaskKind::Plan, Vec::new()), 0);
                        }
                        self.place(now, no);
                    }
                }
                self.make_way(now, no);
            }
            ClaimOutcome::Foreign { owner } => {
                let retry = now.plus_s(self.limits.foreign_retry_s);
                job.phase = Phase::Foreign { retry, owner };
                self.make_way(now, no);
            }
            ClaimOutcome::Published => self.done_elsewhere(now, no, "already published"),
            ClaimOutcome::Quarantined => self.done_elsewhere(now, no, "already in quarantine"),
            ClaimOutcome::Changed => {
                self.tell(no, Verdict::Changed);
                self.drop_job(now, no, "changed", "the scan changed before it was claimed");
            }
            ClaimOutcome::Failed(why) => self.quarantine(now, no, why),
            ClaimOutcome::Storage(message) => {
                job.phase = Phase::Unclaimed;
                self.place(now, no);
                self.make_way(now, no);
                self.pause_storage(now, message);
            }
        }
    }

    /// Drops a job that newer news of its scan wait for.
    pub(super) fn make_way(&mut self, now: Time, no: JobNo) {
        if self.jobs.get(&no).is_some_and(|j| j.successor.is_some()) {
            self.drop_job(now, no, "changed", "a newer version of the scan arrived");
        }
    }

    pub(super) fn done_elsewhere(&mut self, now: Time, no: JobNo, why: &str) {
        self.tell(no, Verdict::Done);
        self.drop_job(now, no, "elsewhere", why);
    }
}
