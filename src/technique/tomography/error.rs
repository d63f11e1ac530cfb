//! What the tomography functions refuse, with what was got and what was expected.

use thiserror::Error;

/// An input that cannot be reconstructed, or an option outside its range.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum TomographyError {
    /// Two inputs disagree in shape.
    #[error("{what}: got shape {got:?}, expected {expected:?}")]
    Shape {
        /// Which input.
        what: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// An input has no elements, or fewer than the method needs.
    #[error("{what}: got {got}, at least {needed} needed")]
    TooFew {
        /// Which input.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many the method needs.
        needed: usize,
    },
    /// An option is outside its range or not a finite number.
    #[error("{what}: {got} is not {expected}")]
    Value {
        /// Which option.
        what: &'static str,
        /// Its value.
        got: f64,
        /// The range it should be in.
        expected: &'static str,
    },
    /// A filter name that is not known.
    #[error("no filter is called {got:?}; there are ramp, shepp-logan, cosine, hann, hamming, parzen")]
    Filter {
        /// The name as given.
        got: String,
    },
}

/// Checks that a number is finite and satisfies `ok`, else names it in an error.
pub(crate) fn check(
    what: &'static str,
    got: f64,
    expected: &'static str,
    ok: impl Fn(f64) -> bool,
) -> Result<(), TomographyError> {
    if got.is_finite() && ok(got) { Ok(()) } else { Err(TomographyError::Value { what, got, expected }) }
}
