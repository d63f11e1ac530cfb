//! Laue microdiffraction: depth from a coded aperture or a wire.
//!
//! Read [`geometry`] first: frames, signs, units. The modules of the first group are pure: numbers in, numbers out.

pub mod calibrate;
pub mod code;
pub mod decode;
#[cfg(test)]
mod decode_tests;
pub mod depth;
pub mod forward;
pub mod geometry;
pub mod mask;
pub mod nnls;
pub mod reference;
pub mod search;
pub mod setup;
pub mod spline;
pub mod wire;

// What people write.
pub mod cold;
pub mod draft;
pub mod geon;
pub mod recipe;
pub mod synth;
mod synth_file;

// The technique itself: files, tasks, bundles. The pure modules know nothing of these.
pub mod bright;
mod finish;
pub mod gpu;
pub mod job;
pub mod live;
pub mod plan;
pub mod plot;
pub mod series;
pub mod slab;
pub mod source;
pub mod stack;
mod tasks;
#[cfg(test)]
mod tasks_tests;

pub use tasks::Laue;
