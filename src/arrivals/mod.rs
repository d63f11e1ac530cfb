//! Arrivals: the one thread that lists directories. Turns listings into complete scans; opens no scan file.
//!
//! Contract
//! - Polling only: inotify does not see what other clients of a parallel filesystem write.
//! - In the steady state it costs one stat a folder and second, whatever the number of known scans
//!   (`benches/arrivals.rs`); a slow sweep looks at finished scans again, so that a rewrite is a new version.
//! - Everything below a watched folder is untrusted: names, links, kinds, numbers and depths.
//! - Events are facts, commands are orders ([`events`]); the decisions are in [`Poller`], which is tested
//!   with a virtual clock. Probes and hashes run in executors.
//!
//! [`scan`] says what a scan is; `tree` keeps the listings, `classify` tells what a name means, `watcher`
//! keeps the books, `step` decides about one scan, `observe` stats it, `judge` has the completeness rules,
//! `roles` finds companions, `sweep` looks again.

mod classify;
pub mod events;
mod judge;
pub mod listing;
pub mod manifest;
pub mod names;
mod observe;
mod poller;
mod roles;
pub mod scan;
mod step;
mod sweep;
mod tree;
mod watcher;

#[cfg(test)]
mod tests;

pub use events::{ArrivalCommand, ArrivalEvent, Known, Proof, StreamWatch};
pub use poller::Poller;
pub use watcher::Now;

use crossbeam::channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender};
use std::io;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// Shortest and longest sleep between two polls.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Starts the polling thread. It ends on [`ArrivalCommand::Stop`] or when the other side hangs up.
///
/// # Errors
/// When the thread cannot be started.
pub fn spawn(
    streams: Vec<StreamWatch>,
    known: Vec<Known>,
    once: bool,
    events: Sender<ArrivalEvent>,
    commands: Receiver<ArrivalCommand>,
) -> io::Result<JoinHandle<()>> {
    let poller = Poller::new(streams, known, once);
    std::thread::Builder::new().name("arrivals".into()).spawn(move || run(poller, &events, &commands))
}

fn run(mut poller: Poller, events: &Sender<ArrivalEvent>, commands: &Receiver<ArrivalCommand>) {
    let start = Instant::now();
    let mut disk = listing::Disk::default();
    // What was asked for before the first look counts in it: with `--once` there may be no second one.
    while let Ok(command) = commands.try_recv() {
        if !poller.obey(now(start), command) {
            return;
        }
    }
    loop {
        for event in poller.poll(now(start), &mut disk) {
            if !send(&mut poller, event, events, commands, start) {
                return;
            }
        }
        let pause = poller.next_due().saturating_sub(now(start).mono).clamp(PAUSE_MIN, PAUSE_MAX);
        let mut next = commands.recv_timeout(pause);
        loop {
            match next {
                Ok(command) => {
                    if !poller.obey(now(start), command) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => break,
            }
            next = commands.recv_timeout(Duration::ZERO);
        }
    }
}

/// Delivers one event, obeying commands while the channel is full; false when it is time to end.
fn send(
    poller: &mut Poller,
    mut event: ArrivalEvent,
    events: &Sender<ArrivalEvent>,
    commands: &Receiver<ArrivalCommand>,
    start: Instant,
) -> bool {
    loop {
        match events.send_timeout(event, Duration::from_millis(100)) {
            Ok(()) => return true,
            Err(SendTimeoutError::Disconnected(_)) => return false,
            Err(SendTimeoutError::Timeout(back)) => event = back,
        }
        while let Ok(command) = commands.try_recv() {
            if !poller.obey(now(start), command) {
                return false;
            }
        }
    }
}

fn now(start: Instant) -> Now {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now { mono: Now::START + start.elapsed(), wall_ns: i64::try_from(wall.as_nanos()).unwrap_or(i64::MAX) }
}
