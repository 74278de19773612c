"""The rollout engine that a configuration asks for."""

from collections.abc import Sequence

from rest_megatron.actor.actor import Actor
from rest_megatron.config.schema import Config
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.rollout.engine import RolloutEngine
from rest_megatron.rollout.sampler import Sampler
from rest_megatron.rollout.vllm.engine import VLLMEngine
from rest_megatron.rollout.vllm.server import Server
from rest_megatron.types import Prompt


def build_engine(
    config: Config,
    actor: Actor,
    parallel: Parallel,
    server: Server | None,
    stop_token_ids: Sequence[int],
    prompts: Sequence[Prompt],
) -> RolloutEngine:
    """The engine of `rollout.engine`.

    server: on rank 0, where there is one; prompts: some of those it will answer, to probe its weights with.
    """
    if config.rollout.engine == "sampler":
        return Sampler(actor.policy, parallel, config.rollout, stop_token_ids)
    probes = [prompt.token_ids for prompt in prompts[: config.rollout.probe_prompts]]
    return VLLMEngine(server, actor, parallel, config, stop_token_ids, probes)
