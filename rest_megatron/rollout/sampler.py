"""The embedded rollout engine: answers sampled in process from the actor's own Megatron weights.

No second copy of the weights and no synchronisation. Prompts are dealt to data-parallel ranks; within one, tensor
and pipeline ranks decode together with a key/value cache. Prompts of a batch are padded on the left, so that all
rows append to the cache at the same column; positions count from each row's first real token.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from rest_megatron.actor.dealing import deal_costs
from rest_megatron.config.schema import RolloutConfig
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.errors import NonFiniteError
from rest_megatron.model.attention import CoreAttention, KeyValueCache
from rest_megatron.model.model import Policy
from rest_megatron.rollout.draw import NO_TOKEN, draw_tokens
from rest_megatron.types import Request, Sample

# Finished rows are dropped from the batch and its caches when they are more than this share of it.
COMPACT_ABOVE = 0.25
POLL_TOKENS = 16


class _Stopped(Exception):
    """This copy of the model is to stop; its answers are thrown away."""


class Sampler:
    """`RolloutEngine` over the policy itself.

    Args:
        policy: this rank's model chunks.
        parallel: this rank's place.
        config: temperature, longest answer, batch size.
        stop_token_ids: ids that end an answer.
    """

    def __init__(
        self, policy: Policy, parallel: Parallel, config: RolloutConfig, stop_token_ids: Sequence[int]
    ) -> None:
        self.policy = policy
        self.parallel = parallel
        self.config = config
        self.stop_token_ids = frozenset(stop_token_ids)
        self.version = 0

    def publish(self, version: int) -> None:
        """The policy's weights are already the ones sampled from; only the stamp changes."""
        self.version = version

    def sleep(self) -> None:
        """Nothing is held between calls."""

    def close(self) -> None:
        """Nothing is held between calls."""

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], *, group_size: int, seed: int) -> list[list[Sample]]:
        """`group_size` answers to each request, the same lists on every rank; see `RolloutEngine`.

        Draws depend on seed, group_size, rollout.max_new_tokens, request number, answer number and token number: not on
        the layout, the batch, the other requests or their max_new_tokens, none of which may be above
        rollout.max_new_tokens. Raises Preempted, on all ranks, a few tokens after one of them has a reason to stop, and
        NonFiniteError when the logits are not finite.
        """
        longest = self.config.max_new_tokens
        limits = [request.max_new_tokens for request in requests]
        if not all(0 < limit <= longest for limit in limits):
            raise ValueError(f"max_new_tokens {limits} must be 1 to {longest}")
        self.policy.eval()
        generator = torch.Generator().manual_seed(seed)
        numbers = [request.number for request in requests]
        uniforms = torch.rand(max(numbers) + 1, group_size, longest, generator=generator)[numbers]
        mine = deal_costs([len(r.prompt_ids) for r in requests], self.parallel.dp_size)[self.parallel.dp_rank]
        mine.sort(key=lambda i: len(requests[i].prompt_ids))
        per_batch = max(1, self.config.max_batch_size // group_size)
        answers: dict[int, list[Sample]] = {}
        problem: NonFiniteError | None = None
        with self.parallel.watch.phase("rollout"):
            try:
                with _without_sequence_parallel(self.policy), suppress(_Stopped):
                    for start in range(0, len(mine), per_batch):
                        batch = mine[start : start + per_batch]
                        drawn = self._answer([requests[i] for i in batch], uniforms[batch])
                        answers.update(zip(batch, drawn, strict=True))
            except NonFiniteError as error:
                problem = error  # of this copy of the model; the others wait for its answers
            parts = self.parallel.gather_over_data_parallel((problem, answers))
            self.parallel.poll()
        for broken, _ in parts:
            if broken is not None:
                raise broken
        merged = {i: group for _, part in parts for i, group in part.items()}
        return [merged[i] for i in range(len(requests))]

    def _answer(self, requests: Sequence[Request], uniforms: Tensor) -> list[list[Sample]]:
        """Answers to a batch of requests; uniforms [requests, group, rollout.max_new_tokens]."""
        group_size = uniforms.shape[1]
        capacity = max(len(r.prompt_ids) for r in requests) + max(r.max_new_tokens for r in requests)
        with _key_value_caches(self.policy, capacity) as caches:
            tokens, log_probs = self._decode(requests, uniforms.flatten(0, 1).to(self.parallel.device), caches)
        rows = [
            self._sample(requests[i // group_size].prompt_ids, *row)
            for i, row in enumerate(zip(tokens, log_probs, strict=True))
        ]
        return [rows[i : i + group_size] for i in range(0, len(rows), group_size)]

    def _decode(
        self, requests: Sequence[Request], uniforms: Tensor, caches: list[KeyValueCache]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Token ids and log-probs of every row. Raises _Stopped."""
        group_size = uniforms.shape[0] // len(requests)
        limits = [request.max_new_tokens for request in requests for _ in range(group_size)]
        device = self.parallel.device
        logits, padding, positions = self._prefill(requests, group_size, caches)
        width = max(len(request.prompt_ids) for request in requests)
        index = torch.arange(uniforms.shape[0], device=device)
        rows, done = index.tolist(), [False] * len(index)
        tokens: list[list[int]] = [[] for _ in rows]
        log_probs: list[list[float]] = [[] for _ in rows]
        for step in range(max(limits)):
            if step % POLL_TOKENS == 0 and self.parallel.block_must_stop():
                raise _Stopped
            choice = self._draw(logits, uniforms[index, step])
            drawn = choice.tolist()
            self._require_drawn(drawn[0])
            for i, (row, token, log_prob) in enumerate(zip(rows, *drawn, strict=True)):
                if not done[i]:
                    tokens[row].append(int(token))
                    log_probs[row].append(log_prob)
                    done[i] = int(token) in self.stop_token_ids or step + 1 == limits[row]
            if all(done):
                break
            if sum(done) > COMPACT_ABOVE * len(done):
                going = torch.tensor([i for i, finished in enumerate(done) if not finished], device=device)
                index, padding, positions, choice = index[going], padding[going], positions[going], choice[:, going]
                rows, done = index.tolist(), [False] * len(going)
                _keep(caches, going)
            positions = positions + 1
            mask = self._decode_mask(padding, width + step + 1)
            logits = self._forward(choice[0].long().unsqueeze(1), positions, mask)
        return tokens, log_probs

    def _prefill(
        self, requests: Sequence[Request], group_size: int, caches: list[KeyValueCache]
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Read each distinct prompt once, then repeat what came of it for every answer that begins with it.

        Equal prompts are the answers of a group, dialogues that are still alike, and prompts given twice. Returns, of
        each answer's last prompt token, logits [b, vocab / TP] (None before the last stage), padding [b] and positions
        [b, 1]; the caches' rows are the answers' too.
        """
        prompts = [tuple(request.prompt_ids) for request in requests]
        rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        ids, positions, padding = _left_padded(list(rows), self.parallel.device)
        logits = self._forward(ids, positions, _prefill_mask(padding, ids.shape[1]))
        spread = torch.tensor([rows[prompt] for prompt in prompts], device=self.parallel.device)
        spread = spread.repeat_interleave(group_size)
        _keep(caches, spread)
        return None if logits is None else logits[spread], padding[spread], positions[spread, -1:]

    def _decode_mask(self, padding: Tensor, width: int) -> Tensor:
        """[b, 1, 1, width], added to the scores: once here in place of once in every layer."""
        hidden = torch.arange(width, device=padding.device) < padding.unsqueeze(1)
        zeros = torch.zeros(hidden.shape, dtype=self.policy.megatron.params_dtype, device=padding.device)
        return zeros.masked_fill_(hidden, -torch.inf)[:, None, None, :]

    def _draw(self, logits: Tensor | None, uniforms: Tensor) -> Tensor:
        """Tokens and their log-probs, drawn on the last stage, on every stage: [2, b] float64."""
        choice = torch.empty(2, uniforms.shape[0], dtype=torch.float64, device=uniforms.device)
        if logits is not None:
            tokens, log_probs = draw_tokens(logits, uniforms, self.config.temperature, self.parallel.tp_group)
            choice = torch.stack([tokens.double(), log_probs])
        return self.parallel.broadcast_from_last_stage(choice)

    def _require_drawn(self, tokens: Sequence[float]) -> None:
        """Raises NonFiniteError when a row has no token."""
        if NO_TOKEN in tokens:
            raise NonFiniteError(
                f"the policy's logits are not finite after {self.version} optimizer steps; no token can be drawn. "
                "Lower optim.lr, or start again from weights that were still finite"
            )

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor | None:
        """One forward through all stages and chunks; logits [b, vocab / TP] of the last position on the last stage."""
        logits, group = None, self.parallel.pp_group
        shape = (ids.shape[1], ids.shape[0], self.policy.megatron.hidden_size)
        for chunk in self.policy.chunks:
            hidden = None
            if not chunk.pre_process:
                hidden = torch.empty(shape, dtype=self.policy.megatron.params_dtype, device=ids.device)
                dist.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank(), group=group)
            out = chunk.decode(ids, hidden, positions, mask)
            if chunk.post_process:
                logits = out.squeeze(0)
            else:
                dist.send(out.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank(), group=group)
        return logits

    def _sample(self, prompt: Sequence[int], tokens: list[int], log_probs: list[float]) -> Sample:
        stopped = tokens[-1] in self.stop_token_ids
        return Sample(tuple(prompt), tuple(tokens), tuple(log_probs), "stop" if stopped else "length", self.version)


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """ids [b, s], positions [b, s] counted from each row's first real token, and padding [b]: columns before it."""
    width = max(map(len, prompts))
    padding = torch.tensor([width - len(p) for p in prompts], device=device)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    columns = torch.arange(width, device=device)
    return ids, (columns - padding.unsqueeze(1)).clamp(min=0), padding


def _prefill_mask(padding: Tensor, width: int) -> Tensor:
    """[b, 1, s, s], True where a query may look. A padding row sees itself, so that no softmax is empty."""
    columns = torch.arange(width, device=padding.device)
    causal = columns <= columns.unsqueeze(1)
    real = columns >= padding[:, None, None]
    return ((causal & real) | torch.eye(width, dtype=torch.bool, device=padding.device)).unsqueeze(1)


def _keep(caches: list[KeyValueCache], rows: Tensor) -> None:
    for cache in caches:
        cache.keep(rows)


@contextmanager
def _key_value_caches(policy: Policy, capacity: int) -> Iterator[list[KeyValueCache]]:
    """A cache in every attention layer of this rank, taken out again at the end."""
    layers = [module for module in policy.modules() if isinstance(module, CoreAttention)]
    caches = [KeyValueCache(capacity) for _ in layers]
    for layer, cache in zip(layers, caches, strict=True):
        layer.cache = cache
    try:
        yield caches
    finally:
        for layer in layers:
            layer.cache = None


@contextmanager
def _without_sequence_parallel(policy: Policy) -> Iterator[None]:
    """Decode without cutting the sequence: one new token per row cannot be shared out over ranks."""
    switches = ("sequence_parallel", "reduce_scatter_embeddings")
    owners = [policy.megatron, *policy.modules()]
    switched = [(owner, name) for owner in owners for name in switches if getattr(owner, name, False) is True]
    for owner, name in switched:
        setattr(owner, name, False)
    try:
        yield
    finally:
        for owner, name in switched:
            setattr(owner, name, True)
