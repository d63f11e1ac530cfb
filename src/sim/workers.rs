//! Simulated workers: queues, messages, and executors that run one task at a time.

use super::executor::Errand;
use super::faults::{Broken, Phase};
use super::fibre::SimFs;
use super::obedience::{EXECUTOR_DIES, PILOT_DIES};
use super::tree::Client;
use super::world::*;
use crate::coordinator::event::*;
use crate::technique::plan::{Fault, TaskOutput};
use crate::transport::WorkerId;
use rand::Rng;
use std::collections::{BTreeMap, VecDeque};

impl World {
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
            running: None,
            listed: None,
            queue: VecDeque::new(),
            busy: false,
            silent: false,
            lost: false,
        });
        self.pilots[p].workers.push(w);
        self.after(1000, Ev::Hello(w));
    }

    /// An executor may write only when the next pilot could prove it dead: it waits for its place in the heartbeat.
    pub fn hello(&mut self, w: usize) {
        let worker = &self.workers[w];
        if worker.lost {
            return;
        }
        if worker.listed != Some(worker.proc) {
            return self.after(S / 5, Ev::Hello(w));
        }
        let (p, node) = (worker.pilot, self.procs[worker.proc].node);
        let joined = Event::WorkerJoined {
            worker: WorkerId(w as u32),
            host: format!("n{node}"),
            threads: 4,
            task_memory: 1 << 30,
        };
        if !self.workers[w].silent {
            self.after(1000, Ev::ToCore(p, Box::new(joined)));
        }
    }

    /// A pilot that stood still may give a worker up and then read the hello that it sent before: it takes it back, and
    /// gives it up again when nothing more comes.
    pub fn heard_again(&mut self, w: usize) {
        let worker = &mut self.workers[w];
        if std::mem::take(&mut worker.lost) && (worker.silent || !self.procs[worker.proc].alive) {
            self.after(60 * S, Ev::Lost(w));
        }
    }

    pub fn lost(&mut self, w: usize) {
        if std::mem::replace(&mut self.workers[w].lost, true) {
            return;
        }
        let p = self.workers[w].pilot;
        self.step(p, Event::WorkerLost { worker: WorkerId(w as u32), reason: "silent".into() });
        self.after(5 * S, Ev::Respawn(p));
    }

    pub fn reach_worker(&mut self, w: usize, message: Message) {
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

    pub fn next_task(&mut self, w: usize) {
        let unsynced = self.broken == Some(Broken::PublishBeforeSync);
        let compute_us = self.rng.random_range(S / 20..2 * S);
        let worker = &mut self.workers[w];
        if worker.busy {
            return;
        }
        let Some((attempt, job, task)) = worker.queue.pop_front() else { return };
        let Some(context) = worker.contexts.get(&job).cloned() else { return };
        worker.busy = true;
        worker.running = Some((attempt, context.key.clone(), context.staging.clone()));
        let phase = Phase::of_task(task.kind);
        let name = format!("{}p{}", attempt.0, worker.pilot);
        let errand = Errand { fs: worker.fs.clone(), context, task, attempt: name, compute_us, unsynced };
        let proc = worker.proc;
        self.spawn(proc, Purpose::Task(w, attempt), phase, move || Out::Task(errand.run()));
    }

    pub fn task_ended(&mut self, w: usize, attempt: AttemptNo, result: Result<TaskOutput, Fault>) {
        let p = self.workers[w].pilot;
        self.workers[w].busy = false;
        if let Some((_, key, staging)) = self.workers[w].running.take()
            && let Err(Fault::Task(why)) = &result
        {
            match why.as_str() {
                EXECUTOR_DIES => return self.executor_died(w, attempt, &staging.display().to_string(), &key),
                PILOT_DIES => return self.pilot_died(w, &key),
                _ => {}
            }
        }
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
