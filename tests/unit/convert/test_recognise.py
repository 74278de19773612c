"""What a directory holds: the layouts of other trainers, and what to do about weights that cannot be read."""

import json
import shutil

import pytest

from rest_megatron.convert.recognise import HUGGING_FACE, MEGATRON, STEP, check_whole, recognise
from rest_megatron.errors import CheckpointError
from tests.unit.checkpoint.step_directory import make_step


def found(path):
    return recognise(path, check_whole, print)


def refused(path) -> str:
    with pytest.raises(CheckpointError) as error:
        found(path)
    return str(error.value)


@pytest.fixture
def model(tiny_model):
    def put(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        return shutil.copytree(tiny_model(), directory)

    return put


def put_torch_dist(directory, backend: str = "torch_dist"):
    directory.mkdir(parents=True)
    (directory / "metadata.json").write_text(json.dumps({"sharded_backend": backend, "sharded_backend_version": 1}))
    return directory


@pytest.mark.parametrize(
    "below",
    [
        ".",
        "actor/huggingface",  # verl
        "actor/global_step_75",  # ToolRL
        "global_step_75/actor/huggingface",
    ],
)
def test_a_hugging_face_model_is_found_below(model, tmp_path, below):
    directory = model(tmp_path / "run" / below)
    one = found(tmp_path / "run")
    assert (one.kind, one.directory, one.companions) == (HUGGING_FACE, directory, directory)


def test_a_step_of_verl_is_its_actor(model, tmp_path):
    actor = model(tmp_path / "global_step_5" / "actor" / "huggingface")
    model(tmp_path / "global_step_5" / "critic" / "huggingface")
    # The optimizer alone, where the weights are Hugging Face's.
    put_torch_dist(tmp_path / "global_step_5" / "actor" / "dist_ckpt")
    assert found(tmp_path / "global_step_5").directory == actor
    shutil.rmtree(tmp_path / "global_step_5" / "critic")
    assert found(tmp_path).directory == actor


def test_the_last_step_of_verl_is_taken(model, tmp_path):
    for step in (5, 10, 15):
        model(tmp_path / f"global_step_{step}" / "actor" / "huggingface")
    assert "holds 3 models: global_step_10/actor/huggingface, " in refused(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
    assert found(tmp_path).directory == tmp_path / "global_step_10" / "actor" / "huggingface"


def test_verls_megatron_checkpoint_has_its_config_beside_it(tmp_path):
    directory = put_torch_dist(tmp_path / "global_step_5" / "actor" / "dist_ckpt")
    beside = tmp_path / "global_step_5" / "actor" / "huggingface"
    beside.mkdir()
    (beside / "config.json").write_text("{}")
    one = found(tmp_path / "global_step_5")
    assert (one.kind, one.directory, one.companions) == (MEGATRON, directory, beside)


@pytest.mark.parametrize("last, name", [("7", "iter_0000007"), ("release\n", "release")])
def test_the_iteration_that_megatron_names_is_taken(tmp_path, last, name):
    for other in ("iter_0000007", "iter_0000012", "release"):
        put_torch_dist(tmp_path / other)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(last)
    one = found(tmp_path)
    assert (one.kind, one.directory, one.companions) == (MEGATRON, tmp_path / name, None)


@pytest.mark.parametrize("last", ["13", "../elsewhere", "..", ".", "", "²"])
def test_an_iteration_that_is_not_there_is_refused(tmp_path, last):
    put_torch_dist(tmp_path / "a" / "iter_0000007")
    put_torch_dist(tmp_path / "elsewhere")
    (tmp_path / "a" / "latest_checkpointed_iteration.txt").write_text(last)
    assert "but there is no " in refused(tmp_path / "a")


def test_one_of_our_checkpoints_is_found_wherever_it_is_named(tiny_model, tmp_path):
    step = make_step(tmp_path / "run" / "checkpoints" / "step-00000003", tiny_model())
    moved = shutil.copytree(step, tmp_path / "kept")
    for path, directory in ((tmp_path / "run", step), (step.parent, step), (step, step), (moved, moved)):
        one = found(path)
        assert (one.kind, one.directory, one.companions) == (STEP, directory, directory / "hf")
    (moved / "state" / "more.safetensors").write_bytes(b"")
    assert "more.safetensors" in refused(moved)
    next((step / "state").iterdir()).unlink()
    assert "none of the 1 checkpoints" in refused(tmp_path / "run")


@pytest.mark.parametrize(
    "file, how",
    [
        ("actor/model_world_size_8_rank_0.pt", "python -m verl.model_merger merge --backend fsdp --local_dir {}/actor"),
        ("pytorch_model-00001-of-00002.bin", "from_pretrained('{}', dtype='auto').save_pretrained('NEW')"),
        ("iter_0000001/mp_rank_00/model_optim_rng.pt", "--ckpt-convert-format torch_dist"),
        ("global_step1/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_to_fp32.py"),
    ],
)
def test_pickled_weights_are_refused_with_the_way_out(tmp_path, file, how):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    (path.parent / "config.json").write_text("{}")
    message = refused(tmp_path)
    assert str(path) in message and how.format(tmp_path) in message


def test_verls_directory_of_a_config_alone_leads_to_its_shards(tmp_path):
    (tmp_path / "actor" / "huggingface").mkdir(parents=True)
    (tmp_path / "actor" / "huggingface" / "config.json").write_text("{}")
    (tmp_path / "actor" / "model_world_size_2_rank_0.pt").write_bytes(b"")
    assert f"--local_dir {tmp_path / 'actor'} " in refused(tmp_path / "actor" / "huggingface")


def test_nothing_is_refused_with_what_would_be_something(tmp_path):
    assert "no config.json with safetensors" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path / "nowhere")
