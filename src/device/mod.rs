//! Processors and GPUs of this host, as this process may use them.
//!
//! [`cpu`] and [`cuda`] look and touch nothing. [`shared`] is the device of this process: an executor has a process of its
//! own, and its GPU is the first that `CUDA_VISIBLE_DEVICES` (set from the site's profile, or by the scheduler) leaves.
//! CUDA is loaded at run time; without a driver there is no device, and everything runs on the CPU.

pub mod compile;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod fft;
pub mod gpu;
pub mod health;
pub mod kernels;
mod select;
pub mod selftest;

pub use error::DeviceError;
pub use gpu::Gpu;
pub use select::{Choice, Selected, examine, lose, lost, open, shared};
