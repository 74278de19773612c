"""The check after every weight update: the server's log-probs of a few answers against the actor's."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rest_megatron.actor.actor import Actor
from rest_megatron.actor.head import Head
from rest_megatron.actor.microbatch import MicroBatch, Trajectory
from rest_megatron.config.schema import Config
from rest_megatron.errors import EngineError
from rest_megatron.rollout.client import Client
from rest_megatron.rollout.engine import Sample
from rest_megatron.rollout.replies import Question, Sampling, ask, prompt_seed

# Eight tokens of each prompt. Two short answers take half as many of the server's steps as a long one.
NUM_ANSWERS, NEW_TOKENS = 2, 4
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.05}


class Probe:
    """The same prompts and seeds after every update, so that a stale prefix cache shows as well as stale weights.

    prompts: token ids, at least one prompt. sampling: of the run; the probe itself samples without top_p, top_k and
    min_p, which the actor's log-probs know nothing of.
    """

    def __init__(self, actor: Actor, config: Config, sampling: Sampling, prompts: Sequence[Sequence[int]]) -> None:
        if not prompts:
            raise ValueError("a vLLM engine needs at least one prompt to probe its weights with")
        self._actor = actor
        # The prompts' rows never reach the vocabulary: where the server shares the GPU, little memory is free now.
        kernels = replace(config.kernels, level="hidden")
        self._head = Head(actor.policy, replace(config, kernels=kernels), actor.parallel)
        self._tolerance = config.rollout.probe_tolerance or TOLERANCES[config.model.dtype]
        self._sampling = Sampling(sampling.temperature, 1.0, 0, 0.0, sampling.stop_token_ids, sampling.vocab_size)
        count = min(NEW_TOKENS, config.rollout.max_new_tokens)
        seed = config.run.seed
        self._questions = [
            Question(i, tuple(p), NUM_ANSWERS, count, prompt_seed(seed, i)) for i, p in enumerate(prompts)
        ]

    def sample(self, client: Client, version: int, seconds: float) -> list[Sample]:
        """Short answers to each prompt. Raises EngineError."""
        samples: list[Sample] = []
        for reply in ask(client, self._questions, self._sampling, version, seconds):
            if isinstance(reply, EngineError):
                raise reply
            samples += reply
        return samples

    def check(self, samples: Sequence[Sample], version: int) -> None:
        """Compare with the actor's log-probs. Collective: rank 0's verdict holds for all.

        Raises EngineError when the mean difference is above the tolerance, or no number.
        """
        # Every data-parallel rank takes all samples: they are few, and one code path less.
        log_probs = self._log_probs([Trajectory(s.prompt_ids, s.token_ids) for s in samples])
        self._actor.parallel.on_main(lambda: compare(samples, log_probs.tolist(), version, self._tolerance))

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
        return batch.index, out.log_probs[batch.rows]


def compare(samples: Sequence[Sample], log_probs: Sequence[float], version: int, tolerance: float) -> None:
    """`log_probs`: the actor's, of the tokens of all samples in a row. Raises EngineError as `Probe.check` says."""
    ours = torch.tensor(log_probs, dtype=torch.float64)
    theirs = torch.tensor([x for sample in samples for x in sample.log_probs], dtype=torch.float64)
    difference = (ours - theirs).abs()
    mean, largest = float(difference.mean()), float(difference.max())
    if mean <= tolerance:
        return
    first = samples[0].token_ids
    raise EngineError(
        f"after the update to version {version} vLLM does not sample from the actor's weights: over {len(difference)} "
        f"tokens of {len(samples)} answers its log-probs differ from the actor's by {mean:.3g} on average (at most "
        f"{largest:.3g}), the mean must be at most {tolerance:g} (rollout.probe_tolerance).\n"
        f"  First answer: tokens {list(first)}, vLLM {_rounded(theirs[: len(first)])}, "
        f"actor {_rounded(ours[: len(first)])}\n"
        "  Both must serve the same model in the same precision, with processed log-probs and without quantisation: "
        "compare the server's arguments with those that `rest_megatron print-server` shows"
    )


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]
