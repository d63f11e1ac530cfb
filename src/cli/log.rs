//! Logs: to standard error for people, and as JSON lines to a file of this process once one is named.
//!
//! Contract: whoever logs never waits for a filesystem; a thread of its own writes. When that thread cannot keep up,
//! lines are dropped and the next line that gets through says how many.

use super::{LogFormat, Talk};
use crate::report::progress;
use crate::store::fs::{Links, open_regular};
use crossbeam::channel::{Sender, TrySendError, bounded};
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

static FILE: OnceLock<Sender<Vec<u8>>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Starts logging to standard error.
pub(super) fn start(talk: &Talk) {
    let default = match (talk.quiet, talk.verbose) {
        (true, _) => "error",
        (false, 0) => "info",
        (false, 1) => "info,beampilot=debug",
        (false, _) => "trace",
    };
    let filter = EnvFilter::try_from_env("BEAMPILOT_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let people = tracing_subscriber::fmt::layer().with_writer(|| BesideProgress).with_target(false);
    let people = match talk.log_format {
        LogFormat::Json => people.json().with_filter(filter).boxed(),
        LogFormat::Text => {
            let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            people.with_ansi(colour).with_filter(filter).boxed()
        }
    };
    let file = tracing_subscriber::fmt::layer().json().with_writer(|| ToFile).with_filter(EnvFilter::new("info"));
    // A subscriber that is there already (a test) stays.
    let _ = tracing_subscriber::registry().with(people).with(file).try_init();
}

/// From now on also to `<state>/logs/<id>.rank<rank>.log`. A file that cannot be opened costs only the log.
pub(super) fn to_file(state: &Path, id: &str) {
    let rank = crate::transport::launch::rank().unwrap_or(0);
    let path = crate::store::Layout { state: state.to_owned() }.log(id, u32::try_from(rank).unwrap_or(u32::MAX));
    let mut file = match open_regular(OpenOptions::new().create(true).append(true), &path, Links::Refused) {
        Ok(file) => file,
        Err(e) => return tracing::warn!(file = %path.display(), error = %e, "no log file"),
    };
    let (lines, lines_in) = bounded::<Vec<u8>>(10_000);
    let thread = std::thread::Builder::new().name("log".into()).spawn(move || {
        for line in lines_in {
            // A log that cannot be written must not disturb the work; standard error has the same lines.
            let _ = file.write_all(&line);
        }
    });
    if thread.is_ok() {
        let _ = FILE.set(lines);
    }
}

struct BesideProgress;

impl Write for BesideProgress {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        progress::beside(|| io::stderr().lock().write(bytes))
    }
    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

struct ToFile;

impl Write for ToFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(file) = FILE.get() {
            let mut line = bytes.to_vec();
            let dropped = DROPPED.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                line.splice(0..0, format!("{{\"level\":\"WARN\",\"dropped\":{dropped}}}\n").into_bytes());
            }
            if let Err(TrySendError::Full(_)) = file.try_send(line) {
                DROPPED.fetch_add(dropped + 1, Ordering::Relaxed);
            }
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
