#!/bin/sh
# One item: sums 100 numbers of the scan $1 from line $2 on, into the working folder, which is {out}.
set -eu
awk -v first="$2" 'NR >= first && NR < first + 100 { sum += $1 } END { printf "%.6f\n", sum }' "$1" >sum.txt
