//! Named scenarios, one behaviour each.

use super::bench::*;
use crate::coordinator::core::StreamSpec;
use crate::coordinator::event::*;
use crate::coordinator::queue::Order;
use crate::technique::plan::*;
use crate::transport::WorkerId;

#[test]
fn a_scan_is_checked_planned_previewed_computed_and_published() {
    let mut b = Bench::new(vec![stream("s")]).workers(2);
    b.arrive("s", "a.h5");
    let labels = b.run();
    assert_eq!(&labels[..3], ["probe", "plan", "preview"]);
    assert_eq!(labels.last().unwrap(), "finish");
    assert_eq!(labels.len(), 2 + 1 + 1 + 4 + 1);
    assert_eq!(b.published.len(), 1);
    assert_eq!(b.told, [("a.h5".to_owned(), Verdict::Done)]);
}

#[test]
fn linked_files_of_the_plan_belong_to_the_input() {
    let mut b = Bench::new(vec![stream("s")]).workers(2);
    b.instant_disk = false;
    let linked = scan("s", "frames.h5", 1, 1).members;
    b.plan.linked.clone_from(&linked);
    b.arrive("s", "a.h5");
    b.run();
    let Some(Action::Claim { job, .. }) = b.actions.pop_front() else { panic!("no claim") };
    let outcome = ClaimOutcome::Won { generation: 1, staging: "/staging".into(), deaths: 0, adopted: None };
    b.step(Event::Claimed { job, outcome });
    b.run();
    let Some(Action::Publish { scan: published, .. }) = b.actions.pop_front() else { panic!("not published") };
    assert_eq!(published.linked, linked);
    b.step(Event::Published { job, outcome: PublishOutcome::Done { bundle: "/bundle".into() } });
    assert_eq!(b.told, [("a.h5".to_owned(), Verdict::DoneLinked(linked))]);
}

#[test]
fn the_same_scan_twice_is_one_job_and_a_rewrite_replaces_it() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    let at = b.now.0 / 1_000_000;
    b.step(Event::Arrived { scan: scan("s", "a", 1, at), check: Check::None });
    b.step(Event::Arrived { scan: scan("s", "a", 1, at), check: Check::None });
    b.step(Event::Arrived { scan: scan("s", "a", 2, at), check: Check::None });
    b.run();
    assert_eq!(b.published.len(), 1, "only the newer version");
    assert_eq!(b.released, 1, "the older one's claim went back");
}

#[test]
fn stages_wait_for_each_other_and_finish_waits_for_the_preview() {
    let mut b = Bench::new(vec![stream("s")]).workers(4);
    b.arrive("s", "a");
    let preview = b.until("preview");
    assert!(b.assigned.iter().any(|(_, _, _, t)| t.label == "s0-0"), "stages do not wait for the preview");
    assert!(!b.assigned.iter().any(|(_, _, _, t)| t.label.starts_with("s1")));
    let kept = b.assigned.remove(preview);
    b.run();
    assert!(b.published.is_empty(), "finish waits for the preview");
    b.assigned.push(kept);
    b.run();
    assert_eq!(b.published.len(), 1);
}

#[test]
fn decide_adds_stages() {
    let mut b = Bench::new(vec![stream("s")]).workers(2);
    b.plan = plan(&[2]);
    b.plan.stages[0].decide = Some(task("decide", TaskKind::Decide));
    b.arrive("s", "a");
    let i = b.until("decide");
    let (worker, attempt, _, _) = b.assigned.remove(i);
    let mut more = plan(&[1, 3]);
    more.preview = None;
    let rename = |t: &mut TaskSpec| t.label = format!("more-{}", t.label);
    more.stages.iter_mut().flat_map(|s| &mut s.tasks).for_each(rename);
    b.step(Event::TaskEnded { worker, attempt, result: Ok(TaskOutput { plan: Some(more), ..TaskOutput::default() }) });
    let rest = b.run();
    assert_eq!(rest.len(), 1 + 3 + 1, "{rest:?}");
    assert_eq!(b.published.len(), 1);
}

#[test]
fn a_plan_out_of_bounds_is_quarantined() {
    type Spoil = fn(&mut Plan);
    let bad: [(&str, Spoil); 4] = [
        ("stages", |p| p.stages = vec![p.stages[0].clone(); Plan::MAX_STAGES + 1]),
        ("task label", |p| p.stages[1].tasks[1].label = p.stages[1].tasks[0].label.clone()),
        ("task label", |p| p.finish.label = "../x".into()),
        ("no task", |p| p.stages[0].tasks.clear()),
    ];
    for (what, change) in bad {
        let mut b = Bench::new(vec![stream("s")]).workers(1);
        change(&mut b.plan);
        b.arrive("s", "a");
        b.run();
        assert!(b.published.is_empty() && b.quarantined[0].1.contains(what), "{what}: {:?}", b.quarantined);
    }
}

#[test]
fn a_failing_task_goes_elsewhere_and_the_third_strike_quarantines() {
    let mut b = Bench::new(vec![stream("s")]).workers(3);
    b.arrive("s", "a");
    let i = b.until("s1-0");
    let mut seen = vec![b.fail(i, Fault::Task("boom".into())).0];
    for _ in 0..2 {
        // Elsewhere at once the first time, then after a while.
        b.pass_s(5.0);
        let i = b.assigned.iter().position(|(_, _, _, t)| t.label == "s1-0").unwrap();
        seen.push(b.fail(i, Fault::Task("boom".into())).0);
    }
    seen.sort();
    assert_eq!(seen, [WorkerId(0), WorkerId(1), WorkerId(2)], "three different workers tried");
    assert_eq!(b.quarantined.len(), 1);
    assert!(b.quarantined[0].1.contains("s1-0 failed 3 times") && b.quarantined[0].1.contains("boom"));
    let shown = b.core.view(b.now).errors;
    assert!(shown.len() == 3 && shown.iter().all(|e| e.task == "s1-0" && e.fault == "boom"));
    assert!(b.assigned.is_empty(), "its other tasks were withdrawn");
}

#[test]
fn an_unfit_scan_holds_nothing_else_up() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.arrive("s", "bad");
    b.arrive("s", "good");
    let i = b.until("plan");
    b.fail(i, Fault::Input("no dark frames".into()));
    b.run();
    assert_eq!(b.quarantined, [("bad".to_owned(), "no dark frames".to_owned())]);
    assert_eq!(b.published.len(), 1);
}

#[test]
fn a_failed_preview_does_not_fail_the_scan() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.arrive("s", "a");
    let i = b.until("preview");
    b.fail(i, Fault::Input("no picture".into()));
    b.run();
    assert_eq!(b.published.len(), 1);
}

#[test]
fn an_incomplete_scan_goes_back_to_arrivals() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.arrive("s", "a");
    b.fail(0, Fault::NotYet("short".into()));
    assert_eq!(b.told, [("a".to_owned(), Verdict::NotYet("short".into()))]);
    b.arrive("s", "a");
    b.run();
    assert_eq!(b.published.len(), 1);
}

#[test]
fn a_changed_input_discards_the_work() {
    let mut b = Bench::new(vec![stream("s")]).workers(2);
    b.arrive("s", "a");
    let i = b.until("s1-2");
    b.fail(i, Fault::InputChanged("/watch/a".into()));
    assert_eq!(b.told, [("a".to_owned(), Verdict::Changed)]);
    assert_eq!((b.released, b.assigned.len(), b.published.len()), (1, 0, 0));
}

#[test]
fn full_storage_pauses_everything_and_blames_nobody() {
    let mut b = Bench::new(vec![stream("s")]).workers(2);
    b.arrive("s", "a");
    let i = b.until("s1-0");
    b.fail(i, Fault::Storage("No space left on device".into()));
    while !b.assigned.is_empty() {
        b.fail(0, Fault::Storage("No space left on device".into()));
    }
    assert_eq!(b.alarms.len(), 1, "one alarm, not one a task");
    b.arrive("s", "b");
    assert!(b.assigned.is_empty(), "nothing is started meanwhile");
    for wait in [1.0, 2.0, 4.0] {
        b.pass_s(wait + 0.01);
        assert_eq!(b.actions.pop_front(), Some(Action::ProbeStorage));
        b.step(Event::StorageProbed { result: Err("still full".into()) });
    }
    b.pass_s(8.1);
    assert_eq!(b.actions.pop_front(), Some(Action::ProbeStorage));
    b.step(Event::StorageProbed { result: Ok(()) });
    b.run();
    assert_eq!((b.published.len(), b.quarantined.len()), (2, 0));
}

#[test]
fn publication_that_storage_refuses_is_ordered_again() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.arrive("s", "a");
    b.until("finish");
    b.instant_disk = false;
    b.succeed(0);
    let Some(Action::Publish { job, .. }) = b.actions.pop_front() else { panic!("no publication") };
    b.step(Event::Published { job, outcome: PublishOutcome::Storage("full".into()) });
    b.pass_s(1.1);
    assert_eq!(b.actions.pop_front(), Some(Action::ProbeStorage));
    b.instant_disk = true;
    b.step(Event::StorageProbed { result: Ok(()) });
    assert_eq!(b.published.len(), 1);
}

#[test]
fn a_lost_worker_costs_its_tasks_only() {
    let mut b = Bench::new(vec![stream("s")]).workers(2);
    b.arrive("s", "a");
    b.until("s1-0");
    b.step(Event::WorkerLost { worker: WorkerId(0), reason: "silent".into() });
    b.assigned.retain(|(w, _, _, _)| *w != WorkerId(0));
    b.run();
    assert_eq!((b.published.len(), b.quarantined.len()), (1, 0));
}

#[test]
fn a_scan_that_kills_four_workers_is_quarantined() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.arrive("s", "a");
    for w in 0..4 {
        let i = b.until("s0-0");
        let (worker, attempt, ..) = b.assigned[i].clone();
        b.step(Event::Started { worker, attempt });
        b.assigned.clear();
        b.step(Event::WorkerLost { worker: WorkerId(w), reason: "died".into() });
        b.join(w + 1);
    }
    assert_eq!(b.quarantined.len(), 1);
}

#[test]
fn another_pilots_scan_is_asked_for_again_and_found_published() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.instant_disk = false;
    let at = b.now.0 / 1_000_000;
    b.step(Event::Arrived { scan: scan("s", "a", 1, at), check: Check::None });
    for outcome in [ClaimOutcome::Foreign { owner: "other".into() }, ClaimOutcome::Published] {
        let Some(Action::Claim { job, .. }) = b.actions.pop_front() else { panic!("no claim") };
        b.step(Event::Claimed { job, outcome });
        assert!(b.actions.is_empty());
        b.pass_s(2.1);
    }
    assert_eq!(b.told, [("a".to_owned(), Verdict::Done)]);
}

#[test]
fn a_newer_version_waits_for_the_disks_answer_about_the_older() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.instant_disk = false;
    let at = b.now.0 / 1_000_000;
    b.step(Event::Arrived { scan: scan("s", "a", 1, at), check: Check::None });
    let Some(Action::Claim { job, .. }) = b.actions.pop_front() else { panic!("no claim") };
    b.instant_disk = true;
    b.step(Event::Arrived { scan: scan("s", "a", 2, at), check: Check::None });
    b.step(Event::Claimed {
        job,
        outcome: ClaimOutcome::Won { generation: 1, staging: "/x".into(), deaths: 0, adopted: None },
    });
    assert_eq!(b.released, 1);
    b.run();
    assert_eq!(b.published.len(), 1);
}

#[test]
fn urgent_goes_before_everything() {
    let mut b = Bench::new(vec![stream("s"), stream("t")]).workers(1);
    b.plan = plan(&[10]);
    b.plan.preview = None;
    b.arrive("s", "a");
    b.arrive("s", "b");
    b.arrive("t", "c");
    b.until("s0-0");
    b.step(Event::Urgent { stream: "s".into(), name: "b".into() });
    let job_b = b.core.jobs.iter().find(|(_, j)| j.scan.name == "b").map(|(n, _)| *n).unwrap();
    // What the worker already holds comes first; after that only b.
    let held = b.assigned.len();
    (0..held).for_each(|_| drop(b.succeed(0)));
    assert!(b.assigned.iter().all(|(_, _, j, _)| *j == job_b), "{:?}", b.assigned);
    b.run();
    assert_eq!(b.published.len(), 3);
}

#[test]
fn late_scans_give_way_to_those_in_time() {
    let mut s = stream("s");
    s.deadline_s = 5.0;
    let mut b = Bench::new(vec![s]).workers(1);
    b.plan = plan(&[6]);
    b.plan.preview = None;
    b.arrive("s", "old");
    b.until("s0-0");
    b.pass_s(60.0);
    b.arrive("s", "new");
    let new = b.core.jobs.iter().find(|(_, j)| j.scan.name == "new").map(|(n, _)| *n).unwrap();
    (0..b.assigned.len()).for_each(|_| drop(b.succeed(0)));
    assert_eq!(b.assigned[0].2, new, "the scan in time goes first");
    b.run();
    assert_eq!(b.published.len(), 2);
    assert_eq!(b.core.counts().late, 1);
}

#[test]
fn newest_first_when_the_stream_says_so() {
    let newest = StreamSpec { order: Order::Newest, ..stream("s") };
    let mut b = Bench::new(vec![newest]);
    for name in ["a", "b", "c"] {
        b.arrive("s", name);
        b.pass_s(1.0);
    }
    b.join(0);
    assert_eq!(b.core.jobs[&b.assigned[0].2].scan.name, "c");
    b.run();
}

#[test]
fn a_pilot_claims_only_what_it_can_soon_start() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.plan = plan(&[20]);
    for i in 0..50 {
        b.arrive("s", &format!("a{i}"));
    }
    while let Some(i) = b.assigned.iter().position(|(_, _, _, t)| matches!(t.kind, TaskKind::Probe | TaskKind::Plan)) {
        b.succeed(i);
    }
    let claimed = b.core.jobs.values().filter(|j| j.claim.is_some()).count();
    assert!((1..=30).contains(&claimed), "{claimed} claimed; tasks take about a second, 30 s ahead is the limit");
    b.run();
    assert_eq!(b.published.len(), 50);
}

#[test]
fn short_tasks_are_prefetched_and_long_ones_are_not() {
    for (seconds, depth) in [(0.000_1, 64), (10.0, 3)] {
        let mut b = Bench::new(vec![stream("s")]).workers(1);
        b.plan = plan(&[400]);
        b.plan.preview = None;
        b.arrive("s", "a");
        b.until("s0-0");
        for _ in 0..200 {
            b.now = b.now.plus_s(seconds);
            b.succeed(0);
        }
        assert_eq!(b.assigned.len(), depth, "at {seconds} s a task");
        b.run();
    }
}

#[test]
fn once_ends_when_nothing_is_left() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.arrive("s", "a");
    b.run();
    assert!(!b.finished);
    b.step(Event::ArrivalsQuiet { obeyed: b.told.len() as u64, incomplete: 1 });
    assert!(b.finished);
    assert_eq!(b.core.left_incomplete(), 1);
}

#[test]
fn a_drain_finishes_what_is_held_and_claims_nothing_more() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.arrive("s", "a");
    b.until("s1-0");
    b.step(Event::Drain);
    assert!(!b.finished);
    b.arrive("s", "late");
    b.run();
    assert!(b.finished);
    assert_eq!((b.published.len(), b.core.held().len()), (1, 0));
}

#[test]
fn a_stop_ends_at_once_and_leaves_what_is_held_to_be_handed_over() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.arrive("s", "a");
    b.until("s1-0");
    b.step(Event::Stop);
    assert!(b.finished);
    assert_eq!((b.released, b.published.len(), b.core.held().len()), (0, 0, 1));
}

#[test]
fn nothing_is_started_that_will_not_end_in_time() {
    let mut b = Bench::new(vec![stream("s")]).workers(1).until_s(100.0);
    b.arrive("s", "a");
    b.until("s1-0");
    assert_eq!(b.core.held().len(), 1);
    // Tasks take a second; 0.5 s before the end none of them fits.
    b.pass_s(99.3);
    b.run();
    b.pass_s(0.1);
    assert!(b.finished, "nothing fits any more");
    assert_eq!((b.published.len(), b.core.held().len()), (0, 1));
}

#[test]
fn an_untouched_claim_goes_back_when_a_drain_begins() {
    let mut b = Bench::new(vec![stream("s")]);
    b.step(Event::Arrived { scan: scan("s", "a", 1, 1), check: Check::None });
    b.join(0);
    let i = b.until("plan");
    b.fail(i, Fault::Task("boom".into()));
    assert_eq!(b.core.held().len(), 1);
    b.step(Event::Drain);
    assert_eq!((b.released, b.finished), (1, true));
}

#[test]
fn what_an_earlier_owner_finished_is_not_done_again() {
    use crate::store::takeover::Adopted;
    let mut b = Bench::new(vec![stream("s")]).workers(2);
    b.instant_disk = false;
    b.step(Event::Arrived { scan: scan("s", "a", 1, 1), check: Check::None });
    let Some(Action::Claim { job, .. }) = b.actions.pop_front() else { panic!("no claim") };
    let record = |label: &str, kind, stage| TaskRecord {
        stage,
        label: label.into(),
        kind,
        host: "h".into(),
        rank: 7,
        output: TaskOutput::default(),
    };
    let records = vec![
        record("preview", TaskKind::Preview, 0),
        record("s0-0", TaskKind::Stage, 0),
        record("s1-2", TaskKind::Stage, 1),
    ];
    let adopted = Some(Box::new(Adopted { plan: plan(&[1, 4]), records }));
    b.instant_disk = true;
    let outcome = ClaimOutcome::Won { generation: 2, staging: "/staging".into(), deaths: 1, adopted };
    b.step(Event::Claimed { job, outcome });
    let labels = b.run();
    assert_eq!(labels, ["s1-0", "s1-1", "s1-3", "finish"]);
    assert_eq!(b.published.len(), 1);
}

#[test]
fn a_scan_in_flight_at_three_deaths_runs_alone_and_the_fourth_quarantines_it() {
    let mut b = Bench::new(vec![stream("s")]).workers(2);
    b.arrive("s", "other");
    b.until("s1-0");
    b.instant_disk = false;
    b.step(Event::Arrived { scan: scan("s", "bad", 1, 1), check: Check::None });
    let Some(Action::Claim { job, .. }) = b.actions.pop_front() else { panic!("no claim") };
    b.instant_disk = true;
    let won = |deaths| ClaimOutcome::Won { generation: 2, staging: "/staging".into(), deaths, adopted: None };
    b.step(Event::Claimed { job, outcome: won(3) });
    assert_eq!(b.released, 1, "what runs already may end the pilot, and it would be its fourth death");
    b.pass_s(120.0);
    b.arrive("s", "later");
    assert!(b.assigned.iter().all(|(_, _, j, _)| *j != job), "it waits until nothing runs");
    // The other scan's running tasks end first; then only the suspect's run, and then the rest.
    let mut together = false;
    while !b.assigned.is_empty() {
        let own = b.assigned.iter().filter(|(_, _, j, _)| *j == job).count();
        together |= own > 0 && own < b.assigned.len();
        b.succeed(0);
    }
    assert!(b.alarms.iter().any(|a| a.contains("runs alone")), "{:?}", b.alarms);
    assert!(!together, "it shared the pilot");
    assert_eq!(b.published.len(), 3);
    assert!(b.published[0].contains("bad"), "nothing was started before it: {:?}", b.published);
    b.instant_disk = false;
    b.step(Event::Arrived { scan: scan("s", "bad", 2, 1), check: Check::None });
    let Some(Action::Claim { job, .. }) = b.actions.pop_front() else { panic!("no claim") };
    b.instant_disk = true;
    b.step(Event::Claimed { job, outcome: won(4) });
    assert!(b.quarantined[0].1.contains("4 pilots died"), "{:?}", b.quarantined);
}

#[test]
fn a_straggler_is_duplicated_and_the_first_result_wins() {
    let mut b = Bench::new(vec![stream("s")]).workers(2);
    b.plan = plan(&[8]);
    b.arrive("s", "a");
    b.until("s0-7");
    while b.assigned.len() > 1 {
        let i = b.assigned.iter().position(|(_, _, _, t)| t.label != "s0-7").unwrap();
        b.succeed(i);
    }
    b.pass_s(1.0);
    assert_eq!(b.assigned.len(), 1, "one second is nothing unusual");
    b.pass_s(9.0);
    assert_eq!(b.assigned.len(), 2);
    assert_ne!(b.assigned[0].0, b.assigned[1].0, "another worker tries");
    let (late, ..) = b.assigned[0].clone();
    b.succeed(1);
    assert!(b.assigned.iter().all(|(w, _, _, t)| t.label == "finish" || *w != late), "the loser is withdrawn");
    b.run();
    assert_eq!(b.published.len(), 1);
}

#[test]
fn a_worker_whose_device_is_unfit_is_drained_and_its_job_goes_on() {
    let mut b = Bench::new(vec![stream("s")]).workers(2);
    b.plan = plan(&[4]);
    b.plan.preview = None;
    b.arrive("s", "a");
    b.until("s0-0");
    b.step(Event::WorkerUnfit { worker: WorkerId(1), reason: "GPU x: self-test: a sum was wrong".to_owned() });
    assert!(
        b.alarms.iter().any(|a| a.contains("worker 1 on node is drained") && a.contains("self-test")),
        "{:?}",
        b.alarms
    );
    let held = b.assigned.iter().filter(|a| a.0 == WorkerId(1)).count();
    while !b.assigned.is_empty() {
        b.succeed(0);
        let now = b.assigned.iter().filter(|a| a.0 == WorkerId(1)).count();
        assert!(now <= held, "a drained worker was given a task");
    }
    assert_eq!(b.published.len(), 1);
    assert!(b.quarantined.is_empty());
    // The last one stays, and a warning is all.
    b.step(Event::WorkerUnfit { worker: WorkerId(0), reason: "GPU y: hot".to_owned() });
    assert!(
        b.alarms.iter().any(|a| a.contains("worker 0 on node is suspect, but there is no other")),
        "{:?}",
        b.alarms
    );
    let drained: Vec<bool> = b.core.view(b.now).workers.iter().map(|w| w.drained).collect();
    assert_eq!(drained, [false, true]);
}

#[test]
fn a_worker_on_which_tasks_fail_that_go_well_elsewhere_is_drained() {
    let mut b = Bench::new(vec![stream("s")]).workers(3);
    b.plan = plan(&[24]);
    b.arrive("s", "a");
    b.until("s0-0");
    while !b.assigned.is_empty() {
        b.now = b.now.plus_s(0.1);
        match b.assigned.iter().position(|(w, ..)| *w == WorkerId(1)) {
            Some(i) => drop(b.fail(i, Fault::Task("Xid 79".into()))),
            None => drop(b.succeed(0)),
        }
    }
    assert_eq!(b.published.len(), 1);
    assert!(b.alarms.iter().any(|a| a.contains("worker 1 on node is drained")), "{:?}", b.alarms);
    let drained: Vec<bool> = b.core.view(b.now).workers.iter().map(|w| w.drained).collect();
    assert_eq!(drained, [false, true, false]);
}

#[test]
fn a_rejected_name_is_quarantined_once() {
    let mut b = Bench::new(vec![stream("s")]);
    let rejected = |reason: &str| Event::Rejected {
        stream: "s".into(),
        name: "a%0A".into(),
        version: None,
        reason: reason.into(),
    };
    b.step(rejected("the name contains a line break"));
    assert_eq!(b.quarantined.len(), 1);
}

#[test]
fn late_and_unknown_messages_change_nothing() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    for event in [
        Event::TaskEnded { worker: WorkerId(9), attempt: AttemptNo(77), result: Ok(TaskOutput::default()) },
        Event::TaskEnded { worker: WorkerId(0), attempt: AttemptNo(77), result: Err(Fault::Task("x".into())) },
        Event::Started { worker: WorkerId(3), attempt: AttemptNo(1) },
        Event::WorkerLost { worker: WorkerId(9), reason: "?".into() },
        Event::Published { job: JobNo(4), outcome: PublishOutcome::Fenced },
        Event::Quarantined { job: JobNo(4), outcome: QuarantineOutcome::Done },
        Event::Claimed { job: JobNo(4), outcome: ClaimOutcome::Published },
        Event::StorageProbed { result: Ok(()) },
        Event::Urgent { stream: "x".into(), name: "y".into() },
    ] {
        let before = format!("{:?}", b.core.view(b.now));
        b.step(event.clone());
        assert_eq!(before, format!("{:?}", b.core.view(b.now)), "{event:?}");
    }
}

#[test]
fn lag_parts_add_up() {
    let at = |s: u64| Time::from_ms(s * 1000);
    let line = Timeline {
        last_byte: at(10),
        complete: at(12),
        checked: at(13),
        claimed: at(13),
        planned: at(14),
        previewed: None,
        computed: at(30),
    };
    let lag = line.lag(at(31));
    let parts = [lag.settling, lag.waiting, lag.planning, lag.computing, lag.publishing];
    assert_eq!(parts, [2.0, 1.0, 1.0, 16.0, 1.0]);
    assert_eq!(lag.total, 21.0);
}
