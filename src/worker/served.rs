//! An executor's own process: frames from the rank in, answers out.
//!
//! Contract
//! - Standard input is the socket to the rank; it is moved away at once, so that nothing a task starts inherits it.
//! - The process ends when it has said `Bye`, or when the rank's end closes; always without exit handlers: HDF5's
//!   would wait for a phase that hangs, and what is on disk is complete or worthless either way.
//! - SIGTERM, SIGINT and SIGHUP do nothing: schedulers send them to every process, and the rank decides when to end.
//! - Answers are written by whoever has some: the reading thread what it answers itself (no-ops), a thread of
//!   its own the rest.

use super::executor::{Executor, ExecutorConfig};
use crate::technique::plan::Fault;
use crate::transport::WorkerId;
use crate::transport::stream::{FrameReader, ReadError, write_frames};
use crate::transport::wire::{FromWorker, ToWorker};
use crossbeam::channel::{Receiver, Select, unbounded};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// After `Shutdown`: how long phases may take to end. The rank kills after half a second.
const GRACE: Duration = Duration::from_millis(300);
/// Exit code of an executor whose rank is gone; nobody waits for it.
const RANK_GONE: i32 = 75;

struct Answers {
    socket: UnixStream,
    out: Receiver<(WorkerId, FromWorker)>,
    queue: VecDeque<FromWorker>,
    bytes: Vec<u8>,
}

impl Answers {
    /// Writes what there is. Holding the lock around taking and writing keeps the order.
    fn flush(this: &Mutex<Self>) {
        let mut this = this.lock().unwrap_or_else(PoisonError::into_inner);
        let Self { socket, out, queue, bytes } = &mut *this;
        queue.extend(out.try_iter().map(|(_, message)| message));
        if queue.is_empty() {
            return;
        }
        let ends = queue.back() == Some(&FromWorker::Bye);
        bytes.clear();
        let mut refused = Vec::new();
        write_frames(queue, bytes, |message, error| refused.push((message, error)));
        for (message, error) in refused {
            if let FromWorker::Done { attempt, .. } = message {
                let result = Err(Fault::Task(format!("result cannot be sent: {error}")));
                let mut answer = VecDeque::from([FromWorker::Done { attempt, result }]);
                write_frames(&mut answer, bytes, |_, _| {});
            }
        }
        if socket.write_all(bytes).is_err() {
            signal_hook::low_level::exit(RANK_GONE);
        }
        if ends {
            signal_hook::low_level::exit(0);
        }
    }
}

/// Serves until told to end; returns only on an error.
///
/// # Errors
/// It could not be set up, or the rank says something incomprehensible.
pub fn run(mut config: ExecutorConfig) -> Result<(), ReadError> {
    let _ = rustix::thread::set_name(c"bp-executor");
    let socket = take_stdin()?;
    let ignored = Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in crate::site::signals::ending().into_iter().chain([signal_hook::consts::SIGUSR1]) {
        signal_hook::flag::register(signal, ignored.clone())?;
    }
    config.grace = GRACE;
    let (out, answers) = unbounded();
    let executor = Executor::spawn(config, out)?;
    let ready = answers.clone();
    let answers = Answers { socket: socket.try_clone()?, out: answers, queue: VecDeque::new(), bytes: Vec::new() };
    let answers = Arc::new(Mutex::new(answers));
    let writer = answers.clone();
    std::thread::Builder::new().name("answers".into()).spawn(move || {
        let mut select = Select::new();
        select.recv(&ready);
        loop {
            select.ready();
            Answers::flush(&writer);
        }
    })?;
    let (mut socket, mut reader, mut inbox) = (socket, FrameReader::default(), Vec::<ToWorker>::new());
    loop {
        match reader.read(&mut socket, &mut inbox) {
            Ok(true) => {}
            Ok(false) => signal_hook::low_level::exit(RANK_GONE),
            Err(ReadError::Io(e)) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(ReadError::Io(_)) => signal_hook::low_level::exit(RANK_GONE),
            Err(e) => return Err(e),
        }
        executor.deliver(inbox.drain(..));
        Answers::flush(&answers);
    }
}

fn take_stdin() -> io::Result<UnixStream> {
    let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(socket.into())
}
