//! Tomography: from counts to attenuation.
//!
//! Read [`convention`] first. Every function is pure: arrays in, arrays out, parallel in the current rayon pool.

mod batch;
pub mod convention;
pub mod direct;
pub mod error;
pub mod filter;
pub mod gridding;
mod kernel;
mod lanes;
pub mod mask;
pub mod phantom;
pub mod quadrature;
#[cfg(test)]
mod testing;
