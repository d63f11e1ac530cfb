//! Executors and the agents that feed them.

pub mod agent;
pub mod executor;
pub mod panics;
mod phases;
pub mod topology;

pub use executor::{Executor, ExecutorConfig, Services};

#[cfg(test)]
mod tests;
