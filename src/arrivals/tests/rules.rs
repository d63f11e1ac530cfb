//! Completeness rules, units, roles, restarts and rewrites.

use super::super::*;
use super::rig::Rig;
use std::path::Path;

const FAST: &str = "complete = { rule = \"settled\", quiet = \"8s\", timeout = \"10m\" }\n";

fn rig(extra: &str) -> Rig {
    Rig::new(&format!("{FAST}{extra}"))
}

#[test]
fn settled_means_quiet_for_the_whole_time() {
    let mut r = rig("");
    r.fs.write("day/a.h5", 10);
    r.expect(7.0, &[]);
    r.fs.write("day/a.h5", 20);
    r.expect(7.9, &[]);
    r.expect(1.5, &["complete day/a.h5"]);
    let scan = r.scan();
    assert_eq!((scan.members[0].size, scan.root.as_path()), (20, Path::new("/w/in")));
    assert!(scan.complete_ms - scan.last_byte_ms >= 8000);
    r.expect(1000.0, &[]);
}

#[test]
fn a_change_that_only_ctime_shows_counts() {
    let mut r = rig("");
    r.fs.write("a.h5", 10);
    r.expect(7.0, &[]);
    r.fs.set_mtime("a.h5", 7);
    r.expect(7.9, &[]);
    r.expect(1.5, &["complete a.h5"]);
    r.done(&r.scan());
    r.expect(10.0, &[]);
    r.fs.set_mtime("a.h5", 3600);
    r.expect(90.0, &["complete a.h5"]);
    assert_ne!(r.scans[0].version(), r.scans[1].version());
}

#[test]
fn what_was_there_for_long_need_not_settle_again() {
    let mut r = rig("");
    r.fs.write("a.h5", 10);
    r.fs.backdate("a.h5", 600);
    r.expect(0.1, &["complete a.h5"]);
    assert_eq!(r.proofs, [Proof::Probe]);
}

#[test]
fn a_rewrite_is_a_new_version_once() {
    let mut r = rig("");
    r.fs.write("a.h5", 10);
    r.expect(20.0, &["complete a.h5"]);
    r.done(&r.scan());
    r.expect(3600.0, &[]);
    r.fs.write("a.h5", 11);
    r.expect(700.0, &["complete a.h5"]);
    r.done(&r.scan());
    // Replaced by a rename: the listing tells, not the sweep.
    r.fs.write("b.tmp", 12);
    r.fs.rename("b.tmp", "a.h5");
    r.expect(12.0, &["complete a.h5"]);
}

#[test]
fn a_probe_that_says_not_yet_is_asked_again_and_has_the_last_word() {
    let mut r = rig("");
    r.fs.write("a.h5", 10);
    r.expect(10.0, &["complete a.h5"]);
    r.not_yet("a.h5", "no end of file");
    r.expect(7.0, &[]);
    r.expect(2.0, &["complete a.h5"]);
    r.not_yet("a.h5", "no end of file");
    r.expect(15.0, &[]);
    r.expect(2.0, &["complete a.h5"]);
    r.run(600.0);
    r.not_yet("a.h5", "no end of file");
    r.expect(1.0, &["rejected a.h5: no end of file; it did not change for 10m: transfer it again"]);
    r.expect(2000.0, &[]);
    r.fs.write("a.h5", 20);
    r.expect(700.0, &["complete a.h5"]);
}

#[test]
fn changed_and_released_scans_settle_again() {
    let mut r = rig("");
    r.fs.write("a.h5", 10);
    r.expect(10.0, &["complete a.h5"]);
    r.obey(ArrivalCommand::Changed { stream: "s".into(), name: "a.h5".into() });
    r.expect(7.0, &[]);
    r.expect(2.0, &["complete a.h5"]);
    r.done(&r.scan());
    r.expect(100.0, &[]);
    r.obey(ArrivalCommand::Forget { stream: "s".into(), name: "a.h5".into() });
    r.expect(2.0, &["complete a.h5"]);
}

/// The last change is announced like those before it: the answer to it must wait longer each time, and end.
#[test]
fn a_scan_that_changes_while_it_is_processed_is_given_up_after_growing_pauses() {
    let mut r = Rig::new("complete = { rule = \"renamed\" }");
    r.fs.write("a.h5", 1);
    r.expect(10.0, &["complete a.h5"]);
    let change = |r: &mut Rig, size| {
        r.fs.write("a.h5", size);
        r.obey(ArrivalCommand::Changed { stream: "s".into(), name: "a.h5".into() });
    };
    for (n, pause) in [(1u32, 0.0), (2, 5.0), (3, 10.0), (4, 20.0)] {
        change(&mut r, u64::from(n) + 1);
        if n > 1 {
            r.expect(pause * 0.9, &[]);
        }
        r.expect(pause * 0.1 + 1.0, &["complete a.h5"]);
    }
    change(&mut r, 6);
    r.run(41.0);
    let heard = r.heard();
    assert!(heard.len() == 1 && heard[0].starts_with("rejected a.h5: it changed 5 times while it was"), "{heard:?}");
    r.expect(3600.0, &[]);
    // Rewritten, it is a new version with all its tries.
    for n in 7..10 {
        r.fs.write("a.h5", n);
        if n > 7 {
            r.obey(ArrivalCommand::Changed { stream: "s".into(), name: "a.h5".into() });
        }
        r.expect(700.0, &["complete a.h5"]);
    }
    r.done(&r.scan());
    r.expect(3600.0, &[]);
}

#[test]
fn rewrites_far_apart_are_not_counted_together() {
    let mut r = rig("");
    r.fs.write("a.h5", 1);
    r.expect(10.0, &["complete a.h5"]);
    for n in 2..9 {
        r.run(2000.0);
        r.fs.write("a.h5", n);
        r.obey(ArrivalCommand::Changed { stream: "s".into(), name: "a.h5".into() });
        r.expect(10.0, &["complete a.h5"]);
    }
}

fn again(r: &mut Rig, name: &str) {
    r.obey(ArrivalCommand::Again { stream: "s".into(), name: name.into() });
}

#[test]
fn what_a_person_asks_for_is_reported_again_under_each_rule() {
    let manifest = "complete = { rule = \"manifest\", pattern = \"{scan}.sums\" }";
    let hash = "0".repeat(64);
    for rule in [FAST, "complete = { rule = \"marker\" }", manifest] {
        let mut r = Rig::new(rule);
        r.fs.write("a.h5", 10);
        r.fs.write("a.h5.done", 0);
        r.fs.content("a.h5.sums", &format!("{hash}  a.h5\n"));
        r.run(70.0);
        let heard = r.heard();
        assert!(heard.contains(&"complete a.h5".to_owned()), "{rule}: {heard:?}");
        let scan = r.scans.iter().find(|s| s.name == "a.h5").unwrap().clone();
        r.done(&scan);
        r.run(1000.0);
        r.heard();
        again(&mut r, "a.h5");
        // Its verdict on the earlier job may come late.
        r.done(&scan);
        r.expect(70.0, &["complete a.h5"]);
        r.done(&scan);
        r.expect(1000.0, &[]);
    }
}

#[test]
fn asking_works_for_what_is_old_and_for_what_is_not_there_yet() {
    let r = Rig::new(FAST);
    let since = r.wall();
    let mut r = Rig::started(FAST, false, Vec::new(), Some(since));
    r.fs.write("old.h5", 10);
    r.fs.backdate("old.h5", 600);
    r.expect(60.0, &[]);
    again(&mut r, "old.h5");
    again(&mut r, "late.h5");
    r.expect(10.0, &["complete old.h5"]);
    r.fs.write("late.h5", 10);
    r.expect(30.0, &["complete late.h5"]);
    r.done(&r.scan());
    r.expect(100.0, &[]);
}

#[test]
fn markers() {
    let mut r = Rig::new("complete = { rule = \"marker\" }");
    r.fs.write("a.h5", 10);
    r.fs.write("x/b.h5", 10);
    r.expect(4000.0, &[]);
    assert_eq!(r.census().0, 2);
    r.fs.write("x/b.h5.done", 0);
    r.expect(3.0, &["complete x/b.h5"]);
    assert_eq!(r.proofs, [Proof::Declared]);
    r.done(&r.scan());
    // Rewritten under the old marker: then it must settle too.
    r.fs.write("x/b.h5", 20);
    r.expect(30.0, &[]);
    r.expect(150.0, &["complete x/b.h5"]);
}

#[test]
fn manifests() {
    let mut r = Rig::new("unit = \"folder\"\ncomplete = { rule = \"manifest\", timeout = \"10m\" }");
    r.fs.write("s1/a.tif", 10);
    r.fs.write("s1/b.tif", 10);
    r.expect(100.0, &[]);
    r.fs.content("s1.manifest.json", r#"{"files":[{"path":"s1/a.tif","bytes":10},{"path":"s1/b.tif","bytes":20}]}"#);
    r.expect(20.0, &[]);
    r.fs.write("s1/b.tif", 20);
    r.expect(20.0, &["complete s1"]);
    let Proof::Manifest { files, manifest } = &r.proofs[0] else { panic!() };
    assert_eq!((files[1].path.as_str(), files[1].bytes), ("s1/b.tif", Some(20)));
    assert_eq!(manifest.path, Path::new("s1.manifest.json"));
    r.fs.write("s2/a.tif", 10);
    r.fs.content("s2.sha256", "../../etc/passwd");
    r.run(700.0);
    let heard = r.heard();
    assert!(heard[0].starts_with("rejected s2: s2.sha256: the manifest is not readable"), "{heard:?}");
}

#[test]
fn renamed() {
    let mut r = Rig::new("unit = \"folder\"\npattern = \"*\"\ncomplete = { rule = \"renamed\" }");
    r.fs.write("s1.part/a.tif", 10);
    r.expect(100.0, &[]);
    r.fs.rename("s1.part", "s1");
    r.expect(1.0, &["complete s1"]);
    r.fs.write("s2/a.tif.part", 10);
    r.expect(10.0, &[]);
    r.fs.rename("s2/a.tif.part", "s2/a.tif");
    r.expect(10.0, &["complete s2"]);
}

#[test]
fn folders_and_groups() {
    let mut r = rig("unit = \"folder\"\npattern = \"run*/scan*\"");
    r.fs.write("run1/scan1/x/2.tif", 1);
    r.expect(5.0, &[]);
    r.fs.write("run1/scan1/1.tif", 1);
    r.fs.write("run1/scan1/.hidden", 1);
    r.fs.write("run1/notes/1.tif", 1);
    r.expect(7.0, &[]);
    r.expect(4.0, &["complete run1/scan1"]);
    let paths: Vec<_> = r.scan().members.iter().map(|m| m.path.display().to_string()).collect();
    assert_eq!(paths, ["run1/scan1/1.tif", "run1/scan1/x/2.tif"]);

    let mut r = rig("unit = \"group\"\ncount = 2\npattern = \"**/{key}_p*.h5\"");
    r.fs.write("d/s1_p1.h5", 1);
    r.fs.write("d/s2_p1.h5", 1);
    r.expect(60.0, &[]);
    r.fs.write("d/s1_p2.h5", 1);
    r.expect(11.0, &["complete d/s1"]);
    assert_eq!(r.scan().members.len(), 2);
    r.expect(600.0, &["rejected d/s2: 1 of 2 files are there, and nothing changed for 10m; complete it, or remove it"]);
    r.fs.write("d/s2_p2.h5", 1);
    r.expect(12.0, &["complete d/s2"]);
}

#[test]
fn the_latest_dark_before_the_scan() {
    let mut r = rig("roles = { dark = { latest = \"darks/*.h5\", within = \"1h\" } }");
    r.fs.write("darks/d0.h5", 1);
    r.fs.backdate("darks/d0.h5", 7200);
    r.fs.write("a.h5", 1);
    r.expect(20.0, &[]);
    assert_eq!(r.census().1, 1);
    r.fs.write("darks/d1.h5", 1);
    r.fs.set_mtime("darks/d1.h5", 60);
    r.expect(5.0, &[]);
    r.expect(5.0, &["complete a.h5"]);
    assert_eq!(r.scan().roles["dark"][0].path, Path::new("/w/in/darks/d1.h5"));
    r.fs.write("darks/d2.h5", 1);
    r.run(1.0);
    r.fs.write("b.h5", 1);
    r.expect(20.0, &["complete b.h5"]);
    assert_eq!(r.scan().roles["dark"][0].path, Path::new("/w/in/darks/d2.h5"));
    // The companion went and another came: what was published stays known by its own files.
    let known = |s: &scan::Scan| Known {
        stream: "s".into(),
        name: s.name.clone(),
        version: s.version(),
        own: Some(s.own_version()),
        linked: s.linked.clone(),
    };
    let known: Vec<Known> = r.scans.iter().map(known).collect();
    r.fs.remove("darks/d1.h5");
    r.restart(known, None);
    r.expect(100.0, &[]);
}

#[test]
fn a_linked_file_that_changes_makes_a_new_version() {
    let mut r = rig("");
    r.fs.write("a.h5", 1);
    r.fs.write("b.h5", 1);
    r.fs.write("../frames.raw", 1);
    r.expect(20.0, &["complete a.h5", "complete b.h5"]);
    // Planning finds the link; one that was not there then is not missed.
    for mut scan in r.scans.clone() {
        let path = Path::new("/w/frames.raw");
        let linked = listing::Listing::stat(&mut r.fs, path).unwrap().stamp(path);
        scan.linked = if scan.name == "a.h5" { vec![linked] } else { Vec::new() };
        r.done(&scan);
        r.scans.retain(|s| s.name != scan.name);
        r.scans.push(scan);
    }
    let first = r.scans.iter().find(|s| s.name == "a.h5").unwrap().clone();
    r.expect(300.0, &[]);
    // Its rewrite settles as a scan's own would.
    r.fs.write("../frames.raw", 2);
    r.run(3.0);
    r.fs.write("../frames.raw", 3);
    r.expect(100.0, &["complete a.h5"]);
    let second = r.scan();
    assert_ne!(second.version(), first.version());
    assert_eq!((second.own_version(), second.roles[scan::LINKED].len()), (first.own_version(), 1));
    let mut done = second.clone();
    done.linked.clone_from(&second.roles[scan::LINKED]);
    r.done(&done);
    r.expect(300.0, &[]);
    // Gone is no change.
    r.fs.remove("../frames.raw");
    r.expect(300.0, &[]);
    // A pilot that starts later knows it from the records.
    r.fs.write("../frames.raw", 4);
    let known = [first, done].map(|s| Known {
        stream: "s".into(),
        name: s.name.clone(),
        version: s.version(),
        own: Some(s.own_version()),
        linked: s.linked.clone(),
    });
    let b = r.scans.iter().find(|s| s.name == "b.h5").map(scan::Scan::version).unwrap();
    r.restart(known.to_vec(), None);
    r.obey(ArrivalCommand::Done { stream: "s".into(), name: "b.h5".into(), version: b, linked: vec![] });
    r.expect(100.0, &["complete a.h5"]);
}

#[test]
fn a_role_that_never_comes_rejects() {
    let mut r = rig("roles = { metadata = { file = \"{stem}.json\" }, geometry = \"/w/geo.json\" }");
    r.fs.write("a.h5", 1);
    r.fs.write("../geo.json", 1);
    r.run(500.0);
    assert_eq!(r.heard(), [""; 0]);
    r.run(200.0);
    assert!(r.heard()[0].starts_with("rejected a.h5: no metadata: a.json is not there; put it there"));
}

#[test]
fn roles_within_the_scan_leave_its_members() {
    let mut r = rig("unit = \"folder\"\nroles = { dark = { file = \"dark_*.tif\" } }");
    r.fs.write("s1/dark_1.tif", 1);
    r.fs.write("s1/x.tif", 1);
    r.expect(10.0, &["complete s1"]);
    let scan = r.scan();
    assert_eq!((scan.members.len(), scan.roles["dark"][0].path.as_path()), (1, Path::new("/w/in/s1/dark_1.tif")));
}

#[test]
fn what_is_known_or_old_is_not_reported_again() {
    let mut r = rig("");
    r.fs.write("a.h5", 1);
    r.fs.write("b.h5", 1);
    r.run(10.0);
    assert_eq!(r.heard().len(), 2);
    let a = r.scans.iter().find(|s| s.name == "a.h5").unwrap().clone();
    let known = Known { stream: "s".into(), name: a.name.clone(), version: a.version(), own: None, linked: vec![] };
    r.restart(vec![known.clone()], None);
    r.expect(100.0, &["complete b.h5"]);
    r.fs.write("a.h5", 2);
    r.restart(vec![known.clone()], None);
    r.run(100.0);
    assert_eq!(r.heard().len(), 2, "rewritten while no pilot ran");
    let since = r.wall();
    r.restart(Vec::new(), Some(since));
    r.expect(100.0, &[]);
    r.fs.write("c.h5", 1);
    r.expect(20.0, &["complete c.h5"]);
}

#[test]
fn another_pilot_was_first() {
    let mut r = rig("");
    r.fs.write("a.h5", 1);
    r.expect(10.0, &["complete a.h5"]);
    let version = r.scan().version();
    r.restart(Vec::new(), None);
    r.run(2.0);
    r.obey(ArrivalCommand::Done { stream: "s".into(), name: "a.h5".into(), version, linked: vec![] });
    r.expect(100.0, &[]);
}

#[test]
fn once_ends_when_nothing_can_become_complete() {
    let mut r = Rig::started(FAST, true, Vec::new(), None);
    r.fs.write("x/a.h5", 1);
    r.expect(7.0, &[]);
    r.expect(2.0, &["complete x/a.h5", "idle 0 []"]);
    r.not_yet("x/a.h5", "short");
    r.expect(7.0, &[]);
    r.expect(3.0, &["complete x/a.h5", "idle 1 []"]);
    r.done(&r.scan());
    r.expect(3.0, &["idle 2 []"]);

    let mut r = Rig::started("complete = { rule = \"marker\" }", true, Vec::new(), None);
    r.fs.write("a.h5", 1);
    r.expect(3.0, &["idle 0 [a.h5: a.h5.done is not there]"]);

    let roles = "roles = { dark = { latest = \"darks/*.h5\", within = \"1h\" } }";
    let mut r = Rig::started(&format!("{FAST}{roles}"), true, Vec::new(), None);
    r.fs.write("a.h5", 1);
    r.run(12.0);
    let heard = r.heard();
    assert!(heard[0].starts_with("rejected a.h5: no dark: nothing matches darks/*.h5 in the 1h before"), "{heard:?}");
    assert_eq!(heard[1..], ["idle 0 []"]);
}

#[test]
fn steady_state_costs_one_stat_a_poll() {
    let mut r = rig("");
    for i in 0..1000 {
        r.fs.write(&format!("s{i}.h5"), 1);
        r.fs.backdate(&format!("s{i}.h5"), 6000);
    }
    r.restart(Vec::new(), Some(r.wall()));
    r.run(10.0);
    (r.fs.stats, r.fs.lists) = (0, 0);
    r.run(250.0);
    assert_eq!(r.heard(), [""; 0]);
    let sweep = 1000.0 / 600.0 * 250.0;
    assert!((r.fs.stats as f64) < 260.0 + sweep && r.fs.lists <= 1, "{} {}", r.fs.stats, r.fs.lists);
}
