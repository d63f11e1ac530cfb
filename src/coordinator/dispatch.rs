//! The core's way with tasks: who gets which, what a result or a fault means, how a job advances and ends.
//!
//! Same contract as [`super::core`]; split off so that each file reads in one sitting.

use super::core::{Attempt, Core, ERRORS, Ended, FailedTry, JOB, Storage, stage_name};
use super::event::*;
use super::job::{Job, Phase, check_plan};
use super::learned::Learned;
use super::queue::Class;
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

    fn learn(&mut self, technique: &str, stage: String, seconds: f64) {
        match self.learned.entry((technique.to_owned(), stage)) {
            Entry_::Occupied(mut known) => known.get_mut().observe(seconds),
            Entry_::Vacant(new) => drop(new.insert(Learned::new(seconds))),
        }
    }

    /// Sends tasks until no worker has room or nothing is ready.
    pub(super) fn assign_all(&mut self, now: Time) {
        if self.stopping || self.storage != Storage::Fine || self.assign_alone(now) {
            return;
        }
        self.workers.release_kept();
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

    /// The least loaded worker that the job's next task does not avoid; any, when it avoids all there are.
    pub(super) fn worker_for(&mut self, no: JobNo) -> Option<WorkerId> {
        let job = self.jobs.get(&no)?;
        let task = &job.tasks[*job.ready.front()?];
        if task.solo {
            return self.worker_for_solo(no);
        }
        if task.avoid.is_empty() {
            return self.workers.least_loaded(&BTreeSet::new());
        }
        let avoid: BTreeSet<WorkerId> = task.avoid.iter().copied().collect();
        let elsewhere = self.workers.iter().any(|(id, w)| !avoid.contains(&id) && !w.down);
        self.workers.least_loaded(if elsewhere { &avoid } else { const { &BTreeSet::new() } })
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

    // ---- faults -------------------------------------------------------------------------------------------

    fn on_fault(&mut self, now: Time, attempt: Attempt, no: AttemptNo, fault: Fault) {
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
    }

    /// A worker that is only silent may still finish the bundle, under the names that a second finish task would use:
    /// the claim goes back, which takes the folder away from it, and the job starts anew.
    fn start_elsewhere(&mut self, now: Time, no: JobNo) {
        let Some(job) = self.jobs.get_mut(&no).filter(|j| j.phase == Phase::Finishing) else { return };
        let Some(claim) = job.claim.take() else { return };
        let (key, deaths) = (job.key.clone(), job.deaths);
        self.order(Action::Release { key, generation: claim.generation, staging: claim.staging });
        self.start_over(now, no);
        if let Some(job) = self.jobs.get_mut(&no) {
            job.deaths = deaths;
        }
    }

    // ---- ends ---------------------------------------------------------------------------------------------

    fn publish(&mut self, now: Time, no: JobNo, after: u64) {
        let Some(job) = self.jobs.get_mut(&no) else { return };
        job.phase = Phase::Publishing { ordered: true };
        job.timeline.computed = now;
        self.order_publish(no, Some(after));
    }

    fn order_publish(&mut self, no: JobNo, after: Option<u64>) {
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
                let busy = now.since_s(job.timeline.claimed);
                let technique = self.streams[job.stream].technique.clone();
                let workers = self.workers.len().max(1) as f64;
                self.learn(&technique, JOB.to_owned(), busy * workers);
                self.counts.published += 1;
                self.counts.late += u64::from(late);
                let bundle = bundle.display().to_string();
                self.record(Entry::Published { job: no.0, bundle: bundle.clone() });
                self.tell(no, Verdict::Done);
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
    fn start_over(&mut self, now: Time, no: JobNo) {
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

    /// Orders what a storage pause interrupted once more.
    pub(super) fn retry_after_storage(&mut self) {
        let mut ends: Vec<(JobNo, Option<String>)> = Vec::new();
        for (no, job) in &mut self.jobs {
            match &mut job.phase {
                Phase::Publishing { ordered } if !*ordered => {
                    *ordered = true;
                    ends.push((*no, None));
                }
                Phase::Quarantining { reason, ordered } if !*ordered => {
                    *ordered = true;
                    ends.push((*no, Some(reason.clone())));
                }
                _ => {}
            }
        }
        for (no, reason) in ends {
            match reason {
                None => self.order_publish(no, None),
                Some(reason) => self.order_quarantine(no, reason, None),
            }
        }
    }

    pub(super) fn quarantine(&mut self, now: Time, no: JobNo, reason: String) {
        self.withdraw(now, no);
        let Some(job) = self.jobs.get_mut(&no) else { return };
        job.phase = Phase::Quarantining { reason: reason.clone(), ordered: true };
        let seq = self.record(Entry::Quarantined { job: no.0, reason: reason.clone() });
        self.order_quarantine(no, reason, Some(seq));
    }

    fn order_quarantine(&mut self, no: JobNo, reason: String, after: Option<u64>) {
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
    fn withdraw(&mut self, now: Time, no: JobNo) {
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

    fn forget(&mut self, no: JobNo) {
        self.unplace(no);
        self.alone.remove(&no);
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
    fn remember(
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

fn task_cost(cost: f64) -> f64 {
    if cost > 0.0 { cost } else { 1.0 }
}

fn items_of(job: &Job) -> String {
    job.plan.as_ref().map(|p| format!("{} {}", p.items, p.unit)).unwrap_or_default()
}
