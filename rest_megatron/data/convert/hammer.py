"""Hammer: function-masked training rows, its test sets, and HammerBench.

Masked rows are {instruction, input, output} with the tools and the query in blocks of the instruction and a fenced
list of calls as output. Test sets are xLAM's shape with `tool` for `name`. HammerBench is chat messages.
"""

from rest_megatron.data.convert import messages, xlam
from rest_megatron.data.convert.dialogue import Dialogue
from rest_megatron.data.convert.fields import read_id
from rest_megatron.data.rows import BadRow, text


def read(record: dict) -> Dialogue:
    """The dialogue of one record in any of the three shapes. Raises BadRow."""
    if "messages" in record:
        return messages.read(record)
    if "query" in record:
        return xlam.read(record)
    instruction = text(record, "instruction")
    tools, query = _block(instruction, "AVAILABLE TOOLS"), _block(instruction, "QUERY")
    calls = text(record, "output").strip().removeprefix("```").removeprefix("json").removesuffix("```")
    return xlam.single_turn(query, tools, calls, read_id(record))


def _block(instruction: str, name: str) -> str:
    _, opened, rest = instruction.partition(f"[BEGIN OF {name}]")
    body, closed, _ = rest.rpartition(f"[END OF {name}]")
    if not (opened and closed and body.strip()):
        raise BadRow(f"field 'instruction' has no block [BEGIN OF {name}] ... [END OF {name}]")
    return body.strip()
