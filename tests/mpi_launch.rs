//! `beampilot launch` with the real launcher on this host: `BEAMPILOT_MPIEXEC` names it.
#![cfg(feature = "mpi")]
mod common;

use common::rig::*;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A campaign, and a launch of it with two ranks.
struct Bench {
    rig: Rig,
}

struct Launch {
    pilot: Pilot,
    events: PathBuf,
}

impl Bench {
    /// `None` where there is no mpiexec.
    fn new() -> Option<Self> {
        let launcher = mpi(2);
        if launcher.is_none() {
            eprintln!("no mpiexec: not tried");
        }
        Some(Self { rig: Rig::new(launcher?, "") })
    }

    fn launch(&self, args: &[&str]) -> Launch {
        let events = self.rig.path("events.jsonl");
        let mut command = Command::new(BIN);
        command.arg("launch").arg(self.rig.path("campaign.toml")).args(["--json", "--site", "workstation"]).args(args);
        command.stdin(Stdio::null()).stdout(std::fs::File::create(&events).unwrap());
        Launch { pilot: self.rig.spawn(command), events }
    }
}

impl Launch {
    fn events(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.events).unwrap_or_default();
        // The last line may be half written.
        let all = text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
        all.filter(|e| e["event"] == name).collect()
    }
}

/// The living pilot of the `start`-th mpiexec and the process of its rank 0.
fn rank0(rig: &Rig, start: usize) -> Option<(String, u32)> {
    let suffix = format!(".{start}");
    for entry in std::fs::read_dir(rig.path("state/pilots")).ok()?.flatten() {
        let Ok(text) = std::fs::read(entry.path()) else { continue };
        let Ok(beat) = serde_json::from_slice::<Value>(&text) else { continue };
        if beat["identity"]["launch"].as_str().is_some_and(|l| l.ends_with(&suffix)) {
            let pid = u32::try_from(beat["identity"]["pid"].as_u64()?).ok()?;
            return Some((beat["identity"]["pilot"].as_str()?.to_owned(), pid));
        }
    }
    None
}

fn wait_rank0(rig: &Rig, start: usize) -> (String, u32) {
    let mut found = None;
    rig.wait(&format!("pilot {start} beats"), || {
        found = rank0(rig, start);
        found.is_some()
    });
    found.unwrap()
}

/// Processes of a launch that still run.
fn alive(launch: &str) -> Vec<Value> {
    let output = Command::new(BIN).args(["-q", "survivors", "--json", "--launch", launch]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["left"].as_array().unwrap().clone()
}

#[test]
fn a_killed_rank_costs_a_relaunch_and_no_scan() {
    let Some(bench) = Bench::new() else { return };
    let rig = &bench.rig;
    rig.synth("in/a.h5", &[]);
    let mut launch = bench.launch(&["--ranks-per-node", "2"]);
    rig.wait_published("a.h5", 1);
    let (first, pid) = wait_rank0(rig, 1);
    rig.synth("in/b.h5", &[]);
    let killed = Instant::now();
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
    wait_rank0(rig, 2);
    let relaunched = killed.elapsed();
    eprintln!("relaunched in {:.2} s", relaunched.as_secs_f64());
    assert!(relaunched < Duration::from_secs(20), "{relaunched:?}");
    rig.synth("in/c.h5", &[]);
    for scan in ["a.h5", "b.h5", "c.h5"] {
        rig.wait_published(scan, 1);
    }
    assert!(rig.published().values().all(|bundles| bundles.len() == 1), "each once: {:?}", rig.published());
    let id = launch.events("start")[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(alive(&id), Vec::<Value>::new(), "nothing of the first launch is left");
    let stone: Value =
        serde_json::from_slice(&std::fs::read(rig.path(&format!("state/pilots/{first}.dead"))).unwrap()).unwrap();
    assert_eq!((&stone["pilot"], &stone["explained"]), (&Value::from(first), &Value::from(false)), "{stone}");
    assert!(stone["at_ms"].as_u64().unwrap() > 0 && id.starts_with(stone["by"].as_str().unwrap()), "{stone}");
    assert!(stone["reason"].as_str().unwrap().contains("rank 0"), "{stone}");
    let began = Instant::now();
    launch.pilot.term();
    assert_eq!(launch.pilot.exit_code(), Some(0), "{}", launch.pilot.log());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(launch.events("start").len(), 2);
    assert_eq!(launch.events("end")[0]["code"], 0);
    let second = launch.events("start")[1]["id"].as_str().unwrap().to_owned();
    assert_eq!(alive(&second), Vec::<Value>::new());
}

#[test]
fn what_is_there_is_done_and_the_launch_ends_as_run_does() {
    let Some(bench) = Bench::new() else { return };
    let rig = &bench.rig;
    rig.synth("in/a.h5", &[]);
    let mut launch = bench.launch(&["--once", "--ranks-per-node", "2"]);
    assert_eq!(launch.pilot.exit_code(), Some(0), "{}", launch.pilot.log());
    assert_eq!(rig.published().len(), 1);
    assert_eq!((launch.events("start").len(), launch.events("relaunch").len()), (1, 0));
    std::fs::write(rig.path("in/bad.h5"), b"no HDF5").unwrap();
    rig.campaign("complete = { rule = \"settled\", quiet = \"300ms\", timeout = \"1s\" }");
    let mut launch = bench.launch(&["--once"]);
    assert_eq!(launch.pilot.exit_code(), Some(65), "one rank needs no launcher; {}", launch.pilot.log());
}

#[test]
fn a_launcher_that_always_fails_is_given_up() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.rig.path("mpiexec");
    std::fs::write(&fake, "#!/bin/sh\n[ \"$1\" = --version ] && echo HYDRA && exit 0\nexit 9\n").unwrap();
    Command::new("chmod").arg("+x").arg(&fake).status().unwrap();
    let mut launch = bench.launch(&["--ranks-per-node", "2", "--mpiexec", fake.to_str().unwrap()]);
    assert_eq!(launch.pilot.exit_code(), Some(69), "{}", launch.pilot.log());
    assert_eq!((launch.events("start").len(), launch.events("brake").len()), (5, 1));
    let pauses: Vec<u64> = launch.events("relaunch").iter().map(|e| e["pause_s"].as_u64().unwrap()).collect();
    assert_eq!(pauses, [1, 2, 4, 8]);
}

#[test]
fn a_wrong_campaign_is_never_started() {
    let Some(bench) = Bench::new() else { return };
    bench.rig.campaign("colour = \"red\"");
    let mut launch = bench.launch(&["--ranks-per-node", "2"]);
    assert_eq!(launch.pilot.exit_code(), Some(78), "{}", launch.pilot.log());
    assert_eq!(launch.events("start").len(), 0);
}

#[test]
fn a_host_that_does_not_answer_is_left_out_by_name() {
    let Some(bench) = Bench::new() else { return };
    let rig = &bench.rig;
    rig.synth("in/a.h5", &[]);
    let here = beampilot::store::claims::host_name();
    let mut launch =
        bench.launch(&["--once", "--ranks-per-node", "2", "--hosts", &format!("no-such-host.invalid,{here}")]);
    assert_eq!(launch.pilot.exit_code(), Some(0), "{}", launch.pilot.log());
    assert_eq!(launch.events("left-out")[0]["host"], "no-such-host.invalid");
    assert_eq!(launch.events("start")[0]["hosts"], serde_json::json!([here]));
    let wanted = ["--ranks-per-node", "2", "--min-nodes", "2", "--hosts", &format!("no-such-host.invalid,{here}")];
    let mut launch = bench.launch(&wanted);
    assert_eq!(launch.pilot.exit_code(), Some(75), "{}", launch.pilot.log());
}

#[test]
fn the_end_of_the_job_and_a_sentinel_stop_launches() {
    let Some(bench) = Bench::new() else { return };
    let mut launch = bench.launch(&["--until", "+60s"]);
    assert_eq!(launch.pilot.exit_code(), Some(75), "less than the margin is left; {}", launch.pilot.log());
    std::fs::write(bench.rig.path("state/drain/all"), "").unwrap();
    let mut launch = bench.launch(&[]);
    assert_eq!(launch.pilot.exit_code(), Some(0), "{}", launch.pilot.log());
    assert_eq!(launch.events("start").len(), 0);
}

#[test]
fn a_dry_run_shows_the_line_and_touches_nothing() {
    let Some(bench) = Bench::new() else { return };
    let args =
        ["launch", "campaign.toml", "--dry-run", "--json", "--ranks-per-node", "3", "--until", "2026-11-25T14:00:00Z"];
    let output = bench.rig.beampilot(&args);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&plan["ranks"], &plan["until"]), (&Value::from(3), &Value::from("2026-11-25T14:00:00Z")));
    assert!(plan["args"].as_array().unwrap().contains(&Value::from("run")));
    assert!(!bench.rig.path("state").exists());
}
