//! The end-to-end suite: real executables, real scans, real folders. `embedded_pilot.rs` runs it in one process,
//! `mpi_pilot.rs` under mpiexec (once for each MPI that is installed).
#![allow(dead_code)] // Each test executable uses its part.

pub mod executors;
pub mod faults;
pub mod rig;
pub mod scenarios;

/// Declares one test for each scenario, run with this launcher.
#[macro_export]
macro_rules! suite {
    ($launcher:expr; $($scenario:ident),+ $(,)?) => {
        $(#[test]
        fn $scenario() {
            match $launcher {
                Some(launcher) => common::scenarios::$scenario(launcher),
                None => eprintln!("skipped: no mpiexec (BEAMPILOT_MPIEXEC) here"),
            }
        })+
    };
}
