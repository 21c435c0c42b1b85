#!/usr/bin/env bash
# One run on a TPU slice of Google Cloud, all of its hosts.
#
#   launch/tpu.sh up --name=rae --zone=us-east5-a --type=v5p-128 -- --config=configs/dith_xl.py --workdir=/disk/rae
#
#   create    the slice                       logs     follows the log of the first host
#   copy      this code, to every host        stop     asks the run to save and stop
#   install   Python packages, on every host  resume   after a preemption: a new slice if the old is gone, and `up`
#   run       starts the run on every host    delete   the slice
#   up        create, copy, install, run
#
#   --name=NAME --zone=ZONE   of the slice
#   --type=TYPE               accelerator type, as v5p-128 (create, up, resume)
#   --version=VERSION         of the TPU software; by default the one for the type
#   --spot=0|1                cheaper, and may be taken away; 0 by default
#   --dry_run                 print the commands and do nothing
#
# The working directory must be on a disk that every host sees under the same name, and that renames directories:
# Filestore (NFS), or with Cloud Storage FUSE a bucket made with a hierarchical namespace. A flat bucket refuses renames;
# with --rename-dir-limit it makes them, but not at once, and a kill in between leaves half a checkpoint.
# launch/again.sh starts the run again on its host as long as it ends as if preempted, and it continues.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

action=${1:-}
[[ $action == --help || -z $action ]] && { usage; exit 0; }
shift
name='' zone='' type='' version='' spot=0
parse 'name zone type version spot' "$@"
need name zone
plain_name name
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || fail "--zone=$zone is no zone, such as us-east5-a"
[[ $spot == [01] ]] || fail "--spot=$spot is not 0 or 1"
need_program gcloud "see https://cloud.google.com/sdk/docs/install"

on_all_hosts() {
  run gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=all "--command=$1"
}

create() {
  need type
  [[ $type =~ ^v[0-9]+[a-z]*-[0-9]+$|^v5litepod-[0-9]+$ ]] || fail "--type=$type is no accelerator type, such as v5p-128"
  if [[ -z $version ]]; then
    case $type in
      v4-*) version=tpu-ubuntu2204-base ;;
      v5p-*) version=v2-alpha-tpuv5 ;;
      v5litepod-*) version=v2-alpha-tpuv5-lite ;;
      v6e-*) version=v2-alpha-tpuv6e ;;
      *) fail "no TPU software version is known for --type=$type; name one with --version" ;;
    esac
  fi
  local spot_flag=()
  ((spot)) && spot_flag=(--spot)
  run gcloud compute tpus tpu-vm create "$name" "--zone=$zone" "--accelerator-type=$type" "--version=$version" \
    ${spot_flag[@]+"${spot_flag[@]}"}
}

copy() {
  local archive
  archive=$(if ((dry_run)); then echo /tmp/rae_jax.tar.gz; else mktemp --suffix=.tar.gz; fi)
  run tar --exclude-vcs --exclude=runs --exclude=.venv --exclude=__pycache__ -czf "$archive" .
  run gcloud compute tpus tpu-vm scp "$archive" "$name:rae_jax.tar.gz" "--zone=$zone" --worker=all
  on_all_hosts 'mkdir -p rae_jax && tar -xzf rae_jax.tar.gz -C rae_jax'
  ((dry_run)) || rm "$archive"
}

install() {
  on_all_hosts 'cd rae_jax && python3 -m venv .venv && .venv/bin/pip install --quiet -r requirements.txt "jax[tpu]"'
}

start() {
  need_run
  local word workdir=''
  for word in "${rest[@]}"; do [[ $word != --workdir=* ]] || workdir=$word; done
  on_all_hosts "cd rae_jax && nohup launch/again.sh $(quoted "$workdir") -- .venv/bin/python -m rae_jax.main \
--distributed $(quoted "${rest[@]}") > run.log 2>&1 < /dev/null &"
}

up() {
  need_run
  create
  copy
  install
  start
}

case $action in
  create | copy | install | up) "$action" ;;
  run) start ;;
  logs) run gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=0 '--command=tail -n 100 -F rae_jax/run.log' ;;
  # What starts it again asks it to stop, and then does not.
  stop) on_all_hosts "pkill -TERM -f 'launch/[a]gain.sh'" ;;
  delete) run gcloud compute tpus tpu-vm delete "$name" "--zone=$zone" --quiet ;;
  resume)
    need_run
    state=$(run gcloud compute tpus tpu-vm describe "$name" "--zone=$zone" '--format=value(state)') || state=GONE
    ((dry_run)) && { echo "$state"; state=PREEMPTED; }
    case $state in
      READY) start ;;
      GONE) up ;;
      PREEMPTED | TERMINATED)
        run gcloud compute tpus tpu-vm delete "$name" "--zone=$zone" --quiet
        up
        ;;
      *) fail "$name is $state; try again when it is READY, or delete it" ;;
    esac
    ;;
  *) fail "there is no action '$action'; there are create, copy, install, run, up, logs, stop, resume, delete" ;;
esac
