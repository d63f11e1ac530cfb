//! What can go wrong with a device.

use cudarc::cufft::result::CufftError;
use cudarc::driver::result::DriverError;
use cudarc::driver::sys::CUresult;

/// A device that did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is not enough memory on it. Less work at a time may fit.
    #[error("GPU memory: {wanted} bytes asked for, {free} free")]
    OutOfMemory {
        /// Bytes asked for; 0 when a library asked.
        wanted: u64,
        /// Bytes free when it failed.
        free: u64,
    },
    /// The driver refused a call. Most of these are for good: the context is lost with them.
    #[error("{call}: {name}: {text}")]
    Call {
        /// Which call.
        call: &'static str,
        /// The driver's name of the error.
        name: String,
        /// Its explanation.
        text: String,
    },
    /// A kernel file cannot be compiled.
    #[error("kernels/{file}.cu cannot be compiled for {arch}: {log}")]
    Compile {
        /// Which file.
        file: &'static str,
        /// For which architecture.
        arch: String,
        /// What the compiler said.
        log: String,
    },
    /// A library is not there.
    #[error("{library} cannot be loaded; {remedy}")]
    Missing {
        /// Which library.
        library: &'static str,
        /// How to get it.
        remedy: &'static str,
    },
    /// A library cannot do what is asked.
    #[error("{0}")]
    Unsupported(String),
    /// The device failed its self-test: it must not be used.
    #[error("self-test: {0}")]
    Unfit(String),
}

impl DeviceError {
    /// Names the call in which the driver's error came.
    pub(super) fn at(call: &'static str) -> impl FnOnce(DriverError) -> Self {
        move |e| match e.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Self::OutOfMemory { wanted: 0, free: 0 },
            _ => {
                let text = |s: Result<&std::ffi::CStr, _>| {
                    s.map_or_else(|_: DriverError| "unknown".to_owned(), |s| s.to_string_lossy().into_owned())
                };
                Self::Call { call, name: text(e.error_name()), text: text(e.error_string()) }
            }
        }
    }

    /// As [`DeviceError::at`], for cuFFT.
    pub(super) fn at_fft(call: &'static str) -> impl FnOnce(CufftError) -> Self {
        move |e| match e.0 as u32 {
            // CUFFT_ALLOC_FAILED.
            2 => Self::OutOfMemory { wanted: 0, free: 0 },
            code => Self::Call { call, name: format!("cuFFT error {code}"), text: String::new() },
        }
    }
}
