//! Virtual time, processes, nodes, messages: everything that happens in a simulated shift happens in [`World::run`].
//!
//! Contract: events are taken by time, then by number; all chance comes from the seed. The same seed gives the same
//! events, whose hash is [`World::trace`]. A paused process keeps what is meant for it; a dead one loses it.

use super::executor;
use super::faults::{Blow, Broken, Phase, Schedule};
use super::fibre::*;
use super::people::{self, CAMPAIGNS, Wanted, Wish};
use super::pilot::Pilot;
use super::tree::{Client, Tree};
use crate::campaign::Campaign;
use crate::coordinator::event::*;
use crate::store::Fs;
use crate::store::requests::Request;
use crate::technique::plan::{Fault, JobContext, TaskOutput, TaskSpec};
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
    /// An executor says hello as soon as the heartbeat lists it.
    Hello(usize),
    /// A pilot looks into its inbox.
    Inbox(usize),
    /// Arrivals of a pilot are told to report a scan again.
    Again(usize, usize),
    /// A person asks for something.
    Wish(Box<Request>),
    /// A person edits the campaign.
    Edit,
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
    pub parked: Vec<Ev>,
}

pub struct Worker {
    pub proc: usize,
    pub pilot: usize,
    pub fs: SimFs,
    pub contexts: BTreeMap<JobNo, JobContext>,
    /// What it is busy with: the try, the job's key and staging.
    pub running: Option<(AttemptNo, String, PathBuf)>,
    /// The process of it that the heartbeat lists.
    pub listed: Option<usize>,
    pub queue: VecDeque<(AttemptNo, JobNo, TaskSpec)>,
    pub busy: bool,
    /// Nothing it says arrives any more.
    pub silent: bool,
    pub lost: bool,
}

pub struct SimScan {
    pub stream: &'static str,
    pub path: PathBuf,
    pub name: String,
    pub version: u32,
    pub written: u64,
    pub probe: bool,
}

impl SimScan {
    /// The stream of the n-th scan: two in three are the first one's.
    pub fn stream(n: usize) -> &'static str {
        if n % 3 == 2 { "t" } else { "s" }
    }

    pub fn name(n: usize) -> String {
        format!("{}{n:02}.h5", Self::stream(n))
    }
}

/// What a fibre is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Order(usize, usize),
    Beat(usize, bool),
    Journal(usize, u64),
    Task(usize, AttemptNo),
    HandOver(usize),
    Inbox(usize),
    /// A request, and the process that writes it.
    Wish(usize, usize),
}

pub enum Out {
    Nothing,
    Event(Event),
    Done(bool),
    Task(Result<TaskOutput, Fault>),
}

pub struct Slot {
    pub fibre: Fibre<Out>,
    pub proc: usize,
    pub purpose: Purpose,
    pub phase: Phase,
}

pub struct World {
    pub seed: u64,
    pub rng: ChaCha8Rng,
    pub now: u64,
    pub queue: BTreeMap<(u64, u64), Ev>,
    pub number: u64,
    pub tree: Arc<Mutex<Tree>>,
    pub clocks: Arc<Clocks>,
    pub procs: Vec<Proc>,
    pub pilots: Vec<Pilot>,
    pub workers: Vec<Worker>,
    pub scans: Vec<SimScan>,
    pub fibres: BTreeMap<usize, Slot>,
    pub next_fibre: usize,
    pub schedule: Schedule,
    pub broken: Option<Broken>,
    /// Nodes whose calls wait, and until when.
    pub stalled: BTreeMap<u32, u64>,
    pub stalled_all: u64,
    pub healed: bool,
    pub draining: bool,
    /// What a scan was when it was seen, by the part of its key that names it and its version.
    pub seen: BTreeMap<String, &'static str>,
    pub wishes: Vec<Wish>,
    pub wanted: Wanted,
    /// The campaign's editions, and since when they count.
    pub editions: Vec<(u64, &'static Campaign)>,
    /// Executors that a scan ended, by pilot and staging; the most of one claim, by key; pilots that it ended, by key.
    pub kills: BTreeMap<String, u32>,
    /// Those of which the pilot heard late.
    pub unheard: BTreeMap<String, u32>,
    pub killed: BTreeMap<String, u32>,
    pub deaths: BTreeMap<String, u32>,
    /// Pilots that sleep, by process, until others take this key from them.
    pub dozing: BTreeMap<usize, (String, String)>,
    /// What a core's orders contradict.
    pub violation: Option<String>,
    pub trace: u64,
    pub events: u64,
    pub recent: VecDeque<String>,
    /// Print every event.
    pub loud: bool,
    pub states: BTreeMap<(usize, u32), &'static str>,
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
            seen: BTreeMap::new(),
            wishes: Vec::new(),
            wanted: Wanted::default(),
            editions: vec![(0, &CAMPAIGNS[0])],
            kills: BTreeMap::new(),
            unheard: BTreeMap::new(),
            killed: BTreeMap::new(),
            deaths: BTreeMap::new(),
            dozing: BTreeMap::new(),
            violation: None,
            trace: 0,
            events: 0,
            recent: VecDeque::new(),
            loud: false,
            states: BTreeMap::new(),
        };
        world.lay_out();
        world
    }

    pub fn lay_out(&mut self) {
        let fs = SimFs::new(self.tree.clone(), BEAMLINE, "beamline");
        ["/watch/s", "/watch/t"].iter().for_each(|d| fs.make_dirs(d.as_ref()).expect("an empty tree"));
        let fs = SimFs::new(self.tree.clone(), Client { node: 1001, beamline: false }, "first");
        crate::store::Layout::open(&fs, "/state".as_ref()).expect("an empty tree");
        ["/out/s", "/out/t"].iter().for_each(|d| fs.make_dirs(d.as_ref()).expect("an empty tree"));
        self.want();
        for n in 0..self.schedule.scans {
            let (stream, name) = (SimScan::stream(n), SimScan::name(n));
            let probe = self.rng.random_bool(0.5);
            let path = PathBuf::from("/watch").join(stream).join(&name);
            self.scans.push(SimScan { stream, path, name, version: 0, written: 0, probe });
            let at = self.rng.random_range(0..self.schedule.arrive_s * S);
            let whole = match self.rng.random_bool(0.1) {
                _ if self.schedule.killer == Some(n) => "killer",
                _ if self.schedule.fatal == Some(n) => "fatal",
                true => "bad",
                false => "good",
            };
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
        for (at, request) in people::draw(&mut self.rng, &self.schedule) {
            self.at(at, Ev::Wish(Box::new(request)));
        }
        if self.rng.random_bool(0.3) {
            let at = self.rng.random_range(5 * S..self.schedule.heal);
            self.at(at, Ev::Edit);
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

    pub fn note(&mut self, ev: &Ev) {
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
            Ev::Hello(w) => (18, *w as u64, 0),
            Ev::Inbox(p) => (19, *p as u64, 0),
            Ev::Again(p, s) => (20, *p as u64, *s as u64),
            Ev::Wish(_) => (21, 0, 0),
            Ev::Edit => (22, 0, 0),
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
    pub fn owner(&self, ev: &Ev) -> Option<usize> {
        match ev {
            Ev::Go(fibre, _) => self.fibres.get(fibre).map(|s| s.proc),
            Ev::ToCore(p, _) | Ev::Durable(p, _) | Ev::Beat(p) | Ev::Tick(p) | Ev::Poll(p, _) => {
                Some(self.pilots[*p].proc)
            }
            Ev::Respawn(p) | Ev::Flushed(p) => Some(self.pilots[*p].proc),
            Ev::Inbox(p) | Ev::Again(p, _) => Some(self.pilots[*p].proc),
            Ev::ToWorker(w, _) | Ev::Hello(w) => Some(self.workers[*w].proc),
            Ev::Lost(w) => Some(self.pilots[self.workers[*w].pilot].proc),
            _ => None,
        }
    }

    pub fn happen(&mut self, ev: Ev) {
        match ev {
            Ev::Start => self.start_pilot(),
            Ev::Go(fibre, resume) => self.resume(fibre, resume),
            Ev::ToCore(p, event) => {
                if let Event::WorkerJoined { worker, .. } = &*event {
                    self.heard_again(worker.0 as usize);
                }
                self.step(p, *event);
            }
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
            Ev::Hello(w) => self.hello(w),
            Ev::Inbox(p) => self.look_into_inbox(p),
            Ev::Again(p, scan) => self.again(p, scan),
            Ev::Wish(request) => self.ask_for(*request),
            Ev::Edit => self.edit(),
        }
    }

    // ---- the beamline -------------------------------------------------------------------------------------

    pub fn beamline(&mut self, scan: usize, version: u32, state: &'static str) {
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
}
