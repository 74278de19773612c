"""The `print-server` command: the shell command line of a server that this configuration can attach to."""

import shlex
from typing import TextIO
from urllib.parse import urlsplit

from rest_megatron.config.check import read_model_config
from rest_megatron.config.refuse import refuse
from rest_megatron.config.schema import Config
from rest_megatron.rollout.vllm.command import server_arguments, server_command, server_variables

HTTP_PORT = 80


def main(config: Config, stream: TextIO) -> None:
    """Write one line for the shell of the machine that rollout.vllm_url names.

    `python` in it is that of the environment that holds vLLM. It is a server for CPU with run.device=cpu. An API key
    is not written: vLLM and the trainer both read VLLM_API_KEY. Raises ConfigError without that key of the
    configuration, and for an https address.
    """
    if config.rollout.vllm_url is None:
        rule = "does not say where the server will listen"
        refuse(config, "rollout.vllm_url", rule, "Set rollout.engine=vllm rollout.vllm_url=http://HOST:PORT")
    place = urlsplit(config.rollout.vllm_url)
    if place.scheme == "https":
        rule = "is another program's, which ends TLS: the server that is printed speaks plain HTTP"
        refuse(config, "rollout.vllm_url", rule, "Give this command the http:// address that the server itself gets")
    on_cpu = config.run.device == "cpu"
    arguments = server_arguments(config, read_model_config(config), on_cpu)
    arguments |= {"host": place.hostname, "port": place.port or HTTP_PORT}
    variables = [f"{name}={shlex.quote(value)}" for name, value in server_variables(config, on_cpu).items()]
    stream.write(f"{' '.join(variables)} {shlex.join(server_command('python', arguments))}\n")
