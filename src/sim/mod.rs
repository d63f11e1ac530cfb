//! The simulator: shifts of several pilots on one simulated filesystem, under one seed.
//!
//! Claim, publish, sweep, heartbeat and journal code runs unchanged, as fibres ([`fibre`]) over a tree in memory
//! ([`tree`]); the core runs unchanged under a driver of virtual time ([`world`], [`pilot`]). Executors are imitated
//! ([`executor`]). Faults come from the seed ([`faults`]); what must hold is checked after every event ([`check`]).
//! [`enumerate`] walks all interleavings of two pilots and one scan. `docs/simulator.md` says what all this shows.

mod check;
mod enumerate;
mod executor;
mod faults;
pub(crate) mod fibre;
mod obedience;
mod people;
mod pilot;
mod processes;
mod services;
mod tests;
pub(crate) mod tree;
mod workers;
mod world;
