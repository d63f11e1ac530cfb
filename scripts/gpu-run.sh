#!/usr/bin/env bash
# Runs on the machine with the GPU, out of the folder that scripts/gpu-bundle.sh packed: ./run.sh [REPORT [OPTION…]]
#
# Checks, measures, and writes the report (gpu-results.md here by default); options as of `beampilot bench gpu`, such as
# --quick. Ends as `beampilot bench gpu` does: 0 when everything
# agrees, 65 when something does not, 69 when no GPU can be used.
set -euo pipefail
report=$(realpath -m "${1:-gpu-results.md}")
options=("${@:2}")
here=$(dirname "$(realpath "$0")")
cd "$here"

# Where CUDA's libraries may be: a toolkit, the PyPI packages of any python3 here.
path="$here/lib"
for root in "${CUDA_HOME:-}" "${CUDA_PATH:-}" "${NVIDIA_PATH:-}" /usr/local/cuda /opt/nvidia/hpc_sdk/Linux_x86_64/*/math_libs; do
  if [ -n "$root" ] && [ -d "$root/lib64" ]; then path="$path:$root/lib64"; fi
done
if command -v python3 >/dev/null; then
  path="$path$(python3 - <<'PYTHON'
import glob, site, sys
folders = {f for f in [*sys.path, *site.getsitepackages(), site.getusersitepackages()] if f}
print("".join(":" + f for s in sorted(folders) for f in sorted(glob.glob(s + "/nvidia/*/lib"))), end="")
PYTHON
  )"
fi
# Names with another version than ours are as good: what is called of them has not changed since CUDA 11.
mkdir -p shim
IFS=: read -ra folders <<<"$path"
for name in cufft nvrtc; do
  for folder in "${folders[@]}"; do
    found=$(find "$folder" -maxdepth 1 -name "lib$name.so.[0-9]*" 2>/dev/null | sort | head -n 1)
    if [ -n "$found" ]; then
      ln -sf "$found" "shim/lib$name.so"
      break
    fi
  done
done
path="$here/shim:$path"
export LD_LIBRARY_PATH="$path${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export BEAMPILOT_KERNEL_CACHE="$here/kernels" HDF5_USE_FILE_LOCKING=FALSE

# With this system's C library if it is new enough, else with the one that came along.
run=(./beampilot)
if ! ./beampilot --version >/dev/null 2>&1; then
  run=("$(echo libc/ld-linux*)" --library-path "$here/libc:$LD_LIBRARY_PATH" ./beampilot)
fi

code=0
"${run[@]}" bench gpu --report "$report" "${options[@]}" || code=$?
if [ "$code" -eq 0 ] && command -v python3 >/dev/null; then
  python3 peers.py >>"$report" || echo "run.sh: the peers' script failed" >&2
fi
echo "run.sh: $report, exit code $code"
exit "$code"
