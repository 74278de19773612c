"""The whole configuration as one Markdown page: docs/configuration.md, which tools/configuration_page.py writes."""

import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any, get_type_hints

from rest_megatron.config.changes import FREE_KEYS, FREE_SECTIONS
from rest_megatron.config.check_rollout import OWNED_ARGUMENTS
from rest_megatron.config.deepspeed import REASON, STAGES
from rest_megatron.config.describe import default_text
from rest_megatron.config.keys import PASS_THROUGH, Key, keys, sections, type_name
from rest_megatron.config.megatron import FIXED_FIELDS, OWNED_FIELDS
from rest_megatron.config.method import METHOD_PRESETS, WEIGHTS_PRESETS
from rest_megatron.config.schema import Config

INTRO = """\
<!-- Generated from rest_megatron/config: python tools/configuration_page.py > docs/configuration.md -->
# Configuration

A run is configured by YAML files and by overrides on the command line:

```
python -m rest_megatron train -c run.yaml -c site.yaml optim.lr=2e-6 train.steps=200
```

```yaml
# run.yaml
model: {path: models/Qwen3-14B}
data: {train: train.parquet, eval: heldout.parquet}
optim:
  lr: 1e-6
```

- **Order.** Defaults, then the [presets](#presets), then files from left to right, then overrides; the last one wins.
- **Values** are YAML 1.2: `1e-6` is a number, `off` and `yes` are text, `null` is nothing.
- **Mistakes** end the command before anything starts, with the file, the line, the rule and a fix. A key that does not
  exist is one of them.
- **Checking.** `python -m rest_megatron check -c run.yaml --world-size 8` tries everything that needs no job;
  `print-config` shows the resolved configuration, and every run keeps it as `config.yaml`.
- **Secrets** come from the environment (`OPENAI_API_KEY`, `VLLM_API_KEY`, `HF_TOKEN`, Weights & Biases' own variables)
  and are hidden wherever a configuration is shown. No environment variable changes the method.
- **Paths** are relative to the working directory; only a DeepSpeed JSON is sought beside the file that names it.

Equation numbers refer to [arXiv 2509.21826](https://arxiv.org/abs/2509.21826).
"""
PURPOSE = {
    "megatron": """\
Any field of Megatron-core's `TransformerConfig`, under its own name, such as recomputation:

```yaml
megatron: {recompute_granularity: full, recompute_method: uniform, recompute_num_layers: 1}
```

These cannot be set here:""",
    "deepspeed": """\
DeepSpeed's own configuration, as a mapping or as the path of its JSON:

```yaml
deepspeed: {zero_optimization: {stage: 1, offload_optimizer: {device: cpu}}}
```

Megatron's schedule accumulates the micro-batches, DeepSpeed reduces the gradients and steps, once. That holds with ZeRO
stage 1 and without `overlap_comm`. An `optimizer` or `scheduler` section may repeat what `optim` says, and nothing
else.

These are the trainer's own: leave them out, or write `auto` or the same value.""",
    "vllm": """\
Any argument of vLLM's server, under its own name with underscores, for the server that the trainer starts with
`rollout.engine=vllm`:

```yaml
vllm: {tensor_parallel_size: 4, gpu_memory_utilization: 0.9}
```

These cannot be set here:""",
}
# What help, which is plain text, names of settings, dotted keys, files and functions.
CODE = r"[a-z_]+(?:\.[a-z_]+)?=[\w-]+|[a-z]+\.[a-z_]+\b(?![(*])(?:[:/][a-z]+)?"


def markdown() -> str:
    """The reference of every section and key, in the schema's order."""
    order = [name for name in get_type_hints(Config) if name in sections() or name in PASS_THROUGH]
    contents = _table(["Section", "What it holds"], ([f"[`{name}`](#{name})", _first_sentence(name)] for name in order))
    return "\n".join([INTRO, contents, *(_section(name) for name in order), _presets(), _resuming()])


def _section(name: str) -> str:
    if name in PASS_THROUGH:
        return f"## {name}\n\n{PURPOSE[name]}\n\n{_refused(name)}"
    mine = [key for key in keys().values() if key.name.partition(".")[0] == name]
    rows = ([f"`{key.name.partition('.')[2]}`", _values(key), _default(key), _meaning(key)] for key in mine)
    return f"## {name}\n\n{_code(_purpose(name))}\n\n" + _table(["Key", "Value", "Default", "Meaning"], rows)


def _refused(name: str) -> str:
    if name == "megatron":
        rows = _grouped(OWNED_FIELDS, "decided by {}") + _grouped(FIXED_FIELDS, "{}")
    elif name == "vllm":
        rows = _grouped(OWNED_ARGUMENTS, "decided by {}")
    else:
        stages = {f"zero_optimization.stage={stage}": reason for stage, reason in STAGES.items()}
        rows = _grouped(REASON, "{}") + _grouped(stages, "{}")
    return _table([{"megatron": "Field", "vllm": "Argument"}.get(name, "Key"), "Why"], rows)


def _grouped(reasons: Mapping[str, str], sentence: str) -> list[list[str]]:
    """One row a reason, with all names that share it."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(f"`{name}`")
    return [[", ".join(some), _code(sentence.format(reason))] for reason, some in names.items()]


def _presets() -> str:
    rows = [
        [
            f"`{key}={name}`",
            ", ".join(f"`{word}`" for word in _words(values)) or "nothing: the defaults are the paper's",
        ]
        for key, table in (("method.preset", METHOD_PRESETS), ("weights.preset", WEIGHTS_PRESETS))
        for name, values in table.items()
    ]
    text = "A preset sets keys that no file and no override sets. The method's may choose that of `weights`."
    return f"## Presets\n\n{text}\n\n" + _table(["Preset", "Sets"], rows)


def _words(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"{section}.{key}={value}" for section, table in values.items() for key, value in table.items()]


def _resuming() -> str:
    whole = ", ".join(f"`{name}`" for name in sorted(FREE_SECTIONS))
    free = [name.partition(".") for name in keys() if name in FREE_KEYS]
    single = "".join(
        f"- of `{section}`: {', '.join(f'`{name}`' for _, _, name in some)};\n"
        for section, some in groupby(free, key=itemgetter(0))
    )
    return (
        "## What may change when a run resumes\n\n"
        "A run resumes only where the keys that shape it are what they were, unless `checkpoint.allow_changes=true`.\n"
        "Where and how fast it trains may change at any time:\n\n"
        f"- the sections {whole};\n{single}"
        "- `model.path`, unless `algorithm.kl_coef` > 0: the weights are the checkpoint's.\n"
    )


def _purpose(name: str) -> str:
    return (sections()[name].__doc__ or "").strip()


def _first_sentence(name: str) -> str:
    text = keys()[name].help if name in PASS_THROUGH else _purpose(name)
    return _code(re.split(r"(?<=\.)\s(?=[A-Z])", text)[0])


def _values(key: Key) -> str:
    if key.choices:
        return ", ".join(f"`{choice}`" for choice in key.choices)
    kind, null, _ = type_name(key.hint).partition(" or null")
    return " ".join([kind.removeprefix("a "), _number(key.bounds)]).strip() + (", or `null`" if null else "")


def _default(key: Key) -> str:
    text = key.default if isinstance(key.default, str) else _number(default_text(key))
    return f"`{text}`" if text else "none"


def _number(text: str) -> str:
    """`text` with 1e-6 for 1.0e-06, as YAML writes it."""
    return re.sub(r"(\.0)?e-0?", "e-", text)


def _meaning(key: Key) -> str:
    """The help, with each choice that begins a sentence on a line of its own."""
    text = _code(key.help)
    for choice in key.choices:
        text = re.sub(rf"(^|[.:;] ){re.escape(choice)}(: )", rf"\1`{choice}`\2", text)
        text = text.replace(f". `{choice}`: ", f".<br>`{choice}`: ")
    return text


def _code(text: str) -> str:
    """`text` with everything that could be typed set as code."""
    table = keys()
    names = {name.partition(".")[2] for name in table} | {choice for key in table.values() for choice in key.choices}
    known = "|".join(rf"{name}\b" for name in sorted(names, key=len, reverse=True) if "_" in name)
    return re.sub(rf"(?<![\w`.-])(?:{CODE}|{known})(?!`)", r"`\g<0>`", text)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)
