"""Records of every source, and what prepare makes of a file of them."""

import io
import json
from dataclasses import replace

import pyarrow.parquet as pq

from rest_megatron.commands import prepare
from rest_megatron.commands.catalogue import Prepare
from rest_megatron.config.schema import Config, DataConfig


def prepared(path, output, source, answer_format="toolrl"):
    stream = io.StringIO()
    config = Config(data=replace(DataConfig(), answer_format=answer_format))
    prepare.main(config, Prepare(input=path, output=output, source=source), stream)
    if output.suffix == ".parquet":
        return pq.read_table(output).to_pylist(), stream.getvalue()
    return [json.loads(line) for line in output.open()], stream.getvalue()


TOOLS = json.dumps([{"name": "f", "parameters": {"a": {"type": "int"}}}])


def xlam(name="f", **extra):
    return {
        "id": 3,
        "query": "q",
        "answers": json.dumps([{"name": name, "arguments": {"a": 1}}]),
        "tools": TOOLS,
    } | extra


EXAMPLES = {
    "toolace": {
        "system": f"invoke:\n{TOOLS}.",
        "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "[f(a=1)]"}],
    },
    "xlam": xlam(),
    "hammer": {
        "instruction": f"[BEGIN OF AVAILABLE TOOLS]{TOOLS}[END OF AVAILABLE TOOLS][BEGIN OF QUERY]q[END OF QUERY]",
        "output": '[{"name": "f", "arguments": {}}]',
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": TOOLS,
    },
    "openai": {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "a", "reasoning_content": "t"},
        ],
        "tools": json.loads(TOOLS),
    },
}
