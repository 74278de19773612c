"""Nothing that a run reads is unpickled, imported or otherwise executed: files that would leave a mark are planted."""

import io
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rest_megatron.checkpoint.manifest import file_entry, read_manifest, write_manifest
from rest_megatron.saver import EXPERIENCE
from tests.faults.task import Task


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.write_text, (self.mark, "executed")


@pytest.fixture
def mark(tmp_path) -> Path:
    """What a planted file would write."""
    return tmp_path / "mark"


@pytest.fixture
def pickles(mark) -> dict[str, bytes]:
    """The same bomb as plain pickle and as torch.save writes it."""
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "bomb": Bomb(mark)}, file)
    return {"pickle": pickle.dumps(Bomb(mark)), "torch.save": file.getvalue()}


@pytest.fixture
def copied(task, tmp_path) -> Task:
    """The task with a model, data and a configuration file of its own, which a test may spoil."""
    model, rows = (_value(task, name) for name in ("model.path", "data.train"))
    shutil.copytree(model, tmp_path / "model")
    shutil.copy(rows, tmp_path / "rows.jsonl")
    (tmp_path / "run.yaml").write_text("optim: {lr: 1.0e-3}\n")
    words = [*task.words, f"model.path={tmp_path / 'model'}", f"data.train={tmp_path / 'rows.jsonl'}", "train.steps=1"]
    return Task(words, tmp_path)


def _value(task: Task, name: str) -> str:
    return next(word.removeprefix(f"{name}=") for word in task.words if word.startswith(f"{name}="))


def test_the_bombs_go_off(pickles, mark):
    pickle.loads(pickles["pickle"])
    assert mark.read_text() == "executed"
    mark.unlink()
    torch.load(io.BytesIO(pickles["torch.save"]), weights_only=False)
    assert mark.read_text() == "executed"


PLANTED = (
    "model/pytorch_model.bin",
    "model/model.pt",
    "model/training_args.bin",
    "model/optimizer.pt",
    "model/tokenizer.pkl",
    "model/tokenizer.model",
    "model/special_tokens_map.bin",
    "model/.metadata",
    "model/mp_rank_00_model_states.pt",
    "rows.pkl",
    "run/latest",
    "run/checkpoints/latest",
    "run/checkpoints/latest.pt",
    "run/checkpoints/mp_rank_00_model_states.pt",
    "run/checkpoints/step-00000001.tmp/manifest.json",
    "run/checkpoints/step-00000001.tmp/state/.metadata",
)


def test_pickles_beside_what_is_read_are_left_alone(copied, start, pickles, mark):
    for name in PLANTED:
        path = copied.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickles["pickle" if path.suffix in (".pkl", ".metadata") else "torch.save"])
    code = copied.directory / "model" / "configuration_qwen3.py"
    code.write_text(f"from pathlib import Path\nPath({str(mark)!r}).write_text('executed')\n")
    config = copied.directory / "model" / "config.json"
    automatic = {"AutoConfig": "configuration_qwen3.Qwen3Config", "AutoTokenizer": ["configuration_qwen3.T", None]}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": automatic}))
    job = start(copied.train())
    assert job.wait() == [0], job.output()
    assert not mark.exists()


# The files, and the overrides that name them.
IN_PLACE = {
    "weights": (["model/model.safetensors"], ["model.random_init=false"]),
    "index": (["model/model.safetensors.index.json", "model/model.safetensors"], ["model.random_init=false"]),
    "model": (["model/config.json"], []),
    "tokenizer": (["model/tokenizer.json"], []),
    "tokenizer's settings": (["model/tokenizer_config.json"], []),
    "stop tokens": (["model/generation_config.json"], []),
    "chat template": (["model/chat_template.jinja"], []),
    "rows": (["rows.jsonl"], []),
    "parquet": (["rows.parquet"], ["data.train=rows.parquet"]),
    "json": (["rows.json"], ["data.train=rows.json"]),
    "saved answers": (["answers/step-1.jsonl"], ["train.debug=train_only", "train.replay=answers"]),
    "DeepSpeed's JSON": (["ds.json"], ["deepspeed=ds.json"]),
    "configuration": (["run.yaml"], ["-c", "run.yaml"]),
}


# What torch.save writes is a zip archive, to a reader of text as unreadable as a pickle: with --slow alone.
BINARY = ("weights", "index", "parquet", "saved answers")
REFUSED = [
    pytest.param(case, kind, marks=[] if kind == "pickle" or case in BINARY else pytest.mark.slow)
    for case in IN_PLACE
    for kind in ("pickle", "torch.save")
]


@pytest.mark.parametrize("case, kind", REFUSED)
def test_a_pickle_in_the_place_of_a_file_is_refused(copied, start, pickles, mark, case, kind):
    names, overrides = IN_PLACE[case]
    paths = [copied.directory / name for name in names]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickles[kind])
    job = start(copied.train(*overrides))
    assert job.wait()[0] in (2, 3, 4), job.output()
    assert paths[0].name in job.output() or str(paths[0].parent) in job.output()
    assert "Traceback" not in job.output() and not mark.exists()


@pytest.mark.parametrize(
    "pattern, hashed",
    [
        ("manifest.json", False),
        ("state/*.safetensors", False),
        ("state/*.safetensors", True),
        ("rng/*.safetensors", True),
        (EXPERIENCE, False),
        (EXPERIENCE, True),
    ],
)
def test_a_pickle_in_the_place_of_a_checkpoint_s_file_is_passed_over_or_refused(
    stopped, start, pickles, mark, pattern, hashed
):
    newest = stopped.run_dir / "checkpoints" / "step-00000003"
    path = next(newest.glob(pattern), newest / pattern)
    path.write_bytes(pickles["torch.save"])
    if hashed:
        manifest = read_manifest(newest)
        name = path.relative_to(newest).as_posix()
        write_manifest(newest, replace(manifest, files=manifest.files | {name: file_entry(path)}))
    job = start(stopped.train())
    (code,) = job.wait()
    assert not mark.exists()
    if hashed:
        assert code in (3, 4) and str(path.parent) in job.output(), job.output()
    else:
        assert code == 0 and f"after step {3 if pattern == EXPERIENCE else 2} of 4" in job.output(), job.output()


@pytest.mark.parametrize("tag", ["!!python/object/apply:pathlib.Path.touch [mark]", "!!python/name:os.system"])
def test_yaml_makes_no_objects(copied, start, mark, tag):
    (copied.directory / "run.yaml").write_text(f"alarms: {{window: {tag}}}\n")
    job = start(copied.train("-c", "run.yaml"))
    assert job.wait() == [2] and "run.yaml" in job.output() and not mark.exists()


def test_a_chat_template_reaches_no_python(copied, start, mark):
    cycler = f"{{{{ cycler.__init__.__globals__.os.system('touch {mark}') }}}}"
    (copied.directory / "model" / "chat_template.jinja").write_text(cycler)
    job = start(copied.train())
    assert job.wait() == [3], job.output()
    assert "Traceback" not in job.output() and not mark.exists()
