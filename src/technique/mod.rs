//! Techniques (placeholder; merged by hand).
pub mod tomography;
