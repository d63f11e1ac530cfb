#!/usr/bin/env bash
# The cadence of the published run, scaled: does the lag stay flat while points keep arriving?
#
#   benches/laue-cadence.sh FOLDER [POINTS] [SECONDS] [ROWS] [COLUMNS]
#
# The published run had a point of 2048 x 2048 pixels and 401 frames every 72 s on fifty nodes of 32 cores. A point here is
# smaller; SECONDS is how often one arrives. Makes POINTS points in advance, moves one into the watched folder every SECONDS while
# one pilot runs, and writes FOLDER/lag.csv (point, lag in seconds from its last byte to its published bundle) and FOLDER/lag.svg.
set -euo pipefail
folder=${1:?folder}; points=${2:-100}; every=${3:-2}; rows=${4:-96}; columns=${5:-96}
program=${BEAMPILOT:-target/release/beampilot}
mkdir -p "$folder/incoming" "$folder/made"
for ((i = 0; i < points; i++)); do
  name=$(printf 'point_%03d.h5' "$i")
  [ -f "$folder/made/$name" ] || "$program" -q synth laue "$folder/made/$name" --rows "$rows" --columns "$columns" --spots 60 \
    --background 2 --frames 401 --seed "$i" --sample $((i % 10 * 2)) 0 $((i / 10 * 2)) --configuration "$folder/config.yml"
done
cat >"$folder/campaign.toml" <<TOML
[campaign]
name = "cadence"
state = "state"
[[stream]]
name = "34ide"
watch = "incoming"
complete = { rule = "renamed", temporary = "*.part" }
since = "all"
technique = "laue"
output = "results"
[stream.recipe]
configuration = "config.yml"
threshold = 5
footprint = { degree = 3, knots = 2 }
TOML
"$program" -q run "$folder/campaign.toml" >"$folder/pilot.log" 2>&1 &
pilot=$!
trap 'kill -TERM $pilot 2>/dev/null || true' EXIT
sleep 3
for ((i = 0; i < points; i++)); do
  name=$(printf 'point_%03d.h5' "$i")
  # A copy, so that its times are those of its arrival.
  cp "$folder/made/$name" "$folder/incoming/$name.part" && mv "$folder/incoming/$name.part" "$folder/incoming/$name"
  sleep "$every"
done
for _ in $(seq 600); do
  [ "$(find "$folder/state/published" -name '*.json' 2>/dev/null | wc -l)" -ge "$points" ] && break
  sleep 0.5
done
kill -TERM $pilot && wait $pilot || true
trap - EXIT
python3 - "$folder" "$every" <<'PY'
import json, pathlib, sys
folder, every = pathlib.Path(sys.argv[1]), float(sys.argv[2])
done = sorted((json.loads(p.read_text()) for p in (folder / "state/published").glob("*.json")), key=lambda r: r["last_byte_ms"])
lags = [(r["published_ms"] - r["last_byte_ms"]) / 1000 for r in done]
(folder / "lag.csv").write_text("point,lag_s\n" + "".join(f"{i},{l:.3f}\n" for i, l in enumerate(lags)))
top, w, h = max(lags) * 1.15, 760, 260
x = lambda i: 50 + i * (w - 60) / max(len(lags) - 1, 1)
y = lambda l: h - 40 - l * (h - 60) / top
line = " ".join(f"{x(i):.1f},{y(l):.1f}" for i, l in enumerate(lags))
labels = "".join(f'<text x="44" y="{y(v):.0f}" text-anchor="end">{v:.1f}</text>' for v in (0, top / 2, top))
(folder / "lag.svg").write_text(
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    f'<polyline fill="none" stroke="#1f77b4" stroke-width="2" points="{line}"/>{labels}'
    f'<text x="{w/2}" y="{h-8}" text-anchor="middle">point, one every {every:g} s</text><text x="8" y="14">lag, s</text></svg>')
half = len(lags) // 2
mean = lambda v: sum(v) / len(v)
print(f"{len(lags)} points; lag mean {mean(lags):.2f} s, first half {mean(lags[:half]):.2f} s, second half {mean(lags[half:]):.2f} s, largest {max(lags):.2f} s")
PY
