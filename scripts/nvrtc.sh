#!/usr/bin/env bash
# Prints the path of a libnvrtc.so.12, with which kernels can be compiled where there is no GPU; nothing, and the reason on
# standard error, when there is none to be had. Looks in $BEAMPILOT_NVRTC, the loader's cache, CUDA_HOME and target/nvrtc;
# fetches it from PyPI into the latter (a wheel of 88 MB, once), unless BEAMPILOT_OFFLINE is set.
set -euo pipefail
cd "$(dirname "$0")/.."

package=nvidia-cuda-nvrtc-cu12==12.8.93
folder=${CARGO_TARGET_DIR:-target}/nvrtc

found() {
  if [ -n "$1" ] && [ -e "$1" ]; then
    realpath -s "$1"
    exit 0
  fi
}

found "${BEAMPILOT_NVRTC:-}"
found "$(ldconfig -p 2>/dev/null | awk '$1 == "libnvrtc.so.12" { print $NF; exit }')"
for root in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda; do
  if [ -n "$root" ]; then found "$root/lib64/libnvrtc.so.12"; fi
done
found "$folder/libnvrtc.so.12"

if [ -n "${BEAMPILOT_OFFLINE:-}" ]; then
  echo "nvrtc: none here, and BEAMPILOT_OFFLINE is set" >&2
  exit 0
fi
python=$(command -v python3 || true)
if [ -z "$python" ] || ! "$python" -m pip --version >/dev/null 2>&1; then
  echo "nvrtc: none here, and no pip to fetch $package with" >&2
  exit 0
fi
part=$folder.$$
trap 'rm -rf "$part"' EXIT
mkdir -p "$part/wheel"
if ! "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d "$part/wheel" "$package" >&2; then
  echo "nvrtc: none here, and $package cannot be fetched" >&2
  exit 0
fi
"$python" - "$part" <<'PYTHON'
import pathlib, sys, zipfile

part = pathlib.Path(sys.argv[1])
(wheel,) = (part / "wheel").glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        file = name.rsplit("/", 1)[-1]
        if file.startswith(("libnvrtc.so", "libnvrtc-builtins.so")):
            (part / file).write_bytes(archive.read(name))
PYTHON
rm -rf "$part/wheel" "$folder"
mv "$part" "$folder"
found "$folder/libnvrtc.so.12"
echo "nvrtc: $package holds no libnvrtc.so.12" >&2
