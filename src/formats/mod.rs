//! Facility file layouts: reading what a task needs, writing part files.
