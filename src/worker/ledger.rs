//! What a rank knows of the attempts its executor holds: which wait, which run, since when, and is it alive?
//!
//! Contract: pure. Time is the watcher's own and stands still while the watcher itself was not running (a paused job,
//! a machine asleep): an executor is not blamed for a pause of everybody.

use crate::technique::plan::JobContext;
use crate::transport::wire::{FromWorker, ToWorker};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// An executor that says nothing for this long, not even a beat, is stopped or deadlocked.
pub const SILENCE: Duration = Duration::from_secs(30);
/// Longest step of the own time: looks are never further apart while the watcher runs.
const STEP: Duration = Duration::from_secs(1);

/// What ails an executor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ailment {
    /// For people.
    pub reason: String,
    /// The attempt that took too long.
    pub culprit: Option<u64>,
}

struct Running {
    since: Duration,
    limit_s: f64,
}

/// The attempts of one executor.
pub struct Ledger {
    waiting: HashMap<u64, u64>,
    running: HashMap<u64, Running>,
    limits: HashMap<u64, f64>,
    now: Duration,
    looked: Instant,
    heard: Duration,
}

impl Ledger {
    /// Nothing held.
    pub fn new(now: Instant) -> Self {
        let (waiting, running, limits) = Default::default();
        Self { waiting, running, limits, now: Duration::ZERO, looked: now, heard: Duration::ZERO }
    }

    /// Notes what goes to the executor.
    pub fn sent(&mut self, message: &ToWorker) {
        match message {
            ToWorker::Job(job) => drop(self.limits.insert(job.job, job.task_limit_s)),
            ToWorker::Run { attempt, job, .. } => drop(self.waiting.insert(*attempt, *job)),
            ToWorker::Forget { job } => drop(self.limits.remove(job)),
            _ => {}
        }
    }

    /// Notes what came from it.
    pub fn came(&mut self, message: &FromWorker) {
        match message {
            FromWorker::Started { attempt } => {
                let job = self.waiting.remove(attempt);
                let limit_s = job.and_then(|j| self.limits.get(&j)).copied().unwrap_or(JobContext::TASK_LIMIT_S);
                self.running.insert(*attempt, Running { since: self.now, limit_s });
            }
            FromWorker::Done { attempt, .. } if self.waiting.remove(attempt).is_none() => {
                self.running.remove(attempt);
            }
            _ => {}
        }
    }

    /// Takes a look; `heard` anything since the last one? What ails it, if something does.
    pub fn look(&mut self, now: Instant, heard: bool) -> Option<Ailment> {
        self.now += now.saturating_duration_since(self.looked).min(STEP);
        self.looked = now;
        if heard {
            self.heard = self.now;
        }
        if self.now - self.heard > SILENCE {
            let reason = format!("it said nothing for {} s: stopped, or deadlocked", SILENCE.as_secs());
            return Some(Ailment { reason, culprit: None });
        }
        let over = |r: &Running| (self.now - r.since).as_secs_f64() - r.limit_s;
        let late = self.running.iter().filter(|(_, r)| over(r) > 0.0);
        let (attempt, run) = late.max_by(|a, b| over(a.1).total_cmp(&over(b.1)))?;
        let reason = format!("killed, because a task took longer than its limit of {} s", run.limit_s);
        Some(Ailment { reason, culprit: Some(*attempt) })
    }

    /// The executor is gone: what ran and what waited, in order. Nothing is held any more, no context is known, and the
    /// next executor is heard from now on.
    pub fn clear(&mut self) -> (Vec<u64>, Vec<u64>) {
        let mut running: Vec<u64> = self.running.drain().map(|(a, _)| a).collect();
        let mut waiting: Vec<u64> = self.waiting.drain().map(|(a, _)| a).collect();
        running.sort_unstable();
        waiting.sort_unstable();
        self.limits.clear();
        self.heard = self.now;
        (running, waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::technique::plan::{TaskKind, TaskOutput, TaskSpec};

    fn run(attempt: u64) -> ToWorker {
        let task = TaskSpec { label: "t".into(), kind: TaskKind::Stage, params: vec![], cost: 1.0, bytes_in: 0 };
        ToWorker::Run { attempt, job: 1, task }
    }

    fn done(attempt: u64) -> FromWorker {
        FromWorker::Done { attempt, result: Ok(TaskOutput::default()) }
    }

    #[test]
    fn attempts_wait_run_and_end() {
        let mut ledger = Ledger::new(Instant::now());
        (1..=5).for_each(|a| ledger.sent(&run(a)));
        ledger.came(&FromWorker::Started { attempt: 2 });
        ledger.came(&FromWorker::Started { attempt: 1 });
        ledger.came(&done(1));
        ledger.came(&done(5));
        assert_eq!(ledger.clear(), (vec![2], vec![3, 4]));
        assert_eq!(ledger.clear(), (vec![], vec![]));
    }

    #[test]
    fn a_task_over_its_limit_is_the_culprit() {
        let start = Instant::now();
        let at = |s: f64| start + Duration::from_secs_f64(s);
        let mut ledger = Ledger::new(start);
        (1..=2).for_each(|a| ledger.sent(&run(a)));
        ledger.came(&FromWorker::Started { attempt: 1 });
        for i in 0..8_000 {
            assert_eq!(ledger.look(at(f64::from(i) * 0.1), true), None);
        }
        ledger.came(&FromWorker::Started { attempt: 2 });
        let ailment = (8_000..9_100).find_map(|i| ledger.look(at(f64::from(i) * 0.1), true)).unwrap();
        assert_eq!(ailment.culprit, Some(1));
        assert!(ailment.reason.contains("900 s"), "{}", ailment.reason);
    }

    #[test]
    fn silence_counts_only_while_we_look() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        // We slept for an hour: that is one step.
        assert_eq!(ledger.look(start + Duration::from_secs(3600), false), None);
        let silent =
            (1..400).position(|i| ledger.look(start + Duration::from_millis(3_600_000 + i * 100), false).is_some());
        assert!((280..300).contains(&silent.unwrap()), "{silent:?}");
        ledger.clear();
        assert_eq!(ledger.look(start + Duration::from_millis(3_640_100), false), None);
    }
}
