//! The processes of a pilot that may write below staging, as its heartbeat tells others.
//!
//! Contract: a process is in the heartbeat on disk before it is given work, and leaves it only with its worker's goodbye. Who
//! proves every process of a heartbeat dead therefore knows that nothing of that pilot writes any more, and may adopt
//! what it finished.

use crate::store::host::Process;
use crate::transport::WorkerId;
use crossbeam::channel::Sender;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// See the module. Clones share one list.
#[derive(Debug, Clone)]
pub struct Writers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    list: Mutex<List>,
    /// Version of the list that the heartbeat on disk holds.
    on_disk: AtomicU64,
    /// Asks for a heartbeat now.
    wake: Option<Sender<()>>,
}

#[derive(Debug, Default)]
struct List {
    version: u64,
    by_worker: BTreeMap<WorkerId, Vec<Process>>,
}

impl Writers {
    /// A list whose heartbeat is asked for through `wake`.
    pub fn new(wake: Sender<()>) -> Self {
        Self(Arc::new(Shared { list: Mutex::default(), on_disk: AtomicU64::new(0), wake: Some(wake) }))
    }

    /// A list that nobody writes down: benchmarks have no heartbeat.
    pub fn unwatched() -> Self {
        Self(Arc::new(Shared { list: Mutex::default(), on_disk: AtomicU64::new(u64::MAX), wake: None }))
    }

    fn list(&self) -> MutexGuard<'_, List> {
        // Whoever panicked while holding it left a whole list behind.
        self.0.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a process; returns the version from which on it may be given work.
    pub fn add(&self, worker: WorkerId, process: Process) -> u64 {
        let mut list = self.list();
        list.version += 1;
        list.by_worker.entry(worker).or_default().push(process);
        let version = list.version;
        drop(list);
        if let Some(wake) = &self.0.wake {
            // Full means that a heartbeat is asked for already.
            let _ = wake.try_send(());
        }
        version
    }

    /// Every process of this worker is reaped.
    pub fn reaped(&self, worker: WorkerId) {
        self.list().by_worker.remove(&worker);
    }

    /// The list for a heartbeat, with its version.
    pub fn snapshot(&self) -> (u64, Vec<Process>) {
        let list = self.list();
        (list.version, list.by_worker.values().flatten().cloned().collect())
    }

    /// A heartbeat with this version is on disk.
    pub fn written(&self, version: u64) {
        self.0.on_disk.fetch_max(version, Ordering::AcqRel);
    }

    /// True when this version is on disk.
    pub fn is_written(&self, version: u64) -> bool {
        version <= self.0.on_disk.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_work_once_it_is_written_and_stays_until_it_is_reaped() {
        let (wake, woken) = crossbeam::channel::bounded(1);
        let writers = Writers::new(wake);
        let process = |pid| Process { host: "h".into(), boot: "b".into(), pid, pid_start: 1 };
        let first = writers.add(WorkerId(1), process(10));
        let (version, list) = writers.snapshot();
        let second = writers.add(WorkerId(1), process(11));
        assert!(woken.try_recv().is_ok() && list.len() == 1);
        writers.written(version);
        assert!(writers.is_written(first) && !writers.is_written(second));
        assert_eq!(writers.snapshot().1.len(), 2, "the one before may still write");
        writers.reaped(WorkerId(1));
        assert!(writers.snapshot().1.is_empty());
    }
}
