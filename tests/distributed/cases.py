"""What the gloo workers run: one actor on one layout, and everything a test wants to know about it."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from transformers import AutoConfig

from rest_megatron.actor.actor import Actor
from rest_megatron.actor.dealing import CostModel, Work, deal
from rest_megatron.config.schema import (
    AlgorithmConfig,
    Config,
    KernelsConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    RolloutConfig,
    RunConfig,
    TrainConfig,
)
from rest_megatron.distributed.launch import Launch
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.distributed.startup import choose_device, initialize
from rest_megatron.model.gather import gather_tensors
from rest_megatron.model.huggingface import weight_source
from rest_megatron.model.mapping import mapped_parameters
from rest_megatron.model.model import DTYPES
from rest_megatron.rollout.sampler import Sampler
from rest_megatron.types import Request, Trajectory
from tests.tiny import Answers

TOTAL_STEPS = 100


@dataclass(frozen=True)
class Layout:
    """A parallel layout and the options that may change how, never what, is computed."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    vpp: int | None = None
    sp: bool = False
    megatron: dict = field(default_factory=dict)
    deepspeed: dict = field(default_factory=dict)
    max_tokens: int = 64
    device: str = "cpu"
    level: str = "logits"
    shared: bool = True

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp

    def __str__(self) -> str:
        name = f"tp{self.tp}-pp{self.pp}-dp{self.dp}" + ("-sp" if self.sp else "")
        name += f"-vpp{self.vpp}" if self.vpp else ""
        name += "-hidden" if self.level == "hidden" else ""
        name += "" if self.shared else "-plain"
        return "-".join([name, *map(str, self.megatron.values()), *self.deepspeed]) + f"-{self.max_tokens}"


# Without interleaving or sequence parallelism.
PLAIN_LAYOUTS = [
    Layout(),
    Layout(tp=2),
    Layout(pp=2),
    Layout(dp=2),
    Layout(tp=2, pp=2),
    Layout(tp=2, dp=2),
    Layout(pp=2, dp=2),
]

TOKENS_ALONE = CostModel(row=0, pair=0, learner=4)


def make_config(model: Path, layout: Layout, dtype: str = "float32", **optim) -> Config:
    return Config(
        run=RunConfig(device=layout.device),
        model=ModelConfig(path=str(model), dtype=dtype),
        parallel=ParallelConfig(layout.tp, layout.pp, layout.vpp, layout.sp),
        megatron=layout.megatron,
        deepspeed=layout.deepspeed,
        # A chunk smaller than a pack, so that there are several.
        kernels=KernelsConfig(level=layout.level, chunk_size=20),
        algorithm=AlgorithmConfig(clip_ratio_low=0.2, clip_ratio_high=0.2),
        # Adam divides by |gradient| + eps: a larger eps keeps the rounding of near-zero gradients out of the weights.
        optim=OptimConfig(**{"lr": 1e-3, "eps": 1e-6, "clip_grad": 1.0, "weight_decay": 0.1, **optim}),
        train=TrainConfig(max_tokens_per_micro_batch=layout.max_tokens, shared_prefixes=layout.shared),
    )


def start(launch: Launch, config: Config, total_steps: int = TOTAL_STEPS) -> tuple[Actor, Parallel]:
    parallel = initialize(launch, config.parallel, choose_device(config.run.device, launch), seed=0)
    hf = AutoConfig.from_pretrained(config.model.path)
    weights = weight_source(config.model, config.run.seed, hf)
    return Actor(config, hf, weights, parallel, total_steps), parallel


def share(answers: Answers, parallel: Parallel) -> tuple[Answers, list[int]]:
    """This data-parallel rank's answers and their numbers."""
    works = [Work.of(trajectory) for trajectory in answers.trajectories]
    mine = deal(works, parallel.dp_size, TOKENS_ALONE)[parallel.dp_rank]
    return answers.select(mine).to(parallel.device), mine


def replica_difference(actor: Actor, parallel: Parallel) -> float:
    """Largest difference of any parameter from another rank's copy of it: over DP all, over TP the replicated ones."""
    mapped = list(mapped_parameters(actor.policy))
    replicated = [m.parameter for m in mapped if m.dim is None]
    pairs = [(parallel.dp_group, [m.parameter for m in mapped]), (parallel.tp_group, replicated)]
    return max(_spread_over(group, parameters) for group, parameters in pairs)


def _spread_over(group: dist.ProcessGroup, parameters: list[torch.nn.Parameter]) -> float:
    highest = torch.cat([p.detach().flatten() for p in parameters])
    lowest = highest.clone()
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN, group=group)
    return float((highest - lowest).abs().max())


def tied_copy_difference(actor: Actor, parallel: Parallel) -> float:
    """Largest difference between the two copies of a tied embedding on a pipeline's ends."""
    from megatron.core import parallel_state

    if not (actor.policy.hf.tie_word_embeddings and parallel.pp_size > 1):
        return 0.0
    if not (parallel.is_first_stage or parallel.is_last_stage):
        return 0.0
    weight = actor.policy.chunks[0 if parallel.is_first_stage else -1].shared_embedding_or_output_weight().detach()
    total = weight.clone()
    dist.all_reduce(total, group=parallel_state.get_embedding_group())
    return float((total - 2 * weight).abs().max())


def gradients_and_updates(
    launch: Launch, model: Path, layout: Layout, answers: Answers, dtype: str = "float32", steps: int = 1
) -> dict:
    """Logits, log-probs, reduced gradients, gradient norm and, after `steps` AdamW steps, weights and differences."""
    actor, parallel = start(launch, make_config(model, layout, dtype))
    ours, mine = share(answers, parallel)
    stats = actor.log_probs(ours.trajectories)
    logits = response_logits(actor, parallel, ours)
    actor.policy.train()
    actor.zero.begin()
    actor.run(ours.trajectories, partial(actor.losses.policy, ours.streams), forward_only=False)
    actor.zero.reduce()
    gradients = named(actor, parallel, safe_get_full_grad)
    actor.zero.engine.step()
    grad_norm = float(actor.zero.engine.get_global_grad_norm())
    metrics = [actor.update(*ours).metrics for _ in range(steps - 1)]
    return {
        "sequences": mine,
        "log_probs": stats.log_probs,
        "entropy": stats.entropy,
        "collision": stats.collision,
        "logits": logits,
        "gradients": gradients,
        "grad_norm": grad_norm,
        "metrics": metrics,
        "weights": named(actor, parallel, lambda p: p.data),
        "replicas": replica_difference(actor, parallel),
        "tied": tied_copy_difference(actor, parallel),
    }


def supervised_gradients(launch: Launch, model: Path, layout: Layout, answers: Answers) -> dict:
    """The reduced gradients of one supervised step."""
    actor, parallel = start(launch, make_config(model, layout))
    ours, _ = share(answers, parallel)
    actor.policy.train()
    actor.zero.begin()
    compute = partial(actor.losses.supervised, len(answers.old_log_probs))
    actor.run(ours.trajectories, compute, forward_only=False)
    actor.zero.reduce()
    return {"gradients": named(actor, parallel, safe_get_full_grad)}


def trained(
    launch: Launch, model: Path, layout: Layout, answers: Answers, steps: int, optim: dict, dtype: str = "float32"
) -> dict:
    """Metrics of each of `steps` updates, and the weights, float32 masters and replica differences after them."""
    actor, parallel = start(launch, make_config(model, layout, dtype, **optim), steps)
    ours, _ = share(answers, parallel)
    metrics = [actor.update(*ours).metrics for _ in range(steps)]
    return {
        "metrics": metrics,
        "weights": named(actor, parallel, lambda p: p.data),
        "masters": named(actor, parallel, safe_get_full_fp32_param),
        "replicas": replica_difference(actor, parallel),
        "tied": tied_copy_difference(actor, parallel),
    }


def response_logits(actor: Actor, parallel: Parallel, answers: Answers) -> torch.Tensor | None:
    """The raw logits [tokens, vocab] that predict this rank's response tokens, on the last stage; None before it."""
    whole = torch.zeros(len(answers.old_log_probs), actor.policy.hf.vocab_size, device=parallel.device)

    def keep(batch, hidden, non_loss_data=True):
        assert hidden.dtype == DTYPES[actor.config.model.dtype], "the kernels get no float32 copy"
        logits = actor.head.logits(hidden)
        shards = [torch.empty_like(logits) for _ in range(parallel.tp_size)]
        dist.all_gather(shards, logits.contiguous(), group=parallel.tp_group)
        whole[batch.index] = torch.cat(shards, dim=-1).float()

    actor.policy.eval()
    with torch.no_grad():
        actor.run(answers.trajectories, keep, forward_only=True)
    return whole.cpu() if parallel.is_last_stage else None


def in_order(results: list[dict], key: str, answers: Answers) -> torch.Tensor:
    """One value of every rank's result, put back into the order of `answers`."""
    lengths = [t.num_targets for t in answers.trajectories]
    pieces = {}
    for result in results:
        if result[key] is not None:
            pieces.update(
                zip(result["sequences"], result[key].split([lengths[i] for i in result["sequences"]]), strict=True)
            )
    return torch.cat([pieces[i] for i in range(len(lengths))])


def merged(results: list[dict], key: str) -> dict[str, torch.Tensor]:
    """The tensors of all pipeline stages, by Hugging Face name."""
    return {name: tensor for result in results for name, tensor in result[key].items()}


def named(actor: Actor, parallel: Parallel, value_of) -> dict[str, torch.Tensor]:
    """Whole tensors of this stage by Hugging Face name, on its first tensor- and data-parallel rank."""
    tensors = dict(gather_tensors(actor.policy, parallel, value_of))
    return {k: v.clone() for k, v in tensors.items() if v is not None} if parallel.dp_rank == 0 else {}


def sampled(
    launch: Launch,
    model: Path,
    layout: Layout,
    requests: list[Request],
    rollout: RolloutConfig,
    stop: list[int],
) -> dict:
    """Answers drawn by the sampler, tokens and rows of each forward, and the actor's own log-probs of the answers."""
    config = replace(make_config(model, layout), rollout=rollout)
    actor, parallel = start(launch, config)
    engine = Sampler(actor.policy, parallel, rollout, stop)
    engine.publish(7)
    how = {"group_size": rollout.group_size, "seed": 5}
    shapes: list[tuple[int, ...]] = []
    watching = actor.policy.chunks[0].decoder.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["rotary_pos_emb"].shape[:2])), with_kwargs=True
    )
    groups = engine.generate(requests, **how)
    watching.remove()
    samples = [sample for group in groups for sample in group]
    stats = actor.log_probs([Trajectory(s.prompt_ids, s.token_ids) for s in samples])
    again = engine.generate(requests, **how)
    return {
        "samples": samples,
        "shapes": shapes,
        "log_probs": stats.log_probs,
        "repeats": again == groups,
        "sequence_parallel": actor.policy.megatron.sequence_parallel,
    }
