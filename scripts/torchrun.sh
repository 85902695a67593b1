#!/bin/bash
# One run on several machines without a cluster manager: the same line on each of them but for its NODE_RANK.
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 scripts/torchrun.sh model=large strategy=fsdp
#   NODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 scripts/torchrun.sh model=large strategy=fsdp
#
# MASTER_ADDR is the first machine; all of them must reach MASTER_PORT there and see the same run directory.
# DEVICES is how many devices each uses: all its GPUs, or a number of processes on its CPUs. See docs/launching.md.

set -euo pipefail

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --nproc-per-node="${DEVICES:-gpu}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${MASTER_PORT:-29500}" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    --shutdown-timeout="${GRACE:-120}" \
    "$(dirname "$0")/../train.py" "$@"
