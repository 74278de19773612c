"""The `profile` command: where a model's entropy and gradient noise lie, before a run is spent on it.

Answers are sampled, scored and weighed as a training step would; nothing is updated. See `observe.profile` for what
is written.
"""

from dataclasses import asdict, replace

import torch
import torch.distributed as dist

from rest_megatron.commands.catalogue import Profile
from rest_megatron.commands.inputs import read_prompts
from rest_megatron.config.schema import Config
from rest_megatron.data.tokenizer import read_tokenizer
from rest_megatron.distributed.launch import Launch
from rest_megatron.method.regions import Region
from rest_megatron.method.weights import region_sums
from rest_megatron.observe.profile import profile_table, write_profile
from rest_megatron.observe.rollouts import length_metrics
from rest_megatron.observe.score_norm import summary
from rest_megatron.session import Session, open_session
from rest_megatron.state import RunState, new_state
from rest_megatron.step.batch import make_batch
from rest_megatron.step.collect import collect
from rest_megatron.step.gradients import gradient_variances
from rest_megatron.step.score import reward_metrics
from rest_megatron.step.score_norm import token_norms
from rest_megatron.step.streams import policy_streams
from rest_megatron.step.weigh import StepWeights, global_means, token_weights
from rest_megatron.types import Batch, Experience, TokenStats

# float32 rounding of the kernels' sums; 1 - sum p^2 of a nearly certain token is a difference of nearly equal numbers.
TOLERANCE = 1e-6


def main(config: Config, options: Profile, launch: Launch) -> None:
    """Run the `profile` command on this rank: write run.dir/profile.{json,png,html} and show the table.

    options.tokens: of how many tokens the true score norm is measured, 0 for none.
    """
    tokenizer = read_tokenizer(config)
    prompts = read_prompts(config, tokenizer, config.data.train)
    wanted = min(config.profile.prompts, len(prompts))
    config = replace(
        config,
        rollout=replace(config.rollout, prompts_per_step=wanted),
        algorithm=replace(config.algorithm, zero_variance="keep"),
    )
    with open_session(config, launch, tokenizer, total_optimizer_steps=1, prompts=prompts) as session:
        state = new_state(config, len(prompts))
        step = max(1, round(config.profile.progress * config.train.steps))
        state.step = step - 1
        experience = collect(
            session, step, lambda n: [prompts[i] for i in state.cursor.next_batch(n)], config.profile.progress
        )
        profile = measure(session, experience, state)
        if options.tokens:
            tokens, shares = token_norms(session, experience, options.tokens)
            profile["score_norm"] = summary([asdict(token) for token in tokens], shares, config.weights)
        if session.is_main:
            page = write_profile(session.run_dir, profile)
            session.progress.write(f"{profile_table(profile)}\n\nwrote {page}")


def measure(session: Session, experience: Experience, state: RunState) -> dict:
    """The profile of some answers as plain values, the same on every rank. Collective."""
    config = session.config
    batch = make_batch(session, experience)
    stats = session.actor.log_probs(batch.trajectories)
    weights = token_weights(session, experience, batch, stats, state, config.profile.progress)
    variances = None
    if config.profile.gradient_variance and batch.num_groups > 1:
        streams = policy_streams(session, batch, stats, weights)
        variances = gradient_variances(session, experience, batch, streams, weights) or None
    regions, lemma = _regions(session, batch, stats, weights, len(experience.trained))
    return {
        "model": config.model.path,
        "answers": len(experience.trained),
        "prompts": experience.num_trained,
        "mean_length": length_metrics(experience.trained)["rollout/length"],
        "reward": reward_metrics(experience.all_scores),
        "regions": regions,
        "lemma_2": lemma,
        "gradient_variance": variances,
        "score_norm": None,
    }


def _regions(
    session: Session, batch: Batch, stats: TokenStats, weights: StepWeights, num_answers: int
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """What each region looks like, and how Lemma 2 holds: 1 - sum_v p_v^2 <= 1 - exp(-H) at every token."""
    group = session.parallel.dp_group
    score_norm = 1.0 - stats.collision.double()
    bound = -torch.expm1(-stats.entropy.double())
    unsure = bound > TOLERANCE  # of a certain token both are 0
    ratio = torch.where(unsure, score_norm / bound, 0.0)
    _, counts = region_sums(bound, batch.regions)
    highest = counts.new_zeros(len(Region)).scatter_reduce(0, batch.regions, ratio, "amax")
    broken = (score_norm > bound + TOLERANCE).sum().double()
    sums = torch.cat([counts, torch.stack([broken, ratio.sum(), unsure.sum().double()])])
    dist.all_reduce(sums, group=group)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    counts, (broken, ratios, unsure) = sums[: len(Region)], sums[len(Region) :]
    means = {**weights.means, **global_means({"bound": bound}, batch.regions, group)}
    mass = means["weight"].nan_to_num() * counts
    regions = {
        r.label: {
            "tokens": int(counts[r]),
            "share": float(counts[r] / counts.sum()),
            "length": float(counts[r] / num_answers),
            **{name: float(mean[r]) for name, mean in means.items()},
            "score_norm_max_over_bound": float(highest[r]),
            "weight_mass": float(mass[r] / mass.sum()),
        }
        for r in Region
    }
    lemma = {"tokens": int(counts.sum()), "violations": int(broken), "mean_ratio": float(ratios / unsure)}
    return regions, lemma
