#!/usr/bin/env bash
# Starts a command again as long as its end looks like a preemption. launch/tpu.sh runs the run in it, on every host.
#
#   launch/again.sh --workdir=/disk/rae -- .venv/bin/python -m rae_jax.main --distributed --workdir=/disk/rae ...
#
#   --workdir=DIR   of the run: what is saved there is its progress
#   --attempts=N    ends in a row without progress after which it is not started again; 5 by default
#   --pause=N       seconds before it is started again; 10 by default
#   --dry_run       print the command and do nothing
#
# Status 0 is the end, and any other up to 128 an error, but 75: asked to stop, and saved. A command that a signal ended
# was killed, for want of memory or by the host's own end, or ended by JAX because a process on another host has gone.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

workdir='' attempts=5 pause=10
parse 'workdir attempts pause' "$@"
need workdir
whole_number attempts
[[ $pause =~ ^[0-9]+$ ]] || fail "--pause=$pause is not a number of seconds"
((${#rest[@]})) || fail "no command after --"
if ((dry_run)); then run "${rest[@]}"; exit 0; fi

# Finished stages, checkpoints, and samples under way.
progress() {
  find "$workdir" -maxdepth 3 \( -name finished.json -o -name '*.partial.json' -o -path '*/checkpoints/[0-9]*' \) \
    -printf '%P %T@\n' 2> /dev/null | sort | cksum
}

asked=0 running=''
# shellcheck disable=SC2329  # called by the trap
stop() {
  asked=1
  kill -TERM "$running" 2> /dev/null || true
}
trap stop INT TERM

failures=0
while :; do
  before=$(progress)
  "${rest[@]}" &
  running=$!
  status=0
  while :; do
    status=0
    wait "$running" || status=$?
    kill -0 "$running" 2> /dev/null || break # a signal ends `wait`, not the process
  done
  ((status)) || exit 0
  said="$(hostname): the run $(how_ended "$status")"
  if ((asked || (status < 129 && status != 75))); then
    echo "$said; not started again" >&2
    exit "$status"
  fi
  failures=$((failures + 1))
  [[ $(progress) == "$before" ]] || failures=0
  if ((failures >= attempts)); then
    echo "$said, $failures times in a row with nothing new saved in $workdir; not started again. See what it said" \
      "before, on this host and on the others" >&2
    exit "$status"
  fi
  echo "$said; started again in $pause s" >&2
  sleep "$pause"
done
