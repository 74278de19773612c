"""A run whose answers are dialogues with tools."""

import math

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.system.runs import make_run

TOOLS = """
def respond(response, messages, *, prompt):
    assert prompt.endswith("<|im_start|>assistant\\n") and "alarm on Monday for" in prompt
    if len(response) % 3 == 0:
        return None
    return [{"role": "tool", "content": f"{len(response)} after {len(messages)}"}]

def reward(response, ground_truth, *, progress, step):
    turns = 1 + response.count("<|im_start|>assistant")
    return {"score": turns + len(response) / 100, "turns": turns}
"""
STOP_PROBABILITY = 0.2


def make_talkative_run(directory):
    """As `make_run`, of a model that ends its turn at each token with about the same probability."""
    words = make_run(directory, tie_word_embeddings=False)
    config = AutoConfig.from_pretrained(directory / "model")
    stop = AutoTokenizer.from_pretrained(directory / "model").eos_token_id
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        # All hidden states lie near one direction, along which one row of the head gives the stop token its logit.
        model.model.embed_tokens.weight.add_(1.0)
        odds = config.vocab_size * STOP_PROBABILITY / (1 - STOP_PROBABILITY)
        model.lm_head.weight[stop] = math.log(odds) / config.hidden_size
    model.save_pretrained(directory / "model")
    (directory / "mine.py").write_text(TOOLS)
    return [
        *words,
        "model.random_init=false",
        "data.chat_template=keep_thinking",
        f"rollout.tools={directory}/mine.py:respond",
        f"reward.function={directory}/mine.py:reward",
        "rollout.max_turns=3",
        "rollout.max_new_tokens=96",
        "rollout.group_size=4",
        "train.max_tokens_per_micro_batch=160",
        "log.quiet=true",
    ]
