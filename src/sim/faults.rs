//! What goes wrong in a shift, drawn from its seed: at a moment, or at the n-th call somebody makes in a phase.
//!
//! Contract: at most [`DEADLY`] faults of a shift can look like a death; so a good scan must never reach the limit of
//! four unexplained deaths, whoever is blamed.

use super::fibre::EPOCH_MS;
use super::world::{Ev, S, World};
use crate::coordinator::event::Event;
use crate::technique::plan::TaskKind;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// What somebody is doing when a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Idle,
    Claiming,
    Planned,
    Publishing,
    Recording,
    Releasing,
    Sweeping,
    Probing,
    Journalling,
    Beating,
    Checking,
    Planning,
    Computing,
    Finishing,
    /// People ask, pilots look.
    Asking,
}

impl Phase {
    pub fn of_task(kind: TaskKind) -> Self {
        match kind {
            TaskKind::Probe | TaskKind::Verify => Self::Checking,
            TaskKind::Plan => Self::Planning,
            TaskKind::Finish => Self::Finishing,
            _ => Self::Computing,
        }
    }
}

/// Promises broken on purpose, to see whether the simulator notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Broken {
    PublishBeforeSync,
    TakeoverWithoutFencing,
    LeaseByRemoteClock,
    RetryCountedOnPilotEnd,
    AdoptPartsOfLiveWriter,
    LinkReplaces,
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Blow {
    Kill,
    Pause(u64),
    NodeLoss,
    Drain,
    Walltime,
    Crash,
    /// An executor ends, its rank lives.
    Abort,
    Hang(u64),
    Silence,
    Stall(u64),
    StallAll(u64),
    Full(u64),
    Jump(i64),
    NoBeat(u64),
    Slow(u64),
    Error,
    Lie,
    Room,
}

impl Blow {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause(us) if us > 60 * S => "pause beyond lease",
            Self::Pause(_) => "pause",
            Self::NodeLoss => "node loss",
            Self::Drain => "drain",
            Self::Walltime => "walltime",
            Self::Crash => "worker lost",
            Self::Abort => "executor crash",
            Self::Hang(_) => "executor hang",
            Self::Silence => "lost messages",
            Self::Stall(_) => "client stall",
            Self::StallAll(_) => "stall of all",
            Self::Full(_) => "full disk",
            Self::Jump(_) => "clock jump",
            Self::NoBeat(_) => "heartbeat pause",
            Self::Slow(_) => "one slow call",
            Self::Error => "error",
            Self::Lie => "ambiguous error",
            Self::Room => "room again",
        }
    }
}

/// Faults of a shift that may look like a death.
const DEADLY: usize = 3;

/// A shift's faults and sizes.
#[derive(Debug)]
pub struct Schedule {
    pub scans: usize,
    pub arrive_s: u64,
    pub starts: Vec<u64>,
    pub timed: Vec<(u64, Blow)>,
    /// Phase, calls to let pass, and what then happens.
    pub pending: Vec<(Phase, u32, Blow)>,
    pub rewrites: Vec<(usize, u64)>,
    pub heal: u64,
    /// Chance of an error without and with effect, per call.
    pub errors: (f64, f64),
    /// Chance that a result comes late.
    pub late: f64,
    /// Arrivals take a scan for complete too early.
    pub premature: f64,
    pub nodes: u32,
    /// A scan that ends the executors that compute it, and one that ends their whole pilot.
    pub killer: Option<usize>,
    pub fatal: Option<usize>,
    /// Renames of publications to let pass before a pilot stands still at one until others have taken its job.
    pub doze: Option<u32>,
    pub coverage: BTreeMap<(&'static str, Phase), u64>,
}

impl Schedule {
    pub fn draw(rng: &mut ChaCha8Rng) -> Self {
        let heal_s = rng.random_range(60..150);
        let mut schedule = Self {
            scans: 20,
            arrive_s: rng.random_range(10..60),
            starts: vec![0, rng.random_range(0..40 * S), rng.random_range(0..80 * S)],
            timed: Vec::new(),
            pending: Vec::new(),
            rewrites: Vec::new(),
            heal: heal_s * S,
            errors: *[(0.0, 0.0), (0.001, 0.001), (0.0, 0.002), (0.01, 0.005)].choose(rng).expect("some"),
            late: *[0.0, 0.02, 0.1].choose(rng).expect("some"),
            premature: *[0.0, 0.0, 0.3].choose(rng).expect("some"),
            nodes: rng.random_range(2..5),
            killer: rng.random_bool(0.3).then(|| rng.random_range(0..20)),
            fatal: rng.random_bool(0.15).then(|| rng.random_range(0..20)),
            doze: None,
            coverage: BTreeMap::new(),
        };
        for _ in 0..rng.random_range(0..4) {
            schedule.rewrites.push((rng.random_range(0..20), rng.random_range(10 * S..heal_s * S)));
        }
        // A scan that ends pilots needs all the deaths that a good one may share.
        let gentle = schedule.fatal.is_some();
        if !gentle && rng.random_bool(0.3) {
            schedule.doze = Some(rng.random_range(0..20));
        }
        let deadly = if gentle { 0 } else { DEADLY - usize::from(schedule.doze.is_some()) };
        for n in 0..rng.random_range(0..=deadly) {
            schedule.place(rng, |rng| match rng.random_range(0..11) {
                // Three crashes of one task would condemn its scan, with reason.
                10 if n < 2 => Blow::Abort,
                0..3 => Blow::Kill,
                3..5 => Blow::Pause(rng.random_range(61 * S..100 * S)),
                5 => Blow::NodeLoss,
                6 => Blow::Crash,
                7 => Blow::Hang(rng.random_range(61 * S..90 * S)),
                8 => Blow::Silence,
                _ => Blow::NoBeat(rng.random_range(20 * S..90 * S)),
            });
        }
        for _ in 0..rng.random_range(1..8) {
            let long = if gentle { 8 } else { 40 };
            schedule.place(rng, |rng| match rng.random_range(0..13) {
                2 if gentle => Blow::Drain,
                0 => Blow::Pause(rng.random_range(S / 10..long * S)),
                1 => Blow::Drain,
                2 => Blow::Walltime,
                3 => Blow::Hang(rng.random_range(S..50 * S)),
                4 => Blow::Stall(rng.random_range(S..long * S)),
                5 => Blow::StallAll(rng.random_range(S..long * S)),
                6 => Blow::Full(rng.random_range(S..long * S)),
                7 => Blow::Jump(rng.random_range(-100_000..100_000)),
                8 => Blow::Slow(rng.random_range(S..long * S)),
                9 | 10 => Blow::Error,
                _ => Blow::Lie,
            });
        }
        if gentle {
            // Whose goodbye meets a full or stalled disk looks dead.
            schedule.pending.retain(|(_, _, blow)| *blow != Blow::Drain);
            schedule.timed.retain(|(_, blow)| *blow != Blow::Drain);
        }
        schedule
    }

    fn place(&mut self, rng: &mut ChaCha8Rng, draw: impl Fn(&mut ChaCha8Rng) -> Blow) {
        use Phase::*;
        let blow = draw(rng);
        let needs_call = matches!(blow, Blow::Slow(_) | Blow::Error | Blow::Lie);
        if needs_call || rng.random_bool(0.7) {
            let phases = [
                (Claiming, 60),
                (Planned, 12),
                (Publishing, 40),
                (Publishing, 200),
                (Recording, 6),
                (Releasing, 8),
                (Sweeping, 4),
                (Journalling, 60),
                (Beating, 150),
                (Checking, 30),
                (Planning, 40),
                (Computing, 150),
                (Finishing, 100),
                (Finishing, 300),
                (Asking, 60),
            ];
            let (phase, most) = *phases.choose(rng).expect("some");
            self.pending.push((phase, rng.random_range(0..most), blow));
        } else {
            self.timed.push((rng.random_range(0..self.heal), blow));
        }
    }

    pub fn node(&self, rng: &mut ChaCha8Rng) -> u32 {
        rng.random_range(0..self.nodes)
    }

    pub fn cover(&mut self, what: &'static str, phase: Phase) {
        *self.coverage.entry((what, phase)).or_default() += 1;
    }

    /// True when the pilot that makes this call shall stand still before it.
    pub fn dozes(&mut self, phase: Phase, call: &str) -> bool {
        if phase != Phase::Publishing || call != "rename" {
            return false;
        }
        match self.doze {
            Some(0) => self.doze.take().is_some(),
            Some(n) => {
                self.doze = Some(n - 1);
                false
            }
            None => false,
        }
    }

    /// A call is made in this phase: what strikes now.
    pub fn triggered(&mut self, phase: Phase) -> Vec<Blow> {
        let mut now = Vec::new();
        self.pending.retain_mut(|(at, left, blow)| {
            if *at != phase {
                return true;
            }
            if *left == 0 {
                now.push(*blow);
                return false;
            }
            *left -= 1;
            true
        });
        now
    }
}

impl World {
    /// A fault strikes the one that makes a call, or anybody.
    pub fn blow(&mut self, blow: Blow, at: Option<(usize, Phase)>) {
        if self.healed {
            if blow == Blow::Room {
                self.fs_tree().full = false;
            }
            return;
        }
        let phase = at.map_or(Phase::Idle, |(_, phase)| phase);
        let worker_at = at.and_then(|(proc, _)| self.workers.iter().position(|w| w.proc == proc));
        let pilot = match (worker_at, at) {
            (Some(w), _) => Some(self.workers[w].pilot),
            (None, Some((proc, _))) => self.pilots.iter().position(|p| p.proc == proc),
            _ => {
                let alive: Vec<usize> = (0..self.pilots.len()).filter(|p| self.is_up(*p)).collect();
                alive.choose(&mut self.rng).copied()
            }
        };
        let Some(p) = pilot.filter(|p| self.is_up(*p)) else { return };
        let alive: Vec<usize> =
            self.pilots[p].workers.iter().copied().filter(|w| self.procs[self.workers[*w].proc].alive).collect();
        let worker = worker_at.or_else(|| alive.choose(&mut self.rng).copied());
        let node = self.procs[self.pilots[p].proc].node;
        self.schedule.cover(blow.name(), phase);
        match blow {
            Blow::Kill => self.die(self.pilots[p].proc),
            Blow::Pause(us) => {
                self.pause(self.pilots[p].proc, us);
                // Often the whole node stands still.
                if self.rng.random_bool(0.5) {
                    for proc in 0..self.procs.len() {
                        if self.procs[proc].node == node && self.workers.iter().any(|w| w.proc == proc && w.pilot == p)
                        {
                            self.pause(proc, us);
                        }
                    }
                }
            }
            Blow::NodeLoss => {
                let node = at.map_or(node, |(proc, _)| self.procs[proc].node);
                self.lose_node(node);
            }
            Blow::Drain => self.after(0, Ev::ToCore(p, Box::new(Event::Drain))),
            Blow::Walltime => {
                self.pilots[p].ends_ms = Some(EPOCH_MS + self.now / 1000 + 10_000);
                self.after(0, Ev::ToCore(p, Box::new(Event::Stop)));
                self.after(10 * S, Ev::Die(self.pilots[p].proc));
            }
            Blow::Crash => worker.into_iter().for_each(|w| self.die(self.workers[w].proc)),
            Blow::Abort => {
                if let Some(w) = worker.filter(|w| !self.workers[*w].lost && !self.workers[*w].silent) {
                    let running = self.workers[w].running.take().map(|(a, ..)| a).into_iter().collect();
                    let waiting = self.workers[w].queue.iter().map(|(a, _, _)| *a).collect();
                    self.restart_executor(w, running, waiting);
                }
            }
            Blow::Hang(us) => {
                if let Some(w) = worker {
                    self.pause(self.workers[w].proc, us);
                    if us > 60 * S {
                        self.after(60 * S, Ev::Lost(w));
                    }
                }
            }
            Blow::Silence => {
                if let Some(w) = worker {
                    self.workers[w].silent = true;
                    self.after(60 * S, Ev::Lost(w));
                }
            }
            Blow::Stall(us) => self.stall(Some(node), us),
            Blow::StallAll(us) => self.stall(None, us),
            Blow::Full(us) => {
                self.fs_tree().full = true;
                self.after(us, Ev::Blow(Blow::Room));
            }
            Blow::Room => self.fs_tree().full = false,
            Blow::Jump(ms) => {
                let _ = self.pilots[p].host.skew_ms.fetch_add(ms as u64, Ordering::Relaxed);
            }
            Blow::NoBeat(us) => self.pilots[p].no_beat_until = self.now + us,
            Blow::Slow(_) | Blow::Error | Blow::Lie => {}
        }
    }
}

/// Faults that must have struck in these phases over a run of the tests, or the run shows less than it says.
pub const MUST: [(&str, Phase); 24] = [
    ("kill", Phase::Claiming),
    ("kill", Phase::Publishing),
    ("kill", Phase::Computing),
    ("kill", Phase::Finishing),
    ("kill", Phase::Journalling),
    ("pause beyond lease", Phase::Claiming),
    ("pause beyond lease", Phase::Publishing),
    ("pause beyond lease", Phase::Finishing),
    ("node loss", Phase::Publishing),
    ("node loss", Phase::Computing),
    ("ambiguous error", Phase::Claiming),
    ("ambiguous error", Phase::Publishing),
    ("ambiguous error", Phase::Beating),
    ("error", Phase::Publishing),
    ("full disk", Phase::Finishing),
    ("walltime", Phase::Computing),
    ("drain", Phase::Publishing),
    ("executor hang", Phase::Finishing),
    ("executor crash", Phase::Computing),
    ("kill", Phase::Asking),
    ("ambiguous error", Phase::Asking),
    ("pause between look and rename", Phase::Publishing),
    ("scan kills executor", Phase::Computing),
    ("scan kills pilot", Phase::Computing),
];
