"""What a fake vLLM server was sent, and Hugging Face's log-probs with these weights."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.distributed.vllm_cases import (
    TEMPERATURE,
)

PUSH = [
    *("/pause", "abandon_weight_update", "/start_weight_update", "/update_weights", "weight_update_failure"),
    *("/finish_weight_update", "weight_update_failure", "/resume", "/weight_info"),
]
PROBED = ["probe", "probe"]


def hugging_face_log_probs(model, weights: dict, samples) -> torch.Tensor:
    """Of all sampled tokens in a row, by Hugging Face in float64 with these weights."""
    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.float64).eval()
    lacking, unknown = made.load_state_dict({n: t.double() for n, t in weights.items()}, strict=False)
    assert not unknown and set(lacking) <= {"lm_head.weight"}
    made.tie_weights()
    rows = []
    with torch.no_grad():
        for sample in samples:
            ids = torch.tensor([[*sample.prompt_ids, *sample.token_ids]])
            logits = made(ids).logits[0, len(sample.prompt_ids) - 1 : -1]
            table = (logits / TEMPERATURE).log_softmax(-1)
            rows.append(table.gather(1, torch.tensor(sample.token_ids).unsqueeze(1)).squeeze(1))
    return torch.cat(rows)


def largest_error(model, weights: dict, samples) -> float:
    ours = torch.tensor([x for sample in samples for x in sample.log_probs], dtype=torch.float64)
    return float((ours - hugging_face_log_probs(model, weights, samples)).abs().max())
