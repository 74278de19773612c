"""Tool-use data sets as single-step training rows: a source's records -> dialogues -> steps -> rows.

| source   | records                                                             |
|----------|---------------------------------------------------------------------|
| toolace  | ToolACE: {system, conversations}, calls in brackets                 |
| xlam     | xLAM-60k: {query, answers, tools}                                   |
| hammer   | Hammer's function-masked rows, its test sets, HammerBench           |
| sharegpt | ShareGPT with tools, as Glaive's: {conversations, tools}            |
| openai   | OpenAI's chat messages: {messages, tools}                           |
| typed    | the same with typed content: reasoning, text, tool_call             |
"""

from collections.abc import Callable

from rest_megatron.data.convert import hammer, messages, sharegpt, toolace, xlam
from rest_megatron.data.convert.dialogue import Dialogue

SOURCES: dict[str, Callable[[dict], Dialogue]] = {
    "toolace": toolace.read,
    "xlam": xlam.read,
    "hammer": hammer.read,
    "sharegpt": sharegpt.read,
    "openai": messages.read,
    "typed": messages.read,
}
"""How one record of each source is read; raises BadRow with the reason when it cannot be."""
