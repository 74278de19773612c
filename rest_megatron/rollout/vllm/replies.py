"""What is asked of /v1/completions, and the check of what comes back: token ids in, token ids and log-probs out."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from rest_megatron.config.schema import RolloutConfig
from rest_megatron.errors import EngineError
from rest_megatron.rollout.vllm.client import Call, Client
from rest_megatron.types import Sample
from rest_megatron.utils.waiting import no_stop

# Log-softmax in float32 may round to a little more than 0; vLLM writes -9999 for minus infinity.
MAX_LOG_PROB, MIN_LOG_PROB = 1e-3, -1e9
# Of the reply's JSON: a token's text, escaped, and its id and log-prob in a few places.
BYTES_PER_TOKEN = 1024
BYTES_PER_REPLY = 1 << 20


@dataclass(frozen=True)
class Question:
    """`count` answers to one prompt. number: which prompt of its batch, counted from 0, for messages."""

    number: int
    prompt_ids: tuple[int, ...]
    count: int
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, and which an answer may hold."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    stop_token_ids: frozenset[int]
    vocab_size: int

    @staticmethod
    def of(config: RolloutConfig, stop_token_ids: Sequence[int], vocab_size: int) -> "Sampling":
        """The one that a configuration asks for."""
        return Sampling(
            config.temperature, config.top_p, config.top_k, config.min_p, frozenset(stop_token_ids), vocab_size
        )


def prompt_seed(seed: int, number: int) -> int:
    """A seed of its own for prompt `number`, far from all others: the server counts up from it over the answers."""
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 2


def ask(
    client: Client,
    questions: Sequence[Question],
    sampling: Sampling,
    version: int,
    seconds: float,
    check: Callable[[], None] = no_stop,
) -> list[list[Sample] | EngineError]:
    """The answers to each question, all asked at once, or why there are none. check: see `Client.send`."""
    replies = client.send([_call(question, sampling) for question in questions], seconds, check)
    return [_read(reply, question, sampling, version) for reply, question in zip(replies, questions, strict=True)]


def _call(question: Question, sampling: Sampling) -> Call:
    body = {
        "prompt": list(question.prompt_ids),
        "n": question.count,
        "max_tokens": question.max_new_tokens,
        "seed": question.seed,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        # Nothing else may shape the distribution or end an answer, whatever the server's defaults.
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,
        "stop_token_ids": sorted(sampling.stop_token_ids),
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,  # in place of each token's text, which nobody reads
    }
    tokens = len(question.prompt_ids) + question.max_new_tokens
    limit = BYTES_PER_REPLY + question.count * tokens * BYTES_PER_TOKEN
    return Call("POST", "/v1/completions", body, max_bytes=limit)


def _read(reply: Any, question: Question, sampling: Sampling, version: int) -> list[Sample] | EngineError:
    if isinstance(reply, EngineError):
        return reply
    try:
        return read_samples(reply, question, sampling, version)
    except EngineError as error:
        return error


def read_samples(reply: Any, question: Question, sampling: Sampling, version: int) -> list[Sample]:
    """The answers in a /v1/completions reply, by their index. Raises EngineError for a reply that is not as asked for.

    Answers hold 1 to max_new_tokens ids of the vocabulary, each with a finite log-prob <= 0. They end at the first stop
    token, which is their last id, or at max_new_tokens.
    """
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise EngineError(f"vLLM's reply to prompt {question.number} has no list of choices: {_shown(reply)}")
    indices = [choice.get("index") for choice in choices]
    if sorted(map(repr, indices)) != sorted(map(repr, range(question.count))):
        raise EngineError(
            f"vLLM's reply to prompt {question.number} holds choices {_shown(indices)}, asked for {question.count}"
        )
    ordered = sorted(choices, key=lambda choice: choice["index"])
    return [_Choice(choice, question, sampling).sample(version) for choice in ordered]


@dataclass(frozen=True)
class _Choice:
    """One answer of a reply, still untrusted."""

    fields: dict
    question: Question
    sampling: Sampling

    def sample(self, version: int) -> Sample:
        if tuple(self._ids("prompt_token_ids")) != self.question.prompt_ids:
            self._refuse("prompt_token_ids", self.fields["prompt_token_ids"], f"not {_shown(self.question.prompt_ids)}")
        token_ids = self._ids("token_ids")
        limit = self.question.max_new_tokens
        if not 0 < len(token_ids) <= limit:
            self._refuse("token_ids", token_ids, f"{len(token_ids)} of them, must be 1 to {limit}")
        return Sample(
            self.question.prompt_ids, tuple(token_ids), self._log_probs(token_ids), self._reason(token_ids), version
        )

    def _ids(self, name: str) -> list[int]:
        ids, size = self.fields.get(name), self.sampling.vocab_size
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            self._refuse(name, ids, "must be a list of token ids")
        outside = [token for token in ids if not 0 <= token < size]
        if outside:
            self._refuse(name, outside[0], f"must be ids from 0 to {size - 1}")
        return ids

    def _log_probs(self, token_ids: list[int]) -> tuple[float, ...]:
        logprobs = self.fields.get("logprobs")
        values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        if not isinstance(values, list) or len(values) != len(token_ids):
            found = len(values) if isinstance(values, list) else "no list"
            self._refuse("token_logprobs", found, f"must be {len(token_ids)}, one of each token")
        for position, value in enumerate(values):
            if type(value) not in (int, float) or not MIN_LOG_PROB <= value <= MAX_LOG_PROB:
                self._refuse("token_logprobs", value, f"at token {position}, must be finite and at most 0")
        return tuple(min(0.0, float(value)) for value in values)

    def _reason(self, token_ids: list[int]) -> str:
        reason, stops = self.fields.get("finish_reason"), self.sampling.stop_token_ids
        if reason not in ("stop", "length"):
            self._refuse("finish_reason", reason, "must be stop or length")
        early = [token for token in token_ids[:-1] if token in stops]
        if early:
            self._refuse("token_ids", early[0], "is a stop token, and not the last")
        if (reason == "stop") is not (token_ids[-1] in stops):
            self._refuse(
                "finish_reason", reason, f"does not fit the last token, {token_ids[-1]}; stop: {sorted(stops)}"
            )
        if reason == "length" and len(token_ids) < self.question.max_new_tokens:
            self._refuse(
                "finish_reason",
                reason,
                f"after {len(token_ids)} tokens, asked for {self.question.max_new_tokens}; is max_model_len too small?",
            )
        return reason

    def _refuse(self, name: str, value: Any, rule: str) -> NoReturn:
        raise EngineError(
            f"vLLM's answer {self.fields['index']} to prompt {self.question.number} is not as asked for: "
            f"{name} {_shown(value)} {rule}"
        )


def _shown(value: Any) -> str:
    """A short form of an untrusted value on one line."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
