//! A pilot: joins its ranks, and on rank 0 puts arrivals, core, driver, disk, journal and status together.

mod join;

pub use join::{JoinError, Joined, join};
