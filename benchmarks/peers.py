"""Contestants of other projects, called as those projects call them. Add one: a decorated function.

Where a peer stops at log-probs, the policy loss follows in plain torch ("PPO outside"), as in its own trainer. The
logits of a Megatron model arrive in float32 (`Float16Module` casts the last stage's output), so its losses get them so.
"""

from dataclasses import replace
from types import ModuleType

from torch import Tensor

from .registry import Registry
from .workload import SPARSE, SPARSE_NOTE, Batch, policy_loss

NEMO_CHUNK = 256
TRL_CHUNK = 32768


def add_peers(registry: Registry) -> None:
    """Put them into `registry`."""
    add_megatron(registry)
    add_verl(registry)
    add_slime(registry)
    add_nemo(registry)
    add_trl(registry)
    add_liger(registry)
    add_flash_attention(registry)
    add_cut_cross_entropy(registry)


def add_megatron(registry: Registry) -> None:
    """Megatron-core's two losses of vocabulary-parallel logits."""
    does = "log p, TP; PPO outside, no entropy"
    fields = {"distribution": "megatron-core", "entropy": False, "megatron": True}

    @registry.contestant("megatron", "logits", does, modules=("megatron.core.tensor_parallel",), **fields)
    def plain(batch: Batch, tensor_parallel: ModuleType) -> Tensor:
        logits = batch.logits.float().div_(batch.temperature)
        return policy_loss(batch, -tensor_parallel.vocab_parallel_cross_entropy(logits, batch.labels))

    fused_modules = ("megatron.core.fusions.fused_cross_entropy",)

    @registry.contestant("megatron, fused", "logits", does, modules=fused_modules, **fields)
    def fused(batch: Batch, fusion: ModuleType) -> Tensor:
        logits = batch.logits.float().div_(batch.temperature)
        return policy_loss(batch, -fusion.fused_vocab_parallel_cross_entropy(logits, batch.labels, batch.group))


def add_verl(registry: Registry) -> None:
    """verl: the Megatron actor's logits processor, and the two fused linear losses."""
    does = "log p + entropy; PPO outside"
    modules = ("verl.utils.megatron.tensor_parallel",)

    @registry.contestant("verl", "logits", f"{does}, TP", modules=modules, distribution="verl", megatron=True)
    def actor(batch: Batch, verl: ModuleType) -> Tensor:
        logits = batch.logits.float().div_(batch.temperature)
        # Both of its functions change the logits, hence the copy.
        copy = logits.clone()
        entropy = verl.vocab_parallel_entropy(logits)
        return policy_loss(batch, verl.vocab_parallel_log_probs_from_logits(copy, batch.labels), entropy)

    modules = ("verl.utils.experimental.torch_functional",)

    @registry.contestant("verl, FusedLinearForPPO", "hidden", does, modules=modules, distribution="verl")
    def linear(batch: Batch, verl: ModuleType) -> Tensor:
        fused = verl.FusedLinearForPPO()
        return policy_loss(batch, *fused(batch.hidden, batch.weight, batch.labels, batch.temperature))

    modules = ("verl.utils.kernel.linear_cross_entropy",)

    @registry.contestant(
        "verl, linear_cross_entropy", "hidden", f"{does}, TP", modules=modules, distribution="verl", needs_cuda=True
    )
    def triton(batch: Batch, verl: ModuleType) -> Tensor:
        arguments = (batch.hidden, batch.weight, batch.labels, batch.temperature, "none", batch.group)
        return policy_loss(batch, *verl.linear_cross_entropy(*arguments))


def add_slime(registry: Registry) -> None:
    """slime's log-prob and entropy of a whole packed sequence."""
    modules = ("slime.utils.ppo_utils",)

    @registry.contestant("slime", "logits", "log p + entropy, TP; PPO outside", modules=modules, distribution="slime")
    def slime(batch: Batch, ppo_utils: ModuleType) -> Tensor:
        log_probs, entropy = ppo_utils.calculate_log_probs_and_entropy(
            batch.logits.float() / batch.temperature,
            batch.labels,
            batch.group,
            with_entropy=True,
            with_entropy_grad=batch.entropy_coef != 0,
        )
        return policy_loss(batch, log_probs.squeeze(-1), entropy)


def add_nemo(registry: Registry) -> None:
    """NeMo-RL's chunked log-prob and entropy, which take [batch, tokens, vocabulary]."""
    modules = ("nemo_rl.distributed.model_utils",)

    @registry.contestant(
        "NeMo-RL", "logits", "log p + entropy, TP; PPO outside", modules=modules, distribution="nemo-rl"
    )
    def nemo(batch: Batch, model_utils: ModuleType) -> Tensor:
        logits = batch.logits.float().div_(batch.temperature).unsqueeze(0)
        log_probs = model_utils.ChunkedDistributedLogprob.apply(
            logits, batch.labels.unsqueeze(0), 0, logits.shape[-1], NEMO_CHUNK, batch.group, False
        )
        minus_entropy = model_utils.ChunkedDistributedEntropy.apply(logits, NEMO_CHUNK, batch.group, False)
        return policy_loss(batch, log_probs[0], -minus_entropy[0])


def add_trl(registry: Registry) -> None:
    """TRL's Triton kernel on logits and its chunked linear function."""
    does = "log p + entropy; PPO outside, no TP"
    modules = ("trl.kernels",)

    @registry.contestant("TRL", "logits", does, modules=modules, distribution="trl", needs_cuda=True)
    def on_logits(batch: Batch, kernels: ModuleType) -> Tensor:
        statistics = kernels.selective_log_softmax_and_entropy(batch.logits, batch.labels, batch.temperature)
        return policy_loss(batch, *statistics)

    @registry.contestant(
        "TRL", "statistics", "log p + entropy; no TP", modules=modules, distribution="trl", needs_cuda=True
    )
    def statistics(batch: Batch, kernels: ModuleType) -> tuple[Tensor, Tensor]:
        return kernels.selective_log_softmax_and_entropy(batch.logits, batch.labels, batch.temperature)

    @registry.contestant("TRL, chunked", "hidden", does, modules=modules, distribution="trl")
    def chunked(batch: Batch, kernels: ModuleType) -> Tensor:
        arguments = (batch.weight, None, batch.labels, batch.temperature, TRL_CHUNK, None, 1.0, ("entropy",))
        log_probs, entropy, *_ = kernels.ChunkedLogProbFunction.apply(batch.hidden, *arguments)
        return policy_loss(batch, log_probs, entropy)

    fields = {"modules": modules, "distribution": "trl", "fraction": SPARSE}

    @registry.contestant(f"TRL, chunked, f={SPARSE}", "hidden", f"{does}; {SPARSE_NOTE}", **fields)
    def compact(batch: Batch, kernels: ModuleType) -> Tensor:
        # Its trainer drops masked rows on the GPU in this way.
        mask = batch.loss_weights != 0
        names = ("hidden", "labels", "old_log_probs", "advantages", "loss_weights")
        return chunked(replace(batch, **{name: getattr(batch, name)[mask] for name in names}), kernels)


def add_liger(registry: Registry) -> None:
    """Liger: the GRPO losses on logits and on hidden states, and both cross-entropies."""
    add_liger_logits(registry)
    add_liger_hidden(registry)


def add_liger_logits(registry: Registry) -> None:
    """Liger's Triton kernels on logits."""
    fields = {"distribution": "liger-kernel", "entropy": False, "needs_cuda": True}
    modules = ("liger_kernel.transformers.grpo_loss",)

    @registry.contestant("Liger, GRPO", "logits", "PPO, weights; no entropy, no TP", modules=modules, **fields)
    def grpo(batch: Batch, liger: ModuleType) -> Tensor:
        # The last row of every sequence is never read, as in this workload; weights go in as a sampling correction.
        old, labels, weights = (
            batch.per_sequence(vector)[:, :-1].contiguous()
            for vector in (batch.old_log_probs, batch.labels, batch.loss_weights)
        )
        losses, _, _ = liger.triton_grpo_loss(
            batch.per_sequence(batch.logits),
            old,
            None,
            labels,
            batch.per_sequence(batch.advantages)[:, 0].contiguous(),
            temperature=batch.temperature,
            beta=0.0,
            eps_low=batch.clip_ratio,
            eps_high=batch.clip_ratio,
            vllm_is_ratio=weights,
        )
        return losses.sum()

    modules = ("liger_kernel.transformers.vocab_parallel_cross_entropy",)

    @registry.contestant(
        "Liger, vocab-parallel CE", "logits", "log p, TP; PPO outside, no entropy", modules=modules, **fields
    )
    def cross_entropy(batch: Batch, liger: ModuleType) -> Tensor:
        logits = batch.logits.float().div_(batch.temperature).unsqueeze(1)
        losses = liger.LigerVocabParallelCrossEntropy()(logits, batch.labels.unsqueeze(1), batch.group)
        return policy_loss(batch, -losses.squeeze(1))


def add_liger_hidden(registry: Registry) -> None:
    """Liger's losses on hidden states."""
    modules = ("liger_kernel.chunked_loss",)

    @registry.contestant(
        "Liger, linear GRPO",
        "hidden",
        "PPO, weights; no entropy, no TP",
        modules=modules,
        distribution="liger-kernel",
        entropy=False,
    )
    def linear_grpo(batch: Batch, liger: ModuleType) -> Tensor:
        # Its "dr_grpo" sum is over sequences * max_completion_length, and is multiplied back here.
        loss = liger.LigerFusedLinearGRPOLoss(
            beta=0.0,
            use_ref_model=False,
            epsilon_low=batch.clip_ratio,
            epsilon_high=batch.clip_ratio,
            loss_type="dr_grpo",
            max_completion_length=1,
            temperature=batch.temperature,
        )
        mean, _ = loss(
            batch.per_sequence(batch.hidden),
            batch.weight,
            batch.per_sequence(batch.labels),
            batch.per_sequence(batch.loss_weights != 0).float(),
            batch.per_sequence(batch.advantages)[:, 0],
            old_per_token_logps=batch.per_sequence(batch.old_log_probs),
            vllm_is_ratio=batch.per_sequence(batch.loss_weights),
        )
        return mean * batch.num_sequences

    modules = ("liger_kernel.ops.fused_linear_scaled_cross_entropy",)

    @registry.contestant(
        "Liger, linear scaled CE",
        "hidden",
        "log p + entropy; PPO outside, no TP",
        modules=modules,
        distribution="liger-kernel",
    )
    def scaled(batch: Batch, liger: ModuleType) -> Tensor:
        function = liger.LigerFusedLinearScaledCrossEntropyFunction
        arguments = (batch.hidden, batch.weight, batch.labels, batch.temperature, -100, 1, True)
        losses, entropy = function.apply(*arguments)
        return policy_loss(batch, -losses, entropy)


def add_flash_attention(registry: Registry) -> None:
    """flash-attn's Triton cross-entropy; the temperature goes in as its logit scale."""
    modules = ("flash_attn.ops.triton.cross_entropy",)

    @registry.contestant(
        "flash-attn CE",
        "logits",
        "log p, TP; PPO outside, no entropy",
        modules=modules,
        distribution="flash-attn",
        entropy=False,
        needs_cuda=True,
    )
    def cross_entropy(batch: Batch, flash: ModuleType) -> Tensor:
        losses, _ = flash.cross_entropy_loss(
            batch.logits,
            batch.labels,
            logit_scale=1 / batch.temperature,
            inplace_backward=True,
            process_group=batch.group,
        )
        return policy_loss(batch, -losses)


def add_cut_cross_entropy(registry: Registry) -> None:
    """Apple's CCE; it has no temperature, so the hidden states are scaled."""
    modules = ("cut_cross_entropy",)

    @registry.contestant(
        "cut-cross-entropy",
        "hidden",
        "log p; PPO outside, no entropy, no TP",
        modules=modules,
        distribution="cut-cross-entropy",
        entropy=False,
    )
    def cut(batch: Batch, cce: ModuleType) -> Tensor:
        kernel = "cce" if batch.hidden.is_cuda else "torch_compile"
        hidden = batch.hidden / batch.temperature
        losses = cce.linear_cross_entropy(hidden, batch.weight, batch.labels, reduction="none", impl=kernel)
        return policy_loss(batch, -losses)
