"""Steps as training rows.

`rlla_row` writes ToolRL's: the instruction lists the tools, the user message holds the whole history as text. The
other answer formats get `native_row`: real messages, and the tools as a column for the chat template to announce.
The ground truth is ToolRL's in both, with a fixed sentence as its thought, as in the published rows: it is scored,
not imitated.
"""

import json
from collections.abc import Iterator, Sequence
from importlib.resources import files

from rest_megatron.config.schema import AnswerFormat
from rest_megatron.data.convert.dialogue import Action, Call, Query, Results, Tool, Turn
from rest_megatron.data.convert.steps import Step

CALL_THOUGHT = "I should use the appropriate tool with proper parameters to respond to the user's need."
RESPONSE_THOUGHT = "I should directly respond to the user's need."

_INSTRUCTION = (files(__package__) / "rlla_instruction.txt").read_text(encoding="utf-8").removesuffix("\n")


def rlla_row(step: Step, index: int, source: str) -> dict:
    """One row in ToolRL's schema. index: its number. source: where it comes from, kept in extra_info.

    ToolRL's instruction takes the place of the dialogue's own system message.
    """
    instruction, history = rlla_instruction(step.dialogue.tools), rlla_history(step.history)
    prompt = [{"role": "system", "content": instruction}, {"role": "user", "content": history}]
    row = _row(prompt, ground_truth(step.action), index, source)
    row["extra_info"] |= {"instruction": instruction, "input": history, "output": ground_truth(step.action)}
    return row


def native_row(step: Step, answer_format: AnswerFormat, index: int, source: str) -> dict:
    """One row with the history as messages and a column `tools`, OpenAI's list as JSON.

    answer_format: "hermes" or "llama3", how earlier answers are written. Thoughts are kept where the source has some
    and the format knows them. Tool results stay one message each.
    """
    system = step.dialogue.system
    prompt = [{"role": "system", "content": system}] if system else []
    prompt += [message for turn in step.history for message in _messages(turn, answer_format)]
    tools = json.dumps([openai_tool(tool) for tool in step.dialogue.tools])
    return _row(prompt, ground_truth(step.action), index, source) | {"tools": tools}


def ground_truth(action: Action) -> str:
    """The action in ToolRL's format, with the published rows' sentence as its thought."""
    return _rlla_answer(action, CALL_THOUGHT if action.calls else RESPONSE_THOUGHT)


def rlla_instruction(tools: Sequence[Tool]) -> str:
    """ToolRL's system message for these tools."""
    listed = "\n".join(
        f"{number}. Name: {tool.name}\nDescription: {tool.description}\nParameters: {json.dumps(tool.parameters)}"
        for number, tool in enumerate(tools, start=1)
    )
    return _INSTRUCTION.replace("{tools}", listed)


def rlla_history(turns: Sequence[Turn]) -> str:
    """The turns as ToolRL's user message. Actions keep their own thought, those without get the published sentence.

    Results that follow each other share one <obs>: a JSON list when each of them is JSON, else one below the other.
    """
    text = "**Dialogue Records History**"
    for number, turn in enumerate(turns):
        if isinstance(turn, Results):
            text += f"\n<obs> {_merged(turn.texts)} </obs>"
            continue
        if isinstance(turn, Action):
            shown = _rlla_answer(turn, turn.thought or (CALL_THOUGHT if turn.calls else RESPONSE_THOUGHT))
        else:
            shown = f"<user> {turn.text} </user>"
        text += ("\n\n" if number else "\n") + shown
    return text


def openai_tool(tool: Tool) -> dict:
    """The tool as OpenAI's API takes it. Schemas of parameters are the source's own."""
    parameters: dict = {"type": "object", "properties": tool.parameters}
    if tool.required is not None:
        parameters["required"] = list(tool.required)
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _row(prompt: list[dict], truth: str, index: int, source: str) -> dict:
    return {
        "data_source": "rlla",
        "prompt": prompt,
        "ability": "math",  # what every published row says
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"split": "train", "index": index, "source": source},
    }


def _rlla_answer(action: Action, thought: str) -> str:
    lines = [f"<think> {thought} </think>"]
    if action.calls:
        lines += ["<tool_call>", *(_call(call, "parameters") for call in action.calls), "</tool_call>"]
    if action.response:
        lines.append(f"<response> {action.response} </response>")
    return "\n".join(lines)


def _call(call: Call, parameters: str) -> str:
    return json.dumps({"name": call.name, parameters: call.parameters}, ensure_ascii=False)


def _merged(texts: tuple[str, ...]) -> str:
    if len(texts) == 1:
        return texts[0]
    return f"[{', '.join(texts)}]" if all(_is_json(text) for text in texts) else "\n".join(texts)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _messages(turn: Turn, answer_format: AnswerFormat) -> Iterator[dict[str, str]]:
    if isinstance(turn, Query):
        yield {"role": "user", "content": turn.text}
    elif isinstance(turn, Results):
        yield from ({"role": "tool", "content": text} for text in turn.texts)
    else:
        answer = _hermes_answer if answer_format == "hermes" else _llama3_answer
        yield {"role": "assistant", "content": answer(turn)}


def _hermes_answer(action: Action) -> str:
    calls = [f"<tool_call>\n{_call(call, 'arguments')}\n</tool_call>" for call in action.calls]
    body = "\n".join(filter(None, (action.response, *calls)))
    return f"<think>\n{action.thought}\n</think>\n\n{body}" if action.thought else body


def _llama3_answer(action: Action) -> str:
    """Thoughts have no place in this format. Calls after a text need the tag that says where they begin."""
    calls = "; ".join(_call(call, "parameters") for call in action.calls)
    return f"{action.response}<|python_tag|>{calls}" if action.response and calls else action.response or calls
