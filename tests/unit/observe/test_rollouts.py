"""How long a step's answers are, and how they end."""

from rest_megatron.observe.rollouts import length_metrics
from rest_megatron.types import Sample


def test_only_sampled_ids_count_and_an_answer_that_was_cut_did_not_stop():
    whole = Sample((1,), (5, 6, 7), (-0.5,) * 3, "stop", 0)
    dialogue = Sample((1,), (5, 6, 7, 8), (-0.5, 0.0, 0.0, -0.5), "length", 0, (True, False, False, True))
    assert length_metrics([whole, dialogue]) == {"rollout/length": 2.5, "rollout/stopped": 0.5}
