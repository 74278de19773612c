"""The check after every weight update: the server's log-probs of a few answers against the actor's."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rest_megatron.actor.actor import Actor
from rest_megatron.actor.head import Head
from rest_megatron.actor.microbatch import MicroBatch
from rest_megatron.config.schema import Config
from rest_megatron.errors import EngineError
from rest_megatron.rollout.vllm.client import Client
from rest_megatron.rollout.vllm.replies import Question, Sampling, ask, prompt_seed
from rest_megatron.types import Sample, Trajectory

logger = logging.getLogger(__name__)

# Answers to each prompt, and their tokens. Two short answers take half as many of the server's steps as a long one.
FIRST = (2, 4)
# In bfloat16 the differences have heavy tails, so that one token may lift the mean of a few: then more are asked for.
SECOND = (4, 32)
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.05}


@dataclass(frozen=True)
class Comparison:
    """|server's log-prob - actor's| over all tokens of some answers. first_answer: both sides of it."""

    mean: float
    largest: float
    tokens: int
    first_answer: str

    def __str__(self) -> str:
        return f"by {self.mean:.3g} on average (at most {self.largest:.3g}) over {self.tokens} tokens"


class Probe:
    """The same prompts and seeds after every update, so that a stale prefix cache shows as well as stale weights.

    prompts: token ids, at least one prompt. sampling: of the run; the probe itself samples without top_p, top_k and
    min_p, which the actor's log-probs know nothing of.
    """

    def __init__(self, actor: Actor, config: Config, sampling: Sampling, prompts: Sequence[Sequence[int]]) -> None:
        if not prompts:
            raise ValueError("a vLLM engine needs at least one prompt to probe its weights with")
        self._actor = actor
        # A chunk of logits at a time: where the server shares the GPU, little memory is free now.
        kernels = replace(config.kernels, level="hidden")
        self._head = Head(actor.policy, replace(config, kernels=kernels), actor.parallel)
        self._tolerance = config.rollout.probe_tolerance or TOLERANCES[config.model.dtype]
        self._sampling = Sampling(sampling.temperature, 1.0, 0, 0.0, sampling.stop_token_ids, sampling.vocab_size)
        self._prompts = [tuple(prompt) for prompt in prompts]
        self._max_new_tokens, self._seed = config.rollout.max_new_tokens, config.run.seed

    def sample(self, client: Client, version: int, seconds: float) -> list[Sample]:
        """Short answers to each prompt. Raises EngineError."""
        return self._ask(client, version, seconds, FIRST, 0)

    def sample_more(self, client: Client, version: int, seconds: float) -> list[Sample]:
        """Other and longer answers, for a verdict that one token cannot tip. Raises EngineError."""
        return self._ask(client, version, seconds, SECOND, len(self._prompts))

    def check(self, samples: Sequence[Sample], more: Callable[[], Sequence[Sample]], version: int) -> None:
        """Compare with the actor's log-probs. Collective: rank 0's numbers decide for all.

        `more`: collective, called where the mean difference is above the tolerance, or no number. Raises EngineError
        when it is so over those answers too.
        """
        first = self._compared(samples)
        if first.mean <= self._tolerance:
            return
        second = self._compared(more())
        require_close(first, second, version, self._tolerance)
        if self._actor.parallel.rank == 0:
            logger.warning(
                "after the update to version %d vLLM's log-probs differ from the actor's %s, but %s: an outlier",
                *(version, first, second),
            )

    def _ask(
        self, client: Client, version: int, seconds: float, size: tuple[int, int], first_seed: int
    ) -> list[Sample]:
        answers, tokens = size
        tokens = min(tokens, self._max_new_tokens)
        questions = [
            Question(i, prompt, answers, tokens, prompt_seed(self._seed, first_seed + i))
            for i, prompt in enumerate(self._prompts)
        ]
        samples: list[Sample] = []
        for reply in ask(client, questions, self._sampling, version, seconds):
            if isinstance(reply, EngineError):
                raise reply
            samples += reply
        return samples

    def _compared(self, samples: Sequence[Sample]) -> Comparison:
        # Every data-parallel rank takes all samples: they are few, and one code path less.
        log_probs = self._log_probs([Trajectory(s.prompt_ids, s.token_ids) for s in samples])
        return self._actor.parallel.on_main(lambda: compare(samples, log_probs.tolist()))

    @torch.no_grad()
    def _log_probs(self, trajectories: Sequence[Trajectory]) -> Tensor:
        """The actor's log-probs of all answers' tokens in a row, on every rank."""
        self._actor.policy.eval()
        log_probs = torch.zeros(sum(t.num_targets for t in trajectories), device=self._actor.parallel.device)
        for index, values in self._actor.run(trajectories, self._micro_batch_log_probs, forward_only=True):
            log_probs[index] = values
        return self._actor.parallel.broadcast_from_last_stage(log_probs)

    def _micro_batch_log_probs(
        self, batch: MicroBatch, hidden: Tensor, non_loss_data: bool = True
    ) -> tuple[Tensor, Tensor]:
        out = self._head.token_stats(hidden, batch.labels, self._sampling.temperature, collision=False)
        return batch.index, out.log_probs


def compare(samples: Sequence[Sample], log_probs: Sequence[float]) -> Comparison:
    """`log_probs`: the actor's, of the tokens of all samples in a row."""
    ours = torch.tensor(log_probs, dtype=torch.float64)
    theirs = torch.tensor([x for sample in samples for x in sample.log_probs], dtype=torch.float64)
    difference, first = (ours - theirs).abs(), samples[0].token_ids
    return Comparison(
        float(difference.mean()),
        float(difference.max()),
        len(difference),
        f"tokens {list(first)}, vLLM {_rounded(theirs[: len(first)])}, actor {_rounded(ours[: len(first)])}",
    )


def require_close(first: Comparison, second: Comparison, version: int, tolerance: float) -> None:
    """Raises EngineError unless the mean of the `second`, larger comparison is a number up to `tolerance`."""
    if second.mean <= tolerance:
        return
    raise EngineError(
        f"after the update to version {version} vLLM does not sample from the actor's weights: its log-probs differ "
        f"from the actor's {first}, and {second}; the mean must be at most {tolerance:g} (rollout.probe_tolerance).\n"
        f"  First answer: {first.first_answer}\n"
        "  Both must serve the same model in the same precision, with processed log-probs and without quantisation: "
        "compare the server's arguments with those that `rest_megatron print-server` shows"
    )


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]
