//! `bench dispatch`: no-op tasks through the real core, driver, transport and executors.
//!
//! The disk answers at once; everything else is what a pilot runs. Throughput: jobs of `STAGE` tasks, timed from
//! the first arrival to the last publication order, which with a journal waits until every task's record is durable.
//! Round trip: stages of one task each, from handing the task to the transport to taking its result from it.

use super::core::{Core, Limits, StreamSpec};
use super::driver::{Clock, Driver, Mailbox};
use super::event::*;
use super::lanes::DiskOrders;
use super::queue::Order;
use crate::arrivals::scan::Scan;
use crate::store::journal;
use crate::technique::*;
use crate::transport::wire::{FromWorker, ToWorker};
use crate::transport::{Transport, WorkerId};
use crate::worker::Services;
use crossbeam::channel::{Receiver, Sender, unbounded};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Tasks of one job in the throughput runs.
const STAGE: usize = 50_000;
/// Jobs of a throughput run; one more warms up.
const JOBS: usize = 10;
/// Sequential tasks of a round-trip run.
const ROUND_TRIPS: usize = 4_000;
/// Stages of a round-trip job, below [`Plan::MAX_STAGES`].
const CHAIN: usize = 50;

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// `embedded` or the MPI library.
    pub transport: String,
    /// Executors.
    pub workers: usize,
    /// Where they lived: `processes` or `threads`.
    pub executors: String,
    /// Tasks timed in each throughput run.
    pub tasks: usize,
    /// No-op tasks a second without journal.
    pub tasks_per_s: f64,
    /// The same with every task journalled and synced before the job counts.
    pub tasks_per_s_journalled: f64,
    /// Round trip to a worker, milliseconds: median.
    pub round_trip_p50_ms: f64,
    /// 99th percentile.
    pub round_trip_p99_ms: f64,
    /// Round trips timed.
    pub round_trips: usize,
}

/// Executors of this benchmark know one technique: plans of no-ops.
pub struct BenchServices;

impl Services for BenchServices {
    fn name(&self) -> &'static str {
        "bench"
    }
    fn technique(&self, _: &str) -> Option<&'static dyn Technique> {
        Some(&Noops)
    }
    fn verify(&self, _: &TaskContext) -> Result<(), Fault> {
        Ok(())
    }
    fn seal(&self, _: &TaskContext, output: TaskOutput) -> Result<TaskOutput, Fault> {
        Ok(output)
    }
}

struct Noops;

impl Technique for Noops {
    fn name(&self) -> &'static str {
        "noops"
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
    /// The recipe is `stages tasks`.
    fn plan(&self, ctx: &TaskContext) -> Result<Plan, Fault> {
        let mut numbers = ctx.job.recipe.split(' ').filter_map(|n| n.parse::<usize>().ok());
        let (stages, tasks) = (numbers.next().unwrap_or(1), numbers.next().unwrap_or(1));
        let task = |label: String, kind| TaskSpec { label, kind, params: Vec::new(), cost: 1.0, bytes_in: 0 };
        let stage = |s: usize| Stage {
            name: "noops".to_owned(),
            tasks: (0..tasks).map(|t| task(format!("n{s}-{t}"), TaskKind::Noop)).collect(),
            decide: None,
        };
        let finish = task("finish".to_owned(), TaskKind::Finish);
        let stages = (0..stages).map(stage).collect();
        Ok(Plan {
            preview: None,
            stages,
            finish,
            items: tasks as u64,
            unit: "tasks".to_owned(),
            linked: Vec::new(),
            scratch: false,
        })
    }
    fn load(&self, _: &TaskContext) -> Result<Payload, Fault> {
        Ok(Box::new(()))
    }
    fn compute(&self, _: &TaskContext, loaded: Payload) -> Result<Payload, Fault> {
        Ok(loaded)
    }
    fn store(&self, _: &TaskContext, _: Payload) -> Result<TaskOutput, Fault> {
        Ok(TaskOutput::default())
    }
}

/// Answers at once; reports publications.
struct InstantDisk {
    mailbox: Mailbox,
    published: Sender<Instant>,
}

impl DiskOrders for InstantDisk {
    fn perform(&self, action: Action) -> Option<Action> {
        match action {
            Action::Claim { job, .. } => {
                let outcome = ClaimOutcome::Won { generation: 1, staging: "/nowhere".into(), deaths: 0, adopted: None };
                self.mailbox.post(Event::Claimed { job, outcome });
            }
            Action::Publish { job, .. } => {
                let _ = self.published.send(Instant::now());
                self.mailbox
                    .post(Event::Published { job, outcome: PublishOutcome::Done { bundle: "/nowhere".into() } });
            }
            Action::Release { .. } | Action::SavePlan { .. } => {}
            other => return Some(other),
        }
        None
    }
    fn hand_over(&self, _: String, _: u32) {}
    fn sweep(&self) {}
    fn flush(&self, _: Duration) -> bool {
        true
    }
}

type Trips = Arc<Mutex<Vec<(WorkerId, Duration)>>>;

/// A transport that times what passes through while `on`.
struct Timed {
    inner: Box<dyn Transport>,
    sent: HashMap<u64, Instant>,
    trips: Trips,
    joined: Sender<WorkerId>,
}

impl Transport for Timed {
    fn send(&mut self, worker: WorkerId, message: ToWorker) {
        if let ToWorker::Run { attempt, task, .. } = &message
            && task.label.ends_with("-0")
        {
            self.sent.insert(*attempt, Instant::now());
        }
        self.inner.send(worker, message);
    }
    fn exchange(&mut self, inbox: &mut Vec<(WorkerId, FromWorker)>) -> bool {
        let before = inbox.len();
        let moved = self.inner.exchange(inbox);
        for (worker, message) in &inbox[before..] {
            match message {
                FromWorker::Done { attempt, .. } => {
                    if let Some(sent) = self.sent.remove(attempt) {
                        // Nobody panics while holding it.
                        let mut trips = self.trips.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        trips.push((*worker, sent.elapsed()));
                    }
                }
                FromWorker::Hello { .. } => {
                    let _ = self.joined.send(*worker);
                }
                _ => {}
            }
        }
        moved
    }
    fn idle(&mut self, wake: &Receiver<()>, longest: Duration) {
        self.inner.idle(wake, longest);
    }
    fn end_workers(&mut self) -> bool {
        self.inner.end_workers()
    }
    fn close(self: Box<Self>) {
        self.inner.close();
    }
}

fn scan(stream: &str, n: usize) -> Scan {
    let now_ms = Clock::start().now().0 / 1000;
    // Without files: executors stat every stamp around every task, and that is not what is measured here.
    Scan {
        stream: stream.to_owned(),
        name: format!("scan-{n}"),
        root: "/nowhere".into(),
        members: Vec::new(),
        roles: BTreeMap::new(),
        last_byte_ms: now_ms,
        complete_ms: now_ms,
        ..Scan::default()
    }
}

/// Measures over a connected transport with `workers` executors; `scratch` takes the journal.
///
/// # Errors
/// The journal cannot be written, or the workers stop answering.
pub fn run(
    transport: Box<dyn Transport>,
    name: String,
    executors: &str,
    workers: usize,
    scratch: &Path,
    mut progress: impl FnMut(&str),
) -> std::io::Result<(Figures, Box<dyn Transport>)> {
    let (mailbox, inbox) = Mailbox::new();
    let (published, done) = unbounded();
    let (joined, joins) = unbounded();
    let trips: Trips = Trips::default();
    let (lines, lines_in) = unbounded();
    let timed = Timed { inner: transport, sent: HashMap::new(), trips: trips.clone(), joined };
    let stream = |name: &str, recipe: String| StreamSpec {
        name: name.to_owned(),
        technique: "noops".to_owned(),
        recipe,
        deadline_s: 3600.0,
        order: Order::Deadline,
        weight: 1,
        task_limit_s: 900.0,
    };
    let streams = vec![stream("flood", format!("1 {STAGE}")), stream("chain", format!("{CHAIN} 1"))];
    let journalled = Arc::new(std::sync::atomic::AtomicBool::new(false));
    // The driver always has a journal here; a relay answers at once or passes on to the file.
    let file = scratch.join("dispatch.jsonl");
    let (to_file, file_lines) = unbounded();
    let post = mailbox.clone();
    let fs: Arc<dyn crate::store::Fs> = Arc::new(crate::store::RealFs);
    let writer = journal::spawn(&fs, file.clone(), file_lines, move |d| post.post_durable(d))?;
    let relay = {
        let (post, on) = (mailbox.clone(), journalled.clone());
        std::thread::Builder::new().name("relay".into()).spawn(move || {
            let mut last = 0;
            while let Ok(line) = lines_in.recv() {
                let line: journal::Line = line;
                if on.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = to_file.send(line);
                    continue;
                }
                last = lines_in.try_iter().last().map_or(line.seq, |l: journal::Line| l.seq).max(last);
                post.post_durable(journal::Durable::UpTo(last));
            }
        })?
    };
    let conductor = {
        let mail = mailbox.clone();
        let (say, said) = unbounded::<String>();
        let handle = std::thread::Builder::new()
            .name("conductor".into())
            .spawn(move || Conductor { mail, done, joins, say, trips, journalled, workers }.conduct())?;
        (handle, said)
    };
    let driver = Driver {
        core: Core::new("bench", streams, Limits { claim_ahead_s: 1e9, history: 4, ..Limits::default() }),
        transport: Box::new(timed),
        inbox,
        disk: Box::new(InstantDisk { mailbox: mailbox.clone(), published }),
        journal: Some(lines),
        tell: Box::new(|_, _, _, _| {}),
        show: Box::new(|_| {}),
        writers: super::writers::Writers::unwatched(),
        pulse: Arc::default(),
        clock: Clock::start(),
    };
    let (_, transport, _) = driver.run();
    let (handle, said) = conductor;
    said.try_iter().for_each(|line| progress(&line));
    let measured = handle.join().map_err(|_| std::io::Error::other("the benchmark's conductor panicked"))?;
    let _ = relay.join();
    drop(mailbox);
    let _ = writer.join();
    let _ = std::fs::remove_file(&file);
    let (plain, with_journal, mut times) =
        measured.ok_or_else(|| std::io::Error::other("the workers did not answer in time"))?;
    times.sort();
    let at = |q: f64| times.get(((times.len() - 1) as f64 * q) as usize).map_or(0.0, |d| d.as_secs_f64() * 1e3);
    let figures = Figures {
        transport: name,
        workers,
        executors: executors.to_owned(),
        tasks: STAGE * JOBS,
        tasks_per_s: plain,
        tasks_per_s_journalled: with_journal,
        round_trip_p50_ms: at(0.5),
        round_trip_p99_ms: at(0.99),
        round_trips: times.len(),
    };
    Ok((figures, transport))
}

/// Feeds the driver and times it, from its own thread.
struct Conductor {
    mail: Mailbox,
    done: Receiver<Instant>,
    joins: Receiver<WorkerId>,
    say: Sender<String>,
    trips: Trips,
    journalled: Arc<std::sync::atomic::AtomicBool>,
    workers: usize,
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

impl Conductor {
    fn conduct(self) -> Option<(f64, f64, Vec<Duration>)> {
        let result = self.measure();
        self.mail.post(Event::Drain);
        result
    }

    fn measure(&self) -> Option<(f64, f64, Vec<Duration>)> {
        for _ in 0..self.workers {
            self.joins.recv_timeout(PATIENCE).ok()?;
        }
        let mut next = 0;
        self.flood(&mut next, 1)?;
        let plain = self.flood(&mut next, JOBS)?;
        let _ = self.say.send(format!("{plain:.0} tasks/s"));
        self.journalled.store(true, std::sync::atomic::Ordering::Relaxed);
        let with_journal = self.flood(&mut next, JOBS)?;
        self.journalled.store(false, std::sync::atomic::Ordering::Relaxed);
        let _ = self.say.send(format!("{with_journal:.0} tasks/s with journal"));
        self.chain(&mut next, 2)?;
        self.take_trips();
        self.chain(&mut next, ROUND_TRIPS / CHAIN)?;
        Some((plain, with_journal, self.take_trips()))
    }

    fn take_trips(&self) -> Vec<Duration> {
        let mut trips = self.trips.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Embedded there is only worker 0 and up, under MPI worker 0 is rank 0's own: count the others.
        let remote = trips.iter().any(|(w, _)| w.0 > 0);
        trips.drain(..).filter(|(w, _)| !remote || w.0 > 0).map(|(_, d)| d).collect()
    }

    fn flood(&self, next: &mut usize, jobs: usize) -> Option<f64> {
        let start = Instant::now();
        for _ in 0..jobs {
            *next += 1;
            self.mail.post(Event::Arrived { scan: scan("flood", *next), check: Check::None });
        }
        let mut last = start;
        for _ in 0..jobs {
            last = self.done.recv_timeout(PATIENCE).ok()?;
        }
        Some((jobs * STAGE) as f64 / last.duration_since(start).as_secs_f64())
    }

    fn chain(&self, next: &mut usize, jobs: usize) -> Option<()> {
        for _ in 0..jobs {
            *next += 1;
            self.mail.post(Event::Arrived { scan: scan("chain", *next), check: Check::None });
            self.done.recv_timeout(PATIENCE).ok()?;
        }
        Some(())
    }
}
