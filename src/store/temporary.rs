//! Names of files that are on their way to their own name, and the removal of those whose writer is gone.
//!
//! Contract
//! - `.tmp-<name>-<n>.<pid>.<start>.<boot>@<host>`: a name tells which process made it, so that another may prove that
//!   process dead.
//! - Swept is only what a process left that is proven gone: it ran on this host, and [`Host::is_proven_dead`]; or it led
//!   a pilot with a tombstone, or one that said goodbye more than an hour before. A heartbeat that stands still proves
//!   nothing: a pilot that was only paused wakes and goes on with its file.
//! - It is renamed, then removed: what was swept half way is swept again, and nobody takes it for a file on its way.

use super::claims::heartbeat;
use super::fs::Fs;
use super::host::{Host, Process};
use super::layout::Layout;
use super::tombstone;
use std::io;
use std::path::Path;

const TEMPORARY: &str = ".tmp-";
const SWEPT: &str = ".swept-";
/// A process that said goodbye has ended for certain after so long, milliseconds, whatever clocks say.
const ENDED_MS: u64 = 3600 * 1000;

/// The name of a temporary for `name`; `writer` is a [`tag`].
pub fn name(name: &str, writer: &str) -> String {
    let short: String = name.chars().take(80).collect();
    format!("{TEMPORARY}{short}-{writer}")
}

/// The part of a temporary's name that says who writes it; `n` is new in this process every time.
pub fn tag(process: &Process, n: u64) -> String {
    let Process { host, boot, pid, pid_start } = process;
    format!("{n}.{pid}.{pid_start}.{boot}@{host}")
}

/// Who writes a temporary; `None` for other names.
pub fn writer(name: &str) -> Option<Process> {
    let (rest, host) = name.strip_prefix(TEMPORARY)?.rsplit_once('@')?;
    let mut fields = rest.rsplitn(4, '.');
    let boot = fields.next()?.to_owned();
    let (pid_start, pid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    fields.next().map(|_| Process { host: host.to_owned(), boot, pid, pid_start })
}

/// Sweeps folders of a campaign.
pub struct Sweep<'a> {
    fs: &'a dyn Fs,
    host: &'a dyn Host,
    layout: &'a Layout,
    /// Leaders of pilots that are dead; `true` where that is sure whatever the file's age. Read when first needed.
    leaders: Option<Vec<(Process, bool)>>,
}

impl<'a> Sweep<'a> {
    /// A sweep that knows nothing yet.
    pub fn new(fs: &'a dyn Fs, host: &'a dyn Host, layout: &'a Layout) -> Self {
        Self { fs, host, layout, leaders: None }
    }

    /// Removes what dead processes left in `folder`. What cannot be looked at or removed is left for another time.
    pub fn folder(&mut self, folder: &Path) {
        for name in self.fs.list(folder).unwrap_or_default() {
            if let Err(e) = self.one(folder, &name) {
                tracing::debug!(folder = %folder.display(), name, error = %e, "could not be swept");
            }
        }
    }

    fn one(&mut self, folder: &Path, name: &str) -> io::Result<()> {
        if name.starts_with(SWEPT) {
            return self.remove(&folder.join(name));
        }
        let Some(process) = writer(name) else { return Ok(()) };
        let path = folder.join(name);
        if !self.host.is_proven_dead(&process) && !self.led_a_dead_pilot(&process, &path)? {
            return Ok(());
        }
        let aside = folder.join(name.replacen(TEMPORARY, SWEPT, 1));
        match self.fs.rename(&path, &aside) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
            Ok(()) => self.remove(&aside),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match self.fs.remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn led_a_dead_pilot(&mut self, process: &Process, path: &Path) -> io::Result<bool> {
        let known = match &mut self.leaders {
            Some(known) => known,
            none => none.insert(dead_leaders(self.fs, self.layout)?),
        };
        let Some((_, sure)) = known.iter().find(|(leader, _)| leader == process) else { return Ok(false) };
        if *sure {
            return Ok(true);
        }
        let made_ms = u64::try_from(self.fs.stat(path)?.mtime_ns / 1_000_000).unwrap_or(u64::MAX);
        Ok(made_ms.saturating_add(ENDED_MS) < self.host.wall_ms())
    }
}

fn dead_leaders(fs: &dyn Fs, layout: &Layout) -> io::Result<Vec<(Process, bool)>> {
    let mut leaders = Vec::new();
    for name in fs.list(&layout.state.join("pilots"))? {
        let Some(pilot) = name.strip_suffix(".json").filter(|p| !p.starts_with('.')) else { continue };
        let Ok(beat) = heartbeat(fs, layout, pilot) else { continue };
        let buried = tombstone::read(fs, layout, pilot)?.is_some();
        if buried || beat.ended {
            leaders.push((beat.identity.process(), buried));
        }
    }
    Ok(leaders)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::claims::{Heartbeat, Identity, beat};
    use crate::store::fs::{RealFs, aside};
    use crate::store::{RealHost, tombstone::Tombstone};
    use std::path::PathBuf;

    fn process(host: &str, pid_start: u64) -> Process {
        Process { host: host.into(), pid_start, ..Identity::own("p").process() }
    }

    #[test]
    fn a_name_says_who_writes_it() {
        for host in ["x3001c0s1b0n0", "login-1.alcf.anl.gov"] {
            let process = Process { host: host.into(), boot: "8a-2".into(), pid: 7, pid_start: 99 };
            for file in ["claims@home.k-1.2", "a.json", "", &"é".repeat(200)] {
                let name = name(file, &tag(&process, 3));
                assert_eq!(writer(&name), Some(process.clone()), "{name}");
                assert!(name.len() < 255);
            }
        }
        let ours = aside(&RealFs, Path::new("/s/claims/k.1"));
        assert_eq!(writer(ours.file_name().unwrap().to_str().unwrap()), Some(Identity::own("p").process()));
        for other in ["k.1", ".tmp-", ".tmp-a@b", ".tmp-k.1-host-12-0", ".staging-1.2.3.4@h", ".tmp-1.x.2.b@h"] {
            assert_eq!(writer(other), None, "{other}");
        }
    }

    fn put(folder: &Path, process: &Process, n: u64) -> PathBuf {
        let path = folder.join(name("k.1", &tag(process, n)));
        std::fs::write(&path, b"half").unwrap();
        path
    }

    #[test]
    fn only_what_a_proven_dead_process_left_goes() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(&RealFs, dir.path()).unwrap();
        let folder = layout.state.join("claims");
        let own = Identity::own("p").process();
        let dead = put(&folder, &process(&own.host, u64::MAX), 0);
        let alive = put(&folder, &own, 1);
        let earlier_boot = put(&folder, &Process { boot: "another".into(), ..own.clone() }, 2);
        // Three leaders on other hosts: buried, ended, and silent.
        let far = |pilot: &str, ended| {
            let identity = Identity { host: format!("far-{pilot}"), ..Identity::own(pilot) };
            let process = identity.process();
            let heartbeat =
                Heartbeat { identity, beat: 1, at_ms: 0, ended, ends_ms: None, writers: Vec::new(), lease_ms: None };
            beat(&RealFs, &layout, &heartbeat).unwrap();
            put(&folder, &process, 3)
        };
        let (buried, ended, silent) = (far("buried", false), far("ended", true), far("silent", false));
        let stone = Tombstone {
            pilot: "buried".into(),
            by: "l".into(),
            at_ms: 1,
            explained: true,
            reason: "walltime".into(),
            lost: Vec::new(),
        };
        tombstone::put(&RealFs, &layout, &stone).unwrap();
        std::fs::write(folder.join(".swept-left-half-way"), b"x").unwrap();
        std::fs::write(folder.join("k.1"), b"a claim").unwrap();
        Sweep::new(&RealFs, &RealHost, &layout).folder(&folder);
        let stays = [&alive, &earlier_boot, &ended, &silent, &folder.join("k.1")];
        assert!(stays.iter().all(|p| p.exists()) && !dead.exists() && !buried.exists());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), stays.len(), "and nothing else");
        // The one that said goodbye, a day ago.
        let yesterday = std::time::SystemTime::now() - std::time::Duration::from_secs(24 * 3600);
        std::fs::File::options().write(true).open(&ended).unwrap().set_modified(yesterday).unwrap();
        Sweep::new(&RealFs, &RealHost, &layout).folder(&folder);
        assert!(!ended.exists() && silent.exists());
    }
}
