//! Laue microdiffraction.
pub mod code;
pub mod decode;
#[cfg(test)]
mod decode_tests;
pub mod depth;
pub mod forward;
pub mod geometry;
pub mod mask;
pub mod nnls;
pub mod search;
pub mod setup;
pub mod spline;
