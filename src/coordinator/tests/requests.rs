//! What people ask for.

use super::bench::*;
use crate::coordinator::event::*;

fn hold(b: &mut Bench, stream: &str) {
    b.step(Event::Hold { stream: stream.into() });
}

fn resume(b: &mut Bench, stream: &str) {
    b.step(Event::Resume { stream: stream.into() });
}

fn recipe(name: Option<&str>, text: &str, salt: &str, since_ms: u64) -> Event {
    let (stream, name) = ("s".to_owned(), name.map(str::to_owned));
    Event::Recipe { stream, name, recipe: text.to_owned(), salt: salt.to_owned(), since_ms }
}

#[test]
fn a_held_stream_rests_and_others_go_on() {
    let mut b = Bench::new(vec![stream("s"), stream("t")]).workers(2);
    hold(&mut b, "s");
    b.arrive("s", "a");
    b.arrive("t", "b");
    b.run();
    assert_eq!(b.published.len(), 1);
    assert!(b.published[0].starts_with("t."));
    assert_eq!(b.core.view(b.now).held, ["s"]);
    resume(&mut b, "s");
    b.run();
    assert_eq!(b.published.len(), 2);
    hold(&mut b, "nobody");
    assert!(b.core.view(b.now).held.is_empty());
}

#[test]
fn holding_in_the_middle_lets_running_tasks_end_and_starts_no_more() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.arrive("s", "a");
    b.until("s0-0");
    hold(&mut b, "s");
    b.run();
    assert!(b.published.is_empty() && b.assigned.is_empty());
    resume(&mut b, "s");
    b.run();
    assert_eq!(b.published.len(), 1);
}

#[test]
fn a_held_stream_gets_no_second_tries() {
    let mut b = Bench::new(vec![stream("s"), stream("t")]).workers(2);
    b.plan = plan(&[8]);
    b.arrive("s", "a");
    b.until("s0-7");
    while b.assigned.len() > 1 {
        let i = b.assigned.iter().position(|(_, _, _, t)| t.label != "s0-7").unwrap();
        b.succeed(i);
    }
    hold(&mut b, "s");
    b.pass_s(20.0);
    assert_eq!(b.assigned.len(), 1, "the straggler alone");
    resume(&mut b, "s");
    b.pass_s(1.0);
    assert_eq!(b.assigned.len(), 2, "now another worker tries, too");
    b.run();
    assert_eq!(b.published.len(), 1);
}

#[test]
fn a_job_that_runs_alone_in_a_held_stream_holds_nobody_up() {
    let mut b = Bench::new(vec![stream("s"), stream("t")]).workers(2);
    b.instant_disk = false;
    b.step(Event::Arrived { scan: scan("s", "a", 1, 1), check: Check::None });
    let Some(Action::Claim { job, .. }) = b.actions.pop_front() else { panic!("no claim") };
    b.instant_disk = true;
    let outcome = ClaimOutcome::Won { generation: 2, staging: "/staging".into(), deaths: 3, adopted: None };
    b.step(Event::Claimed { job, outcome });
    hold(&mut b, "s");
    b.arrive("t", "b");
    b.run();
    assert!(b.published.len() == 1 && b.published[0].starts_with("t."), "{:?}", b.published);
    resume(&mut b, "s");
    b.run();
    assert_eq!(b.published.len(), 2);
}

#[test]
fn once_ends_although_a_held_stream_has_work_left() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    hold(&mut b, "s");
    b.arrive("s", "a");
    b.step(Event::ArrivalsQuiet { obeyed: 0, incomplete: 0 });
    assert!(b.finished);
    assert_eq!(b.core.left_incomplete(), 1);
}

#[test]
fn a_skipped_scan_is_dropped_and_not_taken_again_until_it_is_released() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.arrive("s", "a");
    b.until("s0-0");
    b.step(Event::Skip { stream: "s".into(), name: "a".into() });
    assert!(b.assigned.is_empty() && b.published.is_empty());
    assert_eq!((b.released, b.told.last()), (1, Some(&("a".to_owned(), Verdict::Done))));
    b.arrive("s", "a");
    assert!(b.assigned.is_empty());
    assert_eq!(b.core.view(b.now).ended.last().unwrap().outcome, "skipped");
    b.step(Event::Release { stream: "s".into(), name: "a".into(), since_ms: 0 });
    b.arrive("s", "a");
    b.run();
    assert_eq!(b.published.len(), 1);
}

#[test]
fn skipping_what_is_being_claimed_waits_for_the_disk() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.instant_disk = false;
    b.step(Event::Arrived { scan: scan("s", "a", 1, 1000), check: Check::None });
    let Some(Action::Claim { job, .. }) = b.actions.pop_front() else { panic!("no claim") };
    b.step(Event::Skip { stream: "s".into(), name: "a".into() });
    b.step(Event::Claimed {
        job,
        outcome: ClaimOutcome::Won { generation: 1, staging: "/staging".into(), deaths: 0, adopted: None },
    });
    assert_eq!(b.released, 1);
    assert!(b.assigned.is_empty());
}

#[test]
fn a_recipe_for_one_scan_is_another_job_once() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.arrive("s", "a");
    b.run();
    b.step(recipe(Some("a"), "{}", "r1", 0));
    b.arrive("s", "a");
    b.run();
    assert_eq!(b.published.len(), 2);
    assert_ne!(b.published[0], b.published[1], "the same recipe, another key");
    b.arrive("s", "a");
    b.run();
    assert_eq!(b.published[2], b.published[0], "it counts once");
}

#[test]
fn a_recipe_from_now_on_goes_by_the_scans_own_time() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.step(recipe(None, "{\"x\":2}", "", 2_000_000));
    b.step(recipe(None, "{\"x\":1}", "", 1_000_500));
    let mut digits = Vec::new();
    for (name, at_s) in [("a", 1000), ("b", 1001), ("c", 1999), ("d", 2000), ("e", 5000)] {
        b.step(Event::Arrived { scan: scan("s", name, 1, at_s), check: Check::None });
        b.run();
        digits.push(b.published.last().unwrap().rsplit('-').next().unwrap().to_owned());
    }
    assert_eq!((&digits[1], &digits[3]), (&digits[2], &digits[4]));
    b.step(Event::Release { stream: "s".into(), name: "a".into(), since_ms: 1_999_999 });
    b.step(Event::Arrived { scan: scan("s", "a", 1, 1000), check: Check::None });
    b.run();
    assert!(b.published.last().unwrap().ends_with(&digits[1]), "released, it gets what counts now");
    assert!(digits[0] != digits[1] && digits[1] != digits[3] && digits[0] != digits[3]);
}

#[test]
fn a_campaign_edit_counts_for_later_scans() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    let mut edited = stream("s");
    (edited.recipe, edited.weight, edited.deadline_s) = ("{\"x\":1}".into(), 3, 1.0);
    b.step(Event::Campaign { streams: vec![edited, stream("new")], since_ms: 1_000_500 });
    for (name, at_s) in [("a", 1000), ("b", 1001)] {
        b.step(Event::Arrived { scan: scan("s", name, 1, at_s), check: Check::None });
        b.run();
    }
    let digits: Vec<&str> = b.published.iter().map(|k| k.rsplit('-').next().unwrap()).collect();
    assert_ne!(digits[0], digits[1]);
}

#[test]
fn urgency_waits_for_a_scan_that_is_not_there_yet() {
    let mut b = Bench::new(vec![stream("s")]).workers(1);
    b.step(Event::Urgent { stream: "s".into(), name: "b".into() });
    b.arrive("s", "a");
    b.arrive("s", "b");
    let urgent =
        |b: &Bench| b.core.view(b.now).jobs.iter().filter(|j| j.urgent).map(|j| j.name.clone()).collect::<Vec<_>>();
    assert_eq!(urgent(&b), ["b"]);
    b.run();
    b.arrive("s", "b");
    assert!(urgent(&b).is_empty(), "it counts once");
    b.run();
}
