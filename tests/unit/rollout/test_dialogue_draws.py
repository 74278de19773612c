"""What a dialogue's later turns depend on: its own place among all, not which others still go on."""

from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from rest_megatron.config import load
from rest_megatron.data.template import read_template
from rest_megatron.data.tokens import token_bytes
from rest_megatron.data.turns import read_turns
from rest_megatron.environment.tools import Tools
from rest_megatron.rollout.dialogue import Dialogues
from rest_megatron.types import Request, Sample
from tests.paths import MODEL
from tests.unit.rollout.dialogues import ALONE, prompt_ids, tool


class NumberedEngine:
    """Draws a word that tells seed, prompt number and answer number, as an engine's uniforms do."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.calls = []

    def generate(self, requests, *, group_size, seed):
        self.calls.append(SimpleNamespace(numbers=[r.number for r in requests], group_size=group_size))
        return [
            [self._drawn(r.prompt_ids, f"{seed} {r.number} {answer}") for answer in range(group_size)] for r in requests
        ]

    def _drawn(self, prompt, text):
        ids = self.tokenizer.encode(f"{text}<|im_end|>", add_special_tokens=False)
        return Sample(tuple(prompt), tuple(ids), (-1.0,) * len(ids), "stop", 0)


@pytest.fixture(scope="module")
def tokenizer():
    made = AutoTokenizer.from_pretrained(MODEL)
    made.chat_template = read_template("keep_thinking", "default")
    return made


def played(tokenizer, ending=(), numbers=(0, 1, 2)):
    """Dialogues of three turns, two for each of three prompts; those of `ending` end after the first."""

    def respond(response, messages, *, prompt):
        _, number, answer = response.split()
        return None if not messages and (int(number), int(answer)) in ending else tool("21")

    config = load((), [f"model.path={MODEL}", "rollout.max_turns=3", "rollout.max_new_tokens=1000"])
    engine, tools = NumberedEngine(tokenizer), Tools(respond, "mine", 30.0)
    made = Dialogues(engine, ALONE, config.rollout, read_turns(config, tokenizer), tools, token_bytes(tokenizer))
    requests = [Request(prompt_ids(tokenizer), 1000, number) for number in numbers]
    return made.generate(requests, group_size=2, seed=5), engine


def test_a_dialogue_goes_on_alike_whether_or_not_others_ended_early(tokenizer):
    whole, _ = played(tokenizer)
    ending = {(0, 0), (1, 1)}
    part, engine = played(tokenizer, ending)
    assert [len(call.numbers) for call in engine.calls] == [3, 4, 4]
    for prompt in range(3):
        for answer in range(2):
            assert (part[prompt][answer] == whole[prompt][answer]) is ((prompt, answer) not in ending)


def test_no_two_dialogues_draw_alike(tokenizer):
    groups, _ = played(tokenizer)
    assert len({sample.token_ids for group in groups for sample in group}) == 6


def test_a_caller_s_numbers_name_the_dialogues(tokenizer):
    whole, _ = played(tokenizer)
    part, _ = played(tokenizer, numbers=[2, 0])
    assert part == [whole[2], whole[0]]
