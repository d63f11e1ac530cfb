//! The keeper: a small process that starts, limits, reaps, kills and replaces a rank's executors.
//!
//! Why a process of its own: after `MPI_Init` a rank must not fork, and a process that carries HDF5 or MPI cannot
//! promise to clean up behind itself. The keeper is born before `MPI_Init`, has one thread, opens no scan, and is a
//! subreaper: whatever an executor leaves behind becomes its child.
//!
//! Contract
//! - Rank and keeper talk over one `SOCK_SEQPACKET` pair, one bincode message a packet ([`ToKeeper`],
//!   [`FromKeeper`]); an executor's own socket travels to the rank beside its [`FromKeeper::Up`].
//! - When the rank's end closes, whatever the reason, the keeper kills everything below it and exits. An executor whose
//!   keeper dies is killed by the kernel (parent-death signal); what that executor had started, the rank kills: it
//!   is a subreaper too.
//! - A rank has two keepers: one works, the other waits, with its socket and nothing to do. When the one that works
//!   dies, the other takes its place and starts yet another one to wait, which the rank itself, after `MPI_Init`, must
//!   not. A keeper whose parent was a keeper that died is the rank's child then.
//! - An executor that holds more memory, with everything it started, than it may, is killed before the kernel has to
//!   choose whom to kill.
//! - An executor that ended is replaced at once; one that keeps ending soon after its start waits longer each time.
//! - SIGTERM and SIGINT do nothing here: schedulers send them to every process, and the rank decides when to end.

mod handle;
mod process;
mod shim;
pub mod tree;

pub use handle::{Keeper, News};
pub use process::run;
pub use shim::{Limits, become_limited, strip_launcher_variables};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// First word of a keeper's command line.
pub const KEEPER: &str = "keeper";
/// First word of an executor's command line.
pub const EXECUTOR: &str = "executor";
/// First word of the shim's command line.
pub const SHIM: &str = "exec-shim";
/// Environment variable that marks everything an executor starts: `<pid of the rank>.<slot>.<how many before>`.
pub const MARK: &str = "BEAMPILOT_EXECUTOR";

/// Largest packet. Command lines are short.
const PACKET: usize = 64 * 1024;

/// Orders of the rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToKeeper {
    /// Start an executor and keep one running.
    Start {
        /// Its number in this rank.
        slot: u32,
        /// Command line after the executable's name.
        args: Vec<String>,
        /// Bytes that it and everything it starts may hold, where there is a limit.
        memory: Option<u64>,
    },
    /// Start a keeper that waits for this one's death.
    Spare,
    /// Kill what this slot runs, and everything that it started. It is replaced.
    Kill {
        /// The slot.
        slot: u32,
        /// The executor that is meant: its replacement is not.
        pid: u32,
    },
    /// Do not replace it any more.
    Retire {
        /// The slot.
        slot: u32,
    },
}

/// News for the rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromKeeper {
    /// An executor was started; its socket is attached.
    Up {
        /// The slot.
        slot: u32,
        /// Process.
        pid: u32,
    },
    /// An executor ended and was reaped, and what it had started was killed.
    Ended {
        /// The slot.
        slot: u32,
        /// Process.
        pid: u32,
        /// How.
        how: HowEnded,
    },
    /// A keeper was started that waits; its socket is attached.
    Spare {
        /// Process.
        pid: u32,
    },
    /// None could be started.
    NoSpare {
        /// Why.
        reason: String,
    },
    /// An executor could not be started; it is tried again.
    Failed {
        /// The slot.
        slot: u32,
        /// Why.
        reason: String,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HowEnded {
    /// By itself.
    Exit(i32),
    /// By a signal.
    Signal(i32),
    /// By the kernel, for lack of memory.
    OutOfMemory,
    /// By its keeper: it held more memory than it may, both in bytes.
    TooMuch(u64, u64),
}

impl std::fmt::Display for HowEnded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exited with {code}"),
            Self::Signal(signal) => match signal_hook::low_level::signal_name(*signal) {
                Some(name) => write!(f, "killed by {name}"),
                None => write!(f, "killed by signal {signal}"),
            },
            Self::OutOfMemory => write!(f, "killed by the kernel for lack of memory"),
            Self::TooMuch(held, limit) => {
                let mib = |bytes: &u64| bytes >> 20;
                write!(
                    f,
                    "killed: with what it started it held {} MiB of memory, more than its {}",
                    mib(held),
                    mib(limit)
                )
            }
        }
    }
}

fn encode(message: &impl Serialize) -> std::io::Result<Vec<u8>> {
    bincode::serde::encode_to_vec(message, bincode::config::standard()).map_err(std::io::Error::other)
}

fn decode<M: DeserializeOwned>(packet: &[u8]) -> std::io::Result<M> {
    let config = bincode::config::standard().with_limit::<PACKET>();
    let decoded = bincode::serde::decode_from_slice(packet, config);
    decoded.map(|(message, _)| message).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_in_words() {
        assert_eq!(HowEnded::Signal(11).to_string(), "killed by SIGSEGV");
        assert_eq!(HowEnded::Signal(64).to_string(), "killed by signal 64");
        assert_eq!(HowEnded::Exit(3).to_string(), "exited with 3");
        let words = HowEnded::TooMuch(300 << 20, 200 << 20).to_string();
        assert!(words.ends_with("held 300 MiB of memory, more than its 200"), "{words}");
    }

    #[test]
    fn messages_survive() {
        let start = ToKeeper::Start { slot: 3, args: vec!["executor".into(), "--id".into()], memory: Some(1) };
        assert_eq!(decode::<ToKeeper>(&encode(&start).unwrap()).unwrap(), start);
        assert!(decode::<FromKeeper>(&[250, 1, 2]).is_err());
    }
}
