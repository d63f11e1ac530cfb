//! Arrivals on a virtual clock and a fake filesystem; a few with the real one.

mod hostile;
mod rig;
mod rules;
