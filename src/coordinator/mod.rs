//! The pure core and the driver around it. `core` decides, `driver` moves bytes, `io` touches the filesystem.
//!
//! `core`, `dispatch`, `job`, `queue`, `requests`, `workers`, `event` and `view` import no clock, thread, filesystem or MPI
//! item: `tests::the_core_is_pure` reads their source and says so.

pub mod benchmark;
pub mod core;
pub mod disk;
mod dispatch;
pub mod driver;
pub mod event;
pub mod job;
pub mod pilot;
pub mod queue;
mod requests;
pub mod view;
pub mod workers;

#[cfg(test)]
mod tests;
