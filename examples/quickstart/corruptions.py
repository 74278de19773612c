"""Ways to spoil an answer. Demonstrations are spoiled so that reinforcement learning has something to mend."""

import random
from dataclasses import replace

from tool_task import SLOT_OF, SLOTS, Answer, Call, Task


def drop_parameter(rng: random.Random, task: Task, answer: Answer) -> str:
    """Leave a parameter out."""
    index, name = _pick_parameter(rng, answer)
    kept = {key: value for key, value in answer.calls[index].parameters.items() if key != name}
    return _with_call(answer, index, replace(answer.calls[index], parameters=kept))


def rename_parameter(rng: random.Random, task: Task, answer: Answer) -> str:
    """Call a parameter by another of its names."""
    index, name = _pick_parameter(rng, answer)
    other = rng.choice([synonym for synonym in SLOTS[SLOT_OF[name]][1] if synonym != name])
    renamed = {other if key == name else key: value for key, value in answer.calls[index].parameters.items()}
    return _with_call(answer, index, replace(answer.calls[index], parameters=renamed))


def wrong_value(rng: random.Random, task: Task, answer: Answer) -> str:
    """Give a parameter a value that was not asked for."""
    index, name = _pick_parameter(rng, answer)
    parameters = answer.calls[index].parameters
    other = rng.choice([value for value in SLOTS[SLOT_OF[name]][2] if value != parameters[name]])
    return _with_call(answer, index, replace(answer.calls[index], parameters={**parameters, name: other}))


def wrong_tool(rng: random.Random, task: Task, answer: Answer) -> str:
    """Call the other tool."""
    index = rng.randrange(len(answer.calls))
    other = next(name for name, _ in task.tools if name != answer.calls[index].name)
    return _with_call(answer, index, replace(answer.calls[index], name=other))


def duplicate_call(rng: random.Random, task: Task, answer: Answer) -> str:
    """Make the call twice."""
    return replace(answer, calls=answer.calls * 2).text()


def missing_call(rng: random.Random, task: Task, answer: Answer) -> str:
    """Make one of two calls."""
    return replace(answer, calls=(rng.choice(answer.calls),)).text()


def call_instead(rng: random.Random, task: Task, answer: Answer) -> str:
    """Call a tool where a response was wanted."""
    return replace(answer, calls=(Call(rng.choice(task.tools)[0], {}),), response="").text()


def response_instead(rng: random.Random, task: Task, answer: Answer) -> str:
    """Respond where a call was wanted."""
    return replace(answer, calls=(), response="happy to help").text()


def extra_response(rng: random.Random, task: Task, answer: Answer) -> str:
    """Respond after the call."""
    return replace(answer, response="happy to help").text()


def no_think(rng: random.Random, task: Task, answer: Answer) -> str:
    """Act without a thought."""
    return answer.action()


def unclosed_think(rng: random.Random, task: Task, answer: Answer) -> str:
    """Leave the thought open."""
    return answer.text().replace(" </think>", "")


def wrong_order(rng: random.Random, task: Task, answer: Answer) -> str:
    """Act first, think later."""
    return f"{answer.action()}\n<think> {answer.thought} </think>"


def bad_json(rng: random.Random, task: Task, answer: Answer) -> str:
    """Leave out the last brace of the last call."""
    return "}\n</tool_call>".join(answer.text().rsplit("}}\n</tool_call>", 1))


FORMAT_KINDS = (no_think, unclosed_think, wrong_order)
VALUE_KINDS = (drop_parameter, rename_parameter, wrong_value, wrong_tool, bad_json)
CALL_KINDS = (*FORMAT_KINDS, *VALUE_KINDS, extra_response, response_instead)
ONE_CALL_KINDS = (*CALL_KINDS, duplicate_call)
TWO_CALL_KINDS = (*CALL_KINDS, missing_call)
RESPONSE_KINDS = (*FORMAT_KINDS, call_instead)


def _pick_parameter(rng: random.Random, answer: Answer) -> tuple[int, str]:
    """A call's index and the name of one of its parameters."""
    return rng.choice([(index, name) for index, call in enumerate(answer.calls) for name in call.parameters])


def _with_call(answer: Answer, index: int, call: Call) -> str:
    return replace(answer, calls=(*answer.calls[:index], call, *answer.calls[index + 1 :])).text()


def spoil(rng: random.Random, task: Task, answer: Answer, layout: bool = True) -> str:
    """Return the text of `answer`, spoiled in one of the ways its kind allows; layout: FORMAT_KINDS are among them."""
    kinds = {0: RESPONSE_KINDS, 1: ONE_CALL_KINDS, 2: TWO_CALL_KINDS}[len(answer.calls)]
    return rng.choice([kind for kind in kinds if layout or kind not in FORMAT_KINDS])(rng, task, answer)
