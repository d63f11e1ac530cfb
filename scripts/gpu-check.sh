#!/usr/bin/env bash
# Runs the bundle of scripts/gpu-bundle.sh where the card is: on GPU_HOST through ssh and tar, or here; the report becomes
# docs/gpu-results.md. Where there is no card it says what to do and ends with 69.
set -euo pipefail
cd "$(dirname "$0")/.."

bundle=${CARGO_TARGET_DIR:-target}/gpu-check
report=docs/gpu-results.md
code=0
if [ -n "${GPU_HOST:-}" ]; then
  # shellcheck disable=SC2029 # The folder is made here and meant there.
  ssh "$GPU_HOST" 'rm -rf gpu-check && tar -xzf - && { ./gpu-check/run.sh gpu-check/gpu-results.md >&2 || echo "exit $?" >&2; } && cat gpu-check/gpu-results.md' \
    <"$bundle.tar.gz" >"$bundle/fetched.md" || code=$?
  if [ "$code" -ne 0 ] || [ ! -s "$bundle/fetched.md" ]; then
    echo "gpu-check: no report came back from $GPU_HOST" >&2
    exit 69
  fi
  mv "$bundle/fetched.md" "$report"
else
  "$bundle/run.sh" "$bundle/gpu-results.md" || code=$?
  if [ "$code" -eq 69 ]; then
    echo "gpu-check: no GPU here. Copy $bundle.tar.gz to a machine with one, unpack it, run ./gpu-check/run.sh, and put" >&2
    echo "gpu-check: its gpu-results.md in place of $report; or: make gpu-check GPU_HOST=user@machine" >&2
    exit 69
  fi
  if [ -s "$bundle/gpu-results.md" ]; then cp "$bundle/gpu-results.md" "$report"; fi
fi
head -n 1 "$report"
exit "$code"
