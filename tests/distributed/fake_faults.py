"""What may go wrong at a call to the fake vLLM server, and the replies that then come back."""

from dataclasses import dataclass


@dataclass
class Fault:
    """What goes wrong at a call, `times` times after `skip` times without.

    call: a path, a worker's method for /collective_rpc, or "probe" or "generate" for /v1/completions.
    kind: error, hang, lost (done, but never answered), close (in the middle of the reply), die, unusable (a worker's
    failure, which only a question for it tells), other_run (its version of this number), or a name in BAD_REPLIES.
    """

    call: str
    kind: str
    times: int = 1
    skip: int = 0


def _first(choices: list[dict], **changes) -> list[dict]:
    return [choices[0] | changes, *choices[1:]]


def _nan(choices: list[dict]) -> list[dict]:
    return _first(choices, logprobs={"token_logprobs": [float("nan")] * len(choices[0]["token_ids"])})


def _longer(choices: list[dict], extra: int) -> list[dict]:
    ids, values = choices[0]["token_ids"], choices[0]["logprobs"]["token_logprobs"]
    longer = ids[:1] * extra + ids
    return _first(choices, token_ids=longer, logprobs={"token_logprobs": values[:1] * extra + values})


BAD_REPLIES = {
    "nan": _nan,
    "empty": lambda choices: _first(choices, token_ids=[], logprobs={"token_logprobs": []}),
    "half": lambda choices: choices[: len(choices) // 2],
    "too_long": lambda choices: _longer(choices, 100),
    "outside_vocabulary": lambda choices: _first(choices, token_ids=[10**6, *choices[0]["token_ids"][1:]]),
    "no_log_probs": lambda choices: _first(choices, logprobs=None),
    "abort": lambda choices: _first(choices, finish_reason="abort"),
    "other_prompt": lambda choices: _first(choices, prompt_token_ids=[1]),
}
