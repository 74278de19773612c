"""The configuration schema: every key, its type, default, rule and one sentence of help.

`load.py` reads YAML and `key=value` overrides into these frozen dataclasses; nothing here does I/O.
Equation numbers refer to arXiv 2509.21826.
"""

from dataclasses import dataclass, field
from typing import Any


def key(
    default: Any,
    help: str,
    *,
    choices: tuple | None = None,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """A dataclass field that carries its help text and its bounds."""
    metadata = {"help": help, "choices": choices, "ge": ge, "gt": gt, "le": le, "lt": lt}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunConfig:
    """Where and how the program runs."""

    dir: str = key("runs/rest", "Directory for metrics, rollouts, reports and exported weights.")
    seed: int = key(0, "Seed of data order, sampling and random initialisation.", ge=0)
    device: str = key(
        "auto", "Device of the actor; auto takes CUDA when there is one.", choices=("auto", "cpu", "cuda")
    )


@dataclass(frozen=True)
class ModelConfig:
    """The policy."""

    path: str = key("", "Hugging Face directory: config.json, tokenizer and, unless random_init, safetensors.")
    random_init: bool = key(False, "Start from seeded random weights instead of the safetensors in path.")
    dtype: str = key(
        "bfloat16",
        "Working precision; masters, gradients and reductions stay float32.",
        choices=("bfloat16", "float32"),
    )
    attention: str = key(
        "auto",
        "Attention kernel; auto takes Transformer Engine on CUDA when it is installed.",
        choices=("auto", "sdpa", "transformer_engine"),
    )


@dataclass(frozen=True)
class ParallelConfig:
    """How the model is cut; the rest of the world is data parallel."""

    tensor_model_parallel_size: int = key(1, "Ranks that share each matrix.", ge=1)
    pipeline_model_parallel_size: int = key(1, "Ranks that share the layers.", ge=1)
    virtual_pipeline_model_parallel_size: int | None = key(
        None, "Model chunks per pipeline rank (interleaved schedule).", ge=2
    )
    sequence_parallel: bool = key(False, "Cut activations between matrices along the sequence (needs TP > 1).")


@dataclass(frozen=True)
class KernelsConfig:
    """The loss kernels."""

    level: str = key(
        "logits",
        "What they start from: all logits of a micro-batch, or hidden states, so that a chunk of logits exists at once "
        "and only for answer tokens.",
        choices=("logits", "hidden"),
    )
    chunk_size: int = key(4096, "Rows of logits that exist at once with level=hidden.", ge=1)
    backend: str = key(
        "auto", "auto takes Triton on CUDA and chunked torch elsewhere.", choices=("auto", "triton", "torch")
    )


@dataclass(frozen=True)
class DataConfig:
    """Prompts."""

    train: str = key("", "Prompts to train on: .parquet or .jsonl in the rlla schema.")
    eval: str | None = key(None, "Held-out prompts in the same schema.")
    max_prompt_tokens: int = key(2048, "Longest prompt after the chat template.", ge=1)
    overlong: str = key("error", "What to do with a longer prompt at load.", choices=("error", "drop"))


@dataclass(frozen=True)
class RolloutConfig:
    """Sampling."""

    prompts_per_step: int = key(16, "Prompts per training step, over all ranks.", ge=1)
    group_size: int = key(8, "Answers per prompt (G).", ge=2)
    max_new_tokens: int = key(1024, "Longest answer in tokens.", ge=1)
    temperature: float = key(1.0, "Sampling temperature; the actor's log-probs use the same.", ge=1e-6)
    max_batch_size: int = key(128, "Sequences a data-parallel rank decodes at once.", ge=1)
    dump: bool = key(True, "Write every scored answer to rollouts/step-N.jsonl.")


@dataclass(frozen=True)
class MethodConfig:
    """Which method; a preset fills `weights` and `algorithm`, explicit keys win."""

    preset: str = key(
        "paper", "paper: ResT with measured entropies. grpo: every token weighs the same.", choices=("paper", "grpo")
    )


@dataclass(frozen=True)
class WeightsConfig:
    """Region weights (Theorem 2, Eq. 9) and their curriculum (Eq. 16-17)."""

    rule: str = key(
        "score_bound",
        "Region weight from region entropy H: score_bound 1/(1-exp(-H)), inverse_entropy 1/H, constant 1 (Eq. 9).",
        choices=("score_bound", "inverse_entropy", "constant"),
    )
    entropy_momentum: float = key(
        0.9, "Running mean of region entropies over steps; 0 uses this step alone.", ge=0, lt=1
    )
    clamp_min: float = key(0.3, "Smallest region weight after the rule is normalised.", gt=0)
    clamp_max: float = key(2.0, "Largest region weight after the rule is normalised.", gt=0)
    curriculum: str = key(
        "linear", "Schedule over progress nu = step / train.steps (Eq. 16-17).", choices=("linear", "none")
    )
    alpha_format: float = key(0.3, "Fall of the format weight over the run (a_f).", ge=0)
    alpha_parameters: float = key(0.3, "Rise of the parameter weight over the run (a_p).", ge=0)
    alpha_cot: float = key(0.3, "Rise of the chain-of-thought weight over the run (a_t).", ge=0)
    w_min: float = key(0.3, "Floor of the falling weight (w_min).", gt=0)
    w_max: float = key(2.0, "Ceiling of the rising weights (w_max).", gt=0)


@dataclass(frozen=True)
class AlgorithmConfig:
    """Advantages and the clipped loss."""

    normalize_by_std: bool = key(True, "Divide group advantages by the group's standard deviation (GRPO).")
    clip_ratio_low: float = key(0.2, "Lower clip of the probability ratio (eps_lo).", gt=0, lt=1)
    clip_ratio_high: float = key(0.2, "Upper clip of the probability ratio (eps_hi).", gt=0)
    clip_ratio_dual: float | None = key(None, "Dual clip for negative advantages (c > 1); null: none.", gt=1)
    loss_aggregation: str = key(
        "seq-mean-token-mean",
        "1/G sum_i 1/T_i sum_t, or one weighted mean over all tokens.",
        choices=("seq-mean-token-mean", "token-mean"),
    )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule; ZeRO holds the state."""

    lr: float = key(1e-6, "Peak learning rate.", gt=0)
    betas: tuple[float, float] = key((0.9, 0.95), "AdamW betas.", ge=0, lt=1)
    eps: float = key(1e-8, "AdamW epsilon.", gt=0)
    weight_decay: float = key(0.01, "Weight decay of matrices; norms and biases have none.", ge=0)
    clip_grad: float = key(1.0, "Global gradient norm above which gradients are scaled down; 0: off.", ge=0)
    schedule: str = key("constant", "Learning rate after warm-up.", choices=("constant", "linear", "cosine"))
    warmup_steps: int = key(0, "Optimizer steps of linear warm-up.", ge=0)
    min_lr_ratio: float = key(0.0, "Final over peak learning rate of linear and cosine.", ge=0, le=1)


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = key(100, "Training steps (rollout + update); progress nu = step / steps.", ge=1)
    mini_batch_size: int | None = key(
        None, "Answers per optimizer step, over all ranks; null: all of the step's.", ge=1
    )
    epochs: int = key(1, "Passes over each step's answers.", ge=1)
    max_tokens_per_micro_batch: int = key(8192, "Tokens packed into one micro-batch of one rank.", ge=1)
    eval_interval: int = key(0, "Steps between evaluations on data.eval; 0: before and after only.", ge=0)
    export_interval: int = key(0, "Steps between Hugging Face exports; 0: at the end only.", ge=0)


@dataclass(frozen=True)
class SftConfig:
    """Supervised warm start (the `sft` command)."""

    data: str = key("", "Rows with `prompt` messages and a `response` text, .parquet or .jsonl.")
    steps: int = key(100, "Optimizer steps.", ge=1)
    batch_size: int = key(32, "Rows per optimizer step, over all ranks.", ge=1)


@dataclass(frozen=True)
class LogConfig:
    """What is reported and where; keys and tokens come from the environment only."""

    wandb: str = key(
        "off", "Weights & Biases: off, offline (no key needed) or online.", choices=("off", "offline", "online")
    )
    wandb_project: str = key("rest_megatron", "Weights & Biases project.")
    tensorboard: bool = key(False, "Write TensorBoard events to run.dir/tensorboard.")
    quiet: bool = key(False, "No progress lines; metrics.jsonl is written all the same.")


@dataclass(frozen=True)
class Config:
    """One run."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    megatron: dict = key({}, "Any field of Megatron's TransformerConfig, under its own name.")
    deepspeed: dict = key({}, "DeepSpeed's own configuration: a mapping, or the path of its JSON (read at load).")
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sources: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def where(self, key: str) -> str:
        """Where a dotted key was set: "run.yaml:14", "override: optim.lr=1e-6", "preset grpo" or "default"."""
        return self.sources.get(key, "default")
