"""What the gloo workers run against a real vLLM server, and the oracle: Hugging Face on the weights that were sent."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rest_megatron.config.schema import Config, DataConfig, RolloutConfig
from rest_megatron.distributed.launch import Launch
from rest_megatron.rollout.engine import number_requests
from rest_megatron.rollout.vllm.attached import AttachedServer
from rest_megatron.rollout.vllm.client import Address, Client
from rest_megatron.rollout.vllm.engine import VLLMEngine
from rest_megatron.rollout.vllm.replies import Question, Sampling, ask, prompt_seed
from rest_megatron.types import Sample
from tests.distributed.cases import Layout, make_config, start
from tests.tiny import VOCAB, load, response_logits

TEMPERATURE = 0.7
GROUP_SIZE = 4
NEW_TOKENS = 24
STOP = [0, 1, 2]
# The longest holds more than one of the blocks that vLLM caches prefixes in, 128 tokens on CPU.
PROMPTS = [[5], list(range(3, 43)), [(7 * i) % 491 + 3 for i in range(170)]]
LONGEST_PROMPT = 180
BATCH_TOKENS = 256
SECONDS = 60.0


@dataclass(frozen=True)
class Kind:
    """A model and how a server holds it."""

    name: str
    tied: bool = False
    dtype: str = "float32"
    tensor_parallel: int = 1

    def __str__(self) -> str:
        return self.name


def rollout_config(model: Path, layout: Layout, dtype: str) -> Config:
    """Of a trainer that attaches to a server it has been given."""
    rollout = RolloutConfig(
        engine="vllm",
        vllm_url="http://vllm",
        prompts_per_step=len(PROMPTS),
        group_size=GROUP_SIZE,
        max_new_tokens=NEW_TOKENS,
        temperature=TEMPERATURE,
        sync_timeout=SECONDS,
        generate_timeout=SECONDS,
    )
    config = make_config(model, layout, dtype)
    return replace(config, rollout=rollout, data=DataConfig(max_prompt_tokens=LONGEST_PROMPT))


def server_config(model: Path, kind: Kind) -> Config:
    """Of the server for such a trainer."""
    config = rollout_config(model, Layout(), kind.dtype)
    # One long prompt fits into a step of the server, two do not.
    return replace(config, vllm={"tensor_parallel_size": kind.tensor_parallel, "max_num_batched_tokens": BATCH_TOKENS})


def two_updates(launch: Launch, model: Path, layout: Layout, dtype: str, address: Address, directory: Path) -> dict:
    """Publish, answer, change the weights, answer, publish, answer.

    The weights that the actor had are exported to directory/first and directory/second.
    """
    config = rollout_config(model, layout, dtype)
    actor, parallel = start(launch, config)
    server = AttachedServer(address, config) if parallel.rank == 0 else None
    parallel.on_main(lambda: server.wait_ready())
    engine = VLLMEngine(server, actor, parallel, config, STOP, PROMPTS)

    def answers() -> list[Sample]:
        requests = number_requests(PROMPTS, NEW_TOKENS)
        return [s for group in engine.generate(requests, group_size=GROUP_SIZE, seed=5) for s in group]

    engine.publish(3)
    actor.export(directory / "first")
    found = {"first": answers()}
    for parameter in actor.policy.parameters():
        parameter.data.mul_(1.2)
    actor.export(directory / "second")
    found["stale"] = answers()
    engine.publish(4)
    return found | {"second": answers()}


def sample(address: Address, version: int, prompts: list[list[int]] = PROMPTS) -> list[Sample]:
    """Answers of a server as it is, outside any engine."""
    questions = [Question(i, tuple(p), GROUP_SIZE, NEW_TOKENS, prompt_seed(5, i)) for i, p in enumerate(prompts)]
    sampling = Sampling(TEMPERATURE, 1.0, 0, 0.0, frozenset(STOP), VOCAB)
    groups = ask(Client(address), questions, sampling, version, SECONDS)
    for group in groups:
        if isinstance(group, Exception):
            raise group
    return [one for group in groups for one in group]


@torch.no_grad()
def differences(samples: list[Sample], model: Path, dtype: str) -> torch.Tensor:
    """|server's log-prob - Hugging Face's| of every sampled token, on `model`'s weights."""
    logits = response_logits(load(model, getattr(torch, dtype)), [(s.prompt_ids, s.token_ids, ()) for s in samples])
    ids = torch.tensor([token for s in samples for token in s.token_ids])
    exact = (logits / TEMPERATURE).log_softmax(-1).gather(1, ids.unsqueeze(1)).squeeze(1)
    return (torch.tensor([p for s in samples for p in s.log_probs]) - exact).abs()
