//! What beampilot knows about the places it runs: filesystems and their habits, where software comes from, how jobs are
//! started there, on which hosts, bound to which GPUs, and when they end.

pub mod binding;
pub mod bounded;
pub mod filesystem;
pub mod hosts;
pub mod mpiexec;
pub mod packages;
pub mod profile;
pub mod signals;
pub mod walltime;

pub use profile::Profile;
