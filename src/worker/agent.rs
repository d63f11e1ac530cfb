//! The main loop of a worker rank: carries messages between rank 0 and this rank's executor.
//!
//! Contract
//! - One thread, the one that owns the link (MPI); it makes no filesystem call. It sleeps between looks as
//!   [`Backoff`] says, and the executor's answers wake it at once.
//! - It ends after `Shutdown`, when the executor has said `Bye` and everything has left. An executor that says `Bye`
//!   unasked (its keeper died) leaves a rank that only waits for `Shutdown`. It does **not** watch whether rank 0 lives:
//!   an idle rank 0 says nothing, and when rank 0 dies the launcher kills the other ranks (all launchers in
//!   FACILITY.md do, unless told otherwise). SIGTERM is the caller's.

use super::hosted::Hosted;
use crate::transport::backoff::{Backoff, Pause, precise_sleeps};
use crate::transport::wire::{FromWorker, ToWorker};
use crate::transport::{TransportError, WorkerId};
use crossbeam::channel::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// A worker's end of the line to the coordinator.
pub trait Link {
    /// Queues a message; never blocks.
    fn send(&mut self, message: FromWorker);
    /// Sends what is queued and appends what arrived; true when anything moved.
    ///
    /// # Errors
    /// What came cannot be understood.
    fn exchange(&mut self, inbox: &mut Vec<ToWorker>) -> Result<bool, TransportError>;
    /// True when nothing is left to send.
    fn is_flushed(&self) -> bool;
}

/// How long the last messages may take to leave.
const FLUSH: Duration = Duration::from_secs(5);

/// Serves until shutdown. `answers` is the other end of what `executor` was given. Returns the executor, stopped
/// but perhaps still stuck in a phase: see [`Hosted::join`].
///
/// # Errors
/// Rank 0 speaks another version: this rank must exit.
pub fn run(
    link: &mut dyn Link,
    executor: impl Into<Hosted>,
    answers: &Receiver<(WorkerId, FromWorker)>,
) -> Result<Hosted, TransportError> {
    precise_sleeps();
    let executor = executor.into();
    let mut backoff = Backoff::new(Instant::now());
    let mut inbox = Vec::new();
    let mut leaving: Option<Instant> = None;
    let (mut told, mut gone) = (false, false);
    loop {
        let mut active = link.exchange(&mut inbox)?;
        if inbox.contains(&ToWorker::Shutdown) {
            told = true;
            if gone {
                link.send(FromWorker::Bye);
            }
        }
        executor.deliver(inbox.drain(..));
        for (_, answer) in answers.try_iter() {
            active |= forward(link, answer, &mut gone);
        }
        if told && gone {
            leaving.get_or_insert(Instant::now() + FLUSH);
        }
        if active {
            backoff.touch(Instant::now());
        }
        if let Some(deadline) = leaving {
            link.exchange(&mut inbox)?;
            if link.is_flushed() || Instant::now() >= deadline {
                return Ok(executor);
            }
        }
        if active {
            continue;
        }
        match backoff.pause(Instant::now()) {
            Pause::Yield => std::thread::yield_now(),
            Pause::Sleep(pause) => match answers.recv_timeout(pause) {
                Ok((_, answer)) => {
                    if forward(link, answer, &mut gone) {
                        backoff.touch(Instant::now());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The executor said `Bye` and let go of the channel: do not spin on it.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(pause),
            },
        }
    }
}

/// True when the message is more than a heartbeat.
fn forward(link: &mut dyn Link, answer: FromWorker, gone: &mut bool) -> bool {
    *gone |= answer == FromWorker::Bye;
    let active = !matches!(answer, FromWorker::Beat { .. });
    link.send(answer);
    active
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::technique::{Fault, TaskContext, TaskKind, TaskOutput, TaskSpec};
    use crate::transport::frame::FrameError;
    use crate::worker::{Executor, ExecutorConfig, Services};
    use std::sync::Arc;

    struct Nothing;

    impl Services for Nothing {
        fn verify(&self, _: &TaskContext) -> Result<(), Fault> {
            Ok(())
        }
        fn seal(&self, _: &TaskContext, output: TaskOutput) -> Result<TaskOutput, Fault> {
            Ok(output)
        }
    }

    /// Hands out a script, one step an exchange, and sends only while nobody looks.
    #[derive(Default)]
    struct Script {
        steps: Vec<Result<ToWorker, FrameError>>,
        queued: Vec<FromWorker>,
        sent: Vec<FromWorker>,
    }

    impl Link for Script {
        fn send(&mut self, message: FromWorker) {
            self.queued.push(message);
        }
        fn exchange(&mut self, inbox: &mut Vec<ToWorker>) -> Result<bool, TransportError> {
            self.sent.append(&mut self.queued);
            if self.steps.is_empty() {
                return Ok(false);
            }
            inbox.push(self.steps.remove(0).map_err(|error| TransportError::Frame { rank: 0, error })?);
            Ok(true)
        }
        fn is_flushed(&self) -> bool {
            self.queued.is_empty()
        }
    }

    fn play(steps: Vec<Result<ToWorker, FrameError>>) -> (Script, Result<Hosted, TransportError>) {
        let (out, answers) = crossbeam::channel::unbounded();
        let config = ExecutorConfig::new(WorkerId(3), "here", 1, 1, Arc::new(Nothing));
        let executor = Executor::spawn(config, out).unwrap();
        let mut script = Script { steps, ..Script::default() };
        let outcome = run(&mut script, executor, &answers);
        (script, outcome)
    }

    #[test]
    fn serves_until_shutdown_and_sends_everything() {
        let task = TaskSpec { label: "n".into(), kind: TaskKind::Noop, params: vec![], cost: 1.0, bytes_in: 0 };
        let runs = (0..50).map(|attempt| Ok(ToWorker::Run { attempt, job: 1, task: task.clone() }));
        let (script, outcome) = play(runs.chain([Ok(ToWorker::Shutdown)]).collect());
        assert!(outcome.unwrap().join(Duration::from_secs(5)));
        assert!(matches!(script.sent.first(), Some(FromWorker::Hello { .. })));
        assert_eq!(script.sent.iter().filter(|m| matches!(m, FromWorker::Done { .. })).count(), 50);
        assert_eq!(script.sent.last(), Some(&FromWorker::Bye));
    }

    #[test]
    fn another_wire_version_ends_the_rank() {
        let (_, outcome) = play(vec![Err(FrameError::Version { got: 9 })]);
        let error = outcome.err().unwrap();
        assert!(error.is_configuration() && error.to_string().contains("rank 0"), "{error}");
    }
}
