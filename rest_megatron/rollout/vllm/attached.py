"""A vLLM server that an operator has started. It is checked once, and never restarted or ended."""

from collections.abc import Callable, Mapping
from typing import Any

from rest_megatron.config.schema import Config
from rest_megatron.errors import EngineError
from rest_megatron.rollout.vllm.client import Address, Client
from rest_megatron.rollout.vllm.command import BACKEND, MODEL_NAME
from rest_megatron.utils.waiting import no_stop

HEALTH_SECONDS = 10.0
INFO_SECONDS = 60.0
"""vLLM looks at its whole environment to answer."""


class AttachedServer:
    """The server at `address`, for a run with this configuration."""

    restartable = False

    def __init__(self, address: Address, config: Config) -> None:
        self.address = address
        self.can_sleep = False
        self._config = config

    def wait_ready(self, check: Callable[[], None] = no_stop) -> None:
        """Raises EngineError unless the server answers now, and was started as `print-server` says."""
        client = Client(self.address)
        client.health(HEALTH_SECONDS)
        settings = client.server_info(INFO_SECONDS).get("vllm_config")
        if not isinstance(settings, dict):
            raise EngineError(
                f"vLLM at {self.address}: its /server_info has no vllm_config; it must be vLLM 0.32 or 0.33"
            )
        model = _section(settings, "model_config")
        differences = find_differences(model, _section(settings, "weight_transfer_config"), self._config)
        if differences:
            shown = "\n".join(f"  {difference}" for difference in differences)
            raise EngineError(
                f"vLLM at {self.address} was not started as this run needs it:\n{shown}\n"
                "  Start it with the command that `python -m rest_megatron print-server` gives with this configuration"
            )
        self.can_sleep = bool(model.get("enable_sleep_mode"))

    def restart(self) -> None:
        """Raises EngineError: only its operator can."""
        raise EngineError(f"the vLLM server at {self.address} was not started by this run, which cannot restart it")

    def log_tail(self) -> str:
        """Its log is its operator's."""
        return ""

    def close(self, wait: bool = True) -> None:
        """It is left as it is."""


def find_differences(model: Mapping[str, Any], transfer: Mapping[str, Any], config: Config) -> list[str]:
    """What of vLLM's `model_config` and `weight_transfer_config` does not fit, each with both values."""
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    wanted = [
        ("logprobs_mode", model.get("logprobs_mode"), "processed_logprobs"),
        ("dtype", str(model.get("dtype")).removeprefix("torch."), config.model.dtype),
        ("generation_config", model.get("generation_config"), "vllm"),
        ("weight_transfer_config.backend", transfer.get("backend"), BACKEND),
    ]
    found = [f"{name}: {has!r}, must be {must!r}" for name, has, must in wanted if has != must]
    names = model.get("served_model_name")
    if MODEL_NAME not in (names if isinstance(names, list) else [names]):
        found.append(f"served_model_name: {names!r}, must be {MODEL_NAME!r}")
    room = model.get("max_model_len")
    if not isinstance(room, int) or room < longest:
        found.append(
            f"max_model_len: {room!r}, must be at least {longest} "
            f"(data.max_prompt_tokens={config.data.max_prompt_tokens} + "
            f"rollout.max_new_tokens={config.rollout.max_new_tokens})"
        )
    return found


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = settings.get(name)
    return section if isinstance(section, dict) else {}
