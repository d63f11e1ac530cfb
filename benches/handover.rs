//! How long a complete scan waits only because one pilot hands over to the next, with real processes.
//!
//! A predecessor works on scans that keep arriving, a successor joins it, and then the predecessor goes: it drains
//! (planned), is killed with everything it started (its death can be proven on this host), or is stopped, so that
//! nothing but its lease tells. A scan's wait is its lag, from the last byte to published, less the median lag before;
//! so work that has to be done again counts, too. Every scan must be published exactly once, also after the stopped
//! pilot went on.
//!
//! `cargo bench --bench handover -- [planned] [death] [lease]`; all of them take about two and a half minutes.
//! `BEAMPILOT_BENCH_DIR` says where; default is the target folder.

use serde_json::Value;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const BIN: &str = env!("CARGO_BIN_EXE_beampilot");
/// Between two scans.
const EVERY: Duration = Duration::from_millis(400);
/// What one scan takes, seconds.
const WORK: &str = "0.5";
/// Longest wait for anything but the lease.
const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Planned,
    Death,
    Lease,
}

/// A pilot with everything it started; killed when dropped.
struct Pilot(Child);

impl Pilot {
    fn start(root: &Path, log: &str) -> io::Result<Self> {
        let log = std::fs::File::create(root.join(log))?;
        let mut command = Command::new(BIN);
        command.args(["run", "c.toml", "--workers", "2"]).current_dir(root).stdin(Stdio::null());
        Ok(Self(command.stdout(Stdio::null()).stderr(log).spawn()?))
    }

    /// Signals its first process, or all of them.
    fn signal(&self, name: &str, all: bool) {
        let pids = if all { descendants(self.0.id()) } else { vec![self.0.id()] };
        let pids = pids.iter().map(u32::to_string);
        // What is gone already needs no signal.
        let _ = Command::new("kill").arg(format!("-{name}")).args(pids).stderr(Stdio::null()).status();
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        self.signal("KILL", true);
        let _ = self.0.wait();
    }
}

fn descendants(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let below = children.split_whitespace().filter_map(|c| c.parse().ok()).flat_map(descendants);
    below.chain([pid]).collect()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

fn records(folder: &Path) -> Vec<Value> {
    let read = |name: &String| serde_json::from_slice(&std::fs::read(folder.join(name)).ok()?).ok();
    names(folder).iter().filter(|n| !n.starts_with('.')).filter_map(read).collect()
}

fn wait(what: &str, mut done: impl FnMut() -> bool) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    while !done() {
        if Instant::now() > end {
            return Err(io::Error::other(format!("never: {what}")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Keys that this process's pilot holds now.
fn held(state: &Path, pid: u32) -> usize {
    let claims = names(&state.join("claims"));
    let all: BTreeSet<&str> = claims.iter().map(String::as_str).collect();
    let holds = |name: &&String| {
        let Some(key) = name.strip_suffix(".1") else { return false };
        let free = all.contains(format!("{name}.released").as_str());
        let done = state.join("published").join(format!("{key}.json")).exists();
        let claim = std::fs::read(state.join("claims").join(name)).unwrap_or_default();
        let owner = serde_json::from_slice::<Value>(&claim).unwrap_or_default()["owner"]["pid"].as_u64();
        !free && !done && owner == Some(u64::from(pid))
    };
    claims.iter().filter(holds).count()
}

/// Writes scans until told to stop; returns how many.
fn feed(root: PathBuf, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<io::Result<usize>> {
    std::thread::spawn(move || {
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) {
            let name = format!("scan_{n:04}.h5");
            std::fs::write(root.join("aside").join(&name), b"frames")?;
            std::fs::rename(root.join("aside").join(&name), root.join("in").join(&name))?;
            n += 1;
            std::thread::sleep(EVERY);
        }
        Ok(n)
    })
}

fn measure(way: Way) -> io::Result<()> {
    let place = std::env::var_os("BEAMPILOT_BENCH_DIR").unwrap_or_else(|| "target".into());
    std::fs::create_dir_all(&place)?;
    let dir = tempfile::tempdir_in(std::fs::canonicalize(place)?)?;
    let root = dir.path();
    let state = root.join("state");
    for folder in ["in", "aside"] {
        std::fs::create_dir(root.join(folder))?;
    }
    let campaign = format!(
        "[campaign]\nname = \"handover\"\nstate = \"state\"\n\n[[stream]]\nname = \"s\"\nwatch = \"in\"\n\
         pattern = \"*.h5\"\nsince = \"all\"\ntechnique = \"command\"\noutput = \"out\"\n\
         complete = {{ rule = \"renamed\" }}\n[stream.recipe]\n\
         run = [\"sh\", \"-c\", \"sleep {WORK}; cp \\\"$1\\\" result\", \"work\", \"{{scan}}\"]\n"
    );
    std::fs::write(root.join("c.toml"), campaign)?;
    let published = || records(&state.join("published"));
    let beating = || {
        let ready = |p: &&Value| p["writers"].as_array().is_some_and(|w| w.len() == 2);
        records(&state.join("pilots")).iter().filter(ready).count()
    };

    let stop = Arc::new(AtomicBool::new(false));
    let first = Pilot::start(root, "first.log")?;
    wait("the predecessor is ready", || beating() == 1)?;
    let feeder = feed(root.to_owned(), stop.clone());
    wait("it works", || published().len() >= 15)?;
    let second = Pilot::start(root, "second.log")?;
    wait("the successor is ready", || beating() == 2)?;
    std::thread::sleep(Duration::from_secs(2));
    let pid = first.0.id();
    wait("the predecessor holds something", || held(&state, pid) > 0)?;
    let (holds, gone_ms) = (held(&state, pid), now_ms());
    match way {
        Way::Planned => first.signal("USR1", false),
        Way::Death => first.signal("KILL", true),
        Way::Lease => first.signal("STOP", true),
    }
    let after = if way == Way::Lease { 64 } else { 8 };
    std::thread::sleep(Duration::from_secs(after));
    stop.store(true, Ordering::Relaxed);
    let scans = feeder.join().map_err(|_| io::Error::other("the feeder panicked"))??;
    wait("everything is published", || published().len() >= scans)?;
    if way == Way::Lease {
        // It wakes and finds that others have done its work.
        first.signal("CONT", true);
        std::thread::sleep(Duration::from_secs(5));
    }
    let bundles = names(&root.join("out/s")).into_iter().filter(|n| !n.starts_with('.')).count();
    if bundles != scans {
        return Err(io::Error::other(format!("{scans} scans and {bundles} bundles")));
    }

    let mut before = Vec::new();
    let mut longest = (0.0, String::new());
    let lag = |p: &Value| Some((p["published_ms"].as_u64()?, p["last_byte_ms"].as_u64()?));
    let all: Vec<(u64, f64, String)> = published()
        .iter()
        .filter_map(|p| {
            let (at, from) = lag(p)?;
            Some((at, at.saturating_sub(from) as f64 * 1e-3, p["scan"].as_str()?.to_owned()))
        })
        .collect();
    before.extend(all.iter().filter(|(at, ..)| *at < gone_ms).map(|(_, lag, _)| *lag));
    before.sort_by(f64::total_cmp);
    let usual = before.get(before.len() / 2).copied().unwrap_or(0.0);
    for (_, lag, scan) in all.into_iter().filter(|(at, ..)| *at >= gone_ms) {
        if lag - usual > longest.0 {
            longest = (lag - usual, scan);
        }
    }
    let (what, target) = match way {
        Way::Planned => ("planned, the predecessor drains", 2),
        Way::Death => ("proof of death, SIGKILL", 5),
        Way::Lease => ("lease only, SIGSTOP", 65),
    };
    println!(
        "{what:<34} longest wait {:6.2} s ({}; target {target} s), {holds} held, {scans} scans, usual lag {usual:.2} s",
        longest.0, longest.1
    );
    drop(second);
    Ok(())
}

fn main() -> io::Result<()> {
    let asked: BTreeSet<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for (name, way) in [("planned", Way::Planned), ("death", Way::Death), ("lease", Way::Lease)] {
        if asked.is_empty() || asked.contains(name) {
            measure(way)?;
        }
    }
    Ok(())
}
