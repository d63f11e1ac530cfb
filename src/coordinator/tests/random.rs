//! Random days: events in any order, invariants after every step, and at the end, when the world heals,
//! every scan is published or quarantined with a reason.

use super::bench::*;
use crate::coordinator::event::*;
use crate::technique::plan::*;
use crate::transport::WorkerId;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Happening {
    Arrive {
        stream: bool,
        name: u8,
        version: u8,
        declared: bool,
    },
    Succeed(u8),
    Fail(u8, u8),
    Join(u8),
    Lose(u8),
    /// Worker, which of its attempts ran (bits), for the first of them or not.
    Die(u8, u8, bool),
    Disk {
        success: bool,
        which: u8,
    },
    Urgent(u8),
    Wish(u8, u8),
    Pass(u16),
    Stale(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => (any::<bool>(), 0..6u8, 0..3u8, any::<bool>())
            .prop_map(|(stream, name, version, declared)| Happening::Arrive { stream, name, version, declared }),
        12 => any::<u8>().prop_map(Happening::Succeed),
        3 => (any::<u8>(), 0..5u8).prop_map(|(i, f)| Happening::Fail(i, f)),
        1 => (0..4u8).prop_map(Happening::Join),
        1 => (0..4u8).prop_map(Happening::Lose),
        2 => (0..4u8, any::<u8>(), any::<bool>()).prop_map(|(w, ran, culprit)| Happening::Die(w, ran, culprit)),
        6 => (any::<bool>(), any::<u8>()).prop_map(|(success, which)| Happening::Disk { success, which }),
        1 => (0..6u8).prop_map(Happening::Urgent),
        2 => (0..6u8, 0..6u8).prop_map(|(what, n)| Happening::Wish(what, n)),
        2 => any::<u16>().prop_map(Happening::Pass),
        1 => any::<u8>().prop_map(Happening::Stale),
    ]
}

fn fault(kind: u8) -> Fault {
    match kind {
        0 => Fault::NotYet("short".into()),
        1 => Fault::Input("bad".into()),
        2 => Fault::InputChanged("/watch/x".into()),
        3 => Fault::Storage("full".into()),
        _ => Fault::Task("boom".into()),
    }
}

/// Answers one order to the disk.
fn disk(b: &mut Bench, action: Action, success: bool, which: u8) {
    let full = || "full".to_owned();
    match action {
        Action::Claim { job, key, .. } => {
            let outcome = match (success, which % 4) {
                _ if b.published.contains(&key) => ClaimOutcome::Published,
                (true, _) => ClaimOutcome::Won { generation: 1, staging: "/staging".into(), deaths: 0, adopted: None },
                (_, 0) => ClaimOutcome::Foreign { owner: "other".into() },
                (_, 1) => ClaimOutcome::Changed,
                (_, 2) => ClaimOutcome::Published,
                _ => ClaimOutcome::Storage(full()),
            };
            b.step(Event::Claimed { job, outcome });
        }
        Action::Publish { job, key, .. } => {
            let outcome = match (success, which % 3) {
                (true, _) => PublishOutcome::Done { bundle: "/bundle".into() },
                (_, 0) => PublishOutcome::Changed,
                (_, 1) => PublishOutcome::Fenced,
                _ => PublishOutcome::Storage(full()),
            };
            if success {
                assert!(!b.published.contains(&key), "{key} published twice");
                b.published.push(key);
            }
            b.step(Event::Published { job, outcome });
        }
        Action::Quarantine { job, name, reason, .. } => {
            assert!(!reason.is_empty());
            let outcome = match (success, which % 2) {
                (true, _) => QuarantineOutcome::Done,
                (_, 0) => QuarantineOutcome::Fenced,
                _ => QuarantineOutcome::Storage(full()),
            };
            if success {
                b.quarantined.push((name, reason));
            }
            b.step(Event::Quarantined { job, outcome });
        }
        Action::ProbeStorage => b.step(Event::StorageProbed { result: if success { Ok(()) } else { Err(full()) } }),
        other => panic!("not an order to the disk: {other:?}"),
    }
}

fn lose(b: &mut Bench, worker: WorkerId) {
    b.step(Event::WorkerLost { worker, reason: "gone".into() });
    b.assigned.retain(|(w, _, _, _)| *w != worker);
}

fn die(b: &mut Bench, worker: WorkerId, ran: u8, culprit: bool) {
    let held: Vec<AttemptNo> = b.assigned.iter().filter(|a| a.0 == worker).map(|a| a.1).collect();
    b.assigned.retain(|a| a.0 != worker);
    let (running, waiting): (Vec<_>, Vec<_>) = held.into_iter().partition(|a| ran >> (a.0 % 8) & 1 == 1);
    let culprit = running.first().copied().filter(|_| culprit);
    b.step(Event::ExecutorDied { worker, reason: "killed".into(), running, waiting, culprit });
}

fn wish(what: u8, n: u8) -> Event {
    let (stream, name) = ("s".to_owned(), format!("n{n}"));
    let recipe = |name, salt: String| Event::Recipe {
        stream: "s".to_owned(),
        name,
        recipe: format!("{{\"x\":{n}}}"),
        salt,
        since_ms: u64::from(n) * 500_000,
    };
    match what {
        0 => Event::Hold { stream },
        1 => Event::Resume { stream },
        2 => Event::Skip { stream, name },
        3 => Event::Release { stream, name, since_ms: u64::from(n) * 700_000 },
        4 => recipe(Some(name), format!("r{n}")),
        _ => recipe(None, String::new()),
    }
}

fn happen(b: &mut Bench, h: Happening) {
    match h {
        Happening::Arrive { stream, name, version, declared } => {
            let at = b.now.0 / 1_000_000;
            let s = scan(if stream { "s" } else { "t" }, &format!("n{name}"), version.into(), at);
            b.step(Event::Arrived { scan: s, check: if declared { Check::None } else { Check::Probe } });
        }
        Happening::Succeed(i) if !b.assigned.is_empty() => drop(b.succeed(usize::from(i) % b.assigned.len())),
        Happening::Fail(i, f) if !b.assigned.is_empty() => {
            let i = usize::from(i) % b.assigned.len();
            b.fail(i, fault(f));
        }
        Happening::Join(w) => b.join(w.into()),
        Happening::Lose(w) => lose(b, WorkerId(w.into())),
        Happening::Die(w, ran, culprit) => die(b, WorkerId(w.into()), ran, culprit),
        Happening::Disk { success, which } => {
            if let Some(action) = b.actions.pop_front() {
                disk(b, action, success, which);
            }
        }
        Happening::Urgent(n) => b.step(Event::Urgent { stream: "s".into(), name: format!("n{n}") }),
        Happening::Wish(what, n) => b.step(wish(what, n)),
        Happening::Pass(ms) => b.pass_s(f64::from(ms) * 0.01),
        Happening::Stale(n) => b.step(Event::TaskEnded {
            worker: WorkerId(u32::from(n) % 4),
            attempt: AttemptNo(u64::from(n)),
            result: Err(Fault::Task("late".into())),
        }),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn random_days_end_well(day in proptest::collection::vec(happening(), 1..250)) {
        let mut b = Bench::new(vec![stream("s"), stream("t")]).workers(2);
        b.instant_disk = false;
        for h in day {
            // A stale message may name a living attempt of that worker: then it is not stale.
            if let Happening::Stale(n) = h
                && b.assigned.iter().any(|(w, a, _, _)| a.0 == u64::from(n) && w.0 == u32::from(n) % 4)
            {
                continue;
            }
            happen(&mut b, h);
        }
        // The world heals: disk and workers work, and everything left is done.
        (0..4).for_each(|w| b.join(w));
        b.step(Event::Resume { stream: "s".into() });
        for _ in 0..10_000 {
            if let Some(action) = b.actions.pop_front() {
                disk(&mut b, action, true, 0);
            } else if !b.assigned.is_empty() {
                b.succeed(0);
            } else if b.core.jobs.is_empty() {
                break;
            } else {
                b.pass_s(60.0);
            }
        }
        prop_assert!(b.core.jobs.is_empty(), "left over: {:?}", b.core.view(b.now).jobs);
        b.step(Event::ArrivalsQuiet { obeyed: b.told.len() as u64, incomplete: 0 });
        prop_assert!(b.finished);
    }
}
