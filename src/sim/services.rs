//! What runs beside a simulated pilot's driver: the journal's loop, the heartbeat, arrivals.

use super::faults::Phase;
use super::fibre::{Ask, EPOCH_MS, ask};
use super::world::{Ev, Out, Purpose, S, World};
use crate::arrivals::scan::Scan;
use crate::coordinator::disk::Disk;
use crate::coordinator::event::*;
use crate::coordinator::job::scan_key;
use crate::store::claims::{self, Heartbeat};
use crate::store::host::Process;
use crate::store::journal::{Group, Writer};
use rand::Rng;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What the journal's thread does with a group; compaction may fail, what is appended stays.
fn append(writer: Option<Arc<Mutex<Writer>>>, group: &Group) -> bool {
    let Some(writer) = writer else { return false };
    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
    let appended = writer.append(group).is_ok();
    if appended {
        let _ = writer.compact_if_worth();
    }
    appended
}

impl World {
    // ---- journal ------------------------------------------------------------------------------------------

    pub fn write_journal(&mut self, p: usize) {
        let pilot = &mut self.pilots[p];
        if pilot.journal_busy || (pilot.lines.is_empty() && pilot.group.is_empty()) {
            return;
        }
        let mut seq = pilot.durable;
        if pilot.group.is_empty() {
            let mut group = Group::default();
            for line in pilot.lines.drain(..) {
                seq = line.seq;
                group.push(&line);
            }
            pilot.group = Arc::new(group);
        }
        pilot.journal_busy = true;
        let (group, writer, proc) = (pilot.group.clone(), pilot.journal.clone(), pilot.proc);
        self.spawn(proc, Purpose::Journal(p, seq), Phase::Journalling, move || Out::Done(append(writer, &group)));
    }

    pub fn journalled(&mut self, p: usize, seq: u64, ok: bool) {
        let pilot = &mut self.pilots[p];
        pilot.journal_busy = false;
        if ok {
            pilot.group = Arc::default();
            self.after(100, Ev::Durable(p, seq));
            self.write_journal(p);
        } else {
            // The same group again, under the same number.
            let (group, writer, proc) = (pilot.group.clone(), pilot.journal.clone(), pilot.proc);
            pilot.journal_busy = true;
            self.after(100, Ev::ToCore(p, Box::new(Event::StorageTrouble { message: "journal".into() })));
            self.spawn(proc, Purpose::Journal(p, seq), Phase::Journalling, move || {
                ask(Ask::Sleep(S));
                Out::Done(append(writer, &group))
            });
        }
    }

    // ---- heartbeat ----------------------------------------------------------------------------------------

    pub fn beat(&mut self, p: usize) {
        if self.pilots[p].finishing {
            return;
        }
        self.after(S, Ev::Beat(p));
        if self.pilots[p].no_beat_until > self.now || std::mem::replace(&mut self.pilots[p].beating, true) {
            return;
        }
        self.spawn_beat(p, false);
    }

    pub fn spawn_beat(&mut self, p: usize, ended: bool) {
        let pilot = &mut self.pilots[p];
        pilot.beats += 1;
        let writers = pilot.workers.iter().map(|w| &self.workers[*w]).map(|w| Process {
            host: format!("n{}", self.procs[w.proc].node),
            boot: "boot".into(),
            pid: w.proc as u32,
            pid_start: 1,
        });
        let writers = writers.collect();
        let listed: Vec<(usize, usize)> = pilot.workers.iter().map(|w| (*w, self.workers[*w].proc)).collect();
        pilot.listing = listed;
        let (disk, beat, proc, ends_ms) = (pilot.disk.clone(), pilot.beats, pilot.proc, pilot.ends_ms);
        let observe = beat % 5 == 0;
        self.spawn(proc, Purpose::Beat(p, ended), Phase::Beating, move || {
            let Disk { fs, host, layout, last_beat, me, .. } = &*disk;
            let at_ms = host.wall_ms();
            let heartbeat = Heartbeat { identity: me.clone(), beat, at_ms, ended, ends_ms, writers, lease_ms: None };
            let began = host.mono();
            let beaten = claims::beat(&**fs, layout, &heartbeat).is_ok();
            if beaten {
                *last_beat.lock().unwrap_or_else(PoisonError::into_inner) = began;
            }
            if observe && !ended {
                let _ = disk.observe_others();
            }
            Out::Done(beaten)
        });
    }

    pub fn beaten(&mut self, p: usize, last: bool, ok: bool) {
        self.pilots[p].beating = false;
        for (w, proc) in std::mem::take(&mut self.pilots[p].listing) {
            if ok {
                self.workers[w].listed = Some(proc);
            }
        }
        if last {
            self.die(self.pilots[p].proc);
        }
    }

    // ---- arrivals -----------------------------------------------------------------------------------------

    pub fn poll(&mut self, p: usize, scan: usize) {
        let at = &self.scans[scan];
        let Ok(stamp) = self.fs_tree().stat(&at.path) else { return };
        let settled = self.now >= at.written + 2 * S && self.state_of(scan) != "partial";
        let early = !self.healed && self.schedule.premature > 0.0 && self.rng.random_bool(self.schedule.premature);
        let at = &self.scans[scan];
        if !(settled || early && at.probe) {
            return self.after(2 * S, Ev::Poll(p, scan));
        }
        if self.pilots[p].known.insert(scan, stamp.ctime_ns) == Some(stamp.ctime_ns) {
            return;
        }
        let found = self.scan_now(scan);
        let check = if self.scans[scan].probe { Check::Probe } else { Check::None };
        let base = scan_key(&found.stream, &found.name, found.version());
        self.seen.insert(base, self.state_of(scan));
        self.step(p, Event::Arrived { scan: found, check });
    }

    /// The scan as a look would find it now.
    pub fn scan_now(&self, scan: usize) -> Scan {
        let at = &self.scans[scan];
        let mut stamp = self.fs_tree().stat(&at.path).expect("it was written");
        stamp.path = at.name.clone().into();
        let last_byte_ms = EPOCH_MS + at.written / 1000;
        Scan {
            stream: at.stream.into(),
            name: at.name.clone(),
            root: format!("/watch/{}", at.stream).into(),
            members: vec![stamp],
            roles: BTreeMap::new(),
            last_byte_ms,
            complete_ms: last_byte_ms + 2000,
            ..Scan::default()
        }
    }
}
