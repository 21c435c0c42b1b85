#!/usr/bin/env bash
# One run on a TPU slice of a GKE cluster, as a JobSet (https://jobset.sigs.k8s.io), started again after a preemption.
#
#   launch/gke.sh --name=rae --image=REGISTRY/rae_jax --accelerator=tpu-v5p-slice --topology=4x4x8 --chips=4 \
#       --claim=rae-disk -- --config=configs/dith_xl.py --workdir=/disk/rae
#
#   --name=NAME             of the JobSet
#   --image=IMAGE           a container with this code in /app and its requirements installed
#   --accelerator=KIND      of the node pool, such as tpu-v5p-slice
#   --topology=AxB[xC]      of the slice, in chips
#   --chips=N               of each host; 4 by default
#   --claim=NAME            PersistentVolumeClaim that every host mounts as /disk
#   --restarts=N            at most; 100 by default
#   --dry_run               print the manifest and do nothing
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

name='' image='' accelerator='' topology='' chips=4 claim='' restarts=100
parse 'name image accelerator topology chips claim restarts' "$@"
need name image accelerator topology claim
plain_name name accelerator claim
whole_number chips restarts
[[ $image =~ ^[a-z0-9./:@_-]+$ ]] || fail "--image=$image is no name of an image"
[[ $topology =~ ^[1-9][0-9]*x[1-9][0-9]*(x[1-9][0-9]*)?$ ]] || fail "--topology=$topology is not AxB or AxBxC"
all=$((${topology//x/*}))
((all % chips == 0)) || fail "--topology=$topology has $all chips, which hosts of --chips=$chips do not divide"
need_run
need_program kubectl "see https://kubernetes.io/docs/tasks/tools"

arguments=$(printf "                - '%s'\n" "${rest[@]//\'/\'\'}")
manifest=$(
  cat << END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: $((all / chips))
          completions: $((all / chips))
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
              containers:
              - name: run
                image: $image
                workingDir: /app
                command: [python, -m, rae_jax.main, --distributed]
                args:
$arguments
                resources:
                  limits:
                    google.com/tpu: $chips
                volumeMounts:
                - name: disk
                  mountPath: /disk
              volumes:
              - name: disk
                persistentVolumeClaim:
                  claimName: $claim
END
)
if ((dry_run)); then echo "$manifest"; else kubectl apply -f - <<< "$manifest"; fi
