"""The configuration schema: every key, its type, default, rule and one sentence of help.

`load.py` reads YAML and `key=value` overrides into these frozen dataclasses; nothing here does I/O. The sections of
the method itself are in `method.py`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from rest_megatron.config.field import key
from rest_megatron.config.method import AlgorithmConfig, MethodConfig, RewardConfig, WeightsConfig

Dtype = Literal["bfloat16", "float32"]
Overlong = Literal["error", "drop"]
AnswerFormat = Literal["toolrl", "hermes", "llama3"]


@dataclass(frozen=True)
class RunConfig:
    """Where and how the program runs."""

    dir: str = key("runs/rest", "Directory for metrics, rollouts, reports and exported weights.")
    seed: int = key(0, "Seed of data order, sampling and random initialisation.", ge=0)
    device: Literal["auto", "cpu", "cuda"] = key("auto", "Device of the actor; auto takes CUDA when there is one.")
    hang_timeout: float = key(
        1500.0, "Seconds without any progress after which a rank writes its stacks and ends the run, 0: never.", ge=0
    )


@dataclass(frozen=True)
class ModelConfig:
    """The policy: which model, from which weights, in which precision."""

    path: str = key("", "Hugging Face directory: config.json, tokenizer and, unless random_init, safetensors.")
    random_init: bool = key(False, "Start from seeded random weights instead of the safetensors in path.")
    dtype: Dtype = key(
        "bfloat16",
        "Working precision; masters, gradients and reductions stay float32.",
    )
    attention: Literal["auto", "sdpa", "transformer_engine"] = key(
        "auto",
        "Attention of packs: sdpa: PyTorch's own, in half precision on CUDA one call for all. auto: the same, but with "
        "train.shared_prefixes=false Transformer Engine on CUDA when it is installed, which cannot share.",
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
    """The loss kernels: what they start from and what runs them."""

    level: Literal["logits", "hidden"] = key(
        "logits",
        "What they start from: the logits of all targets of a micro-batch, or hidden states, so that a "
        "chunk of these logits exists at once.",
    )
    chunk_size: int = key(4096, "Rows of logits that exist at once with level=hidden.", ge=1)
    backend: Literal["auto", "triton", "torch"] = key("auto", "auto takes Triton on CUDA and chunked torch elsewhere.")


@dataclass(frozen=True)
class DataConfig:
    """Prompts: where they are, how long they may be, how they are written and how answers are."""

    train: str = key("", "Prompts to train on: .parquet or .jsonl in the rlla schema.")
    eval: str | None = key(None, "Held-out prompts in the same schema.")
    max_prompt_tokens: int = key(2048, "Longest prompt after the chat template.", ge=1)
    overlong: Overlong = key("error", "What to do with a longer prompt at load.")
    answer_format: AnswerFormat = key(
        "toolrl",
        "Grammar of the answers, for regions and rewards; ground truths are always written in toolrl's.",
    )
    chat_template: str | None = key(
        None, "A Jinja file in place of the tokenizer's template; keep_thinking: ours, which keeps earlier thoughts."
    )


@dataclass(frozen=True)
class RolloutConfig:
    """Sampling: how many answers, from which engine, over how many turns."""

    prompts_per_step: int = key(16, "Prompts per training step, over all ranks.", ge=1)
    group_size: int = key(8, "Answers per prompt (G).", ge=2)
    max_new_tokens: int = key(1024, "Longest answer in tokens.", ge=1)
    temperature: float = key(1.0, "Sampling temperature; the actor's log-probs use the same.", ge=1e-6)
    engine: Literal["sampler", "vllm"] = key(
        "sampler",
        "sampler: in process, from the actor's own weights. vllm: a vLLM server in an interpreter of its own, which "
        "vllm_python starts or vllm_url names.",
    )
    max_batch_size: int = key(128, "Sequences a data-parallel rank of the sampler decodes at once.", ge=1)
    top_p: float = key(1.0, "vLLM's top_p; other than 1 only without importance correction.", gt=0, le=1)
    top_k: int = key(0, "vLLM's top_k, 0: off; otherwise only without importance correction.", ge=0)
    min_p: float = key(0.0, "vLLM's min_p; other than 0 only without importance correction.", ge=0, lt=1)
    max_turns: int = key(1, "Turns the assistant may take; after all but the last, rollout.tools may answer.", ge=1)
    tools: str | None = key(
        None, "With max_turns > 1, your tools: package.module:function, or file.py:function (docs/method.md)."
    )
    tools_timeout: float = key(60.0, "Seconds that the tools may take to answer one turn.", gt=0)
    vllm_python: str | None = key(
        None, "Interpreter of the environment that holds vLLM; the trainer starts the server and ends it."
    )
    vllm_url: str | None = key(
        None, "In place of vllm_python: the address of a server that print-server's command started."
    )
    vllm_devices: str | None = key(
        None, "CUDA_VISIBLE_DEVICES of the server that is started, such as 4,5,6,7; null: the trainer's own."
    )
    sync_dir: str | None = key(
        None, "Where weights pass to the server, a directory that trainer and server share; null: /dev/shm (one node)."
    )
    start_timeout: float = key(900.0, "Seconds until a server that is started must answer.", gt=0)
    generate_timeout: float = key(3600.0, "Seconds that the answers to one batch of prompts may take.", gt=0)
    sync_timeout: float = key(300.0, "Seconds that each call of a weight update may take.", gt=0)
    probe_prompts: int = key(2, "Prompts whose log-probs are compared with the actor's after each update.", ge=1)
    probe_tolerance: float | None = key(
        None, "Mean difference of log-probs there that stops the run; null: 0.001 in float32, 0.05 in bfloat16.", gt=0
    )
    dump: bool = key(True, "Write every scored answer to rollouts/step-N.jsonl, held-out ones to eval-N.jsonl.")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule; ZeRO holds the state."""

    lr: float = key(1e-6, "Peak learning rate.", gt=0)
    betas: tuple[float, float] = key((0.9, 0.95), "AdamW betas.", ge=0, lt=1)
    eps: float = key(1e-8, "AdamW epsilon.", gt=0)
    weight_decay: float = key(0.01, "Weight decay of matrices; norms and biases have none.", ge=0)
    clip_grad: float = key(1.0, "Global gradient norm above which gradients are scaled down; 0: off.", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = key("constant", "Learning rate after warm-up.")
    warmup_steps: int = key(0, "Optimizer steps of linear warm-up.", ge=0)
    min_lr_ratio: float = key(0.0, "Final over peak learning rate of linear and cosine.", ge=0, le=1)


@dataclass(frozen=True)
class TrainConfig:
    """The loop: steps, the updates within one, evaluations, exports and debugging."""

    steps: int = key(100, "Training steps (rollout + update); progress nu = step / steps.", ge=1)
    mini_batch_size: int | None = key(
        None,
        "Answers per optimizer step, over all ranks; null: all of the step's. From rollout.group_size on, at most as "
        "many whole groups as fit in, so that no prompt is computed in two optimizer steps.",
        ge=1,
    )
    epochs: int = key(1, "Passes over each step's answers.", ge=1)
    max_tokens_per_micro_batch: int = key(
        8192,
        "Tokens packed into one micro-batch of one rank, and targets predicted in it: what answers share counts once "
        "among the tokens.",
        ge=1,
    )
    shared_prefixes: bool = key(
        True,
        "Run a beginning that sequences of a micro-batch share, such as the prompt of a group's answers, once; false: "
        "each sequence by itself, which gives the same numbers but for rounding.",
    )
    eval_interval: int = key(0, "Steps between evaluations on data.eval; 0: before and after only.", ge=0)
    export_interval: int = key(0, "Steps between Hugging Face exports; 0: at the end only.", ge=0)
    gradient_variance_interval: int = key(
        0,
        "Steps between measurements of what these token weights do to the gradient, against uniform ones: its variance "
        "over groups, its direction, and what an Adam step along it gains; each costs two and a half more passes over "
        "the step's answers. 0: never.",
        ge=0,
    )
    max_nonfinite: int = key(
        3, "Updates in a row that may be skipped because loss or gradient is not finite; one more ends the run.", ge=0
    )
    debug: Literal["off", "rollout_only", "train_only"] = key(
        "off",
        "rollout_only: sample, score and dump, but update nothing. train_only: take each step's scored answers from "
        "train.replay and sample nothing; the same dump trains alike on any layout. Neither evaluates.",
    )
    replay: str | None = key(None, "With debug=train_only: a directory of step-N.jsonl, the rollouts of another run.")


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of a run, and what it resumes from."""

    interval: int = key(10, "Steps between checkpoints; 0: at the end and when the run is stopped only.", ge=0)
    keep: int = key(2, "Checkpoints that are kept in run.dir/checkpoints; older ones are deleted.", ge=1)
    background: bool = key(False, "Write checkpoints while training continues, from a copy in CPU memory.")
    resume: str = key(
        "auto",
        "auto: resume from the newest checkpoint in run.dir that is whole, start anew where there is none. never: "
        "run.dir must hold no earlier run. Or the directory of one checkpoint, which need not be in run.dir.",
    )
    allow_changes: bool = key(
        False, "Resume although keys that shape the training, or its data, differ from the checkpoint's."
    )
    save_by: float | None = key(
        None, "Seconds after the start at which the run is saved and ended with exit code 75; null: never.", gt=0
    )


@dataclass(frozen=True)
class SftConfig:
    """Supervised warm start (the `sft` command)."""

    data: str = key("", "Rows with `prompt` messages and a `response` text, .parquet or .jsonl.")
    steps: int = key(100, "Optimizer steps.", ge=1)
    batch_size: int = key(32, "Rows per optimizer step, over all ranks.", ge=1)


@dataclass(frozen=True)
class ProfileConfig:
    """The `profile` command: what it measures, and for which point of a run."""

    prompts: int = key(32, "Prompts of data.train to answer, each rollout.group_size times.", ge=1)
    progress: float = key(0.0, "Point of the run whose weights and rewards are used (nu).", ge=0, le=1)
    gradient_variance: bool = key(True, "Also measure gradients: variance, direction and gain of these weights.")


@dataclass(frozen=True)
class AlarmsConfig:
    """Warnings about runs that go wrong quietly; each is logged once when it begins and once when it ends."""

    window: int = key(10, "Steps that are averaged.", ge=1)
    min_length_ratio: float = key(
        0.5, "Short answers: mean length below this share of the first window's; 0: off.", ge=0, lt=1
    )
    format_high: float = key(
        0.9, "Format hacking: format rate above this while correctness does not rise; 1: off.", gt=0, le=1
    )
    correctness_low: float = key(0.5, "... and the mean of the accuracy parts is below this.", ge=0, le=1)
    max_mismatch: float = key(
        0.05, "Mismatch: mean |log-prob difference| between actor and engine above this; 0: off.", ge=0
    )
    control_jump: float = key(
        1.0,
        "Control tokens: log-odds of the format tokens' probability further than this from the last window's mean, and "
        "further than five standard deviations; 0: off.",
        ge=0,
    )


@dataclass(frozen=True)
class LogConfig:
    """What is reported and where; keys and tokens come from the environment only."""

    wandb: Literal["off", "offline", "online"] = key("off", "Weights & Biases: off, offline (no key needed) or online.")
    wandb_project: str = key("rest_megatron", "Weights & Biases project.")
    tensorboard: bool = key(False, "Write TensorBoard events to run.dir/tensorboard.")
    quiet: bool = key(False, "No progress lines; metrics.jsonl is written all the same.")


@dataclass(frozen=True)
class Config:
    """One run."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    megatron: dict[str, Any] = key({}, "Any field of Megatron's TransformerConfig, under its own name.")
    deepspeed: dict[str, Any] = key(
        {}, "DeepSpeed's own configuration: a mapping, or the path of its JSON (read at load)."
    )
    vllm: dict[str, Any] = key({}, "Any argument of vLLM's server, under its own name, for the server that is started.")
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    alarms: AlarmsConfig = field(default_factory=AlarmsConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sources: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def where(self, key: str) -> str:
        """Where a dotted key was set: "run.yaml:14", "override: optim.lr=1e-6", "preset method=grpo" or "default"."""
        return self.sources.get(key, "default")
