//! Two pilots, one scan, every interleaving: depth first over who makes the next call, with at most one fault anywhere.
//!
//! What is covered: from an empty state folder each pilot claims, builds a bundle of two files, publishes, and asks again
//! whenever it is told to wait; between any two filesystem calls the other may run, and once per execution one pilot is
//! killed (and can be proven dead), or paused until its lease has run out for the other, to wake at any later moment, or
//! one of its calls succeeds and answers with an error. Two executions that agree in the whole tree and in everything
//! each pilot has been told since it last asked are continued once: what they do next is the same.

use super::faults::Broken;
use super::fibre::{Clocks, Fibre, HISTORY, Resume, SimFs, SimHost};
use super::tree::{Client, EIO, Tree, digest, fnv};
use crate::arrivals::scan::Scan;
use crate::coordinator::disk::{Disk, StreamPlace};
use crate::coordinator::event::{ClaimOutcome, PublishOutcome, Timeline};
use crate::store::Layout;
use crate::store::claims::{Identity, Observer};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

const KEY: &str = "s.a-000000000000-00000000";

/// A step of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Run(usize),
    /// Its call is done and says that it failed.
    Lie(usize),
    Kill(usize),
    Pause(usize),
    Wake(usize),
}

struct Two {
    tree: Arc<Mutex<Tree>>,
    clocks: Arc<Clocks>,
    disks: Vec<Arc<Disk>>,
    fibres: Vec<Option<Fibre<()>>>,
    history: [u64; 2],
    paused: Option<usize>,
    /// The one fault: none yet, or what it was.
    fault: Option<Choice>,
}

/// A pilot with one scan: what core, lanes and an executor do for it, in one procedure.
fn pilot(disk: &Disk, fs: &SimFs, scan: &Scan) {
    'ask: loop {
        HISTORY.set(0);
        match disk.claim(KEY, scan) {
            ClaimOutcome::Won { generation, staging, .. } => {
                if build(fs, &staging).is_err() {
                    continue;
                }
                loop {
                    match disk.publish(KEY, scan, generation, &staging, Timeline::default(), String::new()) {
                        PublishOutcome::Done { .. } => return,
                        PublishOutcome::Fenced => continue 'ask,
                        PublishOutcome::Storage(_) => {}
                        PublishOutcome::Changed => panic!("nobody changed the input"),
                    }
                }
            }
            ClaimOutcome::Foreign { .. } | ClaimOutcome::Storage(_) => {}
            ClaimOutcome::Published => return,
            other => panic!("{other:?}"),
        }
    }
}

fn build(fs: &SimFs, staging: &Path) -> std::io::Result<()> {
    let files = serde_json::json!([{ "path": "recon.h5", "sha256": digest(b"volume") }]);
    let manifest = serde_json::json!({ "key": KEY, "files": files }).to_string();
    for (name, bytes) in [("recon.h5", &b"volume"[..]), ("manifest.json", manifest.as_bytes())] {
        let file = fs.create(&staging.join(name), false)?;
        file.write(0, bytes)?;
        file.sync()?;
    }
    Ok(())
}

impl Two {
    fn new(broken: Option<Broken>) -> Self {
        let (tree, clocks) = (Arc::<Mutex<Tree>>::default(), Arc::<Clocks>::default());
        let beamline = Client { node: 9, beamline: true };
        {
            let mut t = tree.lock().unwrap();
            t.make_dirs(beamline, Path::new("/watch")).unwrap();
            t.make_dirs(beamline, Path::new("/out/s")).unwrap();
            let id = t.open(beamline, Path::new("/watch/a.h5"), true).unwrap();
            t.write(beamline, id, 0, b"frames").unwrap();
            t.sync(id);
        }
        let mut stamp = tree.lock().unwrap().stat(Path::new("/watch/a.h5")).unwrap();
        stamp.path = "a.h5".into();
        let scan = Scan {
            stream: "s".into(),
            name: "a.h5".into(),
            root: "/watch".into(),
            members: vec![stamp],
            ..Scan::default()
        };
        let (mut disks, mut fibres) = (Vec::new(), Vec::new());
        for p in 0..2u32 {
            let mut fs = SimFs::new(tree.clone(), Client { node: p, beamline: false }, &format!("p{p}"));
            fs.broken = broken;
            let layout = Layout::open(&fs, Path::new("/state")).unwrap();
            let host = SimHost {
                clocks: clocks.clone(),
                skew_ms: 0.into(),
                name: "host".into(),
                omniscient: false,
                broken,
                tree: tree.clone(),
            };
            let me = Identity {
                pilot: format!("p{p}"),
                host: "host".into(),
                boot: "boot".into(),
                pid: p,
                pid_start: 1,
                build: String::new(),
                launch: None,
            };
            let place = StreamPlace { output: "/out/s".into(), pattern: "*.h5".into() };
            let streams = [("s".to_owned(), place)].into();
            let disk = Arc::new(Disk::new(Arc::new(fs.clone()), Arc::new(host), layout, me, streams));
            disks.push(disk.clone());
            let scan = scan.clone();
            fibres.push(Some(Fibre::new(move || pilot(&disk, &fs, &scan))));
        }
        let mut two = Self { tree, clocks, disks, fibres, history: [0; 2], paused: None, fault: None };
        // Up to the first call of each.
        two.take(Choice::Run(0));
        two.take(Choice::Run(1));
        two
    }

    fn choices(&self) -> Vec<Choice> {
        let mut all = Vec::new();
        let running = |p: &usize| self.fibres[*p].is_some() && self.paused != Some(*p);
        for p in (0..2).filter(running) {
            all.push(Choice::Run(p));
            if self.fault.is_none() {
                all.extend([Choice::Lie(p), Choice::Kill(p), Choice::Pause(p)]);
            }
        }
        all.extend(self.paused.map(Choice::Wake));
        all
    }

    fn resume(&mut self, p: usize, answer: Resume) {
        HISTORY.set(self.history[p]);
        let ended = self.fibres[p].as_mut().expect("a pilot that runs").resume(answer).is_ok();
        self.history[p] = HISTORY.get();
        if ended {
            self.fibres[p] = None;
        }
    }

    fn take(&mut self, choice: Choice) {
        match choice {
            Choice::Run(p) => self.resume(p, Resume::Go),
            Choice::Lie(p) => self.resume(p, Resume::Ambiguous(EIO)),
            Choice::Kill(p) => {
                self.fibres[p] = None;
                self.clocks.dead.lock().unwrap().insert(p as u32);
            }
            Choice::Pause(p) => {
                self.paused = Some(p);
                // The other looks at a heartbeat that stands still, and goes on with its own.
                let other = &self.disks[1 - p];
                for _ in 0..=6 {
                    let mut observer = other.observer.lock().unwrap();
                    observer.is_expired(&format!("p{p}"), Some(0), other.host.mono());
                    self.clocks.now.fetch_add(10_000_000, Ordering::Relaxed);
                }
                assert!(Observer::LEASE.as_secs() == 60, "seven looks make a lease");
                *other.last_beat.lock().unwrap() = other.host.mono();
            }
            Choice::Wake(p) => {
                self.paused = None;
                // Its heartbeat comes first, so that nothing but the claims stops it.
                *self.disks[p].last_beat.lock().unwrap() = self.disks[p].host.mono();
            }
        }
        if !matches!(choice, Choice::Run(_) | Choice::Wake(_)) {
            self.fault = Some(choice);
        }
    }

    fn state(&self) -> u64 {
        let runs = [self.fibres[0].is_some(), self.fibres[1].is_some()];
        let rest = format!("{:?} {:?} {:?} {runs:?}", self.history, self.paused, self.fault);
        fnv(rest.as_bytes(), self.tree.lock().unwrap().state())
    }
}

/// What a walk saw.
struct Walked {
    executions: u64,
    states: usize,
    ends: u64,
}

/// Walks everything.
///
/// # Errors
/// What was broken, and the choices that lead there.
fn walk(broken: Option<Broken>) -> Result<Walked, String> {
    let (mut executions, mut ends) = (0, 0);
    let mut seen: BTreeSet<u64> = BTreeSet::new();
    let mut todo: Vec<Vec<Choice>> = vec![Vec::new()];
    while let Some(mut path) = todo.pop() {
        executions += 1;
        let mut two = Two::new(broken);
        path.iter().for_each(|c| two.take(*c));
        while seen.insert(two.state()) {
            if let Some(why) = &two.tree.lock().unwrap().broken {
                return Err(format!("{why} after {path:?}"));
            }
            let choices = two.choices();
            let Some((first, others)) = choices.split_first() else {
                ends += 1;
                let tree = two.tree.lock().unwrap();
                if tree.published.len() != 1 || tree.find(Path::new("/out/s/a")).is_err() {
                    return Err(format!("published {} times after {path:?}", tree.published.len()));
                }
                break;
            };
            for other in others {
                todo.push(path.iter().copied().chain([*other]).collect());
            }
            path.push(*first);
            two.take(*first);
        }
    }
    Ok(Walked { executions, states: seen.len(), ends })
}

#[test]
fn all_interleavings_of_two_pilots_publish_once() {
    let Walked { executions, states, ends } = walk(None).unwrap_or_else(|why| panic!("{why}"));
    eprintln!("two pilots, one scan: {executions} executions, {states} states, {ends} ends, each published once");
    assert!(ends > 100, "a walk that ends early shows nothing");
}

#[test]
fn the_walk_notices_a_takeover_without_fencing() {
    let why =
        walk(Some(Broken::TakeoverWithoutFencing)).err().expect("a late publish of a folder that is being deleted");
    assert!(why.contains("without a manifest"), "{why}");
}
