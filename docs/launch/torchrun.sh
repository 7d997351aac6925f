#!/usr/bin/env bash
# Trains with torchrun, one process a device. Arguments go to src/train.py. One machine:
#   docs/launch/torchrun.sh experiment=qwen3_8b trainer=fsdp
# Several machines that share the file system of this checkout: the same on each, but for NODE_RANK
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 RUN_FOLDER=logs/train/runs/mine docs/launch/torchrun.sh …
# A run that was cut off goes on from its newest whole checkpoint: start it again with the same RUN_FOLDER.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

NNODES=${NNODES:-1}         # machines
NODE_RANK=${NODE_RANK:-0}   # which of them this is, from 0
NPROC_PER_NODE=${NPROC_PER_NODE:-$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)} # processes a machine
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} # machine 0, as the others reach it
MASTER_PORT=${MASTER_PORT:-29500}     # a free port there
PYTHON=${PYTHON:-.venv/bin/python}
[ -x "$PYTHON" ] || PYTHON=python # a conda environment, say

if [ "$NNODES" -gt 1 ] && [ -z "${RUN_FOLDER:-}" ]; then
    echo "RUN_FOLDER: expected a folder that all machines see, the same on each, found none." >&2
    exit 2
fi
if [ "$NPROC_PER_NODE" -lt 1 ]; then
    echo "NPROC_PER_NODE: found no GPU to count. Give a number; on CPUs add trainer=fsdp_cpu." >&2
    exit 2
fi
# All processes get the name of the folder from here: left to themselves, each would take the second it started in.
RUN_FOLDER=${RUN_FOLDER:-logs/train/runs/$(date +%Y-%m-%d_%H-%M-%S)}

exec "$PYTHON" -m torch.distributed.run \
    --nnodes "$NNODES" --node-rank "$NODE_RANK" --nproc-per-node "$NPROC_PER_NODE" \
    --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
    src/train.py ckpt_path=auto "$@" \
    "hydra.run.dir=$RUN_FOLDER" "++trainer.devices=$NPROC_PER_NODE" "++trainer.num_nodes=$NNODES"
