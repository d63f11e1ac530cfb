//! Executors behind a [`LocalTransport`], with a technique that does what its parameters say.

use super::{ExecutorConfig, Services};
use crate::arrivals::scan::{FileStamp, Scan};
use crate::technique::{self, *};
use crate::transport::wire::{CANCELLED, FromWorker, ToWorker};
use crate::transport::{LocalTransport, Transport, WorkerId};
use crossbeam::channel::{Receiver, Sender, unbounded};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a test asks of a task, as text in [`TaskSpec::params`].
const NAP: Duration = Duration::from_millis(30);

#[derive(Default)]
struct Fake {
    /// Label, phase, begin, end.
    log: Mutex<Vec<(String, &'static str, Instant, Instant)>>,
    /// `wait` in the parameters: compute blocks until something comes.
    gate: Mutex<Option<Receiver<()>>>,
}

impl Fake {
    fn phase<T>(&self, ctx: &TaskContext, phase: &'static str, value: T) -> Result<T, Fault> {
        let begin = Instant::now();
        let ask = String::from_utf8_lossy(&ctx.task.params).into_owned();
        if ask.contains("nap") {
            std::thread::sleep(NAP);
        }
        if phase == "compute" && ask.contains("wait") {
            let gate = self.gate.lock().unwrap().clone().unwrap();
            gate.recv_timeout(Duration::from_secs(20)).unwrap();
        }
        if ask.contains(&format!("touch in {phase}")) {
            let path = ctx.job.scan.member_paths().next().unwrap();
            std::fs::write(path, "other bytes").unwrap();
        }
        self.log.lock().unwrap().push((ctx.task.label.clone(), phase, begin, Instant::now()));
        if ask.contains(&format!("panic in {phase}")) {
            // In a thread of the pool, not in the one that called.
            rayon::join(|| (), || panic!("bad angle in {phase}"));
        }
        if ask.contains(&format!("fail in {phase}")) {
            return Err(Fault::Input(format!("no dataset in {phase}")));
        }
        Ok(value)
    }

    fn labels(&self, phase: &str) -> Vec<String> {
        self.log.lock().unwrap().iter().filter(|e| e.1 == phase).map(|e| e.0.clone()).collect()
    }
}

impl Technique for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }
    fn recipe(&self, _: &toml::Table) -> Result<serde_json::Value, RecipeError> {
        Ok(serde_json::Value::Null)
    }
    fn roles(&self) -> &'static [&'static str] {
        &[]
    }
    fn inspect(&self, ctx: &TaskContext) -> Result<Inspection, Fault> {
        self.phase(ctx, "inspect", Inspection { summary: "2 \"frames\"".into() })
    }
    fn plan(&self, ctx: &TaskContext) -> Result<Plan, Fault> {
        let finish = ctx.task.clone();
        self.phase(
            ctx,
            "plan",
            Plan {
                preview: None,
                stages: vec![],
                finish,
                items: 3,
                unit: "slices".into(),
                linked: Vec::new(),
                scratch: false,
            },
        )
    }
    fn load(&self, ctx: &TaskContext) -> Result<Payload, Fault> {
        self.phase(ctx, "load", Box::new(1u32))
    }
    fn compute(&self, ctx: &TaskContext, loaded: Payload) -> Result<Payload, Fault> {
        let n = *loaded.downcast::<u32>().unwrap();
        self.phase(ctx, "compute", Box::new(n + 1))
    }
    fn store(&self, ctx: &TaskContext, computed: Payload) -> Result<TaskOutput, Fault> {
        let n = *computed.downcast::<u32>().unwrap();
        self.phase(ctx, "store", TaskOutput { carry: format!("{{\"n\":{n}}}"), ..Default::default() })
    }
}

struct FakeServices(&'static Fake);

impl Services for FakeServices {
    fn technique(&self, name: &str) -> Option<&'static dyn Technique> {
        (name == "fake").then_some(self.0 as &dyn Technique)
    }
    fn verify(&self, ctx: &TaskContext) -> Result<(), Fault> {
        self.0.phase(ctx, "verify", ())
    }
    fn seal(&self, ctx: &TaskContext, mut output: TaskOutput) -> Result<TaskOutput, Fault> {
        output.carry.push_str("sealed");
        self.0.phase(ctx, "seal", output)
    }
}

struct Rig {
    fake: &'static Fake,
    transport: Option<LocalTransport>,
    seen: Vec<FromWorker>,
    _dir: tempfile::TempDir,
    _wake: Sender<()>,
    woken: Receiver<()>,
}

const W0: WorkerId = WorkerId(0);

impl Rig {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(adjust: impl FnOnce(&mut ExecutorConfig)) -> Self {
        let fake: &'static Fake = Box::leak(Box::default());
        let dir = tempfile::tempdir().unwrap();
        let mut config = ExecutorConfig::new(W0, "here", 1, 1 << 20, Arc::new(FakeServices(fake)));
        adjust(&mut config);
        let transport = LocalTransport::new([config]).unwrap();
        let (wake, woken) = unbounded();
        let mut rig = Self { fake, transport: Some(transport), seen: vec![], _dir: dir, _wake: wake, woken };
        let job = rig.job(1, 0);
        rig.send(ToWorker::Job(Box::new(job)));
        rig
    }

    fn job(&self, job: u64, epoch: u32) -> JobContext {
        let root = self._dir.path().to_owned();
        let path = root.join("scan.h5");
        if !path.exists() {
            std::fs::write(&path, "bytes").unwrap();
        }
        let members = vec![FileStamp::from_metadata("scan.h5", &std::fs::metadata(&path).unwrap())];
        let roles = BTreeMap::new();
        let (stream, name) = ("s".to_owned(), "scan.h5".to_owned());
        JobContext {
            job,
            key: "scan".into(),
            scan: Scan { stream, name, root, members, roles, ..Scan::default() },
            technique: "fake".into(),
            recipe: "{}".into(),
            staging: PathBuf::new(),
            scratch: None,
            campaign: "c".into(),
            resources: technique::Resources { workers: 1, threads: 1, task_memory: 1 },
            task_limit_s: JobContext::TASK_LIMIT_S,
            carry: vec![],
            epoch,
        }
    }

    fn send(&mut self, message: ToWorker) {
        self.transport.as_mut().unwrap().send(W0, message);
    }

    fn run(&mut self, attempt: u64, kind: TaskKind, ask: &str) {
        let label = format!("t{attempt}");
        let task = TaskSpec { label, kind, params: ask.into(), cost: 1.0, bytes_in: 0 };
        self.send(ToWorker::Run { attempt, job: 1, task });
    }

    /// Exchanges until `enough` holds of everything seen.
    fn until(&mut self, enough: impl Fn(&[FromWorker]) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut inbox = Vec::new();
        loop {
            let transport = self.transport.as_mut().unwrap();
            transport.exchange(&mut inbox);
            self.seen.extend(inbox.drain(..).map(|(_, m)| m));
            if enough(&self.seen) {
                return;
            }
            assert!(Instant::now() < deadline, "only saw {:?}", self.seen);
            transport.idle(&self.woken, Duration::from_millis(100));
        }
    }

    fn result(&mut self, attempt: u64) -> Result<TaskOutput, Fault> {
        self.until(|seen| done(seen, attempt).is_some());
        done(&self.seen, attempt).unwrap()
    }
}

fn done(seen: &[FromWorker], attempt: u64) -> Option<Result<TaskOutput, Fault>> {
    seen.iter().find_map(|m| match m {
        FromWorker::Done { attempt: a, result } if *a == attempt => Some(result.clone()),
        _ => None,
    })
}

fn position(seen: &[FromWorker], want: &FromWorker) -> usize {
    seen.iter().position(|m| m == want).unwrap_or_else(|| panic!("{want:?} not in {seen:?}"))
}

#[test]
fn hello_comes_first_and_tells_the_build() {
    let mut rig = Rig::with(|c| c.build = "other".into());
    rig.until(|seen| !seen.is_empty());
    let FromWorker::Hello { build, host, threads, .. } = &rig.seen[0] else { panic!("{:?}", rig.seen) };
    assert_eq!((build.as_str(), host.as_str(), *threads), ("other", "here", 1));
}

#[test]
fn every_kind_answers_in_its_way() {
    let mut rig = Rig::new();
    rig.run(1, TaskKind::Probe, "");
    rig.run(2, TaskKind::Verify, "");
    rig.run(3, TaskKind::Plan, "");
    rig.run(4, TaskKind::Preview, "nap");
    rig.run(5, TaskKind::Finish, "");
    rig.run(6, TaskKind::Decide, "");
    rig.run(7, TaskKind::Noop, "");
    assert_eq!(rig.result(1).unwrap().carry, r#"{"summary":"2 \"frames\""}"#);
    assert_eq!(rig.result(2).unwrap().carry, "");
    assert_eq!(rig.result(3).unwrap().plan.unwrap().items, 3);
    let preview = rig.result(4).unwrap();
    assert_eq!(preview.carry, "{\"n\":2}");
    let t = preview.timings;
    assert!([t.read_s, t.compute_s, t.write_s].iter().all(|s| *s >= NAP.as_secs_f64()), "{t:?}");
    assert_eq!(rig.result(5).unwrap().carry, "{\"n\":2}sealed");
    assert_eq!(rig.result(6).unwrap().carry, "{\"n\":2}");
    assert_eq!(rig.result(7).unwrap(), TaskOutput::default());
    assert_eq!(rig.fake.labels("load"), ["t4", "t5", "t6"]);
    for attempt in 1..=6 {
        let started = position(&rig.seen, &FromWorker::Started { attempt });
        let ended = rig.seen.iter().position(|m| matches!(m, FromWorker::Done { attempt: a, .. } if *a == attempt));
        assert!(started < ended.unwrap());
    }
    assert!(!rig.seen.contains(&FromWorker::Started { attempt: 7 }));
}

#[test]
fn phases_of_neighbouring_tasks_overlap_and_keep_order() {
    let mut rig = Rig::new();
    (0..6).for_each(|i| rig.run(i, TaskKind::Stage, "nap"));
    rig.until(|seen| (0..6).all(|i| done(seen, i).is_some()));
    let want: Vec<String> = (0..6).map(|i| format!("t{i}")).collect();
    for phase in ["load", "compute", "store"] {
        assert_eq!(rig.fake.labels(phase), want, "{phase}");
    }
    let log = rig.fake.log.lock().unwrap();
    let at = |label: &str, phase: &str| log.iter().find(|e| e.0 == label && e.1 == phase).map(|e| (e.2, e.3)).unwrap();
    let overlap = |a: (Instant, Instant), b: (Instant, Instant)| a.0 < b.1 && b.0 < a.1;
    // A loaded machine may delay one hand-over; not most of them.
    let three_at_once = (1..5)
        .filter(|i| {
            let computing = at(&format!("t{i}"), "compute");
            overlap(computing, at(&format!("t{}", i + 1), "load"))
                && overlap(computing, at(&format!("t{}", i - 1), "store"))
        })
        .count();
    assert!(three_at_once >= 2, "{three_at_once} of 4");
    // Never more than three tasks between the start of their load and the end of their store.
    let life: Vec<_> = want.iter().map(|l| (at(l, "load").0, at(l, "store").1)).collect();
    for moment in life.iter().map(|l| l.0) {
        assert!(life.iter().filter(|l| l.0 <= moment && moment < l.1).count() <= 3);
    }
}

#[test]
fn faults_and_panics_are_answers() {
    let mut rig = Rig::new();
    let cases = [
        (1, TaskKind::Stage, "fail in load", "no dataset in load"),
        (2, TaskKind::Stage, "fail in compute", "no dataset in compute"),
        (3, TaskKind::Finish, "fail in seal", "no dataset in seal"),
        (4, TaskKind::Verify, "fail in verify", "no dataset in verify"),
        (5, TaskKind::Stage, "panic in load", "bad angle in load"),
        (6, TaskKind::Stage, "panic in compute", "bad angle in compute"),
        (7, TaskKind::Finish, "panic in store", "bad angle in store"),
        (8, TaskKind::Plan, "panic in plan", "bad angle in plan"),
    ];
    cases.iter().for_each(|(attempt, kind, ask, _)| rig.run(*attempt, *kind, ask));
    rig.run(9, TaskKind::Stage, "");
    for (attempt, _, ask, want) in cases {
        let fault = rig.result(attempt).unwrap_err();
        let text = fault.to_string();
        assert!(text.contains(want), "{text}");
        assert_eq!(matches!(fault, Fault::Task(_)), ask.starts_with("panic"));
        if ask.starts_with("panic") {
            assert!(text.contains(&format!("fake t{attempt}")) && text.contains("worker/tests.rs:"), "{text}");
        }
    }
    assert!(rig.result(9).is_ok(), "life goes on");
}

#[test]
fn a_changed_input_is_noticed_at_every_step() {
    for (kind, ask) in [
        (TaskKind::Stage, "touch in load"),
        (TaskKind::Stage, "touch in load, panic in load"),
        (TaskKind::Probe, "touch in inspect, fail in inspect"),
        (TaskKind::Plan, "touch in plan"),
        (TaskKind::Verify, "touch in verify"),
    ] {
        let mut rig = Rig::new();
        rig.run(1, kind, ask);
        assert!(matches!(rig.result(1), Err(Fault::InputChanged(p)) if p.ends_with("scan.h5")), "{ask}");
        rig.run(2, TaskKind::Stage, "");
        assert!(matches!(rig.result(2), Err(Fault::InputChanged(_))));
        assert!(rig.fake.labels("compute").is_empty(), "{ask}");
        rig.run(3, TaskKind::Decide, "");
        assert!(rig.result(3).is_ok(), "decide reads no input");
    }
}

#[test]
fn a_change_during_a_long_write_is_noticed_before_reporting() {
    let mut rig = Rig::new();
    let path: PathBuf = rig._dir.path().join("scan.h5");
    let touch = |path: &Path| std::fs::write(path, "longer than before").unwrap();
    let (open, gate) = unbounded();
    *rig.fake.gate.lock().unwrap() = Some(gate);
    rig.run(1, TaskKind::Stage, "wait");
    rig.until(|seen| seen.contains(&FromWorker::Started { attempt: 1 }));
    std::thread::sleep(Duration::from_millis(1100));
    touch(&path);
    open.send(()).unwrap();
    assert!(matches!(rig.result(1), Err(Fault::InputChanged(_))));
}

#[test]
fn cancelled_tasks_are_dropped_and_answered() {
    let mut rig = Rig::new();
    let (open, gate) = unbounded();
    *rig.fake.gate.lock().unwrap() = Some(gate);
    for attempt in 1..=5 {
        rig.run(attempt, TaskKind::Stage, "wait");
    }
    // t1 computes, t2 is loaded and waits, the others have not started.
    rig.until(|seen| seen.contains(&FromWorker::Started { attempt: 2 }));
    rig.send(ToWorker::Cancel { attempt: 4 });
    rig.send(ToWorker::Cancel { attempt: 2 });
    rig.send(ToWorker::Cancel { attempt: 77 });
    assert_eq!(rig.result(4), Err(Fault::Task(CANCELLED.into())));
    (0..5).for_each(|_| open.send(()).unwrap());
    assert_eq!(rig.result(2), Err(Fault::Task(CANCELLED.into())));
    for attempt in [1, 3, 5] {
        assert!(rig.result(attempt).is_ok());
    }
    assert_eq!(rig.fake.labels("compute"), ["t1", "t3", "t5"]);
    let answers = rig.seen.iter().filter(|m| matches!(m, FromWorker::Done { .. })).count();
    assert_eq!(answers, 5, "each attempt is answered once");
}

#[test]
fn contexts_are_replaced_and_forgotten() {
    let mut rig = Rig::new();
    let mut newer = rig.job(1, 2);
    newer.technique = "gone".into();
    rig.send(ToWorker::Job(Box::new(newer)));
    let older = rig.job(1, 1);
    rig.send(ToWorker::Job(Box::new(older)));
    rig.run(1, TaskKind::Stage, "");
    assert!(rig.result(1).unwrap_err().to_string().contains("no technique called gone"));
    rig.send(ToWorker::Forget { job: 1 });
    rig.run(2, TaskKind::Stage, "");
    assert!(rig.result(2).unwrap_err().to_string().contains("no context of job 1"));
}

#[test]
fn beats_go_on_while_a_task_hangs_and_goodbye_does_not_wait_for_it() {
    let mut rig = Rig::with(|c| {
        c.beat = Duration::from_millis(20);
        c.grace = Duration::from_millis(50);
    });
    let (_open, gate) = unbounded();
    *rig.fake.gate.lock().unwrap() = Some(gate);
    rig.run(1, TaskKind::Stage, "wait");
    rig.run(2, TaskKind::Stage, "");
    let beats = |seen: &[FromWorker]| {
        seen.iter().filter(|m| matches!(m, FromWorker::Beat { peak_bytes } if *peak_bytes > 0)).count()
    };
    rig.until(|seen| seen.contains(&FromWorker::Started { attempt: 1 }) && beats(seen) >= 5);
    rig.send(ToWorker::Shutdown);
    rig.until(|seen| seen.contains(&FromWorker::Bye));
    drop(_open); // The hung task ends in a panic; nothing follows the goodbye.
    std::thread::sleep(Duration::from_millis(100));
    rig.until(|_| true);
    assert_eq!(rig.seen.last(), Some(&FromWorker::Bye));
    assert_eq!(done(&rig.seen, 1), None);
}

#[test]
fn close_is_quick_and_ends_the_threads() {
    let mut rig = Rig::new();
    (0..200).for_each(|i| rig.run(i, TaskKind::Stage, "nap"));
    rig.until(|seen| done(seen, 0).is_some());
    let begin = Instant::now();
    let transport: Box<dyn Transport> = Box::new(rig.transport.take().unwrap());
    transport.close();
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    let finished = rig.fake.log.lock().unwrap().len();
    std::thread::sleep(3 * NAP);
    assert_eq!(rig.fake.log.lock().unwrap().len(), finished);
}

#[test]
fn idle_wakes_at_once_and_survives_a_lost_wake_channel() {
    let mut rig = Rig::with(|c| c.beat = Duration::from_secs(60));
    rig.until(|seen| seen.len() >= 2); // Hello and the first beat.
    let mut transport = rig.transport.take().unwrap();
    let (wake, woken) = unbounded();
    wake.send(()).unwrap();
    wake.send(()).unwrap();
    let begin = Instant::now();
    transport.idle(&woken, Duration::from_secs(10));
    assert!(begin.elapsed() < Duration::from_secs(5) && woken.is_empty());
    drop(wake);
    let begin = Instant::now();
    transport.idle(&woken, Duration::from_millis(50));
    assert!(begin.elapsed() >= Duration::from_millis(50));
}

/// The loopback: how fast no-ops go through the local transport. Printed, and held to a very low floor.
#[test]
fn noops_are_fast() {
    let mut rig = Rig::new();
    let total = 50_000u64;
    let (mut sent, mut back) = (0u64, 0u64);
    let mut inbox = Vec::new();
    let begin = Instant::now();
    while back < total {
        while sent < total && sent - back < 64 {
            rig.run(sent, TaskKind::Noop, "");
            sent += 1;
        }
        let transport = rig.transport.as_mut().unwrap();
        if !transport.exchange(&mut inbox) {
            transport.idle(&rig.woken, Duration::from_millis(100));
        }
        back += inbox.drain(..).filter(|(_, m)| matches!(m, FromWorker::Done { .. })).count() as u64;
    }
    let rate = total as f64 / begin.elapsed().as_secs_f64();
    println!("local transport: {rate:.0} no-op tasks/s");
    assert!(rate > 20_000.0, "{rate}");
}
