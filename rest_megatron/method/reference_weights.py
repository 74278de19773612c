"""The token weights of the paper's published code: constants on spans of text, in place of measured entropies.

| span                                                          | weight at training step s    |
|---------------------------------------------------------------|------------------------------|
| opening and closing tags of think, response and tool_call     | 1.0                          |
| text of a thought                                             | min(1.0, 0.6 + 0.002 s)      |
| value of the first "name" of a tool_call                      | 1.2                          |
| first object after the first "parameters" or "arguments" of a tool_call | min(1.2, 0.6 + 0.002 s) |
| anything else                                                 | 0                            |

Where spans overlap the largest weight counts. Positive weights are held in [0.001, 8] and then have mean 1.

Kept as they are there, so that runs can be compared:
 1. A span ends before the token that reaches its end, so its last token is left out unless it is the only one.
 2. Of a tool_call's calls only the first gets weights for its name and its parameters.
 3. JSON punctuation, white space, the text of a response and the end-of-turn token weigh 0.
 4. So does all of an answer without tags, and a section that is not closed.
 5. A span starts at the first token that starts in it; a token that straddles the border is left out.
 8. A tag in a thought pairs with the closing tag of the real section; the inner "name" of parameters that come first
    counts as the call's; null parameters take the next call's object.
 9. The inside of <toolcall> has weights, its tags have none.
Numbers are those of our list of that code's defects. Two of them are not kept. Weights are laid on the sampled tokens
by their own bytes: that code tokenises the text again and shifts the weights of every answer whose ids change (6).
A span after whose start no token starts is skipped: there it ends the run (7).
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

TAG_WEIGHT = 1.0
NAME_WEIGHT = 1.2
BASE_WEIGHT = 0.6  # of thoughts and parameters at step 0
RISE_PER_STEP = 0.002
CLAMP = (0.001, 8.0)

Span = tuple[int, int]

_TAGS = {name: re.compile(f"<(/?){name}>") for name in ("think", "response", "tool_call")}
_CALL_TAG = re.compile("<(/?)tool_?call>")
# Possessive quantifiers: nothing is ever tried twice.
_NAME = re.compile(r'"name"\s*+:\s*+"([^"]++)"')
_PARAMETERS = re.compile(r'"(?:arguments|parameters)"\s*+:\s*+')
_STRING_OR_BRACE = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[{}]', re.DOTALL)


def reference_weights(token_pieces: Sequence[bytes], *, step: int, answer_length: int | None = None) -> list[float]:
    """One weight per token, mean 1 over those above 0; all 0 when no span is found.

    token_pieces: the bytes of each sampled token in order, special tokens as their text. step: training step.
    answer_length: tokens up to and with the first end-of-turn token, None when all are; later ones weigh 0, though
    their text counts when spans are looked for.
    """
    data = b"".join(token_pieces)
    # Every byte that is no part of a character becomes a character of its own, so that any bytes have a text.
    text = data.decode("utf-8", errors="surrogateescape")
    starts, ends = _character_offsets(token_pieces, text)
    weights = np.zeros(len(token_pieces))
    spans = _spans(text, step)
    for weight in sorted(spans):  # the largest comes last and wins
        lo, hi = np.transpose(spans[weight])
        first = np.searchsorted(starts, lo)
        last = np.maximum(first + 1, np.searchsorted(ends, hi))
        weights[_covered(first, last, len(weights))] = weight
    if answer_length is not None:
        weights[answer_length:] = 0.0
    positive = weights > 0
    if positive.any():
        clamped = weights[positive].clip(*CLAMP)
        weights[positive] = clamped / clamped.mean()
    return weights.tolist()


def _spans(text: str, step: int) -> dict[float, list[Span]]:
    """The spans of characters of each weight."""
    rising = BASE_WEIGHT + RISE_PER_STEP * step
    spans: defaultdict[float, list[Span]] = defaultdict(list)
    for name, tag in _TAGS.items():
        for opening, closing in _pairs(tag, text):
            spans[TAG_WEIGHT] += [opening.span(), closing.span()]
            if name == "think":
                spans[min(rising, TAG_WEIGHT)].append((opening.end(), closing.start()))
    for opening, closing in _pairs(_CALL_TAG, text):
        inside = opening.end(), closing.start()
        if called := _NAME.search(text, *inside):
            spans[NAME_WEIGHT].append(called.span(1))
        if (key := _PARAMETERS.search(text, *inside)) and (found := _first_object(text, key.end(), closing.start())):
            spans[min(rising, NAME_WEIGHT)].append(found)
    return spans


def _pairs(tag: re.Pattern, text: str) -> Iterator[tuple[re.Match, re.Match]]:
    """Each opening tag with the next closing one; opening tags between them are text."""
    opening = None
    for match in tag.finditer(text):
        closes = bool(match[1])
        if opening and closes:
            yield opening, match
            opening = None
        elif not opening and not closes:
            opening = match


def _first_object(text: str, start: int, end: int) -> Span | None:
    """From the first opening brace in text[start:end] to after its closing one; None when it is not closed."""
    start = text.find("{", start, end)
    if start < 0:
        return None
    depth = 0
    for match in _STRING_OR_BRACE.finditer(text, start, end):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return start, match.end()
    return None


def _covered(first: np.ndarray, last: np.ndarray, size: int) -> np.ndarray:
    """bool [size]: the positions that lie in one of the intervals [first, last)."""
    changes = np.bincount(first, minlength=size + 2) - np.bincount(last, minlength=size + 2)
    return changes.cumsum()[:size] > 0


def _character_offsets(token_pieces: Sequence[bytes], text: str) -> tuple[np.ndarray, np.ndarray]:
    """First character, and the one after the last, of each token; a character cut by a border belongs to both sides."""
    code_points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)
    escaped = (code_points >= 0xDC80) & (code_points <= 0xDCFF)
    num_bytes = 1 + (code_points > 0x7F).astype(np.int64) + (code_points > 0x7FF) + (code_points > 0xFFFF)
    num_bytes[escaped] = 1
    character = np.repeat(np.arange(len(text)), num_bytes)
    byte_ends = np.cumsum(np.fromiter(map(len, token_pieces), np.int64, len(token_pieces)))
    byte_starts = np.concatenate([[0], byte_ends[:-1]])
    return np.append(character, len(text))[byte_starts], np.append(0, character + 1)[byte_ends]
