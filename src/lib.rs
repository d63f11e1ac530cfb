//! placeholder
pub mod technique;
