//! Bundles: what a published folder holds, and the one rename that publishes it.
//!
//! `results/<stream>/<scan>/` holds the technique's files, `manifest.json` and `SHA256SUMS`. It appears under
//! its name whole, by one rename of its sibling `.staging-<key>.<generation>`, or not at all.

pub mod manifest;
mod rename;
pub mod seal;

pub use rename::{Publication, find_bundle, publish};
pub use seal::seal;
