//! What people see of pilots: status files, their merge, and progress on a terminal.

mod arriving;
pub mod explain;
pub mod progress;
pub mod scans;
pub mod status;
pub mod table;
