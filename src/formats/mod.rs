//! Facility file layouts: reading what a task needs, writing part files.
//!
//! Contract
//! - Readers take files that somebody else wrote, perhaps at this moment, perhaps with intent: nothing here
//!   panics, hangs or allocates absurdly because of what is in a file, and nothing outside the root is opened.
//! - [`TomoSource`] is a tomography scan in any known layout; [`probe`] judges whether it is whole.
//! - [`part`] and [`volume`] write results: own file per attempt, hashed from memory, synced.
//! - The HDF5 library works behind one lock. Pixels bypass it wherever the layout allows.

pub(crate) mod als;
pub mod angles;
pub(crate) mod chunks;
pub mod convert;
pub(crate) mod data_exchange;
pub(crate) mod h5;
#[cfg(test)]
mod layout_tests;
pub(crate) mod links;
pub(crate) mod nxtomo;
pub mod output;
pub mod part;
pub mod probe;
pub mod scratch;
pub mod source;
pub mod stack;
pub mod superblock;
#[cfg(test)]
mod tests;
pub mod throttle;
pub(crate) mod tiff;
pub(crate) mod tiff_folder;
pub mod view;
pub mod volume;
pub(crate) mod zarr;

pub use source::{Companions, FrameList, TomoHeader, TomoSource};

use crate::technique::Fault;
use std::path::Path;

/// Opens a tomography scan without companions, detecting its layout.
///
/// # Errors
/// As [`TomoSource::open`].
pub fn open(path: &Path, root: &Path) -> Result<TomoSource, Fault> {
    TomoSource::open(path, root, &Companions::default())
}
