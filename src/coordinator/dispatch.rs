//! The core's way with tasks: who gets which, what a result means, how a job advances.
//!
//! Same contract as [`super::core`]; split off so that each file reads in one sitting.

use super::core::{Attempt, Core, Storage, stage_name};
use super::event::*;
use super::job::{Phase, check_plan};
use super::learned::Learned;
use super::queue::Class;
use super::workers::Worker;
use crate::technique::plan::*;
use crate::transport::WorkerId;
use std::collections::BTreeSet;
use std::collections::btree_map::Entry as Entry_;

impl Core {
    // ---- assigning ----------------------------------------------------------------------------------------

    /// Seconds a task is expected to take.
    pub(super) fn expected_s(&self, technique: &str, stage: &str, cost: f64) -> f64 {
        // Lookups by borrowed pair would need a custom key; the map is small and this is the honest price.
        let key = (technique.to_owned(), stage.to_owned());
        self.learned.get(&key).map_or(1.0, Learned::mean) * cost
    }

    /// Seconds that 19 of 20 such tasks do not exceed, once some have ended.
    pub(super) fn high_s(&self, technique: &str, stage: &str, cost: f64) -> Option<f64> {
        self.learned.get(&(technique.to_owned(), stage.to_owned())).map(|l| l.high() * cost)
    }

    pub(super) fn learn(&mut self, technique: &str, stage: String, seconds: f64) {
        match self.learned.entry((technique.to_owned(), stage)) {
            Entry_::Occupied(mut known) => known.get_mut().observe(seconds),
            Entry_::Vacant(new) => drop(new.insert(Learned::new(seconds))),
        }
    }

    /// Sends tasks until no worker has room or nothing is ready.
    pub(super) fn assign_all(&mut self, now: Time) {
        if self.stopping || self.storage != Storage::Fine {
            return;
        }
        // First, so that a job that runs alone may have a worker that was kept for a task of it.
        self.workers.release_kept();
        if self.assign_alone(now) || self.wants_quiet(now).is_some() {
            return;
        }
        // Jobs whose next task avoids every worker with room, or must run alone and cannot, wait for the next step.
        let mut passed: Vec<JobNo> = Vec::new();
        while let Some((stream, place)) = self.queue.next() {
            let no = place.job;
            if !self.task_fits(now, stream, no) {
                self.unplace(no);
                passed.push(no);
                continue;
            }
            match self.worker_for(no) {
                Some(worker) => self.assign(now, stream, no, worker),
                None if self.workers.least_loaded(&BTreeSet::new()).is_none() => break,
                None => {
                    self.unplace(no);
                    passed.push(no);
                }
            }
        }
        passed.into_iter().for_each(|no| self.place(now, no));
    }

    /// The least loaded worker at the job's home that its next task does not avoid, else one elsewhere; any, when it
    /// avoids all there are.
    pub(super) fn worker_for(&mut self, no: JobNo) -> Option<WorkerId> {
        let job = self.jobs.get(&no)?;
        let task = &job.tasks[*job.ready.front()?];
        if task.solo {
            return self.worker_for_solo(no);
        }
        let (failed, away) = (task.avoid.iter().copied().collect::<BTreeSet<WorkerId>>(), self.away(no));
        let both = &failed | &away;
        // A worker at home is waited for also while its executor is replaced.
        let waits = |w: &Worker| !w.drained && (!away.is_empty() || !w.down);
        if self.workers.iter().any(|(id, w)| !both.contains(&id) && waits(w)) {
            return self.workers.least_loaded(&both);
        }
        let elsewhere = self.workers.iter().any(|(id, w)| !failed.contains(&id) && !w.down && !w.drained);
        self.workers.least_loaded(if elsewhere { &failed } else { const { &BTreeSet::new() } })
    }

    pub(super) fn assign(&mut self, now: Time, stream: usize, no: JobNo, worker: WorkerId) {
        let Some(job) = self.jobs.get_mut(&no) else { return };
        let Some(index) = job.ready.pop_front() else { return };
        let expected_s = self.send(now, no, index, worker);
        self.queue.charge(stream, expected_s);
        // Its class or readiness may have changed with the task that left.
        let job = &self.jobs[&no];
        let still = job.ready.front().is_some_and(|&t| {
            let preview = job.tasks[t].spec.kind < TaskKind::Stage;
            job.place.is_some_and(|p| p.class != Class::Preview || preview)
        });
        if !still {
            self.place(now, no);
        }
    }

    /// Sends one try of a task to a worker; returns how long it is expected to take.
    pub(super) fn send(&mut self, now: Time, no: JobNo, index: usize, worker: WorkerId) -> f64 {
        let Some(job) = self.jobs.get_mut(&no) else { return 0.0 };
        let stream = job.stream;
        let attempt = AttemptNo(self.next_attempt);
        self.next_attempt += 1;
        job.tasks[index].attempts.push(attempt);
        let epoch = job.epoch;
        let job = &self.jobs[&no];
        let task = &job.tasks[index];
        let spec = task.spec.clone();
        let expected_s = self.expected_s(&self.streams[stream].technique, &stage_name(job, task), spec.cost);
        self.attempts.insert(attempt, Attempt { job: no, task: index, worker, sent: now, started: false, expected_s });
        if self.workers.assigned(worker, attempt, no, epoch) {
            let context = Box::new(self.context(no, worker));
            self.order(Action::Context { worker, context });
        }
        if self.jobs[&no].tasks[index].solo {
            self.workers.runs_alone(worker, attempt);
        }
        self.order(Action::Assign { worker, attempt, job: no, task: spec });
        expected_s
    }

    fn context(&self, no: JobNo, worker: WorkerId) -> JobContext {
        let job = &self.jobs[&no];
        let spec = &self.streams[job.stream];
        let at = self.workers.by_id(worker);
        JobContext {
            job: no.0,
            key: job.key.clone(),
            scan: job.scan.clone(),
            technique: spec.technique.clone(),
            recipe: job.recipe.clone(),
            staging: job.claim.as_ref().map(|c| c.staging.clone()).unwrap_or_default(),
            scratch: self
                .limits
                .scratch
                .clone()
                .filter(|_| job.home.is_some() && job.home == at.map(|w| w.host.clone())),
            campaign: self.campaign.clone(),
            resources: Resources {
                workers: u32::try_from(self.workers.len()).unwrap_or(u32::MAX),
                threads: at.map_or(1, |w| w.threads),
                task_memory: self.workers.iter().map(|(_, w)| w.task_memory).min().unwrap_or(1 << 30),
            },
            task_limit_s: spec.task_limit_s,
            carry: job.records.clone(),
            epoch: job.epoch,
        }
    }

    // ---- results ------------------------------------------------------------------------------------------

    pub(super) fn on_task_ended(
        &mut self,
        now: Time,
        worker: WorkerId,
        no: AttemptNo,
        result: Result<TaskOutput, Fault>,
    ) {
        let Some(attempt) = self.attempts.get(&no).copied().filter(|a| a.worker == worker) else {
            // Late: withdrawn, or from a worker that was given up.
            self.workers.ended(worker, no, now, None);
            return;
        };
        self.attempts.remove(&no);
        self.workers.ended(worker, no, now, Some(result.is_ok()));
        let Some(job) = self.jobs.get_mut(&attempt.job) else { return };
        job.tasks[attempt.task].attempts.retain(|a| *a != no);
        match result {
            Ok(output) => self.on_output(now, attempt, no, output),
            Err(fault) => self.on_fault(now, attempt, no, fault),
        }
    }

    fn on_output(&mut self, now: Time, attempt: Attempt, no: AttemptNo, output: TaskOutput) {
        let at = attempt.job;
        let job = &self.jobs[&at];
        let stream = job.stream;
        let task = &job.tasks[attempt.task];
        let (stage, kind, stage_no) = (stage_name(job, task), task.spec.kind, task.stage);
        let technique = self.streams[stream].technique.clone();
        let t = output.timings;
        // Time in an executor's queue is not the task's; its own phases are what it costs.
        let own_s = t.read_s + t.compute_s + t.write_s;
        let seconds = if own_s > 0.0 { own_s } else { now.since_s(attempt.sent) };
        self.learn(&technique, stage, seconds / task_cost(task.spec.cost));
        self.queue.charge(stream, seconds - attempt.expected_s);
        self.counts.tasks += 1;
        let host = self.workers.by_id(attempt.worker).map(|w| w.host.clone()).unwrap_or_default();
        let Some(job) = self.jobs.get_mut(&at) else { return };
        let task = &mut job.tasks[attempt.task];
        task.done = true;
        task.spec.params = Vec::new();
        let label = task.spec.label.clone();
        job.progress.0 += 1;
        self.withdraw_others(now, at, attempt.task, no);
        self.blame_for(now, at, attempt.task, attempt.worker);
        let Some(job) = self.jobs.get_mut(&at) else { return };
        if matches!(kind, TaskKind::Probe | TaskKind::Verify) {
            job.phase = Phase::Unclaimed;
            job.timeline.checked = now;
            return self.place(now, at);
        }
        let plan = output.plan.clone();
        let rank = attempt.worker.0;
        let kept = TaskOutput { plan: None, ..output };
        let done = TaskRecord { stage: stage_no, label: label.clone(), kind, host, rank, output: kept };
        let record = (kind != TaskKind::Noop).then(|| Box::new(done.clone()));
        job.records.push(done);
        let seq = self.record(Entry::Task { job: at.0, label, attempt: no.0, worker: rank, record });
        match kind {
            TaskKind::Plan => self.on_plan(now, at, plan),
            TaskKind::Preview => {
                if let Some(job) = self.jobs.get_mut(&at) {
                    job.preview_open = false;
                    job.timeline.previewed = Some(now);
                }
                self.advance(now, at);
            }
            TaskKind::Decide => self.on_decided(now, at, plan),
            TaskKind::Finish => self.publish(now, at, seq),
            _ => {
                if let Some(job) = self.jobs.get_mut(&at) {
                    job.open -= 1;
                }
                self.advance(now, at);
            }
        }
    }

    pub(super) fn on_plan(&mut self, now: Time, no: JobNo, plan: Option<Plan>) {
        let Some(job) = self.jobs.get_mut(&no) else { return };
        let checked = plan.ok_or_else(|| "the technique returned no plan".to_owned());
        let checked = checked.and_then(|p| check_plan(&p, &job.tasks).map(|()| p).map_err(|e| e.to_string()));
        let plan = match checked {
            Ok(plan) => plan,
            Err(why) => return self.quarantine(now, no, format!("it cannot be planned: {why}")),
        };
        let home = self.home_for(&plan);
        let Some(job) = self.jobs.get_mut(&no) else { return };
        job.home = home;
        job.timeline.planned = now;
        job.epoch += 1;
        if let Some(preview) = plan.preview.clone() {
            job.preview_open = true;
            job.add_task(preview, 0);
        }
        job.progress.1 += plan.stages.iter().skip(1).map(|s| s.tasks.len() as u64).sum::<u64>();
        let save = job.claim.as_ref().map(|c| Action::SavePlan {
            key: job.key.clone(),
            staging: c.staging.clone(),
            plan: Box::new(plan.clone()),
        });
        job.scan.linked.clone_from(&plan.linked);
        job.plan = Some(plan);
        // Adopted plans are on disk already; without tasks to adopt there is nothing to save one for.
        let first = job.adopted.is_empty();
        save.filter(|_| first).into_iter().for_each(|action| self.order(action));
        self.enter_stage(now, no, 0);
    }

    fn on_decided(&mut self, now: Time, no: JobNo, more: Option<Plan>) {
        let Some(job) = self.jobs.get_mut(&no) else { return };
        let Phase::Working { stage, .. } = job.phase else { return };
        if let (Some(more), Some(plan)) = (more, job.plan.as_mut()) {
            let mut whole = plan.clone();
            let at = (stage + 1).min(whole.stages.len());
            whole.stages.splice(at..at, more.stages);
            let later = Plan { preview: None, stages: whole.stages[at..].to_vec(), ..whole.clone() };
            let bounds = if whole.stages.len() > Plan::MAX_STAGES {
                Err(super::job::PlanError::Stages(whole.stages.len()))
            } else {
                check_plan(&later, &job.tasks)
            };
            if let Err(why) = bounds {
                return self.quarantine(now, no, format!("it cannot be continued: {why}"));
            }
            *plan = whole;
        }
        self.enter_stage(now, no, stage + 1);
    }

    /// Starts a stage, or the finish after the last.
    fn enter_stage(&mut self, now: Time, no: JobNo, stage: usize) {
        let Some(job) = self.jobs.get_mut(&no) else { return };
        let tasks = job.plan.as_ref().and_then(|p| p.stages.get(stage)).map(|s| s.tasks.clone());
        job.epoch += u32::from(stage > 0);
        job.phase = Phase::Working { stage, deciding: false };
        match tasks {
            Some(tasks) => {
                if stage > 0 {
                    // Counted when the plan came.
                    job.progress.1 = job.progress.1.saturating_sub(tasks.len() as u64);
                }
                job.open = tasks.len();
                let at = u32::try_from(stage).unwrap_or(u32::MAX);
                tasks.into_iter().for_each(|t| job.add_task(t, at));
                self.place(now, no);
                self.take_adopted(now, no);
            }
            None => {
                job.open = 0;
                self.advance(now, no);
            }
        }
    }

    /// Moves on when the present stage is done: decide, next stage, finish.
    pub(super) fn advance(&mut self, now: Time, no: JobNo) {
        let Some(job) = self.jobs.get_mut(&no) else { return };
        let Phase::Working { stage, deciding } = job.phase else { return };
        if job.open > 0 || deciding {
            return;
        }
        let Some(plan) = job.plan.as_ref() else { return };
        match plan.stages.get(stage) {
            Some(Stage { decide: Some(decide), .. }) => {
                let decide = decide.clone();
                job.phase = Phase::Working { stage, deciding: true };
                job.epoch += 1;
                job.add_task(decide, u32::try_from(stage).unwrap_or(u32::MAX));
                self.place(now, no);
            }
            Some(_) if stage + 1 < plan.stages.len() => self.enter_stage(now, no, stage + 1),
            // The finish task lists the preview's files: it waits for it.
            _ if job.preview_open => {}
            _ => {
                let finish = plan.finish.clone();
                job.phase = Phase::Finishing;
                job.epoch += 1;
                job.records.sort_by(|a, b| (a.stage, &a.label).cmp(&(b.stage, &b.label)));
                let last = u32::try_from(plan.stages.len()).unwrap_or(u32::MAX);
                job.add_task(finish, last);
                self.place(now, no);
            }
        }
    }
}

fn task_cost(cost: f64) -> f64 {
    if cost > 0.0 { cost } else { 1.0 }
}
