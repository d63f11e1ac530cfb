//! Tomography: from counts to attenuation.
//!
//! Read [`convention`] first. Every function is pure: arrays in, arrays out, parallel in the current rayon pool.

mod batch;
pub mod center;
pub mod convention;
pub mod direct;
pub mod error;
pub mod filter;
pub mod gridding;
mod kernel;
mod lanes;
pub mod mask;
pub mod normalize;
pub mod phantom;
pub mod quadrature;
pub mod slab;
pub mod stripe;
#[cfg(test)]
mod testing;
pub mod zinger;
