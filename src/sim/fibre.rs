//! Blocking code in coroutines: every call of [`SimFs`] first asks the scheduler, which may let it through, fail it, do
//! it and fail all the same, let it wait, or never come back.
//!
//! Contract: a call takes effect in one instant, when it is let through; between two calls anything may happen to the
//! rest of the world. Dropping a fibre is SIGKILL: nothing of it runs but destructors, which make no call.

use super::faults::Broken;
use super::tree::{Client, Tree, errno, fnv};
use crate::arrivals::scan::FileStamp;
use crate::store::host::Process;
use crate::store::{Fs, Host, fs::Log};
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a fibre waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// To make this call.
    Call(&'static str),
    /// Microseconds to pass.
    Sleep(u64),
}

/// What the scheduler answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    Go,
    /// Nothing happens, and this error.
    Fail(i32),
    /// It happens, and the answer is this error.
    Ambiguous(i32),
}

thread_local! {
    static CURRENT: Cell<*const Yielder<Resume, Ask>> = const { Cell::new(std::ptr::null()) };
    /// A hash of everything the running fibre was told; the enumeration sets it.
    pub static HISTORY: Cell<u64> = const { Cell::new(0) };
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

const STACK: usize = 512 << 10;

/// Asks the scheduler; outside a fibre everything is let through.
pub fn ask(what: Ask) -> Resume {
    let yielder = CURRENT.with(Cell::get);
    if yielder.is_null() {
        return Resume::Go;
    }
    // SAFETY: `Fibre::resume` sets the pointer to the yielder of the coroutine that runs, which lives on its stack, and
    // clears it when the coroutine hands back.
    let answer = unsafe { &*yielder }.suspend(what);
    CURRENT.with(|c| c.set(yielder));
    answer
}

/// A blocking procedure under the scheduler's hand.
pub struct Fibre<T> {
    co: Option<Coroutine<Resume, Ask, T, DefaultStack>>,
}

impl<T: 'static> Fibre<T> {
    pub fn new(work: impl FnOnce() -> T + 'static) -> Self {
        let stack = STACKS.with(|s| s.borrow_mut().pop()).unwrap_or_else(|| DefaultStack::new(STACK).expect("a stack"));
        let body = move |yielder: &Yielder<Resume, Ask>, _first| {
            CURRENT.with(|c| c.set(yielder));
            work()
        };
        Self { co: Some(Coroutine::with_stack(stack, body)) }
    }

    /// Runs up to the next question or the end.
    pub fn resume(&mut self, answer: Resume) -> Result<T, Ask> {
        let co = self.co.as_mut().expect("a fibre that has not ended");
        let result = co.resume(answer);
        CURRENT.with(|c| c.set(std::ptr::null()));
        match result {
            CoroutineResult::Yield(ask) => Err(ask),
            CoroutineResult::Return(value) => {
                let stack = self.co.take().map(Coroutine::into_stack);
                STACKS.with(|s| s.borrow_mut().extend(stack));
                Ok(value)
            }
        }
    }
}

impl<T> Drop for Fibre<T> {
    fn drop(&mut self) {
        if let Some(mut co) = self.co.take() {
            co.force_unwind();
            STACKS.with(|s| s.borrow_mut().push(co.into_stack()));
        }
    }
}

/// One process's view of the shared filesystem.
#[derive(Clone)]
pub struct SimFs {
    pub tree: Arc<Mutex<Tree>>,
    pub who: Client,
    name: Arc<str>,
    asides: Arc<AtomicU64>,
    /// What it gets wrong on purpose.
    pub broken: Option<Broken>,
}

impl SimFs {
    pub fn new(tree: Arc<Mutex<Tree>>, who: Client, name: &str) -> Self {
        Self { tree, who, name: name.into(), asides: Arc::default(), broken: None }
    }

    pub fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<T: Told>(
        &self,
        what: &'static str,
        effect: impl FnOnce(&mut Tree, Client) -> io::Result<T>,
    ) -> io::Result<T> {
        let answer = match ask(Ask::Call(what)) {
            Resume::Go => effect(&mut self.tree(), self.who),
            Resume::Fail(code) => errno(code),
            Resume::Ambiguous(code) => {
                let _ = effect(&mut self.tree(), self.who);
                errno(code)
            }
        };
        let told = match &answer {
            Ok(value) => value.told(),
            Err(e) => e.raw_os_error().unwrap_or(0) as u64 + (1 << 40),
        };
        HISTORY.set(HISTORY.get().rotate_left(9).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ fnv(what.as_bytes(), told));
        answer
    }

    /// Opens a file for writing.
    pub fn create(&self, path: &Path, exclusive: bool) -> io::Result<Held> {
        let id = self.call("open", |t, who| t.open(who, path, exclusive))?;
        Ok(Held { fs: self.clone(), id })
    }
}

/// What a fibre learns from an answer, as a hash.
trait Told {
    fn told(&self) -> u64;
}
impl Told for () {
    fn told(&self) -> u64 {
        1
    }
}
impl Told for bool {
    fn told(&self) -> u64 {
        u64::from(*self)
    }
}
/// An inode's number: any will do.
impl Told for u32 {
    fn told(&self) -> u64 {
        1
    }
}
impl Told for (u64, u64) {
    fn told(&self) -> u64 {
        self.0
    }
}
impl Told for Vec<u8> {
    fn told(&self) -> u64 {
        fnv(self, 1)
    }
}
impl Told for Vec<String> {
    fn told(&self) -> u64 {
        self.iter().fold(1, |h, name| fnv(name.as_bytes(), h) + 1)
    }
}
impl Told for FileStamp {
    fn told(&self) -> u64 {
        self.size
    }
}

/// A file held open: it stays writable whatever becomes of its name.
pub struct Held {
    fs: SimFs,
    id: u32,
}

impl Held {
    pub fn write(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.fs.call("write", |t, who| t.write(who, self.id, offset, bytes))
    }
    pub fn sync(&self) -> io::Result<()> {
        self.fs.call("fsync", |t, _| {
            t.sync(self.id);
            Ok(())
        })
    }
}

impl Log for Held {
    fn write_tail(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write(offset as usize, bytes)?;
        self.sync()
    }
}

impl Fs for SimFs {
    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let held = self.create(path, true)?;
        self.call("write+fsync", |t, who| {
            t.write(who, held.id, 0, bytes)?;
            t.sync(held.id);
            Ok(())
        })
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call("link", |t, who| {
            if self.broken == Some(Broken::LinkReplaces) {
                let _ = t.unlink(who, to);
            }
            t.link(who, from, to)
        })
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let fencing = to.file_name().is_some_and(|n| n.to_string_lossy().starts_with(".fenced-"));
        if fencing && self.broken == Some(Broken::TakeoverWithoutFencing) {
            return Ok(());
        }
        self.call("rename", |t, who| t.rename(who, from, to))
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.call("unlink", |t, who| t.unlink(who, path))
    }
    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        let unfenced = path.to_string_lossy().replace("/.fenced-", "/.staging-");
        let path = if self.broken == Some(Broken::TakeoverWithoutFencing) { Path::new(&unfenced) } else { path };
        for name in self.call("readdir", |t, _| t.list(path))? {
            let below = path.join(&name);
            let is_dir = self.tree().is_dir(&below);
            let removed = if is_dir { self.remove_tree(&below) } else { self.remove_file(&below) };
            match removed {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        self.call("rmdir", |t, who| t.remove_dir(who, path))
    }
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let bytes = self.call("read", |t, _| t.read(path))?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too large"));
        }
        Ok(bytes)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.call("readdir", |t, _| t.list(path))
    }
    fn make_dir(&self, path: &Path, _mode: u32) -> io::Result<()> {
        self.call("mkdir", |t, who| t.make_dir(who, path))
    }
    fn make_dirs(&self, path: &Path) -> io::Result<()> {
        self.call("mkdir", |t, who| t.make_dirs(who, path))
    }
    fn copy_mode(&self, _like: &Path, path: &Path) -> io::Result<()> {
        self.call("chmod", |t, _| t.find(path).map(drop))
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.call("lstat", |t, _| Ok(t.find(path).is_ok()))
    }
    fn is_plain(&self, path: &Path) -> io::Result<bool> {
        self.call("lstat", |t, _| t.find(path).map(|_| true))
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call("fsync", |t, _| t.find(path).map(drop))
    }
    fn free_bytes(&self, _path: &Path) -> io::Result<(u64, u64)> {
        self.call("statvfs", |t, _| Ok((if t.full { 0 } else { 1 << 40 }, 1 << 40)))
    }
    fn stat(&self, path: &Path) -> io::Result<FileStamp> {
        self.call("stat", |t, _| t.stat(path))
    }
    fn open_log(&self, path: &Path) -> io::Result<Box<dyn Log>> {
        Ok(Box::new(self.create(path, false)?))
    }
    fn unique(&self) -> String {
        // Pilots and people are called `p<process>`; what others leave aside has no writer that could be looked for.
        let pid = self.name.strip_prefix('p').and_then(|n| n.parse().ok()).unwrap_or(u32::MAX);
        let process = Process { host: format!("n{}", self.who.node), boot: "boot".into(), pid, pid_start: 1 };
        crate::store::temporary::tag(&process, self.asides.fetch_add(1, Ordering::Relaxed))
    }
}

/// What every host of the simulation shares: true time, and who is dead.
#[derive(Debug, Default)]
pub struct Clocks {
    /// Microseconds.
    pub now: AtomicU64,
    /// Processes that are dead, by number.
    pub dead: Mutex<std::collections::BTreeSet<u32>>,
}

/// A pilot's host: its wall clock is wrong by `skew_ms` and may jump.
pub struct SimHost {
    pub clocks: Arc<Clocks>,
    pub skew_ms: AtomicU64,
    pub name: String,
    /// Proof of death over all hosts, as a launcher's tombstone gives it.
    pub omniscient: bool,
    /// What it gets wrong on purpose.
    pub broken: Option<Broken>,
    pub tree: Arc<Mutex<Tree>>,
}

pub const EPOCH_MS: u64 = 1_800_000_000_000;

impl Host for SimHost {
    fn wall_ms(&self) -> u64 {
        let now = EPOCH_MS + self.clocks.now.load(Ordering::Relaxed) / 1000;
        now.wrapping_add(self.skew_ms.load(Ordering::Relaxed))
    }
    fn mono(&self) -> Duration {
        Duration::from_micros(self.clocks.now.load(Ordering::Relaxed))
    }
    fn is_proven_dead(&self, process: &Process) -> bool {
        let dead = self.clocks.dead.lock().unwrap_or_else(PoisonError::into_inner);
        let proven = (self.omniscient || process.host == self.name) && dead.contains(&process.pid);
        proven || self.believed_dead(process)
    }
}

impl SimHost {
    /// Mistakes made on purpose.
    fn believed_dead(&self, process: &Process) -> bool {
        let tree = self.tree.lock().unwrap_or_else(PoisonError::into_inner);
        match self.broken {
            // The beat's own time stamp, compared with a clock of ours.
            Some(Broken::LeaseByRemoteClock) => {
                let text = tree.read(format!("/state/pilots/p{}.json", process.pid).as_ref()).unwrap_or_default();
                let beat = serde_json::from_slice::<crate::store::claims::Heartbeat>(&text);
                beat.is_ok_and(|b| b.at_ms + 60_000 < self.wall_ms())
            }
            // Executors of a dead leader are taken for dead; leaders beat, executors do not.
            Some(Broken::AdoptPartsOfLiveWriter) => {
                tree.find(format!("/state/pilots/p{}.json", process.pid).as_ref()).is_err()
            }
            _ => false,
        }
    }
}
