//! Processes and fibres: who lives, who stands still, and which filesystem call goes through when.

use super::faults::Blow;
use super::fibre::*;
use super::tree::EIO;
use super::world::*;
use crate::sim::faults::Phase;
use rand::Rng;
use std::sync::PoisonError;

impl World {
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

    pub fn wake(&mut self, proc: usize) {
        let proc = &mut self.procs[proc];
        proc.paused = false;
        // Messages keep their order.
        for ev in std::mem::take(&mut proc.parked) {
            self.after(0, ev);
        }
    }

    pub fn die(&mut self, proc: usize) {
        if !self.end_process(proc) {
            return;
        }
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

    /// It runs no more; false when it did not.
    pub fn end_process(&mut self, proc: usize) -> bool {
        if !std::mem::replace(&mut self.procs[proc].alive, false) {
            return false;
        }
        self.procs[proc].parked.clear();
        self.clocks.dead.lock().unwrap_or_else(PoisonError::into_inner).insert(proc as u32);
        self.fibres.retain(|_, slot| slot.proc != proc);
        true
    }

    /// A pilot stands still before a call, until others have taken this key from it, and wakes beside them.
    pub fn doze(&mut self, p: usize, key: String) {
        let proc = self.pilots[p].proc;
        if self.procs[proc].alive && !self.procs[proc].paused {
            self.procs[proc].paused = true;
            self.dozing.insert(proc, (self.pilots[p].id.clone(), key));
            self.after(150 * S, Ev::Wake(proc));
        }
    }

    /// A key was taken: whoever sleeps over it wakes in a moment.
    pub fn rouse(&mut self, key: &str) {
        let found = self.dozing.iter().find(|(_, (_, of))| of == key).map(|(proc, _)| *proc);
        if let Some(proc) = found {
            self.dozing.remove(&proc);
            let delay = self.rng.random_range(0..60_000);
            self.after(delay, Ev::Wake(proc));
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

    pub fn heal(&mut self) {
        self.healed = true;
        self.stalled.clear();
        self.stalled_all = 0;
        self.fs_tree().full = false;
        self.schedule.errors = (0.0, 0.0);
        self.schedule.pending.clear();
        for proc in 0..self.procs.len() {
            if self.procs[proc].paused && !self.dozing.contains_key(&proc) {
                self.wake(proc);
            }
        }
        self.resume_all();
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

    pub fn resume(&mut self, id: usize, answer: Resume) {
        let Some(mut slot) = self.fibres.remove(&id) else { return };
        let purpose = slot.purpose;
        let result = slot.fibre.resume(answer);
        if let Purpose::Inbox(p) = purpose {
            self.deliver(p);
        }
        match result {
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
                if let Purpose::Order(p, lane) = purpose
                    && self.schedule.dozes(phase, what)
                    && !self.healed
                {
                    self.schedule.cover("pause between look and rename", phase);
                    self.doze(p, self.pilots[p].lane_key[lane].clone());
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

    pub fn ended(&mut self, purpose: Purpose, out: Out) {
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
            (Purpose::Inbox(p), _) => self.pilots[p].looking = false,
            (Purpose::Wish(n, proc), _) => self.asked(n, proc),
            (Purpose::Task(w, attempt), Out::Task(result)) => self.task_ended(w, attempt, result),
            _ => {}
        }
    }
}
