#!/usr/bin/env bash
# One run over several processes of this machine, on the CPU or with the GPUs divided among them.
#
#   launch/local.sh --processes=2 -- --config=configs/digits.py:tiny --workdir=runs/two
#
#   --processes=N   how many
#   --devices=N     devices that each has: CPU devices made for testing (--gpus=0), or GPUs (--gpus=1); 1 by default
#   --gpus=0|1      whether to use GPUs; 0 by default
#   --dry_run       print the commands and do nothing
#
# Ctrl-C or SIGTERM asks every process to save and stop; a second one kills them. How each ended is said, and the exit
# status is 75 if the run is to be started again: it was asked to stop, or a process was killed and the others left.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

processes='' devices=1 gpus=0
parse 'processes devices gpus' "$@"
need processes
whole_number processes devices
[[ $gpus == [01] ]] || fail "--gpus=$gpus is not 0 or 1"
need_run

free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
if ((dry_run)); then port=PORT; else port=$(python -c "$free_port"); fi

started=()
asked=0
# shellcheck disable=SC2329  # called by the trap
stop() {
  local signal=TERM
  ((asked)) && signal=KILL
  asked=1
  kill -s "$signal" "${started[@]}" 2> /dev/null || true
}
trap stop INT TERM

for ((i = 0; i < processes; i++)); do
  if ((gpus)); then
    where=("CUDA_VISIBLE_DEVICES=$(seq -s, $((i * devices)) $(((i + 1) * devices - 1)))")
  else
    where=(JAX_PLATFORMS=cpu "XLA_FLAGS=${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices")
  fi
  command=(env "${where[@]}" python -m rae_jax.main --distributed "--coordinator_address=127.0.0.1:$port"
    "--num_processes=$processes" "--process_id=$i" "${rest[@]}")
  if ((dry_run)); then run "${command[@]}"; else "${command[@]}" & started+=($!); fi
done

status=0 number=0
for process in ${started[@]+"${started[@]}"}; do
  while :; do
    ended=0
    wait "$process" || ended=$?
    kill -0 "$process" 2> /dev/null || break # a signal ends `wait`, not the process
  done
  if ((ended)); then echo "process $number $(how_ended "$ended")" >&2; fi
  if ((ended == 75 || ended > 128)); then ((status)) || status=75; elif ((ended)); then status=$ended; fi
  number=$((number + 1))
done
exit "$status"
