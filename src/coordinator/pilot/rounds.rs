//! The threads that touch the filesystem once a second, and whether they come round: each is watched by the other.
//!
//! Contract: a filesystem call may never return. Then the other thread says so, once, and nobody waits for the thread
//! when the pilot ends.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A round that takes longer hangs.
pub(super) const HANGS: Duration = Duration::from_secs(30);

/// Since when a thread has been in its present round.
#[derive(Debug, Clone, Default)]
pub(super) struct Rounds(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    began: Option<Instant>,
    /// The present round was told of.
    told: bool,
}

impl Rounds {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        // Whoever panicked while holding it left a plain time behind.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The thread touches files from now on.
    pub(super) fn begin(&self, now: Instant) {
        self.change(|state| *state = State { began: Some(now), told: false });
    }

    /// It has come round.
    pub(super) fn end(&self) {
        self.change(|state| state.began = None);
    }

    /// How long it has hung, if it does.
    pub(super) fn hangs(&self, now: Instant) -> Option<Duration> {
        let since = self.change(|state| state.began)?;
        Some(now.saturating_duration_since(since)).filter(|long| *long > HANGS)
    }

    /// True the first time that the present round is found to hang.
    pub(super) fn hangs_newly(&self, now: Instant) -> bool {
        self.hangs(now).is_some() && self.change(|state| !std::mem::replace(&mut state.told, true))
    }
}

/// Waits for a thread until `end`; one that does not end by then is left to the end of the process.
pub(super) fn end_by(thread: &JoinHandle<()>, end: Instant) -> bool {
    while !thread.is_finished() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_that_does_not_end_is_told_once() {
        let (rounds, now) = (Rounds::default(), Instant::now());
        let later = now + HANGS + Duration::from_secs(1);
        assert!(!rounds.hangs_newly(later), "it rests");
        rounds.begin(now);
        assert!(!rounds.hangs_newly(now + HANGS));
        assert_eq!(rounds.hangs(later), Some(HANGS + Duration::from_secs(1)));
        assert!(rounds.hangs_newly(later) && !rounds.hangs_newly(later));
        rounds.end();
        assert_eq!(rounds.hangs(later), None);
        rounds.begin(now);
        assert!(rounds.hangs_newly(later), "another round, another hang");
    }

    #[test]
    fn nobody_waits_for_a_thread_that_hangs() {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || held.recv().unwrap_or_default());
        assert!(!end_by(&thread, Instant::now() + Duration::from_millis(50)));
        drop(release);
        assert!(end_by(&thread, Instant::now() + Duration::from_secs(60)));
    }
}
