//! The probe: is a scan readable and whole, as far as one can tell without reading all of it?
//!
//! Contract
//! - Opening already compares the size on disk with the superblock and with the extents of contiguous data.
//! - Here: every chunk of every stack is allocated, and no projection or flat among a sample is blank (all
//!   zero): files that are filled out of order look like that. Darks may be zero.
//! - A blank frame is [`Fault::NotYet`], never a refusal: the completeness rule decides how long to wait.
//! - Cost: the chunk index, and one row of up to `SAMPLED` frames of each list.

use super::source::{FrameList, TomoSource};
use crate::technique::Fault;

/// Frames looked at in each list: the first, the last and a spread.
const SAMPLED: usize = 64;

/// Checks an open scan.
///
/// # Errors
/// [`Fault::NotYet`] with what is missing.
pub fn check(source: &TomoSource) -> Result<(), Fault> {
    for list in source.lists() {
        list.stack.check_allocated()?;
    }
    let between = source.flats_between.iter().map(|(_, list)| list);
    let flats = source.flats_before.iter().chain(&source.flats_after).chain(between);
    for list in std::iter::once(&source.projections).chain(flats) {
        if let Some(frame) = blank(list)? {
            return Err(Fault::NotYet(format!(
                "{}: frame {frame} of {} is all zero: not written yet, or a frame the detector lost",
                list.stack.at(),
                list.stack.frames
            )));
        }
    }
    Ok(())
}

fn blank(list: &FrameList) -> Result<Option<usize>, Fault> {
    let last = list.frames.len().saturating_sub(1);
    let mut previous = None;
    // The last frame first: a transfer that runs from front to back is found at once.
    for i in (0..SAMPLED).rev() {
        let position = last * i / (SAMPLED - 1);
        if previous.replace(position) == Some(position) {
            continue;
        }
        let Some(&frame) = list.frames.get(position) else { continue };
        if list.stack.is_blank(frame)? {
            return Ok(Some(frame));
        }
    }
    Ok(None)
}
