"""Answers whose regions are marked by hand, and their tokens, cut at any byte; see `files`.

A mark reads "f|<think>¦c| hi ¦f|</think>": f format, n tool name, p parameters, c cot. A token takes the region of its
first byte that is no white space, or of its first byte where all are.
"""

LETTERS = {"f": "format", "n": "tool_name", "p": "parameters", "c": "cot"}
# Sizes of the tokens in bytes, over and over: whole words, and pieces that part tags and characters.
CUTS = ((1,), (3,), (7, 2, 5), (64,))
THOUGHT = "f|<think>¦c| The ferry to Ναξος leaves at 7. ¦f|</think>"
CALL = '{"name": "¦n|find_ferry¦f|", "parameters": ¦p|{"to": "Νάξος", "seats": 2}¦f|}'
ANSWERS = {
    "toolrl": {
        "a call": f"{THOUGHT}\n<tool_call>\n{CALL}\n</tool_call>",
        "a response": f"{THOUGHT}\n<response>¦c| Bon voyage 🚢! ¦f|</response>",
        "a call and a response": f"{THOUGHT}\n<tool_call>\n{CALL}\n</tool_call>\n<response>¦c| Look. ¦f|</response>",
        "two calls": f"{THOUGHT}\n<tool_call>\n{CALL}\n{CALL}\n</tool_call>",
        "parameters before the name": f"{THOUGHT}\n<tool_call>\n"
        '{"arguments": ¦p|{}¦f|, "name": "¦n|größe¦f|"}\n</tool_call>',
        "tags in the thought": "f|<think>¦c| <tool_call> or <response>? ¦f|</think>\n<response>¦c|No.¦f|</response>",
        "braces and tags in strings": f'{THOUGHT}\n<tool_call>\n{{"name": "¦n|say¦f|", "parameters": '
        '¦p|{"text": "} </tool_call> \\" {"}¦f|}\n</tool_call>',
        "a thought without an end": "f|<think>¦c| hm <tool_call>",
        "no tags": "c|I do not know. 我不知道。",
        "words before the thought": f"c|Sure! ¦{THOUGHT}\n<response>¦c|Yes¦f|</response>",
    },
    "hermes": {
        "words and two blocks": "f|<think>¦c|two¦f|</think>\n¦c|Both, then.¦f|\n"
        f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>",
        "no thought": f"f|<tool_call>\n{CALL}\n</tool_call>",
    },
    "llama3": {
        "bare": f"f|{CALL}",
        "behind words and the tag": f"c|Let me look.¦f|<|python_tag|>{CALL}; {CALL}",
    },
}


def rows() -> list[dict]:
    """A row per answer: its text, then for each way to cut it the tokens' ends and regions."""
    made = []
    for grammar, answers in ANSWERS.items():
        for name, template in answers.items():
            text, by_byte = _marked(template)
            cuts = [_cut(text, by_byte, sizes) for sizes in CUTS]
            made.append({"grammar": grammar, "name": name, "text": text.decode(), "cuts": cuts})
    return made


def _marked(template: str) -> tuple[bytes, str]:
    """The text, and a letter for each byte."""
    text, letters = b"", ""
    for part in template.split("¦"):
        body = part[2:].encode()
        text, letters = text + body, letters + part[0] * len(body)
    return text, letters


def _cut(text: bytes, by_byte: str, sizes: tuple[int, ...]) -> dict[str, list]:
    ends, regions, start = [], [], 0
    while start < len(text):
        end = min(len(text), start + sizes[len(ends) % len(sizes)])
        first = next((i for i in range(start, end) if not text[i : i + 1].isspace()), start)
        ends.append(end)
        regions.append(LETTERS[by_byte[first]])
        start = end
    return {"ends": ends, "regions": regions}
