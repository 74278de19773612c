"""Rules between the keys of rollouts."""

from dataclasses import replace

import pytest

from rest_megatron.config import load
from rest_megatron.config.check import check_settings
from rest_megatron.config.check_rollout import OWNED_ARGUMENTS, check_server_files, without_engine
from rest_megatron.errors import ConfigError
from tests.paths import EXAMPLES

SPAWN = ["rollout.engine=vllm", "rollout.vllm_python=/env/bin/python"]
ATTACH = ["rollout.engine=vllm", "rollout.vllm_url=http://node7:8000"]
UNCORRECTED = ["algorithm.importance_cap=null", "algorithm.importance_mask=null", "alarms.max_mismatch=0"]


VLLM_EXAMPLES = EXAMPLES / "vllm"


def refused(check, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(load([], words))
    return str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        [],
        SPAWN,
        ATTACH,
        [*SPAWN, "rollout.vllm_devices='4,5'", "rollout.sync_dir=/scratch", "vllm.tensor_parallel_size=2"],
        [*ATTACH, "rollout.sync_dir=/scratch", "vllm.tensor_parallel_size=2"],
        [*ATTACH, "rollout.vllm_url=https://node7"],
        [*ATTACH, "rollout.vllm_url=http://[::1]:8000/"],
        [*SPAWN, *UNCORRECTED, "rollout.top_p=0.9", "rollout.top_k=20", "rollout.min_p=0.1"],
        [*SPAWN, "rollout.top_p=1.0", "rollout.top_k=0", "rollout.min_p=0"],
        [*SPAWN, "vllm.max_model_len=9000"],
        [*SPAWN, "train.debug=train_only", "train.replay=/runs/a/rollouts"],
    ],
)
def test_complete_settings_are_accepted(words):
    check_settings(load([], words))


@pytest.mark.parametrize("name", ["apart", "colocated"])
def test_the_examples_are_complete(name):
    config = load([VLLM_EXAMPLES / f"{name}.yaml"])
    check_settings(config)
    assert config.vllm["tensor_parallel_size"] > 1 and config.rollout.vllm_python == ".venv-vllm/bin/python"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rollout.engine=vllm"], "rollout.engine=vllm needs a server"),
        ([*SPAWN, "rollout.vllm_url=http://node7:8000"], "but rollout.vllm_python=/env/bin/python starts one"),
        ([*ATTACH, "rollout.vllm_devices='4,5'"], "rollout.vllm_devices=4,5 is for a server that the trainer starts"),
        ([*SPAWN, "vllm.max_model_len=3071"], "data.max_prompt_tokens=2048 + rollout.max_new_tokens=1024 = 3072"),
    ],
)
def test_a_server_is_asked_for_in_one_way(words, said):
    assert said in refused(check_settings, *words)


@pytest.mark.parametrize(
    "url",
    [
        "node7:8000",
        "ftp://node7",
        "http://",
        "http://node7:8000/v1",
        "http://node7:99999",
        "http://node7:0",
        "http://a?b",
    ],
)
def test_an_address_is_http_with_a_host_and_no_path(url):
    message = refused(check_settings, *ATTACH, f"rollout.vllm_url={url}")
    assert f"rollout.vllm_url={url} is not an http:// or https:// address" in message


@pytest.mark.parametrize(
    "word",
    [
        "rollout.vllm_python=python",
        "rollout.vllm_url=http://node7:8000",
        "rollout.vllm_devices='4,5'",
        "rollout.sync_dir=/scratch",
        "vllm.tensor_parallel_size=2",
    ],
)
def test_settings_of_a_server_that_nothing_asks_are_refused(word):
    key = word.partition("=")[0]
    message = refused(check_settings, word)
    assert message.startswith(f"config error: {key}=") and "has no effect with rollout.engine=sampler" in message


@pytest.mark.parametrize("word", ["rollout.top_p=0.9", "rollout.top_k=20", "rollout.min_p=0.05"])
@pytest.mark.parametrize("off", UNCORRECTED)
def test_sampling_from_a_part_of_the_vocabulary_needs_both_corrections_off(word, off):
    message = refused(check_settings, *SPAWN, word, off)
    active = next(key for key in ("importance_cap", "importance_mask") if key not in off)
    assert f"{word} makes vLLM's log-probs those within the tokens it keeps" in message
    assert f"algorithm.{active}=2.0 divides one by the other" in message and f"algorithm.{active}=null" in message


@pytest.mark.parametrize("word", ["rollout.top_p=0.9", "rollout.top_k=20", "rollout.min_p=0.05"])
def test_the_sampler_draws_from_all_tokens(word):
    assert f"{word} is vLLM's" in refused(check_settings, word, *UNCORRECTED)


@pytest.mark.parametrize("name", sorted(OWNED_ARGUMENTS))
@pytest.mark.parametrize("start", [SPAWN, ATTACH], ids=["spawn", "attach"])
def test_what_the_trainer_relies_on_cannot_be_changed(start, name):
    message = refused(check_settings, *start, f"vllm.{name}=x")
    assert f"vllm.{name}=" in message and f"is decided by {OWNED_ARGUMENTS[name]}" in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("logprobs-mode", "is decided by the trainer"),
        ("logprobs_mod", "is decided by the trainer"),
        ("max-num-seqs", "Write it with underscores, such as vllm.max_num_seqs"),
    ],
)
def test_other_spellings_that_vllm_takes_are_refused(tmp_path, name, said):
    (tmp_path / "run.yaml").write_text(f"vllm:\n  {name}: 8\n")
    with pytest.raises(ConfigError, match=said):
        check_settings(load([tmp_path / "run.yaml"], SPAWN))


@pytest.mark.parametrize("name", ["headless", "runner", "api_server_count"])
def test_arguments_that_change_what_is_started_are_the_trainers(name):
    assert f"vllm.{name}=1 is decided by the trainer" in refused(check_settings, *SPAWN, f"vllm.{name}=1")


@pytest.mark.parametrize("word", ["vllm.api_key=hunter2", "vllm.hf_token=hunter2"])
def test_a_secret_that_is_refused_is_not_shown(word):
    message = refused(check_settings, *SPAWN, word)
    assert "hunter2" not in message and "the environment variable" in message


@pytest.mark.parametrize("user", ["me:hunter2", "me", ":hunter2"])
def test_a_user_in_the_address_is_refused_since_vllm_knows_only_a_token(user):
    message = refused(check_settings, *ATTACH, f"rollout.vllm_url=http://{user}@node7:8000")
    assert "holds a user or a password" in message and "VLLM_API_KEY" in message and "hunter2" not in message


@pytest.mark.parametrize("key", ["rollout.sync_dir", "rollout.vllm_devices"])
def test_an_empty_name_is_refused(key):
    assert f"{key} is empty" in refused(check_settings, *SPAWN, f"{key}=''")


def test_the_interpreter_must_be_there_when_it_is_going_to_be_used(tmp_path):
    python = tmp_path / "python"
    words = ["rollout.engine=vllm", f"rollout.vllm_python={python}"]
    assert "is not a program that can be run" in refused(check_server_files, *words)
    python.write_text("#!/bin/sh\n")
    assert "is not a program that can be run" in refused(check_server_files, *words)
    check_server_files(load([], [*words, "train.debug=train_only", "train.replay=/runs/a"]))
    python.chmod(0o700)
    check_server_files(load([], words))
    check_server_files(load([], ATTACH))


def test_a_configuration_without_an_engine_is_a_valid_one_again():
    words = [
        *SPAWN,
        "vllm.tensor_parallel_size=2",
        "rollout.max_turns=3",
        "rollout.tools=a.py:f",
        "rollout.sync_dir=/s",
        "rollout.top_p=0.5",
    ]
    config = without_engine(load((), [*words, "reward.function=a.py:g", "rollout.group_size=3"]))
    check_settings(config)
    assert config.rollout == replace(load().rollout, group_size=3) and config.vllm == {}


def test_only_the_sampler_decodes_a_group_at_once():
    check_settings(load((), [*SPAWN, "rollout.group_size=256"]))
