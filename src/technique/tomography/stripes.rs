//! Which stripe removal: one name and one set of settings for each of the methods.
//!
//! [`super::stripe`] (Vo's combination) finds what stands out and replaces it, [`super::wavelet`] damps what is straight in
//! every scale, [`super::titarenko`] subtracts one offset per column. All work in place on `[row, angle, column]`.

use ndarray::ArrayViewMut3;
use serde::{Deserialize, Serialize};

use super::error::TomographyError;
use super::stripe::{self, Stripe};
use super::titarenko::{self, Titarenko};
use super::wavelet::{self, Wavelet};

/// A method and its settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum Stripes {
    /// Vo's combination.
    Vo(Stripe),
    /// Fourier–wavelet.
    Wavelet(Wavelet),
    /// Titarenko's formula.
    Titarenko(Titarenko),
}

impl Stripes {
    /// With what depends on the detector filled in.
    #[must_use]
    pub fn fitted(self, columns: usize) -> Self {
        match self {
            Self::Vo(options) => Self::Vo(super::chain::fitted(options, columns)),
            Self::Wavelet(options) => Self::Wavelet(Wavelet { level: Some(options.levels(columns)), ..options }),
            Self::Titarenko(options) => Self::Titarenko(options),
        }
    }

    /// Removes stripes from every detector row of `[row, angle, column]`, in place.
    ///
    /// # Errors
    /// Settings outside their range.
    pub fn remove_slab(&self, sinograms: ArrayViewMut3<'_, f32>) -> Result<(), TomographyError> {
        match self {
            Self::Vo(options) => stripe::remove_slab(sinograms, options),
            Self::Wavelet(options) => wavelet::remove_slab(sinograms, options),
            Self::Titarenko(options) => titarenko::remove_slab(sinograms, options),
        }
    }
}
