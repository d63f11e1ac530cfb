//! Executors and the agents that feed them.
