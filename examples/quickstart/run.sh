#!/usr/bin/env bash
# The quickstart: write the task, warm-start from random weights, train with ResT. Two processes, no GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

python examples/quickstart/make_task.py --out runs/quickstart/data --seed 0
torchrun --standalone --nproc-per-node=2 -m rest_megatron sft -c examples/quickstart/sft.yaml
torchrun --standalone --nproc-per-node=2 -m rest_megatron train -c examples/quickstart/rest.yaml
