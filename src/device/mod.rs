//! Processors and GPUs of this host, as this process may use them.

pub mod cpu;
pub mod cuda;
