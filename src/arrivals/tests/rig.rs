//! A fake filesystem and a virtual clock around the poller.

use super::super::listing::{Kind, Listing, Meta};
use super::super::*;
use crate::campaign::Campaign;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Nanoseconds since the epoch when a test begins: a Monday in 2026.
const EPOCH: i64 = 1_772_409_600_000_000_000;

#[derive(Clone)]
struct Node {
    meta: Meta,
    target: PathBuf,
    content: Vec<u8>,
}

/// Paths are absolute; the watched folder is `/w/in`.
pub struct Fake {
    nodes: BTreeMap<PathBuf, Node>,
    pub now_ns: i64,
    inodes: u64,
    /// Errors by path, for list and stat.
    pub fail: BTreeMap<PathBuf, io::ErrorKind>,
    pub stats: usize,
    pub lists: usize,
}

impl Fake {
    fn node(&mut self, path: &Path, kind: Kind, size: u64) -> &mut Node {
        self.inodes += 1;
        let meta = Meta { kind, size, mtime_ns: self.now_ns, ctime_ns: self.now_ns, inode: self.inodes };
        self.touch_parent(path);
        self.nodes.insert(path.to_owned(), Node { meta, target: PathBuf::new(), content: Vec::new() });
        self.nodes.get_mut(path).unwrap()
    }

    fn touch_parent(&mut self, path: &Path) {
        let now = self.now_ns;
        if let Some(parent) = path.parent().and_then(|p| self.nodes.get_mut(p)) {
            (parent.meta.mtime_ns, parent.meta.ctime_ns) = (now, now);
        }
    }

    fn at(path: &str) -> PathBuf {
        let mut full = PathBuf::from("/w/in");
        for part in path.split('/').filter(|part| !part.is_empty()) {
            match part {
                ".." => _ = full.pop(),
                part => full.push(part),
            }
        }
        full
    }

    /// Creates folders on the way; rewrites in place when the file exists.
    pub fn write(&mut self, path: &str, size: u64) {
        let path = Self::at(path);
        let parents: Vec<PathBuf> = path.ancestors().skip(1).map(Path::to_owned).collect();
        for parent in parents.iter().rev().filter(|p| p.parent().is_some()) {
            if !self.nodes.contains_key(parent) {
                self.node(parent, Kind::Folder, 0);
            }
        }
        let now = self.now_ns;
        match self.nodes.get_mut(&path) {
            Some(node) => (node.meta.size, node.meta.mtime_ns, node.meta.ctime_ns) = (size, now, now),
            None => drop(self.node(&path, Kind::File, size)),
        }
    }

    pub fn content(&mut self, path: &str, content: &str) {
        self.write(path, content.len() as u64);
        self.nodes.get_mut(&Self::at(path)).unwrap().content = content.into();
    }

    pub fn mkdir(&mut self, path: &str) {
        self.node(&Self::at(path), Kind::Folder, 0);
    }

    pub fn pipe(&mut self, path: &str) {
        self.node(&Self::at(path), Kind::Special, 0);
    }

    pub fn link(&mut self, target: &str, path: &str) {
        self.node(&Self::at(path), Kind::Link, 0).target = target.into();
    }

    /// utimensat: the mtime is set, the ctime tells.
    pub fn set_mtime(&mut self, path: &str, seconds_ago: i64) {
        let now = self.now_ns;
        let meta = &mut self.nodes.get_mut(&Self::at(path)).unwrap().meta;
        (meta.mtime_ns, meta.ctime_ns) = (now - seconds_ago * 1_000_000_000, now);
    }

    /// Something that has been there for long.
    pub fn backdate(&mut self, path: &str, seconds_ago: i64) {
        let t = self.now_ns - seconds_ago * 1_000_000_000;
        let meta = &mut self.nodes.get_mut(&Self::at(path)).unwrap().meta;
        (meta.mtime_ns, meta.ctime_ns) = (t, t);
    }

    pub fn rename(&mut self, from: &str, to: &str) {
        let (from, to) = (Self::at(from), Self::at(to));
        let moved: Vec<PathBuf> = self.nodes.keys().filter(|p| p.starts_with(&from)).cloned().collect();
        for path in moved {
            let mut node = self.nodes.remove(&path).unwrap();
            if path == from {
                node.meta.ctime_ns = self.now_ns;
            }
            let rest = path.strip_prefix(&from).unwrap();
            let target = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
            self.nodes.insert(target, node);
        }
        self.touch_parent(&from);
        self.touch_parent(&to);
    }

    pub fn remove(&mut self, path: &str) {
        let path = Self::at(path);
        self.nodes.retain(|p, _| !p.starts_with(&path));
        self.touch_parent(&path);
    }

    fn failing(&self, path: &Path) -> io::Result<()> {
        self.fail.get(path).map_or(Ok(()), |kind| Err((*kind).into()))
    }
}

impl Listing for Fake {
    fn list(&mut self, folder: &Path, each: &mut dyn FnMut(&[u8], Kind, u64)) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        self.lists += 1;
        self.failing(folder)?;
        if self.stat(folder)?.kind != Kind::Folder {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        for (path, node) in self.nodes.iter().filter(|(p, _)| p.parent() == Some(folder)) {
            each(path.file_name().unwrap().as_bytes(), node.meta.kind, node.meta.inode);
        }
        Ok(())
    }

    fn stat(&mut self, path: &Path) -> io::Result<Meta> {
        self.stats += 1;
        self.failing(path)?;
        self.nodes.get(path).map(|n| n.meta).ok_or(io::ErrorKind::NotFound.into())
    }

    fn resolve(&mut self, path: &Path) -> io::Result<PathBuf> {
        let mut real = PathBuf::new();
        for part in path.components() {
            real.push(part);
            for _ in 0..8 {
                match self.nodes.get(&real) {
                    Some(n) if n.meta.kind == Kind::Link => real = real.parent().unwrap().join(&n.target),
                    _ => break,
                }
            }
        }
        if self.nodes.contains_key(&real) { Ok(real) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn read(&mut self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let node = self.nodes.get(path).ok_or(io::ErrorKind::NotFound)?;
        if node.content.len() as u64 > limit {
            Err(io::ErrorKind::FileTooLarge.into())
        } else {
            Ok(node.content.clone())
        }
    }
}

/// A poller, its filesystem and its clock; every event must be looked at.
pub struct Rig {
    pub fs: Fake,
    poller: Poller,
    mono: Duration,
    said: Vec<ArrivalEvent>,
    pub scans: Vec<scan::Scan>,
    pub proofs: Vec<Proof>,
    toml: String,
    counted: (usize, usize, usize, Option<String>),
}

impl Rig {
    /// A stream `s` with these further lines of TOML; technique and names are filled in.
    pub fn new(toml: &str) -> Self {
        Self::started(toml, false, Vec::new(), None)
    }

    pub fn started(toml: &str, once: bool, known: Vec<Known>, since: Option<SystemTime>) -> Self {
        let mut fs =
            Fake { nodes: BTreeMap::new(), now_ns: EPOCH, inodes: 1, fail: BTreeMap::new(), stats: 0, lists: 0 };
        for path in ["/w", "/w/in", "/w/out"] {
            fs.node(Path::new(path), Kind::Folder, 0);
        }
        let poller = Self::poller(toml, once, known, since);
        let toml = toml.to_owned();
        Self {
            fs,
            poller,
            mono: Now::START,
            said: Vec::new(),
            scans: Vec::new(),
            proofs: Vec::new(),
            toml,
            counted: Default::default(),
        }
    }

    fn poller(toml: &str, once: bool, known: Vec<Known>, since: Option<SystemTime>) -> Poller {
        let head = "[[stream]]\nname = \"s\"\nwatch = \"in\"\ntechnique = \"t\"\noutput = \"out\"\n";
        let campaign = Campaign::parse(&format!("{head}{toml}"), Path::new("/w/c.toml")).unwrap();
        Poller::new(vec![StreamWatch::of(&campaign, &campaign.streams[0], since)], known, once)
    }

    /// Another pilot on the same folder.
    pub fn restart(&mut self, known: Vec<Known>, since: Option<SystemTime>) {
        assert!(self.said.is_empty(), "unread: {:?}", self.said);
        self.poller = Self::poller(&self.toml, false, known, since);
    }

    pub fn run(&mut self, seconds: f64) {
        let end = self.mono + Duration::from_secs_f64(seconds);
        loop {
            let now = Now { mono: self.mono, wall_ns: self.fs.now_ns };
            for event in self.poller.poll(now, &mut self.fs) {
                match event {
                    ArrivalEvent::Census { settling, waiting_role, known, unreadable, .. } => {
                        self.counted = (settling, waiting_role, known, unreadable);
                    }
                    event => self.said.push(event),
                }
            }
            let next = self.poller.next_due().clamp(self.mono + PAUSE_MIN, self.mono + PAUSE_MAX);
            if next > end {
                self.fs.now_ns += (end - self.mono).as_nanos() as i64;
                self.mono = end;
                return;
            }
            self.fs.now_ns += (next - self.mono).as_nanos() as i64;
            self.mono = next;
        }
    }

    pub fn obey(&mut self, command: ArrivalCommand) {
        assert!(self.poller.obey(Now { mono: self.mono, wall_ns: self.fs.now_ns }, command));
    }

    pub fn not_yet(&mut self, name: &str, reason: &str) {
        self.obey(ArrivalCommand::NotYet { stream: "s".into(), name: name.into(), reason: reason.into() });
    }

    pub fn done(&mut self, scan: &scan::Scan) {
        self.obey(ArrivalCommand::Done {
            stream: "s".into(),
            name: scan.name.clone(),
            version: scan.version(),
            linked: scan.linked.clone(),
        });
    }

    pub fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.fs.now_ns as u64)
    }

    /// What was said since the last call, a line each; the census is left out.
    pub fn heard(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for event in self.said.drain(..) {
            lines.push(match event {
                ArrivalEvent::Complete { scan, proof } => {
                    let line = format!("complete {}", scan.name);
                    self.scans.push(scan);
                    self.proofs.push(proof);
                    line
                }
                ArrivalEvent::Rejected { name, reason, .. } => format!("rejected {name}: {reason}"),
                ArrivalEvent::Trouble { message, .. } => format!("trouble {message}"),
                ArrivalEvent::Recovered { .. } => "recovered".into(),
                ArrivalEvent::Idle { commands, incomplete } => {
                    let left: Vec<String> = incomplete.into_iter().map(|(_, n, r)| format!("{n}: {r}")).collect();
                    format!("idle {commands} [{}]", left.join(", "))
                }
                ArrivalEvent::Census { .. } => continue,
            });
        }
        lines
    }

    /// Runs, then expects exactly these lines.
    pub fn expect(&mut self, seconds: f64, lines: &[&str]) {
        self.run(seconds);
        assert_eq!(self.heard(), lines);
    }

    pub fn census(&self) -> (usize, usize, usize, Option<String>) {
        self.counted.clone()
    }

    pub fn scan(&self) -> scan::Scan {
        self.scans.last().unwrap().clone()
    }
}
