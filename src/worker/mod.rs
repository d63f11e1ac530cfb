//! Executors and the agents that feed them.

pub mod agent;
mod child;
pub mod executor;
pub mod hosted;
pub mod keeper;
mod ledger;
pub mod node_scratch;
pub mod panics;
mod phases;
pub mod served;
pub mod topology;

pub use hosted::{Hosted, Hosting};

pub use executor::{Executor, ExecutorConfig, Services};

#[cfg(test)]
mod tests;
