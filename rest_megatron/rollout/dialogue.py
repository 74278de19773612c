"""Answers of several turns: an engine around another one, in which the user's tools answer between turns.

A dialogue is a list of ids that only grows: the ids the engine drew, then the ids of what the tools said, then again
the engine's. Nothing is tokenised twice, and what tools said is marked as not sampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from rest_megatron.config.schema import Config, RolloutConfig
from rest_megatron.data.template import Message
from rest_megatron.data.tokens import decode
from rest_megatron.data.turns import Turns, read_turns
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.environment.tools import Question, Tools, load_tools
from rest_megatron.errors import EngineError
from rest_megatron.rollout.engine import RolloutEngine
from rest_megatron.types import Request, Sample

# Between the seeds of two turns; those of steps and refills differ by other primes.
TURN_SEED = 15_485_863


class Dialogues:
    """`RolloutEngine` whose answers are dialogues of up to `rollout.max_turns` turns.

    Another turn follows one that ends with the template's end-of-turn token while turns and tokens are left and the
    tools answer. `rollout.max_new_tokens` bounds all that follows the prompt, what the tools say included: a dialogue
    that reaches it is cut there, with finish_reason "length". A Sample's token_ids are everything after the prompt.

    Args:
        engine: draws the turns.
        parallel: this rank's place; tools run on rank 0.
        config: turns and longest answer.
        turns: the chat template's.
        tools: the user's.
        token_table: the bytes of each token id.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        parallel: Parallel,
        config: RolloutConfig,
        turns: Turns,
        tools: Tools,
        token_table: Sequence[bytes],
    ) -> None:
        self.engine = engine
        self.parallel = parallel
        self.config = config
        self.turns = turns
        self.tools = tools
        self.token_table = token_table

    def generate(self, requests: Sequence[Request], *, group_size: int, seed: int) -> list[list[Sample]]:
        """`group_size` dialogues for each request, the same lists on every rank; see `RolloutEngine`.

        A dialogue's turns go by the request's number and its own in the group, not by which others have ended.
        Raises DataError for tools that fail, EngineError when the weights change between turns, and Preempted.
        """
        groups = self.engine.generate(requests, group_size=group_size, seed=seed)
        dialogues = [
            [_Dialogue(first, request.max_new_tokens, request.number * group_size + i) for i, first in enumerate(group)]
            for request, group in zip(requests, groups, strict=True)
        ]
        going = [dialogue for group in dialogues for dialogue in group]
        for turn in range(1, self.config.max_turns):
            going = self._answered([d for d in going if d.waits(self.turns.end_of_turn)])
            if not going:
                break
            more = [Request(d.all_ids, d.left, d.number) for d in going]
            samples = self.engine.generate(more, group_size=1, seed=seed + TURN_SEED * turn)
            for dialogue, (sample,) in zip(going, samples, strict=True):
                dialogue.take_turn(sample)
        return [[dialogue.sample() for dialogue in group] for group in dialogues]

    def publish(self, version: int) -> None:
        """See `RolloutEngine`."""
        self.engine.publish(version)

    def sleep(self) -> None:
        """See `RolloutEngine`."""
        self.engine.sleep()

    def close(self) -> None:
        """See `RolloutEngine`."""
        self.engine.close()

    def _answered(self, dialogues: list["_Dialogue"]) -> list["_Dialogue"]:
        """Those that the tools answered and that have room for another turn, their answers appended."""
        if not dialogues:
            return []
        with self.parallel.watch.phase("tools"):
            replies = self.parallel.on_main(lambda: self._replies(dialogues))
        for dialogue, reply in zip(dialogues, replies, strict=True):
            if reply is not None:
                dialogue.take_reply(*reply)
        return [d for d, reply in zip(dialogues, replies, strict=True) if reply is not None and d.left]

    def _replies(self, dialogues: list["_Dialogue"]) -> list[tuple[list[Message], list[int]] | None]:
        """What the tools say to each dialogue's last turn, and its ids."""
        texts = [(self._text(d.turn_ids[:-1]), self._text(d.first.prompt_ids)) for d in dialogues]
        questions = [
            Question(response, d.messages, prompt) for (response, prompt), d in zip(texts, dialogues, strict=True)
        ]
        replies = []
        for question, said in zip(questions, self.tools.answers(questions, self.parallel.watch.check), strict=True):
            turn = {"role": "assistant", "content": question.response}
            replies.append(None if said is None else ([turn, *said], self.turns.between(said)))
        return replies

    def _text(self, ids: Sequence[int]) -> str:
        return decode(ids, self.token_table).decode("utf-8", errors="replace")


def open_dialogues(
    engine: RolloutEngine,
    config: Config,
    parallel: Parallel,
    tokenizer: PreTrainedTokenizerBase,
    token_table: Sequence[bytes],
) -> RolloutEngine:
    """`engine` itself without rollout.tools, else dialogues around it. Raises ConfigError, see `read_turns`."""
    tools = load_tools(config)
    if tools is None:
        return engine
    return Dialogues(engine, parallel, config.rollout, read_turns(config, tokenizer), tools, token_table)


@dataclass
class _Dialogue:
    """One that grows."""

    first: Sample
    """Its first turn."""
    limit: int
    """Most ids after the prompt."""
    number: int
    """Its own among all dialogues."""
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    """Said so far, the last turn not yet among it."""
    turn_ids: Sequence[int] = ()
    """Of the last turn."""
    finish_reason: str = ""

    def __post_init__(self) -> None:
        self.take_turn(self.first)

    @property
    def all_ids(self) -> tuple[int, ...]:
        """The prompt's and those after it."""
        return (*self.first.prompt_ids, *self.ids)

    @property
    def left(self) -> int:
        """How many ids may still follow."""
        return self.limit - len(self.ids)

    def waits(self, end_of_turn: int) -> bool:
        """Whether the last turn ended so that tools may answer, and there is room to."""
        return self.finish_reason == "stop" and self.turn_ids[-1] == end_of_turn and self.left > 0

    def take_turn(self, sample: Sample) -> None:
        """Append a turn of the assistant."""
        if sample.weight_version != self.first.weight_version:
            raise EngineError(
                f"a dialogue began with weight version {self.first.weight_version} and continues with "
                f"{sample.weight_version}; all its turns must come from the same weights. Let nothing else publish "
                "weights to the server of rollout.vllm_url"
            )
        self._append(sample.token_ids, sample.log_probs, sampled=True)
        self.turn_ids, self.finish_reason = sample.token_ids, sample.finish_reason

    def take_reply(self, messages: list[Message], ids: list[int]) -> None:
        """Append what was said since, its ids as far as there is room for them."""
        self.messages += messages
        ids = ids[: self.left]
        self._append(ids, [0.0] * len(ids), sampled=False)
        if not self.left:
            self.finish_reason = "length"

    def sample(self) -> Sample:
        """The whole dialogue as one answer."""
        mask = () if all(self.mask) else tuple(self.mask)
        log_probs = tuple(self.log_probs)
        first = self.first
        return Sample(first.prompt_ids, tuple(self.ids), log_probs, self.finish_reason, first.weight_version, mask)

    def _append(self, ids: Sequence[int], log_probs: Sequence[float], *, sampled: bool) -> None:
        self.ids += ids
        self.log_probs += log_probs
        self.mask += [sampled] * len(ids)
