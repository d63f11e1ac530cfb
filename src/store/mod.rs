//! Everything under the state folder: layout, claims, journal, records; and the `Fs` trait they go through.
//!
//! Authority: bundle > highest claim > quarantine > journal. Deleting every journal costs time only.

pub mod claims;
pub mod fs;
pub mod host;
pub mod journal;
pub mod layout;
pub mod records;
pub mod replay;
pub mod requests;
pub mod takeover;
pub mod temporary;
pub mod tombstone;

pub use fs::{Fs, RealFs};
pub use host::{Host, RealHost};
pub use layout::Layout;
