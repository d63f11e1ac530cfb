//! The pure core and the driver around it.
