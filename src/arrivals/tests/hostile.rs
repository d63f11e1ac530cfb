//! Promise 7: names, links, kinds, numbers and vanishing folders.

use super::super::*;
use super::rig::Rig;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

const FAST: &str = "complete = { rule = \"settled\", quiet = \"1s\" }\n";

#[test]
fn what_cannot_be_a_scan_is_rejected_once() {
    let mut r = Rig::new(FAST);
    r.fs.write("evil\nname.h5", 1);
    r.fs.write("bad\x1bdir/a.h5", 1);
    r.fs.pipe("pipe.h5");
    r.fs.write("ok.h5", 1);
    r.fs.link("ok.h5", "near.h5");
    r.fs.link("/w/out", "away");
    r.fs.link("nowhere", "dangling.h5");
    r.fs.link("/w", "loop");
    r.fs.write("../secret.h5", 1);
    r.fs.link("/w/secret.h5", "far.h5");
    r.fs.write(".hidden.h5", 1);
    r.fs.write(".dir/a.h5", 1);
    r.run(5.0);
    let mut heard = r.heard();
    heard.sort();
    let starts = [
        "complete near.h5",
        "complete ok.h5",
        "rejected away: away is a link to a folder outside the watched one; watch that folder itself",
        "rejected bad\\u{1b}dir: the folder bad\\u{1b}dir is not entered: its name has control",
        "rejected evil\\nname.h5: evil\\nname.h5: its name has control or invisible characters; rename it",
        "rejected far.h5: far.h5 is a link that leaves the watched folder; put the file itself there",
        "rejected loop: loop is a link to a folder outside",
        "rejected pipe.h5: pipe.h5 is a pipe, socket or device; only regular files are read: remove it",
    ];
    assert_eq!(heard.len(), starts.len(), "{heard:#?}");
    for (line, start) in heard.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
    r.expect(1000.0, &[]);
}

#[test]
fn folders_that_are_units_are_looked_through() {
    let mut r = Rig::new(&format!("{FAST}unit = \"folder\"\n"));
    r.fs.write("s1/a.tif", 1);
    r.fs.pipe("s1/p.tif");
    r.fs.write("s2/a\tb.tif", 1);
    r.fs.mkdir("s3");
    r.fs.link("/w/out", "s4");
    let deep = "d/".repeat(20);
    r.fs.write(&format!("s5/{deep}a.tif"), 1);
    r.run(5.0);
    let mut heard = r.heard();
    heard.sort();
    assert_eq!(heard.len(), 4, "{heard:#?}");
    assert!(heard[0].starts_with("rejected s1: s1/p.tif is a pipe"));
    assert!(heard[1].starts_with("rejected s2: s2/a\\tb.tif: its name"));
    assert!(heard[2].starts_with("rejected s4: s4 is a link"));
    assert!(heard[3].starts_with("rejected s5: ") && heard[3].contains("nested more than 16 deep"));
}

#[test]
fn a_scan_too_deep_is_refused_and_not_passed_over_in_silence() {
    let mut r = Rig::new(FAST);
    r.fs.write("near.h5", 1);
    r.fs.write(&format!("{}far.h5", "d/".repeat(20)), 1);
    r.run(5.0);
    let heard = r.heard();
    let refused = |line: &String| line.starts_with("rejected d/") && line.contains("nested more than 16 deep");
    assert_eq!(heard.iter().filter(|l| refused(l)).count(), 1, "{heard:#?}");
    assert!(heard.iter().any(|l| l.contains("near.h5")), "{heard:#?}");
}

#[test]
fn a_watched_folder_that_goes_and_comes_back() {
    let mut r = Rig::new(FAST);
    r.fs.write("a.h5", 1);
    r.expect(5.0, &["complete a.h5"]);
    r.done(&r.scan());
    r.fs.rename("", "../../away");
    r.run(600.0);
    assert_eq!(r.heard(), ["trouble /w/in: entity not found; scans there are not seen until it is back"]);
    r.fs.rename("../../away", "");
    r.expect(61.0, &["recovered"]);
    r.fs.write("b.h5", 1);
    r.expect(3.0, &["complete b.h5"]);
    // An empty folder under the same name, as when a filesystem is unmounted: nothing is forgotten.
    r.fs.rename("", "../../away");
    r.fs.mkdir("");
    r.run(10.0);
    r.fs.remove("");
    r.fs.rename("../../away", "");
    r.done(&r.scan());
    r.run(100.0);
    assert!(r.heard().iter().all(|l| !l.contains("a.h5")));
}

#[test]
fn a_folder_that_cannot_be_listed_holds_nothing_up() {
    let mut r = Rig::new(FAST);
    r.fs.write("locked/a.h5", 1);
    r.fs.write("open/b.h5", 1);
    r.fs.fail.insert(PathBuf::from("/w/in/locked"), io::ErrorKind::PermissionDenied);
    r.run(5.0);
    assert_eq!(r.census().3.as_deref(), Some("locked: permission denied"));
    assert_eq!(r.heard(), ["complete open/b.h5"]);
    r.fs.fail.clear();
    r.expect(70.0, &["complete locked/a.h5"]);
}

#[test]
fn results_and_state_are_never_arrivals() {
    let mut r = Rig::new(FAST);
    r.fs.link("../out", "results");
    r.fs.write("../out/s/a.h5", 1);
    r.run(5.0);
    assert!(r.heard().iter().all(|line| !line.starts_with("complete")));
}

#[test]
fn the_real_filesystem_and_the_thread() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("in");
    std::fs::create_dir_all(root.join("day1")).unwrap();
    std::fs::write(dir.path().join("outside.h5"), "x").unwrap();
    std::os::unix::fs::symlink("../outside.h5", root.join("far.h5")).unwrap();
    std::os::unix::fs::symlink(".", root.join("self")).unwrap();
    let text = "[[stream]]\nname = \"s\"\nwatch = \"in\"\ntechnique = \"t\"\ncomplete = { rule = \"settled\", quiet = \"200ms\" }\n";
    let campaign = crate::campaign::Campaign::parse(text, &dir.path().join("c.toml")).unwrap();
    let (events, heard) = crossbeam::channel::unbounded();
    let (tell, commands) = crossbeam::channel::unbounded();
    let thread =
        spawn(StreamWatch::all(&campaign, SystemTime::UNIX_EPOCH, true), Vec::new(), true, events, commands).unwrap();
    std::fs::write(root.join("day1/a.h5"), "abc").unwrap();
    let next = |want: &dyn Fn(&ArrivalEvent) -> bool| {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let event = heard.recv_timeout(end - Instant::now()).unwrap();
            if want(&event) {
                return event;
            }
        }
    };
    next(&|e| matches!(e, ArrivalEvent::Rejected { name, .. } if name == "far.h5"));
    let ArrivalEvent::Complete { scan, .. } = next(&|e| matches!(e, ArrivalEvent::Complete { .. })) else { panic!() };
    assert_eq!((scan.name.as_str(), scan.bytes(), scan.changed().unwrap()), ("day1/a.h5", 3, None));
    assert_eq!(scan.root, root.canonicalize().unwrap());
    next(&|e| matches!(e, ArrivalEvent::Idle { .. }));
    tell.send(ArrivalCommand::Stop).unwrap();
    thread.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is written, renamed and removed, every file that is left quiet is reported in its last
    /// version, and no version twice.
    #[test]
    fn the_last_version_is_reported_and_none_twice(
        steps in proptest::collection::vec((0u8..4, 0usize..4, 0.0f64..3.0), 1..30)
    ) {
        let names = ["a.h5", "b.h5", "x/a.h5", "x/y/c.h5"];
        let mut r = Rig::new(FAST);
        let mut there = [false; 4];
        for (i, &(what, which, pause)) in steps.iter().enumerate() {
            match what {
                0 | 1 => {
                    r.fs.write(names[which], i as u64);
                    there[which] = true;
                }
                2 => {
                    r.fs.write("new.tmp", i as u64);
                    if there[which] {
                        r.fs.remove(names[which]);
                        r.fs.rename("new.tmp", names[which]);
                    }
                }
                _ => {
                    if there[which] {
                        r.fs.remove(names[which]);
                    }
                    there[which] = false;
                }
            }
            r.run(pause);
            r.heard();
            for scan in std::mem::take(&mut r.scans) {
                r.done(&scan);
                r.scans.push(scan);
            }
        }
        r.run(700.0);
        r.heard();
        let mut versions: Vec<_> = r.scans.iter().map(|s| (s.name.clone(), s.version())).collect();
        let count = versions.len();
        versions.sort();
        versions.dedup();
        prop_assert_eq!(count, versions.len());
        for (name, _) in names.iter().zip(there).filter(|(_, there)| *there) {
            use super::super::listing::Listing;
            let now = r.fs.stat(&Path::new("/w/in").join(name)).unwrap();
            let last = r.scans.iter().rfind(|s| s.name == *name).unwrap();
            prop_assert_eq!(now.stamp(*name), last.members[0].clone());
        }
    }
}
