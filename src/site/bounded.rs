//! Running a command of the site's (a scheduler's query, a launcher) for a bounded time.
//!
//! Contract: returns within the limit and a second, whatever the command does; when time is up the command and
//! everything in its process group is killed. Its output is bounded too.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// More than this is no answer to any question asked here.
const MOST_OUTPUT: u64 = 16 << 20;
/// After the end, or the kill, the pipes close at once unless a stray child holds them.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What it said.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// Kills a process group; one that is gone is fine.
pub fn kill_group(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process_group(pid, signal);
    }
}

/// Runs it with no input.
///
/// # Errors
/// It cannot be started, or `TimedOut`.
pub fn output(command: &mut Command, limit: Duration) -> io::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let end = Instant::now() + limit;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Ok(status),
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            other => {
                kill_group(child.id(), rustix::process::Signal::KILL);
                let _ = child.wait();
                let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {} s", limit.as_secs()));
                break Err(other.err().unwrap_or_else(late));
            }
        }
    };
    let read = |pipe: Option<Receiver<Vec<u8>>>| pipe.and_then(|p| p.recv_timeout(LAST_WORDS).ok()).unwrap_or_default();
    let (stdout, stderr) = (read(stdout), read(stderr));
    Ok(Output { status: status?, stdout, stderr })
}

fn drain(pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (out, received) = channel();
    // Detached: a stray child may hold the pipe open for ever.
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.take(MOST_OUTPUT).read_to_end(&mut bytes);
        let _ = out.send(bytes);
    });
    received
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children() {
        let began = Instant::now();
        let error =
            output(Command::new("sh").args(["-c", "sleep 60 & sleep 60"]), Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn output_and_status_come_back() {
        let said =
            output(Command::new("sh").args(["-c", "echo a; echo b >&2; exit 3"]), Duration::from_secs(10)).unwrap();
        assert_eq!((said.stdout, said.stderr, said.status.code()), (b"a\n".to_vec(), b"b\n".to_vec(), Some(3)));
    }
}
