"""The configuration as text."""

import pytest
import yaml

from rest_megatron.config import describe, dump, load
from rest_megatron.config.keys import keys
from rest_megatron.errors import ConfigError


def test_help_names_every_key_with_its_type_default_and_sentence():
    text = describe()
    for key in keys().values():
        assert f"  {key.name}  (" in text and key.help.split()[-1] in text
        assert key.help.endswith(".") or key.help.endswith(").")
    assert "optim.lr  (a number > 0; default 1.0e-06)" in text
    assert "weights.scope  (batch | response; default batch)" in text
    assert "data.eval  (text or null; default null)" in text


def test_help_filters_by_section():
    text = describe("weights")
    assert "weights.clamp_min" in text and "Eq. 9" in text and "optim." not in text
    with pytest.raises(ConfigError, match="did you mean weights"):
        describe("weigths")


def test_a_dump_reads_back_to_the_same_configuration(tmp_path):
    overrides = [
        "model.path='1e-6'",
        "data.train='off'",
        "data.eval='null'",
        "run.dir='a: b #c'",
        "optim.lr=1e-6",
        "megatron={fp8: null, softmax_scale: 0.125}",
        "method.preset=grpo",
    ]
    config = load([], overrides)
    text = dump(config)
    path = tmp_path / "dumped.yaml"
    path.write_text(text, encoding="utf-8")
    assert load([path]) == config
    # A reader with YAML 1.1 sees the same text.
    assert yaml.safe_load(text)["data"]["train"] == "off"


def test_dump_hides_secrets():
    config = load([], ["deepspeed={password: hunter2, monitor: {url: 'http://u:hunter2@h'}}"])
    assert "hunter2" not in dump(config) and config.deepspeed["password"] == "hunter2"
