"""Answers whose region labels are known by construction, in every grammar."""

import json
import random
from dataclasses import dataclass

from rest_megatron.method.regions import Region

F, N, P, C = Region.FORMAT, Region.TOOL_NAME, Region.PARAMETERS, Region.COT
LETTER = {"f": F, "n": N, "p": P, "c": C}


def marked(template: str) -> tuple[bytes, list[int]]:
    """An answer and the label of each byte, from stretches such as "f|<think>¦c| hi ¦f|</think>"."""
    text, labels = b"", []
    for part in template.split("¦"):
        letter, body = part[0], part[2:].encode()
        text += body
        labels += [LETTER[letter]] * len(body)
    return text, labels


@dataclass(frozen=True)
class Action:
    """What an answer holds: the thought's text, the JSON texts of each call's name (unquoted) and parameters."""

    thought: str
    calls: list[tuple[str, str]]
    response: str


def toolrl(action: Action, rng: random.Random) -> str:
    """The template of a ToolRL answer."""
    parts = [f"f|<think>¦c|{action.thought}¦f|</think>"]
    if action.calls:
        parts.append("f|\n<tool_call>\n" + "\n".join(_call(call, rng) for call in action.calls) + "\n</tool_call>")
    if action.response:
        parts.append(f"f|\n<response>¦c| {action.response} ¦f|</response>")
    return "¦".join(parts)


def hermes(action: Action, rng: random.Random) -> str:
    """The template of a Hermes (Qwen) answer, with or without a thought."""
    parts = []
    if action.thought or rng.random() < 0.5:
        parts.append(f"f|<think>¦c|{action.thought}¦f|</think>")
    if action.response:
        parts.append(f"f|{_space(rng) if parts else ''}¦c|{action.response}")
    for call in action.calls:
        space, inner = _space(rng), _space(rng)
        parts.append(f"f|{space}<tool_call>{inner}{_call(call, rng)}{inner}</tool_call>")
    return "¦".join(parts) or "c|"


def llama3(action: Action, rng: random.Random) -> str:
    """The template of a Llama 3 answer: no thought; calls with the tag or bare."""
    parts = []
    if action.response:
        parts.append(f"c|{action.response}")
    if action.calls:
        opening = "" if not parts and rng.random() < 0.5 else "<|python_tag|>"
        separator = rng.choice(["; ", ";", "\n", " "])
        space = _space(rng) if opening and parts else ""
        parts.append(f"f|{space}{opening}" + separator.join(_call(call, rng) for call in action.calls))
    return "¦".join(parts) or "c|"


RENDER = {"toolrl": toolrl, "hermes": hermes, "llama3": llama3}


def _call(call: tuple[str, str], rng: random.Random) -> str:
    name, parameters = call
    members = [f'"name": "¦n|{name}¦f|"', f'"{rng.choice(["parameters", "arguments"])}": ¦p|{parameters}¦f|']
    if rng.random() < 0.3:
        members.reverse()
    return "{" + ", ".join(members) + "}"


def _space(rng: random.Random) -> str:
    return rng.choice(["", "\n", "\n\n", " "])


WORDS = ["{", "}", '"', "\\", "]", "é", "日本", "\n", ":", ",", "name", "x ", "[DONE]", "<", ";"]
TAGS = ["<tool_call>", "</tool_call>", "<response>", "<think>"]
ENDS = ["</think>", "</think><tool_call>", "</think>\n<response>"]


def random_action(rng: random.Random) -> Action:
    """A well-formed action with tags and escapes in the thought and in every string."""
    quotes_end = rng.random() < 0.5  # "</think>" may be quoted in the thought or in strings, not in both
    in_strings = [*WORDS, *TAGS, "<|python_tag|>", *(ENDS if quotes_end else [])]
    in_thought = [*WORDS, *TAGS, *([] if quotes_end else ENDS)]
    calls = []
    for _ in range(rng.randrange(4)):
        parameters = {_text(rng, in_strings) + str(i): _value(rng, in_strings, 0) for i in range(rng.randrange(4))}
        calls.append((_dumps(rng, _text(rng, in_strings) or "f")[1:-1], _dumps(rng, parameters)))
    response = "" if calls and rng.random() < 0.5 else "Done: é} " + _text(rng, WORDS) + "."
    return Action(_text(rng, in_thought), calls, response)


def _text(rng: random.Random, words: list[str]) -> str:
    return "".join(rng.choice(words) for _ in range(rng.randrange(6)))


def _value(rng: random.Random, words: list[str], depth: int):
    kinds = [lambda: _text(rng, words), lambda: rng.randrange(99), lambda: None, lambda: True, lambda: -1.5e-3]
    if depth < 3:
        kinds.append(lambda: {_text(rng, words) + str(i): _value(rng, words, depth + 1) for i in range(3)})
        kinds.append(lambda: [_value(rng, words, depth + 1) for _ in range(2)])
    return rng.choice(kinds)()


def _dumps(rng: random.Random, item) -> str:
    return json.dumps(item, ensure_ascii=rng.random() < 0.5, separators=rng.choice([(", ", ": "), (",", ":")]))


def runs(text: bytes, labels: list[int], region: Region) -> list[bytes]:
    """The maximal runs of one label."""
    found, previous = [], None
    for byte, label in zip(text, labels, strict=True):
        if label == region:
            if previous != region:
                found.append(bytearray())
            found[-1].append(byte)
        previous = label
    return [bytes(run) for run in found]
