//! Executors, keepers and ranks that die, seen from outside.

use super::rig::*;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A pilot that is busy with one scan, and will be for a while.
fn busy(launcher: Launcher, args: &[&str]) -> (Rig, Pilot) {
    let rig = Rig::new(launcher, "");
    rig.synth("in/a.h5", &["--size", "128", "--angles", "180", "--slices", "24"]);
    let pilot = rig.start(args);
    rig.wait("the scan is worked on", || {
        let names = std::fs::read_dir(rig.path("out/s")).into_iter().flatten().flatten();
        names
            .filter(|e| e.file_name().to_string_lossy().starts_with(".staging"))
            .any(|e| std::fs::read_dir(e.path()).is_ok_and(|mut inside| inside.next().is_some()))
    });
    (rig, pilot)
}

fn set(pids: Vec<u32>) -> BTreeSet<u32> {
    pids.into_iter().collect()
}

/// Waits until the pilot has as many processes of that role as before, `gone` not among them; how long it took.
fn replaced(pilot: &Pilot, role: Role, before: &BTreeSet<u32>, gone: u32, patience: Duration) -> Duration {
    let start = Instant::now();
    loop {
        let now = set(pilot.pids(role));
        if now.len() >= before.len() && !now.contains(&gone) {
            return start.elapsed();
        }
        assert!(start.elapsed() < patience, "{role:?} {gone} is not replaced: {now:?}\n{}", pilot.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_gone(pids: &BTreeSet<u32>, within: Duration) {
    let end = Instant::now() + within;
    while pids.iter().any(|pid| is_alive(*pid)) {
        let left: Vec<&u32> = pids.iter().filter(|pid| is_alive(**pid)).collect();
        assert!(Instant::now() < end, "still there: {left:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An executor that crashes costs its tasks a moment: it is replaced at once, its rank lives, the scan is published.
pub fn a_crashed_executor_is_replaced(launcher: Launcher) {
    for name in ["ABRT", "KILL"] {
        let (rig, mut pilot) = busy(launcher, &["--once"]);
        let (ranks, executors) = (set(pilot.pids(Role::Rank)), set(pilot.pids(Role::Executor)));
        let victim = *executors.first().unwrap();
        signal(&[victim], name);
        let took = replaced(&pilot, Role::Executor, &executors, victim, Duration::from_secs(10));
        eprintln!("an executor killed by SIG{name} was replaced after {took:.0?}");
        assert_eq!(set(pilot.pids(Role::Rank)), ranks, "the ranks live");
        assert_eq!(pilot.exit_code(), Some(0), "{}", pilot.log());
        assert_eq!(rig.published()["a.h5"].len(), 1);
        assert!(pilot.log().contains(&format!("killed by SIG{name}")), "{}", pilot.log());
        rig.assert_clean();
    }
}

/// One that is stopped says nothing, and is replaced after half a minute.
pub fn a_stopped_executor_is_replaced(launcher: Launcher) {
    let (rig, mut pilot) = busy(launcher, &["--once"]);
    let executors = set(pilot.pids(Role::Executor));
    let victim = *executors.first().unwrap();
    signal(&[victim], "STOP");
    let took = replaced(&pilot, Role::Executor, &executors, victim, Duration::from_secs(60));
    eprintln!("a stopped executor was replaced after {took:.1?}");
    assert_eq!(pilot.exit_code(), Some(0), "{}", pilot.log());
    assert_eq!(rig.published()["a.h5"].len(), 1);
}

/// A keeper that dies takes its executors along, and nothing stays behind; the one that waited takes its place, and is
/// replaced itself, again and again.
pub fn a_killed_keeper_is_replaced(launcher: Launcher) {
    let (rig, mut pilot) = busy(launcher, &["--once"]);
    let ranks = set(pilot.pids(Role::Rank));
    rig.wait("every rank has two keepers", || pilot.pids(Role::Keeper).len() == 2 * ranks.len());
    for spare in [true, false, false] {
        let (keepers, executors) = (set(pilot.pids(Role::Keeper)), set(pilot.pids(Role::Executor)));
        let works = |k: &&u32| executors.iter().any(|e| parent(*e) == Some(**k));
        let victim = *keepers.iter().find(|k| works(k) != spare).unwrap();
        let below: BTreeSet<u32> = executors.iter().copied().filter(|e| parent(*e) == Some(victim)).collect();
        assert_eq!(below.is_empty(), spare);
        signal(&[victim], "KILL");
        assert_gone(&below, Duration::from_secs(2));
        let took = replaced(&pilot, Role::Keeper, &keepers, victim, Duration::from_secs(10));
        if let Some(gone) = below.first() {
            replaced(&pilot, Role::Executor, &executors, *gone, Duration::from_secs(10));
        }
        eprintln!("a keeper ({}) was replaced after {took:.0?}", if spare { "that waited" } else { "that worked" });
    }
    assert_eq!(set(pilot.pids(Role::Rank)), ranks, "the ranks live");
    assert_eq!(pilot.exit_code(), Some(0), "{}", pilot.log());
    assert_eq!(rig.published()["a.h5"].len(), 1);
}

/// Nothing outlives a rank that is killed.
pub fn nothing_outlives_a_killed_rank(launcher: Launcher) {
    let (_rig, pilot) = busy(launcher, &[]);
    let all = set([Role::Keeper, Role::Executor].map(|r| pilot.pids(r)).concat());
    let ranks = pilot.pids(Role::Rank);
    assert!(all.len() >= 2 * ranks.len());
    let start = Instant::now();
    signal(&ranks, "KILL");
    assert_gone(&all, Duration::from_secs(2));
    eprintln!("everything was gone {:.0?} after the ranks", start.elapsed());
}

/// SIGTERM to every process, as a scheduler sends it, ends the pilot within three seconds, whatever runs.
pub fn sigterm_to_everybody_drains_quickly(launcher: Launcher) {
    let (rig, mut pilot) = busy(launcher, &[]);
    let all = set([Role::Rank, Role::Keeper, Role::Executor].map(|r| pilot.pids(r)).concat());
    let start = Instant::now();
    signal(&all.iter().copied().collect::<Vec<_>>(), "TERM");
    assert_eq!(pilot.exit_code(), Some(0), "{}", pilot.log());
    let took = start.elapsed();
    eprintln!("drained in {took:.1?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_gone(&all, Duration::from_millis(500));
    drop(rig);
}
