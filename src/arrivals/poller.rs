//! All streams' arrivals behind one door: poll, obey, and say when to come back.
//!
//! Contract: no clock, no thread, no channel; tests drive it with a virtual clock. [`super::spawn`] is the
//! thread around it.

use super::events::{ArrivalCommand, ArrivalEvent, Known, StreamWatch};
use super::listing::Listing;
use super::watcher::{Now, Watcher};
use std::time::Duration;

/// Turns listings into events.
pub struct Poller {
    watchers: Vec<Watcher>,
    once: bool,
    commands: u64,
    /// How many commands had been obeyed when idleness was last said; `None` after anything happened.
    idle_said: Option<u64>,
}

impl Poller {
    /// A poller of these streams; `known` is what was published or quarantined before.
    pub fn new(streams: Vec<StreamWatch>, known: Vec<Known>, once: bool) -> Self {
        let of = |stream: &str| known.iter().filter(|k| k.stream == stream).cloned().collect();
        let watchers = streams.into_iter().map(|s| (of(&s.name), s)).map(|(k, s)| Watcher::new(s, k, once)).collect();
        Self { watchers, once, commands: 0, idle_said: None }
    }

    /// Looks at whatever is due.
    pub fn poll(&mut self, now: Now, fs: &mut dyn Listing) -> Vec<ArrivalEvent> {
        let mut events = Vec::new();
        for watcher in &mut self.watchers {
            watcher.poll(now, fs);
            events.append(&mut watcher.events);
        }
        if self.once {
            let idle: Option<Vec<_>> = self.watchers.iter().map(Watcher::idle).collect();
            match idle {
                Some(incomplete) if self.idle_said != Some(self.commands) => {
                    self.idle_said = Some(self.commands);
                    let incomplete = incomplete.into_iter().flatten().collect();
                    events.push(ArrivalEvent::Idle { commands: self.commands, incomplete });
                }
                Some(_) => {}
                None => self.idle_said = None,
            }
        }
        events
    }

    /// Obeys one command; false for [`ArrivalCommand::Stop`]. Names that are not watched are ignored:
    /// the scan may be gone by now.
    pub fn obey(&mut self, now: Now, command: ArrivalCommand) -> bool {
        if matches!(command, ArrivalCommand::Again { .. }) {
            // It comes from a person and not from the core, which counts its own; what is idle must be said anew.
            self.idle_said = None;
        } else {
            self.commands += 1;
        }
        let (ArrivalCommand::NotYet { stream, .. }
        | ArrivalCommand::Changed { stream, .. }
        | ArrivalCommand::Done { stream, .. }
        | ArrivalCommand::Forget { stream, .. }
        | ArrivalCommand::Again { stream, .. }) = &command
        else {
            return false;
        };
        let published = stream.clone();
        if let Some(watcher) = self.watchers.iter_mut().find(|w| w.watch.name == *stream) {
            let done = matches!(command, ArrivalCommand::Done { .. });
            match command {
                ArrivalCommand::NotYet { name, reason, .. } => watcher.settle_again(&name, Some(reason), now),
                ArrivalCommand::Changed { name, .. } => watcher.settle_again(&name, None, now),
                ArrivalCommand::Done { name, version, linked, .. } => watcher.done(&name, version, linked, now),
                ArrivalCommand::Forget { name, .. } => watcher.release(&name, now),
                ArrivalCommand::Again { name, .. } => watcher.again(&name, now),
                ArrivalCommand::Stop => {}
            }
            if done {
                // A bundle of it may be there: who goes on from it is not idle before having looked.
                let followers = self.watchers.iter_mut().filter(|w| w.watch.from.as_ref() == Some(&published));
                followers.for_each(Watcher::list_soon);
            }
        }
        true
    }

    /// When to poll again, on the monotonic clock.
    pub fn next_due(&self) -> Duration {
        self.watchers.iter().map(Watcher::next_due).min().unwrap_or(Duration::MAX)
    }
}
