#!/usr/bin/env bash
# Installs what the build needs and this machine lacks; says what to do where it cannot. Safe to repeat: when nothing
# is missing it changes nothing and needs no network.
#
# Debian and Ubuntu: apt-get, through sudo when not root. Other systems: names the packages or modules. It ends with 0
# when beampilot can be built, even if only without MPI.
set -euo pipefail
cd "$(dirname "$0")/.."

# The same lists as src/site/packages.rs; a test compares them.
apt_packages=(build-essential pkg-config clang libclang-dev git libhdf5-dev hdf5-tools libopenmpi-dev openmpi-bin libmpich-dev mpich)
dnf_packages=(gcc gcc-c++ make pkgconf-pkg-config clang clang-devel git hdf5-devel hdf5 openmpi-devel mpich-devel)
zypper_packages=(gcc gcc-c++ make pkg-config clang clang-devel git hdf5-devel hdf5 openmpi4-devel mpich-devel)
rust_minimum=1.95

say() { echo "setup: $*" >&2; }

with_apt() {
  local missing=() package
  for package in "${apt_packages[@]}"; do
    if [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)" != installed ]; then
      missing+=("$package")
    fi
  done
  if [ ${#missing[@]} -eq 0 ]; then return 0; fi
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      say "missing: ${missing[*]}; ask an administrator for: apt-get install ${missing[*]}"
      return 0
    fi
    as_root=(sudo)
    # Where nobody can type a password, fail at once.
    if [ ! -t 0 ]; then as_root=(sudo -n); fi
  fi
  say "installing ${missing[*]}"
  as_root+=(env DEBIAN_FRONTEND=noninteractive)
  local install=(apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=120 "${missing[@]}")
  "${as_root[@]}" apt-get update -q >&2 || say "apt-get update failed; trying with the lists that are here"
  "${as_root[@]}" "${install[@]}" >&2 || say "apt-get failed; going on with what is here"
}

elsewhere() {
  local how
  if [ "$(uname -s)" = Darwin ]; then
    how="brew install pkg-config llvm hdf5 open-mpi"
  elif [ -d /opt/cray/pe ]; then
    how="module use /soft/modulefiles; module load PrgEnv-gnu cray-mpich cray-hdf5 cudatoolkit-standalone (Polaris)"
  elif command -v dnf >/dev/null; then
    how="sudo dnf install ${dnf_packages[*]}; then module load mpi/openmpi-x86_64"
  elif command -v zypper >/dev/null; then
    how="sudo zypper install ${zypper_packages[*]}"
  else
    how="install a C compiler, make, pkg-config, clang with its library, git, HDF5 with headers, and an MPI with mpicc"
  fi
  say "this system is not set up automatically. What it needs: $how"
}

if command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then with_apt; else elsewhere; fi

. scripts/env.sh
failed=0
lacks() {
  say "missing: $*"
  failed=1
}

command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null || lacks "a C compiler"
if ! pkg-config --exists hdf5 2>/dev/null && [ -z "${HDF5_DIR:-}" ] && ! command -v h5cc >/dev/null; then
  lacks "HDF5 with its headers (or set HDF5_DIR to where it is)"
fi
if [ -n "$BEAMPILOT_FEATURES" ]; then
  say "no MPI compiler wrapper (mpicc): building without MPI, for one machine only"
elif [ -z "$BEAMPILOT_MPIEXEC" ]; then
  say "no mpiexec in PATH: it builds with MPI but runs in one process only"
fi

if ! command -v cargo >/dev/null; then
  lacks "cargo. Rust $rust_minimum or later comes with:
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y && . \"\$HOME/.cargo/env\""
else
  rust=$(rustc --version | awk '{ print $2 }')
  if [ "$(printf '%s\n' "$rust_minimum" "$rust" | sort -V | head -n 1)" != "$rust_minimum" ]; then
    lacks "Rust $rust_minimum or later; this is $rust. Update with: rustup update stable"
  fi
fi

if [ "$failed" -ne 0 ]; then exit 1; fi
say "ready (Rust $rust, MPI compiler: ${MPICC:-${MPI_PKG_CONFIG:-${CRAY_MPICH_DIR:-none}}})"
