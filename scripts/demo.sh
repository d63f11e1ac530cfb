#!/usr/bin/env bash
# Plays a beamline: scans are written slowly and in place into a watched folder while a pilot runs, first in one
# process, then as `mpiexec -n 4`. Ends within two minutes with a table of the scans and the path of a preview picture.
#
# Everything happens in demo-run/, which is made afresh. With ../shared/data/tomo/tooth.h5 there, a measured scan is
# among them. Exit 0: everything was published; 1: not, and the last log lines say why.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

beampilot=$(realpath -m "${CARGO_TARGET_DIR:-target}")/release/beampilot
tooth=../shared/data/tomo/tooth.h5
root=$PWD/demo-run
scans=3           # synthetic ones
write_s=8         # how long each takes to arrive
stagger_s=2       # between two beginnings
limit_s=115       # for everything
children=()

say() { printf '%s\n' "demo: $*" >&2; }

alive() { kill -0 "$1" 2>/dev/null; }

# A process and all below it, the process itself last.
descendants() {
  local child
  for child in $(cat "/proc/$1/task/$1/children" 2>/dev/null); do descendants "$child"; done
  echo "$1"
}

cleanup() {
  trap - INT TERM EXIT
  local pid
  for pid in "${children[@]}"; do
    # shellcheck disable=SC2046 # One number a word.
    if alive "$pid"; then kill -TERM $(descendants "$pid") 2>/dev/null || true; fi
  done
  for pid in "${children[@]}"; do
    for _ in 1 2 3 4 5 6 7 8 9 10; do
      if ! alive "$pid"; then break; fi
      sleep 0.3
    done
    if alive "$pid"; then
      # shellcheck disable=SC2046 # One number a word.
      kill -KILL $(descendants "$pid") 2>/dev/null || true
    fi
  done
}
trap cleanup EXIT
trap 'say interrupted; exit 130' INT TERM

campaign() {
  cat <<TOML
# Written by scripts/demo.sh.
[campaign]
name = "demo"
state = "state"

[[stream]]
name = "tomo"
watch = "incoming"
pattern = "**/*.h5"
since = "all"
complete = { rule = "settled", quiet = "2s" }
technique = "tomography"
output = "results"
deadline = "2m"
TOML
}

# Copies a file as a slow transfer does: in place, piece by piece.
slow_copy() { # FROM TO SECONDS
  local piece=65536 size i pieces
  size=$(wc -c <"$1")
  pieces=$(((size + piece - 1) / piece))
  for ((i = 0; i < pieces; i++)); do
    dd if="$1" of="$2" bs=$piece skip=$i seek=$i count=1 conv=notrunc status=none
    sleep "$(awk -v s="$3" -v n="$pieces" 'BEGIN { print s / n }')"
  done
}

beamline() { # INCOMING
  local i
  # shellcheck disable=SC2046 # One number a word.
  trap 'kill $(jobs -p) 2>/dev/null; exit 1' INT TERM
  for ((i = 1; i <= scans; i++)); do
    "$beampilot" -q synth tomography "$1/scan_00$i.h5" --size 256 --angles 180 --slices 64 \
      --center "$((124 + 2 * i))" --noise 20000 --rings --seed "$i" --slow "$write_s" &
    sleep "$stagger_s"
  done
  if [ -f "$tooth" ]; then slow_copy "$tooth" "$1/tooth.h5" 4; fi
  wait
}

published() { # STATUS.json
  grep -c '"published_ms":' "$1" || true
}

# Ends the pilot as a scheduler does, but spares mpiexec, which would not wait for its ranks.
drain() { # PID
  local pid
  for pid in $(descendants "$1"); do
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = beampilot ]; then kill -TERM "$pid" 2>/dev/null || true; fi
  done
  wait "$1"
}

give_up() { # DIR WHY
  say "$2"
  say "the last lines of $1/pilot.log:"
  tail -n 30 "$1/pilot.log" >&2 || true
  say "what its status says:"
  "$beampilot" -q status "$1/campaign.toml" >&2 || true
  exit 1
}

play() { # NAME UNTIL COMMAND…
  local name=$1 until=$2 dir=$root/$1 wanted=$scans pilot line="" last="" done_count
  shift 2
  mkdir -p "$dir/incoming"
  campaign >"$dir/campaign.toml"
  if [ -f "$tooth" ]; then wanted=$((wanted + 1)); fi
  if ! "$beampilot" doctor "$dir/campaign.toml" >"$dir/doctor.txt"; then
    cat "$dir/doctor.txt" >&2
    say "this machine is not ready; see above"
    exit 1
  fi

  say "$name: $* run demo-run/$name/campaign.toml; $wanted scans are on their way"
  "$@" run "$dir/campaign.toml" > >(tee "$dir/pilot.out") 2> >(tee "$dir/pilot.log" >&2) &
  pilot=$!
  children+=("$pilot")
  beamline "$dir/incoming" &
  children+=("$!")

  while :; do
    sleep 1
    if ! alive "$pilot"; then give_up "$dir" "$name: the pilot ended by itself"; fi
    done_count=0
    if "$beampilot" -q status "$dir/campaign.toml" --json >"$dir/status.json" 2>"$dir/status.log"; then
      done_count=$(published "$dir/status.json")
    fi
    line="$name: $(find "$dir/incoming" -name '*.h5' | wc -l) of $wanted scans begun, $done_count published"
    if [ "$line" != "$last" ]; then
      say "$SECONDS s  $line"
      last=$line
    fi
    if [ "$done_count" -ge "$wanted" ]; then break; fi
    if [ "$SECONDS" -ge "$until" ]; then
      give_up "$dir" "$name: only $done_count of $wanted scans were published in time"
    fi
  done
  say "$name: all published; telling the pilot to drain"
  drain "$pilot" || give_up "$dir" "$name: the pilot ended with $?"
}

[ -x "$beampilot" ] || { say "no $beampilot; run make build"; exit 1; }
rm -rf "$root"
mkdir -p "$root"
rounds=(embedded)
play embedded $((limit_s / 2)) "$beampilot"
if [ -n "$BEAMPILOT_FEATURES" ] || [ -z "$BEAMPILOT_MPIEXEC" ]; then
  say "no MPI here, so no second round; make setup says how to get one"
else
  play mpiexec "$limit_s" "$BEAMPILOT_MPIEXEC" -n 4 "$beampilot"
  rounds+=(mpiexec)
fi

for round in "${rounds[@]}"; do
  printf '\n%s\n' "== $round"
  "$beampilot" -q status "$root/$round/campaign.toml"
done
preview=$(find "$root/embedded/results" -path '*preview*' -name '*.png' | sort | tail -n 1)
printf '\n%s\n' "preview: ${preview:-none was written}"
say "done in $SECONDS s; everything is in demo-run/"
[ -n "$preview" ]
