//! What a process does between being started by the keeper and becoming an executor.
//!
//! Contract: it dies with its parent, dumps no core, is the first to go when memory runs out, and keeps the CPU
//! affinity it inherited. The variables by which a launcher tells a process that it is an MPI rank were removed when
//! the keeper was started, so that nothing below it can take itself for one; what selects a GPU stays.

use rustix::process::{Pid, Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setrlimit};
use std::io;
use std::process::Command;

/// What the shim imposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The process that must be the parent.
    pub parent: u32,
}

/// How readily the kernel kills an executor for lack of memory: before ranks, launchers and daemons (0), not before
/// what asks for it.
const OOM_SCORE: &str = "500";

/// Imposes the limits on this process; they outlive `exec`.
///
/// # Errors
/// The parent is gone, or the kernel refuses.
pub fn become_limited(limits: &Limits) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // A parent that died before the line above will not send the signal.
    if getppid().map(Pid::as_raw_nonzero).map(i32::from) != i32::try_from(limits.parent).ok() {
        return Err(io::Error::other("the keeper is gone"));
    }
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // Best effort: some containers forbid it.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    Ok(())
}

/// Prefixes of variables by which launchers speak to their ranks.
const PREFIXES: &[&str] = &[
    "PMI_",
    "PMI2_",
    "PMIX_",
    "OMPI_",
    "PRTE_",
    "OPAL_",
    "ORTE_",
    "PALS_",
    "HYDRA_",
    "HYDI_",
    "MPI_LOCAL",
    "MPIEXEC_",
    "MPIR_",
    "SLURM_STEP",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_TASK",
    "SLURM_GTIDS",
    "SLURM_SRUN",
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_LAUNCH",
];

/// Is this variable a launcher's?
fn is_launchers(name: &str) -> bool {
    PREFIXES.iter().any(|p| name.starts_with(p))
}

/// Removes launchers' variables from what a command will inherit.
pub fn strip_launcher_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_launchers) {
            command.env_remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_not_born_by_inheritance() {
        for name in ["PMI_RANK", "OMPI_COMM_WORLD_SIZE", "PALS_RANKID", "SLURM_PROCID", "MPI_LOCALRANKID", "PMIX_RANK"]
        {
            assert!(is_launchers(name), "{name}");
        }
        for name in ["CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PATH", "SLURM_JOB_ID", "PBS_JOBID", "HDF5_PLUGIN_PATH"]
        {
            assert!(!is_launchers(name), "{name}");
        }
    }

    #[test]
    fn an_orphan_is_refused() {
        // Not our parent: nothing of this test process may change before that is found out, but the death signal.
        let error = become_limited(&Limits { parent: 1_000_000_000 }).unwrap_err();
        set_parent_process_death_signal(None).unwrap();
        assert!(error.to_string().contains("gone"));
    }
}
