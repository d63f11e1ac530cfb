# Sourced by the other scripts: where the tools are, and what MPI needs on small machines and in containers.
# Sets BEAMPILOT_FEATURES (for cargo), MPICC (for the build), BEAMPILOT_MPIEXEC (for runs) unless they are set.

if ! command -v cargo >/dev/null 2>&1 && [ -f "${CARGO_HOME:-$HOME/.cargo}/env" ]; then
  . "${CARGO_HOME:-$HOME/.cargo}/env"
fi

# First of the given commands that exists, as a path; nothing when there is none.
first_command() {
  local name
  for name in "$@"; do
    if command -v "$name" 2>/dev/null; then return 0; fi
  done
}

# Debian installs Open MPI and MPICH side by side, and plain `mpicc` may be either: take a pair that belongs together.
use_mpi() { # openmpi | mpich
  MPICC=$(first_command "mpicc.$1")
  BEAMPILOT_MPIEXEC=$(first_command "mpiexec.$1")
  export MPICC BEAMPILOT_MPIEXEC
}

if [ -z "${MPICC:-}" ] && [ -z "${MPI_PKG_CONFIG:-}" ] && [ -z "${CRAY_MPICH_DIR:-}" ]; then
  if [ -n "$(first_command mpicc.openmpi)" ]; then
    use_mpi openmpi
  elif [ -n "$(first_command mpicc.mpich)" ]; then
    use_mpi mpich
  else
    MPICC=$(first_command mpicc)
    export MPICC
  fi
fi
export BEAMPILOT_MPIEXEC="${BEAMPILOT_MPIEXEC:-$(first_command mpiexec)}"

# Without MPI everything but distributed runs works.
if [ -z "${BEAMPILOT_FEATURES+set}" ]; then
  if [ -n "${MPICC:-}${MPI_PKG_CONFIG:-}${CRAY_MPICH_DIR:-}" ]; then
    BEAMPILOT_FEATURES=""
  else
    BEAMPILOT_FEATURES="--no-default-features"
    unset MPICC
  fi
fi
export BEAMPILOT_FEATURES

# Open MPI refuses root, more ranks than cores, and in some containers its own ways of moving memory; version 5 reads
# the PRTE names.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_mpi_yield_when_idle=1
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none

# Locks fail on Lustre and NFS, and a reader must never stop a writer.
export HDF5_USE_FILE_LOCKING="${HDF5_USE_FILE_LOCKING:-FALSE}"
