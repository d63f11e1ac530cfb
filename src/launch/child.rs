//! One mpiexec: in a process group of its own, its words passed on and searched for who died first.

use super::plan::Line;
use super::words::{self, Culprit};
use crate::site::bounded::kill_group;
use rustix::process::Signal;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A launcher that is told to end gets this long before it is killed.
const POLITE: Duration = Duration::from_secs(1);

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
        // Standard output is the timeline's; what ranks print belongs to the log.
        let log = io::stderr().as_fd().try_clone_to_owned()?;
        // A group of its own: Ctrl-C reaches launch alone, which drains.
        command.stdin(Stdio::null()).stdout(Stdio::from(log)).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let culprit: Arc<Mutex<Option<Culprit>>> = Arc::default();
        let (done, read) = channel();
        if let Some(pipe) = child.stderr.take() {
            let culprit = Arc::clone(&culprit);
            // Detached: a survivor may hold the pipe open.
            std::thread::Builder::new().name("words".into()).spawn(move || {
                let mut pipe = BufReader::new(pipe);
                let mut line = Vec::new();
                while pipe.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
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
        let _ = self.read.recv_timeout(Duration::from_millis(300));
        self.culprit.lock().ok()?.clone()
    }
}
