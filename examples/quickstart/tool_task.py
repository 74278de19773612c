"""A small tool-use task: read two tools from the prompt, answer a request by calling the right ones.

Each prompt shows two of ten tools with one to three parameters. A parameter goes by one of two names, so names must be
read from the prompt; values must be copied from the request. One request in ten wants no call, one in five wants two.
Everything is drawn from the random.Random passed in; every word in this file is one token of the tokenizer in `model/`.
"""

import json
import random
from dataclasses import dataclass

SLOTS = {  # slot: (the word before its value in a request, parameter names, values)
    "place": ("in", ("city", "town"), "Cairo Delhi Kyoto Lima Oslo Paris Quito Rome".split()),
    "day": ("on", ("day", "date"), "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()),
    "person": ("with", ("person", "guest"), "Ana Ben Cleo Dan Eva Finn Gus Hana".split()),
    "topic": ("about", ("topic", "subject"), "art cats chess dance golf jazz maps tea".split()),
    "count": ("for", ("count", "number"), list(range(2, 10))),
    "language": ("speaking", ("language", "tongue"), "Dutch French Greek Hindi Irish Thai".split()),
}
TOOLS = {  # tool: (how a request asks for it, its slots)
    "get_weather": ("weather", ("place", "day")),
    "book_hotel": ("hotel", ("place", "day", "count")),
    "book_table": ("table", ("place", "day", "count")),
    "send_message": ("message", ("person", "topic", "language")),
    "plan_meeting": ("meeting", ("person", "day", "topic")),
    "find_event": ("event", ("place", "day", "topic")),
    "find_book": ("book", ("topic", "language")),
    "set_alarm": ("alarm", ("day", "count")),
    "hire_guide": ("guide", ("place", "language", "count")),
    "call_taxi": ("taxi", ("place", "person", "count")),
}
SMALL_TALK = ("hello", "thanks", "good morning", "how are you", "nice work", "see you")
FILLERS = "so well now okay right then sure fine let me see first wait".split()
SLOT_OF = {name: slot for slot, (_, names, _) in SLOTS.items() for name in names}


@dataclass(frozen=True)
class Call:
    """One tool call."""

    name: str
    parameters: dict[str, str | int]

    def to_json(self) -> str:
        """The line of the call inside <tool_call>."""
        return json.dumps({"name": self.name, "parameters": self.parameters})


@dataclass(frozen=True)
class Answer:
    """What the assistant should say: a thought, then calls or a response."""

    thought: str
    calls: tuple[Call, ...] = ()
    response: str = ""

    def action(self) -> str:
        """The text after the thought."""
        lines = ["<tool_call>", *(call.to_json() for call in self.calls), "</tool_call>"] if self.calls else []
        return "\n".join(lines + ([f"<response> {self.response} </response>"] if self.response else []))

    def text(self) -> str:
        """The whole answer in the rlla format."""
        return f"<think> {self.thought} </think>\n{self.action()}"


@dataclass(frozen=True)
class Task:
    """A prompt with its right answer; `tools` are the two shown: (name, parameter names)."""

    tools: tuple[tuple[str, tuple[str, ...]], ...]
    request: str
    answer: Answer

    def messages(self) -> list[dict[str, str]]:
        """The prompt as chat messages."""
        listed = "\n".join(f"{name}: {', '.join(parameters)}" for name, parameters in self.tools)
        return [{"role": "system", "content": f"Tools\n{listed}"}, {"role": "user", "content": self.request}]


def draw_task(rng: random.Random) -> Task:
    """Draw one task: 70% one call, 20% two calls, 10% small talk."""
    kind = rng.choices(("one", "two", "talk"), (70, 20, 10))[0]
    spelling = {slot: rng.choice(names) for slot, (_, names, _) in SLOTS.items()}
    most = 1 if kind == "two" else 3
    shown = tuple((name, _draw_parameters(rng, name, spelling, most)) for name in rng.sample(sorted(TOOLS), 2))
    if kind == "talk":
        return Task(shown, rng.choice(SMALL_TALK), Answer("just talk", response="happy to help"))
    wanted = rng.sample(shown, 2 if kind == "two" else 1)
    requests, calls = zip(*(_draw_request(rng, *tool) for tool in wanted), strict=True)
    thought = "use " + " and ".join(call.name for call in calls)
    return Task(shown, " and ".join(requests), Answer(thought, calls))


def think_aloud(rng: random.Random, thought: str, fewest: int = 1, most: int = 3) -> str:
    """Return the thought after `fewest` to `most` filler words."""
    return " ".join([*rng.choices(FILLERS, k=rng.randint(fewest, most)), thought])


def _draw_parameters(rng: random.Random, tool: str, spelling: dict[str, str], most: int) -> tuple[str, ...]:
    slots = TOOLS[tool][1]
    chosen = rng.sample(slots, rng.randint(1, min(most, len(slots))))
    return tuple(spelling[slot] for slot in slots if slot in chosen)


def _draw_request(rng: random.Random, tool: str, parameters: tuple[str, ...]) -> tuple[str, Call]:
    """A request for the tool and the call that serves it."""
    values = {name: rng.choice(SLOTS[SLOT_OF[name]][2]) for name in parameters}
    phrases = [f"{SLOTS[SLOT_OF[name]][0]} {value}" for name, value in values.items()]
    return " ".join([TOOLS[tool][0], *phrases]), Call(tool, values)
