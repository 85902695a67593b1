#!/bin/bash
# One run on the nodes of a SLURM cluster. What it trains follows the name of this file; what it needs is set above it:
#
#   sbatch scripts/slurm.sh model=large strategy=fsdp
#   sbatch --nodes=1 --ntasks-per-node=4 --gpus-per-node=4 --time=02:00:00 scripts/slurm.sh norm=pre
#
# Each task is one device. Two minutes before the time limit SLURM sends USR1: the run saves a checkpoint, and the job is
# queued again and goes on in the same run directory, runs/<name>/<job>, and in the same W&B run. See docs/launching.md.

#SBATCH --job-name=txtrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun no longer takes it over by itself

srun --kill-on-bad-exit=1 "${PYTHON:-python}" train.py "$@"
