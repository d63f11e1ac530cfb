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
    let (rig, mut pilot) = busy(launcher, &[]);
    let ranks = set(pilot.pids(Role::Rank));
    rig.wait("every rank has two keepers", || pilot.pids(Role::Keeper).len() == 2 * ranks.len());
    for (i, spare) in [true, false, false].into_iter().enumerate() {
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
        // Its process is there a little earlier than its rank knows of it.
        rig.wait("it is in reserve", || pilot.log().matches("a new keeper waits in reserve").count() > i);
        eprintln!("a keeper ({}) was replaced after {took:.0?}", if spare { "that waited" } else { "that worked" });
    }
    assert_eq!(set(pilot.pids(Role::Rank)), ranks, "the ranks live");
    rig.wait_published("a.h5", 1);
    assert_eq!(pilot.drain(), Some(0), "{}", pilot.log());
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

/// A campaign of one stream `s` whose scans `*.txt` are done by a shell script; `more` is added to the stream.
fn programs(launcher: Launcher, more: &str, recipe: &str, script: &str) -> Rig {
    let rig = Rig::new(launcher, "");
    let text = format!(
        "[campaign]\nstate = \"state\"\n\n[[stream]]\nname = \"s\"\nwatch = \"in\"\npattern = \"*.txt\"\nsince = \
         \"all\"\ncomplete = {{ rule = \"settled\", quiet = \"300ms\" }}\noutput = \"out\"\ntechnique = \
         \"command\"\n{more}\n[stream.recipe]\n{recipe}\n"
    );
    std::fs::write(rig.path("campaign.toml"), text).unwrap();
    std::fs::write(rig.path("program"), format!("#!/bin/sh\nset -e\n{script}\n")).unwrap();
    let made = std::process::Command::new("chmod").arg("+x").arg(rig.path("program")).status().unwrap();
    assert!(made.success());
    rig
}

/// Processes with this text in their command line.
fn with_words(words: &str) -> BTreeSet<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let has = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|word| word == words.as_bytes())
    };
    all.filter(has).filter(|pid| is_alive(*pid)).collect()
}

/// Tasks that are killed with their executors are tried elsewhere; at the third time their scan is set aside with the
/// reason. The ranks live, other scans are published.
fn condemned(rig: &Rig, mut pilot: Pilot, reason: &[&str]) {
    let mut ranks = BTreeSet::new();
    rig.wait("the pilot is up", || {
        ranks = set(pilot.pids(Role::Rank));
        !pilot.pids(Role::Executor).is_empty()
    });
    // Looked at after the first death: with the third one the run may be over at once.
    let mut outlived = None;
    rig.wait("the bad scan is set aside", || {
        if outlived.is_none() && pilot.log().contains("the executor of worker") {
            outlived = Some(set(pilot.pids(Role::Rank)));
        }
        !rig.quarantined().is_empty() || !is_alive(pilot.child.id())
    });
    assert_eq!(outlived, Some(ranks), "the ranks live");
    assert_eq!(pilot.exit_code(), Some(65), "{}", pilot.log());
    let told = &rig.quarantined()["bad.txt"];
    assert!(reason.iter().all(|words| told.contains(words)), "{told}");
    let of = |line: &str| Some(line.split_once("the executor of worker ")?.1.split_once(' ')?.0.to_owned());
    let workers: Vec<String> = pilot.log().lines().filter_map(of).collect();
    assert_eq!(workers.len(), 3, "{}", pilot.log());
    assert!(workers.iter().any(|w| *w != workers[0]), "never elsewhere: {workers:?}");
    assert_eq!(rig.published().into_keys().collect::<Vec<_>>(), ["good.txt"]);
    rig.assert_clean();
}

/// A task over its limit is killed, tried elsewhere, and given up.
pub fn a_task_over_its_limit_is_killed_and_tried_elsewhere(launcher: Launcher) {
    let script = "case \"$1\" in *bad*) exec sleep 300;; esac\ncp \"$1\" copy";
    let rig = programs(launcher, "task_limit = \"1s\"", "run = [\"./program\", \"{scan}\"]", script);
    ["bad", "good"].iter().for_each(|n| std::fs::write(rig.path(&format!("in/{n}.txt")), n).unwrap());
    let pilot = rig.start(&["--once", "--workers", "2"]);
    condemned(&rig, pilot, &["ended its executor 3 times", "longer than its limit of 1 s"]);
}

/// So is one that takes more memory than its executor has.
pub fn a_task_that_takes_too_much_memory_is_killed(launcher: Launcher) {
    let script = "case \"$1\" in *bad*) (head -c 400000000 /dev/zero; exec sleep 300) | tail;; esac\ncp \"$1\" copy";
    let rig = programs(launcher, "", "run = [\"./program\", \"{scan}\"]", script);
    ["bad", "good"].iter().for_each(|n| std::fs::write(rig.path(&format!("in/{n}.txt")), n).unwrap());
    let pilot = rig.start_with(&["--once", "--workers", "2"], &[("BEAMPILOT_EXECUTOR_MEMORY", "250000000")]);
    condemned(&rig, pilot, &["ended its executor 3 times", "of memory, more than its 238"]);
}

/// Whatever a task started goes with its executor, also what left its group and session; and with its keeper.
pub fn a_runaway_family_is_ended(launcher: Launcher) {
    for strike in [Role::Executor, Role::Keeper] {
        // A time that nobody else sleeps for.
        let nap = format!("{}.{}", 100_000 + std::process::id(), strike as u8);
        let script = format!(
            "mkdir \"$2\" 2>/dev/null || {{ cp \"$1\" copy; exit 0; }}\nsleep {nap} &\n(setsid sleep {nap} &)\nsetsid \
             sh -c '(sleep {nap} &); sleep {nap}' &\nsleep {nap}"
        );
        let rig = programs(launcher, "", "run = [\"./program\", \"{scan}\", \"{campaign}/tried\"]", &script);
        std::fs::write(rig.path("in/a.txt"), "a").unwrap();
        let mut pilot = rig.start(&["--once"]);
        rig.wait("the family is there", || with_words(&nap).len() == 5);
        let family = with_words(&nap);
        let mine = |e: &u32| descendants(*e).iter().any(|pid| family.contains(pid));
        let executor = pilot.pids(Role::Executor).into_iter().find(mine).unwrap();
        assert!(family.iter().all(|pid| descendants(executor).contains(pid)), "nobody got away");
        let victim = if strike == Role::Executor { executor } else { parent(executor).unwrap() };
        signal(&[victim], "KILL");
        let start = Instant::now();
        assert_gone(&family, Duration::from_secs(5));
        eprintln!("a family of {} was gone {:.0?} after its {strike:?}", family.len(), start.elapsed());
        assert_eq!(pilot.exit_code(), Some(0), "{}", pilot.log());
        assert_eq!(rig.published()["a.txt"].len(), 1);
        assert!(with_words(&nap).is_empty());
        rig.assert_clean();
    }
}

/// A scan that four pilots held when they died for no known reason is set aside. One command brings it back, and the
/// deaths are forgotten: the fifth death is its first.
pub fn a_scan_of_four_deaths_is_set_aside_and_comes_back(launcher: Launcher) {
    let rig = programs(
        launcher,
        "",
        "run = [\"./program\", \"{scan}\", \"{campaign}\"]",
        "date > \"$2/began\"\n[ -e \"$2/calm\" ] || sleep 300\ncp \"$1\" copy",
    );
    std::fs::write(rig.path("in/a.txt"), "a").unwrap();
    let die = || {
        let mut pilot = rig.start(&[]);
        rig.wait("it is worked on", || rig.path("began").exists());
        pilot.kill();
        std::fs::remove_file(rig.path("began")).unwrap();
    };
    (0..4).for_each(|_| die());
    let (code, log) = rig.once();
    assert_eq!(code, Some(65), "{log}");
    assert!(rig.quarantined()["a.txt"].contains("4 pilots died for no known reason"), "{:?}", rig.quarantined());
    let output = rig.beampilot(&["-q", "quarantine", "release", "a.txt"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    die();
    std::fs::write(rig.path("calm"), "").unwrap();
    let (code, log) = rig.once();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!((rig.published()["a.txt"].len(), rig.quarantined().len()), (1, 0));
    rig.assert_clean();
}

/// A rank that was paused until it was given up, and wakes in the middle of things, starts over: what it did meanwhile
/// is nobody's, and it works again.
pub fn a_rank_that_was_given_up_starts_over(launcher: Launcher) {
    let script = "case $1 in\nplan) seq 90;;\nitem) sleep 0.5; echo \"$2\" > item; echo \"$2\" >> \"$3\";;\nfinish) cat \
                  \"$2\"/*/item > all;;\nesac";
    let recipe = "plan = [\"./program\", \"plan\"]\nitem = [\"./program\", \"item\", \"{item}\", \
                  \"{campaign}/done\"]\nfinish = [\"./program\", \"finish\", \"{items}\"]";
    let rig = programs(launcher, "", recipe, script);
    std::fs::write(rig.path("in/a.txt"), "a").unwrap();
    let mut pilot = rig.start(&["--once"]);
    rig.wait("items are done", || std::fs::read_to_string(rig.path("done")).is_ok_and(|t| t.lines().count() > 5));
    let leader = rig.status().unwrap()["pilots"][0]["status"]["identity"]["pid"].as_u64().unwrap() as u32;
    let ranks = pilot.pids(Role::Rank);
    let victim = *ranks.iter().find(|pid| **pid != leader).unwrap();
    let below = |pid: u32| {
        let keepers: Vec<u32> = pilot.pids(Role::Keeper).into_iter().filter(|k| parent(*k) == Some(pid)).collect();
        let mine = |e: &u32| parent(*e).is_some_and(|k| keepers.contains(&k));
        pilot.pids(Role::Executor).into_iter().find(mine)
    };
    let executor = below(victim).unwrap();
    signal(&[victim], "STOP");
    rig.wait("it is given up", || pilot.log().contains("nothing heard for 8 s"));
    assert!(is_alive(executor), "its executor goes on: nobody told it otherwise");
    signal(&[victim], "CONT");
    rig.wait("it starts over", || pilot.log().contains("told to start over"));
    assert_gone(&[executor].into(), Duration::from_secs(5));
    rig.wait("it has another executor", || below(victim).is_some_and(|e| e != executor));
    assert_eq!(pilot.exit_code(), Some(0), "{}", pilot.log());
    assert_eq!(rig.published()["a.txt"].len(), 1);
    let all = std::fs::read_to_string(rig.path("out/s/a.txt/data/all")).unwrap();
    let mut items: Vec<u32> = all.lines().map(|l| l.parse().unwrap()).collect();
    items.sort_unstable();
    assert!(items.iter().copied().eq(1..=90), "each item once: {items:?}");
    assert_checksums(&rig.path("out/s/a.txt"));
    rig.assert_clean();
}
