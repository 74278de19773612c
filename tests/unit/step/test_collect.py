"""A step's answers: how groups that teach nothing are kept, left out or replaced, and what is added to their scores."""

from types import SimpleNamespace

import pytest

from rest_megatron.config import load
from rest_megatron.distributed.watch import Watch
from rest_megatron.errors import DataError
from rest_megatron.evaluate.heldout import fixed_progress
from rest_megatron.grammar import TOOLRL
from rest_megatron.observe.rollouts import rollout_metrics
from rest_megatron.reward.presets import build_reward
from rest_megatron.step.collect import collect
from rest_megatron.step.score import accuracies, reward_metrics
from rest_megatron.types import Prompt, Sample, Score

TABLE = [bytes([i]) for i in range(256)] + [b"<|im_end|>"]
CALL = b'<think> t </think>\n<tool_call>\n{"name": "f", "parameters": {"a": 1}}\n</tool_call>'
GOOD, BAD = (*CALL, 256), (*b"no", 256)
MIXED, ALIKE = (GOOD, BAD), (BAD, BAD)


class Engine:
    """Answers the n-th prompt with the n-th group of a script, whatever it is asked."""

    def __init__(self, script):
        self.script = list(script)
        self.asked = []

        self.awake = False

    def publish(self, version):
        assert version == 3
        self.awake = True

    def sleep(self):
        self.awake = False

    def generate(self, requests, *, group_size, seed):
        assert self.awake
        self.asked.append((len(requests), seed))
        groups, self.script = self.script[: len(requests)], self.script[len(requests) :]
        return [
            [Sample(tuple(request.prompt_ids), ids, (-0.5,) * len(ids), "stop", 3) for ids in group]
            for request, group in zip(requests, groups, strict=True)
        ]


class Judge:
    """Grades half of the answers."""

    last_error = "out of patience"

    def grades(self, questions, check):
        return [0.5 if number % 2 else None for number, _ in enumerate(questions)]


def session(script, *overrides):
    """Rank 0 alone, sampling two answers to each of three prompts from a script."""
    config = load((), ["rollout.prompts_per_step=3", "rollout.group_size=2", *overrides])
    return SimpleNamespace(
        config=config,
        rollout=Engine(script),
        actor=SimpleNamespace(version=3),
        reward=build_reward(config),
        judge=Judge(),
        token_table=TABLE,
        grammar=TOOLRL,
        parallel=SimpleNamespace(rank=0, on_main=lambda function: function(), watch=Watch()),
    )


def prompts():
    """A callable that hands out prompts 0, 1, 2, ..."""
    numbers = iter(range(1000))

    def take(count):
        return [Prompt(next(numbers), ({"role": "user", "content": "?"},), CALL.decode(), (1, 2)) for _ in range(count)]

    return take


def numbers(experience):
    return [p.index for p in experience.prompts]


def test_keep_trains_on_every_group_and_gives_the_useless_ones_no_advantage():
    experience = collect(session([MIXED, ALIKE, MIXED]), 1, prompts(), progress=0.0)
    assert (numbers(experience), experience.num_trained, experience.rounds) == ([0, 1, 2], 3, 1)
    assert experience.advantages[1].tolist() == [0.0, 0.0]
    assert experience.advantages[0, 0] > 0 > experience.advantages[0, 1]


def test_mask_leaves_the_useless_groups_out_of_the_training_but_not_of_the_metrics():
    experience = collect(session([MIXED, ALIKE, MIXED], "algorithm.zero_variance=mask"), 1, prompts(), progress=0.0)
    assert (numbers(experience), experience.num_trained, experience.rounds) == ([0, 2, 1], 2, 1)
    assert len(experience.trained) == 4 and len(experience.all_scores) == 6
    metrics = rollout_metrics(experience)
    assert metrics["rollout/zero_variance_groups"] == pytest.approx(1 / 3)
    assert metrics["rollout/groups_trained"] == 2 and metrics["rollout/answers"] == 6


def test_refill_asks_for_as_many_new_prompts_as_are_missing():
    script = [MIXED, ALIKE, ALIKE, ALIKE, MIXED, MIXED]
    made = session(script, "algorithm.zero_variance=refill")
    experience = collect(made, 4, prompts(), progress=0.0)
    assert (experience.num_trained, experience.rounds) == (3, 3)
    assert numbers(experience)[:3] == [0, 4, 5] and sorted(numbers(experience)) == [0, 1, 2, 3, 4, 5]
    assert [count for count, _ in made.rollout.asked] == [3, 2, 1]
    assert len({seed for _, seed in made.rollout.asked}) == 3
    assert not (experience.advantages[:3] == 0).any() and (experience.advantages[3:] == 0).all()


@pytest.mark.parametrize("good, trained", [(1, 1), (0, 0)])
def test_refill_gives_up_after_its_rounds_and_trains_on_what_there_is(good, trained):
    script = [MIXED] * good + [ALIKE] * 20
    made = session(script, "algorithm.zero_variance=refill", "algorithm.max_refills=2")
    experience = collect(made, 1, prompts(), progress=0.0)
    assert (experience.num_trained, experience.rounds) == (trained, 3)
    assert len(experience.trained) == 2 * trained


def test_leave_one_out_measures_an_answer_by_the_others():
    experience = collect(session([MIXED] * 3, "algorithm.advantage=leave_one_out"), 1, prompts(), progress=0.0)
    high, low = experience.totals[0].tolist()
    assert experience.advantages[0].tolist() == pytest.approx([high - low, low - high])


def test_the_judge_adds_its_weighted_grade_and_nothing_where_it_gives_none(caplog):
    plain = collect(session([MIXED] * 3), 1, prompts(), progress=0.0)
    judge = ("reward.judge_url=http://h/v1", "reward.judge_model=m", "reward.judge_weight=2")
    judged = collect(session([MIXED] * 3, *judge), 1, prompts(), progress=0.0)
    assert (judged.totals - plain.totals).tolist() == [[0.0, 1.0]] * 3
    assert [s.parts["judge"] for s in judged.all_scores] == [0.0, 0.5] * 3
    assert [s.parts["judged"] for s in judged.all_scores] == [0.0, 1.0] * 3
    assert "no grade for 3 of 6 answers: out of patience" in caplog.text


def test_long_answers_are_punished_over_the_last_tokens_before_the_limit():
    longest = len(GOOD)
    plain = collect(session([MIXED] * 3), 1, prompts(), progress=0.0)
    limits = (f"rollout.max_new_tokens={longest}", "reward.overlong_buffer=10", "reward.overlong_penalty=0.5")
    punished = collect(session([MIXED] * 3, *limits), 1, prompts(), progress=0.0)
    assert (punished.totals - plain.totals).tolist() == [[-0.5, 0.0]] * 3


def test_a_reward_that_fails_ends_the_step(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def reward(response, ground_truth, *, progress, step):\n    raise KeyError('oops')\n")
    with pytest.raises(DataError, match="oops"):
        collect(session([MIXED] * 3, f"reward.function={path}:reward"), 1, prompts(), progress=0.0)


def test_metrics_are_means_over_the_answers_that_have_a_part():
    scores = [Score(1.0, 0.0, 1.0, {"a": 1.0}, "ok"), Score(3.0, 0.0, 2.0, {"a": 0.0, "b": 0.5}, "ok")]
    metrics = reward_metrics(scores)
    assert metrics == {"reward/mean": 2.0, "reward/correctness": 1.5, "reward/a": 0.5, "reward/b": 0.5}
    assert accuracies(metrics) == (None, None, None)
    assert accuracies({"reward/format": 0.1, "reward/name": 0.2, "reward/parameter_values": 0.3}) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("preset, right", [("paper", 4.0), ("reference", 4.0), ("poster", 2.0)])
def test_held_out_answers_are_scored_where_accuracy_counts(preset, right):
    config = load((), [f"reward.preset={preset}"])
    reward = build_reward(config)
    truth, progress = reward.read(CALL.decode()), fixed_progress(config.reward)
    wrong = CALL.replace(b'"f"', b'"g"')
    scores = [reward.score(text, truth, progress=progress, step=150).total for text in (CALL, wrong)]
    assert scores[0] == pytest.approx(right) and scores[1] < scores[0]
