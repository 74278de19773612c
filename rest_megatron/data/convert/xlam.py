"""xLAM-60k (Hugging Face Salesforce/xlam-function-calling-60k): {id, query, answers, tools}, one turn a record."""

from rest_megatron.data.convert.dialogue import Action, Dialogue, Query
from rest_megatron.data.convert.fields import read_calls, read_id, read_tools
from rest_megatron.data.rows import BadRow, text

REFUSAL = "None of the available tools fits this request."
"""What an empty list of calls is written as: such a record asks for a call of none of its tools, in whatever words."""


def read(record: dict) -> Dialogue:
    """The dialogue of one record. `answers` and `tools` are lists or their JSON. Raises BadRow."""
    for key in ("answers", "tools"):
        if record.get(key) is None:
            raise BadRow(f"field {key!r} is missing")
    return single_turn(text(record, "query"), record["tools"], record["answers"], read_id(record))


def single_turn(query: str, tools: object, answers: object, record_id: str) -> Dialogue:
    """A question and its calls; no call at all is a refusal. Raises BadRow."""
    calls = read_calls(answers, "answers")
    action = Action(calls) if calls else Action(response=REFUSAL)
    return Dialogue(read_tools(tools), (Query(query.strip()), action), record_id)
