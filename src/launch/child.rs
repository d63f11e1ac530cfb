//! One mpiexec: in a process group of its own, its words passed on and searched for who died first.

use super::plan::Line;
use super::words::{self, Culprit};
use crate::site::bounded::kill_group;
use rustix::process::Signal;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A launcher that is told to end gets this long before it is killed.
const POLITE: Duration = Duration::from_secs(1);
/// Longer lines are passed on in pieces.
const LONGEST_LINE: u64 = 64 * 1024;

/// See the module.
pub struct Mpiexec {
    child: Child,
    culprit: Arc<Mutex<Option<Culprit>>>,
    read: Receiver<()>,
}

impl Mpiexec {
    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(line: &Line) -> io::Result<Self> {
        let mut command = line.command()?;
        // A group of its own: Ctrl-C reaches launch alone, which drains.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let culprit: Arc<Mutex<Option<Culprit>>> = Arc::default();
        let (done, read) = channel();
        // Hydra tells of deaths on standard output, the others on standard error. Ours is the timeline's, so that
        // everything goes to standard error.
        if let Some(pipe) = child.stdout.take() {
            pump(pipe, Arc::clone(&culprit), done.clone())?;
        }
        if let Some(pipe) = child.stderr.take() {
            pump(pipe, Arc::clone(&culprit), done)?;
        }
        Ok(Self { child, culprit, read })
    }

    /// Its process id, which is its group's.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, once it has.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Ends it: asked first, so that it can tell its agents on other hosts, then killed.
    pub fn end(&mut self) {
        kill_group(self.child.id(), Signal::TERM);
        let until = Instant::now() + POLITE;
        while Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        kill_group(self.child.id(), Signal::KILL);
        let _ = self.child.wait();
    }

    /// Who died first, if the launcher said so; to be asked after the end.
    pub fn culprit(&self) -> Option<Culprit> {
        for _pipe in 0..2 {
            let _ = self.read.recv_timeout(Duration::from_millis(300));
        }
        self.culprit.lock().ok()?.clone()
    }
}

/// Passes lines on. Detached: a survivor may hold the pipe open.
fn pump(pipe: impl Read + Send + 'static, culprit: Arc<Mutex<Option<Culprit>>>, done: Sender<()>) -> io::Result<()> {
    std::thread::Builder::new().name("words".into()).spawn(move || {
        // A line without an end must not take all memory.
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let _ = io::stderr().lock().write_all(&line);
            if let Some(found) = words::culprit(&String::from_utf8_lossy(&line))
                && let Ok(mut first) = culprit.lock()
            {
                first.get_or_insert(found);
            }
            line.clear();
        }
        let _ = done.send(());
    })?;
    Ok(())
}
