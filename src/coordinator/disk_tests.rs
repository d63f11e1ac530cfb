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
fn a_linked_file_is_compared_before_publication_and_recorded() {
    let mut rig = rig();
    let path = rig.root().join("frames.h5");
    std::fs::write(&path, b"frames").unwrap();
    let (generation, staging) = rig.claim(&rig.disk);
    rig.scan.linked = vec![rig.disk.fs.stat(&path).unwrap()];
    std::fs::write(&path, b"more frames").unwrap();
    assert_eq!(rig.publish(&rig.disk, generation, &staging), PublishOutcome::Changed);
    rig.scan.linked = vec![rig.disk.fs.stat(&path).unwrap()];
    assert!(matches!(rig.publish(&rig.disk, generation, &staging), PublishOutcome::Done { .. }));
    let record: Published = records::one(&*rig.disk.fs, &rig.disk.layout, "published", KEY).unwrap();
    assert_eq!((record.linked.len(), &record.linked[0].path), (1, &path));
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
fn whatever_lies_in_the_place_of_a_claim_holds_up_its_own_scan_only() {
    let rig = rig();
    let path = rig.disk.layout.claim(KEY, 1);
    let oddities: [&dyn Fn(); 4] = [
        &|| std::fs::create_dir(&path).unwrap(),
        &|| std::fs::write(&path, vec![b' '; 70_000]).unwrap(),
        &|| std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
        &|| assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success()),
    ];
    for put in oddities {
        put();
        let failed = rig.disk.claim(KEY, &rig.scan);
        let why = format!("{}: not a claim", path.display());
        assert!(
            matches!(&failed, ClaimOutcome::Failed(w) if w.contains(&why) && w.contains("releasing the scan passes over it")),
            "{failed:?}"
        );
        let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
    }
    // In the place of its release: whatever it is, it is there.
    let (generation, _) = rig.claim(&rig.dead());
    std::fs::create_dir(rig.disk.layout.released(KEY, generation)).unwrap();
    assert!(matches!(rig.disk.claim(KEY, &rig.scan), ClaimOutcome::Won { generation: 2, .. }));
}

#[test]
fn a_damaged_record_loses_no_scan() {
    let rig = rig();
    for (n, text) in ["", "{}", "\0\0\0"].into_iter().enumerate() {
        // Without a bundle it is done again.
        for path in [rig.disk.layout.published(KEY), rig.disk.layout.quarantine(KEY)] {
            std::fs::write(path, text).unwrap();
        }
        let generation = u32::try_from(n).unwrap() + 1;
        let (won, staging) = rig.claim(&rig.disk);
        assert_eq!(won, generation);
        rig.disk.release(KEY, won, &staging).unwrap();
    }
    let (generation, staging) = rig.claim(&rig.disk);
    assert!(matches!(rig.publish(&rig.disk, generation, &staging), PublishOutcome::Done { .. }));
    // With one, the record is made again, whatever took its place.
    let path = rig.disk.layout.published(KEY);
    let whole = std::fs::read_to_string(&path).unwrap();
    let other = rig.disk.layout.published("s.b-000000000000-00000000");
    let oddities: [&dyn Fn(); 5] = [
        &|| std::fs::write(&path, "").unwrap(),
        &|| std::fs::write(&path, whole.replace(KEY, "s.b-000000000000-00000000")).unwrap(),
        &|| std::os::unix::fs::symlink(&other, &path).unwrap(),
        &|| assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success()),
        &|| std::fs::create_dir_all(path.join("kept")).unwrap(),
    ];
    for put in oddities {
        std::fs::remove_file(&path).unwrap();
        put();
        assert_eq!(rig.disk.claim(KEY, &rig.scan), ClaimOutcome::Published);
        let record: Published = records::one(&*rig.disk.fs, &rig.disk.layout, "published", KEY).unwrap();
        assert_eq!(record.bundle, rig.output.join("a").display().to_string());
    }
    let kept = |name: &String| name.ends_with(".damaged");
    assert!(rig.disk.fs.list(path.parent().unwrap()).unwrap().iter().any(kept), "what the folder held is somebody's");
    // A pipe in the place of a bundle's manifest says nothing either.
    std::fs::remove_file(&path).unwrap();
    let manifest = rig.output.join("a/manifest.json");
    std::fs::remove_file(&manifest).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&manifest).status().unwrap().success());
    let (generation, staging) = rig.claim(&rig.disk);
    let bundle = rig.output.join("a~2");
    assert_eq!(rig.publish(&rig.disk, generation, &staging), PublishOutcome::Done { bundle });
}

#[test]
fn the_sweep_takes_what_the_dead_left_and_nothing_else() {
    let rig = rig();
    let other = "s.c-000000000000-00000000";
    let ClaimOutcome::Won { staging: dead, .. } = rig.dead().claim(other, &rig.scan) else { panic!() };
    let (_, mine) = rig.claim(&rig.disk);
    std::fs::create_dir(rig.output.join(".fenced-x.1")).unwrap();
    std::fs::create_dir(rig.output.join("bundle")).unwrap();
    rig.disk.sweep(false);
    assert!(!dead.exists() && mine.exists() && rig.output.join("bundle").exists());
    assert_eq!(rig.hidden().len(), 1);
}

#[test]
fn a_released_claim_can_be_won_again() {
    let rig = rig();
    let (generation, staging) = rig.claim(&rig.disk);
    rig.disk.release(KEY, generation, &staging).unwrap();
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

/// Counts what reaches the metadata server: every open, lookup, link, rename, unlink and mkdir.
struct Counting(std::sync::atomic::AtomicU32);

impl Counting {
    fn add(&self, n: u32) -> RealFs {
        self.0.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
        RealFs
    }
}

impl Fs for Counting {
    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.add(1).write_new(path, bytes)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.add(1).link(from, to)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.add(1).rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.add(1).remove_file(path)
    }
    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.add(2).remove_tree(path)
    }
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        self.add(1).read(path, limit)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.add(1).list(path)
    }
    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.add(1).make_dir(path, mode)
    }
    fn make_dirs(&self, path: &Path) -> io::Result<()> {
        self.add(1).make_dirs(path)
    }
    fn copy_mode(&self, like: &Path, path: &Path) -> io::Result<()> {
        self.add(2).copy_mode(like, path)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.add(1).exists(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.add(1).sync_dir(path)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.add(1).free_bytes(path)
    }
    fn stat(&self, path: &Path) -> io::Result<FileStamp> {
        self.add(1).stat(path)
    }
    fn open_log(&self, path: &Path) -> io::Result<Box<dyn crate::store::fs::Log>> {
        self.add(1).open_log(path)
    }
    fn unique(&self) -> String {
        RealFs.unique()
    }
}

#[test]
fn a_claim_and_its_plan_cost_ten_metadata_operations() {
    let mut rig = rig();
    RealFs.make_dirs(&rig.output).unwrap();
    let counting = Arc::new(Counting(0.into()));
    rig.disk.fs = counting.clone();
    let ClaimOutcome::Won { staging, .. } = rig.disk.claim(KEY, &rig.scan) else { panic!("not won") };
    rig.disk.save_plan(KEY, &staging, &a_plan());
    let n = counting.0.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(n, 10, "the journal's file stays open and adds none");
}

fn a_plan() -> crate::technique::plan::Plan {
    use crate::technique::plan::*;
    let task = |label: &str, kind| TaskSpec { label: label.into(), kind, params: vec![1], cost: 1.0, bytes_in: 0 };
    let tasks = vec![task("slab-0", TaskKind::Stage), task("slab-1", TaskKind::Stage)];
    let stages = vec![Stage { name: "slabs".into(), tasks, decide: None }];
    Plan {
        preview: None,
        stages,
        finish: task("finish", TaskKind::Finish),
        items: 2,
        unit: "slices".into(),
        linked: Vec::new(),
        scratch: false,
    }
}

/// What a pilot leaves that dies after one of two slabs.
fn one_slab_done(rig: &Rig, disk: &Disk) -> PathBuf {
    use crate::technique::plan::*;
    let ClaimOutcome::Won { staging, .. } = disk.claim(KEY, &rig.scan) else { panic!("not won") };
    disk.save_plan(KEY, &staging, &a_plan());
    std::fs::create_dir(staging.join("parts")).unwrap();
    std::fs::write(staging.join("parts/slab-0.a7.h5"), b"slices").unwrap();
    std::fs::write(staging.join("parts/slab-1.a8.h5"), b"half").unwrap();
    let file = OutputFile { path: "parts/slab-0.a7.h5".into(), bytes: 6, sha256: "x".into() };
    recorded(disk, vec![("slab-0", TaskOutput { files: vec![file], ..TaskOutput::default() })]);
    staging
}

/// Journals finished tasks.
fn recorded(disk: &Disk, done: Vec<(&str, crate::technique::plan::TaskOutput)>) {
    use crate::coordinator::event::Entry;
    use crate::store::journal::{Group, Line, Writer};
    use crate::technique::plan::*;
    let task = |(label, output): (&str, TaskOutput)| {
        let record =
            TaskRecord { stage: 0, label: label.into(), kind: TaskKind::Stage, host: "h".into(), rank: 0, output };
        Entry::Task { job: 1, label: label.into(), attempt: 7, worker: 0, record: Some(Box::new(record)) }
    };
    let events = [Entry::Arrived { job: 1, key: KEY.into(), bytes: 6 }].into_iter().chain(done.into_iter().map(task));
    let mut group = Group::default();
    for (seq, event) in (1..).zip(events) {
        group.push(&Line { seq, t_ms: 0, event });
    }
    let path = disk.layout.journal(&disk.me.pilot);
    Writer::open(Arc::new(RealFs), path, 0).unwrap().append(&group).unwrap();
}

fn beat(disk: &Disk, writers: Vec<crate::store::host::Process>) {
    let identity = disk.me.clone();
    let beat = claims::Heartbeat { identity, beat: 1, at_ms: 0, ended: false, ends_ms: None, writers, lease_ms: None };
    claims::beat(&RealFs, &disk.layout, &beat).unwrap();
}

#[test]
fn finished_parts_of_a_proven_dead_owner_are_adopted() {
    let rig = rig();
    let dead = rig.dead();
    beat(&dead, vec![dead.me.process()]);
    let old = one_slab_done(&rig, &dead);
    let ClaimOutcome::Won { generation, staging, deaths, adopted } = rig.disk.claim(KEY, &rig.scan) else {
        panic!("not taken over")
    };
    let adopted = adopted.expect("one slab was finished");
    assert_eq!((generation, deaths, adopted.records.len(), adopted.plan), (2, 1, 1, a_plan()));
    assert_eq!(std::fs::read(staging.join("parts/slab-0.a7.h5")).unwrap(), b"slices");
    assert!(!staging.join("parts/slab-1.a8.h5").exists() && !old.exists(), "what was not recorded is gone");
    assert_eq!(rig.hidden(), [staging.file_name().unwrap().to_str().unwrap()]);
}

#[test]
fn scratch_moves_with_its_task_and_a_task_without_its_scratch_is_done_again() {
    use crate::technique::plan::{Scratch, TaskOutput};
    for present in [true, false] {
        let rig = rig();
        let dead = rig.dead();
        beat(&dead, vec![dead.me.process()]);
        let ClaimOutcome::Won { staging: old, .. } = dead.claim(KEY, &rig.scan) else { panic!("not won") };
        dead.save_plan(KEY, &old, &a_plan());
        std::fs::create_dir(old.join("scratch")).unwrap();
        if present {
            std::fs::write(old.join("scratch/frames.raw"), b"rows").unwrap();
        }
        let leaving = |path: &str, local| {
            let scratch = Some(Scratch { path: path.into(), bytes: 4, local });
            TaskOutput { scratch, ..TaskOutput::default() }
        };
        recorded(&dead, vec![("slab-0", leaving("scratch/frames.raw", false)), ("slab-1", leaving("rows.raw", true))]);
        let ClaimOutcome::Won { staging, adopted, .. } = rig.disk.claim(KEY, &rig.scan) else { panic!("not won") };
        let labels = adopted.map(|a| a.records.into_iter().map(|r| r.label).collect::<Vec<_>>());
        assert_eq!(labels, present.then(|| vec!["slab-0".to_owned()]));
        assert_eq!(staging.join("scratch/frames.raw").exists(), present);
    }
}

#[test]
fn nothing_is_adopted_while_a_writer_may_live_and_nothing_is_lost() {
    let rig = rig();
    let dead = rig.dead();
    // Its rank 0 is dead; an executor of it on another host may still write.
    let elsewhere = crate::store::host::Process { host: "far".into(), ..dead.me.process() };
    beat(&dead, vec![elsewhere]);
    one_slab_done(&rig, &dead);
    let ClaimOutcome::Won { adopted, .. } = rig.disk.claim(KEY, &rig.scan) else { panic!("not taken over") };
    assert_eq!(adopted, None);
}

#[test]
fn a_claim_handed_over_is_taken_at_once_with_its_parts_and_blames_nobody() {
    let rig = rig();
    let other = disk(rig.root(), Identity::own("other"));
    one_slab_done(&rig, &other);
    assert!(matches!(rig.disk.claim(KEY, &rig.scan), ClaimOutcome::Foreign { .. }));
    other.hand_over(KEY, 1);
    rig.disk.sweep(false);
    let ClaimOutcome::Won { deaths, adopted, .. } = rig.disk.claim(KEY, &rig.scan) else { panic!("not taken") };
    assert_eq!((deaths, adopted.map(|a| a.records.len())), (0, Some(1)));
}

#[test]
fn deaths_add_up_over_owners() {
    let rig = rig();
    for n in 0..3 {
        let me = Identity { pid_start: u64::MAX, ..Identity::own(&format!("dead-{n}")) };
        let ClaimOutcome::Won { deaths, .. } = disk(rig.root(), me).claim(KEY, &rig.scan) else { panic!("not won") };
        assert_eq!(deaths, n);
    }
}

#[test]
fn journals_that_are_gone_cost_time_only() {
    let rig = rig();
    let dead = rig.dead();
    beat(&dead, vec![]);
    one_slab_done(&rig, &dead);
    std::fs::remove_dir_all(rig.disk.layout.state.join("journal")).unwrap();
    assert!(matches!(rig.disk.claim(KEY, &rig.scan), ClaimOutcome::Won { adopted: None, generation: 2, .. }));
}

#[test]
fn a_tombstone_proves_death_and_says_whether_the_scan_may_be_blamed() {
    use crate::store::tombstone::{Tombstone, put};
    for (explained, deaths) in [(true, 0), (false, 1)] {
        let rig = rig();
        // Alive as far as this host can see: only the tombstone says otherwise.
        let other = disk(rig.root(), Identity::own("other"));
        one_slab_done(&rig, &other);
        assert!(matches!(rig.disk.claim(KEY, &rig.scan), ClaimOutcome::Foreign { .. }));
        let stone = Tombstone {
            pilot: "other".into(),
            by: "launch".into(),
            at_ms: 1,
            explained,
            reason: "a host is lost".into(),
            lost: Vec::new(),
        };
        put(&RealFs, &rig.disk.layout, &stone).unwrap();
        match rig.disk.claim(KEY, &rig.scan) {
            ClaimOutcome::Won { deaths: n, adopted: Some(_), .. } => assert_eq!(n, deaths),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_sweep_leaves_what_may_be_adopted_until_nothing_is_left_to_do() {
    let rig = rig();
    let dead = rig.dead();
    beat(&dead, vec![dead.me.process()]);
    let staging = one_slab_done(&rig, &dead);
    rig.disk.sweep(false);
    assert!(staging.exists(), "a pilot that starts may go on with it");
    rig.disk.sweep(true);
    assert!(rig.hidden().is_empty());
}
