//! The MPI transport between real ranks. Each test starts this executable again under mpiexec, where [`rank`] plays
//! one scenario; without mpiexec the tests say so and pass.
//!
//! `BEAMPILOT_MPIEXEC` names the launcher of the MPI this was linked with (default `mpiexec`; `mpiexec.mpich` for a build
//! with `MPICC=mpicc.mpich`). `BEAMPILOT_OTHER_MPIEXEC` names one of another MPI, for the test that it is refused.
//! Rates and idle CPU are printed (`--nocapture`), not asserted; the long idle measurement is `--ignored`.
#![cfg(feature = "mpi")]

use beampilot::technique::*;
use beampilot::transport::wire::{FromWorker, ToWorker};
use beampilot::transport::{Transport, TransportError, WorkerId, mpi};
use beampilot::worker::{Executor, ExecutorConfig, Services, agent, topology};
use crossbeam::channel::{bounded, unbounded};
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SCENARIO: &str = "BEAMPILOT_TEST_SCENARIO";
const LIMIT: Duration = Duration::from_secs(120);
const STALL: Duration = Duration::from_secs(3);

// ---- the ranks ---------------------------------------------------------------------------------------------------

struct Echo;

impl Technique for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }
    fn recipe(&self, _: &toml::Table) -> Result<serde_json::Value, RecipeError> {
        Ok(serde_json::Value::Null)
    }
    fn roles(&self) -> &'static [&'static str] {
        &[]
    }
    fn inspect(&self, _: &TaskContext) -> Result<Inspection, Fault> {
        Ok(Inspection::default())
    }
    fn plan(&self, ctx: &TaskContext) -> Result<Plan, Fault> {
        Ok(Plan {
            preview: None,
            stages: vec![],
            finish: ctx.task.clone(),
            items: 1,
            unit: "echoes".into(),
            linked: Vec::new(),
            scratch: false,
        })
    }
    fn load(&self, ctx: &TaskContext) -> Result<Payload, Fault> {
        Ok(Box::new(ctx.task.params.len()))
    }
    fn compute(&self, _: &TaskContext, loaded: Payload) -> Result<Payload, Fault> {
        Ok(loaded)
    }
    fn store(&self, ctx: &TaskContext, computed: Payload) -> Result<TaskOutput, Fault> {
        let bytes = computed.downcast::<usize>().map_err(|_| Fault::Task("not mine".into()))?;
        Ok(TaskOutput { carry: format!("{} {bytes} {}", ctx.rank, ctx.job.carry.len()), ..TaskOutput::default() })
    }
}

struct EchoServices;

impl Services for EchoServices {
    fn technique(&self, _: &str) -> Option<&'static dyn Technique> {
        Some(&Echo)
    }
    fn verify(&self, _: &TaskContext) -> Result<(), Fault> {
        Ok(())
    }
    fn seal(&self, _: &TaskContext, output: TaskOutput) -> Result<TaskOutput, Fault> {
        Ok(output)
    }
}

/// One rank of a scenario; nothing to do outside mpiexec.
#[test]
fn rank() {
    let Ok(scenario) = std::env::var(SCENARIO) else { return };
    let mut options = mpi::Options::default();
    if scenario == "build" && !std::env::vars().any(|(k, v)| k.ends_with("_RANK") && v == "0") {
        options.build = "another".into();
    }
    let session = match mpi::connect(&options) {
        Ok(session) => session,
        Err(error) => {
            println!("refused: {error}");
            assert!(error.is_configuration());
            return;
        }
    };
    let share = session.share();
    let me = WorkerId(session.rank() as u32);
    let config = ExecutorConfig::new(me, topology::host(), share.threads, share.task_memory, Arc::new(EchoServices));
    if me.0 == 0 {
        println!("{} ranks, {share:?}", session.size());
        let ranks = session.size() as u32;
        coordinate(&scenario, Box::new(session.coordinator(Some(config)).unwrap()), ranks);
    } else {
        if scenario == "idle" {
            watch_cpu(me);
        }
        let (out, answers) = unbounded();
        let executor = Executor::spawn(config, out).unwrap();
        let mut link = session.worker();
        if scenario == "stall" && me.0 == 1 {
            std::thread::sleep(STALL);
        }
        if scenario == "panic" {
            std::thread::sleep(Duration::from_millis(300));
            panic!("a worker rank breaks");
        }
        let executor = agent::run(&mut link, executor, &answers).unwrap();
        assert!(executor.join(Duration::from_secs(1)));
        link.finalize(0);
        println!("rank {me} ended well");
    }
}

fn coordinate(scenario: &str, mut transport: Box<mpi::MpiTransport>, ranks: u32) {
    let workers: Vec<WorkerId> = (0..ranks).map(WorkerId).collect();
    let transport_ref: &mut dyn Transport = transport.as_mut();
    let mut hellos = 0;
    receive(transport_ref, |_, message| {
        hellos += u32::from(matches!(message, FromWorker::Hello { .. }));
        hellos == ranks - u32::from(scenario == "stall")
    });
    match scenario {
        "flood" => {
            for window in [32, 64] {
                let rate = flood(transport_ref, &workers, 400_000, window);
                println!("{ranks} ranks: {rate:.0} no-op tasks/s, {window} ahead of each worker");
            }
            let rate = flood(transport_ref, &workers[1..], 400_000, 64);
            println!("{} remote workers alone: {rate:.0} no-op tasks/s", ranks - 1);
            let rate = flood(transport_ref, &workers[1..2], 100_000, 64);
            println!("one remote worker: {rate:.0} no-op tasks/s");
            round_trips(transport_ref, WorkerId(1));
            round_trips(transport_ref, WorkerId(0));
        }
        "order" => order(transport_ref, &workers),
        "big" => big(transport_ref, &workers),
        "stall" => stall(transport_ref),
        "idle" => {
            flood(transport_ref, &workers, 1000, 8);
            watch_cpu(WorkerId(0));
            receive_for(transport_ref, Duration::from_secs(17));
        }
        "panic" => receive_for(transport_ref, Duration::from_secs(60)),
        other => panic!("no scenario {other}"),
    }
    let begin = Instant::now();
    transport.close();
    println!("closed in {:?}", begin.elapsed());
}

/// Until `enough` says so.
fn receive(transport: &mut dyn Transport, mut enough: impl FnMut(WorkerId, &FromWorker) -> bool) {
    let (_wake, woken) = bounded(1);
    let mut inbox = Vec::new();
    let deadline = Instant::now() + LIMIT / 2;
    loop {
        transport.exchange(&mut inbox);
        let mut done = false;
        for (worker, message) in inbox.drain(..) {
            done |= enough(worker, &message);
        }
        if done {
            return;
        }
        assert!(Instant::now() < deadline, "waited too long");
        transport.idle(&woken, Duration::from_millis(500));
    }
}

fn receive_for(transport: &mut dyn Transport, time: Duration) {
    let end = Instant::now() + time;
    receive(transport, |_, _| Instant::now() >= end);
}

fn task(attempt: u64, kind: TaskKind, params: Vec<u8>) -> ToWorker {
    let spec = TaskSpec { label: format!("t{attempt}"), kind, params, cost: 1.0, bytes_in: 0 };
    ToWorker::Run { attempt, job: 1, task: spec }
}

/// Keeps `window` no-ops ahead of each worker; tasks per second.
fn flood(transport: &mut dyn Transport, workers: &[WorkerId], total: u64, window: u64) -> f64 {
    let (mut next, mut back) = (0, 0);
    let begin = Instant::now();
    for worker in workers {
        for _ in 0..window {
            transport.send(*worker, task(next, TaskKind::Noop, vec![]));
            next += 1;
        }
    }
    let (_wake, woken) = bounded(1);
    let mut inbox = Vec::new();
    while back < next {
        if !transport.exchange(&mut inbox) {
            transport.idle(&woken, Duration::from_millis(100));
        }
        for (worker, message) in inbox.drain(..) {
            if matches!(message, FromWorker::Done { .. }) {
                back += 1;
                if next < total {
                    transport.send(worker, task(next, TaskKind::Noop, vec![]));
                    next += 1;
                }
            }
        }
    }
    back as f64 / begin.elapsed().as_secs_f64()
}

fn round_trips(transport: &mut dyn Transport, worker: WorkerId) {
    let mut times: Vec<Duration> = (0..3000)
        .map(|i| {
            let begin = Instant::now();
            transport.send(worker, task(i, TaskKind::Noop, vec![]));
            receive(transport, |_, m| matches!(m, FromWorker::Done { attempt, .. } if *attempt == i));
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("round trip to worker {worker}: p50 {:?}, p99 {:?}", times[1500], times[2970]);
}

fn job(epoch: u32, carry: usize) -> ToWorker {
    let scan = beampilot::arrivals::scan::Scan {
        stream: "s".into(),
        name: "n".into(),
        root: "/".into(),
        members: vec![],
        roles: Default::default(),
        last_byte_ms: 0,
        complete_ms: 0,
        ..beampilot::arrivals::scan::Scan::default()
    };
    let output = TaskOutput { carry: "x".repeat(1024), ..TaskOutput::default() };
    let record = TaskRecord { stage: 1, label: "t".into(), kind: TaskKind::Stage, host: "h".into(), rank: 0, output };
    ToWorker::Job(Box::new(JobContext {
        job: 1,
        key: "k".into(),
        scan,
        technique: "echo".into(),
        recipe: "{}".into(),
        staging: "/nowhere".into(),
        scratch: None,
        campaign: "c".into(),
        resources: Resources { workers: 1, threads: 1, task_memory: 1 },
        task_limit_s: JobContext::TASK_LIMIT_S,
        carry: vec![record; carry],
        epoch,
    }))
}

/// Thousands of real tasks, no-ops and epochs between them; each worker's answers come in the order given.
fn order(transport: &mut dyn Transport, workers: &[WorkerId]) {
    let each = 2000u64;
    for worker in workers {
        transport.send(*worker, job(0, 0));
        for i in 0..each {
            if i == each / 2 {
                transport.send(*worker, job(1, 3));
            }
            transport.send(*worker, task(i, TaskKind::Stage, vec![7; (i % 500) as usize]));
        }
    }
    let mut next = vec![0u64; workers.len()];
    receive(transport, |worker, message| {
        let next_of = &mut next[worker.0 as usize];
        match message {
            FromWorker::Started { attempt } => assert!(attempt >= next_of),
            FromWorker::Done { attempt, result } => {
                assert_eq!(attempt, next_of, "worker {worker}");
                let carry = result.as_ref().unwrap().carry.clone();
                assert!(carry.starts_with(&format!("{worker} {} ", attempt % 500)), "{carry}");
                *next_of += 1;
            }
            _ => {}
        }
        next.iter().all(|n| *n == each)
    });
    println!("order kept over {} tasks", each * workers.len() as u64);
}

/// Messages far beyond any eager limit, both ways, with small ones behind them.
fn big(transport: &mut dyn Transport, workers: &[WorkerId]) {
    let rounds = 40u64;
    let begin = Instant::now();
    for worker in workers {
        for i in 0..rounds {
            transport.send(*worker, job(i as u32, 1024));
            transport.send(*worker, task(2 * i, TaskKind::Plan, vec![i as u8; 1 << 20]));
            transport.send(*worker, task(2 * i + 1, TaskKind::Plan, vec![]));
        }
    }
    let mut next = vec![0u64; workers.len()];
    receive(transport, |worker, message| {
        if let FromWorker::Done { attempt, result } = message {
            let next = &mut next[worker.0 as usize];
            assert_eq!(attempt, next);
            let echo = &result.as_ref().unwrap().plan.as_ref().unwrap().finish.params;
            let want = if attempt % 2 == 0 { vec![(attempt / 2) as u8; 1 << 20] } else { vec![] };
            assert!(*echo == want, "attempt {attempt}");
            *next += 1;
        }
        next.iter().all(|n| *n == 2 * rounds)
    });
    let mib = 3 * rounds * workers.len() as u64;
    println!("{mib} MiB in 1 MiB messages: {:.0} MiB/s", mib as f64 / begin.elapsed().as_secs_f64());
}

/// Rank 1 does not look at its messages for a while: rank 0 queues large ones for it, and serves rank 2 meanwhile.
fn stall(transport: &mut dyn Transport) {
    let count = 50;
    let begin = Instant::now();
    for i in 0..count {
        transport.send(WorkerId(1), job(i as u32, 1024));
        transport.send(WorkerId(1), task(i, TaskKind::Plan, vec![1; 1 << 20]));
    }
    let mut longest = Duration::ZERO;
    let mut rounds = 0;
    while begin.elapsed() < STALL / 2 {
        let round = Instant::now();
        transport.send(WorkerId(2), task(rounds, TaskKind::Noop, vec![]));
        receive(transport, |w, m| w.0 == 2 && matches!(m, FromWorker::Done { attempt, .. } if *attempt == rounds));
        longest = longest.max(round.elapsed());
        rounds += 1;
    }
    println!("{rounds} round trips beside a stalled rank, the longest {longest:?}");
    assert!(rounds > 100 && longest < Duration::from_secs(1));
    receive(transport, |w, m| w.0 == 1 && matches!(m, FromWorker::Done { attempt, .. } if *attempt == count - 1));
}

/// Prints this process's share of a core soon after the last message, and long after it.
fn watch_cpu(me: WorkerId) {
    let cpu = || {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
    };
    std::thread::spawn(move || {
        for (when, wait, over) in [("within 10 s", 1, 7), ("after that", 3, 5)] {
            std::thread::sleep(Duration::from_secs(wait));
            let (begin, before) = (Instant::now(), cpu());
            std::thread::sleep(Duration::from_secs(over));
            let share = (cpu() - before) / begin.elapsed().as_secs_f64();
            println!("rank {me} idle, {when}: {:.2} % of a core", 100.0 * share);
        }
    });
}

// ---- starting them -----------------------------------------------------------------------------------------------

/// Runs a scenario; `None` when there is no mpiexec. Exit code and everything printed.
fn under(mpiexec: &str, ranks: usize, scenario: &str) -> Option<(Option<i32>, String)> {
    let version = Command::new(mpiexec).arg("--version").output();
    let Ok(version) = version else {
        println!("skipped: no {mpiexec} on this machine");
        return None;
    };
    let open_mpi = String::from_utf8_lossy(&version.stdout).contains("Open");
    let mut command = Command::new(mpiexec);
    command.args(["-n", &ranks.to_string()]);
    if open_mpi {
        command.arg("--oversubscribe").envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
    }
    command.arg(std::env::current_exe().unwrap()).args(["--exact", "rank", "--nocapture", "--test-threads=1"]);
    command.env(SCENARIO, scenario).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut readers = Vec::new();
    let pipes: [Box<dyn Read + Send>; 2] =
        [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
    for mut pipe in pipes {
        readers.push(std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        }));
    }
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{scenario} hangs");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let text: String = readers.into_iter().map(|r| r.join().unwrap()).collect();
    let boring = |l: &&str| !l.is_empty() && !l.starts_with("running 1 test") && !l.starts_with("test result");
    println!("{}", text.lines().filter(boring).collect::<Vec<_>>().join("\n"));
    Some((status.code(), text))
}

fn mpiexec() -> String {
    std::env::var("BEAMPILOT_MPIEXEC").unwrap_or_else(|_| "mpiexec".into())
}

fn succeeds(ranks: usize, scenario: &str) {
    let Some((code, text)) = under(&mpiexec(), ranks, scenario) else { return };
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text.matches("ended well").count(), ranks - 1, "{text}");
}

/// One at a time: they measure, and two cores are few.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn messages_flood_and_return() {
    let _alone = ALONE.lock();
    succeeds(4, "flood");
}

#[test]
fn order_is_kept() {
    let _alone = ALONE.lock();
    succeeds(3, "order");
}

#[test]
fn big_messages_pass() {
    let _alone = ALONE.lock();
    succeeds(3, "big");
}

#[test]
fn a_stalled_rank_stalls_nobody_else() {
    let _alone = ALONE.lock();
    succeeds(3, "stall");
}

#[test]
fn another_build_is_refused_by_every_rank() {
    let _alone = ALONE.lock();
    let Some((code, text)) = under(&mpiexec(), 3, "build") else { return };
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text.matches("runs beampilot another").count(), 3, "{text}");
}

#[test]
fn a_panic_ends_the_job() {
    let _alone = ALONE.lock();
    let begin = Instant::now();
    let Some((code, text)) = under(&mpiexec(), 3, "panic") else { return };
    assert_eq!(code, Some(mpi::PANIC_EXIT), "{text}");
    assert!(text.contains("a worker rank breaks") && begin.elapsed() < Duration::from_secs(20), "{text}");
}

#[test]
fn the_wrong_launcher_is_named() {
    let _alone = ALONE.lock();
    let Ok(other) = std::env::var("BEAMPILOT_OTHER_MPIEXEC") else {
        println!("skipped: BEAMPILOT_OTHER_MPIEXEC is not set");
        return;
    };
    let Some((_, text)) = under(&other, 2, "order") else { return };
    assert!(text.contains("rebuild with MPICC"), "{text}");
    let error = TransportError::WrongMpiexec { ranks: 2, size: 1, library: String::new() };
    assert!(error.is_configuration());
}

#[test]
#[ignore = "takes 20 s; run it to measure"]
fn idle_ranks_rest() {
    let _alone = ALONE.lock();
    succeeds(4, "idle");
}
