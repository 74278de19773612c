"""Which commands ask for a rollout server, and with which prompts it is probed."""

from dataclasses import replace

import pytest

from rest_megatron.commands import profile, sft
from rest_megatron.config import load
from rest_megatron.config.check import check_settings
from rest_megatron.config.no_engine import without_engine
from tests.system.runs import make_run

VLLM = ["rollout.engine=vllm", "rollout.vllm_python=/env/bin/python", "vllm.tensor_parallel_size=2"]


class Opened(Exception):
    """Ends a command where its session would open."""


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """`opened(module)`: the configuration and the prompts with which a command opens its session."""

    def get(module):
        def open_session(config, launch, tokenizer, total_optimizer_steps, prompts=(), identity=None):
            raise Opened(config, prompts)

        monkeypatch.setattr(module, "open_session", open_session)
        with pytest.raises(Opened) as caught:
            module.main(load((), [*make_run(tmp_path), *VLLM]), None)
        return caught.value.args

    return get


def test_a_supervised_run_starts_no_server(opened):
    config, _ = opened(sft)
    assert config.rollout.engine == "sampler" and config.vllm == {}


def test_a_profile_probes_its_server_with_its_prompts(opened):
    config, prompts = opened(profile)
    assert config.rollout.engine == "vllm" and len(prompts) == 4


def test_a_configuration_without_an_engine_is_a_valid_one_again():
    words = [*VLLM, "rollout.max_turns=3", "rollout.tools=a.py:f", "rollout.sync_dir=/s", "rollout.top_p=0.5"]
    config = without_engine(load((), [*words, "reward.function=a.py:g", "rollout.group_size=3"]))
    check_settings(config)
    assert config.rollout == replace(load().rollout, group_size=3) and config.vllm == {}


def test_only_the_sampler_decodes_a_group_at_once():
    check_settings(load((), [*VLLM, "rollout.group_size=256"]))
