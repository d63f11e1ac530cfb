//! The pure core and the driver around it. `core` decides, `driver` moves bytes, `io` touches the filesystem.
//!
//! `core`, `job`, `queue`, `workers`, `event`, `view` and the files beside them that say "same contract as `core`" import
//! no clock, thread, filesystem or MPI item: `tests::the_core_is_pure` reads their source and says so.

mod adoption;
pub mod benchmark;
mod claiming;
pub mod core;
mod deaths;
pub mod disk;
mod dispatch;
pub mod driver;
mod ends;
pub mod event;
mod faults;
mod health;
mod home;
mod intake;
pub mod job;
pub mod lanes;
mod learned;
pub mod pilot;
pub mod queue;
mod requests;
mod storage;
mod stragglers;
mod time;
pub mod view;
pub mod workers;
pub mod writers;

#[cfg(test)]
mod tests;
