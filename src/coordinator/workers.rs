//! The workers as the core sees them: what each holds, and how much more it should hold.
//!
//! A worker's executor overlaps reading, computing and writing, so that three tasks are in flight even when
//! each is long ([`PIPELINE_DEPTH`]). Short tasks need more, or the worker waits for messages: the depth
//! grows until the queue holds [`PREFETCH_S`] seconds of learned work, at most [`MAX_DEPTH`] tasks.

use super::event::{AttemptNo, JobNo, Time};
use crate::transport::WorkerId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Tasks in flight that keep an executor's three phases busy.
pub const PIPELINE_DEPTH: usize = 3;
/// Seconds of short tasks a worker should hold: some dozens of message round trips.
pub const PREFETCH_S: f64 = 0.010;
/// Most tasks a worker holds; bounds what is lost with it and the frames' size.
pub const MAX_DEPTH: usize = 64;

/// One worker.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Host name.
    pub host: String,
    /// Threads of its executor.
    pub threads: u32,
    /// Bytes a task may use.
    pub task_memory: u64,
    /// Attempts sent and not ended, oldest first.
    pub in_flight: BTreeSet<AttemptNo>,
    /// Contexts it has, by job, with their epoch.
    pub contexts: BTreeMap<JobNo, u32>,
    /// Learned seconds between two results while busy, for the depth; 0 = unknown.
    pub pace_s: f64,
    /// When the last result came, while something stayed in flight.
    pub last_end: Option<Time>,
    /// Its executor died, and the next one has not said hello.
    pub down: bool,
    /// Kept for, or busy with, a task that must run alone.
    pub alone: Option<Alone>,
    /// Turn of the last assignment.
    turn: u64,
    /// Tasks ended here.
    pub ended: u64,
    /// Tasks failed here.
    pub failed: u64,
    /// When tasks that failed here went well elsewhere.
    blames: VecDeque<Time>,
    /// It gets nothing more.
    pub drained: bool,
}

/// Why a worker gets nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alone {
    /// It finishes what it has; a task that must run alone waits for it.
    Kept,
    /// It runs that task.
    Busy(AttemptNo),
}

impl Worker {
    fn room(&self, id: WorkerId) -> Room {
        (self.in_flight.len(), self.turn, id)
    }

    /// How many attempts it should hold.
    pub fn depth(&self) -> usize {
        if self.pace_s <= 0.0 {
            return PIPELINE_DEPTH;
        }
        ((PREFETCH_S / self.pace_s).ceil() as usize).clamp(PIPELINE_DEPTH, MAX_DEPTH)
    }
}

/// All workers, and which of them have room.
#[derive(Debug, Clone, Default)]
pub struct Workers {
    table: BTreeMap<WorkerId, Worker>,
    /// Every worker below its depth: the least loaded first, among equals the one that waited longest.
    room: BTreeSet<Room>,
    /// Assignments so far.
    turn: u64,
}

/// (attempts in flight, turn of the last assignment, worker).
type Room = (usize, u64, WorkerId);

impl Workers {
    /// Adds a worker; returns false when it was known.
    pub fn join(&mut self, id: WorkerId, host: String, threads: u32, task_memory: u64) -> bool {
        let known = self.table.contains_key(&id);
        if !known {
            let worker = Worker {
                host,
                threads,
                task_memory,
                in_flight: BTreeSet::new(),
                contexts: BTreeMap::new(),
                pace_s: 0.0,
                last_end: None,
                down: false,
                alone: None,
                turn: 0,
                ended: 0,
                failed: 0,
                blames: VecDeque::new(),
                drained: false,
            };
            self.table.insert(id, worker);
            self.update_room(id, None);
        }
        !known
    }

    /// Removes a worker and returns what it held.
    pub fn leave(&mut self, id: WorkerId) -> Option<Worker> {
        let worker = self.table.remove(&id)?;
        self.room.remove(&worker.room(id));
        Some(worker)
    }

    /// One worker.
    pub fn by_id(&self, id: WorkerId) -> Option<&Worker> {
        self.table.get(&id)
    }

    /// All, in order of number.
    pub fn iter(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        self.table.iter().map(|(id, w)| (*id, w))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The least loaded worker with room, `excluded` apart.
    pub fn least_loaded(&self, excluded: &BTreeSet<WorkerId>) -> Option<WorkerId> {
        self.room.iter().map(|(_, _, id)| *id).find(|id| !excluded.contains(id))
    }

    /// Notes that an attempt was sent; returns true when the worker lacks this epoch of the job's context.
    pub fn assigned(&mut self, id: WorkerId, attempt: AttemptNo, job: JobNo, epoch: u32) -> bool {
        let Some(worker) = self.table.get_mut(&id) else { return false };
        let before = worker.room(id);
        self.turn += 1;
        worker.turn = self.turn;
        worker.in_flight.insert(attempt);
        let lacks = worker.contexts.insert(job, epoch) != Some(epoch);
        self.update_room(id, Some(before));
        lacks
    }

    /// Notes that an attempt is no longer there, ended (`Some(ok)`) or withdrawn (`None`).
    pub fn ended(&mut self, id: WorkerId, attempt: AttemptNo, now: Time, ended: Option<bool>) {
        let Some(worker) = self.table.get_mut(&id) else { return };
        let before = worker.room(id);
        if !worker.in_flight.remove(&attempt) {
            return;
        }
        if let Some(ok) = ended {
            worker.ended += 1;
            worker.failed += u64::from(!ok);
            if let Some(last) = worker.last_end {
                let gap = now.since_s(last);
                worker.pace_s = if worker.pace_s > 0.0 { 0.9 * worker.pace_s + 0.1 * gap } else { gap };
            }
        }
        if worker.alone == Some(Alone::Busy(attempt)) {
            worker.alone = None;
        }
        // An idle spell says nothing about the pace.
        worker.last_end = (!worker.in_flight.is_empty()).then_some(now);
        self.update_room(id, Some(before));
    }

    /// The executor of a worker is gone, or another one took its place: it holds nothing and knows nothing. Returns what
    /// it held. While `down` it gets nothing.
    pub fn restart(&mut self, id: WorkerId, down: bool) -> BTreeSet<AttemptNo> {
        let Some(worker) = self.table.get_mut(&id) else { return BTreeSet::new() };
        let before = worker.room(id);
        let held = std::mem::take(&mut worker.in_flight);
        worker.contexts.clear();
        worker.last_end = None;
        worker.alone = None;
        worker.down = down;
        self.update_room(id, Some(before));
        held
    }

    /// A worker for a task that must run alone, `excluded` apart: an idle one. When all are busy, the least loaded is
    /// kept for it, and gets nothing more until [`Workers::release_kept`].
    pub fn for_solo(&mut self, excluded: &BTreeSet<WorkerId>) -> Option<WorkerId> {
        let id = self.least_loaded(excluded)?;
        if self.table.get(&id).is_some_and(|w| w.in_flight.is_empty()) {
            return Some(id);
        }
        self.set_alone(id, Some(Alone::Kept));
        None
    }

    /// The attempt just sent to this worker runs alone.
    pub fn runs_alone(&mut self, id: WorkerId, attempt: AttemptNo) {
        self.set_alone(id, Some(Alone::Busy(attempt)));
    }

    /// Workers that are kept get work again, unless they are kept again.
    pub fn release_kept(&mut self) {
        let kept = self.table.iter().filter(|(_, w)| w.alone == Some(Alone::Kept)).map(|(id, _)| *id);
        kept.collect::<Vec<_>>().into_iter().for_each(|id| self.set_alone(id, None));
    }

    fn set_alone(&mut self, id: WorkerId, alone: Option<Alone>) {
        let Some(worker) = self.table.get_mut(&id) else { return };
        let before = worker.room(id);
        worker.alone = alone;
        self.update_room(id, Some(before));
    }

    /// Forgets a job everywhere; returns the workers that knew it.
    pub fn forget(&mut self, job: JobNo) -> Vec<WorkerId> {
        let knew = |(id, w): (&WorkerId, &mut Worker)| w.contexts.remove(&job).map(|_| *id);
        self.table.iter_mut().filter_map(knew).collect()
    }

    /// Workers that hold nothing and may be given something.
    pub fn idle(&self) -> impl Iterator<Item = WorkerId> {
        self.room.iter().take_while(|(held, _, _)| *held == 0).map(|(_, _, id)| *id)
    }

    /// Notes that a task failed here and went well elsewhere; how often that happened within `within_s`. `None` when
    /// the worker is gone or drained already.
    pub fn blame(&mut self, id: WorkerId, now: Time, within_s: f64) -> Option<usize> {
        let worker = self.table.get_mut(&id).filter(|w| !w.drained)?;
        worker.blames.push_back(now);
        while worker.blames.front().is_some_and(|at| now.since_s(*at) > within_s) {
            worker.blames.pop_front();
        }
        Some(worker.blames.len())
    }

    /// Gives a worker nothing more.
    pub fn drain(&mut self, id: WorkerId) {
        let Some(worker) = self.table.get_mut(&id) else { return };
        let before = worker.room(id);
        worker.drained = true;
        self.update_room(id, Some(before));
    }

    /// Gives drained workers work again; false when there are none.
    pub fn undrain(&mut self) -> bool {
        let drained: Vec<WorkerId> = self.table.iter().filter(|(_, w)| w.drained).map(|(id, _)| *id).collect();
        for &id in &drained {
            let Some(worker) = self.table.get_mut(&id) else { continue };
            let before = worker.room(id);
            worker.drained = false;
            worker.blames.clear();
            self.update_room(id, Some(before));
        }
        !drained.is_empty()
    }

    /// How many may be given work.
    pub fn healthy(&self) -> usize {
        self.table.values().filter(|w| !w.drained).count()
    }

    fn update_room(&mut self, id: WorkerId, before: Option<Room>) {
        if let Some(before) = before {
            self.room.remove(&before);
        }
        let Some(worker) = self.table.get(&id) else { return };
        let closed = worker.down || worker.drained || worker.alone.is_some();
        if worker.in_flight.len() < worker.depth() && !closed {
            self.room.insert(worker.room(id));
        }
    }

    /// Cross-examines the table and the index of room.
    pub fn check_invariants(&self) {
        for room in &self.room {
            let worker = self.table.get(&room.2);
            assert_eq!(worker.map(|w| w.room(room.2)), Some(*room), "room of worker {} is stale", room.2);
        }
        for (id, worker) in &self.table {
            assert!(worker.in_flight.len() <= MAX_DEPTH, "worker {id} holds too much");
            let listed = self.room.contains(&worker.room(*id));
            let closed = worker.down || worker.drained || worker.alone.is_some();
            assert!(
                listed != closed || worker.in_flight.len() >= PIPELINE_DEPTH,
                "worker {id}: room and list disagree"
            );
            assert!(!(listed && closed), "worker {id} is listed and must get nothing");
            if let Some(Alone::Busy(attempt)) = worker.alone {
                assert!(worker.in_flight.iter().eq([&attempt]), "worker {id} does not run {attempt:?} alone");
            }
        }
    }
}
