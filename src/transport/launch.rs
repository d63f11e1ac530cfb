//! Were we started by mpiexec, on how many ranks, how many of them on this host?
//!
//! Contract: reads the environment only. MPI is not initialized, so that `beampilot run` on a laptop never
//! touches it, and everything that must happen before `MPI_Init` still can. Variables by launcher:
//! Open MPI `OMPI_COMM_WORLD_*`; Hydra and Cray PALS `PMI_*`; Slurm steps `SLURM_STEP_NUM_TASKS`.

use super::TransportError;

const SIZES: &[&str] = &["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PALS_SIZE", "SLURM_STEP_NUM_TASKS"];
const RANKS: &[&str] = &["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PALS_RANKID", "SLURM_PROCID"];
const LOCAL_SIZES: &[&str] = &["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "PMI_LOCAL_SIZE", "PALS_LOCAL_SIZE"];
const LOCAL_RANKS: &[&str] =
    &["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID", "SLURM_LOCALID"];

/// The number of ranks when it is more than one; `None` for a process on its own.
///
/// # Errors
/// [`TransportError::NoMpi`] when there are several ranks and this build cannot talk to them.
pub fn under_mpiexec() -> Result<Option<usize>, TransportError> {
    decide(ranks(&from_process), cfg!(feature = "mpi"))
}

/// This process's rank, as the launcher tells; `None` when there is none.
pub fn rank() -> Option<usize> {
    first(RANKS, &from_process)
}

/// Ranks on this host, as the launcher tells; `None` when it does not.
pub fn local_size() -> Option<usize> {
    first(LOCAL_SIZES, &from_process).filter(|n| *n > 0)
}

/// This rank's number among those on this host, as the launcher tells.
pub fn local_rank() -> Option<usize> {
    first(LOCAL_RANKS, &from_process)
}

fn decide(ranks: Option<usize>, has_mpi: bool) -> Result<Option<usize>, TransportError> {
    match ranks {
        Some(ranks) if ranks > 1 && !has_mpi => Err(TransportError::NoMpi { ranks }),
        Some(ranks) if ranks > 1 => Ok(Some(ranks)),
        _ => Ok(None),
    }
}

fn from_process(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The largest of what the launchers say: a single task of Slurm may well run mpiexec on many.
fn ranks(env: &dyn Fn(&str) -> Option<String>) -> Option<usize> {
    SIZES.iter().filter_map(|name| env(name)?.trim().parse().ok()).max()
}

fn first(names: &[&str], env: &dyn Fn(&str) -> Option<String>) -> Option<usize> {
    names.iter().find_map(|name| env(name)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        move |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
    }

    #[test]
    fn every_launcher_is_recognised() {
        assert_eq!(ranks(&with(&[])), None);
        assert_eq!(ranks(&with(&[("OMPI_COMM_WORLD_SIZE", "4")])), Some(4));
        assert_eq!(ranks(&with(&[("PMI_SIZE", " 3 ")])), Some(3));
        assert_eq!(ranks(&with(&[("PMI_SIZE", "three")])), None);
        assert_eq!(ranks(&with(&[("SLURM_STEP_NUM_TASKS", "1"), ("PMI_SIZE", "8")])), Some(8));
        assert_eq!(first(LOCAL_SIZES, &with(&[("MPI_LOCALNRANKS", "2")])), Some(2));
        assert_eq!(first(LOCAL_RANKS, &with(&[("PALS_LOCAL_RANKID", "0")])), Some(0));
    }

    #[test]
    fn several_ranks_need_mpi() {
        assert!(matches!(decide(Some(4), true), Ok(Some(4))));
        assert!(matches!(decide(Some(1), false), Ok(None)));
        assert!(matches!(decide(None, false), Ok(None)));
        let error = decide(Some(4), false).unwrap_err();
        assert!(error.is_configuration() && error.to_string().contains("4 ranks"), "{error}");
    }
}
