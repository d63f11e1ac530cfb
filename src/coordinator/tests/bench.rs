//! A bench to put the core on: virtual time, instant disk, actions kept until a test takes them.

use crate::arrivals::scan::{FileStamp, Scan};
use crate::coordinator::core::{Core, Limits, StreamSpec};
use crate::coordinator::event::*;
use crate::coordinator::queue::Order;
use crate::technique::plan::*;
use crate::transport::WorkerId;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

pub fn stream(name: &str) -> StreamSpec {
    StreamSpec {
        name: name.into(),
        technique: "test".into(),
        recipe: "{}".into(),
        deadline_s: 600.0,
        order: Order::Deadline,
        weight: 1,
        task_limit_s: 900.0,
    }
}

pub fn scan(stream: &str, name: &str, version: u64, at_s: u64) -> Scan {
    let stamp = FileStamp { path: name.into(), size: 1000, mtime_ns: 0, ctime_ns: version as i64, inode: 1 };
    Scan {
        stream: stream.into(),
        name: name.into(),
        root: "/watch".into(),
        members: vec![stamp],
        roles: BTreeMap::new(),
        last_byte_ms: at_s * 1000,
        complete_ms: at_s * 1000 + 500,
        ..Scan::default()
    }
}

pub fn task(label: &str, kind: TaskKind) -> TaskSpec {
    TaskSpec { label: label.into(), kind, params: vec![], cost: 1.0, bytes_in: 0 }
}

/// A plan with a preview and stages of these many tasks.
pub fn plan(stages: &[usize]) -> Plan {
    let stage = |(i, n): (usize, &usize)| Stage {
        name: format!("stage{i}"),
        tasks: (0..*n).map(|t| task(&format!("s{i}-{t}"), TaskKind::Stage)).collect(),
        decide: None,
    };
    Plan {
        preview: Some(task("preview", TaskKind::Preview)),
        stages: stages.iter().enumerate().map(stage).collect(),
        finish: task("finish", TaskKind::Finish),
        items: 8,
        unit: "slices".into(),
        linked: Vec::new(),
        scratch: false,
    }
}

pub struct Bench {
    pub core: Core,
    pub now: Time,
    /// Actions not yet looked at, in order.
    pub actions: VecDeque<Action>,
    /// Assignments not yet answered: worker, attempt, job, task.
    pub assigned: Vec<(WorkerId, AttemptNo, JobNo, TaskSpec)>,
    pub plan: Plan,
    pub published: Vec<String>,
    pub quarantined: Vec<(String, String)>,
    pub released: usize,
    pub told: Vec<(String, Verdict)>,
    pub alarms: Vec<String>,
    /// Where the last context of a job told a worker to leave scratch.
    pub scratch: BTreeMap<(WorkerId, JobNo), Option<PathBuf>>,
    pub finished: bool,
    /// Answer claims, publications and quarantine orders at once with success.
    pub instant_disk: bool,
}

impl Bench {
    pub fn new(streams: Vec<StreamSpec>) -> Self {
        Self {
            core: Core::new("campaign", streams, Limits::default()),
            now: Time::from_ms(1_000_000),
            actions: VecDeque::new(),
            assigned: Vec::new(),
            plan: plan(&[1, 4]),
            published: Vec::new(),
            quarantined: Vec::new(),
            released: 0,
            told: Vec::new(),
            alarms: Vec::new(),
            scratch: BTreeMap::new(),
            finished: false,
            instant_disk: true,
        }
    }

    pub fn workers(mut self, n: u32) -> Self {
        (0..n).for_each(|w| self.join(w));
        self
    }

    /// Everything must have ended so long after the beginning.
    pub fn until_s(mut self, seconds: f64) -> Self {
        self.core.limits.end = Some(self.now.plus_s(seconds));
        self
    }

    pub fn join(&mut self, w: u32) {
        self.join_at(w, "node");
    }

    pub fn join_at(&mut self, w: u32, host: &str) {
        // A fresh executor holds nothing of the last one.
        self.assigned.retain(|a| a.0 != WorkerId(w));
        self.step(Event::WorkerJoined { worker: WorkerId(w), host: host.into(), threads: 1, task_memory: 1 << 30 });
    }

    pub fn pass_s(&mut self, seconds: f64) {
        self.now = self.now.plus_s(seconds);
        self.step(Event::Tick);
    }

    pub fn step(&mut self, event: Event) {
        let mut out = Vec::new();
        self.core.step(self.now, event, &mut out);
        self.core.check_invariants();
        let mut seqs = Vec::new();
        for ordered in &out {
            if let Action::Record { seq, .. } = ordered.action {
                seqs.push(seq);
            }
            if let Some(after) = ordered.after {
                assert!(after <= self.core.last_seq(), "an action waits for an entry that was never ordered");
            }
        }
        assert!(seqs.windows(2).all(|w| w[1] == w[0] + 1), "journal numbers have gaps: {seqs:?}");
        out.into_iter().for_each(|o| self.take(o.action));
    }

    fn take(&mut self, action: Action) {
        match action {
            Action::Assign { worker, attempt, job, task } => self.assigned.push((worker, attempt, job, task)),
            Action::Cancel { attempt, .. } => self.assigned.retain(|(_, a, _, _)| *a != attempt),
            Action::Claim { job, .. } if self.instant_disk => {
                let outcome = ClaimOutcome::Won { generation: 1, staging: "/staging".into(), deaths: 0, adopted: None };
                self.step(Event::Claimed { job, outcome });
            }
            Action::Publish { job, key, .. } if self.instant_disk => {
                self.published.push(key);
                self.step(Event::Published { job, outcome: PublishOutcome::Done { bundle: "/bundle".into() } });
            }
            Action::Quarantine { job, name, reason, .. } if self.instant_disk => {
                self.quarantined.push((name, reason));
                self.step(Event::Quarantined { job, outcome: QuarantineOutcome::Done });
            }
            Action::Release { key, .. } => {
                self.released += 1;
                self.step(Event::GivenBack { key, result: Ok(()) });
            }
            Action::Tell { name, verdict, .. } => self.told.push((name, verdict)),
            Action::Alarm { message } => self.alarms.push(message),
            Action::Finished => {
                assert!(!self.finished, "finished twice");
                self.finished = true;
            }
            Action::Context { worker, context } => {
                _ = self.scratch.insert((worker, JobNo(context.job)), context.scratch)
            }
            Action::SavePlan { .. } | Action::Record { .. } | Action::Forget { .. } => {}
            other => self.actions.push_back(other),
        }
    }

    pub fn arrive(&mut self, stream: &str, name: &str) {
        let at = self.now.0 / 1_000_000;
        self.step(Event::Arrived { scan: scan(stream, name, 1, at), check: Check::Probe });
    }

    /// Answers assignment `index` with success.
    pub fn succeed(&mut self, index: usize) -> TaskSpec {
        let (worker, attempt, job, task) = self.assigned.remove(index);
        let plan = (task.kind == TaskKind::Plan).then(|| self.plan.clone());
        let timings = Timings { compute_s: 1.0, ..Timings::default() };
        // Where the plan says so, tasks of the first stage leave scratch where they were told to.
        let leaves = self.plan.scratch && task.label.starts_with("s0-");
        let local = self.scratch.get(&(worker, job)).is_some_and(Option::is_some);
        let scratch = leaves.then(|| Scratch { path: task.label.clone(), bytes: 1, local });
        let output = TaskOutput { plan, timings, scratch, ..TaskOutput::default() };
        self.step(Event::TaskEnded { worker, attempt, result: Ok(output) });
        task
    }

    pub fn fail(&mut self, index: usize, fault: Fault) -> (WorkerId, TaskSpec) {
        let (worker, attempt, _, task) = self.assigned.remove(index);
        self.step(Event::TaskEnded { worker, attempt, result: Err(fault) });
        (worker, task)
    }

    /// Answers everything, oldest first, until nothing is assigned; returns labels in order.
    pub fn run(&mut self) -> Vec<String> {
        let mut labels = Vec::new();
        while !self.assigned.is_empty() {
            self.now = self.now.plus_s(0.1);
            labels.push(self.succeed(0).label);
            assert!(labels.len() < 100_000, "it does not end");
        }
        labels
    }

    /// Answers until the task of that label is assigned; returns its index.
    pub fn until(&mut self, label: &str) -> usize {
        loop {
            if let Some(i) = self.assigned.iter().position(|(_, _, _, t)| t.label == label) {
                return i;
            }
            assert!(!self.assigned.is_empty(), "{label} is never assigned");
            self.succeed(0);
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.actions.is_empty(), "actions nobody looked at: {:?}", self.actions);
        }
    }
}
