#!/usr/bin/env bash
# Asks Google Cloud for a TPU slice and waits in its queue; `launch/tpu.sh` takes over when it is there.
#
#   launch/queued_resources.sh create --name=rae --zone=us-east5-a --type=v5p-128 --version=v2-alpha-tpuv5
#   launch/queued_resources.sh wait --name=rae --zone=us-east5-a && launch/tpu.sh copy --name=rae --zone=us-east5-a
#
#   create   puts the request in the queue    wait     returns when the slice is there
#   status   its state                        delete   the request, and the slice
#
#   --name=NAME --zone=ZONE --type=TYPE --version=VERSION   of the slice
#   --spot=0|1        cheaper, and may be taken away; 0 by default
#   --valid_for=TIME  give up after, such as 6h; by default never
#   --dry_run         print the commands and do nothing
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

action=${1:-}
[[ $action == --help || -z $action ]] && { usage; exit 0; }
shift
name='' zone='' type='' version='' spot=0 valid_for=''
parse 'name zone type version spot valid_for' "$@"
need name zone
plain_name name
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || fail "--zone=$zone is no zone, such as us-east5-a"
[[ $spot == [01] ]] || fail "--spot=$spot is not 0 or 1"
need_program gcloud "see https://cloud.google.com/sdk/docs/install"

state=(gcloud compute tpus queued-resources describe "$name" "--zone=$zone" '--format=value(state.state)')
case $action in
  create)
    need type version
    [[ -z $valid_for || $valid_for =~ ^[1-9][0-9]*[smhd]$ ]] || fail "--valid_for=$valid_for is no time, such as 6h"
    more=()
    ((spot)) && more+=(--spot)
    [[ -n $valid_for ]] && more+=("--valid-until-duration=$valid_for")
    run gcloud compute tpus queued-resources create "$name" "--node-id=$name" "--zone=$zone" \
      "--accelerator-type=$type" "--runtime-version=$version" ${more[@]+"${more[@]}"}
    ;;
  status) run "${state[@]}" ;;
  wait)
    if ((dry_run)); then
      run "${state[@]}"
    else
      while now=$("${state[@]}") && [[ $now != ACTIVE ]]; do
        [[ $now == FAILED || $now == SUSPENDED ]] && fail "the request $name is $now; delete it and ask again"
        echo "$now"
        sleep 60
      done
    fi
    ;;
  delete) run gcloud compute tpus queued-resources delete "$name" "--zone=$zone" --force --quiet ;;
  *) fail "there is no action '$action'; there are create, status, wait, delete" ;;
esac
