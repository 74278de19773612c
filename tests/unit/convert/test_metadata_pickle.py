"""A checkpoint's metadata is a pickle that can come from anywhere: nothing in it runs."""

import io
import os
import pickle
import pickletools
import subprocess

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from rest_megatron.cli import main
from rest_megatron.convert.metadata_pickle import load
from rest_megatron.convert.torch_dist import TorchDist
from rest_megatron.errors import CheckpointError


class Planted:
    """Unpickled, it calls a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    assert main(["convert", f"--input={tiny_model()}", f"--output={out}"], {}) == 0
    return out


@pytest.fixture
def planted(checkpoint, tmp_path):
    """`planted(object)`: the checkpoint with another .metadata."""
    for name in ("release", "huggingface"):
        (tmp_path / name).mkdir()
        for path in (checkpoint / name).iterdir():
            os.link(path, tmp_path / name / path.name)

    def put(content):
        (tmp_path / "release" / ".metadata").unlink()
        (tmp_path / "release" / ".metadata").write_bytes(pickle.dumps(content))
        return tmp_path

    return put


def convert(capsys, source, *words) -> tuple[int, str]:
    code = main(["convert", f"--input={source / 'release'}", f"--output={source / 'out'}", *words], {})
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_a_pickle_is_not_read_unless_it_is_trusted(checkpoint, tmp_path, capsys):
    code = main(["convert", f"--input={checkpoint}", f"--output={tmp_path / 'out'}"], {})
    assert code == 4 and "only with --trust-pickle" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [[], ["--trust-pickle"]])
@pytest.mark.parametrize(
    "function, name",
    [
        (os.system, "posix.system"),
        (subprocess.check_call, "subprocess.check_call"),
        (eval, "builtins.eval"),
        (torch.load, "torch.serialization.load"),
        (getattr, "builtins.getattr"),
    ],
)
def test_planted_code_never_runs(planted, tmp_path, capsys, function, name, words):
    witness = tmp_path / "witness"
    code, text = convert(capsys, planted(Planted(function, f"touch {witness}")), *words)
    assert code == 4 and not witness.exists() and not (tmp_path / "out").exists()
    assert f"it names {name}, which has no place" in text if words else "--trust-pickle" in text


@pytest.mark.parametrize("content", [3, None, {}, Metadata({}), Metadata({}, storage_data=[])])
def test_a_pickle_of_something_else_is_refused(planted, capsys, content):
    code, text = convert(capsys, planted(content), "--trust-pickle")
    assert code == 4 and ".metadata" in text


def test_a_broken_pickle_is_refused(checkpoint, planted, capsys):
    whole = (checkpoint / "release" / ".metadata").read_bytes()
    source = planted(None)
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        (source / "release" / ".metadata").write_bytes(whole[:length])
        code, text = convert(capsys, source, "--trust-pickle")
        assert code == 4 and ".metadata cannot be read" in text


def test_a_name_with_dots_does_not_reach_further(capsys):
    """Protocol 4 resolves the dots of a name: `torch` and `serialization.os.system`."""
    for module, name in (("torch", "serialization.os.system"), ("torch.serialization", "os.system"), ("torch", "load")):
        content = pickle.PROTO + b"\x04" + b"".join(
            pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode() for text in (module, name)
        )  # fmt: skip
        content += pickle.STACK_GLOBAL + pickle.STOP
        assert [op.name for op, _, _ in pickletools.genops(content)][-2:] == ["STACK_GLOBAL", "STOP"]
        with pytest.raises(pickle.UnpicklingError, match="has no place"):
            load(io.BytesIO(content))


def test_code_in_a_shard_never_runs(checkpoint, planted, tmp_path, capsys):
    """The chunks themselves are read by torch.load, as weights alone."""
    witness = tmp_path / "witness"
    metadata = pickle.loads((checkpoint / "release" / ".metadata").read_bytes())
    index, info = next((i, x) for i, x in metadata.storage_data.items() if i.fqn == "decoder.final_layernorm.weight")
    trap = io.BytesIO()
    torch.save(Planted(os.system, f"touch {witness}"), trap)
    (tmp_path / "release" / "trap.distcp").write_bytes(trap.getvalue())
    info.relative_path, info.offset, info.length = "trap.distcp", 0, len(trap.getvalue())
    code, text = convert(capsys, planted(metadata), "--trust-pickle")
    assert code == 4 and "trap.distcp cannot be read" in text and not witness.exists()


@pytest.mark.parametrize("path", ["../../secret", "/etc/passwd", "missing.distcp"])
def test_a_chunk_outside_the_checkpoint_is_refused(checkpoint, planted, path):
    metadata = pickle.loads((checkpoint / "release" / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = path
    with pytest.raises(CheckpointError, match="missing or shorter"):
        TorchDist(planted(metadata) / "release", trust_pickle=True)


def test_a_truncated_shard_is_refused_before_anything_is_read(checkpoint, planted, tmp_path):
    source = planted(pickle.loads((checkpoint / "release" / ".metadata").read_bytes()))
    shard = source / "release" / "__0_0.distcp"
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(content[:-5000])
    with pytest.raises(CheckpointError, match="__0_0.distcp up to byte"):
        TorchDist(source / "release", trust_pickle=True)


@pytest.mark.parametrize("backend", ["zarr", "fsdp_dtensor"])
def test_another_backend_is_refused_by_name(planted, backend):
    source = planted(None)
    (source / "release" / "metadata.json").unlink()
    (source / "release" / "metadata.json").write_text(f'{{"sharded_backend": "{backend}"}}')
    with pytest.raises(CheckpointError, match=f"names the backend '{backend}'; only torch_dist"):
        TorchDist(source / "release", trust_pickle=True)
