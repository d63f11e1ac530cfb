//! The supervisor around mpiexec: checks hosts, starts ranks, proves that nothing of a dead launch is left, starts
//! again without the bad host, brakes when that does not help.
//!
//! Contract
//! - It never touches MPI, scans or claims; it writes tombstones and drain sentinels, and reads heartbeats.
//! - A pilot gets a tombstone only after its host was searched and found empty.
//! - Every wait is bounded. While ranks run, SIGTERM is answered within eight seconds and a search; a check of hosts
//!   is finished first.

mod aftermath;
pub mod brake;
pub mod child;
pub mod helper;
pub mod host_check;
pub mod left_out;
pub mod plan;
pub mod supervise;
pub mod survivors;
pub mod timeline;
pub mod words;

pub use plan::Plan;
pub use supervise::{Limits, Outcome, supervise};
pub use timeline::Timeline;
