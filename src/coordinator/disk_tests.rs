//! Disk orders on a real folder, with predecessors that are dead, alive, or half done.

use super::*;
use crate::arrivals::scan::FileStamp;
use crate::store::{RealFs, RealHost};
use std::time::Duration;

struct Rig {
    _dir: tempfile::TempDir,
    output: PathBuf,
    scan: Scan,
    disk: Disk,
}

const KEY: &str = "s.a-000000000000-00000000";

fn disk(root: &Path, me: Identity) -> Disk {
    let place = StreamPlace { output: root.join("out/s"), pattern: "**/*.h5".into() };
    let layout = Layout::open(&RealFs, &root.join("state")).unwrap();
    let streams = [("s".to_owned(), place)].into();
    Disk::new(Arc::new(RealFs), Arc::new(RealHost), layout, me, streams)
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("a.h5");
    std::fs::write(&input, b"frames").unwrap();
    let stamp = FileStamp::from_metadata("a.h5", &std::fs::metadata(&input).unwrap());
    let scan = Scan {
        stream: "s".into(),
        name: "a.h5".into(),
        root: dir.path().to_owned(),
        members: vec![stamp],
        ..Scan::default()
    };
    let disk = disk(dir.path(), Identity::own("me"));
    Rig { output: dir.path().join("out/s"), scan, disk, _dir: dir }
}

impl Rig {
    fn root(&self) -> &Path {
        &self.scan.root
    }
    /// Another pilot on the same folders, whose process is gone.
    fn dead(&self) -> Disk {
        disk(self.root(), Identity { pid_start: u64::MAX, ..Identity::own("dead") })
    }
    fn claim(&self, disk: &Disk) -> (u32, PathBuf) {
        match disk.claim(KEY, &self.scan) {
            ClaimOutcome::Won { generation, staging, .. } => {
                std::fs::write(staging.join("manifest.json"), format!("{{\"key\":\"{KEY}\"}}")).unwrap();
                (generation, staging)
            }
            other => panic!("{other:?}"),
        }
    }
    fn publish(&self, disk: &Disk, generation: u32, staging: &Path) -> PublishOutcome {
        disk.publish(KEY, &self.scan, generation, staging, Timeline::default(), "1 slices".into())
    }
    fn hidden(&self) -> Vec<String> {
        self.disk.fs.list(&self.output).unwrap().into_iter().filter(|n| n.starts_with('.')).collect()
    }
}

#[test]
fn claimed_published_and_never_claimed_again() {
    let rig = rig();
    let (generation, staging) = rig.claim(&rig.disk);
    let bundle = rig.output.join("a");
    assert_eq!(rig.publish(&rig.disk, generation, &staging), PublishOutcome::Done { bundle: bundle.clone() });
    assert_eq!(rig.publish(&rig.disk, generation, &staging), PublishOutcome::Done { bundle }, "asked again");
    assert_eq!(rig.disk.claim(KEY, &rig.scan), ClaimOutcome::Published);
    assert!(rig.hidden().is_empty());
}

#[test]
fn a_pilot_that_slept_finds_itself_fenced() {
    let rig = rig();
    let dead = rig.dead();
    let (old, old_staging) = rig.claim(&dead);
    let (new, new_staging) = rig.claim(&rig.disk);
    assert_eq!((old, new), (1, 2));
    assert_eq!(rig.publish(&dead, old, &old_staging), PublishOutcome::Fenced);
    assert!(matches!(rig.publish(&rig.disk, new, &new_staging), PublishOutcome::Done { .. }));
}

#[test]
fn what_a_predecessor_published_without_a_record_is_found_and_nothing_is_left() {
    let rig = rig();
    let dead = rig.dead();
    let (_, staging) = rig.claim(&dead);
    // Killed between the rename and the record.
    std::fs::rename(staging, rig.output.join("a")).unwrap();
    assert_eq!(rig.disk.claim(KEY, &rig.scan), ClaimOutcome::Published);
    assert!(rig.disk.layout.published(KEY).exists() && rig.hidden().is_empty());
}

#[test]
fn a_stale_heartbeat_stops_publication() {
    let rig = rig();
    let (generation, staging) = rig.claim(&rig.disk);
    *rig.disk.last_beat.lock().unwrap() = Duration::ZERO;
    assert!(
        matches!(rig.publish(&rig.disk, generation, &staging), PublishOutcome::Storage(why) if why.contains("heartbeat"))
    );
}

#[test]
fn a_changed_or_vanished_input_is_neither_claimed_nor_published() {
    let rig = rig();
    let (generation, staging) = rig.claim(&rig.disk);
    std::fs::write(rig.root().join("a.h5"), b"other frames").unwrap();
    assert_eq!(rig.publish(&rig.disk, generation, &staging), PublishOutcome::Changed);
    std::fs::remove_file(rig.root().join("a.h5")).unwrap();
    assert_eq!(rig.disk.claim("s.b-000000000000-00000000", &rig.scan), ClaimOutcome::Changed);
}

#[test]
fn a_torn_claim_holds_up_its_own_scan_only() {
    let rig = rig();
    std::fs::write(rig.disk.layout.claim(KEY, 1), b"").unwrap();
    assert!(matches!(rig.disk.claim(KEY, &rig.scan), ClaimOutcome::Failed(why) if why.contains("not a claim")));
}

#[test]
fn the_sweep_takes_what_the_dead_left_and_nothing_else() {
    let rig = rig();
    let other = "s.c-000000000000-00000000";
    let ClaimOutcome::Won { staging: dead, .. } = rig.dead().claim(other, &rig.scan) else { panic!() };
    let (_, mine) = rig.claim(&rig.disk);
    std::fs::create_dir(rig.output.join(".fenced-x.1")).unwrap();
    std::fs::create_dir(rig.output.join("bundle")).unwrap();
    rig.disk.sweep();
    assert!(!dead.exists() && mine.exists() && rig.output.join("bundle").exists());
    assert_eq!(rig.hidden().len(), 1);
}

#[test]
fn a_released_claim_can_be_won_again() {
    let rig = rig();
    let (generation, staging) = rig.claim(&rig.disk);
    rig.disk.release(KEY, generation, &staging);
    assert!(rig.hidden().is_empty());
    assert_eq!(rig.claim(&rig.disk).0, 2);
}

#[test]
fn a_pilot_that_slept_cannot_condemn_a_scan_that_others_have() {
    let rig = rig();
    let dead = rig.dead();
    let (old, _) = rig.claim(&dead);
    rig.claim(&rig.disk);
    let verdict = dead.quarantine(KEY, "s", "a.h5", (None, None), old, "its staging was taken away");
    assert_eq!(verdict, QuarantineOutcome::Fenced);
    assert!(!rig.disk.layout.quarantine(KEY).exists());
}

#[test]
fn a_state_folder_that_vanished_is_not_made_again() {
    let rig = rig();
    assert_eq!(rig.disk.probe(), Ok(()));
    std::fs::remove_dir_all(&rig.disk.layout.state).unwrap();
    assert!(rig.disk.probe().unwrap_err().contains("state"));
    assert!(!rig.disk.layout.state.exists());
}
