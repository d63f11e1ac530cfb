//! The three phases of a task: load, compute, store; each a thread with a rayon pool of its own.
//!
//! Contract
//! - The input is compared with its stamps before loading, after loading (or after a whole probe, verification or
//!   plan) and before a result is reported. The check after loading always starts after the last read; the two
//!   others accept one that is at most a second old. Decide tasks read no input.
//! - A fault or panic while the input was changing is [`Fault::InputChanged`]: a torn read looks like anything.
//! - No phase runs for a cancelled attempt, or once the executor is stopping.

use super::executor::{Shared, Work};
use super::panics::{catch, guard};
use crate::technique::plan::{Fault, TaskKind, TaskOutput};
use crate::technique::{Payload, Technique};
use crossbeam::channel::{Receiver, Sender, bounded};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An unchanged input is believed for this long where no read lies in between.
const FRESH: Duration = Duration::from_secs(1);

/// When a job's input was last seen unchanged, as the time at which that check began.
#[derive(Default)]
pub(super) struct Input(Mutex<Option<Instant>>);

impl Input {
    fn unchanged_since(&self, since: Instant, work: &Work) -> Result<(), Fault> {
        if matches!(work.ctx.task.kind, TaskKind::Decide | TaskKind::Noop) {
            return Ok(());
        }
        // The lock is not held during the check: stat calls may hang.
        let seen = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.is_some_and(|seen| seen >= since) {
            return Ok(());
        }
        let scan = &work.ctx.job.scan;
        let begin = Instant::now();
        match scan.changed() {
            Ok(None) => {
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(begin);
                Ok(())
            }
            Ok(Some(path)) => Err(Fault::InputChanged(path)),
            Err(e) => Err(Fault::reading(&scan.root.join(&scan.name), &e)),
        }
    }

    fn unchanged_lately(&self, work: &Work) -> Result<(), Fault> {
        let now = Instant::now();
        self.unchanged_since(now.checked_sub(FRESH).unwrap_or(now), work)
    }
}

type Body = Box<dyn FnOnce(&Shared) + Send>;

/// The bodies of the loader, computer and storer threads.
pub(super) fn build(shared: &Shared) -> io::Result<[Body; 3]> {
    let threads = shared.config.threads;
    let aside = threads.div_ceil(2).clamp(1, 8);
    let reading = pool(shared, "r", aside)?;
    let computing = pool(shared, "c", threads)?;
    let writing = pool(shared, "w", aside)?;
    // No capacity: a finished phase holds its task until the next one takes it.
    let (loaded, to_compute) = bounded(0);
    let (computed, to_store) = bounded(0);
    Ok([
        Box::new(move |shared| load_all(shared, &reading, &loaded)),
        Box::new(move |shared| compute_all(shared, &computing, &to_compute, &computed)),
        Box::new(move |shared| store_all(shared, &writing, &to_store)),
    ])
}

fn pool(shared: &Shared, letter: &'static str, threads: usize) -> io::Result<ThreadPool> {
    let id = shared.config.id.0;
    let book = shared.book.clone();
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(move |i| format!("x{id}-{letter}{i}"))
        .start_handler(move |_| guard(&book))
        .build()
        .map_err(io::Error::other)
}

type Handed = (Work, Payload);

fn load_all(shared: &Shared, pool: &ThreadPool, next: &Sender<Handed>) {
    while let Some(mut work) = shared.next() {
        match load(shared, pool, &mut work) {
            Ok(Loaded::Payload(payload)) => {
                if shared.goes_on(&work) && next.send((work, payload)).is_err() {
                    return; // The computer is gone: stopping.
                }
            }
            Ok(Loaded::Answer(output)) => shared.done(work.ctx.attempt, Ok(*output)),
            Err(fault) => shared.done(work.ctx.attempt, Err(fault)),
        }
    }
}

enum Loaded {
    Payload(Payload),
    Answer(Box<TaskOutput>),
}

fn answer(output: TaskOutput) -> Loaded {
    Loaded::Answer(Box::new(output))
}

fn load(shared: &Shared, pool: &ThreadPool, work: &mut Work) -> Result<Loaded, Fault> {
    work.input.unchanged_lately(work)?;
    let technique = technique(shared, work)?;
    let begin = Instant::now();
    let ctx = &work.ctx;
    let result = run(shared, pool, technique, work, || match ctx.task.kind {
        TaskKind::Probe => {
            let inspection = technique.inspect(ctx)?;
            let carry = serde_json::json!({ "summary": inspection.summary }).to_string();
            Ok(answer(TaskOutput { carry, ..TaskOutput::default() }))
        }
        TaskKind::Verify => shared.config.services.verify(ctx).map(|()| answer(TaskOutput::default())),
        TaskKind::Plan => {
            technique.plan(ctx).map(|plan| answer(TaskOutput { plan: Some(plan), ..TaskOutput::default() }))
        }
        _ => technique.load(ctx).map(Loaded::Payload),
    });
    work.timings.read_s = begin.elapsed().as_secs_f64();
    let mut loaded = after_reading(work, result)?;
    if let Loaded::Answer(output) = &mut loaded {
        fill_timings(output, work);
    }
    Ok(loaded)
}

/// The input is looked at again, whether the read went well or not.
fn after_reading<T>(work: &Work, result: Result<T, Fault>) -> Result<T, Fault> {
    match (result, work.input.unchanged_since(Instant::now(), work)) {
        (Ok(value), Ok(())) => Ok(value),
        (Ok(_), Err(fault)) | (Err(_), Err(fault @ Fault::InputChanged(_))) | (Err(fault), _) => Err(fault),
    }
}

fn compute_all(shared: &Shared, pool: &ThreadPool, from: &Receiver<Handed>, next: &Sender<Handed>) {
    for (mut work, payload) in from {
        if !shared.goes_on(&work) {
            continue;
        }
        let begin = Instant::now();
        let result = technique(shared, &work)
            .and_then(|technique| run(shared, pool, technique, &work, || technique.compute(&work.ctx, payload)));
        work.timings.compute_s = begin.elapsed().as_secs_f64();
        match result {
            Ok(payload) => {
                if shared.goes_on(&work) && next.send((work, payload)).is_err() {
                    return; // The storer is gone: stopping.
                }
            }
            Err(fault) => shared.done(work.ctx.attempt, Err(fault)),
        }
    }
}

fn store_all(shared: &Shared, pool: &ThreadPool, from: &Receiver<Handed>) {
    for (mut work, payload) in from {
        if !shared.goes_on(&work) {
            continue;
        }
        let begin = Instant::now();
        let result = technique(shared, &work).and_then(|technique| {
            run(shared, pool, technique, &work, || {
                let output = technique.store(&work.ctx, payload)?;
                match work.ctx.task.kind {
                    TaskKind::Finish => shared.config.services.seal(&work.ctx, output),
                    _ => Ok(output),
                }
            })
        });
        work.timings.write_s = begin.elapsed().as_secs_f64();
        let result = result.and_then(|mut output| {
            work.input.unchanged_lately(&work)?;
            if output.carry.len() > TaskOutput::MAX_CARRY {
                let (label, bytes) = (&work.ctx.task.label, output.carry.len());
                let text = format!("{label} reports {bytes} bytes of results, at most {} fit", TaskOutput::MAX_CARRY);
                return Err(Fault::Task(text));
            }
            fill_timings(&mut output, &work);
            Ok(output)
        });
        shared.done(work.ctx.attempt, result);
    }
}

fn fill_timings(output: &mut TaskOutput, work: &Work) {
    let fill = |slot: &mut f64, measured: f64| {
        if *slot == 0.0 {
            *slot = measured;
        }
    };
    fill(&mut output.timings.read_s, work.timings.read_s);
    fill(&mut output.timings.compute_s, work.timings.compute_s);
    fill(&mut output.timings.write_s, work.timings.write_s);
}

fn technique(shared: &Shared, work: &Work) -> Result<&'static dyn Technique, Fault> {
    let name = &work.ctx.job.technique;
    let found = shared.config.services.technique(name);
    found.ok_or_else(|| Fault::Task(format!("this build has no technique called {name}")))
}

/// Runs technique code inside the pool, where it needs one; a panic becomes a fault. Verifying and sealing always do.
fn run<T: Send>(
    shared: &Shared,
    pool: &ThreadPool,
    technique: &dyn Technique,
    work: &Work,
    f: impl FnOnce() -> Result<T, Fault> + Send,
) -> Result<T, Fault> {
    let own = matches!(work.ctx.task.kind, TaskKind::Plan | TaskKind::Preview | TaskKind::Stage);
    let here = own && !technique.uses_pool();
    let outcome = catch(&shared.book, || if here { f() } else { pool.install(f) });
    outcome.unwrap_or_else(|text| {
        let ctx = &work.ctx;
        Err(Fault::Task(format!("{} {}: {text}", ctx.job.technique, ctx.task.label)))
    })
}
