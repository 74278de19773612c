"""Reading the configuration: precedence, types, bounds, places in errors, no secret in them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from rest_megatron.config import Config, load
from rest_megatron.config.method import METHOD_PRESETS, WEIGHTS_PRESETS, MethodPreset, WeightsPreset
from rest_megatron.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(files=(), overrides=()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(files, overrides)
    return str(caught.value)


def test_nothing_given_is_the_schemas_defaults():
    assert load() == Config()


def test_an_empty_file_and_empty_sections_change_nothing(write):
    assert load([write("")]) == load([write("optim:\nmegatron:\ndeepspeed:\n")]) == Config()


def test_later_files_win_and_overrides_win_over_all(write):
    first = write("optim: {lr: 1.0, eps: 2.0}\ntrain: {steps: 1}\n", "a.yaml")
    second = write("optim: {lr: 3.0}\n", "b.yaml")
    config = load([first, second], ["train.steps=7", "train.steps=8"])
    assert (config.optim.lr, config.optim.eps, config.train.steps) == (3.0, 2.0, 8)


def test_explicit_keys_win_over_the_preset_wherever_they_stand(write):
    assert load([], ["method.preset=grpo"]).weights.rule == "constant"
    explicit = write("weights: {rule: inverse_entropy}\n")
    config = load([explicit], ["method.preset=grpo"])
    assert (config.weights.rule, config.weights.curriculum) == ("inverse_entropy", "none")


def test_every_preset_says_what_it_sets():
    assert tuple(METHOD_PRESETS) == get_args(MethodPreset) and tuple(WEIGHTS_PRESETS) == get_args(WeightsPreset)


def test_grpo_weighs_every_token_the_same():
    torch = pytest.importorskip("torch")
    from rest_megatron.method.curriculum import anneal
    from rest_megatron.method.weights import region_weights

    weights = load([], ["method.preset=grpo"]).weights
    by_region = region_weights(torch.tensor([0.05, 0.03, 0.1, 1.3], dtype=torch.float64), weights)
    assert anneal(by_region, 0.9, weights).tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "overrides, frozen",
    [((), 3), (("weights.momentum=0.5",), 0), (("weights.momentum=0.9", "weights.freeze_after=3"), 3)],
)
def test_momentum_alone_asks_for_means_that_move(overrides, frozen):
    assert load([], overrides).weights.freeze_after == frozen


@pytest.mark.parametrize(
    "text, value",
    [("1e-6", 1e-6), ("1E-6", 1e-6), ("1.e-6", 1e-6), (".5e3", 500.0), ("2.5e+1", 25.0), ("3", 3.0), ("+1e2", 100.0)],
)
def test_numbers_in_scientific_notation_are_numbers(write, text, value):
    from_override = load([], [f"optim.lr={text}"]).optim.lr
    from_file = load([write(f"optim:\n  lr: {text}\n")]).optim.lr
    assert from_override == from_file == value and type(from_file) is float


@pytest.mark.parametrize(
    "override, name, value",
    [
        ("log.wandb=off", "log.wandb", "off"),
        ("run.seed=010", "run.seed", 10),
        ("model.path=yes", "model.path", "yes"),
        ("model.path=2026-01-02", "model.path", "2026-01-02"),
        ("model.path=12:30", "model.path", "12:30"),
        ("data.eval=null", "data.eval", None),
        ("algorithm.clip_ratio_dual=~", "algorithm.clip_ratio_dual", None),
        ("algorithm.clip_ratio_dual=3", "algorithm.clip_ratio_dual", 3.0),
        ("optim.betas=[0, 0.5]", "optim.betas", (0.0, 0.5)),
        ("model.random_init=true", "model.random_init", True),
    ],
)
def test_scalars_follow_yaml_1_2(override, name, value):
    section, _, key = name.partition(".")
    assert getattr(getattr(load([], [override]), section), key) == value


@pytest.mark.parametrize(
    "override, rule",
    [
        ("model.random_init='true'", "must be true or false, not text"),
        ("model.random_init=yes", "must be true or false, not text"),
        ("model.random_init=1", "must be true or false, not a whole number"),
        ("train.steps='3'", "must be a whole number, not text"),
        ("train.steps=3.0", "must be a whole number, not a number"),
        ("train.steps=1e2", "must be a whole number, not a number"),
        ("train.steps=true", "must be a whole number, not true/false"),
        ("train.steps=null", "must be a whole number, not null"),
        ("train.steps=[3]", "must be a whole number, not a list"),
        ("optim.lr='1e-6'", "must be a number, not text"),
        ("optim.lr=false", "must be a number, not true/false"),
        ("optim.lr={a: 1}", "must be a number, not a mapping"),
        ("run.dir=3", "must be text, not a whole number"),
        ("data.eval=3", "must be text or null, not a whole number"),
        ("optim.betas=0.9", "must be a list of 2 numbers"),
        ("optim.betas=[0.9]", "must be a list of 2 numbers"),
        ("optim.betas=[0.9, '0.9']", "must be a list of 2 numbers"),
        ("train.steps=0", "must be >= 1"),
        ("optim.lr=0", "must be > 0"),
        ("optim.lr=.inf", "must be finite"),
        ("optim.lr=.nan", "must be finite"),
        ("optim.lr=1" + "0" * 400, "must be finite"),
        ("weights.momentum=1", "must be >= 0 and < 1"),
        ("weights.momentum=-0.1", "must be >= 0 and < 1"),
        ("optim.min_lr_ratio=1.5", "must be >= 0 and <= 1"),
        ("optim.betas=[0.9, 1.0]", "must be >= 0 and < 1"),
        ("algorithm.clip_ratio_dual=1", "must be > 1"),
        ("log.wandb=onlin", "is not one of off, offline, online; did you mean online?"),
        ("run.device=tpu", "is not one of auto, cpu, cuda"),
        ('run.dir="a\\nb"', "holds a control character"),
    ],
)
def test_a_value_the_schema_does_not_allow_is_refused(override, rule):
    message = refused([], [override])
    assert rule in message
    assert message.startswith(f"config error: {override.partition('=')[0]}=")
    assert f"(override: {override})" in message and "default is" in message


@pytest.mark.parametrize(
    "override", ["weights.momentum=0", "optim.min_lr_ratio=1", "optim.clip_grad=0", "rollout.group_size=2"]
)
def test_a_value_on_an_inclusive_bound_is_allowed(override):
    load([], [override])


def test_a_wrong_value_in_a_file_names_its_line(write):
    path = write("optim:\n  eps: 1e-8\n\n  lr: -1\n")
    assert f"({path}:4)" in refused([path])


@pytest.mark.parametrize(
    "text, line, fragments",
    [
        ("optm:\n  lr: 1\n", 1, ["unknown key 'optm'", "Did you mean optim?"]),
        ("optim:\n  lrr: 1\n", 2, ["unknown key 'optim.lrr'", "Did you mean optim.lr?", "weight_decay"]),
        ("train:\n  lr: 1\n", 2, ["unknown key 'train.lr'", "Did you mean optim.lr?"]),
        ("steps: 1\n", 1, ["unknown key 'steps'", "Did you mean train.steps?"]),
        ("optim.lr: 1\n", 1, ["'optim.lr' must be nested", "optim:"]),
        ("sources: {}\n", 1, ["unknown key 'sources'"]),
        ("optim: 3\n", 1, ["optim is a section", "lr, betas"]),
        ("megatron: 3\n", 1, ["megatron must be a mapping"]),
        ("deepspeed: 3\n", 1, ["deepspeed must be a mapping or the path"]),
        ("optim:\n  lr: 1\n  eps: 1\n  lr: 2\n", 4, ["'lr' is set twice", "run.yaml:2"]),
        ("deepspeed:\n  a: [{b: 1, b: 2}]\n", 2, ["'b' is set twice"]),
        ("optim: {lr: 1\n", 2, ["not valid YAML"]),
        ("optim:\n\t lr: 1\n", 2, ["not valid YAML"]),
        ("run: {dir: !!python/name:os.system }\n", 1, ["not valid YAML"]),
        ("? [a]\n: 1\n", 1, ["a key must be a name"]),
        ("- a\n", 1, ["holds a list", "sections"]),
        ("text\n", 1, ["holds text"]),
        ("a: 1\n---\nb: 1\n", 2, ["not valid YAML"]),
        ("a: &a [*a]\n", 1, ["not valid YAML"]),
    ],
)
def test_a_wrong_file_names_the_line_and_the_way_out(write, text, line, fragments):
    message = refused([write(text)])
    assert f"run.yaml:{line}" in message
    assert all(fragment in message for fragment in fragments), message


def test_files_that_cannot_be_read(tmp_path):
    assert f"{tmp_path / 'no.yaml'} does not exist" in refused([tmp_path / "no.yaml"])
    assert "cannot be read" in refused([tmp_path])
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"a: \xff\xfe")
    assert "cannot be read" in refused([binary])


@pytest.mark.parametrize("text", ["train.steps", "=3", "train..steps=3", "--x=3"])
def test_a_word_that_is_no_override(text):
    assert "section.key=value" in refused([], [text])


def test_pass_through_sections_keep_names_and_types(write):
    path = write("megatron: {recompute_num_layers: 2, fp8: null}\ndeepspeed: {zero_optimization: {stage: 1}, x: [1]}\n")
    config = load([path], ["megatron.softmax_scale=1e-1", "deepspeed.zero_optimization.reduce_bucket_size=5e7"])
    assert config.megatron == {"recompute_num_layers": 2, "fp8": None, "softmax_scale": 0.1}
    assert config.deepspeed == {"zero_optimization": {"stage": 1, "reduce_bucket_size": 5e7}, "x": [1]}
    assert config.where("deepspeed.zero_optimization.stage") == f"{path}:2"


def test_a_deepspeed_path_is_relative_to_the_file_that_names_it(write, tmp_path, monkeypatch):
    (tmp_path / "zero").mkdir()
    write(json.dumps({"zero_optimization": {"stage": 1}, "steps_per_print": 9}), "zero/ds.json")
    monkeypatch.chdir("/")
    config = load([write("deepspeed: zero/ds.json\n")], ["deepspeed.steps_per_print=3"])
    assert config.deepspeed == {"zero_optimization": {"stage": 1}, "steps_per_print": 3}
    assert config.where("deepspeed.zero_optimization") == str(tmp_path / "zero/ds.json")
    monkeypatch.chdir(tmp_path)
    assert load([], ["deepspeed=zero/ds.json"]).deepspeed["steps_per_print"] == 9


@pytest.mark.parametrize(
    "text, rule",
    [
        ("{", "not valid JSON"),
        ('{"a": 1, "a": 2}', "'a' is set twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("[1]", "holds a list, not a JSON object"),
    ],
)
def test_a_wrong_deepspeed_json_is_refused(write, text, rule):
    write(text, "ds.json")
    message = refused([write("\ndeepspeed: ds.json\n")])
    assert rule in message and "run.yaml:2" in message


def test_a_missing_deepspeed_json_is_refused(write):
    message = refused([write("deepspeed: ds.json\n")])
    assert "ds.json does not exist" in message and "run.yaml:1" in message


def test_every_value_knows_where_it_comes_from(write):
    path = write("method: {preset: grpo}\noptim:\n  lr: 1\n")
    config = load([path], ["train.steps=3"])
    assert config.where("optim.lr") == f"{path}:3"
    assert config.where("train.steps") == "override: train.steps=3"
    assert config.where("weights.rule") == "preset weights=uniform"
    assert config.where("run.seed") == "default"


@pytest.mark.parametrize(
    "files, overrides",
    [
        ([], ["deepspeed.password=hunter2", "optim.lr=-1"]),
        ([], ["deepsped={password: hunter2}"]),
        ([], ["optim.lr={password: hunter2}"]),
        ([], ["api_key=hunter2"]),
        ([], ["run.password=hunter2"]),
        ([], ["model.path=https://me:hunter2@host", "model.path.x=https://me:hunter2@host"]),
        (["deepspeed: {password: 'hunter2\n"], []),
        (["deepspeed: {password: hunter2, password: hunter2}\n"], []),
    ],
)
def test_no_error_shows_a_secret(write, files, overrides):
    assert "hunter2" not in refused([write(text) for text in files], overrides)


@pytest.mark.parametrize(
    "override, shown",
    [
        ("train.max_tokens_per_micro_batch=0", "train.max_tokens_per_micro_batch=0"),
        ("run.password=1234", "run.password=***"),
        ("run.api_key=1a2b", "run.api_key=***"),
    ],
)
def test_the_place_of_an_override_shows_numbers_but_no_secrets(override, shown):
    assert f"(override: {shown})" in refused([], [override])


def test_the_configuration_is_frozen():
    with pytest.raises(AttributeError):
        load().optim.lr = 3.0
    assert replace(load(), megatron={"a": 1}).where("optim.lr") == "default"
