#!/bin/bash
# A pilot on this machine, or on a few that ssh reaches:  workstation.sh CAMPAIGN.toml [options of beampilot launch]
#   workstation.sh campaign.toml --ranks-per-node 4
#   workstation.sh campaign.toml --hosts desk1,desk2 --until +8h
# Ctrl-C drains. 75 means "again later", and is tried again; everything else is for a person to look at.
set -uo pipefail
export PATH="${BEAMPILOT_HOME:-$HOME/beampilot}/bin:$PATH"
while :; do
  beampilot launch "$@" --site workstation
  code=$?
  if [ "$code" -ne 75 ]; then exit "$code"; fi
  sleep "${BEAMPILOT_RETRY_S:-60}"
done
