//! What must hold after every event, and what must be true in the end.

use super::fibre::{SimFs, SimHost};
use super::tree::{Client, News};
use super::world::{Ev, S, World};
use crate::coordinator::disk::{Disk, StreamPlace};
use crate::coordinator::event::Event;
use crate::coordinator::job::scan_key;
use crate::store::claims::Identity;
use crate::store::{Fs, Layout};
use std::sync::Arc;

/// Virtual time after healing within which everything must be done.
const LONGEST: u64 = 900 * S;

impl World {
    /// Safety: what may never happen, faults or not.
    pub fn check(&mut self) -> Result<(), String> {
        if let Some(why) = self.violation.take() {
            return Err(why);
        }
        let (broken, news) = {
            let mut tree = self.fs_tree();
            if tree.broken.is_none() && tree.news.is_empty() {
                return Ok(());
            }
            (tree.broken.clone(), std::mem::take(&mut tree.news))
        };
        if let Some(why) = broken {
            return Err(why);
        }
        for item in news {
            match item {
                News::Published(key) => self.check_published(&key)?,
                News::Quarantined(key) => self.check_quarantined(&key)?,
                News::Released(key) => {
                    self.killed.remove(&key);
                    self.deaths.remove(&key);
                }
                News::Swept(Some(proc))
                    if self.broken.is_none() && self.procs.get(proc as usize).is_some_and(|p| p.alive) =>
                {
                    return Err(format!("a temporary of process {proc}, which lives, was swept"));
                }
                News::Swept(_) => {}
                News::Adopted { key, generation } => self.check_adopted(&key, generation)?,
                News::Claimed { key, generation } => {
                    self.rouse(&key);
                    self.check_claimed(&key, generation)?;
                }
            }
        }
        Ok(())
    }

    /// What is published arrived in that version, and somebody wants it with that recipe.
    fn check_published(&self, key: &str) -> Result<(), String> {
        let (base, digits) = key.rsplit_once('-').unwrap_or((key, ""));
        if !self.seen.contains_key(base) {
            return Err(format!("{key} was published and never arrived"));
        }
        let about = |s: &&super::world::SimScan| crate::store::records::is_about(key, s.stream, &s.name);
        match self.scans.iter().find(about) {
            Some(scan) if self.wanted.allows(digits, scan.stream, &scan.name) => Ok(()),
            _ => Err(format!("{key} was published with a recipe that nobody asked for")),
        }
    }

    /// Only what cannot be processed is quarantined: bad input at once, what ends executors after the third, what ends
    /// pilots after the fourth.
    fn check_quarantined(&self, key: &str) -> Result<(), String> {
        let base = key.rsplit_once('-').map_or(key, |(base, _)| base);
        let ended = |of: &std::collections::BTreeMap<String, u32>| of.get(key).copied().unwrap_or(0);
        match self.seen.get(base).copied() {
            Some("bad") => Ok(()),
            Some("killer") if ended(&self.killed) >= 3 => Ok(()),
            Some("killer") => {
                Err(format!("{key} ended {} executors and was quarantined: {}", ended(&self.killed), self.reason(key)))
            }
            Some("fatal") if ended(&self.deaths) == 4 => Ok(()),
            Some("fatal") => {
                Err(format!("{key} ended {} pilots and was quarantined: {}", ended(&self.deaths), self.reason(key)))
            }
            _ => Err(format!("{key} is good and was quarantined: {}", self.reason(key))),
        }
    }

    fn reason(&self, key: &str) -> String {
        let path = format!("/state/quarantine/{key}.json");
        let text = self.fs_tree().read(path.as_ref()).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    fn owner_of(&self, key: &str, generation: u32) -> Option<usize> {
        let text = self.fs_tree().read(format!("/state/claims/{key}.{generation}").as_ref()).ok()?;
        let record: crate::store::claims::ClaimRecord = serde_json::from_slice(&text).ok()?;
        self.pilots.iter().position(|p| p.id == record.owner.pilot)
    }

    fn released(&self, key: &str, generation: u32) -> bool {
        self.fs_tree().find(format!("/state/claims/{key}.{generation}.released").as_ref()).is_ok()
    }

    /// Parts are adopted only when nothing of their writer runs.
    fn check_adopted(&self, key: &str, generation: u32) -> Result<(), String> {
        let Some(owner) = self.owner_of(key, generation).filter(|_| !self.released(key, generation)) else {
            return Ok(());
        };
        // One that waits for its place in the heartbeat was given nothing yet.
        let writes = |w: &&usize| {
            let worker = &self.workers[**w];
            self.procs[worker.proc].alive && worker.listed == Some(worker.proc)
        };
        match self.pilots[owner].workers.iter().find(writes) {
            Some(w) => Err(format!("parts of {key}.{generation} were adopted while executor {w} of it runs")),
            None => Ok(()),
        }
    }

    /// A claim is taken only from an owner that is dead, gave it back, or stood still for a lease.
    fn check_claimed(&self, key: &str, generation: u32) -> Result<(), String> {
        let before = generation.saturating_sub(1);
        let Some(owner) = self.owner_of(key, before).filter(|_| !self.released(key, before)) else { return Ok(()) };
        let pilot = &self.pilots[owner];
        let stood_still = self.fs_tree().stillness(&pilot.id) >= 59 * S;
        if self.is_up(owner) && !pilot.finishing && self.owner_of(key, generation) != Some(owner) && !stood_still {
            return Err(format!("{key}.{before} was taken from {}, which is alive and beats", pilot.id));
        }
        Ok(())
    }

    /// Convergence: looks every second after healing; true when the shift is over and everything is as it must be.
    pub fn is_over(&mut self) -> Result<bool, String> {
        if self.now > self.schedule.heal + LONGEST {
            let up: Vec<usize> = (0..self.procs.len()).filter(|p| self.procs[*p].alive).collect();
            let left = self.left_over();
            for p in (0..self.pilots.len()).filter(|p| self.is_up(*p)).collect::<Vec<_>>() {
                let view = self.pilots[p].core.view(crate::coordinator::event::Time(0));
                self.tell(format!("{}: {view:?}", self.pilots[p].id));
            }
            return Err(format!("not done {} s after everything healed:{left}, processes {up:?} run", LONGEST / S));
        }
        self.after(S, Ev::Look);
        if !self.draining {
            if !self.left_over().is_empty() {
                return Ok(false);
            }
            self.draining = true;
            for p in 0..self.pilots.len() {
                self.after(0, Ev::ToCore(p, Box::new(Event::Drain)));
            }
        }
        if (0..self.pilots.len()).any(|p| self.is_up(p)) || self.procs.iter().any(|p| p.alive) {
            return Ok(false);
        }
        self.sweep()?;
        Ok(true)
    }

    /// Scans without the verdict they deserve.
    fn left_over(&self) -> String {
        let fold = self.fold();
        let mut left = self.unanswered(&fold);
        let quarantined = self.fs_tree().list("/state/quarantine".as_ref()).unwrap_or_default();
        for scan in 0..self.scans.len() {
            let now = self.scan_now(scan);
            if fold.skipped.contains(&(now.stream.clone(), now.name.clone())) {
                continue;
            }
            let base = scan_key(&now.stream, &now.name, now.version());
            let state = self.state_of(scan);
            let tree = self.fs_tree();
            let record = |key: &String| tree.find(format!("/state/published/{key}.json").as_ref()).is_ok();
            let done = if state == "good" {
                tree.published.range(base.clone()..).take_while(|(k, _)| k.starts_with(&base)).any(|(k, _)| record(k))
            } else {
                quarantined.iter().any(|name| name.starts_with(&base))
            };
            if !done {
                left += &format!(" {base} ({state})");
            }
        }
        left
    }

    /// A last sweep by one who knows who is dead leaves no unfinished folders and no temporaries.
    fn sweep(&mut self) -> Result<(), String> {
        let fs = SimFs::new(self.tree.clone(), Client { node: 100, beamline: false }, "sweep");
        let host = SimHost {
            clocks: self.clocks.clone(),
            skew_ms: 0.into(),
            name: "n100".into(),
            omniscient: true,
            broken: None,
            tree: self.tree.clone(),
        };
        let me = Identity {
            pilot: "sweep".into(),
            host: "n100".into(),
            boot: "boot".into(),
            pid: u32::MAX,
            pid_start: 1,
            build: String::new(),
            launch: None,
        };
        let place =
            |s: &str| (s.to_owned(), StreamPlace { output: format!("/out/{s}").into(), pattern: "*.h5".into() });
        let layout = Layout { state: "/state".into() };
        let disk = Disk::new(Arc::new(fs.clone()), Arc::new(host), layout, me, [place("s"), place("t")].into());
        disk.sweep(true);
        let state = Layout::FOLDERS.map(|f| format!("/state/{f}"));
        let mut left = Vec::new();
        for folder in state.iter().map(String::as_str).chain(["/state", "/out/s", "/out/t"]) {
            let names = fs.list(folder.as_ref()).map_err(|e| e.to_string())?;
            left.extend(names.into_iter().filter(|n| n.starts_with('.') && !n.starts_with(".released-")));
        }
        self.check()?;
        if left.is_empty() { Ok(()) } else { Err(format!("left after the last sweep: {left:?}")) }
    }
}
