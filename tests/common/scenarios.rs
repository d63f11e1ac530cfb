//! One function for each thing a pilot promises, whatever carries its messages.

#[allow(unused_imports)] // Not every test executable runs these.
pub use super::executors::*;
#[allow(unused_imports)] // Likewise.
pub use super::faults::*;
use super::rig::*;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn bundle(rig: &Rig, scan: &str) -> PathBuf {
    PathBuf::from(&rig.published()[scan][0])
}

/// Scans of both layouts are published whole, once, and a second run finds nothing to do.
pub fn once_publishes_everything(launcher: Launcher) {
    let rig = Rig::new(launcher, "");
    rig.synth(
        "in/a.h5",
        &["--size", "128", "--angles", "180", "--center", "61.5", "--truth", rig.path("truth.h5").to_str().unwrap()],
    );
    rig.synth("in/day 1/b.h5", &["--layout", "nxtomo"]);
    let before = std::fs::read(rig.path("in/a.h5")).unwrap();
    let (code, log) = rig.once();
    assert_eq!(code, Some(0), "{log}");
    let a = bundle(&rig, "a.h5");
    assert_eq!(a, rig.path("out/s/a"));
    assert_eq!(bundle(&rig, "day 1/b.h5"), rig.path("out/s/day%201__b"));
    let recon = volume(&a.join("recon.h5"));
    let truth = volume(&rig.path("truth.h5"));
    assert_eq!(recon.shape(), truth.shape());
    assert!(recon.iter().all(|v| v.is_finite()));
    let m = manifest(&a);
    let center = m["parameters"]["rotation_center_px"].as_f64().unwrap();
    assert!((center - 61.5).abs() < 0.15, "found {center}, planted 61.5");
    assert_eq!(m["technique"], "tomography");
    assert_eq!(m["input"]["scan"], "a.h5");
    assert!(!m["tasks"].as_array().unwrap().is_empty() && m["software"]["commit"].is_string());
    let previews = std::fs::read_dir(a.join("preview")).unwrap().flatten();
    let png = |p: &Path| std::fs::read(p).unwrap().starts_with(b"\x89PNG\r\n");
    assert!(previews.map(|e| e.path()).filter(|p| png(p)).count() >= 1);
    assert_checksums(&a);
    rig.assert_clean();
    assert_eq!(std::fs::read(rig.path("in/a.h5")).unwrap(), before, "no input is ever changed");
    let (code, log) = rig.once();
    assert_eq!((code, rig.published()["a.h5"].len()), (Some(0), 1), "{log}");
}

/// A scan written slowly under its final name is left alone until it is complete; SIGTERM drains with exit 0.
pub fn a_slow_transfer_is_awaited_and_sigterm_drains(launcher: Launcher) {
    let rig = Rig::new(launcher, "complete = { rule = \"settled\", quiet = \"1s\" }");
    let mut pilot = rig.start(&[]);
    let writer = std::thread::scope(|s| {
        let writer = s.spawn(|| {
            rig.synth("in/slow.h5", &["--slow", "4"]);
            Instant::now()
        });
        while !writer.is_finished() {
            assert!(rig.published().is_empty(), "published while it was written");
            std::thread::sleep(Duration::from_millis(300));
        }
        writer.join().unwrap()
    });
    rig.wait_published("slow.h5", 1);
    assert!(writer.elapsed() < PATIENCE);
    let status = rig.status().unwrap();
    let lag = &status["published"][0]["lag"];
    let parts: f64 =
        ["settling", "waiting", "planning", "computing", "publishing"].iter().map(|k| lag[k].as_f64().unwrap()).sum();
    assert!((parts - lag["total"].as_f64().unwrap()).abs() < 1e-6);
    assert!(lag["settling"].as_f64().unwrap() >= 0.99, "settled for at least the quiet second");
    assert_eq!(status["pilots"][0]["life"], "alive");
    let drained = Instant::now();
    assert_eq!(pilot.drain(), Some(0), "{}", pilot.log());
    assert!(drained.elapsed() < Duration::from_secs(20));
    assert_eq!(rig.status().unwrap()["pilots"][0]["life"], "ended");
}

/// Whatever is wrong with some scans, they end in quarantine with a reason and the others are published.
pub fn bad_input_is_quarantined_and_holds_nothing_up(launcher: Launcher) {
    let rig = Rig::new(launcher, "complete = { rule = \"settled\", quiet = \"300ms\", timeout = \"2s\" }");
    rig.synth("in/good.h5", &[]);
    let bytes = std::fs::read(rig.path("in/good.h5")).unwrap();
    std::fs::write(rig.path("in/truncated.h5"), &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(rig.path("in/empty.h5"), b"").unwrap();
    std::fs::write(rig.path("in/text.h5"), "this is no HDF5 file\n".repeat(100)).unwrap();
    std::fs::write(rig.path("in/line\nbreak.h5"), &bytes).unwrap();
    std::fs::write(rig.path("outside"), &bytes).unwrap();
    std::os::unix::fs::symlink(rig.path("outside"), rig.path("in/link.h5")).unwrap();
    let bare = hdf5::File::create(rig.path("in/bare.h5")).unwrap();
    bare.create_group("exchange").unwrap();
    bare.close().unwrap();
    rig.synth("in/zero_flats.h5", &[]);
    let file = hdf5::File::open_rw(rig.path("in/zero_flats.h5")).unwrap();
    let white = file.dataset("/exchange/data_white").unwrap();
    let shape = white.shape();
    white.write(&ndarray::Array3::<u16>::zeros((shape[0], shape[1], shape[2]))).unwrap();
    drop(white);
    file.close().unwrap();
    let (code, log) = rig.once();
    assert_eq!(code, Some(65), "{log}");
    assert_eq!(rig.published().into_keys().collect::<Vec<_>>(), ["good.h5"]);
    let reasons = rig.quarantined();
    let told = |scan: &str, words: &[&str]| {
        let reason = reasons.get(scan).unwrap_or_else(|| panic!("{scan} is not in quarantine: {reasons:?}"));
        let lower = reason.to_lowercase();
        assert!(words.iter().any(|w| lower.contains(w)), "{scan}: {reason}");
    };
    told("truncated.h5", &["truncated", "short", "bytes"]);
    told("empty.h5", &["empty", "0 bytes"]);
    told("text.h5", &["not an hdf5"]);
    told("link.h5", &["link"]);
    told("bare.h5", &["/exchange/data"]);
    told("zero_flats.h5", &["flat", "white", "zero"]);
    let hostile = reasons.keys().find(|k| k.contains("break")).expect("the name with a line break");
    assert!(!hostile.contains('\n'), "names are escaped for display");
    // A second run does not try them again.
    let (code, log) = rig.once();
    assert_eq!(code, Some(0), "{log}");
}

/// SIGKILL in the middle of things, twice; the next pilot ends what the dead ones began, once.
pub fn killed_pilots_lose_nothing_and_repeat_nothing(launcher: Launcher) {
    let rig = Rig::new(launcher, "");
    for i in 0..4 {
        rig.synth(&format!("in/scan{i}.h5"), &["--seed", &i.to_string(), "--angles", "180", "--size", "96"]);
    }
    for pause_ms in [1500, 2500] {
        let mut pilot = rig.start(&[]);
        std::thread::sleep(Duration::from_millis(pause_ms));
        pilot.kill();
    }
    let (code, log) = rig.once();
    assert_eq!(code, Some(0), "{log}");
    let published = rig.published();
    assert_eq!(published.len(), 4);
    assert!(published.values().all(|v| v.len() == 1), "{published:?}");
    assert_eq!(rig.in_output(), 4, "four bundles and nothing else");
    (0..4).for_each(|i| assert_checksums(&rig.path(&format!("out/s/scan{i}"))));
}

/// A scan that is written again becomes a new version beside the old one.
pub fn a_rewritten_scan_is_a_new_version(launcher: Launcher) {
    let rig = Rig::new(launcher, "");
    rig.synth("in/a.h5", &["--seed", "1"]);
    assert_eq!(rig.once().0, Some(0));
    rig.synth("in/a.h5", &["--seed", "2"]);
    assert_eq!(rig.once().0, Some(0));
    assert_eq!(rig.published()["a.h5"].len(), 2);
    let versions = ["a", "a~2"].map(|b| manifest(&rig.path(&format!("out/s/{b}")))["input"]["version"].to_string());
    assert_ne!(versions[0], versions[1]);
    assert_checksums(&rig.path("out/s/a~2"));
}

/// Files that a scan links to are waited for, belong to its input, and make another version when they change.
pub fn linked_files_belong_to_the_input(launcher: Launcher) {
    let rig = Rig::new(launcher, "");
    std::fs::create_dir_all(rig.path("in")).unwrap();
    let master = hdf5::File::create(rig.path("in/a.h5")).unwrap();
    master.create_group("exchange").unwrap();
    for name in ["data", "data_white", "data_dark", "theta"] {
        let name = format!("/exchange/{name}");
        master.link_external("a.frames", &name, &name).unwrap();
    }
    master.close().unwrap();
    let mut pilot = rig.start(&[]);
    // Long enough to settle and to be probed.
    rig.wait("the pilot runs", || rig.status().is_some());
    std::thread::sleep(Duration::from_secs(2));
    assert!(rig.quarantined().is_empty() && rig.published().is_empty());
    rig.synth("aside.h5", &["--seed", "1"]);
    std::fs::rename(rig.path("aside.h5"), rig.path("in/a.frames")).unwrap();
    rig.wait_published("a.h5", 1);
    assert_eq!(pilot.drain(), Some(0), "{}", pilot.log());
    assert_eq!(rig.once().0, Some(0));
    assert_eq!(rig.published()["a.h5"].len(), 1, "nothing changed");
    rig.synth("in/a.frames", &["--seed", "2"]);
    assert_eq!(rig.once().0, Some(0));
    assert_eq!(rig.published()["a.h5"].len(), 2);
    let inputs = ["a", "a~2"].map(|b| manifest(&rig.path(&format!("out/s/{b}")))["input"].clone());
    assert_ne!(inputs[0]["version"], inputs[1]["version"]);
    assert!(inputs.iter().all(|i| i["linked"][0]["path"].as_str().unwrap().ends_with("/in/a.frames")));
    assert_ne!(volume(&rig.path("out/s/a/recon.h5")), volume(&rig.path("out/s/a~2/recon.h5")));
    assert_eq!(rig.once().0, Some(0));
    assert_eq!(rig.published()["a.h5"].len(), 2);
}

/// Two pilots on one campaign at once: every scan is published exactly once.
pub fn two_pilots_share_a_campaign(launcher: Launcher) {
    let rig = Rig::new(launcher, "");
    for i in 0..6 {
        rig.synth(&format!("in/scan{i}.h5"), &["--seed", &i.to_string()]);
    }
    let mut pilots = [rig.start(&["--once"]), rig.start(&["--once"])];
    for pilot in &mut pilots {
        assert_eq!(pilot.exit_code(), Some(0), "{}", pilot.log());
    }
    let published = rig.published();
    assert_eq!(published.len(), 6);
    assert!(published.values().all(|v| v.len() == 1), "{published:?}");
    assert_eq!(rig.in_output(), 6);
}

/// Marker, manifest and renamed: each declares completeness in its own way.
pub fn every_completeness_rule_works(launcher: Launcher) {
    let rig = Rig::new(launcher, "complete = { rule = \"marker\" }");
    rig.synth("in/marked.h5", &[]);
    rig.synth("in/unmarked.h5", &[]);
    std::fs::write(rig.path("in/marked.h5.done"), "").unwrap();
    let (code, log) = rig.once();
    assert_eq!(code, Some(75), "one scan is left incomplete: {log}");
    assert_eq!(rig.published().into_keys().collect::<Vec<_>>(), ["marked.h5"]);

    let rig = Rig::new(launcher, "complete = { rule = \"renamed\", temporary = \"*.part\" }");
    rig.synth("aside.h5", &[]);
    std::fs::rename(rig.path("aside.h5"), rig.path("in/renamed.h5")).unwrap();
    assert_eq!(rig.once().0, Some(0));
    assert_eq!(rig.published().len(), 1);

    let rig = Rig::new(launcher, "complete = { rule = \"manifest\", pattern = \"{scan}.sha256\", timeout = \"2s\" }");
    for (name, honest) in [("right.h5", true), ("wrong.h5", false)] {
        rig.synth(&format!("in/{name}"), &[]);
        let output = std::process::Command::new("sha256sum").arg(name).current_dir(rig.path("in")).output().unwrap();
        let mut sums = String::from_utf8(output.stdout).unwrap();
        if !honest {
            let flipped = if sums.starts_with('0') { "1" } else { "0" };
            sums.replace_range(0..1, flipped);
        }
        std::fs::write(rig.path(&format!("in/{name}.sha256")), sums).unwrap();
    }
    let (code, log) = rig.once();
    assert_eq!(code, Some(65), "{log}");
    assert_eq!(rig.published().into_keys().collect::<Vec<_>>(), ["right.h5"]);
    assert!(rig.quarantined()["wrong.h5"].contains("wrong.h5"), "{:?}", rig.quarantined());
}

/// A full disk is nobody's fault: the pilot pauses, says so, and goes on when there is room.
pub fn a_full_disk_pauses_and_resumes(launcher: Launcher) {
    let rig = Rig::new(launcher, "");
    let out = rig.path("out");
    std::fs::create_dir_all(&out).unwrap();
    let mounted =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&out).output();
    if !mounted.is_ok_and(|m| m.status.success()) {
        eprintln!("skipped: a small tmpfs cannot be mounted here (not root)");
        return;
    }
    struct Mount(PathBuf);
    impl Drop for Mount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _mount = Mount(out.clone());
    std::fs::write(out.join("ballast"), vec![1u8; (4 << 20) - (150 << 10)]).unwrap();
    rig.synth("in/a.h5", &["--size", "96", "--slices", "16"]);
    let mut pilot = rig.start(&["--once"]);
    rig.wait("the pause is shown", || {
        let paused = |p: &serde_json::Value| p["status"]["view"]["paused"].is_string();
        rig.status().is_some_and(|s| s["pilots"].as_array().is_some_and(|p| p.iter().any(paused)))
    });
    assert!(rig.published().is_empty() && rig.quarantined().is_empty());
    std::fs::remove_file(out.join("ballast")).unwrap();
    assert_eq!(pilot.exit_code(), Some(0), "{}", pilot.log());
    assert_eq!((rig.published().len(), rig.quarantined().len()), (1, 0));
    assert!(pilot.log().contains("paused") && pilot.log().contains("resumed"), "{}", pilot.log());
}

/// Text that is no UTF-8 in a foreign file is read as well as it can be, and harms nobody.
pub fn foreign_text_does_no_harm(launcher: Launcher) {
    let rig = Rig::new(launcher, "");
    rig.synth("in/a.h5", &[]);
    let file = hdf5::File::open_rw(rig.path("in/a.h5")).unwrap();
    let mut latin1 = [0u8; 8];
    latin1[..6].copy_from_slice(b"M\xfcller");
    // SAFETY: it is not UTF-8; what is tested is that readers do not rely on it. It is only copied into the file here.
    let name = unsafe { std::mem::transmute::<[u8; 8], hdf5::types::FixedUnicode<8>>(latin1) };
    let sample = file.create_group("measurement/sample_of_test").unwrap();
    sample.new_dataset::<hdf5::types::FixedUnicode<8>>().create("name").unwrap().write_scalar(&name).unwrap();
    let theta = file.dataset("/exchange/theta").unwrap();
    let _ = theta.delete_attr("units");
    theta.new_attr::<hdf5::types::FixedUnicode<8>>().create("units").unwrap().write_scalar(&name).unwrap();
    drop((theta, sample));
    file.close().unwrap();
    let (code, log) = rig.once();
    assert!(matches!(code, Some(0 | 65)), "{code:?}: {log}");
    assert_eq!(rig.published().len() + rig.quarantined().len(), 1, "{log}");
}

/// Wrong configuration: exit 78 and words that name file, line, key and remedy, before anything is started.
pub fn wrong_configuration_ends_with_78(launcher: Launcher) {
    for (stream, words) in [
        ("wieght = 2", "campaign.toml:13: stream.wieght: unknown key; did you mean \"weight\"?"),
        ("[stream.recipe]\ncentre = 3", "campaign.toml:14: stream.recipe.centre"),
        ("[stream.roles]\nflatt = { path = \"x\" }", "campaign.toml:14: stream.roles.flatt"),
    ] {
        let rig = Rig::new(launcher, stream);
        let (code, log) = rig.once();
        assert_eq!(code, Some(78), "{log}");
        assert!(log.contains(words), "expected {words:?} in:\n{log}");
        assert!(!rig.path("state").exists(), "nothing was started");
    }
    let rig = Rig::new(launcher, "");
    assert_eq!(rig.once().0, Some(0));
    let text = std::fs::read_to_string(rig.path("campaign.toml")).unwrap();
    std::fs::write(rig.path("campaign.toml"), text.replace("\"state\"", "\"other\"")).unwrap();
    let (code, log) = rig.once();
    assert_eq!(code, Some(78), "two campaigns may not share an output: {log}");
    assert!(log.contains(".campaign-state") && log.contains("another `output`"), "{log}");
    let rig = Rig::new(launcher, "");
    std::fs::remove_dir(rig.path("in")).unwrap();
    let (code, log) = rig.once();
    assert_eq!(code, Some(78), "{log}");
    assert!(log.contains("stream.watch") && log.contains("does not exist"), "{log}");
}

/// The measured scan, when it is there.
pub fn the_measured_tooth_is_published(launcher: Launcher) {
    let tooth = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/tomo/tooth.h5");
    if !tooth.exists() {
        eprintln!("skipped: {} is not there", tooth.display());
        return;
    }
    let rig = Rig::new(launcher, "");
    std::fs::copy(&tooth, rig.path("in/tooth.h5")).unwrap();
    let (code, log) = rig.once();
    assert_eq!(code, Some(0), "{log}");
    let m = manifest(&bundle(&rig, "tooth.h5"));
    let center = m["parameters"]["rotation_center_px"].as_f64().unwrap();
    assert!((center - 295.0).abs() <= 0.25, "found {center}");
    assert_eq!(volume(&rig.path("out/s/tooth/recon.h5")).shape(), [2, 640, 640]);
}
