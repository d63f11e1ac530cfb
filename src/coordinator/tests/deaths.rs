//! Executors that die: blame, running alone, quarantine.

use super::bench::*;
use crate::coordinator::event::*;
use crate::technique::plan::TaskKind;
use crate::transport::WorkerId;

const SEGV: &str = "killed by SIGSEGV";

impl Bench {
    /// The executor of `w` dies; of what it held, these labels were running.
    fn die(&mut self, w: u32, running: &[&str], culprit: Option<&str>) {
        let held: Vec<(AttemptNo, String)> =
            self.assigned.iter().filter(|a| a.0 == WorkerId(w)).map(|a| (a.1, a.3.label.clone())).collect();
        self.assigned.retain(|a| a.0 != WorkerId(w));
        let number = |label: &str| held.iter().find(|(_, l)| l == label).unwrap_or_else(|| panic!("{label}?")).0;
        let (reason, culprit) = (SEGV.to_owned(), culprit.map(number));
        let running: Vec<AttemptNo> = running.iter().map(|l| number(l)).collect();
        let waiting = held.iter().map(|h| h.0).filter(|a| !running.contains(a)).collect();
        self.step(Event::ExecutorDied { worker: WorkerId(w), reason, running, waiting, culprit });
    }

    fn labels_on(&self, w: u32) -> Vec<String> {
        self.assigned.iter().filter(|a| a.0 == WorkerId(w)).map(|a| a.3.label.clone()).collect()
    }
}

/// One worker, a plan of one stage, just before the stage's tasks end.
fn in_stage(tasks: usize, workers: u32) -> Bench {
    let mut bench = Bench::new(vec![stream("s")]).workers(workers);
    bench.plan = plan(&[tasks]);
    bench.plan.preview = None;
    bench.arrive("s", "a");
    bench.until("s0-0");
    bench
}

#[test]
fn suspects_run_alone_and_the_innocent_are_not_blamed() {
    let mut bench = in_stage(6, 1);
    assert_eq!(bench.labels_on(0), ["s0-0", "s0-1", "s0-2"]);
    bench.die(0, &["s0-0", "s0-1"], None);
    assert!(bench.assigned.is_empty(), "a worker without an executor gets nothing");
    bench.join(0);
    let mut alone = 0;
    let mut seen = Vec::new();
    while !bench.assigned.is_empty() {
        if bench.assigned.iter().any(|a| ["s0-0", "s0-1"].contains(&a.3.label.as_str())) {
            assert_eq!(bench.assigned.len(), 1, "{:?}", bench.assigned);
            alone += 1;
        }
        seen.push(bench.succeed(0).label);
    }
    assert_eq!(alone, 2);
    assert_eq!(bench.published.len(), 1, "{seen:?}");
    assert!(bench.quarantined.is_empty());
}

#[test]
fn a_task_that_ends_three_executors_condemns_its_scan() {
    let mut bench = in_stage(6, 1);
    bench.die(0, &["s0-0", "s0-1"], None);
    bench.join(0);
    for _ in 0..2 {
        while bench.labels_on(0) != ["s0-1"] {
            bench.succeed(0);
        }
        bench.die(0, &["s0-1"], None);
        bench.join(0);
    }
    let (name, reason) = &bench.quarantined[0];
    assert_eq!(
        (name.as_str(), reason.as_str()),
        ("a", "task s0-1 ended its executor 3 times; the last time: killed by SIGSEGV")
    );
    // The next scan is not held up.
    bench.arrive("s", "b");
    bench.run();
    assert_eq!(bench.published.len(), 1);
}

#[test]
fn a_culprit_is_blamed_alone() {
    let mut bench = in_stage(4, 1);
    for round in 0..3 {
        bench.until("s0-1");
        assert!(bench.quarantined.is_empty(), "round {round}");
        let beside: Vec<String> = bench.labels_on(0).into_iter().filter(|l| l != "s0-1").collect();
        let running: Vec<&str> = beside.iter().map(String::as_str).chain(["s0-1"]).collect();
        bench.die(0, &running, Some("s0-1"));
        bench.join(0);
    }
    assert_eq!(bench.quarantined.len(), 1);
    assert!(bench.quarantined[0].1.contains("s0-1"));
}

#[test]
fn work_goes_to_the_living_meanwhile() {
    let mut bench = in_stage(8, 2);
    let on: Vec<String> = bench.labels_on(0);
    bench.die(0, &on.iter().map(String::as_str).collect::<Vec<_>>(), None);
    bench.run();
    assert_eq!(bench.published.len(), 1, "worker 1 does all of it");
}

#[test]
fn a_suspect_is_not_starved_by_a_flood() {
    let mut bench = in_stage(3, 2);
    bench.die(0, &["s0-0"], None);
    bench.join(0);
    bench.plan = plan(&[200]);
    bench.plan.preview = None;
    bench.arrive("s", "flood");
    let mut turns = 0;
    while bench.published.is_empty() {
        bench.succeed(0);
        turns += 1;
        assert!(turns < 100, "the suspect's scan waits behind the flood");
    }
    bench.run();
    assert_eq!(bench.published.len(), 2);
}

#[test]
fn a_second_hello_is_a_fresh_executor() {
    let mut bench = in_stage(4, 1);
    let before: Vec<AttemptNo> = bench.assigned.drain(..).map(|a| a.1).collect();
    bench.join(0);
    assert!(bench.assigned.iter().all(|a| !before.contains(&a.1)), "what the old one held is sent again");
    bench.run();
    assert_eq!(bench.published.len(), 1);
    assert_eq!(bench.core.counts().failed_tries, 0);
}

#[test]
fn late_and_unknown_deaths_change_nothing() {
    let mut bench = in_stage(4, 1);
    let reason = SEGV.to_owned();
    let gone = vec![AttemptNo(9999)];
    bench.step(Event::ExecutorDied {
        worker: WorkerId(7),
        reason: reason.clone(),
        running: gone.clone(),
        waiting: vec![],
        culprit: None,
    });
    assert_eq!(bench.labels_on(0).len(), 3);
    bench.assigned.clear();
    bench.step(Event::ExecutorDied { worker: WorkerId(0), reason, running: gone, waiting: vec![], culprit: None });
    bench.join(0);
    bench.run();
    assert_eq!(bench.published.len(), 1, "attempts the message did not name were requeued");
}

#[test]
fn a_preview_that_ends_executors_is_given_up() {
    let mut bench = Bench::new(vec![stream("s")]).workers(1);
    bench.arrive("s", "a");
    for _ in 0..3 {
        bench.until("preview");
        bench.die(0, &["preview"], None);
        bench.join(0);
    }
    let labels = bench.run();
    assert!(!labels.contains(&"preview".to_owned()));
    assert_eq!(bench.published.len(), 1);
    assert!(task("preview", TaskKind::Preview).kind < TaskKind::Stage);
}
