//! Scratch on a node's own disk: tasks run where it lies, and start anew when it is lost.

use super::bench::*;
use crate::coordinator::event::*;
use crate::technique::plan::Fault;
use crate::transport::WorkerId;
use std::collections::BTreeSet;

/// Two workers on each of these hosts: 0 and 1 on the first, 2 and 3 on the second, ….
fn bench(hosts: &[&str], scratch: bool) -> Bench {
    let mut b = Bench::new(vec![stream("s")]);
    b.core.limits.scratch = Some("/local".into());
    b.plan.scratch = scratch;
    for (i, host) in hosts.iter().enumerate() {
        b.join_at(2 * i as u32, host);
        b.join_at(2 * i as u32 + 1, host);
    }
    b
}

/// Answers everything; returns which workers had tasks of the stages, by scan.
fn workers_of_stages(b: &mut Bench) -> Vec<(JobNo, BTreeSet<u32>)> {
    let mut seen: std::collections::BTreeMap<JobNo, BTreeSet<u32>> = Default::default();
    while let Some((worker, _, job, task)) = b.assigned.first().cloned() {
        if task.label.starts_with('s') {
            seen.entry(job).or_default().insert(worker.0);
        }
        b.now = b.now.plus_s(0.1);
        b.succeed(0);
    }
    seen.into_iter().collect()
}

#[test]
fn on_one_host_scratch_is_local() {
    for (hosts, scratch, local) in [(vec!["a"], true, true), (vec!["a"], false, false), (vec!["a", "b"], true, false)] {
        let mut b = bench(&hosts, scratch);
        b.arrive("s", "scan");
        b.until("s1-0");
        let told = b.scratch.values().any(Option::is_some);
        assert_eq!(told, local, "{hosts:?} {scratch}");
        let used = workers_of_stages(&mut b);
        assert_eq!((b.published.len(), used.len()), (1, 1));
    }
}

#[test]
fn with_a_scan_for_every_host_each_has_its_own() {
    let mut b = bench(&["a", "b"], true);
    b.plan.stages = plan(&[4, 8]).stages;
    b.arrive("s", "one");
    b.arrive("s", "two");
    // Both are claimed before either is planned, so that neither keeps a host idle.
    let used = workers_of_stages(&mut b);
    assert_eq!(b.published.len(), 2);
    let at_home = |workers: &BTreeSet<u32>| workers.iter().all(|w| *w < 2) || workers.iter().all(|w| *w > 1);
    assert!(used.iter().all(|(_, workers)| at_home(workers)), "{used:?}");
    let all: BTreeSet<u32> = used.iter().flat_map(|(_, w)| w.iter().copied()).collect();
    assert!(all.iter().any(|w| *w < 2) && all.iter().any(|w| *w > 1), "{used:?}");
}

#[test]
fn a_lost_home_means_starting_anew_and_nothing_is_lost() {
    let mut b = bench(&["a"], true);
    b.arrive("s", "scan");
    b.until("s1-0");
    // A late node: the scan's tasks stay where their scratch is.
    b.join_at(8, "late");
    b.join_at(9, "late");
    assert!(b.assigned.iter().all(|(w, ..)| w.0 < 2), "{:?}", b.assigned);
    // One worker of two goes: the other goes on.
    b.assigned.retain(|(w, ..)| w.0 != 0);
    b.step(Event::WorkerLost { worker: WorkerId(0), reason: "gone".into() });
    assert!(b.released == 0 && b.assigned.iter().all(|(w, ..)| w.0 == 1), "{:?}", b.assigned);
    b.assigned.retain(|(w, ..)| w.0 != 1);
    b.step(Event::WorkerLost { worker: WorkerId(1), reason: "gone".into() });
    assert_eq!(b.released, 1, "its claim goes back");
    b.pass_s(2.0);
    let labels = b.run();
    assert!(labels.contains(&"s0-0".to_owned()), "the first stage is done again: {labels:?}");
    assert_eq!(b.published.len(), 1);
}

#[test]
fn a_home_whose_workers_are_drained_is_left() {
    let mut b = bench(&["a"], true);
    b.arrive("s", "scan");
    b.until("s1-0");
    b.join_at(8, "late");
    for worker in [0, 1] {
        b.step(Event::WorkerUnfit { worker: WorkerId(worker), reason: "test".into() });
    }
    assert_eq!(b.released, 1);
    b.pass_s(2.0);
    let used = workers_of_stages(&mut b);
    assert_eq!(b.published.len(), 1);
    assert!(used.iter().any(|(_, workers)| workers.contains(&8)), "{used:?}");
}

#[test]
fn a_task_that_fails_everywhere_at_home_goes_elsewhere() {
    let mut b = bench(&["a"], true);
    b.arrive("s", "scan");
    b.until("s1-0");
    b.join_at(8, "late");
    let mut seen = Vec::new();
    for _ in 0..3 {
        let Some(i) = b.assigned.iter().position(|(_, _, _, t)| t.label == "s1-0") else { break };
        let (worker, _) = b.fail(i, Fault::Task("boom".into()));
        seen.push(worker.0);
        b.pass_s(5.0);
    }
    assert_eq!((seen.len(), seen.last()), (3, Some(&8)), "{seen:?}");
    assert_eq!(b.quarantined.len(), 1);
    // An executor that is replaced is waited for.
    let mut b = bench(&["a"], true);
    b.arrive("s", "scan");
    b.until("s1-0");
    b.join_at(8, "late");
    for worker in [0, 1] {
        b.assigned.retain(|(w, ..)| w.0 != worker);
        let died = |worker| Event::ExecutorDied {
            worker: WorkerId(worker),
            reason: "killed".into(),
            running: vec![],
            waiting: vec![],
            culprit: None,
        };
        b.step(died(worker));
    }
    assert!(b.assigned.is_empty(), "{:?}", b.assigned);
    b.join_at(1, "a");
    assert!(!b.assigned.is_empty() && b.assigned.iter().all(|(w, ..)| w.0 == 1));
    b.run();
    assert_eq!(b.published.len(), 1);
}
