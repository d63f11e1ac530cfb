#!/bin/sh
# Prints one item a line: here, the parts that a text scan is cut into. $1 is the scan.
set -eu
lines=$(wc -l <"$1")
if [ "$lines" -eq 0 ]; then
    echo "$1 has no lines; record it again" >&2
    exit 65 # the scan's fault: quarantined with this reason
fi
first=1
while [ "$first" -le "$lines" ]; do
    echo "$first"
    first=$((first + 100))
done
