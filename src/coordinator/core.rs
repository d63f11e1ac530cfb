//! The coordinator's decisions, pure: `step(now, event)` appends orders to `out`; [`Core::next_deadline`] says
//! when to call again although nothing happened.
//!
//! Inputs: [`Event`]s in the order they became known. Outputs: [`Ordered`] actions; those with `after` must
//! follow the durability of that journal entry. No I/O, no clock, no threads, no randomness; iteration order
//! is that of keys, so that the same events give the same actions.
//!
//! Invariants ([`Core::check_invariants`], run after every step in tests):
//! - an attempt belongs to one task of one living job and sits with one living worker, and the other way round;
//! - a job is in line exactly when it has something ready and may run;
//! - only a claimed job has tasks beyond its check; a job that is over has no attempts;
//! - a task is done at most once, and a job is published only when all its tasks are.
//!
//! Late and unknown messages (a result of a cancelled attempt, a worker that was given up) are normal and
//! change nothing.

use super::event::*;
use super::job::{Job, Phase, Task};
use super::learned::Learned;
use super::queue::{Order, Queue};
use super::requests::Wishes;
use super::workers::Workers;
use crate::arrivals::scan::InputVersion;
use crate::technique::plan::{TaskKind, TaskSpec};
use crate::transport::WorkerId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the core knows of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamSpec {
    /// Name.
    pub name: String,
    /// Technique.
    pub technique: String,
    /// Canonical recipe, JSON.
    pub recipe: String,
    /// Allowed lag, seconds.
    pub deadline_s: f64,
    /// Order.
    pub order: Order,
    /// Weight.
    pub weight: u32,
    /// Longest a task of it may run, seconds; its executor is ended then.
    pub task_limit_s: f64,
}

/// Tunables, with the reasons for their defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Claim while the claimed work would take the workers less than this, seconds (DESIGN: about 30 s).
    pub claim_ahead_s: f64,
    /// Failures of one task on healthy executors that quarantine the scan.
    pub max_strikes: u32,
    /// Owners and workers that may die for no known reason while a job is in flight: after one less it runs alone, at
    /// this many it is quarantined.
    pub max_deaths: u32,
    /// Ask again for a job that another pilot owns, seconds.
    pub foreign_retry_s: f64,
    /// First and longest wait before storage is probed again, seconds.
    pub storage_retry_s: (f64, f64),
    /// How many ended jobs `view` remembers.
    pub history: usize,
    /// Number of the first try. Files carry it in their names, and adopted parts keep theirs: different for every pilot.
    pub first_attempt: u64,
    /// When everything must have ended; nothing is started that will not.
    pub end: Option<Time>,
    /// A folder on every node's own disk, for scratch.
    pub scratch: Option<std::path::PathBuf>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            claim_ahead_s: 30.0,
            max_strikes: 3,
            max_deaths: 4,
            foreign_retry_s: 1.0,
            storage_retry_s: (1.0, 30.0),
            history: 200,
            first_attempt: 1,
            end: None,
            scratch: None,
        }
    }
}

/// One try, by number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Attempt {
    pub job: JobNo,
    pub task: usize,
    pub worker: WorkerId,
    pub sent: Time,
    /// It left the worker's queue: it may have done something.
    pub started: bool,
    pub expected_s: f64,
}

/// The filesystem, as the faults tell.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Storage {
    Fine,
    /// Nothing is assigned or claimed until a probe succeeds.
    Paused {
        since: Time,
        retry: Time,
        wait_s: f64,
        message: String,
    },
}

/// How a job ended, kept for people.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Ended {
    /// Stream.
    pub stream: String,
    /// Scan.
    pub name: String,
    /// `published`, `quarantined`, `elsewhere` or `changed`.
    pub outcome: String,
    /// Bundle or reason.
    pub detail: String,
    /// When, milliseconds since the epoch.
    pub at_ms: u64,
    /// Lag, for the published.
    pub lag: Option<Lag>,
    /// Last byte to preview, seconds.
    pub preview_s: Option<f64>,
    /// What was counted, `64 slices`.
    pub items: String,
}

/// A try that failed, kept for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FailedTry {
    /// When, milliseconds since the epoch.
    pub at_ms: u64,
    /// Stream.
    pub stream: String,
    /// Scan.
    pub name: String,
    /// Task.
    pub task: String,
    /// Worker.
    pub worker: u32,
    /// Why.
    pub fault: String,
}

/// Failed tries that `view` remembers.
pub(super) const ERRORS: usize = 20;

/// The state machine.
#[derive(Debug, Clone)]
pub struct Core {
    pub(super) campaign: String,
    pub(super) streams: Vec<StreamSpec>,
    pub(super) limits: Limits,
    pub(super) jobs: BTreeMap<JobNo, Job>,
    pub(super) by_scan: BTreeMap<(usize, String), JobNo>,
    pub(super) attempts: BTreeMap<AttemptNo, Attempt>,
    pub(super) queue: Queue,
    pub(super) workers: Workers,
    /// Jobs that may become late, by deadline.
    pub(super) deadlines: BTreeSet<(Time, JobNo)>,
    /// Jobs complete and unclaimed, in the order they would be claimed within their stream.
    pub(super) unclaimed: Queue,
    /// Learned seconds of a task of cost 1, by technique and stage name.
    pub(super) learned: BTreeMap<(String, String), Learned>,
    /// When stragglers were looked for last.
    pub(super) straggler_look: Time,
    /// Claimed jobs that must run alone, see [`Limits::max_deaths`].
    pub(super) alone: BTreeSet<JobNo>,
    /// Jobs that must run alone and are claimed only while nothing runs here: until then its death would be theirs.
    pub(super) lonely: BTreeSet<JobNo>,
    /// Claims being given back so that they are not in flight beside a job that runs alone: by key, the generation and
    /// the staging.
    pub(super) returning: BTreeMap<String, (u32, std::path::PathBuf)>,
    /// A worker went, or gets nothing more: some host may be without any.
    pub(super) vacated: bool,
    /// Jobs with tasks that wait for their next try.
    pub(super) delays: BTreeSet<(Time, JobNo)>,
    pub(super) storage: Storage,
    pub(super) draining: bool,
    /// Nothing is waited for any more.
    pub(super) stopping: bool,
    pub(super) quiet: Option<usize>,
    /// How many orders arrivals were given.
    pub(super) told: u64,
    pub(super) finished: bool,
    pub(super) next_job: u64,
    pub(super) next_attempt: u64,
    pub(super) seq: u64,
    pub(super) history: VecDeque<Ended>,
    /// The last tries that failed.
    pub(super) errors: VecDeque<FailedTry>,
    pub(super) counts: Counts,
    /// Arrivals that waited for an older job of their scan, now gone.
    pub(super) replay: Vec<Event>,
    /// What people asked for.
    pub(super) wishes: Wishes,
    out: Vec<Ordered>,
}

/// Totals since the pilot began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Scans that arrived.
    pub arrived: u64,
    /// Published.
    pub published: u64,
    /// Quarantined.
    pub quarantined: u64,
    /// Tasks finished.
    pub tasks: u64,
    /// Tries that failed.
    pub failed_tries: u64,
    /// Published after their deadline.
    pub late: u64,
}

impl Core {
    /// A core with nothing to do.
    pub fn new(campaign: impl Into<String>, streams: Vec<StreamSpec>, limits: Limits) -> Self {
        let limits_first = limits.first_attempt.max(1);
        let weights: Vec<u32> = streams.iter().map(|s| s.weight).collect();
        Self {
            campaign: campaign.into(),
            queue: Queue::new(weights.iter().copied()),
            unclaimed: Queue::new(weights),
            streams,
            limits,
            jobs: BTreeMap::new(),
            by_scan: BTreeMap::new(),
            attempts: BTreeMap::new(),
            workers: Workers::default(),
            deadlines: BTreeSet::new(),
            learned: BTreeMap::new(),
            straggler_look: Time::default(),
            alone: BTreeSet::new(),
            lonely: BTreeSet::new(),
            returning: BTreeMap::new(),
            vacated: false,
            delays: BTreeSet::new(),
            stopping: false,
            storage: Storage::Fine,
            draining: false,
            quiet: None,
            told: 0,
            finished: false,
            next_job: 1,
            next_attempt: limits_first,
            seq: 0,
            history: VecDeque::new(),
            errors: VecDeque::new(),
            counts: Counts::default(),
            replay: Vec::new(),
            wishes: Wishes::default(),
            out: Vec::new(),
        }
    }

    /// Takes in one fact and appends the orders that follow from it.
    pub fn step(&mut self, now: Time, event: Event, out: &mut Vec<Ordered>) {
        self.handle(now, event);
        // A job that ended may have held up news of the same scan.
        while let Some(event) = self.replay.pop() {
            self.handle(now, event);
        }
        if std::mem::take(&mut self.vacated) {
            self.leave_lost_homes(now);
        }
        self.on_time(now);
        self.claim_more(now);
        self.assign_all(now);
        self.duplicate_stragglers(now);
        self.end_if_done();
        out.append(&mut self.out);
    }

    /// When `step(_, Event::Tick)` is due although nothing happened.
    pub fn next_deadline(&self) -> Option<Time> {
        let late = self.deadlines.first().map(|(t, _)| *t);
        let storage = match &self.storage {
            Storage::Paused { retry, .. } => Some(*retry),
            Storage::Fine => None,
        };
        let foreign = self.jobs.values().filter_map(|j| match &j.phase {
            Phase::Foreign { retry, .. } => Some(*retry),
            _ => None,
        });
        let delayed = self.delays.first().map(|(t, _)| *t);
        let more = [delayed, self.straggler_due(), self.drain_due(), self.limits.end.filter(|_| !self.finished)]
            .into_iter()
            .flatten();
        late.into_iter().chain(storage).chain(foreign).chain(more).min()
    }

    fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Arrived { scan, check } => self.on_arrived(now, scan, check),
            Event::Rejected { stream, name, version, reason } => self.on_rejected(now, &stream, name, version, reason),
            Event::ArrivalsQuiet { obeyed, incomplete } => self.quiet = (obeyed == self.told).then_some(incomplete),
            Event::WorkerJoined { worker, host, threads, task_memory } => {
                self.on_worker_joined(now, worker, host, threads, task_memory);
            }
            Event::ExecutorDied { worker, reason, running, waiting, culprit } => {
                self.on_executor_died(now, worker, &reason, &running, &waiting, culprit);
            }
            Event::WorkerUnfit { worker, reason } => self.on_worker_unfit(worker, &reason),
            Event::WorkerLost { worker, reason } => self.on_worker_lost(now, worker, &reason),
            Event::Started { attempt, .. } => {
                if let Some(attempt) = self.attempts.get_mut(&attempt) {
                    attempt.started = true;
                }
            }
            Event::Tick => {}
            Event::TaskEnded { worker, attempt, result } => self.on_task_ended(now, worker, attempt, result),
            Event::Claimed { job, outcome } => self.on_claimed(now, job, outcome),
            Event::Published { job, outcome } => self.on_published(now, job, outcome),
            Event::Quarantined { job, outcome } => self.on_quarantined(now, job, outcome),
            Event::GivenBack { key, result } => self.on_given_back(now, &key, result),
            Event::StorageProbed { result } => self.on_storage_probed(now, result),
            Event::StorageTrouble { message } => self.pause_storage(now, message),
            Event::Urgent { stream, name } => self.on_urgent(&stream, &name),
            Event::Drain => self.drain(now),
            Event::Stop => (self.draining, self.stopping) = (true, true),
            wish => self.on_wish(now, wish),
        }
    }

    // ---- orders -------------------------------------------------------------------------------------------

    pub(super) fn order(&mut self, action: Action) {
        self.out.push(Ordered { action, after: None });
    }

    pub(super) fn order_after(&mut self, after: u64, action: Action) {
        self.out.push(Ordered { action, after: Some(after) });
    }

    /// Orders a journal entry and returns its number.
    pub(super) fn record(&mut self, entry: Entry) -> u64 {
        self.seq += 1;
        let seq = self.seq;
        self.order(Action::Record { seq, entry });
        seq
    }

    pub(super) fn tell(&mut self, no: JobNo, verdict: Verdict) {
        let Some(job) = self.jobs.get(&no) else { return };
        let (stream, name, version) =
            (job.scan.stream.clone(), job.scan.name.clone(), job.version.unwrap_or(InputVersion(0)));
        // Arrivals say again when they are quiet.
        self.told += 1;
        self.quiet = None;
        self.order(Action::Tell { stream, name, version, verdict });
    }

    // ---- time and end -------------------------------------------------------------------------------------

    fn on_time(&mut self, now: Time) {
        if self.limits.end.is_some_and(|end| end <= now) {
            (self.draining, self.stopping) = (true, true);
        }
        if self.drain_due().is_some_and(|due| due <= now) {
            self.drain(now);
        }
        self.wake_delayed(now);
        while let Some((at, no)) = self.deadlines.first().copied().filter(|(at, _)| *at < now) {
            self.deadlines.remove(&(at, no));
            if self.jobs.get(&no).is_some_and(|j| j.place.is_some()) {
                self.place(now, no);
            }
        }
        let due = |j: &Job| matches!(&j.phase, Phase::Foreign { retry, .. } if *retry <= now);
        let again: Vec<JobNo> = self.jobs.iter().filter(|(_, j)| due(j)).map(|(no, _)| *no).collect();
        for no in again {
            if let Some(job) = self.jobs.get_mut(&no) {
                job.phase = Phase::Unclaimed;
            }
            self.place(now, no);
        }
        if let Storage::Paused { retry, wait_s, .. } = &mut self.storage
            && *retry <= now
        {
            let longest = self.limits.storage_retry_s.1;
            *wait_s = (*wait_s * 2.0).min(longest);
            // Until the answer comes: a probe may hang on a stalled filesystem, and one is enough.
            *retry = now.plus_s(*wait_s + 3600.0);
            self.order(Action::ProbeStorage);
        }
    }

    fn end_if_done(&mut self) {
        if self.finished {
            return;
        }
        let idle = self.quiet.is_some() && self.jobs.values().all(|j| self.rests(j));
        let holds = |j: &Job| {
            let ordered = matches!(j.phase, Phase::Claiming | Phase::Publishing { .. } | Phase::Quarantining { .. });
            ordered && self.storage == Storage::Fine
        };
        let drained = self.draining && self.attempts.is_empty() && !self.jobs.values().any(holds);
        if idle || drained || self.stopping {
            self.finished = true;
            self.order(Action::Finished);
        }
    }

    /// The claims still held, key and generation: to be handed over once nothing of this pilot can write any more.
    pub fn held(&self) -> Vec<(String, u32)> {
        self.jobs.values().filter_map(|j| Some((j.key.clone(), j.claim.as_ref()?.generation))).collect()
    }
}

/// Key of whole jobs in [`Core::learned`].
pub(super) const JOB: &str = "(job)";

pub(super) fn control_task(kind: TaskKind, params: Vec<u8>) -> TaskSpec {
    let label = match kind {
        TaskKind::Probe => "probe",
        TaskKind::Verify => "verify",
        _ => "plan",
    };
    TaskSpec { label: label.to_owned(), kind, params, cost: 1.0, bytes_in: 0 }
}

/// Under which name durations of this task are learned.
pub(super) fn stage_name(job: &Job, task: &Task) -> String {
    match task.spec.kind {
        TaskKind::Stage | TaskKind::Noop => {
            let stages = job.plan.as_ref().map(|p| p.stages.as_slice()).unwrap_or_default();
            stages.get(task.stage as usize).map_or_else(String::new, |s| s.name.clone())
        }
        kind => format!("{kind:?}").to_lowercase(),
    }
}
