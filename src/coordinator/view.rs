//! What the core shows to people, and its self-examination.

use super::core::{Core, Counts, Ended, FailedTry, Storage};
use super::event::{JobNo, Time};
use super::job::{Job, Phase};
use serde::{Deserialize, Serialize};

/// A stream at a glance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamView {
    /// Name.
    pub name: String,
    /// Jobs whose probe runs or waits.
    pub checking: usize,
    /// Complete, waiting for workers.
    pub waiting: usize,
    /// Claimed and worked on.
    pub active: usize,
    /// Owned by other pilots.
    pub elsewhere: usize,
    /// Past their deadline.
    pub late: usize,
}

/// A job at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// Stream.
    pub stream: String,
    /// Scan.
    pub name: String,
    /// `checking`, `waiting`, `planning`, `computing`, ….
    pub phase: String,
    /// Tasks done and known.
    pub done: u64,
    /// See `done`.
    pub tasks: u64,
    /// Seconds since its last byte.
    pub lag_s: f64,
    /// Past its deadline.
    pub late: bool,
    /// A person asked for it.
    pub urgent: bool,
    /// Owner, when it is elsewhere.
    pub owner: Option<String>,
    /// Where its tasks run, `host:worker`; at most [`View::MAX_PLACES`].
    #[serde(default)]
    pub workers: Vec<String>,
}

/// A worker at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerView {
    /// Number.
    pub worker: u32,
    /// Host.
    pub host: String,
    /// Threads.
    pub threads: u32,
    /// Attempts it holds.
    pub in_flight: usize,
    /// Tasks ended.
    pub ended: u64,
    /// Tries failed.
    pub failed: u64,
    /// It gets nothing more: too many tasks failed on it and went well elsewhere.
    #[serde(default)]
    pub drained: bool,
    /// Most memory its executor ever held, bytes, as it says itself; 0 until it does.
    #[serde(default)]
    pub peak_bytes: u64,
}

/// Everything at a glance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Per stream.
    pub streams: Vec<StreamView>,
    /// The first jobs in order of arrival, at most [`View::MAX_JOBS`].
    pub jobs: Vec<JobView>,
    /// All workers.
    pub workers: Vec<WorkerView>,
    /// Totals of this pilot.
    pub counts: Counts,
    /// Ended jobs, latest last.
    pub ended: Vec<Ended>,
    /// The last tries that failed, latest last.
    pub errors: Vec<FailedTry>,
    /// Why nothing is started, when the filesystem is to blame.
    pub paused: Option<String>,
    /// Streams that a person holds.
    #[serde(default)]
    pub held: Vec<String>,
    /// GPUs and hosts that get no more work.
    #[serde(default)]
    pub drained: Vec<String>,
    /// A drain was asked for.
    pub draining: bool,
    /// Nothing will be ordered any more.
    pub finished: bool,
}

impl View {
    /// Most jobs listed.
    pub const MAX_JOBS: usize = 500;
    /// Most workers listed for a job.
    pub const MAX_PLACES: usize = 8;
}

impl Core {
    /// A copy of what people want to know.
    pub fn view(&self, now: Time) -> View {
        let mut streams: Vec<StreamView> =
            self.streams.iter().map(|s| StreamView { name: s.name.clone(), ..StreamView::default() }).collect();
        for job in self.jobs.values() {
            let Some(at) = streams.get_mut(job.stream) else { continue };
            at.late += usize::from(now > job.deadline);
            match job.phase {
                Phase::Checking => at.checking += 1,
                Phase::Unclaimed | Phase::Claiming => at.waiting += 1,
                Phase::Foreign { .. } => at.elsewhere += 1,
                _ => at.active += 1,
            }
        }
        let job_view = |job: &Job| JobView {
            stream: job.scan.stream.clone(),
            name: job.scan.name.clone(),
            phase: job.phase_name().to_owned(),
            done: job.progress.0,
            tasks: job.progress.1,
            lag_s: now.since_s(job.timeline.last_byte),
            late: now > job.deadline,
            urgent: job.urgent,
            owner: match &job.phase {
                Phase::Foreign { owner, .. } => Some(owner.clone()),
                _ => None,
            },
            workers: self.places(job),
        };
        let workers = self.workers.iter().map(|(id, w)| WorkerView {
            worker: id.0,
            host: w.host.clone(),
            threads: w.threads,
            in_flight: w.in_flight.len(),
            ended: w.ended,
            failed: w.failed,
            drained: w.drained,
            // Beats do not reach the core; the driver knows.
            peak_bytes: 0,
        });
        View {
            streams,
            jobs: self.jobs.values().take(View::MAX_JOBS).map(job_view).collect(),
            workers: workers.collect(),
            counts: self.counts,
            ended: self.history.iter().cloned().collect(),
            errors: self.errors.iter().cloned().collect(),
            paused: match &self.storage {
                Storage::Fine => None,
                Storage::Paused { message, .. } => Some(message.clone()),
            },
            held: self.held_streams(),
            drained: self
                .workers
                .iter()
                .filter(|(_, w)| w.drained)
                .map(|(id, w)| format!("worker {id} on {}", w.host))
                .collect(),
            draining: self.draining,
            finished: self.finished,
        }
    }

    fn places(&self, job: &Job) -> Vec<String> {
        let at: std::collections::BTreeSet<_> =
            job.attempts().filter_map(|a| Some(self.attempts.get(&a)?.worker)).collect();
        let place = |id| self.workers.by_id(id).map_or_else(String::new, |w| format!("{}:{}", w.host, id.0));
        at.into_iter().take(View::MAX_PLACES).map(place).collect()
    }

    /// Keys of the jobs of which something runs.
    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> std::collections::BTreeSet<&str> {
        self.attempts.values().filter_map(|a| Some(self.jobs.get(&a.job)?.key.as_str())).collect()
    }

    /// A drain was asked for.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Totals.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Scans that arrivals left incomplete, once they are quiet (`--once`).
    pub fn left_incomplete(&self) -> usize {
        // What a held stream kept is left, too.
        self.quiet.unwrap_or(0) + self.jobs.len()
    }

    /// Number of the last journal entry ordered.
    pub fn last_seq(&self) -> u64 {
        self.seq
    }

    /// Panics with both sides named when the core contradicts itself. Tests call it after every step.
    pub fn check_invariants(&self) {
        self.workers.check_invariants();
        for (no, attempt) in &self.attempts {
            let job = self.jobs.get(&attempt.job);
            let task = job.and_then(|j| j.tasks.get(attempt.task));
            assert!(task.is_some_and(|t| t.attempts.contains(no)), "attempt {no:?} is not its task's");
            let worker = self.workers.by_id(attempt.worker);
            assert!(worker.is_some_and(|w| w.in_flight.contains(no)), "attempt {no:?} is not with its worker");
        }
        for (id, worker) in self.workers.iter() {
            for no in &worker.in_flight {
                assert_eq!(self.attempts.get(no).map(|a| a.worker), Some(id), "worker {id} holds unknown {no:?}");
            }
        }
        for (no, job) in &self.jobs {
            self.check_job(*no, job);
        }
        for (_, place) in self.queue.iter().chain(self.unclaimed.iter()) {
            assert_eq!(self.jobs.get(&place.job).and_then(|j| j.place), Some(*place), "a stale place in line");
        }
    }

    fn check_job(&self, no: JobNo, job: &Job) {
        for attempt in job.attempts() {
            assert!(self.attempts.contains_key(&attempt), "{no}: {attempt:?} is not known");
        }
        for &index in &job.ready {
            let task = &job.tasks[index];
            assert!(
                !task.done && task.attempts.is_empty(),
                "{no}: ready task {} is done or under way",
                task.spec.label
            );
        }
        let waits = !job.ready.is_empty() || job.phase == Phase::Unclaimed;
        assert_eq!(job.place.is_some(), waits, "{no} in {:?}: in line or not", job.phase);
        let claimed =
            matches!(job.phase, Phase::Planning | Phase::Working { .. } | Phase::Finishing | Phase::Publishing { .. });
        assert_eq!(job.claim.is_some(), claimed || (job.claim.is_some() && is_quarantining(job)), "{no}: claim");
        assert_eq!(self.by_scan.get(&(job.stream, job.scan.name.clone())), Some(&no), "{no} is not its scan's job");
        if let Phase::Working { stage, .. } = job.phase {
            let at = u32::try_from(stage).unwrap_or(u32::MAX);
            let open = job.tasks.iter().filter(|t| !t.done && t.stage == at && is_stage_task(t.spec.kind)).count();
            assert_eq!(open, job.open, "{no}: open tasks of stage {stage}");
        }
        if matches!(job.phase, Phase::Publishing { .. }) {
            assert!(job.tasks.iter().all(|t| t.done), "{no} is published with tasks undone");
        }
    }
}

fn is_quarantining(job: &Job) -> bool {
    matches!(job.phase, Phase::Quarantining { .. })
}

fn is_stage_task(kind: crate::technique::plan::TaskKind) -> bool {
    use crate::technique::plan::TaskKind;
    matches!(kind, TaskKind::Stage | TaskKind::Noop)
}
