//! The pure core and the driver around it. `core` decides, `driver` moves bytes, `io` touches the filesystem.
//!
//! `core`, `deaths`, `dispatch`, `job`, `queue`, `requests`, `workers`, `event`, `view` and the small files beside them
//! import no clock, thread, filesystem or MPI
//! item: `tests::the_core_is_pure` reads their source and says so.

mod adoption;
pub mod benchmark;
pub mod core;
mod deaths;
pub mod disk;
mod dispatch;
pub mod driver;
pub mod event;
mod health;
pub mod job;
pub mod lanes;
mod learned;
pub mod pilot;
pub mod queue;
mod requests;
mod stragglers;
mod time;
pub mod view;
pub mod workers;
pub mod writers;

#[cfg(test)]
mod tests;
