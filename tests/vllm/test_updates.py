"""A real vLLM server samples from the weights that it was sent, after every update, failed ones included."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rest_megatron.errors import EngineError
from rest_megatron.rollout.vllm.attached import AttachedServer
from rest_megatron.rollout.vllm.client import Client
from rest_megatron.rollout.vllm.delivery import Delivery
from rest_megatron.rollout.vllm.publisher import describe_file
from tests.distributed.cases import Layout
from tests.vllm.cases import GROUP_SIZE, PROMPTS, SECONDS, Kind, differences, rollout_config, sample, two_updates

pytestmark = pytest.mark.vllm

UNTIED, TIED = Kind("untied"), Kind("tied", tied=True)
HALF_PRECISION = Kind("bfloat16", tied=True, dtype="bfloat16")
TWO_WORKERS = Kind("two workers", tied=True, tensor_parallel=2)
TRAINER = Layout(tp=2, pp=2, max_tokens=220)


@pytest.mark.parametrize("kind", [UNTIED, TIED, TWO_WORKERS, HALF_PRECISION], ids=str)
def test_answers_follow_every_update_from_tensor_and_pipeline_parallel_ranks(pool, serve, tmp_path, kind):
    model, server = serve(kind)
    before = differences(sample(server.address, 0), model, kind.dtype)
    assert before.mean() > 0.1, "a server that knew the weights before they were sent would prove nothing"
    results = pool.run(two_updates, 4, model, TRAINER, kind.dtype, server.address, tmp_path)
    assert all(result["second"] == results[0]["second"] for result in results)
    for name in ("first", "second"):
        found = differences(results[0][name], tmp_path / name, kind.dtype)
        if kind.dtype == "float32":
            assert found.max() < 1e-4, name
        else:
            assert found.mean() < 0.03, name
    stale = differences(results[0]["stale"], tmp_path / "second", kind.dtype)
    assert stale.mean() > 0.1, "the second update must make a difference"
    prompts = {one.prompt_ids for one in results[0]["second"]}
    assert max(map(len, prompts)) > 128 and len(prompts) == len(PROMPTS), "one prompt must have a cached prefix"


def test_prompts_that_do_not_fit_into_one_step_of_the_server_are_all_answered(serve):
    """A prompt that is read in two parts kills vLLM 0.32 on a CPU where it has a seed of its own."""
    prompts = [[(i * 31 + j) % 491 + 3 for j in range(150)] for i in range(8)]
    _, server = serve(UNTIED)
    assert len(sample(server.address, 0, prompts)) == len(prompts) * GROUP_SIZE


def weight_files(model: Path, directory: Path) -> tuple[Path, Path]:
    """All tensors of a model in one file, and parts of two layers in another."""
    tensors = load_file(model / "model.safetensors")
    broken_off = ("layers.0.self_attn.q_proj", "layers.1.mlp.gate_proj", "layers.2.self_attn.k_proj")
    whole, part = directory / "whole.safetensors", directory / "part.safetensors"
    save_file(tensors, whole)
    save_file({n: t * 0 for n, t in tensors.items() if any(layer in n for layer in broken_off)}, part)
    return whole, part


def begin(client: Client, part: Path) -> None:
    """The first calls of an update, as if its trainer died then."""
    client.pause(SECONDS)
    client.abandon_weight_update(SECONDS)
    client.start_weight_update(SECONDS)
    client.update_weights({"path": str(part), "sha256": describe_file(part).sha256}, SECONDS)


def broken_files(whole: Path) -> dict[str, tuple[dict, list[str]]]:
    """What is sent in place of a file of weights, and what the server says of it."""
    found, expected, none = hashlib.sha256(whole.read_bytes()).hexdigest(), "0" * 64, whole.with_name("none")
    return {
        "other bytes": ({"path": str(whole), "sha256": expected}, [str(whole), found, expected]),
        "no file": ({"path": str(none), "sha256": found}, [f"weights {none} cannot be read", "No such file"]),
        "unknown tensor": (misnamed(whole), ["renamed.safetensors", "cannot be loaded"]),
    }


@pytest.mark.parametrize("kind", [UNTIED, TWO_WORKERS], ids=str)
def test_an_update_that_broke_off_in_a_layer_is_done_again_whole_at_once(serve, tmp_path, caplog, kind):
    """vLLM counts the tensors of a layer, whichever they are: those of the first attempt must not count again.

    Of several workers it reads the first one's error only: the second's would be the answer to the next call.
    """
    model, server = serve(kind)
    whole, part = weight_files(model, tmp_path)
    client = Client(server.address)
    for version, (name, (broken, said)) in enumerate([("left open", (None, [])), *broken_files(whole).items()], 10):
        begin(client, part)
        if broken is not None:
            client.update_weights(broken, SECONDS)
            with pytest.raises(EngineError) as caught:
                client.require_loaded(SECONDS)
            assert all(words in str(caught.value) for words in said), f"{name}: {caught.value}"
        Delivery(server, SECONDS).deliver([describe_file(whole)], version, lambda client: None)
        assert caplog.text == "", f"{name}: at the first attempt"
        assert differences(sample(server.address, version), model, "float32").max() < 1e-4, name


@pytest.mark.parametrize("kind", [UNTIED, TWO_WORKERS], ids=str)
def test_weights_that_were_not_written_so_are_never_sampled_from_and_the_next_ones_are(serve, tmp_path, caplog, kind):
    model, server = serve(kind)
    whole, _ = weight_files(model, tmp_path)
    file = describe_file(whole)
    attached = AttachedServer(server.address, rollout_config(model, Layout(), "float32"))
    delivery = Delivery(attached, SECONDS)
    with pytest.raises(EngineError, match=rf"twice[^$]*{'0' * 64}[^$]*left paused"):
        delivery.deliver([replace(file, sha256="0" * 64)], 20, lambda client: pytest.fail("sampled"))
    caplog.clear()
    delivery.deliver([file], 21, lambda client: None)
    assert caplog.text == "" and differences(sample(server.address, 21), model, "float32").max() < 1e-4


def misnamed(whole: Path) -> dict:
    path = whole.with_name("renamed.safetensors")
    save_file({f"{name}.unknown": tensor for name, tensor in load_file(whole).items()}, path)
    return {"path": str(path), "sha256": describe_file(path).sha256}
