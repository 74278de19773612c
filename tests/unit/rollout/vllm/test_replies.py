"""Replies of /v1/completions: only what was asked for becomes an answer, whatever the server sends."""

import copy
import json

import pytest

from rest_megatron.config.schema import RolloutConfig
from rest_megatron.errors import EngineError
from rest_megatron.rollout.vllm.replies import Question, Sampling, ask, prompt_seed, read_samples

SAMPLING = Sampling.of(RolloutConfig(temperature=0.7, top_k=5, min_p=0.1), [2, 9], 100)
QUESTION = Question(number=4, prompt_ids=(5, 6), count=2, max_new_tokens=3, seed=11)


def good() -> dict:
    """Two answers, the second first."""
    return {
        "choices": [
            {
                "index": 1,
                "token_ids": [7, 8, 3],
                "prompt_token_ids": [5, 6],
                "logprobs": {"token_logprobs": [-1.5, 0, -0.5]},
                "finish_reason": "length",
            },
            {
                "index": 0,
                "token_ids": [7, 9],
                "prompt_token_ids": [5, 6],
                "logprobs": {"token_logprobs": [-1.5, 1e-6]},
                "finish_reason": "stop",
            },
        ]
    }


def test_a_good_reply_becomes_samples_in_the_order_of_their_index():
    first, second = read_samples(good(), QUESTION, SAMPLING, version=3)
    assert (first.token_ids, first.log_probs, first.finish_reason) == ((7, 9), (-1.5, 0.0), "stop")
    assert (second.token_ids, second.log_probs, second.finish_reason) == ((7, 8, 3), (-1.5, 0.0, -0.5), "length")
    assert {s.prompt_ids for s in (first, second)} == {(5, 6)} and {s.weight_version for s in (first, second)} == {3}


BAD_REPLIES = [
    (None, "no list of choices"),
    ([], "no list of choices"),
    ({}, "no list of choices"),
    ({"choices": {}}, "no list of choices"),
    ({"choices": [1, 2]}, "no list of choices"),
    ({"choices": []}, r"holds choices \[\], asked for 2"),
    ({"choices": good()["choices"][:1]}, r"holds choices \[1\], asked for 2"),
    ({"choices": good()["choices"] * 2}, "asked for 2"),
    ({"choices": [good()["choices"][0]] * 2}, r"holds choices \[1, 1\]"),
]


@pytest.mark.parametrize("reply, text", BAD_REPLIES)
def test_a_reply_without_all_choices_is_refused(reply, text):
    with pytest.raises(EngineError, match=text) as raised:
        read_samples(reply, QUESTION, SAMPLING, 0)
    assert "prompt 4" in str(raised.value)


BAD_CHOICES = [
    ({"index": True}, "holds choices"),
    ({"index": "1"}, "holds choices"),
    ({"index": 1.0}, "holds choices"),
    ({"index": None}, "holds choices"),
    ({"index": 2}, "holds choices"),
    ({"prompt_token_ids": [5, 7]}, "prompt_token_ids [5, 7] not (5, 6)"),
    ({"prompt_token_ids": [5]}, "prompt_token_ids"),
    ({"prompt_token_ids": None}, "prompt_token_ids None must be a list of token ids"),
    ({"token_ids": None}, "token_ids None must be a list"),
    ({"token_ids": "789"}, "token_ids '789' must be a list"),
    ({"token_ids": [7, 8, "3"]}, "must be a list of token ids"),
    ({"token_ids": [7, 8, 3.0]}, "must be a list of token ids"),
    ({"token_ids": [7, True, 3]}, "must be a list of token ids"),
    ({"token_ids": []}, "0 of them, must be 1 to 3"),
    ({"token_ids": [7, 8, 3, 4]}, "4 of them, must be 1 to 3"),
    ({"token_ids": [7, 8, 100]}, "token_ids 100 must be ids from 0 to 99"),
    ({"token_ids": [-1, 8, 3]}, "token_ids -1 must be"),
    ({"token_ids": [7, 8, 10**400]}, "must be ids from 0 to 99"),
    ({"token_ids": [7, 9, 3]}, "token_ids 9 is a stop token, and not the last"),
    ({"token_ids": [7, 8, 9]}, "finish_reason 'length' does not fit the last token, 9; stop: [2, 9]"),
    ({"logprobs": None}, "token_logprobs 'no list' must be 3"),
    ({"logprobs": []}, "token_logprobs 'no list' must be 3"),
    ({"logprobs": {}}, "token_logprobs 'no list' must be 3"),
    ({"logprobs": {"token_logprobs": [-1.0] * 2}}, "token_logprobs 2 must be 3"),
    ({"finish_reason": None}, "finish_reason None must be stop or length"),
    ({"finish_reason": "abort"}, "finish_reason 'abort' must be stop or length"),
    ({"finish_reason": ["stop"]}, "must be stop or length"),
    ({"finish_reason": "stop"}, "finish_reason 'stop' does not fit the last token, 3"),
    (
        {"token_ids": [7, 8], "logprobs": {"token_logprobs": [-1.0, -1.0]}},
        "'length' after 2 tokens, asked for 3; is max_model_len too small?",
    ),
    *(
        ({"logprobs": {"token_logprobs": [-1.0, bad, -1.0]}}, "at token 1, must be finite and at most 0")
        for bad in (float("nan"), float("inf"), -float("inf"), 0.01, None, "x", True, -(10**400), 10**400)
    ),
]


@pytest.mark.parametrize("changes, text", BAD_CHOICES)
def test_a_choice_that_is_not_as_asked_for_is_refused(changes, text):
    reply = good()
    reply["choices"][0] |= changes
    with pytest.raises(EngineError) as raised:
        read_samples(reply, QUESTION, SAMPLING, 0)
    assert text in str(raised.value) and "prompt 4" in str(raised.value)
    assert len(str(raised.value)) < 500


def test_no_field_may_be_missing():
    for name in ("index", "token_ids", "prompt_token_ids", "logprobs", "finish_reason"):
        reply = good()
        del reply["choices"][0][name]
        with pytest.raises(EngineError):
            read_samples(reply, QUESTION, SAMPLING, 0)


class OneClient:
    """Gives prepared replies and keeps what was sent."""

    def __init__(self, replies):
        self.replies = replies

    def send(self, requests, seconds, check):
        self.requests, self.seconds = requests, seconds
        return self.replies


def test_each_prompt_is_one_request_with_the_whole_distribution_spelt_out():
    client = OneClient([good(), EngineError("gone"), {"choices": []}])
    questions = [QUESTION, Question(1, (1,), 2, 3, 5), Question(2, (1,), 2, 3, 5)]
    answers, error, bad = ask(client, questions, SAMPLING, 3, 9.5)
    assert [s.token_ids for s in answers] == [(7, 9), (7, 8, 3)]
    assert str(error) == "rollout error: gone" and "prompt 2 holds choices" in str(bad)
    assert client.seconds == 9.5 and len(client.requests) == 3
    request = client.requests[0]
    assert (request.method, request.path) == ("POST", "/v1/completions")
    assert json.loads(json.dumps(request.body)) == {
        "prompt": [5, 6],
        "n": 2,
        "max_tokens": 3,
        "seed": 11,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,
        "stop_token_ids": [2, 9],
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def test_seeds_of_prompts_are_reproducible_and_leave_room_for_the_answers():
    assert prompt_seed(1, 2) == prompt_seed(1, 2) != prompt_seed(12, 0)
    assert all(0 <= prompt_seed(s, i) < 2**62 for s in range(50) for i in range(50))


def test_reading_changes_nothing_in_the_reply():
    reply = good()
    before = copy.deepcopy(reply)
    read_samples(reply, QUESTION, SAMPLING, 0)
    assert reply == before
