//! Tomography: from counts to attenuation.
//!
//! Read [`convention`] first. Every function is pure: arrays in, arrays out, parallel in the current rayon pool.

pub mod axis;
mod batch;
pub mod center;
pub mod convention;
mod cosine;
pub mod direct;
pub mod error;
pub mod filter;
pub mod gridding;
pub mod iterative;
mod kernel;
mod lanes;
pub mod mask;
mod median;
pub mod normalize;
pub mod offset;
pub mod paganin;
pub mod phantom;
pub mod precision;
mod projector;
pub mod quadrature;
pub mod slab;
pub mod strip;
pub mod stripe;
pub mod stripes;
#[cfg(test)]
mod testing;
pub mod titarenko;
pub mod wavelet;
pub mod zinger;

// The technique itself: files, recipes, tasks. The modules above know nothing of these.
mod chain;
mod compute;
#[cfg(test)]
mod cut_tests;
mod finish;
mod first_pass;
mod frames;
#[cfg(test)]
mod frames_tests;
pub mod gpu;
pub(crate) mod load;
mod locate;
mod means;
mod outputs;
#[cfg(test)]
mod outputs_tests;
mod plan;
pub mod preview;
pub mod recipe;
pub mod reconstruct;
pub mod synth;
mod synth_file;
mod tasks;
#[cfg(test)]
mod tasks_tests;

pub use tasks::Tomography;
