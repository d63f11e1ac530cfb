//! The core's way with work that an earlier owner of the job finished: it counts, and is journalled once more, so that
//! the owner after us may count on it, too.
//!
//! Same contract as [`super::core`]. Only previews and stage tasks of the plan as first made are adopted; `decide` runs
//! again, and what it adds is computed again.

use super::core::Core;
use super::event::{Entry, JobNo, Time};
use crate::store::takeover::Adopted;
use crate::technique::plan::{TaskKind, TaskRecord};

impl Core {
    /// A job that was just claimed goes on where its earlier owner stopped.
    pub(super) fn resume(&mut self, now: Time, no: JobNo, adopted: Adopted) {
        let Some(job) = self.jobs.get_mut(&no) else { return };
        job.adopted = adopted.records.into_iter().map(|r| (r.label.clone(), r)).collect();
        self.on_plan(now, no, Some(adopted.plan));
    }

    /// Ticks off what is ready and was done by an earlier owner.
    pub(super) fn take_adopted(&mut self, now: Time, no: JobNo) {
        let Some(job) = self.jobs.get_mut(&no).filter(|j| !j.adopted.is_empty()) else { return };
        let mut done: Vec<TaskRecord> = Vec::new();
        let ready = std::mem::take(&mut job.ready);
        for index in ready {
            let task = &mut job.tasks[index];
            let known = matches!(task.spec.kind, TaskKind::Preview | TaskKind::Stage);
            match job.adopted.remove(&task.spec.label).filter(|_| known) {
                Some(record) => {
                    task.done = true;
                    task.spec.params = Vec::new();
                    done.push(record);
                }
                None => job.ready.push_back(index),
            }
        }
        for record in &done {
            job.progress.0 += 1;
            match record.kind {
                TaskKind::Preview => {
                    job.preview_open = false;
                    job.timeline.previewed = Some(now);
                }
                _ => job.open -= 1,
            }
            job.records.push(record.clone());
        }
        let any = !done.is_empty();
        for record in done {
            let (label, worker) = (record.label.clone(), record.rank);
            self.record(Entry::Task { job: no.0, label, attempt: 0, worker, record: Some(Box::new(record)) });
        }
        if any {
            self.place(now, no);
            self.advance(now, no);
        }
    }
}
