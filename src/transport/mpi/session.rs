//! Joining the other ranks: initialize, compare builds, learn who shares a host, and what a panic does.

use super::endpoint::Endpoint;
use super::{MpiTransport, WorkerLink};
use crate::transport::{LocalTransport, TransportError};
use crate::worker::topology::{self, CpuMask, Share};
use crate::worker::{ExecutorConfig, panics};
use std::sync::Once;
use std::time::Duration;

/// Exit code of a rank, and so of mpiexec, after a panic: `EX_SOFTWARE`.
pub const PANIC_EXIT: i32 = 70;
/// Exit code when MPI hangs while a configuration error is reported.
const CONFIGURATION_EXIT: i32 = 78;
/// After an abort that hangs.
const ABORT: Duration = Duration::from_secs(5);

/// How to join. [`Options::default`] is right outside tests.
#[derive(Debug, Clone)]
pub struct Options {
    /// This rank's build; tests pretend another.
    pub build: String,
    /// This rank's host name.
    pub host: String,
    /// Ranks the launcher started, from [`under_mpiexec`](crate::transport::under_mpiexec), which MPI must confirm.
    pub expected: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        let expected = crate::transport::under_mpiexec().ok().flatten();
        Self { build: crate::BUILD.to_owned(), host: topology::host(), expected }
    }
}

/// What a rank tells the others when it joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Build.
    pub build: String,
    /// Host name.
    pub host: String,
    /// CPUs it may run on.
    pub cpus: CpuMask,
}

const TEXT: usize = 128;
const CARD: usize = 2 * TEXT + size_of::<CpuMask>();

impl Peer {
    fn card(&self) -> [u8; CARD] {
        let mut card = [0u8; CARD];
        for (slot, text) in card.chunks_mut(TEXT).zip([&self.build, &self.host]) {
            slot.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        }
        card[2 * TEXT..].copy_from_slice(&self.cpus);
        card
    }

    fn read(card: &[u8]) -> Self {
        let text = |i: usize| {
            let bytes = card.get(i * TEXT..(i + 1) * TEXT).unwrap_or_default();
            String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
        };
        let mut cpus = [0u8; size_of::<CpuMask>()];
        card.iter().skip(2 * TEXT).zip(&mut cpus).for_each(|(from, to)| *to = *from);
        Self { build: text(0), host: text(1), cpus }
    }
}

/// All ranks, joined.
pub struct Session {
    endpoint: Endpoint,
    peers: Vec<Peer>,
}

/// Initializes MPI on this thread and meets the other ranks; waits for all of them. Start whatever must be born
/// before `MPI_Init` (children, their helper) first. Installs a panic hook that ends the whole job.
///
/// # Errors
/// The ranks cannot work together; MPI is finalized by then, and the reason is the same on every rank.
pub fn connect(options: &Options) -> Result<Session, TransportError> {
    let (universe, _) =
        mpi::environment::initialize_with_threading(mpi::Threading::Funneled).ok_or(TransportError::Used)?;
    abort_on_panic();
    let endpoint = Endpoint::new(universe);
    let size = endpoint.size();
    if let Some(ranks) = options.expected.filter(|ranks| *ranks != size) {
        let library = mpi::environment::library_version().unwrap_or_default();
        let words = library.lines().next().unwrap_or_default().split(',').next().unwrap_or_default();
        let library = words.split_whitespace().collect::<Vec<_>>().join(" ");
        endpoint.finalize(ABORT, CONFIGURATION_EXIT);
        return Err(TransportError::WrongMpiexec { ranks, size, library });
    }
    let me = Peer { build: options.build.clone(), host: options.host.clone(), cpus: topology::affinity() };
    let peers: Vec<Peer> = endpoint.gather_from_all(&me.card()).chunks(CARD).map(Peer::read).collect();
    if let Some(error) = compare(&peers) {
        endpoint.finalize(ABORT, CONFIGURATION_EXIT);
        return Err(error);
    }
    Ok(Session { endpoint, peers })
}

/// The first rank whose build is not rank 0's.
fn compare(peers: &[Peer]) -> Option<TransportError> {
    let first = peers.first()?;
    let (rank, other) = peers.iter().enumerate().find(|(_, p)| p.build != first.build)?;
    Some(TransportError::OtherBuild {
        rank,
        host: other.host.clone(),
        host0: first.host.clone(),
        theirs: other.build.clone(),
        mine: first.build.clone(),
    })
}

impl Session {
    /// This process's rank.
    pub fn rank(&self) -> usize {
        self.endpoint.rank()
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.endpoint.size()
    }

    /// What the ranks told of themselves, in rank order.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// Ranks on this rank's host, itself included.
    pub fn on_host(&self) -> usize {
        let Some(me) = self.peers.get(self.rank()) else { return 1 };
        self.peers.iter().filter(|p| p.host == me.host).count().max(1)
    }

    /// The share of this rank's executor: cores by everybody's masks, memory by the ranks on this host.
    pub fn share(&self) -> Share {
        let Some(me) = self.peers.get(self.rank()) else { return topology::share(1, 1) };
        let here: Vec<CpuMask> = self.peers.iter().filter(|p| p.host == me.host).map(|p| p.cpus).collect();
        Share { threads: topology::shared_cores(&me.cpus, &here), task_memory: topology::task_memory(here.len()) }
    }

    /// Rank 0's transport, with this rank's own executor as worker 0, unless rank 0 shall only coordinate.
    ///
    /// # Errors
    /// The executor's threads could not be started.
    pub fn coordinator(self, own: Option<ExecutorConfig>) -> Result<MpiTransport, TransportError> {
        let local = LocalTransport::new(own)?;
        Ok(MpiTransport::new(self.endpoint, local))
    }

    /// A worker rank's link, for [`crate::worker::agent::run`].
    pub fn worker(self) -> WorkerLink {
        WorkerLink::new(self.endpoint)
    }
}

/// A panic on a thread nobody guards ends the job at once: by `MPI_Abort` from the thread that owns MPI, by `_exit`
/// from any other (only that one may call MPI, and every launcher takes a rank that ends without finalizing for
/// the end of the job).
fn abort_on_panic() {
    static ONCE: Once = Once::new();
    let owner = std::thread::current().id();
    ONCE.call_once(move || {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            before(info);
            if panics::is_guarded() {
                return;
            }
            tracing::error!("panic, ending the job: {info}");
            if std::thread::current().id() == owner && mpi::environment::is_initialized() {
                // An abort can hang as well.
                let watchdog = std::thread::Builder::new().spawn(|| {
                    std::thread::sleep(ABORT);
                    signal_hook::low_level::exit(PANIC_EXIT);
                });
                if watchdog.is_ok() && !mpi::environment::is_finalized() {
                    // SAFETY: MPI is initialized and not finalized, and this is its thread.
                    unsafe { mpi::ffi::MPI_Abort(mpi::ffi::RSMPI_COMM_WORLD, PANIC_EXIT) };
                }
            }
            signal_hook::low_level::exit(PANIC_EXIT);
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(build: &str, host: &str) -> Peer {
        let mut cpus = [0; 128];
        cpus[3] = 0x5a;
        Peer { build: build.into(), host: host.into(), cpus }
    }

    #[test]
    fn cards_survive_and_long_texts_are_cut() {
        let p = peer("0.1.0-abc+dirty-mpi", "x3001c0s1b0n0");
        assert_eq!(Peer::read(&p.card()), p);
        let long = peer(&"b".repeat(500), "");
        assert_eq!(Peer::read(&long.card()).build.len(), TEXT);
        assert_eq!(Peer::read(&[]).host, "");
    }

    #[test]
    fn another_build_is_named_with_both_hosts() {
        let same = [peer("1", "a"), peer("1", "b")];
        assert!(compare(&same).is_none());
        let error = compare(&[peer("1", "a"), peer("1", "b"), peer("2", "c")]).unwrap();
        assert!(error.is_configuration());
        let text = error.to_string();
        assert!(text.contains("rank 2 on c runs beampilot 2") && text.contains("rank 0 on a runs 1"), "{text}");
    }
}
