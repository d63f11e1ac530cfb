//! What beampilot knows about the places it runs: filesystems and their habits, and where software comes from.

pub mod filesystem;
pub mod packages;
