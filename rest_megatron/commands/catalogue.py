"""Every command of the program, each declared once: its options, then its line in COMMANDS.

Dispatch, overview, help, errors and completion derive from this. Nothing heavy is imported here, so that they are fast.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rest_megatron.commands.command import Command, Option
from rest_megatron.data.convert import SOURCES

CHECKPOINT = (
    "a run, its checkpoints/ or one step; a Hugging Face directory, or one that verl or ToolRL left above it; or a "
    "Megatron-core torch_dist checkpoint"
)
COMPANIONS = Option(
    "a Hugging Face directory with config.json and tokenizer, for a checkpoint that has none beside it", "DIR"
)
TRUST_PICKLE = Option(
    "read a Megatron-core checkpoint's .metadata, a Python pickle; nothing but a list of tensors can come of it"
)
TOKENIZER = Option("a Hugging Face directory, or one that holds its tokenizer.json", "DIR")


@dataclass(frozen=True, kw_only=True)
class PointInRun:
    """Where in a run rewards and weights are taken; by default at its start."""

    step: Annotated[int | None, Option("the training step, from 1 as in metrics.jsonl", "N")] = None
    progress: Annotated[float | None, Option("instead of --step: step / train.steps, from 0 to 1", "P")] = None

    def __post_init__(self) -> None:
        if self.step is not None and self.progress is not None:
            raise ValueError("--step and --progress say the same; give one")

    def resolved(self, steps: int) -> tuple[int, float]:
        """Step and progress (at most 1) in a run of `steps` steps."""
        if self.progress is not None:
            return round(self.progress * steps), self.progress
        step = self.step or 0
        return step, min(1.0, step / steps)


@dataclass(frozen=True, kw_only=True)
class Score(PointInRun):
    """Options of `score`."""

    input: Annotated[Path, Option("rows {response, ground_truth, think_open?} as JSON lines", positional=True)]
    output: Annotated[
        Path, Option("the file to write: {score, format, correctness, parts, reason} a row", positional=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Weigh(PointInRun):
    """Options of `weigh`."""

    input: Annotated[
        Path,
        Option(
            "rows {ids, entropy?, collision?, hidden_norm_squared?, think_open?, response_mask?} as JSON lines",
            positional=True,
        ),
    ]
    output: Annotated[
        Path, Option("the file to write: {ids, regions, weights, entropy?, response_mask?} a row", positional=True)
    ]
    tokenizer: Annotated[Path, TOKENIZER]
    run: Annotated[
        Path | None,
        Option("weigh by the region means that step N of this run went by (--step), not by the file's own", "DIR"),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run is not None and self.step is None:
            raise ValueError("--run needs --step, the training step whose weights are wanted")


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """Options of `heatmap`."""

    input: Annotated[Path, Option("rollouts/step-N.jsonl of a run, or what `weigh` wrote", positional=True)]
    tokenizer: Annotated[Path, TOKENIZER]
    row: Annotated[int, Option("the answer to show, counted from 0", "N")] = 0
    output: Annotated[Path | None, Option("write an HTML page there; without it, text on the terminal", "FILE")] = None


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Options of `prepare`."""

    input: Annotated[Path, Option("the data set: .json, .jsonl or .parquet", positional=True)]
    output: Annotated[Path, Option("the rows to write: .parquet or .jsonl", positional=True)]
    source: Annotated[str, Option("the data set's layout", choices=tuple(SOURCES))]


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Options of `convert`."""

    input: Annotated[Path, Option(CHECKPOINT, positional=True)]
    output: Annotated[Path, Option("the directory to make; nothing is overwritten", positional=True)]
    format: Annotated[
        str | None,
        Option(
            "what to make (default: megatron from a Hugging Face model, hf from all else)", choices=("hf", "megatron")
        ),
    ] = None
    model: Annotated[Path | None, COMPANIONS] = None
    dtype: Annotated[
        str | None,
        Option("the type of the weights in the output (default: the input's)", choices=("bfloat16", "float32")),
    ] = None
    vocab_multiple: Annotated[
        int, Option("pad the vocabulary of a Megatron-core checkpoint to a multiple of N", "N", minimum=1)
    ] = 1
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Options of `inspect`."""

    input: Annotated[Path, Option(CHECKPOINT, positional=True)]
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Options of `verify`."""

    input: Annotated[Path, Option(CHECKPOINT, positional=True)]
    model: Annotated[Path | None, COMPANIONS] = None
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Options of `diff`."""

    input: Annotated[Path, Option(CHECKPOINT, positional=True)]
    against: Annotated[Path, Option("the checkpoint to compare it with, of any of these kinds", positional=True)]
    model: Annotated[Path | None, COMPANIONS] = None
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Options of `profile`."""

    tokens: Annotated[
        int,
        Option("also the true score norm of about N sampled tokens, by some six backward passes each (0: not)", "N"),
    ] = 0


@dataclass(frozen=True, kw_only=True)
class Check:
    """Options of `check`."""

    world_size: Annotated[int, Option("the number of ranks to check the layout for", "N", minimum=1)] = 1


_COMMANDS = (
    Command(
        "train",
        "train by reinforcement learning with ResT token weights (the default command)",
        "torchrun --nproc-per-node 8 -m rest_megatron train -c examples/qwen3-14b/rest.yaml optim.lr=2e-6",
        every_rank=True,
    ),
    Command(
        "sft",
        "train on demonstrations, as a warm start for reinforcement learning",
        "torchrun --nproc-per-node 2 -m rest_megatron sft -c examples/quickstart/sft.yaml run.device=cpu",
        every_rank=True,
    ),
    Command(
        "profile",
        "measure entropy and score norm by region, and the gradient variance that the weights save",
        "torchrun --nproc-per-node 2 -m rest_megatron profile -c examples/quickstart/rest.yaml run.dir=runs/profile "
        "--tokens 500",
        Profile,
        every_rank=True,
    ),
    Command(
        "rollout",
        "answer every prompt of data.train and write scored answers to run.dir/rollout.jsonl",
        "torchrun --nproc-per-node 2 -m rest_megatron rollout -c examples/quickstart/rest.yaml run.dir=runs/answers",
        every_rank=True,
    ),
    Command(
        "score",
        "give the answers in a file their rewards, without a model",
        "rest_megatron score answers.jsonl scores.jsonl --step 50 reward.preset=paper train.steps=100",
        Score,
    ),
    Command(
        "weigh",
        "give every token of the answers in a file its region and weight, without a model",
        "rest_megatron weigh tokens.jsonl weights.jsonl --tokenizer examples/quickstart/model --progress 0.5",
        Weigh,
    ),
    Command(
        "heatmap",
        "show where the weight goes in one answer, as coloured text or an HTML page",
        "rest_megatron heatmap runs/quickstart/rest/rollouts/step-5.jsonl "
        "--tokenizer examples/quickstart/model --row 3",
        Heatmap,
        reads_config=False,
    ),
    Command(
        "prepare",
        "make training rows from another tool-use data set",
        "rest_megatron prepare xlam.json train.parquet --source xlam data.answer_format=hermes",
        Prepare,
    ),
    Command(
        "convert",
        "convert a checkpoint of ours, of Megatron-core or of Hugging Face into another of these",
        "rest_megatron convert runs/quickstart/rest model",
        Convert,
        reads_config=False,
    ),
    Command(
        "inspect",
        "show what a checkpoint, or the newest one of a run, is and holds",
        "rest_megatron inspect runs/quickstart/rest",
        Inspect,
        reads_config=False,
    ),
    Command(
        "verify",
        "check that a checkpoint, or every one of a run, is whole",
        "rest_megatron verify runs/quickstart/rest",
        Verify,
        reads_config=False,
    ),
    Command(
        "diff",
        "show how the tensors of two checkpoints differ",
        "rest_megatron diff runs/quickstart/sft runs/quickstart/rest",
        Diff,
        reads_config=False,
    ),
    Command(
        "check",
        "check versions, configuration, model, tokenizer and data for a job, without starting it",
        "rest_megatron check -c examples/qwen3-14b/rest.yaml --world-size 8",
        Check,
    ),
    Command(
        "print-config",
        "print the resolved configuration as YAML, secrets hidden",
        "rest_megatron print-config -c examples/quickstart/rest.yaml optim.lr=2e-6",
    ),
    Command(
        "print-server",
        "print the shell command that starts a vLLM server at rollout.vllm_url",
        "rest_megatron print-server -c examples/quickstart/rest.yaml rollout.engine=vllm "
        "rollout.vllm_url=http://node7:8000",
    ),
)
COMMANDS = {command.name: command for command in _COMMANDS}
