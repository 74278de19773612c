#!/usr/bin/env bash
# The quickstart: write the task, warm-start from random weights, train with ResT. Two processes, no GPU.
#   run.sh [DIRECTORY [RANKS [DEVICE [section.key=value of the training ...]]]]
set -euo pipefail
cd "$(dirname "$0")/../.."
directory=${1:-runs/quickstart}
ranks=${2:-2}
device=${3:-cpu}
settings=("${@:4}")

launch() {
    deepspeed --quiet --num_gpus "$ranks" --master_port "$(free_port)" --module rest_megatron "$@" \
        run.device="$device" parallel.tensor_model_parallel_size="$ranks"
}

free_port() {
    python -c 'from rest_megatron.distributed.launch import free_port; print(free_port())'
}

rm -rf "$directory/data" "$directory/sft" "$directory/rest"
python examples/quickstart/make_task.py --out "$directory/data" --seed 0
echo "Supervised warm start on demonstrations, most of them spoiled"
launch sft -c examples/quickstart/sft.yaml run.dir="$directory/sft" sft.data="$directory/data/sft.jsonl"
echo "Reinforcement learning with ResT"
launch train -c examples/quickstart/rest.yaml run.dir="$directory/rest" model.path="$directory/sft/hf" \
    data.train="$directory/data/train.jsonl" data.eval="$directory/data/heldout.jsonl" ${settings[@]+"${settings[@]}"}
