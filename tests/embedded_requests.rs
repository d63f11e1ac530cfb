//! What people ask of running pilots, end to end: real pilots, real scans, the real command line.

mod common;

use common::rig::{Launcher, Rig, manifest};
use serde_json::Value;
use std::path::Path;

fn rig(stream: &str) -> Rig {
    Rig::new(Launcher::Embedded, stream)
}

/// Runs a subcommand that must end with 0; returns standard output.
fn ask(rig: &Rig, args: &[&str]) -> String {
    let output = rig.beampilot(args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn json(rig: &Rig, args: &[&str]) -> Value {
    serde_json::from_str(&ask(rig, args)).unwrap()
}

fn explained(rig: &Rig, scan: &str) -> (String, String) {
    let e = json(rig, &["-q", "explain", scan, "--json"]);
    (e["state"].as_str().unwrap().to_owned(), e["line"].as_str().unwrap().to_owned())
}

fn wait_explained(rig: &Rig, scan: &str, state: &str) -> String {
    let mut last = (String::new(), String::new());
    rig.wait(&format!("{scan} is {state}"), || {
        last = explained(rig, scan);
        last.0 == state
    });
    last.1
}

fn alarms(rig: &Rig) -> String {
    rig.status().map_or_else(String::new, |s| s["pilots"][0]["status"]["alarms"].to_string())
}

#[test]
fn reprocessing_with_another_center_makes_one_more_bundle_however_many_pilots_run() {
    let rig = rig("");
    rig.synth("in/a.h5", &[]);
    let mut pilots = [rig.start(&[]), rig.start(&[])];
    rig.wait_published("a.h5", 1);
    ask(&rig, &["request", "reprocess", "a.h5", "center=30.25", "--wait"]);
    rig.wait_published("a.h5", 2);
    let second = rig.path("out/s/a~2");
    assert_eq!(manifest(&second)["parameters"]["rotation_center_px"].as_f64(), Some(30.25));
    // The same once more is one more: a person asked for it.
    ask(&rig, &["request", "reprocess", "s/a.h5", "center=30.25", "--wait"]);
    rig.wait_published("a.h5", 3);
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(rig.published()["a.h5"].len(), 3, "each request is done once");
    let list = json(&rig, &["request", "list", "--json"]);
    let outcomes: Vec<&str> =
        list["requests"].as_array().unwrap().iter().map(|r| r["outcome"]["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["done", "done"]);
    ask(&rig, &["drain", "campaign.toml", "--all", "--wait"]);
    assert_eq!(pilots.each_mut().map(|p| p.exit_code()), [Some(0), Some(0)]);
    // The next pilot does none of it again, and is not drained by a sentinel left behind.
    let (code, log) = rig.once();
    assert_eq!((code, rig.published()["a.h5"].len()), (Some(0), 3), "{log}");
    let journal = std::fs::read_dir(rig.path("state/journal")).unwrap().flatten();
    let text: String = journal.map(|e| std::fs::read_to_string(e.path()).unwrap()).collect();
    assert!(text.contains("\"request\":{\"id\""), "requests are journalled");
}

#[test]
fn a_held_stream_waits_also_for_a_pilot_that_starts_later() {
    let rig = rig("");
    rig.synth("in/a.h5", &[]);
    ask(&rig, &["request", "hold", "s"]);
    let mut pilot = rig.start(&[]);
    wait_explained(&rig, "a.h5", "held");
    rig.wait("status shows what is held", || {
        rig.status().is_some_and(|s| s["pilots"][0]["status"]["view"]["held"] == serde_json::json!(["s"]))
    });
    assert!(ask(&rig, &["status", "campaign.toml"]).contains("held: s"));
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(rig.published().is_empty());
    ask(&rig, &["request", "resume", "s", "--wait"]);
    rig.wait_published("a.h5", 1);
    let (state, line) = explained(&rig, "a.h5");
    assert_eq!(state, "published");
    assert!(line.contains("after its last byte") && line.contains("out/s/a"), "{line}");
    ask(&rig, &["drain", "campaign.toml", "--wait"]);
    assert_eq!(pilot.exit_code(), Some(0));
}

#[test]
fn a_skipped_scan_is_left_out_until_it_is_released() {
    let rig = rig("");
    rig.synth("in/a.h5", &[]);
    rig.synth("in/b.h5", &[]);
    ask(&rig, &["request", "skip", "a.h5"]);
    let (code, log) = rig.once();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(rig.published().into_keys().collect::<Vec<_>>(), ["b.h5"]);
    assert_eq!(explained(&rig, "a.h5").0, "skipped");
    let mut pilot = rig.start(&[]);
    ask(&rig, &["request", "release", "a.h5", "--wait"]);
    rig.wait_published("a.h5", 1);
    assert_eq!(pilot.drain(), Some(0));
}

/// The file's flats are taken away.
fn without_flats(path: &Path) {
    let file = hdf5::File::open_rw(path).unwrap();
    file.group("exchange").unwrap().unlink("data_white").unwrap();
    file.close().unwrap();
}

#[test]
fn a_scan_whose_cause_is_gone_is_released_and_published_with_the_edited_recipe() {
    let rig = rig("");
    rig.synth("in/a.h5", &[]);
    without_flats(&rig.path("in/a.h5"));
    let mut pilot = rig.start(&[]);
    rig.wait("it is in quarantine", || rig.quarantined().contains_key("a.h5"));
    let (state, line) = explained(&rig, "a.h5");
    assert!(state == "quarantined" && line.contains("flat"), "{line}");
    assert!(ask(&rig, &["quarantine", "list"]).contains("s/a.h5"));
    let before = rig.status().unwrap()["pilots"][0]["status"]["campaign_hash"].clone();
    rig.campaign("[stream.recipe]\nnormalize = false");
    rig.wait("the edit is taken in", || {
        rig.status().is_some_and(|s| s["pilots"][0]["status"]["campaign_hash"] != before)
    });
    assert_eq!(alarms(&rig), "[]");
    ask(&rig, &["quarantine", "release", "a.h5", "--wait"]);
    rig.wait_published("a.h5", 1);
    assert!(rig.quarantined().is_empty());
    assert!(ask(&rig, &["quarantine", "list"]).contains("nothing"));
    // Now there is nothing to release.
    let refused = rig.beampilot(&["request", "release", "a.h5", "--wait"]);
    assert_eq!(refused.status.code(), Some(65));
    assert_eq!(pilot.drain(), Some(0));
    assert!(std::fs::read_dir(rig.path("state/campaigns")).unwrap().count() == 2, "both editions are kept");
}

#[test]
fn pilots_that_start_after_an_edit_give_older_scans_the_recipe_of_those_that_run() {
    let rig = rig("[stream.recipe]\ncenter = 30.0");
    rig.synth("in/a.h5", &[]);
    ask(&rig, &["request", "hold", "s"]);
    let mut pilots = vec![rig.start(&[])];
    wait_explained(&rig, "a.h5", "held");
    rig.campaign("[stream.recipe]\ncenter = 31.0");
    // One that starts before the first has noticed the edit, and one after that.
    pilots.push(rig.start(&[]));
    let agree = |pilots: usize| {
        let status = rig.status().unwrap_or_default();
        let editions = status["pilots"].as_array().into_iter().flatten().map(|p| p["status"]["editions"].clone());
        let editions: Vec<Value> = editions.collect();
        let known = editions.iter().all(|e| *e == editions[0] && e.as_array().is_some_and(|e| e.len() == 2));
        known && editions.len() == pilots
    };
    rig.wait("both know the edit", || agree(2));
    pilots.push(rig.start(&[]));
    rig.wait("the third does, too", || agree(3));
    ask(&rig, &["request", "resume", "s", "--wait"]);
    rig.wait_published("a.h5", 1);
    rig.synth("in/b.h5", &[]);
    rig.wait_published("b.h5", 1);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let published = rig.published();
    assert!(published.values().all(|bundles| bundles.len() == 1), "{published:?}");
    let center = |bundle: &str| manifest(Path::new(bundle))["parameters"]["rotation_center_px"].as_f64();
    assert_eq!((center(&published["a.h5"][0]), center(&published["b.h5"][0])), (Some(30.0), Some(31.0)));
    for mut pilot in pilots {
        assert_eq!(pilot.drain(), Some(0));
    }
    // Alone, a pilot takes the file as it is.
    rig.campaign("[stream.recipe]\ncenter = 32.0");
    let (code, log) = rig.once();
    assert_eq!((code, rig.published().len()), (Some(0), 2), "{log}");
}

#[test]
fn a_wrong_edit_raises_an_alarm_and_work_goes_on() {
    let rig = rig("");
    let mut pilot = rig.start(&[]);
    rig.wait("it runs", || rig.status().is_some_and(|s| s["pilots"][0]["life"] == "alive"));
    let good = std::fs::read_to_string(rig.path("campaign.toml")).unwrap();
    std::fs::write(rig.path("campaign.toml"), good.replace("technique", "tecnique")).unwrap();
    let pilot_alarms = || {
        let files = std::fs::read_dir(rig.path("state/status")).unwrap().flatten();
        let text: String = files.filter_map(|f| std::fs::read_to_string(f.path()).ok()).collect();
        text
    };
    rig.wait("the alarm", || pilot_alarms().contains("campaign.toml:"));
    assert!(pilot_alarms().contains("last good one runs on"), "{}", pilot_alarms());
    let shown = rig.beampilot(&["status", "campaign.toml"]);
    let said = String::from_utf8_lossy(&shown.stderr).into_owned();
    assert!(shown.status.success() && said.contains("last good edition"), "{said}");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("ALARM"));
    rig.synth("in/a.h5", &[]);
    let published = || rig.path("state/published").read_dir().unwrap().count();
    rig.wait("it is published all the same", || published() == 1);
    // Right again, with a key that this pilot cannot follow.
    std::fs::write(rig.path("campaign.toml"), good.replace("**/*.h5", "**/*.hdf5")).unwrap();
    rig.wait("the other alarm", || alarms(&rig).contains("s.pattern"));
    assert!(alarms(&rig).contains("next pilot"));
    std::fs::write(rig.path("campaign.toml"), good).unwrap();
    rig.wait("no alarm", || alarms(&rig) == "[]");
    assert_eq!(pilot.drain(), Some(0));
}

#[test]
fn what_cannot_be_asked_is_refused_where_it_is_asked() {
    let rig = rig("");
    rig.synth("in/scan_001.h5", &[]);
    let (code, log) = rig.once();
    assert_eq!(code, Some(0), "{log}");
    let code = |args: &[&str], words: &[&str]| {
        let output = rig.beampilot(args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        for word in words {
            assert!(text.contains(word), "{args:?}: {text}");
        }
        output.status.code()
    };
    assert_eq!(code(&["explain", "scan_01.h5"], &["did you mean s/scan_001.h5"]), Some(66));
    assert_eq!(code(&["explain", "../campaign.toml"], &["no scan"]), Some(66));
    assert_eq!(code(&["request", "hold", "t"], &["no stream", "it has s"]), Some(66));
    assert_eq!(code(&["request", "reprocess", "scan_001.h5", "centre=3"], &["centre"]), Some(78));
    assert_eq!(code(&["drain", "campaign.toml"], &["no pilot runs"]), Some(75));
    assert_eq!(code(&["drain", "campaign.toml", "--pilot", "nobody"], &["no pilot nobody"]), Some(66));
    // Files that nobody validated end in an answer, and the pilot goes on.
    std::fs::write(rig.path("state/requests/1700000000000-ab.json"), "{\"rm\":\"-rf\"}").unwrap();
    ask(&rig, &["request", "reprocess", "--from-now-on", "s", "center=30"]);
    rig.synth("in/later.h5", &[]);
    let (exit, log) = rig.once();
    assert_eq!(exit, Some(0), "{log}");
    assert!(ask(&rig, &["request", "list"]).contains("no request"));
    assert_eq!(manifest(&rig.path("out/s/later"))["parameters"]["rotation_center_px"].as_f64(), Some(30.0));
    assert_eq!(rig.published()["scan_001.h5"].len(), 1, "what was there before is left alone");
}

#[test]
fn people_without_a_shell_ask_in_the_share() {
    let rig = rig("[stream.inbox]\npath = \"asks\"\nallow = [\"center\"]");
    std::fs::create_dir(rig.path("asks")).unwrap();
    rig.synth("in/a.h5", &[]);
    let mut pilot = rig.start(&[]);
    rig.wait_published("a.h5", 1);
    let note = |name: &str, recipe: &str| {
        let text = format!("{{\"request\":\"reprocess\",\"scan\":\"a.h5\",\"recipe\":{recipe}}}");
        std::fs::write(rig.path("asks").join(name), text).unwrap();
    };
    note("please.json", "{\"center\":30.25}");
    note("never.json", "{\"filter\":\"hann\"}");
    rig.wait_published("a.h5", 2);
    assert_eq!(manifest(&rig.path("out/s/a~2"))["parameters"]["rotation_center_px"].as_f64(), Some(30.25));
    let answer = |name: &str| std::fs::read_to_string(rig.path("asks").join(name)).unwrap_or_default();
    rig.wait("both answers", || {
        answer("please.json.outcome.json").contains("done") && answer("never.json.outcome.json").contains("not allowed")
    });
    assert_eq!(pilot.drain(), Some(0));
    let (code, log) = rig.once();
    assert_eq!((code, rig.published()["a.h5"].len()), (Some(0), 2), "{log}");
}
