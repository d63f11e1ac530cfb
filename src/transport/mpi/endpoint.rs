//! The one place that calls MPI's point-to-point functions.
//!
//! Contract
//! - [`Endpoint::post`] and [`Endpoint::receive`] never wait. Frames of one sender are delivered in the order sent: a
//!   large one that is still coming in holds back those behind it.
//! - Buffers belong to MPI from post to completion: they live here, and are leaked rather than freed when the
//!   process ends with some incomplete.
//! - Errors are returned by MPI, not fatal (`MPI_ERRORS_RETURN`): a rank that an error names is given up and the
//!   others go on.
//!
//! Raw calls, because rsmpi ties a request to a scope, and panics when one is dropped incomplete; a coordinator
//! needs a queue of requests that outlives every scope. `unsafe` occurs in this file and `session.rs` only.

use mpi::environment::Universe;
use mpi::ffi;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::time::{Duration, Instant};

/// Any number will do: nobody else talks on our communicator.
const TAG: i32 = 7117;
/// Most frames taken in one go, so that a flood from workers cannot keep the coordinator from sending.
const RECEIVE_AT_ONCE: usize = 1024;
/// Larger frames may need the receiver before they complete.
const LARGE: usize = 4096;
/// Sends under way may take this long to complete before finalizing.
const SETTLE: Duration = Duration::from_secs(1);

/// A buffer and what MPI does with it.
struct Transfer {
    buffer: Vec<u8>,
    /// `MPI_REQUEST_NULL` once complete.
    request: ffi::MPI_Request,
}

/// This process's end of the world communicator.
pub(super) struct Endpoint {
    /// Finalizes MPI when dropped; dropped by [`Endpoint::finalize`] alone.
    universe: ManuallyDrop<Universe>,
    comm: ffi::MPI_Comm,
    rank: usize,
    /// By rank, oldest first.
    outgoing: Vec<VecDeque<Transfer>>,
    incoming: Vec<VecDeque<Transfer>>,
    /// Ranks MPI returned an error for.
    lost: Vec<bool>,
    /// MPI belongs to the thread that initialized it.
    _here: PhantomData<*const ()>,
}

impl Endpoint {
    pub(super) fn new(universe: Universe) -> Self {
        use mpi::traits::{AsRaw, Communicator};
        let world = universe.world();
        let (comm, rank, size) = (world.as_raw(), world.rank() as usize, world.size() as usize);
        // SAFETY: `comm` is the world communicator of an initialized MPI; the handler is predefined.
        unsafe { ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN) };
        let lines = || (0..size).map(|_| VecDeque::new()).collect();
        Self {
            universe: ManuallyDrop::new(universe),
            comm,
            rank,
            outgoing: lines(),
            incoming: lines(),
            lost: vec![false; size],
            _here: PhantomData,
        }
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn size(&self) -> usize {
        self.outgoing.len()
    }

    /// Frames under way to a rank.
    pub(super) fn in_flight(&self, rank: usize) -> usize {
        self.outgoing.get(rank).map_or(0, VecDeque::len)
    }

    /// The same number of bytes from every rank, in rank order. Collective; waits for all.
    pub(super) fn gather_from_all(&self, mine: &[u8]) -> Vec<u8> {
        let mut all = vec![0u8; mine.len() * self.size()];
        let each = mine.len() as i32;
        // SAFETY: `mine` holds `each` bytes, `all` holds `each` for every rank of `comm`; both outlive the call.
        let rc = unsafe {
            ffi::MPI_Allgather(
                mine.as_ptr().cast(),
                each,
                ffi::RSMPI_UINT8_T,
                all.as_mut_ptr().cast(),
                each,
                ffi::RSMPI_UINT8_T,
                self.comm,
            )
        };
        if rc != 0 {
            tracing::error!(rc, "MPI_Allgather failed");
        }
        all
    }

    /// Starts sending a frame; to a lost rank it is dropped.
    pub(super) fn post(&mut self, to: usize, frame: Vec<u8>) {
        let (Some(line), Some(false)) = (self.outgoing.get_mut(to), self.lost.get(to)) else { return };
        let mut transfer = Transfer { buffer: frame, request: null_request() };
        // A frame is at most `frame::MAX_PAYLOAD` and a header: fits an i32.
        let bytes = transfer.buffer.len() as i32;
        // SAFETY: the buffer's heap block stays where it is, unread and unwritten by us, until the request completes:
        // the transfer is kept in `outgoing` until then, or leaked.
        let rc = unsafe {
            ffi::MPI_Isend(
                transfer.buffer.as_ptr().cast(),
                bytes,
                ffi::RSMPI_UINT8_T,
                to as i32,
                TAG,
                self.comm,
                &mut transfer.request,
            )
        };
        if rc == 0 {
            line.push_back(transfer);
        } else {
            self.lose(to, "MPI_Isend", rc);
        }
    }

    /// Completes sends; true when a large one did. Small ones tell nothing: MPI has copied them, and a heartbeat is
    /// one of them.
    pub(super) fn progress(&mut self) -> bool {
        let mut any = false;
        for to in 0..self.outgoing.len() {
            while let Some(front) = self.outgoing[to].front_mut() {
                match test(&mut front.request) {
                    Ok(false) => break,
                    Ok(true) => {
                        any |= self.outgoing[to].pop_front().is_some_and(|t| t.buffer.len() > LARGE);
                    }
                    Err(rc) => self.lose(to, "MPI_Test of a send", rc),
                }
            }
        }
        any
    }

    /// Hands every whole frame that has come to `deliver`, with its sender.
    pub(super) fn receive(&mut self, mut deliver: impl FnMut(usize, &[u8])) {
        for _ in 0..RECEIVE_AT_ONCE {
            let Some((from, transfer)) = self.accept() else { break };
            if let Some(line) = self.incoming.get_mut(from) {
                line.push_back(transfer);
                self.deliver_from(from, &mut deliver);
            }
        }
        for from in 0..self.incoming.len() {
            if !self.incoming[from].is_empty() {
                self.deliver_from(from, &mut deliver);
            }
        }
    }

    fn deliver_from(&mut self, from: usize, deliver: &mut impl FnMut(usize, &[u8])) {
        while let Some(front) = self.incoming[from].front_mut() {
            match test(&mut front.request) {
                Ok(false) => return,
                Ok(true) => {
                    if let Some(whole) = self.incoming[from].pop_front() {
                        deliver(from, &whole.buffer);
                    }
                }
                Err(rc) => self.lose(from, "MPI_Test of a receive", rc),
            }
        }
    }

    /// Starts receiving the next message, if there is one.
    fn accept(&mut self) -> Option<(usize, Transfer)> {
        let (mut flag, mut bytes) = (0, 0);
        let mut message = MaybeUninit::uninit();
        let mut status = MaybeUninit::uninit();
        // SAFETY: all pointers are to live locals; `message` and `status` are read only when `flag` says that MPI
        // has written them.
        let (rc, mut message, status) = unsafe {
            let any = ffi::RSMPI_ANY_SOURCE;
            let rc = ffi::MPI_Improbe(any, TAG, self.comm, &mut flag, message.as_mut_ptr(), status.as_mut_ptr());
            if rc != 0 || flag == 0 {
                return None;
            }
            (rc, message.assume_init(), status.assume_init())
        };
        debug_assert_eq!(rc, 0);
        // SAFETY: `status` is of a matched probe of bytes.
        unsafe { ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut bytes) };
        let from = usize::try_from(status.MPI_SOURCE).ok()?;
        let mut transfer = Transfer { buffer: vec![0; usize::try_from(bytes).ok()?], request: null_request() };
        // SAFETY: the buffer holds `bytes`, and as for sends stays in place in `incoming` until complete, or is leaked.
        let rc = unsafe {
            let start = transfer.buffer.as_mut_ptr().cast();
            ffi::MPI_Imrecv(start, bytes, ffi::RSMPI_UINT8_T, &mut message, &mut transfer.request)
        };
        if rc == 0 {
            return Some((from, transfer));
        }
        self.lose(from, "MPI_Imrecv", rc);
        None
    }

    /// MPI said that something is wrong with this rank: nothing more to it or from it.
    fn lose(&mut self, rank: usize, what: &str, rc: i32) {
        tracing::error!(rank, rc, "{what} failed; this rank is given up");
        self.lost[rank] = true;
        // MPI may still write to or read from these buffers.
        std::mem::take(&mut self.outgoing[rank]).into_iter().for_each(std::mem::forget);
        std::mem::take(&mut self.incoming[rank]).into_iter().for_each(std::mem::forget);
    }

    /// Lets sends complete, then finalizes. After `within` the process ends with `exit_code`.
    pub(super) fn finalize(mut self, within: Duration, exit_code: i32) {
        let (finished, watched) = crossbeam::channel::bounded::<()>(0);
        let watchdog = std::thread::Builder::new().name("finalize-dog".into()).spawn(move || {
            if watched.recv_timeout(within) == Err(crossbeam::channel::RecvTimeoutError::Timeout) {
                eprintln!("beampilot: MPI_Finalize hangs since {within:?}; leaving with exit code {exit_code}");
                signal_hook::low_level::exit(exit_code);
            }
        });
        if watchdog.is_err() {
            // Without a watchdog a hang would last until walltime.
            signal_hook::low_level::exit(exit_code);
        }
        let deadline = Instant::now() + SETTLE;
        while self.outgoing.iter().any(|line| !line.is_empty()) && Instant::now() < deadline {
            self.progress();
            self.receive(|_, _| ());
            std::thread::sleep(Duration::from_micros(100));
        }
        // SAFETY: `self` is consumed and its `Drop` does not touch `universe`, so it is dropped once.
        unsafe { ManuallyDrop::drop(&mut self.universe) };
        drop(finished);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // MPI may still use them, also after an unwinding panic.
        let all = self.outgoing.iter_mut().chain(&mut self.incoming);
        all.flat_map(std::mem::take).for_each(std::mem::forget);
    }
}

fn null_request() -> ffi::MPI_Request {
    // SAFETY: a constant of the linked MPI.
    unsafe { ffi::RSMPI_REQUEST_NULL }
}

/// Is this request complete?
fn test(request: &mut ffi::MPI_Request) -> Result<bool, i32> {
    let mut flag = 0;
    // SAFETY: `request` is null (then complete) or of a pending operation whose buffer is alive.
    let rc = unsafe { ffi::MPI_Test(request, &mut flag, ffi::RSMPI_STATUS_IGNORE) };
    if rc == 0 { Ok(flag != 0) } else { Err(rc) }
}
