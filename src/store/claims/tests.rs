//! Claims on a real folder, and leases on a clock of the test's.

use super::*;
use crate::store::{RealFs, RealHost};
use std::time::Duration;

fn bench() -> (tempfile::TempDir, Layout) {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::open(&RealFs, &dir.path().join("state")).unwrap();
    (dir, layout)
}

fn claim(layout: &Layout, who: &Identity) -> Result<u32, String> {
    match try_claim(&RealFs, &RealHost, layout, who, "k", &Mutex::default()).unwrap() {
        Tried::Won(won) => Ok(won.generation),
        Tried::Foreign(owner) => Err(owner),
    }
}

fn alive(pilot: &str) -> Identity {
    Identity::own(pilot)
}

fn dead(pilot: &str) -> Identity {
    Identity { pid_start: u64::MAX, ..Identity::own(pilot) }
}

#[test]
fn one_wins_and_the_other_learns_who() {
    let (_dir, layout) = bench();
    assert_eq!(claim(&layout, &alive("a")), Ok(1));
    assert_eq!(claim(&layout, &alive("b")), Err("a".into()));
}

#[test]
fn a_dead_owner_and_a_released_claim_are_taken_over() {
    let (dir, layout) = bench();
    assert_eq!(claim(&layout, &dead("a")), Ok(1));
    assert_eq!(claim(&layout, &alive("b")), Ok(2));
    release(&RealFs, &layout, dir.path(), "k", 2).unwrap();
    assert_eq!(claim(&layout, &alive("c")), Ok(3));
    assert!(is_mine(&RealFs, &layout, "k", 3).unwrap() && !is_mine(&RealFs, &layout, "k", 1).unwrap());
}

#[test]
fn a_claim_whose_answer_was_lost_is_taken_again_and_nothing_of_it_adopted() {
    let (_dir, layout) = bench();
    let me = alive("a");
    assert_eq!(claim(&layout, &me), Ok(1));
    let again = try_claim(&RealFs, &RealHost, &layout, &me, "k", &Mutex::default()).unwrap();
    let previous = Previous { pilot: "a".into(), writers_gone: false };
    assert_eq!(again, Tried::Won(Won { generation: 2, deaths: 0, previous: Some(previous) }));
}

#[test]
fn a_released_claim_that_is_damaged_is_passed_over() {
    let (_dir, layout) = bench();
    std::fs::write(layout.claim("k", 1), "{").unwrap();
    let tried = || try_claim(&RealFs, &RealHost, &layout, &alive("a"), "k", &Mutex::default());
    assert_eq!(tried().unwrap_err().kind(), std::io::ErrorKind::InvalidData, "nobody knows who holds it");
    release_quarantined(&RealFs, &layout, "k").unwrap();
    let previous = Previous { pilot: "unknown".into(), writers_gone: false };
    assert_eq!(tried().unwrap(), Tried::Won(Won { generation: 2, deaths: 0, previous: Some(previous) }));
}

#[test]
fn of_many_threads_exactly_one_wins() {
    let (_dir, layout) = bench();
    let wins: usize = std::thread::scope(|s| {
        let threads: Vec<_> = (0..8)
            .map(|i| {
                s.spawn({
                    let l = &layout;
                    move || claim(l, &alive(&format!("p{i}")))
                })
            })
            .collect();
        threads.into_iter().filter(|_| true).map(|t| usize::from(t.join().unwrap().is_ok())).sum()
    });
    assert_eq!(wins, 1);
}

#[test]
fn takeover_leaves_a_late_publish_nothing_to_rename() {
    let (dir, _) = bench();
    let old = prepare_staging(&RealFs, dir.path(), "k", 1).unwrap();
    std::fs::write(old.join("recon.h5"), b"x").unwrap();
    prepare_staging(&RealFs, dir.path(), "k", 2).unwrap();
    let late = RealFs.rename(&old, &dir.path().join("scan")).unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_lease_needs_looks_without_a_gap() {
    let at = Duration::from_secs;
    let mut o = Observer::default();
    for s in (0..60).step_by(10) {
        assert!(!o.is_expired("p", Some(5), at(s)));
    }
    assert!(o.is_expired("p", Some(5), at(60)));
    assert!(!o.is_expired("p", Some(6), at(61)), "it beat again");
    assert!(!o.is_expired("p", Some(6), at(200)), "we looked away too long");
    assert!(!o.is_expired("p", None, at(210)), "an unreadable file is no observation");
    let (short, ms) = (Duration::from_secs(8), |ms: u64| Duration::from_millis(300_000 + ms));
    assert!((0..8).all(|s| !o.is_expired_after(short, "q", Some(1), ms(1000 * s))));
    assert!(o.is_expired_after(short, "q", Some(1), ms(8000)));
    assert!(!o.is_expired_after(short, "q", Some(1), ms(10_001)), "the gap is part of the lease");
}

#[test]
fn deaths_are_forgiven_with_the_quarantine_and_not_otherwise() {
    let (dir, layout) = bench();
    let claim = |me| match try_claim(&RealFs, &RealHost, &layout, &me, "k", &Mutex::default()).unwrap() {
        Tried::Won(won) => (won.generation, won.deaths),
        other => panic!("{other:?}"),
    };
    assert_eq!(claim(dead("a")), (1, 0));
    assert_eq!(claim(alive("b")), (2, 1));
    release(&RealFs, &layout, dir.path(), "k", 2).unwrap();
    assert_eq!(claim(alive("c")), (3, 1), "giving back forgives nothing");
    release_condemned(&RealFs, &layout, dir.path(), "k", 3).unwrap();
    assert_eq!(claim(alive("d")), (4, 0));
}

#[test]
fn this_process_is_alive_and_a_reused_pid_is_not_it() {
    assert!(!alive("a").is_proven_dead());
    assert!(dead("a").is_proven_dead());
    let elsewhere = Identity { host: "far".into(), ..dead("a") };
    assert!(!elsewhere.is_proven_dead(), "another host's process cannot be judged from here");
}

#[test]
fn an_unreadable_claim_is_an_error_that_names_it() {
    let (_dir, layout) = bench();
    std::fs::write(layout.claim("k", 1), b"torn").unwrap();
    let error = try_claim(&RealFs, &RealHost, &layout, &alive("a"), "k", &Mutex::default()).unwrap_err();
    assert!(error.to_string().contains("k.1: not a claim"), "{error}");
}
