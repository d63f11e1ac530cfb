#!/usr/bin/env bash
# Packs what proves beampilot on a GPU elsewhere: target/gpu-check/ and target/gpu-check.tar.gz. The far side needs an NVIDIA
# driver, cuFFT (any CUDA 11, 12 or 13, or the PyPI packages), a shell and nothing else: no network, no Rust, no MPI, no HDF5.
#
# In it: the executable without MPI, the libraries it is linked with, its kernels compiled for sm_80 and sm_90, run.sh. cuFFT
# is not: it alone is four times the size of everything else, and wherever CUDA is used it is there.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

target=${CARGO_TARGET_DIR:-target}
bundle=$target/gpu-check
cargo build --release --locked --no-default-features --target-dir "$target/embedded"
rm -rf "$bundle"
mkdir -p "$bundle/lib" "$bundle/libc" "$bundle/kernels"
cp "$target/embedded/release/beampilot" "$bundle/beampilot"
strip --strip-debug "$bundle/beampilot"

# The libraries it is linked with, and the C library's own for systems older than this one.
ldd "$bundle/beampilot" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | while read -r library; do
  case "$(basename "$library")" in
    # Two C libraries in one process are one too many: these are used only together with their own loader.
    libc.so.* | libm.so.* | libdl.so.* | libpthread.so.* | librt.so.* | libresolv.so.*) cp -L "$library" "$bundle/libc/" ;;
    *) cp -L "$library" "$bundle/lib/" ;;
  esac
done
loader=$(ldd "$bundle/beampilot" | awk '/ld-linux/ { print $1; exit }')
cp -L "$loader" "$bundle/libc/"

nvrtc=$(scripts/nvrtc.sh)
if [ -n "$nvrtc" ]; then
  LD_LIBRARY_PATH="$(dirname "$nvrtc")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" BEAMPILOT_KERNEL_CACHE="$(realpath "$bundle")/kernels" \
    "$bundle/beampilot" bench gpu --compile-for sm_80 sm_90
else
  echo "gpu-bundle: no libnvrtc here: kernels are NOT compiled ahead, the far side has to have one" >&2
fi
cp scripts/gpu-run.sh "$bundle/run.sh"
cp benches/peers/gpu.py "$bundle/peers.py"
tar -C "$target" -czf "$bundle.tar.gz" gpu-check
size=$(stat -c %s "$bundle.tar.gz")
echo "gpu-bundle: $bundle.tar.gz, $((size >> 20)) MiB"
if [ "$size" -gt $((64 << 20)) ]; then
  echo "gpu-bundle: larger than 64 MiB" >&2
  exit 1
fi
