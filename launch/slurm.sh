#!/usr/bin/env bash
# One run over GPU nodes of a Slurm cluster, one process a node.
#
#   launch/slurm.sh --name=rae --nodes=4 --gpus=8 --time=24:00:00 -- --config=configs/dith_xl.py --workdir=/shared/rae
#
#   --name=NAME        of the job
#   --nodes=N          how many
#   --gpus=N           of each node
#   --cpus=N           of each node, for decoding images; 16 by default
#   --time=HH:MM:SS    limit of the job; two minutes before it the run saves, and is queued again
#   --restarts=N       at most; 100 by default
#   --partition=NAME   the cluster's default if left out
#   --dry_run          print the job and do nothing
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

name='' nodes='' gpus='' cpus=16 time='' restarts=100 partition=''
parse 'name nodes gpus cpus time restarts partition' "$@"
need name nodes gpus time
plain_name name
whole_number nodes gpus cpus restarts
[[ $time =~ ^([0-9]+-)?[0-9]{1,2}:[0-9]{2}:[0-9]{2}$ ]] || fail "--time=$time is not HH:MM:SS or D-HH:MM:SS"
[[ $partition =~ ^[A-Za-z0-9_.,-]*$ ]] || fail "--partition=$partition is no name of a partition"
need_run
need_program sbatch "run this on the cluster's login node"

job=$(
  cat << END
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$gpus
#SBATCH --cpus-per-task=$cpus
#SBATCH --time=$time
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$name-%j.log
${partition:+#SBATCH --partition=$partition
}
cd $(quoted "$PWD")
status=0
srun --kill-on-bad-exit=0 .venv/bin/python -m rae_jax.main --distributed $(quoted "${rest[@]}") || status=\$?
# Asked to stop and saved, or a process was killed and ended the others; not for ever, if it comes to nothing.
if { [ "\$status" = 75 ] || [ "\$status" -gt 128 ]; } && [ "\${SLURM_RESTART_COUNT:-0}" -lt $restarts ]; then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$status"
END
)
if ((dry_run)); then echo "$job"; else sbatch <<< "$job"; fi
