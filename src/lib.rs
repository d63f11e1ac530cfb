//! beampilot: a pilot-job runtime for experiment-time reconstruction.
//!
//! Rank 0 polls the parallel filesystem for scans, cuts each into tasks, dispatches them to worker
//! ranks and publishes the results by one rename. `docs/architecture.md` says which room holds what;
//! the decisions live in [`coordinator::core`], which is pure.

pub mod arrivals;
pub mod campaign;
pub mod cli;
pub mod coordinator;
pub mod device;
pub mod formats;
pub mod launch;
pub mod publish;
pub mod report;
#[cfg(test)]
mod sim;
pub mod site;
pub mod store;
pub mod technique;
pub mod transport;
pub mod worker;

/// The build's identity: package version, commit and a hash of the executable's inputs. Two processes
/// talk to each other only when it is equal on both sides.
pub const BUILD: &str = env!("BEAMPILOT_BUILD");

/// The package version, `MAJOR.MINOR.PATCH`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit this binary was built from, `unknown` outside a git checkout; `+dirty` when the tree was changed.
pub const COMMIT: &str = env!("BEAMPILOT_COMMIT");
