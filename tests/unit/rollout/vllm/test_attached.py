"""An operator's server that a run attaches to: as it needs it, or refused with the reason."""

import pytest

from rest_megatron.config import load
from rest_megatron.errors import EngineError
from rest_megatron.rollout.vllm.attached import AttachedServer, find_differences
from rest_megatron.rollout.vllm.client import Address, Client
from tests.unit.rollout.vllm.operator_server import CONFIG, MODEL, SETTINGS, operator


def attach(url: str) -> AttachedServer:
    server = AttachedServer(Address(url), load([], [*CONFIG, f"rollout.vllm_url={url}"]))
    server.wait_ready()
    return server


@pytest.mark.parametrize("sleeps", [True, False])
def test_a_server_as_print_server_starts_it_is_attached(sleeps):
    settings = {
        "model_config": MODEL | {"enable_sleep_mode": sleeps},
        "weight_transfer_config": {"backend": "rest_files"},
    }
    with operator({"vllm_config": settings}) as url:
        server = attach(url)
        assert (server.can_sleep, server.restartable, server.log_tail()) == (sleeps, False, "")
        with pytest.raises(EngineError, match="was not started by this run"):
            server.restart()
        server.close()
        Client(server.address).health(5)


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        (
            "model_config",
            {"logprobs_mode": "raw_logprobs"},
            "logprobs_mode: 'raw_logprobs', must be 'processed_log",
        ),
        ("model_config", {"dtype": "torch.float16"}, "dtype: 'float16', must be 'bfloat16'"),
        ("model_config", {"generation_config": "auto"}, "generation_config: 'auto', must be 'vllm'"),
        ("model_config", {"served_model_name": "/models/a"}, "served_model_name: '/models/a', must be 'policy'"),
        ("model_config", {"max_model_len": 127}, "max_model_len: 127, must be at least 128"),
        ("model_config", {"max_model_len": None}, "max_model_len: None, must be at least 128"),
        ("weight_transfer_config", {"backend": "nccl"}, "weight_transfer_config.backend: 'nccl', must be 'rest_files'"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_with_both_values(section, change, said):
    settings = SETTINGS | {section: SETTINGS[section] | change}
    with operator({"vllm_config": settings}) as url, pytest.raises(EngineError) as caught:
        attach(url)
    assert said in str(caught.value) and "print-server" in str(caught.value)
    assert str(caught.value).count("must be") == 1


def test_a_server_without_weight_transfer_is_refused():
    config = load([], CONFIG)
    assert find_differences(MODEL, {}, config) == ["weight_transfer_config.backend: None, must be 'rest_files'"]
    assert find_differences(MODEL | {"served_model_name": ["a", "policy"]}, {"backend": "rest_files"}, config) == []


@pytest.mark.parametrize("reply", [{}, {"vllm_config": "text"}], ids=["no settings", "settings as text"])
def test_another_kind_of_server_is_refused(reply):
    with operator(reply) as url, pytest.raises(EngineError, match="vllm_config"):
        attach(url)


def test_nobody_at_the_address_is_told_with_the_address():
    with operator({}) as url:
        pass
    with pytest.raises(EngineError, match=url):
        attach(url)
