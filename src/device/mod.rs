//! Processors and GPUs of this host.
