//! The executor: takes tasks in the order given, and overlaps reading, computing and writing.
//!
//! Contract
//! - Three threads, loader → computer → storer, with nothing between them: a loaded task waits in the loader until
//!   the computer is free. So at most **three tasks are held in memory**, which is what
//!   [`Resources::task_memory`](crate::technique::Resources) promises.
//! - Probe, Verify and Plan read headers or hash; they run in the loader alone. No-ops are answered inside
//!   [`Executor::deliver`].
//! - Beats have a thread of their own: neither a stalled write nor a long computation silences them.
//! - [`Executor::deliver`] never blocks. Answers leave through the channel given to [`Executor::spawn`], in the
//!   order and with the guarantees of [`crate::transport::wire`].
//! - A cancelled attempt that has started is given up at the end of its phase.
//!
//! **Pools.** Each thread works inside a rayon pool of its own: `threads` for computing, half of it (1 to 8) for
//! reading, and again for writing. One shared pool would be a trap: a pool thread blocked in `read` is lost to the
//! computation, and a computing thread that waits in a `join` would pick up the next task's read and be stuck in
//! it; with one or two threads nothing would overlap at all. The price is that decompression competes with
//! computing for cores; the kernel shares them out, and neither waits for the other's disk.
//! A technique that only waits for programs ([`Technique::uses_pool`]) runs on the three threads themselves.

use super::hosted::Hosting;
use super::panics::Book;
use super::phases;
use crate::technique::plan::{Fault, JobContext, TaskKind, TaskOutput, TaskSpec};
use crate::technique::{TaskContext, Technique};
use crate::transport::WorkerId;
use crate::transport::wire::{CANCELLED, FromWorker, ToWorker};
use crossbeam::channel::Sender;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The services of a pilot, as against those of benchmarks and tests.
const PILOT: &str = "pilot";

/// What an executor needs beside techniques.
pub trait Services: Send + Sync {
    /// What an executor in a process of its own is told, to find the same services.
    fn name(&self) -> &'static str {
        PILOT
    }

    /// The technique of that name.
    fn technique(&self, name: &str) -> Option<&'static dyn Technique> {
        crate::technique::registry(name)
    }

    /// Does the scan agree with the manifest that came with it?
    ///
    /// # Errors
    /// The fault that answers the task.
    fn verify(&self, ctx: &TaskContext) -> Result<(), Fault>;

    /// After the technique's `Finish`: writes manifest and checksums into the staged bundle.
    ///
    /// # Errors
    /// The fault that answers the task.
    fn seal(&self, ctx: &TaskContext, output: TaskOutput) -> Result<TaskOutput, Fault>;
}

/// How to set up an executor. The fields that [`ExecutorConfig::new`] does not ask for have good defaults.
#[derive(Clone)]
pub struct ExecutorConfig {
    /// Its name to the coordinator: MPI rank, or number in this process.
    pub id: WorkerId,
    /// Host name, for messages and manifests.
    pub host: String,
    /// Threads that compute.
    pub threads: usize,
    /// Bytes one task may use.
    pub task_memory: u64,
    /// Bytes that it may hold with everything it starts, where it has a process of its own and there is a limit.
    pub memory: Option<u64>,
    /// Techniques, verification and sealing.
    pub services: Arc<dyn Services>,
    /// Threads of this process, or a process of its own.
    pub hosting: Hosting,
    /// Build announced in `Hello`; tests announce another one.
    pub build: String,
    /// Time between beats.
    pub beat: Duration,
    /// After `Shutdown`: how long phases in progress may take to end before `Bye` is said without them.
    pub grace: Duration,
}

impl ExecutorConfig {
    /// The usual executor of this build: a beat a second, two seconds of grace.
    pub fn new(
        id: WorkerId,
        host: impl Into<String>,
        threads: usize,
        task_memory: u64,
        services: Arc<dyn Services>,
    ) -> Self {
        Self {
            id,
            host: host.into(),
            threads: threads.max(1),
            task_memory,
            memory: None,
            services,
            hosting: Hosting::Threads,
            build: crate::BUILD.to_owned(),
            beat: Duration::from_secs(1),
            grace: Duration::from_secs(2),
        }
    }
}

/// A running executor. Dropping it stops it without waiting; see [`Executor::join`].
pub struct Executor {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Executor {
    /// Starts the threads and says `Hello` on `out`.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn spawn(config: ExecutorConfig, out: Sender<(WorkerId, FromWorker)>) -> io::Result<Self> {
        let id = config.id;
        let hello = FromWorker::Hello {
            build: config.build.clone(),
            host: config.host.clone(),
            pid: std::process::id(),
            boot: crate::store::claims::boot_id(),
            pid_start: crate::store::claims::process_start(std::process::id()).unwrap_or(0),
            threads: config.threads as u32,
            task_memory: config.task_memory,
        };
        let shared = Arc::new(Shared {
            config,
            book: Book::default(),
            out: Mutex::new(Some(out)),
            queue: Mutex::new(Queue::default()),
            work: Condvar::new(),
            ended: Condvar::new(),
            unfit: AtomicBool::new(false),
        });
        shared.emit(hello);
        let mut this = Self { shared, threads: Vec::with_capacity(5) };
        // On an error `this` is dropped, and the threads that did start end.
        let mut start = |name: &str, body: Box<dyn FnOnce(&Shared) + Send>| {
            let shared = Arc::clone(&this.shared);
            let builder = std::thread::Builder::new().name(format!("x{}-{name}", id.0));
            this.threads.push(builder.spawn(move || shared.survive(body))?);
            io::Result::Ok(())
        };
        let [load, compute, store] = phases::build(&this.shared)?;
        start("load", load)?;
        start("compute", compute)?;
        start("store", store)?;
        start("beat", Box::new(Shared::beat))?;
        if this.shared.config.services.name() == PILOT {
            start("device", Box::new(Shared::examine_device))?;
        }
        Ok(this)
    }

    /// Its name to the coordinator.
    pub fn id(&self) -> WorkerId {
        self.shared.config.id
    }

    /// Takes messages, in order. Never blocks: work is queued, no-ops are answered here and now.
    pub fn deliver(&self, messages: impl IntoIterator<Item = ToWorker>) {
        let mut queue = self.shared.queue();
        let mut answers = Vec::new();
        for message in messages {
            if queue.stopping {
                break;
            }
            queue.take(message, &mut answers);
        }
        let stopping = queue.stopping;
        drop(queue);
        self.shared.emit_all(answers);
        self.shared.work.notify_one();
        if stopping {
            self.shared.ended.notify_all();
        }
    }

    /// After a `Shutdown`, waits for the threads; false when one is stuck in a technique or a stalled filesystem.
    /// It is then left behind: end the process without running exit handlers (HDF5's would wait for it).
    pub fn join(mut self, longest: Duration) -> bool {
        self.shared.stop();
        let deadline = Instant::now() + longest;
        while self.threads.iter().any(|t| !t.is_finished()) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // Technique panics are caught inside; anything else was printed by the hook when it happened.
        self.threads.drain(..).for_each(|t| drop(t.join()));
        true
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// A task on its way through the phases.
pub(super) struct Work {
    pub ctx: TaskContext,
    pub input: Arc<phases::Input>,
    pub cancelled: Arc<AtomicBool>,
    pub timings: crate::technique::Timings,
}

struct Pending {
    attempt: u64,
    job: u64,
    task: TaskSpec,
}

#[derive(Default)]
struct Queue {
    pending: VecDeque<Pending>,
    jobs: HashMap<u64, (Arc<JobContext>, Arc<phases::Input>)>,
    /// Started attempts until their `Done`: their job, and whether they were cancelled.
    running: HashMap<u64, (u64, Arc<AtomicBool>)>,
    stopping: bool,
}

impl Queue {
    fn take(&mut self, message: ToWorker, answers: &mut Vec<FromWorker>) {
        match message {
            ToWorker::Welcome { pilot } => tracing::debug!(pilot, "welcomed"),
            ToWorker::Job(job) => {
                if self.jobs.get(&job.job).is_none_or(|(known, _)| known.epoch <= job.epoch) {
                    let input = Arc::new(phases::Input::default());
                    self.jobs.insert(job.job, (Arc::from(job), input));
                }
            }
            ToWorker::Run { attempt, task, .. } if task.kind == TaskKind::Noop => {
                answers.push(FromWorker::Done { attempt, result: Ok(TaskOutput::default()) });
            }
            ToWorker::Run { attempt, job, task } => self.pending.push_back(Pending { attempt, job, task }),
            ToWorker::Cancel { attempt } => {
                if let Some(i) = self.pending.iter().position(|p| p.attempt == attempt) {
                    self.pending.remove(i);
                    answers.push(cancelled(attempt));
                } else if let Some((_, flag)) = self.running.get(&attempt) {
                    flag.store(true, Ordering::Relaxed);
                }
            }
            ToWorker::Forget { job } => {
                let context = self.jobs.remove(&job).map(|(context, _)| context);
                let scratch = context.and_then(|c| c.scratch.clone().map(|base| (base, c.key.clone())));
                if let Some((base, key)) = scratch {
                    // Here and now: the next message may be the end of this process.
                    super::node_scratch::release(&base, &key);
                }
                let (gone, stay) = std::mem::take(&mut self.pending).into_iter().partition(|p| p.job == job);
                self.pending = stay;
                let gone: VecDeque<Pending> = gone;
                answers.extend(gone.iter().map(|p| cancelled(p.attempt)));
                let started = self.running.values().filter(|(of, _)| *of == job);
                started.for_each(|(_, flag)| flag.store(true, Ordering::Relaxed));
            }
            // Threads cannot be killed: whoever hosts this executor, or nobody, obeys.
            ToWorker::Reset => tracing::warn!("told to start over; an executor in threads cannot"),
            ToWorker::Shutdown => self.stop(),
        }
    }

    /// What runs is told too: a program of another author is not left running.
    fn stop(&mut self) {
        self.pending.clear();
        self.stopping = true;
        self.running.values().for_each(|(_, flag)| flag.store(true, Ordering::Relaxed));
    }
}

fn cancelled(attempt: u64) -> FromWorker {
    FromWorker::Done { attempt, result: Err(Fault::Task(CANCELLED.to_owned())) }
}

/// What the threads of one executor share.
pub(super) struct Shared {
    pub config: ExecutorConfig,
    pub book: Book,
    /// `None` once `Bye` was said.
    out: Mutex<Option<Sender<(WorkerId, FromWorker)>>>,
    queue: Mutex<Queue>,
    /// Something is pending, or it is time to stop.
    work: Condvar,
    /// An attempt ended, or it is time to stop.
    ended: Condvar,
    /// That the device was lost has been said.
    unfit: AtomicBool,
}

impl Shared {
    /// Runs a thread's body. If it panics outside a phase (a payload's destructor, or our own mistake) the executor
    /// stops and says `Bye`, rather than beat on without a pulse.
    fn survive(&self, body: impl FnOnce(&Self)) {
        super::panics::guard(&self.book);
        if let Err(text) = super::panics::catch(&self.book, || body(self)) {
            tracing::error!(worker = %self.config.id, "executor ends: {text}");
            self.stop();
        }
    }

    // No lock is held while foreign code runs, so a poisoned one still guards a consistent value.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emit(&self, message: FromWorker) {
        self.emit_all([message]);
    }

    fn emit_all(&self, messages: impl IntoIterator<Item = FromWorker>) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        for message in messages {
            let last = message == FromWorker::Bye;
            if let Some(out) = out.as_ref() {
                // The receiver is gone only when the process is ending.
                let _ = out.send((self.config.id, message));
            }
            if last {
                *out = None;
            }
        }
    }

    /// The next task, started; `None` when it is time to stop.
    pub fn next(&self) -> Option<Work> {
        let mut queue = self.queue();
        loop {
            if queue.stopping {
                return None;
            }
            let Some(next) = queue.pending.pop_front() else {
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let Some((job, input)) = queue.jobs.get(&next.job).cloned() else {
                let text = format!(
                    "worker {} has no context of job {} for {}; it was never sent, or too large to send",
                    self.config.id, next.job, next.task.label
                );
                self.emit(FromWorker::Done { attempt: next.attempt, result: Err(Fault::Task(text)) });
                continue;
            };
            let flag = Arc::new(AtomicBool::new(false));
            queue.running.insert(next.attempt, (next.job, Arc::clone(&flag)));
            drop(queue);
            self.emit(FromWorker::Started { attempt: next.attempt });
            let ctx = TaskContext {
                job,
                task: next.task,
                attempt: next.attempt,
                host: self.config.host.clone(),
                rank: self.config.id.0,
                cancelled: Arc::clone(&flag),
            };
            return Some(Work { ctx, input, cancelled: flag, timings: Default::default() });
        }
    }

    /// Shall this task go on into its next phase? If not it has been answered, or the executor is stopping.
    pub fn goes_on(&self, work: &Work) -> bool {
        if self.queue().stopping {
            self.queue().running.remove(&work.ctx.attempt);
            self.ended.notify_all();
            return false;
        }
        if work.cancelled.load(Ordering::Relaxed) {
            self.done(work.ctx.attempt, Err(Fault::Task(CANCELLED.to_owned())));
            return false;
        }
        true
    }

    /// Answers an attempt.
    pub fn done(&self, attempt: u64, result: Result<TaskOutput, Fault>) {
        // Before the answer: the last task of a pilot may be this one, and its worker is to blame, not its scan.
        if result.is_err() {
            self.tell_of_lost_device();
        }
        self.emit(FromWorker::Done { attempt, result });
        self.queue().running.remove(&attempt);
        self.ended.notify_all();
    }

    /// Says once that the device was lost, if it was.
    fn tell_of_lost_device(&self) {
        if let Some(reason) = crate::device::lost()
            && !self.unfit.swap(true, Ordering::Relaxed)
        {
            self.emit(FromWorker::Unfit { reason: reason.to_owned() });
        }
    }

    fn stop(&self) {
        let mut queue = self.queue();
        queue.stop();
        drop(queue);
        self.work.notify_all();
        self.ended.notify_all();
    }

    /// The fifth thread: tests the GPU once, aside, for a device that hangs must not silence the beats.
    fn examine_device(&self) {
        if let Some(reason) = crate::device::examine() {
            tracing::error!(worker = %self.config.id, "{reason}");
            self.emit(FromWorker::Unfit { reason: reason.to_owned() });
        }
    }

    /// The fourth thread: beats, and in the end waits for running phases and says `Bye`.
    fn beat(&self) {
        let mut due = Instant::now();
        let mut queue = self.queue();
        while !queue.stopping {
            let now = Instant::now();
            if now >= due {
                due = now + self.config.beat;
                drop(queue);
                self.emit(FromWorker::Beat { peak_bytes: super::topology::peak_bytes() });
                self.tell_of_lost_device();
                queue = self.queue();
                continue;
            }
            queue = self.ended.wait_timeout(queue, due - now).unwrap_or_else(PoisonError::into_inner).0;
        }
        let deadline = Instant::now() + self.config.grace;
        while !queue.running.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            queue = self.ended.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(queue);
        self.emit(FromWorker::Bye);
    }
}
