#!/bin/sh
# Publishes to the server at AQUIFER_URL, and receives what was published.
#
#   exercise.sh PROGRAM TOPIC
set -eu
aquifer="$1" topic="$2"
printf 'first\nsecond\nthird\n' | "$aquifer" produce "$topic" >/dev/null
received="$("$aquifer" consume "$topic" --subscription test --from earliest --count 3)"
if [ "$received" != "$(printf 'first\nsecond\nthird')" ]; then
  echo "$topic: received '$received'" >&2
  exit 1
fi
