//! The executable as a shell or a launcher sees it: exit codes, standard output, generated files.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn beampilot() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beampilot"));
    command.env_remove("BEAMPILOT_LOG");
    command
}

fn run(args: &[&str]) -> Output {
    beampilot().args(args).output().expect("the executable starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("standard output is UTF-8")
}

#[test]
fn help_and_version_go_to_standard_output_and_end_with_0() {
    for args in [&["--help"][..], &["--version"], &["run", "--help"], &["synth", "tomography", "-h"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
    assert!(stdout(&run(&["--version"])).starts_with(concat!("beampilot ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn a_wrong_command_line_ends_with_2_and_says_nothing_on_standard_output() {
    for args in [&[][..], &["fly"], &["run"], &["run", "c.toml", "--workers", "0"], &["synth", "tomography", "o.h5"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn completions_are_made_for_every_shell_and_bash_can_read_its_own() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(stdout(&output).contains("reconstruct"), "{shell}");
        // Where the shell itself is installed it must accept the script.
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        std::fs::write(&script, &output.stdout).unwrap();
        if let ("bash" | "zsh" | "fish", Ok(parsed)) = (shell, Command::new(shell).arg("-n").arg(&script).output()) {
            assert!(parsed.status.success(), "{shell}: {}", String::from_utf8_lossy(&parsed.stderr));
        }
    }
}

#[test]
fn there_is_a_manual_page_for_every_subcommand() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    assert_eq!(run(&["man", pages.to_str().unwrap()]).status.code(), Some(0));
    for name in ["beampilot", "beampilot-run", "beampilot-doctor", "beampilot-synth-tomography"] {
        let page = std::fs::read_to_string(pages.join(format!("{name}.1"))).expect(name);
        assert!(page.contains("Example"), "{name} has no example");
    }
    let blocked = run(&["man", "/dev/null/man"]);
    assert_eq!(blocked.status.code(), Some(73), "{}", String::from_utf8_lossy(&blocked.stderr));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = beampilot()
        .args(["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the executable starts");
    drop(child.stdout.take());
    let mut complaints = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaints).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{complaints}");
    assert_eq!(complaints, "");
}

#[test]
fn a_full_disk_behind_standard_output_is_an_error() {
    if !Path::new("/dev/full").exists() {
        return;
    }
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = beampilot().args(["completions", "bash"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(74), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn doctor_speaks_json_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let campaign = dir.path().join("c.toml");
    std::fs::create_dir(dir.path().join("incoming")).unwrap();
    std::fs::write(&campaign, "[[stream]]\nname = 'tomo'\nwatch = 'incoming'\n").unwrap();
    let output = run(&["doctor", campaign.to_str().unwrap(), "--json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("doctor prints one JSON document");
    assert_eq!(report["schema"], 1);
    let checks = report["checks"].as_array().expect("checks");
    for id in ["host.cores", "mpi.library", "hdf5.locking", "cuda.driver", "watch.readable", "state.promises"] {
        assert!(checks.iter().any(|c| c["id"] == id), "no check {id}");
    }
    let failed = checks.iter().any(|c| c["grade"] == "fail");
    assert_eq!(output.status.code(), Some(if failed { 69 } else { 0 }));
    assert_eq!(report["verdict"] == "fail", failed);
    let locking = checks.iter().find(|c| c["id"] == "hdf5.locking").unwrap();
    assert_eq!(locking["grade"], "ok", "the executable turns HDF5's file locking off by itself");
}

#[test]
fn doctor_refuses_a_campaign_it_cannot_read_with_78() {
    let output = run(&["doctor", "/no/such/campaign.toml"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/campaign.toml"));
}

#[test]
fn errors_are_json_when_logs_are() {
    let output = run(&["--log-format", "json", "doctor", "/no/such/campaign.toml"]);
    let line = String::from_utf8(output.stderr).unwrap();
    let error: serde_json::Value = serde_json::from_str(line.trim()).expect("one JSON object");
    assert_eq!(error["exit"], 78);
}

#[test]
fn a_program_that_asked_for_json_gets_one_document_whatever_happens() {
    for (args, code) in [
        (&["doctor", "/no/such/campaign.toml", "--json"][..], 78),
        (&["status", "/no/such/campaign.toml", "--json"], 78),
        (&["explain", "a", "-c", "/no/such/campaign.toml", "--json"], 78),
        (&["status", "--json", "--no-such-option"], 2),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        let document: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("one JSON document");
        assert!(document["exit"] == code && !document["error"].as_str().unwrap().is_empty(), "{document}");
        assert!(!output.stderr.is_empty(), "people are told as well");
    }
}

/// A campaign that watches an empty folder.
fn campaign(dir: &Path, more: &str) -> String {
    std::fs::create_dir_all(dir.join("in")).unwrap();
    let text = "[[stream]]\nname = 'c'\nwatch = 'in'\ntechnique = 'command'\n";
    std::fs::write(dir.join("c.toml"), format!("{text}{more}[stream.recipe]\nrun = ['true']\n")).unwrap();
    dir.join("c.toml").to_str().unwrap().to_owned()
}

fn ends_with(args: &[&str], code: i32, words: &str) {
    let output = run(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(said.contains(words), "{args:?}: {said}");
}

#[test]
fn a_state_of_a_newer_or_damaged_format_is_refused_by_all() {
    let dir = tempfile::tempdir().unwrap();
    let c = campaign(dir.path(), "");
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    for (format, words) in [("2\n", "has format 2"), ("", "FORMAT: damaged")] {
        std::fs::write(state.join("FORMAT"), format).unwrap();
        for args in [
            &["run", &c, "--once"][..],
            &["status", &c],
            &["explain", "a.h5", "--campaign", &c],
            &["quarantine", "list", "--campaign", &c],
            &["request", "list", "--campaign", &c],
            &["check", &c],
            &["drain", &c, "--all"],
        ] {
            ends_with(args, 78, words);
        }
        assert!(stdout(&run(&["doctor", &c])).contains("state.format"));
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 1, "nothing was written into it");
    }
}

#[test]
fn a_state_with_a_hole_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let c = campaign(dir.path(), "");
    ends_with(&["run", &c, "--once", "--quiet"], 0, "");
    std::fs::remove_dir(dir.path().join("state/published")).unwrap();
    ends_with(&["status", &c], 74, "state/published: this folder of the state is missing");
    std::fs::write(dir.path().join("state/first-pilot"), "").unwrap();
    ends_with(&["run", &c, "--once"], 78, "first-pilot: damaged");
    std::fs::remove_file(dir.path().join("state/first-pilot")).unwrap();
    ends_with(&["run", &c, "--once", "--until", "2001-01-01T00:00:00Z"], 0, "the job's end has passed");
}

#[test]
fn a_time_beyond_the_calendar_is_a_wrong_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let c = campaign(dir.path(), "");
    ends_with(&["run", &c, "--until", "+500000years"], 2, "is no time");
    ends_with(&["launch", &c, "--until=+500000years", "--dry-run"], 2, "is no time");
}

const SMALL: [&str; 6] = ["--size", "32", "--angles", "8", "--slices", "2"];

#[test]
fn synth_and_reconstruct_say_that_an_output_cannot_be_made() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("a.h5"), "mine").unwrap();
    let synth =
        |out: &str| [&["synth", "tomography", out][..], &SMALL].concat().iter().map(|s| s.to_string()).collect();
    let refused = |out: &str, words: &str| {
        let args: Vec<String> = synth(out);
        ends_with(&args.iter().map(String::as_str).collect::<Vec<_>>(), 73, words);
    };
    refused(&at("a.h5"), "exists already");
    refused(&at("none/a.h5"), "no such folder");
    refused("/dev/null", "exists already");
    assert_eq!(std::fs::read_to_string(at("a.h5")).unwrap(), "mine");
    for output in [at("a.h5"), at("a.h5/below"), "/proc/x".to_owned()] {
        ends_with(&["reconstruct", "tomography", &at("a.h5"), "-o", &output], 73, "name a folder that can be made");
    }
    // What is refused leaves no folders behind.
    let output = run(&["reconstruct", "tomography", &at("a.h5"), "-o", &at("new/results")]);
    assert_ne!(output.status.code(), Some(0));
    assert!(!dir.path().join("new").exists());
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_no_death() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a.h5");
    let command = format!(
        "ulimit -f 1; exec {} synth tomography {} {}",
        env!("CARGO_BIN_EXE_beampilot"),
        out.display(),
        SMALL.join(" ")
    );
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code().is_some_and(|code| code > 0 && code < 124), "{:?}: {said}", output.status);
    assert!(!out.exists());
}

/// A hang-up ends a pilot in good order, unless it was started by nohup.
#[test]
fn a_hangup_ends_a_pilot_unless_it_was_told_to_ignore_it() {
    let hang_up = |ignore: &str| {
        let dir = tempfile::tempdir().unwrap();
        let c = campaign(dir.path(), "");
        // The tests themselves may run under nohup.
        let command = format!("{ignore} {} -q run {c} --workers 1", env!("CARGO_BIN_EXE_beampilot"));
        let mut child = Command::new("sh").args(["-c", &command]).spawn().unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        // It handles signals before it shows itself.
        while std::fs::read_dir(dir.path().join("state/status"))
            .map_or(0, |d| d.flatten().filter(|e| !e.file_name().to_string_lossy().starts_with('.')).count())
            == 0
        {
            assert!(std::time::Instant::now() < end, "no status");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let pid = child.id().to_string();
        let ended = |child: &mut std::process::Child| loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if std::time::Instant::now() > end {
                child.kill().unwrap();
                panic!("it does not end");
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
        if !ignore.starts_with("trap") {
            return ended(&mut child);
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert!(child.try_wait().unwrap().is_none(), "it goes on");
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        ended(&mut child)
    };
    assert_eq!(hang_up("exec env --default-signal=HUP"), Some(0));
    assert_eq!(hang_up("trap '' HUP; exec"), Some(0));
}
