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
