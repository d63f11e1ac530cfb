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
    use super::super::inbox::Inbox;
    use super::super::threads::{StatusWriter, Watched};
    use super::*;
    use crate::campaign::Campaign;
    use crate::coordinator::disk::Disk;
    use crate::coordinator::driver::Mailbox;
    use crate::coordinator::event::Event;
    use crate::coordinator::lanes::DiskPool;
    use crate::coordinator::writers::Writers;
    use crate::store::claims::Identity;
    use crate::store::host::Process;
    use crate::store::{Fs, Host, Layout, RealFs, RealHost};
    use crossbeam::channel::Receiver;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// In place of a filesystem call that does not return: the clock, which a look reads first.
    struct Held(Receiver<()>, Arc<AtomicBool>);

    impl Host for Held {
        fn mono(&self) -> Duration {
            if self.1.load(Ordering::Acquire) {
                self.0.recv().unwrap_or_default();
            }
            RealHost.mono()
        }
        fn wall_ms(&self) -> u64 {
            RealHost.wall_ms()
        }
        fn is_proven_dead(&self, process: &Process) -> bool {
            RealHost.is_proven_dead(process)
        }
    }

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

    /// The inbox thread hangs in a look: status says so, nobody waits for it, and it tells of a status thread that hangs.
    #[test]
    fn each_of_the_threads_tells_of_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let text = "[campaign]\nname = \"c\"\n[[stream]]\nname = \"s\"\nwatch = \"in\"\ntechnique = \"tomography\"\n";
        let campaign = Campaign::parse(text, &dir.path().join("c.toml")).unwrap();
        let layout = Layout::open(&RealFs, dir.path()).unwrap();
        let (release, held) = crossbeam::channel::bounded(0);
        let disk = |host: Arc<dyn Host>| {
            let me = Identity::own("me");
            Arc::new(Disk::new(Arc::new(RealFs), host, layout.clone(), me, Default::default()))
        };
        let (real, holds) = (disk(Arc::new(RealHost)), Arc::new(AtomicBool::new(false)));
        let stuck = disk(Arc::new(Held(held, holds.clone())));
        holds.store(true, Ordering::Release);
        let pool = DiskPool::spawn(real.clone(), Mailbox::new().0).unwrap();
        let (mailbox, letters) = Mailbox::new();
        let (commands, _obeyed) = crossbeam::channel::unbounded();
        let inbox = Inbox::new(stuck, (campaign.clone(), Default::default()), mailbox.clone(), commands);
        let notices = inbox.notices();
        let (hung, own) = (Rounds::default(), Rounds::default());
        let long_ago = Instant::now().checked_sub(2 * HANGS).unwrap();
        hung.begin(long_ago);
        let inbox = inbox.spawn((hung, own.clone())).unwrap();
        let mut heard = Vec::new();
        let mut hears = |word: &str| {
            let end = Instant::now() + Duration::from_secs(60);
            while !heard.iter().any(|m: &String| m.contains(word)) && Instant::now() < end {
                heard.extend(letters.take().into_iter().filter_map(|e| match e {
                    Event::Alarm { message } => Some(message),
                    _ => None,
                }));
                std::thread::sleep(Duration::from_millis(20));
            }
            heard.iter().filter(|m| m.contains(word)).count()
        };
        assert_eq!(hears("status and heartbeat"), 1);
        // It is in its look by now, or soon; as if for long.
        while own.hangs(Instant::now() + 2 * HANGS).is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        own.begin(long_ago);
        let writers = Writers::new(crossbeam::channel::bounded(1).0);
        let rounds = (Rounds::default(), own);
        let watched = Watched { pulse: Arc::default(), writers, busy: pool.busy(), notices, rounds };
        let status = StatusWriter::new(real.clone(), &campaign, "embedded", Arc::default(), watched, None);
        let (_wake, woken) = crossbeam::channel::bounded(1);
        let (status, _show) = status.spawn(mailbox, woken).unwrap();
        assert_eq!(hears("requests and edits"), 1);
        let (status, inbox) = (status.stop(true), inbox.stop());
        assert!(end_by(&status, Instant::now() + Duration::from_secs(60)));
        assert!(!end_by(&inbox, Instant::now() + Duration::from_millis(50)));
        let shown = String::from_utf8(RealFs.read(&layout.status("me"), 1 << 20).unwrap()).unwrap();
        assert!(shown.contains("requests and edits of the campaign are not taken in"), "{shown}");
        drop(release);
        assert!(end_by(&inbox, Instant::now() + Duration::from_secs(60)));
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
