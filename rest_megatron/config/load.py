"""From files and overrides to a Config: defaults < preset < files, left to right < overrides."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from rest_megatron.config.keys import PASS_THROUGH, Key, keys, nearest, sections, type_name
from rest_megatron.config.method import METHOD_PRESETS, WEIGHTS_PRESETS
from rest_megatron.config.redact import redact
from rest_megatron.config.schema import Config
from rest_megatron.config.source import Setting, merge, read_json, read_override, read_yaml
from rest_megatron.errors import ConfigError


def load(files: Iterable[str | Path] = (), overrides: Iterable[str] = ()) -> Config:
    """Read YAML files and `section.key=value` overrides; later ones win.

    A path under `deepspeed` is read here, relative to the YAML file that names it (an override: to the working
    directory), so `Config.deepspeed` is always a mapping. Raises ConfigError, naming file and line, for anything
    the schema does not allow.
    """
    settings = Setting({})
    for path in map(Path, files):
        settings = merge(settings, _read_deepspeed(read_yaml(path), path.parent))
    for text in overrides:
        settings = merge(settings, _read_deepspeed(read_override(text), Path()))
    settings = merge(_moving_mean(settings), settings)
    method = _build(settings).method.preset
    settings = merge(_preset(f"preset method={method}", METHOD_PRESETS[method]), settings)
    weights = _build(settings).weights.preset
    return _build(merge(_preset(f"preset weights={weights}", WEIGHTS_PRESETS[weights]), settings))


def _moving_mean(settings: Setting) -> Setting:
    """Files that set weights.momentum and were written before there was weights.freeze_after mean what they meant."""
    weights = settings.value.get("weights", Setting({})).value
    if not isinstance(weights, dict) or "momentum" not in weights or "freeze_after" in weights:
        return Setting({})
    return _preset(f"weights.momentum, {weights['momentum'].where}", {"weights": {"freeze_after": 0}})


def _preset(where: str, values: dict[str, dict]) -> Setting:
    tree = {
        section: Setting({key: Setting(value, where) for key, value in table.items()}, where)
        for section, table in values.items()
    }
    return Setting(tree, where)


def _read_deepspeed(settings: Setting, base: Path) -> Setting:
    named = settings.value.get("deepspeed")
    if named is None or not isinstance(named.value, str):
        return settings
    return Setting(settings.value | {"deepspeed": read_json(base / named.value, named.where)}, settings.where)


def _build(settings: Setting) -> Config:
    table = keys()
    sources: dict[str, str] = {}
    groups: dict[str, Any] = {name: {} for name in sections()}
    for name, setting in settings.value.items():
        if name in PASS_THROUGH:
            groups[name] = _pass_through(name, setting, sources)
        elif name in groups:
            for key, child in _children(name, setting).items():
                full = f"{name}.{key}"
                if full not in table:
                    raise _unknown(full, child.where, table)
                groups[name][key] = _value(table[full], child)
                sources[full] = child.where
        else:
            raise _unknown(name, setting.where, [*table, *groups, *PASS_THROUGH])
    made = {name: hint(**groups[name]) for name, hint in sections().items()}
    return replace(Config(**made), sources=sources, **{n: groups[n] for n in PASS_THROUGH if n in groups})


def _children(name: str, setting: Setting) -> dict[str, Setting]:
    """The keys of a section; a section left empty has none."""
    if setting.value is None:
        return {}
    if not isinstance(setting.value, dict):
        raise ConfigError(
            f"{name} is a section and holds keys, not a value of its own   ({setting.where})\n"
            f"  Keys of {name}: {_names(name)}"
        )
    return setting.value


def _pass_through(name: str, setting: Setting, sources: dict[str, str]) -> dict:
    if setting.value is not None and not isinstance(setting.value, dict):
        also = " or the path of a JSON file" if name == "deepspeed" else ""
        raise ConfigError(f"{name} must be a mapping{also}   ({setting.where})")

    def record(prefix: str, table: dict[str, Setting]) -> None:
        for key, child in table.items():
            sources[f"{prefix}.{key}"] = child.where
            if isinstance(child.value, dict):
                record(f"{prefix}.{key}", child.value)

    record(name, setting.value or {})
    return Setting(setting.value or {}).plain()


def _unknown(name: str, where: str, candidates: Iterable[str]) -> ConfigError:
    candidates = list(candidates)
    if name in candidates or name in keys():
        section, _, key = name.partition(".")
        return ConfigError(f"key {name!r} must be nested   ({where})\n  Write `{section}:` and below it `  {key}: ...`")
    guess = nearest(name, candidates)
    section = name.partition(".")[0]
    known = _names(section) if section in sections() else ", ".join([*sections(), *PASS_THROUGH])
    hint = f"Did you mean {guess}? " if guess else ""
    return ConfigError(f"unknown key {name!r}   ({where})\n  {hint}Known here: {known}")


def _names(section: str) -> str:
    return ", ".join(keys(sections()[section]))


def _value(key: Key, setting: Setting) -> Any:
    """The setting's value in the key's type. Raises ConfigError for a wrong type, choice or range."""
    value = setting.plain()
    shown = f"{key.name}={_show(key.name, value)}"
    if not _has_type(value, key.hint):
        fix = "Write it without quotes, as YAML; the" if isinstance(value, str) else "The"
        raise ConfigError(
            f"{shown} must be {type_name(key.hint)}, not {_type_of(value)}   ({setting.where})\n"
            f"  {fix} default is {key.name}={_show(key.name, key.default)}"
        )
    value = _convert(value, key.hint)
    problem = _problem(key, value)
    if problem:
        raise ConfigError(
            f"{shown} {problem}   ({setting.where})\n  The default is {key.name}={_show(key.name, key.default)}"
        )
    return value


def _has_type(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_has_type(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        options = get_args(hint)
        return isinstance(value, list) and len(value) == len(options) and all(map(_has_type, value, options))
    # bool is a subclass of int in Python, but `true` is no count.
    return type(value) in ((int, float) if hint is float else (hint,))


def _convert(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return tuple(float(item) for item in value)
    wants_float = hint is float or float in get_args(hint)
    # A whole number too large for a float has no bound that would let it pass.
    return (float(value) if abs(value) < 1e300 else math.inf) if wants_float and type(value) is int else value


def _problem(key: Key, value: Any) -> str:
    """What is wrong with a value of the right type, in words; empty when nothing is."""
    if key.choices and value not in key.choices:
        guess = nearest(value, key.choices)
        return f"is not one of {', '.join(key.choices)}" + (f"; did you mean {guess}?" if guess else "")
    if isinstance(value, str) and not value.isprintable():
        return "holds a control character"
    for number in value if isinstance(value, tuple) else (value,):
        if type(number) not in (int, float):
            continue
        if not math.isfinite(number):
            return "must be finite"
        inside = (
            (key.ge is None or number >= key.ge)
            and (key.gt is None or number > key.gt)
            and (key.le is None or number <= key.le)
            and (key.lt is None or number < key.lt)
        )
        if not inside:
            return f"must be {key.bounds}"
    return ""


def _show(name: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    text = repr(redact(value, name))
    return text if len(text) <= 80 else text[:77] + "..."


def _type_of(value: Any) -> str:
    names = {type(None): "null", bool: "true/false", int: "a whole number", float: "a number", str: "text"}
    return names.get(type(value), "a list" if isinstance(value, list) else "a mapping")
