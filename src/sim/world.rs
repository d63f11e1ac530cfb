//! Virtual time, processes, nodes, messages: everything that happens in a simulated shift happens in [`World::run`].
//!
//! Contract: events are taken by time, then by number; all chance comes from the seed. The same seed gives the same
//! events, whose hash is [`World::trace`]. A paused process keeps what is meant for it; a dead one loses it.

use super::executor::{self, Errand};
use super::faults::{Blow, Broken, Phase, Schedule};
use super::fibre::*;
use super::pilot::Pilot;
use super::tree::{Client, EIO, Tree};
use crate::coordinator::event::*;
use crate::store::Fs;
use crate::technique::plan::{Fault, JobContext, TaskOutput, TaskSpec};
use crate::transport::WorkerId;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

pub const S: u64 = 1_000_000;
/// The beamline writes from here.
const BEAMLINE: Client = Client { node: 1000, beamline: true };

/// What happens.
#[derive(Debug)]
pub enum Ev {
    Start,
    /// A fibre's call is let through.
    Go(usize, Resume),
    ToCore(usize, Box<Event>),
    Durable(usize, u64),
    Beat(usize),
    Tick(usize),
    /// Arrivals of a pilot look at a scan.
    Poll(usize, usize),
    ToWorker(usize, Message),
    /// A pilot notices that a worker says nothing.
    Lost(usize),
    Respawn(usize),
    Flushed(usize),
    /// The beamline writes.
    Write(usize, u32, &'static str),
    Blow(Blow),
    Wake(usize),
    Die(usize),
    Heal,
    Look,
}

#[derive(Debug)]
pub enum Message {
    Job(Box<JobContext>),
    Run(AttemptNo, JobNo, TaskSpec),
    Cancel(AttemptNo),
}

pub struct Proc {
    pub node: u32,
    pub alive: bool,
    pub paused: bool,
    parked: Vec<Ev>,
}

pub struct Worker {
    pub proc: usize,
    pub pilot: usize,
    fs: SimFs,
    contexts: BTreeMap<JobNo, JobContext>,
    queue: VecDeque<(AttemptNo, JobNo, TaskSpec)>,
    pub busy: bool,
    /// Nothing it says arrives any more.
    pub silent: bool,
    pub lost: bool,
}

pub struct SimScan {
    pub path: PathBuf,
    pub name: String,
    pub version: u32,
    pub written: u64,
    pub probe: bool,
}

/// What a fibre is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Order(usize, usize),
    Beat(usize, bool),
    Journal(usize, u64),
    Task(usize, AttemptNo),
    HandOver(usize),
}

pub enum Out {
    Nothing,
    Event(Event),
    Done(bool),
    Task(Result<TaskOutput, Fault>),
}

struct Slot {
    fibre: Fibre<Out>,
    proc: usize,
    purpose: Purpose,
    phase: Phase,
}

pub struct World {
    pub seed: u64,
    pub rng: ChaCha8Rng,
    pub now: u64,
    queue: BTreeMap<(u64, u64), Ev>,
    number: u64,
    pub tree: Arc<Mutex<Tree>>,
    pub clocks: Arc<Clocks>,
    pub procs: Vec<Proc>,
    pub pilots: Vec<Pilot>,
    pub workers: Vec<Worker>,
    pub scans: Vec<SimScan>,
    fibres: BTreeMap<usize, Slot>,
    next_fibre: usize,
    pub schedule: Schedule,
    pub broken: Option<Broken>,
    /// Nodes whose calls wait, and until when.
    stalled: BTreeMap<u32, u64>,
    stalled_all: u64,
    pub healed: bool,
    pub draining: bool,
    /// Whether the scan of a key was bad when it was seen, by key.
    pub keys: BTreeMap<String, &'static str>,
    pub trace: u64,
    pub events: u64,
    recent: VecDeque<String>,
    /// Print every event.
    pub loud: bool,
    states: BTreeMap<(usize, u32), &'static str>,
}

impl World {
    pub fn new(seed: u64, broken: Option<Broken>) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let schedule = Schedule::draw(&mut rng);
        let mut world = Self {
            seed,
            rng,
            now: 0,
            queue: BTreeMap::new(),
            number: 0,
            tree: Arc::default(),
            clocks: Arc::default(),
            procs: Vec::new(),
            pilots: Vec::new(),
            workers: Vec::new(),
            scans: Vec::new(),
            fibres: BTreeMap::new(),
            next_fibre: 0,
            schedule,
            broken,
            stalled: BTreeMap::new(),
            stalled_all: 0,
            healed: false,
            draining: false,
            keys: BTreeMap::new(),
            trace: 0,
            events: 0,
            recent: VecDeque::new(),
            loud: false,
            states: BTreeMap::new(),
        };
        world.lay_out();
        world
    }

    fn lay_out(&mut self) {
        let fs = SimFs::new(self.tree.clone(), BEAMLINE, "beamline");
        fs.make_dirs("/watch".as_ref()).expect("an empty tree");
        let fs = SimFs::new(self.tree.clone(), Client { node: 1001, beamline: false }, "first");
        crate::store::Layout::open(&fs, "/state".as_ref()).expect("an empty tree");
        fs.make_dirs("/out/s".as_ref()).expect("an empty tree");
        for n in 0..self.schedule.scans {
            let name = format!("s{n:02}.h5");
            let probe = self.rng.random_bool(0.5);
            let path = PathBuf::from("/watch").join(&name);
            self.scans.push(SimScan { path, name, version: 0, written: 0, probe });
            let at = self.rng.random_range(0..self.schedule.arrive_s * S);
            let whole = if self.rng.random_bool(0.1) { "bad" } else { "good" };
            self.at(at, Ev::Write(n, 1, "partial"));
            let end = at + self.rng.random_range(S / 2..5 * S);
            self.at(end, Ev::Write(n, 2, whole));
        }
        for (scan, at) in self.schedule.rewrites.clone() {
            let version = 3 + (at % 1000) as u32;
            self.at(at, Ev::Write(scan, version, "partial"));
            let end = at + self.rng.random_range(S / 10..3 * S);
            self.at(end, Ev::Write(scan, version + 1, "good"));
        }
        for at in self.schedule.starts.clone() {
            self.at(at, Ev::Start);
        }
        for (at, blow) in self.schedule.timed.clone() {
            self.at(at, Ev::Blow(blow));
        }
        self.at(self.schedule.heal, Ev::Heal);
    }

    // ---- time ---------------------------------------------------------------------------------------------

    pub fn at(&mut self, time: u64, ev: Ev) {
        self.number += 1;
        self.queue.insert((time.max(self.now), self.number), ev);
    }

    pub fn after(&mut self, delay: u64, ev: Ev) {
        self.at(self.now + delay, ev);
    }

    /// Runs the shift to its end.
    ///
    /// # Errors
    /// What was broken, with the seed and the last events.
    pub fn run(&mut self) -> Result<(), String> {
        loop {
            let Some(((time, _), ev)) = self.queue.pop_first() else {
                return self.fail("nothing happens any more".into());
            };
            self.now = time;
            self.clocks.now.store(time, Ordering::Relaxed);
            self.fs_tree().now = time;
            self.events += 1;
            self.note(&ev);
            if let Some(owner) = self.owner(&ev) {
                let proc = &mut self.procs[owner];
                if !proc.alive {
                    if let Ev::Go(fibre, _) = ev {
                        self.fibres.remove(&fibre);
                    }
                    continue;
                }
                if proc.paused {
                    proc.parked.push(ev);
                    continue;
                }
            }
            let looked = matches!(ev, Ev::Look);
            self.happen(ev);
            if let Err(why) = self.check() {
                return self.fail(why);
            }
            if looked && self.is_over().map_or_else(|why| self.fail(why).map(|()| false), Ok)? {
                return Ok(());
            }
        }
    }

    pub fn fs_tree(&self) -> std::sync::MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn fail(&self, why: String) -> Result<(), String> {
        let recent: Vec<&str> = self.recent.iter().map(String::as_str).collect();
        let hint = if self.loud {
            format!("the last events:\n{}", recent.join("\n"))
        } else {
            format!("BEAMPILOT_SIM_SEED={} replays it with its last events", self.seed)
        };
        Err(format!("seed {} at {:.6} s: {why}\n{hint}", self.seed, self.now as f64 * 1e-6))
    }

    fn note(&mut self, ev: &Ev) {
        let (kind, a, b) = match ev {
            Ev::Start => (0, 0, 0),
            Ev::Go(f, r) => (1, *f as u64, u64::from(*r != Resume::Go)),
            Ev::ToCore(p, e) => (2, *p as u64, u64::from(matches!(**e, Event::TaskEnded { .. }))),
            Ev::Durable(p, n) => (3, *p as u64, *n),
            Ev::Beat(p) => (4, *p as u64, 0),
            Ev::Tick(p) => (5, *p as u64, 0),
            Ev::Poll(p, s) => (7, *p as u64, *s as u64),
            Ev::ToWorker(w, _) => (8, *w as u64, 0),
            Ev::Lost(w) => (9, *w as u64, 0),
            Ev::Respawn(p) => (10, *p as u64, 0),
            Ev::Flushed(p) => (11, *p as u64, 0),
            Ev::Write(s, v, _) => (12, *s as u64, u64::from(*v)),
            Ev::Blow(_) => (13, 0, 0),
            Ev::Wake(p) => (14, *p as u64, 0),
            Ev::Die(p) => (15, *p as u64, 0),
            Ev::Heal => (16, 0, 0),
            Ev::Look => (17, 0, 0),
        };
        for word in [self.now, kind, a, b] {
            self.trace = (self.trace ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        }
        if self.loud {
            let mut text = format!("{:12.6} {ev:?}", self.now as f64 * 1e-6);
            if let Ev::Go(f, _) = ev {
                text += &self.fibres.get(f).map(|s| format!(" {:?} {:?}", s.purpose, s.phase)).unwrap_or_default();
            }
            text.truncate(text.floor_char_boundary(300));
            self.tell(text);
        }
    }

    /// Remembers a line for the one who reads a failure.
    pub fn tell(&mut self, text: String) {
        if self.loud {
            if std::env::var_os("BEAMPILOT_SIM_PRINT").is_some() {
                eprintln!("{text}");
            }
            self.recent.push_back(text);
            if self.recent.len() > 60 {
                self.recent.pop_front();
            }
        }
    }

    /// The process that must run for this to happen.
    fn owner(&self, ev: &Ev) -> Option<usize> {
        match ev {
            Ev::Go(fibre, _) => self.fibres.get(fibre).map(|s| s.proc),
            Ev::ToCore(p, _) | Ev::Durable(p, _) | Ev::Beat(p) | Ev::Tick(p) | Ev::Poll(p, _) => {
                Some(self.pilots[*p].proc)
            }
            Ev::Respawn(p) | Ev::Flushed(p) => Some(self.pilots[*p].proc),
            Ev::ToWorker(w, _) => Some(self.workers[*w].proc),
            Ev::Lost(w) => Some(self.pilots[self.workers[*w].pilot].proc),
            _ => None,
        }
    }

    fn happen(&mut self, ev: Ev) {
        match ev {
            Ev::Start => self.start_pilot(),
            Ev::Go(fibre, resume) => self.resume(fibre, resume),
            Ev::ToCore(p, event) => self.step(p, *event),
            Ev::Durable(p, seq) => self.durable(p, seq),
            Ev::Beat(p) => self.beat(p),
            Ev::Tick(p) => self.tick(p),
            Ev::Poll(p, scan) => self.poll(p, scan),
            Ev::ToWorker(w, message) => self.reach_worker(w, message),
            Ev::Lost(w) => self.lost(w),
            Ev::Respawn(p) => self.spawn_worker(p),
            Ev::Flushed(p) => self.flushed(p),
            Ev::Write(scan, version, state) => self.beamline(scan, version, state),
            Ev::Blow(blow) => self.blow(blow, None),
            Ev::Wake(proc) => self.wake(proc),
            Ev::Die(proc) => self.die(proc),
            Ev::Heal => self.heal(),
            Ev::Look => {}
        }
    }

    // ---- the beamline -------------------------------------------------------------------------------------

    fn beamline(&mut self, scan: usize, version: u32, state: &'static str) {
        let bytes = executor::content(version, state);
        let path = self.scans[scan].path.clone();
        {
            let mut tree = self.fs_tree();
            let id = tree.open(BEAMLINE, &path, false).expect("the beamline can write");
            tree.write(BEAMLINE, id, 0, &bytes).expect("the beamline can write");
            tree.sync(id);
        }
        // A rewrite may overtake the first writing: the last writer wins, and what it says is what counts.
        let at = &mut self.scans[scan];
        at.version += 1;
        at.written = self.now;
        let version = at.version;
        self.states.insert((scan, version), state);
        for p in 0..self.pilots.len() {
            let delay = self.rng.random_range(2 * S..8 * S);
            self.after(delay, Ev::Poll(p, scan));
        }
    }

    /// What a scan file is now.
    pub fn state_of(&self, scan: usize) -> &'static str {
        let version = self.scans[scan].version;
        self.states.get(&(scan, version)).copied().unwrap_or("absent")
    }

    // ---- processes ----------------------------------------------------------------------------------------

    pub fn spawn_proc(&mut self, node: u32) -> usize {
        self.procs.push(Proc { node, alive: true, paused: false, parked: Vec::new() });
        self.procs.len() - 1
    }

    pub fn pause(&mut self, proc: usize, for_us: u64) {
        if self.procs[proc].alive && !self.procs[proc].paused {
            self.procs[proc].paused = true;
            self.after(for_us, Ev::Wake(proc));
        }
    }

    fn wake(&mut self, proc: usize) {
        let proc = &mut self.procs[proc];
        proc.paused = false;
        // Messages keep their order.
        for ev in std::mem::take(&mut proc.parked) {
            self.after(0, ev);
        }
    }

    pub fn die(&mut self, proc: usize) {
        if !std::mem::replace(&mut self.procs[proc].alive, false) {
            return;
        }
        self.procs[proc].parked.clear();
        self.clocks.dead.lock().unwrap_or_else(PoisonError::into_inner).insert(proc as u32);
        self.fibres.retain(|_, slot| slot.proc != proc);
        if let Some(p) = self.pilots.iter().position(|p| p.proc == proc) {
            // Its executors follow, soon or, when nobody notices, late; until then they go on writing.
            for w in self.pilots[p].workers.clone() {
                let linger = if self.rng.random_bool(0.2) { 100 } else { 5 };
                let delay = self.rng.random_range(0..linger * S);
                self.after(delay, Ev::Die(self.workers[w].proc));
            }
        } else if let Some(w) = self.workers.iter().position(|w| w.proc == proc) {
            let delay = self.rng.random_range(S..60 * S);
            self.after(delay, Ev::Lost(w));
        }
    }

    pub fn lose_node(&mut self, node: u32) {
        for proc in 0..self.procs.len() {
            if self.procs[proc].node == node {
                self.die(proc);
            }
        }
        self.fs_tree().lose_node(node);
    }

    pub fn stall(&mut self, node: Option<u32>, for_us: u64) {
        let until = self.now + for_us;
        match node {
            Some(node) => drop(self.stalled.insert(node, until)),
            None => self.stalled_all = until,
        }
    }

    fn heal(&mut self) {
        self.healed = true;
        self.stalled.clear();
        self.stalled_all = 0;
        self.fs_tree().full = false;
        self.schedule.errors = (0.0, 0.0);
        self.schedule.pending.clear();
        for proc in 0..self.procs.len() {
            if self.procs[proc].paused {
                self.wake(proc);
            }
        }
        self.start_pilot();
        self.after(S, Ev::Look);
    }

    // ---- fibres -------------------------------------------------------------------------------------------

    pub fn spawn(&mut self, proc: usize, purpose: Purpose, phase: Phase, work: impl FnOnce() -> Out + 'static) {
        let id = self.next_fibre;
        self.next_fibre += 1;
        self.fibres.insert(id, Slot { fibre: Fibre::new(work), proc, purpose, phase });
        let delay = self.rng.random_range(0..100);
        self.after(delay, Ev::Go(id, Resume::Go));
    }

    fn resume(&mut self, id: usize, answer: Resume) {
        let Some(mut slot) = self.fibres.remove(&id) else { return };
        match slot.fibre.resume(answer) {
            Ok(out) => self.ended(slot.purpose, out),
            Err(Ask::Sleep(us)) => {
                self.fibres.insert(id, slot);
                self.after(us, Ev::Go(id, Resume::Go));
            }
            Err(Ask::Call(what)) => {
                let (proc, phase) = (slot.proc, slot.phase);
                if self.loud {
                    let text = format!("{:12} fibre {id} {:?} {phase:?} asks for {what}", "", slot.purpose);
                    self.tell(text);
                }
                self.fibres.insert(id, slot);
                let mut delay = self.rng.random_range(200..3000);
                let mut answer = Resume::Go;
                let (fails, lies) = self.schedule.errors;
                let roll: f64 = self.rng.random();
                if roll < fails {
                    answer = Resume::Fail(EIO);
                    self.schedule.cover("error", phase);
                } else if roll < fails + lies {
                    answer = Resume::Ambiguous(EIO);
                    self.schedule.cover("ambiguous error", phase);
                }
                for hit in self.schedule.triggered(phase) {
                    match hit {
                        Blow::Slow(us) => delay += us,
                        Blow::Error => answer = Resume::Fail(EIO),
                        Blow::Lie => answer = Resume::Ambiguous(EIO),
                        _ => self.blow(hit, Some((proc, phase))),
                    }
                    if matches!(hit, Blow::Slow(_) | Blow::Error | Blow::Lie) {
                        self.schedule.cover(hit.name(), phase);
                    }
                }
                let node = self.procs[proc].node;
                let until = self.stalled.get(&node).copied().unwrap_or(0).max(self.stalled_all);
                self.at((self.now + delay).max(until + delay), Ev::Go(id, answer));
            }
        }
    }

    fn ended(&mut self, purpose: Purpose, out: Out) {
        match (purpose, out) {
            (Purpose::Order(p, lane), out) => {
                if let Out::Event(event) = out {
                    let delay = self.rng.random_range(10..500);
                    self.after(delay, Ev::ToCore(p, Box::new(event)));
                }
                self.lane_free(p, lane);
            }
            (Purpose::Beat(p, last), Out::Done(ok)) => self.beaten(p, last, ok),
            (Purpose::Journal(p, seq), Out::Done(ok)) => self.journalled(p, seq, ok),
            (Purpose::HandOver(p), _) => self.flushed(p),
            (Purpose::Task(w, attempt), Out::Task(result)) => self.task_ended(w, attempt, result),
            _ => {}
        }
    }

    // ---- workers ------------------------------------------------------------------------------------------

    pub fn spawn_worker(&mut self, p: usize) {
        if self.pilots[p].finishing {
            return;
        }
        let node = if self.rng.random_bool(0.6) {
            self.procs[self.pilots[p].proc].node
        } else {
            self.schedule.node(&mut self.rng)
        };
        let node = if self.healed { self.procs[self.pilots[p].proc].node } else { node };
        let proc = self.spawn_proc(node);
        let w = self.workers.len();
        let fs = SimFs::new(self.tree.clone(), Client { node, beamline: false }, &format!("w{w}"));
        self.workers.push(Worker {
            proc,
            pilot: p,
            fs,
            contexts: BTreeMap::new(),
            queue: VecDeque::new(),
            busy: false,
            silent: false,
            lost: false,
        });
        self.pilots[p].workers.push(w);
        let joined = Event::WorkerJoined {
            worker: WorkerId(w as u32),
            host: format!("n{node}"),
            threads: 4,
            task_memory: 1 << 30,
        };
        self.after(1000, Ev::ToCore(p, Box::new(joined)));
    }

    fn lost(&mut self, w: usize) {
        if std::mem::replace(&mut self.workers[w].lost, true) {
            return;
        }
        let p = self.workers[w].pilot;
        self.step(p, Event::WorkerLost { worker: WorkerId(w as u32), reason: "silent".into() });
        self.after(5 * S, Ev::Respawn(p));
    }

    fn reach_worker(&mut self, w: usize, message: Message) {
        let worker = &mut self.workers[w];
        if worker.silent {
            return;
        }
        match message {
            Message::Job(context) => drop(worker.contexts.insert(JobNo(context.job), *context)),
            Message::Run(attempt, job, task) => worker.queue.push_back((attempt, job, task)),
            Message::Cancel(attempt) => worker.queue.retain(|(a, _, _)| *a != attempt),
        }
        self.next_task(w);
    }

    fn next_task(&mut self, w: usize) {
        let unsynced = self.broken == Some(Broken::PublishBeforeSync);
        let compute_us = self.rng.random_range(S / 20..2 * S);
        let worker = &mut self.workers[w];
        if worker.busy {
            return;
        }
        let Some((attempt, job, task)) = worker.queue.pop_front() else { return };
        let Some(context) = worker.contexts.get(&job).cloned() else { return };
        worker.busy = true;
        let phase = Phase::of_task(task.kind);
        let name = format!("{}p{}", attempt.0, worker.pilot);
        let errand = Errand { fs: worker.fs.clone(), context, task, attempt: name, compute_us, unsynced };
        let proc = worker.proc;
        self.spawn(proc, Purpose::Task(w, attempt), phase, move || Out::Task(errand.run()));
    }

    fn task_ended(&mut self, w: usize, attempt: AttemptNo, result: Result<TaskOutput, Fault>) {
        let p = self.workers[w].pilot;
        self.workers[w].busy = false;
        let delay = if !self.healed && self.rng.random_bool(self.schedule.late) {
            self.schedule.cover("late message", Phase::Idle);
            self.rng.random_range(S..20 * S)
        } else {
            self.rng.random_range(100..2000)
        };
        if !self.workers[w].silent {
            let ended = Event::TaskEnded { worker: WorkerId(w as u32), attempt, result };
            self.after(delay, Ev::ToCore(p, Box::new(ended)));
        }
        self.next_task(w);
    }
}
