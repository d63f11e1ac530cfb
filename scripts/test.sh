#!/usr/bin/env bash
# Runs every test: formatting, then the build without MPI, the default build, and the MPICH build where MPICH is there.
#
# usage: scripts/test.sh [format|embedded|default|mpich]…      no argument means all
#
# Tests named tests/mpi*.rs start ranks through $BEAMPILOT_MPIEXEC and run once for each MPI; those named
# tests/embedded*.rs need none and run in the build without it. It ends with one line for each stage and the
# total, and with 1 if any stage failed; a failing stage does not hide the others.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
export CARGO_TERM_PROGRESS_WHEN="${CARGO_TERM_PROGRESS_WHEN:-never}"

results=()
failures=0

have_tests() { compgen -G "tests/$1*.rs" >/dev/null; }

stage() { # NAME WHAT COMMAND…
  local name=$1 what=$2 start=$SECONDS verdict=ok
  shift 2
  echo "== $name: $what" >&2
  if "$@"; then :; else
    verdict=FAILED
    failures=$((failures + 1))
  fi
  results+=("$(printf '%-9s %-7s %4d s  %s' "$name" "$verdict" $((SECONDS - start)) "$what")")
}

skip() { # NAME WHY
  results+=("$(printf '%-9s %-7s %6s  %s' "$1" skipped "" "$2")")
}

format() { cargo fmt --all --check; }

# First, so that target/debug/beampilot is the default build afterwards.
embedded() {
  local tests=(--bin beampilot --test cli)
  if have_tests embedded; then tests+=(--test 'embedded*'); fi
  cargo test --locked --profile dev --no-fail-fast --no-default-features "${tests[@]}"
}

# Unit tests compute, so they are built optimised; the others mostly wait, and building them takes longer than running
# them. What the stage embedded has run is not run again: it needs no MPI.
default() {
  local tests=(--bin beampilot) file failed=0
  for file in tests/*.rs; do
    file=$(basename "$file" .rs)
    if [[ $want != *" embedded "* || $file != embedded* ]]; then tests+=(--test "$file"); fi
  done
  # shellcheck disable=SC2086 # The features are several words or none.
  cargo test --locked $BEAMPILOT_FEATURES --lib || failed=1
  # shellcheck disable=SC2086
  cargo test --locked --profile dev --no-fail-fast $BEAMPILOT_FEATURES "${tests[@]}" || failed=1
  return "$failed"
}

# Another MPI means another mpi-sys; cargo does not notice MPICC, so this build has its own target directory. It starts
# as a copy of the default one, in which only mpi-sys, mpi and beampilot are built again.
mpich() (
  use_mpi mpich
  local target=${CARGO_TARGET_DIR:-target} stamp
  stamp="$MPICC $(cksum <Cargo.lock)"
  export CARGO_TARGET_DIR="$target/mpich"
  if [ "$(cat "$CARGO_TARGET_DIR/.beampilot-mpi" 2>/dev/null || true)" != "$stamp" ]; then
    # `|| exit`: a stage runs as a condition, and there bash does not stop at errors by itself.
    rm -rf "$CARGO_TARGET_DIR" || exit
    mkdir -p "$CARGO_TARGET_DIR/debug" || exit
    local part
    for part in .fingerprint build deps; do
      if [ -d "$target/debug/$part" ]; then cp -a "$target/debug/$part" "$CARGO_TARGET_DIR/debug/" || exit; fi
    done
    find "$CARGO_TARGET_DIR/debug" -maxdepth 2 -name '*beampilot-*' -exec rm -rf {} + || exit
    cargo clean --locked -p mpi-sys -p mpi || exit
    echo "$stamp" >"$CARGO_TARGET_DIR/.beampilot-mpi" || exit
  fi
  cargo test --locked --profile dev --no-fail-fast --test 'mpi*'
)

want=" ${*:-format embedded default mpich} "
case "$want" in *" format "*) stage format "rustfmt" format ;; esac
case "$want" in *" embedded "*) stage embedded "without MPI: command line and embedded runs" embedded ;; esac
case "$want" in
  *" default "*)
    # With it kernels are compiled for the cards that matter.
    BEAMPILOT_NVRTC=$(scripts/nvrtc.sh)
    export BEAMPILOT_NVRTC
    stage default "everything${BEAMPILOT_MPIEXEC:+, with $BEAMPILOT_MPIEXEC}" default
    if [ -z "$BEAMPILOT_NVRTC" ]; then skip nvrtc "no libnvrtc: kernels were NOT compiled for any GPU; see scripts/nvrtc.sh"; fi
    ;;
esac
case "$want" in
  *" mpich "*)
    if [ -z "$(first_command mpicc.mpich)" ]; then
      skip mpich "mpicc.mpich is not installed; make setup gets it"
    elif [ "${MPICC:-}" = "$(first_command mpicc.mpich)" ]; then
      skip mpich "it is the default build here"
    elif ! have_tests mpi; then
      skip mpich "there are no tests/mpi*.rs"
    else
      stage mpich "distributed runs with MPICH" mpich
    fi
    ;;
esac

printf '\n'
printf '%s\n' "${results[@]}"
if [ "$failures" -eq 0 ]; then
  echo "test: all passed in $SECONDS s"
else
  echo "test: $failures of ${#results[@]} stages FAILED ($SECONDS s)"
  exit 1
fi
