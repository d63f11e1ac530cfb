//! A simulated pilot: the core, obeyed as [`crate::coordinator::driver`] does, the disk lanes as
//! [`crate::coordinator::lanes`] has them, the journal's and the heartbeat's loops, and arrivals that look at stamps.

use super::faults::{Broken, Phase};
use super::fibre::{EPOCH_MS, SimFs, SimHost};
use super::tree::Client;
use super::world::{Ev, Message, Out, Purpose, S, World};
use crate::arrivals::ArrivalCommand;
use crate::coordinator::core::{Core, Limits};
use crate::coordinator::disk::{Disk, StreamPlace};
use crate::coordinator::driver::{self, Mailbox};
use crate::coordinator::event::*;
use crate::coordinator::pilot::inbox::Inbox;
use crate::coordinator::pilot::{known, specs};
use crate::store::Layout;
use crate::store::claims::Identity;
use crate::store::journal::{Group, Line, Writer};
use crossbeam::channel::{Receiver, unbounded};
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

/// In which phase an order is carried out.
fn phase_of(order: &Waiting) -> Phase {
    match order {
        Some(Action::Claim { .. }) => Phase::Claiming,
        Some(Action::Publish { .. }) => Phase::Publishing,
        Some(Action::Quarantine { .. }) => Phase::Recording,
        Some(Action::SavePlan { .. }) => Phase::Planned,
        Some(Action::Release { .. }) => Phase::Releasing,
        Some(Action::ProbeStorage) => Phase::Probing,
        _ => Phase::Sweeping,
    }
}

/// `None` sweeps.
pub type Waiting = Option<Action>;

pub struct Pilot {
    pub id: String,
    pub proc: usize,
    pub core: Core,
    pub disk: Arc<Disk>,
    pub host: Arc<SimHost>,
    pub journal: Option<Arc<Mutex<Writer>>>,
    pub lines: Vec<Line>,
    pub group: Arc<Group>,
    pub journal_busy: bool,
    pub durable: u64,
    pub held: Vec<Ordered>,
    pub lanes: [VecDeque<Waiting>; 4],
    pub lane_busy: [bool; 4],
    /// The keys that lanes are busy with.
    pub lane_key: [String; 4],
    pub inbox: Arc<Mutex<Inbox>>,
    pub letters: driver::Inbox,
    pub commands: Receiver<ArrivalCommand>,
    /// Somebody looks into the inbox.
    pub looking: bool,
    /// The edition of the campaign that it follows.
    pub edition: usize,
    /// What its core was told.
    pub told_held: BTreeSet<String>,
    pub told_skipped: BTreeSet<(String, String)>,
    pub told_edit: Option<u64>,
    /// Its jobs' keys.
    pub keys: BTreeMap<u64, String>,
    /// Workers in the heartbeat that is being written, with their processes.
    pub listing: Vec<(usize, usize)>,
    pub workers: Vec<usize>,
    pub beats: u64,
    pub beating: bool,
    pub no_beat_until: u64,
    pub ends_ms: Option<u64>,
    /// Scans that were announced, with their stamp's change time.
    pub known: BTreeMap<usize, i64>,
    pub tick_at: u64,
    pub finishing: bool,
    /// Its claims were handed over, or are being.
    pub handed_over: bool,
}

/// Others' jobs are asked for less often than in a real pilot: it is the same code, and two thirds of all calls.
fn limits() -> Limits {
    Limits { foreign_retry_s: 4.0, ..Limits::default() }
}

const LAYOUT: &str = "/state";
/// Journals here are short, and compacted all the same.
const COMPACT: u64 = 2048;

impl World {
    pub fn is_up(&self, p: usize) -> bool {
        self.procs[self.pilots[p].proc].alive
    }

    pub fn start_pilot(&mut self) {
        if self.draining {
            return;
        }
        let node = if self.healed { 99 } else { self.schedule.node(&mut self.rng) };
        let proc = self.spawn_proc(node);
        let p = self.pilots.len();
        let id = format!("p{proc}");
        let mut fs = SimFs::new(self.tree.clone(), Client { node, beamline: false }, &id);
        fs.broken = self.broken;
        let skew: i64 = if self.rng.random_bool(0.5) { 0 } else { self.rng.random_range(-90_000..90_000) };
        let host = Arc::new(SimHost {
            clocks: self.clocks.clone(),
            skew_ms: (skew as u64).into(),
            name: format!("n{node}"),
            omniscient: false,
            broken: self.broken,
            tree: self.tree.clone(),
        });
        let me = Identity {
            pilot: id.clone(),
            host: host.name.clone(),
            boot: "boot".into(),
            pid: proc as u32,
            pid_start: 1,
            build: crate::BUILD.into(),
            launch: None,
        };
        let layout = Layout { state: LAYOUT.into() };
        let place =
            |s: &str| (s.to_owned(), StreamPlace { output: format!("/out/{s}").into(), pattern: "*.h5".into() });
        let streams = [place("s"), place("t")].into();
        let disk = Arc::new(Disk::new(Arc::new(fs.clone()), host.clone(), layout.clone(), me, streams));
        let edition = self.editions.len() - 1;
        // The editions of the shift, as the pilots beside it have them.
        let campaign = self.editions[0].1;
        let later = self.editions[1..].iter().map(|(since, c)| (*since, (*c).clone())).collect();
        let specs = specs(campaign).expect("a valid campaign");
        let ((mailbox, letters), (tell, commands)) = (Mailbox::new(), unbounded());
        let mut inbox = Inbox::new(disk.clone(), (campaign.clone(), later), mailbox, tell);
        inbox.look(true);
        // Outside a fibre nothing fails: a pilot that cannot open its journal does not start.
        let journal = Writer::open(Arc::new(fs.clone()), layout.journal(&id), EPOCH_MS).ok();
        let journal = journal.map(|w| Arc::new(Mutex::new(w.worth(COMPACT))));
        self.pilots.push(Pilot {
            id,
            proc,
            core: Core::new("campaign", specs, limits()),
            disk,
            host,
            journal,
            lines: Vec::new(),
            group: Arc::default(),
            journal_busy: false,
            durable: 0,
            held: Vec::new(),
            lanes: Default::default(),
            lane_busy: [false; 4],
            lane_key: Default::default(),
            inbox: Arc::new(Mutex::new(inbox)),
            letters,
            commands,
            looking: false,
            edition,
            told_held: BTreeSet::new(),
            told_skipped: BTreeSet::new(),
            told_edit: None,
            keys: BTreeMap::new(),
            listing: Vec::new(),
            workers: Vec::new(),
            beats: 0,
            beating: false,
            no_beat_until: 0,
            ends_ms: None,
            known: BTreeMap::new(),
            tick_at: u64::MAX,
            finishing: false,
            handed_over: false,
        });
        if self.pilots[p].journal.is_none() {
            // A full disk: it ends at once and another is started later.
            self.die(proc);
            return self.after(10 * S, Ev::Start);
        }
        let done = known(&fs, &Layout { state: LAYOUT.into() }).unwrap_or_default();
        for scan in 0..self.scans.len() {
            let Ok(stamp) = self.fs_tree().stat(&self.scans[scan].path) else { continue };
            let now = self.scan_now(scan);
            if done.iter().any(|k| k.name == now.name && k.version == now.version()) {
                self.pilots[p].known.insert(scan, stamp.ctime_ns);
            }
        }
        self.deliver(p);
        self.after(2 * S, Ev::Inbox(p));
        self.queue_order(p, 0, None);
        for _ in 0..3 {
            self.spawn_worker(p);
        }
        for scan in 0..self.scans.len() {
            let delay = self.rng.random_range(S / 10..4 * S);
            self.after(delay, Ev::Poll(p, scan));
        }
        let delay = self.rng.random_range(0..S / 2);
        self.after(delay, Ev::Beat(p));
    }

    // ---- the driver ---------------------------------------------------------------------------------------

    pub fn step(&mut self, p: usize, event: Event) {
        let pilot = &mut self.pilots[p];
        if pilot.finishing {
            return;
        }
        let event = match (self.broken, event) {
            (Some(Broken::RetryCountedOnPilotEnd), Event::Claimed { job, outcome }) => {
                Event::Claimed { job, outcome: count_every_owner(outcome) }
            }
            (_, event) => event,
        };
        let now = Time(EPOCH_MS * 1000 + self.now);
        let mut out = Vec::new();
        self.note_wish(p, &event);
        let pilot = &mut self.pilots[p];
        pilot.core.step(now, event, &mut out);
        pilot.core.check_invariants();
        self.check_orders(p, &out);
        let pilot = &mut self.pilots[p];
        pilot.held.append(&mut out);
        self.perform(p);
        let next = self.pilots[p].core.next_deadline().map_or(u64::MAX, |t| t.0.saturating_sub(EPOCH_MS * 1000));
        if next < self.pilots[p].tick_at || self.pilots[p].tick_at <= self.now {
            self.pilots[p].tick_at = next;
            if next != u64::MAX {
                self.at(next + 1, Ev::Tick(p));
            }
        }
    }

    pub fn tick(&mut self, p: usize) {
        self.pilots[p].tick_at = 0;
        self.step(p, Event::Tick);
    }

    pub fn durable(&mut self, p: usize, seq: u64) {
        self.pilots[p].durable = seq;
        self.perform(p);
    }

    pub fn perform(&mut self, p: usize) {
        let durable = self.pilots[p].durable;
        for order in std::mem::take(&mut self.pilots[p].held) {
            if order.after.is_some_and(|seq| seq > durable) {
                self.pilots[p].held.push(order);
            } else {
                self.carry_out(p, order.action);
            }
        }
    }

    pub fn carry_out(&mut self, p: usize, action: Action) {
        let delay = self.rng.random_range(100..1500);
        match action {
            Action::Record { seq, entry } => {
                let t_ms = EPOCH_MS + self.now / 1000;
                self.pilots[p].lines.push(Line { seq, t_ms, event: entry });
                self.write_journal(p);
            }
            Action::Context { worker, context } => {
                self.send(p, worker.0 as usize, Message::Job(context));
            }
            Action::Assign { worker, attempt, job, task } => {
                self.send(p, worker.0 as usize, Message::Run(attempt, job, task));
            }
            Action::Cancel { worker, attempt } => self.send(p, worker.0 as usize, Message::Cancel(attempt)),
            Action::Tell { name, verdict, .. } => {
                let scan = self.scans.iter().position(|s| s.name == name).expect("a scan of this shift");
                if verdict != Verdict::Done {
                    self.pilots[p].known.remove(&scan);
                    self.after(2 * S + delay, Ev::Poll(p, scan));
                }
            }
            Action::Finished => {
                self.pilots[p].finishing = true;
                // What is finished follows when the lanes are flushed, at most two seconds later.
                self.after(2 * S, Ev::Flushed(p));
                self.flush_if_idle(p);
            }
            Action::Forget { .. } | Action::Alarm { .. } => {}
            action => {
                let lane = crc32fast::hash(key_of(&action).as_bytes()) as usize % 4;
                self.queue_order(p, lane, Some(action));
            }
        }
    }

    /// Messages of one pilot to one worker keep their order.
    pub fn send(&mut self, p: usize, worker: usize, message: Message) {
        debug_assert_eq!(self.workers[worker].pilot, p);
        self.after(500, Ev::ToWorker(worker, message));
    }

    // ---- lanes --------------------------------------------------------------------------------------------

    pub fn queue_order(&mut self, p: usize, lane: usize, order: Waiting) {
        self.pilots[p].lanes[lane].push_back(order);
        self.start_lane(p, lane);
    }

    pub fn lane_free(&mut self, p: usize, lane: usize) {
        self.pilots[p].lane_busy[lane] = false;
        self.start_lane(p, lane);
        self.flush_if_idle(p);
    }

    pub fn start_lane(&mut self, p: usize, lane: usize) {
        let pilot = &mut self.pilots[p];
        if pilot.lane_busy[lane] {
            return;
        }
        let Some(order) = pilot.lanes[lane].pop_front() else { return };
        pilot.lane_busy[lane] = true;
        pilot.lane_key[lane] = order.as_ref().map_or("", key_of).to_owned();
        let (disk, proc) = (pilot.disk.clone(), pilot.proc);
        let phase = phase_of(&order);
        self.spawn(proc, Purpose::Order(p, lane), phase, move || obey(&disk, order));
    }

    pub fn flush_if_idle(&mut self, p: usize) {
        let pilot = &self.pilots[p];
        let idle = pilot.lanes.iter().all(VecDeque::is_empty) && pilot.lane_busy == [false; 4];
        if pilot.finishing && idle {
            self.after(0, Ev::Flushed(p));
        }
    }

    /// The end in good order: executors first, then the heartbeat that says goodbye, then the process.
    pub fn flushed(&mut self, p: usize) {
        for w in self.pilots[p].workers.clone() {
            self.die(self.workers[w].proc);
        }
        let pilot = &mut self.pilots[p];
        let held = pilot.core.held();
        if !std::mem::replace(&mut pilot.handed_over, true) && !held.is_empty() {
            let (disk, proc) = (pilot.disk.clone(), pilot.proc);
            return self.spawn(proc, Purpose::HandOver(p), Phase::Releasing, move || {
                held.iter().for_each(|(key, generation)| disk.hand_over(key, *generation));
                Out::Nothing
            });
        }
        if !std::mem::replace(&mut self.pilots[p].beating, true) {
            self.spawn_beat(p, true);
        } else {
            self.after(S / 10, Ev::Flushed(p));
        }
    }
}

fn key_of(action: &Action) -> &str {
    match action {
        Action::Claim { key, .. }
        | Action::Publish { key, .. }
        | Action::Quarantine { key, .. }
        | Action::SavePlan { key, .. }
        | Action::Release { key, .. } => key,
        _ => "",
    }
}

/// Broken on purpose: every earlier owner counts as a death.
fn count_every_owner(outcome: ClaimOutcome) -> ClaimOutcome {
    match outcome {
        ClaimOutcome::Won { generation, staging, adopted, .. } => {
            ClaimOutcome::Won { generation, staging, deaths: 2 * (generation - 1), adopted }
        }
        other => other,
    }
}

fn obey(disk: &Disk, order: Waiting) -> Out {
    Out::Event(match order {
        None => {
            disk.sweep(false);
            return Out::Nothing;
        }
        Some(Action::Claim { job, key, scan }) => Event::Claimed { job, outcome: disk.claim(&key, &scan) },
        Some(Action::Publish { job, key, scan, generation, staging, timeline, items }) => {
            Event::Published { job, outcome: disk.publish(&key, &scan, generation, &staging, timeline, items) }
        }
        Some(Action::Quarantine { job, key, stream, name, version, own_version, generation, reason, .. }) => {
            let versions = (version, own_version);
            Event::Quarantined { job, outcome: disk.quarantine(&key, &stream, &name, versions, generation, &reason) }
        }
        Some(Action::ProbeStorage) => Event::StorageProbed { result: disk.probe() },
        Some(Action::SavePlan { key, staging, plan }) => {
            disk.save_plan(&key, &staging, &plan);
            return Out::Nothing;
        }
        Some(Action::Release { key, generation, staging }) => {
            let result = disk.release(&key, generation, &staging);
            Event::GivenBack { key, result }
        }
        Some(other) => unreachable!("no order for the disk: {other:?}"),
    })
}
