//! The main loop of a worker rank: carries messages between rank 0 and this rank's executor.
//!
//! Contract
//! - One thread, the one that owns the link (MPI); it makes no filesystem call. It sleeps between looks as
//!   [`Backoff`] says, and the executor's answers wake it at once.
//! - It ends when the executor has said `Bye` and everything has left. It does **not** watch whether rank 0 lives:
//!   an idle rank 0 says nothing, and when rank 0 dies the launcher kills the other ranks (all launchers in
//!   FACILITY.md do, unless told otherwise). SIGTERM is the caller's.

use super::executor::Executor;
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
/// but perhaps still stuck in a phase: see [`Executor::join`].
///
/// # Errors
/// Rank 0 speaks another version: this rank must exit.
pub fn run(
    link: &mut dyn Link,
    executor: Executor,
    answers: &Receiver<(WorkerId, FromWorker)>,
) -> Result<Executor, TransportError> {
    precise_sleeps();
    let mut backoff = Backoff::new(Instant::now());
    let mut inbox = Vec::new();
    let mut leaving: Option<Instant> = None;
    loop {
        let mut active = link.exchange(&mut inbox)?;
        executor.deliver(inbox.drain(..));
        for (_, answer) in answers.try_iter() {
            active |= forward(link, answer, &mut leaving);
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
                    if forward(link, answer, &mut leaving) {
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
fn forward(link: &mut dyn Link, answer: FromWorker, leaving: &mut Option<Instant>) -> bool {
    if answer == FromWorker::Bye {
        *leaving = Some(Instant::now() + FLUSH);
    }
    let active = !matches!(answer, FromWorker::Beat { .. });
    link.send(answer);
    active
}
