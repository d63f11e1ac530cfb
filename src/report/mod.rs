//! What people see of pilots: status files, their merge, and progress on a terminal.

pub mod progress;
pub mod status;
pub mod table;
