#!/bin/sh
# All items are done: $1 has one folder an item, in order. What is written here is the result.
set -eu
cat "$1"/item-*/sum.txt >sums.txt
awk '{ total += $1 } END { printf "%.6f\n", total }' sums.txt >total.txt
