//! The end-to-end suite without MPI.

mod common;

suite! {
    Some(common::rig::Launcher::Embedded);
    once_publishes_everything,
    a_slow_transfer_is_awaited_and_sigterm_drains,
    bad_input_is_quarantined_and_holds_nothing_up,
    killed_pilots_lose_nothing_and_repeat_nothing,
    a_rewritten_scan_is_a_new_version,
    linked_files_belong_to_the_input,
    two_pilots_share_a_campaign,
    every_completeness_rule_works,
    a_full_disk_pauses_and_resumes,
    foreign_text_does_no_harm,
    wrong_configuration_ends_with_78,
    the_measured_tooth_is_published,
}

/// A campaign file that turns into a pipe, or into a link to an endless device, is a wrong edit like any other.
#[test]
fn a_campaign_file_that_became_a_pipe_is_a_wrong_edit() {
    let rig = common::rig::Rig::new(common::rig::Launcher::Embedded, "");
    rig.synth("in/a.h5", &[]);
    let mut pilot = rig.start(&[]);
    rig.wait_published("a.h5", 1);
    let file = rig.path("campaign.toml");
    std::fs::rename(&file, rig.path("kept.toml")).unwrap();
    pipe(&file);
    rig.wait("the edit is refused", || pilot.log().contains("it is not a regular file"));
    for args in [&["-q", "check", "campaign.toml"], &["-q", "status", "campaign.toml"], &["-q", "run", "campaign.toml"]]
    {
        assert_eq!(rig.beampilot(args).status.code(), Some(78), "{args:?}");
    }
    pilot.term();
    assert_eq!(pilot.exit_code_within(std::time::Duration::from_secs(20)), Some(0), "{}", pilot.log());
}

/// Pipes in the place of every file that the state has: nobody waits for them, and what is done stays done.
#[test]
fn pipes_in_the_state_hold_nobody_up() {
    let rig = common::rig::Rig::new(common::rig::Launcher::Embedded, "");
    rig.synth("in/a.h5", &[]);
    assert_eq!(rig.once().0, Some(0));
    let mut records = 0;
    for folder in ["status", "pilots", "published", "journal", "campaigns", "claims"] {
        for entry in std::fs::read_dir(rig.path("state").join(folder)).unwrap().flatten() {
            std::fs::remove_file(entry.path()).unwrap();
            pipe(&entry.path());
            records += 1;
        }
    }
    for name in ["quarantine/x.json", "published/x.json", "status/x.json", "journal/x.jsonl"] {
        pipe(&rig.path("state").join(name));
    }
    assert!(records >= 6);
    for args in [&["-q", "status", "campaign.toml"][..], &["-q", "quarantine", "list"], &["-q", "explain", "a.h5"]] {
        let output = rig.beampilot(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // The claim is in the way, and its scan says so; nothing hangs.
    let (code, log) = rig.once();
    assert_eq!(code, Some(65), "{log}");
    let reason = rig.quarantined().remove("a.h5").unwrap_or_else(|| panic!("{log}"));
    assert!(reason.contains("not a claim") && reason.contains("releasing the scan passes over it"), "{reason}");
    std::fs::remove_file(rig.path("state/first-pilot")).unwrap();
    pipe(&rig.path("state/first-pilot"));
    let (code, log) = rig.once();
    assert!(code != Some(0) && log.contains("first-pilot") && log.contains("no moment"), "{code:?} {log}");
}

fn pipe(path: &std::path::Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}
