//! The simulated shared filesystem: inodes, names, what is synced and what is not, and the promises it can check itself.
//!
//! Contract
//! - Names behave as on Lustre: rename replaces a file or an empty folder, a folder that is not empty is refused; link
//!   refuses a taken name; a file held open stays writable after its name is gone or moved.
//! - Metadata is the server's and durable at once; data is its writer's until synced, and lost with the writer's node.
//! - [`Tree::broken`] holds the first promise broken: a job published twice, a bundle incomplete, not durable or
//!   changed later, an input changed, anything written outside state and output.

use crate::arrivals::scan::FileStamp;
use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path};

pub const ENOENT: i32 = 2;
pub const EIO: i32 = 5;
pub const EEXIST: i32 = 17;
pub const ENOTDIR: i32 = 20;
pub const EISDIR: i32 = 21;
pub const ENOSPC: i32 = 28;
pub const ENOTEMPTY: i32 = 39;

pub fn errno<T>(code: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(code))
}

/// Who makes a call: the node whose cache holds what is not synced. The beamline alone may touch inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    pub node: u32,
    pub beamline: bool,
}

#[derive(Debug, Default)]
struct Inode {
    names: Option<BTreeMap<String, u32>>,
    bytes: Vec<u8>,
    /// Who wrote what is not synced, and what was durable before.
    dirty: Option<(u32, Durable)>,
    changed: i64,
    /// Part of a published bundle.
    frozen: bool,
    input: bool,
}

/// What of a file is durable while the rest is not.
#[derive(Debug)]
enum Durable {
    /// Its first bytes, as they still are: a log grows at its end.
    First(usize),
    /// Other bytes than it has now.
    Other(Vec<u8>),
}

/// What invariants outside the tree want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    Published(String),
    Quarantined(String),
    /// A temporary of that process was taken away.
    Swept(Option<u32>),
    /// A person took it out of quarantine.
    Released(String),
    /// A claim above the first generation.
    Claimed {
        key: String,
        generation: u32,
    },
    /// A part of that generation was moved into its successor's staging.
    Adopted {
        key: String,
        generation: u32,
    },
}

#[derive(Debug)]
pub struct Tree {
    inodes: BTreeMap<u32, Inode>,
    next: u32,
    clock: i64,
    pub full: bool,
    /// True time, microseconds.
    pub now: u64,
    pub broken: Option<String>,
    pub news: Vec<News>,
    /// Bundles by key.
    pub published: BTreeMap<String, u32>,
    /// Answers to requests, by file.
    answers: BTreeMap<String, String>,
    /// By pilot: when it beat last, and its longest stillness.
    beats: BTreeMap<String, (u64, u64)>,
}

const ROOT: u32 = 1;

/// A stand-in for SHA-256 that costs nothing.
pub fn digest(bytes: &[u8]) -> String {
    format!("{:016x}", fnv(bytes, 0xcbf2_9ce4_8422_2325))
}

pub fn fnv(bytes: &[u8], start: u64) -> u64 {
    bytes.iter().fold(start, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

impl Default for Tree {
    fn default() -> Self {
        let root = Inode { names: Some(BTreeMap::new()), ..Inode::default() };
        Self {
            inodes: [(ROOT, root)].into(),
            next: ROOT + 1,
            clock: 1,
            full: false,
            now: 0,
            broken: None,
            news: Vec::new(),
            published: BTreeMap::new(),
            answers: BTreeMap::new(),
            beats: BTreeMap::new(),
        }
    }
}

impl Tree {
    fn blame(&mut self, what: impl FnOnce() -> String) {
        if self.broken.is_none() {
            self.broken = Some(what());
        }
    }

    fn parts(path: &Path) -> impl Iterator<Item = &str> {
        path.components().filter_map(|c| match c {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
    }

    pub fn find(&self, path: &Path) -> io::Result<u32> {
        let mut at = ROOT;
        for name in Self::parts(path) {
            let Some(names) = self.inodes[&at].names.as_ref() else { return errno(ENOTDIR) };
            let Some(next) = names.get(name) else { return errno(ENOENT) };
            at = *next;
        }
        Ok(at)
    }

    fn parent<'p>(&self, path: &'p Path) -> io::Result<(u32, &'p str)> {
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return errno(EISDIR) };
        let folder = self.find(path.parent().unwrap_or(Path::new("/")))?;
        if self.inodes[&folder].names.is_none() {
            return errno(ENOTDIR);
        }
        Ok((folder, name))
    }

    fn names(&mut self, folder: u32) -> &mut BTreeMap<String, u32> {
        self.inodes.get_mut(&folder).and_then(|i| i.names.as_mut()).expect("a folder")
    }

    fn node(&mut self, id: u32) -> &mut Inode {
        self.inodes.get_mut(&id).expect("an inode in use")
    }

    /// Every change of names goes through here first.
    fn may_change(&mut self, who: Client, folder: u32, path: &Path, target: Option<u32>) {
        if !(who.beamline || path.starts_with("/state") || path.starts_with("/out")) {
            self.blame(|| format!("{}: written outside state and output", path.display()));
        }
        let input = target.is_some_and(|t| self.inodes[&t].input);
        if input && !who.beamline {
            self.blame(|| format!("{}: an input was moved or removed", path.display()));
        }
        if target.is_some() && path.starts_with("/state/requests") {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if !name.starts_with('.') && !name.ends_with(".outcome.json") {
                self.blame(|| format!("{}: a request was changed", path.display()));
            }
        }
        if self.inodes[&folder].frozen || target.is_some_and(|t| self.inodes[&t].frozen) {
            self.blame(|| format!("{}: a published bundle was changed", path.display()));
        }
    }

    fn add(&mut self, inode: Inode) -> u32 {
        let id = self.next;
        self.next += 1;
        self.inodes.insert(id, inode);
        id
    }

    pub fn make_dir(&mut self, who: Client, path: &Path) -> io::Result<()> {
        let (folder, name) = self.parent(path)?;
        if self.names(folder).contains_key(name) {
            return errno(EEXIST);
        }
        if self.full && !who.beamline {
            return errno(ENOSPC);
        }
        self.may_change(who, folder, path, None);
        let id = self.add(Inode { names: Some(BTreeMap::new()), ..Inode::default() });
        self.names(folder).insert(name.to_owned(), id);
        Ok(())
    }

    pub fn make_dirs(&mut self, who: Client, path: &Path) -> io::Result<()> {
        if self.find(path).is_ok() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.make_dirs(who, parent)?;
        }
        self.make_dir(who, path)
    }

    /// open(O_CREAT), with O_EXCL or O_TRUNC.
    pub fn open(&mut self, who: Client, path: &Path, exclusive: bool) -> io::Result<u32> {
        let (folder, name) = self.parent(path)?;
        if let Some(id) = self.names(folder).get(name).copied() {
            if exclusive {
                return errno(EEXIST);
            }
            if self.inodes[&id].names.is_some() {
                return errno(EISDIR);
            }
            return Ok(id);
        }
        if self.full && !who.beamline {
            return errno(ENOSPC);
        }
        self.may_change(who, folder, path, None);
        let id = self.add(Inode { input: who.beamline, ..Inode::default() });
        self.names(folder).insert(name.to_owned(), id);
        Ok(id)
    }

    /// Writes at an offset and ends the file there.
    pub fn write(&mut self, who: Client, id: u32, offset: usize, bytes: &[u8]) -> io::Result<()> {
        if self.full && !who.beamline {
            return errno(ENOSPC);
        }
        self.clock += 1;
        let now = self.clock;
        let inode = self.node(id);
        let (frozen, input) = (inode.frozen, inode.input);
        match &mut inode.dirty {
            None if offset >= inode.bytes.len() => inode.dirty = Some((who.node, Durable::First(inode.bytes.len()))),
            None => inode.dirty = Some((who.node, Durable::Other(inode.bytes.clone()))),
            Some((_, durable)) => {
                if let Durable::First(n) = *durable
                    && offset < n
                {
                    *durable = Durable::Other(inode.bytes[..n].to_vec());
                }
            }
        }
        inode.bytes.resize(offset, 0);
        inode.bytes.extend_from_slice(bytes);
        inode.changed = now;
        if frozen {
            self.blame(|| format!("inode {id}: a file of a published bundle was written"));
        }
        if input && !who.beamline {
            self.blame(|| format!("inode {id}: an input was written"));
        }
        Ok(())
    }

    pub fn sync(&mut self, id: u32) {
        self.node(id).dirty = None;
    }

    pub fn link(&mut self, who: Client, from: &Path, to: &Path) -> io::Result<()> {
        let id = self.find(from)?;
        let (folder, name) = self.parent(to)?;
        if self.names(folder).contains_key(name) {
            return errno(EEXIST);
        }
        self.may_change(who, folder, to, None);
        self.names(folder).insert(name.to_owned(), id);
        self.answered(id, to);
        if let Some((key, generation)) = name.rsplit_once('.').filter(|_| to.starts_with("/state/claims"))
            && let Ok(generation) = generation.parse()
            && generation > 1
        {
            self.news.push(News::Claimed { key: key.to_owned(), generation });
        }
        Ok(())
    }

    /// A request got an answer: the first one stays, unless it only said that the request was accepted.
    fn answered(&mut self, id: u32, path: &Path) {
        if !(path.starts_with("/state/requests") && path.to_string_lossy().ends_with(".outcome.json")) {
            return;
        }
        let outcome = serde_json::from_slice::<crate::store::requests::Outcome>(&self.inodes[&id].bytes);
        let Ok(outcome) = outcome else { return self.blame(|| format!("{}: is no outcome", path.display())) };
        let before = self.answers.insert(path.display().to_string(), outcome.outcome.clone());
        if let Some(before) = before.filter(|b| b != crate::store::requests::ACCEPTED && *b != outcome.outcome) {
            self.blame(|| format!("{}: {before} became {}", path.display(), outcome.outcome));
        }
    }

    pub fn rename(&mut self, who: Client, from: &Path, to: &Path) -> io::Result<()> {
        let (old_folder, old_name) = self.parent(from)?;
        let Some(id) = self.names(old_folder).get(old_name).copied() else { return errno(ENOENT) };
        let (folder, name) = self.parent(to)?;
        let is_dir = self.inodes[&id].names.is_some();
        let replaced = self.names(folder).get(name).copied();
        match replaced.map(|r| self.inodes[&r].names.as_ref()) {
            Some(Some(names)) if is_dir && !names.is_empty() => return errno(ENOTEMPTY),
            Some(Some(_)) if !is_dir => return errno(EISDIR),
            Some(None) if is_dir => return errno(ENOTDIR),
            _ => {}
        }
        self.may_change(who, old_folder, from, Some(id));
        self.may_change(who, folder, to, replaced);
        self.names(old_folder).remove(old_name);
        self.names(folder).insert(name.to_owned(), id);
        if name.starts_with(".swept-") {
            self.news.push(News::Swept(crate::store::temporary::writer(old_name).map(|p| p.pid)));
        }
        self.answered(id, to);
        if is_dir && to.starts_with("/out") && !name.starts_with('.') {
            self.freeze(id, to);
        } else if let Some(key) = name.strip_suffix(".json").filter(|_| to.starts_with("/state/quarantine")) {
            self.news.push(match key.strip_prefix(".released-") {
                Some(key) => News::Released(key.to_owned()),
                None => News::Quarantined(key.to_owned()),
            });
        } else if let Some(pilot) = name.strip_suffix(".json").filter(|_| to.starts_with("/state/pilots")) {
            let now = self.now;
            let (last, longest) = self.beats.entry(pilot.to_owned()).or_insert((now, 0));
            *longest = (*longest).max(now - *last);
            *last = now;
        } else if !is_dir && let Some(folder) = from.strip_prefix("/out").ok().and_then(|p| p.iter().nth(1)) {
            let claim = folder.to_str().and_then(|f| f.strip_prefix(".fenced-")).and_then(|f| f.rsplit_once('.'));
            if let Some((key, generation)) = claim.and_then(|(k, g)| Some((k, g.parse().ok()?))) {
                self.news.push(News::Adopted { key: key.to_owned(), generation });
            }
        }
        Ok(())
    }

    /// A bundle was published: it must be whole and durable now, and is never changed again.
    fn freeze(&mut self, bundle: u32, path: &Path) {
        #[derive(serde::Deserialize)]
        struct File {
            path: String,
            sha256: String,
        }
        #[derive(serde::Deserialize)]
        struct Manifest {
            key: String,
            files: Vec<File>,
        }
        let at = path.display();
        let manifest = self.inodes[&bundle].names.as_ref().and_then(|n| n.get("manifest.json")).copied();
        let parsed = manifest.and_then(|m| serde_json::from_slice::<Manifest>(&self.inodes[&m].bytes).ok());
        let (Some(manifest), Some(Manifest { key, files })) = (manifest, parsed) else {
            return self.blame(|| format!("{at}: published without a manifest"));
        };
        let mut whole = vec![bundle, manifest];
        for file in files {
            let found = self.find(&path.join(&file.path)).ok();
            match found {
                Some(id) if digest(&self.inodes[&id].bytes) == file.sha256 => whole.push(id),
                Some(_) => self.blame(|| format!("{at}: {} is not what the manifest says", file.path)),
                None => self.blame(|| format!("{at}: {} is missing", file.path)),
            }
        }
        for id in whole {
            if self.inodes[&id].dirty.is_some() {
                self.blame(|| format!("{at}: published before inode {id} was synced"));
            }
            self.node(id).frozen = true;
        }
        if self.published.insert(key.clone(), bundle).is_some() {
            self.blame(|| format!("{at}: {key} was published twice"));
        }
        self.news.push(News::Published(key));
    }

    /// The longest time a pilot's heartbeat stood still so far, microseconds.
    pub fn stillness(&self, pilot: &str) -> u64 {
        self.beats.get(pilot).map_or(u64::MAX, |(last, longest)| (*longest).max(self.now - last))
    }

    pub fn unlink(&mut self, who: Client, path: &Path) -> io::Result<()> {
        let (folder, name) = self.parent(path)?;
        let Some(id) = self.names(folder).get(name).copied() else { return errno(ENOENT) };
        if self.inodes[&id].names.is_some() {
            return errno(EISDIR);
        }
        self.may_change(who, folder, path, Some(id));
        self.names(folder).remove(name);
        Ok(())
    }

    pub fn remove_dir(&mut self, who: Client, path: &Path) -> io::Result<()> {
        let id = self.find(path)?;
        match &self.inodes[&id].names {
            None => return errno(ENOTDIR),
            Some(names) if !names.is_empty() => return errno(ENOTEMPTY),
            Some(_) => {}
        }
        let (folder, name) = self.parent(path)?;
        self.may_change(who, folder, path, Some(id));
        self.names(folder).remove(name);
        Ok(())
    }

    pub fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let id = self.find(path)?;
        match &self.inodes[&id].names {
            Some(names) => Ok(names.keys().cloned().collect()),
            None => errno(ENOTDIR),
        }
    }

    pub fn is_dir(&self, path: &Path) -> bool {
        self.find(path).is_ok_and(|id| self.inodes[&id].names.is_some())
    }

    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let id = self.find(path)?;
        if self.inodes[&id].names.is_some() {
            return errno(EISDIR);
        }
        Ok(self.inodes[&id].bytes.clone())
    }

    pub fn stat(&self, path: &Path) -> io::Result<FileStamp> {
        let id = self.find(path)?;
        let inode = &self.inodes[&id];
        Ok(FileStamp {
            path: path.to_owned(),
            size: inode.bytes.len() as u64,
            mtime_ns: inode.changed,
            ctime_ns: inode.changed,
            inode: u64::from(id),
        })
    }

    /// A node loses power: what its processes did not sync is gone.
    pub fn lose_node(&mut self, node: u32) {
        let mut lost = None;
        for (id, inode) in &mut self.inodes {
            if inode.dirty.as_ref().is_some_and(|d| d.0 == node) {
                match inode.dirty.take() {
                    Some((_, Durable::First(n))) => inode.bytes.truncate(n),
                    Some((_, Durable::Other(bytes))) => inode.bytes = bytes,
                    None => {}
                }
                lost = inode.frozen.then_some(*id).or(lost);
            }
        }
        if let Some(id) = lost {
            self.blame(|| format!("inode {id}: a file of a published bundle was lost with its node"));
        }
    }

    /// A hash over all names and contents, for the enumeration.
    pub fn state(&self) -> u64 {
        fn walk(tree: &Tree, at: u32, mut h: u64) -> u64 {
            let inode = &tree.inodes[&at];
            h = fnv(&[u8::from(inode.names.is_some()), u8::from(inode.dirty.is_some())], h);
            h = fnv(&inode.bytes, h);
            for (name, id) in inode.names.iter().flatten() {
                h = fnv(name.as_bytes(), h);
                h = walk(tree, *id, h);
            }
            fnv(b"/", h)
        }
        walk(self, ROOT, 0)
    }
}
