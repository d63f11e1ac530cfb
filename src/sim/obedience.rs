//! What a pilot's orders must respect: what people asked for, and scans that kill.
//!
//! Contract: looked at after every step of every core, from the orders alone; the first contradiction is kept in
//! [`World::violation`], and ends the shift.

use super::fibre::EPOCH_MS;
use super::world::{Ev, S, World};
use crate::coordinator::event::*;
use crate::transport::WorkerId;
use rand::Rng;

/// What an executor says in the simulator when its task ends it, or its whole node.
pub const EXECUTOR_DIES: &str = "the executor dies";
pub const PILOT_DIES: &str = "the pilot dies";

impl World {
    pub fn blame(&mut self, why: String) {
        self.violation.get_or_insert(why);
    }

    /// Nothing of a held stream is claimed or assigned, nothing skipped is claimed, no scan after an edit gets the
    /// recipe before it.
    pub fn check_orders(&mut self, p: usize, orders: &[Ordered]) {
        for Ordered { action, .. } in orders {
            let pilot = &self.pilots[p];
            let wrong = match action {
                Action::Record { entry: Entry::Arrived { job, key, .. }, .. } => {
                    let wrong = self.arrived_wrongly(p, key);
                    self.pilots[p].keys.insert(*job, key.clone());
                    wrong
                }
                Action::Claim { key, scan, .. } => {
                    let at = (scan.stream.clone(), scan.name.clone());
                    if pilot.told_held.contains(&scan.stream) {
                        Some(format!("claims {key} of a stream that is held"))
                    } else if pilot.told_skipped.contains(&at) {
                        Some(format!("claims {key}, which nobody wants"))
                    } else {
                        None
                    }
                }
                Action::Assign { job, task, .. } => {
                    let key = pilot.keys.get(&job.0).map_or("", String::as_str);
                    let stream = key.split('.').next().unwrap_or_default();
                    let held = pilot.told_held.contains(stream);
                    held.then(|| format!("assigns {} of {key} although its stream is held", task.label))
                }
                _ => None,
            };
            if let Some(wrong) = wrong {
                let id = self.pilots[p].id.clone();
                self.blame(format!("{id} {wrong}"));
            }
        }
    }

    fn arrived_wrongly(&self, p: usize, key: &str) -> Option<String> {
        let stream = key.split('.').next()?;
        let scan = self.scans.iter().find(|s| s.stream == stream && key[stream.len() + 1..].starts_with(&s.name))?;
        let edited = self.pilots[p].told_edit?;
        let after = EPOCH_MS + scan.written / 1000 >= edited;
        let changed = self.editions.len() > 1 && stream == "t";
        let old = after && changed && key.ends_with(Self::first_digits(stream));
        old.then(|| format!("gives {key} the recipe of before the edit"))
    }

    /// A task ended its executor: the third time it ran alone, and there is no fourth.
    pub fn executor_died(&mut self, w: usize, attempt: AttemptNo, staging: &str, key: &str) {
        let p = self.workers[w].pilot;
        let waiting: Vec<AttemptNo> = self.workers[w].queue.iter().map(|(a, _, _)| *a).collect();
        let claim = format!("{} {staging}", self.pilots[p].id);
        let kills = self.kills.entry(claim.clone()).or_default();
        *kills += 1;
        let kills = *kills;
        // A pilot that stands still hears of it late, and may have given the worker up when it does; of a worker that it
        // has given up it does not hear.
        let late = self.procs[self.pilots[p].proc].paused || self.workers[w].lost;
        let unheard = self.unheard.entry(claim).or_default();
        *unheard += u32::from(late);
        let unheard = *unheard;
        let most = self.killed.entry(key.to_owned()).or_default();
        *most = kills.max(*most);
        if kills > 3 + unheard {
            self.blame(format!("{key} ended {kills} executors of {}", self.pilots[p].id));
        }
        if kills == 3 && unheard == 0 && !waiting.is_empty() {
            self.blame(format!("{key} shared the third executor that it ended with {waiting:?}"));
        }
        self.schedule.cover("scan kills executor", super::faults::Phase::Computing);
        self.restart_executor(w, vec![attempt], waiting);
    }

    /// The executor of a worker is gone, the rank lives: another one starts, and waits for its place in the heartbeat.
    pub fn restart_executor(&mut self, w: usize, running: Vec<AttemptNo>, waiting: Vec<AttemptNo>) {
        let (p, old) = (self.workers[w].pilot, self.workers[w].proc);
        let node = self.procs[old].node;
        self.end_process(old);
        if !self.is_up(p) || self.pilots[p].finishing {
            return;
        }
        let proc = self.spawn_proc(node);
        let worker = &mut self.workers[w];
        worker.proc = proc;
        worker.contexts.clear();
        worker.queue.clear();
        worker.busy = false;
        let worker = WorkerId(w as u32);
        let died = Event::ExecutorDied { worker, reason: "signal 11".into(), running, waiting, culprit: None };
        let delay = self.rng.random_range(100..2000);
        self.after(delay, Ev::ToCore(p, Box::new(died)));
        let delay = self.rng.random_range(S / 10..S);
        self.after(delay, Ev::Hello(w));
    }

    /// A task ended its whole pilot: the fourth time it ran alone, and there is no fifth. Somebody starts another pilot.
    pub fn pilot_died(&mut self, w: usize, key: &str) {
        let p = self.workers[w].pilot;
        if !self.is_up(p) {
            return;
        }
        let deaths = self.deaths.entry(key.to_owned()).or_default();
        *deaths += 1;
        let deaths = *deaths;
        if deaths > 4 {
            self.blame(format!("{key} ended {deaths} pilots"));
        }
        let beside = self.pilots[p].core.in_flight().into_iter().find(|k| *k != key).map(str::to_owned);
        if deaths == 4
            && let Some(other) = beside
        {
            self.blame(format!("{key} did not run alone when it ended its fourth pilot, but beside {other}"));
        }
        self.schedule.cover("scan kills pilot", super::faults::Phase::Computing);
        self.die(self.pilots[p].proc);
        let delay = self.rng.random_range(3 * S..10 * S);
        self.after(delay, Ev::Start);
    }
}
