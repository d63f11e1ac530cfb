//! Arrivals: the one thread that lists directories. Turns listings into complete scans; opens no scan file.

pub mod listing;
pub mod manifest;
pub mod names;
pub mod scan;
