#!/bin/bash
# Trains on several nodes and GPUs under SLURM, one process a task, and goes on by itself when its time is up:
#
#     sbatch --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 scripts/slurm.sh --config configs/shakespeare.yaml
#
# 90 seconds before the limit SLURM sends SIGUSR1. The step is then finished, last.ckpt written and the job queued again.
#SBATCH --job-name=minigpt
#SBATCH --ntasks-per-node=1
#SBATCH --time=04:00:00
#SBATCH --signal=SIGUSR1@90
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

exec srun python scripts/train.py "$@" --ckpt_path last --trainer.strategy ddp \
    --trainer.num_nodes "$SLURM_JOB_NUM_NODES" --trainer.devices "$SLURM_NTASKS_PER_NODE"
