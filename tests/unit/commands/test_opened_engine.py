"""Which commands ask for a rollout server, and with which prompts it is probed."""

import pytest

from rest_megatron.commands import profile, sft
from rest_megatron.commands.catalogue import Profile
from rest_megatron.config import load
from tests.system.runs import make_run

VLLM = ["rollout.engine=vllm", "rollout.vllm_python=/env/bin/python", "vllm.tensor_parallel_size=2"]


class Opened(Exception):
    """Ends a command where its session would open."""


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """`opened(module, *options)`: the configuration and the prompts with which a command opens its session."""

    def get(module, *options):
        def open_session(config, launch, tokenizer, total_optimizer_steps, prompts=(), identity=None):
            raise Opened(config, prompts)

        monkeypatch.setattr(module, "open_session", open_session)
        with pytest.raises(Opened) as caught:
            module.main(load((), [*make_run(tmp_path), *VLLM]), *options, None)
        return caught.value.args

    return get


def test_a_supervised_run_starts_no_server(opened):
    config, _ = opened(sft)
    assert config.rollout.engine == "sampler" and config.vllm == {}


def test_a_profile_probes_its_server_with_its_prompts(opened):
    config, prompts = opened(profile, Profile())
    assert config.rollout.engine == "vllm" and len(prompts) == 4
