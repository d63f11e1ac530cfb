#!/bin/bash
# A shift as a chain of one-hour jobs, submitted at once:  polaris-shift.sh CAMPAIGN.toml HOURS [START] [qsub options]
# START is when the first begins, [[CC]YY]MMDDhhmm as qsub -a takes it, or "now". Each job may start from its hour on,
# and not before the last has ended, however that ended. Prints one job id a line.
#   polaris-shift.sh /eagle/proj/campaign.toml 8 202611252000 -A proj -l select=10:system=polaris
set -euo pipefail
campaign=$(realpath "$1") hours=$2 start=${3:-now}
shift "$(($# < 3 ? $# : 3))"
here=$(cd "$(dirname "$0")" && pwd)
seconds() { # [[CC]YY]MMDDhhmm
  local t=$1
  case ${#t} in 8) t=$(date +%Y)$t ;; 10) t=$(date +%C)$t ;; esac
  date -d "${t:0:8} ${t:8:4}" +%s
}
if [ "$start" = now ]; then first=$(date +%s); else first=$(seconds "$start"); fi
before=()
for ((hour = 0; hour < hours; hour++)); do
  when=(-a "$(date -d "@$((first + hour * 3600))" +%Y%m%d%H%M.%S)")
  if [ "$hour" -eq 0 ] && [ "$start" = now ]; then when=(); fi
  job=$(qsub "${when[@]}" "${before[@]}" -v "CAMPAIGN=$campaign" "$@" "$here/polaris-demand.pbs")
  echo "$job"
  before=(-W "depend=afterany:$job")
done
