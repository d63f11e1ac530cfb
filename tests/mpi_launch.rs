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
        self.launch_at(&[&["--site", "workstation"], args].concat())
    }

    fn launch_at(&self, args: &[&str]) -> Launch {
        let events = self.rig.path("events.jsonl");
        let mut command = Command::new(BIN);
        command.arg("launch").arg(self.rig.path("campaign.toml")).arg("--json").args(args);
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
    let mut launch = bench.launch(&["--once", "--ranks-per-node", "2"]);
    assert_eq!(launch.pilot.exit_code(), Some(65), "{}", launch.pilot.log());
    assert_eq!(launch.events("start").len(), 1);
    std::fs::write(rig.path("in/bad2.h5"), b"no HDF5").unwrap();
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

/// SIGKILL for the launcher, or SIGSTOP for rank 0, and so on.
fn signal(pid: u64, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
}

fn stone(rig: &Rig, pilot: &str) -> Value {
    serde_json::from_slice(&std::fs::read(rig.path(&format!("state/pilots/{pilot}.dead"))).unwrap()).unwrap()
}

#[test]
fn a_killed_launcher_leaves_no_survivors_and_explains_itself() {
    let Some(bench) = Bench::new() else { return };
    let rig = &bench.rig;
    let mut launch = bench.launch(&["--ranks-per-node", "2"]);
    let (first, _) = wait_rank0(rig, 1);
    let started = launch.events("start")[0].clone();
    signal(started["pid"].as_u64().unwrap(), "KILL");
    rig.synth("in/a.h5", &[]);
    wait_rank0(rig, 2);
    assert_eq!(alive(started["id"].as_str().unwrap()), Vec::<Value>::new());
    let stone = stone(rig, &first);
    assert_eq!(stone["explained"], true, "{stone}");
    assert!(stone["reason"].as_str().unwrap().contains("signal 9"), "{stone}");
    rig.wait_published("a.h5", 1);
    launch.pilot.term();
    assert_eq!(launch.pilot.exit_code(), Some(0), "{}", launch.pilot.log());
}

#[test]
fn a_pilot_that_does_not_drain_is_killed_within_the_schedulers_patience() {
    let Some(bench) = Bench::new() else { return };
    let rig = &bench.rig;
    let mut launch = bench.launch(&["--ranks-per-node", "2"]);
    let (first, pid) = wait_rank0(rig, 1);
    signal(u64::from(pid), "STOP");
    let began = Instant::now();
    launch.pilot.term();
    let code = launch.pilot.exit_code();
    assert!(began.elapsed() < Duration::from_secs(13), "{:?}", began.elapsed());
    assert_eq!(alive(launch.events("start")[0]["id"].as_str().unwrap()), Vec::<Value>::new());
    let beat = std::fs::read(rig.path(&format!("state/pilots/{first}.json"))).unwrap();
    let beat: Value = serde_json::from_slice(&beat).unwrap();
    if beat["ended"] == true {
        // A launcher that is killed continues and terminates its ranks first (Open MPI): this one used the moment.
        assert_eq!(code, Some(0), "{}", launch.pilot.log());
    } else {
        assert_eq!(code, Some(75), "{}", launch.pilot.log());
        assert_eq!(stone(rig, &first)["explained"], true);
    }
    assert_eq!(launch.events("start").len(), 1);
}

#[test]
fn a_schedulers_sigterm_to_everybody_ends_everything() {
    let Some(bench) = Bench::new() else { return };
    let rig = &bench.rig;
    let mut launch = bench.launch(&["--ranks-per-node", "2"]);
    wait_rank0(rig, 1);
    let started = launch.events("start")[0].clone();
    let began = Instant::now();
    launch.pilot.term_all();
    let code = launch.pilot.exit_code();
    eprintln!("SIGTERM to everybody: code {code:?} after {:.1} s", began.elapsed().as_secs_f64());
    assert!(matches!(code, Some(0 | 75)), "{code:?} {}", launch.pilot.log());
    assert!(began.elapsed() < Duration::from_secs(13), "{:?}", began.elapsed());
    assert_eq!(launch.events("start").len(), 1, "nothing is started any more");
    assert_eq!(alive(started["id"].as_str().unwrap()), Vec::<Value>::new());
    let drains = std::fs::read_dir(rig.path("state/drain")).unwrap().count();
    assert_eq!(drains, 0, "no sentinel is left for the next pilot");
}

#[test]
fn a_gpu_on_which_launches_die_first_is_left_out_and_its_host_is_not() {
    let Some(bench) = Bench::new() else { return };
    let here = beampilot::store::claims::host_name();
    // A launcher that says that rank 1 died, and writes down what it was told.
    let (fake, told) = (bench.rig.path("mpiexec"), bench.rig.path("told"));
    let script = format!(
        "#!/bin/sh\necho \"$BEAMPILOT_LEFT_OUT.\" >> {}\necho '{here}: rank 1 died from signal 9' >&2\nexit 137\n",
        told.display()
    );
    std::fs::write(&fake, script).unwrap();
    Command::new("chmod").arg("+x").arg(&fake).status().unwrap();
    let args = ["--site", "aurora", "--ranks-per-node", "4", "--mpiexec", fake.to_str().unwrap()];
    let mut launch = bench.launch_at(&args);
    assert_eq!(launch.pilot.exit_code(), Some(69), "{}", launch.pilot.log());
    let text = std::fs::read_to_string(&told).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), [".", ".", ".", &format!("{here}:1."), &format!("{here}:1.")]);
    let left_out = launch.events("gpu-left-out");
    assert_eq!((left_out.len(), &left_out[0]["gpu"]), (1, &Value::from("0.1")), "{left_out:?}");
}

#[test]
fn ranks_that_are_left_out_take_no_task_and_the_others_do_everything() {
    let Some(bench) = Bench::new() else { return };
    let rig = &bench.rig;
    let here = beampilot::store::claims::host_name();
    // The agent; then rank 0, which still coordinates.
    for (n, place) in [1, 0].into_iter().enumerate() {
        rig.synth(&format!("in/{n}.h5"), &["--seed", &n.to_string()]);
        let mut pilot = rig.start_with(&["--once"], &[("BEAMPILOT_LEFT_OUT", &format!("{here}:{place},elsewhere:2"))]);
        let mut most = 0;
        while pilot.child.try_wait().unwrap().is_none() {
            most = most.max(pilot.pids(Role::Executor).len());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(pilot.exit_code(), Some(0), "{}", pilot.log());
        assert_eq!((most, rig.published().len()), (1, n + 1), "{}", pilot.log());
        assert!(pilot.log().contains("left out by launch"), "{}", pilot.log());
    }
}
