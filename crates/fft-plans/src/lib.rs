//! Fourier transforms by rustfft and realfft, planned behind trait objects.
//!
//! Why a crate: rustfft is generic, and whoever plans a transform compiles all of it, three minutes of compiler time in
//! every build of beampilot. Here it is compiled once for each precision. Unnormalised in both directions: forward
//! `Σ x_j e^{−2πi jk/n}`, inverse `+`.

pub use realfft::{ComplexToReal, RealToComplex};
pub use rustfft::Fft;
pub use rustfft::num_complex::{Complex32, Complex64};

use realfft::RealFftPlanner;
use rustfft::FftPlanner;
use std::sync::Arc;

/// Complex, forward, single precision.
pub fn forward_f32(length: usize) -> Arc<dyn Fft<f32>> {
    FftPlanner::new().plan_fft_forward(length)
}

/// Complex, forward, double precision.
pub fn forward_f64(length: usize) -> Arc<dyn Fft<f64>> {
    FftPlanner::new().plan_fft_forward(length)
}

/// Complex, inverse, double precision.
pub fn inverse_f64(length: usize) -> Arc<dyn Fft<f64>> {
    FftPlanner::new().plan_fft_inverse(length)
}

/// Real to complex, single precision.
pub fn real_forward_f32(length: usize) -> Arc<dyn RealToComplex<f32>> {
    RealFftPlanner::new().plan_fft_forward(length)
}

/// Complex to real, single precision.
pub fn real_inverse_f32(length: usize) -> Arc<dyn ComplexToReal<f32>> {
    RealFftPlanner::new().plan_fft_inverse(length)
}

/// Real to complex, double precision.
pub fn real_forward_f64(length: usize) -> Arc<dyn RealToComplex<f64>> {
    RealFftPlanner::new().plan_fft_forward(length)
}
