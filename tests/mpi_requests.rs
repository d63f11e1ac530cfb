//! What people ask of a pilot that runs over MPI: one busy quarter of an hour of a beamtime, in a few seconds.
#![cfg(feature = "mpi")]
mod common;

use common::rig::{Rig, manifest, mpi};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// Runs a subcommand that must end with 0; returns standard output.
fn ask(rig: &Rig, args: &[&str]) -> String {
    let output = rig.beampilot(args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn state(rig: &Rig, scan: &str) -> String {
    let e: Value = serde_json::from_str(&ask(rig, &["-q", "explain", scan, "--json"])).unwrap();
    e["state"].as_str().unwrap().to_owned()
}

/// What came of each request, by its line.
fn outcomes(rig: &Rig) -> BTreeMap<String, String> {
    let list: Value = serde_json::from_str(&ask(rig, &["-q", "request", "list", "--json"])).unwrap();
    let line = |r: &Value| {
        let recipe = r["request"]["recipe"]["center"].as_f64().map_or(String::new(), |c| format!(" {c}"));
        let word = |key: &str| r["request"][key].as_str().unwrap_or_default().to_owned();
        (
            format!("{} {}{recipe}", word("do"), word("scan")),
            r["outcome"]["outcome"].as_str().unwrap_or("none").to_owned(),
        )
    };
    list["requests"].as_array().unwrap().iter().map(line).collect()
}

fn centers(rig: &Rig, bundles: &[&str]) -> Vec<f64> {
    let center = |b: &&str| manifest(&rig.path(b))["parameters"]["rotation_center_px"].as_f64().unwrap();
    bundles.iter().map(center).collect()
}

#[test]
fn what_people_ask_is_done() {
    let Some(launcher) = mpi(3) else {
        eprintln!("skipped: no mpiexec (BEAMPILOT_MPIEXEC) here");
        return;
    };
    let rig = Rig::new(launcher, "[stream.inbox]\npath = \"asks\"\nallow = [\"center\"]");
    std::fs::create_dir(rig.path("asks")).unwrap();
    for scan in ["a", "b", "c"] {
        rig.synth(&format!("in/{scan}.h5"), &[]);
    }
    // Asked before there is a pilot; the hold from a login node whose clock is an hour ahead.
    let ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() + 3_600_000;
    let hold = "{\"request_version\":1,\"by\":\"ahead\",\"request\":{\"do\":\"hold\",\"stream\":\"s\"}}";
    ask(&rig, &["request", "skip", "c.h5"]);
    ask(&rig, &["request", "urgent", "b.h5"]);
    std::fs::write(rig.path(&format!("state/requests/{ms:013}-ab.json")), hold).unwrap();
    let mut pilot = rig.start(&[]);
    rig.wait("all are where they should be", || {
        ["a.h5", "b.h5", "c.h5"].map(|scan| state(&rig, scan)) == ["held", "held", "skipped"]
    });
    let why = ask(&rig, &["explain", "a.h5"]);
    assert!(why.contains("request resume s") && why.contains("hold s"), "{why}");
    assert!(rig.published().is_empty());

    // Asked later, so it counts, whatever the clocks say.
    ask(&rig, &["request", "resume", "s", "--wait"]);
    // One after the other, before the first has even begun: both are done.
    ask(&rig, &["request", "reprocess", "a.h5", "center=30.25"]);
    ask(&rig, &["request", "reprocess", "a.h5", "center=31.5"]);
    let note = "{\"request\":\"reprocess\",\"scan\":\"b.h5\",\"recipe\":{\"center\":32.75}}";
    std::fs::write(rig.path("asks/please.json"), note).unwrap();
    ask(&rig, &["request", "release", "c.h5", "--wait"]);
    rig.wait_published("c.h5", 1);
    rig.wait("every request has its outcome", || {
        let all = outcomes(&rig);
        all.len() == 8 && all.values().all(|o| o == "done")
    });
    let published = rig.published();
    let bundles = |scan: &str| published[scan].iter().map(String::as_str).collect::<Vec<_>>();
    let wanted: Vec<f64> = bundles("a.h5").iter().flat_map(|b| centers(&rig, &[b])).collect();
    assert!(wanted.contains(&30.25) && wanted.contains(&31.5), "{wanted:?}");
    assert!(bundles("b.h5").iter().any(|b| centers(&rig, &[b]) == [32.75]));
    rig.wait("the share has its answer", || {
        std::fs::read_to_string(rig.path("asks/please.json.outcome.json")).is_ok_and(|text| text.contains("done"))
    });
    let why = ask(&rig, &["explain", "a.h5"]);
    assert!(why.contains("published") && why.contains("center=31.5"), "{why}");

    ask(&rig, &["drain", "campaign.toml", "--all", "--wait"]);
    assert_eq!(pilot.exit_code(), Some(0));
    assert!(std::fs::read_dir(rig.path("state/drain")).unwrap().next().is_none(), "the sentinel is taken away");
    rig.assert_clean();
}
